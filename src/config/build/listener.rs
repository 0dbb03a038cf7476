//! Builds `[[listener]]` and its routes.

use std::collections::HashMap;

use crate::config::build::bind::parse_bind;
use crate::config::build::check::{
    AllNames, AtText as _, Names, each, filled, missing, number, required, word,
};
use crate::config::build::process::{cidrs, tcp_keepalive, timeout};
use crate::config::build::tls::listener_tls;
use crate::config::fault::{Spot, did_you_mean};
use crate::config::model::*;
use crate::config::raw::{RawConfig, RawListener, RawRoute};
use crate::config::reader::{At, Reader};
use crate::config::values::OneOrMany;
use crate::policy::cors::{NoOrigin, origin};
use crate::policy::host::{HostTable, HostWhy};
use crate::policy::route::{PathTable, PatternWhy, is_normal};

/// Words of `accept`, for "did you mean".
const CARRIERS: [&str; 5] = ["bearer", "raw", "x-api-key", "x-goog-api-key", "query:key"];
/// What is looked at when `accept` is not said.
const CARRIERS_DEFAULT: [&str; 4] = ["bearer", "x-api-key", "x-goog-api-key", "query:key"];

pub(crate) fn listeners(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    defaults: &ClientTimeouts,
) -> Vec<Listener> {
    if each(&raw.listener).is_empty() {
        let message = "no [[listener]]: there is nothing to listen on";
        r.draft.fault(&Spot::default(), message);
    }
    let has_keys = !each(&raw.key).is_empty();
    each(&raw.listener).iter().map(|at| listener(at, r, names, defaults, has_keys)).collect()
}

fn listener(
    at: &At<RawListener>,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    defaults: &ClientTimeouts,
    has_keys: bool,
) -> Listener {
    let raw = &at.value;
    let binds = binds(r, raw, &at.spot);
    let auth = word(&raw.auth, ListenerAuth::Keys);
    warn_of_auth(r, raw, &at.spot, auth, &binds, has_keys);
    let default_group = filled(&raw.default_group).and_then(|g| names.groups.find_one(r, g));
    Listener {
        name: raw.name.text(),
        binds,
        tls: raw.tls.as_ref().and_then(|tls| listener_tls(r, tls)),
        auth,
        accept: accept(r, raw),
        default_group: default_group.map(GroupId),
        force: word(&raw.force, Force::Listed),
        cors: cors(r, each(&raw.cors)),
        trusted_proxies: cidrs(r, each(&raw.trusted_proxies)),
        forwarded: word(&raw.forwarded, Forwarded::Append),
        ratelimit: raw.ratelimit.as_ref().map(|at| IpRate {
            per_second: number(r, &at.value.per_second, 100, 1..=10_000),
            burst: number(r, &at.value.burst, 200, 1..=20_000),
        }),
        routes: routes(r, raw, names),
        timeouts: client_timeouts(r, raw, defaults),
    }
}

fn client_timeouts(
    r: &mut Reader<'_>,
    raw: &RawListener,
    defaults: &ClientTimeouts,
) -> ClientTimeouts {
    let Some(At { value: raw, .. }) = &raw.timeouts else { return *defaults };
    ClientTimeouts {
        client_head: timeout(r, &raw.client_head, defaults.client_head),
        client_body_idle: timeout(r, &raw.client_body_idle, defaults.client_body_idle),
        client_keepalive: timeout(r, &raw.client_keepalive, defaults.client_keepalive),
        client_write_idle: timeout(r, &raw.client_write_idle, defaults.client_write_idle),
        tls_handshake: timeout(r, &raw.tls_handshake, defaults.tls_handshake),
        tcp_keepalive: tcp_keepalive(r, &raw.tcp_keepalive, defaults.tcp_keepalive),
    }
}

