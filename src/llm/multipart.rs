//! The form field `model` of a `multipart/form-data` body. RFC 7578, RFC 2046 §5.1.
//!
//! The one idea: a part ends where CR LF `--` boundary stands, and since no boundary holds
//! a CR, a failed match can only begin again at a CR. So one counter is the whole search,
//! any split is the same, and between two CRs the audio goes by at the speed of `memchr`.
//!
//! ```text
//! Preamble ─delimiter─► Tail ─CRLF─► Headers ─CRLF CRLF─► Part ─delimiter─► Tail ─"--"─► Epilogue
//! ```
//!
//! Strict where servers differ: line ends are CRLF, a second field `model` is refused (some
//! servers take the first, some the last), one with a `filename` is a file and not a name.
//! Parts are not decoded; a name that is said to be coded is doubtful.

use std::fmt;
use std::ops::Range;

use super::scan::{Model, NAME_BYTES_MAX};

/// The longest boundary. Source: RFC 2046 §5.1.1.
pub const BOUNDARY_BYTES_MAX: usize = 70;
/// The longest head of a part that is read, line ends not counted; a longer one is refused.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
/// CR LF and two dashes before the boundary.
const DELIMITER_BYTES_MAX: usize = BOUNDARY_BYTES_MAX + 4;

/// Why a form cannot be routed by its model. `Display` is the text for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultipartFault {
    /// No byte at all.
    Empty,
    /// The body ends before its last delimiter.
    Truncated,
    /// Something else than a line end or `--` follows the delimiter at byte `at`.
    BadDelimiter {
        /// Offset in the body.
        at: u64,
    },
    /// A part's header line is not ended by CR LF or is no field.
    BadHeader {
        /// Offset in the body.
        at: u64,
    },
    /// A part's head is longer than [`HEAD_BYTES_MAX`].
    HeadTooLong,
    /// Two parts are called `model`.
    ModelTwice,
    /// The part `model` is a file, or no UTF-8.
    NotText,
    /// The model's name is longer than [`NAME_BYTES_MAX`].
    NameTooLong,
}

impl fmt::Display for MultipartFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MultipartFault::Empty => f.write_str("Empty request body."),
            MultipartFault::Truncated => f.write_str("Invalid form data: unexpected end"),
            MultipartFault::BadDelimiter { at } => {
                write!(f, "Invalid form data: broken boundary at byte {at}")
            }
            MultipartFault::BadHeader { at } => {
                write!(f, "Invalid form data: broken part header at byte {at}")
            }
            MultipartFault::HeadTooLong => {
                write!(f, "Invalid form data: part head longer than {HEAD_BYTES_MAX} bytes")
            }
            MultipartFault::ModelTwice => f.write_str("Invalid 'model': given twice"),
            MultipartFault::NotText => f.write_str("Invalid 'model': not a text field"),
            MultipartFault::NameTooLong => {
                write!(f, "Invalid 'model': longer than {NAME_BYTES_MAX} bytes")
            }
        }
    }
}

impl std::error::Error for MultipartFault {}

/// The boundary that a `Content-Type` names.
#[derive(Clone, Copy, Debug)]
pub struct Boundary {
    bytes: [u8; BOUNDARY_BYTES_MAX],
    len: usize,
}

impl Boundary {
    /// Reads the value of the parameter `boundary`, quoted or not.
    ///
    /// Shape: `None` for one that RFC 2046 forbids, and for one that servers unquote in
    /// different ways.
    pub(super) fn of_value(value: &[u8]) -> Option<Self> {
        let is_quoted = value.starts_with(b"\"");
        let mut bytes = [0; BOUNDARY_BYTES_MAX];
        let len = unquote(value, &mut bytes)?;
        let boundary = Self { bytes, len };
        let found = boundary.as_bytes();
        // Without quotes a space ends it for some; with a quoted pair it is another for some.
        let plain = if is_quoted { !value.contains(&b'\\') } else { !found.contains(&b' ') };
        (is_boundary(found) && plain).then_some(boundary)
    }

