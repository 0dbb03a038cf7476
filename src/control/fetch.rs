//! One request of our own to an upstream, from the control thread: a fresh connection, one
//! request, and its answer or why there was none.
//!
//! Probes and requests for models are sent as a client's request would be: through the entry's
//! outbound proxy, with its credential, its edits of the head, its base path and its version of
//! HTTP (`http_client`). Connections are not kept: such requests are rare, and a fresh connection
//! also tells whether the server still accepts.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine as _;
use hyper::body::Bytes;
use hyper::http::uri::Scheme;
use hyper::{Request, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::http_client::{Spoken, Unanswered, send};
use super::monitored::Monitored;
use crate::config::{
    HeaderAction, HeaderOp, HostRule, OutboundProxy, PathMode, Secret, Upstream, UpstreamAuth,
    UpstreamUrl,
};
use crate::http1::connect;
use crate::net::dial::Address;
use crate::net::sys;
use crate::net::tls::{TlsClient, explain};
use crate::policy::query;
use crate::upstream::via::{TunnelError, is_open};

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FetchError {
    /// No connection, or one that ended without an answer: the server is taken to be down.
    Dead(String),
    /// Connected, but the whole answer did not come in time.
    Late(String),
    /// A lack of a resource of this machine (`sys::is_shortage`): it says nothing of the server.
    Ours(String),
}

impl FetchError {
    /// The reason, as a text for the operator.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            FetchError::Dead(why) | FetchError::Late(why) | FetchError::Ours(why) => why,
        }
    }

    /// Classes the error of a connection: `Ours` for a shortage, else `Dead`.
    fn broken(error: &io::Error) -> Self {
        match sys::is_shortage(error) {
            true => FetchError::Ours(error.to_string()),
            false => FetchError::Dead(error.to_string()),
        }
    }
}

/// A request to be sent to an upstream.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The method of HTTP, such as `GET`.
    pub method: &'a str,
    /// Path and query, put behind the base path.
    pub path: &'a str,
    /// Sent unchanged; empty for none.
    pub body: &'a [u8],
    /// Edits of the head, applied after those of the upstream.
    pub headers: &'a [HeaderOp],
}

/// Sends a request to an upstream and returns the answer: its addresses are tried in order until
/// one answers; behind an outbound proxy they are the proxy's. `limit` bounds all of it.
///
/// Errors: of the last address that failed; `Ours` when it was met at any of them.
pub async fn fetch(
    monitored: &Monitored,
    question: &Question<'_>,
    limit: Duration,
) -> Result<(StatusCode, Bytes), FetchError> {
    let by = Instant::now() + limit;
    let tls = monitored.tls.clone().map_err(|why| FetchError::Dead(format!("tls: {why}")))?;
    let mut error = FetchError::Dead("no address".to_owned());
    for address in &monitored.addresses() {
        let request = request(&monitored.upstream, question).map_err(FetchError::Dead)?;
        match at(&monitored.upstream, address, tls.as_deref(), request, by, limit).await {
            Ok(answer) => return Ok(answer),
            // `Ours` stays: an address that could not be tried might have answered.
            Err(why) if !matches!(error, FetchError::Ours(_)) => error = why,
            Err(_) => {}
        }
    }
    Err(error)
}

async fn at(
    upstream: &Upstream,
    address: &Address,
    tls: Option<&TlsClient>,
    request: Request<Bytes>,
    by: Instant,
    limit: Duration,
) -> Result<(StatusCode, Bytes), FetchError> {
    let late = |what: &str| format!("{what} within {limit:?}");
    let known = if upstream.http2 { Spoken::Http2 } else { Spoken::Http1 };
    match address {
        Address::Tcp(addr) => {
            let stream = reach(upstream, *addr, by, &late).await?;
            let answered = match tls {
                None => in_time(by, send(stream, known, Scheme::HTTP, request), &late).await,
                Some(tls) => match timeout_at(by, secured(tls, stream)).await {
                    Ok(Ok((stream, chosen))) => {
                        let asked = send(stream, chosen, Scheme::HTTPS, request);
                        in_time(by, asked, &late).await
                    }
                    Ok(Err(error)) if sys::is_shortage(&error) => Err(FetchError::broken(&error)),
                    Ok(Err(error)) => Err(FetchError::Dead(format!("tls: {}", explain(&error)))),
                    Err(_) => Err(FetchError::Dead(late("no TLS"))),
                },
            };
            match (answered, &upstream.proxy) {
                // 407 is about our credentials for the proxy, so the proxy sent it, not the server.
                (Ok((StatusCode::PROXY_AUTHENTICATION_REQUIRED, _)), Some(proxy))
                    if !upstream.tunnels() =>
                {
                    Err(tunnel_error(TunnelError::Refused(407), proxy))
                }
                (answered, _) => answered,
            }
        }
        Address::Unix(path) => match UnixStream::connect(path).await {
            Ok(stream) => in_time(by, send(stream, known, Scheme::HTTP, request), &late).await,
            Err(error) => Err(FetchError::broken(&error)),
        },
    }
}

