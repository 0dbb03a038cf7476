//! The generator's own codec: reads answers strictly, byte by byte if need be.
//!
//! The one idea: what a lenient client would forgive is what this one is for. The
//! body ends where RFC 9112 §6.3 says, and a byte more or less is an error with a
//! name. Interim answers (1xx) are passed over, as a client must.

use crate::chunked::{BadChunk, Chunks};

const HEAD_BYTES_MAX: usize = 1 << 20;
const FIELDS_MAX: usize = 512;

/// What is wrong with the bytes of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BadAnswer {
    /// Not an HTTP/1 response head.
    Head,
    /// More than one length, or a length together with chunks.
    Lengths,
    /// A chunked body that is not.
    Chunk,
    /// Bytes behind the end of an answer that nobody asked for.
    Extra,
}

/// A response head.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    pub(super) json: bool,
    pub(super) events: bool,
    pub(super) lines: bool,
    /// `x-mock-seed`, when the server is ours.
    pub(super) seed: Option<u64>,
    /// Whether the connection may carry another exchange.
    pub(super) keep: bool,
    framing: Framing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

impl Head {
    /// Reads a head: it and its length in bytes, or `None` for more.
    pub(super) fn parse(buf: &[u8]) -> Result<Option<(Head, usize)>, BadAnswer> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Response::new(&mut fields);
        let bytes = match parsed.parse(buf) {
            Ok(httparse::Status::Complete(bytes)) => bytes,
            Ok(httparse::Status::Partial) if buf.len() <= HEAD_BYTES_MAX => return Ok(None),
            _ => return Err(BadAnswer::Head),
        };
        // httparse passes over empty lines; between answers they are extra bytes.
        if !buf.starts_with(b"HTTP/1.") {
            return Err(BadAnswer::Head);
        }
        let values = |name: &'static str| {
            let named = parsed.headers.iter().filter(move |f| f.name.eq_ignore_ascii_case(name));
            named.map(|field| String::from_utf8_lossy(field.value).trim().to_ascii_lowercase())
        };
        let status = parsed.code.unwrap_or(0);
        let framing = framing(status, values("transfer-encoding"), values("content-length"))?;
        let content_type = values("content-type").next().unwrap_or_default();
        let says = |token| values("connection").any(|v| v.split(',').any(|t| t.trim() == token));
        let kept = if parsed.version == Some(0) { says("keep-alive") } else { !says("close") };
        let head = Head {
            status,
            json: content_type.starts_with("application/json"),
            events: content_type.starts_with("text/event-stream"),
            lines: content_type.starts_with("application/x-ndjson"),
            seed: values("x-mock-seed").next().and_then(|value| value.parse().ok()),
            keep: kept && framing != Framing::UntilClose,
            framing,
        };
        Ok(Some((head, bytes)))
    }

    /// A reader for the body behind this head.
    pub(super) fn body(&self) -> Body {
        match self.framing {
            Framing::Length(length) => Body::Length(length),
            Framing::Chunked => Body::Chunked(Chunks::new()),
            Framing::UntilClose => Body::UntilClose,
        }
    }
}

/// RFC 9112 §6.3 for the answer to a POST.
fn framing(
    status: u16,
    mut codings: impl Iterator<Item = String>,
    mut lengths: impl Iterator<Item = String>,
) -> Result<Framing, BadAnswer> {
    if matches!(status, 100..=199 | 204 | 304) {
        return Ok(Framing::Length(0));
    }
    match (codings.next(), lengths.next()) {
        (None, None) => Ok(Framing::UntilClose),
        (Some(coding), None) if coding == "chunked" && codings.next().is_none() => {
            Ok(Framing::Chunked)
        }
        (None, Some(length)) if lengths.next().is_none() => {
            let digits = length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits);
            length.map(Framing::Length).ok_or(BadAnswer::Lengths)
        }
        _ => Err(BadAnswer::Lengths),
    }
}

/// Reads a body out of what arrives.
#[derive(Debug)]
pub(super) enum Body {
    Length(u64),
    Chunked(Chunks),
    UntilClose,
}

impl Body {
    /// Moves data from the front of `input` to `out`; true when the body is complete.
    pub(super) fn take(
        &mut self,
        input: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<bool, BadAnswer> {
        match self {
            Body::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                out.extend(input.drain(..take));
                *left -= take as u64;
                Ok(*left == 0)
            }
            Body::Chunked(chunks) => {
                let taken = chunks.push(input, out).map_err(|_: BadChunk| BadAnswer::Chunk)?;
                input.drain(..taken);
                Ok(chunks.done())
            }
            Body::UntilClose => {
                out.append(input);
                Ok(false)
            }
        }
    }

    /// Whether the end of the connection is the end of this body.
    pub(super) fn ends_with_connection(&self) -> bool {
        matches!(self, Body::UntilClose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &str) -> Result<Head, BadAnswer> {
        let head = Head::parse(format!("HTTP/1.1 200 OK\r\n{fields}\r\n").as_bytes())?;
        Ok(head.expect("complete").0)
    }

    #[test]
    fn reads_framing_strictly() {
        assert_eq!(head("").unwrap().framing, Framing::UntilClose);
        assert_eq!(head("Content-Length: 7\r\n").unwrap().framing, Framing::Length(7));
        assert_eq!(head("transfer-encoding: Chunked\r\n").unwrap().framing, Framing::Chunked);
        for fields in [
            "content-length: 1\r\ncontent-length: 1\r\n",
            "content-length: 1\r\ntransfer-encoding: chunked\r\n",
            "content-length: -1\r\n",
            "transfer-encoding: chunked, chunked\r\n",
        ] {
            assert_eq!(head(fields).unwrap_err(), BadAnswer::Lengths, "{fields}");
        }
        assert_eq!(Head::parse(b"\x16\x03\x01\r\n\r\n").unwrap_err(), BadAnswer::Head);
        assert_eq!(Head::parse(b"\r\nHTTP/1.1 200 OK\r\n\r\n").unwrap_err(), BadAnswer::Head);
    }

    #[test]
    fn keeps_only_what_may_be_kept() {
        assert!(head("content-length: 0\r\n").unwrap().keep);
        assert!(!head("content-length: 0\r\nconnection: foo, Close\r\n").unwrap().keep);
        assert!(!head("").unwrap().keep);
    }
}
