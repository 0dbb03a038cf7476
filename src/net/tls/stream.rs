//! TLS over one socket, as the trunk's `Stream` wants it.
//!
//! rustls keeps no buffers here (its unbuffered interface): ciphertext lies in pooled memory
//! only while a record is incomplete, so a connection that idles holds its keys and nothing
//! else. What has been received is decrypted at once and completely; the rest of a record that
//! found no room waits as plaintext.
//!
//! One receive and one send may be in flight, as on a plain socket. Records leave in the order
//! in which they were sealed: whoever seals appends to `outgoing`, and one sender at a time
//! empties it.
//!
//! Source: RFC 8446; the end of data is close_notify (§6.1), so an end without it is an error.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};
use rustls::{ClientConfig, ServerConfig};

use crate::base::buf::{LARGE_BYTES, SMALL_BYTES};
use crate::net::buffers;
use crate::net::rt::{Part, Socket};
use crate::net::sys::{self, Peek, Shut};

/// Most plaintext sealed for one send: four records.
const SEALED_MAX: usize = 4 * RECORD_BYTES;
/// Most plaintext in a record (RFC 8446 §5.1).
const RECORD_BYTES: usize = 16 * 1024;
/// More than any header, nonce, padding and tag of a record.
const RECORD_OVERHEAD: usize = 64;

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
    /// Decrypted and not yet received, from `plain_from`.
    plain: Vec<u8>,
    plain_from: usize,
    /// Bytes that were sealed by a `send_now` that had to wait: the next ones to be sent.
    owed: usize,
    sending: bool,
    /// The close must not look like a clean end.
    silent: bool,
}

enum Session {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// Ciphertext both ways.
#[derive(Default)]
struct Wire {
    /// Received and not yet used, from `from`: part of a record, once `drive` has run.
    incoming: Vec<u8>,
    from: usize,
    outgoing: Vec<u8>,
    ended: Option<Ended>,
    /// The last receive filled its buffer.
    bulky: bool,
}

/// How the peer's bytes ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ended {
    Clean,
    /// The connection ended without close_notify: bytes may be missing.
    Truncated,
    Failed,
}

impl TlsStream {
    /// Shakes hands with a client; the caller's timer bounds it.
    ///
    /// Errors: what the socket or rustls said; the client has been sent the alert.
    pub async fn accept(socket: Socket, config: Arc<ServerConfig>) -> io::Result<Self> {
        let session = UnbufferedServerConnection::new(config).map_err(io::Error::other)?;
        Self::shake(socket, Session::Server(session)).await
    }

