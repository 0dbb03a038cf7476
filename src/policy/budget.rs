//! The retry budget: retries may not multiply an outage.
//!
//! When everything behind fails, a fixed number of attempts an exchange turns one flood into
//! three. The budget ties retries to what goes well enough to be counted: each exchange puts a fifth
//! of a retry into a bucket, the clock adds a few per second so that quiet hours may retry
//! at all, and a retry takes one whole. The bucket holds what ten seconds of the clock
//! and fifty exchanges put in; more would be an old credit spent on a new outage.
//!
//! One bucket per core and group; the share of the clock is divided by the cores by
//! whoever makes it. A fresh connection for a stale pooled one is not a retry and does
//! not ask here. After Twitter Finagle's `RetryBudget` and Linkerd's.

use std::time::{Duration, Instant};

/// A bucket of retries, in thousandths of one.
#[derive(Clone, Copy, Debug)]
pub struct RetryBudget {
    /// `0 <= millis <= millis_max`.
    millis: u64,
    millis_max: u64,
    /// What the clock adds, in thousandths of a retry per second.
    millis_per_second: u64,
    filled_at: Instant,
}

/// What the clock adds in the whole process: three retries per second.
pub const MILLIS_PER_SECOND: u64 = 3000;
/// What an exchange adds: 20 % of a retry.
const MILLIS_PER_EXCHANGE: u64 = 200;
const MILLIS_PER_RETRY: u64 = 1000;
const SECONDS_KEPT: u64 = 10;
const EXCHANGES_KEPT: u64 = 50;

impl RetryBudget {
    /// Makes a bucket that begins with ten seconds' worth.
    ///
    /// Units: `millis_per_second` is this core's share of `MILLIS_PER_SECOND`.
    pub fn new(millis_per_second: u64, now: Instant) -> RetryBudget {
        let millis = millis_per_second.saturating_mul(SECONDS_KEPT);
        let millis_max = millis.saturating_add(EXCHANGES_KEPT * MILLIS_PER_EXCHANGE);
        RetryBudget { millis, millis_max, millis_per_second, filled_at: now }
    }

    /// Counts one exchange that was sent upstream.
    pub fn record_exchange(&mut self) {
        self.add(MILLIS_PER_EXCHANGE);
    }

    /// Takes one retry out; `false` when there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        self.fill(now);
        match self.millis.checked_sub(MILLIS_PER_RETRY) {
            Some(rest) => {
                self.millis = rest;
                true
            }
            None => false,
        }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled_at).min(FILL_MAX);
        let millis = passed.as_millis() as u64 * self.millis_per_second / 1000;
        // Small steps would round to nothing for ever: the clock moves on only with a gain.
        if millis > 0 {
            self.filled_at = now;
            self.add(millis);
        }
    }

    fn add(&mut self, millis: u64) {
        self.millis = self.millis.saturating_add(millis).min(self.millis_max);
    }
}

/// Longer pauses fill the bucket anyway; keeps the product within 64 bits.
const FILL_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spent(now: Instant) -> RetryBudget {
        let mut budget = RetryBudget::new(MILLIS_PER_SECOND, now);
        while budget.take(now) {}
        budget
    }

    #[test]
    fn begins_with_ten_seconds_worth() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(MILLIS_PER_SECOND, now);
        assert_eq!((0..100).filter(|_| budget.take(now)).count(), 30);
    }

    #[test]
    fn five_exchanges_earn_one_retry() {
        let now = Instant::now();
        let mut budget = spent(now);
        (0..4).for_each(|_| budget.record_exchange());
        assert!(!budget.take(now));
        budget.record_exchange();
        assert!(budget.take(now) && !budget.take(now));
    }

    #[test]
    fn the_clock_adds_three_a_second() {
        let now = Instant::now();
        let mut budget = spent(now);
        let later = now + Duration::from_secs(1);
        assert_eq!((0..9).filter(|_| budget.take(later)).count(), 3);
    }

    #[test]
    fn asking_often_does_not_stop_the_clock() {
        let now = Instant::now();
        let mut budget = spent(now);
        let taken = (1..=2000).filter(|ms| budget.take(now + Duration::from_millis(*ms))).count();
        assert_eq!(taken, 6);
    }

    #[test]
    fn keeps_no_old_credit() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(MILLIS_PER_SECOND, now);
        (0..10_000).for_each(|_| budget.record_exchange());
        let later = now + Duration::from_secs(1_000_000);
        assert_eq!((0..100).filter(|_| budget.take(later)).count(), 40);
    }

    proptest! {
        // In an outage where everybody asks for retries, they stay near a fifth.
        #[test]
        fn retries_stay_within_their_share(exchanges in 0u32..2000, asks in 1u32..5) {
            let now = Instant::now();
            let mut budget = RetryBudget::new(MILLIS_PER_SECOND, now);
            let mut retries = 0;
            for _ in 0..exchanges {
                budget.record_exchange();
                retries += (0..asks).filter(|_| budget.take(now)).count() as u32;
            }
            prop_assert!(retries <= exchanges / 5 + 30);
        }
    }
}
