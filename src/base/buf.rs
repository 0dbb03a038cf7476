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
/// Capacity of a buffer for a body on a stream of HTTP/2: what a frame of the usual size holds.
pub const FRAME_BYTES: usize = 16 * 1024;
/// Capacity of a buffer for a body in passing.
pub const LARGE_BYTES: usize = 64 * 1024;
/// Capacity of a buffer for bulk copies.
pub const BULK_BYTES: usize = 256 * 1024;

const CLASSES: [usize; 5] = [SMALL_BYTES, FRAME_BYTES, LARGE_BYTES, 2 * LARGE_BYTES, BULK_BYTES];
/// Free buffers kept per class and core: at most 60 MiB, and only while they are in use.
const KEPT_MAX: [usize; 5] = [1024, 256, 256, 128, 64];

/// The free buffers of one core.
#[derive(Default)]
pub struct Buffers {
    free: RefCell<[Shelf; CLASSES.len()]>,
}

/// The free buffers of one class.
#[derive(Default)]
struct Shelf {
    buffers: Vec<Vec<u8>>,
    /// The fewest that lay here since the last `trim`: what nobody has needed.
    spare: usize,
}

impl Buffers {
    /// Takes an empty buffer with at least `capacity` bytes of room.
    ///
    /// Units: bytes. A capacity above `BULK_BYTES` is allocated exactly.
    #[must_use]
    pub fn take(&self, capacity: usize) -> Vec<u8> {
        let Some(class) = CLASSES.iter().position(|&size| size >= capacity) else {
            return Vec::with_capacity(capacity);
        };
        let shelf = &mut self.free.borrow_mut()[class];
        let kept = shelf.buffers.pop();
        shelf.spare = shelf.spare.min(shelf.buffers.len());
        kept.unwrap_or_else(|| Vec::with_capacity(CLASSES[class]))
    }

    /// Takes back a buffer; its contents are dropped.
    pub fn give_back(&self, mut buffer: Vec<u8>) {
        let Some(class) = CLASSES.iter().rposition(|&size| size <= buffer.capacity()) else {
            return;
        };
        if buffer.capacity() >= 2 * CLASSES[class] {
            return;
        }
        buffer.clear();
        let shelf = &mut self.free.borrow_mut()[class];
        if shelf.buffers.len() < KEPT_MAX[class] {
            shelf.buffers.push(buffer);
        }
    }

    /// Gives half of what lay unused since the last call back to the allocator; called every few
    /// seconds, so that a burst does not stay resident.
    pub fn trim(&self) {
        for shelf in self.free.borrow_mut().iter_mut() {
            let kept = shelf.buffers.len() - shelf.spare.div_ceil(2);
            shelf.buffers.truncate(kept);
            shelf.spare = kept;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reuses_what_was_given_back() {
        let buffers = Buffers::default();
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
        let buffers = Buffers::default();
        assert_eq!(buffers.take(1).capacity(), SMALL_BYTES);
        assert_eq!(buffers.take(SMALL_BYTES + 1).capacity(), FRAME_BYTES);
        assert_eq!(buffers.take(FRAME_BYTES + 1).capacity(), LARGE_BYTES);
        assert_eq!(buffers.take(BULK_BYTES).capacity(), BULK_BYTES);
        assert_eq!(buffers.take(1 << 20).capacity(), 1 << 20);
    }

    #[test]
    fn does_not_keep_huge_or_tiny_buffers() {
        let buffers = Buffers::default();
        buffers.give_back(Vec::with_capacity(10 << 20));
        buffers.give_back(Vec::with_capacity(10));
        assert!(buffers.free.borrow().iter().all(|shelf| shelf.buffers.is_empty()));
    }

    #[test]
    fn keeps_a_bounded_number() {
        let buffers = Buffers::default();
        for _ in 0..KEPT_MAX[4] + 5 {
            buffers.give_back(Vec::with_capacity(BULK_BYTES));
        }
        assert_eq!(buffers.free.borrow()[4].buffers.len(), KEPT_MAX[4]);
    }

    #[test]
    fn trims_what_nobody_needs_and_keeps_what_is_used() {
        let buffers = Buffers::default();
        (0..8).for_each(|_| buffers.give_back(Vec::with_capacity(SMALL_BYTES)));
        buffers.trim();
        let in_use: Vec<_> = (0..6).map(|_| buffers.take(1)).collect();
        in_use.into_iter().for_each(|buffer| buffers.give_back(buffer));
        buffers.trim();
        let kept = |buffers: &Buffers| buffers.free.borrow()[0].buffers.len();
        assert_eq!(kept(&buffers), 7);
        (0..20).for_each(|_| buffers.trim());
        assert_eq!(kept(&buffers), 0);
    }
}
