//! The body of an answer on its way to the client.

use std::cell::Cell;
use std::future::poll_fn;
use std::time::Duration;

use super::state::{Download, Downloaded, blame};
use crate::base::buf::{LARGE_BYTES, SMALL_BYTES};
use crate::error::Kind;
use crate::http::head::ResponseHead;
use crate::http::name::Name;
use crate::http1::body::BodyReader;
use crate::http1::encode;
use crate::http1::framing::Framing;
use crate::llm::reply::ErrorReply;
use crate::net::rt::Part;
use crate::net::splice::{Ended, Step};
use crate::net::sys::Shut;
use crate::proxy::respond::{self, Delivery, Trailers};
use crate::proxy::settle::Settle;
use crate::proxy::tap::Tap;
use crate::proxy::upload::SPLICE_BYTES_MIN;
use crate::upstream::conn::UpConn;

/// A body of an answer on its way to the client.
struct Body {
    framing: Framing,
    delivery: Delivery,
    reader: BodyReader,
    tap: Tap,
    trailers: Trailers,
    /// The client's connection can go on after it.
    keep: bool,
    /// All of it came with the head.
    whole: bool,
    /// Bytes of it that came with the head.
    taken: usize,
    /// Data bytes that have gone to the client.
    sent: u64,
    /// It is a stream of events.
    streamed: bool,
    /// A broken end can be told by one more event.
    tells: bool,
    /// Its end has come.
    done: bool,
    /// Something came behind its end.
    extra: bool,
    fault: Option<Kind>,
}

/// Which side ended a splice, with the fault.
enum Stopped {
    Upstream(Kind),
    Client(Kind),
}

impl Body {
    /// Frames what has come, to be sent as it is; returns how many bytes of the buffer pass.
    #[inline]
    fn check(&mut self, buffer: &mut Vec<u8>, settle: &Settle) -> usize {
        let (taken, done, bad) = respond::check(&mut self.reader, buffer, &mut self.tap);
        self.came(taken < buffer.len(), done, bad.is_some());
        let mut passes = taken;
        if self.reader.in_trailers() {
            buffer.truncate(taken);
            self.trailers.hold_back(&self.reader, buffer, 0);
            passes = buffer.len();
        }
        note_token(&self.tap, settle);
        passes
    }

    /// Frames what has come and writes it in the client's framing; `out` is overwritten.
    #[inline]
    fn pour(&mut self, buffer: &[u8], out: &mut Vec<u8>, settle: &Settle) {
        out.clear();
        let (taken, done, bad) =
            respond::pour(&mut self.reader, buffer, self.delivery, &mut self.tap, out);
        self.came(taken < buffer.len(), done, bad.is_some());
        note_token(&self.tap, settle);
    }

    #[inline]
    fn came(&mut self, more: bool, done: bool, bad: bool) {
        (self.done, self.extra) = (done, done && more);
        self.fault = bad.then_some(Kind::UpstreamTruncated);
    }
}

