//! Known ways to make two servers read one message in two ways, each with the fault that ends it.
//!
//! A row is a whole message as a client sends it; it is parsed, framed and read to its end as the
//! proxy would. The rows that pass stand among those that do not: strict is not the same as deaf.

use super::{
    body::{BodyFault, BodyReader, drain_data},
    framing::{Framing, FramingFault, request_framing, response_framing},
    head_fault::HeadFault,
    parse::{HeadLimits, Parse, parse_request, parse_response},
};
use crate::http::{
    head::{RequestHead, ResponseHead},
    method::Method,
};

#[derive(Debug, PartialEq)]
enum Reading {
    Head(HeadFault),
    Framing(FramingFault),
    Body(BodyFault),
    /// It passes with this framing, and so many bytes are left for the next message.
    Good(Framing, usize),
    /// It is not over.
    Waits,
}

use BodyFault as B;
use Framing::{Chunked, Length, None as NoBody, UntilClose};
use FramingFault as F;
use HeadFault as H;
use Reading::{Body, Framing as Frame, Good, Head, Waits};

fn read_body(framing: Framing, rest: &[u8]) -> Reading {
    let mut reader = BodyReader::new(framing);
    match drain_data(&mut reader, rest, |_| {}) {
        Err(fault) => Body(fault),
        Ok((consumed, true)) => Good(framing, rest.len() - consumed),
        Ok((_, false)) if framing == UntilClose => Good(framing, 0),
        Ok((_, false)) => Waits,
    }
}

fn request(wire: &[u8]) -> Reading {
    let mut head = RequestHead::new();
    match parse_request(wire, &mut 0, &HeadLimits::default(), &mut head) {
        Err(fault) => Head(fault),
        Ok(Parse::More) => Waits,
        Ok(Parse::Done) => match request_framing(&head, wire) {
            Err(fault) => Frame(fault),
            Ok(framing) => read_body(framing, &wire[head.len as usize..]),
        },
    }
}

fn response(wire: &[u8]) -> Reading {
    let mut head = ResponseHead::new();
    match parse_response(wire, &mut 0, &HeadLimits::default(), &mut head) {
        Err(fault) => Head(fault),
        Ok(Parse::More) => Waits,
        Ok(Parse::Done) => match response_framing(Method::Get, &head, wire) {
            Err(fault) => Frame(fault),
            Ok(framing) => read_body(framing, &wire[head.len as usize..]),
        },
    }
}

/// Rows of field lines (and a body) put after a good request line and `Host`.
fn check_fields(rows: &[(&str, Reading)]) {
    for (fields, expected) in rows {
        let wire = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}");
        assert_eq!(request(wire.as_bytes()), *expected, "{fields:?}");
    }
}

/// Rows of a body put after a chunked head.
fn check_chunks(rows: &[(&str, Reading)]) {
    for (body, expected) in rows {
        let wire =
            format!("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
        assert_eq!(request(wire.as_bytes()), *expected, "{body:?}");
    }
}

fn check_whole(rows: &[(&str, Reading)]) {
    for (wire, expected) in rows {
        assert_eq!(request(wire.as_bytes()), *expected, "{wire:?}");
    }
}

#[test]
fn lengths_that_can_be_read_in_two_ways() {
    check_fields(&[
        ("Content-Length: 5\r\n\r\nhelloGET", Good(Length(5), 3)),
        ("Content-Length:5\r\n\r\nhello", Good(Length(5), 0)),
        ("Content-Length: \t 5 \t\r\n\r\nhello", Good(Length(5), 0)),
        ("Content-Length: 0\r\n\r\nGET", Good(Length(0), 3)),
        ("Content-Length: 005\r\n\r\nhello", Frame(F::LengthBad)),
        ("Content-Length: 5, 05\r\n\r\nhello", Frame(F::LengthBad)),
        ("Content_Length: 5\r\n\r\n", Head(H::LookAlike)),
        ("Transfer_Encoding: chunked\r\n\r\n", Head(H::LookAlike)),
        ("Content-Length: 5\r\nx_forwarded-for: a\r\n\r\nhello", Head(H::LookAlike)),
        ("Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", Good(Length(5), 0)),
        ("Content-Length: 5, 5\r\n\r\nhello", Good(Length(5), 0)),
        ("\r\nGET", Good(NoBody, 3)),
        ("Content-Length: 5\r\nContent-Length: 6\r\n\r\n", Frame(F::LengthConflict)),
        ("Content-Length: 6\r\ncontent-length: 5\r\n\r\n", Frame(F::LengthConflict)),
        ("Content-Length: 5, 6\r\n\r\n", Frame(F::LengthConflict)),
        ("Content-Length: 5\r\nContent-Length: x\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: x\r\nContent-Length: 5\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: +5\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: -5\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: -0\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 0x5\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 5e0\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 5.0\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 1_0\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 5 5\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 5;a\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: \"5\"\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 5,\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: ,5\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length:\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: \u{a0}5\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: \u{665}\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 9223372036854775808\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 18446744073709551621\r\n\r\n", Frame(F::LengthBad)),
        ("Content-Length: 00000000000000000000005\r\n\r\n", Frame(F::LengthBad)),
    ]);
}

#[test]
fn length_and_coding_together() {
    check_fields(&[
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Frame(F::LengthWithChunked)),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", Frame(F::LengthWithChunked)),
        ("Transfer-Encoding: x\r\nContent-Length: 5\r\n\r\n", Frame(F::LengthWithChunked)),
        ("Transfer-Encoding:\r\nContent-Length: 5\r\n\r\n", Frame(F::LengthWithChunked)),
        // A name that only some servers take for the field is another field here, and passes.
        ("Transfer_Encoding: chunked\r\nContent-Length: 1\r\n\r\na", Head(H::LookAlike)),
        ("X-Transfer-Encoding: chunked\r\n\r\n", Good(NoBody, 0)),
    ]);
}

