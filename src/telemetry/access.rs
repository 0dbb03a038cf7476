//! The access log: one JSON line an exchange.
//!
//! Written straight into a buffer that the caller reuses, without a tree and without an
//! allocation. Every field is always there, in one order, `null` where nothing was
//! measured: who greps or loads columns need not guess.
//!
//! Keys appear by name only, paths without their query (Gemini's clients put the key
//! there), bodies never. What a client chose (path, model) is cut at 256 bytes, and
//! everything is escaped (RFC 8259 §7): a line break in a model name does not make a second line.

use std::io::Write;

use super::finished::Finished;
use super::record::{CLIENT_TEXT_BYTES_MAX, FailedAttempt, truncated};
use crate::base::clock::WallTime;

/// Appends one line, line break included.
pub fn write_line(entry: &Finished<'_>, out: &mut Vec<u8>) {
    let outcome = entry.outcome;
    let path_end = memchr::memchr2(b'?', b'#', entry.path).unwrap_or(entry.path.len());
    out.extend_from_slice(b"{\"ts\":\"");
    write_time(WallTime::from_millis(entry.ts_ms), out);
    out.push(b'"');
    text(out, "request_id", entry.request_id.as_bytes());
    match entry.client {
        Some(ip) => put(out, format_args!(",\"client\":\"{ip}\"")),
        None => text(out, "client", b""),
    }
    text(out, "key", entry.key.as_bytes());
    text(out, "listener", entry.listener.as_bytes());
    text(out, "method", short(entry.method));
    text(out, "path", short(&entry.path[..path_end]));
    text(out, "route", entry.group.as_bytes());
    text(out, "route_by", outcome.route.name().as_bytes());
    text(out, "model", short(entry.model));
    text(out, "model_sent", short(entry.model_sent));
    text(out, "upstream", entry.upstream.as_bytes());
    number(out, "attempts", Some(outcome.attempts.into()));
    failed(out, entry.failures);
    number(out, "status", Some(outcome.status_told().into()));
    number(out, "upstream_status", known(outcome.upstream_status));
    flag(out, "stream", outcome.streamed);
    flag(out, "reused", outcome.reused);
    number(out, "request_bytes", Some(outcome.request_bytes));
    number(out, "response_bytes", Some(outcome.sent_bytes()));
    millis(out, "head_ms", Some(outcome.head_us));
    millis(out, "held_ms", outcome.held_us);
    millis(out, "queue_ms", Some(outcome.queue_us));
    millis(out, "picked_ms", outcome.picked_us);
    millis(out, "connected_ms", outcome.connected_us);
    millis(out, "sent_ms", outcome.sent_us);
    millis(out, "first_byte_ms", outcome.first_byte_us);
    millis(out, "ttft_ms", outcome.first_token_us);
    millis(out, "duration_ms", Some(outcome.duration_us));
    number(out, "prompt_tokens", outcome.prompt_tokens);
    number(out, "completion_tokens", outcome.completion_tokens);
    number(out, "cached_tokens", outcome.cached_tokens);
    text(out, "finish", outcome.finish().name().as_bytes());
    text(out, "ended_by", outcome.ended_by().name().as_bytes());
    text(out, "fault", outcome.fault.map_or("", |fault| fault.row().log).as_bytes());
    out.extend_from_slice(b"}\n");
}

/// Appends the attempts that failed, `[]` for none.
fn failed(out: &mut Vec<u8>, failures: &[FailedAttempt]) {
    field(out, "failed");
    out.push(b'[');
    for (at, failure) in failures.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"upstream\":\"");
        escape(&failure.upstream, out);
        out.extend_from_slice(b"\"");
        text(out, "fault", failure.kind.row().log.as_bytes());
        number(out, "status", known(failure.status));
        out.push(b'}');
    }
    out.push(b']');
}

/// A status that was given.
fn known(status: u16) -> Option<u64> {
    (status > 0).then_some(status.into())
}

fn flag(out: &mut Vec<u8>, name: &str, value: bool) {
    field(out, name);
    out.extend_from_slice(if value { b"true" } else { b"false" });
}

