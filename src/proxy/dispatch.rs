//! Pick and attempt, until an answer has gone to the client or no member is left.
//!
//! The one back edge inside an exchange: an attempt that failed before the client saw a byte is
//! made again, on another member, while all that was sent is still held and the retry budget
//! lasts; then on the groups in `fallback`. What was not sent counts as held: a connection that was
//! refused has taken nothing, whatever the body's size. A pooled connection that died unused is
//! replaced at once, on the same member and outside all budgets.

use std::time::Duration;

use super::attempt::{Attempt, Attempted, ExchangeState, Failed};
use super::call_guard::CallGuard;
use super::core::Core;
use super::downstream::Downstream;
use super::forward::Request;
use super::gateway_choice;
use super::permit::Permit;
use super::pick::{self, Choice, Nobody, Picked};
use super::plan::Plan;
use super::refusal::{Next, Refusal};
use super::route::Route;
use super::settle::Settle;
use super::tunnel::{self, Metered};
use super::wait::{self, Wait, Waited};
use crate::base::clock::Moment;
use crate::error::{Blame, Kind};
use crate::http::head::Version;
use crate::net::pooled_future::PooledFuture;
use crate::net::race::{First, race};
use crate::net::rt;
use crate::policy::balance::{Member, Tried};
use crate::policy::retry::RetryDecision;

/// One exchange on its way from member to member.
struct Dispatch<'d> {
    core: &'d Core,
    plan: &'d Plan,
    /// The group at work: the route's, or one of its fallbacks.
    group: u16,
    /// The route's group.
    first: u16,
    /// Groups not yet fallen back to.
    fallback: std::slice::Iter<'d, u16>,
    forced: Option<u16>,
    /// The model is named in the target alone, and the key is limited to some models.
    by_target: bool,
    /// The model that is asked for; empty where none is known.
    model: &'d str,
    /// The upstreams that a trusted proxy has chosen, the best first; usually empty.
    chosen: Vec<u16>,
    tried: Tried,
    retries: u32,
    /// The last failure: what the client is told if no other member can be tried.
    failed: Option<Refusal>,
}

/// Which attempts may follow one that fails.
struct Chances {
    /// On the same member: the group has no other.
    same: bool,
    /// On any member.
    another: bool,
}

/// Serves a routed request.
///
/// Errors: what to tell the client, which has been sent nothing yet.
pub async fn dispatch(
    core: &Core,
    plan: &Plan,
    down: &mut Downstream,
    request: &Request<'_>,
    route: &Route,
    members: &mut Vec<Member>,
    exchange: &mut ExchangeState<'_, '_>,
) -> Result<Next, Refusal> {
    let mut at = Dispatch::begin(core, plan, request, route);
    if !request.listener.trusted.is_empty()
        && gateway_choice::is_trusted(request.listener, request.permit.peer_ip())
    {
        at.chosen = gateway_choice::chosen(plan, route.group, request.head, &exchange.held);
    }
    let now = core.ticker.now();
    core.with_budget(usize::from(route.group), |budget| budget.record_exchange(now));
    loop {
        let Picked { member, upstream, lease, guard } =
            match at.pick(down, request.permit, members, exchange.settle).await? {
                Some(picked) => picked,
                None => {
                    exchange.settle.record.failed(Kind::ClientGone);
                    return Ok(Next::Close);
                }
            };
        let group = &plan.groups[usize::from(at.group)];
        let (number, _) = group.members[member];
        exchange.settle.record.picked(at.group, number, guard.begun());
        let Chances { same, another } =
            at.chances(request.permit, members, &guard, exchange.settle);
        let may_retry = another && at.retries < group.retry.attempts;
        let mut attempt = Attempt {
            core,
            plan,
            request,
            upstream,
            timeouts: group.timeouts,
            retry_on: may_retry.then_some(group.retry.on),
            budget: usize::from(route.group),
            guard: &guard,
            fresh: false,
        };
        let (failed, after) = loop {
            exchange.settle.record.attempt_began();
            exchange.settle.record.trace_told(|trace| attempt.tell_begin(trace, exchange.settle));
            let attempted = attempt.run(down, exchange).await;
            let failed = match end(core, down, request, &attempt, exchange, attempted).await {
                Ended::Next(next) => return Ok(next),
                Ended::Refused(refusal) => return Err(refusal),
                Ended::Failed(failed) => failed,
            };
            let stands = failed.at(at.retries, !exchange.gone);
            match group.retry.next(&stands, &failed.why(), core.random_u64()) {
                RetryDecision::FreshConnection => attempt.fresh = true,
                RetryDecision::GiveUp => return Err(failed.into()),
                RetryDecision::AnotherMember { after } => break (failed, after),
            }
        };
        drop(lease);
        // The retry of a status was taken from the budget already, before its answer was thrown
        // away.
        if !another || (failed.status.is_none() && !take_retry(core, route.group)) {
            return Err(failed.into());
        }
        at.failed = Some(failed.into());
        at.retries += 1;
        if same {
            at.tried = Tried::NONE;
        }
        if !after.is_zero() && pause(down, after).await == Paused::Gone {
            exchange.settle.record.failed(Kind::ClientGone);
            return Ok(Next::Close);
        }
    }
}