/// Waits for an answer until `by`, and turns its error into a `FetchError`.
async fn in_time(
    by: Instant,
    answer: impl Future<Output = Result<(StatusCode, Bytes), Unanswered>>,
    late: &(dyn Fn(&str) -> String + Sync),
) -> Result<(StatusCode, Bytes), FetchError> {
    match timeout_at(by, answer).await {
        Ok(answer) => answer.map_err(|Unanswered { why, is_ours }| match is_ours {
            true => FetchError::Ours(why),
            false => FetchError::Dead(why),
        }),
        Err(_) => Err(FetchError::Late(late("no answer"))),
    }
}

/// Shakes hands over a connection, which verifies the server's certificate; returns the version of
/// HTTP that the server chose by ALPN.
async fn secured(tls: &TlsClient, stream: TcpStream) -> io::Result<(TlsStream<TcpStream>, Spoken)> {
    let connector = TlsConnector::from(tls.config.clone());
    let stream = connector.connect(tls.name.clone(), stream).await?;
    let chosen = match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => Spoken::Http2,
        _ => Spoken::Http1,
    };
    Ok((stream, chosen))
}

/// A connection to the server, through a tunnel where the entry needs one; or to the outbound proxy
/// that itself reads the request.
async fn reach(
    upstream: &Upstream,
    addr: SocketAddr,
    by: Instant,
    late: &(dyn Fn(&str) -> String + Sync),
) -> Result<TcpStream, FetchError> {
    let dialed = timeout_at(by, TcpStream::connect(addr)).await;
    let dialed = dialed.map(|done| done.map_err(|error| sys::connect_error(&addr, error)));
    let Some(proxy) = &upstream.proxy else {
        return match dialed {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(FetchError::broken(&error)),
            Err(_) => Err(FetchError::Dead(late("no connection"))),
        };
    };
    let mut stream = match dialed {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if sys::is_shortage(&error) => return Err(FetchError::broken(&error)),
        Ok(Err(_)) => return Err(tunnel_error(TunnelError::Unreachable, proxy)),
        Err(_) => return Err(tunnel_error(TunnelError::ConnectLate, proxy)),
    };
    if upstream.tunnels() {
        let opened = timeout_at(by, tunnel(&mut stream, &upstream.url, proxy)).await;
        opened.unwrap_or(Err(TunnelError::AnswerLate)).map_err(|why| tunnel_error(why, proxy))?;
    }
    Ok(stream)
}

/// Opens a tunnel to the server of `url` on a connection to `proxy` (CONNECT); the caller speaks
/// through it, TLS for example.
///
/// Shape: the caller bounds the time. On success the next byte each way belongs to the tunnel.
/// Errors: any `TunnelError` but those of connecting and of time.
pub async fn tunnel<S>(
    stream: &mut S,
    url: &UpstreamUrl,
    proxy: &OutboundProxy,
) -> Result<(), TunnelError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut request = Vec::new();
    let credentials = proxy.credentials.as_ref().map(Secret::expose);
    connect::request(&mut request, &connect::host_port(&url.host, url.port), credentials);
    stream.write_all(&request).await.map_err(|error| TunnelError::broken(&error))?;
    let mut answer = connect::Answer::default();
    let mut bytes = Vec::new();
    while stream.read_buf(&mut bytes).await.is_ok_and(|n| n > 0) {
        if is_open(&mut answer, &bytes)? {
            return Ok(());
        }
    }
    Err(TunnelError::Closed)
}

