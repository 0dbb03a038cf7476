//! Whether a server fails, or one model on it.
//!
//! A breaker judges a server. One that serves several models may fail all requests for one of
//! them (it does not fit into memory, its weights are broken) and be well otherwise: then the
//! breaker must not take the others away. So a failure counts against the model alone as long
//! as *another* model of the same server has worked lately (`OTHERS`); without such a witness, as
//! of a server with one model, it counts against the server as ever.
//!
//! A model that has failed `consecutive` times in a row is avoided on that server for a cooldown
//! since its last failure: members that are not in this state are preferred, and where there are
//! none it is asked all the same. It steers, like the breaker.
//!
//! Bounds: `MARKS` models a server are remembered, those with the latest news, and only while
//! something has failed lately; nothing is written, and no name is hashed, for a server that is well.
//! Two names with the same hash share a mark. Races between cores cost a mark, no more.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

use super::BreakerPolicy;
use crate::base::clock::{AtomicMoment, Moment};

/// Models of one server that are remembered.
const MARKS: usize = 8;
/// How long a success of another model is a witness for the server, and how long after a failure
/// successes are written down.
const OTHERS: Duration = Duration::from_secs(60);
/// What is added to the times of a mark, so that none is the origin.
const ONE: Duration = Duration::from_nanos(1);

/// The models of one server.
#[derive(Debug, Default)]
pub struct ModelMarks {
    /// Successes are written down until then; the origin = nothing has ever failed.
    watch_until: AtomicMoment,
    marks: [Mark; MARKS],
}

/// What is known of one model. Times are plus `ONE`, the origin = never.
#[derive(Debug, Default)]
struct Mark {
    /// Hash of its name; 0 = free.
    model: AtomicU64,
    failures: AtomicU32,
    failed: AtomicMoment,
    worked: AtomicMoment,
}

/// What is known of one model, by how long ago it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MarkImage {
    /// Hash of its name.
    pub model: u64,
    /// Failures in a row.
    pub failures: u32,
    /// Since it last failed; `None` = never.
    pub failed_ago: Option<Duration>,
    /// Since it last worked; `None` = never.
    pub worked_ago: Option<Duration>,
}

impl Mark {
    fn latest(&self) -> Moment {
        self.failed.load().max(self.worked.load())
    }
}

/// The number of a model's name.
#[must_use]
#[cold]
pub fn model_hash(name: &str) -> u64 {
    // FNV-1a, never 0: that is a free mark.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash | 1
}

impl ModelMarks {
    /// Tells whether successes are to be written down, and models may be avoided.
    #[inline]
    #[must_use]
    pub fn watches(&self, now: Moment) -> bool {
        now < self.watch_until.load()
    }

    /// Writes a success down.
    #[cold]
    pub fn worked(&self, model: u64, now: Moment) {
        let mark = self.of(model);
        mark.worked.store(now + ONE);
        mark.failures.store(0, Relaxed);
    }

    /// Writes a failure down; tells whether it is the model's alone.
    #[cold]
    pub fn failed(&self, model: u64, now: Moment) -> bool {
        self.watch_until.advance(now + OTHERS);
        let mark = self.of(model);
        mark.failed.store(now + ONE);
        // A count that is full says no more.
        let _ = mark.failures.fetch_update(Relaxed, Relaxed, |count| count.checked_add(1));
        self.marks.iter().any(|other| {
            let worked = other.worked.load();
            other.model.load(Relaxed) != model
                && worked > Moment::ORIGIN
                && now.since(worked) < OTHERS
        })
    }

    /// Tells whether other servers are to be preferred for a model.
    #[cold]
    #[must_use]
    pub fn avoids(&self, model: u64, policy: &BreakerPolicy, now: Moment) -> bool {
        self.marks.iter().any(|mark| {
            mark.model.load(Relaxed) == model
                && mark.failures.load(Relaxed) >= policy.consecutive.max(1)
                && now.since(mark.failed.load()) < policy.cooldown
        })
    }

    /// What is known of models, for the process that comes next.
    #[must_use]
    pub fn images(&self, now: Moment) -> Vec<MarkImage> {
        let ago = |at: Moment| (at > Moment::ORIGIN).then(|| now.since(at));
        let images = self.marks.iter().map(|mark| MarkImage {
            model: mark.model.load(Relaxed),
            failures: mark.failures.load(Relaxed),
            failed_ago: ago(mark.failed.load()),
            worked_ago: ago(mark.worked.load()),
        });
        images.filter(|image| image.model != 0).collect()
    }

