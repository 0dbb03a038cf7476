//! Builds header edits: of requests to an upstream and of its probes.

use crate::config::build::check::{is_field_value, is_token, missing, required, word};
use crate::config::model::*;
use crate::config::raw::RawHeaderOp;
use crate::config::reader::{At, Reader};

/// Fields that are ours to write: framing, and what holds for one hop only.
const FIELDS_OURS: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// Header edits, checked; framing and hop-by-hop fields are refused.
pub(crate) fn header_ops(r: &mut Reader<'_>, list: &[At<RawHeaderOp>]) -> Vec<HeaderOp> {
    list.iter().filter_map(|at| header_op(r, at)).collect()
}

fn header_op(r: &mut Reader<'_>, at: &At<RawHeaderOp>) -> Option<HeaderOp> {
    let raw = &at.value;
    let op = word(&raw.op, HeaderAction::Insert);
    let key = required(r, &raw.key, &at.spot, "key")?;
    let name = field_name(r, key)?;
    if FIELDS_OURS.contains(&name.as_str()) {
        r.draft.fault(&key.spot, format!("{name} is written by the proxy itself"));
    }
    match (&raw.value, op) {
        (None, HeaderAction::Insert | HeaderAction::Replace) => {
            missing(r, &at.spot, "value");
        }
        (Some(value), HeaderAction::Remove) => {
            r.draft.fault(&value.spot, "remove takes no value");
        }
        (Some(value), _) if !is_field_value(value.value.0.as_bytes()) => {
            r.draft.fault(&value.spot, "holds a control byte, or a blank at an end");
        }
        _ => {}
    }
    let value = raw.value.as_ref().map_or_else(String::new, |at| at.value.0.clone());
    Some(HeaderOp { op, name, value })
}

/// A field name in lower case.
pub(crate) fn field_name(r: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    if is_token(&at.value) {
        return Some(at.value.to_ascii_lowercase());
    }
    let shown = r.draft.quote(&at.spot, &at.value);
    r.draft.fault(&at.spot, format!("{shown} is no field name"));
    None
}

/// A text that a field can carry.
pub(crate) fn field_value(r: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    if is_field_value(at.value.as_bytes()) {
        return Some(at.value.clone());
    }
    r.draft.fault(&at.spot, "holds a control byte, or a blank at an end");
    None
}