fn warn_of_auth(
    r: &mut Reader<'_>,
    raw: &RawListener,
    parent: &Spot,
    auth: ListenerAuth,
    binds: &[Bind],
    has_keys: bool,
) {
    let spot = raw.auth.as_ref().map_or(parent, |at| &at.spot);
    match auth {
        ListenerAuth::None => {
            if let Some(bind) = binds.iter().find(|bind| !bind.is_local()) {
                let message = format!("open: everyone who reaches {bind} may use every model");
                r.draft.warn(spot, message);
            }
        }
        ListenerAuth::Keys if !has_keys => {
            r.draft.warn(spot, "auth is \"keys\" and there is no [[key]]: nobody gets in");
        }
        ListenerAuth::Keys => {}
    }
}

fn binds(r: &mut Reader<'_>, raw: &RawListener, parent: &Spot) -> Vec<Bind> {
    let Some(At { value: OneOrMany(list), spot }) = &raw.bind else {
        missing(r, parent, "bind");
        return Vec::new();
    };
    if list.is_empty() {
        r.draft.fault(spot, "must not be empty");
    }
    list.iter().filter_map(|at| parse_bind(r, at)).collect()
}

/// Origins, as browsers write them.
fn cors(r: &mut Reader<'_>, list: &[At<String>]) -> Vec<String> {
    let mut origins = Vec::new();
    for at in list {
        match origin(&at.value) {
            Ok(origin) => origins.push(origin),
            Err(NoOrigin) => {
                let shown = r.draft.quote(&at.spot, &at.value);
                let forms = "https://chat.example, without a path, or \"*\"";
                r.draft.fault(&at.spot, format!("{shown} is no origin; write {forms}"));
            }
        }
    }
    origins
}

fn accept(r: &mut Reader<'_>, raw: &RawListener) -> Vec<Carrier> {
    let Some(list) = &raw.accept else {
        return CARRIERS_DEFAULT.iter().filter_map(|word| Carrier::parse(word)).collect();
    };
    if list.value.is_empty() {
        r.draft.fault(&list.spot, "must not be empty");
    }
    let mut carriers: Vec<Carrier> = Vec::new();
    for at in &list.value {
        match Carrier::parse(&at.value.to_ascii_lowercase()) {
            // The name of a parameter keeps its case.
            Some(Carrier::Query(_)) => carriers.extend(Carrier::parse(&at.value)),
            Some(carrier) => carriers.push(carrier),
            None => {
                let shown = r.draft.quote(&at.spot, &at.value);
                let hint = did_you_mean(&at.value, CARRIERS);
                let known = CARRIERS.join(", ");
                r.draft.fault(&at.spot, format!("{shown} is none of {known}{hint}"));
            }
        }
    }
    carriers
}

fn routes(r: &mut Reader<'_>, raw: &RawListener, names: &mut AllNames) -> Vec<RouteRule> {
    let list = each(&raw.route);
    check_patterns(r, list);
    list.iter().filter_map(|at| route(r, at, names)).collect()
}

fn route(r: &mut Reader<'_>, at: &At<RawRoute>, names: &mut AllNames) -> Option<RouteRule> {
    let raw = &at.value;
    let path = filled(&raw.path).map(|at| at.value.clone());
    let host = filled(&raw.host).and_then(|at| host_route(r, at));
    if path.is_none() && filled(&raw.host).is_none() {
        r.draft.fault(&at.spot, "a route needs a path or a host");
    }
    if let Some(list) = raw.keys.as_ref().filter(|list| list.value.is_empty()) {
        r.draft.fault(&list.spot, "must not be empty; without it every key may use the route");
    }
    let keys = raw.keys.as_ref().map(|list| key_ids(r, &list.value, &mut names.keys));
    let group = required(r, &raw.group, &at.spot, "group")?;
    let group = GroupId(names.groups.find_one(r, group)?);
    Some(RouteRule { path, host, group, keys })
}

