//! The model's name where it stands in the request target.
//!
//! The one idea: a target is short and whole, so one pass tells the span of the name and
//! its decoded form, and a new name goes in place of that span and of nothing else.
//!
//! ```text
//! /v1beta/models/{m}:verb   /v1/models/{m}:verb   /models/{m}:verb     Gemini
//! /v1/models/{id}           /models/{id}                               OpenAI, a GET
//! any path with ?model={m}                                             Realtime, a GET
//! ```
//!
//! Percent-encoding is undone for the name alone (RFC 3986 §2.1; in a query `+` is a space,
//! as forms have it). Ids may hold raw slashes, as `meta-llama/Llama-3` does. Of several
//! `model` parameters servers take now the first, now the last, so different ones are a
//! fault. A base path before `/models` is the route's affair: strip it first.

use std::fmt;
use std::ops::Range;

use super::scan::NAME_BYTES_MAX;
use crate::http::head::RequestHead;
use crate::http::method::Method;

/// Why a target names no usable model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// The decoded name is longer than [`NAME_BYTES_MAX`].
    NameTooLong,
    /// A `%` without two hexadecimal digits, or bytes that are not UTF-8.
    BadEncoding,
    /// Two `model` parameters.
    ModelTwice,
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathFault::NameTooLong => {
                write!(f, "Invalid 'model': longer than {NAME_BYTES_MAX} bytes")
            }
            PathFault::BadEncoding => f.write_str("Invalid 'model': broken percent-encoding"),
            PathFault::ModelTwice => f.write_str("Invalid 'model': given twice"),
        }
    }
}

impl std::error::Error for PathFault {}

/// Where in a target the name stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelPosition {
    /// Gemini: the segments before `:verb`.
    Verb,
    /// `/v1/models/{id}`.
    Id,
    /// `?model=`.
    Query,
}

/// A model named by the target.
#[derive(Clone, Debug)]
pub struct PathModel {
    /// Decoded; at most `NAME_BYTES_MAX` bytes.
    name: Box<str>,
    start: usize,
    end: usize,
    place: ModelPosition,
}

impl PathModel {
    /// Finds the model that the target names: before a verb (Gemini), or, in a GET, as the last
    /// segment under `models` or in `?model=`.
    pub fn of_head(head: &RequestHead, bytes: &[u8]) -> Result<Option<Self>, PathFault> {
        let target = head.path_and_query(bytes);
        if let Some(found) = Self::of_verb(target)? {
            return Ok(Some(found));
        }
        if !matches!(head.method, Method::Get | Method::Head) {
            return Ok(None);
        }
        match Self::of_id(target)? {
            Some(found) => Ok(Some(found)),
            None => Self::of_query(target),
        }
    }

    /// Finds `{m}` of Gemini's `…/models/{m}:verb`.
    ///
    /// Shape: a target in origin form. A verb is letters alone, so `llama3:8b` is no verb.
    /// Errors: see [`PathFault`].
    pub fn of_verb(target: &[u8]) -> Result<Option<Self>, PathFault> {
        let path = path_of(target);
        let Some(start) = after_models(path) else { return Ok(None) };
        let Some(colon) = memchr::memrchr(b':', path) else { return Ok(None) };
        let verb = path.get(colon + 1..).unwrap_or_default();
        let is_verb = !verb.is_empty() && verb.iter().all(u8::is_ascii_alphabetic);
        if !is_verb || colon <= start {
            return Ok(None);
        }
        Self::read(target, start..colon, ModelPosition::Verb).map(Some)
    }

