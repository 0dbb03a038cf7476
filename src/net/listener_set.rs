//! Everything that this process listens on: which addresses, for which listeners, by which sockets.
//!
//! A change is made in two steps. `prepare` binds all that is new; when one address cannot be had,
//! what it has bound is closed and everything stays as it was. `commit` then makes the change the
//! state, which closes what nobody wants any more. Between the two the cores are told. An address
//! that stays keeps its sockets, whichever listener has it: connections that wait to be accepted
//! are not lost.
//!
//! The set keeps a descriptor of every socket, and each core has one of its own. So the sockets can
//! be handed to a next process at any time (`export`), and one takes over what it was given
//! (`adopt`), from a process before or from a service manager.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::dial::Address;
use super::listener::{self, BoundId, Listening, ListeningSocket};
use super::sharers::strangers;
use crate::base::listener_id::ListenerId;

/// An address that a listener is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Demand {
    /// The listener.
    pub listener: ListenerId,
    /// The address; port 0 = any free one.
    pub address: Address,
}

/// A socket for the process that comes next.
#[derive(Debug)]
pub struct Exported {
    /// The address it listens on.
    pub address: Address,
    /// Its position among the sockets of that address.
    pub index: usize,
    /// A descriptor of it.
    pub socket: OwnedFd,
}

/// One address with its sockets.
struct Bound {
    id: BoundId,
    demand: Demand,
    /// The address as it is: with a port.
    obtained: Address,
    sockets: Vec<OwnedFd>,
    /// The file of a Unix socket that this process has made.
    file: Option<SocketFile>,
    adopted: bool,
}

/// An address that was given to this process.
struct Given {
    address: Address,
    sockets: Vec<(usize, OwnedFd)>,
}

/// What this process listens on.
pub struct ListenerSet {
    cores: usize,
    bound: Vec<Bound>,
    given: Vec<Given>,
    next: u32,
    closed: bool,
}

/// What `prepare` has worked out and bound; dropped instead of committed, it leaves nothing behind.
pub struct Change {
    /// For each demand the address that stays, by its position in the set, or a new one.
    next: Vec<Source>,
    /// Sockets to begin with, each with its core.
    pub listen: Vec<(usize, ListeningSocket)>,
    /// Addresses that come to be another listener's.
    pub assign: Vec<(BoundId, ListenerId)>,
    /// Addresses that nobody wants any more.
    pub stop: Vec<BoundId>,
}

enum Source {
    Stays(usize, Demand),
    New(Bound),
}

