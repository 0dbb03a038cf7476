//! Times and sizes as people write them: `250ms`, `1h30m`, `64KiB`.
//!
//! The one idea: what `format_*` writes, `parse_*` reads back to the same value.
//! Times are whole numbers with a unit, several in a row allowed; there are no
//! fractions, so nothing is rounded. Sizes follow IEC 80000-13: `KiB` is 1024,
//! `KB` is 1000; a bare `K`, `M`, `G` is 1024 of the smaller, as in nginx.
//!
//! And bare whole numbers, as heads and metrics have them: `decimal`; bytes as digits: `hex`.

use std::fmt::Write as _;
use std::time::Duration;

/// Units of time, the largest first, in nanoseconds.
const TIMES: [(&str, u64); 8] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Units of size in bytes. The first of equal ones is the one written.
const SIZES: [(&str, u64); 13] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("T", 1 << 40),
    ("G", 1 << 30),
    ("M", 1 << 20),
    ("K", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
];

/// What is wrong with a written time or size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitFault {
    /// Nothing is written.
    Empty,
    /// A number is expected where something else stands.
    Number,
    /// A number without a unit; only `0` may do without.
    UnitMissing,
    /// The unit is none of ours.
    UnitUnknown,
    /// More than 64 bits hold.
    TooLarge,
}

impl std::fmt::Display for UnitFault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty",
            Self::Number => "not a number with a unit",
            Self::UnitMissing => "a number without a unit",
            Self::UnitUnknown => "unknown unit",
            Self::TooLarge => "too large",
        })
    }
}

/// Reads a time such as `250ms`, `30s`, `1h30m`.
///
/// Units: d, h, m or min, s, ms, us, ns; case counts. `0` alone needs no unit.
pub fn parse_duration(text: &str) -> Result<Duration, UnitFault> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total_ns: u64 = 0;
    let mut rest = text;
    if rest.is_empty() {
        return Err(UnitFault::Empty);
    }
    while !rest.is_empty() {
        let (count, after) = split_number(rest)?;
        let unit_len = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_len);
        let ns = factor(&TIMES, unit.trim(), |a, b| a == b)?;
        let part = count.checked_mul(ns).ok_or(UnitFault::TooLarge)?;
        total_ns = total_ns.checked_add(part).ok_or(UnitFault::TooLarge)?;
        rest = next;
    }
    Ok(Duration::from_nanos(total_ns))
}

/// Writes a time with the one unit that holds it exactly: `90s`, `2h`, `250ms`.
///
/// Minutes and days are never written: `600s` compares with a limit at a glance.
/// Times past 584 years are written as the longest that can be read.
pub fn format_duration(time: Duration) -> String {
    let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if ns == 0 {
        return "0s".to_owned();
    }
    let written = TIMES.iter().filter(|(unit, _)| !matches!(*unit, "d" | "min" | "m"));
    let (unit, size) =
        written.copied().find(|(_, size)| ns.is_multiple_of(*size)).unwrap_or(("ns", 1));
    format!("{}{unit}", ns / size)
}

/// Reads a size such as `64KiB`; a number without a unit counts bytes.
pub fn parse_size(text: &str) -> Result<u64, UnitFault> {
    let text = text.trim();
    if text.is_empty() {
        return Err(UnitFault::Empty);
    }
    let (count, unit) = split_number(text)?;
    let unit = unit.trim();
    if unit.is_empty() {
        return Ok(count);
    }
    let size = factor(&SIZES, unit, |a, b| a.eq_ignore_ascii_case(b))?;
    count.checked_mul(size).ok_or(UnitFault::TooLarge)
}

/// A number for people: `3,580`.
#[must_use]
pub fn format_count(count: usize) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a count and what is counted, as people say it: `1 error`, `2 errors`.
#[must_use]
pub fn counted(count: usize, one: &str) -> String {
    let many = if count == 1 { "" } else { "s" };
    format!("{} {one}{many}", format_count(count))
}

