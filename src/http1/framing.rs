//! How the body after a head is delimited (RFC 9112 §6).
//!
//! One function per direction, the steps of §6.3 in order. The proxy and the server behind it
//! must come to the same answer, or a client can hide a request in the body of another (§11.2);
//! so there is no "best guess" here: whatever another reader might see differently is a fault.
//!
//! Stricter than the text: no transfer coding but `chunked` is taken, in responses either, and
//! no `Transfer-Encoding` at all from an HTTP/1.0 peer.

use std::fmt;

use crate::http::{
    fields::list,
    head::{Field, RequestHead, ResponseHead, Version},
    method::Method,
    name::Name,
};

/// Where the body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is no body.
    None,
    /// After so many bytes; 0 when the sender said so.
    Length(u64),
    /// After the last chunk and the trailers.
    Chunked,
    /// When the sender closes; responses only.
    UntilClose,
}

/// Why the end of a body cannot be told. It means 400 or 502, and close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FramingFault {
    /// Two lengths that differ.
    LengthConflict,
    /// A length that is no plain decimal, or beyond 2^63 - 1.
    LengthBad,
    /// Both `Content-Length` and `Transfer-Encoding`.
    LengthWithChunked,
    /// A transfer coding other than `chunked`, or one with parameters.
    CodingUnknown,
    /// `chunked` with another coding after it.
    ChunkedNotLast,
    /// `chunked` twice.
    ChunkedTwice,
    /// `Transfer-Encoding` in an HTTP/1.0 message.
    ChunkedInHttp10,
}

impl fmt::Display for FramingFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FramingFault::LengthConflict => "content-length values differ",
            FramingFault::LengthBad => "malformed content-length",
            FramingFault::LengthWithChunked => "both content-length and transfer-encoding",
            FramingFault::CodingUnknown => "unknown transfer coding",
            FramingFault::ChunkedNotLast => "chunked is not the last transfer coding",
            FramingFault::ChunkedTwice => "chunked more than once",
            FramingFault::ChunkedInHttp10 => "transfer-encoding in http/1.0",
        })
    }
}

impl std::error::Error for FramingFault {}

/// Tells how the body of a request is delimited.
///
/// Shape: a complete head and the bytes it points into.
/// Units: `Framing::Length` counts body bytes.
/// Errors: every [`FramingFault`].
/// Source: RFC 9112 §6.1, §6.3; §11.2 on smuggling.
pub fn request_framing(head: &RequestHead, bytes: &[u8]) -> Result<Framing, FramingFault> {
    // Steps 1, 2: responses only.
    // Steps 3, 4, 5: a coding, a length, both, or bad ones.
    // Step 6: a good length.
    // Step 7: neither means no body.
    // Step 8: responses only. A request never ends by close.
    Ok(declared(&head.fields, head.version, bytes)?.unwrap_or(Framing::None))
}

/// Tells how the body of a response is delimited.
///
/// Shape: the method of the request that it answers, its complete head and the bytes of that.
/// A 101 has no body here; the tunnel after it is the caller's.
/// Errors: every [`FramingFault`], also when the status rules the body out: a server that says two
/// things about the length is not believed in a third.
/// Source: RFC 9112 §6.1, §6.3.
pub fn response_framing(
    request: Method,
    head: &ResponseHead,
    bytes: &[u8],
) -> Result<Framing, FramingFault> {
    let declared = declared(&head.fields, head.version, bytes)?;
    // Step 1: these end with the head, whatever their fields say.
    if request == Method::Head || matches!(head.status, 100..=199 | 204 | 304) {
        return Ok(Framing::None);
    }
    // Step 2: a granted CONNECT is a tunnel from here on.
    if request == Method::Connect && matches!(head.status, 200..=299) {
        return Ok(Framing::None);
    }
    // Steps 3 to 6 are `declared`; 7 is for requests; 8: the rest ends with the connection.
    Ok(declared.unwrap_or(Framing::UntilClose))
}

/// What the two fields say: `None` when neither is there.
fn declared(
    fields: &[Field],
    version: Version,
    bytes: &[u8],
) -> Result<Option<Framing>, FramingFault> {
    let mut coding = Coding::Absent;
    let mut length = None;
    for field in fields {
        match field.name_kind {
            Name::TransferEncoding => coding = coding.then(field.value.of(bytes)),
            Name::ContentLength => length = Some(agreed(length, field.value.of(bytes))),
            _ => {}
        }
    }
    match (coding, length) {
        (Coding::Absent, None) => Ok(None),
        (Coding::Absent, Some(length)) => Ok(Some(Framing::Length(length?))),
        (_, _) if version == Version::Http10 => Err(FramingFault::ChunkedInHttp10),
        (_, Some(_)) => Err(FramingFault::LengthWithChunked),
        (Coding::Chunked, None) => Ok(Some(Framing::Chunked)),
        (Coding::Bad(fault), None) => Err(fault),
    }
}

/// What the transfer codings amount to so far.
#[derive(Clone, Copy)]
enum Coding {
    Absent,
    Chunked,
    Bad(FramingFault),
}

impl Coding {
    /// Adds one more field line, which continues the list of those before it (RFC 9110 §5.3).
    fn then(self, value: &[u8]) -> Coding {
        list(value).fold(self, |so_far, coding| {
            let chunked = coding.eq_ignore_ascii_case(b"chunked");
            match so_far {
                Coding::Absent if chunked => Coding::Chunked,
                Coding::Absent => Coding::Bad(FramingFault::CodingUnknown),
                Coding::Chunked if chunked => Coding::Bad(FramingFault::ChunkedTwice),
                Coding::Chunked => Coding::Bad(FramingFault::ChunkedNotLast),
                Coding::Bad(fault) => Coding::Bad(fault),
            }
        })
    }
}

/// Adds one more `Content-Length` line: all numbers in all of them have to be the same.
fn agreed(before: Option<Result<u64, FramingFault>>, value: &[u8]) -> Result<u64, FramingFault> {
    let mut length = before.transpose()?;
    for number in list(value) {
        let number = decimal(number).ok_or(FramingFault::LengthBad)?;
        if *length.get_or_insert(number) != number {
            return Err(FramingFault::LengthConflict);
        }
    }
    length.ok_or(FramingFault::LengthBad)
}

/// Digits alone, up to 2^63 - 1: what is more becomes negative in some server behind.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > LENGTH_DIGITS_MAX {
        return None;
    }
    let mut number = 0u64;
    for &digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        number = number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
    }
    (number <= i64::MAX as u64).then_some(number)
}

/// Digits of 2^63 - 1. More could only be leading zeros, which nobody needs.
const LENGTH_DIGITS_MAX: usize = 19;
