//! An HTTP/1.1 request → HTTP/2, and the response to it back, for a server that speaks HTTP/2.
//!
//! The mirror of `request` and `response`. The request has been written by the proxy itself; the
//! response comes from outside and is held to the same rules as a client's request: a server that
//! is wrong, or taken over, must not be able to write a second response into the first (RFC 9113
//! §10.3). Each fault of a response means 502.
//!
//! Not here: where interim responses end (the `h2` crate hands them out apart), and a length that
//! DATA frames break, which that crate finds.

use http::{
    HeaderMap, HeaderValue, Request, StatusCode, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    fault::Fault,
    fields::{checked, relayed},
    framing::{BodyFraming, Declared, Ends},
    head,
};
use crate::{
    http::{fields::has_token, head::RequestHead, method::Method, name::Name},
    http1::parse::HeadLimits,
};

/// Makes the HTTP/2 request that `head` is, its body not counted.
///
/// Shape: `bytes` begins with the head. `:authority` is the authority of the target, else `Host`,
/// which is not sent besides it. Fields of one connection are left out, but for `te: trailers`
/// (RFC 9113 §8.2.2); of several equal lengths one stays.
/// Errors: `TargetBad` for a target that our parser takes and the `http` crate does not (`<`, `>`,
/// a back quote in a path, a quote in a query): the request's fault, not the server's. `TargetTooLong` beyond 64 KiB. Those of a head that the proxy
/// did not write: `MethodRefused`, `MethodBad`, `AuthorityMissing`, `AuthorityBad`, `NameBad`,
/// `ValueBad`, `LengthBad`, `LengthConflict`, `TooManyFields`.
pub fn read_request(
    head: &RequestHead,
    bytes: &[u8],
    scheme: Scheme,
) -> Result<Request<()>, Fault> {
    let method = match head.method {
        Method::Connect | Method::Trace => return Err(Fault::MethodRefused),
        _ => http::Method::from_bytes(head.method_text.of(bytes)).map_err(|_| Fault::MethodBad)?,
    };
    let uri = uri_of(head, bytes, scheme)?;
    let mut declared = Declared::default();
    let mut headers = relayed(&head.fields, bytes, |field| match field.name_kind {
        Name::Host => Ok(true),
        Name::ContentLength => Ok(!declared.add(field.value.of(bytes))?),
        _ => Ok(false),
    })?;
    if head.values(Name::Te, bytes).any(|value| has_token(value, b"trailers")) {
        let trailers = HeaderValue::from_static("trailers");
        headers.try_append(header::TE, trailers).map_err(|_| Fault::TooManyFields)?;
    }
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    Ok(request)
}

fn uri_of(head: &RequestHead, bytes: &[u8], scheme: Scheme) -> Result<Uri, Fault> {
    let authority = head.authority(bytes).ok_or(Fault::AuthorityMissing)?;
    let authority = Authority::try_from(authority).map_err(|_| Fault::AuthorityBad)?;
    let target = match head.target_authority.is_empty() {
        true => head.target.of(bytes),
        // The path and query of an absolute-form target end it.
        false => {
            bytes.get(head.target_path.start as usize..head.target.end as usize).unwrap_or_default()
        }
    };
    if target.len() >= usize::from(u16::MAX) {
        return Err(Fault::TargetTooLong);
    }
    let path = match target {
        [] => PathAndQuery::from_static("/"),
        // Not `/?q` written out: a server may tell the two apart, and the client did not ask it.
        [b'?', ..] => return Err(Fault::TargetBad),
        _ => PathAndQuery::try_from(target).map_err(|_| Fault::TargetBad)?,
    };
    let mut parts = http::uri::Parts::default();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    parts.path_and_query = Some(path);
    Uri::from_parts(parts).map_err(|_| Fault::TargetBad)
}

