//! One JSON string, byte by byte, into the text it means. RFC 8259 §7.
//!
//! Used for the two short strings that the scan must understand: a top-level key and the
//! model's name. It holds eight bytes of state and no text, so any split is the same. Runs
//! of other strings never come here; `simd_scan` crosses them.

use super::scan::Flaw;

/// What one byte of a string added to its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Nothing yet: in the middle of an escape.
    Partial,
    /// This byte itself, maybe one of a UTF-8 sequence.
    Byte(u8),
    /// The character that an escape stands for.
    Char(char),
    /// The closing quote.
    End,
}

/// The place inside a string, after its opening quote.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unescape {
    place: Escape,
    /// The first half of a surrogate pair whose second must follow; 0 = none.
    high: u16,
}

#[derive(Clone, Copy, Debug)]
enum Escape {
    Plain,
    Backslash,
    Hex { digits: u8, value: u16 },
}

impl Unescape {
    pub(super) const START: Self = Self { place: Escape::Plain, high: 0 };

    /// Whether nothing of an escape is held: plain bytes stand for themselves.
    pub(super) fn is_plain(&self) -> bool {
        matches!(self.place, Escape::Plain) && self.high == 0
    }

    /// Takes the next byte of the string.
    pub(super) fn step(&mut self, byte: u8) -> Result<Piece, Flaw> {
        match self.place {
            Escape::Plain if byte == b'\\' => {
                self.place = Escape::Backslash;
                Ok(Piece::Partial)
            }
            Escape::Plain if self.high != 0 => Err(Flaw::LoneSurrogate),
            Escape::Plain => match byte {
                b'"' => Ok(Piece::End),
                0..0x20 => Err(Flaw::ControlByte),
                _ => Ok(Piece::Byte(byte)),
            },
            Escape::Backslash if byte == b'u' => {
                self.place = Escape::Hex { digits: 0, value: 0 };
                Ok(Piece::Partial)
            }
            Escape::Backslash if self.high != 0 => Err(Flaw::LoneSurrogate),
            Escape::Backslash => {
                self.place = Escape::Plain;
                match byte {
                    b'"' | b'\\' | b'/' => Ok(Piece::Byte(byte)),
                    b'b' => Ok(Piece::Byte(0x08)),
                    b'f' => Ok(Piece::Byte(0x0c)),
                    b'n' => Ok(Piece::Byte(b'\n')),
                    b'r' => Ok(Piece::Byte(b'\r')),
                    b't' => Ok(Piece::Byte(b'\t')),
                    _ => Err(Flaw::BadEscape),
                }
            }
            Escape::Hex { digits, value } => {
                let digit = (byte as char).to_digit(16).ok_or(Flaw::BadEscape)? as u16;
                let value = value << 4 | digit;
                if digits < 3 {
                    self.place = Escape::Hex { digits: digits + 1, value };
                    return Ok(Piece::Partial);
                }
                self.place = Escape::Plain;
                self.unit(value)
            }
        }
    }

    /// Takes a whole UTF-16 unit.
    fn unit(&mut self, unit: u16) -> Result<Piece, Flaw> {
        match (self.high, unit) {
            (0, 0xd800..0xdc00) => {
                self.high = unit;
                Ok(Piece::Partial)
            }
            (0, _) => char::from_u32(u32::from(unit)).map(Piece::Char).ok_or(Flaw::LoneSurrogate),
            (high, 0xdc00..0xe000) => {
                self.high = 0;
                let code = 0x1_0000 + (u32::from(high & 0x3ff) << 10) + u32::from(unit & 0x3ff);
                char::from_u32(code).map(Piece::Char).ok_or(Flaw::LoneSurrogate)
            }
            _ => Err(Flaw::LoneSurrogate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(inner: &[u8]) -> Result<Vec<u8>, Flaw> {
        let (mut unescape, mut out) = (Unescape::START, Vec::new());
        for &byte in inner.iter().chain(b"\"") {
            match unescape.step(byte)? {
                Piece::Partial => {}
                Piece::Byte(b) => out.push(b),
                Piece::Char(c) => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
                Piece::End => return Ok(out),
            }
        }
        Err(Flaw::Truncated)
    }

    #[test]
    fn reads_every_escape() {
        assert_eq!(
            read(br#"a\"\\\/\b\f\n\r\t\u0041\u00e9\u20AC"#).unwrap(),
            "a\"\\/\u{8}\u{c}\n\r\tAé€".as_bytes()
        );
        assert_eq!(read(br"\ud83d\uDE00").unwrap(), "😀".as_bytes());
    }

    #[test]
    fn refuses_what_stands_for_no_character() {
        let check = |inner: &[u8], flaw| assert_eq!(read(inner), Err(flaw), "{inner:?}");
        check(br"\x41", Flaw::BadEscape);
        check(br"\u00g0", Flaw::BadEscape);
        check(br"\u00", Flaw::BadEscape);
        check(br"\ud83d", Flaw::LoneSurrogate);
        check(br"\ud83dx", Flaw::LoneSurrogate);
        check(br"\ud83d\n", Flaw::LoneSurrogate);
        check(br"\ud83d\u0041", Flaw::LoneSurrogate);
        check(br"\ud83d\ud83d", Flaw::LoneSurrogate);
        check(br"\ude00", Flaw::LoneSurrogate);
        check(b"a\nb", Flaw::ControlByte);
    }

    proptest! {
        #[test]
        fn agrees_with_serde(inner in r#"([a-z]|\\[\\"/bfnrtux]|\\u[dD][89abc][0-9][0-9]|\\u00[46][0-9a-f]|é){0,8}"#) {
            let mut whole = inner.clone().into_bytes();
            whole.insert(0, b'"');
            whole.push(b'"');
            let want = serde_json::from_slice::<String>(&whole).ok();
            prop_assert_eq!(read(inner.as_bytes()).ok(), want.map(String::into_bytes));
        }
    }
}
