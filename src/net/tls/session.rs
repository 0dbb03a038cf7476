//! A rustls session, of either side, that reads and writes the ciphertext of a `Wire`.
//!
//! rustls keeps no buffers here (its unbuffered interface): it is shown what has been received and
//! says how much of that it has used.

use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::pki_types::CertificateDer;
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus,
};

use super::wire::{Ended, Wire};
use crate::net::buffers;

/// Most plaintext in a record (RFC 8446 §5.1).
pub(super) const RECORD_BYTES: usize = 16 * 1024;
/// More than any header, nonce, padding and tag of a record.
const RECORD_OVERHEAD: usize = 64;

/// Either side of a connection.
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

    /// The protocol both sides agreed on.
    pub(super) fn alpn(&self) -> Option<&[u8]> {
        match self {
            Session::Server(session) => session.alpn_protocol(),
            Session::Client(session) => session.alpn_protocol(),
        }
    }

    /// The peer's certificates, its own first.
    pub(super) fn peer_certificates(&self) -> Option<&[CertificateDer<'static>]> {
        match self {
            Session::Server(session) => session.peer_certificates(),
            Session::Client(session) => session.peer_certificates(),
        }
    }

    /// Uses up what has been received, and seals `data`.
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

    /// Seals the alert that an error left behind, if it left one.
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

/// Where plaintext goes.
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
fn alert<C: Records>(session: &mut C, wire: &mut Wire, error: &rustls::Error) {
    // Bytes that were no record would be found bad a second time; nothing stands before them.
    let last = matches!(
        error,
        rustls::Error::InvalidMessage(_)
            | rustls::Error::DecryptError
            | rustls::Error::PeerSentOversizedRecord
    );
    loop {
        let mut incoming = std::mem::take(&mut wire.incoming);
        let UnbufferedStatus { discard, state } = session.process(&mut incoming[wire.from..]);
        // Behind what was said before the error, such as a ServerHello.
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
        // Nothing is lost without it: the socket is going away.
        let _: Result<(), EncryptError> =
            wire.append(RECORD_OVERHEAD, |out| traffic.queue_close_notify(out));
    }
    wire.incoming = incoming;
    wire.from += discard;
}
