//! One after the other, in proportion to the weights, and spread out.
//!
//! Each candidate earns its weight with every pick; the richest is picked and pays what all
//! have earned together. Over as many picks as the sum of the weights everybody comes up
//! exactly as often as his weight says, and never in one clump: 5, 1, 1 gives `a a b a c a a`.
//! The way is nginx's smooth weighted round robin. Load is not looked at.

use super::member::{Member, PickState, Tried, candidates};

/// Picks the candidate that has earned most; ties go to the first at or after the core's own
/// place, so that cores with equal weights do not begin together.
pub(super) fn pick(
    state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    _chance: u64,
) -> Option<usize> {
    let count = members.len();
    let start = state.cursor.checked_rem(count)?;
    // Members came or went: what was earned belongs to others now.
    if state.earned.len() != count {
        state.earned.clear();
        state.earned.resize(count, 0);
    }
    // Nobody can own or owe two rounds; what is beyond comes from older weights.
    let bound: i64 = members.iter().map(|member| i64::from(member.weight)).sum();
    let mut paid = 0;
    let mut best: Option<(usize, i64)> = None;
    for index in candidates(members, tried) {
        let weight = i64::from(members[index].weight);
        let earned = match state.earned[index] + weight {
            old if old.abs() > 2 * bound => old.clamp(-bound, bound),
            earned => earned,
        };
        state.earned[index] = earned;
        paid += weight;
        let place = |index: usize| (index + count - start) % count;
        let better = best.is_none_or(|(other, most)| {
            earned > most || (earned == most && place(index) < place(other))
        });
        if better {
            best = Some((index, earned));
        }
    }
    let (index, _) = best?;
    state.earned[index] -= paid;
    Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn members(weights: &[u32]) -> Vec<Member> {
        weights.iter().map(|weight| Member { weight: *weight, ..Member::default() }).collect()
    }

    fn run(state: &mut PickState, members: &[Member], picks: usize) -> Vec<usize> {
        (0..picks).filter_map(|_| pick(state, members, &Tried::NONE, 0)).collect()
    }

    fn counts(picked: &[usize], members: usize) -> Vec<usize> {
        (0..members).map(|at| picked.iter().filter(|index| **index == at).count()).collect()
    }

    #[test]
    fn one_two_three_over_twelve_is_two_four_six() {
        let members = members(&[1, 2, 3]);
        let picked = run(&mut PickState::default(), &members, 12);
        assert_eq!(counts(&picked, 3), [2, 4, 6]);
    }

    #[test]
    fn a_tie_that_another_core_breaks_otherwise_costs_nobody_a_turn() {
        let members = members(&[1, 1, 32, 2]);
        let picked = run(&mut PickState::starting_at(3), &members, 36);
        assert_eq!(counts(&picked, 4), [1, 1, 32, 2]);
    }

    #[test]
    fn spreads_the_heavy_one_out() {
        let picked = run(&mut PickState::default(), &members(&[5, 1, 1]), 7);
        assert_eq!(picked, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn equal_weights_begin_elsewhere_on_another_core() {
        let members = members(&[1, 1, 1]);
        assert_eq!(run(&mut PickState::starting_at(1), &members, 4), [1, 2, 0, 1]);
        assert_eq!(run(&mut PickState::starting_at(5), &members, 3), [2, 0, 1]);
    }

    #[test]
    fn the_rest_share_what_a_dead_member_leaves() {
        let mut members = members(&[3, 2, 1]);
        members[0].usable = false;
        let picked = run(&mut PickState::default(), &members, 9);
        assert_eq!(counts(&picked, 3), [0, 6, 3]);
    }

    #[test]
    fn smaller_weights_after_a_reload_take_effect_at_once() {
        let mut state = PickState::default();
        run(&mut state, &members(&[65_535, 1]), 40_000);
        let picked = run(&mut state, &members(&[1, 1]), 20);
        assert!((9..=11).contains(&counts(&picked, 2)[0]), "{picked:?}");
    }

    #[test]
    fn survives_a_group_that_shrank() {
        let mut state = PickState::starting_at(9);
        run(&mut state, &members(&[1, 2, 3]), 5);
        assert_eq!(counts(&run(&mut state, &members(&[1, 1]), 6), 2), [3, 3]);
        assert_eq!(pick(&mut state, &[], &Tried::NONE, 0), None);
    }

    proptest! {
        #[test]
        fn each_gets_exactly_its_weight_per_round(
            weights in proptest::collection::vec(1u32..50, 1..12), core in 0usize..8,
            rounds in 1usize..4,
        ) {
            let members = members(&weights);
            let sum: u32 = weights.iter().sum();
            let mut state = PickState::starting_at(core);
            let picked = run(&mut state, &members, sum as usize * rounds);
            let expected: Vec<usize> = weights.iter().map(|w| *w as usize * rounds).collect();
            prop_assert_eq!(counts(&picked, weights.len()), expected);
        }

        // Members that come and go earn no treasure meanwhile.
        #[test]
        fn nobody_owns_or_owes_more_than_two_rounds(
            weights in proptest::collection::vec(1u32..100, 1..10),
            changes in proptest::collection::vec(any::<u16>(), 1..60),
        ) {
            let mut members = members(&weights);
            let bound: i64 = weights.iter().map(|w| i64::from(*w)).sum();
            let mut state = PickState::default();
            for bits in changes {
                for (at, member) in members.iter_mut().enumerate() {
                    member.usable = bits >> at & 1 == 1;
                }
                pick(&mut state, &members, &Tried::NONE, 0);
                prop_assert!(state.earned.iter().all(|e| e.abs() <= 2 * bound), "{:?}", state);
            }
        }
    }
}