impl Download<'_> {
    /// Relays a body whose head has been read; `buffer` begins with that head.
    ///
    /// Shape: `persists` tells whether the upstream's connection may go on after it.
    pub(super) async fn relay(
        &self,
        conn: &mut UpConn,
        response: &ResponseHead,
        framing: Framing,
        persists: bool,
        mut buffer: Vec<u8>,
        settle: &Settle,
    ) -> Downloaded {
        let head_bytes = response.len as usize;
        let (mut body, mut out) = self.begin(response, framing, &buffer, settle);
        // Some servers send their head at once and then think: until the first byte of the body the
        // first-byte deadline runs, and after it the one for pauses.
        let mut silence = match buffer.len() > head_bytes {
            false => (
                self.up_timer.left().unwrap_or(self.timeouts.first_byte),
                Kind::UpstreamFirstByteTimeout,
            ),
            true => self.pause(),
        };
        if !body.whole && self.client.pipe().is_some_and(|pipe| pipe.room() < out.len()) {
            // The send will wait, and `out` has a copy of all that `buffer` holds.
            self.core.buffers.give_back(std::mem::take(&mut buffer));
        }
        let (mut result, back) = self.send_body(Part::whole(out)).await;
        out = back;
        if result.is_ok() {
            settle.record.answer_began(response.status, body.streamed);
            body.sent = body.tap.bytes();
        }
        while result.is_ok() && !body.done && body.fault.is_none() {
            if body.delivery == Delivery::AsIs {
                match self.splice(conn, &mut body, &mut silence).await {
                    // The splice may have moved the last byte: another receive would wait for ever.
                    Ok(()) if body.reader.is_done() => break,
                    Ok(()) => {}
                    Err(Stopped::Upstream(kind)) => {
                        body.fault = Some(kind);
                        break;
                    }
                    Err(Stopped::Client(kind)) => {
                        result = Err(kind);
                        break;
                    }
                }
            }
            let room = self.await_room(&mut buffer, &mut out).await;
            let Ok(bytes_max) = room else {
                result = room.map(drop);
                break;
            };
            if buffer.len() == buffer.capacity() && buffer.capacity() < bytes_max {
                let larger = self.core.buffers.take(bytes_max);
                self.core.buffers.give_back(std::mem::replace(&mut buffer, larger));
            }
            buffer.clear();
            self.await_answer(conn, silence.0);
            let (received, back) = conn.socket().recv(buffer).await;
            buffer = back;
            self.progress.answer_within.set(None);
            if !matches!(received, Ok(n) if n > 0) {
                let late = self.late(silence.1);
                let clean = matches!(received, Ok(0)) && late.is_none();
                if clean && body.reader.end_of_input().is_ok() {
                    if body.delivery == Delivery::IntoChunks {
                        out.clear();
                        encode::last_chunk(&mut out);
                        (result, out) = self.send(Part::whole(out)).await;
                    }
                } else {
                    body.fault = Some(
                        late.unwrap_or_else(|| blame(conn, &received, Kind::UpstreamTruncated)),
                    );
                }
                break;
            }
            silence = self.pause();
            if body.delivery == Delivery::AsIs {
                let passes = body.check(&mut buffer, settle);
                let part = Part::range(buffer, 0, passes);
                (result, buffer) = match body.streamed {
                    true => self.send_at_once(part).await,
                    false => self.send_body(part).await,
                };
            } else {
                out.clear();
                body.pour(&buffer, &mut out, settle);
                (result, out) = self.send_body(Part::whole(out)).await;
            }
            if result.is_ok() {
                body.sent = body.tap.bytes();
            }
        }
        self.up_timer.disarm();
        if let (Some(kind), Ok(())) = (body.fault, result) {
            self.tell_truncated(kind, &body, &mut out, settle).await;
        }
        self.core.buffers.give_back(out);
        self.finish(body, result, persists, head_bytes, buffer, settle)
    }

    /// Writes the head, and what of the body came with it.
    #[inline]
    fn begin(
        &self,
        response: &ResponseHead,
        framing: Framing,
        buffer: &[u8],
        settle: &Settle,
    ) -> (Body, Vec<u8>) {
        let delivery = Delivery::of(framing, self.caller.version);
        let keep = self.caller.persists
            && delivery != Delivery::UntilClose
            && self.progress.body_received.get()
            && !self.core.is_leaving(self.listener);
        let mut reader = BodyReader::of_answer(framing);
        let head_bytes = response.len as usize;
        let here = (buffer.len() - head_bytes) as u64;
        let whole = matches!(framing, Framing::Length(length) if length <= here);
        let mut tap = Tap::of(&self.core.taps, response, buffer, whole, self.is_metered);
        let streamed = tap.is_sse();
        // An event of ours would be no part of a coded body.
        let coding = response.value(Name::ContentEncoding, buffer);
        let tells =
            streamed && coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity"));
        let mut out = self.core.buffers.take(buffer.len() + 512);
        respond::head(&mut out, response, buffer, framing, delivery, self.caller, keep);
        let (taken, done, bad) =
            respond::pour(&mut reader, &buffer[head_bytes..], delivery, &mut tap, &mut out);
        let mut trailers = Trailers::default();
        if reader.in_trailers() && delivery == Delivery::AsIs {
            let from = out.len() - taken;
            trailers.hold_back(&reader, &mut out, from);
        }
        let fault = bad.map(|_| Kind::UpstreamTruncated);
        let extra = done && head_bytes + taken < buffer.len();
        note_token(&tap, settle);
        #[rustfmt::skip]
        let body = Body {
            framing, delivery, reader, tap, trailers, keep, whole, taken, sent: 0, streamed, tells, done, extra, fault,
        };
        (body, out)
    }

    /// Records bytes and usage; tells how the download ended.
    #[inline]
    fn finish(
        &self,
        body: Body,
        result: Result<(), Kind>,
        persists: bool,
        head_bytes: usize,
        buffer: Vec<u8>,
        settle: &Settle,
    ) -> Downloaded {
        let Body { tap, whole, taken, keep, streamed, extra, fault, sent, .. } = body;
        let bytes = if whole { buffer.get(head_bytes..head_bytes + taken) } else { None };
        settle.record.sent(sent);
        let (usage, answer) = tap.finish(&self.core.taps, bytes.unwrap_or_default());
        settle.passed.borrow_mut().answer = answer;
        self.core.buffers.give_back(buffer);
        settle.record.used(usage);
        match (result, fault) {
            (Err(kind), _) | (Ok(()), Some(kind)) => Downloaded::Truncated(kind),
            (Ok(()), None) => {
                self.progress.answer_done.set(true);
                Downloaded::Whole { reusable: persists && !extra, keep, streamed }
            }
        }
    }

    /// Says how much to receive at a time: what the client takes at once.
    ///
    /// Shape: a stream of HTTP/2 that has not taken what it was given is waited for, and nothing is
    /// held for it meanwhile. A buffer that is given back is left without memory.
    async fn await_room(&self, buffer: &mut Vec<u8>, out: &mut Vec<u8>) -> Result<usize, Kind> {
        let Some(pipe) = self.client.pipe() else { return Ok(LARGE_BYTES) };
        let room = pipe.room();
        if room >= SMALL_BYTES {
            return Ok(room);
        }
        self.core.buffers.give_back(std::mem::take(buffer));
        self.core.buffers.give_back(std::mem::take(out));
        self.up_timer.disarm();
        let mut unread = pipe.unread();
        while unread > 0 {
            // The client may take as long as it likes for all of it, but not between two reads.
            self.write_timer.arm(self.client.handle(), Shut::Both, self.write_idle);
            let left = poll_fn(|cx| pipe.poll_read_on(cx, unread)).await;
            unread = left.ok_or_else(|| self.client_lost())?;
        }
        self.write_timer.disarm();
        let room = pipe.room();
        if room < SMALL_BYTES {
            *buffer = Vec::with_capacity(room);
        }
        Ok(room)
    }

    /// Sends an event of a stream in this very turn, by a direct call; waits only for a client
    /// that does not read. Measured against a queued send: one wake-up less per event.
    async fn send_at_once(&self, mut part: Part) -> (Result<(), Kind>, Vec<u8>) {
        match self.client.send_now(part.bytes()) {
            Ok(n) if n == part.left() => (Ok(()), part.into_buffer()),
            Ok(n) => {
                part.advance(n);
                self.send_body(part).await
            }
            Err(_) => (Err(Kind::ClientGone), part.into_buffer()),
        }
    }

    /// Lets the kernel move the bytes that the tap need not see.
    ///
    /// Errors: the side that ended the splice.
    async fn splice(
        &self,
        conn: &UpConn,
        body: &mut Body,
        silence: &mut (Duration, Kind),
    ) -> Result<(), Stopped> {
        let Body { reader, tap, sent, .. } = body;
        let (left, tail) = (reader.length_left(), tap.tail_bytes());
        let (Some(left), Some(tail)) = (left, tail) else { return Ok(()) };
        let bytes = left.saturating_sub(tail as u64);
        if bytes < SPLICE_BYTES_MIN {
            return Ok(());
        }
        let moved = Cell::new(0u64);
        let (up, client) = (conn.socket().plain(), self.client.plain());
        let (Some(up), Some(client)) = (up, client) else { return Ok(()) };
        self.await_answer(conn, silence.0);
        // One of the two is waited for, and only that one may be late.
        let tell = |step| match step {
            Step::Waits => {
                self.progress.answer_within.set(None);
                self.up_timer.disarm();
                self.write_timer.arm(self.client.handle(), Shut::Both, self.write_idle);
            }
            Step::Moved(n) => {
                moved.set(moved.get() + n);
                self.write_timer.disarm();
                self.await_answer(conn, self.timeouts.stream_idle);
            }
        };
        let result = self.core.pipes.splice(up, client, bytes, tell).await;
        if moved.get() > 0 {
            *silence = self.pause();
        }
        let (late, lost) = (self.late(silence.1), self.client_lost());
        self.progress.answer_within.set(None);
        self.write_timer.disarm();
        reader.advance(moved.get());
        tap.skip(moved.get());
        *sent = tap.bytes();
        match result {
            Ok(()) | Err(Ended::NoPipe) => Ok(()),
            Err(Ended::From) => Err(Stopped::Upstream(late.unwrap_or(Kind::UpstreamTruncated))),
            Err(Ended::To) => Err(Stopped::Client(lost)),
        }
    }

    /// Tells the reader of an event stream, by one more event, that the answer was truncated, where
    /// the framing still allows that.
    async fn tell_truncated(&self, kind: Kind, body: &Body, out: &mut Vec<u8>, settle: &Settle) {
        let between_chunks = match body.delivery {
            Delivery::IntoChunks => true,
            Delivery::AsIs => {
                body.framing == Framing::Chunked && body.reader.chunk_data_left() == Some(0)
            }
            Delivery::Nothing | Delivery::UntilClose => false,
        };
        if !body.tells || !between_chunks {
            return;
        }
        let row = kind.row();
        let mut event = Vec::with_capacity(256);
        // An event that the upstream left unfinished must not swallow this one.
        event.extend_from_slice(b"\n\n");
        ErrorReply {
            status: 502,
            code: row.code,
            kind: row.error_type,
            message: row.message,
            hint: None,
            request_id: self.caller.id.as_str(),
            retry_after_s: None,
        }
        .write_sse_event(self.caller.dialect, &mut event);
        out.clear();
        encode::chunk(out, &event);
        let (result, back) = self.send(Part::whole(std::mem::take(out))).await;
        if result.is_ok() {
            settle.record.event_added(event.len() as u64);
        }
        *out = back;
    }
}

fn note_token(tap: &Tap, settle: &Settle) {
    if settle.record.awaits_token() && tap.first_token_seen() {
        settle.record.first_token(settle.now());
    }
}
