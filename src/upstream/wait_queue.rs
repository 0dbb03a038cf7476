//! The wait queue of a group, shared by all cores.
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
//! The lock order is trivial: never two at once. Waiters are woken after unlocking.
//!
//! # What an exchange does
//!
//! 1. Pick a member; `try_lease` it. When another exchange was faster, pick again.
//! 2. When no candidate is left but some are only full (`admits` and no free slot): wait. When
//!    there is none of these either, it is 503 at once; no queue helps.
//! 3. Register a `Notify`, then `enter` with its token and the earlier of its own deadline and
//!    `queue.wait`; `Full` is 503 with `retry_after_s`.
//! 4. Ask `take_grant` first: entering may have granted at once.
//! 5. Wait for the notification, the deadline, the client's leaving, and the `next_admission_ms` of
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

use super::slots::Waiting;
use super::state::{Lease, UpstreamState};
use crate::policy::balance::Tried;
pub use crate::policy::queue::{Full, Share};
use crate::policy::queue::{Queue, WaitId};

#[cfg(test)]
mod tests;

/// How a queue wakes waiters and reads the time.
pub trait Wake<T>: Send + Sync {
    /// Tells the holder of a token to look; called from any thread, never blocks.
    fn wake(&self, token: T);
    /// Milliseconds since the origin that the breakers count from.
    fn now_ms(&self) -> u64;
}

/// Which members' slots a waiter takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// Not these members, by their index in the group.
    pub tried: Tried,
    /// This member alone; `None` = any.
    pub only: Option<usize>,
}

impl Accepts {
    /// Slots of any member.
    pub const ALL: Accepts = Accepts { tried: Tried::NONE, only: None };

    /// Tells whether the waiter takes a slot of this member.
    #[must_use]
    pub fn has(&self, member: usize) -> bool {
        self.only.is_none_or(|only| only == member) && !self.tried.has(member)
    }
}

/// The wait queue of one group; `T` is the token by which a waiter is woken.
pub struct WaitQueue<T> {
    members: Vec<Arc<UpstreamState>>,
    wake: Arc<dyn Wake<T>>,
    /// How many requests wait, to be read without the lock.
    waiting: AtomicU32,
    inside: Mutex<Inside<T>>,
}

/// What the lock guards.
struct Inside<T> {
    queue: Queue,
    /// The waiters, those granted a slot and not yet gone included.
    waiters: Vec<Waiter<T>>,
    free: Vec<usize>,
    /// The index in `waiters` of each waiter, by its index in the queue.
    waiter_of: Vec<usize>,
    interest: Interest,
}

struct Waiter<T> {
    id: WaitId,
    token: T,
    accepts: Accepts,
    stay: Stay,
}

/// What has become of a waiter.
#[derive(Clone, Copy)]
enum Stay {
    Waiting,
    /// A slot of this member has been granted to it.
    Granted(usize),
    /// The place has gone to a newcomer.
    Displaced,
}

/// How many waiters would take a slot of each member. Nearly all take any member's, so that a busy
/// queue seldom changes the members' `wanted` counts.
struct Interest {
    in_all: u32,
    in_some: Vec<u32>,
}

