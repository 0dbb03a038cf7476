//! How a run is going, while it goes.
//!
//! The one idea: the threads that send only add to counters; one thread that does
//! nothing else looks at them and writes to stderr, a live line on a terminal and a
//! plain line every five seconds elsewhere. Nothing here is a result: those come
//! with the verdict, when the run is over.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often the live line is written.
const LIVE_EVERY: Duration = Duration::from_millis(250);
/// How often a plain line is.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// Counters of a run in progress.
#[derive(Debug, Default)]
pub struct Live {
    begun: AtomicU64,
    ended: AtomicU64,
    failed: AtomicU64,
    latency_us_sum: AtomicU64,
}

impl Live {
    /// A request was begun.
    pub(super) fn begin(&self) {
        self.begun.fetch_add(1, Relaxed);
    }

    /// A request ended so long after it was due.
    pub(super) fn end(&self, latency_us: u64, failed: bool) {
        self.ended.fetch_add(1, Relaxed);
        self.failed.fetch_add(u64::from(failed), Relaxed);
        self.latency_us_sum.fetch_add(latency_us, Relaxed);
    }

    fn look(&self) -> Seen {
        // `ended` first: a request that is both begun and ended between two loads must
        // not make the difference negative.
        let ended = self.ended.load(Relaxed);
        Seen {
            ended,
            begun: self.begun.load(Relaxed),
            failed: self.failed.load(Relaxed),
            latency_us_sum: self.latency_us_sum.load(Relaxed),
        }
    }
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    begun: u64,
    ended: u64,
    failed: u64,
    latency_us_sum: u64,
}

impl Seen {
    /// What is told: totals, and rate and mean latency since the look before.
    fn line(&self, before: &Seen, since: Duration) -> String {
        let ended = self.ended.saturating_sub(before.ended);
        let rate = ended as f64 / since.as_secs_f64().max(1e-3);
        let sum_us = self.latency_us_sum.saturating_sub(before.latency_us_sum);
        let mean_ms = sum_us as f64 / ended.max(1) as f64 / 1e3;
        format!(
            "sent {}  answered {}  failed {}  in flight {}  {rate:.1}/s  mean {mean_ms:.1} ms",
            self.begun,
            self.ended - self.failed.min(self.ended),
            self.failed,
            self.begun.saturating_sub(self.ended)
        )
    }
}

/// Tells how `live` does on stderr until `over` is dropped or told; blocks its thread.
pub fn watch(live: &Live, over: &Receiver<()>) {
    if io::stderr().is_terminal() { watch_live(live, over) } else { watch_plain(live, over) }
}

fn waited(over: &Receiver<()>, time: Duration) -> bool {
    matches!(over.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

fn watch_live(live: &Live, over: &Receiver<()>) {
    let bar = ProgressBar::new_spinner();
    // A template that is not one would be our own mistake; the default is as good.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed}  {msg}") {
        bar.set_style(style);
    }
    // The rate over a second: one tick alone would jump.
    let mut looks = std::collections::VecDeque::from([(Instant::now(), live.look())]);
    while waited(over, LIVE_EVERY) {
        let (now, seen) = (Instant::now(), live.look());
        if let Some((at, before)) = looks.front() {
            bar.set_message(seen.line(before, now - *at));
        }
        bar.tick();
        looks.push_back((now, seen));
        if looks.len() > 4 {
            looks.pop_front();
        }
    }
    bar.finish_and_clear();
}

fn watch_plain(live: &Live, over: &Receiver<()>) {
    let started = Instant::now();
    let (mut at, mut before) = (started, live.look());
    while waited(over, PLAIN_EVERY) {
        let (now, seen) = (Instant::now(), live.look());
        let line = seen.line(&before, now - at);
        // Nobody is left to tell when stderr is closed; the run goes on.
        let _ = writeln!(io::stderr(), "{:.0} s  {line}", (now - started).as_secs_f64());
        (at, before) = (now, seen);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn line_tells_totals_and_what_is_new() {
        let live = Live::default();
        let before = live.look();
        for at in 0..4 {
            live.begin();
            live.end(2_000, at == 0);
        }
        live.begin();
        let line = live.look().line(&before, Duration::from_secs(2));
        assert_eq!(line, "sent 5  answered 3  failed 1  in flight 1  2.0/s  mean 2.0 ms");
    }

    #[test]
    fn watching_ends_when_the_run_is_over() {
        let (tell, over) = mpsc::channel();
        drop(tell);
        watch(&Live::default(), &over);
    }
}
