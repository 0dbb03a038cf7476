//! Answers of our own: errors in the caller's dialect, health, the models list.
//!
//! Every answer has a `Content-Length` and the request id. Whether the connection can go on is
//! decided here: a request body that has not been read to its end forbids it.

use std::fmt::Write as _;

use super::core::Core;
use super::downstream::Downstream;
use super::refusal::{Caller, Next, Refusal};
use crate::base::buf::SMALL_BYTES;
use crate::error::{Connection, RETRY_AFTER_S_MAX};
use crate::http::head::Version;
use crate::http1::encode;
use crate::llm::reply::{Dialect, ErrorReply};
use crate::net::pooled_future::PooledFuture;
use crate::net::rt::Part;
use crate::net::sys::Shut;
use crate::policy::cors;

/// Sends an error; the body of the request was read to its end if `body_read`.
#[cold]
pub fn refuse<'a>(
    core: &'a Core,
    down: &'a mut Downstream,
    caller: &'a Caller,
    refusal: &'a Refusal,
    body_read: bool,
) -> PooledFuture<'a, Next> {
    // Pooled: few exchanges are refused, and else every exchange's future would have room for this.
    PooledFuture::with(move || async move {
        let row = refusal.kind.row();
        if row.status.is_none() {
            return Next::Close;
        }
        let keep = row.connection == Connection::Keep && body_read;
        let keep = keep && caller.persists && !core.is_leaving(&down.listener);
        let out = refusal_bytes(core, caller, refusal, keep);
        transmit(core, down, out, keep).await
    })
}

/// Writes an error as head and body.
#[must_use]
pub fn refusal_bytes(core: &Core, caller: &Caller, refusal: &Refusal, keep: bool) -> Vec<u8> {
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
    answer_bytes(core, caller, status, fields.as_bytes(), &body, keep)
}

/// Sends a whole answer as JSON.
pub async fn send(
    core: &Core,
    down: &mut Downstream,
    caller: &Caller,
    status: u16,
    body: &[u8],
    keep: bool,
) -> Next {
    let keep = keep && caller.persists && !core.is_leaving(&down.listener);
    let out = answer_bytes(core, caller, status, b"", body, keep);
    transmit(core, down, out, keep).await
}

/// Answers a preflight: what is asked for may be done (Fetch, "CORS-preflight fetch").
#[cold]
pub fn preflight<'a>(
    core: &'a Core,
    down: &'a mut Downstream,
    caller: &'a Caller,
    fields_asked: Option<Vec<u8>>,
    keep: bool,
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
        transmit(core, down, out, keep).await
    })
}

fn answer_bytes(
    core: &Core,
    caller: &Caller,
    status: u16,
    fields: &[u8],
    body: &[u8],
    keep: bool,
) -> Vec<u8> {
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
    if !caller.head_only {
        out.extend_from_slice(body);
    }
    out
}

async fn transmit(core: &Core, down: &mut Downstream, out: Vec<u8>, keep: bool) -> Next {
    down.timer.arm(down.socket.handle(), Shut::Both, down.write_idle);
    let (result, out) = down.socket.send_all(Part::whole(out)).await;
    down.timer.disarm();
    core.buffers.give_back(out);
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
