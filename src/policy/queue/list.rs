//! Doubly linked lists of the entries of a slab.
//!
//! The links live in the entries, so an entry is taken out of any list without a search and
//! nothing is allocated once the slab has grown to what the queue needs.

use crate::base::slab::Slab;

/// The index that is none.
pub(super) const NIL: u32 = u32::MAX;

/// The neighbours of an entry in one list.
#[derive(Clone, Copy, Debug)]
pub(super) struct Links {
    prev: u32,
    next: u32,
}

impl Links {
    /// In no list.
    pub(super) const FREE: Links = Links { prev: NIL, next: NIL };
}

/// An entry that can stand in a list; `WHICH` tells its lists apart.
pub(super) trait Linked<const WHICH: usize> {
    /// Its neighbours.
    fn links(&self) -> &Links;
    /// Its neighbours, to be changed.
    fn links_mut(&mut self) -> &mut Links;
}

/// The two ends of a list through a slab.
#[derive(Clone, Copy, Debug)]
pub(super) struct List<const WHICH: usize> {
    head: u32,
    tail: u32,
}

impl<const WHICH: usize> List<WHICH> {
    pub(super) const EMPTY: List<WHICH> = List { head: NIL, tail: NIL };

    /// The first entry, or `NIL`.
    pub(super) fn head(&self) -> u32 {
        self.head
    }

    /// The last entry, or `NIL`.
    pub(super) fn tail(&self) -> u32 {
        self.tail
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head == NIL
    }

    /// Puts an entry in front of another; in front of `NIL` is the end.
    pub(super) fn insert<T: Linked<WHICH>>(&mut self, slab: &mut Slab<T>, index: u32, next: u32) {
        let prev = if next == NIL { self.tail } else { slab.at(next).links().prev };
        *slab.at_mut(index).links_mut() = Links { prev, next };
        *self.link_after(slab, prev) = index;
        *self.link_before(slab, next) = index;
    }

    /// Takes an entry out.
    pub(super) fn remove<T: Linked<WHICH>>(&mut self, slab: &mut Slab<T>, index: u32) {
        let Links { prev, next } = *slab.at(index).links();
        *self.link_after(slab, prev) = next;
        *self.link_before(slab, next) = prev;
    }

    /// Walks from the head.
    pub(super) fn iter<'s, T: Linked<WHICH>>(
        &self,
        slab: &'s Slab<T>,
    ) -> impl Iterator<Item = (u32, &'s T)> {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let entry = (at != NIL).then(|| (at, slab.at(at)))?;
            at = entry.1.links().next;
            Some(entry)
        })
    }

    /// The entry before this one, or `NIL`.
    pub(super) fn before<T: Linked<WHICH>>(slab: &Slab<T>, index: u32) -> u32 {
        slab.at(index).links().prev
    }

    fn link_after<'s, T: Linked<WHICH>>(
        &'s mut self,
        slab: &'s mut Slab<T>,
        index: u32,
    ) -> &'s mut u32 {
        if index == NIL { &mut self.head } else { &mut slab.at_mut(index).links_mut().next }
    }

    fn link_before<'s, T: Linked<WHICH>>(
        &'s mut self,
        slab: &'s mut Slab<T>,
        index: u32,
    ) -> &'s mut u32 {
        if index == NIL { &mut self.tail } else { &mut slab.at_mut(index).links_mut().prev }
    }
}
