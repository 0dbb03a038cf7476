//! The text format of Prometheus, version 0.0.4: one method for each kind of line.
//!
//! Source: prometheus.io, "Exposition formats", text-based format.

use std::fmt::Write as _;

use super::histogram::{Bounds, SUM};
use crate::base::units::{DECIMAL_BYTES_MAX, decimal};

/// Text in the making.
pub struct Text<'p> {
    out: String,
    prefix: &'p str,
}

/// What the values of a histogram are.
#[derive(Clone, Copy, Debug)]
pub enum Unit {
    /// Times: microseconds inside, seconds outside.
    Micros,
    /// Counts.
    Plain,
}

impl<'p> Text<'p> {
    /// An empty text; `prefix` goes before the names of all families but those in `bare`.
    #[must_use]
    pub fn new(prefix: &'p str) -> Self {
        Self { out: String::new(), prefix }
    }

    /// The text.
    #[must_use]
    pub fn into_string(self) -> String {
        self.out
    }

    /// Runs `write` with names as they are, without the prefix.
    pub fn bare(&mut self, write: impl FnOnce(&mut Self)) {
        let prefix = std::mem::take(&mut self.prefix);
        write(self);
        self.prefix = prefix;
    }

    /// Begins a family.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        let prefix = self.prefix;
        // Writing to a string cannot fail.
        let _ = writeln!(self.out, "# HELP {prefix}{name} {help}\n# TYPE {prefix}{name} {kind}");
    }

    /// One sample of the family that was begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        self.named(name, labels, None);
        let _ = writeln!(self.out, " {value}");
    }

    /// As `sample`, of a whole number: there may be very many of these.
    pub fn count(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.named(name, labels, None);
        self.out.push(' ');
        self.whole(value);
        self.out.push('\n');
    }

    /// A whole number.
    fn whole(&mut self, value: u64) {
        let mut digits = [0; DECIMAL_BYTES_MAX];
        self.out.extend(decimal(value, &mut digits).iter().map(|digit| char::from(*digit)));
    }

    fn named(&mut self, name: &str, labels: &[(&str, &str)], le: Option<&str>) {
        self.out.push_str(self.prefix);
        self.out.push_str(name);
        let all = labels.iter().copied().chain(le.map(|bound| ("le", bound)));
        let mut before = '{';
        for (label, text) in all {
            self.out.push(before);
            self.out.push_str(label);
            self.out.push_str("=\"");
            self.escaped(text);
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
    }

    /// A label's value: backslash, quote and line feed are escaped.
    fn escaped(&mut self, text: &str) {
        if !text.bytes().any(|byte| matches!(byte, b'\\' | b'"' | b'\n')) {
            self.out.push_str(text);
            return;
        }
        for c in text.chars() {
            match c {
                '\\' => self.out.push_str("\\\\"),
                '"' => self.out.push_str("\\\""),
                '\n' => self.out.push_str("\\n"),
                c => self.out.push(c),
            }
        }
    }

    /// A histogram with these bounds; `values` are its buckets and its sum.
    ///
    /// Shape: buckets are not cumulative inside, and are outside.
    pub fn histogram(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        (bounds, unit): (&Bounds, Unit),
        values: &[u64],
    ) {
        let (bucket, mut below) = (format!("{name}_bucket"), 0);
        for (bound, count) in bounds.all.iter().zip(values) {
            below += count;
            self.named(&bucket, labels, Some(&unit.text(*bound)));
            let _ = writeln!(self.out, " {below}");
        }
        let count: u64 = values.iter().take(SUM).sum();
        self.named(&bucket, labels, Some("+Inf"));
        let _ = writeln!(self.out, " {count}");
        let sum = unit.text(values.get(SUM).copied().unwrap_or(0));
        self.sample(&format!("{name}_sum"), labels, sum);
        self.count(&format!("{name}_count"), labels, count);
    }
}

impl Unit {
    /// A value of it, as a number of the base unit.
    #[must_use]
    pub fn text(self, value: u64) -> String {
        let text = match self {
            Unit::Micros => format!("{}.{:06}", value / 1_000_000, value % 1_000_000),
            Unit::Plain => return value.to_string(),
        };
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::histogram::{BOUNDS, TIMES_US, WIDTH};
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_times_are_seconds() {
        let mut values = [0; WIDTH];
        (values[0], values[1], values[BOUNDS], values[SUM]) = (1, 2, 1, 700_000_010);
        let mut text = Text::new("p_");
        text.histogram("t_seconds", &[("a", "b")], (&TIMES_US, Unit::Micros), &values);
        let text = text.into_string();
        for line in [
            "p_t_seconds_bucket{a=\"b\",le=\"0.001\"} 1",
            "p_t_seconds_bucket{a=\"b\",le=\"0.005\"} 3",
            "p_t_seconds_bucket{a=\"b\",le=\"600\"} 3",
            "p_t_seconds_bucket{a=\"b\",le=\"+Inf\"} 4",
            "p_t_seconds_sum{a=\"b\"} 700.00001",
            "p_t_seconds_count{a=\"b\"} 4",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert_eq!(text.lines().count(), BOUNDS + 3);
    }

    #[test]
    fn whole_numbers_are_written_like_any() {
        let mut text = Text::new("");
        for value in [0, 7, 10, u64::MAX] {
            text.bare(|text| text.count("n", &[("l", "a\"\\\nb")], value));
        }
        let line = |value: u64| format!("n{{l=\"a\\\"\\\\\\nb\"}} {value}\n");
        assert_eq!(text.into_string(), [0, 7, 10, u64::MAX].map(line).concat());
    }
}
