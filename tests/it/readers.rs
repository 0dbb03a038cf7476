//! What servers read in a request: the models that each kind of them would run.
//!
//! Written from what those servers do and from nothing of ours, slowly and on trees: Python's
//! `json`, Go's `encoding/json` (the first value of a stream, keys in any case, `null` leaves what
//! was there), `nlohmann::json` (the last duplicate), forms as Starlette takes them, paths decoded
//! once as uvicorn does, and queries. A server that looks at the type of a body and one that does
//! not are two readers, and so are those that take the first and the last of two.
//!
//! A reader that fails reads nothing: a server that answers 400 has run no model.

use std::collections::BTreeSet;

/// A request as a server gets it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Got {
    /// Path and query.
    pub target: Vec<u8>,
    /// Names as sent, and values, in order.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Without the framing of its transfer.
    pub body: Vec<u8>,
}

/// Who reads, and the model that it reads.
pub(crate) type Read = (&'static str, String);

impl Got {
    /// Reads a head as a server got it.
    pub(crate) fn of(head: &[u8], body: &[u8]) -> Got {
        let text: Vec<&[u8]> = head.split(|&byte| byte == b'\n').collect();
        let line = |at: usize| text.get(at).copied().unwrap_or_default().trim_ascii_end();
        let target = line(0).split(|&byte| byte == b' ').nth(1).unwrap_or_default().to_vec();
        let fields = (1..text.len()).map(line).filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = String::from_utf8_lossy(&line[..colon]).into_owned();
            Some((name, line[colon + 1..].trim_ascii().to_vec()))
        });
        Got { target, fields: fields.collect(), body: body.to_vec() }
    }

    fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        let named = self.fields.iter().filter(move |(field, _)| field.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_slice())
    }

    /// Every model that any server reads in it.
    pub(crate) fn models(&self) -> BTreeSet<Read> {
        let mut reads = BTreeSet::new();
        let mut add = |who: &'static str, name: Option<String>| {
            // A name that is empty is no name to any of them.
            if let Some(name) = name.filter(|name| !name.is_empty()) {
                reads.insert((who, name));
            }
        };
        let mut bodies = vec![self.body.clone()];
        let codings: Vec<u8> = self.values("content-encoding").collect::<Vec<_>>().join(&b","[..]);
        if codings.to_ascii_lowercase().windows(4).any(|word| word == b"gzip") {
            bodies.extend(unzipped(&self.body));
        }
        for body in &bodies {
            add("python json", python_json(body));
            add("nlohmann", nlohmann(body));
            go_json(body).into_iter().for_each(|name| add("go json", Some(name)));
            for value in self.values("content-type") {
                let (kind, parameters) = parse_options_header(value);
                if kind == b"multipart/form-data" {
                    for (_, boundary) in parameters.iter().filter(|(key, _)| key == b"boundary") {
                        multipart(body, boundary).into_iter().for_each(|n| add("form", Some(n)));
                    }
                }
                if kind == b"application/x-www-form-urlencoded" {
                    pairs(body).into_iter().for_each(|name| add("urlencoded", Some(name)));
                }
            }
        }
        let mut halves = self.target.splitn(2, |&byte| byte == b'?');
        let (path, query) = (halves.next().unwrap_or_default(), halves.next());
        in_path(path).into_iter().for_each(|name| add("path", Some(name)));
        in_path(&decoded(path)).into_iter().for_each(|name| add("path, decoded", Some(name)));
        pairs(query.unwrap_or_default()).into_iter().for_each(|name| add("query", Some(name)));
        reads
    }
}

// ---------------------------------------------------------------------------- JSON

/// A value; text is in code points, halves of pairs included.
#[derive(Clone, Debug)]
enum Json {
    Object(Vec<(Vec<u32>, Json)>),
    List,
    Text(Vec<u32>),
    Null,
    Other,
}

/// How a parser of JSON differs from RFC 8259.
#[derive(Clone, Copy)]
struct Ways {
    /// `NaN`, `Infinity` and `-Infinity` are numbers.
    infinite: bool,
    /// A half of a surrogate pair is a character; else it becomes U+FFFD.
    halves: bool,
    /// A half of a surrogate pair is an error.
    strict_halves: bool,
}

