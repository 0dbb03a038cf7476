//! Reading what another version has written.
//!
//! A field that is not there is its default, one that nobody knows is never looked at, and one that
//! is something else than it should be is left out and noted: whatever comes, the rest of it counts.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::{Map, Value};

/// Longest time that is believed: a year.
const TIME_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Largest sum that is believed: many of them added up must still be a number.
const SUM_MAX: u64 = 1 << 58;
/// Complaints that are kept.
const COMPLAINTS_MAX: usize = 8;

/// What was left out, and why.
#[derive(Debug, Default)]
pub struct Amiss {
    count: RefCell<usize>,
    first: RefCell<Vec<String>>,
}

impl Amiss {
    /// Notes one thing that was left out.
    pub fn note(&self, why: impl FnOnce() -> String) {
        *self.count.borrow_mut() += 1;
        let mut first = self.first.borrow_mut();
        if first.len() < COMPLAINTS_MAX {
            first.push(why());
        }
    }

    /// What to tell the operator; empty when nothing was left out.
    #[must_use]
    pub fn told(&self) -> String {
        let (count, first) = (*self.count.borrow(), self.first.borrow());
        match count.saturating_sub(first.len()) {
            _ if count == 0 => String::new(),
            0 => format!("left out: {}", first.join("; ")),
            more => format!("left out: {}; and {more} more", first.join("; ")),
        }
    }
}

/// The fields of one object.
#[derive(Clone, Copy)]
pub struct Fields<'v> {
    map: &'v Map<String, Value>,
    amiss: &'v Amiss,
}

impl<'v> Fields<'v> {
    /// The fields of a value; `None` when it is no object, which is noted.
    #[must_use]
    pub fn of(value: &'v Value, what: &str, amiss: &'v Amiss) -> Option<Self> {
        let map = value.as_object();
        if map.is_none() {
            amiss.note(|| format!("{what} is no object"));
        }
        map.map(|map| Self { map, amiss })
    }

    /// A number; 0 when there is none.
    #[must_use]
    pub fn number(self, name: &str) -> u64 {
        self.get(name, Value::as_u64).unwrap_or(0)
    }

    /// What has been counted of something; 0 when there is nothing.
    #[must_use]
    pub fn sum(self, name: &str) -> u64 {
        self.number(name).min(SUM_MAX)
    }

    /// As many sums as wanted; `None` when there are none, or not so many.
    #[must_use]
    pub fn sums<const N: usize>(self, name: &str) -> Option<[u64; N]> {
        self.numbers(name).map(|sums| sums.map(|sum: u64| sum.min(SUM_MAX)))
    }

    /// A small number; 0 when there is none.
    #[must_use]
    pub fn count(self, name: &str) -> u32 {
        u32::try_from(self.number(name)).unwrap_or(u32::MAX)
    }

    /// A number with a fraction, always finite.
    #[must_use]
    pub fn fraction(self, name: &str) -> Option<f64> {
        self.get(name, Value::as_f64).filter(|value| value.is_finite())
    }

    /// A text; empty when there is none.
    #[must_use]
    pub fn text(self, name: &str) -> &'v str {
        self.get(name, Value::as_str).unwrap_or_default()
    }

    /// Whether it is so; false when nothing is said.
    #[must_use]
    pub fn is(self, name: &str) -> bool {
        self.get(name, Value::as_bool).unwrap_or(false)
    }

    /// A length of time; `None` when there is none.
    #[must_use]
    pub fn time(self, name: &str) -> Option<Duration> {
        let nanos = self.get(name, Value::as_u64)?;
        Some(Duration::from_nanos(nanos).min(TIME_MAX))
    }

    /// A list, its first `most` elements; empty when there is none.
    pub fn list(self, name: &str, most: usize) -> impl Iterator<Item = &'v Value> + use<'v> {
        let list = self.get(name, Value::as_array).map_or(&[][..], Vec::as_slice);
        if list.len() > most {
            self.amiss.note(|| format!("{name}: all but the first {most} of {}", list.len()));
        }
        list.iter().take(most)
    }

    /// The objects of a list.
    pub fn objects(self, name: &str, most: usize) -> impl Iterator<Item = Fields<'v>> {
        let what = name.to_owned();
        self.list(name, most)
            .filter_map(move |value| Fields::of(value, &format!("an entry of {what}"), self.amiss))
    }

    /// Numbers, as many as wanted; `None` when there are none, or not so many.
    #[must_use]
    pub fn numbers<const N: usize>(self, name: &str) -> Option<[u64; N]> {
        let list = self.get(name, Value::as_array)?;
        let numbers: Option<Vec<u64>> = list.iter().map(Value::as_u64).collect();
        let numbers = numbers.and_then(|numbers| numbers.try_into().ok());
        if numbers.is_none() {
            self.amiss.note(|| format!("{name}: not {N} numbers"));
        }
        numbers
    }

    /// The fields of an object in it.
    #[must_use]
    pub fn inner(self, name: &str) -> Option<Fields<'v>> {
        let map = self.get(name, Value::as_object)?;
        Some(Self { map, ..self })
    }

    /// Notes something that was left out.
    pub fn leave_out(self, why: impl FnOnce() -> String) {
        self.amiss.note(why);
    }

    fn get<T>(self, name: &str, read: impl FnOnce(&'v Value) -> Option<T>) -> Option<T> {
        let value = self.map.get(name).filter(|value| !value.is_null())?;
        let read = read(value);
        if read.is_none() {
            self.amiss.note(|| format!("{name} is not what it should be"));
        }
        read
    }
}

/// What has been counted of something, if it is that.
#[must_use]
pub fn as_sum(value: &Value) -> Option<u64> {
    value.as_u64().map(|sum| sum.min(SUM_MAX))
}

/// A length of time as it is written: whole nanoseconds.
#[must_use]
pub fn written(time: Duration) -> Value {
    Value::from(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_missing_is_its_default_and_what_is_wrong_is_noted() {
        let amiss = Amiss::default();
        let value = json!({"a": 1, "b": "x", "c": -1, "d": [1, 2], "e": {"f": true}, "g": null});
        let fields = Fields::of(&value, "it", &amiss).unwrap();
        assert_eq!((fields.number("a"), fields.number("none"), fields.number("g")), (1, 0, 0));
        assert_eq!((fields.text("b"), fields.text("none")), ("x", ""));
        assert_eq!(fields.numbers("d"), Some([1, 2]));
        assert!(fields.inner("e").is_some_and(|inner| inner.is("f")));
        assert_eq!(amiss.told(), "");
        assert_eq!((fields.number("b"), fields.count("c"), fields.time("e")), (0, 0, None));
        assert_eq!(fields.numbers::<3>("d"), None);
        assert_eq!(fields.objects("d", 1).count(), 0);
        let told = amiss.told();
        assert!(told.contains("b is not what it should be") && told.contains("d: not 3 numbers"));
        assert!(told.contains("an entry of d is no object") && told.contains("first 1 of 2"));
    }

    #[test]
    fn only_the_first_complaints_are_kept() {
        let amiss = Amiss::default();
        (0..1000).for_each(|number| amiss.note(|| format!("no {number}")));
        assert!(amiss.told().ends_with("no 7; and 992 more"), "{}", amiss.told());
    }
}
