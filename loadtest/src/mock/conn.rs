//! One connection: read a request, answer it, keep the connection or not.
//!
//! The one idea: whoever waits, watches. Every wait (for a delay, a token, room in
//! the socket) also watches the read side, so that a client that leaves is noticed
//! at once and counted; bytes that arrive meanwhile are pipelined requests and are
//! kept for later. An end of the client's side counts as leaving while an answer
//! is awaited, as real model servers see it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tokio::time::{sleep, sleep_until};

use super::behave::Behaviour;
use super::send::{self, Plan};
use super::sock::Sock;
use super::stats::{SEEN_BODY_BYTES_MAX, SeenRequest};
use super::wire::{Framing, Request};
use super::{KeepAlive, Shared, answer};
use crate::chunked::Chunks;

/// Bytes read ahead of the request being answered; beyond it the client must wait.
const AHEAD_BYTES_MAX: usize = 1 << 20;
/// Longest request body taken.
const BODY_BYTES_MAX: usize = 512 << 20;
/// Idle time and number of requests after which cpp-httplib closes.
const LLAMA_IDLE: Duration = Duration::from_secs(5);
const LLAMA_REQUESTS_MAX: u64 = 100;

/// The client is gone; nothing more can reach it.
#[derive(Debug)]
pub(super) struct Left;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Keep,
    Close,
}

/// A connection and what has been read of it and not yet used.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) sock: Sock,
    pub(super) shared: Arc<Shared>,
    /// Counted from 1 over the life of the server.
    pub(super) number: u64,
    /// Write answers byte by byte; set for one exchange.
    pub(super) one_byte: bool,
    input: Vec<u8>,
    served: u64,
}

/// Serves one connection to its end.
pub(super) async fn serve(sock: Sock, shared: Arc<Shared>) {
    let counters = Arc::clone(&shared);
    let (_open, number) = counters.counters.connection();
    let mut conn = Conn { sock, shared, number, one_byte: false, input: Vec::new(), served: 0 };
    while let Ok(Some(request)) = conn.read_head().await {
        let (held, number) = counters.counters.request();
        let end = exchange(&mut conn, &request, number).await;
        if end.is_err() {
            counters.counters.aborted();
        }
        drop(held);
        if !matches!(end, Ok(End::Keep)) {
            break;
        }
    }
}

