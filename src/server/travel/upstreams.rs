//! What is known of upstreams and groups: breakers, estimates, back-off, slots taken, counts of
//! attempts, and how fast the queues of groups empty.
//!
//! An upstream is the same one when its name is, and it has an address in common: what was known of
//! a server that another one has replaced says nothing. One that was found down is so at the new
//! process until a probe finds it well. Lists of models do not travel: a process asks for them
//! before it serves.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::read::{Fields, written};
use crate::base::clock::Moment;
use crate::policy::breaker::models::MarkImage;
use crate::policy::breaker::{BreakerImage, StateName};
use crate::policy::ewma::MeasuresImage;
use crate::proxy::plan::{Plan, UpstreamPlan};
use crate::upstream::state::{RESULTS, STATES, UpstreamCounts};

/// Most upstreams in a message, and most groups.
const UPSTREAMS_MAX: usize = 10_000;
/// Most addresses of one upstream.
const ADDRESSES_MAX: usize = 64;
/// Most entries of one upstream's lists.
const ENTRIES_MAX: usize = 64;

/// The states of a breaker, as they are written.
const STATE_NAMES: [(StateName, &str); STATES] =
    [(StateName::Closed, "closed"), (StateName::Open, "open"), (StateName::HalfOpen, "half_open")];

/// What was last told of each upstream, in the order of its plan: its counts, and what is in flight.
pub struct GivenUpstreams(Vec<(UpstreamCounts, u32)>);

impl GivenUpstreams {
    /// Gives what is known of upstreams.
    ///
    /// Shape: what is remembered, and the list for the message.
    #[must_use]
    pub fn give(plan: &Plan, now: Moment) -> (Self, Value) {
        let all = plan.upstreams.iter().map(|upstream| give_one(upstream, now));
        let (told, list) = all.unzip();
        (Self(told), Value::Array(list))
    }

    /// What has changed since the last message; `last` when nothing is in flight any more.
    #[must_use]
    pub fn later(&mut self, plan: &Plan, last: bool) -> Value {
        let both = plan.upstreams.iter().zip(&mut self.0);
        let changed = both.filter_map(|(upstream, told)| {
            let (counted, in_flight) = numbers(upstream);
            let now = (counted, if last { 0 } else { in_flight });
            (std::mem::replace(told, now) != now).then(|| counts_written(upstream, &now))
        });
        Value::Array(changed.collect())
    }
}

fn give_one(upstream: &UpstreamPlan, now: Moment) -> ((UpstreamCounts, u32), Value) {
    let state = &upstream.state;
    let told = numbers(upstream);
    let mut entry = counts_written(upstream, &told);
    entry["at"] = addresses(upstream).collect();
    entry["breaker"] = breaker_written(&state.breaker.image(now));
    entry["models"] = state.models.images(now).iter().map(mark_written).collect();
    entry["measures"] = measures_written(&state.measures.image(now));
    entry["down"] = json!(!state.healthy());
    entry["back_off"] = written(state.backs_off_until().since(now));
    (told, entry)
}

/// The list of groups.
#[must_use]
pub fn give_groups(plan: &Plan) -> Value {
    let groups = plan.groups.iter().filter_map(|group| {
        let (grants, waited) = group.queue.as_ref()?.measured();
        let (name, implicit) = (&group.name, group.implicit);
        Some(json!({"name": name, "implicit": implicit, "grants": grants, "waited": written(waited)}))
    });
    groups.collect()
}

/// What is counted of an upstream, and what is in flight there.
fn numbers(upstream: &UpstreamPlan) -> (UpstreamCounts, u32) {
    (upstream.state.counted(), upstream.state.slots.in_flight_anywhere())
}

fn counts_written(upstream: &UpstreamPlan, (counted, in_flight): &(UpstreamCounts, u32)) -> Value {
    json!({
        "name": upstream.name,
        "in_flight": in_flight,
        "attempts": counted.attempts,
        "changes": counted.changes.as_flattened(),
        "calls": counted.calls,
    })
}

