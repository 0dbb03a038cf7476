//! What happens now: the state of each server, failures, usage; and to drain a server, or check it.

use std::sync::{Arc, PoisonError};

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::super::monitored::{Monitored, Standing, check_all};
use super::super::refusal::Refusal;
use super::super::usage::Span;
use super::answer::{Answer, done, live};
use super::state::{Api, REPLACE_WAIT};
use crate::base::clock::WallTime;
use crate::config::{EntryId, Section};
use crate::policy::breaker::State as Breaker;
use crate::telemetry::access::shown_time;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(status))
        .routes(routes!(one_status))
        .routes(routes!(check))
        .routes(routes!(drain))
        .routes(routes!(enable))
        .routes(routes!(failures))
        .routes(routes!(usage))
}

/// All servers in force.
fn servers(api: &Api) -> Vec<Arc<Monitored>> {
    api.shows.table.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The servers of an entry: itself, or those that `ports` or `discover` make of it.
fn servers_of(api: &Api, name: &str) -> Result<Vec<Arc<Monitored>>, Refusal> {
    let is_of = |one: &Arc<Monitored>| {
        let rest = one.upstream.name.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    };
    let all = servers(api);
    let exact = all.iter().find(|one| one.upstream.name == name).cloned();
    let servers = match exact {
        Some(one) => vec![one],
        None => all.into_iter().filter(is_of).collect(),
    };
    match servers.is_empty() {
        true => Err(Refusal::not_found(format!("upstream {name:?} not found"))),
        false => Ok(servers),
    }
}

fn state(monitored: &Monitored) -> Value {
    let (checked, standing) = (monitored.checked(), monitored.standing());
    json!({
        "name": monitored.upstream.name,
        "url": monitored.upstream.url.shown(),
        "enabled": monitored.upstream.enabled,
        "healthy": standing == Standing::Healthy,
        "state": standing.name(),
        "breaker": match monitored.state.breaker.state() {
            Breaker::Closed { .. } => "closed",
            Breaker::Open { .. } => "open",
            Breaker::HalfOpen { .. } => "half_open",
        },
        "in_flight": monitored.state.in_flight(),
        "attempts": monitored.state.attempts(),
        "last_check": checked.last.map(shown_time),
        "check_errors": checked.errors,
        "last_error": checked.last_error,
    })
}

/// Shows how every server is: health, breaker, exchanges in flight.
#[utoipa::path(get, path = "/status", tag = "live", responses(
    (status = 200, description = "All servers, those found by discovery included", body = Value)))]
async fn status(State(api): State<Arc<Api>>) -> Answer {
    let all: Vec<Value> = servers(&api).iter().map(|one| state(one)).collect();
    Ok(live(&json!(all)))
}

