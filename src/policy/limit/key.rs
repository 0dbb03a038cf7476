//! All limits of one key, asked together: a call passes every one of them or takes nothing.
//!
//! The rules come from the config and change with it; the state belongs to the key's name and
//! outlives a reload. First what only looks (the token balance, the windows), then what can be
//! given back (the gate, the steady rate), last the windows, so that a call that is refused for
//! its rate never looks to others like a full minute.

use std::time::Duration;

use super::gate::Gate;
use super::gcra::{Bucket, Pace};
use super::lease::QuotaLease;
use super::standing::Standing;
use super::tokens::Balance;
use super::window::{Full, Quota, Windows};
use crate::base::clock::{Moment, Timestamp, WallTime, seconds_up};
use crate::error::Kind;

/// What a key may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyRules {
    /// Requests a minute and a day.
    pub quota: Quota,
    /// Tokens a minute; 0 = any number.
    pub tokens_per_minute: u64,
    /// A steady rate beside the windows.
    pub pace: Option<Pace>,
    /// Exchanges in flight; 0 = any number.
    pub concurrency: u32,
}

impl KeyRules {
    /// Whether there is anything that nodes may share; rate and gate are each node's own.
    #[must_use]
    pub fn are_shared(&self) -> bool {
        self.quota != Quota::default() || self.tokens_per_minute > 0
    }
}

/// What a key has had; shared by all cores.
#[derive(Debug, Default)]
pub struct KeyState {
    /// Tells keys apart in all plans, whatever their order there.
    pub number: u32,
    /// Requests a minute and a day.
    pub windows: Windows,
    /// Tokens a minute.
    pub balance: Balance,
    /// What it holds of a budget that nodes share.
    pub lease: QuotaLease,
    /// The steady rate.
    pub bucket: Bucket,
    /// Exchanges in flight, as far as they are limited.
    pub gate: Gate,
}

/// A limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Over {
    /// Which one.
    pub kind: Kind,
    /// When to come back, in whole seconds, at least 1.
    pub retry_after_s: u32,
}

impl Over {
    /// Makes one from a wait.
    #[must_use]
    pub fn after(kind: Kind, wait: Duration) -> Self {
        let seconds = seconds_up(wait).max(1);
        Self { kind, retry_after_s: u32::try_from(seconds).unwrap_or(u32::MAX) }
    }
}

impl KeyState {
    /// The state of a key that has had nothing.
    #[must_use]
    pub fn numbered(number: u32) -> Self {
        Self { number, ..Self::default() }
    }

    /// Takes one call out of every limit.
    ///
    /// Shape: after `Ok` one `leave` with the same rules must follow.
    /// Errors: which limit; nothing has been taken of any.
    pub fn admit(&self, rules: &KeyRules, now: Timestamp) -> Result<Standing, Over> {
        let Timestamp { wall, steady } = now;
        self.windows.check(rules.quota, wall).map_err(|full| self.full(full, wall))?;
        self.enter(rules, steady)?;
        self.windows.take(rules.quota, wall).map_err(|full| {
            self.undo_pace(rules);
            self.leave(rules);
            self.full(full, wall)
        })
    }

    /// As `admit`, without the windows: somebody else counts them.
    pub fn enter(&self, rules: &KeyRules, now: Moment) -> Result<(), Over> {
        if rules.tokens_per_minute > 0 {
            let debt = self.balance.check(now);
            debt.map_err(|wait| Over::after(Kind::RateTokens, wait))?;
        }
        if rules.concurrency > 0 && !self.gate.enter(rules.concurrency) {
            // When a place becomes free nobody knows.
            return Err(Over { kind: Kind::ConcurrencyReached, retry_after_s: 1 });
        }
        if let Some(pace) = &rules.pace
            && let Err(wait) = self.bucket.take(pace, now)
        {
            self.leave(rules);
            return Err(Over::after(Kind::RateSecond, wait));
        }
        Ok(())
    }

    /// Gives back what an `enter` has taken of the steady rate; the call was refused for another
    /// reason. `leave` follows, as ever.
    pub fn undo_pace(&self, rules: &KeyRules) {
        if let Some(pace) = &rules.pace {
            self.bucket.undo(pace);
        }
    }

    /// The exchange is over.
    pub fn leave(&self, rules: &KeyRules) {
        if rules.concurrency > 0 {
            self.gate.leave();
        }
    }

