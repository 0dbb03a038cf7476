//! The second station: what the head alone decides.
//!
//! In this order: method, framing, size, expectation, built-in answers, address, key. A request
//! that passes gets a `Permit`; no later station checks any of it again. A client that waits with
//! `Expect: 100-continue` gets its refusal here, before it has sent a byte of its body.

use super::downstream::Peer;
use super::permit::Permit;
use super::plan::{ListenerPlan, Plan};
use super::refusal::{Caller, CorsLines, Refusal, too_large};
use super::unrouted;
use crate::base::clock::{Timestamp, WallTime};
use crate::base::ids::RequestId;
use crate::error::Kind;
use crate::http::fields::{OPTIONS_MAX, has_token};
use crate::http::head::{Field, RequestHead, Version};
use crate::http::method::Method;
use crate::http::name::Name;
use crate::http1::framing::{Framing, request_framing};
use crate::llm::reply::Dialect;
use crate::policy::auth::find_credential;
use crate::policy::keys::KeyId;
use crate::policy::limit::client_ip::client_ip;
use crate::policy::limit::standing::Standing;

/// What becomes of a request, as far as its head alone decides.
pub enum Admitted {
    /// Go on to the next station with this permit.
    Permit(Permit),
    /// Ask again when it is known what addresses have had at the process before.
    Awaited,
    /// Answer 200 with this JSON at once; the framing is the request's.
    BuiltIn(&'static str, Framing),
    /// Answer a CORS preflight: the value of `Access-Control-Request-Headers`, if sent, and the
    /// request's framing.
    Preflight(Option<Vec<u8>>, Framing),
    /// Answer `GET /v1/models`: the models that the key may use.
    Models(Permit),
}

/// Reads what every answer needs to know of the request; never fails, so that every refusal has an
/// id, a dialect and a version.
///
/// Shape: `now` and `chance`, a random draw, make the id of a request that brings no valid
/// `X-Request-Id`.
#[must_use]
pub fn caller(head: &RequestHead, bytes: &[u8], now: WallTime, chance: u64) -> Caller {
    let sent = head.value(Name::XRequestId, bytes);
    Caller {
        id: RequestId::accept(sent, now, chance),
        dialect: Dialect::of_path(head.path(bytes)),
        version: head.version,
        persists: head.connection(bytes).persists(head.version),
        head_only: head.method == Method::Head,
        standing: Standing::default(),
        cors: CorsLines::default(),
    }
}

/// The CORS lines of an answer, at a listener with a list of origins: `Denied` unless the head has
/// exactly one `Origin` and that is on the list.
#[must_use]
#[cold]
pub fn cors_lines(listener: &ListenerPlan, head: &RequestHead, bytes: &[u8]) -> CorsLines {
    let allowed = only(head, bytes, b"origin").and_then(|origin| listener.cors.lines(origin));
    allowed.map_or(CorsLines::Denied, |lines| CorsLines::Allowed(lines.clone()))
}

/// Whether this is a CORS preflight: a browser asks, by OPTIONS, whether a page of a listed origin
/// may call.
fn is_preflight(listener: &ListenerPlan, head: &RequestHead, bytes: &[u8]) -> bool {
    head.method == Method::Options
        && !listener.cors.is_off()
        && only(head, bytes, b"access-control-request-method").is_some()
        && only(head, bytes, b"origin").is_some_and(|origin| listener.cors.lines(origin).is_some())
}

/// The value of a field that occurs exactly once; `name` in lower case.
#[must_use]
pub fn only<'a>(head: &RequestHead, bytes: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let named = |field: &&Field| field.name.of(bytes).eq_ignore_ascii_case(name);
    let mut found = head.fields.iter().filter(named);
    let value = found.next()?.value.of(bytes);
    found.next().is_none().then_some(value)
}

