//! Where the body of a message is within its wire bytes, and where the message ends (RFC 9112 §7).
//!
//! The one idea: the reader holds no bytes. It is fed what arrived, in pieces of any size, and says
//! of each piece which part is body data and whether the message is over. So a relay can pass the
//! wire bytes on as they came and still know their framing.
//!
//! ```text
//!            ┌──────────────── next chunk ────────────────┐
//!            ▼                                            │
//!   Size ──► Ext ────► SizeLf ─► Data ─► DataCr ─► DataLf ┘
//!     └────────────────►┘  │ size 0
//!                          ▼
//!             TrailerStart ─► TrailerName ─► TrailerValue ─► TrailerLf
//!               │    ▲                                          │
//!               ▼    └──────────────────────────────────────────┘
//!             EndLf ─► Done
//! ```
//! Every other byte is a fault: there is one way to write a chunk, and whoever writes another may
//! be read in another way by the server behind. Extensions are walked over, unread but for their grammar
//! (the server behind reads it, too), without the white space that only old senders have, and bounded:
//! one chunk may not hide megabytes in them, nor a body of one-byte chunks add them up
//! (CVE-2023-39326).
//!
//! Not here: storing, decoding or changing anything.

use std::{fmt, ops::Range};

use super::framing::Framing;
use crate::http::{
    fields::{is_token_byte, is_value_byte},
    name::{NAME_BYTES_MAX, Name},
};

/// Bytes of extension in one chunk, white space included.
pub const EXT_BYTES_MAX: u32 = 256;
/// Bytes of extension in all chunks of a body together.
pub const EXT_BYTES_TOTAL_MAX: u32 = 16 << 10;
/// Hex digits of a chunk size, leading zeros included.
pub const SIZE_DIGITS_MAX: u8 = 16;
/// The largest chunk: what is more becomes negative in some server behind.
pub const SIZE_MAX: u64 = i64::MAX as u64;
/// Bytes of all trailer lines together.
pub const TRAILER_BYTES_MAX: u32 = 8 << 10;

/// What one step found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that belong to the message and are dealt with. At least one, unless the
    /// input was empty or the message over.
    pub consumed: usize,
    /// Which of them are body data; `data.end <= consumed`. Often empty.
    pub data: Range<usize>,
    /// Whether the message ends with the consumed bytes.
    pub done: bool,
}

/// Why a body is refused. Its message cannot be trusted from here on, and the connection is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BodyFault {
    /// A chunk size that is not hex digits, or followed by something else than CRLF or `;`.
    ChunkSizeBad,
    /// A chunk size beyond 16 digits or 2^63 - 1.
    ChunkSizeTooLarge,
    /// Extensions beyond their bounds.
    ChunkExtTooLong,
    /// An extension that is not `;name`, `;name=token` or `;name="text"` (RFC 9112 §7.1.1).
    ChunkExtBad,
    /// Chunk data that is not followed by CRLF.
    ChunkEndMissing,
    /// A trailer line that is no field line.
    TrailerBad,
    /// Trailers beyond their bound.
    TrailerTooLong,
    /// A trailer that would change framing, routing or credentials (RFC 9110 §6.5.1).
    TrailerForbidden,
    /// The sender closed before the end.
    Truncated,
}

impl fmt::Display for BodyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BodyFault::ChunkSizeBad => "malformed chunk size",
            BodyFault::ChunkSizeTooLarge => "chunk size too large",
            BodyFault::ChunkExtTooLong => "chunk extensions too long",
            BodyFault::ChunkExtBad => "malformed chunk extension",
            BodyFault::ChunkEndMissing => "chunk data not followed by a line end",
            BodyFault::TrailerBad => "malformed trailer",
            BodyFault::TrailerTooLong => "trailers too long",
            BodyFault::TrailerForbidden => "trailer field not allowed",
            BodyFault::Truncated => "body ended early",
        })
    }
}

impl std::error::Error for BodyFault {}

