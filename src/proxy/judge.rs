//! What one attempt tells of its upstream: to the breaker, to the balancer's measures.
//!
//! A verdict is given once, as early as it is known: with the response head, because a stream of
//! ten minutes must not hold a trial of the breaker for ten minutes; or with the failure that
//! came instead. A stream that is cut later counts as one more call, a failed one. An attempt
//! that ends without a verdict (the client left, or its request broke) says nothing of the
//! upstream and gives its trial back.

use std::cell::Cell;

use crate::error::{Blame, Kind};
use crate::policy::breaker::{CallResult, Change, Entry, StateName};
use crate::upstream::state::UpstreamState;

/// Longest time that a `Retry-After` of an upstream is honoured, in seconds: a mistaken one must
/// not take a server out for a day.
pub const REST_MAX_S: u32 = 300;

/// The judge of one attempt.
pub struct Judge<'a> {
    state: &'a UpstreamState,
    /// The breaker's leave to make the call; taken by the verdict.
    entry: Cell<Option<Entry>>,
    /// When the attempt began, microseconds since the process's origin.
    begun_us: u64,
}

impl<'a> Judge<'a> {
    /// Asks the breaker for leave to make the call; `None` when it is refused.
    ///
    /// Units: every `now_us` counts from the process's origin.
    #[must_use]
    pub fn enter(state: &'a UpstreamState, now_us: u64) -> Option<Self> {
        let entry = state.breaker.enter(now_us / 1000)?;
        state.count_change(entry.change());
        Some(Self { state, entry: Cell::new(Some(entry)), begun_us: now_us })
    }

    /// A complete response head came.
    ///
    /// 429 is no failure: the server works and says when. `retry_after_s` is what it asked for.
    pub fn answered(&self, status: u16, retry_after_s: Option<u32>, now_us: u64) {
        if let Some(seconds) = retry_after_s.filter(|_| matches!(status, 429 | 503)) {
            self.state.rest(now_us / 1000 + 1000 * u64::from(seconds.min(REST_MAX_S)));
        }
        match is_failure(status) {
            true => self.failed(now_us),
            // A refusal is quick whatever the load: it says nothing of the time an answer takes.
            false if status == 429 => {
                self.give(CallResult::Success, now_us);
            }
            false => {
                let took_us = now_us.saturating_sub(self.begun_us);
                self.state.measures.record_success(took_us, now_us);
                let change = self.give(CallResult::Success, now_us);
                if change.is_some_and(|change| change.to == StateName::Closed) {
                    self.state.measures.recover(took_us, now_us);
                }
            }
        }
    }

    /// The attempt ended by a fault.
    pub fn ended(&self, kind: Kind, now_us: u64) {
        if kind.row().blame == Blame::Upstream {
            self.failed(now_us);
        }
    }

    fn failed(&self, now_us: u64) {
        let entry = self.entry.take();
        // What was sent before the breaker opened may time out long after the server has
        // recovered: it must not be feared again for that.
        if entry.as_ref().is_none_or(|entry| self.state.breaker.is_present(entry)) {
            let took_us = now_us.saturating_sub(self.begun_us);
            self.state.measures.record_failure(took_us, now_us);
        }
        self.entry.set(entry);
        self.give(CallResult::Failure, now_us);
    }

    fn give(&self, result: CallResult, now_us: u64) -> Option<Change> {
        let now_ms = now_us / 1000;
        let change = match self.entry.take() {
            Some(entry) => self.state.breaker.record(entry, result, now_ms),
            // After its verdict an attempt can only have been cut off.
            None => self.state.breaker.record_cut(now_ms),
        };
        self.state.count_change(change);
        change
    }
}

impl Drop for Judge<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.state.breaker.cancel(entry);
            // A trial that is free again may be the one that somebody waits for.
            self.state.poke();
        }
    }
}

/// Whether an answer counts as a failure: 5xx but 501 and 505, which speak of the request.
#[must_use]
pub fn is_failure(status: u16) -> bool {
    (500..600).contains(&status) && !matches!(status, 501 | 505)
}
