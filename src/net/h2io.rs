//! A stream as the `h2` crate wants it: tokio's IO traits, without its runtime.
//!
//! Reading waits for readiness and holds no buffer meanwhile, so a connection that idles gives its
//! memory back. Writing gathers frames until the flush and sends them in one call; the bytes that
//! the kernel does not take go by one queued send that owns its buffer.
//!
//! Frames are counted in passing, for the floods that `h2` does not limit. A connection on which a
//! flood was found is read no further; `Flooded` tells its owner.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::buffers;
use super::pooled_future::PooledFuture;
use super::rt::{self, Part};
use super::stream::Stream;
use super::sys::{Shut, is_shortage};
use super::ticker::Timer;
use super::unsent::{Charge, Unsent};
use crate::base::buf::{LARGE_BYTES, SMALL_BYTES};
use crate::http2::flood::{Flood, FrameCounter};
use crate::http2::fragment::FragmentFinder;

/// Which flood was found on a connection, if any; clones see the same.
#[derive(Clone, Default)]
pub struct Flooded(Rc<Cell<Option<Flood>>>);

impl Flooded {
    /// The flood that was found; `None` as long as there is none.
    #[must_use]
    pub fn by(&self) -> Option<Flood> {
        self.0.get()
    }
}

/// Which streams of a connection have a request path with a fragment (`#`), which the `h2` crate
/// does not show.
#[derive(Clone, Default)]
pub struct Fragments(Rc<RefCell<FragmentFinder>>);

impl Fragments {
    /// Whether the path of a stream that has just been opened has a fragment; it and the streams
    /// before it are forgotten.
    #[must_use]
    pub fn take(&self, stream: u32) -> bool {
        self.0.borrow_mut().take(stream)
    }
}

/// The IO of one HTTP/2 connection.
pub struct H2Io {
    stream: Stream,
    frames: FrameCounter,
    flooded: Flooded,
    fragments: Option<Fragments>,
    /// Bytes received; those from `taken` on the `h2` crate has not read yet.
    received: Vec<u8>,
    taken: usize,
    waiting: Option<PooledFuture<'static, ()>>,
    /// The last receive emptied the socket: wait for readiness before the next.
    drained: bool,
    bulky: bool,
    out: Vec<u8>,
    sending: Option<PooledFuture<'static, (io::Result<()>, Vec<u8>)>>,
    /// Ends the connection when the peer does not read for `write_idle`.
    timer: Timer,
    write_idle: Duration,
}

impl H2Io {
    /// Takes over a stream; `first` are the bytes received on it already.
    #[must_use]
    pub fn new(
        stream: Stream,
        first: Vec<u8>,
        mut frames: FrameCounter,
        timer: Timer,
        write_idle: Duration,
    ) -> Self {
        let flooded = Flooded::default();
        flooded.0.set(frames.push(&first, Instant::now()).err());
        Self {
            stream,
            frames,
            flooded,
            fragments: None,
            received: first,
            taken: 0,
            waiting: None,
            drained: false,
            bulky: false,
            out: Vec::new(),
            sending: None,
            timer,
            write_idle,
        }
    }

    /// Tells, also when the `h2` crate has this, whether a flood was found.
    #[must_use]
    pub fn flooded(&self) -> Flooded {
        self.flooded.clone()
    }

    /// From now on also looks for paths with fragments. For connections whose peer sends requests.
    #[must_use]
    pub fn fragments(&mut self) -> Fragments {
        let fragments = Fragments::default();
        fragments.0.borrow_mut().push(&self.received);
        self.fragments = Some(fragments.clone());
        fragments
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.flooded.by().is_some() {
                // Nothing wakes this task from here: the owner of the connection ends it.
                return Poll::Pending;
            }
            if self.drained {
                let waiting =
                    self.waiting.get_or_insert_with(|| PooledFuture::new(self.stream.readable()));
                ready!(Pin::new(waiting).poll(cx));
                self.waiting = None;
                self.drained = false;
            }
            let room = if self.bulky { LARGE_BYTES } else { SMALL_BYTES };
            let mut buffer = buffers::take(room);
            match self.stream.recv_now(&mut buffer).map_err(for_h2)? {
                Some(_) => {
                    // As long as receives are large, the next buffer is large.
                    self.bulky = buffer.len() >= SMALL_BYTES;
                    self.drained = buffer.len() < buffer.capacity();
                    self.flooded.0.set(self.frames.push(&buffer, Instant::now()).err());
                    if let Some(fragments) = &self.fragments {
                        fragments.0.borrow_mut().push(&buffer);
                    }
                    (self.received, self.taken) = (buffer, 0);
                    if self.flooded.by().is_some() {
                        cx.waker().wake_by_ref();
                        continue;
                    }
                    return Poll::Ready(Ok(()));
                }
                None => {
                    buffers::give_back(buffer);
                    self.drained = true;
                }
            }
        }
    }

    /// Waits for the send in flight, if there is one, and gives its buffer back.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let (result, buffer) = ready!(Pin::new(sending).poll(cx));
        self.sending = None;
        self.timer.disarm();
        buffers::give_back(buffer);
        Poll::Ready(result.map_err(for_h2))
    }
}

