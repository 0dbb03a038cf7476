//! Bytes → message head (RFC 9112 §2 to §5).
//!
//! The one idea: the wire is walked line feed by line feed, each byte once, until the empty line;
//! only then are the fields cut up, by httparse. The walk closes what httparse leaves open, and it
//! refuses early: a bad start line as soon as it has ended, a bare LF when it arrives, a head that
//! outgrows its limits before it is complete, and a first byte that begins no message (a TLS hello
//! on a plain port) at once.
//!
//! Since every check happens at a fixed place in the bytes, the way in which a head was cut into
//! reads changes neither what is accepted nor which fault is found.
//!
//! What httparse lets through, and where it is closed:
//! - lines that end in a bare LF: the walk asks for the CR before each LF;
//! - any number of empty lines before a request: a few are skipped (§2.2), no more;
//! - bytes of 0x80 and above in a target: the request line is read here, not there;
//! - `HTTP/1.2`, which it refuses and §2.3 wants read as 1.1: likewise.
//!
//! Not here: how the body is delimited (`framing`), and whether a method or a path is served.

use memchr::memchr;

use super::head_fault::HeadFault;
use super::target::{is_authority, split_target};
use crate::http::{
    fields::{is_token_byte, is_value_byte},
    head::{Field, Fields, RequestHead, ResponseHead, Span, Version},
    method::Method,
    name::Name,
};

/// How large a head may be. Larger ones are refused before they are complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Bytes of the whole head, the blank line included.
    pub head_bytes_max: usize,
    /// Number of field lines.
    pub fields_max: usize,
    /// Bytes of the request target.
    pub target_bytes_max: usize,
}

impl Default for HeadLimits {
    /// The defaults of the configuration: 64 KiB, 128 fields, 16 KiB.
    fn default() -> HeadLimits {
        HeadLimits { head_bytes_max: 64 << 10, fields_max: 128, target_bytes_max: 16 << 10 }
    }
}

/// The longest method taken, in bytes. The longest registered one has 17.
pub const METHOD_BYTES_MAX: usize = 32;

/// Empty lines skipped before a request.
pub const EMPTY_LINES_MAX: usize = 16;

/// Fields cut up by one call of httparse; a head with more takes more calls.
const FIELDS_PER_CALL: usize = 32;

/// Whether a head is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parse {
    /// The bytes are good so far, and the head goes on.
    More,
    /// The head is complete; its `len` says where the body begins.
    Done,
}

/// Reads a request head, as far as it has come.
///
/// Shape: `bytes` begins at the first byte of the head and grows from call to call; `searched` is 0
/// on the first call and kept by the caller, with the same `head`, until the result is not `More`.
/// It remembers how far the bytes have been walked, so that a head that drips in costs linear time.
/// A few empty lines before the request are skipped and counted in `head.len` (§2.2).
/// Errors: every [`HeadFault`] but `BadStatus`.
/// Source: RFC 9112 §2.2, §3, §5; RFC 9110 §7.2 for `Host`.
pub fn parse_request(
    bytes: &[u8],
    searched: &mut usize,
    limits: &HeadLimits,
    head: &mut RequestHead,
) -> Result<Parse, HeadFault> {
    if *searched == 0 {
        head.clear();
    }
    let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
    if head.start_line_end == 0 {
        let Some(start) = skip_empty_lines(window)? else {
            return wait(window, searched, limits);
        };
        let line_bytes_max = METHOD_BYTES_MAX + limits.target_bytes_max + " HTTP/1.1\r\n".len() + 1;
        let within = &window[..window.len().min(start + line_bytes_max)];
        let from = start.max(*searched);
        match memchr(b'\n', within.get(from..).unwrap_or(&[])) {
            Some(at) => {
                let lf = from + at;
                request_line(window, start, lf, limits, head)?;
                head.start_line_end = Span::new(0, lf + 1).end;
            }
            // No good request line is that long: one of its parts is at fault.
            None if within.len() == start + line_bytes_max => {
                return Err(request_line(window, start, within.len(), limits, head)
                    .err()
                    .unwrap_or(HeadFault::BadStartLine));
            }
            None => return wait(window, searched, limits),
        }
    }
    let start = head.start_line_end as usize;
    let Some(end) = fields(window, start, *searched, limits, &mut head.fields)? else {
        return wait(window, searched, limits);
    };
    check_host(head, window)?;
    if head.fields.has(Name::LookAlike) {
        return Err(HeadFault::LookAlike);
    }
    head.len = Span::new(0, end).end;
    *searched = end;
    Ok(Parse::Done)
}

