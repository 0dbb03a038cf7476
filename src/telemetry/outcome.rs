//! The record of one exchange, made by `settle` exactly once.
//!
//! Plain values, all of them measured by whoever owned the fact: the relay counts
//! bytes, the tap sees tokens and the first of them, the attempt knows whether its
//! connection was reused. Counters and the access log are computed from this record
//! and from nothing else, so they cannot disagree.

use crate::error::{Fault, Finish};

/// What happened in one exchange.
///
/// Units: `_us` are microseconds since the last byte of the request head, unless said
/// otherwise; `_bytes` are body bytes, framing excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The status that the client saw; 0 when no response head left.
    pub status: u16,
    /// Why it did not end well; `None` = the client has the whole response.
    pub fault: Option<Fault>,
    /// Attempts made upstream, the one on a fresh connection included; 0 = answered here.
    pub attempts: u32,
    /// Whether the last attempt used a pooled connection.
    pub reused: bool,
    /// Whether the response was a stream of events.
    pub streamed: bool,
    /// Request body bytes read from the client.
    pub request_bytes: u64,
    /// Response body bytes sent to the client.
    pub response_bytes: u64,
    /// Time spent waiting for a place at a busy group.
    pub queue_us: u64,
    /// Until the response head of the upstream was complete; `None` = it never was.
    pub first_byte_us: Option<u64>,
    /// Until the first token of a stream passed; `None` = no stream or no token.
    pub first_token_us: Option<u64>,
    /// Until the last byte left or the exchange broke.
    pub duration_us: u64,
    /// Tokens of the prompt, as the upstream reported them.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the completion, as the upstream reported them.
    pub completion_tokens: Option<u64>,
}

impl Outcome {
    /// Tells how the exchange ended.
    pub fn finish(&self) -> Finish {
        match self.fault {
            None => Finish::Ok,
            Some(fault) => fault.row().finish,
        }
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
    fn counts_attempts_beyond_the_first() {
        assert_eq!(Outcome::default().retries(), 0);
        assert_eq!(Outcome { attempts: 3, ..Outcome::default() }.retries(), 2);
    }
}
