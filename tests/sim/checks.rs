//! What must hold at every step of every run.
//!
//! The checks keep books of their own and compare: who holds a lease on which server, who
//! holds a trial of which half-open period, who has ended. A decider that loses count
//! differs from the books at the next event.

use tokenring::testing::policy::balance::Strategy;
use tokenring::testing::policy::breaker::State;
use tokenring::testing::policy::queue::RETRY_AFTER_S_MAX;
use tokenring::testing::upstream::state::UpstreamState;

use crate::clock::{Event, SECOND};
use crate::fleet::Held;
use crate::keys::Key;
use crate::report::Report;
use crate::setup::Setup;
use crate::sim::{Exchange, Sim, Stage};

/// The books.
pub(crate) struct Checks {
    /// Leases held, per server.
    leases: Vec<u32>,
    /// Epochs of the trials held, per server.
    trials: Vec<Vec<u32>>,
    /// Epoch of the latest trial, per server.
    latest: Vec<u32>,
    trials_max: u32,
    /// What exchanges have put into the retry budgets and retries have taken out.
    credit: f64,
    concurrency: Vec<u32>,
    /// Since when probes have said that a server is down.
    down_since_us: Vec<Option<u64>>,
    race_us: u64,
}

impl Checks {
    pub(crate) fn new(setup: &Setup) -> Checks {
        let servers = setup.servers.len();
        Checks {
            leases: vec![0; servers],
            trials: vec![Vec::new(); servers],
            latest: vec![0; servers],
            trials_max: setup.breaker.trials + TRIALS_MORE,
            credit: 0.0,
            down_since_us: vec![None; servers],
            race_us: setup.race_us,
            concurrency: setup.servers.iter().map(|server| server.concurrency).collect(),
        }
    }

    /// A prober has changed its mind.
    pub(crate) fn probed(&mut self, server: usize, usable: bool, now_us: u64) {
        self.down_since_us[server] = (!usable).then_some(now_us);
    }

    /// An attempt is sent.
    pub(crate) fn dispatched(&self, server: usize, now_us: u64) {
        if let Some(since_us) = self.down_since_us[server] {
            // Whoever had picked it before may still come.
            assert!(now_us - since_us <= self.race_us, "server {server} is down and gets a call");
        }
    }

    /// A lease has been given out.
    pub(crate) fn leased(&mut self, upstream: &UpstreamState, server: usize, lease: &Held<'_>) {
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
                matches!(state, State::Closed { .. }) || lease.is_last_resort(),
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

    /// A breaker has half-opened without a trial.
    pub(crate) fn half_opened(&mut self, server: usize) {
        self.latest[server] = u32::MAX;
    }

    /// A lease has ended.
    pub(crate) fn released(&mut self, server: usize) {
        self.leases[server] -= 1;
    }

    /// A lease's trial, if it has one, is about to end.
    pub(crate) fn tried(&mut self, server: usize, lease: &Held<'_>) {
        if let Some(epoch) = lease.trial() {
            let at = self.trials[server].iter().position(|held| *held == epoch);
            self.trials[server].swap_remove(at.expect("a trial that ends has begun"));
        }
    }

    /// An exchange has been sent for the first time.
    pub(crate) fn sent(&mut self) {
        self.credit += 0.2;
    }

    /// A retry has been taken out of the budget.
    pub(crate) fn retried(&mut self, now_us: u64) {
        self.credit -= 1.0;
        // Three a second from the clock, and ten seconds of that to begin with.
        let clock = 3.0 * (10 + now_us / SECOND) as f64;
        assert!(self.credit + clock > -1e-3, "a retry more than the budget");
    }

    /// An exchange is about to end.
    pub(crate) fn settled(
        &self,
        exchange: usize,
        state: &Exchange<'_>,
        setup: &Setup,
        now_us: u64,
    ) {
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
        let mut granted = 0;
        for (server, upstream) in sim.fleet.upstreams.iter().enumerate() {
            let (counted, held) = (upstream.in_flight(), checks.leases[server]);
            assert!(counted >= held, "server {server}: {counted} in flight, after {event:?}");
            let bound = checks.concurrency[server];
            assert!(bound == 0 || counted <= bound, "server {server}: {counted} of {bound}");
            granted += counted - held;
            if let State::HalfOpen { trials_out, .. } = upstream.breaker.state() {
                let held = checks.trials_held(server);
                assert_eq!(trials_out, held, "server {server}: trials out, after {event:?}");
            }
        }
        // What is in flight and has no lease was granted to somebody who has not looked yet.
        // Or who was woken has lost the place to a newcomer.
        let is_granted = |exchange: &usize| {
            let state = &sim.exchanges[*exchange];
            state.woken && state.place.as_ref().is_none_or(|place| !place.is_displaced())
        };
        let woken = sim.waiting.iter().filter(|at| is_granted(at)).count() as u32;
        assert_eq!(granted, woken, "slots granted, after {event:?}");
        sim.keys.iter().for_each(Key::check);
        Checks::no_slot_is_idle_while_somebody_waits(sim, event);
    }

    fn no_slot_is_idle_while_somebody_waits(sim: &Sim<'_>, event: Event) {
        assert!(sim.fleet.queue.len() <= sim.setup.queue.length);
        if sim.waiting.is_empty() {
            return;
        }
        let now = sim.clock.now();
        for (server, upstream) in sim.fleet.upstreams.iter().enumerate() {
            // What time alone has made usable is found by those who look for it.
            let closed = matches!(upstream.breaker.state(), State::Closed { .. });
            if closed && upstream.healthy() && upstream.slots.has_free() {
                let could = sim.waiting.iter().find(|at| sim.exchanges[**at].could(server, now));
                assert_eq!(could, None, "server {server} has a slot free, after {event:?}");
            }
        }
    }

    /// A newcomer that finds the queue full is told when to come back.
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
        for (server, upstream) in sim.fleet.upstreams.iter().enumerate() {
            assert_eq!(upstream.in_flight(), 0, "server {server}: in flight in the end");
            assert_eq!(sim.servers[server].held(), 0, "server {server}: calls in the end");
            if let State::HalfOpen { trials_out, .. } = upstream.breaker.state() {
                assert_eq!(trials_out, 0, "server {server}: trials in the end");
            }
        }
        assert!(sim.fleet.queue.is_empty() && sim.waiting.is_empty(), "somebody waits in the end");
        sim.keys.iter().for_each(Key::check_the_end);
        Checks::nobody_starved(sim.setup, &sim.report);
    }

    /// Trials of the present half-open period; older ones may still be running.
    fn trials_held(&self, server: usize) -> u32 {
        let latest = self.latest[server];
        self.trials[server].iter().filter(|epoch| **epoch == latest).count() as u32
    }
}

/// Trials that may be let through beyond the configured ones in one half-open period.
const TRIALS_MORE: u32 = 8;
/// What follows after the last client has come ends within this.
const LONGEST_US: u64 = 600 * SECOND;
/// The slowest mode that a server has, so many times slower than well.
const SLOWEST: u64 = 8;