/// A proxy that opens no tunnel makes the server count as `Dead`, unless the cause is a shortage.
fn tunnel_error(why: TunnelError, proxy: &OutboundProxy) -> FetchError {
    if why == TunnelError::Ours {
        return FetchError::Ours(why.why(&proxy.authority()));
    }
    FetchError::Dead(why.why(&proxy.authority()))
}

/// Makes the request with the host, credential, path and edits of the upstream's entry.
fn request(upstream: &Upstream, question: &Question<'_>) -> Result<Request<Bytes>, String> {
    let mut path = path_of(upstream, question.path);
    let mut fields: Vec<(String, Vec<u8>)> = Vec::new();
    let host = match &upstream.host {
        HostRule::Literal(host) => host.clone(),
        HostRule::Upstream | HostRule::Client => upstream.url.authority(),
    };
    put(&mut fields, "host", host.into_bytes());
    put(&mut fields, "accept", b"*/*".to_vec());
    if let Some(agent) = &upstream.user_agent {
        put(&mut fields, "user-agent", agent.clone().into_bytes());
    }
    credential(upstream, &mut fields, &mut path);
    for op in upstream.headers.iter().chain(question.headers) {
        let known = fields.iter().any(|(name, _)| *name == op.name);
        match op.op {
            HeaderAction::Insert if known => {}
            HeaderAction::Insert | HeaderAction::Replace => {
                put(&mut fields, &op.name, op.value.clone().into_bytes());
            }
            HeaderAction::Remove => fields.retain(|(name, _)| *name != op.name),
        }
    }
    let mut target = path;
    if let (Some(proxy), false) = (&upstream.proxy, upstream.tunnels()) {
        target = format!("http://{}{target}", upstream.url.authority());
        if let Some(credentials) = &proxy.credentials {
            let value = connect::basic(credentials.expose());
            put(&mut fields, "proxy-authorization", value.into_bytes());
        }
    }
    let mut request = Request::builder().method(question.method).uri(target);
    for (name, value) in fields {
        request = request.header(name, value);
    }
    let body = Bytes::copy_from_slice(question.body);
    request.body(body).map_err(|error| error.to_string())
}

/// The path and query to ask for: behind the base path, as for clients' requests; where the
/// entry's URL is fixed, at the server's root.
fn path_of(upstream: &Upstream, path: &str) -> String {
    if upstream.path_mode == PathMode::Fixed {
        return path.to_owned();
    }
    let base = upstream.base_path();
    let (front, rest) = base.join(path.as_bytes());
    let mut path = String::from_utf8_lossy(front).into_owned();
    // Base path and `/v1` may cancel out, but a path must begin with a slash.
    if front.is_empty() && !rest.starts_with(b"/") {
        path.push('/');
    }
    path + &String::from_utf8_lossy(rest)
}

fn credential(upstream: &Upstream, fields: &mut Vec<(String, Vec<u8>)>, path: &mut String) {
    let first = upstream.api_keys.first().map(|key| &key.key);
    let chosen = |own| -> Vec<u8> { Secret::expose(first.unwrap_or(own)).to_vec() };
    let with = |scheme: &[u8], secret: &[u8]| [scheme, secret].concat();
    match &upstream.auth {
        UpstreamAuth::None | UpstreamAuth::Pass => {}
        UpstreamAuth::Bearer(token) => {
            put(fields, "authorization", with(b"Bearer ", &chosen(token)));
        }
        UpstreamAuth::Basic(pair) => {
            let coded = base64::engine::general_purpose::STANDARD.encode(pair.expose());
            put(fields, "authorization", with(b"Basic ", coded.as_bytes()));
        }
        UpstreamAuth::Header { name, value } => put(fields, name, chosen(value)),
        UpstreamAuth::Query { name, value } => {
            let whole = std::mem::take(path);
            let (front, old) = whole.split_once('?').unwrap_or((&whole, ""));
            let mut rewritten = Vec::new();
            query::rewrite(old.as_bytes(), name.as_bytes(), Some(&chosen(value)), &mut rewritten);
            *path = format!("{front}?{}", String::from_utf8_lossy(&rewritten));
        }
    }
}

