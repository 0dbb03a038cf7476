//! Which pages of other origins may call, and what a browser has to be told so (Fetch, "CORS
//! protocol").
//!
//! A browser asks first (`OPTIONS`, a preflight) and then reads of every answer whether the page may
//! see it. Both are answered here alone, from the listener's list: a server behind may have a word
//! of its own, and two words are none to a browser. Keys travel in fields, never in cookies, so
//! `Access-Control-Allow-Credentials` is not said.

use std::sync::Arc;

/// How long a browser may remember a preflight, seconds; Chromium takes no more.
const MAX_AGE_S: u32 = 7200;
/// What a page may do.
const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE";
/// What a page may read beyond the body: ids, limits and when to come back.
const EXPOSED: &str = "*";

/// A text that is no origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoOrigin;

/// The origins of a listener, each with the field lines that an answer to it gets.
#[derive(Clone, Debug, Default)]
pub struct Cors {
    /// `*`: every page may.
    any: Option<Arc<[u8]>>,
    /// The others, as browsers write them.
    origins: Vec<(Box<str>, Arc<[u8]>)>,
}

impl Cors {
    /// Reads the entries of a listener's `cors`.
    ///
    /// Errors: `NoOrigin`; see [`origin`].
    pub fn new<E: AsRef<str>>(entries: impl IntoIterator<Item = E>) -> Result<Cors, NoOrigin> {
        let mut cors = Cors::default();
        for entry in entries {
            let origin = origin(entry.as_ref())?;
            let vary = if origin == "*" { "" } else { "vary: Origin\r\n" };
            let lines = format!(
                "access-control-allow-origin: {origin}\r\n\
                 access-control-expose-headers: {EXPOSED}\r\n{vary}"
            );
            let lines = lines.into_bytes().into();
            match origin.as_str() {
                "*" => cors.any = Some(lines),
                _ => cors.origins.push((origin.into(), lines)),
            }
        }
        Ok(cors)
    }

    /// Tells whether no page of another origin may call.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.any.is_none() && self.origins.is_empty()
    }

    /// The field lines for a page of this origin; `None` when it may not call.
    #[must_use]
    pub fn lines(&self, origin: &[u8]) -> Option<&Arc<[u8]>> {
        let listed = self.origins.iter().find(|(known, _)| known.as_bytes() == origin);
        listed.map(|(_, lines)| lines).or(self.any.as_ref())
    }
}

/// Whether an answer's field is part of the protocol, and so ours alone to write.
#[must_use]
pub fn owns(name: &[u8]) -> bool {
    const START: &[u8] = b"access-control-";
    name.get(..START.len()).is_some_and(|start| start.eq_ignore_ascii_case(START))
}

/// Appends the further field lines of an answer to a preflight.
///
/// Shape: `asked` is the value of `Access-Control-Request-Headers`; what is no list of names is
/// not allowed, and the browser says so.
pub fn write_preflight(asked: Option<&[u8]>, out: &mut Vec<u8>) {
    out.extend_from_slice(
        format!(
            "access-control-allow-methods: {METHODS}\r\naccess-control-max-age: {MAX_AGE_S}\r\n\
             vary: Access-Control-Request-Headers\r\n"
        )
        .as_bytes(),
    );
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~, \t".contains(&byte);
    if let Some(asked) = asked.filter(|asked| asked.iter().copied().all(is_name)) {
        out.extend_from_slice(b"access-control-allow-headers: ");
        out.extend_from_slice(asked);
        out.extend_from_slice(b"\r\n");
    }
}

/// Reads an origin: `*`, or scheme, host and port as browsers write them (RFC 6454 §6.2).
///
/// Shape: in lower case, a default port left out, as in the field `Origin`.
/// Errors: `NoOrigin` for anything else, a path or a trailing slash included.
pub fn origin(text: &str) -> Result<String, NoOrigin> {
    if text == "*" {
        return Ok(text.to_owned());
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, authority) = lower.split_once("://").ok_or(NoOrigin)?;
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    if !is_scheme || authority.is_empty() || !authority.chars().all(is_host) {
        return Err(NoOrigin);
    }
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return Ok(lower),
    };
    Ok(lower.strip_suffix(port).unwrap_or(&lower).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(entries: &[&str], origin: &str) -> Option<String> {
        let cors = Cors::new(entries).unwrap();
        cors.lines(origin.as_bytes()).map(|lines| String::from_utf8(lines.to_vec()).unwrap())
    }

    #[test]
    fn a_listed_origin_is_named_and_no_other() {
        let list = ["https://chat.example", "http://127.0.0.1:3000", "chrome-extension://abc"];
        let told_to = |origin| told(&list, origin);
        let lines = told_to("https://chat.example").unwrap();
        assert!(lines.starts_with("access-control-allow-origin: https://chat.example\r\n"));
        assert!(lines.ends_with("vary: Origin\r\n") && lines.matches("\r\n").count() == 3);
        assert!(told_to("http://127.0.0.1:3000").is_some());
        assert!(told_to("chrome-extension://abc").is_some());
        for other in [
            "http://chat.example",
            "https://chat.example:8443",
            "https://chat.example.evil",
            "https://evil.example",
            "null",
            "",
        ] {
            assert_eq!(told_to(other), None, "{other}");
        }
        assert!(Cors::default().is_off() && told(&[], "https://chat.example").is_none());
    }

    #[test]
    fn a_star_lets_every_page_call_and_varies_by_none() {
        let lines = told(&["*", "https://chat.example"], "null").unwrap();
        assert!(lines.contains("allow-origin: *\r\n") && !lines.contains("vary"), "{lines}");
        assert!(told(&["*", "https://a.b"], "https://a.b").unwrap().contains("vary: Origin"));
    }

    #[test]
    fn origins_are_read_as_browsers_write_them() {
        for (text, want) in [
            ("HTTPS://Chat.Example:443", "https://chat.example"),
            ("http://h:80", "http://h"),
            ("http://h:8080", "http://h:8080"),
            ("http://[::1]:3000", "http://[::1]:3000"),
            ("*", "*"),
        ] {
            assert_eq!(origin(text).as_deref(), Ok(want));
        }
        for bad in
            ["", "chat.example", "https://", "https://a/", "https://a/b", "https://*.a", "a b://c"]
        {
            assert_eq!(origin(bad), Err(NoOrigin), "{bad}");
        }
    }

    #[test]
    fn a_preflight_is_answered_with_what_was_asked_for() {
        let written = |asked: Option<&[u8]>| {
            let mut out = Vec::new();
            write_preflight(asked, &mut out);
            String::from_utf8(out).unwrap()
        };
        let lines = written(Some(b"authorization,content-type, x-stainless-os"));
        assert!(lines.contains("allow-headers: authorization,content-type, x-stainless-os\r\n"));
        for none in [None, Some(&b"a\rb"[..]), Some(b"a: b")] {
            assert!(!written(none).contains("allow-headers"), "{none:?}");
        }
        assert!(owns(b"Access-Control-Allow-Origin") && !owns(b"access-control"));
    }
}
