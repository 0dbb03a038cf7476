//! Choosing one member of a group for one attempt.
//!
//! A strategy is one function over a slice: it sees every member with its weight, its
//! load and whether it may be used, the set of members already tried in this
//! exchange, a state of its own per core and group, and one random draw. It returns an index.
//! What is shared between cores (in-flight counts, breakers) has been read into the
//! slice before; a strategy therefore never touches an atomic and can be tested with numbers.
//!
//! A new strategy is one file, one variant and one line in `TABLE`.

mod failover;
mod round_robin;

/// Most members a group may have; those beyond are never picked.
pub const MEMBERS_MAX: usize = 256;

/// What a strategy may know of one member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// Share relative to the other members, 1..=65535.
    pub weight: u32,
    /// Exchanges in flight on it, over all cores.
    pub in_flight: u32,
    /// Enabled, healthy, breaker not open and below its concurrency.
    pub usable: bool,
}

impl Default for Member {
    fn default() -> Member {
        Member { weight: 1, in_flight: 0, usable: true }
    }
}

/// The members that this exchange has tried already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    bits: [u64; MEMBERS_MAX / 64],
}

impl Tried {
    /// The set in which nobody is.
    pub const NONE: Tried = Tried { bits: [0; MEMBERS_MAX / 64] };

    /// Adds a member. Indexes from `MEMBERS_MAX` on are in the set from the start.
    pub fn insert(&mut self, index: usize) {
        if let Some(word) = self.bits.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// Tells whether a member is in the set.
    pub fn has(&self, index: usize) -> bool {
        // What cannot be remembered must not be picked, or a retry could go in circles.
        self.bits.get(index / 64).is_none_or(|word| word >> (index % 64) & 1 == 1)
    }
}

/// What a strategy remembers between picks, per core and group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PickState {
    /// The member that `round_robin` looks at first.
    cursor: usize,
}

impl PickState {
    /// Begins at another member on every core, or all cores would send their first
    /// exchanges to the same one.
    pub fn starting_at(core: usize) -> PickState {
        PickState { cursor: core }
    }
}

/// How a group chooses among its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Strategy {
    /// One after the other.
    RoundRobin,
    /// The first that is usable, in declared order.
    Failover,
}

impl Strategy {
    /// Finds a strategy by its name in a config; `_`, `-` and case make no difference.
    pub fn parse(name: &str) -> Option<Strategy> {
        let letters = |s: &str| -> String {
            s.chars().filter(|c| !matches!(c, '_' | '-')).flat_map(char::to_lowercase).collect()
        };
        let wanted = letters(name);
        TABLE.iter().find(|line| letters(line.name) == wanted).map(|line| line.strategy)
    }

    /// Returns the name as the manual spells it.
    pub fn name(self) -> &'static str {
        TABLE[self as usize].name
    }

    /// Lists all names, for messages.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|line| line.name)
    }
}

type Pick = fn(&mut PickState, &[Member], &Tried, u64) -> Option<usize>;

struct Line {
    strategy: Strategy,
    name: &'static str,
    pick: Pick,
}

#[rustfmt::skip]
static TABLE: [Line; 2] = [
    Line { strategy: Strategy::RoundRobin, name: "round_robin", pick: round_robin::pick },
    Line { strategy: Strategy::Failover, name: "failover", pick: failover::pick },
];

/// Picks a member that is usable and not yet tried; `None` when there is none.
///
/// Shape: returns an index into `members`; `chance` is one random draw.
pub fn pick(
    strategy: Strategy,
    state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    chance: u64,
) -> Option<usize> {
    let index = (TABLE[strategy as usize].pick)(state, members, tried, chance)?;
    debug_assert!(is_candidate(members, tried, index));
    Some(index)
}

/// Tells whether the member at `index` may be picked.
fn is_candidate(members: &[Member], tried: &Tried, index: usize) -> bool {
    members.get(index).is_some_and(|member| member.usable) && !tried.has(index)
}

#[cfg(test)]
mod tests {
    use super::{Strategy, *};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    #[test]
    fn every_line_stands_at_its_own_index() {
        for (i, line) in TABLE.iter().enumerate() {
            assert_eq!(line.strategy as usize, i);
            assert_eq!(Strategy::parse(line.name), Some(line.strategy));
            assert_eq!(line.strategy.name(), line.name);
        }
    }

    #[test]
    fn accepts_the_spellings_of_the_older_proxies() {
        for name in ["round_robin", "roundrobin", "round-robin", "RoundRobin"] {
            assert_eq!(Strategy::parse(name), Some(Strategy::RoundRobin));
        }
        assert_eq!(Strategy::parse("robin"), None);
    }

    #[test]
    fn members_beyond_the_bound_are_never_picked() {
        let mut members = vec![Member { usable: false, ..Member::default() }; MEMBERS_MAX];
        members.push(Member::default());
        for line in &TABLE {
            let mut state = PickState::default();
            assert_eq!(pick(line.strategy, &mut state, &members, &Tried::NONE, 0), None);
        }
    }

    #[test]
    fn remembers_every_index_within_the_bound() {
        let mut tried = Tried::NONE;
        for i in 0..MEMBERS_MAX {
            assert!(!tried.has(i));
            tried.insert(i);
            assert!(tried.has(i));
        }
        tried.insert(MEMBERS_MAX);
        assert!(tried.has(MEMBERS_MAX));
    }

    proptest! {
        // The promise of every strategy: what comes out may be used, and as long as
        // there is somebody, somebody comes out.
        #[test]
        fn picks_a_candidate_whenever_there_is_one(
            usable in proptest::collection::vec(any::<bool>(), 0..40),
            spent in proptest::collection::vec(0usize..45, 0..20),
            core in any::<usize>(), draws in proptest::collection::vec(any::<u64>(), 1..20),
        ) {
            let members: Vec<_> =
                usable.iter().map(|u| Member { usable: *u, ..Member::default() }).collect();
            let mut tried = Tried::NONE;
            spent.iter().for_each(|i| tried.insert(*i));
            let expected = (0..members.len()).any(|i| is_candidate(&members, &tried, i));
            for line in &TABLE {
                let mut state = PickState::starting_at(core);
                for draw in &draws {
                    let picked = pick(line.strategy, &mut state, &members, &tried, *draw);
                    prop_assert_eq!(picked.is_some(), expected);
                    if let Some(i) = picked {
                        prop_assert!(is_candidate(&members, &tried, i));
                    }
                }
            }
        }

        // An exchange that retries meets every usable member once and then ends.
        #[test]
        fn retries_meet_every_usable_member_once(
            usable in proptest::collection::vec(any::<bool>(), 0..40), core in 0usize..8,
        ) {
            let members: Vec<_> =
                usable.iter().map(|u| Member { usable: *u, ..Member::default() }).collect();
            for line in &TABLE {
                let mut state = PickState::starting_at(core);
                let mut tried = Tried::NONE;
                let mut met = 0;
                while let Some(i) = pick(line.strategy, &mut state, &members, &tried, 7) {
                    tried.insert(i);
                    met += 1;
                }
                prop_assert_eq!(met, usable.iter().filter(|u| **u).count());
            }
        }
    }
}