    /// Exchanges in flight, as far as they are limited.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.gate.inside()
    }

    /// What a full window means to the client.
    #[must_use]
    pub fn full(&self, full: Full, now: WallTime) -> Over {
        let kind = match full {
            Full::Minute => Kind::RateMinute,
            Full::Day => Kind::RateDay,
        };
        Over { kind, retry_after_s: self.windows.retry_after_s(full, now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many seconds after 1970, by both clocks.
    fn at(seconds: u64) -> Timestamp {
        Timestamp::agreeing(WallTime::from_secs(seconds))
    }

    fn refused(state: &KeyState, rules: &KeyRules, now: Timestamp) -> Option<(Kind, u32)> {
        state.admit(rules, now).err().map(|over| (over.kind, over.retry_after_s))
    }

    fn pace(per_second: u32, burst: u32) -> Option<Pace> {
        Some(Pace::new(per_second, burst))
    }

    #[test]
    fn a_key_without_limits_passes() {
        let (state, rules) = (KeyState::default(), KeyRules::default());
        for _ in 0..100 {
            assert_eq!(state.admit(&rules, at(0)), Ok(Standing::default()));
        }
        assert_eq!(state.in_flight(), 0);
    }

    #[test]
    fn each_limit_says_its_name_and_its_wait() {
        let quota = Quota { per_minute: 1, per_day: 0 };
        let day = Quota { per_minute: 0, per_day: 1 };
        let now = at(30);
        for (rules, kind, wait) in [
            (KeyRules { quota, ..KeyRules::default() }, Kind::RateMinute, 30),
            (KeyRules { quota: day, ..KeyRules::default() }, Kind::RateDay, 86_370),
            (KeyRules { pace: pace(1, 1), ..KeyRules::default() }, Kind::RateSecond, 1),
            (KeyRules { concurrency: 1, ..KeyRules::default() }, Kind::ConcurrencyReached, 1),
        ] {
            let state = KeyState::default();
            assert_eq!(refused(&state, &rules, now), None);
            assert_eq!(refused(&state, &rules, now), Some((kind, wait)));
        }
        let rules = KeyRules { tokens_per_minute: 60, ..KeyRules::default() };
        let state = KeyState::default();
        state.balance.charge(72, 60, now.steady);
        assert_eq!(refused(&state, &rules, now), Some((Kind::RateTokens, 12)));
    }

    #[test]
    fn what_one_limit_refuses_takes_nothing_of_the_others() {
        let quota = Quota { per_minute: 3, per_day: 3 };
        let rules = KeyRules { quota, pace: pace(1, 2), concurrency: 9, tokens_per_minute: 9 };
        let state = KeyState::default();
        assert_eq!(refused(&state, &rules, at(0)), None);
        assert_eq!(refused(&state, &rules, at(0)), None);
        for _ in 0..10 {
            assert_eq!(refused(&state, &rules, at(0)), Some((Kind::RateSecond, 1)));
        }
        assert_eq!(state.in_flight(), 2);
        assert_eq!(refused(&state, &rules, at(1)), None, "the third of the minute is still there");
        for _ in 0..10 {
            assert_eq!(refused(&state, &rules, at(2)), Some((Kind::RateDay, 86_398)));
        }
        assert_eq!(state.in_flight(), 3);
    }

    #[test]
    fn a_clock_set_by_an_hour_moves_windows_and_nothing_else() {
        let quota = Quota { per_minute: 1, per_day: 0 };
        let rules = KeyRules { quota, pace: pace(10, 2), ..KeyRules::default() };
        let noon = at(1_700_000_040);
        for seconds in [1_700_000_040 + 3600, 1_700_000_040 - 3600] {
            let state = KeyState::default();
            state.admit(&rules, noon).unwrap();
            assert!(state.admit(&rules, noon).is_err());
            // Another minute by the wall; by the rate no time has passed.
            let set = Timestamp { wall: WallTime::from_secs(seconds), ..noon };
            assert!(state.admit(&rules, set).is_ok());
            assert_eq!(state.admit(&rules, set).unwrap_err().kind, Kind::RateMinute);
            assert_eq!(state.enter(&rules, noon.steady).unwrap_err().kind, Kind::RateSecond);
            assert!(state.enter(&rules, noon.steady + Duration::from_millis(100)).is_ok());
        }
    }

    #[test]
    fn a_place_in_flight_comes_back_when_the_exchange_ends() {
        let (state, rules) =
            (KeyState::default(), KeyRules { concurrency: 1, ..KeyRules::default() });
        assert!(state.admit(&rules, at(0)).is_ok() && state.admit(&rules, at(0)).is_err());
        state.leave(&rules);
        assert!(state.admit(&rules, at(0)).is_ok());
    }

    #[test]
    fn four_threads_with_every_limit_get_exactly_the_smallest() {
        let quota = Quota { per_minute: 5, per_day: 6 };
        let rules =
            KeyRules { quota, pace: pace(1, 7), concurrency: 8, tokens_per_minute: u64::MAX };
        for _ in 0..20 {
            let state = KeyState::default();
            let admitted: usize = std::thread::scope(|scope| {
                let tries = || (0..250).filter(|_| state.admit(&rules, at(0)).is_ok()).count();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(tries)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!((admitted, state.in_flight()), (5, 5));
        }
    }
}