/// One request and its answer.
async fn exchange(conn: &mut Conn, request: &Request, number: u64) -> Result<End, Left> {
    conn.served += 1;
    let mut how = match request.path() {
        // Whoever watches an ill server must not catch its illness.
        "/mock/stats" => Behaviour::default(),
        _ => conn.shared.mood(),
    };
    let query = request.query("mock");
    for list in request.values("x-mock").chain(query.as_deref()) {
        if let Err(why) = how.add(list) {
            conn.saw(request, Received::default(), false);
            return refuse(conn, 400, &why).await;
        }
    }
    conn.one_byte = how.one_byte;
    if request.lists("connection", "upgrade") && request.value("upgrade").is_some() {
        conn.saw(request, Received::default(), true);
        return tunnel(conn, request).await;
    }
    if let Some(status) = how.early {
        return early(conn, request, status).await;
    }
    if request.lists("expect", "100-continue") && conn.input.is_empty() && request.has_body() {
        conn.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    if how.duplex {
        return duplex(conn, request).await;
    }
    let mut received = Received::default();
    let complete = receive(conn, request, &mut received).await;
    let body = match complete {
        Ok(()) => conn.saw(request, received, true),
        Err(fault) => {
            conn.saw(request, received, false);
            let Fault::Bad(why) = fault else { return Err(Left) };
            conn.shared.counters.malformed();
            return refuse(conn, 400, why).await;
        }
    };
    // It works from when it has noted the request, so what it notes tells how many it had at once.
    let arrived = Instant::now();
    if how.reset {
        conn.sock.reset_on_close();
        return Ok(End::Close);
    }
    if how.drop {
        return Ok(End::Close);
    }
    let shared = Arc::clone(&conn.shared);
    let made = answer::answer(&shared, request, body, &how, number);
    let plan = plan(conn, request, &how, matches!(made.body, answer::Body::Events(_)));
    send::answer(conn, request, made, &how, plan, arrived).await
}

/// What the answer says about the connection, and what then happens to it.
fn plan(conn: &Conn, request: &Request, how: &Behaviour, streamed: bool) -> Plan {
    let keep_alive = conn.shared.config.keep_alive;
    let llama = keep_alive == KeepAlive::LlamaServer;
    let closes = how.close || keep_alive == KeepAlive::CloseAlways || !request.keeps();
    let spent = llama && (streamed || conn.served >= LLAMA_REQUESTS_MAX);
    Plan { announce_close: closes, silent_close: how.silent_close || spent, advertise: llama }
}

/// Answers an error that the request's form earned, and closes.
async fn refuse(conn: &mut Conn, status: u16, why: &str) -> Result<End, Left> {
    let body = match answer::Answer::error(status, why).body {
        answer::Body::Whole(body) => body,
        _ => Vec::new(),
    };
    let head = format!(
        "HTTP/1.1 {status} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n",
        send::reason(status),
        body.len()
    );
    conn.write(head.as_bytes()).await?;
    conn.write(&body).await?;
    conn.linger().await;
    Ok(End::Close)
}

/// Answers before the body has been read, and never reads the rest of it.
async fn early(conn: &mut Conn, request: &Request, status: u16) -> Result<End, Left> {
    if request.has_body() && conn.input.is_empty() && !request.lists("expect", "100-continue") {
        conn.read_more().await?;
    }
    let body = std::mem::take(&mut conn.input);
    conn.saw(request, Received { body, trailers: Vec::new() }, false);
    refuse(conn, status, "answered before the end of the request").await
}

/// Gives every piece of the body back before the next one is read.
async fn duplex(conn: &mut Conn, request: &Request) -> Result<End, Left> {
    conn.write(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\n\
          transfer-encoding: chunked\r\n\r\n",
    )
    .await?;
    let mut reader = BodyReader::new(request);
    let mut received = Received::default();
    let mut given = 0;
    loop {
        let done = match reader.take(conn, &mut received) {
            Ok(done) => done,
            Err(_) => {
                conn.shared.counters.malformed();
                return Ok(End::Close);
            }
        };
        let piece = received.body.get(given..).unwrap_or_default();
        if !piece.is_empty() {
            let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
            chunk.extend_from_slice(piece);
            chunk.extend_from_slice(b"\r\n");
            given = received.body.len();
            conn.write(&chunk).await?;
            // More may have been read while this was written, perhaps the last of it.
            if !done {
                continue;
            }
        }
        if done {
            break;
        }
        if conn.read_more().await.is_err() {
            conn.saw(request, received, false);
            return Err(Left);
        }
    }
    conn.saw(request, received, true);
    conn.write(b"0\r\n\r\n").await?;
    Ok(if request.keeps() { End::Keep } else { End::Close })
}

/// Accepts an upgrade and gives back every byte until the client ends.
async fn tunnel(conn: &mut Conn, request: &Request) -> Result<End, Left> {
    let protocol = request.value("upgrade").unwrap_or_default();
    let head = format!(
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: {protocol}\r\n\
         x-mock-server: {}\r\n\r\n",
        conn.shared.config.name
    );
    conn.write(head.as_bytes()).await?;
    loop {
        let bytes = std::mem::take(&mut conn.input);
        if !bytes.is_empty() {
            conn.write(&bytes).await?;
        } else if conn.read_more().await.is_err() {
            return Ok(End::Close);
        }
    }
}

/// A request body as it was decoded.
#[derive(Debug, Default)]
struct Received {
    body: Vec<u8>,
    trailers: Vec<u8>,
}

/// Why a body did not become complete.
enum Fault {
    Left,
    Bad(&'static str),
}

async fn receive(conn: &mut Conn, request: &Request, received: &mut Received) -> Result<(), Fault> {
    let mut reader = BodyReader::new(request);
    while !reader.take(conn, received).map_err(Fault::Bad)? {
        conn.read_more().await.map_err(|Left| Fault::Left)?;
    }
    Ok(())
}

/// Takes a request body out of a connection's input as it arrives.
enum BodyReader {
    Length(u64),
    Chunked(Chunks),
}

impl BodyReader {
    fn new(request: &Request) -> BodyReader {
        match request.framing {
            Framing::Length(length) => BodyReader::Length(length),
            Framing::Chunked => BodyReader::Chunked(Chunks::new()),
        }
    }

    /// Moves what is there from the input to `received`; true when the body is complete.
    fn take(&mut self, conn: &mut Conn, received: &mut Received) -> Result<bool, &'static str> {
        let done = match self {
            BodyReader::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(conn.input.len());
                received.body.extend(conn.input.drain(..take));
                *left -= take as u64;
                *left == 0
            }
            BodyReader::Chunked(chunks) => {
                let taken = chunks.push(&conn.input, &mut received.body);
                let taken = taken.map_err(|_| "bad chunked body")?;
                conn.input.drain(..taken);
                if chunks.done() {
                    received.trailers = chunks.trailers().to_vec();
                }
                chunks.done()
            }
        };
        if received.body.len() > BODY_BYTES_MAX { Err("body too long") } else { Ok(done) }
    }
}

