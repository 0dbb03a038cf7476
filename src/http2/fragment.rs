//! A `:path` with a fragment, which is malformed (RFC 9113 §8.3.1) and would otherwise never be
//! seen: the `http` crate cuts it off before anybody can look.
//!
//! The one idea: of a field block (RFC 7541) only the value of `:path` matters, so nothing is kept
//! of the dynamic table and only that value is decoded, and of that only where symbols end: the
//! code is canonical, so `#` is the first symbol of twelve bits. A value that went into the dynamic
//! table marks the connection: from then on a block that does not show its path is taken for one
//! that refers to it.
//!
//! Not here: a path under a name out of the dynamic table, as no encoder writes it (`:path` stands
//! in the static one); what else is wrong with a block is for the `h2` crate.

/// Bytes before the first frame of a client (RFC 9113 §3.4).
const PREFACE_BYTES: usize = 24;
/// Bytes before the payload of a frame.
const HEADER_BYTES: usize = 9;
/// Larger blocks are refused by others.
const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Streams that are remembered; each is taken when it is opened.
const FOUND_MAX: usize = 1024;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Looks through what a client sends.
#[derive(Debug)]
pub struct FragmentFinder {
    /// Bytes to pass over before the next frame.
    skip: usize,
    /// The header of the next frame as far as it has come.
    head: [u8; HEADER_BYTES],
    have: usize,
    /// Payload of the frame at hand, if it did not come in one piece, and the block before it.
    payload: Vec<u8>,
    block: Vec<u8>,
    /// A path with a fragment is in the dynamic table.
    tainted: bool,
    found: Vec<u32>,
}

impl Default for FragmentFinder {
    fn default() -> Self {
        Self {
            skip: PREFACE_BYTES,
            head: [0; HEADER_BYTES],
            have: 0,
            payload: Vec::new(),
            block: Vec::new(),
            tainted: false,
            found: Vec::new(),
        }
    }
}

impl FragmentFinder {
    /// Takes the next bytes that came in.
    ///
    /// Shape: any split of the bytes gives the same result.
    pub fn push(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let skipped = self.skip.min(rest.len());
            self.skip -= skipped;
            rest = &rest[skipped..];
            let taken = (HEADER_BYTES - self.have).min(rest.len());
            self.head[self.have..self.have + taken].copy_from_slice(&rest[..taken]);
            self.have += taken;
            rest = &rest[taken..];
            if self.have < HEADER_BYTES {
                return;
            }
            let [a, b, c, kind, flags, stream @ ..] = self.head;
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if !matches!(kind, HEADERS | CONTINUATION) {
                (self.skip, self.have) = (length, 0);
                continue;
            }
            let taken = (length - self.payload.len()).min(rest.len());
            let (now, after) = rest.split_at(taken);
            rest = after;
            let stream = u32::from_be_bytes(stream) & 0x7fff_ffff;
            if taken == length {
                self.frame(kind, flags, stream, now);
            } else {
                self.payload.extend_from_slice(now);
                if self.payload.len() < length {
                    return;
                }
                let payload = std::mem::take(&mut self.payload);
                self.frame(kind, flags, stream, &payload);
            }
            self.have = 0;
        }
    }

    /// Whether the stream, which has just been opened, has such a path; streams before it are
    /// forgotten.
    #[must_use]
    pub fn take(&mut self, stream: u32) -> bool {
        let found = self.found.contains(&stream);
        self.found.retain(|&later| later > stream);
        found
    }

    /// Takes a whole frame of a field block.
    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let mut content = payload;
        if kind == HEADERS {
            self.block.clear();
            let mut padding = 0;
            if flags & PADDED != 0
                && let [length, rest @ ..] = content
            {
                (padding, content) = (usize::from(*length), rest);
            }
            if flags & PRIORITY != 0 {
                content = content.get(5..).unwrap_or_default();
            }
            content = &content[..content.len().saturating_sub(padding)];
            if flags & END_HEADERS != 0 {
                return self.check_block(stream, content);
            }
        }
        if self.block.len() + content.len() <= BLOCK_BYTES_MAX {
            self.block.extend_from_slice(content);
        }
        if flags & END_HEADERS != 0 {
            let block = std::mem::take(&mut self.block);
            self.check_block(stream, &block);
        }
    }

    fn check_block(&mut self, stream: u32, block: &[u8]) {
        let bad = match path_of(block) {
            Some(Path::Plain) => false,
            Some(Path::Fragment { kept }) => {
                self.tainted |= kept;
                true
            }
            None => self.tainted,
        };
        if bad && self.found.len() < FOUND_MAX {
            self.found.push(stream);
        }
    }
}

/// What a block shows of its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Plain,
    /// `kept`: it goes into the dynamic table.
    Fragment {
        kept: bool,
    },
}

/// Finds the path of a block (RFC 7541 §6); `None` when it is not shown, or the block is broken.
fn path_of(block: &[u8]) -> Option<Path> {
    let mut rest = block;
    let mut shown = None;
    while let [first, ..] = *rest {
        let prefix = match first {
            0x80.. => 7,
            0x40.. => 6,
            0x20.. => 5,
            _ => 4,
        };
        let index = integer(&mut rest, prefix)?;
        match prefix {
            // A field of a table: 4 and 5 are `:path: /` and `:path: /index.html`.
            7 if matches!(index, 4 | 5) => shown = shown.or(Some(Path::Plain)),
            // A field of a table, or the size of one.
            7 | 5 => {}
            _ => {
                let is_path = match index {
                    0 => matches!(
                        string(&mut rest)?,
                        (false, b":path") | (true, b"\xb9\x58\xd3\x3f")
                    ),
                    index => matches!(index, 4 | 5),
                };
                let (is_coded, value) = string(&mut rest)?;
                if is_path {
                    let found =
                        if is_coded { has_coded_hash(value) } else { value.contains(&b'#') };
                    match found {
                        true => return Some(Path::Fragment { kept: prefix == 6 }),
                        false => shown = Some(Path::Plain),
                    }
                }
            }
        }
    }
    shown
}

