//! What a client is told about its windows: four fields on every answer to a limited key.
//!
//! They are written straight into the outgoing head. A window without a limit has no field.

use crate::http1::encode::field_number;

/// Names of the fields, lower case.
const FIELDS: [&[u8]; 4] = [
    b"x-ratelimit-limit-minute",
    b"x-ratelimit-remaining-minute",
    b"x-ratelimit-limit-day",
    b"x-ratelimit-remaining-day",
];

/// One window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Requests it may have.
    pub limit: u32,
    /// Requests left of it; `left <= limit`.
    pub left: u32,
}

/// Where a key stands in its windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// In this minute, if it has a limit.
    pub minute: Option<Share>,
    /// In this UTC day, if it has a limit.
    pub day: Option<Share>,
}

impl Standing {
    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.minute.is_none() && self.day.is_none()
    }

    /// Writes the field lines.
    pub fn write(&self, out: &mut Vec<u8>) {
        let [limit_minute, left_minute, limit_day, left_day] = FIELDS;
        if let Some(Share { limit, left }) = self.minute {
            field_number(out, limit_minute, u64::from(limit));
            field_number(out, left_minute, u64::from(left));
        }
        if let Some(Share { limit, left }) = self.day {
            field_number(out, limit_day, u64::from(limit));
            field_number(out, left_day, u64::from(left));
        }
    }

    /// Whether a field of an upstream has one of the names that are ours to write.
    #[must_use]
    pub fn owns(&self, name: &[u8]) -> bool {
        !self.is_empty() && FIELDS.iter().any(|own| own.eq_ignore_ascii_case(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Standing = Standing {
        minute: Some(Share { limit: u32::MAX, left: u32::MAX }),
        day: Some(Share { limit: 7, left: 0 }),
    };

    fn written(standing: Standing) -> String {
        let mut out = Vec::new();
        standing.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn writes_a_pair_of_fields_for_each_limited_window() {
        assert_eq!(
            written(BOTH),
            "x-ratelimit-limit-minute: 4294967295\r\nx-ratelimit-remaining-minute: 4294967295\r\n\
             x-ratelimit-limit-day: 7\r\nx-ratelimit-remaining-day: 0\r\n"
        );
        assert_eq!(written(Standing::default()), "");
    }

    #[test]
    fn stays_within_its_bytes() {
        const BYTES_MAX: usize = 4 * (28 + 2 + 10 + 2);
        let day = BOTH.minute;
        assert!(written(Standing { day, ..BOTH }).len() <= BYTES_MAX);
    }

    #[test]
    fn owns_its_names_only_where_it_writes_them() {
        assert!(BOTH.owns(b"X-RateLimit-Remaining-Day"));
        assert!(!BOTH.owns(b"X-RateLimit-Remaining-Requests"));
        assert!(!Standing::default().owns(b"x-ratelimit-limit-day"));
    }
}
