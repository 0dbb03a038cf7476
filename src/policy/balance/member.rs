//! What every strategy works with: the members as numbers, those tried already, and what it
//! remembers between picks.

use crate::policy::ewma::{RESPONSE_TIME_START_US, success_within};

/// Most members a group may have; those beyond are never picked.
pub const MEMBERS_MAX: usize = 256;

/// What a strategy may know of one member.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// Share relative to the other members, 1..=65535.
    pub weight: u32,
    /// Exchanges in flight on it, over all cores.
    pub in_flight: u32,
    /// Smoothed time to a response head in microseconds, of successes only.
    pub rt_us: u32,
    /// Smoothed share of successes, 0.01..=1.0.
    pub success: f32,
    /// Peak-sensitive time to a response head in microseconds, 0 = nothing known.
    pub peak_us: u32,
    /// Enabled, healthy, breaker not open and below its concurrency.
    pub usable: bool,
}

impl Default for Member {
    fn default() -> Member {
        Member {
            weight: 1,
            in_flight: 0,
            rt_us: RESPONSE_TIME_START_US,
            success: 1.0,
            peak_us: 0,
            usable: true,
        }
    }
}

/// The members that this exchange has tried already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    bits: [u64; MEMBERS_MAX / 64],
}

impl Tried {
    /// The set in which nobody is.
    pub const NONE: Tried = Tried { bits: [0; MEMBERS_MAX / 64] };

    /// Adds a member. Indexes from `MEMBERS_MAX` on are in the set from the start.
    pub fn insert(&mut self, index: usize) {
        if let Some(word) = self.bits.get_mut(index / 64) {
            *word |= 1 << (index % 64);
        }
    }

    /// Tells whether a member is in the set.
    pub fn has(&self, index: usize) -> bool {
        // What cannot be remembered must not be picked, or a retry could go in circles.
        self.bits.get(index / 64).is_none_or(|word| word >> (index % 64) & 1 == 1)
    }
}

/// What a strategy remembers between picks, per core and group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PickState {
    /// The member that is looked at first: by `round_robin`, and where costs are equal.
    pub(super) cursor: usize,
    /// What `weighted_round_robin` owes each member; grows once to the size of the group.
    pub(super) earned: Vec<i64>,
}

impl PickState {
    /// Begins at another member on every core, or all cores would send their first
    /// exchanges to the same one.
    pub fn starting_at(core: usize) -> PickState {
        PickState { cursor: core, earned: Vec::new() }
    }
}

/// Tells whether the member at `index` may be picked.
pub(super) fn is_candidate(members: &[Member], tried: &Tried, index: usize) -> bool {
    members.get(index).is_some_and(|member| member.usable) && !tried.has(index)
}

/// Lists the members that may be picked, in declared order.
pub(super) fn candidates<'a>(
    members: &'a [Member],
    tried: &'a Tried,
) -> impl Iterator<Item = usize> + 'a {
    let usable = |(index, member): (usize, &Member)| member.usable.then_some(index);
    members.iter().enumerate().filter_map(usable).filter(|index| !tried.has(*index))
}

/// Picks the candidate of the lowest cost; among equals the first at or after the cursor,
/// which then moves on.
pub(super) fn lowest(
    state: &mut PickState,
    members: &[Member],
    tried: &Tried,
    cost: impl Fn(&Member) -> f64,
) -> Option<usize> {
    let start = state.cursor.checked_rem(members.len())?;
    let (before, from) = members.split_at(start);
    let rotated = from.iter().chain(before).zip((start..members.len()).chain(0..start));
    let mut best: Option<(usize, f64)> = None;
    for (member, index) in rotated {
        if member.usable && !tried.has(index) {
            let cost = cost(member);
            if best.is_none_or(|(_, least)| cost < least) {
                best = Some((index, cost));
            }
        }
    }
    let (index, _) = best?;
    state.cursor = index + 1;
    Some(index)
}

/// Turns a draw into a number in `0..n`, and into 0 when `n` is 0.
pub(super) fn share_of(chance: u64, n: u64) -> u64 {
    ((u128::from(chance) * u128::from(n)) >> 64) as u64
}

/// Returns a member's success within its bounds, whatever was put there.
pub(super) fn success_of(member: &Member) -> f64 {
    f64::from(success_within(member.success))
}
