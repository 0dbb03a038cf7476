//! The body of an answer on its way to the client.

use std::cell::Cell;
use std::future::poll_fn;
use std::ops::ControlFlow;
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
use crate::net::pipe;
use crate::net::rt::Part;
use crate::net::splice::{Ended, Step};
use crate::net::sys::Shut;
use crate::proxy::body_filter::BodyFilter;
use crate::proxy::respond::{self, Delivery, Trailers};
use crate::proxy::settle::Settle;
use crate::proxy::upload::SPLICE_BYTES_MIN;
use crate::upstream::conn::UpConn;

/// A body of an answer on its way to the client.
struct Relay<'r, 'd> {
    download: &'r Download<'d>,
    settle: &'r Settle,
    framing: Framing,
    delivery: Delivery,
    reader: BodyReader,
    filter: BodyFilter,
    trailers: Trailers,
    /// The client's connection can go on after it.
    keep: bool,
    /// All of it came with the head.
    whole: bool,
    /// Bytes of the head.
    head_bytes: usize,
    /// Bytes of it that came with the head.
    taken: usize,
    /// Data bytes that have gone to the client.
    sent: u64,
    /// It is a stream of events.
    streamed: bool,
    /// A broken end can be told by one more event.
    tells: bool,
    /// Something came behind its end.
    extra: bool,
    /// How long the upstream may be silent, and the fault when it is silent for longer.
    silence: (Duration, Kind),
    /// What the upstream has sent last; at first it begins with the head.
    buffer: Vec<u8>,
    /// What is written for the client, where the buffer does not go on as it is.
    out: Vec<u8>,
}

/// How a body ended.
#[derive(Clone, Copy)]
enum End {
    /// It came whole and has gone to the client.
    Whole,
    /// The upstream's fault; the client is still there.
    Truncated(Kind),
    /// The client takes no more.
    ClientLost(Kind),
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
        buffer: Vec<u8>,
        settle: &Settle,
    ) -> Downloaded {
        let (mut relay, so_far) = Relay::begin(self, response, framing, buffer, settle);
        let mut flow = relay.send_beginning(response.status, so_far).await;
        let end = loop {
            match flow {
                ControlFlow::Continue(()) => flow = relay.pass_on(conn).await,
                ControlFlow::Break(end) => break end,
            }
        };
        self.up_timer.disarm();
        if let End::Truncated(kind) = end {
            relay.tell_truncated(kind).await;
        }
        relay.finish(end, persists)
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
}

impl<'r, 'd> Relay<'r, 'd> {
    /// Writes the head, and what of the body came with it; tells whether that was all.
    #[inline]
    fn begin(
        download: &'r Download<'d>,
        response: &ResponseHead,
        framing: Framing,
        buffer: Vec<u8>,
        settle: &'r Settle,
    ) -> (Self, Option<End>) {
        let &Download { core, caller, .. } = download;
        let head_bytes = response.len as usize;
        let here = (buffer.len() - head_bytes) as u64;
        let whole = matches!(framing, Framing::Length(length) if length <= here);
        let mut filter =
            BodyFilter::choose(&core.taps, response, &buffer, whole, download.is_metered);
        let delivery = Delivery::of(filter.form(), framing, caller.version);
        let keep = caller.persists
            && delivery != Delivery::UntilClose
            && download.progress.body_received.get()
            && !core.is_leaving(download.listener);
        let mut reader = BodyReader::of_answer(framing);
        let streamed = filter.is_sse();
        // An event of ours would be no part of a coded body.
        let coding = response.value(Name::ContentEncoding, &buffer);
        let tells =
            streamed && coding.is_none_or(|coding| coding.eq_ignore_ascii_case(b"identity"));
        let mut out = core.buffers.take(buffer.len() + 512);
        respond::head(&mut out, response, &buffer, framing, delivery, caller, keep);
        let (taken, done, bad) =
            respond::pour(&mut reader, &buffer[head_bytes..], delivery, &mut filter, &mut out);
        let mut trailers = Trailers::default();
        if reader.in_trailers() && delivery == Delivery::AsIs {
            let from = out.len() - taken;
            trailers.hold_back(&reader, &mut out, from);
        }
        let extra = done && head_bytes + taken < buffer.len();
        note_token(&filter, settle);
        let silence = download.silence_after_head(here > 0);
        #[rustfmt::skip]
        let relay = Self {
            download, settle, framing, delivery, reader, filter, trailers, keep, whole, head_bytes, taken, sent: 0,
            streamed, tells, extra, silence, buffer, out,
        };
        (relay, so_far(done, bad.is_some()))
    }

