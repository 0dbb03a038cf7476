//! `/api/v1/forwards/{name}/routes`: where requests go by path and host.
//!
//! A route is called by its path as base64url, with or without padding; one that goes by host alone
//! by its host. Where several routes of a forward have the same path and differ by host, it is called
//! by both: `HOST PATH`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::answer::{Answer, JsonBody, check_fields, created, done, removed, shown, text};
use super::forwards::route;
use super::objects;
use super::state::{ADD_WAIT, Api, REPLACE_WAIT, find};
use crate::config::{EntryId, Section, Sources};

/// Fields of a route.
const FIELDS: [&str; 4] = ["path", "host", "target_group", "keys"];

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list, create)).routes(routes!(one, replace, remove))
}

fn id(forward: &str) -> EntryId {
    EntryId::new(Section::Listener, forward)
}

/// The text that a base64url stands for.
fn decode(code: &str) -> Result<String, Refusal> {
    let plain: String = code
        .trim_end_matches('=')
        .chars()
        .map(|c| match c {
            '+' => '-',
            '/' => '_',
            other => other,
        })
        .collect();
    let bytes = URL_SAFE_NO_PAD.decode(plain).ok();
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    text.ok_or_else(|| Refusal::bad_request(format!("{code:?} is no base64url of a path")))
}

/// The routes of a forward, as the file has them.
fn all(entry: &Table) -> Vec<Table> {
    let routes = entry.get("route").and_then(toml::Value::as_array).into_iter().flatten();
    routes.filter_map(|route| route.as_table().cloned()).collect()
}

fn part<'r>(route: &'r Table, key: &str) -> Option<&'r str> {
    route.get(key)?.as_str().filter(|text| !text.is_empty())
}

/// The position of the route that is called so.
///
/// Errors: there is none, or there are several.
fn position(routes: &[Table], called: &str) -> Result<usize, Refusal> {
    let is_called = |route: &&Table| match (part(route, "host"), part(route, "path")) {
        (Some(host), Some(path)) => path == called || format!("{host} {path}") == called,
        (host, path) => path.or(host) == Some(called),
    };
    let mut found = routes.iter().enumerate().filter(|(_, route)| is_called(route));
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Ok(at),
        (Some(_), Some(_)) => Err(Refusal::conflict(format!(
            "several routes have the path {called:?}: name one by \"HOST PATH\""
        ))),
        (None, _) => Err(Refusal::not_found(format!("route {called:?} not found"))),
    }
}

fn object(route_of_file: &Table) -> Value {
    route(&Value::Object(objects::shown(Section::Listener, route_of_file)))
}

/// The route that an object describes.
fn entry(sources: &Sources, given: &Map<String, Value>) -> Result<Table, Refusal> {
    check_fields(given, &FIELDS)?;
    let mut given = given.clone();
    let group = text(&given, "target_group")?.to_owned();
    if sources.entry(&EntryId::new(Section::Group, &group)).is_none() {
        return Err(Refusal::bad_request(format!("upstream group {group:?} not found")));
    }
    given.remove("target_group");
    given.insert("group".to_owned(), json!(group));
    objects::entry_of(Section::Listener, &given, None, false)
}

/// The entry of a forward with other routes.
fn with_routes(forward: &Table, routes: Vec<Table>) -> Table {
    let mut entry = forward.clone();
    let routes: Vec<toml::Value> = routes.into_iter().map(toml::Value::Table).collect();
    match routes.is_empty() {
        true => entry.remove("route"),
        false => entry.insert("route".to_owned(), toml::Value::Array(routes)),
    };
    entry
}

/// Lists the routes of a forward.
#[utoipa::path(get, path = "/forwards/{name}/routes", tag = "routes",
    params(("name" = String, Path, description = "Name of the forward", example = "main")),
    responses(
    (status = 200, description = "Its routes, in order", body = Value),
    (status = 404, description = "There is no forward of that name", body = Value)))]
async fn list(State(api): State<Arc<Api>>, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let routes = all(find(&now.sources, &id(&name))?);
    let routes: Vec<Value> = routes.iter().map(object).collect();
    Ok(shown(&headers, &now, &json!(routes)))
}

/// Shows a route.
#[utoipa::path(get, path = "/forwards/{name}/routes/{path}", tag = "routes",
    params(("name" = String, Path, description = "Name of the forward", example = "main"),
        ("path" = String, Path, description = "Its path as base64url", example = "L2VjaG8")),
    responses(
    (status = 200, description = "The route", body = Value),
    (status = 400, description = "This is no base64url", body = Value),
    (status = 404, description = "There is no such forward or route", body = Value)))]
