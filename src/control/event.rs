//! The facts that tasks bring to the reconciler.

use std::net::IpAddr;

use crate::config::{ListenerId, ListenerTls, Target, UpstreamId, UpstreamTls};
use crate::upstream::roster::Identity;

/// Facts that may wait to be taken; who brings more waits.
pub const EVENTS_MAX: usize = 1024;

/// A fact.
#[derive(Debug)]
pub enum Event {
    /// What an entry of the file stands for.
    Targets(UpstreamId, Result<Vec<Target>, String>),
    /// Where a host name leads.
    Addresses(String, Result<Vec<IpAddr>, String>),
    /// What a server said of its models.
    Models(Identity, Listed),
    /// Probes changed their mind.
    Health(Identity),
    /// Files of certificates have other content.
    Renewed(Vec<Renewed>),
}

/// What came of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// Its models.
    Models(Vec<String>),
    /// It lives and has no list for us now, or could not be asked: what was known still holds.
    NoList(String),
    /// Nobody is there.
    Dead(String),
}

/// Settings with what is in their files now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// Of a listener.
    Listener(ListenerId, ListenerTls),
    /// Of an entry of the file.
    Upstream(UpstreamId, UpstreamTls),
}
