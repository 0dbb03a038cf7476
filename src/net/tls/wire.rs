//! The ciphertext of one TLS connection, both ways, in pooled memory.
//!
//! What has been received stays until rustls has used it up, which it does record by record; what
//! is sealed gathers until somebody sends it. An idle connection holds neither.

use crate::base::buf::{LARGE_BYTES, SMALL_BYTES};
use crate::net::buffers;

/// Ciphertext both ways.
#[derive(Default)]
pub(super) struct Wire {
    /// Received and not yet used, from `from`: part of a record, once `drive` has run.
    pub(super) incoming: Vec<u8>,
    pub(super) from: usize,
    pub(super) outgoing: Vec<u8>,
    pub(super) ended: Option<Ended>,
    /// The last receive was large, so the next may be.
    pub(super) bulky: bool,
}

/// How the peer's bytes ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Clean,
    /// The connection ended without close_notify: bytes may be missing.
    Truncated,
    Failed,
}

impl Wire {
    /// How much to receive next: a little, unless much is coming.
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

    /// Forgets what has been used.
    pub(super) fn tidy(&mut self) {
        if self.from == self.incoming.len() {
            buffers::give_back(std::mem::take(&mut self.incoming));
            self.from = 0;
        } else if self.from > 0 {
            self.incoming.drain(..self.from);
            self.from = 0;
        }
    }

    /// Lets `write` seal into the end of `outgoing`, which has `room` bytes for it.
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
