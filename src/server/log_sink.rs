//! Where the lines of the access log go: standard output, a file, or a FIFO.
//!
//! Nothing here waits for long: what cannot be written now stays in the sink, and its owner takes no
//! more lines until it has gone. A FIFO that nobody reads, a reader that sleeps and a full disk
//! therefore cost lines, and never a request. Lines that are lost are counted; one that was cut in
//! the middle ends where it was cut, and the next one begins on a line of its own.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::net::sys;

/// Most bytes of one write to what is no regular file: whoever may be written to takes as much
/// without a wait (pipe(7), PIPE_BUF).
const PIECE_BYTES: usize = libc::PIPE_BUF;
/// How often a sink that cannot be opened is tried again.
const REOPEN_INTERVAL: Duration = Duration::from_secs(1);

/// Where lines go, and what has not gone yet.
#[derive(Debug)]
pub struct Sink {
    /// None = standard output.
    path: Option<PathBuf>,
    file: Option<Opened>,
    tried_at: Instant,
    pending: Vec<u8>,
    written: usize,
    /// The last thing written was a part of a line.
    torn: bool,
}

#[derive(Debug)]
struct Opened {
    file: File,
    /// A regular file takes everything at once.
    regular: bool,
}

/// What became of what was pending.
#[derive(Debug)]
pub enum Flushed {
    /// All is written.
    All,
    /// Something waits for its reader.
    Waits,
    /// It cannot be written, for this reason; so many lines are lost.
    Lost(u64, io::Error),
}

impl Sink {
    /// Standard output.
    ///
    /// Errors: it is closed.
    pub fn stdout() -> io::Result<Sink> {
        Sink::with(None)
    }

    /// A file or FIFO, appended to; a file that is not there is made, readable for its group. A FIFO
    /// without a reader is opened once it has one.
    ///
    /// Errors: the path cannot be opened.
    pub fn file(path: &Path) -> io::Result<Sink> {
        Sink::with(Some(path.to_owned()))
    }

    fn with(path: Option<PathBuf>) -> io::Result<Sink> {
        let file = open(path.as_deref())?;
        let tried_at = Instant::now();
        Ok(Sink { path, file, tried_at, pending: Vec::new(), written: 0, torn: false })
    }

    /// Opens the path anew: a script has moved the file. What is pending goes to the new one, from
    /// the beginning of a line.
    ///
    /// Errors: it cannot be opened; the old file is written on.
    pub fn reopen(&mut self) -> io::Result<()> {
        // A FIFO is the same one whoever moves files, and its reader has a part of a line already.
        let stays =
            |path: &Path| self.file.as_ref().is_some_and(|one| !one.regular) && is_fifo(path);
        if self.path.as_deref().is_some_and(|path| !stays(path)) {
            self.file = open(self.path.as_deref())?;
            let line_at = memchr::memrchr(b'\n', &self.pending[..self.written]);
            self.written = line_at.map_or(0, |at| at + 1);
            self.torn = false;
        }
        Ok(())
    }

    /// Lines that have not gone.
    #[must_use]
    pub fn lines_pending(&self) -> u64 {
        memchr::memchr_iter(b'\n', &self.pending[self.written..]).count() as u64
    }

    /// Where whole lines are put, while nothing is pending.
    pub fn lines(&mut self) -> &mut Vec<u8> {
        if std::mem::take(&mut self.torn) {
            self.pending.push(b'\n');
        }
        &mut self.pending
    }

    /// Whether something has not gone yet.
    #[must_use]
    pub fn is_pending(&self) -> bool {
        self.written < self.pending.len()
    }

    /// Writes what is pending; waits at most `limit` for a reader.
    pub fn flush(&mut self, limit: Duration) -> Flushed {
        let until = Instant::now() + limit;
        if self.file.is_none() && self.tried_at.elapsed() >= REOPEN_INTERVAL {
            self.tried_at = Instant::now();
            match open(self.path.as_deref()) {
                Ok(file) => self.file = file,
                Err(error) => return self.lose(error),
            }
        }
        while self.is_pending() {
            let Some(opened) = &mut self.file else {
                // Nobody reads it yet; its lines are not kept for who comes later.
                return self.lose(io::Error::from(ErrorKind::NotConnected));
            };
            match opened.write(&self.pending[self.written..], until) {
                Ok(0) => return Flushed::Waits,
                Ok(bytes) => self.written += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    if self.path.is_some() && error.kind() == ErrorKind::BrokenPipe {
                        self.file = None;
                    }
                    return self.lose(error);
                }
            }
        }
        self.pending.clear();
        self.written = 0;
        Flushed::All
    }

    /// Lets go of what is pending.
    fn lose(&mut self, error: io::Error) -> Flushed {
        let lost = self.lines_pending();
        // What comes next must not go on in the middle of a line.
        self.torn = self.written > 0 && self.pending[self.written - 1] != b'\n';
        self.pending.clear();
        self.written = 0;
        Flushed::Lost(lost, error)
    }
}

