//! The normal form of a path: percent-encodings and dot segments (RFC 3986 §6.2.2, §5.2.4).
//!
//! The one idea: a server behind undoes encodings and dot segments before it looks a path up, so
//! whoever matches the path as it was written guards another door than the one that is entered.
//! Every path is brought into one form as soon as it is known; that form is what is matched and
//! what is sent. It is never longer, so it is made where the path stands.
//!
//! ```text
//! %61 → a      unreserved letters stand for themselves        %2f → %2F
//! //  → /      /a/./b → /a/b        /a/../b → /b               %2F stays
//! ```
//!
//! Refused, since no two servers agree: a `%` without two digits, `..` that climbs out of the
//! root, and a dot segment that shows up when `%2F` is decoded.
//!
//! Not here: the query, which has no such form, and `%2F`, which is no slash to RFC 3986.

use std::fmt;

/// Why a path has no normal form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathFault {
    /// A `%` without two hexadecimal digits.
    BadEncoding,
    /// `..` above the root.
    ClimbsOut,
    /// `.` or `..` beside an encoded slash.
    HiddenDots,
}

impl fmt::Display for PathFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PathFault::BadEncoding => "broken percent-encoding in the path",
            PathFault::ClimbsOut => "the path climbs out of its root",
            PathFault::HiddenDots => "a dot segment beside an encoded slash in the path",
        })
    }
}

impl std::error::Error for PathFault {}

/// Tells at a glance that a path is in normal form; `false` only says that it may not be.
///
/// As good as every path passes here, and no other line of this file is run for it.
#[inline]
pub fn is_plain(path: &[u8]) -> bool {
    let after = path.get(1..).unwrap_or_default();
    // Without a branch for each byte: what is compared stands in two registers.
    !path.iter().zip(after).fold(false, |other, (&byte, &next)| {
        other | (next == b'%') | ((byte == b'/') & ((next == b'/') | (next == b'.')))
    })
}

/// Brings a path that begins with `/` into normal form, where it stands.
///
/// Shape: returns its new length, which is not larger; what lies behind is of no meaning. On an
/// error the bytes are of no meaning either.
pub fn normalise(path: &mut [u8]) -> Result<usize, PathFault> {
    let len = decode(path)?;
    remove_dots(path.get_mut(..len).unwrap_or_default())
}

/// Tells whether a path is in normal form.
pub fn is_normal(path: &[u8]) -> bool {
    if is_plain(path) {
        return true;
    }
    let mut copy = path.to_vec();
    normalise(&mut copy).is_ok_and(|len| copy.get(..len) == Some(path))
}

/// A path in normal form as a server sees it that decodes everything, slashes too.
pub fn decoded(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let code = (digit(path, at + 1), digit(path, at + 2));
        let (byte, read) = match (byte, code) {
            (b'%', (Ok(high), Ok(low))) => (high << 4 | low, 3),
            _ => (byte, 1),
        };
        if byte != b'/' || decoded.last() != Some(&b'/') {
            decoded.push(byte);
        }
        at += read;
    }
    decoded
}

/// Undoes the encoding of unreserved characters and writes every other in capitals.
fn decode(path: &mut [u8]) -> Result<usize, PathFault> {
    let (mut from, mut to) = (0, 0);
    while let Some(&byte) = path.get(from) {
        let mut code = [byte, 0, 0];
        let (read, write) = match byte {
            b'%' => {
                let (high, low) = (digit(path, from + 1)?, digit(path, from + 2)?);
                match high << 4 | low {
                    letter if letter.is_ascii_alphanumeric() || b"-._~".contains(&letter) => {
                        code[0] = letter;
                        (3, 1)
                    }
                    _ => {
                        const HEX: &[u8; 16] = b"0123456789ABCDEF";
                        code = [b'%', HEX[usize::from(high & 15)], HEX[usize::from(low & 15)]];
                        (3, 3)
                    }
                }
            }
            _ => (1, 1),
        };
        for (place, byte) in path.iter_mut().skip(to).zip(&code[..write]) {
            *place = *byte;
        }
        (from, to) = (from + read, to + write);
    }
    Ok(to)
}

