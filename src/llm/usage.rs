//! Tokens counted, and the first one noticed, in a response that passes by.
//!
//! The one idea: servers say the count at the end. So the tap keeps the last 4 KiB of the
//! body in a ring and reads them once, when the body is over; per passing chunk it costs
//! one small copy and no search at all. Only until the first token has been seen are the
//! events of a stream also looked into, which is needed for the time to first token and for
//! Anthropic, whose prompt tokens come in the first event.
//!
//! What is understood: OpenAI `usage` (chat, completions, embeddings, Responses; also vLLM
//! and SGLang), Anthropic `usage`, Gemini `usageMetadata`, Ollama's `…eval_count`, llama.cpp
//! `timings`. The last one with numbers wins. An unescaped `"usage"` before a colon cannot
//! stand inside a JSON string, so a model that talks about usage misleads nobody; and what
//! follows it to the end tells whether it is the document's own or stands in a tool call.
//!
//! It deliberately builds no tree, changes nothing, and knows nothing when a server says
//! nothing: an absent count is `None`, never an estimate. What stands further than 4 KiB from
//! the end goes unseen: where tokens are paid for, `meter` reads instead.

use std::sync::LazyLock;

use memchr::memmem::Finder;

pub use super::counts::Usage;
use super::counts::{Count, Counts, Parts, is_content};
use super::lines::{Line, Lines};
use super::sse::SseSplitter;

/// How much of the end of a body is kept and read, in bytes.
///
/// Source: a usage object is 100 to 700 bytes and what servers put after it (`timings`,
/// `service_tier`, `[DONE]`, Responses' `metadata`) was below 1 KiB in every dialect.
pub const TAIL_BYTES: usize = 4096;

/// How many places of one name are looked at closely, where the last is not the document's own.
/// Each is walked to the end; so many are enough for any but a mocker.
const TRIED_MAX: usize = 16;

/// How a body carries its JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// `text/event-stream`.
    Sse,
    /// One document.
    Json,
    /// One document a line, Ollama's stream.
    NdJson,
}

/// Watches one response body.
///
/// Shape: `push` what passes, in order, then `finish` once. At most 4 KiB of heap, more
/// only while a read splits one of the first events; `reset` keeps it for the next body.
#[derive(Clone, Debug)]
pub struct UsageTap {
    kind: BodyKind,
    events: SseSplitter,
    lines: Lines,
    tail: Tail,
    usage: Usage,
    first_token_seen: bool,
}

impl UsageTap {
    /// Makes a tap for a body of `kind`.
    pub fn new(kind: BodyKind) -> Self {
        Self {
            kind,
            events: SseSplitter::new(),
            lines: Lines::default(),
            tail: Tail::default(),
            usage: Usage::default(),
            first_token_seen: false,
        }
    }

    /// Forgets the body and is ready for another; keeps the memory.
    pub fn reset(&mut self, kind: BodyKind) {
        self.kind = kind;
        self.events.reset();
        self.lines.reset();
        self.tail.clear();
        self.usage = Usage::default();
        self.first_token_seen = false;
    }

    /// Takes body bytes in passing, without any transfer coding.
    #[inline]
    pub fn push(&mut self, bytes: &[u8]) {
        self.tail.push(bytes);
        if !self.first_token_seen && self.kind != BodyKind::Json {
            self.look_into(bytes);
        }
    }

    /// Says that bytes passed which the tap did not see; what it held no longer adjoins.
    pub fn skip(&mut self) {
        self.tail.clear();
        self.tail.has_dropped = true;
    }

    /// Tells how many of the last bytes of a body of known length suffice, if not all of
    /// them are needed: what comes before may pass unseen, with one `skip`.
    pub fn needs_tail_only(&self) -> Option<usize> {
        (self.kind == BodyKind::Json).then_some(TAIL_BYTES)
    }

    /// Tells whether an event has carried content: text, reasoning or a tool call, rather
    /// than a role or an empty delta. Stays false for one JSON document.
    #[inline]
    pub fn first_token_seen(&self) -> bool {
        self.first_token_seen
    }

