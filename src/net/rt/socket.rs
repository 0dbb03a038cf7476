//! One connected stream socket, TCP or Unix.
//!
//! Operations own their buffer and are submitted when first polled. A live receive or send must
//! never be dropped (bytes would be lost, and the runtime would have to allocate to keep the
//! buffer): end it with `sys::shutdown` and await it. Only `readable` and `writable` are free to
//! drop. One receive and one send may be in flight at once, never two of a kind.
//!
//! A Unix socket is held in the same type, monoio's `TcpStream`, which only calls recv and send.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::Duration;

use monoio::buf::{IoBuf, IoBufMut};
use monoio::io::{AsyncReadRent, AsyncWriteRent};
use monoio::net::TcpStream;

use super::driver::is_epoll;
use crate::net::sys;

/// A connected socket of this core; clones share it, the last one closes it.
#[derive(Clone)]
pub struct Socket {
    stream: Rc<UnsafeCell<TcpStream>>,
    fd: RawFd,
}

impl Socket {
    /// Takes over a connected descriptor: sets the flags that this core's driver needs, no delay
    /// and keep-alive probes after `keepalive` of silence.
    ///
    /// Errors: the flags cannot be set, or the descriptor cannot be registered with the driver.
    pub fn adopt(fd: OwnedFd, keepalive: Duration) -> io::Result<Self> {
        let raw = fd.as_raw_fd();
        sys::set_flags(raw, is_epoll())?;
        sys::tune_tcp(raw, keepalive);
        let stream = TcpStream::from_std(std::net::TcpStream::from(fd))?;
        Ok(Self { stream: Rc::new(UnsafeCell::new(stream)), fd: raw })
    }

    /// The descriptor, for the calls of `sys`; it stays owned by the socket.
    #[must_use]
    pub fn fd(&self) -> RawFd {
        self.fd
    }

    /// Receives into the spare capacity of `buffer`.
    ///
    /// Shape: gives the buffer back, the bytes received appended; 0 bytes is the end of the stream.
    pub fn recv(
        &self,
        buffer: Vec<u8>,
    ) -> impl Future<Output = (io::Result<usize>, Vec<u8>)> + use<> {
        let socket = self.clone();
        async move {
            // SAFETY: monoio promises (trait Split) that reads and writes of a TcpStream do not
            // disturb each other, neither keeps the reference beyond the submission of its
            // operation, and nothing here runs on another thread (Rc).
            let stream = unsafe { &mut *socket.stream.get() };
            let (result, Spare(buffer)) = stream.read(Spare(buffer)).await;
            (result, buffer)
        }
    }

    /// Sends the beginning of a part, as much as the kernel takes; returns how many bytes.
    pub fn send(&self, part: Part) -> impl Future<Output = (io::Result<usize>, Part)> + use<> {
        let socket = self.clone();
        async move {
            // SAFETY: as in `recv`.
            let stream = unsafe { &mut *socket.stream.get() };
            stream.write(part).await
        }
    }

    /// Sends the whole part and gives its buffer back.
    pub fn send_all(&self, part: Part) -> impl Future<Output = (io::Result<()>, Vec<u8>)> + use<> {
        let socket = self.clone();
        async move {
            let mut part = part;
            while part.from < part.to {
                let (result, rest) = socket.send(part).await;
                part = rest;
                match result {
                    Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), part.bytes),
                    Ok(n) => part.from += n,
                    Err(error) => return (Err(error), part.bytes),
                }
            }
            (Ok(()), part.bytes)
        }
    }

    /// Waits until a receive would not wait. Free to drop.
    pub fn readable(&self) -> impl Future<Output = ()> + use<> {
        let socket = self.clone();
        async move {
            // SAFETY: as in `recv`; a shared reference suffices.
            let stream = unsafe { &*socket.stream.get() };
            let _ = stream.readable(false).await;
        }
    }

    /// Waits until a send would not wait. Free to drop.
    pub fn writable(&self) -> impl Future<Output = ()> + use<> {
        let socket = self.clone();
        async move {
            // SAFETY: as in `recv`; a shared reference suffices.
            let stream = unsafe { &*socket.stream.get() };
            let _ = stream.writable(false).await;
        }
    }

    /// Ends one or both directions; operations in flight complete.
    pub fn shutdown(&self, how: sys::Shut) {
        sys::shutdown(self.fd, how);
    }
}

/// A buffer of which the bytes `from..to` are to be sent.
///
/// Invariant: `from <= to <= bytes.len()`, kept by `Part::new` and by the sender's progress.
pub struct Part {
    bytes: Vec<u8>,
    from: usize,
    to: usize,
}

impl Part {
    /// The whole buffer.
    #[must_use]
    pub fn whole(bytes: Vec<u8>) -> Self {
        let to = bytes.len();
        Self { bytes, from: 0, to }
    }

    /// The bytes `from..to` of the buffer, both lowered to its length where they exceed it.
    #[must_use]
    pub fn range(bytes: Vec<u8>, from: usize, to: usize) -> Self {
        let to = to.min(bytes.len());
        Self { from: from.min(to), to, bytes }
    }

    /// How many bytes are left to send.
    #[must_use]
    pub fn left(&self) -> usize {
        self.to - self.from
    }

    /// Skips `n` bytes that have been sent; more than are left counts as all.
    pub fn advance(&mut self, n: usize) {
        self.from = (self.from + n).min(self.to);
    }

    /// The bytes left to send.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.from..self.to]
    }

    /// The buffer, whole, to be used again.
    #[must_use]
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

// SAFETY: the pointer is into the heap of a Vec that moves with the Part and is not touched
// while the kernel reads it; `from <= to <= len` keeps the range initialised.
unsafe impl IoBuf for Part {
    fn read_ptr(&self) -> *const u8 {
        self.bytes[self.from..].as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.to - self.from
    }
}

/// The spare capacity of a buffer, lent to a receive.
struct Spare(Vec<u8>);

// SAFETY: the pointer is into the heap of a Vec that moves with the wrapper; `bytes_total` is
// exactly the room behind its length, and the kernel has written the `n` bytes of `set_init`.
unsafe impl IoBufMut for Spare {
    fn write_ptr(&mut self) -> *mut u8 {
        self.0.spare_capacity_mut().as_mut_ptr().cast()
    }

    fn bytes_total(&mut self) -> usize {
        self.0.capacity() - self.0.len()
    }

    unsafe fn set_init(&mut self, n: usize) {
        let filled = self.0.len() + n;
        debug_assert!(filled <= self.0.capacity());
        // SAFETY: see the impl.
        unsafe { self.0.set_len(filled) };
    }
}
