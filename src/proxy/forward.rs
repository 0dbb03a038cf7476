//! The request head as it goes upstream.
//!
//! Field lines that need no change are copied as they came, in order, duplicates kept. What changes
//! is what we own: Host, the credential (each exactly once), hop-by-hop fields, the length when a
//! model name was replaced, and the forwarding fields if the listener adds them. An answer that a
//! key pays for by the token is asked for without a coding, so that it can be read.

use super::core::Core;
use super::gateway_choice;
use super::hold::RoutedBy;
use super::listeners::CoreListener;
use super::permit::Permit;
use super::plan::{Credential, ListenerPlan, PathPlan, ProxyMode, UpstreamPlan, ViaPlan};
use super::refusal::Caller;
use crate::http::head::RequestHead;
use crate::http::name::Name;
use crate::http1::encode;
use crate::policy::auth::Carrier;
use crate::policy::query;
use crate::telemetry::trace::TRACEPARENT_BYTES;

/// How the body is framed on its way upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// As the client framed it.
    AsCame,
    /// With this length: the body was changed.
    Length(u64),
}

/// A checked request: what every attempt needs of it.
pub struct Request<'a> {
    /// The listener that accepted the client's connection.
    pub listener: &'a ListenerPlan,
    /// The same as this core knows it, to see whether it goes meanwhile.
    pub accepted_by: &'a CoreListener,
    /// The parsed head.
    pub head: &'a RequestHead,
    /// What the head alone decided.
    pub permit: &'a Permit,
    /// What every answer needs to know of the request.
    pub caller: &'a Caller,
    /// Path and query after prefix and model have been rewritten.
    pub target: &'a [u8],
    /// The name that the servers read in the place of the model's; `None` = the client's own.
    pub rename: Option<&'a str>,
    /// The model it was routed by, which the rest of the body must not change.
    pub routed_by: RoutedBy<'a>,
}

/// Writes the head for one attempt.
///
/// Shape: `bytes` begins with the client's head, to which the spans of `request.head` refer;
/// `traceparent` stands in for the client's.
pub fn head(
    out: &mut Vec<u8>,
    core: &Core,
    upstream: &UpstreamPlan,
    request: &Request<'_>,
    outgoing: Outgoing,
    traceparent: Option<[u8; TRACEPARENT_BYTES]>,
    bytes: &[u8],
) {
    let &Request { listener, permit, .. } = request;
    request_line(out, core, upstream, request, bytes);
    let request_head = request.head;
    match &upstream.host_line {
        Some(line) => out.extend_from_slice(line),
        None => encode::field(out, b"Host", request_head.authority(bytes).unwrap_or_default()),
    }
    if let Some(ViaPlan { mode: ProxyMode::Forward { authorization, .. }, .. }) = &upstream.via {
        out.extend_from_slice(authorization);
    }
    // Where nobody is trusted nothing is withheld, so that usual requests pay nothing.
    let withholds =
        !listener.trusted.is_empty() && !gateway_choice::is_trusted(listener, permit.peer_ip());
    let own_credentials = !permit.credentials_pass(&upstream.credential);
    encode::copy_request_fields(out, request_head, bytes, |field| {
        let ours = match field.name_kind {
            Name::Host | Name::Expect => true,
            Name::Authorization | Name::XApiKey | Name::XGoogApiKey => own_credentials,
            Name::ContentLength => outgoing != Outgoing::AsCame,
            // Written anew below, or withheld from the upstream where the listener adds none.
            Name::XForwardedFor | Name::XForwardedProto | Name::XRealIp => true,
            Name::XForwardedHost | Name::Forwarded => !listener.forwarded,
            Name::XRequestId => listener.forwarded,
            Name::UserAgent => upstream.user_agent,
            Name::Other if withholds && gateway_choice::is_choice(field.name.of(bytes)) => true,
            Name::Other if traceparent.is_some() && is_traceparent(field.name.of(bytes)) => true,
            Name::Other if permit.is_metered && is_coding_wish(field.name.of(bytes)) => true,
            _ => !listener.forwarded && is_forwarding(field.name.of(bytes)),
        };
        ours || (!upstream.dropped.is_empty() && is_dropped(upstream, field.name.of(bytes)))
    });
    if let Some(value) = &traceparent {
        encode::field(out, TRACEPARENT, value);
    }
    if permit.is_metered {
        ask_for_no_coding(out, upstream);
    }
    if let Credential::Lines(lines) = &upstream.credential {
        out.extend_from_slice(weighted(lines, core.random_u64()));
    }
    out.extend_from_slice(&upstream.added);
    for (name, line) in &upstream.inserted {
        let sent = request_head.fields.iter().any(|f| f.name.of(bytes).eq_ignore_ascii_case(name))
            || (permit.is_metered && is_coding_wish(name));
        if !sent {
            out.extend_from_slice(line);
        }
    }
    match outgoing {
        Outgoing::AsCame if permit.chunked => {
            encode::field(out, b"Transfer-Encoding", b"chunked");
        }
        Outgoing::AsCame => {}
        Outgoing::Length(bytes) => encode::field_number(out, b"Content-Length", bytes),
    }
    if permit.upgrade {
        encode::field(out, b"Connection", b"Upgrade");
        let protocol = request_head.value(Name::Upgrade, bytes).unwrap_or_default();
        encode::field(out, b"Upgrade", protocol);
    }
    if listener.forwarded {
        forwarding_fields(out, request, bytes);
    }
    encode::end_of_head(out);
}