    /// Says that the body is over, however it ended; tells what was said of tokens.
    pub fn finish(&mut self) -> Usage {
        let is_whole = !self.tail.has_dropped;
        let tail = self.tail.in_order();
        match self.kind {
            BodyKind::Json => read_end(tail, Within::Document, &mut self.usage),
            BodyKind::Sse | BodyKind::NdJson => read_last_line(tail, is_whole, &mut self.usage),
        }
        self.usage
    }

    fn look_into(&mut self, bytes: &[u8]) {
        let Self { events, lines, usage, first_token_seen, .. } = self;
        let mut look = |document: &[u8]| {
            if !*first_token_seen {
                if usage_object(document).is_some() {
                    read_exactly(document, usage);
                }
                *first_token_seen = carries_content(document);
            }
        };
        if self.kind == BodyKind::Sse {
            events.push(bytes, |event| look(event.data));
        } else {
            lines.push(bytes, |line| match line {
                Line::Lent(line) | Line::Carried(line) => look(line),
                Line::TooLong => {}
            });
        }
    }
}

/// The last `TAIL_BYTES` of what was pushed: a ring once it is full.
#[derive(Clone, Debug, Default)]
struct Tail {
    /// `len <= TAIL_BYTES`.
    ring: Vec<u8>,
    /// Where the oldest byte stands; 0 until the ring is full.
    oldest: usize,
    /// What the body began with has left, or never came here.
    has_dropped: bool,
}

impl Tail {
    fn clear(&mut self) {
        self.ring.clear();
        self.oldest = 0;
        self.has_dropped = false;
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        self.has_dropped |= self.ring.len() + bytes.len() > TAIL_BYTES;
        let bytes = last(bytes);
        if self.ring.capacity() == 0 {
            self.ring.reserve_exact(TAIL_BYTES);
        }
        let (grow, wrap) = bytes.split_at(bytes.len().min(TAIL_BYTES - self.ring.len()));
        self.ring.extend_from_slice(grow);
        // The ring is full from here on, unless `wrap` is empty.
        let (first, second) = wrap.split_at(wrap.len().min(self.ring.len() - self.oldest));
        self.put(first);
        self.put(second);
    }

    fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.ring.get_mut(self.oldest..self.oldest + bytes.len()) {
            place.copy_from_slice(bytes);
            self.oldest = (self.oldest + bytes.len()) % TAIL_BYTES;
        }
    }

    fn in_order(&mut self) -> &[u8] {
        self.ring.rotate_left(self.oldest);
        self.oldest = 0;
        &self.ring
    }
}

/// What one JSON document says that is here in one piece: as a tap that it passed by, and what
/// stands too far from its end for that.
pub fn usage_of(document: &[u8]) -> Usage {
    let mut usage = Usage::default();
    read_end(last(document), Within::Document, &mut usage);
    if document.len() > TAIL_BYTES && usage == Usage::default() {
        read_far(document, &mut usage);
    }
    usage
}

#[cold]
fn read_far(document: &[u8], usage: &mut Usage) {
    if usage_object(document).is_some() {
        read_exactly(document, usage);
    }
}

/// The last `TAIL_BYTES` of them.
fn last(bytes: &[u8]) -> &[u8] {
    bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default()
}

/// Where the counts stand that are looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// In a document, which may be the last of a list.
    Document,
    /// In an event, which may carry the document in another.
    Event,
}

/// Reads the end of a body: any dialect's usage, or else Ollama's counts, or else
/// llama.cpp's timings. Most bodies need the first search alone.
fn read_end(tail: &[u8], within: Within, usage: &mut Usage) {
    if !read_usage(tail, within, usage) && !read_eval_counts(tail, usage) {
        read_timings(tail, usage);
    }
}

/// Reads the last line of a stream that says something, by its shape; the first of `tail` may be
/// cut, then by what follows in it.
fn read_last_line(tail: &[u8], is_whole: bool, usage: &mut Usage) {
    let mut rest = tail;
    loop {
        let begin = memchr::memrchr2(b'\n', b'\r', rest);
        let line = rest.get(begin.map_or(0, |at| at + 1)..).unwrap_or_default();
        if begin.is_none() && !is_whole {
            return read_end(line, Within::Event, usage);
        }
        let document = line.strip_prefix(b"data:").unwrap_or(line);
        if may_count(document) && read_exactly(document, usage) {
            return;
        }
        let Some(before) = begin.and_then(|at| rest.get(..at)) else { return };
        rest = before;
    }
}

