//! One upstream as the control thread sees it: its addresses, and what was found out about it.
//!
//! `probe` and `model_list` ask it; both write the same record (`Checked`), which the operator
//! reads. Cores read none of this, only the flags in `UpstreamState`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::event::Event;
use crate::base::clock::WallTime;
use crate::config::{ModelsFrom, Upstream};
use crate::net::dial::Address;
use crate::net::sys;
use crate::net::tls::TlsClient;
use crate::policy::health::HealthState;
use crate::upstream::identity::Identity;
use crate::upstream::state::UpstreamState;

/// Longest time that a check asked for by the operator waits for a list of models.
const CHECK_MAX: Duration = Duration::from_secs(5);

/// An upstream of the config in force, and what is known of it.
pub struct Monitored {
    /// Its entry in the config in force.
    pub upstream: Upstream,
    /// The TLS config for it, the same that the cores use; `None` without TLS; or why none can be
    /// made.
    pub tls: Result<Option<Arc<TlsClient>>, String>,
    /// By what it is found again in the next config.
    pub identity: Identity,
    /// What the cores and this thread share about it.
    pub state: Arc<UpstreamState>,
    /// Notified to ask for its models now.
    pub poke: Notify,
    /// Whether any listener leads to it.
    pub(super) reached: AtomicBool,
    pub(super) events: mpsc::Sender<Event>,
    facts: Mutex<Facts>,
}

/// Its health, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has answered, and nothing says that it is down.
    Healthy,
    /// Probes say that it is down, or it could not be reached when asked for its models.
    Unhealthy,
    /// It has not been asked anything yet, or it has no address.
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

/// What the control thread has found out about it.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) addresses: Vec<Address>,
    /// The counts of its probes; `None` without `health`.
    pub(super) health: Option<HealthState>,
    /// Its last recheck ended in `FetchError::Dead`: no connection, or one without an answer.
    pub(super) refused: bool,
    pub(super) checked: Checked,
}

/// The record of all probes and requests for models, for the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// When it was last asked; `None` before the first time.
    pub last: Option<WallTime>,
    /// How many times it gave no good answer.
    pub errors: u64,
    /// Why it gave none the last time; kept when it is well again.
    pub last_error: Option<String>,
    /// When last asked for its models it was dead, or did not answer in time (`LATE_AFTER`).
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
        // The state may be that of an upstream that was down when it left the config: what is known
        // of it begins anew, like the counts of its probes above.
        state.set_healthy(true);
        state.set_probed(upstream.health.is_some());
        state.set_away(false);
        state.set_late(false);
        state.set_unheard(is_asked(&upstream));
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

    /// The same upstream by other settings.
    ///
    /// Shape: what was found out stays, such as that it is down, with other thresholds for what
    /// follows; only what nobody looks at any more is forgotten.
    pub(super) fn renewed(
        &self,
        upstream: Upstream,
        tls: Result<Option<Arc<TlsClient>>, String>,
    ) -> Arc<Self> {
        let mut facts = self.facts().clone();
        facts.health = upstream.health.as_ref().map(|health| match facts.health.take() {
            Some(mut known) => {
                known.adopt(health.fall, health.rise);
                known
            }
            None => HealthState::new(health.fall, health.rise),
        });
        if upstream.health.is_some() != self.upstream.health.is_some() {
            self.state.set_probed(upstream.health.is_some());
        }
        if facts.health.is_none() || !upstream.enabled {
            self.state.set_healthy(true);
            facts.health = upstream.health.as_ref().map(|h| HealthState::new(h.fall, h.rise));
        }
        if !is_asked(&upstream) {
            facts.checked.unreachable = false;
            self.state.set_late(false);
            self.state.set_unheard(false);
        } else if !is_asked(&self.upstream) {
            self.state.set_unheard(true);
        }
        Arc::new(Self {
            identity: self.identity.clone(),
            upstream,
            tls,
            state: self.state.clone(),
            poke: Notify::new(),
            reached: AtomicBool::new(self.reached.load(Ordering::Relaxed)),
            events: self.events.clone(),
            facts: Mutex::new(facts),
        })
    }

    /// Whether neither probes nor requests for models say that it is down.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.state.healthy() && !self.facts().checked.unreachable
    }

    /// Its health for the operator.
    ///
    /// Shape: an upstream that was neither asked nor tried by a core is `Unknown`, and so is one
    /// without an address: it may still be picked, but is not counted as healthy.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let facts = self.facts();
        if !self.state.healthy() || facts.checked.unreachable {
            return Standing::Unhealthy;
        }
        let asked = facts.checked.last.is_some() || self.state.attempts() > 0;
        match asked && !facts.addresses.is_empty() {
            true => Standing::Healthy,
            false => Standing::Unknown,
        }
    }

    /// Whether a request could be sent there: it is enabled, a listener leads to it, it has an
    /// address, and it is not known to be down.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.upstream.enabled
            && self.reached.load(Ordering::Relaxed)
            && self.healthy()
            && !self.facts().addresses.is_empty()
    }

    /// A copy of its record.
    #[must_use]
    pub fn checked(&self) -> Checked {
        self.facts().checked.clone()
    }

    /// Checks it now: by its probe, or without one by asking for its models.
    pub async fn check(&self) {
        if self.upstream.health.is_some() {
            self.probe().await;
        } else if self.upstream.models == ModelsFrom::Discover {
            // Bounded, since the operator waits for the answer.
            let _ = timeout(CHECK_MAX, self.list_models()).await;
        }
    }

    pub(super) fn addresses(&self) -> Vec<Address> {
        self.facts().addresses.clone()
    }

    /// Sets its addresses; true when they have changed.
    pub(super) fn moved_to(&self, addresses: &[Address]) -> bool {
        let mut facts = self.facts();
        let moved = facts.addresses != addresses;
        if moved {
            facts.addresses = addresses.to_vec();
        }
        moved
    }

    /// Records that it was asked just now, and the error if it gave no good answer.
    pub(super) fn note(&self, error: Option<&str>) {
        let checked = &mut self.facts().checked;
        checked.last = Some(sys::wall_time());
        if let Some(why) = error {
            checked.errors += 1;
            checked.last_error = Some(why.to_owned());
        }
    }

    /// Locks the facts; to be held for a moment only, never across an await.
    pub(super) fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether it is asked for its models.
