//! What a run tells, and whether it may tell it.
//!
//! The one idea: the verdict comes before the numbers. Wrong answers are shown
//! with their kind; a client that was itself too slow shows its own lateness and
//! nothing that could be mistaken for the server's.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::Options;
use super::client::{Exchange, Fault};

/// Longest time told apart; longer ones count as this.
const LONGEST_US: u64 = 3_600_000_000;
/// The quantiles that are told.
const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)];

/// Whether the numbers of a run stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every answer that came whole was right.
    Good,
    /// At least one answer was wrong: framing, order or text.
    Broken,
    /// No request got a whole answer.
    NoAnswer,
    /// The client was later than its limit: the numbers say nothing of the server.
    ClientTooSlow,
}

/// Everything that a run counted and timed. Times are in microseconds.
#[derive(Clone, Debug)]
pub struct Report {
    /// Wall time of the whole run.
    pub elapsed: Duration,
    /// Requests begun.
    pub requests: u64,
    /// Right and whole answers with a status below 400.
    pub ok: u64,
    /// Streams left on purpose.
    pub aborted: u64,
    /// Requests that came due and were not sent before the end: all connections were busy.
    pub unsent: u64,
    /// Connections that the server had closed between two requests; replaced, tried again.
    pub stale: u64,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Exchanges that broke off, by kind.
    pub errors: BTreeMap<&'static str, u64>,
    /// Wrong answers, by kind.
    pub wrong: BTreeMap<&'static str, u64>,
    /// Events of streams.
    pub events: u64,
    /// Bytes sent and received, heads included.
    pub sent_bytes: u64,
    /// See `sent_bytes`.
    pub received_bytes: u64,
    /// From when a request was due (begun, in the closed loop) to the end of its answer.
    pub latency: Histogram<u64>,
    /// From when it was due to the first byte of its answer.
    pub first_byte: Histogram<u64>,
    /// From when it was due to the first piece of text of a stream.
    pub first_token: Histogram<u64>,
    /// Between two pieces of text.
    pub inter_token: Histogram<u64>,
    /// Time to connect.
    pub connect: Histogram<u64>,
    /// How late the client was in sending what a free connection waited for (open loop).
    pub send_lag: Histogram<u64>,
    /// How late its runtime woke what was due; on its own, since the many samples of
    /// `send_lag` would hide it.
    pub wake_lag: Histogram<u64>,
    lag_max: Duration,
}

impl Report {
    /// An empty report.
    pub(super) fn new(options: &Options) -> Report {
        Report {
            elapsed: Duration::ZERO,
            requests: 0,
            ok: 0,
            aborted: 0,
            unsent: 0,
            stale: 0,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            wrong: BTreeMap::new(),
            events: 0,
            sent_bytes: 0,
            received_bytes: 0,
            latency: histogram(),
            first_byte: histogram(),
            first_token: histogram(),
            inter_token: histogram(),
            connect: histogram(),
            send_lag: histogram(),
            wake_lag: histogram(),
            lag_max: options.lag_max,
        }
    }

    /// Enters one exchange.
    pub(super) fn record(
        &mut self,
        due: Instant,
        now: Instant,
        told: &Exchange,
        ended: Result<(), Fault>,
    ) {
        self.requests += 1;
        self.stale += told.stale;
        self.events += told.events;
        self.sent_bytes += told.sent_bytes;
        self.received_bytes += told.received_bytes;
        if let Some(status) = told.status {
            *self.statuses.entry(status).or_default() += 1;
        }
        for took in &told.connects {
            note(&mut self.connect, *took);
        }
        if let Err(fault) = ended {
            let (kind, wrong) = name(fault);
            let counts = if wrong { &mut self.wrong } else { &mut self.errors };
            *counts.entry(kind).or_default() += 1;
            return;
        }
        self.aborted += u64::from(told.aborted);
        if told.status.is_some_and(|status| status >= 400) {
            return;
        }
        let since = |at: Instant| at.saturating_duration_since(due);
        if let Some(at) = told.first_byte_at {
            note(&mut self.first_byte, since(at));
        }
        if let Some(at) = told.first_token_at {
            note(&mut self.first_token, since(at));
        }
        for gap in &told.gaps {
            note(&mut self.inter_token, *gap);
        }
        if !told.aborted {
            self.ok += 1;
            note(&mut self.latency, since(now));
        }
    }

    /// Enters a lateness in sending.
    pub(super) fn sent_late(&mut self, late: Duration) {
        note(&mut self.send_lag, late);
    }

