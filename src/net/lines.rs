//! Queues of the ticker's slots, ordered by how long a slot has been in its queue.
//!
//! The one idea: doubly linked lists by index, in a table beside the slots. A slot joins at the
//! end, leaves from anywhere and is found at the front, each with a few stores and no allocation
//! of its own. A slot is in one line at most; the caller remembers in which.

use crate::base::clock::Moment;

/// Which queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Line {
    /// Connections with no request in flight.
    Idle,
    /// Connections whose TLS handshake is not done.
    Shaking,
}

const LINES: usize = 2;
/// The link of the first slot backwards, and of the last one forwards: there is no other.
const NOBODY: u32 = u32::MAX;

/// All queues of one core.
#[derive(Default)]
pub(super) struct Lines {
    links: Vec<Link>,
    ends: [Ends; LINES],
}

#[derive(Clone, Copy)]
struct Link {
    before: u32,
    behind: u32,
    since: Moment,
    tag: u64,
}

const UNLINKED: Link = Link { before: NOBODY, behind: NOBODY, since: Moment::ORIGIN, tag: 0 };

#[derive(Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
    len: u32,
}

impl Default for Ends {
    fn default() -> Self {
        Self { first: NOBODY, last: NOBODY, len: 0 }
    }
}

impl Lines {
    /// Puts a slot that is in no line at the end of one; `tag` is given back by `walk`.
    pub(super) fn join(&mut self, line: Line, index: u32, since: Moment, tag: u64) {
        if self.links.len() <= index as usize {
            self.links.resize(index as usize + 1, UNLINKED);
        }
        let ends = &mut self.ends[line as usize];
        let before = std::mem::replace(&mut ends.last, index);
        ends.len += 1;
        match self.links.get_mut(before as usize) {
            Some(link) => link.behind = index,
            None => ends.first = index,
        }
        self.links[index as usize] = Link { before, behind: NOBODY, since, tag };
    }

    /// Takes a slot out of `line`, in which it must be.
    pub(super) fn leave(&mut self, line: Line, index: u32) {
        let Some(link) = self.links.get_mut(index as usize) else { return };
        let Link { before, behind, .. } = std::mem::replace(link, UNLINKED);
        let ends = &mut self.ends[line as usize];
        ends.len -= 1;
        match self.links.get_mut(before as usize) {
            Some(link) => link.behind = behind,
            None => ends.first = behind,
        }
        match self.links.get_mut(behind as usize) {
            Some(link) => link.before = before,
            None => ends.last = before,
        }
    }

    /// The slot that has been longest in a line, and since when (the `since` of its `join`).
    pub(super) fn first(&self, line: Line) -> Option<(u32, Moment)> {
        let index = self.ends[line as usize].first;
        self.links.get(index as usize).map(|link| (index, link.since))
    }

    /// Since when a slot is in its line (the `since` of its `join`).
    pub(super) fn since(&self, index: u32) -> Option<Moment> {
        self.links.get(index as usize).map(|link| link.since)
    }

    /// How many slots are in a line.
    pub(super) fn len(&self, line: Line) -> u32 {
        self.ends[line as usize].len
    }

    /// Walks a line from its front: slots and their tags.
    pub(super) fn walk(&self, line: Line) -> impl Iterator<Item = (u32, u64)> {
        let mut next = self.ends[line as usize].first;
        std::iter::from_fn(move || {
            let link = self.links.get(next as usize)?;
            let at = std::mem::replace(&mut next, link.behind);
            Some((at, link.tag))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The oracle: a list for each line.
        #[test]
        fn agrees_with_lists(steps in prop::collection::vec((0u32..9, 0usize..3), 0..80)) {
            let mut lines = Lines::default();
            let mut lists: [Vec<u32>; LINES] = Default::default();
            for (time, (index, to)) in steps.into_iter().enumerate() {
                for (line, list) in [Line::Idle, Line::Shaking].into_iter().zip(&mut lists) {
                    if let Some(at) = list.iter().position(|known| *known == index) {
                        list.remove(at);
                        lines.leave(line, index);
                    }
                }
                if let Some(line) = [Line::Idle, Line::Shaking].get(to) {
                    lists[to].push(index);
                    lines.join(*line, index, Moment::from_nanos(time as u64), 10 + index as u64);
                }
                for (line, list) in [Line::Idle, Line::Shaking].into_iter().zip(&lists) {
                    let walked: Vec<_> = lines.walk(line).collect();
                    let expected: Vec<_> = list.iter().map(|at| (*at, 10 + *at as u64)).collect();
                    prop_assert_eq!(walked, expected);
                    prop_assert_eq!(lines.len(line) as usize, list.len());
                    prop_assert_eq!(lines.first(line).map(|(at, _)| at), list.first().copied());
                }
            }
        }
    }
}
