//! `/api/v1` (rules §12): the config seen and changed while the process runs.
//!
//! Read in this order: `state` (what all share, and how an edit goes), `answer` (envelope, versions,
//! bodies), `objects` (entries as JSON, secrets masked), then the subjects: `upstreams`, `groups`,
//! `forwards` with `routes`, `keys`, `models`, `config`,
//! `live` with `exchanges`; `docs` (what describes all of it).

mod answer;
mod config;
mod docs;
mod exchanges;
mod forwards;
mod groups;
mod keys;
mod live;
mod models;
mod objects;
mod routes;
mod state;
mod upstreams;

use std::sync::Arc;

use axum::Router;
use serde_json::Value;
use utoipa::OpenApi as _;
use utoipa_axum::router::OpenApiRouter;

pub use state::Api;

/// The routes below `/api/v1`; `api` makes what their handlers share of the document that
/// describes them.
pub fn router(api: impl FnOnce(Value) -> Api) -> Router {
    let routes = OpenApiRouter::new()
        .merge(forwards::routes())
        .merge(routes::routes())
        .merge(groups::routes())
        .merge(upstreams::routes())
        .merge(keys::routes())
        .merge(models::routes())
        .merge(config::routes())
        .merge(live::routes())
        .merge(exchanges::routes())
        .merge(docs::routes());
    let all = OpenApiRouter::with_openapi(docs::Description::openapi()).nest("/api/v1", routes);
    let (router, mut document) = all.split_for_parts();
    env!("CARGO_PKG_VERSION").clone_into(&mut document.info.version);
    let document = serde_json::to_value(&document).unwrap_or_default();
    router.with_state(Arc::new(api(document)))
}