pub(super) fn is_asked(upstream: &Upstream) -> bool {
    upstream.models == ModelsFrom::Discover && upstream.enabled
}

/// Checks servers now, all at once, and waits for the results.
pub async fn check_all(servers: impl Iterator<Item = Arc<Monitored>>) {
    let checks: Vec<_> =
        servers.map(|one| tokio::spawn(async move { one.check().await })).collect();
    for check in checks {
        // An error means that the check panicked: it has found nothing out.
        let _ = check.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::policy::health::HealthChange;

    fn entry(more: &str) -> Upstream {
        let text = format!(
            "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"u\"\nurl = \"http://h\"\n{more}"
        );
        let config = Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
        config.upstreams[0].clone()
    }

    #[test]
    fn other_settings_keep_what_was_found_out() {
        let first = entry("health = { fall = 2, rise = 9 }\n");
        let state = Arc::new(UpstreamState::new(first.breaker, first.concurrency));
        let (events, _inbox) = mpsc::channel(1);
        let monitored = Monitored::new(first, Ok(None), state.clone(), Vec::new(), events);
        let probed = |monitored: &Monitored, ok: bool| {
            monitored.note((!ok).then_some("refused"));
            let change = monitored.facts().health.as_mut().and_then(|health| health.record(ok));
            change.into_iter().for_each(|change| state.set_healthy(change == HealthChange::Rose));
        };
        (0..2).for_each(|_| probed(&monitored, false));
        state.set_unheard(false);
        assert!(!state.healthy());
        // Other thresholds: it is as down as before, and two good probes are enough now.
        let renewed = monitored.renewed(entry("health = { fall = 1, rise = 2 }\n"), Ok(None));
        assert!(!renewed.healthy() && renewed.checked() == monitored.checked());
        probed(&renewed, true);
        assert!(!state.healthy());
        probed(&renewed, true);
        assert!(state.healthy() && !state.unheard(), "nor has it anything to list anew");
        probed(&renewed, false);
        assert!(!state.healthy(), "one bad one is enough");
        // Without probes nobody would ever find it up again.
        let without = renewed.renewed(entry(""), Ok(None));
        assert!(without.healthy() && without.facts().health.is_none());
        let listed = without.renewed(entry("models = [\"m\"]\n"), Ok(None));
        assert!(!state.unheard());
        listed.renewed(entry(""), Ok(None));
        assert!(state.unheard(), "it is asked for its models from now on");
    }

    #[test]
    fn one_that_comes_back_is_unknown_and_counts_as_healthy() {
        let upstream = entry("health = { fall = 1 }\n");
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
