//! What TLS keeps across plans: the `ReloadableServer` of each listener, the client configs towards
//! upstreams, the ticket keys.
//!
//! A plan is made anew at every change, and TLS state must outlive it: sessions with upstreams are
//! kept in the client configs, and a reload replaces the content of a listener's
//! `ReloadableServer`. So a listener keeps one object under its name, and towards an upstream the
//! same settings give the same object for as long as a plan uses it.
//!
//! The control thread owns the store; cores only get the objects that it returns.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::client::{TlsClient, client_config};
use super::server::{ReloadableServer, server_config};
use super::tickets::{TicketContext, Tickets};
use crate::config::{ListenerTls, Upstream, UpstreamTls};

/// The TLS state that outlives plans.
#[derive(Debug)]
pub struct Store {
    tickets: Arc<Tickets>,
    servers: Mutex<HashMap<String, Arc<ReloadableServer>>>,
    clients: Mutex<HashMap<Server, Weak<ClientConfig>>>,
}

/// A server and the settings of TLS towards it: the key of its client config.
///
/// Host and port are part of it: within a config rustls keeps sessions by server name, and offers a
/// ticket of TLS 1.3 before it looks for a session of TLS 1.2. Two servers of one name, for example
/// two ports of one machine, would use up each other's sessions.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Server {
    host: String,
    port: u16,
    tls: UpstreamTls,
    http2: bool,
}

impl Default for Store {
    /// A store without a state folder: its ticket keys end with the process.
    fn default() -> Self {
        Self::open(None).0
    }
}

impl Store {
    /// Makes a store with the ticket keys of a state folder; the text warns the operator.
    #[must_use]
    pub fn open(state_dir: Option<&Path>) -> (Self, Option<String>) {
        let (tickets, warning) = Tickets::open(state_dir);
        (Self { tickets, servers: Mutex::default(), clients: Mutex::default() }, warning)
    }

    /// The ticket keys, which all listeners share.
    #[must_use]
    pub fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// The `ReloadableServer` of the listener `name`, with these settings in force from now on.
    ///
    /// Errors: a text for the operator; the settings in force stay.
    pub fn server(&self, name: &str, tls: &ListenerTls) -> Result<Arc<ReloadableServer>, String> {
        let mut servers = lock(&self.servers);
        let known = servers.get(name);
        if let Some(known) = known.filter(|known| known.is_of(tls)) {
            return Ok(known.clone());
        }
        let config = server_config(tls, self.tickets.for_context(TicketContext::of(tls)))?;
        match known {
            Some(known) => {
                known.put(tls.clone(), config);
                Ok(known.clone())
            }
            None => {
                let made = Arc::new(ReloadableServer::new(tls.clone(), config));
                servers.insert(name.to_owned(), made.clone());
                Ok(made)
            }
        }
    }

    /// The TLS config and server name for an upstream; `None` for an upstream without TLS.
    ///
    /// Errors: a text for the operator.
    pub fn client(&self, upstream: &Upstream) -> Result<Option<Arc<TlsClient>>, String> {
        if !upstream.url.tls {
            return Ok(None);
        }
        let name = upstream.tls.server_name.as_deref().unwrap_or(&upstream.url.host);
        let name = ServerName::try_from(name.to_owned())
            .map_err(|_| format!("{name:?} can stand in no certificate; set tls.server_name"))?;
        let (host, port) = (upstream.url.host.clone(), upstream.url.port);
        let http2 = upstream.http2;
        let server = Server { host, port, tls: upstream.tls.clone(), http2 };
        let mut clients = lock(&self.clients);
        clients.retain(|_, config| config.strong_count() > 0);
        let config = match clients.get(&server).and_then(Weak::upgrade) {
            Some(known) => known,
            None => {
                let made = client_config(&server.tls, http2)?;
                clients.insert(server, Arc::downgrade(&made));
                made
            }
        };
        Ok(Some(Arc::new(TlsClient { config, name })))
    }
}

/// Locks, also after a panic of another holder: each change of the map is complete in itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
