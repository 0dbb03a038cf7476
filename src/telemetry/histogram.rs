//! The buckets of all histograms.
//!
//! One set of bounds for every family of times, so that any two can be compared, from a
//! millisecond to ten minutes: an embedding takes a few, a long completion several minutes. Sizes
//! in tokens have bounds of their own. Which bucket a value falls into is a search through 16
//! numbers.

/// Bounds of a histogram; one bucket more takes what is above the last.
pub const BOUNDS: usize = 16;
/// Where the sum stands, behind the buckets.
pub const SUM: usize = BOUNDS + 1;
/// Numbers of a histogram: its buckets and its sum.
pub const WIDTH: usize = SUM + 1;

/// Bounds of times, in microseconds, inclusive: 1 ms to 10 min.
pub const TIMES_US: [u64; BOUNDS] = [
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    180_000_000,
    600_000_000,
];

/// Bounds of counts of tokens, inclusive: the powers of four that OpenTelemetry advises, and two
/// between them where most prompts are.
///
/// Source: OpenTelemetry, "Semantic conventions for generative AI metrics",
/// `gen_ai.client.token.usage`.
pub const TOKENS: [u64; BOUNDS] = [
    1, 4, 16, 64, 256, 1_024, 2_048, 4_096, 8_192, 16_384, 65_536, 262_144, 1_048_576, 4_194_304,
    16_777_216, 67_108_864,
];

/// Which bucket a value falls into; `BOUNDS` = above all bounds.
#[must_use]
pub fn bucket_of(bounds: &[u64; BOUNDS], value: u64) -> usize {
    bounds.partition_point(|bound| *bound < value)
}

/// Counts of values by bucket, on one core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram([u64; WIDTH]);

impl Histogram {
    /// Adds a time in microseconds.
    pub fn record_us(&mut self, value: u64) {
        self.0[bucket_of(&TIMES_US, value)] += 1;
        self.0[SUM] = self.0[SUM].saturating_add(value);
    }

    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Histogram) {
        for (sum, value) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(value);
        }
    }

    /// The buckets and the sum.
    #[must_use]
    pub fn values(&self) -> &[u64] {
        &self.0
    }

    /// How many values there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0[..SUM].iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() {
        for bounds in [&TIMES_US, &TOKENS] {
            assert!(bounds.is_sorted());
            assert_eq!(bucket_of(bounds, 0), 0);
            for (at, &bound) in bounds.iter().enumerate() {
                assert_eq!((bucket_of(bounds, bound), bucket_of(bounds, bound + 1)), (at, at + 1));
            }
            assert_eq!(bucket_of(bounds, u64::MAX), BOUNDS);
        }
    }
}
