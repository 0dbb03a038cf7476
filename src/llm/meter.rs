//! What a whole answer cost, from every byte of it: for keys that pay by the token.
//!
//! The one idea: whoever charges must not depend on where a server puts its counts. `usage` looks
//! at the end of a body, which is cheap and right for a metric; this machine reads all of it, by
//! `counts`, whatever the body's size and whatever type it claims: its first bytes tell whether
//! it is JSON (one document, lines, a list) or a stream of events. An event may be of any length
//! as well, so its data is handed on as it comes and never put together.
//!
//! Beside the counts it keeps what no count has covered: pieces of a stream since the last count,
//! and text. With that an answer can be charged that was cut before its count came, or never had
//! one. A count of nothing at all, beside content, is not believed.
//!
//! It holds a few hundred bytes and no heap, changes nothing, and estimates nothing: what a
//! piece is worth is `policy::limit::passed`'s to say.

use super::counts::{Counts, Document};
use super::oracle;
use super::usage::Usage;

/// A piece of a stream with so much text is no single token: its text is counted instead.
///
/// Source: tokens of text are 1 to 16 bytes, runs of blanks aside; Gemini sends 100 to 400 bytes
/// at a time.
const PIECE_BYTES_MAX: u64 = 32;

/// What was read of one answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// What the server said.
    pub usage: Usage,
    /// Pieces of a stream, of a token or so, that no count covers.
    pub pieces: u64,
    /// Bytes of text beside those pieces that no count covers.
    pub text_bytes: u64,
    /// Whether the bytes were JSON or events at all.
    pub is_readable: bool,
}

/// Reads one answer.
///
/// Shape: `push` what passes, in order, without any transfer coding; then `finish` once.
#[derive(Clone, Debug)]
pub struct Meter {
    form: Form,
    line: Line,
    after_cr: bool,
    counts: Counts,
    tally: Tally,
}

/// How the body carries its documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Not known yet; so many bytes of a byte-order mark have passed.
    Unknown(u8),
    Json,
    /// JSON of which a line break ends whatever is open.
    Lines,
    Events,
    /// Nothing that can be read.
    Opaque,
}

/// The place in a line of an event. WHATWG HTML §9.2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// So much of `data` has been seen, and nothing else.
    Name(u8),
    /// Behind the colon: one space may follow that is none of the data.
    Colon,
    Data,
    /// In another field, or a comment.
    Other,
}

/// Sums over the documents.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) usage: Usage,
    pub(super) documents: u64,
    /// Documents with content since the last count, and of that the short ones' text.
    pub(super) pieces: u64,
    piece_bytes: u64,
    /// Text of the long ones.
    pub(super) text_bytes: u64,
    has_content: bool,
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const DATA: &[u8] = b"data";

impl Meter {
    /// Makes a meter for one answer.
    #[must_use]
    pub fn new() -> Self {
        Self {
            form: Form::Unknown(0),
            line: Line::Name(0),
            after_cr: false,
            counts: Counts::default(),
            tally: Tally::default(),
        }
    }

    /// Forgets the answer and is ready for another.
    ///
    /// Shape: `content_type` as the server sent it, or nothing. It is believed where it says that
    /// there are lines or events; else the bytes themselves tell.
    pub fn reset(&mut self, content_type: &[u8]) {
        self.form = match content_type {
            kind if names(kind, b"event-stream") => Form::Events,
            kind if [&b"ndjson"[..], b"jsonl", b"json-lines", b"jsonlines", b"json-seq"]
                .iter()
                .any(|name| names(kind, name)) =>
            {
                Form::Lines
            }
            _ => Form::Unknown(0),
        };
        self.line = Line::Name(0);
        self.after_cr = false;
        self.counts.reset();
        self.tally = Tally::default();
    }

    /// Takes body bytes in passing.
    pub fn push(&mut self, bytes: &[u8]) {
        let bytes = match self.form {
            Form::Unknown(_) => self.begin(bytes),
            _ => bytes,
        };
        let Self { counts, tally, .. } = self;
        match self.form {
            Form::Unknown(_) | Form::Opaque => {}
            Form::Json => counts.push(bytes, |document| tally.add(document)),
            Form::Lines => {
                let mut from = 0;
                for end in memchr::memchr_iter(b'\n', bytes) {
                    let line = bytes.get(from..=end).unwrap_or_default();
                    counts.push(line, |document| tally.add(document));
                    tally.add_open(counts.end());
                    from = end + 1;
                }
                counts.push(bytes.get(from..).unwrap_or_default(), |document| tally.add(document));
            }
            Form::Events => self.events(bytes),
        }
    }

