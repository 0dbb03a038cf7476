//! A plan and the sockets of its listeners, put in force together while the cores run.
//!
//! ```text
//! bind what is new → stop what goes → the plan → what comes to be another listener's, what is new
//! ```
//! Each core accepts for a listener only while its plan has it: what goes is stopped on all cores
//! before the plan without it is in force, and what is new is begun after. A connection that is
//! still on its way to another core meets the last plan that knew its listener
//! (`proxy::listeners`).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::listener_id::ListenerId;
use crate::net::dial::Address;
use crate::net::listener::ListeningSocket;
use crate::net::listener_set::{Change, Demand, Exported, ListenerSet};
use crate::net::mailbox::Message;
use crate::proxy::core::Shared;
use crate::proxy::plan::Plan;

/// How long the cores may take to follow one step of a change; a turn of the loop is the rule.
const FOLLOW_MAX: Duration = Duration::from_secs(5);

/// How a change came into force.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Cores that had not followed when their time was over. The plan is in force, and they come to
    /// it at their next tick; an order about a socket that did not fit into a full mailbox is lost.
    pub late: Vec<usize>,
    /// What a core could not do: it accepts nothing from a socket.
    pub failed: Vec<String>,
}

impl Applied {
    /// Errors: what was not done, and by which cores.
    pub(super) fn complete(self) -> Result<(), String> {
        let late = self.late.iter().map(|core| format!("core {core}: does not follow in time"));
        let amiss: Vec<String> = self.failed.into_iter().chain(late).collect();
        if amiss.is_empty() { Ok(()) } else { Err(amiss.join("; ")) }
    }
}

/// The listening sockets of a running server.
pub struct Listeners {
    shared: Arc<Shared>,
    set: Mutex<ListenerSet>,
}

/// The addresses that the listeners of a plan are to have.
pub(super) fn demands(plan: &Plan) -> Vec<Demand> {
    let listeners = plan.listeners.iter();
    let demands = listeners.flat_map(|listener| {
        let demand = |address: &Address| Demand { listener: listener.id, address: address.clone() };
        listener.binds.iter().map(demand)
    });
    demands.collect()
}

