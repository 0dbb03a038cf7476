//! The free buffers of this thread that the floors below the trunk use: ciphertext, frames of
//! HTTP/2, bytes in a pipe. The trunk has its own (`proxy::core`), which it may move between
//! stations; what is taken here is given back here.

use crate::base::buf::Buffers;

/// Up to here a buffer of its own costs less than one of the smallest class.
const FITTING_MAX: usize = 2 << 10;

thread_local! {
    static FREE: Buffers = Buffers::new();
}

/// Takes an empty buffer with at least `capacity` bytes of room.
#[must_use]
pub fn take(capacity: usize) -> Vec<u8> {
    FREE.with(|free| free.take(capacity))
}

/// As `take`, but no larger than it has to be where little is wanted: what may wait for long.
#[must_use]
pub fn take_fitting(bytes: usize) -> Vec<u8> {
    match bytes {
        0..=FITTING_MAX => Vec::with_capacity(bytes),
        _ => take(bytes),
    }
}

/// Takes a buffer back; one that never had memory costs nothing.
pub fn give_back(buffer: Vec<u8>) {
    if buffer.capacity() > 0 {
        // `try_with`: streams may be dropped while the thread's own storage is torn down.
        let _ = FREE.try_with(|free| free.give_back(buffer));
    }
}

/// Gives back to the allocator what a burst left behind; called every few seconds.
pub fn trim() {
    FREE.with(Buffers::trim);
}