impl Opened {
    /// One write, of how many bytes; 0 = there is no room until then.
    fn write(&mut self, bytes: &[u8], until: Instant) -> io::Result<usize> {
        let mut piece = bytes;
        if !self.regular {
            let left = until.saturating_duration_since(Instant::now());
            if !sys::wait_writable(self.file.as_raw_fd(), left) {
                return Ok(0);
            }
            piece = &bytes[..bytes.len().min(PIECE_BYTES)];
            // Whole lines where they fit: somebody else may write to the same pipe.
            if let Some(end) = memchr::memrchr(b'\n', piece) {
                piece = &piece[..=end];
            }
        }
        match self.file.write(piece) {
            Ok(0) => Err(ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            written => written,
        }
    }
}

/// None = a FIFO that nobody reads.
fn open(path: Option<&Path>) -> io::Result<Option<Opened>> {
    let file = match path {
        None => File::from(io::stdout().as_fd().try_clone_to_owned()?),
        Some(path) => {
            let mut options = OpenOptions::new();
            // O_NONBLOCK: a FIFO without a reader is told at once. It means nothing to a file.
            options.append(true).create(true).mode(0o640).custom_flags(libc::O_NONBLOCK);
            match options.open(path) {
                Ok(file) => file,
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) && is_fifo(path) => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
    };
    let regular = file.metadata()?.is_file();
    Ok(Some(Opened { file, regular }))
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|data| data.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const SOON: Duration = Duration::from_millis(10);

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("sink-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn fifo(&self) -> PathBuf {
            let path = self.0.join("fifo");
            let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn put(sink: &mut Sink, lines: &str) -> Flushed {
        sink.lines().extend_from_slice(lines.as_bytes());
        sink.flush(SOON)
    }

    #[test]
    fn a_file_that_was_moved_is_opened_again() {
        let folder = Folder::new("moved");
        let (path, moved) = (folder.0.join("log"), folder.0.join("log.1"));
        let mut sink = Sink::file(&path).unwrap();
        assert!(matches!(put(&mut sink, "a\n"), Flushed::All));
        std::fs::rename(&path, &moved).unwrap();
        assert!(matches!(put(&mut sink, "b\n"), Flushed::All));
        sink.reopen().unwrap();
        assert!(matches!(put(&mut sink, "c\n"), Flushed::All));
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "a\nb\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "c\n");
    }

    #[test]
    fn a_path_that_cannot_be_opened_is_refused() {
        assert!(Sink::file(Path::new("/nowhere/log")).is_err());
        assert!(Sink::file(Path::new("/")).is_err());
    }

    #[test]
    fn a_fifo_loses_lines_until_somebody_reads_it() {
        let folder = Folder::new("unread");
        let path = folder.fifo();
        let mut sink = Sink::file(&path).unwrap();
        assert!(matches!(put(&mut sink, "a\nb\n"), Flushed::Lost(2, _)));
        let mut reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        sink.tried_at -= REOPEN_INTERVAL;
        assert!(matches!(put(&mut sink, "c\n"), Flushed::All));
        let mut read = [0; 16];
        assert_eq!(reader.as_mut().unwrap().read(&mut read).unwrap(), 2);
        assert_eq!(&read[..2], b"c\n");
        drop(reader);
        assert!(matches!(put(&mut sink, "d\n"), Flushed::Lost(1, _)));
    }

    #[test]
    fn a_reader_that_sleeps_makes_the_rest_wait() {
        let folder = Folder::new("asleep");
        let path = folder.fifo();
        let mut options = OpenOptions::new();
        let mut reader = options.read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let mut sink = Sink::file(&path).unwrap();
        let lines: String = (0..20_000).map(|n| format!("line {n}\n")).collect();
        assert!(matches!(put(&mut sink, &lines), Flushed::Waits));
        assert!(sink.is_pending());
        let mut seen = Vec::new();
        while sink.is_pending() || seen.len() < lines.len() {
            let mut piece = [0; 4096];
            if let Ok(bytes) = reader.read(&mut piece) {
                seen.extend_from_slice(&piece[..bytes]);
            }
            sink.flush(Duration::ZERO);
        }
        assert_eq!(String::from_utf8(seen).unwrap(), lines);
    }

    #[test]
    fn after_a_full_disk_a_line_begins_on_its_own() {
        let folder = Folder::new("full");
        let path = folder.0.join("log");
        let mut sink = Sink::file(&path).unwrap();
        // As a disk that took five bytes and then no more.
        sink.lines().extend_from_slice(b"one\ntwo\nthree\n");
        let opened = sink.file.as_mut().unwrap();
        opened.file.write_all(b"one\nt").unwrap();
        sink.written = 5;
        sink.file = Some(Opened { file: File::create("/dev/full").unwrap(), regular: true });
        let Flushed::Lost(2, error) = sink.flush(SOON) else { panic!("two lines are lost") };
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        sink.file = open(Some(&path)).unwrap();
        assert!(matches!(put(&mut sink, "four\n"), Flushed::All));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nt\nfour\n");
    }
}