    /// Sends what [`begin`](Self::begin) wrote.
    #[inline]
    async fn send_beginning(&mut self, status: u16, so_far: Option<End>) -> ControlFlow<End> {
        let download = self.download;
        if !self.whole && download.client.pipe().is_some_and(|pipe| pipe.room() < self.out.len()) {
            // The send will wait, and `out` has a copy of all that `buffer` holds.
            download.core.buffers.give_back(std::mem::take(&mut self.buffer));
        }
        let result = self.send_out().await;
        if result.is_ok() {
            self.settle.record.answer_began(status, self.streamed);
        }
        self.after(result, so_far)
    }

    /// Passes on what the upstream sends next.
    async fn pass_on(&mut self, conn: &mut UpConn) -> ControlFlow<End> {
        if self.delivery == Delivery::AsIs {
            self.splice(conn).await?;
        }
        self.make_room().await?;
        self.receive(conn).await?;
        if self.delivery == Delivery::AsIs {
            let (passes, so_far) = self.check();
            let part = Part::range(std::mem::take(&mut self.buffer), 0, passes);
            let (result, buffer) = match self.streamed {
                true => self.download.send_at_once(part).await,
                false => self.download.send_body(part).await,
            };
            self.buffer = buffer;
            self.after(result, so_far)
        } else {
            let so_far = self.pour();
            let result = self.send_out().await;
            self.after(result, so_far)
        }
    }

    /// Receives into the buffer.
    async fn receive(&mut self, conn: &mut UpConn) -> ControlFlow<End> {
        self.buffer.clear();
        self.download.await_answer(conn, self.silence.0);
        let (received, buffer) = conn.socket().recv(std::mem::take(&mut self.buffer)).await;
        self.buffer = buffer;
        self.download.progress.answer_within.set(None);
        if matches!(received, Ok(n) if n > 0) {
            self.silence = self.download.pause();
            return ControlFlow::Continue(());
        }
        let late = self.download.late(self.silence.1);
        let clean = matches!(received, Ok(0)) && late.is_none();
        if clean && self.reader.end_of_input().is_ok() {
            return ControlFlow::Break(self.end_with_connection().await);
        }
        let kind = late.unwrap_or_else(|| blame(conn, &received, Kind::UpstreamTruncated));
        ControlFlow::Break(End::Truncated(kind))
    }

    /// Ends a body that ends with its connection.
    async fn end_with_connection(&mut self) -> End {
        if self.delivery != Delivery::IntoChunks {
            return End::Whole;
        }
        self.out.clear();
        encode::last_chunk(&mut self.out);
        let (result, out) = self.download.send(Part::whole(std::mem::take(&mut self.out))).await;
        self.out = out;
        result.map_or_else(End::ClientLost, |()| End::Whole)
    }

    /// Frames what has come, to be sent as it is; returns how many bytes of the buffer pass.
    #[inline]
    fn check(&mut self) -> (usize, Option<End>) {
        let (taken, done, bad) = respond::check(&mut self.reader, &self.buffer, &mut self.filter);
        self.extra = done && taken < self.buffer.len();
        let mut passes = taken;
        if self.reader.in_trailers() {
            self.buffer.truncate(taken);
            self.trailers.hold_back(&self.reader, &mut self.buffer, 0);
            passes = self.buffer.len();
        }
        note_token(&self.filter, self.settle);
        (passes, so_far(done, bad.is_some()))
    }