/// Reads one body. Small, `Copy`, and without a buffer.
#[derive(Clone, Copy, Debug)]
pub struct BodyReader {
    state: State,
    /// Extension bytes of all chunks so far; `<= EXT_BYTES_TOTAL_MAX`.
    ext_bytes: u32,
    /// Trailer bytes so far; `<= TRAILER_BYTES_MAX`.
    trailer_bytes: u32,
    /// The name of the trailer line at hand, which may arrive in pieces.
    name: TrailerName,
    /// A trailer that is not allowed is for the caller to drop, and no fault.
    lenient: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Done,
    Length {
        left: u64,
    },
    UntilClose,
    /// Within the digits of a size; 0 digits = between two chunks.
    Size {
        size: u64,
        digits: u8,
    },
    Ext {
        size: u64,
        bytes: u32,
        at: ExtAt,
    },
    SizeLf {
        size: u64,
    },
    /// `left > 0`.
    Data {
        left: u64,
    },
    DataCr,
    DataLf,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLf,
    EndLf,
}

/// Where in an extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExtAt {
    /// After `;`.
    Start,
    Name,
    /// After `=`.
    ValueStart,
    Token,
    Quoted,
    /// After a backslash within quotes.
    Escaped,
    /// After the closing quote.
    QuotedEnd,
}

impl ExtAt {
    /// What follows with this byte; `None` where the grammar has no such byte.
    fn next(self, byte: u8) -> Option<ExtAt> {
        let is_token = is_token_byte(byte);
        match (self, byte) {
            (ExtAt::Start | ExtAt::Name, _) if is_token => Some(ExtAt::Name),
            (ExtAt::ValueStart | ExtAt::Token, _) if is_token => Some(ExtAt::Token),
            (ExtAt::Name, b'=') => Some(ExtAt::ValueStart),
            (ExtAt::ValueStart, b'"') => Some(ExtAt::Quoted),
            (ExtAt::Quoted, b'"') => Some(ExtAt::QuotedEnd),
            (ExtAt::Quoted, b'\\') => Some(ExtAt::Escaped),
            (ExtAt::Quoted | ExtAt::Escaped, _) if is_value_byte(byte) => Some(ExtAt::Quoted),
            (_, b';') if self.may_end() => Some(ExtAt::Start),
            _ => None,
        }
    }

    fn may_end(self) -> bool {
        matches!(self, ExtAt::Name | ExtAt::Token | ExtAt::QuotedEnd)
    }
}

/// Between two chunks.
const BETWEEN: State = State::Size { size: 0, digits: 0 };

