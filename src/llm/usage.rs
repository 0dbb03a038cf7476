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
//! stand inside a JSON string, so a model that talks about usage misleads nobody.
//!
//! It deliberately builds no tree, changes nothing, and knows nothing when a server says
//! nothing: an absent count is `None`, never an estimate.

use super::lines::{Line, Lines};
use super::sse::SseSplitter;

/// How much of the end of a body is kept and read, in bytes.
///
/// Source: a usage object is 100 to 700 bytes and what servers put after it (`timings`,
/// `service_tier`, `[DONE]`, Responses' `metadata`) was below 1 KiB in every dialect.
pub const TAIL_BYTES: usize = 4096;

/// What a server says that an exchange took, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, the cached ones included.
    pub prompt_tokens: Option<u64>,
    /// Tokens that were made, hidden reasoning included.
    pub completion_tokens: Option<u64>,
    /// Tokens of the prompt that came from a cache.
    pub cached_tokens: Option<u64>,
}

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
    /// Makes a tap for server-sent events.
    pub fn sse() -> Self {
        Self::new(BodyKind::Sse)
    }

    /// Makes a tap for one JSON document.
    pub fn json() -> Self {
        Self::new(BodyKind::Json)
    }

    /// Makes a tap for JSON lines.
    pub fn ndjson() -> Self {
        Self::new(BodyKind::NdJson)
    }

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
        read_end(self.tail.in_order(), &mut self.usage);
        self.usage
    }

    fn look_into(&mut self, bytes: &[u8]) {
        let Self { events, lines, usage, first_token_seen, .. } = self;
        let mut look = |document: &[u8]| {
            if !*first_token_seen {
                read_usage(document, usage);
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
}

impl Tail {
    fn clear(&mut self) {
        self.ring.clear();
        self.oldest = 0;
    }

    #[inline]
    fn push(&mut self, bytes: &[u8]) {
        let bytes = bytes.get(bytes.len().saturating_sub(TAIL_BYTES)..).unwrap_or_default();
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

/// Reads the end of a body: any dialect's usage, or else llama.cpp's timings.
fn read_end(tail: &[u8], usage: &mut Usage) {
    read_usage(tail, usage);
    if let Some(count) = last_number(tail, b"\"prompt_eval_count\"") {
        usage.prompt_tokens = Some(count);
    }
    if let Some(count) = last_number(tail, b"\"eval_count\"") {
        usage.completion_tokens = Some(count);
    }
    if *usage == Usage::default() {
        read_timings(tail, usage);
    }
}

/// Reads the last `usage` or `usageMetadata` object; what it does not name stays.
fn read_usage(bytes: &[u8], usage: &mut Usage) {
    let object =
        last_object(bytes, b"\"usage\"").or_else(|| last_object(bytes, b"\"usageMetadata\""));
    let Some(object) = object else { return };
    let (mut prompt, mut completion, mut cached) = (None, None, None);
    // Anthropic counts cached tokens beside the prompt's, Gemini thoughts beside the answer's.
    let (mut beside_prompt, mut beside_completion) = (0u64, 0u64);
    for pair in Pairs::inside(object) {
        let Some(count) = number(pair.value) else { continue };
        match (pair.depth, pair.key) {
            (0, b"prompt_tokens" | b"input_tokens" | b"promptTokenCount") => prompt = Some(count),
            (0, b"completion_tokens" | b"output_tokens" | b"candidatesTokenCount") => {
                completion = Some(count);
            }
            (0, b"cache_read_input_tokens") => {
                cached = Some(count);
                beside_prompt = beside_prompt.saturating_add(count);
            }
            (0, b"cache_creation_input_tokens") => {
                beside_prompt = beside_prompt.saturating_add(count);
            }
            (0, b"thoughtsTokenCount") => beside_completion = count,
            (0, b"cachedContentTokenCount" | b"prompt_cache_hit_tokens")
            | (1, b"cached_tokens") => {
                cached = Some(count);
            }
            _ => {}
        }
    }
    usage.prompt_tokens =
        prompt.map(|n: u64| n.saturating_add(beside_prompt)).or(usage.prompt_tokens);
    usage.completion_tokens =
        completion.map(|n: u64| n.saturating_add(beside_completion)).or(usage.completion_tokens);
    usage.cached_tokens = cached.or(usage.cached_tokens);
}

fn read_timings(bytes: &[u8], usage: &mut Usage) {
    let Some(object) = last_object(bytes, b"\"timings\"") else { return };
    let mut fresh = None;
    for pair in Pairs::inside(object) {
        let count = number(pair.value);
        match pair.key {
            b"prompt_n" => fresh = count,
            b"predicted_n" => usage.completion_tokens = count,
            b"cache_n" => usage.cached_tokens = count,
            _ => {}
        }
    }
    usage.prompt_tokens = fresh.map(|n| n.saturating_add(usage.cached_tokens.unwrap_or(0)));
}

/// Tells whether one event of a stream carries something for the reader.
fn carries_content(document: &[u8]) -> bool {
    Pairs::inside(document).any(|pair| match pair.key {
        // Chat and Ollama, completions and Gemini, Responses, Anthropic, Ollama generate.
        b"content" | b"text" | b"delta" | b"partial_json" | b"response" | b"thinking"
        | b"reasoning_content" | b"reasoning" | b"refusal" | b"arguments" => {
            pair.value.starts_with(b"\"") && !pair.value.starts_with(b"\"\"")
        }
        b"tool_calls" => {
            pair.value.strip_prefix(b"[").is_some_and(|v| v.trim_ascii_start().starts_with(b"{"))
        }
        b"functionCall" | b"function_call" => pair.value.starts_with(b"{"),
        _ => false,
    })
}

/// Finds the last `key` whose value is an object; returns what follows its brace.
fn last_object<'a>(bytes: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    last_value(bytes, key, |value| value.strip_prefix(b"{"))
}

fn last_number(bytes: &[u8], key: &[u8]) -> Option<u64> {
    last_value(bytes, key, number)
}

fn last_value<'a, T>(
    bytes: &'a [u8],
    key: &[u8],
    read: impl Fn(&'a [u8]) -> Option<T>,
) -> Option<T> {
    memchr::memmem::rfind_iter(bytes, key).find_map(|at| {
        let after = bytes.get(at + key.len()..)?.trim_ascii_start();
        read(after.strip_prefix(b":")?.trim_ascii_start())
    })
}

/// Reads the whole number that `value` begins with.
fn number(value: &[u8]) -> Option<u64> {
    let digits = value.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(value.get(..digits)?).ok()?.parse().ok()
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
                    let after = self.bytes.get(self.at..)?.trim_ascii_start();
                    if let Some(value) = after.strip_prefix(b":") {
                        let value = value.trim_ascii_start();
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
    }
}
