//! What all cores share about one upstream, and the lease of one attempt on it.
//!
//! The counters are atomics on cache lines of their own: a per-core view would be blind to what the
//! other cores send. A lease holds one of the upstream's slots: it is taken before the connect, and
//! its drop passes the slot on to a waiter or gives it back, whatever way the exchange ends. Each
//! change that makes an upstream usable again also wakes its waiters (`poke`).

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::slots::Slots;
use crate::base::clock::{AtomicMoment, Moment};
use crate::error::Kind;
use crate::policy::breaker::models::{ModelMarks, model_hash};
use crate::policy::breaker::{Breaker, BreakerPolicy, CallResult, Change, State, StateName};
use crate::policy::ewma::Measures;

/// Probes say that it is down; an upstream that was never probed counts as healthy.
const DOWN: u8 = 1;
/// No server was there when it was last asked for its models (no connection, or one that ended
/// without an answer), or discovery names it no more.
const AWAY: u8 = 2;
/// It takes very long to list its models.
const LATE: u8 = 4;
/// It has not listed its models yet.
const UNHEARD: u8 = 8;

/// The process before had found it down, and no probe of this one has found it well since.
const DOWN_BEFORE: u8 = 16;
/// It is probed.
const PROBED: u8 = 32;
/// A probe of this process has found it well.
const WELL: u8 = 64;

/// Numbers of faults in `failure` begin here, above all statuses.
const KIND: u32 = 1000;

/// What a failed call ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// This status.
    Status(u16),
    /// This fault.
    Fault(Kind),
}

/// States of a breaker.
pub const STATES: usize = 3;
/// Results of a call, as a breaker sees them.
pub const RESULTS: usize = 3;

/// What is counted of an upstream; all of it only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// Attempts made.
    pub attempts: u64,
    /// Changes of the breaker, by the state before and the state after.
    pub changes: [[u64; STATES]; STATES],
    /// Results that the breaker was told, by `CallResult`.
    pub calls: [u64; RESULTS],
}

/// Shared counters of one upstream.
#[derive(Debug)]
#[repr(align(128))]
pub struct UpstreamState {
    /// How many calls are and may be in flight, and the queues that wait for a slot.
    pub slots: Slots,
    attempts: AtomicU64,
    /// What the control thread has found out: `DOWN`, `AWAY`, `LATE`, `UNHEARD`, and the like.
    found: AtomicU8,
    /// A connection to it failed since the control thread last looked.
    suspect: AtomicBool,
    /// What the operator should know of failed connections; the last message only.
    complaint: Mutex<Option<String>>,
    /// The last failure that counted: a status, or a kind of fault behind `KIND`; 0 = none.
    failure: AtomicU32,
    /// Until when it asked to be left alone (`Retry-After`).
    back_off_until: AtomicMoment,
    /// Changes of the breaker, by the state before and the state after.
    breaker_changes: [[AtomicU64; STATES]; STATES],
    /// Results that the breaker was told, by `CallResult`.
    breaker_calls: [AtomicU64; RESULTS],
    /// Decides whether calls are let through.
    pub breaker: Breaker,
    /// Which of its models fail while others of it work.
    pub models: ModelMarks,
    /// Its response times and success rate, for the balancer.
    pub measures: Measures,
}

impl UpstreamState {
    /// The state of an upstream that nobody has called; a `concurrency` of 0 is no limit.
    #[must_use]
    pub fn new(breaker: BreakerPolicy, concurrency: u32) -> Self {
        Self {
            slots: Slots::new(concurrency),
            attempts: AtomicU64::new(0),
            found: AtomicU8::new(0),
            suspect: AtomicBool::new(false),
            complaint: Mutex::default(),
            failure: AtomicU32::new(0),
            back_off_until: AtomicMoment::default(),
            breaker_changes: Default::default(),
            breaker_calls: Default::default(),
            breaker: Breaker::new(breaker),
            models: ModelMarks::default(),
            measures: Measures::new(),
        }
    }

    /// Whether it asked, by `Retry-After`, to be left alone at this time.
    #[must_use]
    pub fn is_backing_off(&self, now: Moment) -> bool {
        now < self.back_off_until.load()
    }

    /// Notes that it asked to be left alone until then; of several ends the latest counts.
    pub fn back_off(&self, until: Moment) {
        self.back_off_until.advance(until);
    }

