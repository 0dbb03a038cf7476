//! Listening sockets: one per core and address, all bound before any core begins.
//!
//! TCP listeners share their port by SO_REUSEPORT, so each core has an accept queue of its own. The
//! first socket binds without that option, so the bind fails when any other process has the port:
//! the kernel would otherwise give that process a part of the connections. A Unix path has one
//! queue; every core accepts from it. Never TCP_DEFER_ACCEPT: a handover would lose the connections
//! that the kernel still holds back.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use socket2::{Domain, SockRef, Socket, Type};

use super::dial::Address;
use crate::base::listener_id::ListenerId;

/// Length of the accept queue that is asked for; the kernel lowers it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// An address that this process listens on, with one socket or more; the number is never given
/// twice by one `ListenerSet`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundId(pub u32);

/// A listening socket on its way to a core.
#[derive(Debug)]
pub struct ListeningSocket {
    /// Its address.
    pub bound: BoundId,
    /// Whose connections come by it.
    pub listener: ListenerId,
    /// The socket.
    pub socket: OwnedFd,
}

/// A bound and listening socket, not yet on any core's runtime.
pub enum Listening {
    /// IPv4 or IPv6.
    Tcp(std::net::TcpListener),
    /// A path in the file system.
    Unix(UnixListener),
}

impl Listening {
    /// Takes a listening socket that another process has bound, with its address.
    ///
    /// Errors: it does not listen, or has no address that a config can name.
    pub fn of(socket: OwnedFd) -> io::Result<(Address, Self)> {
        let invalid = |why| io::Error::new(io::ErrorKind::InvalidInput, why);
        let of = SockRef::from(&socket);
        if !of.is_listener()? {
            return Err(invalid("it does not listen"));
        }
        let addr = of.local_addr()?;
        if let Some(addr) = addr.as_socket() {
            return Ok((Address::Tcp(addr), Self::Tcp(socket.into())));
        }
        let path = addr.as_pathname().ok_or_else(|| invalid("it has no address"))?;
        Ok((Address::Unix(path.to_owned()), Self::Unix(socket.into())))
    }

    /// Another descriptor of the socket.
    ///
    /// Errors: no descriptors are left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        match self {
            Self::Tcp(socket) => socket.try_clone().map(OwnedFd::from),
            Self::Unix(socket) => socket.try_clone().map(OwnedFd::from),
        }
    }

    /// Has its calls return at once, for a runtime that waits by itself.
    pub fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_nonblocking(true),
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }
}

impl From<Listening> for OwnedFd {
    fn from(listening: Listening) -> Self {
        match listening {
            Listening::Tcp(socket) => socket.into(),
            Listening::Unix(socket) => socket.into(),
        }
    }
}

/// Binds one address `copies` times, once for each core.
///
/// Shape: also returns the address obtained, which tells the port chosen for port 0.
/// Errors: whatever bind(2) says, with the address named.
pub fn bind(address: &Address, copies: usize) -> io::Result<(Address, Vec<Listening>)> {
    let named = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                " (another process listens there, or this one on an address that overlaps)"
            }
            _ => "",
        };
        io::Error::new(error.kind(), format!("cannot listen on {address}: {error}{hint}"))
    };
    match address {
        Address::Tcp(addr) => bind_tcp(*addr, copies).map_err(named),
        Address::Unix(path) => bind_unix(path, copies).map_err(named),
    }
}

fn bind_tcp(addr: SocketAddr, copies: usize) -> io::Result<(Address, Vec<Listening>)> {
    let mut obtained = addr;
    let mut listening = Vec::with_capacity(copies);
    for copy in 0..copies.max(1) {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), None)?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(copy > 0)?;
        socket.bind(&obtained.into())?;
        socket.listen(BACKLOG)?;
        // The port is bound now, so our own further sockets may share it. Without copies the option
        // stays off, and the port is shared with nobody.
        if copy == 0 && copies > 1 {
            socket.set_reuse_port(true)?;
        }
        let listener = std::net::TcpListener::from(socket);
        obtained = listener.local_addr()?;
        listening.push(Listening::Tcp(listener));
    }
    Ok((Address::Tcp(obtained), listening))
}

/// Binds one more socket to an address that this process listens on.
///
/// Errors: the sockets there are another user's, or may not be shared.
pub fn bind_further(addr: SocketAddr, there: &[OwnedFd]) -> io::Result<OwnedFd> {
    // Of a process with one core, which shared its port with nobody.
    there.iter().try_for_each(|socket| SockRef::from(socket).set_reuse_port(true))?;
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.cloexec(), None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn bind_unix(path: &Path, copies: usize) -> io::Result<(Address, Vec<Listening>)> {
    remove_stale(path);
    let first = UnixListener::bind(path)?;
    SockRef::from(&first).listen(BACKLOG)?;
    let mut listening = Vec::with_capacity(copies);
    for _ in 1..copies.max(1) {
        listening.push(Listening::Unix(first.try_clone()?));
    }
    listening.push(Listening::Unix(first));
    Ok((Address::Unix(path.to_owned()), listening))
}

/// Removes a socket file on which no process listens any more; any other file stays.
fn remove_stale(path: &Path) {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket());
    // Any other error says something of this process, not of that one.
    let nobody = || {
        let refused = UnixStream::connect(path).map_err(|error| error.kind());
        matches!(refused, Err(io::ErrorKind::ConnectionRefused))
    };
    if is_socket && nobody() {
        // A failure shows at the bind that follows.
        let _ = fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_core_gets_the_port_that_the_first_obtained() {
        let any = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (Address::Tcp(obtained), listening) = bind(&any, 3).unwrap() else { unreachable!() };
        assert_ne!(obtained.port(), 0);
        for listener in listening {
            let Listening::Tcp(listener) = listener else { unreachable!() };
            assert_eq!(listener.local_addr().unwrap(), obtained);
        }
    }

    #[test]
    fn a_port_is_shared_with_no_stranger() {
        let any = Address::Tcp("127.0.0.1:0".parse().unwrap());
        for copies in [1, 3] {
            let (obtained, first) = bind(&any, copies).unwrap();
            for strangers in [1, 2] {
                let error = bind(&obtained, strangers).err().unwrap();
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
                let Address::Tcp(addr) = obtained else { unreachable!() };
                assert!(error.to_string().contains(&addr.to_string()), "{error}");
            }
            drop(first);
            assert!(bind(&obtained, 2).is_ok());
        }
    }

    #[test]
    fn a_stale_socket_file_is_replaced_and_a_plain_file_is_not() {
        let folder = std::env::temp_dir().join(format!("tokenring-listen-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(bind(&Address::Unix(path.clone()), 2).is_ok());
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"precious").unwrap();
        let error = bind(&Address::Unix(path.clone()), 1).err().unwrap();
        assert!(error.to_string().contains("cannot listen on unix:"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        fs::remove_dir_all(&folder).unwrap();
    }
}
