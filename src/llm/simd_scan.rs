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
mod portable;

use portable::{Structure, TextStop, portable};

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

#[cfg(test)]
mod tests {
    use super::portable::Class as _;
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
