//! A core's sums over all its exchanges, plain integers.
//!
//! Each core owns one `Counters` and adds to it without atomics; at a scrape every
//! core hands out a copy and the copies are merged. Times go into histograms of
//! powers of two: bucket 0 holds 0, bucket n holds 2^(n-1)..2^n. That is coarse
//! (a factor of two) and costs one `leading_zeros` and one add; the error is known
//! and the same at a microsecond and at an hour.
//!
//! It knows no labels: who needs a sum per upstream or per model keeps one
//! `Counters` for each.

use super::outcome::Outcome;
use crate::error::Finish;

/// Sums over exchanges. All fields only ever grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Exchanges that ended.
    pub exchanges: u64,
    /// By status class: index 1..=5 is 1xx..5xx, index 0 is "no response".
    pub by_class: [u64; 6],
    /// By end state, indexed by `Finish as usize`.
    pub by_finish: [u64; Finish::ALL.len()],
    /// Attempts made upstream.
    pub attempts: u64,
    /// Attempts beyond an exchange's first.
    pub retries: u64,
    /// Exchanges whose last attempt used a pooled connection.
    pub reused: u64,
    /// Exchanges answered with a stream of events.
    pub streamed: u64,
    /// Request body bytes.
    pub request_bytes: u64,
    /// Response body bytes.
    pub response_bytes: u64,
    /// Prompt tokens, where reported.
    pub prompt_tokens: u64,
    /// Completion tokens, where reported.
    pub completion_tokens: u64,
    /// Waits for a place at a busy group, in microseconds; only exchanges that waited.
    pub queue_us: Histogram,
    /// Times to the response head, in microseconds.
    pub first_byte_us: Histogram,
    /// Times to the first token, in microseconds.
    pub first_token_us: Histogram,
    /// Durations of whole exchanges, in microseconds.
    pub duration_us: Histogram,
}

impl Counters {
    /// Adds one exchange.
    pub fn record(&mut self, outcome: &Outcome) {
        self.exchanges += 1;
        let class = usize::from(outcome.status / 100);
        // An upstream may send any three digits; 6xx and above count as none.
        self.by_class[if class < self.by_class.len() { class } else { 0 }] += 1;
        self.by_finish[outcome.finish() as usize] += 1;
        self.attempts += u64::from(outcome.attempts);
        self.retries += u64::from(outcome.retries());
        self.reused += u64::from(outcome.reused);
        self.streamed += u64::from(outcome.streamed);
        add(&mut self.request_bytes, outcome.request_bytes);
        add(&mut self.response_bytes, outcome.response_bytes);
        add(&mut self.prompt_tokens, outcome.prompt_tokens.unwrap_or(0));
        add(&mut self.completion_tokens, outcome.completion_tokens.unwrap_or(0));
        if outcome.queue_us > 0 {
            self.queue_us.record(outcome.queue_us);
        }
        if let Some(us) = outcome.first_byte_us {
            self.first_byte_us.record(us);
        }
        if let Some(us) = outcome.first_token_us {
            self.first_token_us.record(us);
        }
        self.duration_us.record(outcome.duration_us);
    }

    /// Adds the sums of another core.
    pub fn merge(&mut self, other: &Counters) {
        self.exchanges += other.exchanges;
        add_all(&mut self.by_class, &other.by_class);
        add_all(&mut self.by_finish, &other.by_finish);
        self.attempts += other.attempts;
        self.retries += other.retries;
        self.reused += other.reused;
        self.streamed += other.streamed;
        add(&mut self.request_bytes, other.request_bytes);
        add(&mut self.response_bytes, other.response_bytes);
        add(&mut self.prompt_tokens, other.prompt_tokens);
        add(&mut self.completion_tokens, other.completion_tokens);
        self.queue_us.merge(&other.queue_us);
        self.first_byte_us.merge(&other.first_byte_us);
        self.first_token_us.merge(&other.first_token_us);
        self.duration_us.merge(&other.duration_us);
    }

    /// Returns how many exchanges ended in `finish`.
    pub fn finished(&self, finish: Finish) -> u64 {
        self.by_finish[finish as usize]
    }
}

/// Buckets of a histogram: 2^40 µs are twelve days, and the last takes all above.
pub const BUCKETS: usize = 42;

/// Counts of values by power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; BUCKETS],
    sum: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; BUCKETS], sum: 0 }
    }
}

impl Histogram {
    /// Adds one value.
    pub fn record(&mut self, value: u64) {
        self.counts[bucket_of(value)] += 1;
        add(&mut self.sum, value);
    }

    /// Adds the counts of another histogram.
    pub fn merge(&mut self, other: &Histogram) {
        add_all(&mut self.counts, &other.counts);
        add(&mut self.sum, other.sum);
    }

