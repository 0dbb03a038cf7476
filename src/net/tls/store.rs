//! What TLS keeps across plans: a listener's holder, the configs towards upstreams, the tickets.
//!
//! A plan is made anew at every change, and what TLS knows must not begin anew with it: sessions
//! are in the client configs, and a listener's holder is what a reload replaces the content of.
//! So the same settings give the same object, for as long as somebody holds it.
//!
//! It belongs to the control thread; cores see what it gives out.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustls::ClientConfig;
use rustls::pki_types::ServerName;

use super::client::{TlsClient, client_config};
use super::server::{ReloadableServer, server_config};
use super::tickets::{TicketContext, Tickets};
use crate::config::{ListenerTls, Upstream, UpstreamTls};

/// See the module.
#[derive(Debug)]
pub struct Store {
    tickets: Arc<Tickets>,
    servers: Mutex<HashMap<String, Arc<ReloadableServer>>>,
    clients: Mutex<HashMap<Server, Weak<ClientConfig>>>,
}

/// A server and how it is spoken to.
///
/// By its place, not by its name alone: rustls keeps sessions by name, and offers a ticket of
/// TLS 1.3 before it looks for a session of TLS 1.2. Two servers of one name, a machine with many
/// ports for one, would use up each other's.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Server {
    host: String,
    port: u16,
    tls: UpstreamTls,
    http2: bool,
}

impl Default for Store {
    /// One whose tickets end with the process.
    fn default() -> Self {
        Self::open(None).0
    }
}

impl Store {
    /// Opens the ticket keys of a state folder; the text is a warning for a person.
    #[must_use]
    pub fn open(state_dir: Option<&Path>) -> (Self, Option<String>) {
        let (tickets, warning) = Tickets::open(state_dir);
        (Self { tickets, servers: Mutex::default(), clients: Mutex::default() }, warning)
    }

    /// The ticket keys.
    #[must_use]
    pub fn tickets(&self) -> &Arc<Tickets> {
        &self.tickets
    }

    /// The holder of a listener, with these settings put in force.
    ///
    /// Errors: for a person; what was in force stays.
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

    /// What is spoken with an upstream; `None` for one without TLS.
    ///
    /// Errors: for a person.
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

/// Held for a moment only; what is behind it is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