/// Writes a size with the largest binary unit that holds it exactly.
pub fn format_size(bytes: u64) -> String {
    let written = SIZES.iter().take(5);
    let fits = |&&(_, size): &&(&str, u64)| bytes >= size && bytes.is_multiple_of(size);
    match written.copied().collect::<Vec<_>>().iter().find(fits) {
        Some((unit, size)) => format!("{}{unit}", bytes / size),
        None => "0B".to_owned(),
    }
}

/// The number that `text` begins with, and what follows it.
fn split_number(text: &str) -> Result<(u64, &str), UnitFault> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    if digits.is_empty() {
        return Err(UnitFault::Number);
    }
    Ok((digits.parse().map_err(|_| UnitFault::TooLarge)?, rest))
}

fn factor(
    units: &[(&str, u64)],
    unit: &str,
    same: fn(&str, &str) -> bool,
) -> Result<u64, UnitFault> {
    if unit.is_empty() {
        return Err(UnitFault::UnitMissing);
    }
    let found = units.iter().find(|(name, _)| same(name, unit));
    found.map(|&(_, size)| size).ok_or(UnitFault::UnitUnknown)
}

/// Fuzz entry: what is read can be written and read again to the same value.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(time) = parse_duration(&text) {
        assert_eq!(parse_duration(&format_duration(time)), Ok(time));
    }
    if let Ok(bytes) = parse_size(&text) {
        assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
    }
}

/// Most digits of a whole number.
pub const DECIMAL_BYTES_MAX: usize = 20;

/// Writes a whole number in decimal at the end of `digits`, and returns what was written.
#[inline]
pub fn decimal(mut value: u64, digits: &mut [u8; DECIMAL_BYTES_MAX]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            return &digits[at..];
        }
    }
}

/// Bytes in hexadecimal, two lower-case digits each.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_by_thousands() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (3580, "3,580")] {
            assert_eq!(format_count(count), text);
        }
        assert_eq!(format_count(1_234_567), "1,234,567");
    }
    use proptest::prelude::*;

    #[test]
    fn reads_times() {
        for (text, ms) in
            [("250ms", 250), ("30s", 30_000), ("1h30m", 5_400_000), ("2min", 120_000), ("0", 0)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        assert_eq!(parse_duration(" 1d "), Ok(Duration::from_secs(86_400)));
    }

    #[test]
    fn refuses_what_is_no_time() {
        for (text, fault) in [
            ("", UnitFault::Empty),
            ("10", UnitFault::UnitMissing),
            ("10x", UnitFault::UnitUnknown),
            ("s", UnitFault::Number),
            ("-1s", UnitFault::Number),
            ("1.5s", UnitFault::UnitUnknown),
            ("99999999999999999999s", UnitFault::TooLarge),
            ("99999999999d", UnitFault::TooLarge),
        ] {
            assert_eq!(parse_duration(text), Err(fault), "{text}");
        }
    }

    #[test]
    fn reads_sizes() {
        for (text, bytes) in [
            ("64KiB", 65_536),
            ("64 kib", 65_536),
            ("1k", 1024),
            ("2MB", 2_000_000),
            ("17", 17),
            ("5B", 5),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        assert_eq!(parse_size("12parsec"), Err(UnitFault::UnitUnknown));
        assert_eq!(parse_size("99999999TiB"), Err(UnitFault::TooLarge));
    }

    #[test]
    fn writes_the_unit_that_fits() {
        assert_eq!(format_duration(Duration::from_secs(600)), "600s");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(format_size(65_536), "64KiB");
        assert_eq!(format_size(65_537), "65537B");
        assert_eq!(format_size(0), "0B");
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ns in any::<u64>(), bytes in any::<u64>()) {
            let time = Duration::from_nanos(ns);
            prop_assert_eq!(parse_duration(&format_duration(time)), Ok(time));
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            fuzz(text.as_bytes());
        }
    }
}
