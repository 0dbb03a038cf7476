//! `/api/v1/models`: the names that clients ask for, and where they lead.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::answer::{Answer, JsonBody, check_name, created, done, removed, shown, text};
use super::objects;
use super::state::{Api, REPLACE_WAIT, find};
use crate::config::{EntryId, Section};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(one, replace, remove))
}

fn id(name: &str) -> EntryId {
    EntryId::new(Section::Model, name)
}

fn object(name: &str, entry: &Table) -> Value {
    let mut object = objects::shown(Section::Model, entry);
    object.insert("name".to_owned(), json!(name));
    Value::Object(object)
}

/// The model of that name, as it is shown.
fn named(now: &Snapshot, name: &str) -> Result<Value, Refusal> {
    Ok(object(name, find(&now.sources, &id(name))?))
}

/// Lists the models of the config. Those that servers list come besides: GET /v1/models has all.
#[utoipa::path(get, path = "/models", tag = "models", responses(
    (status = 200, description = "All models of the config", body = Value)))]
async fn list(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let all = now.sources.entries(Section::Model);
    let all: Vec<Value> = all.iter().map(|(name, entry)| object(name, entry)).collect();
    Ok(shown(&headers, &now, &json!(all)))
}

/// Shows a model.
#[utoipa::path(get, path = "/models/{name}", tag = "models",
    params(("name" = String, Path, description = "Its name, a `/` in it as `%2F`", example = "m")),
    responses(
    (status = 200, description = "The model", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn one(State(api): State<Arc<Api>>, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    Ok(shown(&headers, &now, &named(&now, &name)?))
}

/// Adds a model.
#[utoipa::path(post, path = "/models", tag = "models",
    request_body(content = Value, description = "`name`, one of `group`, `upstream` and `backend`, and \
        any key of [models.NAME]",
        example = json!({ "name": "llama3", "group": "chat", "aliases": ["gpt-4"] })),
    responses(
    (status = 201, description = "It is in force on all cores", body = Value),
    (status = 400, description = "What is wrong with it", body = Value),
    (status = 409, description = "There is one of that name", body = Value)))]
async fn create(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    JsonBody(mut given): JsonBody,
) -> Answer {
    let name = text(&given, "name")?.to_owned();
    given.remove("name");
    let may_refer = (api.has_token)();
    let make = move |_: &Snapshot| objects::entry_of(Section::Model, &given, None, may_refer);
    let now = api.add(&headers, id(&name), make).await?;
    Ok(created(&format!("/api/v1/models/{name}"), &now, &named(&now, &name)?))
}

/// Replaces a model.
#[utoipa::path(put, path = "/models/{name}", tag = "models",
    params(("name" = String, Path, description = "Its name", example = "llama3")),
    request_body(content = Value, description = "As for POST; `name` may be left out",
        example = json!({ "upstream": "gpu1" })),
    responses(
    (status = 200, description = "It is in force on all cores", body = Value),
    (status = 400, description = "What is wrong with it", body = Value),
    (status = 404, description = "There is none of that name", body = Value),
    (status = 412, description = "`If-Match` names another version", body = Value)))]
async fn replace(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    JsonBody(mut given): JsonBody,
) -> Answer {
    check_name(&given, &name, "a model is not renamed: add one, remove one")?;
    given.remove("name");
    let may_refer = (api.has_token)();
    let make = move |_: &Snapshot, before: &Table| {
        objects::entry_of(Section::Model, &given, Some(before), may_refer)
    };
    let now = api.change(&headers, REPLACE_WAIT, id(&name), make).await?;
    Ok(done(StatusCode::OK, &now, &named(&now, &name)?))
}

/// Removes a model.
#[utoipa::path(delete, path = "/models/{name}", tag = "models",
    params(("name" = String, Path, description = "Its name", example = "llama3")), responses(
    (status = 204, description = "Requests for it are answered 404, unless a server lists it"),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    // A name that clients ask for is named by no entry.
    let now = api.remove(&headers, id(&name), |_, _| Vec::new()).await?;
    Ok(removed(&now))
}