struct Parser<'b> {
    bytes: &'b [u8],
    at: usize,
    ways: Ways,
    depth: usize,
}

const REPLACEMENT: u32 = 0xfffd;

impl Parser<'_> {
    fn space(&mut self) {
        while self.peek().is_some_and(|byte| b" \t\r\n".contains(&byte)) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, word: &[u8]) -> Option<()> {
        self.bytes.get(self.at..)?.starts_with(word).then(|| self.at += word.len())
    }

    fn value(&mut self) -> Option<Json> {
        self.space();
        // Python's own limit is about a thousand.
        self.depth += 1;
        if self.depth > 900 {
            return None;
        }
        let value = match self.peek()? {
            b'{' => self.object()?,
            b'[' => self.list()?,
            b'"' => Json::Text(self.text()?),
            b't' => self.take(b"true").map(|()| Json::Other)?,
            b'f' => self.take(b"false").map(|()| Json::Other)?,
            b'n' => self.take(b"null").map(|()| Json::Null)?,
            b'N' if self.ways.infinite => self.take(b"NaN").map(|()| Json::Other)?,
            b'I' if self.ways.infinite => self.take(b"Infinity").map(|()| Json::Other)?,
            _ => self.number()?,
        };
        self.depth -= 1;
        Some(value)
    }

    fn object(&mut self) -> Option<Json> {
        let mut pairs = Vec::new();
        self.at += 1;
        self.space();
        if self.take(b"}").is_some() {
            return Some(Json::Object(pairs));
        }
        loop {
            self.space();
            let key = self.text()?;
            self.space();
            self.take(b":")?;
            pairs.push((key, self.value()?));
            self.space();
            if self.take(b"}").is_some() {
                return Some(Json::Object(pairs));
            }
            self.take(b",")?;
        }
    }

    fn list(&mut self) -> Option<Json> {
        self.at += 1;
        self.space();
        if self.take(b"]").is_some() {
            return Some(Json::List);
        }
        loop {
            self.value()?;
            self.space();
            if self.take(b"]").is_some() {
                return Some(Json::List);
            }
            self.take(b",")?;
        }
    }

    fn text(&mut self) -> Option<Vec<u32>> {
        self.take(b"\"")?;
        let mut out: Vec<u32> = Vec::new();
        loop {
            match self.peek()? {
                b'"' => {
                    self.at += 1;
                    break;
                }
                0..0x20 => return None,
                b'\\' => {
                    self.at += 2;
                    out.push(match self.bytes.get(self.at - 1)? {
                        byte @ (b'"' | b'\\' | b'/') => u32::from(*byte),
                        b'b' => 8,
                        b'f' => 12,
                        b'n' => 10,
                        b'r' => 13,
                        b't' => 9,
                        b'u' => self.unit()?,
                        _ => return None,
                    });
                }
                _ => {
                    let rest = self.bytes.get(self.at..)?;
                    let (code, len) = first_char(rest);
                    if code == REPLACEMENT && (self.ways.halves || self.ways.strict_halves) {
                        // Theirs decode the body before they parse it.
                        (rest.starts_with("\u{fffd}".as_bytes())).then_some(())?;
                    }
                    out.push(code);
                    self.at += len;
                }
            }
        }
        self.whole(out)
    }

    /// Joins pairs; what is left of them is as the parser takes it.
    fn whole(&self, units: Vec<u32>) -> Option<Vec<u32>> {
        let mut out: Vec<u32> = Vec::new();
        let mut at = 0;
        while let Some(&unit) = units.get(at) {
            at += 1;
            match (unit, units.get(at)) {
                (0xd800..0xdc00, Some(low @ 0xdc00..0xe000)) => {
                    out.push(0x1_0000 + ((unit & 0x3ff) << 10) + (low & 0x3ff));
                    at += 1;
                }
                (0xd800..0xe000, _) if self.ways.strict_halves => return None,
                (0xd800..0xe000, _) if !self.ways.halves => out.push(REPLACEMENT),
                _ => out.push(unit),
            }
        }
        Some(out)
    }

    fn unit(&mut self) -> Option<u32> {
        let digits = self.bytes.get(self.at..self.at + 4)?;
        digits.iter().all(u8::is_ascii_hexdigit).then_some(())?;
        self.at += 4;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    }

    fn number(&mut self) -> Option<Json> {
        let _ = self.take(b"-");
        if self.ways.infinite && self.take(b"Infinity").is_some() {
            return Some(Json::Other);
        }
        let digits = |parser: &mut Self| {
            let from = parser.at;
            while parser.peek().is_some_and(|byte| byte.is_ascii_digit()) {
                parser.at += 1;
            }
            (parser.at > from).then_some(())
        };
        if self.take(b"0").is_none() {
            digits(self)?;
        }
        if self.take(b".").is_some() {
            digits(self)?;
        }
        if self.take(b"e").or_else(|| self.take(b"E")).is_some() {
            let _ = self.take(b"+").or_else(|| self.take(b"-"));
            digits(self)?;
        }
        Some(Json::Other)
    }
}

