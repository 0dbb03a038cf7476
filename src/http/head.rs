//! A message head as spans into the buffer that received it.
//!
//! The one idea: the bytes have one owner, the caller's receive buffer, and a head only remembers
//! where things stand in it. Offsets count from the first byte of the head, so the owner may move
//! the bytes as long as it hands in the slice that begins there. Reading a span never panics: one
//! that does not fit the slice at hand reads as empty.
//!
//! A head is reused from message to message. `clear` keeps the room for its fields, so that in
//! the steady state nothing is allocated.
//!
//! RFC 9110 §5 (fields), RFC 9112 §3.2 (the four forms of a target). What a head may hold is
//! decided by `http1::parse`; a head that it filled has been checked.

use std::ops::Deref;

use super::method::Method;
use super::name::Name;
use super::path::{PathFault, is_plain, normalise};

/// A part of the head: `start <= end`, both counted from the first byte of the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Span {
    /// Makes a span from indices; what lies beyond 4 GiB is cut, heads are far smaller.
    pub fn new(start: usize, end: usize) -> Span {
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Span { start: offset(start), end: offset(end) }
    }

    /// The bytes of the span, empty when it does not lie within `bytes`.
    #[inline]
    pub fn of(self, bytes: &[u8]) -> &[u8] {
        bytes.get(self.start as usize..self.end as usize).unwrap_or(&[])
    }

    /// Its length in bytes.
    #[inline]
    pub fn len(self) -> usize {
        self.end.saturating_sub(self.start) as usize
    }

    /// Whether it holds nothing.
    #[inline]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// The version of a message. A minor version above 1 is read as 1 (RFC 9110 §6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub enum Version {
    Http10,
    #[default]
    Http11,
}

/// One field line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Field {
    /// Which of the known names it is.
    pub name_kind: Name,
    /// The name as it was written.
    pub name: Span,
    /// The value without the white space around it.
    pub value: Span,
    /// The whole line with its CRLF: what is copied when the field passes untouched.
    pub line: Span,
}

/// The fields of a head in the order in which they came, duplicates kept.
///
/// Most questions are about a field that is not there: one word of bits answers those without a
/// look at any line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields {
    lines: Vec<Field>,
    /// One bit for each [`Name`] that is among the lines.
    names: u32,
}

impl Fields {
    /// Adds one behind the others.
    #[inline]
    pub fn push(&mut self, field: Field) {
        self.names |= bit(field.name_kind);
        self.lines.push(field);
    }

    /// Forgets all of them and keeps their room.
    pub fn clear(&mut self) {
        self.lines.clear();
        self.names = 0;
    }

    /// Whether a field has this name.
    #[inline]
    pub fn has(&self, name: Name) -> bool {
        self.names & bit(name) != 0
    }

    /// The fields with this name, in order.
    #[inline]
    pub fn named(&self, name: Name) -> impl DoubleEndedIterator<Item = &Field> {
        let lines = if self.has(name) { &*self.lines } else { &[] };
        lines.iter().filter(move |field| field.name_kind == name)
    }

    /// The value of the first field with this name.
    #[inline]
    fn value<'a>(&self, name: Name, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.named(name).next().map(|field| field.value.of(bytes))
    }

    /// The values of all fields with this name, in order.
    fn values<'a>(
        &'a self,
        name: Name,
        bytes: &'a [u8],
    ) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.named(name).map(move |field| field.value.of(bytes))
    }
}

impl Deref for Fields {
    type Target = [Field];

