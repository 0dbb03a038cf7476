//! Sampled exchanges on their way from the cores to the control thread, which exports them.
//!
//! A ring for each core, as for the access log: no lock and no wait on the side of a core. What finds
//! no room is dropped and counted.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::telemetry::traced::{TraceReader, TraceWriter, TracedBatch, TracedExchange, trace_ring};

/// Sampled exchanges of one core that wait for the control thread.
const TRACES_WAITING_MAX: usize = 2048;

/// The rings of all cores.
pub struct Traces {
    /// The cores' ends, until each has taken its own.
    writers: Mutex<Vec<Option<TraceWriter>>>,
    /// The other ends, which nobody but the control thread locks.
    readers: Mutex<Vec<TraceReader>>,
    /// Exchanges whose spans were not exported: no room, or the collector did not take them.
    pub dropped: AtomicU64,
    /// Exchanges whose spans the collector took.
    pub exported: AtomicU64,
}

impl Traces {
    /// A ring for each core.
    #[must_use]
    pub fn new(cores: usize) -> Traces {
        let (writers, readers) = (0..cores).map(|_| trace_ring(TRACES_WAITING_MAX)).unzip();
        let writers: Vec<TraceWriter> = writers;
        Traces {
            writers: Mutex::new(writers.into_iter().map(Some).collect()),
            readers: Mutex::new(readers),
            dropped: AtomicU64::new(0),
            exported: AtomicU64::new(0),
        }
    }

    /// Takes what waits, at most so many.
    pub fn take(&self, max: usize, into: &mut TracedBatch) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        for reader in &mut *readers {
            while into.len() < max
                && let Ok(traced) = reader.pop()
            {
                into.push(traced);
            }
        }
    }

    /// The end of a core; once.
    #[must_use]
    pub fn take_writer(&self, core: usize) -> CoreTraces {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        CoreTraces(RefCell::new(writers.get_mut(core).and_then(Option::take)))
    }
}

/// A core's end.
pub struct CoreTraces(RefCell<Option<TraceWriter>>);

impl CoreTraces {
    /// Puts a sampled exchange on its way; `all` counts one that finds no room.
    #[cold]
    pub fn hand(&self, traced: TracedExchange, all: &Traces) {
        let mut ring = self.0.borrow_mut();
        let taken = ring.as_mut().is_some_and(|ring| ring.push(Box::new(traced)).is_ok());
        if !taken {
            all.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
