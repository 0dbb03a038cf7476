//! What a run is made of: servers with their bad days, a group, keys with their loads, the
//! proxy's cores. Scenarios write one down; a seed draws one.

use std::time::Duration;

use tokenring::testing::base::rng::Rng;
use tokenring::testing::policy::balance::Strategy;
use tokenring::testing::policy::breaker::BreakerPolicy;
use tokenring::testing::policy::retry::{RetryOn, RetryPolicy};

use crate::clock::{MS, SECOND};
use crate::servers::Mode;

/// One run.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// Everything that chance decides follows from it.
    pub(crate) seed: u64,
    /// Clients send for so long; then the run goes on until nothing is left to do.
    pub(crate) run_us: u64,
    pub(crate) cores: usize,
    /// Longest time between a core's look at the group and its entering a server: other cores
    /// pick meanwhile. 0 = none.
    pub(crate) race_us: u64,
    pub(crate) servers: Vec<ServerSetup>,
    pub(crate) strategy: Strategy,
    pub(crate) retry: RetryPolicy,
    pub(crate) breaker: BreakerPolicy,
    pub(crate) probes: Option<Probes>,
    pub(crate) first_byte_us: u64,
    pub(crate) stream_idle_us: u64,
    pub(crate) queue: Queue,
    pub(crate) keys: Vec<KeySetup>,
    /// Work of a request: before the head, and after it; each is drawn from half to one and
    /// a half of that.
    pub(crate) head_us: u64,
    pub(crate) body_us: u64,
    /// So many of a hundred clients leave, at some time within this long.
    pub(crate) leaving: u64,
    pub(crate) leaving_within_us: u64,
    /// So many of a thousand attempts meet a pooled connection that is dead.
    pub(crate) stale: u64,
}

/// One server.
#[derive(Clone, Debug)]
pub(crate) struct ServerSetup {
    pub(crate) slots: usize,
    pub(crate) weight: u32,
    /// The proxy's bound on it; 0 = none.
    pub(crate) concurrency: u32,
    /// How it behaves from when on; up before the first.
    pub(crate) phases: Vec<(u64, Mode)>,
}

/// Active health checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Probes {
    pub(crate) interval_us: u64,
    pub(crate) timeout_us: u64,
    pub(crate) fall: u32,
    pub(crate) rise: u32,
    /// Whether a server that fails requests fast answers probes and rechecks all the same.
    pub(crate) fooled: bool,
}

/// The group's wait queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) length: u32,
    pub(crate) wait_us: u64,
}

/// One client key.
#[derive(Clone, Debug)]
pub(crate) struct KeySetup {
    pub(crate) load: Load,
    /// The model that it asks for.
    pub(crate) model: u64,
    /// Every server answers 500 to its requests.
    pub(crate) poison: bool,
    pub(crate) priority: i32,
    /// Requests per minute, requests per second with this burst, exchanges at once; 0 = none.
    pub(crate) rpm: u32,
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
    pub(crate) concurrency: u32,
}

/// How a key's clients send.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// So many a second, whatever becomes of them.
    Open { per_second: f64 },
    /// So many clients, each with its next request so long after the last answer.
    Closed { clients: u32, think_us: u64 },
}

impl KeySetup {
    /// A key without limits.
    pub(crate) fn with(load: Load) -> KeySetup {
        KeySetup {
            load,
            model: 0,
            poison: false,
            priority: 0,
            rpm: 0,
            per_second: 0,
            burst: 0,
            concurrency: 0,
        }
    }
}

impl ServerSetup {
    /// A server that is always up.
    pub(crate) fn up(slots: usize) -> ServerSetup {
        ServerSetup { slots, weight: 1, concurrency: 0, phases: Vec::new() }
    }

    /// The same with phases.
    pub(crate) fn phased(slots: usize, phases: &[(u64, Mode)]) -> ServerSetup {
        ServerSetup { phases: phases.to_vec(), ..ServerSetup::up(slots) }
    }

    /// Whether it is well all the time.
    pub(crate) fn is_reliable(&self) -> bool {
        self.phases.is_empty()
    }
}

/// The causes of the manual's example.
pub(crate) fn retry_on() -> RetryOn {
    let mut on = RetryOn::NOTHING;
    let known = ["connect", "reset", "502", "503", "429"].map(|word| on.insert(word));
    assert_eq!(known, [true; 5]);
    on
}

/// A calm fleet: four servers, no faults; scenarios change what they are about.
pub(crate) fn calm(seed: u64) -> Setup {
    Setup {
        seed,
        run_us: 60 * SECOND,
        cores: 2,
        race_us: 50,
        servers: vec![ServerSetup::up(8); 4],
        strategy: Strategy::LeastConn,
        retry: RetryPolicy {
            attempts: 2,
            initial: Duration::from_millis(100),
            max: Duration::from_secs(2),
            on: retry_on(),
        },
        breaker: BreakerPolicy { cooldown: Duration::from_secs(5), ..BreakerPolicy::default() },
        probes: None,
        first_byte_us: 5 * SECOND,
        stream_idle_us: 3 * SECOND,
        queue: Queue { length: 0, wait_us: 30 * SECOND },
        keys: vec![KeySetup::with(Load::Open { per_second: 60.0 })],
        head_us: 50 * MS,
        body_us: 150 * MS,
        leaving: 0,
        leaving_within_us: 0,
        stale: 0,
    }
}

