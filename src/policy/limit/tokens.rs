//! Tokens a minute, paid afterwards.
//!
//! How many tokens an answer has is known when it has ended, so nothing can be taken in advance:
//! a request is let in unless its key is in debt, and what it cost is charged at the end. The
//! balance is kept as in `gcra`, as the time when everything spent will have been earned: a full
//! balance is one minute's tokens, it refills steadily, and below zero the key waits.
//!
//! The count comes from an upstream and may be nonsense; `DEBT_MAX` bounds what one answer
//! can do to a key.

use std::time::Duration;

use super::window::MINUTE_S;
use crate::base::clock::{AtomicMoment, Moment};

/// The time that a full balance is worth.
const MINUTE: Duration = Duration::from_secs(MINUTE_S);
/// Longest time that a key can be in debt: one day.
pub const DEBT_MAX: Duration = Duration::from_secs(86_400);

/// The balance of one key; starts full.
#[derive(Debug, Default)]
pub struct Balance {
    due: AtomicMoment,
}

impl Balance {
    /// Looks whether a request is let in.
    ///
    /// Errors: the time until the debt is paid.
    pub fn check(&self, now: Moment) -> Result<(), Duration> {
        match self.due.load().since(now + MINUTE) {
            Duration::ZERO => Ok(()),
            debt => Err(debt),
        }
    }

    /// Charges tokens; `per_minute` 0 = none are counted.
    pub fn charge(&self, tokens: u64, per_minute: u64, now: Moment) {
        let Some(cost) = cost(tokens, per_minute) else { return };
        self.charge_time(cost, now);
    }

    /// When everything spent will have been earned.
    #[must_use]
    pub fn due(&self) -> Moment {
        self.due.load()
    }

    /// Charges what another process has charged, as the time that it is worth.
    pub fn charge_time(&self, cost: Duration, now: Moment) {
        let most = now + (MINUTE + DEBT_MAX);
        // What is due later already, by a clock ahead of this one, is not brought nearer.
        self.due.update(|due| due.max((due.max(now) + cost).min(most)));
    }

    /// Takes over a balance that is known elsewhere to be lower.
    pub fn lower_to(&self, due: Moment) {
        self.due.advance(due);
    }
}

/// What tokens are worth in time, rounded up.
fn cost(tokens: u64, per_minute: u64) -> Option<Duration> {
    let cost = u128::from(tokens) * MINUTE.as_nanos();
    let cost = cost.checked_add(u128::from(per_minute.checked_sub(1)?))? / u128::from(per_minute);
    Some(Duration::from_nanos(u64::try_from(cost).unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: Duration = Duration::from_secs(1);
    const NANO: Duration = Duration::from_nanos(1);
    const BEGIN: Moment = Moment::ORIGIN;

    #[test]
    fn lets_in_until_more_than_a_minutes_tokens_are_spent() {
        let (balance, now) = (Balance::default(), BEGIN + 1_000 * S);
        balance.charge(600, 600, now);
        assert_eq!(balance.check(now), Ok(()), "nothing left, but no debt");
        balance.charge(30, 600, now);
        assert_eq!(balance.check(now), Err(3 * S));
        assert_eq!(balance.check(now + (3 * S - NANO)), Err(NANO));
        assert_eq!(balance.check(now + 3 * S), Ok(()));
    }

    #[test]
    fn an_hour_of_rest_is_worth_one_minute() {
        let balance = Balance::default();
        balance.charge(100, 100, BEGIN);
        let later = BEGIN + 3600 * S;
        balance.charge(101, 100, later);
        assert!(balance.check(later).is_err());
    }

    #[test]
    fn a_nonsense_count_costs_a_day_and_no_more() {
        let balance = Balance::default();
        for _ in 0..3 {
            balance.charge(u64::MAX, 1, BEGIN);
        }
        assert_eq!(balance.check(BEGIN), Err(DEBT_MAX));
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let balance = Balance::default();
        balance.charge(u64::MAX, 0, BEGIN);
        assert_eq!(balance.check(BEGIN), Ok(()));
    }

    #[test]
    fn the_lower_of_two_balances_counts() {
        let balance = Balance::default();
        balance.lower_to(BEGIN + MINUTE + 5 * NANO);
        balance.lower_to(BEGIN + 3 * NANO);
        assert_eq!(balance.check(BEGIN), Err(5 * NANO));
    }

    #[test]
    fn a_clock_that_is_behind_forgives_nothing() {
        let balance = Balance::default();
        balance.charge(u64::MAX, 1, BEGIN + 1_000 * S);
        balance.charge(1, 1, BEGIN);
        assert_eq!(balance.check(BEGIN + 1_000 * S), Err(DEBT_MAX));
    }

    proptest! {
        /// The oracle: a balance in tokens times nanoseconds, exact.
        #[test]
        fn agrees_with_a_balance_of_tokens(
            per_minute in 1u64..5_000_000,
            steps in prop::collection::vec((0u64..90_000_000_000, 0u64..2_000_000), 1..60),
        ) {
            let balance = Balance::default();
            let minute = MINUTE.as_nanos() as i128;
            let full = minute * i128::from(per_minute);
            let day = full * (DEBT_MAX.as_nanos() as i128 / minute);
            let (mut now, mut level) = (BEGIN, full);
            for (n, (gap, tokens)) in steps.into_iter().enumerate() {
                now = now + Duration::from_nanos(gap);
                level = (level + i128::from(gap) * i128::from(per_minute)).min(full);
                // The rounding of each charge, one nanosecond, is worth so much.
                let rounding = i128::from(per_minute) * (n as i128 + 1);
                match balance.check(now) {
                    Ok(()) => prop_assert!(level >= -rounding, "{level}"),
                    Err(_) => prop_assert!(level <= rounding, "{level}"),
                }
                balance.charge(tokens, per_minute, now);
                level = (level - i128::from(tokens) * minute).max(-day);
            }
        }
    }
}
