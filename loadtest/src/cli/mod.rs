//! The command line of the generator: flags to options, reports to files and codes.
//!
//! Reading order: `load` (the flags that say what is sent), `run`, `search`, `ab`.

pub(crate) mod ab;
pub(crate) mod load;
pub(crate) mod run;
pub(crate) mod search;

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Instant;

use loadtest::run::{Live, Options, Report, run_at, watch};

/// Exit code of a client that was too slow for its numbers to mean anything.
pub(crate) const TOO_SLOW: u8 = 3;

/// Runs a load with progress on stderr, unless it is to be quiet.
pub(crate) fn watched(options: &Options, quiet: bool) -> io::Result<Report> {
    watching(quiet, |live| run_at(options, Instant::now(), live))
}

/// Does what sends requests with progress on stderr, unless it is to be quiet.
pub(crate) fn watching<T>(quiet: bool, send: impl FnOnce(&Arc<Live>) -> T) -> T {
    let live = Arc::new(Live::default());
    std::thread::scope(|scope| {
        let (tell, over) = mpsc::channel();
        if !quiet {
            let live = &live;
            scope.spawn(move || watch(live, &over));
        }
        let told = send(&live);
        drop(tell);
        told
    })
}

/// Writes to a file, or to stdout where it is called `-`.
pub(crate) fn put(path: &Path, text: &str) -> io::Result<()> {
    if is_stdout(path) {
        return io::stdout().write_all(text.as_bytes());
    }
    std::fs::write(path, text).map_err(|error| named(path, &error))
}

/// An error with the file it is about.
pub(crate) fn named(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}

/// Whether the path stands for stdout.
pub(crate) fn is_stdout(path: &Path) -> bool {
    path.as_os_str() == "-"
}