/// Reads a response head, as far as it has come.
///
/// Shape: as [`parse_request`]; nothing is skipped before the status line.
/// Errors: every [`HeadFault`] but those of method, target and `Host`.
/// Source: RFC 9112 §4, §5.
pub fn parse_response(
    bytes: &[u8],
    searched: &mut usize,
    limits: &HeadLimits,
    head: &mut ResponseHead,
) -> Result<Parse, HeadFault> {
    if *searched == 0 {
        head.clear();
    }
    let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
    if head.start_line_end == 0 {
        let known = window.len().min(b"HTTP/".len());
        if window[..known] != b"HTTP/"[..known] {
            return Err(HeadFault::BadStartLine);
        }
        let Some(at) = memchr(b'\n', window.get(*searched..).unwrap_or(&[])) else {
            return wait(window, searched, limits);
        };
        let lf = *searched + at;
        status_line(window, lf, head)?;
        head.start_line_end = Span::new(0, lf + 1).end;
    }
    let start = head.start_line_end as usize;
    let Some(end) = fields(window, start, *searched, limits, &mut head.fields)? else {
        return wait(window, searched, limits);
    };
    head.len = Span::new(0, end).end;
    *searched = end;
    Ok(Parse::Done)
}

/// Nothing more to be learned from these bytes: wait, unless the head has no room to grow.
fn wait(window: &[u8], searched: &mut usize, limits: &HeadLimits) -> Result<Parse, HeadFault> {
    if window.len() >= limits.head_bytes_max {
        return Err(HeadFault::HeadTooLarge);
    }
    *searched = window.len();
    Ok(Parse::More)
}

/// Where the request line begins, behind the empty lines before it. `None`: not to be told yet.
fn skip_empty_lines(window: &[u8]) -> Result<Option<usize>, HeadFault> {
    let mut start = 0;
    loop {
        match &window[start..] {
            [first, ..] if is_token_byte(*first) => return Ok(Some(start)),
            [] | [b'\r'] => return Ok(None),
            [b'\r', b'\n', ..] if start < 2 * EMPTY_LINES_MAX => start += 2,
            [b'\r', b'\n', ..] => return Err(HeadFault::BadStartLine),
            [b'\r', ..] => return Err(HeadFault::BareCr),
            [b'\n', ..] => return Err(HeadFault::BareLf),
            [..] => return Err(HeadFault::BadMethod),
        }
    }
}

/// Whether nothing has come but empty lines: some clients send one behind a body, and it belongs to
/// no request.
#[must_use]
pub fn is_empty_lines(bytes: &[u8]) -> bool {
    bytes.len() <= 2 * EMPTY_LINES_MAX && bytes.chunks(2).all(|line| line == b"\r\n")
}

/// Reads `method SP target SP version CR` between `start` and `end`, where the LF stands.
///
/// The checks go from left to right, so that a longer line has the same first fault.
fn request_line(
    window: &[u8],
    start: usize,
    end: usize,
    limits: &HeadLimits,
    head: &mut RequestHead,
) -> Result<(), HeadFault> {
    let line = &window[start..end];
    let method_end = line.iter().position(|&byte| !is_token_byte(byte)).unwrap_or(line.len());
    if method_end > METHOD_BYTES_MAX {
        return Err(HeadFault::BadMethod);
    }
    match line.get(method_end) {
        Some(b' ') => {}
        Some(b'\r') | None => return Err(HeadFault::BadStartLine),
        Some(_) => return Err(HeadFault::BadMethod),
    }
    let target_start = method_end + 1;
    let rest = &line[target_start..];
    let target_len = rest.iter().position(|byte| !byte.is_ascii_graphic()).unwrap_or(rest.len());
    if target_len > limits.target_bytes_max {
        return Err(HeadFault::TargetTooLong);
    }
    match rest.get(target_len) {
        Some(b' ') if target_len > 0 => {}
        Some(b' ' | b'\r' | b'\t') | None => return Err(HeadFault::BadStartLine),
        Some(_) => return Err(HeadFault::BadTarget),
    }
    head.version = match &rest[target_len + 1..] {
        [version @ .., b'\r'] => version_of(version)?,
        unended => return Err(version_of(unended).err().unwrap_or(HeadFault::BareLf)),
    };
    head.method = Method::of(&line[..method_end]);
    head.method_text = Span::new(start, start + method_end);
    let target_start = start + target_start;
    head.target = Span::new(target_start, target_start + target_len);
    split_target(window, head)
}

/// Reads `HTTP/1.x`. Another major version is known as such; anything else is no version at all.
fn version_of(text: &[u8]) -> Result<Version, HeadFault> {
    match text {
        b"HTTP/1.1" => Ok(Version::Http11),
        b"HTTP/1.0" => Ok(Version::Http10),
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
            if major.is_ascii_digit() && minor.is_ascii_digit() =>
        {
            if *major == b'1' {
                Ok(Version::Http11)
            } else {
                Err(HeadFault::BadVersion)
            }
        }
        _ => Err(HeadFault::BadStartLine),
    }
}