/// Whether it is worth looking closer.
fn may_count(document: &[u8]) -> bool {
    usage_object(document).is_some()
        || EVAL_COUNT.find(document).is_some()
        || TIMINGS.find(document).is_some()
}

/// Reads one whole document by its shape: its own counts, and none that stand deeper.
fn read_exactly(document: &[u8], usage: &mut Usage) -> bool {
    let (mut counts, mut said) = (Counts::default(), Usage::default());
    counts.push(document, |document| said = document.usage);
    if said == Usage::default() {
        said = counts.end().usage;
    }
    let Usage { prompt_tokens, completion_tokens, cached_tokens } = said;
    usage.prompt_tokens = prompt_tokens.or(usage.prompt_tokens);
    usage.completion_tokens = completion_tokens.or(usage.completion_tokens);
    usage.cached_tokens = cached_tokens.or(usage.cached_tokens);
    said != Usage::default()
}

// Prepared once: that costs as much as the search.
static USAGE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"usage"));
static EVAL_COUNT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"eval_count\""));
static TIMINGS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"timings\""));

/// The objects called `usage` or `usageMetadata`, each from behind its brace to the end.
fn usage_objects(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    USAGE.find_iter(bytes).filter_map(|at| {
        let rest = bytes.get(at + USAGE.needle().len()..)?;
        let rest = rest.strip_prefix(b"Metadata").unwrap_or(rest);
        value_after(rest.strip_prefix(b"\"")?)?.strip_prefix(b"{")
    })
}

/// The last of them. The search forward is several times faster than the one backward.
fn usage_object(bytes: &[u8]) -> Option<&[u8]> {
    usage_objects(bytes).last()
}

/// Reads the last `usage` or `usageMetadata` object that is the document's own, if there is one;
/// what it does not name stays.
fn read_usage(bytes: &[u8], within: Within, usage: &mut Usage) -> bool {
    let Some(object) = usage_object(bytes) else { return false };
    match parts_of(object, within) {
        Some(parts) => parts.add_to(usage),
        None => return read_earlier_usage(bytes, within, usage),
    }
    true
}

/// As `read_usage`, when the last of them stands in something else: a tool call.
#[cold]
fn read_earlier_usage(bytes: &[u8], within: Within, usage: &mut Usage) -> bool {
    let mut own = None;
    for object in usage_objects(bytes).take(TRIED_MAX) {
        own = parts_of(object, within).or(own);
    }
    if let Some(parts) = &own {
        parts.add_to(usage);
    }
    own.is_some()
}

/// Reads an object from behind its brace, unless it stands deeper than counts do.
fn parts_of(object: &[u8], within: Within) -> Option<Parts> {
    let mut parts = Parts::default();
    let mut pairs = Pairs::inside(object);
    for pair in pairs.by_ref() {
        if let Some(count) = Count::of_usage(pair.depth, pair.key)
            && let Some(value) = number(pair.value)
        {
            parts.note(count, value);
        }
    }
    let behind = object.get(pairs.at..).unwrap_or_default();
    is_outermost(behind, within).then_some(parts)
}

/// Whether what stands before `behind` is the document's own: by the brackets that close then.
/// Of a document that is cut off that cannot be known, and it is believed.
fn is_outermost(behind: &[u8], within: Within) -> bool {
    let (mut at, mut open, mut closed) = (0, 0usize, 0usize);
    while let Some(&byte) = behind.get(at) {
        at += 1;
        match byte {
            b'"' => match string_end(behind, at) {
                Some(end) => at = end + 1,
                None => return true,
            },
            b'{' | b'[' => open += 1,
            b'}' | b']' if open > 0 => open -= 1,
            b'}' | b']' => {
                closed += 1;
                let may_close = match (within, closed) {
                    (_, 1) => byte == b'}',
                    (Within::Document, 2) => byte == b']',
                    (Within::Event, 2) => byte == b'}',
                    _ => false,
                };
                if !may_close {
                    return false;
                }
            }
            _ => {}
        }
    }
    true
}

