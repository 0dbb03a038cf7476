//! The grammar of path patterns, and their rank.
//!
//! A pattern begins with `/` and is cut at `/` into segments: a literal, `:name` (any
//! one segment), `{name:regex}` (one segment that the regex matches from end to end), `*` in the
//! middle (any one segment), `*` at the end (everything from there on, also nothing). Only a
//! whole segment is special: `a*b`, `gpt:chat` are literals. A slash inside braces belongs to
//! the regex; a lone brace in a regex is written `\{`.
//!
//! Names are for the reader of the config: nothing is captured. Paths are compared byte for
//! byte, in the normal form that `http::path` gives them: `%2F` is not a slash.
//!
//! Of all patterns that match a path the lowest `Rank` wins; a pattern without any wildcard
//! first, then more literal segments, more regexes, more names, the longer one, and the one
//! declared first. A `*` counts for nothing, hence comes last.

use std::cmp::Reverse;
use std::fmt;

use regex::bytes::{Regex, RegexBuilder};

use crate::http::path;

/// Most segments a pattern may have; the depth of the route tree.
pub const SEGMENTS_MAX: usize = 64;
/// Largest compiled size of one regex, in bytes.
const REGEX_BYTES_MAX: usize = 256 * 1024;

/// One segment of a pattern.
#[derive(Clone, Debug)]
pub(super) enum Segment {
    /// These bytes, possibly none (`//`, or a slash at the end).
    Literal(Box<[u8]>),
    /// `{name:regex}`.
    Regex(SegmentRegex),
    /// `:name`.
    Named,
    /// `*` in the middle.
    Star,
    /// `*` at the end.
    Tail,
}

/// The regex of one segment, anchored on both sides.
#[derive(Clone, Debug)]
pub(super) struct SegmentRegex {
    /// As written; two regexes are the same when their sources are.
    pub(super) source: Box<str>,
    matcher: Regex,
}

impl SegmentRegex {
    pub(super) fn matches(&self, segment: &[u8]) -> bool {
        self.matcher.is_match(segment)
    }
}

impl Segment {
    /// Tells whether two segments match the same and rank the same.
    pub(super) fn same(&self, other: &Segment) -> bool {
        match (self, other) {
            (Segment::Literal(a), Segment::Literal(b)) => a == b,
            (Segment::Regex(a), Segment::Regex(b)) => a.source == b.source,
            (Segment::Named, Segment::Named) => true,
            (Segment::Star, Segment::Star) => true,
            (Segment::Tail, Segment::Tail) => true,
            _ => false,
        }
    }

    /// Tells whether one segment of a path fits. A wildcard never stands for an empty one.
    pub(super) fn fits(&self, segment: &[u8]) -> bool {
        match self {
            Segment::Literal(bytes) => **bytes == *segment,
            Segment::Regex(regex) => !segment.is_empty() && regex.matches(segment),
            Segment::Named | Segment::Star => !segment.is_empty(),
            Segment::Tail => true,
        }
    }
}

/// The order among patterns that match one path: the lowest wins.
///
/// Counts are reversed, so that more comes first; `declared` makes every rank unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    wild: bool,
    literals: Reverse<u8>,
    regexes: Reverse<u8>,
    names: Reverse<u8>,
    length: Reverse<u8>,
    declared: u32,
}

impl Rank {
    pub(super) fn of(segments: &[Segment], declared: u32) -> Rank {
        let count = |wanted: fn(&Segment) -> bool| {
            Reverse(segments.iter().filter(|segment| wanted(segment)).count() as u8)
        };
        Rank {
            wild: segments.iter().any(|s| !matches!(s, Segment::Literal(_))),
            literals: count(|s| matches!(s, Segment::Literal(_))),
            regexes: count(|s| matches!(s, Segment::Regex(_))),
            names: count(|s| matches!(s, Segment::Named)),
            length: count(|_| true),
            declared,
        }
    }
}

/// Why a pattern is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatternWhy {
    /// It does not begin with `/`.
    NoSlash,
    /// It has more segments than `SEGMENTS_MAX`.
    TooLong,
    /// A `:` without a name of letters, digits and `_`.
    BadName,
    /// A segment that begins with `{` and is not `{name:regex}`.
    BadBraces,
    /// A regex that does not compile, or is too large; the text says which.
    BadRegex(String),
    /// It matches the same as the pattern at this index.
    SameAs(usize),
}

