//! `/api/v1/models`: the names that clients ask for, and where they lead.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::refusal::Refusal;
use super::answer::{Answer, JsonBody, created, done, removed, shown, text};
use super::objects;
use super::state::{ADD_WAIT, Api, REPLACE_WAIT, find};
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
    let entry = find(&now.sources, &id(&name))?;
    Ok(shown(&headers, &now, &object(&name, entry)))
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
    let (may_refer, id) = ((api.has_token)(), id(&name));
    let now = api
        .edit(&headers, ADD_WAIT, move |now| {
            if now.sources.entry(&id).is_some() {
                return Err(Refusal::conflict(format!("model {:?} already exists", id.name)));
            }
            let mut sources = now.sources.clone();
            let entry = objects::entry_of(Section::Model, &given, None, may_refer)?;
            sources.edit(id, Some(entry));
            Ok(sources)
        })
        .await?;
    let entry = find(&now.sources, &self::id(&name))?;
    Ok(created(&format!("/api/v1/models/{name}"), &now, &object(&name, entry)))
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
    if given.remove("name").is_some_and(|said| said != json!(name)) {
        return Err(Refusal::bad_request("name: a model is not renamed: add one, remove one"));
    }
    let (may_refer, id) = ((api.has_token)(), id(&name));
    let now = api
        .edit(&headers, REPLACE_WAIT, move |now| {
            let before = find(&now.sources, &id)?;
            let entry = objects::entry_of(Section::Model, &given, Some(before), may_refer)?;
            let mut sources = now.sources.clone();
            sources.edit(id, Some(entry));
            Ok(sources)
        })
        .await?;
    let entry = find(&now.sources, &self::id(&name))?;
    Ok(done(StatusCode::OK, &now, &object(&name, entry)))
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
    let now = api
        .edit(&headers, REPLACE_WAIT, move |now| {
            let id = id(&name);
            find(&now.sources, &id)?;
            let mut sources = now.sources.clone();
            sources.edit(id, None);
            Ok(sources)
        })
        .await?;
    Ok(removed(&now))
}
