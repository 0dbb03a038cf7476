//! One core from its first accept to its last byte.
//!
//! A worker thread pins itself, builds its runtime and runs four kinds of task: one accept loop
//! per listening socket (`accept`), the mailbox, the ticker, and one task per client connection.

use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::accept::{self, Acceptors};
use super::core::{Core, Padded, Shared};
use super::idle::IDLE_GRACE;
use super::places;
use crate::net::listener::ListeningSocket;
use crate::net::mailbox::{Inbox, Message};
use crate::net::rt::{self, Driver, Wanted};
use crate::net::sys;
use crate::net::ticker::TICK;

/// Ticks between two publications of the counters.
const PUBLISH_TICKS: u32 = 20;
/// Ticks between two trims of the free buffers.
const TRIM_TICKS: u32 = 100;

/// What a worker is given.
pub struct Worker {
    /// Its number among the workers, from 0.
    pub index: usize,
    /// The processor it is pinned to; none = it is not pinned.
    pub cpu: Option<usize>,
    /// Which driver the operator wants.
    pub io: Wanted,
    /// What all cores share.
    pub shared: Arc<Shared>,
    /// Its mailbox.
    pub inbox: Inbox,
    /// Seed of its random source.
    pub seed: u64,
}

impl Worker {
    /// Runs until drained; `ready` is told which driver was obtained, or why none.
    pub fn run(self, ready: impl FnOnce(io::Result<Driver>)) {
        if let Some(id) = self.cpu {
            // A refusal (a cpuset that shrank) costs speed, not service.
            core_affinity::set_for_current(core_affinity::CoreId { id });
        }
        let wanted = self.io;
        let mut ready = Some(ready);
        let result = rt::block_on(wanted, |driver| {
            rt::note_driver(driver);
            let ready = ready.take();
            async move {
                match self.start() {
                    Ok(running) => {
                        if let Some(ready) = ready {
                            ready(Ok(driver));
                        }
                        running.until_drained().await;
                    }
                    Err(error) => {
                        if let Some(ready) = ready {
                            ready(Err(error));
                        }
                    }
                }
            }
        });
        if let (Err(error), Some(ready)) = (result, ready) {
            ready(Err(error));
        }
    }

    fn start(self) -> io::Result<Running> {
        let core = Core::new(self.index, self.shared, self.seed);
        let acceptors = Rc::new(Acceptors::default());
        let inbox = self.inbox.open()?;
        Ok(Running { core, acceptors, inbox })
    }
}

struct Running {
    core: Rc<Core>,
    acceptors: Rc<Acceptors>,
    inbox: crate::net::mailbox::Receiver,
}

impl Running {
    /// Ticks and reads the mailbox until the drain is over.
    async fn until_drained(self) {
        let Self { core, acceptors, inbox } = self;
        let abort = Rc::new(std::cell::Cell::new(false));
        rt::spawn(read_mailbox(core.clone(), inbox, acceptors.clone(), abort.clone()));
        let mut drains_since: Option<Instant> = None;
        for tick in 0u32.. {
            rt::sleep(TICK).await;
            let now = Instant::now();
            core.ticker.walk(now);
            core.shared.notifier.clock.set_wall(now, sys::wall_time());
            places::publish(&core);
            core.wake_lost();
            // In case the message about a new plan did not fit into the mailbox.
            core.refresh_plan();
            core.listeners.sweep(now, |gone| core.ticker.end_idle_of(gone, IDLE_GRACE));
            let plan = core.plan();
            let idle_max = |pool| {
                let at = plan.pools.binary_search_by_key(&pool, |&(pool, _)| pool).ok()?;
                Some(plan.pools[at].1)
            };
            core.pool.sweep(idle_max, &core.buffers, now);
            core.h2_pool.sweep(idle_max, now);
            core.publish_idle();
            core.shared.panics.fetch_add(core.h2_pool.take_panics(), Ordering::Relaxed);
            drop(plan);
            if tick % PUBLISH_TICKS == 0 {
                core.publish();
            }
            if tick % TRIM_TICKS == 0 {
                core.buffers.trim();
            }
            if core.draining.get() {
                let drains_since = drains_since.get_or_insert(now);
                let by = *drains_since + core.plan().drain;
                let Padded(active) = &core.shared.active[core.index];
                let linked = core.h2_pool.close_all();
                let done = active.load(Ordering::Relaxed) == 0 && acceptors.have_ended() && !linked;
                let late = now >= by || abort.get();
                if late {
                    core.ticker.end_all();
                }
                if done || late {
                    core.pool.close_all();
                    // One more tick: aborted exchanges are recorded, and connections that have
                    // ended close their sockets, which they can once the ring has returned their
                    // polls.
                    rt::sleep(TICK).await;
                    break;
                }
                let grace = IDLE_GRACE.min(core.plan().drain);
                if now >= *drains_since + grace {
                    core.ticker.end_idle(grace);
                }
            }
        }
        core.publish();
    }
}

async fn read_mailbox(
    core: Rc<Core>,
    inbox: crate::net::mailbox::Receiver,
    acceptors: Rc<Acceptors>,
    abort: Rc<std::cell::Cell<bool>>,
) {
    while let Some(message) = inbox.next().await {
        match message {
            Message::Connection { listener, fd, peer } => accept::begin(&core, fd, peer, listener),
            Message::Listen(ListeningSocket { bound, listener, socket }) => {
                // The plan that has this listener is in force; its connections are to meet it.
                core.refresh_plan();
                if !core.draining.get()
                    && let Err(error) = acceptors.listen(&core, bound, listener, socket)
                {
                    // Without memory or descriptors. The set holds another descriptor of the
                    // socket, so connections that the kernel puts there wait until they give up.
                    let why = format!("cannot accept for listener.{listener}: {error}");
                    core.shared.acknowledged.fail(core.index, &why);
                }
            }
            Message::Assign { bound, listener } => {
                core.refresh_plan();
                acceptors.assign(bound, listener);
            }
            Message::StopListening { bound } => acceptors.stop(bound),
            Message::Acknowledge { number } => acceptors.acknowledge(&core, number),
            Message::Drain => {
                acceptors.stop_all();
                core.draining.set(true);
                core.leaving.wake();
            }
            Message::Wake { token, value } => core.wake_table.wake(token, value),
            Message::Abort => abort.set(true),
            Message::RefreshPlan => core.refresh_plan(),
            Message::ListExchanges { number } => {
                let now = core.shared.notifier.clock.at(Instant::now());
                let list = core.exchanges.list(core.index, now);
                core.shared.lists.answer(core.index, number, list);
            }
            Message::EndExchange { slot, uses } => core.exchanges.cancel(slot, uses),
            Message::EndIdle => {
                core.ticker.end_longest_idle();
            }
        }
    }
}
