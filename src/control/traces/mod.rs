//! Exports the spans of sampled exchanges to a collector, by OTLP over HTTP.
//!
//! The cores put finished exchanges into rings; here they are taken in batches, once a second, and
//! sent in one POST each. Nobody waits for it: while the collector is down or slow the rings fill, and
//! what a collector does not take is dropped, counted, and told once a minute. Nothing is sent twice.
//!
//! The settings are those of the plan in force at the time, so that a reload needs no more.

mod otlp;

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::http::uri::Scheme;
use hyper::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::http_client::{Spoken, send};
use super::say::Say;
use crate::config::{Collector, Tracing};
use crate::net::tls::{client_config, explain};
use crate::telemetry::traced::{TracedBatch, TracedExchange};

/// How often the rings are looked at.
const INTERVAL: Duration = Duration::from_secs(1);
/// Most exchanges of one export.
const BATCH_MAX: usize = 512;
/// Least time between two lines about a collector that takes nothing.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Adds exchanges that wait to a batch, until it has so many.
pub type TakeTraces = Box<dyn Fn(usize, &mut TracedBatch) + Send + Sync>;

/// What the export needs of the server.
pub struct TraceHooks {
    /// The settings in force; none = nothing is traced.
    pub settings: Box<dyn Fn() -> Option<Arc<Tracing>> + Send + Sync>,
    /// Takes exchanges that wait, at most so many.
    pub take: TakeTraces,
    /// Told how many exchanges the collector has taken, and how many were dropped.
    pub count: Box<dyn Fn(u64, u64) + Send + Sync>,
}

/// Exports for ever.
pub async fn run(hooks: TraceHooks, say: Say) {
    let mut complaint = Complaint { say, told_at: None };
    let mut batch = Vec::new();
    loop {
        batch.clear();
        (hooks.take)(BATCH_MAX, &mut batch);
        if batch.is_empty() {
            sleep(INTERVAL).await;
            continue;
        }
        let exchanges = batch.len() as u64;
        // Those of exchanges that ended after tracing was switched off go nowhere.
        let Some(settings) = (hooks.settings)() else {
            (hooks.count)(0, exchanges);
            continue;
        };
        let late = format!("no answer within {:?}", settings.timeout);
        let sent = timeout(settings.timeout, export(&settings, &batch)).await;
        match sent.unwrap_or(Err(late)) {
            Ok(()) => {
                (hooks.count)(exchanges, 0);
                complaint.over();
            }
            Err(why) => {
                (hooks.count)(0, exchanges);
                complaint.tell(&settings, &why);
                // A collector that refuses at once is not asked in a circle.
                sleep(INTERVAL).await;
            }
        }
        if batch.len() < BATCH_MAX {
            sleep(INTERVAL).await;
        }
    }
}

/// Sends one batch.
///
/// Errors: a text for the operator.
async fn export(settings: &Tracing, batch: &[Box<TracedExchange>]) -> Result<(), String> {
    let Some(collector) = &settings.collector else { return Ok(()) };
    let body = Bytes::from(otlp::encode(&settings.service_name, batch));
    let request = request(settings, collector, body)?;
    let stream = TcpStream::connect((collector.host.as_str(), collector.port)).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let answered = if collector.secure {
        let name = settings.tls.server_name.as_ref().unwrap_or(&collector.host).clone();
        let name = ServerName::try_from(name)
            .map_err(|_| "its host can stand in no certificate; set tracing.tls.server_name")?;
        let config = client_config(&settings.tls, false)?;
        let secured = TlsConnector::from(config).connect(name, stream).await;
        let stream = secured.map_err(|error| format!("tls: {}", explain(&error)))?;
        send(stream, Spoken::Http1, Scheme::HTTPS, request).await
    } else {
        send(stream, Spoken::Http1, Scheme::HTTP, request).await
    };
    match answered {
        Ok((status, _)) if status.is_success() => Ok(()),
        Ok((StatusCode::NOT_FOUND, _)) => Err(format!("it has no {}: 404", collector.path)),
        Ok((status, _)) => Err(format!("it answers {status}")),
        Err(unanswered) => Err(unanswered.why),
    }
}

fn request(
    settings: &Tracing,
    collector: &Collector,
    body: Bytes,
) -> Result<Request<Bytes>, String> {
    let host = match collector.host.contains(':') {
        true => format!("[{}]:{}", collector.host, collector.port),
        false => format!("{}:{}", collector.host, collector.port),
    };
    let mut request = Request::builder()
        .method(Method::POST)
        .uri(&collector.path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/x-protobuf")
        .header(USER_AGENT, concat!("tokenring/", env!("CARGO_PKG_VERSION")))
        .body(body)
        .map_err(|error| error.to_string())?;
    for (name, value) in &settings.headers {
        let name = HeaderName::try_from(name).map_err(|error| error.to_string())?;
        let value = HeaderValue::from_bytes(value.expose()).map_err(|error| error.to_string())?;
        request.headers_mut().insert(name, value);
    }
    Ok(request)
}

/// Tells of a collector that takes nothing, but not each time.
struct Complaint {
    say: Say,
    told_at: Option<Instant>,
}

impl Complaint {
    fn tell(&mut self, settings: &Tracing, why: &str) {
        if self.told_at.is_some_and(|at| at.elapsed() < COMPLAINT_INTERVAL) {
            return;
        }
        self.told_at = Some(Instant::now());
        let endpoint = settings.collector.as_ref().map_or("", |one| &one.endpoint);
        (self.say)(&format!("tracing: spans dropped, {endpoint} does not take them: {why}"));
    }

    fn over(&mut self) {
        if self.told_at.take().is_some() {
            (self.say)("tracing: the collector takes spans again");
        }
    }
}
