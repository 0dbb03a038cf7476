//! Tests of the loader as a whole: what is refused, what is warned of, what is shown.

mod built;
pub(crate) mod example;
mod large;
mod refused;
mod secrets;
mod shown;
mod sources;
pub(super) mod support;
mod tls;

use super::*;

fn env(name: &str) -> Option<String> {
    match name {
        "KEY" => Some("sk-environment-0123456789".to_owned()),
        "GROUP" => Some("nowhere".to_owned()),
        _ => None,
    }
}

fn read(path: &std::path::Path) -> Result<String, String> {
    match path.to_str() {
        Some("/run/key") => Ok("sk-from-a-file-0123456789\n".to_owned()),
        Some(path) => tls::files().get(path).cloned().ok_or("no such file".to_owned()),
        None => Err("no such file".to_owned()),
    }
}

fn try_load(text: &str) -> Result<Loaded, Report> {
    load("config.toml", text, &Outside { env: &env, read: &read, now_s: 0 })
}

#[track_caller]
fn good(text: &str) -> Loaded {
    try_load(text).unwrap_or_else(|report| panic!("{report}"))
}

/// A file that works, to which each case adds a mistake.
const BASE: &str = r#"
[[listener]]
name = "main"
bind = "127.0.0.1:4000"
auth = "none"
default_group = "chat"
[[upstream]]
name = "gpu0"
url = "http://127.0.0.1:8000"
models = ["a"]
[[group]]
name = "chat"
members = ["gpu0"]
"#;

fn with(more: &str) -> String {
    format!("{BASE}{more}")
}

/// Every error as `path: message`.
fn errors(text: &str) -> Vec<String> {
    match try_load(text) {
        Ok(_) => Vec::new(),
        Err(report) => report.errors.iter().map(|f| format!("{}: {}", f.path, f.message)).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    let report = good(text).report;
    report.warnings.iter().map(|f| format!("{}: {}", f.path, f.message)).collect()
}

/// Exactly one error, which holds all of `parts`.
#[track_caller]
fn check(more: &str, parts: &[&str]) {
    let errors = errors(&with(more));
    assert_eq!(errors.len(), 1, "{more}\n{errors:#?}");
    for part in parts {
        assert!(errors[0].contains(part), "{more}\nwanted {part:?} in {:?}", errors[0]);
    }
}
