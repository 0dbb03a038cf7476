//! How long functions are, and what they give back.
//!
//! A function is a screen. A table or a state machine may be longer, few are, and none is two.
//! Lines of code count, from `fn` to the closing brace; blank ones and comments do not.

use super::Source;

/// Longest function, in lines.
const LINES_MAX: usize = 100;
/// What is long.
const LONG: usize = 70;
/// How many of a thousand may be long.
const LONG_PER_MILLE_MAX: usize = 3;

/// A function with a body.
struct Function<'s> {
    source: &'s Source,
    name: &'s str,
    /// Its first line, 1-based.
    line: usize,
    lines: usize,
}

/// What breaks the rules on length over all sources.
pub(super) fn too_long(sources: &[Source]) -> Vec<String> {
    let all: Vec<Function<'_>> = sources.iter().flat_map(functions).collect();
    let shown = |f: &Function<'_>| {
        format!("{}:{}: `{}` has {} lines", f.source.path, f.line, f.name, f.lines)
    };
    let over = all.iter().filter(|f| f.lines > LINES_MAX);
    let mut faults: Vec<String> =
        over.map(|f| format!("{}, limit {LINES_MAX}", shown(f))).collect();
    let long: Vec<String> = all.iter().filter(|f| f.lines > LONG).map(shown).collect();
    if long.len() * 1000 > all.len() * LONG_PER_MILLE_MAX {
        let share = format!("{} of {} functions are over {LONG} lines", long.len(), all.len());
        faults.push(format!("{share}, {LONG_PER_MILLE_MAX} of 1000 may be:\n{}", long.join("\n")));
    }
    faults
}

/// A `Result` in a `Result` makes every reader ask whose error it is: name the outcomes.
pub(super) fn results_in_results(source: &Source, faults: &mut Vec<String>) {
    for at in source.places_of("Result") {
        let Some(inner) = source.code[at..].strip_prefix("Result<") else { continue };
        let end = closing(inner, '<', '>').unwrap_or(inner.len());
        let nested = inner[..end].match_indices("Result<").any(|(at, _)| {
            // `CallResult<` is a name of its own.
            !inner[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_')
        });
        if nested {
            let (path, line) = (&source.path, source.line_of(at));
            faults.push(format!("{path}:{line}: a `Result` in a `Result`: an enum tells more"));
        }
    }
}

fn functions(source: &Source) -> Vec<Function<'_>> {
    let starts = source.places_of("fn");
    starts
        .filter_map(|at| {
            let rest = source.code[at..].strip_prefix("fn ")?;
            let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
            let body = body_at(rest)?;
            let end = body + closing(&rest[body..], '{', '}')? + 1;
            let lines = rest[..end].lines().filter(|line| !line.trim().is_empty()).count();
            (!name.is_empty()).then(|| Function { source, name, line: source.line_of(at), lines })
        })
        .collect()
}

/// Where a function's body begins, behind its brace; `None` when it has none.
fn body_at(rest: &str) -> Option<usize> {
    let end = signature_end(rest);
    rest[end..].starts_with('{').then_some(end + 1)
}

/// Where a function's signature ends: at the brace of its body, or at the semicolon.
pub(super) fn signature_end(rest: &str) -> usize {
    let mut depth = 0;
    for (at, c) in rest.char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            '{' | ';' if depth == 0 => return at,
            _ => {}
        }
    }
    rest.len()
}

/// Where what has been opened closes. An arrow closes nothing.
fn closing(text: &str, open: char, close: char) -> Option<usize> {
    let (mut depth, mut before) = (1, ' ');
    for (at, c) in text.char_indices() {
        if c == open {
            depth += 1;
        } else if c == close && before != '-' && before != '=' {
            depth -= 1;
        }
        if depth == 0 {
            return Some(at);
        }
        before = c;
    }
    None
}

mod rules {
    use super::*;

    fn lengths(text: &str) -> Vec<(String, usize)> {
        let source = Source::new("src/a.rs", text);
        functions(&source).iter().map(|f| (f.name.to_owned(), f.lines)).collect()
    }

    #[test]
    fn counts_the_lines_of_functions() {
        let text = "fn a() {}\ntrait T { fn b(&self); }\nfn c<F>(f: impl Fn() -> [u8; 2])\n\
                    where F: X,\n{\n  if x { y() }\n}\nlet f: fn(u8) = g;";
        assert_eq!(lengths(text), [("a".to_owned(), 1), ("c".to_owned(), 5)]);
    }

    #[test]
    fn finds_long_functions() {
        let body =
            |name: &str, lines: usize| format!("fn {name}() {{\n{}}}\n", "x;\n".repeat(lines - 2));
        let found = |text: &str| too_long(&[Source::new("src/a.rs", text)]);
        let short: String = (0..999).map(|n| body(&format!("f{n}"), 3)).collect();
        assert!(found(&(short.clone() + &body("long", 100))).is_empty());
        assert_eq!(found(&(short.clone() + &body("longer", 101))).len(), 1);
        let four: String = (0..4).map(|n| body(&format!("g{n}"), 71)).collect();
        assert_eq!(found(&(short + &four)).len(), 1);
    }

    #[test]
    fn finds_results_in_results() {
        let count = |text: &str| {
            let mut faults = Vec::new();
            results_in_results(&Source::new("src/a.rs", text), &mut faults);
            faults.len()
        };
        assert_eq!(count("fn f() -> io::Result<Result<u8, E>> {}"), 1);
        assert_eq!(count("fn f() -> Result<(), (Result<(), K>, Option<K>)> {}"), 1);
        assert_eq!(count("fn f(g: &dyn Fn() -> Result<A, B>) -> Result<Vec<u8>, E> {}"), 0);
        assert_eq!(count("Result<CallResult<u8>, E>; Ok::<_, E>(x)"), 0);
    }
}