    /// Whether nothing that still comes can tell anything.
    #[must_use]
    pub fn is_blind(&self) -> bool {
        self.form == Form::Opaque
    }

    /// Whether a piece of a stream has carried content.
    #[must_use]
    pub fn first_token_seen(&self) -> bool {
        self.tally.has_content && self.is_stream()
    }

    /// Says that the body is over, however it ended.
    #[must_use]
    pub fn finish(&mut self) -> Reading {
        let is_stream = self.is_stream();
        self.tally.add_open(self.counts.end());
        let Tally { usage, documents, pieces, piece_bytes, text_bytes, has_content } = self.tally;
        let is_readable = documents > 0;
        match is_stream {
            // Events in words that nobody here knows are pieces all the same.
            true if !has_content && usage == Usage::default() => {
                Reading { usage, pieces: documents, text_bytes, is_readable }
            }
            true => Reading { usage, pieces, text_bytes, is_readable },
            // One document: its text is its text, however short.
            false => Reading {
                usage,
                pieces: 0,
                text_bytes: text_bytes.saturating_add(piece_bytes),
                is_readable,
            },
        }
    }

    fn is_stream(&self) -> bool {
        matches!(self.form, Form::Events | Form::Lines) || self.tally.documents > 1
    }

    /// Looks at the first byte that says something; returns the bytes from there on.
    fn begin<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        for (at, byte) in bytes.iter().enumerate() {
            let Form::Unknown(marked) = self.form else { break };
            if BYTE_ORDER_MARK.get(usize::from(marked)) == Some(byte) {
                self.form = Form::Unknown(marked + 1);
                continue;
            }
            self.form = match byte {
                b' ' | b'\t' | b'\n' | b'\r' => continue,
                b'{' | b'[' => Form::Json,
                // The fields of an event: data, event, id, retry, and comments.
                b'd' | b'e' | b'i' | b'r' | b':' => Form::Events,
                _ => Form::Opaque,
            };
            return bytes.get(at..).unwrap_or_default();
        }
        &[]
    }

    fn events(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if std::mem::take(&mut self.after_cr) && byte == b'\n' {
                rest = after;
                continue;
            }
            if matches!(byte, b'\n' | b'\r') {
                self.after_cr = byte == b'\r';
                self.end_line();
                rest = after;
                continue;
            }
            match self.line {
                Line::Name(seen) => {
                    rest = after;
                    let at = usize::from(seen);
                    self.line = match byte {
                        b':' if at == DATA.len() => Line::Colon,
                        byte if DATA.get(at) == Some(&byte) => Line::Name(seen + 1),
                        // A byte-order mark may stand before the first line.
                        byte if at == 0 && BYTE_ORDER_MARK.contains(&byte) => Line::Name(0),
                        _ => Line::Other,
                    };
                }
                Line::Colon => {
                    self.line = Line::Data;
                    rest = if byte == b' ' { after } else { rest };
                }
                Line::Data | Line::Other => {
                    let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                    let (line, more) = rest.split_at(end);
                    if self.line == Line::Data {
                        let tally = &mut self.tally;
                        self.counts.push(line, |document| tally.add(document));
                    }
                    rest = more;
                }
            }
        }
    }

    fn end_line(&mut self) {
        match self.line {
            // An empty line ends an event; the lines of one event are one text.
            Line::Name(0) => self.tally.add_open(self.counts.end()),
            Line::Data => self.counts.push(b"\n", |document| self.tally.add(document)),
            Line::Name(_) | Line::Colon | Line::Other => {}
        }
        self.line = Line::Name(0);
    }
}

impl Default for Meter {
    fn default() -> Self {
        Self::new()
    }
}

impl Tally {
    pub(super) fn add(&mut self, document: Document) {
        let Document { usage, has_content, text_bytes } = document;
        self.documents += 1;
        self.has_content |= has_content;
        if has_content && text_bytes < PIECE_BYTES_MAX {
            self.pieces += 1;
            self.piece_bytes += text_bytes;
        } else if has_content {
            self.text_bytes = self.text_bytes.saturating_add(text_bytes);
        }
        self.note(usage);
    }

    /// What an unfinished document has said; nothing when none was open.
    pub(super) fn add_open(&mut self, document: Document) {
        if document != Document::default() {
            self.add(document);
        }
    }

    fn note(&mut self, said: Usage) {
        let Usage { prompt_tokens, completion_tokens, cached_tokens } = said;
        let sum = prompt_tokens.unwrap_or(0) | completion_tokens.unwrap_or(0);
        if sum == 0 {
            return;
        }
        self.usage.prompt_tokens = prompt_tokens.or(self.usage.prompt_tokens);
        self.usage.completion_tokens = completion_tokens.or(self.usage.completion_tokens);
        self.usage.cached_tokens = cached_tokens.or(self.usage.cached_tokens);
        if completion_tokens != Some(0) {
            (self.pieces, self.piece_bytes, self.text_bytes) = (0, 0, 0);
        }
    }
}

