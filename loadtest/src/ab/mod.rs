//! Two targets compared: the same requests to both in turn, and what differs.
//!
//! The one idea: two runs one after the other compare two minutes of a machine; here
//! every request goes to both targets within seconds (A B B A), and what is told is the
//! difference of pairs with an interval that says how sure it is. With a third target
//! `direct`, the server without anything in between, it is the latency that each adds.
//!
//! Reading order: [`AbOptions`] and [`compare`] here; `deal` (who is sent what when),
//! `compare` (which times, which pairs), `bootstrap` (the intervals), `pids` (CPU and
//! memory), `tell` (text, JSON, CSV), `page` (what the HTML shows).
//!
//! A verdict is as that of a run: wrong answers first, then a client that was too slow,
//! of which nothing is compared. It sends no request of one target to another, and an
//! answer that outlasts its slot runs on into the time of the next target: slots should
//! be longer than answers take.

mod bootstrap;
mod compare;
mod deal;
mod page;
mod pids;
mod tell;

use std::io;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;

pub use bootstrap::{Differences, Estimate, Pair, differences};
pub use compare::{Change, Quantity};
pub use pids::Usage;
pub use tell::SCHEMA;

use crate::run::{self, Live, Load, Options, Plan, Planned, Report, Row, Until, Verdict};
use crate::text;

/// Longest time to connect before the run.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Time to start the threads before the first request is due.
const LEAD_US: u64 = 50_000;

/// What a comparison is told.
#[derive(Clone, Debug)]
pub struct AbOptions {
    /// What each target is sent: an open loop of which `until` is that of one target.
    /// The URL and the objectives are not used.
    pub load: Options,
    /// URL of target a.
    pub a: String,
    /// URL of target b.
    pub b: String,
    /// URL of the server that both stand in front of.
    pub direct: Option<String>,
    /// Requests of this time are sent to each target first and not counted.
    pub warmup: Duration,
    /// Length of a slot: how long one target is sent requests before another is.
    pub block: Duration,
    /// How often the rounds are drawn again for the intervals.
    pub resamples: u32,
    /// Processes of target a.
    pub pids_a: Vec<u32>,
    /// Processes of target b.
    pub pids_b: Vec<u32>,
}

impl Default for AbOptions {
    /// Without targets: two seconds of warm-up, slots of half a second.
    fn default() -> AbOptions {
        AbOptions {
            load: Options::default(),
            a: String::new(),
            b: String::new(),
            direct: None,
            warmup: Duration::from_secs(2),
            block: Duration::from_millis(500),
            resamples: 2000,
            pids_a: Vec::new(),
            pids_b: Vec::new(),
        }
    }
}

/// How one target did.
#[derive(Clone, Debug)]
pub struct Target {
    /// `a`, `b` or `direct`.
    pub name: &'static str,
    /// Without its query, which may hold a key.
    pub url: String,
    /// All that it was sent, the warm-up too; without rows.
    pub report: Report,
    /// The requests that count, in the order of the schedule.
    pub rows: Vec<Row>,
    /// What its processes used, when any were given; or which of them is gone.
    pub usage: Option<Result<Usage, String>>,
}

impl Target {
    /// Requests that count and got no right answer.
    pub fn failed(&self) -> usize {
        self.rows.iter().filter(|row| !(row.ok || row.aborted)).count()
    }

    fn quantile_us(&self, quantity: Quantity, share: f64) -> Option<u64> {
        let mut times: Vec<u64> = self.rows.iter().filter_map(|row| quantity.of(row)).collect();
        times.sort_unstable();
        let rank = (share * times.len() as f64).ceil() as usize;
        times.get(rank.max(1) - 1).copied()
    }
}

/// A comparison.
#[derive(Clone, Debug)]
pub struct Ab {
    /// a, b and, when there is one, direct.
    pub targets: Vec<Target>,
    /// What differs: b from a, then a and b from direct. Empty when the client was too slow.
    pub changes: Vec<Change>,
    /// The round of each request, by its number.
    pub rounds: Vec<u32>,
    /// Wall time.
    pub elapsed: Duration,
    options: Value,
}

impl Ab {
    /// The worst of the targets' verdicts.
    pub fn verdict(&self) -> Verdict {
        let any = |verdict| self.targets.iter().any(|target| target.report.verdict() == verdict);
        [Verdict::Broken, Verdict::ClientTooSlow, Verdict::NoAnswer]
            .into_iter()
            .find(|verdict| any(*verdict))
            .unwrap_or(Verdict::Good)
    }

    /// Whether every request got a right answer.
    pub fn flawless(&self) -> bool {
        self.verdict() == Verdict::Good
            && self.targets.iter().all(|target| target.report.flawless())
    }

    /// The processes that ended while they were watched, in words.
    pub fn gone(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().filter_map(|target| match &target.usage {
            Some(Err(why)) => Some(why.as_str()),
            _ => None,
        })
    }

    /// One difference.
    pub fn change(&self, of: &str, against: &str, quantity: Quantity) -> Option<&Change> {
        self.changes
            .iter()
            .find(|change| (change.of, change.against, change.quantity) == (of, against, quantity))
    }
}

