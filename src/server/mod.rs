//! Boot order: bind every listener, start a worker per core, wait until each has its driver.
//!
//! Binding comes first and all at once, so that a port that is taken ends the process before
//! anything serves. What was obtained (cores, driver, addresses) is kept for the start-up block
//! (`banner`). `serve` and `demo` are the commands that run it.

pub mod access_log;
pub mod banner;
pub mod demo;
pub mod listeners;
pub mod live;
pub mod log;
pub mod log_sink;
pub mod serve;
pub mod systemd;

use std::collections::BTreeMap;
use std::hash::RandomState;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use self::access_log::AccessLog;
use self::listeners::{Applied, Listeners};
use crate::base::listener_id::ListenerId;
use crate::config::{Config, Cores, Io};
use crate::control::{self, Begun, Control, ServerHooks};
use crate::net::acknowledge::Acknowledged;
use crate::net::dial::Address;
use crate::net::mailbox::Message;
use crate::net::rt::{Driver, Wanted};
use crate::net::sys;
use crate::net::tls::Store;
use crate::net::unsent::UnsentTotal;
use crate::policy::limit::tally::Tally;
use crate::policy::limit::token_size::TokenSizes;
use crate::proxy::bounds::BoundsWanted;
use crate::proxy::compile::compile;
use crate::proxy::core::{Mailboxes, Notifier, Padded, PlanSlot, Shared};
use crate::proxy::plan::Plan;
use crate::proxy::worker::Worker;
use crate::telemetry::access_record::write_record;
use crate::telemetry::counters::Counters;
use crate::telemetry::prometheus::Live;
use crate::telemetry::ring::{RecordReader, RecordWriter, ring};
use crate::upstream::held::HeldBudget;
use crate::upstream::registry::Registry;
use crate::upstream::wait_queue::Wake as _;

/// Starts what a config describes.
///
/// Shape: also returns the config with the models that were discovered, and warnings: upstreams
/// that could not be resolved or asked.
/// Errors: a message for the operator that names the thing and what to do.
pub fn start(config: &Config) -> Result<Started, String> {
    start_with(config, control::Options::default())
}

/// As `start`, with a control thread that differs from the usual.
pub fn start_with(config: &Config, differs: control::Options) -> Result<Started, String> {
    let has_tls = config.listeners.iter().any(|listener| listener.tls.is_some());
    let state_dir = config.process.state_dir.as_deref().filter(|_| has_tls);
    let (tls, amiss) = Store::open(state_dir);
    let tls = Arc::new(tls);
    let options = Options::of(config)?;
    let mailboxes =
        Mailboxes::open(options.cores.len().max(1)).map_err(|error| error.to_string())?;
    let registry = Registry::new(mailboxes.notifier.clone());
    let say = differs.say.clone();
    let (mut control, begun) = Control::begin(config, registry, tls.clone(), differs)?;
    let Begun { config, carried, warnings } = begun;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut warnings = warnings;
    warnings.extend(amiss);
    let plan_of = move |config: &Config, carried| compile(config, carried, &tls, unix.as_secs());
    let plan = plan_of(&config, carried)?;
    let mut server = Server::start(plan, options, mailboxes).map_err(|error| error.to_string())?;
    let told = say.clone();
    let rings = server.rings.get_mut().unwrap_or_else(PoisonError::into_inner);
    let rings = std::mem::take(rings);
    let access_log = AccessLog::start(&config.log.access, rings, write_record, say)?;
    server.access_log = Some(access_log.clone());
    let lost = access_log.clone();
    let shared = || server.shared.clone();
    let (counted, queued, draining) = (shared(), shared(), shared());
    let listeners = server.listeners.clone();
    let (clocked, bounded, tried) = (shared(), shared(), listeners.clone());
    control.hook(ServerHooks {
        publish: Box::new(move |config, carried| {
            let Applied { late } = listeners.apply(plan_of(config, carried)?)?;
            if !late.is_empty() {
                told(&format!("a change of the config has not reached cores {late:?} in time"));
            }
            Ok(())
        }),
        prepare: Box::new(move |config, carried| {
            let options = Options::of(config)?;
            // With a store of its own: what a trial makes of TLS is nobody's.
            let trial = compile(config, carried, &Store::default(), unix.as_secs())?;
            tried.check(&trial)?;
            let redirect = access_log.prepare(&config.log.access)?;
            let shared = bounded.clone();
            Ok(Box::new(move || {
                redirect();
                shared.bounds.set(options.bounds);
                shared.held.set_total(options.held_total_bytes);
                shared.unsent.set_max(options.held_total_bytes);
            }))
        }),
        counters: Box::new(move || counted.counters_sum()),
        live: Box::new(move || live(&queued, &lost)),
        clock: Arc::new(move || clocked.notifier.now()),
        draining: Box::new(move || draining.draining.load(Ordering::Relaxed)),
    });
    server.control = Some(control);
    Ok(Started { server, config, warnings })
}