    /// Goes on from what the process before knew of a model.
    pub fn resume(&self, image: &MarkImage, now: Moment) {
        let mark = self.of(image.model | 1);
        let at = |ago: Duration| now.before(ago) + ONE;
        let _ = mark.failures.fetch_max(image.failures, Relaxed);
        if let Some(ago) = image.failed_ago {
            mark.failed.advance(at(ago));
            self.watch_until.advance(at(ago) + OTHERS);
        }
        if let Some(ago) = image.worked_ago {
            mark.worked.advance(at(ago));
        }
    }

    /// The mark of a model, or the one with the oldest news.
    fn of(&self, model: u64) -> &Mark {
        let known = self.marks.iter().find(|mark| mark.model.load(Relaxed) == model);
        if let Some(mark) = known {
            return mark;
        }
        let oldest = self.marks.iter().min_by_key(|mark| mark.latest());
        let mark = oldest.unwrap_or(&self.marks[0]);
        mark.failures.store(0, Relaxed);
        mark.failed.store(Moment::ORIGIN);
        mark.worked.store(Moment::ORIGIN);
        mark.model.store(model, Relaxed);
        mark
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 1;
    const B: u64 = 3;

    fn ms(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn policy() -> BreakerPolicy {
        BreakerPolicy { consecutive: 3, ..BreakerPolicy::default() }
    }

    #[test]
    fn another_process_goes_on_avoiding_a_model() {
        let policy = BreakerPolicy { consecutive: 2, ..BreakerPolicy::default() };
        let (old, new) = (ModelMarks::default(), ModelMarks::default());
        let then = Moment::from_secs(500);
        old.failed(3, then);
        old.worked(5, then);
        old.failed(3, then);
        let told = then + Duration::from_secs(1);
        // A process that has just begun.
        let now = Moment::from_secs(1);
        old.images(told).iter().for_each(|image| new.resume(image, now));
        assert!(new.avoids(3, &policy, now) && !new.avoids(5, &policy, now));
        assert!(new.watches(now) && new.failed(3, now), "5 has worked: it is the model's alone");
        assert_eq!(ModelMarks::default().images(told), []);
    }

    #[test]
    fn without_a_witness_a_failure_is_the_servers() {
        let marks = ModelMarks::default();
        assert!(!marks.watches(ms(0)));
        assert!(!marks.failed(A, ms(0)));
        assert!(marks.watches(ms(0)));
        marks.worked(A, ms(1));
        assert!(!marks.failed(A, ms(2)), "itself is no witness");
    }

    #[test]
    fn a_failure_is_the_models_while_another_one_works() {
        let marks = ModelMarks::default();
        assert!(!marks.failed(A, ms(0)));
        marks.worked(B, ms(10));
        assert!(marks.failed(A, ms(20)));
        assert!(!marks.failed(B, ms(30)), "nobody speaks for the server");
        assert!(!marks.failed(A, ms(60_030)), "that was long ago");
    }

    #[test]
    fn a_model_is_avoided_after_failures_in_a_row_and_for_a_cooldown() {
        let marks = ModelMarks::default();
        for at in 0..3 {
            assert!(!marks.avoids(A, &policy(), ms(at)));
            marks.failed(A, ms(at));
        }
        assert!(marks.avoids(A, &policy(), ms(3)) && !marks.avoids(B, &policy(), ms(3)));
        assert!(!marks.avoids(A, &policy(), ms(40_000)));
        marks.failed(A, ms(40_000));
        assert!(marks.avoids(A, &policy(), ms(40_001)), "one more is enough");
        marks.worked(A, ms(40_002));
        assert!(!marks.avoids(A, &policy(), ms(40_003)));
    }

    #[test]
    fn marks_bounds_how_many_models_are_remembered() {
        let marks = ModelMarks::default();
        for model in 0..100 {
            marks.failed(2 * model + 1, ms(model));
        }
        let known: Vec<u64> = marks.marks.iter().map(|mark| mark.model.load(Relaxed)).collect();
        assert!(known.iter().all(|model| *model > 2 * (100 - MARKS as u64 - 1)), "{known:?}");
    }
}
