//! What is remembered of an exchange once it is over.
//!
//! Reading order: `outcome` (the record that `settle` makes of one exchange),
//! `counters` (a core's sums of them), `access` (the log line of one), `line` (any
//! other line), `prometheus` (the sums
//! as text). All pure: the
//! clock stands in the record, and whoever owns a file or a socket writes the bytes.

pub mod access;
pub mod counters;
pub mod failed;
pub mod line;
pub mod outcome;
pub mod prometheus;
pub mod ring;

pub use outcome::Outcome;