/// A number that nobody has chosen.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8)
}

/// What the cores and the log have in use at the moment.
fn live(shared: &Shared, log: &AccessLog) -> Live {
    let (plan, _) = shared.slot.plan();
    let (rows, labels) = shared.rows_sum();
    let idle = |Padded(idle): &Padded<AtomicU32>| idle.load(Ordering::Relaxed);
    let now_s = sys::unix_s();
    // A group that the file does not name may have the name of one that it does.
    let mut queues = BTreeMap::new();
    for group in &plan.groups {
        if let Some(queue) = &group.queue {
            *queues.entry(group.name.clone()).or_default() += queue.len();
        }
    }
    Live {
        queues: queues.into_iter().collect(),
        connections: shared.connections.load(Ordering::Relaxed),
        held_bytes: shared.held.taken(),
        unsent_bytes: shared.unsent.bytes(),
        connections_refused: shared.refused.load(Ordering::Relaxed),
        handshakes_failed: shared.handshakes_failed.load(Ordering::Relaxed),
        panics: shared.panics.load(Ordering::Relaxed),
        access_lines_lost: shared.access_lost.load(Ordering::Relaxed) + log.lost(),
        pool_idle: shared.pool_idle.iter().map(idle).sum(),
        certificates: plan.certificates.iter().map(|one| one.row(now_s)).collect(),
        rows,
        labels,
    }
}

/// What `start` gives.
pub struct Started {
    /// The running server.
    pub server: Server,
    /// The config in force.
    pub config: Config,
    /// What was amiss but did not stop the start.
    pub warnings: Vec<String>,
}

/// How a server is started.
pub struct Options {
    /// One worker per entry, pinned to that processor; `None` = not pinned.
    pub cores: Vec<Option<usize>>,
    /// Which driver.
    pub io: Wanted,
    /// How many connections and handshakes it takes.
    pub bounds: BoundsWanted,
    /// Most held body bytes.
    pub held_total_bytes: u64,
    /// Listening sockets of a process before, each with its position among those of its address.
    pub adopted: Vec<(usize, OwnedFd)>,
    /// Seed of the random sources; one for tests that must repeat.
    pub seed: u64,
}

/// Descriptors kept for everything that is neither a client's connection nor one made for it:
/// probes, discovery, the operator's interface, logs. Of few descriptors a quarter.
const FDS_RESERVED: u64 = 128;

/// Bytes of the records of one core that wait for the access log: some thousand exchanges. Untouched
/// memory costs nothing.
const ACCESS_RING_BYTES: usize = 1 << 20;

/// The processor of each worker; `None` = any.
///
/// Errors: a core that this process may not run on.
pub fn cores(config: &Config) -> Result<Vec<Option<usize>>, String> {
    let allowed = sys::affinity();
    match &config.process.cores {
        Cores::Auto => Ok(allowed.iter().copied().map(Some).collect()),
        Cores::Count(count) => Ok((0..usize::from(*count).max(1))
            // More workers than processors share them, unpinned.
            .map(|i| allowed.get(i).copied().filter(|_| usize::from(*count) <= allowed.len()))
            .collect()),
        Cores::List(list) => list
            .iter()
            .map(|&cpu| {
                let cpu = usize::from(cpu);
                let known = allowed.contains(&cpu).then_some(Some(cpu));
                known.ok_or(format!("process.cores: no core {cpu}, allowed: {allowed:?}"))
            })
            .collect(),
    }
}

