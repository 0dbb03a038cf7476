//! Our config while it is being written: tables in the order of `config.example.toml`.
//!
//! Strings keep `${NAME}` and `${NAME:-default}`, which both sides fill in from the environment;
//! any other `${` is written so that it stays one.

use std::fmt::Write as _;

use super::source::Lost;

/// One `[table]` or `[[table]]`, and those that belong behind it.
#[derive(Debug, Clone)]
pub struct Table {
    head: String,
    lines: Vec<String>,
    below: Vec<Table>,
}

impl Table {
    /// An empty table; `head` is written as given: `[[upstream]]`.
    pub fn new(head: impl Into<String>) -> Self {
        Self { head: head.into(), lines: Vec::new(), below: Vec::new() }
    }

    /// Adds `key = "text"`.
    pub fn text(&mut self, key: &str, text: &str) -> &mut Self {
        self.raw(key, &quoted(text))
    }

    /// Adds `key = value`, the value being TOML.
    pub fn raw(&mut self, key: &str, value: &str) -> &mut Self {
        self.lines.push(format!("{key} = {value}"));
        self
    }

    /// Adds a comment above what is added next.
    pub fn note(&mut self, note: &str) -> &mut Self {
        self.lines.push(format!("# {note}"));
        self
    }

    /// Adds a table that belongs to this one.
    pub fn below(&mut self, table: Table) -> &mut Self {
        self.below.push(table);
        self
    }

    fn write(&self, out: &mut String) {
        let _ = writeln!(out, "\n{}", self.head);
        for line in &self.lines {
            let _ = writeln!(out, "{line}");
        }
        self.below.iter().for_each(|table| table.write(out));
    }
}

/// The tables of a config, each kind in its place.
#[derive(Debug, Default)]
pub struct Draft {
    /// `[limits]`, `[timeouts]`.
    pub process: Vec<Table>,
    /// `[[listener]]`, each with its routes.
    pub listeners: Vec<Table>,
    /// `[[key]]`.
    pub keys: Vec<Table>,
    /// `[ratelimit_store]`.
    pub store: Vec<Table>,
    /// `[[upstream]]`.
    pub upstreams: Vec<Table>,
    /// `[[group]]`, `[group_defaults]`.
    pub groups: Vec<Table>,
    /// `[models."…"]`.
    pub models: Vec<Table>,
    /// What was not carried over, besides what the tree of the file tells.
    pub lost: Vec<Lost>,
    /// `[discovery]`, `[admin]`.
    pub rest: Vec<Table>,
}

impl Draft {
    /// All tables as text.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        let all = [&self.process, &self.listeners, &self.keys, &self.store];
        let more = [&self.upstreams, &self.groups, &self.models, &self.rest];
        all.into_iter().chain(more).flatten().for_each(|table| table.write(&mut out));
        out
    }
}

/// Names that were given out, each of them once.
#[derive(Debug, Default)]
pub struct Names(Vec<String>);

impl Names {
    /// A name that config and requests allow, as near to `wanted` as can be and not yet given.
    pub fn give(&mut self, wanted: &str) -> String {
        let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let mut base: String = wanted.trim().chars().map(fits).take(100).collect();
        if base.is_empty() {
            base = "unnamed".to_owned();
        }
        let numbered = (2..).map(|n| format!("{base}-{n}"));
        let mut free = std::iter::once(base.clone()).chain(numbered);
        let name = free.find(|name| !self.0.contains(name)).unwrap_or(base);
        self.0.push(name.clone());
        name
    }
}

/// A string of TOML that means `text`, references to the environment included.
pub fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for (at, c) in text.char_indices() {
        match c {
            '$' if text[at..].starts_with("${") && !is_reference(&text[at + 2..]) => {
                out.push_str("$$");
            }
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// An array of strings.
pub fn quoted_list<T: AsRef<str>>(items: &[T]) -> String {
    let all: Vec<_> = items.iter().map(|item| quoted(item.as_ref())).collect();
    format!("[{}]", all.join(", "))
}

/// Whether what stands behind `${` is the name of a variable and an end.
fn is_reference(rest: &str) -> bool {
    let Some(inner) = rest.split_once('}').map(|(inner, _)| inner) else { return false };
    let name = inner.split_once(":-").map_or(inner, |(name, _)| name);
    let word = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    word && !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// Seconds as our config writes a time, in milliseconds where they are no whole number.
pub fn seconds(number: f64) -> String {
    if number.fract() == 0.0 {
        quoted(&format!("{number}s"))
    } else {
        quoted(&format!("{}ms", (number * 1000.0).round()))
    }
}

/// An address to listen on; a name of this machine or of all addresses becomes its numbers.
pub fn address(host: &str, port: &str) -> String {
    match host.trim_matches(['[', ']']) {
        "localhost" => format!("127.0.0.1:{port}"),
        "" | "*" => format!("0.0.0.0:{port}"),
        host if host.contains(':') => format!("[{host}]:{port}"),
        host => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_references_and_nothing_else_special() {
        assert_eq!(quoted("a${KEY}b${K:-x}"), "\"a${KEY}b${K:-x}\"");
        assert_eq!(quoted("${env.K} ${ \"\\"), "\"$${env.K} $${ \\\"\\\\\"");
    }

    #[test]
    fn names_are_clean_and_given_once() {
        let mut names = Names::default();
        assert_eq!(names.give("LM Studio"), "LM-Studio");
        assert_eq!(names.give("LM/Studio"), "LM-Studio-2");
        assert_eq!(names.give(""), "unnamed");
    }
}