fn read_eval_counts(bytes: &[u8], usage: &mut Usage) -> bool {
    let mut is_found = false;
    for at in EVAL_COUNT.find_iter(bytes).take(TRIED_MAX) {
        let (before, after) = bytes.split_at(at);
        let value = after.get(EVAL_COUNT.needle().len()..).and_then(value_after);
        let Some((value, count)) = value.and_then(|value| Some((value, number(value)?))) else {
            continue;
        };
        if !is_outermost(value, Within::Document) {
            continue;
        }
        if before.ends_with(b"\"prompt_") {
            usage.prompt_tokens = Some(count);
            is_found = true;
        } else if before.ends_with(b"\"") {
            usage.completion_tokens = Some(count);
            is_found = true;
        }
    }
    is_found
}

fn read_timings(bytes: &[u8], usage: &mut Usage) {
    let object = TIMINGS.find_iter(bytes).filter_map(|at| {
        value_after(bytes.get(at + TIMINGS.needle().len()..)?)?.strip_prefix(b"{")
    });
    let Some(object) = object.last() else { return };
    let (mut fresh, mut predicted, mut reused) = (None, None, None);
    let mut pairs = Pairs::inside(object);
    for pair in pairs.by_ref() {
        let place = match Count::of_timings(pair.key) {
            Some(Count::Fresh) => &mut fresh,
            Some(Count::Predicted) => &mut predicted,
            Some(Count::Reused) => &mut reused,
            _ => continue,
        };
        *place = number(pair.value);
    }
    if is_outermost(object.get(pairs.at..).unwrap_or_default(), Within::Document) {
        usage.prompt_tokens = fresh.map(|n| n.saturating_add(reused.unwrap_or(0)));
        usage.completion_tokens = predicted.or(usage.completion_tokens);
        usage.cached_tokens = reused.or(usage.cached_tokens);
    }
}

/// Tells whether one event of a stream carries something for the reader.
fn carries_content(document: &[u8]) -> bool {
    Pairs::inside(document).any(|pair| match pair.key {
        b"tool_calls" => {
            pair.value.strip_prefix(b"[").is_some_and(|v| v.trim_ascii_start().starts_with(b"{"))
        }
        b"functionCall" | b"function_call" => pair.value.starts_with(b"{"),
        key => is_content(key) && pair.value.starts_with(b"\"") && !pair.value.starts_with(b"\"\""),
    })
}

/// Crosses the colon behind a key.
fn value_after(bytes: &[u8]) -> Option<&[u8]> {
    Some(bytes.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start())
}

/// Reads the whole number that `value` begins with.
fn number(value: &[u8]) -> Option<u64> {
    let digits = value.iter().map_while(|byte| byte.is_ascii_digit().then(|| byte - b'0'));
    let mut number = None;
    for digit in digits {
        number = Some(number.unwrap_or(0u64).checked_mul(10)?.checked_add(u64::from(digit))?);
    }
    number
}

/// The keys of a piece of JSON and what follows each, at any depth, until the bracket that
/// closes the piece or until the bytes end.
struct Pairs<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Brackets open since the start.
    depth: usize,
}

struct Pair<'a> {
    /// As written, escapes not undone.
    key: &'a [u8],
    /// From the first byte of the value to the end of the bytes.
    value: &'a [u8],
    depth: usize,
}

impl<'a> Pairs<'a> {
    fn inside(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, depth: 0 }
    }
}

impl<'a> Iterator for Pairs<'a> {
    type Item = Pair<'a>;

    fn next(&mut self) -> Option<Pair<'a>> {
        loop {
            let byte = *self.bytes.get(self.at)?;
            self.at += 1;
            match byte {
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.checked_sub(1)?,
                b'"' => {
                    let start = self.at;
                    let end = string_end(self.bytes, start)?;
                    self.at = end + 1;
                    if let Some(value) = self.bytes.get(self.at..).and_then(value_after) {
                        self.at = self.bytes.len() - value.len();
                        return Some(Pair {
                            key: self.bytes.get(start..end)?,
                            value,
                            depth: self.depth,
                        });
                    }
                }
                _ => {}
            }
        }
    }
}

/// Finds the closing quote of a string whose text begins at `from`.
fn string_end(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        at += memchr::memchr2(b'"', b'\\', bytes.get(at..)?)?;
        match bytes.get(at)? {
            b'"' => return Some(at),
            _ => at += 2,
        }
    }
}

