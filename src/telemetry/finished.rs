//! A finished exchange with its names: what a log line, a labelled metric or the admin API tells.
//!
//! It is made from a `Record` once, on the core that ran the exchange, and only where somebody
//! listens.

use std::net::IpAddr;

use super::outcome::Outcome;
use super::record::FailedAttempt;

/// A finished exchange. Empty text: not known, or there was none.
#[derive(Clone, Copy, Debug)]
pub struct Finished<'f> {
    /// When the request head was complete, in Unix milliseconds.
    pub ts_ms: u64,
    /// The exchange's id.
    pub request_id: &'f str,
    /// The client's address; `None` on a Unix socket.
    pub client: Option<IpAddr>,
    /// The name of the key; never the key.
    pub key: &'f str,
    /// The listener's name.
    pub listener: &'f str,
    /// The method.
    pub method: &'f [u8],
    /// The target; what follows a `?` or `#` is left out.
    pub path: &'f [u8],
    /// The group at work last; `outcome.route` tells what led there.
    pub group: &'f str,
    /// The model, as the client named it.
    pub model: &'f [u8],
    /// The model, as the server read it.
    pub model_sent: &'f [u8],
    /// The upstream of the last attempt.
    pub upstream: &'f str,
    /// The attempts that failed.
    pub failures: &'f [FailedAttempt],
    /// What happened, in numbers.
    pub outcome: &'f Outcome,
}

/// Takes each finished exchange, once, on the thread of its core: it must not wait.
pub type OnFinished = Box<dyn Fn(&Finished<'_>) + Send + Sync>;
