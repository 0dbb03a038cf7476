//! The least rate of a request body (`limits.body_rate_min`).
//!
//! The one idea: only the time in which we wait for the client is counted, in windows of ten
//! seconds, and each window has to bring its bytes. A client that an upstream or we hold up is not
//! slow. How long one wait may last follows from the window, so that the timer that guards the wait
//! anyway also catches a client that sends nothing.

use std::time::Duration;

/// How long a client is watched before it is called slow.
pub const WINDOW: Duration = Duration::from_secs(10);

/// How fast one body comes.
#[derive(Clone, Copy, Debug)]
pub struct BodyPace {
    /// Bytes that a window has to bring; 0 = no least rate.
    least: u64,
    bytes: u64,
    waited: Duration,
}

impl BodyPace {
    /// The pace of a body of which nothing has come yet, nor been waited for.
    ///
    /// Units: `rate_min` bytes a second; 0 = none.
    #[must_use]
    pub fn new(rate_min: u64) -> Self {
        let least = rate_min.saturating_mul(WINDOW.as_secs());
        Self { least, bytes: 0, waited: Duration::ZERO }
    }

    /// How long the next wait may last: to the end of the window, and `idle` at most.
    #[must_use]
    pub fn patience(&self, idle: Duration) -> Duration {
        if self.least == 0 {
            return idle;
        }
        let left = WINDOW.saturating_sub(self.waited);
        // A window that has brought its bytes already is good whatever comes.
        let left = if self.bytes >= self.least { left + WINDOW } else { left };
        // Zero would mean no limit.
        idle.min(left.max(Duration::from_millis(1)))
    }

    /// Adds a wait and what it brought; whether the client is too slow.
    pub fn is_slow(&mut self, waited: Duration, bytes: u64) -> bool {
        if self.least == 0 {
            return false;
        }
        self.waited += waited;
        let slow = self.waited >= WINDOW && self.bytes < self.least;
        if self.waited >= WINDOW {
            self.waited = Duration::from_nanos(
                u64::try_from(self.waited.as_nanos() % WINDOW.as_nanos()).unwrap_or(0),
            );
            self.bytes = 0;
        }
        // The bytes that end a window count for the next one.
        self.bytes = self.bytes.saturating_add(bytes);
        slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const IDLE: Duration = Duration::from_secs(60);

    #[test]
    fn a_window_without_its_bytes_is_slow() {
        let mut pace = BodyPace::new(1024);
        for _ in 0..9 {
            assert!(!pace.is_slow(SECOND, 1000));
        }
        assert_eq!(pace.patience(IDLE), SECOND);
        assert!(pace.is_slow(SECOND, 1000), "9,000 in ten seconds");
    }

    #[test]
    fn a_window_with_its_bytes_is_not() {
        let mut pace = BodyPace::new(1024);
        for _ in 0..100 {
            assert!(!pace.is_slow(SECOND, 1150));
        }
        // All at once, and then nothing: until the next window has passed too.
        let mut pace = BodyPace::new(1024);
        assert!(!pace.is_slow(Duration::ZERO, 10_240));
        assert_eq!(pace.patience(IDLE), 20 * SECOND);
        assert!(!pace.is_slow(10 * SECOND, 0));
        assert_eq!(pace.patience(IDLE), 10 * SECOND);
        assert!(pace.is_slow(10 * SECOND, 0));
    }

    #[test]
    fn zero_is_none_and_the_idle_timeout_holds_beside_it() {
        let mut pace = BodyPace::new(0);
        assert!(!pace.is_slow(1000 * SECOND, 1));
        assert_eq!(pace.patience(IDLE), IDLE);
        assert_eq!(BodyPace::new(1).patience(SECOND), SECOND);
        assert_eq!(BodyPace::new(1).patience(IDLE), WINDOW);
    }
}
