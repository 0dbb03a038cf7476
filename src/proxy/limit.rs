//! The station after the key's check: whether the key has requests, tokens and concurrency left.
//!
//! A key's call is charged when its head has passed, before anything is known of its model or its
//! upstream: what is refused later has been asked for all the same. The windows are charged at
//! once; the call counts towards the key's concurrency until the exchange ends, which `Charge` sees
//! to by `Drop`. Tokens are paid at the end, too (`Settle`), from what the upstream said or, where
//! it said nothing, from the bytes that passed.
//!
//! Where nodes share a budget, a call may have to wait for the store's answer: until it is
//! notified, for a bounded time, and never once the store is known to be away. Only such a wait
//! allocates memory.
//!
//! A process that takes over from another one counts on from what that one has let in: until it is
//! told, calls that count wait (`state_is_here`).
//!
//! The state is shared by all cores and belongs to a name, not to a config: the next plan takes
//! it over.

use std::time::{Duration, Instant};

use super::core::{Core, LocalPlan};
use super::permit::Permit;
use super::plan::{KeyLimit, Plan};
use super::refusal::{Caller, Refusal};
use crate::base::clock::{Moment, Timestamp, WallTime};
use crate::error::Kind;
use crate::http::head::RequestHead;
use crate::http::name::Name;
use crate::net::pooled_future::PooledFuture;
use crate::policy::keys::KeyId;
use crate::policy::limit::key::{KeyRules, Over};
use crate::policy::limit::lease::Short;
use crate::policy::limit::passed::{Passed, Prompt};
use crate::policy::limit::shared::{Answer, Budget, Mode, OnLoss, StoreVerdict, Waiter};
use crate::policy::limit::standing::Standing;
use crate::policy::limit::token_size::TokenSizes;
use crate::policy::limit::window::{DAY_S, Full, MINUTE_S, numbers, seconds_until_end};

/// How long a call waits for what the process before may give back: the connections that idle there
/// end after two seconds.
const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Charges a request to its key, if it has one.
///
/// Shape: what the key has left is noted in `caller`, also when the request is refused.
/// Errors: 429, or 503 when the shared store is lost and the operator denies then; nothing has been
/// charged.
pub async fn charge(
    core: &Core,
    plan: &LocalPlan,
    permit: &Permit,
    caller: &mut Caller,
    now: Timestamp,
) -> Result<Option<Charge>, Refusal> {
    let Some((key, limit)) = of_key(plan, permit.key) else { return Ok(None) };
    let charge = || Charge { plan: plan.clone(), key };
    let KeyLimit { rules, state, .. } = limit;
    let now = match core.shared.before.is_awaited() {
        false => now,
        true => PooledFuture::with(|| state_is_here(core)).await,
    };
    if let Some(budget) = plan.budget.as_ref().filter(|_| rules.are_shared()) {
        state.enter(rules, now.steady)?;
        // From here on the drop of this guard ends the call's part in the key's concurrency.
        let charge = charge();
        // Pooled: an exchange without such a key must not carry it.
        let charged = PooledFuture::with(|| charge_shared(core, budget, limit, caller, now)).await;
        if charged.is_err() {
            state.undo_pace(rules);
        }
        return charged.map(|()| Some(charge));
    }
    let mut admitted = state.admit(rules, now);
    if admitted.is_err() && state.windows.are_out() {
        admitted = PooledFuture::with(|| admit_late(core, limit)).await;
    }
    match admitted {
        Ok(standing) => {
            caller.standing = standing;
            Ok(Some(charge()))
        }
        Err(over) => {
            caller.standing = state.windows.standing(rules.quota, now.wall);
            Err(over.into())
        }
    }
}

/// Waits until it is known what the process before has let in; the time that it is then.
#[cold]
pub async fn state_is_here(core: &Core) -> Timestamp {
    let mut notify = core.wake_table.register();
    while core.shared.before.is_awaited() {
        notify.notified().await;
    }
    now(core)
}

/// Takes one call out of every limit, of which a window is full while the process before may yet
/// give calls of it back: waits for those.
#[cold]
async fn admit_late(core: &Core, limit: &KeyLimit) -> Result<Standing, Over> {
    let KeyLimit { rules, state, .. } = limit;
    let mut notify = core.wake_table.register();
    let begun = now(core).steady;
    loop {
        let now = now(core);
        match state.admit(rules, now) {
            Err(Over { kind: Kind::RateMinute | Kind::RateDay, .. })
                if state.windows.are_out() && now.steady.since(begun) < BACK_WITHIN =>
            {
                notify.notified().await;
            }
            done => return done,
        }
    }
}