impl BodyReader {
    /// Makes the reader of a body with this framing.
    pub fn new(framing: Framing) -> BodyReader {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => BETWEEN,
            Framing::UntilClose => State::UntilClose,
        };
        let name = TrailerName::default();
        BodyReader { state, ext_bytes: 0, trailer_bytes: 0, name, lenient: false }
    }

    /// As `new`, for an answer: a trailer that must not be merged into a head costs no answer that
    /// is complete. Whoever relays it has to drop it (`is_forbidden`).
    pub fn of_answer(framing: Framing) -> BodyReader {
        BodyReader { lenient: true, ..BodyReader::new(framing) }
    }

    /// Whether a trailer line has begun.
    #[inline]
    pub fn in_trailers(&self) -> bool {
        self.trailer_bytes > 0
    }

    /// Takes the next bytes, up to the end of the next run of data.
    ///
    /// Shape: `input` begins where the last step stopped consuming. Called in a loop until the
    /// input is used up or the message is done; what is left then is the next message.
    /// Errors: every [`BodyFault`] but `Truncated`; none of the input counts as consumed then, and
    /// the reader is of no further use.
    #[inline]
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyFault> {
        match self.state {
            State::Done => Ok(Step { consumed: 0, data: 0..0, done: true }),
            State::UntilClose => {
                Ok(Step { consumed: input.len(), data: 0..input.len(), done: false })
            }
            State::Length { left } => {
                let taken = at_most(left, input.len());
                self.advance(taken as u64);
                Ok(Step { consumed: taken, data: 0..taken, done: self.is_done() })
            }
            _ => self.step_chunked(input),
        }
    }

    /// Whether the message is over.
    #[inline]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Counts bytes that went by without being seen (splice); says whether they could.
    ///
    /// They can only when the length is known and holds them; otherwise nothing changes.
    pub fn advance(&mut self, bytes: u64) -> bool {
        let State::Length { left } = self.state else {
            return bytes == 0;
        };
        let Some(left) = left.checked_sub(bytes) else {
            return false;
        };
        self.state = if left == 0 { State::Done } else { State::Length { left } };
        true
    }

    /// Body bytes still to come; `None` when the length is not known, or all have come.
    pub fn length_left(&self) -> Option<u64> {
        match self.state {
            State::Length { left } => Some(left),
            _ => None,
        }
    }

    /// Data bytes still to come of the chunk that was begun; 0 = exactly between two chunks, where
    /// a chunk of our own could be put in. `None` within framing bytes, and when not chunked.
    pub fn chunk_data_left(&self) -> Option<u64> {
        match self.state {
            State::Data { left } => Some(left),
            State::Size { digits: 0, .. } => Some(0),
            _ => None,
        }
    }

    /// The trailer lines among the bytes that the last step consumed; whole ones or parts of them.
    ///
    /// Shape: `before` is a copy of the reader from before that step, `consumed` the bytes that it
    /// took. Put together over all steps, these are the lines with their CRLF, without the blank
    /// line that ends the message.
    pub fn trailer_lines<'a>(&self, before: &BodyReader, consumed: &'a [u8]) -> &'a [u8] {
        let bytes = self.trailer_bytes.saturating_sub(before.trailer_bytes) as usize;
        let (_, after) = self.trailer_end();
        let end = consumed.len().saturating_sub(after);
        consumed.get(end.saturating_sub(bytes)..end).filter(|_| bytes > 0).unwrap_or_default()
    }

    /// Bytes of all trailer lines so far, and of the CRLF of the blank line behind them, as far as it
    /// has come: these are the last bytes that were read.
    pub fn trailer_end(&self) -> (usize, usize) {
        let blank = match self.state {
            State::Done => 2,
            State::EndLf => 1,
            _ => 0,
        };
        (self.trailer_bytes as usize, blank)
    }

    /// What it means that the sender has closed: the end, or `Truncated`.
    pub fn end_of_input(&self) -> Result<(), BodyFault> {
        match self.state {
            State::Done | State::UntilClose => Ok(()),
            _ => Err(BodyFault::Truncated),
        }
    }

    /// Walks framing up to the next run of data. What stands there whole and plain, as it nearly
    /// always does, is taken at once; the rest goes byte by byte, to the same end.
    fn step_chunked(&mut self, input: &[u8]) -> Result<Step, BodyFault> {
        let mut at = 0;
        while let [byte, ..] = input[at..] {
            let rest = &input[at..];
            if let State::Data { left } = self.state {
                let taken = at_most(left, rest.len());
                let left = left - taken as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                return Ok(Step { consumed: at + taken, data: at..at + taken, done: false });
            }
            if self.state == State::DataCr && rest.starts_with(b"\r\n") {
                self.state = BETWEEN;
                at += 2;
                continue;
            }
            if self.state == BETWEEN
                && let Some((left, bytes)) = plain_size_line(rest)
            {
                self.state = State::Data { left };
                at += bytes;
                continue;
            }
            self.state = self.next_state(byte)?;
            at += 1;
            if self.state == State::Done {
                return Ok(Step { consumed: at, data: 0..0, done: true });
            }
        }
        Ok(Step { consumed: at, data: 0..0, done: false })
    }

    /// Takes one byte of framing.
    #[inline]
    fn next_state(&mut self, byte: u8) -> Result<State, BodyFault> {
        match self.state {
            State::Size { size, digits } => self.in_size(size, digits, byte),
            State::Ext { size, bytes, at } => match byte {
                b'\r' if at.may_end() => Ok(State::SizeLf { size }),
                _ => match at.next(byte) {
                    Some(at) => Ok(State::Ext { size, bytes: self.count_ext(bytes)?, at }),
                    None => Err(BodyFault::ChunkExtBad),
                },
            },
            State::SizeLf { size } => match (byte, size) {
                (b'\n', 0) => Ok(State::TrailerStart),
                (b'\n', left) => Ok(State::Data { left }),
                _ => Err(BodyFault::ChunkSizeBad),
            },
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(BETWEEN),
            State::DataCr | State::DataLf => Err(BodyFault::ChunkEndMissing),
            State::TrailerStart if byte == b'\r' => Ok(State::EndLf),
            State::EndLf if byte == b'\n' => Ok(State::Done),
            State::EndLf => Err(BodyFault::TrailerBad),
            State::TrailerStart | State::TrailerName | State::TrailerValue | State::TrailerLf => {
                self.in_trailer(byte)
            }
            // These three have no framing bytes: `step` deals with them.
            State::Done | State::Length { .. } | State::UntilClose | State::Data { .. } => {
                Ok(self.state)
            }
        }
    }

    #[inline]
    fn in_size(&mut self, size: u64, digits: u8, byte: u8) -> Result<State, BodyFault> {
        if let Some(digit) = hex_digit(byte) {
            let size = size << 4 | u64::from(digit);
            // The digits bound the shift: 16 of them are 64 bits.
            if digits == SIZE_DIGITS_MAX || size > SIZE_MAX {
                return Err(BodyFault::ChunkSizeTooLarge);
            }
            return Ok(State::Size { size, digits: digits + 1 });
        }
        match byte {
            _ if digits == 0 => Err(BodyFault::ChunkSizeBad),
            b'\r' => Ok(State::SizeLf { size }),
            b';' => Ok(State::Ext { size, bytes: self.count_ext(0)?, at: ExtAt::Start }),
            _ => Err(BodyFault::ChunkSizeBad),
        }
    }

    /// Counts one byte of extension; `bytes` are those of this chunk so far.
    fn count_ext(&mut self, bytes: u32) -> Result<u32, BodyFault> {
        if bytes >= EXT_BYTES_MAX || self.ext_bytes >= EXT_BYTES_TOTAL_MAX {
            return Err(BodyFault::ChunkExtTooLong);
        }
        self.ext_bytes += 1;
        Ok(bytes + 1)
    }

    #[cold]
    fn in_trailer(&mut self, byte: u8) -> Result<State, BodyFault> {
        if self.trailer_bytes >= TRAILER_BYTES_MAX {
            return Err(BodyFault::TrailerTooLong);
        }
        self.trailer_bytes += 1;
        match (self.state, byte) {
            (State::TrailerStart, _) if is_token_byte(byte) => {
                self.name = TrailerName::default();
                self.name.push(byte);
                Ok(State::TrailerName)
            }
            (State::TrailerName, b':') if !self.lenient && is_forbidden(self.name.kind()) => {
                Err(BodyFault::TrailerForbidden)
            }
            (State::TrailerName, b':') => Ok(State::TrailerValue),
            (State::TrailerName, _) if is_token_byte(byte) => {
                self.name.push(byte);
                Ok(State::TrailerName)
            }
            (State::TrailerValue, b'\r') => Ok(State::TrailerLf),
            (State::TrailerValue, _) if is_value_byte(byte) => Ok(State::TrailerValue),
            (State::TrailerLf, b'\n') => Ok(State::TrailerStart),
            _ => Err(BodyFault::TrailerBad),
        }
    }
}

