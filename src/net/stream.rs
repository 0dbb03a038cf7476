//! A connection as the trunk sees it: plain, in TLS, or a stream of HTTP/2 in memory.
//!
//! The trunk speaks HTTP/1.1 to all three. Only a plain socket lets the kernel move bytes by itself
//! (`splice`); code that wants this asks for the socket by `plain`. All else works on any of them,
//! with the rule of `rt::Socket`: a live receive or send is ended by `shutdown` and awaited, never
//! dropped.

use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::task::Waker;

use super::discard::discard;
use super::pipe::{End, WeakEnd};
use super::pooled_future::{OrPooled, PooledFuture};
use super::rt::{Part, Socket};
use super::sys::{self, Peek, Shut};
use super::tls::TlsStream;

/// A connected stream; clones share it, the last one closes it.
#[derive(Clone)]
pub enum Stream {
    /// A socket, TCP or Unix, without TLS.
    Plain(Socket),
    /// TLS over a socket: the kernel cannot move its bytes by itself.
    Tls(TlsStream),
    /// One end of a pipe in memory: a stream of HTTP/2.
    Pipe(End),
}

/// What the ticker holds of a stream to end it at its deadline; it does not keep the stream open.
#[derive(Clone)]
pub enum Handle {
    /// The descriptor of a socket; it must stay open while it is armed.
    Fd(RawFd),
    /// An end of a pipe.
    Pipe(WeakEnd),
    /// Wakes the task that owns the connection, which then ends it by itself: it has something to
    /// send before.
    Owner(Waker),
}

impl Stream {
    /// What the ticker needs to end this stream.
    #[must_use]
    pub fn handle(&self) -> Handle {
        match self {
            Stream::Plain(socket) => Handle::Fd(socket.fd()),
            Stream::Tls(tls) => Handle::Fd(tls.socket().fd()),
            Stream::Pipe(end) => Handle::Pipe(end.downgrade()),
        }
    }

    /// The socket of a stream without TLS: its bytes are the ones that the trunk reads and writes.
    #[must_use]
    pub fn plain(&self) -> Option<&Socket> {
        match self {
            Stream::Plain(socket) => Some(socket),
            Stream::Tls(_) | Stream::Pipe(_) => None,
        }
    }

    /// The pipe, if the bytes are in memory.
    #[must_use]
    pub fn pipe(&self) -> Option<&End> {
        match self {
            Stream::Pipe(end) => Some(end),
            Stream::Plain(_) | Stream::Tls(_) => None,
        }
    }

