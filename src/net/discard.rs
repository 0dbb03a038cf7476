//! Reading and dropping what a peer still sends before we close: a socket closed over unread bytes
//! is reset, and the peer may lose the answer that was sent last (RFC 9112 §9.6).

use std::future::Future;
use std::io;

use super::buffers;
use crate::base::buf::SMALL_BYTES;

/// Receives and drops bytes until the peer ends its side, a receive fails, or `bytes_max` bytes
/// have come.
///
/// Shape: `recv` fills a buffer and gives it back; 0 bytes is the end.
pub(super) async fn discard<F>(recv: impl Fn(Vec<u8>) -> F, bytes_max: usize)
where
    F: Future<Output = (io::Result<usize>, Vec<u8>)>,
{
    let mut left = bytes_max;
    while left > 0 {
        let (result, buffer) = recv(buffers::take(SMALL_BYTES)).await;
        buffers::give_back(buffer);
        match result {
            Ok(n) if n > 0 => left = left.saturating_sub(n),
            _ => break,
        }
    }
}
