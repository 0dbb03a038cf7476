//! The shapes of completions, plain and streamed, in each API's own words.
//!
//! The one idea: a stream is opening events, one event a token, closing events;
//! a dialect says what each of the three looks like, and nothing else about it
//! matters to the rest. Strings are put together by hand, in the key order that
//! real servers use; only what varies freely is escaped.

use std::fmt::Write;

use crate::text;

/// Which API a request came in by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// OpenAI `/v1/chat/completions`.
    Chat,
    /// OpenAI `/v1/completions`.
    Completions,
    /// OpenAI `/v1/responses`.
    Responses,
    /// Anthropic `/v1/messages`.
    Messages,
    /// Ollama `/api/chat`: lines of JSON.
    OllamaChat,
    /// Ollama `/api/generate`: lines of JSON.
    OllamaGenerate,
    /// Gemini `:generateContent` and `:streamGenerateContent`.
    Gemini,
}

impl Dialect {
    /// The content type of a streamed answer.
    pub(super) fn stream_type(self) -> &'static str {
        match self {
            Dialect::OllamaChat | Dialect::OllamaGenerate => "application/x-ndjson",
            _ => "text/event-stream; charset=utf-8",
        }
    }
}

/// One completion, decided but not yet written.
#[derive(Clone, Debug)]
pub(super) struct Completion {
    pub(super) dialect: Dialect,
    pub(super) model: String,
    pub(super) seed: u64,
    pub(super) tokens: u32,
    /// The text in place of the seed's; a token is a word of it.
    pub(super) says: Option<String>,
    pub(super) prompt_tokens: u64,
    pub(super) include_usage: bool,
    /// Whether the request's limit, not the text's own end, decided the length.
    pub(super) cut_short: bool,
    /// Unix seconds.
    pub(super) created: u64,
}

/// When an event is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// With the first token.
    First,
    /// One interval after the token before it.
    Next,
    /// Right behind the event before it.
    Now,
}

impl Completion {
    /// The answer in one piece.
    pub(super) fn plain(&self) -> String {
        let content = quote(&self.text());
        let (head, usage, finish) = (self.head(""), self.usage(), quote(self.finish()));
        let (model, tokens) = (quote(&self.model), self.tokens);
        match self.dialect {
            Dialect::Chat => format!(
                "{{{head},\"choices\":[{{\"index\":0,\"message\":{{\"role\":\"assistant\",\"content\":{content}}},\
                 \"logprobs\":null,\"finish_reason\":{finish}}}],{usage}}}"
            ),
            Dialect::Completions => format!(
                "{{{head},\"choices\":[{{\"index\":0,\"text\":{content},\"logprobs\":null,\
                 \"finish_reason\":{finish}}}],{usage}}}"
            ),
            Dialect::Responses => self.response_object("completed", &content),
            Dialect::Messages => format!(
                "{{\"id\":\"msg_{:016x}\",\"type\":\"message\",\"role\":\"assistant\",\"model\":{model},\
                 \"content\":[{{\"type\":\"text\",\"text\":{content}}}],\"stop_reason\":{finish},\
                 \"stop_sequence\":null,{usage}}}",
                self.seed
            ),
            Dialect::OllamaChat | Dialect::OllamaGenerate => {
                format!("{}\n", self.ollama(&content, true))
            }
            Dialect::Gemini => self.gemini(&content, Some(tokens)),
        }
    }

    /// The whole text.
    fn text(&self) -> String {
        let mut out = String::new();
        (0..self.tokens).for_each(|index| self.push_token(index, &mut out));
        out
    }

    /// Appends token `index` (0-based); every one but the first begins with a space.
    fn push_token(&self, index: u32, out: &mut String) {
        let Some(says) = &self.says else { return text::push_token(self.seed, index, out) };
        if let Some(word) = says.split(' ').nth(index as usize) {
            out.push_str(if index > 0 { " " } else { "" });
            out.push_str(word);
        }
    }

