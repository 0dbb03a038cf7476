//! The system calls that std has no name for, each behind a safe function.
//!
//! Everything here works on a raw descriptor that the caller keeps open for the call; a wrong
//! descriptor gives `EBADF`, never undefined behaviour. Nothing here blocks.
#![allow(unsafe_code)]

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::base::clock::{Clock, Moment, WallTime};

/// Which direction of a connection to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shut {
    /// The receive side: a pending receive ends with 0 bytes.
    Read,
    /// The send side: the peer sees the end of the stream.
    Write,
    /// Both sides.
    Both,
}

/// Ends one or both directions of a socket; every pending operation on it completes.
///
/// Errors are of no use to a caller: the socket is going away either way.
pub fn shutdown(fd: RawFd, how: Shut) {
    let how = match how {
        Shut::Read => libc::SHUT_RD,
        Shut::Write => libc::SHUT_WR,
        Shut::Both => libc::SHUT_RDWR,
    };
    // SAFETY: shutdown takes two integers and touches no memory of ours.
    unsafe { libc::shutdown(fd, how) };
}

/// What a receive would find now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// Bytes wait to be received.
    Data,
    /// The peer has ended or reset the connection.
    Gone,
    /// No byte and no end: a receive would wait.
    Nothing,
}

/// Wall-clock time, in seconds since 1970: for times that outlive the process, as those of tickets
/// and certificates do.
#[must_use]
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// What the wall's clock shows. It may jump when the clock is set.
#[must_use]
pub fn wall_time() -> WallTime {
    WallTime::default() + SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Where the steady time of this process begins: at the first call.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(Instant::now)
}

/// The moment that it is now, the same on all threads.
#[must_use]
pub fn now() -> Moment {
    Moment::after(origin(), Instant::now())
}

/// The clocks of this process, the wall's as it stands now.
#[must_use]
pub fn clock() -> Clock {
    let clock = Clock::new(origin());
    clock.set_wall(Instant::now(), wall_time());
    clock
}

/// Tells what a receive would find, and takes nothing.
#[must_use]
pub fn peek(fd: RawFd) -> Peek {
    let mut byte = 0u8;
    // SAFETY: the buffer is one live byte and the length says so.
    let n =
        unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_PEEK | libc::MSG_DONTWAIT) };
    match n {
        0 => Peek::Gone,
        1.. => Peek::Data,
        _ => match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Peek::Nothing,
            _ => Peek::Gone,
        },
    }
}

/// Whether a listening socket has a connection that waits to be accepted.
#[must_use]
pub fn has_waiting(fd: RawFd) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `entry` is one live pollfd for the duration of the call, which does not wait.
    let n = unsafe { libc::poll(&raw mut entry, 1, 0) };
    n == 1 && entry.revents & libc::POLLIN != 0
}

/// Tells whether the peer has hung up although unread bytes wait before the end.
///
/// Source: poll(2), POLLRDHUP; `peek` cannot see an end behind pipelined bytes.
#[must_use]
pub fn hung_up(fd: RawFd) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLRDHUP, revents: 0 };
    // SAFETY: one live pollfd, count 1, timeout 0.
    let n = unsafe { libc::poll(&raw mut entry, 1, 0) };
    n > 0 && entry.revents & (libc::POLLRDHUP | libc::POLLHUP | libc::POLLERR) != 0
}

/// Waits at most `limit` until something can be written, or the other side has gone.
///
/// Shape: true also for an error, which the write itself will tell. A pipe that can be written takes
/// at least `libc::PIPE_BUF` bytes.
#[must_use]
pub fn wait_writable(fd: RawFd, limit: Duration) -> bool {
    let mut entry = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one live pollfd, count 1.
    unsafe { libc::poll(&raw mut entry, 1, limit_ms) > 0 }
}

/// Receives into the spare capacity of `buffer` without waiting.
///
/// Shape: returns how many bytes were appended. `Ok(Some(0))` is the end of the stream (or a buffer
/// without spare capacity: leave some), `Ok(None)` means that a receive would have to wait.
pub fn recv_now(fd: RawFd, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    received(fd, buffer, usize::MAX, 0)
}

/// As `recv_now`, but at most `bytes_max` bytes.
pub fn recv_some_now(
    fd: RawFd,
    buffer: &mut Vec<u8>,
    bytes_max: usize,
) -> io::Result<Option<usize>> {
    received(fd, buffer, bytes_max, 0)
}