    /// Gives its bytes, unquoted.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// Finds the field `model` of a form fed in pieces.
///
/// Shape: `push` each piece of the body in order, then `finish`; `model` may be asked at
/// any time. The span of its value has no quotes. About 9 KiB, no heap.
#[derive(Clone, Debug)]
pub struct MultipartScan {
    state: State,
    seen: u64,
    delimiter: [u8; DELIMITER_BYTES_MAX],
    delimiter_len: usize,
    /// Bytes of the delimiter that the last bytes of the input agree with.
    matched: usize,
    /// How many of those were never in the input: the line end that the body's first
    /// delimiter does without. `assumed <= matched`.
    assumed: usize,
    line: [u8; HEAD_BYTES_MAX],
    line_len: usize,
    /// Bytes of the head's lines before this one.
    head_len: usize,
    part: Part,
    name: [u8; NAME_BYTES_MAX],
    name_len: usize,
    span: Range<u64>,
    /// The match at hand began behind a CR or an LF that stood alone.
    bare: bool,
    /// A `Content-Disposition` of this part has been read.
    disposed: bool,
    /// What the fields of this part say of its text.
    coding: Coding,
    /// The value of `model` is complete.
    is_found: bool,
    /// Something stands there that servers read in different ways.
    is_doubtful: bool,
}

/// What the headers have told of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Other,
    Model,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Preamble,
    /// After a delimiter: padding, then a line end, or `--`.
    Tail {
        dashes: u8,
        after_cr: bool,
    },
    Headers {
        after_cr: bool,
    },
    Part,
    Epilogue,
    Dead(MultipartFault),
}

type Step = Result<usize, MultipartFault>;

impl MultipartScan {
    /// Makes a scan for a body with this boundary; `None` if RFC 2046 forbids it.
    pub fn new(boundary: &[u8]) -> Option<Self> {
        if !is_boundary(boundary) {
            return None;
        }
        let mut delimiter = [0; DELIMITER_BYTES_MAX];
        delimiter.get_mut(..4)?.copy_from_slice(b"\r\n--");
        delimiter.get_mut(4..4 + boundary.len())?.copy_from_slice(boundary);
        Some(Self {
            state: State::Preamble,
            seen: 0,
            delimiter,
            delimiter_len: 4 + boundary.len(),
            matched: 2,
            assumed: 2,
            line: [0; HEAD_BYTES_MAX],
            line_len: 0,
            head_len: 0,
            part: Part::Other,
            name: [0; NAME_BYTES_MAX],
            name_len: 0,
            span: 0..0,
            bare: false,
            disposed: false,
            coding: Coding::None,
            is_found: false,
            is_doubtful: false,
        })
    }

