//! Leaving a failing upstream alone, and finding out when it is back.
//!
//! ```text
//!            threshold within window, or consecutive failures
//!   Closed ───────────────────────────────────────────────────▶ Open { until }
//!     ▲                              cooldown over, by the      │       ▲
//!     │ successes                    first who asks (enter), or │       │ one failure:
//!     │                              a good recheck             │       │ cooldown doubled
//!     └──────────────────────── HalfOpen { trials } ◀───────────┘       │
//!                                        └──────────────────────────────┘
//! ```
//!
//! It steers and never walls: where it alone leaves nobody, a call may go to an open one all the
//! same, and its success counts as that of a trial (`outage` says when, and what a recheck by
//! the control thread does).
//!
//! The one idea: the whole state is one atomic word, and every change of state is one
//! compare-and-swap of it. Cores never disagree, a trial can neither be given out twice nor
//! lost, and nothing counts below zero. It holds an *epoch* that grows with every
//! change; a call remembers the epoch in which it began, and its result counts in that one
//! only: what was sent before the breaker opened neither reopens nor closes a later one.
//!
//! Whoever picks a server asks `admits` (one load), then `enter`s. That, and no timer
//! and no call, turns Open into HalfOpen: a breaker that waits for a call that it
//! refuses would never recover. A trial that ends without a verdict, since its client
//! left, is given back (`cancel`, or a `Pass` that is dropped).
//!
//! A success is best recorded with the response head: a stream that began before the trouble
//! and ends well minutes later says nothing of the server now, and would break up a
//! row of failures. If it is cut off after all, `record_truncated` says so.
//!
//! Source: rules §8. Failures of one model alone are not brought here (`models`).
//! What is a failure is decided by the table of
//! faults and by whoever calls `record`. Only the trials of the present half-open period
//! are bounded: calls from before it opened may still be running.

mod image;
pub mod models;
mod outage;
mod policy;
mod state;
mod window;

pub use image::BreakerImage;
pub use outage::Sign;
pub use policy::BreakerPolicy;
pub use state::{CallResult, Change, Entry, State, StateName};

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use outage::{Outage, SILENCE, TRIALS_MORE_MAX, UNASKED, VOUCHED_PAUSE};
use policy::LivePolicy;
use state::{DOUBLINGS_MAX, Gate, TRIALS_MAX};
use window::Window;

use crate::base::clock::Moment;

/// The breaker of one upstream, shared by all cores.
///
/// Units: of every `now` the milliseconds count.
#[derive(Debug)]
pub struct Breaker {
    policy: LivePolicy,
    /// A `Gate`.
    word: AtomicU64,
    window: Window,
    outage: Outage,
}

impl Breaker {
    /// Makes a closed breaker.
    pub fn new(policy: BreakerPolicy) -> Breaker {
        Breaker {
            word: AtomicU64::new(Gate::CLOSED.pack()),
            window: Window::new(policy.window),
            outage: Outage::default(),
            policy: LivePolicy::new(&policy),
        }
    }

    /// What it judges by.
    pub fn policy(&self) -> BreakerPolicy {
        self.policy.policy()
    }

    /// Has it judge by another policy from now on.
    ///
    /// Shape: its state stays, with what it has counted and the end of a cooldown that has begun;
    /// only another `window` begins to count anew.
    pub fn set_policy(&self, policy: &BreakerPolicy) {
        self.policy.set(policy);
        self.window.set_length(policy.window);
    }

    /// What it knows, for the process that comes next.
    #[must_use]
    pub fn image(&self, now: Moment) -> BreakerImage {
        let (gate, failed) = (self.gate(), self.failed_at());
        BreakerImage {
            calls: self.window.counted(gate.epoch, now),
            failed_ago: (failed > Moment::ORIGIN).then(|| now.since(failed)),
            hangs: self.outage.hangs.load(Relaxed),
            ..BreakerImage::of(gate, now)
        }
    }

