//! The mirror of the file: what was said, section by section.
//!
//! Every struct here is one table, every field one key; the macro makes the
//! reader of each from the same list that the JSON schema is derived from, so
//! that neither can know a key which the other does not. Nothing is checked here
//! beyond the kind of a value: ranges, references and defaults are `build`'s.

mod client;
mod entries;
mod mirror;
mod process;
mod upstream;

pub(crate) use client::*;
pub(crate) use entries::*;
pub(crate) use process::*;
pub(crate) use upstream::*;

use mirror::mirror;

use crate::config::reader::{At, FromNode, Node, Reader};
use crate::config::values::NameTable;

mirror! {
    /// The whole file.
    RawConfig {
        /// Cores, IO driver, end of life.
        process: RawProcess,
        /// What is written where.
        log: RawLog,
        /// What one peer may ask of us.
        limits: RawLimits,
        /// Default times of both sides.
        timeouts: RawTimeouts,
        /// Addresses clients connect to.
        listener: Vec<At<RawListener>>,
        /// Client credentials.
        key: Vec<At<RawKey>>,
        /// Where rate-limit counters live.
        ratelimit_store: RawRatelimitStore,
        /// LLM servers.
        upstream: Vec<At<RawUpstream>>,
        /// Balanced sets of upstreams.
        group: Vec<At<RawGroup>>,
        /// What holds for every group that does not say otherwise.
        group_defaults: RawGroupDefaults,
        /// Names in request bodies and where they lead.
        models: NameTable<RawModel>,
        /// Asking upstreams for their models.
        discovery: RawDiscovery,
        /// The operator's listener.
        admin: RawAdmin,
        /// Where traces go.
        tracing: RawTracing,
    }
}

/// Reads the root table.
pub(crate) fn read_root(node: &Node<'_>, r: &mut Reader<'_>) -> RawConfig {
    RawConfig::read(node, r).unwrap_or_default()
}
