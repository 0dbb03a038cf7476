//! Coarse deadlines of one core: a slab that is walked once per tick.
//!
//! A timeout here is not a dropped future but a `shutdown(2)`: the operation that waits on the
//! socket completes, and its owner asks the timer whether it was that. One tick serves every
//! connection of the core, arming is two stores, and nothing is allocated. A deadline is met
//! between its time and two ticks later, never before.
//!
//! The walk also looks after connections whose client's end hides behind pipelined bytes
//! (`watch_hang_up`): a poll cannot tell, poll(2) with POLLRDHUP can.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::stream::Handle;
use super::sys::Shut;

/// Time between two walks. All timeouts of the config are seconds; tests use less.
pub const TICK: Duration = Duration::from_millis(50);

/// The deadlines of one core.
pub struct Ticker {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<usize>>,
    began: Instant,
    now: Cell<Instant>,
    /// `now`, as nanoseconds since `began`.
    now_ns: Cell<u64>,
    ended: Cell<bool>,
}

struct Slot {
    /// Nanoseconds since the ticker began, or `NEVER`.
    deadline_ns: u64,
    /// What is ended; `None` while the slot is disarmed or free.
    stream: Option<Handle>,
    how: Shut,
    expired: bool,
    /// Who is told when the peer hangs up.
    watcher: Option<Waker>,
    hung_up: bool,
    /// Nothing is in flight: a drain may end it at once.
    idle: bool,
}

const NEVER: u64 = u64::MAX;

const DISARMED: Slot = Slot {
    deadline_ns: NEVER,
    stream: None,
    how: Shut::Both,
    expired: false,
    watcher: None,
    hung_up: false,
    idle: false,
};

impl Slot {
    fn end(&self, how: Shut) {
        if let Some(stream) = &self.stream {
            stream.shutdown(how);
        }
    }
}

impl Ticker {
    /// Makes a ticker without deadlines.
    #[must_use]
    pub fn new(now: Instant) -> Rc<Self> {
        Rc::new(Self {
            slots: RefCell::default(),
            free: RefCell::default(),
            began: now,
            now: Cell::new(now),
            now_ns: Cell::new(0),
            ended: Cell::new(false),
        })
    }

    /// The time of the last walk: at most one tick old, and free to read.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Walks the slab: sockets whose deadline has come are shut down.
    pub fn walk(&self, now: Instant) {
        let now_ns = nanoseconds(now.saturating_duration_since(self.began));
        self.now.set(now);
        self.now_ns.set(now_ns);
        for slot in self.slots.borrow_mut().iter_mut() {
            if slot.deadline_ns <= now_ns {
                slot.deadline_ns = NEVER;
                slot.expired = true;
                slot.end(slot.how);
            } else if slot.watcher.is_some() && slot.stream.as_ref().is_some_and(Handle::hung_up) {
                slot.hung_up = true;
                slot.end(Shut::Both);
                slot.watcher.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Ends the receive side of every idle connection: a request that has already arrived is
    /// still served, nothing else is waited for.
    pub fn end_idle(&self) {
        for slot in self.slots.borrow().iter().filter(|slot| slot.idle) {
            slot.end(Shut::Read);
        }
    }

    /// Ends every connection that has a deadline, and every idle one: the drain is over.
    pub fn end_all(&self) {
        self.ended.set(true);
        for slot in self.slots.borrow_mut().iter_mut().filter(|slot| slot.stream.is_some()) {
            slot.deadline_ns = NEVER;
            slot.expired = true;
            slot.end(Shut::Both);
        }
    }

    /// Whether `end_all` has been called: what ends from then on ends for that reason.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.get()
    }

    /// Takes a slot for one side of an exchange.
    #[must_use]
    pub fn timer(self: &Rc<Self>) -> Timer {
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            let mut slots = self.slots.borrow_mut();
            slots.push(DISARMED);
            slots.len() - 1
        });
        Timer { ticker: self.clone(), index }
    }
}

/// One slot; given back on drop. It must be dropped or disarmed before its socket closes.
pub struct Timer {
    ticker: Rc<Ticker>,
    index: usize,
}

impl Timer {
    /// Shuts a stream down after `timeout`, unless disarmed or armed anew before.
    ///
    /// A timeout of zero means none.
    pub fn arm(&self, stream: Handle, how: Shut, timeout: Duration) {
        // The clock read is up to a tick old; one tick more keeps a deadline from coming early.
        let deadline_ns = match nanoseconds(timeout) {
            0 => NEVER,
            timeout => {
                self.ticker.now_ns.get().saturating_add(timeout).saturating_add(nanoseconds(TICK))
            }
        };
        self.with(|slot| *slot = Slot { deadline_ns, stream: Some(stream), how, ..DISARMED });
    }

