//! A comparison as text, JSON and CSV.
//!
//! The one idea: every difference stands with its interval and the number of pairs, and
//! what makes an interval doubtful (few rounds, few pairs for a tail) is said in words.
//! As with a run, the verdict comes first and a client that was too slow tells no times.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use super::bootstrap::Estimate;
use super::compare::Quantity;
use super::{Ab, AbOptions, Change, Target, Usage, shown};
use crate::run::{Options, Row, Verdict, options_value as load_value};

/// Version of the JSON; it grows when a key goes or changes its meaning, not when one
/// is added.
pub const SCHEMA: u64 = 1;
/// With fewer rounds the intervals are too narrow.
const ROUNDS_MIN: usize = 8;
/// With fewer pairs a 99th percentile is one of the five slowest.
const PAIRS_MIN_P99: usize = 500;

impl Ab {
    /// The verdict in words.
    pub fn message(&self) -> String {
        let verdict = self.verdict();
        let same = |target: &&Target| target.report.verdict() == verdict;
        match self.targets.iter().find(same) {
            Some(target) if verdict != Verdict::Good => {
                format!("{}: {}", target.name, target.report.message())
            }
            _ => "every answer that came whole was right".to_owned(),
        }
    }

    /// What a reader should know before the intervals are believed.
    pub fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.gone().map(str::to_owned).collect();
        for target in &self.targets {
            let failed = target.failed();
            if failed > 0 {
                notes.push(format!(
                    "{failed} of {} requests to {} got no right answer; their pairs do not count",
                    target.rows.len(),
                    target.name
                ));
            }
            if target.report.waited > 0 {
                notes.push(format!(
                    "{} requests to {} found no free connection: give it more --connections",
                    target.report.waited, target.name
                ));
            }
        }
        let rounds = self.changes.iter().map(|change| change.differences.blocks).min();
        if let Some(rounds) = rounds.filter(|rounds| *rounds < ROUNDS_MIN) {
            notes.push(format!(
                "too few rounds for intervals to trust ({rounds}): take a longer --duration or a shorter --block"
            ));
        }
        let pairs = self.changes.iter().map(|change| change.differences.pairs).min();
        if let Some(pairs) = pairs.filter(|pairs| *pairs < PAIRS_MIN_P99) {
            notes
                .push(format!("p99 of {pairs} pairs rests on the slowest {}", pairs.div_ceil(100)));
        }
        notes
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        for target in &self.targets {
            let _ = writeln!(
                out,
                "{:<7} {}  requests {}  failed {}{}",
                target.name,
                target.url,
                target.rows.len(),
                target.failed(),
                faults(target)
            );
            if let Some(Ok(usage)) = &target.usage {
                let _ = writeln!(out, "{:<7} {}", "", used(usage));
            }
        }
        if self.verdict() == Verdict::ClientTooSlow {
            return out + &self.message() + "\n";
        }
        let _ = writeln!(out, "{:<12} {:>12} {:>12} {:>12}", "ms", "target", "p50", "p99");
        for quantity in Quantity::ALL {
            for target in &self.targets {
                let (p50, p99) =
                    (target.quantile_us(quantity, 0.5), target.quantile_us(quantity, 0.99));
                if let Some((p50, p99)) = p50.zip(p99) {
                    let _ = writeln!(
                        out,
                        "{:<12} {:>12} {:>12.3} {:>12.3}",
                        quantity.name(),
                        target.name,
                        p50 as f64 / 1e3,
                        p99 as f64 / 1e3
                    );
                }
            }
        }
        let _ = writeln!(
            out,
            "{:<12} {:>12} {:>12} {:>32} {:>32}",
            "ms", "difference", "pairs", "p50 [95 % interval]", "p99 [95 % interval]"
        );
        for change in &self.changes {
            let _ = writeln!(
                out,
                "{:<12} {:>12} {:>12} {:>32} {:>32}",
                change.quantity.name(),
                between(change),
                change.differences.pairs,
                estimate_ms(change.differences.p50),
                estimate_ms(change.differences.p99)
            );
        }
        for note in self.notes() {
            let _ = writeln!(out, "note: {note}");
        }
        let _ = writeln!(out, "verdict: {:?}", self.verdict());
        out
    }

    /// For programs: one object; times in microseconds.
    pub fn to_value(&self) -> Value {
        let verdict = self.verdict();
        let valid = verdict != Verdict::ClientTooSlow;
        let mut told = json!({
            "schema": SCHEMA,
            "kind": "ab",
            "version": env!("CARGO_PKG_VERSION"),
            "verdict": verdict.name(),
            "valid": valid,
            "message": self.message(),
            "notes": self.notes(),
            "options": self.options,
            "elapsed_s": self.elapsed.as_secs_f64(),
            "rounds": self.rounds.last().map_or(0, |round| round + 1),
        });
        let targets =
            self.targets.iter().map(|target| (target.name.to_owned(), target_value(target, valid)));
        told["targets"] = targets.collect::<Map<String, Value>>().into();
        if valid {
            told["differences"] = self.changes.iter().map(change_value).collect();
        }
        told
    }

    /// A line for each request that counts, in the order of the schedule: the target, the
    /// round, and the columns of a run.
    pub fn to_csv(&self) -> String {
        let mut rows: Vec<(&str, &Row)> = self
            .targets
            .iter()
            .flat_map(|target| target.rows.iter().map(|row| (target.name, row)))
            .collect();
        rows.sort_by_key(|(_, row)| (row.id, row.intended_us));
        let mut out = format!("target,round,{}\n", Row::COLUMNS);
        for (name, row) in rows {
            let round = usize::try_from(row.id).ok().and_then(|id| self.rounds.get(id));
            let _ = write!(out, "{name},{},", round.copied().unwrap_or_default());
            row.push_csv(&mut out);
        }
        out
    }
}

