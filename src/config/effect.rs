//! Keys that are accepted and do nothing yet.
//!
//! One row for each, with its default: a file that says the default loses nothing
//! and is not told. A row goes when its feature comes; there is none left in the
//! end. Elements of lists share the path of their list.
//!
//! The same rows mark the keys in the JSON schema (`mark_schema`) and, held by a test,
//! in `config.example.toml`: a line `No effect yet…` right above each key.

use serde_json::Value;
use toml::Spanned;
use toml::de::DeValue;

use crate::base::units::{parse_duration, parse_size};
use crate::config::fault::{Draft, Spot};
use crate::config::model::{Balance, Protocol};
use crate::config::names::Named as _;
use crate::config::reader::{element_path, entries, join};

/// What of a key is not in effect.
enum Off {
    /// Everything but this value, written as TOML.
    Unless(&'static str),
    /// The key at all.
    Present,
    /// This balance.
    BalanceIs(Balance),
    /// Another protocol than OpenAI's, as far as requests go.
    Untranslated,
}

use Off::{BalanceIs, Present, Unless, Untranslated};

/// The keys, by path.
const NOT_IN_EFFECT: &[(&str, Off)] = &[
    ("upstream.protocol", Untranslated),
    ("group.balance", BalanceIs(Balance::Prefix)),
    ("group.affinity", Present),
    ("group.serve", Unless("[]")),
    ("group.errors", Unless("\"pass\"")),
    ("group_defaults.balance", BalanceIs(Balance::Prefix)),
    ("group_defaults.affinity", Present),
    ("group_defaults.serve", Unless("[]")),
    ("group_defaults.errors", Unless("\"pass\"")),
    ("admin.dashboard", Unless("true")),
];

/// Warns of every key that was set to something that is not in effect.
pub(crate) fn warn_of_no_effect(root: &Spanned<DeValue<'_>>, draft: &mut Draft<'_>) {
    walk("", "", root, draft);
}

/// `pattern` is the path without names and indexes, `path` the one that is shown.
fn walk(pattern: &str, path: &str, value: &Spanned<DeValue<'_>>, draft: &mut Draft<'_>) {
    if let Some((_, off)) = NOT_IN_EFFECT.iter().find(|(key, _)| *key == pattern) {
        if !off.is_in_effect(value.get_ref()) {
            let spot = Spot { path: path.to_owned(), span: value.span(), ..Spot::default() };
            let message = match off {
                BalanceIs(_) => "not implemented yet; acts as round_robin",
                Unless(_) | Present => "not implemented yet; has no effect",
                Untranslated => "requests are not translated yet; they pass as they came",
            };
            draft.warn(&spot, message);
        }
        return;
    }
    match value.get_ref() {
        DeValue::Table(table) => {
            for entry in entries(table) {
                let (pattern, path) = (join(pattern, entry.key), join(path, entry.key));
                walk(&pattern, &path, entry.value, draft);
            }
        }
        DeValue::Array(array) => {
            for (index, element) in array.iter().enumerate() {
                walk(pattern, &element_path(path, index, element.get_ref()), element, draft);
            }
        }
        _ => {}
    }
}

/// Says in the schema of each key what of it is not in effect.
pub(crate) fn mark_schema(schema: &mut Value) {
    for (path, off) in NOT_IN_EFFECT {
        let Some((section, key)) = path.split_once('.') else { continue };
        // A section is a table or a list of tables, by reference.
        let section = &schema["properties"][section];
        let reference = section["$ref"].as_str().or_else(|| section["items"]["$ref"].as_str());
        let Some(table) = reference.and_then(|r| r.strip_prefix("#/$defs/")) else { continue };
        let table = table.to_owned();
        if let Some(Value::String(text)) =
            schema["$defs"][table]["properties"][key].get_mut("description")
        {
            text.push(' ');
            text.push_str(off.mark());
        }
    }
}

impl Off {
    /// What is said beside the key, in the example and in the schema.
    fn mark(&self) -> &'static str {
        match self {
            Unless(_) | Present => "No effect yet.",
            BalanceIs(_) => "No effect yet: prefix; it acts as round_robin.",
            Untranslated => "No effect yet on requests: they are not translated.",
        }
    }

