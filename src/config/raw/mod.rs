//! The mirror of the file: what was said, section by section.
//!
//! Every struct here is one table, every field one key; the macro makes the
//! reader of each from the same list that the JSON schema is derived from, so
//! that neither can know a key which the other does not. Nothing is checked here
//! beyond the kind of a value: ranges, references and defaults are `build`'s.

mod client;
mod entries;
mod process;
mod upstream;

pub(crate) use client::*;
pub(crate) use entries::*;
pub(crate) use process::*;
pub(crate) use upstream::*;

use crate::config::reader::{At, FromNode, Node, Reader};
use crate::config::values::NameTable;

/// Declares mirror structs. `key as "type"` reads a key of another name.
macro_rules! mirror {
    ($($(#[$meta:meta])* $Name:ident {
        $($(#[$fmeta:meta])* $field:ident $(as $key:literal)? : $Ty:ty,)*
    })*) => {$(
        #[derive(Debug, Clone, Default, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        $(#[$meta])*
        pub(crate) struct $Name {
            $($(#[$fmeta])* $(#[schemars(rename = $key)])?
            pub(crate) $field: Option<crate::config::reader::At<$Ty>>,)*
        }

        impl $Name {
            /// The keys of the table.
            pub(crate) const KEYS: &'static [&'static str] =
                &[$(mirror!(@key $field $($key)?)),*];
        }

        impl crate::config::reader::FromNode for $Name {
            fn read(
                node: &crate::config::reader::Node<'_>,
                r: &mut crate::config::reader::Reader<'_>,
            ) -> Option<Self> {
                let mut out = Self::default();
                for entry in node.table(r)? {
                    match entry.key {
                        $(mirror!(@key $field $($key)?) => out.$field = r.field(node, &entry),)*
                        _ => r.unknown(node, &entry, Self::KEYS),
                    }
                }
                Some(out)
            }
        }
    )*};
    (@key $field:ident) => { stringify!($field) };
    (@key $field:ident $key:literal) => { $key };
}
pub(crate) use mirror;

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
    }
}

/// Reads the root table.
pub(crate) fn read_root(node: &Node<'_>, r: &mut Reader<'_>) -> RawConfig {
    RawConfig::read(node, r).unwrap_or_default()
}

/// The JSON schema of the file, as text.
pub(crate) fn schema() -> String {
    let mut value = schemars::schema_for!(RawConfig).to_value();
    crate::config::schema::without_null(&mut value);
    crate::config::effect::mark_schema(&mut value);
    if let Some(object) = value.as_object_mut() {
        object.insert("title".to_owned(), "tokenring configuration".into());
    }
    serde_json::to_string_pretty(&value).unwrap_or_default()
}
