//! The response head as it goes to the client, and the body's framing on our side of it.
//!
//! Field lines that need no change are copied as they came. The framing is the upstream's wherever
//! the client understands it; only a client of HTTP/1.0 and a body that ends with its connection
//! need another.

use super::body_filter::{BodyFilter, Form};
use super::refusal::Caller;
use super::reply::connection_field;
use crate::http::head::{ResponseHead, Version};
use crate::http::name::Name;
use crate::http1::body::{BodyFault, BodyReader, is_forbidden};
use crate::http1::encode;
use crate::http1::framing::Framing;

/// How the body reaches the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No body.
    Nothing,
    /// Bytes as they come: length or chunks.
    AsIs,
    /// An upstream's body that ends with its connection, put into chunks.
    IntoChunks,
    /// Data bytes alone, until we close.
    UntilClose,
}

impl Delivery {
    /// Chooses by what is done to the bytes, the upstream's framing and the client's version.
    #[must_use]
    pub fn of(filter: &Form, framing: Framing, client: Version) -> Self {
        match filter {
            // Untouched, so that the framing still fits.
            Form::Pass(_) | Form::Observe(_) => Self::of_untouched(framing, client),
        }
    }

    fn of_untouched(framing: Framing, client: Version) -> Self {
        match (framing, client) {
            (Framing::None, _) => Delivery::Nothing,
            (Framing::Length(_), _) | (Framing::Chunked, Version::Http11) => Delivery::AsIs,
            (Framing::UntilClose, Version::Http11) => Delivery::IntoChunks,
            (Framing::Chunked | Framing::UntilClose, Version::Http10) => Delivery::UntilClose,
        }
    }
}

/// Writes the head of a relayed response.
///
/// Shape: `keep` tells whether our connection to the client goes on; for `UntilClose` it cannot.
pub fn head(
    out: &mut Vec<u8>,
    response: &ResponseHead,
    bytes: &[u8],
    framing: Framing,
    delivery: Delivery,
    caller: &Caller,
    keep: bool,
) {
    encode::status_line(out, response.status, response.reason.of(bytes));
    encode::copy_response_fields(out, response, bytes, |field| {
        match field.name_kind {
            // A length beside our chunks would contradict them.
            Name::ContentLength => delivery == Delivery::IntoChunks,
            Name::Other => {
                let name = field.name.of(bytes);
                caller.standing.owns(name) || caller.cors.owns(name)
            }
            _ => false,
        }
    });
    if delivery == Delivery::IntoChunks
        || (delivery == Delivery::AsIs && framing == Framing::Chunked)
    {
        encode::field(out, b"transfer-encoding", b"chunked");
    }
    if !response.fields.has(Name::XRequestId) {
        encode::field(out, b"x-request-id", caller.id.as_bytes());
    }
    caller.cors.write(out);
    caller.standing.write(out);
    connection_field(out, caller.version, keep);
    encode::end_of_head(out);
}

/// Trailers of an answer, held back until they are whole: what a client could merge into the head
/// is dropped (RFC 9110 §6.5.1). Since trailers end the body, nothing else is delayed.
#[derive(Default)]
pub struct Trailers {
    lines: Vec<u8>,
}

