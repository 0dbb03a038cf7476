//! Values that are lists, and the fields that belong to one connection only.
//!
//! Lists (RFC 9110 §5.6.1) are walked where they stand, element by element, with a comma inside a
//! quoted string being no comma. Hop-by-hop fields (RFC 9110 §7.6.1) end at the proxy: a fixed set,
//! and those that `Connection` names. The latter are looked up in the bytes each time they are
//! asked for, which costs nothing in the usual case that `Connection` says `keep-alive` or `close`
//! alone.
//!
//! Not here: whether a list is a legal framing (`http1::framing`), and what to write instead of
//! what was dropped (the trunk).

use super::{
    date,
    head::{Field, Fields, RequestHead, ResponseHead, Span, Version},
    name::Name,
};

/// Walks the elements of a comma list, white space around them removed, empty ones included.
///
/// An empty value is one empty element. A quoted string that never ends takes the rest with it.
pub fn list(value: &[u8]) -> List<'_> {
    List { rest: Some(value) }
}

/// The walk made by [`list`].
#[derive(Clone, Debug)]
pub struct List<'a> {
    rest: Option<&'a [u8]>,
}

impl<'a> Iterator for List<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let end = element_end(rest);
        let (element, after) = rest.split_at(end);
        self.rest = after.get(1..);
        Some(trim(element))
    }
}

/// Where the first element ends: at a comma outside quotes, or at the end.
fn element_end(value: &[u8]) -> usize {
    let mut quoted = false;
    let mut escaped = false;
    for (at, &byte) in value.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return at,
            _ => {}
        }
    }
    value.len()
}

/// Removes spaces and tabs from both ends (`OWS`, RFC 9110 §5.6.3).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether the comma list holds this token; case does not matter.
pub fn has_token(value: &[u8], token: &[u8]) -> bool {
    list(value).any(|element| element.eq_ignore_ascii_case(token))
}

/// Whether a byte may stand in a token: names of fields, methods (RFC 9110 §5.6.2).
#[inline]
pub fn is_token_byte(byte: u8) -> bool {
    TOKEN_BYTES[byte as usize]
}

static TOKEN_BYTES: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0usize;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        byte += 1;
    }
    table
};

/// Whether a byte may stand in a value: tab, visible ASCII, space, and 0x80 and above.
#[inline]
pub fn is_value_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// Whether the field ends at the proxy whatever `Connection` says (RFC 9110 §7.6.1).
///
/// `Trailer` is not among them: trailers are relayed, and so is their announcement. The two proxy
/// credentials are: they are spoken to the next hop, and a reverse proxy is not one. So is what
/// only looks like a name of ours: a request with it is refused, an answer goes on without it.
pub fn is_hop_by_hop(name: Name) -> bool {
    matches!(
        name,
        Name::Connection
            | Name::KeepAlive
            | Name::ProxyConnection
            | Name::TransferEncoding
            | Name::Te
            | Name::Upgrade
            | Name::ProxyAuthorization
            | Name::ProxyAuthenticate
            | Name::LookAlike
    )
}

/// Most options in the `Connection` fields of one head; each costs a comparison with each field.
pub const OPTIONS_MAX: usize = 64;

/// What the `Connection` fields of a head say, read once, without allocation.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionTokens<'a> {
    fields: &'a Fields,
    bytes: &'a [u8],
    /// `close` is among them.
    pub close: bool,
    /// `keep-alive` is among them.
    pub keep_alive: bool,
    /// `upgrade` is among them.
    pub upgrade: bool,
    /// Something else is among them: field names to be dropped.
    pub others: bool,
    /// There are more than `OPTIONS_MAX`, empty ones counted; `names` reads no further.
    pub excessive: bool,
}

