//! `tokenring check --live`: asks the running process whether it is ready.
//!
//! For what only understands exit codes: a container's health check, a readiness probe, a script that
//! restarts one node after another. It asks `GET /ready` of the admin address that the config file
//! names, on a connection of its own. Deliberately not here: what exactly is amiss; `/health` says it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::question::{connect, exchange, explain};
use crate::config::{Admin, Bind, Secret};

/// Longest wait for the connection, and for each piece of the answer.
const STEP_TIMEOUT: Duration = Duration::from_secs(3);
/// Longest answer that is read, in bytes; `/ready` takes less than a hundredth of it.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What the running process said.
#[derive(Debug, PartialEq, Eq)]
pub enum Said {
    /// It takes requests, and there is a server that could answer them.
    Ready,
    /// It runs, and no request should be sent to it; the text says why.
    NotReady(String),
}

/// Asks the process behind `[admin]` whether it is ready.
///
/// Errors: nobody answers there, or not as this program does; a message for the operator.
pub fn ask(admin: &Admin) -> Result<Said, String> {
    let answer = match &admin.bind {
        Bind::Tcp(address) => over_tcp(near(*address), admin.token.as_ref()),
        Bind::Unix(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(STEP_TIMEOUT))?;
            stream.set_write_timeout(Some(STEP_TIMEOUT))?;
            exchange(stream, &request("localhost", admin.token.as_ref()), ANSWER_BYTES_MAX)
        }),
    };
    said(&answer.map_err(|why| explain(&why))?)
}

/// Where a process that listens on every address is reached from its own machine.
fn near(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

fn over_tcp(address: SocketAddr, token: Option<&Secret>) -> io::Result<Vec<u8>> {
    let request = request(&address.to_string(), token);
    exchange(connect(&address, STEP_TIMEOUT)?, &request, ANSWER_BYTES_MAX)
}

fn request(host: &str, token: Option<&Secret>) -> Vec<u8> {
    let mut request = format!("GET /ready HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
    request.push_str("User-Agent: tokenring-check\r\n");
    let mut request = request.into_bytes();
    if let Some(token) = token {
        request.extend_from_slice(b"Authorization: Bearer ");
        request.extend_from_slice(token.expose());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// Reads the answer to `GET /ready`: its status decides, its `reason` explains.
fn said(answer: &[u8]) -> Result<Said, String> {
    let text = String::from_utf8_lossy(answer);
    if text.is_empty() {
        // What happens to a connection from outside `allow`.
        return Err("hung up without an answer; does admin.allow hold this address?".to_owned());
    }
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let line = head.lines().next().unwrap_or_default();
    match line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)) {
        Some("200") => Ok(Said::Ready),
        Some("503") => {
            let told = serde_json::from_str::<serde_json::Value>(body).unwrap_or_default();
            let why = told.get("reason").and_then(|why| why.as_str()).unwrap_or("status 503");
            Ok(Said::NotReady(why.to_owned()))
        }
        Some("401") => Err("status 401: it has another token than this config".to_owned()),
        Some(status) => Err(format!("status {status}")),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_decides() {
        let check = |answer: &str, expected: Result<Said, &str>| {
            assert_eq!(said(answer.as_bytes()), expected.map_err(str::to_owned), "{answer:?}");
        };
        check("HTTP/1.1 200 OK\r\n\r\n{\"ready\":true}", Ok(Said::Ready));
        check(
            "HTTP/1.1 503 Service Unavailable\r\na: b\r\n\r\n{\"ready\":false,\"reason\":\"draining\"}",
            Ok(Said::NotReady("draining".to_owned())),
        );
        check("HTTP/1.1 503 x\r\n\r\n", Ok(Said::NotReady("status 503".to_owned())));
        check("HTTP/1.1 404 Not Found\r\n\r\n", Err("status 404"));
        check("SSH-2.0-x\r\n", Err("the answer is not HTTP"));
        assert!(said(b"").unwrap_err().contains("admin.allow"));
        assert!(said(b"HTTP/1.1 401 x\r\n\r\n").unwrap_err().contains("token"));
    }

    #[test]
    fn an_address_for_all_is_asked_at_home() {
        let check = |bound: &str, asked: &str| {
            assert_eq!(near(bound.parse().unwrap()).to_string(), asked);
        };
        check("0.0.0.0:9000", "127.0.0.1:9000");
        check("[::]:9000", "[::1]:9000");
        check("10.1.2.3:9000", "10.1.2.3:9000");
    }
}
