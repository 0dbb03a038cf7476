//! Walks the parsed TOML tree into the mirror structs of `raw`.
//!
//! The one idea: serde stops at the first fault, so every mirror type reads
//! itself from a `Node` and complains into the `Draft` instead of returning an
//! error; what could not be read is `None` and the walk goes on. Substitution of
//! `${ENV}` happens here, on string values alone. Secret fields mask their span
//! before anything else is looked at, whatever stands there.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::config::fault::{Draft, Spot, closest, did_you_mean};
use crate::config::harmless::is_harmless;
use crate::config::subst::substitute;

/// What a file may ask of the world around it; injected, so that tests need none.
#[derive(Clone, Copy)]
pub struct Outside<'a> {
    /// Looks an environment variable up.
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// Reads the file of a `file:/path` secret, a certificate or a key; the error is shown as
    /// it is.
    pub read: &'a dyn Fn(&Path) -> Result<String, String>,
    /// Seconds since 1970, for what has expired; 0 = nothing has.
    pub now_s: u64,
}

impl Outside<'_> {
    /// A world without variables and files.
    pub const NOTHING: Outside<'static> =
        Outside { env: &|_| None, read: &|_| Err("no files here".to_owned()), now_s: 0 };
}

/// The walk's state.
pub(crate) struct Reader<'a> {
    pub(crate) draft: Draft<'a>,
    pub(crate) outside: Outside<'a>,
    /// Paths of keys that are there and could not be read: not missing, already complained about.
    unread: HashSet<String>,
}

/// One value of the tree, with the path that leads to it.
pub(crate) struct Node<'n> {
    pub(crate) path: String,
    pub(crate) value: &'n DeValue<'n>,
    pub(crate) span: Range<usize>,
}

/// A value that was read, with its place.
#[derive(Debug, Clone)]
pub(crate) struct At<T> {
    pub(crate) value: T,
    pub(crate) spot: Spot,
}

/// A mirror type.
pub(crate) trait FromNode: Sized {
    /// True: the span is masked and messages never quote the value.
    const SECRET: bool = false;
    /// Reads the value or complains.
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self>;
}

impl<'n> Node<'n> {
    pub(crate) fn new(path: String, value: &'n Spanned<DeValue<'n>>) -> Self {
        Self { path, value: value.get_ref(), span: value.span() }
    }

    pub(crate) fn spot(&self) -> Spot {
        let substituted = self.value.as_str().is_some_and(|s| s.contains("${"));
        Spot { path: self.path.clone(), span: self.span.clone(), substituted, secret: false }
    }

    /// The entries of a table, in file order.
    pub(crate) fn table(&self, r: &mut Reader<'_>) -> Option<Vec<Entry<'n>>> {
        match self.value.as_table() {
            Some(table) => Some(entries(table)),
            None => {
                // A secret one level too high is still a secret.
                self.mask_unless_harmless(r);
                self.mismatch(r, "a table");
                None
            }
        }
    }

    /// The elements of a list, each with its path: by name where it has one.
    pub(crate) fn list(&self, r: &mut Reader<'_>) -> Option<Vec<Node<'n>>> {
        let Some(array) = self.value.as_array() else {
            self.mask_unless_harmless(r);
            self.mismatch(r, "a list");
            return None;
        };
        let element = |(i, value): (usize, &'n Spanned<DeValue<'n>>)| {
            Node::new(element_path(&self.path, i, value.get_ref()), value)
        };
        Some(array.iter().enumerate().map(element).collect())
    }

    fn mask_unless_harmless(&self, r: &mut Reader<'_>) {
        let key = self.path.rsplit('.').next().unwrap_or_default();
        if !is_harmless(key) || self.value.is_table() {
            r.draft.mask(self.span.clone());
        }
    }

    pub(crate) fn mismatch(&self, r: &mut Reader<'_>, expected: &str) {
        let article =
            if matches!(self.value, DeValue::Array(_) | DeValue::Integer(_)) { "an" } else { "a" };
        let message = format!("expected {expected}, found {article} {}", self.value.type_str());
        r.draft.fault(&self.spot(), message);
    }
}

/// Key and value of a table.
pub(crate) struct Entry<'n> {
    pub(crate) key: &'n str,
    pub(crate) key_span: Range<usize>,
    pub(crate) value: &'n Spanned<DeValue<'n>>,
}

/// The entries of a table in file order; the parser sorts them by name.
pub(crate) fn entries<'n>(table: &'n DeTable<'n>) -> Vec<Entry<'n>> {
    let entry = |(key, value): (&'n Spanned<_>, &'n _)| {
        let text: &std::borrow::Cow<'n, str> = key.get_ref();
        Entry { key: text, key_span: key.span(), value }
    };
    let mut all: Vec<_> = table.iter().map(entry).collect();
    all.sort_by_key(|e| e.key_span.start);
    all
}

/// The path of a list element: by its name, if it has one that reads well, else by index.
pub(crate) fn element_path(list: &str, index: usize, value: &DeValue<'_>) -> String {
    match element_name(value) {
        Some(name) => format!("{list}.{name}"),
        None => format!("{list}[{index}]"),
    }
}

/// The name by which a path calls a list element.
fn element_name<'n>(value: &'n DeValue<'n>) -> Option<&'n str> {
    let name = value.as_table()?.get("name")?.get_ref().as_str()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    (!name.is_empty() && name.len() <= 64 && name.chars().all(plain)).then_some(name)
}

impl<'a> Reader<'a> {
    /// A walk over a text.
    pub(crate) fn new(text: &'a str, outside: Outside<'a>) -> Self {
        Self { draft: Draft::new(text), outside, unread: HashSet::new() }
    }

