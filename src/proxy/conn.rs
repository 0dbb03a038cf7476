//! What a client connection speaks is found out here, once, before its first request.
//!
//! Over TLS the handshake decides it (ALPN); HTTP/2 without TLS is known by its preface (RFC 9113
//! §3.4); everything else is HTTP/1.1.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustls::ServerConfig;

use super::conn_h1;
use super::conn_h2;
use super::core::Core;
use super::downstream::{Client, Downstream, Peer};
use super::listeners::CoreListener;
use super::places::Shaking;
use crate::base::buf::SMALL_BYTES;
use crate::net::pooled_future::PooledFuture;
use crate::net::rt::Socket;
use crate::net::stream::Stream;
use crate::net::tls::{TlsStream, client_name};

/// The first bytes of a client that speaks HTTP/2 by prior knowledge (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
///
/// All but the loop of HTTP/1.1 runs in pooled futures, so that the task of an idle client stays
/// small: there are many.
pub async fn serve(
    core: &Rc<Core>,
    socket: Socket,
    peer: Option<SocketAddr>,
    listener: Rc<CoreListener>,
) {
    let peer = peer.map(|peer| Peer { ip: peer.ip(), text: peer.ip().to_string().into() });
    let client = Client { stream: Stream::Plain(socket), peer, listener, certified: None };
    let Some((client, first)) = PooledFuture::with(|| greet(core, client)).await else { return };
    let mut down = Downstream::new(core, client, first);
    conn_h1::serve(core, &mut down).await;
}

/// Finds out which protocol a client speaks, and serves the connection to its end if that is
/// HTTP/2.
///
/// Shape: `None` when there is nothing left to serve; else the client and the bytes received so
/// far.
async fn greet(core: &Rc<Core>, mut client: Client) -> Option<(Client, Vec<u8>)> {
    let tls =
        core.with_listener(&client.listener, |plan| plan.tls.as_ref().map(|tls| tls.config()));
    let (first, speaks_h2) = match tls {
        Some(config) => {
            let stream = PooledFuture::with(|| shake_hands(core, &client, config)).await?;
            let certificate = stream.peer_certificate();
            client.certified = certificate.and_then(|cert| client_name(&cert)).map(Into::into);
            let speaks_h2 = stream.speaks_h2();
            client.stream = Stream::Tls(stream);
            (Vec::new(), speaks_h2)
        }
        None => {
            let first = first_bytes(core, &client).await?;
            let speaks_h2 = first.starts_with(PREFACE);
            (first, speaks_h2)
        }
    };
    if speaks_h2 {
        PooledFuture::with(|| conn_h2::serve(core.clone(), client, first)).await;
        return None;
    }
    Some((client, first))
}

/// Does the TLS handshake with a client, unless too many are under way.
///
/// Shape: `None` when it was refused or failed; either is counted.
async fn shake_hands(core: &Core, client: &Client, config: Arc<ServerConfig>) -> Option<TlsStream> {
    let socket = client.stream.plain()?.clone();
    let shared = &core.shared;
    let Some(shaking) = Shaking::begin(core, client.peer.as_ref().map(|peer| peer.ip)) else {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        return None;
    };
    let timer = core.ticker.timer();
    let timeout = core.with_listener(&client.listener, |plan| plan.timeouts.handshake);
    timer.arm_handshake(client.stream.handle(), timeout, shaking.tag());
    let stream = TlsStream::accept(socket, config).await.ok();
    if stream.is_none() {
        shared.handshakes_failed.fetch_add(1, Ordering::Relaxed);
    }
    stream
}

/// Receives until the bytes are either the whole preface of HTTP/2 or something else.
///
/// Shape: `None` when the client left, or its time ran out, before.
async fn first_bytes(core: &Core, client: &Client) -> Option<Vec<u8>> {
    let timer = core.ticker.timer();
    let timeout = core.with_listener(&client.listener, |plan| plan.timeouts.head);
    timer.arm_idle(client.stream.handle(), timeout, client.listener.id());
    let mut first = Vec::new();
    loop {
        client.stream.readable().await;
        if first.capacity() == 0 {
            first = core.buffers.take(SMALL_BYTES);
        }
        match client.stream.recv_now(&mut first) {
            Ok(Some(n)) if n > 0 => {}
            Ok(None) => continue,
            _ => {
                core.buffers.give_back(first);
                return None;
            }
        }
        let undecided = first.len() < PREFACE.len() && PREFACE.starts_with(&first);
        if !undecided {
            return Some(first);
        }
    }
}
