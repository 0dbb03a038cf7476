//! What keys have had: windows, debts of tokens, steady rates, exchanges in flight.
//!
//! The process that gives keeps a few calls of each window for what still comes on its connections
//! (`Window::give`), and tells with each later message how many of them it has used and how many it
//! still keeps. These are sums since the giving, so that a message that is lost costs nothing.
//!
//! A budget that nodes share is counted in its store: of it only the calls on stock travel, and at
//! the end the tokens that the store has not been told of.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::read::{Fields, written};
use crate::base::clock::{Moment, Timestamp};
use crate::policy::limit::key::{KeyRules, KeyState};
use crate::policy::limit::window::{GivenWindow, Window, numbers};
use crate::proxy::plan::{KeyLimit, Plan};

/// Most keys in a message.
const KEYS_MAX: usize = 100_000;

/// The keys of the process that gives.
pub struct GivenKeys {
    keys: Vec<GivenKey>,
    /// When the last message was written.
    told: Moment,
}

/// What is remembered of a key.
struct GivenKey {
    name: Arc<str>,
    state: Arc<KeyState>,
    is_shared: bool,
    /// The balance as it was last told; `None` = none travels.
    due: Option<Moment>,
    minute: Option<GivenWindow>,
    day: Option<GivenWindow>,
    /// Until when the steady rate was spent, with the calls that were kept.
    pace: Option<Moment>,
    last: Since,
}

/// What has become of a key since the giving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Since {
    minute: Kept,
    day: Kept,
    pace: Kept,
    /// What all tokens charged are worth in time.
    charged: Duration,
    in_flight: u32,
    /// Tokens that the shared store has not been told of.
    tokens: u64,
}

/// Calls that the giver keeps of a window or a rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Kept {
    /// How many it has used.
    used: u32,
    /// How many it may yet use.
    left: u32,
}

impl Kept {
    /// Notes that so many were left, of which no more than `most` are kept on.
    fn note(&mut self, before: u32, most: u32) {
        self.used = self.used.saturating_add(self.left.saturating_sub(before));
        self.left = before.min(most);
    }

    fn written(self) -> Value {
        json!([self.used, self.left])
    }

    fn read(fields: Fields<'_>, name: &str) -> Option<Self> {
        let [used, left] = fields.numbers(name)?;
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Some(Self { used: count(used), left: count(left) })
    }

    /// What has been used since, where this came after `before`.
    fn used_since(self, before: Kept) -> u32 {
        self.used.saturating_sub(before.used)
    }
}

impl GivenKeys {
    /// Gives what the keys of a plan have had, and keeps `most` calls of each window and rate.
    ///
    /// Shape: what is remembered, and the list for the message.
    #[must_use]
    pub fn give(plan: &Plan, most: u32, now: Timestamp) -> (Self, Value) {
        let limited = plan.limits.iter().filter(|limit| limit.rules != KeyRules::default());
        let shares = plan.budget.is_some();
        let (keys, list) = limited.map(|limit| give_one(limit, shares, most, now)).unzip();
        (Self { keys, told: now.steady }, Value::Array(list))
    }

    /// Takes everything back: the other process has not taken it.
    pub fn keep(self, plan: &Plan, now: Timestamp) {
        let rules: HashMap<&str, &KeyRules> =
            plan.limits.iter().map(|limit| (&*limit.name, &limit.rules)).collect();
        for key in self.keys {
            if let Some(rules) = rules.get(&*key.name) {
                key.keep(rules, now);
            }
        }
    }

    /// What has changed since the last message; keeps `most` calls on.
    ///
    /// Shape: the list for the message; `last` when there is none after it.
    pub fn later(&mut self, most: u32, last: bool, now: Moment) -> Value {
        let told = std::mem::replace(&mut self.told, now);
        let changed = self.keys.iter_mut().filter_map(|key| key.later(most, last, told));
        Value::Array(changed.collect())
    }
}

