//! After an attempt has failed: give up, dial again, or try another member.
//!
//! Two different things go by the name of retry, and they are kept apart here.
//! A pooled connection that dies before one response byte says nothing of the server: it
//! was closed while it lay idle, and the close crossed with our request (RFC 9112
//! §9.3.1). It is tried again at once on a fresh connection, with any method, outside
//! every budget, and only once, as the fresh connection is not a reused one. All else
//! is a failure of the member: it is retried on *another* one, within `attempts`, only
//! for the causes in `on`, after a pause with full jitter (uniform in 0..=initial·2ⁿ),
//! which spreads a herd better than any fixed pause.
//!
//! Both need two facts: that the client has not seen a byte of a response, and that the
//! request can be sent again. It does not know who else there is: that is `balance::pick`.

use std::time::Duration;

use crate::error::RetryClass;

/// A group's `retry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Attempts beyond the first, 0..=100; the one on a fresh connection does not count.
    pub attempts: u32,
    /// Longest pause before the first retry.
    pub initial: Duration,
    /// Longest pause before any retry.
    pub max: Duration,
    /// The causes that are retried.
    pub on: RetryOn,
}

/// Where an exchange stands when an attempt has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Retries on other members made so far in this exchange.
    pub retries: u32,
    /// Whether the connection came out of the pool.
    pub reused: bool,
    /// Whether any byte of a response came from this upstream, 1xx included.
    pub answered: bool,
    /// Whether the whole request so far can be sent again: the body is empty or held.
    pub resendable: bool,
    /// Whether a response, 1xx included, has begun to go to the client.
    pub response_started: bool,
}

/// What made the attempt fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A fault; its row in the table of faults says the class.
    Fault(RetryClass),
    /// A whole response head with this status.
    Status(u16),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetryDecision {
    /// Answer with the failure.
    GiveUp,
    /// The same member, at once, on a connection that is not out of the pool.
    FreshConnection,
    /// Another member where there is one; otherwise give up.
    AnotherMember {
        /// How long to wait first.
        after: Duration,
    },
}

impl RetryPolicy {
    /// Decides what follows from `why`.
    ///
    /// Shape: pure; the caller keeps the count of retries and asks the budget itself
    /// before it acts on `AnotherMember`. `chance` is one random draw.
    /// Source: rules §8; full jitter after M. Brooker, "Exponential
    /// Backoff and Jitter" (2015).
    pub fn next(&self, at: &Attempt, why: &Failure, chance: u64) -> RetryDecision {
        if at.response_started || !at.resendable {
            return RetryDecision::GiveUp;
        }
        let stale = *why == Failure::Fault(RetryClass::Reset) && at.reused && !at.answered;
        if stale {
            return RetryDecision::FreshConnection;
        }
        if at.retries >= self.attempts || !self.on.has(why) {
            return RetryDecision::GiveUp;
        }
        RetryDecision::AnotherMember { after: self.pause(at.retries, chance) }
    }

    /// Draws the pause before retry number `retries + 1`: uniform in 0..=min(max, initial·2ⁿ).
    fn pause(&self, retries: u32, chance: u64) -> Duration {
        let factor = 1u32.checked_shl(retries).unwrap_or(u32::MAX);
        let ceiling = self.initial.saturating_mul(factor).min(self.max);
        let ceiling_us = u64::try_from(ceiling.as_micros()).unwrap_or(u64::MAX);
        // The high half of the product is uniform in 0..=ceiling without a division.
        let us = (u128::from(chance) * (u128::from(ceiling_us) + 1)) >> 64;
        Duration::from_micros(us as u64)
    }
}

/// The causes that are retried: `connect`, `reset`, `timeout` and statuses 400..=599.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn {
    /// No connection was made.
    pub connect: bool,
    /// The connection died or spoke bad HTTP before a whole response head.
    pub reset: bool,
    /// No response head in time.
    pub timeout: bool,
    statuses: [u64; 4],
}

impl RetryOn {
    /// The empty set.
    pub const NOTHING: RetryOn =
        RetryOn { connect: false, reset: false, timeout: false, statuses: [0; 4] };

    /// Adds one word of a config: `connect`, `reset`, `timeout`, `5xx`, or a status
    /// 400..=599; `false` when it is none of them.
    #[must_use]
    pub fn insert(&mut self, word: &str) -> bool {
        match word {
            "connect" => self.connect = true,
            "reset" => self.reset = true,
            "timeout" => self.timeout = true,
            "5xx" => (500..600).for_each(|status| self.insert_status(status)),
            _ => match word.parse::<u16>() {
                Ok(status) if place(status).is_some() => self.insert_status(status),
                _ => return false,
            },
        }
        true
    }

    fn insert_status(&mut self, status: u16) {
        if let Some((word, bit)) = place(status) {
            self.statuses[word] |= bit;
        }
    }

    /// Tells whether a response with this status is retried; the relay asks before it
    /// lets a response through.
    pub fn has_status(&self, status: u16) -> bool {
        place(status).is_some_and(|(word, bit)| self.statuses[word] & bit != 0)
    }

    fn has(&self, why: &Failure) -> bool {
        match *why {
            Failure::Fault(RetryClass::Never) => false,
            Failure::Fault(RetryClass::Connect) => self.connect,
            Failure::Fault(RetryClass::Reset) => self.reset,
            Failure::Fault(RetryClass::Timeout) => self.timeout,
            Failure::Status(status) => self.has_status(status),
        }
    }
}