/// The first character and its length; U+FFFD, of one byte, for what is none.
fn first_char(bytes: &[u8]) -> (u32, usize) {
    for len in 1..=4.min(bytes.len()) {
        if let Ok(text) = std::str::from_utf8(&bytes[..len])
            && let Some(char) = text.chars().next()
        {
            return (char as u32, len);
        }
    }
    (REPLACEMENT, 1)
}

/// One value, and whether nothing but white space follows it.
fn parsed(bytes: &[u8], ways: Ways) -> Option<(Json, bool)> {
    let mut parser = Parser { bytes, at: 0, ways, depth: 0 };
    let value = parser.value()?;
    parser.space();
    Some((value, parser.peek().is_none()))
}

fn string(units: &[u32]) -> String {
    // A half of a pair is no character of Rust's, and part of no name.
    units.iter().map(|&unit| char::from_u32(unit).unwrap_or('\u{fffd}')).collect()
}

fn is_key(key: &[u32], name: &str) -> bool {
    key.iter().copied().eq(name.chars().map(|char| char as u32))
}

/// The last of the keys of this name, if it is a string.
fn last(value: &Json, name: &str) -> Option<String> {
    let Json::Object(pairs) = value else { return None };
    match pairs.iter().rev().find(|(key, _)| is_key(key, name)) {
        Some((_, Json::Text(text))) => Some(string(text)),
        _ => None,
    }
}

/// `json.loads(body).get("model")`; the body may be UTF-16 or UTF-32, told by its zeros.
fn python_json(body: &[u8]) -> Option<String> {
    let text = python_text(body)?;
    let ways = Ways { infinite: true, halves: true, strict_halves: false };
    parsed(text.as_bytes(), ways).filter(|(_, whole)| *whole).and_then(|(v, _)| last(&v, "model"))
}

fn python_text(body: &[u8]) -> Option<String> {
    let units = |at: usize, big: bool| -> Option<String> {
        let pairs = body.get(at..)?.chunks_exact(2);
        let unit = |pair: &[u8]| match big {
            true => u16::from_be_bytes([pair[0], pair[1]]),
            false => u16::from_le_bytes([pair[0], pair[1]]),
        };
        let rest = pairs.remainder().is_empty();
        String::from_utf16(&pairs.map(unit).collect::<Vec<_>>()).ok().filter(|_| rest)
    };
    let wide = |at: usize, big: bool| -> Option<String> {
        let fours = body.get(at..)?.chunks_exact(4);
        let rest = fours.remainder().is_empty();
        let unit = |four: &[u8]| match big {
            true => u32::from_be_bytes([four[0], four[1], four[2], four[3]]),
            false => u32::from_le_bytes([four[0], four[1], four[2], four[3]]),
        };
        fours.map(|four| char::from_u32(unit(four))).collect::<Option<String>>().filter(|_| rest)
    };
    match body {
        [0, 0, 0xfe, 0xff, ..] => wide(4, true),
        [0xff, 0xfe, 0, 0, ..] => wide(4, false),
        [0xfe, 0xff, ..] => units(2, true),
        [0xff, 0xfe, ..] => units(2, false),
        [0xef, 0xbb, 0xbf, rest @ ..] => Some(std::str::from_utf8(rest).ok()?.to_owned()),
        [0, 0, _, _, ..] => wide(0, true),
        [0, _, ..] => units(0, true),
        [_, 0, 0, 0, ..] => wide(0, false),
        [_, 0, ..] => units(0, false),
        _ => Some(std::str::from_utf8(body).ok()?.to_owned()),
    }
}

