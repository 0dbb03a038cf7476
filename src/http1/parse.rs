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
//! - any number of empty lines before a request: one is skipped, as §2.2 allows, no more;
//! - bytes of 0x80 and above in a target: the request line is read here, not there;
//! - `HTTP/1.2`, which it refuses and §2.3 wants read as 1.1: likewise.
//!
//! Not here: how the body is delimited (`framing`), and whether a method or a path is served.

use std::fmt;

use memchr::memchr;

use crate::http::{
    fields::{is_token_byte, is_value_byte},
    head::{Field, RequestHead, ResponseHead, Span, Version},
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

/// Why a head is refused. For a request each one means an error status and close, for a response
/// 502: where the next message begins is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeadFault {
    /// More bytes than `head_bytes_max` (431).
    HeadTooLarge,
    /// More fields than `fields_max` (431).
    TooManyFields,
    /// A target longer than `target_bytes_max` (414).
    TargetTooLong,
    /// A version of HTTP other than 1.x (505).
    BadVersion,
    /// The first line is not three parts with one space between them, or not `HTTP/1.x`.
    BadStartLine,
    /// A method that is no token, or longer than any.
    BadMethod,
    /// A target with a byte outside visible ASCII, with a fragment, or in none of the four forms.
    BadTarget,
    /// A status that is not three digits from 100 on.
    BadStatus,
    /// A line that ends in LF alone.
    BareLf,
    /// A CR that is not followed by LF.
    BareCr,
    /// A field line that begins with white space.
    ObsFold,
    /// White space between a field name and its colon.
    SpaceBeforeColon,
    /// A control byte in a value or a reason.
    ControlByte,
    /// A field line without a colon, or with a name that is no token.
    BadField,
    /// HTTP/1.1 without `Host`.
    HostMissing,
    /// More than one `Host`.
    HostTwice,
    /// A `Host` that is no `host[:port]`.
    HostBad,
}

impl fmt::Display for HeadFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeadFault::HeadTooLarge => "head too large",
            HeadFault::TooManyFields => "too many fields",
            HeadFault::TargetTooLong => "request target too long",
            HeadFault::BadVersion => "http version not supported",
            HeadFault::BadStartLine => "malformed first line",
            HeadFault::BadMethod => "malformed method",
            HeadFault::BadTarget => "malformed request target",
            HeadFault::BadStatus => "malformed status",
            HeadFault::BareLf => "line feed without carriage return",
            HeadFault::BareCr => "carriage return without line feed",
            HeadFault::ObsFold => "folded field line",
            HeadFault::SpaceBeforeColon => "white space before the colon of a field",
            HeadFault::ControlByte => "control byte in a field value",
            HeadFault::BadField => "malformed field line",
            HeadFault::HostMissing => "host field missing",
            HeadFault::HostTwice => "more than one host field",
            HeadFault::HostBad => "malformed host field",
        })
    }
}

impl std::error::Error for HeadFault {}

