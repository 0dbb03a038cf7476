//! Exchanges in flight: a counter with a bound.
//!
//! Who has entered must leave exactly once, whatever way the exchange ends; whoever holds the
//! record of the exchange does so by `Drop`. Those that are still inside at the process before, when
//! another has taken over, count as well.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Counts those inside.
#[derive(Debug, Default)]
pub struct Gate {
    inside: AtomicU32,
    elsewhere: AtomicU32,
}

impl Gate {
    /// Enters unless `limit` are inside; `true` must be followed by one `leave`.
    #[must_use]
    pub fn enter(&self, limit: u32) -> bool {
        let limit = limit.saturating_sub(self.elsewhere.load(Relaxed));
        let enter = |inside: u32| (inside < limit).then(|| inside + 1);
        self.inside.fetch_update(Relaxed, Relaxed, enter).is_ok()
    }

    /// Leaves.
    pub fn leave(&self) {
        let _ = self.inside.fetch_update(Relaxed, Relaxed, |inside| inside.checked_sub(1));
    }

    /// Says how many are inside at the process before.
    pub fn set_elsewhere(&self, count: u32) {
        self.elsewhere.store(count, Relaxed);
    }

    /// How many are inside, here and at the process before.
    #[must_use]
    pub fn inside_anywhere(&self) -> u32 {
        self.inside().saturating_add(self.elsewhere.load(Relaxed))
    }

    /// How many are inside.
    #[must_use]
    pub fn inside(&self) -> u32 {
        self.inside.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn lets_in_as_many_as_may_be_inside() {
        let gate = Gate::default();
        assert!(gate.enter(2) && gate.enter(2) && !gate.enter(2));
        gate.leave();
        assert!(gate.enter(2) && !gate.enter(2));
        assert_eq!(gate.inside(), 2);
    }

    #[test]
    fn those_inside_elsewhere_count() {
        let gate = Gate::default();
        gate.set_elsewhere(2);
        assert!(gate.enter(3) && !gate.enter(3));
        assert_eq!((gate.inside(), gate.inside_anywhere()), (1, 3));
        gate.set_elsewhere(7);
        assert!(!gate.enter(3));
        gate.set_elsewhere(0);
        assert!(gate.enter(3));
    }

    #[test]
    fn leaving_once_too_often_does_not_wrap() {
        let gate = Gate::default();
        gate.leave();
        assert_eq!(gate.inside(), 0);
    }

    #[test]
    fn four_threads_are_never_more_than_the_limit_inside() {
        let (gate, inside, most) = (Gate::default(), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if gate.enter(3) {
                            most.fetch_max(inside.fetch_add(1, Relaxed) + 1, Relaxed);
                            inside.fetch_sub(1, Relaxed);
                            gate.leave();
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= 3);
        assert_eq!(gate.inside(), 0);
    }
}