/// Takes one retry out of a group's budget.
fn take_retry(core: &Core, group: u16) -> bool {
    let now = core.ticker.now();
    core.with_budget(usize::from(group), |budget| budget.take(now))
}

impl<'d> Dispatch<'d> {
    /// Begins with the route's group.
    fn begin(core: &'d Core, plan: &'d Plan, request: &'d Request<'_>, route: &'d Route) -> Self {
        Self {
            core,
            plan,
            group: route.group,
            first: route.group,
            // A request that names one upstream wants that one or none.
            fallback: match route.upstream {
                Some(_) => [].iter(),
                None => plan.groups[usize::from(route.group)].fallback.iter(),
            },
            forced: route.upstream,
            by_target: route.by_target,
            model: route.model_sent(request.routed_by.name),
            chosen: Vec::new(),
            tried: Tried::NONE,
            retries: 0,
            failed: None,
        }
    }

    /// Which attempts may follow one that fails.
    fn chances(
        &self,
        permit: &Permit,
        members: &[Member],
        guard: &CallGuard<'_>,
        settle: &Settle,
    ) -> Chances {
        let group = &self.plan.groups[usize::from(self.group)];
        let falls_back = !self.fallback.as_slice().is_empty();
        // The last attempt is left to the groups in `fallback`.
        let same = group.retry_same && (!falls_back || self.retries + 1 < group.retry.attempts);
        let another = same
            || falls_back
            || pick::another(members, &self.tried)
            || (guard.is_last_resort() && self.has_last_resort(permit, settle.now()));
        Chances { same, another }
    }

    /// The next member: of this group, waiting for it if need be, then of those it falls back
    /// to; `None` when the client has left.
    async fn pick(
        &mut self,
        down: &mut Downstream,
        permit: &Permit,
        members: &mut Vec<Member>,
        settle: &Settle,
    ) -> Result<Option<Picked<'d>>, Refusal> {
        let (core, plan) = (self.core, self.plan);
        loop {
            let group = &plan.groups[usize::from(self.group)];
            let choice = self.choice(permit);
            let now = settle.now();
            let mut nobody = match pick::pick(core, plan, choice, members, now) {
                Ok(picked) => {
                    self.tried.insert(picked.member);
                    return Ok(Some(picked));
                }
                Err(nobody) => nobody,
            };
            if nobody == Nobody::Left && !self.may_fall_back(permit) {
                match self.last_resort(permit, now) {
                    Ok(picked) => return Ok(Some(picked)),
                    Err(why) => nobody = why,
                }
            }
            let choice = self.choice(permit);
            let refusal = match (nobody, &group.queue) {
                (Nobody::Left, _) => pick::nobody_left(plan, choice, now),
                (Nobody::Full, None) => Kind::QueueFull.into(),
                (Nobody::Full, Some(queue)) => {
                    let wait = Wait { core, plan, queue, choice, share: wait::share(plan, permit) };
                    // In pooled memory: few exchanges wait, and else every exchange's future would
                    // have room for this one.
                    match PooledFuture::new(wait.run(down, members, settle)).await {
                        Waited::Picked(picked) => {
                            self.tried.insert(picked.member);
                            return Ok(Some(picked));
                        }
                        Waited::Again => continue,
                        Waited::Gone => return Ok(None),
                        Waited::Refused(refusal) => refusal,
                    }
                }
            };
            // Only groups that the caller reaches: being a fallback grants no access.
            let mut within_reach = self
                .fallback
                .by_ref()
                .filter(|next| plan.groups[usize::from(**next)].reach.allows(permit.asker()));
            let Some(&next) = within_reach.next() else {
                return Err(self.failed.take().unwrap_or(refusal));
            };
            (self.group, self.forced, self.tried) = (next, None, Tried::NONE);
        }
    }

    fn choice<'c>(&'c self, permit: &Permit) -> Choice<'c, 'd> {
        let &Self { group, forced, by_target, ref tried, model, ref chosen, .. } = self;
        Choice { group, forced, asker: permit.asker(), by_target, tried, model, chosen }
    }

    /// Whether there is a group left to fall back to.
    #[cold]
    fn may_fall_back(&self, permit: &Permit) -> bool {
        let mut left = self.fallback.as_slice().iter();
        left.any(|next| self.plan.groups[usize::from(*next)].reach.allows(permit.asker()))
    }

    /// A member whose breaker refuses, where breakers alone leave no member: of the route's group
    /// first, then of the groups that it falls back to.
    #[cold]
    fn last_resort(&mut self, permit: &Permit, now: Moment) -> Result<Picked<'d>, Nobody> {
        if self.failed.is_none() && self.group != self.first {
            let fallback = &self.plan.groups[usize::from(self.first)].fallback;
            let within_reach =
                |group: &&u16| self.plan.groups[usize::from(**group)].reach.allows(permit.asker());
            let fallback = fallback.iter().filter(within_reach);
            for &group in std::iter::once(&self.first).chain(fallback) {
                let tried = &Tried::NONE;
                let choice = Choice { group, forced: None, tried, ..self.choice(permit) };
                if let Ok(picked) = pick::last_resort(self.plan, choice, now) {
                    (self.group, self.tried) = (group, Tried::NONE);
                    self.tried.insert(picked.member);
                    return Ok(picked);
                }
            }
            return Err(Nobody::Left);
        }
        let picked = pick::last_resort(self.plan, self.choice(permit), now)?;
        self.tried.insert(picked.member);
        Ok(picked)
    }

    /// Whether `last_resort` would find a member.
    #[cold]
    fn has_last_resort(&self, permit: &Permit, now: Moment) -> bool {
        pick::has_last_resort(self.plan, self.choice(permit), now)
    }
}

