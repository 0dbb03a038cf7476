//! The end of an exchange: one record, exactly once, whatever way it ends.
//!
//! The record is filled in as the exchange goes and told to the core's counters when the guard
//! is dropped: by the normal end, by an abort, by a panic. So is what the key has used.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::core::Core;
use super::limit::Charge;
use crate::base::clock::{Moment, Timestamp, micros};
use crate::error::Kind;
use crate::policy::keys::KeyId;
use crate::policy::limit::passed::Passed;
use crate::telemetry::outcome::Outcome;

/// The record of one exchange in the making.
pub struct Settle {
    core: Rc<Core>,
    begun: Moment,
    /// What has become known so far.
    pub outcome: Outcome,
    /// What a charge by the token goes by, as far as it is known.
    pub passed: Passed,
    /// The client's key, once it has been let in.
    pub key: Option<KeyId>,
    /// The upstream of the last attempt, if that failed.
    pub blamed: Option<Box<str>>,
    charge: Option<Charge>,
}

impl Settle {
    /// Begins the record of an exchange whose head has been read.
    #[must_use]
    pub fn begin(core: &Rc<Core>) -> Self {
        Self {
            core: core.clone(),
            begun: core.shared.notifier.clock.at(Instant::now()),
            outcome: Outcome::default(),
            passed: Passed::default(),
            key: None,
            blamed: None,
            charge: None,
        }
    }

    /// When the head had been read.
    #[must_use]
    pub fn begun(&self) -> Moment {
        self.begun
    }

    /// The same by both clocks.
    #[must_use]
    pub fn begun_at(&self) -> Timestamp {
        self.core.shared.notifier.clock.both(self.begun)
    }

    /// Keeps the key's charge until the exchange ends, when its tokens are paid.
    pub fn hold(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    /// Pays tokens at once, for an exchange that may last for hours (a tunnel).
    pub fn pay(&self, tokens: u64) {
        if let Some(charge) = &self.charge {
            charge.pay_tokens(tokens, self.now());
        }
    }

    /// How long ago the head was read.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now().since(self.begun)
    }

    /// The moment that it is now, the same on all cores.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.core.shared.notifier.clock.at(Instant::now())
    }

    /// Notes which upstream failed.
    #[cold]
    pub fn blame(&mut self, upstream: &str) {
        self.blamed = Some(upstream.into());
    }

    /// Notes the fault that ended the exchange; the first one noted counts.
    #[cold]
    pub fn fault(&mut self, kind: Kind) {
        self.outcome.fault.get_or_insert(kind.into());
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        let now = self.now();
        self.outcome.duration_us = micros(now.since(self.begun));
        if let Some(charge) = &self.charge {
            let shared = &self.core.shared;
            self.passed.request_bytes = self.outcome.request_bytes;
            charge.pay(&self.passed, &shared.token_sizes, now);
        }
        self.core.counters.borrow_mut().record(&self.outcome);
    }
}