#[test]
fn codings_that_can_be_read_in_two_ways() {
    check_fields(&[
        ("Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", Good(Chunked, 1)),
        ("transfer-encoding:CHUNKED\r\n\r\n0\r\n\r\n", Good(Chunked, 0)),
        ("Transfer-Encoding: \tchunked\t \r\n\r\n0\r\n\r\n", Good(Chunked, 0)),
        ("Transfer-Encoding: xchunked\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chunkedx\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chunk\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: identity\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: cow\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: gzip, chunked\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: identity, chunked\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chunked;x\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chunked; x=1\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: \"chunked\"\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: 'chunked'\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: \"a, chunked\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chunked chunked\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: , chunked\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding:\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chunked\u{a0}\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chun\u{212a}ed\r\n\r\n", Frame(F::CodingUnknown)),
        ("Transfer-Encoding: chunked,\r\n\r\n", Frame(F::ChunkedNotLast)),
        ("Transfer-Encoding: chunked, identity\r\n\r\n", Frame(F::ChunkedNotLast)),
        ("Transfer-Encoding: chunked, gzip\r\n\r\n", Frame(F::ChunkedNotLast)),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
            Frame(F::ChunkedNotLast),
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n",
            Frame(F::CodingUnknown),
        ),
        ("Transfer-Encoding: chunked, chunked\r\n\r\n", Frame(F::ChunkedTwice)),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            Frame(F::ChunkedTwice),
        ),
    ]);
}