impl Conn {
    /// The next request head; `None` when the client or the idle limit ends the
    /// connection. What is no request is answered here.
    async fn read_head(&mut self) -> Result<Option<Request>, Left> {
        let idle = match self.shared.config.keep_alive {
            KeepAlive::IdleClose(limit) => Some(limit),
            KeepAlive::LlamaServer => Some(LLAMA_IDLE),
            KeepAlive::Normal | KeepAlive::CloseAlways => None,
        };
        let deadline = idle.map(|limit| tokio::time::Instant::now() + limit);
        loop {
            match Request::parse(&self.input) {
                Ok(Some(request)) => {
                    self.input.drain(..request.head.len());
                    return Ok(Some(request));
                }
                Ok(None) => {}
                Err(why) => {
                    self.shared.counters.malformed();
                    self.one_byte = false;
                    refuse(self, 400, why).await?;
                    return Ok(None);
                }
            }
            match deadline {
                Some(deadline) if self.input.is_empty() => tokio::select! {
                    biased;
                    more = self.read_more() => more?,
                    () = sleep_until(deadline) => return Ok(None),
                },
                _ => self.read_more().await?,
            }
        }
    }

    /// Reads at least one byte more.
    async fn read_more(&mut self) -> Result<(), Left> {
        read_more(&self.sock, &mut self.input).await
    }

    /// Writes everything, watching for the client's leaving where it must wait.
    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), Left> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let step = if self.one_byte { 1 } else { rest.len() };
            match self.sock.try_write(rest.get(..step).unwrap_or(rest)) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    self.shared.counters.wrote(count);
                    if self.one_byte {
                        tokio::task::yield_now().await;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let Conn { sock, input, .. } = &mut *self;
                    tokio::select! {
                        biased;
                        () = gone(sock, input) => return Err(Left),
                        ready = sock.writable() => ready.map_err(|_| Left)?,
                    }
                }
                Err(_) => return Err(Left),
            }
        }
        Ok(())
    }

    /// Waits, unless the client leaves.
    pub(super) async fn wait_until(&mut self, due: Instant) -> Result<(), Left> {
        if due <= Instant::now() {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = gone(&self.sock, &mut self.input) => Err(Left),
            () = sleep_until(due.into()) => Ok(()),
        }
    }

    /// Does nothing until the client leaves.
    pub(super) async fn stall(&mut self) -> Left {
        gone(&self.sock, &mut self.input).await;
        Left
    }

    /// Ends the write side and waits for the client to close, without reading.
    ///
    /// Closing at once with unread bytes would reset the connection and could take
    /// the answer away from the client (RFC 9112 §9.6).
    async fn linger(&mut self) {
        self.sock.end_writes().await;
        for _ in 0..500 {
            match self.sock.read_ready().await {
                Ok(ready) if !ready.is_read_closed() && !ready.is_error() => {}
                _ => return,
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Enters the request into the ring and gives the body back.
    fn saw(&self, request: &Request, received: Received, complete: bool) -> Vec<u8> {
        let Received { body, trailers } = received;
        let start = body.get(..SEEN_BODY_BYTES_MAX).unwrap_or(&body);
        self.shared.counters.saw(SeenRequest {
            at: Instant::now(),
            connection: self.number,
            head: request.head.as_slice().into(),
            body_sha256: Sha256::digest(&body).into(),
            body_bytes: body.len() as u64,
            body: start.into(),
            body_complete: complete,
            chunked: request.framing == Framing::Chunked,
            trailers: trailers.into(),
        });
        body
    }
}

async fn read_more(sock: &Sock, input: &mut Vec<u8>) -> Result<(), Left> {
    loop {
        sock.readable().await.map_err(|_| Left)?;
        match sock.try_read(input) {
            Ok(0) => return Err(Left),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Err(Left),
        }
    }
}

/// Completes when the client has left; keeps what it sends meanwhile.
async fn gone(sock: &Sock, input: &mut Vec<u8>) {
    while input.len() < AHEAD_BYTES_MAX {
        if read_more(sock, input).await.is_err() {
            return;
        }
    }
    // A client that sends this much is there; its leaving shows when we write.
    std::future::pending::<()>().await;
}
