//! `/api/v1/keys`: the clients' credentials.
//!
//! A secret is made here, shown once in the answer to the request that made it, and kept as its
//! SHA-256 alone. After a rotation the secret before is good for an overlap, so that clients can move.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use toml::Table;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::answer::{
    Answer, JsonBody, check_fields, check_name, created, done, removed, shown, text,
};
use super::objects;
use super::state::{Api, REPLACE_WAIT, find, users_of_key};
use crate::base::units::{hex, parse_duration};
use crate::config::{EntryId, Key, Section, format_date};
use crate::net::sys::unix_s;
use crate::net::tls::provider;

/// Bytes of chance in a secret.
const SECRET_BYTES: usize = 32;
/// How long the secret before is good when nobody says.
const OVERLAP: &str = "24h";
/// Longest overlap.
const OVERLAP_MAX: Duration = Duration::from_secs(90 * 24 * 3600);
/// Fields of an entry that hold secrets, or what follows from them.
const SECRETS: [&str; 4] = ["key", "key_sha256", "previous_sha256", "previous_until"];

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(one, replace, remove))
        .routes(routes!(rotate))
}

fn id(name: &str) -> EntryId {
    EntryId::new(Section::Key, name)
}

/// A key as it is shown: never its secret, nor a digest of it.
fn object(now: &Snapshot, name: &str, entry: &Table) -> Value {
    let mut object = objects::shown(Section::Key, entry);
    for field in ["key", "key_sha256", "previous_sha256"] {
        object.remove(field);
    }
    if let Some(key) = now.config.keys.iter().find(|key: &&Key| key.name == name) {
        let numbers = [
            ("rpm", json!(key.rpm)),
            ("rpd", json!(key.rpd)),
            ("tpm", json!(key.tpm)),
            ("per_second", json!(key.per_second)),
            ("burst", json!(key.burst)),
            ("concurrency", json!(key.concurrency)),
            ("priority", json!(key.priority)),
            ("expires", json!(key.expires.map_or(String::new(), format_date))),
        ];
        object.extend(numbers.map(|(field, value)| (field.to_owned(), value)));
    }
    object.entry("models").or_insert_with(|| json!(["*"]));
    object.entry("listeners").or_insert_with(|| json!(["*"]));
    Value::Object(object)
}

/// The key of that name, as it is shown.
fn named(now: &Snapshot, name: &str) -> Result<Value, Refusal> {
    Ok(object(now, name, find(&now.sources, &id(name))?))
}

/// A new secret and its digest.
fn secret() -> Result<(String, toml::Value), Refusal> {
    let mut bytes = [0; SECRET_BYTES];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| Refusal::internal("this machine has no random numbers"))?;
    let secret = format!("sk-{}", URL_SAFE_NO_PAD.encode(bytes));
    let digest = toml::Value::String(hex(&Sha256::digest(&secret)));
    Ok((secret, digest))
}

/// Refuses fields that hold secrets: those are made here.
fn without_secrets(object: &Map<String, Value>) -> Result<(), Refusal> {
    match SECRETS.iter().find(|field| object.contains_key(**field)) {
        None => Ok(()),
        Some(field) => Err(Refusal::bad_request(format!(
            "{field}: the secret is made here and shown once; POST …/rotate makes another"
        ))),
    }
}

/// Lists all keys.
#[utoipa::path(get, path = "/keys", tag = "keys", responses(
    (status = 200, description = "All keys with their limits, without their secrets", body = Value)))]
async fn list(State(api): State<Arc<Api>>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    let all = now.sources.entries(Section::Key);
    let all: Vec<Value> = all.iter().map(|(name, entry)| object(&now, name, entry)).collect();
    Ok(shown(&headers, &now, &json!(all)))
}

/// Shows a key.
#[utoipa::path(get, path = "/keys/{name}", tag = "keys",
    params(("name" = String, Path, description = "Its name", example = "my-app")), responses(
    (status = 200, description = "The key with its limits, without its secret", body = Value),
    (status = 404, description = "There is none of that name", body = Value)))]
async fn one(State(api): State<Arc<Api>>, Path(name): Path<String>, headers: HeaderMap) -> Answer {
    let now = api.now()?;
    Ok(shown(&headers, &now, &named(&now, &name)?))
}

/// Makes a key. Its secret is in the answer, and never again anywhere.
#[utoipa::path(post, path = "/keys", tag = "keys",
    request_body(content = Value, description = "`name`, and any limit of a [[key]]",
        example = json!({ "name": "team-b", "rpm": 60, "models": ["m*"] })),
    responses(
    (status = 201, description = "`secret` is what the client sends", body = Value),
    (status = 400, description = "What is wrong with it", body = Value),
    (status = 409, description = "There is one of that name", body = Value)))]
