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

use tokio::sync::oneshot;

use super::schedule::Planned;

/// Longest sleep before another look at whether anybody still takes requests.
const SLICE: Duration = Duration::from_millis(100);

/// Bytes of written requests that may wait for a connection; those behind them are
/// written by the connection that takes them.
const WRITTEN_BYTES_MAX: usize = 64 << 20;

/// Requests that are due and not yet taken by a connection.
#[derive(Debug)]
pub(super) struct Due {
    state: Mutex<State>,
    /// Set when the connections have gone; the keeper of the time then goes too.
    over: AtomicBool,
}

#[derive(Debug)]
struct State {
    /// Due, while no connection waited.
    queue: VecDeque<Ticket>,
    /// Bytes of the written ones among them.
    written_bytes: usize,
    /// Connections that wait. The last that came is the first that goes, so that a low
    /// rate uses few connections, as a pool does.
    waiting: Vec<oneshot::Sender<Ticket>>,
    /// Connections without a request; those that have not begun to wait count too.
    free: usize,
    /// No more requests come.
    closed: bool,
}

/// A request to send.
#[derive(Clone, Debug)]
pub(super) struct Ticket {
    /// What to send, and when it was due.
    pub(super) planned: Planned,
    /// Its bytes, when there was room to write them ahead.
    pub(super) bytes: Option<Vec<u8>>,
    /// Whether a connection was free when it came due: any delay is then the client's own.
    pub(super) awaited: bool,
}

impl Due {
    /// For so many connections, all of them free.
    pub(super) fn new(connections: usize) -> Due {
        let state = State {
            queue: VecDeque::new(),
            written_bytes: 0,
            waiting: Vec::new(),
            free: connections,
            closed: false,
        };
        Due { state: Mutex::new(state), over: AtomicBool::new(false) }
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
            let room = self.state().written_bytes < WRITTEN_BYTES_MAX;
            let bytes = room.then(|| write(&planned));
            if !self.sleep_until(started, planned.due_us) {
                break;
            }
            self.issue(planned, bytes);
        }
        self.sleep_until(started, end_us);
        let mut state = self.state();
        state.closed = true;
        // Those that wait hear of it by the loss of their sender.
        state.waiting.clear();
    }

    fn issue(&self, planned: Planned, bytes: Option<Vec<u8>>) {
        let mut state = self.state();
        let awaited = state.free > state.queue.len();
        let mut ticket = Ticket { planned, bytes, awaited };
        while let Some(waiting) = state.waiting.pop() {
            match waiting.send(ticket) {
                Ok(()) => {
                    state.free = state.free.saturating_sub(1);
                    return;
                }
                // That one has gone meanwhile.
                Err(back) => ticket = back,
            }
        }
        state.written_bytes += ticket.bytes.as_ref().map_or(0, Vec::len);
        state.queue.push_back(ticket);
    }

    /// False when the connections have gone meanwhile.
    fn sleep_until(&self, started: Instant, due_us: u64) -> bool {
        loop {
            if self.over.load(SeqCst) {
                return false;
            }
            let due = started.checked_add(Duration::from_micros(due_us));
            let left = due.map_or(SLICE, |due| due.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(SLICE));
        }
    }

    /// The next request to send; `None` when the run is over.
    pub(super) async fn take(&self) -> Option<Ticket> {
        let next = {
            let mut state = self.state();
            if let Some(ticket) = state.queue.pop_front() {
                state.written_bytes -= ticket.bytes.as_ref().map_or(0, Vec::len);
                state.free = state.free.saturating_sub(1);
                return Some(ticket);
            }
            if state.closed {
                return None;
            }
            let (waiting, next) = oneshot::channel();
            state.waiting.push(waiting);
            next
        };
        next.await.ok()
    }

    /// Tells that a connection has done the request that it took.
    pub(super) fn give_back(&self) {
        self.state().free += 1;
    }

    /// Tells the keeper of the time that nobody takes tickets any more.
    pub(super) fn end(&self) {
        self.over.store(true, SeqCst);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::schedule::Shape;
    use super::*;

    fn planned(number: u64) -> Planned {
        let shape = Shape { model: "m".into(), stream: false, prompt_bytes: 1, tokens: None };
        Planned::new(&shape, 1, number, number * 10)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(work)
    }

    #[test]
    fn every_ticket_issued_is_taken_once() {
        let due = Due::new(1);
        let started = Instant::now();
        // Of the first all is written ahead, then nothing: that fills the room.
        let write = |_: &Planned| vec![0; WRITTEN_BYTES_MAX];
        due.keep_time((0..50).map(planned), write, started, 2_000);
        assert!(started.elapsed() >= Duration::from_millis(2), "it waits for its end");
        let taken = block_on(async {
            let mut taken = 0;
            while let Some(ticket) = due.take().await {
                assert_eq!(ticket.planned.number, taken);
                assert_eq!((ticket.bytes.is_some(), ticket.awaited), (taken == 0, taken == 0));
                taken += 1;
            }
            taken
        });
        assert_eq!(taken, 50);
    }

    #[test]
    fn nobody_keeps_time_for_nobody() {
        let due = Due::new(1);
        due.end();
        let late = Planned { due_us: u64::MAX, ..planned(0) };
        due.keep_time([late].into_iter(), |_| Vec::new(), Instant::now(), u64::MAX);
        assert!(block_on(due.take()).is_none());
    }

    #[test]
    fn last_connection_that_waits_goes_first_and_a_busy_one_is_not_awaited() {
        let due = Due::new(2);
        block_on(async {
            let (mut one, mut two) = (Box::pin(due.take()), Box::pin(due.take()));
            let parked = tokio::select! {
                biased;
                _ = &mut one => false,
                _ = &mut two => false,
                () = std::future::ready(()) => true,
            };
            assert!(parked);
            due.issue(planned(0), None);
            assert_eq!(two.await.unwrap().planned.number, 0);
            due.issue(planned(1), None);
            assert!(one.await.unwrap().awaited);
            due.issue(planned(2), None);
            due.give_back();
            assert!(!due.take().await.unwrap().awaited, "both were busy when it came due");
            due.give_back();
            due.issue(planned(3), None);
            assert!(due.take().await.unwrap().awaited, "free, if not yet waiting");
        });
    }
}
