//! What JSON documents say of tokens, byte by byte, wherever in them they say it.
//!
//! The one idea: a key counts by where it stands. `usage` is the server's word at the top of a
//! document, or inside the `response` or `message` that an event carries; inside the arguments
//! of a tool call it is the model's. So the machine keeps what the few outer containers mean
//! and nothing of the deeper ones; strings are leapt over, no tree is built, and a document may
//! be of any length.
//!
//! Documents may follow each other (JSON lines), or be the elements of one array (Gemini without
//! events): each is told when it closes. The dialects are those of `usage`. What is no JSON
//! means nothing, and harms nothing but the document that it stands in.

use super::unescape::{Piece, Unescape};

/// Containers whose meaning is kept: list, document, `response`, `usage`, its details.
const CONTAINERS_KEPT: usize = 5;
/// Longest key that is looked at, as written; a longer one is none of ours, even if each of its
/// bytes is escaped.
const KEY_BYTES_MAX: usize = 192;
/// Longest key that means something.
const NAME_BYTES_MAX: usize = 32;

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

/// What one document said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Document {
    /// Its counts.
    pub usage: Usage,
    /// Whether it carries text, reasoning or a tool call.
    pub has_content: bool,
    /// Bytes of that text, less what escapes take.
    pub text_bytes: u64,
}

/// The place in a row of documents.
#[derive(Clone, Debug)]
pub(super) struct Counts {
    state: State,
    /// Containers open.
    depth: usize,
    /// What the outer ones mean; valid below `depth`.
    containers: [Container; CONTAINERS_KEPT],
    /// The last string that was no value of a key: maybe a key.
    key: [u8; KEY_BYTES_MAX],
    /// Its length as written, also when that is too long to be kept.
    key_len: usize,
    /// Such a string stands right before.
    after_string: bool,
    /// What the key before the colon asks of its value.
    wanted: Wanted,
    /// A list of tool calls has opened, and nothing of it has been seen.
    tools_begin: bool,
    found: Found,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Between,
    Text { of: Text, escaped: bool },
    Number { of: Count, value: Option<u64>, whole: bool },
}

/// What a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Key,
    Content,
    Other,
}

/// What a container means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    /// The list that all documents stand in.
    List,
    Document,
    /// What an event carries the document in.
    Carrier,
    Usage,
    /// Inside of `usage`.
    Details,
    Timings,
    Other,
}

/// What a key asks of its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Nothing,
    /// A container with this meaning.
    Open(Container),
    /// The same, or a text.
    OpenOrText(Container),
    Number(Count),
    Text,
    Tools,
    Function,
}

/// A number that counts tokens, by the sum that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Count {
    Prompt,
    Completion,
    Cached,
    Total,
    /// Part of the prompt, not in its count.
    BesidePrompt,
    /// Part of the prompt, not in its count, from a cache.
    BesideCached,
    /// Part of the completion, not in its count.
    BesideCompletion,
    /// Ollama's two, in the document itself.
    EvalPrompt,
    EvalCompletion,
    /// llama.cpp's: the prompt without what came from its cache.
    Fresh,
    Predicted,
    Reused,
}

impl Count {
    /// The count of a key in `usage`, or at `depth` 1 in one of its parts.
    pub(super) fn of_usage(depth: usize, key: &[u8]) -> Option<Count> {
        Some(match (depth, key) {
            (0, b"prompt_tokens" | b"input_tokens" | b"promptTokenCount") => Count::Prompt,
            (0, b"completion_tokens" | b"output_tokens" | b"candidatesTokenCount") => {
                Count::Completion
            }
            (0, b"total_tokens" | b"totalTokenCount") => Count::Total,
            // Anthropic counts cached tokens beside the prompt's, Gemini thoughts beside the
            // answer's.
            (0, b"cache_read_input_tokens") => Count::BesideCached,
            (0, b"cache_creation_input_tokens" | b"toolUsePromptTokenCount") => Count::BesidePrompt,
            (0, b"thoughtsTokenCount") => Count::BesideCompletion,
            (0, b"cachedContentTokenCount" | b"prompt_cache_hit_tokens")
            | (0 | 1, b"cached_tokens") => Count::Cached,
            _ => return None,
        })
    }

