//! A model server that speaks HTTP/2, with or without TLS, and one that speaks it frame by frame.
//!
//! What the first does stands in the request's `x-do`; what it has seen can be asked. It is the
//! `h2` crate over tokio, so the proxy's IO, windows and translation meet another's. The second
//! writes the frames that no well-behaved library lets one write.

use std::future::poll_fn;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Semaphore, oneshot};
use tokio_rustls::TlsAcceptor;

/// The model that a server lists.
pub(crate) const MODEL: &str = "model-of-http2";

/// How a server differs from the usual.
#[derive(Clone)]
pub(crate) struct Ways {
    /// Speak TLS; ALPN decides on HTTP/2.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Of each stream.
    pub window: u32,
    /// Of the connection.
    pub connection_window: u32,
    /// Streams at once.
    pub streams: u32,
}

impl Default for Ways {
    fn default() -> Self {
        Self { tls: None, window: 65_535, connection_window: 65_535, streams: 200 }
    }
}

/// What a server has seen.
pub(crate) struct Seen {
    /// Connections made.
    pub connections: AtomicUsize,
    /// Connections open.
    pub open: AtomicUsize,
    /// Requests, in either version.
    pub requests: AtomicUsize,
    /// Body bytes given to the `h2` crate.
    pub sent: AtomicU64,
    /// Body bytes taken from it.
    pub received: AtomicU64,
    /// Streams that were reset by the proxy.
    pub resets: Mutex<Vec<(Reason, Instant)>>,
    /// Heads of requests, as they came.
    pub heads: Mutex<Vec<http::request::Parts>>,
    /// Lets `sse` send one event and `wait` answer once.
    pub go: Semaphore,
}

