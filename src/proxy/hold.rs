//! The third station: a body is held until its model is known.
//!
//! The Python SDKs send `model` after megabytes of images, so up to `limits.body` may be held;
//! what exceeds the process's budget (`limits.held_total`) is refused. A body whose model is
//! known is held on, up to `body_held`, because the last duplicate decides, trailing garbage is
//! an error, and a held body can be sent again; past that it goes on its way.
//!
//! The body stays where it was received, behind its head in one buffer; it is copied only when that
//! buffer grows.

use std::pin::pin;
use std::time::Duration;

use super::core::Core;
use super::downstream::Downstream;
use super::pace::BodyPace;
use super::plan::Plan;
use super::refusal::Refusal;
use super::refusal::too_large;
use crate::base::buf::{BULK_BYTES, LARGE_BYTES, SMALL_BYTES};
use crate::base::clock::Moment;
use crate::error::Kind;
use crate::http1::body::BodyReader;
use crate::http1::framing::Framing;
use crate::llm::multipart::MultipartScan;
use crate::llm::scan::{ModelScan, ScanFault};
use crate::net::notify::{LOOK_AGAIN, Notify};
use crate::net::pooled_future::PooledFuture;
use crate::net::race::{race, yield_now};
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::TICK;
use crate::upstream::held::{Denied, Held};

/// Received bytes of an exchange up to which its body is not counted: on a connection of its own,
/// and on a stream of HTTP/2 (`uncounted_bytes`).
const UNCOUNTED_BYTES: usize = LARGE_BYTES;
const UNCOUNTED_STREAM_BYTES: usize = SMALL_BYTES;
/// Most bytes of one body that are received, scanned or copied in one turn of the loop.
pub const SLICE_BYTES: usize = BULK_BYTES;
/// Least room offered to a receive.
const ROOM_MIN: usize = 4096;

/// The part of a request body that has been received.
pub struct RequestBody {
    /// Reads the framing; it has seen the bytes up to `end`.
    pub reader: BodyReader,
    /// Offset of the first body byte in the receive buffer.
    pub begin: usize,
    /// Offset behind the last byte that has been framed.
    pub end: usize,
    /// Data bytes so far, framing excluded.
    pub data_bytes: u64,
}

impl RequestBody {
    /// A body that begins at offset `begin`, of which no byte has been framed yet.
    #[must_use]
    pub fn new(framing: Framing, begin: usize) -> Self {
        Self { reader: BodyReader::new(framing), begin, end: begin, data_bytes: 0 }
    }
}

/// What looks for the model.
pub enum Scanner<'a> {
    /// Nothing: the model is not needed, or cannot be read.
    None,
    /// In a JSON document.
    Json(&'a mut ModelScan),
    /// In a form.
    Form(Box<MultipartScan>),
}

/// What a request was routed by, when that stood in its body.
#[derive(Clone, Copy, Debug)]
pub struct RoutedBy<'a> {
    /// The model's name as the client sent it: what the key was checked against.
    pub name: &'a str,
    /// The model is sent on under another name: no second `model` may follow.
    pub renamed: bool,
    /// The key is limited to some models: nothing may follow that makes the body ambiguous.
    pub limited: bool,
}

impl RoutedBy<'_> {
    /// Whether the body, as far as it has been scanned, still names this model alone.
    ///
    /// No other name may follow; nor may this one again, where the server has been sent another in
    /// its place or the key is limited.
    #[must_use]
    pub fn still_holds(&self, scanner: &Scanner<'_>) -> bool {
        if matches!(scanner, Scanner::None) {
            return true;
        }
        let same = scanner.model().is_some_and(|found| found.name == self.name);
        let harms = match scanner.doubt() {
            None => false,
            Some(Doubt::CaseVariant) => true,
            Some(Doubt::SecondModel) => self.limited || self.renamed,
            Some(Doubt::Form) => self.limited,
        };
        same && !harms
    }
}

