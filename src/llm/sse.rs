//! Server-sent events out of a stream in passing. WHATWG HTML §9.2.6.
//!
//! The one idea: look, do not hold. An event whose data is one line inside one read — which
//! is nearly every event of a model server — is shown as a slice of that read. Only what a
//! read has split, or what several `data:` lines make together, is put together in a carry.
//!
//! Bounds: an event whose data or one of whose lines exceeds `EVENT_BYTES_MAX` is skipped
//! whole and counted. An event without its blank line at the end of the stream is dropped,
//! as the standard says. Fields `id` and `retry` are of no use here and are not read.

use super::lines::{Line, Lines};

/// The longest data of an event that is shown, in bytes.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;
/// The longest event name that is kept; a longer one is shown as none.
const NAME_BYTES_MAX: usize = 64;

/// One event with data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SseEvent<'a> {
    /// The value of its last `event:` line, empty when there is none.
    pub name: &'a [u8],
    /// The values of its `data:` lines, joined by LF.
    pub data: &'a [u8],
}

/// Splits a stream into events.
///
/// Shape: `push` each read in order; events are shown as their blank line passes. No heap
/// until a read splits an event; at most two carries of 64 KiB, kept by `reset`.
#[derive(Clone, Debug, Default)]
pub struct SseSplitter {
    lines: Lines,
    event: Event,
    skipped: u64,
}

/// The event that is being put together.
#[derive(Clone, Debug)]
struct Event {
    /// Data that could not be lent: valid when `is_held`, `len <= EVENT_BYTES_MAX`.
    held: Vec<u8>,
    is_held: bool,
    name: [u8; NAME_BYTES_MAX],
    name_len: usize,
    is_too_long: bool,
    /// No line has ended yet: a byte-order mark may stand before the first one.
    is_first_line: bool,
}

impl Default for Event {
    fn default() -> Self {
        Self {
            held: Vec::new(),
            is_held: false,
            name: [0; NAME_BYTES_MAX],
            name_len: 0,
            is_too_long: false,
            is_first_line: true,
        }
    }
}

impl SseSplitter {
    /// Makes a splitter at the start of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets the stream, keeps the memory.
    pub fn reset(&mut self) {
        self.lines.reset();
        self.event.clear();
        self.event.is_first_line = true;
        self.skipped = 0;
    }

    /// Takes the next read and shows each event that it completes.
    pub fn push(&mut self, bytes: &[u8], mut each: impl FnMut(SseEvent<'_>)) {
        let Self { lines, event, skipped } = self;
        let mut lent: Option<&[u8]> = None;
        lines.push(bytes, |line| match line {
            Line::TooLong => event.is_too_long = true,
            Line::Lent(line) => match event.field(line) {
                Field::Data(data) if !event.is_held && lent.is_none() => lent = Some(data),
                Field::Data(data) => {
                    event.hold(lent.take());
                    event.hold(Some(data));
                }
                Field::Blank => *skipped += u64::from(event.end(lent.take(), &mut each)),
                Field::Other => {}
            },
            Line::Carried(line) => match event.field(line) {
                Field::Data(data) => {
                    event.hold(lent.take());
                    event.hold(Some(data));
                }
                Field::Blank => *skipped += u64::from(event.end(lent.take(), &mut each)),
                Field::Other => {}
            },
        });
        // The read goes away; what was only lent must be kept.
        event.hold(lent);
    }

    /// Tells how many events were too long to be shown.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }
}

enum Field<'a> {
    Data(&'a [u8]),
    Blank,
    Other,
}

impl Event {
    fn clear(&mut self) {
        self.held.clear();
        self.is_held = false;
        self.name_len = 0;
        self.is_too_long = false;
    }

    /// Reads one line; a name is kept at once, for it is short.
    fn field<'a>(&mut self, line: &'a [u8]) -> Field<'a> {
        let was_first = std::mem::replace(&mut self.is_first_line, false);
        let line =
            if was_first { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        if line.is_empty() {
            return Field::Blank;
        }
        if let Some(data) = value_of(line, b"data") {
            return Field::Data(data);
        }
        if let Some(name) = value_of(line, b"event") {
            let place = self.name.get_mut(..name.len());
            self.name_len = place.map_or(0, |place| {
                place.copy_from_slice(name);
                name.len()
            });
        }
        Field::Other
    }

    fn hold(&mut self, data: Option<&[u8]>) {
        let Some(data) = data else { return };
        let joined = self.held.len() + usize::from(self.is_held) + data.len();
        if self.is_too_long || joined > EVENT_BYTES_MAX {
            self.is_too_long = true;
            self.held.clear();
            return;
        }
        if self.is_held {
            self.held.push(b'\n');
        }
        self.held.extend_from_slice(data);
        self.is_held = true;
    }

    /// Shows the event, if it has data, and begins the next; says whether it was skipped.
    fn end(&mut self, lent: Option<&[u8]>, each: &mut impl FnMut(SseEvent<'_>)) -> bool {
        let data = lent.or(self.is_held.then_some(self.held.as_slice()));
        let is_too_long = self.is_too_long || data.is_some_and(|data| data.len() > EVENT_BYTES_MAX);
        if let (Some(data), false) = (data, is_too_long) {
            each(SseEvent { name: self.name.get(..self.name_len).unwrap_or_default(), data });
        }
        self.clear();
        is_too_long
    }
}

/// Tells the value of `line` if its field is called `field`: what follows the colon, less
/// one space; nothing for a line that is the name alone.
fn value_of<'a>(line: &'a [u8], field: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(field)?;
    match rest.split_first() {
        None => Some(rest),
        Some((b':', value)) => Some(value.strip_prefix(b" ").unwrap_or(value)),
        Some(_) => None,
    }
}

