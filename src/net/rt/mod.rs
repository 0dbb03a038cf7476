//! The runtime of one core. This folder is the only place that names monoio and io_uring.
//!
//! A worker thread pins itself and then calls `block_on`, which climbs down a ladder of ring
//! flags until one is granted: `SINGLE_ISSUER|DEFER_TASKRUN` (completions run only when the
//! loop asks: 0.72–0.78 of nginx's CPU per request), `COOP_TASKRUN` (0.8–0.9), a bare ring
//! (0.84–0.96), epoll. The ring must be built on the thread that uses it.
//!
//! monoio's features stay small on purpose: `sync` costs an eventfd and atomics on every park,
//! `poll-io` two system calls per readiness, `splice` one kernel thread per waiting stream,
//! and `zero-copy` corrupts data.

mod accept;
mod driver;
mod socket;

use std::future::Future;
use std::io;
use std::time::Duration;

use monoio::time::TimeDriver;
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

pub use accept::{Acceptor, Stop};
pub use driver::{Driver, is_epoll, note_driver};
pub use socket::{Part, Socket};

thread_local! {
    static RUNNING: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Size of the submission queue: operations gathered before they are handed to the kernel.
const RING_ENTRIES: u32 = 2048;
/// Size of the completion queue; the kernel keeps further completions elsewhere, at a cost.
const RING_COMPLETIONS: u32 = 16384;

/// Which driver the operator wants (`process.io`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// io_uring, or epoll where io_uring is not to be had.
    Auto,
    /// io_uring; without it the process does not start.
    Uring,
    /// epoll, even where there is io_uring.
    Epoll,
}

impl Wanted {
    /// What `auto` means under `MONOIO_FORCE_LEGACY_DRIVER`, the switch that tests use.
    #[must_use]
    pub fn with_environment(self) -> Self {
        let forced = std::env::var_os("MONOIO_FORCE_LEGACY_DRIVER").is_some_and(|v| v != "0");
        if self == Wanted::Auto && forced { Wanted::Epoll } else { self }
    }
}

/// Runs one future to its end on a runtime of this thread.
///
/// Shape: `make` is told which driver was obtained and returns the future.
/// Errors: no driver of the wanted kind can be had; the message says why the ring was refused.
pub fn block_on<F, T>(wanted: Wanted, make: impl FnOnce(Driver) -> F) -> io::Result<T>
where
    F: Future<Output = T>,
{
    let mut refused = None;
    if wanted != Wanted::Epoll {
        for driver in [Driver::UringDefer, Driver::UringCoop, Driver::UringPlain] {
            match ring(driver) {
                Ok(mut runtime) => return Ok(within(|| runtime.block_on(make(driver)))),
                Err(error) => refused = Some(error),
            }
        }
    }
    if let (Wanted::Uring, Some(error)) = (wanted, refused) {
        return Err(io::Error::new(
            error.kind(),
            format!("io_uring refused: {error}; set process.io = \"epoll\" or allow io_uring"),
        ));
    }
    let mut runtime = RuntimeBuilder::<LegacyDriver>::new().enable_timer().build()?;
    Ok(within(|| runtime.block_on(make(Driver::Epoll))))
}

/// Calls `run`; meanwhile `is_running` is true on this thread.
fn within<T>(run: impl FnOnce() -> T) -> T {
    RUNNING.set(true);
    let output = run();
    RUNNING.set(false);
    output
}

fn ring(driver: Driver) -> io::Result<monoio::Runtime<TimeDriver<IoUringDriver>>> {
    let mut ring = io_uring::IoUring::builder();
    ring.setup_cqsize(RING_COMPLETIONS);
    match driver {
        Driver::UringDefer => ring.setup_single_issuer().setup_defer_taskrun(),
        Driver::UringCoop => ring.setup_coop_taskrun(),
        Driver::UringPlain | Driver::Epoll => &mut ring,
    };
    RuntimeBuilder::<IoUringDriver>::new()
        .uring_builder(ring)
        .with_entries(RING_ENTRIES)
        .enable_timer()
        .build()
}

/// Whether this thread runs tasks: false while the runtime is dropped with the tasks that are left,
/// when `spawn` must not be called.
#[must_use]
pub fn is_running() -> bool {
    RUNNING.get()
}

/// Starts a task on this core. It cannot be cancelled: it runs until its future ends.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    // Dropping the handle detaches the task.
    drop(monoio::spawn(future));
}

/// Waits for `duration`. For the ticker and for retry pauses; deadlines of connections belong to
/// the ticker, since each sleep costs 640 bytes.
pub async fn sleep(duration: Duration) {
    monoio::time::sleep(duration).await;
}