fn give_one(limit: &KeyLimit, shares: bool, most: u32, now: Timestamp) -> (GivenKey, Value) {
    let KeyLimit { name, rules, state, .. } = limit;
    let is_shared = shares && rules.are_shared();
    let mut entry = Map::new();
    entry.insert("name".to_owned(), json!(**name));
    let (minute, day) = numbers(now.wall);
    let mut window = |name: &str, window: &Window, number: u32, limit: u32| {
        if is_shared || limit == 0 {
            return None;
        }
        let given = window.give(number, limit, most)?;
        entry.insert(name.to_owned(), json!([given.number, given.used, given.kept]));
        Some(given)
    };
    let minute = window("minute", &state.windows.minute, minute, rules.quota.per_minute);
    let day = window("day", &state.windows.day, day, rules.quota.per_day);
    let given = rules.pace.and_then(|pace| state.bucket.give(&pace, most, now.steady));
    if let Some((ahead, kept)) = given {
        entry.insert("pace".to_owned(), json!({"ahead": written(ahead), "kept": kept}));
    }
    let due = (rules.tokens_per_minute > 0 && !is_shared).then(|| state.balance.due());
    if let Some(due) = due {
        entry.insert("debt".to_owned(), written(due.since(now.steady)));
    }
    if is_shared {
        let [minute, day] = state.lease.give();
        entry.insert("stock".to_owned(), json!([minute.0, minute.1, day.0, day.1]));
    }
    let in_flight = state.gate.inside_anywhere();
    entry.insert("in_flight".to_owned(), json!(in_flight));
    let left = |given: Option<GivenWindow>| given.map_or(0, |given| given.kept);
    let kept = |left| Kept { used: 0, left };
    let last = Since {
        minute: kept(left(minute)),
        day: kept(left(day)),
        pace: kept(given.map_or(0, |(_, kept)| kept)),
        in_flight,
        ..Since::default()
    };
    let pace = given.map(|(ahead, _)| now.steady + ahead);
    let (name, state) = (name.clone(), state.clone());
    let given = GivenKey { name, state, is_shared, due, minute, day, pace, last };
    (given, Value::Object(entry))
}

impl GivenKey {
    /// Takes it back: the other process has not taken it. Calls on stock of a shared budget are void.
    fn keep(&self, rules: &KeyRules, now: Timestamp) {
        let (minute, day) = numbers(now.wall);
        if let Some(given) = self.minute {
            self.state.windows.minute.take_back(given, minute);
        }
        if let Some(given) = self.day {
            self.state.windows.day.take_back(given, day);
        }
        if let Some((due, pace)) = self.pace.zip(rules.pace) {
            self.state.bucket.take_back(&pace, due);
        }
    }

    /// What has become of it, if anything has since `told`.
    fn later(&mut self, most: u32, last: bool, told: Moment) -> Option<Value> {
        let (state, mut since) = (&self.state, self.last);
        if self.minute.is_some() {
            since.minute.note(state.windows.minute.keep(most), most);
        }
        if self.day.is_some() {
            since.day.note(state.windows.day.keep(most), most);
        }
        if self.pace.is_some() {
            since.pace.note(state.bucket.keep(most), most);
        }
        if let Some(due) = &mut self.due {
            let before = std::mem::replace(due, state.balance.due());
            // Time in which nothing was owed has earned nothing.
            since.charged += due.since(before.max(told));
        }
        since.in_flight = if last { 0 } else { state.gate.inside_anywhere() };
        let mut stock = None;
        if last && self.is_shared {
            since.tokens = since.tokens.saturating_add(state.lease.give_tokens());
            let [minute, day] = state.lease.give();
            stock = Some(json!([minute.0, minute.1, day.0, day.1]));
        }
        if std::mem::replace(&mut self.last, since) == since && stock.is_none() {
            return None;
        }
        Some(json!({
            "name": *self.name,
            "minute": since.minute.written(),
            "day": since.day.written(),
            "pace": since.pace.written(),
            "charged": written(since.charged),
            "in_flight": since.in_flight,
            "tokens": since.tokens,
            "stock": stock,
        }))
    }
}

/// The keys as the process that takes over has heard of them.
#[derive(Default)]
pub struct TakenKeys {
    heard: HashMap<String, Since>,
    /// When they were taken.
    at: Moment,
}

impl TakenKeys {
    /// Takes what keys have had; `age` is that of the message. How many were taken.
    pub fn take(
        &mut self,
        plan: &Plan,
        message: Fields<'_>,
        age: Duration,
        now: Timestamp,
    ) -> usize {
        self.at = now.steady;
        let mut taken = 0;
        self.each(plan, message, |limit, entry, since| {
            take_one(limit, entry, since, age, now);
            taken += 1;
        });
        taken
    }

