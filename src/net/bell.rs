//! Waking an exchange that waits for another core or for the control thread.
//!
//! An exchange hangs up a bell, tells somebody its ticket and waits; whoever holds the ticket
//! rings from any thread, by the mailbox of the bell's core. A ticket outlives its bell: one
//! that comes too late rings nothing, because the slot's generation has moved on.
//!
//! A ring is a wake-up and a number, not the truth: the mailbox of a core may be full, and a
//! bell may be taken down while its ring is on the way. What was promised to the waiter stays
//! where it was promised (`upstream::room`, the control thread's table), and a core whose
//! mailbox was full rings all its bells with `LOOK` at the next tick.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The value of a ring that says nothing but "look again".
pub const LOOK: u64 = u64::MAX;

/// Names one bell, on whatever core it hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The core.
    pub core: u16,
    /// The place among the core's bells.
    pub slot: u32,
    /// Which of the bells that have hung there.
    pub generation: u32,
}

/// The bells of one core.
pub struct Bells {
    core: u16,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    hanging: Cell<usize>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    hangs: bool,
    rung: Option<u64>,
    waker: Option<Waker>,
}

impl Bells {
    /// Makes the bells of a core; none hangs yet.
    #[must_use]
    pub fn new(core: usize) -> Rc<Self> {
        Rc::new(Self {
            core: u16::try_from(core).unwrap_or(u16::MAX),
            slots: RefCell::default(),
            free: RefCell::default(),
            hanging: Cell::new(0),
        })
    }

    /// Hangs one up.
    #[must_use]
    pub fn hang(self: &Rc<Self>) -> Bell {
        let mut slots = self.slots.borrow_mut();
        let slot = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot::default());
            // As many as there are exchanges in flight: memory ends long before the number does.
            u32::try_from(slots.len() - 1).unwrap_or(u32::MAX)
        });
        let place = &mut slots[slot as usize];
        place.hangs = true;
        self.hanging.set(self.hanging.get() + 1);
        let ticket = Ticket { core: self.core, slot, generation: place.generation };
        Bell { bells: self.clone(), ticket }
    }

    /// Rings one of this core's; a ticket whose bell is gone is ignored.
    pub fn ring(&self, ticket: Ticket, value: u64) {
        let waker = match self.slots.borrow_mut().get_mut(ticket.slot as usize) {
            Some(slot) if slot.hangs && slot.generation == ticket.generation => {
                slot.rung = Some(value);
                slot.waker.take()
            }
            _ => None,
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Rings all that have not been rung: a ring may have been lost.
    pub fn ring_all(&self) {
        if self.hanging.get() == 0 {
            return;
        }
        let mut wakers = Vec::new();
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.hangs) {
            slot.rung.get_or_insert(LOOK);
            wakers.extend(slot.waker.take());
        }
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// One bell; dropping it takes it down.
pub struct Bell {
    bells: Rc<Bells>,
    ticket: Ticket,
}

impl Bell {
    /// What to give to whoever shall ring.
    #[must_use]
    pub fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Waits for the next ring and returns its value; of several rings the last counts.
    ///
    /// Free to drop and to call again.
    pub async fn rung(&mut self) -> u64 {
        poll_fn(|cx| {
            let mut slots = self.bells.slots.borrow_mut();
            let slot = &mut slots[self.ticket.slot as usize];
            match slot.rung.take() {
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

impl Drop for Bell {
    fn drop(&mut self) {
        let mut slots = self.bells.slots.borrow_mut();
        let slot = &mut slots[self.ticket.slot as usize];
        *slot = Slot { generation: slot.generation.wrapping_add(1), ..Slot::default() };
        self.bells.free.borrow_mut().push(self.ticket.slot);
        self.bells.hanging.set(self.bells.hanging.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::race::poll_idle;
    use std::pin::pin;

    fn rung(bell: &mut Bell) -> Option<u64> {
        match poll_idle(pin!(bell.rung())) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        }
    }

    #[test]
    fn rings_the_one_that_was_meant() {
        let bells = Bells::new(3);
        let (mut a, mut b) = (bells.hang(), bells.hang());
        assert_eq!(a.ticket().core, 3);
        bells.ring(b.ticket(), 7);
        assert_eq!((rung(&mut a), rung(&mut b)), (None, Some(7)));
        assert_eq!(rung(&mut b), None, "a ring is heard once");
    }

    #[test]
    fn a_late_ring_does_not_wake_the_next_in_its_place() {
        let bells = Bells::new(0);
        let old = bells.hang().ticket();
        let mut new = bells.hang();
        assert_eq!(new.ticket().slot, old.slot);
        bells.ring(old, 1);
        assert_eq!(rung(&mut new), None);
    }

    #[test]
    fn a_lost_ring_is_made_good_by_a_look() {
        let bells = Bells::new(0);
        let (mut a, mut b) = (bells.hang(), bells.hang());
        bells.ring(a.ticket(), 5);
        bells.ring_all();
        assert_eq!((rung(&mut a), rung(&mut b)), (Some(5), Some(LOOK)));
    }
}
