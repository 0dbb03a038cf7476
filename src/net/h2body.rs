//! Bodies between an HTTP/2 stream and the pipe that carries the same message as HTTP/1.1.
//!
//! Flow control goes end to end: bytes received on the stream are acknowledged (WINDOW_UPDATE) when
//! the pipe has taken them, and the pipe is read no further than the stream's window allows. A body
//! that ends before its framing says so is a fault, from either side, never an end.

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

/// Bytes that a chunk of HTTP/1.1 has around its data, at most: size, CRLFs.
const CHUNK_EXTRA: usize = 24;
/// Most bytes taken at a time from a pipe whose unread bytes hold no data, such as trailers: they
/// need no window.
const FRAMING_BYTES: usize = 1 << 10;

/// Why a body did not reach its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// The HTTP/2 side reset the stream or lost the connection.
    Stream,
    /// The HTTP/2 connection was lost for lack of a resource of this machine (`sys::is_shortage`).
    Ours,
    /// The client on the HTTP/2 side took nothing for longer than its time allows.
    Stalled,
    /// The HTTP/1.1 side ended before its framing said so, broke its framing, or reads no more.
    Pipe,
}

impl Broken {
    /// Classes an error of an HTTP/2 stream: `Ours` for a shortage, else `Stream`.
    #[cold]
    #[must_use]
    pub fn by(error: &h2::Error) -> Self {
        if is_shortage(error) { Broken::Ours } else { Broken::Stream }
    }
}

/// How an answer goes to a client: each wait for the client's windows is bounded in time, and the
/// memory that waits is counted.
///
/// Shape: an expired timer shuts the pipe down, which ends the exchange on its other side too.
pub struct ToClient<'a> {
    ticker: &'a Rc<Ticker>,
    pipe: &'a End,
    /// Longest wait in which the client takes nothing.
    patience: Duration,
    /// The account of the client's connection.
    unsent: &'a Rc<Unsent>,
    /// Counts the chunks of this stream that are with the `h2` crate.
    in_flight: Rc<InFlight>,
}

impl<'a> ToClient<'a> {
    /// For the answer that comes through `pipe`; each wait for the client takes `patience` at most.
    #[must_use]
    pub fn new(
        ticker: &'a Rc<Ticker>,
        pipe: &'a End,
        patience: Duration,
        unsent: &'a Rc<Unsent>,
    ) -> Self {
        Self { ticker, pipe, patience, unsent, in_flight: Rc::default() }
    }

    /// Waits until `poll` is done, which depends on the client.
    ///
    /// Errors: that of `poll`; `Stalled` after `patience`, or when the pipe was shut down.
    async fn wait<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<T, Broken>>,
    ) -> Result<T, Broken> {
        // Dropped, and so disarmed, when the wait is over.
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

    /// Waits until the `h2` crate has written all chunks of this stream: a reset of the stream
    /// would discard them.
    ///
    /// Errors: `Stream` when the client reset the stream, `Stalled` as in `wait`.
    pub async fn flush(&self, stream: &mut SendStream<Chunk>) -> Result<(), Broken> {
        loop {
            let chunks = self.in_flight.chunks();
            if chunks == 0 {
                return Ok(());
            }
            // `patience` bounds the time for one chunk, not that for all of them.
            self.wait(|cx| {
                if stream.poll_reset(cx).is_ready() {
                    return Poll::Ready(Err(Broken::Stream));
                }
                self.in_flight.poll_fewer(cx, chunks).map(Ok)
            })
            .await?;
        }
    }

    /// Where the connection may take no more memory, waits until this stream's chunks are written,
    /// so that only one chunk of each stream waits at a time.
    async fn make_room(&self, stream: &mut SendStream<Chunk>) -> Result<(), Broken> {
        match self.unsent.try_reserve(TIGHT_BYTES) {
            true => Ok(()),
            false => self.flush(stream).await,
        }
    }
}

/// Gives a chunk to the `h2` crate; one for a client is counted until it is written.
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

/// How much of a body went with its head.
pub struct Ahead {
    /// Data received that had no room behind the head: the first that `into_pipe` has to relay.
    pub first: Option<Bytes>,
    /// The stream has ended without trailers: no data is left to relay.
    pub ended: bool,
}

/// Writes behind a head the part of its body that has been received already, as far as `out` has
/// spare capacity.
///
/// Shape: a short body goes out with its head; nothing waits for more of it. A fault of the stream
/// shows again in `into_pipe`.
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
/// Errors: which side broke; the pipe is not shut down here.
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

/// Opens the stream's window by the bytes that have been passed on.
fn release(body: &mut RecvStream, bytes: usize) {
    // An error means that the stream is gone, which shows again at the next receive.
    let _ = body.flow_control().release_capacity(bytes);
}

/// Sends all bytes into a pipe.
///
/// Errors: `Pipe` when the other end reads no more.
pub async fn send(pipe: &End, mut bytes: &[u8]) -> Result<(), Broken> {
    while !bytes.is_empty() {
        let sent = poll_fn(|cx| pipe.poll_send(cx, bytes)).await.map_err(|_| Broken::Pipe)?;
        bytes = &bytes[sent..];
    }
    Ok(())
}

/// Relays a body from a pipe into a stream, which it ends.
///
/// Shape: `buffer` holds the bytes received already, those of the body from `from` on. With
/// `client` each wait for the window is bounded, without it no wait is.
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

/// Receives as many bytes as the stream's window allows to send on; framing without data is
/// received without a window.
///
/// Shape: bytes that may not be sent yet stay in the pipe. An empty buffer is the end.
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

/// Whether any of these bytes of a framed body are data rather than framing.
#[cold]
fn has_data(mut reader: BodyReader, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() && !reader.is_done() {
        match reader.step(bytes) {
            Ok(step) if step.data.is_empty() && step.consumed > 0 => {
                bytes = &bytes[step.consumed..];
            }
            // `keep_data` reads the same bytes and reports the fault.
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

/// Removes the framing from the bytes behind `from`, so that only data is left in `buffer`;
/// trailer lines are appended to `lines`.
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

/// Sends one chunk, in pieces where the window is smaller; waits for the window.
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
