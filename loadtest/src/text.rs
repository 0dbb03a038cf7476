//! Seeded words and bytes: what an answer says is a function of its seed.
//!
//! The one idea: token `i` of seed `s` can be computed by anyone, at any place,
//! without the tokens before it. The server writes them, the client recomputes
//! them, and a lost, doubled, swapped or foreign chunk shows as a difference.
//!
//! The word list is chosen to be unkind to whatever reads streams in passing:
//! quotes, line ends, braces, `data:` and `[DONE]` inside of strings.

const WORDS: [&str; 64] = [
    "the",
    "proxy",
    "reads",
    "a",
    "token",
    "and",
    "passes",
    "it",
    "on",
    "before",
    "next",
    "one",
    "is",
    "made",
    "ring",
    "queue",
    "server",
    "model",
    "answer",
    "stream",
    "event",
    "naïve",
    "Größe",
    "日本語",
    "🚀",
    "crème",
    "\"quoted\"",
    "back\\slash",
    "line\nend",
    "tab\tstop",
    "data:",
    "[DONE]",
    "data: [DONE]\n\n",
    "{\"model\":\"other\"}",
    "\"usage\":{}",
    "}",
    "{",
    "]",
    "[",
    ",",
    ":",
    "null",
    "true",
    "0.5",
    "event: error",
    "\r\n0\r\n",
    "finish_reason",
    "stop",
    "<b>",
    "&amp;",
    "%20",
    "\u{1}",
    "\u{2028}",
    "work",
    "cores",
    "bytes",
    "head",
    "body",
    "trailer",
    "lease",
    "pool",
    "route",
    "then",
    "settle",
];

/// Mixes 64 bits so that neighbours differ everywhere.
///
/// Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014).
pub fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Appends token `index` (0-based) of the text of `seed`.
///
/// Shape: every token but the first begins with a space, as tokenizers do it.
pub fn push_token(seed: u64, index: u32, out: &mut String) {
    if index > 0 {
        out.push(' ');
    }
    let at = mix(seed ^ (u64::from(index) << 20)) as usize % WORDS.len();
    out.push_str(WORDS.get(at).copied().unwrap_or_default());
}

/// The whole text of `seed`, `tokens` long.
pub fn text(seed: u64, tokens: u32) -> String {
    let mut out = String::new();
    for index in 0..tokens {
        push_token(seed, index, &mut out);
    }
    out
}

/// Appends `count` bytes of the pattern of `seed`, from position `from` on.
///
/// Shape: any split of the range gives the same bytes.
pub fn push_pattern(seed: u64, from: u64, count: usize, out: &mut Vec<u8>) {
    let start = out.len();
    let skip = (from % 8) as usize;
    // Whole blocks first, then cut to the range: one store for eight bytes.
    let mut block = from / 8;
    out.reserve(count + 16);
    while out.len() < start + skip + count {
        out.extend_from_slice(&mix(seed ^ mix(block)).to_le_bytes());
        block += 1;
    }
    out.drain(start..start + skip);
    out.truncate(start + count);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_text_and_another_seed_another() {
        assert_eq!(text(7, 40), text(7, 40));
        assert_ne!(text(7, 40), text(8, 40));
        assert!(text(7, 41).starts_with(&text(7, 40)));
    }

    #[test]
    fn any_split_of_the_pattern_gives_the_same_bytes() {
        let mut whole = Vec::new();
        push_pattern(3, 0, 100, &mut whole);
        for cut in 0..=100usize {
            let mut parts = Vec::new();
            push_pattern(3, 0, cut, &mut parts);
            push_pattern(3, cut as u64, 100 - cut, &mut parts);
            assert_eq!(parts, whole, "cut at {cut}");
        }
    }
}
