//! What is known of a server whose breaker is not closed, and what follows from it.
//!
//! The breaker's word says who may call as long as there is somebody else. Here is the rest:
//!
//! **Last resort.** Where breakers alone leave nobody, a call goes to an open one all the same. As
//! long as calls to it fail fast or are answered they cost nobody much, so they go freely. While
//! they hang only trials go, one at a time as a rule. They hang when the last one ran out of
//! time, or when one is out and nothing at all has been heard of the server for `SILENCE` rechecks. A
//! success counts as that of a trial. A failure changes nothing but the order in which several
//! open ones are tried: the one that failed longest ago is next.
//!
//! **Return.** The control thread asks a server whose breaker is not closed every `recheck`; a good
//! answer half-opens it at once (`rechecked`). Two things keep that honest. A server that
//! answers such questions well and fails every trial is believed once a cooldown, unless it has answered
//! one badly in between. And a trial that was swallowed before the return does not hold up
//! those after it: when bad answers turn into good ones, one trial more is let through.
//!
//! All of this is advice, in plain atomics beside the word: a race between two cores lets a call
//! more or less through and never loses count of a trial.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64};

use super::{Breaker, CallResult, Change, Entry, State, millis};

/// Rechecks without any sign of life after which a call that is out hangs.
const SILENCE: u64 = 6;
/// Trials let through beyond `trials` in one half-open period.
const TRIALS_MORE_MAX: u32 = 8;
/// Rechecks from a trial to one more, of a server that hangs and answers rechecks well.
const VOUCHED_PAUSE: u64 = 5;

/// What came of a recheck.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sign {
    /// 2xx.
    Good,
    /// It does not serve, and said so at once: another status, or a refused connection.
    Bad,
    /// No answer in time.
    Silent,
}

/// No recheck has come back yet in this outage; else a `Sign`, plus one.
const UNASKED: u8 = 0;

/// See the file.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When it last failed.
    failed_ms: AtomicU64,
    /// Calls of last resort that are out.
    calls_out: AtomicU32,
    /// The last sign of life, or when the first of those that are out began.
    heard_ms: AtomicU64,
    hangs: AtomicBool,
    /// What the last recheck said.
    asked: AtomicU8,
    /// The half-open period began with a good recheck.
    vouched: AtomicBool,
    /// A trial of such a period has failed, and no recheck since has been anything but good.
    doubted: AtomicBool,
    trials_more: AtomicU32,
    /// When the last trial of a server that hangs began.
    trial_ms: AtomicU64,
}

impl Outage {
    /// The breaker has opened, by a call that ended so.
    #[cold]
    pub(super) fn began(&self, result: CallResult, now_ms: u64) {
        self.asked.store(UNASKED, Relaxed);
        self.vouched.store(false, Relaxed);
        self.doubted.store(false, Relaxed);
        self.trials_more.store(0, Relaxed);
        self.heard(result, now_ms);
    }

    /// A trial has ended.
    #[cold]
    pub(super) fn tried(&self, result: CallResult, now_ms: u64) {
        self.heard(result, now_ms);
        if result.is_failure() {
            self.trials_more.store(0, Relaxed);
            self.doubted.fetch_or(self.vouched.swap(false, Relaxed), Relaxed);
        }
    }

    /// A call of last resort has ended without a verdict.
    pub(super) fn ended(&self) {
        // Never below zero, whatever is told twice.
        let _ = self.calls_out.fetch_update(Relaxed, Relaxed, |out| out.checked_sub(1));
    }

    pub(super) fn trials_more(&self) -> u32 {
        self.trials_more.load(Relaxed)
    }

    fn heard(&self, result: CallResult, now_ms: u64) {
        self.hangs.store(result == CallResult::TimedOut, Relaxed);
        self.heard_ms.store(now_ms, Relaxed);
        if result.is_failure() {
            self.failed_ms.store(now_ms, Relaxed);
        }
    }

    fn one_trial_more(&self) {
        let more = |given: u32| (given < TRIALS_MORE_MAX).then_some(given + 1);
        let _ = self.trials_more.fetch_update(Relaxed, Relaxed, more);
    }
}

impl Breaker {
    /// When the server last failed: of several that are open, the lowest is tried first.
    #[must_use]
    pub fn failed_ms(&self) -> u64 {
        self.outage.failed_ms.load(Relaxed)
    }

    /// Tells whether a call that has nowhere else to go would be let in now.
    #[must_use]
    pub fn admits_last_resort(&self, now_ms: u64) -> bool {
        if self.admits(now_ms) {
            return true;
        }
        self.policy.last_resort && {
            // A breaker that is open has no trial out, so one may go.
            !self.hangs(now_ms)
                || matches!(self.state(), State::Open { .. })
                || self.may_try_again(now_ms)
        }
    }

    /// Lets in a call that has nowhere else to go; `None` when it would only hang too.
    pub fn enter_last_resort(&self, now_ms: u64) -> Option<Entry> {
        if let Some(entry) = self.enter(now_ms) {
            return Some(entry);
        }
        if !self.policy.last_resort {
            return None;
        }
        if !self.hangs(now_ms) {
            if self.outage.calls_out.fetch_add(1, Relaxed) == 0 {
                self.outage.heard_ms.fetch_max(now_ms, Relaxed);
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
        if entry.is_none() && self.may_try_again(now_ms) {
            self.outage.one_trial_more();
            entry = self.enter(now_ms);
        }
        if entry.is_some() {
            self.outage.trial_ms.store(now_ms, Relaxed);
        }
        entry
    }

    /// Takes what came of asking the server; tells when that has changed the state.
    pub fn rechecked(&self, sign: Sign, now_ms: u64) -> Option<Change> {
        let outage = &self.outage;
        let before = outage.asked.swap(sign as u8 + 1, Relaxed);
        if sign != Sign::Silent {
            outage.heard_ms.fetch_max(now_ms, Relaxed);
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
                State::Open { until_ms } if now_ms >= until_ms || !doubted => {
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

    pub(super) fn record_last_resort(
        &self,
        begun: u32,
        result: CallResult,
        now_ms: u64,
    ) -> Option<Change> {
        self.outage.ended();
        if self.gate().epoch != begun {
            return None;
        }
        self.outage.heard(result, now_ms);
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
    fn hangs(&self, now_ms: u64) -> bool {
        let outage = &self.outage;
        if outage.hangs.load(Relaxed) {
            return true;
        }
        let silent_ms = now_ms.saturating_sub(outage.heard_ms.load(Relaxed));
        let hangs =
            outage.calls_out.load(Relaxed) > 0 && silent_ms > SILENCE * millis(self.policy.recheck);
        if hangs {
            outage.hangs.store(true, Relaxed);
        }
        hangs
    }

    /// Whether a server that hangs, and answers rechecks well, may have one trial more.
    fn may_try_again(&self, now_ms: u64) -> bool {
        let outage = &self.outage;
        let pause_ms = VOUCHED_PAUSE * millis(self.policy.recheck);
        outage.asked.load(Relaxed) == Sign::Good as u8 + 1
            && outage.trials_more() < TRIALS_MORE_MAX
            && now_ms.saturating_sub(outage.trial_ms.load(Relaxed)) >= pause_ms
    }
}