    /// Goes on from what the process before knew; a breaker that has opened of itself knows better,
    /// and nothing changes.
    pub fn resume(&self, image: &BreakerImage, now: Moment) {
        let mut epoch = None;
        let _ = self.change(|gate| {
            let next = matches!(gate.state, State::Closed { .. }).then(|| image.gate(gate, now))?;
            epoch = Some(next.epoch);
            Some(next)
        });
        let Some(epoch) = epoch.filter(|_| self.state().name() == image.state) else { return };
        self.window.fill(epoch, &image.calls, now);
        if let Some(ago) = image.failed_ago {
            // Before the origin of this process is at its origin, and a little later, so that of
            // those that failed some did.
            self.outage.failed.advance(now.before(ago).max(Moment::from_millis(1)));
        }
        if image.state != StateName::Closed {
            self.outage.hangs.store(image.hangs, Relaxed);
            self.outage.heard.advance(now);
        }
    }

    /// Returns where it stands.
    pub fn state(&self) -> State {
        self.gate().state
    }

    /// Tells whether a call would be let in now: closed, or open with its cooldown over, or half
    /// open with a trial free.
    pub fn admits(&self, now: Moment) -> bool {
        match self.gate().state {
            State::Closed { .. } => true,
            State::Open { until } => now >= until,
            State::HalfOpen { trials_out, .. } => trials_out < self.trials(),
        }
    }

    /// Tells whether the next call let in would be a trial, now or when its time comes.
    pub fn awaits_trial(&self) -> bool {
        !matches!(self.gate().state, State::Closed { .. })
    }

    /// Lets one call in; `None` when somebody else was faster, then pick again.
    pub fn enter(&self, now: Moment) -> Option<Entry> {
        let mut entry = None;
        self.change(|gate| {
            let epoch = gate.epoch;
            entry = None;
            match gate.state {
                State::Closed { .. } => {
                    entry = Some(Entry::Passed { epoch });
                    None
                }
                State::Open { until } if now >= until => {
                    let next = gate.into(State::HalfOpen { trials_out: 1, successes: 0 });
                    entry = Some(Entry::Trial { epoch: next.epoch, half_opened: true });
                    Some(next)
                }
                State::HalfOpen { trials_out, successes } if trials_out < self.trials() => {
                    entry = Some(Entry::Trial { epoch, half_opened: false });
                    let state = State::HalfOpen { trials_out: trials_out + 1, successes };
                    Some(Gate { state, ..gate })
                }
                State::Open { .. } | State::HalfOpen { .. } => None,
            }
        });
        entry
    }

    /// Counts the result of a call; tells when it has changed the state.
    pub fn record(&self, entry: Entry, result: CallResult, now: Moment) -> Option<Change> {
        match entry {
            Entry::Passed { epoch } => self.record_passed(epoch, result, now),
            Entry::Trial { epoch, .. } => self.record_trial(epoch, result, now),
            Entry::LastResort { epoch } => self.record_last_resort(epoch, result, now),
        }
    }

    /// Tells whether a call began since the last change of state: only then does its result
    /// say something of the server as it is now.
    pub fn is_present(&self, entry: &Entry) -> bool {
        let (Entry::Passed { epoch } | Entry::Trial { epoch, .. } | Entry::LastResort { epoch }) =
            entry;
        self.gate().epoch == *epoch
    }

    /// Counts one failure more, of a call that has been recorded as a success: its response
    /// began well and was cut off. It counts now, whenever the call began, and only when closed.
    pub fn record_truncated(&self, result: CallResult, now: Moment) -> Option<Change> {
        self.record_passed(self.gate().epoch, result, now)
    }

    /// Ends a call without a verdict: its client left, or it was never sent.
    pub fn cancel(&self, entry: Entry) {
        let begun = match entry {
            Entry::Passed { .. } => return,
            Entry::LastResort { .. } => return self.outage.ended(),
            Entry::Trial { epoch, .. } => epoch,
        };
        self.change(|gate| match gate.state {
            State::HalfOpen { trials_out, successes } if gate.epoch == begun => {
                let state = State::HalfOpen { trials_out: trials_out.saturating_sub(1), successes };
                Some(Gate { state, ..gate })
            }
            _ => None,
        });
    }

    /// Tells when it lets somebody in: `now` when it does already, the end of the cooldown
    /// when it is open, `None` when that hangs on trials in flight.
    pub fn next_admission(&self, now: Moment) -> Option<Moment> {
        match self.gate().state {
            State::Closed { .. } => Some(now),
            State::Open { until } => Some(until.max(now)),
            State::HalfOpen { trials_out, .. } if trials_out < self.trials() => Some(now),
            State::HalfOpen { .. } => None,
        }
    }

