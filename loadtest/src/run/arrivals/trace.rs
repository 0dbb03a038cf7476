//! Recorded traffic: one JSON object a line, as Mooncake publishes it.
//!
//! `{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}`
//!
//! The one idea: lengths and shared prefixes are what makes a server slow or fast,
//! the words are not. `timestamp` is in milliseconds; each of `hash_ids` names a
//! block of 512 tokens of the prompt, and two prompts that begin with the same ids
//! begin with the same text, so that a prefix cache behaves as it did.
//!
//! Source: Qin et al., "Mooncake: A KVCache-centric Disaggregated Architecture for
//! LLM Serving", FAST 2025, and the trace files published with it. A bad line is an
//! error with its number; nothing is skipped but empty lines.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;

/// Tokens that one hash id stands for.
pub(crate) const BLOCK_TOKENS: u32 = 512;
/// Longest prompt and completion that a line may ask for.
const TOKENS_MAX: u64 = 4_000_000;

/// A recorded request.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceLine {
    /// Milliseconds since the first line.
    pub at_ms: f64,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Tokens of the completion, at least 1.
    pub output_tokens: u32,
    /// Ids of the prompt's blocks of 512 tokens, from its beginning; may be empty.
    pub blocks: Arc<[u64]>,
}

/// A recorded traffic; times never decrease, and there is at least one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    lines: Vec<TraceLine>,
}

/// A line that is not one of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceFault {
    /// Counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for TraceFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "line {}: {}", self.line, self.what)
    }
}

impl Trace {
    /// Reads the lines of a trace file.
    ///
    /// Errors: the first line that is not JSON, lacks a length or a time, asks for
    /// more than 4,000,000 tokens, or is earlier than the one before it; no line at all.
    pub fn parse(text: &str) -> Result<Trace, TraceFault> {
        let mut lines: Vec<TraceLine> = Vec::new();
        let mut first_ms = None;
        for (index, raw) in text.lines().enumerate() {
            if raw.trim().is_empty() {
                continue;
            }
            let fault = |what| TraceFault { line: index + 1, what };
            let mut line = parse_line(raw).map_err(fault)?;
            line.at_ms -= *first_ms.get_or_insert(line.at_ms);
            if lines.last().is_some_and(|last| last.at_ms > line.at_ms) {
                return Err(fault("timestamp is before that of the line above".to_owned()));
            }
            lines.push(line);
        }
        let empty = TraceFault { line: 1, what: "no request in the file".to_owned() };
        if lines.is_empty() { Err(empty) } else { Ok(Trace { lines }) }
    }

    /// The requests, in the order of their times.
    pub fn lines(&self) -> &[TraceLine] {
        &self.lines
    }

    /// Mean rate in requests a second at speed 1; `None` when all come at once.
    pub fn rate(&self) -> Option<f64> {
        let span_s = self.lines.last()?.at_ms / 1e3;
        (span_s > 0.0).then(|| (self.lines.len() - 1) as f64 / span_s)
    }
}

fn parse_line(raw: &str) -> Result<TraceLine, String> {
    let json: Value = serde_json::from_str(raw).map_err(|error| error.to_string())?;
    if !json.is_object() {
        return Err("not an object".to_owned());
    }
    let at_ms = json["timestamp"].as_f64().filter(|ms| *ms >= 0.0);
    let tokens = |name: &str| {
        let count = json[name].as_u64().ok_or_else(|| format!("no whole number {name}"))?;
        let known = u32::try_from(count).ok().filter(|_| count <= TOKENS_MAX);
        known.ok_or_else(|| format!("{name} {count}, limit {TOKENS_MAX}"))
    };
    let ids = match &json["hash_ids"] {
        Value::Null => Some(Vec::new()),
        Value::Array(ids) => ids.iter().map(Value::as_u64).collect(),
        _ => None,
    };
    Ok(TraceLine {
        at_ms: at_ms.ok_or("no timestamp in milliseconds")?,
        input_tokens: tokens("input_length")?,
        // A server must answer something, and some refuse a limit of 0.
        output_tokens: tokens("output_length")?.max(1),
        blocks: ids.ok_or("hash_ids is not a list of whole numbers")?.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_lines_and_counts_time_from_the_first() {
        let text = "{\"timestamp\": 2000, \"input_length\": 600, \"output_length\": 0, \"hash_ids\": [4, 9]}\n\n\
                    {\"timestamp\": 2500.5, \"input_length\": 5, \"output_length\": 7, \"other\": 1}\n";
        let trace = Trace::parse(text).unwrap();
        let [one, two] = trace.lines() else { panic!("{trace:?}") };
        assert_eq!((one.at_ms, one.input_tokens, one.output_tokens), (0.0, 600, 1));
        assert_eq!(*one.blocks, [4, 9]);
        assert_eq!((two.at_ms, two.output_tokens, two.blocks.len()), (500.5, 7, 0));
        assert!((trace.rate().unwrap() - 1.0 / 0.5005).abs() < 1e-9);
    }

    #[test]
    fn bad_line_is_named_by_its_number() {
        let good = "{\"timestamp\":5,\"input_length\":1,\"output_length\":1}";
        for (bad, what) in [
            ("{", "EOF"),
            ("[]", "not an object"),
            ("{\"input_length\":1,\"output_length\":1}", "timestamp"),
            ("{\"timestamp\":-1,\"input_length\":1,\"output_length\":1}", "timestamp"),
            ("{\"timestamp\":9,\"input_length\":1.5,\"output_length\":1}", "input_length"),
            ("{\"timestamp\":9,\"input_length\":1}", "output_length"),
            ("{\"timestamp\":9,\"input_length\":4000001,\"output_length\":1}", "limit"),
            ("{\"timestamp\":9,\"input_length\":1,\"output_length\":1,\"hash_ids\":[-1]}", "hash"),
            ("{\"timestamp\":4,\"input_length\":1,\"output_length\":1}", "before"),
        ] {
            let fault = Trace::parse(&format!("{good}\n\n{bad}\n{good}")).unwrap_err();
            assert_eq!(fault.line, 3, "{bad}");
            assert!(fault.what.contains(what), "{bad}: {fault}");
        }
        assert!(Trace::parse("\n \n").is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_a_trace_or_a_fault_within_it(text in "\\PC{0,80}(\n\\PC{0,80}){0,4}") {
            if let Err(fault) = Trace::parse(&text) {
                prop_assert!(fault.line >= 1 && fault.line <= text.lines().count().max(1));
            }
        }
    }
}
