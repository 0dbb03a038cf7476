//! The first that is usable, in declared order.
//!
//! Everything goes to the first member until it cannot be used; it gets everything
//! back as soon as it can. Weights and load are not looked at.

use super::member::{Member, PickState, Tried, is_candidate};

/// Picks the first candidate.
pub(super) fn pick(
    _state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    _chance: u64,
) -> Option<usize> {
    (0..members.len()).find(|index| is_candidate(members, tried, *index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_with_the_first_and_returns_to_it() {
        let mut members = [Member::default(); 3];
        let mut state = PickState::default();
        let mut next = |members: &[Member]| pick(&mut state, members, &Tried::NONE, 0);
        assert_eq!((next(&members), next(&members)), (Some(0), Some(0)));
        members[0].usable = false;
        assert_eq!(next(&members), Some(1));
        members[0].usable = true;
        assert_eq!(next(&members), Some(0));
    }

    #[test]
    fn a_retry_goes_to_the_next() {
        let mut tried = Tried::NONE;
        tried.insert(0);
        let members = [Member::default(); 2];
        assert_eq!(pick(&mut PickState::default(), &members, &tried, 0), Some(1));
        tried.insert(1);
        assert_eq!(pick(&mut PickState::default(), &members, &tried, 0), None);
    }
}