    /// Opening event `index`, if there is one.
    fn opening(&self, index: usize) -> Option<String> {
        let created = || {
            let object = self.response_object("in_progress", "\"\"");
            format!("{{\"type\":\"response.created\",\"sequence_number\":0,\"response\":{object}}}")
        };
        let started = || {
            format!(
                "{{\"type\":\"message_start\",\"message\":{{\"id\":\"msg_{:016x}\",\"type\":\"message\",\
                 \"role\":\"assistant\",\"model\":{},\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\
                 \"usage\":{{\"input_tokens\":{},\"output_tokens\":1}}}}}}",
                self.seed,
                quote(&self.model),
                self.prompt_tokens
            )
        };
        match (self.dialect, index) {
            (Dialect::Chat, 0) => {
                Some(self.chat_chunk("{\"role\":\"assistant\",\"content\":\"\"}", "null"))
            }
            (Dialect::Responses, 0) => Some(named("response.created", &created())),
            (Dialect::Messages, 0) => Some(named("message_start", &started())),
            (Dialect::Messages, 1) => Some(named(
                "content_block_start",
                "{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}",
            )),
            (Dialect::Messages, 2) => Some(named("ping", "{\"type\": \"ping\"}")),
            _ => None,
        }
    }

    /// The event of token `index`.
    fn token(&self, index: u32) -> String {
        let mut word = String::new();
        self.push_token(index, &mut word);
        let word = quote(&word);
        match self.dialect {
            Dialect::Chat => self.chat_chunk(&format!("{{\"content\":{word}}}"), "null"),
            Dialect::Completions => self.completion_chunk(&word, "null"),
            Dialect::Responses => named(
                "response.output_text.delta",
                &format!(
                    "{{\"type\":\"response.output_text.delta\",\"sequence_number\":{},\"item_id\":\"msg_0\",\
                     \"output_index\":0,\"content_index\":0,\"delta\":{word}}}",
                    u64::from(index) + 1
                ),
            ),
            Dialect::Messages => named(
                "content_block_delta",
                &format!(
                    "{{\"type\":\"content_block_delta\",\"index\":0,\
                     \"delta\":{{\"type\":\"text_delta\",\"text\":{word}}}}}"
                ),
            ),
            Dialect::OllamaChat | Dialect::OllamaGenerate => {
                format!("{}\n", self.ollama(&word, false))
            }
            Dialect::Gemini => {
                let last = (index + 1 >= self.tokens).then_some(self.tokens);
                format!("data: {}\r\n\r\n", self.gemini(&word, last))
            }
        }
    }

    /// Closing event `index`, if there is one.
    fn closing(&self, index: usize) -> Option<String> {
        let finish = quote(self.finish());
        match (self.dialect, index) {
            (Dialect::Chat, 0) => Some(self.chat_chunk("{}", &finish)),
            (Dialect::Completions, 0) => Some(self.completion_chunk("\"\"", &finish)),
            (Dialect::Chat | Dialect::Completions, 1) if self.include_usage => {
                let head = self.head(".chunk");
                Some(data(&format!("{{{head},\"choices\":[],{}}}", self.usage())))
            }
            (Dialect::Chat | Dialect::Completions, 1) => Some(data("[DONE]")),
            (Dialect::Chat | Dialect::Completions, 2) if self.include_usage => Some(data("[DONE]")),
            (Dialect::Responses, 0) => {
                let content = quote(&self.text());
                let object = self.response_object("completed", &content);
                let number = u64::from(self.tokens) + 1;
                Some(named(
                    "response.completed",
                    &format!(
                        "{{\"type\":\"response.completed\",\"sequence_number\":{number},\"response\":{object}}}"
                    ),
                ))
            }
            (Dialect::Messages, 0) => {
                Some(named("content_block_stop", "{\"type\":\"content_block_stop\",\"index\":0}"))
            }
            (Dialect::Messages, 1) => Some(named(
                "message_delta",
                &format!(
                    "{{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":{finish},\"stop_sequence\":null}},\
                     \"usage\":{{\"output_tokens\":{}}}}}",
                    self.tokens
                ),
            )),
            (Dialect::Messages, 2) => Some(named("message_stop", "{\"type\":\"message_stop\"}")),
            (Dialect::OllamaChat | Dialect::OllamaGenerate, 0) => {
                Some(format!("{}\n", self.ollama("\"\"", true)))
            }
            _ => None,
        }
    }