/// Reads a number whose first byte has so many bits for it (RFC 7541 §5.1).
fn integer(rest: &mut &[u8], prefix: u32) -> Option<usize> {
    let (&first, mut after) = rest.split_first()?;
    let most = (1usize << prefix) - 1;
    let mut value = usize::from(first) & most;
    if value == most {
        for shift in [0, 7, 14, 21] {
            let (&byte, next) = after.split_first()?;
            after = next;
            value += usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                *rest = after;
                return Some(value);
            }
        }
        return None;
    }
    *rest = after;
    Some(value)
}

/// Reads a string: whether it is coded, and its bytes (RFC 7541 §5.2).
fn string<'a>(rest: &mut &'a [u8]) -> Option<(bool, &'a [u8])> {
    let is_coded = rest.first()? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (bytes, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some((is_coded, bytes))
}

/// Symbols of each length of the code, in bits (RFC 7541 Appendix B).
const SYMBOLS: [u32; 31] = [
    0, 0, 0, 0, 0, 10, 26, 32, 6, 0, 5, 3, 2, 6, 2, 3, 0, 0, 0, 3, 8, 13, 26, 29, 12, 4, 15, 19,
    29, 0, 4,
];

/// Whether a coded string has a `#`.
fn has_coded_hash(bytes: &[u8]) -> bool {
    let (mut code, mut first, mut length) = (0u32, 0u32, 0usize);
    for byte in bytes {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            first <<= 1;
            length += 1;
            let Some(&symbols) = SYMBOLS.get(length) else { return false };
            if code < first + symbols {
                if (length, code) == (12, first) {
                    return true;
                }
                (code, first, length) = (0, 0, 0);
            } else {
                first += symbols;
            }
        }
    }
    false
}

/// The target of a fuzzer: no bytes panic, and no split of them changes what is found.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let (mut whole, mut bytewise) = (FragmentFinder::default(), FragmentFinder::default());
    whole.push(data);
    data.iter().for_each(|byte| bytewise.push(&[*byte]));
    assert_eq!(whole.found, bytewise.found);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        out.extend_from_slice(payload);
        out
    }

    /// Which of the streams 1, 3, 5, … with these blocks are found.
    fn found(blocks: &[&[u8]]) -> Vec<u32> {
        let mut wire = vec![b'x'; PREFACE_BYTES];
        wire.extend(frame(4, 0, 0, b"\x00\x01\x00\x00\x00#"));
        for (at, block) in blocks.iter().enumerate() {
            wire.extend(frame(HEADERS, END_HEADERS, 2 * at as u8 + 1, block));
            wire.extend(frame(0, 0, 2 * at as u8 + 1, b"#"));
        }
        fuzz(&wire);
        let mut finder = FragmentFinder::default();
        finder.push(&wire);
        finder.found
    }

    #[test]
    fn finds_a_fragment_however_the_path_is_written() {
        for block in [
            &b"\x82\x00\x05:path\x04/a#b"[..],
            b"\x82\x10\x05:path\x04/a#b",
            b"\x82\x04\x04/a#b",
            b"\x82\x44\x04/a#b",
            b"\x82\x45\x04/a#b",
            b"\x82\x04\x84\x60\x7f\xf5\x1f",
            b"\x3f\xe1\x1f\x82\x00\x84\xb9\x58\xd3\x3f\x84\x60\x7f\xf5\x1f\x86",
            b"\x82\x04\x01#",
        ] {
            assert_eq!(found(&[block]), [1], "{}", block.escape_ascii());
        }
    }

    #[test]
    fn a_fragment_elsewhere_is_none() {
        for block in [
            &b"\x82\x84\x86"[..],
            b"\x82\x04\x03/ab\x00\x03x-a\x01#",
            b"\x82\x04\x03/ab\x40\x05xpath\x02/#",
            // www.example.com, the example of RFC 7541 C.4.1, as a path and as an authority.
            b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x04\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x04",
            b"",
        ] {
            assert_eq!(found(&[block]), [0; 0], "{}", block.escape_ascii());
        }
    }

    #[test]
    fn what_went_into_the_table_is_found_when_it_is_used() {
        let (kept, used) = (&b"\x82\x44\x04/a#b"[..], &b"\x82\xbe"[..]);
        assert_eq!(found(&[used, kept, used, b"\x82\x84", used]), [3, 5, 9]);
        assert_eq!(found(&[b"\x82\x04\x04/a#b", used]), [1], "not kept");
    }

    #[test]
    fn a_block_may_come_in_many_frames_with_padding() {
        let mut wire = vec![b'x'; PREFACE_BYTES];
        wire.extend(frame(
            HEADERS,
            PADDED | PRIORITY,
            1,
            b"\x02\x00\x00\x00\x00\x00\x82\x04\x04/##",
        ));
        wire.extend(frame(CONTINUATION, 0, 1, b"a#"));
        wire.extend(frame(CONTINUATION, END_HEADERS, 1, b"b"));
        fuzz(&wire);
        let mut finder = FragmentFinder::default();
        finder.push(&wire);
        assert!(finder.take(1) && !finder.take(1));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
            let _ = path_of(&data);
            let _ = has_coded_hash(&data);
        }

        #[test]
        fn no_field_block_panics(block in proptest::collection::vec(any::<u8>(), 0..100)) {
            found(&[&block, &block]);
        }
    }
}
