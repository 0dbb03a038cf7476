//! Which driver a core runs on.

use std::cell::Cell;
use std::fmt;

thread_local! {
    static EPOLL: Cell<bool> = const { Cell::new(false) };
}

/// Which driver was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring with completions run only when asked for.
    UringDefer,
    /// io_uring without interrupts for completions.
    UringCoop,
    /// io_uring without flags.
    UringPlain,
    /// epoll.
    Epoll,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::UringDefer => "io_uring (SINGLE_ISSUER, DEFER_TASKRUN)",
            Driver::UringCoop => "io_uring (COOP_TASKRUN)",
            Driver::UringPlain => "io_uring (no flags)",
            Driver::Epoll => "epoll",
        })
    }
}

/// Tells whether this core runs on epoll, where descriptors must not block.
#[must_use]
pub fn is_epoll() -> bool {
    EPOLL.with(Cell::get)
}

/// Says which driver this thread runs; called once by the worker, before its first socket.
pub fn note_driver(driver: Driver) {
    EPOLL.with(|epoll| epoll.set(driver == Driver::Epoll));
}
