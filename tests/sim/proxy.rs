//! The proxy's part, station by station and with the deciders asked in the order in which the
//! exchange asks them: pick → lease (concurrency, breaker) → attempt → record → retry → budget.
//!
//! Between pick and lease some time may pass, in which other cores pick too: what was seen
//! need not hold any more, and the loser of a race picks again.

use std::time::Duration;

use tokenring::testing::error::RetryClass;
use tokenring::testing::policy::balance::{self, Member, Tried};
use tokenring::testing::policy::breaker::{CallResult, StateName};
use tokenring::testing::policy::retry::{Attempt, Failure, RetryDecision};

use crate::clock::Event;
use crate::fleet::Held;
use crate::report::Ended;
use crate::servers::{Call, Place};
use crate::setup::Load;
use crate::sim::{Core, Exchange, Sim, Stage};

/// Why nobody can be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Nobody {
    /// Nobody is left who would.
    Left,
    /// Somebody would, but all of its slots are taken.
    Full,
}

impl<'a> Sim<'a> {
    /// A request has come.
    pub(crate) fn arrive(&mut self, key: usize) {
        if !self.is_open() {
            return;
        }
        self.next_arrival(key);
        let vary =
            |rng: &mut tokenring::testing::base::rng::Rng, us: u64| us / 2 + rng.below(us + 1);
        let exchange = self.exchanges.len();
        let (head_us, body_us) =
            (vary(&mut self.rng, self.setup.head_us), vary(&mut self.rng, self.setup.body_us));
        self.exchanges.push(Exchange {
            key,
            model: 2 * self.setup.keys[key].model + 1,
            core: self.rng.below(self.setup.cores as u64) as usize,
            arrived_us: self.clock.now_us(),
            waits_since_us: 0,
            place: None,
            woken: false,
            forecast_s: 0,
            head_us,
            body_us,
            stage: Stage::Picking { member: 0 },
            tried: Tried::NONE,
            attempts: 0,
            retries: 0,
            failed: None,
            lease: None,
        });
        self.report.arrived(key);
        if self.rng.below(100) < self.setup.leaving {
            let after_us = self.rng.below(self.setup.leaving_within_us + 1);
            self.clock.after(after_us, Event::Leave { exchange });
        }
        if self.keys[key].admit(self.clock.now_us()) {
            self.pick(exchange);
        } else {
            self.settle(exchange, Ended::Limited);
        }
    }

    /// Chooses a server, or finds that there is none.
    pub(crate) fn pick(&mut self, exchange: usize) {
        let nobody = self.view(exchange);
        let Some(member) = self.balance(exchange) else {
            return match nobody {
                Nobody::Left => self.pick_last_resort(exchange),
                Nobody::Full => self.nobody(exchange, nobody),
            };
        };
        self.exchanges[exchange].stage = Stage::Picking { member };
        match self.setup.race_us {
            0 => self.enter(exchange),
            longest_us => {
                let after_us = self.rng.below(longest_us);
                self.clock.after(after_us, Event::Enter { exchange });
            }
        }
    }

    /// Takes the lease on the server that was picked, unless another core was faster.
    pub(crate) fn enter(&mut self, exchange: usize) {
        let Stage::Picking { member } = self.exchanges[exchange].stage else { return };
        let lost = match self.lease(member) {
            Ok(held) => return self.attempt(exchange, member, held),
            Err(lost) => lost,
        };
        let seen = self.view(exchange);
        self.cores[self.exchanges[exchange].core].members[member].usable = false;
        match self.choose_from(exchange, seen.max(lost)) {
            Ok((member, held)) => self.attempt(exchange, member, held),
            Err(Nobody::Left) => self.pick_last_resort(exchange),
            Err(nobody) => self.nobody(exchange, nobody),
        }
    }

    /// Goes where a breaker refuses, when there is nobody else.
    fn pick_last_resort(&mut self, exchange: usize) {
        match self.last_resort(exchange) {
            Ok((member, held)) => self.attempt(exchange, member, held),
            Err(nobody) => self.nobody(exchange, nobody),
        }
    }

    /// The member that failed longest ago, of those whose breakers refuse.
    pub(crate) fn last_resort(&mut self, exchange: usize) -> Result<(usize, Held<'a>), Nobody> {
        let now = self.clock.now();
        let tried = self.exchanges[exchange].tried;
        let willing =
            |at: &usize| !tried.has(*at) && self.fleet.upstreams[*at].admits_last_resort(now);
        let mut left: Vec<usize> = (0..self.fleet.upstreams.len()).filter(willing).collect();
        left.sort_by_key(|at| self.fleet.upstreams[*at].breaker.failed_at());
        let mut nobody = Nobody::Left;
        for member in left {
            let state = &self.fleet.upstreams[member];
            let Some(lease) = state.try_lease() else {
                nobody = Nobody::Full;
                continue;
            };
            if let Some(held) = Held::enter_last_resort(state, lease, now) {
                self.report.last_resorts += 1;
                return Ok((member, held));
            }
        }
        Err(nobody)
    }

