//! Objectives: how fast is fast enough, and for which share of the requests.
//!
//! The one idea: an objective has two readings, and both are told. *Met* says
//! whether the quantile stays within the bound, with a request that got no right
//! answer counting as one that took for ever — an error is not a way to be fast.
//! *Goodput* counts requests a second that kept every bound on their own.
//!
//! Source: goodput as in Zhong et al., "DistServe", OSDI 2024; the bound on time
//! between tokens is there, as here, one on the request's mean.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::row::Row;

/// Which time an objective bounds. All count from when a request was due, but for
/// the time between tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// To the first piece of text of a stream.
    Ttft,
    /// Between two pieces of text.
    Itl,
    /// To the end of the answer.
    E2e,
}

impl Metric {
    /// The name in `--slo` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Ttft => "ttft",
            Metric::Itl => "itl",
            Metric::E2e => "e2e",
        }
    }
}

/// One objective, such as `ttft=300ms:p99`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slo {
    /// What is bounded.
    pub metric: Metric,
    /// Inclusive.
    pub bound: Duration,
    /// In (0, 1]: the share of requests (of gaps, for `itl`) that must keep the bound.
    pub quantile: f64,
}

impl FromStr for Slo {
    type Err = String;

    fn from_str(text: &str) -> Result<Slo, String> {
        let (name, rest) = text.split_once('=').ok_or("no = in the objective")?;
        let metric = match name {
            "ttft" => Metric::Ttft,
            "itl" => Metric::Itl,
            "e2e" => Metric::E2e,
            _ => return Err(format!("no time called {name}: ttft, itl or e2e")),
        };
        let (bound, quantile) = rest.split_once(':').unwrap_or((rest, "p99"));
        let percent = match quantile.strip_prefix('p') {
            Some(number) => number.parse().map_err(|_| format!("no quantile: {quantile}"))?,
            None if quantile == "max" => 100.0,
            None => return Err(format!("no quantile: {quantile}; such as p50, p99.9 or max")),
        };
        if !(percent > 0.0 && percent <= 100.0) {
            return Err(format!("quantile {quantile}, outside of p0 to p100"));
        }
        Ok(Slo { metric, bound: super::parse_duration(bound)?, quantile: percent / 100.0 })
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded, since 0.999 is not 99.9 / 100 in binary.
        let percent = (self.quantile * 1e8).round() / 1e6;
        let bound_ms = self.bound.as_secs_f64() * 1e3;
        write!(out, "{}={bound_ms}ms:p{percent}", self.metric.name())
    }
}

impl Slo {
    /// The bound in microseconds.
    pub fn bound_us(&self) -> u64 {
        u64::try_from(self.bound.as_micros()).unwrap_or(u64::MAX)
    }

    /// Whether a request kept the bound on its own. An answer of one token has no time
    /// between tokens and keeps any.
    pub fn kept_by(&self, row: &Row) -> bool {
        let told = match self.metric {
            Metric::Ttft => row.ttft_us(),
            Metric::Itl => Some(row.inter_token_mean_us.unwrap_or(0)),
            Metric::E2e => Some(row.latency_us()),
        };
        row.ok && told.is_some_and(|us| us <= self.bound_us())
    }

    /// Judges the times of a run, of which `missed` requests got no right answer.
    pub(super) fn judge(&self, times: &Histogram<u64>, missed: u64) -> Judged {
        // Gaps are not requests: an answer that broke off has left its gaps out.
        let missed = if self.metric == Metric::Itl { 0 } else { missed };
        let value_us = quantile_us(times, missed, self.quantile);
        Judged { slo: *self, value_us, met: value_us.is_some_and(|us| us <= self.bound_us()) }
    }
}

/// The quantile of `times` and of `missed` more that took for ever.
fn quantile_us(times: &Histogram<u64>, missed: u64, quantile: f64) -> Option<u64> {
    let all = times.len() + missed;
    // Less a hair, since 0.99 × 100 is a little more than 99 in binary.
    let rank = ((quantile * all as f64 - 1e-6).ceil() as u64).max(1);
    if rank > times.len() {
        return None;
    }
    // The middle of the rank: its upper end could round into the next one.
    Some(times.value_at_quantile((rank as f64 - 0.5) / times.len() as f64))
}

