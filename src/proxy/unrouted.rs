//! The answers to a request that no route takes: at the root, at a path of no API, and to one that
//! wants a WebSocket.
//!
//! Tools ask these before their first real request, and what they are told decides how long they
//! wait: each has an answer of its own, at once.

use super::permit::Permit;
use super::plan::ListenerPlan;
use super::refusal::Refusal;
use crate::error::Kind;
use crate::http::head::RequestHead;
use crate::http::name::Name;
use crate::llm::api::names_api;
use crate::llm::path::PathModel;
use crate::policy::auth::{Places, find_credential};

/// Whether `GET /` is ours to answer, as `/health` is (Claude Code looks there, without its key).
///
/// It is ours where no route takes it and there is no default group. A default group gets it from
/// clients that bring a key or a certificate, or need none; others are answered here.
#[cold]
pub fn root_is_ours(
    listener: &ListenerPlan,
    head: &RequestHead,
    bytes: &[u8],
    certified: Option<&str>,
) -> bool {
    if has_route(listener, head, bytes) {
        return false;
    }
    let asked_for_key = listener.keys_required
        && certified.is_none()
        && find_credential(&listener.carriers, &places(head, bytes)).is_none();
    listener.default_group.is_none() || asked_for_key
}

/// Whether a request for a WebSocket cannot be routed, whatever its key: there is no route, no
/// default group, and no model in the target.
#[cold]
pub fn leads_nowhere(listener: &ListenerPlan, head: &RequestHead, bytes: &[u8]) -> bool {
    let names_model = || !matches!(PathModel::of_head(head, bytes), Ok(None));
    listener.default_group.is_none() && !has_route(listener, head, bytes) && !names_model()
}

fn has_route(listener: &ListenerPlan, head: &RequestHead, bytes: &[u8]) -> bool {
    let path = head.path(bytes);
    let host = head.authority(bytes).unwrap_or_default();
    listener.routes.find(host, path).is_some()
}

/// Where a request may carry its key.
#[must_use]
pub fn places<'a>(head: &RequestHead, bytes: &'a [u8]) -> Places<'a> {
    Places {
        authorization: head.value(Name::Authorization, bytes),
        x_api_key: head.value(Name::XApiKey, bytes),
        x_goog_api_key: head.value(Name::XGoogApiKey, bytes),
        query: head.query(bytes),
    }
}

/// The refusal of a request that no route takes.
#[must_use]
#[cold]
pub fn no_route(head: &RequestHead, bytes: &[u8], permit: &Permit) -> Refusal {
    if permit.upgrade {
        // After a 404 a client (Codex) tries again and again; this refusal it understands at once.
        return Kind::UpgradeRefused.into();
    }
    not_found(head, bytes)
}

fn not_found(head: &RequestHead, bytes: &[u8]) -> Refusal {
    let path = String::from_utf8_lossy(head.path(bytes));
    Refusal::because(Kind::RouteNotFound, format!("No route for {} {path}.", head.method.text()))
}

/// Makes "no route" of a refusal for a missing model, where the path names no API and there is no
/// default group: such a request was never about a model.
#[must_use]
#[cold]
pub fn at_no_api(
    refusal: Refusal,
    listener: &ListenerPlan,
    head: &RequestHead,
    bytes: &[u8],
) -> Refusal {
    let about_model =
        matches!(refusal.kind, Kind::ModelMissing | Kind::BodyEmpty | Kind::JsonInvalid);
    match about_model && listener.default_group.is_none() && !names_api(head.path(bytes)) {
        true => not_found(head, bytes),
        false => refusal,
    }
}