/// Feeds `data` whole and in bytes to a tap of each kind; both must say the same.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    for kind in [BodyKind::Sse, BodyKind::Json, BodyKind::NdJson] {
        let run = |size: usize| {
            let mut tap = UsageTap::new(kind);
            for piece in data.chunks(size.max(1)) {
                tap.push(piece);
                assert!(tap.tail.ring.len() <= TAIL_BYTES);
            }
            (tap.finish(), tap.first_token_seen())
        };
        let whole = run(data.len());
        assert_eq!(whole, run(1));
        assert_eq!(whole, run(13));
        if kind == BodyKind::Json && data.len() <= TAIL_BYTES {
            assert_eq!(whole, (usage_of(data), false));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Counts = (Option<u64>, Option<u64>, Option<u64>);

    fn run(kind: BodyKind, body: &[u8], size: usize) -> (Counts, bool) {
        let mut tap = UsageTap::new(kind);
        body.chunks(size).for_each(|piece| tap.push(piece));
        let usage = tap.finish();
        (
            (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens),
            tap.first_token_seen(),
        )
    }

    fn check(kind: BodyKind, body: &str, want: Counts) {
        for size in [usize::MAX, 1, 100] {
            assert_eq!(run(kind, body.as_bytes(), size).0, want, "{body}");
        }
        if kind == BodyKind::Json {
            let Usage { prompt_tokens, completion_tokens, cached_tokens } =
                usage_of(body.as_bytes());
            assert_eq!((prompt_tokens, completion_tokens, cached_tokens), want, "{body}");
        }
    }

    #[test]
    fn understands_one_document_of_every_dialect() {
        let check = |body: &str, want| check(BodyKind::Json, body, want);
        check(
            r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,"prompt_tokens_details":{"cached_tokens":4,"audio_tokens":0},"completion_tokens_details":{"reasoning_tokens":3}},"service_tier":"default"}"#,
            (Some(9), Some(12), Some(4)),
        );
        check(
            r#"{"data":[], "usage": {"prompt_tokens": 9, "prompt_tokens_details": null}}"#,
            (Some(9), None, None),
        );
        check(
            r#"{"output":[],"usage":{"input_tokens":36,"input_tokens_details":{"cached_tokens":30},"output_tokens":87,"output_tokens_details":{"reasoning_tokens":0},"total_tokens":123},"user":null,"metadata":{}}"#,
            (Some(36), Some(87), Some(30)),
        );
        check(
            r#"{"type":"message","usage":{"input_tokens":5,"cache_creation_input_tokens":7,"cache_read_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":7},"output_tokens":6}}"#,
            (Some(112), Some(6), Some(100)),
        );
        check(
            r#"{"candidates":[],"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":20,"thoughtsTokenCount":5,"cachedContentTokenCount":2,"totalTokenCount":33,"promptTokensDetails":[{"modality":"TEXT","tokenCount":8}]},"modelVersion":"g"}"#,
            (Some(8), Some(25), Some(2)),
        );
        check(
            r#"{"model":"m","done":true,"total_duration":1,"prompt_eval_count":26,"prompt_eval_duration":5,"eval_count":298,"eval_duration":7}"#,
            (Some(26), Some(298), None),
        );
        check(
            r#"{"content":"x","timings":{"cache_n":10,"prompt_n":3,"prompt_ms":1.5,"predicted_n":64,"predicted_ms":9.0}}"#,
            (Some(13), Some(64), Some(10)),
        );
        check(r#"{"error":{"message":"no"}}"#, (None, None, None));
    }

    #[test]
    fn the_prompt_of_anthropic_comes_first_and_the_rest_last() {
        let body = concat!(
            "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"content\":[],\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\n\n",
            "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n",
            "event: ping\ndata: {\"type\": \"ping\"}\n\n",
            "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\n\n",
            "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n",
            "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        );
        check(BodyKind::Sse, body, (Some(30), Some(15), Some(5)));
        // Far apart: the first event has long left the tail.
        let delta = "data: {\"delta\":{\"text\":\"x\"}}\n\n".repeat(500);
        check(
            BodyKind::Sse,
            &body.replace("event: message_delta", &delta),
            (Some(30), Some(15), Some(5)),
        );
    }

    #[test]
    fn a_null_usage_does_not_hide_the_one_with_numbers() {
        let chunk = |content: &str, usage: &str| {
            format!(
                "data: {{\"choices\":[{{\"delta\":{{\"content\":\"{content}\"}}}}],\"usage\":{usage}}}\n\n"
            )
        };
        let last = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";
        check(
            BodyKind::Sse,
            &[&chunk("a", "null"), &chunk("b", "null"), last].concat(),
            (Some(7), Some(2), None),
        );
        let running = chunk("a", "{\"prompt_tokens\":7,\"completion_tokens\":1}");
        check(
            BodyKind::Sse,
            &[&running, &chunk("b", "null")[..]].concat(),
            (Some(7), Some(1), None),
        );
    }

    #[test]
    fn a_model_that_talks_of_usage_misleads_nobody() {
        let body = r#"{"message":{"content":"\"usage\":{\"prompt_tokens\":99} \\","x":"usage"},"usage":{"prompt_tokens":1}}"#;
        check(BodyKind::Json, body, (Some(1), None, None));
        check(
            BodyKind::Json,
            r#"{"content":"\"usage\":{\"prompt_tokens\":99}"}"#,
            (None, None, None),
        );
    }

    #[test]
    fn what_stands_in_a_tool_call_is_the_models_word() {
        let shadow = r#"{"usage":{"prompt_tokens":1,"completion_tokens":1},"eval_count":1}"#;
        let calls = [
            format!(r#""message":{{"tool_calls":[{{"function":{{"arguments":{shadow}}}}}]}}"#),
            format!(r#""content":[{{"type":"tool_use","input":{shadow}}}]"#),
            format!(r#""input":{shadow}"#),
        ];
        let usage = r#""usage":{"prompt_tokens":50,"completion_tokens":60}"#;
        let eval = r#""prompt_eval_count":50,"eval_count":60"#;
        let want = (Some(50), Some(60), None);
        let text = "x".repeat(2 * TAIL_BYTES);
        for call in &calls {
            for own in [usage, eval] {
                for body in [format!("{{{own},{call}}}"), format!("{{{call},{own}}}")] {
                    check(BodyKind::Json, &body, want);
                    check(BodyKind::Sse, &format!("data: {body}\n\ndata: [DONE]\n\n"), want);
                    check(BodyKind::NdJson, &format!("{body}\n"), want);
                }
                // Where the beginning is not seen.
                check(BodyKind::Json, &format!(r#"{{"z":"{text}",{own},{call}}}"#), want);
                check(BodyKind::Json, &format!(r#"[{{"z":"{text}",{own},{call}}}]"#), want);
            }
            check(BodyKind::Json, &format!("{{{call}}}"), (None, None, None));
            check(BodyKind::NdJson, &format!("{{{call}}}\n"), (None, None, None));
        }
        let event = format!(
            r#"data: {{"type":"response.completed","response":{{"z":"{text}",{usage},{}}}}}"#,
            calls[0]
        );
        check(BodyKind::Sse, &(event + "\n\n"), want);
    }

    #[test]
    fn one_document_in_one_piece_is_read_beyond_the_tail() {
        let far = "7,".repeat(5_000);
        let body = format!(r#"{{"usage":{{"prompt_tokens":5}},"prompt_token_ids":[{far}0]}}"#);
        assert_eq!(usage_of(body.as_bytes()).prompt_tokens, Some(5));
    }

    #[test]
    fn the_first_token_is_the_first_content_and_not_a_role() {
        let seen = |kind, document: &str| {
            let body = if kind == BodyKind::Sse {
                format!("data: {document}\n\n")
            } else {
                format!("{document}\n")
            };
            [1, 1000].map(|size| run(kind, body.as_bytes(), size).1)
        };
        for silent in [
            r#"{"choices":[{"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"delta":{"role":"assistant","content":null,"tool_calls":[]}}]}"#,
            r#"{"type":"response.created","response":{"text":{"format":{"type":"text"}},"reasoning":{"effort":null}}}"#,
            r#"{"type":"message_start","message":{"content":[]}}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":1}}"#,
            "[DONE]",
            "",
        ] {
            assert_eq!(seen(BodyKind::Sse, silent), [false, false], "{silent}");
        }
        for told in [
            r#"{"choices":[{"delta":{"content":"Hi"}}]}"#,
            r#"{"choices": [{"delta": {"reasoning_content": "Hm"}}]}"#,
            r#"{"choices":[{"delta":{"tool_calls":[ {"index":0,"function":{"name":"f","arguments":""}}]}}]}"#,
            r#"{"choices":[{"text":"Hi"}]}"#,
            r#"{"type":"response.output_text.delta","delta":"In"}"#,
            r#"{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{\"a"}}"#,
            r#"{"candidates":[{"content":{"parts":[{"text":"Hi"}]}}]}"#,
            r#"{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f"}}]}}]}"#,
        ] {
            assert_eq!(seen(BodyKind::Sse, told), [true, true], "{told}");
        }
        assert_eq!(
            seen(
                BodyKind::NdJson,
                r#"{"message":{"role":"assistant","content":"Hi"},"done":false}"#
            ),
            [true; 2]
        );
        assert_eq!(
            seen(BodyKind::NdJson, r#"{"response":"","done":true,"eval_count":1}"#),
            [false; 2]
        );
    }

    #[test]
    fn ollamas_last_line_has_the_counts() {
        let line = "{\"message\":{\"content\":\"Hi\"},\"done\":false}\n".repeat(200);
        let last = "{\"message\":{\"content\":\"\"},\"done\":true,\"prompt_eval_count\":3,\"eval_count\":200}\n";
        check(BodyKind::NdJson, &[&line, last].concat(), (Some(3), Some(200), None));
    }

    #[test]
    fn the_middle_of_a_document_may_pass_unseen() {
        let body = format!(r#"{{"data":"{}","usage":{{"prompt_tokens":5}}}}"#, "x".repeat(20_000));
        let mut tap = UsageTap::new(BodyKind::Json);
        let tail = tap.needs_tail_only().unwrap();
        tap.push(&body.as_bytes()[..100]);
        tap.skip();
        tap.push(&body.as_bytes()[body.len() - tail..]);
        assert_eq!(tap.finish().prompt_tokens, Some(5));
        assert_eq!(UsageTap::new(BodyKind::Sse).needs_tail_only(), None);
        tap.reset(BodyKind::Json);
        assert_eq!(tap.finish(), Usage::default());
    }

    #[test]
    fn a_cut_stream_gives_what_was_said_and_no_more() {
        check(BodyKind::Json, r#"{"usage":{"prompt_tokens":12,"comple"#, (Some(12), None, None));
        check(
            BodyKind::Json,
            r#"{"usage":{"prompt_tokens":18446744073709551616}}"#,
            (None, None, None),
        );
        check(BodyKind::Json, r#"{"usage":"#, (None, None, None));
    }

    proptest! {
        #[test]
        fn the_ring_holds_the_last_tail_bytes(sizes in prop::collection::vec(0..3_000usize, 0..12)) {
            let (mut tail, mut all) = (Tail::default(), Vec::new());
            for (index, &size) in sizes.iter().enumerate() {
                let piece: Vec<u8> = (0..size).map(|n| (n * 7 + index) as u8).collect();
                tail.push(&piece);
                all.extend_from_slice(&piece);
                prop_assert!(tail.ring.capacity() <= TAIL_BYTES);
            }
            prop_assert_eq!(tail.in_order(), &all[all.len().saturating_sub(TAIL_BYTES)..]);
        }

        #[test]
        fn numbers_are_those_of_the_document(prompt in any::<u64>(), completion in any::<u64>(), filler in "[a-z\"\\\\{}:]{0,40}") {
            let content = serde_json::Value::from(filler);
            let body = format!(r#"{{"content":{content},"usage":{{"prompt_tokens":{prompt},"x":{content},"completion_tokens": {completion}}},"z":{content}}}"#);
            prop_assert_eq!(run(BodyKind::Json, body.as_bytes(), 11).0, (Some(prompt), Some(completion), None));
        }

        #[test]
        fn no_input_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }

        #[test]
        fn no_input_of_usage_words_panics(
            data in r#"(data: |\n\n|"usage"|:|\{|\}|\[|\]|"content"|"text"|"|\\|"prompt_tokens"|"eval_count"|[0-9]{1,4}| |,|"timings"){0,60}"#,
        ) {
            fuzz(data.as_bytes());
        }
    }
}
