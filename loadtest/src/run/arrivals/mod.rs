//! When requests come due: the shapes of arrival.
//!
//! The one idea: a shape and a seed are a list of times, computed one after the
//! other without a clock, so that the same run can be had again and two targets can
//! be given the same load. No shape knows of the server: a slow one gets the
//! requests that it would get from people.
//!
//! Sources: gamma gaps as in the request traces of "ServeGen" and "BurstGPT" (bursty
//! means a coefficient of variation above 1); their generation after Marsaglia and
//! Tsang (2000); the ramp is an inhomogeneous Poisson process by inversion of its
//! cumulated rate. It does not fit a shape to a log: that is what [`Trace`] replays.

mod draw;
mod trace;

use std::sync::Arc;
use std::time::Duration;

use draw::Draws;
pub(super) use trace::BLOCK_TOKENS;
pub use trace::{Trace, TraceFault, TraceLine};

/// The rates that a shape can have, in requests a second.
const RATES: std::ops::RangeInclusive<f64> = 1e-5..=1e6;
/// The coefficients of variation of gamma gaps.
const CVS: std::ops::RangeInclusive<f64> = 0.01..=100.0;

/// How requests of the open loop arrive. Rates are requests a second.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Equal gaps; the first request at 0.
    Constant {
        /// Requests a second.
        rate: f64,
    },
    /// Independent arrivals: exponential gaps.
    Poisson {
        /// Requests a second on average.
        rate: f64,
    },
    /// Gamma gaps: below 1 the coefficient of variation means steadier than Poisson,
    /// above 1 burstier.
    Gamma {
        /// Requests a second on average.
        rate: f64,
        /// Standard deviation of the gaps over their mean; the shape is `1 / cv²`.
        cv: f64,
    },
    /// Many at once, then nothing; the first burst at 0.
    Burst {
        /// Requests in each burst.
        count: u32,
        /// From one burst to the next.
        every: Duration,
    },
    /// Independent arrivals whose rate moves evenly from one to another and stays there.
    Ramp {
        /// Rate at 0.
        from: f64,
        /// Rate at `over` and after it; at 0 the schedule ends there.
        to: f64,
        /// How long the rate moves.
        over: Duration,
    },
    /// The times of a recorded trace.
    Trace {
        /// What was recorded.
        trace: Arc<Trace>,
        /// 2 replays it in half its time.
        speed: f64,
    },
}

impl Arrivals {
    /// Refuses numbers that no schedule can be made of.
    pub fn check(&self) -> Result<(), String> {
        let rate = |name: &str, rate: f64| match RATES.contains(&rate) {
            true => Ok(()),
            false => Err(format!("{name} {rate} a second, outside of 0.00001 to 1000000")),
        };
        match self {
            Arrivals::Constant { rate: r } | Arrivals::Poisson { rate: r } => rate("rate", *r),
            Arrivals::Gamma { rate: r, cv } => {
                rate("rate", *r)?;
                let known = CVS.contains(cv);
                known.then_some(()).ok_or_else(|| format!("cv {cv}, outside of 0.01 to 100"))
            }
            Arrivals::Burst { count: 0, .. } => Err("a burst of 0 requests".to_owned()),
            Arrivals::Burst { count, every } => {
                rate("rate", f64::from(*count) / every.as_secs_f64())
            }
            Arrivals::Ramp { from, to, over } => {
                let ends = [*from, *to];
                ends.into_iter().filter(|end| *end != 0.0).try_for_each(|end| rate("rate", end))?;
                if ends == [0.0, 0.0] {
                    return Err("a ramp from rate 0 to rate 0".to_owned());
                }
                (!over.is_zero()).then_some(()).ok_or_else(|| "a ramp over 0 s".to_owned())
            }
            Arrivals::Trace { speed, .. } if !(1e-3..=1e6).contains(speed) => {
                Err(format!("speed {speed}, outside of 0.001 to 1000000"))
            }
            Arrivals::Trace { .. } => Ok(()),
        }
    }

    /// The same shape at another mean rate; `None` for a ramp, which has no one rate.
    pub fn at_rate(&self, rate: f64) -> Option<Arrivals> {
        Some(match self {
            Arrivals::Constant { .. } => Arrivals::Constant { rate },
            Arrivals::Poisson { .. } => Arrivals::Poisson { rate },
            Arrivals::Gamma { cv, .. } => Arrivals::Gamma { rate, cv: *cv },
            Arrivals::Burst { count, .. } => {
                let every = Duration::try_from_secs_f64(f64::from(*count) / rate).ok()?;
                Arrivals::Burst { count: *count, every }
            }
            Arrivals::Ramp { .. } => return None,
            Arrivals::Trace { trace, .. } => {
                Arrivals::Trace { trace: Arc::clone(trace), speed: rate / trace.rate()? }
            }
        })
    }