    /// When the server last failed: of several that are open, the lowest is tried first.
    #[must_use]
    pub fn failed_at(&self) -> Moment {
        self.outage.failed.load()
    }

    /// Tells whether a call that has nowhere else to go would be let in now.
    #[must_use]
    pub fn admits_last_resort(&self, now: Moment) -> bool {
        if self.admits(now) {
            return true;
        }
        self.policy.last_resort() && {
            // A breaker that is open has no trial out, so one may go.
            !self.hangs(now)
                || matches!(self.state(), State::Open { .. })
                || self.may_try_again(now)
        }
    }

    /// Lets in a call that has nowhere else to go; `None` when it would only hang too.
    pub fn enter_last_resort(&self, now: Moment) -> Option<Entry> {
        if let Some(entry) = self.enter(now) {
            return Some(entry);
        }
        if !self.policy.last_resort() {
            return None;
        }
        if !self.hangs(now) {
            if self.outage.calls_out.fetch_add(1, Relaxed) == 0 {
                self.outage.heard.advance(now);
            }
            return Some(Entry::LastResort { epoch: self.gate().epoch });
        }
        let mut entry = None;
        self.change(|gate| {
            entry = None;
            let State::Open { .. } = gate.state else { return None };
            let next = gate.into(State::HalfOpen { trials_out: 1, successes: 0 });
            entry = Some(Entry::Trial { epoch: next.epoch, half_opened: true });
            Some(next)
        });
        if entry.is_none() && self.may_try_again(now) {
            self.outage.one_trial_more();
            entry = self.enter(now);
        }
        if entry.is_some() {
            self.outage.trial.store(now);
        }
        entry
    }

    /// Takes what came of asking the server; tells when that has changed the state.
    pub fn rechecked(&self, sign: Sign, now: Moment) -> Option<Change> {
        let outage = &self.outage;
        let before = outage.asked.swap(sign as u8 + 1, Relaxed);
        if sign != Sign::Silent {
            outage.heard.advance(now);
        }
        if sign != Sign::Good {
            outage.doubted.store(false, Relaxed);
            return None;
        }
        let back = !matches!(before, UNASKED) && before != Sign::Good as u8 + 1;
        if back {
            outage.hangs.store(false, Relaxed);
        }
        let doubted = outage.doubted.load(Relaxed);
        let mut crowded = false;
        let change = self.change(|gate| {
            crowded = false;
            match gate.state {
                State::Open { until } if now >= until || !doubted => {
                    Some(gate.into(State::HalfOpen { trials_out: 0, successes: 0 }))
                }
                State::HalfOpen { trials_out, .. } => {
                    crowded = trials_out >= self.trials();
                    None
                }
                State::Open { .. } | State::Closed { .. } => None,
            }
        });
        if change.is_some() {
            outage.trials_more.store(0, Relaxed);
            outage.vouched.store(true, Relaxed);
        } else if back && crowded {
            outage.one_trial_more();
        }
        change
    }

    fn record_passed(&self, begun: u32, result: CallResult, now: Moment) -> Option<Change> {
        let gate = self.gate();
        let State::Closed { consecutive } = gate.state else { return None };
        if gate.epoch != begun {
            return None;
        }
        let counts = self.window.record(begun, result.is_failure(), now);
        let over = counts.calls >= self.policy.calls_min().max(1)
            && f64::from(counts.failures) / f64::from(counts.calls) >= self.policy.threshold();
        // The usual call ends here and has not written to the word.
        if result == CallResult::Success && consecutive == 0 && !over {
            return None;
        }
        let change = self.change(|gate| match gate.state {
            State::Closed { consecutive } if gate.epoch == begun => {
                let consecutive = match result.is_failure() {
                    false => 0,
                    true => consecutive.saturating_add(1),
                };
                if over || consecutive >= self.policy.consecutive().max(1) {
                    return Some(self.opened(gate, 0, now));
                }
                Some(Gate { state: State::Closed { consecutive }, ..gate })
            }
            _ => None,
        });
        if change.is_some() {
            self.outage.began(result, now);
        }
        change
    }

