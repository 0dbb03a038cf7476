//! A request that came by HTTP/2 → the head of an HTTP/1.1 request.
//!
//! The one idea: what is written here is what our own parser would read, as if the client had
//! spoken HTTP/1.1, and nothing else knows that it did not. So the head must say one thing only:
//! whatever two readers could take in two ways is refused here, and whatever the parser would
//! refuse is refused here first, under a better name. The parser itself need not run: where each
//! part stands is noted while it is written, and the fuzzer holds the notes to what the parser
//! finds.
//!
//! RFC 9113 §8.2 (fields), §8.3.1 (pseudo-fields), §8.1.1 (malformed), §10.3 (what HTTP/1.1 cannot
//! carry); RFC 9112 §11.2 on smuggling, and the research that made it famous for HTTP/2: Kettle,
//! "HTTP/2: The Sequel is Always Worse" (2021).
//!
//! Not here: what was lost before. The `http` crate cuts a fragment off a path (`fragment`); a
//! pseudo-field that is unknown, missing or late is refused by the `h2` crate.

use http::{HeaderMap, Method, Uri, header};

use super::{
    fault::Fault,
    fields::checked,
    framing::{BodyFraming, Declared, Ends},
    head::{self, Head},
};
use crate::{
    http::{
        head::{RequestHead, Span, assert_same_fields},
        method,
        name::Name,
    },
    http1::{
        parse::{HeadLimits, METHOD_BYTES_MAX},
        target::{is_authority, split_target},
    },
};

/// Writes the head of the HTTP/1.1 request that says the same, the blank line included.
///
/// Shape: appends to `out`, or leaves it as it was when the request is refused. `Host` comes first,
/// then the fields in the order of the map, duplicates kept; `cookie` fields become one (RFC 9113
/// §8.2.3). A length that was given stays where it was, once. Without one, a body is chunked; a
/// request without a body says `content-length: 0` where the method leads to expect one. `te` is
/// kept: whether the client reads trailers is for the exchange to know.
/// `parsed` becomes the head as `parse_request` would read it; after an error it is of no use.
/// Returns how the bridge has to write the body.
/// Errors: `MethodRefused` for CONNECT and TRACE; every other [`Fault`] but those of status and
/// trailers.
/// Source: RFC 9113 §8.1.1, §8.2, §8.3.1; RFC 9112 §3.2, §6.3.
pub fn write_head(
    out: &mut Vec<u8>,
    parsed: &mut RequestHead,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    ends: Ends,
    limits: &HeadLimits,
) -> Result<BodyFraming, Fault> {
    check_method(method)?;
    let target = target_of(method, uri)?;
    let authority = authority_of(uri, headers)?;
    parsed.clear();
    let start = out.len();
    let mut fields = std::mem::take(&mut parsed.fields);
    let framing = head::write(out, limits, Some(&mut fields), |head| {
        head.request_line(method.as_str().as_bytes(), target)?;
        parsed.start_line_end = Span::new(0, head.written()).end;
        head.field(Name::Host, b"Host", authority)?;
        let declared = write_fields(head, headers)?;
        if let Some(framing) = declared.framing(ends)? {
            return Ok(framing);
        }
        match (ends, method) {
            (Ends::Later, _) => {
                head.field(Name::TransferEncoding, b"transfer-encoding", b"chunked")?;
                Ok(BodyFraming::Chunked)
            }
            (Ends::WithHead, &Method::POST | &Method::PUT | &Method::PATCH) => {
                head.field(Name::ContentLength, b"content-length", b"0")?;
                Ok(BodyFraming::Length(0))
            }
            (Ends::WithHead, _) => Ok(BodyFraming::None),
        }
    });
    parsed.fields = fields;
    let framing = framing?;
    parsed.method = method::Method::of(method.as_str().as_bytes());
    parsed.method_text = Span::new(0, method.as_str().len());
    let target_start = method.as_str().len() + 1;
    parsed.target = Span::new(target_start, target_start + target.len());
    parsed.len = Span::new(0, out.len() - start).end;
    if split_target(&out[start..], parsed).is_err() {
        out.truncate(start);
        return Err(Fault::TargetBad);
    }
    Ok(framing)
}

