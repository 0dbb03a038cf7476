//! Which driver a core runs on: io_uring with the best flags the kernel grants, or epoll.

use std::cell::Cell;
use std::fmt;

thread_local! {
    static EPOLL: Cell<bool> = const { Cell::new(false) };
}

/// The driver that a core has obtained, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring; completions are processed only when the core asks for them (DEFER_TASKRUN).
    UringDefer,
    /// io_uring; completions do not interrupt the core (COOP_TASKRUN).
    UringCoop,
    /// io_uring as an older kernel has it, without either flag.
    UringPlain,
    /// epoll, where io_uring is not to be had or not wanted.
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

/// Whether this core runs on epoll, where descriptors must be non-blocking.
#[must_use]
pub fn is_epoll() -> bool {
    EPOLL.with(Cell::get)
}

/// Records which driver this thread runs; called once by the worker, before its first socket.
pub fn note_driver(driver: Driver) {
    EPOLL.with(|epoll| epoll.set(driver == Driver::Epoll));
}