    /// The shape's name on the command line and in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Arrivals::Constant { .. } => "constant",
            Arrivals::Poisson { .. } => "poisson",
            Arrivals::Gamma { .. } => "gamma",
            Arrivals::Burst { .. } => "burst",
            Arrivals::Ramp { .. } => "ramp",
            Arrivals::Trace { .. } => "trace",
        }
    }

    /// Mean rate, where the shape has one.
    pub fn rate(&self) -> Option<f64> {
        match self {
            Arrivals::Constant { rate }
            | Arrivals::Poisson { rate }
            | Arrivals::Gamma { rate, .. } => Some(*rate),
            Arrivals::Burst { count, every } => Some(f64::from(*count) / every.as_secs_f64()),
            Arrivals::Ramp { .. } => None,
            Arrivals::Trace { trace, speed } => Some(trace.rate()? * speed),
        }
    }
}

/// The times of a shape in microseconds from the start, never decreasing. Endless but
/// for a trace and a ramp to 0.
#[derive(Clone, Debug)]
pub(super) struct Times {
    arrivals: Arrivals,
    draws: Draws,
    drawn: u64,
    /// Seconds so far; for the ramp, the sum of the unit gaps.
    sum: f64,
    last_us: u64,
}

impl Times {
    pub(super) fn new(arrivals: Arrivals, seed: u64) -> Times {
        Times { arrivals, draws: Draws::new(seed), drawn: 0, sum: 0.0, last_us: 0 }
    }

    fn next_s(&mut self) -> Option<f64> {
        let index = self.drawn;
        self.drawn += 1;
        match &self.arrivals {
            Arrivals::Constant { rate } => Some(index as f64 / rate),
            Arrivals::Poisson { rate } => {
                self.sum += self.draws.exponential() / rate;
                Some(self.sum)
            }
            Arrivals::Gamma { rate, cv } => {
                let shape = 1.0 / (cv * cv);
                self.sum += self.draws.gamma(shape) / (shape * rate);
                Some(self.sum)
            }
            Arrivals::Burst { count, every } => {
                Some((index / u64::from((*count).max(1))) as f64 * every.as_secs_f64())
            }
            Arrivals::Ramp { from, to, over } => {
                self.sum += self.draws.exponential();
                ramp_s(self.sum, *from, *to, over.as_secs_f64())
            }
            Arrivals::Trace { trace, speed } => {
                let line = trace.lines().get(usize::try_from(index).ok()?)?;
                Some(line.at_ms / 1e3 / speed)
            }
        }
    }
}

impl Iterator for Times {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        // A cast of a float saturates, so that even a rate near 0 has a time.
        let us = (self.next_s()? * 1e6) as u64;
        self.last_us = us.max(self.last_us);
        Some(self.last_us)
    }
}

