//! What a client connection speaks is found out here, once, before its first request.
//!
//! HTTP/2 without TLS is known by its preface (RFC 9113 §3.4); everything else is HTTP/1.1.

use std::net::SocketAddr;
use std::rc::Rc;

use super::conn_h1::{self, Client, Peer};
use super::conn_h2;
use super::core::Core;
use crate::base::buf::SMALL_BYTES;
use crate::net::frame::Frame;
use crate::net::rt::Socket;
use crate::net::stream::Stream;

/// What a client that knows us to speak HTTP/2 sends first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
pub async fn serve(core: Rc<Core>, socket: Socket, peer: Option<SocketAddr>, listener: usize) {
    let peer = peer.map(|peer| Peer { ip: peer.ip(), text: peer.ip().to_string().into() });
    let client = Client { stream: Stream::Plain(socket), peer, listener, certified: None };
    let Some(first) = Frame::with(|| first_bytes(&core, &client)).await else { return };
    if first.starts_with(PREFACE) {
        Frame::with(|| conn_h2::serve(core, client, first)).await;
    } else {
        conn_h1::serve(core, client, first).await;
    }
}

/// Waits for what the client says first, until it cannot be mistaken.
///
/// Shape: `None` when it left before.
async fn first_bytes(core: &Core, client: &Client) -> Option<Vec<u8>> {
    let timer = core.ticker.timer();
    let timeout = core.with_listener(client.listener, |plan| plan.timeouts.head);
    timer.arm_idle(client.stream.handle(), timeout);
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