/// Feeds a whole piece and hands each run of body data to `each`.
///
/// Shape: returns how many bytes of `input` belong to the message and whether it is over.
/// Errors: as [`BodyReader::step`]; data before the fault has been handed out.
pub fn drain_data(
    reader: &mut BodyReader,
    input: &[u8],
    mut each: impl FnMut(&[u8]),
) -> Result<(usize, bool), BodyFault> {
    let mut at = 0;
    while at < input.len() && !reader.is_done() {
        let rest = &input[at..];
        let step = reader.step(rest)?;
        if !step.data.is_empty() {
            each(&rest[step.data.clone()]);
        }
        at += step.consumed;
    }
    Ok((at, reader.is_done()))
}

/// A field name that arrives in pieces, as much of it as tells all known names apart.
#[derive(Clone, Copy, Debug, Default)]
struct TrailerName {
    bytes: [u8; NAME_BYTES_MAX],
    /// Bytes of the name so far, counted one beyond what `bytes` holds: too long to be known.
    len: u8,
}

impl TrailerName {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.bytes.get_mut(self.len as usize) {
            *slot = byte;
        }
        self.len = self.len.saturating_add(1).min(NAME_BYTES_MAX as u8 + 1);
    }

    fn kind(&self) -> Name {
        self.bytes.get(..self.len as usize).map_or(Name::Other, Name::of)
    }
}

