//! One connection of the generator: send a request, read its answer, keep or close.
//!
//! The one idea: reading may begin while the request is still being written, since
//! an early answer (a 413 in the middle of an upload) must not be lost. What went
//! wrong is told apart finely: a connection that a server closed between two
//! requests is nobody's fault and is tried once more, on a new one.

use std::io;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::Target;
use super::check::{Bad, Checker, Expected};
use super::wire::{BadAnswer, Head};

/// Bytes read at once.
const READ_BYTES: usize = 65_536;

/// Why there is no right answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// No connection could be made.
    Connect,
    /// Closed before the first byte of the answer.
    NoAnswer,
    /// Closed or reset before the end of the answer.
    Truncated,
    /// The limit for an exchange has passed.
    Timeout,
    /// The bytes are not those of an HTTP answer.
    Framing(BadAnswer),
    /// The answer is not the right one.
    Content(Bad),
}

/// What an exchange gave, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    /// When the first byte of the request was given to the socket.
    pub(super) sent_at: Option<Instant>,
    pub(super) status: Option<u16>,
    /// First byte of the answer.
    pub(super) first_byte_at: Option<Instant>,
    /// First piece of text.
    pub(super) first_token_at: Option<Instant>,
    /// Times between pieces of text.
    pub(super) gaps: Vec<Duration>,
    /// Times it took to connect.
    pub(super) connects: Vec<Duration>,
    pub(super) events: u64,
    /// Tokens of the answer: pieces of text until it has ended, then its usage.
    pub(super) tokens: Option<u64>,
    pub(super) sent_bytes: u64,
    pub(super) received_bytes: u64,
    /// Connections found closed and replaced.
    pub(super) stale: u64,
    /// Left on purpose.
    pub(super) aborted: bool,
}

/// One connection, opened when needed.
#[derive(Debug)]
pub(super) struct Client {
    target: Target,
    stream: Option<TcpStream>,
    input: Vec<u8>,
    scratch: Vec<u8>,
}

impl Client {
    pub(super) fn new(target: Target) -> Client {
        Client { target, stream: None, input: Vec::new(), scratch: vec![0; READ_BYTES] }
    }

    /// Forgets the connection; the next request opens another.
    pub(super) fn close(&mut self) {
        self.stream = None;
        self.input.clear();
    }

    /// Sends one request and checks its answer. After an error the connection is gone.
    pub(super) async fn exchange(
        &mut self,
        request: &[u8],
        expected: Expected<'_>,
        abort_after: Option<u64>,
        told: &mut Exchange,
    ) -> Result<(), Fault> {
        let ended = self.exchange_once(request, expected, abort_after, told).await;
        let ended = match ended {
            Err(Attempt::Stale) => {
                told.stale += 1;
                self.close();
                self.exchange_once(request, expected, abort_after, told).await
            }
            ended => ended,
        };
        match ended {
            Ok(true) => Ok(()),
            Ok(false) => {
                self.close();
                Ok(())
            }
            Err(Attempt::Stale) => {
                self.close();
                Err(Fault::NoAnswer)
            }
            Err(Attempt::Failed(fault)) => {
                self.close();
                Err(fault)
            }
        }
    }

    /// One attempt; true when the connection may carry another exchange.
    async fn exchange_once(
        &mut self,
        request: &[u8],
        expected: Expected<'_>,
        abort_after: Option<u64>,
        told: &mut Exchange,
    ) -> Result<bool, Attempt> {
        let reused = self.stream.is_some();
        if self.idle_bytes() {
            return Err(Attempt::Failed(Fault::Framing(BadAnswer::Extra)));
        }
        self.connect(told).await?;
        told.sent_at.get_or_insert_with(Instant::now);
        let whole = self.send(request, told).await?;
        let head = loop {
            match self.head()? {
                Some(head) if (100..200).contains(&head.status) => {}
                Some(head) => break head,
                None => match self.read(told).await {
                    Ok(true) => {}
                    _ if !self.input.is_empty() => return Err(Fault::Truncated.into()),
                    _ if reused => return Err(Attempt::Stale),
                    _ => return Err(Fault::NoAnswer.into()),
                },
            }
        };
        told.status = Some(head.status);
        let mut checker = Checker::new(expected, &head).map_err(Fault::Content)?;
        let mut body = head.body();
        let mut data = Vec::new();
        let mut last_at = None;
        loop {
            let complete = body.take(&mut self.input, &mut data).map_err(Fault::Framing)?;
            let pieces = checker.push(&data).map_err(Fault::Content)?;
            data.clear();
            told.events = checker.events();
            note_pieces(pieces, &mut last_at, told);
            if abort_after.is_some_and(|limit| told.events >= limit) && !complete {
                told.aborted = true;
                return Ok(false);
            }
            if complete {
                break;
            }
            match self.read(told).await {
                Ok(true) => {}
                Ok(false) if body.ends_with_connection() => break,
                _ => return Err(Fault::Truncated.into()),
            }
        }
        told.tokens = checker.finish().map_err(Fault::Content)?;
        if !self.input.is_empty() {
            return Err(Fault::Framing(BadAnswer::Extra).into());
        }
        Ok(whole && head.keep)
    }

