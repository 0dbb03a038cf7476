//! The freelist of buffers of this thread, and so of its core: of the trunk, which holds it in
//! `proxy::core`, and of ciphertext, frames of HTTP/2 and bytes in a pipe, which have no core at hand.

use std::rc::Rc;

use crate::base::buf::Buffers;

/// Up to so many bytes `take_fitting` allocates what was asked for: less memory than the smallest
/// class of the freelist.
const FITTING_MAX: usize = 2 << 10;

thread_local! {
    static FREE: Rc<Buffers> = Rc::default();
}

/// The freelist itself.
#[must_use]
pub fn of_this_core() -> Rc<Buffers> {
    FREE.with(Rc::clone)
}

/// Takes an empty buffer with at least `capacity` bytes of room.
#[must_use]
pub fn take(capacity: usize) -> Vec<u8> {
    FREE.with(|free| free.take(capacity))
}

/// As `take`, but a buffer of 2 KiB or less is allocated to size: it may be held for long, and a
/// pooled one would hold much more memory than it has bytes.
#[must_use]
pub fn take_fitting(bytes: usize) -> Vec<u8> {
    match bytes {
        0..=FITTING_MAX => Vec::with_capacity(bytes),
        _ => take(bytes),
    }
}

/// Puts a buffer on the freelist; one without memory is ignored.
pub fn give_back(buffer: Vec<u8>) {
    if buffer.capacity() > 0 {
        // `try_with`: streams may be dropped while the thread's own storage is torn down.
        let _ = FREE.try_with(|free| free.give_back(buffer));
    }
}
