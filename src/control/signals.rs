//! Signals: SIGTERM and SIGINT begin the drain, a second one aborts what is still in flight; SIGHUP
//! has the config read again; SIGUSR1 has the access log opened again, by scripts that rotate it.

use std::io;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// The caught signals: SIGTERM, SIGINT, SIGHUP and SIGUSR1. If SIGUSR1 were not caught, it would
/// end the process.
pub struct Ending(Signals);

impl Ending {
    /// Begins to catch; called before the first thread starts, so that no signal is missed.
    pub fn catch() -> io::Result<Self> {
        Ok(Self(Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?))
    }

    /// Waits for SIGTERM or SIGINT and returns its name; calls `reload` at each SIGHUP before it and
    /// `reopen` at each SIGUSR1.
    pub fn wait(&mut self, reload: impl Fn(), reopen: impl Fn()) -> &'static str {
        loop {
            match self.0.forever().next() {
                Some(SIGHUP) => reload(),
                Some(SIGUSR1) => reopen(),
                Some(SIGINT) => return "SIGINT",
                _ => return "SIGTERM",
            }
        }
    }

    /// Calls `abort` at the next SIGTERM or SIGINT and `reopen` at each SIGUSR1 before it, from a
    /// thread of its own.
    pub fn on_next(
        mut self,
        abort: impl Fn() + Send + 'static,
        reopen: impl Fn() + Send + 'static,
    ) {
        let watch = std::thread::Builder::new().name("signals".to_owned());
        // If the thread cannot start, a second signal is ignored; the drain ends at its limit.
        let _ = watch.spawn(move || {
            for signal in self.0.forever() {
                match signal {
                    SIGUSR1 => reopen(),
                    // What drains takes no other config any more.
                    SIGHUP => {}
                    _ => return abort(),
                }
            }
        });
    }
}