/// Writes every field but `host`; all cookies where the first one stands.
fn write_fields(head: &mut Head<'_>, headers: &HeaderMap) -> Result<Declared, Fault> {
    let mut declared = Declared::default();
    let mut cookies_written = false;
    for (name, value) in headers {
        let kind = checked(name, value)?;
        match kind {
            Name::Host => continue,
            Name::LookAlike => return Err(Fault::NameBad),
            Name::ContentLength if !declared.add(value.as_bytes())? => continue,
            Name::Other if name == header::COOKIE => {
                if !cookies_written {
                    cookies_written = true;
                    let all = headers.get_all(header::COOKIE).iter().map(|value| value.as_bytes());
                    head.joined(kind, b"cookie", all.filter(|value| !value.is_empty()), b"; ")?;
                }
                continue;
            }
            _ => {}
        }
        head.field(kind, name.as_str().as_bytes(), value.as_bytes())?;
    }
    Ok(declared)
}

fn check_method(method: &Method) -> Result<(), Fault> {
    match *method {
        Method::CONNECT | Method::TRACE => Err(Fault::MethodRefused),
        _ if method.as_str().len() > METHOD_BYTES_MAX => Err(Fault::MethodBad),
        _ => Ok(()),
    }
}

/// The target in origin-form, or the `*` of OPTIONS (RFC 9113 §8.3.1).
fn target_of<'a>(method: &Method, uri: &'a Uri) -> Result<&'a [u8], Fault> {
    // A scheme without meaning here would have paths with another meaning, too.
    if uri.scheme_str().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        return Err(Fault::SchemeBad);
    }
    let target = uri.path_and_query().ok_or(Fault::TargetBad)?.as_str().as_bytes();
    let good = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    match target {
        b"*" if *method == Method::OPTIONS => Ok(target),
        [b'/', ..] if target.iter().all(good) => Ok(target),
        _ => Err(Fault::TargetBad),
    }
}

/// Who is asked: `:authority`, else `host`; both have to be the same (RFC 9113 §8.3.1).
fn authority_of<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a [u8], Fault> {
    // A walk: cheaper than the hash of a name, as few as they are.
    let mut hosts = headers.iter().filter(|(name, _)| *name == header::HOST);
    let host = hosts.next().map(|(_, value)| value.as_bytes());
    if hosts.next().is_some() {
        return Err(Fault::HostTwice);
    }
    let authority = uri.authority().map(|authority| authority.as_str().as_bytes());
    let chosen = match (authority, host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => {
            return Err(Fault::HostConflict);
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) => return Err(Fault::AuthorityMissing),
    };
    if chosen.contains(&b'@') {
        return Err(Fault::UserInfo);
    }
    if is_authority(chosen) { Ok(chosen) } else { Err(Fault::AuthorityBad) }
}

/// The target of a fuzzer: lines of method, authority, path and fields. A head that is written is
/// read by our parser as exactly what was asked; one that is refused leaves nothing behind.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&choice, text)) = data.split_first() else { return };
    let mut lines = text.split(|&byte| byte == b'\n');
    let mut next = || lines.next().unwrap_or_default();
    let Ok(method) = Method::from_bytes(next()) else { return };
    let Some(uri) = uri_for_fuzz(next(), next()) else { return };
    let mut headers = HeaderMap::new();
    for line in lines.take(200) {
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        // What the `http` crate refuses never gets here.
        let _ = super::fields::append(&mut headers, &line[..colon], value);
    }
    let ends = Ends::of(choice & 1 == 0);
    let limits = match choice & 2 {
        0 => HeadLimits::default(),
        _ => HeadLimits { head_bytes_max: 256, fields_max: 6, target_bytes_max: 32 },
    };
    let mut out = b"before".to_vec();
    let mut parsed = RequestHead::new();
    match write_head(&mut out, &mut parsed, &method, &uri, &headers, ends, &limits) {
        Err(_) => assert_eq!(out, b"before", "a refused request leaves nothing behind"),
        Ok(framing) => {
            let wire = &out["before".len()..];
            assert_reads_back(wire, &parsed, &method, &uri, &headers, framing, &limits);
        }
    }
}

