//! Builds `[[group]]` and `[group_defaults]`.

use std::collections::HashSet;

use crate::config::build::check::{
    AllNames, AtText as _, Names, each, is_token, missing, number, required, secs, section, time,
    value, word,
};
use crate::config::build::process::{connect, pool_idle, tcp_keepalive, timeout, total};
use crate::config::fault::did_you_mean;
use crate::config::model::*;
use crate::config::raw::{RawConfig, RawGroup, RawRetry};
use crate::config::reader::{At, Reader};

/// What is retried when `retry.on` is not said.
const RETRY_ON: [&str; 5] = ["connect", "reset", "502", "503", "429"];

/// What holds for every group that does not say otherwise.
pub(crate) fn group_defaults(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    timeouts: &UpstreamTimeouts,
) -> GroupDefaults {
    // Fewest in flight: what a server of models has to do is told best by what it is doing.
    let plain = GroupDefaults {
        balance: Balance::LeastConn,
        retry: Retry {
            attempts: 2,
            initial: secs(1) / 10,
            max: secs(2),
            on: retry_on_default(),
            same: false,
        },
        queue: Queue { length: 0, wait: secs(30) },
        affinity: None,
        serve: Vec::new(),
        errors: ErrorBodies::Pass,
        timeouts: *timeouts,
    };
    let raw = section(&raw.group_defaults);
    // A group without a name, members and fallbacks.
    let said = RawGroup {
        balance: raw.balance,
        retry: raw.retry,
        queue: raw.queue,
        affinity: raw.affinity,
        serve: raw.serve,
        errors: raw.errors,
        timeouts: raw.timeouts,
        ..RawGroup::default()
    };
    resolved(r, &said, &plain)
}

/// What a group says, and the defaults where it does not.
fn resolved(r: &mut Reader<'_>, raw: &RawGroup, defaults: &GroupDefaults) -> GroupDefaults {
    let queue = section(&raw.queue);
    GroupDefaults {
        balance: word(&raw.balance, defaults.balance),
        retry: retry(r, &section(&raw.retry), &defaults.retry),
        queue: Queue {
            length: number(r, &queue.length, defaults.queue.length, 0..=1_000_000),
            wait: time(r, &queue.wait, defaults.queue.wait, secs(1) / 1000..=secs(3600)),
        },
        affinity: match &raw.affinity {
            Some(at) => required(r, &at.value.by, &at.spot, "by").and_then(|by| affinity(r, by)),
            None => defaults.affinity.clone(),
        },
        serve: match &raw.serve {
            Some(list) => list.value.iter().map(|at| at.value.0).collect(),
            None => defaults.serve.clone(),
        },
        errors: word(&raw.errors, defaults.errors),
        timeouts: upstream_timeouts(r, raw, &defaults.timeouts),
    }
}

pub(crate) fn groups(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    defaults: &GroupDefaults,
) -> Vec<Group> {
    let list = each(&raw.group);
    let groups: Vec<Group> = list.iter().map(|at| group(at, r, names, defaults)).collect();
    for (index, at) in list.iter().enumerate() {
        if let (Some(fallback), true) = (&at.value.fallback, falls_back_to_itself(&groups, index)) {
            r.draft.fault(&fallback.spot, "leads back to this group");
        }
    }
    groups
}

/// A group of upstreams that the file does not declare.
pub(crate) fn implicit_group(
    upstreams: &[Upstream],
    members: &[UpstreamId],
    defaults: &GroupDefaults,
) -> Group {
    let names: Vec<&str> =
        members.iter().map(|id| upstreams[usize::from(id.0)].name.as_str()).collect();
    let members = members.iter().map(|id| Member { upstream: *id, weight: 1 }).collect();
    assembled(names.join("+"), members, Vec::new(), true, defaults.clone())
}

fn group(
    at: &At<RawGroup>,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    defaults: &GroupDefaults,
) -> Group {
    let raw = &at.value;
    let fallback = each(&raw.fallback).iter().filter_map(|at| names.groups.find_one(r, at));
    let fallback = fallback.map(GroupId).collect();
    let members = members(at, r, &mut names.upstreams);
    assembled(raw.name.text(), members, fallback, false, resolved(r, raw, defaults))
}

fn assembled(
    name: String,
    members: Vec<Member>,
    fallback: Vec<GroupId>,
    implicit: bool,
    said: GroupDefaults,
) -> Group {
    let GroupDefaults { balance, retry, queue, affinity, serve, errors, timeouts } = said;
    Group {
        name,
        balance,
        members,
        retry,
        queue,
        affinity,
        fallback,
        serve,
        errors,
        timeouts,
        implicit,
    }
}

