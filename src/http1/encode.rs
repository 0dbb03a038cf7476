//! Head → bytes: small writers into a buffer that the caller keeps.
//!
//! The one idea: a relayed head is mostly the head that came. Its untouched lines are copied in
//! runs, one `extend_from_slice` a run, and only what has to differ is written anew. Nothing here
//! allocates once the buffer has grown to the size of a usual head.
//!
//! The writers trust their caller: names, values and targets come from parsed heads or from the
//! checked configuration, never raw from a wire.

use crate::base::units::{DECIMAL_BYTES_MAX, decimal};
use crate::http::{
    fields::{ConnectionTokens, is_hop_by_hop, trim},
    head::{Field, Fields, RequestHead, ResponseHead, Span},
    name::Name,
};

/// Writes `HTTP/1.1 status reason`. An empty reason is replaced by the usual one.
pub fn status_line(out: &mut Vec<u8>, status: u16, reason: &[u8]) {
    out.extend_from_slice(b"HTTP/1.1 ");
    number(out, u64::from(status));
    out.push(b' ');
    out.extend_from_slice(if reason.is_empty() {
        reason_phrase(status).as_bytes()
    } else {
        reason
    });
    out.extend_from_slice(b"\r\n");
}

/// Writes `method target HTTP/1.1`.
pub fn request_line(out: &mut Vec<u8>, method: &[u8], target: &[u8]) {
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes one field line.
pub fn field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Writes one field line with a number.
pub fn field_number(out: &mut Vec<u8>, name: &[u8], value: u64) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    number(out, value);
    out.extend_from_slice(b"\r\n");
}

/// Writes the blank line that ends a head.
pub fn end_of_head(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\r\n");
}

/// Writes a number in decimal.
pub fn number(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(decimal(value, &mut [0; DECIMAL_BYTES_MAX]));
}