#[test]
fn field_lines_that_can_be_read_in_two_ways() {
    check_fields(&[
        ("Transfer-Encoding : chunked\r\n\r\n", Head(H::SpaceBeforeColon)),
        ("Transfer-Encoding\t: chunked\r\n\r\n", Head(H::SpaceBeforeColon)),
        ("Content-Length : 5\r\n\r\n", Head(H::SpaceBeforeColon)),
        (" Transfer-Encoding: chunked\r\n\r\n", Head(H::ObsFold)),
        ("X: a\r\n Content-Length: 5\r\n\r\n", Head(H::ObsFold)),
        ("Transfer-Encoding:\r\n chunked\r\n\r\n", Head(H::ObsFold)),
        ("X: a\r\n\tb\r\n\r\n", Head(H::ObsFold)),
        ("X: a\r\n \r\n\r\n", Head(H::ObsFold)),
        ("Transfer-Encoding: \u{b}chunked\r\n\r\n", Head(H::ControlByte)),
        ("Transfer-Encoding: \u{c}chunked\r\n\r\n", Head(H::ControlByte)),
        ("Transfer-Encoding: chunked\0\r\n\r\n", Head(H::ControlByte)),
        ("X: a\u{7f}b\r\n\r\n", Head(H::ControlByte)),
        ("X: a\u{1b}[2J\r\n\r\n", Head(H::ControlByte)),
        ("Transfer-Encoding\0: chunked\r\n\r\n", Head(H::BadField)),
        ("Transfer\u{b}-Encoding: chunked\r\n\r\n", Head(H::BadField)),
        ("Content Length: 5\r\n\r\n", Head(H::BadField)),
        ("Content-Length\r\n\r\n", Head(H::BadField)),
        ("Content-Length\u{ad}: 5\r\n\r\n", Head(H::BadField)),
        (": chunked\r\n\r\n", Head(H::BadField)),
        ("(comment): x\r\n\r\n", Head(H::BadField)),
        ("X: a\nTransfer-Encoding: chunked\r\n\r\n", Head(H::BareLf)),
        ("X: a\n\nGET /admin HTTP/1.1\r\n\r\n", Head(H::BareLf)),
        ("\nGET /admin HTTP/1.1\r\n\r\n", Head(H::BareLf)),
        ("X: a\r\n\n\r\n", Head(H::BareLf)),
        ("X: a\rTransfer-Encoding: chunked\r\n\r\n", Head(H::BareCr)),
        ("X: a\r\r\n\r\n", Head(H::BareCr)),
        ("X: a\r\n\rContent-Length: 5\r\n\r\n", Head(H::BareCr)),
        ("X\r: a\r\n\r\n", Head(H::BareCr)),
        ("Content-Length:\r5\r\n\r\n", Head(H::BareCr)),
        ("X: \u{e9}t\u{e9}\tnot plain\r\n\r\n", Good(NoBody, 0)),
        ("X:\r\nY: \r\n\r\n", Good(NoBody, 0)),
        ("X: a: b\r\n\r\n", Good(NoBody, 0)),
    ]);
}

#[test]
fn hosts_that_can_be_read_in_two_ways() {
    check_whole(&[
        ("GET / HTTP/1.1\r\n\r\n", Head(H::HostMissing)),
        ("GET http://h/ HTTP/1.1\r\n\r\n", Head(H::HostMissing)),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Head(H::HostTwice)),
        ("GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", Head(H::HostTwice)),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Head(H::HostTwice)),
        ("GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Head(H::HostBad)),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", Head(H::HostBad)),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", Head(H::HostBad)),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Head(H::HostBad)),
        ("GET / HTTP/1.1\r\nHost: a:80x\r\n\r\n", Head(H::HostBad)),
        ("GET / HTTP/1.1\r\nHost:\r\n\r\n", Head(H::HostBad)),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Head(H::SpaceBeforeColon)),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", Head(H::ObsFold)),
        ("GET http://a@b/ HTTP/1.1\r\nHost: b\r\n\r\n", Head(H::BadTarget)),
        ("GET / HTTP/1.0\r\n\r\n", Good(NoBody, 0)),
        ("GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", Good(NoBody, 0)),
    ]);
}

