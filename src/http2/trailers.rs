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

/// The target of a fuzzer: lines that are read are written as the end of a body that our own reader
/// takes, in any two pieces, and finds the same lines in.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&cut, lines)) = data.split_first() else { return };
    let Ok(map) = read(lines) else { return };
    let mut out = b"before".to_vec();
    if let Err(fault) = write(&mut out, &map) {
        assert_eq!((fault, &out[..]), (Fault::TrailersTooLong, &b"before"[..]));
        return;
    }
    let end = &out["before".len()..];
    let found = collect(end, &[usize::from(cut)]);
    assert_eq!(found.as_deref().and_then(|found| read(found).ok()), Some(map));
}

/// What a bridge does: walks the end of a body in pieces and keeps the trailer lines. `None` when
/// the body is refused or not over.
fn collect(wire: &[u8], cuts: &[usize]) -> Option<Vec<u8>> {
    let mut reader = crate::http1::body::BodyReader::new(crate::http1::framing::Framing::Chunked);
    let (mut at, mut found) = (0, Vec::new());
    while !reader.is_done() {
        let next = cuts.iter().copied().filter(|&cut| cut > at).min().unwrap_or(wire.len());
        let piece = wire.get(at..next.min(wire.len())).filter(|piece| !piece.is_empty())?;
        let before = reader;
        let step = reader.step(piece).ok()?;
        found.extend_from_slice(reader.trailer_lines(&before, &piece[..step.consumed]));
        at += step.consumed;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::{prelude::*, sample::select};

    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for &(name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn check(fields: &[(&'static str, &'static str)], expected: Result<&str, Fault>) {
        let mut out = Vec::new();
        let got = write(&mut out, &map(fields)).map(|()| String::from_utf8_lossy(&out));
        assert_eq!(got.as_deref(), expected.as_deref(), "{fields:?}");
    }

    #[test]
    fn trailers_end_a_chunked_body() {
        check(&[], Ok("0\r\n\r\n"));
        check(
            &[("grpc-status", "0"), ("x", "1"), ("x", "")],
            Ok("0\r\ngrpc-status: 0\r\nx: 1\r\nx: \r\n\r\n"),
        );
    }

    #[test]
    fn what_would_change_the_message_is_left_out() {
        check(
            &[
                ("content-length", "5"),
                ("transfer-encoding", "chunked"),
                ("host", "g"),
                ("authorization", "k"),
                ("a", "b"),
                ("connection", "close"),
                ("trailer", "a"),
                ("x-forwarded-for", "::1"),
            ],
            Ok("0\r\na: b\r\n\r\n"),
        );
    }

    #[test]
    fn a_bad_trailer_is_refused_even_where_it_would_be_left_out() {
        check(&[("a", "b"), ("x", " c")], Err(Fault::ValuePadded));
        check(&[("host", "h ")], Err(Fault::ValuePadded));
    }

    #[test]
    fn trailer_bytes_max_is_that_of_the_reader() {
        let most = TRAILER_BYTES_MAX as usize - "x: \r\n".len();
        for (bytes, good) in [(most, true), (most + 1, false)] {
            let value: &'static str = "v".repeat(bytes).leak();
            let mut out = Vec::new();
            let got = write(&mut out, &map(&[("x", value)]));
            assert_eq!(got.is_ok(), good);
            assert_eq!(collect(&out, &[]).map(|lines| lines.len()), good.then_some(bytes + 5));
        }
    }

    #[test]
    fn lines_are_read() {
        let got = read(b"X: 1\r\nGrpc-Status:0\r\nx:  2\t\r\nContent-Length: 5\r\nY:\r\n");
        assert_eq!(got, Ok(map(&[("x", "1"), ("x", "2"), ("grpc-status", "0"), ("y", "")])));
        assert_eq!(read(b""), Ok(HeaderMap::new()));
        for (bad, fault) in [
            ("x", Fault::TrailerBad),
            ("x: 1", Fault::TrailerBad),
            ("x: 1\n", Fault::TrailerBad),
            ("x\r\n", Fault::TrailerBad),
            ("\r\n", Fault::TrailerBad),
            (": 1\r\n", Fault::NameBad),
            ("x y: 1\r\n", Fault::NameBad),
            (":path: 1\r\n", Fault::NameBad),
            ("x: a\0\r\n", Fault::ValueBad),
            ("x: a\rb\r\n", Fault::ValueBad),
        ] {
            assert_eq!(read(bad.as_bytes()), Err(fault), "{bad:?}");
        }
    }

    #[test]
    fn lines_are_found_at_every_split() {
        let wire = b"5\r\nhello\r\n0\r\nA: 1\r\nBb:2 \r\n\r\n";
        for first in 0..=wire.len() {
            for second in first..=wire.len() {
                let found = collect(wire, &[first, second]);
                assert_eq!(found.as_deref(), Some(&b"A: 1\r\nBb:2 \r\n"[..]), "{first} {second}");
            }
        }
        let every: Vec<usize> = (0..wire.len()).collect();
        assert_eq!(collect(wire, &every).as_deref(), Some(&b"A: 1\r\nBb:2 \r\n"[..]));
        assert_eq!(collect(b"0\r\n\r\n", &[1, 2, 3, 4]).as_deref(), Some(&b""[..]));
        assert_eq!(collect(b"0\r\nA: 1\r\n", &[]), None);
    }

    proptest! {
        #[test]
        fn likely_lines_go_there_and_back(
            cut: u8,
            lines in prop::collection::vec(select(vec![
                "A: 1\r\n", "a:\r\n", "Grpc-Message: a b\r\n", "Host: h\r\n", "X:\u{e9}\r\n", "C:d\t\r\n",
            ]), 0..6),
        ) {
            fuzz(&[&[cut], lines.concat().as_bytes()].concat());
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..100)) {
            fuzz(&data);
        }
    }
}
