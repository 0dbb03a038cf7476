//! `/api/v1/upstream-groups`: balanced sets of servers.

use std::collections::HashSet;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde_json::{Map, Value, json};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::answer::{
    Answer, JsonBody, check_fields, check_name, created, done, removed, shown, text,
};
use super::objects;
use super::state::{Api, REPLACE_WAIT, find, users_of_group};
use crate::config::{EntryId, Group, Section, Sources};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(
        one,
        change_members,
        replace,
        remove
    ))
}

fn id(name: &str) -> EntryId {
    EntryId::new(Section::Group, name)
}

/// A group as it is shown: members, balance and times under the names that other proxies know; all
/// else that it says beside them.
fn object(now: &Snapshot, name: &str, entry: &Table) -> Value {
    let mut object = objects::shown(Section::Group, entry);
    let members = object.remove("members").unwrap_or_default();
    let member = |one: &Value| match one {
        Value::Object(one) => {
            json!({ "name": one.get("upstream"), "weight": one.get("weight").unwrap_or(&json!(1)) })
        }
        name => json!({ "name": name, "weight": 1 }),
    };
    let members: Vec<Value> = members.as_array().into_iter().flatten().map(member).collect();
    object.insert("upstreams".to_owned(), json!(members));
    let is_it = |group: &&Group| !group.implicit && group.name == name;
    if let Some(group) = now.config.groups.iter().find(is_it) {
        let strategy = crate::config::balance_name(group.balance);
        object.insert("balance".to_owned(), json!({ "strategy": strategy }));
        object.insert("http_client".to_owned(), http_client(group));
    }
    Value::Object(object)
}

/// The group of that name, as it is shown.
fn named(now: &Snapshot, name: &str) -> Result<Value, Refusal> {
    Ok(object(now, name, find(&now.sources, &id(name))?))
}

/// What of a group other proxies tell of their client, in its units: seconds, and milliseconds of
/// `retry`.
fn http_client(group: &Group) -> Value {
    let (times, retry) = (&group.timeouts, &group.retry);
    json!({
        "keepalive": times.tcp_keepalive.as_secs(),
        "timeout": {
            "connect": times.connect.as_secs(),
            "request": times.total.unwrap_or_default().as_secs(),
            "idle": times.pool_idle.as_secs(),
        },
        "retry": {
            "attempts": retry.attempts,
            "initial": retry.initial.as_millis(),
            "max": retry.max.as_millis(),
        },
    })
}

/// Members as the config file writes them.
///
/// Errors: a name that is no upstream's, or that stands twice.
fn members(sources: &Sources, given: &Value) -> Result<Value, Refusal> {
    let Value::Array(given) = given else {
        return Err(Refusal::bad_request("upstreams is no list"));
    };
    let (mut members, mut seen) = (Vec::new(), HashSet::new());
    for one in given {
        let one = match one {
            Value::Object(one) => one.clone(),
            Value::String(_) => Map::from_iter([("name".to_owned(), one.clone())]),
            _ => return Err(Refusal::bad_request("upstreams: each is { name, weight }")),
        };
        check_fields(&one, &["name", "weight"])?;
        let name = text(&one, "name")?;
        if sources.entry(&EntryId::new(Section::Upstream, name)).is_none() {
            return Err(Refusal::bad_request(format!("upstream {name:?} not found")));
        }
        if !seen.insert(name.to_owned()) {
            return Err(Refusal::bad_request(format!("duplicate upstream {name:?}")));
        }
        members.push(match one.get("weight").filter(|weight| **weight != json!(1)) {
            None => json!(name),
            Some(weight) => json!({ "upstream": name, "weight": weight }),
        });
    }
    Ok(json!(members))
}

/// The entry that an object describes.
fn entry(
    now: &Snapshot,
    mut object: Map<String, Value>,
    before: Option<(&str, &Table)>,
    may_refer: bool,
) -> Result<Table, Refusal> {
    if let Some(given) = object.remove("upstreams") {
        if object.contains_key("members") {
            return Err(Refusal::bad_request("upstreams and members are the same: give one"));
        }
        object.insert("members".to_owned(), members(&now.sources, &given)?);
    }
    if let Some(Value::Object(balance)) = object.get("balance").cloned() {
        check_fields(&balance, &["strategy"])?;
        object.insert("balance".to_owned(), json!(text(&balance, "strategy")?));
    }
    if let Some(client) = object.remove("http_client") {
        let known = before.map(|(name, entry)| self::object(now, name, entry));
        if known.is_none_or(|known| known["http_client"] != client) {
            return Err(Refusal::bad_request(
                "http_client is shown and not taken: its keys are timeouts and retry here",
            ));
        }
    }
    objects::entry_of(Section::Group, &object, before.map(|(_, entry)| entry), may_refer)
}

