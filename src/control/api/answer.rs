//! The form of questions and answers of `/api/v1`: the envelope, versions, JSON bodies.

use std::error::Error as _;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::state::{names, versions};

/// What a handler gives.
pub type Answer = Result<Response, Refusal>;

/// Longest body of a request.
const BODY_BYTES_MAX: usize = 1 << 20;
/// Longest time that such a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let error = json!({ "type": self.kind, "message": self.message.trim_end() });
        let text = json!({ "code": self.status, "status": "error", "error": error });
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        json_of(status, &text)
    }
}

fn json_of(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// An answer with what is so at the moment.
pub fn live(data: &Value) -> Response {
    let text = json!({ "code": 200, "status": "success", "data": data });
    let mut answer = json_of(StatusCode::OK, &text);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// What a GET of the config is answered with: nothing new where the client has this version.
pub fn shown(headers: &HeaderMap, now: &Snapshot, data: &Value) -> Response {
    let known = versions(headers, header::IF_NONE_MATCH);
    if known.is_some_and(|known| names(&known, &now.version)) {
        return with_version(StatusCode::NOT_MODIFIED.into_response(), now);
    }
    done(StatusCode::OK, now, data)
}

/// What an edit is answered with.
pub fn done(status: StatusCode, now: &Snapshot, data: &Value) -> Response {
    let text = json!({ "code": status.as_u16(), "status": "success", "data": data });
    with_version(json_of(status, &text), now)
}

/// What the creation of a thing is answered with.
pub fn created(at: &str, now: &Snapshot, data: &Value) -> Response {
    let mut answer = done(StatusCode::CREATED, now, data);
    if let Ok(at) = HeaderValue::from_str(at) {
        answer.headers_mut().insert(header::LOCATION, at);
    }
    answer
}

/// What a removal is answered with.
pub fn removed(now: &Snapshot) -> Response {
    with_version(StatusCode::NO_CONTENT.into_response(), now)
}

fn with_version(mut answer: Response, now: &Snapshot) -> Response {
    if let Ok(version) = HeaderValue::from_str(&format!("\"{}\"", now.version)) {
        answer.headers_mut().insert(header::ETAG, version);
    }
    let headers = answer.headers_mut();
    // Kept, but never used without asking for a newer one.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    answer
}

/// The JSON object that a request carries.
pub struct JsonBody(pub Map<String, Value>);

impl<S: Sync> FromRequest<S> for JsonBody {
    type Rejection = Refusal;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refusal> {
        check_kind(request.headers())?;
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
        let too_large = || Refusal::too_large(format!("a body is at most {BODY_BYTES_MAX} bytes"));
        if length.is_some_and(|length| length > BODY_BYTES_MAX as u64) {
            return Err(too_large());
        }
        let body = timeout(BODY_TIMEOUT, to_bytes(request.into_body(), BODY_BYTES_MAX)).await;
        let late = |_| Refusal::timeout(format!("the body took over {} s", BODY_TIMEOUT.as_secs()));
        let body = body.map_err(late)?.map_err(|error| {
            match error.source().is_some_and(|why| why.is::<http_body_util::LengthLimitError>()) {
                true => too_large(),
                false => Refusal::bad_request("the body broke off"),
            }
        })?;
        match serde_json::from_slice(&body) {
            Ok(Value::Object(object)) => Ok(Self(object)),
            Ok(_) => Err(Refusal::bad_request("the body is no JSON object")),
            Err(why) => Err(Refusal::bad_request(format!("the body is no JSON: {why}"))),
        }
    }
}

/// A page of another origin can send forms and plain text, but no JSON without being asked.
fn check_kind(headers: &HeaderMap) -> Result<(), Refusal> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(Refusal::unsupported_media_type(
            "a body is JSON, and says so: content-type: application/json",
        )),
    }
}

/// Refuses the fields of an object that are not among these.
pub fn check_fields(object: &Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    match object.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(Refusal::bad_request(format!(
            "unknown field {key:?}; known are {}",
            known.join(", ")
        ))),
    }
}

/// Refuses a body that names another thing than its path does.
pub fn check_name(object: &Map<String, Value>, name: &str, otherwise: &str) -> Result<(), Refusal> {
    match object.get("name").is_some_and(|said| *said != json!(name)) {
        true => Err(Refusal::bad_request(format!("name: {otherwise}"))),
        false => Ok(()),
    }
}

/// The text of a field.
///
/// Errors: it is not there, empty, or no text.
pub fn text<'o>(object: &'o Map<String, Value>, key: &str) -> Result<&'o str, Refusal> {
    match object.get(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        Some(Value::String(_)) => Err(Refusal::bad_request(format!("{key} must not be empty"))),
        Some(_) => Err(Refusal::bad_request(format!("{key} is no text"))),
        None => Err(Refusal::bad_request(format!("{key} is missing"))),
    }
}