const TRACEPARENT: &[u8] = b"traceparent";

fn is_traceparent(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(TRACEPARENT)
}

/// Whether a field asks for an answer under a content coding, or for a compressed WebSocket.
fn is_coding_wish(name: &[u8]) -> bool {
    same_to_a_server(name, ACCEPT_ENCODING) || same_to_a_server(name, b"sec-websocket-extensions")
}

const ACCEPT_ENCODING: &[u8] = b"accept-encoding";

/// Asks for an answer without a coding, unless the operator removes or replaces that field.
#[cold]
fn ask_for_no_coding(out: &mut Vec<u8>, upstream: &UpstreamPlan) {
    if !is_dropped(upstream, ACCEPT_ENCODING) {
        encode::field(out, b"Accept-Encoding", b"identity");
    }
}

/// Whether the operator has this field removed, replaced or written.
fn is_dropped(upstream: &UpstreamPlan, name: &[u8]) -> bool {
    upstream.dropped.iter().any(|dropped| same_to_a_server(dropped, name))
}

/// Whether two names are one, also to a server that takes `_` for a dash (CGI, WSGI).
fn same_to_a_server(a: &[u8], b: &[u8]) -> bool {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| plain(*a) == plain(*b))
}

/// Whether the field tells of the client and of the proxies before us, under any of its names.
fn is_forwarding(name: &[u8]) -> bool {
    const FRONT: &[u8] = b"x-forwarded-";
    name.get(..FRONT.len()).is_some_and(|front| same_to_a_server(front, FRONT))
}