/// Reads `HTTP/1.x SP status SP [reason] CR`; the space after the status may be missing when
/// nothing follows it, as many servers have it.
fn status_line(window: &[u8], lf: usize, head: &mut ResponseHead) -> Result<(), HeadFault> {
    let Some((b'\r', line)) = window[..lf].split_last() else {
        return Err(HeadFault::BareLf);
    };
    let Some((version, rest)) = line.split_at_checked(b"HTTP/1.1".len()) else {
        return Err(HeadFault::BadStartLine);
    };
    head.version = version_of(version)?;
    let [b' ', digits @ ..] = rest else {
        return Err(HeadFault::BadStartLine);
    };
    let (Some(digits), after) = (digits.get(..3), digits.get(3..).unwrap_or(&[])) else {
        return Err(HeadFault::BadStatus);
    };
    if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' {
        return Err(HeadFault::BadStatus);
    }
    head.status = digits.iter().fold(0, |sum, &digit| sum * 10 + u16::from(digit - b'0'));
    let reason = match after {
        [] => &[],
        [b' ', reason @ ..] => reason,
        _ => return Err(HeadFault::BadStatus),
    };
    if let Some(&bad) = reason.iter().find(|&&byte| !is_value_byte(byte)) {
        return Err(if bad == b'\r' { HeadFault::BareCr } else { HeadFault::ControlByte });
    }
    head.reason = Span::new(line.len() - reason.len(), line.len());
    Ok(())
}

/// Cuts the field lines that begin at `start` and the empty line behind them: where the head ends.
///
/// Shape: `None` when the empty line is not here yet.
fn fields(
    window: &[u8],
    start: usize,
    searched: usize,
    limits: &HeadLimits,
    fields: &mut Fields,
) -> Result<Option<usize>, HeadFault> {
    // As good as every head comes in one piece and is good: then one walk will do.
    if searched <= start
        && let Some(end) = good_fields(window, start, limits.fields_max, fields)
    {
        return Ok(Some(end));
    }
    other_fields(window, start, searched, limits, fields)
}

/// As [`fields`], for a head that comes in pieces, has many fields, or a fault.
#[cold]
fn other_fields(
    window: &[u8],
    start: usize,
    searched: usize,
    limits: &HeadLimits,
    fields: &mut Fields,
) -> Result<Option<usize>, HeadFault> {
    fields.clear();
    let Some(end) = blank_line(window, start.max(searched))? else { return Ok(None) };
    split_fields(&window[..end], start, limits.fields_max, fields)?;
    Ok(Some(end))
}

/// As [`blank_line`] and [`split_fields`] at once, for a head of few fields that is whole and
/// without fault; `None` for any other.
fn good_fields(
    window: &[u8],
    start: usize,
    fields_max: usize,
    fields: &mut Fields,
) -> Option<usize> {
    let mut slots = [httparse::EMPTY_HEADER; FIELDS_PER_CALL];
    let Ok(httparse::Status::Complete((len, parsed))) =
        httparse::parse_headers(window.get(start..)?, &mut slots)
    else {
        return None;
    };
    let end = start + len;
    if parsed.len() > fields_max {
        return None;
    }
    let filled = parsed.len();
    let last = push_fields(window, start, &slots[..filled], fields);
    // The library takes a line that ends in LF alone; we do not.
    let ends = |at: usize| window.get(..at).is_some_and(|before| before.ends_with(b"\r\n"));
    let good =
        last + 2 == end && ends(end) && fields.iter().all(|field| ends(field.line.end as usize));
    good.then_some(end)
}

/// Finds the end of the head: one past the LF of the first empty line at or after `from`.
///
/// Before: an LF stands before the first field line. Every LF on the way has its CR.
fn blank_line(window: &[u8], from: usize) -> Result<Option<usize>, HeadFault> {
    // A reload may lower the limit in the middle of a head, below what has been walked.
    let mut at = from.min(window.len());
    while let Some(step) = memchr(b'\n', &window[at..]) {
        let lf = at + step;
        match &window[..lf] {
            [.., b'\n', b'\r'] => return Ok(Some(lf + 1)),
            [.., b'\r'] => at = lf + 1,
            _ => return Err(HeadFault::BareLf),
        }
    }
    Ok(None)
}

