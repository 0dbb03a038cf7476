//! One connection to an upstream, and the receive that stays armed on it.
//!
//! The receive is armed when a request goes out or when the connection begins to idle, and it is
//! the same operation: the answer to the next request completes it, and so does an end or an
//! unexpected byte while the connection idles, which is how a stale connection is told from a good
//! one before it is used.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Instant;

use super::endpoint::PoolId;
use crate::net::pooled_future::PooledFuture;
use crate::net::race::poll_idle;
use crate::net::stream::Stream;

/// How long and how often an upstream said that a connection may be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Requests it serves in all (`Keep-Alive: max`, first value seen); `None` = unlimited.
    pub requests_max: Option<u32>,
    /// When it must not be used any more (`Keep-Alive: timeout`).
    pub until: Option<Instant>,
}

/// What the end of a stream of HTTP/2 before its answer says of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// The server failed.
    Blamed,
    /// Nothing: the link had served others, or the request has not been looked at.
    Excused,
    /// Nothing: we ran out of descriptors, memory or ports.
    Ours,
}

/// What a receive gives back: the count of bytes, and the buffer.
type Received = (io::Result<usize>, Vec<u8>);

/// A connection to one upstream.
pub struct UpConn {
    socket: Stream,
    /// The pool that it is kept in while it idles.
    pub pool: PoolId,
    armed: Option<PooledFuture<'static, Received>>,
    /// How the stream ended, for an exchange on an HTTP/2 link; `None` in HTTP/1.1.
    excuse: Option<Rc<Cell<StreamEnd>>>,
    /// Requests answered on it.
    pub served: u32,
    /// How long and how often it may be used.
    pub lifetime: Lifetime,
    /// When it was last put into the pool.
    pub idle_since: Option<Instant>,
}

impl UpConn {
    /// A fresh connection; nothing is armed.
    #[must_use]
    pub fn new(socket: Stream, pool: PoolId) -> Self {
        let lifetime = Lifetime::default();
        let (armed, excuse, idle_since) = (None, None, None);
        Self { socket, pool, armed, excuse, served: 0, lifetime, idle_since }
    }

    /// The exchange's end of a pipe to a stream of HTTP/2: for one request.
    #[must_use]
    pub fn bridged(pipe: Stream, pool: PoolId, excuse: Rc<Cell<StreamEnd>>) -> Self {
        Self { excuse: Some(excuse), ..Self::new(pipe, pool) }
    }

    /// Whether it is a stream of HTTP/2: for one request only, and never put into a pool.
    #[must_use]
    pub fn is_bridged(&self) -> bool {
        self.excuse.is_some()
    }

    /// The socket, for sends and for the ticker.
    #[must_use]
    pub fn socket(&self) -> &Stream {
        &self.socket
    }

    /// Tells whether it has served a request before: then its end without a byte says nothing about
    /// the upstream. For a stream of HTTP/2 this may change when the stream ends.
    #[must_use]
    pub fn reused(&self) -> bool {
        self.served > 0 || self.ended_as(StreamEnd::Excused)
    }

    /// Tells whether its stream of HTTP/2 ended for lack of descriptors, memory or ports of ours.
    #[must_use]
    pub fn ran_short(&self) -> bool {
        self.ended_as(StreamEnd::Ours)
    }

    fn ended_as(&self, end: StreamEnd) -> bool {
        self.excuse.as_ref().is_some_and(|excuse| excuse.get() == end)
    }

    /// Tells whether a receive is in flight.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.armed.is_some()
    }

    /// Submits a receive into `buffer` without waiting for it.
    pub fn arm(&mut self, buffer: Vec<u8>) {
        debug_assert!(self.armed.is_none(), "one receive at a time");
        let mut recv = PooledFuture::new(self.socket.recv(buffer));
        // The first poll submits. Should it be done at once, `poll_recv` must not poll it
        // again, so its result is wrapped anew.
        if let Poll::Ready(received) = poll_idle(Pin::new(&mut recv)) {
            recv = PooledFuture::new(std::future::ready(received));
        }
        self.armed = Some(recv);
    }

    /// Polls the armed receive; pending for ever when none is armed.
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Received> {
        let Some(armed) = self.armed.as_mut() else { return Poll::Pending };
        let done = Pin::new(armed).poll(cx);
        if done.is_ready() {
            self.armed = None;
        }
        done
    }

    /// Awaits the armed receive.
    pub async fn recv(&mut self) -> Received {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Polls the receive of an idle connection: if it has completed, the connection is stale.
    pub fn poll_stale(&mut self) -> Poll<Received> {
        self.poll_recv(&mut Context::from_waker(std::task::Waker::noop()))
    }
}
