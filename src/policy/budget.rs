//! The retry budget: retries may not multiply an outage.
//!
//! When everything behind fails, a fixed number of attempts an exchange turns one flood into
//! three. The budget ties retries to what there was to do lately: each exchange of the last ten
//! seconds has put a fifth of a retry in, the clock a few per second so that quiet hours may
//! retry at all, and a retry takes one whole. What nobody has taken for ten seconds is gone; it
//! would be an old credit spent on a new outage.
//!
//! Ten seconds of exchanges is also what makes one death free of errors. A server that is killed
//! leaves all its exchanges in flight to be tried elsewhere in one moment: with n servers, r
//! exchanges a second and t seconds to an answer those are r·t/n, and 2r + 30 are there to be
//! had, enough while t ≤ 2n. A bucket of fixed size would do for small loads only. This holds
//! for each core by itself, whatever its part of the load.
//!
//! One bucket per core and group; the share of the clock is divided by the cores by
//! whoever makes it. A fresh connection for a stale pooled one is not a retry and does
//! not ask here. After Twitter Finagle's `RetryBudget` and Linkerd's.

use std::time::Instant;

/// A bucket of retries, in thousandths of one.
#[derive(Clone, Copy, Debug)]
pub struct RetryBudget {
    /// What is left of each of the last seconds; that of second `n` is at `n % SECONDS_KEPT`.
    millis: [u64; SECONDS_KEPT],
    /// The second that is being filled, counted from `origin`.
    second: u64,
    origin: Instant,
    /// What the clock adds, in thousandths of a retry per second.
    millis_per_second: u64,
}

/// What the clock adds in the whole process: three retries per second.
pub const MILLIS_PER_SECOND: u64 = 3000;
/// What an exchange adds: 20 % of a retry.
const MILLIS_PER_EXCHANGE: u64 = 200;
const MILLIS_PER_RETRY: u64 = 1000;
const SECONDS_KEPT: usize = 10;

impl RetryBudget {
    /// Makes a bucket that begins with ten seconds' worth of the clock.
    ///
    /// Units: `millis_per_second` is this core's share of `MILLIS_PER_SECOND`.
    pub fn new(millis_per_second: u64, now: Instant) -> RetryBudget {
        let millis = [millis_per_second; SECONDS_KEPT];
        RetryBudget { millis, second: 0, origin: now, millis_per_second }
    }

    /// Counts one exchange that is sent upstream.
    pub fn record_exchange(&mut self, now: Instant) {
        let present = self.present(now);
        *present = present.saturating_add(MILLIS_PER_EXCHANGE);
    }

    /// Takes one retry out; `false` when there is none.
    pub fn take(&mut self, now: Instant) -> bool {
        self.present(now);
        let left = self.millis.iter().fold(0u64, |sum, millis| sum.saturating_add(*millis));
        if left < MILLIS_PER_RETRY {
            return false;
        }
        // The oldest first: it is the next to expire.
        let mut owed = MILLIS_PER_RETRY;
        for second in self.second + 1..=self.second + SECONDS_KEPT as u64 {
            let millis = &mut self.millis[slot(second)];
            let paid = owed.min(*millis);
            *millis -= paid;
            owed -= paid;
        }
        true
    }

    /// The second of `now`, after those that are over have made room; a clock that goes back
    /// stays in the last one.
    fn present(&mut self, now: Instant) -> &mut u64 {
        let second = now.saturating_duration_since(self.origin).as_secs();
        let passed = second.saturating_sub(self.second).min(SECONDS_KEPT as u64);
        self.second = self.second.max(second);
        for back in 0..passed {
            self.millis[slot(self.second - back)] = self.millis_per_second;
        }
        &mut self.millis[slot(self.second)]
    }
}

