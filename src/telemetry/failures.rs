//! The exchanges that failed last, for an operator who asks why.
//!
//! A failure is kept on its way to the log; an exchange that ends well never comes near. The list is
//! bounded and the oldest goes. Where two cores fail at the same instant the later one waits for the
//! copy of a few names, no longer.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use super::finished::Finished;

/// Failures that are kept.
pub const FAILURES_KEPT: usize = 200;

/// An exchange that failed by our doing or a server's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When its head was complete, in Unix milliseconds.
    pub ts_ms: u64,
    /// Its id.
    pub request_id: String,
    /// The client's address, if it has one.
    pub client: Option<IpAddr>,
    /// The listener's name.
    pub listener: String,
    /// The key's name; empty when there was none.
    pub key: String,
    /// The model that was asked for; empty when it was not found out.
    pub model: String,
    /// The path without its query.
    pub path: String,
    /// The group at work last; empty when there was none.
    pub group: String,
    /// The upstream of the last attempt; empty when there was none.
    pub upstream: String,
    /// The status that the client saw; 0 when no response head left.
    pub status: u16,
    /// Attempts made.
    pub attempts: u32,
    /// What went wrong in the end.
    pub reason: &'static str,
    /// The attempts that failed before the client had an answer: upstream, why, status (0 = none).
    pub failed: Vec<(String, &'static str, u16)>,
}

/// The last `FAILURES_KEPT` failures.
#[derive(Debug, Default)]
pub struct RecentFailures(Mutex<VecDeque<Failure>>);

impl RecentFailures {
    /// Keeps a failed exchange; `reason` is what went wrong in the end.
    #[cold]
    pub fn keep(&self, finished: &Finished<'_>, reason: &'static str) {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let failed = finished.failures.iter();
        let failure = Failure {
            ts_ms: finished.ts_ms,
            request_id: finished.request_id.to_owned(),
            client: finished.client,
            listener: finished.listener.to_owned(),
            key: finished.key.to_owned(),
            model: text(finished.model),
            path: text(finished.path),
            group: finished.group.to_owned(),
            upstream: finished.upstream.to_owned(),
            status: finished.outcome.status,
            attempts: finished.outcome.attempts,
            reason,
            failed: failed
                .map(|one| (one.upstream.to_string(), one.kind.row().log, one.status))
                .collect(),
        };
        // Whole or not at all: a thread that panicked meanwhile left nothing half done.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= FAILURES_KEPT {
            kept.pop_front();
        }
        kept.push_back(failure);
    }

    /// The failures, the latest first.
    #[must_use]
    pub fn latest(&self) -> Vec<Failure> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().rev().cloned().collect()
    }
}
