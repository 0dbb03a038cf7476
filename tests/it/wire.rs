//! A client of raw bytes: what is sent is what was written, what came is read by hand.
//!
//! The reader is strict and small: a length, chunks, or the end of the connection. An answer
//! that breaks off is a value (`Broken`), because telling a cut from a clean end is what half of
//! these tests are about.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Socket, Type};

use super::house::LIMIT;
use super::secure::shake;

/// A connection and what has been read of it and not yet used.
pub(crate) struct Client {
    stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
    input: Vec<u8>,
}

/// A complete answer.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// Status code.
    pub status: u16,
    /// The head with its final empty line.
    pub head: String,
    /// The decoded body.
    pub body: Vec<u8>,
    /// Lines behind the last chunk.
    pub trailers: String,
}

/// An answer that was not completed.
#[derive(Debug)]
pub(crate) struct Broken {
    /// How it ended: `UnexpectedEof` for an end without a reset, `InvalidData` for bad framing,
    /// `ConnectionAborted` for TLS that ended without close_notify.
    pub why: ErrorKind,
    /// The head, if it was complete.
    pub head: String,
    /// The decoded part of the body.
    pub body: Vec<u8>,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(addr: SocketAddr) -> Client {
        Client::of(TcpStream::connect(addr).expect("the proxy listens"))
    }

