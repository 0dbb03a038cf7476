//! One question to an upstream, asked on the control thread: a fresh connection, one request,
//! the answer or why there was none.
//!
//! Probes and model lists go the way a client's request would: the entry's credential, its
//! edits of the head, its base path. Connections are not kept: a question is rare, and a fresh
//! connection also tells whether the server still accepts.

use std::io;
use std::time::Duration;

use base64::Engine as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::watched::Watched;
use crate::config::{HeaderAction, HeaderOp, HostRule, PathMode, Secret, Upstream, UpstreamAuth};
use crate::net::dial::Address;
use crate::net::tls::{TlsClient, explain};
use crate::policy::query;

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Silence {
    /// No connection, or one that ended without an answer: nobody serves there.
    Dead(String),
    /// Connected, and no whole answer in time.
    Late(String),
}

impl Silence {
    /// For a person.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Silence::Dead(why) | Silence::Late(why) => why,
        }
    }
}

/// A question.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// The method.
    pub method: &'a str,
    /// Path and query, put behind the base path.
    pub path: &'a str,
    /// Sent as it is.
    pub body: &'a [u8],
    /// Edits of the head behind those of the upstream.
    pub headers: &'a [HeaderOp],
}

/// Asks an upstream at the first of its addresses that answers.
///
/// Errors: `Dead` when none does, `Late` when the time is over.
pub async fn fetch(
    watched: &Watched,
    question: &Question<'_>,
    limit: Duration,
) -> Result<(StatusCode, Bytes), Silence> {
    let by = Instant::now() + limit;
    let tls = watched.tls.clone().map_err(|why| Silence::Dead(format!("tls: {why}")))?;
    let mut silence = Silence::Dead("no address".to_owned());
    for address in &watched.addresses() {
        let request = request(&watched.upstream, question).map_err(Silence::Dead)?;
        match at(address, tls.as_deref(), request, by, limit).await {
            Ok(answer) => return Ok(answer),
            Err(why) => silence = why,
        }
    }
    Err(silence)
}

async fn at(
    address: &Address,
    tls: Option<&TlsClient>,
    request: Request<Full<Bytes>>,
    by: Instant,
    limit: Duration,
) -> Result<(StatusCode, Bytes), Silence> {
    let late = |what: &str| format!("{what} within {limit:?}");
    let dead = |error: &dyn std::fmt::Display| Silence::Dead(error.to_string());
    match address {
        Address::Tcp(addr) => match timeout_at(by, TcpStream::connect(addr)).await {
            Ok(Ok(stream)) => match tls {
                None => exchange(TokioIo::new(stream), request, by, &late).await,
                Some(tls) => match timeout_at(by, secured(tls, stream)).await {
                    Ok(Ok(stream)) => exchange(TokioIo::new(stream), request, by, &late).await,
                    Ok(Err(error)) => Err(Silence::Dead(format!("tls: {}", explain(&error)))),
                    Err(_) => Err(Silence::Dead(late("no TLS"))),
                },
            },
            Ok(Err(error)) => Err(dead(&error)),
            Err(_) => Err(Silence::Dead(late("no connection"))),
        },
        Address::Unix(path) => match UnixStream::connect(path).await {
            Ok(stream) => exchange(TokioIo::new(stream), request, by, &late).await,
            Err(error) => Err(dead(&error)),
        },
    }
}

/// TLS over a connection, the server's certificate verified.
async fn secured(tls: &TlsClient, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(tls.config.clone()).connect(tls.name.clone(), stream).await
}

async fn exchange<S>(
    stream: S,
    request: Request<Full<Bytes>>,
    by: Instant,
    late: &(dyn Fn(&str) -> String + Sync),
) -> Result<(StatusCode, Bytes), Silence>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let talk = async {
        let (mut sender, connection) = http1::handshake(stream).await?;
        // Ends with this function, however that ends.
        let _driver = Task::of(tokio::spawn(async move {
            // What it reports the sender has been told.
            let _ = connection.await;
        }));
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        // An answer that is too long or breaks off has a status all the same.
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        Ok::<_, hyper::Error>((status, body))
    };
    match timeout_at(by, talk).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(Silence::Dead(error.to_string())),
        Err(_) => Err(Silence::Late(late("no answer"))),
    }
}

/// Writes the request as the upstream's entry wants it.
fn request(upstream: &Upstream, question: &Question<'_>) -> Result<Request<Full<Bytes>>, String> {
    let mut path = format!("{}{}", base_of(upstream, question.path), question.path);
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
    let mut request = Request::builder().method(question.method).uri(path);
    for (name, value) in fields {
        request = request.header(name, value);
    }
    let body = Full::new(Bytes::copy_from_slice(question.body));
    request.body(body).map_err(|error| error.to_string())
}

/// The base path in front of `path`, without a `/v1` that both would say.
fn base_of<'u>(upstream: &'u Upstream, path: &str) -> &'u str {
    if upstream.path_mode == PathMode::Fixed {
        return "";
    }
    let base = upstream.url.base_path.trim_end_matches('/');
    // Of a base `…/v1` what is in front of it: other APIs of the server live beside it.
    match base.strip_suffix("/v1") {
        Some(front) if path.starts_with("/v1/") || path.starts_with("/api/") => front,
        _ => base,
    }
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

/// A task that ends with its owner.
#[derive(Debug)]
pub struct Task(JoinHandle<()>);

impl Task {
    /// Owns a running task.
    #[must_use]
    pub fn of(handle: JoinHandle<()>) -> Self {
        Self(handle)
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
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
        let edits = "headers = [{ op = \"insert\", key = \"v\", value = \"1\" }, \
                     { op = \"remove\", key = \"accept\" }]\nuser_agent = \"me\"";
        assert_eq!(with(edits), format!("/x?a=1 {host} user-agent=me v=1"));
    }
}
