//! The model scan: which model does this JSON body ask for, and where do its bytes stand.
//!
//! The one idea: only the *top-level* key `model` counts, so everything else must merely be
//! crossed, not understood. The scan walks the body once, in whatever pieces it arrives,
//! keeps no tree and no copy but the name, and spends its time in two loops of `simd_scan` that
//! run at memory speed. Clients send megabytes of `messages` before `model`, so crossing
//! them cheaply is the work.
//!
//! ```text
//!            ┌──────────────────────── , ────────────────────────┐
//! Start ─{─► Key ─"…"─► Colon ─:─► Value ─┬─ "…"   (Name | Text) ─┴► Next ─}─► End
//!                                         ├─ 12.5  (Number) ───────►
//!                                         ├─ true  (Literal) ──────►
//!                                         └─ { [   (Nested) ───────►
//! ```
//!
//! How strict: RFC 8259, at the top level in full. Below it, brackets must match in kind and
//! depth is bounded, strings must be terminated and free of control bytes, and a slash
//! outside a string is refused, lest a parser that knows comments see another document
//! than we do. Any other fault down there (`[1 2,]`, a bad escape, bad UTF-8 in a prompt)
//! goes to the server behind, whose business it is; no such fault can move a top-level
//! `model` in or out of sight. The last duplicate wins, as in every server behind.
//! A byte-order mark is not JSON (RFC 8259 §8.1).

pub use super::scan_fault::{DEPTH_MAX, Flaw, NAME_BYTES_MAX, ScanFault};
use std::ops::Range;

use super::simd_scan;
use super::unescape::{Piece, Unescape};

/// What a client is told when the body is sound and names no model.
pub const MISSING_MODEL: &str = "Missing 'model' field in request.";

/// The model that a body asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model<'a> {
    /// Its name, unescaped.
    pub name: &'a str,
    /// Byte offsets of the value in the body, quotes included, end exclusive.
    pub span: Range<u64>,
}

/// Finds the top-level `model` of a JSON object fed in pieces.
///
/// Shape: `push` each piece of the body in order, then `finish`; `model` may be asked at
/// any time and tells the last top-level duplicate *so far*. A duplicate that is no string
/// makes it `None` again. About 500 bytes and one `String`, which `reset` keeps as it makes
/// the scan as new.
#[derive(Clone, Debug)]
pub struct ModelScan {
    /// A few bytes, since it is copied with every token: what is larger stands beside it.
    state: State,
    /// The first fault, which is told again by every later call.
    fault: Option<ScanFault>,
    /// Bytes seen in earlier pushes.
    seen: u64,
    /// Kinds of the open brackets below the top object, one bit each, 1 = object.
    kinds: [u64; DEPTH_MAX / 64],
    /// How many of those bits are in use: `0 <= depth <= DEPTH_MAX`.
    depth: usize,
    unescape: Unescape,
    /// Characters of the current key that agree with `model` but for case.
    matched: u8,
    /// Whether they agree in case, too.
    matched_exactly: bool,
    case_variant: bool,
    /// How often `model` has stood there: 0, 1, or 2 for more.
    models: u8,
    /// The name in the making; `found` and `name` stay valid until its closing quote.
    draft: Draft,
    /// Where the model stands that was found; its name is `name`.
    found: Option<Range<u64>>,
    name: String,
}

#[derive(Clone, Copy, Debug)]
struct Draft {
    bytes: [u8; NAME_BYTES_MAX],
    len: usize,
    start: u64,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before the document.
    Start,
    /// After `{`: a key or `}`.
    FirstKey,
    /// After `,`: a key.
    Key,
    /// In a key that agrees with `model` so far.
    InKey,
    /// After a key.
    Colon { of_model: bool },
    /// After `:`.
    Value { of_model: bool },
    /// In the string that is the model's name.
    InName,
    /// In any other string, `escaped` after its backslash.
    Text { escaped: bool, then: After },
    /// In `true`, `false` or `null`; `alone` when it is the whole document.
    Literal { word: Word, got: u8, alone: bool },
    /// In a number.
    Number(Digits),
    /// In a value that is an array or an object.
    Nested,
    /// After a value: `,` or `}`.
    Next,
    /// After the object.
    End,
}

/// A literal of JSON.
#[derive(Clone, Copy, Debug)]
enum Word {
    True,
    False,
    Null,
}

/// What follows a string.
#[derive(Clone, Copy, Debug)]
enum After {
    Colon,
    Next,
    Nested,
}

