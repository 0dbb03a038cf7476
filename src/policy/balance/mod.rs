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
mod least_conn;
mod member;
mod p2c_ewma;
mod random;
mod response_aware;
mod round_robin;
mod weighted_random;
mod weighted_round_robin;

pub use member::{Member, PickState, Tried};

use member::is_candidate;

/// How a group chooses among its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Strategy {
    /// One after the other.
    RoundRobin,
    /// One after the other, in proportion to the weights.
    WeightedRoundRobin,
    /// Any.
    Random,
    /// Any, in proportion to the weights.
    WeightedRandom,
    /// The fewest in flight, by weight.
    LeastConn,
    /// The first that is usable, in declared order.
    Failover,
    /// The lowest product of response time and load over success, by weight.
    ResponseAware,
    /// The better of two at random, by peak response time and load.
    P2cEwma,
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

    /// Tells whether it looks at response times and successes: reading them costs.
    pub fn reads_measures(self) -> bool {
        matches!(self, Strategy::ResponseAware | Strategy::P2cEwma)
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
static TABLE: [Line; 8] = [
    Line { strategy: Strategy::RoundRobin, name: "round_robin", pick: round_robin::pick },
    Line { strategy: Strategy::WeightedRoundRobin, name: "weighted_round_robin", pick: weighted_round_robin::pick },
    Line { strategy: Strategy::Random, name: "random", pick: random::pick },
    Line { strategy: Strategy::WeightedRandom, name: "weighted_random", pick: weighted_random::pick },
    Line { strategy: Strategy::LeastConn, name: "least_conn", pick: least_conn::pick },
    Line { strategy: Strategy::Failover, name: "failover", pick: failover::pick },
    Line { strategy: Strategy::ResponseAware, name: "response_aware", pick: response_aware::pick },
    Line { strategy: Strategy::P2cEwma, name: "p2c_ewma", pick: p2c_ewma::pick },
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

#[cfg(test)]
mod tests {
    use super::member::MEMBERS_MAX;
    use super::{Strategy, *};
    use proptest::prelude::{Strategy as PropStrategy, any, prop_assert, prop_assert_eq, proptest};

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
        for (name, strategy) in [
            ("round_robin", Strategy::RoundRobin),
            ("roundrobin", Strategy::RoundRobin),
            ("round-robin", Strategy::RoundRobin),
            ("RoundRobin", Strategy::RoundRobin),
            ("weightedroundrobin", Strategy::WeightedRoundRobin),
            ("weightedrandom", Strategy::WeightedRandom),
            ("leastconn", Strategy::LeastConn),
            ("least-conn", Strategy::LeastConn),
            ("responseaware", Strategy::ResponseAware),
            ("p2cewma", Strategy::P2cEwma),
        ] {
            assert_eq!(Strategy::parse(name), Some(strategy), "{name}");
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

    fn a_member() -> impl PropStrategy<Value = Member> {
        (any::<bool>(), 1u32..=65_535, 0u32..50, any::<u32>(), 0.0f32..=1.0, any::<u32>()).prop_map(
            |(usable, weight, in_flight, rt_us, success, peak_us)| Member {
                weight,
                in_flight,
                rt_us,
                success,
                peak_us,
                usable,
            },
        )
    }

    proptest! {
        // The promise of every strategy: what comes out may be used, and as long as
        // there is somebody, somebody comes out.
        #[test]
        fn picks_a_candidate_whenever_there_is_one(
            members in proptest::collection::vec(a_member(), 0..40),
            spent in proptest::collection::vec(0usize..45, 0..20),
            core in any::<usize>(), draws in proptest::collection::vec(any::<u64>(), 1..20),
        ) {
            let mut tried = Tried::NONE;
            spent.iter().for_each(|i| tried.insert(*i));
            let expected = (0..members.len()).any(|i| is_candidate(&members, &tried, i));
            for line in &TABLE {
                let mut state = PickState::starting_at(core);
                for draw in &draws {
                    let picked = pick(line.strategy, &mut state, &members, &tried, *draw);
                    prop_assert_eq!(picked.is_some(), expected, "{}", line.name);
                    if let Some(i) = picked {
                        prop_assert!(is_candidate(&members, &tried, i), "{}", line.name);
                    }
                }
            }
        }

        // An exchange that retries meets every usable member once and then ends.
        #[test]
        fn retries_meet_every_usable_member_once(
            members in proptest::collection::vec(a_member(), 0..40), core in 0usize..8,
            draw in any::<u64>(),
        ) {
            for line in &TABLE {
                let mut state = PickState::starting_at(core);
                let mut tried = Tried::NONE;
                let mut met = 0;
                while let Some(i) = pick(line.strategy, &mut state, &members, &tried, draw) {
                    tried.insert(i);
                    met += 1;
                }
                prop_assert_eq!(met, members.iter().filter(|m| m.usable).count());
            }
        }

        // With nothing to tell the members apart, all but the first in order share evenly.
        #[test]
        fn equal_members_share_evenly(count in 1usize..8, core in 0usize..8, seed in any::<u64>()) {
            let members = vec![Member::default(); count];
            for line in TABLE.iter().filter(|line| line.strategy != Strategy::Failover) {
                let mut state = PickState::starting_at(core);
                let mut rng = crate::base::rng::Rng::new(seed);
                let mut counts = vec![0usize; count];
                for _ in 0..400 * count {
                    let draw = rng.next_u64();
                    let index = pick(line.strategy, &mut state, &members, &Tried::NONE, draw);
                    counts[index.unwrap()] += 1;
                }
                let even = counts.iter().all(|n| (280..=520).contains(n));
                prop_assert!(even, "{} {:?}", line.name, counts);
            }
        }
    }
}