fn members(at: &At<RawGroup>, r: &mut Reader<'_>, upstreams: &mut Names) -> Vec<Member> {
    let Some(list) = &at.value.members else {
        missing(r, &at.spot, "members");
        return Vec::new();
    };
    if list.value.is_empty() {
        r.draft.fault(&list.spot, "must not be empty");
    }
    let mut members: Vec<Member> = Vec::new();
    let mut known = HashSet::new();
    for entry in &list.value {
        let raw = &entry.value.0;
        let weight = number(r, &raw.weight, 1, 1..=65_535);
        let Some(name) = required(r, &raw.upstream, &entry.spot, "upstream") else { continue };
        for id in upstreams.find(r, name).unwrap_or_default() {
            let upstream = UpstreamId(id);
            if !known.insert(id) {
                let shown = r.draft.quote(&name.spot, &name.value);
                r.draft.fault(&name.spot, format!("upstream {shown} is a member twice"));
                continue;
            }
            members.push(Member { upstream, weight });
        }
    }
    members
}

fn retry(r: &mut Reader<'_>, raw: &RawRetry, defaults: &Retry) -> Retry {
    let backoff = secs(1) / 10..=secs(10);
    let initial = time(r, &raw.initial, defaults.initial, backoff.clone());
    let max = time(r, &raw.max, defaults.max.max(initial), backoff);
    if let Some(at) = &raw.max
        && max < initial
    {
        r.draft.fault(&at.spot, "less than initial");
    }
    let on = raw.on.as_ref().map_or(defaults.on, |list| retry_on(r, &list.value));
    Retry {
        attempts: number(r, &raw.attempts, defaults.attempts, 0..=100),
        // Of defaults that were said elsewhere the longest backoff may be the shorter one.
        initial: initial.min(max),
        max,
        on,
        same: value(&raw.same, defaults.same),
    }
}

fn retry_on_default() -> RetryOn {
    let mut on = RetryOn::NOTHING;
    let known = RETRY_ON.iter().all(|word| on.insert(word));
    debug_assert!(known, "every default word is one of policy's");
    on
}

fn retry_on(r: &mut Reader<'_>, words: &[At<String>]) -> RetryOn {
    let mut on = RetryOn::NOTHING;
    for at in words {
        if !on.insert(&at.value) {
            let shown = r.draft.quote(&at.spot, &at.value);
            let hint = did_you_mean(&at.value, ["connect", "reset", "timeout"]);
            let known = "connect, reset, timeout, 5xx, a status 400..599";
            r.draft.fault(&at.spot, format!("{shown} is none of {known}{hint}"));
        }
    }
    on
}

fn affinity(r: &mut Reader<'_>, at: &At<String>) -> Option<Affinity> {
    match at.value.as_str() {
        "prefix" => return Some(Affinity::Prefix),
        "key" => return Some(Affinity::Key),
        "ip" => return Some(Affinity::Ip),
        _ => {}
    }
    match at.value.strip_prefix("header:") {
        Some(name) if is_token(name) => Some(Affinity::Header(name.to_ascii_lowercase())),
        _ => {
            let shown = r.draft.quote(&at.spot, &at.value);
            let hint = did_you_mean(&at.value, ["prefix", "key", "ip"]);
            r.draft
                .fault(&at.spot, format!("{shown} is none of prefix, header:NAME, key, ip{hint}"));
            None
        }
    }
}

fn upstream_timeouts(
    r: &mut Reader<'_>,
    raw: &RawGroup,
    defaults: &UpstreamTimeouts,
) -> UpstreamTimeouts {
    let Some(At { value: raw, .. }) = &raw.timeouts else { return *defaults };
    UpstreamTimeouts {
        connect: connect(r, &raw.connect, defaults.connect),
        proxy_connect: connect(r, &raw.proxy_connect, defaults.proxy_connect),
        first_byte: timeout(r, &raw.first_byte, defaults.first_byte),
        stream_idle: timeout(r, &raw.stream_idle, defaults.stream_idle),
        total: total(r, &raw.total, defaults.total),
        pool_idle: pool_idle(r, &raw.pool_idle, defaults.pool_idle),
        tcp_keepalive: tcp_keepalive(r, &raw.tcp_keepalive, defaults.tcp_keepalive),
    }
}

/// Whether the fallbacks of a group come round to it.
fn falls_back_to_itself(groups: &[Group], start: usize) -> bool {
    let mut seen = vec![false; groups.len()];
    let mut open: Vec<usize> = vec![start];
    while let Some(at) = open.pop() {
        for next in groups.get(at).map_or(&[][..], |g| &g.fallback).iter() {
            let next = usize::from(next.0);
            if next == start {
                return true;
            }
            if let Some(false) = seen.get(next) {
                seen[next] = true;
                open.push(next);
            }
        }
    }
    false
}
