//! The bytes of an answer, and every way to get them wrong on purpose.
//!
//! The one idea: all bodies are a row of pieces (events, or spans of known bytes),
//! framed one by one. A fault is then a place in the row: break off after the
//! third piece, spell a chunk size wrongly, promise one length and send another.

use std::time::{Duration, Instant};

use super::answer::{Answer, Body};
use super::behave::{Behaviour, Break};
use super::conn::{Conn, End, Left};
use super::dialect::Pace;
use super::wire::Request;
use crate::text;

/// Largest piece of a body whose length is known.
const PIECE_BYTES_MAX: u64 = 65_536;
/// Longest field made to fill a large head.
const PAD_BYTES_MAX: usize = 4000;
/// Events written before other connections get a turn, when no pace is set.
const TURN_EVENTS: u64 = 16;

/// An answer that nobody asked for.
const EXTRA: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nstolen";

/// What an answer says about its connection, and what then happens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) announce_close: bool,
    pub(super) silent_close: bool,
    /// Send `Keep-Alive: timeout=5, max=100`.
    pub(super) advertise: bool,
}

/// How the end of the answer can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framed {
    Nothing,
    Length(u64),
    Chunked,
    /// A length and chunks: forbidden.
    Both(u64),
    UntilClose,
}

/// Sends an answer with the faults that the request asked for.
pub(super) async fn answer(
    conn: &mut Conn,
    request: &Request,
    made: Answer,
    how: &Behaviour,
    plan: Plan,
    arrived: Instant,
) -> Result<End, Left> {
    let config = &conn.shared.config;
    let events = matches!(made.body, Body::Events(_));
    let first = how.first_token.unwrap_or(config.first_token);
    let interval = how.interval.unwrap_or(config.interval);
    let computing = if made.computed && !events { first } else { Duration::ZERO };
    conn.wait_until(arrived + how.delay.unwrap_or_default() + computing).await?;
    if how.garbage {
        conn.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await?;
        return Ok(End::Close);
    }
    if let Some(status) = how.interim {
        let head =
            format!("HTTP/1.1 {status} {}\r\nlink: </a>; rel=preload\r\n\r\n", reason(status));
        conn.write(head.as_bytes()).await?;
    }
    let framed = framed(request, &made, how);
    let closes = plan.announce_close || how.http10 || framed == Framed::UntilClose;
    let mut out = head(conn, &made, how, framed, plan, closes).into_bytes();
    if framed != Framed::Nothing {
        let pieces = Pieces::new(made.body);
        let pace = Schedule { due: arrived, first, interval };
        if let Some(end) = body(conn, pieces, how, framed, pace, &mut out).await? {
            return Ok(end);
        }
    }
    if how.extra_bytes == Some(Duration::ZERO) {
        // Behind the end of the chunks in one write, so that no reader can miss it.
        out.extend_from_slice(EXTRA);
    }
    conn.write(&out).await?;
    if let Some(after) = how.extra_bytes.filter(|after| !after.is_zero()) {
        conn.wait_until(Instant::now() + after).await?;
        conn.write(EXTRA).await?;
    }
    Ok(if closes || plan.silent_close { End::Close } else { End::Keep })
}

/// When the next event is due; a fixed grid, so that late timers do not add up.
struct Schedule {
    due: Instant,
    first: Duration,
    interval: Duration,
}