/// Gives shortages of this machine the kind `OutOfMemory`: `h2` keeps only the kind of an error and
/// not its errno, and a shortage whose errno has no kind would look like the peer's fault.
#[cold]
fn for_h2(error: io::Error) -> io::Error {
    match is_shortage(&error) {
        true => io::Error::new(io::ErrorKind::OutOfMemory, error),
        false => error,
    }
}

impl AsyncRead for H2Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        if io.taken == io.received.len() {
            ready!(io.poll_fill(cx))?;
        }
        let left = &io.received[io.taken..];
        let n = left.len().min(buffer.remaining());
        buffer.put_slice(&left[..n]);
        io.taken += n;
        if io.taken == io.received.len() {
            buffers::give_back(std::mem::take(&mut io.received));
            io.taken = 0;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for H2Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let io = self.get_mut();
        if io.out.len() >= LARGE_BYTES {
            ready!(Pin::new(&mut *io).poll_flush(cx))?;
        }
        if io.out.capacity() == 0 {
            io.out = buffers::take(SMALL_BYTES.max(bytes.len()));
        }
        io.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        ready!(io.poll_sent(cx))?;
        if io.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        io.frames.sent(&io.out, Instant::now());
        let taken = io.stream.send_now(&io.out).map_err(for_h2)?;
        let out = std::mem::take(&mut io.out);
        if taken == out.len() {
            buffers::give_back(out);
            return Poll::Ready(Ok(()));
        }
        let rest = Part::range(out, taken, usize::MAX);
        io.timer.arm(io.stream.handle(), Shut::Both, io.write_idle);
        io.sending = Some(PooledFuture::new(io.stream.send_all(rest)));
        io.poll_sent(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let io = self.get_mut();
        ready!(Pin::new(&mut *io).poll_flush(cx))?;
        io.stream.shutdown(Shut::Write);
        Poll::Ready(Ok(()))
    }
}

impl Drop for H2Io {
    fn drop(&mut self) {
        buffers::give_back(std::mem::take(&mut self.received));
        buffers::give_back(std::mem::take(&mut self.out));
        if let Some(sending) = self.sending.take().filter(|_| rt::is_running()) {
            // A live send must not be dropped (`rt::socket`): it is ended and awaited.
            self.stream.shutdown(Shut::Both);
            rt::spawn(async move {
                buffers::give_back(sending.await.1);
            });
        }
    }
}

/// Counts the chunks of one stream that the `h2` crate has not written yet.
#[derive(Default)]
pub struct InFlight {
    chunks: Cell<usize>,
    waiter: Cell<Option<Waker>>,
}

impl InFlight {
    /// How many chunks are not written yet.
    #[must_use]
    pub fn chunks(&self) -> usize {
        self.chunks.get()
    }

    /// Waits until fewer than `before` chunks are left; the others were written or discarded.
    pub fn poll_fewer(&self, cx: &mut Context<'_>, before: usize) -> Poll<()> {
        if self.chunks.get() < before {
            return Poll::Ready(());
        }
        self.waiter.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

/// About how much memory the `h2` crate and the allocator need for a chunk besides its buffer.
const CHUNK_BYTES: usize = 256;

/// Bytes to be sent as DATA; the buffer goes back to the freelist when the `h2` crate drops it.
pub struct Chunk {
    bytes: Vec<u8>,
    from: usize,
    /// Counts the buffer until it is dropped.
    charge: Charge,
    in_flight: Option<Rc<InFlight>>,
}

impl Chunk {
    /// The bytes from `from` on; `from <= bytes.len()`.
    #[must_use]
    pub fn new(bytes: Vec<u8>, from: usize) -> Self {
        Self { bytes, from, charge: Charge::default(), in_flight: None }
    }

    /// Counts the chunk in `in_flight` and its memory in `unsent`, until it is dropped.
    #[must_use]
    pub fn counted(mut self, unsent: &Rc<Unsent>, in_flight: &Rc<InFlight>) -> Self {
        in_flight.chunks.set(in_flight.chunks.get() + 1);
        self.charge = unsent.charge(self.bytes.capacity() + CHUNK_BYTES);
        self.in_flight = Some(in_flight.clone());
        self
    }

    /// Splits the first `n` bytes off, by a copy into a buffer that fits them: a window that is
    /// nearly used up leaves room for a few only.
    #[must_use]
    pub fn split_to(&mut self, n: usize) -> Self {
        let mut bytes = buffers::take_fitting(n);
        bytes.extend_from_slice(&self.chunk()[..n]);
        self.from += n;
        Self::new(bytes, 0)
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.bytes.len() - self.from
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes[self.from..]
    }

    fn advance(&mut self, n: usize) {
        self.from += n;
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        buffers::give_back(std::mem::take(&mut self.bytes));
        let Some(in_flight) = &self.in_flight else { return };
        in_flight.chunks.set(in_flight.chunks.get() - 1);
        in_flight.waiter.take().into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_ours_keeps_a_kind_that_tells_it() {
        for (errno, ours) in [(libc::ENOBUFS, true), (libc::ECONNRESET, false)] {
            let kind = for_h2(io::Error::from_raw_os_error(errno)).kind();
            // `h2` keeps only the kind.
            assert_eq!(is_shortage(&io::Error::from(kind)), ours, "{errno}");
        }
    }
}
