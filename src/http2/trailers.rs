//! Trailers: the last HEADERS frame of a stream ↔ the lines after the last chunk.
//!
//! What a server could merge into the head to change its length, its target or its credentials
//! does not cross (RFC 9110 §6.5.1). Coming out of HTTP/1.1 such a trailer has been refused by
//! `http1::body` already; going in, it is left out, so that one odd field does not cost a message
//! that is complete.

use http::HeaderMap;
use memchr::memchr;

use super::{
    fault::Fault,
    fields::{append, check_name, check_value},
};
use crate::{
    http::{fields::trim, name::Name},
    http1::{
        body::{TRAILER_BYTES_MAX, is_forbidden},
        encode,
    },
};

/// Writes the end of a chunked body: the last chunk, the trailers, the blank line.
///
/// Shape: appends to `out`, or leaves it as it was when a trailer is refused.
/// Errors: `NameBad`, `ValueBad`, `ValuePadded`; `TrailersTooLong` beyond what the reader of a
/// chunked body takes.
/// Source: RFC 9112 §7.1.2; RFC 9113 §8.1.
pub fn write(out: &mut Vec<u8>, trailers: &HeaderMap) -> Result<(), Fault> {
    let start = out.len();
    out.extend_from_slice(b"0\r\n");
    let written = write_lines(out, trailers);
    match written {
        Ok(()) => encode::end_of_head(out),
        Err(_) => out.truncate(start),
    }
    written
}

fn write_lines(out: &mut Vec<u8>, trailers: &HeaderMap) -> Result<(), Fault> {
    let start = out.len();
    for (name, value) in trailers {
        let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
        check_name(name)?;
        check_value(value)?;
        if is_forbidden(Name::of(name)) {
            continue;
        }
        let bytes = out.len() - start + name.len() + value.len() + ": \r\n".len();
        if bytes > TRAILER_BYTES_MAX as usize {
            return Err(Fault::TrailersTooLong);
        }
        encode::field(out, name, value);
    }
    Ok(())
}

/// Reads trailer lines that a chunked body ended with.
///
/// Shape: `lines` are whole lines with their CRLF, without the blank line after them:
/// what [`BodyReader::trailer_lines`](crate::http1::body::BodyReader::trailer_lines) found, put
/// together. Empty lines, an empty map.
/// Errors: `TrailerBad`, `NameBad`, `ValueBad`, `TooManyFields`: none comes from a checked body.
pub fn read(lines: &[u8]) -> Result<HeaderMap, Fault> {
    let mut map = HeaderMap::new();
    let mut rest = lines;
    while !rest.is_empty() {
        let end = memchr(b'\n', rest).ok_or(Fault::TrailerBad)?;
        let (line, after) = rest.split_at(end + 1);
        let line = line.strip_suffix(b"\r\n").ok_or(Fault::TrailerBad)?;
        let colon = memchr(b':', line).ok_or(Fault::TrailerBad)?;
        let (name, value) = (&line[..colon], trim(&line[colon + 1..]));
        if !is_forbidden(Name::of(name)) {
            append(&mut map, name, value)?;
        }
        rest = after;
    }
    Ok(map)
}
