//! One direction of an attempt: the request, from the client to the upstream.
//!
//! The head and the first part of a held body go out in one send. What the client has yet to
//! send is relayed as it comes, through one buffer (or one pipe, when nobody needs the bytes),
//! framed on the way, so that a request that breaks its framing never looks complete upstream.
//!
//! When the answer is complete before the request is, the client is still sending: the rest is
//! read and thrown away for a while, because a close would reset the connection and destroy
//! the answer on its way.

use std::cell::Cell;
use std::io;
use std::time::Duration;

use super::attempt::Progress;
use super::core::Core;
use super::hold::{RequestBody, RoutedBy, Scanner};
use crate::base::buf::LARGE_BYTES;
use crate::error::Kind;
use crate::http1::body::BodyReader;
use crate::net::rt::Part;
use crate::net::splice::{Ended, Step};
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::Timer;

/// Least number of bytes left for which the kernel moves them.
pub const SPLICE_BYTES_MIN: u64 = LARGE_BYTES as u64;
/// How long a client may go on sending after the answer is complete.
const DISCARD: Duration = Duration::from_secs(2);

/// What an upload needs.
pub struct Upload<'a> {
    /// This core.
    pub core: &'a Core,
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
    /// Upstream-side limit for taking the request and beginning the answer.
    pub first_byte: Duration,
    /// Largest body, in data bytes.
    pub body_bytes_max: u64,
    /// What must not change in the rest of the body.
    pub routed_by: RoutedBy<'a>,
}

/// What an upload gives back.
pub struct Sent {
    /// The receive buffer.
    pub held: Vec<u8>,
    /// What came behind the body.
    pub rest: Vec<u8>,
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
    /// Sends `out`, then the bytes `held[from..body.end]`, then what the client has yet to send.
    pub async fn run(
        self,
        out: Vec<u8>,
        held: Vec<u8>,
        from: usize,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
    ) -> Sent {
        self.up_timer.arm(self.upstream.handle(), Shut::Both, self.first_byte);
        let (result, held) = self.send_held(out, held, from, body.end).await;
        let mut sent = Sent { held, rest: Vec::new(), end: Uploaded::Refused };
        if body.reader.is_done() {
            self.sent_all();
            if result.is_ok() {
                sent.end = Uploaded::Sent;
            }
            return sent;
        }
        if result.is_ok() {
            sent.end = self.relay(body, scanner, &mut sent.rest).await;
        }
        if sent.end == Uploaded::Refused {
            self.discard(&mut body.reader).await;
        }
        sent
    }

    /// Sends the head and what is held. A large body goes out at once, by direct calls, while it
    /// is still in the cache; what the kernel does not take is queued.
    async fn send_held(
        &self,
        out: Vec<u8>,
        held: Vec<u8>,
        from: usize,
        to: usize,
    ) -> (io::Result<()>, Vec<u8>) {
        let mut head = Part::whole(out);
        let mut body = Part::range(held, from, to);
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
        let mut held = body;
        if result.is_ok() && held.left() > 0 {
            let (sent, back) = self.upstream.send_all(held).await;
            (result, held) = (sent, Part::whole(back));
        }
        (result, held.into_buffer())
    }

    fn sent_all(&self) {
        self.progress.body_received.set(true);
        if !self.progress.answer_begun.get() {
            self.up_timer.arm(self.upstream.handle(), Shut::Both, self.first_byte);
        }
    }

    async fn relay(
        &self,
        body: &mut RequestBody,
        scanner: &mut Scanner<'_>,
        rest: &mut Vec<u8>,
    ) -> Uploaded {
        let mut buffer = self.core.buffers.take(LARGE_BYTES);
        let end = loop {
            if matches!(scanner, Scanner::None)
                && let Some(end) = self.splice(&mut body.reader).await
            {
                break end;
            }
            buffer.clear();
            self.client_timer.arm(self.client.handle(), Shut::Read, self.body_idle);
            let (result, back) = self.client.recv(buffer).await;
            buffer = back;
            if !matches!(result, Ok(n) if n > 0) {
                let expired = self.client_timer.expired();
                break Uploaded::Broken(if expired { Kind::BodyTimeout } else { Kind::ClientGone });
            }
            let taken = match self.check(&buffer, body, scanner) {
                Ok(taken) => taken,
                Err(kind) => break Uploaded::Broken(kind),
            };
            if body.reader.is_done() {
                rest.extend_from_slice(&buffer[taken..]);
            }
            if self.progress.answer_done.get() {
                break Uploaded::Refused;
            }
            // Slow is the upstream now, not the client.
            self.client_timer.disarm();
            self.progress.upload_waits.set(true);
            let (result, back) = self.upstream.send_all(Part::range(buffer, 0, taken)).await;
            self.progress.upload_waits.set(false);
            buffer = back;
            if result.is_err() {
                break Uploaded::Refused;
            }
            if body.reader.is_done() {
                break Uploaded::Sent;
            }
            self.up_progress();
        };
        self.client_timer.disarm();
        self.core.buffers.give_back(buffer);
        if end == Uploaded::Sent {
            self.sent_all();
        }
        end
    }

    /// Frames and scans; tells how many bytes belong to the body.
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
    async fn splice(&self, reader: &mut BodyReader) -> Option<Uploaded> {
        let left = reader.length_left().filter(|&left| left >= SPLICE_BYTES_MIN)?;
        let (client, upstream) = (self.client.plain()?, self.upstream.plain()?);
        let moved = Cell::new(0u64);
        self.client_timer.arm(self.client.handle(), Shut::Read, self.body_idle);
        let tell = |step| match step {
            Step::Waits => {
                self.client_timer.disarm();
                self.progress.upload_waits.set(true);
            }
            Step::Moved(n) => {
                moved.set(moved.get() + n);
                self.progress.upload_waits.set(false);
                self.client_timer.arm(self.client.handle(), Shut::Read, self.body_idle);
                self.up_progress();
            }
        };
        let result = self.core.pipes.splice(client, upstream, left, tell).await;
        self.progress.upload_waits.set(false);
        let expired = self.client_timer.expired();
        self.client_timer.disarm();
        reader.advance(moved.get());
        match result {
            Ok(()) => Some(Uploaded::Sent),
            Err(Ended::NoPipe(_)) => None,
            Err(Ended::To(_)) => Some(Uploaded::Refused),
            Err(Ended::From(_)) => {
                let kind = if expired { Kind::BodyTimeout } else { Kind::ClientGone };
                Some(Uploaded::Broken(kind))
            }
        }
    }

    /// The upstream has taken something: its deadline begins anew.
    fn up_progress(&self) {
        if !self.progress.answer_begun.get() {
            self.up_timer.arm(self.upstream.handle(), Shut::Both, self.first_byte);
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