async fn one(
    State(api): State<Arc<Api>>,
    Path((name, code)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    let now = api.now()?;
    let called = decode(&code)?;
    let routes = all(find(&now.sources, &id(&name))?);
    let at = position(&routes, &called)?;
    Ok(shown(&headers, &now, &object(&routes[at])))
}

/// Adds a route to a forward.
#[utoipa::path(post, path = "/forwards/{name}/routes", tag = "routes",
    params(("name" = String, Path, description = "Name of the forward", example = "main")),
    request_body(content = Value, description = "`path` or `host` or both, `target_group`, `keys`",
        example = json!({ "path": "/items/{id:[0-9]+}", "target_group": "chat" })),
    responses(
    (status = 201, description = "It is in force on all cores", body = Value),
    (status = 400, description = "A bad pattern, or no such group", body = Value),
    (status = 404, description = "There is no forward of that name", body = Value),
    (status = 409, description = "There is a route with that path", body = Value)))]
async fn create(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    JsonBody(given): JsonBody,
) -> Answer {
    let wanted = given.clone();
    let make = move |now: &Snapshot, forward: &Table| {
        let mut routes = all(forward);
        let new = entry(&now.sources, &wanted)?;
        let of = |route: &Table| {
            [part(route, "host"), part(route, "path")].map(|part| part.map(str::to_owned))
        };
        if routes.iter().any(|route| of(route) == of(&new)) {
            let path = part(&new, "path").or(part(&new, "host")).unwrap_or_default();
            return Err(Refusal::conflict(format!("route {path:?} already exists")));
        }
        routes.push(new);
        Ok(with_routes(forward, routes))
    };
    let now = api.change(&headers, ADD_WAIT, id(&name), make).await?;
    let new = entry(&now.sources, &given)?;
    let called = match (part(&new, "host"), part(&new, "path")) {
        (Some(host), Some(path)) => format!("{host} {path}"),
        (host, path) => path.or(host).unwrap_or_default().to_owned(),
    };
    let at = format!("/api/v1/forwards/{name}/routes/{}", URL_SAFE_NO_PAD.encode(called));
    Ok(created(&at, &now, &object(&new)))
}

/// Replaces a route; its path and host stay as they are.
#[utoipa::path(put, path = "/forwards/{name}/routes/{path}", tag = "routes",
    params(("name" = String, Path, description = "Name of the forward", example = "main"),
        ("path" = String, Path, description = "Its path as base64url",
            example = "L2l0ZW1zL3tpZDpbMC05XSt9")),
    request_body(content = Value, description = "`target_group`, `keys`",
        example = json!({ "target_group": "chat" })),
    responses(
    (status = 200, description = "It is in force on all cores", body = Value),
    (status = 400, description = "No base64url, or no such group", body = Value),
    (status = 404, description = "There is no such forward or route", body = Value),
    (status = 412, description = "`If-Match` names another version", body = Value)))]
async fn replace(
    State(api): State<Arc<Api>>,
    Path((name, code)): Path<(String, String)>,
    headers: HeaderMap,
    JsonBody(mut given): JsonBody,
) -> Answer {
    let called = decode(&code)?;
    let wanted = called.clone();
    let make = move |now: &Snapshot, forward: &Table| {
        let mut routes = all(forward);
        let at = position(&routes, &wanted)?;
        for key in ["path", "host"] {
            let had = part(&routes[at], key);
            match given.get(key) {
                Some(said) if Some(said) != had.map(|had| json!(had)).as_ref() => {
                    let message = format!("{key}: a route is not moved: add one, remove one");
                    return Err(Refusal::bad_request(message));
                }
                Some(_) => {}
                None => given.extend(had.map(|had| (key.to_owned(), json!(had)))),
            }
        }
        routes[at] = entry(&now.sources, &given)?;
        Ok(with_routes(forward, routes))
    };
    let now = api.change(&headers, REPLACE_WAIT, id(&name), make).await?;
    let routes = all(find(&now.sources, &id(&name))?);
    let at = position(&routes, &called)?;
    Ok(done(StatusCode::OK, &now, &object(&routes[at])))
}

/// Removes a route.
#[utoipa::path(delete, path = "/forwards/{name}/routes/{path}", tag = "routes",
    params(("name" = String, Path, description = "Name of the forward", example = "main"),
        ("path" = String, Path, description = "Its path as base64url",
            example = "L2l0ZW1zL3tpZDpbMC05XSt9")),
    responses(
    (status = 204, description = "No more requests go by it"),
    (status = 400, description = "This is no base64url", body = Value),
    (status = 404, description = "There is no such forward or route", body = Value)))]
async fn remove(
    State(api): State<Arc<Api>>,
    Path((name, code)): Path<(String, String)>,
    headers: HeaderMap,
) -> Answer {
    let called = decode(&code)?;
    let make = move |_: &Snapshot, forward: &Table| {
        let mut routes = all(forward);
        routes.remove(position(&routes, &called)?);
        Ok(with_routes(forward, routes))
    };
    let now = api.change(&headers, REPLACE_WAIT, id(&name), make).await?;
    Ok(removed(&now))
}
