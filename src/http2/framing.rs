//! How a body that HTTP/2 delimits by frames is delimited in HTTP/1.1.
//!
//! HTTP/2 ends a body with a flag (END_STREAM); `content-length` is only a promise there (RFC 9113
//! §8.1.1). In HTTP/1.1 it is the law. So a length that is no number, or that is not the only one,
//! or that the stream has broken already, never becomes a framing (RFC 9112 §11.2, RFC 9113
//! §10.3). A length that later frames break is the `h2` crate's to find: it counts DATA bytes.

use super::fault::Fault;
use crate::http1::framing::{Framing, decimal};

/// Whether anything follows the head of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// END_STREAM came with the head: no body, no trailers.
    WithHead,
    /// The stream is still open.
    Later,
}

impl Ends {
    /// Reads the answer of the `h2` crate's `is_end_stream`.
    pub fn of(is_end_stream: bool) -> Ends {
        if is_end_stream { Ends::WithHead } else { Ends::Later }
    }
}

/// How the body after a written head has to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    /// No byte follows the head, whatever DATA may still come.
    None,
    /// As it is, so many bytes and no more.
    Length(u64),
    /// In chunks, ended by [`trailers::write`](super::trailers::write) or a last chunk.
    Chunked,
}

impl From<BodyFraming> for Framing {
    fn from(framing: BodyFraming) -> Framing {
        match framing {
            BodyFraming::None => Framing::None,
            BodyFraming::Length(bytes) => Framing::Length(bytes),
            BodyFraming::Chunked => Framing::Chunked,
        }
    }
}

/// The length that the fields of a head declare, all of them agreeing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Declared {
    bytes: Option<u64>,
}

impl Declared {
    /// Adds one `content-length`: says whether it is the first, which is the one to pass on.
    ///
    /// Errors: `LengthBad` for anything but digits, a list of equal numbers included;
    /// `LengthConflict` for another number than before.
    pub(super) fn add(&mut self, value: &[u8]) -> Result<bool, Fault> {
        let bytes = decimal(value).ok_or(Fault::LengthBad)?;
        match self.bytes.replace(bytes) {
            None => Ok(true),
            Some(before) if before == bytes => Ok(false),
            Some(_) => Err(Fault::LengthConflict),
        }
    }

    /// The framing that it means; `None` when nothing was declared.
    ///
    /// Errors: `LengthWithoutBody`.
    pub(super) fn framing(self, ends: Ends) -> Result<Option<BodyFraming>, Fault> {
        match (self.bytes, ends) {
            (None, _) => Ok(None),
            (Some(1..), Ends::WithHead) => Err(Fault::LengthWithoutBody),
            (Some(bytes), _) => Ok(Some(BodyFraming::Length(bytes))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[&str], ends: Ends, expected: Result<Option<BodyFraming>, Fault>) {
        let mut declared = Declared::default();
        let added = values.iter().try_for_each(|value| declared.add(value.as_bytes()).map(drop));
        assert_eq!(added.and_then(|()| declared.framing(ends)), expected, "{values:?}");
    }

    #[test]
    fn one_plain_number_is_a_length() {
        use Ends::{Later, WithHead};
        check(&[], Later, Ok(None));
        check(&["5"], Later, Ok(Some(BodyFraming::Length(5))));
        check(&["5", "5"], Later, Ok(Some(BodyFraming::Length(5))));
        check(&["0"], WithHead, Ok(Some(BodyFraming::Length(0))));
        check(&["5"], WithHead, Err(Fault::LengthWithoutBody));
        check(&["5", "6"], Later, Err(Fault::LengthConflict));
        check(&["9223372036854775807"], Later, Ok(Some(BodyFraming::Length(i64::MAX as u64))));
        for bad in ["", "+5", "-1", "5 ", " 5", "0x5", "5,5", "5, 5", "5;", "\u{661}", "5.0"] {
            check(&[bad], Later, Err(Fault::LengthBad));
        }
        check(&["9223372036854775808"], Later, Err(Fault::LengthBad));
        check(&["00000000000000000005"], Later, Err(Fault::LengthBad));
    }
}