impl fmt::Display for PatternWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PatternWhy::NoSlash => f.write_str("a path pattern begins with /"),
            PatternWhy::TooLong => write!(f, "more than {SEGMENTS_MAX} segments"),
            PatternWhy::BadName => f.write_str("a name is letters, digits and _, as in :id"),
            PatternWhy::BadBraces => f.write_str("a regex segment is written {name:regex}"),
            PatternWhy::BadRegex(why) => write!(f, "bad regex: {why}"),
            PatternWhy::SameAs(index) => write!(f, "matches the same as route {index}"),
        }
    }
}

/// Parses a pattern into its segments; there is at least one, and only the last is a tail.
pub(super) fn parse(pattern: &str) -> Result<Vec<Segment>, PatternWhy> {
    let mut rest = Some(pattern.strip_prefix('/').ok_or(PatternWhy::NoSlash)?);
    let mut segments = Vec::new();
    while let Some(text) = rest {
        let end = segment_end(text)?;
        let (segment, after) = text.split_at(end);
        rest = after.strip_prefix('/');
        segments.push(parse_segment(segment, rest.is_none())?);
        if segments.len() > SEGMENTS_MAX {
            return Err(PatternWhy::TooLong);
        }
    }
    Ok(segments)
}

/// Tells whether a pattern can match a path in normal form, which is the only one compared.
#[must_use]
pub fn is_normal(pattern: &str) -> bool {
    let Ok(segments) = parse(pattern) else { return true };
    let (last, others) = segments.split_last().map_or((None, &[][..]), |(l, o)| (Some(l), o));
    let is_normal = |segment: &Segment, may_be_empty: bool| match segment {
        Segment::Literal(bytes) if bytes.is_empty() => may_be_empty,
        Segment::Literal(bytes) => path::is_normal(&[b"/", &**bytes].concat()),
        _ => true,
    };
    others.iter().all(|segment| is_normal(segment, false))
        && last.is_none_or(|segment| is_normal(segment, true))
}

/// Finds the end of the first segment: the next slash outside braces.
fn segment_end(text: &str) -> Result<usize, PatternWhy> {
    if !text.starts_with('{') {
        return Ok(text.find('/').unwrap_or(text.len()));
    }
    let mut depth = 0u32;
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'{' => depth += 1,
            b'}' if depth == 1 => return after_braces(text, at + 1),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    Err(PatternWhy::BadBraces)
}

/// Lets nothing but a slash or the end follow a closing brace.
fn after_braces(text: &str, end: usize) -> Result<usize, PatternWhy> {
    match text.as_bytes().get(end) {
        None | Some(b'/') => Ok(end),
        Some(_) => Err(PatternWhy::BadBraces),
    }
}

fn parse_segment(text: &str, last: bool) -> Result<Segment, PatternWhy> {
    match text.as_bytes() {
        b"*" if last => Ok(Segment::Tail),
        b"*" => Ok(Segment::Star),
        [b':', ..] => check_name(&text[1..]).map(|()| Segment::Named),
        [b'{', .., b'}'] => parse_regex(&text[1..text.len() - 1]).map(Segment::Regex),
        bytes => Ok(Segment::Literal(bytes.into())),
    }
}

fn check_name(name: &str) -> Result<(), PatternWhy> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(word) {
        return Err(PatternWhy::BadName);
    }
    Ok(())
}

