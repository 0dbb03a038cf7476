//! The trace of one exchange: whose child it is, a span for it, and one for each attempt.
//!
//! W3C Trace Context: what the client says in `traceparent` is taken up, its sampled flag followed;
//! without one a trace begins here, for the share that the operator wants. Only exchanges that are
//! sampled have a `Trace`; nothing is kept of the others.
//!
//! Pure: ids are drawn by whoever has a random source. `tracestate` is none of its business: it passes
//! as it came.

use std::net::SocketAddr;

use crate::base::clock::Moment;
use crate::error::Kind;

/// Bytes of a `traceparent` of version 00.
pub const TRACEPARENT_BYTES: usize = 55;
/// Attempts that have a span of their own; what comes after is counted by the exchange's.
const ATTEMPTS_MAX: usize = 16;

/// The number of a span, never 0.
pub type SpanId = [u8; 8];

/// What a valid `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, never 0.
    pub trace: [u8; 16],
    /// The span that sent the request.
    pub span: SpanId,
    /// Whether its sender records it.
    pub sampled: bool,
}

impl TraceParent {
    /// Reads a field's value; `None` for one that is not valid, which is treated as if it were not
    /// there.
    ///
    /// Source: W3C Trace Context §3.2; of a later version the known parts are read (§3.2.4).
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<TraceParent> {
        let (known, rest) = value.split_at_checked(TRACEPARENT_BYTES)?;
        let version: [u8; 1] = hex(&known[..2])?;
        let goes_on = rest.is_empty() || (version[0] > 0 && rest[0] == b'-');
        if version[0] == 0xff || !goes_on {
            return None;
        }
        if [known[2], known[35], known[52]] != [b'-'; 3] {
            return None;
        }
        let (trace, span) = (hex(&known[3..35])?, hex(&known[36..52])?);
        let flags: [u8; 1] = hex(&known[53..])?;
        let valid = trace != [0; 16] && span != [0; 8];
        valid.then_some(TraceParent { trace, span, sampled: flags[0] & 1 == 1 })
    }
}

/// Lower-case hexadecimal digits, two for each byte.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        *byte = digit(*pair.first()?)? << 4 | digit(*pair.get(1)?)?;
    }
    Some(bytes)
}

/// The trace of an exchange that is sampled.
#[derive(Clone, Debug)]
pub struct Trace {
    /// The trace.
    pub id: [u8; 16],
    /// The span that the client named.
    pub parent: Option<SpanId>,
    /// The exchange's own span.
    pub span: SpanId,
    /// The attempts, in order.
    pub attempts: Vec<AttemptSpan>,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptSpan {
    /// Its span.
    pub span: SpanId,
    /// The upstream's name.
    pub upstream: Box<str>,
    /// The upstream's first address.
    pub address: Option<SocketAddr>,
    /// When it began.
    pub begun: Moment,
    /// When it failed; `None` = it was the last one, and ended with the exchange.
    pub failed: Option<Moment>,
    /// Why it failed, when it did.
    pub kind: Option<Kind>,
    /// The status that was tried elsewhere; 0 = there was none.
    pub status: u16,
}

impl Trace {
    /// Takes up the client's trace, or begins one; `None` for an exchange that is not sampled.
    ///
    /// Shape: `share` is that of traces which begin here, 0.0..=1.0; `draw` gives random numbers.
    #[must_use]
    pub fn begin(
        parent: Option<TraceParent>,
        share: f64,
        mut draw: impl FnMut() -> u64,
    ) -> Option<Box<Trace>> {
        let sampled = match parent {
            Some(parent) => parent.sampled,
            // 53 bits, as many as a float holds.
            None => ((draw() >> 11) as f64) < share * (1u64 << 53) as f64,
        };
        if !sampled {
            return None;
        }
        let id = parent.map_or_else(
            || (u128::from(draw()) << 64 | u128::from(draw()).max(1)).to_be_bytes(),
            |parent| parent.trace,
        );
        let span = span_id(draw());
        let parent = parent.map(|parent| parent.span);
        Some(Box::new(Trace { id, parent, span, attempts: Vec::new() }))
    }

    /// An attempt begins; `chance` is a random number.
    pub fn attempt_began(
        &mut self,
        chance: u64,
        upstream: &str,
        address: Option<SocketAddr>,
        now: Moment,
    ) {
        if self.attempts.len() < ATTEMPTS_MAX {
            let (span, upstream) = (span_id(chance), upstream.into());
            let (failed, kind, status) = (None, None, 0);
            let begun = now;
            self.attempts.push(AttemptSpan {
                span,
                upstream,
                address,
                begun,
                failed,
                kind,
                status,
            });
        }
    }

