//! The thread that writes the access log: it takes records out of the cores' rings, makes lines of
//! them, and gives them to the sink in batches.
//!
//! Cores wait for nothing here. While the sink is stuck their rings fill, and what finds no room is
//! left out and counted; so is what the sink lost. Without a log the thread sleeps, nearly.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::log_sink::{Flushed, Sink};
use crate::config;
use crate::control::Say;
use crate::telemetry::ring::RecordReader;

/// How long a record may lie in its ring before it is written.
const PAUSE: Duration = Duration::from_millis(20);
/// How often it is looked for records while there is no log.
const OFF_PAUSE: Duration = Duration::from_secs(1);
/// How long a stuck sink is waited for before orders are looked at.
const STUCK_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of lines after which they are written.
const BATCH_BYTES: usize = 256 << 10;
/// Least time between two complaints about lines that are lost.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);
/// How long whoever gave an order waits until it is carried out.
const ORDER_WAIT: Duration = Duration::from_secs(1);

/// Makes a line of a record: the record, and where the line goes.
pub type Format = fn(&[u8], &mut Vec<u8>);

/// The access log's thread; clones are the same log.
#[derive(Clone)]
pub struct AccessLog {
    orders: Sender<Order>,
    lost: Arc<AtomicU64>,
    /// Where lines go.
    to: Arc<Mutex<config::AccessLog>>,
}

enum Order {
    /// The file was moved.
    Reopen,
    /// Lines go there from now on; none = nowhere. Then it is said that it is done.
    To(Option<Sink>, SyncSender<()>),
    /// All that has been recorded is written, then it is said that it is done.
    End(SyncSender<()>),
}

impl AccessLog {
    /// Starts the log of these rings.
    ///
    /// Errors: a message for the operator, when the place cannot be written to.
    pub fn start(
        to: &config::AccessLog,
        rings: Vec<RecordReader>,
        format: Format,
        say: Say,
    ) -> Result<AccessLog, String> {
        let (orders, inbox) = channel();
        let lost = Arc::new(AtomicU64::new(0));
        let sink = open(to)?;
        let mut writer = Writer {
            sink,
            rings,
            format,
            record: Vec::new(),
            waited: false,
            trouble: Trouble { say, lost: lost.clone(), since_complaint: 0, complained_at: None },
        };
        let thread = std::thread::Builder::new().name("access-log".to_owned());
        thread
            .spawn(move || writer.run(&inbox))
            .map_err(|error| format!("log.access: no thread for it: {error}"))?;
        Ok(AccessLog { orders, lost, to: Arc::new(Mutex::new(to.clone())) })
    }

    /// Opens the file again.
    pub fn reopen(&self) {
        // Without the thread there is no log.
        let _ = self.orders.send(Order::Reopen);
    }

    /// Opens another place for lines; the function that is returned has them written there, those
    /// of whatever is recorded once it has returned.
    ///
    /// Errors: a message for the operator; nothing has changed.
    pub fn prepare(&self, to: &config::AccessLog) -> Result<impl FnOnce() + Send + use<>, String> {
        let stays = *self.to() == *to;
        let sink = if stays { None } else { Some(open(to)?) };
        let (log, to) = (self.clone(), to.clone());
        Ok(move || {
            if let Some(sink) = sink {
                log.order(|done| Order::To(sink, done));
                *log.to() = to;
            }
        })
    }

    fn to(&self) -> MutexGuard<'_, config::AccessLog> {
        // Stored whole: a thread that panicked meanwhile left nothing half done.
        self.to.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lines that could not be written, since the start; what found its ring full is not in it.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Writes what has been recorded, and waits for it, but not for long.
    pub fn end(&self) {
        self.order(Order::End);
    }

    /// Gives an order and waits until it is carried out, at most `ORDER_WAIT`.
    fn order(&self, order: impl FnOnce(SyncSender<()>) -> Order) {
        let (done, wait) = sync_channel(1);
        if self.orders.send(order(done)).is_ok() {
            // A sink that is stuck longer keeps its lines.
            let _ = wait.recv_timeout(ORDER_WAIT);
        }
    }
}