/// Whether a trailer of this name is refused: a server that merges trailers into the head would
/// take another length, another target or another credential from it.
pub fn is_forbidden(name: Name) -> bool {
    match name {
        Name::Host
        | Name::Connection
        | Name::KeepAlive
        | Name::ProxyConnection
        | Name::TransferEncoding
        | Name::ContentLength
        | Name::ContentType
        | Name::ContentEncoding
        | Name::Te
        | Name::Trailer
        | Name::Upgrade
        | Name::Expect
        | Name::Authorization
        | Name::ProxyAuthorization
        | Name::ProxyAuthenticate
        | Name::XApiKey
        | Name::XGoogApiKey
        | Name::XForwardedFor
        | Name::XForwardedProto
        | Name::XForwardedHost
        | Name::XRealIp
        | Name::Forwarded
        | Name::LookAlike => true,
        Name::UserAgent
        | Name::XRequestId
        | Name::Server
        | Name::Date
        | Name::RetryAfter
        | Name::Other => false,
    }
}

/// Reads a good size above 0 that stands there with its CRLF and nothing else: the size, and the
/// bytes of the line. Everything else is left to the states, which know its fault.
#[inline]
fn plain_size_line(input: &[u8]) -> Option<(u64, usize)> {
    let mut size = 0u64;
    // One byte beyond the digits, so that the end of the longest size is seen.
    for (at, &byte) in input.iter().take(usize::from(SIZE_DIGITS_MAX) + 1).enumerate() {
        if let Some(digit) = hex_digit(byte) {
            size = size << 4 | u64::from(digit);
        } else {
            let good = (1..=SIZE_MAX).contains(&size) && input[at..].starts_with(b"\r\n");
            return good.then_some((size, at + 2));
        }
    }
    None
}

#[inline]
fn hex_digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        _ => None,
    }
}

/// The smaller of what is left and what is there.
#[inline]
fn at_most(left: u64, there: usize) -> usize {
    usize::try_from(left).map_or(there, |left| left.min(there))
}

