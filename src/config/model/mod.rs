//! The checked configuration: what is meant, not what was said.
//!
//! Field names are the TOML keys, so that `config.example.toml` explains both.
//! No raw strings are left where a type fits: a reference is an index, a time is
//! a `Duration`, a choice is an enum. A `Config` that exists has been checked
//! (by `config::build`, which alone makes one from a file); nobody checks again.
//! Ids index the `Vec` of the `Config` they were built with and no other.
//!
//! Reading order: this file, then `ids`, `timeouts`, `process`, `listener`,
//! `upstream`, `group`, `tracing`, `secret`. Knows nothing of the file's syntax, of sockets or of clocks.

mod group;
mod ids;
mod listener;
mod process;
mod secret;
mod timeouts;
mod tracing;
mod upstream;

pub use group::*;
pub use ids::*;
pub use listener::*;
pub use process::*;
pub use secret::Secret;
pub use timeouts::*;
pub use tracing::*;
pub use upstream::*;

/// A whole checked configuration; shared as `Arc<Config>` by every core.
#[derive(Debug, Clone)]
pub struct Config {
    /// `[process]`.
    pub process: Process,
    /// `[log]`.
    pub log: Log,
    /// `[limits]`.
    pub limits: Limits,
    /// `[timeouts]`, the defaults; listeners and groups hold their own resolved copies.
    pub timeouts: Timeouts,
    /// `[[listener]]`, never empty; indexed by `ListenerIndex`.
    pub listeners: Vec<Listener>,
    /// `[[key]]`; indexed by `KeyId`.
    pub keys: Vec<Key>,
    /// `[ratelimit_store]`.
    pub ratelimit_store: RatelimitStore,
    /// `[[upstream]]` with `ports` expanded, then those implied by `models.*.backend`;
    /// indexed by `UpstreamId`.
    pub upstreams: Vec<Upstream>,
    /// `[group_defaults]`; groups hold their own resolved copies.
    pub group_defaults: GroupDefaults,
    /// `[[group]]` in declaration order, then the implicit ones; indexed by `GroupId`.
    pub groups: Vec<Group>,
    /// `[models]` in declaration order, then the names that upstreams declare. Names and
    /// aliases are unique over all of them.
    pub models: Vec<Model>,
    /// Names that servers listed and that the file leads elsewhere; each with the group of
    /// those servers. Who names the upstream, too (`model@upstream`), comes there.
    pub shadowed: Vec<Model>,
    /// Names of entries that `discover` replaced by others, and the groups of these.
    pub sets: Vec<NamedSet>,
    /// `[discovery]`.
    pub discovery: Discovery,
    /// `[admin]`; none when the file has no such section or its `bind` is empty.
    pub admin: Option<Admin>,
    /// `[tracing]`.
    pub tracing: Tracing,
}

impl Config {
    /// The upstream of an id of this config.
    pub fn upstream(&self, id: UpstreamId) -> &Upstream {
        &self.upstreams[usize::from(id.0)]
    }

    /// The group of an id of this config.
    pub fn group(&self, id: GroupId) -> &Group {
        &self.groups[usize::from(id.0)]
    }

    /// The key of an id of this config.
    pub fn key(&self, id: KeyId) -> &Key {
        &self.keys[usize::from(id.0)]
    }

    /// The listener of an id of this config.
    pub fn listener(&self, id: ListenerIndex) -> &Listener {
        &self.listeners[usize::from(id.0)]
    }

    /// The declared (not implicit) group of that name.
    #[cfg(test)]
    pub fn group_named(&self, name: &str) -> Option<GroupId> {
        let at = self.groups.iter().position(|g| !g.implicit && g.name == name)?;
        u16::try_from(at).ok().map(GroupId)
    }
}

impl Config {
    /// Whether any listener leads to each upstream: by a route, its default group, a model, or
    /// what these fall back to; and to those that stand in no group of the file.
    #[must_use]
    pub fn reached(&self) -> Vec<bool> {
        let of_listeners = self.listeners.iter().flat_map(|listener| {
            listener.routes.iter().map(|route| route.group).chain(listener.default_group)
        });
        let models = self.models.iter().flat_map(|model| model.groups());
        let mut open: Vec<GroupId> = of_listeners.chain(models).collect();
        let mut seen = vec![false; self.groups.len()];
        let mut reached = vec![true; self.upstreams.len()];
        let declared = self.groups.iter().filter(|group| !group.implicit);
        for member in declared.flat_map(|group| &group.members) {
            reached[usize::from(member.upstream.0)] = false;
        }
        while let Some(id) = open.pop() {
            if std::mem::replace(&mut seen[usize::from(id.0)], true) {
                continue;
            }
            let group = self.group(id);
            open.extend(&group.fallback);
            for member in &group.members {
                reached[usize::from(member.upstream.0)] = true;
            }
        }
        reached
    }
}

/// The name of an entry that stands for any number of upstreams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedSet {
    /// The entry's name.
    pub name: String,
    /// The group of all that it stands for.
    pub group: GroupId,
}
