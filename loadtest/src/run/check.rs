//! What an answer must be: every byte accounted for, every event in its place.
//!
//! The one idea: the text is a function of a seed that the client chose and the
//! server repeats, so the client knows each token before it comes. Answers of real
//! servers carry no seed; of those the order and the end are checked.
//!
//! Fed as bytes arrive, it also says how many pieces of text came, which is what
//! first-token and inter-token times are made of.

use serde_json::Value;

use super::wire::Head;
use crate::text;

/// What is wrong with an answer whose framing was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bad {
    /// Not JSON where JSON was due.
    Json,
    /// A line that is no part of an event, or an event of no known shape.
    Event,
    /// Events in an order that cannot be.
    Order,
    /// Events that belong to another answer, or an answer to another request.
    Foreign,
    /// Text or bytes other than those of the seed.
    Text,
    /// Usage that does not agree with the tokens that came.
    Usage,
    /// No end mark, or half an event at the end.
    EndMissing,
    /// Something behind the end mark.
    AfterEnd,
    /// A plain answer where a stream was asked for.
    NotStreamed,
}

/// Which API's rules apply; told by the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Chat,
    Completions,
    Responses,
    Messages,
    Ollama,
    Gemini,
    Echo,
    Other,
}

/// How the body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Events,
    Lines,
    Json,
    /// The pattern of a seed.
    Pattern(u64),
    /// The request's own body.
    Echo,
    /// Nothing is known of it.
    Opaque,
}

/// What the client knows of an answer before it comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected<'a> {
    pub(super) path: &'a str,
    pub(super) stream: bool,
    /// The seed in the request, when the generator put one there.
    pub(super) seed: Option<u64>,
    /// The body that was sent.
    pub(super) sent: &'a [u8],
}

/// Checks one answer.
#[derive(Debug)]
pub(super) struct Checker<'a> {
    api: Api,
    form: Form,
    sent: &'a [u8],
    seed: Option<u64>,
    held: Vec<u8>,
    data: Vec<u8>,
    at: u64,
    id: Option<String>,
    content: String,
    pieces: u32,
    number: Option<u64>,
    finished: bool,
    done: bool,
    usage: Option<u64>,
    events: u64,
}

impl<'a> Checker<'a> {
    /// A checker for the body behind `head`.
    ///
    /// Errors: `Foreign`, `NotStreamed` and `Json`, which the head alone shows.
    pub(super) fn new(expected: Expected<'a>, head: &Head) -> Result<Checker<'a>, Bad> {
        let api = api(expected.path);
        let form = match head.seed {
            _ if head.status != 200 => Form::Opaque,
            _ if api == Api::Echo => Form::Echo,
            _ if head.events => Form::Events,
            _ if head.lines => Form::Lines,
            _ if head.json && expected.stream && api != Api::Other => return Err(Bad::NotStreamed),
            _ if head.json => Form::Json,
            Some(seed) => Form::Pattern(seed),
            // No type and no seed is no answer of an API: bytes that slipped in.
            None if api != Api::Other => return Err(Bad::Json),
            None => Form::Opaque,
        };
        let told = matches!(form, Form::Events | Form::Lines | Form::Json);
        let pair = expected.seed.zip(head.seed.filter(|_| told));
        if pair.is_some_and(|(sent, got)| sent != got) {
            return Err(Bad::Foreign);
        }
        Ok(Checker {
            api,
            form,
            sent: expected.sent,
            seed: head.seed,
            held: Vec::new(),
            data: Vec::new(),
            at: 0,
            id: None,
            content: String::new(),
            pieces: 0,
            number: None,
            finished: false,
            done: false,
            usage: None,
            events: 0,
        })
    }

    /// Events so far.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Takes what arrived; returns how many pieces of text it brought.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<u32, Bad> {
        let before = self.pieces;
        match self.form {
            Form::Opaque => {}
            Form::Json => self.held.extend_from_slice(bytes),
            Form::Echo => {
                let from = self.at as usize;
                let want = self.sent.get(from..from.saturating_add(bytes.len()));
                if want != Some(bytes) {
                    return Err(Bad::Text);
                }
            }
            Form::Pattern(seed) => {
                self.held.clear();
                text::push_pattern(seed, self.at, bytes.len(), &mut self.held);
                if self.held != bytes {
                    return Err(Bad::Text);
                }
                self.held.clear();
            }
            Form::Events | Form::Lines => {
                self.held.extend_from_slice(bytes);
                self.take_lines()?;
            }
        }
        self.at += bytes.len() as u64;
        Ok(self.pieces - before)
    }

