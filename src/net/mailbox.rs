//! Messages from any thread to a core: a connection handed over, a wake-up, what to listen on, or
//! an order of the control thread.
//!
//! A message socket pair per core carries fixed-size records, each whole or not at all. That
//! wakes a parked ring or epoll loop without an eventfd armed on every park, and it needs no
//! lock. Descriptors travel as plain numbers: sender and receiver are one process.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::listener::{BoundId, ListeningSocket};
use super::notify::WakeToken;
use super::rt::Socket;
use super::sys;
use crate::base::listener_id::ListenerId;

const RECORD_BYTES: usize = 32;

/// A message to a core.
#[derive(Debug)]
pub enum Message {
    /// A connection accepted elsewhere, not yet read from.
    Connection {
        /// The listener that accepted it.
        listener: ListenerId,
        /// The connection.
        fd: OwnedFd,
        /// The client's address, if it has one.
        peer: Option<SocketAddr>,
    },
    /// Wake an exchange that waits (`notify`).
    Wake {
        /// Which `Notify` to wake.
        token: WakeToken,
        /// The value that `Notify::notified` returns.
        value: u64,
    },
    /// Accept on this socket.
    Listen(ListeningSocket),
    /// Connections by this address are another listener's from now on.
    Assign {
        /// The address.
        bound: BoundId,
        /// Whose they are.
        listener: ListenerId,
    },
    /// Accept no more by this address, and close its sockets.
    StopListening {
        /// The address.
        bound: BoundId,
    },
    /// Tell this number once all that came before is done (`acknowledge`).
    Acknowledge {
        /// The number.
        number: u64,
    },
    /// Stop accepting, finish what is in flight.
    Drain,
    /// Abort what is still in flight.
    Abort,
    /// Take the newest plan.
    RefreshPlan,
    /// Close the connection that has idled longest: a new connection needs its place.
    EndIdle,
    /// Put the list of exchanges in flight where it is looked for, as the answer to this question.
    ListExchanges {
        /// The question.
        number: u64,
    },
    /// End an exchange in flight as if its client had left.
    EndExchange {
        /// Its slot.
        slot: u32,
        /// How often that slot had been used.
        uses: u32,
    },
}

/// The sending end; clones share one socket and may be used on any thread.
#[derive(Clone)]
pub struct Sender(Arc<OwnedFd>);

/// The receiving end, before its core's runtime has begun; `open` makes it a `Receiver`.
pub struct Inbox(OwnedFd);

/// Makes the mailbox of one core: a pair of connected message sockets.
pub fn mailbox() -> io::Result<(Sender, Inbox)> {
    let (ours, theirs) = sys::message_pair()?;
    Ok((Sender(Arc::new(ours)), Inbox(theirs)))
}

impl Sender {
    /// Sends without waiting.
    ///
    /// Errors: gives the message back when the mailbox is full or its core is gone.
    pub fn send(&self, message: Message) -> Result<(), Message> {
        let record = encode(&message);
        match sys::send_now(self.0.as_raw_fd(), &record) {
            Ok(RECORD_BYTES) => {
                let fd = match message {
                    Message::Connection { fd, .. } => Some(fd),
                    Message::Listen(ListeningSocket { socket, .. }) => Some(socket),
                    _ => None,
                };
                // The receiver owns the descriptor from here on.
                let _ = fd.map(IntoRawFd::into_raw_fd);
                Ok(())
            }
            _ => Err(message),
        }
    }
}

impl Inbox {
    /// Registers the receiving end with this core's runtime.
    pub fn open(self) -> io::Result<Receiver> {
        Ok(Receiver(Socket::adopt(self.0, Duration::from_secs(60))?))
    }
}

/// The receiving end, registered with its core's runtime.
pub struct Receiver(Socket);

impl Receiver {
    /// Waits for the next message; `None` when every sender is gone.
    pub async fn next(&self) -> Option<Message> {
        loop {
            let (result, record) = self.0.recv(Vec::with_capacity(RECORD_BYTES)).await;
            match result {
                Ok(0) | Err(_) => return None,
                Ok(_) => {
                    if let Some(message) = decode(&record) {
                        return Some(message);
                    }
                }
            }
        }
    }
}

