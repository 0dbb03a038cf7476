//! One after the other.
//!
//! The cursor moves to the member after the one picked, not by one per call: who
//! moves by one gives the turns of a dead member to its right neighbour, which then
//! carries twice its share. Weights are not looked at.

use super::member::{Member, PickState, Tried, is_candidate};

/// Picks the first candidate at or after the cursor, wrapping around once.
pub(super) fn pick(
    state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    _chance: u64,
) -> Option<usize> {
    let count = members.len();
    // Members may have gone since the last pick.
    let start = state.cursor.checked_rem(count)?;
    let index =
        (start..count).chain(0..start).find(|index| is_candidate(members, tried, *index))?;
    state.cursor = index + 1;
    Some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(usable: &[bool], core: usize, picks: usize) -> Vec<usize> {
        let members: Vec<_> =
            usable.iter().map(|u| Member { usable: *u, ..Member::default() }).collect();
        let mut state = PickState::starting_at(core);
        (0..picks).filter_map(|_| pick(&mut state, &members, &Tried::NONE, 0)).collect()
    }

    #[test]
    fn goes_around() {
        assert_eq!(run(&[true; 3], 0, 4), [0, 1, 2, 0]);
    }

    #[test]
    fn begins_elsewhere_on_another_core() {
        assert_eq!(run(&[true; 3], 4, 4), [1, 2, 0, 1]);
    }

    #[test]
    fn a_dead_member_does_not_double_its_neighbour() {
        assert_eq!(run(&[true, false, true, true], 0, 6), [0, 2, 3, 0, 2, 3]);
    }

    #[test]
    fn survives_a_group_that_shrank() {
        let mut state = PickState::starting_at(9);
        assert_eq!(pick(&mut state, &[Member::default(); 2], &Tried::NONE, 0), Some(1));
        assert_eq!(pick(&mut state, &[], &Tried::NONE, 0), None);
    }

    #[test]
    fn shares_evenly_when_every_first_attempt_on_one_member_fails() {
        let members = [Member::default(); 4];
        let mut state = PickState::default();
        let mut served = [0u32; 4];
        for _ in 0..300 {
            let mut tried = Tried::NONE;
            let mut index = pick(&mut state, &members, &tried, 0).unwrap();
            if index == 0 {
                tried.insert(0);
                index = pick(&mut state, &members, &tried, 0).unwrap();
            }
            served[index] += 1;
        }
        assert_eq!(served, [0, 100, 100, 100]);
    }

    proptest! {
        #[test]
        fn usable_members_differ_by_one_pick_at_most(
            usable in proptest::collection::vec(any::<bool>(), 1..20),
            core in 0usize..40, picks in 0usize..200,
        ) {
            let mut counts = vec![0usize; usable.len()];
            run(&usable, core, picks).into_iter().for_each(|i| counts[i] += 1);
            let shares = || counts.iter().zip(&usable).filter(|(_, u)| **u).map(|(n, _)| *n);
            if let (Some(low), Some(high)) = (shares().min(), shares().max()) {
                prop_assert!(high - low <= 1, "{:?}", counts);
            }
        }
    }
}
