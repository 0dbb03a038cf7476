//! The socket over which one process hands its listening sockets to the next: whole messages, with
//! descriptors, between two processes of one user.
//!
//! It is a Unix socket of type SOCK_SEQPACKET: a message comes whole or not at all, and the end of
//! the other process shows at once. Its name is abstract (unix(7)): no file to remove, and it ends
//! with the last descriptor of it. Every wait has a limit, because the other process may have been
//! stopped.

use std::io;
use std::io::{IoSlice, IoSliceMut, Read, Seek, SeekFrom, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::sys;

/// Most descriptors of one message (SCM_MAX_FD of Linux).
pub const FDS_MAX: usize = 253;
/// Most bytes of one message; what may be longer travels as a file in memory.
pub const MESSAGE_MAX: usize = 64 << 10;
/// Most bytes of a file in memory that is read.
const FILE_MAX: u64 = 256 << 20;
/// Processes that may wait to be heard.
const BACKLOG: i32 = 16;

/// The name of such a socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// A name without a file; of this network namespace.
    Abstract(String),
    /// A path in the file system.
    Path(PathBuf),
}

impl Name {
    fn address(&self) -> io::Result<SocketAddrUnix> {
        Ok(match self {
            Name::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_bytes())?,
            Name::Path(path) => SocketAddrUnix::new(path)?,
        })
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Name::Abstract(name) => write!(f, "@{name}"),
            Name::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The other process of a connection, as the kernel tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number; 0 = it is in another PID namespace.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
}

/// A socket that other processes connect to.
pub struct ControlSocket {
    socket: OwnedFd,
    /// Where it is bound.
    pub name: Name,
    /// What tells the file from one that has come in its place: device and inode.
    file: Option<(u64, u64)>,
}

impl ControlSocket {
    /// Binds a name.
    ///
    /// A path is taken over from whoever has it: the process that comes next has its socket there
    /// while the one before still has a file to leave.
    /// Errors: an abstract name that another process has; a folder that is not there.
    pub fn open(name: Name) -> io::Result<Self> {
        let socket = socket()?;
        match &name {
            Name::Abstract(_) => {
                rustix::net::bind(&socket, &name.address()?)?;
                rustix::net::listen(&socket, BACKLOG)?;
            }
            Name::Path(path) => {
                let beside = beside(path);
                // What an earlier try left there; a failure shows at the bind.
                let _ = std::fs::remove_file(&beside);
                rustix::net::bind(&socket, &SocketAddrUnix::new(&beside)?)?;
                rustix::net::listen(&socket, BACKLOG)?;
                std::fs::rename(&beside, path)?;
            }
        }
        let file = identity(&name);
        Ok(Self { socket, name, file })
    }

