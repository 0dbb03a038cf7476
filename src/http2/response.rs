//! The head of an HTTP/1.1 response → the head of an HTTP/2 one, for a client that speaks HTTP/2.
//!
//! The head at hand has been written by the proxy itself and read by its own parser, so little can
//! be wrong with it; what can is answered by 502, never by a panic. The reason phrase is lost: HTTP/2
//! has none (RFC 9113 §8.3.2).
//!
//! The map is new each time and one allocation per value: the `h2` crate takes it with the response,
//! keeps values in its HPACK table and gives nothing back. Values that shared the allocation of one
//! head would each keep all of it alive there.
//!
//! Not here: whether a body follows (`http1::framing::response_framing`).

use http::{Response, StatusCode, Version};

use super::{fault::Fault, fields::relayed, framing::Declared};
use crate::http::{head::ResponseHead, name::Name};

/// Makes the response that `head` is, its body not counted.
///
/// Shape: `bytes` begins with the head. Fields of one connection and those that `Connection` names
/// are left out, the others keep order and duplicates; of several equal lengths one stays, and none
/// where there is no body to have one (1xx, 204; RFC 9110 §8.6). An interim status is fine.
/// Errors: `StatusBad` for 101, which HTTP/2 does not know (RFC 9113 §8.6); `LengthBad`,
/// `LengthConflict`, `NameBad`, `ValueBad`, `TooManyFields`.
pub fn read_head(head: &ResponseHead, bytes: &[u8]) -> Result<Response<()>, Fault> {
    let status = StatusCode::from_u16(head.status).map_err(|_| Fault::StatusBad)?;
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(Fault::StatusBad);
    }
    let has_no_length = matches!(head.status, 100..=199 | 204);
    let mut declared = Declared::default();
    let headers = relayed(&head.fields, bytes, |field| match field.name_kind {
        Name::ContentLength => Ok(!declared.add(field.value.of(bytes))? || has_no_length),
        _ => Ok(false),
    })?;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = Version::HTTP_2;
    *response.headers_mut() = headers;
    Ok(response)
}