/// Writes the head of the HTTP/1.1 response that says the same, the blank line included.
///
/// Shape: appends to `out`, or leaves it as it was when the response is refused. `request` is the
/// method that it answers. A body without a length is chunked; a stream that has ended says
/// `content-length: 0`; neither for HEAD, 1xx, 204 and 304, whose message ends with its head.
/// Returns how the bridge has to write the body.
/// Errors: `StatusBad` for 101, and for an interim status that ends the stream (RFC 9113 §8.1);
/// every [`Fault`] of fields, lengths and limits.
/// Source: RFC 9113 §8.1.1, §8.2, §8.3.2; RFC 9112 §6.3; RFC 9110 §8.6.
pub fn write_response_head(
    out: &mut Vec<u8>,
    status: StatusCode,
    headers: &HeaderMap,
    request: Method,
    ends: Ends,
    limits: &HeadLimits,
) -> Result<BodyFraming, Fault> {
    let interim = status.is_informational();
    if status == StatusCode::SWITCHING_PROTOCOLS || (interim && ends == Ends::WithHead) {
        return Err(Fault::StatusBad);
    }
    let bodiless = interim || request == Method::Head || matches!(status.as_u16(), 204 | 304);
    let has_no_length = interim || status == StatusCode::NO_CONTENT;
    head::write(out, limits, None, |head| {
        head.status_line(status.as_u16())?;
        let mut declared = Declared::default();
        for (name, value) in headers {
            let kind = checked(name, value)?;
            if kind == Name::ContentLength && (!declared.add(value.as_bytes())? || has_no_length) {
                continue;
            }
            head.field(kind, name.as_str().as_bytes(), value.as_bytes())?;
        }
        if bodiless {
            return Ok(BodyFraming::None);
        }
        match (declared.framing(ends)?, ends) {
            (Some(framing), _) => Ok(framing),
            (None, Ends::WithHead) => {
                head.field(Name::ContentLength, b"content-length", b"0")?;
                Ok(BodyFraming::Length(0))
            }
            (None, Ends::Later) => {
                head.field(Name::TransferEncoding, b"transfer-encoding", b"chunked")?;
                Ok(BodyFraming::Chunked)
            }
        }
    })
}

/// The target of a fuzzer: a request that our parser takes goes to HTTP/2 and comes back the same;
/// a response of any fields is written as one head that our parser takes, or not at all.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    fuzz_request(data);
    let Some(([choice, status], lines)) = data.split_first_chunk::<2>() else { return };
    let status = 100 + u16::from(*status) * 2 + u16::from(choice >> 7);
    let Ok(status) = StatusCode::from_u16(status) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.split(|&byte| byte == b'\n').take(200) {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        // What the `http` crate refuses never gets here.
        let _ = super::fields::append(&mut headers, &line[..colon], value);
    }
    let method = if choice & 1 == 0 { Method::Get } else { Method::Head };
    let ends = Ends::of(choice & 2 == 0);
    let limits = match choice & 4 {
        0 => HeadLimits::default(),
        _ => HeadLimits { head_bytes_max: 256, fields_max: 6, ..HeadLimits::default() },
    };
    let mut out = b"before".to_vec();
    match write_response_head(&mut out, status, &headers, method, ends, &limits) {
        Err(_) => assert_eq!(out, b"before", "a refused response leaves nothing behind"),
        Ok(framing) => {
            assert_reads_back(&out["before".len()..], status, &headers, method, framing, &limits);
        }
    }
}

fn fuzz_request(wire: &[u8]) {
    use super::request::write_head;
    use crate::http1::parse::{Parse, parse_request};

    let limits = HeadLimits::default();
    let mut head = RequestHead::new();
    let Ok(Parse::Done) = parse_request(wire, &mut 0, &limits, &mut head) else { return };
    let Ok(request) = read_request(&head, wire, Scheme::HTTPS) else { return };
    assert_eq!(request.method().as_str().as_bytes(), head.method_text.of(wire));
    assert_eq!(request.uri().query().map(str::as_bytes), head.query(wire));
    assert_eq!(request.uri().path().as_bytes(), head.path(wire));
    assert_eq!(
        request.uri().authority().map(|a| a.as_str().as_bytes()),
        head.authority(wire),
        "{}",
        wire.escape_ascii()
    );
    // Cookies are the one field that comes back in another shape.
    if request.headers().get_all(header::COOKIE).iter().count() > 1 {
        return;
    }
    let roomy = HeadLimits { head_bytes_max: 1 << 20, fields_max: 1 << 10, ..limits };
    let mut again = Vec::new();
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    let written =
        write_head(&mut again, &mut RequestHead::new(), method, uri, headers, Ends::Later, &roomy);
    assert!(written.is_ok(), "{written:?} {}", wire.escape_ascii());
    let mut second = RequestHead::new();
    assert_eq!(parse_request(&again, &mut 0, &roomy, &mut second), Ok(Parse::Done));
    let back = read_request(&second, &again, Scheme::HTTPS);
    assert_eq!(back.as_ref().map(Request::uri), Ok(uri));
    assert_eq!(back.as_ref().map(Request::method), Ok(method));
    assert_eq!(back.as_ref().map(Request::headers), Ok(headers));
}