fn encode(message: &Message) -> [u8; RECORD_BYTES] {
    let mut record = [0; RECORD_BYTES];
    match message {
        Message::Drain => record[0] = b'D',
        Message::Abort => record[0] = b'X',
        Message::Wake { token, value } => {
            record[0] = b'R';
            record[2..4].copy_from_slice(&token.core.to_le_bytes());
            record[4..8].copy_from_slice(&token.slot.to_le_bytes());
            record[8..12].copy_from_slice(&token.generation.to_le_bytes());
            record[16..24].copy_from_slice(&value.to_le_bytes());
        }
        Message::RefreshPlan => record[0] = b'L',
        Message::Listen(ListeningSocket { bound, listener, socket }) => {
            record[0] = b'N';
            record[4..8].copy_from_slice(&socket.as_raw_fd().to_le_bytes());
            record[8..12].copy_from_slice(&bound.0.to_le_bytes());
            record[28..32].copy_from_slice(&listener.0.to_le_bytes());
        }
        Message::Assign { bound, listener } => {
            record[0] = b'A';
            record[8..12].copy_from_slice(&bound.0.to_le_bytes());
            record[28..32].copy_from_slice(&listener.0.to_le_bytes());
        }
        Message::StopListening { bound } => {
            record[0] = b'S';
            record[8..12].copy_from_slice(&bound.0.to_le_bytes());
        }
        Message::Acknowledge { number } => {
            record[0] = b'K';
            record[16..24].copy_from_slice(&number.to_le_bytes());
        }
        Message::EndIdle => record[0] = b'I',
        Message::ListExchanges { number } => {
            record[0] = b'Q';
            record[16..24].copy_from_slice(&number.to_le_bytes());
        }
        Message::EndExchange { slot, uses } => {
            record[0] = b'E';
            record[4..8].copy_from_slice(&slot.to_le_bytes());
            record[8..12].copy_from_slice(&uses.to_le_bytes());
        }
        Message::Connection { listener, fd, peer } => {
            record[0] = b'C';
            record[28..32].copy_from_slice(&listener.0.to_le_bytes());
            record[4..8].copy_from_slice(&fd.as_raw_fd().to_le_bytes());
            if let Some(peer) = peer {
                record[8..10].copy_from_slice(&peer.port().to_le_bytes());
                match peer.ip() {
                    IpAddr::V4(ip) => {
                        record[1] = 4;
                        record[10..14].copy_from_slice(&ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        record[1] = 6;
                        record[10..26].copy_from_slice(&ip.octets());
                    }
                }
            }
        }
    }
    record
}

fn decode(record: &[u8]) -> Option<Message> {
    let record: &[u8; RECORD_BYTES] = record.try_into().ok()?;
    let two = |at: usize| u16::from_le_bytes([record[at], record[at + 1]]);
    let four = |at: usize| u32::from(two(at)) | u32::from(two(at + 2)) << 16;
    let eight = |at: usize| u64::from(four(at)) | u64::from(four(at + 4)) << 32;
    let (bound, listener) = (BoundId(four(8)), ListenerId(four(28)));
    match record[0] {
        b'D' => Some(Message::Drain),
        b'X' => Some(Message::Abort),
        b'R' => {
            let token = WakeToken { core: two(2), slot: four(4), generation: four(8) };
            Some(Message::Wake { token, value: eight(16) })
        }
        b'L' => Some(Message::RefreshPlan),
        b'I' => Some(Message::EndIdle),
        b'Q' => Some(Message::ListExchanges { number: eight(16) }),
        b'E' => Some(Message::EndExchange { slot: four(4), uses: four(8) }),
        b'N' => {
            let socket = sys::own(four(4) as i32);
            Some(Message::Listen(ListeningSocket { bound, listener, socket }))
        }
        b'A' => Some(Message::Assign { bound, listener }),
        b'S' => Some(Message::StopListening { bound }),
        b'K' => Some(Message::Acknowledge { number: eight(16) }),
        b'C' => {
            let fd = four(4) as i32;
            let mut v6 = [0u8; 16];
            v6.copy_from_slice(&record[10..26]);
            let ip = match record[1] {
                4 => Some(IpAddr::from([record[10], record[11], record[12], record[13]])),
                6 => Some(IpAddr::from(v6)),
                _ => None,
            };
            let peer = ip.map(|ip| SocketAddr::new(ip, two(8)));
            Some(Message::Connection { listener, fd: sys::own(fd), peer })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_survives_the_trip() {
        for peer in [None, Some("10.1.2.3:65535"), Some("[2001:db8::7]:80")] {
            let peer = peer.map(|p| p.parse().unwrap());
            let (fd, _other) = sys::message_pair().unwrap();
            let number = fd.as_raw_fd();
            let message = Message::Connection { listener: ListenerId(0x0403_0201), fd, peer };
            let record = encode(&message);
            let Message::Connection { fd, .. } = message else { unreachable!() };
            let _ = fd.into_raw_fd();
            match decode(&record) {
                Some(Message::Connection { listener: ListenerId(0x0403_0201), fd, peer: got }) => {
                    assert_eq!((fd.as_raw_fd(), got), (number, peer));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_ring_survives_the_trip() {
        let sent = WakeToken { core: 513, slot: 0x0403_0201, generation: u32::MAX - 1 };
        for value in [0, 1 << 63 | 5, u64::MAX] {
            match decode(&encode(&Message::Wake { token: sent, value })) {
                Some(Message::Wake { token, value: got }) => {
                    assert_eq!((token, got), (sent, value));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn what_to_listen_on_survives_the_trip() {
        let (bound, listener) = (BoundId(u32::MAX - 1), ListenerId(0x0403_0201));
        for message in [
            Message::Assign { bound, listener },
            Message::StopListening { bound },
            Message::Acknowledge { number: 1 << 63 | 5 },
        ] {
            let got = decode(&encode(&message));
            assert_eq!(format!("{got:?}"), format!("{:?}", Some(message)));
        }
        let (sender, inbox) = mailbox().unwrap();
        let (socket, _other) = sys::message_pair().unwrap();
        let number = socket.as_raw_fd();
        sender.send(Message::Listen(ListeningSocket { bound, listener, socket })).unwrap();
        let mut record = Vec::with_capacity(RECORD_BYTES);
        sys::recv_now(inbox.0.as_raw_fd(), &mut record).unwrap();
        match decode(&record) {
            Some(Message::Listen(got)) => {
                assert_eq!((got.bound, got.listener), (bound, listener));
                assert_eq!(got.socket.as_raw_fd(), number);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_full_mailbox_gives_the_message_back() {
        let (sender, _inbox) = mailbox().unwrap();
        let refused = (0..100_000).find_map(|_| sender.send(Message::Drain).err());
        assert!(matches!(refused, Some(Message::Drain)));
    }
}
