//! What a run counts, and whether its numbers stand.
//!
//! The one idea: the verdict comes before the numbers. Wrong answers are shown
//! with their kind; a client that was itself too slow shows its own lateness and
//! nothing that could be mistaken for the server's. `tell` writes it down.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::Value;

use super::client::{Exchange, Fault};
use super::row::Row;
use super::slo::{Judged, Metric, Slo};
use super::{Load, Options};

/// Longest time told apart; longer ones count as this.
const LONGEST_US: u64 = 3_600_000_000;
/// How late the client may be in the closed loop, where lateness moves no schedule.
const LAG_US_CLOSED: u64 = 20_000;
/// How late it may be in the open loop however fast the server is.
const LAG_US_OPEN: u64 = 5_000;
/// The share of the median time to the first byte, the shortest latency told, that the
/// lateness of the open loop may be.
const LAG_SHARE: f64 = 0.1;

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

impl Verdict {
    /// The word for it in JSON and CSV.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Good => "good",
            Verdict::Broken => "broken",
            Verdict::NoAnswer => "no_answer",
            Verdict::ClientTooSlow => "client_too_slow",
        }
    }
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
    /// Those of them that kept every objective; all of them when there is none.
    pub within: u64,
    /// Streams left on purpose.
    pub aborted: u64,
    /// Requests that came due and were not sent before the end: all connections were busy.
    pub unsent: u64,
    /// Requests that found no free connection when they came due (open loop). Their wait
    /// is in their latency; many of them mean that `connections` was the bottleneck.
    pub waited: u64,
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
    /// Tokens of right answers.
    pub tokens: u64,
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
    /// Every request, in the order of the schedule, when the options keep them.
    pub rows: Vec<Row>,
    pub(super) options: Value,
    slos: Vec<Slo>,
    keep_rows: bool,
    open: bool,
    lag_max: Option<Duration>,
}

impl Report {
    /// An empty report.
    pub(super) fn new(options: &Options) -> Report {
        Report {
            elapsed: Duration::ZERO,
            requests: 0,
            ok: 0,
            within: 0,
            aborted: 0,
            unsent: 0,
            waited: 0,
            stale: 0,
            statuses: BTreeMap::new(),
            errors: BTreeMap::new(),
            wrong: BTreeMap::new(),
            events: 0,
            tokens: 0,
            sent_bytes: 0,
            received_bytes: 0,
            latency: histogram(),
            first_byte: histogram(),
            first_token: histogram(),
            inter_token: histogram(),
            connect: histogram(),
            send_lag: histogram(),
            wake_lag: histogram(),
            rows: Vec::new(),
            options: super::tell::options_value(options),
            slos: options.slos.clone(),
            keep_rows: options.keep_rows,
            open: options.load != Load::Closed,
            lag_max: options.lag_max,
        }
    }