/// A server on any port; it ends when it is dropped.
pub(crate) struct H2Server {
    addr: SocketAddr,
    tls: bool,
    pub(crate) seen: Arc<Seen>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl H2Server {
    pub(crate) fn start(ways: Ways) -> H2Server {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::new(Seen {
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            resets: Mutex::default(),
            heads: Mutex::default(),
            go: Semaphore::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let (served, tls) = (seen.clone(), ways.tls.is_some());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::spawn(accept(listener, ways, served));
                let _ = stopped.await;
            });
        });
        H2Server { addr, tls, seen, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its base URL; with TLS by the name that the usual certificate has.
    pub(crate) fn url(&self) -> String {
        match self.tls {
            true => format!("https://localhost:{}", self.addr.port()),
            false => format!("http://{}", self.addr),
        }
    }

    pub(crate) fn connections(&self) -> usize {
        self.seen.connections.load(SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.requests.load(SeqCst)
    }
}

impl Drop for H2Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: tokio::net::TcpListener, ways: Ways, seen: Arc<Seen>) {
    while let Ok((socket, _)) = listener.accept().await {
        let _ = socket.set_nodelay(true);
        let (ways, seen) = (ways.clone(), seen.clone());
        seen.connections.fetch_add(1, SeqCst);
        seen.open.fetch_add(1, SeqCst);
        tokio::spawn(async move {
            match &ways.tls {
                None => serve(socket, &ways, &seen).await,
                Some(config) => {
                    if let Ok(tls) = TlsAcceptor::from(config.clone()).accept(socket).await {
                        match tls.get_ref().1.alpn_protocol() {
                            Some(b"h2") => serve(tls, &ways, &seen).await,
                            _ => serve_http1(tls, &seen).await,
                        }
                    }
                }
            }
            seen.open.fetch_sub(1, SeqCst);
        });
    }
}

/// Answers `ok` to every request without a body.
async fn serve_http1(mut io: impl AsyncRead + AsyncWrite + Unpin, seen: &Seen) {
    let mut input = Vec::new();
    loop {
        while let Some(at) = memchr::memmem::find(&input, b"\r\n\r\n") {
            input.drain(..at + 4);
            seen.requests.fetch_add(1, SeqCst);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-version: 1\r\n\r\nok";
            if io.write_all(answer).await.is_err() {
                return;
            }
        }
        if !matches!(io.read_buf(&mut input).await, Ok(n) if n > 0) {
            return;
        }
    }
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, ways: &Ways, seen: &Arc<Seen>) {
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(ways.window)
        .initial_connection_window_size(ways.connection_window)
        .max_concurrent_streams(ways.streams);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(io).await else { return };
    while let Some(Ok((request, respond))) = connection.accept().await {
        seen.requests.fetch_add(1, SeqCst);
        let seen = seen.clone();
        tokio::spawn(async move {
            // A peer that goes away is what some tests are about.
            let _ = handle(request, respond, &seen).await;
        });
    }
}

async fn handle(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    seen: &Seen,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let what = parts.headers.get("x-do").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let lists = what.is_empty() && parts.uri.path() == "/v1/models";
    seen.heads.lock().unwrap().push(parts);
    let (what, number) = what.split_once('=').unwrap_or((&what, "0"));
    let number: usize = number.parse().unwrap_or(0);
    let ok = || Response::builder().header("x-version", "2");
    match what {
        "echo" => {
            let mut stream = respond.send_response(ok().body(()).unwrap(), false)?;
            while let Some(data) = body.data().await {
                let data = data?;
                seen.received.fetch_add(data.len() as u64, SeqCst);
                let _ = body.flow_control().release_capacity(data.len());
                send(&mut stream, data, seen).await?;
            }
            match body.trailers().await? {
                Some(trailers) => stream.send_trailers(trailers),
                None => stream.send_data(Bytes::new(), true),
            }
        }
        "sse" => {
            let head = ok().header("content-type", "text/event-stream").body(()).unwrap();
            let mut stream = respond.send_response(head, false)?;
            for at in 0..number {
                seen.go.acquire().await.expect("never closed").forget();
                send(&mut stream, format!("data: {at}\n\n").into(), seen).await?;
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("x-events", number.into());
            stream.send_trailers(trailers)
        }
        "big" => {
            let head = ok().header("content-length", number).body(()).unwrap();
            let mut stream = respond.send_response(head, false)?;
            let mut left = number;
            while left > 0 {
                let n = left.min(16_384);
                send(&mut stream, Bytes::from(vec![b'x'; n]), seen).await?;
                left -= n;
            }
            stream.send_data(Bytes::new(), true)
        }
        "cut" => {
            let mut stream = respond.send_response(ok().body(()).unwrap(), false)?;
            send(&mut stream, "part".into(), seen).await?;
            seen.go.acquire().await.expect("never closed").forget();
            stream.send_reset(Reason::INTERNAL_ERROR);
            Ok(())
        }
        "reset" => {
            respond.send_reset(Reason::INTERNAL_ERROR);
            Ok(())
        }
        "hang" => {
            let reason = poll_fn(|cx| respond.poll_reset(cx)).await?;
            seen.resets.lock().unwrap().push((reason, Instant::now()));
            Ok(())
        }
        "wait" => {
            seen.go.acquire().await.expect("never closed").forget();
            respond.send_response(ok().body(()).unwrap(), true).map(drop)
        }
        "early" => {
            let head = ok().status(StatusCode::PAYLOAD_TOO_LARGE).body(()).unwrap();
            let mut stream = respond.send_response(head, false)?;
            send(&mut stream, "too much".into(), seen).await?;
            stream.send_data(Bytes::new(), true)
        }
        "head" | "fields" => {
            let mut head = ok();
            if what == "head" {
                head = head.header("x-long", "x".repeat(number));
            } else {
                head = (0..number).fold(head, |head, _| head.header("a", "b"));
            }
            respond.send_response(head.body(()).unwrap(), true).map(drop)
        }
        "hints" => {
            let hints = Response::builder().status(103).header("link", "</a>").body(()).unwrap();
            respond.send_informational(hints)?;
            respond.send_response(ok().body(()).unwrap(), true).map(drop)
        }
        _ if lists => {
            let mut stream = respond.send_response(ok().body(()).unwrap(), false)?;
            let list = format!("{{\"data\":[{{\"id\":\"{MODEL}\"}}]}}");
            send(&mut stream, list.into(), seen).await?;
            stream.send_data(Bytes::new(), true)
        }
        _ => {
            let head = ok().header("content-length", 2).body(()).unwrap();
            let mut stream = respond.send_response(head, false)?;
            send(&mut stream, "ok".into(), seen).await?;
            // The end in a frame of its own, as many servers send it.
            stream.send_data(Bytes::new(), true)?;
            let reason = poll_fn(|cx| stream.poll_reset(cx)).await;
            if let Ok(reason) = reason {
                seen.resets.lock().unwrap().push((reason, Instant::now()));
            }
            Ok(())
        }
    }
}

async fn send(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    seen: &Seen,
) -> Result<(), h2::Error> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        if stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(capacity) => drop(capacity?),
                None => return Err(Reason::CANCEL.into()),
            }
        }
        let n = stream.capacity().min(data.len());
        seen.sent.fetch_add(n as u64, SeqCst);
        stream.send_data(data.split_to(n), false)?;
    }
    Ok(())
}

