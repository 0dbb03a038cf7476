//! Reloading the whole config while the process runs.
//!
//! ```text
//! read → check → what cannot change? → prepare → ask what is new → compile and swap → commit
//! ```
//! Nothing is half applied: until the new config is in force on the cores, every step can fail and
//! leaves what was there. What it names anew (servers, host names) is asked first, for
//! `reconciler::FIRST_WAIT` at most, so that a server under another name does not lose its models
//! for a moment; the config before serves meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::certs::{Reloads, keep_watch};
use super::event::Event;
use super::say::Say;
use super::socket_lock::{HeldSocketLock, SocketLock};
use super::task::Task;
use crate::config::diff::{Change, diff};
use crate::config::{Config, Loaded};
use crate::net::sys::unix_s;
use crate::net::tls::Store;
use crate::policy::limit::shared::Budget;
use crate::telemetry::prometheus::ReloadCounts;
use crate::upstream::registry::Carried;

/// Most reloads that wait for one that runs.
pub const WAITING_MAX: usize = 16;
/// Longest time that reading the config may take.
const READ_MAX: std::time::Duration = std::time::Duration::from_secs(10);

/// Reads the config again, from where it came. Errors: a report for the operator.
pub type LoadAgain = Arc<dyn Fn() -> Result<Loaded, String> + Send + Sync>;

/// Makes a prepared change final; cannot fail.
pub type Commit = Box<dyn FnOnce() + Send>;

/// Prepares what of a config lies outside the plan, such as log files, and tries what could fail.
/// Errors: a line for the operator; nothing has changed.
pub type Prepare = Box<dyn FnMut(&Config, Carried) -> Result<Commit, String> + Send>;

/// As `Prepare`, of what the caller keeps.
pub type PrepareOutside = Arc<dyn Fn(&Config) -> Result<Commit, String> + Send + Sync>;

/// Tells how a reload went.
pub type TellReload = Arc<dyn Fn(&Result<Reloaded, String>) + Send + Sync>;

/// What of a reload is not the control thread's.
#[derive(Clone)]
pub struct ReloadHooks {
    /// Reads the config again.
    pub load: LoadAgain,
    /// Prepares what the caller keeps, such as log files.
    pub prepare: PrepareOutside,
    /// Is told how each reload went.
    pub told: TellReload,
}

/// What a reload has done.
#[derive(Clone, Debug, Default)]
pub struct Reloaded {
    /// What differs from the config before.
    pub changes: Vec<Change>,
    /// Warnings about the new config, a line each.
    pub warnings: Vec<String>,
    /// Upstreams in force.
    pub endpoints: usize,
    /// Models in force.
    pub models: usize,
}

/// A reload that somebody asked for.
pub struct Request {
    /// Told how it went; who asked may have left.
    pub reply: oneshot::Sender<Result<Reloaded, String>>,
}

/// Asks for reloads; clones ask the same process.
#[derive(Clone)]
pub struct Reloader {
    requests: mpsc::Sender<Request>,
}

impl Reloader {
    /// The two ends: who asks, and who carries it out.
    #[must_use]
    pub fn channel() -> (Reloader, mpsc::Receiver<Request>) {
        let (requests, inbox) = mpsc::channel(WAITING_MAX);
        (Reloader { requests }, inbox)
    }

    /// Reloads, and waits until the new config is in force or refused.
    ///
    /// Errors: a report for the operator; the config before stays in force.
    pub async fn reload(&self) -> Result<Reloaded, String> {
        let (reply, told) = oneshot::channel();
        self.requests
            .try_send(Request { reply })
            .map_err(|_| "too many reloads wait".to_owned())?;
        told.await.unwrap_or_else(|_| Err("the process is ending".to_owned()))
    }

    /// Asks for a reload and does not wait.
    ///
    /// Shape: how it went is told to whom `receive` asks.
    pub fn begin(&self) -> oneshot::Receiver<Result<Reloaded, String>> {
        let (reply, told) = oneshot::channel();
        // Where too many wait, the last of them reads the same file: nothing is lost.
        let _ = self.requests.try_send(Request { reply });
        told
    }
}

/// How the last reload went, for metrics.
#[derive(Debug)]
pub struct ReloadStatus {
    succeeded: AtomicBool,
    at_unix_s: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
}

