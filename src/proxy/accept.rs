//! What one core listens on: one loop per socket, begun and ended while the core runs.
//!
//! LLM clients hold few, long connections, so hashing alone would leave cores idle: a connection is
//! handed to the least loaded core before its first byte is read.
//!
//! A socket is stopped by cancelling its accept and then awaiting it: a connection accepted by then
//! is served, and those that wait to be accepted are, too. Only after that the socket is closed and
//! the stop acknowledged. Where another process accepts from the same socket, this also takes the
//! connection of which only the cancelled accept was told: the kernel wakes one of those that wait.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::conn;
use super::core::{Core, Padded};
use super::listeners::CoreListener;
use super::places;
use crate::base::listener_id::ListenerId;
use crate::net::caught::caught;
use crate::net::listener::BoundId;
use crate::net::mailbox::Message;
use crate::net::rt::{self, Acceptor, Socket, Stop};
use crate::net::sys;

/// How much busier than the idlest core a core may be before it hands connections over.
const IMBALANCE_MIN: u32 = 4;
/// Pause after an accept failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Most connections that a socket takes after it was stopped: as long as it is open, more may come.
const WAITING_MAX: usize = 1024;
/// The ring closes a descriptor in its next turn; after this it has.
const CLOSE_PAUSE: Duration = Duration::from_millis(1);

/// The listening sockets of one core.
#[derive(Default)]
pub struct Acceptors {
    loops: RefCell<Vec<Rc<AcceptLoop>>>,
    /// Loops that have been told to stop and have not yet ended.
    ending: Cell<usize>,
    /// The number to acknowledge once none is ending.
    asked: Cell<Option<u64>>,
}

struct AcceptLoop {
    bound: BoundId,
    /// Whose connections it accepts.
    listener: Cell<ListenerId>,
    stop: Stop,
}

impl Acceptors {
    /// Begins to accept connections of `listener` on a listening socket of the address `bound`.
    ///
    /// Errors: the socket cannot be registered with this core's driver.
    pub fn listen(
        self: &Rc<Self>,
        core: &Rc<Core>,
        bound: BoundId,
        listener: ListenerId,
        socket: OwnedFd,
    ) -> io::Result<()> {
        let acceptor = Acceptor::new(socket)?;
        let one =
            Rc::new(AcceptLoop { bound, listener: Cell::new(listener), stop: Stop::default() });
        self.loops.borrow_mut().push(one.clone());
        let (all, core) = (self.clone(), core.clone());
        rt::spawn(async move {
            accept(&core, &acceptor, &one).await;
            accept_waiting(&core, &acceptor, &one).await;
            drop(acceptor);
            rt::sleep(CLOSE_PAUSE).await;
            all.ending.set(all.ending.get() - 1);
            all.tell_if_done(&core);
        });
        Ok(())
    }

    /// Says whose connections come by an address from now on.
    pub fn assign(&self, bound: BoundId, listener: ListenerId) {
        let loops = self.loops.borrow();
        loops.iter().filter(|one| one.bound == bound).for_each(|one| one.listener.set(listener));
    }

    /// Stops accepting on an address.
    pub fn stop(&self, bound: BoundId) {
        self.stop_those(|one| one == bound);
    }

    /// Stops accepting on all addresses.
    pub fn stop_all(&self) {
        self.stop_those(|_| true);
    }

    fn stop_those(&self, which: impl Fn(BoundId) -> bool) {
        self.loops.borrow_mut().retain(|one| {
            let stops = which(one.bound);
            if stops {
                self.ending.set(self.ending.get() + 1);
                one.stop.tell();
            }
            !stops
        });
    }

    /// Whether no socket that was stopped is still open.
    #[must_use]
    pub fn have_ended(&self) -> bool {
        self.ending.get() == 0
    }

    /// Acknowledges a number as soon as every socket that was to be stopped is closed.
    pub fn acknowledge(&self, core: &Core, number: u64) {
        self.asked.set(Some(number));
        self.tell_if_done(core);
    }

