//! Request methods (RFC 9110 §9).
//!
//! Methods are case-sensitive: `get` is not `GET` but a method that nobody here knows, and it
//! travels as [`Method::Other`] with its text kept in the head. The one thing decided here is
//! which methods may be sent twice.

/// The method of a request, told apart once while its head is parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
#[allow(missing_docs)]
pub enum Method {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Connect,
    Trace,
    /// Any other token; the head keeps its text.
    Other,
}

impl Method {
    /// Tells which method the token is; exact case (RFC 9110 §9.1).
    pub fn of(token: &[u8]) -> Method {
        match token {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"PATCH" => Method::Patch,
            b"CONNECT" => Method::Connect,
            b"TRACE" => Method::Trace,
            _ => Method::Other,
        }
    }

    /// The token of the method; `OTHER` for the unknown, which is fit for a label, not for a wire.
    pub fn text(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Delete => "DELETE",
            Method::Options => "OPTIONS",
            Method::Patch => "PATCH",
            Method::Connect => "CONNECT",
            Method::Trace => "TRACE",
            Method::Other => "OTHER",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Method; 9] = [
        Method::Get,
        Method::Head,
        Method::Post,
        Method::Put,
        Method::Delete,
        Method::Options,
        Method::Patch,
        Method::Connect,
        Method::Trace,
    ];

    #[test]
    fn text_and_parse_agree() {
        for method in ALL {
            assert_eq!(Method::of(method.text().as_bytes()), method);
        }
    }

    #[test]
    fn case_matters() {
        for method in ALL {
            assert_eq!(Method::of(method.text().to_lowercase().as_bytes()), Method::Other);
        }
        assert_eq!(Method::of(b""), Method::Other);
        assert_eq!(Method::of(b"GETS"), Method::Other);
    }
}
