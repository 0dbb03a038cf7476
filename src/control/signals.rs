//! Signals: SIGTERM and SIGINT begin the drain, a second one aborts what is still in flight; SIGHUP
//! has the config read again; SIGUSR1 has the access log opened again, by scripts that rotate it;
//! SIGUSR2 has the program started anew, which takes over.
//! A thread passes them on, so that the main thread can wait for them and for other reasons to end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

/// The caught signals: SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2. The last two would end the
/// process if they were not caught.
pub struct Ending {
    events: mpsc::Receiver<Event>,
    leave: Leave,
    told: Arc<AtomicBool>,
}

/// What the main thread waits for.
enum Event {
    Signal(i32),
    Leave(Leaving),
}

/// Why a process ends other than by a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// For the operator.
    pub why: String,
    /// The process that has taken over; none = there is another reason.
    pub successor: Option<i32>,
}

/// Has the process end as by SIGTERM; clones do the same.
#[derive(Clone)]
pub struct Leave(mpsc::Sender<Event>);

impl Leave {
    /// Begins the drain, for this reason.
    pub fn tell(&self, leaving: Leaving) {
        // An error means that the process is ending already.
        let _ = self.0.send(Event::Leave(leaving));
    }
}

impl Ending {
    /// Begins to catch; called before the first thread starts, so that no signal is missed.
    pub fn catch() -> io::Result<Self> {
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2])?;
        let (sender, events) = mpsc::channel();
        let leave = Leave(sender.clone());
        let told = Arc::new(AtomicBool::new(false));
        let tell = told.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                if matches!(signal, SIGTERM | SIGINT) {
                    tell.store(true, Ordering::Release);
                }
                // Nobody waits any more: the process is at its end.
                if sender.send(Event::Signal(signal)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { events, leave, told })
    }

    /// Says whether SIGTERM or SIGINT has come: a start goes no further then.
    pub fn told(&self) -> impl Fn() -> bool + 'static + use<> {
        let told = self.told.clone();
        move || told.load(Ordering::Acquire)
    }

    /// Has `wait` end for another reason.
    #[must_use]
    pub fn leave(&self) -> Leave {
        self.leave.clone()
    }

    /// Waits for SIGTERM, SIGINT or another reason to end, and returns it; calls `reload` at each
    /// SIGHUP before it, `reopen` at each SIGUSR1 and `renew` at each SIGUSR2.
    pub fn wait(&mut self, reload: impl Fn(), reopen: impl Fn(), renew: impl Fn()) -> Leaving {
        let by = |name: &str| Leaving { why: name.to_owned(), successor: None };
        loop {
            match self.events.recv() {
                Ok(Event::Signal(SIGHUP)) => reload(),
                Ok(Event::Signal(SIGUSR1)) => reopen(),
                Ok(Event::Signal(SIGUSR2)) => renew(),
                Ok(Event::Signal(SIGINT)) => return by("SIGINT"),
                Ok(Event::Leave(leaving)) => return leaving,
                // `self` holds a sender, so the channel cannot have ended.
                Ok(Event::Signal(_)) | Err(_) => return by("SIGTERM"),
            }
        }
    }

    /// Calls `abort` at the next SIGTERM or SIGINT and `reopen` at each SIGUSR1 before it, from a
    /// thread of its own.
    pub fn on_next(self, abort: impl Fn() + Send + 'static, reopen: impl Fn() + Send + 'static) {
        let watch = std::thread::Builder::new().name("ending".to_owned());
        // If the thread cannot start, a second signal is ignored; the drain ends at its limit.
        let _ = watch.spawn(move || {
            let Self { events, leave: _leave, .. } = self;
            for event in events {
                match event {
                    Event::Signal(SIGUSR1) => reopen(),
                    // What drains takes no other config, has nothing to hand over, and drains for
                    // one reason.
                    Event::Signal(SIGHUP | SIGUSR2) | Event::Leave(_) => {}
                    Event::Signal(_) => return abort(),
                }
            }
        });
    }
}
