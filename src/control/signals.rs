//! Signals: SIGTERM and SIGINT drain, a second one cuts; SIGHUP has certificates read again;
//! SIGUSR1 has a log opened again, and does nothing where none is written.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// The signals that end the process, SIGHUP and SIGUSR1, caught from now on: left to itself
/// SIGUSR1 would end the process, which no script that rotates logs means.
pub struct Ending(Signals);

impl Ending {
    /// Begins to catch; called before the first thread starts, so that none is missed.
    pub fn catch() -> io::Result<Self> {
        Ok(Self(Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?))
    }

    /// Waits for the first signal that ends; calls `reload` at each SIGHUP before it.
    pub fn wait(&mut self, reload: impl Fn()) -> &'static str {
        loop {
            match self.0.forever().next() {
                Some(SIGHUP) => reload(),
                Some(SIGUSR1) => {}
                Some(SIGINT) => return "SIGINT",
                _ => return "SIGTERM",
            }
        }
    }

    /// Calls `abort` when another signal comes while the drain lasts.
    pub fn on_next(mut self, abort: impl Fn() + Send + 'static) {
        let watch = std::thread::Builder::new().name("signals".to_owned());
        // Without this thread a second signal is ignored, and the drain's own limit still holds.
        let _ = watch.spawn(move || {
            if self.0.forever().any(|signal| !matches!(signal, SIGHUP | SIGUSR1)) {
                abort();
            }
        });
    }
}