impl<T: Copy + Send + 'static> WaitQueue<T> {
    /// A queue for `length` waiters at most, registered with its members.
    ///
    /// Shape: `members` in the group's order; only the first `MEMBERS_MAX` are ever granted.
    #[must_use]
    pub fn new(
        members: Vec<Arc<UpstreamState>>,
        length: u32,
        wake: Arc<dyn Wake<T>>,
    ) -> Arc<WaitQueue<T>> {
        let queue = Arc::new(WaitQueue {
            wake,
            waiting: AtomicU32::new(0),
            inside: Mutex::new(Inside {
                queue: Queue::new(length),
                waiters: Vec::new(),
                free: Vec::new(),
                waiter_of: Vec::new(),
                interest: Interest { in_all: 0, in_some: vec![0; members.len()] },
            }),
            members,
        });
        if length > 0 {
            let weak: Weak<dyn Waiting> = Arc::downgrade(&queue) as Weak<dyn Waiting>;
            for (member, state) in queue.members.iter().enumerate() {
                state.slots.register(weak.clone(), member);
            }
        }
        queue
    }

    /// How many requests wait now; reads one atomic.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Tells whether no request waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Seconds after which a newcomer may hope for a slot, from the measured rate.
    #[must_use]
    pub fn retry_after_s(&self) -> u32 {
        let now_ms = self.wake.now_ms();
        self.lock().queue.retry_after_s(now_ms)
    }

    /// Takes a place, and grants slots that are free this very moment.
    ///
    /// Errors: the queue is full.
    ///
    /// Units: `deadline_ms` from the origin of `Wake::now_ms`; nothing is granted from then on.
    pub fn enter(
        &self,
        share: Share,
        accepts: Accepts,
        token: T,
        deadline_ms: u64,
    ) -> Result<WaitSlot<'_, T>, Full> {
        let now_ms = self.wake.now_ms();
        let (waiter, displaced) = {
            let mut inside = self.lock();
            let displaced = inside.displace(&self.members, share, now_ms);
            let id = inside.queue.enqueue(share, now_ms, deadline_ms)?;
            let waiter = inside.add(Waiter { id, token, accepts, stay: Stay::Waiting });
            inside.interest.add(&self.members, &accepts);
            self.publish(&inside);
            (waiter, displaced)
        };
        displaced.into_iter().for_each(|token| self.wake.wake(token));
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

    /// Whether a member may be called: it admits calls, or it does as a last resort where no member
    /// admits any.
    fn admits(&self, member: usize, now_ms: u64) -> bool {
        let Some(state) = self.members.get(member) else { return false };
        state.admits(now_ms)
            || (state.admits_last_resort(now_ms)
                && !self.members.iter().any(|other| other.admits(now_ms)))
    }

    fn lock(&self) -> MutexGuard<'_, Inside<T>> {
        // No change under the lock can panic half done; a poisoned lock must not stop the group.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inside: &Inside<T>) {
        self.waiting.store(inside.queue.len(), Ordering::Relaxed);
    }

    /// Grants a slot of `member` to the waiter that is next, if `take` succeeds; then wakes the
    /// waiter.
    fn grant(&self, member: usize, take: impl FnOnce(&UpstreamState) -> bool) -> bool {
        let Some(state) = self.members.get(member) else { return false };
        let now_ms = self.wake.now_ms();
        let token = {
            let mut inside = self.lock();
            if !inside.interest.is_in(member) || !self.admits(member, now_ms) {
                return false;
            }
            let Some(waiter) = inside.next_for(member, now_ms) else { return false };
            if !take(state) {
                return false;
            }
            let Waiter { id, token, accepts, .. } = inside.waiters[waiter];
            inside.queue.grant(id, now_ms);
            inside.waiters[waiter].stay = Stay::Granted(member);
            inside.interest.remove(&self.members, &accepts);
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
    fn displace(&mut self, members: &[Arc<UpstreamState>], share: Share, now_ms: u64) -> Option<T> {
        let id = self.queue.displaced_by(share)?;
        self.queue.cancel(id, now_ms);
        let waiter = &mut self.waiters[self.waiter_of[id.index()]];
        waiter.stay = Stay::Displaced;
        let Waiter { token, accepts, .. } = *waiter;
        self.interest.remove(members, &accepts);
        Some(token)
    }

    fn add(&mut self, waiter: Waiter<T>) -> usize {
        let index = waiter.id.index();
        let at = match self.free.pop() {
            Some(at) => {
                self.waiters[at] = waiter;
                at
            }
            None => {
                self.waiters.push(waiter);
                self.waiters.len() - 1
            }
        };
        if self.waiter_of.len() <= index {
            self.waiter_of.resize(index + 1, 0);
        }
        self.waiter_of[index] = at;
        at
    }

    /// The index in `waiters` of the one that gets the next slot of this member.
    fn next_for(&self, member: usize, now_ms: u64) -> Option<usize> {
        let waiter_of = |id: WaitId| self.waiter_of[id.index()];
        let id = self.queue.find(now_ms, |id| self.waiters[waiter_of(id)].accepts.has(member))?;
        Some(waiter_of(id))
    }
}

impl Interest {
    fn is_in(&self, member: usize) -> bool {
        self.in_all > 0 || self.in_some.get(member).is_some_and(|count| *count > 0)
    }

    fn add(&mut self, members: &[Arc<UpstreamState>], accepts: &Accepts) {
        if *accepts == Accepts::ALL {
            self.in_all += 1;
            if self.in_all == 1 {
                self.others(members, accepts).for_each(|state| state.slots.want());
            }
            return;
        }
        for (member, state) in members.iter().enumerate().filter(|(at, _)| accepts.has(*at)) {
            if !self.is_in(member) {
                state.slots.want();
            }
            self.in_some[member] += 1;
        }
    }

    fn remove(&mut self, members: &[Arc<UpstreamState>], accepts: &Accepts) {
        if *accepts == Accepts::ALL {
            self.in_all -= 1;
            if self.in_all == 0 {
                self.others(members, accepts).for_each(|state| state.slots.unwant());
            }
            return;
        }
        for (member, state) in members.iter().enumerate().filter(|(at, _)| accepts.has(*at)) {
            self.in_some[member] -= 1;
            if !self.is_in(member) {
                state.slots.unwant();
            }
        }
    }

    /// The accepted members that no waiter with a choice of members waits for.
    fn others<'m>(
        &'m self,
        members: &'m [Arc<UpstreamState>],
        accepts: &'m Accepts,
    ) -> impl Iterator<Item = &'m UpstreamState> {
        let counts = members.iter().zip(&self.in_some).enumerate();
        counts
            .filter(|(member, (_, count))| accepts.has(*member) && **count == 0)
            .map(|(_, (state, _))| &**state)
    }
}

