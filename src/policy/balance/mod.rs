//! Choosing one member of a group for one attempt.
//!
//! A strategy is one function over a slice: it sees every member with its weight, its
//! load and whether it may be used, the set of members already tried in this
//! exchange, a state of its own per core and group, and one random draw. It returns an index.
//! What is shared between cores (in-flight counts, breakers) has been read into the
//! slice before; a strategy therefore never touches an atomic and can be tested with numbers.
//!
//! A new strategy is one file, one variant and one line in `pick`.

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
    /// Every strategy, for tests that try them all.
    pub const ALL: [Strategy; 8] = [
        Strategy::RoundRobin,
        Strategy::WeightedRoundRobin,
        Strategy::Random,
        Strategy::WeightedRandom,
        Strategy::LeastConn,
        Strategy::Failover,
        Strategy::ResponseAware,
        Strategy::P2cEwma,
    ];

    /// Tells whether it looks at response times and successes: reading them costs.
    pub fn reads_measures(self) -> bool {
        matches!(self, Strategy::ResponseAware | Strategy::P2cEwma)
    }
}

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
    let index = match strategy {
        Strategy::RoundRobin => round_robin::pick(state, members, tried, chance),
        Strategy::WeightedRoundRobin => weighted_round_robin::pick(state, members, tried, chance),
        Strategy::Random => random::pick(state, members, tried, chance),
        Strategy::WeightedRandom => weighted_random::pick(state, members, tried, chance),
        Strategy::LeastConn => least_conn::pick(state, members, tried, chance),
        Strategy::Failover => failover::pick(state, members, tried, chance),
        Strategy::ResponseAware => response_aware::pick(state, members, tried, chance),
        Strategy::P2cEwma => p2c_ewma::pick(state, members, tried, chance),
    }?;
    debug_assert!(is_candidate(members, tried, index));
    Some(index)
}

#[cfg(test)]
mod tests {
    use super::member::MEMBERS_MAX;
    use super::{Strategy, *};
    use proptest::prelude::{Strategy as PropStrategy, any, prop_assert, prop_assert_eq, proptest};

    #[test]
    fn members_beyond_the_bound_are_never_picked() {
        let mut members = vec![Member { usable: false, ..Member::default() }; MEMBERS_MAX];
        members.push(Member::default());
        for strategy in Strategy::ALL {
            let mut state = PickState::default();
            assert_eq!(pick(strategy, &mut state, &members, &Tried::NONE, 0), None);
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
            for strategy in Strategy::ALL {
                let mut state = PickState::starting_at(core);
                for draw in &draws {
                    let picked = pick(strategy, &mut state, &members, &tried, *draw);
                    prop_assert_eq!(picked.is_some(), expected, "{:?}", strategy);
                    if let Some(i) = picked {
                        prop_assert!(is_candidate(&members, &tried, i), "{:?}", strategy);
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
            for strategy in Strategy::ALL {
                let mut state = PickState::starting_at(core);
                let mut tried = Tried::NONE;
                let mut met = 0;
                while let Some(i) = pick(strategy, &mut state, &members, &tried, draw) {
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
            for strategy in Strategy::ALL.into_iter().filter(|strategy| *strategy != Strategy::Failover) {
                let mut state = PickState::starting_at(core);
                let mut rng = crate::base::rng::Rng::new(seed);
                let mut counts = vec![0usize; count];
                for _ in 0..400 * count {
                    let draw = rng.next_u64();
                    let index = pick(strategy, &mut state, &members, &Tried::NONE, draw);
                    counts[index.unwrap()] += 1;
                }
                let even = counts.iter().all(|n| (280..=520).contains(n));
                prop_assert!(even, "{:?} {:?}", strategy, counts);
            }
        }
    }
}
