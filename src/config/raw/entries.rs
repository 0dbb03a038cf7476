//! Values that may be written in more than one way, and header edits.

use toml::de::DeValue;

use crate::config::model::HeaderAction;
use crate::config::reader::{At, FromNode, Node, Reader};
use crate::config::values::OneOf;

use super::mirror::mirror;

/// `process.cores`.
#[derive(Debug, Clone)]
pub(crate) enum CoresEntry {
    Auto,
    Count(i64),
    List(Vec<At<i64>>),
}

impl FromNode for CoresEntry {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            DeValue::Integer(_) => i64::read(node, r).map(Self::Count),
            DeValue::Array(_) => Vec::read(node, r).map(Self::List),
            DeValue::String(_) => {
                let text = r.string(node, false)?;
                if text == "auto" {
                    return Some(Self::Auto);
                }
                // "${CORES}" can only be a string.
                if let Ok(count) = text.parse() {
                    return Some(Self::Count(count));
                }
                let shown = r.draft.quote(&node.spot(), &text);
                r.draft.fault(&node.spot(), format!("{shown} is neither \"auto\" nor a number"));
                None
            }
            _ => {
                node.mismatch(r, "\"auto\", a number or a list of core numbers");
                None
            }
        }
    }
}

/// `key.expires`: a string or a TOML date.
#[derive(Debug, Clone)]
pub(crate) struct DateText(pub(crate) String);

impl FromNode for DateText {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        match node.value {
            DeValue::Datetime(date) => Some(Self(date.to_string())),
            _ => r.string(node, false).map(Self),
        }
    }
}

/// One of `group.members`.
#[derive(Debug, Clone)]
pub(crate) struct MemberEntry(pub(crate) RawMember);

impl FromNode for MemberEntry {
    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        if node.value.is_str() {
            let upstream = At::read(node, r);
            return Some(Self(RawMember { upstream, weight: None }));
        }
        RawMember::read(node, r).map(Self)
    }
}

/// A text that may hold a credential (header value, probe body), hence never quoted.
#[derive(Debug, Clone)]
pub(crate) struct HeaderValue(pub(crate) String);

impl FromNode for HeaderValue {
    const SECRET: bool = true;

    fn read(node: &Node<'_>, r: &mut Reader<'_>) -> Option<Self> {
        r.string(node, true).map(Self)
    }
}

mirror! {
    /// One of `group.members`.
    RawMember {
        /// Name of the upstream.
        #[schemars(required)]
        upstream: String,
        /// 1..65535.
        weight: i64,
    }
    /// One of `headers`.
    RawHeaderOp {
        /// insert, replace or remove.
        op: OneOf<HeaderAction>,
        /// Field name.
        #[schemars(required)]
        key: String,
        /// Field value.
        value: HeaderValue,
    }
}