    /// Enters one exchange.
    pub(super) fn record(&mut self, row: Row, told: &Exchange, ended: Result<(), Fault>) {
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
            let (kind, wrong) = fault_name(fault);
            let counts = if wrong { &mut self.wrong } else { &mut self.errors };
            *counts.entry(kind).or_default() += 1;
        }
        self.aborted += u64::from(row.aborted);
        if row.ok || row.aborted {
            let since = |us: u64| us.saturating_sub(row.intended_us);
            if let Some(us) = row.first_byte_us {
                self.first_byte.saturating_record(since(us));
            }
            if let Some(us) = row.ttft_us() {
                self.first_token.saturating_record(us);
            }
            for gap in &told.gaps {
                note(&mut self.inter_token, *gap);
            }
        }
        if row.ok {
            self.ok += 1;
            self.tokens += row.tokens.unwrap_or(0);
            self.within += u64::from(self.slos.iter().all(|slo| slo.kept_by(&row)));
            self.latency.saturating_record(row.latency_us());
        }
        if self.keep_rows {
            self.rows.push(row);
        }
    }

    /// Enters a lateness in sending, in microseconds.
    pub(super) fn sent_late(&mut self, late_us: u64) {
        self.send_lag.saturating_record(late_us);
    }

    /// Enters a lateness in waking up.
    pub(super) fn woke_late(&mut self, late: Duration) {
        note(&mut self.wake_lag, late);
    }

    /// Adds another thread's report.
    pub(super) fn add(&mut self, other: Report) {
        self.requests += other.requests;
        self.ok += other.ok;
        self.within += other.within;
        self.aborted += other.aborted;
        self.unsent += other.unsent;
        self.waited += other.waited;
        self.stale += other.stale;
        self.events += other.events;
        self.tokens += other.tokens;
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
        self.rows.extend(other.rows);
    }

    /// Whether the numbers stand. A wrong answer is wrong however slow the client was.
    pub fn verdict(&self) -> Verdict {
        if !self.wrong.is_empty() {
            Verdict::Broken
        } else if self.lag_us_p99() > self.lag_us_max() {
            Verdict::ClientTooSlow
        } else if self.ok + self.aborted == 0 {
            Verdict::NoAnswer
        } else {
            Verdict::Good
        }
    }

    /// Whether every request got a right, whole answer below 400 (or was left on purpose).
    pub fn flawless(&self) -> bool {
        self.verdict() == Verdict::Good && self.missed() == 0
    }

    /// Requests without a right answer: broken off, wrong, refused, or never sent.
    pub fn missed(&self) -> u64 {
        self.requests.saturating_sub(self.ok + self.aborted) + self.unsent
    }

    /// Right answers a second.
    pub fn rate(&self) -> f64 {
        self.per_s(self.ok)
    }

    /// Right answers a second that kept every objective on their own.
    pub fn goodput(&self) -> f64 {
        self.per_s(self.within)
    }

    /// The objectives, judged.
    pub fn judged(&self) -> Vec<Judged> {
        let times = |metric| match metric {
            Metric::Ttft => &self.first_token,
            Metric::Itl => &self.inter_token,
            Metric::E2e => &self.latency,
        };
        self.slos.iter().map(|slo| slo.judge(times(slo.metric), self.missed())).collect()
    }

    /// Whether every objective was met, by numbers that stand.
    pub fn slos_met(&self) -> bool {
        self.verdict() == Verdict::Good && self.judged().iter().all(|judged| judged.met)
    }

    /// How late the client was, in microseconds: the larger of both 99th percentiles.
    pub fn lag_us_p99(&self) -> u64 {
        let lags = [&self.send_lag, &self.wake_lag];
        lags.map(|lag| lag.value_at_quantile(0.99)).into_iter().max().unwrap_or(0)
    }

    /// How late it may have been; see [`Options::lag_max`].
    pub fn lag_us_max(&self) -> u64 {
        match self.lag_max {
            Some(limit) => u64::try_from(limit.as_micros()).unwrap_or(u64::MAX),
            None if !self.open => LAG_US_CLOSED,
            None => {
                let median = self.first_byte.value_at_quantile(0.5);
                LAG_US_OPEN.max((median as f64 * LAG_SHARE) as u64)
            }
        }
    }

    pub(super) fn per_s(&self, count: u64) -> f64 {
        count as f64 / self.elapsed.as_secs_f64().max(1e-9)
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
pub(super) fn fault_name(fault: Fault) -> (&'static str, bool) {
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
pub(super) mod tests {
    use super::*;

    /// A report of one request, due at 0, whose answer came after 7 ms, from a client
    /// that was so late once.
    pub(in crate::run) fn report(
        options: &Options,
        ended: Result<(), Fault>,
        late: Duration,
    ) -> Report {
        let mut report = Report::new(options);
        report.elapsed = Duration::from_secs(2);
        let told = Exchange { status: Some(200), ..Exchange::default() };
        let row = Row {
            first_byte_us: Some(6_000),
            done_us: 7_000,
            status: Some(200),
            ok: ended.is_ok(),
            error: ended.err().map(|fault| fault_name(fault).0),
            ..Row::default()
        };
        report.record(row, &told, ended);
        report.woke_late(late);
        for _ in 0..1000 {
            report.sent_late(0);
        }
        report
    }

    #[test]
    fn limit_of_lateness_follows_the_first_byte_in_the_open_loop() {
        let poisson = Load::Open(super::super::Arrivals::Poisson { rate: 1.0 });
        let open = Options { load: poisson, ..Options::default() };
        let mut fast = report(&open, Ok(()), Duration::from_millis(4));
        assert_eq!((fast.lag_us_max(), fast.verdict()), (5_000, Verdict::Good));
        fast.woke_late(Duration::from_millis(6));
        assert_eq!(fast.verdict(), Verdict::ClientTooSlow);
        for _ in 0..3 {
            let row = Row { first_byte_us: Some(100_000), ok: true, ..Row::default() };
            fast.record(row, &Exchange::default(), Ok(()));
        }
        assert!((10_000..10_100).contains(&fast.lag_us_max()), "{}", fast.lag_us_max());
        assert_eq!(fast.verdict(), Verdict::Good);
        let closed = report(&Options::default(), Ok(()), Duration::from_millis(19));
        assert_eq!((closed.lag_us_max(), closed.verdict()), (20_000, Verdict::Good));
        let zero = Options { lag_max: Some(Duration::ZERO), ..open };
        let limited = report(&zero, Ok(()), Duration::from_micros(10));
        assert_eq!(limited.verdict(), Verdict::ClientTooSlow);
    }

    #[test]
    fn goodput_counts_what_kept_every_objective() {
        let slos = |text: &[&str]| text.iter().map(|slo| slo.parse().unwrap()).collect();
        let options = |text| Options { slos: slos(text), ..Options::default() };
        let kept = report(&options(&["e2e=7ms:p50", "itl=1us"]), Ok(()), Duration::ZERO);
        assert_eq!((kept.within, kept.goodput(), kept.rate()), (1, 0.5, 0.5));
        let slow = report(&options(&["e2e=6ms:p50"]), Ok(()), Duration::ZERO);
        assert_eq!((slow.within, slow.slos_met(), slow.rate()), (0, false, 0.5));
        let failed = report(&options(&["e2e=1h"]), Err(Fault::Timeout), Duration::ZERO);
        assert_eq!((failed.missed(), failed.slos_met()), (1, false));
    }

    #[test]
    fn reports_of_threads_add_up() {
        let options = Options { keep_rows: true, ..Options::default() };
        let mut total = report(&options, Ok(()), Duration::ZERO);
        total.add(report(&options, Err(Fault::Timeout), Duration::ZERO));
        assert_eq!((total.requests, total.ok, total.rows.len()), (2, 1, 2));
        assert_eq!(total.errors.get("timeout"), Some(&1));
        assert_eq!(total.send_lag.len(), 2000);
    }
}