impl Listeners {
    /// Listens on nothing so far.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let cores = shared.mailboxes.len();
        Self { shared, set: Mutex::new(ListenerSet::new(cores)) }
    }

    /// Takes a socket over that another process has bound; `listen` uses it instead of binding.
    ///
    /// Errors: as `ListenerSet::adopt`.
    pub(super) fn adopt(&self, index: usize, socket: OwnedFd) -> io::Result<()> {
        self.set().adopt(index, socket)
    }

    /// Addresses that were adopted and that nothing has demanded so far.
    pub(super) fn unclaimed(&self) -> Vec<Address> {
        self.set().unclaimed().cloned().collect()
    }

    /// Binds what the plan in force demands, or takes what was adopted; no core is told yet.
    ///
    /// Errors: an address that cannot be had, with its listener; nothing is left bound.
    pub(super) fn bind(&self) -> io::Result<Change> {
        let (plan, _) = self.shared.slot.plan();
        self.set().prepare(&demands(&plan))
    }

    /// Begins to accept on all that was bound.
    ///
    /// Errors: a core cannot.
    pub(super) fn begin(&self, mut change: Change) -> io::Result<()> {
        let mut set = self.set();
        let listen = std::mem::take(&mut change.listen);
        let applied = self.listen_on(listen);
        set.commit(change);
        applied.complete().map_err(io::Error::other)
    }

    /// Accepts on nothing any more, and keeps the sockets: `resume` takes up again.
    ///
    /// What was accepted by then is served, and what waited to be.
    pub(super) fn pause(&self) -> Applied {
        let set = self.set();
        let mut applied = Applied::default();
        let stop = |bound| move || Message::StopListening { bound };
        self.tell_all(set.bound().map(stop), Vec::new(), &mut applied);
        applied
    }

    /// Accepts again on all sockets after `pause`.
    ///
    /// Errors: no descriptors are left, or a core cannot.
    pub(super) fn resume(&self) -> Result<(), String> {
        let sockets = self.set().again().map_err(|error| error.to_string())?;
        self.listen_on(sockets).complete()
    }

    /// Looks at every queue once: the kernel may have told a process that has ended, or is stopped, of
    /// connections that wait there.
    ///
    /// Errors: as `resume`.
    pub(super) fn look_at_queues(&self) -> Result<(), String> {
        self.pause();
        self.resume()
    }

    /// Gives each core a queue of its own where adopted sockets were fewer.
    ///
    /// Errors: a core cannot.
    pub(super) fn widen(&self) -> Result<(), String> {
        let mut set = self.set();
        let sockets = set.widen();
        set.own_files();
        match sockets.is_empty() {
            true => Ok(()),
            false => self.listen_on(sockets).complete(),
        }
    }

    /// Ports on which others listen as well, and how many sockets they have.
    pub(super) fn shared_ports(&self) -> Vec<(Address, usize)> {
        self.set().shared_ports()
    }

    /// Takes the files of adopted Unix sockets over: removed at the end.
    pub(super) fn own_files(&self) {
        self.set().own_files();
    }

    fn listen_on(&self, sockets: Vec<(usize, ListeningSocket)>) -> Applied {
        let mut applied = Applied::default();
        self.tell_all(std::iter::empty::<fn() -> Message>(), sockets, &mut applied);
        applied
    }

    /// Tries whether the addresses of a plan can be had; changes nothing.
    ///
    /// Errors: as `apply`.
    pub fn check(&self, plan: &Plan) -> Result<(), String> {
        self.set().prepare(&demands(plan)).map(drop).map_err(|error| error.to_string())
    }

    /// Puts a plan in force with the sockets that its listeners want.
    ///
    /// An exchange keeps the plan it began with. Connections of a listener that has gone end in
    /// order, an address that stays keeps its sockets.
    /// Errors: an address that cannot be had, with its listener; the plan before stays in force and
    /// nothing has changed.
    pub fn apply(&self, plan: Plan) -> Result<Applied, String> {
        let mut set = self.set();
        let mut change = set.prepare(&demands(&plan)).map_err(|error| error.to_string())?;
        let mut applied = Applied::default();
        if !change.stop.is_empty() {
            let stop = |&bound| move || Message::StopListening { bound };
            self.tell_all(change.stop.iter().map(stop), Vec::new(), &mut applied);
        }
        self.shared.swap(plan);
        let listen = std::mem::take(&mut change.listen);
        if !listen.is_empty() || !change.assign.is_empty() {
            let assign = |&(bound, listener)| move || Message::Assign { bound, listener };
            self.tell_all(change.assign.iter().map(assign), listen, &mut applied);
        }
        set.commit(change);
        Ok(applied)
    }

    /// Where it listens: listener and address, ports resolved, in the order of the plan.
    #[must_use]
    pub fn addresses(&self) -> Vec<(ListenerId, Address)> {
        self.set().addresses().map(|(listener, address)| (listener, address.clone())).collect()
    }

    /// Duplicates every socket for a process that comes next.
    ///
    /// Errors: no descriptors are left.
    pub fn export(&self) -> io::Result<Vec<Exported>> {
        self.set().export()
    }

    /// Leaves the files of Unix sockets in place at the end: another process listens there.
    pub fn leave_files(&self) {
        self.set().leave_files();
    }

    /// Gives the sockets up; the cores close theirs when they drain.
    pub(super) fn close(&self) {
        self.set().close();
    }

    /// Removes the files of the Unix sockets that this process has made.
    pub(super) fn remove_files(&self) {
        self.set().remove_files();
    }

    /// Sends messages to every core and each socket to its own, and waits until all have followed.
    fn tell_all<M: Fn() -> Message>(
        &self,
        messages: impl Iterator<Item = M>,
        sockets: Vec<(usize, ListeningSocket)>,
        applied: &mut Applied,
    ) {
        let by = Instant::now() + FOLLOW_MAX;
        let number = self.shared.acknowledged.draw();
        let cores = 0..self.shared.mailboxes.len();
        for message in messages {
            cores.clone().for_each(|core| self.tell(core, message(), by));
        }
        for (core, socket) in sockets {
            self.tell(core, Message::Listen(socket), by);
        }
        cores.for_each(|core| self.tell(core, Message::Acknowledge { number }, by));
        let left = by.saturating_duration_since(Instant::now());
        let late = self.shared.acknowledged.wait(number, left);
        applied.failed.extend(self.shared.acknowledged.take_failures());
        for core in late {
            if !applied.late.contains(&core) {
                applied.late.push(core);
            }
        }
    }

    /// Sends a message to one core; a mailbox that stays full belongs to a core that has stopped.
    fn tell(&self, core: usize, mut message: Message, by: Instant) {
        while let Err(back) = self.shared.mailboxes[core].send(message) {
            if Instant::now() >= by {
                return;
            }
            message = back;
            std::thread::yield_now();
        }
    }

    fn set(&self) -> MutexGuard<'_, ListenerSet> {
        // A change is made of whole steps: a thread that panicked meanwhile left none half done.
        self.set.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
