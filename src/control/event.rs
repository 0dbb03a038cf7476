//! The facts that tasks bring to the reconciler.

use std::net::IpAddr;

use crate::config::{ListenerIndex, ListenerTls, Target, UpstreamId, UpstreamTls};
use crate::upstream::identity::Identity;

/// Most events that wait for the reconciler; a task that sends one more waits.
pub const EVENTS_MAX: usize = 1024;

/// The number of an entry with `discover`; never given twice, so that a fact about one that a reload
/// has removed is taken for no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EntryNumber(pub u64);

/// One fact, as a task found it out.
#[derive(Debug)]
pub enum Event {
    /// The targets that discovery found for an entry of the file, or why none could be asked for.
    Targets(EntryNumber, Result<Vec<Target>, String>),
    /// The addresses of a host name, or why it could not be resolved.
    Addresses(String, Result<Vec<IpAddr>, String>),
    /// What a server answered when asked for its models.
    Models(Identity, Listed),
    /// Probes have found a server up or down; its `UpstreamState` tells which.
    Health(Identity),
    /// Settings whose certificate files have changed.
    Renewed(Vec<Renewed>),
}

/// What came of asking a server for its models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// It listed these models.
    Models(Vec<String>),
    /// It lives but gave no list, or could not be asked: the last list still holds. The text says
    /// why.
    NoList(String),
    /// It answered that it cannot list its models now, as a server does that loads them: the last
    /// list still holds. The text says what it answered.
    NotNow(String),
    /// No connection, or no answer on one: it serves nothing. The text says why.
    Dead(String),
}

/// TLS settings with the certificates that are in their files now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// The TLS settings of a listener of the file.
    Listener(ListenerIndex, ListenerTls),
    /// The TLS settings of an upstream's entry of the file.
    Upstream(UpstreamId, UpstreamTls),
}
