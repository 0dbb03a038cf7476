//! Floor 7: what is off the data plane. One thread with a tokio runtime of its own discovers
//! servers, probes them, answers the operator, and publishes configs for the cores. Read in this
//! order:
//!
//! `reconciler` (all that is known, and the config that follows) with `entry` (which discovered
//! servers are in that config) and `server` (what is known of one server); the tasks that bring
//! facts to it: `source` (targets and addresses, by `resolve` and `kubernetes`), `certs` (files of certificates),
//! `probe`, `model_list` and `recheck` (of one `monitored` upstream, by `fetch`, which sends with
//! `http_client`); the facts themselves (`event`, kept as `observed`, each by a `task`); then
//! `admin` (the operator's HTTP interface) with `admin_socket` and `connections` (its clients, bounded in number),
//! `say` (lines for the operator), `socket_lock` (a reload or a handover) and `signals` (which the main thread waits for). `redis` holds
//! the rate limits that nodes share; it uses none of the others but `say`.
//!
//! This folder knows no plan and no core: the server hands it closures (`ServerHooks`).

pub mod admin;
pub mod admin_socket;
mod api;
mod caller;
pub mod certs;
mod connections;
pub mod documents;
pub mod entry;
pub mod event;
pub mod exchanges;
pub mod fetch;
mod http_client;
#[cfg(feature = "kubernetes")]
mod kubernetes;
pub mod model_list;
pub mod monitored;
mod observed;
pub mod overlay_file;
pub mod probe;
mod recheck;
pub mod reconciler;
pub mod redis;
mod refusal;
pub mod reload;
pub mod resolve;
mod say;
mod server;
mod shows;
pub mod signals;
pub mod source;
mod task;
pub mod traces;
pub mod usage;
pub mod socket_lock;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, oneshot};

use crate::config::{Config, Sources};
use crate::net::dial::Address;
use crate::net::tls::Store;
use crate::telemetry::counters::Counters;
use crate::telemetry::failures::Failure;
use crate::telemetry::prometheus::Live;
use crate::upstream::registry::{Carried, Registry};
use admin::{AdminListener, AdminServer};
use admin_socket::AdminSocket;
use certs::Reloads;
use documents::{Documents, Snapshot};
use reconciler::{Publish, Reconciler, UpstreamTable};
use reload::{Certificates, Prepare, Reload, ReloadHooks, ReloadStatus, Reloader, Request};
use resolve::Resolver;
use shows::Shows;
use socket_lock::SocketLock;
use task::Task;
use traces::TraceHooks;
use usage::Usage;

pub use recheck::BreakerClock;
pub use say::Say;

/// Settings of the control thread that are not in the config; tests change them.
#[derive(Clone)]
pub struct Options {
    /// The only name server to ask; `None` asks those of this machine.
    pub name_server: Option<SocketAddr>,
    /// Receives each line for the operator.
    pub say: Say,
    /// Seed of the random spread of probes.
    pub seed: u64,
    /// What it takes to reload the whole config; none = only certificates are read again.
    pub reload: Option<ReloadHooks>,
    /// What the config of the start is made of; none = it can be reloaded, but not edited.
    pub sources: Option<Sources>,
}

impl Default for Options {
    fn default() -> Self {
        Self { name_server: None, say: Arc::new(|_| {}), seed: 1, reload: None, sources: None }
    }
}

/// The functions of the server that the control thread may call.
pub struct ServerHooks {
    /// Puts a config in force.
    pub publish: Publish,
    /// Prepares what of a reload the server keeps outside its plans, and tries what could fail.
    pub prepare: Prepare,
    /// Returns the counters of all cores, added up.
    pub counters: Box<dyn Fn() -> Counters + Send + Sync>,
    /// Returns what the cores have in use at the moment, such as connections.
    pub live: Box<dyn Fn() -> Live + Send + Sync>,
    /// Returns the time by which breakers count.
    pub clock: BreakerClock,
    /// Whether all cores serve by the config that was published last.
    pub in_force: Box<dyn Fn() -> bool + Send + Sync>,
    /// Returns the exchanges that failed last, the latest first.
    pub failures: Box<dyn Fn() -> Vec<Failure> + Send + Sync>,
    /// Returns what the cores of this process count by label, and the names in it.
    pub rows: usage::Rows,
    /// Looks at exchanges in flight.
    pub exchanges: exchanges::ExchangeHooks,
    /// Whether the process drains: it will end, and takes no new requests.
    pub draining: Box<dyn Fn() -> bool + Send + Sync>,
    /// What the export of traces needs.
    pub traces: TraceHooks,
}

