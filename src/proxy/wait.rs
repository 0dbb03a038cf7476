//! The station of requests for which no member has a slot: the group's wait queue.
//!
//! Follows the protocol of `upstream::wait_queue`, step by step. A waiter costs a place in the
//! queue, a `Notify` and a timer; it ends with a slot, with a member that has become usable without
//! one being handed over, with its deadline, or with its client's leaving.

use std::pin::pin;
use std::time::Duration;

use super::core::Core;
use super::downstream::Downstream;
use super::permit::Permit;
use super::pick::{self, Choice, Picked};
use super::plan::Plan;
use super::refusal::Refusal;
use super::settle::Settle;
use crate::base::clock::Moment;
use crate::error::Kind;
use crate::net::notify::WakeToken;
use crate::net::pooled_future::PooledFuture;
use crate::net::race::{First, race};
use crate::net::rt;
use crate::policy::balance::Member;
use crate::policy::limit::ip::network;
use crate::upstream::wait_queue::{Accepts, GroupQueue, Share};

/// Marks shares that belong to an address and not to a key.
const SHARE_OF_ADDRESS: u32 = 1 << 31;

/// What a wait ended with.
pub enum Waited<'p> {
    /// A member, and the right to call it.
    Picked(Picked<'p>),
    /// A slot was granted, but its member's breaker refuses meanwhile: pick again.
    Again,
    /// The client has left.
    Gone,
    /// The queue has no place, or no slot came free in time.
    Refused(Refusal),
}

/// The share whose turns a waiter takes: its key's, in whatever plan, or its address's (IPv6: its
/// /64's) where there are no keys.
#[must_use]
pub fn share(plan: &Plan, permit: &Permit) -> Share {
    let of_address = || {
        let network = permit.client.map(network).unwrap_or_default();
        // FNV-1a: two addresses that share a number share their turns, no more.
        let hash = std::iter::once(network.0)
            .chain(network.1.to_le_bytes())
            .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        hash | SHARE_OF_ADDRESS
    };
    let limit = permit.key.and_then(|key| plan.limits.get(key.0 as usize));
    let key = limit.map_or_else(of_address, |limit| limit.state.number & !SHARE_OF_ADDRESS);
    Share::of(key, permit.priority)
}

/// What is waited for, and on whose behalf.
pub struct Wait<'a, 'p> {
    /// This core.
    pub core: &'a Core,
    /// The config in force.
    pub plan: &'p Plan,
    /// Where to wait.
    pub queue: &'p GroupQueue<WakeToken>,
    /// The group, and what its member must satisfy.
    pub choice: Choice<'a, 'p>,
    /// The share whose turns it takes.
    pub share: Share,
}

impl<'p> Wait<'_, 'p> {
    /// Waits, and notes for how long.
    pub async fn run(
        &self,
        down: &mut Downstream,
        members: &mut Vec<Member>,
        settle: &Settle,
    ) -> Waited<'p> {
        let entered = settle.now();
        let waited = self.in_room(down, members, settle).await;
        settle.record.queued(settle.now().since(entered));
        waited
    }

    async fn in_room(
        &self,
        down: &mut Downstream,
        members: &mut Vec<Member>,
        settle: &Settle,
    ) -> Waited<'p> {
        let &Wait { core, plan, queue, choice, share } = self;
        let group = &plan.groups[usize::from(choice.group)];
        let deadline = deadline(group.queue_wait, group.timeouts.total, settle);
        let only = choice
            .forced
            .and_then(|forced| group.members.iter().position(|(upstream, _)| *upstream == forced));
        let accepts = Accepts { tried: pick::unacceptable(plan, choice), only };
        let mut notify = core.wake_table.register();
        let Ok(mut place) = queue.enter(share, accepts, notify.token(), deadline) else {
            return Waited::Refused(refusal(Kind::QueueFull, queue));
        };
        loop {
            let now = settle.now();
            if let Some((member, lease)) = place.take_grant() {
                let upstream = &plan.upstreams[usize::from(group.members[member].0)];
                return match pick::enter_granted(plan, choice, upstream, now) {
                    Some(guard) => Waited::Picked(Picked { member, upstream, lease, guard }),
                    None => Waited::Again,
                };
            }
            if place.is_displaced() {
                return Waited::Refused(refusal(Kind::QueueFull, queue));
            }
            if now >= deadline {
                return Waited::Refused(refusal(Kind::QueueTimeout, queue));
            }
            // Woken without a grant: a breaker may let a call in now.
            if let Ok(picked) = pick::pick(core, plan, choice, members, now) {
                return Waited::Picked(picked);
            }
            if !pick::somebody_admits(plan, choice, now)
                && let Ok(picked) = pick::last_resort(plan, choice, now)
            {
                return Waited::Picked(picked);
            }
            let admission = pick::next_admission(plan, choice, now).filter(|at| *at > now);
            let until = admission.map_or(deadline, |at| at.min(deadline));
            // Pooled: few wait, and a timer in every exchange would weigh on all.
            let mut timer = PooledFuture::new(rt::sleep(until.since(now)));
            let notified = pin!(notify.notified());
            let gone = pin!(down.watch.gone(&down.timer));
            let mut news = pin!(race(notified, std::pin::Pin::new(&mut timer)));
            if let First::Right(()) = race(news.as_mut(), gone).await {
                return Waited::Gone;
            }
        }
    }
}

/// The end of the wait.
fn deadline(wait: Duration, total: Duration, settle: &Settle) -> Moment {
    let of_queue = settle.now() + wait;
    match total.is_zero() {
        true => of_queue,
        false => of_queue.min(settle.begun() + total),
    }
}

/// A refusal whose `Retry-After` comes from the rate at which the queue moves.
fn refusal(kind: Kind, queue: &GroupQueue<WakeToken>) -> Refusal {
    Refusal { retry_after: queue.retry_after_s(), ..Refusal::from(kind) }
}
