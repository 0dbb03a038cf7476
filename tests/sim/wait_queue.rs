//! Waiting for a slot, by the protocol that the proxy's queue asks for.
//!
//! A place is taken, and its holder looks again when its bell rings, when a breaker may let
//! somebody in, and when its time is over. Between a bell and its holder's look some time
//! passes, in which its client may leave.

use std::time::Duration;

use tokenring::testing::upstream::wait_queue::{Accepts, Share};

use crate::clock::Event;
use crate::fleet::Held;
use crate::report::Ended;
use crate::sim::{Sim, Stage};

impl Sim<'_> {
    /// Lets an exchange wait; it ends when the queue is full.
    pub(crate) fn wait(&mut self, exchange: usize) {
        let state = &self.exchanges[exchange];
        let share = Share::of(state.key as u32, self.setup.keys[state.key].priority);
        let accepts = Accepts { tried: state.tried, only: None };
        let deadline = self.clock.now() + Duration::from_micros(self.setup.queue.wait_us);
        let forecast_s = self.fleet.queue.retry_after_s();
        let Ok(place) = self.fleet.queue.enter(share, accepts, exchange, deadline) else {
            self.checks.forecast(forecast_s);
            return self.settle(exchange, Ended::Overdue);
        };
        let state = &mut self.exchanges[exchange];
        state.place = Some(place);
        state.stage = Stage::Waiting { deadline };
        (state.waits_since_us, state.forecast_s) = (self.clock.now_us(), forecast_s);
        self.waiting.push(exchange);
        self.report.waited += 1;
        self.look(exchange);
    }

    /// Hands on who has been woken: their holders come to them a little later.
    pub(crate) fn wake(&mut self) {
        for exchange in self.fleet.wakes.take() {
            let state = &mut self.exchanges[exchange];
            assert!(!state.woken, "exchange {exchange} was granted two slots");
            state.woken = true;
            let after_us = self.rng.below(self.setup.race_us + 1);
            self.clock.after(after_us, Event::Look { exchange });
        }
    }

    /// Looks what there is for somebody who waits.
    pub(crate) fn look(&mut self, exchange: usize) {
        let Stage::Waiting { deadline } = self.exchanges[exchange].stage else { return };
        let now = self.clock.now();
        let state = &mut self.exchanges[exchange];
        let grant = state.place.as_mut().and_then(|place| place.take_grant());
        if let Some((member, lease)) = grant {
            self.leave_room(exchange, true);
            let upstream = &self.fleet.upstreams[member];
            let held = match upstream.admits(now) || self.somebody_admits(exchange) {
                true => Held::enter(upstream, lease, now),
                false => Held::enter_last_resort(upstream, lease, now),
            };
            return match held {
                Some(held) => self.attempt(exchange, member, held),
                None => self.pick(exchange),
            };
        }
        let displaced = state.place.as_ref().is_some_and(|place| place.is_displaced());
        if now >= deadline || displaced {
            self.leave_room(exchange, false);
            return self.settle(exchange, Ended::Overdue);
        }
        if let Ok((member, held)) = self.choose(exchange) {
            self.leave_room(exchange, true);
            return self.attempt(exchange, member, held);
        }
        if !self.somebody_admits(exchange)
            && let Ok((member, held)) = self.last_resort(exchange)
        {
            self.leave_room(exchange, true);
            return self.attempt(exchange, member, held);
        }
        // The next look without a bell.
        let breakers = self.fleet.upstreams.iter().filter(|state| state.healthy());
        let admission = breakers
            .filter_map(|state| state.breaker.next_admission(now))
            .filter(|at| *at > now)
            .min();
        let until = admission.map_or(deadline, |at| at.min(deadline));
        self.clock.after(until.as_micros() - self.clock.now_us(), Event::Look { exchange });
    }

    /// Gives the place up; a slot that was granted to it goes on to the next.
    pub(crate) fn leave_room(&mut self, exchange: usize, served: bool) {
        let (now_us, open) = (self.clock.now_us(), self.is_open());
        let state = &mut self.exchanges[exchange];
        state.place = None;
        state.woken = false;
        // The bell is taken down with the place.
        self.fleet.wakes.forget(exchange);
        state.stage = Stage::Pausing;
        self.waiting.retain(|other| *other != exchange);
        if served {
            let waited_us = now_us - state.waits_since_us;
            self.report.granted(state.key, open, waited_us, state.forecast_s);
        }
    }
}