    /// Whether a breaker lets in anybody that this exchange has not tried, slots aside.
    pub(crate) fn somebody_admits(&self, exchange: usize) -> bool {
        let (now, tried) = (self.clock.now(), &self.exchanges[exchange].tried);
        let mut members = self.fleet.upstreams.iter().enumerate();
        members.any(|(at, state)| !tried.has(at) && state.admits(now))
    }

    /// Picks and leases at once, as long as somebody is left.
    pub(crate) fn choose(&mut self, exchange: usize) -> Result<(usize, Held<'a>), Nobody> {
        let nobody = self.view(exchange);
        self.choose_from(exchange, nobody)
    }

    fn choose_from(
        &mut self,
        exchange: usize,
        mut nobody: Nobody,
    ) -> Result<(usize, Held<'a>), Nobody> {
        while let Some(member) = self.balance(exchange) {
            match self.lease(member) {
                Ok(held) => return Ok((member, held)),
                Err(lost) => nobody = nobody.max(lost),
            }
            self.cores[self.exchanges[exchange].core].members[member].usable = false;
        }
        Err(nobody)
    }

    /// Asks the balancer, in the view that its core has.
    fn balance(&mut self, exchange: usize) -> Option<usize> {
        let chance = self.rng.next_u64();
        let state = &self.exchanges[exchange];
        let Core { picks, members, .. } = &mut self.cores[state.core];
        balance::pick(self.setup.strategy, picks, members, &state.tried, chance)
    }

