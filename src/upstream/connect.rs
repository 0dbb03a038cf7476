//! From a connected socket to a connection on which HTTP is next: the TLS handshake.
//!
//! A handshake receives and sends, so its future must not be dropped while it runs (`rt::socket`).
//! An exchange that is given up drops its `Handshake` all the same: then the socket is shut down
//! and the handshake ends in a task of its own.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::net::caught::caught;
use crate::net::pooled_future::PooledFuture;
use crate::net::rt::{self, Socket};
use crate::net::stream::Handle;
use crate::net::sys::{self, Shut};
use crate::net::ticker::Timer;
use crate::net::tls::{TlsClient, TlsStream, explain, plainly};
use crate::upstream::via::TunnelError;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialError {
    /// No server there took the connection, or it did not begin HTTP/2 as asked.
    Unreachable,
    /// The connection was not made in time.
    Late,
    /// We ran out of descriptors, memory or ports.
    Ours,
    /// The handshake failed.
    Tls(HandshakeError),
    /// The outbound proxy was not reached, or opened no tunnel.
    Proxy(TunnelError),
}

/// Why a handshake failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandshakeError {
    /// For the operator: may name the server.
    pub why: Rc<str>,
    /// For the client: names no server.
    pub plain: &'static str,
}

impl DialError {
    /// Of the errors of two addresses, the one that says more of the server.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (&self, &other) {
            // A shortage of our own comes first: then nothing is known of the server.
            (_, DialError::Ours) => other,
            (DialError::Ours, _) => self,
            (DialError::Tls(_), _) | (DialError::Late, DialError::Unreachable) => self,
            _ => other,
        }
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::TimedOut => DialError::Late,
            _ if sys::is_shortage(&error) => DialError::Ours,
            _ => DialError::Unreachable,
        }
    }
}

/// Does the TLS handshake on a fresh connection, bounded by `timer`. Free to drop.
///
/// Errors: `Late`; `Ours`; `Tls` with the message of rustls, or how the connection ended.
pub async fn secure(
    socket: Socket,
    tls: &TlsClient,
    timer: &Timer,
    timeout: Duration,
) -> Result<TlsStream, DialError> {
    timer.arm(Handle::Fd(socket.fd()), Shut::Both, timeout);
    let shaken = Handshake::new(socket, tls).await;
    let late = timer.expired();
    timer.disarm();
    shaken.map_err(|error| match late {
        true => DialError::Late,
        false if sys::is_shortage(&error) => DialError::Ours,
        false => DialError::Tls(HandshakeError { why: why(&error).into(), plain: plainly(&error) }),
    })
}

/// The operator's message about a failed handshake.
fn why(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::InvalidData => explain(error),
        io::ErrorKind::UnexpectedEof => "the server closed the connection".to_owned(),
        _ => format!("the connection broke: {error}"),
    }
}

/// A handshake that may be dropped.
struct Handshake {
    socket: Socket,
    running: Option<PooledFuture<'static, io::Result<TlsStream>>>,
}

impl Handshake {
    fn new(socket: Socket, tls: &TlsClient) -> Self {
        let (config, name) = (tls.config.clone(), tls.name.clone());
        let running = PooledFuture::new(TlsStream::connect(socket.clone(), config, name));
        Self { socket, running: Some(running) }
    }
}

impl Future for Handshake {
    type Output = io::Result<TlsStream>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(running) = &mut self.running else { return Poll::Pending };
        let done = Pin::new(running).poll(cx);
        if done.is_ready() {
            self.running = None;
        }
        done
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        if let Some(running) = self.running.take().filter(|_| rt::is_running()) {
            self.socket.shutdown(Shut::Both);
            // Caught: a handshake that has panicked would do so again when polled here.
            rt::spawn(async move { drop(caught(pin!(running)).await) });
        }
    }
}