    /// Hears what has become of keys since.
    pub fn later(&mut self, plan: &Plan, message: Fields<'_>, now: Timestamp) {
        let counted = now.steady.since(self.at);
        self.each(plan, message, |limit, entry, since| {
            hear_one(limit, entry, since, counted, now);
            if let Some(budget) = &plan.budget {
                let tokens = entry.number("tokens");
                let more = tokens.saturating_sub(std::mem::replace(&mut since.tokens, tokens));
                if limit.state.lease.spend(more) {
                    budget.ask(limit.ask(None));
                }
            }
        });
    }

    fn each(
        &mut self,
        plan: &Plan,
        message: Fields<'_>,
        mut one: impl FnMut(&KeyLimit, Fields<'_>, &mut Since),
    ) {
        let limits = plan.limits.iter().filter(|limit| limit.rules != KeyRules::default());
        let limits: HashMap<&str, &KeyLimit> = limits.map(|limit| (&*limit.name, limit)).collect();
        for entry in message.objects("keys", KEYS_MAX) {
            // A key that has gone, or has no limits any more, needs no count.
            if let Some(limit) = limits.get(entry.text("name")) {
                one(limit, entry, self.heard.entry(limit.name.to_string()).or_default());
            }
        }
    }
}

fn take_one(limit: &KeyLimit, entry: Fields<'_>, since: &mut Since, age: Duration, now: Timestamp) {
    let KeyLimit { rules, state, .. } = limit;
    let (minute, day) = numbers(now.wall);
    let window = |name: &str, window: &Window, now: u32| {
        let [number, used, kept] =
            entry.numbers(name)?.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        window.inherit(GivenWindow { number, used, kept }, now);
        Some(Kept { used: 0, left: kept })
    };
    since.minute = window("minute", &state.windows.minute, minute).unwrap_or_default();
    since.day = window("day", &state.windows.day, day).unwrap_or_default();
    if let Some(pace) = entry.inner("pace") {
        let ahead = pace.time("ahead").unwrap_or_default();
        since.pace = Kept { used: 0, left: pace.count("kept") };
        state.bucket.inherit(ahead.saturating_sub(age), now.steady);
    }
    if let Some(debt) = entry.time("debt").filter(|_| rules.tokens_per_minute > 0) {
        state.balance.charge_time(debt.saturating_sub(age), now.steady);
    }
    take_stock(limit, entry);
    since.in_flight = entry.count("in_flight");
    state.gate.set_elsewhere(since.in_flight);
}

fn take_stock(limit: &KeyLimit, entry: Fields<'_>) {
    if let Some(stock) = entry.numbers("stock") {
        let [minute, calls, day, calls_day] = stock.map(|n| u32::try_from(n).unwrap_or(0));
        limit.state.lease.inherit([(minute, calls), (day, calls_day)]);
    }
}

fn hear_one(
    limit: &KeyLimit,
    entry: Fields<'_>,
    since: &mut Since,
    counted: Duration,
    now: Timestamp,
) {
    let KeyLimit { rules, state, .. } = limit;
    let (minute, day) = numbers(now.wall);
    if let Some(kept) = Kept::read(entry, "minute") {
        let used = kept.used_since(std::mem::replace(&mut since.minute, kept));
        state.windows.minute.hear(used, kept.left, minute);
    }
    if let Some(kept) = Kept::read(entry, "day") {
        let used = kept.used_since(std::mem::replace(&mut since.day, kept));
        state.windows.day.hear(used, kept.left, day);
    }
    if let Some((kept, pace)) = Kept::read(entry, "pace").zip(rules.pace) {
        let before = std::mem::replace(&mut since.pace, kept);
        let gone = before.left.saturating_sub(kept.left);
        state.bucket.put_back(&pace, gone.saturating_sub(kept.used_since(before)), counted);
    }
    let charged = entry.time("charged").unwrap_or_default();
    let more = charged.saturating_sub(since.charged);
    since.charged = since.charged.max(charged);
    if rules.tokens_per_minute > 0 && more > Duration::ZERO {
        state.balance.charge_time(more, now.steady);
    }
    take_stock(limit, entry);
    since.in_flight = entry.count("in_flight");
    state.gate.set_elsewhere(since.in_flight);
}

/// The process before has ended: nothing is in flight there, and what it kept counts as used.
pub fn end(plan: &Plan, now: Timestamp) {
    let (minute, day) = numbers(now.wall);
    for limit in &plan.limits {
        let state = &limit.state;
        state.gate.set_elsewhere(0);
        state.windows.minute.hear(u32::MAX, 0, minute);
        state.windows.day.hear(u32::MAX, 0, day);
    }
}