    /// The verdict on the whole, when the framing has ended; with the tokens of the
    /// answer, as its usage has them or else as pieces came.
    pub(super) fn finish(mut self) -> Result<Option<u64>, Bad> {
        match self.form {
            Form::Opaque | Form::Pattern(_) => Ok(None),
            Form::Echo if self.at == self.sent.len() as u64 => Ok(None),
            Form::Echo => Err(Bad::EndMissing),
            Form::Json => {
                let json = serde_json::from_slice(&self.held).map_err(|_| Bad::Json)?;
                self.plain(&json)?;
                Ok(self.usage)
            }
            Form::Events | Form::Lines => {
                let known = self.api != Api::Other;
                if !self.held.is_empty() || !self.data.is_empty() || (known && !self.done) {
                    return Err(Bad::EndMissing);
                }
                self.agree(self.pieces)?;
                Ok(self.usage.or(Some(u64::from(self.pieces))))
            }
        }
    }

    fn take_lines(&mut self) -> Result<(), Bad> {
        let held = std::mem::take(&mut self.held);
        let mut rest = held.as_slice();
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            match self.form {
                Form::Lines if line.is_empty() => {}
                Form::Lines => self.event(line)?,
                _ => self.line(line)?,
            }
        }
        self.held = rest.to_vec();
        Ok(())
    }

    /// One line of a stream of events (the WHATWG's "server-sent events").
    fn line(&mut self, line: &[u8]) -> Result<(), Bad> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            return if data.is_empty() { Ok(()) } else { self.event(&data) };
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            if !self.data.is_empty() {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(data.strip_prefix(b" ").unwrap_or(data));
            return Ok(());
        }
        let known = [&b":"[..], b"event:", b"id:", b"retry:"];
        if known.iter().any(|name| line.starts_with(name)) { Ok(()) } else { Err(Bad::Event) }
    }

    fn event(&mut self, data: &[u8]) -> Result<(), Bad> {
        self.events += 1;
        if self.done {
            return Err(Bad::AfterEnd);
        }
        if data == b"[DONE]" {
            self.done = true;
            return if self.finished { Ok(()) } else { Err(Bad::Order) };
        }
        let json: Value = serde_json::from_slice(data).map_err(|_| Bad::Json)?;
        match self.api {
            Api::Chat | Api::Completions => self.openai(&json),
            Api::Responses => self.responses(&json),
            Api::Messages => self.messages(&json),
            Api::Ollama => self.ollama(&json),
            Api::Gemini => self.gemini(&json),
            Api::Echo | Api::Other => Ok(()),
        }
    }

    /// Adds a piece of text; nothing may come after the finish.
    fn add(&mut self, piece: Option<&str>) -> Result<(), Bad> {
        let Some(piece) = piece.filter(|piece| !piece.is_empty()) else { return Ok(()) };
        if self.finished {
            return Err(Bad::Order);
        }
        self.pieces += 1;
        self.content.push_str(piece);
        Ok(())
    }

    fn openai(&mut self, json: &Value) -> Result<(), Bad> {
        let id = json["id"].as_str().ok_or(Bad::Event)?;
        match &self.id {
            Some(first) if first != id => return Err(Bad::Foreign),
            Some(_) => {}
            None => self.id = Some(id.to_owned()),
        }
        let choice = &json["choices"][0];
        if self.api == Api::Chat && self.events == 1 && choice["delta"]["role"].is_null() {
            return Err(Bad::Order);
        }
        self.add(choice["delta"]["content"].as_str().or(choice["text"].as_str()))?;
        if choice["finish_reason"].is_string() {
            self.finished = true;
        }
        self.usage = json["usage"]["completion_tokens"].as_u64().or(self.usage);
        Ok(())
    }

    fn responses(&mut self, json: &Value) -> Result<(), Bad> {
        let number = json["sequence_number"].as_u64();
        if number.is_some() && number <= self.number {
            return Err(Bad::Order);
        }
        self.number = number.or(self.number);
        match json["type"].as_str().ok_or(Bad::Event)? {
            "response.output_text.delta" => self.add(json["delta"].as_str())?,
            "response.completed" => {
                self.usage = json["response"]["usage"]["output_tokens"].as_u64();
                self.done = true;
            }
            _ => {}
        }
        Ok(())
    }

    fn messages(&mut self, json: &Value) -> Result<(), Bad> {
        let kind = json["type"].as_str().ok_or(Bad::Event)?;
        if (self.events == 1) != (kind == "message_start") {
            return Err(Bad::Order);
        }
        match kind {
            "content_block_delta" => self.add(json["delta"]["text"].as_str())?,
            "message_delta" => {
                self.finished = true;
                self.usage = json["usage"]["output_tokens"].as_u64();
            }
            "message_stop" if !self.finished => return Err(Bad::Order),
            "message_stop" => self.done = true,
            _ => {}
        }
        Ok(())
    }

    fn ollama(&mut self, json: &Value) -> Result<(), Bad> {
        self.add(json["message"]["content"].as_str().or(json["response"].as_str()))?;
        if json["done"] == Value::Bool(true) {
            self.usage = json["eval_count"].as_u64();
            self.done = true;
        }
        Ok(())
    }

    fn gemini(&mut self, json: &Value) -> Result<(), Bad> {
        let candidate = &json["candidates"][0];
        self.add(candidate["content"]["parts"][0]["text"].as_str())?;
        if candidate["finishReason"].is_string() {
            self.usage = json["usageMetadata"]["candidatesTokenCount"].as_u64();
            self.done = true;
        }
        Ok(())
    }

    /// An answer in one piece.
    fn plain(&mut self, json: &Value) -> Result<(), Bad> {
        if json["object"] == "mock.pad" {
            return Ok(());
        }
        let usage = &json["usage"];
        let (content, tokens) = match self.api {
            Api::Chat => (&json["choices"][0]["message"]["content"], &usage["completion_tokens"]),
            Api::Completions => (&json["choices"][0]["text"], &usage["completion_tokens"]),
            Api::Responses => (&json["output"][0]["content"][0]["text"], &usage["output_tokens"]),
            Api::Messages => (&json["content"][0]["text"], &usage["output_tokens"]),
            Api::Ollama if json["message"].is_object() => {
                (&json["message"]["content"], &json["eval_count"])
            }
            Api::Ollama => (&json["response"], &json["eval_count"]),
            Api::Gemini => (
                &json["candidates"][0]["content"]["parts"][0]["text"],
                &json["usageMetadata"]["candidatesTokenCount"],
            ),
            Api::Echo | Api::Other => return Ok(()),
        };
        self.usage = tokens.as_u64();
        if self.seed.is_none() {
            // A real server: content may be null where it calls a tool.
            return Ok(());
        }
        self.content = content.as_str().ok_or(Bad::Text)?.to_owned();
        let tokens = self.usage.ok_or(Bad::Usage)?;
        self.agree(u32::try_from(tokens).map_err(|_| Bad::Usage)?)
    }

    /// Whether the text is that of the seed, and the usage that of the text.
    fn agree(&self, tokens: u32) -> Result<(), Bad> {
        let Some(seed) = self.seed.filter(|_| self.api != Api::Other) else { return Ok(()) };
        if self.content != text::text(seed, tokens) {
            return Err(Bad::Text);
        }
        let usage = self.usage.unwrap_or(u64::from(tokens));
        if usage == u64::from(tokens) { Ok(()) } else { Err(Bad::Usage) }
    }
}