fn digit(path: &[u8], at: usize) -> Result<u8, PathFault> {
    let digit = path.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    digit.and_then(|digit| u8::try_from(digit).ok()).ok_or(PathFault::BadEncoding)
}

/// Resolves dot segments and makes one slash of several; returns the new length.
fn remove_dots(path: &mut [u8]) -> Result<usize, PathFault> {
    let (mut from, mut to) = (0, 0);
    while from < path.len() {
        // `path[from]` is a slash, and the path so far, without one at its end, is `path[..to]`.
        let start = from + 1;
        let rest = path.get(start..).unwrap_or_default();
        let len = memchr::memchr(b'/', rest).unwrap_or(rest.len());
        let is_last = len == rest.len();
        let segment = rest.get(..len).unwrap_or_default();
        let is_kept = match segment {
            b"" | b"." => false,
            b".." => {
                let so_far = path.get(..to).unwrap_or_default();
                to = memchr::memrchr(b'/', so_far).ok_or(PathFault::ClimbsOut)?;
                false
            }
            _ if hides_dots(segment) => return Err(PathFault::HiddenDots),
            _ => true,
        };
        if is_kept {
            path.copy_within(from..start + len, to);
            to += 1 + len;
        } else if is_last && let Some(place) = path.get_mut(to) {
            *place = b'/';
            to += 1;
        }
        from = start + len;
    }
    Ok(to)
}

/// Whether a dot segment shows up once `%2F` is decoded, as some servers do.
fn hides_dots(segment: &[u8]) -> bool {
    let mut rest = segment;
    let mut is_split = false;
    loop {
        let end = memchr::memmem::find(rest, b"%2F");
        is_split |= end.is_some();
        let piece = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        if is_split && (piece == b"." || piece == b"..") {
            return true;
        }
        match end {
            Some(end) => rest = rest.get(end + 3..).unwrap_or_default(),
            None => return false,
        }
    }
}

/// Brings `data` into normal form; that form is normal, and a slow oracle finds the same.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let mut path = b"/".to_vec();
    path.extend(data.iter().map(|&byte| if byte.is_ascii_graphic() { byte } else { b'/' }));
    let slow = slow(&path);
    let mut copy = path.clone();
    let found = normalise(&mut copy).map(|len| copy[..len].to_vec());
    assert_eq!(found, slow, "{}", String::from_utf8_lossy(&path));
    if is_plain(&path) {
        assert_eq!(found.as_ref(), Ok(&path));
    }
    if let Ok(normal) = &found {
        assert!(is_normal(normal));
        assert!(normal.starts_with(b"/") && normal.len() <= path.len());
        assert_eq!(normal == &path, is_normal(&path));
        // What a server finds that decodes everything once has no dot segment either.
        let decoded = decoded(normal);
        let decoded = String::from_utf8_lossy(&decoded);
        assert!(
            !decoded.contains("//")
                && !decoded.split('/').any(|segment| segment == "." || segment == "..")
        );
    }
}

