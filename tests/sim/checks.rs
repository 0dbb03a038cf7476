//! What must hold at every step of every run.
//!
//! The checks keep books of their own and compare: who holds a lease on which server, who
//! holds a trial of which half-open period, who has ended. A decider that loses count
//! differs from the books at the next event.

use tokenring::policy::balance::Strategy;
use tokenring::policy::breaker::State;
use tokenring::policy::queue::RETRY_AFTER_S_MAX;

use crate::clock::{Event, SECOND};
use crate::keys::Key;
use crate::report::Report;
use crate::setup::Setup;
use crate::sim::{Exchange, Sim, Stage};
use crate::upstream::{Lease, Upstream};

/// The books.
pub(crate) struct Checks {
    /// Leases held, per server.
    leases: Vec<u32>,
    /// Epochs of the trials held, per server.
    trials: Vec<Vec<u32>>,
    /// Epoch of the latest trial, per server.
    latest: Vec<u32>,
    trials_max: u32,
    /// What the retry budgets of all cores together can hold at most, and when that was so.
    credit: (f64, u64),
    credit_max: f64,
    concurrency: Vec<u32>,
}

impl Checks {
    pub(crate) fn new(setup: &Setup) -> Checks {
        let servers = setup.servers.len();
        Checks {
            leases: vec![0; servers],
            trials: vec![Vec::new(); servers],
            latest: vec![0; servers],
            trials_max: setup.breaker.trials,
            // Ten seconds of the clock, and in each core's bucket fifty exchanges.
            credit: (30.0, 0),
            credit_max: 30.0 + 10.0 * setup.cores as f64,
            concurrency: setup.servers.iter().map(|server| server.concurrency).collect(),
        }
    }

    /// A lease has been given out.
    pub(crate) fn leased(&mut self, upstream: &Upstream, server: usize, lease: &Lease) {
        self.leases[server] += 1;
        let bound = self.concurrency[server];
        assert!(
            bound == 0 || self.leases[server] <= bound,
            "server {server}: {} at once, its concurrency is {bound}",
            self.leases[server]
        );
        let state = upstream.breaker.state();
        match lease.trial() {
            None => assert!(
                matches!(state, State::Closed { .. }),
                "server {server}: a call passed while its breaker was {state:?}"
            ),
            Some(epoch) => {
                self.latest[server] = epoch;
                self.trials[server].push(epoch);
                let held = self.trials_held(server);
                assert!(
                    held <= self.trials_max,
                    "server {server}: {held} trials at once, {} allowed",
                    self.trials_max
                );
            }
        }
    }

    /// A lease has ended.
    pub(crate) fn released(&mut self, server: usize) {
        self.leases[server] -= 1;
    }

    /// A lease's trial, if it has one, is about to end.
    pub(crate) fn tried(&mut self, server: usize, lease: &Lease) {
        if let Some(epoch) = lease.trial() {
            let at = self.trials[server].iter().position(|held| *held == epoch);
            self.trials[server].swap_remove(at.expect("a trial that ends has begun"));
        }
    }

    /// An exchange has been sent for the first time.
    pub(crate) fn sent(&mut self, now_us: u64) {
        self.earn(0.2, now_us);
    }

    /// A retry has been taken out of the budget.
    pub(crate) fn retried(&mut self, now_us: u64) {
        self.earn(0.0, now_us);
        self.credit.0 -= 1.0;
        assert!(self.credit.0 > -1e-3, "a retry more than the budget");
    }

    fn earn(&mut self, more: f64, now_us: u64) {
        let (credit, since_us) = self.credit;
        let clock = 3.0 * (now_us - since_us) as f64 / SECOND as f64;
        self.credit = ((credit + clock + more).min(self.credit_max), now_us);
    }

    /// An exchange is about to end.
    pub(crate) fn settled(&self, exchange: usize, state: &Exchange, setup: &Setup, now_us: u64) {
        assert!(state.stage != Stage::Settled, "exchange {exchange} settled twice");
        assert!(state.lease.is_none(), "exchange {exchange} settled with its lease");
        assert!(
            state.retries <= setup.retry.attempts,
            "exchange {exchange}: {} retries",
            state.retries
        );
        let took_us = now_us - state.arrived_us;
        let pause_us = setup.retry.max.as_micros() as u64;
        let tries = u64::from(setup.retry.attempts) + 1;
        // Nobody waits for ever: every stage has its bound, and this is their sum.
        let most_us = tries * (setup.first_byte_us + pause_us + setup.queue.wait_us + SECOND)
            + setup.stream_idle_us
            + SLOWEST * 3 * setup.body_us / 2;
        assert!(took_us <= most_us, "exchange {exchange} took {took_us} us, at most {most_us}");
    }

