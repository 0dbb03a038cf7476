//! Where the body of a message is within its wire bytes, and where the message ends (RFC 9112 §7).
//!
//! The one idea: the reader holds no bytes. It is fed what arrived, in pieces of any size, and says
//! of each piece which part is body data and whether the message is over. So a relay can pass the
//! wire bytes on as they came and still know their framing.
//!
//! ```text
//!            ┌──────────────── next chunk ────────────────┐
//!            ▼                                            │
//!   Size ─► Gap/Ext ─► SizeLf ─► Data ─► DataCr ─► DataLf ┘
//!     └────────────────►┘  │ size 0
//!                          ▼
//!             TrailerStart ─► TrailerName ─► TrailerValue ─► TrailerLf
//!               │    ▲                                          │
//!               ▼    └──────────────────────────────────────────┘
//!             EndLf ─► Done
//! ```
//! Every other byte is a fault: there is one way to write a chunk, and whoever writes another may
//! be read in another way by the server behind. Extensions are walked over, unread, and bounded:
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
    /// A control byte, or a CR or LF alone, in an extension.
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
    /// White space after the size, which only a `;` may end.
    Gap {
        size: u64,
        bytes: u32,
    },
    Ext {
        size: u64,
        bytes: u32,
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

impl BodyReader {
    /// Makes the reader of a body with this framing.
    pub fn new(framing: Framing) -> BodyReader {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(left) => State::Length { left },
            Framing::Chunked => State::Size { size: 0, digits: 0 },
            Framing::UntilClose => State::UntilClose,
        };
        BodyReader { state, ext_bytes: 0, trailer_bytes: 0, name: TrailerName::default() }
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

    /// What it means that the sender has closed: the end, or `Truncated`.
    pub fn end_of_input(&self) -> Result<(), BodyFault> {
        match self.state {
            State::Done | State::UntilClose => Ok(()),
            _ => Err(BodyFault::Truncated),
        }
    }

    fn step_chunked(&mut self, input: &[u8]) -> Result<Step, BodyFault> {
        for (at, &byte) in input.iter().enumerate() {
            if let State::Data { left } = self.state {
                let taken = at_most(left, input.len() - at);
                let left = left - taken as u64;
                self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                return Ok(Step { consumed: at + taken, data: at..at + taken, done: false });
            }
            self.state = self.next_state(byte)?;
            if self.state == State::Done {
                return Ok(Step { consumed: at + 1, data: 0..0, done: true });
            }
        }
        Ok(Step { consumed: input.len(), data: 0..0, done: false })
    }

    /// Takes one byte of framing.
    #[inline]
    fn next_state(&mut self, byte: u8) -> Result<State, BodyFault> {
        match self.state {
            State::Size { size, digits } => self.in_size(size, digits, byte),
            State::Gap { size, bytes } => match byte {
                b' ' | b'\t' => Ok(State::Gap { size, bytes: self.count_ext(bytes)? }),
                b';' => Ok(State::Ext { size, bytes: self.count_ext(bytes)? }),
                _ => Err(BodyFault::ChunkSizeBad),
            },
            State::Ext { size, bytes } => match byte {
                b'\r' => Ok(State::SizeLf { size }),
                _ if is_value_byte(byte) => Ok(State::Ext { size, bytes: self.count_ext(bytes)? }),
                _ => Err(BodyFault::ChunkExtBad),
            },
            State::SizeLf { size } => match (byte, size) {
                (b'\n', 0) => Ok(State::TrailerStart),
                (b'\n', left) => Ok(State::Data { left }),
                _ => Err(BodyFault::ChunkSizeBad),
            },
            State::DataCr if byte == b'\r' => Ok(State::DataLf),
            State::DataLf if byte == b'\n' => Ok(State::Size { size: 0, digits: 0 }),
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
            b';' => Ok(State::Ext { size, bytes: self.count_ext(0)? }),
            b' ' | b'\t' => Ok(State::Gap { size, bytes: self.count_ext(0)? }),
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
            (State::TrailerName, b':') if is_forbidden(self.name.kind()) => {
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
fn is_forbidden(name: Name) -> bool {
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
        | Name::Forwarded => true,
        Name::UserAgent
        | Name::XRequestId
        | Name::Server
        | Name::Date
        | Name::RetryAfter
        | Name::Other => false,
    }
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
