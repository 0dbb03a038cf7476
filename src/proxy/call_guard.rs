//! What one attempt reports of its upstream: to the breaker and to the balancer's measures.
//!
//! A verdict is given once, as early as it is known: with the response head, because a stream of
//! ten minutes must not hold a trial of the breaker (one of the few calls let through to test a
//! server) for ten minutes; or with the failure that came instead of a head. A stream that is
//! truncated later counts as one more call, a failed one. An attempt that ends without a verdict
//! (the client left, or its request broke) says nothing of the upstream and gives its trial back.
//! Nor does a failure of one model while others of the same server work
//! (`policy::breaker::models`).

use std::cell::Cell;
use std::time::Duration;

use crate::base::clock::Moment;
use crate::error::{Blame, Finish, Kind, RetryClass};
use crate::policy::breaker::models::model_hash;
use crate::policy::breaker::{CallResult, Change, Entry, StateName};
use crate::upstream::state::{Failure, UpstreamState};

/// Longest time that a `Retry-After` of an upstream is honoured, in seconds: a mistaken one must
/// not take a server out for a day.
pub const BACK_OFF_MAX_S: u32 = 300;

/// The breaker's leave for one attempt, until the verdict; a drop without one gives it back.
pub struct CallGuard<'a> {
    state: &'a UpstreamState,
    /// The breaker's leave to make the call; taken by the verdict.
    entry: Cell<Option<Entry>>,
    /// The model that is asked for; empty where none is known.
    model: &'a str,
    last_resort: bool,
    /// When the attempt began.
    begun: Moment,
}

impl<'a> CallGuard<'a> {
    /// Asks the breaker for leave to make the call; `None` when it is refused.
    #[must_use]
    pub fn enter(state: &'a UpstreamState, model: &'a str, now: Moment) -> Option<Self> {
        let entry = state.breaker.enter(now)?;
        Some(Self::of(state, model, entry, now))
    }

    /// As `enter`, for a call that no other member can take: the breaker decides whether to let it
    /// through although it refuses others.
    #[must_use]
    #[cold]
    pub fn enter_last_resort(
        state: &'a UpstreamState,
        model: &'a str,
        now: Moment,
    ) -> Option<Self> {
        let entry = state.breaker.enter_last_resort(now)?;
        let mut guard = Self::of(state, model, entry, now);
        guard.last_resort = true;
        Some(guard)
    }

    fn of(state: &'a UpstreamState, model: &'a str, entry: Entry, now: Moment) -> Self {
        state.count_change(entry.change());
        Self { state, entry: Cell::new(Some(entry)), model, last_resort: false, begun: now }
    }

    /// When the attempt was allowed.
    #[must_use]
    pub fn begun(&self) -> Moment {
        self.begun
    }

    /// Whether the call goes to a server whose breaker refuses, since no other member was left.
    #[must_use]
    pub fn is_last_resort(&self) -> bool {
        self.last_resort
    }

    /// A complete response head came.
    ///
    /// An overloaded server has not failed: it works and says when to come back. `retry_after_s` is
    /// its `Retry-After` in seconds.
    pub fn answered(&self, status: u16, retry_after_s: Option<u32>, now: Moment) {
        let overloaded = is_overloaded(status, retry_after_s.is_some());
        if let Some(seconds) = retry_after_s.filter(|_| overloaded) {
            self.state.back_off(now + Duration::from_secs(seconds.min(BACK_OFF_MAX_S).into()));
        }
        if overloaded {
            // A refusal is quick whatever the load: it says nothing of the time an answer takes.
            self.report(CallResult::Success, now);
        } else if is_failure(status) {
            self.failed(Failure::Status(status), CallResult::Failure, true, now);
        } else {
            if self.state.models.watches(now) && status < 400 {
                self.state.models.worked(model_hash(self.model), now);
            }
            let took = now.since(self.begun);
            self.state.measures.record_success(took, now);
            let change = self.report(CallResult::Success, now);
            if change.is_some_and(|change| change.to == StateName::Closed) {
                self.state.measures.recover(took, now);
            }
        }
    }

    /// The attempt ended by a fault.
    pub fn ended(&self, kind: Kind, now: Moment) {
        let row = kind.row();
        if row.blame == Blame::Upstream {
            let late = row.finish == Finish::Timeout;
            let result = if late { CallResult::TimedOut } else { CallResult::Failure };
            // Only a timeout after connecting may be one model's fault: before there is a
            // connection no model is asked for, and a crash stops all models.
            let of_model = late && row.retry != RetryClass::Connect;
            self.failed(Failure::Fault(kind), result, of_model, now);
        }
    }

    /// Counts a failure; `of_model` when it may be the fault of the model alone.
    #[cold]
    fn failed(&self, why: Failure, result: CallResult, of_model: bool, now: Moment) {
        let entry = self.entry.take();
        // A call begun before the breaker opened may time out long after the server has recovered:
        // that says nothing of the server as it is now.
        if entry.as_ref().is_none_or(|entry| self.state.breaker.is_present(entry)) {
            if of_model && self.state.models.failed(model_hash(self.model), now) {
                // The model is to blame: the breaker's leave goes back without a verdict, as if the
                // call had not been made.
                self.entry.set(entry);
                return self.give_back();
            }
            self.state.note_failure(why);
            let took = now.since(self.begun);
            self.state.measures.record_failure(took, now);
        }
        self.entry.set(entry);
        self.report(result, now);
    }

    fn report(&self, result: CallResult, now: Moment) -> Option<Change> {
        self.state.count_call(result);
        let change = match self.entry.take() {
            Some(entry) => self.state.breaker.record(entry, result, now),
            // The verdict has been given: all that can follow is that the answer was truncated.
            None => self.state.breaker.record_truncated(result, now),
        };
        self.state.count_change(change);
        change
    }

    fn give_back(&self) {
        if let Some(entry) = self.entry.take() {
            self.state.breaker.cancel(entry);
            // The trial is free again, and a queued request may wait for it.
            self.state.poke();
        }
    }
}

impl Drop for CallGuard<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Whether an answer says that the server works and has too much to do: 429, 529 (Anthropic), and a
/// 503 with `Retry-After` (`says_when`).
#[must_use]
pub fn is_overloaded(status: u16, says_when: bool) -> bool {
    matches!(status, 429 | 529) || (status == 503 && says_when)
}

/// Whether an answer counts as a failure, unless it is overloaded: 5xx but 501 and 505, which
/// speak of the request.
#[must_use]
pub fn is_failure(status: u16) -> bool {
    (500..600).contains(&status) && !matches!(status, 501 | 505)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_failures_from_overload_and_from_requests_that_are_wrong() {
        for (status, says_when, overloaded, failure) in [
            (200, false, false, false),
            (404, true, false, false),
            (429, false, true, false),
            (500, true, false, true),
            (501, false, false, false),
            (502, true, false, true),
            (503, false, false, true),
            (503, true, true, false),
            (505, false, false, false),
            (529, false, true, false),
        ] {
            let said = is_overloaded(status, says_when);
            assert_eq!((said, is_failure(status) && !said), (overloaded, failure), "{status}");
        }
    }
}
