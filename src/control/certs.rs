//! Certificates that change while the process runs.
//!
//! A certificate is renewed by writing its files anew. Every 10 seconds their inode, length and
//! times are compared, and they are read again when these differ, or at once when the operator
//! asks (SIGHUP). Settings that can be used go to the reconciler as a fact and so into the next
//! plan. Settings that cannot be used change nothing, are told to the operator in one line, and are
//! read again when the files change again: a pair of which only one file is new yet is such a case.
//! The operator is also told of a certificate that is not renewed, once when its end is near and
//! once when it has come.
//!
//! The keys of session tickets are rotated at the same interval; theirs is the only file written.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::event::{Event, Renewed};
use super::say::Say;
use super::task::Task;
use crate::config::{CertPair, Config, ListenerIndex, UpstreamId};
use crate::net::sys::unix_s;
use crate::net::tls::{Store, TicketContext, client_config, server_config};

/// Time from one look at the files to the next.
pub const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Counts how often certificates were read again.
#[derive(Debug, Default)]
pub struct Reloads {
    done: AtomicU64,
    failed: AtomicU64,
}

impl Reloads {
    /// (listeners and upstreams that got new settings, attempts that failed), since the start.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.failed.load(Ordering::Relaxed))
    }
}

impl Renewed {
    fn files(&self) -> Vec<&Path> {
        match self {
            Self::Listener(_, tls) => tls.files(),
            Self::Upstream(_, tls) => tls.files(),
        }
    }

    fn pairs(&self) -> &[CertPair] {
        match self {
            Self::Listener(_, tls) => &tls.pairs,
            Self::Upstream(_, tls) => tls.client.as_slice(),
        }
    }

    fn reread(&self, read: Read<'_>, store: &Store) -> Result<Self, String> {
        Ok(match self {
            Self::Listener(id, tls) => {
                let tls = tls.reread(read)?;
                // Made here as a trial, so that the reconciler only gets settings that can be used.
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

/// Device, inode, length and times of a file: when one differs, the file is taken as changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 7]);

impl Stamp {
    /// `None` for a file that is not there; so one that comes back counts as changed.
    fn of(path: &Path) -> Option<Self> {
        // Follows links: a mounted secret is renewed by pointing a link at another file.
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
    /// The lines about ends of certificates that the operator has been told.
    ends: HashSet<String>,
}

/// What one look found: new settings, and lines for the operator.
#[derive(Debug, Default)]
struct Found {
    renewed: Vec<Renewed>,
    failed: u64,
    lines: Vec<String>,
}

impl Watch {
    fn new(config: &Config, store: Arc<Store>, now_s: u64) -> Self {
        let mut parts = Vec::new();
        let number = |index: usize| u16::try_from(index).unwrap_or(u16::MAX);
        for (index, listener) in config.listeners.iter().enumerate() {
            if let Some(tls) = listener.tls.clone() {
                let part = Renewed::Listener(ListenerIndex(number(index)), tls);
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
        let mut watch = Self { store, parts, stamps: HashMap::new(), ends: HashSet::new() };
        // The report on the config at the start has told these.
        watch.ends = watch.ends(now_s);
        watch
    }

    fn ends(&self, now_s: u64) -> HashSet<String> {
        let ends = self.parts.iter().flat_map(|(name, part)| {
            let ends = part.pairs().iter().filter_map(|pair| pair.told_of_end(now_s));
            ends.map(move |end| format!("{name}: tls: {end}"))
        });
        ends.collect()
    }

    fn now(&self) -> HashMap<PathBuf, Option<Stamp>> {
        let files = self.parts.iter().flat_map(|(_, part)| part.files());
        files.map(|path| (path.to_owned(), Stamp::of(path))).collect()
    }

    /// Reads the files that have changed, or all when `asked`; rotates the ticket keys.
    fn reread_changed(&mut self, asked: bool, read: Read<'_>, now_s: u64) -> Found {
        // Stamps first: a file that changes while it is read is read again next time.
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
        let ends = self.ends(now_s);
        found.lines.extend(ends.difference(&self.ends).cloned());
        self.ends = ends;
        if let Err(why) = self.store.tickets().rotate() {
            found.lines.push(format!("TLS ticket keys cannot be kept: {why}"));
        }
        found
    }
}

/// Looks at the files for as long as the task lives; a notification of `asked` makes it read all of
/// them at once.
pub(super) fn keep_watch(
    config: &Config,
    store: Arc<Store>,
    asked: Arc<Notify>,
    counts: Arc<Reloads>,
    events: mpsc::Sender<Event>,
    say: Say,
) -> Task {
    let mut watch = Watch::new(config, store, unix_s());
    Task::of(tokio::spawn(async move {
        loop {
            let by_hand = timeout(CHECK_INTERVAL, asked.notified()).await.is_ok();
            // Reads may hang on a network file system: not on the control thread itself.
            let looked = spawn_blocking(move || {
                let found = watch.reread_changed(by_hand, &read, unix_s());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Outside, load};
    use crate::pki::tests::authority::Authority;

    /// 2030-01-01.
    const END_S: u64 = 1_893_456_000;

    #[test]
    fn a_certificate_that_nobody_renews_is_told_when_its_end_is_near_and_when_it_has_come() {
        let authority = Authority::new("ca");
        let (cert, key) = authority.sign_until("a", &["a.test"], 2030);
        let (renewed, renewed_key) = authority.sign("a", &["a.test"]);
        let before = |path: &Path| Ok(if path.ends_with("k.pem") { &key } else { &cert }.clone());
        let after =
            |path: &Path| Ok(if path.ends_with("k.pem") { &renewed_key } else { &renewed }.clone());
        let text = "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
                    tls = { cert = \"c.pem\", key = \"k.pem\" }\n";
        let outside = Outside { env: &|_| None, read: &before, now_s: 1 };
        let config = load("f", text, &outside).unwrap_or_else(|why| panic!("{why}")).config;
        let watch = |now_s| Watch::new(&config, Arc::new(Store::default()), now_s);
        let day = 86_400;
        let mut early = watch(END_S - 30 * day);
        let mut told = |now_s, read: Read<'_>| early.reread_changed(false, read, now_s).lines;
        assert_eq!(told(END_S - 8 * day, &before), Vec::<String>::new());
        let soon = "listener l: tls: c.pem: the certificate expires on 2030-01-01T00:00:00Z and \
                    has not been renewed";
        assert_eq!(told(END_S - 6 * day, &before), [soon]);
        assert_eq!(told(END_S, &before), Vec::<String>::new());
        let over = "listener l: tls: c.pem: the certificate expired on 2030-01-01T00:00:00Z";
        assert_eq!(told(END_S + 1, &before), [over]);
        assert_eq!(told(END_S + 2, &before), Vec::<String>::new());
        // What the start has said is not said again, nor is there anything to say once renewed.
        let mut late = watch(END_S + 1);
        assert_eq!(late.reread_changed(false, &before, END_S + 2).lines, Vec::<String>::new());
        let lines = late.reread_changed(true, &after, END_S + 3).lines;
        assert_eq!(lines, ["listener l: new certificates are in force"]);
        assert_eq!(late.ends, HashSet::new());
    }
}
