//! `/api/v1/exchanges`: the requests that are being served, and how to cancel one.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::refusal::Refusal;
use super::answer::{Answer, live};
use super::state::Api;
use crate::telemetry::in_flight::InFlight;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(cancel))
}

/// How an exchange is called: `CORE-SLOT-USES`.
fn id(one: &InFlight) -> String {
    one.id.map(|part| part.to_string()).join("-")
}

fn object(one: &InFlight) -> Value {
    json!({
        "id": id(one),
        "request_id": one.request_id,
        "age_ms": u64::try_from(one.age.as_millis()).unwrap_or(u64::MAX),
        "client": one.client.map(|client| client.to_string()),
        "listener": one.listener,
        "key": one.key,
        "method": one.method,
        "path": one.path,
        "model": one.model,
        "group": one.group,
        "upstream": one.upstream,
        "phase": one.phase,
        "attempts": one.attempts,
        "response_bytes": one.response_bytes,
        "first_token_ms": one.first_token.map(|time| time.as_secs_f64() * 1000.0),
    })
}

/// Lists the exchanges in flight, the oldest first.
#[utoipa::path(get, path = "/exchanges", tag = "live", responses(
    (status = 200, description = "`phase` is reading, queued, connecting, sending, waiting or answering",
        body = Value)))]
async fn list(State(api): State<Arc<Api>>) -> Answer {
    let all = api.shows.exchanges.list().await;
    Ok(live(&all.iter().map(object).collect::<Value>()))
}

/// Cancels an exchange: its client is cut off, and its server is told as if the client had left.
#[utoipa::path(delete, path = "/exchanges/{id}", tag = "live",
    params(("id" = String, Path, description = "Its `id` in the list, or its request id",
        example = "of-an-exchange")), responses(
    (status = 204, description = "It ends at once"),
    (status = 404, description = "It is not in flight, or not any more", body = Value)))]
async fn cancel(State(api): State<Arc<Api>>, Path(called): Path<String>) -> Answer {
    let all = api.shows.exchanges.list().await;
    let is_called = |one: &&InFlight| id(one) == called || one.request_id == called;
    let Some(one) = all.iter().find(is_called) else {
        return Err(Refusal::not_found(format!("exchange {called:?} is not in flight")));
    };
    match (api.shows.exchanges.end)(one.id) {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(Refusal::unavailable("its core takes no message now: try again")),
    }
}