/// What is known when the first answers are in, and the server may start.
pub struct Begun {
    /// The file's config with the targets, addresses and models that were discovered.
    pub config: Config,
    /// What its plan has in common with later ones.
    pub carried: Carried,
    /// Lines for the operator about what failed or did not answer in time.
    pub warnings: Vec<String>,
}

/// The control thread; dropping this stops it and waits for it.
pub struct Control {
    handle: Handle,
    /// Where the operator's interface listens, the port resolved; `None` without `[admin]`.
    pub admin: Option<Address>,
    /// The socket of that interface, for a handover.
    pub admin_socket: AdminSocket,
    /// Taken by a reload and by a handover.
    pub socket_lock: SocketLock,
    /// What the config in force was said by.
    pub documents: Documents,
    /// Notified to have all certificates read again.
    reload: Arc<Notify>,
    /// Asks for the whole config to be read again; `None` without `Options::reload`.
    reloader: Option<Reloader>,
    hooks: Option<oneshot::Sender<(ServerHooks, Option<AdminListener>)>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Spawns tasks on the control thread.
#[derive(Clone)]
pub struct Handle(tokio::runtime::Handle);

impl Handle {
    /// Runs a task on the control thread until the task or the thread ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Dropping the handle detaches the task; it ends with the runtime at the latest.
        drop(self.0.spawn(task));
    }
}

impl Control {
    /// Starts the thread and waits for the first answers, at most `reconciler::FIRST_WAIT`.
    ///
    /// Errors: the URL of the store that nodes share is none, or the thread cannot start.
    pub fn begin(
        config: &Config,
        mut registry: Registry,
        tls: Arc<Store>,
        options: Options,
    ) -> Result<(Self, Begun), String> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("the control thread cannot start: {error}"))?;
        let resolver = {
            let _entered = runtime.enter();
            Resolver::new(options.name_server)?
        };
        let handle = Handle(runtime.handle().clone());
        let store = open_store(config, &handle, &mut registry, options.say.clone())?;
        let (hooks, hooked) = oneshot::channel();
        let (begin, begun) = mpsc::channel();
        let reload = Arc::new(Notify::new());
        let (reloader, requests) = Reloader::channel();
        let whole = options.reload.is_some();
        let (socket_lock, admin_socket) = (SocketLock::default(), AdminSocket::default());
        let documents = Documents::default();
        let life = Life {
            config: config.clone(),
            registry,
            resolver,
            tls,
            options,
            asked: reload.clone(),
            reloader: reloader.clone(),
            requests,
            socket_lock: socket_lock.clone(),
            documents: documents.clone(),
            admin: admin_socket.clone(),
            begin,
            hooked,
        };
        handle.spawn(life.run());
        let (stop, thread) = run(runtime)?;
        let reloader = whole.then_some(reloader);
        let control = Self {
            handle,
            admin: None,
            admin_socket,
            socket_lock,
            documents,
            reload,
            reloader,
            hooks: Some(hooks),
            stop: Some(stop),
            thread,
        };
        let mut begun = begun.recv().map_err(|_| "the control thread ended".to_owned())?;
        begun.warnings.extend(store.and_then(StoreAnswer::wait));
        Ok((control, begun))
    }

    /// Lets the control thread publish configs and open the operator's interface from now on.
    pub fn hook(&mut self, hooks: ServerHooks, listener: Option<AdminListener>) {
        self.admin = listener.as_ref().map(|listener| listener.socket.address.clone());
        if let Some(waiting) = self.hooks.take() {
            // An error means that the thread has ended.
            let _ = waiting.send((hooks, listener));
        }
    }

    /// Has the config read again, or its certificates alone where it has no file, soon and in the
    /// background.
    pub fn reload(&self) {
        match &self.reloader {
            // Whoever is to know is told by `ReloadHooks::told`.
            Some(reloader) => drop(reloader.begin()),
            None => self.reload.notify_one(),
        }
    }

    /// A handle that spawns tasks on the control thread.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // An error means that the thread has ended already.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the control thread begins with.
struct Life {
    config: Config,
    registry: Registry,
    resolver: Resolver,
    tls: Arc<Store>,
    options: Options,
    /// Notified to read all certificates again.
    asked: Arc<Notify>,
    reloader: Reloader,
    requests: tokio::sync::mpsc::Receiver<Request>,
    socket_lock: SocketLock,
    documents: Documents,
    admin: AdminSocket,
    begin: mpsc::Sender<Begun>,
    hooked: oneshot::Receiver<(ServerHooks, Option<AdminListener>)>,
}

