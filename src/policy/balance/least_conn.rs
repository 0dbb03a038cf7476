//! The one with the fewest exchanges in flight, by weight.
//!
//! Cost = (in_flight + 1) / weight, the lowest wins. The one more is the exchange that is
//! being placed: without it every idle member would cost nothing whatever its weight. Ties
//! rotate, or the first member would get all the traffic of a quiet hour.
//!
//! A server that fails at once has nothing in flight and looks best. This strategy does not
//! see failures: taking such a server away is the breaker's work, within its thresholds.

use super::member::{Member, PickState, Tried, lowest};

/// Picks the candidate of the lowest cost.
pub(super) fn pick(
    state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    _chance: u64,
) -> Option<usize> {
    lowest(state, members, tried, |member| {
        (f64::from(member.in_flight) + 1.0) / f64::from(member.weight.max(1))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded<const N: usize>(loads: [(u32, u32); N]) -> [Member; N] {
        loads.map(|(in_flight, weight)| Member { in_flight, weight, ..Member::default() })
    }

    #[test]
    fn picks_the_least_loaded() {
        let members = loaded([(3, 1), (1, 1), (2, 1)]);
        assert_eq!(pick(&mut PickState::default(), &members, &Tried::NONE, 0), Some(1));
    }

    #[test]
    fn ties_rotate() {
        let members = loaded([(1, 1), (0, 1), (0, 1), (0, 1)]);
        let mut state = PickState::default();
        let picked: Vec<_> =
            (0..6).filter_map(|_| pick(&mut state, &members, &Tried::NONE, 0)).collect();
        assert_eq!(picked, [1, 2, 3, 1, 2, 3]);
    }

    #[test]
    fn equal_costs_of_different_weights_are_a_tie() {
        let members = loaded([(0, 1), (1, 2), (2, 3)]);
        let mut state = PickState::default();
        let picked: Vec<_> =
            (0..3).filter_map(|_| pick(&mut state, &members, &Tried::NONE, 0)).collect();
        assert_eq!(picked, [0, 1, 2]);
    }

    #[test]
    fn what_is_in_flight_follows_the_weights() {
        let mut members = loaded([(0, 1), (0, 2), (0, 5)]);
        let mut state = PickState::default();
        for _ in 0..80 {
            let index = pick(&mut state, &members, &Tried::NONE, 0).unwrap();
            members[index].in_flight += 1;
        }
        assert_eq!(members.map(|m| m.in_flight), [10, 20, 50]);
    }

    #[test]
    fn a_full_counter_does_not_wrap_to_the_best() {
        let members = loaded([(u32::MAX, 1), (5, 1)]);
        assert_eq!(pick(&mut PickState::default(), &members, &Tried::NONE, 0), Some(1));
    }
}
