//! What one exchange adds to a core's rows (`series`).
//!
//! In steady state one look-up by small numbers finds all rows of an exchange that was like an
//! earlier one (`Remembered`), and the rest are additions to plain numbers. Failures have rows of
//! their own, so that those of requests that succeed stay few.

use std::sync::Arc;
use std::time::Duration;

use super::histogram::{TIMES_US, TOKENS};
use super::labels::{LabelId, PlanLabels};
use super::outcome::Outcome;
use super::series::{
    ATTEMPT_DURATION, BETWEEN_TOKENS, CoreRows, DURATION, FIRST_TOKEN, INPUT, METHODS, OUTPUT,
    RATE_LIMITED, Row, RowId, RowKind, RowWriter,
};
use crate::base::clock::micros;
use crate::error::{Blame, Finish, Kind};

/// Combinations of labels whose rows are remembered; a power of two.
const REMEMBERED: usize = 256;

/// What an error is counted under: a fault's kind, or a status that is none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorLabel {
    /// A fault.
    Fault(Kind),
    /// An answer with this status.
    Status(u16),
}

/// Numbers from here on are kinds, those below are statuses.
const KIND: u32 = 1000;

impl ErrorLabel {
    fn number(self) -> u32 {
        match self {
            ErrorLabel::Fault(kind) => KIND + kind as u32,
            ErrorLabel::Status(status) => u32::from(status),
        }
    }

    /// The number for a label's text.
    #[must_use]
    pub fn number_of(text: &str) -> Option<u32> {
        if let Some(status) = text.strip_prefix("status_") {
            return status.parse().ok().filter(|status| *status < KIND);
        }
        let kinds = Kind::all().map(|kind| KIND + kind as u32);
        kinds.into_iter().find(|number| Self::text(*number) == text)
    }

    /// The label's text for a number.
    #[must_use]
    pub fn text(number: u32) -> String {
        let kind = number.checked_sub(KIND).and_then(|kind| u8::try_from(kind).ok());
        match kind.and_then(Kind::numbered) {
            Some(kind) => kind.row().log.replace([' ', '-'], "_").replace(',', ""),
            None => format!("status_{number}"),
        }
    }
}

/// The labels of one exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExchangeLabels {
    /// The listener.
    pub listener: LabelId,
    /// The group at work last.
    pub group: LabelId,
    /// The upstream of the last attempt.
    pub upstream: LabelId,
    /// The model; `OTHER` when the client named one that is not in the config.
    pub model: LabelId,
    /// The key.
    pub key: LabelId,
}

impl ExchangeLabels {
    /// Where its rows are remembered.
    fn slot(&self) -> usize {
        let Self { listener, group, upstream, model, key } = *self;
        let all = [listener, group, upstream, model, key];
        let mixed = all.iter().fold(0u32, |mix, label| (mix ^ label.0).wrapping_mul(0x9e37_79b1));
        (mixed >> (u32::BITS - REMEMBERED.ilog2())) as usize
    }
}

/// The rows of one combination of labels, as far as they were needed.
#[derive(Debug, Default)]
struct Remembered {
    labels: ExchangeLabels,
    listener: Option<Arc<Row>>,
    route: Option<Arc<Row>>,
    attempt: Option<Arc<Row>>,
    tokens: Option<Arc<Row>>,
    model: Option<Arc<Row>>,
}

/// A row that is remembered, or found and remembered.
fn row<'r, const N: usize>(
    known: &'r mut Option<Arc<Row>>,
    rows: &mut RowWriter,
    kind: RowKind,
    labels: [LabelId; N],
) -> &'r Row {
    known.get_or_insert_with(|| rows.row(RowId::of(kind, labels)))
}

/// What a core counts by label.
#[derive(Debug)]
pub struct Meters {
    rows: RowWriter,
    remembered: Box<[Remembered]>,
    /// The labels of the plan that this core serves by.
    labels: Arc<PlanLabels>,
}

