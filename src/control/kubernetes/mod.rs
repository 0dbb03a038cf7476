//! The targets of a Service of Kubernetes (`k8s:NAMESPACE/SERVICE`), by its EndpointSlices.
//!
//! One task an entry: it lists the slices (`slices` makes targets of them) and then watches them
//! from the list's version on. A watch ends often and without fault, since API servers end each
//! after some minutes: it goes on from the version that was seen last. When that version is too old
//! (410) everything is listed anew. `client` knows the way to the API server.
//!
//! What fails is told once and tried again, ever more seldom and never by all nodes at the same
//! moment. The last targets stay meanwhile: old ones are better than none.
//!
//! Source: Kubernetes API Concepts, "Efficient detection of changes"; EndpointSlice v1.

mod client;
mod slices;

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::core::Status;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::event::{EntryNumber, Event};
use crate::base::rng::Rng;
use crate::config::{KubernetesService, Target};
use client::{client, told};
use slices::Slices;

/// Longest wait for the credentials, and for the head of an answer or a whole list.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// An API server ends a watch after this time and up to `WATCH_SPREAD` more, which keeps the nodes
/// from coming back all together.
const WATCH: Duration = Duration::from_secs(240);
const WATCH_SPREAD: Duration = Duration::from_secs(50);
/// A watch that is still open so long after its time counts as broken.
const WATCH_LATE: Duration = Duration::from_secs(15);
/// A watch that ended sooner and brought nothing is followed by a pause.
const WATCH_MIN: Duration = Duration::from_secs(5);
/// Pause after the first failure; doubled after each further one, up to `FAILED_MAX`.
const FAILED_MIN: Duration = Duration::from_secs(1);
const FAILED_MAX: Duration = Duration::from_secs(30);

/// Follows a Service for as long as the task lives, and sends its targets, or why they cannot be
/// known. `url_port` is the port of servers whose Service names none.
pub(super) async fn follow(
    id: EntryNumber,
    service: KubernetesService,
    url_port: u16,
    kubeconfig: Option<PathBuf>,
    events: mpsc::Sender<Event>,
) {
    let seed = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), id);
    let mut watcher = Watcher {
        id,
        service,
        url_port,
        kubeconfig,
        events,
        slices: Slices::default(),
        version: None,
        backoff: Backoff { next: FAILED_MIN, rng: Rng::new(seed) },
    };
    watcher.run().await;
}

struct Watcher {
    id: EntryNumber,
    service: KubernetesService,
    url_port: u16,
    kubeconfig: Option<PathBuf>,
    events: mpsc::Sender<Event>,
    slices: Slices,
    /// The version that `slices` are of; none = they must be listed.
    version: Option<String>,
    backoff: Backoff,
}

/// Why a list and its watch are over.
enum End {
    /// The watch ended, as each does, or its connection broke.
    Ended,
    /// The version is too old to watch from.
    Gone,
    /// A text for the operator, and how long the API server wants to be left alone.
    Failed(String, Duration),
    /// Nobody receives the targets any more.
    Over,
}

/// What was asked of the API server.
#[derive(Clone, Copy)]
enum Verb {
    List,
    Watch,
}

impl Watcher {
    async fn run(&mut self) {
        loop {
            let begun = Instant::now();
            let end = match self.list_and_watch().await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            // A list alone is no service: an API whose watches end at once is asked ever more seldom.
            let has_served = begun.elapsed() >= WATCH_MIN && !matches!(end, End::Failed(..));
            if has_served {
                self.backoff.next = FAILED_MIN;
            }
            match end {
                End::Over => return,
                // Another list at once, but not again and again.
                End::Gone if has_served => self.version = None,
                End::Gone => {
                    self.version = None;
                    sleep(self.backoff.pause()).await;
                }
                End::Ended if begun.elapsed() >= WATCH_MIN => {}
                End::Ended => sleep(self.backoff.pause()).await,
                End::Failed(why, least) => {
                    if self.events.send(Event::Targets(self.id, Err(why))).await.is_err() {
                        return;
                    }
                    sleep(self.backoff.pause().max(least.min(FAILED_MAX))).await;
                }
            }
        }
    }

