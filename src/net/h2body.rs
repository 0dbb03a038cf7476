//! Bodies between an HTTP/2 stream and the pipe that carries the same message as HTTP/1.1.
//!
//! Flow control goes end to end: what came on the stream is acknowledged when the pipe has taken
//! it, and the pipe is read no further than the stream's window allows. A body that ends before
//! its framing does is a fault on either side, never an end.

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};

use super::buffers;
use super::h2io::{Chunk, InFlight};
use super::pipe::End;
use super::stream::Handle;
use super::sys::{Shut, is_shortage};
use super::ticker::Ticker;
use super::unsent::{TIGHT_BYTES, Unsent};
use crate::base::buf::SMALL_BYTES;
use crate::http1::body::BodyReader;
use crate::http1::encode;
use crate::http2::{BodyFraming, trailers};

/// More than a chunk has around its data.
const CHUNK_EXTRA: usize = 24;
/// What is taken at a time of bytes that hold no data, trailers above all.
const FRAMING_BYTES: usize = 1 << 10;

/// Why a body did not reach its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The HTTP/2 side reset the stream or lost the connection.
    Stream,
    /// It was lost for want of something of ours.
    Ours,
    /// The HTTP/2 side took nothing for too long.
    Stalled,
    /// The HTTP/1.1 side ended too early, or reads no more.
    Pipe,
}

impl Broken {
    /// What an error of a stream is.
    #[cold]
    #[must_use]
    pub fn by(error: &h2::Error) -> Self {
        if is_shortage(error) { Broken::Ours } else { Broken::Stream }
    }
}

/// What goes to a client: it waits for the client's windows, but not for ever, and is counted.
///
/// Shape: an expired timer shuts the pipe, which ends the exchange on its other side too.
pub struct ToClient<'a> {
    ticker: &'a Rc<Ticker>,
    pipe: &'a End,
    /// How long the client may take nothing.
    patience: Duration,
    /// Of its connection.
    unsent: &'a Rc<Unsent>,
    /// Of this stream.
    in_flight: Rc<InFlight>,
}

impl<'a> ToClient<'a> {
    /// For the answer that comes through `pipe`; each wait takes `patience` at most.
    #[must_use]
    pub fn new(
        ticker: &'a Rc<Ticker>,
        pipe: &'a End,
        patience: Duration,
        unsent: &'a Rc<Unsent>,
    ) -> Self {
        Self { ticker, pipe, patience, unsent, in_flight: Rc::default() }
    }

    /// Waits for one thing that hangs on the client.
    ///
    /// Errors: `Stalled` when it did not come in time.
    async fn wait<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<T, Broken>>,
    ) -> Result<T, Broken> {
        // Given back, and so disarmed, when the wait is over.
        let timer = self.ticker.timer();
        timer.arm(Handle::Pipe(self.pipe.downgrade()), Shut::Both, self.patience);
        poll_fn(|cx| {
            if let Poll::Ready(result) = poll(cx) {
                return Poll::Ready(result);
            }
            ready!(self.pipe.poll_shut(cx));
            Poll::Ready(Err(Broken::Stalled))
        })
        .await
    }

    /// Waits until all that was sent has gone out; a reset would throw it away.
    ///
    /// Errors: it never will.
    pub async fn flush(&self, stream: &mut SendStream<Chunk>) -> Result<(), Broken> {
        loop {
            let chunks = self.in_flight.chunks();
            if chunks == 0 {
                return Ok(());
            }
            // The client may take as long as it likes for all of them, but not for one.
            self.wait(|cx| {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Broken::Stream));
                }
                self.in_flight.poll_fewer(cx, chunks).map(Ok)
            })
            .await?;
        }
    }

    /// Where the connection may have no more memory, lets one chunk of each stream wait at a time.
    async fn make_room(&self, stream: &mut SendStream<Chunk>) -> Result<(), Broken> {
        match self.unsent.try_reserve(TIGHT_BYTES) {
            true => Ok(()),
            false => self.flush(stream).await,
        }
    }
}

/// Gives a chunk to the `h2` crate: from then on it counts.
fn hand_over(
    stream: &mut SendStream<Chunk>,
    chunk: Chunk,
    ends: bool,
    client: Option<&ToClient<'_>>,
) -> Result<(), Broken> {
    let chunk = match client {
        Some(client) => chunk.counted(client.unsent, &client.in_flight),
        None => chunk,
    };
    stream.send_data(chunk, ends).map_err(|_| Broken::Stream)
}

