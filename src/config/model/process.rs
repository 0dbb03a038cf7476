//! Process-wide sections: `[process]`, `[log]`, `[limits]`, `[timeouts]`,
//! `[ratelimit_store]`, `[discovery]`, `[admin]`.

use crate::http2::flood::FloodLimits;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::{Bind, Health, Secret, UpstreamTls};

/// `[process]`: cores, driver, end of life.
#[derive(Debug, Clone)]
pub struct Process {
    /// One pinned worker for each core named here.
    pub cores: Cores,
    /// How long a stopping process waits for in-flight exchanges.
    pub drain: Duration,
    /// The IO driver of the workers.
    pub io: Io,
    /// Unix socket of the handover; none = an abstract one named after the bind addresses.
    pub control_socket: Option<PathBuf>,
    /// Folder of admin edits and counters that outlive the process; none = none kept.
    pub state_dir: Option<PathBuf>,
}

/// Which cores get a worker. Whether the machine has them is the worker's matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cores {
    /// Every core of the affinity mask.
    Auto,
    /// The first so many cores of the affinity mask, at least 1.
    Count(u16),
    /// Exactly these, by number; not empty, no duplicates.
    List(Vec<u16>),
}

/// The IO driver of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::enum_variant_names, reason = "io_uring is what it is called")]
pub enum Io {
    /// io_uring where the kernel has it, else epoll with a warning.
    Auto,
    /// io_uring or refuse to start.
    IoUring,
    /// epoll.
    Epoll,
}

/// `[log]`.
#[derive(Debug, Clone)]
pub struct Log {
    /// Least level that is written.
    pub level: Level,
    /// Form of a line.
    pub format: LogFormat,
    /// Where one line per exchange goes.
    pub access: AccessLog,
    /// The share of exchanges that ended well and are written, 0.0..=1.0; those that did not are
    /// written always.
    pub access_sample: f64,
}

/// Level of a log line, the gravest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something failed that an operator must repair.
    Error,
    /// Something is odd and goes on.
    Warn,
    /// Start, reload, stop, changes of state.
    Info,
    /// One or more lines per exchange.
    Debug,
    /// Everything.
    Trace,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where access log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// A file, appended to; SIGUSR1 reopens it.
    File(PathBuf),
}

/// `[limits]`: what one peer may ask of us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a request or response head; beyond: 431 (502 from an upstream).
    pub head: u64,
    /// Header fields of one head; beyond: 431.
    pub fields: u32,
    /// Bytes of a request target; beyond: 414.
    pub target: u64,
    /// Bytes of a request body; beyond: 413.
    pub body: u64,
    /// Bytes of a body kept for retry once its model is known; `body_held <= body`.
    pub body_held: u64,
    /// Bytes of all held bodies of the process; beyond: 503 with `Retry-After`.
    pub held_total: u64,
    /// Client connections of the process; 0 = as many as RLIMIT_NOFILE allows.
    pub connections: u32,
    /// Client connections of one address; 0 = any number.
    pub connections_per_ip: u32,
    /// Least rate of a request body, bytes a second over 10 s; 0 = none. Slower: 408.
    pub body_rate_min: u64,
    /// TLS handshakes of the process that have not ended; 0 = a quarter of the connections.
    pub handshakes: u32,
    /// What one HTTP/2 connection may ask of us.
    pub h2: H2Limits,
}

/// `limits.h2`: what one HTTP/2 connection may ask of us.
///
/// Units: counts of frames are at most so many per `frames_window` and connection; one beyond
/// ends the connection with GOAWAY `ENHANCE_YOUR_CALM`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct H2Limits {
    /// Streams at a time, 1..=10000.
    pub streams: u32,
    /// Bytes a peer may send on a stream ahead of our reading, 16 KiB..=16 MiB.
    pub window: u32,
    /// The same over all streams of a connection, 64 KiB..=1 GiB; `window <= connection_window`.
    pub connection_window: u32,
    /// Bytes of a list of header fields, names and values and 32 each, 1 KiB..=16 MiB.
    pub header_list: u32,
    /// RST_STREAM beyond those on streams that were answered.
    pub resets: u32,
    /// PING.
    pub pings: u32,
    /// SETTINGS.
    pub settings: u32,
    /// DATA, HEADERS and CONTINUATION without content that end nothing.
    pub empty_frames: u32,
    /// PRIORITY and PRIORITY_UPDATE.
    pub priority: u32,
    /// The time over which frames are counted, 1s..=1h.
    pub frames_window: Duration,
}