    /// Connects from another address of this machine.
    pub(crate) fn connect_from(ip: &str, addr: SocketAddr) -> Client {
        let from = SocketAddr::new(ip.parse().expect("an address"), 0);
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&from.into()).expect("all of 127/8 is ours");
        socket.connect(&addr.into()).expect("the proxy listens");
        Client::of(socket.into())
    }

    /// Connects to a Unix socket.
    pub(crate) fn connect_unix(path: &Path) -> Client {
        // Reading, writing and shutting down are the same calls for both kinds.
        Client::of(OwnedFd::from(UnixStream::connect(path).expect("the proxy listens")).into())
    }

    /// Takes a connection over.
    pub(crate) fn of(stream: TcpStream) -> Client {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        // A Unix socket knows no delays.
        let _ = stream.set_nodelay(true);
        Client { stream, tls: None, input: Vec::new() }
    }

    /// Connects over TLS; what is sent and read from now on is what is inside.
    pub(crate) fn connect_tls(addr: SocketAddr, config: &Arc<ClientConfig>) -> Client {
        let (stream, session) = shake(addr, config);
        Client { tls: Some(Box::new(session)), ..Client::of(stream) }
    }

    /// The protocol that was agreed on.
    pub(crate) fn alpn(&self) -> Option<&str> {
        self.tls.as_ref()?.alpn_protocol().and_then(|name| std::str::from_utf8(name).ok())
    }

    /// Says by TLS alone that nothing more will be sent.
    pub(crate) fn notify_close(&mut self) -> &mut Client {
        let tls = self.tls.as_mut().expect("it is TLS");
        tls.send_close_notify();
        while tls.wants_write() {
            tls.write_tls(&mut self.stream).unwrap();
        }
        self
    }

    /// The same connection, for a second thread.
    pub(crate) fn stream(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    /// Sends everything.
    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Client {
        self.try_send(bytes.as_ref()).expect("the proxy reads");
        self
    }

    /// Sends as much as is taken.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match &mut self.tls {
            None => self.stream.write_all(bytes),
            Some(tls) => {
                let mut tls = rustls::Stream::new(tls.as_mut(), &mut self.stream);
                tls.write_all(bytes).and_then(|()| tls.flush())
            }
        }
    }

    /// Sends every byte alone.
    pub(crate) fn send_bytewise(&mut self, bytes: &[u8]) -> &mut Client {
        for byte in bytes {
            self.send([*byte]);
        }
        self
    }

    /// Ends the sending side.
    pub(crate) fn end(&mut self) -> &mut Client {
        self.stream.shutdown(Shutdown::Write).unwrap();
        self
    }

    /// Closes with a reset.
    pub(crate) fn reset(self) {
        socket2::SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }

    /// Makes reads give up earlier than usual.
    pub(crate) fn patience(&mut self, limit: Duration) -> &mut Client {
        self.stream.set_read_timeout(Some(limit)).unwrap();
        self
    }

    /// Reads one answer to a request that is no HEAD.
    pub(crate) fn answer(&mut self) -> Answer {
        self.answer_to("GET")
    }

    /// Reads one answer to a request of this method.
    pub(crate) fn answer_to(&mut self, method: &str) -> Answer {
        self.try_answer_to(method).unwrap_or_else(|broken| {
            let body = String::from_utf8_lossy(&broken.body[..broken.body.len().min(400)]);
            panic!("broken answer: {:?}\n{}{body}", broken.why, broken.head)
        })
    }

    /// Reads one answer, complete or not.
    pub(crate) fn try_answer(&mut self) -> Result<Answer, Broken> {
        self.try_answer_to("GET")
    }

    /// Reads one answer that may be of HTTP/1.0 and may end with the connection.
    pub(crate) fn answer_any_version(&mut self) -> Result<Answer, ErrorKind> {
        let head = String::from_utf8_lossy(&self.through(b"\r\n\r\n")?).into_owned();
        Ok(Answer { head, body: self.rest()?, ..Answer::default() })
    }

    /// Reads one answer to a request of this method, complete or not.
    pub(crate) fn try_answer_to(&mut self, method: &str) -> Result<Answer, Broken> {
        let mut answer = Answer::default();
        match self.fill(&mut answer, method) {
            Ok(()) => Ok(answer),
            Err(why) => Err(Broken { why, head: answer.head, body: answer.body }),
        }
    }

    fn fill(&mut self, answer: &mut Answer, method: &str) -> Result<(), ErrorKind> {
        answer.head = String::from_utf8_lossy(&self.through(b"\r\n\r\n")?).into_owned();
        let line = answer.head.split("\r\n").next().unwrap_or_default();
        let code = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        answer.status = code.and_then(|code| code.parse().ok()).ok_or(ErrorKind::InvalidData)?;
        let lengths = answer.fields("content-length");
        let chunked = answer.fields("transfer-encoding") == ["chunked"];
        if lengths.len() > 1 || (chunked && !lengths.is_empty()) {
            return Err(ErrorKind::InvalidData);
        }
        if method == "HEAD" || matches!(answer.status, 100..=199 | 204 | 304) {
            return Ok(());
        }
        if chunked {
            return self.fill_chunked(answer);
        }
        if let [length] = lengths[..] {
            let length = length.parse().map_err(|_| ErrorKind::InvalidData)?;
            return self.take(length, &mut answer.body);
        }
        loop {
            answer.body.append(&mut self.input);
            match self.more() {
                Ok(()) => {}
                Err(ErrorKind::UnexpectedEof) => return Ok(()),
                Err(why) => return Err(why),
            }
        }
    }

    fn fill_chunked(&mut self, answer: &mut Answer) -> Result<(), ErrorKind> {
        loop {
            let line = self.through(b"\r\n")?;
            let digits = std::str::from_utf8(&line[..line.len() - 2]).unwrap_or("bad");
            let size = usize::from_str_radix(digits.split(';').next().unwrap_or(""), 16);
            let size = size.map_err(|_| ErrorKind::InvalidData)?;
            if size == 0 {
                break;
            }
            self.take(size, &mut answer.body)?;
            if self.through(b"\r\n")? != b"\r\n" {
                return Err(ErrorKind::InvalidData);
            }
        }
        loop {
            let line = self.through(b"\r\n")?;
            if line == b"\r\n" {
                return Ok(());
            }
            answer.trailers += &String::from_utf8_lossy(&line);
        }
    }

    /// Moves `count` bytes to `out`; what came before an end is moved too.
    fn take(&mut self, count: usize, out: &mut Vec<u8>) -> Result<(), ErrorKind> {
        let mut left = count;
        loop {
            let part = left.min(self.input.len());
            out.extend(self.input.drain(..part));
            left -= part;
            if left == 0 {
                return Ok(());
            }
            self.more()?;
        }
    }

    /// Reads through the next `mark`.
    pub(crate) fn through(&mut self, mark: &[u8]) -> Result<Vec<u8>, ErrorKind> {
        let mut from = 0;
        loop {
            let found = memchr::memmem::find(&self.input[from..], mark);
            if let Some(at) = found {
                return Ok(self.input.drain(..from + at + mark.len()).collect());
            }
            from = self.input.len().saturating_sub(mark.len() - 1);
            self.more()?;
        }
    }

    /// Reads some bytes more.
    fn more(&mut self) -> Result<(), ErrorKind> {
        let mut buffer = [0; 65_536];
        loop {
            let read = match &mut self.tls {
                None => self.stream.read(&mut buffer),
                Some(tls) => {
                    let read =
                        rustls::Stream::new(tls.as_mut(), &mut self.stream).read(&mut buffer);
                    // Only here it is an error of reading: the end came without close_notify.
                    read.map_err(|error| match error.kind() {
                        ErrorKind::UnexpectedEof => ErrorKind::ConnectionAborted.into(),
                        _ => error,
                    })
                }
            };
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof),
                Ok(count) => {
                    self.input.extend_from_slice(&buffer[..count]);
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.kind()),
            }
        }
    }

    /// Reads what is there, waiting for at least a byte; empty at the end.
    pub(crate) fn some(&mut self) -> Vec<u8> {
        if self.input.is_empty() {
            let _ = self.more();
        }
        std::mem::take(&mut self.input)
    }

    /// Reads to the end of the connection; an error when it ends in another way.
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>, ErrorKind> {
        loop {
            match self.more() {
                Ok(()) => {}
                Err(ErrorKind::UnexpectedEof) => return Ok(std::mem::take(&mut self.input)),
                Err(why) => return Err(why),
            }
        }
    }

    /// Asserts that the proxy closes without another byte.
    pub(crate) fn expect_end(&mut self) {
        let rest = self.rest().expect("a clean end");
        assert_eq!(String::from_utf8_lossy(&rest), "", "bytes behind the end");
    }

    /// Whether nothing but an end, clean or not, is left to read.
    pub(crate) fn is_over(&mut self) -> bool {
        match self.rest() {
            Ok(rest) => rest.is_empty(),
            Err(why) => why == ErrorKind::ConnectionReset,
        }
    }
}

