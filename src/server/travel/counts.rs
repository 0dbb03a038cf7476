//! What has been counted, so that Prometheus sees nothing fall: the sums of the process, and the
//! rows by label, by the names behind their numbers.
//!
//! Each message tells absolute sums, of rows those that have changed; the process that takes over
//! adds to its own what it heard last. What has no name in its config is counted as `other`.
//! Gauges do not travel, nor do the counts of reloads.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Map, Value, json};

use super::read::{Fields, as_sum};
use crate::error::Finish;
use crate::proxy::before::Counted;
use crate::proxy::core::Shared;
use crate::telemetry::counters::Counters;
use crate::telemetry::histogram::{self, Histogram, TIMES_US, TOKENS};
use crate::telemetry::labels::{LabelId, LabelKind, PlanLabels};
use crate::telemetry::meters::ErrorLabel;
use crate::telemetry::series::{RowId, RowKind};

/// Most rows in a message.
const ROWS_MAX: usize = 200_000;

/// What has been told of rows so far.
#[derive(Default)]
pub struct GivenRows(HashMap<RowId, Vec<u64>>);

/// What the process counts beside its cores, with the words for it.
fn of_process(shared: &Shared) -> [(&'static str, &AtomicU64); 8] {
    [
        ("connections_refused", &shared.refused),
        ("handshakes_failed", &shared.handshakes_failed),
        ("panics", &shared.panics),
        ("access_lines_lost", &shared.access_lost),
        ("traces_exported", &shared.traces.exported),
        ("traces_dropped", &shared.traces.dropped),
        ("handovers", &shared.handovers.done),
        ("handovers_failed", &shared.handovers.failed),
    ]
}

/// The sums of the process; `lines_lost` more lines of the access log were lost by its thread.
#[must_use]
pub fn give(shared: &Shared, lines_lost: u64) -> Value {
    let mut counters = counters_written(&shared.counters_sum());
    for (word, sum) in of_process(shared) {
        let more = if word == "access_lines_lost" { lines_lost } else { 0 };
        counters[word] = json!(sum.load(Relaxed).saturating_add(more));
    }
    counters
}

impl GivenRows {
    /// The rows that have changed since the last message.
    pub fn changed(&mut self, shared: &Shared) -> Value {
        let (sums, labels) = shared.rows_sum();
        let rows = sums.all().filter_map(|(id, values)| {
            let told = self.0.entry(id).or_default();
            if told == values {
                return None;
            }
            values.clone_into(told);
            row_written(&labels, id, values)
        });
        rows.take(ROWS_MAX).collect()
    }
}

/// A row with its labels in words; `None` when a name is gone.
fn row_written(labels: &PlanLabels, id: RowId, values: &[u64]) -> Option<Value> {
    let (names, error) = (id.kind.names(), id.kind.error_label());
    let label = |(at, number): (usize, u32)| match at {
        at if at < names => labels.name(LabelId(number)).map(Value::from),
        at if Some(at) == error => Some(Value::from(ErrorLabel::text(number))),
        _ => Some(Value::from(number)),
    };
    let all: Option<Vec<Value>> = id.labels.into_iter().enumerate().map(label).collect();
    Some(json!({"kind": id.kind.word(), "labels": all?, "values": values}))
}

fn counters_written(counters: &Counters) -> Value {
    let finished =
        Finish::ALL.iter().map(|end| (end.name().to_owned(), counters.finished(*end).into()));
    json!({
        "bounds": [TIMES_US.all, TOKENS.all],
        "exchanges": counters.exchanges,
        "by_class": counters.by_class,
        "by_finish": finished.collect::<Map<String, Value>>(),
        "attempts": counters.attempts,
        "retries": counters.retries,
        "reused": counters.reused,
        "streamed": counters.streamed,
        "request_bytes": counters.request_bytes,
        "response_bytes": counters.response_bytes,
        "queue": counters.queue_us.values(),
        "first_byte": counters.first_byte_us.values(),
        "overhead": counters.overhead_us.values(),
    })
}

fn counters_read(fields: Fields<'_>) -> Counters {
    let by_finish = fields.inner("by_finish");
    let finished = |end: Finish| by_finish.map_or(0, |all| all.sum(end.name()));
    let histogram = |name: &str| {
        let values = fields.sums::<{ histogram::WIDTH }>(name);
        values.and_then(|values| Histogram::of(&values)).unwrap_or_default()
    };
    Counters {
        exchanges: fields.sum("exchanges"),
        by_class: fields.sums("by_class").unwrap_or_default(),
        by_finish: Finish::ALL.map(finished),
        attempts: fields.sum("attempts"),
        retries: fields.sum("retries"),
        reused: fields.sum("reused"),
        streamed: fields.sum("streamed"),
        request_bytes: fields.sum("request_bytes"),
        response_bytes: fields.sum("response_bytes"),
        queue_us: histogram("queue"),
        first_byte_us: histogram("first_byte"),
        overhead_us: histogram("overhead"),
    }
}

/// Whether the histograms of a message have the buckets of ours.
fn same_bounds(fields: Fields<'_>) -> bool {
    let ours = json!([TIMES_US.all, TOKENS.all]);
    let theirs: Vec<&Value> = fields.list("bounds", 2).collect();
    let same = ours.as_array().is_some_and(|ours| ours.iter().eq(theirs));
    if !same {
        fields.leave_out(|| "histograms with other buckets".to_owned());
    }
    same
}

/// The counts as the process that takes over has heard of them.
#[derive(Default)]
pub struct TakenCounts {
    process: [u64; 8],
    rows: HashMap<(RowKind, Vec<String>), Vec<u64>>,
    /// The buckets are others: no row counts.
    strange: bool,
}

impl TakenCounts {
    /// Hears what has been counted by now. How many rows were taken.
    pub fn hear(&mut self, shared: &Shared, message: Fields<'_>) -> usize {
        if let Some(fields) = message.inner("counters") {
            self.strange = !same_bounds(fields);
            for ((word, sum), heard) in of_process(shared).into_iter().zip(&mut self.process) {
                let more = fields.sum(word).saturating_sub(*heard);
                *heard += more;
                sum.fetch_add(more, Relaxed);
            }
            let mut counters = counters_read(fields);
            if self.strange {
                counters.queue_us = Histogram::default();
                counters.first_byte_us = Histogram::default();
                counters.overhead_us = Histogram::default();
            }
            shared.before.counted().counters = counters;
        }
        if self.strange {
            return 0;
        }
        self.hear_rows(shared, message)
    }

    fn hear_rows(&mut self, shared: &Shared, message: Fields<'_>) -> usize {
        let (plan, _) = shared.slot.plan();
        let names = Names::of(&plan.labels);
        let mut counted = shared.before.counted();
        let Counted { rows, .. } = &mut *counted;
        let mut taken = 0;
        for entry in message.objects("rows", ROWS_MAX) {
            let word = entry.text("kind");
            let Some(kind) = RowKind::ALL.into_iter().find(|kind| kind.word() == word) else {
                entry.leave_out(|| format!("rows of the kind {word:?}"));
                continue;
            };
            let labels: Vec<&Value> = entry.list("labels", 3).collect();
            let values: Vec<u64> = entry.list("values", kind.width()).filter_map(as_sum).collect();
            let Some(id) = names.row(kind, &labels).filter(|_| values.len() == kind.width()) else {
                entry.leave_out(|| format!("a row of the kind {word}: {labels:?}"));
                continue;
            };
            let known = (kind, labels.iter().map(|label| label.to_string()).collect());
            let heard = self.rows.entry(known).or_insert_with(|| vec![0; kind.width()]);
            let more: Vec<u64> =
                values.iter().zip(&*heard).map(|(now, heard)| now.saturating_sub(*heard)).collect();
            rows.add_row(id, &more);
            *heard = values;
            taken += 1;
        }
        taken
    }
}

/// The numbers of names in the plan in force.
struct Names<'l>(HashMap<(LabelKind, &'l str), LabelId>);

impl<'l> Names<'l> {
    fn of(labels: &'l PlanLabels) -> Self {
        let of_kind = |kind| labels.named(kind).map(move |(name, id)| ((kind, name), id));
        Self(LabelKind::ALL.into_iter().flat_map(of_kind).collect())
    }

    /// The row with these labels; a name that nobody has is `other`, an error that nobody knows
    /// makes no row.
    fn row(&self, kind: RowKind, labels: &[&Value]) -> Option<RowId> {
        let mut id = RowId { kind, labels: [0; 3] };
        for (at, number) in id.labels.iter_mut().enumerate() {
            let label = labels.get(at)?;
            *number = match kind.label_kinds().get(at) {
                Some(of) => self.name(*of, label.as_str()?).0,
                None if kind.error_label() == Some(at) => ErrorLabel::number_of(label.as_str()?)?,
                None => u32::try_from(label.as_u64()?).ok()?,
            };
        }
        Some(id)
    }

    fn name(&self, kind: LabelKind, name: &str) -> LabelId {
        match name {
            "" => LabelId::NONE,
            name => self.0.get(&(kind, name)).copied().unwrap_or(LabelId::OTHER),
        }
    }
}
