//! Hands out requests when they are due: the open loop's clock.
//!
//! The one idea: the clock does not know the server. A slow server gets the
//! requests it would get from people, and the wait counts as latency ("coordinated
//! omission" is what happens otherwise). A thread of its own keeps the time, since
//! the runtime's timers are a millisecond coarse; while it waits it writes the next
//! request, so that a prompt of a megabyte does not make the connections late.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use super::schedule::Planned;

/// Longest sleep before another look at whether anybody still takes requests.
const SLICE: Duration = Duration::from_millis(100);

/// Bytes of written requests that may wait for a connection; those behind them are
/// written by the connection that takes them.
const WRITTEN_BYTES_MAX: usize = 64 << 20;

/// Requests that are due and not yet taken by a connection.
#[derive(Debug)]
pub(super) struct Due {
    queue: Mutex<Queue>,
    tickets: Semaphore,
    /// Set when the connections have gone; the keeper of the time then goes too.
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    requests: VecDeque<(Planned, Option<Vec<u8>>)>,
    /// Bytes of all of them.
    written_bytes: usize,
}

/// A request to send.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    /// What to send, and when it was due.
    pub(super) planned: Planned,
    /// Its bytes, when there was room to write them ahead.
    pub(super) bytes: Option<Vec<u8>>,
    /// Whether a connection was waiting for it: any delay is then the client's own.
    pub(super) awaited: bool,
}

impl Due {
    pub(super) fn new() -> Due {
        Due {
            queue: Mutex::new(Queue::default()),
            tickets: Semaphore::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Issues the requests at their times, written by `write`, and ends at `end_us` at
    /// the earliest; blocks its thread.
    pub(super) fn keep_time(
        &self,
        schedule: impl Iterator<Item = Planned>,
        write: impl Fn(&Planned) -> Vec<u8>,
        started: Instant,
        end_us: u64,
    ) {
        for planned in schedule {
            let room = self.queue().written_bytes < WRITTEN_BYTES_MAX;
            let bytes = room.then(|| write(&planned));
            if !self.sleep_until(started, planned.due_us) {
                break;
            }
            let mut queue = self.queue();
            queue.written_bytes += bytes.as_ref().map_or(0, Vec::len);
            queue.requests.push_back((planned, bytes));
            drop(queue);
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
        let mut queue = self.queue();
        let (planned, bytes) = queue.requests.pop_front()?;
        queue.written_bytes -= bytes.as_ref().map_or(0, Vec::len);
        Some(Ticket { planned, bytes, awaited })
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
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
        // Of the first all is written ahead, then nothing: that fills the room.
        let write = |_: &Planned| vec![0; WRITTEN_BYTES_MAX];
        due.keep_time(planned, write, started, 2_000);
        assert!(started.elapsed() >= Duration::from_millis(2), "it waits for its end");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let taken = runtime.block_on(async {
            let mut taken = 0;
            while let Some(ticket) = due.take().await {
                assert_eq!(ticket.planned.number, taken);
                assert_eq!(ticket.bytes.is_some(), taken == 0);
                taken += 1;
            }
            taken
        });
        assert_eq!(taken, 50);
        due.end();
        let planned = Planned::new(&shape, 1, 0, u64::MAX);
        due.keep_time([planned].into_iter(), |_| Vec::new(), started, u64::MAX);
    }
}
