//! The station between a route and an attempt: one member of the group, and the right to call it.
//!
//! A candidate is enabled, wanted by the route, healthy, let in by its breaker, below its
//! concurrency and not yet tried in this exchange. One that asked for rest (`Retry-After`) is
//! taken only when nobody else is left: it knows best, but some answer is better than none. The
//! balancer chooses from a view of plain numbers; what the view promises is then taken by
//! compare-and-swap, and whoever was slower picks again.

use super::core::Core;
use super::judge::Judge;
use super::plan::{Plan, UpstreamPlan};
use super::reply::Refusal;
use crate::error::Kind;
use crate::policy::balance::{self, Member, Tried};
use crate::upstream::state::Lease;

/// Longest wait that a refusal names, in seconds.
const RETRY_AFTER_MAX_S: u64 = 3600;

/// Who is to be picked from.
#[derive(Clone, Copy)]
pub struct Choice<'a> {
    /// The group.
    pub group: u16,
    /// The one upstream that must take it.
    pub forced: Option<u16>,
    /// Members that this exchange has tried.
    pub tried: &'a Tried,
}

/// One member, and the right to call it.
pub struct Picked<'p> {
    /// Its place in the group.
    pub member: usize,
    /// The upstream.
    pub upstream: &'p UpstreamPlan,
    /// Counts the attempt in flight.
    pub lease: Lease<'p>,
    /// Let in by the breaker.
    pub judge: Judge<'p>,
}

/// Picks a member; `None` when there is no candidate.
///
/// Units: `elapsed_us` is how far into the exchange this is.
pub fn pick<'p>(
    core: &'p Core,
    plan: &'p Plan,
    choice: Choice<'_>,
    members: &mut Vec<Member>,
    elapsed_us: u64,
) -> Option<Picked<'p>> {
    let group = &plan.groups[usize::from(choice.group)];
    view(core, plan, choice, members);
    loop {
        let member = core.with_pick_state(usize::from(choice.group), |state| {
            balance::pick(group.strategy, state, members, choice.tried, core.chance())
        })?;
        let upstream = &plan.upstreams[usize::from(group.members[member].0)];
        if let Some(lease) = upstream.state.try_lease()
            && let Some(judge) = Judge::enter(core, &upstream.state, elapsed_us)
        {
            return Some(Picked { member, upstream, lease, judge });
        }
        members[member].usable = false;
    }
}

/// Whether the last view holds somebody whom the exchange has not tried.
#[must_use]
pub fn another(members: &[Member], tried: &Tried) -> bool {
    members.iter().enumerate().any(|(at, member)| member.usable && !tried.has(at))
}

/// Says that nobody is left, and when somebody may be back.
#[must_use]
pub fn nobody_available(core: &Core, plan: &Plan, choice: Choice<'_>) -> Refusal {
    let group = &plan.groups[usize::from(choice.group)];
    let now_ms = core.now_ms();
    let nearest_ms = group
        .members
        .iter()
        .filter(|(upstream, _)| choice.forced.is_none_or(|forced| forced == *upstream))
        .filter_map(|(upstream, _)| {
            let upstream = &plan.upstreams[usize::from(*upstream)];
            let waits = upstream.enabled && upstream.state.healthy();
            let until = waits.then(|| upstream.state.breaker.next_admission_ms(now_ms))??;
            Some(until.saturating_sub(now_ms))
        })
        .min();
    let seconds = nearest_ms.map_or(1, |ms| ms.div_ceil(1000).clamp(1, RETRY_AFTER_MAX_S));
    let message = format!("No upstream of group '{}' is available.", group.name);
    let refusal = Refusal::because(Kind::NobodyAvailable, message);
    Refusal { retry_after: u32::try_from(seconds).unwrap_or(u32::MAX), ..refusal }
}

/// What the balancer sees of a group.
fn view(core: &Core, plan: &Plan, choice: Choice<'_>, members: &mut Vec<Member>) {
    let group = &plan.groups[usize::from(choice.group)];
    let now_us = core.now_us();
    let now_ms = now_us / 1000;
    members.clear();
    let (mut rested, mut resting) = (false, false);
    for (at, &(upstream, weight)) in group.members.iter().enumerate() {
        let wanted = choice.forced.is_none_or(|forced| forced == upstream);
        let upstream = &plan.upstreams[usize::from(upstream)];
        let state = &upstream.state;
        let mut member = Member {
            weight,
            in_flight: state.in_flight(),
            usable: wanted
                && upstream.enabled
                && state.admits(now_ms)
                && state.slots.has_free()
                && !choice.tried.has(at),
            ..Member::default()
        };
        if member.usable {
            match state.resting(now_ms) {
                true => resting = true,
                false => rested = true,
            }
            if group.strategy.reads_measures() {
                let reading = state.measures.read(now_us);
                member.rt_us = reading.rt_us;
                member.success = reading.success;
                member.peak_us = reading.peak_us;
            }
        }
        members.push(member);
    }
    if rested && resting {
        for (member, &(upstream, _)) in members.iter_mut().zip(&group.members) {
            member.usable &= !plan.upstreams[usize::from(upstream)].state.resting(now_ms);
        }
    }
}
