//! TLS over one socket, as the trunk's `Stream` wants it.
//!
//! rustls keeps no buffers here (its unbuffered interface): ciphertext is in pooled memory only
//! while a record is incomplete, so a connection that idles holds its keys and nothing else. All
//! records received are decrypted at once; plaintext for which the reader's buffer has no room
//! waits in `State::plain`.
//!
//! One receive and one send may be in flight, as on a plain socket. Records leave in the order in
//! which they were sealed (encrypted): each is appended to `outgoing`, and one sender at a time
//! empties it.
//!
//! Source: RFC 8446; the end of data is close_notify (§6.1), so an end without it is an error.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, ServerConfig};

use super::plain;
use super::session::{Inbox, RECORD_BYTES, Session};
use super::wire::{Ended, Wire};
use crate::base::buf::SMALL_BYTES;
use crate::net::buffers;
use crate::net::discard::discard;
use crate::net::rt::{Part, Socket};
use crate::net::sys::{self, Peek, Shut};

/// Most plaintext sealed for one send: four records.
const SEALED_MAX: usize = 4 * RECORD_BYTES;

/// A connection whose handshake is done; clones share it, the last one closes it.
#[derive(Clone)]
pub struct TlsStream(Rc<Inner>);

struct Inner {
    socket: Socket,
    state: RefCell<State>,
}

struct State {
    session: Session,
    wire: Wire,
    /// Decrypted bytes; those from `plain_from` on the trunk has not received yet.
    plain: Vec<u8>,
    plain_from: usize,
    /// How many bytes of plaintext a `send_now` has sealed without sending all of them: the next
    /// send begins with the same bytes, which are not sealed again.
    owed: usize,
    sending: bool,
    /// No close_notify is to be sent: it was sent, or the close must not look like a clean end.
    silent: bool,
}

impl TlsStream {
    /// Shakes hands with a client; the caller's timer bounds the time.
    ///
    /// Errors: those of the socket and of rustls; the client has been sent the alert, or the answer
    /// of `plain` when it spoke plain HTTP.
    pub async fn accept(socket: Socket, config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        Self::shake(socket, Session::Server(session)).await
    }

    /// Shakes hands with an upstream; the caller's timer bounds the time.
    ///
    /// Errors: those of the socket and of rustls; the upstream has been sent the alert.
    pub async fn connect(
        socket: Socket,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let session = UnbufferedClientConnection::new(config, name).map_err(io::Error::other)?;
        Self::shake(socket, Session::Client(session)).await
    }

