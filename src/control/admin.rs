//! The operator's HTTP interface (`[admin]`, rules §12), on its own address.
//!
//! It answers `GET /health`, `GET /ready`, `POST /health/force-check`, `GET /metrics`, and reloads
//! the config on `POST /config/reload` and `/admin/reload`. A
//! connection from an address outside `allow` is closed at once; with a token every request must
//! carry it. It reads the `UpstreamTable` and the server's closures; what it can cause is a probe or
//! a reload.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use ipnet::IpNet;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::admin_socket::{AdminSocket, BoundSocket, Open, lock};
use super::api::{self, Api};
use super::caller::{bearer, is_of_this_address, is_sent_by_no_page};
use super::monitored::{Monitored, Standing, check_all};
use super::reconciler::UpstreamTable;
use super::reload::Commit;
use super::shows::Shows;
use crate::base::units::counted;
use crate::config;
use crate::policy::breaker::State as Breaker;
use crate::telemetry::access::shown_time;
use crate::telemetry::prometheus::{Snapshot, UpstreamRow, render};

/// Why a request that does something is refused.
const NOT_AT_HOME: &str = "sent by a page of another origin, or to a name that is not this address";
/// The bound socket with who may ask there, before any connection is accepted.
pub struct AdminListener {
    /// Where it listens.
    pub socket: BoundSocket,
    rules: Rules,
}

/// Who may ask, and how metrics are called; a reload replaces them.
#[derive(Clone, Debug)]
struct Rules {
    allow: Vec<IpNet>,
    /// SHA-256 of the token; `None` = none is needed.
    token: Option<[u8; 32]>,
    metrics_prefix: String,
    /// There is no interface any more; connections that were open are answered 404.
    closed: bool,
}

impl Rules {
    fn closed() -> Self {
        Self { allow: Vec::new(), token: None, metrics_prefix: String::new(), closed: true }
    }

    fn of(admin: &config::Admin) -> Self {
        let token = admin.token.as_ref().map(|token| Sha256::digest(token.expose()).into());
        Self {
            allow: admin.allow.clone(),
            token,
            metrics_prefix: admin.metrics_prefix.clone(),
            closed: false,
        }
    }
}

/// What the handlers of all requests share.
struct AdminState {
    shows: Arc<Shows>,
    rules: Arc<RwLock<Rules>>,
    /// The address is not a Unix socket, so a web page can make a browser send requests to it.
    is_tcp: bool,
}

impl AdminListener {
    /// Binds the address of `[admin]`.
    ///
    /// Shape: `adopted` are sockets of a process before; one that has this address is used.
    /// Errors: the address cannot be bound.
    pub fn bind(admin: &config::Admin, adopted: Vec<OwnedFd>) -> io::Result<Self> {
        let socket = BoundSocket::bind(&admin.bind, adopted)?;
        Ok(Self { socket, rules: Rules::of(admin) })
    }

    /// Accepts and answers for as long as the task lives.
    fn open(self, shows: Arc<Shows>, rules: Arc<RwLock<Rules>>) -> Open {
        let is_tcp = self.socket.is_tcp();
        set(&rules, self.rules);
        let state = Arc::new(AdminState { shows, rules: rules.clone(), is_tcp });
        let api = |document| Api {
            document,
            shows: state.shows.clone(),
            has_token: {
                let state = state.clone();
                Box::new(move || state.token().is_some())
            },
        };
        let router = Router::new()
            .route("/health", get(health))
            .route("/health/force-check", post(force_check))
            .route("/ready", get(ready))
            .route("/metrics", get(metrics))
            .route("/admin/reload", get(reload).post(reload))
            .route("/config/reload", post(reload_config))
            .with_state(state.clone())
            .merge(api::router(api))
            .fallback(nothing_here)
            .method_not_allowed_fallback(wrong_method)
            .layer(middleware::from_fn_with_state(state, check_token));
        let allows = move |ip| {
            let rules = rules.read().unwrap_or_else(PoisonError::into_inner);
            rules.allow.iter().any(|net| net.contains(&ip))
        };
        self.socket.open(Arc::new(allows), router)
    }
}

fn set(rules: &RwLock<Rules>, to: Rules) {
    *rules.write().unwrap_or_else(PoisonError::into_inner) = to;
}

