//! `[tracing]`: where traces go.

use std::time::Duration;

use super::{Secret, UpstreamTls};

/// `[tracing]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tracing {
    /// The collector; none = nothing is traced.
    pub collector: Option<Collector>,
    /// The share of traces that begin here and are sampled, 0.0..=1.0; where the client sends a
    /// `traceparent`, its flag counts.
    pub sample: f64,
    /// The `service.name` of all spans.
    pub service_name: String,
    /// Fields of each export, lower case.
    pub headers: Vec<(String, Secret)>,
    /// How long an export may take.
    pub timeout: Duration,
    /// TLS of an https:// collector.
    pub tls: UpstreamTls,
}

/// Where OTLP over HTTP is spoken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collector {
    /// As the file says it.
    pub endpoint: String,
    /// TLS is spoken.
    pub secure: bool,
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The path of traces, such as `/v1/traces`.
    pub path: String,
}