impl Meters {
    /// Counts into these rows, by a plan with these labels.
    #[must_use]
    pub fn new(rows: Arc<CoreRows>, labels: Arc<PlanLabels>) -> Self {
        let remembered = (0..REMEMBERED).map(|_| Remembered::default()).collect();
        Self { rows: RowWriter::new(rows), remembered, labels }
    }

    /// Another plan is in force on this core: rows of what it does not have any more go.
    pub fn follow(&mut self, labels: &Arc<PlanLabels>) {
        if self.labels.loses_to(labels) {
            self.remembered.fill_with(Remembered::default);
            self.rows.sweep(|id| labels.name(id).is_some());
        }
        self.labels = labels.clone();
    }

    /// Counts an exchange that has ended.
    ///
    /// Shape: `method` is its number in `http::method`; `last_is_told` when the last attempt has been
    /// counted by `attempt_failed` already.
    pub fn exchange(
        &mut self,
        labels: &ExchangeLabels,
        method: usize,
        outcome: &Outcome,
        last_is_told: bool,
    ) {
        let Self { rows, remembered, .. } = self;
        let known = &mut remembered[labels.slot()];
        if known.labels != *labels {
            *known = Remembered { labels: *labels, ..Remembered::default() };
        }
        let ExchangeLabels { listener, group, upstream, .. } = *labels;
        let row_at = row(&mut known.listener, rows, RowKind::Listener, [listener]);
        row_at.add(method.min(METHODS - 1), 1);
        row_at.observe(DURATION, &TIMES_US, outcome.duration_us);
        if group != LabelId::NONE {
            row(&mut known.route, rows, RowKind::RouteMatch, [listener, group]).add(0, 1);
        }
        if outcome.attempts > 0 {
            if !last_is_told {
                let took_us = outcome.duration_us.saturating_sub(outcome.picked_us.unwrap_or(0));
                let row = row(&mut known.attempt, rows, RowKind::Attempt, [group, upstream]);
                row.add(0, 1);
                row.observe(ATTEMPT_DURATION, &TIMES_US, took_us);
            }
            tokens(known, rows, outcome);
        }
        if outcome.fault.is_some() || outcome.status >= 400 {
            self.ended_badly(labels, outcome, last_is_told);
        }
    }

    /// What a fault and a status of 400 and above add.
    #[cold]
    fn ended_badly(&mut self, labels: &ExchangeLabels, outcome: &Outcome, last_is_told: bool) {
        if outcome.finish() == Finish::RateLimited {
            let id = RowId::of(RowKind::Listener, [labels.listener]);
            self.rows.with(id, |row| row.add(RATE_LIMITED, 1));
        }
        self.exchange_error(labels.listener, outcome);
        if outcome.finish() == Finish::ClientAbort && outcome.attempts > 0 {
            self.saved(labels, outcome);
        }
        if outcome.attempts > 0 && !last_is_told {
            let status = outcome.upstream_status;
            let error = match outcome.fault {
                Some(fault) if fault.row().blame != Blame::Upstream => None,
                Some(fault) => Some(ErrorLabel::Fault(fault.kind)),
                None => (status >= 500).then_some(ErrorLabel::Status(status)),
            };
            if let Some(error) = error {
                self.attempt_error(labels.group, labels.upstream, error);
            }
        }
    }

    /// What an answer would have taken after its client left, by the median of its upstream.
    ///
    /// That median is of all attempts on this core, those that were left included: with many of them
    /// it is too small rather than too large.
    fn saved(&mut self, labels: &ExchangeLabels, outcome: &Outcome) {
        let ExchangeLabels { group, upstream, model, .. } = *labels;
        let attempts = self.rows.row(RowId::of(RowKind::Attempt, [group, upstream]));
        let Some(median) = attempts.median(ATTEMPT_DURATION, &TIMES_US) else { return };
        let took_us = outcome.duration_us.saturating_sub(outcome.picked_us.unwrap_or(0));
        let saved = median.saturating_sub(took_us);
        if saved > 0 {
            self.rows.with(RowId::of(RowKind::Saved, [model, upstream]), |row| row.add(0, saved));
        }
    }

