//! What the cores share about one upstream, and the lease of one attempt: the deciders' own
//! parts put together as the proxy does it.

use std::cell::Cell;
use std::rc::Rc;

use tokenring::policy::breaker::{Breaker, BreakerPolicy, CallResult, Change, Entry};
use tokenring::policy::ewma::Measures;

/// Shared state of one upstream.
pub(crate) struct Upstream {
    pub(crate) breaker: Breaker,
    pub(crate) measures: Measures,
    in_flight: Cell<u32>,
    /// Changes of the breaker, counted here.
    changes: Cell<u32>,
    /// 0 = none.
    concurrency: u32,
    /// What the prober says.
    pub(crate) healthy: Cell<bool>,
}

impl Upstream {
    pub(crate) fn new(policy: BreakerPolicy, concurrency: u32) -> Rc<Upstream> {
        Rc::new(Upstream {
            breaker: Breaker::new(policy),
            measures: Measures::new(),
            in_flight: Cell::new(0),
            changes: Cell::new(0),
            concurrency,
            healthy: Cell::new(true),
        })
    }

    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Healthy, and its breaker would let somebody in.
    pub(crate) fn is_willing(&self, now_ms: u64) -> bool {
        self.healthy.get() && self.breaker.admits(now_ms)
    }

    /// At its concurrency.
    pub(crate) fn is_full(&self) -> bool {
        self.concurrency > 0 && self.in_flight() >= self.concurrency
    }

    /// Takes a place and passes the breaker; `None` when another core was faster.
    pub(crate) fn lease(self: &Rc<Upstream>, now_ms: u64) -> Option<Lease> {
        if self.is_full() {
            return None;
        }
        self.in_flight.set(self.in_flight() + 1);
        let mut lease = Lease { upstream: self.clone(), entry: None, began: 0 };
        // Dropped here, it counts itself out.
        let entry = self.breaker.enter(now_ms)?;
        self.count(entry.change());
        (lease.entry, lease.began) = (Some(entry), self.changes.get());
        Some(lease)
    }

    /// A response that had begun was cut off.
    pub(crate) fn record_cut(&self, now_ms: u64) {
        self.count(self.breaker.record_cut(now_ms));
    }

    fn count(&self, change: Option<Change>) {
        self.changes.set(self.changes.get() + u32::from(change.is_some()));
    }
}

/// One attempt in flight; undone by `Drop`, whatever way it ends.
pub(crate) struct Lease {
    upstream: Rc<Upstream>,
    entry: Option<Entry>,
    /// Changes of the breaker when it began.
    began: u32,
}

impl Lease {
    /// Tells the breaker how the attempt went; the place is kept until the last byte.
    pub(crate) fn record(&mut self, result: CallResult, now_ms: u64) {
        let Some(entry) = self.entry.take() else { return };
        let upstream = &self.upstream;
        let (late, before) = (upstream.changes.get() != self.began, upstream.breaker.state());
        let change = upstream.breaker.record(entry, result, now_ms);
        upstream.count(change);
        if late {
            let after = upstream.breaker.state();
            assert_eq!(after, before, "{result:?} of a call from before the last change");
        }
    }

    /// The epoch of the breaker's trial that it holds.
    pub(crate) fn trial(&self) -> Option<u32> {
        match self.entry {
            Some(Entry::Trial { epoch, .. }) => Some(epoch),
            Some(Entry::Passed { .. }) | None => None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.upstream.in_flight.set(self.upstream.in_flight() - 1);
        if let Some(entry) = self.entry.take() {
            self.upstream.breaker.cancel(entry);
        }
    }
}
