//! One run: the state, and the loop that hands each event to who handles it.
//!
//! The proxy's part is in `proxy`, that of the servers in `servers`; after every event `checks`
//! looks at both.

use std::time::{Duration, Instant};

use tokenring::testing::base::clock::Moment;
use tokenring::testing::base::rng::Rng;
use tokenring::testing::policy::balance::{Member, PickState, Tried};
use tokenring::testing::policy::breaker::Sign;
use tokenring::testing::policy::budget::{MILLIS_PER_SECOND, RetryBudget};
use tokenring::testing::policy::health::HealthState;
use tokenring::testing::upstream::wait_queue;

use crate::checks::Checks;
use crate::clock::{Clock, Event, SECOND};
use crate::fleet::{Fleet, Held};
use crate::keys::Key;
use crate::report::{Ended, Report};
use crate::servers::{Call, Mode, Place, Server};
use crate::setup::{Load, Setup};

/// Everything that lives during a run.
pub(crate) struct Sim<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) clock: Clock,
    pub(crate) rng: Rng,
    pub(crate) servers: Vec<Server>,
    /// Every attempt ever made.
    pub(crate) calls: Vec<Call>,
    /// What all cores share about each server.
    pub(crate) fleet: &'a Fleet,
    probers: Vec<HealthState>,
    pub(crate) cores: Vec<Core>,
    pub(crate) keys: Vec<Key>,
    /// Every exchange ever begun.
    pub(crate) exchanges: Vec<Exchange<'a>>,
    /// Those in the queue.
    pub(crate) waiting: Vec<usize>,
    pub(crate) checks: Checks,
    pub(crate) report: Report,
    /// Where the deciders' clocks begin that want an `Instant`.
    began: Instant,
}

/// What each core has of its own.
pub(crate) struct Core {
    pub(crate) picks: PickState,
    pub(crate) budget: RetryBudget,
    /// The view of the group, filled anew for each pick.
    pub(crate) members: Vec<Member>,
}

/// One request on its way.
pub(crate) struct Exchange<'a> {
    pub(crate) key: usize,
    /// What it asks for, as the deciders know it.
    pub(crate) model: u64,
    pub(crate) core: usize,
    pub(crate) arrived_us: u64,
    /// Its place in the queue, and whether a slot was granted that it has not seen yet.
    pub(crate) place: Option<wait_queue::WaitSlot<'a, usize>>,
    pub(crate) woken: bool,
    /// When it last began to wait in the queue.
    pub(crate) waits_since_us: u64,
    /// What the queue would have told it then, had it been full.
    pub(crate) forecast_s: u32,
    pub(crate) head_us: u64,
    pub(crate) body_us: u64,
    pub(crate) stage: Stage,
    pub(crate) tried: Tried,
    /// Attempts sent so far.
    pub(crate) attempts: u32,
    pub(crate) retries: u32,
    /// How the last attempt failed, if one did.
    pub(crate) failed: Option<Ended>,
    /// Held exactly while an attempt is in flight.
    pub(crate) lease: Option<Held<'a>>,
}

impl Exchange<'_> {
    /// Waits, and a slot of this server would do.
    pub(crate) fn could(&self, server: usize, now: Moment) -> bool {
        let Stage::Waiting { deadline } = self.stage else { return false };
        !self.woken && deadline > now && !self.tried.has(server)
    }
}

/// Where an exchange stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Being picked for; `member` once it is known.
    Picking { member: usize },
    /// In flight.
    Calling { call: usize },
    /// Before a retry.
    Pausing,
    /// In the queue, until then.
    Waiting { deadline: Moment },
    /// Over.
    Settled,
}

/// Plays a run to its end and returns what was counted; panics where an invariant breaks.
pub(crate) fn play(setup: &Setup) -> Report {
    let fleet = Fleet::new(setup);
    let mut sim = Sim::new(setup, &fleet);
    sim.begin();
    while let Some(event) = sim.clock.next() {
        fleet.wakes.set(sim.clock.now());
        sim.handle(event);
        sim.wake();
        Checks::after(&mut sim, event);
    }
    Checks::at_the_end(&mut sim);
    let now_us = sim.clock.now_us();
    sim.report.busy_us = sim.servers.iter_mut().map(|server| server.busy_us(now_us)).collect();
    sim.report
}