/// Splits `data` whole and byte by byte; both must show the same events within bounds.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let run = |size: usize| {
        let (mut splitter, mut events) = (SseSplitter::new(), Vec::new());
        for piece in data.chunks(size.max(1)) {
            splitter.push(piece, |event| {
                assert!(event.data.len() <= EVENT_BYTES_MAX && event.name.len() <= NAME_BYTES_MAX);
                events.push((event.name.to_vec(), event.data.to_vec()));
            });
        }
        (events, splitter.skipped())
    };
    let whole = run(data.len());
    assert_eq!(whole, run(1));
    assert_eq!(whole, run(7));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn events(pieces: &[&[u8]]) -> Vec<(String, String)> {
        let (mut splitter, mut got) = (SseSplitter::new(), Vec::new());
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        for piece in pieces {
            splitter.push(piece, |event| got.push((text(event.name), text(event.data))));
        }
        got
    }

    fn check(stream: &str, want: &[(&str, &str)]) {
        let want: Vec<_> = want.iter().map(|(n, d)| (n.to_string(), d.to_string())).collect();
        assert_eq!(events(&[stream.as_bytes()]), want, "{stream:?}");
        assert_eq!(events(&stream.as_bytes().chunks(1).collect::<Vec<_>>()), want, "{stream:?}");
    }

    #[test]
    fn reads_the_events_of_the_standard() {
        check("data: a\n\ndata:b\r\n\r\ndata:  c\r\r", &[("", "a"), ("", "b"), ("", " c")]);
        check("data: a\ndata: b\ndata\ndata:\n\n", &[("", "a\nb\n\n")]);
        check(": ping\n\nevent: x\n\n", &[]);
        check("event: x\nid: 7\nretry: 1\ndata: {}\n\ndata: y\n\n", &[("x", "{}"), ("", "y")]);
        check("\u{feff}data: a\n\n\u{feff}data: b\n\n", &[("", "a")]);
        check("data: unfinished\n", &[]);
        check("datax: a\n\ndata: [DONE]\n\n", &[("", "[DONE]")]);
        check("data\n\n", &[("", "")]);
    }

    #[test]
    fn an_event_whole_in_the_input_is_lent_and_not_copied() {
        let stream = b"event: message\ndata: {\"a\":1}\n\n";
        let mut splitter = SseSplitter::new();
        splitter.push(stream, |event| {
            assert!(stream.as_ptr_range().contains(&event.data.as_ptr()));
        });
        assert_eq!(splitter.event.held.capacity(), 0);
    }

    #[test]
    fn an_event_past_event_bytes_max_is_skipped_and_the_next_is_not() {
        let run = |stream: &[u8], size: usize| {
            let (mut splitter, mut lens) = (SseSplitter::new(), Vec::new());
            for piece in stream.chunks(size) {
                splitter.push(piece, |event| lens.push(event.data.len()));
                assert!(splitter.event.held.len() <= EVENT_BYTES_MAX);
            }
            (lens, splitter.skipped())
        };
        let line = |len: usize| [b"data: ".as_slice(), &vec![b'x'; len], b"\n"].concat();
        let next = b"\ndata: ok\n\n".as_slice();
        for size in [usize::MAX, 4096, 7] {
            assert_eq!(
                run(&[&line(EVENT_BYTES_MAX), next].concat(), size),
                (vec![EVENT_BYTES_MAX, 2], 0)
            );
            assert_eq!(run(&[&line(EVENT_BYTES_MAX + 1), next].concat(), size), (vec![2], 1));
            let joined = [line(40_000), line(30_000), line(5), next.to_vec()].concat();
            assert_eq!(run(&joined, size), (vec![2], 1));
            let bare =
                [b"data:".as_slice(), &vec![b'x'; EVENT_BYTES_MAX + 1], b"\n", next].concat();
            assert_eq!(run(&bare, size), (vec![2], 1));
        }
    }

    #[test]
    fn a_long_name_is_shown_as_none() {
        check(&format!("event: {}\ndata: a\n\n", "n".repeat(65)), &[("", "a")]);
    }

    /// The standard's steps over the whole text at once.
    fn oracle(stream: &str) -> Vec<(String, String)> {
        let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
        let mut got = Vec::new();
        let (mut name, mut data) = (String::new(), None::<String>);
        let mut lines: Vec<&str> = stream.split('\n').collect();
        lines.pop();
        for line in lines {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    let name = std::mem::take(&mut name);
                    got.extend(data.take().map(|data| (name, data)));
                }
                "data" => {
                    data = Some(data.map_or(value.to_owned(), |data| format!("{data}\n{value}")));
                }
                "event" => name = value.to_owned(),
                _ => {}
            }
        }
        got
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_at_any_split(
            stream in "((data|event|id|dat|)(:| |: |)[a-z{}\":]{0,6}(\n|\r|\r\n){1,3}){0,8}", size in 1..20usize,
        ) {
            let want = oracle(&stream);
            prop_assert_eq!(&events(&[stream.as_bytes()]), &want);
            prop_assert_eq!(events(&stream.as_bytes().chunks(size).collect::<Vec<_>>()), want);
        }

        #[test]
        fn no_input_panics(data in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(b"\r\n:data ".to_vec())], 0..200)) {
            fuzz(&data);
        }
    }
}