/// Writes the line before `bytes` of chunk data: the size in hex. The data and a CRLF follow.
///
/// Before: `bytes > 0`; a chunk of 0 would end the body, which is [`last_chunk`].
pub fn chunk_header(out: &mut Vec<u8>, bytes: u64) {
    debug_assert!(bytes > 0, "an empty chunk ends the body");
    let digits = (64 - bytes.leading_zeros()).div_ceil(4).max(1);
    for place in (0..digits).rev() {
        let digit = (bytes >> (4 * place)) as usize & 0xf;
        out.push(b"0123456789abcdef"[digit]);
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes one chunk whole; nothing when there is no data.
pub fn chunk(out: &mut Vec<u8>, data: &[u8]) {
    if !data.is_empty() {
        chunk_header(out, data.len() as u64);
        out.extend_from_slice(data);
        out.extend_from_slice(b"\r\n");
    }
}

/// Writes the end of a chunked body without trailers.
pub fn last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}

/// Copies the fields of a request that may pass: not hop-by-hop, not named by `Connection`, not
/// chosen by `drop`. Order and duplicates are kept, and the lines stay as they were written.
///
/// The exception is `Content-Length`: given more than once (framing has seen that all agree), the
/// first number alone is written (RFC 9112 §6.3).
pub fn copy_request_fields(
    out: &mut Vec<u8>,
    head: &RequestHead,
    bytes: &[u8],
    drop: impl Fn(&Field) -> bool,
) {
    copy_fields(out, &head.fields, bytes, drop);
}

/// Copies the fields of a response that may pass; as [`copy_request_fields`]. 1xx and 204 have no
/// length, whatever the server said (RFC 9110 §8.6).
pub fn copy_response_fields(
    out: &mut Vec<u8>,
    head: &ResponseHead,
    bytes: &[u8],
    drop: impl Fn(&Field) -> bool,
) {
    let has_length = !matches!(head.status, 100..=199 | 204);
    copy_fields(out, &head.fields, bytes, |field| {
        (field.name_kind == Name::ContentLength && !has_length) || drop(field)
    });
}

fn copy_fields(out: &mut Vec<u8>, fields: &Fields, bytes: &[u8], drop: impl Fn(&Field) -> bool) {
    let connection = ConnectionTokens::new(fields, bytes);
    let mut lengths = 0;
    let mut run = Span::default();
    for each in fields {
        let mut passes = !is_hop_by_hop(each.name_kind) && !connection.names(each) && !drop(each);
        if passes && each.name_kind == Name::ContentLength {
            lengths += 1;
            let value = each.value.of(bytes);
            if let Some(comma) = memchr::memchr(b',', value) {
                passes = false;
                if lengths == 1 {
                    out.extend_from_slice(run.of(bytes));
                    run = Span::default();
                    field(out, each.name.of(bytes), trim(&value[..comma]));
                }
            } else if lengths > 1 {
                passes = false;
            }
        }
        if passes && run.end == each.line.start {
            run.end = each.line.end;
        } else if passes {
            out.extend_from_slice(run.of(bytes));
            run = each.line;
        }
    }
    out.extend_from_slice(run.of(bytes));
}

/// The usual reason phrase of a status; empty for one that is not registered.
pub fn reason_phrase(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        101 => "Switching Protocols",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        201 => "Created",
        202 => "Accepted",
        203 => "Non-Authoritative Information",
        204 => "No Content",
        205 => "Reset Content",
        206 => "Partial Content",
        300 => "Multiple Choices",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        402 => "Payment Required",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        406 => "Not Acceptable",
        407 => "Proxy Authentication Required",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        411 => "Length Required",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        421 => "Misdirected Request",
        422 => "Unprocessable Content",
        425 => "Too Early",
        426 => "Upgrade Required",
        428 => "Precondition Required",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        451 => "Unavailable For Legal Reasons",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        507 => "Insufficient Storage",
        511 => "Network Authentication Required",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::{
        http::fields::has_token,
        http1::{
            body::{BodyReader, drain_data},
            framing::Framing,
            parse::{HeadLimits, Parse, parse_request, parse_response},
        },
    };

    fn written(write: impl Fn(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).expect("ascii")
    }

    /// Copies the fields of a request with these lines, dropping what `drop` says.
    fn check(lines: &str, drop: impl Fn(&Field) -> bool, expected: &str) {
        let wire = format!("GET / HTTP/1.0\r\n{lines}\r\n");
        let mut head = RequestHead::new();
        let got = parse_request(wire.as_bytes(), &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!(got, Ok(Parse::Done), "{lines:?}");
        let out = written(|out| copy_request_fields(out, &head, wire.as_bytes(), &drop));
        assert_eq!(out, expected, "{lines:?}");
    }

    #[test]
    fn start_lines_are_written() {
        assert_eq!(written(|out| status_line(out, 200, b"")), "HTTP/1.1 200 OK\r\n");
        assert_eq!(written(|out| status_line(out, 503, b"Busy")), "HTTP/1.1 503 Busy\r\n");
        assert_eq!(written(|out| status_line(out, 799, b"")), "HTTP/1.1 799 \r\n");
        assert_eq!(written(|out| request_line(out, b"GET", b"/a?b")), "GET /a?b HTTP/1.1\r\n");
    }

    #[test]
    fn a_head_with_a_number_is_written() {
        let head = written(|out| {
            field(out, b"x-a", b"b");
            field_number(out, b"content-length", 120);
            end_of_head(out);
        });
        assert_eq!(head, "x-a: b\r\ncontent-length: 120\r\n\r\n");
    }

    #[test]
    fn untouched_lines_stay_as_they_were_written() {
        let lines = "HOST:h\r\nAccept:  a \r\nX: 1\r\nX: 2\r\nx: 1\r\nY:\r\n";
        check(lines, |_| false, lines);
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        check(
            "A: 1\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nB: 2\r\nTE: trailers\r\n\
             Upgrade: x\r\nx-hop: y\r\nProxy-Connection: close\r\nTransfer-Encoding: chunked\r\n\
             Proxy-Authorization: z\r\nTrailer: t\r\nC: 3\r\n",
            |_| false,
            "A: 1\r\nB: 2\r\nTrailer: t\r\nC: 3\r\n",
        );
    }

    #[test]
    fn connection_cannot_take_what_the_message_means() {
        let lines = "Host: h\r\nContent-Length: 5\r\nAuthorization: k\r\n";
        check(
            &format!("{lines}Connection: host, content-length, authorization\r\n"),
            |_| false,
            lines,
        );
    }

    #[test]
    fn the_caller_drops_what_it_writes_itself() {
        let lines = "Host: h\r\nA: 1\r\nAuthorization: k\r\nB: 2\r\n";
        let own = |field: &Field| matches!(field.name_kind, Name::Host | Name::Authorization);
        check(lines, own, "A: 1\r\nB: 2\r\n");
        check(lines, |_| true, "");
        check("", |_| false, "");
    }

    #[test]
    fn what_has_no_body_has_no_length() {
        for (status, passes) in
            [(100, false), (103, false), (101, false), (204, false), (200, true), (304, true)]
        {
            let wire = format!("HTTP/1.1 {status} X\r\nA: 1\r\nContent-Length: 5\r\nB: 2\r\n\r\n");
            let mut head = ResponseHead::new();
            let got = parse_response(wire.as_bytes(), &mut 0, &HeadLimits::default(), &mut head);
            assert_eq!(got, Ok(Parse::Done));
            let out = written(|out| copy_response_fields(out, &head, wire.as_bytes(), |_| false));
            let length = if passes { "Content-Length: 5\r\n" } else { "" };
            assert_eq!(out, format!("A: 1\r\n{length}B: 2\r\n"), "{status}");
        }
    }

    #[test]
    fn one_content_length_goes_on() {
        let one = "A: 1\r\nContent-Length: 5\r\nB: 2\r\n";
        check(one, |_| false, one);
        check("A: 1\r\nContent-Length: 5\r\ncontent-length: 5\r\nB: 2\r\n", |_| false, one);
        check("A: 1\r\nContent-Length: 5 , 5\r\nB: 2\r\n", |_| false, one);
        check("A: 1\r\nContent-Length: 5,5\r\nContent-Length: 5\r\nB: 2\r\n", |_| false, one);
    }

    #[test]
    fn chunks_are_read_back() {
        let mut out = Vec::new();
        chunk(&mut out, b"");
        chunk(&mut out, b"hello");
        chunk(&mut out, &[b'x'; 0x1a0]);
        last_chunk(&mut out);
        assert!(out.starts_with(b"5\r\nhello\r\n1a0\r\n"));
        let mut data = Vec::new();
        let mut reader = BodyReader::new(Framing::Chunked);
        let got = drain_data(&mut reader, &out, |run| data.extend_from_slice(run));
        assert_eq!((got, data.len()), (Ok((out.len(), true)), 5 + 0x1a0));
    }

    proptest! {
        #[test]
        fn numbers_are_written_as_the_standard_library_does(value: u64) {
            prop_assert_eq!(written(|out| number(out, value)), value.to_string());
            let small = value % 1000;
            prop_assert_eq!(written(|out| number(out, small)), small.to_string());
            let size = value.max(1);
            prop_assert_eq!(written(|out| chunk_header(out, size)), format!("{size:x}\r\n"));
        }

        /// A slow copy, line by line, is the oracle.
        #[test]
        fn copies_what_a_line_filter_leaves(
            lines in prop::collection::vec(select(vec![
                "A: 1\r\n", "B:2\r\n", "Connection: b\r\n", "Keep-Alive: x\r\n", "Server: s\r\n",
                "Connection: close, a\r\n", "C: 3 \r\n",
            ]), 0..9),
        ) {
            let wire = format!("HTTP/1.1 200 OK\r\n{}\r\n", lines.concat());
            let mut head = ResponseHead::new();
            let got = parse_response(wire.as_bytes(), &mut 0, &HeadLimits::default(), &mut head);
            prop_assert_eq!(got, Ok(Parse::Done));
            let named = |name: &str| lines.iter().any(|line| {
                line.strip_prefix("Connection: ")
                    .is_some_and(|tokens| has_token(tokens.trim().as_bytes(), name.as_bytes()))
            });
            let expected: String = lines.iter().copied().filter(|line| {
                let (name, _) = line.split_once(':').expect("a field line");
                !["Connection", "Keep-Alive", "Server"].contains(&name) && !named(name)
            }).collect();
            let out = written(|out| {
                let server = |field: &Field| field.name_kind == Name::Server;
                copy_response_fields(out, &head, wire.as_bytes(), server);
            });
            prop_assert_eq!(out, expected);
        }
    }
}