/// Shows how an upstream is.
#[utoipa::path(get, path = "/upstreams/{name}/status", tag = "live",
    params(("name" = String, Path, description = "Its name", example = "gpu0")), responses(
    (status = 200, description = "Its servers: one, or those it stands for", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn one_status(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer {
    let all: Vec<Value> = servers_of(&api, &name)?.iter().map(|one| state(one)).collect();
    Ok(live(&json!(all)))
}

/// Checks an upstream now, and waits for the result.
#[utoipa::path(post, path = "/upstreams/{name}/check", tag = "live",
    params(("name" = String, Path, description = "Its name", example = "gpu0")), responses(
    (status = 200, description = "How it is, by the check", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn check(State(api): State<Arc<Api>>, Path(name): Path<String>) -> Answer {
    let servers = servers_of(&api, &name)?;
    check_all(servers.iter().cloned()).await;
    let all: Vec<Value> = servers.iter().map(|one| state(one)).collect();
    Ok(live(&json!(all)))
}

/// Sets `enabled` of an upstream, as an edit of the config.
async fn set_enabled(api: &Api, name: String, headers: &HeaderMap, enabled: bool) -> Answer {
    let make = move |_: &Snapshot, before: &Table| {
        let mut entry = before.clone();
        match enabled {
            // So it is as the file has it, if that says nothing.
            true => drop(entry.remove("enabled")),
            false => drop(entry.insert("enabled".to_owned(), toml::Value::Boolean(false))),
        }
        Ok(entry)
    };
    let id = EntryId::new(Section::Upstream, &name);
    let now = api.change(headers, REPLACE_WAIT, id, make).await?;
    Ok(done(StatusCode::OK, &now, &json!({ "name": name, "enabled": enabled })))
}

/// Drains an upstream: it gets no new requests, those in flight end as they would have.
#[utoipa::path(post, path = "/upstreams/{name}/drain", tag = "live",
    params(("name" = String, Path, description = "Its name", example = "gpu1")), responses(
    (status = 200, description = "All cores know; `status` tells what is still in flight", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn drain(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    set_enabled(&api, name, &headers, false).await
}

/// Lets a drained upstream have requests again.
#[utoipa::path(post, path = "/upstreams/{name}/enable", tag = "live",
    params(("name" = String, Path, description = "Its name", example = "gpu1")), responses(
    (status = 200, description = "All cores know", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn enable(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    set_enabled(&api, name, &headers, true).await
}

/// Shows the last 200 exchanges that failed by the proxy's or a server's doing, the latest first.
#[utoipa::path(get, path = "/failures", tag = "live", responses(
    (status = 200, description = "Each with its request id, its reason, and attempt by attempt why",
        body = Value)))]
async fn failures(State(api): State<Arc<Api>>) -> Answer {
    let all = (api.shows.failures)().into_iter().map(|one| {
        let attempts = one.failed.iter().map(|(upstream, why, status)| {
            let status = (*status > 0).then_some(status);
            json!({ "upstream": upstream, "reason": why, "status": status })
        });
        json!({
            "at": shown_time(WallTime::from_millis(one.ts_ms)),
            "request_id": one.request_id,
            "client": one.client.map(|client| client.to_string()),
            "listener": one.listener,
            "key": one.key,
            "model": one.model,
            "path": one.path,
            "group": one.group,
            "upstream": one.upstream,
            "status": (one.status > 0).then_some(one.status),
            "reason": one.reason,
            "attempts": one.attempts,
            "failed_attempts": attempts.collect::<Vec<Value>>(),
        })
    });
    Ok(live(&all.collect::<Value>()))
}

/// Shows who used how many tokens of which model, the most first.
#[utoipa::path(get, path = "/usage", tag = "live",
    params(
        ("span" = Option<String>, Query, description = "hour, day (when none is said) or month",
            example = "day"),
        ("format" = Option<String>, Query, description = "json (when none is said) or csv",
            example = "csv")),
    responses(
    (status = 200, description = "Tokens by key and model", body = Value),
    (status = 400, description = "Another span or format", body = Value)))]
async fn usage(State(api): State<Arc<Api>>, RawQuery(query): RawQuery) -> Answer {
    let (mut span, mut is_csv) = (Span::Day, false);
    for part in query.as_deref().unwrap_or_default().split('&').filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        match (key, value) {
            ("span", word) => {
                let found = Span::ALL.into_iter().find(|span| span.word() == word);
                let none = || Refusal::bad_request("span is hour, day or month");
                span = found.ok_or_else(none)?;
            }
            ("format", "csv") => is_csv = true,
            ("format", "json") => is_csv = false,
            ("format", _) => return Err(Refusal::bad_request("format is json or csv")),
            _ => return Err(Refusal::bad_request(format!("unknown parameter {key:?}"))),
        }
    }
    // Up to this moment.
    api.shows.usage.look(&api.shows.rows);
    let rows = api.shows.usage.over(span);
    if is_csv {
        let mut text = String::from("key,model,prompt_tokens,completion_tokens,cached_tokens\n");
        for (key, model, [prompt, completion, cached]) in rows {
            let (key, model) = (csv(&key), csv(&model));
            text.push_str(&format!("{key},{model},{prompt},{completion},{cached}\n"));
        }
        let kind = [(header::CONTENT_TYPE, "text/csv; charset=utf-8")];
        return Ok(Response::into_response((kind, text).into_response()));
    }
    let rows = rows.into_iter().map(|(key, model, [prompt, completion, cached])| {
        json!({ "key": key, "model": model, "prompt_tokens": prompt,
            "completion_tokens": completion, "cached_tokens": cached })
    });
    Ok(live(&json!({ "span": span.word(), "rows": rows.collect::<Vec<Value>>() })))
}

/// A field of CSV (RFC 4180); what a spreadsheet would take for a formula begins with a quote.
fn csv(text: &str) -> String {
    let formula = if text.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    match text.contains([',', '"', '\n', '\r']) {
        true => format!("\"{formula}{}\"", text.replace('"', "\"\"")),
        false => format!("{formula}{text}"),
    }
}