    /// The keys with which an OpenAI object begins; `suffix` is `.chunk` in streams.
    fn head(&self, suffix: &str) -> String {
        let (prefix, object) = match self.dialect {
            Dialect::Completions => ("cmpl", "text_completion".to_owned()),
            _ => ("chatcmpl", format!("chat.completion{suffix}")),
        };
        format!(
            "\"id\":\"{prefix}-{:016x}\",\"object\":\"{object}\",\"created\":{},\"model\":{}",
            self.seed,
            self.created,
            quote(&self.model)
        )
    }

    fn usage(&self) -> String {
        let (prompt, tokens) = (self.prompt_tokens, u64::from(self.tokens));
        match self.dialect {
            Dialect::Messages | Dialect::Responses => format!(
                "\"usage\":{{\"input_tokens\":{prompt},\"output_tokens\":{tokens},\"total_tokens\":{}}}",
                prompt + tokens
            ),
            _ => format!(
                "\"usage\":{{\"prompt_tokens\":{prompt},\"total_tokens\":{},\"completion_tokens\":{tokens},\
                 \"prompt_tokens_details\":null}}",
                prompt + tokens
            ),
        }
    }

    fn finish(&self) -> &'static str {
        match (self.dialect, self.cut_short) {
            (Dialect::Messages, true) => "max_tokens",
            (Dialect::Messages, false) => "end_turn",
            (Dialect::Gemini, true) => "MAX_TOKENS",
            (Dialect::Gemini, false) => "STOP",
            (_, true) => "length",
            (_, false) => "stop",
        }
    }

    fn chat_chunk(&self, delta: &str, finish: &str) -> String {
        let head = self.head(".chunk");
        data(&format!(
            "{{{head},\"choices\":[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]}}"
        ))
    }

    fn completion_chunk(&self, word: &str, finish: &str) -> String {
        let head = self.head("");
        data(&format!(
            "{{{head},\"choices\":[{{\"index\":0,\"text\":{word},\"logprobs\":null,\"finish_reason\":{finish}}}]}}"
        ))
    }

    fn response_object(&self, status: &str, content: &str) -> String {
        let done = status == "completed";
        let output = match done {
            true => format!(
                "[{{\"type\":\"message\",\"id\":\"msg_0\",\"status\":\"completed\",\"role\":\"assistant\",\
                 \"content\":[{{\"type\":\"output_text\",\"text\":{content},\"annotations\":[]}}]}}]"
            ),
            false => "[]".to_owned(),
        };
        let usage = if done { self.usage() } else { "\"usage\":null".to_owned() };
        format!(
            "{{\"id\":\"resp_{:016x}\",\"object\":\"response\",\"created_at\":{},\"status\":\"{status}\",\
             \"model\":{},\"output\":{output},{usage}}}",
            self.seed,
            self.created,
            quote(&self.model)
        )
    }

    fn ollama(&self, content: &str, done: bool) -> String {
        let model = quote(&self.model);
        let mut out = format!("{{\"model\":{model},\"created_at\":\"2026-01-01T00:00:00Z\",");
        let _ = match self.dialect {
            Dialect::OllamaChat => {
                write!(out, "\"message\":{{\"role\":\"assistant\",\"content\":{content}}},")
            }
            _ => write!(out, "\"response\":{content},"),
        };
        let _ = match done {
            false => write!(out, "\"done\":false}}"),
            true => write!(
                out,
                "\"done_reason\":\"{}\",\"done\":true,\"total_duration\":1000000,\"load_duration\":1000,\
                 \"prompt_eval_count\":{},\"prompt_eval_duration\":1000,\"eval_count\":{},\"eval_duration\":1000}}",
                self.finish(),
                self.prompt_tokens,
                self.tokens
            ),
        };
        out
    }

    /// One Gemini object; `tokens` is given in the last one.
    fn gemini(&self, content: &str, tokens: Option<u32>) -> String {
        let (finish, usage) = match tokens {
            None => (String::new(), String::new()),
            Some(tokens) => (
                format!(",\"finishReason\":\"{}\"", self.finish()),
                format!(
                    "\"usageMetadata\":{{\"promptTokenCount\":{},\"candidatesTokenCount\":{tokens},\
                     \"totalTokenCount\":{}}},",
                    self.prompt_tokens,
                    self.prompt_tokens + u64::from(tokens)
                ),
            ),
        };
        format!(
            "{{\"candidates\":[{{\"content\":{{\"parts\":[{{\"text\":{content}}}],\"role\":\"model\"}}\
             {finish},\"index\":0}}],{usage}\"modelVersion\":{},\"responseId\":\"{:016x}\"}}",
            quote(&self.model),
            self.seed
        )
    }
}