    async fn shake(socket: Socket, session: Session) -> io::Result<Self> {
        let (wire, plain) = (Wire::default(), Vec::new());
        let (plain_from, owed, sending, silent) = (0, 0, false, false);
        let state = State { session, wire, plain, plain_from, owed, sending, silent };
        let stream = Self(Rc::new(Inner { socket, state: RefCell::new(state) }));
        let mut begun = false;
        loop {
            // Looked at before `drive`, which may use up the first bytes.
            let is_http = !begun && stream.state(|state| plain::is_http(&state.wire.incoming));
            let driven = stream.state(|state| state.drive(None, &[]));
            if let Err(error) = driven {
                if is_http {
                    stream.refuse_plain().await;
                } else {
                    stream.send_alert(&error);
                }
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            begun |= stream.state(|state| !state.wire.outgoing.is_empty());
            stream.flush().await?;
            if !stream.state(|state| state.session.is_handshaking()) {
                return Ok(stream);
            }
            if stream.state(|state| state.wire.ended.is_some()) || !stream.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Answers a client that speaks plain HTTP, and waits for it to leave.
    async fn refuse_plain(&self) {
        self.state(|state| state.silent = true);
        let socket = &self.0.socket;
        let (sent, _) = socket.send_all(Part::whole(plain::ANSWER.to_vec())).await;
        if sent.is_ok() {
            // As `Stream::linger` does.
            socket.shutdown(Shut::Write);
            discard(|buffer| socket.recv(buffer), plain::DROPPED_BYTES_MAX).await;
        }
    }

    /// The socket that carries the records.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.0.socket
    }

    /// Whether both sides agreed on HTTP/2 (ALPN).
    #[must_use]
    pub fn speaks_h2(&self) -> bool {
        self.state(|state| state.session.alpn() == Some(b"h2"))
    }

    /// The peer's own certificate, if it showed one.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        self.state(|state| state.session.peer_certificates()?.first().cloned())
    }

    /// Receives into the spare capacity of `buffer`; 0 bytes is a clean end.
    ///
    /// Errors: `UnexpectedEof` when the peer ended without close_notify: bytes may be missing.
    pub async fn recv(self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        loop {
            match self.take(&mut buffer) {
                Ok(Some(n)) => return (Ok(n), buffer),
                Ok(None) => {}
                Err(error) => return (Err(error), buffer),
            }
            if let Err(error) = self.fill().await {
                return (Err(error), buffer);
            }
        }
    }

    /// Receives what is there, without waiting.
    pub fn recv_now(&self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        loop {
            if let Some(n) = self.take(buffer)? {
                return Ok(Some(n));
            }
            let mut cipher = buffers::take(self.state(|state| state.wire.room()));
            match sys::recv_now(self.0.socket.fd(), &mut cipher) {
                Ok(Some(n)) => self.state(|state| state.wire.received(n, cipher)),
                nothing => {
                    buffers::give_back(cipher);
                    return nothing.map(|_| None);
                }
            }
        }
    }

    /// Decrypts the ciphertext that is here, and moves plaintext into `buffer` as far as it fits;
    /// `None` when more must be received.
    fn take(&self, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
        let (driven, unsent) = self.state(|state| {
            let before = buffer.len();
            state.take_plain(buffer);
            let driven = match state.wire.incoming.is_empty() {
                true => Ok(()),
                false => state.drive(Some(buffer), &[]),
            };
            let n = buffer.len() - before;
            (driven.map(|()| (n, state.wire.ended)), !state.wire.outgoing.is_empty())
        });
        if unsent {
            self.send_outgoing_now();
        }
        match driven {
            Err(error) => {
                self.send_alert(&error);
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
            Ok((n, _)) if n > 0 => Ok(Some(n)),
            Ok((_, None)) => Ok(None),
            Ok((_, Some(Ended::Clean))) => Ok(Some(0)),
            Ok((_, Some(Ended::Truncated))) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, Some(Ended::Failed))) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Receives ciphertext; false when the peer has ended.
    async fn fill(&self) -> io::Result<bool> {
        let cipher = buffers::take(self.state(|state| state.wire.room()));
        let (result, cipher) = self.0.socket.recv(cipher).await;
        let n = *result.as_ref().unwrap_or(&0);
        self.state(|state| state.wire.received(n, cipher));
        result.map(|n| n > 0)
    }

    /// Sends the beginning of a part, up to four records; returns how many bytes.
    pub async fn send(self, part: Part) -> (io::Result<usize>, Part) {
        let n = part.left().min(SEALED_MAX);
        if let Err(error) = self.state(|state| state.seal(&part.bytes()[..n])) {
            return (Err(io::Error::other(error)), part);
        }
        self.state(|state| state.owed -= n);
        (self.flush().await.map(|()| n), part)
    }

    /// Sends two pieces as one, without waiting.
    ///
    /// Shape: returns the bytes of both, or 0 when a send would have to wait: then the same bytes
    /// must be sent next, since they are sealed already.
    pub fn send_now(&self, first: &[u8], second: &[u8]) -> io::Result<usize> {
        if self.state(|state| state.sending) {
            return Ok(0);
        }
        let sealed = self
            .state(|state| state.seal(first).and_then(|()| state.seal_after(first.len(), second)));
        sealed.map_err(io::Error::other)?;
        self.send_outgoing_now();
        Ok(self.state(|state| match state.wire.outgoing.is_empty() {
            true => std::mem::take(&mut state.owed),
            false => 0,
        }))
    }

    /// Sends all records in `outgoing`, waiting for the kernel.
    async fn flush(&self) -> io::Result<()> {
        loop {
            let out = self.state(|state| {
                state.sending = !state.wire.outgoing.is_empty();
                std::mem::take(&mut state.wire.outgoing)
            });
            if out.is_empty() {
                return Ok(());
            }
            let (result, out) = self.0.socket.send_all(Part::whole(out)).await;
            buffers::give_back(out);
            if let Err(error) = result {
                self.state(|state| (state.sending, state.silent) = (false, true));
                return Err(error);
            }
        }
    }

    /// Sends as much of `outgoing` as the kernel takes; the next send begins with the rest.
    fn send_outgoing_now(&self) {
        self.state(|state| {
            if state.sending {
                return;
            }
            let out = &mut state.wire.outgoing;
            // An error shows again in the next send.
            let n = sys::send_now(self.0.socket.fd(), out).unwrap_or(0);
            if n == out.len() {
                buffers::give_back(std::mem::take(out));
            } else {
                out.drain(..n);
            }
        });
    }

    /// Sends the peer the alert that rustls has ready after an error.
    fn send_alert(&self, error: &rustls::Error) {
        self.state(|state| {
            state.wire.ended = Some(Ended::Failed);
            state.session.alert(&mut state.wire, error);
            state.silent = true;
        });
        self.send_outgoing_now();
    }

    /// Waits until bytes or an end have come; a part of a record is enough, so the next receive may
    /// still have to wait. Free to drop.
    pub async fn readable(self) {
        if self.state(|state| state.plain_left() == 0 && state.wire.ended.is_none()) {
            self.0.socket.readable().await;
        }
    }

    /// Tells what a receive would find. For that it takes bytes off the socket and decrypts them.
    #[must_use]
    pub fn peek(&self) -> Peek {
        if self.state(|state| state.plain_left() == 0 && state.wire.ended.is_none()) {
            let mut cipher = buffers::take(SMALL_BYTES);
            match sys::recv_now(self.0.socket.fd(), &mut cipher) {
                Ok(Some(n)) => self.state(|state| state.wire.received(n, cipher)),
                Ok(None) => return Peek::Nothing,
                Err(_) => return Peek::Gone,
            }
            if let Err(error) = self.state(|state| state.drive(None, &[])) {
                self.send_alert(&error);
                return Peek::Gone;
            }
        }
        self.state(|state| match (state.plain_left(), state.wire.ended) {
            (1.., _) => Peek::Data,
            (0, Some(_)) => Peek::Gone,
            (0, None) => Peek::Nothing,
        })
    }

    /// Ends one or both directions; the end of sending is told to the peer by close_notify.
    pub fn shutdown(&self, how: Shut) {
        if how != Shut::Read {
            self.0.say_goodbye();
        }
        self.0.socket.shutdown(how);
    }

    /// Makes the coming close a reset without close_notify, so that the peer does not take it for a
    /// clean end.
    pub fn close_with_reset(&self) {
        self.state(|state| state.silent = true);
        sys::close_with_reset(self.0.socket.fd());
    }

    fn state<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.0.state.borrow_mut())
    }
}