impl<'a> ConnectionTokens<'a> {
    /// Reads the `Connection` fields among `fields`.
    pub fn new(fields: &'a Fields, bytes: &'a [u8]) -> ConnectionTokens<'a> {
        let mut tokens = ConnectionTokens {
            fields,
            bytes,
            close: false,
            keep_alive: false,
            upgrade: false,
            others: false,
            excessive: false,
        };
        let mut count = 0;
        for token in tokens.tokens() {
            count += 1;
            match token {
                [] => {}
                _ if token.eq_ignore_ascii_case(b"close") => tokens.close = true,
                _ if token.eq_ignore_ascii_case(b"keep-alive") => tokens.keep_alive = true,
                _ if token.eq_ignore_ascii_case(b"upgrade") => tokens.upgrade = true,
                _ => tokens.others = true,
            }
        }
        tokens.excessive = count > OPTIONS_MAX;
        tokens
    }

    /// Whether the field is named by `Connection` and so must not pass.
    ///
    /// Naming a field without which the message would mean something else (its target, its length,
    /// its type, its credential) is an attack, not an option, and has no effect here.
    pub fn names(&self, field: &Field) -> bool {
        if !self.others || is_essential(field.name_kind) {
            return false;
        }
        let name = field.name.of(self.bytes);
        self.tokens().take(OPTIONS_MAX).any(|token| token.eq_ignore_ascii_case(name))
    }

    /// Whether the connection outlives this message (RFC 9112 §9.3).
    pub fn persists(&self, version: Version) -> bool {
        match version {
            Version::Http11 => !self.close,
            Version::Http10 => self.keep_alive && !self.close,
        }
    }

    fn tokens(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes;
        self.fields.named(Name::Connection).flat_map(move |field| list(field.value.of(bytes)))
    }
}

fn is_essential(name: Name) -> bool {
    matches!(
        name,
        Name::Host
            | Name::ContentLength
            | Name::ContentType
            | Name::ContentEncoding
            | Name::Authorization
            | Name::XApiKey
            | Name::XGoogApiKey
    )
}

impl RequestHead {
    /// What its `Connection` fields say.
    pub fn connection<'a>(&'a self, bytes: &'a [u8]) -> ConnectionTokens<'a> {
        ConnectionTokens::new(&self.fields, bytes)
    }
}

impl ResponseHead {
    /// What its `Connection` fields say.
    pub fn connection<'a>(&'a self, bytes: &'a [u8]) -> ConnectionTokens<'a> {
        ConnectionTokens::new(&self.fields, bytes)
    }
}

/// What a `Keep-Alive` field promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct KeepAlive {
    /// Seconds that an idle connection is kept.
    pub timeout: Option<u32>,
    /// Requests that may still follow on the connection.
    pub max: Option<u32>,
}

/// Reads `timeout=5, max=100`. The first of each counts; what is not understood is passed over.
///
/// Source: RFC 2068 §19.7.1.1, the only text that ever described the field.
pub fn keep_alive(value: &[u8]) -> KeepAlive {
    let mut found = KeepAlive::default();
    for element in list(value) {
        let Some(equals) = memchr::memchr(b'=', element) else { continue };
        let (name, number) = (trim(&element[..equals]), trim(&element[equals + 1..]));
        if name.eq_ignore_ascii_case(b"timeout") {
            found.timeout = found.timeout.or(decimal(number));
        } else if name.eq_ignore_ascii_case(b"max") {
            found.max = found.max.or(decimal(number));
        }
    }
    found
}

/// Reads `Retry-After`: seconds, or a date, as the seconds from `now_s` (since 1970) to it. A part
/// of a second, which is not in the grammar and some servers send, counts as a whole one.
///
/// Source: RFC 9110 §10.2.3.
pub fn retry_after(value: &[u8], now_s: u64) -> Option<u32> {
    let value = trim(value);
    let dot = memchr::memchr(b'.', value);
    let (whole, fraction) = dot.map_or((value, &b""[..]), |dot| (&value[..dot], &value[dot + 1..]));
    match (decimal(whole), dot) {
        (Some(seconds), None) => Some(seconds),
        (Some(seconds), Some(_)) => {
            let part = decimal(fraction)? > 0;
            Some(seconds.saturating_add(u32::from(part)))
        }
        (None, _) => {
            let left = date::parse(value)?.saturating_sub(now_s);
            Some(u32::try_from(left).unwrap_or(u32::MAX))
        }
    }
}

/// A plain decimal; one too large for 32 bits is the largest, since it only says "long".
fn decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(
        digits.iter().fold(0u32, |sum, &digit| {
            sum.saturating_mul(10).saturating_add(u32::from(digit - b'0'))
        }),
    )
}

