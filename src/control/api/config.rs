//! `/api/v1/config` and `/api/v1/overlay`: what is in force, where it comes from, what was edited.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::answer::{Answer, removed, shown};
use super::objects::plain;
use super::state::{Api, REPLACE_WAIT};
use crate::config::{EntryId, origins};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(config)).routes(routes!(overlay)).routes(routes!(revert))
}

/// What was edited, and whether that outlives this process.
fn edits(now: &Snapshot) -> Value {
    let entries = now.sources.overlay.entries().map(|(id, is_removed)| {
        json!({ "entry": id.to_string(), "did": if is_removed { "removed" } else { "set" } })
    });
    let entries: Vec<Value> = entries.collect();
    let place = now.place();
    let note = match &place {
        Some(_) => "kept in that file, upon the config file",
        None => "in memory alone: lost when this process ends; admin.persist keeps them",
    };
    json!({ "kept_in": place.map(|place| place.display().to_string()), "note": note, "entries": entries })
}

/// Shows every value in force and where it comes from: `config.toml:12`, `overlay:3`, `default`.
#[utoipa::path(get, path = "/config", tag = "config", responses(
    (status = 200, description = "`version`, `edits`, and `values`: key, value, from; secrets as `***`",
        body = Value)))]
async fn config(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let values = origins(&now.sources, &now.config)
        .into_iter()
        .map(|one| json!({ "key": one.key, "value": plain(&one.value), "from": one.from }));
    let values: Vec<Value> = values.collect();
    let data = json!({
        "version": now.version,
        "file": now.sources.file,
        "edits": edits(&now),
        "values": values,
    });
    Ok(shown(&headers, &now, &data))
}

/// Shows which entries were edited.
#[utoipa::path(get, path = "/overlay", tag = "config", responses(
    (status = 200, description = "The edited entries, and where they are kept", body = Value)))]
async fn overlay(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    Ok(shown(&headers, &now, &edits(&now)))
}

/// Drops the edit of an entry: what the file says counts again.
#[utoipa::path(delete, path = "/overlay/{kind}/{name}", tag = "config",
    params(
        ("kind" = String, Path, description = "listener, key, upstream, group or model",
            example = "upstream"),
        ("name" = String, Path, description = "Its name", example = "gpu1")),
    responses(
    (status = 204, description = "The file's entry is in force, or none if it has none"),
    (status = 404, description = "That entry was not edited", body = Value)))]
async fn revert(
    State(api): State<Arc<Api>>,
    Path((kind, name)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    let id = EntryId::parse(&format!("{kind}/{name}"))
        .ok_or_else(|| Refusal::not_found(format!("{kind:?} is no kind of entry")))?;
    let now = api
        .edit(&headers, REPLACE_WAIT, move |now| {
            if !now.sources.is_edited(&id) {
                return Err(Refusal::not_found(format!("{id} was not edited")));
            }
            let mut sources = now.sources.clone();
            sources.revert(&id);
            Ok(sources)
        })
        .await?;
    Ok(removed(&now))
}
