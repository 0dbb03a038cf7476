//! Floor 7: what is off the data plane. One thread with a tokio runtime of its own finds out about
//! the servers, probes them, talks to the operator, and has the cores told. Read in this order:
//!
//! `reconciler` (all that is known, and the config that follows) with `entry` (which of the servers
//! that were found are in it) and `server` (what is known of one), the tasks that feed it: `source`
//! (targets and addresses, by `resolve`), `certs` (files of certificates), `probe`, `model_list`
//! and `recheck` (of one `monitored` upstream, by `fetch`, which lets `http_client` send), and what
//! they bring (`event`, kept as `observed`, by a `task`); then `admin` (the operator's HTTP
//! interface) and `signals`, which stay with the main thread. `redis` holds the rate limits that
//! nodes share; it needs nothing of the others.
//!
//! It knows no plan and no core: the server hands it closures (`ServerHooks`).

pub mod admin;
pub mod certs;
mod connections;
pub mod entry;
pub mod event;
pub mod fetch;
mod http_client;
pub mod model_list;
pub mod monitored;
mod observed;
pub mod probe;
mod recheck;
pub mod reconciler;
pub mod redis;
pub mod resolve;
mod say;
mod server;
pub mod signals;
pub mod source;
mod task;

use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, oneshot};

use crate::config::Config;
use crate::net::dial::Address;
use crate::net::tls::Store;
use crate::telemetry::counters::Counters;
use crate::telemetry::prometheus::Live;
use crate::upstream::roster::Site;
use admin::AdminListener;
use certs::{Reloads, keep_watch};
use reconciler::{Publish, Reconciler, UpstreamTable};
use resolve::Resolver;

pub use recheck::BreakerClock;
pub use say::Say;

/// What differs from the usual; tests need it.
#[derive(Clone)]
pub struct Options {
    /// The one name server to ask, instead of this machine's.
    pub name_server: Option<SocketAddr>,
    /// Where lines for the operator go.
    pub say: Say,
    /// Seed of what is left to chance.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { name_server: None, say: Arc::new(|_| {}), seed: 1 }
    }
}

/// What the control thread may ask of the server.
pub struct ServerHooks {
    /// Puts a config in force.
    pub publish: Publish,
    /// The counters of all cores.
    pub counters: Box<dyn Fn() -> Counters + Send + Sync>,
    /// What the cores have at the moment.
    pub live: Box<dyn Fn() -> Live + Send + Sync>,
    /// The clock of the breakers.
    pub clock: BreakerClock,
    /// Whether the process is on its way out.
    pub draining: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What is known when the server may start.
pub struct Begun {
    /// The config with all that was discovered.
    pub config: Config,
    /// The sites of its upstreams.
    pub sites: Vec<Site>,
    /// What was amiss.
    pub warnings: Vec<String>,
}

/// The control thread; ends when dropped.
pub struct Control {
    handle: Handle,
    /// Where the operator's interface listens.
    pub admin: Option<Address>,
    /// Has all certificates read again.
    reload: Arc<Notify>,
    hooks: Option<oneshot::Sender<ServerHooks>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Spawns tasks on the control thread.
#[derive(Clone)]
pub struct Handle(tokio::runtime::Handle);

impl Handle {
    /// Runs a task there until it ends or the thread does.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Nobody waits for it: it ends with the runtime.
        drop(self.0.spawn(task));
    }
}

impl Control {
    /// Starts the thread and waits for the first answers, at most `reconciler::FIRST_WAIT`.
    ///
    /// Errors: the admin address cannot be bound, or the thread cannot start.
    pub fn begin(
        config: &Config,
        tls: Arc<Store>,
        options: Options,
    ) -> Result<(Self, Begun), String> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("the control thread cannot start: {error}"))?;
        let listener = match &config.admin {
            Some(admin) => {
                let _entered = runtime.enter();
                Some(AdminListener::bind(admin)?)
            }
            None => None,
        };
        let resolver = {
            let _entered = runtime.enter();
            Resolver::new(options.name_server)?
        };
        let admin = listener.as_ref().map(|listener| listener.address.clone());
        let handle = Handle(runtime.handle().clone());
        let (hooks, hooked) = oneshot::channel();
        let (begin, begun) = mpsc::channel();
        let table = UpstreamTable::default();
        let config = config.clone();
        let reload = Arc::new(Notify::new());
        let asked = reload.clone();
        handle.spawn(async move {
            let reloads = Arc::new(Reloads::default());
            let files = config.clone();
            let mut reconciler =
                Reconciler::new(config, resolver, tls.clone(), table.clone(), options.seed);
            reconciler.first_answers().await;
            let first = Begun {
                config: reconciler.config.clone(),
                sites: std::mem::take(&mut reconciler.sites),
                warnings: std::mem::take(&mut reconciler.complaints),
            };
            // When the start failed nobody listens any more.
            let _ = begin.send(first);
            let Ok(hooks) = hooked.await else { return };
            let ServerHooks { publish, counters, live, clock, draining } = hooks;
            let (say, events) = (options.say.clone(), reconciler.events());
            let _certs = keep_watch(&files, tls, asked, reloads.clone(), events, say);
            let _admin =
                listener.map(|listener| listener.open(table, counters, live, draining, reloads));
            reconciler.run(publish, clock, &*options.say).await;
        });
        let (stop, thread) = run(runtime)?;
        let control = Self { handle, admin, reload, hooks: Some(hooks), stop: Some(stop), thread };
        let begun = begun.recv().map_err(|_| "the control thread ended".to_owned())?;
        Ok((control, begun))
    }

    /// Lets it act on the server from now on.
    pub fn hook(&mut self, hooks: ServerHooks) {
        if let Some(waiting) = self.hooks.take() {
            // A thread that has ended acts on nothing.
            let _ = waiting.send(hooks);
        }
    }

    /// Has all certificates read again, soon and in the background.
    pub fn reload(&self) {
        self.reload.notify_one();
    }

    /// Spawns tasks there.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

type Running = (oneshot::Sender<()>, Option<JoinHandle<()>>);

/// Drives the runtime until told to stop.
fn run(runtime: Runtime) -> Result<Running, String> {
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("control".to_owned());
    let thread = thread
        .spawn(move || {
            // An error means that the other end is gone: the same word.
            let _ = runtime.block_on(stopped);
            // Not waited for: a read of a file may hang.
            runtime.shutdown_background();
        })
        .map_err(|error| format!("the control thread cannot start: {error}"))?;
    Ok((stop, Some(thread)))
}