fn now(core: &Core) -> Timestamp {
    let clock = &core.shared.notifier.clock;
    clock.both(clock.at(Instant::now()))
}

/// Charges the windows that nodes share: from this node's lease, or by asking the store.
async fn charge_shared(
    core: &Core,
    budget: &Budget,
    limit: &KeyLimit,
    caller: &mut Caller,
    now: Timestamp,
) -> Result<(), Refusal> {
    let KeyLimit { rules, state, .. } = limit;
    let (quota, lease) = (rules.quota, &state.lease);
    let store_now = budget.store_time(now.steady);
    let verdict = match (budget.is_up(), budget.mode) {
        (false, _) => StoreVerdict::Lost,
        (true, Mode::Strict) => ask_and_wait(core, budget, limit).await,
        (true, Mode::Lease) => {
            let verdict = match lease.take(quota, store_now) {
                Ok(()) => StoreVerdict::Pass,
                Err(Short::Full(full)) => StoreVerdict::Full(full),
                Err(Short::Empty) => ask_and_wait(core, budget, limit).await,
            };
            if lease.nudge(quota, store_now) {
                budget.ask(limit.ask(None));
            }
            verdict
        }
    };
    if verdict != StoreVerdict::Lost {
        caller.standing = lease.standing(quota, store_now);
    }
    match verdict {
        StoreVerdict::Pass => {
            // Should the store be lost, this node goes on from what it has let in itself.
            state.windows.note(now.wall);
            Ok(())
        }
        StoreVerdict::Full(full) => Err(full_until_end(full, store_now).into()),
        StoreVerdict::Debt => {
            let wait = state.balance.check(now.steady).err().unwrap_or_default();
            Err(Over::after(Kind::RateTokens, wait).into())
        }
        StoreVerdict::Lost if budget.on_loss == OnLoss::Deny => Err(Kind::LimitsUnknown.into()),
        StoreVerdict::Lost => {
            let share = budget.share(quota);
            let taken = state.windows.take(share, now.wall);
            caller.standing = state.windows.standing(share, now.wall);
            taken.map(|_| ()).map_err(|full| state.full(full, now.wall).into())
        }
    }
}

/// Asks the store about one call and waits; the deadline for the store's answers ends the wait.
async fn ask_and_wait(core: &Core, budget: &Budget, limit: &KeyLimit) -> StoreVerdict {
    let (mut notify, answer) = (core.wake_table.register(), Answer::default());
    let (shared, token) = (core.shared.clone(), notify.token());
    let waiter = Waiter::new(answer.clone(), move || shared.notifier.wake(token, 0));
    budget.ask(limit.ask(Some(waiter)));
    loop {
        if let Some(verdict) = answer.verdict() {
            return verdict;
        }
        notify.notified().await;
    }
}

fn full_until_end(full: Full, store_now: WallTime) -> Over {
    let (minute, day) = numbers(store_now);
    let (kind, retry_after_s) = match full {
        Full::Minute => (Kind::RateMinute, seconds_until_end(minute, MINUTE_S, store_now)),
        Full::Day => (Kind::RateDay, seconds_until_end(day, DAY_S, store_now)),
    };
    Over { kind, retry_after_s }
}

/// How a request carries its prompt, judged by its head and by how its body begins: some servers
/// read JSON under any `Content-Type`.
#[must_use]
pub fn prompt_of(head: &RequestHead, bytes: &[u8], is_chunked: bool, body: &[u8]) -> Prompt {
    let kind = head.value(Name::ContentType, bytes).unwrap_or_default();
    let coded = head
        .values(Name::ContentEncoding, bytes)
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"));
    let first = match is_chunked {
        false => body,
        true => memchr::memmem::find(body, b"\r\n")
            .and_then(|at| body.get(at + 2..))
            .unwrap_or_default(),
    };
    let is_form = kind.get(..10).is_some_and(|s| s.eq_ignore_ascii_case(b"multipart/"))
        && first.starts_with(b"--");
    match (coded, is_form) {
        (true, _) => Prompt::Coded,
        (false, true) => Prompt::Media,
        (false, false) => Prompt::Text,
    }
}