/// The target of a fuzzer: a head that our parser takes is a head of HTTP/2, and back again it says
/// the same.
#[doc(hidden)]
pub fn fuzz(wire: &[u8]) {
    use super::{framing::Ends, outgoing::write_response_head};
    use crate::{
        http::{fields::is_hop_by_hop, method::Method},
        http1::parse::{HeadLimits, Parse, parse_response},
    };

    let limits = HeadLimits::default();
    let mut head = ResponseHead::new();
    let Ok(Parse::Done) = parse_response(wire, &mut 0, &limits, &mut head) else { return };
    let Ok(response) = read_head(&head, wire) else { return };
    assert_eq!(response.status().as_u16(), head.status);
    assert!(response.headers().len() <= head.fields.len());
    for (name, value) in response.headers() {
        let kind = Name::of(name.as_str().as_bytes());
        assert!(!is_hop_by_hop(kind), "{name}");
        assert!(!name.as_str().bytes().any(|byte| byte.is_ascii_uppercase()));
        let came = head.fields.iter().any(|field| {
            field.value.of(wire) == value.as_bytes()
                && field.name.of(wire).eq_ignore_ascii_case(name.as_str().as_bytes())
        });
        assert!(came, "{name}");
    }
    let mut again = Vec::new();
    let roomy = HeadLimits { head_bytes_max: 1 << 20, fields_max: 1 << 10, ..limits };
    let (status, headers) = (response.status(), response.headers());
    let written =
        write_response_head(&mut again, status, headers, Method::Head, Ends::Later, &roomy);
    assert_eq!(written, Ok(super::BodyFraming::None));
    let mut second = ResponseHead::new();
    assert_eq!(parse_response(&again, &mut 0, &roomy, &mut second), Ok(Parse::Done));
    let back = read_head(&second, &again);
    assert_eq!(back.map(|back| back.headers().clone()), Ok(headers.clone()));
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::http1::parse::{HeadLimits, Parse, parse_response};

    fn read(wire: &[u8]) -> Result<Response<()>, Fault> {
        let mut head = ResponseHead::new();
        let parsed = parse_response(wire, &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!(parsed, Ok(Parse::Done), "{}", wire.escape_ascii());
        read_head(&head, wire)
    }

    /// Status and field lines → the fields of HTTP/2, as lines.
    fn check(status: u16, lines: &str, expected: &str) {
        let wire = format!("HTTP/1.1 {status} Fine\r\n{lines}\r\n");
        let response = read(wire.as_bytes()).expect("good");
        assert_eq!(response.status().as_u16(), status);
        assert_eq!(response.version(), Version::HTTP_2);
        let got: String = response
            .headers()
            .iter()
            .map(|(name, value)| format!("{name}: {}\r\n", value.to_str().expect("ascii")))
            .collect();
        assert_eq!(got, expected, "{lines:?}");
    }

    #[test]
    fn fields_are_lowered_and_keep_order_and_duplicates() {
        check(
            200,
            "Content-Type: text/event-stream\r\nX-A:  1 \r\nSET-COOKIE: a\r\nset-cookie: b\r\nY:\r\n",
            "content-type: text/event-stream\r\nx-a: 1\r\nset-cookie: a\r\nset-cookie: b\r\ny: \r\n",
        );
        check(404, "", "");
        check(103, "Link: </a>\r\n", "link: </a>\r\n");
    }

    #[test]
    fn fields_of_the_connection_end_here() {
        check(
            200,
            "Connection: close, X-Hop\r\nKeep-Alive: timeout=5\r\nTransfer-Encoding: chunked\r\n\
             x-hop: 1\r\nUpgrade: h2c\r\nProxy-Connection: close\r\nA: 1\r\nTrailer: t\r\n",
            "a: 1\r\ntrailer: t\r\n",
        );
    }

    #[test]
    fn one_length_stays_where_a_body_may_be() {
        check(200, "Content-Length: 5\r\n", "content-length: 5\r\n");
        check(200, "Content-Length: 5\r\nContent-Length: 5\r\n", "content-length: 5\r\n");
        check(304, "Content-Length: 5\r\n", "content-length: 5\r\n");
        check(204, "Content-Length: 0\r\n", "");
        check(103, "Content-Length: 0\r\n", "");
        let fault = |lines: &str| {
            read(format!("HTTP/1.1 200 OK\r\n{lines}\r\n").as_bytes()).map(|_| ()).err()
        };
        let two = "Content-Length: 5\r\nContent-Length: 6\r\n";
        assert_eq!(fault(two), Some(Fault::LengthConflict));
        assert_eq!(fault("Content-Length: x\r\n"), Some(Fault::LengthBad));
    }

    #[test]
    fn obs_text_stays() {
        let response = read(b"HTTP/1.1 200 OK\r\nX: caf\xe9\r\n\r\n").expect("good");
        assert_eq!(response.headers()["x"].as_bytes(), b"caf\xe9");
    }

    #[test]
    fn switching_protocols_is_refused() {
        let got = read(b"HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n").map(|_| ());
        assert_eq!(got, Err(Fault::StatusBad));
    }

    proptest! {
        #[test]
        fn likely_heads_go_there_and_back(
            status in 100u16..1000,
            lines in prop::collection::vec(select(vec![
                "A: 1\r\n", "B:2\r\n", "Connection: b\r\n", "Keep-Alive: x\r\n", "TE: trailers\r\n",
                "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Set-Cookie: a\r\n",
                "X: \u{e9}\r\n", "Y:\r\n", "Host: h\r\n",
            ]), 0..9),
        ) {
            fuzz(format!("HTTP/1.1 {status} X\r\n{}\r\n", lines.concat()).as_bytes());
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
            fuzz(&[b"HTTP/1.1 200 OK\r\n", &data[..], b"\r\n\r\n"].concat());
        }
    }
}
