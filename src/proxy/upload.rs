//! One direction of an attempt: the request, from the client to the upstream.
//!
//! The head and the first part of a held body go out in one send. What the client has yet to
//! send is relayed as it comes, framed on the way, so that a request that breaks its framing never
//! looks complete upstream.
//!
//! As long as all of it fits into `body_held`, what is relayed is kept too, behind what was held: a
//! connection that dies may then be replaced, and the attempt ends without having taken anything
//! from the client that is lost. The rest of a larger body goes through one buffer (or one pipe,
//! when nobody needs the bytes), and from its first byte on nothing can be sent again.
//!
//! A deadline runs for the side that is awaited: while the client owes bytes, the upstream is not
//! late.
//!
//! When the answer is complete before the request is, the client is still sending: the rest is
//! read and thrown away for a while, because a close would reset the connection and destroy
//! the answer on its way.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::core::Core;
use super::hold::{RequestBody, RoutedBy, SLICE_BYTES, Scanner};
use super::pace::BodyPace;
use super::progress::Progress;
use super::rename::Renamer;
use super::settle::Settle;
use crate::base::buf::{BULK_BYTES, LARGE_BYTES};
use crate::error::Kind;
use crate::http1::body::BodyReader;
use crate::net::pooled_future::PooledFuture;
use crate::net::race::yield_now;
use crate::net::rt::Part;
use crate::net::splice::{Ended, Step};
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::Timer;
use crate::upstream::held::Held;

/// Least number of bytes left that are spliced: the kernel moves them from socket to socket.
pub const SPLICE_BYTES_MIN: u64 = LARGE_BYTES as u64;
/// How long a client may go on sending after the answer is complete.
const DISCARD: Duration = Duration::from_secs(2);
/// Least room offered to a receive that is kept.
const ROOM_MIN: usize = 4096;

/// Bytes to spare behind a slice for another name, its quotes and escapes; most need no more.
const RENAMED_ROOM: usize = 256;

/// What an upload needs.
pub struct Upload<'a> {
    /// This core.
    pub core: &'a Core,
    /// The record of the exchange.
    pub settle: &'a Settle,
    /// The client.
    pub client: &'a Stream,
    /// The upstream.
    pub upstream: &'a Stream,
    /// Shared with the other direction.
    pub progress: &'a Progress,
    /// Deadline of the client's next bytes.
    pub client_timer: &'a Timer,
    /// Deadline of the upstream.
    pub up_timer: &'a Timer,
    /// Client-side limit between two reads.
    pub body_idle: Duration,
    /// How fast the client sends, of the time in which it is awaited.
    pub pace: ClientPace,
    /// Upstream-side limit for taking the request and beginning the answer.
    pub first_byte: Duration,
    /// Largest body, in data bytes.
    pub body_bytes_max: u64,
    /// Largest body that is kept, in bytes as framed.
    pub body_held_bytes_max: u64,
    /// What must not change in the rest of the body.
    pub routed_by: RoutedBy<'a>,
}

/// A request as one attempt sends it, as far as it has been received.
pub struct Encoded<'n> {
    /// The head, and a small body behind it.
    pub out: Vec<u8>,
    /// Offset in the receive buffer of the first body byte that is not in `out`.
    pub from: usize,
    /// Writes these bytes anew on their way; `None` = they go as they came.
    pub renamer: Option<Renamer<'n>>,
}

/// How fast a client sends what it has yet to send.
pub struct ClientPace {
    pace: Cell<BodyPace>,
    /// Since when the client is awaited; `None` = it is not.
    since: Cell<Option<Instant>>,
    /// How long the client has been awaited since its last bytes.
    waited: Cell<Duration>,
}

impl ClientPace {
    /// Units: `rate_min` bytes a second; 0 = none.
    #[must_use]
    pub fn new(rate_min: u64) -> Self {
        let pace = Cell::new(BodyPace::new(rate_min));
        Self { pace, since: Cell::new(None), waited: Cell::default() }
    }

    fn begin(&self, now: Instant) {
        self.since.set(Some(now));
    }

