//! Another name for the model in a body that is too large for one turn of the loop.
//!
//! As `route::rename_in_body`, which moves all that stands behind the name at once; here a body
//! is written anew, a slice in each turn, so that a core with 60 MiB of images on it goes on
//! serving others.

use super::conn_h1::Downstream;
use super::core::Core;
use super::forward::Outgoing;
use super::hold::{RequestBody, SLICE_BYTES, Scanner, copy_in_slices};
use super::route::value_of;
use crate::http1::body::{BodyReader, drain_data};
use crate::http1::framing::Framing;
use crate::net::race::yield_now;

/// Puts another name in the place of the model's value, in the received body.
///
/// Shape: a chunked body must be complete; it goes on with a length.
pub async fn in_slices(
    core: &Core,
    down: &mut Downstream,
    body: &mut RequestBody,
    scanner: &Scanner<'_>,
    name: &str,
    chunked: bool,
) -> Outgoing {
    let Some(found) = scanner.model() else { return Outgoing::AsCame };
    let place = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
    let (from, to) = (place(found.span.start), place(found.span.end));
    let value = value_of(scanner, name);
    let mut out = core.buffers.take(down.recv.len() + value.len());
    out.extend_from_slice(&down.recv[..body.begin]);
    let mut renamed = Renamed { out, at: 0, from, to, value: Some(&value) };
    let mut reader = BodyReader::new(Framing::Chunked);
    for slice in down.recv[body.begin..body.end].chunks(SLICE_BYTES) {
        match chunked {
            false => renamed.push(slice),
            true => {
                // The body has been framed before: no fault can show up now.
                let _ = drain_data(&mut reader, slice, |piece| renamed.push(piece));
            }
        }
        yield_now().await;
    }
    let mut out = renamed.end();
    let end = out.len();
    copy_in_slices(&mut out, &down.recv[body.end..]).await;
    core.buffers.give_back(std::mem::replace(&mut down.recv, out));
    body.end = end;
    // Nothing is left when the whole body is here.
    let left = if chunked { 0 } else { body.reader.length_left().unwrap_or(0) };
    Outgoing::Length((body.end - body.begin) as u64 + left)
}

/// Data in passing, with `value` in the place of what stood at `from..to`.
struct Renamed<'v> {
    out: Vec<u8>,
    /// Data bytes that have passed.
    at: usize,
    from: usize,
    to: usize,
    value: Option<&'v [u8]>,
}

impl Renamed<'_> {
    fn push(&mut self, piece: &[u8]) {
        let within = |place: usize| place.saturating_sub(self.at).min(piece.len());
        let (before, behind) = (within(self.from), within(self.to));
        self.out.extend_from_slice(&piece[..before]);
        if self.at + piece.len() > self.from {
            self.out.extend_from_slice(self.value.take().unwrap_or_default());
        }
        self.out.extend_from_slice(&piece[behind..]);
        self.at += piece.len();
    }

    fn end(mut self) -> Vec<u8> {
        self.out.extend_from_slice(self.value.take().unwrap_or_default());
        self.out
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
            data in prop::collection::vec(any::<u8>(), 0..40), value in prop::collection::vec(any::<u8>(), 0..9),
            at in 0usize..41, len in 0usize..9, step in 1usize..20,
        ) {
            let from = at.min(data.len());
            let to = (from + len).min(data.len());
            let mut expected = data.clone();
            expected.splice(from..to, value.iter().copied());
            let mut renamed = Renamed { out: Vec::new(), at: 0, from, to, value: Some(&value) };
            data.chunks(step).for_each(|piece| renamed.push(piece));
            prop_assert_eq!(renamed.end(), expected);
        }
    }
}