impl Life {
    /// Finds out what the start waits for, then publishes configs and answers the operator for ever.
    async fn run(self) {
        let Options { say, seed, reload: outside, sources, .. } = self.options;
        let state_dir = self.config.process.state_dir.clone();
        let documents = self.documents;
        if let Some(sources) = sources {
            drop(documents.set(Snapshot::new(sources, self.config.clone())));
        }
        let table = UpstreamTable::default();
        let (resolver, tls) = (self.resolver, self.tls.clone());
        let mut reconciler =
            Reconciler::new(self.config, self.registry, resolver, tls, table.clone(), seed);
        reconciler.first_answers().await;
        let first = Begun {
            config: reconciler.config.clone(),
            carried: reconciler.carry(),
            warnings: std::mem::take(&mut reconciler.complaints),
        };
        // An error means that the start has failed meanwhile, and `Control` is gone.
        let _ = self.begin.send(first);
        let Ok((hooks, listener)) = self.hooked.await else { return };
        let ServerHooks { publish, prepare, counters, live, clock, in_force, draining, .. } = hooks;
        let lock = self.socket_lock.clone();
        let (failures, rows, usage) = (hooks.failures, Arc::new(hooks.rows), Usage::default());
        let _exports = Task::of(tokio::spawn(traces::run(hooks.traces, say.clone())));
        drop(tokio::spawn(usage.clone().run(rows.clone(), state_dir, lock, say.clone())));
        let (counts, status) = (Arc::new(Reloads::default()), Arc::new(ReloadStatus::default()));
        let shows = Shows {
            table,
            counters,
            live,
            in_force,
            draining,
            documents: documents.clone(),
            failures,
            exchanges: hooks.exchanges,
            usage,
            rows,
            certificates: counts.clone(),
            reloads: status.clone(),
            sources: reconciler.sources.clone(),
            reloader: self.reloader,
        };
        let admin = AdminServer::new(shows, self.admin, listener);
        let reload = Reload {
            requests: self.requests,
            outside,
            prepare: with_admin(prepare, admin),
            status,
            certificates: Certificates { store: self.tls, asked: self.asked, counts, task: None },
            say: say.clone(),
            documents,
            pending: None,
            socket_lock: self.socket_lock,
            held_lock: None,
        };
        reconciler.run(publish, clock, &*say, reload).await;
    }
}

/// Prepares the operator's interface beside what the server prepares.
fn with_admin(mut server: Prepare, mut admin: AdminServer) -> Prepare {
    Box::new(move |config, carried| {
        let (server, admin) = (server(config, carried)?, admin.prepare(config)?);
        Ok(Box::new(move || {
            server();
            admin();
        }))
    })
}

/// The first word of the store that nodes share.
struct StoreAnswer(mpsc::Receiver<Result<(), String>>);

impl StoreAnswer {
    /// Waits for it. Returns a line for the operator when the store was not reached.
    fn wait(self) -> Option<String> {
        match self.0.recv_timeout(2 * redis::CONNECT_TIMEOUT) {
            Ok(Ok(())) => None,
            Ok(Err(why)) => Some(format!("ratelimit_store: not reached yet: {why}")),
            Err(_) => Some("ratelimit_store: not reached yet".to_owned()),
        }
    }
}

/// Opens the store that nodes share, if there is one.
fn open_store(
    config: &Config,
    handle: &Handle,
    registry: &mut Registry,
    say: Say,
) -> Result<Option<StoreAnswer>, String> {
    let Some(opened) = redis::open(&config.ratelimit_store, redis::node(), say)? else {
        return Ok(None);
    };
    registry.share(opened.budget);
    handle.spawn(opened.run);
    Ok(Some(StoreAnswer(opened.first)))
}

type Running = (oneshot::Sender<()>, Option<JoinHandle<()>>);

/// Starts the thread, which drives the runtime until a stop is sent or its sender is dropped.
fn run(runtime: Runtime) -> Result<Running, String> {
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("control".to_owned());
    let thread = thread
        .spawn(move || {
            // An error means that the sender was dropped, which is a stop too.
            let _ = runtime.block_on(stopped);
            // Without waiting for blocking tasks: a read of a file may hang.
            runtime.shutdown_background();
        })
        .map_err(|error| format!("the control thread cannot start: {error}"))?;
    Ok((stop, Some(thread)))
}
