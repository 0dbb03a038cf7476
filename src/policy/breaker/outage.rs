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
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32};

use super::state::CallResult;
use crate::base::clock::{AtomicMoment, Moment};

/// Rechecks without any sign of life after which a call that is out hangs.
pub(super) const SILENCE: u32 = 6;
/// Trials let through beyond `trials` in one half-open period.
pub(super) const TRIALS_MORE_MAX: u32 = 8;
/// Rechecks from a trial to one more, of a server that hangs and answers rechecks well.
pub(super) const VOUCHED_PAUSE: u32 = 5;

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
pub(super) const UNASKED: u8 = 0;

/// See the file.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// When it last failed.
    pub(super) failed: AtomicMoment,
    /// Calls of last resort that are out.
    pub(super) calls_out: AtomicU32,
    /// The last sign of life, or when the first of those that are out began.
    pub(super) heard: AtomicMoment,
    pub(super) hangs: AtomicBool,
    /// What the last recheck said.
    pub(super) asked: AtomicU8,
    /// The half-open period began with a good recheck.
    pub(super) vouched: AtomicBool,
    /// A trial of such a period has failed, and no recheck since has been anything but good.
    pub(super) doubted: AtomicBool,
    pub(super) trials_more: AtomicU32,
    /// When the last trial of a server that hangs began.
    pub(super) trial: AtomicMoment,
}

impl Outage {
    /// The breaker has opened, by a call that ended so.
    #[cold]
    pub(super) fn began(&self, result: CallResult, now: Moment) {
        self.asked.store(UNASKED, Relaxed);
        self.vouched.store(false, Relaxed);
        self.doubted.store(false, Relaxed);
        self.trials_more.store(0, Relaxed);
        self.heard(result, now);
    }

    /// A trial has ended.
    #[cold]
    pub(super) fn tried(&self, result: CallResult, now: Moment) {
        self.heard(result, now);
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

    pub(super) fn heard(&self, result: CallResult, now: Moment) {
        self.hangs.store(result == CallResult::TimedOut, Relaxed);
        self.heard.store(now);
        if result.is_failure() {
            self.failed.store(now);
        }
    }

    pub(super) fn one_trial_more(&self) {
        let more = |given: u32| (given < TRIALS_MORE_MAX).then_some(given + 1);
        let _ = self.trials_more.fetch_update(Relaxed, Relaxed, more);
    }
}
