//! Hands out requests when they are due: the open loop's clock.
//!
//! The one idea: the clock does not know the server. A slow server gets the
//! requests it would get from people, and the wait counts as latency ("coordinated
//! omission" is what happens otherwise). A thread of its own keeps the time, since
//! the runtime's timers are a millisecond coarse.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::schedule::Planned;

/// Longest sleep before another look at whether anybody still takes requests.
const SLICE: Duration = Duration::from_millis(100);

/// Requests that are due and not yet taken by a connection.
#[derive(Debug)]
pub(super) struct Due {
    queue: Mutex<VecDeque<Planned>>,
    tickets: Semaphore,
    /// Set when the connections have gone; the keeper of the time then goes too.
    over: AtomicBool,
}

/// A request to send.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    /// What to send, and when it was due.
    pub(super) planned: Planned,
    /// Whether a connection was waiting for it: any delay is then the client's own.
    pub(super) awaited: bool,
}

impl Due {
    pub(super) fn new() -> Due {
        Due {
            queue: Mutex::new(VecDeque::new()),
            tickets: Semaphore::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Issues the requests at their times, and ends at `end_us` at the earliest; blocks
    /// its thread.
    pub(super) fn keep_time(
        &self,
        schedule: impl Iterator<Item = Planned>,
        started: Instant,
        end_us: u64,
    ) {
        for planned in schedule {
            if !self.sleep_until(started, planned.due_us) {
                break;
            }
            self.queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(planned);
            self.tickets.add_permits(1);
        }
        self.sleep_until(started, end_us);
        self.tickets.close();
    }

    /// False when the connections have gone meanwhile.
    fn sleep_until(&self, started: Instant, due_us: u64) -> bool {
        loop {
            if self.over.load(SeqCst) {
                return false;
            }
            let left = Duration::from_micros(due_us).saturating_sub(started.elapsed());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(SLICE));
        }
    }

    /// The next request to send; `None` when the run is over.
    pub(super) async fn take(&self) -> Option<Ticket> {
        let awaited = self.tickets.available_permits() == 0;
        // A closed semaphore refuses even what it still holds: those tickets are
        // taken from the queue without a permit.
        if let Ok(permit) = self.tickets.acquire().await {
            permit.forget();
        }
        let planned = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()?;
        Some(Ticket { planned, awaited })
    }

    /// Tells the keeper of the time that nobody takes tickets any more.
    pub(super) fn end(&self) {
        self.over.store(true, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Shape;
    use super::*;

    #[test]
    fn every_ticket_issued_is_taken_once_and_nobody_keeps_time_for_nobody() {
        let due = Due::new();
        let shape = Shape { model: "m".into(), stream: false, prompt_bytes: 1, tokens: None };
        let planned = (0..50).map(|number| Planned::new(&shape, 1, number, number * 10));
        let started = Instant::now();
        due.keep_time(planned, started, 2_000);
        assert!(started.elapsed() >= Duration::from_millis(2), "it waits for its end");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let taken = runtime.block_on(async {
            let mut taken = 0;
            while let Some(ticket) = due.take().await {
                assert_eq!(ticket.planned.number, taken);
                taken += 1;
            }
            taken
        });
        assert_eq!(taken, 50);
        due.end();
        let planned = Planned::new(&shape, 1, 0, u64::MAX);
        due.keep_time([planned].into_iter(), started, u64::MAX);
    }
}
