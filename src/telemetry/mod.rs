//! What is remembered of an exchange once it is over.
//!
//! Reading order: `record` (what the stations of one exchange write), `outcome` (its numbers at the
//! end), `finished` (the same with names), `counters` (a core's sums), `access` (the log line of
//! one), `line` (any other line), `prometheus` (the sums as text). All pure: the clock stands in
//! the record, and whoever owns a file or a socket writes the bytes.

pub mod access;
pub mod access_record;
pub mod counters;
pub mod failed;
pub mod finished;
pub mod line;
pub mod outcome;
pub mod prometheus;
pub mod record;
pub mod ring;

pub use outcome::Outcome;
