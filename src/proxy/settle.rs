//! The end of an exchange: one record, exactly once, whatever way it ends.
//!
//! The record is filled in as the exchange goes and told to the core's counters when the guard
//! is dropped: by the normal end, by an abort, by a panic.

use std::rc::Rc;
use std::time::Instant;

use super::core::Core;
use crate::error::Kind;
use crate::telemetry::outcome::Outcome;

/// The record of one exchange in the making.
pub struct Settle {
    core: Rc<Core>,
    begun: Instant,
    /// What has become known so far.
    pub outcome: Outcome,
}

impl Settle {
    /// Begins the record of an exchange whose head has been read.
    #[must_use]
    pub fn begin(core: &Rc<Core>) -> Self {
        Self { core: core.clone(), begun: Instant::now(), outcome: Outcome::default() }
    }

    /// Microseconds since the head was read.
    #[must_use]
    pub fn elapsed_us(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Notes what ended it, unless something earlier did.
    pub fn fault(&mut self, kind: Kind) {
        self.outcome.fault.get_or_insert(kind.into());
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        self.outcome.duration_us = self.elapsed_us();
        self.core.counters.borrow_mut().record(&self.outcome);
    }
}
