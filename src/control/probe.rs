//! Active health checks (`upstream.health`, rules §8).
//!
//! A probe is good when the answer is 2xx within the timeout. `policy::health` counts `fall` and
//! `rise`; its decision goes into the flag that every core reads before it picks, and to the
//! reconciler, so that a model is not routed to a server that is down. The first probe is sent as
//! soon as the server has an address, and the start waits for it as for the server's models: until
//! then its health is unknown. The next comes after a random part of the interval, at least half,
//! so that not all servers are probed at the same moment; from then on each upstream is probed at
//! its interval.

use std::sync::Arc;
use std::time::Duration;

use super::event::Event;
use super::fetch::{FetchError, Question, fetch};
use super::monitored::Monitored;
use super::task::Task;
use crate::base::rng::Rng;
use crate::config::Health;
use crate::policy::health::HealthChange;

/// Time from one look whether a server has an address to the next.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

impl Monitored {
    /// Probes once, now, and records the result; does nothing without `health`.
    pub async fn probe(&self) {
        let Some(health) = &self.upstream.health else { return };
        let result = match self.probe_result(health).await {
            Ok(()) => Ok(()),
            // The server was not asked, so nothing changes.
            Err(FetchError::Ours(_)) => return,
            Err(silence) => Err(silence.why().to_owned()),
        };
        self.note(result.as_ref().err().map(String::as_str));
        let change = match &mut self.facts().health {
            Some(state) => state.record(result.is_ok()),
            None => None,
        };
        let is_back = result.is_ok() && self.state.found_well();
        let healthy = match change {
            Some(HealthChange::Fell) => false,
            Some(HealthChange::Rose) => true,
            None if is_back => true,
            None => return,
        };
        self.state.set_healthy(healthy);
        if healthy {
            self.poke.notify_one();
        }
        // An error means that the reconciler is gone, as at the end of the process.
        let _ = self.events.send(Event::Health(self.identity.clone())).await;
    }

    async fn probe_result(&self, health: &Health) -> Result<(), FetchError> {
        let answer = fetch(self, &probe_question(health), health.timeout).await;
        match answer {
            Ok((status, _)) if status.is_success() => Ok(()),
            Ok((status, _)) => Err(FetchError::Dead(format!("status {}", status.as_u16()))),
            Err(silence) => Err(silence),
        }
    }
}

/// The request that a probe sends.
pub(super) fn probe_question(health: &Health) -> Question<'_> {
    Question {
        method: &health.method,
        path: &health.path,
        body: health.body.expose(),
        headers: &health.headers,
    }
}

/// Probes for as long as the task lives; `None` without `health`.
pub(super) fn keep_probing(monitored: &Arc<Monitored>, rng: &mut Rng) -> Option<Task> {
    let interval = monitored.upstream.health.as_ref()?.interval;
    let spread = interval.mul_f64(rng.f64().mul_add(0.5, 0.5));
    let monitored = monitored.clone();
    Some(Task::of(tokio::spawn(async move {
        while monitored.addresses().is_empty() {
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        monitored.probe().await;
        let mut beat = tokio::time::interval_at(tokio::time::Instant::now() + spread, interval);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            monitored.probe().await;
        }
    })))
}