impl Options {
    /// What the config says, measured against the machine.
    ///
    /// Errors: a core that this process may not run on.
    pub fn of(config: &Config) -> Result<Self, String> {
        let cores = cores(config)?;
        // Each client connection may need one more towards an upstream.
        let fds = sys::raise_open_files();
        let reserved = FDS_RESERVED.min(fds / 4);
        sys::keep_descriptors(fds, reserved);
        let from_fds = u32::try_from((fds - reserved) / 2).unwrap_or(u32::MAX);
        let seed = random();
        let connections_max = match config.limits.connections {
            0 => from_fds.max(1),
            wanted => wanted,
        };
        Ok(Self {
            cores,
            io: match config.process.io {
                Io::Auto => Wanted::Auto,
                Io::IoUring => Wanted::Uring,
                Io::Epoll => Wanted::Epoll,
            },
            bounds: BoundsWanted {
                connections_max,
                per_ip_max: config.limits.connections_per_ip,
                handshakes_max: match config.limits.handshakes {
                    0 => (connections_max / 4).max(1),
                    wanted => wanted,
                },
            },
            held_total_bytes: config.limits.held_total,
            adopted: Vec::new(),
            seed,
        })
    }
}

/// A running server.
pub struct Server {
    workers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// Dropped last: it looks at the cores to the end.
    control: Option<Control>,
    access_log: Option<AccessLog>,
    /// The cores' records of finished exchanges, until the access log takes them.
    rings: Mutex<Vec<RecordReader>>,
    listeners: Arc<Listeners>,
    /// The driver of each core.
    pub drivers: Vec<Driver>,
}

impl Server {
    /// Binds, starts and waits until every worker is ready.
    ///
    /// Shape: `mailboxes` has one for each of the cores; the registry that `plan` comes from wakes
    /// through them.
    /// Errors: an address cannot be bound, or a worker cannot start; nothing is left running.
    pub fn start(plan: Plan, mut options: Options, mailboxes: Mailboxes) -> io::Result<Self> {
        let Mailboxes { notifier, inboxes } = mailboxes;
        let copies = options.cores.len().max(1);
        debug_assert_eq!(inboxes.len(), copies);
        let adopted = std::mem::take(&mut options.adopted);
        let (set, sockets) = listeners::bind(&plan, copies, adopted)?;
        let (ring_ends, rings) = (0..copies).map(|_| ring(ACCESS_RING_BYTES)).unzip();
        let shared = shared(plan, &options, copies, notifier, ring_ends);
        let listeners = Arc::new(Listeners::new(shared.clone(), set));
        let (ready, started) = mpsc::channel();
        let mut workers = Vec::new();
        for (index, (listening, inbox)) in sockets.into_iter().zip(inboxes).enumerate() {
            let worker = Worker {
                index,
                cpu: options.cores.get(index).copied().flatten(),
                io: options.io.with_environment(),
                shared: shared.clone(),
                listening,
                inbox,
                seed: options.seed.wrapping_add(index as u64),
            };
            let ready = ready.clone();
            let thread = std::thread::Builder::new().name(format!("core-{index}"));
            workers.push(thread.spawn(move || {
                worker.run(|result| {
                    // The receiver is gone only when the start has failed already.
                    let _ = ready.send((index, result));
                });
            })?);
        }
        drop(ready);
        let (drivers, rings) = (Vec::new(), Mutex::new(rings));
        let (control, access_log) = (None, None);
        let mut server = Self { workers, shared, control, access_log, rings, listeners, drivers };
        let mut drivers = vec![None; copies];
        let mut failed = None;
        for (index, result) in started.iter().take(copies) {
            match result {
                Ok(driver) => drivers[index] = Some(driver),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            server.stop();
            return Err(error);
        }
        server.drivers = drivers.into_iter().flatten().collect();
        Ok(server)
    }

    /// Puts another plan in force on every core, with the sockets that its listeners want.
    ///
    /// Errors: as `Listeners::apply`.
    pub fn apply(&self, plan: Plan) -> Result<Applied, String> {
        self.listeners.apply(plan)
    }

    /// What it listens on.
    #[must_use]
    pub fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// Where it listens: listener and address, ports resolved, in the order of the plan.
    #[must_use]
    pub fn addresses(&self) -> Vec<(ListenerId, Address)> {
        self.listeners.addresses()
    }

    /// What the cores share, for tests and status pages.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The address of the first listener.
    #[must_use]
    pub fn address(&self) -> Option<Address> {
        self.addresses().into_iter().next().map(|(_, address)| address)
    }

    /// The sum of all cores' counters, as of their last publication.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.shared.counters_sum()
    }