/// Appends a field of text; empty text is `null`.
fn text(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    field(out, name);
    if value.is_empty() {
        out.extend_from_slice(b"null");
        return;
    }
    out.push(b'"');
    for chunk in value.utf8_chunks() {
        escape(chunk.valid(), out);
        if !chunk.invalid().is_empty() {
            out.extend_from_slice("\u{fffd}".as_bytes());
        }
    }
    out.push(b'"');
}

/// Copies what is plain in one go and escapes the rest.
fn escape(text: &str, out: &mut Vec<u8>) {
    // DEL and C0 as well: a terminal that shows the log must not obey them.
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20 | 0x7f);
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(special) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            byte @ (b'"' | b'\\') => out.extend([b'\\', byte]),
            byte => put(out, format_args!("\\u{byte:04x}")),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
}

/// Appends the name of a field, which is ours and needs no escape.
fn field(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

fn number(out: &mut Vec<u8>, name: &str, value: Option<u64>) {
    field(out, name);
    match value {
        Some(value) => put(out, format_args!("{value}")),
        None => out.extend_from_slice(b"null"),
    }
}

/// Appends microseconds as milliseconds with three decimals.
fn millis(out: &mut Vec<u8>, name: &str, us: Option<u64>) {
    match us {
        Some(us) => {
            field(out, name);
            put(out, format_args!("{}.{:03}", us / 1000, us % 1000));
        }
        None => number(out, name, None),
    }
}

fn short(value: &[u8]) -> &[u8] {
    truncated(value, CLIENT_TEXT_BYTES_MAX)
}

/// Appends a moment as RFC 3339 in UTC, with milliseconds.
pub fn write_time(at: WallTime, out: &mut Vec<u8>) {
    let (days, ms) = (at.as_millis() / 86_400_000, at.as_millis() % 86_400_000);
    let (year, month, day) = civil(days);
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, ms) = (ms / 1000 % 60, ms % 1000);
    put(
        out,
        format_args!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"),
    );
}

