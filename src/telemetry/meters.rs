//! What one exchange adds to a core's rows (`series`).
//!
//! In steady state: a handful of look-ups by small numbers and additions to plain numbers. Failures
//! have rows of their own, so that those of requests that succeed stay few.

use std::sync::Arc;
use std::time::Duration;

use super::histogram::{BOUNDS, TIMES_US, TOKENS};
use super::labels::{LabelId, PlanLabels};
use super::outcome::Outcome;
use super::series::{
    ATTEMPT_DURATION, BETWEEN_TOKENS, CoreRows, DURATION, FIRST_TOKEN, INPUT, METHODS, OUTPUT,
    RATE_LIMITED, RowId, RowKind, RowWriter,
};
use crate::base::clock::micros;
use crate::error::{Blame, Finish, Kind};

/// Bounds of the histograms in rows.
const TIMES: &[u64; BOUNDS] = &TIMES_US;

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

    /// The label's text for a number.
    #[must_use]
    pub fn text(number: u32) -> String {
        let kind = Kind::all().find(|kind| KIND + *kind as u32 == number);
        match kind {
            Some(kind) => kind.row().log.replace([' ', '-'], "_").replace(',', ""),
            None => format!("status_{number}"),
        }
    }
}

/// The labels of one exchange.
#[derive(Clone, Copy, Debug, Default)]
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

/// What a core counts by label.
#[derive(Debug)]
pub struct Meters {
    rows: RowWriter,
    /// The labels of the plan that this core serves by.
    labels: Arc<PlanLabels>,
}

impl Meters {
    /// Counts into these rows, by a plan with these labels.
    #[must_use]
    pub fn new(rows: Arc<CoreRows>, labels: Arc<PlanLabels>) -> Self {
        Self { rows: RowWriter::new(rows), labels }
    }

    /// Another plan is in force on this core: rows of what it does not have any more go.
    pub fn follow(&mut self, labels: &Arc<PlanLabels>) {
        if self.labels.loses_to(labels) {
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
        let is_limited = outcome.finish() == Finish::RateLimited;
        self.rows.with(RowId::of(RowKind::Listener, [labels.listener]), |row| {
            row.add(method.min(METHODS - 1), 1);
            row.observe(DURATION, TIMES, outcome.duration_us);
            if is_limited {
                row.add(RATE_LIMITED, 1);
            }
        });
        if outcome.fault.is_some() || outcome.status >= 400 {
            self.exchange_error(labels.listener, outcome);
        }
        if labels.group != LabelId::NONE {
            let id = RowId::of(RowKind::RouteMatch, [labels.listener, labels.group]);
            self.rows.with(id, |row| row.add(0, 1));
        }
        if outcome.attempts == 0 {
            return;
        }
        if !last_is_told {
            self.last_attempt(labels, outcome);
        }
        self.tokens(labels, outcome);
    }

    #[cold]
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

    /// The attempt whose answer the client was given, or that nothing came of.
    fn last_attempt(&mut self, labels: &ExchangeLabels, outcome: &Outcome) {
        let took_us = outcome.duration_us.saturating_sub(outcome.picked_us.unwrap_or(0));
        let took = Duration::from_micros(took_us);
        self.attempt(labels.group, labels.upstream, took);
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

    /// Counts an attempt that failed before the client had an answer; `None` = by nobody's fault.
    #[cold]
    pub fn attempt_failed(
        &mut self,
        (group, upstream): (LabelId, LabelId),
        error: Option<ErrorLabel>,
        took: Duration,
    ) {
        self.attempt(group, upstream, took);
        if let Some(error) = error {
            self.attempt_error(group, upstream, error);
        }
    }

    fn attempt(&mut self, group: LabelId, upstream: LabelId, took: Duration) {
        self.rows.with(RowId::of(RowKind::Attempt, [group, upstream]), |row| {
            row.add(0, 1);
            row.observe(ATTEMPT_DURATION, TIMES, micros(took));
        });
    }

    #[cold]
    fn attempt_error(&mut self, group: LabelId, upstream: LabelId, error: ErrorLabel) {
        let labels = [group.0, upstream.0, error.number()];
        let id = RowId { kind: RowKind::AttemptError, labels };
        self.rows.with(id, |row| row.add(0, 1));
    }

    fn tokens(&mut self, labels: &ExchangeLabels, outcome: &Outcome) {
        let (prompt, completion) = (outcome.prompt_tokens, outcome.completion_tokens);
        if prompt.is_some() || completion.is_some() {
            let id = RowId::of(RowKind::Tokens, [labels.model, labels.upstream, labels.key]);
            self.rows.with(id, |row| {
                let cached = outcome.cached_tokens;
                for (at, tokens) in [prompt, completion, cached].into_iter().enumerate() {
                    row.add(at, tokens.unwrap_or(0));
                }
            });
        } else if outcome.first_token_us.is_none() {
            return;
        }
        self.rows.with(RowId::of(RowKind::Model, [labels.model]), |row| {
            if let Some(us) = outcome.first_token_us {
                row.observe(FIRST_TOKEN, TIMES, us);
            }
            if let Some(time) = between_tokens(outcome) {
                row.observe(BETWEEN_TOKENS, TIMES, micros(time));
            }
            for (at, tokens) in [(INPUT, prompt), (OUTPUT, completion)] {
                if let Some(tokens) = tokens {
                    row.observe(at, &TOKENS, tokens);
                }
            }
        });
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
