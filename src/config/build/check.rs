//! Small checks that every section needs: ranges, required keys, names, references.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::base::units::{format_duration, format_size};
use crate::config::fault::{Spot, did_you_mean};
use crate::config::names::Named;
use crate::config::reader::{At, Reader};
use crate::config::values::{OneOf, Size, Time};

/// Most suggestions for unknown names of one kind; nobody reads more.
const HINTS_MAX: usize = 100;
/// Longest name of anything, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Names of all kinds, each with its ids.
pub(crate) struct AllNames {
    pub(crate) listeners: Names,
    pub(crate) keys: Names,
    pub(crate) upstreams: Names,
    pub(crate) groups: Names,
}

/// The elements of a repeated section.
pub(crate) fn each<T>(section: &Option<At<Vec<At<T>>>>) -> &[At<T>] {
    section.as_ref().map_or(&[], |at| at.value.as_slice())
}

/// A section as said, or an empty one.
pub(crate) fn section<T: Clone + Default>(at: &Option<At<T>>) -> T {
    at.as_ref().map_or_else(T::default, |at| at.value.clone())
}

/// Whole seconds as a duration.
pub(crate) const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// An integer within its range, or the default.
pub(crate) fn number<T: TryFrom<i64> + Copy + Into<i64>>(
    r: &mut Reader<'_>,
    at: &Option<At<i64>>,
    default: T,
    range: RangeInclusive<i64>,
) -> T {
    let Some(At { value, spot }) = at else { return default };
    match (range.contains(value), T::try_from(*value)) {
        (true, Ok(value)) => value,
        _ => {
            let message = format!("{value} is out of range {}..{}", range.start(), range.end());
            r.draft.fault(spot, message);
            default
        }
    }
}

/// An unsigned 64-bit count, 0 included, or the default.
pub(crate) fn count(r: &mut Reader<'_>, at: &Option<At<i64>>, default: u64) -> u64 {
    let Some(At { value, spot }) = at else { return default };
    u64::try_from(*value).unwrap_or_else(|_| {
        r.draft.fault(spot, format!("{value} is out of range 0..{}", i64::MAX));
        default
    })
}

/// A fraction within its range, or the default.
pub(crate) fn fraction(
    r: &mut Reader<'_>,
    at: &Option<At<f64>>,
    default: f64,
    range: RangeInclusive<f64>,
) -> f64 {
    let Some(At { value, spot }) = at else { return default };
    if range.contains(value) {
        return *value;
    }
    let message = format!("{value} is out of range {:?}..{:?}", range.start(), range.end());
    r.draft.fault(spot, message);
    default
}

/// A time within its range, or the default.
pub(crate) fn time(
    r: &mut Reader<'_>,
    at: &Option<At<Time>>,
    default: Duration,
    range: RangeInclusive<Duration>,
) -> Duration {
    let Some(At { value: Time(value), spot }) = at else { return default };
    if range.contains(value) {
        return *value;
    }
    let (min, max) = (format_duration(*range.start()), format_duration(*range.end()));
    let shown = format_duration(*value);
    r.draft.fault(spot, format!("{shown} is out of range {min}..{max}"));
    default
}

/// A size within its range, or the default.
pub(crate) fn size(
    r: &mut Reader<'_>,
    at: &Option<At<Size>>,
    default: u64,
    range: RangeInclusive<u64>,
) -> u64 {
    let Some(At { value: Size(value), spot }) = at else { return default };
    if range.contains(value) {
        return *value;
    }
    let (min, max) = (format_size(*range.start()), format_size(*range.end()));
    r.draft.fault(spot, format!("{} is out of range {min}..{max}", format_size(*value)));
    default
}

/// A word's meaning, or the default.
pub(crate) fn word<T: Named>(at: &Option<At<OneOf<T>>>, default: T) -> T {
    at.as_ref().map_or(default, |at| at.value.0)
}

/// A plain value, or the default.
pub(crate) fn value<T: Copy>(at: &Option<At<T>>, default: T) -> T {
    at.as_ref().map_or(default, |at| at.value)
}

/// A string that is there and not empty.
pub(crate) fn filled(at: &Option<At<String>>) -> Option<&At<String>> {
    at.as_ref().filter(|at| !at.value.is_empty())
}

/// A string that must be there and not empty.
pub(crate) fn required<'r>(
    r: &mut Reader<'_>,
    at: &'r Option<At<String>>,
    parent: &Spot,
    key: &str,
) -> Option<&'r At<String>> {
    match at {
        None => missing(r, parent, key),
        Some(at) if at.value.is_empty() => r.draft.fault(&at.spot, "must not be empty"),
        Some(at) => return Some(at),
    }
    None
}