    /// Shakes hands with an upstream; the caller's timer bounds it.
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
        loop {
            let driven = stream.state(|state| state.drive(None, &[]));
            if let Err(error) = driven {
                stream.send_alert();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
            stream.flush().await?;
            if !stream.state(|state| state.is_handshaking()) {
                return Ok(stream);
            }
            if stream.state(|state| state.wire.ended.is_some()) || !stream.fill().await? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// The socket under it.
    #[must_use]
    pub fn socket(&self) -> &Socket {
        &self.0.socket
    }

    /// The protocol both sides agreed on.
    #[must_use]
    pub fn speaks_h2(&self) -> bool {
        self.state(|state| match &state.session {
            Session::Server(session) => session.alpn_protocol() == Some(b"h2"),
            Session::Client(session) => session.alpn_protocol() == Some(b"h2"),
        })
    }

    /// The peer's own certificate, if it showed one.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<CertificateDer<'static>> {
        let owned = |chain: Option<&[CertificateDer<'static>]>| chain?.first().cloned();
        self.state(|state| match &state.session {
            Session::Server(session) => owned(session.peer_certificates()),
            Session::Client(session) => owned(session.peer_certificates()),
        })
    }

    /// Receives into the spare capacity of `buffer`; 0 bytes is a clean end.
    ///
    /// Errors: `UnexpectedEof` when the peer ended without saying so.
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

    /// Decrypts what has come, and takes what fits; `None` when more must be received.
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
                self.send_alert();
                Err(io::Error::new(io::ErrorKind::InvalidData, error))
            }
            Ok((n, _)) if n > 0 => Ok(Some(n)),
            Ok((_, None)) => Ok(None),
            Ok((_, Some(Ended::Clean))) => Ok(Some(0)),
            Ok((_, Some(Ended::Truncated))) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok((_, Some(Ended::Failed))) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// Receives ciphertext; false at the end.
    async fn fill(&self) -> io::Result<bool> {
        let cipher = buffers::take(self.state(|state| state.wire.room()));
        let (result, cipher) = self.0.socket.recv(cipher).await;
        let n = *result.as_ref().unwrap_or(&0);
        self.state(|state| state.wire.received(n, cipher));
        result.map(|n| n > 0)
    }

    /// Sends one part, up to four records of it.
    pub async fn send(self, part: Part) -> (io::Result<usize>, Part) {
        let n = part.left().min(SEALED_MAX);
        if let Err(error) = self.state(|state| state.seal(&part.bytes()[..n])) {
            return (Err(io::Error::other(error)), part);
        }
        self.state(|state| state.owed -= n);
        (self.flush().await.map(|()| n), part)
    }

    /// Sends in this very turn.
    ///
    /// Shape: `Ok(0)` means that it would have to wait; the same bytes must be sent next, since
    /// they are sealed already.
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

    /// Sends all that is sealed.
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

    /// Sends what the kernel takes of what is sealed; the rest goes with the next send.
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

    /// Tells the peer why; rustls has the alert ready after an error.
    fn send_alert(&self) {
        self.state(|state| {
            state.wire.ended = Some(Ended::Failed);
            state.queue_alert();
            state.silent = true;
        });
        self.send_outgoing_now();
    }

    /// Waits until a receive may not have to wait. Free to drop.
    pub async fn readable(self) {
        if self.state(|state| state.plain_left() == 0 && state.wire.ended.is_none()) {
            self.0.socket.readable().await;
        }
    }

    /// Looks at what has come, which takes it off the socket and decrypts it.
    #[must_use]
    pub fn peek(&self) -> Peek {
        if self.state(|state| state.plain_left() == 0 && state.wire.ended.is_none()) {
            let mut cipher = buffers::take(SMALL_BYTES);
            match sys::recv_now(self.0.socket.fd(), &mut cipher) {
                Ok(Some(n)) => self.state(|state| state.wire.received(n, cipher)),
                Ok(None) => return Peek::Nothing,
                Err(_) => return Peek::Gone,
            }
            if self.state(|state| state.drive(None, &[])).is_err() {
                self.send_alert();
                return Peek::Gone;
            }
        }
        self.state(|state| match (state.plain_left(), state.wire.ended) {
            (1.., _) => Peek::Data,
            (0, Some(_)) => Peek::Gone,
            (0, None) => Peek::Nothing,
        })
    }

    /// Ends one or both directions; the peer is told when sending ends.
    pub fn shutdown(&self, how: Shut) {
        if how != Shut::Read {
            self.0.say_goodbye();
        }
        self.0.socket.shutdown(how);
    }

    /// Lets the connection end without a word, so that the peer cannot take it for a clean end.
    pub fn close_with_reset(&self) {
        self.state(|state| state.silent = true);
        sys::close_with_reset(self.0.socket.fd());
    }

    fn state<T>(&self, use_it: impl FnOnce(&mut State) -> T) -> T {
        use_it(&mut self.0.state.borrow_mut())
    }
}

impl Inner {
    /// Sends close_notify, once, if it can go at once.
    fn say_goodbye(&self) {
        let mut state = self.state.borrow_mut();
        if state.silent || state.sending || state.is_handshaking() {
            return;
        }
        state.silent = true;
        state.queue_close_notify();
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

impl Wire {
    /// How much to receive next: a little, unless much is coming.
    fn room(&self) -> usize {
        if self.bulky || self.incoming.len() - self.from > SMALL_BYTES / 2 {
            LARGE_BYTES
        } else {
            SMALL_BYTES
        }
    }

    fn received(&mut self, n: usize, cipher: Vec<u8>) {
        if n == 0 {
            self.ended.get_or_insert(Ended::Truncated);
        }
        self.bulky = n > 0 && cipher.len() == cipher.capacity();
        if self.incoming.is_empty() {
            buffers::give_back(std::mem::replace(&mut self.incoming, cipher));
            self.from = 0;
        } else {
            self.incoming.extend_from_slice(&cipher);
            buffers::give_back(cipher);
        }
    }

    /// Forgets what has been used.
    fn tidy(&mut self) {
        if self.from == self.incoming.len() {
            buffers::give_back(std::mem::take(&mut self.incoming));
            self.from = 0;
        } else if self.from > 0 {
            self.incoming.drain(..self.from);
            self.from = 0;
        }
    }

    /// Lets `write` seal into the end of `outgoing`, which has `room` bytes for it.
    fn append<E>(
        &mut self,
        room: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(), E> {
        let begin = self.outgoing.len();
        if self.outgoing.capacity() == 0 {
            self.outgoing = buffers::take(room);
        }
        self.outgoing.resize(begin + room, 0);
        let written = write(&mut self.outgoing[begin..]);
        self.outgoing.truncate(begin + *written.as_ref().unwrap_or(&0));
        written.map(drop)
    }
}

impl State {
    fn plain_left(&self) -> usize {
        self.plain.len() - self.plain_from
    }

    fn is_handshaking(&self) -> bool {
        match &self.session {
            Session::Server(session) => session.is_handshaking(),
            Session::Client(session) => session.is_handshaking(),
        }
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

    /// Seals what has not been sealed before; counts it as owed.
    fn seal(&mut self, bytes: &[u8]) -> Result<(), rustls::Error> {
        self.seal_after(0, bytes)
    }

    /// As `seal`, for bytes that come behind `before` others.
    fn seal_after(&mut self, before: usize, bytes: &[u8]) -> Result<(), rustls::Error> {
        let sealed = self.owed.saturating_sub(before).min(bytes.len());
        if sealed < bytes.len() {
            self.drive(None, &bytes[sealed..])?;
            self.owed = before + bytes.len();
        }
        Ok(())
    }

    /// Uses up what has been received, into `sink` as long as it has room, and seals `data`.
    fn drive(&mut self, sink: Option<&mut Vec<u8>>, data: &[u8]) -> Result<(), rustls::Error> {
        let Self { session, wire, plain, plain_from, .. } = self;
        if *plain_from > 0 {
            plain.drain(..*plain_from);
            *plain_from = 0;
        }
        let mut inbox = Inbox { sink, plain };
        let driven = match session {
            Session::Server(session) => drive(session, wire, &mut inbox, data),
            Session::Client(session) => drive(session, wire, &mut inbox, data),
        };
        wire.tidy();
        driven
    }

    fn queue_alert(&mut self) {
        let Self { session, wire, .. } = self;
        match session {
            Session::Server(session) => alert(session, wire),
            Session::Client(session) => alert(session, wire),
        }
    }

    fn queue_close_notify(&mut self) {
        let Self { session, wire, .. } = self;
        match session {
            Session::Server(session) => goodbye(session, wire),
            Session::Client(session) => goodbye(session, wire),
        }
    }
}

/// Where plaintext goes.
struct Inbox<'a> {
    sink: Option<&'a mut Vec<u8>>,
    plain: &'a mut Vec<u8>,
}

impl Inbox<'_> {
    fn put(&mut self, payload: &[u8]) {
        let mut rest = payload;
        if let Some(sink) = self.sink.as_mut().filter(|_| self.plain.is_empty()) {
            let n = rest.len().min(sink.capacity() - sink.len());
            sink.extend_from_slice(&rest[..n]);
            rest = &rest[n..];
        }
        if !rest.is_empty() {
            if self.plain.capacity() == 0 {
                *self.plain = buffers::take(rest.len());
            }
            self.plain.extend_from_slice(rest);
        }
    }
}

/// What the two kinds of session have in common.
trait Records {
    type Data;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Records for UnbufferedServerConnection {
    type Data = ServerConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

impl Records for UnbufferedClientConnection {
    type Data = ClientConnectionData;
    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(incoming)
    }
}

/// Runs the session until it wants more bytes.
fn drive<C: Records>(
    session: &mut C,
    wire: &mut Wire,
    inbox: &mut Inbox<'_>,
    data: &[u8],
) -> Result<(), rustls::Error> {
    loop {
        let mut incoming = std::mem::take(&mut wire.incoming);
        let UnbufferedStatus { mut discard, state } = session.process(&mut incoming[wire.from..]);
        let mut done = false;
        let mut result = Ok(());
        match state {
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(Ok(record)) = traffic.next_record() {
                    discard += record.discard;
                    inbox.put(record.payload);
                }
            }
            Ok(ConnectionState::EncodeTlsData(mut handshake)) => {
                encode(wire, &mut handshake);
            }
            // It is sealed; `flush` sends it before anything else.
            Ok(ConnectionState::TransmitTlsData(sealed)) => sealed.done(),
            Ok(ConnectionState::PeerClosed) => wire.ended = Some(Ended::Clean),
            Ok(ConnectionState::WriteTraffic(mut traffic)) => {
                if !data.is_empty() {
                    let room = data.len() + (data.len() / RECORD_BYTES + 1) * RECORD_OVERHEAD;
                    if wire.append(room, |out| traffic.encrypt(data, out)).is_err() {
                        result = Err(rustls::Error::EncryptError);
                    }
                }
                done = true;
            }
            // No more can be sealed, and nobody may think that it was.
            Ok(_) if !data.is_empty() => result = Err(rustls::Error::EncryptError),
            Ok(_) => done = true,
            Err(error) => result = Err(error),
        }
        wire.incoming = incoming;
        wire.from += discard;
        if done || result.is_err() {
            return result;
        }
    }
}

/// Takes over a record that rustls has made itself.
fn encode<D>(wire: &mut Wire, record: &mut EncodeTlsData<'_, D>) {
    // Asked with no room, it says how much it wants; given that, it cannot fail.
    if let Err(EncodeError::InsufficientSize(needed)) = record.encode(&mut []) {
        let _ = wire.append(needed.required_size, |out| record.encode(out));
    }
}

/// Seals the alert that an error left behind, if it left one.
///
/// What has been received is shown again as it is: rustls remembers where in it messages lie.
fn alert<C: Records>(session: &mut C, wire: &mut Wire) {
    let mut incoming = std::mem::take(&mut wire.incoming);
    let status = session.process(&mut incoming[wire.from..]);
    if let Ok(ConnectionState::EncodeTlsData(mut last)) = status.state {
        encode(wire, &mut last);
    }
    wire.incoming = incoming;
}

/// Seals close_notify, if the session is where that can be done.
fn goodbye<C: Records>(session: &mut C, wire: &mut Wire) {
    let mut incoming = std::mem::take(&mut wire.incoming);
    let status = session.process(&mut incoming[wire.from..]);
    if let Ok(ConnectionState::WriteTraffic(mut traffic)) = status.state {
        // Nothing is lost without it: the socket is going away.
        let _: Result<(), EncryptError> =
            wire.append(RECORD_OVERHEAD, |out| traffic.queue_close_notify(out));
    }
    wire.incoming = incoming;
}
