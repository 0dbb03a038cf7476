//! The station between a route and an attempt: one member of the group, and the right to call it.
//!
//! A candidate is enabled, wanted by the route, healthy, let in by its breaker, below its
//! concurrency and not yet tried in this exchange. A member that asked us to back off
//! (`Retry-After`) is taken only when no other is left: some answer is better than none. So is one
//! that fails this model alone, or is very late to list its models. Where breakers alone leave no
//! member, `last_resort` picks. The balancer chooses from a view of plain numbers; a slot and the
//! breaker's leave are then taken by compare-and-swap, and a core that was slower than another
//! picks again.

use super::call_guard::CallGuard;
use super::core::Core;
use super::plan::{PathPlan, Plan, UpstreamPlan};
use super::refusal::Refusal;
use crate::base::clock::{Moment, seconds_up};
use crate::error::Kind;
use crate::policy::balance::{self, Member, Tried};
use crate::policy::reach::Asker;
use crate::upstream::state::Lease;

/// Longest wait that a refusal names, in seconds.
const RETRY_AFTER_MAX_S: u64 = 3600;

/// The group to pick from, and what its member must satisfy.
#[derive(Clone, Copy)]
pub struct Choice<'a, 'm> {
    /// The group.
    pub group: u16,
    /// The one upstream that must take the request; `None` = any member.
    pub forced: Option<u16>,
    /// The listener and the key, by which reach is decided.
    pub asker: Asker,
    /// A key with rights to some models named one in the target alone: a server whose target
    /// is always the same would not read it.
    pub by_target: bool,
    /// Members that this exchange has tried.
    pub tried: &'a Tried,
    /// The model that is asked for; empty where none is known.
    pub model: &'m str,
    /// Upstreams that are taken before all others where they are usable, the best first; empty
    /// unless a trusted proxy has chosen (`gateway_choice`).
    pub chosen: &'a [u16],
}

impl Choice<'_, '_> {
    /// Whether this upstream may take the request, whatever state it is in.
    fn may_go_to(&self, number: u16, upstream: &UpstreamPlan) -> bool {
        self.forced.is_none_or(|forced| forced == number)
            && upstream.enabled
            && upstream.reach.allows(self.asker)
            && !(self.by_target && matches!(upstream.path, PathPlan::Fixed(_)))
    }
}

/// One member, and the right to call it.
pub struct Picked<'p> {
    /// Its place in the group.
    pub member: usize,
    /// The upstream.
    pub upstream: &'p UpstreamPlan,
    /// Counts the attempt in flight, until dropped.
    pub lease: Lease<'p>,
    /// The breaker's leave to make the call.
    pub guard: CallGuard<'p>,
}

/// Why no member was picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nobody {
    /// A member would do but for its concurrency: it may be worth waiting.
    Full,
    /// There is no candidate.
    Left,
}

/// Picks a member.
pub fn pick<'p>(
    core: &Core,
    plan: &'p Plan,
    choice: Choice<'_, 'p>,
    members: &mut Vec<Member>,
    now: Moment,
) -> Result<Picked<'p>, Nobody> {
    let group = &plan.groups[usize::from(choice.group)];
    let mut nobody = view(plan, choice, members, now);
    loop {
        let picked = match choice.chosen {
            [] => None,
            chosen => first_chosen(plan, choice.group, chosen, members),
        };
        let picked = picked.or_else(|| {
            core.with_pick_state(usize::from(choice.group), |state| {
                balance::pick(group.strategy, state, members, choice.tried, core.random_u64())
            })
        });
        let Some(member) = picked else { return Err(nobody) };
        let upstream = &plan.upstreams[usize::from(group.members[member].0)];
        // Another core may have taken the slot or the trial since the view: then pick again.
        match upstream.state.try_lease() {
            None => nobody = Nobody::Full,
            Some(lease) => {
                if let Some(guard) = CallGuard::enter(&upstream.state, choice.model, now) {
                    return Ok(Picked { member, upstream, lease, guard });
                }
            }
        }
        members[member].usable = false;
    }
}

