//! What an attempt works on, and how it can end.

use crate::error::{Blame, Kind, RetryClass};
use crate::http::head::ResponseHead;
use crate::net::stream::Stream;
use crate::policy::retry::{self, Failure, RetryOn};
use crate::proxy::call_guard::CallGuard;
use crate::proxy::core::Core;
use crate::proxy::forward::Request;
use crate::proxy::hold::{RequestBody, Scanner};
use crate::proxy::plan::{Plan, UpstreamPlan, UpstreamTimeouts};
use crate::proxy::refusal::Refusal;
use crate::proxy::settle::Settle;
use crate::telemetry::meters::ErrorLabel;
use crate::upstream::held::Held;

/// How an attempt ended.
pub enum Attempted {
    /// The client has the whole answer.
    Whole {
        /// Whether the client's connection goes on.
        keep: bool,
    },
    /// The client has been sent nothing, and the body is held again.
    Failed(Failed),
    /// The request broke before the answer began: the client can still be told.
    Refused(Refusal),
    /// Nothing more can be said to the client.
    Over(Kind),
    /// Both sides have left HTTP.
    Upgraded {
        /// The upstream's connection.
        upstream: Stream,
        /// Bytes that came behind its head.
        bytes: Vec<u8>,
    },
}

/// A failed attempt: the client has been sent nothing.
pub struct Failed {
    /// The fault.
    pub kind: Kind,
    /// Whether any byte of an answer came.
    pub answered: bool,
    /// Whether the connection came out of the pool.
    pub reused: bool,
    /// The status of a complete head, if that status is to be tried elsewhere.
    pub status: Option<u16>,
    /// A more exact message than the kind's.
    pub message: Option<String>,
}

impl Failed {
    /// There was no connection.
    #[must_use]
    #[cold]
    pub fn unconnected(kind: Kind, message: Option<String>) -> Self {
        Self { kind, answered: false, reused: false, status: None, message }
    }

    /// What the retry policy asks of the attempt.
    #[must_use]
    pub fn at(&self, retries: u32, resendable: bool) -> retry::Attempt {
        let (reused, answered) = (self.reused, self.answered);
        retry::Attempt { retries, reused, answered, resendable, response_started: false }
    }

    /// What metrics count it under; `None` when the connection had died in the pool, and when the
    /// upstream is not to blame.
    #[must_use]
    pub fn error(&self) -> Option<ErrorLabel> {
        let row = self.kind.row();
        let stale = self.reused && !self.answered && row.retry == RetryClass::Reset;
        match self.status {
            Some(status) => Some(ErrorLabel::Status(status)),
            None => (row.blame == Blame::Upstream && !stale).then_some(ErrorLabel::Fault(row.kind)),
        }
    }

    /// Why it failed, in the retry policy's words.
    #[must_use]
    pub fn why(&self) -> Failure {
        self.status.map_or(Failure::Fault(self.kind.row().retry), Failure::Status)
    }
}

impl From<Failed> for Refusal {
    #[cold]
    fn from(failed: Failed) -> Self {
        Self { message: failed.message, ..failed.kind.into() }
    }
}

/// What one attempt works on.
pub struct Attempt<'a> {
    /// This core.
    pub core: &'a Core,
    /// The config in force.
    pub plan: &'a Plan,
    /// The request.
    pub request: &'a Request<'a>,
    /// The upstream.
    pub upstream: &'a UpstreamPlan,
    /// Its group's timeouts.
    pub timeouts: UpstreamTimeouts,
    /// Statuses to be tried elsewhere, while the request can be sent again.
    pub retry_on: Option<RetryOn>,
    /// The group whose retry budget pays.
    pub budget: usize,
    /// Holds the leave of the upstream's breaker, and reports to it.
    pub guard: &'a CallGuard<'a>,
    /// Whether to dial instead of taking a connection out of the pool.
    pub fresh: bool,
}

/// What the attempts of one exchange use in turn.
pub struct ExchangeState<'a, 's> {
    /// The receive buffer with head and body.
    pub held: Vec<u8>,
    /// Where the body stands in it.
    pub body: &'a mut RequestBody,
    /// The body's part of the process's budget of held bytes.
    pub hold: &'a mut Held<'s>,
    /// Something of the body has been sent on and is not held: it cannot be sent again.
    pub gone: bool,
    /// Goes on looking for the model in the rest of the body.
    pub scanner: &'a mut Scanner<'s>,
    /// The answer's head.
    pub response: &'a mut ResponseHead,
    /// The record of the exchange.
    pub settle: &'a Settle,
}
