//! A core's sums over all its exchanges, plain integers.
//!
//! Each core owns one `Counters` and adds to it without atomics; once a second every core hands out
//! a copy, and at a scrape the copies are merged. It knows no labels: what is counted by listener,
//! group, upstream, model or key stands in rows (`series`).

use super::histogram::Histogram;
use super::outcome::Outcome;
use crate::base::clock::micros;
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
    /// Waits for a place at a busy group, in microseconds; only exchanges that waited.
    pub queue_us: Histogram,
    /// Times to the response head, in microseconds.
    pub first_byte_us: Histogram,
    /// Times that we took ourselves before an upstream was picked, in microseconds.
    pub overhead_us: Histogram,
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
        if outcome.queue_us > 0 {
            self.queue_us.record_us(outcome.queue_us);
        }
        if let Some(us) = outcome.first_byte_us {
            self.first_byte_us.record_us(us);
        }
        if let Some(own) = outcome.overhead() {
            self.overhead_us.record_us(micros(own));
        }
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
        self.queue_us.merge(&other.queue_us);
        self.first_byte_us.merge(&other.first_byte_us);
        self.overhead_us.merge(&other.overhead_us);
    }

    /// Returns how many exchanges ended in `finish`.
    pub fn finished(&self, finish: Finish) -> u64 {
        self.by_finish[finish as usize]
    }
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
        assert_eq!((c.first_byte_us.count(), c.queue_us.count(), c.overhead_us.count()), (0, 0, 0));
    }

    #[test]
    fn forged_sizes_do_not_overflow() {
        let mut c = Counters::default();
        let forged = Outcome { request_bytes: u64::MAX, ..Outcome::default() };
        c.record(&forged);
        c.record(&forged);
        assert_eq!(c.request_bytes, u64::MAX);
    }

    proptest! {
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