fn put(fields: &mut Vec<(String, Vec<u8>)>, name: &str, value: Vec<u8>) {
    fields.retain(|(known, _)| known != name);
    fields.push((name.to_owned(), value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn upstream(lines: &str) -> Upstream {
        let text = format!(
            "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"u\"\n{lines}\n"
        );
        let config = Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"));
        config.upstreams[0].clone()
    }

    /// The request's target and fields as text.
    fn sent(lines: &str, path: &str) -> String {
        let question = Question { method: "GET", path, body: b"", headers: &[] };
        let request = request(&upstream(lines), &question).unwrap();
        let mut fields: Vec<String> = request
            .headers()
            .iter()
            .filter(|(name, _)| *name != "accept")
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        fields.sort();
        format!("{} {}", request.uri(), fields.join(" "))
    }

    #[test]
    fn asks_beside_a_base_path_that_ends_in_v1() {
        let url = |path: &str| format!("url = \"http://h:1{path}\"");
        for (base, path, uri) in [
            ("", "/v1/models", "/v1/models"),
            ("/v1", "/v1/models", "/v1/models"),
            ("/b/v1/", "/v1/models", "/b/v1/models"),
            ("/b/v1", "/api/tags", "/b/api/tags"),
            ("/b", "/health?x=1", "/b/health?x=1"),
        ] {
            assert_eq!(sent(&url(base), path), format!("{uri} host=h:1"), "{base} {path}");
        }
        let fixed = "url = \"http://h:1/only/this?x=1\"\npath_mode = \"fixed\"";
        assert_eq!(sent(fixed, "/v1/models"), "/v1/models host=h:1");
    }

    #[test]
    fn carries_the_upstreams_credential_and_edits() {
        let with = |auth: &str| sent(&format!("url = \"http://127.0.0.1:1\"\n{auth}"), "/x?a=1");
        let host = "host=127.0.0.1:1";
        for (auth, expected) in [
            (
                "{ type = \"bearer\", token = \"t\" }",
                format!("/x?a=1 authorization=Bearer t {host}"),
            ),
            (
                "{ type = \"basic\", username = \"u\", password = \"p\" }",
                format!("/x?a=1 authorization=Basic dTpw {host}"),
            ),
            (
                "{ type = \"header\", name = \"X-Key\", value = \"v\" }",
                format!("/x?a=1 {host} x-key=v"),
            ),
            (
                "{ type = \"query\", name = \"key\", value = \"a b\" }",
                format!("/x?a=1&key=a%20b {host}"),
            ),
        ] {
            assert_eq!(with(&format!("auth = {auth}")), expected);
        }
        let proxied = "proxy = \"http://u:p@q:8080\"";
        assert_eq!(
            with(proxied),
            "http://127.0.0.1:1/x?a=1 host=127.0.0.1:1 proxy-authorization=Basic dTpw"
        );
        let edits = "headers = [{ op = \"insert\", key = \"v\", value = \"1\" }, \
                     { op = \"remove\", key = \"accept\" }]\nuser_agent = \"me\"";
        assert_eq!(with(edits), format!("/x?a=1 {host} user-agent=me v=1"));
    }

    /// The result of `tunnel` through a proxy that answers `answer`, and what the proxy was sent.
    fn tunnelled(answer: &'static [u8]) -> (Result<(), TunnelError>, String) {
        let entry = upstream("url = \"https://[::1]/x\"\nproxy = \"http://u:p@q:8080\"");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async move {
            let (mut ours, mut theirs) = tokio::io::duplex(1024);
            theirs.write_all(answer).await.unwrap();
            theirs.shutdown().await.unwrap();
            let proxy = entry.proxy.as_ref().unwrap();
            let opened = tunnel(&mut ours, &entry.url, proxy).await;
            drop(ours);
            let mut sent = String::new();
            theirs.read_to_string(&mut sent).await.unwrap();
            (opened, sent)
        })
    }

    #[test]
    fn asks_for_a_tunnel_and_hears_the_answer() {
        let head = "CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\
                    Proxy-Authorization: Basic dTpw\r\n\r\n";
        for (answer, expected) in [
            (&b"HTTP/1.1 200 OK\r\n\r\n"[..], Ok(())),
            (b"HTTP/1.1 200 OK\r\n\r\nx", Err(TunnelError::Unasked)),
            (b"HTTP/1.1 407 No\r\nContent-Length: 1\r\n\r\nx", Err(TunnelError::Refused(407))),
            (b"HTTP/1.1 200 OK\r\n", Err(TunnelError::Closed)),
        ] {
            assert_eq!(tunnelled(answer), (expected, head.to_owned()));
        }
    }
}
