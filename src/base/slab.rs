//! A table whose entries are named by index, and whose freed entries are used again.
//!
//! Nothing is allocated once it has grown to the most entries that are taken at a time. Whoever
//! keeps an index keeps track of whether it is still taken; where one may outlive its entry, the
//! entry counts its uses in a generation.

/// Entries by index; freed ones stay as they are until they are used again.
#[derive(Debug)]
pub struct Slab<T> {
    entries: Vec<T>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Slab<T> {
        Slab { entries: Vec::new(), free: Vec::new() }
    }

    /// Puts an entry in. `renew` overwrites a freed one, or makes the first of its index.
    pub fn insert(&mut self, renew: impl FnOnce(Option<&T>) -> T) -> u32 {
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            *entry = renew(Some(entry));
            return index;
        }
        self.entries.push(renew(None));
        u32::try_from(self.entries.len() - 1).expect("memory ends long before a u32 does")
    }

    /// Frees an index.
    pub fn free(&mut self, index: u32) {
        self.free.push(index);
    }

    /// The entry of a taken index.
    #[must_use]
    pub fn at(&self, index: u32) -> &T {
        &self.entries[index as usize]
    }

    /// The entry of a taken index, to be changed.
    #[must_use]
    pub fn at_mut(&mut self, index: u32) -> &mut T {
        &mut self.entries[index as usize]
    }

    /// The entry of any index, also a freed or made-up one.
    #[must_use]
    pub fn find(&self, index: u32) -> Option<&T> {
        self.entries.get(index as usize)
    }

    /// As `find`, to be changed.
    #[must_use]
    pub fn find_mut(&mut self, index: u32) -> Option<&mut T> {
        self.entries.get_mut(index as usize)
    }

    /// All entries, the freed ones too.
    #[must_use]
    pub fn entries(&self) -> &[T] {
        &self.entries
    }

    /// All entries, the freed ones too, to be changed.
    #[must_use]
    pub fn entries_mut(&mut self) -> &mut [T] {
        &mut self.entries
    }
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_entry_is_used_again() {
        let mut slab = Slab::new();
        let [a, b] = [1, 2].map(|value| slab.insert(|_| value));
        slab.free(a);
        assert_eq!((slab.find(a), slab.find(7)), (Some(&1), None));
        assert_eq!(slab.insert(|freed| freed.map_or(0, |old| old + 10)), a);
        assert_eq!((slab.at(a), slab.at(b), slab.entries().len()), (&11, &2, 2));
    }
}