impl H2Limits {
    /// What the counter of frames is told.
    #[must_use]
    pub fn flood(&self) -> FloodLimits {
        FloodLimits {
            resets: self.resets,
            pings: self.pings,
            settings: self.settings,
            empty_frames: self.empty_frames,
            priority: self.priority,
            window: self.frames_window,
            ..FloodLimits::default()
        }
    }
}

impl Default for H2Limits {
    fn default() -> Self {
        Self {
            streams: 128,
            window: 256 << 10,
            connection_window: 1 << 20,
            header_list: 64 << 10,
            resets: 100,
            pings: 100,
            settings: 20,
            empty_frames: 200,
            priority: 500,
            frames_window: Duration::from_secs(10),
        }
    }
}

/// `[ratelimit_store]`.
#[derive(Debug, Clone)]
pub struct RatelimitStore {
    /// Key `type`: where the counters live.
    pub kind: StoreKind,
    /// Redis URL; secret, since it may hold a password.
    pub url: Secret,
    /// Of a `rediss://` URL; `#insecure` in it is `verify` off.
    pub tls: UpstreamTls,
    /// How Redis is asked.
    pub mode: StoreMode,
    /// What happens while Redis is away.
    pub on_error: StoreOnError,
}

/// Where rate-limit counters live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    /// In this process.
    Memory,
    /// In Redis, shared by all nodes.
    Redis,
}

/// How Redis is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreMode {
    /// A shared budget, taken in small batches.
    Lease,
    /// One call per request.
    Strict,
}

/// What happens while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOnError {
    /// Each node keeps its share.
    Local,
    /// Requests of limited keys are refused.
    Deny,
}

/// `[discovery]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Discovery {
    /// Age at which a models list is asked for again.
    pub ttl: Duration,
    /// Times `health.interval`; 0.0 = unused; with both given the smaller counts.
    pub ttl_multiplier: f64,
    /// True: discovered ids are `upstream:model`.
    pub prefix: bool,
    /// How long a model stays known whose servers are away, and an unknown name may be one of a
    /// server that has not been heard of yet.
    pub grace: Duration,
    /// True: the list of models tells where each is, as `host:port`.
    pub endpoints: bool,
    /// Of sources `k8s:…`; none = `$KUBECONFIG`, this pod's service account, `~/.kube/config`.
    pub kubeconfig: Option<PathBuf>,
}

impl Discovery {
    /// From one question to the next, for an upstream with these probes.
    ///
    /// Units: at least a second; without probes the multiple is of their default interval.
    #[must_use]
    pub fn interval(&self, health: Option<&Health>) -> Duration {
        let multiple = match self.ttl_multiplier > 0.0 {
            true => health.map_or(Health::INTERVAL, |h| h.interval).mul_f64(self.ttl_multiplier),
            false => self.ttl,
        };
        self.ttl.min(multiple).max(Duration::from_secs(1))
    }
}

impl Admin {
    /// What names of metrics begin with by default.
    pub const METRICS_PREFIX: &'static str = "tokenring_";
}

/// `[admin]`.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Address of the admin listener.
    pub bind: Bind,
    /// Bearer token; always some when `bind` is not loopback.
    pub token: Option<Secret>,
    /// Clients that may connect.
    pub allow: Vec<IpNet>,
    /// Whether `GET /` is the dashboard.
    pub dashboard: bool,
    /// Whether edits are kept in `state_dir`.
    pub persist: bool,
    /// Put before the names of metrics; what Prometheus takes as a name, or empty.
    pub metrics_prefix: String,
}

/// Name of the file in `process.state_dir` that keeps edits.
const OVERLAY_FILE: &str = "overlay.toml";

/// Where the edits upon a config are kept; `None` = in memory alone.
#[must_use]
pub fn overlay_place(process: &Process, admin: Option<&Admin>) -> Option<PathBuf> {
    let persist = admin.is_some_and(|admin| admin.persist);
    let dir = process.state_dir.as_ref().filter(|_| persist)?;
    Some(dir.join(OVERLAY_FILE))
}
