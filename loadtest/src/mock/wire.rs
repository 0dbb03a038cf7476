//! The request as it stands on the wire: its head, and how its body ends.
//!
//! httparse reads the head; RFC 9112 §6.3 is applied in the strict reading, since
//! a request with two lengths must never have passed the proxy in front.

/// Longest head taken.
pub(super) const HEAD_BYTES_MAX: usize = 262_144;
const FIELDS_MAX: usize = 256;

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// A request head.
#[derive(Debug)]
pub(super) struct Request {
    /// The head as it came, final empty line included.
    pub(super) head: Vec<u8>,
    pub(super) method: String,
    pub(super) target: String,
    /// 0 or 1: the digit after `HTTP/1.`.
    pub(super) minor: u8,
    pub(super) fields: Vec<(String, String)>,
    pub(super) framing: Framing,
}

impl Request {
    /// Reads a head from the front of `buf`: the request, or `None` for more bytes.
    ///
    /// Errors: what is wrong, in words for the 400.
    pub(super) fn parse(buf: &[u8]) -> Result<Option<Request>, &'static str> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut parsed = httparse::Request::new(&mut fields);
        let head_bytes = match parsed.parse(buf) {
            Ok(httparse::Status::Complete(count)) => count,
            Ok(httparse::Status::Partial) if buf.len() > HEAD_BYTES_MAX => {
                return Err("head too long");
            }
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err("not a request head"),
        };
        let fields: Vec<(String, String)> = parsed
            .headers
            .iter()
            .map(|field| (field.name.to_owned(), String::from_utf8_lossy(field.value).into_owned()))
            .collect();
        Ok(Some(Request {
            head: buf.get(..head_bytes).unwrap_or_default().to_vec(),
            method: parsed.method.unwrap_or_default().to_owned(),
            target: parsed.path.unwrap_or_default().to_owned(),
            minor: parsed.version.unwrap_or(0),
            framing: framing(&fields)?,
            fields,
        }))
    }

    /// Values of the field `name` (any case), in order.
    pub(super) fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        values(&self.fields, name)
    }

    /// The first value of the field `name`.
    pub(super) fn value<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        self.values(name).next()
    }

    /// Whether the list field `name` holds `token` (any case).
    pub(super) fn lists(&self, name: &str, token: &str) -> bool {
        self.values(name).flat_map(|value| value.split(',')).any(|item| is(item, token))
    }

    /// The path without the query.
    pub(super) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// The value of a query key, percent-decoded.
    pub(super) fn query(&self, key: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let mut pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| percent_decode(value))
    }

    /// Whether the client wants the connection kept (RFC 9112 §9.3).
    pub(super) fn keeps(&self) -> bool {
        match self.minor {
            0 => self.lists("connection", "keep-alive"),
            _ => !self.lists("connection", "close"),
        }
    }

    /// Whether a body follows the head.
    pub(super) fn has_body(&self) -> bool {
        self.framing != Framing::Length(0)
    }
}

fn is(item: &str, token: &str) -> bool {
    item.trim().eq_ignore_ascii_case(token)
}

fn values<'a>(fields: &'a [(String, String)], name: &'a str) -> impl Iterator<Item = &'a str> {
    fields
        .iter()
        .filter(move |(field, _)| field.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

fn framing(fields: &[(String, String)]) -> Result<Framing, &'static str> {
    let mut codings = values(fields, "transfer-encoding");
    let mut lengths = values(fields, "content-length");
    match (codings.next(), lengths.next()) {
        (Some(_), Some(_)) => Err("content-length and transfer-encoding"),
        (Some(coding), None) if is(coding, "chunked") && codings.next().is_none() => {
            Ok(Framing::Chunked)
        }
        (Some(_), None) => Err("unknown transfer-encoding"),
        (None, Some(length)) => {
            let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
            let length = length.parse().ok().filter(|_| digits && lengths.next().is_none());
            length.map(Framing::Length).ok_or("bad content-length")
        }
        (None, None) => Ok(Framing::Length(0)),
    }
}

fn percent_decode(value: &str) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        let escaped = match (first, after) {
            (b'%', [high, low, tail @ ..]) => hex(*high).zip(hex(*low)).map(|pair| (pair, tail)),
            _ => None,
        };
        match escaped {
            Some(((high, low), tail)) => {
                out.push(high << 4 | low);
                rest = tail;
            }
            None => out.push(*first),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn hex(digit: u8) -> Option<u8> {
    (digit as char).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<Option<Request>, &'static str> {
        Request::parse(format!("POST /a?mock=x%3D1&b=2 HTTP/1.1\r\n{fields}\r\n").as_bytes())
    }

    #[test]
    fn reads_framing_strictly() {
        assert_eq!(parse("").unwrap().unwrap().framing, Framing::Length(0));
        assert_eq!(parse("Content-Length: 12\r\n").unwrap().unwrap().framing, Framing::Length(12));
        let chunked = parse("Transfer-Encoding: Chunked\r\n").unwrap().unwrap();
        assert_eq!(chunked.framing, Framing::Chunked);
        for bad in [
            "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 1\r\nContent-Length: 1\r\n",
            "Content-Length: +1\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn splits_path_and_query() {
        let request = parse("Connection: Foo, CLOSE\r\n").unwrap().unwrap();
        assert_eq!(request.path(), "/a");
        assert_eq!(request.query("mock").as_deref(), Some("x=1"));
        assert_eq!(request.query("c"), None);
        assert!(!request.keeps());
    }
}