    fn exchange_error(&mut self, listener: LabelId, outcome: &Outcome) {
        let status = outcome.status_told();
        let error = match outcome.fault {
            Some(fault) => ErrorLabel::Fault(fault.kind),
            None => ErrorLabel::Status(status),
        };
        let labels = [listener.0, error.number(), u32::from(status)];
        let id = RowId { kind: RowKind::ExchangeError, labels };
        self.rows.with(id, |row| row.add(0, 1));
    }

    /// Counts an attempt that failed before the client had an answer; `None` = by nobody's fault.
    #[cold]
    pub fn attempt_failed(
        &mut self,
        (group, upstream): (LabelId, LabelId),
        error: Option<ErrorLabel>,
        took: Duration,
    ) {
        self.rows.with(RowId::of(RowKind::Attempt, [group, upstream]), |row| {
            row.add(0, 1);
            row.observe(ATTEMPT_DURATION, &TIMES_US, micros(took));
        });
        if let Some(error) = error {
            self.attempt_error(group, upstream, error);
        }
    }

    fn attempt_error(&mut self, group: LabelId, upstream: LabelId, error: ErrorLabel) {
        let labels = [group.0, upstream.0, error.number()];
        let id = RowId { kind: RowKind::AttemptError, labels };
        self.rows.with(id, |row| row.add(0, 1));
    }
}

/// Tokens, and the times of streams, by model.
fn tokens(known: &mut Remembered, rows: &mut RowWriter, outcome: &Outcome) {
    let ExchangeLabels { model, upstream, key, .. } = known.labels;
    let (prompt, completion) = (outcome.prompt_tokens, outcome.completion_tokens);
    if prompt.is_some() || completion.is_some() {
        let row = row(&mut known.tokens, rows, RowKind::Tokens, [model, upstream, key]);
        let cached = outcome.cached_tokens;
        for (at, tokens) in [prompt, completion, cached].into_iter().enumerate() {
            row.add(at, tokens.unwrap_or(0));
        }
    } else if outcome.first_token_us.is_none() {
        return;
    }
    let row = row(&mut known.model, rows, RowKind::Model, [model]);
    if let Some(us) = outcome.first_token_us {
        row.observe(FIRST_TOKEN, &TIMES_US, us);
    }
    if let Some(time) = between_tokens(outcome) {
        row.observe(BETWEEN_TOKENS, &TIMES_US, micros(time));
    }
    for (at, tokens) in [(INPUT, prompt), (OUTPUT, completion)] {
        if let Some(tokens) = tokens {
            row.observe(at, &TOKENS, tokens);
        }
    }
}

/// The mean time from a token to the next of a stream that came to its end.
fn between_tokens(outcome: &Outcome) -> Option<Duration> {
    let (first, tokens) = (outcome.first_token_us?, outcome.completion_tokens?);
    let gaps = tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
    let time = Duration::from_micros(outcome.duration_us.saturating_sub(first) / gaps);
    outcome.fault.is_none().then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_error_has_a_text_of_its_own() {
        let mut texts = HashSet::new();
        for kind in Kind::all() {
            let text = ErrorLabel::text(ErrorLabel::Fault(kind).number());
            assert!(texts.insert(text.clone()), "{text}");
            assert!(!text.contains(' '), "{text}");
        }
        assert_eq!(ErrorLabel::text(ErrorLabel::Status(503).number()), "status_503");
    }

    #[test]
    fn the_time_between_tokens_is_known_of_whole_streams_of_two_and_more() {
        let check = |tokens, fault: Option<Kind>, expected: Option<u64>| {
            let outcome = Outcome {
                first_token_us: Some(1_000),
                completion_tokens: tokens,
                duration_us: 9_000,
                fault: fault.map(Into::into),
                ..Outcome::default()
            };
            let expected = expected.map(Duration::from_micros);
            assert_eq!(between_tokens(&outcome), expected, "{tokens:?} {fault:?}");
        };
        check(Some(5), None, Some(2_000));
        check(Some(1), None, None);
        check(None, None, None);
        check(Some(5), Some(Kind::ClientGone), None);
    }
}
