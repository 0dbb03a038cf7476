//! A connection that has left HTTP (WebSocket): bytes both ways until one side has ended and the
//! other has had its time to follow.
//!
//! Each direction relays through one buffer and passes the other side's end on, so half-closed
//! connections work. Nothing here lasts for ever:
//!
//! - silence in both directions for `stream_idle` ends the tunnel; one direction may be silent for
//!   as long as the other is not, since some only listen;
//! - a side that takes nothing of what is sent to it is cut, the client after `client_write_idle`,
//!   the upstream after `stream_idle`;
//! - once a side has ended, the other has `client_write_idle` in all to end as well.
//!
//! Every timer is on the socket that is awaited, and each socket has two: for what it is to say,
//! and for what it is to take.

use std::cell::{Cell, RefCell};
use std::pin::pin;
use std::time::Duration;

use super::core::Core;
use super::downstream::Downstream;
use super::settle::Settle;
use crate::base::buf::SMALL_BYTES;
use crate::error::Kind;
use crate::llm::messages::Messages;
use crate::net::race::{First, race};
use crate::net::rt::Part;
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::Timer;
use crate::policy::limit::passed::Answer;

/// What a tunnel has carried, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// Bytes to the upstream.
    pub sent: u64,
    /// Bytes to the client.
    pub received: u64,
    /// What ended it, if neither side did.
    pub fault: Option<Kind>,
}

/// What a tunnel costs a key that pays by the token: each count of tokens is paid when the upstream
/// names it, since a tunnel may last for hours; what no count covers is paid at the end.
pub struct Metered<'a> {
    messages: Box<Messages>,
    settle: &'a Settle,
}

impl<'a> Metered<'a> {
    /// Reads the tunnel of the exchange that `settle` records.
    #[must_use]
    pub fn new(settle: &'a Settle) -> Self {
        Self { messages: Box::default(), settle }
    }

    /// Reads bytes from the upstream; `sent` counts the client's bytes until then.
    fn record(&mut self, bytes: &[u8], sent: u64) {
        self.messages.push(bytes, sent);
        let tokens = self.messages.take_unpaid();
        if tokens > 0 {
            self.settle.pay(tokens);
        }
        self.note(sent);
    }

    /// Notes what is owed, should this be the end.
    fn note(&mut self, sent: u64) {
        let said = self.messages.said();
        self.settle.record.used(said);
        self.settle.passed.borrow_mut().answer = Answer::Tunnel(self.messages.uncounted(sent));
    }
}

/// One end of a tunnel.
struct Side {
    stream: Stream,
    /// Deadline for its next bytes, or its end.
    speaks: Timer,
    /// Deadline for it to take some of what is sent to it.
    takes: Timer,
    /// How long it may take nothing.
    write_idle: Duration,
    /// The fault when it takes nothing for that long.
    stalled: Kind,
}

struct Tunnel<'a> {
    core: &'a Core,
    client: Side,
    upstream: Side,
    /// How long both sides may be silent.
    idle: Duration,
    /// How long a side may go on when the other has ended.
    follow: Duration,
    /// One side has ended: `follow` bounds what is left.
    following: Cell<bool>,
    fault: Cell<Option<Kind>>,
    /// Bytes that the client has sent so far.
    sent: Cell<u64>,
    meter: RefCell<Option<Metered<'a>>>,
}

/// Relays both ways; `early` came from the upstream behind its head.
///
/// Shape: `idle` is the group's `stream_idle`.
pub async fn run(
    core: &Core,
    down: &mut Downstream,
    upstream: Stream,
    early: Vec<u8>,
    idle: Duration,
    meter: Option<Metered<'_>>,
) -> Carried {
    // While the answer was awaited this timer watched for the client's leaving; here receives
    // notice that.
    down.timer.disarm();
    let first = std::mem::take(&mut down.recv);
    let side = |stream, write_idle, stalled| {
        let (speaks, takes) = (core.ticker.timer(), core.ticker.timer());
        Side { stream, speaks, takes, write_idle, stalled }
    };
    let tunnel = Tunnel {
        core,
        client: side(down.socket.clone(), down.write_idle, Kind::ClientStalled),
        upstream: side(upstream, idle, Kind::UpstreamIdle),
        idle,
        follow: down.write_idle,
        following: Cell::new(false),
        fault: Cell::new(None),
        sent: Cell::new(0),
        meter: RefCell::new(meter),
    };
    tunnel.somebody_spoke();
    let mut up = pin!(tunnel.one_way(&tunnel.client, &tunnel.upstream, first));
    let mut back = pin!(tunnel.one_way(&tunnel.upstream, &tunnel.client, early));
    let (sent, received) = match race(up.as_mut(), back.as_mut()).await {
        First::Left(sent) => (sent, back.await),
        First::Right(received) => (up.await, received),
    };
    if let Some(meter) = &mut *tunnel.meter.borrow_mut() {
        meter.note(sent);
    }
    Carried { sent, received, fault: tunnel.fault.get() }
}

