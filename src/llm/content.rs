//! How a server will read a request body, as far as its `Content-Type` tells. RFC 9110 §8.3.
//!
//! The one idea: we and the server behind must read one model in one body. That can be proven
//! for a JSON type and for a form with one plain boundary; for every other type it cannot, and
//! where the type itself may be read in two ways (two fields, two boundaries, a boundary that is
//! no boundary) nothing can be routed by it at all.
//!
//! A body without a type is read as JSON or not at all: no known server takes it for a form.
//! Pure and without heap; the body is the affair of `scan` and `multipart`.

use std::fmt;

use super::multipart::{Boundary, each_parameter};

/// What a server will take a body for.
#[derive(Clone, Copy, Debug)]
pub enum BodyShape {
    /// JSON: the type says so, or there is none.
    Json,
    /// A form with this boundary.
    Form(Boundary),
    /// A type that we do not parse. A server may read it as JSON, as a form, or not at all.
    Other,
    /// Servers differ on what it is.
    Ambiguous(Ambiguity),
}

/// What makes a `Content-Type` ambiguous. `Display` is the text for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguity {
    /// More than one field.
    TypeTwice,
    /// No `type/subtype`, parameters that cannot be read, or a charset other than UTF-8.
    BadType,
    /// A form with more than one `boundary`, as some parser would find it.
    BoundaryTwice,
    /// A form whose boundary is missing or none by RFC 2046.
    BadBoundary,
}

impl fmt::Display for Ambiguity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ambiguity::TypeTwice => "Content-Type is given twice",
            Ambiguity::BadType => "Content-Type is malformed",
            Ambiguity::BoundaryTwice => "the form has more than one boundary",
            Ambiguity::BadBoundary => "the form's boundary is missing or malformed",
        })
    }
}

/// Tells how a body with these values of `Content-Type` will be read.
///
/// Shape: the values as they stand in the head, without the white space around them.
pub fn read_as<'a>(mut values: impl Iterator<Item = &'a [u8]>) -> BodyShape {
    let Some(value) = values.next() else { return BodyShape::Json };
    let twice = values.next().is_some();
    if value == b"application/json" && !twice {
        return BodyShape::Json;
    }
    other_than_plain_json(value, twice)
}

fn other_than_plain_json(value: &[u8], twice: bool) -> BodyShape {
    if twice {
        return BodyShape::Ambiguous(Ambiguity::TypeTwice);
    }
    let end = memchr::memchr(b';', value).unwrap_or(value.len());
    let (media_type, parameters) = value.split_at(end);
    let media_type = media_type.trim_ascii();
    let is = |text: &[u8]| media_type.eq_ignore_ascii_case(text);
    if is(b"multipart/form-data") {
        return match boundary(parameters) {
            Ok(boundary) => BodyShape::Form(boundary),
            Err(why) => BodyShape::Ambiguous(why),
        };
    }
    if !is_media_type(media_type) {
        return BodyShape::Ambiguous(Ambiguity::BadType);
    }
    if is(b"application/json") || is(b"text/json") || is_structured_json(media_type) {
        return if is_utf8(parameters) {
            BodyShape::Json
        } else {
            BodyShape::Ambiguous(Ambiguity::BadType)
        };
    }
    BodyShape::Other
}

/// `application/vnd.api+json` and the like (RFC 6839 §3.1).
fn is_structured_json(media_type: &[u8]) -> bool {
    let ends = |text: &[u8]| {
        let at = media_type.len().checked_sub(text.len());
        at.and_then(|at| media_type.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(text))
    };
    let application = media_type.get(..12).is_some_and(|m| m.eq_ignore_ascii_case(b"application/"));
    application && ends(b"+json")
}

/// `type/subtype`, both tokens.
fn is_media_type(bytes: &[u8]) -> bool {
    let is_token = |bytes: &[u8]| {
        !bytes.is_empty() && bytes.iter().all(|&b| crate::http::fields::is_token_byte(b))
    };
    let mut halves = bytes.splitn(2, |&b| b == b'/');
    halves.next().is_some_and(is_token) && halves.next().is_some_and(is_token)
}

/// Whether a body with these parameters is UTF-8: the only charset that every server agrees on.
fn is_utf8(parameters: &[u8]) -> bool {
    let (mut charsets, mut good) = (0, true);
    let well_formed = read_parameters(parameters, |name, value| {
        if name.get(..7).is_some_and(|name| name.eq_ignore_ascii_case(b"charset")) {
            charsets += 1;
            let utf8: [&[u8]; 4] = [b"utf-8", b"\"utf-8\"", b"utf8", b"us-ascii"];
            good &= name.len() == 7 && utf8.iter().any(|text| value.eq_ignore_ascii_case(text));
        }
    });
    well_formed && good && charsets <= 1
}

/// Shows each parameter; says whether all could be read, and by every parser in the same way:
/// whether the quote in `"\\"` ends the string, they do not agree.
fn read_parameters<'a>(parameters: &'a [u8], each: impl FnMut(&'a [u8], &'a [u8])) -> bool {
    each_parameter(parameters, each) && !parameters.windows(2).any(|pair| pair == b"\\\"")
}

