//! A head being written, held to its limits.
//!
//! An HTTP/2 head may be a few bytes on the wire and megabytes as text (HPACK refers to what came
//! before), so the limits count what is written, line by line, and stop before the line that would
//! pass them. They are those of the parser that reads the head next: what passes here passes there.

use super::fault::Fault;
use crate::http::{
    head::{Field, Fields, Span},
    name::Name,
};
use crate::http1::{encode, parse::HeadLimits};

/// Bytes that a field line has beyond its name and value.
const LINE_EXTRA: usize = ": \r\n".len();

/// The head after `start` in `out`; `start <= out.len() <= start + head_bytes_max`.
pub(super) struct Head<'a> {
    /// Where it goes.
    out: &'a mut Vec<u8>,
    start: usize,
    lines: usize,
    limits: &'a HeadLimits,
    /// Where each line stands, counted from `start`, for those who would have to parse it else.
    parsed: Option<&'a mut Fields>,
}

/// Writes a head with `write`, and takes it back when that fails.
///
/// Shape: `parsed` gets the fields as our parser would find them in the bytes of this head.
pub(super) fn write<T>(
    out: &mut Vec<u8>,
    limits: &HeadLimits,
    parsed: Option<&mut Fields>,
    write: impl FnOnce(&mut Head<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let start = out.len();
    let mut head = Head { out, start, lines: 0, limits, parsed };
    let written = write(&mut head).and_then(|value| {
        head.room(2)?;
        encode::end_of_head(head.out);
        Ok(value)
    });
    if written.is_err() {
        out.truncate(start);
    }
    written
}

impl Head<'_> {
    /// Writes `method target HTTP/1.1`.
    ///
    /// Errors: `TargetTooLong`, `HeadTooLarge`.
    pub(super) fn request_line(&mut self, method: &[u8], target: &[u8]) -> Result<(), Fault> {
        if target.len() > self.limits.target_bytes_max {
            return Err(Fault::TargetTooLong);
        }
        self.room(method.len() + target.len() + "  HTTP/1.1\r\n".len())?;
        encode::request_line(self.out, method, target);
        Ok(())
    }

    /// Writes `HTTP/1.1 status reason`.
    ///
    /// Errors: `HeadTooLarge`.
    pub(super) fn status_line(&mut self, status: u16) -> Result<(), Fault> {
        // Three digits, and a reason out of our own table.
        self.room("HTTP/1.1 200 \r\n".len() + encode::reason_phrase(status).len())?;
        encode::status_line(self.out, status, b"");
        Ok(())
    }

    /// Writes one field line.
    ///
    /// Errors: `TooManyFields`, `HeadTooLarge`.
    pub(super) fn field(&mut self, kind: Name, name: &[u8], value: &[u8]) -> Result<(), Fault> {
        self.line(name.len() + value.len())?;
        let start = self.written();
        encode::field(self.out, name, value);
        self.note(kind, start, name.len());
        Ok(())
    }

    /// Writes one field line of several values.
    ///
    /// Errors: `TooManyFields`, `HeadTooLarge`.
    pub(super) fn joined<'v>(
        &mut self,
        kind: Name,
        name: &[u8],
        values: impl Iterator<Item = &'v [u8]>,
        between: &[u8],
    ) -> Result<(), Fault> {
        self.line(name.len())?;
        let start = self.written();
        self.out.extend_from_slice(name);
        self.out.extend_from_slice(b": ");
        for (index, value) in values.enumerate() {
            let between = if index == 0 { &[] } else { between };
            self.room(between.len() + value.len() + 2)?;
            self.out.extend_from_slice(between);
            self.out.extend_from_slice(value);
        }
        self.out.extend_from_slice(b"\r\n");
        self.note(kind, start, name.len());
        Ok(())
    }

    /// Notes where the line stands that has just been written.
    fn note(&mut self, name_kind: Name, start: usize, name_bytes: usize) {
        let end = self.written();
        if let Some(parsed) = &mut self.parsed {
            let name = Span::new(start, start + name_bytes);
            let value = Span::new(name.end as usize + ": ".len(), end - "\r\n".len());
            parsed.push(Field { name_kind, name, value, line: Span::new(start, end) });
        }
    }

    /// Bytes of the head so far.
    pub(super) fn written(&self) -> usize {
        self.out.len() - self.start
    }

    /// Counts one line with so many bytes of name and value.
    fn line(&mut self, bytes: usize) -> Result<(), Fault> {
        if self.lines >= self.limits.fields_max {
            return Err(Fault::TooManyFields);
        }
        self.lines += 1;
        self.room(bytes + LINE_EXTRA)
    }

    fn room(&self, bytes: usize) -> Result<(), Fault> {
        if self.written() + bytes > self.limits.head_bytes_max {
            return Err(Fault::HeadTooLarge);
        }
        Ok(())
    }
}
