//! The description of the interface: an OpenAPI document and a page that needs no network.
//!
//! The document is written beside each route, so that neither can be without the other. The page is
//! made of it here: one file without scripts, which a strict content security policy lets through.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::state::Api;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "tokenring",
        description = "Every answer is `{code, status, data}` or `{code, status, error: {type, message}}`; \
            `code` is the HTTP status. An edit is checked as a whole config, is in force on all cores \
            when it is answered, or changes nothing. GET answers an `ETag`; with it as `If-Match` an \
            edit is refused (412) when somebody else was faster. With a token send `Authorization: \
            Bearer TOKEN`.",
        license(name = "MIT"),
    ),
    tags(
        (name = "forwards", description = "Addresses that clients connect to"),
        (name = "routes", description = "Where a forward sends requests by path and host"),
        (name = "upstream-groups", description = "Balanced sets of upstreams"),
        (name = "upstreams", description = "The servers"),
        (name = "keys", description = "The clients' credentials"),
        (name = "models", description = "The names that clients ask for"),
        (name = "config", description = "What is in force, and what was edited"),
        (name = "live", description = "What happens now: servers, failures, usage"),
        (name = "docs", description = "This description"),
    )
)]
/// What the document says besides the routes.
pub struct Description;

/// The routes.
pub fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(openapi)).routes(routes!(page))
}

/// This description as an OpenAPI 3.1 document.
#[utoipa::path(get, path = "/openapi.json", tag = "docs", responses(
    (status = 200, description = "The document", body = Value)))]
async fn openapi(State(api): State<Arc<Api>>) -> Response {
    let text = api.document.to_string();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// This description as a page.
#[utoipa::path(get, path = "/docs", tag = "docs", responses(
    (status = 200, description = "One page without scripts", content_type = "text/html")))]
async fn page(State(api): State<Arc<Api>>) -> Response {
    let style = STANDARD.encode(Sha256::digest(STYLE));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{style}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let mut answer = (StatusCode::OK, render(&api.document)).into_response();
    let headers = answer.headers_mut();
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    headers.insert(header::CONTENT_TYPE, html);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    answer
}

const STYLE: &str = "\
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:0 auto;padding:1rem}
code,pre{font:14px/1.4 ui-monospace,monospace}
pre{overflow-x:auto;padding:.75rem;border:1px solid;border-radius:6px;opacity:.9}
section{border-top:1px solid;margin-top:2rem}
article{margin:1.5rem 0}
h3{margin-bottom:.25rem;overflow-wrap:anywhere}
h3 b{display:inline-block;min-width:4.5rem}
dt{float:left;clear:left;min-width:3.5rem;font-weight:600}
dd{margin-left:4rem}
nav a{margin-right:1rem}";

/// The page.
fn render(document: &Value) -> String {
    let mut out = String::from("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">");
    // Writing to a string cannot fail, here and below.
    let _ = write!(out, "<title>tokenring API</title><style>{STYLE}</style></head><body><main>");
    let info = &document["info"];
    let _ = write!(out, "<h1>{}</h1><p>{}</p>", text(&info["title"]), text(&info["description"]));
    out.push_str("<p>The same for programs: <a href=\"openapi.json\">openapi.json</a></p><nav>");
    let tags: Vec<&Value> = document["tags"].as_array().into_iter().flatten().collect();
    for tag in &tags {
        let name = text(&tag["name"]);
        let _ = write!(out, "<a href=\"#{name}\">{name}</a>");
    }
    out.push_str("</nav>");
    for tag in &tags {
        let name = text(&tag["name"]);
        let about = text(&tag["description"]);
        let _ = write!(out, "<section id=\"{name}\"><h2>{name}</h2><p>{about}</p>");
        for (path, methods) in document["paths"].as_object().into_iter().flatten() {
            for (method, operation) in methods.as_object().into_iter().flatten() {
                if operation["tags"][0] == tag["name"] {
                    render_operation(&mut out, path, method, operation);
                }
            }
        }
        out.push_str("</section>");
    }
    out.push_str("</main></body></html>\n");
    out
}

fn render_operation(out: &mut String, path: &str, method: &str, operation: &Value) {
    let method = method.to_ascii_uppercase();
    let about = [&operation["summary"], &operation["description"]].map(text).join(" ");
    let _ = write!(
        out,
        "<article><h3><b>{method}</b> <code>{}</code></h3><p>{}</p>",
        escaped(path),
        about.trim()
    );
    let mut filled = path.to_owned();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap_or_default();
        let about = text(&parameter["description"]);
        let _ = write!(out, "<p><code>{{{}}}</code> {about}</p>", escaped(name));
        let example = parameter["example"].as_str().unwrap_or(name);
        filled = filled.replace(&format!("{{{name}}}"), example);
    }
    let body = &operation["requestBody"];
    let example = &body["content"]["application/json"]["example"];
    if !body.is_null() {
        let _ = write!(out, "<p>Body: {}</p>", text(&body["description"]));
    }
    let mut call = match method.as_str() {
        "GET" => format!("curl http://127.0.0.1:9000{filled}"),
        _ => format!("curl -X {method} http://127.0.0.1:9000{filled}"),
    };
    if !example.is_null() {
        let _ = write!(call, " \\\n  -H 'content-type: application/json' \\\n  -d '{example}'");
    }
    let _ = write!(out, "<pre>{}</pre><dl>", escaped(&call));
    for (status, answer) in operation["responses"].as_object().into_iter().flatten() {
        let _ =
            write!(out, "<dt>{}</dt><dd>{}</dd>", escaped(status), text(&answer["description"]));
    }
    out.push_str("</dl></article>");
}

fn text(value: &Value) -> String {
    escaped(value.as_str().unwrap_or_default())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