    /// Finds `{id}` of `…/models/{id}`, meant for GET.
    ///
    /// Errors: see [`PathFault`].
    pub fn of_id(target: &[u8]) -> Result<Option<Self>, PathFault> {
        let path = path_of(target);
        match after_models(path) {
            Some(start) if start < path.len() => {
                Self::read(target, start..path.len(), ModelPosition::Id).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Finds the query parameter `model`, an empty one included.
    ///
    /// Errors: see [`PathFault`].
    pub fn of_query(target: &[u8]) -> Result<Option<Self>, PathFault> {
        let target = target.split(|&b| b == b'#').next().unwrap_or_default();
        let mut found: Option<Self> = None;
        let mut start = path_of(target).len() + 1;
        while let Some(rest) = target.get(start..) {
            let len = memchr::memchr(b'&', rest).unwrap_or(rest.len());
            let pair = rest.get(..len).unwrap_or_default();
            let key = pair.split(|&b| b == b'=').next().unwrap_or_default();
            if is_model_key(key) {
                let value = start + (key.len() + 1).min(pair.len());
                let model = Self::read(target, value..start + len, ModelPosition::Query)?;
                if found.is_some() {
                    return Err(PathFault::ModelTwice);
                }
                found = Some(model);
            }
            start += len + 1;
        }
        Ok(found)
    }

    /// Tells the name, decoded.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells the offsets of the name in the target, as it stands there, end exclusive.
    pub fn span(&self) -> Range<usize> {
        self.start..self.end
    }

    /// Tells where it stands.
    pub fn place(&self) -> ModelPosition {
        self.place
    }

    /// Tells whether a name can stand there and the path stays in its normal form.
    ///
    /// `../x` behind a prefix that is taken away would climb out of `models`.
    pub fn may_be(&self, name: &str) -> bool {
        self.place == ModelPosition::Query
            || !name.split('/').any(|part| matches!(part, "" | "." | ".."))
    }

    /// Appends `target`, the one it was found in, to `out` with `name` in place of its own.
    ///
    /// Shape: every byte but the span's is copied as it is. What neither a path nor a query
    /// can carry plainly is percent-encoded; a slash stays, as in the ids that have one.
    pub fn replace(&self, target: &[u8], name: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(target.get(..self.start).unwrap_or_default());
        for &byte in name.as_bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~:@".contains(&byte) || byte == b'/' {
                out.push(byte);
            } else {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(&[
                    b'%',
                    HEX[usize::from(byte >> 4)],
                    HEX[usize::from(byte & 15)],
                ]);
            }
        }
        out.extend_from_slice(target.get(self.end..).unwrap_or_default());
    }

    fn read(target: &[u8], span: Range<usize>, place: ModelPosition) -> Result<Self, PathFault> {
        let (Range { start, end }, is_query) = (span.clone(), place == ModelPosition::Query);
        let mut name = Vec::with_capacity(span.len().min(NAME_BYTES_MAX));
        for byte in decoded(target.get(span).unwrap_or_default(), is_query) {
            if name.len() == NAME_BYTES_MAX {
                return Err(PathFault::NameTooLong);
            }
            name.push(byte.ok_or(PathFault::BadEncoding)?);
        }
        let name = String::from_utf8(name).map_err(|_| PathFault::BadEncoding)?.into();
        Ok(Self { name, start, end, place })
    }
}

/// Segments of a path behind which servers read the name of a model, lower case.
const NAME_FOLLOWS: [(&[u8], Extent); 9] = [
    (b"models", Extent::Rest),
    (b"tunedmodels", Extent::Rest),
    (b"endpoints", Extent::Segment { verb: true }),
    (b"endpoint", Extent::Segment { verb: true }),
    (b"model", Extent::Segment { verb: false }),
    (b"deployments", Extent::Segment { verb: false }),
    (b"deployment", Extent::Segment { verb: false }),
    (b"engines", Extent::Segment { verb: false }),
    (b"engine", Extent::Segment { verb: false }),
];

/// How much of what follows is the name.
#[derive(Clone, Copy)]
enum Extent {
    /// All of it, but for a `:verb`.
    Rest,
    /// One segment, but for what a `verb` adds to it.
    Segment { verb: bool },
}

/// Tells whether path or query name a model that is not `name`, in any form that a server may
/// read: Gemini's and Vertex's `…/models/NAME:verb` and `…/endpoints/NAME:verb`, Azure's
/// `…/deployments/NAME/…`, Bedrock's `/model/NAME/…`, `…/engines/NAME/…`, `?model=NAME`.
///
/// Shape: `path` without query, `query` without its `?`. What cannot be decoded is another.
/// As servers differ, `\` is a slash here, `;` parts a query, and what it adds to a segment is
/// none of its name; a name that has these itself is another, too.
pub fn names_other(path: &[u8], query: &[u8], name: &str) -> bool {
    let is_name = |bytes: &[u8], is_query| decoded(bytes, is_query).eq(name.bytes().map(Some));
    let is_slash = |byte: &u8| matches!(byte, b'/' | b'\\');
    let mut start = 0;
    while let Some(rest) = path.get(start..) {
        let len = rest.iter().position(is_slash).unwrap_or(rest.len());
        let segment = before_semicolon(rest.get(..len).unwrap_or_default());
        let after = rest.get(len + 1..).unwrap_or_default();
        let lower = decoded(segment, false).map(|byte| byte.map(|b| b.to_ascii_lowercase()));
        let lower: Vec<Option<u8>> = lower.take(NAME_BYTES_MAX).collect();
        let follows = NAME_FOLLOWS
            .iter()
            .find(|(word, _)| lower.iter().copied().eq(word.iter().map(|byte| Some(*byte))));
        if let Some((_, extent)) = follows
            && !after.is_empty()
        {
            let next = after.split(is_slash).next().unwrap_or_default();
            let named = match extent {
                Extent::Rest => without_verb(after),
                Extent::Segment { verb: true } => without_verb(next),
                Extent::Segment { verb: false } => next,
            };
            if !is_name(named, false) {
                return true;
            }
        }
        start += len + 1;
    }
    names_other_in_query(query, is_name)
}

fn names_other_in_query(query: &[u8], is_name: impl Fn(&[u8], bool) -> bool) -> bool {
    let names_other = |pair: &[u8]| {
        let key = pair.split(|&byte| byte == b'=').next().unwrap_or_default();
        let value = pair.get(key.len() + 1..).unwrap_or_default();
        is_model_key(key) && !is_name(value, true)
    };
    query.split(|&byte| byte == b'&').any(names_other)
        || query.split(|byte| b"&;".contains(byte)).any(names_other)
}

fn before_semicolon(segment: &[u8]) -> &[u8] {
    segment.split(|&byte| byte == b';').next().unwrap_or_default()
}

/// What stands before `:verb`, if there is one.
fn without_verb(path: &[u8]) -> &[u8] {
    let Some(colon) = memchr::memrchr(b':', path) else { return path };
    let verb = path.get(colon + 1..).unwrap_or_default();
    let is_verb = !verb.is_empty() && verb.iter().all(u8::is_ascii_alphabetic);
    if is_verb { path.get(..colon).unwrap_or_default() } else { path }
}

/// Cuts query and fragment off.
fn path_of(target: &[u8]) -> &[u8] {
    let end = memchr::memchr2(b'?', b'#', target).unwrap_or(target.len());
    target.get(..end).unwrap_or_default()
}

/// Tells where the name begins after one of the three prefixes.
fn after_models(path: &[u8]) -> Option<usize> {
    let prefixes: [&[u8]; 3] = [b"/v1/models/", b"/v1beta/models/", b"/models/"];
    prefixes.into_iter().find(|prefix| path.starts_with(prefix)).map(<[u8]>::len)
}

fn is_model_key(key: &[u8]) -> bool {
    decoded(key, true).eq(b"model".iter().map(|&b| Some(b)))
}

/// Undoes percent-encoding; `None` stands for a broken escape and is the last item.
fn decoded(bytes: &[u8], is_query: bool) -> impl Iterator<Item = Option<u8>> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (&byte, after) = rest.split_first()?;
        rest = after;
        if byte == b'+' && is_query {
            return Some(Some(b' '));
        }
        if byte != b'%' {
            return Some(Some(byte));
        }
        let value = after.first_chunk::<2>().and_then(|&[high, low]| {
            let digit = |b: u8| (b as char).to_digit(16);
            u8::try_from(digit(high)? << 4 | digit(low)?).ok()
        });
        rest = if value.is_some() { after.get(2..).unwrap_or_default() } else { &[] };
        Some(value)
    })
}

