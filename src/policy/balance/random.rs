//! Any of them, each as likely as the next.
//!
//! Needs no state, so cores cannot fall into step. Weights and load are not looked at.

use super::member::{Member, PickState, Tried, candidates, share_of};

/// Picks one candidate; all have the same chance.
pub(super) fn pick(
    _state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    chance: u64,
) -> Option<usize> {
    let count = candidates(members, tried).count();
    candidates(members, tried).nth(share_of(chance, count as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn every_candidate_gets_its_share() {
        let mut members = [Member { weight: 1, ..Member::default() }; 5];
        members[0].weight = 100;
        members[3].usable = false;
        let (mut rng, mut state) = (Rng::new(1), PickState::default());
        let mut counts = [0u32; 5];
        for _ in 0..8_000 {
            counts[pick(&mut state, &members, &Tried::NONE, rng.next_u64()).unwrap()] += 1;
        }
        assert_eq!(counts[3], 0);
        for at in [0, 1, 2, 4] {
            assert!((1_850..2_150).contains(&counts[at]), "{counts:?}");
        }
    }
}
