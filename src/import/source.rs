//! Another proxy's config as a tree that knows the line of every key and which of them were read.
//!
//! The one idea: what an importer reads is marked; what is not marked at the end is told as not
//! carried over. So nothing can be lost silently, also keys that no importer has heard of.
//! YAML and JSON, which is YAML for this purpose, by `saphyr-parser`; `.env` files by hand.

use std::cell::Cell;
use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle};

/// Deepest nesting that is read.
const DEPTH_MAX: usize = 64;
/// Most values that are read, those that aliases repeat included.
const VALUES_MAX: usize = 200_000;

/// A value of the file.
#[derive(Debug, Clone)]
pub struct Node {
    /// 1-based; of a value under a key, the key's.
    pub line: usize,
    value: Value,
    seen: Cell<bool>,
    why: Cell<Option<&'static str>>,
}

#[derive(Debug, Clone)]
enum Value {
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Something that has no place in our config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// 1-based.
    pub line: usize,
    /// Where it stands: `upstreams[1].auth.type`. Never a value.
    pub path: String,
    /// Why, or what holds instead; empty where nothing is known of the key.
    pub why: String,
}

impl Node {
    fn new(line: usize, value: Value) -> Self {
        Self { line, value, seen: Cell::new(false), why: Cell::new(None) }
    }

    /// Reads YAML or JSON.
    ///
    /// Errors: a message that names the line and never a value.
    pub fn parse(text: &str) -> Result<Self, String> {
        Builder::default().read(text)
    }

    /// Reads lines of `NAME=value`, with or without `export` and quotes.
    pub fn parse_env(text: &str) -> Self {
        let mut map: Vec<(String, Node)> = Vec::new();
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((name, value)) = line.split_once('=').filter(|_| !line.starts_with('#'))
            else {
                continue;
            };
            let name = name.trim().to_owned();
            // As a shell has it: what comes last counts.
            map.retain(|(before, _)| *before != name);
            map.push((name, Self::new(at + 1, Value::Text(env_value(value.trim())))));
        }
        Self::new(1, Value::Map(map))
    }

    /// The value under a key; null counts as absent.
    pub fn get(&self, key: &str) -> Option<&Self> {
        let (_, node) = self.entries().iter().find(|(name, _)| name == key)?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// The entries of a map, in order; of anything else none.
    pub fn entries(&self) -> &[(String, Self)] {
        match &self.value {
            Value::Map(map) => map,
            _ => &[],
        }
    }

    /// The items of a list; of anything else none.
    pub fn items(&self) -> &[Self] {
        match &self.value {
            Value::List(list) => list,
            _ => &[],
        }
    }

    /// A text, number or truth value as it is written, which is then read.
    pub fn text(&self) -> Option<&str> {
        let Value::Text(text) = &self.value else { return None };
        self.seen.set(true);
        Some(text)
    }

    /// The text under a key, which is then read.
    pub fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// The number under a key; what is none stays unread.
    pub fn number_of(&self, key: &str) -> Option<f64> {
        let node = self.get(key)?;
        let Value::Text(text) = &node.value else { return None };
        let number = text.parse::<f64>().ok().filter(|n| n.is_finite())?;
        node.seen.set(true);
        Some(number)
    }

    /// The truth value under a key; what is none stays unread.
    pub fn truth_of(&self, key: &str) -> Option<bool> {
        let node = self.get(key)?;
        let Value::Text(text) = &node.value else { return None };
        let truth = match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => true,
            "false" | "no" | "off" | "0" => false,
            _ => return None,
        };
        node.seen.set(true);
        Some(truth)
    }

    /// Marks this and all below it as carried over.
    pub fn carried(&self) {
        self.seen.set(true);
        self.items().iter().for_each(Self::carried);
        self.entries().iter().for_each(|(_, node)| node.carried());
    }

    /// Says why this is not carried over, or what holds instead.
    pub fn lost(&self, why: &'static str) {
        self.why.set(Some(why));
    }

    /// Says why the value under a key, if any, is not carried over.
    pub fn lost_at(&self, key: &str, why: &'static str) {
        if let Some(node) = self.get(key) {
            node.lost(why);
        }
    }

    /// What was not read, in the order of the file.
    pub fn left(&self) -> Vec<Lost> {
        let mut all = Vec::new();
        self.collect("", &mut all);
        all.sort_by_key(|lost| lost.line);
        all
    }

    fn collect(&self, path: &str, all: &mut Vec<Lost>) {
        if let Some(why) = self.why.get() {
            all.push(Lost { line: self.line, path: path.to_owned(), why: why.to_owned() });
        } else if !self.any_read() && !self.is_empty() && !path.is_empty() {
            all.push(Lost { line: self.line, path: path.to_owned(), why: String::new() });
        } else {
            for (at, node) in self.items().iter().enumerate() {
                node.collect(&format!("{path}[{at}]"), all);
            }
            for (name, node) in self.entries() {
                let dot = if path.is_empty() { "" } else { "." };
                node.collect(&format!("{path}{dot}{name}"), all);
            }
        }
    }

    /// Whether anything here or below was read or judged.
    fn any_read(&self) -> bool {
        self.seen.get()
            || self.why.get().is_some()
            || self.items().iter().any(Self::any_read)
            || self.entries().iter().any(|(_, node)| node.any_read())
    }

    fn is_empty(&self) -> bool {
        match &self.value {
            Value::Null => true,
            Value::Text(_) => false,
            Value::List(list) => list.is_empty(),
            Value::Map(map) => map.is_empty(),
        }
    }
}