/// Reads the one boundary of a form.
fn boundary(parameters: &[u8]) -> Result<Boundary, Ambiguity> {
    // Some parsers look for the word anywhere in the value, within quotes and behind other
    // letters too; so it may stand there once.
    const WORD: &[u8] = b"boundary";
    let words = parameters.windows(WORD.len()).filter(|w| w.eq_ignore_ascii_case(WORD)).count();
    if words > 1 {
        return Err(Ambiguity::BoundaryTwice);
    }
    let mut found = None;
    let well_formed = read_parameters(parameters, |name, value| {
        if name.eq_ignore_ascii_case(WORD) {
            found = Boundary::of_value(value);
        }
    });
    let found = found.filter(|_| well_formed).ok_or(Ambiguity::BadBoundary)?;
    // Names and values of the fields are read in it.
    if is_utf8(parameters) { Ok(found) } else { Err(Ambiguity::BadType) }
}

/// Reads `data` as one type, and as two halves of one: never a panic, and a form has a boundary
/// that stands in the value.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    if let BodyShape::Form(boundary) = read_as([data].into_iter()) {
        let found = boundary.as_bytes();
        assert!(data.windows(found.len()).any(|window| window == found));
    }
    let halves = data.split_at(data.len() / 2);
    let twice = read_as([halves.0, halves.1].into_iter());
    assert!(matches!(twice, BodyShape::Ambiguous(Ambiguity::TypeTwice)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn told(values: &[&str]) -> String {
        match read_as(values.iter().map(|value| value.as_bytes())) {
            BodyShape::Json => "json".to_owned(),
            BodyShape::Form(boundary) => {
                format!("form {}", std::str::from_utf8(boundary.as_bytes()).unwrap())
            }
            BodyShape::Other => "other".to_owned(),
            BodyShape::Ambiguous(why) => format!("{why:?}"),
        }
    }

    #[test]
    fn json_is_told_from_other_types() {
        for json in [
            "application/json",
            "Application/JSON",
            "application/json; charset=utf-8",
            "application/json;charset=\"UTF-8\"; x=y",
            "application/json;",
            "application/vnd.api+json",
            "text/json",
        ] {
            assert_eq!(told(&[json]), "json", "{json}");
        }
        assert_eq!(told(&[]), "json");
        for other in [
            "application/x-www-form-urlencoded",
            "text/plain",
            "application/jsonl",
            "application/x-ndjson",
            "text/plain+json",
            "multipart/mixed; boundary=abc",
            "application/octet-stream",
        ] {
            assert_eq!(told(&[other]), "other", "{other}");
        }
    }

    #[test]
    fn what_servers_read_in_two_ways_is_ambiguous() {
        let json = "application/json";
        assert_eq!(told(&[json, json]), "TypeTwice");
        assert_eq!(told(&[json, "multipart/form-data; boundary=b"]), "TypeTwice");
        for bad in [
            "",
            "json",
            "application/json, text/plain",
            "application/json text/plain",
            "application/",
            "/json",
            "application/json; charset=utf-16",
            "application/json; charset=utf-7",
            "application/json; charset=utf-8; charset=utf-7",
            "application/json; charset*=utf-7''x",
            r#"application/json; x="\\"; y="; charset=utf-7; z=""#,
            r#"application/json; x=a"; y="; charset=utf-7; z=";w=b""#,
            "application/json; x",
        ] {
            assert_eq!(told(&[bad]), "BadType", "{bad}");
        }
    }

    #[test]
    fn a_form_has_one_plain_boundary() {
        let check = |parameters: &str, want: &str| {
            assert_eq!(told(&[&format!("multipart/form-data{parameters}")]), want, "{parameters}");
        };
        check("; boundary=abc", "form abc");
        check(" ;charset=utf-8; BOUNDARY=\"a b:c\" ", "form a b:c");
        check(&format!("; boundary={}", "x".repeat(70)), &format!("form {}", "x".repeat(70)));
        for twice in [
            "; boundary=B; boundary=C",
            "; boundary=B; boundary=B",
            "; boundary=B; Boundary=C",
            "; x=\"; boundary=no\"; boundary=yes",
            "; xboundary=C; boundary=B",
            "; boundary*=utf-8''C; boundary=B",
            "; boundary=B; boundary*0=C",
        ] {
            check(twice, "BoundaryTwice");
        }
        for bad in [
            "",
            "; boundary=",
            "; boundary=\"\"",
            "; boundary=\"a \"",
            "; boundary=\"open",
            "; boundary=\"a\\'b\"",
            "; boundary=a b",
            "; boundary=a@b",
            "; boundary*=utf-8''C",
            "; xboundary=C",
            "; boundary=B, multipart/form-data",
            "; boundary=B; x",
            r#"; x="\\"; boundary=B"#,
            r#"; x="\\"; y="; boundary=B; ""#,
            r#"; x=a"; y="; boundary=B; z=";w=b""#,
            "; boundary=B x=\"y\"",
        ] {
            check(bad, "BadBoundary");
        }
        check(&format!("; boundary={}", "x".repeat(71)), "BadBoundary");
        check("; boundary=B; charset=utf-7", "BadType");
    }

    proptest! {
        #[test]
        fn no_value_panics(data in prop::collection::vec(any::<u8>(), 0..100)) {
            fuzz(&data);
        }

        #[test]
        fn no_value_of_known_pieces_panics(
            data in "(multipart/form-data|application/json|;|=|\"|\\\\|boundary|charset|utf-8|[a-z ,*]){0,12}",
        ) {
            fuzz(data.as_bytes());
        }
    }
}
