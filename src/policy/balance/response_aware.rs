//! The one that answers soonest, by what it has shown: time, load and success together.
//!
//! Score = rt × (in_flight + 1) / (success × weight), the lowest wins, ties rotate. `rt` is
//! learnt from successes only: a failure that comes back at once would otherwise be the
//! fastest answer of all and draw the whole traffic to the broken server. Each failure
//! lowers `success` instead, down to a hundredth, but never to nothing: a server that has
//! recovered must be able to show it.

use super::member::{Member, PickState, Tried, lowest, success_of};

/// Picks the candidate of the lowest score.
pub(super) fn pick(
    state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    _chance: u64,
) -> Option<usize> {
    lowest(state, members, tried, |member| {
        // A time of zero would win under any load.
        let rt = f64::from(member.rt_us.max(1));
        rt * (f64::from(member.in_flight) + 1.0)
            / (success_of(member) * f64::from(member.weight.max(1)))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::base::clock::Moment;
    use crate::policy::ewma::Measures;

    fn first(members: &[Member]) -> Option<usize> {
        pick(&mut PickState::default(), members, &Tried::NONE, 0)
    }

    fn member(rt_us: u32, in_flight: u32, success: f32) -> Member {
        Member { rt_us, in_flight, success, ..Member::default() }
    }

    #[test]
    fn each_part_of_the_score_counts() {
        assert_eq!(first(&[member(200, 0, 1.0), member(100, 0, 1.0)]), Some(1));
        assert_eq!(first(&[member(100, 2, 1.0), member(100, 1, 1.0)]), Some(1));
        assert_eq!(first(&[member(100, 0, 0.5), member(100, 0, 1.0)]), Some(1));
        assert_eq!(first(&[member(100, 0, 0.5), member(300, 0, 1.0)]), Some(0));
        let heavy = Member { weight: 8, ..member(100, 3, 1.0) };
        assert_eq!(first(&[member(100, 0, 1.0), heavy]), Some(1));
    }

    #[test]
    fn ties_rotate() {
        let members = [member(100, 0, 1.0); 3];
        let mut state = PickState::default();
        let picked: Vec<_> =
            (0..6).filter_map(|_| pick(&mut state, &members, &Tried::NONE, 0)).collect();
        assert_eq!(picked, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn values_that_make_no_sense_pick_somebody_all_the_same() {
        let odd = [
            member(0, 0, f32::NAN),
            member(0, u32::MAX, -1.0),
            Member { weight: 0, ..member(u32::MAX, 0, 0.0) },
        ];
        assert!(first(&odd).is_some());
    }

    // The failing server answers in no time and holds nothing, which is all that a plain
    // least-connections or fastest-first balancer looks at.
    #[test]
    fn fast_failures_do_not_attract_traffic() {
        let measures = [Measures::new(), Measures::new(), Measures::new()];
        let mut in_flight = [0u32; 3];
        let mut state = PickState::default();
        let mut failed = 0;
        for round in 0..2_000u64 {
            let now = Moment::from_millis(10 * round);
            let members: Vec<Member> = (0..3)
                .map(|at| {
                    let read = measures[at].read(now);
                    member(read.rt_us, in_flight[at], read.success)
                })
                .collect();
            let index = pick(&mut state, &members, &Tried::NONE, 0).unwrap();
            if index == 0 {
                measures[0].record_failure(Duration::from_micros(500), now);
                failed += 1;
            } else {
                in_flight[index] += 1;
                if round % 2 == 0 {
                    measures[index].record_success(Duration::from_millis(50), now);
                }
                // Each holds a few, as servers of streams do.
                in_flight[index] = in_flight[index].min(8);
            }
        }
        assert!(failed < 60, "{failed} of 2000 went to the server that fails");
    }
}
