//! One parameter of a query string: found, replaced or removed.
//!
//! A query is cut at `&` and each piece at its first `=`; names are compared after
//! percent-decoding, so that `k%65y=` does not slip past as another parameter. What
//! is not the parameter is copied byte for byte: a query that we re-encode is a
//! query that some server reads differently. `+` stays `+` (RFC 3986 §2.2 gives it no
//! meaning), and `;` separates nothing.

use std::borrow::Cow;

/// Finds the first parameter called `name` and returns its decoded value.
///
/// Shape: `query` stands without its `?`; allocates only where something is encoded.
pub fn find<'q>(query: &'q [u8], name: &[u8]) -> Option<Cow<'q, [u8]>> {
    query
        .split(is_and)
        .map(split_pair)
        .find(|(key, _)| decodes_to(key, name))
        .map(|(_, v)| decode(v))
}

/// Writes `query` to `out` with exactly one parameter `name` of this value, or none.
///
/// Shape: the first one is replaced where it stands, others of the same name are removed,
/// a missing one is put at the end; all other bytes are kept. `None` removes it. The value
/// is percent-encoded; nothing else is touched. `out` is appended to.
pub fn rewrite(query: &[u8], name: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
    let mut value = value;
    let mut pieces = 0;
    let mut next_piece = |out: &mut Vec<u8>| {
        if pieces > 0 {
            out.push(b'&');
        }
        pieces += 1;
    };
    for piece in query.split(is_and) {
        let (key, _) = split_pair(piece);
        if !decodes_to(key, name) {
            next_piece(out);
            out.extend_from_slice(piece);
        } else if let Some(value) = value.take() {
            next_piece(out);
            out.extend_from_slice(key);
            out.push(b'=');
            encode(value, out);
        }
    }
    if let Some(value) = value {
        if !query.is_empty() {
            out.push(b'&');
        }
        encode(name, out);
        out.push(b'=');
        encode(value, out);
    }
}

fn is_and(byte: &u8) -> bool {
    *byte == b'&'
}

/// Cuts a piece at its first `=`; a piece without one is a name with an empty value.
fn split_pair(piece: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'=', piece) {
        Some(at) => (&piece[..at], &piece[at + 1..]),
        None => (piece, &[]),
    }
}

/// Percent-decodes; a `%` without two hex digits stands for itself.
fn decode(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'%', text).is_none() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(decoded(text).collect())
}

/// Compares without keeping the decoded form.
fn decodes_to(text: &[u8], wanted: &[u8]) -> bool {
    decoded(text).eq(wanted.iter().copied())
}

fn decoded(text: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (byte, after) = match rest {
            [] => return None,
            [b'%', high, low, after @ ..] => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, after),
                _ => (b'%', &rest[1..]),
            },
            [byte, after @ ..] => (*byte, after),
        };
        rest = after;
        Some(byte)
    })
}

fn digit(hex: u8) -> Option<u8> {
    char::from(hex).to_digit(16).map(|value| value as u8)
}

/// Percent-encodes all but the unreserved characters of RFC 3986 §2.3.
fn encode(text: &[u8], out: &mut Vec<u8>) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            out.push(*byte);
        } else {
            out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// Feeds arbitrary bytes as a query and checks that a rewrite does what it says.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let (name, query) = data.split_at(data.len().min(3));
    let mut out = Vec::new();
    rewrite(query, name, Some(b"a&b=c%"), &mut out);
    assert_eq!(find(&out, name).as_deref(), Some(&b"a&b=c%"[..]));
    let mut removed = Vec::new();
    rewrite(&out, name, None, &mut removed);
    // The one parameter whose absence cannot be written is the empty one of an empty query.
    assert!(name.is_empty() || find(&removed, name).is_none());
    let mut again = Vec::new();
    rewrite(&removed, name, None, &mut again);
    assert_eq!(again, removed, "removing twice changes something");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(query: &str, value: Option<&str>, expected: &str) {
        let mut out = b"?".to_vec();
        rewrite(query.as_bytes(), b"key", value.map(str::as_bytes), &mut out);
        assert_eq!(String::from_utf8_lossy(&out), format!("?{expected}"), "of {query}");
    }

    #[test]
    fn finds_a_decoded_value() {
        let found = |q: &str| find(q.as_bytes(), b"key").map(|v| v.into_owned());
        assert_eq!(found("key=abc"), Some(b"abc".to_vec()));
        assert_eq!(found("alt=sse&key=a%2Bb+c"), Some(b"a+b+c".to_vec()));
        assert_eq!(found("k%65y=x"), Some(b"x".to_vec()));
        assert_eq!(found("key=1&key=2"), Some(b"1".to_vec()));
        assert_eq!(found("key"), Some(Vec::new()));
        assert_eq!(found("key=a=b"), Some(b"a=b".to_vec()));
        assert_eq!(found("key=%zz%4"), Some(b"%zz%4".to_vec()));
    }

    #[test]
    fn finds_nothing_else() {
        for query in ["", "monkey=1", "keys=1", "KEY=1", "a=key", "a=1&b=&key2="] {
            assert_eq!(find(query.as_bytes(), b"key"), None, "{query}");
        }
    }

    #[test]
    fn replaces_in_place_and_keeps_every_other_byte() {
        check("key=old", Some("new"), "key=new");
        check("alt=sse&key=old&x=%7e+;", Some("new"), "alt=sse&key=new&x=%7e+;");
        check("&&key=old&", Some("new"), "&&key=new&");
        check("k%65y=old", Some("new"), "k%65y=new");
    }

    #[test]
    fn encodes_the_new_value() {
        check("key=old", Some("a&b=c d\u{e9}~"), "key=a%26b%3Dc%20d%C3%A9~");
    }

    #[test]
    fn removes_it_with_its_separator() {
        check("key=old", None, "");
        check("key=old&b=2", None, "b=2");
        check("a=1&key=old", None, "a=1");
        check("a=1&key=old&b=2", None, "a=1&b=2");
        check("a=1", None, "a=1");
    }

    #[test]
    fn leaves_exactly_one_of_many() {
        check("key=1&a=2&key=3", Some("new"), "key=new&a=2");
        check("key=1&a=2&key=3", None, "a=2");
    }

    #[test]
    fn adds_a_missing_one() {
        check("", Some("new"), "key=new");
        check("a=1", Some("new"), "a=1&key=new");
    }

    proptest! {
        #[test]
        fn fuzz_holds(data in proptest::collection::vec(
            prop_oneof![Just(b'&'), Just(b'='), Just(b'%'), Just(b'4'), Just(b'1'), Just(b'k'), any::<u8>()],
            0..60,
        )) {
            fuzz(&data);
        }

        // The oracle: cut, filter, join.
        #[test]
        fn agrees_with_cut_filter_join(query in "([ak]=?[x%&=]{0,3}&?){0,6}") {
            let kept: Vec<&str> =
                query.split('&').filter(|p| p.split('=').next() != Some("k")).collect();
            let mut out = Vec::new();
            rewrite(query.as_bytes(), b"k", None, &mut out);
            prop_assert_eq!(String::from_utf8_lossy(&out), kept.join("&"));
        }
    }
}
