//! The end of an exchange: one record, exactly once, whatever way it ends.
//!
//! The record is filled in as the exchange goes. When the guard is dropped, by the normal end, by
//! an abort, by a panic, the record is told to the core's counters and to whoever listens to
//! records, and the key pays for what it has used.

use std::cell::RefCell;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::core::{Core, LocalPlan};
use super::failure_report::report_failure;
use super::limit::Charge;
use crate::base::clock::{Moment, Timestamp};
use crate::error::Kind;
use crate::net::stream::Handle;
use crate::policy::limit::passed::Passed;
use crate::telemetry::finished::Finished;
use crate::telemetry::labels::{LabelId, PlanLabels, label_at};
use crate::telemetry::meters::{ErrorLabel, ExchangeLabels};
use crate::telemetry::record::{Facts, Record};
use crate::telemetry::trace::Trace;
use crate::telemetry::traced::TracedExchange;

/// Holds the record of one exchange until its end.
pub struct Settle {
    core: Rc<Core>,
    plan: LocalPlan,
    /// What has become known so far.
    pub record: Rc<Record>,
    /// Its place among the exchanges that an operator may look at.
    slot: Option<u32>,
    /// What a charge by the token goes by, as far as it is known.
    pub passed: RefCell<Passed>,
    charge: Option<Charge>,
}

impl Settle {
    /// Begins the record of an exchange whose head has been read.
    ///
    /// Shape: `listener` is its number in `plan`; `client` is the other end of the connection.
    #[must_use]
    pub fn begin(core: &Rc<Core>, plan: &LocalPlan, listener: u16, client: Option<IpAddr>) -> Self {
        let now = core.shared.notifier.clock.at(Instant::now());
        let mut record = core.records.take().unwrap_or_default();
        // What was given back is nobody else's any more.
        if let Some(record) = Rc::get_mut(&mut record) {
            *record = Record::begin(now, listener, client, record.take_buffer());
        }
        Self {
            core: core.clone(),
            plan: plan.clone(),
            record,
            slot: None,
            passed: RefCell::default(),
            charge: None,
        }
    }

    /// Lets an operator look at the exchange, where there is one; `client` ends the connection or
    /// stream that it came by.
    pub fn list(&mut self, client: impl FnOnce() -> Handle) {
        if self.plan.lists_exchanges {
            let (record, plan) = (self.record.clone(), self.plan.clone());
            self.slot = Some(self.core.exchanges.enter(record, plan, client()));
        }
    }

    /// When the head had been read.
    #[must_use]
    pub fn begun(&self) -> Moment {
        self.record.begun()
    }

    /// The same by both clocks.
    #[must_use]
    pub fn begun_at(&self) -> Timestamp {
        self.core.shared.notifier.clock.both(self.begun())
    }

    /// Keeps the key's charge until the exchange ends, when its tokens are paid.
    pub fn hold(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    /// Pays tokens at once, for an exchange that may last for hours (a tunnel).
    pub fn pay(&self, tokens: u64) {
        if let Some(charge) = &self.charge {
            charge.pay_tokens(tokens, self.now());
        }
    }

    /// How long ago the head was read.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.now().since(self.begun())
    }

    /// Counts an attempt that began at `begun` and failed; `None` = by nobody's fault.
    #[cold]
    pub fn meter_failed(&self, error: Option<ErrorLabel>, begun: Moment) {
        let labels = self.record.with(|facts| labels(&self.plan.labels, facts));
        let took = self.now().since(begun);
        let mut meters = self.core.meters.borrow_mut();
        meters.attempt_failed((labels.group, labels.upstream), error, took);
    }

    /// The moment that it is now, the same on all cores.
    #[must_use]
    pub fn now(&self) -> Moment {
        self.core.shared.notifier.clock.at(Instant::now())
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.record.failed(Kind::Internal);
        }
        if let Some(slot) = self.slot {
            self.core.exchanges.leave(slot);
        }
        let now = self.now();
        let core = &self.core;
        // Off the list it is nobody else's.
        let Some(record) = Rc::get_mut(&mut self.record) else { return };
        let facts = record.finish(now);
        if let Some(charge) = &self.charge {
            let passed = self.passed.get_mut();
            passed.request_bytes = facts.outcome.request_bytes;
            charge.pay(passed, &core.shared.token_sizes, now);
        }
        core.counters.borrow_mut().record(&facts.outcome);
        let (labels, method) = (labels(&self.plan.labels, facts), facts.method_kind as usize);
        let last_is_told = facts.failed_attempts >= facts.outcome.attempts;
        core.meters.borrow_mut().exchange(&labels, method, &facts.outcome, last_is_told);
        let failed = facts.outcome.fault.is_some();
        let logged = core.logs_access(self.plan.access_sample, !failed);
        if failed || logged || facts.trace.is_some() || core.shared.on_finished.get().is_some() {
            tell(core, &self.plan, facts, logged);
        }
        self.core.records.give_back(self.record.clone());
    }
}

/// The labels of an exchange.
fn labels(plan: &PlanLabels, facts: &Facts) -> ExchangeLabels {
    let at = |list: &[LabelId], number: Option<usize>| {
        number.map_or(LabelId::NONE, |number| label_at(list, number))
    };
    let is_named = !facts.model().is_empty();
    let unknown = if is_named { LabelId::OTHER } else { LabelId::NONE };
    ExchangeLabels {
        listener: label_at(&plan.listeners, usize::from(facts.listener)),
        group: at(&plan.groups, facts.group.map(usize::from)),
        upstream: at(&plan.upstreams, facts.upstream.map(usize::from)),
        model: facts.model_known.map_or(unknown, |number| label_at(&plan.models, number as usize)),
        key: at(&plan.keys, facts.key.map(|number| number as usize)),
    }
}

/// Tells of a finished exchange, with the names that its numbers stand for.
#[inline(never)]
fn tell(core: &Core, plan: &LocalPlan, facts: &Facts, logged: bool) {
    let group = facts.group.and_then(|number| plan.groups.get(usize::from(number)));
    let upstream = facts.upstream.and_then(|number| plan.upstreams.get(usize::from(number)));
    let key = facts.key.and_then(|number| plan.limits.get(number as usize));
    let listener = plan.listeners.get(usize::from(facts.listener));
    let finished = Finished {
        ts_ms: core.shared.notifier.clock.both(facts.begun).wall.as_millis(),
        request_id: facts.id.as_ref().map_or("", |id| id.as_str()),
        client: facts.client,
        key: key.map_or("", |key| &key.name),
        listener: listener.map_or("", |listener| &listener.name),
        method: facts.method(),
        path: facts.path(),
        group: group.map_or("", |group| &group.name),
        model: facts.model(),
        model_sent: facts.model_sent(),
        upstream: upstream.map_or("", |upstream| &upstream.name),
        failures: &facts.failures,
        outcome: &facts.outcome,
    };
    if logged {
        core.log_access(&finished);
    }
    if let Some(trace) = &facts.trace {
        let wall = core.shared.notifier.clock.both(facts.begun).wall;
        let traced = TracedExchange::new(&finished, Trace::clone(trace), facts.begun, wall);
        core.traces.hand(traced, &core.shared.traces);
    }
    report_failure(core, &finished);
    if let Some(listen) = core.shared.on_finished.get() {
        listen(&finished);
    }
}