/// As `recv_now`, but leaves the bytes in the socket, to be received again.
pub fn peek_now(fd: RawFd, buffer: &mut Vec<u8>) -> io::Result<Option<usize>> {
    received(fd, buffer, usize::MAX, libc::MSG_PEEK)
}

fn received(
    fd: RawFd,
    buffer: &mut Vec<u8>,
    bytes_max: usize,
    flags: i32,
) -> io::Result<Option<usize>> {
    let room = buffer.spare_capacity_mut();
    let (start, bytes) = (room.as_mut_ptr().cast(), room.len().min(bytes_max));
    // SAFETY: pointer and length stay within one live slice; the kernel writes only into it.
    let n = unsafe { libc::recv(fd, start, bytes, libc::MSG_DONTWAIT | flags) };
    match n {
        0.. => {
            // SAFETY: the kernel has written `n` bytes behind the length, within the capacity.
            unsafe { buffer.set_len(buffer.len() + n.unsigned_abs()) };
            Ok(Some(n.unsigned_abs()))
        }
        _ => match io::Error::last_os_error() {
            e if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Ok(None)
            }
            e => Err(e),
        },
    }
}

/// Sends what fits without waiting.
///
/// Shape: returns how many bytes the kernel took; `Ok(0)` means that a send would have to wait.
/// Errors: whatever send(2) says; `EPIPE` comes without a signal.
pub fn send_now(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length come from one live slice.
    let n = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    taken(n)
}

/// As `send_now`, for two pieces in one call; returns the bytes taken of both together.
pub fn send_both_now(fd: RawFd, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let piece = |bytes: &[u8]| libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut pieces = [piece(first), piece(second)];
    // SAFETY: an all-zero msghdr is a valid empty one; sendmsg only reads the two live slices.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len() as _;
        libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
    };
    taken(n)
}

fn taken(n: isize) -> io::Result<usize> {
    match n {
        0.. => Ok(n.unsigned_abs()),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
            e => Err(e),
        },
    }
}

/// Sets or clears O_NONBLOCK and sets FD_CLOEXEC.
///
/// io_uring wants blocking descriptors (it polls by itself; a non-blocking one would answer
/// EAGAIN at once), epoll wants non-blocking ones.
pub fn set_flags(fd: RawFd, nonblocking: bool) -> io::Result<()> {
    let status = if nonblocking { libc::O_NONBLOCK } else { 0 };
    // SAFETY: fcntl with integer arguments only.
    let ok = unsafe {
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) >= 0
            && libc::fcntl(fd, libc::F_SETFL, status) >= 0
    };
    if ok { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether a call failed for lack of a resource of this machine: descriptors, memory, ports,
/// watches of epoll. Such an error says nothing about the peer.
///
/// Shape: also looks at the errors that `error` wraps; those of `h2` and `hyper` wrap a socket's.
#[must_use]
pub fn is_shortage(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        // Two types hide the wrapped error from `source`: `h2::Error` has no source at all, and
        // `io::Error::source` skips the wrapped error and returns its source.
        let of_h2 = error.downcast_ref().and_then(h2::Error::get_io);
        next = match of_h2.or_else(|| error.downcast_ref::<io::Error>()) {
            Some(error) if is_lack(error) => return true,
            Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// The error of a connect to `addr`, with one ambiguity of the kernel removed.
///
/// EADDRNOTAVAIL means that no local port is left, which is a shortage. A machine without IPv6
/// gives it for every IPv6 address, where it means that the address cannot be reached: there
/// it becomes ENETUNREACH.
#[cold]
#[must_use]
pub fn connect_error(addr: &SocketAddr, error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::EADDRNOTAVAIL) if addr.is_ipv6() => {
            io::Error::from_raw_os_error(libc::ENETUNREACH)
        }
        _ => error,
    }
}

/// Whether this one error is a shortage; an error without an errno is judged by its kind.
fn is_lack(error: &io::Error) -> bool {
    match error.raw_os_error() {
        Some(errno) => matches!(
            errno,
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOMEM
                | libc::ENOBUFS
                | libc::EADDRNOTAVAIL
                | libc::ENOSPC
        ),
        None => matches!(error.kind(), io::ErrorKind::OutOfMemory),
    }
}

/// The data plane may use descriptors below this number.
static DESCRIPTORS_MAX: AtomicI32 = AtomicI32::new(i32::MAX);

/// Keeps the last `kept` of `limit` descriptors out of the data plane's use (`in_share`), so that
/// the control thread and the operator's interface go on when clients have taken all others.
///
/// The kernel gives the lowest free number, so descriptor `n` means that `n` others are open.
pub fn keep_descriptors(limit: u64, kept: u64) {
    let first = i32::try_from(limit.saturating_sub(kept)).unwrap_or(i32::MAX);
    DESCRIPTORS_MAX.store(first, Ordering::Relaxed);
}

/// Returns a new descriptor of the data plane if its number is below the data plane's limit.
///
/// Errors: `EMFILE` if the number is one of those kept by `keep_descriptors`; it is closed then.
pub fn in_share<F: AsRawFd>(fd: F) -> io::Result<F> {
    match fd.as_raw_fd() < DESCRIPTORS_MAX.load(Ordering::Relaxed) {
        true => Ok(fd),
        false => Err(io::Error::from_raw_os_error(libc::EMFILE)),
    }
}

/// Raises the soft limit on open files to the hard one, and returns the limit now in force.
#[must_use]
pub fn raise_open_files() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit for both calls.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return 1024;
        }
        if limit.rlim_cur < limit.rlim_max {
            let wanted = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
            if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wanted) == 0 {
                limit.rlim_cur = limit.rlim_max;
            }
        }
    }
    limit.rlim_cur
}

