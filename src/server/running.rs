//! A running server: its cores, what they share, and how they are told to end.

use std::hash::RandomState;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use super::access_log::AccessLog;
use super::handover::predecessor::{Estate, EstateHooks, Gift};
use super::listeners::{Applied, Listeners};
use super::travel::{Giver, Taker, await_state};
use crate::base::listener_id::ListenerId;
use crate::config::{Config, Cores, Io};
use crate::control::{self, Control};
use crate::net::acknowledge::Acknowledged;
use crate::net::dial::Address;
use crate::net::mailbox::Message;
use crate::net::rt::{Driver, Wanted};
use crate::net::sys;
use crate::net::tls::Store;
use crate::net::unsent::UnsentTotal;
use crate::policy::limit::tally::Tally;
use crate::policy::limit::token_size::TokenSizes;
use crate::proxy::before::{Handovers, ProcessBefore};
use crate::proxy::bounds::BoundsWanted;
use crate::proxy::core::{Mailboxes, Notifier, Padded, PlanSlot, Shared};
use crate::proxy::exchanges::Lists;
use crate::proxy::plan::Plan;
use crate::proxy::traces::Traces;
use crate::proxy::worker::Worker;
use crate::telemetry::counters::Counters;
use crate::telemetry::failures::RecentFailures;
use crate::telemetry::ring::{RecordReader, RecordWriter, ring};
use crate::upstream::held::HeldBudget;

/// A number that nobody has chosen.
fn random() -> u64 {
    std::hash::BuildHasher::hash_one(&RandomState::new(), 0u8)
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
    pub(super) shared: Arc<Shared>,
    /// Dropped last: it looks at the cores to the end.
    pub(super) control: Option<Control>,
    pub(super) access_log: Option<AccessLog>,
    pub(super) tls: Option<Arc<Store>>,
    /// The cores' records of finished exchanges, until the access log takes them.
    pub(super) rings: Mutex<Vec<RecordReader>>,
    pub(super) listeners: Arc<Listeners>,
    /// The driver of each core.
    pub drivers: Vec<Driver>,
}

impl Server {
    /// Starts the workers, then binds and listens.
    ///
    /// Shape: `mailboxes` has one for each of the cores; the registry that `plan` comes from wakes
    /// through them.
    /// Errors: an address cannot be bound, or a worker cannot start; nothing is left running.
    pub fn start(plan: Plan, mut options: Options, mailboxes: Mailboxes) -> io::Result<Self> {
        let adopted = std::mem::take(&mut options.adopted);
        let server = Self::build(plan, options, mailboxes)?;
        for (index, socket) in adopted {
            server.listeners.adopt(index, socket)?;
        }
        let change = server.listeners.bind()?;
        server.listeners.begin(change)?;
        Ok(server)
    }

    /// Starts the workers, which listen on nothing yet.
    ///
    /// Shape: as `start`.
    /// Errors: a worker cannot start; nothing is left running.
    pub fn build(plan: Plan, options: Options, mailboxes: Mailboxes) -> io::Result<Self> {
        let Mailboxes { notifier, inboxes } = mailboxes;
        let copies = options.cores.len().max(1);
        debug_assert_eq!(inboxes.len(), copies);
        let (ring_ends, rings) = (0..copies).map(|_| ring(ACCESS_RING_BYTES)).unzip();
        let shared = shared(plan, &options, copies, notifier, ring_ends);
        let listeners = Arc::new(Listeners::new(shared.clone()));
        let (ready, started) = mpsc::channel();
        let mut workers = Vec::new();
        for (index, inbox) in inboxes.into_iter().enumerate() {
            let worker = Worker {
                index,
                cpu: options.cores.get(index).copied().flatten(),
                io: options.io.with_environment(),
                shared: shared.clone(),
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
        let (control, access_log, tls) = (None, None, None);
        let mut server =
            Self { workers, shared, control, access_log, tls, rings, listeners, drivers };
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

    /// What a next process can take over; `None` for a server without a control thread.
    #[must_use]
    pub fn estate(&self, hooks: EstateHooks) -> Option<Estate> {
        let control = self.control.as_ref()?;
        Some(Estate {
            listeners: self.listeners.clone(),
            admin: control.admin_socket.clone(),
            socket_lock: control.socket_lock.clone(),
            edits: {
                let documents = control.documents.clone();
                Box::new(move || {
                    let now = documents.now();
                    let digest = now.as_ref().map(|now| now.sources.overlay.digest());
                    let kept = now.is_some_and(|now| {
                        now.config.admin.as_ref().is_some_and(|admin| admin.persist)
                    });
                    (digest.unwrap_or_default(), kept)
                })
            },
            draining: {
                let shared = self.shared.clone();
                Box::new(move || shared.draining.load(Ordering::Relaxed))
            },
            count_failed: {
                let shared = self.shared.clone();
                Box::new(move || {
                    shared.handovers.failed.fetch_add(1, Ordering::Relaxed);
                })
            },
            give: Box::new(self.give()),
            hooks,
        })
    }

    /// Gives its state to the process that comes next, when its cores accept no more.
    pub fn give(&self) -> impl Fn() -> (Box<dyn Gift>, Vec<u8>) + Send + Sync + 'static + use<> {
        let (shared, tls, log) = (self.shared.clone(), self.tls.clone(), self.access_log.clone());
        move || {
            let (giver, state) = Giver::give(shared.clone(), tls.as_deref(), log.clone());
            (Box::new(giver), state)
        }
    }

    /// Takes the state of the process before. From now on no call that counts towards a limit is let
    /// in until it is here, so this comes before the first socket.
    #[must_use]
    pub fn taker(&self) -> Taker {
        Taker::new(self.shared.clone(), self.tls.clone())
    }

    /// Says whether every core takes its turns, within this time.
    pub fn pulse(&self) -> impl Fn(Duration) -> bool + Send + 'static + use<> {
        let shared = self.shared.clone();
        move |within| {
            let number = shared.acknowledged.draw();
            for mailbox in &shared.mailboxes {
                // A mailbox that is full shows as a core that is late.
                let _ = mailbox.send(Message::Acknowledge { number });
            }
            shared.acknowledged.wait(number, within).is_empty()
        }
    }

    /// Stops accepting and lets what is in flight end.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        if self.shared.before.is_awaited() {
            await_state(&self.shared, false);
        }
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

    /// Takes no more connections, and waits until what was accepted has been served.
    pub(super) fn leave(&mut self) {
        self.drain();
        self.wait();
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
        before: ProcessBefore::default(),
        on_finished: std::sync::OnceLock::new(),
        tell: std::sync::OnceLock::new(),
        acknowledged: Acknowledged::new(copies),
        lists: Lists::new(copies),
        failures: RecentFailures::default(),
        access_lost: AtomicU64::new(0),
        handovers: Handovers::default(),
        access_rings: Mutex::new(rings.into_iter().map(Some).collect()),
        traces: Traces::new(copies),
        rows: (0..copies).map(|_| Arc::default()).collect(),
        pool_idle: (0..copies).map(|_| Padded::default()).collect(),
        counters: (0..copies).map(|_| Mutex::new(Counters::default())).collect(),
    })
}
