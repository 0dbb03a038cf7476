//! Request ids: one name for an exchange in every log it passes.
//!
//! A client may send its own `x-request-id`; it is kept when it is 1..=128 bytes
//! of visible ASCII and replaced otherwise, since it goes back into a field and
//! into a log line. An id of ours is shaped like a ULID: ten characters of
//! milliseconds, so that ids sort by time, then thirteen of chance, in Crockford's
//! base 32. One 64-bit draw is enough to tell apart what begins in the same
//! millisecond, hence 23 characters instead of 26.
//!
//! The id lives inline: making one never allocates. It is a name, not a secret.

use std::fmt;

use super::clock::WallTime;

/// Longest `x-request-id` that is accepted from a client, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// The name of one exchange: 1..=128 bytes of visible ASCII.
#[derive(Clone, Copy)]
pub struct RequestId {
    bytes: [u8; REQUEST_ID_BYTES_MAX],
    len: u8,
}

impl RequestId {
    /// Makes a new id.
    ///
    /// Units: of `now` the milliseconds count, of `chance` all 64 bits.
    pub fn new(now: WallTime, chance: u64) -> RequestId {
        let mut id = RequestId { bytes: [0; REQUEST_ID_BYTES_MAX], len: MADE_LEN as u8 };
        write_base32(&mut id.bytes[..TIME_LEN], now.as_millis());
        write_base32(&mut id.bytes[TIME_LEN..MADE_LEN], chance);
        id
    }

    /// Takes the id that a client sent; `None` when it is empty, too long or not
    /// visible ASCII.
    pub fn parse(sent: &[u8]) -> Option<RequestId> {
        if sent.is_empty() || sent.len() > REQUEST_ID_BYTES_MAX {
            return None;
        }
        if !sent.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut bytes = [0; REQUEST_ID_BYTES_MAX];
        bytes[..sent.len()].copy_from_slice(sent);
        Some(RequestId { bytes, len: sent.len() as u8 })
    }

    /// Takes the client's id where it has a good one, and makes one where not; `chance` is a random
    /// draw.
    pub fn accept(sent: Option<&[u8]>, now: WallTime, chance: u64) -> RequestId {
        sent.and_then(RequestId::parse).unwrap_or_else(|| RequestId::new(now, chance))
    }

    /// Returns the id as text.
    pub fn as_str(&self) -> &str {
        // Both constructors let nothing but ASCII in, so the default is never taken.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }

    /// Returns the id as bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for RequestId {
    fn eq(&self, other: &RequestId) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for RequestId {}

/// 50 bits of milliseconds reach past the year 37000.
const TIME_LEN: usize = 10;
/// 64 bits in base 32 take thirteen characters.
const CHANCE_LEN: usize = 13;
const MADE_LEN: usize = TIME_LEN + CHANCE_LEN;

/// Crockford's alphabet: no I, L, O, U; in ASCII order, so that text sorts as numbers.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Fills `out` with `value` in base 32, most significant digit first.
fn write_base32(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = ALPHABET[(value % 32) as usize];
        value /= 32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> WallTime {
        WallTime::from_millis(millis)
    }
    use proptest::prelude::*;

    #[test]
    fn makes_ids_that_sort_by_time() {
        let early = RequestId::new(ms(1_700_000_000_000), u64::MAX);
        let late = RequestId::new(ms(1_700_000_000_001), 0);
        assert!(early.as_str() < late.as_str());
        assert_eq!(early.as_str().len(), 23);
    }

    #[test]
    fn makes_different_ids_in_one_millisecond() {
        assert_ne!(RequestId::new(ms(5), 1), RequestId::new(ms(5), 2));
        assert_eq!(RequestId::new(ms(0), 0).as_str(), "00000000000000000000000");
    }

    #[test]
    fn keeps_a_good_id_of_the_client() {
        assert_eq!(RequestId::accept(Some(b"req-42"), ms(1), 1).as_str(), "req-42");
        assert_eq!(RequestId::accept(Some(&[b'a'; 128]), ms(1), 1).as_str().len(), 128);
    }

    #[test]
    fn replaces_a_bad_id_of_the_client() {
        let made = RequestId::new(ms(1), 1);
        for bad in [&b""[..], b"a b", b"a\r\nX: y", "\u{e9}".as_bytes(), b"\x7f", &[b'a'; 129]] {
            assert_eq!(RequestId::accept(Some(bad), ms(1), 1), made);
        }
        assert_eq!(RequestId::accept(None, ms(1), 1), made);
    }

    proptest! {
        #[test]
        fn made_ids_are_accepted_again(now in any::<u64>(), chance in any::<u64>()) {
            let id = RequestId::new(ms(now), chance);
            prop_assert_eq!(RequestId::parse(id.as_bytes()), Some(id));
        }

        #[test]
        fn what_is_accepted_is_visible_ascii(sent in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Some(id) = RequestId::parse(&sent) {
                prop_assert_eq!(id.as_bytes(), &sent[..]);
                prop_assert!(id.as_str().bytes().all(|b| (0x21..=0x7e).contains(&b)));
            }
        }
    }
}
