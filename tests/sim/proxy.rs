//! The proxy's part, station by station and with the deciders asked in the order in which the
//! exchange asks them: pick → lease (concurrency, breaker) → attempt → record → retry → budget.
//!
//! Between pick and lease some time may pass, in which other cores pick too: what was seen
//! need not hold any more, and the loser of a race picks again.

use tokenring::error::RetryClass;
use tokenring::policy::balance::{self, Member, Tried};
use tokenring::policy::breaker::CallResult;
use tokenring::policy::retry::{Attempt, Failure, Verdict};

use crate::clock::Event;
use crate::report::Ended;
use crate::servers::{Call, Place};
use crate::setup::Load;
use crate::sim::{Exchange, Sim, Stage};

impl Sim<'_> {
    /// A request has come.
    pub(crate) fn arrive(&mut self, key: usize) {
        if !self.is_open() {
            return;
        }
        self.next_arrival(key);
        let vary = |rng: &mut tokenring::base::rng::Rng, us: u64| us / 2 + rng.below(us + 1);
        let exchange = self.exchanges.len();
        let (head_us, body_us) =
            (vary(&mut self.rng, self.setup.head_us), vary(&mut self.rng, self.setup.body_us));
        self.exchanges.push(Exchange {
            key,
            core: self.rng.below(self.setup.cores as u64) as usize,
            arrived_us: self.clock.now_us(),
            waits_since_us: 0,
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
            self.pick(exchange, None);
        } else {
            self.settle(exchange, Ended::Limited);
        }
    }

    /// Chooses a server, or finds that there is none; not `lost`, where another core was faster.
    fn pick(&mut self, exchange: usize, lost: Option<usize>) {
        self.view(exchange);
        let chance = self.rng.next_u64();
        let state = &mut self.exchanges[exchange];
        let core = &mut self.cores[state.core];
        if let Some(lost) = lost {
            core.members[lost].usable = false;
        }
        let strategy = self.setup.strategy;
        let picked = balance::pick(strategy, &mut core.picks, &core.members, &state.tried, chance);
        let Some(member) = picked else { return self.nobody(exchange) };
        state.stage = Stage::Picking { member };
        match self.setup.race_us {
            0 => self.enter(exchange),
            longest_us => {
                let after_us = self.rng.below(longest_us);
                self.clock.after(after_us, Event::Enter { exchange });
            }
        }
    }

    /// What the balancer sees of the group.
    fn view(&mut self, exchange: usize) {
        let (now_us, now_ms) = (self.clock.now_us(), self.clock.now_ms());
        let members = &mut self.cores[self.exchanges[exchange].core].members;
        members.clear();
        for (upstream, setup) in self.upstreams.iter().zip(&self.setup.servers) {
            let read = upstream.measures.read(now_us);
            members.push(Member {
                weight: setup.weight,
                in_flight: upstream.in_flight(),
                rt_us: read.rt_us,
                success: read.success,
                peak_us: read.peak_us,
                usable: upstream.is_willing(now_ms) && !upstream.is_full(),
            });
        }
    }

    /// Takes the lease on the server that was picked and sends the request there.
    pub(crate) fn enter(&mut self, exchange: usize) {
        let Stage::Picking { member } = self.exchanges[exchange].stage else { return };
        let Some(lease) = self.upstreams[member].lease(self.clock.now_ms()) else {
            return self.pick(exchange, Some(member));
        };
        self.checks.leased(&self.upstreams[member], member, &lease);
        self.exchanges[exchange].lease = Some(lease);
        self.attempt(exchange, member);
    }

    /// A waiter comes to use the slot that it was given.
    pub(crate) fn granted(&mut self, exchange: usize) {
        if let Stage::Granted { member } = self.exchanges[exchange].stage {
            self.attempt(exchange, member);
        }
    }

    /// Makes one attempt, under the lease that the exchange holds.
    fn attempt(&mut self, exchange: usize, member: usize) {
        let now = self.instant();
        let state = &mut self.exchanges[exchange];
        assert!(!state.tried.has(member), "exchange {exchange} went to server {member} twice");
        if state.attempts == 0 {
            self.cores[state.core].budget.record_exchange(now);
            self.report.sent += 1;
            self.checks.sent(self.clock.now_us());
        }
        state.tried.insert(member);
        state.attempts += 1;
        self.report.dispatched(member, self.clock.now_us(), self.upstreams[member].in_flight());
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
        let Call { server, sent_us, .. } = self.calls[call];
        let now_us = self.clock.now_us();
        self.upstreams[server].measures.record_success(now_us - sent_us, now_us);
        self.record(call, CallResult::Success);
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
            return self.broken(call);
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
        self.broken(call);
    }

    /// The client has a part of the response already.
    fn broken(&mut self, call: usize) {
        let Call { exchange, server, sent_us, .. } = self.calls[call];
        let now_us = self.clock.now_us();
        self.upstreams[server].measures.record_failure(now_us - sent_us, now_us);
        self.upstreams[server].record_cut(self.clock.now_ms());
        self.finish(call);
        self.settle(exchange, Ended::Broken);
    }

    /// An attempt has failed before the client has seen anything.
    fn failed(&mut self, call: usize, why: Failure, ended: Ended) {
        let Call { exchange, server, sent_us, reused, .. } = self.calls[call];
        let at = Attempt {
            retries: self.exchanges[exchange].retries,
            reused,
            answered: false,
            resendable: true,
            response_started: false,
        };
        let verdict = self.setup.retry.next(&at, &why, self.rng.next_u64());
        if verdict == Verdict::FreshConnection {
            // It says nothing of the server: the same one at once, under the same lease.
            self.servers[server].let_go(call, &mut self.calls, &mut self.clock);
            return self.send(exchange, server, false);
        }
        let now_us = self.clock.now_us();
        self.upstreams[server].measures.record_failure(now_us - sent_us, now_us);
        self.record(call, CallResult::Failure);
        self.finish(call);
        self.exchanges[exchange].failed = Some(ended);
        let Verdict::AnotherMember { after } = verdict else {
            return self.settle(exchange, ended);
        };
        if !self.another(exchange) || !self.take_budget(exchange) {
            return self.settle(exchange, ended);
        }
        self.exchanges[exchange].retries += 1;
        self.exchanges[exchange].stage = Stage::Pausing;
        self.clock.after(after.as_micros() as u64, Event::Resume { exchange });
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
            self.pick(exchange, None);
        }
    }

    /// Nobody can be picked: wait, when somebody only has no slot free.
    fn nobody(&mut self, exchange: usize) {
        let (now_ms, state) = (self.clock.now_ms(), &self.exchanges[exchange]);
        let mut members = self.upstreams.iter().enumerate();
        let busy =
            members.any(|(at, u)| u.is_willing(now_ms) && u.is_full() && !state.tried.has(at));
        if busy && self.setup.queue.length > 0 {
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
            Stage::Waiting { id } => {
                assert!(self.room.queue.cancel(id, self.clock.now_ms()), "it waited");
            }
            Stage::Granted { member } => self.release(exchange, member),
            Stage::Picking { .. } | Stage::Pausing => {}
        }
        self.settle(exchange, Ended::Left);
    }

    /// The breaker hears of an attempt.
    fn record(&mut self, call: usize, result: CallResult) {
        let Call { server, exchange, .. } = self.calls[call];
        let now_ms = self.clock.now_ms();
        let Some(lease) = &mut self.exchanges[exchange].lease else { return };
        self.checks.tried(server, lease);
        lease.record(result, now_ms);
        self.serve_room();
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
        self.serve_room();
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