/// Reads a request head, as far as it has come.
///
/// Shape: `bytes` begins at the first byte of the head and grows from call to call; `searched` is 0
/// on the first call and kept by the caller, with the same `head`, until the result is not `More`.
/// It remembers how far the bytes have been walked, so that a head that drips in costs linear time.
/// One empty line before the request is skipped and counted in `head.len` (§2.2).
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
        let Some(start) = skip_empty_line(window)? else {
            return wait(window, searched, limits);
        };
        let line_bytes_max = METHOD_BYTES_MAX + limits.target_bytes_max + " HTTP/1.1\r\n".len() + 1;
        let within = &window[..window.len().min(start + line_bytes_max)];
        match memchr(b'\n', within.get(*searched..).unwrap_or(&[])) {
            Some(at) => {
                let lf = *searched + at;
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
    let fields_start = head.start_line_end as usize;
    let Some(end) = blank_line(window, fields_start.max(*searched))? else {
        return wait(window, searched, limits);
    };
    cut_fields(&window[..end], fields_start, limits.fields_max, &mut head.fields)?;
    check_host(head, window)?;
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
    let fields_start = head.start_line_end as usize;
    let Some(end) = blank_line(window, fields_start.max(*searched))? else {
        return wait(window, searched, limits);
    };
    cut_fields(&window[..end], fields_start, limits.fields_max, &mut head.fields)?;
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

/// Where the request line begins: 0, or 2 after an empty line. `None`: not to be told yet.
fn skip_empty_line(window: &[u8]) -> Result<Option<usize>, HeadFault> {
    let (start, first) = match window {
        [] | [b'\r'] | [b'\r', b'\n'] => return Ok(None),
        [b'\r', b'\n', first, ..] => (2, *first),
        [b'\r', ..] => return Err(HeadFault::BareCr),
        [b'\n', ..] => return Err(HeadFault::BareLf),
        [first, ..] => (0, *first),
    };
    if is_token_byte(first) { Ok(Some(start)) } else { Err(HeadFault::BadMethod) }
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
    cut_target(window, head)
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

/// Finds the end of the head: one past the LF of the first empty line at or after `from`.
///
/// Before: an LF stands before the first field line. Every LF on the way has its CR.
fn blank_line(window: &[u8], from: usize) -> Result<Option<usize>, HeadFault> {
    let mut at = from;
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
fn cut_fields(
    head: &[u8],
    start: usize,
    fields_max: usize,
    fields: &mut Vec<Field>,
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
        for slot in &slots[..filled] {
            let name = span_within(head, slot.name.as_bytes());
            let value = span_within(head, slot.value);
            let line_end = line_end(head, value.end as usize);
            fields.push(Field {
                name_kind: Name::of(slot.name.as_bytes()),
                name,
                value,
                line: Span::new(name.start as usize, line_end),
            });
            at = line_end;
        }
        if last {
            return Ok(());
        }
    }
}

/// Where `part`, a slice of `whole`, stands in it.
fn span_within(whole: &[u8], part: &[u8]) -> Span {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    debug_assert!(start + part.len() <= whole.len(), "httparse returns slices of its input");
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

/// Sorts the target into one of the four forms (RFC 9112 §3.2) and cuts it.
fn cut_target(bytes: &[u8], head: &mut RequestHead) -> Result<(), HeadFault> {
    let target = head.target.of(bytes);
    let offset = head.target.start as usize;
    // A fragment is never sent; one server would cut it off and another take it for the path.
    if memchr(b'#', target).is_some() {
        return Err(HeadFault::BadTarget);
    }
    let path_start = match (head.method, target) {
        (Method::Connect, _) if is_authority(target) && target.contains(&b':') => {
            head.target_authority = head.target;
            return Ok(());
        }
        (Method::Connect, _) => return Err(HeadFault::BadTarget),
        (_, [b'/', ..]) => 0,
        (Method::Options, b"*") => 0,
        _ => {
            let authority_start = scheme_len(target).ok_or(HeadFault::BadTarget)?;
            let rest = &target[authority_start..];
            let len = rest.iter().position(|byte| b"/?".contains(byte)).unwrap_or(rest.len());
            if !is_authority(&rest[..len]) {
                return Err(HeadFault::BadTarget);
            }
            let end = authority_start + len;
            head.target_authority = Span::new(offset + authority_start, offset + end);
            end
        }
    };
    let mark = memchr(b'?', &target[path_start..]).map(|at| path_start + at);
    let path_end = mark.unwrap_or(target.len());
    head.target_path = Span::new(offset + path_start, offset + path_end);
    head.target_query = mark.map(|at| Span::new(offset + at + 1, offset + target.len()));
    Ok(())
}

/// Bytes of `http://` or `https://` at the front of an absolute-form target.
fn scheme_len(target: &[u8]) -> Option<usize> {
    [&b"http://"[..], b"https://"].into_iter().find_map(|scheme| {
        let front = target.get(..scheme.len())?;
        front.eq_ignore_ascii_case(scheme).then_some(scheme.len())
    })
}

/// Whether this is `host` or `host:port`, with a name, an IPv4 or a bracketed IPv6 address.
///
/// Narrower than RFC 3986 §3.2.2: user information, percent-encoding and sub-delimiters are
/// refused, because two servers may read a different host out of them.
fn is_authority(text: &[u8]) -> bool {
    let (host, port) = match text {
        [b'[', rest @ ..] => {
            let Some(close) = memchr(b']', rest) else { return false };
            let (address, after) = (&rest[..close], &rest[close + 1..]);
            let good = |byte: &u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
            if !address.contains(&b':') || !address.iter().all(good) {
                return false;
            }
            (address, after)
        }
        _ => {
            let (host, port) = text.split_at(memchr(b':', text).unwrap_or(text.len()));
            if !host.iter().all(|&byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)) {
                return false;
            }
            (host, port)
        }
    };
    !host.is_empty() && is_port(port)
}

/// Nothing, or a colon and up to five digits that fit 16 bits; the digits may be missing.
fn is_port(text: &[u8]) -> bool {
    match text {
        [] => true,
        [b':', digits @ ..] if digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit) => {
            digits.iter().fold(0u32, |sum, &digit| sum * 10 + u32::from(digit - b'0')) <= 0xffff
        }
        _ => false,
    }
}
