//! One question in plain HTTP on a connection of its own, for commands that end with the answer.
//!
//! The caller writes the request and reads the answer; here is what keeps it from waiting for ever.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Connects; neither that nor any piece of the answer may take longer than `limit`.
pub fn connect(address: &SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// Sends a request and returns all that comes until the end, at most `longest` bytes.
pub fn exchange(
    mut stream: impl Read + Write,
    request: &[u8],
    longest: u64,
) -> io::Result<Vec<u8>> {
    stream.write_all(request)?;
    let mut answer = Vec::new();
    stream.take(longest).read_to_end(&mut answer)?;
    Ok(answer)
}

/// Why there is no answer, for people.
pub fn explain(why: &io::Error) -> String {
    match why.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "no answer in time".to_owned(),
        _ => why.to_string(),
    }
}