fn uri_for_fuzz(authority: &[u8], path: &[u8]) -> Option<Uri> {
    let mut parts = http::uri::Parts::default();
    if !authority.is_empty() {
        parts.authority = Some(authority.try_into().ok()?);
        parts.scheme = Some(http::uri::Scheme::HTTPS);
    }
    parts.path_and_query = Some(path.try_into().ok()?);
    Uri::from_parts(parts).ok()
}

/// Holds what was noted while a head was written to what the parser finds in it.
fn assert_same(parsed: &RequestHead, reread: &RequestHead, wire: &[u8]) {
    assert_eq!(
        (parsed.method, parsed.version, parsed.len),
        (reread.method, reread.version, reread.len)
    );
    assert_eq!((parsed.method_text, parsed.target), (reread.method_text, reread.target));
    assert_eq!(parsed.start_line_end, reread.start_line_end);
    assert_eq!(parsed.target_authority, reread.target_authority);
    assert_eq!(
        (parsed.target_path, parsed.target_query),
        (reread.target_path, reread.target_query)
    );
    assert_same_fields(&parsed.fields, &reread.fields, wire);
}

/// Holds a written head to what was asked, by another way than it was written.
fn assert_reads_back(
    wire: &[u8],
    parsed: &RequestHead,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    framing: BodyFraming,
    limits: &HeadLimits,
) {
    use crate::http1::{
        framing::{Framing, request_framing},
        parse::{Parse, parse_request},
    };
    let mut head = RequestHead::new();
    let reread = parse_request(wire, &mut 0, limits, &mut head);
    assert_eq!(reread, Ok(Parse::Done), "{}", wire.escape_ascii());
    assert_eq!(head.len as usize, wire.len());
    assert_same(parsed, &head, wire);
    let ends = wire.windows(4).filter(|window| window == b"\r\n\r\n").count();
    assert!(ends == 1 && wire.ends_with(b"\r\n\r\n"), "one end, at the end");
    assert_eq!(request_framing(&head, wire), Ok(Framing::from(framing)));
    assert_eq!(head.method_text.of(wire), method.as_str().as_bytes());
    assert_eq!(Some(head.target.of(wire)), uri.path_and_query().map(|p| p.as_str().as_bytes()));

    let mut expected: Vec<(&str, Vec<u8>)> = Vec::new();
    for (name, value) in headers {
        let earlier = expected.iter_mut().find(|(earlier, _)| *earlier == name);
        match (name.as_str(), earlier) {
            ("host", _) | ("content-length", Some(_)) => {}
            ("cookie", Some((_, cookies))) => {
                if !cookies.is_empty() && !value.is_empty() {
                    cookies.extend_from_slice(b"; ");
                }
                cookies.extend_from_slice(value.as_bytes());
            }
            (name, _) => expected.push((name, value.as_bytes().to_vec())),
        }
    }
    let host = uri.authority().map(|authority| authority.as_str().as_bytes());
    let host = host.or(headers.get("host").map(|host| host.as_bytes())).unwrap_or_default();
    expected.insert(0, ("Host", host.to_vec()));
    match framing {
        BodyFraming::Chunked => expected.push(("transfer-encoding", b"chunked".to_vec())),
        BodyFraming::Length(0) if !headers.contains_key("content-length") => {
            expected.push(("content-length", b"0".to_vec()));
        }
        BodyFraming::None | BodyFraming::Length(_) => {}
    }
    let read = head.fields.iter().map(|field| (field.name.of(wire), field.value.of(wire).to_vec()));
    let expected = expected.into_iter().map(|(name, value)| (name.as_bytes(), value));
    assert!(read.eq(expected), "{}", wire.escape_ascii());
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::{prelude::*, sample::select};

    use super::*;

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 2_000, fields_max: 20, target_bytes_max: 100 };

    type Fields<'a> = &'a [(&'static str, &'static str)];

    fn map(fields: Fields<'_>) -> HeaderMap {
        let mut map = HeaderMap::new();
        for &(name, value) in fields {
            map.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        map
    }

    fn written(
        method: &str,
        uri: &str,
        fields: Fields<'_>,
        ends: Ends,
    ) -> Result<(String, BodyFraming), Fault> {
        let method = Method::from_bytes(method.as_bytes()).expect("a token");
        let uri: Uri = uri.parse().expect("a uri");
        let mut out = Vec::new();
        let framing = write_head(
            &mut out,
            &mut RequestHead::new(),
            &method,
            &uri,
            &map(fields),
            ends,
            &LIMITS,
        )?;
        Ok((String::from_utf8(out).expect("ascii"), framing))
    }

    /// How a request with these fields, good or not, has its body framed.
    fn framed(
        method: &Method,
        uri: &'static str,
        headers: &HeaderMap,
        ends: Ends,
    ) -> Result<BodyFraming, Fault> {
        let (mut out, mut parsed) = (Vec::new(), RequestHead::new());
        write_head(&mut out, &mut parsed, method, &Uri::from_static(uri), headers, ends, &LIMITS)
    }

    fn check(method: &str, uri: &str, fields: Fields<'_>, ends: Ends, lines: &str) {
        let (head, _) = written(method, uri, fields, ends).expect("good");
        assert_eq!(head, format!("{lines}\r\n"));
    }

    /// A row of `GET https://h/` with these fields, that is refused whatever follows it.
    fn refused(fields: Fields<'_>, fault: Fault) {
        for ends in [Ends::WithHead, Ends::Later] {
            assert_eq!(written("POST", "https://h/", fields, ends), Err(fault), "{fields:?}");
        }
    }

    #[test]
    fn a_request_is_written() {
        check(
            "GET",
            "https://h:8443/a/b?c=%20d",
            &[("accept", "*/*"), ("x-a", "1"), ("x-a", ""), ("te", "trailers")],
            Ends::WithHead,
            "GET /a/b?c=%20d HTTP/1.1\r\nHost: h:8443\r\naccept: */*\r\nx-a: 1\r\nx-a: \r\n\
             te: trailers\r\n",
        );
        check(
            "OPTIONS",
            "*",
            &[("host", "h")],
            Ends::WithHead,
            "OPTIONS * HTTP/1.1\r\nHost: h\r\n",
        );
        check(
            "GET",
            "/",
            &[("host", "[::1]")],
            Ends::WithHead,
            "GET / HTTP/1.1\r\nHost: [::1]\r\n",
        );
        check("QUERY", "http://h", &[], Ends::WithHead, "QUERY / HTTP/1.1\r\nHost: h\r\n");
    }

    #[test]
    fn a_body_is_framed_by_its_length_or_in_chunks() {
        let framing = |method: &str, fields: Fields<'_>, ends| {
            written(method, "https://h/", fields, ends).map(|(head, framing)| {
                let chunked = head.contains("\r\ntransfer-encoding: chunked\r\n");
                assert_eq!(chunked, framing == BodyFraming::Chunked);
                let lengths = head.matches("content-length").count();
                assert_eq!(lengths == 1, matches!(framing, BodyFraming::Length(_)));
                framing
            })
        };
        use BodyFraming::{Chunked, Length, None as NoBody};
        use Ends::{Later, WithHead};
        assert_eq!(framing("POST", &[("content-length", "5")], Later), Ok(Length(5)));
        assert_eq!(
            framing("POST", &[("content-length", "5"), ("content-length", "5")], Later),
            Ok(Length(5))
        );
        assert_eq!(framing("POST", &[], Later), Ok(Chunked));
        assert_eq!(framing("GET", &[], Later), Ok(Chunked));
        assert_eq!(framing("GET", &[], WithHead), Ok(NoBody));
        assert_eq!(framing("DELETE", &[], WithHead), Ok(NoBody));
        for method in ["POST", "PUT", "PATCH"] {
            assert_eq!(framing(method, &[], WithHead), Ok(Length(0)));
            assert_eq!(framing(method, &[("content-length", "0")], WithHead), Ok(Length(0)));
        }
        let fault = framing("POST", &[("content-length", "1")], WithHead);
        assert_eq!(fault, Err(Fault::LengthWithoutBody));
    }

    #[test]
    fn cookies_become_one_where_the_first_stands() {
        check(
            "GET",
            "https://h/",
            &[("cookie", "a=1"), ("x", "y"), ("cookie", ""), ("cookie", "b=2; c=3")],
            Ends::WithHead,
            "GET / HTTP/1.1\r\nHost: h\r\ncookie: a=1; b=2; c=3\r\nx: y\r\n",
        );
    }

    #[test]
    fn attempts_to_smuggle_are_refused() {
        for name in ["connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding"]
        {
            for value in ["", "chunked", "close", "identity", "h2c"] {
                let mut headers = HeaderMap::new();
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
                let got = framed(&Method::POST, "https://h/", &headers, Ends::Later);
                assert_eq!(got, Err(Fault::ConnectionSpecific), "{name}: {value}");
            }
        }
        refused(&[("te", "gzip")], Fault::TeBad);
        refused(&[("te", "trailers, chunked")], Fault::TeBad);
        refused(&[("te", "trailers"), ("te", "gzip")], Fault::TeBad);
        refused(&[("content-length", "5"), ("content-length", "6")], Fault::LengthConflict);
        for bad in ["", "5, 5", "+5", "-5", "0x5", "5;a", "18446744073709551616", "5 5"] {
            let headers =
                HeaderMap::from_iter([(header::CONTENT_LENGTH, HeaderValue::from_static(bad))]);
            let got = framed(&Method::POST, "https://h/", &headers, Ends::Later);
            assert_eq!(got, Err(Fault::LengthBad), "{bad:?}");
        }
        refused(&[("x", " a")], Fault::ValuePadded);
        refused(&[("x", "a\t")], Fault::ValuePadded);
        refused(&[("content-length", " 5")], Fault::ValuePadded);
        refused(&[("transfer-encoding", " chunked")], Fault::ValuePadded);
        refused(&[("cookie", "a"), ("cookie", " b")], Fault::ValuePadded);
    }

    #[test]
    fn one_length_may_be_said_twice() {
        let fields: Fields<'_> = &[("content-length", "5"), ("content-length", "5")];
        let (head, framing) = written("POST", "https://h/", fields, Ends::Later).expect("good");
        assert_eq!(framing, BodyFraming::Length(5));
        assert_eq!(head.matches("content-length: 5\r\n").count(), 1);
        refused(&[("content-length", "5"), ("content-length", "05")], Fault::LengthBad);
    }

    #[test]
    fn what_looks_like_another_name_is_refused() {
        for name in ["content_length", "transfer_encoding", "x_api_key", "x-forwarded_for"] {
            refused(&[(name, "1")], Fault::NameBad);
        }
    }

    #[test]
    fn what_the_http_crate_lets_no_one_make_cannot_come() {
        for bad in ["a\r\nb: c", "a\nb", "a\rb", "a\0", "\x7f"] {
            assert!(HeaderValue::from_bytes(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in [" host", "host ", "a b", ":path", "a:b", "a\r\nb", ""] {
            assert!(HeaderName::from_bytes(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in ["/a b", "/a\r\nb", "/a\tb", "/a\0", "/ HTTP/1.1\r\nx: y"] {
            assert!(http::uri::PathAndQuery::try_from(bad).is_err(), "{bad:?}");
        }
        for bad in ["GET /", "GET\r\n", "", "a b"] {
            assert!(Method::from_bytes(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn host_and_authority_are_one() {
        let got = |uri: &str, fields: Fields<'_>| {
            written("GET", uri, fields, Ends::WithHead).map(|(head, _)| {
                let host = head.lines().find_map(|line| line.strip_prefix("Host: "));
                host.expect("a host").to_owned()
            })
        };
        assert_eq!(got("https://h/", &[("host", "H")]), Ok("h".into()));
        assert_eq!(got("/", &[("host", "h:1")]), Ok("h:1".into()));
        assert_eq!(got("https://h/", &[("host", "g")]), Err(Fault::HostConflict));
        assert_eq!(got("https://h/", &[("host", "h:443")]), Err(Fault::HostConflict));
        assert_eq!(got("https://h/", &[("host", "")]), Err(Fault::HostConflict));
        assert_eq!(got("https://h/", &[("host", "h"), ("host", "h")]), Err(Fault::HostTwice));
        assert_eq!(got("/", &[("host", "h"), ("host", "g")]), Err(Fault::HostTwice));
        assert_eq!(got("/", &[]), Err(Fault::AuthorityMissing));
        assert_eq!(got("https://u@h/", &[]), Err(Fault::UserInfo));
        assert_eq!(got("https://u:p@h/", &[("host", "h")]), Err(Fault::HostConflict));
        assert_eq!(got("/", &[("host", "u@h")]), Err(Fault::UserInfo));
        for bad in ["", "a b", "h/", "a,b", "h:x", "h:65536", "h\\", "[::1", " "] {
            let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(bad))]);
            let got = framed(&Method::GET, "/", &headers, Ends::WithHead);
            assert_eq!(got, Err(Fault::AuthorityBad), "{bad:?}");
        }
        assert_eq!(got("https://a!b/", &[]), Err(Fault::AuthorityBad));
    }

    #[test]
    fn a_target_is_a_path_or_the_asterisk_of_options() {
        let got = |method: &str, uri: &str| {
            written(method, uri, &[("host", "h")], Ends::WithHead).map(|_| ())
        };
        assert_eq!(got("GET", "/a//b/../c?d?e"), Ok(()));
        assert_eq!(got("OPTIONS", "*"), Ok(()));
        assert_eq!(got("GET", "*"), Err(Fault::TargetBad));
        assert_eq!(got("GET", "http://h?a"), Err(Fault::TargetBad));
        assert_eq!(got("GET", "/caf\u{e9}"), Err(Fault::TargetBad));
        assert_eq!(got("GET", "/a?\u{e9}"), Err(Fault::TargetBad));
        assert_eq!(got("GET", "h"), Err(Fault::TargetBad));
        assert_eq!(got("GET", "ftp://h/"), Err(Fault::SchemeBad));
    }

    #[test]
    fn connect_and_trace_are_refused() {
        assert_eq!(written("CONNECT", "h:443", &[], Ends::Later), Err(Fault::MethodRefused));
        assert_eq!(written("TRACE", "https://h/", &[], Ends::WithHead), Err(Fault::MethodRefused));
        let long = "M".repeat(METHOD_BYTES_MAX + 1);
        assert_eq!(written(&long, "https://h/", &[], Ends::WithHead), Err(Fault::MethodBad));
        assert!(written(&long[1..], "https://h/", &[], Ends::WithHead).is_ok());
    }

    #[test]
    fn a_head_outgrows_no_limit() {
        let uri: Uri = format!("https://h/{}", "a".repeat(99)).parse().expect("a uri");
        let headers: HeaderMap = (0..18)
            .map(|n| {
                let name = HeaderName::try_from(format!("x-{n}")).expect("a name");
                (name, HeaderValue::from_static("v"))
            })
            .collect();
        let got = |uri: &Uri, headers: &HeaderMap, limits: &HeadLimits| {
            let mut out = b"kept".to_vec();
            let got = write_head(
                &mut out,
                &mut RequestHead::new(),
                &Method::GET,
                uri,
                headers,
                Ends::Later,
                limits,
            );
            assert!(got.is_ok() || out == b"kept");
            (got, out.len() - 4)
        };
        // Host, 18 fields and the coding are 20 lines.
        let (good, bytes) = got(&uri, &headers, &LIMITS);
        assert_eq!(good, Ok(BodyFraming::Chunked));
        let exact = HeadLimits { head_bytes_max: bytes, ..LIMITS };
        assert_eq!(got(&uri, &headers, &exact).0, Ok(BodyFraming::Chunked));
        for head_bytes_max in 0..bytes {
            let limits = HeadLimits { head_bytes_max, ..LIMITS };
            assert_eq!(got(&uri, &headers, &limits).0, Err(Fault::HeadTooLarge));
        }
        let limits = HeadLimits { fields_max: 19, ..LIMITS };
        assert_eq!(got(&uri, &headers, &limits).0, Err(Fault::TooManyFields));
        let limits = HeadLimits { target_bytes_max: 99, ..LIMITS };
        assert_eq!(got(&uri, &headers, &limits).0, Err(Fault::TargetTooLong));
        let mut cookies = HeaderMap::new();
        for _ in 0..1_000 {
            cookies.append(header::COOKIE, HeaderValue::from_static("a=b"));
        }
        assert_eq!(got(&uri, &cookies, &LIMITS).0, Err(Fault::HeadTooLarge));
    }

    /// Requests as a hostile client would compose them, as the text that `fuzz` reads.
    fn recipes() -> impl Strategy<Value = Vec<u8>> {
        let method = select(vec!["GET", "POST", "OPTIONS", "CONNECT", "HEAD", "QUERY"]);
        let authority = select(vec!["h", "h:80", "", "[::1]:8", "u@h", "H", "h:", "a_b"]);
        let path = prop_oneof![
            4 => select(vec!["/", "/a?b", "*", "/a/../b", "?q", "//x"]).prop_map(String::from),
            1 => "/[ -~]{0,40}",
        ];
        let good = select(vec![
            "a:b",
            "x:",
            "content-length:5",
            "cookie:a=b",
            "cookie:",
            "host:h",
            "te:trailers",
            "Accept:*/*",
            "x:a\tb",
            "content-length:0",
            "expect:100-continue",
        ]);
        let bad = select(vec![
            "transfer-encoding:chunked",
            "connection:close",
            "host:g",
            "content-length:6",
            "x: padded",
            "te:gzip",
            "upgrade:h2c",
        ]);
        let line = prop_oneof![
            14 => good.prop_map(|line| line.as_bytes().to_vec()),
            1 => bad.prop_map(|line| line.as_bytes().to_vec()),
            2 => ("[a-z]{1,6}:", prop::collection::vec(any::<u8>(), 0..8))
                .prop_map(|(name, value)| [name.as_bytes(), &value].concat()),
        ];
        let lines = prop::collection::vec(line, 0..8);
        (any::<u8>(), method, authority, path, lines).prop_map(
            |(choice, method, authority, path, lines)| {
                let mut data = vec![choice];
                data.extend_from_slice(format!("{method}\n{authority}\n{path}").as_bytes());
                lines.iter().for_each(|line| {
                    data.push(b'\n');
                    data.extend_from_slice(line);
                });
                data
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_it_was_meant(data in recipes()) {
            fuzz(&data);
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
        }
    }
}