/// Cuts the field lines between `start` and the end of `head`, the blank line included.
///
/// Before: every LF in there has its CR, and the only empty line is the last.
fn split_fields(
    head: &[u8],
    start: usize,
    fields_max: usize,
    fields: &mut Fields,
) -> Result<(), HeadFault> {
    let mut at = start;
    loop {
        let mut slots = [httparse::EMPTY_HEADER; FIELDS_PER_CALL];
        let (filled, last) = match httparse::parse_headers(&head[at..], &mut slots) {
            Ok(httparse::Status::Complete((_, parsed))) => (parsed.len(), true),
            Err(httparse::Error::TooManyHeaders) => (FIELDS_PER_CALL, false),
            // The block ends in an empty line, so that "partial" is a fault as well.
            Ok(httparse::Status::Partial) | Err(_) => return Err(name_fault(&head[at..])),
        };
        if fields.len() + filled > fields_max {
            return Err(HeadFault::TooManyFields);
        }
        at = push_fields(head, at, &slots[..filled], fields);
        if last {
            return Ok(());
        }
    }
}

/// Notes where parsed fields stand in `head`, the first of them from `start` on: where they end.
fn push_fields(
    head: &[u8],
    start: usize,
    slots: &[httparse::Header<'_>],
    fields: &mut Fields,
) -> usize {
    let mut at = start;
    for slot in slots {
        let name = span_within(head, slot.name.as_bytes());
        let value = span_within(head, slot.value);
        at = line_end(head, value.end as usize);
        fields.push(Field {
            name_kind: Name::of(slot.name.as_bytes()),
            name,
            value,
            line: Span::new(name.start as usize, at),
        });
    }
    at
}

/// Where `part`, a slice of `whole`, stands in it.
pub(super) fn span_within(whole: &[u8], part: &[u8]) -> Span {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    debug_assert!(start + part.len() <= whole.len(), "a part of the whole");
    Span::new(start, start + part.len())
}

/// One past the LF of the line in which `from` stands.
fn line_end(head: &[u8], from: usize) -> usize {
    match head.get(from..) {
        Some([b'\r', b'\n', ..]) => from + 2,
        Some(rest) => memchr(b'\n', rest).map_or(head.len(), |at| from + at + 1),
        None => head.len(),
    }
}

/// Says what is wrong with field lines that httparse has refused.
#[cold]
fn name_fault(block: &[u8]) -> HeadFault {
    for line in block.split_inclusive(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r\n").unwrap_or(line);
        if matches!(line, [b' ' | b'\t', ..]) {
            return HeadFault::ObsFold;
        }
        if line.contains(&b'\r') {
            return HeadFault::BareCr;
        }
        let Some(colon) = memchr(b':', line) else {
            if line.is_empty() {
                break;
            }
            return HeadFault::BadField;
        };
        let (name, value) = line.split_at(colon);
        match name {
            [.., b' ' | b'\t'] => return HeadFault::SpaceBeforeColon,
            [] => return HeadFault::BadField,
            _ if !name.iter().all(|&byte| is_token_byte(byte)) => return HeadFault::BadField,
            _ if !value.iter().all(|&byte| is_value_byte(byte)) => return HeadFault::ControlByte,
            _ => {}
        }
    }
    HeadFault::BadField
}

/// Asks for one good `Host` (RFC 9112 §3.2); HTTP/1.0 may go without.
fn check_host(head: &RequestHead, bytes: &[u8]) -> Result<(), HeadFault> {
    let mut hosts = head.values(Name::Host, bytes);
    match (hosts.next(), hosts.next()) {
        (None, _) if head.version == Version::Http10 => Ok(()),
        (None, _) => Err(HeadFault::HostMissing),
        (Some(_), Some(_)) => Err(HeadFault::HostTwice),
        (Some(host), None) if is_authority(host) => Ok(()),
        (Some(_), None) => Err(HeadFault::HostBad),
    }
}

/// The target of a fuzzer: a head in two pieces is the head in one, and its spans tile it.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((&cut, wire)) = data.split_first() else { return };
    let limits = HeadLimits { head_bytes_max: 512, fields_max: 40, target_bytes_max: 64 };
    let cut = usize::from(cut).min(wire.len());

    let (mut whole, mut pieces) = (RequestHead::new(), RequestHead::new());
    let outcome = parse_request(wire, &mut 0, &limits, &mut whole);
    let mut searched = 0;
    let first = parse_request(&wire[..cut], &mut searched, &limits, &mut pieces);
    let second = match first {
        Ok(Parse::More) => parse_request(wire, &mut searched, &limits, &mut pieces),
        early => early,
    };
    assert_eq!(outcome, second, "request in two pieces");
    if outcome == Ok(Parse::Done) {
        assert_eq!((whole.len, &whole.fields), (pieces.len, &pieces.fields));
        assert_tiled(wire, whole.start_line_end, &whole.fields, whole.len);
        assert!(whole.fields.len() <= limits.fields_max && whole.len as usize <= 512);
    }

    let (mut whole, mut pieces) = (ResponseHead::new(), ResponseHead::new());
    let outcome = parse_response(wire, &mut 0, &limits, &mut whole);
    let mut searched = 0;
    let first = parse_response(&wire[..cut], &mut searched, &limits, &mut pieces);
    let second = match first {
        Ok(Parse::More) => parse_response(wire, &mut searched, &limits, &mut pieces),
        early => early,
    };
    assert_eq!(outcome, second, "response in two pieces");
    if outcome == Ok(Parse::Done) {
        assert_eq!((whole.len, &whole.fields), (pieces.len, &pieces.fields));
        assert_tiled(wire, whole.start_line_end, &whole.fields, whole.len);
        assert!((100..=999).contains(&whole.status));
    }
}