    fn tell_if_done(&self, core: &Core) {
        if self.ending.get() == 0
            && let Some(number) = self.asked.take()
        {
            core.shared.acknowledged.tell(core.index, number);
        }
    }
}

/// Accepts until told to stop; connections accepted by then are served.
async fn accept(core: &Rc<Core>, acceptor: &Acceptor, one: &AcceptLoop) {
    while !one.stop.told() {
        match acceptor.accept(&one.stop).await {
            Ok((fd, peer)) => place(core, fd, peer, one.listener.get()),
            Err(_) if one.stop.told() => break,
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

/// Accepts what waited when the accepts were stopped.
async fn accept_waiting(core: &Rc<Core>, acceptor: &Acceptor, one: &AcceptLoop) {
    for _ in 0..WAITING_MAX {
        if !acceptor.has_waiting() {
            break;
        }
        // Another process may be faster; then there is nothing to wait for.
        let stop = Rc::new(Stop::default());
        let later = stop.clone();
        rt::spawn(async move {
            rt::sleep(CLOSE_PAUSE).await;
            later.tell();
        });
        match acceptor.accept(&stop).await {
            Ok((fd, peer)) => place(core, fd, peer, one.listener.get()),
            Err(error) if sys::is_shortage(&error) => break,
            Err(_) => {}
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

/// The listener of this id on this core, which may not have taken the plan yet that has it.
fn find(core: &Core, id: ListenerId) -> Option<Rc<CoreListener>> {
    core.listeners.find(id).or_else(|| {
        core.refresh_plan();
        core.listeners.find(id)
    })
}

/// Serves a connection here, or hands it to a core that is much less busy.
fn place(core: &Rc<Core>, fd: OwnedFd, peer: Option<SocketAddr>, id: ListenerId) {
    let shared = &core.shared;
    let listener = find(core, id);
    let full = |listener: Rc<CoreListener>| places::is_full(core, peer, &listener);
    if listener.is_none_or(full) || !places::make_place(core) {
        shared.refused.fetch_add(1, Ordering::Relaxed);
        return;
    }
    let loads = shared.active.iter().map(|Padded(active)| active.load(Ordering::Relaxed));
    let mine = shared.active[core.index].0.load(Ordering::Relaxed);
    if let Some((idlest, least)) = loads.enumerate().min_by_key(|&(_, load)| load)
        && mine > least + IMBALANCE_MIN.max(least / 4)
        && idlest != core.index
        // A core that drains and is idle may end before it reads its mailbox again.
        && !core.draining.get()
    {
        // Counted before it arrives, or a whole burst would go to the core that was idlest.
        shared.count_connection(idlest, 1);
        match shared.mailboxes[idlest].send(Message::Connection { listener: id, fd, peer }) {
            Ok(()) => {}
            Err(back) => {
                shared.count_connection(idlest, -1);
                if let Message::Connection { fd, .. } = back {
                    shared.count_connection(core.index, 1);
                    begin(core, fd, peer, id);
                }
            }
        }
        return;
    }
    shared.count_connection(core.index, 1);
    begin(core, fd, peer, id);
}

/// Starts the task of a connection that has been counted; a panic in it costs that connection
/// alone.
pub fn begin(core: &Rc<Core>, fd: OwnedFd, peer: Option<SocketAddr>, id: ListenerId) {
    let keepalive = core.plan().tcp_keepalive;
    let Ok(socket) = Socket::adopt(fd, keepalive) else {
        return core.shared.count_connection(core.index, -1);
    };
    let listener = find(core, id);
    let counted =
        listener.map(|listener| (places::count_connection(core, peer, &listener), listener));
    let Some((Ok(counted), listener)) = counted else {
        core.shared.refused.fetch_add(1, Ordering::Relaxed);
        return core.shared.count_connection(core.index, -1);
    };
    let core = core.clone();
    rt::spawn(async move {
        let _counted = counted;
        let serving = pin!(conn::serve(&core, socket, peer, listener));
        core.count_panic(caught(serving).await.is_none());
        core.shared.count_connection(core.index, -1);
    });
}
