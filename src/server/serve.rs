//! `tokenring serve`: config → server → signals → exit code.
//!
//! Exit codes: 0 after a drain, 1 when it cannot start, 2 for a wrong command line (`cli`).

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use super::banner::{banner, hazards};
use super::{Started, start_with};
use crate::base::units::counted;
use crate::cli::{self, CONFIG_PATH, ServeArgs};
use crate::config::{Level, Loaded};
use crate::control;
use crate::control::signals::Ending;

/// Runs the proxy until it is told to end.
pub fn serve(args: &ServeArgs, err: &mut dyn Write) -> ExitCode {
    let config = if args.backends.is_empty() {
        let path = args.file().unwrap_or(Path::new(CONFIG_PATH));
        match cli::load(path) {
            Ok(Loaded { config, report }) => {
                say(err, &report.to_string());
                config
            }
            Err(fault) => {
                say(err, &fault.to_string());
                if args.file().is_none() && !path.exists() {
                    say(err, "hint: give a file with -c FILE, or servers with --backend URL\n");
                }
                return ExitCode::FAILURE;
            }
        }
    } else {
        match cli::load_said(args) {
            Ok(Loaded { config, report }) => {
                say(err, &report.to_string());
                config
            }
            Err(report) => {
                say(err, &report.to_string());
                return ExitCode::FAILURE;
            }
        }
    };
    // Caught before the workers start: they inherit the mask, and no signal is missed.
    let mut ending = match Ending::catch() {
        Ok(ending) => ending,
        Err(error) => {
            say(err, &format!("error: cannot catch signals: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    let level = config.log.level;
    let tell = move |line: &str| {
        if level >= Level::Warn {
            // Nobody can be told that stderr is closed.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    };
    let differs = control::Options { say: Arc::new(tell), ..control::Options::default() };
    let started = match start_with(&config, differs) {
        Ok(started) => started,
        Err(error) => {
            say(err, &format!("error: {error}\n"));
            return ExitCode::FAILURE;
        }
    };
    announce(&started, err);
    let signal = ending.wait(|| started.server.reload());
    let drain = started.config.process.drain;
    say(err, &format!("{signal}: draining, at most {} s; again to cut\n", drain.as_secs()));
    ending.on_next(started.server.cutter());
    started.server.drain();
    let counters = started.server.join();
    let exchanges = usize::try_from(counters.exchanges).unwrap_or(usize::MAX);
    say(err, &format!("ended after {}\n", counted(exchanges, "exchange")));
    ExitCode::SUCCESS
}

/// Prints what was obtained and what is amiss.
pub fn announce(started: &Started, err: &mut dyn Write) {
    if started.config.log.level >= Level::Info {
        say(err, &banner(started));
    }
    for warning in started.warnings.iter().chain(&hazards(&started.server, &started.config)) {
        say(err, &format!("warning: {warning}\n"));
    }
}

fn say(err: &mut dyn Write, text: &str) {
    // Nobody can be told that stderr is closed.
    let _ = err.write_all(text.as_bytes());
}