impl ListenerSet {
    /// A set for this many cores, which listens on nothing.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        let cores = cores.max(1);
        Self { cores, bound: Vec::new(), given: Vec::new(), next: 0, closed: false }
    }

    /// Takes a listening socket over that another process has bound; a demand for its address uses
    /// it instead of binding.
    ///
    /// Shape: `index` is its position among the sockets of its address.
    /// Errors: it is no listening socket, or has an address that nobody can demand.
    pub fn adopt(&mut self, index: usize, socket: OwnedFd) -> io::Result<()> {
        let (address, listening) = Listening::of(socket)?;
        let socket = OwnedFd::from(listening);
        let at = self.given.iter().position(|given| given.address == address);
        let at = at.unwrap_or_else(|| {
            self.given.push(Given { address, sockets: Vec::new() });
            self.given.len() - 1
        });
        let sockets = &mut self.given[at].sockets;
        sockets.push((index, socket));
        sockets.sort_by_key(|(index, _)| *index);
        Ok(())
    }

    /// Duplicates every socket for a process that comes next.
    ///
    /// Errors: no descriptors are left.
    pub fn export(&self) -> io::Result<Vec<Exported>> {
        let all = self.bound.iter().filter(|_| !self.closed).flat_map(|bound| {
            bound.sockets.iter().enumerate().map(|(index, socket)| {
                let socket = socket.try_clone()?;
                Ok(Exported { address: bound.obtained.clone(), index, socket })
            })
        });
        all.collect()
    }

    /// Duplicates every socket for the cores, as at the beginning.
    ///
    /// Errors: no descriptors are left.
    pub fn again(&self) -> io::Result<Vec<(usize, ListeningSocket)>> {
        let each = self.bound.iter().filter(|_| !self.closed);
        let each = each.map(|bound| spread(bound, self.cores));
        Ok(each.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The addresses.
    pub fn bound(&self) -> impl Iterator<Item = BoundId> {
        self.bound.iter().map(|bound| bound.id)
    }

    /// Binds further sockets where an address has fewer than there are cores, which then share
    /// queues: what was adopted came from a process with fewer cores.
    ///
    /// Shape: the new sockets, each with its core. An address that takes no more keeps those it has.
    pub fn widen(&mut self) -> Vec<(usize, ListeningSocket)> {
        let mut listen = Vec::new();
        let cores = self.cores;
        for bound in self.bound.iter_mut().filter(|bound| bound.sockets.len() < cores) {
            let Address::Tcp(addr) = &bound.obtained else { continue };
            for core in bound.sockets.len()..cores {
                let Ok(socket) = listener::bind_further(*addr, &bound.sockets) else { break };
                let Ok(own) = socket.try_clone() else { break };
                bound.sockets.push(socket);
                let (bound, listener) = (bound.id, bound.demand.listener);
                listen.push((core, ListeningSocket { bound, listener, socket: own }));
            }
        }
        listen
    }

    /// Ports on which others listen as well, and how many sockets they have.
    pub fn shared_ports(&self) -> Vec<(Address, usize)> {
        let shared = self.bound.iter().filter_map(|bound| match &bound.obtained {
            Address::Tcp(addr) => match strangers(*addr, &bound.sockets) {
                0 => None,
                count => Some((bound.obtained.clone(), count)),
            },
            Address::Unix(_) => None,
        });
        shared.collect()
    }

    /// Takes the files of adopted Unix sockets over: this process removes them at its end.
    pub fn own_files(&mut self) {
        for bound in self.bound.iter_mut().filter(|bound| bound.adopted) {
            bound.file = bound.file.take().or_else(|| SocketFile::of(&bound.obtained));
        }
    }

    /// Leaves the files of Unix sockets in place when their addresses are given up: the process
    /// that comes next listens there.
    pub fn leave_files(&mut self) {
        self.bound.iter_mut().filter_map(|bound| bound.file.as_mut()).for_each(SocketFile::leave);
    }

    /// Removes the files of the Unix sockets that this process has made.
    pub fn remove_files(&mut self) {
        self.bound.iter_mut().for_each(|bound| bound.file = None);
    }

    /// Where it listens: listener and address, ports resolved, in the order of the demands.
    pub fn addresses(&self) -> impl Iterator<Item = (ListenerId, &Address)> {
        self.bound.iter().map(|bound| (bound.demand.listener, &bound.obtained))
    }

    /// Addresses that were adopted and that nothing has demanded so far; `commit` closes them.
    pub fn unclaimed(&self) -> impl Iterator<Item = &Address> {
        self.given.iter().map(|given| &given.address)
    }

    /// Works out how the set comes to have exactly these addresses, and binds what is new.
    ///
    /// Errors: an address that cannot be had, with its listener; the set is as before.
    pub fn prepare(&mut self, demands: &[Demand]) -> io::Result<Change> {
        let mut change = Change {
            next: Vec::with_capacity(demands.len()),
            listen: Vec::new(),
            assign: Vec::new(),
            stop: Vec::new(),
        };
        if self.closed {
            return Ok(change);
        }
        let have: Vec<(&Demand, &Address)> =
            self.bound.iter().map(|bound| (&bound.demand, &bound.obtained)).collect();
        let stays = match_up(&have, demands);
        for (at, bound) in self.bound.iter().enumerate() {
            if !stays.contains(&Some(at)) {
                change.stop.push(bound.id);
            }
        }
        for (demand, stays) in demands.iter().zip(stays) {
            if let Some(at) = stays {
                let bound = &self.bound[at];
                if bound.demand.listener != demand.listener {
                    change.assign.push((bound.id, demand.listener));
                }
                change.next.push(Source::Stays(at, demand.clone()));
                continue;
            }
            let opened = self.open(demand).and_then(|bound| {
                let listen = spread(&bound, self.cores);
                change.next.push(Source::New(bound));
                change.listen.extend(listen?);
                Ok(())
            });
            if let Err(error) = opened {
                self.take_back(change);
                let told = format!("listener.{}: {error}", demand.listener);
                return Err(io::Error::new(error.kind(), told));
            }
        }
        Ok(change)
    }

    /// Makes a prepared change the state, and closes this set's descriptors of what went.
    pub fn commit(&mut self, change: Change) {
        if self.closed {
            return;
        }
        let mut before: Vec<Option<Bound>> =
            std::mem::take(&mut self.bound).into_iter().map(Some).collect();
        for source in change.next {
            match source {
                Source::New(bound) => self.bound.push(bound),
                Source::Stays(at, demand) => {
                    let stays = before.get_mut(at).and_then(Option::take);
                    self.bound.extend(stays.map(|bound| Bound { demand, ..bound }));
                }
            }
        }
        // A socket that nobody accepts from must not go on taking connections.
        self.given.clear();
    }

    /// Closes this set's descriptors; from now on it listens on nothing.
    ///
    /// Shape: files of Unix sockets stay until the set is dropped.
    pub fn close(&mut self) {
        self.closed = true;
        self.given.clear();
        self.bound.iter_mut().for_each(|bound| bound.sockets.clear());
    }

    fn open(&mut self, demand: &Demand) -> io::Result<Bound> {
        let given = self.given.iter().position(|given| given.address == demand.address);
        let id = BoundId(self.next);
        self.next += 1;
        let demand = demand.clone();
        if let Some(at) = given {
            let Given { address, sockets } = self.given.remove(at);
            let sockets = sockets.into_iter().map(|(_, socket)| socket).collect();
            return Ok(Bound { id, demand, obtained: address, sockets, file: None, adopted: true });
        }
        let (obtained, listening) = listener::bind(&demand.address, self.cores)?;
        let sockets = listening.into_iter().map(OwnedFd::from).collect();
        let file = SocketFile::of(&obtained);
        Ok(Bound { id, demand, obtained, sockets, file, adopted: false })
    }

    /// Gives back what a change that failed has taken; what it has bound is closed.
    fn take_back(&mut self, change: Change) {
        for source in change.next {
            if let Source::New(Bound { obtained: address, sockets, adopted: true, .. }) = source {
                let sockets = sockets.into_iter().enumerate().collect();
                self.given.push(Given { address, sockets });
            }
        }
    }
}

/// Which of the addresses there are serves each demand; `None` = it is to be bound.
///
/// Port 0 is any port: only the listener's own address of that kind serves such a demand.
fn match_up(have: &[(&Demand, &Address)], demands: &[Demand]) -> Vec<Option<usize>> {
    let mut taken = vec![false; have.len()];
    let mut found = vec![None; demands.len()];
    let any_port = |address: &Address| matches!(address, Address::Tcp(addr) if addr.port() == 0);
    let same = |(had, _): &(&Demand, &Address), demand: &Demand| *had == demand;
    let moved = |(had, obtained): &(&Demand, &Address), demand: &Demand| {
        !any_port(&demand.address)
            && (had.address == demand.address || **obtained == demand.address)
    };
    // First what stays as it is, so that no other listener takes it.
    for serves in [&same as &dyn Fn(&(&Demand, &Address), &Demand) -> bool, &moved] {
        for (demand, found) in demands.iter().zip(&mut found).filter(|(_, found)| found.is_none()) {
            let at = (0..have.len()).find(|at| !taken[*at] && serves(&have[*at], demand));
            if let Some(at) = at {
                taken[at] = true;
                *found = Some(at);
            }
        }
    }
    found
}

/// Duplicates the sockets of an address for the cores: each core has one at least, and each socket
/// a core that accepts from it.
fn spread(bound: &Bound, cores: usize) -> io::Result<Vec<(usize, ListeningSocket)>> {
    let count = bound.sockets.len();
    let pairs = (0..count.max(cores)).map(|at| (at % cores, &bound.sockets[at % count]));
    pairs
        .map(|(core, socket)| {
            let socket = socket.try_clone()?;
            let listener = bound.demand.listener;
            Ok((core, ListeningSocket { bound: bound.id, listener, socket }))
        })
        .collect()
}

/// A file in the file system, whatever else comes to have its name; removed on drop.
struct SocketFile {
    path: PathBuf,
    /// What tells it from a file that has come in its place; none = it is left in place.
    identity: Option<FileIdentity>,
}

impl SocketFile {
    fn of(address: &Address) -> Option<Self> {
        let Address::Unix(path) = address else { return None };
        Some(Self { path: path.clone(), identity: identity(path) })
    }

    fn leave(&mut self) {
        self.identity = None;
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Somebody else may have removed it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device, inode, and when the inode last changed: file systems give the inode of a removed file to
/// the next one.
type FileIdentity = (u64, u64, i64, i64);

fn identity(path: &Path) -> Option<FileIdentity> {
    let meta = fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

#[cfg(test)]
mod tests;