fn poll_capacity(stream: &mut SendStream<Chunk>, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
    Poll::Ready(match ready!(stream.poll_capacity(cx)) {
        Some(Ok(_)) => Ok(()),
        Some(Err(_)) | None => Err(Broken::Stream),
    })
}

/// What of a body went with its head.
pub struct Ahead {
    /// What had no room: the first that `into_pipe` has to relay.
    pub first: Option<Bytes>,
    /// The stream has ended, and without trailers.
    pub ended: bool,
}

/// Writes behind a head what has come of its body already, as far as there is room.
///
/// Shape: a short body goes with its head, and nothing waits for it. Faults show in `into_pipe`.
pub fn take_ready(
    body: &mut RecvStream,
    framing: BodyFraming,
    out: &mut Vec<u8>,
    cx: &mut Context<'_>,
) -> Ahead {
    while !body.is_end_stream() {
        let data = match body.poll_data(cx) {
            Poll::Ready(Some(Ok(data))) => data,
            _ => return Ahead { first: None, ended: false },
        };
        if out.len() + data.len() + CHUNK_EXTRA > out.capacity() {
            return Ahead { first: Some(data), ended: false };
        }
        match framing {
            BodyFraming::None => {}
            BodyFraming::Length(_) => out.extend_from_slice(&data),
            BodyFraming::Chunked if data.is_empty() => {}
            BodyFraming::Chunked => {
                encode::chunk_header(out, data.len() as u64);
                out.extend_from_slice(&data);
                out.extend_from_slice(b"\r\n");
            }
        }
        release(body, data.len());
    }
    Ahead { first: None, ended: true }
}

/// Relays a body from a stream into a pipe, framed as its head announced.
///
/// Shape: `first` has been received on the stream already. `taken` counts the body bytes that the
/// pipe has taken.
/// Errors: which side broke; the pipe is left as it is.
pub async fn into_pipe(
    body: &mut RecvStream,
    mut first: Option<Bytes>,
    framing: BodyFraming,
    pipe: &End,
    taken: &Cell<u64>,
) -> Result<(), Broken> {
    let mut size = Vec::new();
    loop {
        let data = match first.take() {
            Some(data) => data,
            None => match poll_fn(|cx| body.poll_data(cx)).await {
                Some(data) => data.map_err(|error| Broken::by(&error))?,
                None => break,
            },
        };
        match framing {
            BodyFraming::None => {}
            BodyFraming::Length(_) => send(pipe, &data).await?,
            BodyFraming::Chunked if data.is_empty() => {}
            BodyFraming::Chunked => {
                size.clear();
                encode::chunk_header(&mut size, data.len() as u64);
                send(pipe, &size).await?;
                send(pipe, &data).await?;
                send(pipe, b"\r\n").await?;
            }
        }
        taken.set(taken.get() + data.len() as u64);
        release(body, data.len());
        if body.is_end_stream() {
            break;
        }
    }
    let tail = match body.is_end_stream() {
        true => None,
        false => poll_fn(|cx| body.poll_trailers(cx)).await.map_err(|error| Broken::by(&error))?,
    };
    if framing == BodyFraming::Chunked {
        let mut end = buffers::take(SMALL_BYTES);
        trailers::write(&mut end, &tail.unwrap_or_default()).map_err(|_| Broken::Stream)?;
        let sent = send(pipe, &end).await;
        buffers::give_back(end);
        sent?;
    }
    Ok(())
}

/// Opens the window for what has been passed on.
fn release(body: &mut RecvStream, bytes: usize) {
    // Fails when the stream is gone, which shows in the next receive.
    let _ = body.flow_control().release_capacity(bytes);
}