    /// Notes a failure that counts, for the operator.
    #[cold]
    pub fn note_failure(&self, failure: Failure) {
        let number = match failure {
            Failure::Status(status) => u32::from(status),
            Failure::Fault(kind) => KIND + kind as u32,
        };
        self.failure.store(number, Ordering::Relaxed);
    }

    /// The last failure that counted, in words for the operator.
    #[must_use]
    pub fn last_failure(&self) -> Option<String> {
        match self.failure.load(Ordering::Relaxed) {
            0 => None,
            number @ KIND.. => {
                let kind = Kind::numbered(u8::try_from(number - KIND).ok()?)?;
                Some(kind.row().log.to_owned())
            }
            status => Some(format!("status {status}")),
        }
    }

    /// Counts a change of the breaker.
    pub fn count_change(&self, change: Option<Change>) {
        if let Some(change) = change {
            let (from, to) = (change.from as usize, change.to as usize);
            self.breaker_changes[from][to].fetch_add(1, Ordering::Relaxed);
            if change.to != StateName::Open {
                self.poke();
            }
        }
    }

    /// How often the breaker has gone from Closed, Open and HalfOpen to each of these.
    #[must_use]
    pub fn breaker_changes(&self) -> [[u64; STATES]; STATES] {
        let all = self.breaker_changes.each_ref();
        all.map(|to| to.each_ref().map(|count| count.load(Ordering::Relaxed)))
    }

