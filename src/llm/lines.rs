//! Bytes in pieces into lines, ended by LF, CR or CRLF alike.
//!
//! The one idea: a line that lies whole in the input is lent from it, and only one that a
//! read has split is copied, into a carry that is kept for the next time. What grows past
//! `LINE_BYTES_MAX` is forgotten and reported as such, so the carry is bounded.

/// The longest line that is shown, in bytes without its end: the longest event of `sse`
/// and its field name.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024 + 6;

/// One line, without its end.
#[derive(Debug)]
pub(super) enum Line<'a, 'c> {
    /// It lies whole in the input.
    Lent(&'a [u8]),
    /// It was put together.
    Carried(&'c [u8]),
    /// It was longer than [`LINE_BYTES_MAX`].
    TooLong,
}

/// The place in a stream of lines.
#[derive(Clone, Debug, Default)]
pub(super) struct Lines {
    /// The beginning of a line whose end has not come: `len <= LINE_BYTES_MAX`.
    carry: Vec<u8>,
    is_too_long: bool,
    /// The last byte was CR: an LF right after it ends nothing.
    after_cr: bool,
}

impl Lines {
    /// Forgets the stream, keeps the memory.
    pub(super) fn reset(&mut self) {
        self.carry.clear();
        self.is_too_long = false;
        self.after_cr = false;
    }

    /// Takes the next piece and shows each line that it completes.
    pub(super) fn push<'a>(&mut self, bytes: &'a [u8], mut each: impl FnMut(Line<'a, '_>)) {
        let mut rest = bytes;
        while !rest.is_empty() {
            if std::mem::take(&mut self.after_cr) && rest.first() == Some(&b'\n') {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            let Some(end) = memchr::memchr2(b'\n', b'\r', rest) else {
                self.keep(rest);
                return;
            };
            let (line, ending) = rest.split_at(end);
            self.after_cr = ending.first() == Some(&b'\r');
            rest = ending.get(1..).unwrap_or_default();
            if self.carry.is_empty() && !self.is_too_long {
                each(if line.len() > LINE_BYTES_MAX { Line::TooLong } else { Line::Lent(line) });
                continue;
            }
            self.keep(line);
            each(if self.is_too_long { Line::TooLong } else { Line::Carried(&self.carry) });
            self.carry.clear();
            self.is_too_long = false;
        }
    }

    fn keep(&mut self, part: &[u8]) {
        if self.is_too_long || self.carry.len() + part.len() > LINE_BYTES_MAX {
            self.is_too_long = true;
            self.carry.clear();
        } else {
            self.carry.extend_from_slice(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lines(pieces: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.push(piece, |line| {
                got.push(match line {
                    Line::Lent(line) | Line::Carried(line) => Some(line.to_vec()),
                    Line::TooLong => None,
                })
            });
            assert!(lines.carry.len() <= LINE_BYTES_MAX);
        }
        got
    }

    #[test]
    fn every_line_end_counts_once() {
        let want: Vec<_> =
            [b"a".as_slice(), b"b", b"c", b"", b"d"].map(|l| Some(l.to_vec())).into();
        assert_eq!(lines(&[b"a\nb\r\nc\r\rd\n"]), want);
        assert_eq!(lines(&[b"a\nb\r", b"\nc\r", b"\rd", b"\n", b"rest"]), want);
    }

    #[test]
    fn a_line_past_line_bytes_max_is_forgotten_however_it_comes() {
        let long = [vec![b'x'; LINE_BYTES_MAX + 1], b"\nok\n".to_vec()].concat();
        let want = vec![None, Some(b"ok".to_vec())];
        assert_eq!(lines(&[&long]), want);
        assert_eq!(lines(&long.chunks(1000).collect::<Vec<_>>()), want);
        let fits = [vec![b'x'; LINE_BYTES_MAX], b"\n".to_vec()].concat();
        assert_eq!(lines(&fits.chunks(999).collect::<Vec<_>>()), lines(&[&fits]));
        assert!(lines(&[&fits])[0].is_some());
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_lines(text in "[ab\r\n]{0,60}", size in 1..9usize) {
            let split: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            let oracle = text.replace("\r\n", "\n").replace('\r', "\n");
            let mut want: Vec<_> = oracle.split('\n').map(|l| Some(l.as_bytes().to_vec())).collect();
            want.pop();
            prop_assert_eq!(&lines(&split), &want);
            prop_assert_eq!(lines(&[text.as_bytes()]), want);
        }
    }
}
