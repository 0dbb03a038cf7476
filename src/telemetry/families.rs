//! The families of metrics that have labels: rows (`series`) as Prometheus text.
//!
//! Names and labels are those of the table in `docs/operations.md`. What OpenTelemetry's
//! conventions for generative AI name too is written a second time under that name, without the
//! prefix, since dashboards look for it there.
//!
//! Source: OpenTelemetry, "Semantic conventions for generative AI metrics".

use super::exposition::{Text, Unit};
use super::histogram::{TIMES_US, TOKENS, WIDTH};
use super::labels::PlanLabels;
use super::meters::ErrorLabel;
use super::series::{
    ATTEMPT_DURATION, BETWEEN_TOKENS, DURATION, FIRST_TOKEN, INPUT, METHODS, OUTPUT, RATE_LIMITED,
    RowId, RowKind, RowSums,
};
use crate::http::method::Method;

/// The methods, by their numbers.
const METHOD: [Method; METHODS] = [
    Method::Get,
    Method::Head,
    Method::Post,
    Method::Put,
    Method::Delete,
    Method::Options,
    Method::Patch,
    Method::Connect,
    Method::Trace,
    Method::Other,
];

type Rows<'s> = Vec<(RowId, &'s [u64])>;

/// Writes all families with labels.
///
/// Shape: rows with a name that `labels` does not have are of what has gone, and are left out.
pub fn write(out: &mut Text<'_>, sums: &RowSums, labels: &PlanLabels) {
    let mut rows = sums.by_kind();
    for kind in &mut rows {
        kind.retain(|(id, _)| id.names().all(|name| labels.name(name).is_some()));
    }
    let of = |kind: RowKind| &rows[kind as usize];
    let out = &mut Families { out, labels };
    out.listeners(of(RowKind::Listener));
    out.exchange_errors(of(RowKind::ExchangeError));
    let (name, help) = ("route_matches_total", "Exchanges that were routed to a group.");
    out.counter(name, help, of(RowKind::RouteMatch), &["forward", "group"], 0);
    out.attempts(of(RowKind::Attempt), of(RowKind::AttemptError));
    let token_labels = ["model", "upstream", "key"];
    for (at, (name, help)) in [
        ("prompt_tokens_total", "Prompt tokens, where reported."),
        ("completion_tokens_total", "Completion tokens, where reported."),
        ("cached_tokens_total", "Prompt tokens that came from a cache, where reported."),
    ]
    .into_iter()
    .enumerate()
    {
        out.counter(name, help, of(RowKind::Tokens), &token_labels, at);
    }
    out.models(of(RowKind::Model));
    out.saved(of(RowKind::Saved));
}

struct Families<'o, 'p, 'l> {
    out: &'o mut Text<'p>,
    labels: &'l PlanLabels,
}