fn parse_regex(inner: &str) -> Result<SegmentRegex, PatternWhy> {
    let (name, source) = inner.split_once(':').ok_or(PatternWhy::BadBraces)?;
    check_name(name)?;
    let compile = |source: &str| {
        RegexBuilder::new(source)
            .size_limit(REGEX_BYTES_MAX)
            .build()
            .map_err(|why| PatternWhy::BadRegex(why.to_string()))
    };
    // By itself first: `a)|(b` must not become whole by our own parentheses.
    compile(source)?;
    let matcher = compile(&format!(r"\A(?:{source})\z"))?;
    Ok(SegmentRegex { source: source.into(), matcher })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_that_no_normal_path_matches_is_told() {
        for good in ["/", "/a/", "/a%2Fb/*", "/{x:a//b|%61}/:y", "/a..b/.c"] {
            assert!(is_normal(good), "{good}");
        }
        for bad in ["/a//b", "/%61", "/a%2fb", "/a/../b", "/./a", "/a/%", "//"] {
            assert!(!is_normal(bad), "{bad}");
        }
    }

    fn shape(pattern: &str) -> String {
        let letter = |segment: &Segment| match segment {
            Segment::Literal(_) => 'l',
            Segment::Regex(_) => 'r',
            Segment::Named => 'n',
            Segment::Star => 's',
            Segment::Tail => 't',
        };
        parse(pattern).unwrap().iter().map(letter).collect()
    }

    #[test]
    fn tells_the_kinds_of_segments_apart() {
        assert_eq!(shape("/api/:version/{id:[0-9]+}/*/x/*"), "lnrslt");
        assert_eq!(shape("/"), "l");
        assert_eq!(shape("/files/"), "ll");
    }

    #[test]
    fn only_a_whole_segment_is_special() {
        assert_eq!(shape("/api/test/special!@#$%^&*()_+"), "lll");
        assert_eq!(shape("/models/gpt:chat/a{b}/**"), "llll");
    }

    #[test]
    fn a_slash_within_braces_belongs_to_the_regex() {
        assert_eq!(shape("/a/{x:[^/]+}/b"), "lrl");
        assert_eq!(shape(r"/{x:[0-9]{3}}/{y:\{z\}}"), "rr");
    }

    #[test]
    fn a_regex_matches_the_whole_segment() {
        let fits = |pattern: &str, text: &str| parse(pattern).unwrap()[0].fits(text.as_bytes());
        assert!(fits("/{x:a|bc}", "a") && fits("/{x:a|bc}", "bc"));
        assert!(!fits("/{x:a|bc}", "abc") && !fits("/{x:a|bc}", "ab"));
        assert!(!fits("/{x:[0-9]+}", "42\n"));
        assert!(!fits("/{x:.*}", ""));
        // `$` in the middle of lines is for who asks for it.
        assert!(!fits("/{x:a$}", "a\nb"));
    }

    #[test]
    fn says_why_a_pattern_is_none() {
        let why = |pattern: &str| parse(pattern).unwrap_err();
        assert_eq!(why(""), PatternWhy::NoSlash);
        assert_eq!(why("users"), PatternWhy::NoSlash);
        assert_eq!(why("/:"), PatternWhy::BadName);
        assert_eq!(why("/:a-b"), PatternWhy::BadName);
        for bad in ["/{", "/{id}", "/{id:[0-9]+", "/{id:x}y", "/{id:}}"] {
            assert_eq!(why(bad), PatternWhy::BadBraces, "{bad}");
        }
        assert_eq!(why("/{:x}"), PatternWhy::BadName);
        assert!(matches!(why("/{x:[}"), PatternWhy::BadRegex(_)));
        assert!(matches!(why("/{x:a)|(b}"), PatternWhy::BadRegex(_)));
    }

    #[test]
    fn bounds_the_size_of_a_regex_and_of_a_pattern() {
        let huge = parse(r"/{x:(?:\w{100}){100}}");
        assert!(matches!(huge, Err(PatternWhy::BadRegex(_))));
        assert!(parse(&"/a".repeat(SEGMENTS_MAX)).is_ok());
        assert_eq!(parse(&"/a".repeat(SEGMENTS_MAX + 1)).unwrap_err(), PatternWhy::TooLong);
    }

    #[test]
    fn ranks_as_the_manual_says() {
        // Each before the next.
        let order = [
            "/a/b",
            "/a/b/:c",
            "/a/b/*",
            "/a/{x:.+}/{y:.+}",
            "/a/{x:.+}/:y",
            "/a/{x:.+}",
            "/a/:x/:y",
            "/a/:x/*",
            "/a/:x",
            "/a/*/*",
            "/a/*",
            "/:a",
            "/*",
        ];
        let ranks: Vec<_> =
            order.iter().map(|pattern| Rank::of(&parse(pattern).unwrap(), 0)).collect();
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        let twin = |declared| Rank::of(&parse("/a/:x").unwrap(), declared);
        assert!(twin(0) < twin(1));
    }
}
