//! The highest rate that meets the objectives.
//!
//! The one idea: double until a rate fails, then halve the distance on a scale of
//! ratios, since 5 % more is what a reader asks about. Every step is a run of its own
//! with a schedule of its own seed, so that no rate is judged by one lucky draw of
//! arrivals twice. Steps and time are bounded; what ended the search is told, because
//! "the client could not send more" is not "the server could not take more".
//!
//! It does not repeat a step to average noise away: take longer steps for that.

use std::io;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::report::{Report, Verdict};
use super::{Arrivals, Load, Options, SCHEMA};
use crate::text;

/// A first rate that fails is halved so often at the most.
const HALVINGS_MAX: i32 = 10;

/// Where and how long to search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bounds {
    /// The first rate tried, in requests a second.
    pub from: f64,
    /// No rate above this is tried.
    pub to: f64,
    /// Ends when the lowest rate that failed is so much above the best, as a ratio.
    pub within: f64,
    /// Most runs.
    pub steps_max: u32,
    /// No run begins that would end after this time.
    pub budget: Duration,
}

impl Default for Bounds {
    /// From 1 to 100,000 a second, to 5 %, in 20 steps and 15 minutes.
    fn default() -> Bounds {
        let budget = Duration::from_secs(900);
        Bounds { from: 1.0, to: 1e5, within: 0.05, steps_max: 20, budget }
    }
}

impl Bounds {
    /// Refuses bounds between which nothing can be found.
    fn check(&self) -> Result<(), String> {
        let rates = self.from > 0.0 && self.from <= self.to && self.to.is_finite();
        if !rates {
            return Err(format!("rates from {} to {}", self.from, self.to));
        }
        if !(self.within > 0.0 && self.within.is_finite()) {
            return Err(format!("search within {}", self.within));
        }
        Ok(())
    }
}

/// What is known of the rate: `best < failed` where both are.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Known {
    best: Option<f64>,
    failed: Option<f64>,
}

impl Known {
    /// The rate to try next, or why there is none.
    fn next_rate(&self, bounds: &Bounds) -> Result<f64, End> {
        match (self.best, self.failed) {
            (None, None) => Ok(bounds.from),
            (Some(best), None) if best >= bounds.to => Err(End::Ceiling),
            (Some(best), None) => Ok((best * 2.0).min(bounds.to)),
            (None, Some(failed)) => {
                let floor = bounds.from / 2f64.powi(HALVINGS_MAX);
                if failed / 2.0 < floor { Err(End::Floor) } else { Ok(failed / 2.0) }
            }
            (Some(best), Some(failed)) if failed <= best * (1.0 + bounds.within) => Err(End::Found),
            (Some(best), Some(failed)) => Ok((best * failed).sqrt()),
        }
    }

    fn tell(&mut self, rate: f64, met: bool) {
        if met {
            self.best = Some(rate);
        } else {
            self.failed = Some(rate);
        }
    }
}

/// Why a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The best rate is as near to one that failed as was asked.
    Found,
    /// The highest rate that was allowed met the objectives.
    Ceiling,
    /// Even a thousandth of the first rate failed.
    Floor,
    /// The steps were used up.
    Steps,
    /// The time was.
    Budget,
    /// The client was too slow for a rate, twice.
    ClientTooSlow,
    /// An answer was wrong.
    Broken,
    /// No request of the first step got an answer.
    NoAnswer,
}

impl End {
    /// The word for it in JSON.
    pub fn name(self) -> &'static str {
        match self {
            End::Found => "found",
            End::Ceiling => "ceiling",
            End::Floor => "floor",
            End::Steps => "steps",
            End::Budget => "budget",
            End::ClientTooSlow => "client_too_slow",
            End::Broken => "broken",
            End::NoAnswer => "no_answer",
        }
    }
}

/// One run of a search.
#[derive(Clone, Debug)]
pub struct Step {
    /// Requests a second.
    pub rate: f64,
    /// Seed of its schedule.
    pub seed: u64,
    /// Whether every objective was met.
    pub met: bool,
    /// What came of it.
    pub report: Report,
}

