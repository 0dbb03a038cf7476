//! The dates of HTTP, as seconds since 1970 (RFC 9110 §5.6.7).
//!
//! All three forms are read: the one that is sent today (`Sun, 06 Nov 1994 08:49:37 GMT`), that of
//! RFC 850 with a year of two digits, and that of `asctime`. The name of the day is not held against
//! the date. Leap seconds count as the second before.

/// Reads a date of any form.
///
/// Errors: `None` when it is none, or lies before 1970.
#[must_use]
pub fn parse(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let mut parts = text.split([' ', '-']).filter(|part| !part.is_empty());
    let day_name = parts.next()?;
    let (day, month, year, clock) = if day_name.ends_with(',') {
        let (day, month, year) = (parts.next()?, parts.next()?, parts.next()?);
        (day, month, year, parts.next()?)
    } else {
        let (month, day, clock) = (parts.next()?, parts.next()?, parts.next()?);
        (day, month, parts.next()?, clock)
    };
    let zone = parts.next();
    if parts.next().is_some() || zone.is_some_and(|zone| zone != "GMT" && zone != "UTC") {
        return None;
    }
    let month = MONTHS.iter().position(|name| name.eq_ignore_ascii_case(month))? as u64;
    let (day, year) = (number(day, 2)?, year_of(year)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days_of_month = match month {
        1 if is_leap => 29,
        1 => 28,
        3 | 5 | 8 | 10 => 30,
        _ => 31,
    };
    if day == 0 || day > days_of_month {
        return None;
    }
    let mut clock = clock.split(':');
    let (hour, minute, second) = (clock.next()?, clock.next()?, clock.next()?);
    let (hour, minute, second) = (number(hour, 2)?, number(minute, 2)?, number(second, 2)?);
    if clock.next().is_some() || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let days = days_since_1970(year, month, day)?;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second.min(59))
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn number(text: &str, digits_max: usize) -> Option<u64> {
    let good = !text.is_empty() && text.len() <= digits_max;
    (good && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?
}

/// A year of two digits is of this century, or of the last one from 70 on.
fn year_of(text: &str) -> Option<u64> {
    let year = number(text, 4)?;
    match text.len() {
        2 if year < 70 => Some(2000 + year),
        2 => Some(1900 + year),
        4 => Some(year),
        _ => None,
    }
}

/// Days from 1970-01-01; `month` counts from 0, `day` from 1.
fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    // Years that begin in March have their leap day at the end.
    let (year, month) =
        if month < 2 { (year.checked_sub(1)?, month + 10) } else { (year, month - 2) };
    let of_year = (153 * month + 2) / 5 + day - 1;
    (365 * year + year / 4 - year / 100 + year / 400 + of_year).checked_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_three_forms_of_the_rfc() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(parse(text.as_bytes()), Some(784_111_777), "{text}");
        }
        assert_eq!(parse(b"Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(parse(b"Thu, 29 Feb 2024 23:59:60 GMT"), Some(1_709_251_199));
        assert_eq!(parse(b"Fri, 01-Jan-27 00:00:00 GMT"), Some(1_798_761_600));
    }

    #[test]
    fn refuses_what_is_no_date() {
        for text in [
            "",
            "soon",
            "Sun, 06 Nov 1994",
            "Sun, 31 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:37 PST",
            "Sun, 29 Feb 2023 08:49:37 GMT",
            "Wed, 31 Dec 1969 23:59:59 GMT",
            "Sun, 06 Nov 1994 08:49:37 GMT x",
            "Sun, 0 Nov 1994 08:49:37 GMT",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(data in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = parse(&data);
        }

        #[test]
        fn a_day_later_is_a_day_later(year in 1970u64..2400, month in 0usize..12, day in 1u64..28) {
            let at = |day| parse(format!("Mon, {day:02} {} {year} 01:02:03 GMT", MONTHS[month]).as_bytes());
            prop_assert_eq!(at(day).unwrap() + 86_400, at(day + 1).unwrap());
        }
    }
}