    /// Frames what has come and writes it to `out` in the client's framing.
    #[inline]
    fn pour(&mut self) -> Option<End> {
        let Self { reader, buffer, delivery, filter, out, .. } = self;
        out.clear();
        let (taken, done, bad) = respond::pour(reader, buffer, *delivery, filter, out);
        self.extra = done && taken < self.buffer.len();
        note_token(&self.filter, self.settle);
        so_far(done, bad.is_some())
    }

    /// Sends what stands in `out`.
    #[inline]
    async fn send_out(&mut self) -> Result<(), Kind> {
        let part = Part::whole(std::mem::take(&mut self.out));
        let (result, out) = self.download.send_body(part).await;
        self.out = out;
        result
    }

    /// What follows a send: the client's fault before all others, then the body's end.
    #[inline]
    fn after(&mut self, result: Result<(), Kind>, so_far: Option<End>) -> ControlFlow<End> {
        if let Err(kind) = result {
            return ControlFlow::Break(End::ClientLost(kind));
        }
        self.sent = self.filter.bytes();
        so_far.map_or(ControlFlow::Continue(()), ControlFlow::Break)
    }

    /// Records bytes and usage; tells how the download ended.
    #[inline]
    fn finish(self, end: End, persists: bool) -> Downloaded {
        let Self { download, settle, filter, buffer, head_bytes, .. } = self;
        let core = download.core;
        let body = if self.whole { buffer.get(head_bytes..head_bytes + self.taken) } else { None };
        settle.record.sent(self.sent);
        let (usage, answer) = filter.finish(&core.taps, body.unwrap_or_default());
        settle.passed.borrow_mut().answer = answer;
        core.buffers.give_back(self.out);
        core.buffers.give_back(buffer);
        settle.record.used(usage);
        match end {
            End::ClientLost(kind) | End::Truncated(kind) => Downloaded::Truncated(kind),
            End::Whole => {
                download.progress.answer_done.set(true);
                let reusable = persists && !self.extra;
                Downloaded::Whole { reusable, keep: self.keep, streamed: self.streamed }
            }
        }
    }

    /// Makes the buffer as large as what the client takes at once.
    ///
    /// Shape: a stream of HTTP/2 that has not taken what it was given is waited for, and nothing is
    /// held for it meanwhile. A buffer that is given back is left without memory.
    async fn make_room(&mut self) -> ControlFlow<End> {
        let buffers = &self.download.core.buffers;
        let bytes_max = match self.download.client.pipe() {
            None => LARGE_BYTES,
            Some(pipe) if pipe.room() >= SMALL_BYTES => pipe.room(),
            Some(pipe) => {
                buffers.give_back(std::mem::take(&mut self.buffer));
                buffers.give_back(std::mem::take(&mut self.out));
                if let Err(kind) = self.download.until_read(pipe).await {
                    return ControlFlow::Break(End::ClientLost(kind));
                }
                let room = pipe.room();
                if room < SMALL_BYTES {
                    self.buffer = Vec::with_capacity(room);
                }
                room
            }
        };
        let buffer = &mut self.buffer;
        if buffer.len() == buffer.capacity() && buffer.capacity() < bytes_max {
            buffers.give_back(std::mem::replace(buffer, buffers.take(bytes_max)));
        }
        ControlFlow::Continue(())
    }

