//! Any of them, in proportion to the weights.
//!
//! A number is drawn below the sum of the candidates' weights and the list is walked until it
//! is used up. Load is not looked at.

use super::member::{Member, PickState, Tried, candidates, share_of};

/// Picks one candidate; the chance of each is its weight.
pub(super) fn pick(
    _state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    chance: u64,
) -> Option<usize> {
    let weight = |index: &usize| u64::from(members[*index].weight.max(1));
    let sum: u64 = candidates(members, tried).map(|index| weight(&index)).sum();
    let mut left = share_of(chance, sum);
    candidates(members, tried).find(|index| match left.checked_sub(weight(index)) {
        Some(rest) => {
            left = rest;
            false
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn shares_follow_the_weights() {
        let mut members = [1, 2, 3, 4].map(|weight| Member { weight, ..Member::default() });
        members[3].usable = false;
        let (mut rng, mut state) = (Rng::new(2), PickState::default());
        let mut counts = [0u32; 4];
        for _ in 0..12_000 {
            counts[pick(&mut state, &members, &Tried::NONE, rng.next_u64()).unwrap()] += 1;
        }
        assert_eq!(counts[3], 0);
        for (count, expected) in counts.iter().zip([2_000, 4_000, 6_000]) {
            assert!(count.abs_diff(expected) < 200, "{counts:?}");
        }
    }

    #[test]
    fn the_ends_of_the_draw_are_the_ends_of_the_list() {
        let members = [65_535, 1, 65_535].map(|weight| Member { weight, ..Member::default() });
        let mut state = PickState::default();
        assert_eq!(pick(&mut state, &members, &Tried::NONE, 0), Some(0));
        assert_eq!(pick(&mut state, &members, &Tried::NONE, u64::MAX), Some(2));
    }
}
