//! Memory of answers that wait to be sent to HTTP/2 clients.
//!
//! A client may open a hundred streams and read none of them, on many connections. Each stream
//! then holds the part of its answer that is in its pipe and in the `h2` crate. A connection may
//! hold 64 KiB without asking; beyond that it takes steps of 64 KiB from a total for the whole
//! process. When the total is used up, or the connection has reached its own limit, its streams go
//! on with very small buffers, one chunk at a time: slow, but no stream stops because of another.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What each connection may hold without asking, and the step by which it takes from the total.
const STEP_BYTES: usize = 64 << 10;
/// Size of a buffer of a stream whose connection may take no more.
pub const TIGHT_BYTES: usize = 2 << 10;

/// What the connections of all cores have taken of the process's total.
#[derive(Debug)]
pub struct UnsentTotal {
    bytes: AtomicU64,
    bytes_max: AtomicU64,
}

impl UnsentTotal {
    /// A total of `bytes_max` bytes, besides the 64 KiB that each connection has without asking.
    #[must_use]
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicU64::new(0), bytes_max: AtomicU64::new(bytes_max) })
    }

    /// Bytes that are taken now, in steps of 64 KiB.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Sets the total; what is taken stays taken.
    pub fn set_max(&self, bytes_max: u64) {
        self.bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    fn take(&self, more: u64) -> bool {
        let before = self.bytes.fetch_add(more, Ordering::Relaxed);
        let fits = before.saturating_add(more) <= self.bytes_max.load(Ordering::Relaxed);
        if !fits {
            self.give_back(more);
        }
        fits
    }

    fn give_back(&self, less: u64) {
        self.bytes.fetch_sub(less, Ordering::Relaxed);
    }
}

/// What the streams of one connection hold.
#[derive(Debug)]
pub struct Unsent {
    total: Arc<UnsentTotal>,
    bytes: Cell<usize>,
    /// Taken of the total: a multiple of `STEP_BYTES`, and `bytes` fit into it and the first step,
    /// but for small buffers that are counted without room.
    booked: Cell<usize>,
    bytes_max: usize,
}

impl Unsent {
    /// The account of a connection that may hold `bytes_max` bytes in buffers of full size.
    #[must_use]
    pub fn new(total: Arc<UnsentTotal>, bytes_max: usize) -> Rc<Self> {
        Rc::new(Self { total, bytes: Cell::new(0), booked: Cell::new(0), bytes_max })
    }

    /// Whether there is room for a buffer of `more` bytes; takes steps of the total where needed.
    /// Nothing is counted yet: `charge` does that.
    #[must_use]
    pub fn try_reserve(&self, more: usize) -> bool {
        let wanted = self.bytes.get() + more;
        if wanted > self.bytes_max.max(STEP_BYTES) {
            return false;
        }
        while wanted > STEP_BYTES + self.booked.get() {
            if !self.total.take(STEP_BYTES as u64) {
                return false;
            }
            self.booked.set(self.booked.get() + STEP_BYTES);
        }
        true
    }

    /// Counts a buffer until the charge is dropped, whether there was room or not.
    #[must_use]
    pub fn charge(self: &Rc<Self>, bytes: usize) -> Charge {
        self.bytes.set(self.bytes.get() + bytes);
        Charge { of: Some(self.clone()), bytes }
    }

    fn give_back(&self, bytes: usize) {
        let left = self.bytes.get() - bytes;
        self.bytes.set(left);
        let booked = self.booked.get();
        // A connection keeps up to two steps that it does not use, so that one at work does not
        // touch the shared counter at each buffer.
        if booked > 0 && (left == 0 || left + 2 * STEP_BYTES < booked) {
            let keep = left.next_multiple_of(STEP_BYTES);
            self.booked.set(keep);
            self.total.give_back((booked - keep) as u64);
        }
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.total.give_back(self.booked.get() as u64);
    }
}

/// Counts bytes until it is dropped; the default counts nothing.
#[derive(Debug, Default)]
pub struct Charge {
    of: Option<Rc<Unsent>>,
    bytes: usize,
}

impl Charge {
    /// How many bytes it counts.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some(of) = &self.of {
            of.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_first_64_kib_are_free_and_the_rest_is_everybodys() {
        let total = UnsentTotal::new(2 * STEP_BYTES as u64);
        let (a, b) = (Unsent::new(total.clone(), 1 << 20), Unsent::new(total.clone(), 1 << 20));
        assert!(a.try_reserve(STEP_BYTES));
        let first = a.charge(STEP_BYTES);
        assert_eq!(total.bytes(), 0);
        assert!(a.try_reserve(2 * STEP_BYTES));
        let more = a.charge(2 * STEP_BYTES);
        assert_eq!(total.bytes(), 2 * STEP_BYTES as u64);
        assert!(!a.try_reserve(1) && b.try_reserve(STEP_BYTES) && !b.try_reserve(STEP_BYTES + 1));
        // Small buffers are counted although there is no room.
        let tight = a.charge(TIGHT_BYTES);
        drop((first, more, tight));
        assert_eq!((total.bytes(), a.bytes.get()), (0, 0));
    }

    #[test]
    fn a_connection_has_no_more_than_one_may_have() {
        let total = UnsentTotal::new(u64::MAX);
        let one = Unsent::new(total.clone(), 100 << 10);
        assert!(one.try_reserve(100 << 10) && !one.try_reserve((100 << 10) + 1));
        let held = one.charge(100 << 10);
        assert!(!one.try_reserve(1));
        drop(one);
        assert_ne!(total.bytes(), 0, "what is held is held by the bytes themselves");
        drop(held);
        assert_eq!(total.bytes(), 0);
    }

    proptest! {
        #[test]
        fn all_that_was_taken_comes_back(
            steps in prop::collection::vec((0usize..3, 0usize..100_000, any::<bool>()), 1..80),
        ) {
            let total = UnsentTotal::new(300_000);
            let all: Vec<_> = (0..3).map(|_| Unsent::new(total.clone(), 200_000)).collect();
            let mut charges = Vec::new();
            for (at, bytes, gives) in steps {
                if gives && !charges.is_empty() {
                    charges.remove(bytes % charges.len());
                } else if all[at].try_reserve(bytes) {
                    charges.push(all[at].charge(bytes));
                }
                prop_assert!(total.bytes() <= 300_000);
                for one in &all {
                    prop_assert!(one.bytes.get() <= STEP_BYTES + one.booked.get());
                }
            }
            charges.clear();
            drop(all);
            prop_assert_eq!(total.bytes(), 0);
        }
    }
}
