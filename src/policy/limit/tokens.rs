//! Tokens a minute, paid afterwards.
//!
//! How many tokens an answer has is known when it has ended, so nothing can be taken in advance:
//! a request is let in unless its key is in debt, and what it cost is charged at the end. The
//! balance is kept as in `gcra`, as the time when everything spent will have been earned: a full
//! balance is one minute's tokens, it refills steadily, and below zero the key waits.
//!
//! The count comes from an upstream and may be nonsense; `DEBT_NS_MAX` bounds what one answer
//! can do to a key.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::gcra::NS_PER_SECOND;
use super::window::MINUTE_S;

/// Nanoseconds that a full balance is worth.
pub const MINUTE_NS: u64 = MINUTE_S * NS_PER_SECOND;
/// Longest time that a key can be in debt: one day.
pub const DEBT_NS_MAX: u64 = 86_400 * NS_PER_SECOND;

/// The balance of one key; starts full.
#[derive(Debug, Default)]
pub struct Balance {
    due_ns: AtomicU64,
}

impl Balance {
    /// Looks whether a request is let in.
    ///
    /// Errors: nanoseconds until the debt is paid.
    pub fn check(&self, now_ns: u64) -> Result<(), u64> {
        let ahead = self.due_ns.load(Relaxed).saturating_sub(now_ns);
        match ahead.checked_sub(MINUTE_NS) {
            None | Some(0) => Ok(()),
            Some(debt) => Err(debt),
        }
    }

    /// Charges tokens; `per_minute` 0 = none are counted.
    pub fn charge(&self, tokens: u64, per_minute: u64, now_ns: u64) {
        let Some(cost) = cost_ns(tokens, per_minute) else { return };
        let _ = self.due_ns.fetch_update(Relaxed, Relaxed, |due| {
            let most = now_ns.saturating_add(MINUTE_NS + DEBT_NS_MAX);
            // What is due later already, by a clock ahead of this one, is not brought nearer.
            Some(due.max(due.max(now_ns).saturating_add(cost).min(most)))
        });
    }

    /// Takes over a balance that is known elsewhere to be lower.
    pub fn lower_to(&self, due_ns: u64) {
        self.due_ns.fetch_max(due_ns, Relaxed);
    }
}

/// What tokens are worth in time, rounded up.
#[must_use]
pub fn cost_ns(tokens: u64, per_minute: u64) -> Option<u64> {
    let cost = u128::from(tokens) * u128::from(MINUTE_NS);
    let cost = cost.checked_add(u128::from(per_minute.checked_sub(1)?))? / u128::from(per_minute);
    Some(u64::try_from(cost).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const S: u64 = NS_PER_SECOND;

    #[test]
    fn lets_in_until_more_than_a_minutes_tokens_are_spent() {
        let (balance, now) = (Balance::default(), 1_000 * S);
        balance.charge(600, 600, now);
        assert_eq!(balance.check(now), Ok(()), "nothing left, but no debt");
        balance.charge(30, 600, now);
        assert_eq!(balance.check(now), Err(3 * S));
        assert_eq!(balance.check(now + 3 * S - 1), Err(1));
        assert_eq!(balance.check(now + 3 * S), Ok(()));
    }

    #[test]
    fn an_hour_of_rest_is_worth_one_minute() {
        let balance = Balance::default();
        balance.charge(100, 100, 0);
        let later = 3600 * S;
        balance.charge(101, 100, later);
        assert!(balance.check(later).is_err());
    }

    #[test]
    fn a_nonsense_count_costs_a_day_and_no_more() {
        let balance = Balance::default();
        for _ in 0..3 {
            balance.charge(u64::MAX, 1, 0);
        }
        assert_eq!(balance.check(0), Err(DEBT_NS_MAX));
    }

    #[test]
    fn without_a_limit_nothing_is_counted() {
        let balance = Balance::default();
        balance.charge(u64::MAX, 0, 0);
        assert_eq!(balance.check(0), Ok(()));
    }

    #[test]
    fn the_lower_of_two_balances_counts() {
        let balance = Balance::default();
        balance.lower_to(MINUTE_NS + 5);
        balance.lower_to(3);
        assert_eq!(balance.check(0), Err(5));
    }

    #[test]
    fn a_clock_that_is_behind_forgives_nothing() {
        let balance = Balance::default();
        balance.charge(u64::MAX, 1, 1_000 * S);
        balance.charge(1, 1, 0);
        assert_eq!(balance.check(1_000 * S), Err(DEBT_NS_MAX));
    }

    proptest! {
        /// The oracle: a balance in tokens times nanoseconds, exact.
        #[test]
        fn agrees_with_a_balance_of_tokens(
            per_minute in 1u64..5_000_000,
            steps in prop::collection::vec((0u64..90 * S, 0u64..2_000_000), 1..60),
        ) {
            let balance = Balance::default();
            let full = i128::from(MINUTE_NS) * i128::from(per_minute);
            let day = full * i128::from(DEBT_NS_MAX / MINUTE_NS);
            let (mut now, mut level) = (0, full);
            for (n, (gap, tokens)) in steps.into_iter().enumerate() {
                now += gap;
                level = (level + i128::from(gap) * i128::from(per_minute)).min(full);
                // The rounding of each charge, one nanosecond, is worth so much.
                let rounding = i128::from(per_minute) * (n as i128 + 1);
                match balance.check(now) {
                    Ok(()) => prop_assert!(level >= -rounding, "{level}"),
                    Err(_) => prop_assert!(level <= rounding, "{level}"),
                }
                balance.charge(tokens, per_minute, now);
                level = (level - i128::from(tokens) * i128::from(MINUTE_NS)).max(-day);
            }
        }
    }
}
