//! A run against an earlier one: what got worse.
//!
//! The one idea: each metric is compared on its own and named, since a better median
//! does not pay for a worse tail. A quantile counts only where a request lies beyond
//! it, and a time only where it moved by more than a client can tell; one run against
//! one run is no statistic, so the bound should be wider than the machine's noise.

use std::fmt;

use serde_json::{Value, json};

use super::SCHEMA;

/// Smallest difference of times that counts, in microseconds: below it is the wake-up
/// of a task.
const DIFFERENCE_US_MIN: f64 = 20.0;
/// The times compared.
const TIMES: [&str; 4] = ["latency_us", "first_byte_us", "first_token_us", "inter_token_us"];
/// The quantiles of them.
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// One metric in both runs.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Such as `first_token_us.p99`.
    pub metric: String,
    /// In the earlier run.
    pub before: f64,
    /// In this one.
    pub now: f64,
    /// By how much it got worse, as a ratio of `before`; negative when it got better. Of
    /// the share of failed requests it is the difference.
    pub worse_by: f64,
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change { metric, before, now, worse_by } = self;
        let word = if *worse_by > 0.0 { "worse" } else { "better" };
        write!(out, "{metric} {before:.3} -> {now:.3} ({:.1} % {word})", worse_by.abs() * 100.0)
    }
}

/// Two runs, metric by metric.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// All that both runs have.
    pub changes: Vec<Change>,
    /// Options in which the runs differ: they may not be comparable.
    pub differing: Vec<String>,
    /// The bound, as a ratio.
    pub fail_on: f64,
}

impl Comparison {
    /// What got worse by more than the bound.
    pub fn worse(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| change.worse_by > self.fail_on)
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        for name in &self.differing {
            out.push_str(&format!("baseline had another {name}\n"));
        }
        for change in self.worse() {
            out.push_str(&format!("WORSE {change}\n"));
        }
        let worse = self.worse().count();
        let bound = self.fail_on * 100.0;
        let all = self.changes.len();
        out.push_str(&format!("baseline: {worse} of {all} metrics worse by more than {bound} %\n"));
        out
    }

    /// For programs.
    pub fn to_value(&self) -> Value {
        let changes = self.changes.iter().map(|change| {
            json!({
                "metric": change.metric, "before": change.before, "now": change.now,
                "worse_by": change.worse_by, "worse": change.worse_by > self.fail_on,
            })
        });
        json!({
            "fail_on": self.fail_on,
            "differing": self.differing,
            "changes": changes.collect::<Vec<Value>>(),
        })
    }
}

/// Reads `5%` as 0.05.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').ok_or("a number with %, such as 5%")?;
    let percent: f64 = number.trim().parse().map_err(|_| "not a number".to_owned())?;
    let known = percent.is_finite() && percent >= 0.0;
    known.then_some(percent / 100.0).ok_or_else(|| format!("{percent} %, below 0"))
}

/// Compares the JSON of two runs.
///
/// Errors: one of them is not a run of this schema, or its client was too slow.
pub fn compare(before: &Value, now: &Value, fail_on: f64) -> Result<Comparison, String> {
    for (name, run) in [("baseline", before), ("run", now)] {
        if run["kind"] != "run" || run["schema"] != SCHEMA {
            return Err(format!("the {name} is not the JSON of a run of schema {SCHEMA}"));
        }
        if run["valid"] != true {
            return Err(format!("the {name} is invalid: its client was too slow"));
        }
    }
    let mut changes = Vec::new();
    let both = |read: &dyn Fn(&Value) -> Option<f64>| read(before).zip(read(now));
    let mut add = |metric: String, (before, now): (f64, f64), worse_by: f64| {
        changes.push(Change { metric, before, now, worse_by });
    };
    if let Some((was, is)) = both(&failed_share) {
        add("failed_share".to_owned(), (was, is), is - was);
    }
    for rate in ["ok_per_s", "goodput_per_s"] {
        if rate == "goodput_per_s" && slos(before) != slos(now) {
            continue;
        }
        if let Some((was, is)) =
            both(&|run: &Value| run[rate].as_f64()).filter(|(was, _)| *was > 0.0)
        {
            add(rate.to_owned(), (was, is), 1.0 - is / was);
        }
    }
    for time in TIMES {
        for (name, quantile) in QUANTILES {
            let told = both(&|run: &Value| told(&run["timings"][time], name, quantile));
            if let Some((was, is)) = told {
                let same = (is - was).abs() < DIFFERENCE_US_MIN;
                let worse_by = if same { 0.0 } else { is / was.max(1.0) - 1.0 };
                add(format!("{time}.{name}"), (was, is), worse_by);
            }
        }
    }
    let differing = differing(&before["options"], &now["options"]);
    Ok(Comparison { changes, differing, fail_on })
}

