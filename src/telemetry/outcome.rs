//! How one exchange went, in numbers: what a `Record` holds at its end.
//!
//! Plain values, all of them measured by whoever owned the fact: the relay counts
//! bytes, the tap sees tokens and the first of them, the attempt knows whether its
//! connection was reused. Counters and the access log are computed from these
//! and from nothing else, so they cannot disagree.

use std::time::Duration;

use crate::error::{Fault, Finish};

/// The status of a log line for a client that left before it was sent one: nginx's number, which
/// readers of logs know.
pub const STATUS_CLIENT_LEFT: u16 = 499;

/// What led an exchange to its group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouteKind {
    /// Nothing: it was answered or refused before.
    #[default]
    None,
    /// A host or path route.
    Path,
    /// The model.
    Model,
    /// One upstream of that model, by the upstream's name.
    Upstream,
    /// The default group.
    Default,
}

impl RouteKind {
    /// The kind of this number, as `as u16` gives it; `None` for any other.
    #[must_use]
    pub fn numbered(number: u16) -> RouteKind {
        let all = [
            RouteKind::None,
            RouteKind::Path,
            RouteKind::Model,
            RouteKind::Upstream,
            RouteKind::Default,
        ];
        all.get(usize::from(number)).copied().unwrap_or_default()
    }

    /// The word used in logs and labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            RouteKind::None => "none",
            RouteKind::Path => "path",
            RouteKind::Model => "model",
            RouteKind::Upstream => "upstream",
            RouteKind::Default => "default",
        }
    }
}

/// Who ended an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndedBy {
    /// Nobody: it came to its end.
    Nobody,
    /// The client left.
    Client,
    /// The upstream failed.
    Upstream,
    /// We refused it.
    Proxy,
    /// One of our deadlines.
    Timeout,
    /// The end of a drain.
    Drain,
}

impl EndedBy {
    /// The word used in logs; empty where nobody did.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EndedBy::Nobody => "",
            EndedBy::Client => "client",
            EndedBy::Upstream => "upstream",
            EndedBy::Proxy => "proxy",
            EndedBy::Timeout => "timeout",
            EndedBy::Drain => "drain",
        }
    }
}

impl From<Finish> for EndedBy {
    fn from(finish: Finish) -> EndedBy {
        match finish {
            Finish::Ok => EndedBy::Nobody,
            Finish::Refused
            | Finish::RateLimited
            | Finish::BadRequest
            | Finish::Unavailable
            | Finish::Internal => EndedBy::Proxy,
            Finish::ClientAbort => EndedBy::Client,
            Finish::UpstreamConnect | Finish::UpstreamReset | Finish::UpstreamBad => {
                EndedBy::Upstream
            }
            Finish::ClientTimeout | Finish::Timeout => EndedBy::Timeout,
            Finish::Drained => EndedBy::Drain,
        }
    }
}

/// What happened in one exchange.
///
/// Units: `_us` are microseconds since the last byte of the request head, unless said
/// otherwise; `_bytes` are body bytes, framing excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The status that the client was sent; 0 when no response head left.
    pub status: u16,
    /// The status with which the upstream of the last attempt answered; 0 = it did not.
    pub upstream_status: u16,
    /// Why it did not end well; `None` = the client has the whole response.
    pub fault: Option<Fault>,
    /// Attempts made upstream, the one on a fresh connection included; 0 = answered here.
    pub attempts: u32,
    /// Whether the last attempt used a pooled connection.
    pub reused: bool,
    /// Whether the response was a stream of events.
    pub streamed: bool,
    /// What led to the group.
    pub route: RouteKind,
    /// Request body bytes read from the client, until the answer was complete.
    pub request_bytes: u64,
    /// Response body bytes of an upstream, sent to the client.
    pub response_bytes: u64,
    /// Body bytes of our own, sent to the client: an error, a list, the event that tells of a
    /// truncated stream.
    pub own_bytes: u64,
    /// From the first bytes of a head that came in pieces to its end.
    pub head_us: u64,
    /// Until enough of the body was here; `None` = it came with the head.
    pub held_us: Option<u64>,
    /// Time spent waiting for a place at a busy group.
    pub queue_us: u64,
    /// Until the upstream of the last attempt was picked.
    pub picked_us: Option<u64>,
    /// Until the last attempt had its new connection; `None` = it was pooled, or there was none.
    pub connected_us: Option<u64>,
    /// Until the last attempt's upstream had been sent the whole request.
    pub sent_us: Option<u64>,
    /// Until the response head of the last attempt's upstream was complete; `None` = it never was.
    pub first_byte_us: Option<u64>,
    /// Until the first token of a stream passed; `None` = no stream or no token.
    pub first_token_us: Option<u64>,
    /// Until the last byte left or the exchange broke.
    pub duration_us: u64,
    /// Tokens of the prompt, as the upstream reported them.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the completion, as the upstream reported them.
    pub completion_tokens: Option<u64>,
    /// Those of the prompt that came from a cache.
    pub cached_tokens: Option<u64>,
}

