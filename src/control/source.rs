//! The tasks that look up targets (`discover`) and host names, again and again.
//!
//! Each sends the reconciler what it found; a failure is sent too and changes nothing there, so the
//! last good answer stays. Files are read once a second and compared by content. A watch on the
//! path would miss changes, since a config map and many editors replace the file by a rename; and
//! length and time would miss a change of equal length within one tick of the clock.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;

use super::event::{EntryNumber, Event};
#[cfg(feature = "kubernetes")]
use super::kubernetes;
use super::resolve::Resolver;
use super::task::Task;
use crate::config::{Discover, Target, Upstream, parse_file_sd};
use crate::telemetry::prometheus::SourceRow;

/// Time from one read of a file to the next.
const FILE_INTERVAL: Duration = Duration::from_secs(1);
/// Longest file of targets, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Pause after the first lookup that failed; doubled after each further one, up to `FAILED_MAX`.
const FAILED_MIN: Duration = Duration::from_secs(1);
const FAILED_MAX: Duration = Duration::from_secs(30);

/// How each entry with `discover` does, for the operator's interface; clones show the same.
#[derive(Clone, Default)]
pub struct SourceRows(Arc<Mutex<Vec<SourceRow>>>);

impl SourceRows {
    /// Shows these from now on, by name.
    pub(super) fn show(&self, mut rows: Vec<SourceRow>) {
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = rows;
    }

    /// What is shown.
    pub(super) fn rows(&self) -> Vec<SourceRow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Looks up the addresses of a host name for as long as the task lives, and sends each result.
pub fn name(host: String, resolver: Resolver, events: mpsc::Sender<Event>) -> Task {
    Task::of(tokio::spawn(async move {
        let mut pause = Pause::default();
        loop {
            let (found, wait) = match resolver.addresses(&host).await {
                Ok(answer) => (Ok(answer.found), pause.after_success(answer.holds)),
                Err(why) => (Err(why), pause.after_failure()),
            };
            if events.send(Event::Addresses(host.clone(), found)).await.is_err() {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }))
}

/// Looks up the targets of an entry for as long as the task lives, and sends each result; `None`
/// for an entry without `discover`. `kubeconfig` is `discovery.kubeconfig`.
pub fn targets(
    id: EntryNumber,
    entry: &Upstream,
    resolver: Resolver,
    #[cfg_attr(not(feature = "kubernetes"), expect(unused_variables))] kubeconfig: Option<&Path>,
    events: mpsc::Sender<Event>,
) -> Option<Task> {
    let port = entry.url.port;
    match entry.discover.clone()? {
        Discover::File(path) => Some(Task::of(tokio::spawn(file(id, path, port, events)))),
        source @ (Discover::Dns { .. } | Discover::Srv(_)) => {
            Some(Task::of(tokio::spawn(records(id, source, resolver, events))))
        }
        #[cfg(feature = "kubernetes")]
        Discover::K8s(service) => {
            let kubeconfig = kubeconfig.map(Path::to_path_buf);
            let follow = kubernetes::follow(id, service, port, kubeconfig, events);
            Some(Task::of(tokio::spawn(follow)))
        }
        // Refused when the config is read.
        #[cfg(not(feature = "kubernetes"))]
        Discover::K8s(_) => None,
    }
}

async fn records(
    id: EntryNumber,
    source: Discover,
    resolver: Resolver,
    events: mpsc::Sender<Event>,
) {
    let mut pause = Pause::default();
    loop {
        let answer = match &source {
            Discover::Dns { name, port } => {
                resolver.addresses(name).await.map(|answer| super::resolve::Answer {
                    found: of_addresses(&answer.found, *port),
                    holds: answer.holds,
                })
            }
            Discover::Srv(name) => resolver.services(name).await,
            Discover::File(_) | Discover::K8s(_) => return,
        };
        let (found, wait) = match answer {
            Ok(answer) => (Ok(answer.found), pause.after_success(answer.holds)),
            Err(why) => (Err(why), pause.after_failure()),
        };
        if events.send(Event::Targets(id, found)).await.is_err() {
            return;
        }
        tokio::time::sleep(wait).await;
    }
}

/// One target for each address; only those of IPv4 when there is any, since a server with both
/// kinds of address would count twice.
fn of_addresses(addresses: &[std::net::IpAddr], port: u16) -> Vec<Target> {
    let four = addresses.iter().any(|ip| ip.is_ipv4());
    let one_kind = addresses.iter().filter(|ip| ip.is_ipv4() == four);
    one_kind.map(|ip| Target { host: ip.to_string(), port, weight: 1 }).collect()
}

async fn file(id: EntryNumber, path: PathBuf, port: u16, events: mpsc::Sender<Event>) {
    let mut last = None;
    loop {
        let from = path.clone();
        // A file on a network file system that hangs must not stop the control thread.
        let read = tokio::task::spawn_blocking(move || read(&from)).await;
        let read = read.unwrap_or_else(|error| Err(error.to_string()));
        if last.as_ref() != Some(&read) {
            let shown = path.display();
            let targets = read.as_ref().map_err(Clone::clone);
            let targets = targets.and_then(|text| parse_file_sd(text, port));
            let found = targets.map_err(|why| format!("{shown}: {why}"));
            if events.send(Event::Targets(id, found)).await.is_err() {
                return;
            }
            last = Some(read);
        }
        tokio::time::sleep(FILE_INTERVAL).await;
    }
}

fn read(path: &PathBuf) -> Result<Vec<u8>, String> {
    let told = |error: std::io::Error| error.to_string();
    let bytes = std::fs::metadata(path).map_err(told)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!("{bytes} bytes, limit {FILE_BYTES_MAX}"));
    }
    std::fs::read(path).map_err(told)
}

/// The pause before the next lookup: the next one after a failure.
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FAILED_MIN)
    }
}

impl Pause {
    fn after_success(&mut self, holds: Duration) -> Duration {
        self.0 = FAILED_MIN;
        holds
    }

    fn after_failure(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(FAILED_MAX);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_both_kinds_of_address_is_one() {
        let ips = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|ip| ip.parse().unwrap());
        let hosts = |ips: &[_]| -> Vec<String> {
            of_addresses(ips, 80).into_iter().map(|target| target.host).collect()
        };
        assert_eq!(hosts(&ips), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(hosts(&ips[2..]), ["fd00::1"]);
    }

    #[test]
    fn failures_are_repeated_ever_more_seldom() {
        let mut pause = Pause::default();
        let waits: Vec<u64> = (0..7).map(|_| pause.after_failure().as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        assert_eq!(pause.after_success(Duration::from_secs(9)).as_secs(), 9);
        assert_eq!(pause.after_failure().as_secs(), 1);
    }
}
