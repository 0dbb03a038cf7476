//! The kinds of values that keys have, beyond what TOML itself knows.
//!
//! Each reads itself from a `Node` and says in its complaint how it is written.
//! A kind that may hold a credential masks its span in the source and is never
//! quoted.

use std::path::Path;
use std::time::Duration;

use crate::base::units::{parse_duration, parse_size};
use crate::config::fault::{Spot, did_you_mean};
use crate::config::model::Secret;
use crate::config::names::Named;
use crate::config::reader::{At, FromNode, Node, Reader, join};

/// A time, written as `"250ms"`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Time(pub(crate) Duration);

impl FromNode for Time {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        if node.value.as_str().is_none() {
            node.mismatch(r, "a time such as \"30s\"");
            return None;
        }
        let text = r.string(node, false)?;
        match parse_duration(&text) {
            Ok(time) => Some(Self(time)),
            Err(why) => {
                let shown = r.draft.quote(&node.spot(), &text);
                r.draft.fault(
                    &node.spot(),
                    format!("{shown} is no time: {why}; write 250ms, 30s, 1h30m"),
                );
                None
            }
        }
    }
}

/// A size, written as `"64KiB"` or as a number of bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size(pub(crate) u64);

impl FromNode for Size {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        if node.value.is_integer() {
            let bytes = i64::read(node, r)?;
            let size = u64::try_from(bytes).ok();
            if size.is_none() {
                r.draft.fault(&node.spot(), format!("{bytes} is no size"));
            }
            return size.map(Self);
        }
        if node.value.as_str().is_none() {
            node.mismatch(r, "a size such as \"64KiB\"");
            return None;
        }
        let text = r.string(node, false)?;
        match parse_size(&text) {
            Ok(bytes) => Some(Self(bytes)),
            Err(why) => {
                let shown = r.draft.quote(&node.spot(), &text);
                r.draft.fault(
                    &node.spot(),
                    format!("{shown} is no size: {why}; write 512B, 64KiB, 1GiB"),
                );
                None
            }
        }
    }
}

/// One of a few words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OneOf<T>(pub(crate) T);

impl<T: Named> FromNode for OneOf<T> {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        let text = r.string(node, false)?;
        if let Some(value) = T::named(&text) {
            return Some(Self(value));
        }
        let names = || T::NAMES.iter().map(|(name, _)| *name);
        let hint = did_you_mean(&text, names());
        let list = names().collect::<Vec<_>>().join(", ");
        let shown = r.draft.quote(&node.spot(), &text);
        r.draft.fault(&node.spot(), format!("{shown} is none of {list}{hint}"));
        None
    }
}

impl<T: FromNode> FromNode for Vec<At<T>> {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        // Every element is read, also behind a bad one.
        let read: Vec<_> = node.list(r)?.iter().map(|n| At::read(n, r)).collect();
        Some(read.into_iter().flatten().collect())
    }
}

/// A value, or a list of such values.
#[derive(Debug, Clone)]
pub(crate) struct OneOrMany<T>(pub(crate) Vec<At<T>>);

impl<T: FromNode> FromNode for OneOrMany<T> {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        if node.value.is_array() {
            return Vec::read(node, r).map(Self);
        }
        At::read(node, r).map(|one| Self(vec![one]))
    }
}

/// A table whose keys are names of the user's choice.
#[derive(Debug, Clone)]
pub(crate) struct NameTable<T>(pub(crate) Vec<(At<String>, T)>);

impl<T> Default for NameTable<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: FromNode> FromNode for NameTable<T> {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        let mut all = Vec::new();
        for entry in node.table(r)? {
            let path = join(&node.path, entry.key);
            let spot = Spot { path: path.clone(), span: entry.key_span.clone(), ..Spot::default() };
            if let Some(value) = T::read(&Node::new(path, entry.value), r) {
                all.push((At { value: entry.key.to_owned(), spot }, value));
            }
        }
        Some(Self(all))
    }
}

/// A credential: `"…"` or `"file:/path"`; one line end behind that of a file or of a variable is
/// dropped.
#[derive(Debug, Clone)]
pub(crate) struct SecretText(pub(crate) Secret);

impl FromNode for SecretText {
    const SECRET: bool = true;

    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        let text = r.string(node, true)?;
        let Some(path) = text.strip_prefix("file:") else {
            // Out of a variable it may come with one; who writes one here means something else.
            let from_env = node.value.as_str().is_some_and(|text| text.contains("${"));
            let text = if from_env { without_line_end(&text) } else { &text };
            return Some(Self(Secret::new(text)));
        };
        match (r.outside.read)(Path::new(path)) {
            Ok(content) => Some(Self(Secret::new(without_line_end(&content)))),
            Err(why) => {
                let spot = Spot { secret: true, ..node.spot() };
                r.draft.fault(&spot, format!("cannot read the file of this secret: {why}"));
                None
            }
        }
    }
}

/// Drops one line end, which editors and `echo` leave behind a secret.
pub(crate) fn without_line_end(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// A URL that may hold a password or, in its query, a key; masked then.
#[derive(Debug, Clone)]
pub(crate) struct UrlText(pub(crate) String);

impl FromNode for UrlText {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        // By the text before substitution and, below, after it.
        if node.value.as_str().is_some_and(may_hold_secret) {
            r.draft.mask_url(node.span.clone());
        }
        let text = r.string(node, false)?;
        if may_hold_secret(&text) {
            r.draft.mask_url(node.span.clone());
        }
        Some(Self(text))
    }
}

/// Whether a URL has a userinfo part or a query.
pub(crate) fn may_hold_secret(url: &str) -> bool {
    url.contains(['@', '?'])
}
