//! The proxy's own shared state of each server, its wait queue, and the lease of one attempt,
//! put together as the proxy does it.
//!
//! These outlive the run and are borrowed by it, as the cores borrow them from the config in
//! force. The wake-ups of the queue go into a list that the run empties after every event.

use std::sync::{Arc, Mutex};

use tokenring::testing::base::clock::{AtomicMoment, Moment};
use tokenring::testing::policy::breaker::{CallResult, Entry, StateName};
use tokenring::testing::upstream::state::{Lease, UpstreamState};
use tokenring::testing::upstream::wait_queue::{GroupQueue, WaitQueue, Wake};

use crate::setup::Setup;

/// What all cores share.
pub(crate) struct Fleet {
    pub(crate) upstreams: Vec<Arc<UpstreamState>>,
    pub(crate) queue: GroupQueue<usize>,
    pub(crate) wakes: Arc<Wakes>,
}

impl Fleet {
    pub(crate) fn new(setup: &Setup) -> Fleet {
        let servers = setup.servers.iter();
        let upstreams: Vec<_> = servers
            .map(|server| Arc::new(UpstreamState::new(setup.breaker, server.concurrency)))
            .collect();
        let wakes = Arc::new(Wakes::default());
        let queue = WaitQueue::new(setup.queue.length, wakes.clone()).bind(upstreams.clone());
        Fleet { upstreams, queue, wakes }
    }
}

/// Who has been woken, by exchange, and the queue's clock.
#[derive(Default)]
pub(crate) struct Wakes {
    woken: Mutex<Vec<usize>>,
    now: AtomicMoment,
}

impl Wakes {
    /// Tells the queue the time.
    pub(crate) fn set(&self, now: Moment) {
        self.now.store(now);
    }

    /// Takes those that have been woken.
    pub(crate) fn take(&self) -> Vec<usize> {
        std::mem::take(&mut self.woken.lock().expect("nobody panics with it"))
    }

    /// Takes one down.
    pub(crate) fn forget(&self, exchange: usize) {
        self.woken.lock().expect("nobody panics with it").retain(|other| *other != exchange);
    }
}

impl Wake<usize> for Wakes {
    fn wake(&self, exchange: usize) {
        self.woken.lock().expect("nobody panics with it").push(exchange);
    }

    fn now(&self) -> Moment {
        self.now.load()
    }
}

/// One attempt in flight: a slot, and the breaker's leave; undone by `Drop`, however it ends.
pub(crate) struct Held<'a> {
    state: &'a UpstreamState,
    entry: Option<Entry>,
    /// Changes of the breaker when it began.
    began: u64,
    /// Dropped last: the slot goes on when the breaker has heard.
    _lease: Lease<'a>,
}

impl<'a> Held<'a> {
    /// Asks the breaker, with a slot taken already; `None` gives the slot back.
    pub(crate) fn enter(state: &'a UpstreamState, lease: Lease<'a>, now: Moment) -> Option<Self> {
        let entry = state.breaker.enter(now)?;
        state.count_change(entry.change());
        Some(Held { state, entry: Some(entry), began: changes(state), _lease: lease })
    }

    /// As `enter`, where breakers alone leave nobody.
    pub(crate) fn enter_last_resort(
        state: &'a UpstreamState,
        lease: Lease<'a>,
        now: Moment,
    ) -> Option<Self> {
        let entry = state.breaker.enter_last_resort(now)?;
        state.count_change(entry.change());
        Some(Held { state, entry: Some(entry), began: changes(state), _lease: lease })
    }

    /// Ends without a verdict, and keeps the slot.
    pub(crate) fn forgive(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.state.breaker.cancel(entry);
        }
    }

    /// Whether the breaker refused and there was nobody else.
    pub(crate) fn is_last_resort(&self) -> bool {
        matches!(self.entry, Some(Entry::LastResort { .. }))
    }

    /// Tells the breaker how the attempt went; the slot is kept until the last byte. Returns
    /// whether that has closed it.
    pub(crate) fn record(&mut self, result: CallResult, now: Moment) -> bool {
        let Some(entry) = self.entry.take() else { return false };
        let breaker = &self.state.breaker;
        let (late, before) = (changes(self.state) != self.began, breaker.state());
        let change = breaker.record(entry, result, now);
        self.state.count_change(change);
        if late {
            let after = breaker.state();
            assert_eq!(after, before, "{result:?} of a call from before the last change");
        }
        change.is_some_and(|change| change.to == StateName::Closed)
    }

    /// Whether its result says something of the server as it is now.
    pub(crate) fn is_present(&self) -> bool {
        self.entry.as_ref().is_none_or(|entry| self.state.breaker.is_present(entry))
    }

    /// The epoch of the breaker's trial that it holds.
    pub(crate) fn trial(&self) -> Option<u32> {
        match self.entry {
            Some(Entry::Trial { epoch, .. }) => Some(epoch),
            Some(Entry::Passed { .. } | Entry::LastResort { .. }) | None => None,
        }
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.state.breaker.cancel(entry);
        }
    }
}

fn changes(state: &UpstreamState) -> u64 {
    state.breaker_changes().as_flattened().iter().sum()
}