/// Decides what the head alone decides.
///
/// Shape: `certified` is the name in the client's verified TLS certificate, if it showed one.
/// Errors: the refusal to answer with.
pub fn admit(
    plan: &Plan,
    listener: &ListenerPlan,
    head: &RequestHead,
    bytes: &[u8],
    peer: Option<&Peer>,
    certified: Option<&str>,
    now: Timestamp,
) -> Result<Admitted, Refusal> {
    if matches!(head.method, Method::Connect | Method::Trace) {
        let message = format!("Method {} is not served here.", head.method.text());
        return Err(Refusal::because(Kind::MethodRefused, message));
    }
    let connection = head.connection(bytes);
    if connection.excessive {
        let message = format!("Too many options in Connection: over {OPTIONS_MAX}.");
        return Err(Refusal::because(Kind::FieldsTooMany, message));
    }
    let framing = bounded_framing(plan, head, bytes)?;
    let expects_continue = expects_continue(head, bytes)?;
    if let Some(json) = built_in(listener, head, bytes, certified) {
        return Ok(Admitted::BuiltIn(json, framing));
    }
    let client = peer
        .map(|peer| client_ip(peer.ip, head.values(Name::XForwardedFor, bytes), &listener.trusted));
    // Before the key is checked, so that a client that guesses keys is slowed down.
    if let Some(limit) = &listener.ip_limit
        && let Some(ip) = client
    {
        if limit.table.is_awaited() {
            return Ok(Admitted::Awaited);
        }
        limit.take(ip, now.steady)?;
    }
    if is_preflight(listener, head, bytes) {
        // A browser sends no key with a preflight.
        let asked = only(head, bytes, b"access-control-request-headers").map(<[u8]>::to_vec);
        return Ok(Admitted::Preflight(asked, framing));
    }
    let upgrade = connection.upgrade
        && head.method == Method::Get
        && matches!(framing, Framing::None | Framing::Length(0))
        && head.values(Name::Upgrade, bytes).any(|value| has_token(value, b"websocket"));
    // Before the key is checked, too: refused for a wrong key instead, the client would try the
    // upgrade again as often as it tries the request.
    if upgrade && unrouted::leads_nowhere(listener, head, bytes) {
        return Err(Kind::UpgradeRefused.into());
    }
    let key = if listener.keys_required {
        Some(authenticate(plan, listener, head, bytes, certified, now.wall.as_secs())?)
    } else {
        None
    };
    let rights = key.and_then(|key| plan.keys.key(key)).map(|key| &key.models);
    let limit = key.and_then(|key| plan.limits.get(key.0 as usize));
    let permit = Permit {
        key,
        limited: rights.is_some_and(|models| !models.allow_all()),
        listener: listener.number,
        framing,
        chunked: framing == Framing::Chunked,
        expects_continue,
        upgrade,
        peer: peer.cloned(),
        client,
        priority: limit.map_or(0, |limit| limit.priority),
        is_metered: limit.is_some_and(|limit| limit.rules.tokens_per_minute > 0),
        key_was_ours: listener.keys_required,
    };
    if head.path(bytes) == b"/v1/models" && is_get(head) {
        return Ok(Admitted::Models(permit));
    }
    Ok(Admitted::Permit(permit))
}

/// How the body is delimited.
///
/// Errors: 400 where that is not certain, 413 where the length is over the limit.
fn bounded_framing(plan: &Plan, head: &RequestHead, bytes: &[u8]) -> Result<Framing, Refusal> {
    let framing = request_framing(head, bytes).map_err(|fault| {
        Refusal::because(Kind::FramingAmbiguous, format!("Ambiguous message framing: {fault}."))
    })?;
    match framing {
        Framing::Length(length) if length > plan.body_bytes_max => {
            Err(too_large(length, plan.body_bytes_max))
        }
        framing => Ok(framing),
    }
}

/// Whether the client waits for a 100 before it sends its body.
///
/// Errors: 417.
fn expects_continue(head: &RequestHead, bytes: &[u8]) -> Result<bool, Refusal> {
    match head.value(Name::Expect, bytes) {
        None => Ok(false),
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => {
            Ok(head.version == Version::Http11)
        }
        Some(_) => Err(Kind::ExpectationFailed.into()),
    }
}

fn is_get(head: &RequestHead) -> bool {
    matches!(head.method, Method::Get | Method::Head)
}

/// The JSON that is answered to anybody, before a key is looked at.
fn built_in(
    listener: &ListenerPlan,
    head: &RequestHead,
    bytes: &[u8],
    certified: Option<&str>,
) -> Option<&'static str> {
    if !is_get(head) {
        return None;
    }
    match head.path(bytes) {
        b"/health" => Some(r#"{"status":"ok"}"#),
        b"/healthz" => Some(r#"{"ok":true}"#),
        b"/" if unrouted::root_is_ours(listener, head, bytes, certified) => {
            Some(r#"{"status":"ok"}"#)
        }
        _ => None,
    }
}

fn authenticate(
    plan: &Plan,
    listener: &ListenerPlan,
    head: &RequestHead,
    bytes: &[u8],
    certified: Option<&str>,
    now_s: u64,
) -> Result<KeyId, Refusal> {
    let places = unrouted::places(head, bytes);
    let Some((_, secret)) = find_credential(&listener.carriers, &places) else {
        let key = |name| plan.keys.certified(name, listener.number, now_s);
        if let Some(key) = certified.and_then(key) {
            return Ok(key?);
        }
        return Err(
            Refusal::from(Kind::KeyMissing).hint("Send your key as \"Authorization: Bearer KEY\".")
        );
    };
    Ok(plan.keys.authenticate(&secret, listener.number, now_s)?)
}