/// The target of a fuzzer: the elements of a list, put together again, are the value.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let mut bytes = 0;
    let mut elements = 0;
    for element in list(data) {
        assert_eq!(trim(element), element, "elements are trimmed");
        assert!(element.is_empty() || has_token(data, element));
        bytes += element.len();
        elements += 1;
    }
    assert!(elements > 0 && bytes + elements - 1 <= data.len());
    let commas = data.iter().filter(|&&byte| byte == b',').count();
    assert!(elements <= commas + 1);
    let promised = keep_alive(data);
    assert!(promised == KeepAlive::default() || data.contains(&b'='));

    let (name, value) = data.split_at(data.len() / 2);
    let fields = Fields::from_iter([
        Field { name: Span::new(0, name.len()), ..Field::default() },
        Field {
            name_kind: Name::Connection,
            value: Span::new(name.len(), data.len()),
            ..Field::default()
        },
    ]);
    let connection = ConnectionTokens::new(&fields, data);
    let known: [&[u8]; 3] = [b"close", b"keep-alive", b"upgrade"];
    let common = known.iter().any(|token| name.eq_ignore_ascii_case(token));
    assert_eq!(connection.excessive, list(value).count() > OPTIONS_MAX);
    if connection.names(&fields[0]) {
        assert!(has_token(value, name));
    } else if !connection.excessive {
        assert!(name.is_empty() || common || !has_token(value, name));
    }
    assert_eq!(connection.close, has_token(value, b"close"));
    assert_eq!(connection.persists(Version::Http11), !connection.close);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(value: &str, expected: &[&str]) {
        let got: Vec<&[u8]> = list(value.as_bytes()).collect();
        let expected: Vec<&[u8]> = expected.iter().map(|element| element.as_bytes()).collect();
        assert_eq!(got, expected, "{value:?}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        const NOW: u64 = 784_111_777;
        let check = |value: &str, expected| {
            assert_eq!(retry_after(value.as_bytes(), NOW), expected, "{value:?}");
        };
        check("30", Some(30));
        check(" 0 ", Some(0));
        check("30.5", Some(31));
        check("30.0", Some(30));
        check("0.01", Some(1));
        check("99999999999", Some(u32::MAX));
        check("Sun, 06 Nov 1994 08:51:37 GMT", Some(120));
        check("Sunday, 06-Nov-94 08:49:38 GMT", Some(1));
        check("Sun Nov  6 08:49:37 1994", Some(0));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        for none in ["", "-1", "30.", ".5", "30.x", "1e3", "soon", "30 s"] {
            check(none, None);
        }
    }

    #[test]
    fn rfc_9110_section_5_6_1_lists() {
        check("foo,bar", &["foo", "bar"]);
        check("foo ,bar,", &["foo", "bar", ""]);
        check("foo , ,bar,charlie", &["foo", "", "bar", "charlie"]);
        check("", &[""]);
        check(",", &["", ""]);
        check(",   ,", &["", "", ""]);
        check(" \t a b \t", &["a b"]);
    }

    #[test]
    fn a_comma_within_quotes_is_none() {
        check("a=\"x,y\", b", &["a=\"x,y\"", "b"]);
        check("\"a\\\",b\",c", &["\"a\\\",b\"", "c"]);
        check("a\\,b", &["a\\", "b"]);
        check("\"never ends, b", &["\"never ends, b"]);
    }

    #[test]
    fn a_token_is_found_whole_and_in_any_case() {
        assert!(has_token(b"Keep-Alive, CLOSE", b"close"));
        assert!(!has_token(b"closed, not-close", b"close"));
        assert!(!has_token(b"\"close\"", b"close"));
        assert!(!has_token(b"", b"close"));
    }

    #[test]
    fn keep_alive_reads_both_numbers() {
        let check = |value: &str, timeout, max| {
            assert_eq!(keep_alive(value.as_bytes()), KeepAlive { timeout, max }, "{value:?}");
        };
        check("timeout=5, max=100", Some(5), Some(100));
        check("MAX = 1,Timeout=0", Some(0), Some(1));
        check("timeout=5", Some(5), None);
        check("timeout=99999999999", Some(u32::MAX), None);
        check("timeout=5s, max=-1, other=2", None, None);
        check("timeout=, max", None, None);
        check("timeout=5, timeout=9", Some(5), None);
        check("", None, None);
    }

    /// One name and the `Connection` value it stands beside → whether it is named.
    fn named(name: &str, connection: &str) -> bool {
        let bytes = format!("{name}{connection}").into_bytes();
        let name_kind = Name::of(name.as_bytes());
        let fields = Fields::from_iter([
            Field { name_kind, name: Span::new(0, name.len()), ..Field::default() },
            Field {
                name_kind: Name::Connection,
                value: Span::new(name.len(), bytes.len()),
                ..Field::default()
            },
        ]);
        ConnectionTokens::new(&fields, &bytes).names(&fields[0])
    }

    #[test]
    fn connection_names_fields() {
        assert!(named("X-Hop", "close, x-hop"));
        assert!(!named("X-Hop", "close, x-hop-2"));
        assert!(!named("X-Hop", "close"));
    }

    #[test]
    fn connection_does_not_name_what_the_message_needs() {
        for name in ["Host", "Content-Length", "Content-Type", "Authorization", "X-Api-Key"] {
            assert!(!named(name, &format!("close, {name}")), "{name}");
        }
        assert!(named("User-Agent", "user-agent"));
    }

    #[test]
    fn options_max_bounds_what_is_read() {
        let before = |n: usize| format!("{}x-hop", "a,".repeat(n));
        assert!(named("X-Hop", &before(OPTIONS_MAX - 1)));
        assert!(!named("X-Hop", &before(OPTIONS_MAX)));
        let excessive = |value: &str| {
            let fields = Fields::from_iter([Field {
                name_kind: Name::Connection,
                value: Span::new(0, value.len()),
                ..Field::default()
            }]);
            let tokens = ConnectionTokens::new(&fields, value.as_bytes());
            (tokens.excessive, tokens.close)
        };
        assert_eq!(excessive(&before(OPTIONS_MAX - 1)), (false, false));
        // What ends the connection is seen wherever it stands.
        assert_eq!(excessive(&format!("{},close", before(OPTIONS_MAX))), (true, true));
        assert_eq!(excessive(&",".repeat(OPTIONS_MAX)), (true, false));
    }

    #[test]
    fn rfc_9112_section_9_3_persistence() {
        let check = |value: &str, http11, http10| {
            let fields = Fields::from_iter([Field {
                name_kind: Name::Connection,
                value: Span::new(0, value.len()),
                ..Field::default()
            }]);
            let tokens = ConnectionTokens::new(&fields, value.as_bytes());
            let got = (tokens.persists(Version::Http11), tokens.persists(Version::Http10));
            assert_eq!(got, (http11, http10), "{value:?}");
        };
        check("", true, false);
        check("keep-alive", true, true);
        check("close", false, false);
        check("keep-alive, close", false, false);
        check("Upgrade", true, false);
    }

    #[test]
    fn hop_by_hop_is_a_closed_set() {
        let hop: Vec<&str> =
            Name::ALL.iter().filter(|&&name| is_hop_by_hop(name)).map(|name| name.text()).collect();
        assert_eq!(
            hop,
            [
                "connection",
                "keep-alive",
                "proxy-connection",
                "transfer-encoding",
                "te",
                "upgrade",
                "proxy-authorization",
                "proxy-authenticate",
            ]
        );
        assert!(!is_hop_by_hop(Name::Other));
    }

    #[test]
    fn token_and_value_bytes_are_those_of_the_rfc() {
        for byte in 0..=255u8 {
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            assert_eq!(is_token_byte(byte), token, "{byte:#x}");
            let value = byte == 9 || (32..=126).contains(&byte) || byte >= 128;
            assert_eq!(is_value_byte(byte), value, "{byte:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_list_without_quotes_is_a_split(value in "[a, \\t;=]{0,30}") {
            let got: Vec<&[u8]> = list(value.as_bytes()).collect();
            let slow: Vec<&[u8]> =
                value.split(',').map(|part| part.trim_matches([' ', '\t']).as_bytes()).collect();
            prop_assert_eq!(got, slow);
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..80)) {
            fuzz(&data);
        }

        #[test]
        fn no_likely_bytes_panic(value in "[aA,\" \\\\=5]{0,12}|(close|a|keep-alive|timeout=5|, ?){0,6}") {
            fuzz(value.as_bytes());
        }
    }
}