/// The first of the chosen upstreams that is a usable member.
#[cold]
fn first_chosen(plan: &Plan, group: u16, chosen: &[u16], members: &[Member]) -> Option<usize> {
    let all = &plan.groups[usize::from(group)].members;
    let place = |wanted: &u16| {
        let mut numbers = all.iter().zip(members);
        numbers.position(|((number, _), member)| number == wanted && member.usable)
    };
    chosen.iter().find_map(place)
}

/// Picks a member whose breaker refuses, when only such members are left: the one that failed
/// longest ago.
///
/// Errors: `Full` when a member would do but for its concurrency.
#[cold]
pub fn last_resort<'p>(
    plan: &'p Plan,
    choice: Choice<'_, 'p>,
    now: Moment,
) -> Result<Picked<'p>, Nobody> {
    let mut nobody = Nobody::Left;
    let mut left: Vec<usize> = candidates(plan, choice)
        .filter(|(_, upstream)| upstream.state.admits_last_resort(now))
        .map(|(member, _)| member)
        .collect();
    let group = &plan.groups[usize::from(choice.group)];
    let upstream_of = |member: usize| &plan.upstreams[usize::from(group.members[member].0)];
    left.sort_by_key(|member| upstream_of(*member).state.breaker.failed_at());
    for member in left {
        let upstream = upstream_of(member);
        match upstream.state.try_lease() {
            None => nobody = Nobody::Full,
            Some(lease) => {
                let guard = CallGuard::enter_last_resort(&upstream.state, choice.model, now);
                if let Some(guard) = guard {
                    return Ok(Picked { member, upstream, lease, guard });
                }
            }
        }
    }
    Err(nobody)
}

/// Whether `last_resort` would find a member, slots aside.
#[must_use]
#[cold]
pub fn has_last_resort(plan: &Plan, choice: Choice<'_, '_>, now: Moment) -> bool {
    candidates(plan, choice).any(|(_, upstream)| upstream.state.admits_last_resort(now))
}

/// Whether any candidate is usable and let in by its breaker, slots aside.
#[must_use]
#[cold]
pub fn somebody_admits(plan: &Plan, choice: Choice<'_, '_>, now: Moment) -> bool {
    candidates(plan, choice).any(|(_, upstream)| upstream.state.admits(now))
}

/// Asks the breaker of a member whose slot was granted for leave; as a last resort where the
/// breakers of all candidates refuse. `None` when this breaker refuses.
pub fn enter_granted<'p>(
    plan: &'p Plan,
    choice: Choice<'_, 'p>,
    upstream: &'p UpstreamPlan,
    now: Moment,
) -> Option<CallGuard<'p>> {
    if let Some(guard) = CallGuard::enter(&upstream.state, choice.model, now) {
        return Some(guard);
    }
    match somebody_admits(plan, choice, now) {
        true => None,
        false => CallGuard::enter_last_resort(&upstream.state, choice.model, now),
    }
}

/// Members that may take the request and were not tried yet.
fn candidates<'p>(
    plan: &'p Plan,
    choice: Choice<'_, 'p>,
) -> impl Iterator<Item = (usize, &'p UpstreamPlan)> {
    let members = plan.groups[usize::from(choice.group)].members.iter().enumerate();
    members
        .filter(move |(at, (upstream, _))| {
            !choice.tried.has(*at)
                && choice.may_go_to(*upstream, &plan.upstreams[usize::from(*upstream)])
        })
        .map(|(at, (upstream, _))| (at, &plan.upstreams[usize::from(*upstream)]))
}

/// Members whose slots are of no use to this request: tried, switched off, or not for this request.
#[must_use]
pub fn unacceptable(plan: &Plan, choice: Choice<'_, '_>) -> Tried {
    let group = &plan.groups[usize::from(choice.group)];
    let mut not = *choice.tried;
    for (at, (upstream, _)) in group.members.iter().enumerate() {
        if !choice.may_go_to(*upstream, &plan.upstreams[usize::from(*upstream)]) {
            not.insert(at);
        }
    }
    not
}

