//! Where the connection of an attempt comes from: the pool, an HTTP/2 link, or a dial.
//!
//! A dial is connect, then TLS where the upstream is `https`, within one timeout; between them,
//! behind an outbound proxy, the tunnel, within a timeout of its own. Where we offer HTTP/2 over
//! TLS the server chooses the protocol (ALPN); without TLS the operator says. While a dial runs the
//! client is watched: if it leaves, the dial ends.

use std::pin::pin;
use std::time::{Duration, Instant};

use super::state::{Attempt, Attempted, Failed};
use crate::error::Kind;
use crate::net::dial;
use crate::net::pooled_future::PooledFuture;
use crate::net::race::{First, race};
use crate::net::stream::Stream;
use crate::net::sys::{self, Shut};
use crate::net::ticker::{TICK, Timer};
use crate::proxy::downstream::Downstream;
use crate::proxy::plan::{ProxyMode, Reuse, ViaPlan};
use crate::upstream::bridge;
use crate::upstream::conn::UpConn;
use crate::upstream::connect::{DialError, HandshakeError, secure};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::h2_pool::{DialLeader, DialOutcome, Find};
use crate::upstream::via::{TunnelError, connect_through};

impl Attempt<'_> {
    /// Takes a stream on an HTTP/2 link, or dials: the upstream's addresses in order.
    ///
    /// Errors: `Over` when the client left, else `Failed`.
    pub(super) async fn acquire_new(
        &self,
        down: &mut Downstream,
        timer: &Timer,
    ) -> Result<UpConn, Attempted> {
        let mut error = self.blame_proxy(DialError::Unreachable);
        for endpoint in &self.upstream.endpoints {
            let connecting = self.connect(endpoint, timer);
            let gone = down.watch.gone(&down.timer);
            match race(pin!(connecting), pin!(gone)).await {
                First::Left(Ok(conn)) => return Ok(conn),
                First::Left(Err(why)) => error = error.or(why),
                First::Right(()) => return Err(Attempted::Over(Kind::ClientGone)),
            }
        }
        Err(self.no_connection(error))
    }

    /// Takes a connection out of the pool, if there is one and it may be used.
    pub(super) fn take_pooled(&self) -> Option<UpConn> {
        if self.fresh || self.upstream.reuse == Reuse::Never {
            return None;
        }
        let (core, idle_max) = (self.core, self.timeouts.pool_idle);
        let now = core.ticker.now();
        let mut endpoints = self.upstream.endpoints.iter();
        endpoints.find_map(|endpoint| core.pool.take(endpoint.pool, idle_max, now))
    }

    /// Makes a connection to one address, or takes a stream on a link to it.
    async fn connect(&self, endpoint: &Endpoint, timer: &Timer) -> Result<UpConn, DialError> {
        if self.upstream.http2 {
            // In pooled memory, or the future of each HTTP/1.1 exchange would have room for this
            // one.
            return PooledFuture::with(|| self.stream_slot(endpoint, timer)).await;
        }
        Ok(UpConn::new(self.dial(endpoint, timer).await?, endpoint.pool))
    }

    /// Dials one address: connect, tunnel, TLS, as configured. HTTP is next on the stream.
    async fn dial(&self, endpoint: &Endpoint, timer: &Timer) -> Result<Stream, DialError> {
        let (keepalive, timeout) = (self.plan.tcp_keepalive, self.timeouts.connect);
        let begun = self.upstream.tls.as_ref().map(|tls| (tls, Instant::now()));
        let mut socket = dial::connect(&endpoint.address, keepalive, timer, timeout).await;
        if let Err(error) = &socket
            && sys::is_shortage(error)
        {
            // Out of descriptors or memory: the pool's idle connections are closed, then one more
            // try.
            self.core.pool.sweep(|_| Some(Duration::ZERO), &self.core.buffers, Instant::now());
            socket = dial::connect(&endpoint.address, keepalive, timer, timeout).await;
        }
        let socket = socket.map_err(|error| self.blame_proxy(error.into()))?;
        let secure_in = begun.map(|(tls, begun)| (tls, timeout.saturating_sub(begun.elapsed())));
        if let Some(ViaPlan { mode: ProxyMode::Tunnel { request }, .. }) = &self.upstream.via {
            let limit = self.timeouts.proxy_connect;
            // In pooled memory, as above.
            let opened =
                PooledFuture::with(|| connect_through(&socket, request, timer, limit)).await;
            opened.map_err(|why| match why {
                TunnelError::Ours => DialError::Ours,
                why => DialError::Proxy(why),
            })?;
        }
        let Some((tls, left)) = secure_in else { return Ok(Stream::Plain(socket)) };
        // Zero would mean no limit. In pooled memory, as above.
        let secured = PooledFuture::new(secure(socket, tls, timer, left.max(TICK))).await?;
        Ok(Stream::Tls(secured))
    }

    /// Turns a failed connect into the outbound proxy's fault where there is one: the proxy is what
    /// was dialled.
    fn blame_proxy(&self, why: DialError) -> DialError {
        match (why, &self.upstream.via) {
            (DialError::Unreachable, Some(_)) => DialError::Proxy(TunnelError::Unreachable),
            (DialError::Late, Some(_)) => DialError::Proxy(TunnelError::ConnectLate),
            (why, _) => why,
        }
    }

    /// Takes a stream on a link to one address, or makes the link; or makes a connection of this
    /// exchange's own if the server wants HTTP/1.1.
    async fn stream_slot(&self, endpoint: &Endpoint, timer: &Timer) -> Result<UpConn, DialError> {
        let (h2_pool, pool) = (&self.core.h2_pool, endpoint.pool);
        let mut fresh = self.fresh;
        let leader = loop {
            if self.upstream.reuse == Reuse::Never {
                break None;
            }
            match h2_pool.find(pool, fresh) {
                Find::StreamSlot(stream_slot) => {
                    return Ok(bridge::open(h2_pool, stream_slot, pool));
                }
                Find::Dial(leader) => break Some(leader),
                Find::Wait(pending) => match pending.ended().await {
                    // What has been opened meanwhile is fresh.
                    DialOutcome::AskAgain => fresh = false,
                    DialOutcome::Http1 => break None,
                    DialOutcome::Failed(why) => return Err(why),
                },
            }
        };
        let dialed = self.begin(endpoint, timer).await;
        if let Some(leader) = leader {
            DialLeader::tell(
                leader,
                match &dialed {
                    Ok(conn) if conn.is_bridged() => DialOutcome::AskAgain,
                    Ok(_) => DialOutcome::Http1,
                    Err(why) => DialOutcome::Failed(why.clone()),
                },
            );
        }
        dialed
    }

    /// Dials, and takes the first stream if the server speaks HTTP/2.
    async fn begin(&self, endpoint: &Endpoint, timer: &Timer) -> Result<UpConn, DialError> {
        let stream = self.dial(endpoint, timer).await?;
        if matches!(&stream, Stream::Tls(tls) if !tls.speaks_h2()) {
            return Ok(UpConn::new(stream, endpoint.pool));
        }
        let (h2_pool, pool) = (&self.core.h2_pool, endpoint.pool);
        let listed = self.upstream.reuse != Reuse::Never;
        timer.arm(stream.handle(), Shut::Both, self.timeouts.connect);
        let stream_slot =
            h2_pool.begin(pool, stream, self.core.ticker.timer(), listed, &self.plan.head).await;
        let late = timer.expired();
        timer.disarm();
        let error = |error: h2::Error| match late {
            true => DialError::Late,
            false if sys::is_shortage(&error) => DialError::Ours,
            false => DialError::Unreachable,
        };
        Ok(bridge::open(h2_pool, stream_slot.map_err(error)?, pool))
    }

    /// Tells the control thread and the client why there is no connection.
    #[cold]
    fn no_connection(&self, error: DialError) -> Attempted {
        let (kind, message) = match error {
            DialError::Ours => return Attempted::Failed(Failed::unconnected(Kind::Shortage, None)),
            DialError::Unreachable => (Kind::UpstreamConnect, None),
            DialError::Late => (Kind::UpstreamConnectTimeout, None),
            DialError::Tls(HandshakeError { why, plain }) => {
                self.upstream.state.complain(format!("tls handshake failed: {why}"));
                let message = format!("The TLS handshake with the upstream failed: {plain}.");
                (Kind::UpstreamTls, Some(message))
            }
            DialError::Proxy(why) => (why.kind(), self.proxy_message(Some(why))),
        };
        // The control thread checks whether the server is gone, so that no more requests are sent
        // there.
        self.upstream.state.suspect();
        Attempted::Failed(Failed::unconnected(kind, message))
    }

    /// What the operator and the client are told of the outbound proxy.
    pub(super) fn proxy_message(&self, why: Option<TunnelError>) -> Option<String> {
        let why = why?.why(&self.upstream.via.as_ref()?.proxy);
        self.upstream.state.complain(why.clone());
        Some(format!("The {why}."))
    }
}
