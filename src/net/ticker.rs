//! Coarse deadlines of one core: a slab that is walked once per tick.
//!
//! A timeout here is not a dropped future but a `shutdown(2)`: the operation that waits on the
//! socket completes, and its owner asks the timer whether the deadline was the reason. One tick
//! serves every connection of the core, arming is a few stores, and nothing is allocated. A
//! deadline takes effect between its time and two ticks later, never before.
//!
//! Connections with nothing in flight are in a queue (`lines`) in the order in which they began to
//! idle, so that the longest idle one is found at once when a new connection needs its place;
//! handshakes are in another. Joining and leaving a queue is a few stores.
//!
//! The walk also finds clients that have left behind pipelined bytes (`watch_hang_up`): readiness
//! only tells of the bytes, poll(2) with POLLRDHUP tells of the end behind them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::lines::{Line, Lines};
use super::stream::Handle;
use super::sys::Shut;
use crate::base::clock::Moment;
use crate::base::listener_id::ListenerId;
use crate::base::slab::Slab;

/// Time between two walks. All timeouts of the config are seconds; tests use less.
pub const TICK: Duration = Duration::from_millis(50);

/// The deadlines of one core.
pub struct Ticker {
    slots: RefCell<Slab<Slot>>,
    began: Instant,
    now: Cell<Instant>,
    /// `now`, with `began` as the origin, as all moments here.
    at: Cell<Moment>,
    ended: Cell<bool>,
    lines: RefCell<Lines>,
}

struct Slot {
    /// `NEVER` while there is none.
    deadline: Moment,
    /// The stream to shut down; `None` while the slot is disarmed or free.
    stream: Option<Handle>,
    how: Shut,
    expired: bool,
    /// Woken when the peer hangs up; while there is one, the walk looks for the hang-up.
    watcher: Option<Waker>,
    hung_up: bool,
    /// No request is in flight, on a connection of this listener: a drain may end it at once.
    idle: Option<ListenerId>,
    /// The queue in which the slot is, if any.
    line: Option<Line>,
}

const NEVER: Moment = Moment::MAX;

const DISARMED: Slot = Slot {
    deadline: NEVER,
    stream: None,
    how: Shut::Both,
    expired: false,
    watcher: None,
    hung_up: false,
    idle: None,
    line: None,
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
            began: now,
            now: Cell::new(now),
            at: Cell::new(Moment::ORIGIN),
            ended: Cell::new(false),
            lines: RefCell::default(),
        })
    }

    /// The time of the last walk: about one tick old at most, and read without a system call.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now.get()
    }

    /// Looks at every slot: streams whose deadline has come, or whose peer has hung up while a
    /// watcher waits, are shut down. Called once per tick.
    pub fn walk(&self, now: Instant) {
        let at = Moment::after(self.began, now);
        self.now.set(now);
        self.at.set(at);
        for slot in self.slots.borrow_mut().entries_mut().iter_mut() {
            if slot.deadline <= at {
                slot.deadline = NEVER;
                slot.expired = true;
                slot.end(slot.how);
            } else if slot.watcher.is_some() && slot.stream.as_ref().is_some_and(Handle::hung_up) {
                slot.hung_up = true;
                slot.end(Shut::Both);
                slot.watcher.take().into_iter().for_each(Waker::wake);
            }
        }
    }

    /// Ends the receive side of every connection that has idled for `grace`: a request that has
    /// already arrived is still served, a later one is not waited for.
    pub fn end_idle(&self, grace: Duration) {
        self.end_those_idle(grace, |_| true);
    }

    /// As `end_idle`, for the connections of one listener.
    pub fn end_idle_of(&self, listener: ListenerId, grace: Duration) {
        self.end_those_idle(grace, |one| one == listener);
    }

    fn end_those_idle(&self, grace: Duration, which: impl Fn(ListenerId) -> bool) {
        let (at, lines) = (self.at.get(), self.lines.borrow());
        for (index, slot) in (0u32..).zip(self.slots.borrow().entries()) {
            let long = || lines.since(index).is_none_or(|since| at.since(since) >= grace);
            let idles = |listener| which(listener) && long();
            if slot.idle.is_some_and(idles) {
                slot.end(Shut::Read);
            }
        }
    }

    /// Ends every connection that has a deadline, and every idle one: the drain is over.
    pub fn end_all(&self) {
        self.ended.set(true);
        for slot in
            self.slots.borrow_mut().entries_mut().iter_mut().filter(|slot| slot.stream.is_some())
        {
            slot.deadline = NEVER;
            slot.expired = true;
            slot.end(Shut::Both);
        }
    }

    /// Whether `end_all` has been called: connections that end from then on end for that reason.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended.get()
    }

    /// How many connections idle, and since when the one that has idled longest.
    #[must_use]
    pub fn idle(&self) -> (u32, Option<Instant>) {
        let lines = self.lines.borrow();
        let since = lines.first(Line::Idle).map(|(_, since)| since.since(Moment::ORIGIN));
        (lines.len(Line::Idle), since.map(|passed| self.began + passed))
    }

    /// Ends the connection that has idled longest; false when no connection idles.
    ///
    /// A request that has already arrived on it is still served.
    pub fn end_longest_idle(&self) -> bool {
        loop {
            let Some((index, _)) = self.lines.borrow().first(Line::Idle) else { return false };
            self.lines.borrow_mut().leave(Line::Idle, index);
            let mut slots = self.slots.borrow_mut();
            let Some(slot) = slots.find_mut(index) else { continue };
            slot.line = None;
            // A connection whose deadline has come is ending already, and frees no further place.
            if !std::mem::replace(&mut slot.expired, true) {
                slot.deadline = NEVER;
                slot.end(Shut::Read);
                return true;
            }
        }
    }

    /// Ends the handshake for whose tag `worse` returns the highest number, of equal ones the
    /// oldest; false when `worse` returns `None` for all.
    pub fn end_handshake(&self, worse: impl Fn(u64) -> Option<u64>) -> bool {
        let mut worst: Option<(u64, u32)> = None;
        for (index, tag) in self.lines.borrow().walk(Line::Shaking) {
            if let Some(now) = worse(tag)
                && worst.is_none_or(|(most, _)| now > most)
            {
                worst = Some((now, index));
            }
        }
        let Some((_, index)) = worst else { return false };
        self.lines.borrow_mut().leave(Line::Shaking, index);
        if let Some(slot) = self.slots.borrow_mut().find_mut(index) {
            (slot.line, slot.expired, slot.deadline) = (None, true, NEVER);
            slot.end(Shut::Both);
        }
        true
    }

    /// Takes a slot, disarmed, for one connection or one wait.
    #[must_use]
    pub fn timer(self: &Rc<Self>) -> Timer {
        let index = self.slots.borrow_mut().insert(|_| DISARMED);
        Timer { ticker: self.clone(), index }
    }
}

