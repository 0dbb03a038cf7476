//! Which fields may cross, in both directions.
//!
//! Towards HTTP/1.1 every field is checked though the `h2` crate has checked it: a value with CR
//! and LF in it would be two lines there (RFC 9113 §10.3), and the two checks share no code.
//! Towards HTTP/2 the fields of one connection end here (RFC 9113 §8.2.2), and names are written
//! in lower case, as the `http` crate has them anyway.

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::fault::Fault;
use crate::http::{
    fields::{ConnectionTokens, is_hop_by_hop, is_token_byte, is_value_byte},
    head::{Field, Fields},
    name::Name,
};

// Clones of these cost no allocation.
static X_REQUEST_ID: HeaderName = HeaderName::from_static(Name::XRequestId.text());
static JSON: HeaderValue = HeaderValue::from_static("application/json");
static EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// Tells which field it is, once it is known to be fit for HTTP/1.1.
///
/// Errors: `NameBad`, `ValueBad`, `ValuePadded`, `ConnectionSpecific`, `TeBad`.
/// Source: RFC 9113 §8.2.1, §8.2.2.
pub(super) fn checked(name: &HeaderName, value: &HeaderValue) -> Result<Name, Fault> {
    let kind = Name::of(name.as_str().as_bytes());
    // One that is known, and in lower case, needs no look at each byte.
    if kind == Name::Other || name.as_str() != kind.text() {
        check_name(name.as_str().as_bytes())?;
    }
    check_value(value.as_bytes())?;
    match kind {
        Name::Connection
        | Name::KeepAlive
        | Name::ProxyConnection
        | Name::TransferEncoding
        | Name::Upgrade => Err(Fault::ConnectionSpecific),
        Name::Te if !value.as_bytes().eq_ignore_ascii_case(b"trailers") => Err(Fault::TeBad),
        _ => Ok(kind),
    }
}

/// A token without upper case; so neither a pseudo-field nor anything with a colon in it.
pub(super) fn check_name(name: &[u8]) -> Result<(), Fault> {
    // Without a way out of the loop: names and values are short, and nearly all are good.
    let good = name.iter().fold(!name.is_empty(), |good, &byte| {
        good & is_token_byte(byte) & !byte.is_ascii_uppercase()
    });
    if good { Ok(()) } else { Err(Fault::NameBad) }
}

/// No control byte but the tab, and no white space at either end.
pub(super) fn check_value(value: &[u8]) -> Result<(), Fault> {
    if !value.iter().fold(true, |good, &byte| good & is_value_byte(byte)) {
        return Err(Fault::ValueBad);
    }
    match value {
        [b' ' | b'\t', ..] | [.., b' ' | b'\t'] => Err(Fault::ValuePadded),
        _ => Ok(()),
    }
}

/// The fields of an HTTP/1.1 head that may pass into HTTP/2, in order, duplicates kept.
///
/// Shape: those of one connection are left out, and those that `drop` says.
/// Errors: `NameBad`, `ValueBad` for what no parsed head has; `TooManyFields` beyond what the map
/// can hold (2^15).
pub(super) fn relayed(
    fields: &Fields,
    bytes: &[u8],
    mut drop: impl FnMut(&Field) -> Result<bool, Fault>,
) -> Result<HeaderMap, Fault> {
    let connection = ConnectionTokens::new(fields, bytes);
    let mut map = HeaderMap::try_with_capacity(fields.len()).map_err(|_| Fault::TooManyFields)?;
    for field in fields {
        if is_hop_by_hop(field.name_kind) || connection.names(field) || drop(field)? {
            continue;
        }
        let (name, value) = (field.name.of(bytes), field.value.of(bytes));
        append_known(&mut map, field.name_kind, name, value)?;
    }
    Ok(map)
}

/// Adds one field; obs-text (bytes of 0x80 and above) stays as it is.
pub(super) fn append(map: &mut HeaderMap, name: &[u8], value: &[u8]) -> Result<(), Fault> {
    append_known(map, Name::of(name), name, value)
}

/// As `append`, for a name that has been told apart already.
fn append_known(map: &mut HeaderMap, kind: Name, name: &[u8], value: &[u8]) -> Result<(), Fault> {
    let name = match known(kind) {
        Some(name) => name,
        None => HeaderName::from_bytes(name).map_err(|_| Fault::NameBad)?,
    };
    let mut value = match (kind, value) {
        (Name::ContentType, b"application/json") => JSON.clone(),
        (Name::ContentType, b"text/event-stream") => EVENTS.clone(),
        _ => HeaderValue::from_bytes(value).map_err(|_| Fault::ValueBad)?,
    };
    value.set_sensitive(never_repeats(kind, &name));
    map.try_append(name, value).map(|_| ()).map_err(|_| Fault::TooManyFields)
}

