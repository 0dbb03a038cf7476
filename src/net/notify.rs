//! Waking an exchange that waits for another core or for the control thread.
//!
//! An exchange registers a `Notify`, gives its token to another thread and waits; a holder of the
//! token wakes the exchange from any thread, by the mailbox of its core. A token outlives its
//! `Notify`: a token used too late has no effect, because the slot's generation has moved on.
//!
//! A notification is a wake-up and a number, not the truth: the mailbox of a core may be full, and
//! a `Notify` may be dropped while its notification is on the way. What was promised to the waiter
//! stays where it was promised (`upstream::wait_queue`, the control thread's table), and a core
//! whose mailbox was full wakes all that wait there with `LOOK_AGAIN` at the next tick.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use crate::base::slab::Slab;

/// The value of a notification that may replace a lost one: the waiter must look for itself.
pub const LOOK_AGAIN: u64 = u64::MAX;

/// Names one `Notify` of one core; may be copied to any thread and outlive the `Notify`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WakeToken {
    /// The number of the core where it waits.
    pub core: u16,
    /// Its slot in the core's table.
    pub slot: u32,
    /// Counts the uses of the slot, so that a token of an earlier use is recognised.
    pub generation: u32,
}

/// The `Notify`s of one core, each with its last value and its waker.
pub struct WakeTable {
    core: u16,
    slots: RefCell<Slab<Slot>>,
    registered: Cell<usize>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    in_use: bool,
    value: Option<u64>,
    waker: Option<Waker>,
}

impl WakeTable {
    /// An empty table.
    #[must_use]
    pub fn new(core: usize) -> Rc<Self> {
        Rc::new(Self {
            core: u16::try_from(core).unwrap_or(u16::MAX),
            slots: RefCell::default(),
            registered: Cell::new(0),
        })
    }

    /// Makes a `Notify` with a slot of its own in this table.
    #[must_use]
    pub fn register(self: &Rc<Self>) -> Notify {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.insert(|freed| Slot {
            generation: freed.map_or(0, |slot| slot.generation),
            in_use: true,
            ..Slot::default()
        });
        self.registered.set(self.registered.get() + 1);
        let token = WakeToken { core: self.core, slot, generation: slots.at(slot).generation };
        Notify { table: self.clone(), token }
    }

    /// Wakes a `Notify` of this core with `value`; a token whose `Notify` is gone is ignored.
    pub fn wake(&self, token: WakeToken, value: u64) {
        let waker = match self.slots.borrow_mut().find_mut(token.slot) {
            Some(slot) if slot.in_use && slot.generation == token.generation => {
                slot.value = Some(value);
                slot.waker.take()
            }
            _ => None,
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Wakes every `Notify` of this core, for a notification may have been lost. Those that have no
    /// value yet get `LOOK_AGAIN`.
    pub fn wake_all(&self) {
        if self.registered.get() == 0 {
            return;
        }
        let mut wakers = Vec::new();
        for slot in self.slots.borrow_mut().entries_mut().iter_mut().filter(|slot| slot.in_use) {
            slot.value.get_or_insert(LOOK_AGAIN);
            wakers.extend(slot.waker.take());
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Waits for one notification after the other; dropping it frees its slot.
pub struct Notify {
    table: Rc<WakeTable>,
    token: WakeToken,
}

impl Notify {
    /// What another thread needs to wake this `Notify`.
    #[must_use]
    pub fn token(&self) -> WakeToken {
        self.token
    }

    /// Waits for the next notification and returns its value; of several only the last is kept.
    ///
    /// Free to drop and to call again.
    pub async fn notified(&mut self) -> u64 {
        poll_fn(|cx| {
            let mut slots = self.table.slots.borrow_mut();
            let slot = slots.at_mut(self.token.slot);
            match slot.value.take() {
                Some(value) => Poll::Ready(value),
                None => {
                    slot.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        let mut slots = self.table.slots.borrow_mut();
        let slot = slots.at_mut(self.token.slot);
        *slot = Slot { generation: slot.generation.wrapping_add(1), ..Slot::default() };
        slots.free(self.token.slot);
        self.table.registered.set(self.table.registered.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::race::poll_idle;
    use std::pin::pin;

    fn taken(notify: &mut Notify) -> Option<u64> {
        match poll_idle(pin!(notify.notified())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn wakes_the_one_that_was_meant() {
        let table = WakeTable::new(3);
        let (mut a, mut b) = (table.register(), table.register());
        assert_eq!(a.token().core, 3);
        table.wake(b.token(), 7);
        assert_eq!((taken(&mut a), taken(&mut b)), (None, Some(7)));
        assert_eq!(taken(&mut b), None, "a notification is seen once");
    }

    #[test]
    fn a_late_token_does_not_wake_the_next_in_its_place() {
        let table = WakeTable::new(0);
        let old = table.register().token();
        let mut new = table.register();
        assert_eq!(new.token().slot, old.slot);
        table.wake(old, 1);
        assert_eq!(taken(&mut new), None);
    }

    #[test]
    fn a_lost_notification_is_made_good_by_a_look() {
        let table = WakeTable::new(0);
        let (mut a, mut b) = (table.register(), table.register());
        table.wake(a.token(), 5);
        table.wake_all();
        assert_eq!((taken(&mut a), taken(&mut b)), (Some(5), Some(LOOK_AGAIN)));
    }
}
