//! What probes have found out about one upstream.
//!
//! `fall` failures in a row make it unhealthy, `rise` successes in a row healthy again.
//! One that has not been probed often enough to tell counts as healthy: a fleet must not
//! start dark. The prober on the control thread owns this state and publishes the
//! answer; what requests find out on their own is the breaker's, and both must agree.

/// Health by probes of one upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthState {
    fall: u32,
    rise: u32,
    health: Health,
    /// Probes in a row that contradict `health`; `0 <= against < fall or rise`.
    against: u32,
}

/// What is known.
///
/// ```text
/// Unknown ── success ──▶ Healthy ── fall failures ──▶ Unhealthy
///    └────── fall failures ──────────────────────────────▲ │
///                         Healthy ◀── rise successes ──────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not probed yet; counts as healthy.
    Unknown,
    /// The last probes say so.
    Healthy,
    /// It fell and has not risen.
    Unhealthy,
}

/// A change that those who pick must hear of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthChange {
    /// It is to be left alone.
    Fell,
    /// It may be used again.
    Rose,
}

impl HealthState {
    /// Begins unknown; thresholds of 0 act as 1.
    pub fn new(fall: u32, rise: u32) -> HealthState {
        HealthState { fall: fall.max(1), rise: rise.max(1), health: Health::Unknown, against: 0 }
    }

    /// Counts one probe; tells when it has changed who may be picked.
    pub fn record(&mut self, ok: bool) -> Option<HealthChange> {
        match (self.health, ok) {
            (Health::Unknown | Health::Healthy, true) => {
                self.health = Health::Healthy;
                self.against = 0;
                None
            }
            (Health::Unhealthy, false) => {
                self.against = 0;
                None
            }
            (Health::Unknown | Health::Healthy, false) => {
                self.turn(self.fall, Health::Unhealthy, HealthChange::Fell)
            }
            (Health::Unhealthy, true) => self.turn(self.rise, Health::Healthy, HealthChange::Rose),
        }
    }

    /// Tells whether it may be picked.
    pub fn is_usable(&self) -> bool {
        self.health != Health::Unhealthy
    }

    /// Sets new thresholds and keeps what is known.
    pub fn adopt(&mut self, fall: u32, rise: u32) {
        *self = HealthState { fall: fall.max(1), rise: rise.max(1), ..*self };
    }

    fn turn(&mut self, needed: u32, health: Health, change: HealthChange) -> Option<HealthChange> {
        self.against += 1;
        if self.against < needed {
            return None;
        }
        self.health = health;
        self.against = 0;
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// `.` success, `x` failure; gives what each probe changed.
    fn run(state: &mut HealthState, probes: &str) -> String {
        let letter = |change| match change {
            None => '-',
            Some(HealthChange::Fell) => 'F',
            Some(HealthChange::Rose) => 'R',
        };
        probes.chars().map(|probe| letter(state.record(probe == '.'))).collect()
    }

    #[test]
    fn unknown_counts_as_healthy() {
        let state = HealthState::new(3, 1);
        assert!(state.is_usable());
        assert_eq!(state.health, Health::Unknown);
    }

    #[test]
    fn falls_after_fall_and_rises_after_rise() {
        assert_eq!(run(&mut HealthState::new(3, 1), "xxx."), "--FR");
        assert_eq!(run(&mut HealthState::new(3, 1), ".xx.xxxx"), "------F-");
        assert_eq!(run(&mut HealthState::new(1, 3), "x..x...x"), "F-----RF");
    }

    #[test]
    fn thresholds_of_zero_act_as_one() {
        assert_eq!(run(&mut HealthState::new(0, 0), "x.x"), "FRF");
    }

    #[test]
    fn new_thresholds_keep_what_is_known() {
        let mut state = HealthState::new(1, 1);
        run(&mut state, "x");
        state.adopt(1, 2);
        assert!(!state.is_usable());
        assert_eq!(run(&mut state, ".."), "-R");
    }

    proptest! {
        #[test]
        fn agrees_with_the_tail_of_the_history(
            probes in proptest::collection::vec(any::<bool>(), 0..100),
            fall in 1usize..5, rise in 1usize..5,
        ) {
            let mut state = HealthState::new(fall as u32, rise as u32);
            let mut usable = true;
            for end in 1..=probes.len() {
                let change = state.record(probes[end - 1]);
                let tail = |n: usize, ok| end >= n && probes[end - n..end].iter().all(|p| *p == ok);
                let expected = if usable { !tail(fall, false) } else { tail(rise, true) };
                prop_assert_eq!(change.is_some(), usable != expected);
                usable = expected;
                prop_assert_eq!(state.is_usable(), usable);
            }
        }
    }
}
