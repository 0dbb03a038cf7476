//! What a JSON document says of tokens, read from a tree: slow and obvious, for tests and fuzzing.
//!
//! `counts` must agree with it on every document that `serde_json` takes. It knows the rules by the
//! document's shape and nothing of bytes; keys twice are kept, in order, as a stream meets them.

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
/// text, or holds numbers that `counts` reads in a way of its own.
pub(super) fn read(json: &[u8]) -> Option<(Usage, bool)> {
    // Whether it is JSON at all `serde_json` tells, which keeps one of two equal keys only.
    serde_json::from_slice::<serde_json::Value>(json).ok()?;
    let tree = tree(&mut &*json)?;
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

/// Reads one value off `rest`, the rest of a text that is known to be JSON: whatever stands between
/// values says nothing then.
fn tree(rest: &mut &[u8]) -> Option<Tree> {
    match next(rest)? {
        b'{' => {
            let mut pairs = Vec::new();
            take(rest, 1)?;
            while next(rest)? != b'}' {
                let Tree::Text(key) = tree(rest)? else { return None };
                pairs.push((key, tree(rest)?));
            }
            take(rest, 1)?;
            Some(Tree::Object(pairs))
        }
        b'[' => {
            let mut items = Vec::new();
            take(rest, 1)?;
            while next(rest)? != b']' {
                items.push(tree(rest)?);
            }
            take(rest, 1)?;
            Some(Tree::List(items))
        }
        b'"' => {
            let mut end = 1;
            while *rest.get(end)? != b'"' {
                end += if rest[end] == b'\\' { 2 } else { 1 };
            }
            serde_json::from_slice(take(rest, end + 1)?).ok().map(Tree::Text)
        }
        _ => {
            let ends = |byte: &u8| b" \t\r\n,]}".contains(byte);
            let word = take(rest, rest.iter().position(ends).unwrap_or(rest.len()))?;
            Some(scalar(std::str::from_utf8(word).ok()?))
        }
    }
}

/// Skips what stands between values and tells the byte that begins the next one.
fn next(rest: &mut &[u8]) -> Option<u8> {
    let at = rest.iter().position(|byte| !b" \t\r\n,:".contains(byte))?;
    take(rest, at)?;
    rest.first().copied()
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(taken)
}

fn scalar(word: &str) -> Tree {
    match (word, word.parse::<u64>(), word.parse::<i64>()) {
        ("true" | "false" | "null", ..) => Tree::Other,
        (_, Ok(count), _) => Tree::Count(count),
        // Of `-0` nobody knows whether it is one.
        (_, _, Ok(negative)) if negative < 0 => Tree::Other,
        _ => Tree::Unclear,
    }
}
