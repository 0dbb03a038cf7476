//! How many requests may be in flight at one upstream, over all cores.
//!
//! A slot is taken by compare-and-swap and never beyond the limit. Given back, it goes to a waiter,
//! if there is one: the slot changes hands without becoming free in between, so that no newcomer
//! slips in. While no request waits, all of this costs one load of a cache line that is being
//! written anyway.
//!
//! The queues know the waiters; here is only the number of queues in which a waiter would take a
//! slot (`wanted`). A waiter raises that number *before* it looks at the slots a last time, and a
//! slot is given back *before* `wanted` is read a last time. All four accesses are sequentially
//! consistent, so at least one side sees the other: no slot stays free while a waiter would take it
//! (Dekker's argument).

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A wait queue, as an upstream sees it; `member` is the number that the queue has given it.
pub trait Waiting: Send + Sync {
    /// Hands a taken slot to the waiter that is next; `false`: no waiter takes it, and the caller
    /// keeps it.
    fn offer(&self, member: usize) -> bool;
    /// Takes a free slot for the waiter that is next; `false`: no slot is free, or no waiter takes
    /// it.
    fn fill(&self, member: usize) -> bool;
}

/// The slots of one upstream.
#[derive(Debug)]
pub struct Slots {
    in_flight: AtomicU32,
    /// In flight at the process before this one, which has handed over to it.
    elsewhere: AtomicU32,
    /// 0 = no limit.
    limit: AtomicU32,
    /// Queues in which a waiter would take a slot.
    wanted: AtomicU32,
    /// Index of the queue that is asked first.
    turn: AtomicUsize,
    /// Locked to change or to copy the list: when a plan comes or goes, or while requests wait.
    queues: Mutex<Arc<[QueueRef]>>,
}

/// A queue, and the number that it has given this upstream.
#[derive(Clone)]
struct QueueRef {
    queue: Weak<dyn Waiting>,
    member: usize,
}

impl std::fmt::Debug for QueueRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "QueueRef({})", self.member)
    }
}

impl Slots {
    /// Slots of which all are free; a `limit` of 0 is no limit.
    #[must_use]
    pub fn new(limit: u32) -> Slots {
        Slots {
            in_flight: AtomicU32::new(0),
            elsewhere: AtomicU32::new(0),
            limit: AtomicU32::new(limit),
            wanted: AtomicU32::new(0),
            turn: AtomicUsize::new(0),
            queues: Mutex::new(Arc::new([])),
        }
    }

    /// Slots taken.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Slots taken, here and at the process before.
    #[must_use]
    pub fn in_flight_anywhere(&self) -> u32 {
        self.in_flight().saturating_add(self.elsewhere.load(Relaxed))
    }

    /// Says how many slots the process before has taken; free ones go to waiters.
    pub fn set_elsewhere(&self, count: u32) {
        let before = self.elsewhere.swap(count, SeqCst);
        self.fill(before.saturating_sub(count));
    }

    /// The most that may be taken; 0 = no limit.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }

    /// Tells whether a slot could be taken now.
    #[must_use]
    pub fn has_free(&self) -> bool {
        let limit = self.limit.load(SeqCst);
        limit == 0 || self.in_flight.load(SeqCst) < self.here(limit)
    }

    /// Takes a slot; `false` when all are taken.
    #[must_use]
    pub fn try_take(&self) -> bool {
        let limit = self.limit.load(SeqCst);
        let below =
            |taken: u32| (limit == 0 || taken < self.here(limit)).then(|| taken.saturating_add(1));
        self.in_flight.fetch_update(SeqCst, SeqCst, below).is_ok()
    }

    /// Gives a taken slot to a waiter, or back if there is none.
    pub fn release(&self) {
        // Beyond a limit that was lowered since, slots are given up first.
        if self.is_wanted() && !self.is_over() && self.ask(|queue, member| queue.offer(member)) {
            return;
        }
        let before = self.in_flight.fetch_sub(1, SeqCst);
        debug_assert!(before > 0, "a slot is given back once");
        self.fill(1);
    }

