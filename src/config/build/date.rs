//! Dates of `key.expires`, as seconds since 1970 UTC (RFC 3339 §5.6).
//!
//! A date alone means its beginning, a time without offset is UTC; both are
//! what TOML's own dates allow. Leap seconds count as the second before.

/// Reads `2026-12-31`, `2026-12-31T23:59:59Z`, `2026-12-31 23:59+01:00`.
///
/// Errors: `None` when it is no date, or lies before 1970.
pub(crate) fn parse_date(text: &str) -> Option<u64> {
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year = digits(parts.next()?, 4)?;
    let month = digits(parts.next()?, 2)?;
    let day = digits(parts.next()?, 2)?;
    if parts.next().is_some() || !(1..=12).contains(&month) {
        return None;
    }
    if !(1..=days_of(year, month)).contains(&day) {
        return None;
    }
    let seconds = match time {
        Some(time) => seconds_of(time)?,
        None => 0,
    };
    u64::try_from(days_since_1970(year, month, day) * 86_400 + seconds).ok()
}

/// Writes what `parse_date` reads.
pub fn format_date(unix: u64) -> String {
    let days = i64::try_from(unix / 86_400).unwrap_or(i64::MAX / 2);
    let (year, month, day) = civil_of(days);
    let s = unix % 86_400;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", s / 3600, s / 60 % 60, s % 60)
}

/// Seconds into the day, in UTC; may be negative or past the day by the offset.
fn seconds_of(text: &str) -> Option<i64> {
    let (clock, offset) = match text.strip_suffix(['Z', 'z']) {
        Some(clock) => (clock, 0),
        None => match text.rfind(['+', '-']) {
            Some(at) => {
                let (hours, minutes) = text[at + 1..].split_once(':')?;
                let (hours, minutes) = (digits(hours, 2)?, digits(minutes, 2)?);
                let sign = if text[at..].starts_with('-') { -1 } else { 1 };
                if hours > 23 || minutes > 59 {
                    return None;
                }
                (&text[..at], sign * (hours * 3600 + minutes * 60))
            }
            None => (text, 0),
        },
    };
    // A fraction of a second changes nothing that matters here.
    let whole = match clock.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|b| b.is_ascii_digit()) => whole,
        Some(_) => return None,
        None => clock,
    };
    let mut parts = whole.split(':');
    let hour = digits(parts.next()?, 2)?;
    let minute = digits(parts.next()?, 2)?;
    let second = parts.next().map_or(Some(0), |s| digits(s, 2))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(hour * 3600 + minute * 60 + second.min(59) - offset)
}

fn digits(text: &str, len: usize) -> Option<i64> {
    let fits = text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
    fits.then(|| text.parse().ok()).flatten()
}

fn is_leap(year: i64) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days of the years before, by the Gregorian rule, then of the months before.
fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let before = |y: i64| y * 365 + y.div_euclid(4) - y.div_euclid(100) + y.div_euclid(400);
    let months: i64 = (1..month).map(|m| days_of(year, m)).sum();
    before(year - 1) - before(1969) + months + day - 1
}

fn civil_of(days: i64) -> (i64, i64, i64) {
    // Close from below, then at most a year to go.
    let mut year = 1970 + days / 366;
    while days_since_1970(year + 1, 1, 1) <= days {
        year += 1;
    }
    let mut month = 1;
    while month < 12 && days_since_1970(year, month + 1, 1) <= days {
        month += 1;
    }
    (year, month, days - days_since_1970(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_dates() {
        for (text, unix) in [
            ("1970-01-01", 0),
            ("2000-02-29", 951_782_400),
            ("2026-12-31T23:59:59Z", 1_798_761_599),
            ("2026-12-31 23:59:59.25+01:00", 1_798_757_999),
            ("1970-01-01T00:00", 0),
        ] {
            assert_eq!(parse_date(text), Some(unix), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_no_date() {
        for bad in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-29",
            "2026-1-1",
            "2026-01-01T25:00",
            "1969-12-31",
            "ä-",
        ] {
            assert_eq!(parse_date(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(unix in 0u64..253_402_300_799) {
            prop_assert_eq!(parse_date(&format_date(unix)), Some(unix));
        }

        #[test]
        fn no_text_panics(text in "[0-9T:Zä. +-]{0,30}") {
            let _ = parse_date(&text);
        }
    }
}