/// The operator's interface through all reloads.
pub(super) struct AdminServer {
    shows: Arc<Shows>,
    /// The same for all addresses that it has had, so that no open connection goes by old ones.
    rules: Arc<RwLock<Rules>>,
    socket: AdminSocket,
}

impl AdminServer {
    /// Opens the interface that is bound already, if there is one.
    pub(super) fn new(shows: Shows, socket: AdminSocket, listener: Option<AdminListener>) -> Self {
        let shows = Arc::new(shows);
        let rules = Arc::new(RwLock::new(Rules::closed()));
        *lock(&socket.0) = listener.map(|listener| listener.open(shows.clone(), rules.clone()));
        Self { shows, rules, socket }
    }

    /// Prepares the interface of another config; its address is bound now if it is another one.
    ///
    /// Errors: the address cannot be bound; nothing has changed.
    pub(super) fn prepare(&mut self, config: &config::Config) -> Result<Commit, String> {
        let AdminSocket(open) = self.socket.clone();
        let (shows, rules) = (self.shows.clone(), self.rules.clone());
        let Some(admin) = &config.admin else {
            return Ok(Box::new(move || {
                set(&rules, Rules::closed());
                *lock(&open) = None;
            }));
        };
        let stays = lock(&open).as_ref().is_some_and(|now| now.wanted == admin.bind);
        if stays {
            let wanted = Rules::of(admin);
            return Ok(Box::new(move || set(&rules, wanted)));
        }
        let listener = AdminListener::bind(admin, Vec::new()).map_err(|why| why.to_string())?;
        Ok(Box::new(move || *lock(&open) = Some(listener.open(shows, rules))))
    }
}

