//! One moment by two clocks.
//!
//! The wall's clock may be set while the process runs: by an hour, or by fifty years on a machine
//! that began without one. What people know by the wall (a minute, a UTC day, the end of a key,
//! the time in an id) goes by it. What is a length of time (a rate, a debt, a wait) goes by the
//! steady time, which no setting touches.

/// A moment, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What the wall's clock shows.
    pub wall_ns: u64,
    /// What it showed when the process began, and what has passed since.
    pub steady_ns: u64,
}

/// A moment at which both clocks agree.
impl From<u64> for Moment {
    fn from(ns: u64) -> Self {
        Self { wall_ns: ns, steady_ns: ns }
    }
}
