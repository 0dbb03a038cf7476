//! What other files use says what it is: every `pub` item and field, and every variant of a `pub`
//! enum, has a `///` line.
//!
//! The compiler's `missing_docs` looks at what leaves the crate only, and next to nothing does
//! (`src/testing.rs`). Where it is allowed to be missing (`#[allow(missing_docs)]`), it is here too.

use super::{Source, check};

/// What may follow `pub` and needs no line: a module has `//!`, a `use` names what has one.
const EXEMPT: &[&str] = &["mod", "use"];

pub(super) fn undocumented(source: &Source, faults: &mut Vec<String>) {
    let code: Vec<&str> = source.code.lines().collect();
    let text: Vec<&str> = source.text.lines().collect();
    // The end of the enum whose variants are looked at, as the indentation of its brace.
    let mut in_enum: Option<usize> = None;
    for (at, line) in code.iter().enumerate() {
        let (trimmed, indent) = (line.trim_start(), line.len() - line.trim_start().len());
        if in_enum == Some(indent) && trimmed.starts_with('}') {
            in_enum = None;
        }
        let is_variant = in_enum.is_some_and(|outer| indent == outer + 4)
            && trimmed.starts_with(|c: char| c.is_ascii_uppercase());
        let words: Vec<&str> = trimmed.split_whitespace().take(2).collect();
        let is_pub = words.first() == Some(&"pub")
            && !words.get(1).is_some_and(|word| EXEMPT.contains(word));
        if !is_variant && !is_pub {
            continue;
        }
        let above = above(&text[..at]);
        let allowed = above.iter().any(|line| line.contains("allow(missing_docs)"));
        if trimmed.starts_with("pub enum") && trimmed.ends_with('{') && !allowed {
            in_enum = Some(indent);
        }
        let told = above.iter().any(|line| line.starts_with("///") || line.starts_with("#[doc"));
        if !told && !allowed {
            faults.push(format!("{}:{}: `{}` has no `///`", source.path, at + 1, trimmed));
        }
    }
}

/// The comments and attributes right above, the nearest first.
fn above<'t>(lines: &[&'t str]) -> Vec<&'t str> {
    let trimmed = lines.iter().rev().map(|line| line.trim());
    trimmed.take_while(|line| line.starts_with("///") || line.starts_with("#[")).collect()
}

mod rules {
    use super::*;

    #[test]
    fn every_public_item_is_documented() {
        check(undocumented);
    }

    #[test]
    fn finds_what_says_nothing() {
        let count = |text: &str| {
            let mut faults = Vec::new();
            undocumented(&Source::new("src/net/x.rs", text), &mut faults);
            faults.len()
        };
        assert_eq!(count("pub fn f() {}\n\nconst X: u8 = 1;\npub const Y: u8 = 1;\n"), 2);
        assert_eq!(count("/// A.\n#[must_use]\npub fn f() {}\npub mod a;\npub use a::B;\n"), 0);
        assert_eq!(count("/// A.\npub struct S {\n    pub a: u8,\n    b: u8,\n}\n"), 1);
        assert_eq!(count("/// A.\npub enum E {\n    /// A.\n    A,\n    B { c: u8 },\n}\n"), 1);
        assert_eq!(count("#[allow(missing_docs)]\npub enum E {\n    A,\n    B,\n}\n"), 0);
        assert_eq!(count("pub(crate) fn f() {}\nenum E {\n    A,\n}\n"), 0);
    }
}