    /// The attempt that began last has failed, and the client has been sent nothing.
    pub fn attempt_failed(&mut self, kind: Kind, status: u16, now: Moment) {
        if let Some(last) = self.attempts.last_mut().filter(|last| last.failed.is_none()) {
            (last.failed, last.kind, last.status) = (Some(now), Some(kind), status);
        }
    }

    /// The `traceparent` for the server: it names the span of the attempt.
    #[must_use]
    pub fn traceparent(&self) -> [u8; TRACEPARENT_BYTES] {
        let span = self.attempts.last().map_or(self.span, |last| last.span);
        let mut text = [b'-'; TRACEPARENT_BYTES];
        text[..2].copy_from_slice(b"00");
        put_hex(&self.id, &mut text[3..35]);
        put_hex(&span, &mut text[36..52]);
        text[53..].copy_from_slice(b"01");
        text
    }
}

fn span_id(chance: u64) -> SpanId {
    chance.max(1).to_be_bytes()
}

fn put_hex(bytes: &[u8], text: &mut [u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for (byte, pair) in bytes.iter().zip(text.chunks_exact_mut(2)) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn parse(text: &str) -> Option<TraceParent> {
        TraceParent::parse(text.as_bytes())
    }

    #[test]
    fn reads_what_the_specification_shows() {
        let parent = parse(PARENT).unwrap();
        assert!(parent.sampled && parent.trace[0] == 0x0a && parent.span[7] == 0x31);
        assert!(!parse(&PARENT.replace("-01", "-00")).unwrap().sampled);
        assert!(parse(&PARENT.replace("-01", "-ff")).unwrap().sampled);
        assert_eq!(parse(&format!("{}-more", PARENT.replacen("00", "cc", 1))).unwrap(), parent);
    }

    #[test]
    fn what_is_not_valid_is_not_there() {
        for bad in [
            "",
            "00-ab-cd-01",
            &PARENT[..54],
            &format!("{PARENT}-more"),
            &format!("{}.more", PARENT.replacen("00", "cc", 1)),
            &PARENT.replacen("00", "ff", 1),
            &PARENT.to_uppercase(),
            &PARENT.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            &PARENT.replace("b7ad6b7169203331", &"0".repeat(16)),
            &PARENT.replace("-b7", "_b7"),
            &PARENT.replace("-01", "-0g"),
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_parents_flag_is_followed_and_the_share_counts_without_one() {
        let sampled = parse(PARENT);
        let unsampled = parse(&PARENT.replace("-01", "-00"));
        assert!(Trace::begin(sampled, 0.0, || 7).is_some());
        assert!(Trace::begin(unsampled, 1.0, || 7).is_none());
        assert!(Trace::begin(None, 1.0, || u64::MAX).is_some());
        assert!(Trace::begin(None, 0.0, || 0).is_none());
        assert!(Trace::begin(None, 0.5, || 1 << 62).is_some());
        assert!(Trace::begin(None, 0.5, || 3 << 62).is_none());
    }

    #[test]
    fn the_server_is_told_the_span_of_its_attempt() {
        let mut trace = Trace::begin(parse(PARENT), 0.0, || 1).unwrap();
        assert_eq!(trace.parent, Some(parse(PARENT).unwrap().span));
        let told = |trace: &Trace| TraceParent::parse(&trace.traceparent()).unwrap();
        trace.attempt_began(2, "gpu0", None, Moment::ORIGIN);
        assert_eq!(told(&trace), TraceParent { span: span_id(2), ..parse(PARENT).unwrap() });
        trace.attempt_failed(Kind::UpstreamReset, 0, Moment::ORIGIN);
        trace.attempt_began(3, "gpu1", None, Moment::ORIGIN);
        assert_eq!(told(&trace).span, span_id(3));
        assert_eq!(trace.attempts[0].kind, Some(Kind::UpstreamReset));
        assert_eq!(trace.attempts[1].failed, None);
        for _ in 0..100 {
            trace.attempt_began(4, "gpu1", None, Moment::ORIGIN);
        }
        assert_eq!(trace.attempts.len(), ATTEMPTS_MAX);
    }
}
