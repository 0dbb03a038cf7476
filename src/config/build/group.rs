//! Builds `[[group]]`.

use std::collections::HashSet;

use crate::config::build::check::{
    AtText as _, Names, is_token, missing, number, required, secs, time, word,
};
use crate::config::build::process::{connect, pool_idle, section, tcp_keepalive, timeout, total};
use crate::config::build::{AllNames, each};
use crate::config::fault::did_you_mean;
use crate::config::model::*;
use crate::config::raw::{RawConfig, RawGroup, RawRetry};
use crate::config::reader::{At, Reader};

/// What is retried when `retry.on` is not said.
const RETRY_ON: [&str; 5] = ["connect", "reset", "502", "503", "429"];

pub(crate) fn groups(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    defaults: &UpstreamTimeouts,
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
    timeouts: &UpstreamTimeouts,
) -> Group {
    let names: Vec<&str> =
        members.iter().map(|id| upstreams[usize::from(id.0)].name.as_str()).collect();
    Group {
        name: names.join("+"),
        balance: Balance::RoundRobin,
        members: members.iter().map(|id| Member { upstream: *id, weight: 1 }).collect(),
        retry: Retry { attempts: 2, initial: secs(1) / 10, max: secs(2), on: retry_on_default() },
        queue: Queue { length: 0, wait: secs(30) },
        affinity: None,
        fallback: Vec::new(),
        serve: Vec::new(),
        errors: ErrorBodies::Pass,
        timeouts: *timeouts,
        implicit: true,
    }
}

fn group(
    at: &At<RawGroup>,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    defaults: &UpstreamTimeouts,
) -> Group {
    let raw = &at.value;
    let fallback = each(&raw.fallback).iter().filter_map(|at| names.groups.find_one(r, at));
    let fallback = fallback.map(GroupId).collect();
    let queue = section(&raw.queue);
    Group {
        name: raw.name.text(),
        balance: word(&raw.balance, Balance::RoundRobin),
        members: members(at, r, &mut names.upstreams),
        retry: retry(r, &section(&raw.retry)),
        queue: Queue {
            length: number(r, &queue.length, 0, 0..=1_000_000),
            wait: time(r, &queue.wait, secs(30), secs(1) / 1000..=secs(3600)),
        },
        affinity: raw.affinity.as_ref().and_then(|at| {
            let by = required(r, &at.value.by, &at.spot, "by")?;
            affinity(r, by)
        }),
        fallback,
        serve: each(&raw.serve).iter().map(|at| at.value.0).collect(),
        errors: word(&raw.errors, ErrorBodies::Pass),
        timeouts: upstream_timeouts(r, raw, defaults),
        implicit: false,
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

fn retry(r: &mut Reader<'_>, raw: &RawRetry) -> Retry {
    let backoff = secs(1) / 10..=secs(10);
    let initial = time(r, &raw.initial, secs(1) / 10, backoff.clone());
    let max = time(r, &raw.max, secs(2).max(initial), backoff);
    if let Some(at) = &raw.max
        && max < initial
    {
        r.draft.fault(&at.spot, "less than initial");
    }
    let on = raw.on.as_ref().map_or_else(retry_on_default, |list| retry_on(r, &list.value));
    Retry { attempts: number(r, &raw.attempts, 2, 0..=100), initial, max, on }
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
