//! A report as text, JSON and CSV.
//!
//! The one idea: all forms say the verdict first, and none says a latency when the
//! client was too slow to have measured one. The JSON is for programs that outlive
//! this version: it carries the number of its schema, and the README lists its keys.

use std::collections::BTreeMap;
use std::fmt::Write;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::report::{Report, Verdict};
use super::{Arrivals, Load, Options, Until};

/// Version of the JSON; it grows when a key goes or changes its meaning, not when one
/// is added.
pub const SCHEMA: u64 = 1;
/// The quantiles that are told.
const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];

impl Report {
    fn timings(&self) -> [(&'static str, &Histogram<u64>); 5] {
        [
            ("latency", &self.latency),
            ("first_byte", &self.first_byte),
            ("first_token", &self.first_token),
            ("inter_token", &self.inter_token),
            ("connect", &self.connect),
        ]
    }

    fn lags(&self) -> [(&'static str, &Histogram<u64>); 2] {
        [("send_lag", &self.send_lag), ("wake_lag", &self.wake_lag)]
    }

    /// The verdict in words.
    pub fn message(&self) -> String {
        match self.verdict() {
            Verdict::Good => "every answer that came whole was right".to_owned(),
            Verdict::Broken => "wrong answers".to_owned(),
            Verdict::NoAnswer => "no request got a whole answer".to_owned(),
            Verdict::ClientTooSlow => {
                let ms = |us: u64| us as f64 / 1e3;
                format!(
                    "client too slow: invalid (its own lateness p99: sending {:.1} ms, waking {:.1} ms; limit {:.1} ms)",
                    ms(self.send_lag.value_at_quantile(0.99)),
                    ms(self.wake_lag.value_at_quantile(0.99)),
                    ms(self.lag_us_max())
                )
            }
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        if self.verdict() == Verdict::ClientTooSlow {
            return self.message() + "\n";
        }
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "requests {}  ok {}  aborted {}  unsent {}  waited {}  stale connections {}  in {:.2} s  ({:.1} ok/s, {:.1} tokens/s)",
            self.requests,
            self.ok,
            self.aborted,
            self.unsent,
            self.waited,
            self.stale,
            self.elapsed.as_secs_f64(),
            self.rate(),
            self.per_s(self.tokens)
        );
        let _ = writeln!(
            out,
            "bytes sent {}  received {}  events {}  connects {}",
            self.sent_bytes,
            self.received_bytes,
            self.events,
            self.connect.len()
        );
        for (status, count) in &self.statuses {
            let _ = writeln!(out, "status {status}: {count}");
        }
        for (kind, count) in &self.errors {
            let _ = writeln!(out, "error {kind}: {count}");
        }
        for (kind, count) in &self.wrong {
            let _ = writeln!(out, "WRONG ANSWER {kind}: {count}");
        }
        let _ = write!(out, "{:<12} {:>10}", "ms", "count");
        for (quantile, _) in QUANTILES {
            let _ = write!(out, " {quantile:>10}");
        }
        out.push('\n');
        for (name, times) in self.timings().into_iter().chain(self.lags()) {
            if times.is_empty() {
                continue;
            }
            let _ = write!(out, "{name:<12} {:>10}", times.len());
            for (_, quantile) in QUANTILES {
                let _ = write!(out, " {:>10.3}", times.value_at_quantile(quantile) as f64 / 1e3);
            }
            out.push('\n');
        }
        let judged = self.judged();
        for judged in &judged {
            let _ = writeln!(out, "slo {judged}");
        }
        if !judged.is_empty() {
            let _ = writeln!(out, "goodput {:.1}/s ({} within all)", self.goodput(), self.within);
        }
        let _ = writeln!(out, "verdict: {:?}", self.verdict());
        out
    }

    /// For programs: one object; times in microseconds. Without timings, rates and
    /// objectives when the client was too slow.
    pub fn to_json(&self) -> String {
        let mut line = self.to_value().to_string();
        line.push('\n');
        line
    }

    /// The object of [`Report::to_json`].
    pub fn to_value(&self) -> Value {
        let verdict = self.verdict();
        let statuses: Map<String, Value> = self
            .statuses
            .iter()
            .map(|(status, count)| (status.to_string(), (*count).into()))
            .collect();
        let mut told = json!({
            "schema": SCHEMA,
            "kind": "run",
            "version": env!("CARGO_PKG_VERSION"),
            "verdict": verdict.name(),
            "valid": verdict != Verdict::ClientTooSlow,
            "message": self.message(),
            "options": self.options,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "requests": self.requests,
            "ok": self.ok,
            "aborted": self.aborted,
            "unsent": self.unsent,
            "waited": self.waited,
            "stale": self.stale,
            "statuses": statuses,
            "errors": self.errors,
            "wrong": self.wrong,
            "events": self.events,
            "tokens": self.tokens,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "lag": {
                "p99_us": self.lag_us_p99(),
                "limit_us": self.lag_us_max(),
                "send_us": quantiles(&self.send_lag),
                "wake_us": quantiles(&self.wake_lag),
            },
        });
        if verdict == Verdict::ClientTooSlow {
            return told;
        }
        let timings: Map<String, Value> = self
            .timings()
            .into_iter()
            .map(|(name, times)| (format!("{name}_us"), quantiles(times)))
            .collect();
        let judged = self.judged().into_iter().map(|judged| {
            json!({
                "slo": judged.slo.to_string(),
                "metric": judged.slo.metric.name(),
                "bound_us": judged.slo.bound_us(),
                "quantile": judged.slo.quantile,
                "value_us": judged.value_us,
                "met": judged.met,
            })
        });
        let judged: Vec<Value> = judged.collect();
        if !judged.is_empty() {
            told["within"] = self.within.into();
            told["goodput_per_s"] = self.goodput().into();
            told["slos_met"] = self.slos_met().into();
        }
        told["ok_per_s"] = self.rate().into();
        told["tokens_per_s"] = self.per_s(self.tokens).into();
        told["timings"] = timings.into();
        told["slos"] = judged.into();
        told
    }

    /// For tables: a line of names and a line of values; times in microseconds.
    pub fn to_csv(&self) -> String {
        let mut names =
            String::from("verdict,elapsed_s,requests,ok,aborted,unsent,stale,errors,wrong,events");
        let mut values = self.verdict().name().to_owned();
        let sum = |counts: &BTreeMap<&str, u64>| counts.values().sum::<u64>();
        let _ = write!(values, ",{:.3}", self.elapsed.as_secs_f64());
        let counts = [
            self.requests,
            self.ok,
            self.aborted,
            self.unsent,
            self.stale,
            sum(&self.errors),
            sum(&self.wrong),
            self.events,
        ];
        for count in counts {
            let _ = write!(values, ",{count}");
        }
        let told = self.verdict() != Verdict::ClientTooSlow;
        for (name, times) in self.timings().into_iter().chain(self.lags()) {
            for (quantile, value) in QUANTILES {
                let _ = write!(names, ",{name}_{quantile}_us");
                values.push(',');
                if told && !times.is_empty() {
                    let _ = write!(values, "{}", times.value_at_quantile(value));
                }
            }
        }
        format!("{names}\n{values}\n")
    }
}

/// Count, mean and quantiles of a time; only the count when there is none.
fn quantiles(times: &Histogram<u64>) -> Value {
    let mut told = Map::new();
    told.insert("count".to_owned(), times.len().into());
    if !times.is_empty() {
        told.insert("mean".to_owned(), times.mean().into());
        for (quantile, value) in QUANTILES {
            told.insert(quantile.to_owned(), times.value_at_quantile(value).into());
        }
    }
    Value::Object(told)
}

/// What a run was told, for its report: no key, and neither field nor query, since both
/// may hold one.
pub(crate) fn options_value(options: &Options) -> Value {
    let arrivals = match &options.load {
        Load::Closed => Value::Null,
        Load::Listed(list) => json!({"shape": "listed", "requests": list.len()}),
        Load::Open(arrivals) => {
            let mut told = json!({"shape": arrivals.name(), "rate": arrivals.rate()});
            match arrivals {
                Arrivals::Gamma { cv, .. } => told["cv"] = json!(cv),
                Arrivals::Burst { count, every } => {
                    told["count"] = json!(count);
                    told["every_s"] = json!(every.as_secs_f64());
                }
                Arrivals::Ramp { from, to, over } => {
                    told["from"] = json!(from);
                    told["to"] = json!(to);
                    told["over_s"] = json!(over.as_secs_f64());
                }
                Arrivals::Trace { trace, speed } => {
                    told["lines"] = json!(trace.lines().len());
                    told["speed"] = json!(speed);
                }
                Arrivals::Constant { .. } | Arrivals::Poisson { .. } => {}
            }
            told
        }
    };
    let (duration_s, requests) = match options.until {
        Until::Elapsed(limit) => (Some(limit.as_secs_f64()), None),
        Until::Requests(limit) => (None, Some(limit)),
        Until::End => (None, None),
    };
    json!({
        "url": options.url.split('?').next(),
        "model": options.model,
        "stream": options.stream,
        "connections": options.connections,
        "threads": options.threads,
        "arrivals": arrivals,
        "duration_s": duration_s,
        "requests": requests,
        "body_bytes": options.body.as_ref().map(Vec::len),
        "prompt_bytes": options.prompt_bytes,
        "tokens": options.tokens,
        "abort_after": options.abort_after,
        "timeout_s": options.timeout.as_secs_f64(),
        "seed": options.seed,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::client::Fault;
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn verdict_comes_before_the_numbers() {
        let options = Options::default();
        let good = report(&options, Ok(()), Duration::ZERO);
        assert_eq!(good.verdict(), Verdict::Good);
        assert!(good.flawless() && good.to_text().contains("latency"));
        let late = report(&options, Ok(()), Duration::from_millis(50));
        assert_eq!(late.verdict(), Verdict::ClientTooSlow);
        assert!(late.to_text().starts_with("client too slow: invalid"));
        assert!(!late.to_text().contains("latency") && !late.to_json().contains("latency"));
        let json = late.to_value();
        assert_eq!((&json["valid"], &json["verdict"]), (&false.into(), &"client_too_slow".into()));
        assert!(json["message"].as_str().unwrap().starts_with("client too slow: invalid"));
        assert!(!late.to_csv().contains(",7000,"));
        let none = report(&options, Err(Fault::Timeout), Duration::ZERO);
        assert_eq!(none.verdict(), Verdict::NoAnswer);
    }

    #[test]
    fn all_forms_tell_the_same() {
        let slos = vec!["e2e=8ms:p50".parse().unwrap(), "e2e=5ms:p50".parse().unwrap()];
        let key = Some("sk-secret".to_owned());
        let url = "http://a/v1?key=sk-secret".to_owned();
        let good =
            report(&Options { slos, key, url, ..Options::default() }, Ok(()), Duration::ZERO);
        let json: Value = serde_json::from_str(&good.to_json()).unwrap();
        assert_eq!((&json["schema"], &json["ok"]), (&1.into(), &1.into()));
        let told = json["timings"]["latency_us"]["max"].as_u64().unwrap();
        assert!((6_990..7_010).contains(&told), "{told}");
        assert_eq!(json["slos"][0]["met"], true);
        assert_eq!((&json["slos"][1]["met"], &json["slos_met"]), (&false.into(), &false.into()));
        assert!(!good.to_json().contains("secret"));
        let text = good.to_text();
        assert!(text.contains("slo e2e=8ms:p50 met") && text.contains("slo e2e=5ms:p50 MISSED"));
        let csv = good.to_csv();
        let (names, values) = csv.trim_end().split_once('\n').unwrap();
        assert_eq!(names.split(',').count(), values.split(',').count());
    }
}