/// Complains about a key that must be there.
pub(crate) fn missing(r: &mut Reader<'_>, parent: &Spot, key: &str) {
    if !r.is_unread(&parent.path, key) {
        r.draft.fault(parent, format!("missing key {key:?}"));
    }
}

/// Names of one kind with their indexes, and which of them are used.
pub(crate) struct Names {
    kind: &'static str,
    /// May a name hold `:` and `@`, which model names use to point at an upstream?
    plain: bool,
    by_name: HashMap<String, Entry>,
    used: HashSet<u16>,
    hints_left: usize,
}

struct Entry {
    ids: Vec<u16>,
    spot: Spot,
}

impl Names {
    pub(crate) fn new(kind: &'static str, plain: bool) -> Self {
        Self { kind, plain, by_name: HashMap::new(), used: HashSet::new(), hints_left: HINTS_MAX }
    }

    /// Declares a name; complains when it is bad or was declared before.
    pub(crate) fn declare(&mut self, r: &mut Reader<'_>, name: &str, spot: &Spot, ids: Vec<u16>) {
        if let Some(why) = self.bad_name(name) {
            let shown = r.draft.quote(spot, name);
            r.draft.fault(spot, format!("{shown} is no name: {why}"));
        }
        if let Some(first) = self.by_name.get(name) {
            let line = r.draft.line_of(&first.spot);
            let shown = r.draft.quote(spot, name);
            let message =
                format!("duplicate {} {shown}, the first stands in line {line}", self.kind);
            r.draft.fault(spot, message);
            return;
        }
        self.by_name.insert(name.to_owned(), Entry { ids, spot: spot.clone() });
    }

    fn bad_name(&self, name: &str) -> Option<&'static str> {
        let printable = |c: char| c.is_ascii_graphic();
        if name.len() > NAME_BYTES_MAX {
            Some("more than 128 bytes")
        } else if name == "*" {
            Some("it means all of them")
        } else if !name.chars().all(printable) {
            Some("only visible ASCII characters, no blanks")
        } else if self.plain && name.contains([':', '@', '/']) {
            Some("\":\", \"@\" and \"/\" have a meaning in model names")
        } else {
            None
        }
    }

    /// Finds the ids of a name and marks them used; complains when there are none.
    pub(crate) fn find(&mut self, r: &mut Reader<'_>, at: &At<String>) -> Option<Vec<u16>> {
        if let Some(entry) = self.by_name.get(&at.value) {
            self.used.extend(&entry.ids);
            return Some(entry.ids.clone());
        }
        // The search for what is meant compares with every name there is.
        let known = self.by_name.keys().map(String::as_str);
        let hint = match self.hints_left.checked_sub(1) {
            Some(left) => {
                self.hints_left = left;
                did_you_mean(&at.value, known)
            }
            None => String::new(),
        };
        let shown = r.draft.quote(&at.spot, &at.value);
        r.draft.fault(&at.spot, format!("no {} named {shown}{hint}", self.kind));
        None
    }

    /// As `find`, of a kind whose names have one id each.
    pub(crate) fn find_one(&mut self, r: &mut Reader<'_>, at: &At<String>) -> Option<u16> {
        self.find(r, at)?.first().copied()
    }

    /// The ids of a name; nothing is marked.
    pub(crate) fn ids(&self, name: &str) -> impl Iterator<Item = u16> + use<> {
        self.by_name.get(name).map_or_else(Vec::new, |entry| entry.ids.clone()).into_iter()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    pub(crate) fn is_used(&self, id: u16) -> bool {
        self.used.contains(&id)
    }

    pub(crate) fn mark_used(&mut self, id: u16) {
        self.used.insert(id);
    }
}

/// An index as an id; complains past 65535 of a kind.
pub(crate) fn id(r: &mut Reader<'_>, index: usize, spot: &Spot) -> u16 {
    u16::try_from(index).unwrap_or_else(|_| {
        r.draft.fault(spot, "more than 65536 of a kind");
        0
    })
}

/// Whether a text may stand in a header field's value.
pub(crate) fn is_field_value(bytes: &[u8]) -> bool {
    bytes.iter().all(|b| matches!(b, b'\t' | 0x20..=0x7e | 0x80..))
        && bytes.first().is_none_or(|b| !matches!(b, b' ' | b'\t'))
        && bytes.last().is_none_or(|b| !matches!(b, b' ' | b'\t'))
}

/// Whether a text is a token (RFC 9110 §5.6.2): a field name, a method.
pub(crate) fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// The text of an optional string, empty when it is not there.
pub(crate) trait AtText {
    /// The text itself.
    fn text(&self) -> String;
}

impl AtText for Option<At<String>> {
    fn text(&self) -> String {
        self.as_ref().map_or_else(String::new, |at| at.value.clone())
    }
}