    /// Gives free slots to waiters, `most` at most.
    pub fn fill(&self, most: u32) {
        for _ in 0..most {
            let found =
                self.is_wanted() && self.has_free() && self.ask(|queue, member| queue.fill(member));
            if !found {
                return;
            }
        }
    }

    /// Changes the limit; 0 = no limit. Calls in flight beyond a lower limit go on to their end.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, SeqCst);
    }

    /// In one more queue a waiter would take a slot.
    pub(super) fn want(&self) {
        self.wanted.fetch_add(1, SeqCst);
    }

    /// In one queue no waiter would take a slot any more.
    pub(super) fn unwant(&self) {
        let before = self.wanted.fetch_sub(1, SeqCst);
        debug_assert!(before > 0, "a queue is counted once");
    }

    /// Makes a queue known, and forgets those that are gone.
    pub(super) fn register(&self, queue: Weak<dyn Waiting>, member: usize) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = queues.iter().filter(|known| known.queue.strong_count() > 0).cloned();
        *queues = kept.chain([QueueRef { queue, member }]).collect();
    }

    /// Forgets a queue that has no such member any more.
    pub(super) fn unregister(&self, queue: &Weak<dyn Waiting>, member: usize) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let is_it = |known: &&QueueRef| known.member == member && known.queue.ptr_eq(queue);
        *queues = queues.iter().filter(|known| !is_it(known)).cloned().collect();
    }

    fn is_wanted(&self) -> bool {
        self.wanted.load(SeqCst) > 0
    }

    fn is_over(&self) -> bool {
        let limit = self.limit.load(SeqCst);
        limit > 0 && self.in_flight.load(SeqCst) > self.here(limit)
    }

    /// What a limit leaves beside the slots taken elsewhere.
    fn here(&self, limit: u32) -> u32 {
        limit.saturating_sub(self.elsewhere.load(SeqCst))
    }

    /// Asks the queues until one takes the slot, beginning behind the one that took the last.
    fn ask(&self, takes: impl Fn(&dyn Waiting, usize) -> bool) -> bool {
        // Copied: a queue must not be asked, nor the last hold of it dropped, under this lock.
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let first = self.turn.load(Relaxed);
        for step in 0..queues.len() {
            let at = first.wrapping_add(step) % queues.len();
            let known = &queues[at];
            if known.queue.upgrade().is_some_and(|queue| takes(&*queue, known.member)) {
                self.turn.store(at + 1, Relaxed);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_more_than_the_limit_and_without_one_any_number() {
        let slots = Slots::new(2);
        assert_eq!([(); 3].map(|()| slots.try_take()), [true, true, false]);
        assert!(!slots.has_free());
        slots.release();
        assert_eq!((slots.in_flight(), slots.has_free(), slots.try_take()), (1, true, true));
        let open = Slots::new(0);
        assert!((0..1000).all(|_| open.try_take()));
        assert_eq!(open.in_flight(), 1000);
    }

    #[test]
    fn a_lowered_limit_lets_those_in_flight_end() {
        let slots = Slots::new(3);
        assert!((0..3).all(|_| slots.try_take()));
        slots.set_limit(1);
        slots.release();
        assert_eq!((slots.in_flight(), slots.try_take()), (2, false));
        slots.release();
        slots.release();
        assert!(slots.try_take() && !slots.try_take());
    }

    #[test]
    fn threads_never_take_more_than_there_are() {
        let slots = Slots::new(3);
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5_000 {
                        if slots.try_take() {
                            assert!(inside.fetch_add(1, SeqCst) < 3);
                            inside.fetch_sub(1, SeqCst);
                            slots.release();
                        }
                    }
                });
            }
        });
        assert_eq!(slots.in_flight(), 0);
    }
}
