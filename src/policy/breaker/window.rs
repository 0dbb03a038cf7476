//! Calls and failures of the last while, counted by many cores.
//!
//! A ring of ten buckets, each one atomic word: which tenth of the window it is, which epoch of the
//! breaker, how many calls, how many failures. A bucket that belongs to another time
//! or another epoch is begun anew by whoever comes first, so nothing is ever cleared
//! and a late caller cannot spill old failures into a new epoch. The window is between
//! nine and ten tenths long.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::base::clock::{AtomicDuration, Moment};

const BUCKETS: usize = 10;

/// The ring.
#[derive(Debug)]
pub(super) struct Window {
    /// Length of one bucket, at least 1 ms.
    tenth: AtomicDuration,
    buckets: [AtomicU64; BUCKETS],
}

/// Sums over the window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Calls that ended.
    pub(super) calls: u32,
    /// How many of them failed; `failures <= calls`.
    pub(super) failures: u32,
}

impl Window {
    pub(super) fn new(window: Duration) -> Window {
        Window { tenth: AtomicDuration::new(tenth_of(window)), buckets: Default::default() }
    }

    /// Makes it longer or shorter; what was counted is forgotten then.
    pub(super) fn set_length(&self, window: Duration) {
        if self.tenth.replace(tenth_of(window)) {
            // A bucket of another length could pass for one of now.
            self.buckets.iter().for_each(|bucket| bucket.store(0, Relaxed));
        }
    }

    /// Counts one call and returns the sums of its epoch, itself included.
    pub(super) fn record(&self, epoch: u32, failed: bool, now: Moment) -> Counts {
        let tenth = self.tenth.periods(now);
        let own = Bucket::begun(epoch, tenth);
        if let Some(word) = self.buckets.get((tenth % BUCKETS as u64) as usize) {
            // What was there before does not matter.
            let _ = word.fetch_update(Relaxed, Relaxed, |seen| {
                let seen = Bucket::unpack(seen);
                let bucket = match seen.tag == own.tag {
                    true => seen,
                    // The epoch has changed under this call; it must not wipe the new one out.
                    false if seen.is_later_epoch_of(&own) => return None,
                    false => own,
                };
                Some(bucket.plus(failed).pack())
            });
        }
        self.sum(epoch, tenth)
    }

    /// What is counted in an epoch: how long ago, calls, failures.
    pub(super) fn counted(&self, epoch: u32, now: Moment) -> Vec<(Duration, u32, u32)> {
        let tenth = self.tenth.periods(now);
        let back = 0..(BUCKETS as u64).min(tenth + 1);
        let counted = back.filter_map(|back| {
            let at = ((tenth - back) % BUCKETS as u64) as usize;
            let bucket = Bucket::unpack(self.buckets.get(at)?.load(Relaxed));
            let is_there = bucket.tag == Bucket::begun(epoch, tenth - back).tag && bucket.calls > 0;
            let ago = self.tenth.load().saturating_mul(back as u32);
            is_there.then_some((ago, bucket.calls, bucket.failures))
        });
        counted.collect()
    }

    /// Counts in an epoch what another process has counted.
    pub(super) fn fill(&self, epoch: u32, counted: &[(Duration, u32, u32)], now: Moment) {
        for &(ago, calls, failures) in counted {
            let tenth = self.tenth.periods(now.before(ago));
            // What lies before the origin of this process, or before the window, is forgotten.
            if ago > now.since(Moment::ORIGIN) || tenth + BUCKETS as u64 <= self.tenth.periods(now)
            {
                continue;
            }
            let own = Bucket::begun(epoch, tenth);
            let at = (tenth % BUCKETS as u64) as usize;
            if let Some(word) = self.buckets.get(at) {
                let _ = word.fetch_update(Relaxed, Relaxed, |seen| {
                    let seen = Bucket::unpack(seen);
                    let bucket = if seen.tag == own.tag { seen } else { own };
                    let calls = bucket.calls.saturating_add(calls).min(u32::from(u16::MAX));
                    let failures = bucket.failures.saturating_add(failures).min(calls);
                    Some(Bucket { calls, failures, ..bucket }.pack())
                });
            }
        }
    }

    fn sum(&self, epoch: u32, tenth: u64) -> Counts {
        let mut counts = Counts::default();
        for back in 0..(BUCKETS as u64).min(tenth + 1) {
            let tenth = tenth - back;
            let Some(word) = self.buckets.get((tenth % BUCKETS as u64) as usize) else { continue };
            let bucket = Bucket::unpack(word.load(Relaxed));
            if bucket.tag == Bucket::begun(epoch, tenth).tag {
                counts.calls += bucket.calls;
                counts.failures += bucket.failures;
            }
        }
        counts
    }
}

