//! What makes two things in two plans the same, so that the second goes on with what the first had.
//!
//! ```text
//! upstream   its name, its configured address, and all settings by which connections differ
//! endpoint   its upstream, and its address
//! key        its name: another secret or other rules are the same key, with the same windows
//! group      its name; one that the file does not name goes by its members, and follows one that
//!            it has members in common with (`registry`)
//! listener   its name
//! ```
//!
//! Settings that are not named here may change: they are applied to what stays (`Plan::enforce`).

use crate::config::{Group, OutboundProxy, Upstream, UpstreamTls};
use crate::policy::keys::KeyDigest;

/// What makes an upstream the same one in two plans: its name, its configured address, and all
/// settings by which two connections to that address differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    name: String,
    tls: bool,
    unix: bool,
    host: String,
    port: u16,
    /// Of an `https` URL: the CAs trusted, the certificate shown, the server name asked for.
    tls_settings: Option<UpstreamTls>,
    http2: bool,
    via: Option<Via>,
}

/// The outbound proxy that connections go through, as far as two connections differ by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Via {
    host: String,
    port: u16,
    /// Digest of the credentials: a proxy may treat two users differently.
    credentials: Option<KeyDigest>,
}

impl Via {
    fn of(proxy: &OutboundProxy) -> Self {
        let credentials = proxy.credentials.as_ref().map(|pair| KeyDigest::of(pair.expose()));
        Self { host: proxy.host.clone(), port: proxy.port, credentials }
    }
}

impl Identity {
    /// The identity of a configured upstream.
    #[must_use]
    pub fn of(upstream: &Upstream) -> Self {
        let url = &upstream.url;
        Self {
            name: upstream.name.clone(),
            tls: url.tls,
            unix: url.unix,
            host: url.host.clone(),
            port: url.port,
            tls_settings: url.tls.then(|| upstream.tls.clone()),
            http2: upstream.http2,
            via: upstream.proxy.as_ref().map(Via::of),
        }
    }
}

/// What makes a group the same one in two plans.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupIdentity {
    /// Of an implicit group: its members' names.
    name: String,
    /// The file names no such group; a group of the file may have the same name.
    pub(super) implicit: bool,
}

impl GroupIdentity {
    /// The identity of a group of the config.
    #[must_use]
    pub fn of(group: &Group) -> Self {
        Self { name: group.name.clone(), implicit: group.implicit }
    }
}