    async fn connect(&mut self, told: &mut Exchange) -> Result<(), Fault> {
        if self.stream.is_some() {
            return Ok(());
        }
        let started = Instant::now();
        let stream = TcpStream::connect(self.target.addr).await.map_err(|_| Fault::Connect)?;
        stream.set_nodelay(true).map_err(|_| Fault::Connect)?;
        told.connects.push(started.elapsed());
        self.stream = Some(stream);
        Ok(())
    }

    /// Whether bytes came on the idle connection that no request asked for.
    fn idle_bytes(&mut self) -> bool {
        let Some(stream) = &self.stream else { return false };
        matches!(stream.try_read(&mut self.scratch), Ok(count) if count > 0)
    }

    /// Writes the request, or as much of it as the server takes before it answers.
    async fn send(&mut self, request: &[u8], told: &mut Exchange) -> Result<bool, Fault> {
        let stream = self.stream.as_ref().ok_or(Fault::Connect)?;
        let mut rest = request;
        while !rest.is_empty() {
            match stream.try_write(rest) {
                Ok(count) => {
                    rest = rest.get(count..).unwrap_or_default();
                    told.sent_bytes += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let answered = tokio::select! {
                        ready = stream.writable() => ready.is_err(),
                        _ = stream.readable() => match stream.try_read(&mut self.scratch) {
                            Ok(count) => {
                                let bytes = self.scratch.get(..count).unwrap_or_default();
                                self.input.extend_from_slice(bytes);
                                told.received_bytes += count as u64;
                                told.first_byte_at.get_or_insert_with(Instant::now);
                                // An interim answer is no reason to stop.
                                !self.input.starts_with(b"HTTP/1.1 1")
                            }
                            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
                        },
                    };
                    if answered {
                        return Ok(false);
                    }
                }
                // The answer may have come before the server closed: read on.
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Takes a head from the front of the input.
    fn head(&mut self) -> Result<Option<Head>, Fault> {
        if self.input.is_empty() {
            return Ok(None);
        }
        let Some((head, bytes)) = Head::parse(&self.input).map_err(Fault::Framing)? else {
            return Ok(None);
        };
        self.input.drain(..bytes);
        Ok(Some(head))
    }

    /// Reads more; false at the end of the connection.
    async fn read(&mut self, told: &mut Exchange) -> io::Result<bool> {
        let Some(stream) = &self.stream else { return Ok(false) };
        loop {
            match stream.try_read(&mut self.scratch) {
                Ok(count) => {
                    if count == READ_BYTES {
                        // More is there already; the other connections' clocks run too.
                        tokio::task::yield_now().await;
                    }
                    self.input.extend_from_slice(self.scratch.get(..count).unwrap_or_default());
                    told.received_bytes += count as u64;
                    if count > 0 {
                        told.first_byte_at.get_or_insert_with(Instant::now);
                    }
                    return Ok(count > 0);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    stream.readable().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// How an attempt failed: for good, or on a connection that was already closed.
enum Attempt {
    Stale,
    Failed(Fault),
}

impl From<Fault> for Attempt {
    fn from(fault: Fault) -> Attempt {
        Attempt::Failed(fault)
    }
}

/// Notes the times of pieces of text that came in one read.
fn note_pieces(pieces: u32, last_at: &mut Option<Instant>, told: &mut Exchange) {
    if pieces == 0 {
        return;
    }
    let now = Instant::now();
    *told.tokens.get_or_insert(0) += u64::from(pieces);
    match last_at {
        Some(last) => told.gaps.push(now - *last),
        None => told.first_token_at = Some(now),
    }
    // Those behind the first in the same read came together, for the reader.
    told.gaps.extend((1..pieces).map(|_| Duration::ZERO));
    *last_at = Some(now);
}