    /// Enters a lateness in waking up.
    pub(super) fn woke_late(&mut self, late: Duration) {
        note(&mut self.wake_lag, late);
    }

    /// Adds another thread's report.
    pub(super) fn add(&mut self, other: &Report) {
        self.requests += other.requests;
        self.ok += other.ok;
        self.aborted += other.aborted;
        self.unsent += other.unsent;
        self.stale += other.stale;
        self.events += other.events;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        merge(&mut self.statuses, &other.statuses);
        merge(&mut self.errors, &other.errors);
        merge(&mut self.wrong, &other.wrong);
        for (mine, theirs) in [
            (&mut self.latency, &other.latency),
            (&mut self.first_byte, &other.first_byte),
            (&mut self.first_token, &other.first_token),
            (&mut self.inter_token, &other.inter_token),
            (&mut self.connect, &other.connect),
            (&mut self.send_lag, &other.send_lag),
            (&mut self.wake_lag, &other.wake_lag),
        ] {
            // All have the same bounds, so nothing can fall outside.
            let _ = mine.add(theirs);
        }
    }

    /// Whether the numbers stand. A wrong answer is wrong however slow the client was.
    pub fn verdict(&self) -> Verdict {
        if !self.wrong.is_empty() {
            Verdict::Broken
        } else if self.lag_p99() > self.lag_max {
            Verdict::ClientTooSlow
        } else if self.ok + self.aborted == 0 {
            Verdict::NoAnswer
        } else {
            Verdict::Good
        }
    }

    /// Whether every request got a right, whole answer below 400 (or was left on purpose).
    pub fn flawless(&self) -> bool {
        self.verdict() == Verdict::Good
            && self.ok + self.aborted == self.requests
            && self.unsent == 0
    }

