//! `/api/v1/forwards`: the addresses that clients connect to; their routes are `routes`'.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::answer::{Answer, shown};
use super::objects;
use super::state::{Api, find};
use crate::config::{Bind, EntryId, Section};

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(one))
}

/// A listener as it is shown: the names of its fields that other proxies know too are always there.
fn object(now: &Snapshot, name: &str, entry: &Table) -> Value {
    let mut object = objects::shown(Section::Listener, entry);
    let routing = object.remove("route").unwrap_or_default();
    let routing: Vec<Value> = routing.as_array().into_iter().flatten().map(route).collect();
    object.insert("routing".to_owned(), json!(routing));
    object.entry("default_group").or_insert_with(|| json!(""));
    object.entry("ratelimit").or_insert(Value::Null);
    if let Some(listener) = now.config.listeners.iter().find(|one| one.name == name) {
        let tcp = listener.binds.iter().find_map(|bind| match bind {
            Bind::Tcp(address) => Some(*address),
            Bind::Unix(_) => None,
        });
        object.insert("address".to_owned(), json!(tcp.map(|address| address.ip().to_string())));
        object.insert("port".to_owned(), json!(tcp.map(|address| address.port())));
        let head = listener.timeouts.client_head.as_secs();
        object.insert("timeout".to_owned(), json!({ "connect": head }));
    }
    Value::Object(object)
}

/// A route as it is shown.
pub fn route(entry: &Value) -> Value {
    let mut object = entry.as_object().cloned().unwrap_or_else(Map::new);
    let group = object.remove("group").unwrap_or_default();
    object.insert("target_group".to_owned(), group);
    Value::Object(object)
}

/// Lists all forwards.
#[utoipa::path(get, path = "/forwards", tag = "forwards", responses(
    (status = 200, description = "All forwards, each with its routes", body = Value)))]
async fn list(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let all = now.sources.entries(Section::Listener);
    let all: Vec<Value> = all.iter().map(|(name, entry)| object(&now, name, entry)).collect();
    Ok(shown(&headers, &now, &json!(all)))
}

/// Shows a forward.
#[utoipa::path(get, path = "/forwards/{name}", tag = "forwards",
    params(("name" = String, Path, description = "Its name", example = "main")), responses(
    (status = 200, description = "The forward with its routes", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn one(State(api): State<Arc<Api>>, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let entry = find(&now.sources, &EntryId::new(Section::Listener, &name))?;
    Ok(shown(&headers, &now, &object(&now, &name, entry)))
}