fn addresses(upstream: &UpstreamPlan) -> impl Iterator<Item = String> {
    upstream.endpoints.iter().take(ADDRESSES_MAX).map(|endpoint| format!("{:?}", endpoint.address))
}

fn breaker_written(image: &BreakerImage) -> Value {
    let state = STATE_NAMES.iter().find(|(name, _)| *name == image.state);
    let calls = image.calls.iter();
    let calls: Vec<Value> =
        calls.map(|(ago, calls, failures)| json!([written(*ago), calls, failures])).collect();
    json!({
        "state": state.map(|(_, word)| word),
        "cooldown_left": written(image.cooldown_left),
        "doublings": image.doublings,
        "consecutive": image.consecutive,
        "successes": image.successes,
        "calls": calls,
        "failed_ago": image.failed_ago.map(written),
        "hangs": image.hangs,
    })
}

fn breaker_read(fields: Fields<'_>, age: Duration) -> Option<BreakerImage> {
    let word = fields.text("state");
    let Some((state, _)) = STATE_NAMES.iter().find(|(_, known)| *known == word) else {
        fields.leave_out(|| format!("a breaker in the state {word:?}"));
        return None;
    };
    let call = |value: &Value| {
        let list = value.as_array()?.iter().map(Value::as_u64);
        let &[ago, calls, failures] = list.collect::<Option<Vec<u64>>>()?.as_slice() else {
            return None;
        };
        let count = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        Some((Duration::from_nanos(ago) + age, count(calls), count(failures)))
    };
    Some(BreakerImage {
        state: *state,
        cooldown_left: fields.time("cooldown_left").unwrap_or_default().saturating_sub(age),
        doublings: fields.count("doublings"),
        consecutive: fields.count("consecutive"),
        successes: fields.count("successes"),
        calls: fields.list("calls", ENTRIES_MAX).filter_map(call).collect(),
        failed_ago: fields.time("failed_ago").map(|ago| ago + age),
        hangs: fields.is("hangs"),
    })
}

fn mark_written(mark: &MarkImage) -> Value {
    json!({
        "model": mark.model,
        "failures": mark.failures,
        "failed_ago": mark.failed_ago.map(written),
        "worked_ago": mark.worked_ago.map(written),
    })
}

fn mark_read(fields: Fields<'_>, age: Duration) -> MarkImage {
    MarkImage {
        model: fields.number("model"),
        failures: fields.count("failures"),
        failed_ago: fields.time("failed_ago").map(|ago| ago + age),
        worked_ago: fields.time("worked_ago").map(|ago| ago + age),
    }
}

fn measures_written(measures: &MeasuresImage) -> Value {
    json!({
        "response_time": written(measures.response_time),
        "success": measures.success,
        "called_ago": written(measures.called_ago),
        "peak": written(measures.peak),
        "peak_ago": written(measures.peak_ago),
    })
}

fn measures_read(fields: Fields<'_>, age: Duration) -> Option<MeasuresImage> {
    Some(MeasuresImage {
        response_time: fields.time("response_time")?,
        success: fields.fraction("success")? as f32,
        called_ago: fields.time("called_ago").unwrap_or_default() + age,
        peak: fields.time("peak").unwrap_or_default(),
        peak_ago: fields.time("peak_ago").unwrap_or_default() + age,
    })
}

/// The upstreams as the process that takes over has heard of them.
#[derive(Default)]
pub struct TakenUpstreams {
    counted: HashMap<String, UpstreamCounts>,
}

