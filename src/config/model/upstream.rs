//! One LLM server: `[[upstream]]`.

use std::path::PathBuf;
use std::time::Duration;

use super::{CertPair, GroupId, Secret, TrustFile};
use crate::http1::connect::host_port;
use crate::policy::base_path::BasePath;
pub use crate::policy::breaker::BreakerPolicy;

/// One LLM server and how to speak with it.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    /// Unique among upstreams; `name-PORT` when `ports` expanded it.
    pub name: String,
    /// Base URL.
    pub url: UpstreamUrl,
    /// How the client's path meets the URL's.
    pub path_mode: PathMode,
    /// The dialect it speaks.
    pub protocol: Protocol,
    /// Credential put in place of the client's. With `api_keys` it holds the first of them.
    pub auth: UpstreamAuth,
    /// Credentials of which one is picked per attempt, in place of the one in `auth`;
    /// empty = `auth` alone.
    pub api_keys: Vec<ApiKey>,
    /// Edits of the request head, in order.
    pub headers: Vec<HeaderOp>,
    /// What the `Host` field says.
    pub host: HostRule,
    /// `User-Agent` sent; none = the client's.
    pub user_agent: Option<String>,
    /// Outbound proxy.
    pub proxy: Option<OutboundProxy>,
    /// TLS towards an `https` URL.
    pub tls: UpstreamTls,
    /// Whether HTTP/2 is spoken.
    pub http2: bool,
    /// Where its model names come from.
    pub models: ModelsFrom,
    /// Exchanges in flight at most; 0 = no limit.
    pub concurrency: u32,
    /// When a connection is used again.
    pub reuse: Reuse,
    /// False: never picked.
    pub enabled: bool,
    /// Active probes; none = passive signs alone.
    pub health: Option<Health>,
    /// When and how long it is left alone.
    pub breaker: BreakerPolicy,
    /// A source of many upstreams made from this entry.
    pub discover: Option<Discover>,
    /// The implicit group that holds this upstream alone, for `model@upstream`,
    /// `upstream:model` and models that name an upstream.
    pub group: GroupId,
    /// True: made from `models.*.backend`, not declared.
    pub implicit: bool,
}

impl Upstream {
    /// Whether all settings of another entry are these; the numbers of groups, which each config
    /// gives anew, are none.
    #[must_use]
    pub fn is_set_as(&self, other: &Upstream) -> bool {
        Upstream { group: other.group, ..self.clone() } == *other
    }

    /// Whom connections are made to: the proxy, else the server itself.
    ///
    /// Shape: name or address, and port; for a Unix socket its path and 0.
    pub fn first_hop(&self) -> (&str, u16) {
        match &self.proxy {
            Some(proxy) => (&proxy.host, proxy.port),
            None => (&self.url.host, self.url.port),
        }
    }

    /// Where the paths of requests and of our own questions go on its server, unless its URL is
    /// fixed.
    pub fn base_path(&self) -> BasePath {
        let base = BasePath::new(&self.url.base_path);
        match self.path_mode {
            PathMode::StripV1 => base.dropping_v1(),
            PathMode::Append | PathMode::Fixed => base,
        }
    }

    /// Whether its proxy is asked for tunnels: what is not HTTP/1.1 in clear, it cannot read.
    pub fn tunnels(&self) -> bool {
        self.proxy.is_some() && (self.url.tls || self.http2)
    }
}

/// A checked base URL.
#[derive(Clone, PartialEq, Eq)]
pub struct UpstreamUrl {
    /// `https`.
    pub tls: bool,
    /// Name or address, IPv6 without brackets; for a Unix socket its path.
    pub host: String,
    /// Port; 80 or 443 when the URL has none, 0 for a Unix socket.
    pub port: u16,
    /// Begins with `/` and does not end with one, or is empty. With `PathMode::Fixed` it is
    /// all that follows the authority, verbatim, query included; then at least `/`.
    pub base_path: String,
    /// True: `host` is the path of a Unix socket.
    pub unix: bool,
    /// As written, after substitution.
    pub original: UrlAsWritten,
}

