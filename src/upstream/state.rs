//! What all cores share about one upstream, and the lease of one attempt on it.
//!
//! The counters are atomics on a cache line of their own: a per-core view would be blind to
//! what the other cores send. A lease counts itself in when it is made, before the connect, and
//! out when it is dropped, whatever way the exchange ends.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::policy::breaker::{Breaker, BreakerPolicy, Change};
use crate::policy::ewma::Measures;

/// Shared counters of one upstream.
#[derive(Debug)]
#[repr(align(128))]
pub struct UpstreamState {
    in_flight: AtomicU32,
    attempts: AtomicU64,
    /// Probes say that it is down; what was never probed counts as healthy.
    down: AtomicBool,
    /// A connection to it failed since the control thread last looked.
    suspect: AtomicBool,
    /// It asked to be left alone until then, milliseconds since the process's origin.
    resting_until_ms: AtomicU64,
    /// Changes of the breaker to Closed, Open and HalfOpen.
    breaker_changes: [AtomicU64; 3],
    /// Whether calls are let through.
    pub breaker: Breaker,
    /// How fast it answers, and how often it does.
    pub measures: Measures,
}

impl UpstreamState {
    /// The state of an upstream that nobody has called.
    #[must_use]
    pub fn new(breaker: BreakerPolicy) -> Self {
        Self {
            in_flight: AtomicU32::new(0),
            attempts: AtomicU64::new(0),
            down: AtomicBool::new(false),
            suspect: AtomicBool::new(false),
            resting_until_ms: AtomicU64::new(0),
            breaker_changes: Default::default(),
            breaker: Breaker::new(breaker),
            measures: Measures::new(),
        }
    }

    /// Whether it asked, by `Retry-After`, to be left alone now.
    #[must_use]
    pub fn resting(&self, now_ms: u64) -> bool {
        now_ms < self.resting_until_ms.load(Ordering::Relaxed)
    }

    /// Notes that it asked to be left alone; a later end counts.
    pub fn rest(&self, until_ms: u64) {
        self.resting_until_ms.fetch_max(until_ms, Ordering::Relaxed);
    }

    /// Counts a change of the breaker.
    pub fn count_change(&self, change: Option<Change>) {
        if let Some(change) = change {
            self.breaker_changes[change.to as usize].fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How often the breaker has gone to Closed, Open and HalfOpen.
    #[must_use]
    pub fn breaker_changes(&self) -> [u64; 3] {
        self.breaker_changes.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Requests dispatched to this upstream and not yet ended, over all cores.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Attempts made since the start.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Whether active probes let requests go there; unknown counts as healthy.
    #[must_use]
    pub fn healthy(&self) -> bool {
        !self.down.load(Ordering::Relaxed)
    }

    /// Says what the probes found.
    pub fn set_healthy(&self, healthy: bool) {
        self.down.store(!healthy, Ordering::Relaxed);
    }

    /// Asks the control thread to look: a connection to it failed.
    pub fn suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    /// Whether it was suspected since the last call.
    #[must_use]
    pub fn take_suspicion(&self) -> bool {
        // Read first: the line is written by the cores, and nearly always there is nothing.
        self.suspect.load(Ordering::Relaxed) && self.suspect.swap(false, Ordering::Relaxed)
    }

    /// Counts one attempt in; it is counted out when the lease is dropped.
    #[must_use]
    pub fn lease(&self) -> Lease<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Lease { state: self }
    }
}

/// One attempt in flight.
///
/// Borrows: a reference count of its own would be one more line that all cores write to.
#[derive(Debug)]
pub struct Lease<'a> {
    state: &'a UpstreamState,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let before = self.state.in_flight.fetch_sub(1, Ordering::Relaxed);
        debug_assert!(before > 0, "a lease is counted out once");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn a_lease_counts_itself_out_even_on_panic() {
        let state = Arc::new(UpstreamState::new(BreakerPolicy {
            threshold: 0.5,
            window: Duration::from_secs(10),
            calls_min: 10,
            consecutive: 5,
            cooldown: Duration::from_secs(30),
            trials: 1,
            successes: 1,
        }));
        let held = state.lease();
        let inside = state.clone();
        let result = std::panic::catch_unwind(move || {
            let _lease = inside.lease();
            assert_eq!(inside.in_flight(), 2);
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(result.is_err());
        assert_eq!(state.in_flight(), 1);
        drop(held);
        assert_eq!((state.in_flight(), state.attempts()), (0, 2));
    }
}
