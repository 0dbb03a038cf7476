//! `/api/v1/upstreams`: the servers.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::answer::{Answer, JsonBody, check_name, created, done, removed, shown, text};
use super::objects;
use super::state::{Api, REPLACE_WAIT, find, users_of_upstream};
use crate::config::{EntryId, Section, Upstream};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(one, replace, remove))
}

fn id(name: &str) -> EntryId {
    EntryId::new(Section::Upstream, name)
}

/// An upstream as it is shown: the names of its fields that other proxies know too are always there.
fn object(now: &Snapshot, name: &str, entry: &Table) -> Value {
    let mut object = objects::shown(Section::Upstream, entry);
    // One entry with `ports` is several upstreams with the same settings.
    let is_several = entry.contains_key("ports") || entry.contains_key("discover");
    let is_one_of_it = |one: &&Upstream| {
        is_several && one.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'))
    };
    let all = &now.config.upstreams;
    let upstream =
        all.iter().find(|one| one.name == name).or_else(|| all.iter().find(is_one_of_it));
    object.entry("auth").or_insert_with(|| json!({ "type": "none" }));
    object.entry("headers").or_insert_with(|| json!([]));
    let breaker = object.entry("breaker").or_insert_with(|| json!({}));
    if let (Some(breaker), Some(upstream)) = (breaker.as_object_mut(), upstream) {
        breaker.entry("threshold").or_insert_with(|| json!(upstream.breaker.threshold));
        let cooldown = upstream.breaker.cooldown;
        if cooldown.subsec_nanos() == 0 {
            breaker.insert("cooldown".to_owned(), json!(cooldown.as_secs()));
        }
    }
    Value::Object(object)
}

/// The upstream of that name, as it is shown.
fn named(now: &Snapshot, name: &str) -> Result<Value, Refusal> {
    Ok(object(now, name, find(&now.sources, &id(name))?))
}

/// The entry that an object describes.
fn entry(
    mut object: Map<String, Value>,
    before: Option<&Table>,
    may_refer: bool,
) -> Result<Table, Refusal> {
    if let Some(Value::Object(breaker)) = object.get_mut("breaker")
        && let Some(cooldown) = breaker.get_mut("cooldown")
        && let Some(seconds) = cooldown.as_u64()
    {
        *cooldown = json!(format!("{seconds}s"));
    }
    objects::entry_of(Section::Upstream, &object, before, may_refer)
}

/// Lists all upstreams.
#[utoipa::path(get, path = "/upstreams", tag = "upstreams", responses(
    (status = 200, description = "All upstreams, secrets as `***`", body = Value)))]
async fn list(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let all = now.sources.entries(Section::Upstream);
    let all: Vec<Value> = all.iter().map(|(name, entry)| object(&now, name, entry)).collect();
    Ok(shown(&headers, &now, &json!(all)))
}

/// Shows an upstream.
#[utoipa::path(get, path = "/upstreams/{name}", tag = "upstreams",
    params(("name" = String, Path, description = "Its name", example = "gpu0")), responses(
    (status = 200, description = "The upstream, secrets as `***`", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn one(State(api): State<Arc<Api>>, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    Ok(shown(&headers, &now, &named(&now, &name)?))
}

/// Adds an upstream. Requests go to it when a group or a model names it, or when it has models.
#[utoipa::path(post, path = "/upstreams", tag = "upstreams",
    request_body(content = Value, description = "`name`, `url`, and any key of an [[upstream]]",
        example = json!({ "name": "gpu9", "url": "http://127.0.0.1:8009", "models": ["m9"],
            "auth": { "type": "bearer", "token": "sk-of-the-server" },
            "headers": [{ "op": "insert", "key": "x-team", "value": "a" }],
            "breaker": { "threshold": 0.5, "cooldown": 30 } })),
    responses(
    (status = 201, description = "It is in force on all cores", body = Value),
    (status = 400, description = "What is wrong with it", body = Value),
    (status = 409, description = "There is one of that name", body = Value)))]
async fn create(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    JsonBody(given): JsonBody,
) -> Answer {
    let name = text(&given, "name")?.to_owned();
    let may_refer = (api.has_token)();
    let now = api.add(&headers, id(&name), move |_| entry(given, None, may_refer)).await?;
    Ok(created(&format!("/api/v1/upstreams/{name}"), &now, &named(&now, &name)?))
}

/// Replaces an upstream. What is left out has its default; a `***` stays what it stands for.
#[utoipa::path(put, path = "/upstreams/{name}", tag = "upstreams",
    params(("name" = String, Path, description = "Its name", example = "gpu9")),
    request_body(content = Value, description = "As for POST; `name` may be left out",
        example = json!({ "url": "http://127.0.0.1:8009", "models": ["m9"], "concurrency": 4,
            "auth": { "type": "bearer", "token": "***" } })),
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
    check_name(&given, &name, "an upstream is not renamed: add one, remove one")?;
    given.insert("name".to_owned(), json!(name));
    let may_refer = (api.has_token)();
    let make = move |_: &Snapshot, before: &Table| entry(given, Some(before), may_refer);
    let now = api.change(&headers, REPLACE_WAIT, id(&name), make).await?;
    Ok(done(StatusCode::OK, &now, &named(&now, &name)?))
}

/// Removes an upstream. Exchanges in flight on it end as they would have.
#[utoipa::path(delete, path = "/upstreams/{name}", tag = "upstreams",
    params(("name" = String, Path, description = "Its name", example = "gpu9")), responses(
    (status = 204, description = "It gets no more requests"),
    (status = 404, description = "There is none of that name", body = Value),
    (status = 409, description = "The groups and models that still name it", body = Value)))]
async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let now = api.remove(&headers, id(&name), users_of_upstream).await?;
    Ok(removed(&now))
}