    /// Takes the next piece of the body.
    ///
    /// Errors: the first fault found; every later call tells the same one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), MultipartFault> {
        let mut at = 0;
        while at < bytes.len() {
            match self.step(bytes, at) {
                Ok(next) => at = next,
                Err(fault) => {
                    self.state = State::Dead(fault);
                    return Err(fault);
                }
            }
        }
        self.seen += bytes.len() as u64;
        Ok(())
    }

    /// Says that the body is over.
    ///
    /// Errors: `Empty`, `Truncated`, or the fault of `push`.
    pub fn finish(&mut self) -> Result<(), MultipartFault> {
        let fault = match self.state {
            State::Epilogue => return Ok(()),
            State::Tail { dashes: 2, .. } => return Ok(()),
            State::Dead(fault) => fault,
            _ if self.seen == 0 => MultipartFault::Empty,
            _ => MultipartFault::Truncated,
        };
        self.state = State::Dead(fault);
        Err(fault)
    }

    /// Tells the model so far; final after a `finish` that returned `Ok`.
    pub fn model(&self) -> Option<Model<'_>> {
        let name = std::str::from_utf8(self.name.get(..self.name_len)?).ok()?;
        self.is_found.then(|| Model { name, span: self.span.clone() })
    }

    /// Tells whether servers may find other parts in it, or read other values.
    ///
    /// It is so when something else than line ends stands before the first delimiter or behind
    /// the last (RFC 2046 has a reader ignore it; some look for parts there), when a quoted name
    /// has a quote in it, and when the name is said to be coded, or not to be UTF-8.
    pub fn is_doubtful(&self) -> bool {
        self.is_doubtful
    }

    fn step(&mut self, bytes: &[u8], at: usize) -> Step {
        match self.state {
            State::Preamble | State::Part => self.content(bytes, at),
            State::Tail { dashes, after_cr } => self.tail(bytes, at, dashes, after_cr),
            State::Headers { after_cr } => self.headers(bytes, at, after_cr),
            State::Epilogue => {
                let rest = bytes.get(at..).unwrap_or_default();
                self.is_doubtful |= !rest.iter().all(|b| b"\r\n".contains(b));
                Ok(bytes.len())
            }
            State::Dead(fault) => Err(fault),
        }
    }

    /// Crosses a part's bytes, or the preamble's, up to the end of a delimiter.
    fn content(&mut self, bytes: &[u8], from: usize) -> Step {
        let mut at = from;
        while let Some(&byte) = bytes.get(at) {
            if self.matched == 0 {
                let rest = bytes.get(at..).unwrap_or_default();
                let run = memchr::memchr2(b'\r', b'\n', rest).unwrap_or(rest.len());
                self.add_to_name(rest.get(..run).unwrap_or_default())?;
                at += run;
                match rest.get(run) {
                    Some(b'\r') => self.matched = 1,
                    Some(_) => {
                        self.add_to_name(b"\n")?;
                        self.after_bare();
                    }
                    None => continue,
                }
                at += 1;
                continue;
            }
            if self.delimiter.get(self.matched) == Some(&byte) {
                self.matched += 1;
                at += 1;
                if self.matched == self.delimiter_len {
                    // A delimiter right behind the headers, or behind half a line end: servers
                    // do not agree whether it ends the part or is content.
                    if self.bare || (self.assumed > 0 && matches!(self.state, State::Part)) {
                        return Err(MultipartFault::BadDelimiter { at: self.seen + at as u64 });
                    }
                    self.end_part(at)?;
                    (self.matched, self.assumed) = (0, 0);
                    self.state = State::Tail { dashes: 0, after_cr: false };
                    return Ok(at);
                }
                continue;
            }
            // No delimiter after all: what agreed was content. The byte itself is looked at
            // again, for it may be the CR of the next try.
            let delimiter = self.delimiter;
            let was_cr = self.matched == 1;
            self.add_to_name(delimiter.get(self.assumed..self.matched).unwrap_or_default())?;
            (self.matched, self.assumed, self.bare) = (0, 0, false);
            if was_cr && byte == b'-' {
                self.after_bare();
            }
        }
        Ok(at)
    }

    /// Looks for a delimiter behind half a line end, which is content as far as we know.
    fn after_bare(&mut self) {
        (self.matched, self.assumed, self.bare) = (2, 2, true);
    }

    fn add_to_name(&mut self, more: &[u8]) -> Result<(), MultipartFault> {
        if matches!(self.state, State::Preamble) {
            self.is_doubtful |= !more.iter().all(|b| b"\r\n".contains(b));
        }
        if self.part != Part::Model {
            return Ok(());
        }
        let place = self.name.get_mut(self.name_len..self.name_len + more.len());
        place.ok_or(MultipartFault::NameTooLong)?.copy_from_slice(more);
        self.name_len += more.len();
        Ok(())
    }

    /// Closes the part whose delimiter ends before `at`.
    fn end_part(&mut self, at: usize) -> Result<(), MultipartFault> {
        if self.part == Part::Model {
            let end = self.seen + at as u64 - self.delimiter_len as u64;
            // The name was copied whole, so its length tells where it began.
            self.span = end - self.name_len as u64..end;
            let name = self.name.get(..self.name_len).unwrap_or_default();
            std::str::from_utf8(name).map_err(|_| MultipartFault::NotText)?;
            self.is_doubtful |= match self.coding {
                Coding::None => false,
                Coding::Latin => !name.is_ascii(),
                Coding::Other => true,
            };
            self.is_found = true;
        }
        self.part = Part::Other;
        Ok(())
    }

    fn tail(&mut self, bytes: &[u8], at: usize, dashes: u8, after_cr: bool) -> Step {
        self.state = match (bytes.get(at), dashes, after_cr) {
            (Some(b'-'), 0, false) => State::Tail { dashes: 1, after_cr: false },
            (Some(b'-'), 1, false) => State::Tail { dashes: 2, after_cr: false },
            (Some(_), 2, _) => {
                // The epilogue judges this byte.
                self.state = State::Epilogue;
                return Ok(at);
            }
            (Some(b' ' | b'\t'), 0, false) => State::Tail { dashes, after_cr },
            (Some(b'\r'), 0, false) => State::Tail { dashes, after_cr: true },
            (Some(b'\n'), 0, true) => {
                (self.line_len, self.head_len) = (0, 0);
                (self.disposed, self.coding) = (false, Coding::None);
                State::Headers { after_cr: false }
            }
            _ => return Err(MultipartFault::BadDelimiter { at: self.seen + at as u64 }),
        };
        Ok(at + 1)
    }

    fn headers(&mut self, bytes: &[u8], from: usize, after_cr: bool) -> Step {
        let mut after_cr = after_cr;
        for (at, &byte) in bytes.iter().enumerate().skip(from) {
            match (byte, after_cr) {
                (b'\r', false) => after_cr = true,
                (b'\n', true) if self.line_len == 0 => {
                    if self.part == Part::Model {
                        self.name_len = 0;
                    }
                    self.state = State::Part;
                    (self.matched, self.assumed) = (2, 2);
                    return Ok(at + 1);
                }
                (b'\n', true) => {
                    after_cr = false;
                    self.header(at)?;
                    self.head_len += self.line_len;
                    self.line_len = 0;
                }
                (b'\n', false) | (_, true) | (0, _) => {
                    return Err(MultipartFault::BadHeader { at: self.seen + at as u64 });
                }
                (_, false) => {
                    // The lines before leave so much less room for this one.
                    let room = HEAD_BYTES_MAX.saturating_sub(self.head_len);
                    let place =
                        self.line.get_mut(..room).and_then(|line| line.get_mut(self.line_len));
                    *place.ok_or(MultipartFault::HeadTooLong)? = byte;
                    self.line_len += 1;
                }
            }
        }
        self.state = State::Headers { after_cr };
        Ok(bytes.len())
    }

    /// Reads a whole header line, which ends at `at`.
    fn header(&mut self, at: usize) -> Result<(), MultipartFault> {
        let fault = MultipartFault::BadHeader { at: self.seen + at as u64 };
        let line = self.line.get(..self.line_len).unwrap_or_default();
        // A folded line could hide a name from us that a server sees.
        if line.first().is_some_and(|b| b" \t".contains(b)) {
            return Err(fault);
        }
        let colon = memchr::memchr(b':', line).ok_or(fault)?;
        let (field, value) = line.split_at(colon);
        if field.is_empty() || field.iter().any(u8::is_ascii_whitespace) {
            return Err(fault);
        }
        if !field.eq_ignore_ascii_case(b"content-disposition") {
            let value = value.get(1..).unwrap_or_default().trim_ascii();
            self.coding = self.coding.max(Coding::of_field(field, value));
            return Ok(());
        }
        if std::mem::replace(&mut self.disposed, true) {
            return Err(fault);
        }
        let start = memchr::memchr(b';', value).unwrap_or(value.len());
        let (disposition, parameters) = value.split_at(start);
        if disposition.contains(&b'"') {
            return Err(fault);
        }
        // Whether such a quote ends the string or not: servers do not agree.
        self.is_doubtful |= parameters.windows(2).any(|pair| pair == b"\\\"");
        let (mut is_model, mut is_file, mut is_extended) = (false, false, false);
        let (mut names, mut is_paired) = (0, false);
        let well_formed = each_parameter(parameters, |name, value| {
            let mut buffer = [0; 8];
            let is_name = name.eq_ignore_ascii_case(b"name");
            let len = if is_name { unquote(value, &mut buffer) } else { None };
            names += u8::from(is_name);
            is_paired |= is_name && value.contains(&b'\\');
            is_model |= len.is_some_and(|len| buffer.get(..len) == Some(b"model"));
            is_extended |= name.get(..5).is_some_and(|name| name.eq_ignore_ascii_case(b"name*"));
            is_file |= name.get(..8).is_some_and(|name| name.eq_ignore_ascii_case(b"filename"));
        });
        // RFC 7578 §4.2 forbids `name*=`, yet some servers decode it. Of two names some take the
        // first, and some leave a quoted pair as it is.
        if !well_formed || is_extended || names > 1 || (is_model && is_paired) {
            return Err(fault);
        }
        if is_model && is_file {
            return Err(MultipartFault::NotText);
        }
        if is_model && (self.is_found || self.part == Part::Model) {
            return Err(MultipartFault::ModelTwice);
        }
        if is_model {
            self.part = Part::Model;
        }
        Ok(())
    }
}