/// Sends all bytes into a pipe.
///
/// Errors: nobody reads them.
pub async fn send(pipe: &End, mut bytes: &[u8]) -> Result<(), Broken> {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| pipe.poll_send(cx, bytes)).await.map_err(|_| Broken::Pipe)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Relays a body from a pipe into a stream, which it ends.
///
/// Shape: `buffer` holds what has been received, the body's part of it from `from`. Unless it goes
/// to a client, the window is waited for as long as it takes.
/// Errors: which side broke; the stream is not reset here.
pub async fn into_stream(
    pipe: &End,
    mut buffer: Vec<u8>,
    mut from: usize,
    mut reader: BodyReader,
    stream: &mut SendStream<Chunk>,
    client: Option<&ToClient<'_>>,
) -> Result<(), Broken> {
    let mut lines = Vec::new();
    loop {
        keep_data(&mut buffer, from, &mut reader, &mut lines).map_err(|()| Broken::Pipe)?;
        let last = reader.is_done();
        let ends = last && lines.is_empty();
        if buffer.len() > from || ends {
            send_data(stream, Chunk::new(buffer, from), ends, client).await?;
        } else {
            buffers::give_back(buffer);
        }
        if last {
            return match lines.is_empty() {
                true => Ok(()),
                false => {
                    let map = trailers::read(&lines).map_err(|_| Broken::Pipe)?;
                    stream.send_trailers(map).map_err(|_| Broken::Stream)
                }
            };
        }
        if let Some(client) = client {
            client.make_room(stream).await?;
        }
        from = 0;
        buffer = receive(pipe, &reader, stream, client).await?;
        if buffer.is_empty() {
            reader.end_of_input().map_err(|_| Broken::Pipe)?;
            return send_data(stream, Chunk::new(buffer, 0), true, client).await;
        }
    }
}

/// Receives what the windows let the stream send on, and whatever is no data.
///
/// Shape: what may not go yet stays in the pipe. An empty buffer is the end.
async fn receive(
    pipe: &End,
    reader: &BodyReader,
    stream: &mut SendStream<Chunk>,
    client: Option<&ToClient<'_>>,
) -> Result<Vec<u8>, Broken> {
    let left = poll_fn(|cx| {
        if stream.poll_reset(cx).is_ready() {
            return Poll::Ready(Err(Broken::Stream));
        }
        pipe.poll_left(cx).map(Ok)
    })
    .await?;
    stream.reserve_capacity(left);
    while stream.capacity() == 0 && pipe.with_unread(|bytes| has_data(*reader, bytes)) {
        await_capacity(stream, client).await?;
    }
    Ok(pipe.take_now(match stream.capacity() {
        0 => FRAMING_BYTES,
        n => n,
    }))
}

/// Whether the bytes of a framed body are more than framing.
#[cold]
fn has_data(mut reader: BodyReader, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() && !reader.is_done() {
        match reader.step(bytes) {
            Ok(step) if step.data.is_empty() && step.consumed > 0 => {
                bytes = &bytes[step.consumed..];
            }
            // A fault is found by whoever reads it.
            Err(_) => return false,
            Ok(step) => return !step.data.is_empty(),
        }
    }
    false
}

async fn await_capacity(
    stream: &mut SendStream<Chunk>,
    client: Option<&ToClient<'_>>,
) -> Result<(), Broken> {
    match client {
        Some(client) => client.wait(|cx| poll_capacity(stream, cx)).await,
        None => poll_fn(|cx| poll_capacity(stream, cx)).await,
    }
}

/// Moves the data behind `from` together and drops the framing; trailers are kept aside.
fn keep_data(
    buffer: &mut Vec<u8>,
    from: usize,
    reader: &mut BodyReader,
    lines: &mut Vec<u8>,
) -> Result<(), ()> {
    let (mut at, mut kept) = (from, from);
    while !reader.is_done() && at < buffer.len() {
        let before = *reader;
        let step = reader.step(&buffer[at..]).map_err(|_| ())?;
        let consumed = &buffer[at..at + step.consumed];
        lines.extend_from_slice(reader.trailer_lines(&before, consumed));
        let data = at + step.data.start..at + step.data.end;
        let bytes = data.len();
        if data.start > kept {
            buffer.copy_within(data, kept);
        }
        kept += bytes;
        at += step.consumed;
    }
    buffer.truncate(kept);
    Ok(())
}

/// Sends one buffer as the windows allow.
async fn send_data(
    stream: &mut SendStream<Chunk>,
    mut chunk: Chunk,
    ends: bool,
    client: Option<&ToClient<'_>>,
) -> Result<(), Broken> {
    while chunk.has_remaining() {
        stream.reserve_capacity(chunk.remaining());
        let n = stream.capacity();
        if n == 0 {
            await_capacity(stream, client).await?;
            continue;
        }
        if n >= chunk.remaining() {
            break;
        }
        hand_over(stream, chunk.split_to(n), false, client)?;
        if let Some(client) = client {
            client.make_room(stream).await?;
        }
    }
    hand_over(stream, chunk, ends, client)
}
