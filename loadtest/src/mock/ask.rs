//! What a request body asks for: the few keys that decide the answer.
//!
//! Read with a visitor instead of a tree: large prompts cost nothing, and of two
//! equal keys the last one counts, as it does for Python's and Node's parsers.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

/// The keys of a request body that the mock reads.
#[derive(Debug, Default)]
pub(super) struct Ask {
    pub(super) model: Option<String>,
    pub(super) stream: Option<bool>,
    pub(super) include_usage: bool,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`.
    pub(super) tokens_max: Option<u64>,
    pub(super) seed: Option<u64>,
    /// How many texts an embeddings request brings.
    pub(super) inputs: usize,
}

impl<'de> Deserialize<'de> for Ask {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Ask, D::Error> {
        deserializer.deserialize_map(AskVisitor)
    }
}

struct AskVisitor;

impl<'de> Visitor<'de> for AskVisitor {
    type Value = Ask;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ask, A::Error> {
        let mut ask = Ask { inputs: 1, ..Ask::default() };
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "model" => ask.model = map.next_value::<Value>()?.as_str().map(str::to_owned),
                "stream" => ask.stream = map.next_value::<Value>()?.as_bool(),
                "stream_options" => {
                    let options = map.next_value::<Value>()?;
                    ask.include_usage = options.get("include_usage") == Some(&Value::Bool(true));
                }
                "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                    ask.tokens_max = map.next_value::<Value>()?.as_u64();
                }
                "seed" => ask.seed = map.next_value::<Value>()?.as_u64(),
                "input" => ask.inputs = map.next_value::<Value>()?.as_array().map_or(1, Vec::len),
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_duplicate_wins_and_the_rest_is_passed_over() {
        let ask: Ask = serde_json::from_str(
            r#"{"messages":[{"model":"no"}],"model":"a","stream":true,"model":"b",
                "stream_options":{"include_usage":true},"max_tokens":5,"seed":9}"#,
        )
        .unwrap();
        assert_eq!(ask.model.as_deref(), Some("b"));
        assert_eq!((ask.stream, ask.include_usage), (Some(true), true));
        assert_eq!((ask.tokens_max, ask.seed), (Some(5), Some(9)));
        assert!(serde_json::from_str::<Ask>("[1]").is_err());
    }
}