impl<'a> Sim<'a> {
    fn new(setup: &'a Setup, fleet: &'a Fleet) -> Sim<'a> {
        let began = Instant::now();
        let share = MILLIS_PER_SECOND / setup.cores as u64;
        let probes = setup.probes.map_or((1, 1), |probes| (probes.fall, probes.rise));
        Sim {
            setup,
            clock: Clock::default(),
            rng: Rng::new(setup.seed ^ 0x5eed),
            servers: setup.servers.iter().map(|server| Server::new(server.slots)).collect(),
            calls: Vec::new(),
            fleet,
            probers: vec![HealthState::new(probes.0, probes.1); setup.servers.len()],
            cores: (0..setup.cores)
                .map(|core| Core {
                    picks: PickState::starting_at(core),
                    budget: RetryBudget::new(share, began),
                    members: Vec::new(),
                })
                .collect(),
            waiting: Vec::new(),
            keys: setup.keys.iter().map(Key::new).collect(),
            exchanges: Vec::new(),
            checks: Checks::new(setup),
            report: Report::new(setup),
            began,
        }
    }

    /// Now, for the deciders that want an `Instant`.
    pub(crate) fn instant(&self) -> Instant {
        self.began + Duration::from_micros(self.clock.now_us())
    }

    /// Whether clients still send.
    pub(crate) fn is_open(&self) -> bool {
        self.clock.now_us() < self.setup.run_us
    }

    fn begin(&mut self) {
        for (key, setup) in self.setup.keys.iter().enumerate() {
            match setup.load {
                Load::Open { .. } => self.next_arrival(key),
                Load::Closed { clients, think_us } => {
                    for _ in 0..clients {
                        let after_us = self.rng.below(think_us + 1);
                        self.clock.after(after_us, Event::Arrive { key });
                    }
                }
            }
        }
        for (server, setup) in self.setup.servers.iter().enumerate() {
            for (phase, (at_us, _)) in setup.phases.iter().enumerate() {
                self.clock.after(*at_us, Event::Phase { server, phase });
            }
            let recheck_us = self.setup.breaker.recheck.as_micros() as u64;
            self.clock.after(self.rng.below(recheck_us), Event::Recheck { server });
            if let Some(probes) = self.setup.probes {
                let after_us = self.rng.below(probes.interval_us);
                self.clock.after(after_us, Event::Probe { server });
            }
        }
    }

    /// Schedules the next request of an open load: the times between are exponential.
    pub(crate) fn next_arrival(&mut self, key: usize) {
        let Load::Open { per_second } = self.setup.keys[key].load else { return };
        let seconds = -(1.0 - self.rng.f64()).ln() / per_second;
        self.clock.after((seconds * SECOND as f64) as u64, Event::Arrive { key });
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { key } => self.arrive(key),
            Event::Enter { exchange } => self.enter(exchange),
            Event::Head { call } if self.is_running(call) => self.head(call),
            Event::End { call } if self.is_running(call) => self.end(call),
            Event::Error { call, status } if self.is_there(call) => self.error(call, status),
            Event::Refused { call } if self.is_there(call) => self.refused(call),
            Event::Cut { call } if self.is_there(call) => self.cut(call),
            Event::FirstByteOver { call } if self.is_there(call) => self.first_byte_over(call),
            Event::StreamIdleOver { call } if self.is_there(call) => self.stream_idle_over(call),
            Event::Head { .. }
            | Event::End { .. }
            | Event::Error { .. }
            | Event::Refused { .. }
            | Event::Cut { .. }
            | Event::FirstByteOver { .. }
            | Event::StreamIdleOver { .. } => {}
            Event::Resume { exchange } => self.resume(exchange),
            Event::Leave { exchange } => self.leave(exchange),
            Event::Look { exchange } => self.look(exchange),
            Event::Probe { server } => self.probe(server),
            Event::Probed { server, ok } => self.probed(server, ok),
            Event::Recheck { server } => self.recheck(server),
            Event::Rechecked { server, sign } => self.rechecked(server, sign),
            Event::Phase { server, phase } => self.turn(server, phase),
        }
    }

    /// In a slot of a server that has not swallowed it meanwhile.
    fn is_running(&self, call: usize) -> bool {
        self.calls[call].place == Place::Running
    }

    fn is_there(&self, call: usize) -> bool {
        self.calls[call].place != Place::Gone
    }

    fn turn(&mut self, server: usize, phase: usize) {
        let (_, mode) = self.setup.servers[server].phases[phase];
        let idle_us = self.setup.stream_idle_us;
        self.servers[server].turn(mode, idle_us, &mut self.calls, &mut self.clock);
    }

    fn probe(&mut self, server: usize) {
        let Some(probes) = self.setup.probes else { return };
        let (after_us, ok) = match self.servers[server].mode() {
            Mode::Down => (200, false),
            Mode::FailFast(_) => (500, probes.fooled),
            Mode::Stalled => (probes.timeout_us, false),
            Mode::Up
            | Mode::Slow(_)
            | Mode::Warming { .. }
            | Mode::Flaky(_)
            | Mode::BadModel(_)
            | Mode::Erratic(_) => (2_000, true),
        };
        self.clock.after(after_us, Event::Probed { server, ok });
    }

    /// The control thread's part; the outages of a run are short, so its pace is the first one.
    fn recheck(&mut self, server: usize) {
        let recheck_us = self.setup.breaker.recheck.as_micros() as u64;
        if self.fleet.upstreams[server].breaker.awaits_trial() {
            let fooled = self.setup.probes.is_some_and(|probes| probes.fooled);
            let (after_us, sign) = match self.servers[server].mode() {
                Mode::Down => (200, Sign::Bad),
                Mode::FailFast(_) if !fooled => (500, Sign::Bad),
                Mode::Stalled => (recheck_us, Sign::Silent),
                _ => (2_000, Sign::Good),
            };
            self.clock.after(after_us, Event::Rechecked { server, sign });
        }
        if self.is_open() || self.report.unsettled() > 0 {
            self.clock.after(recheck_us, Event::Recheck { server });
        }
    }

    fn rechecked(&mut self, server: usize, sign: Sign) {
        let state = &self.fleet.upstreams[server];
        let change = state.breaker.rechecked(sign, self.clock.now());
        if change.is_some() {
            self.checks.half_opened(server);
        }
        state.count_change(change);
    }

    fn probed(&mut self, server: usize, ok: bool) {
        let Some(probes) = self.setup.probes else { return };
        if self.probers[server].record(ok).is_some() {
            let usable = self.probers[server].is_usable();
            self.fleet.upstreams[server].set_healthy(usable);
            self.checks.probed(server, usable, self.clock.now_us());
            self.report.health_changes += 1;
        }
        // Probes go on until the last client is served, or a late retry would find nobody.
        if self.is_open() || self.report.unsettled() > 0 {
            self.clock.after(probes.interval_us, Event::Probe { server });
        }
    }
}