/// How far a number is, by RFC 8259 §6.
#[derive(Clone, Copy, Debug)]
enum Digits {
    Minus,
    Zero,
    Int,
    Dot,
    Frac,
    Exp,
    ExpSign,
    ExpInt,
}

type Step = Result<usize, ScanFault>;

impl State {
    /// Whether the next byte that counts is one of top-level grammar.
    fn is_between(self) -> bool {
        matches!(
            self,
            State::Start
                | State::FirstKey
                | State::Key
                | State::Colon { .. }
                | State::Value { .. }
                | State::Next
                | State::End
        )
    }
}

impl ModelScan {
    /// Makes a scan that has seen nothing.
    pub fn new() -> Self {
        Self {
            state: State::Start,
            fault: None,
            seen: 0,
            kinds: [0; DEPTH_MAX / 64],
            depth: 0,
            unescape: Unescape::START,
            matched: 0,
            matched_exactly: true,
            case_variant: false,
            models: 0,
            draft: Draft::EMPTY,
            found: None,
            name: String::new(),
        }
    }

    /// Forgets the body and is ready for another.
    pub fn reset(&mut self) {
        (self.state, self.fault) = (State::Start, None);
        self.seen = 0;
        self.depth = 0;
        self.case_variant = false;
        self.models = 0;
        self.found = None;
    }