/// The target of a fuzzer: the first byte cuts the rest in two; both ways of feeding it see the
/// same data and the same end, and never more data than wire.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&seed, wire)) = data.split_first() else { return };
    let framing = match seed % 4 {
        0 => Framing::Length(u64::from(seed)),
        1 => Framing::UntilClose,
        _ => Framing::Chunked,
    };
    let cut = usize::from(seed).min(wire.len());
    let read = |pieces: &[&[u8]]| {
        let mut reader = BodyReader::new(framing);
        let (mut body, mut consumed) = (Vec::new(), 0);
        for piece in pieces {
            match drain_data(&mut reader, piece, |run| body.extend_from_slice(run)) {
                Ok((bytes, _)) => consumed += bytes,
                Err(fault) => return (body, 0, Err(fault)),
            }
        }
        (body, consumed, Ok(reader.is_done()))
    };
    let whole = read(&[wire]);
    assert_eq!(whole, read(&[&wire[..cut], &wire[cut..]]), "{framing:?} cut at {cut}");
    let (body, consumed, end) = whole;
    assert!(body.len() <= wire.len() && consumed <= wire.len());
    match (framing, end) {
        (Framing::Length(length), end) => {
            assert_eq!(body.len() as u64, length.min(wire.len() as u64));
            assert_eq!(end, Ok(body.len() as u64 == length));
        }
        (Framing::UntilClose, end) => assert_eq!((&body[..], end), (wire, Ok(false))),
        (_, Ok(false)) => assert_eq!(consumed, wire.len(), "it takes all while it waits"),
        (_, Ok(true)) => assert!(wire[..consumed].ends_with(b"\r\n"), "it ends with a line"),
        (_, Err(_)) => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    /// Data, consumed bytes and whether it is over; or the fault.
    type Seen = Result<(Vec<u8>, usize, bool), BodyFault>;

    /// Feeds the wire in pieces that end at `cuts`.
    fn read_at(framing: Framing, wire: &[u8], cuts: &[usize]) -> Seen {
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
        ends.push(wire.len());
        ends.sort_unstable();
        let mut reader = BodyReader::new(framing);
        let (mut data, mut at) = (Vec::new(), 0);
        for end in ends {
            while at < end && !reader.is_done() {
                let step = reader.step(&wire[at..end])?;
                assert!(step.consumed > 0 && step.data.end <= step.consumed);
                assert_eq!(step.done, reader.is_done());
                data.extend_from_slice(&wire[at..end][step.data]);
                at += step.consumed;
            }
        }
        Ok((data, at, reader.is_done()))
    }

    fn check(wire: &str, expected: Result<(&str, usize, bool), BodyFault>) {
        let got = read_at(Framing::Chunked, wire.as_bytes(), &[]);
        let expected = expected.map(|(data, at, done)| (data.as_bytes().to_vec(), at, done));
        assert_eq!(got, expected, "{wire:?}");
    }

    /// A slow reader of whole bodies, line by line. `Err(true)` = it ends too early, which is no
    /// fault yet; `Err(false)` = refused.
    fn oracle(wire: &[u8]) -> Result<(Vec<u8>, usize), bool> {
        let text: String = wire.iter().map(|&byte| char::from(byte)).collect();
        let chars: Vec<char> = text.chars().collect();
        let clean = |s: &str| s.chars().all(|c| c == '\t' || (c >= ' ' && c != '\x7f'));
        let mut at = 0;
        let mut data = Vec::new();
        let line = |at: usize| -> Result<(String, usize), bool> {
            let rest: String = chars[at..].iter().collect();
            let (line, _) = rest.split_once("\r\n").ok_or(true)?;
            Ok((line.to_string(), at + line.chars().count() + 2))
        };
        loop {
            let (head, next) = line(at)?;
            let (size, ext) = head.split_at(head.find(';').unwrap_or(head.len()));
            let hex = !size.is_empty() && size.chars().all(|c| c.is_ascii_hexdigit());
            let token = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+";
            let quoted = r#""([^"\\]|\\.)*""#;
            let grammar = format!("^(;{token}(=({token}|{quoted}))?)*$");
            let good = regex::Regex::new(&grammar).unwrap().is_match(ext) && clean(ext);
            if !hex || !good || size.len() > 16 || ext.chars().count() > 256 {
                return Err(false);
            }
            let size = i64::from_str_radix(size, 16).map_err(|_| false)? as usize;
            at = next;
            if size == 0 {
                break;
            }
            if size > chars.len() - at {
                return Err(true);
            }
            data.extend_from_slice(&wire[at..at + size]);
            at += size;
            let rest: String = chars[at..].iter().take(2).collect();
            if rest != "\r\n" {
                return Err("\r\n".starts_with(&rest));
            }
            at += 2;
        }
        loop {
            let (trailer, next) = line(at)?;
            at = next;
            if trailer.is_empty() {
                return Ok((data, at));
            }
            let (name, value) = trailer.split_once(':').ok_or(false)?;
            let good = !name.is_empty() && name.bytes().all(is_token_byte) && clean(value);
            let lower = name.to_lowercase();
            if !good || ["content-length", "host", "authorization"].contains(&&lower[..]) {
                return Err(false);
            }
        }
    }

    /// Bodies that are mostly good, with a byte changed now and then.
    fn wires() -> impl Strategy<Value = Vec<u8>> {
        let ext = select(vec![
            "",
            "",
            "",
            ";a",
            ";a=b",
            ";x=\"y z\"",
            ";x=\"\\\";\";y",
            ";",
            " ",
            ";\u{1}",
            ";\n",
            ";a=",
            ";a=\"b",
        ]);
        let end = select(vec!["\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\r\n", "\n", "x\r\n"]);
        let size = select(vec![0usize, 0, 0, 0, 0, 0, 1, 2]);
        let chunk = (prop::collection::vec(any::<u8>(), 1..20), ext, end, size, any::<bool>())
            .prop_map(|(data, ext, end, more, upper)| {
                let size = data.len() + if more == 2 { 1 } else { 0 };
                let size = if upper { format!("{size:X}") } else { format!("{size:03x}") };
                [format!("{size}{ext}\r\n").as_bytes(), &data, end.as_bytes()].concat()
            });
        let trailer = select(vec![
            "X-Sum: 1\r\n",
            "a:\r\n",
            "Date: \tx\r\n",
            "Host: h\r\n",
            "content-LENGTH: 1\r\n",
            " x: y\r\n",
            "x y\r\n",
            "x: \u{1}\r\n",
            "x: y\n",
        ]);
        let junk = proptest::option::weighted(0.2, (any::<prop::sample::Index>(), any::<u8>()));
        (
            prop::collection::vec(chunk, 0..5),
            prop::collection::vec(trailer, 0..2),
            junk,
            any::<prop::sample::Index>(),
        )
            .prop_map(|(chunks, trailers, junk, cut)| {
                let end = format!("0\r\n{}\r\nGET", trailers.concat());
                let mut wire = [chunks.concat(), end.into_bytes()].concat();
                if let Some((at, byte)) = junk {
                    let at = at.index(wire.len());
                    wire[at] = byte;
                }
                if cut.index(8) == 0 {
                    wire.truncate(cut.index(wire.len()));
                }
                wire
            })
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_result(
            wire in wires(),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
        ) {
            let whole = read_at(Framing::Chunked, &wire, &[]);
            prop_assert_eq!(&whole, &read_at(Framing::Chunked, &wire, &cuts));
            let every: Vec<usize> = (0..wire.len()).collect();
            prop_assert_eq!(&whole, &read_at(Framing::Chunked, &wire, &every));
        }

        #[test]
        fn agrees_with_a_decoder_of_whole_bodies(wire in wires()) {
            let got = read_at(Framing::Chunked, &wire, &[]);
            match oracle(&wire) {
                Ok((data, end)) => prop_assert_eq!(got, Ok((data, end, true))),
                // Too early: the reader waits, unless it has already seen a fault on the last line.
                Err(true) => prop_assert!(!matches!(got, Ok((_, _, true)))),
                Err(false) => prop_assert!(got.is_err(), "{:?}", got),
            }
        }

        #[test]
        fn a_length_is_counted_over_any_split(
            length in 0u64..50,
            wire in prop::collection::vec(any::<u8>(), 0..60),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
        ) {
            let taken = wire.len().min(length as usize);
            let expected = (wire[..taken].to_vec(), taken, taken as u64 == length);
            prop_assert_eq!(read_at(Framing::Length(length), &wire, &cuts), Ok(expected));
            let all = (wire.clone(), wire.len(), false);
            prop_assert_eq!(read_at(Framing::UntilClose, &wire, &cuts), Ok(all));
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
        }

        #[test]
        fn no_likely_bytes_panic(seed: u8, wire in wires()) {
            fuzz(&[&[seed], &wire[..]].concat());
        }
    }

    #[test]
    fn a_message_without_a_body_is_over_at_once() {
        for framing in [Framing::None, Framing::Length(0)] {
            let mut reader = BodyReader::new(framing);
            assert!(reader.is_done() && reader.end_of_input().is_ok());
            assert_eq!(reader.step(b"GET"), Ok(Step { consumed: 0, data: 0..0, done: true }));
        }
    }

    #[test]
    fn what_follows_the_message_is_left_alone() {
        check("3\r\nabc\r\n0\r\n\r\nGET", Ok(("abc", 13, true)));
        assert_eq!(read_at(Framing::Length(3), b"abcGET", &[]), Ok((b"abc".to_vec(), 3, true)));
    }

    #[test]
    fn rfc_9112_section_7_1_trailer_section_follows_the_last_chunk() {
        check("4\r\nWiki\r\n5\r\npedia\r\n0\r\nExpires: x\r\n\r\n", Ok(("Wikipedia", 36, true)));
    }

    #[test]
    fn rfc_9112_section_7_1_1_extensions_are_walked_over() {
        check("3;a=1;b=\"x;\\\"y\"\r\nabc\r\n0;c\r\n\r\n", Ok(("abc", 29, true)));
    }

    #[test]
    fn spliced_bytes_count_when_the_length_is_known() {
        let mut reader = BodyReader::new(Framing::Length(10));
        assert!(reader.advance(4));
        assert_eq!(reader.length_left(), Some(6));
        assert!(!reader.advance(7), "more than is left");
        assert_eq!(reader.length_left(), Some(6));
        assert!(reader.advance(6) && reader.is_done());
        assert!(!BodyReader::new(Framing::Chunked).advance(1));
        assert!(!BodyReader::new(Framing::UntilClose).advance(1));
    }

    #[test]
    fn a_chunk_of_our_own_fits_between_two_chunks_only() {
        let wire = b"3\r\nabc\r\n0\r\n\r\n";
        let left: Vec<_> = (0..=wire.len())
            .map(|end| {
                let mut reader = BodyReader::new(Framing::Chunked);
                drain_data(&mut reader, &wire[..end], |_| {}).expect("a good body");
                reader.chunk_data_left()
            })
            .collect();
        let between = Some(0);
        assert_eq!(left[..4], [between, None, None, Some(3)]);
        assert_eq!(left[4..9], [Some(2), Some(1), None, None, between]);
        assert_eq!(left[9..], [None; 5]);
    }

    #[test]
    fn a_close_before_the_end_is_truncation() {
        let wire = b"3\r\nabc\r\n0\r\n\r\n";
        for end in 0..wire.len() {
            let mut reader = BodyReader::new(Framing::Chunked);
            drain_data(&mut reader, &wire[..end], |_| {}).expect("a good body");
            assert_eq!(reader.end_of_input(), Err(BodyFault::Truncated), "{end}");
        }
        assert_eq!(BodyReader::new(Framing::Length(1)).end_of_input(), Err(BodyFault::Truncated));
        assert_eq!(BodyReader::new(Framing::UntilClose).end_of_input(), Ok(()));
    }

    #[test]
    fn ext_bytes_max_bounds_one_chunk() {
        let ext = |bytes: u32| format!("1;{}\r\na\r\n0\r\n\r\n", "e".repeat(bytes as usize - 1));
        assert!(read_at(Framing::Chunked, ext(EXT_BYTES_MAX).as_bytes(), &[]).is_ok());
        check(&ext(EXT_BYTES_MAX + 1), Err(BodyFault::ChunkExtTooLong));
        let blank = format!("1{};a\r\na\r\n", " ".repeat(EXT_BYTES_MAX as usize));
        check(&blank, Err(BodyFault::ChunkSizeBad));
    }

    #[test]
    fn ext_bytes_total_max_bounds_a_body() {
        let chunks = |count: u32| format!("1;{}\r\na\r\n", "e".repeat(127)).repeat(count as usize);
        let most = EXT_BYTES_TOTAL_MAX / 128;
        assert!(read_at(Framing::Chunked, chunks(most).as_bytes(), &[]).is_ok());
        check(&chunks(most + 1), Err(BodyFault::ChunkExtTooLong));
    }

    #[test]
    fn trailer_bytes_max_bounds_the_trailers() {
        let trailers = |bytes: u32| {
            let line = bytes as usize - "X: \r\n".len();
            format!("0\r\nX: {}\r\n\r\n", "a".repeat(line))
        };
        assert!(read_at(Framing::Chunked, trailers(TRAILER_BYTES_MAX).as_bytes(), &[]).is_ok());
        check(&trailers(TRAILER_BYTES_MAX + 1), Err(BodyFault::TrailerTooLong));
        let many = format!("0\r\n{}", "a:\r\n".repeat(3000));
        check(&many, Err(BodyFault::TrailerTooLong));
    }

    #[test]
    fn the_largest_chunk_is_2_to_63_less_1() {
        let mut reader = BodyReader::new(Framing::Chunked);
        reader.step(b"7fffffffffffffff\r\n").expect("a good size");
        assert_eq!(reader.chunk_data_left(), Some(SIZE_MAX));
        check("8000000000000000\r\n", Err(BodyFault::ChunkSizeTooLarge));
    }

    #[test]
    fn every_forbidden_trailer_is_refused_in_pieces_too() {
        for &name in Name::ALL {
            let wire = format!("0\r\n{}: x\r\n\r\n", name.text());
            let every: Vec<usize> = (0..wire.len()).collect();
            let got = read_at(Framing::Chunked, wire.as_bytes(), &every);
            let expected = if is_forbidden(name) {
                Err(BodyFault::TrailerForbidden)
            } else {
                Ok((Vec::new(), wire.len(), true))
            };
            assert_eq!(got, expected, "{wire:?}");
        }
    }

    #[test]
    fn the_reader_is_small() {
        assert!(size_of::<BodyReader>() <= 56, "{}", size_of::<BodyReader>());
    }
}