impl<'l> Families<'_, '_, 'l> {
    /// A name in a row's labels.
    fn name(&self, id: &RowId, at: usize) -> &'l str {
        id.names().nth(at).and_then(|name| self.labels.name(name)).unwrap_or_default()
    }

    /// The names in a row's labels, with those of the labels.
    fn named<'a, const N: usize>(&self, id: &RowId, names: &[&'a str; N]) -> [(&'a str, &'l str); N]
    where
        'l: 'a,
    {
        let mut at = 0;
        names.map(|name| {
            at += 1;
            (name, self.name(id, at - 1))
        })
    }

    /// A counter whose labels are all names.
    fn counter<const N: usize>(
        &mut self,
        family: &str,
        help: &str,
        rows: &Rows<'_>,
        names: &[&str; N],
        at: usize,
    ) {
        self.out.family(family, "counter", help);
        for (id, values) in rows {
            self.out.count(family, &self.named(id, names), values[at]);
        }
    }

    /// A histogram of times whose labels are all names; rows without a value are left out.
    fn times<const N: usize>(
        &mut self,
        family: &str,
        help: &str,
        rows: &Rows<'_>,
        names: &[&str; N],
        at: usize,
    ) {
        self.out.family(family, "histogram", help);
        for (id, values) in rows {
            let (labels, values) = (self.named(id, names), &values[at..at + WIDTH]);
            if values.iter().any(|value| *value > 0) {
                self.out.histogram(family, &labels, (&TIMES_US, Unit::Micros), values);
            }
        }
    }

    fn listeners(&mut self, rows: &Rows<'_>) {
        let name = "http_requests_total";
        self.out.family(name, "counter", "Requests that have ended, by listener and method.");
        for (id, values) in rows {
            for (method, count) in METHOD.iter().zip(*values).filter(|(_, count)| **count > 0) {
                let labels = [("forward", self.name(id, 0)), ("method", method.text())];
                self.out.count(name, &labels, *count);
            }
        }
        let (name, help) = ("http_request_duration_seconds", "Durations of exchanges.");
        self.times(name, help, rows, &["forward"], DURATION);
        let (name, help) = ("ratelimit_total", "Requests refused for a rate or a quota.");
        self.counter(name, help, rows, &["forward"], RATE_LIMITED);
    }

    fn exchange_errors(&mut self, rows: &Rows<'_>) {
        let name = "http_request_errors_total";
        let help = "Exchanges that ended by a fault, or with a status of 400 and above.";
        self.out.family(name, "counter", help);
        for (id, values) in rows {
            let [_, error, status] = id.labels;
            let (error, status) = (ErrorLabel::text(error), status.to_string());
            let labels = [("forward", self.name(id, 0)), ("error", &*error), ("status", &*status)];
            self.out.count(name, &labels, values[0]);
        }
    }

    fn attempts(&mut self, rows: &Rows<'_>, errors: &Rows<'_>) {
        let names = ["group", "upstream"];
        let help = "Attempts on an upstream that have ended.";
        self.counter("upstream_requests_total", help, rows, &names, 0);
        let help = "Durations of attempts, from the pick to the end of the answer.";
        self.times("upstream_duration_seconds", help, rows, &names, ATTEMPT_DURATION);
        let name = "upstream_errors_total";
        let help = "Attempts that failed by the upstream's doing, or were answered 5xx.";
        self.out.family(name, "counter", help);
        for (id, values) in errors {
            let error = ErrorLabel::text(id.labels[2]);
            let [group, upstream] = self.named(id, &names);
            self.out.count(name, &[("error", &*error), group, upstream], values[0]);
        }
    }

    fn saved(&mut self, rows: &Rows<'_>) {
        let name = "gpu_seconds_saved_total";
        let help =
            "Time that answers would have taken on whose clients left, by the upstream's median.";
        self.out.family(name, "counter", help);
        for (id, values) in rows {
            let labels = self.named(id, &["model", "upstream"]);
            self.out.sample(name, &labels, Unit::Micros.text(values[0]));
        }
    }

    fn models(&mut self, rows: &Rows<'_>) {
        let (ours, theirs) = (["model"], ["gen_ai_request_model"]);
        let first = "Times from the request's head to the first token of a stream.";
        let between = "Mean times from a token to the next, one for each whole stream.";
        self.times("time_to_first_token_seconds", first, rows, &ours, FIRST_TOKEN);
        self.times("inter_token_latency_seconds", between, rows, &ours, BETWEEN_TOKENS);
        let labels = self.labels;
        self.out.bare(|out| {
            let out = &mut Families { out, labels };
            let name = "gen_ai_server_time_to_first_token_seconds";
            out.times(name, first, rows, &theirs, FIRST_TOKEN);
            let name = "gen_ai_server_time_per_output_token_seconds";
            out.times(name, between, rows, &theirs, BETWEEN_TOKENS);
            let name = "gen_ai_client_token_usage";
            out.out.family(name, "histogram", "Tokens of a request, where reported.");
            for (id, values) in rows {
                for (kind, at) in [("input", INPUT), ("output", OUTPUT)] {
                    let values = &values[at..at + WIDTH];
                    let model = out.name(id, 0);
                    let labels = [("gen_ai_request_model", model), ("gen_ai_token_type", kind)];
                    if values.iter().any(|value| *value > 0) {
                        out.out.histogram(name, &labels, (&TOKENS, Unit::Plain), values);
                    }
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::labels::{LabelId, LabelKind, LabelNames};
    use crate::telemetry::series::{CoreRows, RowWriter};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    #[test]
    fn methods_stand_at_their_numbers() {
        for (at, method) in METHOD.iter().enumerate() {
            assert_eq!(*method as usize, at);
        }
    }

    #[test]
    fn a_thousand_upstreams_of_fifty_models_are_written_in_50_ms() {
        let (mut names, mut labels) = (LabelNames::default(), PlanLabels::default());
        let mut numbers = |kind, count: u32| {
            let all: Vec<String> = (0..count).map(|at| format!("{kind:?}-{at}")).collect();
            names.label(kind, all.iter().map(String::as_str), &mut labels)
        };
        let upstreams = numbers(LabelKind::Upstream, 1000);
        let models = numbers(LabelKind::Model, 50);
        let cores: [Arc<CoreRows>; 2] = Default::default();
        for core in &cores {
            let mut writer = RowWriter::new(core.clone());
            for &upstream in &upstreams {
                for &model in &models {
                    let id = RowId::of(RowKind::Tokens, [model, upstream, LabelId::NONE]);
                    writer.with(id, |row| (0..3).for_each(|at| row.add(at, 1)));
                }
            }
        }
        let begun = Instant::now();
        let mut sums = RowSums::default();
        cores.iter().for_each(|core| sums.add(core));
        let mut out = Text::new("p_");
        write(&mut out, &sums, &labels);
        let took = begun.elapsed();
        let text = out.into_string();
        assert_eq!(text.lines().filter(|line| line.ends_with(" 2")).count(), 3 * 50_000);
        // Without the optimiser it says nothing of what an operator sees.
        assert!(cfg!(debug_assertions) || took < Duration::from_millis(50), "{took:?}");
    }
}
