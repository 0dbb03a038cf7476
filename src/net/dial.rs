//! Connecting to an upstream.
//!
//! The socket is made non-blocking, `connect` is started, and a poll for writability waits until
//! the connect has ended. So the descriptor is known from the start (the ticker can end a slow
//! connect), and the future may be dropped when the client leaves: only a poll is in flight.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket as RawSocket, Type};

use super::rt::{Socket, is_epoll};
use super::stream::Handle;
use super::sys::{self, Shut};
use super::ticker::Timer;
use crate::config::Bind;

/// Where an upstream listens, after name resolution.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// IPv4 or IPv6.
    Tcp(SocketAddr),
    /// A path in the file system.
    Unix(PathBuf),
}

impl From<&Bind> for Address {
    fn from(bind: &Bind) -> Self {
        match bind {
            Bind::Tcp(addr) => Self::Tcp(*addr),
            Bind::Unix(path) => Self::Unix(path.clone()),
        }
    }
}

/// As people write it.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(addr) => write!(f, "{addr}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Connects within `timeout`, which `timer` watches; `keepalive` is the idle time of TCP before the
/// first probe.
///
/// Errors: what socket(2) or connect(2) said (`sys::is_shortage` tells which of them are a lack of
/// resources on this machine); `TimedOut` after `timeout`.
pub async fn connect(
    address: &Address,
    keepalive: Duration,
    timer: &Timer,
    timeout: Duration,
) -> io::Result<Socket> {
    let (socket, done) = start(address)?;
    let fd = socket.as_raw_fd();
    let socket = Socket::adopt(OwnedFd::from(socket), keepalive)?;
    if !done {
        timer.arm(Handle::Fd(fd), Shut::Both, timeout);
        socket.writable().await;
        let expired = timer.expired();
        timer.disarm();
        if expired {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if let Some(error) = pending_error(&socket)? {
            return Err(error);
        }
    }
    sys::set_flags(fd, is_epoll())?;
    Ok(socket)
}

fn start(address: &Address) -> io::Result<(RawSocket, bool)> {
    let (domain, to) = match address {
        Address::Tcp(addr) => (Domain::for_address(*addr), SockAddr::from(*addr)),
        Address::Unix(path) => (Domain::UNIX, SockAddr::unix(path)?),
    };
    let socket = RawSocket::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    let socket = sys::in_share(socket)?;
    match socket.connect(&to) {
        Ok(()) => Ok((socket, true)),
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok((socket, false)),
        Err(error) => Err(match address {
            Address::Tcp(addr) => sys::connect_error(addr, error),
            Address::Unix(_) => error,
        }),
    }
}

fn pending_error(socket: &Socket) -> io::Result<Option<io::Error>> {
    sys::with_socket(socket.fd(), |raw: SockRef<'_>| raw.take_error())
}
