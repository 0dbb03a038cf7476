//! How fast a wait queue empties, measured.
//!
//! Counted are grants, and the time in which somebody waited; their quotient is the rate. Both
//! are halved about every eleven grants, so the estimate speaks of the recent past on
//! whatever scale the servers work: milliseconds or minutes. The time since the last grant
//! counts too, so a queue that has stalled says so while it stalls. Time in which nobody waited
//! says nothing about the rate and is left out. Waiters that leave are not grants: the queue
//! must not look fast because its clients lost patience.

use std::time::Duration;

use crate::base::clock::Moment;

/// What stays of the past at each grant: 1/16 goes.
const KEPT: f64 = 15.0 / 16.0;
/// What the weighted number of grants never exceeds.
const GRANTS_MAX: f64 = 16.0;

/// The measured rate of one queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    grants: f64,
    /// Nanoseconds.
    waited: f64,
    /// Since when somebody has waited without a grant; meaningless while nobody waits.
    from: Moment,
}

impl Drain {
    /// What was measured: grants, and the time for which somebody waited, both as weighted.
    pub(super) fn measured(&self) -> (f64, Duration) {
        (self.grants, Duration::from_nanos(self.waited as u64))
    }

    /// Goes on from what another process measured, if nothing was measured here yet.
    pub(super) fn resume(&mut self, grants: f64, waited: Duration) {
        if self.grants == 0.0 && grants.is_finite() && grants > 0.0 {
            self.grants = grants.min(GRANTS_MAX);
            self.waited += waited.as_nanos() as f64;
        }
    }

    /// Somebody waits where nobody did.
    pub(super) fn begin(&mut self, now: Moment) {
        self.from = now;
    }

    /// A slot was granted.
    pub(super) fn record(&mut self, now: Moment) {
        self.grants = self.grants * KEPT + 1.0;
        self.waited = self.waited * KEPT + self.pending(now);
        self.from = now;
    }

    /// The last waiter left without a slot.
    pub(super) fn end(&mut self, now: Moment) {
        self.waited += self.pending(now);
        self.from = now;
    }

    /// How long `grants` more will take; `None` before the first one was seen.
    pub(super) fn forecast(&self, grants: u32, waiting: bool, now: Moment) -> Option<Duration> {
        let pending = if waiting { self.pending(now) } else { 0.0 };
        (self.grants > 0.0).then(|| {
            let nanos = f64::from(grants) * (self.waited + pending) / self.grants;
            // The cast saturates.
            Duration::from_nanos(nanos.round() as u64)
        })
    }

    fn pending(&self, now: Moment) -> f64 {
        now.since(self.from).as_nanos() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn a_steady_rate_is_measured_on_any_scale() {
        for step in [1u64, 250, 90_000] {
            let mut drain = Drain::default();
            drain.begin(ms(5));
            (1..=40).for_each(|i| drain.record(ms(5 + i * step)));
            let forecast = drain.forecast(10, true, ms(5 + 40 * step)).unwrap().as_secs_f64() * 1e3;
            assert!((forecast / (10 * step) as f64 - 1.0).abs() < 1e-9, "{step}: {forecast}");
        }
    }

    #[test]
    fn a_change_of_rate_shows_within_a_few_dozen_grants() {
        let mut drain = Drain::default();
        drain.begin(ms(0));
        (1..=1000).for_each(|i| drain.record(ms(i)));
        (1..=48).for_each(|i| drain.record(ms(1000 + i * 100)));
        let each = drain.forecast(1, true, ms(1000 + 4800)).unwrap().as_secs_f64() * 1e3;
        assert!((90.0..=100.0).contains(&each), "{each}");
    }

    #[test]
    fn a_stall_shows_and_an_empty_room_does_not_age() {
        let mut drain = Drain::default();
        assert_eq!(drain.forecast(1, false, ms(9)), None);
        drain.begin(ms(0));
        (1..=16).for_each(|i| drain.record(ms(i * 10)));
        let before = drain.forecast(1, true, ms(160)).unwrap();
        assert!(drain.forecast(1, true, ms(60_160)).unwrap() > 100 * before);
        drain.end(ms(160));
        assert_eq!(drain.forecast(1, false, ms(9_000_000)), Some(before));
    }
}