fn api(path: &str) -> Api {
    let path = path.split('?').next().unwrap_or_default();
    match path {
        _ if path.ends_with("/chat/completions") => Api::Chat,
        _ if path.ends_with("/completions") => Api::Completions,
        _ if path.ends_with("/responses") => Api::Responses,
        _ if path.ends_with("/messages") => Api::Messages,
        _ if path.ends_with("/api/chat") || path.ends_with("/api/generate") => Api::Ollama,
        _ if path.to_ascii_lowercase().ends_with("generatecontent") => Api::Gemini,
        _ if path.ends_with("/echo") => Api::Echo,
        _ => Api::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: u64 = 9;

    fn head(kind: &str) -> Head {
        let wire = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nx-mock-seed: {SEED}\r\ncontent-length: 0\r\n\r\n"
        );
        Head::parse(wire.as_bytes()).unwrap().unwrap().0
    }

    /// The verdict on a streamed chat answer, fed in two parts.
    fn check(events: &[String], cut: usize) -> Result<(), Bad> {
        let path = "/v1/chat/completions";
        let expected = Expected { path, stream: true, seed: Some(SEED), sent: b"" };
        let mut checker = Checker::new(expected, &head("text/event-stream"))?;
        let wire = events.concat().into_bytes();
        let (one, two) = wire.split_at(cut.min(wire.len()));
        checker.push(one)?;
        checker.push(two)?;
        checker.finish().map(|tokens| assert_eq!(tokens, Some(12)))
    }

    fn chunk(id: &str, delta: &str, finish: &str) -> String {
        format!(
            "data: {{\"id\":\"{id}\",\"choices\":[{{\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
        )
    }

    fn good() -> Vec<String> {
        let mut events = vec![chunk("a", "{\"role\":\"assistant\",\"content\":\"\"}", "null")];
        for index in 0..12 {
            let mut word = String::new();
            text::push_token(SEED, index, &mut word);
            let word = Value::from(word);
            events.push(chunk("a", &format!("{{\"content\":{word}}}"), "null"));
        }
        events.push(chunk("a", "{}", "\"stop\""));
        let usage = "{\"id\":\"a\",\"choices\":[],\"usage\":{\"completion_tokens\":12}}";
        events.push(format!("data: {usage}\n\n"));
        events.push("data: [DONE]\n\n".to_owned());
        events
    }

    #[test]
    fn passes_a_right_stream_however_it_is_split() {
        for cut in 0..good().concat().len() {
            assert_eq!(check(&good(), cut), Ok(()), "cut at {cut}");
        }
    }

    #[test]
    fn finds_every_single_loss_doubling_and_swap() {
        let count = good().len();
        for at in 0..count {
            let mut lost = good();
            lost.remove(at);
            // The usage event alone is one that a stream can do without.
            assert_eq!(check(&lost, 0).is_ok(), at == count - 2, "lost event {at}");
            if at > 0 && at < count - 3 {
                let mut doubled = good();
                doubled.insert(at, doubled[at].clone());
                assert!(check(&doubled, 0).is_err(), "doubled event {at}");
            }
            let mut swapped = good();
            swapped.swap(at, (at + 1) % count);
            let same = swapped == good();
            let usage_first = at == count - 3;
            assert_eq!(check(&swapped, 0).is_ok(), same || usage_first, "swapped at {at}");
        }
    }

    #[test]
    fn names_what_is_wrong() {
        let change = |at: usize, event: &str| {
            let mut events = good();
            events[at] = event.to_owned();
            check(&events, 0)
        };
        assert_eq!(change(3, "data: {\n\n"), Err(Bad::Json));
        assert_eq!(change(3, "nonsense\n\n"), Err(Bad::Event));
        assert_eq!(change(3, &chunk("b", "{}", "null")), Err(Bad::Foreign));
        assert_eq!(change(3, &chunk("a", "{\"content\":\"x\"}", "null")), Err(Bad::Text));
        assert_eq!(change(15, "data: [DONE]\n\ndata: {}\n\n"), Err(Bad::AfterEnd));
        assert_eq!(change(15, "data: [DONE]\n"), Err(Bad::EndMissing));
        let usage = "data: {\"id\":\"a\",\"usage\":{\"completion_tokens\":13}}\n\n";
        assert_eq!(change(14, usage), Err(Bad::Usage));
    }

    #[test]
    fn the_head_alone_shows_a_foreign_or_plain_answer() {
        let path = "/v1/chat/completions";
        let foreign = Expected { path, stream: true, seed: Some(8), sent: b"" };
        let got = Checker::new(foreign, &head("text/event-stream")).err();
        assert_eq!(got, Some(Bad::Foreign));
        let plain = Expected { path, stream: true, seed: None, sent: b"" };
        assert_eq!(Checker::new(plain, &head("application/json")).err(), Some(Bad::NotStreamed));
    }
}