/// The value of a line of a `.env` file, without its quotes or the comment behind it.
fn env_value(text: &str) -> String {
    for quote in ['\'', '"'] {
        if let Some(inner) = text.strip_prefix(quote)
            && let Some(end) = inner.rfind(quote)
        {
            let inner = &inner[..end];
            return if quote == '"' { inner.replace("\\\"", "\"") } else { inner.to_owned() };
        }
    }
    text.split(" #").next().unwrap_or(text).trim_end().to_owned()
}

/// A list or map that is still open.
struct Open {
    line: usize,
    anchor: usize,
    /// Of a map; of a list no key is ever set.
    key: Option<(String, usize)>,
    is_map: bool,
    list: Vec<Node>,
    map: Vec<(String, Node)>,
}

#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    values: usize,
    root: Option<Node>,
}

impl Builder {
    fn read(mut self, text: &str) -> Result<Node, String> {
        for event in Parser::new_from_str(text) {
            let (event, span) =
                event.map_err(|why| format!("line {}: {}", why.marker().line(), why.info()))?;
            let line = span.start.line();
            self.take(event, line).map_err(|why| format!("line {line}: {why}"))?;
        }
        self.root.ok_or_else(|| "the file is empty".to_owned())
    }

    fn take(&mut self, event: Event<'_>, line: usize) -> Result<(), String> {
        match event {
            Event::DocumentStart(_) if self.root.is_some() => {
                return Err("a second document; one is read".to_owned());
            }
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                let null = plain && matches!(text.as_ref(), "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Text(text.into_owned()) };
                self.add(Node::new(line, value), anchor)?;
            }
            Event::SequenceStart(anchor, _) => self.begin(line, anchor, false)?,
            Event::MappingStart(anchor, _) => self.begin(line, anchor, true)?,
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else { return Ok(()) };
                let value = if open.is_map { Value::Map(open.map) } else { Value::List(open.list) };
                self.add(Node::new(open.line, value), open.anchor)?;
            }
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned().ok_or("an unknown alias")?;
                self.values = self.values.saturating_add(size(&node));
                self.add(node, 0)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn begin(&mut self, line: usize, anchor: usize, is_map: bool) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(format!("nested deeper than {DEPTH_MAX}"));
        }
        let (list, map) = (Vec::new(), Vec::new());
        self.open.push(Open { line, anchor, key: None, is_map, list, map });
        Ok(())
    }

    fn add(&mut self, mut node: Node, anchor: usize) -> Result<(), String> {
        self.values += 1;
        if self.values > VALUES_MAX {
            return Err(format!("more than {VALUES_MAX} values"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        if !open.is_map {
            open.list.push(node);
            return Ok(());
        }
        match open.key.take() {
            None => {
                let key = match node.value {
                    Value::Text(text) => text,
                    Value::Null => "null".to_owned(),
                    _ => return Err("a key that is a list or a map".to_owned()),
                };
                open.key = Some((key, node.line));
            }
            // `<<: *defaults`: what the map itself says counts more.
            Some((key, _)) if key == "<<" => {
                for (name, value) in node.entries() {
                    if !open.map.iter().any(|(known, _)| known == name) {
                        open.map.push((name.clone(), value.clone()));
                    }
                }
            }
            Some((key, line)) => {
                node.line = line;
                open.map.retain(|(known, _)| *known != key);
                open.map.push((key, node));
            }
        }
        Ok(())
    }
}

fn size(node: &Node) -> usize {
    let below = node.items().iter().map(size).sum::<usize>();
    1 + below + node.entries().iter().map(|(_, node)| size(node)).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_was_not_read_by_its_line() {
        let tree = Node::parse("a:\n  b: 1\n  c: [2, 3]\nd: ~\ne:\n  f: x\n").unwrap();
        assert_eq!(tree.get("a").unwrap().number_of("b"), Some(1.0));
        tree.lost_at("e", "for a reason");
        let left: Vec<_> = tree.left().into_iter().map(|l| (l.line, l.path, l.why)).collect();
        let lost = |line, path: &str, why: &str| (line, path.to_owned(), why.to_owned());
        assert_eq!(left, [lost(3, "a.c", ""), lost(5, "e", "for a reason")]);
    }

    #[test]
    fn reads_json_anchors_and_merges() {
        let tree = Node::parse("{\"a\": {\"b\": \"c\"}}").unwrap();
        assert_eq!(tree.get("a").unwrap().text_of("b"), Some("c"));
        let tree = Node::parse("x: &x {p: 1}\ny: {<<: *x, q: 2}\n").unwrap();
        assert_eq!(tree.get("y").unwrap().number_of("p"), Some(1.0));
    }

    #[test]
    fn bounds_what_aliases_repeat() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for at in 1..9 {
            let items = vec![format!("*a{}", at - 1); 9].join(", ");
            bomb.push_str(&format!("a{at}: &a{at} [{items}]\n"));
        }
        assert!(Node::parse(&bomb).unwrap_err().contains("more than"));
        assert!(Node::parse(&"[".repeat(100_000)).is_err());
    }

    #[test]
    fn reads_env_files() {
        let env = "# no\nexport A=1\nB='[{\"x\": \"y\"}]'\nC=\"q # r\"\nD=e # f\nA=2\n";
        let tree = Node::parse_env(env);
        let at = |key: &str| tree.text_of(key).unwrap().to_owned();
        assert_eq!([at("A"), at("B"), at("C"), at("D")], ["2", "[{\"x\": \"y\"}]", "q # r", "e"]);
    }
}