/// A moment as `write_time` writes it.
#[must_use]
pub fn shown_time(at: WallTime) -> String {
    let mut text = Vec::new();
    write_time(at, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

/// Turns days since 1970-01-01 into a date of the Gregorian calendar.
///
/// The year is counted from 1 March, so that the leap day is its last, within cycles of 400
/// years, which all have 146,097 days. Source: H. Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms".
fn civil(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01, the first day of a cycle.
    let shifted = days + 719_468;
    let (cycle, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    // Months from March on are 31, 30, 31, 30, 31 days long, again and again.
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let january_or_february = month >= 10;
    let month = if january_or_february { month - 9 } else { month + 3 };
    (400 * cycle + year + u64::from(january_or_february), month, of_month)
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Writing to a Vec cannot fail.
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::telemetry::outcome::Outcome;
    use proptest::prelude::*;
    use std::net::IpAddr;

    fn entry(outcome: &Outcome) -> Finished<'_> {
        Finished {
            ts_ms: 0,
            request_id: "r1",
            client: Some(IpAddr::from([127, 0, 0, 1])),
            key: "my-app",
            listener: "main",
            method: b"POST",
            path: b"/v1/chat/completions",
            group: "chat",
            model: b"llama3",
            model_sent: b"llama3",
            upstream: "gpu0",
            failures: &[],
            outcome,
        }
    }

    fn line(entry: &Finished<'_>) -> String {
        let mut out = Vec::new();
        write_line(entry, &mut out);
        String::from_utf8(out).unwrap()
    }

    fn parsed(entry: &Finished<'_>) -> serde_json::Value {
        serde_json::from_str(&line(entry)).unwrap()
    }

    #[test]
    fn writes_one_json_line() {
        let outcome = Outcome {
            status: 200,
            attempts: 1,
            request_bytes: 10,
            response_bytes: 20,
            first_byte_us: Some(1_500),
            duration_us: 2_000_007,
            prompt_tokens: Some(3),
            ..Outcome::default()
        };
        assert_eq!(
            line(&entry(&outcome)),
            concat!(
                r#"{"ts":"1970-01-01T00:00:00.000Z","request_id":"r1","client":"127.0.0.1","#,
                r#""key":"my-app","listener":"main","method":"POST","#,
                r#""path":"/v1/chat/completions","route":"chat","route_by":"none","#,
                r#""model":"llama3","model_sent":"llama3","upstream":"gpu0","attempts":1,"#,
                r#""failed":[],"status":200,"upstream_status":null,"stream":false,"#,
                r#""reused":false,"request_bytes":10,"response_bytes":20,"head_ms":0.000,"#,
                r#""held_ms":null,"queue_ms":0.000,"picked_ms":null,"connected_ms":null,"#,
                r#""sent_ms":null,"first_byte_ms":1.500,"ttft_ms":null,"duration_ms":2000.007,"#,
                r#""prompt_tokens":3,"completion_tokens":null,"cached_tokens":null,"#,
                r#""finish":"ok","ended_by":null,"fault":null}"#,
                "\n"
            )
        );
    }

    #[test]
    fn names_the_fault() {
        let outcome = Outcome { fault: Some(Kind::UpstreamTruncated.into()), ..Outcome::default() };
        let line = parsed(&entry(&outcome));
        assert_eq!(line["finish"], "upstream_reset");
        assert_eq!(line["fault"], "cut mid-stream");
    }

    #[test]
    fn never_shows_a_query() {
        let outcome = Outcome::default();
        for path in [&b"/v1beta/models/g:generate?key=SECRET"[..], b"/v1#SECRET"] {
            assert!(!line(&Finished { path, ..entry(&outcome) }).contains("SECRET"));
        }
    }

    #[test]
    fn empty_fields_are_null() {
        let outcome = Outcome::default();
        let line = parsed(&Finished { client: None, key: "", model: b"", ..entry(&outcome) });
        assert!(line["client"].is_null() && line["key"].is_null() && line["model"].is_null());
    }

    #[test]
    fn cuts_what_a_client_chose_between_characters() {
        let outcome = Outcome::default();
        let long = "\u{20ac}".repeat(200);
        let line = parsed(&Finished { model: long.as_bytes(), ..entry(&outcome) });
        assert_eq!(line["model"].as_str().unwrap(), "\u{20ac}".repeat(85));
    }

    #[test]
    fn a_warm_buffer_is_not_grown() {
        let outcome = Outcome::default();
        let mut out = Vec::with_capacity(1024);
        let before = out.as_ptr();
        write_line(&entry(&outcome), &mut out);
        assert_eq!(out.as_ptr(), before);
    }

    #[test]
    fn writes_dates_of_the_calendar() {
        let check = |s: u64, expected: &str| {
            let mut out = Vec::new();
            write_time(WallTime::from_millis(s * 1000 + 7), &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), expected);
        };
        check(951_782_400, "2000-02-29T00:00:00.007Z");
        check(951_868_799, "2000-02-29T23:59:59.007Z");
        check(951_868_800, "2000-03-01T00:00:00.007Z");
        check(1_735_689_599, "2024-12-31T23:59:59.007Z");
        check(4_107_542_400, "2100-03-01T00:00:00.007Z");
    }

    #[test]
    fn counts_days_like_a_calendar_on_the_wall() {
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..200_000 {
            assert_eq!(civil(days), (year, month, day));
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > length {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    proptest! {
        // Whatever a client sends, a line is one line of JSON and says what was sent.
        #[test]
        fn is_always_one_line_of_json(
            path in proptest::collection::vec(any::<u8>(), 0..400),
            model in "\\PC{0,60}|[\"\\\\\n\r\u{7f}\u{1}]{0,9}",
        ) {
            let outcome = Outcome::default();
            let entry = Finished { path: &path, model: model.as_bytes(), ..entry(&outcome) };
            let text = line(&entry);
            prop_assert!(text.bytes().filter(|b| *b < 0x20 || *b == 0x7f).eq([b'\n']));
            let told = parsed(&entry);
            prop_assert_eq!(told["model"].as_str().unwrap_or_default(), model);
        }
    }
}