    /// Lets the kernel move the bytes that the filter need not see.
    async fn splice(&mut self, conn: &UpConn) -> ControlFlow<End> {
        let (download, reader, filter) = (self.download, &mut self.reader, &mut self.filter);
        let go_on = ControlFlow::Continue(());
        let (Some(left), Some(tail)) = (reader.length_left(), filter.tail_bytes()) else {
            return go_on;
        };
        let bytes = left.saturating_sub(tail as u64);
        if bytes < SPLICE_BYTES_MIN {
            return go_on;
        }
        let (up, client) = (conn.socket().plain(), download.client.plain());
        let (Some(up), Some(client)) = (up, client) else { return go_on };
        let moved = Cell::new(0u64);
        download.await_answer(conn, self.silence.0);
        let tell = |step| download.note_step(conn, &moved, step);
        let result = download.core.pipes.splice(up, client, bytes, tell).await;
        if moved.get() > 0 {
            self.silence = download.pause();
        }
        let (late, lost) = (download.late(self.silence.1), download.client_lost());
        download.progress.answer_within.set(None);
        download.write_timer.disarm();
        reader.advance(moved.get());
        filter.skip(moved.get());
        self.sent = filter.bytes();
        match result {
            // The splice may have moved the last byte: a receive would wait for ever.
            Ok(()) | Err(Ended::NoPipe) if reader.is_done() => ControlFlow::Break(End::Whole),
            Ok(()) | Err(Ended::NoPipe) => go_on,
            Err(Ended::From) => {
                ControlFlow::Break(End::Truncated(late.unwrap_or(Kind::UpstreamTruncated)))
            }
            Err(Ended::To) => ControlFlow::Break(End::ClientLost(lost)),
        }
    }

    /// Tells the reader of an event stream, by one more event, that the answer was truncated, where
    /// the framing still allows that.
    async fn tell_truncated(&mut self, kind: Kind) {
        let between_chunks = match self.delivery {
            Delivery::IntoChunks => true,
            Delivery::AsIs => {
                self.framing == Framing::Chunked && self.reader.chunk_data_left() == Some(0)
            }
            Delivery::Nothing | Delivery::UntilClose => false,
        };
        if !self.tells || !between_chunks {
            return;
        }
        let (row, caller) = (kind.row(), self.download.caller);
        let mut event = Vec::with_capacity(256);
        // An event that the upstream left unfinished must not swallow this one.
        event.extend_from_slice(b"\n\n");
        ErrorReply {
            status: 502,
            code: row.code,
            kind: row.error_type,
            message: row.message,
            hint: None,
            request_id: caller.id.as_str(),
            retry_after_s: None,
        }
        .write_sse_event(caller.dialect, &mut event);
        self.out.clear();
        encode::chunk(&mut self.out, &event);
        let (result, out) = self.download.send(Part::whole(std::mem::take(&mut self.out))).await;
        if result.is_ok() {
            self.settle.record.event_added(event.len() as u64);
        }
        self.out = out;
    }
}

impl Download<'_> {
    /// How long the upstream may be silent after its head. Some servers send their head at once and
    /// then think: until the first byte of the body the first-byte deadline runs, and after it the
    /// one for pauses.
    #[inline]
    fn silence_after_head(&self, body_began: bool) -> (Duration, Kind) {
        match body_began {
            false => (
                self.up_timer.left().unwrap_or(self.timeouts.first_byte),
                Kind::UpstreamFirstByteTimeout,
            ),
            true => self.pause(),
        }
    }

    /// Waits until a stream of HTTP/2 has taken what it was given.
    ///
    /// Errors: the client stalled or has left.
    async fn until_read(&self, pipe: &pipe::End) -> Result<(), Kind> {
        self.up_timer.disarm();
        let mut unread = pipe.unread();
        while unread > 0 {
            // The client may take as long as it likes for all of it, but not between two reads.
            self.write_timer.arm(self.client.handle(), Shut::Both, self.write_idle);
            let left = poll_fn(|cx| pipe.poll_read_on(cx, unread)).await;
            unread = left.ok_or_else(|| self.client_lost())?;
        }
        self.write_timer.disarm();
        Ok(())
    }

    /// Arms the deadline of the one side that a splice waits for: only that one may be late.
    fn note_step(&self, conn: &UpConn, moved: &Cell<u64>, step: Step) {
        match step {
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
        }
    }
}

/// Whether the bytes that came have ended the body.
#[inline]
fn so_far(done: bool, bad: bool) -> Option<End> {
    match (bad, done) {
        (true, _) => Some(End::Truncated(Kind::UpstreamTruncated)),
        (false, true) => Some(End::Whole),
        (false, false) => None,
    }
}

fn note_token(filter: &BodyFilter, settle: &Settle) {
    if settle.record.awaits_token() && filter.first_token_seen() {
        settle.record.first_token(settle.now());
    }
}
