//! What a request may do, by its head: made by `admit`, asked by every station after it.

use std::net::IpAddr;

use super::downstream::Peer;
use super::plan::Credential;
use crate::http1::framing::Framing;
use crate::policy::keys::KeyId;
use crate::policy::reach::Asker;

/// What a request may do, as far as its head alone decides.
#[derive(Debug)]
pub struct Permit {
    /// The client's key, if the listener asks for one.
    pub key: Option<KeyId>,
    /// The key may not use every model: which model the server will read has to be proven.
    pub limited: bool,
    /// The listener's number in the config.
    pub listener: u16,
    /// How the request body is delimited.
    pub framing: Framing,
    /// The body comes in chunks.
    pub chunked: bool,
    /// The client waits for 100 before it sends its body.
    pub expects_continue: bool,
    /// The client wants to leave HTTP (WebSocket).
    pub upgrade: bool,
    /// Who is at the other end of the connection: the client, or a proxy before us.
    pub peer: Option<Peer>,
    /// The client's address, as far as the proxies before us are trusted.
    pub client: Option<IpAddr>,
    /// The key's priority in a wait queue: the higher goes first.
    pub priority: i32,
    /// The key pays by the token: every byte of the answer is read.
    pub is_metered: bool,
    /// The listener requires a key, so the client's credential is for us and not for the upstream.
    pub key_was_ours: bool,
}

impl Permit {
    /// Listener and key, by which the reach of groups and upstreams is decided.
    #[must_use]
    pub fn asker(&self) -> Asker {
        Asker { listener: self.listener, key: self.key }
    }

    /// The address of the other end of the connection; `None` on a Unix socket.
    #[must_use]
    pub fn peer_ip(&self) -> Option<IpAddr> {
        self.peer.as_ref().map(|peer| peer.ip)
    }

    /// Whether the client's own credential fields go upstream.
    ///
    /// They do when the operator says so, and when neither the listener nor the upstream uses
    /// credentials at all: then they are not ours to take away.
    #[must_use]
    pub fn credentials_pass(&self, upstream: &Credential) -> bool {
        match upstream {
            Credential::Pass => true,
            Credential::None => !self.key_was_ours,
            Credential::Lines(_) | Credential::Query(..) => false,
        }
    }
}
