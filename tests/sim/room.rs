//! The waiting room of the group: the queue decider, and who hands its slots on.
//!
//! A slot that comes free is given to the next waiter in the same step in which it came free,
//! so nobody who has just arrived can take it. A server that becomes usable again
//! without a slot coming free (its cooldown is over, a probe was good) is found by a tick.

use tokenring::policy::queue::{Queue, Share, WaitId};

use crate::clock::{Event, MS};
use crate::report::Ended;
use crate::sim::{Sim, Stage};

/// Between two looks at the servers while somebody waits.
const TICK_US: u64 = 100 * MS;

/// The room, and who waits in it.
pub(crate) struct Room {
    pub(crate) queue: Queue,
    /// Exchanges by the place of their stay.
    waiters: Vec<usize>,
    ticking: bool,
}

impl Room {
    pub(crate) fn new(length: u32) -> Room {
        Room {
            queue: Queue::new(length),
            waiters: vec![usize::MAX; length as usize],
            ticking: false,
        }
    }

    /// Whose stay this is.
    pub(crate) fn exchange(&self, id: WaitId) -> usize {
        self.waiters[id.index()]
    }
}

impl Sim<'_> {
    /// Lets an exchange wait; it ends when the room is full.
    pub(crate) fn wait(&mut self, exchange: usize) {
        let (key, now_ms) = (self.exchanges[exchange].key, self.clock.now_ms());
        let share = Share::of(key as u32, self.setup.keys[key].priority);
        let wait_ms = self.setup.queue.wait_us / MS;
        let forecast_s = self.room.queue.retry_after_s(now_ms);
        let Ok(id) = self.room.queue.enqueue(share, now_ms, now_ms + wait_ms) else {
            self.checks.forecast(forecast_s);
            return self.settle(exchange, Ended::Overdue);
        };
        self.room.waiters[id.index()] = exchange;
        self.exchanges[exchange].stage = Stage::Waiting { id };
        self.exchanges[exchange].waits_since_us = self.clock.now_us();
        self.exchanges[exchange].forecast_s = forecast_s;
        self.report.waited += 1;
        let left_us = (now_ms + wait_ms) * MS - self.clock.now_us();
        self.clock.after(left_us, Event::WaitOver);
        if !std::mem::replace(&mut self.room.ticking, true) {
            self.clock.after(TICK_US, Event::RoomTick);
        }
        // A slot may have come free between the look at the group and now.
        self.serve_room();
    }

    /// Gives every free slot to the next waiter that can use it.
    pub(crate) fn serve_room(&mut self) {
        let now_ms = self.clock.now_ms();
        for member in 0..self.upstreams.len() {
            while self.upstreams[member].is_willing(now_ms) && !self.upstreams[member].is_full() {
                let (room, exchanges) = (&self.room, &self.exchanges);
                let next =
                    room.queue.find(now_ms, |id| !exchanges[room.exchange(id)].tried.has(member));
                let Some(id) = next else { break };
                let Some(lease) = self.upstreams[member].lease(now_ms) else { break };
                assert!(self.room.queue.grant(id, now_ms), "{id:?} was found and is not there");
                let exchange = self.room.exchange(id);
                self.checks.leased(&self.upstreams[member], member, &lease);
                let state = &mut self.exchanges[exchange];
                assert_eq!(state.stage, Stage::Waiting { id }, "exchange {exchange} does not wait");
                state.lease = Some(lease);
                state.stage = Stage::Granted { member };
                let (now_us, open) = (self.clock.now_us(), self.clock.now_us() < self.setup.run_us);
                let waited_us = now_us - state.waits_since_us;
                self.report.granted(state.key, open, waited_us, state.forecast_s);
                let after_us = self.rng.below(self.setup.race_us + 1);
                self.clock.after(after_us, Event::Granted { exchange });
            }
        }
    }

    /// Waits are over.
    pub(crate) fn wait_over(&mut self) {
        let now_ms = self.clock.now_ms();
        while let Some(id) = self.room.queue.expire(now_ms) {
            let exchange = self.room.exchange(id);
            assert_eq!(self.exchanges[exchange].stage, Stage::Waiting { id });
            self.settle(exchange, Ended::Overdue);
        }
    }

    /// Looks whether a server has become usable.
    pub(crate) fn room_tick(&mut self) {
        self.serve_room();
        self.room.ticking = !self.room.queue.is_empty();
        if self.room.ticking {
            self.clock.after(TICK_US, Event::RoomTick);
        }
    }
}