/// Holds a written head to what was asked, by another way than it was written.
fn assert_reads_back(
    wire: &[u8],
    status: StatusCode,
    headers: &HeaderMap,
    method: Method,
    framing: BodyFraming,
    limits: &HeadLimits,
) {
    use crate::http1::{
        framing::{Framing, response_framing},
        parse::{Parse, parse_response},
    };
    let mut head = crate::http::head::ResponseHead::new();
    let parsed = parse_response(wire, &mut 0, limits, &mut head);
    assert_eq!(parsed, Ok(Parse::Done), "{}", wire.escape_ascii());
    assert_eq!((head.len as usize, head.status), (wire.len(), status.as_u16()));
    let ends = wire.windows(4).filter(|window| window == b"\r\n\r\n").count();
    assert!(ends == 1 && wire.ends_with(b"\r\n\r\n"), "one end, at the end");
    assert_eq!(response_framing(method, &head, wire), Ok(Framing::from(framing)));
    for field in &head.fields {
        let (name, value) = (field.name.of(wire), field.value.of(wire));
        let ours: [(&[u8], &[u8]); 2] =
            [(b"transfer-encoding", b"chunked"), (b"content-length", b"0")];
        let came = headers.iter().any(|(n, v)| n.as_str().as_bytes() == name && v == value);
        assert!(came || ours.contains(&(name, value)), "{}", wire.escape_ascii());
    }
    for (name, value) in headers {
        let kept = head.fields.iter().any(|field| {
            field.name.of(wire) == name.as_str().as_bytes() && field.value.of(wire) == value
        });
        assert!(kept || name == header::CONTENT_LENGTH, "{name}");
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;
    use crate::http1::parse::{Parse, parse_request};

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 1_000, fields_max: 10, target_bytes_max: 100 };

    fn read(wire: &str) -> Result<Request<()>, Fault> {
        let mut head = RequestHead::new();
        let parsed = parse_request(wire.as_bytes(), &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!(parsed, Ok(Parse::Done), "{wire:?}");
        read_request(&head, wire.as_bytes(), Scheme::HTTP)
    }

    /// A request line and field lines → the URI, and the fields as lines.
    fn check_request(line: &str, lines: &str, uri: &str, expected: &str) {
        let request = read(&format!("{line} HTTP/1.1\r\n{lines}\r\n")).expect("good");
        assert_eq!((request.uri().to_string().as_str(), request.version()), (uri, Version::HTTP_2));
        assert_eq!(request.method().as_str(), line.split(' ').next().unwrap_or_default());
        assert_eq!(text(request.headers()), expected, "{lines:?}");
    }

    fn text(headers: &HeaderMap) -> String {
        let line = |(name, value): (_, &HeaderValue)| {
            format!("{name}: {}\r\n", value.to_str().expect("ascii"))
        };
        headers.iter().map(line).collect()
    }

    #[test]
    fn a_request_crosses_without_what_is_of_the_connection() {
        check_request(
            "POST /v1/x?y=1",
            "Host: h:8000\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\
             Connection: keep-alive, x-hop\r\nX-Hop: 1\r\nX-A: 1\r\nX-A: 2\r\n",
            "http://h:8000/v1/x?y=1",
            "content-type: application/json\r\ncontent-length: 5\r\nx-a: 1\r\nx-a: 2\r\n",
        );
        check_request(
            "GET /",
            "Host: h\r\nTE: gzip, trailers\r\nConnection: te\r\nTransfer-Encoding: chunked\r\n",
            "http://h/",
            "te: trailers\r\n",
        );
        check_request("GET /", "Host: h\r\nTE: gzip\r\n", "http://h/", "");
        check_request("GET http://g:1/a?b", "Host: h\r\n", "http://g:1/a?b", "");
        check_request("GET http://g", "Host: h\r\n", "http://g/", "");
        let (length, kept) = ("Content-Length: 5\r\n", "content-length: 5\r\n");
        check_request("QUERY /", &format!("Host: h\r\n{length}{length}"), "http://h/", kept);
    }

    #[test]
    fn the_asterisk_of_options_crosses() {
        let request = read("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").expect("good");
        assert_eq!(request.uri().path(), "*");
        assert_eq!(request.uri().authority().map(|a| a.as_str()), Some("h"));
    }

    #[test]
    fn requests_without_a_form_in_http_2_are_refused() {
        let check = |wire: &str, fault| assert_eq!(read(wire).map(|_| ()), Err(fault), "{wire:?}");
        check("CONNECT h:1 HTTP/1.1\r\nHost: h\r\n\r\n", Fault::MethodRefused);
        check("TRACE / HTTP/1.1\r\nHost: h\r\n\r\n", Fault::MethodRefused);
        check("GET / HTTP/1.0\r\n\r\n", Fault::AuthorityMissing);
        check("GET http://h?q HTTP/1.1\r\nHost: h\r\n\r\n", Fault::TargetBad);
        let lengths = "Content-Length: 1\r\nContent-Length: 2\r\n";
        check(&format!("PUT / HTTP/1.1\r\nHost: h\r\n{lengths}\r\n"), Fault::LengthConflict);
        // A list of equal lengths is one that the proxy has written out before.
        check("PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5, 5\r\n\r\n", Fault::LengthBad);
    }

    #[test]
    fn a_target_beyond_what_the_http_crate_holds_is_too_long() {
        for (bytes, expected) in [(65_533, Ok(())), (65_534, Err(Fault::TargetTooLong))] {
            let target = format!("/{}", "a".repeat(bytes));
            let wire = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            let limits =
                HeadLimits { head_bytes_max: 1 << 20, target_bytes_max: 1 << 20, ..LIMITS };
            let mut head = RequestHead::new();
            let parsed = parse_request(wire.as_bytes(), &mut 0, &limits, &mut head);
            assert_eq!(parsed, Ok(Parse::Done));
            let got = read_request(&head, wire.as_bytes(), Scheme::HTTP).map(|_| ());
            assert_eq!(got, expected, "{bytes}");
        }
    }

    fn written(
        status: u16,
        fields: &[(&'static str, &'static str)],
        request: Method,
        ends: Ends,
    ) -> Result<(String, BodyFraming), Fault> {
        let mut headers = HeaderMap::new();
        for &(name, value) in fields {
            headers.append(name, HeaderValue::from_static(value));
        }
        let status = StatusCode::from_u16(status).expect("a status");
        let mut out = Vec::new();
        let framing = write_response_head(&mut out, status, &headers, request, ends, &LIMITS)?;
        Ok((String::from_utf8(out).expect("ascii"), framing))
    }

    #[test]
    fn a_response_is_framed_by_its_status_its_request_and_its_end() {
        let check = |status, length: Option<&'static str>, request, ends, lines: &str, framing| {
            let length = length.map(|length| ("content-length", length));
            let fields: Vec<_> = [("a", "b")].into_iter().chain(length).collect();
            let (head, got) = written(status, &fields, request, ends).expect("good");
            let lines = format!("a: b\r\n{lines}\r\n");
            assert_eq!(head.split_once("\r\n").map(|(_, rest)| rest), Some(lines.as_str()));
            assert_eq!(got, framing);
        };
        use BodyFraming::{Chunked, Length, None as NoBody};
        use Ends::{Later, WithHead};
        let (five, none) = ("content-length: 5\r\n", "content-length: 0\r\n");
        let chunked = "transfer-encoding: chunked\r\n";
        check(200, Some("5"), Method::Get, Later, five, Length(5));
        check(200, Some("0"), Method::Get, WithHead, none, Length(0));
        check(200, None, Method::Get, Later, chunked, Chunked);
        check(500, None, Method::Post, Later, chunked, Chunked);
        check(200, None, Method::Get, WithHead, none, Length(0));
        check(200, Some("5"), Method::Head, WithHead, five, NoBody);
        check(200, None, Method::Head, WithHead, "", NoBody);
        check(200, None, Method::Head, Later, "", NoBody);
        check(304, Some("5"), Method::Get, WithHead, five, NoBody);
        check(304, None, Method::Get, Later, "", NoBody);
        check(204, None, Method::Get, WithHead, "", NoBody);
        check(204, Some("0"), Method::Get, Later, "", NoBody);
        check(103, None, Method::Get, Later, "", NoBody);
        check(100, Some("0"), Method::Post, Later, "", NoBody);
    }

    #[test]
    fn the_usual_reason_is_written() {
        let line = |status| {
            let head = written(status, &[], Method::Head, Ends::WithHead).expect("good").0;
            head.lines().next().unwrap_or_default().to_owned()
        };
        assert_eq!(line(200), "HTTP/1.1 200 OK");
        assert_eq!(line(502), "HTTP/1.1 502 Bad Gateway");
        assert_eq!(line(799), "HTTP/1.1 799 ");
    }

    #[test]
    fn a_server_cannot_write_a_second_response() {
        let check = |fields: &[(&'static str, &'static str)], fault| {
            assert_eq!(written(200, fields, Method::Get, Ends::Later), Err(fault), "{fields:?}");
        };
        for name in ["connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding"]
        {
            check(&[(name, "chunked")], Fault::ConnectionSpecific);
        }
        check(&[("content-length", "5"), ("content-length", "6")], Fault::LengthConflict);
        check(&[("content-length", "5, 5")], Fault::LengthBad);
        check(&[("content-length", "-1")], Fault::LengthBad);
        check(&[("x", " a")], Fault::ValuePadded);
        check(&[("te", "gzip")], Fault::TeBad);
        let ended = written(200, &[("content-length", "5")], Method::Get, Ends::WithHead);
        assert_eq!(ended, Err(Fault::LengthWithoutBody));
        for (status, ends) in [
            (101, Ends::Later),
            (101, Ends::WithHead),
            (100, Ends::WithHead),
            (103, Ends::WithHead),
        ] {
            assert_eq!(written(status, &[], Method::Get, ends), Err(Fault::StatusBad));
        }
    }

    #[test]
    fn a_response_head_outgrows_no_limit() {
        let many = [("a", "b"); 10];
        assert!(written(200, &many, Method::Head, Ends::WithHead).is_ok());
        let refused = written(200, &many, Method::Get, Ends::Later);
        assert_eq!(refused, Err(Fault::TooManyFields));
        let long: &'static str = "v".repeat(1_000).leak();
        let refused = written(200, &[("a", long)], Method::Get, Ends::Later);
        assert_eq!(refused, Err(Fault::HeadTooLarge));
    }

    proptest! {
        #[test]
        fn likely_requests_go_there_and_back(
            line in select(vec![
                "GET /", "POST /a?b=c", "OPTIONS *", "PUT http://g/x?y", "DELETE /%20", "GET http://g",
            ]),
            target in "[!-~]{0,9}",
            lines in prop::collection::vec(select(vec![
                "A: 1\r\n", "B:2\r\n", "Connection: b\r\n", "Keep-Alive: x\r\n", "TE: trailers\r\n",
                "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n", "Cookie: a\r\n",
                "X: \u{e9}\r\n", "Y:\r\n", "TE: gzip\r\n",
            ]), 0..9),
        ) {
            fuzz(format!("{line} HTTP/1.1\r\nHost: h:1\r\n{}\r\n", lines.concat()).as_bytes());
            fuzz(format!("GET /{target} HTTP/1.1\r\nHost: h:1\r\n\r\n").as_bytes());
        }

        #[test]
        fn likely_responses_are_one_head(
            choice: u8,
            status: u8,
            lines in prop::collection::vec(select(vec![
                "a:1", "content-length:5", "content-length:0", "x: padded", "te:trailers",
                "connection:close", "set-cookie:a", "set-cookie:b", "y:", "x:caf\u{e9}",
            ]), 0..9),
        ) {
            fuzz(&[&[choice, status], lines.join("\n").as_bytes()].concat());
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
        }
    }
}