/// Draws a run: small fleets, every strategy, all kinds of bad days.
pub(crate) fn drawn(seed: u64) -> Setup {
    let mut rng = Rng::new(seed);
    let rng = &mut rng;
    let run_us = between(rng, 10, 40) * SECOND;
    let strategy = Strategy::ALL[rng.below(Strategy::ALL.len() as u64) as usize];
    let servers: Vec<ServerSetup> =
        (0..between(rng, 1, 6)).map(|_| drawn_server(rng, run_us)).collect();
    let (head_us, body_us) = (between(rng, 5, 200) * MS, between(rng, 0, 600) * MS);
    // The load is a third to one and a half of what the fleet can do.
    let slots: usize = servers.iter().map(|server| server.slots).sum();
    let capacity = slots as f64 * SECOND as f64 / (head_us + body_us) as f64;
    let rate = (capacity * (0.3 + 1.2 * rng.f64())).min(EXCHANGES / (run_us / SECOND) as f64);
    let keys = between(rng, 1, 3);
    Setup {
        seed,
        run_us,
        cores: between(rng, 1, 4) as usize,
        race_us: [0, 100, 2_000][rng.below(3) as usize],
        servers,
        strategy,
        retry: RetryPolicy {
            attempts: between(rng, 0, 4) as u32,
            initial: Duration::from_millis(between(rng, 1, 200)),
            max: Duration::from_secs(1),
            on: retry_on(),
        },
        breaker: BreakerPolicy {
            threshold: [0.2, 0.5, 1.0][rng.below(3) as usize],
            window: Duration::from_secs(between(rng, 1, 10)),
            calls_min: between(rng, 1, 20) as u32,
            consecutive: between(rng, 1, 10) as u32,
            cooldown: Duration::from_secs(between(rng, 1, 5)),
            trials: between(rng, 1, 3) as u32,
            successes: between(rng, 1, 4) as u32,
            recheck: Duration::from_millis(between(rng, 300, 2_000)),
            last_resort: rng.below(4) != 0,
        },
        probes: (rng.below(2) == 0).then(|| Probes {
            interval_us: between(rng, 500, 3_000) * MS,
            timeout_us: 400 * MS,
            fall: between(rng, 1, 3) as u32,
            rise: between(rng, 1, 3) as u32,
            fooled: rng.below(2) == 0,
        }),
        first_byte_us: between(rng, 1, 5) * SECOND,
        stream_idle_us: SECOND,
        queue: Queue {
            length: [0, 5, 50][rng.below(3) as usize],
            wait_us: between(rng, 100, 5_000) * MS,
        },
        keys: (0..keys).map(|_| drawn_key(rng, rate / keys as f64)).collect(),
        head_us,
        body_us,
        leaving: [0, 10, 40][rng.below(3) as usize],
        leaving_within_us: 2 * (head_us + body_us),
        stale: [0, 30][rng.below(2) as usize],
    }
}

/// Exchanges of a drawn run, about.
const EXCHANGES: f64 = 300.0;

fn drawn_server(rng: &mut Rng, run_us: u64) -> ServerSetup {
    let slots = between(rng, 1, 6) as usize;
    let mut phases = Vec::new();
    // Half of the servers are well all the time.
    if rng.below(2) == 0 {
        let mut at_us = rng.below(run_us / 2);
        for _ in 0..between(rng, 1, 5) {
            phases.push((at_us, drawn_mode(rng)));
            at_us += between(rng, 200, 8_000) * MS;
            phases.push((at_us, Mode::Up));
            at_us += between(rng, 200, 8_000) * MS;
        }
    }
    ServerSetup {
        slots,
        weight: between(rng, 1, 3) as u32,
        concurrency: [0, slots as u32, between(rng, 1, 8) as u32][rng.below(3) as usize],
        phases,
    }
}

fn drawn_mode(rng: &mut Rng) -> Mode {
    match rng.below(9) {
        0 => Mode::Slow(5),
        1 => Mode::Warming { factor: 8, us: 3 * SECOND },
        2 => Mode::FailFast(500),
        3 => Mode::FailFast(503),
        4 => Mode::Stalled,
        5 => Mode::Down,
        7 => Mode::BadModel(rng.below(2)),
        6 => Mode::Erratic(between(rng, 20, 80)),
        _ => Mode::Flaky(between(rng, 10, 90)),
    }
}

fn drawn_key(rng: &mut Rng, rate: f64) -> KeySetup {
    let load = if rng.below(2) == 0 {
        Load::Open { per_second: rate }
    } else {
        Load::Closed {
            clients: between(rng, 1, 8) as u32,
            think_us: 20 * MS + (SECOND as f64 / rate) as u64,
        }
    };
    let mut some = |most: u64| if rng.below(4) == 0 { between(rng, 1, most) as u32 } else { 0 };
    KeySetup {
        rpm: some(100),
        per_second: some(20),
        burst: 5,
        concurrency: some(6),
        priority: some(2) as i32,
        model: u64::from(some(2)),
        poison: some(6) == 1,
        load,
    }
}

/// A number between two, both included.
fn between(rng: &mut Rng, low: u64, high: u64) -> u64 {
    low + rng.below(high - low + 1)
}
