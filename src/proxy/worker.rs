//! One core from its first accept to its last byte.
//!
//! A worker thread pins itself, builds its runtime and runs four kinds of task: one accept loop
//! per listener, the mailbox, the ticker, and one task per client connection. LLM clients hold
//! few, long connections, so hashing alone would leave cores idle: a connection is handed to
//! the least loaded core before its first byte is read.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::conn;
use super::core::{Core, Padded, Shared};
use super::places;
use crate::net::buffers;
use crate::net::caught::caught;
use crate::net::listener::Listening;
use crate::net::mailbox::{Inbox, Message};
use crate::net::rt::{self, Acceptor, Driver, Socket, Stop, Wanted};
use crate::net::sys;
use crate::net::ticker::TICK;

/// How much busier than the idlest core a core may be before it hands connections over.
const IMBALANCE_MIN: u32 = 4;
/// Pause after an accept failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
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
    /// Its listening sockets with their listener's number.
    pub listeners: Vec<(u16, Listening)>,
    /// Its mailbox.
    pub inbox: Inbox,
    /// How long a drain may last.
    pub drain: Duration,
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
        let stop = Rc::new(Stop::default());
        for (listener, listening) in self.listeners {
            let acceptor = match listening {
                Listening::Tcp(socket) => Acceptor::tcp(socket)?,
                Listening::Unix(socket) => Acceptor::unix(socket)?,
            };
            rt::spawn(accept(core.clone(), acceptor, listener, stop.clone()));
        }
        let inbox = self.inbox.open()?;
        Ok(Running { core, stop, inbox, drain: self.drain })
    }
}

struct Running {
    core: Rc<Core>,
    stop: Rc<Stop>,
    inbox: crate::net::mailbox::Receiver,
    drain: Duration,
}

impl Running {
    /// Ticks and reads the mailbox until the drain is over.
    async fn until_drained(self) {
        let Self { core, stop, inbox, drain } = self;
        let abort = Rc::new(std::cell::Cell::new(false));
        rt::spawn(read_mailbox(core.clone(), inbox, stop, abort.clone()));
        let mut drained_by: Option<Instant> = None;
        for tick in 0u32.. {
            rt::sleep(TICK).await;
            let now = Instant::now();
            core.ticker.walk(now);
            core.shared.notifier.set_wall(now, sys::wall_ns());
            places::publish(&core);
            core.wake_lost();
            // In case the message about a new plan did not fit into the mailbox.
            core.refresh_plan();
            let plan = core.plan();
            let idle_max = |pool| {
                let at = plan.pools.binary_search_by_key(&pool, |&(pool, _)| pool).ok()?;
                Some(plan.pools[at].1)
            };
            core.pool.sweep(idle_max, &core.buffers, now);
            core.h2_pool.sweep(idle_max, now);
            core.shared.panics.fetch_add(core.h2_pool.take_panics(), Ordering::Relaxed);
            drop(plan);
            if tick % PUBLISH_TICKS == 0 {
                core.publish();
            }
            if tick % TRIM_TICKS == 0 {
                core.buffers.trim();
                buffers::trim();
            }
            if core.draining.get() {
                let by = *drained_by.get_or_insert(now + drain);
                let Padded(active) = &core.shared.active[core.index];
                let linked = core.h2_pool.close_all();
                let done = active.load(Ordering::Relaxed) == 0 && !linked;
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
                core.ticker.end_idle();
            }
        }
        core.publish();
    }
}

async fn read_mailbox(
    core: Rc<Core>,
    inbox: crate::net::mailbox::Receiver,
    stop: Rc<Stop>,
    abort: Rc<std::cell::Cell<bool>>,
) {
    while let Some(message) = inbox.next().await {
        match message {
            Message::Connection { listener, fd, peer } => begin(&core, fd, peer, listener),
            Message::Drain => {
                stop.tell();
                core.draining.set(true);
                core.leaving.wake();
            }
            Message::Wake { token, value } => core.wake_table.wake(token, value),
            Message::Abort => abort.set(true),
            Message::RefreshPlan => core.refresh_plan(),
            Message::EndIdle => {
                core.ticker.end_longest_idle();
            }
        }
    }
}

/// Accepts until told to stop; connections accepted by then are served.
async fn accept(core: Rc<Core>, acceptor: Acceptor, listener: u16, stop: Rc<Stop>) {
    while !stop.told() {
        match acceptor.accept(&stop).await {
            Ok((fd, peer)) => place(&core, fd, peer, listener),
            Err(_) if stop.told() => break,
            Err(error) if is_of_the_connection(&error) => {}
            Err(error) => {
                if sys::is_shortage(&error) {
                    // An idle connection is ended to free a descriptor for one that waits to be
                    // accepted.
                    core.ticker.end_longest_idle();
                }
                rt::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether an accept failed because of its connection, not for lack of anything (accept(2)).
fn is_of_the_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
            | io::ErrorKind::InvalidInput
    )
}

/// Serves a connection here, or hands it to a core that is much less busy.
fn place(core: &Rc<Core>, fd: OwnedFd, peer: Option<SocketAddr>, listener: u16) {
    let shared = &core.shared;
    if places::is_full(core, peer, listener) || !places::make_place(core) {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let loads = shared.active.iter().map(|Padded(active)| active.load(Ordering::Relaxed));
    let mine = shared.active[core.index].0.load(Ordering::Relaxed);
    if let Some((idlest, least)) = loads.enumerate().min_by_key(|&(_, load)| load)
        && mine > least + IMBALANCE_MIN.max(least / 4)
        && idlest != core.index
    {
        // Counted before it arrives, or a whole burst would go to the core that was idlest.
        shared.count_connection(idlest, 1);
        match shared.mailboxes[idlest].send(Message::Connection { listener, fd, peer }) {
            Ok(()) => {}
            Err(back) => {
                shared.count_connection(idlest, -1);
                if let Message::Connection { fd, .. } = back {
                    shared.count_connection(core.index, 1);
                    begin(core, fd, peer, listener);
                }
            }
        }
        return;
    }
    shared.count_connection(core.index, 1);
    begin(core, fd, peer, listener);
}

/// Starts the task of a connection that has been counted; a panic in it costs that connection
/// alone.
fn begin(core: &Rc<Core>, fd: OwnedFd, peer: Option<SocketAddr>, listener: u16) {
    let keepalive = core.plan().tcp_keepalive;
    let Ok(socket) = Socket::adopt(fd, keepalive) else {
        return core.shared.count_connection(core.index, -1);
    };
    let Ok(counted) = places::count_connection(core, peer, listener) else {
        core.shared.refused.fetch_add(1, Ordering::Relaxed);
        return core.shared.count_connection(core.index, -1);
    };
    let core = core.clone();
    rt::spawn(async move {
        let _counted = counted;
        let serving = pin!(conn::serve(&core, socket, peer, usize::from(listener)));
        core.count_panic(caught(serving).await.is_none());
        core.shared.count_connection(core.index, -1);
    });
}