/// Where a second is kept.
fn slot(second: u64) -> usize {
    (second % SECONDS_KEPT as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

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
        (0..4).for_each(|_| budget.record_exchange(now));
        assert!(!budget.take(now));
        budget.record_exchange(now);
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
        let taken = (1..=2500).filter(|ms| budget.take(now + Duration::from_millis(*ms))).count();
        assert_eq!(taken, 6);
    }

    #[test]
    fn one_death_among_a_thousand_in_flight_is_paid_for() {
        let begun = Instant::now();
        let mut budget = RetryBudget::new(MILLIS_PER_SECOND / 4, begun);
        // 200 a second for five seconds, none answered yet, on three servers.
        let sent = |ms: u64| begun + Duration::from_millis(ms);
        (0..1000).for_each(|n| budget.record_exchange(sent(n * 5)));
        let died = begun + Duration::from_secs(5);
        assert_eq!((0..1000).filter(|_| budget.take(died)).count(), 200 + 7);
        // Steady: ten seconds' worth is kept.
        let mut budget = RetryBudget::new(MILLIS_PER_SECOND / 4, begun);
        (0..8000).for_each(|n| budget.record_exchange(sent(n * 5)));
        assert_eq!((0..1000).filter(|_| budget.take(sent(40_000))).count(), 360 + 7);
    }

    #[test]
    fn keeps_no_old_credit() {
        let now = Instant::now();
        let mut budget = RetryBudget::new(MILLIS_PER_SECOND, now);
        (0..10_000).for_each(|_| budget.record_exchange(now));
        let mut soon = budget;
        assert_eq!((0..9000).filter(|_| soon.take(now)).count(), 2030);
        for seconds in [10, 11, 19, 20, 1_000_000] {
            let mut later = budget;
            let then = now + Duration::from_secs(seconds);
            assert_eq!((0..100).filter(|_| later.take(then)).count(), 30, "{seconds}");
        }
    }

    #[test]
    fn a_clock_that_goes_back_adds_nothing() {
        let now = Instant::now() + Duration::from_secs(100);
        let mut budget = RetryBudget::new(MILLIS_PER_SECOND, now - Duration::from_secs(50));
        while budget.take(now) {}
        assert!(!budget.take(now - Duration::from_secs(80)));
        assert!(!budget.take(now));
    }

    proptest! {
        // In an outage where everybody asks for retries, they stay near a fifth.
        #[test]
        fn retries_stay_within_their_share(exchanges in 0u32..2000, asks in 1u32..5) {
            let now = Instant::now();
            let mut budget = RetryBudget::new(MILLIS_PER_SECOND, now);
            let mut retries = 0;
            for _ in 0..exchanges {
                budget.record_exchange(now);
                retries += (0..asks).filter(|_| budget.take(now)).count() as u32;
            }
            prop_assert!(retries <= exchanges / 5 + 30);
        }

        // Agrees with a list of credits, each of which is gone after its ten seconds.
        #[test]
        fn agrees_with_a_list_of_credits(
            steps in proptest::collection::vec((0u64..3000, 0u32..8, 0u32..4), 1..60),
        ) {
            let begun = Instant::now();
            let mut budget = RetryBudget::new(0, begun);
            let (mut credits, mut ms) = (std::collections::VecDeque::<(u64, u64)>::new(), 0);
            for (wait_ms, exchanges, asks) in steps {
                ms += wait_ms;
                let now = begun + Duration::from_millis(ms);
                while credits.front().is_some_and(|(second, _)| second + 10 <= ms / 1000) {
                    credits.pop_front();
                }
                for _ in 0..exchanges {
                    budget.record_exchange(now);
                    credits.push_back((ms / 1000, 200u64));
                }
                for _ in 0..asks {
                    let enough = credits.iter().map(|(_, millis)| millis).sum::<u64>() >= 1000;
                    prop_assert_eq!(budget.take(now), enough);
                    // Five exchanges to a retry: whole credits are taken.
                    if enough {
                        credits.drain(..5);
                    }
                }
            }
        }
    }
}
