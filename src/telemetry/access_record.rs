//! A finished exchange as bytes, on its way from a core to the thread that writes the access log.
//!
//! A core copies numbers and texts one behind the other and goes on; what a line looks like is worked
//! out by the thread (`access::write_line`). Both ends are this process, so the form is nobody else's.
//!
//! Form: `NUMBERS` words of 8 bytes, the address (a byte that tells its length, then that), the texts
//! and the failed attempts (a length of 2 bytes before each text).

use std::net::IpAddr;

use super::access::write_line;
use super::finished::Finished;
use super::outcome::{Outcome, RouteKind};
use super::record::{CLIENT_TEXT_BYTES_MAX, FailedAttempt, truncated};
use crate::error::Kind;

/// Words of a record; those of `Outcome` first.
const NUMBERS: usize = 21;
/// Stands for a number that is not known.
const NONE: u64 = u64::MAX;

/// Appends a record.
pub fn encode(finished: &Finished<'_>, out: &mut Vec<u8>) {
    for number in numbers(finished) {
        out.extend_from_slice(&number.to_ne_bytes());
    }
    match finished.client {
        None => out.push(0),
        Some(IpAddr::V4(ip)) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        Some(IpAddr::V6(ip)) => {
            out.push(16);
            out.extend_from_slice(&ip.octets());
        }
    }
    for text in [
        finished.request_id.as_bytes(),
        finished.key.as_bytes(),
        finished.listener.as_bytes(),
        finished.method,
        finished.path,
        finished.group.as_bytes(),
        finished.model,
        finished.model_sent,
        finished.upstream.as_bytes(),
    ] {
        put_text(truncated(text, CLIENT_TEXT_BYTES_MAX), out);
    }
    for failure in finished.failures {
        put_text(truncated(failure.upstream.as_bytes(), CLIENT_TEXT_BYTES_MAX), out);
        out.push(failure.kind as u8);
        out.extend_from_slice(&failure.status.to_ne_bytes());
    }
}

/// Appends the line of a record, as `encode` made it.
pub fn write_record(record: &[u8], out: &mut Vec<u8>) {
    let mut rest = Rest(record);
    // A record that is not whole would be a mistake of ours; it makes no line.
    let _ = rest.line(out);
}

fn numbers(finished: &Finished<'_>) -> [u64; NUMBERS] {
    let Outcome {
        status,
        upstream_status,
        fault,
        attempts,
        reused,
        streamed,
        route,
        request_bytes,
        response_bytes,
        own_bytes,
        head_us,
        held_us,
        queue_us,
        picked_us,
        connected_us,
        sent_us,
        first_byte_us,
        first_token_us,
        duration_us,
        prompt_tokens,
        completion_tokens,
        cached_tokens,
    } = *finished.outcome;
    let or_none = |value: Option<u64>| value.unwrap_or(NONE);
    [
        u64::from(status) << 32 | u64::from(upstream_status) << 16 | route as u64,
        fault.map_or(NONE, |fault| fault.kind as u64),
        u64::from(attempts),
        u64::from(reused) << 1 | u64::from(streamed),
        request_bytes,
        response_bytes,
        own_bytes,
        head_us,
        or_none(held_us),
        queue_us,
        or_none(picked_us),
        or_none(connected_us),
        or_none(sent_us),
        or_none(first_byte_us),
        or_none(first_token_us),
        duration_us,
        or_none(prompt_tokens),
        or_none(completion_tokens),
        or_none(cached_tokens),
        finished.ts_ms,
        finished.failures.len() as u64,
    ]
}

fn outcome(words: &[u64; NUMBERS]) -> Outcome {
    let some = |at: usize| (words[at] != NONE).then_some(words[at]);
    let kind = u8::try_from(words[1]).ok().and_then(Kind::numbered);
    Outcome {
        status: (words[0] >> 32) as u16,
        upstream_status: (words[0] >> 16) as u16,
        route: RouteKind::numbered(words[0] as u16),
        fault: kind.map(Into::into),
        attempts: words[2] as u32,
        reused: words[3] & 2 != 0,
        streamed: words[3] & 1 != 0,
        request_bytes: words[4],
        response_bytes: words[5],
        own_bytes: words[6],
        head_us: words[7],
        held_us: some(8),
        queue_us: words[9],
        picked_us: some(10),
        connected_us: some(11),
        sent_us: some(12),
        first_byte_us: some(13),
        first_token_us: some(14),
        duration_us: words[15],
        prompt_tokens: some(16),
        completion_tokens: some(17),
        cached_tokens: some(18),
    }
}

