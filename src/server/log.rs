//! The log: every line of ours goes to standard error, by `log.level` and `log.format`.
//!
//! The one idea: whoever has something to tell must not wait for whoever reads it. Lines go
//! through a queue to a thread that writes them; when the queue is full a line is left out and
//! counted. Failed exchanges are bound to `FAILURES_A_SECOND`, or an outage would be told once
//! for each request: how many more there were is told within a second.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use crate::config;
use crate::error::Level;
use crate::net::sys::wall_time;
use crate::telemetry::line::Line;

/// Lines that may wait to be written.
const LINES_MAX: usize = 1024;
/// Failed exchanges told of in one second.
const FAILURES_A_SECOND: u64 = 20;
/// How often it is looked whether something was left out.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Where lines go; clones are the same log.
#[derive(Clone)]
pub struct Log {
    settings: Arc<Settings>,
    lines: SyncSender<Vec<u8>>,
    counts: Arc<Counts>,
}

/// `[log]` as it is in force; a reload may change it.
struct Settings {
    level: AtomicU8,
    json: AtomicBool,
}

impl Settings {
    fn of(said: &config::Log) -> Self {
        let settings = Self { level: AtomicU8::new(0), json: AtomicBool::new(false) };
        settings.set(said);
        settings
    }

    fn set(&self, said: &config::Log) {
        self.level.store(said.level as u8, Ordering::Relaxed);
        self.json.store(said.format == config::LogFormat::Json, Ordering::Relaxed);
    }

    fn json(&self) -> bool {
        self.json.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Counts {
    /// The second that `written` is about, since 1970.
    second: AtomicU64,
    written: AtomicU64,
    left_out: AtomicU64,
}

impl Log {
    /// Starts a log of standard error.
    #[must_use]
    pub fn start(said: &config::Log) -> Self {
        Self::start_into(said, |line| {
            // Nobody can be told that stderr is closed.
            let _ = std::io::stderr().write_all(line);
        })
    }

    fn start_into(said: &config::Log, write: impl FnMut(&[u8]) + Send + 'static) -> Self {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let settings = Arc::new(Settings::of(said));
        let log = Self { settings: settings.clone(), lines, counts: Arc::default() };
        let counts = log.counts.clone();
        let thread = std::thread::Builder::new().name("log".to_owned());
        // Without this thread every line is left out: the queue has no reader.
        let _ = thread.spawn(move || write_lines(&waiting, &counts, &settings, write));
        log
    }

    /// Writes by these settings from now on.
    pub fn set(&self, said: &config::Log) {
        self.settings.set(said);
    }

    /// Whether lines of that level are written.
    #[must_use]
    pub fn writes(&self, level: Level) -> bool {
        let least = match level {
            Level::Error => config::Level::Error,
            Level::Warn => config::Level::Warn,
            Level::Info => config::Level::Info,
            Level::Debug => config::Level::Debug,
        };
        self.settings.level.load(Ordering::Relaxed) >= least as u8
    }

    /// One line, or nothing when its level is not written.
    #[must_use]
    pub fn line(&self, level: Level, message: &str, facts: &[(&str, &str)]) -> Vec<u8> {
        match self.writes(level) {
            true => written(level, message, facts, self.settings.json()),
            false => Vec::new(),
        }
    }

    /// Has a line written; never waits.
    pub fn say(&self, level: Level, message: &str, facts: &[(&str, &str)]) {
        let line = self.line(level, message, facts);
        if !line.is_empty() && self.lines.try_send(line).is_err() {
            self.counts.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// As `say`, of an exchange that failed: at most `FAILURES_A_SECOND`.
    pub fn say_failed(&self, level: Level, message: &str, facts: &[(&str, &str)]) {
        if !self.writes(level) {
            return;
        }
        let second = wall_time().as_secs();
        if self.counts.second.swap(second, Ordering::Relaxed) != second {
            self.counts.written.store(0, Ordering::Relaxed);
        }
        if self.counts.written.fetch_add(1, Ordering::Relaxed) >= FAILURES_A_SECOND {
            self.counts.left_out.fetch_add(1, Ordering::Relaxed);
        } else {
            self.say(level, message, facts);
        }
    }
}

fn written(level: Level, message: &str, facts: &[(&str, &str)], json: bool) -> Vec<u8> {
    let line = Line { at: wall_time(), level, message, facts };
    let mut out = Vec::with_capacity(256);
    match json {
        true => line.write_json(&mut out),
        false => line.write_text(&mut out),
    }
    out
}

fn write_lines(
    lines: &Receiver<Vec<u8>>,
    counts: &Counts,
    settings: &Settings,
    mut write: impl FnMut(&[u8]),
) {
    loop {
        let line = lines.recv_timeout(FLUSH_INTERVAL);
        if let Ok(line) = &line {
            write(line);
        }
        let idle = line == Err(RecvTimeoutError::Timeout);
        let left_out = if idle { counts.left_out.swap(0, Ordering::Relaxed) } else { 0 };
        if left_out > 0 {
            let count = left_out.to_string();
            write(&written(
                Level::Warn,
                "lines were left out",
                &[("count", &count)],
                settings.json(),
            ));
        }
        if line == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn said(level: &str) -> config::Log {
        let text = format!(
            "[log]\nlevel = \"{level}\"\nformat = \"json\"\n[[listener]]\nname = \"l\"\n\
             bind = \"127.0.0.1:0\"\nauth = \"none\"\n"
        );
        config::Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}")).log
    }

    #[test]
    fn an_outage_is_told_and_counted_not_repeated() {
        let (sender, lines) = mpsc::channel();
        let log = Log::start_into(&said("warn"), move |line| {
            let _ = sender.send(serde_json::from_slice::<serde_json::Value>(line).unwrap());
        });
        log.say(Level::Info, "not written", &[]);
        for _ in 0..500 {
            log.say_failed(Level::Warn, "exchange failed", &[("reason", "reset")]);
        }
        let (mut told, mut left_out) = (0, 0);
        while told + left_out < 500 {
            let line = lines.recv_timeout(Duration::from_secs(20)).expect("another line");
            match line["count"].as_str() {
                Some(count) => left_out += count.parse::<u64>().unwrap(),
                None => told += 1,
            }
            assert!(line["ts"].as_str().is_some() && line["level"] == "warn", "{line}");
        }
        assert!((FAILURES_A_SECOND..=5 * FAILURES_A_SECOND).contains(&told), "{told}");
    }
}