    fn of_document(key: &[u8]) -> Option<Count> {
        Some(match key {
            b"prompt_eval_count" => Count::EvalPrompt,
            b"eval_count" => Count::EvalCompletion,
            _ => return None,
        })
    }

    /// The count of a key in `timings`.
    pub(super) fn of_timings(key: &[u8]) -> Option<Count> {
        Some(match key {
            b"prompt_n" => Count::Fresh,
            b"predicted_n" => Count::Predicted,
            b"cache_n" => Count::Reused,
            _ => return None,
        })
    }
}

/// The counts of one `usage` object.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Parts {
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: Option<u64>,
    total: Option<u64>,
    beside_prompt: u64,
    beside_completion: Option<u64>,
}

impl Parts {
    /// Takes one number.
    pub(super) fn note(&mut self, count: Count, value: u64) {
        match count {
            Count::Prompt => self.prompt = Some(value),
            Count::Completion => self.completion = Some(value),
            Count::Cached => self.cached = Some(value),
            Count::Total => self.total = Some(value),
            Count::BesidePrompt => self.beside_prompt = self.beside_prompt.saturating_add(value),
            Count::BesideCached => {
                self.cached = Some(value);
                self.beside_prompt = self.beside_prompt.saturating_add(value);
            }
            Count::BesideCompletion => self.beside_completion = Some(value),
            Count::EvalPrompt
            | Count::EvalCompletion
            | Count::Fresh
            | Count::Predicted
            | Count::Reused => {}
        }
    }

    /// Adds what was said to `usage`; what was not stays.
    pub(super) fn add_to(&self, usage: &mut Usage) {
        let mut prompt = self.prompt.map(|n| n.saturating_add(self.beside_prompt));
        let completion = match (self.completion, self.beside_completion) {
            (None, None) => None,
            (said, beside) => Some(said.unwrap_or(0).saturating_add(beside.unwrap_or(0))),
        };
        if prompt.is_none() && completion.is_none() {
            // Rerankers say no more than the sum.
            prompt = self.total;
        }
        usage.prompt_tokens = prompt.or(usage.prompt_tokens);
        usage.completion_tokens = completion.or(usage.completion_tokens);
        usage.cached_tokens = self.cached.or(usage.cached_tokens);
    }
}

/// What the open document has said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Found {
    /// Of `usage` objects that have closed.
    said: Usage,
    /// Of the one that is open.
    parts: Parts,
    eval: (Option<u64>, Option<u64>),
    /// Fresh, predicted, reused.
    timings: (Option<u64>, Option<u64>, Option<u64>),
    has_content: bool,
    text_bytes: u64,
}

impl Found {
    fn note(&mut self, count: Count, value: Option<u64>) {
        // A number that is no count of anything says nothing.
        let Some(value) = value else { return };
        match count {
            Count::EvalPrompt => self.eval.0 = Some(value),
            Count::EvalCompletion => self.eval.1 = Some(value),
            Count::Fresh => self.timings.0 = Some(value),
            Count::Predicted => self.timings.1 = Some(value),
            Count::Reused => self.timings.2 = Some(value),
            _ => self.parts.note(count, value),
        }
    }

    fn close_usage(&mut self) {
        std::mem::take(&mut self.parts).add_to(&mut self.said);
    }

    /// All that was said: `usage`, or else Ollama's counts, or else llama.cpp's timings.
    fn document(mut self) -> Document {
        self.close_usage();
        let mut usage = self.said;
        if usage.prompt_tokens.or(usage.completion_tokens).is_none() {
            let (fresh, predicted, reused) = self.timings;
            let timed = fresh.map(|n| n.saturating_add(reused.unwrap_or(0)));
            let (prompt, completion) = match self.eval {
                (None, None) => (timed, predicted),
                said => said,
            };
            usage.prompt_tokens = prompt;
            usage.completion_tokens = completion;
            usage.cached_tokens = usage.cached_tokens.or(reused);
        }
        Document { usage, has_content: self.has_content, text_bytes: self.text_bytes }
    }
}

impl Default for Counts {
    fn default() -> Self {
        Self {
            state: State::Between,
            depth: 0,
            containers: [Container::Other; CONTAINERS_KEPT],
            key: [0; KEY_BYTES_MAX],
            key_len: 0,
            after_string: false,
            wanted: Wanted::Nothing,
            tools_begin: false,
            found: Found::default(),
        }
    }
}

