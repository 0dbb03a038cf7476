//! `${NAME}` and `${NAME:-default}` in string values.
//!
//! As in a shell, but for two things: an unset variable without a default is a
//! fault rather than an empty string, and `$${` stands for a literal `${`. A `$`
//! before anything else is itself. Values are not substituted again, so that a
//! variable's content can hold any text. `:-` also covers an empty variable.

use std::borrow::Cow;

/// Replaces every `${…}`; the error is the message to show.
pub(crate) fn substitute<'t>(
    text: &'t str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Cow<'t, str>, String> {
    if !text.contains("${") {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = &from[2..];
            continue;
        }
        out.push_str(before);
        let inside = &from[2..];
        let end =
            inside.find('}').ok_or("\"${\" without \"}\"; a literal one is written \"$${\"")?;
        out.push_str(&one(&inside[..end], env)?);
        rest = &inside[end + 1..];
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

fn one(inside: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let first_is_digit = name.starts_with(|c: char| c.is_ascii_digit());
    if name.is_empty()
        || first_is_digit
        || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        return Err("\"${…}\" does not hold a variable name".to_owned());
    }
    match (env(name), default) {
        (Some(value), Some(default)) if value.is_empty() => Ok(default.to_owned()),
        (Some(value), _) => Ok(value),
        (None, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("environment variable {name} is not set and has no default")),
    }
}

/// Writes a text so that `substitute` gives it back.
pub(crate) fn escape(text: &str) -> String {
    text.replace("${", "$${")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOME_URL" => Some("http://h".to_owned()),
            "EMPTY" => Some(String::new()),
            "TRICKY" => Some("${HOME_URL}".to_owned()),
            _ => None,
        }
    }

    #[track_caller]
    fn check(text: &str, expected: Result<&str, &str>) {
        match (substitute(text, &env), expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found, expected),
            (Err(found), Err(part)) => assert!(found.contains(part), "{found}"),
            (found, _) => panic!("{text}: {found:?}"),
        }
    }

    #[test]
    fn replaces_variables_and_defaults() {
        check("plain $5 }", Ok("plain $5 }"));
        check("${HOME_URL}/v1", Ok("http://h/v1"));
        check("${NONE:-a:-b}", Ok("a:-b"));
        check("${EMPTY:-x}|${EMPTY}", Ok("x|"));
        check("$${HOME_URL}", Ok("${HOME_URL}"));
        check("${TRICKY}", Ok("${HOME_URL}"));
    }

    #[test]
    fn refuses_what_it_cannot_fill() {
        check("${NONE}", Err("NONE is not set"));
        check("${HOME_URL", Err("without"));
        check("${}", Err("variable name"));
        check("${1A}", Err("variable name"));
    }

    proptest! {
        #[test]
        fn escaped_text_comes_back(text in "[$a{}]{0,12}") {
            // `$${` in the source of the escape would be read as an escape itself.
            prop_assume!(!text.contains("$${"));
            let escaped = escape(&text);
            prop_assert_eq!(substitute(&escaped, &env).unwrap(), text);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = substitute(&text, &env);
        }
    }
}
