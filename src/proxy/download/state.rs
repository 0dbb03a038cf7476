//! What a download works on, how it can end, and what its two stages both do: sending, and asking
//! which deadline ended a connection.

use std::io;
use std::time::Duration;

use crate::error::Kind;
use crate::http::method::Method;
use crate::http1::parse::HeadLimits;
use crate::net::rt::Part;
use crate::net::stream::Stream;
use crate::net::sys::{self, Shut};
use crate::net::ticker::Timer;
use crate::policy::retry::RetryOn;
use crate::proxy::call_guard::CallGuard;
use crate::proxy::core::Core;
use crate::proxy::listeners::CoreListener;
use crate::proxy::plan::UpstreamTimeouts;
use crate::proxy::progress::Progress;
use crate::proxy::refusal::Caller;
use crate::upstream::conn::UpConn;

/// What a download needs.
pub struct Download<'a> {
    /// This core.
    pub core: &'a Core,
    /// Bounds of a response head.
    pub head: &'a HeadLimits,
    /// The listener that the client came in by.
    pub listener: &'a CoreListener,
    /// The client.
    pub client: &'a Stream,
    /// Who is asking.
    pub caller: &'a Caller,
    /// The request's method.
    pub method: Method,
    /// The client asked to leave HTTP.
    pub upgrade_asked: bool,
    /// Shared with the other direction.
    pub progress: &'a Progress,
    /// Deadline of the upstream.
    pub up_timer: &'a Timer,
    /// Deadline of the whole exchange, if it has one.
    pub total_timer: Option<&'a Timer>,
    /// Deadline of a client that does not read.
    pub write_timer: &'a Timer,
    /// Limit for a client that does not read.
    pub write_idle: Duration,
    /// Upstream-side timeouts.
    pub timeouts: UpstreamTimeouts,
    /// Statuses that are not relayed but tried elsewhere.
    pub retry_on: Option<RetryOn>,
    /// The group whose retry budget pays for that.
    pub budget: usize,
    /// Holds the leave of the upstream's breaker, and reports to it.
    pub guard: &'a CallGuard<'a>,
    /// An outbound proxy reads the request and may answer by itself.
    pub via_proxy: bool,
    /// The key pays by the token.
    pub is_metered: bool,
}

/// How a download ended.
#[derive(Debug)]
pub enum Downloaded {
    /// The client has the whole answer.
    Whole {
        /// Whether the upstream's connection can serve another request.
        reusable: bool,
        /// Whether the client's connection can go on.
        keep: bool,
        /// Whether the answer was a stream.
        streamed: bool,
    },
    /// No answer; the client has been sent nothing.
    NoAnswer {
        /// Why.
        kind: Kind,
        /// Whether any byte came.
        answered: bool,
    },
    /// A status that is tried elsewhere; the client has been sent nothing.
    Elsewhere {
        /// The status.
        status: u16,
    },
    /// The answer began and could not be ended well.
    Truncated(Kind),
    /// The upstream has left HTTP; these bytes came behind its head.
    Upgraded(Vec<u8>),
}

impl Download<'_> {
    /// The fault of the deadline that ended the upstream's connection, if one did; `waiting` is the
    /// fault of the upstream's own deadline.
    pub(super) fn late(&self, waiting: Kind) -> Option<Kind> {
        if self.core.ticker.ended() {
            return Some(Kind::Draining);
        }
        if self.total_timer.is_some_and(Timer::expired) {
            let client_owes = self.progress.client_owes.get();
            return Some(if client_owes { Kind::BodyTimeout } else { Kind::TotalTimeout });
        }
        self.up_timer.expired().then_some(waiting)
    }

    /// How long the upstream may be silent within its body, and the fault when it is silent for
    /// longer.
    pub(super) fn pause(&self) -> (Duration, Kind) {
        (self.timeouts.stream_idle, Kind::UpstreamIdle)
    }

    /// The upstream is awaited for more, unless it waits for the client itself.
    pub(super) fn await_answer(&self, conn: &UpConn, within: Duration) {
        self.progress.answer_within.set(Some(within));
        if !self.progress.client_owes.get() {
            self.up_timer.arm(conn.socket().handle(), Shut::Both, within);
        }
    }

    /// Sends a part of the body: it is the client that may be slow now, not the upstream.
    pub(super) async fn send_body(&self, part: Part) -> (Result<(), Kind>, Vec<u8>) {
        self.up_timer.disarm();
        self.send(part).await
    }

    /// The fault of a client to which a send failed: it stalled or has left.
    pub(super) fn client_lost(&self) -> Kind {
        if self.write_timer.expired() { Kind::ClientStalled } else { Kind::ClientGone }
    }

    /// Sends one part; the client may take as long as it likes between two reads, up to a limit.
    pub(super) async fn send(&self, part: Part) -> (Result<(), Kind>, Vec<u8>) {
        let mut part = part;
        while part.left() > 0 {
            self.write_timer.arm(self.client.handle(), Shut::Both, self.write_idle);
            let (result, back) = self.client.send(part).await;
            part = back;
            match result {
                Ok(n) if n > 0 => part.advance(n),
                _ => {
                    return (Err(self.client_lost()), part.into_buffer());
                }
            }
        }
        self.write_timer.disarm();
        (Ok(()), part.into_buffer())
    }
}

/// The fault of a failed receive: `theirs`, or a shortage of descriptors or memory of our own.
#[cold]
pub(super) fn blame(conn: &UpConn, received: &io::Result<usize>, theirs: Kind) -> Kind {
    match received {
        Err(error) if sys::is_shortage(error) => Kind::Shortage,
        _ if conn.ran_short() => Kind::Shortage,
        _ => theirs,
    }
}
