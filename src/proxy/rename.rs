//! Replaces the name of the model in a received body.
//!
//! The one idea: the body is written anew into a second buffer of the core, with the new value in
//! the place of the old one, and the buffers change places. A small body passes in one piece; a
//! large one in slices, one in each turn of the loop, so that a core with 60 MiB of images on it
//! goes on serving others.

use super::core::Core;
use super::downstream::Downstream;
use super::forward::Outgoing;
use super::hold::{RequestBody, SLICE_BYTES, Scanner, copy_in_slices};
use crate::http1::body::{BodyReader, drain_data};
use crate::http1::framing::Framing;
use crate::llm::quote::quote;
use crate::net::race::yield_now;

/// Bytes to spare for the quotes and escapes of a name; most names need no more.
const QUOTES_BYTES: usize = 16;

/// Puts another name in the place of the model's value, in a body of one slice.
///
/// Shape: a chunked body must be complete; it goes on with a length.
pub fn at_once(
    core: &Core,
    down: &mut Downstream,
    body: &mut RequestBody,
    scanner: &Scanner<'_>,
    name: &str,
    chunked: bool,
) -> Outgoing {
    let Some(mut renamed) = Renamed::begin(core, down, body, scanner, name, chunked) else {
        return Outgoing::AsCame;
    };
    renamed.push(&down.recv[body.begin..body.end]);
    let (mut out, end) = renamed.end();
    out.extend_from_slice(&down.recv[body.end..]);
    put_in_place(core, down, body, out, end)
}

/// As [`at_once`], for a body that is too large for one turn of the loop.
pub async fn in_slices(
    core: &Core,
    down: &mut Downstream,
    body: &mut RequestBody,
    scanner: &Scanner<'_>,
    name: &str,
    chunked: bool,
) -> Outgoing {
    let Some(mut renamed) = Renamed::begin(core, down, body, scanner, name, chunked) else {
        return Outgoing::AsCame;
    };
    for slice in down.recv[body.begin..body.end].chunks(SLICE_BYTES) {
        renamed.push(slice);
        yield_now().await;
    }
    let (mut out, end) = renamed.end();
    copy_in_slices(&mut out, &down.recv[body.end..]).await;
    put_in_place(core, down, body, out, end)
}

/// Puts the new buffer in the place of the received one; tells how long the body is now.
fn put_in_place(
    core: &Core,
    down: &mut Downstream,
    body: &mut RequestBody,
    out: Vec<u8>,
    end: usize,
) -> Outgoing {
    core.buffers.give_back(std::mem::replace(&mut down.recv, out));
    body.end = end;
    // Nothing is left of a chunked body: all of it has been here.
    let left = body.reader.length_left().unwrap_or(0);
    Outgoing::Length((body.end - body.begin) as u64 + left)
}

/// A copy of a head and of the body's data behind it, made as they pass, with `value` in the place
/// of the bytes `from..to`.
///
/// Units: `at`, `from` and `to` count data bytes, `from <= to`; framing is left out.
struct Renamed<'n> {
    out: Vec<u8>,
    /// Data bytes that have passed.
    at: usize,
    from: usize,
    to: usize,
    /// The new value, until it has been written.
    value: Option<Value<'n>>,
    /// Takes the chunks of a chunked body apart.
    chunks: Option<BodyReader>,
}

/// A name as it stands in a body.
enum Value<'n> {
    /// In quotes, with escapes.
    Json(&'n str),
    /// As it is.
    Form(&'n str),
}

impl<'n> Renamed<'n> {
    /// Copies what stands before the body; `None` when the body names no model.
    fn begin(
        core: &Core,
        down: &Downstream,
        body: &RequestBody,
        scanner: &Scanner<'_>,
        name: &'n str,
        chunked: bool,
    ) -> Option<Self> {
        let found = scanner.model()?;
        let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
        let value = match scanner {
            Scanner::Form(_) => Value::Form(name),
            Scanner::Json(_) | Scanner::None => Value::Json(name),
        };
        let mut out = core.buffers.take(down.recv.len() + name.len() + QUOTES_BYTES);
        out.extend_from_slice(&down.recv[..body.begin]);
        Some(Self {
            out,
            at: 0,
            from: place(found.span.start),
            to: place(found.span.end),
            value: Some(value),
            chunks: chunked.then(|| BodyReader::new(Framing::Chunked)),
        })
    }

    fn push(&mut self, slice: &[u8]) {
        match self.chunks.take() {
            None => self.push_data(slice),
            Some(mut chunks) => {
                // The body has been framed before: no fault can show up now.
                let _ = drain_data(&mut chunks, slice, |data| self.push_data(data));
                self.chunks = Some(chunks);
            }
        }
    }

    fn push_data(&mut self, data: &[u8]) {
        let within = |place: usize| place.saturating_sub(self.at).min(data.len());
        let (before, behind) = (within(self.from), within(self.to));
        self.out.extend_from_slice(&data[..before]);
        if self.at + data.len() > self.from {
            self.write_value();
        }
        self.out.extend_from_slice(&data[behind..]);
        self.at += data.len();
    }

    fn write_value(&mut self) {
        match self.value.take() {
            Some(Value::Json(name)) => quote(name, &mut self.out),
            Some(Value::Form(name)) => self.out.extend_from_slice(name.as_bytes()),
            None => {}
        }
    }

    /// Returns what has been written, and where the body ends in it.
    fn end(mut self) -> (Vec<u8>, usize) {
        self.write_value();
        let end = self.out.len();
        (self.out, end)
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
            let mut renamed = Renamed { out: Vec::new(), at: 0, from, to, value, chunks };
            let sent = if chunked { in_chunks(&data, step) } else { data };
            sent.chunks(step).for_each(|slice| renamed.push(slice));
            prop_assert_eq!(renamed.end().0, expected);
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
