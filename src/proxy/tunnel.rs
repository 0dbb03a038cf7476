//! A connection that has left HTTP (WebSocket): bytes both ways until both sides have ended.
//!
//! Each direction relays through one buffer and passes the other side's end on, so half-closed
//! connections work. A tunnel that is silent in both directions for `stream_idle` is ended.

use std::pin::pin;
use std::time::Duration;

use super::conn_h1::Downstream;
use super::core::Core;
use crate::base::buf::SMALL_BYTES;
use crate::net::race::{First, race};
use crate::net::rt::Part;
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::Timer;

/// Relays both ways; `early` came from the upstream behind its head.
///
/// Shape: returns the bytes relayed to the upstream and to the client.
pub async fn run(
    core: &Core,
    down: &mut Downstream,
    upstream: Stream,
    early: Vec<u8>,
    idle: Duration,
) -> (u64, u64) {
    let client = down.socket.clone();
    let first = std::mem::take(&mut down.recv);
    let timer = core.ticker.timer();
    let mut up = pin!(one_way(core, &client, &upstream, first, &timer, idle));
    let mut back = pin!(one_way(core, &upstream, &client, early, &timer, idle));
    match race(up.as_mut(), back.as_mut()).await {
        First::Left(sent) => (sent, back.await),
        First::Right(received) => (up.await, received),
    }
}

async fn one_way(
    core: &Core,
    from: &Stream,
    to: &Stream,
    first: Vec<u8>,
    timer: &Timer,
    idle: Duration,
) -> u64 {
    let mut bytes = first.len() as u64;
    let (mut result, back) = to.send_all(Part::whole(first)).await;
    core.buffers.give_back(back);
    let mut buffer = core.buffers.take(SMALL_BYTES);
    while result.is_ok() {
        buffer.clear();
        timer.arm(from.handle(), Shut::Both, idle);
        let (received, back) = from.recv(buffer).await;
        buffer = back;
        match received {
            Ok(n) if n > 0 => bytes += n as u64,
            _ => break,
        }
        (result, buffer) = to.send_all(Part::whole(buffer)).await;
    }
    core.buffers.give_back(buffer);
    match result {
        Ok(()) => to.shutdown(Shut::Write),
        Err(_) => from.shutdown(Shut::Both),
    }
    bytes
}
