//! Receive buffers and the freelist they come from.
//!
//! A buffer is a plain `Vec<u8>`: what has been received is its length, what may still be
//! received is its spare capacity. Reads own their buffer while they are in flight, so buffers
//! travel by value; each core keeps the ones that are free, by size class, and in steady state
//! nothing is allocated. A buffer that grew beyond the largest class is given back to the
//! allocator: one huge prompt must not stay resident for ever.
//!
//! This file does not count bytes held per exchange or per process; that is `upstream::held`'s
//! subject.

use std::cell::RefCell;

/// Capacity of a buffer for a head or a short answer.
pub const SMALL_BYTES: usize = 8 * 1024;
/// Capacity of a buffer for a body in passing.
pub const LARGE_BYTES: usize = 64 * 1024;
/// Capacity of a buffer for bulk copies.
pub const BULK_BYTES: usize = 256 * 1024;

/// Free buffers kept per class and core; more than that go back to the allocator.
const KEPT_MAX: [usize; 3] = [512, 64, 16];
const CLASSES: [usize; 3] = [SMALL_BYTES, LARGE_BYTES, BULK_BYTES];

/// The free buffers of one core.
#[derive(Default)]
pub struct Buffers {
    free: RefCell<[Vec<Vec<u8>>; 3]>,
}

impl Buffers {
    /// Makes an empty freelist.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes an empty buffer with at least `capacity` bytes of room.
    ///
    /// Units: bytes. A capacity above `BULK_BYTES` is allocated exactly.
    #[must_use]
    pub fn take(&self, capacity: usize) -> Vec<u8> {
        let Some(class) = CLASSES.iter().position(|&size| size >= capacity) else {
            return Vec::with_capacity(capacity);
        };
        let kept = self.free.borrow_mut()[class].pop();
        kept.unwrap_or_else(|| Vec::with_capacity(CLASSES[class]))
    }

    /// Takes back a buffer; its contents are dropped.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let Some(class) = CLASSES.iter().rposition(|&size| size <= buffer.capacity()) else {
            return;
        };
        if buffer.capacity() > 2 * CLASSES[class] {
            return;
        }
        buffer.clear();
        let free = &mut self.free.borrow_mut()[class];
        if free.len() < KEPT_MAX[class] {
            free.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuses_what_was_given_back() {
        let buffers = Buffers::new();
        let mut first = buffers.take(100);
        first.extend_from_slice(b"secret");
        let at = first.as_ptr();
        buffers.give_back(first);
        let again = buffers.take(SMALL_BYTES);
        assert_eq!(again.as_ptr(), at);
        assert!(again.is_empty());
    }

    #[test]
    fn lends_the_smallest_class_that_fits() {
        let buffers = Buffers::new();
        assert_eq!(buffers.take(1).capacity(), SMALL_BYTES);
        assert_eq!(buffers.take(SMALL_BYTES + 1).capacity(), LARGE_BYTES);
        assert_eq!(buffers.take(BULK_BYTES).capacity(), BULK_BYTES);
        assert_eq!(buffers.take(1 << 20).capacity(), 1 << 20);
    }

    #[test]
    fn does_not_keep_huge_or_tiny_buffers() {
        let buffers = Buffers::new();
        buffers.give_back(Vec::with_capacity(10 << 20));
        buffers.give_back(Vec::with_capacity(10));
        assert!(buffers.free.borrow().iter().all(Vec::is_empty));
    }

    #[test]
    fn keeps_a_bounded_number() {
        let buffers = Buffers::new();
        for _ in 0..KEPT_MAX[2] + 5 {
            buffers.give_back(Vec::with_capacity(BULK_BYTES));
        }
        assert_eq!(buffers.free.borrow()[2].len(), KEPT_MAX[2]);
    }
}
