//! TLS of both sides. Read in this order: `server` and `client` (what rustls needs, made from the
//! config; `own_root` for certificates that vouch for themselves), `stream` (a connection, made of
//! `session` and `wire`; `plain` for clients that speak no TLS), `tickets` (resumption over cores
//! and restarts), `store` (what is kept across plans).
//!
//! Certificates and keys themselves are loaded and checked in `pki` before they come here.

mod client;
mod own_root;
mod plain;
mod server;
mod session;
mod store;
mod stream;
mod tickets;
mod wire;

pub use crate::pki::{client_name, provider};
pub use client::{TlsClient, client_config, explain, plainly};
pub use server::{ReloadableServer, server_config};
pub use store::Store;
pub use stream::TlsStream;
pub use tickets::TicketContext;

#[cfg(test)]
mod tests;