/// Sends the same schedule to all targets in turn and compares them; blocks.
///
/// Errors: a closed loop, a schedule that cannot be or is empty, a target that does not
/// listen, a process that is not there.
pub fn compare(options: &AbOptions, live: &Arc<Live>) -> io::Result<Ab> {
    let targets = named(options);
    for (name, url) in &targets {
        reach(url).map_err(|error| {
            io::Error::new(error.kind(), format!("target {name} ({}): {error}", shown(url)))
        })?;
    }
    let watched =
        [("--pid-a", &options.pids_a), ("--pid-b", &options.pids_b)].map(|(flag, pids)| {
            if pids.is_empty() {
                return Ok(None);
            }
            pids::Watched::new(pids).map(Some).map_err(|why| wrong(format!("{flag}: {why}")))
        });
    let [a, b] = watched;
    let watched = [a?, b?];
    let (warm, counted) = schedules(options)?;
    let block_us = u64::try_from(options.block.as_micros()).unwrap_or(u64::MAX);
    let warm = deal::deal(&warm, targets.len(), LEAD_US, block_us);
    let dealt = deal::deal(&counted, targets.len(), warm.end_us, block_us);
    let lists: Vec<Vec<Planned>> = warm
        .lists
        .into_iter()
        .zip(dealt.lists)
        .map(|(first, then)| [first, then].concat())
        .collect();
    let started = Instant::now();
    let (reports, used) = std::thread::scope(|scope| {
        let slots = &dealt.slots;
        let watching: Vec<_> = watched
            .iter()
            .enumerate()
            .map(|(at, watched)| {
                let watched = watched.as_ref()?;
                let (over, told) = mpsc::channel::<()>();
                let own = slots.iter().copied().filter(move |slot| slot.target == at);
                Some((over, scope.spawn(move || watched.watch(own, started, &told))))
            })
            .collect();
        let sending: Vec<_> = targets
            .iter()
            .zip(lists)
            .map(|((_, url), list)| {
                let options = Options {
                    url: (*url).clone(),
                    load: Load::Listed(list.into()),
                    until: Until::End,
                    slos: Vec::new(),
                    keep_rows: true,
                    ..options.load.clone()
                };
                scope.spawn(move || run::run_at(&options, started, live))
            })
            .collect();
        let failed = || Err(io::Error::other("a target's thread panicked"));
        let reports: Vec<io::Result<Report>> =
            sending.into_iter().map(|sent| sent.join().unwrap_or_else(|_| failed())).collect();
        let used: Vec<Option<Result<Usage, String>>> = watching
            .into_iter()
            .map(|watching| {
                let (over, thread) = watching?;
                drop(over);
                Some(thread.join().unwrap_or_else(|_| Err("the watching thread panicked".into())))
            })
            .collect();
        (reports, used)
    });
    let mut told = Vec::new();
    for (at, ((name, url), report)) in targets.iter().zip(reports).enumerate() {
        let mut report = report?;
        let mut rows = std::mem::take(&mut report.rows);
        rows.retain(|row| row.intended_us >= warm.end_us);
        rows.sort_by_key(|row| row.id);
        let mut usage = used.get(at).cloned().flatten();
        if let Some(Ok(usage)) = &mut usage {
            usage.requests = rows.len() as u64;
        }
        told.push(Target { name, url: shown(url).to_owned(), report, rows, usage });
    }
    let mut ab = Ab {
        targets: told,
        changes: Vec::new(),
        rounds: dealt.rounds,
        elapsed: started.elapsed(),
        options: tell::options_value(options),
    };
    if ab.verdict() != Verdict::ClientTooSlow {
        ab.changes = changes(&ab, options);
    }
    Ok(ab)
}

/// b against a, then both against direct.
fn changes(ab: &Ab, options: &AbOptions) -> Vec<Change> {
    let side = |name: &str| {
        let target = ab.targets.iter().find(|target| target.name == name)?;
        Some(compare::Side { name: target.name, rows: &target.rows })
    };
    let between = |(of, against): (&str, &str)| {
        let (of, against) = (side(of)?, side(against)?);
        let seed = options.load.seed;
        Some(compare::compare(of, against, &ab.rounds, options.resamples, seed))
    };
    [("b", "a"), ("a", "direct"), ("b", "direct")]
        .into_iter()
        .filter_map(between)
        .flatten()
        .collect()
}

/// The warm-up, of another seed so that nothing of it is cached later, and what counts.
fn schedules(options: &AbOptions) -> io::Result<(Vec<Planned>, Vec<Planned>)> {
    let counted = options.load.plan().ok_or_else(|| {
        wrong("a comparison is an open loop: give it --rate, --arrivals or --trace".to_owned())
    })?;
    let warm = Plan {
        until: Until::Elapsed(options.warmup),
        seed: text::mix(counted.seed),
        ..counted.clone()
    };
    let warm = warm.schedule().map_err(wrong)?.collect();
    let counted: Vec<Planned> = counted.schedule().map_err(wrong)?.collect();
    if counted.is_empty() {
        return Err(wrong("the schedule holds no request: give it more time or rate".to_owned()));
    }
    Ok((warm, counted))
}

fn named(options: &AbOptions) -> Vec<(&'static str, &String)> {
    let direct = options.direct.iter().map(|url| ("direct", url));
    [("a", &options.a), ("b", &options.b)].into_iter().chain(direct).collect()
}

/// Connects once: a run towards a closed port would only count its refusals.
fn reach(url: &str) -> io::Result<()> {
    TcpStream::connect_timeout(&run::address(url)?, CONNECT_LIMIT).map(drop)
}

/// A URL without its query.
fn shown(url: &str) -> &str {
    url.split('?').next().unwrap_or_default()
}

fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