    /// Right answers a second.
    pub fn rate(&self) -> f64 {
        self.ok as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    fn lag_p99(&self) -> Duration {
        let lags = [&self.send_lag, &self.wake_lag];
        Duration::from_micros(
            lags.map(|lag| lag.value_at_quantile(0.99)).into_iter().max().unwrap_or(0),
        )
    }

    fn timings(&self) -> [(&'static str, &Histogram<u64>); 7] {
        [
            ("latency", &self.latency),
            ("first_byte", &self.first_byte),
            ("first_token", &self.first_token),
            ("inter_token", &self.inter_token),
            ("connect", &self.connect),
            ("send_lag", &self.send_lag),
            ("wake_lag", &self.wake_lag),
        ]
    }

    fn too_slow(&self) -> String {
        format!(
            "client too slow: invalid (its own lateness p99 {:.1} ms, limit {:.1} ms)",
            self.lag_p99().as_secs_f64() * 1e3,
            self.lag_max.as_secs_f64() * 1e3
        )
    }

    /// For people.
    pub fn to_text(&self) -> String {
        if self.verdict() == Verdict::ClientTooSlow {
            return self.too_slow() + "\n";
        }
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "requests {}  ok {}  aborted {}  unsent {}  stale connections {}  in {:.2} s  ({:.1} ok/s)",
            self.requests,
            self.ok,
            self.aborted,
            self.unsent,
            self.stale,
            self.elapsed.as_secs_f64(),
            self.rate()
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
        for (name, times) in self.timings() {
            if times.is_empty() {
                continue;
            }
            let _ = write!(out, "{name:<12} {:>10}", times.len());
            for (_, quantile) in QUANTILES {
                let _ = write!(out, " {:>10.3}", times.value_at_quantile(quantile) as f64 / 1e3);
            }
            out.push('\n');
        }
        let _ = writeln!(out, "verdict: {:?}", self.verdict());
        out
    }

    /// For programs: one object; times in microseconds. Without timings when the
    /// client was too slow.
    pub fn to_json(&self) -> String {
        let verdict = self.verdict();
        if verdict == Verdict::ClientTooSlow {
            let told = json!({"verdict": "ClientTooSlow", "message": self.too_slow()});
            return told.to_string() + "\n";
        }
        let mut timings = Map::new();
        for (name, times) in self.timings() {
            let mut told = Map::new();
            told.insert("count".to_owned(), times.len().into());
            told.insert("mean".to_owned(), times.mean().into());
            for (quantile, value) in QUANTILES {
                told.insert(quantile.to_owned(), times.value_at_quantile(value).into());
            }
            timings.insert(format!("{name}_us"), Value::Object(told));
        }
        let statuses: Map<String, Value> = self
            .statuses
            .iter()
            .map(|(status, count)| (status.to_string(), (*count).into()))
            .collect();
        let told = json!({
            "verdict": format!("{verdict:?}"),
            "elapsed_s": self.elapsed.as_secs_f64(),
            "requests": self.requests,
            "ok": self.ok,
            "ok_per_s": self.rate(),
            "aborted": self.aborted,
            "unsent": self.unsent,
            "stale": self.stale,
            "statuses": statuses,
            "errors": self.errors,
            "wrong": self.wrong,
            "events": self.events,
            "sent_bytes": self.sent_bytes,
            "received_bytes": self.received_bytes,
            "timings": timings,
        });
        told.to_string() + "\n"
    }

    /// For tables: a line of names and a line of values; times in microseconds.
    pub fn to_csv(&self) -> String {
        let mut names =
            String::from("verdict,elapsed_s,requests,ok,aborted,unsent,stale,errors,wrong,events");
        let mut values = format!("{:?}", self.verdict());
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
        for (name, times) in self.timings() {
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

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("1 <= bounds, three digits")
}

fn note(times: &mut Histogram<u64>, took: Duration) {
    times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
}

fn merge<K: Copy + Ord>(mine: &mut BTreeMap<K, u64>, theirs: &BTreeMap<K, u64>) {
    for (key, count) in theirs {
        *mine.entry(*key).or_default() += count;
    }
}

/// A fault's name, and whether it means that the answer was wrong.
fn name(fault: Fault) -> (&'static str, bool) {
    use super::check::Bad;
    use super::wire::BadAnswer;
    match fault {
        Fault::Connect => ("connect", false),
        Fault::NoAnswer => ("no_answer", false),
        Fault::Truncated => ("truncated", false),
        Fault::Timeout => ("timeout", false),
        Fault::Framing(BadAnswer::Head) => ("framing_head", true),
        Fault::Framing(BadAnswer::Lengths) => ("framing_lengths", true),
        Fault::Framing(BadAnswer::Chunk) => ("framing_chunk", true),
        Fault::Framing(BadAnswer::Extra) => ("framing_extra_bytes", true),
        Fault::Content(Bad::Json) => ("not_json", true),
        Fault::Content(Bad::Event) => ("not_an_event", true),
        Fault::Content(Bad::Order) => ("order", true),
        Fault::Content(Bad::Foreign) => ("foreign", true),
        Fault::Content(Bad::Text) => ("text", true),
        Fault::Content(Bad::Usage) => ("usage", true),
        Fault::Content(Bad::EndMissing) => ("end_missing", true),
        Fault::Content(Bad::AfterEnd) => ("after_end", true),
        Fault::Content(Bad::NotStreamed) => ("not_streamed", true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(ended: Result<(), Fault>, late: Duration) -> Report {
        let mut report = Report::new(&Options::default());
        let told = Exchange { status: Some(200), ..Exchange::default() };
        let now = Instant::now();
        report.record(now, now + Duration::from_millis(7), &told, ended);
        report.woke_late(late);
        for _ in 0..1000 {
            report.sent_late(Duration::ZERO);
        }
        report
    }

    #[test]
    fn verdict_comes_before_the_numbers() {
        let good = report(Ok(()), Duration::ZERO);
        assert_eq!(good.verdict(), Verdict::Good);
        assert!(good.flawless() && good.to_text().contains("latency"));
        let late = report(Ok(()), Duration::from_millis(50));
        assert_eq!(late.verdict(), Verdict::ClientTooSlow);
        assert!(late.to_text().starts_with("client too slow: invalid"));
        assert!(!late.to_text().contains("latency") && !late.to_json().contains("latency"));
        assert!(!late.to_csv().contains(",7000,"));
        let none = report(Err(Fault::Timeout), Duration::ZERO);
        assert_eq!(none.verdict(), Verdict::NoAnswer);
    }

    #[test]
    fn all_forms_tell_the_same() {
        let good = report(Ok(()), Duration::ZERO);
        let json: Value = serde_json::from_str(&good.to_json()).unwrap();
        assert_eq!(json["ok"], 1);
        let told = json["timings"]["latency_us"]["max"].as_u64().unwrap();
        assert!((6_990..7_010).contains(&told), "{told}");
        let csv = good.to_csv();
        let (names, values) = csv.trim_end().split_once('\n').unwrap();
        assert_eq!(names.split(',').count(), values.split(',').count());
    }
}
