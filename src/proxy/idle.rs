//! What a core tells the others of its idle connections.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::base::clock::AtomicMoment;

/// What a core tells the others of its idle connections.
#[derive(Debug, Default)]
pub struct Idle {
    /// How many there are.
    pub(super) count: AtomicU32,
    /// Since when the one that has idled longest idles; `Moment::MAX` when none idles.
    pub(super) since: AtomicMoment,
}

impl Idle {
    /// How many there are, as of the core's last tick.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}
