//! Answers of our own: errors in the caller's dialect, health, the models list.
//!
//! Every answer has a `Content-Length` and the request id. Whether the connection can go on is
//! decided here: a request body that has not been read to its end forbids it.

use std::fmt::Write as _;

use super::core::Core;
use super::downstream::Downstream;
use super::refusal::{Caller, Next, Refusal};
use super::settle::Settle;
use crate::base::buf::SMALL_BYTES;
use crate::error::{Connection, Kind, RETRY_AFTER_S_MAX};
use crate::http::head::Version;
use crate::http1::encode;
use crate::llm::reply::{Dialect, ErrorReply};
use crate::net::pooled_future::PooledFuture;
use crate::net::rt::Part;
use crate::net::sys::Shut;
use crate::policy::cors;

/// An answer of ours, ready to be sent.
pub struct Answer {
    /// Head and body.
    pub bytes: Vec<u8>,
    /// Its status.
    pub status: u16,
    /// Bytes of the body.
    pub body_bytes: u64,
}

/// Sends an error and records it as the end of the exchange; the body of the request was read to its end if `body_read`.
#[cold]
pub fn refuse<'a>(
    core: &'a Core,
    down: &'a mut Downstream,
    caller: &'a Caller,
    refusal: &'a Refusal,
    body_read: bool,
    settle: &'a Settle,
) -> PooledFuture<'a, Next> {
    // Pooled: few exchanges are refused, and else every exchange's future would have room for this.
    PooledFuture::with(move || async move {
        let row = refusal.kind.row();
        settle.record.failed(refusal.kind);
        if row.status.is_none() {
            return Next::Close;
        }
        let keep = row.connection == Connection::Keep && body_read;
        let keep = keep && caller.persists && !core.is_leaving(&down.listener);
        let answer = refusal_answer(core, caller, refusal, keep);
        transmit(core, down, answer, keep, settle).await
    })
}

/// Writes an error as head and body.
#[must_use]
pub fn refusal_answer(core: &Core, caller: &Caller, refusal: &Refusal, keep: bool) -> Answer {
    let row = refusal.kind.row();
    let status = row.status.unwrap_or(502);
    let mut body = Vec::with_capacity(256);
    let wait_s = refusal.retry_after.clamp(1, row.retry_after_s_max);
    let code = match caller.dialect {
        Dialect::Responses => refusal.kind.code_in_responses(),
        _ => row.code,
    };
    ErrorReply {
        status,
        code,
        kind: row.error_type,
        message: refusal.message.as_deref().unwrap_or(row.message),
        hint: refusal.hint.as_deref(),
        request_id: caller.id.as_str(),
        retry_after_s: row.retry_after.then_some(wait_s),
    }
    .write_body(caller.dialect, &mut body);
    let mut fields = String::new();
    if status == 401 {
        fields.push_str("www-authenticate: Bearer\r\n");
    }
    if status == 405 {
        fields.push_str("allow: GET, HEAD, POST, PUT, DELETE, OPTIONS, PATCH\r\n");
    }
    if status == 426 {
        // RFC 9110 §15.5.22: what is spoken instead.
        fields.push_str("upgrade: HTTP/1.1\r\nconnection: upgrade\r\n");
    }
    if row.retry_after {
        // Writing to a String cannot fail. The second is what the SDKs of OpenAI and Anthropic
        // look at first.
        let _ = write!(fields, "retry-after: {wait_s}\r\n");
        let _ = write!(fields, "retry-after-ms: {}\r\n", u64::from(wait_s) * 1000);
    }
    if row.lasts() || (row.retry_after && wait_s > RETRY_AFTER_S_MAX) {
        // A field of these SDKs, too: without it they try again as often as they are set to.
        fields.push_str("x-should-retry: false\r\n");
    }
    write(core, caller, status, fields.as_bytes(), &body, keep)
}

/// Answers 200 with JSON.
pub async fn send(
    core: &Core,
    down: &mut Downstream,
    caller: &Caller,
    body: &[u8],
    keep: bool,
    settle: &Settle,
) -> Next {
    let keep = keep && caller.persists && !core.is_leaving(&down.listener);
    let answer = write(core, caller, 200, b"", body, keep);
    transmit(core, down, answer, keep, settle).await
}

/// Answers a preflight: what is asked for may be done (Fetch, "CORS-preflight fetch").
#[cold]
pub fn preflight<'a>(
    core: &'a Core,
    down: &'a mut Downstream,
    caller: &'a Caller,
    fields_asked: Option<Vec<u8>>,
    keep: bool,
    settle: &'a Settle,
) -> PooledFuture<'a, Next> {
    // Pooled, as a refusal is.
    PooledFuture::with(move || async move {
        let keep = keep && caller.persists && !core.is_leaving(&down.listener);
        let mut out = core.buffers.take(SMALL_BYTES);
        // No length: RFC 9110 §8.6 has none in a 204.
        encode::status_line(&mut out, 204, encode::reason_phrase(204).as_bytes());
        encode::field(&mut out, b"x-request-id", caller.id.as_bytes());
        caller.cors.write(&mut out);
        cors::write_preflight(fields_asked.as_deref(), &mut out);
        connection_field(&mut out, caller.version, keep);
        encode::end_of_head(&mut out);
        let answer = Answer { bytes: out, status: 204, body_bytes: 0 };
        transmit(core, down, answer, keep, settle).await
    })
}

fn write(
    core: &Core,
    caller: &Caller,
    status: u16,
    fields: &[u8],
    body: &[u8],
    keep: bool,
) -> Answer {
    let mut out = core.buffers.take(body.len() + fields.len() + 512);
    encode::status_line(&mut out, status, encode::reason_phrase(status).as_bytes());
    encode::field(&mut out, b"content-type", b"application/json");
    encode::field_number(&mut out, b"content-length", body.len() as u64);
    encode::field(&mut out, b"x-request-id", caller.id.as_bytes());
    out.extend_from_slice(fields);
    caller.cors.write(&mut out);
    caller.standing.write(&mut out);
    connection_field(&mut out, caller.version, keep);
    encode::end_of_head(&mut out);
    let body = if caller.head_only { b"" } else { body };
    out.extend_from_slice(body);
    Answer { bytes: out, status, body_bytes: body.len() as u64 }
}

async fn transmit(
    core: &Core,
    down: &mut Downstream,
    answer: Answer,
    keep: bool,
    settle: &Settle,
) -> Next {
    let Answer { bytes, status, body_bytes } = answer;
    down.timer.arm(down.socket.handle(), Shut::Both, down.write_idle);
    let (result, out) = down.socket.send_all(Part::whole(bytes)).await;
    let stalled = down.timer.expired();
    down.timer.disarm();
    core.buffers.give_back(out);
    match &result {
        Ok(()) => settle.record.answered_here(status, body_bytes),
        Err(_) if stalled => settle.record.failed(Kind::ClientStalled),
        Err(_) => settle.record.failed(Kind::ClientGone),
    }
    match (result, keep) {
        (Err(_), _) => Next::Close,
        (Ok(()), true) => Next::KeepAlive,
        (Ok(()), false) => Next::Linger,
    }
}

/// Writes `connection` where `keep` differs from what the client's HTTP version implies.
pub fn connection_field(out: &mut Vec<u8>, version: Version, keep: bool) {
    match (version, keep) {
        (Version::Http11, false) => encode::field(out, b"connection", b"close"),
        (Version::Http10, true) => encode::field(out, b"connection", b"keep-alive"),
        (Version::Http11, true) | (Version::Http10, false) => {}
    }
}
