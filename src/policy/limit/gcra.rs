//! A steady rate with a burst: the generic cell rate algorithm.
//!
//! The one idea: instead of a bucket that is filled by a timer, keep one point in time, `due`,
//! when everything admitted so far would have been admitted at the steady pace. A call at `now`
//! may be early by at most the burst's worth, and moves `due` on by one step. One number, so one
//! compare-and-swap decides, and an idle bucket costs nothing.
//!
//! `Pace::decide` knows no unit: what it was made with counts, here nanoseconds, in `ip`
//! microseconds. Source: ITU-T I.371, virtual scheduling.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::base::clock::Moment;

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Fastest pace, calls a second.
pub const PER_SECOND_MAX: u32 = 10_000;
/// Largest burst, calls.
pub const BURST_MAX: u32 = 20_000;

/// How fast calls may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Between two calls at the steady rate; rounded up, so the rate is never exceeded.
    step: u64,
    /// How early a call may be: `(burst - 1) * step`.
    slack: u64,
}

impl Pace {
    /// Makes a pace, in nanoseconds.
    ///
    /// Units: the rate is held to 1..=10000 calls a second, the burst to 1..=20000 calls.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self::in_ticks(per_second, burst, NANOS_PER_SECOND)
    }

    /// As `new`, for times in ticks of which a second has so many.
    #[must_use]
    pub(super) fn in_ticks(per_second: u32, burst: u32, ticks_per_second: u64) -> Self {
        let per_second = u64::from(per_second.clamp(1, PER_SECOND_MAX));
        let burst = u64::from(burst.clamp(1, BURST_MAX));
        let step = ticks_per_second.div_ceil(per_second);
        Self { step, slack: step.saturating_mul(burst - 1) }
    }

    /// Decides about one call.
    ///
    /// Shape: `Ok` has the new `due`, `Err` the time until a call would pass.
    pub(super) fn decide(&self, due: u64, now: u64) -> Result<u64, u64> {
        let from = due.max(now);
        match (from - now).checked_sub(self.slack) {
            None | Some(0) => Ok(from.saturating_add(self.step)),
            Some(early) => Err(early),
        }
    }

    /// How far `due` can be ahead of now.
    #[must_use]
    pub(super) fn ahead_max(&self) -> u64 {
        self.slack.saturating_add(self.step)
    }
}

/// From here on `due` is no time: the bucket has been given to another process, and the low half is
/// the calls kept of it. As a time it is 292 years ahead, so that nothing else passes.
const GIVEN: u64 = 1 << 63;

/// The calls kept of a bucket that was given; `None` = it was not.
fn kept(due: u64) -> Option<u32> {
    (due >= GIVEN).then_some(due as u32)
}

/// The state of one steady rate; starts full.
#[derive(Debug, Default)]
pub struct Bucket {
    /// A `Moment`, in nanoseconds.
    due: AtomicU64,
}

impl Bucket {
    /// Takes one call out.
    ///
    /// Errors: the time until a call would pass; nothing has been taken.
    pub fn take(&self, pace: &Pace, now: Moment) -> Result<(), Duration> {
        let mut due = self.due.load(Relaxed);
        loop {
            let next = match pace.decide(due, now.as_nanos()) {
                Ok(next) => next,
                Err(wait) => return self.take_kept(Duration::from_nanos(wait)),
            };
            match self.due.compare_exchange_weak(due, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => due = seen,
            }
        }
    }

    /// Puts back a call that was taken and then refused for another reason.
    pub fn undo(&self, pace: &Pace) {
        // Every call since then has added its own step, so taking one off is exact.
        let _ = self.due.fetch_update(Relaxed, Relaxed, |due| match kept(due) {
            Some(_) => due.checked_add(1),
            None => due.checked_sub(pace.step),
        });
    }

    /// Takes one of the calls that were kept of a bucket that was given.
    #[cold]
    fn take_kept(&self, wait: Duration) -> Result<(), Duration> {
        let take = |due: u64| (kept(due)? > 0).then(|| due - 1);
        match self.due.fetch_update(Relaxed, Relaxed, take) {
            Ok(_) => Ok(()),
            Err(due) if kept(due).is_some() => Err(Duration::from_secs(1)),
            Err(_) => Err(wait),
        }
    }