/// An objective and what came of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// The objective.
    pub slo: Slo,
    /// The quantile in microseconds; `None` when it falls on a request without a right
    /// answer, or nothing was measured.
    pub value_us: Option<u64>,
    /// Whether the objective was met.
    pub met: bool,
}

impl fmt::Display for Judged {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = if self.met { "met" } else { "MISSED" };
        match self.value_us {
            Some(us) => write!(out, "{} {told}: {:.3} ms", self.slo, us as f64 / 1e3),
            None => write!(out, "{} {told}: too few right answers to tell", self.slo),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn times(values: &[u64]) -> Histogram<u64> {
        let mut times = Histogram::new_with_bounds(1, 3_600_000_000, 3).unwrap();
        values.iter().for_each(|us| times.record(*us).unwrap());
        times
    }

    #[test]
    fn reads_objectives_and_writes_them_back() {
        let slo: Slo = "ttft=300ms:p99".parse().unwrap();
        let bound = Duration::from_millis(300);
        assert_eq!(slo, Slo { metric: Metric::Ttft, bound, quantile: 0.99 });
        for text in ["ttft=300ms:p99", "itl=12.5ms:p99.9", "e2e=10000ms:p100", "e2e=1ms:p50"] {
            assert_eq!(text.parse::<Slo>().unwrap().to_string(), text);
        }
        assert_eq!("e2e=2s:max".parse::<Slo>().unwrap().quantile, 1.0);
        assert_eq!("itl=2s".parse::<Slo>().unwrap().quantile, 0.99);
        for bad in
            ["", "ttft", "ttft=", "ttft=5", "x=5ms", "e2e=5ms:99", "e2e=5ms:p0", "e2e=5ms:p101"]
        {
            assert!(bad.parse::<Slo>().is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_without_an_answer_count_as_the_slowest() {
        let slo: Slo = "e2e=1ms:p90".parse().unwrap();
        let nine = times(&[500; 9]);
        assert!(slo.judge(&nine, 0).met && slo.judge(&nine, 1).met);
        let two_lost = slo.judge(&nine, 2);
        assert_eq!((two_lost.met, two_lost.value_us), (false, None));
        assert!(!slo.judge(&times(&[]), 0).met, "nothing measured is nothing met");
        let gaps: Slo = "itl=1ms:max".parse().unwrap();
        assert!(gaps.judge(&nine, 5).met);
    }

    #[test]
    fn request_keeps_a_bound_only_with_a_right_answer() {
        let row = Row {
            first_token_us: Some(900),
            done_us: 5_000,
            ok: true,
            inter_token_mean_us: Some(40),
            ..Row::default()
        };
        let kept = |slo: &str, row: &Row| slo.parse::<Slo>().unwrap().kept_by(row);
        assert!(kept("ttft=1ms", &row) && kept("itl=40us", &row) && kept("e2e=5ms", &row));
        assert!(!kept("ttft=899us", &row) && !kept("itl=39us", &row) && !kept("e2e=4ms", &row));
        assert!(!kept("e2e=5ms", &Row { ok: false, ..row.clone() }));
        assert!(!kept("ttft=1s", &Row { first_token_us: None, ..row }));
    }

    proptest! {
        #[test]
        fn quantile_agrees_with_a_sorted_list(
            mut values in prop::collection::vec(1u64..1000, 1..200),
            missed in 0u64..50,
            percent in 1u32..=100,
        ) {
            let got = quantile_us(&times(&values), missed, f64::from(percent) / 100.0);
            values.sort_unstable();
            let all = values.len() as u64 + missed;
            let rank = (all * u64::from(percent)).div_ceil(100).max(1);
            // Below 1000 µs the histogram is exact to the microsecond.
            prop_assert_eq!(got, values.get(rank as usize - 1).copied());
        }
    }
}
