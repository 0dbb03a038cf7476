//! Mirror of the process-wide sections.

use crate::config::model::*;
use crate::config::raw::entries::CoresEntry;
use crate::config::raw::mirror::mirror;
use crate::config::raw::upstream::RawUpstreamTls;
use crate::config::reader::At;
use crate::config::values::{NameTable, OneOf, SecretText, Size, Time, UrlText};

mirror! {
    /// `[process]`.
    RawProcess {
        /// "auto", a number of cores, or a list of core numbers.
        cores: CoresEntry,
        /// How long a stopping process waits for in-flight exchanges, 1s..1h.
        drain: Time,
        /// IO driver.
        io: OneOf<Io>,
        /// Path of the handover socket; empty = an abstract one.
        control_socket: String,
        /// Folder of what outlives the process; empty = none.
        state_dir: String,
    }
    /// `[log]`.
    RawLog {
        /// Least level that is written.
        level: OneOf<Level>,
        /// Form of a line.
        format: OneOf<LogFormat>,
        /// off, stdout or a path.
        access: String,
        /// Share of exchanges that ended well and are written, 0..=1; the others always are.
        access_sample: f64,
    }
    /// `[limits]`.
    RawLimits {
        /// Bytes of a head.
        head: Size,
        /// Fields of a head.
        fields: i64,
        /// Bytes of a request target.
        target: Size,
        /// Bytes of a request body.
        body: Size,
        /// Bytes of a body kept for retry once its model is known, or where none is needed.
        body_held: Size,
        /// Bytes of all held bodies.
        held_total: Size,
        /// Client connections; 0 = from RLIMIT_NOFILE.
        connections: i64,
        /// Client connections of one address; 0 = any number.
        connections_per_ip: i64,
        /// Least rate of a request body, bytes a second over 10 s; 0B = none.
        body_rate_min: Size,
        /// Unfinished TLS handshakes; 0 = a quarter of the connections.
        handshakes: i64,
        /// What one HTTP/2 connection may ask of us.
        h2: RawH2,
    }
    /// `limits.h2`.
    RawH2 {
        /// Streams at a time, 1..10000.
        streams: i64,
        /// Bytes ahead of our reading, of a stream.
        window: Size,
        /// Bytes ahead of our reading, of the connection.
        connection_window: Size,
        /// Bytes of a list of header fields.
        header_list: Size,
        /// RST_STREAM in frames_window, beyond those of streams that were answered.
        resets: i64,
        /// PING in frames_window.
        pings: i64,
        /// SETTINGS in frames_window.
        settings: i64,
        /// Frames without content in frames_window.
        empty_frames: i64,
        /// PRIORITY in frames_window.
        priority: i64,
        /// Over this time, 1s..1h.
        frames_window: Time,
    }
    /// `[timeouts]`.
    RawTimeouts {
        /// A request head, from its first byte to its end.
        client_head: Time,
        /// Between two reads of a request body.
        client_body_idle: Time,
        /// Idle between two requests of a connection.
        client_keepalive: Time,
        /// A write to a client that makes no progress.
        client_write_idle: Time,
        /// From accept to the end of the TLS handshake.
        tls_handshake: Time,
        /// To an established connection, 1s..120s.
        connect: Time,
        /// CONNECT sent to an outbound proxy to its answer, 1s..120s.
        proxy_connect: Time,
        /// Request sent to the first byte of the response body.
        first_byte: Time,
        /// Between two reads of a response body, from its first byte on.
        stream_idle: Time,
        /// The whole exchange; 0s = none.
        total: Time,
        /// Age of an idle pooled connection, 5s..1800s.
        pool_idle: Time,
        /// TCP keep-alive, 5s..600s.
        tcp_keepalive: Time,
    }
    /// `[ratelimit_store]`.
    RawRatelimitStore {
        /// Where the counters live.
        kind as "type": OneOf<StoreKind>,
        /// Redis URL.
        url: SecretText,
        /// TLS of a rediss:// URL.
        tls: RawUpstreamTls,
        /// How Redis is asked.
        mode: OneOf<StoreMode>,
        /// What happens while Redis is away.
        on_error: OneOf<StoreOnError>,
    }
    /// `[discovery]`.
    RawDiscovery {
        /// Age at which a models list is asked for again.
        ttl: Time,
        /// Times health.interval; 0.0 = unused.
        ttl_multiplier: f64,
        /// Ids are "upstream:model".
        prefix: bool,
        /// A model whose servers are away stays known for this long.
        grace: Time,
        /// GET /v1/models tells where each model is, as host:port.
        endpoints: bool,
        /// The file that says where Kubernetes is and who we are there; empty = the usual places.
        kubeconfig: String,
    }
    /// `[tracing]`.
    RawTracing {
        /// URL of an OTLP collector over HTTP, /v1/traces is added; empty = none.
        endpoint: UrlText,
        /// Share of traces that begin here and are sampled, 0..=1.
        sample: f64,
        /// The service.name of all spans.
        service_name: String,
        /// Fields of each export, by name.
        headers: NameTable<SecretText>,
        /// An export, 1s..60s.
        timeout: Time,
        /// TLS of an https:// collector.
        tls: RawUpstreamTls,
    }
    /// `[admin]`.
    RawAdmin {
        /// Address; empty = none.
        bind: String,
        /// Bearer token.
        token: SecretText,
        /// CIDRs that may connect.
        allow: Vec<At<String>>,
        /// GET / is the dashboard.
        dashboard: bool,
        /// Edits are kept in state_dir.
        persist: bool,
        /// Put before the names of metrics; letters, digits and `_`, no digit first.
        metrics_prefix: String,
    }
}
