//! A new name in place of the model's, and not one other byte changed.
//!
//! The one idea: a body is never written again. It is cut at the two ends of the value that
//! the scan found, and goes out as three slices: what was before, the new value, what was
//! after. Lengths follow by arithmetic, so a body that is still arriving can be announced
//! and forwarded, too.

use std::ops::Range;

use super::quote::quote;

/// Appends `name` to `out` as the JSON value that replaces the model's, quotes included.
pub fn replace_model(name: &str, out: &mut Vec<u8>) {
    quote(name, out);
}

/// A body with one value exchanged, as the slices to send in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spliced<'a> {
    /// The body up to the value.
    pub before: &'a [u8],
    /// The new value.
    pub value: &'a [u8],
    /// The body after the old value.
    pub after: &'a [u8],
}

impl<'a> Spliced<'a> {
    /// Cuts `held`, the body from its first byte on, around `span`.
    ///
    /// Shape: `span` as the scan of the same body told it, `value` ready to send. `None` if
    /// the span does not lie in `held`, so a span of another body cannot cut this one.
    pub fn new(held: &'a [u8], span: &Range<u64>, value: &'a [u8]) -> Option<Self> {
        let (start, end) = (usize::try_from(span.start).ok()?, usize::try_from(span.end).ok()?);
        held.get(start..end)?;
        Some(Self { before: held.get(..start)?, value, after: held.get(end..)? })
    }

    /// Tells how many bytes the three slices are together.
    pub fn len(&self) -> usize {
        self.before.len() + self.value.len() + self.after.len()
    }

    /// Tells whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gives the slices in the order in which they are sent.
    pub fn parts(&self) -> [&'a [u8]; 3] {
        [self.before, self.value, self.after]
    }
}

/// Tells the length of a whole body of `body_bytes` once the value at `span` has become
/// one of `value_bytes`; `None` if the span cannot be of such a body.
pub fn length_after(body_bytes: u64, span: &Range<u64>, value_bytes: u64) -> Option<u64> {
    let old = span.end.checked_sub(span.start)?;
    if span.end > body_bytes {
        return None;
    }
    (body_bytes - old).checked_add(value_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::scan::ModelScan;
    use proptest::prelude::*;

    fn spliced(body: &str, name: &str) -> String {
        let mut scan = ModelScan::new();
        scan.push(body.as_bytes()).and_then(|()| scan.finish()).unwrap();
        let span = scan.model().unwrap().span;
        let mut value = Vec::new();
        replace_model(name, &mut value);
        let spliced = Spliced::new(body.as_bytes(), &span, &value).unwrap();
        assert_eq!(
            length_after(body.len() as u64, &span, value.len() as u64),
            Some(spliced.len() as u64)
        );
        String::from_utf8(spliced.parts().concat()).unwrap()
    }

    #[test]
    fn only_the_bytes_of_the_value_change() {
        assert_eq!(
            spliced(
                "{ \"x\" : 1e0,\"mod\\u0065l\" :\t\"a\\/b\" ,\"encoding_format\": null }",
                "q\"w"
            ),
            "{ \"x\" : 1e0,\"mod\\u0065l\" :\t\"q\\\"w\" ,\"encoding_format\": null }"
        );
        // Of duplicates the last one, which is the one that counts.
        assert_eq!(spliced(r#"{"model":"a","model":"b"}"#, "c"), r#"{"model":"a","model":"c"}"#);
    }

    #[test]
    fn a_span_of_another_body_cuts_nothing() {
        assert_eq!(Spliced::new(b"abc", &(1..4), b"x"), None);
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 2..1;
        assert_eq!(Spliced::new(b"abc", &reversed, b"x"), None);
        assert_eq!(length_after(3, &reversed, 1), None);
        assert_eq!(length_after(3, &(1..4), 1), None);
        assert_eq!(length_after(u64::MAX, &(0..1), 9), None);
    }

    proptest! {
        #[test]
        fn the_new_name_is_what_a_server_reads(old in any::<String>(), new in "[^\0]{0,60}", rest in any::<String>()) {
            prop_assume!(old.len() <= 256 && new.len() <= 256);
            let rest = serde_json::Value::from(rest);
            let body = format!(r#"{{"a":{rest},"model":{},"b":[{rest}]}}"#, serde_json::Value::from(old));
            let got: serde_json::Value = serde_json::from_str(&spliced(&body, &new)).unwrap();
            prop_assert_eq!(&got["model"], &serde_json::Value::from(new));
            prop_assert_eq!(&got["a"], &rest);
            prop_assert_eq!(&got["b"][0], &rest);
        }
    }
}