    /// Receives into the spare capacity of `buffer`.
    ///
    /// Shape: gives the buffer back, the bytes received appended; 0 bytes is the end of the stream.
    pub fn recv(
        &self,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> + use<> {
        match self {
            Stream::Plain(socket) => OrPooled::Bare(socket.recv(buffer)),
            Stream::Tls(tls) => OrPooled::Pooled(PooledFuture::new(tls.clone().recv(buffer))),
            Stream::Pipe(end) => OrPooled::Pooled(PooledFuture::new(end.recv(buffer))),
        }
    }

    /// Receives what is there, without waiting.
    ///
    /// Shape: as `sys::recv_now`.
    pub fn recv_now(&self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        match self {
            Stream::Plain(socket) => sys::recv_now(socket.fd(), buffer),
            Stream::Tls(tls) => tls.recv_now(buffer),
            Stream::Pipe(end) => Ok(end.recv_now(buffer)),
        }
    }

    /// As `recv_now`, not much more than `bytes_max` at a time.
    pub fn recv_some_now(
        &self,
        buffer: &mut Vec<u8>,
        bytes_max: usize,
    ) -> io::Result<Option<usize>> {
        match self {
            Stream::Plain(socket) => sys::recv_some_now(socket.fd(), buffer, bytes_max),
            // A few records, or what a pipe holds.
            Stream::Tls(_) | Stream::Pipe(_) => self.recv_now(buffer),
        }
    }

    /// Sends the beginning of a part, as much as the stream takes at once; returns how many bytes.
    pub fn send(&self, part: Part) -> impl Future<Output = (io::Result<usize>, Part)> + use<> {
        match self {
            Stream::Plain(socket) => OrPooled::Bare(socket.send(part)),
            Stream::Tls(tls) => OrPooled::Pooled(PooledFuture::new(tls.clone().send(part))),
            Stream::Pipe(end) => OrPooled::Pooled(PooledFuture::new(end.send(part))),
        }
    }

    /// Sends the whole part and gives its buffer back.
    pub fn send_all(&self, part: Part) -> impl Future<Output = (io::Result<()>, Vec<u8>)> + use<> {
        match self {
            Stream::Plain(socket) => OrPooled::Bare(socket.send_all(part)),
            other => OrPooled::Pooled(PooledFuture::new(send_all(other.clone(), part))),
        }
    }

    /// Sends as much as can be sent without waiting.
    ///
    /// Shape: returns how many bytes were taken. The others must be what is sent next: a TLS stream
    /// has encrypted them already.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => sys::send_now(socket.fd(), bytes),
            Stream::Tls(tls) => tls.send_now(bytes, &[]),
            Stream::Pipe(end) => end.send_now(bytes),
        }
    }

    /// As `send_now`, for two pieces in one call; returns the bytes taken of both together.
    pub fn send_both_now(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => sys::send_both_now(socket.fd(), first, second),
            Stream::Tls(tls) => tls.send_now(first, second),
            Stream::Pipe(end) => {
                let taken = end.send_now(first)?;
                Ok(if taken == first.len() { taken + end.send_now(second)? } else { taken })
            }
        }
    }

    /// Waits until a receive would not wait. Free to drop.
    pub fn readable(&self) -> impl Future<Output = ()> + use<> {
        match self {
            Stream::Plain(socket) => OrPooled::Bare(socket.readable()),
            Stream::Tls(tls) => OrPooled::Pooled(PooledFuture::new(tls.clone().readable())),
            Stream::Pipe(end) => OrPooled::Pooled(PooledFuture::new(end.readable())),
        }
    }

    /// As `readable`, in a pooled block, so that its type can be named and it can be stored.
    #[must_use]
    pub fn readable_pooled(&self) -> PooledFuture<'static, ()> {
        match self {
            Stream::Plain(socket) => PooledFuture::new(socket.readable()),
            Stream::Tls(tls) => PooledFuture::new(tls.clone().readable()),
            Stream::Pipe(end) => PooledFuture::new(end.readable()),
        }
    }

    /// Looks at the receive side without taking anything from it.
    #[must_use]
    pub fn peek(&self) -> Peek {
        match self {
            Stream::Plain(socket) => sys::peek(socket.fd()),
            Stream::Tls(tls) => tls.peek(),
            Stream::Pipe(end) => end.peek(),
        }
    }

    /// Ends one or both directions; operations in flight complete.
    pub fn shutdown(&self, how: Shut) {
        match self {
            Stream::Plain(socket) => socket.shutdown(how),
            Stream::Tls(tls) => tls.shutdown(how),
            Stream::Pipe(end) => end.shutdown(how),
        }
    }

    /// Ends our side, then receives and drops bytes until the peer ends its side or `bytes_max`
    /// have come (RFC 9112 §9.6): a socket closed over unread bytes is reset, and the peer may lose
    /// what we sent last. The caller's timer bounds the time.
    pub async fn linger(&self, bytes_max: usize) {
        self.shutdown(Shut::Write);
        discard(|buffer| self.recv(buffer), bytes_max).await;
    }

    /// Makes the coming close a reset (in TLS also one without close_notify), so that the peer does
    /// not take a truncated message for a whole one.
    pub fn close_with_reset(&self) {
        match self {
            Stream::Plain(socket) => sys::close_with_reset(socket.fd()),
            Stream::Tls(tls) => tls.close_with_reset(),
            // The reader of a pipe knows the framing, so it sees a message that is cut short.
            Stream::Pipe(_) => {}
        }
    }
}

/// As `Socket::send_all`, for the other kinds of stream.
async fn send_all(stream: Stream, mut part: Part) -> (io::Result<()>, Vec<u8>) {
    while part.left() > 0 {
        let (result, rest) = stream.send(part).await;
        part = rest;
        match result {
            Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), part.into_buffer()),
            Ok(n) => part.advance(n),
            Err(error) => return (Err(error), part.into_buffer()),
        }
    }
    (Ok(()), part.into_buffer())
}

impl Handle {
    /// Ends one or both directions, or wakes the owner.
    pub fn shutdown(&self, how: Shut) {
        match self {
            Handle::Fd(fd) => sys::shutdown(*fd, how),
            Handle::Pipe(end) => end.shutdown(how),
            Handle::Owner(waker) => waker.wake_by_ref(),
        }
    }

    /// Whether the peer has hung up although unread bytes wait before the end.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        match self {
            Handle::Fd(fd) => sys::hung_up(*fd),
            Handle::Pipe(end) => end.hung_up(),
            Handle::Owner(_) => false,
        }
    }
}
