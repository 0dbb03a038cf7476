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
    head::{Fields, RequestHead, ResponseHead, Version},
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
    /// A length that is no plain decimal without leading zeros, or beyond 2^63 - 1.
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
    fields: &Fields,
    version: Version,
    bytes: &[u8],
) -> Result<Option<Framing>, FramingFault> {
    let coding = fields
        .named(Name::TransferEncoding)
        .fold(Coding::Absent, |coding, field| coding.then(field.value.of(bytes)));
    let length = fields
        .named(Name::ContentLength)
        .fold(None, |length, field| Some(agreed(length, field.value.of(bytes))));
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
    // As good as every length: one, and a number.
    if let (None, Some(number)) = (before, decimal(value)) {
        return Ok(number);
    }
    let mut length = before.transpose()?;
    for number in list(value) {
        let number = decimal(number).ok_or(FramingFault::LengthBad)?;
        if *length.get_or_insert(number) != number {
            return Err(FramingFault::LengthConflict);
        }
    }
    length.ok_or(FramingFault::LengthBad)
}

/// Digits alone, up to 2^63 - 1: what is more becomes negative in some server behind. No leading
/// zero either, which makes it octal for some.
pub fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > LENGTH_DIGITS_MAX {
        return None;
    }
    if digits.len() > 1 && digits.first() == Some(&b'0') {
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

/// Digits of 2^63 - 1.
const LENGTH_DIGITS_MAX: usize = 19;

/// The target of a fuzzer: two readers that differ only in direction agree on what was declared,
/// and nobody takes both a length and a coding.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    use super::parse::{HeadLimits, Parse, parse_request, parse_response};

    let limits = HeadLimits::default();
    let wire = [b"POST / HTTP/1.1\r\nHost: h\r\n", data].concat();
    let mut request = RequestHead::new();
    let Ok(Parse::Done) = parse_request(&wire, &mut 0, &limits, &mut request) else { return };
    let asked = request_framing(&request, &wire);

    let wire = [b"HTTP/1.1 200 OK\r\nHost: h\r\n", data].concat();
    let mut response = ResponseHead::new();
    let outcome = parse_response(&wire, &mut 0, &limits, &mut response);
    assert_eq!(outcome, Ok(Parse::Done), "the same field lines, without a rule about hosts");
    let answered = response_framing(Method::Get, &response, &wire);

    match asked {
        Ok(Framing::None) => assert_eq!(answered, Ok(Framing::UntilClose)),
        _ => assert_eq!(answered, asked),
    }
    assert_ne!(asked, Ok(Framing::UntilClose), "a request never ends by close");
    let both = request.count(Name::TransferEncoding) > 0 && request.count(Name::ContentLength) > 0;
    assert!(!both || asked.is_err(), "a length and a coding");
    let bodiless = response_framing(Method::Head, &response, &wire);
    assert_eq!(bodiless.is_ok(), answered.is_ok());
    assert!(matches!(bodiless, Ok(Framing::None) | Err(_)));
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::http1::parse::{HeadLimits, Parse, parse_request, parse_response};

    fn request(wire: &str) -> Result<Framing, FramingFault> {
        let mut head = RequestHead::new();
        let got = parse_request(wire.as_bytes(), &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!(got, Ok(Parse::Done), "{wire:?}");
        request_framing(&head, wire.as_bytes())
    }

    fn response(method: Method, status: u16, fields: &str) -> Result<Framing, FramingFault> {
        let wire = format!("HTTP/1.1 {status} x\r\n{fields}\r\n");
        let mut head = ResponseHead::new();
        let got = parse_response(wire.as_bytes(), &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!(got, Ok(Parse::Done), "{wire:?}");
        response_framing(method, &head, wire.as_bytes())
    }

    /// A slow reader: joins the lines into one text and compares texts.
    fn oracle(fields: &[(&str, String)]) -> Result<Framing, ()> {
        let joined = |name: &str| {
            let values: Vec<&str> =
                fields.iter().filter(|f| f.0 == name).map(|f| f.1.as_str()).collect();
            (!values.is_empty()).then(|| values.join(","))
        };
        match (joined("Transfer-Encoding"), joined("Content-Length")) {
            (None, None) => Ok(Framing::None),
            (Some(_), Some(_)) => Err(()),
            (Some(coding), None) if coding.trim().to_lowercase() == "chunked" => {
                Ok(Framing::Chunked)
            }
            (Some(_), None) => Err(()),
            (None, Some(lengths)) => {
                let mut all = Vec::new();
                for number in lengths.split(',').map(str::trim) {
                    let parsed = number.parse::<i64>().map_err(|_| ())?;
                    if parsed.to_string() != number {
                        return Err(());
                    }
                    all.push(parsed);
                }
                all.dedup();
                if all.len() == 1 { Ok(Framing::Length(all[0] as u64)) } else { Err(()) }
            }
        }
    }

    fn value() -> impl Strategy<Value = String> {
        let piece = select(vec![
            "chunked",
            "Chunked",
            "gzip",
            "identity",
            "5",
            "05",
            "6",
            ",",
            ", ",
            " ",
            "+",
            "\"",
            ";q",
            "9223372036854775807",
            "9223372036854775808",
        ]);
        prop_oneof![
            3 => select(vec!["chunked", "5", "5, 5", "6", "0"]).prop_map(String::from),
            1 => prop::collection::vec(piece, 0..4).prop_map(|pieces| pieces.concat()),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_reader_of_texts(
            fields in prop::collection::vec(
                (select(vec!["Transfer-Encoding", "Content-Length", "Other"]), value()), 0..4),
        ) {
            let lines: String =
                fields.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect();
            let got = request(&format!("POST / HTTP/1.1\r\nHost: h\r\n{lines}\r\n"));
            prop_assert_eq!(got.map_err(|_| ()), oracle(&fields), "{}", lines);
            fuzz(format!("{lines}\r\n").as_bytes());
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..60)) {
            fuzz(&[&data[..], b"\r\n\r\n"].concat());
        }
    }

    // RFC 9112 §6.3, step by step.

    #[test]
    fn step_1_head_1xx_204_and_304_have_no_body() {
        for fields in ["Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", ""] {
            for status in [100, 101, 103, 199, 204, 304] {
                assert_eq!(response(Method::Get, status, fields), Ok(Framing::None));
            }
            assert_eq!(response(Method::Head, 200, fields), Ok(Framing::None));
        }
        assert_eq!(response(Method::Get, 205, ""), Ok(Framing::UntilClose));
    }

    #[test]
    fn step_2_a_granted_connect_is_a_tunnel() {
        assert_eq!(response(Method::Connect, 200, "Content-Length: 5\r\n"), Ok(Framing::None));
        let refused = response(Method::Connect, 403, "Content-Length: 5\r\n");
        assert_eq!(refused, Ok(Framing::Length(5)));
    }

    #[test]
    fn step_3_length_with_coding_is_refused_both_ways() {
        let fields = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
        let wire = format!("POST / HTTP/1.1\r\nHost: h\r\n{fields}\r\n");
        assert_eq!(request(&wire), Err(FramingFault::LengthWithChunked));
        assert_eq!(response(Method::Get, 200, fields), Err(FramingFault::LengthWithChunked));
        assert_eq!(response(Method::Head, 200, fields), Err(FramingFault::LengthWithChunked));
    }

    #[test]
    fn step_4_chunked_alone_is_chunked() {
        let fields = "Transfer-Encoding: chunked\r\n";
        assert_eq!(response(Method::Get, 200, fields), Ok(Framing::Chunked));
        assert_eq!(
            response(Method::Get, 200, "Transfer-Encoding: gzip, chunked\r\n"),
            Err(FramingFault::CodingUnknown)
        );
    }

    #[test]
    fn step_5_one_length_in_many_places_is_one_length() {
        let twice = "Content-Length: 42, 42\r\nContent-Length: 42\r\n";
        assert_eq!(response(Method::Get, 200, twice), Ok(Framing::Length(42)));
        let differ = "Content-Length: 42, 43\r\n";
        assert_eq!(response(Method::Get, 200, differ), Err(FramingFault::LengthConflict));
    }

    #[test]
    fn steps_6_to_8_length_nothing_and_close() {
        assert_eq!(response(Method::Get, 200, "Content-Length: 7\r\n"), Ok(Framing::Length(7)));
        assert_eq!(request("POST / HTTP/1.1\r\nHost: h\r\n\r\n"), Ok(Framing::None));
        assert_eq!(response(Method::Post, 500, ""), Ok(Framing::UntilClose));
    }

    #[test]
    fn the_largest_length_is_2_to_63_less_1() {
        let wire = |n: &str| format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {n}\r\n\r\n");
        assert_eq!(request(&wire("9223372036854775807")), Ok(Framing::Length(i64::MAX as u64)));
        assert_eq!(request(&wire("9223372036854775808")), Err(FramingFault::LengthBad));
    }
}
