//! What is compared: five times of a request, between two targets.
//!
//! The one idea: the k-th request of one target and the k-th of the other are the same
//! request, so their difference is the target's, not the prompt's. A pair counts when
//! both have the time; that of a failed request is no time. Each target's failures are
//! told beside it, since a target that fails what is slow looks fast here.

use super::bootstrap::{Differences, Pair, differences};
use crate::run::Row;

/// A time of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// From when it was due to the end of its answer.
    Latency,
    /// From when it was due to the first byte of its answer.
    FirstByte,
    /// From when it was due to the first piece of text of a stream.
    FirstToken,
    /// The mean time between two pieces of text.
    InterToken,
    /// The standard deviation of the times between two pieces of text.
    Jitter,
}

impl Quantity {
    /// All of them, in the order in which they are told.
    pub const ALL: [Quantity; 5] = [
        Quantity::Latency,
        Quantity::FirstByte,
        Quantity::FirstToken,
        Quantity::InterToken,
        Quantity::Jitter,
    ];

    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Quantity::Latency => "latency",
            Quantity::FirstByte => "first_byte",
            Quantity::FirstToken => "first_token",
            Quantity::InterToken => "inter_token",
            Quantity::Jitter => "jitter",
        }
    }

    /// The time in microseconds; `None` when the request has none.
    pub fn of(self, row: &Row) -> Option<u64> {
        // What was left on purpose was right as far as it came, and has no end.
        if !(row.ok || (row.aborted && self != Quantity::Latency)) {
            return None;
        }
        match self {
            Quantity::Latency => Some(row.latency_us()),
            Quantity::FirstByte => Some(row.first_byte_us?.saturating_sub(row.intended_us)),
            Quantity::FirstToken => row.ttft_us(),
            Quantity::InterToken => row.inter_token_mean_us,
            Quantity::Jitter => row.inter_token_jitter_us,
        }
    }
}

/// How one time differs between two targets.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The target whose time it is.
    pub of: &'static str,
    /// The target whose time is taken from it.
    pub against: &'static str,
    /// Which time.
    pub quantity: Quantity,
    /// The differences, in microseconds.
    pub differences: Differences,
}

/// One target's rows, in the order of the schedule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    pub(super) name: &'static str,
    pub(super) rows: &'a [Row],
}

/// The times of `of` less those of `against`; `rounds` are those of the schedule. A time
/// that no pair has is left out.
pub(super) fn compare(
    of: Side<'_>,
    against: Side<'_>,
    rounds: &[u32],
    resamples: u32,
    seed: u64,
) -> Vec<Change> {
    let pairs = pair(of.rows, against.rows);
    let change = |quantity: Quantity| {
        let paired = |(one, other): &(&Row, &Row)| {
            Some(Pair {
                block: rounds.get(usize::try_from(one.id).ok()?).copied()?,
                of: quantity.of(one)? as f64,
                against: quantity.of(other)? as f64,
            })
        };
        let paired: Vec<Pair> = pairs.iter().filter_map(paired).collect();
        let differences = differences(&paired, resamples, seed)?;
        Some(Change { of: of.name, against: against.name, quantity, differences })
    };
    Quantity::ALL.into_iter().filter_map(change).collect()
}

/// The rows of the same request; both lists are in the order of their ids.
fn pair<'a>(of: &'a [Row], against: &'a [Row]) -> Vec<(&'a Row, &'a Row)> {
    let other = |row: &'a Row| {
        let at = against.binary_search_by_key(&row.id, |row| row.id).ok()?;
        Some((row, against.get(at)?))
    };
    of.iter().filter_map(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: u64, took_us: u64, ok: bool) -> Row {
        let intended_us = id * 1000;
        let first = Some(intended_us + took_us / 2);
        Row {
            id,
            intended_us,
            first_byte_us: first,
            first_token_us: first,
            done_us: intended_us + took_us,
            ok,
            ..Row::default()
        }
    }

    #[test]
    fn only_pairs_that_both_have_count() {
        let fast: Vec<Row> = (0..6).map(|id| row(id, 100, id != 2)).collect();
        let slow: Vec<Row> = [0, 1, 2, 4, 5].map(|id| row(id, 300, id != 5)).into();
        let side = |name, rows| Side { name, rows };
        let told = compare(side("b", &slow), side("a", &fast), &[0, 0, 0, 1, 1, 1], 50, 1);
        let names: Vec<_> = told.iter().map(|change| change.quantity.name()).collect();
        assert_eq!(names, ["latency", "first_byte", "first_token"], "no gaps, no line");
        let latency = &told[0];
        assert_eq!((latency.of, latency.against, latency.differences.pairs), ("b", "a", 3));
        assert_eq!(latency.differences.p50.value, 200.0);
        assert_eq!(latency.differences.p50.interval, Some((200.0, 200.0)));
        assert_eq!(told[1].differences.p99.value, 100.0);
    }

    #[test]
    fn what_was_left_on_purpose_has_no_latency() {
        let left = Row { aborted: true, ok: false, ..row(1, 100, false) };
        assert_eq!(Quantity::Latency.of(&left), None);
        assert_eq!(Quantity::FirstToken.of(&left), Some(50));
        assert_eq!(Quantity::FirstToken.of(&row(1, 100, false)), None);
    }
}
