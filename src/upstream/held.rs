//! The process-wide budget of held body bytes (`limits.held_total`).
//!
//! A body is held while its model is unknown and while it may be needed for a retry. Small
//! bodies live in the receive buffer that every connection needs anyway and are not counted;
//! beyond that each exchange takes from one atomic and gives back when dropped.

use std::sync::atomic::{AtomicU64, Ordering};

/// The budget of all cores.
#[derive(Debug)]
pub struct HeldBudget {
    taken: AtomicU64,
    total: u64,
}

impl HeldBudget {
    /// A budget of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self { taken: AtomicU64::new(0), total }
    }

    /// Bytes held now.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The budget itself.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// What one exchange has taken from the budget.
#[derive(Debug)]
pub struct Held<'a> {
    budget: &'a HeldBudget,
    bytes: u64,
}

impl<'a> Held<'a> {
    /// Holds nothing yet.
    #[must_use]
    pub fn new(budget: &'a HeldBudget) -> Self {
        Self { budget, bytes: 0 }
    }

    /// Grows to `bytes` in all; false when the process holds too much already.
    ///
    /// Never shrinks; drop gives all back.
    #[must_use]
    pub fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let before = self.budget.taken.fetch_add(more, Ordering::Relaxed);
        if before.saturating_add(more) > self.budget.total {
            self.budget.taken.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.bytes = bytes;
        true
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_total_is_never_exceeded_and_comes_back() {
        let budget = HeldBudget::new(100);
        let mut first = Held::new(&budget);
        let mut second = Held::new(&budget);
        assert!(first.grow_to(60));
        assert!(!second.grow_to(41));
        assert!(second.grow_to(40));
        assert!(second.grow_to(10), "growing to less is no growth");
        assert_eq!(budget.taken(), 100);
        drop(first);
        assert_eq!(budget.taken(), 40);
        drop(second);
        assert_eq!(budget.taken(), 0);
    }
}
