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