/// Why another parser might find another model in a body than the one found here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// A key such as `"MODEL"` was seen: some servers (Go's parser) take it for `model`.
    CaseVariant,
    /// A JSON document names a model more than once; of two in a form it is a fault.
    SecondModel,
    /// A form that parsers read in different ways.
    Form,
}

impl Doubt {
    /// What the client is told.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Doubt::CaseVariant => "A field that differs from 'model' in case alone is ambiguous.",
            Doubt::SecondModel => "A second 'model' is ambiguous.",
            Doubt::Form => "A form that servers may read in different ways is ambiguous.",
        }
    }
}

impl Scanner<'_> {
    /// Looks at data bytes.
    pub fn push(&mut self, data: &[u8]) -> Result<(), Refusal> {
        match self {
            Scanner::None => Ok(()),
            Scanner::Json(scan) => scan.push(data).map_err(json_refusal),
            Scanner::Form(scan) => scan.push(data).map_err(form_refusal),
        }
    }

    /// Says that the body has ended.
    pub fn finish(&mut self) -> Result<(), Refusal> {
        match self {
            Scanner::None => Ok(()),
            Scanner::Json(scan) => scan.finish().map_err(json_refusal),
            Scanner::Form(scan) => scan.finish().map_err(form_refusal),
        }
    }

    /// Why another parser might find another model; of several reasons the worst.
    #[must_use]
    pub fn doubt(&self) -> Option<Doubt> {
        match self {
            Scanner::Json(scan) if scan.case_variant_seen() => Some(Doubt::CaseVariant),
            Scanner::Json(scan) if scan.model_twice() => Some(Doubt::SecondModel),
            Scanner::Form(scan) if scan.is_doubtful() => Some(Doubt::Form),
            _ => None,
        }
    }

    /// The model as it stands now.
    #[must_use]
    pub fn model(&self) -> Option<crate::llm::scan::Model<'_>> {
        match self {
            Scanner::None => None,
            Scanner::Json(scan) => scan.model(),
            Scanner::Form(scan) => scan.model(),
        }
    }
}

#[cold]
fn json_refusal(fault: ScanFault) -> Refusal {
    match fault {
        ScanFault::Empty => Refusal::from(Kind::BodyEmpty),
        fault => Refusal::because(Kind::JsonInvalid, fault.to_string()),
    }
}

#[cold]
fn form_refusal(fault: impl std::fmt::Display) -> Refusal {
    Refusal::because(Kind::BodyMalformed, format!("Invalid form: {fault}."))
}

/// When a body has been held for long enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enough {
    /// When it can be routed: the model is not needed, or it is known and more than `body_held` has
    /// come.
    Routable,
    /// When it is complete.
    Whole,
}

/// Why holding ended without a body.
pub enum Unheld {
    /// Send the client this refusal.
    Refused(Refusal),
    /// The client has left; this is the fault to record.
    Gone(Kind),
}

impl From<Refusal> for Unheld {
    #[cold]
    fn from(refusal: Refusal) -> Self {
        Unheld::Refused(refusal)
    }
}

/// Frames and scans what has been received; tells whether that is enough.
///
/// In the usual case it is, and the exchange need not wait.
/// Errors: 400, 413, 503.
pub fn is_here(
    core: &Core,
    plan: &Plan,
    down: &Downstream,
    body: &mut RequestBody,
    scanner: &mut Scanner<'_>,
    held: &mut Held<'_>,
    enough: Enough,
) -> Result<bool, Refusal> {
    if down.recv.len() > uncounted_bytes(down) {
        count(core, down, body, held)?;
    }
    frame(plan, down, body, scanner)?;
    if body.reader.is_done() {
        scanner.finish()?;
        return Ok(true);
    }
    let held_bytes = (body.end - body.begin) as u64;
    Ok(match enough {
        Enough::Whole => false,
        Enough::Routable => match scanner {
            Scanner::None => true,
            _ => scanner.model().is_some() && held_bytes > plan.body_held_bytes_max,
        },
    })
}