    /// Returns how many values there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Walks the buckets from low to high as (largest value that the bucket holds, its count);
    /// the last bound is `u64::MAX`.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.counts.iter().enumerate().map(|(i, n)| (bound_of(i), *n))
    }

    /// Returns a value that at least `share` of all values do not exceed, at most twice
    /// too high; `None` when there are no values.
    ///
    /// Units: `share` is within `0.0..=1.0`.
    pub fn quantile(&self, share: f64) -> Option<u64> {
        let count = self.count();
        if count == 0 {
            return None;
        }
        let rank = ((count as f64 * share).ceil() as u64).clamp(1, count);
        let mut seen = 0;
        for (bound, n) in self.buckets() {
            seen += n;
            if seen >= rank {
                return Some(bound);
            }
        }
        None
    }
}

/// Returns the bucket of `value`: the number of its significant bits, at most the last.
fn bucket_of(value: u64) -> usize {
    ((u64::BITS - value.leading_zeros()) as usize).min(BUCKETS - 1)
}

/// Returns the largest value of bucket `index`.
fn bound_of(index: usize) -> u64 {
    if index >= BUCKETS - 1 { u64::MAX } else { (1 << index) - 1 }
}

/// Adds what the network chose: a forged token count must not overflow.
fn add(sum: &mut u64, value: u64) {
    *sum = sum.saturating_add(value);
}

fn add_all(sums: &mut [u64], values: &[u64]) {
    for (sum, value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use proptest::prelude::*;

    #[test]
    fn counts_by_class_and_finish() {
        let mut c = Counters::default();
        c.record(&Outcome { status: 200, attempts: 2, reused: true, ..Outcome::default() });
        c.record(&Outcome {
            status: 503,
            fault: Some(Kind::NobodyAvailable.into()),
            ..Outcome::default()
        });
        c.record(&Outcome { status: 999, ..Outcome::default() });
        assert_eq!(c.exchanges, 3);
        assert_eq!(c.by_class, [1, 0, 1, 0, 0, 1]);
        assert_eq!(c.finished(Finish::Unavailable), 1);
        assert_eq!(c.finished(Finish::Ok), 2);
        assert_eq!((c.attempts, c.retries, c.reused), (2, 1, 1));
    }

    #[test]
    fn leaves_out_what_was_not_measured() {
        let mut c = Counters::default();
        c.record(&Outcome::default());
        assert_eq!((c.first_byte_us.count(), c.first_token_us.count()), (0, 0));
        assert_eq!((c.queue_us.count(), c.duration_us.count()), (0, 1));
    }

    #[test]
    fn forged_token_counts_do_not_overflow() {
        let mut c = Counters::default();
        let forged = Outcome { prompt_tokens: Some(u64::MAX), ..Outcome::default() };
        c.record(&forged);
        c.record(&forged);
        assert_eq!(c.prompt_tokens, u64::MAX);
    }

    #[test]
    fn quantiles_of_nothing_are_nothing() {
        assert_eq!(Histogram::default().quantile(0.5), None);
    }

    proptest! {
        #[test]
        fn every_value_lies_within_its_bucket(value in any::<u64>()) {
            let i = bucket_of(value);
            prop_assert!(value <= bound_of(i));
            prop_assert!(i == 0 || value > bound_of(i - 1));
        }

        #[test]
        fn quantile_is_never_too_low_and_at_most_twice_too_high(
            mut values in proptest::collection::vec(0u64..1 << 39, 1..60), share in 0.0f64..=1.0,
        ) {
            let mut h = Histogram::default();
            values.iter().for_each(|v| h.record(*v));
            values.sort_unstable();
            let rank = ((values.len() as f64 * share).ceil() as usize).clamp(1, values.len());
            let exact = values[rank - 1];
            let told = h.quantile(share).unwrap();
            prop_assert!(told >= exact && told <= exact.saturating_mul(2));
        }

        #[test]
        fn merging_cores_equals_one_core(
            values in proptest::collection::vec((any::<u16>(), any::<u64>(), any::<bool>()), 0..40),
        ) {
            let (mut one, mut a, mut b) = (Counters::default(), Counters::default(), Counters::default());
            for (i, (status, us, reused)) in values.iter().enumerate() {
                let o = Outcome {
                    status: *status, duration_us: *us, reused: *reused,
                    first_byte_us: reused.then_some(*us), queue_us: *us % 3,
                    ..Outcome::default()
                };
                one.record(&o);
                if i % 2 == 0 { a.record(&o) } else { b.record(&o) }
            }
            a.merge(&b);
            prop_assert_eq!(a, one);
        }
    }
}
