//! Who is sent what when: one schedule, dealt to all targets in turn.
//!
//! The one idea: the schedule is cut into windows, and each window is sent to every
//! target, one after the other, in an order that turns round from window to window
//! (A B, B A; with three targets all six orders). A machine that grows slower during the
//! run is then as slow for the one as for the other. Two windows with mirrored orders
//! are a round; a drift within a round cancels, so rounds are what is resampled.
//!
//! Windows without a request are skipped when orders are counted: bursts a second apart
//! would otherwise meet the same order each time.

use crate::run::Planned;

/// The orders of two targets.
const TWO: [&[usize]; 2] = [&[0, 1], &[1, 0]];
/// The orders of three: each target is in each place twice, neighbours are mirrored.
const THREE: [&[usize]; 6] =
    [&[2, 0, 1], &[1, 0, 2], &[0, 1, 2], &[2, 1, 0], &[1, 2, 0], &[0, 2, 1]];

/// A time that belongs to one target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot {
    /// Place among the targets.
    pub(super) target: usize,
    /// From the start of the run, in microseconds.
    pub(super) from_us: u64,
    /// Exclusive.
    pub(super) to_us: u64,
}

/// A dealt schedule.
#[derive(Debug)]
pub(super) struct Deal {
    /// What each target is sent, in the order of the due times.
    pub(super) lists: Vec<Vec<Planned>>,
    /// Whose time is when; times of nobody are left out.
    pub(super) slots: Vec<Slot>,
    /// The round of each request, by its place in the schedule.
    pub(super) rounds: Vec<u32>,
    /// When the last slot ends.
    pub(super) end_us: u64,
}

/// Deals a schedule to two or three targets, from `start_us` on in windows of `block_us`.
///
/// Shape: each target gets every request once, unchanged but for its due time.
pub(super) fn deal(plan: &[Planned], targets: usize, start_us: u64, block_us: u64) -> Deal {
    let orders: &[&[usize]] = if targets == 2 { &TWO } else { &THREE };
    let block_us = block_us.max(1);
    let stride_us = block_us.saturating_mul(targets as u64);
    let mut dealt = Deal {
        lists: vec![Vec::with_capacity(plan.len()); targets],
        slots: Vec::new(),
        rounds: Vec::with_capacity(plan.len()),
        end_us: start_us,
    };
    let windows = plan.chunk_by(|one, next| one.due_us / block_us == next.due_us / block_us);
    for (at, window) in windows.enumerate() {
        let Some(number) = window.first().map(|planned| planned.due_us / block_us) else {
            continue;
        };
        let round = u32::try_from(at / 2).unwrap_or(u32::MAX);
        dealt.rounds.extend(window.iter().map(|_| round));
        let order = orders.get(at % orders.len()).copied().unwrap_or_default();
        for (place, target) in order.iter().enumerate() {
            let from_us = start_us
                .saturating_add(stride_us.saturating_mul(number))
                .saturating_add(block_us.saturating_mul(place as u64));
            let to_us = from_us.saturating_add(block_us);
            dealt.slots.push(Slot { target: *target, from_us, to_us });
            dealt.end_us = dealt.end_us.max(to_us);
            if let Some(list) = dealt.lists.get_mut(*target) {
                list.extend(window.iter().map(|planned| Planned {
                    due_us: from_us.saturating_add(planned.due_us % block_us),
                    ..planned.clone()
                }));
            }
        }
    }
    dealt
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::run::Shape;

    fn plan(dues: impl IntoIterator<Item = u64>) -> Vec<Planned> {
        let shape = Shape { model: "m".into(), stream: true, prompt_bytes: 8, tokens: None };
        dues.into_iter()
            .enumerate()
            .map(|(number, due_us)| Planned::new(&shape, 3, number as u64, due_us))
            .collect()
    }

    fn order(slots: &[Slot]) -> String {
        slots.iter().map(|slot| ['a', 'b', 'd'][slot.target]).collect()
    }

    #[test]
    fn two_targets_take_turns_as_a_b_b_a() {
        let dealt = deal(&plan([0, 10, 30, 90, 99]), 2, 1000, 25);
        assert_eq!(order(&dealt.slots), "abbaab");
        assert_eq!(dealt.rounds, [0, 0, 0, 1, 1]);
        let dues = |target: usize| -> Vec<u64> {
            dealt.lists[target].iter().map(|planned| planned.due_us).collect()
        };
        assert_eq!(dues(0), [1000, 1010, 1080, 1165, 1174]);
        assert_eq!(dues(1), [1025, 1035, 1055, 1190, 1199]);
        assert_eq!(dealt.end_us, 1200);
    }

    #[test]
    fn three_targets_are_in_each_place_equally_often() {
        let dealt = deal(&plan((0..6).map(|at| at * 10)), 3, 0, 10);
        let mut places = [[0; 3]; 3];
        for (at, slot) in dealt.slots.iter().enumerate() {
            places[slot.target][at % 3] += 1;
        }
        assert_eq!(places, [[2; 3]; 3], "{}", order(&dealt.slots));
        assert_eq!(&order(&dealt.slots)[..6], "dabbad");
    }

    proptest! {
        #[test]
        fn each_target_gets_the_same_requests_in_its_own_time(
            gaps in prop::collection::vec(0u64..400, 0..80), targets in 2usize..4, block in 1u64..300,
        ) {
            let mut due = 0;
            let whole = plan(gaps.iter().map(|gap| { due += gap; due }));
            let dealt = deal(&whole, targets, 50, block);
            prop_assert_eq!(dealt.lists.len(), targets);
            prop_assert_eq!(dealt.rounds.len(), whole.len());
            prop_assert!(dealt.slots.is_sorted_by(|one, next| one.to_us <= next.from_us));
            for (target, list) in dealt.lists.iter().enumerate() {
                prop_assert!(list.is_sorted_by_key(|planned| planned.due_us));
                prop_assert_eq!(list.len(), whole.len());
                for (mine, base) in list.iter().zip(&whole) {
                    prop_assert_eq!((mine.number, mine.seed), (base.number, base.seed));
                    let own = |slot: &&Slot| {
                        slot.target == target && (slot.from_us..slot.to_us).contains(&mine.due_us)
                    };
                    prop_assert_eq!(dealt.slots.iter().filter(own).count(), 1);
                }
            }
        }
    }
}
