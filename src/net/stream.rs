//! A connection as the trunk sees it: plain, in TLS, or a stream of HTTP/2 in memory.
//!
//! The trunk speaks HTTP/1.1 to all of them. What only a plain socket can do (the kernel moving
//! bytes by itself) asks for it by `plain`; the rest is the same everywhere, with the rule of
//! `rt::Socket`: a live receive or send is ended by `shutdown` and awaited, never dropped.

use std::future::Future;
use std::io;
use std::os::fd::RawFd;
use std::task::Waker;

use super::frame::Frame;
use super::pipe::{End, WeakEnd};
use super::rt::{Part, Socket};
use super::sys::{self, Peek, Shut};
use super::tls::TlsStream;

/// A connected stream; clones share it, the last one closes it.
#[derive(Clone)]
pub enum Stream {
    /// A socket.
    Plain(Socket),
    /// TLS over a socket.
    Tls(TlsStream),
    /// Bytes in memory.
    Pipe(End),
}

/// What the ticker holds of a stream, to end it when its time has come.
#[derive(Clone)]
pub enum Handle {
    /// A descriptor.
    Fd(RawFd),
    /// An end of a pipe.
    Pipe(WeakEnd),
    /// Who ends it himself once he is told: he has something to say before.
    Owner(Waker),
}

impl Stream {
    /// What the ticker needs to end it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        match self {
            Stream::Plain(socket) => Handle::Fd(socket.fd()),
            Stream::Tls(tls) => Handle::Fd(tls.socket().fd()),
            Stream::Pipe(end) => Handle::Pipe(end.downgrade()),
        }
    }

    /// The socket, if the bytes on it are those of the trunk.
    #[must_use]
    pub fn plain(&self) -> Option<&Socket> {
        match self {
            Stream::Plain(socket) => Some(socket),
            Stream::Tls(_) | Stream::Pipe(_) => None,
        }
    }

    /// Receives into the spare capacity of `buffer`.
    ///
    /// Shape: gives the buffer back, longer by what came; 0 bytes is the end of the stream.
    pub fn recv(
        &self,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> + use<> {
        let stream = self.clone();
        async move {
            match stream {
                Stream::Plain(socket) => socket.recv(buffer).await,
                // Boxed by the frame: a plain receive must not carry its state.
                Stream::Tls(tls) => Frame::new(tls.recv(buffer)).await,
                Stream::Pipe(end) => end.recv(buffer).await,
            }
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

    /// Sends one part, as much of it as is taken at once.
    pub fn send(&self, part: Part) -> impl Future<Output = (io::Result<usize>, Part)> + use<> {
        let stream = self.clone();
        async move {
            match stream {
                Stream::Plain(socket) => socket.send(part).await,
                Stream::Tls(tls) => Frame::new(tls.send(part)).await,
                Stream::Pipe(end) => end.send(part).await,
            }
        }
    }

    /// Sends the whole part and gives its buffer back.
    pub fn send_all(&self, part: Part) -> impl Future<Output = (io::Result<()>, Vec<u8>)> + use<> {
        let stream = self.clone();
        async move {
            let mut part = part;
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
    }

    /// Sends what can be sent in this very turn.
    ///
    /// Shape: returns how many bytes were taken. What was not must be sent next: a TLS stream has
    /// sealed it already.
    pub fn send_now(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(socket) => sys::send_now(socket.fd(), bytes),
            Stream::Tls(tls) => tls.send_now(bytes, &[]),
            Stream::Pipe(end) => end.send_now(bytes),
        }
    }

    /// As `send_now`, two pieces as one.
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
        let stream = self.clone();
        async move {
            match stream {
                Stream::Plain(socket) => socket.readable().await,
                Stream::Tls(tls) => Frame::new(tls.readable()).await,
                Stream::Pipe(end) => end.readable().await,
            }
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

    /// Makes the coming close one that cannot be taken for a clean end.
    pub fn close_with_reset(&self) {
        match self {
            Stream::Plain(socket) => sys::close_with_reset(socket.fd()),
            Stream::Tls(tls) => tls.close_with_reset(),
            // What reads a pipe knows where a message ends.
            Stream::Pipe(_) => {}
        }
    }
}

impl Handle {
    /// Ends one or both directions, or tells the owner.
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
