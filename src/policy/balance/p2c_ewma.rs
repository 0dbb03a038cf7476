//! Two at random, the better one.
//!
//! Looking at two is nearly as even as looking at all and keeps many proxies from running to
//! the same best server at once (Mitzenmacher, "The Power of Two Choices", 2001). What
//! is compared is peak × (in_flight + 1) / (success × weight): `peak` jumps up with the first
//! slow answer and comes down with time, after Finagle's and Linkerd's peak EWMA, so
//! that a server that stalls is left alone at once.
//!
//! A member of which nothing is known yet is taken when it is idle, to learn; while its
//! first answers are out it counts as slow, or everybody would wait there together.
//! The weight moves the comparison, not the draw.

use super::member::{Member, PickState, Tried, candidates, share_of, success_of};

/// Picks the better of two candidates, each pair as likely as the next.
pub(super) fn pick(
    _state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    chance: u64,
) -> Option<usize> {
    let count = candidates(members, tried).count() as u64;
    let one = share_of(chance, count);
    // The low half of the draw, moved up; the pair never holds one member twice.
    let other = share_of(chance << 32, count.saturating_sub(1));
    let other = if other >= one { other + 1 } else { other };
    let nth = |n: u64| candidates(members, tried).nth(n as usize);
    let one = nth(one)?;
    let Some(other) = nth(other) else { return Some(one) };
    Some(if cost(&members[other]) < cost(&members[one]) { other } else { one })
}

fn cost(member: &Member) -> f64 {
    let peak = match (member.peak_us, member.in_flight) {
        (0, 0) => 0.0,
        (0, _) => f64::from(UNKNOWN_US),
        (peak, _) => f64::from(peak),
    };
    peak * (f64::from(member.in_flight) + 1.0)
        / (success_of(member) * f64::from(member.weight.max(1)))
}

/// What a member counts as between its first exchange and its first answer.
const UNKNOWN_US: u32 = 2_000_000;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    fn member(peak_us: u32, in_flight: u32) -> Member {
        Member { peak_us, in_flight, ..Member::default() }
    }

    fn counts<const N: usize>(members: &[Member; N], picks: u32) -> [u32; N] {
        let (mut rng, mut state) = (Rng::new(5), PickState::default());
        let mut counts = [0; N];
        for _ in 0..picks {
            counts[pick(&mut state, members, &Tried::NONE, rng.next_u64()).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn the_worst_of_many_is_never_picked() {
        assert_eq!(counts(&[member(500, 0), member(100, 0), member(100, 0)], 1_000)[0], 0);
        assert_eq!(counts(&[member(100, 9), member(100, 0), member(100, 0)], 1_000)[0], 0);
    }

    #[test]
    fn equals_share_evenly() {
        for count in counts(&[member(100, 0); 4], 8_000) {
            assert!((1_800..2_200).contains(&count), "{count}");
        }
    }

    #[test]
    fn with_two_members_both_are_looked_at() {
        assert_eq!(counts(&[member(100, 1), member(100, 0)], 1_000), [0, 1_000]);
    }

    #[test]
    fn an_idle_stranger_is_tried_and_then_left_to_answer() {
        assert_eq!(counts(&[member(0, 0), member(100, 0)], 100), [100, 0]);
        assert_eq!(counts(&[member(0, 1), member(100, 20)], 100), [0, 100]);
    }

    #[test]
    fn weight_and_success_move_the_comparison() {
        let heavy = Member { weight: 4, ..member(100, 2) };
        assert_eq!(counts(&[heavy, member(100, 0)], 100), [100, 0]);
        let failing = Member { success: 0.2, ..member(100, 0) };
        assert_eq!(counts(&[failing, member(100, 3)], 100), [0, 100]);
    }
}
