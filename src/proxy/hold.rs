//! The third station: a body is held until its model is known.
//!
//! The Python SDKs send `model` after megabytes of images, so up to `limits.body` may be held;
//! what exceeds the process's budget (`limits.held_total`) is refused. A body whose model is
//! known is held on, up to `body_held`, because the last duplicate decides, trailing garbage is
//! an error, and a held body can be sent again; past that it goes on its way.
//!
//! The body stays where it was received, behind its head in one buffer; nothing is copied but
//! when that buffer grows.

use super::admit::too_large;
use super::conn_h1::Downstream;
use super::core::Core;
use super::plan::Plan;
use super::reply::Refusal;
use crate::base::buf::{BULK_BYTES, LARGE_BYTES};
use crate::error::Kind;
use crate::http1::body::BodyReader;
use crate::http1::framing::Framing;
use crate::llm::multipart::MultipartScan;
use crate::llm::scan::{ModelScan, ScanFault};
use crate::net::sys::Shut;
use crate::upstream::held::Held;

/// Bodies up to this size are not counted against the process's budget: the receive buffer
/// they lie in is needed anyway.
const UNCOUNTED_BYTES: usize = LARGE_BYTES;
/// Least room offered to a receive.
const ROOM_MIN: usize = 4096;

/// The part of a request body that has been received.
pub struct RequestBody {
    /// Where the framing stands.
    pub reader: BodyReader,
    /// Offset of the first body byte in the receive buffer.
    pub begin: usize,
    /// Offset behind the last byte that has been framed.
    pub end: usize,
    /// Data bytes so far, framing excluded.
    pub data_bytes: u64,
}

impl RequestBody {
    /// A body of which nothing has been looked at.
    #[must_use]
    pub fn new(framing: Framing, begin: usize) -> Self {
        Self { reader: BodyReader::new(framing), begin, end: begin, data_bytes: 0 }
    }
}

/// What looks for the model.
pub enum Scanner<'a> {
    /// Nobody needs it.
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
    /// It goes on under another name: no second one may follow.
    pub renamed: bool,
    /// The key is limited to some models: nothing may follow that makes the body ambiguous.
    pub limited: bool,
}

impl RoutedBy<'_> {
    /// Whether the body, as far as it has been seen, still says the same.
    ///
    /// No name but this may follow, and not even this where the server has been told another.
    #[must_use]
    pub fn still_holds(&self, scanner: &Scanner<'_>) -> bool {
        matches!(scanner, Scanner::None)
            || scanner.model().is_some_and(|found| found.name == self.name)
                && !scanner.case_variant_seen()
                && !(self.renamed && scanner.model_twice())
                && !(self.limited && scanner.doubt().is_some())
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

    /// Whether a key such as `"MODEL"` was seen: some servers (Go's parser) take it for `model`.
    #[must_use]
    pub fn case_variant_seen(&self) -> bool {
        matches!(self, Scanner::Json(scan) if scan.case_variant_seen())
    }

    /// Whether the body names a model more than once; of two in a form it is a fault.
    #[must_use]
    pub fn model_twice(&self) -> bool {
        matches!(self, Scanner::Json(scan) if scan.model_twice())
    }

    /// Why another parser might find another model than the one found here.
    #[must_use]
    pub fn doubt(&self) -> Option<&'static str> {
        match self {
            Scanner::Json(scan) if scan.case_variant_seen() => {
                Some("A field that differs from 'model' in case alone is ambiguous.")
            }
            Scanner::Json(scan) if scan.model_twice() => Some("A second 'model' is ambiguous."),
            Scanner::Form(scan) if scan.is_doubtful() => {
                Some("A form that servers may read in different ways is ambiguous.")
            }
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
    /// When it can be routed: nobody needs the model, or the model is known and more than
    /// `body_held` has come.
    Routable,
    /// When it is complete.
    Whole,
}

/// Why holding ended without a body.
pub enum Unheld {
    /// Tell the client.
    Refused(Refusal),
    /// There is nobody to tell.
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
/// In the usual case it is, and nobody has to wait.
/// Errors: 400, 413, 503.
pub fn is_here(
    plan: &Plan,
    down: &Downstream,
    body: &mut RequestBody,
    scanner: &mut Scanner<'_>,
    held: &mut Held<'_>,
    enough: Enough,
) -> Result<bool, Refusal> {
    if down.recv.len() > UNCOUNTED_BYTES && !held.grow_to(down.recv.capacity() as u64) {
        return Err(too_much_held());
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

/// Receives until enough is held, when [`is_here`] has said that it is not.
pub async fn hold(
    core: &Core,
    plan: &Plan,
    down: &mut Downstream,
    body: &mut RequestBody,
    scanner: &mut Scanner<'_>,
    held: &mut Held<'_>,
    enough: Enough,
) -> Result<(), Unheld> {
    let timeout = core.with_listener(down.listener, |listener| listener.timeouts.body_idle);
    loop {
        make_room(core, down, body, held)?;
        receive(down, timeout).await?;
        if is_here(plan, down, body, scanner, held, enough)? {
            return Ok(());
        }
    }
}

/// Receives what has come, or waits until something comes.
///
/// Waiting is for readiness, and the bytes are taken when this exchange runs: they are scanned
/// and sent on while they are still in the cache. Queued receives of many large bodies would
/// each push the other's bytes out (measured at 100 KB: 1.5 times the CPU).
async fn receive(down: &mut Downstream, timeout: std::time::Duration) -> Result<(), Unheld> {
    loop {
        match down.socket.recv_now(&mut down.recv) {
            Ok(Some(n)) if n > 0 => return Ok(()),
            Ok(None) => {}
            _ => return Err(Unheld::Gone(Kind::ClientGone)),
        }
        down.timer.arm(down.socket.handle(), Shut::Read, timeout);
        down.socket.readable().await;
        let expired = down.timer.expired();
        down.timer.disarm();
        if expired {
            return Err(Refusal::from(Kind::BodyTimeout).into());
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
        // Keep this before the scan, which may refuse: reader and place go together.
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

/// Frames what has come of a body that nobody wants; tells whether all of it is here.
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
/// that a lying length costs nobody memory.
fn make_room(
    core: &Core,
    down: &mut Downstream,
    body: &RequestBody,
    held: &mut Held<'_>,
) -> Result<(), Refusal> {
    let filled = down.recv.len();
    let missing = body
        .reader
        .length_left()
        .map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
    if down.recv.capacity() - filled >= ROOM_MIN.min(missing) {
        return Ok(());
    }
    let announced = filled.saturating_add(missing);
    let modest = if announced <= BULK_BYTES { announced } else { 2 * filled };
    let wanted = modest.max(filled + ROOM_MIN);
    if wanted > UNCOUNTED_BYTES && !held.grow_to(wanted as u64) {
        return Err(too_much_held());
    }
    let mut larger = core.buffers.take(wanted);
    larger.extend_from_slice(&down.recv);
    core.buffers.give_back(std::mem::replace(&mut down.recv, larger));
    Ok(())
}

#[cold]
fn too_much_held() -> Refusal {
    Refusal::because(Kind::HeldTooMuch, "Too many request bodies are held at the moment.")
}
