//! The tunnel through an outbound proxy, asked for once the proxy is connected.
//!
//! A tunnel is asked for on the bare socket and lasts as long as the connection, which is pooled
//! and reused like a direct one: the proxy is not asked again. Only readiness polls wait here, so
//! that `connect_through` may be dropped at any time, as a connect may.
//!
//! No byte behind the proxy's answer is taken: it may be the server's first, since in HTTP/2
//! without TLS either side may send first (RFC 9113 §3.4).

use std::io;
use std::time::Duration;

use crate::error::Kind;
use crate::http1::connect::{Answer, TunnelAnswer};
use crate::http1::head_fault::HeadFault;
use crate::net::rt::Socket;
use crate::net::stream::Handle;
use crate::net::sys::{self, Shut};
use crate::net::ticker::Timer;

/// First size of the buffer for the proxy's answer, bytes.
const ANSWER_BYTES: usize = 1024;

/// Why there is no tunnel through an outbound proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelError {
    /// The proxy could not be connected.
    Unreachable,
    /// The proxy was not connected in time.
    ConnectLate,
    /// The proxy did not answer in time.
    AnswerLate,
    /// We ran out of descriptors, memory or ports.
    Ours,
    /// The proxy ended the connection before its answer.
    Closed,
    /// The proxy's answer is not HTTP.
    Malformed(HeadFault),
    /// Bytes came behind the proxy's answer where the server may not send first.
    Unasked,
    /// The proxy answered with a status other than 2xx.
    Refused(u16),
}

impl TunnelError {
    /// The exchange's fault that this error is.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            TunnelError::Unreachable
            | TunnelError::Closed
            | TunnelError::Malformed(_)
            | TunnelError::Unasked => Kind::OutboundConnect,
            TunnelError::Ours => Kind::Shortage,
            TunnelError::ConnectLate | TunnelError::AnswerLate => Kind::OutboundTimeout,
            TunnelError::Refused(_) => Kind::OutboundRefused,
        }
    }

    /// The error of a failed call on the connection to the proxy.
    #[must_use]
    pub fn broken(error: &io::Error) -> Self {
        if sys::is_shortage(error) { TunnelError::Ours } else { TunnelError::Closed }
    }

    /// The message for operator and client; `proxy` is the proxy's `host:port`.
    #[must_use]
    pub fn why(self, proxy: &str) -> String {
        let what = match self {
            TunnelError::Unreachable => "could not be connected".to_owned(),
            TunnelError::ConnectLate => "could not be connected in time".to_owned(),
            TunnelError::AnswerLate => "did not answer in time".to_owned(),
            TunnelError::Ours => {
                "could not be used: we are out of descriptors or memory".to_owned()
            }
            TunnelError::Closed => "ended the connection before its answer".to_owned(),
            TunnelError::Malformed(fault) => format!("answered with bad HTTP: {fault}"),
            TunnelError::Unasked => "sent more than its answer".to_owned(),
            TunnelError::Refused(407) => "wants other credentials: status 407".to_owned(),
            TunnelError::Refused(status) => format!("refused: status {status}"),
        };
        format!("outbound proxy {proxy} {what}")
    }
}

/// Whether the tunnel is open; `bytes` is all that has come of the answer. For callers that take
/// the bytes they receive, instead of only peeking.
///
/// Errors: `Malformed`, `Unasked`, `Refused`.
pub fn is_open(answer: &mut Answer, bytes: &[u8]) -> Result<bool, TunnelError> {
    match answer.push(bytes).map_err(TunnelError::Malformed)? {
        TunnelAnswer::More => Ok(false),
        TunnelAnswer::Tunnel { head_bytes } if head_bytes == bytes.len() => Ok(true),
        TunnelAnswer::Tunnel { .. } => Err(TunnelError::Unasked),
        TunnelAnswer::Refused { status } => Err(TunnelError::Refused(status)),
    }
}

/// Opens a tunnel on a connection to a proxy, bounded by `timer`.
///
/// Shape: `request` is a whole CONNECT; when it returns, the next byte each way is the tunnel's.
/// Free to drop.
/// Errors: all but `Unreachable`, `ConnectLate` and `Unasked`.
pub async fn connect_through(
    socket: &Socket,
    request: &[u8],
    timer: &Timer,
    timeout: Duration,
) -> Result<(), TunnelError> {
    timer.arm(Handle::Fd(socket.fd()), Shut::Both, timeout);
    let opened = open(socket, request).await;
    let late = timer.expired();
    timer.disarm();
    if late { Err(TunnelError::AnswerLate) } else { opened }
}

async fn open(socket: &Socket, mut request: &[u8]) -> Result<(), TunnelError> {
    while !request.is_empty() {
        match sys::send_now(socket.fd(), request) {
            Ok(0) => socket.writable().await,
            Ok(sent) => request = request.get(sent..).unwrap_or_default(),
            Err(error) => return Err(TunnelError::broken(&error)),
        }
    }
    let mut answer = Answer::default();
    // Bounded by the limit in `Answer`: an answer that is too long is refused before the next
    // growth.
    let mut bytes = Vec::with_capacity(ANSWER_BYTES);
    loop {
        if bytes.len() == bytes.capacity() {
            bytes.reserve(bytes.len());
        }
        let known = bytes.len();
        match sys::peek_now(socket.fd(), &mut bytes) {
            Ok(None) => socket.readable().await,
            Ok(Some(0)) => return Err(TunnelError::Closed),
            Err(error) => return Err(TunnelError::broken(&error)),
            Ok(Some(_)) => match answer.push(&bytes).map_err(TunnelError::Malformed)? {
                TunnelAnswer::More => take(socket, bytes.len() - known)?,
                TunnelAnswer::Tunnel { head_bytes } => {
                    return take(socket, head_bytes.saturating_sub(known));
                }
                TunnelAnswer::Refused { status } => return Err(TunnelError::Refused(status)),
            },
        }
    }
}