/// A URL as somebody wrote it; printed without what may be a secret, its user and its query.
///
/// `expose` is the only way to the text itself and is easy to search for.
#[derive(Clone, PartialEq, Eq)]
pub struct UrlAsWritten(String);

impl UrlAsWritten {
    /// Takes the text of a URL.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for whoever reads it again.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for UrlAsWritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (url, query) = match self.0.split_once('?') {
            Some((before, _)) => (before, "?***"),
            None => (&self.0[..], ""),
        };
        let Some((scheme, rest)) = url.split_once("://") else { return write!(f, "{url}{query}") };
        let authority_end = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(authority_end);
        match authority.rsplit_once('@') {
            Some((_, host)) => write!(f, "{scheme}://***@{host}{path}{query}"),
            None => write!(f, "{scheme}://{authority}{path}{query}"),
        }
    }
}

impl std::fmt::Debug for UrlAsWritten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl UpstreamUrl {
    /// As written, but for what may hold a key.
    pub fn shown(&self) -> String {
        self.original.to_string()
    }

    /// `host:port`, or the path of a Unix socket: where it is, and nothing of what is asked there.
    pub fn place(&self) -> String {
        match (self.unix, self.host.contains(':')) {
            (true, _) => format!("unix:{}", self.host),
            (false, true) => format!("[{}]:{}", self.host, self.port),
            (false, false) => format!("{}:{}", self.host, self.port),
        }
    }

    /// What a `Host` field for it says: the port is left out when it is the scheme's own.
    pub fn authority(&self) -> String {
        if self.unix {
            return "localhost".to_owned();
        }
        let host =
            if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.tls, self.port) {
            (false, 80) | (true, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

impl std::fmt::Display for UpstreamUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.original)
    }
}

impl std::fmt::Debug for UpstreamUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// How the client's path meets the URL's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathMode {
    /// Base path, then the client's path and query.
    Append,
    /// The URL as it is; the client's path is dropped.
    Fixed,
    /// As `Append`, after a leading `/v1` of the client's path is taken off.
    StripV1,
}

/// Dialect of an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OpenAI, vLLM, SGLang, llama-server.
    OpenAi,
    /// Ollama.
    Ollama,
    /// Anthropic.
    Anthropic,
    /// Gemini.
    Gemini,
}

/// The credential an upstream gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpstreamAuth {
    /// None; the client's is removed.
    None,
    /// The client's, untouched.
    Pass,
    /// `Authorization: Bearer <token>`.
    Bearer(Secret),
    /// `Authorization: Basic <base64>`; holds `username:password` before the encoding.
    Basic(Secret),
    /// A field of that name, in lower case.
    Header {
        /// Name of the field.
        name: String,
        /// Its value.
        value: Secret,
    },
    /// A query parameter.
    Query {
        /// Name of the parameter.
        name: String,
        /// Its value, before percent-encoding.
        value: Secret,
    },
}

/// One of several credentials.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiKey {
    /// The credential.
    pub key: Secret,
    /// Share of the attempts; > 0.
    pub weight: f64,
}

/// One edit of the request head.
#[derive(Clone, PartialEq, Eq)]
pub struct HeaderOp {
    /// What is done.
    pub op: HeaderAction,
    /// Key `key`: field name in lower case; never hop-by-hop, never a framing field.
    pub name: String,
    /// Field value, checked; empty for `Remove`.
    pub value: String,
}

impl std::fmt::Debug for HeaderOp {
    /// Hides the value of fields that look like credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = if header_is_secret(&self.name) { "***" } else { self.value.as_str() };
        write!(f, "{:?} {}: {shown}", self.op, self.name)
    }
}

/// Whether a field of that name is likely to hold a credential.
pub fn header_is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    ["auth", "key", "token", "secret", "cookie", "passw", "credential", "session"]
        .iter()
        .any(|word| name.contains(word))
}

