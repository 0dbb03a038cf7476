//! One request and its answer on a connection of its own, in HTTP/1.1 or in HTTP/2.
//!
//! An upstream with `http2` is asked in HTTP/2 too: a server that knows no other version would
//! seem dead. HTTP/1.1 is done by hyper; one HTTP/2 stream takes a few calls of the `h2` crate,
//! which is here anyway, and needs no executor whose tasks outlive the request.
//!
//! Deliberately not here: timeouts, which the caller sets, and connections that are kept.

use std::error::Error;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::uri::{Authority, Scheme};
use hyper::{Request, StatusCode, Uri, Version, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use super::task::Task;
use crate::net::sys::is_shortage;

/// Longest body of an answer, in bytes.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Largest head of an answer in HTTP/2, in bytes; hyper has its own bound for HTTP/1.1.
const HEAD_BYTES_MAX: u32 = 256 << 10;

/// The version of HTTP on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unanswered {
    /// The reason, as a text for the operator.
    pub(super) why: String,
    /// A lack of a resource of this machine (`sys::is_shortage`): it says nothing of the server.
    pub(super) is_ours: bool,
}

impl Unanswered {
    fn by(error: &(dyn Error + 'static), why: String) -> Self {
        Self { why, is_ours: is_shortage(error) }
    }
}

/// Sends `request` on a fresh connection and returns status and body of its answer.
///
/// Shape: the connection is closed afterwards. A body that is too long or breaks off is returned
/// empty, with its status.
pub(super) async fn send<S>(
    stream: S,
    spoken: Spoken,
    scheme: Scheme,
    request: Request<Bytes>,
) -> Result<(StatusCode, Bytes), Unanswered>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match spoken {
        Spoken::Http1 => {
            let answer = http1(stream, request).await;
            answer.map_err(|error| Unanswered::by(&error, error.to_string()))
        }
        Spoken::Http2 => {
            let (request, body) =
                as_http2(request, scheme).map_err(|why| Unanswered { why, is_ours: false })?;
            let answer = http2(stream, request, body).await;
            answer.map_err(|error| Unanswered::by(&error, format!("http2: {error}")))
        }
    }
}

async fn http1<S>(stream: S, request: Request<Bytes>) -> hyper::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Aborted when this function returns or is dropped.
    let _driver = Task::of(tokio::spawn(async move {
        // Its error reaches `sender` as well.
        let _ = connection.await;
    }));
    let answer = sender.send_request(request.map(Full::new)).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok((status, body.map(http_body_util::Collected::to_bytes).unwrap_or_default()))
}

async fn http2<S>(
    stream: S,
    request: Request<()>,
    body: Bytes,
) -> Result<(StatusCode, Bytes), h2::Error>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = h2::client::Builder::new();
    builder.enable_push(false).max_header_list_size(HEAD_BYTES_MAX);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await?;
    let _driver = Task::of(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let mut sender = sender.ready().await?;
    let (answer, mut upload) = sender.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        // The crate holds the bytes until the server's window allows them.
        upload.send_data(body, true)?;
    }
    let answer = answer.await?;
    let status = answer.status();
    Ok((status, whole(answer.into_body()).await.unwrap_or_default()))
}

/// The whole body; `None` when it is too long or breaks off.
async fn whole(mut body: h2::RecvStream) -> Option<Bytes> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        if all.len() + data.len() > ANSWER_BYTES_MAX {
            return None;
        }
        all.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len()).ok()?;
    }
    Some(all.into())
}

/// The same request for HTTP/2: a whole URI in place of `Host`, and a `Content-Length`.
///
/// Shape: hop-by-hop fields need no removal, since the config accepts none.
/// Errors: the host is no authority of a URI.
/// Source: RFC 9113 §8.3.1.
fn as_http2(request: Request<Bytes>, scheme: Scheme) -> Result<(Request<()>, Bytes), String> {
    let (mut parts, body) = request.into_parts();
    let host = parts.headers.remove(header::HOST);
    let host = host.as_ref().map_or(&b""[..], |host| host.as_bytes());
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(scheme);
    uri.authority = Some(Authority::try_from(host).map_err(|why| format!("host: {why}"))?);
    parts.uri = Uri::from_parts(uri).map_err(|why| why.to_string())?;
    parts.version = Version::HTTP_2;
    if !body.is_empty() {
        parts.headers.insert(header::CONTENT_LENGTH, body.len().into());
    }
    Ok((Request::from_parts(parts, ()), body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tokio::io::ReadBuf;

    /// A connection that takes what is sent and on which nothing can be received.
    struct Unreadable(io::ErrorKind);

    impl AsyncRead for Unreadable {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(self.0.into()))
        }
    }

    impl AsyncWrite for Unreadable {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn our_own_lack_is_told_from_what_the_server_did() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for spoken in [Spoken::Http1, Spoken::Http2] {
            use io::ErrorKind::{ConnectionReset, OutOfMemory};
            for (error, is_ours) in [(OutOfMemory, true), (ConnectionReset, false)] {
                let request = Request::get("/v1/models").header("host", "h");
                let request = request.body(Bytes::new()).unwrap();
                let asked = send(Unreadable(error), spoken, Scheme::HTTP, request);
                let why = runtime.block_on(asked).unwrap_err();
                assert_eq!(why.is_ours, is_ours, "{spoken:?} {error}: {}", why.why);
            }
        }
    }

    #[test]
    fn a_request_in_http2_has_a_whole_uri_and_a_length_but_no_host() {
        let made = |target: &str, host: &str, body: &'static str| {
            let request = Request::get(target).header("host", host).header("a", "b");
            as_http2(request.body(Bytes::from(body)).unwrap(), Scheme::HTTP)
        };
        let (request, body) = made("/v1/models?a=1", "h:8000", "").unwrap();
        assert_eq!(request.uri(), "http://h:8000/v1/models?a=1");
        let names: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
        assert_eq!((names, body.len()), (vec!["a"], 0));
        let (request, body) = made("/", "[::1]:1", "{}").unwrap();
        assert_eq!(
            (request.headers()["content-length"].as_bytes(), &*body),
            (&b"2"[..], &b"{}"[..])
        );
        assert!(made("/", "no host", "").unwrap_err().starts_with("host: "));
    }
}