/// The numbers of the cores this process may run on, ascending; never empty.
#[must_use]
pub fn affinity() -> Vec<usize> {
    // SAFETY: an all-zero cpu_set_t is a valid empty set, and the call fills it within its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return vec![0];
        }
        set
    };
    // SAFETY: CPU_ISSET reads the set just filled; the index stays below CPU_SETSIZE.
    (0..libc::CPU_SETSIZE.unsigned_abs() as usize)
        .filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) })
        .collect()
}

/// Two connected message sockets (SOCK_SEQPACKET): a message arrives whole or not at all.
pub fn message_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: `ends` has room for the two descriptors; on success they are ours alone.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// The process at the other end of a Unix socket, as the kernel tells: its number and its user.
///
/// Shape: the number is 0 for a process of another PID namespace.
pub fn peer_credentials(fd: RawFd) -> io::Result<(i32, u32)> {
    let mut told = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: `told` has the room that `bytes` says.
    let ok = unsafe {
        let into = (&raw mut told).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, into, &raw mut bytes)
    };
    match ok {
        0 => Ok((told.pid, told.uid)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has neither this process nor one that it starts gain rights by running a program (a set-user-ID
/// bit, capabilities of a file).
pub fn gain_no_rights() {
    // Kernels have had it since 3.5; one that has not leaves all as it was.
    let _ = rustix::thread::set_no_new_privs(true);
}

/// The effective user of this process.
#[must_use]
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Takes ownership of a descriptor received as a number, from another thread of this process or
/// from the service manager.
///
/// The sender has given up its own ownership with `into_raw_fd`; see `mailbox`.
#[must_use]
pub fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: `mailbox` sends each number exactly once, after `into_raw_fd`; those of the service
    // manager are asked for once, at the start.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A pipe for `splice_now`, as (read end, write end); the kernel may grant less than `bytes`.
pub fn pipe(bytes: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors; on success they are ours alone.
    let (read, write) = unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
            return Err(io::Error::last_os_error());
        }
        (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1]))
    };
    // SAFETY: fcntl with integer arguments. A refusal leaves the default size, which works too.
    unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    Ok((in_share(read)?, in_share(write)?))
}

/// Moves up to `bytes` from one descriptor to another inside the kernel, without waiting.
///
/// Shape: returns how many bytes were moved. `Ok(Some(0))` is the end of `from`; `Ok(None)` means
/// that one of the two sides is not ready.
pub fn splice_now(from: RawFd, to: RawFd, bytes: usize) -> io::Result<Option<usize>> {
    let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
    let (none_in, none_out) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: null offsets are what splice wants for pipes and sockets; no memory is passed.
    let n = unsafe { libc::splice(from, none_in, to, none_out, bytes, flags) };
    match n {
        0.. => Ok(Some(n.unsigned_abs())),
        _ => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            e => Err(e),
        },
    }
}