/// `json::parse(body)["model"]`.
fn nlohmann(body: &[u8]) -> Option<String> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let ways = Ways { infinite: false, halves: false, strict_halves: true };
    parsed(body, ways).filter(|(_, whole)| *whole).and_then(|(value, _)| last(&value, "model"))
}

/// `json.NewDecoder(body).Decode(&request)`: the first value; a key in any case, each over the one
/// before, but for `null`. Also the first of several, as parsers do that stop there.
fn go_json(body: &[u8]) -> Vec<String> {
    let ways = Ways { infinite: false, halves: false, strict_halves: false };
    let Some((Json::Object(pairs), _)) = parsed(body, ways) else { return Vec::new() };
    let named = pairs.iter().filter(|(key, _)| string(key).eq_ignore_ascii_case("model"));
    let texts: Vec<String> = named
        .filter_map(|(_, value)| match value {
            Json::Text(text) => Some(string(text)),
            _ => None,
        })
        .collect();
    texts.first().into_iter().chain(texts.last()).cloned().collect()
}

// ---------------------------------------------------------------------------- forms

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// `python_multipart`'s: a value and its parameters; a quote may stand anywhere.
fn parse_options_header(value: &[u8]) -> (Vec<u8>, Pairs) {
    let mut parts = Vec::new();
    let mut rest = value;
    loop {
        let mut end = rest.iter().position(|&byte| byte == b';');
        while let Some(at) = end {
            if (count(&rest[..at], b"\"") as isize - count(&rest[..at], b"\\\"") as isize) % 2 == 0
            {
                break;
            }
            end = rest[at + 1..].iter().position(|&byte| byte == b';').map(|next| at + 1 + next);
        }
        let at = end.unwrap_or(rest.len());
        parts.push(rest[..at].trim_ascii());
        match end {
            Some(at) => rest = &rest[at + 1..],
            None => break,
        }
    }
    let options = parts[1..].iter().filter_map(|part| {
        let equals = part.iter().position(|&byte| byte == b'=').unwrap_or(part.len());
        let key = part[..equals].trim_ascii().to_ascii_lowercase();
        let value = part.get(equals + 1..).unwrap_or_default().trim_ascii();
        let inner = value.strip_prefix(b"\"").and_then(|inner| inner.strip_suffix(b"\""));
        let value = match inner {
            Some(inner) => replaced(&replaced(inner, b"\\\\", b"\\"), b"\\\"", b"\""),
            None => value.to_vec(),
        };
        (!key.contains(&b'*')).then_some((key, value))
    });
    (parts[0].to_ascii_lowercase(), options.collect())
}

fn count(bytes: &[u8], word: &[u8]) -> usize {
    memchr::memmem::find_iter(bytes, word).count()
}