    /// Gives the bucket to another process and keeps half of the calls that would pass now, `most`
    /// at most: how far ahead of now it is with those as had, and how many they are.
    ///
    /// Shape: `None` when it has been given before.
    pub fn give(&self, pace: &Pace, most: u32, now: Moment) -> Option<(Duration, u32)> {
        let mut given = (Duration::ZERO, 0);
        let give = |due: u64| {
            if kept(due).is_some() {
                return None;
            }
            let ahead = due.saturating_sub(now.as_nanos());
            let passing = (pace.slack.checked_sub(ahead)).map_or(0, |slack| slack / pace.step + 1);
            let own = u32::try_from(passing.div_ceil(2)).unwrap_or(u32::MAX).min(most);
            let ahead = ahead.saturating_add(pace.step.saturating_mul(own.into()));
            given = (Duration::from_nanos(ahead), own);
            Some(GIVEN | u64::from(own))
        };
        self.due.fetch_update(Relaxed, Relaxed, give).ok().map(|_| given)
    }

    /// Keeps no more calls than that of a bucket that was given; how many were kept until now.
    pub fn keep(&self, most: u32) -> u32 {
        let keep = |due: u64| kept(due).map(|own| GIVEN | u64::from(own.min(most)));
        let before = self.due.fetch_update(Relaxed, Relaxed, keep);
        before.ok().and_then(kept).unwrap_or(0)
    }

    /// Takes a bucket back that was given; with the calls kept it would have been full at `due`.
    pub fn take_back(&self, pace: &Pace, due: Moment) {
        let back = |seen: u64| {
            let left = pace.step.saturating_mul(kept(seen)?.into());
            Some(due.as_nanos().saturating_sub(left).min(GIVEN - 1))
        };
        let _ = self.due.fetch_update(Relaxed, Relaxed, back);
    }

    /// Takes over a bucket that is so far ahead of now.
    pub fn inherit(&self, ahead: Duration, now: Moment) {
        let ahead = u64::try_from(ahead.as_nanos()).unwrap_or(u64::MAX);
        self.change(|due| due.max(now.as_nanos()).saturating_add(ahead).min(GIVEN - 1));
    }

    /// Puts back calls that were counted as had for so long. What the time alone has made good since
    /// is not put back once more.
    pub fn put_back(&self, pace: &Pace, calls: u32, counted: Duration) {
        let since = u64::try_from(counted.as_nanos()).unwrap_or(u64::MAX);
        let less = pace.step.saturating_mul(calls.into()).saturating_sub(since);
        self.change(|due| due.saturating_sub(less));
    }

