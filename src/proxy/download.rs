//! The other direction of an attempt: the answer, from the upstream to the client.
//!
//! A stream is never buffered: what one receive brought leaves in the same turn, and nothing is
//! read ahead of a client that does not read, so a stalled reader holds one buffer. The framing
//! is checked on the way, because an upstream that dies must never look like a clean end. Long
//! bodies of known length that nobody needs to see are moved by the kernel.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::time::Duration;

use super::call_guard::CallGuard;
use super::core::Core;
use super::plan::UpstreamTimeouts;
use super::progress::Progress;
use super::refusal::Caller;
use super::respond::{self, Delivery, Trailers};
use super::settle::Settle;
use super::tap::Tap;
use super::upload::SPLICE_BYTES_MIN;
use crate::base::buf::{LARGE_BYTES, SMALL_BYTES};
use crate::error::Kind;
use crate::http::fields::{keep_alive, retry_after};
use crate::http::head::{ResponseHead, Version};
use crate::http::method::Method;
use crate::http::name::Name;
use crate::http1::body::BodyReader;
use crate::http1::encode;
use crate::http1::framing::{Framing, response_framing};
use crate::http1::parse::{HeadLimits, Parse, parse_response};
use crate::llm::reply::ErrorReply;
use crate::net::rt::Part;
use crate::net::splice::{Ended, Step};
use crate::net::stream::Stream;
use crate::net::sys::{self, Shut};
use crate::net::ticker::Timer;
use crate::policy::retry::RetryOn;
use crate::upstream::conn::UpConn;
use crate::upstream::pool::TIMEOUT_MARGIN;

/// What a download needs.
pub struct Download<'a> {
    /// This core.
    pub core: &'a Core,
    /// Bounds of a response head.
    pub head: &'a HeadLimits,
    /// The client.
    pub client: &'a Stream,
    /// Who is asking.
    pub caller: &'a Caller,
    /// The request's method.
    pub method: Method,
    /// The client asked to leave HTTP.
    pub upgrade_asked: bool,
    /// Shared with the other direction.
    pub progress: &'a Progress,
    /// Deadline of the upstream.
    pub up_timer: &'a Timer,
    /// Deadline of the whole exchange, if it has one.
    pub total_timer: Option<&'a Timer>,
    /// Deadline of a client that does not read.
    pub write_timer: &'a Timer,
    /// Limit for a client that does not read.
    pub write_idle: Duration,
    /// Upstream-side timeouts.
    pub timeouts: UpstreamTimeouts,
    /// Statuses that are not relayed but tried elsewhere.
    pub retry_on: Option<RetryOn>,
    /// The group whose retry budget pays for that.
    pub budget: usize,
    /// Judges the upstream.
    pub guard: &'a CallGuard<'a>,
    /// An outbound proxy reads the request and may answer by itself.
    pub via_proxy: bool,
    /// The key pays by the token.
    pub is_metered: bool,
}

/// How a download ended.
#[derive(Debug)]
pub enum Downloaded {
    /// The client has the whole answer.
    Whole {
        /// Whether the upstream's connection can serve another request.
        reusable: bool,
        /// Whether the client's connection can go on.
        keep: bool,
        /// Whether the answer was a stream.
        streamed: bool,
    },
    /// No answer; the client has been sent nothing.
    NoAnswer {
        /// Why.
        kind: Kind,
        /// Whether any byte came.
        answered: bool,
    },
    /// A status that is tried elsewhere; the client has been sent nothing.
    Elsewhere {
        /// The status.
        status: u16,
    },
    /// The answer began and could not be ended well.
    Truncated(Kind),
    /// The upstream has left HTTP; these bytes came behind its head.
    Upgraded(Vec<u8>),
}