fn failed_share(run: &Value) -> Option<f64> {
    let count = |name: &str| run[name].as_f64();
    let all = count("requests")? + count("unsent")?;
    (all > 0.0).then_some(1.0 - (count("ok")? + count("aborted")?) / all)
}

fn slos(run: &Value) -> Vec<&Value> {
    run["slos"]
        .as_array()
        .map(|slos| slos.iter().map(|slo| &slo["slo"]).collect())
        .unwrap_or_default()
}

/// A quantile, where at least one sample lies beyond it.
fn told(times: &Value, name: &str, quantile: f64) -> Option<f64> {
    let count = times["count"].as_f64()?;
    // Less a hair, since 1 - 0.9 is a little less than 0.1 in binary.
    (count * (1.0 - quantile) >= 1.0 - 1e-9).then(|| times[name].as_f64()).flatten()
}

/// The options that differ; where the run went to and how its arrivals were drawn may.
fn differing(before: &Value, now: &Value) -> Vec<String> {
    let Some(options) = now.as_object() else { return Vec::new() };
    let differs = |name: &&String| {
        !matches!(name.as_str(), "url" | "seed") && before[name.as_str()] != now[name.as_str()]
    };
    options.keys().filter(differs).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(ok: u64, p50: u64, p99: u64, count: u64) -> Value {
        json!({
            "schema": SCHEMA, "kind": "run", "valid": true,
            "options": {"url": "http://a", "seed": 1, "stream": true},
            "requests": 1000, "unsent": 0, "ok": ok, "aborted": 0, "ok_per_s": ok as f64 / 10.0,
            "timings": {
                "latency_us": {"count": count, "p50": p50, "p90": p50, "p99": p99, "max": p99},
                "connect_us": {"count": 0},
            },
        })
    }

    fn worse(before: &Value, now: &Value, fail_on: f64) -> Vec<String> {
        let told = compare(before, now, fail_on).unwrap();
        told.worse().map(|change| change.metric.clone()).collect()
    }

    #[test]
    fn each_metric_that_got_worse_is_named() {
        let before = run(1000, 10_000, 20_000, 1000);
        assert!(worse(&before, &before, 0.0).is_empty());
        assert!(worse(&before, &run(1000, 10_400, 20_900, 1000), 0.05).is_empty());
        assert_eq!(worse(&before, &run(1000, 9_000, 22_000, 1000), 0.05), ["latency_us.p99"]);
        assert_eq!(
            worse(&before, &run(900, 10_000, 20_000, 1000), 0.05),
            ["failed_share", "ok_per_s"]
        );
        assert!(worse(&before, &run(1000, 1, 1, 1000), 0.0).is_empty(), "faster is no fault");
        let text = compare(&before, &run(1000, 9_000, 22_000, 1000), 0.05).unwrap().to_text();
        assert!(
            text.contains("WORSE latency_us.p99 20000.000 -> 22000.000 (10.0 % worse)"),
            "{text}"
        );
    }

    #[test]
    fn what_nobody_can_tell_apart_does_not_count() {
        let few = run(99, 10_000, 20_000, 99);
        assert!(
            worse(&few, &run(99, 10_000, 90_000, 99), 0.05).is_empty(),
            "p99 of 99 is the worst"
        );
        let hundred = run(99, 10_000, 20_000, 100);
        assert_eq!(worse(&hundred, &run(99, 10_000, 90_000, 100), 0.05), ["latency_us.p99"]);
        let tiny = run(1000, 30, 40, 1000);
        assert!(worse(&tiny, &run(1000, 49, 59, 1000), 0.05).is_empty());
        assert_eq!(worse(&tiny, &run(1000, 30, 60, 1000), 0.05), ["latency_us.p99"]);
    }

    #[test]
    fn runs_that_cannot_be_compared_are_refused_or_named() {
        let good = run(1000, 10, 20, 1000);
        let with = |name: &str, value: Value| {
            let mut run = good.clone();
            run[name] = value;
            run
        };
        assert!(compare(&json!({"ok": 1}), &good, 0.1).is_err());
        assert!(compare(&with("schema", 99.into()), &good, 0.1).is_err());
        assert!(compare(&with("valid", false.into()), &good, 0.1).is_err());
        assert!(compare(&with("kind", "search".into()), &good, 0.1).is_err());
        let other = with("options", json!({"url": "http://b", "seed": 2, "stream": false}));
        assert_eq!(compare(&other, &good, 0.1).unwrap().differing, ["stream"]);
    }

    #[test]
    fn reads_percents() {
        assert_eq!(parse_percent("5%"), Ok(0.05));
        assert_eq!(parse_percent("0 %"), Ok(0.0));
        for bad in ["5", "-1%", "x%", "NaN%", ""] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
    }
}