    /// Removes the file of a path, unless another process has put its own there.
    pub fn remove_file(&self) {
        if let Name::Path(path) = &self.name
            && self.file.is_some()
            && identity(&self.name) == self.file
        {
            // Somebody else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Accepts a connection, if one waits.
    ///
    /// Errors: no descriptors are left.
    pub fn accept(&self) -> io::Result<Option<Channel>> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        match rustix::net::accept_with(&self.socket, flags) {
            Ok(socket) => Channel::of(socket).map(Some),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn identity(name: &Name) -> Option<(u64, u64)> {
    let Name::Path(path) = name else { return None };
    let meta = std::fs::symlink_metadata(path).ok()?;
    Some((meta.dev(), meta.ino()))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    path.with_file_name(name)
}

fn socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::SEQPACKET;
    Ok(rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?)
}

/// Waits until one of several descriptors can be read, at most so long. Returns which can.
pub fn wait_readable(of: &[BorrowedFd<'_>], limit: Duration) -> Vec<bool> {
    let mut entries: Vec<PollFd<'_>> =
        of.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let limit = Timespec::try_from(limit).ok();
    match poll(&mut entries, limit.as_ref()) {
        Ok(_) => entries.iter().map(|entry| !entry.revents().is_empty()).collect(),
        // Interrupted: whoever waits comes again.
        Err(_) => vec![false; of.len()],
    }
}

/// What came of a wait for a message.
#[derive(Debug)]
pub enum Received {
    /// A message with its descriptors.
    Message(Vec<u8>, Vec<OwnedFd>),
    /// The other process has closed its end, or has ended.
    Ended,
    /// Nothing within the limit.
    Silent,
}

/// A connection to the other process.
pub struct Channel {
    socket: OwnedFd,
    /// Who is at the other end.
    pub peer: Peer,
}

impl Channel {
    /// Connects to a name; `None` when nobody is there.
    ///
    /// Errors: this process may not, or has no descriptors left.
    pub fn connect(name: &Name) -> io::Result<Option<Self>> {
        use rustix::io::Errno;
        let socket = socket()?;
        match rustix::net::connect(&socket, &name.address()?) {
            Ok(()) => Self::of(socket).map(Some),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
            Err(Errno::AGAIN) => {
                let why = "too many processes wait for the one that serves";
                Err(io::Error::new(io::ErrorKind::WouldBlock, why))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Two ends of one connection within this process.
    #[cfg(test)]
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::SEQPACKET;
        let (a, b) = rustix::net::socketpair(AddressFamily::UNIX, kind, flags, None)?;
        Ok((Self::of(a)?, Self::of(b)?))
    }

    fn of(socket: OwnedFd) -> io::Result<Self> {
        let (pid, uid) = sys::peer_credentials(socket.as_raw_fd())?;
        Ok(Self { socket, peer: Peer { pid, uid } })
    }

    /// Sends a message with descriptors, at most `FDS_MAX`; waits for room at most so long.
    ///
    /// Errors: the other process has ended, or takes nothing.
    pub fn send(
        &self,
        bytes: &[u8],
        descriptors: &[BorrowedFd<'_>],
        limit: Duration,
    ) -> io::Result<()> {
        if bytes.len() > MESSAGE_MAX || descriptors.len() > FDS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long"));
        }
        let by = Instant::now() + limit;
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            match rustix::net::sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::AGAIN) => {
                    let left = by.saturating_duration_since(Instant::now());
                    if left.is_zero() || !sys::wait_writable(self.socket.as_raw_fd(), left) {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits for a message, at most so long.
    ///
    /// What has arrived already is taken even if the limit is over: this process may have been
    /// stopped meanwhile.
    /// Errors: a message that is cut off, or whose descriptors did not fit (MSG_CTRUNC).
    pub fn receive(&self, limit: Duration) -> io::Result<Received> {
        let by = Instant::now() + limit;
        let mut bytes = vec![0; MESSAGE_MAX];
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            let mut into = [IoSliceMut::new(&mut bytes)];
            let got = match rustix::net::recvmsg(&self.socket, &mut into, &mut control, flags) {
                Ok(got) => got,
                Err(rustix::io::Errno::INTR) => continue,
                Err(rustix::io::Errno::AGAIN) => {
                    let left = by.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(Received::Silent);
                    }
                    wait_readable(&[self.socket.as_fd()], left);
                    continue;
                }
                Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Ended),
                Err(error) => return Err(error.into()),
            };
            let mut descriptors = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(some) = message {
                    descriptors.extend(some);
                }
            }
            if got.bytes == 0 && descriptors.is_empty() {
                return Ok(Received::Ended);
            }
            if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                let why = "a message was cut off: it is too long, or no descriptors are left";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            bytes.truncate(got.bytes);
            return Ok(Received::Message(bytes, descriptors));
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Puts bytes into a file in memory that nobody can change any more.
///
/// Errors: no memory or no descriptors.
pub fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(rustix::fs::memfd_create("tokenring", flags)?);
    file.write_all(bytes)?;
    file.seek(SeekFrom::Start(0))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file.into())
}

/// Reads a file in memory that another process has made.
///
/// Errors: it is too long, or no file.
pub fn bytes_of(file: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = std::fs::File::from(file);
    let length = file.metadata()?.len();
    if length > FILE_MAX {
        let why = format!("{length} bytes of state, at most {FILE_MAX} are read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    // A file that shrinks or grows meanwhile shows as other contents, no more.
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(bytes),
        Err(_) => {
            bytes.clear();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        }
    }
}

/// Whether a process still runs; a zombie does not. `None` = that cannot be told.
#[must_use]
pub fn is_alive(pid: i32) -> Option<bool> {
    let pid = rustix::process::Pid::from_raw(pid)?;
    match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        // Readable once the process has ended.
        Ok(process) => Some(!wait_readable(&[process.as_fd()], Duration::ZERO)[0]),
        Err(rustix::io::Errno::SRCH) => Some(false),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_millis(1);
    const LATE: Duration = Duration::from_secs(20);

    #[test]
    fn a_message_comes_whole_with_its_descriptors() {
        let (a, b) = Channel::pair().unwrap();
        assert!(matches!(b.receive(SOON).unwrap(), Received::Silent));
        let files: Vec<OwnedFd> =
            (0..FDS_MAX).map(|n| file_of(n.to_string().as_bytes()).unwrap()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        let text = vec![7; MESSAGE_MAX];
        a.send(&text, &borrowed, LATE).unwrap();
        let Received::Message(bytes, got) = b.receive(LATE).unwrap() else { panic!() };
        assert_eq!(bytes, text);
        for (n, file) in got.into_iter().enumerate() {
            assert_eq!(bytes_of(file).unwrap(), n.to_string().into_bytes());
        }
        assert!(a.send(&vec![0; MESSAGE_MAX + 1], &[], LATE).is_err());
        drop(a);
        assert!(matches!(b.receive(LATE).unwrap(), Received::Ended));
        assert!(b.send(b"x", &[], LATE).is_err());
    }

    #[test]
    fn what_has_arrived_is_taken_though_the_time_is_over() {
        let (a, b) = Channel::pair().unwrap();
        a.send(b"x", &[], LATE).unwrap();
        drop(a);
        assert!(matches!(b.receive(Duration::ZERO).unwrap(), Received::Message(..)));
        assert!(matches!(b.receive(Duration::ZERO).unwrap(), Received::Ended));
    }

    #[test]
    fn a_door_is_found_by_its_name_and_tells_who_came() {
        let folder = std::env::temp_dir().join(format!("tokenring-socket-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = Name::Path(folder.join("control"));
        let hidden = Name::Abstract(format!("tokenring-test-{}", std::process::id()));
        for name in [hidden, path] {
            assert!(Channel::connect(&name).unwrap().is_none(), "{name}");
            let socket = ControlSocket::open(name.clone()).unwrap();
            assert!(socket.accept().unwrap().is_none());
            let one = Channel::connect(&name).unwrap().unwrap();
            let other = socket.accept().unwrap().unwrap();
            for channel in [&one, &other] {
                assert_eq!(channel.peer.pid, i32::try_from(std::process::id()).unwrap());
                assert_eq!(channel.peer.uid, sys::user());
            }
            // A path can be taken over, an abstract name cannot.
            assert_eq!(ControlSocket::open(name.clone()).is_ok(), matches!(name, Name::Path(_)));
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn tells_a_process_that_runs_from_one_that_has_ended() {
        assert_eq!(is_alive(i32::try_from(std::process::id()).unwrap()), Some(true));
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        child.wait().unwrap();
        assert_eq!(is_alive(pid), Some(false));
        assert_eq!(is_alive(0), None);
    }

    #[test]
    fn a_file_in_memory_cannot_be_changed_and_has_a_bound() {
        let file = file_of(b"state").unwrap();
        assert!(std::fs::File::from(file.try_clone().unwrap()).set_len(1).is_err());
        assert_eq!(bytes_of(file).unwrap(), b"state");
        let long =
            std::fs::File::from(rustix::fs::memfd_create("long", MemfdFlags::CLOEXEC).unwrap());
        long.set_len(FILE_MAX + 1).unwrap();
        assert!(bytes_of(long.into()).is_err());
    }
}