    /// Where the operator's interface listens.
    #[must_use]
    pub fn admin(&self) -> Option<&Address> {
        self.control.as_ref()?.admin.as_ref()
    }

    /// Spawns tasks on the control thread; `None` for a server that has none.
    #[must_use]
    pub fn control(&self) -> Option<control::Handle> {
        self.control.as_ref().map(Control::handle)
    }

    /// Has the file of the access log opened again, because a script has moved it.
    pub fn reopen_logs(&self) {
        self.reopener()();
    }

    /// What `reopen_logs` does, for another thread.
    pub fn reopener(&self) -> impl Fn() + Send + 'static + use<> {
        let log = self.access_log.clone();
        move || log.iter().for_each(AccessLog::reopen)
    }

    /// Has all certificates read again, soon and in the background.
    pub fn reload(&self) {
        if let Some(control) = &self.control {
            control.reload();
        }
    }

    /// Stops accepting and lets what is in flight end.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.tell(|| Message::Drain);
        // The cores close theirs; a socket that is left open would go on taking connections.
        self.listeners.close();
    }

    /// Cuts what is still in flight after a drain.
    pub fn abort(&self) {
        self.tell(|| Message::Abort);
    }

    /// What `abort` does, for another thread.
    pub fn aborter(&self) -> impl Fn() + Send + 'static {
        let mailboxes = self.shared.mailboxes.clone();
        move || {
            for mailbox in &mailboxes {
                // A mailbox that is full or closed belongs to a core that is ending anyway.
                let _ = mailbox.send(Message::Abort);
            }
        }
    }

    /// Waits until every worker has ended.
    pub fn join(mut self) -> Counters {
        self.wait();
        self.counters()
    }

    fn wait(&mut self) {
        for worker in self.workers.drain(..) {
            // A worker that panicked has ended too; its connections are counted as lost.
            let _ = worker.join();
        }
        self.listeners.remove_files();
        if let Some(log) = self.access_log.take() {
            log.end();
        }
    }

    fn tell(&self, message: impl Fn() -> Message) {
        for mailbox in &self.shared.mailboxes {
            let mut message = message();
            // A full mailbox is read within a turn of the loop.
            while let Err(back) = mailbox.send(message) {
                if self.workers.iter().all(JoinHandle::is_finished) {
                    break;
                }
                message = back;
                std::thread::yield_now();
            }
        }
    }

    fn stop(&mut self) {
        self.drain();
        self.abort();
        self.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.workers.is_empty() {
            self.stop();
        }
    }
}

fn shared(
    plan: Plan,
    options: &Options,
    copies: usize,
    notifier: Arc<Notifier>,
    rings: Vec<RecordWriter>,
) -> Arc<Shared> {
    plan.enforce();
    Arc::new(Shared {
        slot: PlanSlot::new(plan),
        // No core has taken a plan yet.
        served: (0..copies).map(|_| Padded(AtomicU64::new(u64::MAX))).collect(),
        active: (0..copies).map(|_| Padded(AtomicU32::new(0))).collect(),
        mailboxes: notifier.mailboxes().to_vec(),
        notifier,
        connections: AtomicU32::new(0),
        bounds: options.bounds.into(),
        held: HeldBudget::new(options.held_total_bytes),
        unsent: UnsentTotal::new(options.held_total_bytes),
        streams: AtomicU32::new(0),
        idle: (0..copies).map(|_| Padded::default()).collect(),
        per_ip: Tally::new(RandomState::new()),
        shaking: Tally::new(RandomState::new()),
        token_sizes: TokenSizes::default(),
        panics: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        handshakes: AtomicU32::new(0),
        handshakes_failed: AtomicU64::new(0),
        draining: AtomicBool::new(false),
        on_finished: std::sync::OnceLock::new(),
        tell: std::sync::OnceLock::new(),
        acknowledged: Acknowledged::new(copies),
        access_lost: AtomicU64::new(0),
        access_rings: Mutex::new(rings.into_iter().map(Some).collect()),
        rows: (0..copies).map(|_| Arc::default()).collect(),
        pool_idle: (0..copies).map(|_| Padded::default()).collect(),
        counters: (0..copies).map(|_| Mutex::new(Counters::default())).collect(),
    })
}