/// The name without a look at its bytes, for those that most messages have.
fn known(kind: Name) -> Option<HeaderName> {
    Some(match kind {
        Name::ContentType => header::CONTENT_TYPE,
        Name::ContentLength => header::CONTENT_LENGTH,
        Name::ContentEncoding => header::CONTENT_ENCODING,
        Name::Date => header::DATE,
        Name::Server => header::SERVER,
        Name::Authorization => header::AUTHORIZATION,
        Name::UserAgent => header::USER_AGENT,
        Name::XRequestId => X_REQUEST_ID.clone(),
        _ => return None,
    })
}

/// Whether a value is of this message alone, so that an HPACK table has no use for it.
///
/// Such values would push out the useful ones; and the `h2` crate, which compares a value with all
/// that the table holds under its name, would walk a full table for each message. They go as
/// literals that are never indexed (RFC 7541 §6.2.3).
fn never_repeats(kind: Name, name: &HeaderName) -> bool {
    match kind {
        Name::XRequestId => true,
        Name::Other => matches!(
            name.as_str(),
            "request-id"
                | "traceparent"
                | "cf-ray"
                | "openai-processing-ms"
                | "x-envoy-upstream-service-time"
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_http_1_would_read_otherwise_are_refused() {
        for bad in ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "\x7f", "\x1b[0m", "\r\n\r\nGET /"] {
            assert_eq!(check_value(bad.as_bytes()), Err(Fault::ValueBad), "{bad:?}");
            // The other check, not ours, says the same.
            assert!(HeaderValue::from_bytes(bad.as_bytes()).is_err(), "{bad:?}");
        }
        for bad in [" a", "a ", "\ta", "a\t", " ", "\t"] {
            assert_eq!(check_value(bad.as_bytes()), Err(Fault::ValuePadded), "{bad:?}");
        }
        for good in ["", "a", "a b", "a\tb", "caf\u{e9}", "\"q, r\"", ";", ":"] {
            assert_eq!(check_value(good.as_bytes()), Ok(()), "{good:?}");
        }
        assert_eq!(check_value(&[0x80, 0xff]), Ok(()));
    }

    #[test]
    fn names_are_lower_case_tokens() {
        for bad in ["", "A", "x-Y", ":path", ":", "a b", "a:", "a\r\n", "a\0", "caf\u{e9}", "a\t"] {
            assert_eq!(check_name(bad.as_bytes()), Err(Fault::NameBad), "{bad:?}");
        }
        for good in ["a", "x-y_z", "1", "!#$%&'*+-.^_`|~"] {
            assert_eq!(check_name(good.as_bytes()), Ok(()), "{good:?}");
        }
    }

    #[test]
    fn every_byte_is_judged_as_rfc_9113_section_8_2_1_wants() {
        for byte in 0..=255u8 {
            let value = [b'a', byte, b'a'];
            let forbidden = matches!(byte, 0..=8 | 10..=31 | 127);
            assert_eq!(check_value(&value).is_err(), forbidden, "{byte:#x}");
            let name = [byte];
            let bad = matches!(byte, 0..=0x20 | 0x41..=0x5a | 0x7f..=0xff | b':');
            assert!(!bad || check_name(&name).is_err(), "{byte:#x}");
        }
    }

    #[test]
    fn fields_of_a_connection_are_malformed() {
        let check = |name: &'static str, value: &'static str| {
            checked(&HeaderName::from_static(name), &HeaderValue::from_static(value))
        };
        for name in ["connection", "proxy-connection", "keep-alive", "upgrade", "transfer-encoding"]
        {
            assert_eq!(check(name, "x"), Err(Fault::ConnectionSpecific), "{name}");
        }
        assert_eq!(check("te", "trailers"), Ok(Name::Te));
        assert_eq!(check("te", "Trailers"), Ok(Name::Te));
        for bad in ["", "gzip", "trailers, gzip", "trailers;q=0.5", "chunked"] {
            assert_eq!(check("te", bad), Err(Fault::TeBad), "{bad}");
        }
        assert_eq!(check("host", "h"), Ok(Name::Host));
        assert_eq!(check("x-connection", "h"), Ok(Name::Other));
    }

    #[test]
    fn what_is_known_by_heart_is_what_its_bytes_say() {
        for &kind in Name::ALL {
            let mut map = HeaderMap::new();
            for value in [&b"application/json"[..], b"text/event-stream", b"x"] {
                append(&mut map, kind.text().to_ascii_uppercase().as_bytes(), value).unwrap();
            }
            let values: Vec<_> = map.get_all(kind.text()).iter().collect();
            assert_eq!(values, ["application/json", "text/event-stream", "x"], "{kind:?}");
        }
    }

    #[test]
    fn a_value_of_one_message_stays_out_of_the_tables() {
        let is_sensitive = |name: &str| {
            let mut map = HeaderMap::new();
            append(&mut map, name.as_bytes(), b"v").unwrap();
            map[name].is_sensitive()
        };
        for name in ["X-Request-Id", "request-id", "CF-RAY", "traceparent"] {
            assert!(is_sensitive(name), "{name}");
        }
        for name in ["content-type", "server", "x-other"] {
            assert!(!is_sensitive(name), "{name}");
        }
    }
}