/// Returns word and bit of a status within the set; `None` outside 400..=599.
fn place(status: u16) -> Option<(usize, u64)> {
    let offset = status.checked_sub(400).filter(|offset| *offset < 200)?;
    Some((usize::from(offset / 64), 1 << (offset % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never retries; a dead pooled connection is still replaced.
    const NEVER: RetryPolicy = RetryPolicy {
        attempts: 0,
        initial: Duration::ZERO,
        max: Duration::ZERO,
        on: RetryOn::NOTHING,
    };
    use crate::error::Kind;
    use proptest::prelude::*;

    const RESET: Failure = Failure::Fault(RetryClass::Reset);
    const CONNECT: Failure = Failure::Fault(RetryClass::Connect);
    const TIMEOUT: Failure = Failure::Fault(RetryClass::Timeout);

    /// The example of the manual: two attempts on connect, reset, 502, 503, 429.
    fn policy() -> RetryPolicy {
        let mut on = RetryOn::NOTHING;
        for word in ["connect", "reset", "502", "503", "429"] {
            assert!(on.insert(word));
        }
        RetryPolicy {
            attempts: 2,
            initial: Duration::from_millis(100),
            max: Duration::from_secs(2),
            on,
        }
    }

    fn first() -> Attempt {
        Attempt {
            retries: 0,
            reused: false,
            answered: false,
            resendable: true,
            response_started: false,
        }
    }

    fn retries(at: Attempt, why: Failure) -> bool {
        matches!(policy().next(&at, &why, 0), RetryDecision::AnotherMember { .. })
    }

    #[test]
    fn replaces_a_dead_pooled_connection_outside_the_attempts() {
        let stale = Attempt { reused: true, retries: 99, ..first() };
        assert_eq!(policy().next(&stale, &RESET, 0), RetryDecision::FreshConnection);
        assert_eq!(NEVER.next(&stale, &RESET, 0), RetryDecision::FreshConnection);
    }

    #[test]
    fn replaces_it_once_because_the_fresh_one_is_not_reused() {
        assert_eq!(NEVER.next(&first(), &RESET, 0), RetryDecision::GiveUp);
    }

    #[test]
    fn a_pooled_connection_that_answered_was_not_stale() {
        let answered = Attempt { reused: true, answered: true, ..first() };
        assert_ne!(policy().next(&answered, &RESET, 0), RetryDecision::FreshConnection);
    }

    #[test]
    fn a_slow_answer_on_a_pooled_connection_is_not_stale() {
        let at = Attempt { reused: true, ..first() };
        assert_eq!(policy().next(&at, &TIMEOUT, 0), RetryDecision::GiveUp);
    }

    #[test]
    fn never_retries_once_the_client_has_bytes_or_the_body_is_gone() {
        for at in [
            Attempt { response_started: true, reused: true, ..first() },
            Attempt { resendable: false, reused: true, ..first() },
        ] {
            for why in [RESET, CONNECT, TIMEOUT, Failure::Status(503)] {
                assert_eq!(policy().next(&at, &why, 0), RetryDecision::GiveUp);
            }
        }
    }

    #[test]
    fn retries_only_the_named_causes() {
        assert!(retries(first(), CONNECT) && retries(first(), RESET));
        assert!(retries(first(), Failure::Status(429)) && retries(first(), Failure::Status(502)));
        assert!(!retries(first(), TIMEOUT));
        for status in [200, 400, 500, 501, 504, 599, 600, 999, 0] {
            assert!(!retries(first(), Failure::Status(status)), "{status}");
        }
    }

    #[test]
    fn stops_after_its_attempts() {
        assert!(retries(Attempt { retries: 1, ..first() }, RESET));
        assert!(!retries(Attempt { retries: 2, ..first() }, RESET));
    }

    #[test]
    fn takes_the_class_from_the_table_of_faults() {
        let class = Kind::UpstreamConnectTimeout.row().retry;
        assert!(retries(first(), Failure::Fault(class)));
        assert!(!retries(first(), Failure::Fault(Kind::UpstreamTruncated.row().retry)));
    }

    #[test]
    fn refuses_words_that_are_no_cause() {
        let mut on = RetryOn::NOTHING;
        for word in ["", "resets", "200", "399", "600", "4xx", "-1", "70000"] {
            assert!(!on.insert(word), "{word}");
        }
        assert_eq!(on, RetryOn::NOTHING);
        assert!(on.insert("5xx") && on.has_status(500) && on.has_status(599));
        assert!(!on.has_status(499));
    }

    #[test]
    fn pauses_grow_up_to_the_limit() {
        let ceiling = |retries| policy().pause(retries, u64::MAX).as_millis();
        assert_eq!([0, 1, 2, 4, 5, 31, 32, 99].map(ceiling)[..4], [100, 200, 400, 1600]);
        assert_eq!([5, 31, 32, 99].map(ceiling), [2000; 4]);
        assert_eq!(policy().pause(3, 0), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn pauses_stay_within_their_ceiling(retries in 0u32..200, chance in any::<u64>()) {
            let p = policy();
            let pause = p.pause(retries, chance);
            prop_assert!(pause <= p.max);
            prop_assert!(pause <= p.initial.saturating_mul(1 << retries.min(20)));
        }

        #[test]
        fn a_status_is_in_the_set_exactly_when_inserted(
            words in proptest::collection::hash_set(400u16..600, 0..40),
        ) {
            let mut on = RetryOn::NOTHING;
            for status in &words {
                prop_assert!(on.insert(&status.to_string()));
            }
            for status in 300..700 {
                prop_assert_eq!(on.has_status(status), words.contains(&status));
            }
        }
    }
}
