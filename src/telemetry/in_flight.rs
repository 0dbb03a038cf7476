//! An exchange in flight, with its names: what an operator sees of it.

use std::net::IpAddr;
use std::time::Duration;

use super::record::Facts;

/// An exchange in flight. Empty text: not known yet, or there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Its core, the slot there, and how often that slot has been used: no other exchange of this
    /// process ever has all three.
    pub id: [u32; 3],
    /// Its id in logs.
    pub request_id: String,
    /// How long ago its head was complete.
    pub age: Duration,
    /// The client's address, if it has one.
    pub client: Option<IpAddr>,
    /// The listener's name.
    pub listener: String,
    /// The key's name.
    pub key: String,
    /// The method.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The model, as the client named it.
    pub model: String,
    /// The group at work.
    pub group: String,
    /// The upstream of the attempt.
    pub upstream: String,
    /// How far it is.
    pub phase: &'static str,
    /// Attempts made.
    pub attempts: u32,
    /// Bytes of an upstream's body that the client has been sent; they are counted as an attempt's
    /// answer ends or pauses.
    pub response_bytes: u64,
    /// From its head to the first token.
    pub first_token: Option<Duration>,
}

/// How far an exchange is.
#[must_use]
pub fn phase(facts: &Facts) -> &'static str {
    let outcome = &facts.outcome;
    match (facts.group, facts.upstream) {
        (None, _) => "reading",
        (Some(_), None) => "queued",
        _ if outcome.first_byte_us.is_some() => "answering",
        _ if outcome.sent_us.is_some() => "waiting",
        _ if outcome.connected_us.is_some() => "sending",
        _ => "connecting",
    }
}