/// Length of a bucket of this window, at least 1 ms.
fn tenth_of(window: Duration) -> Duration {
    (window / BUCKETS as u32).max(Duration::from_millis(1))
}

/// One word: tag 32 bits (epoch 10, tenth 22), calls 16, failures 16.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// A tag comes again after four million tenths of the window, and only harms
    /// if the bucket has not been used in between.
    tag: u32,
    calls: u32,
    failures: u32,
}

impl Bucket {
    fn begun(epoch: u32, tenth: u64) -> Bucket {
        let tag = (epoch & 0x3ff) << 22 | (tenth as u32 & 0x3f_ffff);
        Bucket { tag, calls: 0, failures: 0 }
    }

    /// Tells whether this is the same tenth in an epoch after that of `other`.
    fn is_later_epoch_of(&self, other: &Bucket) -> bool {
        let same_tenth = (self.tag ^ other.tag) & 0x3f_ffff == 0;
        let ahead = (self.tag >> 22).wrapping_sub(other.tag >> 22) & 0x3ff;
        same_tenth && (1..0x200).contains(&ahead)
    }

    /// A full bucket is halved: the share of failures is what counts then.
    fn plus(self, failed: bool) -> Bucket {
        let full = self.calls >= u32::from(u16::MAX);
        let shift = u32::from(full);
        Bucket {
            calls: (self.calls >> shift) + 1,
            failures: (self.failures >> shift) + u32::from(failed),
            ..self
        }
    }

    fn pack(self) -> u64 {
        u64::from(self.tag) << 32 | u64::from(self.calls) << 16 | u64::from(self.failures)
    }

    fn unpack(word: u64) -> Bucket {
        Bucket {
            tag: (word >> 32) as u32,
            calls: u32::from((word >> 16) as u16),
            failures: u32::from(word as u16),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn forgets_what_is_older_than_the_window() {
        let window = Window::new(Duration::from_secs(1));
        window.record(0, true, ms(0));
        assert_eq!(window.record(0, false, ms(999)), Counts { calls: 2, failures: 1 });
        assert_eq!(window.record(0, false, ms(1000)), Counts { calls: 2, failures: 0 });
    }

    #[test]
    fn another_epoch_begins_at_nothing() {
        let window = Window::new(Duration::from_secs(1));
        (0..5).for_each(|_| {
            window.record(0, true, ms(10));
        });
        assert_eq!(window.record(1, false, ms(10)), Counts { calls: 1, failures: 0 });
    }

    #[test]
    fn a_late_call_of_an_older_epoch_wipes_nothing_out() {
        let window = Window::new(Duration::from_secs(1));
        window.record(1023, true, ms(10));
        window.record(1024, true, ms(10));
        assert_eq!(window.record(1023, true, ms(10)), Counts::default());
        assert_eq!(window.record(1024, false, ms(10)), Counts { calls: 2, failures: 1 });
    }

    #[test]
    fn a_full_bucket_keeps_its_share() {
        let window = Window::new(Duration::from_secs(1));
        let mut counts = Counts::default();
        for at in 0..200_000 {
            counts = window.record(0, at % 4 == 0, ms(10));
        }
        assert!(counts.calls <= 65_535);
        let share = f64::from(counts.failures) / f64::from(counts.calls);
        assert!((0.24..0.26).contains(&share), "{share}");
    }

    #[test]
    fn calls_of_many_threads_are_all_counted() {
        let window = Window::new(Duration::from_secs(1));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for at in 0..2_000 {
                        window.record(3, at % 2 == 0, ms(at / 4));
                    }
                });
            }
        });
        assert_eq!(window.sum(3, 4), Counts { calls: 8_000, failures: 4_000 });
    }

    proptest! {
        #[test]
        fn agrees_with_a_list_of_calls(
            calls in proptest::collection::vec((any::<bool>(), 0u64..400, 0u32..20), 1..200),
        ) {
            let window = Window::new(Duration::from_secs(1));
            let (mut now, mut epoch, mut list) = (0, 0, Vec::new());
            for (failed, pause, turn) in calls {
                now += pause;
                if turn == 0 {
                    epoch += 1;
                    list.clear();
                }
                list.push((now / 100, failed));
                let recent = || list.iter().filter(|(tenth, _)| tenth + 10 > now / 100);
                let expected = Counts {
                    calls: recent().count() as u32,
                    failures: recent().filter(|(_, failed)| *failed).count() as u32,
                };
                prop_assert_eq!(window.record(epoch, failed, ms(now)), expected);
            }
        }
    }
}