impl Default for ReloadStatus {
    /// Before the first reload, with the config of the start in force from now on.
    fn default() -> Self {
        let (done, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        let at_unix_s = AtomicU64::new(unix_s());
        Self { succeeded: AtomicBool::new(true), at_unix_s, done, failed }
    }
}

impl ReloadStatus {
    fn record(&self, succeeded: bool) {
        self.succeeded.store(succeeded, Ordering::Relaxed);
        match succeeded {
            true => {
                self.at_unix_s.store(unix_s(), Ordering::Relaxed);
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            false => {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How it stands now.
    #[must_use]
    pub fn counts(&self) -> ReloadCounts {
        ReloadCounts {
            succeeded: self.succeeded.load(Ordering::Relaxed),
            at_unix_s: self.at_unix_s.load(Ordering::Relaxed),
            done: self.done.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// A reload whose new config is being asked about.
pub(super) struct Pending {
    /// The config of the file before, which comes back if this one cannot be put in force.
    pub(super) before: Config,
    /// When what has not answered is no longer waited for.
    pub(super) by: Instant,
    /// Makes it final.
    pub(super) commit: Commit,
    /// The budget that nodes share from then on, if that changes.
    pub(super) budget: NewBudget,
    pub(super) reloaded: Reloaded,
    pub(super) reply: oneshot::Sender<Result<Reloaded, String>>,
}

/// Another budget that nodes share, or that there is none any more; outside none = it stays.
pub(super) type NewBudget = Option<Option<Arc<Budget>>>;

/// The way of a reload through the control thread.
pub(super) struct Reload {
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) outside: Option<ReloadHooks>,
    pub(super) prepare: Prepare,
    pub(super) status: Arc<ReloadStatus>,
    pub(super) certificates: Certificates,
    pub(super) say: Say,
    pub(super) pending: Option<Pending>,
    pub(super) socket_lock: SocketLock,
    /// From the reading of a config until it is in force or refused.
    pub(super) held_lock: Option<HeldSocketLock>,
}

/// What it takes to watch the certificates of a config, and the task that does.
pub(super) struct Certificates {
    pub(super) store: Arc<Store>,
    pub(super) asked: Arc<Notify>,
    pub(super) counts: Arc<Reloads>,
    pub(super) task: Option<Task>,
}

impl Reload {
    /// Watches the certificates of this config from now on, and those of no other.
    pub(super) fn watch(&mut self, config: &Config, events: mpsc::Sender<Event>) {
        let Certificates { store, asked, counts, task } = &mut self.certificates;
        // First the task of the config before ends: what it finds is about other numbers.
        *task = None;
        let (store, asked, counts) = (store.clone(), asked.clone(), counts.clone());
        *task = Some(keep_watch(config, store, asked, counts, events, self.say.clone()));
    }

    /// The next request, unless a reload is under way.
    pub(super) async fn next(&mut self) -> Option<Request> {
        match self.pending {
            Some(_) => std::future::pending().await,
            None => self.requests.recv().await,
        }
    }

    /// Reads the config and says what it changes.
    ///
    /// Errors: it cannot be read, is refused, or changes what cannot change.
    pub(super) async fn read(&mut self, base: &Config) -> Result<(Config, Reloaded), String> {
        let outside = self.outside.as_ref().ok_or("this process has no config to read again")?;
        self.held_lock = self.socket_lock.take();
        if self.held_lock.is_none() {
            return Err(
                "a handover to another process is under way, with its own config".to_owned()
            );
        }
        let load = outside.load.clone();
        // A file on a network may hang: not on the control thread itself.
        let loaded = timeout(READ_MAX, spawn_blocking(move || load())).await;
        let loaded = loaded.map_err(|_| format!("not read within {} s", READ_MAX.as_secs()))?;
        let loaded = loaded.map_err(|_| "reading the config failed".to_owned())??;
        let changes = diff(base, &loaded.config);
        let fixed: Vec<String> = changes.iter().filter_map(Change::fixed).collect();
        if !fixed.is_empty() {
            let fixed = fixed.join(", ");
            return Err(format!(
                "{fixed} cannot change while running: nothing was changed; start a second process, which takes over"
            ));
        }
        let warnings = loaded.report.to_string().lines().map(str::to_owned).collect();
        Ok((loaded.config, Reloaded { changes, warnings, ..Reloaded::default() }))
    }

    /// Does all that may fail and changes nothing.
    pub(super) fn prepare(
        &mut self,
        config: &Config,
        carried: Carried,
        reloaded: &Reloaded,
    ) -> Result<(Commit, NewBudget), String> {
        let inside = (self.prepare)(config, carried)?;
        let outside = match &self.outside {
            Some(hooks) => (hooks.prepare)(config)?,
            None => Box::new(|| {}) as Commit,
        };
        let is_changed = reloaded.changes.iter().any(|change| change.element == "ratelimit_store");
        let budget = match is_changed {
            true => Some(self.open_store(config)?),
            false => None,
        };
        let commit = move || {
            inside();
            outside();
        };
        Ok((Box::new(commit), budget))
    }

    /// Opens the store of a config, and connects to it in the background.
    fn open_store(&self, config: &Config) -> Result<Option<Arc<Budget>>, String> {
        let node = super::redis::node();
        let opened = super::redis::open(&config.ratelimit_store, node, self.say.clone())?;
        Ok(opened.map(|opened| {
            // Ends with the last plan that has its budget.
            drop(tokio::spawn(opened.run));
            opened.budget
        }))
    }

    /// Says how a reload went.
    pub(super) fn tell(
        &mut self,
        reply: oneshot::Sender<Result<Reloaded, String>>,
        how: Result<Reloaded, String>,
    ) {
        self.held_lock = None;
        self.status.record(how.is_ok());
        if let Some(outside) = &self.outside {
            (outside.told)(&how);
        }
        // Who asked may have left.
        let _ = reply.send(how);
    }
}
