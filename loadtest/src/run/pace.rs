//! When requests are due: the open loop's schedule.
//!
//! The one idea: the schedule does not know the server. A slow server gets the
//! requests it would get from people, and the wait counts as latency ("coordinated
//! omission" is what happens otherwise). A thread of its own keeps the time, since
//! the runtime's timers are a millisecond coarse.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::Until;
use crate::text;

/// How requests are spaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pacing {
    /// Independent arrivals: exponential gaps.
    Poisson,
    /// Equal gaps.
    Constant,
}

/// Gaps between due times, from a seed.
#[derive(Debug)]
pub(super) struct Gaps {
    pacing: Pacing,
    mean: Duration,
    seed: u64,
    drawn: u64,
}

impl Gaps {
    /// Gaps for `rate` requests a second (clamped to one a day and a million a second).
    pub(super) fn new(pacing: Pacing, rate: f64, seed: u64) -> Gaps {
        let mean = Duration::from_secs_f64(1.0 / rate.clamp(1e-5, 1e6));
        Gaps { pacing, mean, seed, drawn: 0 }
    }

    /// The next gap.
    pub(super) fn draw(&mut self) -> Duration {
        self.drawn += 1;
        match self.pacing {
            Pacing::Constant => self.mean,
            Pacing::Poisson => {
                let bits = text::mix(self.seed ^ text::mix(self.drawn)) >> 11;
                // In (0, 1], so that the logarithm is finite.
                let uniform = (bits + 1) as f64 / (1u64 << 53) as f64;
                self.mean.mul_f64(-uniform.ln())
            }
        }
    }
}

/// Requests that are due and not yet taken by a connection.
#[derive(Debug)]
pub(super) struct Due {
    times: Mutex<VecDeque<Instant>>,
    tickets: Semaphore,
    /// Set when the connections have gone; the keeper of the time then goes too.
    over: AtomicBool,
}

/// A request to send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    /// When it was due.
    pub(super) due: Instant,
    /// Whether a connection was waiting for it: any delay is then the client's own.
    pub(super) awaited: bool,
}

impl Due {
    pub(super) fn new() -> Due {
        Due {
            times: Mutex::new(VecDeque::new()),
            tickets: Semaphore::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Issues tickets at their times until the run ends; blocks its thread.
    pub(super) fn keep_time(&self, mut gaps: Gaps, started: Instant, until: Until) {
        let mut due = started;
        let mut issued = 0;
        while !self.over.load(SeqCst) {
            due += gaps.draw();
            let ended = match until {
                Until::Elapsed(limit) => due - started >= limit,
                Until::Requests(limit) => issued >= limit,
                Until::End => false,
            };
            if ended {
                break;
            }
            while let Some(left) = due.checked_duration_since(Instant::now()) {
                if self.over.load(SeqCst) || left.is_zero() {
                    break;
                }
                std::thread::sleep(left.min(Duration::from_millis(100)));
            }
            self.times.lock().unwrap_or_else(PoisonError::into_inner).push_back(due);
            self.tickets.add_permits(1);
            issued += 1;
        }
        self.tickets.close();
    }

    /// The next request to send; `None` when the run is over.
    pub(super) async fn take(&self) -> Option<Ticket> {
        let awaited = self.tickets.available_permits() == 0;
        // A closed semaphore refuses even what it still holds: those tickets are
        // taken from the queue without a permit.
        if let Ok(permit) = self.tickets.acquire().await {
            permit.forget();
        }
        let due = self.times.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        Some(Ticket { due, awaited })
    }

    /// Tells the keeper of the time that nobody takes tickets any more.
    pub(super) fn end(&self) {
        self.over.store(true, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_the_mean_of_the_rate_and_the_spread_of_their_kind() {
        for (pacing, spread) in [(Pacing::Poisson, 1.0), (Pacing::Constant, 0.0)] {
            let mut gaps = Gaps::new(pacing, 100.0, 7);
            let drawn: Vec<f64> = (0..20_000).map(|_| gaps.draw().as_secs_f64()).collect();
            let mean = drawn.iter().sum::<f64>() / drawn.len() as f64;
            let variance =
                drawn.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / drawn.len() as f64;
            assert!((mean * 100.0 - 1.0).abs() < 0.03, "{pacing:?}: mean {mean}");
            assert!((variance.sqrt() / mean - spread).abs() < 0.03, "{pacing:?}: {variance}");
        }
    }

    #[test]
    fn every_ticket_issued_is_taken_once() {
        let due = Due::new();
        let gaps = Gaps::new(Pacing::Constant, 1e6, 1);
        due.keep_time(gaps, Instant::now(), Until::Requests(50));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let taken = runtime.block_on(async {
            let mut taken = 0;
            while due.take().await.is_some() {
                taken += 1;
            }
            taken
        });
        assert_eq!(taken, 50);
    }
}