impl Trailers {
    /// Takes the trailer bytes out of the end of `out`, where this body begins at `from`; appends
    /// the trailers that may pass once all are here.
    ///
    /// Shape: `reader` has just read these bytes.
    #[cold]
    pub fn hold_back(&mut self, reader: &BodyReader, out: &mut Vec<u8>, from: usize) {
        // All lines so far less those that are held already; behind them is the blank line.
        let (lines, blank) = reader.trailer_end();
        let end = out.len().saturating_sub(blank).max(from);
        let start = end.saturating_sub(lines.saturating_sub(self.lines.len())).max(from);
        self.lines.extend_from_slice(&out[start..end]);
        out.truncate(start);
        if reader.is_done() {
            for line in self.lines.split_inclusive(|&byte| byte == b'\n') {
                let name = memchr::memchr(b':', line).map_or(line, |colon| &line[..colon]);
                if !is_forbidden(Name::of(name)) {
                    out.extend_from_slice(line);
                }
            }
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Checks wire bytes against their framing and shows the data to the filter.
///
/// Shape: returns how many bytes belong to this body and whether it is complete.
/// Errors: the fault, with the count of good bytes before it.
pub fn check(
    reader: &mut BodyReader,
    input: &[u8],
    filter: &mut BodyFilter,
) -> (usize, bool, Option<BodyFault>) {
    let mut at = 0;
    while !reader.is_done() && at < input.len() {
        match reader.step(&input[at..]) {
            Ok(step) => {
                filter.push(&input[at..][step.data]);
                at += step.consumed;
            }
            Err(fault) => return (at, false, Some(fault)),
        }
    }
    (at, reader.is_done(), None)
}

/// As `check`, and appends what goes to the client to `out`.
pub fn pour(
    reader: &mut BodyReader,
    input: &[u8],
    delivery: Delivery,
    filter: &mut BodyFilter,
    out: &mut Vec<u8>,
) -> (usize, bool, Option<BodyFault>) {
    if delivery == Delivery::AsIs {
        let checked = check(reader, input, filter);
        out.extend_from_slice(&input[..checked.0]);
        return checked;
    }
    let mut at = 0;
    while !reader.is_done() && at < input.len() {
        match reader.step(&input[at..]) {
            Ok(step) => {
                let data = &input[at..][step.data];
                filter.push(data);
                match delivery {
                    Delivery::IntoChunks if !data.is_empty() => encode::chunk(out, data),
                    Delivery::UntilClose => out.extend_from_slice(data),
                    _ => {}
                }
                at += step.consumed;
            }
            Err(fault) => return (at, false, Some(fault)),
        }
    }
    (at, reader.is_done(), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::WallTime;
    use crate::base::ids::RequestId;
    use crate::http1::parse::{HeadLimits, Parse, parse_response};
    use crate::llm::reply::Dialect;
    use crate::policy::limit::standing::{Share, Standing};
    use crate::proxy::refusal::CorsLines;

    fn relayed(standing: Standing) -> String {
        let bytes = b"HTTP/1.1 200 OK\r\nX-RateLimit-Remaining-Minute: 99\r\n\
            x-ratelimit-remaining-requests: 7\r\nContent-Length: 0\r\n\r\n";
        let limits = HeadLimits { head_bytes_max: 1000, fields_max: 9, target_bytes_max: 0 };
        let mut response = ResponseHead::new();
        assert_eq!(parse_response(bytes, &mut 0, &limits, &mut response), Ok(Parse::Done));
        let caller = Caller {
            id: RequestId::new(WallTime::default(), 0),
            dialect: Dialect::OpenAi,
            version: Version::Http11,
            persists: true,
            head_only: false,
            standing,
            cors: CorsLines::default(),
        };
        let mut out = Vec::new();
        let (framing, delivery) = (Framing::Length(0), Delivery::AsIs);
        head(&mut out, &response, bytes, framing, delivery, &caller, true);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_upstreams_windows_are_not_taken_for_ours() {
        let minute = Some(Share { limit: 5, left: 4 });
        let ours = relayed(Standing { minute, day: None });
        assert_eq!(ours.to_lowercase().matches("x-ratelimit-remaining-minute").count(), 1);
        assert!(ours.contains("x-ratelimit-remaining-minute: 4\r\n"), "{ours}");
        assert!(ours.contains("x-ratelimit-remaining-requests: 7\r\n"), "{ours}");
        // Where we have nothing to tell, the upstream may.
        assert!(relayed(Standing::default()).contains("X-RateLimit-Remaining-Minute: 99\r\n"));
    }
}
