//! Finding out when a server is back that its breaker keeps out (rules §8).
//!
//! A cooldown only guesses when a server is back; asking it finds out. While a breaker is not
//! closed, the server is sent its probe every `breaker.recheck`, or without one a request for its
//! models, and the result goes to the breaker (`policy::breaker::rechecked`): the first good answer
//! half-opens it. A recheck that hangs is given up when the next is due. After a minute they become
//! rarer, down to a fifth; not so where no connection is possible, since there they cost the server
//! nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fetch::{FetchError, fetch};
use super::model_list::models_question;
use super::monitored::Monitored;
use super::probe::probe_question;
use super::task::Task;
use crate::base::clock::Moment;
use crate::policy::breaker::{BreakerPolicy, Sign};

/// Returns the moment that it is now, as the cores tell it to breakers.
pub type BreakerClock = Arc<dyn Fn() -> Moment + Send + Sync>;

/// In the first part of an outage, of this length, rechecks come at their full pace.
const PACE_FOR: Duration = Duration::from_secs(60);
/// The longest pause between two rechecks, in multiples of `breaker.recheck`.
const SLOWEST: f64 = 5.0;
/// Least time that a server has to answer a recheck: a busy one is slow, not gone.
const ANSWER_MIN: Duration = Duration::from_secs(1);

/// The rechecks of one outage: when it began, when the next is due, and the one under way.
pub(super) struct Recheck {
    since: Instant,
    due: Instant,
    running: Option<Task>,
}

impl Recheck {
    /// Starts a recheck when one is due; called at short intervals. `recheck` belongs to the
    /// upstream and is `None` while its breaker awaits no trial.
    pub(super) fn step(
        recheck: &mut Option<Recheck>,
        monitored: &Arc<Monitored>,
        clock: &BreakerClock,
        now: Instant,
    ) {
        let policy = monitored.state.breaker.policy();
        if !monitored.state.breaker.awaits_trial() || !monitored.upstream.enabled {
            *recheck = None;
            return;
        }
        let known = recheck.get_or_insert_with(|| Recheck {
            since: now,
            due: now + policy.recheck,
            running: None,
        });
        let busy = known.running.as_ref().is_some_and(|task| !task.is_over());
        if busy || now < known.due {
            return;
        }
        let refused = monitored.facts().refused;
        let pause = pause(&policy, now.saturating_duration_since(known.since), refused);
        known.due = now + pause;
        let (monitored, clock) = (monitored.clone(), clock.clone());
        known.running = Some(Task::of(tokio::spawn(async move {
            monitored.recheck(pause.max(ANSWER_MIN), &clock).await;
        })));
    }
}

/// Time from one recheck to the next, in an outage that has lasted `out_for`.
fn pause(policy: &BreakerPolicy, out_for: Duration, refused: bool) -> Duration {
    if refused {
        return policy.recheck;
    }
    let slower = out_for.as_secs_f64() / PACE_FOR.as_secs_f64();
    policy.recheck.mul_f64(slower.clamp(1.0, SLOWEST))
}

impl Monitored {
    async fn recheck(&self, limit: Duration, clock: &BreakerClock) {
        let answer = match &self.upstream.health {
            Some(health) => fetch(self, &probe_question(health), limit).await,
            None => fetch(self, &models_question(&self.upstream), limit).await,
        };
        let sign = match &answer {
            Ok((status, _)) if status.is_success() => Sign::Good,
            Ok(_) | Err(FetchError::Dead(_)) => Sign::Bad,
            Err(FetchError::Late(_)) => Sign::Silent,
            Err(FetchError::Ours(_)) => return,
        };
        self.facts().refused = matches!(answer, Err(FetchError::Dead(_)));
        let change = self.state.breaker.rechecked(sign, clock());
        self.state.count_change(change);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_at_the_full_pace_for_a_minute_and_then_less() {
        let policy = BreakerPolicy::default();
        let at = |seconds| pause(&policy, Duration::from_secs(seconds), false).as_secs_f64();
        assert_eq!([0, 59, 90, 300, 9000].map(at), [1.0, 1.0, 1.5, 5.0, 5.0]);
        assert_eq!(pause(&policy, Duration::from_secs(9000), true), policy.recheck);
    }
}