/// The same, slowly: a list of segments, each with its slash.
fn slow(path: &[u8]) -> Result<Vec<u8>, PathFault> {
    let text = String::from_utf8_lossy(path);
    let mut pieces = text.split('%');
    let mut decoded = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2).ok_or(PathFault::BadEncoding)?;
        let is_hex = code.bytes().all(|byte| byte.is_ascii_hexdigit());
        let value = u8::from_str_radix(code, 16).ok().filter(|_| is_hex);
        match char::from(value.ok_or(PathFault::BadEncoding)?) {
            c if c.is_ascii_alphanumeric() || "-._~".contains(c) => decoded.push(c),
            _ => decoded.push_str(&format!("%{}", code.to_ascii_uppercase())),
        }
        decoded.push_str(rest);
    }
    let mut kept: Vec<&str> = Vec::new();
    for segment in decoded.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop().ok_or(PathFault::ClimbsOut)?;
            }
            _ if segment.contains("%2F") && segment.split("%2F").any(|p| p == "." || p == "..") => {
                return Err(PathFault::HiddenDots);
            }
            _ => kept.push(segment),
        }
    }
    let is_folder = ["/", "/.", "/.."].iter().any(|end| decoded.ends_with(end));
    let end = if is_folder && !kept.is_empty() { "/" } else { "" };
    Ok(format!("/{}{end}", kept.join("/")).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(path: &str, want: Result<&str, PathFault>) {
        let mut copy = path.as_bytes().to_vec();
        let found = normalise(&mut copy).map(|len| std::str::from_utf8(&copy[..len]).unwrap());
        assert_eq!(found, want, "{path}");
        assert_eq!(is_normal(path.as_bytes()), want == Ok(path), "{path}");
        fuzz(&path.as_bytes()[1..]);
    }

    #[test]
    fn plain_paths_are_told_at_a_glance() {
        for path in
            ["/", "/v1/chat/completions", "/v1/models/gpt-4.1", "/a/b/", "/a..b/c.", "*", ""]
        {
            assert!(is_plain(path.as_bytes()), "{path}");
        }
        for path in ["/%61", "//", "/.", "/a/..", "/a/.b", "/a//", "/v1/%", "//a"] {
            assert!(!is_plain(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn unreserved_is_decoded_and_the_rest_in_capitals() {
        check("/%61dmin/%7e%2D%5f%2e%30", Ok("/admin/~-_.0"));
        check("/a%2fb%c3%A9%25", Ok("/a%2Fb%C3%A9%25"));
        // Once: what comes out is not looked at again.
        check("/%2561", Ok("/%2561"));
        for broken in ["/%", "/%4", "/a%4g", "/%%36%31dmin", "/%/a"] {
            check(broken, Err(PathFault::BadEncoding));
        }
    }

    #[test]
    fn dot_segments_are_resolved() {
        check("/pub/../admin/x", Ok("/admin/x"));
        check("/pub/%2e%2E/admin/x", Ok("/admin/x"));
        check("/pub/.%2e/admin/x", Ok("/admin/x"));
        check("/./a/./b/.", Ok("/a/b/"));
        check("/a/..", Ok("/"));
        check("/a/b/..", Ok("/a/"));
        check("/.", Ok("/"));
        check("/.../a..b/..c", Ok("/.../a..b/..c"));
        // RFC 3986 §5.4 and §5.2.4.
        check("/b/c/g;x=1/../y", Ok("/b/c/y"));
        check("/a/b/c/./../../g", Ok("/a/g"));
    }

    #[test]
    fn slashes_are_merged() {
        check("//admin/x", Ok("/admin/x"));
        check("/a///b//", Ok("/a/b/"));
        check("//", Ok("/"));
        check("/a//../b", Ok("/b"));
    }

    #[test]
    fn what_climbs_out_is_refused() {
        for path in ["/..", "/../b/x", "/a/../..", "/a/../../b", "//..", "/%2e%2e/x"] {
            check(path, Err(PathFault::ClimbsOut));
        }
        for path in ["/a/..%2Fb", "/a/b%2f..", "/a/x%2F%2e%2Fb", "/%2F../b"] {
            check(path, Err(PathFault::HiddenDots));
        }
        check("/a/x..%2F..y", Ok("/a/x..%2F..y"));
    }

    proptest! {
        #[test]
        fn agrees_with_a_slow_oracle(path in "(/|\\.|\\.\\.|%|%2[eEfF]|%6[1-3]|%4|[a-c;]){0,16}") {
            fuzz(path.as_bytes());
        }

        #[test]
        fn no_path_panics(data in prop::collection::vec(any::<u8>(), 0..60)) {
            fuzz(&data);
        }
    }
}
