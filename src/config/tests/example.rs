//! The example is the manual: it loads, and it has every key.

use super::secrets::has_no_secret;
use super::*;

#[test]
fn the_example_loads_without_errors() {
    let text = include_str!("../../../config.example.toml");
    let env = |name: &str| name.ends_with("_KEY").then(|| format!("{name}-0123456789abcdef"));
    let outside = Outside { env: &env, read: &read, now_s: 0 };
    let loaded = load("config.example.toml", text, &outside).unwrap_or_else(|r| panic!("{r}"));
    has_no_secret(&loaded.report.to_string());
}

/// The sections of the example, each with its lines, comment signs taken off.
pub(crate) fn sections() -> Vec<(String, Vec<String>)> {
    let text = include_str!("../../../config.example.toml");
    let known = support::schema_paths();
    let mut sections = vec![(String::new(), Vec::new())];
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches('#').trim_start();
        let bare = line.trim_matches(['[', ']']);
        let name = bare.split(".\"").next().unwrap_or_default();
        if line.starts_with('[') && known.contains(name) {
            sections.push((name.to_owned(), Vec::new()));
        } else if let Some((_, lines)) = sections.last_mut() {
            lines.push(line.to_owned());
        }
    }
    sections
}

#[test]
fn every_key_stands_in_the_example() {
    let sections = sections();
    let mut missing = Vec::new();
    for path in support::schema_paths() {
        let mut parts = path.split('.');
        let top = parts.next().unwrap_or_default();
        let rest: Vec<_> = parts.collect();
        let found = match rest.as_slice() {
            [] => sections.iter().any(|(name, _)| name == top),
            // A section of its own, or a key of the section, or a key in a key's table.
            [key] => sections.iter().any(|(name, lines)| {
                name == &format!("{top}.{key}")
                    || (name == top && lines.iter().any(|l| says(l, key)))
            }),
            [outer, key, ..] => sections.iter().any(|(name, lines)| {
                (name == &format!("{top}.{outer}") && lines.iter().any(|l| says(l, key)))
                    || (name == top
                        && lines.iter().any(|l| says(l, outer))
                        && all_held(lines, &rest[1..]))
            }),
        };
        if !found {
            missing.push(path);
        }
    }
    assert!(missing.is_empty(), "not in config.example.toml: {missing:#?}");
}

/// Whether a line sets a key.
pub(crate) fn says(line: &str, key: &str) -> bool {
    line.strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
}

/// Whether inline tables on some lines have all of these keys.
fn all_held(lines: &[String], keys: &[&str]) -> bool {
    keys.iter().all(|key| lines.iter().any(|line| holds(line, key)))
}

/// Whether an inline table on a line has a key.
fn holds(line: &str, key: &str) -> bool {
    line.split(['{', ',']).any(|part| says(part.trim_start(), key))
}
