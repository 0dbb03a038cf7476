//! The buckets of all histograms.
//!
//! One set of bounds for every family of times, so that any two can be compared, from a
//! millisecond to ten minutes: an embedding takes a few, a long completion several minutes. Sizes
//! in tokens have bounds of their own. No two bounds have the same number of significant bits, so
//! that number and one comparison tell the bucket.

/// Bounds of a histogram; one bucket more takes what is above the last.
pub const BOUNDS: usize = 16;
/// Where the sum stands, behind the buckets.
pub const SUM: usize = BOUNDS + 1;
/// Numbers of a histogram: its buckets and its sum.
pub const WIDTH: usize = SUM + 1;

/// The bounds of a histogram, inclusive, ascending.
#[derive(Debug)]
pub struct Bounds {
    /// The bounds.
    pub all: [u64; BOUNDS],
    /// By number of significant bits: the first bound that has at least as many.
    first: [u8; u64::BITS as usize + 1],
}

impl Bounds {
    const fn new(all: [u64; BOUNDS]) -> Self {
        let mut first = [BOUNDS as u8; u64::BITS as usize + 1];
        let mut at = BOUNDS;
        let mut above = u64::BITS as usize + 1;
        while at > 0 {
            at -= 1;
            let bits = (u64::BITS - all[at].leading_zeros()) as usize;
            assert!(bits < above, "bounds ascend, and no two have as many bits");
            above = bits;
            let mut fewer = 0;
            while fewer <= bits {
                first[fewer] = at as u8;
                fewer += 1;
            }
        }
        Self { all, first }
    }

    /// Which bucket a value falls into; `BOUNDS` = above all bounds.
    #[must_use]
    pub fn bucket_of(&self, value: u64) -> usize {
        let first = usize::from(self.first[(u64::BITS - value.leading_zeros()) as usize]);
        first + usize::from(self.all.get(first).is_some_and(|bound| *bound < value))
    }
}

impl Bounds {
    /// The median of what these buckets count, as if values lay evenly within a bucket; of what is
    /// above the last bound, that bound. `None` = nothing is counted.
    #[must_use]
    pub fn median(&self, buckets: &[u64; SUM]) -> Option<u64> {
        let half = buckets.iter().sum::<u64>().div_ceil(2);
        let (mut below, mut from) = (0, 0);
        for (count, to) in buckets.iter().zip(self.all) {
            if *count > 0 && below + count >= half {
                let within = u128::from(to - from) * u128::from(half - below) / u128::from(*count);
                return Some(from + within as u64);
            }
            (below, from) = (below + count, to);
        }
        (half > 0).then_some(from)
    }
}

/// Bounds of times, in microseconds: 1 ms to 10 min.
pub static TIMES_US: Bounds = Bounds::new([
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
]);

/// Bounds of counts of tokens: the powers of four that OpenTelemetry advises, and two
/// between them where most prompts are.
///
/// Source: OpenTelemetry, "Semantic conventions for generative AI metrics",
/// `gen_ai.client.token.usage`.
pub static TOKENS: Bounds = Bounds::new([
    1, 4, 16, 64, 256, 1_024, 2_048, 4_096, 8_192, 16_384, 65_536, 262_144, 1_048_576, 4_194_304,
    16_777_216, 67_108_864,
]);

/// Counts of values by bucket, on one core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram([u64; WIDTH]);

impl Histogram {
    /// Adds a time in microseconds.
    pub fn record_us(&mut self, value: u64) {
        self.0[TIMES_US.bucket_of(value)] += 1;
        self.0[SUM] = self.0[SUM].saturating_add(value);
    }

    /// Adds the counts of another one.
    pub fn merge(&mut self, other: &Histogram) {
        for (sum, value) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(value);
        }
    }

    /// The histogram with these buckets and this sum; `None` when they are too few or too many.
    #[must_use]
    pub fn of(values: &[u64]) -> Option<Self> {
        values.try_into().ok().map(Self)
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
    fn the_median_lies_within_its_bucket() {
        let check = |counts: &[(usize, u64)], expected: Option<u64>| {
            let mut buckets = [0; SUM];
            counts.iter().for_each(|(at, count)| buckets[*at] = *count);
            assert_eq!(TIMES_US.median(&buckets), expected, "{counts:?}");
        };
        check(&[], None);
        check(&[(0, 1)], Some(1_000));
        check(&[(2, 2)], Some(7_500));
        check(&[(1, 3), (6, 97)], Some(100_000 + 150_000 * 47 / 97));
        check(&[(0, 1), (SUM - 1, 9)], Some(600_000_000));
    }

    #[test]
    fn a_value_falls_into_the_first_bucket_whose_bound_it_does_not_exceed() {
        for bounds in [&TIMES_US, &TOKENS] {
            assert_eq!(bounds.bucket_of(0), 0);
            for (at, &bound) in bounds.all.iter().enumerate() {
                for (value, bucket) in [(bound - 1, at), (bound, at), (bound + 1, at + 1)] {
                    let slow = bounds.all.partition_point(|bound| *bound < value);
                    assert_eq!(bounds.bucket_of(value), slow, "{value}");
                    assert!(bucket == slow || bound == 1 || value + 1 == bound, "{value}");
                }
            }
            assert_eq!(bounds.bucket_of(u64::MAX), BOUNDS);
        }
    }
}
