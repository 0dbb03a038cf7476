//! One request as it went: the row behind every number of a report.
//!
//! The one idea: all times are microseconds from the start of the run on one clock,
//! so that a latency is a difference of two columns, and the reader can check every
//! quantile with a spreadsheet. Latencies count from `intended_us`.

use std::fmt::Write;

/// What happened to one request. Times are microseconds from the start of the run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// Place in the schedule, from 0.
    pub id: u64,
    /// When it was due; in the closed loop, when it was begun.
    pub intended_us: u64,
    /// When its first byte was given to a socket.
    pub sent_us: Option<u64>,
    /// When the first byte of an answer came.
    pub first_byte_us: Option<u64>,
    /// When the first piece of text of a stream came.
    pub first_token_us: Option<u64>,
    /// When it was over, well or badly.
    pub done_us: u64,
    /// Status of the answer.
    pub status: Option<u16>,
    /// A right and whole answer below 400.
    pub ok: bool,
    /// Left on purpose.
    pub aborted: bool,
    /// Tokens of the answer: its usage, or else the pieces that came.
    pub tokens: Option<u64>,
    /// Why there is no right answer.
    pub error: Option<&'static str>,
    /// Mean time between two pieces of text.
    pub inter_token_mean_us: Option<u64>,
    /// Longest time between two pieces of text.
    pub inter_token_max_us: Option<u64>,
    /// Standard deviation of the times between two pieces of text.
    pub inter_token_jitter_us: Option<u64>,
}

impl Row {
    /// The names of the columns of [`Row::push_csv`].
    pub const COLUMNS: &'static str = "id,intended_us,sent_us,first_byte_us,first_token_us,\
        done_us,status,ok,tokens,error,inter_token_mean_us,inter_token_max_us,\
        inter_token_jitter_us";

    /// From when it was due to its end.
    pub fn latency_us(&self) -> u64 {
        self.done_us.saturating_sub(self.intended_us)
    }

    /// From when it was due to the first piece of text.
    pub fn ttft_us(&self) -> Option<u64> {
        Some(self.first_token_us?.saturating_sub(self.intended_us))
    }

    /// Appends the row as a line of CSV; what is not known is empty.
    pub fn push_csv(&self, out: &mut String) {
        let us = |us: Option<u64>| us.map_or_else(String::new, |us| us.to_string());
        // Writing to a string cannot fail. Errors are words: nothing needs quotes.
        let _ = writeln!(
            out,
            "{},{},{},{},{},{},{},{},{},{},{},{},{}",
            self.id,
            self.intended_us,
            us(self.sent_us),
            us(self.first_byte_us),
            us(self.first_token_us),
            self.done_us,
            us(self.status.map(u64::from)),
            self.ok,
            us(self.tokens),
            self.error.unwrap_or_default(),
            us(self.inter_token_mean_us),
            us(self.inter_token_max_us),
            us(self.inter_token_jitter_us),
        );
    }
}

/// Rows as a table, ordered as the schedule was.
pub fn rows_to_csv(rows: &[Row]) -> String {
    let mut out = format!("{}\n", Row::COLUMNS);
    for row in rows {
        row.push_csv(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_has_as_many_cells_as_there_are_names() {
        let whole = Row {
            id: 3,
            intended_us: 10,
            sent_us: Some(12),
            first_token_us: Some(50),
            done_us: 100,
            status: Some(200),
            ok: true,
            ..Row::default()
        };
        let csv = rows_to_csv(&[whole.clone(), Row { error: Some("timeout"), ..Row::default() }]);
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[1], "3,10,12,,50,100,200,true,,,,,");
        assert!(lines.iter().all(|line| line.split(',').count() == 13), "{csv}");
        assert_eq!((whole.latency_us(), whole.ttft_us()), (90, Some(40)));
    }
}
