//! What a breaker judges by, and how it can be replaced while cores judge by it.
//!
//! Each value of a `LivePolicy` is an atomic of its own, read as cheaply as a plain one. A call
//! that is judged just when they change may meet some of the old and some of the new, which does no
//! harm: each is good by itself.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::Duration;

use crate::base::clock::AtomicDuration;

/// An upstream's `breaker`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerPolicy {
    /// Share of failures that opens it, 0.01..=1.0.
    pub threshold: f64,
    /// The time over which calls are counted.
    pub window: Duration,
    /// Calls within the window before the share means anything.
    pub calls_min: u32,
    /// Failures in a row that open it whatever the share.
    pub consecutive: u32,
    /// How long it stays open the first time.
    pub cooldown: Duration,
    /// Calls let through at a time when half open, 1..=1000.
    pub trials: u32,
    /// Successes that close it, 1..=1000.
    pub successes: u32,
    /// From one question of the control thread to the next while it is not closed, at first.
    pub recheck: Duration,
    /// Whether calls go there all the same where breakers alone leave nobody.
    pub last_resort: bool,
}

impl Default for BreakerPolicy {
    /// What an upstream has whose config says nothing.
    fn default() -> Self {
        Self {
            threshold: 0.5,
            window: Duration::from_secs(10),
            calls_min: 10,
            consecutive: 5,
            cooldown: Duration::from_secs(30),
            trials: 1,
            successes: 1,
            recheck: Duration::from_secs(1),
            last_resort: true,
        }
    }
}

/// A `BreakerPolicy` that all cores read, and that may change.
#[derive(Debug, Default)]
pub(super) struct LivePolicy {
    /// The bits of an `f64`.
    threshold: AtomicU64,
    window: AtomicDuration,
    calls_min: AtomicU32,
    consecutive: AtomicU32,
    cooldown: AtomicDuration,
    trials: AtomicU32,
    successes: AtomicU32,
    recheck: AtomicDuration,
    last_resort: AtomicBool,
}

impl LivePolicy {
    pub(super) fn new(policy: &BreakerPolicy) -> Self {
        let live = Self::default();
        live.set(policy);
        live
    }

    pub(super) fn set(&self, policy: &BreakerPolicy) {
        // Without `..`: whoever adds a setting decides here that it can change.
        let &BreakerPolicy {
            threshold,
            window,
            calls_min,
            consecutive,
            cooldown,
            trials,
            successes,
            recheck,
            last_resort,
        } = policy;
        self.threshold.store(threshold.to_bits(), Relaxed);
        self.window.store(window);
        self.calls_min.store(calls_min, Relaxed);
        self.consecutive.store(consecutive, Relaxed);
        self.cooldown.store(cooldown);
        self.trials.store(trials, Relaxed);
        self.successes.store(successes, Relaxed);
        self.recheck.store(recheck);
        self.last_resort.store(last_resort, Relaxed);
    }

    /// All values together.
    pub(super) fn policy(&self) -> BreakerPolicy {
        BreakerPolicy {
            threshold: self.threshold(),
            window: self.window.load(),
            calls_min: self.calls_min(),
            consecutive: self.consecutive(),
            cooldown: self.cooldown(),
            trials: self.trials(),
            successes: self.successes(),
            recheck: self.recheck(),
            last_resort: self.last_resort(),
        }
    }

    pub(super) fn threshold(&self) -> f64 {
        f64::from_bits(self.threshold.load(Relaxed))
    }

    pub(super) fn calls_min(&self) -> u32 {
        self.calls_min.load(Relaxed)
    }

    pub(super) fn consecutive(&self) -> u32 {
        self.consecutive.load(Relaxed)
    }

    pub(super) fn cooldown(&self) -> Duration {
        self.cooldown.load()
    }

    pub(super) fn trials(&self) -> u32 {
        self.trials.load(Relaxed)
    }

    pub(super) fn successes(&self) -> u32 {
        self.successes.load(Relaxed)
    }

    pub(super) fn recheck(&self) -> Duration {
        self.recheck.load()
    }

    pub(super) fn last_resort(&self) -> bool {
        self.last_resort.load(Relaxed)
    }
}
