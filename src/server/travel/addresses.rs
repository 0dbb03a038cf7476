//! What client addresses have had at listeners with a rate (`policy::limit::ip`).
//!
//! A table travels as its chance and its emptiest buckets. What the process that gives lets in
//! afterwards, on connections that it still has, is told with the next message and charged then: an
//! address that has many of them may be early by as many calls, and pays for them.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::read::{Fields, written};
use crate::base::clock::Moment;
use crate::policy::limit::ip::IpBucket;
use crate::proxy::plan::{IpLimit, Plan};

/// Most buckets that travel of one listener.
const BUCKETS_MAX: usize = 16_384;
/// Most listeners in a message.
const LISTENERS_MAX: usize = 1000;

/// The tables of the process that gives.
#[derive(Default)]
pub struct GivenAddresses {
    /// Of each listener, until when each bucket was spent as it was last told.
    told: HashMap<String, HashMap<(u32, u32), Moment>>,
    at: Moment,
}

/// The listeners of a plan that have a rate.
fn limited(plan: &Plan) -> impl Iterator<Item = (&str, &IpLimit)> {
    let listeners = plan.listeners.iter();
    listeners.filter_map(|listener| Some((&*listener.name, listener.ip_limit.as_ref()?)))
}

impl GivenAddresses {
    /// Gives what addresses have had.
    ///
    /// Shape: what is remembered, and the list for the message.
    #[must_use]
    pub fn give(plan: &Plan, now: Moment) -> (Self, Value) {
        let mut given = Self { at: now, ..Self::default() };
        let mut list = Vec::new();
        for (name, IpLimit { table, pace }) in limited(plan) {
            let buckets = table.buckets(pace, BUCKETS_MAX, now);
            let spent = buckets.iter().map(|bucket| (bucket.at, now + bucket.ahead));
            given.told.insert(name.to_owned(), spent.collect());
            let buckets: Vec<Value> = buckets.iter().map(bucket).collect();
            list.push(json!({"listener": name, "chance": table.chance(), "buckets": buckets}));
        }
        (given, Value::Array(list))
    }

    /// What was taken since the last message.
    pub fn later(&mut self, plan: &Plan, now: Moment) -> Value {
        let before = std::mem::replace(&mut self.at, now);
        let mut list = Vec::new();
        for (name, IpLimit { table, pace }) in limited(plan) {
            let Some(told) = self.told.get_mut(name) else { continue };
            let mut taken = Vec::new();
            for IpBucket { ahead, at } in table.buckets(pace, usize::MAX, now) {
                let until = now + ahead;
                let spent = told.insert(at, until).unwrap_or_default();
                let ahead = until.since(spent.max(before));
                // The table counts in microseconds.
                if ahead > Duration::from_micros(1) {
                    taken.push(bucket(&IpBucket { ahead, at }));
                }
            }
            if !taken.is_empty() {
                list.push(json!({"listener": name, "buckets": taken}));
            }
        }
        Value::Array(list)
    }
}

fn bucket(bucket: &IpBucket) -> Value {
    json!([bucket.at.0, bucket.at.1, written(bucket.ahead)])
}

/// Takes what addresses have had; `age` is that of the message. How many buckets were taken.
pub fn take(plan: &Plan, message: Fields<'_>, age: Duration, now: Moment) -> usize {
    let limits: HashMap<&str, &IpLimit> = limited(plan).collect();
    let mut count = 0;
    for entry in message.objects("addresses", LISTENERS_MAX) {
        let Some(IpLimit { table, pace }) = limits.get(entry.text("listener")) else { continue };
        if let Some(chance) = entry.numbers("chance") {
            table.inherit(chance);
        }
        for bucket in entry.list("buckets", 8 * BUCKETS_MAX) {
            let numbers = bucket.as_array().map(|list| list.iter().map(Value::as_u64));
            let numbers = numbers.and_then(Iterator::collect::<Option<Vec<u64>>>);
            let Some(&[line, tag, ahead]) = numbers.as_deref() else {
                entry.leave_out(|| "a bucket is not three numbers".to_owned());
                continue;
            };
            let at = [line, tag].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            let cost = Duration::from_nanos(ahead).saturating_sub(age);
            table.charge((at[0], at[1]), cost, pace, now);
            count += 1;
        }
    }
    count
}