    /// A slot, and the breaker's leave.
    fn lease(&mut self, member: usize) -> Result<Held<'a>, Nobody> {
        let (state, now) = (&self.fleet.upstreams[member], self.clock.now());
        let lease = state.try_lease().ok_or(Nobody::Full)?;
        Held::enter(state, lease, now).ok_or(Nobody::Left)
    }

    /// What the balancer sees of the group; returns why nobody of it might do.
    fn view(&mut self, exchange: usize) -> Nobody {
        let now = self.clock.now();
        let Exchange { core, tried, model, .. } = &self.exchanges[exchange];
        let members = &mut self.cores[*core].members;
        members.clear();
        let mut nobody = Nobody::Left;
        for (at, (state, setup)) in self.fleet.upstreams.iter().zip(&self.setup.servers).enumerate()
        {
            let willing = state.admits(now) && !tried.has(at);
            if willing && !state.slots.has_free() {
                nobody = Nobody::Full;
            }
            let mut member = Member {
                weight: setup.weight,
                in_flight: state.in_flight(),
                usable: willing && state.slots.has_free(),
                ..Member::default()
            };
            if state.breaker.awaits_trial() {
                (member.rt_us, member.peak_us) = (1, 1);
            } else {
                let read = state.measures.read(now);
                (member.rt_us, member.success) = (read.rt_us, read.success);
                member.peak_us = read.peak_us;
            }
            members.push(member);
        }
        let avoided = |at: usize| {
            let state = &self.fleet.upstreams[at];
            let policy = state.breaker.policy();
            state.models.watches(now) && state.models.avoids(*model, &policy, now)
        };
        if (0..members.len()).any(|at| members[at].usable && !avoided(at)) {
            for (at, member) in members.iter_mut().enumerate() {
                member.usable &= !avoided(at);
            }
        }
        nobody
    }

    /// Makes one attempt.
    pub(crate) fn attempt(&mut self, exchange: usize, member: usize, held: Held<'a>) {
        self.checks.leased(&self.fleet.upstreams[member], member, &held);
        let (now, now_us) = (self.instant(), self.clock.now_us());
        self.checks.dispatched(member, now_us);
        let state = &mut self.exchanges[exchange];
        assert!(!state.tried.has(member), "exchange {exchange} went to server {member} twice");
        if state.attempts == 0 {
            self.cores[state.core].budget.record_exchange(now);
            self.report.sent += 1;
            self.checks.sent();
        }
        state.tried.insert(member);
        state.attempts += 1;
        state.lease = Some(held);
        self.report.dispatched(member, now_us, self.fleet.upstreams[member].in_flight());
        let stale = self.rng.below(1000) < self.setup.stale;
        self.send(exchange, member, stale);
    }

    /// Sends the request; `stale`: on a pooled connection that was closed while it lay idle.
    fn send(&mut self, exchange: usize, server: usize, stale: bool) {
        let (call, state) = (self.calls.len(), &mut self.exchanges[exchange]);
        state.stage = Stage::Calling { call };
        self.calls.push(Call {
            server,
            exchange,
            sent_us: self.clock.now_us(),
            head_us: state.head_us,
            body_us: state.body_us,
            model: self.setup.keys[state.key].model,
            poison: self.setup.keys[state.key].poison,
            answered: false,
            reused: stale,
            place: Place::Swallowed,
        });
        if stale {
            return self.clock.after(100, Event::Cut { call });
        }
        self.clock.after(self.setup.first_byte_us, Event::FirstByteOver { call });
        self.servers[server].submit(call, &mut self.calls, &mut self.clock, &mut self.rng);
    }

    /// A response head of a server that works.
    pub(crate) fn head(&mut self, call: usize) {
        let Call { server, sent_us, exchange, .. } = self.calls[call];
        let now_us = self.clock.now_us();
        let models = &self.fleet.upstreams[server].models;
        if models.watches(self.clock.now()) {
            models.worked(self.exchanges[exchange].model, self.clock.now());
        }
        let measures = &self.fleet.upstreams[server].measures;
        measures.record_success(Duration::from_micros(now_us - sent_us), self.clock.now());
        if self.record(call, CallResult::Success) {
            measures.recover(Duration::from_micros(now_us - sent_us), self.clock.now());
        }
        self.servers[server].answer(call, &mut self.calls, &mut self.clock);
    }

    /// The last byte.
    pub(crate) fn end(&mut self, call: usize) {
        let Call { exchange, .. } = self.calls[call];
        self.finish(call);
        self.settle(exchange, Ended::Whole);
    }

    /// A whole response with an error status.
    pub(crate) fn error(&mut self, call: usize, status: u16) {
        self.failed(call, Failure::Status(status), Ended::Status(status));
    }

    /// No connection.
    pub(crate) fn refused(&mut self, call: usize) {
        self.failed(call, Failure::Fault(RetryClass::Connect), Ended::Unreachable);
    }

    /// The connection has died.
    pub(crate) fn cut(&mut self, call: usize) {
        if self.calls[call].answered {
            return self.broken(call, CallResult::Failure);
        }
        self.failed(call, Failure::Fault(RetryClass::Reset), Ended::Unreachable);
    }

    /// No response head in time.
    pub(crate) fn first_byte_over(&mut self, call: usize) {
        if !self.calls[call].answered {
            self.failed(call, Failure::Fault(RetryClass::Timeout), Ended::TimedOut);
        }
    }

    /// A body that has stopped.
    pub(crate) fn stream_idle_over(&mut self, call: usize) {
        self.broken(call, CallResult::TimedOut);
    }

    /// The client has a part of the response already.
    fn broken(&mut self, call: usize, result: CallResult) {
        let Call { exchange, server, sent_us, .. } = self.calls[call];
        let now_us = self.clock.now_us();
        let state = &self.fleet.upstreams[server];
        state.measures.record_failure(Duration::from_micros(now_us - sent_us), self.clock.now());
        state.count_change(state.breaker.record_truncated(result, self.clock.now()));
        self.finish(call);
        self.settle(exchange, Ended::Broken);
    }

    /// An attempt has failed before the client has seen anything.
    fn failed(&mut self, call: usize, why: Failure, ended: Ended) {
        let Call { exchange, server, reused, .. } = self.calls[call];
        let at = Attempt {
            retries: self.exchanges[exchange].retries,
            reused,
            answered: false,
            resendable: true,
            response_started: false,
        };
        let verdict = self.setup.retry.next(&at, &why, self.rng.next_u64());
        if verdict == RetryDecision::FreshConnection {
            // It says nothing of the server: the same one at once, under the same lease.
            self.servers[server].let_go(call, &mut self.calls, &mut self.clock);
            return self.send(exchange, server, false);
        }
        self.blame(call, ended);
        let last_resort = self.exchanges[exchange].lease.as_ref().is_some_and(Held::is_last_resort);
        self.finish(call);
        self.exchanges[exchange].failed = Some(ended);
        let RetryDecision::AnotherMember { after } = verdict else {
            return self.settle(exchange, ended);
        };
        let another = self.another(exchange)
            || (last_resort && {
                let (now, tried) = (self.clock.now(), &self.exchanges[exchange].tried);
                let mut members = self.fleet.upstreams.iter().enumerate();
                members.any(|(at, state)| !tried.has(at) && state.admits_last_resort(now))
            });
        if !another || !self.take_budget(exchange) {
            return self.settle(exchange, ended);
        }
        self.exchanges[exchange].retries += 1;
        self.exchanges[exchange].stage = Stage::Pausing;
        self.clock.after(after.as_micros() as u64, Event::Resume { exchange });
    }

    /// Whose failure it was.
    fn blame(&mut self, call: usize, ended: Ended) {
        let Call { exchange, server, sent_us, .. } = self.calls[call];
        let now_us = self.clock.now_us();
        let state = &self.fleet.upstreams[server];
        let (result, of_model) = match ended {
            Ended::TimedOut => (CallResult::TimedOut, true),
            Ended::Status(_) => (CallResult::Failure, true),
            _ => (CallResult::Failure, false),
        };
        let model = self.exchanges[exchange].model;
        let Some(held) = &mut self.exchanges[exchange].lease else { return };
        if held.is_present() {
            if of_model && state.models.failed(model, self.clock.now()) {
                self.checks.tried(server, held);
                return held.forgive();
            }
            state
                .measures
                .record_failure(Duration::from_micros(now_us - sent_us), self.clock.now());
        }
        self.record(call, result);
    }

    /// Whether there is anybody else to try.
    fn another(&mut self, exchange: usize) -> bool {
        self.view(exchange);
        let state = &self.exchanges[exchange];
        let mut members = self.cores[state.core].members.iter().enumerate();
        members.any(|(at, member)| member.usable && !state.tried.has(at))
    }

    fn take_budget(&mut self, exchange: usize) -> bool {
        let now = self.instant();
        let taken = self.cores[self.exchanges[exchange].core].budget.take(now);
        if taken {
            self.report.retries += 1;
            self.checks.retried(self.clock.now_us());
        }
        taken
    }

    /// The pause is over.
    pub(crate) fn resume(&mut self, exchange: usize) {
        if self.exchanges[exchange].stage == Stage::Pausing {
            self.pick(exchange);
        }
    }

    /// Nobody can be picked: wait, when somebody only has no slot free.
    fn nobody(&mut self, exchange: usize, nobody: Nobody) {
        if nobody == Nobody::Full && self.setup.queue.length > 0 {
            return self.wait(exchange);
        }
        let ended = self.exchanges[exchange].failed.unwrap_or(Ended::Unavailable);
        self.settle(exchange, ended);
    }

    /// The client is gone.
    pub(crate) fn leave(&mut self, exchange: usize) {
        match self.exchanges[exchange].stage {
            Stage::Settled => return,
            Stage::Calling { call } => self.finish(call),
            Stage::Waiting { .. } => self.leave_room(exchange, false),
            Stage::Picking { .. } | Stage::Pausing => {}
        }
        self.settle(exchange, Ended::Left);
    }

    /// The breaker hears of an attempt; tells whether that has closed it.
    fn record(&mut self, call: usize, result: CallResult) -> bool {
        let Call { server, exchange, .. } = self.calls[call];
        let now = self.clock.now();
        let Some(held) = &mut self.exchanges[exchange].lease else { return false };
        self.checks.tried(server, held);
        let before = self.fleet.upstreams[server].breaker.state().name();
        let closed = held.record(result, now);
        let after = self.fleet.upstreams[server].breaker.state().name();
        if (before, after) == (StateName::Open, StateName::HalfOpen) {
            self.checks.half_opened(server);
        }
        closed
    }

    /// An attempt is over; of one that was not recorded the breaker hears no verdict.
    fn finish(&mut self, call: usize) {
        let Call { server, exchange, .. } = self.calls[call];
        self.servers[server].let_go(call, &mut self.calls, &mut self.clock);
        self.release(exchange, server);
    }

    /// Gives the lease back, and the slot to the next waiter.
    fn release(&mut self, exchange: usize, server: usize) {
        let Some(lease) = self.exchanges[exchange].lease.take() else {
            panic!("exchange {exchange} had no lease on server {server}");
        };
        self.checks.tried(server, &lease);
        self.checks.released(server);
        drop(lease);
    }

    /// The exchange is over.
    pub(crate) fn settle(&mut self, exchange: usize, ended: Ended) {
        let now_us = self.clock.now_us();
        let state = &mut self.exchanges[exchange];
        self.checks.settled(exchange, state, self.setup, now_us);
        state.stage = Stage::Settled;
        self.report.ended(state.key, ended, now_us - state.arrived_us);
        if ended != Ended::Limited {
            self.keys[state.key].leave();
        }
        if let Load::Closed { think_us, .. } = self.setup.keys[state.key].load {
            let key = state.key;
            self.clock.after(think_us, Event::Arrive { key });
        }
    }
}
