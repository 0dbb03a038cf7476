//! The end of an exchange: one record, exactly once, whatever way it ends.
//!
//! The record is filled in as the exchange goes and told to the core's counters when the guard
//! is dropped: by the normal end, by an abort, by a panic. So is what the key has used.

use std::rc::Rc;
use std::time::Instant;

use super::core::Core;
use super::limit::Charge;
use crate::error::Kind;
use crate::policy::keys::KeyId;
use crate::policy::limit::moment::Moment;
use crate::policy::limit::passed::Passed;
use crate::telemetry::outcome::Outcome;

/// The record of one exchange in the making.
pub struct Settle {
    core: Rc<Core>,
    begun_us: u64,
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
        let begun_us = core.shared.notifier.us_at(Instant::now());
        Self {
            core: core.clone(),
            begun_us,
            outcome: Outcome::default(),
            passed: Passed::default(),
            key: None,
            blamed: None,
            charge: None,
        }
    }

    /// When the head had been read, by both clocks.
    #[must_use]
    pub fn begun(&self) -> Moment {
        self.core.shared.notifier.moment(self.begun_us)
    }

    /// The same by the wall's clock, milliseconds since 1970.
    #[must_use]
    pub fn begun_unix_ms(&self) -> u64 {
        self.begun().wall_ns / 1_000_000
    }

    /// Keeps the key's charge until the exchange ends, when its tokens are paid.
    pub fn hold(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    /// Pays tokens at once, for an exchange that may last for hours (a tunnel).
    pub fn pay(&self, tokens: u64) {
        if let Some(charge) = &self.charge {
            let now = self.core.shared.notifier.moment(self.now_us());
            charge.pay_tokens(tokens, now.steady_ns);
        }
    }

    /// Microseconds since the head was read.
    #[must_use]
    pub fn elapsed_us(&self) -> u64 {
        self.now_us().saturating_sub(self.begun_us)
    }

    /// When the head had been read, microseconds since the process's origin.
    #[must_use]
    pub fn begun_us(&self) -> u64 {
        self.begun_us
    }

    /// Microseconds since the process's origin, the same on all cores.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.core.shared.notifier.us_at(Instant::now())
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
        let now_us = self.now_us();
        self.outcome.duration_us = now_us.saturating_sub(self.begun_us);
        if let Some(charge) = &self.charge {
            let shared = &self.core.shared;
            self.passed.request_bytes = self.outcome.request_bytes;
            let now_ns = shared.notifier.moment(now_us).steady_ns;
            charge.pay(&self.passed, &shared.token_sizes, now_ns);
        }
        self.core.counters.borrow_mut().record(&self.outcome);
    }
}
