//! The question that opens a tunnel through an outbound proxy, and what its answer means
//! (RFC 9110 §9.3.6, RFC 9112 §3.2.3).
//!
//! The one idea: the answer is a head and nothing else. After a 2xx the bytes behind the head
//! belong to the tunnel, whatever a length or a coding in it says; any other status is a refusal
//! whose body nobody reads. Interim answers are skipped. All of it has one bound.
//!
//! Not here: the socket, and what is spoken inside the tunnel.

use base64::Engine as _;

use super::encode;
use super::head_fault::HeadFault;
use super::parse::{HeadLimits, Parse, parse_response};
use crate::http::head::ResponseHead;

/// Most bytes of an answer, interim ones included. Real ones have a few hundred.
pub const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Most fields of one head in it.
const FIELDS_MAX: usize = 128;

/// `host:port` with an IPv6 address in brackets (RFC 3986 §3.2.2).
#[must_use]
pub fn host_port(host: &str, port: u16) -> String {
    match host.contains(':') {
        true => format!("[{host}]:{port}"),
        false => format!("{host}:{port}"),
    }
}

/// Writes the request for a tunnel to `authority`, which is a `host_port`.
///
/// Shape: `credentials` are `user:password`; they are for the proxy and never enter the tunnel.
pub fn request(out: &mut Vec<u8>, authority: &str, credentials: Option<&[u8]>) {
    encode::request_line(out, b"CONNECT", authority.as_bytes());
    encode::field(out, b"Host", authority.as_bytes());
    if let Some(credentials) = credentials {
        authorization(out, credentials);
    }
    encode::end_of_head(out);
}

/// Writes `Proxy-Authorization: Basic …` for `user:password`.
///
/// Source: RFC 7617 §2, RFC 9110 §11.7.2.
pub fn authorization(out: &mut Vec<u8>, credentials: &[u8]) {
    encode::field(out, b"Proxy-Authorization", basic(credentials).as_bytes());
}

/// The value of that field.
#[must_use]
pub fn basic(credentials: &[u8]) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(credentials))
}

/// What an answer says, as far as it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelAnswer {
    /// Nothing final yet.
    More,
    /// The tunnel begins behind the first `head_bytes` bytes.
    Tunnel {
        /// Bytes of all heads so far.
        head_bytes: usize,
    },
    /// There is no tunnel; 407 = the credentials are missing or wrong.
    Refused {
        /// Any final status but 2xx, or a 101 that nobody asked for.
        status: u16,
    },
}

/// Reads the answer to one CONNECT.
#[derive(Debug, Default)]
pub struct Answer {
    head: ResponseHead,
    /// Where the current head begins: `0 <= begun <= ANSWER_BYTES_MAX`.
    begun: usize,
    /// How far it has been walked, from there.
    searched: usize,
}

impl Answer {
    /// Reads on.
    ///
    /// Shape: `bytes` are all that came, from the first on; not called again after anything but
    /// `More`.
    /// Errors: what is wrong with a head; `HeadTooLarge` beyond `ANSWER_BYTES_MAX` in all.
    pub fn push(&mut self, bytes: &[u8]) -> Result<TunnelAnswer, HeadFault> {
        loop {
            let limits = HeadLimits {
                head_bytes_max: ANSWER_BYTES_MAX.saturating_sub(self.begun),
                fields_max: FIELDS_MAX,
                target_bytes_max: 0,
            };
            let unread = bytes.get(self.begun..).unwrap_or_default();
            match parse_response(unread, &mut self.searched, &limits, &mut self.head)? {
                Parse::More => return Ok(TunnelAnswer::More),
                Parse::Done => {
                    let head_bytes = self.begun + self.head.len as usize;
                    match self.head.status {
                        200..=299 => return Ok(TunnelAnswer::Tunnel { head_bytes }),
                        100 | 102..=199 => (self.begun, self.searched) = (head_bytes, 0),
                        status => return Ok(TunnelAnswer::Refused { status }),
                    }
                }
            }
        }
    }
}

