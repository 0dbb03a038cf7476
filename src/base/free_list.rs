//! What one core has done with and will use again, so that in steady state nothing is allocated.
//!
//! Values of one type in no order; buffers, which differ in size, have `buf`.

use std::cell::RefCell;

/// At most `KEPT_MAX` free values; what is given back beyond them is dropped.
pub struct FreeList<T, const KEPT_MAX: usize>(RefCell<Vec<T>>);

impl<T, const KEPT_MAX: usize> FreeList<T, KEPT_MAX> {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }

    /// Takes the value that was given back last, as it was then.
    #[must_use]
    pub fn take(&self) -> Option<T> {
        self.0.borrow_mut().pop()
    }

    /// Puts a value on the list.
    pub fn give_back(&self, value: T) {
        let mut free = self.0.borrow_mut();
        if free.len() < KEPT_MAX {
            free.push(value);
        }
    }
}

impl<T, const KEPT_MAX: usize> Default for FreeList<T, KEPT_MAX> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_so_many_and_no_more() {
        let free = FreeList::<u8, 2>::new();
        assert_eq!(free.take(), None);
        (1..=3).for_each(|value| free.give_back(value));
        assert_eq!([free.take(), free.take(), free.take()], [Some(2), Some(1), None]);
    }
}
