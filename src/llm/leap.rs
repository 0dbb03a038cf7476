//! How the model scan crosses bytes that cannot matter to it, at memory speed.
//!
//! Two questions carry all of its speed: where does this run of string text stop
//! (`text_end`), and where is the next byte of structure (`structure`). With AVX2 the answer
//! is in a mask of 32 bytes (`avx2`). Elsewhere both look at eight bytes as one number first,
//! because most strings and gaps of a chat are short, and then go on with 64 bytes at a time,
//! in a loop without branches that the compiler turns into whatever vectors the target has.
//! (Two passes, `memchr2` and then one for control bytes, took half as long again on a long
//! prompt.)
//!
//! All ways must agree on what a hit is, or the result would hang on where a read
//! happened to split the body; the tests compare them with a byte-by-byte oracle.

#[cfg(target_arch = "x86_64")]
mod avx2;

const WORD: usize = 8;
const BLOCK: usize = 64;
/// Words tried first: long enough for a role, a key or a number.
const WORDS_FIRST: usize = 2;

/// A set of bytes to be found, told for one byte and for eight.
trait Class {
    /// Whether `b` is in the set.
    fn has(b: u8) -> bool;

    /// Sets the high bit of each byte in the set; only the lowest mark is to be trusted.
    fn marks(word: u64) -> u64;
}

/// Finds the first byte at or after `from` that string text cannot run over: the quote,
/// the backslash or a control byte; the length of `bytes` when there is none.
#[inline]
pub(super) fn text_end(bytes: &[u8], from: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(at) = avx2::text_end(bytes, from) {
        return at;
    }
    portable::<TextStop>(bytes, from)
}

struct TextStop;

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

/// Finds the first bracket, brace, quote or slash at or after `from`, or the length.
///
/// Shape: `Y`, `y`, `_` and DEL are hits too. They share the brackets' bits, stand nowhere
/// outside strings in JSON, and sparing them would cost a comparison per byte.
#[inline]
pub(super) fn structure(bytes: &[u8], from: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if let Some(at) = avx2::structure(bytes, from) {
        return at;
    }
    portable::<Structure>(bytes, from)
}

struct Structure;

/// Clearing 0x20 folds `{` onto `[`, and 0x06 folds `[` and `]` onto `Y`.
const FOLD: u8 = !0x26;

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
fn portable<C: Class>(bytes: &[u8], from: usize) -> usize {
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
fn by_word<C: Class>(bytes: &[u8], from: usize) -> usize {
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// With and without vectors named, so that each is tested on a machine that has both.
    const TEXT_ENDS: [fn(&[u8], usize) -> usize; 2] = [text_end, portable::<TextStop>];
    const STRUCTURES: [fn(&[u8], usize) -> usize; 2] = [structure, portable::<Structure>];

    #[test]
    fn the_structure_class_is_the_one_documented() {
        let hits: Vec<u8> = (0..=255).filter(|&b| Structure::has(b)).collect();
        assert_eq!(hits, b"\"/Y[]_y{}\x7f");
    }

    #[test]
    fn every_byte_at_every_place_of_two_blocks_is_found() {
        for b in 0..=255u8 {
            for at in 0..150 {
                let mut bytes = [b'a'; 150];
                bytes[at] = b;
                let want = |one: fn(u8) -> bool| if one(b) { at } else { 150 };
                for text_end in TEXT_ENDS {
                    assert_eq!(text_end(&bytes, 0), want(TextStop::has), "{b:#x} at {at}");
                }
                for structure in STRUCTURES {
                    assert_eq!(structure(&bytes, 0), want(Structure::has), "{b:#x} at {at}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn agrees_with_a_walk_byte_by_byte(
            bytes in prop::collection::vec(prop_oneof![8 => 0x20..=255u8, 1 => any::<u8>()], 0..400),
            from in 0..400usize,
        ) {
            let from = from.min(bytes.len());
            let walk = |one: fn(u8) -> bool| {
                bytes[from..].iter().position(|&b| one(b)).map_or(bytes.len(), |n| from + n)
            };
            for text_end in TEXT_ENDS {
                prop_assert_eq!(text_end(&bytes, from), walk(TextStop::has));
            }
            for structure in STRUCTURES {
                prop_assert_eq!(structure(&bytes, from), walk(Structure::has));
            }
        }
    }
}