    /// As `arm` for both directions, for a connection with nothing in flight.
    pub fn arm_idle(&self, stream: Handle, timeout: Duration) {
        self.arm(stream, Shut::Both, timeout);
        self.with(|slot| slot.idle = true);
    }

    /// Forgets the deadline and whether it had expired.
    pub fn disarm(&self) {
        self.with(|slot| {
            // One that is disarmed already says so by its stream: most are.
            if slot.stream.is_some() {
                *slot = DISARMED;
            }
        });
    }

    /// Time until the deadline, at least a tick; zero when armed without one, `None` when not
    /// armed. To arm anew with what is left.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let slots = self.ticker.slots.borrow();
        let slot = slots.get(self.index).filter(|slot| slot.stream.is_some())?;
        Some(match slot.deadline_ns {
            NEVER => Duration::ZERO,
            deadline_ns => {
                let left_ns = deadline_ns.saturating_sub(self.ticker.now_ns.get());
                // The tick that `arm` has added, it will add again.
                Duration::from_nanos(left_ns).saturating_sub(TICK).max(TICK)
            }
        })
    }

    /// Shuts a stream down within a tick after its peer hangs up, besides any deadline, and tells
    /// `watcher`. Forgotten when armed or disarmed.
    pub fn watch_hang_up(&self, stream: Handle, watcher: &Waker) {
        self.with(|slot| {
            if slot.watcher.is_none() {
                slot.stream = Some(stream);
                slot.watcher = Some(watcher.clone());
            }
        });
    }

    /// Tells whether the peer was found to have hung up.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        self.ticker.slots.borrow().get(self.index).is_some_and(|slot| slot.hung_up)
    }

    /// Tells whether the deadline came, since the last `arm`.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.ticker.slots.borrow().get(self.index).is_some_and(|slot| slot.expired)
    }

    fn with(&self, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.ticker.slots.borrow_mut().get_mut(self.index) {
            change(slot);
        }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
        self.ticker.free.borrow_mut().push(self.index);
    }
}

/// As `Duration::as_nanos`, in the 584 years that fit; more is as good as never.
const fn nanoseconds(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::sys;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    #[test]
    fn shuts_down_at_the_deadline_and_not_before() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let ticker = Ticker::new(start);
        let timer = ticker.timer();
        timer.arm(Handle::Fd(ours.as_raw_fd()), Shut::Both, Duration::from_secs(5));
        ticker.walk(start + Duration::from_secs(5));
        assert!(!timer.expired());
        ticker.walk(start + Duration::from_secs(5) + TICK);
        assert!(timer.expired());
        assert_eq!(theirs.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn zero_means_no_deadline_and_disarm_forgets() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let ticker = Ticker::new(start);
        let timer = ticker.timer();
        timer.arm(Handle::Fd(ours.as_raw_fd()), Shut::Both, Duration::ZERO);
        ticker.walk(start + Duration::from_secs(1000));
        assert!(!timer.expired());
        timer.arm(Handle::Fd(ours.as_raw_fd()), Shut::Both, Duration::from_secs(1));
        timer.disarm();
        ticker.walk(start + Duration::from_secs(3000));
        assert!(!timer.expired());
    }

    #[test]
    fn tells_what_is_left_of_a_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let ticker = Ticker::new(start);
        let timer = ticker.timer();
        let arm = |timeout| timer.arm(Handle::Fd(ours.as_raw_fd()), Shut::Both, timeout);
        assert_eq!(timer.left(), None);
        arm(Duration::from_secs(5));
        ticker.walk(start + Duration::from_secs(2));
        assert_eq!(timer.left(), Some(Duration::from_secs(3)));
        ticker.walk(start + Duration::from_secs(5));
        assert_eq!(timer.left(), Some(TICK), "zero would mean no deadline");
        arm(Duration::ZERO);
        assert_eq!(timer.left(), Some(Duration::ZERO));
    }

    #[test]
    fn slots_are_given_back() {
        let ticker = Ticker::new(Instant::now());
        for _ in 0..100 {
            drop(ticker.timer());
        }
        assert_eq!(ticker.slots.borrow().len(), 1);
    }

    #[test]
    fn sees_an_end_behind_unread_bytes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let start = Instant::now();
        let ticker = Ticker::new(start);
        let timer = ticker.timer();
        std::io::Write::write_all(&mut theirs, b"pipelined").unwrap();
        timer.watch_hang_up(Handle::Fd(ours.as_raw_fd()), Waker::noop());
        ticker.walk(start);
        assert!(!timer.hung_up());
        assert_eq!(sys::peek(ours.as_raw_fd()), sys::Peek::Data);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        ticker.walk(start);
        assert!(timer.hung_up());
        // Our side was shut down: a send now fails.
        assert!(sys::send_now(ours.as_raw_fd(), b"x").is_err());
    }
}