fn replaced(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let Some(at) = memchr::memmem::find(rest, from) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(to);
        rest = &rest[at + from.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Every field `model`: as Starlette finds them, and as Go does, which looks for the first
/// delimiter in whatever stands before it and undoes `quoted-printable`; and as Django does, which
/// undoes `base64`.
fn multipart(body: &[u8], boundary: &[u8]) -> Vec<String> {
    let delimiter = [b"\r\n--", boundary].concat();
    let body = [b"\r\n", body].concat();
    let mut names = Vec::new();
    let mut starts = memchr::memmem::find_iter(&body, &delimiter).map(|at| at + delimiter.len());
    let mut start = starts.next();
    while let Some(from) = start {
        let rest = &body[from..];
        let padding = rest.iter().take_while(|byte| b" \t".contains(byte)).count();
        let Some(part) = rest[padding..].strip_prefix(b"\r\n") else {
            if rest.starts_with(b"--") {
                break;
            }
            start = starts.next();
            continue;
        };
        let end = memchr::memmem::find(part, &delimiter).unwrap_or(part.len());
        names.extend(of_part(&part[..end]));
        start = starts.next();
    }
    names
}

fn of_part(part: &[u8]) -> Vec<String> {
    // A part without fields begins with the empty line.
    let part = [b"\r\n", part].concat();
    let Some(end) = memchr::memmem::find(&part, b"\r\n\r\n") else { return Vec::new() };
    let (head, value) = (&part[..end], &part[end + 4..]);
    let (mut disposition, mut coding) = (&b""[..], Vec::new());
    for line in head.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let (name, value) = (line[..colon].to_ascii_lowercase(), line[colon + 1..].trim_ascii());
        match name.as_slice() {
            b"content-disposition" => disposition = value,
            b"content-transfer-encoding" => coding = value.to_ascii_lowercase(),
            _ => {}
        }
    }
    let (_, options) = parse_options_header(disposition);
    let last = |name: &[u8]| options.iter().rev().find(|(key, _)| key == name).map(|(_, v)| v);
    if last(b"name").is_none_or(|name| name != b"model") || last(b"filename").is_some() {
        return Vec::new();
    }
    let mut values = vec![value.to_vec()];
    match coding.as_slice() {
        b"quoted-printable" => values.push(replaced(&escaped(value, b'='), b"=\r\n", b"")),
        b"base64" => {
            use base64::Engine as _;
            values.extend(base64::engine::general_purpose::STANDARD.decode(value));
        }
        _ => {}
    }
    values.iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect()
}

/// The values of `model` in a query or an urlencoded body; Go before 1.17 parts at `;` too.
fn pairs(bytes: &[u8]) -> Vec<String> {
    let mut found = Vec::new();
    for separators in [&b"&"[..], b"&;"] {
        for pair in bytes.split(|byte| separators.contains(byte)) {
            let mut halves = pair.splitn(2, |&byte| byte == b'=');
            let form = |half: &[u8]| decoded(&replaced(half, b"+", b" "));
            let key = form(halves.next().unwrap_or_default());
            if key == b"model" {
                let value = form(halves.next().unwrap_or_default());
                found.push(String::from_utf8_lossy(&value).into_owned());
            }
        }
    }
    found
}

/// Undoes percent-encoding, and leaves what is none as it is.
fn decoded(bytes: &[u8]) -> Vec<u8> {
    escaped(bytes, b'%')
}

fn escaped(bytes: &[u8], mark: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
        let value = if byte == mark { digit(at + 1).zip(digit(at + 2)) } else { None };
        out.push(value.map_or(byte, |(high, low)| (high * 16 + low) as u8));
        at += if value.is_some() { 3 } else { 1 };
    }
    out
}

// ---------------------------------------------------------------------------- paths

/// What the routes of real servers take out of a path.
fn in_path(path: &[u8]) -> Vec<String> {
    let path = String::from_utf8_lossy(path).into_owned();
    // Some take `\` for `/`, and drop `;…` from a segment.
    let plain: Vec<&str> =
        path.split(['/', '\\']).map(|s| s.split(';').next().unwrap_or_default()).collect();
    let mut names = Vec::new();
    for (at, segment) in plain.iter().enumerate() {
        let rest = &plain[at + 1..];
        let Some(next) = rest.first().filter(|next| !next.is_empty()) else { continue };
        match segment.to_ascii_lowercase().as_str() {
            "models" | "tunedmodels" => {
                // `…/models/{name}:verb`, and the name may have slashes.
                let whole = rest.join("/");
                let verb = whole.rsplit_once(':').filter(|(_, verb)| {
                    !verb.is_empty() && verb.bytes().all(|byte| byte.is_ascii_alphabetic())
                });
                names.push(verb.map_or(whole.clone(), |(name, _)| name.to_owned()));
            }
            "model" | "deployments" | "deployment" | "engines" | "engine" => {
                names.push((*next).to_owned());
            }
            "endpoints" | "endpoint" => {
                let name = next.split(':').next().unwrap_or_default();
                names.push(name.to_owned());
            }
            _ => {}
        }
    }
    names
}

// ---------------------------------------------------------------------------- gzip

/// A member of stored blocks (RFC 1951 §3.2.4, RFC 1952).
pub(crate) fn zipped(bytes: &[u8]) -> Vec<u8> {
    let len = u16::try_from(bytes.len()).expect("one block is enough");
    let mut out = b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01".to_vec();
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&(!len).to_le_bytes());
    out.extend_from_slice(bytes);
    let crc = bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    });
    out.extend_from_slice(&(!crc).to_le_bytes());
    out.extend_from_slice(&u32::from(len).to_le_bytes());
    out
}