/// When the first breaker of the group will let a call in; `None` when that is not known.
#[must_use]
pub fn next_admission(plan: &Plan, choice: Choice<'_, '_>, now: Moment) -> Option<Moment> {
    let group = &plan.groups[usize::from(choice.group)];
    let wanted = group
        .members
        .iter()
        .map(|(number, _)| (*number, &plan.upstreams[usize::from(*number)]))
        .filter(|(number, upstream)| choice.may_go_to(*number, upstream))
        .map(|(_, upstream)| upstream)
        .filter(|upstream| upstream.state.usable());
    wanted.filter_map(|upstream| upstream.state.breaker.next_admission(now)).min()
}

/// Whether the last view holds a usable member that the exchange has not tried.
#[must_use]
pub fn another(members: &[Member], tried: &Tried) -> bool {
    members.iter().enumerate().any(|(at, member)| member.usable && !tried.has(at))
}

/// The refusal when no member is left, with the time until a breaker may let a call in.
#[must_use]
#[cold]
pub fn nobody_left(plan: &Plan, choice: Choice<'_, '_>, now: Moment) -> Refusal {
    let wait = next_admission(plan, choice, now).map(|at| seconds_up(at.since(now)));
    let seconds = wait.map_or(1, |seconds| seconds.clamp(1, RETRY_AFTER_MAX_S));
    let name = plan.group_name(&plan.groups[usize::from(choice.group)], choice.asker);
    let message = format!("No upstream of group '{name}' is available.");
    let refusal = Refusal::because(Kind::NobodyAvailable, message);
    Refusal { retry_after: u32::try_from(seconds).unwrap_or(u32::MAX), ..refusal }
}

/// Fills `members` with what the balancer sees of a group; returns what to report if it picks none.
fn view(plan: &Plan, choice: Choice<'_, '_>, members: &mut Vec<Member>, now: Moment) -> Nobody {
    let group = &plan.groups[usize::from(choice.group)];
    members.clear();
    let (mut ready, mut avoided) = (false, false);
    let mut nobody = Nobody::Left;
    for (at, &(number, weight)) in group.members.iter().enumerate() {
        let upstream = &plan.upstreams[usize::from(number)];
        let wanted = choice.may_go_to(number, upstream);
        let state = &upstream.state;
        let mut member = Member {
            weight,
            in_flight: state.in_flight(),
            usable: wanted && state.admits(now) && !choice.tried.has(at),
            ..Member::default()
        };
        if member.usable && !state.slots.has_free() {
            member.usable = false;
            nobody = Nobody::Full;
        }
        if member.usable {
            match is_avoided(upstream, choice, now) {
                true => avoided = true,
                false => ready = true,
            }
            if state.breaker.awaits_trial() {
                // Looks fast however slow it was: only a trial can tell whether it still is, and
                // one is let through at a time. By its old measures it would get no trial while
                // there is little traffic.
                (member.rt_us, member.peak_us) = (1, 1);
            } else if group.strategy.reads_measures() {
                let reading = state.measures.read(now);
                member.rt_us = reading.rt_us;
                member.success = reading.success;
                member.peak_us = reading.peak_us;
            }
        }
        members.push(member);
    }
    if ready && avoided {
        for (member, &(upstream, _)) in members.iter_mut().zip(&group.members) {
            member.usable &= !is_avoided(&plan.upstreams[usize::from(upstream)], choice, now);
        }
    }
    nobody
}

/// Whether other members are to be preferred: this one asked us to back off, is very late to list
/// its models, or fails this model alone.
fn is_avoided(upstream: &UpstreamPlan, choice: Choice<'_, '_>, now: Moment) -> bool {
    let state = &upstream.state;
    state.is_backing_off(now)
        || state.late()
        || (state.models.watches(now) && state.avoids(choice.model, now))
}