/// How the fields of a part say that its text is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Coding {
    /// As it stands there, in UTF-8.
    None,
    /// In a charset that has ASCII in it.
    Latin,
    /// In another, or by a transfer encoding. RFC 7578 §4.7 has done away with those; Django, Go
    /// and aiohttp undo some of them all the same.
    Other,
}

impl Coding {
    fn of_field(field: &[u8], value: &[u8]) -> Coding {
        let is_one_of = |value: &[u8], words: &[&[u8]]| {
            words.iter().any(|word| value.eq_ignore_ascii_case(word))
        };
        if field.eq_ignore_ascii_case(b"content-transfer-encoding") {
            let plain = is_one_of(value, &[b"binary", b"8bit", b"7bit"]);
            return if plain { Coding::None } else { Coding::Other };
        }
        if !field.eq_ignore_ascii_case(b"content-type") {
            return Coding::None;
        }
        let mut coding = Coding::None;
        let start = memchr::memchr(b';', value).unwrap_or(value.len());
        let well_formed = each_parameter(value.get(start..).unwrap_or_default(), |name, value| {
            if name.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"charset")) {
                let of_charset = match value {
                    _ if name.len() != 7 => Coding::Other,
                    _ if is_one_of(value, &[b"utf-8", b"\"utf-8\"", b"utf8"]) => Coding::None,
                    // Of Java's clients, and harmless in a name of ASCII letters.
                    _ if is_one_of(value, &[b"us-ascii", b"iso-8859-1"]) => Coding::Latin,
                    _ => Coding::Other,
                };
                coding = coding.max(of_charset);
            }
        });
        if well_formed { coding } else { Coding::Other }
    }
}