#[test]
fn request_lines_that_can_be_read_in_two_ways() {
    let rest = "Host: h\r\n\r\n";
    for (line, expected) in [
        ("GET / HTTP/1.1\r\n", Good(NoBody, 0)),
        ("GET / HTTP/1.2\r\n", Good(NoBody, 0)),
        ("get / HTTP/1.1\r\n", Good(NoBody, 0)),
        ("OPTIONS * HTTP/1.1\r\n", Good(NoBody, 0)),
        ("\r\nGET / HTTP/1.1\r\n", Good(NoBody, 0)),
        ("\r\n\r\nGET / HTTP/1.1\r\n", Good(NoBody, 0)),
        ("\r\n\nGET / HTTP/1.1\r\n", Head(H::BareLf)),
        ("\nGET / HTTP/1.1\r\n", Head(H::BareLf)),
        ("\rGET / HTTP/1.1\r\n", Head(H::BareCr)),
        (" GET / HTTP/1.1\r\n", Head(H::BadMethod)),
        ("GET  / HTTP/1.1\r\n", Head(H::BadStartLine)),
        ("GET /  HTTP/1.1\r\n", Head(H::BadStartLine)),
        ("GET / HTTP/1.1 \r\n", Head(H::BadStartLine)),
        ("GET\t/ HTTP/1.1\r\n", Head(H::BadMethod)),
        ("GET /\tHTTP/1.1\r\n", Head(H::BadStartLine)),
        ("GET / HTTP/1.1\n", Head(H::BareLf)),
        ("GET / HTTP/1.1\r\r\n", Head(H::BadStartLine)),
        ("GET /a b HTTP/1.1\r\n", Head(H::BadStartLine)),
        ("GET / HTTP/1.1 HTTP/1.1\r\n", Head(H::BadStartLine)),
        ("GET /\r\n", Head(H::BadStartLine)),
        ("GET\r\n", Head(H::BadStartLine)),
        ("GET / http/1.1\r\n", Head(H::BadStartLine)),
        ("GET / HTTP/1.10\r\n", Head(H::BadStartLine)),
        ("GET / HTTP/1\r\n", Head(H::BadStartLine)),
        ("GET / HTTP/01.1\r\n", Head(H::BadStartLine)),
        ("GET / HTTP 1.1\r\n", Head(H::BadStartLine)),
        ("GET / HTTP/2.0\r\n", Head(H::BadVersion)),
        ("GET / HTTP/0.9\r\n", Head(H::BadVersion)),
        ("PRI * HTTP/2.0\r\n", Head(H::BadVersion)),
        ("G@T / HTTP/1.1\r\n", Head(H::BadMethod)),
        ("GET /\u{e9} HTTP/1.1\r\n", Head(H::BadTarget)),
        ("GET /\0 HTTP/1.1\r\n", Head(H::BadTarget)),
        ("GET /\u{7f} HTTP/1.1\r\n", Head(H::BadTarget)),
        ("GET /a#b HTTP/1.1\r\n", Head(H::BadTarget)),
        ("GET a HTTP/1.1\r\n", Head(H::BadTarget)),
        ("GET * HTTP/1.1\r\n", Head(H::BadTarget)),
        ("GET ftp://h/ HTTP/1.1\r\n", Head(H::BadTarget)),
    ] {
        let wire = format!("{line}{rest}");
        assert_eq!(request(wire.as_bytes()), expected, "{line:?}");
    }
}

#[test]
fn codings_from_http_1_0_are_not_believed() {
    check_whole(&[
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Frame(F::ChunkedInHttp10),
        ),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            Frame(F::ChunkedInHttp10),
        ),
        ("POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nab", Good(Length(2), 0)),
    ]);
}

