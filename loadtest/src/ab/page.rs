//! A comparison as a page: the parts that the report draws.
//!
//! The one idea: the page is told what it shows in plain lists and knows nothing of how
//! it was measured; this file is the only one between both. A client that was too slow
//! leaves the page with its verdict and no curves.

use super::compare::Quantity;
use super::tell::{between, used};
use super::{Ab, Change, Target};
use crate::report::{Difference, Page, Sample, Series, Table};
use crate::run::{Row, Verdict};

impl Ab {
    /// What the page of this comparison shows.
    pub fn to_page(&self) -> Page {
        let valid = self.verdict() != Verdict::ClientTooSlow;
        let series = if valid { self.targets.iter().map(series).collect() } else { Vec::new() };
        Page {
            title: "loadtest ab".to_owned(),
            facts: self.facts(),
            verdict: self.message(),
            good: self.verdict() == Verdict::Good && self.gone().next().is_none(),
            series,
            differences: self.changes.iter().flat_map(differences).collect(),
            table: self.table(valid),
        }
    }

    fn facts(&self) -> Vec<(String, String)> {
        let mut facts: Vec<(String, String)> = Vec::new();
        for target in &self.targets {
            facts.push((format!("target {}", target.name), target.url.clone()));
            if let Some(Ok(usage)) = &target.usage {
                facts.push((format!("processes of {}", target.name), used(usage)));
            }
        }
        let options = ["model", "stream", "arrivals", "duration_s", "requests", "warmup_s"];
        for name in options.into_iter().chain(["block_s", "connections", "threads", "seed"]) {
            match self.options.get(name) {
                None | Some(serde_json::Value::Null) => {}
                Some(serde_json::Value::String(text)) => facts.push((name.into(), text.clone())),
                Some(serde_json::Value::Object(parts)) => {
                    let told = |(name, value): (&String, &serde_json::Value)| match value.as_str() {
                        Some(text) => text.to_owned(),
                        None => format!("{name} {value}"),
                    };
                    let mut told: Vec<String> = parts.iter().map(told).collect();
                    told.sort_by_key(|text| text.contains(' '));
                    facts.push((name.into(), told.join(", ")));
                }
                Some(value) => facts.push((name.into(), value.to_string())),
            }
        }
        facts.extend(self.notes().into_iter().map(|note| ("note".to_owned(), note)));
        facts
    }

    /// Each target's requests and, when they stand, its times in milliseconds.
    fn table(&self, valid: bool) -> Table {
        let mut head: Vec<String> = ["target", "requests", "failed"].map(str::to_owned).into();
        let quantities: Vec<Quantity> = Quantity::ALL
            .into_iter()
            .filter(|quantity| {
                let any = |target: &Target| target.quantile_us(*quantity, 0.5).is_some();
                valid && self.targets.iter().any(any)
            })
            .collect();
        for quantity in &quantities {
            for share in ["p50", "p99"] {
                head.push(format!("{} {share} ms", quantity.name()));
            }
        }
        let row = |target: &Target| {
            let counts = [target.rows.len(), target.failed()].map(|count| count.to_string());
            let times = quantities.iter().flat_map(|quantity| {
                [0.5, 0.99].map(|share| {
                    let ms = |us| format!("{:.3}", us as f64 / 1e3);
                    target.quantile_us(*quantity, share).map_or_else(String::new, ms)
                })
            });
            std::iter::once(target.name.to_owned()).chain(counts).chain(times).collect()
        };
        Table { head, rows: self.targets.iter().map(row).collect() }
    }
}

fn series(target: &Target) -> Series {
    let samples = |quantity: Quantity| {
        let sample = |row: &Row| Some(Sample { at_us: row.intended_us, us: quantity.of(row)? });
        target.rows.iter().filter_map(sample).collect()
    };
    Series {
        name: target.name.to_owned(),
        latency: samples(Quantity::Latency),
        first_token: samples(Quantity::FirstToken),
    }
}

/// Median and tail; without an interval there is nothing to draw.
fn differences(change: &Change) -> Vec<Difference> {
    let parts = [("p50", change.differences.p50), ("p99", change.differences.p99)];
    let drawn = parts.into_iter().filter_map(|(share, estimate)| {
        let (low_us, high_us) = estimate.interval?;
        Some(Difference {
            what: format!("{} {share}", change.quantity.name()),
            of: between(change),
            value_us: estimate.value,
            low_us,
            high_us,
        })
    });
    drawn.collect()
}
