//! The other direction of an attempt: the answer, from the upstream to the client.
//!
//! A stream is never buffered: what one receive brought leaves in the same turn, and nothing is
//! read ahead of a client that does not read, so a stalled reader holds one buffer. The framing
//! is checked on the way, because an upstream that dies must never look like a clean end. Long
//! bodies of known length that nobody needs to see are moved by the kernel.

mod relay;
mod state;

pub use state::{Download, Downloaded};

use std::time::Duration;

use state::blame;

use crate::base::buf::SMALL_BYTES;
use crate::error::Kind;
use crate::http::fields::{keep_alive, retry_after};
use crate::http::head::{ResponseHead, Version};
use crate::http::name::Name;
use crate::http1::encode;
use crate::http1::framing::{Framing, response_framing};
use crate::http1::parse::{Parse, parse_response};
use crate::net::rt::Part;
use crate::proxy::settle::Settle;
use crate::upstream::conn::UpConn;
use crate::upstream::pool::TIMEOUT_MARGIN;

impl Download<'_> {
    /// Relays one answer, and reports its head to the guard and to the record.
    ///
    /// Shape: `conn` has a receive armed.
    pub async fn run(
        &self,
        conn: &mut UpConn,
        response: &mut ResponseHead,
        settle: &Settle,
    ) -> Downloaded {
        let buffer = match self.read_head(conn, response).await {
            Ok(buffer) => buffer,
            Err(end) => return end,
        };
        if self.via_proxy && response.status == 407 {
            // About our credentials, not the client's (RFC 9110 §15.5.8).
            return self.no_answer(Kind::OutboundRefused, true, buffer);
        }
        let now = settle.now();
        settle.record.upstream_answered(response.status, now);
        let back_off_s = response.value(Name::RetryAfter, &buffer);
        let back_off_s =
            back_off_s.and_then(|value| retry_after(value, settle.begun_at().wall.as_secs()));
        self.guard.answered(response.status, back_off_s, now);
        if response.status == 101 {
            if !self.upgrade_asked {
                // No upgrade was asked for: what follows a 101 is not HTTP and cannot be relayed.
                return self.no_answer(Kind::UpstreamBadHttp, true, buffer);
            }
            return self.upgrade(response, buffer, settle).await;
        }
        if self.retry_on.is_some_and(|on| on.has_status(response.status))
            && !self.progress.gone.get()
            && self.take_retry()
        {
            self.core.buffers.give_back(buffer);
            return Downloaded::Elsewhere { status: response.status };
        }
        let framing = match response_framing(self.method, response, &buffer) {
            Ok(framing) => framing,
            Err(_) => return self.no_answer(Kind::UpstreamBadHttp, true, buffer),
        };
        self.progress.answer_begun.set(true);
        self.note_lifetime(conn, response, &buffer);
        let persists = response.connection(&buffer).persists(response.version)
            && framing != Framing::UntilClose;
        self.relay(conn, response, framing, persists, buffer, settle).await
    }

    /// Asks the budget before an answer is thrown away.
    fn take_retry(&self) -> bool {
        let now = self.core.ticker.now();
        self.core.with_budget(self.budget, |budget| budget.take(now))
    }

    /// Reads until a final head is complete; interim ones go to the client.
    async fn read_head(
        &self,
        conn: &mut UpConn,
        response: &mut ResponseHead,
    ) -> Result<Vec<u8>, Downloaded> {
        let mut searched = 0;
        let mut interim = false;
        loop {
            let (result, mut buffer) = conn.recv().await;
            if !matches!(result, Ok(n) if n > 0) {
                let answered = interim || !buffer.is_empty();
                let late = self.late(Kind::UpstreamFirstByteTimeout);
                let kind = late.unwrap_or_else(|| blame(conn, &result, Kind::UpstreamReset));
                return Err(self.no_answer(kind, answered, buffer));
            }
            loop {
                match parse_response(&buffer, &mut searched, self.head, response) {
                    Err(_) => return Err(self.no_answer(Kind::UpstreamBadHttp, true, buffer)),
                    Ok(Parse::More) => break,
                    Ok(Parse::Done) if response.status >= 200 || response.status == 101 => {
                        return Ok(buffer);
                    }
                    Ok(Parse::Done) => {
                        interim = true;
                        self.relay_interim(response, &buffer).await?;
                        buffer.drain(..response.len as usize);
                        searched = 0;
                    }
                }
                if buffer.is_empty() {
                    break;
                }
            }
            if buffer.capacity() - buffer.len() < 1024 {
                buffer.reserve(buffer.capacity());
            }
            conn.arm(buffer);
        }
    }

    /// Relays an interim (1xx) head: not a 100, which we send ourselves, and none to HTTP/1.0,
    /// which has no such heads.
    async fn relay_interim(&self, response: &ResponseHead, bytes: &[u8]) -> Result<(), Downloaded> {
        if response.status == 100 || self.caller.version == Version::Http10 {
            return Ok(());
        }
        let mut out = self.core.buffers.take(SMALL_BYTES);
        encode::status_line(&mut out, response.status, response.reason.of(bytes));
        encode::copy_response_fields(&mut out, response, bytes, |_| false);
        encode::end_of_head(&mut out);
        let (result, out) = self.send(Part::whole(out)).await;
        self.core.buffers.give_back(out);
        result.map_err(Downloaded::Truncated)
    }

    #[cold]
    fn no_answer(&self, kind: Kind, answered: bool, buffer: Vec<u8>) -> Downloaded {
        self.core.buffers.give_back(buffer);
        Downloaded::NoAnswer { kind, answered }
    }

    fn note_lifetime(&self, conn: &mut UpConn, response: &ResponseHead, bytes: &[u8]) {
        let Some(value) = response.value(Name::KeepAlive, bytes) else { return };
        let promised = keep_alive(value);
        if let Some(seconds) = promised.timeout {
            let life = Duration::from_secs(u64::from(seconds)).saturating_sub(TIMEOUT_MARGIN);
            // The clock of the ticker is behind the real one, which errs on the safe side.
            conn.lifetime.until = Some(self.core.ticker.now() + life);
        }
        if let Some(max) = promised.max {
            conn.lifetime.requests_max.get_or_insert(max);
            if max <= 1 {
                // Some servers count down instead of naming the total.
                conn.lifetime.requests_max = Some(0);
            }
        }
    }

    async fn upgrade(
        &self,
        response: &ResponseHead,
        mut buffer: Vec<u8>,
        settle: &Settle,
    ) -> Downloaded {
        self.progress.answer_begun.set(true);
        let mut out = self.core.buffers.take(SMALL_BYTES);
        encode::status_line(&mut out, 101, response.reason.of(&buffer));
        encode::copy_response_fields(&mut out, response, &buffer, |_| false);
        encode::field(&mut out, b"connection", b"Upgrade");
        if let Some(protocol) = response.value(Name::Upgrade, &buffer) {
            encode::field(&mut out, b"upgrade", protocol);
        }
        encode::end_of_head(&mut out);
        let (result, out) = self.send(Part::whole(out)).await;
        self.core.buffers.give_back(out);
        match result {
            Ok(()) => {
                settle.record.answer_began(101, false);
                buffer.drain(..response.len as usize);
                Downloaded::Upgraded(buffer)
            }
            Err(kind) => Downloaded::Truncated(kind),
        }
    }
}