fn request_line(
    out: &mut Vec<u8>,
    core: &Core,
    upstream: &UpstreamPlan,
    request: &Request<'_>,
    bytes: &[u8],
) {
    let target = request.target;
    out.extend_from_slice(request.head.method_text.of(bytes));
    out.push(b' ');
    let origin = match &upstream.via {
        Some(ViaPlan { mode: ProxyMode::Forward { origin, .. }, .. }) => origin.as_slice(),
        _ => b"",
    };
    out.extend_from_slice(origin);
    let from = out.len();
    match &upstream.path {
        PathPlan::Fixed(fixed) => out.extend_from_slice(fixed),
        PathPlan::Under(base) => {
            let (front, rest) = base.join(target);
            out.extend_from_slice(front);
            out.extend_from_slice(rest);
        }
    }
    if target == b"*" {
        // To a proxy `*` is a URL without a path (RFC 9112 §3.2.4).
        if !origin.is_empty() && out.get(from..) == Some(b"*") {
            out.truncate(from);
        }
    } else if out.get(from) != Some(&b'/') {
        out.insert(from, b'/');
    }
    rewrite_credential_query(out, from, core, upstream, request);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Takes the client's key out of the query and puts the upstream's in, where either is configured
/// to be there.
fn rewrite_credential_query(
    out: &mut Vec<u8>,
    from: usize,
    core: &Core,
    upstream: &UpstreamPlan,
    request: &Request<'_>,
) {
    let client = request
        .listener
        .carriers
        .iter()
        .filter_map(|carrier| match carrier {
            Carrier::Query(name) => Some(&**name),
            _ => None,
        })
        .filter(|_| !request.permit.credentials_pass(&upstream.credential));
    let ours = match &upstream.credential {
        Credential::Query(name, values) => {
            Some((name.as_str(), weighted(values, core.random_u64())))
        }
        _ => None,
    };
    let mut rewrite = |name: &str, value: Option<&[u8]>| {
        if value.is_none() && memchr::memchr(b'?', &out[from..]).is_none() {
            // Nothing to take out: the common case, which must not allocate.
            return;
        }
        let target = out.split_off(from);
        let (path, old) = match memchr::memchr(b'?', &target) {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (&target[..], &b""[..]),
        };
        let mut rewritten = Vec::new();
        query::rewrite(old, name.as_bytes(), value, &mut rewritten);
        out.extend_from_slice(path);
        if !rewritten.is_empty() {
            out.push(b'?');
            out.extend_from_slice(&rewritten);
        }
    };
    for name in client.filter(|name| ours.is_none_or(|(own, _)| own != *name)) {
        rewrite(name, None);
    }
    if let Some((name, value)) = ours {
        rewrite(name, Some(value));
    }
}

fn forwarding_fields(out: &mut Vec<u8>, request: &Request<'_>, bytes: &[u8]) {
    let head = request.head;
    if let Some(peer) = &request.permit.peer {
        out.extend_from_slice(b"X-Forwarded-For: ");
        for earlier in head.values(Name::XForwardedFor, bytes) {
            out.extend_from_slice(earlier);
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(peer.text.as_bytes());
        out.extend_from_slice(b"\r\n");
        let trusted = request.listener.trusted.iter().any(|net| net.contains(&peer.ip));
        match head.value(Name::XRealIp, bytes).filter(|_| trusted) {
            Some(real) => encode::field(out, b"X-Real-IP", real),
            None => encode::field(out, b"X-Real-IP", peer.text.as_bytes()),
        }
        match head.value(Name::XForwardedProto, bytes).filter(|_| trusted) {
            Some(proto) => encode::field(out, b"X-Forwarded-Proto", proto),
            None if request.listener.tls.is_some() => {
                encode::field(out, b"X-Forwarded-Proto", b"https");
            }
            None => encode::field(out, b"X-Forwarded-Proto", b"http"),
        }
    }
    encode::field(out, b"X-Request-Id", request.caller.id.as_bytes());
}

/// Chooses by weight; weights are positive and finite, the config has seen to that.
fn weighted(choices: &[(f64, Vec<u8>)], chance: u64) -> &[u8] {
    if let [(_, only)] = choices {
        return only;
    }
    let total: f64 = choices.iter().map(|(weight, _)| weight).sum();
    // 53 random bits: uniform in 0..1.
    let mut left = (chance >> 11) as f64 / (1u64 << 53) as f64 * total;
    for (weight, choice) in choices {
        left -= weight;
        if left < 0.0 {
            return choice;
        }
    }
    choices.last().map_or(&[], |(_, last)| last)
}