    /// Whether a key is there but could not be read.
    pub(crate) fn is_unread(&self, parent: &str, key: &str) -> bool {
        self.unread.contains(&join(parent, key))
    }

    /// Reads one field of a mirror struct.
    pub(crate) fn field<T: FromNode>(
        &mut self,
        parent: &Node<'_>,
        entry: &Entry<'_>,
    ) -> Option<At<T>> {
        let path = join(&parent.path, entry.key);
        let read = At::read(&Node::new(path.clone(), entry.value), self);
        if read.is_none() {
            self.unread.insert(path);
        }
        read
    }

    /// Complains about a key that the mirror struct does not have.
    pub(crate) fn unknown(&mut self, parent: &Node<'_>, entry: &Entry<'_>, known: &[&str]) {
        // A mistyped `token` holds a token; a mistyped `bind` does not.
        let meant = closest(entry.key, known.iter().copied());
        if !meant.is_some_and(is_harmless) {
            mask_leaves(entry.value, &mut self.draft);
        }
        let path = join(&parent.path, entry.key);
        let hint = did_you_mean(entry.key, known.iter().copied());
        let spot = Spot { path, span: entry.key_span.clone(), ..Spot::default() };
        self.draft.fault(&spot, format!("unknown key{hint}"));
    }

    /// The string of a node after substitution.
    pub(crate) fn string(&mut self, node: &Node<'_>, secret: bool) -> Option<String> {
        let Some(text) = node.value.as_str() else {
            node.mismatch(self, "a string");
            return None;
        };
        match substitute(text, self.outside.env) {
            Ok(done) => Some(done.into_owned()),
            Err(message) => {
                self.draft.fault(&Spot { secret, ..node.spot() }, message);
                None
            }
        }
    }
}

fn mask_leaves(value: &Spanned<DeValue<'_>>, draft: &mut Draft<'_>) {
    match value.get_ref() {
        DeValue::Table(table) => table.iter().for_each(|(_, v)| mask_leaves(v, draft)),
        DeValue::Array(array) => array.iter().for_each(|v| mask_leaves(v, draft)),
        _ => draft.mask(value.span()),
    }
}

/// `parent.key`; a key that is not bare is quoted.
pub(crate) fn join(parent: &str, key: &str) -> String {
    let bare =
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_');
    let dot = if parent.is_empty() { "" } else { "." };
    if bare { format!("{parent}{dot}{key}") } else { format!("{parent}{dot}{key:?}") }
}

impl<T: FromNode> FromNode for At<T> {
    const SECRET: bool = T::SECRET;

    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        if T::SECRET {
            r.draft.mask(node.span.clone());
        }
        let value = T::read(node, r)?;
        Some(Self { value, spot: Spot { secret: T::SECRET, ..node.spot() } })
    }
}

impl FromNode for String {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        r.string(node, false)
    }
}

impl FromNode for bool {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        let value = node.value.as_bool();
        if value.is_none() {
            node.mismatch(r, "true or false");
        }
        value
    }
}

impl FromNode for i64 {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        let Some(integer) = node.value.as_integer() else {
            node.mismatch(r, "an integer");
            return None;
        };
        let value = i64::from_str_radix(integer.as_str(), integer.radix()).ok();
        if value.is_none() {
            r.draft.fault(&node.spot(), "integer too large");
        }
        value
    }
}

impl FromNode for f64 {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        let text = match (node.value.as_float(), node.value.as_integer()) {
            (Some(float), _) => float.as_str(),
            (_, Some(integer)) if integer.radix() == 10 => integer.as_str(),
            _ => {
                node.mismatch(r, "a number");
                return None;
            }
        };
        let value = text.parse().ok().filter(|v: &f64| v.is_finite());
        if value.is_none() {
            r.draft.fault(&node.spot(), format!("{text} is not a finite number"));
        }
        value
    }
}
