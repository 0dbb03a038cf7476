//! One try at one upstream: a connection, the request one way, the answer the other.
//!
//! Both directions run at once, because an upstream may answer before it has read the request,
//! and an early 413 must reach the client. Meanwhile the client is watched: when it leaves, both
//! sockets are shut down, the operations in flight complete, and the upstream sees the end.
//! Nothing in flight is ever dropped but a readiness poll.

mod acquire;
mod both_ways;
mod state;

use std::future::poll_fn;
use std::pin::pin;
use std::time::Duration;

use both_ways::BothWays;
pub use state::{Attempt, Attempted, ExchangeState, Failed};

use crate::base::buf::SMALL_BYTES;
use crate::error::{Kind, RetryClass};
use crate::net::dial::Address;
use crate::net::pooled_future::PooledFuture;
use crate::net::rt::Part;
use crate::net::stream::Stream;
use crate::net::sys::Shut;
use crate::net::ticker::{TICK, Timer};
use crate::proxy::download::{Download, Downloaded};
use crate::proxy::downstream::Downstream;
use crate::proxy::forward::{self, Outgoing};
use crate::proxy::hold::RequestBody;
use crate::proxy::plan::{ProxyMode, Reuse, ViaPlan};
use crate::proxy::progress::Progress;
use crate::proxy::refusal::Refusal;
use crate::proxy::rename::Renamer;
use crate::proxy::reply;
use crate::proxy::settle::Settle;
use crate::proxy::upload::{ClientPace, Encoded, Sent, Upload, Uploaded};
use crate::telemetry::trace::Trace;
use crate::upstream::conn::UpConn;
use crate::upstream::via::TunnelError;

/// A held body up to this size is copied behind the head, so that both leave in one send.
const JOINED_BYTES_MAX: usize = 16 * 1024;
/// How long a client that is still sending may go on after its answer.
const DISCARD: Duration = Duration::from_secs(2);