    fn is_in_effect(&self, value: &DeValue<'_>) -> bool {
        match self {
            Present => false,
            Untranslated => value.as_str().and_then(Protocol::named) == Some(Protocol::OpenAi),
            // What is no balance at all is complained about elsewhere.
            BalanceIs(off) => value.as_str().and_then(Balance::named) != Some(*off),
            Unless(default) => match DeValue::parse(default) {
                Ok(default) => same(value, default.get_ref()),
                Err(_) => false,
            },
        }
    }
}

/// Whether two values mean the same: `10s` is `10000ms`, `1` is `1.0`.
fn same(a: &DeValue<'_>, b: &DeValue<'_>) -> bool {
    match (a, b) {
        (DeValue::String(a), DeValue::String(b)) => {
            let times = parse_duration(a).ok().zip(parse_duration(b).ok());
            let sizes = parse_size(a).ok().zip(parse_size(b).ok());
            a == b || times.is_some_and(|(a, b)| a == b) || sizes.is_some_and(|(a, b)| a == b)
        }
        (DeValue::Array(a), DeValue::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a.get_ref(), b.get_ref()))
        }
        (DeValue::Boolean(a), DeValue::Boolean(b)) => a == b,
        (a, b) => match (as_number(a), as_number(b)) {
            (Some(a), Some(b)) => (a - b).abs() < f64::EPSILON,
            _ => false,
        },
    }
}

fn as_number(value: &DeValue<'_>) -> Option<f64> {
    match value {
        DeValue::Integer(n) if n.radix() == 10 => n.as_str().parse().ok(),
        DeValue::Float(f) => f.as_str().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_a_key_of_the_schema() {
        let paths = crate::config::tests::support::schema_paths();
        for (path, off) in NOT_IN_EFFECT {
            assert!(paths.contains(*path), "{path} is no key");
            if let Unless(default) = off {
                assert!(DeValue::parse(default).is_ok(), "{path}: {default}");
            }
        }
    }

    #[test]
    fn the_schema_marks_them_and_no_others() {
        let schema = crate::config::json_schema();
        assert_eq!(schema.matches("No effect yet").count(), NOT_IN_EFFECT.len());
        let schema: Value = serde_json::from_str(&schema).unwrap();
        let described = &schema["$defs"]["RawUpstream"]["properties"]["protocol"]["description"];
        assert!(described.as_str().unwrap().ends_with(Untranslated.mark()), "{described}");
    }

    #[test]
    fn the_example_marks_them_and_no_others() {
        let sections = crate::config::tests::example::sections();
        let says = crate::config::tests::example::says;
        for (path, off) in NOT_IN_EFFECT {
            let (section, key) = path.split_once('.').unwrap();
            let marked = sections.iter().filter(|(name, _)| name == section).any(|(_, lines)| {
                lines.windows(2).any(|pair| says(&pair[1], key) && pair[0] == off.mark())
            });
            assert!(marked, "{path}: the line above it must be `# {}`", off.mark());
        }
        let marks = sections.iter().flat_map(|(_, lines)| lines);
        let marks = marks.filter(|line| line.starts_with("No effect yet"));
        assert_eq!(marks.count(), NOT_IN_EFFECT.len());
    }

    #[test]
    fn equal_values_may_be_written_differently() {
        for (a, b, equal) in [
            ("\"10s\"", "\"10000ms\"", true),
            ("1", "1.0", true),
            ("[]", "[ ]", true),
            ("\"a\"", "\"b\"", false),
            ("true", "false", false),
            ("[]", "[1]", false),
        ] {
            let (a, b) = (DeValue::parse(a).unwrap(), DeValue::parse(b).unwrap());
            assert_eq!(same(a.get_ref(), b.get_ref()), equal, "{a:?} {b:?}");
        }
    }
}
