//! Scales: from a value to a place on a chart, and the round values written beside it.

/// Most parts of a hundred thousand: the axis of nines ends at p99.999.
const NINES_MAX: f64 = 5.0;
/// Percentiles written on the axis of nines.
const NAMED: [(f64, &str); 7] = [
    (0.0, "min"),
    (0.5, "p50"),
    (0.9, "p90"),
    (0.99, "p99"),
    (0.999, "p99.9"),
    (0.9999, "p99.99"),
    (0.99999, "p99.999"),
];

/// One direction of a chart: `low < high`, and ticks within them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// What it measures, with its unit.
    pub(super) title: String,
    /// The value at its beginning.
    pub(super) low: f64,
    /// The value at its end.
    pub(super) high: f64,
    /// Values and what is written beside them.
    pub(super) ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Where a value lies, from 0 to 1; what is outside stays at the edge.
    pub(super) fn place(&self, value: f64) -> f64 {
        ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0)
    }

    /// An axis of times that holds all of these, in microseconds, in the unit that reads best.
    pub(super) fn of_times(title: &str, low_us: f64, high_us: f64) -> Axis {
        let (name, us) = unit(low_us.abs().max(high_us.abs()));
        let ticks = ticks(low_us / us, high_us / us, 6);
        let step = ticks.get(1).map_or(1.0, |second| second - ticks[0]);
        let decimals = if step >= 1.0 { 0 } else { (-step.log10()).ceil() as usize };
        let (low, high) = (ticks[0], ticks[ticks.len() - 1]);
        Axis {
            title: format!("{title}, {name}"),
            low: low * us,
            high: high * us,
            ticks: ticks.iter().map(|at| (at * us, format!("{at:.decimals$}"))).collect(),
        }
    }

    /// The axis of percentiles for so many samples: each nine takes the same room.
    pub(super) fn of_nines(samples: usize) -> Axis {
        let high = (samples.max(2) as f64).log10().min(NINES_MAX);
        let named = NAMED.iter().map(|(share, name)| (nines(*share), (*name).to_owned()));
        Axis {
            title: "requests that took no longer".to_owned(),
            low: 0.0,
            high,
            ticks: named.filter(|(at, _)| *at <= high + 1e-9).collect(),
        }
    }

    /// The axis of shares, 0 to 100 %.
    pub(super) fn of_shares() -> Axis {
        let ticks = (0..=4).map(|n| (f64::from(n) / 4.0, format!("{} %", n * 25))).collect();
        Axis { title: "share of requests".to_owned(), low: 0.0, high: 1.0, ticks }
    }
}

/// Where a percentile lies on the axis of nines: p90 at 1, p99 at 2.
pub(super) fn nines(share: f64) -> f64 {
    -(1.0 - share).log10()
}

/// The unit in which times up to `most_us` read best, and its length in microseconds.
pub(super) fn unit(most_us: f64) -> (&'static str, f64) {
    match most_us {
        most if most < 1e3 => ("µs", 1.0),
        most if most < 1e6 => ("ms", 1e3),
        _ => ("s", 1e6),
    }
}

/// Round values, in steps of 1, 2 or 5, from at or below `low` to at or above `high`.
///
/// Shape: at least two; `about` of them, more or less.
pub(super) fn ticks(low: f64, high: f64, about: usize) -> Vec<f64> {
    let range = if high - low > 1e-9 { high - low } else { low.abs().max(1.0) * 0.1 };
    let rough = range / about.max(1) as f64;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(10.0 * power);
    let first = (low / step).floor();
    let last = (high / step).ceil().max(first + 1.0);
    (0..=(last - first) as usize).map(|n| (first + n as f64) * step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_nine_takes_the_same_room() {
        let axis = Axis::of_nines(1000);
        let names: Vec<&str> = axis.ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(names, ["min", "p50", "p90", "p99", "p99.9"]);
        assert!((axis.place(nines(0.99)) - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(axis.place(nines(1.0)), 1.0);
    }

    #[test]
    fn times_are_told_in_the_unit_that_reads_best() {
        for (high_us, title) in [(900.0, "x, µs"), (9e5, "x, ms"), (9e6, "x, s")] {
            assert_eq!(Axis::of_times("x", 0.0, high_us).title, title);
        }
        let axis = Axis::of_times("x", -250.0, 1_300.0);
        let told: Vec<&str> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(told, ["-0.5", "0.0", "0.5", "1.0", "1.5"]);
    }

    proptest! {
        #[test]
        fn ticks_are_few_rise_and_hold_the_range(
            low in -1e9f64..1e9, width in 0.0f64..1e9, about in 1usize..12,
        ) {
            let found = ticks(low, low + width, about);
            prop_assert!((2..=2 * about + 3).contains(&found.len()), "{found:?}");
            prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]));
            let slack = 1e-6 * (low.abs() + width + 1.0);
            prop_assert!(found[0] <= low + slack && found[found.len() - 1] >= low + width - slack);
        }
    }
}
