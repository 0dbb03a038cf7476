//! What a core tells the others of its idle connections.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// What a core tells the others of its idle connections.
#[derive(Debug, Default)]
pub struct Idle {
    /// How many there are.
    pub(super) count: AtomicU32,
    /// Since when the one that has idled longest idles, microseconds from the process's origin;
    /// `u64::MAX` when none idles.
    pub(super) since_us: AtomicU64,
}
