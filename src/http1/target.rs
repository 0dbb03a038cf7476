//! The request target and `Host`: what is asked of whom (RFC 9112 §3.2, RFC 3986 §3.2).
//!
//! The one idea: a target has one of four forms, told from its first bytes and the method, and is
//! cut into authority, path and query where it stands. A host is taken only if every server would
//! read the same one out of it.
//!
//! Not here: percent-decoding and dot segments (`http::path`).

use memchr::memchr;

use super::head_fault::HeadFault;
use crate::http::{
    head::{RequestHead, Span},
    method::Method,
};

/// Sorts the target of `head` into one of the four forms (RFC 9112 §3.2) and cuts it.
///
/// Shape: `bytes` begins with the head, whose method and target are known.
/// Errors: `BadTarget`.
pub fn split_target(bytes: &[u8], head: &mut RequestHead) -> Result<(), HeadFault> {
    let target = head.target.of(bytes);
    let offset = head.target.start as usize;
    // A target is short: one walk over its bytes costs less than preparing two searches.
    let mark = target.iter().position(|byte| matches!(byte, b'?' | b'#'));
    // A fragment is never sent; one server would cut it off and another take it for the path.
    if mark.is_some_and(|at| target[at] == b'#' || memchr(b'#', &target[at..]).is_some()) {
        return Err(HeadFault::BadTarget);
    }
    let path_start = match (head.method, target) {
        (Method::Connect, _) if is_authority(target) && target.contains(&b':') => {
            head.target_authority = head.target;
            return Ok(());
        }
        (Method::Connect, _) => return Err(HeadFault::BadTarget),
        (_, [b'/', ..]) => 0,
        (Method::Options, b"*") => 0,
        _ => {
            let authority_start = scheme_len(target).ok_or(HeadFault::BadTarget)?;
            let rest = &target[authority_start..];
            let len = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
            if !is_authority(&rest[..len]) {
                return Err(HeadFault::BadTarget);
            }
            let end = authority_start + len;
            head.target_authority = Span::new(offset + authority_start, offset + end);
            end
        }
    };
    let path_end = mark.unwrap_or(target.len());
    head.target_path = Span::new(offset + path_start, offset + path_end);
    head.target_query = mark.map(|at| Span::new(offset + at + 1, offset + target.len()));
    Ok(())
}

/// Bytes of `http://` or `https://` at the front of an absolute-form target.
fn scheme_len(target: &[u8]) -> Option<usize> {
    [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let front = target.get(..scheme.len())?;
        front.eq_ignore_ascii_case(scheme).then_some(scheme.len())
    })
}

/// Whether this is `host` or `host:port`, with a name, an IPv4 or a bracketed IPv6 address.
///
/// Narrower than RFC 3986 §3.2.2: user information, percent-encoding and sub-delimiters are
/// refused, because two servers may read a different host out of them.
pub fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', rest @ ..] => {
            let Some(close) = memchr(b']', rest) else { return false };
            let (address, after) = (&rest[..close], &rest[close + 1..]);
            let good = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
            if !address.contains(&b':') || !address.iter().all(good) {
                return false;
            }
            (address, after)
        }
        _ => {
            let (host, port) = text.split_at(memchr(b':', text).unwrap_or(text.len()));
            if !host.iter().all(|&byte| HOST_BYTES[byte as usize]) {
                return false;
            }
            (host, port)
        }
    };
    !host.is_empty() && is_port(port)
}

/// What may stand in the name of a host: `unreserved` of RFC 3986 §2.3.
static HOST_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0u8;
    while byte.is_ascii() {
        table[byte as usize] =
            byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        byte += 1;
    }
    table
};