    /// Counts a result that the breaker was told.
    pub fn count_call(&self, result: CallResult) {
        self.breaker_calls[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// How often the breaker was told of a success, a failure and a timeout.
    #[must_use]
    pub fn breaker_calls(&self) -> [u64; RESULTS] {
        self.breaker_calls.each_ref().map(|count| count.load(Ordering::Relaxed))
    }

    /// Adds what the process before has counted: attempts, changes and results.
    pub fn add_counted(&self, counted: &UpstreamCounts) {
        self.attempts.fetch_add(counted.attempts, Ordering::Relaxed);
        let changes = self.breaker_changes.iter().flatten();
        for (sum, count) in changes.zip(counted.changes.iter().flatten()) {
            sum.fetch_add(*count, Ordering::Relaxed);
        }
        for (sum, count) in self.breaker_calls.iter().zip(counted.calls) {
            sum.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// What has been counted.
    #[must_use]
    pub fn counted(&self) -> UpstreamCounts {
        UpstreamCounts {
            attempts: self.attempts(),
            changes: self.breaker_changes(),
            calls: self.breaker_calls(),
        }
    }

    /// Until when it asked to be left alone; the origin = never.
    #[must_use]
    pub fn backs_off_until(&self) -> Moment {
        self.back_off_until.load()
    }

    /// Requests dispatched to this upstream and not yet ended, over all cores.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.slots.in_flight()
    }

    /// Attempts made since the start.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Whether active probes let requests go there; an upstream without probes counts as healthy.
    #[must_use]
    pub fn healthy(&self) -> bool {
        !self.is_found(DOWN | DOWN_BEFORE)
    }

    /// Whether requests may go there: it is healthy, and not away (`set_away`).
    #[must_use]
    pub fn usable(&self) -> bool {
        !self.is_found(DOWN | DOWN_BEFORE | AWAY)
    }

    /// Says whether it is probed; what the process before has found counts only then.
    pub fn set_probed(&self, probed: bool) {
        self.find(PROBED, probed);
        self.find(WELL | DOWN_BEFORE, false);
    }

    /// The process before had found it down: so it is, until a probe finds it well. One that a probe
    /// of this process has found well already stays so.
    pub fn set_down_before(&self) {
        if self.is_found(PROBED) && !self.is_found(WELL) {
            self.find(DOWN_BEFORE, true);
        }
    }

    /// A probe has found it well. Whether only what the process before had found spoke against it.
    pub fn found_well(&self) -> bool {
        self.find(WELL, true);
        let was_down = self.is_found(DOWN_BEFORE);
        if was_down {
            self.find(DOWN_BEFORE, false);
            self.poke();
        }
        was_down && !self.is_found(DOWN)
    }

    /// Notes whether it is away: no server was there when it was asked for its models, or discovery
    /// names it no more.
    pub fn set_away(&self, away: bool) {
        self.find(AWAY, away);
        if !away {
            self.poke();
        }
    }

    /// Whether others are to be preferred: it takes very long to list its models.
    #[must_use]
    pub fn late(&self) -> bool {
        self.is_found(LATE)
    }

    /// Notes whether it takes very long to list its models.
    pub fn set_late(&self, late: bool) {
        self.find(LATE, late);
    }

    /// Whether it has not listed its models yet: an unknown name may be one of them.
    #[must_use]
    pub fn unheard(&self) -> bool {
        self.is_found(UNHEARD)
    }

    /// Notes whether it has not listed its models yet.
    pub fn set_unheard(&self, unheard: bool) {
        self.find(UNHEARD, unheard);
    }

    fn is_found(&self, any: u8) -> bool {
        self.found.load(Ordering::Relaxed) & any != 0
    }

    fn find(&self, what: u8, is_so: bool) {
        match is_so {
            true => self.found.fetch_or(what, Ordering::Relaxed),
            false => self.found.fetch_and(!what, Ordering::Relaxed),
        };
    }

    /// Notes what the probes found.
    pub fn set_healthy(&self, healthy: bool) {
        self.find(DOWN, !healthy);
        if healthy {
            self.poke();
        }
    }

    /// Changes when it is left alone; what its breaker knows stays.
    pub fn set_breaker(&self, policy: BreakerPolicy) {
        if self.breaker.policy() != policy {
            self.breaker.set_policy(&policy);
            self.poke();
        }
    }

    /// Changes how many may be in flight, 0 = no limit.
    pub fn set_concurrency(&self, concurrency: u32) {
        self.slots.set_limit(concurrency);
        self.poke();
    }

    /// Whether a call would be let in, slots aside: usable, and the breaker says so.
    #[must_use]
    pub fn admits(&self, now: Moment) -> bool {
        self.usable() && self.breaker.admits(now)
    }

    /// Whether other upstreams are to be preferred for this model: it fails here while others work.
    #[must_use]
    #[cold]
    pub fn avoids(&self, model: &str, now: Moment) -> bool {
        self.models.avoids(model_hash(model), &self.breaker.policy(), now)
    }

    /// As `admits`, for a call that no other member can take.
    #[must_use]
    pub fn admits_last_resort(&self, now: Moment) -> bool {
        self.usable() && self.breaker.admits_last_resort(now)
    }

    /// Gives free slots to waiters: it may be called again, or by more than before.
    ///
    /// Must be called after each change to what `admits` says; the changes made here do so
    /// themselves.
    pub fn poke(&self) {
        let most = match self.breaker.state() {
            State::Closed { .. } => u32::MAX,
            // The breaker lets one trial through at a time: more waiters would only be refused.
            State::Open { .. } | State::HalfOpen { .. } => 1,
        };
        self.slots.fill(most);
    }

    /// Asks the control thread to check the upstream: a connection to it failed.
    pub fn suspect(&self) {
        self.suspect.store(true, Ordering::Relaxed);
    }

    /// Leaves a message for the operator; of several only the last is kept.
    ///
    /// Takes a lock for a moment: for error paths only.
    pub fn complain(&self, why: String) {
        *self.complaint.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
    }

    /// The message left since the last call, if any.
    #[must_use]
    pub fn take_complaint(&self) -> Option<String> {
        self.complaint.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether it was suspected since the last call.
    #[must_use]
    pub fn take_suspicion(&self) -> bool {
        // Read first: the line is written by the cores, and nearly always there is nothing.
        self.suspect.load(Ordering::Relaxed) && self.suspect.swap(false, Ordering::Relaxed)
    }

    /// Takes a slot for one attempt, until the lease is dropped; `None` when all are taken.
    #[must_use]
    pub fn try_lease(&self) -> Option<Lease<'_>> {
        self.slots.try_take().then(|| self.adopt())
    }

    /// Makes the lease of a slot that has been taken already.
    pub(super) fn adopt(&self) -> Lease<'_> {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        Lease { state: self }
    }
}

/// One attempt in flight.
///
/// Borrows: a reference count of its own would be one more line that all cores write to.
#[derive(Debug)]
#[must_use = "a lease that is dropped has ended"]
pub struct Lease<'a> {
    state: &'a UpstreamState,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        self.state.slots.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_lease_counts_itself_out_even_on_panic() {
        let state = Arc::new(UpstreamState::new(BreakerPolicy::default(), 2));
        let held = state.try_lease().unwrap();
        let inside = state.clone();
        let result = std::panic::catch_unwind(move || {
            let _lease = inside.try_lease().unwrap();
            assert_eq!(inside.in_flight(), 2);
            assert!(inside.try_lease().is_none());
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(result.is_err());
        assert_eq!(state.in_flight(), 1);
        drop(held);
        assert_eq!((state.in_flight(), state.attempts()), (0, 2));
    }
}
