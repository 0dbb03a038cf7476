//! A response head that this process has written itself → its parts, without a check.
//!
//! The one idea: between the exchange and a stream of HTTP/2 an answer is text for a moment. Its
//! lines were checked when they came from the upstream, or are our own words; what is needed now is
//! where they stand. `parse::parse_response` finds the same in such a head, at four times the cost.
//!
//! Never for bytes from outside: a bare CR or a space before a colon passes here.

use memchr::memchr;

use super::parse::{Parse, span_within};
use crate::http::{
    fields::trim,
    head::{Field, ResponseHead, Span},
    name::Name,
};

/// The bytes are no head: no status line, or a line without a colon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoHead;

/// Cuts the response head at the front of `bytes`.
///
/// Shape: as `parse_response` in what it leaves in `head`, and begins anew in each call.
/// Errors: `NoHead`, which a head of ours cannot be.
pub fn reparse_response(bytes: &[u8], head: &mut ResponseHead) -> Result<Parse, NoHead> {
    head.clear();
    let Some(lf) = memchr(b'\n', bytes) else { return Ok(Parse::More) };
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', b' ', a, b, c, b' ', ..] = bytes else {
        return Err(NoHead);
    };
    head.status = [a, b, c].iter().fold(0, |sum, digit| sum * 10 + u16::from(**digit & 0xF));
    head.reason = Span::new("HTTP/1.1 200 ".len(), lf - 1);
    let mut at = lf + 1;
    head.start_line_end = Span::new(0, at).end;
    loop {
        let rest = &bytes[at..];
        let Some(lf) = memchr(b'\n', rest) else { return Ok(Parse::More) };
        let (line, end) = (&rest[..lf.max(1) - 1], at + lf + 1);
        if line.is_empty() {
            head.len = Span::new(0, end).end;
            return Ok(Parse::Done);
        }
        let colon = memchr(b':', line).ok_or(NoHead)?;
        head.fields.push(Field {
            name_kind: Name::of(&line[..colon]),
            name: Span::new(at, at + colon),
            value: span_within(bytes, trim(&line[colon + 1..])),
            line: Span::new(at, end),
        });
        at = end;
    }
}

/// The target of a fuzzer: what the parser takes is cut here as there, and no bytes do harm.
#[doc(hidden)]
pub fn fuzz(wire: &[u8]) {
    use super::parse::{HeadLimits, parse_response};
    use crate::http::head::assert_same_fields;

    let (mut parsed, mut cut) = (ResponseHead::new(), ResponseHead::new());
    let outcome = parse_response(wire, &mut 0, &HeadLimits::default(), &mut parsed);
    let reparse = reparse_response(wire, &mut cut);
    // What we write has a reason or the space before it, and is of HTTP/1.1.
    if outcome != Ok(Parse::Done) || !wire.starts_with(b"HTTP/1.1") || wire.get(12) != Some(&b' ') {
        return;
    }
    assert_eq!(reparse, Ok(Parse::Done));
    assert_eq!((cut.status, cut.version, cut.len), (parsed.status, parsed.version, parsed.len));
    assert_eq!(cut.start_line_end, parsed.start_line_end);
    assert_eq!(cut.reason.of(wire), parsed.reason.of(wire));
    assert_same_fields(&cut.fields, &parsed.fields, wire);
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    #[test]
    fn a_head_in_pieces_is_awaited() {
        let wire = b"HTTP/1.1 200 OK\r\nA: 1\r\nContent-Length:  5 \r\nX:\r\n\r\nbody";
        let whole = wire.len() - "body".len();
        let mut head = ResponseHead::new();
        for cut in 0..whole {
            assert_eq!(reparse_response(&wire[..cut], &mut head), Ok(Parse::More), "{cut}");
        }
        assert_eq!(reparse_response(wire, &mut head), Ok(Parse::Done));
        assert_eq!((head.status, head.len as usize), (200, whole));
        let fields: Vec<_> = head.fields.iter().map(|f| (f.name_kind, f.value.of(wire))).collect();
        let expected =
            [(Name::Other, &b"1"[..]), (Name::ContentLength, &b"5"[..]), (Name::Other, &b""[..])];
        assert_eq!(fields, expected);
    }

    #[test]
    fn what_is_no_head_is_told() {
        for bad in ["\n", "HTTP/1.1\r\n", "GET / HTTP/1.1\r\n", "HTTP/1.1 200 \r\nA\r\n\r\n"] {
            let reparse = reparse_response(bad.as_bytes(), &mut ResponseHead::new());
            assert_eq!(reparse, Err(NoHead), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn likely_heads_are_cut_as_the_parser_cuts_them(
            status in select(vec!["100 ", "200 OK", "503 Slow \u{e9}", "404 Not Found"]),
            lines in prop::collection::vec(select(vec![
                "A: 1\r\n", "b:2\r\n", "Content-Length:\t5 \r\n", "X:\r\n", "Y: \r\n", "Z: a:b\r\n",
                "transfer-encoding: chunked\r\n", "U: \u{e9}\r\n",
            ]), 0..9),
        ) {
            fuzz(format!("HTTP/1.1 {status}\r\n{}\r\nbody", lines.concat()).as_bytes());
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
            fuzz(&[b"HTTP/1.1 200 OK\r\n", &data[..], b"\r\n\r\n"].concat());
        }
    }
}