impl Outcome {
    /// Tells how the exchange ended.
    pub fn finish(&self) -> Finish {
        match self.fault {
            None => Finish::Ok,
            Some(fault) => fault.row().finish,
        }
    }

    /// Tells who ended the exchange.
    pub fn ended_by(&self) -> EndedBy {
        self.finish().into()
    }

    /// All body bytes sent to the client.
    pub fn sent_bytes(&self) -> u64 {
        self.response_bytes.saturating_add(self.own_bytes)
    }

    /// The status for a log line: the one that was sent, or 499 for a client that left before.
    pub fn status_told(&self) -> u16 {
        match (self.status, self.ended_by()) {
            (0, EndedBy::Client) => STATUS_CLIENT_LEFT,
            (status, _) => status,
        }
    }

    /// Our own time before the upstream was picked, from the last byte of the request that had to be
    /// here; waits in a queue left out.
    ///
    /// Shape: `None` where nobody was picked, and after a retry, whose first attempt stands between.
    pub fn overhead(&self) -> Option<Duration> {
        let waited = self.held_us.unwrap_or(0).saturating_add(self.queue_us);
        let picked = self.picked_us.filter(|_| self.attempts == 1)?;
        Some(Duration::from_micros(picked.saturating_sub(waited)))
    }

    /// Returns the attempts beyond the first.
    pub fn retries(&self) -> u32 {
        self.attempts.saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn an_exchange_without_fault_ends_well() {
        assert_eq!(Outcome { status: 500, ..Outcome::default() }.finish(), Finish::Ok);
    }

    #[test]
    fn a_fault_names_the_end() {
        let outcome = Outcome { fault: Some(Kind::ClientGone.into()), ..Outcome::default() };
        assert_eq!(outcome.finish(), Finish::ClientAbort);
    }

    #[test]
    fn a_client_that_left_before_its_answer_is_told_as_499() {
        let gone = Outcome { fault: Some(Kind::ClientGone.into()), ..Outcome::default() };
        assert_eq!((gone.status, gone.status_told()), (0, STATUS_CLIENT_LEFT));
        assert_eq!(Outcome { status: 200, ..gone }.status_told(), 200);
        let drained = Outcome { fault: Some(Kind::Draining.into()), ..Outcome::default() };
        assert_eq!((drained.status_told(), drained.ended_by()), (0, EndedBy::Drain));
    }

    #[test]
    fn our_own_time_is_that_before_the_pick_less_what_was_waited_for() {
        let outcome = Outcome {
            attempts: 1,
            held_us: Some(500),
            queue_us: 200,
            picked_us: Some(730),
            ..Outcome::default()
        };
        assert_eq!(outcome.overhead(), Some(Duration::from_micros(30)));
        assert_eq!(Outcome { attempts: 2, ..outcome }.overhead(), None);
        assert_eq!(Outcome { picked_us: None, ..outcome }.overhead(), None);
    }

    #[test]
    fn counts_attempts_beyond_the_first() {
        assert_eq!(Outcome::default().retries(), 0);
        assert_eq!(Outcome { attempts: 3, ..Outcome::default() }.retries(), 2);
    }
}
