//! The wait queue of a group, shared by all cores and by all plans that have the group.
//!
//! `policy::queue` decides which waiter is next; here its decisions meet the slots of the members.
//! The queue is locked only while a request waits or has to wait. A slot that comes free goes
//! straight to one waiter: the grant is written down in the queue, and the notification merely
//! tells the waiter to look, so that a lost or late one costs time and never a slot. A waiter's
//! place (`WaitSlot`) is a guard: dropped in any way it leaves the queue, and a slot that had been
//! granted to it meanwhile goes on to the next.
//!
//! An upstream may be a member of several groups; its slots go to their queues in turn. A waiter
//! that has tried a member is granted slots of the others; one bound to a member, slots of that one
//! alone. Slots of a member that is down are never granted; those of a member whose breaker refuses
//! only as a last resort, where no member admits calls.
//!
//! A queue outlives the plan that made it: those who wait keep their places, and it keeps its
//! measured rate. Each plan's group sees it as a `GroupQueue`, by its own members (`members`); a
//! waiter takes slots of the members that its plan has, and all are served in one order.
//!
//! A queue's lock is taken before that of an upstream's list of queues, never behind it, and no two
//! queues are locked at once. Waiters are woken after unlocking.
//!
//! # What an exchange does
//!
//! 1. Pick a member; `try_lease` it. When another exchange was faster, pick again.
//! 2. When no candidate is left but some are only full (`admits` and no free slot): wait. When
//!    there is none of these either, it is 503 at once; no queue helps.
//! 3. Register a `Notify`, then `enter` with its token and the earlier of its own deadline and
//!    `queue.wait`; `Full` is 503 with `retry_after_s`.
//! 4. Ask `take_grant` first: entering may have granted at once.
//! 5. Wait for the notification, the deadline, the client's leaving, and the `next_admission` of
//!    breakers that are open.
//! 6. After any wake-up ask `take_grant`: the member and its lease, or not yet; and `is_displaced`:
//!    a newcomer has got the place, which is 503 with `retry_after_s`.
//! 7. Woken by a notification or a breaker, and not yet: pick once more (1); if that succeeds drop
//!    the place, else wait on (5) in the same place.
//! 8. With the lease, ask the breaker; when it refuses, drop the lease and begin anew (1).
//! 9. Deadline or client gone: drop the place; deadline is 503 with `retry_after_s`.
//! 10. The lease, dropped at the end of the attempt and after the breaker's verdict, passes the
//!     slot on.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

pub use members::Accepts;
use members::Members;

use super::slots::Waiting;
use super::state::{Lease, UpstreamState};
use crate::base::clock::Moment;
use crate::base::slab::Slab;
pub use crate::policy::queue::{Full, Share};
use crate::policy::queue::{Queue, WaitId};

mod members;
#[cfg(test)]
mod tests;

/// How a queue wakes waiters and reads the time.
pub trait Wake<T>: Send + Sync {
    /// Tells the holder of a token to look; called from any thread, never blocks.
    fn wake(&self, token: T);
    /// The moment that it is now, as the breakers are told.
    fn now(&self) -> Moment;
}

/// The wait queue of one group; `T` is the token by which a waiter is woken.
pub struct WaitQueue<T> {
    wake: Arc<dyn Wake<T>>,
    /// How many requests wait, to be read without the lock.
    waiting: AtomicU32,
    inside: Mutex<Inside<T>>,
}

/// What the lock guards.
struct Inside<T> {
    queue: Queue,
    /// The waiters, those granted a slot and not yet gone included.
    waiters: Slab<Waiter<T>>,
    /// The index in `waiters` of each waiter, by its index in the queue.
    waiter_of: Vec<u32>,
    members: Members,
}

struct Waiter<T> {
    id: WaitId,
    token: T,
    /// The view of its plan's group.
    view: usize,
    accepts: Accepts,
    stay: Stay,
}

/// What has become of a waiter.
#[derive(Clone, Copy)]
enum Stay {
    Waiting,
    /// A slot of this member of its group has been granted to it.
    Granted(usize),
    /// The place has gone to a newcomer.
    Displaced,
}