/// The target of a fuzzer: an answer in two pieces is the answer in one, and stays in bounds.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&cut, wire)) = data.split_first() else { return };
    let cut = usize::from(cut).min(wire.len());
    let whole = Answer::default().push(wire);
    let mut pieces = Answer::default();
    let outcome = match pieces.push(&wire[..cut]) {
        Ok(TunnelAnswer::More) => pieces.push(wire),
        early => early,
    };
    assert_eq!(whole, outcome, "an answer in two pieces");
    if let Ok(TunnelAnswer::Tunnel { head_bytes }) = whole {
        assert!(head_bytes <= wire.len().min(ANSWER_BYTES_MAX));
        assert!(wire[..head_bytes].ends_with(b"\r\n\r\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(answer: &str, expected: Result<TunnelAnswer, HeadFault>) {
        assert_eq!(Answer::default().push(answer.as_bytes()), expected, "{answer:?}");
    }

    fn tunnel(head: &str) -> Result<TunnelAnswer, HeadFault> {
        Ok(TunnelAnswer::Tunnel { head_bytes: head.len() })
    }

    #[test]
    fn asks_for_the_authority_and_shows_credentials_to_the_proxy() {
        let written = |host: &str, port, credentials| {
            let mut out = Vec::new();
            request(&mut out, &host_port(host, port), credentials);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            written("api.example.com", 443, None),
            "CONNECT api.example.com:443 HTTP/1.1\r\nHost: api.example.com:443\r\n\r\n"
        );
        // The example of RFC 7617 §2.
        assert_eq!(
            written("::1", 8443, Some(b"Aladdin:open sesame")),
            "CONNECT [::1]:8443 HTTP/1.1\r\nHost: [::1]:8443\r\n\
             Proxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n"
        );
    }

    #[test]
    fn any_2xx_opens_the_tunnel_whatever_its_fields_say() {
        for head in [
            "HTTP/1.1 200 Connection established\r\n\r\n",
            "HTTP/1.0 200 OK\r\nVia: x\r\n\r\n",
            "HTTP/1.1 204\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        ] {
            check(head, tunnel(head));
            check(&format!("{head}more"), tunnel(head));
        }
    }

    #[test]
    fn another_status_is_a_refusal() {
        for status in [101, 302, 400, 403, 407, 502, 503, 999] {
            let head = format!("HTTP/1.1 {status} No\r\nContent-Length: 9\r\n\r\n");
            check(&head, Ok(TunnelAnswer::Refused { status }));
        }
    }

    #[test]
    fn skips_interim_answers() {
        let head = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n\
                    HTTP/1.1 200 OK\r\n\r\n";
        check(head, tunnel(head));
        check("HTTP/1.1 100 Continue\r\n\r\n", Ok(TunnelAnswer::More));
    }

    #[test]
    fn refuses_what_is_no_head() {
        check("\x16\x03\x01", Err(HeadFault::BadStartLine));
        check("SSH-2.0-x\r\n", Err(HeadFault::BadStartLine));
        check("HTTP/2.0 200 OK\r\n", Err(HeadFault::BadVersion));
        check("HTTP/1.1 200 OK\n\n", Err(HeadFault::BareLf));
    }

    #[test]
    fn answer_bytes_max_bounds_one_head_and_many() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(ANSWER_BYTES_MAX));
        check(&long, Err(HeadFault::HeadTooLarge));
        let many = "HTTP/1.1 100 Continue\r\n\r\n".repeat(ANSWER_BYTES_MAX / 25 + 1);
        check(&many, Err(HeadFault::HeadTooLarge));
    }

    proptest! {
        #[test]
        fn splits_do_not_matter(
            interim in proptest::collection::vec(100u16..200, 0..4),
            status in 100u16..1000,
            behind in "[ -~\r\n]{0,20}",
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            let head = |status: &u16| format!("HTTP/1.1 {status} X\r\nA: b\r\n\r\n");
            let statuses: Vec<u16> = interim.into_iter().chain([status]).collect();
            let wire = statuses.iter().map(head).collect::<String>() + &behind;
            // The oracle reads the statuses themselves.
            let one = head(&100).len();
            let last = statuses.iter().position(|s| *s >= 200 || *s == 101);
            let expected = match last.map(|at| (at, statuses[at])) {
                None => None,
                Some((at, 200..=299)) => Some(TunnelAnswer::Tunnel { head_bytes: one * (at + 1) }),
                Some((_, status)) => Some(TunnelAnswer::Refused { status }),
            };
            let mut ends: Vec<usize> = cuts.iter().map(|at| at.index(wire.len() + 1)).collect();
            ends.push(wire.len());
            ends.sort_unstable();
            let mut answer = Answer::default();
            let mut told = Ok(TunnelAnswer::More);
            for end in ends {
                if told == Ok(TunnelAnswer::More) {
                    told = answer.push(&wire.as_bytes()[..end]);
                }
            }
            match expected {
                Some(expected) => prop_assert_eq!(told, Ok(expected)),
                // What stands behind the last interim head is hardly one more.
                None => prop_assert!(told.is_err() || told == Ok(TunnelAnswer::More)),
            }
        }

        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
        }
    }
}
