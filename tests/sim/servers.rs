//! Simulated model servers: a few slots, a line in front of them, and ways to misbehave.
//!
//! A call takes a slot, sends its head after a while (the prompt) and its last byte after
//! another (the tokens). How a server fails is its mode; phases change it while calls
//! are running: a server that dies resets them, one that stalls falls silent for ever.

use std::collections::VecDeque;

use tokenring::testing::base::rng::Rng;

use crate::clock::{Clock, Event, MS};

/// How a server behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Mode {
    /// As it should.
    Up,
    /// So many times slower.
    Slow(u64),
    /// So many times slower at first, as fast as others `us` later.
    Warming { factor: u64, us: u64 },
    /// Answers with this status in half a millisecond.
    FailFast(u16),
    /// Accepts and says nothing more.
    Stalled,
    /// Refuses connections.
    Down,
    /// Answers 500 to requests for this model in half a millisecond, and is well otherwise.
    BadModel(u64),
    /// Resets this many of a hundred calls.
    Flaky(u64),
    /// Says nothing to this many of a hundred calls, and fails the others fast.
    Erratic(u64),
}

/// One attempt as the server sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// Who answers it.
    pub(crate) server: usize,
    /// Whose it is.
    pub(crate) exchange: usize,
    /// When it was sent.
    pub(crate) sent_us: u64,
    /// Work before the head and after it, in a slot of a server that is well.
    pub(crate) head_us: u64,
    /// See `head_us`.
    pub(crate) body_us: u64,
    /// The model that it asks for.
    pub(crate) model: u64,
    /// Whether any server answers 500 to it.
    pub(crate) poison: bool,
    /// Whether the head has been sent.
    pub(crate) answered: bool,
    /// Whether it went out on a pooled connection that was dead.
    pub(crate) reused: bool,
    /// Where it stands.
    pub(crate) place: Place,
}

/// Where a call stands on its server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the line.
    Waiting,
    /// In a slot.
    Running,
    /// Swallowed by a stalled server.
    Swallowed,
    /// Over.
    Gone,
}

/// One server.
pub(crate) struct Server {
    slots: usize,
    mode: Mode,
    mode_since_us: u64,
    running: Vec<usize>,
    waiting: VecDeque<usize>,
    swallowed: Vec<usize>,
    /// Slot-microseconds used so far, and since when `running` has been as it is.
    busy_us: u64,
    counted_us: u64,
}

impl Server {
    /// Makes a server that is up.
    pub(crate) fn new(slots: usize) -> Server {
        Server {
            slots,
            mode: Mode::Up,
            mode_since_us: 0,
            running: Vec::new(),
            waiting: VecDeque::new(),
            swallowed: Vec::new(),
            busy_us: 0,
            counted_us: 0,
        }
    }

    /// How it behaves now.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Calls that it holds in any way.
    pub(crate) fn held(&self) -> usize {
        self.running.len() + self.waiting.len() + self.swallowed.len()
    }

    /// Slot-microseconds used until now.
    pub(crate) fn busy_us(&mut self, now_us: u64) -> u64 {
        self.busy_us += (now_us - self.counted_us) * self.running.len() as u64;
        self.counted_us = now_us;
        self.busy_us
    }

    /// Takes a call in.
    pub(crate) fn submit(
        &mut self,
        call: usize,
        calls: &mut [Call],
        clock: &mut Clock,
        rng: &mut Rng,
    ) {
        let ends = match self.mode {
            Mode::Down => Some((200, Event::Refused { call })),
            Mode::FailFast(status) => Some((500, Event::Error { call, status })),
            Mode::Stalled => None,
            _ if calls[call].poison => Some((500, Event::Error { call, status: 500 })),
            Mode::BadModel(model) if model == calls[call].model => {
                Some((500, Event::Error { call, status: 500 }))
            }
            Mode::Erratic(percent) if rng.below(100) < percent => None,
            Mode::Erratic(_) => Some((500, Event::Error { call, status: 500 })),
            Mode::Flaky(percent) if rng.below(100) < percent => Some((MS, Event::Cut { call })),
            Mode::Up
            | Mode::Slow(_)
            | Mode::Warming { .. }
            | Mode::Flaky(_)
            | Mode::BadModel(_) => {
                calls[call].place = Place::Waiting;
                self.waiting.push_back(call);
                return self.start_next(calls, clock);
            }
        };
        calls[call].place = Place::Swallowed;
        self.swallowed.push(call);
        if let Some((after_us, event)) = ends {
            clock.after(after_us, event);
        }
    }

    /// The head of a running call has gone out; its last byte comes later.
    pub(crate) fn answer(&mut self, call: usize, calls: &mut [Call], clock: &mut Clock) {
        calls[call].answered = true;
        let after_us = self.pace(calls[call].body_us, clock.now_us());
        clock.after(after_us, Event::End { call });
    }

    /// Lets go of a call that is over, or whose client has left.
    pub(crate) fn let_go(&mut self, call: usize, calls: &mut [Call], clock: &mut Clock) {
        let place = std::mem::replace(&mut calls[call].place, Place::Gone);
        match place {
            Place::Running => {
                self.busy_us(clock.now_us());
                self.running.retain(|other| *other != call);
                self.start_next(calls, clock);
            }
            Place::Waiting => self.waiting.retain(|other| *other != call),
            Place::Swallowed => self.swallowed.retain(|other| *other != call),
            Place::Gone => {}
        }
    }

    /// Behaves differently from now on.
    pub(crate) fn turn(&mut self, mode: Mode, idle_us: u64, calls: &mut [Call], clock: &mut Clock) {
        self.busy_us(clock.now_us());
        (self.mode, self.mode_since_us) = (mode, clock.now_us());
        let dies = mode == Mode::Down;
        if !dies && mode != Mode::Stalled {
            return;
        }
        for call in self.running.drain(..).chain(self.waiting.drain(..)) {
            calls[call].place = Place::Swallowed;
            self.swallowed.push(call);
            if dies {
                clock.after(0, Event::Cut { call });
            } else if calls[call].answered {
                clock.after(idle_us, Event::StreamIdleOver { call });
            }
        }
    }

    fn start_next(&mut self, calls: &mut [Call], clock: &mut Clock) {
        while self.running.len() < self.slots {
            let Some(call) = self.waiting.pop_front() else { return };
            self.busy_us(clock.now_us());
            self.running.push(call);
            calls[call].place = Place::Running;
            clock.after(self.pace(calls[call].head_us, clock.now_us()), Event::Head { call });
        }
    }

    /// How long this much work takes now.
    fn pace(&self, work_us: u64, now_us: u64) -> u64 {
        match self.mode {
            Mode::Slow(factor) => work_us * factor,
            Mode::Warming { factor, us } => {
                let left = us.saturating_sub(now_us - self.mode_since_us);
                work_us + work_us * (factor - 1) * left / us.max(1)
            }
            Mode::Up
            | Mode::BadModel(_)
            | Mode::FailFast(_)
            | Mode::Stalled
            | Mode::Down
            | Mode::Flaky(_)
            | Mode::Erratic(_) => work_us,
        }
    }
}