fn put_text(text: &[u8], out: &mut Vec<u8>) {
    // Cut to less than 2^16 bytes above.
    out.extend_from_slice(&(text.len() as u16).to_ne_bytes());
    out.extend_from_slice(text);
}

/// What of a record has not been read.
struct Rest<'r>(&'r [u8]);

impl<'r> Rest<'r> {
    fn line(&mut self, out: &mut Vec<u8>) -> Option<()> {
        let mut words = [0; NUMBERS];
        for word in &mut words {
            *word = u64::from_ne_bytes(self.array()?);
        }
        let client = match self.array::<1>()? {
            [4] => Some(IpAddr::from(self.array::<4>()?)),
            [16] => Some(IpAddr::from(self.array::<16>()?)),
            _ => None,
        };
        let mut texts = [&b""[..]; 9];
        for text in &mut texts {
            *text = self.text()?;
        }
        let [request_id, key, listener, method, path, group, model, model_sent, upstream] = texts;
        let mut failures = Vec::new();
        for _ in 0..words[20] {
            let upstream = name(self.text()?).into();
            let kind = Kind::numbered(self.array::<1>()?[0])?;
            let status = u16::from_ne_bytes(self.array()?);
            failures.push(FailedAttempt { upstream, kind, status });
        }
        let finished = Finished {
            ts_ms: words[19],
            request_id: name(request_id),
            client,
            key: name(key),
            listener: name(listener),
            method,
            path,
            group: name(group),
            model,
            model_sent,
            upstream: name(upstream),
            failures: &failures,
            outcome: &outcome(&words),
        };
        write_line(&finished, out);
        Some(())
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*first)
    }

    fn text(&mut self) -> Option<&'r [u8]> {
        let bytes = u16::from_ne_bytes(self.array()?);
        let (text, rest) = self.0.split_at_checked(usize::from(bytes))?;
        self.0 = rest;
        Some(text)
    }
}

/// A text that was one when it was put in; it may have been cut since.
fn name(text: &[u8]) -> &str {
    std::str::from_utf8(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn word() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..100, 0..NONE]
    }

    proptest! {
        #[test]
        fn a_line_through_a_record_is_the_line_itself(
            words in proptest::array::uniform16(word()),
            route in 0u16..5,
            kind in proptest::option::of(0u8..52),
            texts in proptest::array::uniform5("\\PC{0,40}"),
            path in "/[a-z\"\\\\/]{0,40}",
            model in proptest::collection::vec(any::<u8>(), 0..300),
            client in proptest::option::of(any::<IpAddr>()),
            failed in 0usize..3,
            flags in any::<(bool, bool)>(),
        ) {
            let some = |at: usize| (words[at] % 3 > 0).then_some(words[at]);
            let outcome = Outcome {
                status: words[0] as u16,
                upstream_status: words[1] as u16,
                fault: kind.and_then(Kind::numbered).map(Into::into),
                attempts: words[2] as u32,
                reused: flags.0,
                streamed: flags.1,
                route: RouteKind::numbered(route),
                request_bytes: words[3],
                response_bytes: words[4] / 2,
                own_bytes: words[5] / 2,
                head_us: words[6],
                held_us: some(7),
                queue_us: words[8],
                picked_us: some(9),
                connected_us: some(10),
                sent_us: some(11),
                first_byte_us: some(12),
                first_token_us: some(13),
                duration_us: words[14],
                prompt_tokens: some(15),
                completion_tokens: some(0),
                cached_tokens: some(1),
            };
            let failure =
                FailedAttempt { upstream: "gpu0".into(), kind: Kind::UpstreamReset, status: 500 };
            let failures = vec![failure; failed];
            let finished = Finished {
                ts_ms: words[2] % (1 << 40),
                request_id: &texts[0],
                client,
                key: &texts[1],
                listener: &texts[2],
                method: b"POST",
                path: path.as_bytes(),
                group: &texts[3],
                model: &model,
                model_sent: b"m",
                upstream: &texts[4],
                failures: &failures,
                outcome: &outcome,
            };
            let (mut record, mut through, mut direct) = (Vec::new(), Vec::new(), Vec::new());
            encode(&finished, &mut record);
            write_record(&record, &mut through);
            write_line(&finished, &mut direct);
            prop_assert_eq!(String::from_utf8_lossy(&through), String::from_utf8_lossy(&direct));
            for end in [0, record.len() / 2, record.len().saturating_sub(1)] {
                let mut out = Vec::new();
                write_record(&record[..end], &mut out);
                prop_assert!(out.is_empty(), "half a record makes no line");
            }
        }
    }
}