/// Calls `use_it` with a descriptor as a socket whose options can be read and set.
pub fn with_socket<T>(fd: RawFd, use_it: impl FnOnce(socket2::SockRef<'_>) -> T) -> T {
    // SAFETY: the caller keeps the descriptor open for the call; SockRef does not close it.
    let socket = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    use_it(socket2::SockRef::from(&socket))
}

/// Sets the options of a TCP connection: no delay, keep-alive probes.
///
/// Errors are ignored on purpose: a Unix socket has neither.
pub fn tune_tcp(fd: RawFd, keepalive: Duration) {
    let probes = socket2::TcpKeepalive::new()
        .with_time(keepalive)
        .with_interval(keepalive / 3 + Duration::from_secs(1))
        .with_retries(3);
    with_socket(fd, |socket| {
        let _ = socket.set_tcp_nodelay(true);
        let _ = socket.set_tcp_keepalive(&probes);
    });
}

/// Makes the coming close send a reset, so that the peer does not take it for a clean end.
///
/// Source: SO_LINGER with zero time, tcp(7).
pub fn close_with_reset(fd: RawFd) {
    // An error leaves the normal close; the peer still sees that the message is incomplete.
    let _ = with_socket(fd, |socket| socket.set_linger(Some(Duration::ZERO)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn peek_tells_nothing_data_and_gone_apart() {
        let (mut client, server) = pair();
        assert_eq!(peek(server.as_raw_fd()), Peek::Nothing);
        client.write_all(b"x").unwrap();
        while peek(server.as_raw_fd()) == Peek::Nothing {}
        assert_eq!(peek(server.as_raw_fd()), Peek::Data);
        assert!(!hung_up(server.as_raw_fd()));
        drop(client);
        while !hung_up(server.as_raw_fd()) {}
        assert_eq!(peek(server.as_raw_fd()), Peek::Data, "bytes before the end stay readable");
    }

    #[test]
    fn tells_what_is_our_own_lack_from_what_the_peer_did() {
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::EADDRNOTAVAIL]
        {
            assert!(is_shortage(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
        for errno in [libc::ECONNREFUSED, libc::ECONNRESET, libc::EHOSTUNREACH, libc::ETIMEDOUT] {
            assert!(!is_shortage(&io::Error::from_raw_os_error(errno)), "{errno}");
        }
        assert!(!is_shortage(&io::Error::from(io::ErrorKind::TimedOut)));
    }

    #[test]
    fn a_machine_without_ipv6_lacks_no_ports() {
        let failed = |addr: &str, errno| {
            let error = io::Error::from_raw_os_error(errno);
            is_shortage(&connect_error(&addr.parse().unwrap(), error))
        };
        assert!(!failed("[::1]:80", libc::EADDRNOTAVAIL));
        assert!(failed("127.0.0.1:80", libc::EADDRNOTAVAIL) && failed("[::1]:80", libc::EMFILE));
    }

    /// An error like hyper's: `source` returns the error that it wraps.
    #[derive(Debug)]
    struct Wrapped(io::Error);

    impl std::fmt::Display for Wrapped {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            Ok(())
        }
    }

    impl Error for Wrapped {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            Some(&self.0)
        }
    }

    #[test]
    fn finds_our_own_lack_in_what_an_error_wraps() {
        for (errno, ours) in [(libc::ENOBUFS, true), (libc::ECONNRESET, false)] {
            let bare = || io::Error::from_raw_os_error(errno);
            assert_eq!(is_shortage(&io::Error::other(bare())), ours, "{errno}");
            assert_eq!(is_shortage(&Wrapped(bare())), ours, "{errno}");
            let deep =
                io::Error::new(io::ErrorKind::InvalidData, Wrapped(io::Error::other(bare())));
            assert_eq!(is_shortage(&deep), ours, "{errno}");
        }
        assert!(is_shortage(&io::Error::new(io::ErrorKind::OutOfMemory, "told in words")));
        assert!(!is_shortage(&Wrapped(io::ErrorKind::UnexpectedEof.into())));
    }

    #[test]
    fn affinity_is_never_empty() {
        assert!(!affinity().is_empty());
    }
}