impl Tunnel<'_> {
    /// Restarts the idle deadline of both sides, unless one has ended and `follow` runs.
    fn somebody_spoke(&self) {
        if !self.following.get() {
            for side in [&self.client, &self.upstream] {
                side.speaks.arm(side.stream.handle(), Shut::Both, self.idle);
            }
        }
    }

    /// Bytes have come from one side, `all` of them so far.
    fn heard(&self, from: &Side, bytes: &[u8], all: u64) {
        if std::ptr::eq(from, &self.client) {
            self.sent.set(all);
        } else if let Some(meter) = &mut *self.meter.borrow_mut() {
            meter.record(bytes, self.sent.get());
        }
    }

    async fn one_way(&self, from: &Side, to: &Side, first: Vec<u8>) -> u64 {
        let mut bytes = first.len() as u64;
        self.heard(from, &first, bytes);
        let (mut result, back) = self.pass(to, first).await;
        self.core.buffers.give_back(back);
        let mut buffer = self.core.buffers.take(SMALL_BYTES);
        while result.is_ok() {
            buffer.clear();
            let (received, back) = from.stream.recv(buffer).await;
            buffer = back;
            match received {
                Ok(n) if n > 0 => bytes += n as u64,
                _ => break,
            }
            self.heard(from, &buffer, bytes);
            self.somebody_spoke();
            (result, buffer) = self.pass(to, buffer).await;
        }
        self.core.buffers.give_back(buffer);
        self.ended(from, to, result);
        bytes
    }

    /// Sends to one side, which may take its time between two pieces up to a limit.
    ///
    /// Errors: the fault if the side's deadline ended the send; `None` if its connection broke.
    async fn pass(&self, to: &Side, bytes: Vec<u8>) -> (Result<(), Option<Kind>>, Vec<u8>) {
        let mut part = Part::whole(bytes);
        while part.left() > 0 {
            to.takes.arm(to.stream.handle(), Shut::Both, to.write_idle);
            let (result, back) = to.stream.send(part).await;
            part = back;
            match result {
                Ok(n) if n > 0 => {
                    part.advance(n);
                    self.somebody_spoke();
                }
                _ => {
                    let stalled = to.takes.expired().then_some(to.stalled);
                    to.takes.disarm();
                    return (Err(stalled), part.into_buffer());
                }
            }
        }
        to.takes.disarm();
        (Ok(()), part.into_buffer())
    }

    /// One direction is over: passes the end on, and gives the other side its time to follow.
    fn ended(&self, from: &Side, to: &Side, result: Result<(), Option<Kind>>) {
        let silent = from.speaks.expired() && !self.following.get();
        let why = match result {
            _ if self.core.ticker.ended() => Some(Kind::Draining),
            Err(stalled) => stalled,
            Ok(()) => silent.then_some(Kind::UpstreamIdle),
        };
        if self.fault.get().is_none() {
            self.fault.set(why);
        }
        match result {
            Ok(()) => to.stream.shutdown(Shut::Write),
            // Only reads from `from` end: the other direction may still have bytes for it.
            Err(_) => {
                to.stream.shutdown(Shut::Both);
                from.stream.shutdown(Shut::Read);
            }
        }
        if !self.following.replace(true) {
            from.speaks.disarm();
            to.speaks.arm(to.stream.handle(), Shut::Both, self.follow);
        }
    }
}