impl Download<'_> {
    /// Relays one answer.
    ///
    /// Shape: `conn` has a receive armed.
    pub async fn run(
        &self,
        conn: &mut UpConn,
        response: &mut ResponseHead,
        settle: &mut Settle,
    ) -> Downloaded {
        let buffer = match self.read_head(conn, response).await {
            Ok(buffer) => buffer,
            Err(end) => return end,
        };
        if self.via_proxy && response.status == 407 {
            // About our credentials, not the client's (RFC 9110 §15.5.8).
            return self.no_answer(Kind::OutboundRefused, true, buffer);
        }
        let elapsed_us = settle.elapsed_us();
        settle.outcome.first_byte_us = Some(elapsed_us);
        settle.outcome.status = response.status;
        let back_off_s = response.value(Name::RetryAfter, &buffer);
        let back_off_s =
            back_off_s.and_then(|value| retry_after(value, settle.begun_unix_ms() / 1000));
        self.guard.answered(response.status, back_off_s, settle.begun_us() + elapsed_us);
        if response.status == 101 {
            if !self.upgrade_asked {
                // Nobody asked: what follows is no HTTP for anybody to read.
                return self.no_answer(Kind::UpstreamBadHttp, true, buffer);
            }
            return self.upgrade(response, buffer).await;
        }
        if self.retry_on.is_some_and(|on| on.has_status(response.status))
            && !self.progress.gone.get()
            && self.take_retry()
        {
            self.core.buffers.give_back(buffer);
            return Downloaded::Elsewhere { status: response.status };
        }
        let framing = match response_framing(self.method, response, &buffer) {
            Ok(framing) => framing,
            Err(_) => return self.no_answer(Kind::UpstreamBadHttp, true, buffer),
        };
        self.progress.answer_begun.set(true);
        self.note_lifetime(conn, response, &buffer);
        let persists = response.connection(&buffer).persists(response.version)
            && framing != Framing::UntilClose;
        self.relay(conn, response, framing, persists, buffer, settle).await
    }

    /// Asks the budget before an answer is thrown away.
    fn take_retry(&self) -> bool {
        let now = self.core.ticker.now();
        self.core.with_budget(self.budget, |budget| budget.take(now))
    }

    /// Reads until a final head is complete; interim ones go to the client.
    async fn read_head(
        &self,
        conn: &mut UpConn,
        response: &mut ResponseHead,
    ) -> Result<Vec<u8>, Downloaded> {
        let mut searched = 0;
        let mut interim = false;
        loop {
            let (result, mut buffer) = conn.recv().await;
            if !matches!(result, Ok(n) if n > 0) {
                let answered = interim || !buffer.is_empty();
                let late = self.late(Kind::UpstreamFirstByteTimeout);
                let kind = late.unwrap_or_else(|| blame(conn, &result, Kind::UpstreamReset));
                return Err(self.no_answer(kind, answered, buffer));
            }
            loop {
                match parse_response(&buffer, &mut searched, self.head, response) {
                    Err(_) => return Err(self.no_answer(Kind::UpstreamBadHttp, true, buffer)),
                    Ok(Parse::More) => break,
                    Ok(Parse::Done) if response.status >= 200 || response.status == 101 => {
                        return Ok(buffer);
                    }
                    Ok(Parse::Done) => {
                        interim = true;
                        self.relay_interim(response, &buffer).await?;
                        buffer.drain(..response.len as usize);
                        searched = 0;
                    }
                }
                if buffer.is_empty() {
                    break;
                }
            }
            if buffer.capacity() - buffer.len() < 1024 {
                buffer.reserve(buffer.capacity());
            }
            conn.arm(buffer);
        }
    }

    /// Which deadline ended the upstream's connection, if one did.
    fn late(&self, waiting: Kind) -> Option<Kind> {
        if self.core.ticker.ended() {
            return Some(Kind::Draining);
        }
        if self.total_timer.is_some_and(Timer::expired) {
            let client_owes = self.progress.client_owes.get();
            return Some(if client_owes { Kind::BodyTimeout } else { Kind::TotalTimeout });
        }
        self.up_timer.expired().then_some(waiting)
    }

    /// Sends 1xx on; 100 is ours to give, and HTTP/1.0 knows none of them.
    async fn relay_interim(&self, response: &ResponseHead, bytes: &[u8]) -> Result<(), Downloaded> {
        if response.status == 100 || self.caller.version == Version::Http10 {
            return Ok(());
        }
        let mut out = self.core.buffers.take(SMALL_BYTES);
        encode::status_line(&mut out, response.status, response.reason.of(bytes));
        encode::copy_response_fields(&mut out, response, bytes, |_| false);
        encode::end_of_head(&mut out);
        let (result, out) = self.send(Part::whole(out)).await;
        self.core.buffers.give_back(out);
        result.map_err(Downloaded::Truncated)
    }

    #[cold]
    fn no_answer(&self, kind: Kind, answered: bool, buffer: Vec<u8>) -> Downloaded {
        self.core.buffers.give_back(buffer);
        Downloaded::NoAnswer { kind, answered }
    }

    fn note_lifetime(&self, conn: &mut UpConn, response: &ResponseHead, bytes: &[u8]) {
        let Some(value) = response.value(Name::KeepAlive, bytes) else { return };
        let promised = keep_alive(value);
        if let Some(seconds) = promised.timeout {
            let life = Duration::from_secs(u64::from(seconds)).saturating_sub(TIMEOUT_MARGIN);
            // The clock of the ticker is behind the real one, which errs on the safe side.
            conn.lifetime.until = Some(self.core.ticker.now() + life);
        }
        if let Some(max) = promised.max {
            conn.lifetime.requests_max.get_or_insert(max);
            if max <= 1 {
                // Some servers count down instead of naming the total.
                conn.lifetime.requests_max = Some(0);
            }
        }
    }

    async fn upgrade(&self, response: &ResponseHead, mut buffer: Vec<u8>) -> Downloaded {
        self.progress.answer_begun.set(true);
        let mut out = self.core.buffers.take(SMALL_BYTES);
        encode::status_line(&mut out, 101, response.reason.of(&buffer));
        encode::copy_response_fields(&mut out, response, &buffer, |_| false);
        encode::field(&mut out, b"connection", b"Upgrade");
        if let Some(protocol) = response.value(Name::Upgrade, &buffer) {
            encode::field(&mut out, b"upgrade", protocol);
        }
        encode::end_of_head(&mut out);
        let (result, out) = self.send(Part::whole(out)).await;
        self.core.buffers.give_back(out);
        match result {
            Ok(()) => {
                buffer.drain(..response.len as usize);
                Downloaded::Upgraded(buffer)
            }
            Err(kind) => Downloaded::Truncated(kind),
        }
    }

    async fn relay(
        &self,
        conn: &mut UpConn,
        response: &ResponseHead,
        framing: Framing,
        persists: bool,
        mut buffer: Vec<u8>,
        settle: &mut Settle,
    ) -> Downloaded {
        let delivery = Delivery::of(framing, self.caller.version);
        let keep = self.caller.persists
            && delivery != Delivery::UntilClose
            && self.progress.body_received.get()
            && !self.core.draining.get();
        let mut reader = BodyReader::of_answer(framing);
        let head_bytes = response.len as usize;
        let here = (buffer.len() - head_bytes) as u64;
        let whole = matches!(framing, Framing::Length(length) if length <= here);
        let mut tap = Tap::of(&self.core.taps, response, &buffer, whole, self.is_metered);
        let streamed = tap.is_sse();
        // An event of ours would be no part of a coded body.
        let coding = response.value(Name::ContentEncoding, &buffer);
        let tells =
            streamed && coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity"));
        settle.outcome.streamed = streamed;
        let mut out = self.core.buffers.take(buffer.len() + 512);
        respond::head(&mut out, response, &buffer, framing, delivery, self.caller, keep);
        let (taken, mut done, bad) =
            respond::pour(&mut reader, &buffer[head_bytes..], delivery, &mut tap, &mut out);
        let mut trailers = Trailers::default();
        if reader.in_trailers() && delivery == Delivery::AsIs {
            let from = out.len() - taken;
            trailers.hold_back(&reader, &mut out, from);
        }
        let mut fault = bad.map(|_| Kind::UpstreamTruncated);
        let mut extra = done && head_bytes + taken < buffer.len();
        note_token(&tap, settle);
        // Some servers send their head at once and think then: that is still the first byte's
        // time, and a pause begins with the body.
        let mut silence = match here {
            0 => (
                self.up_timer.left().unwrap_or(self.timeouts.first_byte),
                Kind::UpstreamFirstByteTimeout,
            ),
            _ => self.pause(),
        };
        if !whole && self.client.pipe().is_some_and(|pipe| pipe.room() < out.len()) {
            // It will wait, and all of it has been copied.
            self.core.buffers.give_back(std::mem::take(&mut buffer));
        }
        let (mut result, back) = self.send_body(Part::whole(out)).await;
        out = back;
        while result.is_ok() && !done && fault.is_none() {
            if delivery == Delivery::AsIs {
                match self.splice(conn, &mut reader, &mut tap, &mut silence).await {
                    // Nothing may be left to read: then nothing more would ever come.
                    Ok(()) if reader.is_done() => break,
                    Ok(()) => {}
                    Err(end) => {
                        (result, fault) = end;
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
                if clean && reader.end_of_input().is_ok() {
                    if delivery == Delivery::IntoChunks {
                        out.clear();
                        encode::last_chunk(&mut out);
                        (result, out) = self.send(Part::whole(out)).await;
                    }
                } else {
                    fault = Some(
                        late.unwrap_or_else(|| blame(conn, &received, Kind::UpstreamTruncated)),
                    );
                }
                break;
            }
            silence = self.pause();
            if delivery == Delivery::AsIs {
                let (taken, whole, bad) = respond::check(&mut reader, &buffer, &mut tap);
                (done, fault) = (whole, bad.map(|_| Kind::UpstreamTruncated));
                extra = done && taken < buffer.len();
                let mut passes = taken;
                if reader.in_trailers() {
                    buffer.truncate(taken);
                    trailers.hold_back(&reader, &mut buffer, 0);
                    passes = buffer.len();
                }
                note_token(&tap, settle);
                let part = Part::range(buffer, 0, passes);
                (result, buffer) = match streamed {
                    true => self.send_at_once(part).await,
                    false => self.send_body(part).await,
                };
            } else {
                out.clear();
                let (taken, whole, bad) =
                    respond::pour(&mut reader, &buffer, delivery, &mut tap, &mut out);
                (done, fault) = (whole, bad.map(|_| Kind::UpstreamTruncated));
                extra = done && taken < buffer.len();
                note_token(&tap, settle);
                (result, out) = self.send_body(Part::whole(out)).await;
            }
        }
        self.up_timer.disarm();
        if let (Some(kind), Ok(())) = (fault, result) {
            self.tell_truncated(kind, &reader, delivery, framing, tells, &mut out).await;
        }
        self.core.buffers.give_back(out);
        let body = if whole { buffer.get(head_bytes..head_bytes + taken) } else { None };
        settle.outcome.response_bytes = tap.bytes();
        let (usage, answer) = tap.finish(&self.core.taps, body.unwrap_or_default());
        settle.passed.answer = answer;
        self.core.buffers.give_back(buffer);
        settle.outcome.prompt_tokens = usage.prompt_tokens;
        settle.outcome.completion_tokens = usage.completion_tokens;
        match (result, fault) {
            (Err(kind), _) => Downloaded::Truncated(kind),
            (Ok(()), Some(kind)) => Downloaded::Truncated(kind),
            (Ok(()), None) => {
                self.progress.answer_done.set(true);
                Downloaded::Whole { reusable: persists && !extra, keep, streamed }
            }
        }
    }

    /// How long the upstream may be silent within its body, and what it is called.
    fn pause(&self) -> (Duration, Kind) {
        (self.timeouts.stream_idle, Kind::UpstreamIdle)
    }

    /// The upstream is awaited for more, unless it waits for the client itself.
    fn await_answer(&self, conn: &UpConn, within: Duration) {
        self.progress.answer_within.set(Some(within));
        if !self.progress.client_owes.get() {
            self.up_timer.arm(conn.socket().handle(), Shut::Both, within);
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
        self.write_timer.arm(self.client.handle(), Shut::Both, self.write_idle);
        if !poll_fn(|cx| pipe.poll_taken(cx)).await {
            return Err(self.client_lost());
        }
        self.write_timer.disarm();
        let room = pipe.room();
        if room < SMALL_BYTES {
            *buffer = Vec::with_capacity(room);
        }
        Ok(room)
    }

    /// Sends a part of the body: it is the client that may be slow now, not the upstream.
    async fn send_body(&self, part: Part) -> (Result<(), Kind>, Vec<u8>) {
        self.up_timer.disarm();
        self.send(part).await
    }

    /// What became of a client that takes nothing more.
    fn client_lost(&self) -> Kind {
        if self.write_timer.expired() { Kind::ClientStalled } else { Kind::ClientGone }
    }

    /// Sends one part; the client may take as long as it likes between two reads, up to a limit.
    async fn send(&self, part: Part) -> (Result<(), Kind>, Vec<u8>) {
        let mut part = part;
        while part.left() > 0 {
            self.write_timer.arm(self.client.handle(), Shut::Both, self.write_idle);
            let (result, back) = self.client.send(part).await;
            part = back;
            match result {
                Ok(n) if n > 0 => part.advance(n),
                _ => {
                    return (Err(self.client_lost()), part.into_buffer());
                }
            }
        }
        self.write_timer.disarm();
        (Ok(()), part.into_buffer())
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

    /// Lets the kernel move what nobody needs to see.
    ///
    /// Errors: the result and fault that end the relay.
    async fn splice(
        &self,
        conn: &UpConn,
        reader: &mut BodyReader,
        tap: &mut Tap,
        silence: &mut (Duration, Kind),
    ) -> Result<(), (Result<(), Kind>, Option<Kind>)> {
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
        match result {
            Ok(()) | Err(Ended::NoPipe(_)) => Ok(()),
            Err(Ended::From(_)) => Err((Ok(()), Some(late.unwrap_or(Kind::UpstreamTruncated)))),
            Err(Ended::To(_)) => Err((Err(lost), None)),
        }
    }

    /// Tells a stream's reader that the end is not one, where the framing still allows a word.
    async fn tell_truncated(
        &self,
        kind: Kind,
        reader: &BodyReader,
        delivery: Delivery,
        framing: Framing,
        tells: bool,
        out: &mut Vec<u8>,
    ) {
        let between_chunks = match delivery {
            Delivery::IntoChunks => true,
            Delivery::AsIs => framing == Framing::Chunked && reader.chunk_data_left() == Some(0),
            Delivery::Nothing | Delivery::UntilClose => false,
        };
        if !tells || !between_chunks {
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
        let (_, back) = self.send(Part::whole(std::mem::take(out))).await;
        *out = back;
    }
}

/// What a receive that failed is: the upstream's fault, or a lack of our own.
#[cold]
fn blame(conn: &UpConn, received: &io::Result<usize>, theirs: Kind) -> Kind {
    match received {
        Err(error) if sys::is_shortage(error) => Kind::Shortage,
        _ if conn.ran_short() => Kind::Shortage,
        _ => theirs,
    }
}

fn note_token(tap: &Tap, settle: &mut Settle) {
    if settle.outcome.first_token_us.is_none() && tap.first_token_seen() {
        settle.outcome.first_token_us = Some(settle.elapsed_us());
    }
}
