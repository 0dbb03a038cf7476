//! What the fast scan looks for, and how it finds it without vectors named: eight bytes as one
//! number.

const WORD: usize = 8;
const BLOCK: usize = 64;
/// Words tried first: long enough for a role, a key or a number.
const WORDS_FIRST: usize = 2;

/// A set of bytes to be found, told for one byte and for eight.
pub(super) trait Class {
    /// Whether `b` is in the set.
    fn has(b: u8) -> bool;

    /// Sets the high bit of each byte in the set; only the lowest mark is to be trusted.
    fn marks(word: u64) -> u64;
}

pub(super) struct TextStop;

impl Class for TextStop {
    #[inline(always)]
    fn has(b: u8) -> bool {
        (b == b'"') | (b == b'\\') | (b < 0x20)
    }

    #[inline(always)]
    fn marks(word: u64) -> u64 {
        equal(word, b'"') | equal(word, b'\\') | below(word, 0x20)
    }
}

pub(super) struct Structure;

/// Clearing 0x20 folds `{` onto `[`, and 0x06 folds `[` and `]` onto `Y`.
pub(super) const FOLD: u8 = !0x26;

impl Class for Structure {
    #[inline(always)]
    fn has(b: u8) -> bool {
        (b & FOLD == b'Y') | (b == b'"') | (b == b'/')
    }

    #[inline(always)]
    fn marks(word: u64) -> u64 {
        equal(word & every(FOLD), b'Y') | equal(word, b'"') | equal(word, b'/')
    }
}

/// Finds the first byte of a class at or after `from`, or the length, without vectors named.
pub(super) fn portable<C: Class>(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    for _ in 0..WORDS_FIRST {
        let Some(word) = word_at(bytes, at) else { break };
        let found = C::marks(word);
        if found != 0 {
            return at + first(found);
        }
        at += WORD;
    }
    // 64 bytes at a time without a branch on what they are, then for the place.
    while let Some(block) = bytes.get(at..).and_then(|rest| rest.first_chunk::<BLOCK>()) {
        if block.iter().fold(false, |any, &b| any | C::has(b)) {
            break;
        }
        at += BLOCK;
    }
    by_word::<C>(bytes, at)
}

/// Looks at 8 bytes at a time, then at one.
pub(super) fn by_word<C: Class>(bytes: &[u8], from: usize) -> usize {
    let mut at = from;
    while let Some(word) = word_at(bytes, at) {
        let found = C::marks(word);
        if found != 0 {
            return at + first(found);
        }
        at += WORD;
    }
    let rest = bytes.get(at..).unwrap_or_default();
    at + rest.iter().position(|&b| C::has(b)).unwrap_or(rest.len())
}

#[inline(always)]
fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk::<WORD>().map(|word| u64::from_le_bytes(*word))
}

/// Tells which byte of a word the lowest mark stands for.
#[inline(always)]
fn first(marks: u64) -> usize {
    (marks.trailing_zeros() / 8) as usize
}

const ONES: u64 = u64::from_ne_bytes([0x01; 8]);

const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);

const fn every(b: u8) -> u64 {
    ONES * b as u64
}

/// Sets the high bit of each byte below `limit` (≤ 0x80). Only the lowest mark is to be
/// trusted: a borrow may mark bytes above it, never below.
#[inline(always)]
fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(every(limit)) & !word & HIGHS
}

#[inline(always)]
fn equal(word: u64, b: u8) -> u64 {
    below(word ^ every(b), 1)
}