/// Whether a content type holds this word, in any case.
fn names(content_type: &[u8], word: &[u8]) -> bool {
    content_type.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word))
}

/// Reads `data` whole and in pieces, which must say the same; and what serde can read says what
/// the tree says.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    for kind in [&b"text/event-stream"[..], b"application/x-ndjson", b""] {
        let run = |size: usize| {
            let mut meter = Meter::new();
            meter.reset(kind);
            data.chunks(size.max(1)).for_each(|piece| meter.push(piece));
            let seen = meter.tally.has_content;
            (meter.finish(), seen, meter.tally.has_content)
        };
        let whole = run(data.len());
        assert_eq!(whole, run(1));
        assert_eq!(whole, run(7));
        if kind.is_empty()
            && let Some((usage, has_content)) = oracle::read(data)
        {
            assert_eq!((whole.0.usage, whole.2), (usage, has_content));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(content_type: &str, body: &[u8], size: usize) -> Reading {
        let mut meter = Meter::new();
        meter.reset(content_type.as_bytes());
        body.chunks(size).for_each(|piece| meter.push(piece));
        meter.finish()
    }

    fn read(content_type: &str, body: &str) -> Reading {
        let whole = run(content_type, body.as_bytes(), usize::MAX);
        for size in [1, 2, 3, 100] {
            assert_eq!(run(content_type, body.as_bytes(), size), whole, "{body}");
        }
        whole
    }

    fn check(content_type: &str, body: &str, want: (Option<u64>, Option<u64>, Option<u64>)) {
        let Usage { prompt_tokens, completion_tokens, cached_tokens } =
            read(content_type, body).usage;
        assert_eq!((prompt_tokens, completion_tokens, cached_tokens), want, "{body}");
    }

    const SSE: &str = "text/event-stream; charset=utf-8";
    const LINES: &str = "application/x-ndjson";

    #[test]
    fn understands_one_document_of_every_dialect_under_any_type() {
        for kind in ["application/json", "text/json", "application/problem+json", ""] {
            let check = |body: &str, want| check(kind, body, want);
            check(
                r#"{"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":12,"total_tokens":21,"prompt_tokens_details":{"cached_tokens":4}}}"#,
                (Some(9), Some(12), Some(4)),
            );
            check(
                r#"{"usage":{"input_tokens":5,"cache_creation_input_tokens":7,"cache_read_input_tokens":100,"cache_creation":{"ephemeral_5m_input_tokens":7},"output_tokens":6}}"#,
                (Some(112), Some(6), Some(100)),
            );
            check(
                r#"{"candidates":[],"usageMetadata":{"promptTokenCount":8,"candidatesTokenCount":20,"thoughtsTokenCount":5,"cachedContentTokenCount":2,"totalTokenCount":33}}"#,
                (Some(8), Some(25), Some(2)),
            );
            check(
                r#"{"usageMetadata":{"promptTokenCount":8,"thoughtsTokenCount":5}}"#,
                (Some(8), Some(5), None),
            );
            check(
                r#"{"done":true,"prompt_eval_count":26,"eval_count":298}"#,
                (Some(26), Some(298), None),
            );
            check(
                r#"{"content":"x","timings":{"cache_n":10,"prompt_n":3,"predicted_n":64}}"#,
                (Some(13), Some(64), Some(10)),
            );
            check(
                r#"{"text":"x","meta_info":{"prompt_tokens":3,"completion_tokens":4,"cached_tokens":1}}"#,
                (Some(3), Some(4), Some(1)),
            );
            check(r#"{"results":[],"usage":{"total_tokens":56}}"#, (Some(56), None, None));
            check(
                "\u{feff} \r\n{\"us\\u0061ge\" : {\"prompt_token\\u0073\" : 12 }}",
                (Some(12), None, None),
            );
            check(r#"{"error":{"message":"no","usage":{"prompt_tokens":1}}}"#, (None, None, None));
        }
    }

    #[test]
    fn usage_is_read_wherever_it_stands() {
        let far = "7,".repeat(50_000);
        let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":6}"#;
        for body in [
            format!(r#"{{{usage},"prompt_token_ids":[{far}0],"metadata":{{"a":"{far}"}}}}"#),
            format!(r#"{{"data":[{far}0],{usage},"prompt_logprobs":[{far}0]}}"#),
        ] {
            check("application/json", &body, (Some(5), Some(6), None));
            // As the event of a Responses stream.
            let event = format!(
                "event: response.completed\ndata: {{\"type\":\"x\",\"response\":{body}}}\n\n"
            );
            check(SSE, &event, (Some(5), Some(6), None));
        }
    }

    #[test]
    fn what_stands_in_a_tool_call_is_the_models_word() {
        let shadow = r#"{"usage":{"prompt_tokens":1,"completion_tokens":1},"eval_count":1,"timings":{"predicted_n":1}}"#;
        let text = serde_json::Value::from(shadow);
        let usage = r#""usage":{"prompt_tokens":50,"completion_tokens":60}"#;
        for call in [
            format!(
                r#""choices":[{{"message":{{"tool_calls":[{{"function":{{"arguments":{text}}}}}]}}}}]"#
            ),
            format!(r#""message":{{"tool_calls":[{{"function":{{"arguments":{shadow}}}}}]}}"#),
            format!(r#""content":[{{"type":"tool_use","input":{shadow}}}]"#),
            format!(
                r#""candidates":[{{"content":{{"parts":[{{"functionCall":{{"args":{shadow}}}}}]}}}}]"#
            ),
            format!(r#""input":{shadow}"#),
        ] {
            for body in [
                format!("{{{usage},{call}}}"),
                format!("{{{call},{usage}}}"),
                format!("[{{{call},{usage}}}]"),
            ] {
                check("application/json", &body, (Some(50), Some(60), None));
                check(SSE, &format!("data: {body}\n\n"), (Some(50), Some(60), None));
                check(LINES, &format!("{body}\n"), (Some(50), Some(60), None));
            }
            check("", &format!("{{{call}}}"), (None, None, None));
        }
    }

    #[test]
    fn a_stream_says_its_counts_at_any_place() {
        let body = concat!(
            "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[],\"usage\":{\"input_tokens\":25,\"cache_read_input_tokens\":5,\"output_tokens\":1}}}\r\n\r\n",
            ": a comment\r\n\r\nevent: content_block_delta\rdata:{\"type\":\"content_block_delta\",\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}\r\r",
            "id: 7\ndata: {\"type\":\"message_delta\",\ndata: \"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\n",
            "data: {\"type\":\"message_stop\"}\n\ndata: [DONE]\n\n",
        );
        for kind in [SSE, "text/plain", ""] {
            check(kind, body, (Some(30), Some(15), Some(5)));
            assert_eq!(read(kind, body).pieces, 0, "all are counted");
        }
        // Gemini's stream without events is one array.
        let list = r#"[{"candidates":[{"content":{"parts":[{"text":"a"}]}}],"usageMetadata":{"promptTokenCount":4}},
            {"candidates":[],"usageMetadata":{"promptTokenCount":4,"candidatesTokenCount":9}}]"#;
        check("application/json", list, (Some(4), Some(9), None));
        let lines = "{\"message\":{\"content\":\"Hi\"}}\n{broken\n{\"done\":true,\"prompt_eval_count\":3,\"eval_count\":200}\n";
        check(LINES, lines, (Some(3), Some(200), None));
    }

    #[test]
    fn content_in_a_list_of_lists_is_content() {
        fuzz(br#"[[{"delta" :"a"}]]"#);
        fuzz(br#"[[[{"text":"a"}],"b"],{"usage":{"prompt_tokens":3}}]"#);
    }

    fn delta(text: &str) -> String {
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    }

    #[test]
    fn what_no_count_covers_is_kept() {
        let uncounted = |body: &str| {
            let reading = read(SSE, body);
            (reading.usage.completion_tokens, reading.pieces, reading.text_bytes)
        };
        let role =
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
        let stream = role.to_owned() + &delta("a").repeat(5);
        assert_eq!(uncounted(&stream), (None, 5, 0));
        assert_eq!(uncounted(&(stream.clone() + "data: [DONE]\n\n")), (None, 5, 0));
        // A piece that is no single token, as Gemini's are.
        let long = "word ".repeat(40);
        assert_eq!(uncounted(&delta(&long)), (None, 0, 200));
        assert_eq!(uncounted(&delta(r"\u4f60\u597d\n")), (None, 1, 0));
        // A running count covers what came before it, and nothing after it.
        let counted = "data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":5}}\n\n";
        assert_eq!(uncounted(&(stream.clone() + counted)), (Some(5), 0, 0));
        assert_eq!(uncounted(&(stream.clone() + counted + &delta("b"))), (Some(5), 1, 0));
        // One that says nothing covers nothing.
        let zero = counted.replace(['3', '5'], "0");
        assert_eq!(uncounted(&(stream.clone() + &zero)), (None, 5, 0));
        // Cut in the middle of an event: what has been said of it counts.
        let cut = stream.clone() + "data: {\"choices\":[{\"delta\":{\"content\":\"aaa";
        assert_eq!(uncounted(&cut), (None, 6, 0));
        let unknown = "data: {\"token\":1}\n\n".repeat(7);
        assert_eq!(uncounted(&unknown), (None, 7, 0));
        // A number that is cut off is none.
        let cut =
            r#"{"choices":[{"text":"abc"}],"usage":{"prompt_tokens":7,"completion_tokens":12"#;
        let reading = read("", cut);
        assert_eq!((reading.usage.prompt_tokens, reading.usage.completion_tokens), (Some(7), None));
        // One document without a count: its text.
        assert_eq!(
            read("", r#"{"choices":[{"message":{"content":"Hello you"}}]}"#),
            Reading { text_bytes: 9, is_readable: true, ..Reading::default() }
        );
    }

    #[test]
    fn what_is_no_text_of_ours_is_told_apart() {
        for body in ["\x1f\u{8}...", "plain", "RIFF\0\0", "error: no events here", ""] {
            assert_eq!(read("", body), Reading::default(), "{body}");
        }
        assert!(!read(SSE, "{\"usage\":{\"prompt_tokens\":1}}").is_readable);
        let mut meter = Meter::new();
        meter.push(b"\x89PNG");
        assert!(meter.is_blind());
        meter.reset(b"");
        assert!(!meter.is_blind());
    }

    #[test]
    fn nonsense_counts_are_none() {
        for number in ["-5", "1e3", "18446744073709551616", "null", "\"7\"", "{}", "[7]", "true"] {
            let body = format!(r#"{{"usage":{{"prompt_tokens":{number},"completion_tokens":2}}}}"#);
            check("", &body, (None, Some(2), None));
        }
        check("", r#"{"usage":{"prompt_tokens":12.0}}"#, (Some(12), None, None));
    }

    fn json() -> impl Strategy<Value = String> {
        let key = prop::sample::select(vec![
            "usage",
            "message",
            "response",
            "timings",
            "prompt_tokens",
            "completion_tokens",
            "cached_tokens",
            "eval_count",
            "content",
            "tool_calls",
            "functionCall",
            "arguments",
            "usageMetadata",
            "promptTokenCount",
            "thoughtsTokenCount",
            "total_tokens",
            "prompt_n",
            "cache_n",
            "predicted_n",
            "delta",
            "x",
            "prompt_eval_count",
            "us\\u0061ge",
            "input",
        ]);
        let leaf = prop_oneof![
            (0u64..500).prop_map(|n| n.to_string()),
            Just("null".to_owned()),
            Just("-1".to_owned()),
            Just("[]".to_owned()),
            "[a-z\\{\\}:,]{0,5}".prop_map(|text| format!("{text:?}")),
            Just(r#""\"usage\":{\"prompt_tokens\":9}""#.to_owned()),
        ];
        leaf.prop_recursive(5, 60, 5, move |inner| {
            prop_oneof![
                prop::collection::vec((key.clone(), inner.clone()), 0..5).prop_map(|pairs| {
                    let pairs: Vec<_> =
                        pairs.iter().map(|(key, value)| format!("\"{key}\" :{value}")).collect();
                    format!("{{{}}}", pairs.join(", "))
                }),
                prop::collection::vec(inner, 0..3)
                    .prop_map(|items| format!("[{}]", items.join(","))),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_tree(document in json(), size in 1..9usize) {
            let (usage, has_content) = oracle::read(document.as_bytes()).expect("JSON");
            let mut meter = Meter::new();
            document.as_bytes().chunks(size).for_each(|piece| meter.push(piece));
            prop_assert_eq!(meter.finish().usage, usage);
            prop_assert_eq!(meter.tally.has_content, has_content);
            fuzz(document.as_bytes());
            // The same as events, and as lines.
            for (kind, body) in [(SSE, format!("data: {document}\n\n")), (LINES, document + "\n")] {
                prop_assert_eq!(run(kind, body.as_bytes(), size).usage, usage);
            }
        }

        #[test]
        fn no_input_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }

        #[test]
        fn no_input_of_usage_words_panics(
            data in r#"(data: |\n|\r|"usage"|:|\{|\}|\[|\]|"content"|"text"|"|\\|"prompt_tokens"|"eval_count"|[0-9]{1,4}| |,|"timings"|\.|e){0,60}"#,
        ) {
            fuzz(data.as_bytes());
        }
    }
}