/// Bodies up to this size are not counted: the receive buffer of a connection is needed anyway.
/// Streams of HTTP/2 are many to a connection, and each may hold little.
fn uncounted_bytes(down: &Downstream) -> usize {
    match down.socket {
        Stream::Plain(_) | Stream::Tls(_) => UNCOUNTED_BYTES,
        Stream::Pipe(_) => UNCOUNTED_STREAM_BYTES,
    }
}

/// Counts what has been received against the process's budget of held bytes; other bodies may have
/// to give way.
///
/// Errors: 503.
#[cold]
fn count(
    core: &Core,
    down: &Downstream,
    body: &RequestBody,
    held: &mut Held<'_>,
) -> Result<(), Refusal> {
    let bytes = down.recv.len() as u64;
    let left = body.reader.length_left().unwrap_or(0);
    let size = (body.end as u64).saturating_add(left);
    let wake = |token| core.wake(token, LOOK_AGAIN);
    held.claim(bytes, size, now(core), wake).map_err(denied)
}

fn now(core: &Core) -> Moment {
    core.shared.notifier.clock.at(core.ticker.now())
}

/// Receives until enough is held, when [`is_here`] has said that it is not.
///
/// Shape: a pooled future, since most bodies are here already, and else every exchange's future
/// would have room for this one.
pub fn hold<'f>(
    core: &'f Core,
    plan: &'f Plan,
    down: &'f mut Downstream,
    body: &'f mut RequestBody,
    scanner: &'f mut Scanner<'_>,
    held: &'f mut Held<'_>,
    enough: Enough,
) -> PooledFuture<'f, Result<(), Unheld>> {
    PooledFuture::with(move || async move {
        let idle = core.with_listener(&down.listener, |listener| listener.timeouts.body_idle);
        let mut wait =
            Waiting { core, pace: BodyPace::new(plan.body_rate_min), idle, notify: None };
        loop {
            make_room(core, down, body).await;
            wait.receive(down, held).await?;
            if is_here(core, plan, down, body, scanner, held, enough)? {
                // From here on this body gives way to no other.
                return Ok(held.end_receiving().map_err(denied)?);
            }
            if wait.notify.is_none() && down.recv.len() > uncounted_bytes(down) {
                let notify = core.wake_table.register();
                held.begin_receiving(notify.token(), now(core));
                wait.notify = Some(notify);
            }
        }
    })
}

/// Waits for the rest of a body, and what bounds them.
struct Waiting<'a> {
    core: &'a Core,
    pace: BodyPace,
    idle: Duration,
    /// Notified when the body has to give way; registered once the body is counted.
    notify: Option<Notify>,
}

impl Waiting<'_> {
    /// Receives what has come, a slice at most, or waits until something comes.
    ///
    /// Waiting is for readiness, and the bytes are taken when this exchange runs: they are scanned
    /// and sent on while they are still in the cache. Queued receives of many large bodies would
    /// each push the other's bytes out (measured at 100 KB: 1.5 times the CPU). What follows a
    /// whole slice is waited for too, so that others have their turn.
    async fn receive(&mut self, down: &mut Downstream, held: &Held<'_>) -> Result<(), Unheld> {
        let mut waited = Duration::ZERO;
        loop {
            match down.socket.recv_some_now(&mut down.recv, SLICE_BYTES) {
                Ok(Some(n)) if n > 0 => {
                    return match self.pace.is_slow(waited, n as u64) {
                        true => Err(Refusal::from(Kind::BodyTimeout).into()),
                        false => {
                            if n >= SLICE_BYTES {
                                yield_now().await;
                            }
                            Ok(())
                        }
                    };
                }
                Ok(None) => {}
                _ => return Err(Unheld::Gone(Kind::ClientGone)),
            }
            let begun = self.core.ticker.now();
            let patience = self.pace.patience(self.idle).saturating_sub(waited);
            down.timer.arm(down.socket.handle(), Shut::Read, patience.max(TICK));
            self.readable(&down.socket).await;
            let expired = down.timer.expired();
            down.timer.disarm();
            if held.is_evicted() {
                return Err(denied(Denied::Evicted).into());
            }
            if expired {
                return Err(Refusal::from(Kind::BodyTimeout).into());
            }
            waited += self.core.ticker.now().saturating_duration_since(begun);
        }
    }

    /// Waits until the client has sent something, or the body has to give way.
    async fn readable(&mut self, socket: &Stream) {
        let readable = pin!(socket.readable());
        match &mut self.notify {
            Some(notify) => {
                race(readable, pin!(notify.notified())).await;
            }
            None => readable.await,
        }
    }
}

