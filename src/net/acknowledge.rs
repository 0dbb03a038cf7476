//! Telling whether every core has done what it was told.
//!
//! A mailbox gives no answer. Whoever sends orders draws a number, sends it behind them, and waits
//! until each core has told that number: then all that was sent before it is done.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far each core has come.
pub struct Acknowledged {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The number drawn last.
    drawn: u64,
    /// For each core the highest number that it has told.
    told: Vec<u64>,
    /// What a core could not do.
    failed: Vec<String>,
}

impl Acknowledged {
    /// For this many cores, none of which has been told anything.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        let state = State { drawn: 0, told: vec![0; cores], failed: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Draws a number, higher than all before.
    #[must_use]
    pub fn draw(&self) -> u64 {
        let mut state = self.lock();
        state.drawn += 1;
        state.drawn
    }

    /// Says that a core has done all that came before this number.
    pub fn tell(&self, core: usize, number: u64) {
        if let Some(told) = self.lock().told.get_mut(core) {
            *told = number.max(*told);
        }
        self.changed.notify_all();
    }

    /// Says that a core could not do something that came before the next number that it tells.
    pub fn fail(&self, core: usize, why: &str) {
        self.lock().failed.push(format!("core {core}: {why}"));
    }

    /// Takes what the cores could not do since the last call.
    #[must_use]
    pub fn take_failures(&self) -> Vec<String> {
        std::mem::take(&mut self.lock().failed)
    }

    /// Waits until every core has told this number.
    ///
    /// Shape: the cores that have not within that time; empty = all have.
    #[must_use]
    pub fn wait(&self, number: u64, within: Duration) -> Vec<usize> {
        let by = Instant::now() + within;
        let mut state = self.lock();
        loop {
            let late = |(core, told): (usize, &u64)| (*told < number).then_some(core);
            let late: Vec<usize> = state.told.iter().enumerate().filter_map(late).collect();
            let left = by.saturating_duration_since(Instant::now());
            if late.is_empty() || left.is_zero() {
                return late;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Single stores: a thread that panicked meanwhile left nothing half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_every_core_and_not_for_ever() {
        let cores = Acknowledged::new(2);
        let number = cores.draw();
        cores.tell(1, number);
        assert_eq!(cores.wait(number, Duration::ZERO), [0]);
        assert_eq!(cores.wait(number, Duration::from_millis(2)), [0]);
        std::thread::scope(|scope| {
            scope.spawn(|| cores.tell(0, number));
            assert!(cores.wait(number, Duration::from_secs(20)).is_empty());
        });
        // A later number says the same of all before it, and an earlier one takes nothing back.
        let next = cores.draw();
        cores.tell(0, next);
        cores.tell(0, number);
        assert_eq!(cores.wait(next, Duration::ZERO), [1]);
    }
}