/// A place in the queue; its drop leaves the queue.
#[must_use = "a place that is dropped is left"]
pub struct WaitSlot<'r, T: Copy + Send + 'static> {
    queue: &'r WaitQueue<T>,
    waiter: usize,
    taken: bool,
}

impl<'r, T: Copy + Send + 'static> WaitSlot<'r, T> {
    /// Takes the slot that was granted: the member, and the lease of its slot. `None`: not yet.
    #[must_use]
    pub fn take_grant(&mut self) -> Option<(usize, Lease<'r>)> {
        if self.taken {
            return None;
        }
        let queue = self.queue;
        let member = {
            let mut inside = queue.lock();
            let Stay::Granted(member) = inside.waiters[self.waiter].stay else { return None };
            inside.free.push(self.waiter);
            member
        };
        self.taken = true;
        Some((member, queue.members[member].adopt()))
    }

    fn is_granted(&self) -> bool {
        matches!(self.queue.lock().waiters[self.waiter].stay, Stay::Granted(_))
    }

    /// Whether the place has gone to a newcomer, and nothing will be granted any more.
    #[must_use]
    pub fn is_displaced(&self) -> bool {
        !self.taken && matches!(self.queue.lock().waiters[self.waiter].stay, Stay::Displaced)
    }
}

impl<T: Copy + Send + 'static> Drop for WaitSlot<'_, T> {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let queue = self.queue;
        let now_ms = queue.wake.now_ms();
        let granted = {
            let mut inside = queue.lock();
            let Waiter { id, accepts, stay, .. } = inside.waiters[self.waiter];
            inside.free.push(self.waiter);
            match stay {
                Stay::Waiting => {
                    inside.queue.cancel(id, now_ms);
                    inside.interest.remove(&queue.members, &accepts);
                    queue.publish(&inside);
                    None
                }
                Stay::Granted(member) => Some(member),
                Stay::Displaced => None,
            }
        };
        if let Some(member) = granted {
            queue.members[member].slots.release();
        }
    }
}