impl Step {
    /// The step as a line.
    pub fn to_line(&self) -> String {
        let report = &self.report;
        if report.verdict() != Verdict::Good {
            return format!("rate {:.2}/s  {}", self.rate, report.message());
        }
        let slos: Vec<String> = report.judged().iter().map(ToString::to_string).collect();
        let told = if self.met { "met" } else { "MISSED" };
        format!(
            "rate {:.2}/s  {told}  goodput {:.2}/s  waited {}  {}",
            self.rate,
            report.goodput(),
            report.waited,
            slos.join(", ")
        )
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The highest rate that met the objectives, in requests a second.
    pub best: Option<f64>,
    /// The lowest rate that did not.
    pub failed: Option<f64>,
    /// Why it ended.
    pub end: End,
    /// All runs, in their order.
    pub steps: Vec<Step>,
}

impl Found {
    /// For people: one line.
    pub fn to_text(&self) -> String {
        let failed = self.failed.map_or_else(String::new, |rate| format!("; {rate:.2}/s fails"));
        let best = match self.best {
            Some(best) => format!("highest rate {best:.2}/s{failed}"),
            None => format!("no rate meets the objectives{failed}"),
        };
        format!("{best} (ended by: {})\n", self.end.name())
    }

    /// For programs: one object.
    pub fn to_json(&self) -> String {
        let steps = self.steps.iter().map(|step| {
            json!({
                "rate": step.rate, "seed": step.seed, "met": step.met,
                "run": step.report.to_value(),
            })
        });
        let told = json!({
            "schema": SCHEMA,
            "kind": "search",
            "version": env!("CARGO_PKG_VERSION"),
            "best_rate": self.best,
            "failed_rate": self.failed,
            "end": self.end.name(),
            "steps": steps.collect::<Vec<Value>>(),
        });
        told.to_string() + "\n"
    }
}

/// Searches, one run after the other; `options` gives the shape of the arrivals, the
/// length of a step (`until`) and the objectives.
///
/// `send` makes a run (as [`super::run`] does), `tell` hears of each step.
///
/// Errors: no objective, a shape without a rate, bounds that hold nothing; those of a run.
pub fn search(
    options: &Options,
    bounds: &Bounds,
    mut send: impl FnMut(&Options) -> io::Result<Report>,
    mut tell: impl FnMut(&Step),
) -> io::Result<Found> {
    bounds.check().map_err(super::wrong)?;
    if options.slos.is_empty() {
        return Err(super::wrong("a search needs an objective".to_owned()));
    }
    let Load::Open(shape) = &options.load else {
        return Err(super::wrong("a search needs an open loop".to_owned()));
    };
    let started = Instant::now();
    let mut known = Known::default();
    let mut steps: Vec<Step> = Vec::new();
    let mut too_slow = false;
    let end = loop {
        let rate = match known.next_rate(bounds) {
            Ok(rate) => rate,
            Err(end) => break end,
        };
        if steps.len() as u64 >= u64::from(bounds.steps_max) {
            break End::Steps;
        }
        let Some(load) = shape.at_rate(rate).map(Load::Open) else {
            return Err(super::wrong(format!("{} arrivals have no one rate", shape.name())));
        };
        let seed = text::mix(options.seed ^ text::mix(steps.len() as u64)) >> 12;
        let options = Options { load, seed, ..options.clone() };
        if started.elapsed().saturating_add(length(&options, rate)) > bounds.budget {
            break End::Budget;
        }
        let report = send(&options)?;
        let verdict = report.verdict();
        let step = Step { rate, seed, met: report.slos_met(), report };
        tell(&step);
        let met = step.met;
        steps.push(step);
        match verdict {
            Verdict::Broken => break End::Broken,
            Verdict::NoAnswer if steps.len() == 1 => break End::NoAnswer,
            // Once may be the machine; the same rate gets another try.
            Verdict::ClientTooSlow if too_slow => break End::ClientTooSlow,
            Verdict::ClientTooSlow => too_slow = true,
            Verdict::Good | Verdict::NoAnswer => {
                too_slow = false;
                known.tell(rate, met);
            }
        }
    };
    Ok(Found { best: known.best, failed: known.failed, end, steps })
}

/// How long a step will take at the least.
fn length(options: &Options, rate: f64) -> Duration {
    let seconds = |requests: u64| {
        Duration::try_from_secs_f64(requests as f64 / rate).unwrap_or(Duration::MAX)
    };
    match options.until {
        super::Until::Elapsed(limit) => limit,
        super::Until::Requests(count) => seconds(count),
        super::Until::End => match &options.load {
            Load::Open(Arrivals::Trace { trace, .. }) => seconds(trace.lines().len() as u64),
            _ => Duration::ZERO,
        },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Until;
    use super::super::client::Fault;
    use super::super::report::tests::report;
    use super::*;

    fn options() -> Options {
        Options {
            load: Load::Open(Arrivals::Poisson { rate: 1.0 }),
            slos: vec!["e2e=10ms".parse().unwrap()],
            until: Until::Elapsed(Duration::from_secs(1)),
            ..Options::default()
        }
    }

    /// A server that takes `capacity` a second.
    fn server(capacity: f64) -> impl FnMut(&Options) -> io::Result<Report> {
        move |options| {
            let Load::Open(arrivals) = &options.load else { panic!("open") };
            let fails = arrivals.rate().unwrap() > capacity;
            let slow = Options { slos: vec!["e2e=1ms".parse().unwrap()], ..options.clone() };
            Ok(report(if fails { &slow } else { options }, Ok(()), Duration::ZERO))
        }
    }

    #[test]
    fn search_tells_what_ended_it() {
        let bounds = Bounds { to: 64.0, ..Bounds::default() };
        let of = |bounds: Bounds, capacity| {
            search(&options(), &bounds, server(capacity), |_| {}).unwrap()
        };
        let found = of(bounds, 20.0);
        assert_eq!(found.end, End::Found);
        assert!(found.to_text().starts_with("highest rate 19."), "{}", found.to_text());
        assert_eq!((of(bounds, 1e9).best, of(bounds, 1e9).end), (Some(64.0), End::Ceiling));
        assert_eq!((of(bounds, 0.0).best, of(bounds, 0.0).end), (None, End::Floor));
        let few = Bounds { steps_max: 2, ..bounds };
        assert_eq!((of(few, 20.0).best, of(few, 20.0).end), (Some(2.0), End::Steps));
        let short = Bounds { budget: Duration::ZERO, ..bounds };
        assert_eq!(of(short, 20.0).end, End::Budget);
        let mut seeds: Vec<u64> = found.steps.iter().map(|step| step.seed).collect();
        seeds.dedup();
        assert_eq!(seeds.len(), found.steps.len());
        let json: Value = serde_json::from_str(&found.to_json()).unwrap();
        assert_eq!(json["steps"].as_array().unwrap().len(), found.steps.len());
    }

    #[test]
    fn search_ends_when_the_steps_say_nothing_of_the_server() {
        let late = |options: &Options| Ok(report(options, Ok(()), Duration::from_millis(900)));
        let found = search(&options(), &Bounds::default(), late, |_| {}).unwrap();
        assert_eq!((found.end, found.steps.len()), (End::ClientTooSlow, 2));
        let dead = |options: &Options| Ok(report(options, Err(Fault::Connect), Duration::ZERO));
        let found = search(&options(), &Bounds::default(), dead, |_| {}).unwrap();
        assert_eq!((found.end, found.best), (End::NoAnswer, None));
    }

    #[test]
    fn search_without_objective_or_rate_is_refused() {
        let of = |options: Options, bounds| search(&options, &bounds, server(1.0), |_| {});
        let bounds = Bounds::default();
        assert!(of(Options { slos: Vec::new(), ..options() }, bounds).is_err());
        assert!(of(Options { load: Load::Closed, ..options() }, bounds).is_err());
        let over = Duration::from_secs(1);
        let ramp = Load::Open(Arrivals::Ramp { from: 1.0, to: 2.0, over });
        assert!(of(Options { load: ramp, ..options() }, bounds).is_err());
        assert!(of(options(), Bounds { from: 5.0, to: 1.0, ..bounds }).is_err());
    }

    proptest! {
        #[test]
        fn best_is_just_below_the_capacity(
            capacity in 0.01..1e4, from in 0.1..1e3, within in 0.01..0.5,
        ) {
            let bounds = Bounds { from, to: 1e5, within, steps_max: 60, ..Bounds::default() };
            let mut known = Known::default();
            let mut steps = 0;
            let end = loop {
                match known.next_rate(&bounds) {
                    Ok(rate) => known.tell(rate, rate <= capacity),
                    Err(end) => break end,
                }
                steps += 1;
                prop_assert!(steps < 40, "{:?}", known);
            };
            match known.best {
                Some(best) => {
                    prop_assert_eq!(end, End::Found);
                    prop_assert!(best <= capacity && capacity <= best * (1.0 + within) * 1.001);
                }
                None => prop_assert!(end == End::Floor && capacity < from / 512.0),
            }
        }
    }
}
