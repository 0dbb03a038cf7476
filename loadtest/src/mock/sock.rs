//! One name for the two kinds of stream, with everything by shared reference.
//!
//! Reading and writing take `&self`, so that a writer that waits can watch the
//! read side at the same time: that is how a client's leaving is seen at once.

use std::io;

use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

/// A connected stream.
#[derive(Debug)]
pub(super) enum Sock {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Sock {
    /// Waits until bytes, an end or an error can be read.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Sock::Tcp(stream) => stream.readable().await,
            Sock::Unix(stream) => stream.readable().await,
        }
    }

    /// Waits until bytes can be written.
    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Sock::Tcp(stream) => stream.writable().await,
            Sock::Unix(stream) => stream.writable().await,
        }
    }

    /// What the read side is ready for; does not consume anything.
    pub(super) async fn read_ready(&self) -> io::Result<Ready> {
        match self {
            Sock::Tcp(stream) => stream.ready(Interest::READABLE).await,
            Sock::Unix(stream) => stream.ready(Interest::READABLE).await,
        }
    }

    /// Appends what is there to `buf`; 0 is the end.
    pub(super) fn try_read(&self, buf: &mut Vec<u8>) -> io::Result<usize> {
        let mut piece = [0u8; 16_384];
        let count = match self {
            Sock::Tcp(stream) => stream.try_read(&mut piece),
            Sock::Unix(stream) => stream.try_read(&mut piece),
        }?;
        buf.extend_from_slice(piece.get(..count).unwrap_or_default());
        Ok(count)
    }

    /// Writes what fits.
    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sock::Tcp(stream) => stream.try_write(bytes),
            Sock::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Makes the coming close a reset (TCP only).
    pub(super) fn reset_on_close(&self) {
        if let Sock::Tcp(stream) = self {
            // A peer that is gone already needs no reset.
            let _ = stream.set_zero_linger();
        }
    }

    /// Ends the write side; the read side stays.
    pub(super) async fn end_writes(&mut self) {
        use std::future::poll_fn;
        use std::pin::Pin;
        use tokio::io::AsyncWrite;
        // Fails only when the connection is gone, which is what follows anyway.
        let _ = match self {
            Sock::Tcp(stream) => poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await,
            Sock::Unix(stream) => poll_fn(|cx| Pin::new(&mut *stream).poll_shutdown(cx)).await,
        };
    }
}
