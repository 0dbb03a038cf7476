//! How sure a difference is: medians and tails of pairs, with a bootstrap interval.
//!
//! The one idea: neighbours in time share their luck, so whole blocks are drawn again
//! and not single pairs (a busy second would otherwise count as fifty witnesses). The
//! values are sorted once; a resample is then only a number of copies for each block,
//! and a quantile a walk along the sorted values, without another sort.
//!
//! Source: Efron, "Bootstrap methods: another look at the jackknife", 1979 (percentile
//! intervals); Künsch, 1989, for blocks. It corrects no bias: with few blocks the
//! interval is too narrow. No clock and no socket.

use crate::text::mix;

/// One request, sent to two targets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// The block in which both were sent.
    pub block: u32,
    /// What was measured at the one.
    pub of: f64,
    /// What was measured at the other, which is taken from it.
    pub against: f64,
}

/// A number, and between which numbers it is likely to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Of the pairs as they are.
    pub value: f64,
    /// From the 2.5th to the 97.5th percentile of the resamples; none when all pairs are
    /// of one block, which tells nothing about another.
    pub interval: Option<(f64, f64)>,
}

/// What is told of the differences of pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Differences {
    /// Pairs that count.
    pub pairs: usize,
    /// Blocks that they are of.
    pub blocks: usize,
    /// The median of the differences `of - against`.
    pub p50: Estimate,
    /// The 99th percentile of `of` less that of `against`: what the tail has grown by.
    pub p99: Estimate,
}

/// Median and tail of the differences, with 95 % intervals of so many resamples.
///
/// Shape: `None` without a pair of finite numbers; the same seed gives the same
/// intervals. Quantiles are nearest ranks, so every median is one of the differences.
pub fn differences(pairs: &[Pair], resamples: u32, seed: u64) -> Option<Differences> {
    let finite = |pair: &&Pair| (pair.of - pair.against).is_finite();
    let mut ids: Vec<u32> = pairs.iter().filter(finite).map(|pair| pair.block).collect();
    ids.sort_unstable();
    ids.dedup();
    let column = |value: fn(&Pair) -> f64| {
        let place = |pair: &Pair| Some((value(pair), ids.binary_search(&pair.block).ok()?));
        Sorted::new(pairs.iter().filter(finite).filter_map(place).collect())
    };
    let gaps = column(|pair| pair.of - pair.against);
    let (of, against) = (column(|pair| pair.of), column(|pair| pair.against));
    let told = |copies: &[u32]| {
        let tail = of.quantile(0.99, copies)? - against.quantile(0.99, copies)?;
        Some((gaps.quantile(0.5, copies)?, tail))
    };
    let (median, tail) = told(&vec![1; ids.len()])?;
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    if ids.len() > 1 {
        let mut copies = vec![0; ids.len()];
        for resample in 0..resamples {
            draw(&mut copies, mix(seed ^ mix(u64::from(resample))));
            if let Some((median, tail)) = told(&copies) {
                medians.push(median);
                tails.push(tail);
            }
        }
    }
    Some(Differences {
        pairs: gaps.values.len(),
        blocks: ids.len(),
        p50: Estimate { value: median, interval: middle(medians) },
        p99: Estimate { value: tail, interval: middle(tails) },
    })
}

/// Draws as many blocks as there are, with return, and counts the copies of each.
fn draw(copies: &mut [u32], seed: u64) {
    copies.fill(0);
    let blocks = copies.len() as u64;
    for drawn in 0..blocks {
        // The remainder is uneven by blocks / 2^64.
        let at = (mix(seed ^ mix(drawn)) % blocks) as usize;
        if let Some(copies) = copies.get_mut(at) {
            *copies += 1;
        }
    }
}

/// The middle 95 % of resampled values.
fn middle(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| {
        let rank = (share * values.len() as f64).ceil() as usize;
        values.get(rank.max(1) - 1).copied()
    };
    Some((at(0.025)?, at(0.975)?))
}

/// Values in their order, each with the place of its block.
struct Sorted {
    values: Vec<(f64, usize)>,
    /// How many values each block has.
    sizes: Vec<u64>,
}

impl Sorted {
    fn new(mut values: Vec<(f64, usize)>) -> Sorted {
        values.sort_unstable_by(|one, other| one.0.total_cmp(&other.0));
        let mut sizes = vec![0; values.iter().map(|(_, block)| block + 1).max().unwrap_or(0)];
        for (_, block) in &values {
            if let Some(size) = sizes.get_mut(*block) {
                *size += 1;
            }
        }
        Sorted { values, sizes }
    }

