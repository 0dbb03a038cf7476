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
use super::pace::{Due, Ticket};
use super::progress::Live;
use super::report::{Report, fault_name};
use super::row::Row;
use super::schedule::{Planned, Shape};
use super::{Load, Options, Target, Until};

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

/// What the threads of a run share.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) options: &'a Options,
    pub(super) target: &'a Target,
    pub(super) started: Instant,
    pub(super) live: &'a Arc<Live>,
}

/// What the connections of one thread share.
struct Work {
    options: Options,
    shape: Shape,
    target: Target,
    part: Part,
    started: Instant,
    until: Until,
    due: Option<Arc<Due>>,
    begun: Cell<u64>,
    live: Arc<Live>,
    report: RefCell<Report>,
}

/// Does one thread's part of the load.
pub(super) fn work(run: Run<'_>, part: Part) -> io::Result<Report> {
    let Run { options, target, started, live } = run;
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let until = match options.until {
        Until::Requests(total) => Until::Requests(part.share(total)),
        other => other,
    };
    let mine = move |(at, _): &(usize, Planned)| at % part.of == part.index;
    let schedule: Option<Box<dyn Iterator<Item = Planned> + Send + '_>> = match &options.load {
        Load::Closed => None,
        Load::Listed(list) => {
            Some(Box::new(list.iter().cloned().enumerate().filter(mine).map(|(_, one)| one)))
        }
        Load::Open(_) => {
            let schedule = options.plan().map(|plan| plan.schedule());
            let schedule = schedule.transpose().map_err(super::wrong)?;
            // Every thread walks the whole schedule and takes what is its own.
            Some(Box::new(
                schedule.into_iter().flatten().enumerate().filter(mine).map(|(_, one)| one),
            ))
        }
    };
    let connections = part.share(options.connections.max(1) as u64) as usize;
    let due = schedule.is_some().then(|| Arc::new(Due::new(connections)));
    let work = Rc::new(Work {
        options: options.clone(),
        shape: options.shape(),
        target: target.clone(),
        part,
        started,
        until,
        due: due.clone(),
        begun: Cell::new(0),
        live: Arc::clone(live),
        report: RefCell::new(Report::new(options)),
    });
    std::thread::scope(|scope| {
        if let Some((schedule, due)) = schedule.zip(due.as_ref()) {
            let end_us = match until {
                Until::Elapsed(limit) => u64::try_from(limit.as_micros()).unwrap_or(u64::MAX),
                _ => 0,
            };
            let write = |planned: &Planned| super::request(options, target, planned);
            scope.spawn(move || due.keep_time(schedule, write, started, end_us));
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
        if let Some(due) = &due {
            due.end();
        }
    });
    Ok(work.report.replace(Report::new(options)))
}

/// What a connection sends next.
struct Next {
    planned: Planned,
    /// Its bytes, when they are written already.
    bytes: Option<Vec<u8>>,
    /// In the open loop, whether this connection waited for it.
    awaited: Option<bool>,
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
    // A given body carries no seed of ours, and a mock told its seed uses that one.
    let told_seed = |(name, value): &(String, String)| {
        name.eq_ignore_ascii_case("x-mock") && value.contains("seed=")
    };
    let seeded = options.body.is_none() && !options.fields.iter().any(told_seed);
    while let Some(Next { planned, bytes, awaited }) = work.next().await {
        let written = bytes.unwrap_or_else(|| super::request(options, &work.target, &planned));
        let begun_us = work.now_us();
        let head = memchr::memmem::find(&written, b"\r\n\r\n").map_or(0, |at| at + 4);
        let expected = Expected {
            path: &work.target.path,
            stream: planned.stream,
            seed: seeded.then_some(planned.seed),
            sent: written.get(head..).unwrap_or_default(),
        };
        let mut told = Exchange::default();
        work.live.begin();
        let exchange = client.exchange(&written, expected, options.abort_after, &mut told);
        let ended = match tokio::time::timeout(options.timeout, exchange).await {
            Ok(ended) => ended,
            Err(_) => {
                client.close();
                Err(Fault::Timeout)
            }
        };
        let intended_us = if awaited.is_some() { planned.due_us } else { begun_us };
        let row = work.row(planned.number, intended_us, &told, ended);
        work.live.end(row.latency_us(), !(row.ok || row.aborted));
        {
            let mut report = work.report.borrow_mut();
            match awaited {
                Some(true) => report.sent_late(begun_us.saturating_sub(planned.due_us)),
                // A request that found no free connection was late through the server.
                Some(false) => report.waited += 1,
                None => {}
            }
            report.record(row, &told, ended);
        }
        if ended == Err(Fault::Connect) {
            // Without a server the loop would only count its own speed.
            tokio::time::sleep(2 * TICK).await;
        }
        if let Some(due) = &work.due {
            due.give_back();
        }
    }
}

