//! How much of something each of many holds, in one table for all cores.
//!
//! The table has a fixed size and no lock: a count-min sketch of two rows (Cormode and Muthukrishnan
//! 2005). A hash keyed by chance gives each name one cell in either row; what it takes is added to
//! both, and its count is the lesser of the two. So a count is never too low, and too high only
//! for one who shares both cells with others: a chance of about (n / 16384)² for n who hold
//! something at the time. Nobody can choose with whom. What was taken is given back to the same
//! cells, so that the table is empty when nobody holds anything.
//!
//! An IPv6 client is its /64, as in `ip`.

use std::hash::{BuildHasher, Hash, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::ip::network;

/// Cells of a row.
const CELLS: usize = 1 << 14;

/// What each holds.
#[derive(Debug)]
pub struct Tally {
    cells: Box<[AtomicU64]>,
    hasher: RandomState,
}

/// The cells of one name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder(u32);

impl Holder {
    /// As a number, to be kept where only numbers are.
    #[must_use]
    pub fn number(self) -> u32 {
        self.0
    }

    /// The one whose number that is.
    #[must_use]
    pub fn numbered(number: u32) -> Self {
        Self(number % (CELLS * CELLS) as u32)
    }

    fn cells(self) -> [usize; 2] {
        [self.0 as usize % CELLS, CELLS + self.0 as usize / CELLS % CELLS]
    }
}

impl Tally {
    /// A table in which nobody holds anything; `hasher` is its chance.
    #[must_use]
    pub fn new(hasher: RandomState) -> Self {
        Self { cells: (0..2 * CELLS).map(|_| AtomicU64::new(0)).collect(), hasher }
    }

    /// Where a name is counted.
    #[must_use]
    pub fn holder(&self, name: impl Hash) -> Holder {
        Holder::numbered((self.hasher.hash_one(name) >> 32) as u32)
    }

    /// Where an address is counted.
    #[must_use]
    pub fn holder_at(&self, ip: IpAddr) -> Holder {
        self.holder(network(ip))
    }

    /// Adds to what one holds; how much that is then.
    pub fn add(&self, holder: Holder, more: u64) -> u64 {
        let added = |at: usize| self.cells[at].fetch_add(more, Relaxed).saturating_add(more);
        let [one, other] = holder.cells();
        added(one).min(added(other))
    }

    /// Gives back what was added.
    pub fn give_back(&self, holder: Holder, less: u64) {
        for at in holder.cells() {
            self.cells[at].fetch_sub(less, Relaxed);
        }
    }

    /// How much one holds.
    #[must_use]
    pub fn count(&self, holder: Holder) -> u64 {
        let [one, other] = holder.cells();
        self.cells[one].load(Relaxed).min(self.cells[other].load(Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn four_threads_take_as_much_as_there_is_and_no_more() {
        let tally = Tally::new(RandomState::new());
        let holder = tally.holder("somebody");
        let try_take = || match tally.add(holder, 1) <= 100 {
            true => 1u32,
            false => {
                tally.give_back(holder, 1);
                0
            }
        };
        let taken: u32 = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..4).map(|_| scope.spawn(|| (0..100).map(|_| try_take()).sum::<u32>())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // One that was refused may for a moment have stood in another's way.
        assert!((97..=100).contains(&taken), "{taken}");
        assert_eq!(tally.count(holder), u64::from(taken));
    }

    #[test]
    fn an_ipv6_client_is_its_64_and_a_mapped_one_is_of_ipv4() {
        let tally = Tally::new(RandomState::new());
        let at = |ip: &str| tally.holder_at(ip.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::ffff"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("1.2.3.4"), at("::ffff:1.2.3.4"));
    }

    #[test]
    fn a_number_stands_for_the_same_holder() {
        let tally = Tally::new(RandomState::new());
        for name in 0..100 {
            let holder = tally.holder(name);
            assert_eq!(Holder::numbered(holder.number()), holder);
        }
    }

    proptest! {
        /// The oracle: a map.
        #[test]
        fn is_never_too_low_and_empty_in_the_end(
            steps in prop::collection::vec((0u32..500, 1u64..1000), 1..400),
        ) {
            let tally = Tally::new(RandomState::new());
            let mut map: HashMap<u32, u64> = HashMap::new();
            for (name, more) in &steps {
                *map.entry(*name).or_default() += more;
                let counted = tally.add(tally.holder(name), *more);
                prop_assert!(counted >= map[name]);
            }
            let exact = map.iter().filter(|(n, held)| tally.count(tally.holder(n)) == **held);
            prop_assert!(exact.count() * 10 >= map.len() * 9);
            for (name, less) in &steps {
                tally.give_back(tally.holder(name), *less);
            }
            prop_assert!(map.keys().all(|name| tally.count(tally.holder(name)) == 0));
        }
    }
}