/// What a comparison was told, without key, fields and queries.
pub(super) fn options_value(options: &AbOptions) -> Value {
    let mut told = load_value(&Options { url: options.a.clone(), ..options.load.clone() });
    told["url"] = Value::Null;
    told["a"] = shown(&options.a).into();
    told["b"] = shown(&options.b).into();
    told["direct"] = options.direct.as_deref().map(shown).into();
    told["warmup_s"] = options.warmup.as_secs_f64().into();
    told["block_s"] = options.block.as_secs_f64().into();
    told["resamples"] = options.resamples.into();
    told
}

fn target_value(target: &Target, valid: bool) -> Value {
    let report = &target.report;
    let mut told = json!({
        "url": target.url,
        "verdict": report.verdict().name(),
        "message": report.message(),
        "requests": target.rows.len(),
        "failed": target.failed(),
        "waited": report.waited,
        "unsent": report.unsent,
        "stale": report.stale,
        "statuses": report.to_value()["statuses"],
        "errors": report.errors,
        "wrong": report.wrong,
        "lag": {"p99_us": report.lag_us_p99(), "limit_us": report.lag_us_max()},
        "usage": target.usage.as_ref().map(|usage| match usage {
            Ok(usage) => json!({
                "cpu_us": usage.cpu_us,
                "cpu_us_per_request": usage.cpu_us_per_request(),
                "rss_max_bytes": usage.rss_max_bytes,
                "rss_peak_bytes": usage.rss_peak_bytes,
            }),
            Err(why) => json!({"error": why}),
        }),
    });
    if valid {
        let timing = |quantity: Quantity| {
            let times = json!({
                "count": target.rows.iter().filter_map(|row| quantity.of(row)).count(),
                "p50": target.quantile_us(quantity, 0.5)?,
                "p99": target.quantile_us(quantity, 0.99)?,
            });
            Some((format!("{}_us", quantity.name()), times))
        };
        told["timings"] =
            Quantity::ALL.into_iter().filter_map(timing).collect::<Map<String, Value>>().into();
    }
    told
}

fn change_value(change: &Change) -> Value {
    let estimate = |estimate: Estimate| {
        json!({
            "value_us": estimate.value,
            "low_us": estimate.interval.map(|(low, _)| low),
            "high_us": estimate.interval.map(|(_, high)| high),
        })
    };
    json!({
        "of": change.of,
        "against": change.against,
        "what": change.quantity.name(),
        "pairs": change.differences.pairs,
        "rounds": change.differences.blocks,
        "p50": estimate(change.differences.p50),
        "p99": estimate(change.differences.p99),
    })
}

/// Such as `b - a`.
pub(super) fn between(change: &Change) -> String {
    format!("{} - {}", change.of, change.against)
}

/// Such as `+3.021 [+2.990, +3.101]`.
fn estimate_ms(estimate: Estimate) -> String {
    let ms = |us: f64| us / 1e3;
    match estimate.interval {
        Some((low, high)) => {
            format!("{:+.3} [{:+.3}, {:+.3}]", ms(estimate.value), ms(low), ms(high))
        }
        None => format!("{:+.3} [unknown]", ms(estimate.value)),
    }
}

/// What went wrong, by kind.
fn faults(target: &Target) -> String {
    let report = &target.report;
    let errors = report.errors.iter().map(|(kind, count)| format!("  {kind} {count}"));
    let wrong = report.wrong.iter().map(|(kind, count)| format!("  WRONG {kind} {count}"));
    let statuses = report.statuses.iter().filter(|(status, _)| **status >= 400);
    let statuses = statuses.map(|(status, count)| format!("  status {status} {count}"));
    errors.chain(wrong).chain(statuses).collect()
}

/// Such as `cpu 123.4 us/request  memory 20.1 MiB (peak 22.0 MiB)`.
pub(super) fn used(usage: &Usage) -> String {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    format!(
        "cpu {:.1} us/request  memory {:.1} MiB (peak {:.1} MiB)",
        usage.cpu_us_per_request().unwrap_or_default(),
        mib(usage.rss_max_bytes),
        mib(usage.rss_peak_bytes)
    )
}