    fn change(&self, next: impl Fn(u64) -> u64) {
        let next = |due: u64| kept(due).is_none().then(|| next(due));
        let _ = self.due.fetch_update(Relaxed, Relaxed, next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pace(per_second: u32, burst: u32) -> Pace {
        Pace::new(per_second, burst)
    }

    fn ns(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    /// Calls admitted out of so many at one moment.
    fn burst(bucket: &Bucket, pace: &Pace, now: u64, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(bucket.take(pace, ns(now)).is_ok())).sum()
    }

    #[test]
    fn admits_the_burst_at_once_and_then_one_a_step() {
        let (bucket, pace) = (Bucket::default(), pace(10, 3));
        assert_eq!(burst(&bucket, &pace, 5_000, 9), 3);
        assert_eq!(bucket.take(&pace, ns(5_000)), Err(Duration::from_millis(100)));
        assert_eq!(burst(&bucket, &pace, 5_000 + 99_999_999, 9), 0);
        assert_eq!(burst(&bucket, &pace, 5_000 + 100_000_000, 9), 1);
    }

    #[test]
    fn the_wait_it_names_is_the_shortest_that_passes() {
        let (bucket, pace) = (Bucket::default(), pace(7, 2));
        assert_eq!(burst(&bucket, &pace, 1, 9), 2);
        let wait = bucket.take(&pace, ns(1)).unwrap_err();
        assert!(bucket.take(&pace, ns(0) + wait).is_err());
        assert!(bucket.take(&pace, ns(1) + wait).is_ok());
    }

    #[test]
    fn holds_what_is_out_of_range_to_the_range() {
        assert_eq!(pace(0, 0), pace(1, 1));
        assert_eq!(pace(u32::MAX, u32::MAX), pace(PER_SECOND_MAX, BURST_MAX));
    }

    #[test]
    fn a_call_that_was_undone_has_taken_nothing() {
        let (bucket, pace) = (Bucket::default(), pace(10, 2));
        assert_eq!(burst(&bucket, &pace, 100, 1), 1);
        bucket.undo(&pace);
        assert_eq!(burst(&bucket, &pace, 100, 9), 2);
        Bucket::default().undo(&pace);
    }

    #[test]
    fn what_is_given_is_let_in_once() {
        let (old, new, pace) = (Bucket::default(), Bucket::default(), pace(10, 6));
        assert_eq!(burst(&old, &pace, 1_000, 2), 2);
        let (ahead, kept) = old.give(&pace, 9, ns(1_000)).unwrap();
        assert_eq!((kept, ahead), (2, Duration::from_millis(400)));
        assert_eq!(old.give(&pace, 9, ns(1_000)), None, "once");
        // The origin of the other process is another one.
        new.inherit(ahead, ns(77));
        assert_eq!((burst(&old, &pace, 1_000, 9), burst(&new, &pace, 77, 9)), (2, 2));
        // Nothing is earned at the old one any more.
        assert_eq!(burst(&old, &pace, 60_000_000_000, 9), 0);
        old.undo(&pace);
        assert_eq!((old.keep(0), old.keep(9)), (1, 0));
    }

    #[test]
    fn what_is_taken_back_counts_on() {
        let (bucket, pace) = (Bucket::default(), pace(10, 6));
        assert_eq!(burst(&bucket, &pace, 1_000, 2), 2);
        let (ahead, kept) = bucket.give(&pace, 9, ns(1_000)).unwrap();
        assert_eq!((kept, burst(&bucket, &pace, 1_000, 1)), (2, 1));
        bucket.take_back(&pace, ns(1_000) + ahead);
        assert_eq!(burst(&bucket, &pace, 1_000, 9), 3);
        bucket.take_back(&pace, ns(0));
        assert_eq!(burst(&bucket, &pace, 1_000, 9), 0, "once");
    }

    #[test]
    fn what_comes_back_is_worth_what_time_has_not_made_good() {
        let (old, new, pace) = (Bucket::default(), Bucket::default(), pace(1, 10));
        let (ahead, kept) = old.give(&pace, 4, ns(0)).unwrap();
        new.inherit(ahead, ns(0));
        assert_eq!((kept, burst(&new, &pace, 0, 99)), (4, 6));
        // Two seconds later: two earned, and four back of which two are those.
        let later = 2_000_000_000;
        new.put_back(&pace, old.keep(0), Duration::from_secs(2));
        assert_eq!(burst(&new, &pace, later, 99), 4);
        new.put_back(&pace, u32::MAX, Duration::ZERO);
        assert_eq!(burst(&new, &pace, later, 99), 10, "never more than the burst");
    }

    #[test]
    fn stays_in_bounds_at_the_ends_of_time() {
        let (bucket, pace) = (Bucket::default(), pace(1, BURST_MAX));
        assert!(bucket.take(&pace, Moment::MAX).is_ok());
        let _ = bucket.take(&pace, ns(0));
        bucket.undo(&pace);
    }

    #[test]
    fn four_threads_get_the_burst_and_no_more() {
        let (bucket, pace) = (Bucket::default(), pace(1, 100));
        let admitted: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| burst(&bucket, &pace, 77, 250))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(admitted, 100);
    }

    proptest! {
        /// The oracle: a token bucket in whole numbers, `step` tokens a call.
        #[test]
        fn agrees_with_a_token_bucket(
            per_second in 1u32..=10_000, size in 1u32..=20, gaps in prop::collection::vec(0u64..3_000_000_000, 1..200),
        ) {
            let (bucket, pace) = (Bucket::default(), pace(per_second, size));
            let full = pace.step * u64::from(size);
            let (mut level, mut now) = (full, 1_000);
            for gap in gaps {
                // Small gaps are the interesting ones.
                let gap = gap >> (gap % 32);
                now += gap;
                level = (level + gap).min(full);
                let admitted = level >= pace.step;
                if admitted {
                    level -= pace.step;
                }
                prop_assert_eq!(bucket.take(&pace, ns(now)).is_ok(), admitted);
            }
        }
    }
}