/// When the cumulated rate of a ramp reaches `sum`.
///
/// Λ(t) = from·t + (to − from)·t²/2T up to T, then on with `to`. The root is written
/// with the sum in the denominator, which also holds for a ramp that is flat.
fn ramp_s(sum: f64, from: f64, to: f64, over: f64) -> Option<f64> {
    let whole = (from + to) / 2.0 * over;
    if sum <= whole {
        let curve = (to - from) / (2.0 * over);
        let root = (from * from + 4.0 * curve * sum).max(0.0).sqrt();
        return Some(2.0 * sum / (from + root));
    }
    (to > 0.0).then(|| over + (sum - whole) / to)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Mean of the gaps in seconds, and their standard deviation over it.
    fn spread(arrivals: &Arrivals, seed: u64, count: usize) -> (f64, f64) {
        let mut times = Times::new(arrivals.clone(), seed);
        let mut last = times.next().unwrap();
        let gaps = times.take(count).map(|us| {
            let gap = (us - last) as f64 / 1e6;
            last = us;
            gap
        });
        let gaps: Vec<f64> = gaps.collect();
        let mean = gaps.iter().sum::<f64>() / count as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / count as f64;
        (mean, variance.sqrt() / mean)
    }

    #[test]
    fn gaps_have_the_mean_of_the_rate_and_the_spread_of_their_shape() {
        let rate = 100.0;
        for (arrivals, want) in [
            (Arrivals::Constant { rate }, 0.0),
            (Arrivals::Poisson { rate }, 1.0),
            (Arrivals::Gamma { rate, cv: 0.5 }, 0.5),
            (Arrivals::Gamma { rate, cv: 1.0 }, 1.0),
            (Arrivals::Gamma { rate, cv: 2.0 }, 2.0),
        ] {
            let (mean, cv) = spread(&arrivals, 7, 60_000);
            assert!((mean * rate - 1.0).abs() < 0.03, "{arrivals:?}: mean gap {mean} s");
            assert!((cv - want).abs() < 0.05 * want.max(0.01), "{arrivals:?}: cv {cv}");
        }
    }

    #[test]
    fn bursts_come_together_and_at_their_times() {
        let every = Duration::from_millis(250);
        let times: Vec<u64> = Times::new(Arrivals::Burst { count: 3, every }, 1).take(7).collect();
        assert_eq!(times, [0, 0, 0, 250_000, 250_000, 250_000, 500_000]);
    }

    #[test]
    fn ramp_has_the_rate_of_its_time() {
        let over = Duration::from_secs(100);
        for (from, to) in [(0.0, 200.0), (200.0, 50.0), (100.0, 100.0), (300.0, 0.0)] {
            let times: Vec<u64> = Times::new(Arrivals::Ramp { from, to, over }, 3)
                .take_while(|us| *us < 150_000_000)
                .collect();
            for second in (0..150).step_by(10) {
                let window = second * 1_000_000..(second + 10) * 1_000_000;
                let got = times.iter().filter(|us| window.contains(*us)).count() as f64 / 10.0;
                let middle = ((second as f64 + 5.0) / 100.0).min(1.0);
                let want = if second >= 100 { to } else { from + (to - from) * middle };
                // Five standard deviations of a count of that size.
                assert!((got - want).abs() < 0.5 * (want * 10.0).sqrt() + 0.2, "{second}: {got}");
            }
        }
    }

    #[test]
    fn numbers_that_no_schedule_has_are_refused() {
        let second = Duration::from_secs(1);
        for bad in [
            Arrivals::Constant { rate: 0.0 },
            Arrivals::Poisson { rate: f64::NAN },
            Arrivals::Poisson { rate: f64::INFINITY },
            Arrivals::Gamma { rate: 1.0, cv: 0.0 },
            Arrivals::Burst { count: 0, every: second },
            Arrivals::Burst { count: 1, every: Duration::ZERO },
            Arrivals::Ramp { from: 0.0, to: 0.0, over: second },
            Arrivals::Ramp { from: -1.0, to: 1.0, over: second },
            Arrivals::Ramp { from: 1.0, to: 2.0, over: Duration::ZERO },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert_eq!(Arrivals::Ramp { from: 0.0, to: 5.0, over: second }.check(), Ok(()));
    }

    #[test]
    fn any_shape_but_a_ramp_moves_to_another_rate() {
        let every = Duration::from_secs(2);
        let lines = "{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\n\
                     {\"timestamp\":1000,\"input_length\":1,\"output_length\":1}";
        let trace = Arc::new(Trace::parse(lines).unwrap());
        for shape in [
            Arrivals::Constant { rate: 1.0 },
            Arrivals::Gamma { rate: 1.0, cv: 2.0 },
            Arrivals::Burst { count: 4, every },
            Arrivals::Trace { trace, speed: 1.0 },
        ] {
            let moved = shape.at_rate(8.0).unwrap();
            assert!((moved.rate().unwrap() - 8.0).abs() < 1e-9, "{moved:?}");
            assert_eq!(moved.name(), shape.name());
        }
        assert_eq!(Arrivals::Ramp { from: 1.0, to: 2.0, over: every }.at_rate(8.0), None);
    }

    fn shapes() -> impl Strategy<Value = Arrivals> {
        let rate = || 1e-3..1e5;
        let time = || (1u64..10_000_000).prop_map(Duration::from_micros);
        prop_oneof![
            rate().prop_map(|rate| Arrivals::Constant { rate }),
            rate().prop_map(|rate| Arrivals::Poisson { rate }),
            (rate(), 0.05..10.0).prop_map(|(rate, cv)| Arrivals::Gamma { rate, cv }),
            (1u32..50, time()).prop_map(|(count, every)| Arrivals::Burst { count, every }),
            (0.0..1e4, 0.1..1e4, time()).prop_map(|(from, to, over)| Arrivals::Ramp {
                from,
                to,
                over
            }),
        ]
    }

    proptest! {
        #[test]
        fn times_never_go_back_and_a_seed_gives_the_same_ones(shape in shapes(), seed: u64) {
            let times: Vec<u64> = Times::new(shape.clone(), seed).take(300).collect();
            prop_assert_eq!(times.len(), 300);
            prop_assert!(times.is_sorted());
            let again: Vec<u64> = Times::new(shape, seed).take(300).collect();
            prop_assert_eq!(times, again);
        }

        #[test]
        fn ramp_inverts_its_cumulated_rate(
            from in 0.0..1e3, to in 0.1..1e3, over in 0.1..1e3, part in 0.001..2.0f64,
        ) {
            let sum = part * (from + to) / 2.0 * over;
            let t = ramp_s(sum, from, to, over).unwrap();
            let inside = t.min(over);
            let told = from * inside + (to - from) * inside * inside / (2.0 * over)
                + (t - inside) * to;
            prop_assert!((told - sum).abs() <= 1e-6 * sum.max(1.0), "{} for {}", told, sum);
        }
    }
}