/// The limits of a key that has any.
fn of_key(plan: &Plan, key: Option<KeyId>) -> Option<(KeyId, &KeyLimit)> {
    let key = key?;
    let limit = plan.limits.get(key.0 as usize)?;
    (limit.rules != KeyRules::default()).then_some((key, limit))
}

/// A call that has been charged to its key; its drop ends the call's part in the concurrency.
pub struct Charge {
    /// The plan that charged it, so that the same rules apply at its end.
    plan: LocalPlan,
    key: KeyId,
}

impl Charge {
    /// Pays the tokens that the exchange used, if the key pays by the token.
    pub fn pay(&self, passed: &Passed, sizes: &TokenSizes, now: Moment) {
        let Some((_, limit)) = of_key(&self.plan, Some(self.key)) else { return };
        if limit.rules.tokens_per_minute == 0 {
            return;
        }
        if let Some((bytes, tokens)) = passed.lesson() {
            sizes.learn(passed.model, bytes, tokens);
        }
        self.pay_tokens(passed.tokens(sizes.of(passed.model)), now);
    }

    /// Charges tokens to the key's balance, and to the budget that nodes share.
    pub fn pay_tokens(&self, tokens: u64, now: Moment) {
        let Some((_, limit)) = of_key(&self.plan, Some(self.key)) else { return };
        limit.state.balance.charge(tokens, limit.rules.tokens_per_minute, now);
        if let Some(budget) = &self.plan.budget
            && limit.state.lease.spend(tokens)
        {
            budget.ask(limit.ask(None));
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if let Some((_, limit)) = of_key(&self.plan, Some(self.key)) {
            limit.state.leave(&limit.rules);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use super::super::compile::compile;
    use super::super::core::Notifier;
    use super::*;
    use crate::config::Config;
    use crate::net::tls::Store;
    use crate::upstream::registry::Registry;

    const NOW: Timestamp = Timestamp { wall: WallTime::from_secs(0), steady: Moment::ORIGIN };

    fn registry() -> Registry {
        Registry::new(Notifier::new(Vec::new()))
    }

    fn plan(registry: &mut Registry, limits: &str) -> LocalPlan {
        let text = format!(
            "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
             ratelimit = {{ per_second = 1, burst = 1 }}\n\
             [[upstream]]\nname = \"u\"\nurl = \"http://127.0.0.1:1\"\nmodels = []\n{limits}"
        );
        let config = Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
        let carried = registry.carry(&config, &[Vec::new()]);
        Arc::new(compile(&config, carried, &Store::default(), 0).unwrap()).into()
    }

    fn key(name: &str, rules: &str) -> String {
        format!("[[key]]\nname = \"{name}\"\nkey = \"sk-{name}-0123456789\"\n{rules}\n")
    }

    #[test]
    fn the_next_plan_takes_over_what_was_used_by_name() {
        let mut registry = registry();
        let before = plan(&mut registry, &(key("a", "rpm = 2") + &key("b", "rpm = 2")));
        for limit in &before.limits {
            limit.state.admit(&limit.rules, NOW).unwrap();
        }
        let ip = IpAddr::from([192, 0, 2, 1]);
        before.listeners[0].ip_limit.as_ref().unwrap().take(ip, NOW.steady).unwrap();
        // `a` has gone, `b` has moved and may have more, `c` is new.
        let after = plan(&mut registry, &(key("c", "rpm = 2") + &key("b", "rpm = 3")));
        let left = |number: usize| {
            let limit = &after.limits[number];
            (0..9).filter(|_| limit.state.admit(&limit.rules, NOW).is_ok()).count()
        };
        assert_eq!((left(0), left(1)), (2, 2));
        assert!(after.listeners[0].ip_limit.as_ref().unwrap().take(ip, NOW.steady).is_err());
    }

    #[test]
    fn a_charge_leaves_by_the_rules_it_came_in_by() {
        let mut registry = registry();
        let before = plan(&mut registry, &key("a", "concurrency = 1"));
        let limit = &before.limits[0];
        limit.state.admit(&limit.rules, NOW).unwrap();
        let charge = Charge { plan: before.clone(), key: KeyId(0) };
        let after = plan(&mut registry, &key("a", ""));
        drop(charge);
        assert_eq!(after.limits[0].state.in_flight(), 0);
    }
}
