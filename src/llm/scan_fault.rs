//! Why a body cannot be routed by its model, in the words the client reads.
//!
//! Offsets are bytes from the start of the body, 0-based. `scan` finds the faults; this file only
//! names them.

use std::fmt;

/// The longest model name, in bytes of UTF-8 after unescaping.
pub const NAME_BYTES_MAX: usize = 256;
/// The deepest nesting below the top-level object. Python's and serde's own limits are
/// lower or alike, so nothing that a server would take is refused.
pub const DEPTH_MAX: usize = 512;

/// Why a body cannot be routed by its model. `Display` is the text for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanFault {
    /// No byte but whitespace.
    Empty,
    /// Not JSON at byte `at` of the body, 0-based.
    NotJson {
        /// Offset of the first byte that cannot be.
        at: u64,
        /// What is wrong with it.
        what: Flaw,
    },
    /// A byte that is not whitespace follows the object.
    TrailingGarbage {
        /// Its offset.
        at: u64,
    },
    /// JSON, but an array, a string, a number or a literal.
    NotObject,
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// The model's name is longer than [`NAME_BYTES_MAX`].
    NameTooLong,
}

/// What is wrong with a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// The grammar has no such byte here.
    Unexpected,
    /// The body ends too early.
    Truncated,
    /// A byte below 0x20 inside a string.
    ControlByte,
    /// A backslash and something that is no escape.
    BadEscape,
    /// Half of a surrogate pair.
    LoneSurrogate,
    /// The model's name is not UTF-8.
    BadUtf8,
    /// `]` closes `{` or `}` closes `[`.
    BracketMismatch,
    /// A number that breaks the grammar, such as `01` or `1.`.
    BadNumber,
}

impl fmt::Display for ScanFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ScanFault::Empty => f.write_str("Empty request body."),
            ScanFault::NotJson { at, what } => write!(f, "Invalid JSON: {what} at byte {at}"),
            ScanFault::TrailingGarbage { at } => {
                write!(f, "Invalid JSON: data after the object at byte {at}")
            }
            ScanFault::NotObject => f.write_str("Invalid JSON: the body is not an object"),
            ScanFault::TooDeep => write!(f, "Invalid JSON: nested deeper than {DEPTH_MAX}"),
            ScanFault::NameTooLong => {
                write!(f, "Invalid 'model': longer than {NAME_BYTES_MAX} bytes")
            }
        }
    }
}

impl fmt::Display for Flaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flaw::Unexpected => "unexpected character",
            Flaw::Truncated => "unexpected end",
            Flaw::ControlByte => "control character in a string",
            Flaw::BadEscape => "invalid escape",
            Flaw::LoneSurrogate => "unpaired surrogate",
            Flaw::BadUtf8 => "invalid UTF-8",
            Flaw::BracketMismatch => "mismatched bracket",
            Flaw::BadNumber => "invalid number",
        })
    }
}

impl std::error::Error for ScanFault {}