#[test]
fn chunks_that_can_be_read_in_two_ways() {
    check_chunks(&[
        ("5\r\nhello\r\n0\r\n\r\nGET", Good(Chunked, 3)),
        ("A\r\n0123456789\r\n0\r\n\r\n", Good(Chunked, 0)),
        ("0000000000000005\r\nhello\r\n0\r\n\r\n", Good(Chunked, 0)),
        ("5;a=b;c\r\nhello\r\n0;last\r\n\r\n", Good(Chunked, 0)),
        ("5;a=\"b c\\\"\"\r\nhello\r\n0\r\n\r\n", Good(Chunked, 0)),
        ("5;a=\"\";b\r\nhello\r\n0\r\n\r\n", Good(Chunked, 0)),
        ("5 ;a\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5;\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a=\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;=b\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5; a\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a;\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a=\"b\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a=\"b\\\"\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a=\"b\"c\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a=b\"c\"\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n", Good(Chunked, 0)),
        ("000\r\n\r\n", Good(Chunked, 0)),
        ("5\r\nhello\r\n0\r\n", Waits),
        ("0x5\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("+5\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("-5\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        (" 5\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5 \r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5 5\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("1_0\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5g\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("\u{ff15}\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        (";a\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5\rhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5\0\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("00000000000000005\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeTooLarge)),
        ("10000000000000005\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeTooLarge)),
        ("8000000000000000\r\n", Body(B::ChunkSizeTooLarge)),
        ("ffffffffffffffff\r\n", Body(B::ChunkSizeTooLarge)),
        // TERM.EXT, EXT.TERM: one server ends the line at the LF, the next reads on.
        ("5;\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;a\rX\r\nhello\r\n0\r\n\r\n", Body(B::ChunkSizeBad)),
        ("5;a=\"\n\"\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        ("5;\0\r\nhello\r\n0\r\n\r\n", Body(B::ChunkExtBad)),
        // TERM.SPILL, SPILL.TERM: data that runs over into its line end.
        ("5\r\nhelloX\r\n0\r\n\r\n", Body(B::ChunkEndMissing)),
        ("5\r\nhello0\r\n\r\n", Body(B::ChunkEndMissing)),
        ("5\r\nhello\n0\r\n\r\n", Body(B::ChunkEndMissing)),
        ("5\r\nhello\r0\r\n\r\n", Body(B::ChunkEndMissing)),
        ("5\r\nhello\n\r0\r\n\r\n", Body(B::ChunkEndMissing)),
        ("5\r\nhelloab0\r\n\r\n", Body(B::ChunkEndMissing)),
    ]);
}

#[test]
fn trailers_that_can_be_read_in_two_ways() {
    check_chunks(&[
        ("0\r\nX: a\r\nY:\r\n\r\nG", Good(Chunked, 1)),
        ("0\r\ntransfer-encodings: a\r\n\r\n", Good(Chunked, 0)),
        ("0\r\nContent-Length: 5\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\ntransfer-encoding: chunked\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\nX: a\r\nHOST: evil\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\nAuthorization: Bearer x\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\nProxy-Authorization: x\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\nx-api-key: x\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\nConnection: close\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n", Body(B::TrailerForbidden)),
        ("0\r\nGET / HTTP/1.1\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\nX : a\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\n X: a\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\nX: a\r\n b\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\nX: a\nY: b\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\nX: a\rY: b\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\nX: \0\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\n: a\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\nX\r\n\r\n", Body(B::TrailerBad)),
        ("0\r\n\n", Body(B::TrailerBad)),
        ("0\r\n\rX", Body(B::TrailerBad)),
    ]);
}

#[test]
fn responses_that_can_be_read_in_two_ways() {
    for (wire, expected) in [
        ("HTTP/1.1 200 OK\r\n\r\nabc", Good(UntilClose, 0)),
        ("HTTP/1.1 200\r\n\r\n", Good(UntilClose, 0)),
        ("HTTP/1.1 200 \r\n\r\n", Good(UntilClose, 0)),
        ("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nab", Good(Length(1), 1)),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\nH", Good(NoBody, 1)),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", Good(NoBody, 0)),
        ("HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n", Good(Length(0), 0)),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            Frame(F::LengthWithChunked),
        ),
        (
            "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            Frame(F::LengthWithChunked),
        ),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Frame(F::CodingUnknown)),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Frame(F::ChunkedInHttp10)),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            Frame(F::LengthConflict),
        ),
        ("HTTP/1.1 200 OK\nContent-Length: 1\r\n\r\n", Head(H::BareLf)),
        ("HTTP/1.1 200 OK\r\nA: b\n\n", Head(H::BareLf)),
        ("HTTP/1.1 200 O\rK\r\n\r\n", Head(H::BareCr)),
        ("HTTP/1.1 200 O\0K\r\n\r\n", Head(H::ControlByte)),
        ("HTTP/1.1 200 OK\r\n A: b\r\n\r\n", Head(H::ObsFold)),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", Head(H::ObsFold)),
        ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", Head(H::SpaceBeforeColon)),
        ("HTTP/1.1  200 OK\r\n\r\n", Head(H::BadStatus)),
        ("HTTP/1.1 20 OK\r\n\r\n", Head(H::BadStatus)),
        ("HTTP/1.1 2000 OK\r\n\r\n", Head(H::BadStatus)),
        ("HTTP/1.1 099 OK\r\n\r\n", Head(H::BadStatus)),
        ("HTTP/1.1 +20 OK\r\n\r\n", Head(H::BadStatus)),
        ("HTTP/1.1 200\tOK\r\n\r\n", Head(H::BadStatus)),
        ("HTTP/1.1\t200 OK\r\n\r\n", Head(H::BadStartLine)),
        ("HTTP/1.1\r\n\r\n", Head(H::BadStartLine)),
        ("http/1.1 200 OK\r\n\r\n", Head(H::BadStartLine)),
        ("ICY 200 OK\r\n\r\n", Head(H::BadStartLine)),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", Head(H::BadStartLine)),
        ("HTTP/2.0 200 OK\r\n\r\n", Head(H::BadVersion)),
        ("<html>\r\n\r\n", Head(H::BadStartLine)),
    ] {
        assert_eq!(response(wire.as_bytes()), expected, "{wire:?}");
    }
}
