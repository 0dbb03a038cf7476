//! The client side: `[[listener]]`, its routes, and `[[key]]`.

use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::pki::{Pair, Roots};

use super::{ClientTimeouts, GroupId, KeyId, ListenerIndex};
pub use crate::policy::auth::Carrier;
pub use crate::policy::model::Force;

/// An address clients connect to, and the rules for them.
#[derive(Debug, Clone)]
pub struct Listener {
    /// Unique among listeners.
    pub name: String,
    /// Key `bind`: the addresses, at least one.
    pub binds: Vec<Bind>,
    /// Certificates and ALPN; none = plain.
    pub tls: Option<ListenerTls>,
    /// Whether a client key is asked for.
    pub auth: ListenerAuth,
    /// Where a client may carry its key, in the order they are looked at.
    pub accept: Vec<Carrier>,
    /// Where an unknown model goes; none = 404.
    pub default_group: Option<GroupId>,
    /// Which names may say where to go.
    pub force: Force,
    /// Origins whose pages may call, as browsers write them, or `*`.
    pub cors: Vec<String>,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Whether `X-Forwarded-For`, `-Proto` and `X-Real-IP` are sent on.
    pub forwarded: Forwarded,
    /// Per client IP; none = no limit.
    pub ratelimit: Option<IpRate>,
    /// Key `route`, in declaration order.
    pub routes: Vec<RouteRule>,
    /// The client side's times, resolved against `[timeouts]`.
    pub timeouts: ClientTimeouts,
}

/// One address to listen on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bind {
    /// `127.0.0.1:4000`, `[::]:4000`; port 0 = any free one.
    Tcp(SocketAddr),
    /// `unix:/run/x.sock`.
    Unix(PathBuf),
}

impl Bind {
    /// Whether only this machine can connect.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(addr) => addr.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }
}

impl std::fmt::Display for Bind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// TLS of a listener; equal when the settings and the files' content are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerTls {
    /// Certificate and key files, at least one; the first is the default, the others by SNI.
    pub pairs: Vec<CertPair>,
    /// Protocols offered, the preferred first.
    pub alpn: Vec<Alpn>,
    /// Authorities that vouch for clients; none = clients are not asked for a certificate.
    pub client_ca: Option<TrustFile>,
    /// What becomes of a client without a certificate, when there is a `client_ca`.
    pub client_auth: ClientAuth,
    /// The oldest version that is spoken.
    pub min_version: TlsVersion,
}

/// One certificate chain with its private key, as PEM files.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CertPair {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Private key.
    pub key: PathBuf,
    /// What was in them.
    pub loaded: Pair,
}

/// A PEM file of authorities.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustFile {
    /// The file.
    pub path: PathBuf,
    /// What was in it.
    pub roots: Roots,
}

/// What becomes of a client without a certificate. One with a bad certificate is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// It is refused.
    Require,
    /// It comes in, without a name.
    Request,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    /// 1.2.
    V12,
    /// 1.3.
    V13,
}

/// A protocol of ALPN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alpn {
    /// `h2`.
    H2,
    /// `http/1.1`.
    Http11,
}

/// Whether a listener asks for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerAuth {
    /// A key of `[[key]]` is needed.
    Keys,
    /// Everyone may come in.
    None,
}

/// Whether forwarding fields are sent to upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forwarded {
    /// Ours is appended to what a trusted proxy said.
    Append,
    /// Neither sent nor passed on.
    Off,
}

/// GCRA per client IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpRate {
    /// 1..=10000.
    pub per_second: u32,
    /// 1..=20000.
    pub burst: u32,
}

/// One `[[listener.route]]`: has a path, a host, or both.
#[derive(Debug, Clone)]
pub struct RouteRule {
    /// Pattern of the path, begins with `/`; its syntax has been checked.
    pub path: Option<String>,
    /// Host and prefix.
    pub host: Option<HostRoute>,
    /// Where the request goes.
    pub group: GroupId,
    /// Keys that may use it; none = every key of the listener.
    pub keys: Option<Vec<KeyId>>,
}

/// `host = "openai.example.com/prefix"`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostRoute {
    /// Lower case, without port.
    pub host: String,
    /// Begins with `/`, does not end with one; stripped before forwarding. None = no prefix.
    pub prefix: Option<String>,
}

/// A client credential and its rights.
#[derive(Clone)]
pub struct Key {
    /// Unique among keys; what logs and metrics show.
    pub name: String,
    /// SHA-256 of the key; the key itself is not kept. None = it is good for clients whose
    /// certificate has its name, and for nobody else.
    pub sha256: Option<[u8; 32]>,
    /// The secret before, while clients still move to the new one.
    pub previous: Option<PreviousSecret>,
    /// Models it may use.
    pub models: ModelSet,
    /// Listeners it is good for.
    pub listeners: ListenersAllowed,
    /// Requests per minute; 0 = no limit. So the next four.
    pub rpm: u64,
    /// Requests per UTC day.
    pub rpd: u64,
    /// Tokens per minute.
    pub tpm: u64,
    /// GCRA rate, 0..=10000.
    pub per_second: u32,
    /// GCRA burst, 0..=20000; at least 1 when `per_second` is set.
    pub burst: u32,
    /// Exchanges in flight at most; 0 = no limit.
    pub concurrency: u32,
    /// Place in a queue: the higher goes first.
    pub priority: i32,
    /// Seconds since 1970 UTC from which on it is refused; none = never.
    pub expires: Option<u64>,
}

/// A secret that another one has replaced, and is good for a while.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PreviousSecret {
    /// Its SHA-256.
    pub sha256: [u8; 32],
    /// Seconds since 1970 UTC from which on it is refused.
    pub until: u64,
}

impl std::fmt::Debug for Key {
    /// Hides the digest too: of a weak key it could be guessed.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut out = f.debug_struct("Key");
        out.field("name", &self.name).field("models", &self.models);
        out.field("listeners", &self.listeners).field("expires", &self.expires);
        out.finish_non_exhaustive()
    }
}

/// Names of models, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSet {
    /// `["*"]`.
    All,
    /// One of these fits.
    Of(Vec<ModelPattern>),
}

/// One name of a `ModelSet`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPattern {
    /// The name itself.
    Exact(String),
    /// `gpt-*`: every name that begins so; holds what stands before the star.
    Prefix(String),
}

/// Listeners, or all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenersAllowed {
    /// `["*"]`.
    All,
    /// One of these.
    Of(Vec<ListenerIndex>),
}

impl ListenersAllowed {
    /// Whether that listener is in the set.
    pub fn allows(&self, listener: ListenerIndex) -> bool {
        match self {
            Self::All => true,
            Self::Of(ids) => ids.contains(&listener),
        }
    }
}