    fn deref(&self) -> &[Field] {
        &self.lines
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = &'a Field;
    type IntoIter = std::slice::Iter<'a, Field>;

    fn into_iter(self) -> Self::IntoIter {
        self.lines.iter()
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Fields {
        let mut all = Fields::default();
        fields.into_iter().for_each(|field| all.push(field));
        all
    }
}

const fn bit(name: Name) -> u32 {
    const { assert!((Name::Other as u32) < u32::BITS) };
    1 << name as u32
}

/// The head of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// The method, told apart.
    pub method: Method,
    /// The method as it was written.
    pub method_text: Span,
    /// The request target, as it was written until its path is brought into normal form.
    pub target: Span,
    /// The version of the sender.
    pub version: Version,
    /// Its fields.
    pub fields: Fields,
    /// Bytes of the head including the blank line, and an empty line before it if there was one.
    pub len: u32,
    /// `host[:port]` of an absolute-form target, empty in the other forms.
    pub target_authority: Span,
    /// The path within the target, without the query; may be empty in absolute-form.
    pub target_path: Span,
    /// The query without its `?`; `None` when there is no `?`.
    pub target_query: Option<Span>,
    /// End of the request line while the head is still arriving; 0 = not seen yet.
    pub(crate) start_line_end: u32,
}

impl RequestHead {
    /// Makes an empty head.
    pub fn new() -> RequestHead {
        RequestHead::default()
    }

    /// Forgets the message and keeps the room for its fields.
    pub fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = RequestHead { fields, ..RequestHead::default() };
    }

    /// The value of the first field with this name.
    pub fn value<'a>(&self, name: Name, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.fields.value(name, bytes)
    }

    /// The values of all fields with this name, in order.
    pub fn values<'a>(
        &'a self,
        name: Name,
        bytes: &'a [u8],
    ) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.fields.values(name, bytes)
    }

    /// How many fields have this name.
    pub fn count(&self, name: Name) -> usize {
        self.fields.named(name).count()
    }

    /// Brings the path into normal form, in the bytes that the head stands in.
    ///
    /// Shape: target, path and query are then those of the new target; between it and the
    /// version bytes are left over that no span covers. Keep this before anything looks at the
    /// path: what is matched is what is sent.
    /// Errors: the path has no normal form, and stays as it is.
    #[inline]
    pub fn normalise_path(&mut self, bytes: &mut [u8]) -> Result<(), PathFault> {
        if is_plain(self.target_path.of(bytes)) { Ok(()) } else { self.rewrite_path(bytes) }
    }

    #[cold]
    fn rewrite_path(&mut self, bytes: &mut [u8]) -> Result<(), PathFault> {
        let Span { start, end } = self.target_path;
        let Some(path) = bytes.get_mut(start as usize..end as usize) else { return Ok(()) };
        if !path.starts_with(b"/") {
            return Ok(());
        }
        let mut normal = path.to_vec();
        let (before, after) = (path.len(), normalise(&mut normal)?);
        for (place, byte) in path.iter_mut().zip(&normal[..after]) {
            *place = *byte;
        }
        let shrunk = Span::new(0, before - after).end;
        bytes.copy_within(end as usize..self.target.end as usize, start as usize + after);
        self.target_path.end -= shrunk;
        self.target.end -= shrunk;
        if let Some(query) = &mut self.target_query {
            (query.start, query.end) = (query.start - shrunk, query.end - shrunk);
        }
        Ok(())
    }

    /// The path, percent-decoded only as far as [`normalise_path`](Self::normalise_path) does.
    /// `http://host` means `/` (RFC 9110 §4.2.3); `*` stays `*`.
    pub fn path<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        match self.target_path.of(bytes) {
            [] => b"/",
            path => path,
        }
    }

    /// Path and query in one, as they stand in the target whatever its form; the path may be
    /// empty in absolute-form.
    pub fn path_and_query<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let end = self.target_query.map_or(self.target_path.end, |query| query.end);
        Span { start: self.target_path.start, end }.of(bytes)
    }

    /// The query without its `?`; `None` when the target has no `?`.
    pub fn query<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.target_query.map(|query| query.of(bytes))
    }

    /// Who is asked: the authority of an absolute-form target, else the value of `Host`.
    ///
    /// Source: RFC 9112 §3.2.2: the target wins, and what goes upstream as `Host` has to be this.
    pub fn authority<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        match self.target_authority.of(bytes) {
            [] => self.value(Name::Host, bytes),
            authority => Some(authority),
        }
    }
}

/// The head of a response.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// The version of the sender.
    pub version: Version,
    /// The status, 100..=999.
    pub status: u16,
    /// The reason phrase, often empty.
    pub reason: Span,
    /// Its fields.
    pub fields: Fields,
    /// Bytes of the head including the blank line.
    pub len: u32,
    /// End of the status line while the head is still arriving; 0 = not seen yet.
    pub(crate) start_line_end: u32,
}