/// Sends the pieces. `out` comes with the head and leaves with what is still to be
/// written; `Some` when a fault ended the answer.
async fn body(
    conn: &mut Conn,
    mut pieces: Pieces,
    how: &Behaviour,
    framed: Framed,
    mut pace: Schedule,
    out: &mut Vec<u8>,
) -> Result<Option<End>, Left> {
    let events = matches!(pieces.body, Body::Events(_));
    let mut piece = Vec::new();
    let mut count = 0u64;
    loop {
        let room = match how.break_off {
            Some((after, kind)) if count >= after => {
                return break_off(conn, pieces, kind, framed, out).await;
            }
            Some((after, _)) => after - count,
            None => u64::MAX,
        };
        piece.clear();
        let Some(due) = pieces.next(&mut piece, room) else { break };
        if events {
            pace.due += match due {
                Pace::First => pace.first,
                Pace::Next => pace.interval,
                Pace::Now => Duration::ZERO,
            };
            // The head and each event are writes of their own, as a real server's.
            conn.write(out).await?;
            out.clear();
            conn.wait_until(pace.due).await?;
            conn.shared.counters.event();
            if count % TURN_EVENTS == TURN_EVENTS - 1 {
                tokio::task::yield_now().await;
            }
        }
        frame(framed, &piece, out);
        count += if events { 1 } else { piece.len() as u64 };
        if how.bad_chunk {
            out.extend_from_slice(b"xyz\r\nnot a chunk\r\n");
            conn.write(out).await?;
            return Ok(Some(End::Close));
        }
        conn.write(out).await?;
        out.clear();
        if piece.len() as u64 == PIECE_BYTES_MAX {
            tokio::task::yield_now().await;
        }
    }
    if matches!(framed, Framed::Chunked | Framed::Both(_)) {
        out.extend_from_slice(b"0\r\n");
        if how.trailers {
            out.extend_from_slice(b"x-mock-trailer: yes\r\nx-mock-count: ");
            out.extend_from_slice(count.to_string().as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"\r\n");
    }
    Ok(None)
}

/// Ends an answer in its middle. A row that is already at its end is cut as well:
/// the end of the framing is then what is missing.
async fn break_off(
    conn: &mut Conn,
    mut pieces: Pieces,
    kind: Break,
    framed: Framed,
    out: &mut Vec<u8>,
) -> Result<Option<End>, Left> {
    if kind == Break::Cut {
        let mut piece = Vec::new();
        pieces.next(&mut piece, PIECE_BYTES_MAX);
        let before = out.len();
        frame(framed, &piece, out);
        // Half of the piece and none of the framing behind it.
        out.truncate(before + (out.len() - before) / 2);
    }
    conn.write(out).await?;
    match kind {
        Break::Stall => return Err(conn.stall().await),
        Break::Cut => {}
        Break::Reset => conn.sock.reset_on_close(),
    }
    Ok(Some(End::Close))
}

fn frame(framed: Framed, piece: &[u8], out: &mut Vec<u8>) {
    let chunked = matches!(framed, Framed::Chunked | Framed::Both(_));
    if chunked && !piece.is_empty() {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    } else {
        out.extend_from_slice(piece);
    }
}

/// A body as a row of pieces.
struct Pieces {
    body: Body,
    at: u64,
}

impl Pieces {
    fn new(body: Body) -> Pieces {
        Pieces { body, at: 0 }
    }

    /// Appends the next piece, of at most `room` bytes unless it is an event.
    fn next(&mut self, out: &mut Vec<u8>, room: u64) -> Option<Pace> {
        let most = room.min(PIECE_BYTES_MAX);
        match &mut self.body {
            Body::Events(stream) => stream.next(out),
            Body::Whole(bytes) => {
                let rest = bytes.get(self.at as usize..).unwrap_or_default();
                let take = rest.len().min(most as usize);
                out.extend_from_slice(rest.get(..take).unwrap_or_default());
                self.at += take as u64;
                (take > 0).then_some(Pace::Now)
            }
            Body::Pattern { seed, bytes } => {
                let take = (*bytes - self.at).min(most);
                text::push_pattern(*seed, self.at, take as usize, out);
                self.at += take;
                (take > 0).then_some(Pace::Now)
            }
        }
    }
}

/// RFC 9112 §6.1 and §6.3, and the departures that were asked for.
fn framed(request: &Request, made: &Answer, how: &Behaviour) -> Framed {
    let bodyless = request.method == "HEAD" || matches!(made.status, 100..=199 | 204 | 304);
    let chunks = request.minor >= 1 && !how.http10;
    let wants_chunks = how.chunked || how.trailers || how.bad_chunk;
    let length = match &made.body {
        Body::Whole(bytes) => Some(bytes.len() as u64),
        Body::Pattern { bytes, .. } => Some(*bytes),
        Body::Events(_) => None,
    };
    match length {
        _ if bodyless => Framed::Nothing,
        _ if how.both_lengths => Framed::Both(length.unwrap_or(10)),
        _ if how.no_length => Framed::UntilClose,
        Some(length) if !(wants_chunks && chunks) => Framed::Length(length),
        _ if chunks => Framed::Chunked,
        _ => Framed::UntilClose,
    }
}

fn head(
    conn: &Conn,
    made: &Answer,
    how: &Behaviour,
    framed: Framed,
    plan: Plan,
    closes: bool,
) -> String {
    let version = if how.http10 { "HTTP/1.0" } else { "HTTP/1.1" };
    let mut head = format!(
        "{version} {} {}\r\ncontent-type: {}\r\nx-mock-server: {}\r\nx-mock-connection: {}\r\n",
        made.status,
        reason(made.status),
        made.content_type,
        conn.shared.config.name,
        conn.number
    );
    let mut field = |name: &str, value: &str| head.extend([name, ": ", value, "\r\n"]);
    if let Some(seed) = made.seed {
        field("x-mock-seed", &seed.to_string());
    }
    if let Some(seconds) = how.retry_after {
        field("retry-after", &seconds.to_string());
    }
    match framed {
        Framed::Length(length) | Framed::Both(length) => {
            field("content-length", &length.to_string());
        }
        // What a GET would have got; 204 and 1xx must not carry one (RFC 9110 §8.6).
        Framed::Nothing if made.status >= 200 && made.status != 204 => match &made.body {
            Body::Whole(bytes) => field("content-length", &bytes.len().to_string()),
            Body::Pattern { bytes, .. } => field("content-length", &bytes.to_string()),
            Body::Events(_) => {}
        },
        _ => {}
    }
    if matches!(framed, Framed::Chunked | Framed::Both(_)) {
        field("transfer-encoding", "chunked");
    }
    if how.trailers {
        field("trailer", "x-mock-trailer, x-mock-count");
    }
    match (closes, plan.advertise) {
        (true, _) => field("connection", "close"),
        (false, true) => field("keep-alive", "timeout=5, max=100"),
        // Also what an HTTP/1.0 client needs to hear.
        (false, false) => field("connection", "keep-alive"),
    }
    for number in 0.. {
        let missing = how.head_bytes.unwrap_or(0).saturating_sub(head.len() + 2);
        if missing == 0 {
            break;
        }
        let name = format!("x-pad-{number:04}: ");
        let value = missing.saturating_sub(name.len() + 2).clamp(1, PAD_BYTES_MAX);
        head.extend([&name, &"p".repeat(value), "\r\n"]);
    }
    head.push_str("\r\n");
    head
}

/// The phrase of a status code; clients ignore it, people read it.
pub(super) fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        529 => "Overloaded",
        _ => "Mock",
    }
}