    fn end(&self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.waited.set(self.waited.get() + now.saturating_duration_since(since));
        }
    }

    /// Counts bytes that have come; tells whether the client is too slow.
    fn is_slow(&self, bytes: u64) -> bool {
        let mut pace = self.pace.get();
        let slow = pace.is_slow(self.waited.take(), bytes);
        self.pace.set(pace);
        slow
    }
}

/// What an upload gives back.
pub struct Sent {
    /// The receive buffer, with all of the body that is kept.
    pub held: Vec<u8>,
    /// What came behind the body.
    pub leftover: Vec<u8>,
    /// How it ended.
    pub end: Uploaded,
}

/// How an upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uploaded {
    /// The whole request has been sent.
    Sent,
    /// The upstream stopped taking it; its answer may still come.
    Refused,
    /// The client was still sending when the answer was over; the rest was thrown away.
    Outrun,
    /// The client's fault.
    Broken(Kind),
}

impl Upload<'_> {
    /// Sends what is encoded, then the rest of what is held, then what the client has yet to send.
    pub async fn run(
        self,
        encoded: Encoded<'_>,
        held: Vec<u8>,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
        hold: &mut Held<'_>,
    ) -> Sent {
        self.up_timer.arm(self.upstream.handle(), Shut::Both, self.first_byte);
        let Encoded { out, from, renamer } = encoded;
        let (result, held) = match renamer {
            None => self.send_held(out, held, from, body.end).await,
            Some(renamer) => {
                let rest = &held[from..body.end];
                // Pooled: few bodies are both renamed and large.
                let result = PooledFuture::with(|| self.send_renamed(out, rest, renamer)).await;
                (result, held)
            }
        };
        let mut sent = Sent { held, leftover: Vec::new(), end: Uploaded::Refused };
        if body.reader.is_done() {
            self.progress.body_received.set(true);
            // After an error the timer stays armed: it tells whether its deadline ended the send.
            if result.is_ok() {
                self.sent_all();
                sent.end = Uploaded::Sent;
            }
            return sent;
        }
        // Pooled: most bodies are here already, and else every exchange's future would have room
        // for this one.
        PooledFuture::with(|| self.relay(result.is_ok(), body, scanner, hold, &mut sent)).await;
        sent
    }

    /// Relays what the client has yet to send, and deals with what it sends too late.
    async fn relay(
        &self,
        taken: bool,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
        hold: &mut Held<'_>,
        sent: &mut Sent,
    ) {
        if taken {
            sent.end = match self.relay_kept(body, scanner, hold, sent).await {
                Some(end) => end,
                None => self.relay_on(body, scanner, &mut sent.leftover).await,
            };
        }
        self.client_timer.disarm();
        match sent.end {
            Uploaded::Sent => self.sent_all(),
            Uploaded::Refused if self.is_over().await => self.discard(&mut body.reader).await,
            Uploaded::Refused | Uploaded::Outrun | Uploaded::Broken(_) => {}
        }
    }

    /// Sends the head and what is held. A large body goes out at once, by direct calls, while it is
    /// still in the cache; what the kernel does not take is queued. A very large one goes slice by
    /// slice: TLS encrypts all it is given at once, and other exchanges need their turn.
    async fn send_held(
        &self,
        out: Vec<u8>,
        held: Vec<u8>,
        from: usize,
        to: usize,
    ) -> (io::Result<()>, Vec<u8>) {
        let mut head = Part::whole(out);
        let mut body = Part::range(held, from, to.min(from + SLICE_BYTES));
        if body.left() > 0 {
            // An error shows again in the queued send.
            let taken = self.upstream.send_both_now(head.bytes(), body.bytes());
            let taken = taken.unwrap_or(0);
            let of_head = taken.min(head.left());
            head.advance(of_head);
            body.advance(taken - of_head);
        }
        let (mut result, out) = self.upstream.send_all(head).await;
        self.core.buffers.give_back(out);
        if result.is_ok() && body.left() > 0 {
            let (sent, back) = self.upstream.send_all(body).await;
            (result, body) = (sent, Part::whole(back));
        }
        let mut held = body.into_buffer();
        let mut sent = from + SLICE_BYTES;
        while result.is_ok() && sent < to {
            let slice = Part::range(held, sent, to.min(sent + SLICE_BYTES));
            (result, held) = self.upstream.send_all(slice).await;
            sent += SLICE_BYTES;
        }
        (result, held)
    }

    /// Sends the head and a large body whose model is renamed: each slice is written and sent before
    /// the next one, so that the body is held once.
    async fn send_renamed(
        &self,
        mut out: Vec<u8>,
        rest: &[u8],
        mut renamer: Renamer<'_>,
    ) -> io::Result<()> {
        let mut result = Ok(());
        let mut slices = rest.chunks(SLICE_BYTES).peekable();
        while let Some(slice) = slices.next()
            && result.is_ok()
        {
            let room = slice.len() + RENAMED_ROOM;
            if out.capacity() - out.len() < room {
                let mut larger = self.core.buffers.take(out.len() + room);
                larger.extend_from_slice(&out);
                self.core.buffers.give_back(std::mem::replace(&mut out, larger));
            }
            renamer.push(slice, &mut out);
            if slices.peek().is_none() {
                renamer.end(&mut out);
            }
            let mut part = Part::whole(out);
            // As in `send_held`: at once, and an error shows again in the queued send.
            let taken = self.upstream.send_now(part.bytes()).unwrap_or(0);
            part.advance(taken);
            (result, out) = self.upstream.send_all(part).await;
            out.clear();
            yield_now().await;
        }
        self.core.buffers.give_back(out);
        result
    }

    fn sent_all(&self) {
        self.settle.record.request_sent(self.settle.now());
        self.progress.body_received.set(true);
        if !self.progress.answer_begun.get() {
            self.up_timer.arm(self.upstream.handle(), Shut::Both, self.first_byte);
        }
    }

    /// Relays and keeps what it has relayed, for as long as there is room.
    ///
    /// Shape: `None` when the rest cannot be kept; all bytes that were taken from the client are.
    async fn relay_kept(
        &self,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
        hold: &mut Held<'_>,
        sent: &mut Sent,
    ) -> Option<Uploaded> {
        while self.make_room(body, hold, &mut sent.held) {
            if let Err(end) = self.receive_kept(&mut sent.held).await {
                return Some(end);
            }
            let from = body.end;
            match self.check(&sent.held[from..], body, scanner) {
                Ok(taken) => body.end += taken,
                Err(kind) => return Some(Uploaded::Broken(kind)),
            }
            if body.reader.is_done() {
                sent.leftover.extend_from_slice(&sent.held[body.end..]);
                sent.held.truncate(body.end);
            }
            if self.progress.answer_done.get() {
                return Some(Uploaded::Refused);
            }
            let part = Part::range(std::mem::take(&mut sent.held), from, body.end);
            let result = self.send(part, &mut sent.held).await;
            if result.is_err() {
                return Some(Uploaded::Refused);
            }
            if body.reader.is_done() {
                return Some(Uploaded::Sent);
            }
        }
        // Nothing of the rest has been taken yet: until the client sends it, the request can still
        // be sent again.
        if let Err(end) = self.client_speaks().await {
            return Some(end);
        }
        self.progress.gone.set(true);
        None
    }

    /// Makes room behind what is held; `false` when the body is larger than may be kept, or the
    /// process holds too much already.
    fn make_room(&self, body: &RequestBody, hold: &mut Held<'_>, held: &mut Vec<u8>) -> bool {
        let left = body.reader.length_left();
        let room = left.map_or(ROOM_MIN, |left| usize::try_from(left).unwrap_or(usize::MAX));
        let whole = (body.end - body.begin).saturating_add(room);
        if whole as u64 > self.body_held_bytes_max {
            return false;
        }
        if held.capacity() - held.len() >= room.min(ROOM_MIN) {
            return true;
        }
        let announced = held.len() + room;
        let wanted = if announced <= BULK_BYTES { announced } else { 2 * held.len() };
        let wanted = wanted.max(held.len() + ROOM_MIN);
        if wanted > LARGE_BYTES && !hold.grow_to(wanted as u64) {
            return false;
        }
        let mut larger = self.core.buffers.take(wanted);
        larger.extend_from_slice(held);
        self.core.buffers.give_back(std::mem::replace(held, larger));
        true
    }

    /// Receives what has come, or waits until something comes.
    ///
    /// Waiting is for readiness: it can be given up without a byte being lost.
    async fn receive_kept(&self, held: &mut Vec<u8>) -> Result<(), Uploaded> {
        loop {
            match self.client.recv_now(held) {
                Ok(Some(n)) if n > 0 && self.pace.is_slow(n as u64) => {
                    return Err(Uploaded::Broken(Kind::BodyTimeout));
                }
                Ok(Some(n)) if n > 0 => return Ok(()),
                Ok(None) => self.client_speaks().await?,
                _ => return Err(Uploaded::Broken(Kind::ClientGone)),
            }
        }
    }

    /// Waits until the client has sent something.
    ///
    /// Errors: the client is late; or the attempt is over (`Refused`).
    async fn client_speaks(&self) -> Result<(), Uploaded> {
        self.await_client();
        let mut readable = pin!(self.client.readable());
        let stopped = poll_fn(|cx| match self.progress.stop.get() {
            true => Poll::Ready(true),
            false => readable.as_mut().poll(cx).map(|()| false),
        })
        .await;
        let expired = self.client_timer.expired();
        self.await_upstream();
        match (stopped, expired) {
            (true, _) => Err(Uploaded::Refused),
            (false, true) => Err(Uploaded::Broken(Kind::BodyTimeout)),
            (false, false) => Ok(()),
        }
    }

    /// The client is awaited now: its deadline runs, and the upstream's does not.
    fn await_client(&self) {
        let patience = self.pace.pace.get().patience(self.body_idle);
        self.client_timer.arm(self.client.handle(), Shut::Read, patience);
        self.pace.begin(self.core.ticker.now());
        self.progress.client_owes.set(true);
        self.up_timer.disarm();
    }

    /// The client has sent something: it is the upstream's turn.
    fn await_upstream(&self) {
        self.client_timer.disarm();
        self.pace.end(self.core.ticker.now());
        self.progress.client_owes.set(false);
        let within = match self.progress.answer_begun.get() {
            false => Some(self.first_byte),
            // `None` while the download does not wait for the upstream.
            true => self.progress.answer_within.get(),
        };
        if let Some(within) = within {
            self.up_timer.arm(self.upstream.handle(), Shut::Both, within);
        }
    }

    /// Sends on to the upstream; the buffer comes back into `buffer`.
    async fn send(&self, part: Part, buffer: &mut Vec<u8>) -> io::Result<()> {
        self.progress.upload_waits.set(true);
        let (result, back) = self.upstream.send_all(part).await;
        self.progress.upload_waits.set(false);
        *buffer = back;
        result
    }

    /// The upstream takes no more: waits until it is known whether there is an answer. `false`
    /// when there is none, and what the client still sends is wanted for another attempt.
    async fn is_over(&self) -> bool {
        let progress = self.progress;
        // The upload does not read from the client meanwhile.
        progress.upload_waits.set(true);
        let is_over = poll_fn(|_| match (progress.stop.get(), progress.gone.get()) {
            (true, _) => Poll::Ready(false),
            (false, true) => Poll::Ready(true),
            // The attempt polls the upload again when one of these is set.
            _ if progress.answer_begun.get() || progress.answer_done.get() => Poll::Ready(true),
            _ => Poll::Pending,
        })
        .await;
        progress.upload_waits.set(false);
        is_over
    }

    /// Relays what is left and not kept.
    async fn relay_on(
        &self,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
        leftover: &mut Vec<u8>,
    ) -> Uploaded {
        let mut buffer = self.core.buffers.take(LARGE_BYTES);
        let end = loop {
            if matches!(scanner, Scanner::None)
                && let Some(end) = self.splice(body).await
            {
                break end;
            }
            buffer.clear();
            self.await_client();
            let (result, back) = self.client.recv(buffer).await;
            buffer = back;
            let mut expired = self.client_timer.expired();
            self.await_upstream();
            expired |= matches!(result, Ok(n) if n > 0 && self.pace.is_slow(n as u64));
            if expired || !matches!(result, Ok(n) if n > 0) {
                break Uploaded::Broken(if expired { Kind::BodyTimeout } else { Kind::ClientGone });
            }
            let taken = match self.check(&buffer, body, scanner) {
                Ok(taken) => taken,
                Err(kind) => break Uploaded::Broken(kind),
            };
            if body.reader.is_done() {
                leftover.extend_from_slice(&buffer[taken..]);
            }
            if self.progress.answer_done.get() {
                break Uploaded::Refused;
            }
            let part = Part::range(std::mem::take(&mut buffer), 0, taken);
            if self.send(part, &mut buffer).await.is_err() {
                break Uploaded::Refused;
            }
            if body.reader.is_done() {
                break Uploaded::Sent;
            }
        };
        self.core.buffers.give_back(buffer);
        end
    }

    /// Frames and scans received bytes; tells how many of them belong to the body.
    ///
    /// Errors: the fault of the client's body.
    fn check(
        &self,
        input: &[u8],
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
    ) -> Result<usize, Kind> {
        let mut at = 0;
        while !body.reader.is_done() && at < input.len() {
            let step = body.reader.step(&input[at..]).map_err(|_| Kind::BodyMalformed)?;
            let data = &input[at..][step.data];
            body.data_bytes += data.len() as u64;
            if body.data_bytes > self.body_bytes_max {
                return Err(Kind::BodyTooLarge);
            }
            scanner.push(data).map_err(|refusal| refusal.kind)?;
            at += step.consumed;
        }
        if body.reader.is_done() {
            scanner.finish().map_err(|refusal| refusal.kind)?;
        }
        if !self.routed_by.still_holds(scanner) {
            return Err(Kind::ModelChanged);
        }
        Ok(at)
    }

    /// Lets the kernel move the rest, if it is long and its length is known.
    ///
    /// Shape: `None` when it does not: the rest goes through a buffer.
    async fn splice(&self, body: &mut RequestBody) -> Option<Uploaded> {
        let left = body.reader.length_left().filter(|&left| left >= SPLICE_BYTES_MIN)?;
        let (client, upstream) = (self.client.plain()?, self.upstream.plain()?);
        let (moved, slow) = (Cell::new(0u64), Cell::new(false));
        self.await_client();
        let tell = |step| match step {
            Step::Waits => {
                self.await_upstream();
                self.progress.upload_waits.set(true);
            }
            Step::Moved(n) => {
                moved.set(moved.get() + n);
                self.progress.upload_waits.set(false);
                self.pace.end(self.core.ticker.now());
                if self.pace.is_slow(n) {
                    slow.set(true);
                    return client.shutdown(Shut::Read);
                }
                self.await_client();
            }
        };
        let result = self.core.pipes.splice(client, upstream, left, tell).await;
        self.progress.upload_waits.set(false);
        let expired = self.client_timer.expired();
        self.client_timer.disarm();
        self.progress.client_owes.set(false);
        body.reader.advance(moved.get());
        body.data_bytes += moved.get();
        match result {
            Ok(()) => {
                self.await_upstream();
                Some(Uploaded::Sent)
            }
            Err(Ended::NoPipe) => None,
            Err(Ended::To) => Some(Uploaded::Refused),
            Err(Ended::From) => {
                let late = expired || slow.get();
                let kind = if late { Kind::BodyTimeout } else { Kind::ClientGone };
                Some(Uploaded::Broken(kind))
            }
        }
    }

    /// Reads what the client still sends and throws it away.
    async fn discard(&self, reader: &mut BodyReader) {
        self.client_timer.arm(self.client.handle(), Shut::Both, DISCARD);
        let mut buffer = self.core.buffers.take(LARGE_BYTES);
        while !reader.is_done() {
            buffer.clear();
            let (result, back) = self.client.recv(buffer).await;
            buffer = back;
            if !matches!(result, Ok(n) if n > 0) {
                break;
            }
            let mut at = 0;
            while !reader.is_done() && at < buffer.len() {
                match reader.step(&buffer[at..]) {
                    Ok(step) => at += step.consumed,
                    Err(_) => break,
                }
            }
        }
        self.core.buffers.give_back(buffer);
        self.client_timer.disarm();
    }
}