/// RFC 2046 §5.1.1: 1 to 70 of a few harmless characters, no space at the end.
fn is_boundary(bytes: &[u8]) -> bool {
    let is_char = |b: &u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(b);
    (1..=BOUNDARY_BYTES_MAX).contains(&bytes.len())
        && bytes.iter().all(is_char)
        && !bytes.ends_with(b" ")
}

/// Shows each `;name=value` with the value as written, quotes included; says whether the
/// whole of `bytes` could be read. An empty parameter (`;;`) is let pass.
pub(super) fn each_parameter<'a>(
    bytes: &'a [u8],
    mut each: impl FnMut(&'a [u8], &'a [u8]),
) -> bool {
    let mut rest = bytes.trim_ascii();
    while let Some(after) = rest.strip_prefix(b";") {
        rest = after.trim_ascii_start();
        if rest.is_empty() || rest.starts_with(b";") {
            continue;
        }
        let Some(equals) = rest.iter().position(|b| b"=;\"".contains(b)) else { return false };
        let (name, value) = rest.split_at(equals);
        let Some(value) = value.strip_prefix(b"=") else { return false };
        let value = value.trim_ascii_start();
        let Some(end) = value_end(value) else { return false };
        let (value, after) = value.split_at(end);
        // To some parsers a quote opens a string wherever it stands, and hides what follows.
        if !value.starts_with(b"\"") && value.contains(&b'"') {
            return false;
        }
        each(name.trim_ascii(), value.trim_ascii());
        rest = after.trim_ascii_start();
    }
    rest.is_empty()
}

