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
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use super::certs::{Reloads, keep_watch};
use super::documents::{Documents, Snapshot, place};
use super::event::Event;
use super::overlay_file::{Staged, stage};
use super::refusal::Refusal;
use super::say::Say;
use super::socket_lock::{HeldSocketLock, Holder, SocketLock};
use super::task::Task;
use crate::config::diff::{self, diff};
use crate::config::{Config, Loaded, Report, Sources};
use crate::net::sys::unix_s;
use crate::net::tls::Store;
use crate::policy::limit::shared::Budget;
use crate::telemetry::prometheus::ReloadCounts;
use crate::upstream::registry::Carried;

/// Most reloads that wait for one that runs.
pub const WAITING_MAX: usize = 16;
/// Longest time that reading the config may take.
const READ_MAX: Duration = Duration::from_secs(10);

/// Reads the file again, without the edits upon it. Errors: a report for the operator.
pub type ReadAgain = Arc<dyn Fn() -> Result<FileText, String> + Send + Sync>;

/// Checks a file with the edits upon it. Errors: what is wrong with them.
pub type Check = Arc<dyn Fn(&Sources) -> Result<Loaded, Box<Report>> + Send + Sync>;

/// A file's name as it is shown, and what it holds.
#[derive(Clone, Debug)]
pub struct FileText {
    /// Its name.
    pub name: String,
    /// What it holds.
    pub text: String,
}

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
    /// Reads the file again.
    pub read: ReadAgain,
    /// Checks it with the edits upon it.
    pub check: Check,
    /// Prepares what the caller keeps, such as log files.
    pub prepare: PrepareOutside,
    /// Is told how each reload went.
    pub told: TellReload,
}

/// What a reload has done.
#[derive(Clone, Debug, Default)]
pub struct Reloaded {
    /// What differs from the config before.
    pub changes: Vec<diff::Change>,
    /// Warnings about the new config, a line each.
    pub warnings: Vec<String>,
    /// Upstreams in force.
    pub endpoints: usize,
    /// Models in force.
    pub models: usize,
    /// It was an edit: the file was not read again.
    pub edited: bool,
    /// The documents that are in force by it; `None` where nobody has told of any.
    pub snapshot: Option<Arc<Snapshot>>,
}

/// Makes other documents of those in force. Errors: why it does not.
pub type Change = Box<dyn FnOnce(&Snapshot) -> Result<Sources, Refusal> + Send>;

/// What is asked for.
pub enum Asked {
    /// The file is read again.
    File,
    /// The documents in force are edited.
    Edit {
        /// How; called when no other reload or edit is under way.
        change: Change,
        /// Longest time that new servers are waited for.
        wait: Duration,
    },
}

/// A reload or an edit that somebody asked for.
pub struct Request {
    /// What of the two.
    pub asked: Asked,
    /// Told how it went; who asked may have left.
    pub reply: Reply,
}

type Reply = oneshot::Sender<Result<Reloaded, Refusal>>;

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
            .try_send(Request { asked: Asked::File, reply })
            .map_err(|_| "too many reloads wait".to_owned())?;
        match told.await {
            Ok(how) => how.map_err(|refusal| refusal.message),
            Err(_) => Err(ENDING.to_owned()),
        }
    }

    /// Edits the documents in force, and waits until the config that follows is in force or refused.
    /// One edit follows the other, each upon what those before it have made.
    ///
    /// Errors: why nothing has changed; with status 500 it is in force and could not be kept.
    pub async fn edit(&self, change: Change, wait: Duration) -> Result<Reloaded, Refusal> {
        let (reply, told) = oneshot::channel();
        let request = Request { asked: Asked::Edit { change, wait }, reply };
        let ending = |_| Refusal::unavailable(ENDING);
        self.requests.send(request).await.map_err(|_| Refusal::unavailable(ENDING))?;
        told.await.map_err(ending)?
    }

    /// Asks for a reload and does not wait.
    ///
    /// Shape: how it went is told to whom `receive` asks.
    pub fn begin(&self) -> oneshot::Receiver<Result<Reloaded, Refusal>> {
        let (reply, told) = oneshot::channel();
        // Where too many wait, the last of them reads the same file: nothing is lost.
        let _ = self.requests.try_send(Request { asked: Asked::File, reply });
        told
    }
}

/// What who waits is told when there is nobody any more who could do it.
const ENDING: &str = "the process is ending";

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
    pub(super) prepared: Prepared,
    pub(super) reloaded: Reloaded,
    /// What it is made of.
    pub(super) sources: Option<Sources>,
    pub(super) reply: Reply,
}

/// What makes a reload final.
pub(super) struct Prepared {
    /// What the server and the operator's interface keep.
    pub(super) commit: Commit,
    /// The budget that nodes share from then on, if that changes.
    pub(super) budget: NewBudget,
    /// The edits, to be kept.
    pub(super) staged: Option<Staged>,
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
    pub(super) documents: Documents,
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

/// A config that is wanted, before anything has changed.
pub(super) struct Wanted {
    pub(super) config: Config,
    /// What it is made of; `None` = nobody has told.
    pub(super) sources: Option<Sources>,
    pub(super) reloaded: Reloaded,
    /// Longest time that new servers are waited for.
    pub(super) wait: Duration,
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