fn key_ids(r: &mut Reader<'_>, list: &[At<String>], keys: &mut Names) -> Vec<KeyId> {
    list.iter().filter_map(|at| keys.find_one(r, at)).map(KeyId).collect()
}

fn host_route(r: &mut Reader<'_>, at: &At<String>) -> Option<HostRoute> {
    if let Err(fault) = HostTable::new([(&at.value, ())]) {
        let shown = r.draft.quote(&at.spot, &at.value);
        r.draft.fault(&at.spot, format!("{shown}: {}", fault.why));
        return None;
    }
    if let Some(slash) = at.value.find('/')
        && !is_normal(at.value[slash..].trim_end_matches('/'))
    {
        never_matched(r, at);
    }
    Some(as_compared(&at.value))
}

/// Bad patterns, and rules that could never be reached since an earlier one is the same.
fn check_patterns(r: &mut Reader<'_>, list: &[At<RawRoute>]) {
    // Per host with prefix, as it is compared, the rules with a path; none = any host.
    let mut by_host: HashMap<Option<HostRoute>, Vec<&At<String>>> = HashMap::new();
    let mut bare: HashMap<HostRoute, &Spot> = HashMap::new();
    for at in list {
        let host_at = filled(&at.value.host);
        let host = host_at.map(|at| as_compared(&at.value));
        match (filled(&at.value.path), host_at.zip(host.clone())) {
            (Some(path), _) => by_host.entry(host).or_default().push(path),
            (None, Some((host_at, host))) => {
                if let Some(first) = bare.get(&host) {
                    let line = r.draft.line_of(first);
                    let why = HostWhy::Twice;
                    r.draft.fault(&host_at.spot, format!("{why}: {} in line {line}", first.path));
                } else {
                    bare.insert(host, &host_at.spot);
                }
            }
            (None, None) => {}
        }
    }
    by_host.into_values().for_each(|paths| check_paths(r, paths));
}

/// A host and its prefix as they are compared: of the prefix the case counts.
fn as_compared(text: &str) -> HostRoute {
    let (host, prefix) = match text.find('/') {
        Some(slash) => text.split_at(slash),
        None => (text, ""),
    };
    let prefix = Some(prefix.trim_end_matches('/')).filter(|p| !p.is_empty());
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    HostRoute { host, prefix: prefix.map(str::to_owned) }
}

/// Paths are compared in their normal form alone.
fn never_matched(r: &mut Reader<'_>, at: &At<String>) {
    let shown = r.draft.quote(&at.spot, &at.value);
    let is_hex = |code: Option<&str>| code.is_some_and(|c| u8::from_str_radix(c, 16).is_ok());
    if at.value.split('%').skip(1).any(|rest| !is_hex(rest.get(..2))) {
        // It guards nothing that another spelling would open: such a request is refused.
        let message = format!("{shown} is never matched: a % without two digits is no path");
        return r.draft.warn(&at.spot, message);
    }
    let why = "write no \"//\", no dot segments, no %41 for a letter, and %2F in capitals";
    r.draft.fault(&at.spot, format!("{shown} is never matched: {why}"));
}

/// The table stops at the first bad pattern; take that one out and ask again.
fn check_paths(r: &mut Reader<'_>, mut paths: Vec<&At<String>>) {
    for at in &paths {
        if !is_normal(&at.value) {
            never_matched(r, at);
        }
    }
    while let Err(fault) = PathTable::new(paths.iter().map(|at| (&at.value, ()))) {
        let bad = paths.remove(fault.index);
        let shown = r.draft.quote(&bad.spot, &bad.value);
        let message = match fault.why {
            PatternWhy::SameAs(first) => {
                let twin = &paths[first].spot;
                let line = r.draft.line_of(twin);
                format!("duplicate path {shown}, the first is {} in line {line}", twin.path)
            }
            why => format!("{shown} is no path pattern: {why}"),
        };
        r.draft.fault(&bad.spot, message);
    }
}