/// What the frame-by-frame server does with a request.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Act {
    /// 200 without a body.
    Answer,
    /// RST_STREAM with this code.
    Reset(u8),
    /// GOAWAY that names this stream as the last one, then the end.
    GoAway(u8),
    /// Nothing but the end of the connection.
    Close,
}

/// A server of bare frames: `act` is told the connection and the request on it, both from 0.
pub(crate) struct Frames {
    addr: SocketAddr,
    /// Requests in all.
    pub requests: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
}

impl Frames {
    pub(crate) fn start(act: impl Fn(usize, usize) -> Act + Clone + Send + 'static) -> Frames {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = listener.local_addr().unwrap();
        let (requests, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (requests.clone(), stop.clone());
        std::thread::spawn(move || {
            for (at, stream) in listener.incoming().enumerate() {
                if stopped.load(SeqCst) {
                    return;
                }
                let (act, counted) = (act.clone(), counted.clone());
                let stream = stream.unwrap();
                // It ends with its connection, which ends with the proxy.
                std::thread::spawn(move || frames(stream, |request| act(at, request), &counted));
            }
        });
        Frames { addr, requests, stop }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        let _ = TcpStream::connect(self.addr);
    }
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;

fn frames(mut stream: TcpStream, act: impl Fn(usize) -> Act, counted: &AtomicUsize) -> Option<()> {
    let frame = |kind: u8, flags: u8, id: [u8; 4], payload: &[u8]| {
        let mut out = vec![0, 0, payload.len() as u8, kind, flags];
        out.extend_from_slice(&id);
        out.extend_from_slice(payload);
        out
    };
    let mut preface = [0; 24];
    stream.read_exact(&mut preface).ok()?;
    stream.write_all(&frame(SETTINGS, 0, [0; 4], &[])).ok()?;
    let mut requests = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head).ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).ok()?;
        let id = [head[5], head[6], head[7], head[8]];
        match (head[3], head[4] & 1) {
            (SETTINGS, 0) => stream.write_all(&frame(SETTINGS, 1, [0; 4], &[])).ok()?,
            (HEADERS, _) => {
                let acted = act(requests);
                requests += 1;
                counted.fetch_add(1, SeqCst);
                match acted {
                    // `:status: 200` is entry 8 of the static table.
                    Act::Answer => stream.write_all(&frame(HEADERS, 5, id, &[0x88])).ok()?,
                    Act::Reset(code) => {
                        stream.write_all(&frame(RST_STREAM, 0, id, &[0, 0, 0, code])).ok()?;
                    }
                    Act::GoAway(last) => {
                        let payload = [0, 0, 0, last, 0, 0, 0, 0];
                        stream.write_all(&frame(GOAWAY, 0, [0; 4], &payload)).ok()?;
                        return None;
                    }
                    Act::Close => return None,
                }
            }
            _ => {}
        }
    }
}