/// What an attempt leads to.
enum Ended {
    /// The exchange is over.
    Next(Next),
    /// The client is sent this refusal.
    Refused(Refusal),
    /// The attempt failed and another may follow.
    Failed(Failed),
}

/// Ends the exchange with its attempt, unless that failed.
async fn end(
    core: &Core,
    down: &mut Downstream,
    request: &Request<'_>,
    attempt: &Attempt<'_>,
    exchange: &mut ExchangeState<'_, '_>,
    attempted: Attempted,
) -> Ended {
    match attempted {
        Attempted::Whole { keep } => Ended::Next(if keep { Next::KeepAlive } else { Next::Linger }),
        Attempted::Refused(refusal) => Ended::Refused(refusal),
        Attempted::Over(kind) => {
            exchange.settle.record.failed(kind);
            if kind.row().blame != Blame::Client && request.caller.version == Version::Http10 {
                // A body that ends with its connection would look complete after a clean close.
                down.socket.close_with_reset();
            }
            Ended::Next(Next::Close)
        }
        Attempted::Upgraded { upstream, bytes } => {
            let idle = attempt.timeouts.stream_idle;
            let carried = {
                let meter = request.permit.is_metered.then(|| Metered::new(exchange.settle));
                tunnel::run(core, down, upstream, bytes, idle, meter).await
            };
            exchange.settle.record.received(carried.sent);
            exchange.settle.record.sent(carried.received);
            if let Some(kind) = carried.fault {
                exchange.settle.record.failed(kind);
            }
            Ended::Next(Next::Close)
        }
        Attempted::Failed(failed) => {
            let (settle, status) = (exchange.settle, failed.status.unwrap_or(0));
            settle.record.attempt_failed(&attempt.upstream.name, failed.kind, status);
            settle
                .record
                .trace_told(|trace| trace.attempt_failed(failed.kind, status, settle.now()));
            settle.meter_failed(failed.error(), attempt.guard.begun());
            Ended::Failed(failed)
        }
    }
}

#[derive(PartialEq, Eq)]
enum Paused {
    Over,
    Gone,
}

/// Waits before a retry, unless the client leaves.
async fn pause(down: &mut Downstream, after: Duration) -> Paused {
    // Pooled: a sleep would make every exchange larger, and few ever pause.
    let mut sleep = PooledFuture::new(rt::sleep(after));
    let gone = std::pin::pin!(down.watch.gone(&down.timer));
    match race(std::pin::Pin::new(&mut sleep), gone).await {
        First::Left(()) => Paused::Over,
        First::Right(()) => Paused::Gone,
    }
}
