//! A balanced set of upstreams, `[[group]]`, and the names that lead to it, `[models]`.

use std::time::Duration;

use super::{FilePosition, GroupId, UpstreamId, UpstreamTimeouts};
pub use crate::policy::retry::RetryOn;

/// A balanced set of upstreams.
#[derive(Debug, Clone)]
pub struct Group {
    /// Unique among declared groups. Of an implicit one: its members' names joined by `+`.
    pub name: String,
    /// How a member is picked.
    pub balance: Balance,
    /// In declaration order, at least one, no upstream twice.
    pub members: Vec<Member>,
    /// When and how often another attempt is made.
    pub retry: Retry,
    /// What happens when every member is at its concurrency.
    pub queue: Queue,
    /// What keeps a client with a member.
    pub affinity: Option<Affinity>,
    /// Groups tried in order when this one has nobody left; no cycle.
    pub fallback: Vec<GroupId>,
    /// Dialects offered to clients on top of the upstreams' own.
    pub serve: Vec<Dialect>,
    /// What becomes of upstreams' error bodies.
    pub errors: ErrorBodies,
    /// The upstream side's times, resolved against `[timeouts]`.
    pub timeouts: UpstreamTimeouts,
    /// True: made from a model's or an upstream's declaration.
    pub implicit: bool,
}

/// What holds for every group that does not say otherwise, those included that no file says:
/// of one upstream, of a model that several list.
#[derive(Debug, Clone)]
pub struct GroupDefaults {
    /// How a member is picked.
    pub balance: Balance,
    /// When another attempt is made.
    pub retry: Retry,
    /// Where requests wait.
    pub queue: Queue,
    /// What keeps a client with a member.
    pub affinity: Option<Affinity>,
    /// Dialects offered to clients on top of the upstreams' own.
    pub serve: Vec<Dialect>,
    /// What becomes of upstreams' error bodies.
    pub errors: ErrorBodies,
    /// The upstream side's times, resolved against `[timeouts]`.
    pub timeouts: UpstreamTimeouts,
}

/// One member of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// The upstream.
    pub upstream: UpstreamId,
    /// 1..=65535.
    pub weight: u16,
}

/// How a member is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    RoundRobin,
    /// Smooth weighted round robin.
    WeightedRoundRobin,
    /// Any.
    Random,
    /// Any, by weight.
    WeightedRandom,
    /// Fewest in flight.
    LeastConn,
    /// The first that can.
    Failover,
    /// Response time, load and success.
    ResponseAware,
    /// Two at random, the better one.
    P2cEwma,
    /// The one that has the prompt's prefix cached.
    Prefix,
}

/// Retry of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Further attempts after the first, 0..=100.
    pub attempts: u32,
    /// Backoff before the first of them; doubled each time, full jitter.
    pub initial: Duration,
    /// Backoff at most; `initial <= max`.
    pub max: Duration,
    /// What is worth another attempt.
    pub on: RetryOn,
    /// A group of one tries its only member again.
    pub same: bool,
}

/// The wait queue of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Requests that may wait; 0 = none, 503 at once.
    pub length: u32,
    /// How long each may wait.
    pub wait: Duration,
}

/// What keeps a client with a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Affinity {
    /// The prompt's prefix.
    Prefix,
    /// The value of a field; name in lower case.
    Header(String),
    /// The client's key.
    Key,
    /// The client's address.
    Ip,
}

/// A dialect that is translated for clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// Ollama's.
    Ollama,
    /// Gemini's.
    Gemini,
}

/// What becomes of upstreams' error bodies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorBodies {
    /// They pass as they are.
    Pass,
    /// They are put into the caller's dialect.
    Normalise,
}

/// A name in a request body, and where it leads.
#[derive(Debug, Clone)]
pub struct Model {
    /// What clients say.
    pub name: String,
    /// Where requests for it go.
    pub group: GroupId,
    /// Where they go of whoever does not reach `group`, the first that they reach: to others that
    /// list a declared name, then to those that have the name and are away.
    pub elsewhere: Vec<GroupId>,
    /// For the models list; may be empty.
    pub description: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// Name put in its place on the way to the upstream; none = the same.
    pub upstream_model: Option<String>,
    /// Who said it.
    pub origin: ModelOrigin,
    /// Where it stands; of a declared name: where the upstream's `models` stands.
    pub place: FilePosition,
}

impl Model {
    /// The groups that its name may lead to, in the order in which they are looked at.
    pub fn groups(&self) -> impl Iterator<Item = GroupId> {
        std::iter::once(self.group).chain(self.elsewhere.iter().copied())
    }
}

/// Who said a model's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelOrigin {
    /// `[models]` of the file.
    Configured,
    /// `models = [...]` of an upstream.
    Declared,
    /// An upstream, asked at run time.
    Discovered,
}
