//! `[timeouts]`: how long each side may take.

use std::time::Duration;

/// `[timeouts]`: both sides' defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// What applies to clients; a listener may override each.
    pub client: ClientTimeouts,
    /// What applies to upstreams; a group may override each.
    pub upstream: UpstreamTimeouts,
}

/// The client side's times, resolved per listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientTimeouts {
    /// First byte of a head to its end; also accept to first byte.
    pub client_head: Duration,
    /// Between two reads of a request body.
    pub client_body_idle: Duration,
    /// Idle between two requests of a connection.
    pub client_keepalive: Duration,
    /// A write that makes no progress.
    pub client_write_idle: Duration,
    /// Accept to the end of the TLS handshake.
    pub tls_handshake: Duration,
    /// TCP keep-alive probes on accepted connections.
    pub tcp_keepalive: Duration,
}

/// The upstream side's times, resolved per group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UpstreamTimeouts {
    /// To an established connection, TLS included.
    pub connect: Duration,
    /// CONNECT sent to an outbound proxy to its answer.
    pub proxy_connect: Duration,
    /// Request sent to the first byte of the response body.
    pub first_byte: Duration,
    /// Between two reads of a response body, from its first byte on.
    pub stream_idle: Duration,
    /// The whole exchange; none = a healthy stream is never cut.
    pub total: Option<Duration>,
    /// An idle pooled connection is closed after this.
    pub pool_idle: Duration,
    /// TCP keep-alive probes on connections to upstreams.
    pub tcp_keepalive: Duration,
}