/// Nothing, or a colon and up to five digits that fit 16 bits; the digits may be missing.
fn is_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            digits.iter().fold(0u32, |sum, &digit| sum * 10 + u32::from(digit - b'0')) <= 0xffff
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Method and target → authority, path, query; `None` when the target is refused.
    fn check(method: &str, target: &str, expected: Option<(&str, &str, Option<&str>)>) {
        let mut head = RequestHead {
            method: Method::of(method.as_bytes()),
            target: Span::new(0, target.len()),
            ..RequestHead::new()
        };
        let bytes = target.as_bytes();
        let got = split_target(bytes, &mut head)
            .ok()
            .map(|()| (head.target_authority.of(bytes), head.path(bytes), head.query(bytes)));
        let expected =
            expected.map(|(a, p, q)| (a.as_bytes(), p.as_bytes(), q.map(|q| q.as_bytes())));
        assert_eq!(got, expected, "{method} {target}");
    }

    #[test]
    fn origin_form_is_cut_at_the_first_question_mark() {
        check("GET", "/", Some(("", "/", None)));
        check("GET", "/where?q=now", Some(("", "/where", Some("q=now"))));
        check("GET", "/a?b?c=/d", Some(("", "/a", Some("b?c=/d"))));
        check("GET", "/a?", Some(("", "/a", Some(""))));
        check("GET", "//a/b", Some(("", "//a/b", None)));
        check("POST", "/v1/models/a%2Fb:go", Some(("", "/v1/models/a%2Fb:go", None)));
    }

    #[test]
    fn absolute_form_names_its_authority() {
        let path = "/pub/WWW/TheProject.html";
        let whole = "http://www.example.org/pub/WWW/TheProject.html";
        check("GET", whole, Some(("www.example.org", path, None)));
        check("GET", "HTTPS://h:8443/p?q", Some(("h:8443", "/p", Some("q"))));
        check("GET", "http://h", Some(("h", "/", None)));
        check("GET", "http://h?q", Some(("h", "/", Some("q"))));
        check("OPTIONS", "http://h:8001", Some(("h:8001", "/", None)));
    }

    #[test]
    fn absolute_form_with_a_doubtful_authority_is_refused() {
        for target in ["http://", "http:///p", "http://u@h/", "http://h:x/", "ftp://h/", "http:/h"]
        {
            check("GET", target, None);
        }
        check("GET", "http://a%2eb/", None);
        check("GET", "http://h\\@evil/", None);
    }

    #[test]
    fn asterisk_is_for_options_and_authority_for_connect() {
        check("OPTIONS", "*", Some(("", "*", None)));
        check("GET", "*", None);
        check("OPTIONS", "*/", None);
        check("CONNECT", "www.example.com:80", Some(("www.example.com:80", "/", None)));
        check("CONNECT", "www.example.com", None);
        check("CONNECT", "/", None);
        check("GET", "www.example.com:80", None);
    }

    #[test]
    fn a_fragment_is_refused() {
        check("GET", "/a#b", None);
        check("GET", "/a?b#c", None);
    }

    #[test]
    fn hosts_that_every_server_reads_alike_pass() {
        for host in [
            "a",
            "example.com",
            "example.com:80",
            "a_b-c~d.e",
            "127.0.0.1:65535",
            "[::1]",
            "[2001:db8::1]:8000",
            "[::ffff:1.2.3.4]",
            "h:",
            "xn--bcher-kva.example",
        ] {
            assert!(is_authority(host.as_bytes()), "{host}");
        }
    }

    #[test]
    fn doubtful_hosts_are_refused() {
        for host in [
            "",
            ":80",
            "a b",
            "a,b",
            "a/b",
            "a@b",
            "a:b",
            "a:1:2",
            "a:65536",
            "a:000080",
            "a:-1",
            "a%41",
            "a\0",
            "[",
            "[]",
            "[::1",
            "[::1]x",
            "[::1]:x",
            "[1.2.3.4]",
            "[::1%25eth0]",
            "::1",
            "a?b",
            "a#b",
            "a\\b",
            "caf\u{e9}",
            "\"a\"",
        ] {
            assert!(!is_authority(host.as_bytes()), "{host:?}");
        }
    }
}
