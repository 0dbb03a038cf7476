//! The request body as one attempt sends it: the client's bytes, with the name that this server
//! reads in the place of the model's.
//!
//! The one idea: what the client sent is kept as it came, and the change is made on the way out, so
//! that each attempt begins from the client's bytes. A small body is written behind its head in one
//! piece; a large one slice by slice, each sent before the next is written, so that a core with
//! 60 MiB of images on it goes on serving others and holds them once.

use std::ops::Range;

use super::hold::{RequestBody, Scanner};
use crate::http1::body::{BodyReader, drain_data};
use crate::http1::framing::Framing;
use crate::llm::quote::quote;

/// Writes a held body anew, with another value in the place of the model's.
///
/// Units: `at` and `span` count data bytes; framing is left out.
pub struct Renamer<'n> {
    /// Data bytes that have passed.
    at: usize,
    /// Where the client's value stands.
    span: Range<usize>,
    /// The new value, until it has been written.
    value: Option<Value<'n>>,
    /// Takes the chunks of a chunked body apart.
    chunks: Option<BodyReader>,
}

/// A name as it stands in a body.
#[derive(Clone, Copy)]
enum Value<'n> {
    /// In quotes, with escapes.
    Json(&'n str),
    /// As it is.
    Form(&'n str),
}

impl Value<'_> {
    fn write(self, out: &mut Vec<u8>) {
        match self {
            Value::Json(name) => quote(name, out),
            Value::Form(name) => out.extend_from_slice(name.as_bytes()),
        }
    }
}

impl<'n> Renamer<'n> {
    /// Puts `name` in the place of the model that the body names; `None` when it names none.
    ///
    /// Shape: a chunked body must be complete; it goes on with a length.
    #[must_use]
    pub fn new(scanner: &Scanner<'_>, name: &'n str, chunked: bool) -> Option<Self> {
        let span = scanner.model()?.span;
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let value = match scanner {
            Scanner::Form(_) => Value::Form(name),
            Scanner::Json(_) | Scanner::None => Value::Json(name),
        };
        Some(Self {
            at: 0,
            span: place(span.start)..place(span.end),
            value: Some(value),
            chunks: chunked.then(|| BodyReader::new(Framing::Chunked)),
        })
    }

    /// Data bytes of the whole body as it is sent; `scratch` is used and left as it was.
    #[must_use]
    pub fn length(&self, body: &RequestBody, scratch: &mut Vec<u8>) -> u64 {
        let written = scratch.len();
        if let Some(value) = self.value {
            value.write(scratch);
        }
        let value = (scratch.len() - written) as u64;
        scratch.truncate(written);
        // Nothing is left of a chunked body: all of it is here.
        let data = body.data_bytes + body.reader.length_left().unwrap_or(0);
        data - self.span.len() as u64 + value
    }

    /// Writes the next bytes of the held body, framed as they came, to `out`.
    pub fn push(&mut self, slice: &[u8], out: &mut Vec<u8>) {
        match self.chunks.take() {
            None => self.push_data(slice, out),
            Some(mut chunks) => {
                // The body has been framed before: no fault can show up now.
                let _ = drain_data(&mut chunks, slice, |data| self.push_data(data, out));
                self.chunks = Some(chunks);
            }
        }
    }

    fn push_data(&mut self, data: &[u8], out: &mut Vec<u8>) {
        let within = |place: usize| place.saturating_sub(self.at).min(data.len());
        let (before, behind) = (within(self.span.start), within(self.span.end));
        out.extend_from_slice(&data[..before]);
        if self.at + data.len() > self.span.start {
            self.end(out);
        }
        out.extend_from_slice(&data[behind..]);
        self.at += data.len();
    }

    /// Writes the value, if it has yet to be: it stands at the body's end.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        if let Some(value) = self.value.take() {
            value.write(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The oracle: `splice`.
        #[test]
        fn any_cut_gives_what_a_splice_gives(
            data in prop::collection::vec(any::<u8>(), 0..40), value in ".{0,9}",
            at in 0usize..41, len in 0usize..9, step in 1usize..20, chunked in any::<bool>(),
        ) {
            let from = at.min(data.len());
            let to = (from + len).min(data.len());
            let mut expected = data.clone();
            expected.splice(from..to, value.bytes());
            let chunks = chunked.then(|| BodyReader::new(Framing::Chunked));
            let value = Some(Value::Form(&value));
            let mut renamer = Renamer { at: 0, span: from..to, value, chunks };
            let mut body = RequestBody::new(Framing::None, 0);
            body.data_bytes = data.len() as u64;
            let mut out = Vec::new();
            prop_assert_eq!(renamer.length(&body, &mut out), expected.len() as u64);
            let sent = if chunked { in_chunks(&data, step) } else { data };
            sent.chunks(step).for_each(|slice| renamer.push(slice, &mut out));
            renamer.end(&mut out);
            prop_assert_eq!(out, expected);
        }
    }

    /// A server that is tried after another reads its own name, and else what the first one read.
    #[test]
    fn each_attempt_begins_from_the_clients_bytes() {
        let body = br#"{"n":1e400,"model":"asked" ,"x":"\u00e9"}"#;
        let held = in_chunks(body, 7);
        let mut scan = crate::llm::scan::ModelScan::new();
        let mut scanner = Scanner::Json(&mut scan);
        assert!(scanner.push(body).is_ok());
        assert!(scanner.finish().is_ok());
        for name in ["a", "org/other \"v2\"", "asked"] {
            let mut renamer = Renamer::new(&scanner, name, true).unwrap();
            let mut out = Vec::new();
            renamer.push(&held, &mut out);
            renamer.end(&mut out);
            let name = name.replace('"', "\\\"");
            let expected = format!(r#"{{"n":1e400,"model":"{name}" ,"x":"\u00e9"}}"#).into_bytes();
            assert_eq!(out, expected);
        }
    }

    fn in_chunks(data: &[u8], size: usize) -> Vec<u8> {
        let mut framed = Vec::new();
        for chunk in data.chunks(size) {
            framed.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
            framed.extend_from_slice(chunk);
            framed.extend_from_slice(b"\r\n");
        }
        framed.extend_from_slice(b"0\r\n\r\n");
        framed
    }
}
