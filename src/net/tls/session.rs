//! A rustls session, of either side, that reads and writes the ciphertext of a `Wire`.
//!
//! rustls keeps no buffers here (its unbuffered interface): it is given the bytes received and says
//! how many of them it has used.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};

use super::wire::{Ended, Wire};
use crate::net::buffers;

/// Most plaintext in a record, in bytes (RFC 8446 §5.1).
pub(super) const RECORD_BYTES: usize = 16 * 1024;
/// Bytes that header, nonce, padding and tag add to a record, at most.
const RECORD_OVERHEAD: usize = 64;

/// The rustls connection of either side.
pub(super) enum Session {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

impl Session {
    pub(super) fn is_handshaking(&self) -> bool {
        match self {
            Session::Server(session) => session.is_handshaking(),
            Session::Client(session) => session.is_handshaking(),
        }
    }

    /// The protocol that both sides agreed on (ALPN), such as `h2`; `None` when none was agreed.
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        match self {
            Session::Server(session) => session.alpn_protocol(),
            Session::Client(session) => session.alpn_protocol(),
        }
    }

    /// The chain of certificates that the peer showed, its own first.
    pub(super) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Session::Server(session) => session.peer_certificates(),
            Session::Client(session) => session.peer_certificates(),
        }
    }

    /// Processes the ciphertext received, puts its plaintext into `inbox`, and encrypts `data` into
    /// `wire.outgoing`.
    ///
    /// Errors: a fault of the peer; `EncryptError` when `data` cannot be encrypted any more.
    pub(super) fn drive(
        &mut self,
        wire: &mut Wire,
        inbox: &mut Inbox<'_>,
        data: &[u8],
    ) -> Result<(), rustls::Error> {
        match self {
            Session::Server(session) => drive(session, wire, inbox, data),
            Session::Client(session) => drive(session, wire, inbox, data),
        }
    }

    /// Seals the alert with which rustls wants to answer `error`, if it has one.
    pub(super) fn alert(&mut self, wire: &mut Wire, error: &rustls::Error) {
        match self {
            Session::Server(session) => alert(session, wire, error),
            Session::Client(session) => alert(session, wire, error),
        }
    }

    /// Seals close_notify, if the session is where that can be done.
    pub(super) fn goodbye(&mut self, wire: &mut Wire) {
        match self {
            Session::Server(session) => goodbye(session, wire),
            Session::Client(session) => goodbye(session, wire),
        }
    }
}

/// Where plaintext goes: into `sink` until it is full or absent, then into `plain`. The order of
/// bytes stays: nothing goes into `sink` while `plain` holds any.
pub(super) struct Inbox<'a> {
    pub(super) sink: Option<&'a mut Vec<u8>>,
    pub(super) plain: &'a mut Vec<u8>,
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

/// The one call that both kinds of session are driven by.
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

/// Runs the session until it needs more bytes from the peer; see `Session::drive`.
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
            // The handshake bytes are in `outgoing`; `flush` sends them before anything else.
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
            // In no other state can `data` be encrypted, and the caller must not think it was.
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

/// Appends a record that rustls has made itself, such as a handshake message or an alert.
fn encode<D>(wire: &mut Wire, record: &mut EncodeTlsData<'_, D>) {
    // Called with no room, `encode` says how much it needs; with that much it cannot fail.
    if let Err(EncodeError::InsufficientSize(needed)) = record.encode(&mut []) {
        let _ = wire.append(needed.required_size, |out| record.encode(out));
    }
}

/// Seals the alert that an error left behind, if it left one.
///
/// rustls is given the received bytes again unchanged: it remembers the positions of messages in
/// them.
fn alert<C: Records>(session: &mut C, wire: &mut Wire, error: &rustls::Error) {
    // These errors come from bytes that are no valid record: a second look would only find the same
    // error, and rustls has no other record to send before its alert.
    let last = matches!(
        error,
        rustls::Error::InvalidMessage(_)
            | rustls::Error::DecryptError
            | rustls::Error::PeerSentOversizedRecord
    );
    loop {
        let mut incoming = std::mem::take(&mut wire.incoming);
        let UnbufferedStatus { discard, state } = session.process(&mut incoming[wire.from..]);
        // The alert comes behind records made before the error, such as a ServerHello.
        let more = match state {
            Ok(ConnectionState::EncodeTlsData(mut record)) => {
                encode(wire, &mut record);
                !last
            }
            _ => false,
        };
        wire.incoming = incoming;
        wire.from += discard;
        if !more {
            return;
        }
    }
}

/// Seals close_notify, if the session is where that can be done.
fn goodbye<C: Records>(session: &mut C, wire: &mut Wire) {
    let mut incoming = std::mem::take(&mut wire.incoming);
    let UnbufferedStatus { discard, state } = session.process(&mut incoming[wire.from..]);
    if let Ok(ConnectionState::WriteTraffic(mut traffic)) = state {
        // An error is ignored: the socket is closed anyway.
        let _: Result<(), EncryptError> =
            wire.append(RECORD_OVERHEAD, |out| traffic.queue_close_notify(out));
    }
    wire.incoming = incoming;
    wire.from += discard;
}