/// One deadline: a slot of the ticker, given back on drop. It must be dropped or disarmed before
/// its socket closes, or the deadline could end another socket with the same descriptor.
pub struct Timer {
    ticker: Rc<Ticker>,
    index: u32,
}

impl Timer {
    /// Shuts a stream down after `timeout`, unless disarmed or armed anew before.
    ///
    /// A timeout of zero means none.
    pub fn arm(&self, stream: Handle, how: Shut, timeout: Duration) {
        // `at` is up to a tick old; one tick more keeps a deadline from coming early.
        let deadline = match timeout.is_zero() {
            true => NEVER,
            false => self.ticker.at.get() + timeout + TICK,
        };
        let armed = Slot { deadline, stream: Some(stream), how, ..DISARMED };
        let line = self.with(|slot| {
            let line = slot.line;
            *slot = armed;
            line
        });
        self.leave(line.flatten());
    }

    /// As `arm` for both directions, for a connection of `listener` with nothing in flight:
    /// `end_idle` and `end_longest_idle` may end it before its deadline.
    pub fn arm_idle(&self, stream: Handle, timeout: Duration, listener: ListenerId) {
        self.arm(stream, Shut::Both, timeout);
        self.with(|slot| slot.idle = Some(listener));
        self.join(Line::Idle, 0);
    }

    /// As `arm_idle`, for a connection whose owner is woken and then ends it by itself; `end_idle`
    /// leaves it alone, since its owner also sees the drain.
    pub fn arm_idle_owned(&self, owner: Waker, timeout: Duration) {
        self.arm(Handle::Owner(owner), Shut::Both, timeout);
        self.join(Line::Idle, 0);
    }

    /// As `arm` for both directions, for a handshake; `tag` identifies its client to
    /// `end_handshake`.
    pub fn arm_handshake(&self, stream: Handle, timeout: Duration, tag: u64) {
        self.arm(stream, Shut::Both, timeout);
        self.join(Line::Shaking, tag);
    }

    fn join(&self, line: Line, tag: u64) {
        self.with(|slot| slot.line = Some(line));
        self.ticker.lines.borrow_mut().join(line, self.index, self.ticker.at.get(), tag);
    }

    fn leave(&self, line: Option<Line>) {
        if let Some(line) = line {
            self.ticker.lines.borrow_mut().leave(line, self.index);
        }
    }

    /// Drops the deadline and the watcher, and forgets whether either had come.
    pub fn disarm(&self) {
        let line = self.with(|slot| {
            let line = slot.line;
            // Most slots are disarmed already, which `stream` tells: no store is needed then.
            if slot.stream.is_some() {
                *slot = DISARMED;
            }
            line
        });
        self.leave(line.flatten());
    }