impl<T: Copy + Send + 'static> WaitQueue<T> {
    /// A queue for `length` waiters at most, without members.
    #[must_use]
    pub fn new(length: u32, wake: Arc<dyn Wake<T>>) -> Arc<WaitQueue<T>> {
        Arc::new(WaitQueue {
            wake,
            waiting: AtomicU32::new(0),
            inside: Mutex::new(Inside {
                queue: Queue::new(length),
                waiters: Slab::new(),
                waiter_of: Vec::new(),
                members: Members::default(),
            }),
        })
    }

    /// The queue as a group with these members sees it; their slots go to those who wait there.
    ///
    /// Shape: `members` in the group's order; only the first `MEMBERS_MAX` are ever granted.
    #[must_use]
    pub fn bind(self: &Arc<Self>, members: Vec<Arc<UpstreamState>>) -> GroupQueue<T> {
        let this: Weak<dyn Waiting> = Arc::downgrade(self) as Weak<dyn Waiting>;
        let mut inside = self.lock();
        let (view, new) = inside.members.bind(&members);
        for number in new {
            if let Some(state) = inside.members.state(number) {
                state.slots.register(this.clone(), number);
            }
        }
        drop(inside);
        GroupQueue { queue: self.clone(), members, view }
    }

    /// Changes how many may wait; those who wait already stay.
    pub fn set_length(&self, length: u32) {
        self.lock().queue.set_length(length);
    }

    fn unbind(self: &Arc<Self>, view: usize) {
        let this: Weak<dyn Waiting> = Arc::downgrade(self) as Weak<dyn Waiting>;
        let mut inside = self.lock();
        let gone = inside.members.unbind(view);
        // Under the lock: else one that comes back meanwhile would be taken off the list.
        for (number, state) in &gone {
            state.slots.unregister(&this, *number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside<T>> {
        // No change under the lock can panic half done; a poisoned lock must not stop the group.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inside: &Inside<T>) {
        self.waiting.store(inside.queue.len(), Ordering::Relaxed);
    }

    /// Grants a slot of a member to the waiter that is next, if `take` succeeds; then wakes the
    /// waiter.
    fn grant(&self, number: usize, take: impl FnOnce(&UpstreamState) -> bool) -> bool {
        let now = self.wake.now();
        let token = {
            let mut inside = self.lock();
            let Some(waiter) = inside.next_for(number, now) else { return false };
            if !inside.members.state(number).is_some_and(|state| take(state)) {
                return false;
            }
            let token = inside.grant(waiter, number, now);
            self.publish(&inside);
            token
        };
        self.wake.wake(token);
        true
    }
}

impl<T: Copy + Send + 'static> Waiting for WaitQueue<T> {
    fn offer(&self, member: usize) -> bool {
        self.grant(member, |_| true)
    }

    fn fill(&self, member: usize) -> bool {
        self.grant(member, |state| state.slots.try_take())
    }
}

impl<T: Copy> Inside<T> {
    /// Takes the place of the waiter that has to leave a full queue for a newcomer; returns that
    /// waiter's token.
    fn displace(&mut self, share: Share, now: Moment) -> Option<T> {
        let id = self.queue.displaced_by(share)?;
        self.queue.cancel(id, now);
        let waiter = self.waiters.at_mut(self.waiter_of[id.index()]);
        waiter.stay = Stay::Displaced;
        let Waiter { token, view, accepts, .. } = *waiter;
        self.members.remove(view, &accepts);
        Some(token)
    }

    fn add(&mut self, waiter: Waiter<T>) -> u32 {
        let index = waiter.id.index();
        self.members.add(waiter.view, &waiter.accepts);
        let at = self.waiters.insert(|_| waiter);
        if self.waiter_of.len() <= index {
            self.waiter_of.resize(index + 1, 0);
        }
        self.waiter_of[index] = at;
        at
    }

    /// The index in `waiters` of the one that gets the next slot of this member: of those whose
    /// group may call it, since it admits calls, or does as a last resort where no member of the
    /// group admits any.
    fn next_for(&mut self, number: usize, now: Moment) -> Option<u32> {
        if !self.members.is_wanted(number) {
            return None;
        }
        let state = self.members.state(number)?;
        let admits = state.admits(now);
        if !admits {
            if !state.admits_last_resort(now) {
                return None;
            }
            self.members.note_admissions(now);
        }
        let waiter_of = |id: WaitId| self.waiter_of[id.index()];
        let id = self.queue.find(now, |id| {
            let Waiter { view, accepts, .. } = self.waiters.at(waiter_of(id));
            (admits || !self.members.admits(*view))
                && self.members.accepted(*view, accepts, number).is_some()
        })?;
        Some(waiter_of(id))
    }

    /// Notes that a slot of a member is a waiter's; returns the waiter's token.
    fn grant(&mut self, waiter: u32, number: usize, now: Moment) -> T {
        let Waiter { id, token, view, accepts, .. } = *self.waiters.at(waiter);
        self.queue.grant(id, now);
        if let Some(member) = self.members.accepted(view, &accepts, number) {
            self.waiters.at_mut(waiter).stay = Stay::Granted(member);
        }
        self.members.remove(view, &accepts);
        token
    }
}

/// A group's wait queue, as one plan sees it: its members are those of the plan.
pub struct GroupQueue<T: Copy + Send + 'static> {
    queue: Arc<WaitQueue<T>>,
    members: Vec<Arc<UpstreamState>>,
    view: usize,
}

