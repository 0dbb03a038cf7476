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
/// Errors: `TargetBad` for a target that HTTP/1.1 allows and the `http` crate does not: the
/// request's fault, not the server's. `TargetTooLong` beyond 64 KiB. Those of a head that the proxy
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
    head::write(out, limits, |head| {
        head.status_line(status.as_u16())?;
        let mut declared = Declared::default();
        for (name, value) in headers {
            let is_length = checked(name, value)? == Name::ContentLength;
            if is_length && (!declared.add(value.as_bytes())? || has_no_length) {
                continue;
            }
            head.field(name.as_str().as_bytes(), value.as_bytes())?;
        }
        if bodiless {
            return Ok(BodyFraming::None);
        }
        match (declared.framing(ends)?, ends) {
            (Some(framing), _) => Ok(framing),
            (None, Ends::WithHead) => {
                head.field(b"content-length", b"0")?;
                Ok(BodyFraming::Length(0))
            }
            (None, Ends::Later) => {
                head.field(b"transfer-encoding", b"chunked")?;
                Ok(BodyFraming::Chunked)
            }
        }
    })
}
