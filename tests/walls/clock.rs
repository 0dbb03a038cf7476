//! No bare number of milli-, micro- or nanoseconds goes from function to function.
//!
//! A point of time is a `Moment` or a `WallTime`, a length of time a `Duration` (`base::clock`):
//! what is a number has lost its unit and its origin, and nobody sees when two are mixed up. Looked
//! at are the names of functions and of their parameters, and whether their types are numbers.
//! Fields of records that are numbers to be printed may stay.

use super::Source;
use super::functions::signature_end;

/// Where a number is what the function is about, and why.
const EXCEPTED: &[(&str, &str)] = &[
    ("src/base/clock.rs", "makes them and takes them apart"),
    ("src/telemetry/access.rs", "writes the numbers of a record"),
];

/// What ends a name that means a number of a unit, alone or behind `_`.
const UNITS: &[&str] = &["ms", "us", "ns", "millis", "micros", "nanos"];
/// Types of numbers.
const NUMBERS: &[&str] = &["u32", "u64", "u128", "i32", "i64", "i128", "usize", "f32", "f64"];

pub(super) fn bare_times(source: &Source, faults: &mut Vec<String>) {
    let path = &source.path;
    if EXCEPTED.iter().any(|(excepted, _)| excepted == path) {
        return;
    }
    for at in source.places_of("fn") {
        let Some(rest) = source.code[at..].strip_prefix("fn ") else { continue };
        let signature = &rest[..signature_end(rest)];
        let name = signature.split(|c: char| !is_part(c)).next().unwrap_or_default();
        let line = source.line_of(at);
        let (before, returned) = signature.rsplit_once("->").unwrap_or((signature, ""));
        if has_unit(name) && has_number(returned) {
            faults.push(format!("{path}:{line}: `{name}` returns a number: {INSTEAD}"));
        }
        for (colon, _) in before.match_indices(": ") {
            let parameter = before[..colon].rsplit(|c: char| !is_part(c)).next();
            let kind = before[colon + 2..].split([',', ')']).next().unwrap_or_default();
            if let Some(parameter) = parameter.filter(|p| has_unit(p) && has_number(kind)) {
                faults.push(format!("{path}:{line}: `{parameter}` of `{name}`: {INSTEAD}"));
            }
        }
    }
}

const INSTEAD: &str = "a Moment, a WallTime or a Duration says what it counts";

fn has_unit(name: &str) -> bool {
    UNITS
        .iter()
        .any(|unit| name.strip_suffix(unit).is_some_and(|s| s.is_empty() || s.ends_with('_')))
}

fn has_number(kind: &str) -> bool {
    kind.split(|c: char| !is_part(c)).any(|word| NUMBERS.contains(&word))
}

fn is_part(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

mod rules {
    use super::*;

    #[test]
    fn finds_bare_times() {
        let count = |path: &str, text: &str| {
            let mut faults = Vec::new();
            bare_times(&Source::new(path, text), &mut faults);
            faults.len()
        };
        let of = |text: &str| count("src/net/x.rs", text);
        assert_eq!(of("fn f(&self, now_ms: u64) {}"), 1);
        assert_eq!(
            of("fn f<T>(a: [u8; 2],\n us: Option<u64>, wait_ns: &u64) -> T where T: X {}"),
            2
        );
        assert_eq!(of("trait T { fn now_ms(&self) -> u64; }"), 1);
        assert_eq!(of("fn next_us(&self) -> Option<u32> { x }"), 1);
        assert_eq!(of("fn f(now: Moment, status: u16, bus: u64, rest_us: Duration) -> u64 {}"), 0);
        assert_eq!(of("struct S { queue_us: u64 } // fn f(now_ms: u64)"), 0);
        assert_eq!(of("#[cfg(test)]\nmod tests { fn f(now_ms: u64) {} }"), 0);
        assert_eq!(count("src/base/clock.rs", "fn f(now_ms: u64) {}"), 0);
    }

    #[test]
    fn what_is_excepted_is_there() {
        for (path, why) in EXCEPTED {
            assert!(super::super::text_of(path).is_some(), "{path}, which {why}, is gone");
        }
    }
}
