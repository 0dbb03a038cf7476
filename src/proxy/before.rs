//! What is known of the process that this one has taken over from, if there was one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::telemetry::counters::Counters;
use crate::telemetry::series::RowSums;

/// The process before.
#[derive(Debug, Default)]
pub struct ProcessBefore {
    awaited: AtomicBool,
    counted: Mutex<Counted>,
}

/// What it has counted, as it last told.
#[derive(Debug, Default)]
pub struct Counted {
    /// The sums of all its cores.
    pub counters: Counters,
    /// The same by label.
    pub rows: RowSums,
}

/// Handovers of this process and of those before it.
#[derive(Debug, Default)]
pub struct Handovers {
    /// Carried through.
    pub done: AtomicU64,
    /// Begun and given up.
    pub failed: AtomicU64,
}

impl ProcessBefore {
    /// Whether a call that counts towards a limit has to wait: what the process before has let in is
    /// not known yet.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// Says whether what it has let in is still to come.
    ///
    /// Shape: whoever says that it is must say in any event that it is no more, and wake those who
    /// wait.
    pub fn set_awaited(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Release);
    }

    /// What it has counted.
    pub fn counted(&self) -> MutexGuard<'_, Counted> {
        // Numbers are stored whole: a panic has left none half changed.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