impl Inner {
    /// Sends close_notify, once, if it can be sent without waiting.
    fn say_goodbye(&self) {
        let mut state = self.state.borrow_mut();
        if state.silent || state.sending || state.session.is_handshaking() {
            return;
        }
        state.silent = true;
        let State { session, wire, .. } = &mut *state;
        session.goodbye(wire);
        let _ = sys::send_now(self.socket.fd(), &state.wire.outgoing);
        buffers::give_back(std::mem::take(&mut state.wire.outgoing));
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.say_goodbye();
        let state = self.state.get_mut();
        buffers::give_back(std::mem::take(&mut state.plain));
        buffers::give_back(std::mem::take(&mut state.wire.incoming));
        buffers::give_back(std::mem::take(&mut state.wire.outgoing));
    }
}

impl State {
    fn plain_left(&self) -> usize {
        self.plain.len() - self.plain_from
    }

    fn take_plain(&mut self, buffer: &mut Vec<u8>) {
        let n = self.plain_left().min(buffer.capacity() - buffer.len());
        buffer.extend_from_slice(&self.plain[self.plain_from..self.plain_from + n]);
        self.plain_from += n;
        if self.plain_left() == 0 {
            buffers::give_back(std::mem::take(&mut self.plain));
            self.plain_from = 0;
        }
    }

    /// Seals `bytes` but for those that are sealed already, and counts all of them as owed.
    fn seal(&mut self, bytes: &[u8]) -> Result<(), rustls::Error> {
        self.seal_after(0, bytes)
    }

    /// As `seal`, for bytes that follow `before` others of the same send.
    fn seal_after(&mut self, before: usize, bytes: &[u8]) -> Result<(), rustls::Error> {
        let sealed = self.owed.saturating_sub(before).min(bytes.len());
        if sealed < bytes.len() {
            self.drive(None, &bytes[sealed..])?;
            self.owed = before + bytes.len();
        }
        Ok(())
    }

    /// Decrypts the ciphertext received, into `sink` as long as it has room, and seals `data`.
    fn drive(&mut self, sink: Option<&mut Vec<u8>>, data: &[u8]) -> Result<(), rustls::Error> {
        let Self { session, wire, plain, plain_from, .. } = self;
        if *plain_from > 0 {
            plain.drain(..*plain_from);
            *plain_from = 0;
        }
        let mut inbox = Inbox { sink, plain };
        let driven = session.drive(wire, &mut inbox, data);
        wire.tidy();
        driven
    }
}