fn open(to: &config::AccessLog) -> Result<Option<Sink>, String> {
    match to {
        config::AccessLog::Off => Ok(None),
        config::AccessLog::Stdout => {
            Sink::stdout().map(Some).map_err(|error| format!("log.access: stdout: {error}"))
        }
        config::AccessLog::File(path) => Sink::file(path)
            .map(Some)
            .map_err(|error| format!("log.access: cannot write to {}: {error}", path.display())),
    }
}

struct Writer {
    sink: Option<Sink>,
    rings: Vec<RecordReader>,
    format: Format,
    record: Vec<u8>,
    /// While there is no log: records waited when it was last looked.
    waited: bool,
    trouble: Trouble,
}

impl Writer {
    fn run(&mut self, inbox: &Receiver<Order>) {
        loop {
            let order = match self.sink.as_ref().map(Sink::is_pending) {
                None => inbox.recv_timeout(OFF_PAUSE),
                Some(false) => inbox.recv_timeout(PAUSE),
                Some(true) => inbox.recv_timeout(Duration::ZERO),
            };
            match order {
                Ok(Order::Reopen) => self.reopen(),
                Ok(Order::To(sink, done)) => {
                    self.write_all(STUCK_PAUSE);
                    let left = self.sink.as_ref().map_or(0, Sink::lines_pending);
                    self.trouble.lost.fetch_add(left, Ordering::Relaxed);
                    self.sink = sink;
                    self.waited = false;
                    // Who asked may have stopped waiting.
                    let _ = done.send(());
                }
                Ok(Order::End(done)) => {
                    self.write_all(ORDER_WAIT);
                    // Who asked may have stopped waiting.
                    let _ = done.send(());
                    return;
                }
                Err(RecvTimeoutError::Timeout) if self.sink.is_none() => self.let_go(),
                Err(RecvTimeoutError::Timeout) => self.write_all(STUCK_PAUSE),
                // Every handle is gone, and with them the server.
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Lets go of what was recorded after the log was switched off, by exchanges that had begun before.
    ///
    /// Only what was there a pause ago: what comes just now may belong to a log that is being
    /// switched on.
    fn let_go(&mut self) {
        let waits = self.rings.iter().any(|ring| !ring.is_empty());
        if std::mem::replace(&mut self.waited, waits) {
            while self.rings.iter_mut().any(|ring| ring.pop(&mut self.record)) {
                self.trouble.lost.fetch_add(1, Ordering::Relaxed);
            }
            self.waited = false;
        }
    }

    fn reopen(&mut self) {
        if let Some(sink) = &mut self.sink
            && let Err(error) = sink.reopen()
        {
            (self.trouble.say)(&format!("log.access: cannot be opened again: {error}"));
        }
    }

    /// Writes what the rings hold, until they are empty or the sink has been stuck for `limit`.
    fn write_all(&mut self, limit: Duration) {
        // Without a log the cores record nothing new; what they do while it is switched on is kept.
        let Some(sink) = &mut self.sink else { return };
        loop {
            let mut more = false;
            if !sink.is_pending() {
                let lines = sink.lines();
                for ring in &mut self.rings {
                    while lines.len() < BATCH_BYTES && ring.pop(&mut self.record) {
                        (self.format)(&self.record, lines);
                    }
                }
                more = lines.len() >= BATCH_BYTES;
            }
            let tried = sink.is_pending();
            match sink.flush(limit) {
                Flushed::All if tried => self.trouble.over(),
                Flushed::All => {}
                Flushed::Waits => return,
                Flushed::Lost(lines, error) => self.trouble.begins(lines, &error),
            }
            if !more {
                return;
            }
        }
    }
}

/// Lines that are lost, and what the operator has been told of it.
struct Trouble {
    say: Say,
    lost: Arc<AtomicU64>,
    /// Lost since the operator was told.
    since_complaint: u64,
    complained_at: Option<Instant>,
}

impl Trouble {
    fn begins(&mut self, lines: u64, error: &std::io::Error) {
        self.lost.fetch_add(lines, Ordering::Relaxed);
        self.since_complaint += lines;
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            let lines = std::mem::take(&mut self.since_complaint);
            self.complained_at = Some(Instant::now());
            (self.say)(&format!("log.access: {lines} lines lost: {error}"));
        }
    }

    fn over(&mut self) {
        if self.complained_at.take().is_some() {
            let lines = std::mem::take(&mut self.since_complaint);
            (self.say)(&format!("log.access: written again; {lines} more lines were lost"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};
    use std::sync::Mutex;

    use super::*;
    use crate::telemetry::ring::{RecordWriter, ring};

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("access-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn log(&self, name: &str) -> config::AccessLog {
            config::AccessLog::File(self.0.join(name))
        }

        fn read(&self, name: &str) -> String {
            std::fs::read_to_string(self.0.join(name)).unwrap_or_default()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn start(to: &config::AccessLog) -> (AccessLog, RecordWriter, Arc<Mutex<Vec<String>>>) {
        let (writer, reader) = ring(1 << 16);
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = told.clone();
        let say: Say = Arc::new(move |line: &str| tell.lock().unwrap().push(line.to_owned()));
        let format: Format = |record, out| {
            out.extend_from_slice(record);
            out.push(b'\n');
        };
        (AccessLog::start(to, vec![reader], format, say).unwrap(), writer, told)
    }

    fn wait_until(what: &str, met: impl Fn() -> bool) {
        let begun = Instant::now();
        while !met() {
            assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn lines_follow_the_file_that_is_named() {
        let folder = Folder::new("follow");
        let (log, mut core, told) = start(&folder.log("a"));
        assert!(core.push(b"1"));
        wait_until("the first is written", || folder.read("a") == "1\n");
        std::fs::rename(folder.0.join("a"), folder.0.join("a.1")).unwrap();
        log.reopen();
        wait_until("it is opened again", || folder.0.join("a").exists());
        assert!(core.push(b"2"));
        wait_until("the second is written", || folder.read("a") == "2\n");
        assert!(log.prepare(&config::AccessLog::File(Path::new("/nowhere/log").into())).is_err());
        log.prepare(&folder.log("b")).unwrap()();
        assert!(core.push(b"3"));
        log.end();
        assert_eq!(
            (folder.read("a.1"), folder.read("a") + &folder.read("b")),
            ("1\n".to_owned(), "2\n3\n".to_owned())
        );
        assert_eq!((log.lost(), told.lock().unwrap().len()), (0, 0));
    }

    #[test]
    fn what_is_recorded_while_the_log_is_switched_on_is_not_lost() {
        let folder = Folder::new("off");
        let (log, mut core, _) = start(&config::AccessLog::Off);
        let switch = log.prepare(&folder.log("a")).unwrap();
        assert!(core.push(b"1"), "a core has the new plan already");
        switch();
        log.prepare(&folder.log("a")).unwrap()();
        assert!(core.push(b"2"));
        log.end();
        assert_eq!(folder.read("a"), "1\n2\n");
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_told_once() {
        let folder = Folder::new("full");
        let (log, mut core, told) = start(&config::AccessLog::File("/dev/full".into()));
        for lost in 1..=3 {
            assert!(core.push(b"1"));
            wait_until("it is lost", || log.lost() == lost);
        }
        log.prepare(&folder.log("a")).unwrap()();
        assert!(core.push(b"2"));
        log.end();
        assert_eq!(folder.read("a"), "2\n");
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].starts_with("log.access: 1 lines lost: No space left"), "{told:?}");
        assert_eq!(told[1], "log.access: written again; 2 more lines were lost");
    }

    #[test]
    fn a_reader_that_sleeps_does_not_hold_up_orders_or_the_end() {
        let folder = Folder::new("asleep");
        let path = folder.0.join("fifo");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let mut options = std::fs::OpenOptions::new();
        let reader = options.read(true).write(true).open(&path).unwrap();
        let (log, mut core, _) = start(&config::AccessLog::File(path));
        let record = [b'x'; 1000];
        let begun = Instant::now();
        while core.push(&record) || begun.elapsed() < Duration::from_millis(100) {
            assert!(begun.elapsed() < Duration::from_secs(20), "nobody reads: its ring fills");
        }
        log.prepare(&folder.log("a")).unwrap()();
        wait_until("the order is obeyed all the same", || folder.read("a").len() > 1000);
        log.end();
        drop(reader);
    }
}