    fn record_trial(&self, begun: u32, result: CallResult, now: Moment) -> Option<Change> {
        let mut counted = false;
        let change = self.change(|gate| match gate.state {
            State::HalfOpen { trials_out, successes } if gate.epoch == begun => {
                counted = true;
                if result.is_failure() {
                    return Some(self.opened(gate, gate.doublings + 1, now));
                }
                Some(self.succeeded(gate, trials_out.saturating_sub(1), successes))
            }
            _ => {
                counted = false;
                None
            }
        });
        if counted {
            self.outage.tried(result, now);
        }
        change
    }

    fn record_last_resort(&self, begun: u32, result: CallResult, now: Moment) -> Option<Change> {
        self.outage.ended();
        if self.gate().epoch != begun {
            return None;
        }
        self.outage.heard(result, now);
        if result.is_failure() {
            return None;
        }
        self.change(|gate| match gate.state {
            _ if gate.epoch != begun => None,
            State::Open { .. } => Some(self.succeeded(gate, 0, 0)),
            State::HalfOpen { trials_out, successes } => {
                Some(self.succeeded(gate, trials_out, successes))
            }
            State::Closed { .. } => None,
        })
    }

    /// Whether calls to it hang.
    fn hangs(&self, now: Moment) -> bool {
        let outage = &self.outage;
        if outage.hangs.load(Relaxed) {
            return true;
        }
        let silent = now.since(outage.heard.load());
        let hangs = outage.calls_out.load(Relaxed) > 0
            && silent > self.policy.recheck().saturating_mul(SILENCE);
        if hangs {
            outage.hangs.store(true, Relaxed);
        }
        hangs
    }

    /// Whether a server that hangs, and answers rechecks well, may have one trial more.
    fn may_try_again(&self, now: Moment) -> bool {
        let outage = &self.outage;
        let pause = self.policy.recheck().saturating_mul(VOUCHED_PAUSE);
        outage.asked.load(Relaxed) == Sign::Good as u8 + 1
            && outage.trials_more() < TRIALS_MORE_MAX
            && now.since(outage.trial.load()) >= pause
    }

    /// The gate after one success more than `successes`, in a half-open period.
    fn succeeded(&self, gate: Gate, trials_out: u32, successes: u32) -> Gate {
        let successes = successes + 1;
        if successes >= self.policy.successes().min(TRIALS_MAX) {
            let closed = gate.into(State::Closed { consecutive: 0 });
            return Gate { doublings: 0, ..closed };
        }
        match gate.state {
            State::HalfOpen { .. } => {
                Gate { state: State::HalfOpen { trials_out, successes }, ..gate }
            }
            State::Open { .. } | State::Closed { .. } => {
                gate.into(State::HalfOpen { trials_out, successes })
            }
        }
    }

    fn opened(&self, gate: Gate, doublings: u32, now: Moment) -> Gate {
        let doublings = doublings.min(DOUBLINGS_MAX);
        let until = now + self.policy.cooldown().saturating_mul(1 << doublings);
        Gate { doublings, ..gate.into(State::Open { until }) }
    }

    fn trials(&self) -> u32 {
        (self.policy.trials().max(1) + self.outage.trials_more()).min(TRIALS_MAX)
    }

    fn gate(&self) -> Gate {
        Gate::unpack(self.word.load(Relaxed))
    }

    /// Replaces the gate by what `next` makes of it, until nobody has been faster; `None` leaves
    /// it as it is.
    fn change(&self, mut next: impl FnMut(Gate) -> Option<Gate>) -> Option<Change> {
        // Relaxed is enough: nothing but the word itself is published by it.
        let mut seen = self.word.load(Relaxed);
        loop {
            let gate = Gate::unpack(seen);
            let new = next(gate)?;
            match self.word.compare_exchange_weak(seen, new.pack(), Relaxed, Relaxed) {
                Ok(_) => {
                    let (from, to) = (gate.state.name(), new.state.name());
                    return (from != to).then_some(Change { from, to });
                }
                Err(other) => seen = other,
            }
        }
    }
}

#[cfg(test)]
mod tests;