impl<T: Copy + Send + 'static> GroupQueue<T> {
    /// How many requests wait now, of all plans; reads one atomic.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.queue.waiting.load(Ordering::Relaxed)
    }

    /// Tells whether no request waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Changes how many may wait; those who wait already stay.
    pub fn set_length(&self, length: u32) {
        self.queue.set_length(length);
    }

    /// The measured rate: grants, and the time for which somebody waited, both as weighted.
    #[must_use]
    pub fn measured(&self) -> (f64, Duration) {
        self.queue.lock().queue.measured()
    }

    /// Goes on from the rate that another process measured.
    pub fn resume(&self, grants: f64, waited: Duration) {
        self.queue.lock().queue.resume(grants, waited);
    }

    /// Seconds after which a newcomer may hope for a slot, from the measured rate.
    #[must_use]
    pub fn retry_after_s(&self) -> u32 {
        let now = self.queue.wake.now();
        self.queue.lock().queue.retry_after_s(now)
    }

    /// Takes a place, and grants slots that are free this very moment.
    ///
    /// Errors: the queue is full.
    ///
    /// Units: `deadline` is exclusive: nothing is granted from then on.
    pub fn enter(
        &self,
        share: Share,
        accepts: Accepts,
        token: T,
        deadline: Moment,
    ) -> Result<WaitSlot<'_, T>, Full> {
        let (queue, view) = (&self.queue, self.view);
        let now = queue.wake.now();
        let (waiter, displaced) = {
            let mut inside = queue.lock();
            let displaced = inside.displace(share, now);
            let id = inside.queue.enqueue(share, now, deadline)?;
            let waiter = inside.add(Waiter { id, token, view, accepts, stay: Stay::Waiting });
            queue.publish(&inside);
            (waiter, displaced)
        };
        displaced.into_iter().for_each(|token| queue.wake.wake(token));
        let place = WaitSlot { queue: self, waiter, taken: false };
        // A slot may have come free between the look that found none and the place taken. It goes
        // to the waiter that is next, which need not be the newcomer.
        for member in (0..self.members.len()).filter(|member| accepts.has(*member)) {
            while self.members[member].slots.has_free() && !place.is_granted() {
                if !self.fill(member) {
                    break;
                }
            }
        }
        Ok(place)
    }

    /// Takes a free slot of a member for the waiter that is next; `false`: there is none.
    fn fill(&self, member: usize) -> bool {
        let number = self.queue.lock().members.number(self.view, member);
        number.is_some_and(|number| self.queue.fill(number))
    }
}

impl<T: Copy + Send + 'static> Drop for GroupQueue<T> {
    fn drop(&mut self) {
        self.queue.unbind(self.view);
    }
}

/// A place in the queue; its drop leaves the queue.
#[must_use = "a place that is dropped is left"]
pub struct WaitSlot<'r, T: Copy + Send + 'static> {
    queue: &'r GroupQueue<T>,
    waiter: u32,
    taken: bool,
}

impl<'r, T: Copy + Send + 'static> WaitSlot<'r, T> {
    /// Takes the slot that was granted: the member, and the lease of its slot. `None`: not yet.
    #[must_use]
    pub fn take_grant(&mut self) -> Option<(usize, Lease<'r>)> {
        if self.taken {
            return None;
        }
        let GroupQueue { queue, members, .. } = self.queue;
        let member = {
            let mut inside = queue.lock();
            let Stay::Granted(member) = inside.waiters.at(self.waiter).stay else { return None };
            inside.waiters.free(self.waiter);
            member
        };
        self.taken = true;
        Some((member, members[member].adopt()))
    }

    fn is_granted(&self) -> bool {
        matches!(self.stay(), Stay::Granted(_))
    }

    /// Whether the place has gone to a newcomer, and nothing will be granted any more.
    #[must_use]
    pub fn is_displaced(&self) -> bool {
        !self.taken && matches!(self.stay(), Stay::Displaced)
    }

    fn stay(&self) -> Stay {
        self.queue.queue.lock().waiters.at(self.waiter).stay
    }
}

impl<T: Copy + Send + 'static> Drop for WaitSlot<'_, T> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let GroupQueue { queue, members, .. } = self.queue;
        let now = queue.wake.now();
        let granted = {
            let mut inside = queue.lock();
            let Waiter { id, view, accepts, stay, .. } = *inside.waiters.at(self.waiter);
            inside.waiters.free(self.waiter);
            match stay {
                Stay::Waiting => {
                    inside.queue.cancel(id, now);
                    inside.members.remove(view, &accepts);
                    queue.publish(&inside);
                    None
                }
                Stay::Granted(member) => Some(member),
                Stay::Displaced => None,
            }
        };
        if let Some(member) = granted {
            members[member].slots.release();
        }
    }
}