/// Reads `data` as a target; what is found lies in it, and a new name can be read back.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    for find in [PathModel::of_verb, PathModel::of_id, PathModel::of_query] {
        let Ok(Some(model)) = find(data) else { continue };
        // What names this one in a place of its own names another in the eyes of all others.
        if model.place() != ModelPosition::Query {
            let path = path_of(data);
            assert!(names_other(path, b"", &format!("{}x", model.name())));
        }
        assert!(model.span().start <= model.span().end && model.span().end <= data.len());
        assert!(model.name().len() <= 3 * model.span().len().max(1));
        let mut out = Vec::new();
        model.replace(data, "new+name é", &mut out);
        assert!(
            out.starts_with(&data[..model.span().start])
                && out.ends_with(&data[model.span().end..])
        );
        // An empty name may lack its `=`; it names no model, so nothing is put in its place.
        let replaceable = !model.span().is_empty();
        if let (Ok(Some(again)), true) = (find(&out), replaceable) {
            assert_eq!(again.name(), "new+name é");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Find = fn(&[u8]) -> Result<Option<PathModel>, PathFault>;

    fn check(find: Find, target: &str, want: Option<(&str, &str)>) {
        let got = find(target.as_bytes()).unwrap_or_else(|fault| panic!("{fault}: {target}"));
        let got = got.as_ref().map(|model| (&target[model.span()], model.name()));
        assert_eq!(got, want, "{target}");
    }

    #[test]
    fn gemini_names_the_model_before_the_verb() {
        let check = |target, want| check(PathModel::of_verb, target, want);
        check(
            "/v1beta/models/gemini-2.0-flash:generateContent",
            Some(("gemini-2.0-flash", "gemini-2.0-flash")),
        );
        check("/v1/models/g:streamGenerateContent?alt=sse&x=a:b", Some(("g", "g")));
        check("/models/g:countTokens", Some(("g", "g")));
        check("/v1beta/models/llama3:8b:embedContent", Some(("llama3:8b", "llama3:8b")));
        check("/v1beta/models/a%2Fb%3Ac:verb", Some(("a%2Fb%3Ac", "a/b:c")));
        check("/v1beta/models/org/name:verb", Some(("org/name", "org/name")));
        for none in [
            "/v1/models/llama3:8b",
            "/v1/models/g",
            "/v1/models/:verb",
            "/v1/models/g:",
            "/v1/chat/completions",
            "/x/models/g:verb",
            "*",
            "",
        ] {
            check(none, None);
        }
    }

    #[test]
    fn a_get_names_the_model_as_the_rest_of_the_path() {
        let check = |target, want| check(PathModel::of_id, target, want);
        check("/v1/models/llama3:8b?x=1", Some(("llama3:8b", "llama3:8b")));
        check("/v1/models/meta-llama/Llama-3", Some(("meta-llama/Llama-3", "meta-llama/Llama-3")));
        check(
            "/v1/models/meta%2dllama%2FLlama+3",
            Some(("meta%2dllama%2FLlama+3", "meta-llama/Llama+3")),
        );
        for none in ["/v1/models", "/v1/models/", "/v1/models?id=a", "/v1/modelsx/a"] {
            check(none, None);
        }
    }

    #[test]
    fn the_query_may_name_the_model() {
        let check = |target, want| check(PathModel::of_query, target, want);
        check("/v1/realtime?model=gpt-4o", Some(("gpt-4o", "gpt-4o")));
        check("/v1/realtime?a=1&model=a%2fb+c&z", Some(("a%2fb+c", "a/b c")));
        check("/x?mod%65l=a=b", Some(("a=b", "a=b")));
        check("/x?model", Some(("", "")));
        check("/x?model=#y", Some(("", "")));
        for none in ["/x", "/x?", "/x?models=a&amodel=b&=model", "/x#?model=a", "/model=a"] {
            check(none, None);
        }
    }

    #[test]
    fn refuses_what_is_no_name() {
        let check = |target: &str, fault| {
            assert_eq!(PathModel::of_query(target.as_bytes()).unwrap_err(), fault)
        };
        check("/x?model=a&model=b", PathFault::ModelTwice);
        // Equal ones too: a rename would change one of them.
        check("/x?model=a&model=%61", PathFault::ModelTwice);
        for broken in ["/x?model=%", "/x?model=%4", "/x?model=%4g", "/x?model=%ff", "/x?model=%+1"]
        {
            check(broken, PathFault::BadEncoding);
        }
        check(&format!("/x?model={}", "%61".repeat(257)), PathFault::NameTooLong);
        assert!(PathModel::of_query(format!("/x?model={}", "%61".repeat(256)).as_bytes()).is_ok());
    }

    #[test]
    fn every_place_of_a_target_that_names_another_model_is_seen() {
        let other = |target: &str| {
            let (path, query) = target.split_once('?').unwrap_or((target, ""));
            names_other(path.as_bytes(), query.as_bytes(), "small")
        };
        for target in [
            "/v1/models/big",
            "/v1alpha/models/big:generateContent",
            "/v1/publishers/google/models/big:streamGenerateContent",
            "/v1beta/%6dodels/big:x",
            "/v1beta/Models/big:x",
            "/v1beta/models/b%69g:x",
            "/v1beta/models/small/big:x",
            "/v1beta/tunedModels/big:x",
            "/v1/projects/p/locations/l/endpoints/big:predict",
            "/v1beta/models;a=b/big:x",
            "/v1beta\\models\\big:x",
            "/v1beta/models/small/models/big:x",
            "/v1beta/models/small;a=b:x",
            "/x?a=1;model=big",
            "/openai/deployments/big/chat/completions",
            "/v1/engines/big/completions",
            "/model/big/converse",
            "/model/small/models/big",
            "/x?model=big",
            "/x?mod%65l=b%69g&y",
            "/x?model=small&model=big",
            "/x?model",
            "/v1/models/%",
            "/v1/models/small?model=big",
        ] {
            assert!(other(target), "{target}");
        }
        for target in [
            "/v1/chat/completions",
            "/v1/models",
            "/v1/models/",
            "/v1/models/small",
            "/v1/models/sm%61ll:x",
            "/openai/deployments/small/chat/completions?api-version=1",
            "/model/small/invoke",
            "/v1/endpoints/small:predict",
            "/v1/endpoints/small/x",
            "/x?a=1;model=small",
            "/x?model=sm%61ll&models=big",
            "/modelsx/big",
        ] {
            assert!(!other(target), "{target}");
        }
    }

    #[test]
    fn only_the_span_is_replaced() {
        let replaced = |find: Find, target: &str, name| {
            let mut out = Vec::new();
            find(target.as_bytes()).unwrap().unwrap().replace(target.as_bytes(), name, &mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            replaced(PathModel::of_verb, "/v1beta/models/a%20b:verb?k=%20", "org/n?w"),
            "/v1beta/models/org/n%3Fw:verb?k=%20"
        );
        assert_eq!(
            replaced(PathModel::of_query, "/x?b=1&model=a&c=2", "é&+"),
            "/x?b=1&model=%C3%A9%26%2B&c=2"
        );
    }

    #[test]
    fn a_new_name_does_not_climb() {
        let verb = PathModel::of_verb(b"/v1beta/models/m:verb").unwrap().unwrap();
        let query = PathModel::of_query(b"/x?model=m").unwrap().unwrap();
        for name in ["../x", "a/..", "a/./b", "a//b", "", "/a", ".."] {
            assert!(!verb.may_be(name) && query.may_be(name), "{name}");
        }
        assert!(verb.may_be("meta/llama..3"));
    }

    proptest! {
        #[test]
        fn a_new_name_is_read_back(name in "[^\0]{1,40}") {
            for (find, target) in [
                (PathModel::of_verb as Find, "/v1beta/models/old:verb?x=1"),
                (PathModel::of_id, "/v1/models/old?x=1"),
                (PathModel::of_query, "/x?a=b&model=old&c=d"),
            ] {
                let mut out = Vec::new();
                find(target.as_bytes()).unwrap().unwrap().replace(target.as_bytes(), &name, &mut out);
                let again = find(&out).unwrap().unwrap();
                prop_assert_eq!(again.name(), &name);
                prop_assert!(out.iter().all(u8::is_ascii_graphic));
            }
        }

        #[test]
        fn no_input_panics(data in prop::collection::vec(any::<u8>(), 0..100)) {
            fuzz(&data);
        }

        #[test]
        fn no_target_panics(data in "(/v1|/v1beta|/models/|\\?|&|model|=|%[0-9a-f]{1,2}|:|#|[a-z+]){0,20}") {
            fuzz(data.as_bytes());
        }
    }
}