/// A completion being streamed.
#[derive(Debug)]
pub(super) struct Stream {
    completion: Completion,
    stage: Stage,
}

/// ```text
///  Opening(0..) -> Token(0..tokens) -> Closing(0..) -> end
/// ```
#[derive(Debug)]
enum Stage {
    Opening(usize),
    Token(u32),
    Closing(usize),
}

impl Stream {
    /// A stream before its first event.
    pub(super) fn new(completion: Completion) -> Stream {
        Stream { completion, stage: Stage::Opening(0) }
    }

    /// Appends the next event to `out` and tells when it is due; `None` at the end.
    pub(super) fn next(&mut self, out: &mut Vec<u8>) -> Option<Pace> {
        loop {
            match self.stage {
                Stage::Opening(index) => match self.completion.opening(index) {
                    Some(event) => {
                        out.extend_from_slice(event.as_bytes());
                        self.stage = Stage::Opening(index + 1);
                        return Some(if index == 0 { Pace::First } else { Pace::Now });
                    }
                    None => self.stage = Stage::Token(0),
                },
                Stage::Token(index) if index < self.completion.tokens => {
                    out.extend_from_slice(self.completion.token(index).as_bytes());
                    self.stage = Stage::Token(index + 1);
                    let opened = self.completion.opening(0).is_some();
                    return Some(match index {
                        0 if opened => Pace::Now,
                        0 => Pace::First,
                        _ => Pace::Next,
                    });
                }
                Stage::Token(_) => self.stage = Stage::Closing(0),
                Stage::Closing(index) => {
                    out.extend_from_slice(self.completion.closing(index)?.as_bytes());
                    self.stage = Stage::Closing(index + 1);
                    return Some(Pace::Now);
                }
            }
        }
    }
}

/// `text` as a JSON string.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn data(json: &str) -> String {
    format!("data: {json}\n\n")
}

fn named(event: &str, json: &str) -> String {
    format!("event: {event}\ndata: {json}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(dialect: Dialect) -> Completion {
        Completion {
            dialect,
            model: "m\"1".to_owned(),
            seed: 5,
            tokens: 64,
            says: None,
            prompt_tokens: 3,
            include_usage: true,
            cut_short: false,
            created: 1,
        }
    }

    const ALL: [Dialect; 7] = [
        Dialect::Chat,
        Dialect::Completions,
        Dialect::Responses,
        Dialect::Messages,
        Dialect::OllamaChat,
        Dialect::OllamaGenerate,
        Dialect::Gemini,
    ];

    #[test]
    fn every_plain_answer_is_json() {
        for dialect in ALL {
            let plain = completion(dialect).plain();
            serde_json::from_str::<serde_json::Value>(&plain).expect(&plain);
        }
    }

    #[test]
    fn says_what_it_is_told_word_by_word() {
        let says = Some("This is gpu0.".to_owned());
        let told = Completion { says, tokens: 3, ..completion(Dialect::Chat) };
        assert!(told.plain().contains("\"content\":\"This is gpu0.\""));
        assert!(told.token(0).contains("\"content\":\"This\""));
        assert!(told.token(2).contains("\"content\":\" gpu0.\""));
        let short = Completion { tokens: 2, ..told };
        assert_eq!(short.text(), "This is");
    }

    #[test]
    fn every_event_is_json_or_done() {
        for dialect in ALL {
            let mut stream = Stream::new(completion(dialect));
            let (mut event, mut events, mut last) = (Vec::new(), 0, String::new());
            while stream.next(&mut event).is_some() {
                let text = String::from_utf8(std::mem::take(&mut event)).unwrap();
                let json = text.trim_end();
                // A line starts outside of strings only: their line ends are escaped.
                let json = json.lines().last().unwrap();
                let json = json.strip_prefix("data: ").unwrap_or(json);
                assert!(
                    json == "[DONE]" || serde_json::from_str::<serde_json::Value>(json).is_ok()
                );
                (events, last) = (events + 1, text);
            }
            assert!(events >= 64, "{dialect:?}: {events}");
            assert_eq!(dialect == Dialect::Chat, last == "data: [DONE]\n\n" && events == 68);
        }
    }
}