    async fn list_and_watch(&mut self) -> Result<std::convert::Infallible, End> {
        let failed = |why| End::Failed(why, Duration::ZERO);
        let late = |_| failed(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()));
        let client = timeout(ANSWER_TIMEOUT, client(self.kubeconfig.clone())).await;
        let client = client.map_err(late)?.map_err(failed)?;
        let api: Api<EndpointSlice> = Api::namespaced(client, &self.service.namespace);
        let of_service = format!("kubernetes.io/service-name={}", self.service.name);
        if self.version.is_none() {
            let asked = ListParams::default().labels(&of_service);
            let list = timeout(ANSWER_TIMEOUT, api.list(&asked)).await.map_err(late)?;
            let list = list.map_err(|error| self.end(Verb::List, &error))?;
            self.slices.replace(list.items);
            self.version = list.metadata.resource_version;
            self.tell().await?;
        }
        // Without a version there is no way to say where a watch begins; "0" is any.
        let version = self.version.clone().unwrap_or_else(|| "0".to_owned());
        let spread = self.backoff.rng.below(WATCH_SPREAD.as_secs());
        let lasts = WATCH + Duration::from_secs(spread);
        let seconds = u32::try_from(lasts.as_secs()).unwrap_or(u32::MAX);
        let asked = WatchParams::default().labels(&of_service).timeout(seconds);
        let watch = timeout(ANSWER_TIMEOUT, api.watch(&asked, &version)).await.map_err(late)?;
        let watch = watch.map_err(|error| self.end(Verb::Watch, &error))?;
        // It works again, which is news after a failure.
        self.tell().await?;
        let by = Instant::now() + lasts + WATCH_LATE;
        let mut watch = pin!(watch);
        loop {
            match timeout_at(by, watch.try_next()).await {
                Ok(Ok(Some(event))) => self.take(event).await?,
                Ok(Ok(None)) | Err(_) => return Err(End::Ended),
                // An event was cut or is none: what it would have said is not known.
                Ok(Err(kube::Error::SerdeError(error))) => {
                    self.version = None;
                    return Err(failed(format!(
                        "an event of the watch is not understood: {error}"
                    )));
                }
                Ok(Err(kube::Error::Api(status))) => return Err(self.refused(Verb::Watch, &status)),
                // The connection broke: the next watch goes on behind the last whole event.
                Ok(Err(_)) => return Err(End::Ended),
            }
        }
    }

    async fn take(&mut self, event: WatchEvent<EndpointSlice>) -> Result<(), End> {
        let version = match event {
            WatchEvent::Added(slice) | WatchEvent::Modified(slice) => {
                let version = slice.metadata.resource_version.clone();
                self.slices.put(slice);
                version
            }
            WatchEvent::Deleted(slice) => {
                self.slices.remove(&slice);
                slice.metadata.resource_version
            }
            WatchEvent::Bookmark(bookmark) => {
                self.version = Some(bookmark.metadata.resource_version);
                return Ok(());
            }
            WatchEvent::Error(status) => return Err(self.refused(Verb::Watch, &status)),
        };
        self.version = version.or(self.version.take());
        self.tell().await
    }

    /// Sends the targets as they are now.
    async fn tell(&self) -> Result<(), End> {
        let found = self.slices.targets(self.service.port.as_ref(), self.url_port);
        let found: Result<Vec<Target>, String> = found.map_err(|why| self.about(&why));
        let sent = self.events.send(Event::Targets(self.id, found)).await;
        sent.map_err(|_| End::Over)
    }

    fn about(&self, why: &str) -> String {
        let KubernetesService { namespace, name, .. } = &self.service;
        format!("Service {name} of namespace {namespace}: {why}")
    }

    /// What an error of `kube` means.
    fn end(&self, verb: Verb, error: &kube::Error) -> End {
        match error {
            kube::Error::Api(status) => self.refused(verb, status),
            error => End::Failed(format!("API server: {}", told(error)), Duration::ZERO),
        }
    }

    /// What an answer means that is none of 2xx, or an error within a watch.
    fn refused(&self, verb: Verb, status: &Status) -> End {
        let Status { code, message, .. } = status;
        let verb = match verb {
            Verb::List => "list",
            Verb::Watch => "watch",
        };
        let namespace = &self.service.namespace;
        let why = match code {
            410 => return End::Gone,
            401 => format!("the API server does not accept our credentials: {message}"),
            403 => format!(
                "no right to {verb} endpointslices in namespace {namespace}; a Role must allow \
                 get, list and watch on endpointslices of discovery.k8s.io: {message}"
            ),
            404 => format!(
                "the API server knows no EndpointSlices; Kubernetes 1.21 or later is needed: \
                 {message}"
            ),
            code => format!("the API server answers {verb} with {code}: {message}"),
        };
        let wait = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
        End::Failed(why, Duration::from_secs(wait.into()))
    }
}

/// The pauses after failures.
struct Backoff {
    next: Duration,
    rng: Rng,
}

impl Backoff {
    /// The pause now: between half of what is due and all of it.
    fn pause(&mut self) -> Duration {
        let due = self.next;
        self.next = (due * 2).min(FAILED_MAX);
        due.mul_f64(0.5 + self.rng.f64() / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_bound_and_differ_between_nodes() {
        let of = |seed| Backoff { next: FAILED_MIN, rng: Rng::new(seed) };
        let (mut one, mut other) = (of(1), of(2));
        let (mut differ, mut due) = (false, FAILED_MIN);
        for _ in 0..8 {
            let pauses = [one.pause(), other.pause()];
            assert!(pauses.iter().all(|pause| (due / 2..=due).contains(pause)), "{pauses:?}");
            differ |= pauses[0] != pauses[1];
            due = (due * 2).min(FAILED_MAX);
        }
        assert!(differ);
    }

    fn watcher() -> (Watcher, mpsc::Receiver<Event>) {
        let (events, inbox) = mpsc::channel(8);
        let service =
            KubernetesService { namespace: "ml".to_owned(), name: "vllm".to_owned(), port: None };
        let watcher = Watcher {
            id: EntryNumber(0),
            service,
            url_port: 80,
            kubeconfig: None,
            events,
            slices: Slices::default(),
            version: None,
            backoff: Backoff { next: FAILED_MIN, rng: Rng::new(1) },
        };
        (watcher, inbox)
    }

    #[test]
    fn what_is_refused_names_the_right_that_is_missing() {
        let (watcher, _inbox) = watcher();
        let status = |code| Status { code, message: "said".to_owned(), ..Status::default() };
        let why = |verb, code| match watcher.refused(verb, &status(code)) {
            End::Failed(why, _) => why,
            End::Gone => "gone".to_owned(),
            _ => "other".to_owned(),
        };
        assert_eq!(why(Verb::Watch, 410), "gone");
        for (verb, begin) in [
            (Verb::List, "no right to list endpointslices in namespace ml; "),
            (Verb::Watch, "no right to watch endpointslices in namespace ml; "),
        ] {
            let told = why(verb, 403);
            assert!(told.starts_with(begin) && told.ends_with("discovery.k8s.io: said"), "{told}");
        }
        assert_eq!(why(Verb::List, 500), "the API server answers list with 500: said");
    }
}