    /// The value of nearest rank when each block is there so many times.
    fn quantile(&self, share: f64, copies: &[u32]) -> Option<f64> {
        let times = |block: usize| u64::from(copies.get(block).copied().unwrap_or(0));
        let total: u64 =
            self.sizes.iter().enumerate().map(|(block, size)| size * times(block)).sum();
        let rank = ((share * total as f64).ceil() as u64).clamp(1, total.max(1));
        // From the nearer end: a tail is a short walk.
        if share <= 0.5 {
            let mut before = 0;
            self.values.iter().find(|(_, block)| {
                before += times(*block);
                before >= rank
            })
        } else {
            let (mut behind, want) = (0, (total + 1).saturating_sub(rank));
            self.values.iter().rev().find(|(_, block)| {
                behind += times(*block);
                behind >= want && behind > 0
            })
        }
        .map(|(value, _)| *value)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// In (0, 1).
    fn uniform(seed: u64, index: u64) -> f64 {
        ((mix(seed ^ mix(index)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Nearly normal, with deviation 1.
    fn normal(seed: u64, index: u64) -> f64 {
        (0..12).map(|part| uniform(seed, index * 12 + part)).sum::<f64>() - 6.0
    }

    fn covers(estimate: Estimate, value: f64) -> bool {
        estimate.interval.is_some_and(|(low, high)| low <= value && value <= high)
    }

    #[test]
    fn nothing_gives_nothing_and_one_block_no_interval() {
        assert_eq!(differences(&[], 100, 1), None);
        let broken = Pair { block: 0, of: f64::NAN, against: 1.0 };
        assert_eq!(differences(&[broken], 100, 1), None);
        let one = differences(&[Pair { block: 7, of: 5.0, against: 2.0 }, broken], 100, 1).unwrap();
        assert_eq!((one.pairs, one.blocks), (1, 1));
        assert_eq!(one.p50, Estimate { value: 3.0, interval: None });
        assert_eq!(one.p99, Estimate { value: 3.0, interval: None });
    }

    #[test]
    fn known_shift_is_found_and_zero_is_not() {
        let pairs: Vec<Pair> = (0..2000)
            .map(|index| Pair {
                block: (index / 50) as u32,
                of: 10.0 + normal(1, index) + 3.0,
                against: 10.0 + normal(2, index),
            })
            .collect();
        let told = differences(&pairs, 500, 9).unwrap();
        assert_eq!((told.pairs, told.blocks), (2000, 40));
        for estimate in [told.p50, told.p99] {
            assert!(covers(estimate, 3.0) && !covers(estimate, 0.0), "{estimate:?}");
            assert!((estimate.value - 3.0).abs() < 0.5, "{estimate:?}");
        }
        assert_eq!(differences(&pairs, 500, 9), Some(told));
        assert_ne!(differences(&pairs, 500, 10), Some(told));
    }

    /// How often the interval of the median covers the truth, 0, when the pairs of a
    /// block share their luck; `blocked` says whether the resampling knows.
    fn coverage(blocked: bool) -> f64 {
        let experiments = 300;
        let hits = (0..experiments).filter(|experiment| {
            let pair = |index: u64| Pair {
                block: if blocked { (index / 8) as u32 } else { index as u32 },
                of: normal(*experiment, index / 8) + 0.5 * normal(*experiment + 5000, index),
                against: 0.0,
            };
            let pairs: Vec<Pair> = (0..240).map(pair).collect();
            differences(&pairs, 300, *experiment).is_some_and(|told| covers(told.p50, 0.0))
        });
        hits.count() as f64 / experiments as f64
    }

    #[test]
    fn interval_covers_the_truth_as_often_as_it_says_only_with_blocks() {
        let with = coverage(true);
        assert!((0.90..=0.99).contains(&with), "{with}");
        let without = coverage(false);
        assert!(without < 0.75, "single pairs are too sure: {without}");
    }

    proptest! {
        #[test]
        fn quantiles_agree_with_a_sort_of_the_copies(
            values in prop::collection::vec((-50i32..50, 0usize..6), 1..60),
            copies in prop::collection::vec(0u32..4, 6),
            share in 0.01f64..1.0,
        ) {
            let values: Vec<(f64, usize)> =
                values.into_iter().map(|(value, block)| (f64::from(value), block)).collect();
            let mut copied: Vec<f64> = values
                .iter()
                .flat_map(|(value, block)| (0..copies[*block]).map(|_| *value))
                .collect();
            copied.sort_unstable_by(f64::total_cmp);
            let rank = ((share * copied.len() as f64).ceil() as usize).max(1);
            let told = Sorted::new(values).quantile(share, &copies);
            prop_assert_eq!(told, copied.get(rank - 1).copied());
        }

        #[test]
        fn no_number_that_is_none_comes_out(
            pairs in prop::collection::vec((0u32..5, any::<f64>(), any::<f64>()), 0..40),
        ) {
            let pairs: Vec<Pair> = pairs
                .into_iter()
                .map(|(block, of, against)| Pair { block, of, against })
                .collect();
            if let Some(told) = differences(&pairs, 50, 1) {
                let (low, high) = told.p50.interval.unwrap_or_default();
                prop_assert!(told.p50.value.is_finite() && low.is_finite() && low <= high);
            }
        }
    }
}
