//! Reading what nobody wants, so that a close does not destroy what was said last.

use std::future::Future;
use std::io;

use super::buffers;
use crate::base::buf::SMALL_BYTES;

/// Receives and throws away until the peer ends its side, or so much has come.
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
