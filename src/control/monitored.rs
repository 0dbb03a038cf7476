//! One upstream as the control thread sees it: where it is, and what was found out about it.
//!
//! `probe` and `model_list` are the two things that are done to it; both end in the same record,
//! which the operator reads. Cores read nothing of it but the one flag in `UpstreamState`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::event::Event;
use crate::config::{ModelsFrom, Upstream};
use crate::net::dial::Address;
use crate::net::tls::TlsClient;
use crate::policy::health::HealthState;
use crate::upstream::roster::Identity;
use crate::upstream::state::UpstreamState;

/// Longest that a check asked for by the operator waits for a list of models.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// An upstream that is monitored.
pub struct Monitored {
    /// Its entry.
    pub upstream: Upstream,
    /// What TLS is spoken with it, the same as by the cores; or why none can be.
    pub tls: Result<Option<Arc<TlsClient>>, String>,
    /// What makes it the same in the next config.
    pub identity: Identity,
    /// What the cores share about it.
    pub state: Arc<UpstreamState>,
    /// Asks for its models now.
    pub poke: Notify,
    /// Whether any listener leads to it.
    pub(super) reached: AtomicBool,
    pub(super) events: mpsc::Sender<Event>,
    facts: Mutex<Facts>,
}

/// How it is, as far as anybody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has answered, and nothing says that it is down.
    Healthy,
    /// Probes say that it is down, or nobody was there.
    Unhealthy,
    /// Nobody has asked it yet, or nobody knows where it is.
    Unknown,
}

impl Standing {
    /// The word that the operator reads.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Standing::Healthy => "healthy",
            Standing::Unhealthy => "unhealthy",
            Standing::Unknown => "unknown",
        }
    }
}

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) addresses: Vec<Address>,
    /// Of an upstream with probes.
    pub(super) health: Option<HealthState>,
    /// Nobody listened when it was last rechecked.
    pub(super) refused: bool,
    pub(super) checked: Checked,
}

/// The record of all questions, for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// When it was last asked anything, milliseconds since 1970.
    pub last_unix_ms: Option<u64>,
    /// Questions without a good answer.
    pub errors: u64,
    /// Why the last of these failed; kept when it is well again.
    pub last_error: Option<String>,
    /// It was asked for its models, and nobody was there or answered in time (`LATE_AFTER`).
    pub unreachable: bool,
}

impl Monitored {
    pub(super) fn new(
        upstream: Upstream,
        tls: Result<Option<Arc<TlsClient>>, String>,
        state: Arc<UpstreamState>,
        addresses: Vec<Address>,
        events: mpsc::Sender<Event>,
    ) -> Arc<Self> {
        let health = upstream.health.as_ref().map(|h| HealthState::new(h.fall, h.rise));
        let facts = Facts { addresses, health, ..Facts::default() };
        // One that was down when it left and comes back is as unknown as the counts above.
        state.set_healthy(true);
        state.set_away(false);
        state.set_late(false);
        let asked = upstream.models == ModelsFrom::Discover && upstream.enabled;
        state.set_unheard(asked);
        Arc::new(Self {
            identity: Identity::of(&upstream),
            upstream,
            tls,
            state,
            poke: Notify::new(),
            reached: AtomicBool::new(true),
            events,
            facts: Mutex::new(facts),
        })
    }

    /// Whether it is up for all that is known.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.state.healthy() && !self.facts().checked.unreachable
    }

    /// What is known of it.
    ///
    /// Shape: one that nobody has asked and that has answered nobody is unknown, and so is one
    /// that nobody knows where to find: it is picked, if it can be, and not counted as healthy.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let facts = self.facts();
        if !self.state.healthy() || facts.checked.unreachable {
            return Standing::Unhealthy;
        }
        let asked = facts.checked.last_unix_ms.is_some() || self.state.attempts() > 0;
        match asked && !facts.addresses.is_empty() {
            true => Standing::Healthy,
            false => Standing::Unknown,
        }
    }

    /// Whether a request could be sent there: it is switched on, a listener reaches it, it is
    /// known where it is, and not known to be down.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.upstream.enabled
            && self.reached.load(Ordering::Relaxed)
            && self.healthy()
            && !self.facts().addresses.is_empty()
    }

    /// The record.
    #[must_use]
    pub fn checked(&self) -> Checked {
        self.facts().checked.clone()
    }

    /// Finds out now how it is: by its probe, or without one by asking for its models.
    pub async fn check(&self) {
        if self.upstream.health.is_some() {
            self.probe().await;
        } else if self.upstream.models == ModelsFrom::Discover {
            // The operator waits for it.
            let _ = timeout(CHECK_MAX, self.list_models()).await;
        }
    }

    pub(super) fn addresses(&self) -> Vec<Address> {
        self.facts().addresses.clone()
    }

    /// Where it is from now on; true when that is another place.
    pub(super) fn moved_to(&self, addresses: &[Address]) -> bool {
        let mut facts = self.facts();
        let moved = facts.addresses != addresses;
        if moved {
            facts.addresses = addresses.to_vec();
        }
        moved
    }

    /// Writes down that it was asked, and why in vain.
    pub(super) fn note(&self, error: Option<&str>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let checked = &mut self.facts().checked;
        checked.last_unix_ms = u64::try_from(now.as_millis()).ok();
        if let Some(why) = error {
            checked.errors += 1;
            checked.last_error = Some(why.to_owned());
        }
    }

    /// The facts; held for a moment only, never over an await.
    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn one_that_comes_back_is_unknown_and_counts_as_healthy() {
        let text = "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
                    [[upstream]]\nname = \"u\"\nurl = \"http://h\"\nhealth = { fall = 1 }\n";
        let config = Config::from_toml_str(text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
        let upstream = config.upstreams[0].clone();
        let state = Arc::new(UpstreamState::new(upstream.breaker, upstream.concurrency));
        // An exchange of the old plan holds the state in which the probes left it.
        state.set_healthy(false);
        let (events, _inbox) = mpsc::channel(1);
        let monitored = Monitored::new(upstream, Ok(None), state.clone(), Vec::new(), events);
        assert!(monitored.healthy() && state.healthy());
        monitored.note(Some("refused"));
        monitored.note(None);
        let checked = monitored.checked();
        assert_eq!((checked.errors, checked.last_error.as_deref()), (1, Some("refused")));
    }
}
