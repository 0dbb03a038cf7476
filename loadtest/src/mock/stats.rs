//! What a server counted and what requests it saw.
//!
//! Counters are atomics written by the server's thread and read by tests; the
//! requests are a ring bounded in number and in bytes. A gauge is undone by `Drop`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Requests kept for [`Mock::seen`](super::Mock::seen).
const SEEN_REQUESTS_MAX: usize = 4096;
/// Bytes of heads and bodies kept with them.
const SEEN_BYTES_MAX: usize = 64 << 20;
/// Bytes of each body kept.
pub(super) const SEEN_BODY_BYTES_MAX: usize = 65_536;

/// The counters of a server at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MockStats {
    /// Connections open now.
    pub connections_open: u64,
    /// Connections accepted since the start.
    pub connections_total: u64,
    /// Requests whose head arrived whole, since the start.
    pub requests_total: u64,
    /// Requests between the end of their head and the end of their answer, now.
    pub in_flight: u64,
    /// Requests that ended because the client left, since the start.
    pub aborted_total: u64,
    /// When the last client left in the middle of a request.
    pub last_abort_at: Option<Instant>,
    /// Requests that are not HTTP: bad heads, bad chunks, two lengths.
    pub malformed_total: u64,
    /// Events of streamed answers written since the start.
    pub events_total: u64,
    /// Bytes of request bodies, decoded, since the start.
    pub body_bytes_total: u64,
    /// Bytes written since the start.
    pub written_bytes_total: u64,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct SeenRequest {
    /// When the body was complete (or the client had left).
    pub at: Instant,
    /// Which connection of this server, counted from 1.
    pub connection: u64,
    /// The head as it came, final empty line included.
    pub head: Arc<[u8]>,
    /// SHA-256 of the decoded body (of what arrived of it).
    pub body_sha256: [u8; 32],
    /// Length of the decoded body in bytes.
    pub body_bytes: u64,
    /// The first 64 KiB of the decoded body.
    pub body: Arc<[u8]>,
    /// False when the client left, or the server answered, before the body's end.
    pub body_complete: bool,
    /// Whether the body came in chunks.
    pub chunked: bool,
    /// The trailer section as it came, without the final empty line.
    pub trailers: Arc<[u8]>,
}

impl SeenRequest {
    /// The first line of the head, e.g. `POST /v1/chat/completions HTTP/1.1`.
    pub fn request_line(&self) -> String {
        let end = self.head.iter().position(|&byte| byte == b'\r').unwrap_or(self.head.len());
        String::from_utf8_lossy(self.head.get(..end).unwrap_or_default()).into_owned()
    }

    /// Every value of the field `name` (any case), in order.
    pub fn fields(&self, name: &str) -> Vec<String> {
        let text = String::from_utf8_lossy(&self.head);
        let fields = text.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        fields
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim().to_owned())
            .collect()
    }

    /// The first value of the field `name` (any case).
    pub fn field(&self, name: &str) -> Option<String> {
        self.fields(name).into_iter().next()
    }
}

/// Counters of a running server.
#[derive(Debug, Default)]
pub(super) struct Counters {
    connections_open: AtomicU64,
    connections_total: AtomicU64,
    requests_total: AtomicU64,
    in_flight: AtomicU64,
    aborted_total: AtomicU64,
    malformed_total: AtomicU64,
    events_total: AtomicU64,
    body_bytes_total: AtomicU64,
    written_bytes_total: AtomicU64,
    last_abort_at: Mutex<Option<Instant>>,
    seen: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    requests: VecDeque<SeenRequest>,
    bytes: usize,
}

/// Adds one to a gauge for as long as it lives.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a AtomicU64);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

fn hold(gauge: &AtomicU64) -> Held<'_> {
    gauge.fetch_add(1, SeqCst);
    Held(gauge)
}

impl Counters {
    /// A connection begins: its guard and its number, counted from 1.
    pub(super) fn connection(&self) -> (Held<'_>, u64) {
        let held = hold(&self.connections_open);
        (held, self.connections_total.fetch_add(1, SeqCst) + 1)
    }

    /// A request begins: its guard and its number, counted from 1.
    pub(super) fn request(&self) -> (Held<'_>, u64) {
        let held = hold(&self.in_flight);
        (held, self.requests_total.fetch_add(1, SeqCst) + 1)
    }

    /// The client left; called while the request still counts as in flight.
    pub(super) fn aborted(&self) {
        *lock(&self.last_abort_at) = Some(Instant::now());
        self.aborted_total.fetch_add(1, SeqCst);
    }

    pub(super) fn malformed(&self) {
        self.malformed_total.fetch_add(1, SeqCst);
    }

    pub(super) fn event(&self) {
        self.events_total.fetch_add(1, SeqCst);
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.written_bytes_total.fetch_add(bytes as u64, SeqCst);
    }

    /// Enters a request into the ring.
    pub(super) fn saw(&self, request: SeenRequest) {
        self.body_bytes_total.fetch_add(request.body_bytes, SeqCst);
        let mut ring = lock(&self.seen);
        ring.bytes += kept(&request);
        ring.requests.push_back(request);
        while ring.requests.len() > SEEN_REQUESTS_MAX || ring.bytes > SEEN_BYTES_MAX {
            let Some(oldest) = ring.requests.pop_front() else { break };
            ring.bytes -= kept(&oldest);
        }
    }

    pub(super) fn seen(&self) -> Vec<SeenRequest> {
        lock(&self.seen).requests.iter().cloned().collect()
    }

    pub(super) fn forget_seen(&self) {
        *lock(&self.seen) = Ring::default();
    }

    pub(super) fn snapshot(&self) -> MockStats {
        MockStats {
            connections_open: self.connections_open.load(SeqCst),
            connections_total: self.connections_total.load(SeqCst),
            requests_total: self.requests_total.load(SeqCst),
            in_flight: self.in_flight.load(SeqCst),
            aborted_total: self.aborted_total.load(SeqCst),
            last_abort_at: *lock(&self.last_abort_at),
            malformed_total: self.malformed_total.load(SeqCst),
            events_total: self.events_total.load(SeqCst),
            body_bytes_total: self.body_bytes_total.load(SeqCst),
            written_bytes_total: self.written_bytes_total.load(SeqCst),
        }
    }
}

fn kept(request: &SeenRequest) -> usize {
    request.head.len() + request.body.len() + request.trailers.len()
}

/// A panic in a test thread must not take the counters with it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
