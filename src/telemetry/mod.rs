//! What is remembered of an exchange once it is over.
//!
//! Reading order: `record` (what the stations of one exchange write), `outcome` (its numbers at the
//! end), `finished` (the same with names), `counters` (a core's sums), `meters` (what one adds to the
//! counts by label), `series` (the rows of these) with `labels` (numbers for names) and `histogram`
//! (buckets), `access` (the log line of one), `line` (any other line), `trace` (the spans of a sampled one,
//! `traced` at its end), `prometheus` (the sums as
//! text) with `families` (those by label) and `exposition` (its lines). All pure: the clock stands in
//! the record, and whoever owns a file or a socket writes the bytes.

pub mod access;
pub mod access_record;
pub mod counters;
pub mod exposition;
pub mod failed;
pub mod failures;
pub mod families;
pub mod finished;
pub mod histogram;
pub mod in_flight;
pub mod labels;
pub mod line;
pub mod meters;
pub mod outcome;
pub mod prometheus;
pub mod record;
pub mod ring;
pub mod series;
pub mod trace;
pub mod traced;