    /// Makes the config that is asked for and says what it changes. `None` = an edit that changes
    /// nothing.
    ///
    /// Errors: it cannot be read, is refused, or changes what cannot change.
    pub(super) async fn read(
        &mut self,
        asked: Asked,
        base: &Config,
        first_wait: Duration,
    ) -> Result<Option<Wanted>, Refusal> {
        let no_config = || Refusal::unavailable("this process has no config to read again");
        let outside = self.outside.clone().ok_or_else(no_config)?;
        self.held_lock = self.socket_lock.take(Holder::Reload).ok();
        if self.held_lock.is_none() {
            let why = "a handover to another process is under way, with its own config";
            return Err(Refusal::unavailable(why));
        }
        let now = self.documents.now();
        let edited = matches!(asked, Asked::Edit { .. });
        let (sources, wait) = match asked {
            Asked::File => {
                let FileText { name, text } = read_file(&outside.read).await?;
                let sources = match &now {
                    Some(now) => now.sources.upon(name, text),
                    None => Sources::new(name, text),
                };
                (sources, first_wait)
            }
            Asked::Edit { change, wait } => {
                let now = now.as_ref().ok_or_else(no_config)?;
                let sources = change(now)?;
                if sources.overlay == now.sources.overlay {
                    self.held_lock = None;
                    return Ok(None);
                }
                (sources, wait.min(first_wait))
            }
        };
        let (check, checked) = (outside.check.clone(), sources.clone());
        // It may read secrets and certificates from files on a network.
        let checking = spawn_blocking(move || check(&checked));
        let loaded = timeout(READ_MAX, checking).await.map_err(|_| too_slow())?;
        let loaded = loaded.map_err(|_| Refusal::internal("checking the config failed"))?;
        let loaded = loaded.map_err(|report| match edited {
            true => Refusal::of_report(&report),
            false => Refusal::bad_request(report.to_string()),
        })?;
        let changes = diff(base, &loaded.config);
        let fixed: Vec<String> = changes.iter().filter_map(diff::Change::fixed).collect();
        if !fixed.is_empty() {
            let fixed = fixed.join(", ");
            return Err(Refusal::bad_request(format!(
                "{fixed} cannot change while running: nothing was changed; start a second process, which takes over"
            )));
        }
        let warnings = loaded.report.to_string().lines().map(str::to_owned).collect();
        let reloaded = Reloaded { changes, warnings, edited, ..Reloaded::default() };
        Ok(Some(Wanted { config: loaded.config, sources: Some(sources), reloaded, wait }))
    }

    /// Does all that may fail and changes nothing.
    pub(super) async fn prepare(
        &mut self,
        wanted: &Wanted,
        carried: Carried,
    ) -> Result<Prepared, Refusal> {
        let config = &wanted.config;
        let inside = (self.prepare)(config, carried).map_err(Refusal::bad_request)?;
        let outside = match &self.outside {
            Some(hooks) => (hooks.prepare)(config).map_err(Refusal::bad_request)?,
            None => Box::new(|| {}) as Commit,
        };
        let mut changes = wanted.reloaded.changes.iter();
        let budget = match changes.any(|change| change.element == "ratelimit_store") {
            true => Some(self.open_store(config).map_err(Refusal::bad_request)?),
            false => None,
        };
        let staged = stage_edits(self.documents.now(), wanted).await?;
        let commit = move || {
            inside();
            outside();
        };
        Ok(Prepared { commit: Box::new(commit), budget, staged })
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

    /// Says how a reload or an edit went.
    pub(super) fn tell(&mut self, reply: Reply, is_edit: bool, how: Result<Reloaded, Refusal>) {
        self.held_lock = None;
        // A refused edit is told to whoever asked for it alone.
        if !is_edit || how.is_ok() {
            if !is_edit {
                self.status.record(how.is_ok());
            }
            if let Some(outside) = &self.outside {
                (outside.told)(&how.clone().map_err(|refusal| refusal.message));
            }
        }
        // Who asked may have left.
        let _ = reply.send(how);
    }
}

/// Writes the edits beside the file that keeps them, where that does not say them already.
async fn stage_edits(
    now: Option<Arc<Snapshot>>,
    wanted: &Wanted,
) -> Result<Option<Staged>, Refusal> {
    let (Some(place), Some(sources)) = (place(&wanted.config), &wanted.sources) else {
        return Ok(None);
    };
    let is_kept = now.is_some_and(|now| {
        now.place().as_ref() == Some(&place) && now.sources.overlay == sources.overlay
    });
    if is_kept {
        return Ok(None);
    }
    let text = sources.overlay.to_string();
    let staged = spawn_blocking(move || stage(&place, &text)).await;
    let staged = staged.map_err(|_| Refusal::internal("writing the edits failed"))?;
    staged.map(Some).map_err(Refusal::internal)
}

/// Reads the file; not on the control thread itself, since a file on a network may hang.
async fn read_file(read: &ReadAgain) -> Result<FileText, Refusal> {
    let read = read.clone();
    let text = timeout(READ_MAX, spawn_blocking(move || read())).await.map_err(|_| too_slow())?;
    let text = text.map_err(|_| Refusal::internal("reading the config failed"))?;
    text.map_err(Refusal::bad_request)
}

fn too_slow() -> Refusal {
    Refusal::unavailable(format!("not read within {} s", READ_MAX.as_secs()))
}