/// Frames and scans the bytes that have not been looked at yet.
fn frame(
    plan: &Plan,
    down: &Downstream,
    body: &mut RequestBody,
    scanner: &mut Scanner<'_>,
) -> Result<(), Refusal> {
    while !body.reader.is_done() {
        let input = &down.recv[body.end..];
        let step = body.reader.step(input).map_err(|fault| {
            Refusal::because(Kind::BodyMalformed, format!("Invalid message body: {fault}."))
        })?;
        let data = &input[step.data];
        // Keep this before the scan, which may refuse: `end` says how far `reader` has come.
        body.end += step.consumed;
        body.data_bytes += data.len() as u64;
        if body.data_bytes > plan.body_bytes_max {
            return Err(too_large(body.data_bytes, plan.body_bytes_max));
        }
        scanner.push(data)?;
        if step.consumed == 0 || body.end == down.recv.len() {
            break;
        }
    }
    Ok(())
}

/// Frames what has come of a body that is not used; tells whether all of it is here.
///
/// Shape: on true the next message begins at `body.end`.
#[must_use]
pub fn skip(body: &mut RequestBody, received: &[u8]) -> bool {
    while !body.reader.is_done() && body.end < received.len() {
        match body.reader.step(&received[body.end..]) {
            Ok(step) if step.consumed > 0 => body.end += step.consumed,
            _ => return false,
        }
    }
    body.reader.is_done()
}

/// Grows the receive buffer: to the announced length while that is modest, else by doubling, so
/// that an announced length costs no memory before its bytes come.
async fn make_room(core: &Core, down: &mut Downstream, body: &RequestBody) {
    let filled = down.recv.len();
    let missing = body
        .reader
        .length_left()
        .map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
    if down.recv.capacity() - filled >= ROOM_MIN.min(missing) {
        return;
    }
    let announced = filled.saturating_add(missing);
    let modest = if announced <= BULK_BYTES { announced } else { announced.min(2 * filled) };
    let mut larger = core.buffers.take(modest.max(filled + ROOM_MIN));
    copy_in_slices(&mut larger, &down.recv).await;
    core.buffers.give_back(std::mem::replace(&mut down.recv, larger));
}

/// Appends many bytes, a slice in each turn of the loop.
async fn copy_in_slices(to: &mut Vec<u8>, from: &[u8]) {
    let mut slices = from.chunks(SLICE_BYTES).peekable();
    while let Some(slice) = slices.next() {
        to.extend_from_slice(slice);
        if slices.peek().is_some() {
            yield_now().await;
        }
    }
}

#[cold]
fn denied(why: Denied) -> Refusal {
    Refusal::because(
        Kind::HeldTooMuch,
        match why {
            Denied::Full => "Too many request bodies are held at the moment.",
            Denied::Evicted => "Too many request bodies are held; this slow one gave way.",
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future as _;
    use std::task::{Context, Poll, Waker};

    #[test]
    fn a_large_copy_takes_a_turn_for_each_slice() {
        for bytes in [0, 1, SLICE_BYTES, SLICE_BYTES + 1, 7 * SLICE_BYTES + 9] {
            let from: Vec<u8> = (0..bytes).map(|n| n as u8).collect();
            let mut to = Vec::new();
            let mut turns = 1;
            {
                let mut copying = pin!(copy_in_slices(&mut to, &from));
                while copying.as_mut().poll(&mut Context::from_waker(Waker::noop()))
                    == Poll::Pending
                {
                    turns += 1;
                }
            }
            assert_eq!(turns, bytes.div_ceil(SLICE_BYTES).max(1), "{bytes}");
            assert_eq!(to, from);
        }
    }
}
