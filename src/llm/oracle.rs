//! What a JSON document says of tokens, read from a tree: slow and obvious, for tests and fuzzing.
//!
//! `counts` must agree with it on every document that serde takes. It knows the rules by the
//! document's shape and nothing of bytes; keys twice are kept, in order, as a stream meets them.

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::counts::{Count, Parts, is_content};
use super::usage::Usage;

/// A document with every key it has.
enum Tree {
    Object(Vec<(String, Tree)>),
    List(Vec<Tree>),
    Text(String),
    Count(u64),
    /// With a fraction, an exponent or too many digits: how it was written is not known here.
    Unclear,
    Other,
}

/// What documents say, and whether any of them has content; `None` when `json` is not one JSON
/// text, or holds numbers of which serde keeps too little.
pub(super) fn read(json: &[u8]) -> Option<(Usage, bool)> {
    let tree: Tree = serde_json::from_slice(json).ok()?;
    if has_unclear(&tree) {
        return None;
    }
    let (mut usage, mut has_content) = (Usage::default(), false);
    let mut add = |document: &Tree| {
        let Tree::Object(pairs) = document else {
            // A list in the list is no document; what is in it is content all the same.
            has_content |= carries_content(document, Where::Deeper);
            return;
        };
        let said = said(pairs);
        if said.prompt_tokens.unwrap_or(0) | said.completion_tokens.unwrap_or(0) != 0 {
            usage.prompt_tokens = said.prompt_tokens.or(usage.prompt_tokens);
            usage.completion_tokens = said.completion_tokens.or(usage.completion_tokens);
            usage.cached_tokens = said.cached_tokens.or(usage.cached_tokens);
        }
        has_content |= carries_content(document, Where::Document);
    };
    match &tree {
        Tree::List(documents) => documents.iter().for_each(add),
        document => add(document),
    }
    Some((usage, has_content))
}

fn said(document: &[(String, Tree)]) -> Usage {
    let mut usage = Usage::default();
    let (mut eval, mut timings) = ((None, None), (None, None, None));
    for (key, value) in document {
        match (key.as_str(), value) {
            ("usage" | "usageMetadata" | "meta_info", Tree::Object(pairs)) => {
                of_usage(pairs, &mut usage);
            }
            ("response" | "message", Tree::Object(carried)) => {
                for (key, value) in carried {
                    if let ("usage" | "usageMetadata", Tree::Object(pairs)) = (key.as_str(), value)
                    {
                        of_usage(pairs, &mut usage);
                    }
                }
            }
            ("prompt_eval_count", Tree::Count(count)) => eval.0 = Some(*count),
            ("eval_count", Tree::Count(count)) => eval.1 = Some(*count),
            ("timings", Tree::Object(pairs)) => {
                for (key, value) in pairs {
                    match (key.as_str(), value) {
                        ("prompt_n", Tree::Count(count)) => timings.0 = Some(*count),
                        ("predicted_n", Tree::Count(count)) => timings.1 = Some(*count),
                        ("cache_n", Tree::Count(count)) => timings.2 = Some(*count),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if usage.prompt_tokens.is_none() && usage.completion_tokens.is_none() {
        let (fresh, predicted, reused) = timings;
        usage.cached_tokens = usage.cached_tokens.or(reused);
        let timed = fresh.map(|n: u64| n.saturating_add(reused.unwrap_or(0)));
        (usage.prompt_tokens, usage.completion_tokens) =
            if eval == (None, None) { (timed, predicted) } else { eval };
    }
    usage
}

fn of_usage(pairs: &[(String, Tree)], usage: &mut Usage) {
    let mut parts = Parts::default();
    let mut note = |depth: usize, key: &str, value: &Tree| {
        if let (Some(count), Tree::Count(value)) = (Count::of_usage(depth, key.as_bytes()), value) {
            parts.note(count, *value);
        }
    };
    for (key, value) in pairs {
        note(0, key, value);
        if let (Tree::Object(details), None) = (value, Count::of_usage(0, key.as_bytes())) {
            details.iter().for_each(|(key, value)| note(1, key, value));
        }
    }
    parts.add_to(usage);
}

/// Where in a document content is looked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Document,
    Carrier,
    /// In `usage`: its keys name counts and no text.
    Usage,
    Details,
    Deeper,
}

fn carries_content(tree: &Tree, at: Where) -> bool {
    match tree {
        Tree::List(items) => items.iter().any(|item| carries_content(item, Where::Deeper)),
        Tree::Object(pairs) => pairs.iter().any(|(key, value)| {
            let key = key.as_str();
            let next = match (at, key) {
                (Where::Usage, key) if Count::of_usage(0, key.as_bytes()).is_some() => {
                    Where::Deeper
                }
                (Where::Usage, _) => Where::Details,
                (Where::Document | Where::Carrier, "usage" | "usageMetadata")
                | (Where::Document, "meta_info") => Where::Usage,
                (Where::Document, "timings") => Where::Details,
                (Where::Document, "response" | "message") => Where::Carrier,
                _ => Where::Deeper,
            };
            let is_text = !matches!(at, Where::Usage | Where::Details)
                && next == Where::Deeper
                && is_content(key.as_bytes())
                || (at == Where::Document && key == "response");
            let calls = !matches!(at, Where::Usage | Where::Details);
            match value {
                Tree::Text(text) => is_text && !text.is_empty(),
                Tree::Object(_) if calls && matches!(key, "functionCall" | "function_call") => true,
                Tree::List(items)
                    if calls
                        && key == "tool_calls"
                        && matches!(items.first(), Some(Tree::Object(_))) =>
                {
                    true
                }
                value => carries_content(value, next),
            }
        }),
        _ => false,
    }
}

fn has_unclear(tree: &Tree) -> bool {
    match tree {
        Tree::Object(pairs) => pairs.iter().any(|(_, value)| has_unclear(value)),
        Tree::List(items) => items.iter().any(has_unclear),
        Tree::Unclear => true,
        Tree::Text(_) | Tree::Count(_) | Tree::Other => false,
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Tree, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Tree;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }

            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
                Ok(Tree::Count(value))
            }

            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Unclear)
            }

            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::Text(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Tree::Object(pairs))
            }
        }

        from.deserialize_any(Reader)
    }
}
