//! What a breaker knows, told to the breaker of the process that comes next.
//!
//! Times are lengths from the moment of telling: the other process has another origin. Trials that
//! are out stay behind, since their results do: a half-open breaker begins its trials anew.

use std::time::Duration;

use super::state::{DOUBLINGS_MAX, Gate, State, StateName};
use crate::base::clock::Moment;

/// A breaker as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BreakerImage {
    /// Where it stands.
    pub state: StateName,
    /// Of one that is open, until it lets the next call in.
    pub cooldown_left: Duration,
    /// How often the cooldown was doubled.
    pub doublings: u32,
    /// Of a closed one, failures in a row.
    pub consecutive: u32,
    /// Of a half-open one, trials that succeeded.
    pub successes: u32,
    /// Of a closed one, how long ago so many calls ended, and how many of them failed.
    pub calls: Vec<(Duration, u32, u32)>,
    /// How long ago the server last failed; `None` = never.
    pub failed_ago: Option<Duration>,
    /// Whether calls to it hang.
    pub hangs: bool,
}

impl BreakerImage {
    pub(super) fn of(gate: Gate, now: Moment) -> Self {
        let image = Self { doublings: gate.doublings, ..Self::default() };
        match gate.state {
            State::Closed { consecutive } => Self { consecutive, ..image },
            State::Open { until } => {
                Self { state: StateName::Open, cooldown_left: until.since(now), ..image }
            }
            State::HalfOpen { successes, .. } => {
                Self { state: StateName::HalfOpen, successes, ..image }
            }
        }
    }

    /// The gate in which a breaker stands that goes on from here.
    pub(super) fn gate(&self, from: Gate, now: Moment) -> Gate {
        let state = match self.state {
            StateName::Closed => State::Closed { consecutive: self.consecutive },
            StateName::Open => State::Open { until: now + self.cooldown_left },
            StateName::HalfOpen => State::HalfOpen { trials_out: 0, successes: self.successes },
        };
        Gate { doublings: self.doublings.min(DOUBLINGS_MAX), ..from.into(state) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Breaker, BreakerPolicy, CallResult, Sign};
    use super::*;

    fn policy() -> BreakerPolicy {
        BreakerPolicy {
            calls_min: 6,
            consecutive: 4,
            trials: 2,
            successes: 3,
            ..BreakerPolicy::default()
        }
    }

    /// A breaker that has lived through calls of these results, each a while after the last.
    fn lived(calls: &[(u8, u64)]) -> (Breaker, Moment) {
        let (breaker, mut now) = (Breaker::new(policy()), Moment::from_secs(100));
        for &(what, pause) in calls {
            now = now + Duration::from_millis(pause);
            let result = match what {
                0 | 1 => CallResult::Success,
                2..=4 => CallResult::Failure,
                5 => CallResult::TimedOut,
                _ => {
                    let _ = breaker.rechecked(Sign::Good, now);
                    continue;
                }
            };
            if let Some(entry) = breaker.enter_last_resort(now) {
                let _ = breaker.record(entry, result, now);
            }
        }
        (breaker, now)
    }

    proptest! {
        /// The same calls then make the same changes at the same times.
        #[test]
        fn a_breaker_that_resumes_goes_on_as_the_one_before(
            before in prop::collection::vec((0u8..7, 0u64..4_000), 0..40),
            after in prop::collection::vec((0u8..6, 0u64..4_000), 0..40),
        ) {
            let (old, then) = lived(&before);
            // The origin of the other process is another one, so its tenths begin elsewhere.
            let (new, mut now) = (Breaker::new(policy()), Moment::from_secs(20_000));
            let image = old.image(then);
            new.resume(&image, now);
            let resumed = new.image(now);
            prop_assert_eq!((resumed.state, resumed.doublings), (image.state, image.doublings));
            prop_assert_eq!(resumed.cooldown_left, image.cooldown_left);
            prop_assert_eq!((resumed.consecutive, resumed.successes), (image.consecutive, image.successes));
            prop_assert_eq!(resumed.failed_ago, image.failed_ago);
            let calls = |image: &BreakerImage| -> (u32, u32) {
                image.calls.iter().fold((0, 0), |sum, call| (sum.0 + call.1, sum.1 + call.2))
            };
            prop_assert_eq!(calls(&resumed), calls(&image));
            for (_, pause) in after {
                now = now + Duration::from_millis(pause);
                let _ = new.enter(now).map(|entry| new.record(entry, CallResult::Success, now));
            }
            prop_assert!(new.admits_last_resort(now + policy().cooldown.saturating_mul(8)));
        }

        #[test]
        fn nonsense_does_not_wedge_a_breaker(
            state in 0u8..3, nanos in any::<[u64; 3]>(), counts in any::<[u32; 5]>(),
        ) {
            let breaker = Breaker::new(policy());
            let time = |at: usize| Duration::from_nanos(nanos[at]);
            let image = BreakerImage {
                state: [StateName::Closed, StateName::Open, StateName::HalfOpen][usize::from(state)],
                cooldown_left: time(0).min(Duration::from_secs(366 * 86_400)),
                doublings: counts[0],
                consecutive: counts[1],
                successes: counts[2],
                calls: vec![(time(1), counts[3], counts[4])],
                failed_ago: Some(time(2)),
                hangs: counts[0] % 2 == 0,
            };
            let now = Moment::from_secs(5);
            breaker.resume(&image, now);
            // A good recheck and some good calls close it.
            let _ = breaker.rechecked(Sign::Bad, now);
            let _ = breaker.rechecked(Sign::Good, now);
            for _ in 0..3 {
                let _ = breaker.enter(now).map(|entry| breaker.record(entry, CallResult::Success, now));
            }
            prop_assert_eq!(breaker.state().name(), StateName::Closed);
        }
    }

    #[test]
    fn one_that_has_opened_of_itself_knows_better() {
        let (breaker, now) = lived(&[(2, 1); 9]);
        assert_eq!(breaker.state().name(), StateName::Open);
        breaker.resume(&BreakerImage::default(), now);
        assert_eq!(breaker.state().name(), StateName::Open);
    }
}
