//! Idle connections: what a core tells the others of them, and how long they live on at the end.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::base::clock::AtomicMoment;

/// How long a connection may idle when its core drains or its listener has gone: a client learns by
/// its next answer that it ends, and may have sent the request for that already.
pub(super) const IDLE_GRACE: Duration = Duration::from_secs(2);

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