    /// Takes the next piece of the body.
    ///
    /// Errors: the first fault found; every later call tells the same one.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ScanFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut at = 0;
        while at < bytes.len() {
            match self.step(bytes, at) {
                Ok(next) => at = next,
                Err(fault) => {
                    self.fault = Some(fault);
                    return Err(fault);
                }
            }
        }
        self.seen += bytes.len() as u64;
        Ok(())
    }

    /// Says that the body is over.
    ///
    /// Errors: `Empty`, `NotJson` with `Truncated`, `NotObject`, or the fault of `push`.
    pub fn finish(&mut self) -> Result<(), ScanFault> {
        let fault = match (self.fault, self.state) {
            (Some(fault), _) => fault,
            (None, State::End) => return Ok(()),
            (None, State::Start) => ScanFault::Empty,
            (None, _) => ScanFault::NotJson { at: self.seen, what: Flaw::Truncated },
        };
        self.fault = Some(fault);
        Err(fault)
    }

    /// Tells the model so far; final after a `finish` that returned `Ok`.
    pub fn model(&self) -> Option<Model<'_>> {
        let span = self.found.clone()?;
        Some(Model { name: &self.name, span })
    }

    /// Tells whether a top-level key differs from `model` in case alone.
    ///
    /// Go's JSON takes such a key for `model`, so a server written in Go may run another
    /// model than the one found here. Whoever limits a key to some models should refuse it.
    pub fn case_variant_seen(&self) -> bool {
        self.case_variant
    }

    /// Tells whether the top-level key `model` has stood there more than once.
    ///
    /// Most servers take the last one, but not all; and a rename changes one of them alone.
    pub fn model_twice(&self) -> bool {
        self.models > 1
    }

    /// Goes on from `bytes[at]` as far as one state reaches; returns where it stopped.
    #[inline]
    fn step(&mut self, bytes: &[u8], at: usize) -> Step {
        match self.state {
            State::Nested => self.nested(bytes, at),
            State::Text { escaped, then } => self.text(bytes, at, escaped, then),
            State::InKey => self.in_key(bytes, at),
            State::InName => self.in_name(bytes, at),
            State::Number(digits) => self.number(bytes, at, digits),
            State::Literal { word, got, alone } => self.literal(bytes, at, word, got, alone),
            // Those of `is_between`.
            _ => self.between(bytes, at),
        }
    }

    /// Takes top-level grammar, and the whitespace in it, up to a value or a key.
    fn between(&mut self, bytes: &[u8], from: usize) -> Step {
        let mut state = self.state;
        for (at, &byte) in bytes.iter().enumerate().skip(from) {
            state = match (state, byte) {
                (_, b' ' | b'\t' | b'\n' | b'\r') => continue,
                (State::Colon { of_model }, b':') => State::Value { of_model },
                (State::Next, b',') => State::Key,
                (State::FirstKey | State::Key, b'"') => {
                    (self.unescape, self.matched, self.matched_exactly) =
                        (Unescape::START, 0, true);
                    State::InKey
                }
                (State::Value { of_model }, _) => self.value(at, byte, of_model)?,
                (State::Start, b'{') => State::FirstKey,
                (State::FirstKey | State::Next, b'}') => State::End,
                (State::Start, b'[' | b'"' | b'-' | b'0'..=b'9') => {
                    return Err(ScanFault::NotObject);
                }
                (State::Start, _) => match word_of(byte) {
                    Some(word) => State::Literal { word, got: 1, alone: true },
                    None => return Err(self.flaw(at, Flaw::Unexpected)),
                },
                (State::End, _) => {
                    return Err(ScanFault::TrailingGarbage { at: self.seen + at as u64 });
                }
                _ => return Err(self.flaw(at, Flaw::Unexpected)),
            };
            if !state.is_between() {
                self.state = state;
                return Ok(at + 1);
            }
        }
        self.state = state;
        Ok(bytes.len())
    }

    /// Tells the state after the first byte of a top-level value.
    fn value(&mut self, at: usize, byte: u8, of_model: bool) -> Result<State, ScanFault> {
        self.models = (self.models + u8::from(of_model)).min(2);
        if of_model && byte == b'"' {
            self.unescape = Unescape::START;
            (self.draft.len, self.draft.start) = (0, self.seen + at as u64);
            return Ok(State::InName);
        }
        if of_model {
            self.found = None;
        }
        Ok(match byte {
            b'"' => State::Text { escaped: false, then: After::Next },
            b'{' | b'[' => {
                self.open(byte)?;
                State::Nested
            }
            b'-' => State::Number(Digits::Minus),
            b'0' => State::Number(Digits::Zero),
            b'1'..=b'9' => State::Number(Digits::Int),
            _ => match word_of(byte) {
                Some(word) => State::Literal { word, got: 1, alone: false },
                None => return Err(self.flaw(at, Flaw::Unexpected)),
            },
        })
    }

    /// Crosses a value that is an array or an object, strings and all.
    fn nested(&mut self, bytes: &[u8], from: usize) -> Step {
        let mut at = from;
        loop {
            at = simd_scan::structure(bytes, at);
            let Some(&byte) = bytes.get(at) else { return Ok(at) };
            match byte {
                b'"' => {
                    let (end, is_over) = self.text_run(bytes, at + 1, After::Nested)?;
                    if !is_over {
                        return Ok(end);
                    }
                    at = end;
                    continue;
                }
                b'{' | b'[' => self.open(byte)?,
                b'}' | b']' => {
                    if !self.close(byte) {
                        return Err(self.flaw(at, Flaw::BracketMismatch));
                    }
                    if self.depth == 0 {
                        self.state = State::Next;
                        return Ok(at + 1);
                    }
                }
                _ => return Err(self.flaw(at, Flaw::Unexpected)),
            }
            at += 1;
        }
    }

    /// Goes on in a string that an earlier step left unfinished.
    fn text(&mut self, bytes: &[u8], from: usize, escaped: bool, then: After) -> Step {
        // Whatever follows a backslash is crossed unseen: a quote is no end, and the rest of
        // `\u0041` is plain text.
        let (at, is_over) = self.text_run(bytes, from + usize::from(escaped), then)?;
        if is_over {
            self.state = match then {
                After::Colon => State::Colon { of_model: false },
                After::Next => State::Next,
                After::Nested => State::Nested,
            };
        }
        Ok(at)
    }

    /// Crosses string text; says whether its closing quote was passed. If not, the input
    /// is used up and the state remembers the string.
    #[inline]
    fn text_run(
        &mut self,
        bytes: &[u8],
        from: usize,
        then: After,
    ) -> Result<(usize, bool), ScanFault> {
        let mut at = from;
        loop {
            at = simd_scan::text_end(bytes, at);
            match bytes.get(at) {
                Some(b'"') => return Ok((at + 1, true)),
                Some(b'\\') if at + 1 < bytes.len() => at += 2,
                Some(b'\\') => {
                    self.state = State::Text { escaped: true, then };
                    return Ok((bytes.len(), false));
                }
                Some(_) => return Err(self.flaw(at, Flaw::ControlByte)),
                None => {
                    self.state = State::Text { escaped: false, then };
                    return Ok((bytes.len(), false));
                }
            }
        }
    }

    /// Compares a top-level key with `model`, and leaves it to `text` once it differs.
    fn in_key(&mut self, bytes: &[u8], from: usize) -> Step {
        // As good as every key is told by its first bytes.
        if self.matched == 0 && self.unescape.is_plain() {
            match bytes.get(from..).unwrap_or_default() {
                [b'm', b'o', b'd', b'e', b'l', b'"', ..] => {
                    self.state = State::Colon { of_model: true };
                    return Ok(from + KEY.len() + 1);
                }
                [b'a'..=b'l' | b'n'..=b'z', ..] | [b'm', b'a'..=b'n' | b'p'..=b'z', ..] => {
                    return self.text(bytes, from, false, After::Colon);
                }
                _ => {}
            }
        }
        for (at, &byte) in bytes.iter().enumerate().skip(from) {
            let piece = self.unescape.step(byte).map_err(|what| self.flaw(at, what))?;
            let agrees = match piece {
                Piece::Partial => continue,
                Piece::Byte(byte) => self.match_key(byte),
                Piece::Char(char) => u8::try_from(char).is_ok_and(|byte| self.match_key(byte)),
                Piece::End => {
                    let is_whole = usize::from(self.matched) == KEY.len();
                    self.case_variant |= is_whole && !self.matched_exactly;
                    self.state = State::Colon { of_model: is_whole && self.matched_exactly };
                    return Ok(at + 1);
                }
            };
            if !agrees {
                self.state = State::Text { escaped: false, then: After::Colon };
                return Ok(at + 1);
            }
        }
        Ok(bytes.len())
    }

    fn match_key(&mut self, byte: u8) -> bool {
        let Some(&want) = KEY.get(usize::from(self.matched)) else { return false };
        self.matched += 1;
        self.matched_exactly &= byte == want;
        byte.eq_ignore_ascii_case(&want)
    }

    /// Copies the model's name, which replaces an earlier one at its closing quote.
    fn in_name(&mut self, bytes: &[u8], from: usize) -> Step {
        let mut from = from;
        if self.unescape.is_plain() {
            let end = simd_scan::text_end(bytes, from);
            self.draft.add(bytes.get(from..end).unwrap_or_default())?;
            from = end;
        }
        for (at, &byte) in bytes.iter().enumerate().skip(from) {
            let piece = self.unescape.step(byte).map_err(|what| self.flaw(at, what))?;
            match piece {
                Piece::Partial => {}
                Piece::Byte(byte) => self.draft.add(&[byte])?,
                Piece::Char(char) => self.draft.add(char.encode_utf8(&mut [0; 4]).as_bytes())?,
                Piece::End => {
                    let Some(name) = self.draft.text() else {
                        return Err(self.flaw(at, Flaw::BadUtf8));
                    };
                    self.name.clear();
                    self.name.push_str(name);
                    self.found = Some(self.draft.start..self.seen + at as u64 + 1);
                    self.state = State::Next;
                    return Ok(at + 1);
                }
            }
        }
        Ok(bytes.len())
    }

    fn number(&mut self, bytes: &[u8], from: usize, digits: Digits) -> Step {
        let mut digits = digits;
        for (at, &byte) in bytes.iter().enumerate().skip(from) {
            digits = match (digits, byte) {
                (Digits::Minus, b'0') => Digits::Zero,
                (Digits::Minus, b'1'..=b'9') | (Digits::Int, b'0'..=b'9') => Digits::Int,
                (Digits::Zero | Digits::Int, b'.') => Digits::Dot,
                (Digits::Dot | Digits::Frac, b'0'..=b'9') => Digits::Frac,
                (Digits::Zero | Digits::Int | Digits::Frac, b'e' | b'E') => Digits::Exp,
                (Digits::Exp, b'+' | b'-') => Digits::ExpSign,
                (Digits::Exp | Digits::ExpSign | Digits::ExpInt, b'0'..=b'9') => Digits::ExpInt,
                (Digits::Zero | Digits::Int | Digits::Frac | Digits::ExpInt, _) => {
                    // Not of the number; `between` judges it.
                    self.state = State::Next;
                    return Ok(at);
                }
                _ => return Err(self.flaw(at, Flaw::BadNumber)),
            };
        }
        self.state = State::Number(digits);
        Ok(bytes.len())
    }

    fn literal(&mut self, bytes: &[u8], from: usize, word: Word, got: u8, alone: bool) -> Step {
        let rest = word.text().get(usize::from(got)..).unwrap_or_default();
        if bytes.get(from) != rest.first() {
            return Err(self.flaw(from, Flaw::Unexpected));
        }
        self.state = match (rest.len() > 1, alone) {
            (true, _) => State::Literal { word, got: got + 1, alone },
            (false, false) => State::Next,
            (false, true) => return Err(ScanFault::NotObject),
        };
        Ok(from + 1)
    }

    #[inline]
    fn open(&mut self, bracket: u8) -> Result<(), ScanFault> {
        let word = self.kinds.get_mut(self.depth / 64).ok_or(ScanFault::TooDeep)?;
        let bit = 1u64 << (self.depth % 64);
        *word = if bracket == b'{' { *word | bit } else { *word & !bit };
        self.depth += 1;
        Ok(())
    }

    /// Tells whether `bracket` closes what was opened last.
    #[inline]
    fn close(&mut self, bracket: u8) -> bool {
        self.depth = self.depth.saturating_sub(1);
        let word = self.kinds.get(self.depth / 64).copied().unwrap_or_default();
        (word >> (self.depth % 64) & 1 == 1) == (bracket == b'}')
    }

    #[cold]
    fn flaw(&self, at: usize, what: Flaw) -> ScanFault {
        ScanFault::NotJson { at: self.seen + at as u64, what }
    }
}