/// Lists all groups.
#[utoipa::path(get, path = "/upstream-groups", tag = "upstream-groups", responses(
    (status = 200, description = "All groups", body = Value)))]
async fn list(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let all = now.sources.entries(Section::Group);
    let all: Vec<Value> = all.iter().map(|(name, entry)| object(&now, name, entry)).collect();
    Ok(shown(&headers, &now, &json!(all)))
}

/// Shows a group.
#[utoipa::path(get, path = "/upstream-groups/{name}", tag = "upstream-groups",
    params(("name" = String, Path, description = "Its name", example = "chat")), responses(
    (status = 200, description = "The group", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn one(State(api): State<Arc<Api>>, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    Ok(shown(&headers, &now, &named(&now, &name)?))
}

/// Adds a group.
#[utoipa::path(post, path = "/upstream-groups", tag = "upstream-groups",
    request_body(content = Value, description = "`name`, `upstreams`, and any key of a [[group]]",
        example = json!({ "name": "batch", "upstreams": [{ "name": "gpu0", "weight": 2 }],
            "balance": { "strategy": "round_robin" }, "queue": { "length": 10, "wait": "5s" } })),
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
    let make = move |now: &Snapshot| entry(now, given, None, may_refer);
    let now = api.add(&headers, id(&name), make).await?;
    Ok(created(&format!("/api/v1/upstream-groups/{name}"), &now, &named(&now, &name)?))
}

/// Replaces the members of a group, and nothing else of it.
#[utoipa::path(patch, path = "/upstream-groups/{name}", tag = "upstream-groups",
    params(("name" = String, Path, description = "Its name", example = "chat")),
    request_body(content = Value, description = "`upstreams`: names and weights, 1 where none is given",
        example = json!({ "upstreams": [{ "name": "gpu0", "weight": 8 }, { "name": "gpu1" }] })),
    responses(
    (status = 200, description = "It is in force on all cores", body = Value),
    (status = 400, description = "A member that is no upstream, or stands twice", body = Value),
    (status = 404, description = "There is no group of that name", body = Value),
    (status = 412, description = "`If-Match` names another version", body = Value)))]
async fn change_members(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    JsonBody(given): JsonBody,
) -> Answer {
    check_fields(&given, &["upstreams"])?;
    let Some(given) = given.get("upstreams").cloned() else {
        return Err(Refusal::bad_request("upstreams is missing"));
    };
    let make = move |now: &Snapshot, before: &Table| {
        let mut entry = before.clone();
        let members = Map::from_iter([("members".to_owned(), members(&now.sources, &given)?)]);
        entry.extend(objects::entry_of(Section::Group, &members, None, true)?);
        Ok(entry)
    };
    let now = api.change(&headers, REPLACE_WAIT, id(&name), make).await?;
    Ok(done(StatusCode::OK, &now, &named(&now, &name)?))
}

/// Replaces a group. What is left out has its default.
#[utoipa::path(put, path = "/upstream-groups/{name}", tag = "upstream-groups",
    params(("name" = String, Path, description = "Its name", example = "batch")),
    request_body(content = Value, description = "As for POST; `name` may be left out",
        example = json!({ "upstreams": [{ "name": "gpu1" }], "balance": { "strategy": "random" } })),
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
    check_name(&given, &name, "a group is not renamed: add one, remove one")?;
    given.insert("name".to_owned(), json!(name));
    let (may_refer, id) = ((api.has_token)(), id(&name));
    let called = name.clone();
    let make =
        move |now: &Snapshot, before: &Table| entry(now, given, Some((&called, before)), may_refer);
    let now = api.change(&headers, REPLACE_WAIT, id, make).await?;
    Ok(done(StatusCode::OK, &now, &named(&now, &name)?))
}

/// Removes a group.
#[utoipa::path(delete, path = "/upstream-groups/{name}", tag = "upstream-groups",
    params(("name" = String, Path, description = "Its name", example = "batch")), responses(
    (status = 204, description = "It gets no more requests"),
    (status = 404, description = "There is none of that name", body = Value),
    (status = 409, description = "What still names it", body = Value)))]
async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let now = api.remove(&headers, id(&name), users_of_group).await?;
    Ok(removed(&now))
}