/// Tells where a parameter's value ends: after its closing quote, or before the next `;`.
fn value_end(value: &[u8]) -> Option<usize> {
    if !value.starts_with(b"\"") {
        return Some(memchr::memchr(b';', value).unwrap_or(value.len()));
    }
    let mut at = 1;
    loop {
        match value.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

/// Writes a value to `out` without quotes and quoted pairs; `None` if it does not fit.
fn unquote(value: &[u8], out: &mut [u8]) -> Option<usize> {
    let (inner, is_quoted) = match value.strip_prefix(b"\"").and_then(|v| v.strip_suffix(b"\"")) {
        Some(inner) => (inner, true),
        None => (value, false),
    };
    let (mut len, mut at) = (0, 0);
    while let Some(&byte) = inner.get(at) {
        let is_pair = is_quoted && byte == b'\\';
        *out.get_mut(len)? = if is_pair { *inner.get(at + 1)? } else { byte };
        len += 1;
        at += if is_pair { 2 } else { 1 };
    }
    Some(len)
}

/// Reads `data` as a form whole and byte by byte; both must agree, the span holds the name.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let _ = Boundary::of_value(data);
    let run = |size: usize| {
        let mut scan = MultipartScan::new(b"x").expect("a boundary of one letter is allowed");
        let pushed = data.chunks(size.max(1)).try_for_each(|piece| scan.push(piece));
        let result = pushed.and_then(|()| scan.finish());
        (result, scan.model().map(|model| (model.name.to_owned(), model.span)))
    };
    let whole = run(data.len());
    assert_eq!(whole, run(1));
    assert_eq!(whole, run(5));
    if let (_, Some((name, span))) = whole {
        assert_eq!(&data[span.start as usize..span.end as usize], name.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use proptest::prelude::*;

    type Found = Option<(String, Range<u64>)>;

    fn scan_in(body: &[u8], size: usize) -> Result<Found, MultipartFault> {
        let mut scan = MultipartScan::new(b"b--x").unwrap();
        for piece in body.chunks(size) {
            scan.push(piece)?;
        }
        scan.finish()?;
        Ok(scan.model().map(|model| (model.name.to_owned(), model.span)))
    }

    fn scan(body: &[u8]) -> Result<Found, MultipartFault> {
        let whole = scan_in(body, usize::MAX);
        for size in [1, 2, 3, 7] {
            assert_eq!(scan_in(body, size), whole);
        }
        whole
    }

    fn part(headers: &str, value: &str) -> String {
        format!("--b--x\r\n{headers}\r\n\r\n{value}\r\n")
    }

    fn field(name: &str, value: &str) -> String {
        part(&format!("Content-Disposition: form-data; name={name}"), value)
    }

    fn form(parts: &[String]) -> String {
        format!("{}--b--x--\r\n", parts.concat())
    }

    fn check(parts: &[String], want: Option<&str>) {
        let body = form(parts);
        let got = scan(body.as_bytes()).unwrap_or_else(|fault| panic!("{fault}: {body}"));
        assert_eq!(got.as_ref().map(|(name, _)| name.as_str()), want, "{body}");
        if let Some((name, span)) = got {
            assert_eq!(&body[span.start as usize..span.end as usize], name);
        }
    }

    fn refuses(body: impl AsRef<[u8]>, fault: MultipartFault) {
        assert_eq!(scan(body.as_ref()), Err(fault));
    }

    #[test]
    fn finds_the_field_model() {
        let file = part(
            "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav",
            "RIFF\r\n--b-\r\r\n--b--\r\nname=\"model\"\r\n\r\nx",
        );
        check(&[file.clone(), field("\"model\"", "whisper-1")], Some("whisper-1"));
        check(&[field("model", "whisper-1"), file.clone()], Some("whisper-1"));
        check(&[field("\"model\"", "a\r\n--b-"), file.clone()], Some("a\r\n--b-"));
        check(&[field("\"model\"", "")], Some(""));
        check(&[file, field("\"models\"", "x"), field("\"Model\"", "y")], None);
        check(&[part("X: 1\r\ncontent-disposition:form-data ; NAME = model ;", "é")], Some("é"));
        check(&[], None);
    }

    #[test]
    fn preamble_padding_and_epilogue_are_crossed() {
        let body = "hello\r\n--b--x \t\r\nContent-Disposition: form-data; name=model\r\n\r\nm\r\n--b--x--bye\r\n--b--x\r\n";
        assert_eq!(scan(body.as_bytes()).unwrap().unwrap().0, "m");
        assert_eq!(scan(b"--b--x--").unwrap(), None);
    }

    #[test]
    fn refuses_what_servers_read_in_different_ways() {
        let model = || field("model", "a");
        refuses(form(&[model(), model()]), MultipartFault::ModelTwice);
        refuses(
            form(&[part("Content-Disposition: form-data; name=model; filename=x", "a")]),
            MultipartFault::NotText,
        );
        let at = |form: String, at| refuses(form, MultipartFault::BadHeader { at });
        at(form(&[part("Content-Disposition: form-data; name*=utf-8''model", "a")]), 59);
        at(form(&[part("Content-Disposition : form-data; name=model", "a")]), 52);
        at(form(&[part("A: 1\r\n name=model", "a")]), 26);
        at("--b--x\r\nA: 1\nB: 2".to_owned(), 12);
        refuses("--b--x\nA: 1", MultipartFault::BadDelimiter { at: 6 });
        refuses("--b--xy", MultipartFault::BadDelimiter { at: 6 });
        refuses("--b--x\r\nA: 1\r\n\r\n--b--x", MultipartFault::BadDelimiter { at: 22 });
        let two = |second| format!("Content-Disposition: form-data; name=model{second}");
        for second in ["; name=other", "; name=model", "\r\nContent-Disposition: form-data; name=x"]
        {
            let found = scan(form(&[part(&two(second), "a")]).as_bytes());
            assert!(matches!(found, Err(MultipartFault::BadHeader { .. })), "{second}: {found:?}");
        }
        let paired = scan(form(&[field("\"mo\\del\"", "a")]).as_bytes());
        assert!(matches!(paired, Err(MultipartFault::BadHeader { .. })), "{paired:?}");
    }

    #[test]
    fn a_delimiter_behind_half_a_line_end_is_refused() {
        for end in ["\n", "\r", "\n\n", "\r\r", "\n\r", "x\n"] {
            let body = form(&[field("x", &format!("a{end}--b--x"))]);
            let found = scan(body.as_bytes());
            assert!(
                matches!(found, Err(MultipartFault::BadDelimiter { .. })),
                "{end:?}: {found:?}"
            );
        }
        // Less than the whole of it is content.
        check(&[field("model", "a\n--b--\r--b-\n-\r")], Some("a\n--b--\r--b-\n-\r"));
    }

    fn is_doubtful(body: String) -> [bool; 3] {
        [usize::MAX, 1, 3].map(|size| {
            let mut scan = MultipartScan::new(b"b--x").unwrap();
            for piece in body.as_bytes().chunks(size) {
                scan.push(piece).unwrap();
            }
            scan.finish().unwrap();
            scan.is_doubtful()
        })
    }

    #[test]
    fn a_quote_in_a_quoted_value_is_doubtful() {
        // Python's parser counts quotes, and finds `name=model` in the first.
        let doubtful =
            [r#"x="\\"; name="o"; z="; name=model; ""#, r#"name="file"; filename="a\"b""#];
        for parameters in doubtful {
            let headers = format!("Content-Disposition: form-data; {parameters}");
            let body = form(&[part(&headers, "big"), field("model", "a")]);
            assert_eq!(is_doubtful(body), [true; 3], "{parameters}");
        }
        let headers = r#"Content-Disposition: form-data; name="file"; filename="C:\\a\\b; c""#;
        let body = form(&[part(headers, "x"), field("model", "a")]);
        assert_eq!(is_doubtful(body), [false; 3]);
        // A quote that opens no value to us, and a string to them.
        for disposition in [
            r#"form-data; x=a"; name="o"; y="; name=model; z=";w=b""#,
            r#"form-data";x="; name=model; y="; name=o"#,
        ] {
            let body = form(&[part(&format!("Content-Disposition: {disposition}"), "big")]);
            let found = scan(body.as_bytes());
            assert!(matches!(found, Err(MultipartFault::BadHeader { .. })), "{found:?}");
        }
    }

    #[test]
    fn a_name_that_is_said_to_be_coded_is_doubtful() {
        let check = |headers: &str, name: &str, want: bool| {
            let disposition = "Content-Disposition: form-data; name=model";
            for headers in
                [format!("{disposition}\r\n{headers}"), format!("{headers}\r\n{disposition}")]
            {
                assert_eq!(is_doubtful(form(&[part(&headers, name)])), [want; 3], "{headers}");
            }
            // Of another part it is none of our business.
            let other = part(&format!("{headers}\r\nContent-Disposition: form-data; name=x"), "");
            assert_eq!(is_doubtful(form(&[other, field("model", "a")])), [false; 3], "{headers}");
        };
        check("Content-Transfer-Encoding: base64", "c21hbGw=", true);
        check("content-transfer-encoding:Quoted-Printable", "a", true);
        check("Content-Transfer-Encoding: 8bit", "a", false);
        check("Content-Type: text/plain; charset=utf-16", "a", true);
        check("Content-Type: text/plain; charset", "a", true);
        check("Content-Type: text/plain", "é", false);
        check("Content-Type: text/plain; charset=UTF-8", "é", false);
        check("Content-Type: text/plain; charset=ISO-8859-1", "a", false);
        check("Content-Type: text/plain; charset=ISO-8859-1", "é", true);
    }

    #[test]
    fn bytes_outside_the_parts_are_told() {
        let told = is_doubtful;
        let form = form(&[field("model", "a")]);
        for clean in ["", "\r\n", "\r\n\r\n"] {
            assert_eq!(told(format!("{clean}{form}{clean}")), [false; 3], "{clean:?}");
        }
        for more in ["x\r\n", "--b\r\n", " \r\n"] {
            assert_eq!(told(format!("{more}{form}")), [true; 3], "{more:?}");
            assert_eq!(told(format!("{form}{more}")), [true; 3], "{more:?}");
        }
    }

    #[test]
    fn a_form_cut_anywhere_is_truncated() {
        let body = form(&[field("\"model\"", "a")]);
        for cut in 1..body.len() - 2 {
            refuses(&body[..cut], MultipartFault::Truncated);
        }
        refuses("", MultipartFault::Empty);
    }

    #[test]
    fn name_bytes_max_and_head_bytes_max_are_the_last_that_fit() {
        check(&[field("model", &"x".repeat(NAME_BYTES_MAX))], Some(&"x".repeat(NAME_BYTES_MAX)));
        refuses(
            form(&[field("model", &"x".repeat(NAME_BYTES_MAX + 1))]),
            MultipartFault::NameTooLong,
        );
        refuses(form(&[field("model", &"\r\n--b-".repeat(50))]), MultipartFault::NameTooLong);
        let line = |len: usize| form(&[part(&format!("X: {}", "y".repeat(len - 3)), "")]);
        assert_eq!(scan(line(HEAD_BYTES_MAX).as_bytes()), Ok(None));
        refuses(line(HEAD_BYTES_MAX + 1), MultipartFault::HeadTooLong);
        // Many lines are one head, and each part has its own.
        let lines = |len: usize| {
            part(&format!("X: {}\r\nY: {}", "y".repeat(497), "y".repeat(len - 503)), "")
        };
        assert_eq!(
            scan(form(&[lines(HEAD_BYTES_MAX), lines(HEAD_BYTES_MAX)]).as_bytes()),
            Ok(None)
        );
        refuses(form(&[lines(HEAD_BYTES_MAX + 1)]), MultipartFault::HeadTooLong);
    }

    #[test]
    fn a_name_that_is_no_text_is_refused() {
        let mut body = form(&[field("model", "?")]).into_bytes();
        let at = body.iter().position(|&b| b == b'?').unwrap();
        body[at] = 0xff;
        refuses(body, MultipartFault::NotText);
    }

    #[test]
    fn a_scan_wants_a_boundary() {
        assert!(MultipartScan::new(b"").is_none());
        assert!(MultipartScan::new(&[b'x'; BOUNDARY_BYTES_MAX + 1]).is_none());
    }

    #[test]
    fn a_megabyte_of_noise_hides_nothing() {
        let mut rng = Rng::new(9);
        let mut body =
            b"--b--x\r\nContent-Disposition: form-data; name=file; filename=f\r\n\r\n".to_vec();
        body.extend((0..1 << 20).map(|_| b"\r\n-bx\0"[rng.below(6) as usize]));
        // The alphabet may spell the boundary by itself; then it is no noise.
        while let Some(at) = memchr::memmem::find(&body[10..], b"--b--x") {
            body[10 + at] = b'x';
        }
        body.extend_from_slice(form(&[field("model", "m")]).as_bytes());
        let at = body.len() - form(&[field("model", "m")]).len();
        body.splice(at..at, *b"\r\n");
        assert_eq!(scan_in(&body, 1000).unwrap().unwrap().0, "m");
    }

    proptest! {
        #[test]
        fn any_form_gives_its_model(
            before in prop::collection::vec("[\r\na-]{0,30}(\r\n--b-)?", 0..3),
            model in prop::option::of("[\r\n-bé]{0,20}"), after in "[\r\n-]{0,20}",
        ) {
            let holds = |text: &str| format!("\r\n{text}\r\n").contains("--b--x");
            prop_assume!(!before.iter().chain(&model).any(|text| holds(text)));
            let mut parts: Vec<String> = before.iter().map(|text| field("x", text)).collect();
            parts.extend(model.as_ref().map(|name| field("\"model\"", name)));
            parts.push(field("y", &after));
            let got = scan(form(&parts).as_bytes()).unwrap();
            prop_assert_eq!(got.map(|(name, _)| name), model);
        }

        #[test]
        fn no_input_panics(data in prop::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
        }

        #[test]
        fn no_input_of_form_pieces_panics(
            data in r#"(\r\n--x|--x|\r\n|\r|\n|-|content-disposition:|;|name=|model|"|\\|filename|[a-z]){0,40}"#,
        ) {
            fuzz(data.as_bytes());
            fuzz(format!("--x\r\ncontent-disposition: form-data; name=model\r\n\r\n{data}").as_bytes());
        }
    }
}