/// Takes bytes off the socket that have been peeked at.
fn take(socket: &Socket, count: usize) -> Result<(), TunnelError> {
    let taken = sys::recv_some_now(socket.fd(), &mut Vec::with_capacity(count), count);
    if matches!(taken, Ok(Some(n)) if n == count) { Ok(()) } else { Err(TunnelError::Closed) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    use crate::net::rt::{self, Part, Wanted};
    use crate::net::ticker::{TICK, Ticker};

    /// Asks a proxy that is `serve` for a tunnel.
    fn check(serve: impl FnOnce(UnixStream) + Send + 'static) -> Result<(), TunnelError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let proxy = std::thread::spawn(move || serve(theirs));
        let opened = rt::block_on(Wanted::Auto.with_environment(), |driver| {
            rt::note_driver(driver);
            async move {
                let keepalive = Duration::from_secs(30);
                let socket = Socket::adopt(OwnedFd::from(ours), keepalive).unwrap();
                let ticker = Ticker::new(Instant::now());
                let (timer, walking) = (ticker.timer(), ticker.clone());
                rt::spawn(async move {
                    loop {
                        rt::sleep(TICK).await;
                        walking.walk(Instant::now());
                    }
                });
                let limit = Duration::from_millis(300);
                let opened = connect_through(&socket, b"CONNECT h:1\r\n\r\n", &timer, limit).await;
                if opened.is_ok() {
                    let (sent, _) = socket.send_all(Part::whole(b"hello".to_vec())).await;
                    sent.unwrap();
                    let (_, got) = socket.recv(Vec::with_capacity(64)).await;
                    assert_eq!(got, b"server");
                }
                opened
            }
        });
        proxy.join().unwrap();
        opened.unwrap()
    }

    fn take_request(stream: &mut UnixStream) {
        let mut request = [0; 15];
        stream.read_exact(&mut request).unwrap();
        assert_eq!(&request, b"CONNECT h:1\r\n\r\n");
    }

    #[test]
    fn opens_on_a_2xx_that_drips_in() {
        let opened = check(|mut stream| {
            take_request(&mut stream);
            for byte in b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\nContent-Length: 7\r\n\r\n"
            {
                stream.write_all(&[*byte]).unwrap();
            }
            // The server speaks when it has been spoken to.
            let mut hello = [0; 5];
            stream.read_exact(&mut hello).unwrap();
            stream.write_all(b"server").unwrap();
        });
        assert_eq!(opened, Ok(()));
    }

    #[test]
    fn leaves_what_the_server_says_first() {
        let opened = check(|mut stream| {
            take_request(&mut stream);
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nserver").unwrap();
            let _ = stream.read_exact(&mut [0; 5]);
        });
        assert_eq!(opened, Ok(()));
    }

    #[test]
    fn says_why_there_is_no_tunnel() {
        let answers: [(&'static [u8], TunnelError); 4] = [
            (b"HTTP/1.1 407 No\r\nContent-Length: 3\r\n\r\nno", TunnelError::Refused(407)),
            (b"HTTP/1.1 503 No\r\n\r\n", TunnelError::Refused(503)),
            (b"220 smtp\r\n", TunnelError::Malformed(HeadFault::BadStartLine)),
            (b"HTTP/1.1 200 OK\r\n", TunnelError::Closed),
        ];
        for (answer, expected) in answers {
            let opened = check(move |mut stream| {
                take_request(&mut stream);
                stream.write_all(answer).unwrap();
            });
            assert_eq!(opened, Err(expected));
        }
    }

    #[test]
    fn does_not_wait_for_ever() {
        let begun = Instant::now();
        let opened = check(|mut stream| {
            take_request(&mut stream);
            // Ends when the other side gives up.
            let _ = stream.read(&mut [0; 1]);
        });
        assert_eq!(opened, Err(TunnelError::AnswerLate));
        assert!(begun.elapsed() >= Duration::from_millis(300));
    }

    #[test]
    fn names_the_proxy_and_the_status() {
        for (way, kind, why) in [
            (
                TunnelError::Refused(407),
                Kind::OutboundRefused,
                "wants other credentials: status 407",
            ),
            (TunnelError::Refused(503), Kind::OutboundRefused, "refused: status 503"),
            (TunnelError::Unreachable, Kind::OutboundConnect, "could not be connected"),
            (TunnelError::AnswerLate, Kind::OutboundTimeout, "did not answer in time"),
        ] {
            assert_eq!(way.kind(), kind);
            assert_eq!(way.why("p:8080"), format!("outbound proxy p:8080 {why}"));
        }
    }
}
