//! The loops: connections that send one request after another, closed or open.
//!
//! A thread has its share of the connections, of the requests and of the rate; the
//! parts meet only in the report. A ticker on the same runtime measures how late
//! the runtime itself is: that lateness is in every number the run tells.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use tokio::task::LocalSet;

use super::check::Expected;
use super::client::{Client, Exchange, Fault};
use super::pace::{Due, Gaps, Ticket};
use super::report::Report;
use super::{Options, Target, Until};
use crate::text;

/// How often the runtime's lateness is measured.
const TICK: Duration = Duration::from_millis(5);
/// The runtime's timers are a millisecond coarse; that is not lateness.
const TIMER_GRAIN: Duration = Duration::from_millis(1);

/// Which part of the whole load a thread does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) index: usize,
    pub(super) of: usize,
}

impl Part {
    /// This part's share of `total`; the shares add up to it.
    fn share(self, total: u64) -> u64 {
        let (index, of) = (self.index as u64, self.of as u64);
        total / of + u64::from(index < total % of)
    }
}

/// What the connections of one thread share.
struct Work {
    options: Options,
    target: Target,
    part: Part,
    started: Instant,
    until: Until,
    due: Option<Arc<Due>>,
    begun: Cell<u64>,
    report: RefCell<Report>,
}

/// Does one thread's part of the load.
pub(super) fn work(
    options: &Options,
    target: &Target,
    part: Part,
    started: Instant,
) -> io::Result<Report> {
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let until = match options.until {
        Until::Requests(total) => Until::Requests(part.share(total)),
        elapsed => elapsed,
    };
    let due = options.rate.map(|rate| (rate, Arc::new(Due::new())));
    let work = Rc::new(Work {
        options: options.clone(),
        target: target.clone(),
        part,
        started,
        until,
        due: due.as_ref().map(|(_, due)| Arc::clone(due)),
        begun: Cell::new(0),
        report: RefCell::new(Report::new(options)),
    });
    let connections = part.share(options.connections.max(1) as u64);
    std::thread::scope(|scope| {
        if let Some((rate, due)) = &due {
            let seed = text::mix(options.seed ^ part.index as u64);
            let gaps = Gaps::new(options.pacing, rate / part.of as f64, seed);
            scope.spawn(move || due.keep_time(gaps, started, until));
        }
        LocalSet::new().block_on(&runtime, async {
            let ticker = tokio::task::spawn_local(tick(Rc::clone(&work)));
            let connection = |_| tokio::task::spawn_local(connection(Rc::clone(&work)));
            let running: Vec<_> = (0..connections).map(connection).collect();
            for one in running {
                // A panic in one ends the run with what the others have.
                let _ = one.await;
            }
            ticker.abort();
        });
        if let Some((_, due)) = &due {
            due.end();
        }
    });
    Ok(work.report.replace(Report::new(options)))
}

/// Measures how late the runtime wakes what is due.
async fn tick(work: Rc<Work>) {
    loop {
        let due = Instant::now() + TICK;
        tokio::time::sleep_until(due.into()).await;
        work.report.borrow_mut().woke_late(due.elapsed().saturating_sub(TIMER_GRAIN));
    }
}

/// One connection's loop.
async fn connection(work: Rc<Work>) {
    let options = &work.options;
    let mut client = Client::new(work.target.clone());
    let mut request = Vec::new();
    // A given body carries no seed of ours, and a mock told its seed uses that one.
    let told_seed = |(name, value): &(String, String)| {
        name.eq_ignore_ascii_case("x-mock") && value.contains("seed=")
    };
    let seeded = options.body.is_none() && !options.fields.iter().any(told_seed);
    while let Some((number, ticket)) = work.next().await {
        super::request(options, &work.target, number, &mut request);
        let begun_at = Instant::now();
        let head = memchr::memmem::find(&request, b"\r\n\r\n").map_or(0, |at| at + 4);
        let expected = Expected {
            path: &work.target.path,
            stream: options.stream,
            seed: seeded.then(|| super::seed_of(options, number)),
            sent: request.get(head..).unwrap_or_default(),
        };
        let mut told = Exchange::default();
        let exchange = client.exchange(&request, expected, options.abort_after, &mut told);
        let ended = match tokio::time::timeout(options.timeout, exchange).await {
            Ok(ended) => ended,
            Err(_) => {
                client.close();
                Err(Fault::Timeout)
            }
        };
        let due = ticket.map_or(begun_at, |ticket| ticket.due);
        {
            let mut report = work.report.borrow_mut();
            // A request that found no free connection was late through the server.
            if let Some(ticket) = ticket.filter(|ticket| ticket.awaited) {
                report.sent_late(begun_at.saturating_duration_since(ticket.due));
            }
            report.record(due, Instant::now(), &told, ended);
        }
        if ended == Err(Fault::Connect) {
            // Without a server the loop would only count its own speed.
            tokio::time::sleep(2 * TICK).await;
        }
    }
}

impl Work {
    /// The number of the next request, with its ticket in the open loop.
    async fn next(&self) -> Option<(u64, Option<Ticket>)> {
        let ticket = match &self.due {
            None => None,
            Some(due) => loop {
                let ticket = due.take().await?;
                if !self.over() {
                    break Some(ticket);
                }
                self.report.borrow_mut().unsent += 1;
            },
        };
        let begun = self.begun.get();
        let spent = matches!(self.until, Until::Requests(limit) if begun >= limit);
        if spent || self.over() {
            return None;
        }
        self.begun.set(begun + 1);
        Some((self.part.index as u64 + self.part.of as u64 * begun, ticket))
    }

    /// Whether the time of the run has passed.
    fn over(&self) -> bool {
        matches!(self.until, Until::Elapsed(limit) if self.started.elapsed() >= limit)
    }
}