/// The lines follow each other without a gap, from the first line to the blank one, and the parts
/// of a line lie within it in order.
fn assert_tiled(bytes: &[u8], start: u32, fields: &[Field], len: u32) {
    let mut at = start;
    for field in fields {
        assert_eq!(field.line.start, at);
        assert_eq!(field.name.start, at);
        assert!(field.name.end < field.value.start && field.value.end + 2 <= field.line.end);
        assert!(field.line.of(bytes).ends_with(b"\r\n"));
        at = field.line.end;
    }
    assert_eq!(&bytes[at as usize..len as usize], b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const LIMITS: HeadLimits =
        HeadLimits { head_bytes_max: 1000, fields_max: 100, target_bytes_max: 100 };

    type Seen = (Vec<u8>, Vec<u8>, Version, Vec<(Vec<u8>, Vec<u8>)>, usize);

    fn pairs(fields: &[Field], bytes: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
        fields.iter().map(|f| (f.name.of(bytes).to_vec(), f.value.of(bytes).to_vec())).collect()
    }

    fn seen(head: &RequestHead, bytes: &[u8]) -> Seen {
        (
            head.method_text.of(bytes).to_vec(),
            head.target.of(bytes).to_vec(),
            head.version,
            pairs(&head.fields, bytes),
            head.len as usize,
        )
    }

    /// Feeds the wire in pieces that end at `cuts`, then whole.
    fn parse_at(
        wire: &[u8],
        cuts: &[usize],
        limits: &HeadLimits,
    ) -> Result<Option<Seen>, HeadFault> {
        let mut head = RequestHead::new();
        let mut searched = 0;
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (wire.len() + 1)).collect();
        ends.push(wire.len());
        ends.sort_unstable();
        for end in ends {
            if parse_request(&wire[..end], &mut searched, limits, &mut head)? == Parse::Done {
                return Ok(Some(seen(&head, wire)));
            }
        }
        Ok(None)
    }

    fn check(wire: &str, expected: Result<Parse, HeadFault>) {
        let got = parse_request(wire.as_bytes(), &mut 0, &LIMITS, &mut RequestHead::new());
        assert_eq!(got, expected, "{wire:?}");
    }

    /// A slow reader that splits text into lines. `None` = refused or not complete.
    fn oracle(wire: &[u8]) -> Option<Seen> {
        // One char per byte, so that offsets stay.
        let text: String = wire.iter().map(|&byte| char::from(byte)).collect();
        let bytes_of = |text: &str| text.chars().map(|c| c as u8).collect::<Vec<u8>>();
        let mut body = text.as_str();
        for _ in 0..EMPTY_LINES_MAX {
            body = body.strip_prefix("\r\n").unwrap_or(body);
        }
        let (head, _) = body.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let parts: Vec<&str> = lines.next()?.split(' ').collect();
        let [method, target, version] = parts[..] else { return None };
        let token = |text: &str| {
            let odd = "!#$%&'*+-.^_`|~";
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || odd.contains(c))
        };
        if !token(method) || !target.chars().all(|c| ('!'..='~').contains(&c) && c != '#') {
            return None;
        }
        let version = match version.strip_prefix("HTTP/1.")? {
            "0" => Version::Http10,
            minor if minor.len() == 1 && minor.chars().all(|c| c.is_ascii_digit()) => {
                Version::Http11
            }
            _ => return None,
        };
        let origin = target.starts_with('/') || (method == "OPTIONS" && target == "*");
        let good = match method {
            "CONNECT" => is_host(target) && target.contains(':'),
            _ if origin => true,
            _ => {
                let lower = target.to_ascii_lowercase();
                let rest = lower.strip_prefix("http://").or(lower.strip_prefix("https://"));
                rest.and_then(|rest| rest.split(['/', '?']).next()).is_some_and(is_host)
            }
        };
        if !good {
            return None;
        }
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            let value_good = |c: char| c == '\t' || (c >= ' ' && c != '\x7f');
            if !token(name) || !value.chars().all(value_good) {
                return None;
            }
            fields.push((bytes_of(name), bytes_of(value.trim_matches([' ', '\t']))));
        }
        let hosts: Vec<_> = fields.iter().filter(|f| f.0.eq_ignore_ascii_case(b"host")).collect();
        match hosts[..] {
            [] if version == Version::Http10 => {}
            [host] if std::str::from_utf8(&host.1).is_ok_and(is_host) => {}
            _ => return None,
        }
        let len = text.chars().count() - body.chars().count() + head.chars().count() + 4;
        Some((bytes_of(method), bytes_of(target), version, fields, len))
    }

    fn is_host(text: &str) -> bool {
        let name = r"^(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*\])(?::([0-9]{0,5}))?$";
        let Some(parts) = regex::Regex::new(name).expect("a good pattern").captures(text) else {
            return false;
        };
        parts.get(1).is_none_or(|port| port.is_empty() || port.as_str().parse::<u16>().is_ok())
    }

    /// Heads that are mostly good: a line of fragments each, some of them poisoned.
    fn wires() -> impl Strategy<Value = Vec<u8>> {
        let first = select(vec![
            "GET / HTTP/1.1\r\n",
            "POST /v1/x?y HTTP/1.1\r\n",
            "GET / HTTP/1.0\r\n",
            "OPTIONS * HTTP/1.1\r\n",
            "GET http://h/a HTTP/1.1\r\n",
            "GET * HTTP/1.1\r\n",
            "\r\nPUT /a HTTP/1.5\r\n",
            "GET / HTTP/2.0\r\n",
            "GET  / HTTP/1.1\r\n",
            "GET /\r\n",
            "\r\n\r\nGET / HTTP/1.1\r\n",
            "GET / HTTP/1.1\n",
            "GET /\u{7f} HTTP/1.1\r\n",
        ]);
        let good = select(vec![
            "A: b\r\n",
            "A:\r\n",
            "Content-Length: 5 \r\n",
            "X-y:\t\t z\t\r\n",
            "X: \r\n",
            "Accept: */*, q=\"a,b\"\r\n",
            "Connection: close\r\n",
            "K: v: w\r\n",
        ]);
        let poison = select(vec![
            "A : b\r\n",
            " a: b\r\n",
            "A: b\n",
            "A: b\r\r\n",
            "A\r\n",
            ": b\r\n",
            "A: \0\r\n",
            "\r\n",
            "\n",
            "Host: h\r\n",
        ]);
        let line = prop_oneof![12 => good, 1 => poison];
        let host =
            select(vec!["Host: h\r\n", "Host:h:80\r\n", "hOST: [::1]:8\r\n", "Host: a b\r\n", ""]);
        let junk = proptest::option::weighted(0.1, (any::<prop::sample::Index>(), any::<u8>()));
        let lines = prop::collection::vec(line, 0..8);
        (first, host, lines, junk).prop_map(|(first, host, lines, junk)| {
            let mut wire = format!("{first}{host}{}\r\nrest", lines.concat()).into_bytes();
            if let Some((at, byte)) = junk {
                let at = at.index(wire.len());
                wire[at] = byte;
            }
            wire
        })
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_result(
            wire in wires(),
            cuts in prop::collection::vec(any::<usize>(), 0..6),
            head_bytes_max in 1usize..200,
            fields_max in 0usize..8,
            target_bytes_max in 0usize..8,
        ) {
            let limits = HeadLimits { head_bytes_max, fields_max, target_bytes_max };
            prop_assert_eq!(parse_at(&wire, &[], &limits), parse_at(&wire, &cuts, &limits));
            let every: Vec<usize> = (0..wire.len()).collect();
            prop_assert_eq!(parse_at(&wire, &[], &LIMITS), parse_at(&wire, &every, &LIMITS));
        }

        #[test]
        fn agrees_with_a_reader_of_lines(wire in wires()) {
            prop_assert_eq!(parse_at(&wire, &[], &LIMITS).ok().flatten(), oracle(&wire));
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }

        #[test]
        fn no_likely_bytes_panic(cut: u8, wire in wires(), response: bool) {
            let mut data = vec![cut];
            if response {
                data.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
            }
            data.extend_from_slice(&wire);
            fuzz(&data);
        }

        #[test]
        fn stays_within_its_limits(
            wire in wires(),
            head_bytes_max in 1usize..200,
            fields_max in 0usize..8,
            target_bytes_max in 0usize..8,
        ) {
            let limits = HeadLimits { head_bytes_max, fields_max, target_bytes_max };
            if let Ok(Some((_, target, _, fields, len))) = parse_at(&wire, &[], &limits) {
                prop_assert!(len <= head_bytes_max);
                prop_assert!(fields.len() <= fields_max);
                prop_assert!(target.len() <= target_bytes_max);
            }
        }
    }

    #[test]
    fn a_head_that_drips_in_is_read_once() {
        let wire = b"\r\nGET /a?b HTTP/1.1\r\nHost: h\r\nX-API-Key:  k \r\n\r\nbody";
        let every: Vec<usize> = (0..wire.len()).collect();
        let (method, target, version, fields, len) =
            parse_at(wire, &every, &LIMITS).expect("good").expect("complete");
        assert_eq!(
            (&method[..], &target[..], version),
            (&b"GET"[..], &b"/a?b"[..], Version::Http11)
        );
        assert_eq!(fields[1], (b"X-API-Key".to_vec(), b"k".to_vec()));
        assert_eq!(&wire[len..], b"body");
    }

    #[test]
    fn spans_are_relative_to_the_first_byte() {
        let wire = b"\r\nGET http://a.b:1/p?q HTTP/1.1\r\nHost: h\r\n\r\n";
        let mut head = RequestHead::new();
        let got = parse_request(wire, &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!(got, Ok(Parse::Done));
        assert_eq!(head.authority(wire), Some(&b"a.b:1"[..]));
        assert_eq!(head.path(wire), b"/p");
        assert_eq!(head.query(wire), Some(&b"q"[..]));
        assert_eq!(head.fields[0].line.of(wire), b"Host: h\r\n");
        assert_eq!(head.len as usize, wire.len());
    }

    #[test]
    fn a_tls_hello_is_refused_at_its_first_byte() {
        check("\u{16}", Err(HeadFault::BadMethod));
        check("\u{16}\u{3}\u{1}", Err(HeadFault::BadMethod));
        check("", Ok(Parse::More));
        check("\r", Ok(Parse::More));
        check("\r\n", Ok(Parse::More));
        check("\r\n\u{16}", Err(HeadFault::BadMethod));
        let many = |lines: usize| format!("{}GET / HTTP/1.0\r\n\r\n", "\r\n".repeat(lines));
        check(&many(EMPTY_LINES_MAX), Ok(Parse::Done));
        check(&many(EMPTY_LINES_MAX + 1), Err(HeadFault::BadStartLine));
        check(&"\r\n".repeat(EMPTY_LINES_MAX), Ok(Parse::More));
    }

    #[test]
    fn a_bad_line_is_refused_before_the_head_is_complete() {
        check("SSH-2.0-OpenSSH_9.9\r\n", Err(HeadFault::BadStartLine));
        check("GET /\r\n", Err(HeadFault::BadStartLine));
        check("GET / HTTP/1.1\r\nHost: h\n", Err(HeadFault::BareLf));
        check("GET / HTTP/1.1\r\nHost: h\r\n", Ok(Parse::More));
    }

    #[test]
    fn head_bytes_max_refuses_before_the_head_is_complete() {
        let line = "GET / HTTP/1.1\r\nHost: h\r\nX: ";
        let fits = format!("{line}{}\r\n\r\n", "a".repeat(1000 - line.len() - 4));
        check(&fits, Ok(Parse::Done));
        check(&fits[..999], Ok(Parse::More));
        check(&format!("{line}{}", "a".repeat(1000 - line.len())), Err(HeadFault::HeadTooLarge));
    }

    #[test]
    fn a_limit_lowered_in_the_middle_of_a_head_refuses_it() {
        let wire = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {}", "a".repeat(500));
        let (mut head, mut searched) = (RequestHead::new(), 0);
        let got = parse_request(wire.as_bytes(), &mut searched, &LIMITS, &mut head);
        assert_eq!(got, Ok(Parse::More));
        for head_bytes_max in [100, 20, 10, 0] {
            let limits = HeadLimits { head_bytes_max, ..LIMITS };
            let got = parse_request(wire.as_bytes(), &mut searched, &limits, &mut head);
            assert_eq!(got, Err(HeadFault::HeadTooLarge), "{head_bytes_max}");
        }
    }

    #[test]
    fn target_bytes_max_refuses_before_the_line_is_complete() {
        let target = format!("/{}", "a".repeat(99));
        check(&format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n"), Ok(Parse::Done));
        check(&format!("GET {target}a HTTP/1.1\r\nHost: h\r\n\r\n"), Err(HeadFault::TargetTooLong));
        check(&format!("GET {target}{target}"), Err(HeadFault::TargetTooLong));
    }

    #[test]
    fn method_bytes_max_refuses_a_longer_method() {
        let method = "M".repeat(METHOD_BYTES_MAX);
        check(&format!("{method} / HTTP/1.1\r\nHost: h\r\n\r\n"), Ok(Parse::Done));
        check(&format!("{method}M / HTTP/1.1\r\nHost: h\r\n\r\n"), Err(HeadFault::BadMethod));
        check(&"M".repeat(300), Err(HeadFault::BadMethod));
    }

    #[test]
    fn fields_max_counts_over_several_batches() {
        for fields in [31, 32, 33, 63, 64, 65, 100] {
            let wire =
                format!("GET / HTTP/1.1\r\nHost: h\r\n{}\r\n", "A: b\r\n".repeat(fields - 1));
            let mut head = RequestHead::new();
            let got = parse_request(wire.as_bytes(), &mut 0, &LIMITS, &mut head);
            assert_eq!((got, head.fields.len()), (Ok(Parse::Done), fields));
            assert_tiled(wire.as_bytes(), head.start_line_end, &head.fields, head.len);
            let limits = HeadLimits { fields_max: fields - 1, ..LIMITS };
            let got = parse_request(wire.as_bytes(), &mut 0, &limits, &mut head);
            assert_eq!(got, Err(HeadFault::TooManyFields));
        }
        let bad = format!("GET / HTTP/1.1\r\nHost: h\r\n{}A : b\r\n\r\n", "A: b\r\n".repeat(40));
        check(&bad, Err(HeadFault::SpaceBeforeColon));
    }

    #[test]
    fn a_value_of_4200_bytes_passes() {
        let wire = format!("GET / HTTP/1.1\r\nHost: h\r\nCookie: {}\r\n\r\n", "c".repeat(4200));
        let mut head = RequestHead::new();
        let got = parse_request(wire.as_bytes(), &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!((got, head.fields[1].value.len()), (Ok(Parse::Done), 4200));
    }

    #[test]
    fn a_head_is_reused_without_the_last_one_in_it() {
        let mut head = RequestHead::new();
        for wire in
            ["PUT http://x/?q HTTP/1.0\r\nA: b\r\n\r\n", "GET / HTTP/1.1\r\nHost: h\r\n\r\n"]
        {
            let got = parse_request(wire.as_bytes(), &mut 0, &LIMITS, &mut head);
            assert_eq!(got, Ok(Parse::Done));
        }
        let wire = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";
        assert_eq!((head.fields.len(), head.version), (1, Version::Http11));
        assert_eq!((head.query(wire), head.authority(wire)), (None, Some(&b"h"[..])));
    }

    #[test]
    fn rfc_9112_section_2_1_response_example() {
        let wire = b"HTTP/1.1 200 OK\r\nDate: Mon, 27 Jul 2009 12:28:53 GMT\r\nServer: Apache\r\n\
            Content-Length: 51\r\nVary: Accept-Encoding\r\nContent-Type: text/plain\r\n\r\nHello World!";
        let mut head = ResponseHead::new();
        let got = parse_response(wire, &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!((got, head.status, head.reason.of(wire)), (Ok(Parse::Done), 200, &b"OK"[..]));
        assert_eq!(head.value(Name::Server, wire), Some(&b"Apache"[..]));
        assert_eq!(head.value(Name::ContentLength, wire), Some(&b"51"[..]));
        assert_eq!(&wire[head.len as usize..], b"Hello World!");
    }

    #[test]
    fn rfc_9112_section_3_2_request_examples() {
        for (line, host, path) in [
            ("GET /where?q=now HTTP/1.1", "www.example.org", "/where"),
            (
                "GET http://www.example.org/pub/WWW/TheProject.html HTTP/1.1",
                "www.example.org",
                "/pub/WWW/TheProject.html",
            ),
            ("OPTIONS * HTTP/1.1", "www.example.org", "*"),
        ] {
            let wire = format!("{line}\r\nHost: {host}\r\n\r\n");
            let mut head = RequestHead::new();
            let got = parse_request(wire.as_bytes(), &mut 0, &LIMITS, &mut head);
            assert_eq!(got, Ok(Parse::Done));
            assert_eq!(head.authority(wire.as_bytes()), Some(host.as_bytes()));
            assert_eq!(head.path(wire.as_bytes()), path.as_bytes());
        }
        check(
            "CONNECT www.example.com:80 HTTP/1.1\r\nHost: www.example.com\r\n\r\n",
            Ok(Parse::Done),
        );
    }

    #[test]
    fn a_response_that_is_none_is_refused_at_once() {
        for wire in ["X", "HTTPS", "SSH-2", "\u{15}\u{3}"] {
            let got = parse_response(wire.as_bytes(), &mut 0, &LIMITS, &mut ResponseHead::new());
            assert_eq!(got, Err(HeadFault::BadStartLine), "{wire:?}");
        }
        let got = parse_response(b"HTT", &mut 0, &LIMITS, &mut ResponseHead::new());
        assert_eq!(got, Ok(Parse::More));
    }
}