impl TakenUpstreams {
    /// Takes what is known of upstreams; `age` is that of the message. How many were taken.
    pub fn take(&mut self, plan: &Plan, message: Fields<'_>, age: Duration, now: Moment) -> usize {
        let mut taken = 0;
        self.each(plan, message, |upstream, entry| {
            let at: HashSet<&str> =
                entry.list("at", ADDRESSES_MAX).filter_map(Value::as_str).collect();
            if !at.is_empty()
                && !upstream.endpoints.is_empty()
                && !addresses(upstream).any(|address| at.contains(&*address))
            {
                return;
            }
            resume(upstream, entry, age, now);
            taken += 1;
        });
        for group in message.objects("groups", UPSTREAMS_MAX) {
            let (name, implicit) = (group.text("name"), group.is("implicit"));
            let same = plan.groups.iter().find(|one| one.name == name && one.implicit == implicit);
            if let Some(queue) = same.and_then(|one| one.queue.as_ref()) {
                let grants = group.fraction("grants").unwrap_or(0.0);
                queue.resume(grants, group.time("waited").unwrap_or_default());
            }
        }
        taken
    }

    /// Hears what is counted and in flight now.
    pub fn later(&mut self, plan: &Plan, message: Fields<'_>) {
        self.each(plan, message, |_, _| {});
    }

    /// For each upstream of a message that the plan has: its counts, then `one`.
    fn each(
        &mut self,
        plan: &Plan,
        message: Fields<'_>,
        mut one: impl FnMut(&UpstreamPlan, Fields<'_>),
    ) {
        let upstreams = plan.upstreams.iter().map(|upstream| (&*upstream.name, upstream));
        let upstreams: HashMap<&str, &UpstreamPlan> = upstreams.collect();
        for entry in message.objects("upstreams", UPSTREAMS_MAX) {
            let Some(upstream) = upstreams.get(entry.text("name")) else { continue };
            let heard = self.counted.entry(upstream.name.clone()).or_default();
            upstream.state.add_counted(&more(heard, entry));
            one(upstream, entry);
            // Last: who waits for a slot then meets the breaker as it was.
            upstream.state.slots.set_elsewhere(entry.count("in_flight"));
        }
    }
}

/// What has been counted since; notes it in `heard`.
fn more(heard: &mut UpstreamCounts, entry: Fields<'_>) -> UpstreamCounts {
    let grow = |heard: &mut u64, now: u64| {
        let more = now.saturating_sub(*heard);
        *heard += more;
        more
    };
    let mut more = UpstreamCounts {
        attempts: grow(&mut heard.attempts, entry.sum("attempts")),
        ..UpstreamCounts::default()
    };
    if let Some(changes) = entry.sums::<{ STATES * STATES }>("changes") {
        let all = more.changes.as_flattened_mut().iter_mut().zip(heard.changes.as_flattened_mut());
        all.zip(changes).for_each(|((more, heard), now)| *more = grow(heard, now));
    }
    if let Some(calls) = entry.sums::<RESULTS>("calls") {
        let all = more.calls.iter_mut().zip(&mut heard.calls);
        all.zip(calls).for_each(|((more, heard), now)| *more = grow(heard, now));
    }
    more
}

fn resume(upstream: &UpstreamPlan, entry: Fields<'_>, age: Duration, now: Moment) {
    let state = &upstream.state;
    if entry.is("down") {
        state.set_down_before();
    }
    if let Some(image) = entry.inner("breaker").and_then(|fields| breaker_read(fields, age)) {
        state.breaker.resume(&image, now);
    }
    for mark in entry.objects("models", ENTRIES_MAX) {
        state.models.resume(&mark_read(mark, age), now);
    }
    if let Some(image) = entry.inner("measures").and_then(|fields| measures_read(fields, age)) {
        state.measures.resume(&image, now);
    }
    let back_off = entry.time("back_off").unwrap_or_default().saturating_sub(age);
    if back_off > Duration::ZERO {
        state.back_off(now + back_off);
    }
}

/// The process before has ended: nothing is in flight there.
pub fn end(plan: &Plan) {
    plan.upstreams.iter().for_each(|upstream| upstream.state.slots.set_elsewhere(0));
}