impl Answer {
    /// The values of a field, in order.
    pub(crate) fn fields(&self, name: &str) -> Vec<&str> {
        let lines = self.head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim()).collect()
    }

    /// The first value of a field.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).first().copied()
    }

    /// The body as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|why| panic!("{why}: {}", self.text()))
    }

    /// `error.message` of the body.
    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// A request with a length.
pub(crate) fn post(path: &str, fields: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let mut out = format!(
        "POST {path} HTTP/1.1\r\nHost: proxy\r\n{fields}Content-Length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    out.extend_from_slice(body);
    out
}

/// A request in chunks.
pub(crate) fn post_chunked(path: &str, fields: &str, pieces: &[&[u8]]) -> Vec<u8> {
    let mut out = format!(
        "POST {path} HTTP/1.1\r\nHost: proxy\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
    )
    .into_bytes();
    for piece in pieces {
        out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        out.extend_from_slice(piece);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

/// A request without a body.
pub(crate) fn get(path: &str, fields: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: proxy\r\n{fields}\r\n").into_bytes()
}

/// A chat completion of the model `m`.
pub(crate) fn chat(fields: &str, stream: bool) -> Vec<u8> {
    let body = format!("{{\"messages\":[],\"model\":\"m\",\"stream\":{stream},\"seed\":7}}");
    post("/v1/chat/completions", fields, body)
}

/// Bytes that look like nothing in particular.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(count);
    loadtest::text::push_pattern(seed, 0, count, &mut out);
    out
}

/// SHA-256.
pub(crate) fn sha256(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}
