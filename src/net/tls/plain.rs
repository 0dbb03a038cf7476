//! The answer to a client that speaks plain HTTP on a TLS port, in plain HTTP.
//!
//! The usual reason is a URL with `http://` for `https://`; a TLS alert would tell a person
//! nothing. Only the first bytes of a connection are judged: a handshake begins with a byte (22)
//! that no method begins with. HTTP/2 by prior knowledge is answered in HTTP/1.1 too: any bytes
//! that are no HTTP/2 end such a connection.

/// Longest method that is looked for, in bytes.
const METHOD_BYTES_MAX: usize = 16;

/// The whole answer, head and body; the connection is closed behind it.
pub(super) const ANSWER: &[u8] = b"HTTP/1.1 400 Bad Request\r\n\
    content-type: application/json\r\n\
    content-length: 151\r\n\
    x-should-retry: false\r\n\
    connection: close\r\n\r\n\
    {\"error\":{\"message\":\"This port speaks HTTPS, and the request came in plain HTTP.\",\
    \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"https_required\"}}";

/// Most bytes that are read and dropped after the answer, so that the client can read it: closing a
/// socket with unread bytes resets the connection.
pub(super) const DROPPED_BYTES_MAX: usize = 1 << 20;

/// Whether a connection begins like a request in plain HTTP: with a method and a space.
pub(super) fn is_http(first: &[u8]) -> bool {
    let method = first.iter().take_while(|byte| byte.is_ascii_uppercase()).count();
    (3..=METHOD_BYTES_MAX).contains(&method) && first.get(method) == Some(&b' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_method_and_a_space_are_http() {
        for http in [&b"GET / HTTP/1.1\r\n"[..], b"OPTIONS * ", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
        {
            assert!(is_http(http), "{}", http.escape_ascii());
        }
        for other in
            [&b""[..], b"GET", b"get / HTTP/1.1", b"\x16\x03\x01 ", b"SSH-2.0-x ", b" GET "]
        {
            assert!(!is_http(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn the_answer_is_as_long_as_it_says() {
        let at = memchr::memmem::find(ANSWER, b"\r\n\r\n").unwrap() + 4;
        let length = format!("content-length: {}\r\n", ANSWER.len() - at);
        assert!(memchr::memmem::find(ANSWER, length.as_bytes()).is_some(), "{length}");
        assert!(serde_json::from_slice::<serde_json::Value>(&ANSWER[at..]).is_ok());
    }
}
