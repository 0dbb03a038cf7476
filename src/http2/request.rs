//! A request that came by HTTP/2 → the head of an HTTP/1.1 request.
//!
//! The one idea: what is written here is read again by our own parser, as if the client had spoken
//! HTTP/1.1, and nothing else knows that it did not. So the head must say one thing only: whatever
//! two readers could take in two ways is refused here, and whatever the parser would refuse is
//! refused here first, under a better name.
//!
//! RFC 9113 §8.2 (fields), §8.3.1 (pseudo-fields), §8.1.1 (malformed), §10.3 (what HTTP/1.1 cannot
//! carry); RFC 9112 §11.2 on smuggling, and the research that made it famous for HTTP/2: Kettle,
//! "HTTP/2: The Sequel is Always Worse" (2021).
//!
//! Not here: what was lost before. The `http` crate cuts a fragment off a path; a pseudo-field
//! that is unknown, missing or late is refused by the `h2` crate.

use http::{HeaderMap, Method, Uri, header};

use super::{
    fault::Fault,
    fields::checked,
    framing::{BodyFraming, Declared, Ends},
    head::{self, Head},
};
use crate::{
    http::name::Name,
    http1::{
        parse::{HeadLimits, METHOD_BYTES_MAX},
        target::is_authority,
    },
};

/// Writes the head of the HTTP/1.1 request that says the same, the blank line included.
///
/// Shape: appends to `out`, or leaves it as it was when the request is refused. `Host` comes first,
/// then the fields in the order of the map, duplicates kept; `cookie` fields become one (RFC 9113
/// §8.2.3). A length that was given stays where it was, once. Without one, a body is chunked; a
/// request without a body says `content-length: 0` where the method leads to expect one. `te` is
/// kept: whether the client reads trailers is for the exchange to know.
/// Returns how the bridge has to write the body.
/// Errors: `MethodRefused` for CONNECT and TRACE; every other [`Fault`] but those of status and
/// trailers.
/// Source: RFC 9113 §8.1.1, §8.2, §8.3.1; RFC 9112 §3.2, §6.3.
pub fn write_head(
    out: &mut Vec<u8>,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    ends: Ends,
    limits: &HeadLimits,
) -> Result<BodyFraming, Fault> {
    check_method(method)?;
    let target = target_of(method, uri)?;
    let authority = authority_of(uri, headers)?;
    head::write(out, limits, |head| {
        head.request_line(method.as_str().as_bytes(), target)?;
        head.field(b"Host", authority)?;
        let declared = write_fields(head, headers)?;
        if let Some(framing) = declared.framing(ends)? {
            return Ok(framing);
        }
        match (ends, method) {
            (Ends::Later, _) => {
                head.field(b"transfer-encoding", b"chunked")?;
                Ok(BodyFraming::Chunked)
            }
            (Ends::WithHead, &Method::POST | &Method::PUT | &Method::PATCH) => {
                head.field(b"content-length", b"0")?;
                Ok(BodyFraming::Length(0))
            }
            (Ends::WithHead, _) => Ok(BodyFraming::None),
        }
    })
}

/// Writes every field but `host`; all cookies where the first one stands.
fn write_fields(head: &mut Head<'_>, headers: &HeaderMap) -> Result<Declared, Fault> {
    let mut declared = Declared::default();
    let mut cookies_written = false;
    for (name, value) in headers {
        match checked(name, value)? {
            Name::Host => continue,
            Name::ContentLength if !declared.add(value.as_bytes())? => continue,
            Name::Other if name == header::COOKIE => {
                if !cookies_written {
                    cookies_written = true;
                    let all = headers.get_all(header::COOKIE).iter().map(|value| value.as_bytes());
                    head.joined(b"cookie", all.filter(|value| !value.is_empty()), b"; ")?;
                }
                continue;
            }
            _ => {}
        }
        head.field(name.as_str().as_bytes(), value.as_bytes())?;
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
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|value| value.as_bytes());
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