    /// Time until the deadline, at least a tick, to arm a timer with; zero when armed without a
    /// deadline, `None` when not armed.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        let slots = self.ticker.slots.borrow();
        let slot = slots.find(self.index).filter(|slot| slot.stream.is_some())?;
        Some(match slot.deadline {
            NEVER => Duration::ZERO,
            // Without the tick that `arm` has added: it will add one again.
            deadline => deadline.since(self.ticker.at.get()).saturating_sub(TICK).max(TICK),
        })
    }

    /// Shuts a stream down within a tick after its peer hangs up, and wakes `watcher`. A deadline
    /// holds beside it; the next `arm` or `disarm` ends the watch.
    pub fn watch_hang_up(&self, stream: Handle, watcher: &Waker) {
        self.with(|slot| {
            if slot.watcher.is_none() {
                slot.stream = Some(stream);
                slot.watcher = Some(watcher.clone());
            }
        });
    }

    /// Whether the peer was found to have hung up, since the last `arm` or `disarm`.
    #[must_use]
    pub fn hung_up(&self) -> bool {
        self.ticker.slots.borrow().find(self.index).is_some_and(|slot| slot.hung_up)
    }

    /// Whether the deadline came, or the ticker ended the stream before it, since the last `arm` or
    /// `disarm`.
    #[must_use]
    pub fn expired(&self) -> bool {
        self.ticker.slots.borrow().find(self.index).is_some_and(|slot| slot.expired)
    }

    fn with<T>(&self, change: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.ticker.slots.borrow_mut().find_mut(self.index).map(change)
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.disarm();
        self.ticker.slots.borrow_mut().free(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::sys;
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    const ANY: ListenerId = ListenerId(7);

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
        assert_eq!(ticker.slots.borrow().entries().len(), 1);
    }

    #[test]
    fn the_longest_idle_one_is_ended_and_no_other() {
        let start = Instant::now();
        let ticker = Ticker::new(start);
        let pairs: Vec<_> = (0..4).map(|_| UnixStream::pair().unwrap()).collect();
        let timers: Vec<_> = (0..4).map(|_| ticker.timer()).collect();
        let long = Duration::from_secs(9);
        for (at, ((ours, _), timer)) in pairs.iter().zip(&timers).enumerate() {
            ticker.walk(start + (at as u32 + 1) * TICK);
            timer.arm_idle(Handle::Fd(ours.as_raw_fd()), long, ANY);
        }
        // The first has served a request since and idles anew, the second serves one now.
        timers[0].disarm();
        timers[0].arm_idle(Handle::Fd(pairs[0].0.as_raw_fd()), long, ANY);
        timers[1].arm(Handle::Fd(pairs[1].0.as_raw_fd()), Shut::Both, long);
        assert_eq!(ticker.idle(), (3, Some(start + 3 * TICK)));
        let gone = || -> Vec<bool> {
            pairs.iter().map(|(ours, _)| sys::peek(ours.as_raw_fd()) == sys::Peek::Gone).collect()
        };
        for expected in
            [[false, false, true, false], [false, false, true, true], [true, false, true, true]]
        {
            assert!(ticker.end_longest_idle());
            assert_eq!(gone(), expected);
        }
        assert!(!ticker.end_longest_idle());
        assert_eq!(ticker.idle(), (0, None));
    }

    #[test]
    fn the_idle_ones_of_one_listener_are_ended() {
        let start = Instant::now();
        let ticker = Ticker::new(start);
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let timers: Vec<_> = pairs
            .iter()
            .zip([ListenerId(1), ListenerId(2), ListenerId(2)])
            .map(|((ours, _), listener)| {
                let timer = ticker.timer();
                timer.arm_idle(Handle::Fd(ours.as_raw_fd()), Duration::ZERO, listener);
                timer
            })
            .collect();
        // The last one serves a request now.
        timers[2].disarm();
        ticker.end_idle_of(ListenerId(2), TICK);
        let gone = |at: usize| sys::peek(pairs[at].0.as_raw_fd()) == sys::Peek::Gone;
        assert_eq!([gone(0), gone(1), gone(2)], [false; 3], "they have just begun to idle");
        ticker.walk(start + TICK);
        ticker.end_idle_of(ListenerId(2), TICK);
        assert_eq!([gone(0), gone(1), gone(2)], [false, true, false]);
    }

    #[test]
    fn of_handshakes_the_longest_of_the_worst_is_ended() {
        let ticker = Ticker::new(Instant::now());
        let pairs: Vec<_> = (0..3).map(|_| UnixStream::pair().unwrap()).collect();
        let timers: Vec<_> = pairs
            .iter()
            .zip([1, 7, 7])
            .map(|((ours, _), tag)| {
                let timer = ticker.timer();
                timer.arm_handshake(Handle::Fd(ours.as_raw_fd()), Duration::from_secs(9), tag);
                timer
            })
            .collect();
        assert!(!ticker.end_handshake(|_| None));
        assert!(ticker.end_handshake(Some));
        let expired: Vec<bool> = timers.iter().map(Timer::expired).collect();
        assert_eq!(expired, [false, true, false]);
        drop(timers);
        assert!(!ticker.end_handshake(Some));
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
