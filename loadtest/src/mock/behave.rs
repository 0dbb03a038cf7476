//! The `x-mock` keys: what a request may ask the server to do to it.
//!
//! `x-mock: status=503,retry_after=3`, or `?mock=status=503,retry_after=3`; the
//! header may come more than once, and a server's mood says the same to every request.
//! An unknown key is an error that names it, since a misspelt fault would make a test
//! pass for nothing.

use std::time::Duration;

/// Where an answer is broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Break {
    /// Nothing more comes, the connection stays.
    Stall,
    /// Half of the next piece, then the end of the connection.
    Cut,
    /// A reset.
    Reset,
}

/// Everything a request asked for; the default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Behaviour {
    pub(super) status: Option<u16>,
    pub(super) delay: Option<Duration>,
    /// Where to break off: after so many events of a stream, or bytes of a plain body.
    pub(super) break_off: Option<(u64, Break)>,
    pub(super) reset: bool,
    pub(super) drop: bool,
    pub(super) garbage: bool,
    pub(super) bad_chunk: bool,
    pub(super) both_lengths: bool,
    pub(super) early: Option<u16>,
    pub(super) no_length: bool,
    pub(super) http10: bool,
    pub(super) chunked: bool,
    pub(super) one_byte: bool,
    pub(super) big: Option<u64>,
    pub(super) size: Option<u64>,
    pub(super) tokens: Option<u32>,
    pub(super) seed: Option<u64>,
    pub(super) interval: Option<Duration>,
    pub(super) first_token: Option<Duration>,
    pub(super) trailers: bool,
    pub(super) interim: Option<u16>,
    pub(super) retry_after: Option<u64>,
    pub(super) close: bool,
    pub(super) silent_close: bool,
    pub(super) head_bytes: Option<usize>,
    /// How long after the answer the unexpected bytes come.
    pub(super) extra_bytes: Option<Duration>,
    pub(super) duplex: bool,
}

impl Behaviour {
    /// Adds the keys of one `x-mock` value.
    ///
    /// Errors: the key or value that is not understood, in words.
    pub(super) fn add(&mut self, list: &str) -> Result<(), String> {
        for item in list.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            let known = self.set(key.trim(), value.trim());
            if !known.map_err(|()| format!("x-mock: bad value in {item:?}"))? {
                return Err(format!("x-mock: unknown key in {item:?}"));
            }
        }
        Ok(())
    }

    /// Sets one key; `Ok(false)` for an unknown key, `Err` for a bad value.
    fn set(&mut self, key: &str, value: &str) -> Result<bool, ()> {
        match key {
            "status" => self.status = Some(status(value)?),
            "delay" => self.delay = Some(duration(value).ok_or(())?),
            "stall" => self.break_off = Some((0, Break::Stall)),
            "stall_after" => self.break_off = Some((number(value)?, Break::Stall)),
            "cut_after" => self.break_off = Some((number(value)?, Break::Cut)),
            "reset_after" => self.break_off = Some((number(value)?, Break::Reset)),
            "reset" => self.reset = true,
            "drop" => self.drop = true,
            "garbage" => self.garbage = true,
            "bad_chunk" => self.bad_chunk = true,
            "both_lengths" => self.both_lengths = true,
            "early" => self.early = Some(if value.is_empty() { 413 } else { status(value)? }),
            "no_length" => self.no_length = true,
            "http10" => self.http10 = true,
            "chunked" => self.chunked = true,
            "one_byte" => self.one_byte = true,
            "big" => self.big = Some(number(value)?),
            "size" => self.size = Some(number(value)?),
            "tokens" => self.tokens = Some(u32::try_from(number(value)?).map_err(|_| ())?),
            "seed" => self.seed = Some(number(value)?),
            "interval" => self.interval = Some(duration(value).ok_or(())?),
            "first_token" => self.first_token = Some(duration(value).ok_or(())?),
            "trailers" => self.trailers = true,
            "interim" => self.interim = Some(if value.is_empty() { 103 } else { status(value)? }),
            "retry_after" => self.retry_after = Some(number(value)?),
            "close" => self.close = true,
            "silent_close" => self.silent_close = true,
            "head_bytes" => {
                self.head_bytes = Some(usize::try_from(number(value)?).map_err(|_| ())?);
            }
            "extra_bytes" if value.is_empty() => {
                self.extra_bytes = Some(Duration::from_millis(5));
            }
            "extra_bytes" => self.extra_bytes = Some(duration(value).ok_or(())?),
            "duplex" => self.duplex = true,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn number(value: &str) -> Result<u64, ()> {
    value.replace('_', "").parse().map_err(|_| ())
}

fn status(value: &str) -> Result<u16, ()> {
    value.parse().ok().filter(|code| (100..=999).contains(code)).ok_or(())
}

/// Reads `200ms`, `1.5s`, `50us` or, without a unit, milliseconds.
fn duration(value: &str) -> Option<Duration> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("", 1e-3)];
    let (count, unit) = units
        .iter()
        .find_map(|(suffix, unit)| value.strip_suffix(suffix).map(|count| (count.trim(), *unit)))?;
    let seconds = count.parse::<f64>().ok()? * unit;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_keys_and_units() {
        let mut how = Behaviour::default();
        how.add("status=503, retry_after=3 ,delay=1.5s,cut_after=2,big=1_000").unwrap();
        assert_eq!(how.status, Some(503));
        assert_eq!(how.retry_after, Some(3));
        assert_eq!(how.delay, Some(Duration::from_millis(1500)));
        assert_eq!(how.break_off, Some((2, Break::Cut)));
        assert_eq!(how.big, Some(1000));
        for (text, want) in [("7", 7_000), ("7ms", 7_000), ("7us", 7), ("7s", 7_000_000)] {
            assert_eq!(duration(text), Some(Duration::from_micros(want)), "{text}");
        }
    }

    #[test]
    fn names_what_it_does_not_know() {
        for (list, word) in [("stahl", "stahl"), ("status=9x", "9x"), ("delay=-1s", "delay")] {
            let error = Behaviour::default().add(list).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
