//! The ciphertext of one TLS connection, both ways, in pooled memory.
//!
//! Bytes received stay until rustls has used them, which it does record by record; sealed records
//! gather until they are sent (`stream`). An idle connection holds neither.

use crate::base::buf::{LARGE_BYTES, SMALL_BYTES};
use crate::net::buffers;

/// The ciphertext of one connection, and how the peer has ended.
#[derive(Default)]
pub(super) struct Wire {
    /// Bytes received; those from `from` on rustls has not used yet: part of a record, once
    /// `drive` has run.
    pub(super) incoming: Vec<u8>,
    pub(super) from: usize,
    pub(super) outgoing: Vec<u8>,
    pub(super) ended: Option<Ended>,
    /// The last receive was large, so the next may be.
    pub(super) bulky: bool,
}

/// How the peer's side of the connection ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Clean,
    /// The connection ended without close_notify: bytes may be missing.
    Truncated,
    Failed,
}

impl Wire {
    /// Size of the next receive, in bytes: large when the last one was, or half of a small buffer
    /// waits already.
    pub(super) fn room(&self) -> usize {
        if self.bulky || self.incoming.len() - self.from > SMALL_BYTES / 2 {
            LARGE_BYTES
        } else {
            SMALL_BYTES
        }
    }

    pub(super) fn received(&mut self, n: usize, cipher: Vec<u8>) {
        if n == 0 {
            self.ended.get_or_insert(Ended::Truncated);
        }
        self.bulky = n >= SMALL_BYTES;
        if self.incoming.is_empty() {
            buffers::give_back(std::mem::replace(&mut self.incoming, cipher));
            self.from = 0;
            return;
        }
        if self.incoming.capacity() - self.incoming.len() < cipher.len() {
            let begun = &self.incoming[self.from..];
            let mut larger = buffers::take(begun.len() + cipher.len());
            larger.extend_from_slice(begun);
            buffers::give_back(std::mem::replace(&mut self.incoming, larger));
            self.from = 0;
        }
        self.incoming.extend_from_slice(&cipher);
        buffers::give_back(cipher);
    }

    /// Drops the bytes that rustls has used; an empty buffer goes back.
    pub(super) fn tidy(&mut self) {
        if self.from == self.incoming.len() {
            buffers::give_back(std::mem::take(&mut self.incoming));
            self.from = 0;
        } else if self.from > 0 {
            self.incoming.drain(..self.from);
            self.from = 0;
        }
    }

    /// Lets `write` append to `outgoing`; it gets `room` bytes and returns how many it wrote.
    pub(super) fn append<E>(
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