impl ResponseHead {
    /// Makes an empty head.
    pub fn new() -> ResponseHead {
        ResponseHead::default()
    }

    /// Forgets the message and keeps the room for its fields.
    pub fn clear(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = ResponseHead { fields, ..ResponseHead::default() };
    }

    /// The value of the first field with this name.
    pub fn value<'a>(&self, name: Name, bytes: &'a [u8]) -> Option<&'a [u8]> {
        self.fields.value(name, bytes)
    }

    /// The values of all fields with this name, in order.
    pub fn values<'a>(&'a self, name: Name, bytes: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        self.fields.values(name, bytes)
    }
}

/// For fuzzers: two ways to cut one head agree on its fields. Where a value without bytes stands is
/// nobody's business.
pub(crate) fn assert_same_fields(ours: &[Field], parsed: &[Field], bytes: &[u8]) {
    assert_eq!(ours.len(), parsed.len());
    for (ours, parsed) in ours.iter().zip(parsed) {
        assert_eq!(
            (ours.name_kind, ours.name, ours.line),
            (parsed.name_kind, parsed.name, parsed.line)
        );
        assert_eq!(ours.value.of(bytes), parsed.value.of(bytes));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_out_of_range_is_empty() {
        let bytes = b"abc";
        assert_eq!(Span::new(1, 3).of(bytes), b"bc");
        assert_eq!(Span::new(1, 4).of(bytes), b"");
        assert_eq!(Span { start: 3, end: 1 }.of(bytes), b"");
        assert_eq!(Span { start: 3, end: 1 }.len(), 0);
    }

    #[test]
    fn first_and_all_keep_the_order() {
        let bytes = b"abc";
        let field =
            |name_kind, at| Field { name_kind, value: Span::new(at, at + 1), ..Field::default() };
        let head = ResponseHead {
            fields: [field(Name::Te, 2), field(Name::Other, 1), field(Name::Te, 0)]
                .into_iter()
                .collect(),
            ..ResponseHead::new()
        };
        assert_eq!(head.value(Name::Te, bytes), Some(&b"c"[..]));
        assert_eq!(head.values(Name::Te, bytes).collect::<Vec<_>>(), [b"c", b"a"]);
    }

    #[test]
    fn a_path_is_rewritten_where_it_stands() {
        let check = |target: &str, want: Result<(&str, Option<&str>), PathFault>| {
            let mut bytes = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
            let mut head = RequestHead::new();
            let limits = crate::http1::parse::HeadLimits::default();
            crate::http1::parse::parse_request(&bytes, &mut 0, &limits, &mut head).unwrap();
            let found = head.normalise_path(&mut bytes);
            let query = |head: &RequestHead| {
                head.query(&bytes).map(|query| String::from_utf8(query.to_vec()).unwrap())
            };
            let target = String::from_utf8(head.target.of(&bytes).to_vec()).unwrap();
            let want = want.map(|(target, query)| (target.to_owned(), query.map(str::to_owned)));
            assert_eq!(found.map(|()| (target, query(&head))), want);
            assert_eq!(head.value(Name::Host, &bytes), Some(&b"h"[..]));
        };
        check("/v1/x?a=//../%61", Ok(("/v1/x?a=//../%61", Some("a=//../%61"))));
        check("/a/..//%62/?a=//%61", Ok(("/b/?a=//%61", Some("a=//%61"))));
        check("/%61?", Ok(("/a?", Some(""))));
        check("http://h:1/%61/../b?c", Ok(("http://h:1/b?c", Some("c"))));
        check("http://h?c", Ok(("http://h?c", Some("c"))));
        check("/a/../..", Err(PathFault::ClimbsOut));
    }

    #[test]
    fn clear_keeps_the_room() {
        let mut head = RequestHead::new();
        head.fields.push(Field { name_kind: Name::Te, ..Field::default() });
        let room = head.fields.lines.capacity();
        head.len = 7;
        head.clear();
        assert_eq!((head.fields.len(), head.fields.has(Name::Te), head.len), (0, false, 0));
        assert_eq!(head.fields.lines.capacity(), room);
    }
}