impl Counts {
    /// Forgets everything.
    pub(super) fn reset(&mut self) {
        self.state = State::Between;
        self.depth = 0;
        self.after_string = false;
        self.wanted = Wanted::Nothing;
        self.tools_begin = false;
        self.found = Found::default();
    }

    /// Takes the next bytes and tells each document that they close.
    pub(super) fn push(&mut self, bytes: &[u8], mut each: impl FnMut(Document)) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            match self.state {
                State::Between => {
                    rest = after;
                    if self.token(byte) {
                        each(std::mem::take(&mut self.found).document());
                    }
                }
                State::Text { of, escaped } => rest = self.text(of, escaped, rest),
                State::Number { of, value, whole } => {
                    match byte {
                        b'0'..=b'9' if !whole => {}
                        b'0'..=b'9' => {
                            let value = value.and_then(|n| n.checked_mul(10));
                            let value = value.and_then(|n| n.checked_add(u64::from(byte - b'0')));
                            self.state = State::Number { of, value, whole };
                        }
                        b'.' => self.state = State::Number { of, value, whole: false },
                        // Nobody writes a count so.
                        b'e' | b'E' | b'+' | b'-' => {
                            self.state = State::Number { of, value: None, whole: false };
                        }
                        _ => {
                            self.found.note(of, value);
                            self.state = State::Between;
                            continue;
                        }
                    }
                    rest = after;
                }
            }
        }
    }

    /// Says that the bytes are over, or that a new document begins whatever was open: tells what
    /// the open one has said. A number that is cut off is none.
    pub(super) fn end(&mut self) -> Document {
        let document = std::mem::take(&mut self.found).document();
        self.reset();
        document
    }

    /// Takes a byte outside of strings and numbers; true when it closes a document.
    fn token(&mut self, byte: u8) -> bool {
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' => return false,
            b'"' => self.begin_text(),
            b':' if self.after_string => {
                self.wanted = self.wants();
                self.after_string = false;
                return false;
            }
            b'{' | b'[' => self.open(byte),
            b'}' | b']' => return self.close(),
            b'0'..=b'9' => {
                if let Wanted::Number(of) = self.wanted {
                    let value = Some(u64::from(byte - b'0'));
                    self.state = State::Number { of, value, whole: true };
                }
            }
            _ => {}
        }
        self.wanted = Wanted::Nothing;
        self.after_string = false;
        self.tools_begin &= byte == b'[';
        false
    }

    fn begin_text(&mut self) {
        let of = match self.wanted {
            Wanted::Text | Wanted::OpenOrText(_) => Text::Content,
            Wanted::Nothing if self.depth > 0 => Text::Key,
            _ => Text::Other,
        };
        if of == Text::Key {
            self.key_len = 0;
        }
        self.state = State::Text { of, escaped: false };
    }

    /// Takes the bytes of a string up to its next escape or its end; returns the rest.
    fn text<'a>(&mut self, of: Text, escaped: bool, bytes: &'a [u8]) -> &'a [u8] {
        if escaped {
            let (one, rest) = bytes.split_at(1.min(bytes.len()));
            self.keep(of, one);
            if of == Text::Content && one == b"u" {
                // Four digits follow for two bytes or three.
                self.found.text_bytes = self.found.text_bytes.saturating_sub(2);
            }
            self.state = State::Text { of, escaped: false };
            return rest;
        }
        let Some(at) = memchr::memchr2(b'"', b'\\', bytes) else {
            self.keep(of, bytes);
            return &[];
        };
        let (run, rest) = bytes.split_at(at);
        self.keep(of, run);
        let (mark, rest) = rest.split_at(1.min(rest.len()));
        if mark == b"\\" {
            if of == Text::Key {
                self.keep(of, mark);
            }
            self.found.has_content |= of == Text::Content;
            self.state = State::Text { of, escaped: true };
        } else {
            self.after_string = of == Text::Key;
            self.state = State::Between;
        }
        rest
    }

    fn keep(&mut self, of: Text, run: &[u8]) {
        match of {
            Text::Key => {
                if let Some(place) = self.key.get_mut(self.key_len..self.key_len + run.len()) {
                    place.copy_from_slice(run);
                }
                self.key_len = self.key_len.saturating_add(run.len());
            }
            Text::Content => {
                self.found.has_content |= !run.is_empty();
                self.found.text_bytes += run.len() as u64;
            }
            Text::Other => {}
        }
    }

    /// What the container at the top means.
    fn place(&self) -> Option<Container> {
        let at = self.depth.checked_sub(1)?;
        Some(self.containers.get(at).copied().unwrap_or(Container::Other))
    }

    fn open(&mut self, byte: u8) {
        let is_object = byte == b'{';
        self.found.has_content |=
            is_object && (self.tools_begin || self.wanted == Wanted::Function);
        self.tools_begin = self.wanted == Wanted::Tools && !is_object;
        let place = match (self.place(), self.wanted) {
            (None | Some(Container::List), _) if is_object => Container::Document,
            (None, _) => Container::List,
            (_, Wanted::Open(place) | Wanted::OpenOrText(place)) if is_object => place,
            _ => Container::Other,
        };
        if place == Container::Usage {
            self.found.parts = Parts::default();
        }
        if let Some(top) = self.containers.get_mut(self.depth) {
            *top = place;
        }
        self.depth = self.depth.saturating_add(1);
    }

    /// True when a document has ended.
    fn close(&mut self) -> bool {
        let place = self.place();
        self.depth = self.depth.saturating_sub(1);
        self.wanted = Wanted::Nothing;
        self.after_string = false;
        self.tools_begin = false;
        if place == Some(Container::Usage) {
            self.found.close_usage();
        }
        place == Some(Container::Document)
    }

    /// What the key that has just ended asks of its value.
    fn wants(&self) -> Wanted {
        let Some(written) = self.key.get(..self.key_len) else { return Wanted::Nothing };
        if memchr::memchr(b'\\', written).is_some() {
            let mut name = [0; NAME_BYTES_MAX];
            return unescaped(written, &mut name).map_or(Wanted::Nothing, |key| self.wants_of(key));
        }
        self.wants_of(written)
    }

    fn wants_of(&self, key: &[u8]) -> Wanted {
        let Some(place) = self.place() else { return Wanted::Nothing };
        let count = match place {
            Container::Usage => Count::of_usage(0, key),
            Container::Details => Count::of_usage(1, key),
            Container::Timings => Count::of_timings(key),
            Container::Document => Count::of_document(key),
            Container::List | Container::Carrier | Container::Other => None,
        };
        if let Some(count) = count {
            return Wanted::Number(count);
        }
        match (place, key) {
            (Container::Usage, _) => Wanted::Open(Container::Details),
            (Container::Details | Container::Timings, _) => Wanted::Nothing,
            (Container::Document | Container::Carrier, b"usage" | b"usageMetadata")
            | (Container::Document, b"meta_info") => Wanted::Open(Container::Usage),
            (Container::Document, b"timings") => Wanted::Open(Container::Timings),
            (Container::Document, b"response") => Wanted::OpenOrText(Container::Carrier),
            (Container::Document, b"message") => Wanted::Open(Container::Carrier),
            (_, b"tool_calls") => Wanted::Tools,
            (_, b"functionCall" | b"function_call") => Wanted::Function,
            (_, key) if is_content(key) => Wanted::Text,
            _ => Wanted::Nothing,
        }
    }
}

/// Whether a key's text is for the reader: chat and Ollama, completions and Gemini, Responses,
/// Anthropic, Ollama's generate.
pub(super) fn is_content(key: &[u8]) -> bool {
    matches!(
        key,
        b"content"
            | b"text"
            | b"delta"
            | b"partial_json"
            | b"response"
            | b"thinking"
            | b"reasoning_content"
            | b"reasoning"
            | b"refusal"
            | b"arguments"
    )
}

/// The key that is written with escapes, if it is short.
#[cold]
fn unescaped<'n>(written: &[u8], name: &'n mut [u8; NAME_BYTES_MAX]) -> Option<&'n [u8]> {
    let (mut text, mut len) = (Unescape::START, 0);
    for &byte in written {
        let byte = match text.step(byte).ok()? {
            Piece::Partial => continue,
            Piece::Byte(byte) => byte,
            // Every key of ours is ASCII.
            Piece::Char(char) => u8::try_from(char).ok().filter(u8::is_ascii)?,
            Piece::End => return None,
        };
        *name.get_mut(len)? = byte;
        len += 1;
    }
    name.get(..len)
}