async fn check_token(
    State(state): State<Arc<AdminState>>,
    request: Request,
    next: Next,
) -> Response {
    if state.rules.read().unwrap_or_else(PoisonError::into_inner).closed {
        return nothing_here().await;
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    // What the config says, and who asks for what, is no other page's business either.
    let reads = reads && !request.uri().path().starts_with("/api/");
    if !reads && !state.is_at_home(request.headers()) {
        return fault(StatusCode::FORBIDDEN, "forbidden", NOT_AT_HOME);
    }
    let Some(token) = state.token() else { return next.run(request).await };
    if bearer(request.headers()).is_some_and(|given| bool::from(given.ct_eq(&token))) {
        return next.run(request).await;
    }
    let mut answer = fault(StatusCode::UNAUTHORIZED, "unauthorized", "a bearer token is needed");
    let realm = header::HeaderValue::from_static("Bearer");
    answer.headers_mut().insert(header::WWW_AUTHENTICATE, realm);
    answer
}

async fn health(State(state): State<Arc<AdminState>>) -> Response {
    body(StatusCode::OK, &state.health())
}

async fn ready(State(state): State<Arc<AdminState>>) -> Response {
    let somebody = state.rows().iter().any(|monitored| monitored.can_serve());
    let why = match (state.shows.draining)() {
        true => Some("draining"),
        false => (!somebody).then_some("no healthy upstream"),
    };
    match why {
        None => body(StatusCode::OK, &json!({ "ready": true })),
        Some(why) => {
            body(StatusCode::SERVICE_UNAVAILABLE, &json!({ "ready": false, "reason": why }))
        }
    }
}

async fn force_check(State(state): State<Arc<AdminState>>) -> Response {
    probe_now(&state.shows.table).await;
    body(StatusCode::OK, &state.health())
}

async fn metrics(State(state): State<Arc<AdminState>>) -> Response {
    let counters = (state.shows.counters)();
    let row = |monitored: &Arc<Monitored>| UpstreamRow {
        name: monitored.upstream.name.clone(),
        healthy: monitored.standing() == Standing::Healthy,
        unknown: monitored.standing() == Standing::Unknown,
        in_flight: monitored.state.in_flight(),
        attempts: monitored.state.attempts(),
        breaker: match monitored.state.breaker.state() {
            Breaker::Closed { .. } => 0,
            Breaker::Open { .. } => 1,
            Breaker::HalfOpen { .. } => 2,
        },
        breaker_changes: monitored.state.breaker_changes(),
        breaker_calls: monitored.state.breaker_calls(),
    };
    let upstreams = state.rows().iter().map(row).collect();
    let certificates = state.shows.certificates.counts();
    let reloads = state.shows.reloads.counts();
    let version = env!("CARGO_PKG_VERSION");
    let live = (state.shows.live)();
    let prefix = state.rules.read().unwrap_or_else(PoisonError::into_inner).metrics_prefix.clone();
    let prefix = &*prefix;
    let counters = &counters;
    let sources = state.shows.sources.rows();
    let text = render(&Snapshot {
        prefix,
        version,
        counters,
        upstreams,
        live,
        certificates,
        reloads,
        sources,
    });
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

/// Reloads the config, for scripts that know `/admin/reload`.
async fn reload(State(state): State<Arc<AdminState>>, headers: HeaderMap) -> Response {
    // A GET that does something must not come from a page of another origin either.
    if !state.is_at_home(&headers) || !is_sent_by_no_page(&headers) {
        return fault(StatusCode::FORBIDDEN, "forbidden", NOT_AT_HOME);
    }
    match state.shows.reloader.reload().await {
        Ok(_) => body(StatusCode::OK, &json!({ "status": "reloaded" })),
        Err(why) => {
            let told = json!({ "status": "error", "message": why.trim_end() });
            body(StatusCode::BAD_REQUEST, &told)
        }
    }
}

/// Reloads the config, for scripts that know `/config/reload`.
async fn reload_config(State(state): State<Arc<AdminState>>) -> Response {
    match state.shows.reloader.reload().await {
        Ok(done) => {
            let message = counted(done.changes.len(), "change");
            let changes: Vec<String> = done.changes.iter().map(ToString::to_string).collect();
            let told = json!({
                "success": true,
                "message": format!("reloaded: {message}"),
                "changes": changes,
                "warnings": done.warnings,
                "endpoints": done.endpoints,
                "models": done.models,
            });
            body(StatusCode::OK, &told)
        }
        Err(why) => {
            let told = json!({ "success": false, "message": why.trim_end() });
            body(StatusCode::BAD_REQUEST, &told)
        }
    }
}

async fn nothing_here() -> Response {
    fault(StatusCode::NOT_FOUND, "not_found", "no such resource")
}

async fn wrong_method() -> Response {
    fault(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "not with this method")
}

/// Checks every enabled upstream now, all at once, and waits for the results: by its probe, or for
/// its list of models where it has no probe.
pub async fn probe_now(table: &UpstreamTable) {
    let rows = table.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let enabled = rows.into_iter().filter(|monitored| monitored.upstream.enabled);
    check_all(enabled).await;
}

impl AdminState {
    fn is_at_home(&self, headers: &HeaderMap) -> bool {
        is_of_this_address(headers, self.token().is_some() || !self.is_tcp)
    }

    fn token(&self) -> Option<[u8; 32]> {
        self.rules.read().unwrap_or_else(PoisonError::into_inner).token
    }

    /// The enabled upstreams.
    fn rows(&self) -> Vec<Arc<Monitored>> {
        let table = self.shows.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.iter().filter(|monitored| monitored.upstream.enabled).cloned().collect()
    }

    /// How many of the enabled upstreams are healthy, and how many there are.
    fn count(&self) -> (usize, usize) {
        let rows = self.rows();
        let healthy = rows.iter().filter(|monitored| monitored.standing() == Standing::Healthy);
        (healthy.count(), rows.len())
    }

    fn health(&self) -> Value {
        let (healthy, total) = self.count();
        let endpoints: Map<String, Value> = self
            .rows()
            .iter()
            .map(|monitored| (monitored.upstream.name.clone(), endpoint(monitored)))
            .collect();
        json!({
            "status": if healthy > 0 { "healthy" } else { "unhealthy" },
            "endpoints": endpoints,
            "healthy_endpoints": healthy,
            "total_endpoints": total,
        })
    }
}

fn endpoint(monitored: &Monitored) -> Value {
    let checked = monitored.checked();
    json!({
        "healthy": monitored.standing() == Standing::Healthy,
        "state": monitored.standing().name(),
        "lastCheck": checked.last.map(shown_time),
        "errorCount": checked.errors,
        "lastError": checked.last_error,
    })
}

fn fault(status: StatusCode, kind: &str, message: &str) -> Response {
    let error = json!({ "type": kind, "message": message });
    body(status, &json!({ "code": status.as_u16(), "status": "error", "error": error }))
}

fn body(status: StatusCode, json: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (status, kind, json.to_string()).into_response()
}