fn unzipped(bytes: &[u8]) -> Option<Vec<u8>> {
    let rest = bytes.strip_prefix(b"\x1f\x8b\x08\0\0\0\0\0\0\xff\x01")?;
    let len = u16::from_le_bytes([*rest.first()?, *rest.get(1)?]);
    rest.get(4..4 + usize::from(len)).map(<[u8]>::to_vec)
}

// ---------------------------------------------------------------------------- tests

/// The names that are read, without who reads them.
fn names(target: &str, fields: &[(&str, &str)], body: &[u8]) -> Vec<String> {
    let fields = fields.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect();
    let got = Got { target: target.into(), fields, body: body.to_vec() };
    let mut names: Vec<String> = got.models().into_iter().map(|(_, name)| name).collect();
    names.sort();
    names.dedup();
    names
}

#[test]
fn json_is_read_in_every_way() {
    let check = |body: &str, want: &[&str]| {
        assert_eq!(names("/", &[], body.as_bytes()), want, "{body}");
    };
    check(r#"{"model":"a"}"#, &["a"]);
    check(r#"{"model":"a","model":"b"}"#, &["a", "b"]);
    check(r#"{"model":"a","MODEL":"b"}"#, &["a", "b"]);
    check(r#"{"model":"a","model":null}"#, &["a"]);
    check(r#"{"model":"a"} {"model":"b"}"#, &["a"]);
    check(r#"{"mod\u0065l":"\ud83d\ude00","x":[{"model":"b"}]}"#, &["😀"]);
    check(r#"{"x":NaN,"model":"a"}"#, &["a"]);
    check("\u{feff}{\"model\":\"a\"}", &["a"]);
    check(r#"{"model":"a",}"#, &[]);
    check(r#"{"x":"\x","model":"a"}"#, &[]);
    let wide: Vec<u8> = r#"{"model":"a"}"#.bytes().flat_map(|byte| [byte, 0]).collect();
    assert_eq!(names("/", &[], &wide), ["a"]);
    let coded = [("content-encoding", "gzip")];
    assert_eq!(names("/", &coded, &zipped(br#"{"model":"a"}"#)), ["a"]);
}

#[test]
fn forms_are_read_in_every_way() {
    let field = |boundary: &str, disposition: &str, value: &str| {
        format!("--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n{value}\r\n")
    };
    let check = |kind: &str, body: &str, want: &[&str]| {
        assert_eq!(names("/", &[("Content-Type", kind)], body.as_bytes()), want, "{body}");
    };
    let form = "multipart/form-data; boundary=B; boundary=C";
    let b = field("B", "form-data; name=\"model\"", "b");
    let c = field("C", "form-data; name=model", "c");
    check(form, &format!("{b}--B--\r\n{c}--C--"), &["b", "c"]);
    check("multipart/form-data; boundary=B", &format!("x\r\n{b}{b}--B--"), &["b"]);
    // A quote that another parser takes for none.
    let hidden = field("B", r#"form-data; x="\\"; name="o"; z="; name=model; ""#, "b");
    check("multipart/form-data; boundary=B", &(hidden + "--B--"), &["b"]);
    let file = field("B", "form-data; name=model; filename=x", "b");
    check("multipart/form-data; boundary=B", &file, &[]);
    check("application/x-www-form-urlencoded", "x=1&mod%65l=a+b&model=c", &["a b", "c"]);
}

#[test]
fn targets_are_read_in_every_way() {
    let check = |target: &str, want: &[&str]| assert_eq!(names(target, &[], b""), want, "{target}");
    check("/v1beta/models/a:generateContent", &["a"]);
    check("/v1/publishers/google/models/a:b:predict?model=c", &["a:b", "c"]);
    check("/v1beta%2Fmodels%2Fa:generateContent", &["a"]);
    check("/openai/deployments/a/chat/completions", &["a"]);
    check("/x?a=1;model=b&mod%65l=c", &["b", "c"]);
    check("/v1/chat/completions", &[]);
}