impl Attempt<'_> {
    /// Makes the attempt, and reports to the guard and to the record how it went.
    pub async fn run(
        &self,
        down: &mut Downstream,
        exchange: &mut ExchangeState<'_, '_>,
    ) -> Attempted {
        let core = self.core;
        let up_timer = core.ticker.timer();
        let large = self.is_large(exchange.body);
        // What cannot be sent again never meets a connection that has died in the pool.
        let pooled = if large { None } else { self.take_pooled() };
        let dials = pooled.is_none();
        let conn = match pooled {
            Some(conn) => Ok(conn),
            // Pooled: few attempts dial, and else every exchange's future would have room for this
            // one.
            None => PooledFuture::with(|| self.acquire_new(down, &up_timer)).await,
        };
        let settle = exchange.settle;
        let mut conn = match conn {
            Ok(conn) => conn,
            Err(attempted) => {
                if let Attempted::Failed(failed) = &attempted {
                    self.guard.ended(failed.kind, settle.now());
                }
                return attempted;
            }
        };
        if dials {
            settle.record.connected(settle.now());
        }
        if conn.reused() {
            settle.record.connection_reused();
        }
        if !conn.is_armed() {
            conn.arm(core.buffers.take(SMALL_BYTES));
        }
        let progress = Progress::default();
        progress.body_received.set(exchange.body.reader.is_done());
        let total_timer = self.arm_total(&conn, settle);
        let was_taken = std::mem::replace(&mut settle.passed.borrow_mut().is_taken, true);
        let (uploaded, downloaded) = self
            .both_ways(&mut conn, down, exchange, &progress, &up_timer, total_timer.as_ref())
            .await;
        if self.is_untaken(&conn, uploaded, &downloaded, settle.record.upstream_status()) {
            settle.passed.borrow_mut().is_taken = was_taken;
        }
        match uploaded {
            Uploaded::Broken(kind) if progress.answer_begun.get() => Attempted::Over(kind),
            Uploaded::Broken(kind) if kind.row().status.is_none() => Attempted::Over(kind),
            Uploaded::Broken(kind) => Attempted::Refused(kind.into()),
            uploaded => self.conclude(conn, uploaded, downloaded, large, settle),
        }
    }

    /// Begins the span of the attempt.
    #[cold]
    pub fn tell_begin(&self, trace: &mut Trace, settle: &Settle) {
        let address = self.upstream.endpoints.first().and_then(|first| match &first.address {
            Address::Tcp(at) => Some(*at),
            Address::Unix(_) => None,
        });
        let chance = self.core.random_u64();
        trace.attempt_began(chance, &self.upstream.name, address, settle.now());
    }

    /// Tells what the attempt has come to, and reports a failure to the guard; the connection goes
    /// back to the pool or ends.
    fn conclude(
        &self,
        conn: UpConn,
        uploaded: Uploaded,
        downloaded: Downloaded,
        large: bool,
        settle: &Settle,
    ) -> Attempted {
        match downloaded {
            Downloaded::Whole { reusable, keep, streamed } => {
                // A large request always dials: if the pool kept each such connection it would only
                // grow.
                let spare = large && self.core.pool.idle(conn.pool) > 0;
                if reusable && !spare && uploaded == Uploaded::Sent {
                    self.give_back(conn, streamed);
                }
                Attempted::Whole { keep: keep && uploaded == Uploaded::Sent }
            }
            // The client has been told already (`last_word`).
            Downloaded::NoAnswer { kind, .. } if uploaded == Uploaded::Outrun => {
                Attempted::Over(kind)
            }
            Downloaded::NoAnswer { kind, answered } => {
                if !self.is_stale(&conn, kind, answered) {
                    self.guard.ended(kind, settle.now());
                }
                // Of an answer only a 407 is known to be the proxy's own.
                let refused = (kind == Kind::OutboundRefused).then_some(TunnelError::Refused(407));
                let message = self.proxy_message(refused);
                let reused = conn.reused() && !self.fresh;
                Attempted::Failed(Failed { kind, answered, reused, status: None, message })
            }
            Downloaded::Elsewhere { status } => Attempted::Failed(Failed {
                kind: Kind::NobodyAvailable,
                answered: true,
                reused: conn.reused(),
                status: Some(status),
                message: None,
            }),
            Downloaded::Truncated(kind) => {
                self.guard.ended(kind, settle.now());
                Attempted::Over(kind)
            }
            Downloaded::Upgraded(bytes) => {
                Attempted::Upgraded { upstream: conn.socket().clone(), bytes }
            }
        }
    }

    /// Whether the connection had died in the pool. Excused once: a server that refuses every
    /// stream is no stale connection.
    fn is_stale(&self, conn: &UpConn, kind: Kind, answered: bool) -> bool {
        conn.reused() && !self.fresh && !answered && kind.row().retry == RetryClass::Reset
    }

    /// Whether no server worked on the request: the connection was stale, the server said that it
    /// is overloaded, or the outbound proxy refused.
    fn is_untaken(
        &self,
        conn: &UpConn,
        uploaded: Uploaded,
        downloaded: &Downloaded,
        status: u16,
    ) -> bool {
        let is_overloaded = |status: u16| matches!(status, 429 | 503 | 529);
        match downloaded {
            Downloaded::Whole { .. } | Downloaded::Truncated(_) => is_overloaded(status),
            Downloaded::Elsewhere { status } => is_overloaded(*status),
            Downloaded::NoAnswer { kind: Kind::OutboundRefused, .. } => true,
            Downloaded::NoAnswer { kind, answered } => {
                matches!(uploaded, Uploaded::Sent | Uploaded::Refused)
                    && self.is_stale(conn, *kind, *answered)
            }
            Downloaded::Upgraded(_) => false,
        }
    }

    /// Whether a body that has yet to come is larger than may be kept.
    fn is_large(&self, body: &RequestBody) -> bool {
        let held_bytes = (body.end - body.begin) as u64;
        let left = body.reader.length_left().unwrap_or(0);
        !body.reader.is_done() && held_bytes.saturating_add(left) > self.plan.body_held_bytes_max
    }

    /// Arms the deadline of the whole exchange, if it has one.
    fn arm_total(&self, conn: &UpConn, settle: &Settle) -> Option<Timer> {
        if self.timeouts.total.is_zero() {
            return None;
        }
        let timer = self.core.ticker.timer();
        // Zero would mean no limit.
        let left = self.timeouts.total.saturating_sub(settle.elapsed()).max(TICK);
        timer.arm(conn.socket().handle(), Shut::Both, left);
        Some(timer)
    }

    #[inline]
    fn upload<'s>(
        &'s self,
        client: &'s Stream,
        upstream: &'s Stream,
        progress: &'s Progress,
        client_timer: &'s Timer,
        up_timer: &'s Timer,
        settle: &'s Settle,
    ) -> Upload<'s> {
        Upload {
            core: self.core,
            settle,
            client,
            upstream,
            progress,
            client_timer,
            up_timer,
            body_idle: self.request.listener.timeouts.body_idle,
            pace: ClientPace::new(self.plan.body_rate_min),
            first_byte: self.timeouts.first_byte,
            body_bytes_max: self.plan.body_bytes_max,
            body_held_bytes_max: self.plan.body_held_bytes_max,
            routed_by: self.request.routed_by,
        }
    }

    #[inline]
    fn download<'s>(
        &'s self,
        client: &'s Stream,
        progress: &'s Progress,
        up_timer: &'s Timer,
        total_timer: Option<&'s Timer>,
        write_timer: &'s Timer,
    ) -> Download<'s> {
        Download {
            core: self.core,
            head: &self.plan.head,
            listener: self.request.accepted_by,
            client,
            caller: self.request.caller,
            method: self.request.head.method,
            upgrade_asked: self.request.permit.upgrade,
            progress,
            up_timer,
            total_timer,
            write_timer,
            write_idle: self.request.listener.timeouts.write_idle,
            timeouts: self.timeouts,
            retry_on: self.retry_on,
            budget: self.budget,
            guard: self.guard,
            is_metered: self.request.permit.is_metered,
            via_proxy: matches!(
                &self.upstream.via,
                Some(ViaPlan { mode: ProxyMode::Forward { .. }, .. })
            ),
        }
    }

    /// Runs request and answer at once, and watches the client meanwhile.
    async fn both_ways(
        &self,
        conn: &mut UpConn,
        down: &mut Downstream,
        exchange: &mut ExchangeState<'_, '_>,
        progress: &Progress,
        up_timer: &Timer,
        total_timer: Option<&Timer>,
    ) -> (Uploaded, Downloaded) {
        let core = self.core;
        let (upstream, client) = (conn.socket().clone(), down.socket.clone());
        let write_timer = core.ticker.timer();
        let encoded = self.encode(exchange);
        let upload =
            self.upload(&client, &upstream, progress, &down.timer, up_timer, exchange.settle);
        let download = self.download(&client, progress, up_timer, total_timer, &write_timer);
        let held = std::mem::take(&mut exchange.held);
        let mut upload =
            pin!(upload.run(encoded, held, exchange.body, exchange.scanner, exchange.hold));
        let mut download = pin!(download.run(conn, exchange.response, exchange.settle));
        let mut ways = BothWays::new(&client, &upstream, progress);
        let (watch, watch_timer) = (&mut down.watch, &down.timer);
        poll_fn(|cx| ways.poll(cx, upload.as_mut(), download.as_mut(), watch, watch_timer)).await;
        let (uploaded, downloaded) = ways.end();
        let sent = match uploaded {
            Some(sent) => sent,
            None => {
                self.last_word(&client, progress, &downloaded, exchange.settle).await;
                down.timer.arm(client.handle(), Shut::Both, DISCARD);
                Sent { end: Uploaded::Outrun, ..upload.await }
            }
        };
        exchange.held = sent.held;
        exchange.gone = progress.gone.get();
        down.recv.extend_from_slice(&sent.leftover);
        (sent.end, downloaded)
    }

    /// Ends our side towards a client that is still sending: the answer is complete, or there is
    /// none and the client is told. What it still sends is thrown away by the upload.
    async fn last_word(
        &self,
        client: &Stream,
        progress: &Progress,
        downloaded: &Downloaded,
        settle: &Settle,
    ) {
        progress.answer_done.set(true);
        if let Downloaded::NoAnswer { kind, .. } = downloaded {
            let refusal = Refusal::from(*kind);
            let answer = reply::refusal_answer(self.core, self.request.caller, &refusal, false);
            let (result, out) = client.send_all(Part::whole(answer.bytes)).await;
            if result.is_ok() {
                settle.record.answered_here(answer.status, answer.body_bytes);
            }
            self.core.buffers.give_back(out);
        }
        client.shutdown(Shut::Write);
    }

    /// Writes the head, and a small body behind it.
    ///
    /// Every attempt begins from the client's bytes: what this server reads otherwise is put in
    /// here, so that the next one may read something else again.
    fn encode(&self, exchange: &ExchangeState<'_, '_>) -> Encoded<'_> {
        let ExchangeState { held, body, scanner, .. } = exchange;
        let chunked = self.request.permit.chunked;
        let mut renamer = self.request.rename.and_then(|name| Renamer::new(scanner, name, chunked));
        let held_bytes = body.end - body.begin;
        let joined = if held_bytes <= JOINED_BYTES_MAX { held_bytes } else { 0 };
        let head_room = self.request.head.len as usize + 1024;
        let mut out = self.core.buffers.take(head_room + joined);
        let outgoing = match &renamer {
            None => Outgoing::AsCame,
            Some(renamer) => Outgoing::Length(renamer.length(body, &mut out)),
        };
        let traceparent = exchange.settle.record.traceparent();
        let (core, upstream) = (self.core, self.upstream);
        forward::head(&mut out, core, upstream, self.request, outgoing, traceparent, held);
        let from = body.begin + joined;
        let behind = &held[body.begin..from];
        match &mut renamer {
            None => out.extend_from_slice(behind),
            Some(renamer) if from == body.end => {
                renamer.push(behind, &mut out);
                renamer.end(&mut out);
            }
            Some(_) => {}
        }
        Encoded { out, from, renamer: renamer.filter(|_| from < body.end) }
    }

    /// Puts a connection back into the pool, unless it is near the end of its life.
    fn give_back(&self, mut conn: UpConn, streamed: bool) {
        if conn.is_bridged() {
            return;
        }
        conn.served += 1;
        let spent = conn.lifetime.requests_max.is_some_and(|max| conn.served + 1 >= max);
        let unwanted = match self.upstream.reuse {
            Reuse::Auto => false,
            Reuse::NoAfterStream => streamed,
            Reuse::Never => true,
        };
        if spent || unwanted || self.core.draining.get() {
            return;
        }
        // At most a tick old, and free to read.
        let now = self.core.ticker.now();
        if conn.lifetime.until.is_none_or(|until| now < until) {
            self.core.pool.put(conn, self.core.buffers.take(SMALL_BYTES), now);
        }
    }
}