impl Work {
    /// The next request, until the run is over.
    async fn next(&self) -> Option<Next> {
        if let Some(due) = &self.due {
            loop {
                let Ticket { planned, bytes, awaited } = due.take().await?;
                if !self.over() {
                    return Some(Next { planned, bytes, awaited: Some(awaited) });
                }
                self.report.borrow_mut().unsent += 1;
                due.give_back();
            }
        }
        let begun = self.begun.get();
        let spent = matches!(self.until, Until::Requests(limit) if begun >= limit);
        if spent || self.over() {
            return None;
        }
        self.begun.set(begun + 1);
        let number = self.part.index as u64 + self.part.of as u64 * begun;
        let planned = Planned::new(&self.shape, self.options.seed, number, 0);
        Some(Next { planned, bytes: None, awaited: None })
    }

    /// Whether the time of the run has passed.
    fn over(&self) -> bool {
        matches!(self.until, Until::Elapsed(limit) if self.started.elapsed() >= limit)
    }

    fn now_us(&self) -> u64 {
        self.us(Instant::now())
    }

    /// Microseconds from the start of the run.
    fn us(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.started);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// What is kept of an exchange that has just ended.
    fn row(&self, id: u64, intended_us: u64, told: &Exchange, ended: Result<(), Fault>) -> Row {
        let below_400 = told.status.is_some_and(|status| status < 400);
        let gap_us = |gap: Duration| u64::try_from(gap.as_micros()).unwrap_or(u64::MAX);
        let sum: Duration = told.gaps.iter().sum();
        let mean = u32::try_from(told.gaps.len()).ok().and_then(|count| sum.checked_div(count));
        Row {
            id,
            intended_us,
            sent_us: told.sent_at.map(|at| self.us(at)),
            first_byte_us: told.first_byte_at.map(|at| self.us(at)),
            first_token_us: told.first_token_at.map(|at| self.us(at)),
            done_us: self.now_us(),
            status: told.status,
            ok: ended.is_ok() && below_400 && !told.aborted,
            aborted: ended.is_ok() && told.aborted,
            tokens: told.tokens,
            error: match ended {
                Ok(()) if below_400 => None,
                Ok(()) => Some("status"),
                Err(fault) => Some(fault_name(fault).0),
            },
            inter_token_mean_us: mean.map(gap_us),
            inter_token_max_us: told.gaps.iter().max().copied().map(gap_us),
            inter_token_jitter_us: jitter_us(&told.gaps),
        }
    }
}

/// The standard deviation of the gaps; one gap has none.
fn jitter_us(gaps: &[Duration]) -> Option<u64> {
    if gaps.len() < 2 {
        return None;
    }
    let us = |gap: &Duration| gap.as_secs_f64() * 1e6;
    let count = gaps.len() as f64;
    let mean = gaps.iter().map(us).sum::<f64>() / count;
    let square = gaps.iter().map(|gap| (us(gap) - mean).powi(2)).sum::<f64>();
    Some((square / (count - 1.0)).sqrt().round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_the_deviation_of_the_gaps() {
        let gaps = |ms: &[u64]| -> Vec<Duration> {
            ms.iter().map(|ms| Duration::from_millis(*ms)).collect()
        };
        assert_eq!(jitter_us(&gaps(&[2, 4, 4, 4, 5, 5, 7, 9])), Some(2138));
        assert_eq!(jitter_us(&gaps(&[5, 5])), Some(0));
        assert_eq!(jitter_us(&gaps(&[5])), None);
    }
}