/// What a `HeaderOp` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderAction {
    /// Adds the field if the request has none of that name.
    Insert,
    /// Puts it in place of all of that name.
    Replace,
    /// Takes all of that name away.
    Remove,
}

/// What the `Host` field towards an upstream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostRule {
    /// The URL's authority.
    Upstream,
    /// What the client sent.
    Client,
    /// This.
    Literal(String),
}

/// An outbound proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundProxy {
    /// Name or address.
    pub host: String,
    /// Port.
    pub port: u16,
    /// `user:password`, for `Proxy-Authorization: Basic`.
    pub credentials: Option<Secret>,
}

impl OutboundProxy {
    /// `host:port`, for messages.
    pub fn authority(&self) -> String {
        host_port(&self.host, self.port)
    }
}

/// TLS towards an upstream or Redis; equal when the settings and the files' content are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct UpstreamTls {
    /// Who may vouch for the server.
    pub ca: Authorities,
    /// Keys `cert` and `key`: the certificate that we show.
    pub client: Option<CertPair>,
    /// SNI and name to verify; none = the URL's host.
    pub server_name: Option<String>,
    /// False: any certificate will do.
    pub verify: bool,
}

impl Default for UpstreamTls {
    fn default() -> Self {
        Self { ca: Authorities::Mozilla, client: None, server_name: None, verify: true }
    }
}

/// Who may vouch for a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Authorities {
    /// Those that Mozilla trusts, built in: the same on every machine.
    Mozilla,
    /// `"system"`: those that this machine trusts.
    System,
    /// Those of a file and nobody else.
    File(TrustFile),
}

/// Where an upstream's model names come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelsFrom {
    /// Asked from the server.
    Discover,
    /// As listed; may be empty.
    List(Vec<String>),
}

/// When a connection to an upstream is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// As HTTP says.
    Auto,
    /// Not after a streamed response, whatever the server claims.
    NoAfterStream,
    /// Never.
    Never,
}

/// Active health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// Path and query asked for, begins with `/`.
    pub path: String,
    /// Upper case.
    pub method: String,
    /// Body sent; may be empty. Secret, since it may hold a credential.
    pub body: Secret,
    /// Fields sent in addition, as edits of an empty head.
    pub headers: Vec<HeaderOp>,
    /// From one probe to the next.
    pub interval: Duration,
    /// A probe that takes longer has failed; `timeout <= interval`.
    pub timeout: Duration,
    /// Failures in a row until it is down.
    pub fall: u32,
    /// Successes in a row until it is up.
    pub rise: u32,
}

impl Health {
    /// `interval` when it is not said.
    pub const INTERVAL: Duration = Duration::from_secs(30);
}

/// A source of upstreams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Discover {
    /// `dns:NAME:PORT`: one upstream for each address of the name.
    Dns {
        /// Name to resolve.
        name: String,
        /// Port of each.
        port: u16,
    },
    /// `srv:NAME`.
    Srv(String),
    /// `file:PATH`.
    File(PathBuf),
    /// `k8s:NAMESPACE/SERVICE[:PORT]`.
    K8s(KubernetesService),
}

/// A Service of Kubernetes, whose pods are the upstreams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KubernetesService {
    /// Namespace.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Which port of its pods; none = the only one it has.
    pub port: Option<ServicePort>,
}

/// A port of a Service's pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServicePort {
    /// The number on the pods (`targetPort`).
    Number(u16),
    /// The name that the Service gives it.
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_user_and_query() {
        for (text, shown) in [
            ("http://h:1/a", "http://h:1/a"),
            ("https://h/a?key=CANARY", "https://h/a?***"),
            ("http://u:CANARY@h:1", "http://***@h:1"),
            ("http://u:CANARY@h:1/a@b?CANARY", "http://***@h:1/a@b?***"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
        ] {
            let url = UrlAsWritten::new(text);
            assert_eq!(format!("{url} {url:?}"), format!("{shown} {shown}"));
            assert_eq!(url.expose(), text);
        }
    }
}
