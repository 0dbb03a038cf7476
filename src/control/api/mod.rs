//! `/api/v1` (rules §12): the config seen and changed while the process runs.
//!
//! Read in this order: `state` (what all share, and how an edit goes), `answer` (envelope, versions,
//! bodies), `objects` (entries as JSON, secrets masked), then the subjects: `upstreams`, `groups`,
//! `forwards` with `routes`, `keys`, `models`, `config`; `docs` (what describes all of it).

mod answer;
mod forwards;
mod groups;
mod objects;
mod routes;
mod state;
mod upstreams;

use std::sync::Arc;

use axum::Router;
use utoipa_axum::router::OpenApiRouter;

pub use state::Api;

/// The routes below `/api/v1`.
pub fn router(api: Arc<Api>) -> Router {
    let routes = OpenApiRouter::new()
        .merge(forwards::routes())
        .merge(routes::routes())
        .merge(groups::routes())
        .merge(upstreams::routes());
    let (router, _document) = routes.split_for_parts();
    Router::new().nest("/api/v1", router).with_state(api)
}
