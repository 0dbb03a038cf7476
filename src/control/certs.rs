//! Certificates that change while the process runs.
//!
//! Whoever renews a certificate writes its files anew. They are looked at every 10 seconds by
//! inode, length and times, and read again when these differ, or at once when the operator asks
//! (SIGHUP). What can be used goes to the fleet as a fact and so into the next plan; what cannot
//! changes nothing, is told in one line, and is read again when the files change again. A pair
//! that is half renewed is such a case.
//!
//! The keys of session tickets are rotated at the same beat: the one file that is written.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Say;
use super::fetch::Task;
use super::fleet::Event;
use crate::config::{Config, ListenerId, ListenerTls, UpstreamId, UpstreamTls};
use crate::net::tls::{Store, TicketContext, client_config, server_config};

/// From one look at the files to the next.
pub const LOOK: Duration = Duration::from_secs(10);
/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// How often certificates were read again.
#[derive(Debug, Default)]
pub struct Reloads {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Reloads {
    /// Listeners and upstreams that got a new one, and attempts that failed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

/// Settings with what is in their files now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// Of a listener.
    Listener(ListenerId, ListenerTls),
    /// Of an entry of the file.
    Upstream(UpstreamId, UpstreamTls),
}

impl Renewed {
    fn files(&self) -> Vec<&Path> {
        match self {
            Self::Listener(_, tls) => tls.files(),
            Self::Upstream(_, tls) => tls.files(),
        }
    }

    fn reread(&self, read: Read<'_>, store: &Store) -> Result<Self, String> {
        Ok(match self {
            Self::Listener(id, tls) => {
                let tls = tls.reread(read)?;
                // Tried here, so that what goes to the fleet can be used.
                server_config(&tls, store.tickets().for_context(TicketContext::of(&tls)))?;
                Self::Listener(*id, tls)
            }
            Self::Upstream(id, tls) => {
                let tls = tls.reread(read)?;
                client_config(&tls, false)?;
                Self::Upstream(*id, tls)
            }
        })
    }
}

type Read<'a> = &'a dyn Fn(&Path) -> Result<String, String>;

/// By what a change of a file is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 7]);

impl Stamp {
    /// `None` for a file that is not there; one that comes back has changed.
    fn of(path: &Path) -> Option<Self> {
        // Through links: a mounted secret is renewed by another link.
        let meta = std::fs::metadata(path).ok()?;
        let whole = |n: u64| i64::from_ne_bytes(n.to_ne_bytes());
        let times = [meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()];
        let [a, b, c, d] = times;
        Some(Self([whole(meta.dev()), whole(meta.ino()), whole(meta.size()), a, b, c, d]))
    }
}

/// All settings with files, and what the files looked like when they were last read.
struct Watch {
    store: Arc<Store>,
    parts: Vec<(String, Renewed)>,
    stamps: HashMap<PathBuf, Option<Stamp>>,
}

/// What one look found: new settings, and lines for the operator.
#[derive(Debug, Default)]
struct Found {
    renewed: Vec<Renewed>,
    failed: u64,
    lines: Vec<String>,
}

impl Watch {
    fn new(config: &Config, store: Arc<Store>) -> Self {
        let mut parts = Vec::new();
        let number = |index: usize| u16::try_from(index).unwrap_or(u16::MAX);
        for (index, listener) in config.listeners.iter().enumerate() {
            if let Some(tls) = listener.tls.clone() {
                let part = Renewed::Listener(ListenerId(number(index)), tls);
                parts.push((format!("listener {}", listener.name), part));
            }
        }
        let https = config.upstreams.iter().enumerate().filter(|(_, one)| one.url.tls);
        for (index, upstream) in https {
            if !upstream.tls.files().is_empty() {
                let part = Renewed::Upstream(UpstreamId(number(index)), upstream.tls.clone());
                parts.push((format!("upstream {}", upstream.name), part));
            }
        }
        // No stamp yet: the files may have changed since the config was read, so the first look
        // reads them all.
        Self { store, parts, stamps: HashMap::new() }
    }

    fn now(&self) -> HashMap<PathBuf, Option<Stamp>> {
        let files = self.parts.iter().flat_map(|(_, part)| part.files());
        files.map(|path| (path.to_owned(), Stamp::of(path))).collect()
    }

    /// Reads what has changed, or everything when `asked`.
    fn look(&mut self, asked: bool, read: Read<'_>) -> Found {
        // Stamps first: what changes while it is read is read again.
        let stamps = self.now();
        let before = std::mem::replace(&mut self.stamps, stamps);
        let mut found = Found::default();
        for (name, part) in &mut self.parts {
            let changed =
                part.files().iter().any(|path| before.get(*path) != self.stamps.get(*path));
            if !changed && !asked {
                continue;
            }
            match part.reread(read, &self.store) {
                Ok(after) if after == *part => {}
                Ok(after) => {
                    *part = after.clone();
                    found.renewed.push(after);
                    found.lines.push(format!("{name}: new certificates are in force"));
                }
                Err(why) => {
                    found.failed += 1;
                    found.lines.push(format!("{name}: tls: {why}; what was in force stays"));
                }
            }
        }
        if asked && found.lines.is_empty() {
            found.lines.push("certificates: none has changed".to_owned());
        }
        if let Err(why) = self.store.tickets().rotate() {
            found.lines.push(format!("TLS ticket keys cannot be kept: {why}"));
        }
        found
    }
}

/// Looks for as long as the task lives; `asked` makes it look now and at everything.
pub(super) fn keep_watch(
    config: &Config,
    store: Arc<Store>,
    asked: Arc<Notify>,
    counts: Arc<Reloads>,
    events: mpsc::Sender<Event>,
    say: Say,
) -> Task {
    let mut watch = Watch::new(config, store);
    Task::of(tokio::spawn(async move {
        loop {
            let by_hand = timeout(LOOK, asked.notified()).await.is_ok();
            // A folder that is mounted from elsewhere can hang.
            let looked = spawn_blocking(move || {
                let found = watch.look(by_hand, &read);
                (watch, found)
            });
            let Ok((back, found)) = looked.await else { return };
            watch = back;
            counts.failed.fetch_add(found.failed, Ordering::Relaxed);
            let renewed = found.renewed.len() as u64;
            if renewed > 0 && events.send(Event::Renewed(found.renewed)).await.is_err() {
                return;
            }
            counts.done.fetch_add(renewed, Ordering::Relaxed);
            found.lines.iter().for_each(|line| say(line));
        }
    }))
}

fn read(path: &Path) -> Result<String, String> {
    let told = |why: std::io::Error| why.to_string();
    if std::fs::metadata(path).map_err(told)?.len() > FILE_BYTES_MAX {
        return Err(format!("more than {FILE_BYTES_MAX} bytes"));
    }
    std::fs::read_to_string(path).map_err(told)
}