    /// What holds after every event.
    pub(crate) fn after(sim: &mut Sim<'_>, event: Event) {
        let (checks, now_us) = (&sim.checks, sim.clock.now_us());
        let over_us = sim.setup.run_us + LONGEST_US;
        assert!(now_us < over_us, "it never ends: {now_us} us, after {event:?}");
        for (server, upstream) in sim.upstreams.iter().enumerate() {
            let (counted, held) = (upstream.in_flight(), checks.leases[server]);
            assert_eq!(counted, held, "server {server}: in flight, after {event:?}");
            if let State::HalfOpen { trials_out, .. } = upstream.breaker.state() {
                let held = checks.trials_held(server);
                assert_eq!(trials_out, held, "server {server}: trials out, after {event:?}");
            }
        }
        sim.keys.iter().for_each(Key::check);
        Checks::no_slot_is_idle_while_somebody_waits(sim, event);
    }

    fn no_slot_is_idle_while_somebody_waits(sim: &Sim<'_>, event: Event) {
        let (room, now_ms) = (&sim.room, sim.clock.now_ms());
        assert!(room.queue.len() <= sim.setup.queue.length);
        if room.queue.is_empty() {
            return;
        }
        for (server, upstream) in sim.upstreams.iter().enumerate() {
            // What time alone has made usable is found by the next tick.
            let closed = matches!(upstream.breaker.state(), State::Closed { .. });
            if closed && upstream.healthy.get() && !upstream.is_full() {
                let could = room
                    .queue
                    .find(now_ms, |id| !sim.exchanges[room.exchange(id)].tried.has(server));
                assert_eq!(could, None, "server {server} has a slot free, after {event:?}");
            }
        }
    }

    /// A newcomer that finds the room full is told when to come back.
    pub(crate) fn forecast(&self, seconds: u32) {
        assert!((1..=RETRY_AFTER_S_MAX).contains(&seconds), "Retry-After: {seconds}");
    }

    /// Who takes turns gives every server that is well its turn.
    fn nobody_starved(setup: &Setup, report: &Report) {
        let turns = [Strategy::RoundRobin, Strategy::WeightedRoundRobin];
        if !turns.contains(&setup.strategy) || report.sent < 50 {
            return;
        }
        for (server, setup) in setup.servers.iter().enumerate().filter(|(_, s)| s.is_reliable()) {
            let attempts = report.attempts(server, 0..usize::MAX);
            assert!(attempts > 0, "server {server} got nothing: {setup:?}");
        }
    }

    /// What holds when nothing is left to do.
    pub(crate) fn at_the_end(sim: &mut Sim<'_>) {
        let left = sim.report.unsettled();
        assert_eq!(left, 0, "exchanges that never ended");
        for (exchange, state) in sim.exchanges.iter().enumerate() {
            assert_eq!(state.stage, Stage::Settled, "exchange {exchange}");
        }
        for (server, upstream) in sim.upstreams.iter().enumerate() {
            assert_eq!(upstream.in_flight(), 0, "server {server}: in flight in the end");
            assert_eq!(sim.servers[server].held(), 0, "server {server}: calls in the end");
            if let State::HalfOpen { trials_out, .. } = upstream.breaker.state() {
                assert_eq!(trials_out, 0, "server {server}: trials in the end");
            }
        }
        assert!(sim.room.queue.is_empty(), "somebody waits in the end");
        sim.keys.iter().for_each(Key::check_the_end);
        Checks::nobody_starved(sim.setup, &sim.report);
    }

    /// Trials of the present half-open period; older ones may still be running.
    fn trials_held(&self, server: usize) -> u32 {
        let latest = self.latest[server];
        self.trials[server].iter().filter(|epoch| **epoch == latest).count() as u32
    }
}

/// What follows after the last client has come ends within this.
const LONGEST_US: u64 = 600 * SECOND;
/// The slowest mode that a server has, so many times slower than well.
const SLOWEST: u64 = 8;