async fn create(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    JsonBody(given): JsonBody,
) -> Answer {
    let name = text(&given, "name")?.to_owned();
    without_secrets(&given)?;
    let (secret, digest) = secret()?;
    let may_refer = (api.has_token)();
    let make = move |_: &Snapshot| {
        let mut entry = objects::entry_of(Section::Key, &given, None, may_refer)?;
        entry.insert("key_sha256".to_owned(), digest);
        Ok(entry)
    };
    let now = api.add(&headers, id(&name), make).await?;
    let mut object = named(&now, &name)?;
    object["secret"] = json!(secret);
    Ok(created(&format!("/api/v1/keys/{name}"), &now, &object))
}

/// Replaces the limits of a key; its secret stays.
#[utoipa::path(put, path = "/keys/{name}", tag = "keys",
    params(("name" = String, Path, description = "Its name", example = "team-b")),
    request_body(content = Value, description = "The limits; what is left out has its default",
        example = json!({ "rpm": 120, "models": ["*"] })),
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
    check_name(&given, &name, "a key is not renamed: make one, revoke one")?;
    given.insert("name".to_owned(), json!(name));
    // It is shown, so it may come back; a rotation alone changes it.
    given.remove("previous_until");
    without_secrets(&given)?;
    let may_refer = (api.has_token)();
    let make = move |_: &Snapshot, before: &Table| {
        let mut entry = objects::entry_of(Section::Key, &given, Some(before), may_refer)?;
        for field in SECRETS {
            entry.extend(before.get(field).map(|value| (field.to_owned(), value.clone())));
        }
        Ok(entry)
    };
    let now = api.change(&headers, REPLACE_WAIT, id(&name), make).await?;
    Ok(done(StatusCode::OK, &now, &named(&now, &name)?))
}

/// Gives a key another secret. The one before is good for the overlap, `24h` when none is said.
#[utoipa::path(post, path = "/keys/{name}/rotate", tag = "keys",
    params(("name" = String, Path, description = "Its name", example = "team-b")),
    request_body(content = Value, description = "`overlap`: `0s` to end the secret before now",
        example = json!({ "overlap": "1h" })),
    responses(
    (status = 200, description = "`secret` is what the client sends from now on", body = Value),
    (status = 400, description = "The overlap is no time, or too long", body = Value),
    (status = 404, description = "There is none of that name", body = Value),
    (status = 409, description = "The key has no secret: a certificate stands for it", body = Value)))]
async fn rotate(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    JsonBody(given): JsonBody,
) -> Answer {
    check_fields(&given, &["overlap"])?;
    let said = given.get("overlap").map_or(Some(OVERLAP), Value::as_str);
    let overlap = said.and_then(|said| parse_duration(said).ok());
    let overlap = overlap.filter(|overlap| *overlap <= OVERLAP_MAX).ok_or_else(|| {
        Refusal::bad_request("overlap is a time such as \"24h\", at most 90 days (\"90d\")")
    })?;
    let (secret, digest) = secret()?;
    let called = name.clone();
    let make = move |now: &Snapshot, before: &Table| {
        let mut entry = before.clone();
        let known = now.config.keys.iter().find(|key| key.name == called);
        let Some(before) = known.and_then(|key| key.sha256) else {
            return Err(Refusal::conflict("the key has no secret: a certificate stands for it"));
        };
        SECRETS.iter().for_each(|field| drop(entry.remove(*field)));
        entry.insert("key_sha256".to_owned(), digest);
        if !overlap.is_zero() {
            let until = format_date(unix_s() + overlap.as_secs().max(1));
            entry.insert("previous_sha256".to_owned(), toml::Value::String(hex(&before)));
            entry.insert("previous_until".to_owned(), toml::Value::String(until));
        }
        Ok(entry)
    };
    let now = api.change(&headers, REPLACE_WAIT, id(&name), make).await?;
    let mut object = named(&now, &name)?;
    object["secret"] = json!(secret);
    Ok(done(StatusCode::OK, &now, &object))
}

/// Revokes a key: from now on its secrets are refused.
#[utoipa::path(delete, path = "/keys/{name}", tag = "keys",
    params(("name" = String, Path, description = "Its name", example = "team-b")), responses(
    (status = 204, description = "It is refused on all cores"),
    (status = 404, description = "There is none of that name", body = Value),
    (status = 409, description = "The forwards with a route that names it", body = Value)))]
async fn remove(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let now = api.remove(&headers, id(&name), users_of_key).await?;
    Ok(removed(&now))
}
