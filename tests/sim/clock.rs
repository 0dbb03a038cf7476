//! Virtual time: a heap of events, the earliest first, equal ones in the order they were made.
//!
//! Nothing sleeps. A minute of a fleet's life takes as long as its events take to handle, and
//! the same seed gives the same order every time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use tokenring::testing::base::clock::Moment;
use tokenring::testing::policy::breaker::Sign;

/// One second, in the microseconds of this clock.
pub(crate) const SECOND: u64 = 1_000_000;
/// One millisecond.
pub(crate) const MS: u64 = 1_000;

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    /// A client of this key sends a request.
    Arrive { key: usize },
    /// The core that has picked comes to entering.
    Enter { exchange: usize },
    /// The server sends its response head.
    Head { call: usize },
    /// The server sends the last byte.
    End { call: usize },
    /// The server answers with an error at once.
    Error { call: usize, status: u16 },
    /// The connection is refused.
    Refused { call: usize },
    /// The connection dies.
    Cut { call: usize },
    /// No response head in time.
    FirstByteOver { call: usize },
    /// Nothing more of the body in time.
    StreamIdleOver { call: usize },
    /// The pause before a retry is over.
    Resume { exchange: usize },
    /// The client leaves, if it is still there.
    Leave { exchange: usize },
    /// Somebody who waits for a slot looks what there is.
    Look { exchange: usize },
    /// A probe is sent.
    Probe { server: usize },
    /// A probe has its result.
    Probed { server: usize, ok: bool },
    /// The control thread looks whether a breaker is not closed.
    Recheck { server: usize },
    /// And has its answer.
    Rechecked { server: usize, sign: Sign },
    /// The server turns to its next phase.
    Phase { server: usize, phase: usize },
}

/// The clock.
#[derive(Default)]
pub(crate) struct Clock {
    now_us: u64,
    made: u64,
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
}

impl Clock {
    /// Microseconds since the beginning.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The same, as the proxy tells it to its deciders.
    pub(crate) fn now(&self) -> Moment {
        Moment::from_micros(self.now_us)
    }

    /// Makes an event happen `after_us` from now.
    pub(crate) fn after(&mut self, after_us: u64, event: Event) {
        self.made += 1;
        self.heap.push(Reverse((self.now_us + after_us, self.made, event)));
    }

    /// Goes on to the next event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let Reverse((at_us, _, event)) = self.heap.pop()?;
        self.now_us = at_us;
        Some(event)
    }
}