impl Default for ModelScan {
    fn default() -> Self {
        Self::new()
    }
}

impl Draft {
    const EMPTY: Self = Self { bytes: [0; NAME_BYTES_MAX], len: 0, start: 0 };

    fn add(&mut self, more: &[u8]) -> Result<(), ScanFault> {
        let place = self.bytes.get_mut(self.len..self.len + more.len());
        place.ok_or(ScanFault::NameTooLong)?.copy_from_slice(more);
        self.len += more.len();
        Ok(())
    }

    fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.bytes.get(..self.len)?).ok()
    }
}

const KEY: &[u8; 5] = b"model";

impl Word {
    fn text(self) -> &'static [u8] {
        match self {
            Word::True => b"true",
            Word::False => b"false",
            Word::Null => b"null",
        }
    }
}

/// Tells which literal begins with this byte.
fn word_of(byte: u8) -> Option<Word> {
    match byte {
        b't' => Some(Word::True),
        b'f' => Some(Word::False),
        b'n' => Some(Word::Null),
        _ => None,
    }
}

/// Scans `data` whole and byte by byte, and asserts that both agree and that the span holds
/// the name.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let (mut whole, mut split) = (ModelScan::new(), ModelScan::new());
    let at_once = whole.push(data).and_then(|()| whole.finish());
    let mut in_bytes = data.chunks(1).try_for_each(|byte| split.push(byte));
    in_bytes = in_bytes.and_then(|()| split.finish());
    assert_eq!(at_once, in_bytes);
    assert_eq!(whole.model(), split.model());
    if let Some(model) = whole.model() {
        let value = &data[model.span.start as usize..model.span.end as usize];
        assert!(value.len() >= 2 && value.starts_with(b"\"") && value.ends_with(b"\""));
        assert!(model.name.len() <= NAME_BYTES_MAX);
        assert_eq!(serde_json::from_slice::<String>(value).ok().as_deref(), Some(model.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use proptest::prelude::*;
    use simd_json::prelude::ValueAsScalar as _;

    type Found = Option<(String, Range<u64>)>;

    fn found(scan: &ModelScan) -> Found {
        scan.model().map(|model| (model.name.to_owned(), model.span))
    }

    fn scan(body: &[u8]) -> Result<Found, ScanFault> {
        let mut scan = ModelScan::new();
        scan.push(body)?;
        scan.finish()?;
        Ok(found(&scan))
    }

    fn check(body: &str, name: Option<&str>) {
        let got = scan(body.as_bytes()).unwrap_or_else(|fault| panic!("{fault}: {body}"));
        assert_eq!(got.as_ref().map(|(name, _)| name.as_str()), name, "{body}");
    }

    fn refuses(body: impl AsRef<[u8]>, fault: ScanFault) {
        let body = body.as_ref();
        assert_eq!(scan(body), Err(fault), "{}", String::from_utf8_lossy(body));
    }

    fn not_json(at: u64, what: Flaw) -> ScanFault {
        ScanFault::NotJson { at, what }
    }

    #[test]
    fn finds_the_top_level_model_alone() {
        check(r#"{"model":"a"}"#, Some("a"));
        check(" \r\n\t{ \"model\" : \"a\" } \n", Some("a"));
        check(r#"{"messages":[{"model":"x","content":"\"model\":\"y\""}],"model":"a"}"#, Some("a"));
        check(r#"{"x":{"model":"b"}}"#, None);
        check(r#"{"x":"model","y":"a"}"#, None);
        check(r#"{"models":"a","mode":"b","":"c","xmodel":"d"}"#, None);
        check(r#"{"x":"\\","model":"a"}"#, Some("a"));
        check(r#"{"x":"\\\"","model":"a","y":"\\\\"}"#, Some("a"));
        check(r#"{"n":-0.5e+10,"t":true,"f":false,"z":null,"model":"a","i":10}"#, Some("a"));
        check("{}", None);
        check(r#"{"model":""}"#, Some(""));
    }

    #[test]
    fn escaped_keys_and_values_count() {
        check(r#"{"mod\u0065l":"chat-\u006dodel"}"#, Some("chat-model"));
        check(r#"{"\u006d\u006f\u0064\u0065\u006c":"\ud83d\ude00\/\"é"}"#, Some("😀/\"é"));
        check(r#"{"model\u0000":"a","model\n":"b","\u016dodel":"c"}"#, None);
    }

    #[test]
    fn the_last_duplicate_wins_even_when_it_is_no_string() {
        check(r#"{"model":"a","model":"b"}"#, Some("b"));
        check(r#"{"model":"a","mod\u0065l":"b"}"#, Some("b"));
        check(r#"{"model":null,"model":"b"}"#, Some("b"));
        for value in ["null", "false", "true", "1", "{}", "[\"x\"]", "{\"model\":\"y\"}"] {
            check(&format!(r#"{{"model":"a","model":{value}}}"#), None);
        }
    }

    #[test]
    fn an_unfinished_duplicate_leaves_the_earlier_one_in_sight() {
        let mut scan = ModelScan::new();
        scan.push(br#"{"model":"a","model":"bb"#).unwrap();
        assert_eq!(found(&scan), Some(("a".to_owned(), 9..12)));
        scan.push(br#"""#).unwrap();
        assert_eq!(found(&scan), Some(("bb".to_owned(), 21..25)));
    }

    #[test]
    fn the_span_holds_the_quotes() {
        let (name, span) = scan(br#"{"x":1,"model" : "a\/b" }"#).unwrap().unwrap();
        assert_eq!((name.as_str(), span), ("a/b", 17..23));
    }

    #[test]
    fn refuses_what_is_not_one_object() {
        refuses("", ScanFault::Empty);
        refuses(" \n", ScanFault::Empty);
        for body in ["1", "-", "[]", "\"x\"", "null", "true", "false"] {
            refuses(body, ScanFault::NotObject);
        }
        refuses("not json", not_json(1, Flaw::Unexpected));
        refuses("nul", not_json(3, Flaw::Truncated));
        refuses("\u{feff}{}", not_json(0, Flaw::Unexpected));
        refuses(r#"{"model":"a"} x"#, ScanFault::TrailingGarbage { at: 14 });
        refuses(r#"{}{}"#, ScanFault::TrailingGarbage { at: 2 });
    }

    #[test]
    fn the_top_level_grammar_is_strict() {
        let check = |body: &str, at| refuses(body, not_json(at, Flaw::Unexpected));
        check(r#"{"a":1,}"#, 7);
        check(r#"{,"a":1}"#, 1);
        check(r#"{"a" 1}"#, 5);
        check(r#"{"a":}"#, 5);
        check(r#"{"a":1 "b":2}"#, 7);
        check(r#"{"a":1]"#, 6);
        check(r#"{a:1}"#, 1);
        check(r#"{"a":tru}"#, 8);
        check(r#"{"a":nulll}"#, 9);
        check(r#"{"a":NaN}"#, 5);
        check(r#"{"a":+1}"#, 5);
        check("{\"a\":1\x0b}", 6);
        check(r#"{/**/}"#, 1);
    }

    #[test]
    fn numbers_follow_the_grammar_at_the_top() {
        for good in ["0", "-0", "10", "1.5", "0.0", "1e5", "1E+5", "1.5e-07"] {
            check(&format!(r#"{{"n":{good},"model":"a"}}"#), Some("a"));
        }
        let bad = |number: &str, at| {
            refuses(format!(r#"{{"n":{number}}}"#), not_json(at, Flaw::BadNumber))
        };
        bad("-", 6);
        bad("1.", 7);
        bad("1e", 7);
        bad("1e+", 8);
        bad("-a", 6);
        refuses(r#"{"n":01}"#, not_json(6, Flaw::Unexpected));
    }

    #[test]
    fn below_the_top_brackets_match_and_no_comment_hides() {
        refuses(r#"{"a":[}}"#, not_json(6, Flaw::BracketMismatch));
        refuses(r#"{"a":[{"b":1]]}"#, not_json(12, Flaw::BracketMismatch));
        refuses(r#"{"a":[1 /*"*/, 2]}"#, not_json(8, Flaw::Unexpected));
        refuses("{\"a\":[\"x\ny\"]}", not_json(8, Flaw::ControlByte));
        refuses("{\"a\":\"x\ny\"}", not_json(7, Flaw::ControlByte));
        // Left to the server behind, by design.
        check(r#"{"a":[1 2,,"\q"],"model":"a"}"#, Some("a"));
    }

    #[test]
    fn refuses_a_name_that_is_no_text() {
        refuses(r#"{"model":"\ud83d"}"#, not_json(16, Flaw::LoneSurrogate));
        refuses(r#"{"model":"\x"}"#, not_json(11, Flaw::BadEscape));
        refuses(b"{\"model\":\"\xff\"}", not_json(11, Flaw::BadUtf8));
        refuses(b"{\"model\":\"\xc3\\u0041\"}", not_json(17, Flaw::BadUtf8));
    }

    #[test]
    fn name_bytes_max_is_the_last_that_fits() {
        check(&format!(r#"{{"model":"{}"}}"#, "x".repeat(256)), Some(&"x".repeat(256)));
        refuses(format!(r#"{{"model":"{}"}}"#, "x".repeat(257)), ScanFault::NameTooLong);
        refuses(format!(r#"{{"model":"{}"}}"#, r"\u20ac".repeat(86)), ScanFault::NameTooLong);
    }

    #[test]
    fn depth_max_is_the_last_that_fits() {
        let deep = |depth| {
            let (open, close) = ("[{\"x\":".repeat(depth / 2), "}]".repeat(depth / 2));
            format!(r#"{{"a":{open}1{close},"model":"a"}}"#)
        };
        check(&deep(DEPTH_MAX), Some("a"));
        refuses(deep(DEPTH_MAX + 2), ScanFault::TooDeep);
    }

    #[test]
    fn a_body_cut_anywhere_is_truncated() {
        let body = br#"{"a":[1,{"b":"\n"}],"n":12,"t":true,"model":"x\u0041"}"#;
        for cut in 1..body.len() {
            refuses(&body[..cut], not_json(cut as u64, Flaw::Truncated));
        }
    }

    #[test]
    fn a_fault_is_told_again_until_reset() {
        let mut scan = ModelScan::new();
        let fault = Err(not_json(1, Flaw::Unexpected));
        assert_eq!(scan.push(b"{x"), fault);
        assert_eq!(scan.push(b"}"), fault);
        assert_eq!(scan.finish(), fault);
        scan.reset();
        assert_eq!(scan.push(br#"{"model":"a"}"#).and_then(|()| scan.finish()), Ok(()));
        assert_eq!(scan.seen, 13);
    }

    #[test]
    fn a_key_in_another_case_is_reported_and_not_taken() {
        let mut scan = ModelScan::new();
        scan.push(br#"{"model":"a","MOD\u0045L":"b"}"#).unwrap();
        assert_eq!(found(&scan).unwrap().0, "a");
        assert!(scan.case_variant_seen());
        scan.reset();
        scan.push(br#"{"model":"a","MODELS":"b","x":{"Model":1}}"#).unwrap();
        assert!(!scan.case_variant_seen());
    }

    #[test]
    fn the_texts_are_those_of_the_specification() {
        let check = |fault: ScanFault, text| assert_eq!(fault.to_string(), text);
        check(ScanFault::Empty, "Empty request body.");
        check(not_json(7, Flaw::Unexpected), "Invalid JSON: unexpected character at byte 7");
        check(ScanFault::NotObject, "Invalid JSON: the body is not an object");
        assert_eq!(MISSING_MODEL, "Missing 'model' field in request.");
    }

    #[test]
    fn ten_megabytes_of_image_and_prompt_are_crossed() {
        let mut rng = Rng::new(4);
        let mut body = br#"{"messages":[{"content":""#.to_vec();
        while body.len() < 5 << 20 {
            body.extend_from_slice(br#"she said \"model\":\"x\"\n\\"#);
        }
        body.extend_from_slice(br#""},{"image":"data:"#);
        while body.len() < 10 << 20 {
            body.push(b'A' + rng.below(26) as u8);
        }
        body.extend_from_slice(br#""}],"model":"last"}"#);
        let mut scan = ModelScan::new();
        let mut rest = body.as_slice();
        while !rest.is_empty() {
            let (piece, left) = rest.split_at(rest.len().min(1 + rng.below(40_000) as usize));
            scan.push(piece).unwrap();
            rest = left;
        }
        scan.finish().unwrap();
        assert_eq!(found(&scan).unwrap().0, "last");
    }

    /// JSON as text, rich in what may mislead: decoys, backslash runs, odd spacing.
    fn json() -> impl Strategy<Value = String> {
        let blank = "[ \t\r\n]{0,2}";
        let text = r#"([a-z/]|model|\\"model\\":|\\\\|\\"|\\n|\\u00[46][0-9a-f]|\\ud83d\\ude[0-7][0-9a-f]|é|\{|\[|\]|\}|,|:){0,12}"#
            .prop_map(|inner| format!("\"{inner}\""));
        let leaf = prop_oneof![
            4 => text.clone(),
            1 => Just("\"model\"".to_owned()),
            1 => "-?(0|[1-9][0-9]{0,3})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
            1 => prop::sample::select(vec!["true", "false", "null"]).prop_map(str::to_owned),
        ];
        let key = prop_oneof![
            2 => Just("\"model\"".to_owned()),
            1 => Just(r#""mod\u0065l""#.to_owned()),
            1 => Just(r#""\u006Dodel""#.to_owned()),
            1 => prop::sample::select(vec!["\"Model\"", "\"mode\"", "\"models\"", "\"\""]).prop_map(str::to_owned),
            2 => text,
        ];
        let object = move |value: BoxedStrategy<String>| {
            prop::collection::vec((blank, key.clone(), blank, value, blank), 0..6).prop_map(
                |fields| {
                    let fields: Vec<String> = fields
                        .iter()
                        .map(|(a, key, b, value, c)| format!("{a}{key}{b}:{c}{value}{a}"))
                        .collect();
                    format!("{{{}}}", fields.join(","))
                },
            )
        };
        let nested_object = object.clone();
        let value = leaf.prop_recursive(4, 48, 6, move |inner| {
            prop_oneof![
                prop::collection::vec((inner.clone(), blank), 0..6).prop_map(|items| {
                    let items: Vec<String> =
                        items.iter().map(|(v, blank)| format!("{blank}{v}")).collect();
                    format!("[{}]", items.join(","))
                }),
                nested_object(inner.boxed()),
            ]
        });
        (blank, object(value.boxed()), blank).prop_map(|(a, object, b)| format!("{a}{object}{b}"))
    }

    /// What simd-json takes for the model: its last top-level duplicate, if a string.
    fn oracle(body: &[u8]) -> Result<Option<String>, simd_json::Error> {
        let mut copy = body.to_vec();
        let tape = simd_json::to_tape(&mut copy)?;
        let value = tape.as_value();
        let object = value
            .as_object()
            .ok_or_else(|| simd_json::Error::generic(simd_json::ErrorType::ExpectedMap))?;
        let last = object.iter().filter(|(key, _)| *key == "model").last();
        Ok(last.and_then(|(_, value)| value.as_str().map(str::to_owned)))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn agrees_with_simd_json_on_whole_documents(body in json()) {
            let want = oracle(body.as_bytes()).unwrap_or_else(|error| panic!("{error}: {body}"));
            let got = scan(body.as_bytes()).unwrap_or_else(|fault| panic!("{fault}: {body}"));
            if let Some((name, span)) = &got {
                let value = &body.as_bytes()[span.start as usize..span.end as usize];
                prop_assert_eq!(&serde_json::from_slice::<String>(value).unwrap(), name);
            }
            prop_assert_eq!(got.map(|(name, _)| name), want);
        }

        #[test]
        fn any_split_gives_the_same_result(body in json(), cuts in prop::collection::vec(1..40usize, 1..20)) {
            let (mut scan_split, mut rest) = (ModelScan::new(), body.as_bytes());
            for &cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                scan_split.push(piece).unwrap();
                rest = left;
            }
            scan_split.finish().unwrap();
            prop_assert_eq!(found(&scan_split), scan(body.as_bytes()).unwrap());
        }

        /// A document hurt in one byte: what simd-json still takes is taken alike, and what
        /// is refused here is refused there.
        #[test]
        fn a_changed_byte_never_makes_it_disagree(body in json(), at in any::<prop::sample::Index>(), byte in 0x20..0x7fu8) {
            let mut body = body.into_bytes();
            let at = at.index(body.len());
            body[at] = byte;
            match (scan(&body), oracle(&body)) {
                (Ok(got), Ok(want)) => prop_assert_eq!(got.map(|(name, _)| name), want),
                (Err(fault), Ok(_)) => prop_assert!(false, "{} in {}", fault, String::from_utf8_lossy(&body)),
                (_, Err(_)) => {}
            }
            fuzz(&body);
        }

        #[test]
        fn no_input_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }

        #[test]
        fn no_input_of_json_letters_panics(data in r#"[\{\}\[\]",:\\u0dDmodelntrfas1. ]{0,200}"#) {
            fuzz(data.as_bytes());
            fuzz(format!("{{\"model\":\"{data}").as_bytes());
        }
    }
}
