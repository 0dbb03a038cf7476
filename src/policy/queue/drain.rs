//! How fast a wait queue empties, measured.
//!
//! Counted are grants, and the time in which somebody waited; their quotient is the rate. Both
//! are halved about every eleven grants, so the estimate speaks of the recent past on
//! whatever scale the servers work: milliseconds or minutes. The time since the last grant
//! counts too, so a queue that has stalled says so while it stalls. Time in which nobody waited
//! says nothing about the rate and is left out. Waiters that leave are not grants: the queue
//! must not look fast because its clients lost patience.

/// What stays of the past at each grant: 1/16 goes.
const KEPT: f64 = 15.0 / 16.0;

/// The measured rate of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    grants: f64,
    waited_ms: f64,
    /// Since when somebody has waited without a grant; meaningless while nobody waits.
    from_ms: u64,
}

impl Drain {
    /// Somebody waits where nobody did.
    pub(super) fn begin(&mut self, now_ms: u64) {
        self.from_ms = now_ms;
    }

    /// A slot was granted.
    pub(super) fn record(&mut self, now_ms: u64) {
        self.grants = self.grants * KEPT + 1.0;
        self.waited_ms = self.waited_ms * KEPT + self.pending_ms(now_ms);
        self.from_ms = now_ms;
    }

    /// The last waiter left without a slot.
    pub(super) fn end(&mut self, now_ms: u64) {
        self.waited_ms += self.pending_ms(now_ms);
        self.from_ms = now_ms;
    }

    /// How long `grants` more will take; `None` before the first one was seen.
    pub(super) fn forecast_ms(&self, grants: u32, waiting: bool, now_ms: u64) -> Option<f64> {
        let pending = if waiting { self.pending_ms(now_ms) } else { 0.0 };
        (self.grants > 0.0).then(|| f64::from(grants) * (self.waited_ms + pending) / self.grants)
    }

    fn pending_ms(&self, now_ms: u64) -> f64 {
        now_ms.saturating_sub(self.from_ms) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_rate_is_measured_on_any_scale() {
        for step in [1u64, 250, 90_000] {
            let mut drain = Drain::default();
            drain.begin(5);
            (1..=40).for_each(|i| drain.record(5 + i * step));
            let forecast = drain.forecast_ms(10, true, 5 + 40 * step).unwrap();
            assert!((forecast / (10 * step) as f64 - 1.0).abs() < 1e-9, "{step}: {forecast}");
        }
    }

    #[test]
    fn a_change_of_rate_shows_within_a_few_dozen_grants() {
        let mut drain = Drain::default();
        drain.begin(0);
        (1..=1000).for_each(|i| drain.record(i));
        (1..=48).for_each(|i| drain.record(1000 + i * 100));
        let each = drain.forecast_ms(1, true, 1000 + 4800).unwrap();
        assert!((90.0..=100.0).contains(&each), "{each}");
    }

    #[test]
    fn a_stall_shows_and_an_empty_room_does_not_age() {
        let mut drain = Drain::default();
        assert_eq!(drain.forecast_ms(1, false, 9), None);
        drain.begin(0);
        (1..=16).for_each(|i| drain.record(i * 10));
        let before = drain.forecast_ms(1, true, 160).unwrap();
        assert!(drain.forecast_ms(1, true, 60_160).unwrap() > 100.0 * before);
        drain.end(160);
        assert_eq!(drain.forecast_ms(1, false, 9_000_000), Some(before));
    }
}
