//! From a TOML file to a checked `Config`.
//!
//! The one idea: two levels. `raw` mirrors what was said, `model` is what is
//! meant; `build` leads from one to the other and reports every fault at once,
//! with its path, line and caret. Reading order: `model`, `raw`, `reader`, `values`,
//! `build`, `fault` (with `harmless`); then `names`, `subst`, `effect`, `print`, `expanded`,
//! `file_sd`, `discovered`; `overlay`, `sources` and `origin` (edits upon a file, both
//! together, and where each value comes from).
//!
//! It opens no file and reads no variable: both come in through `Outside`.

mod build;
pub mod diff;
mod discovered;
mod effect;
mod expanded;
mod fault;
mod file_sd;
mod harmless;
pub mod model;
mod names;
mod origin;
mod overlay;
mod print;
mod raw;
mod reader;
mod schema;
mod sources;
mod subst;
mod values;
#[cfg(test)]
mod tests;

pub use build::date::format_date;
pub use discovered::WithoutFile;
pub use expanded::{Target, distinct_targets};
pub use fault::Report;
pub use file_sd::parse_file_sd;
pub use model::*;
pub use origin::origins;
pub use overlay::{EntryId, Overlay, Section};
pub use reader::Outside;
pub use sources::{Sources, load_sources};

use toml::de::{DeTable, DeValue};

use reader::{Node, Reader};

/// A config that may be used, and what is odd about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The config.
    pub config: Config,
    /// The warnings; it has no errors.
    pub report: Report,
}

/// Reads and checks a file.
///
/// Shape: `file` is its name as shown in faults, `text` its content.
/// Errors: a report with all faults and warnings; no part of a refused file is used.
pub fn load(file: &str, text: &str, outside: &Outside<'_>) -> Result<Loaded, Report> {
    let (root, syntax) = DeTable::parse_recoverable(text);
    let span = root.span();
    let root = toml::Spanned::new(span, DeValue::Table(root.into_inner()));
    if !syntax.is_empty() {
        return Err(broken(file, text, &root, &syntax));
    }
    finish(file, &root, Reader::new(text, *outside))
}

/// Checks a tree and makes a config of it.
fn finish(
    file: &str,
    root: &toml::Spanned<DeValue<'_>>,
    mut r: Reader<'_>,
) -> Result<Loaded, Report> {
    let raw = raw::read_root(&Node::new(String::new(), root), &mut r);
    let config = build::build(&raw, &mut r);
    effect::warn_of_no_effect(root, &mut r.draft);
    let refused = r.draft.has_errors();
    let report = r.draft.finish(file);
    if refused { Err(report) } else { Ok(Loaded { config, report }) }
}

/// Where a file says that edits upon it are kept; `None` = nowhere, or it says no such thing well.
pub fn kept_edits(text: &str, outside: &Outside<'_>) -> Option<std::path::PathBuf> {
    let (root, _) = DeTable::parse_recoverable(text);
    let root = toml::Spanned::new(root.span(), DeValue::Table(root.into_inner()));
    let mut r = Reader::new(text, *outside);
    let raw = raw::read_root(&Node::new(String::new(), &root), &mut r);
    build::kept_edits(&raw, &mut r)
}

/// The report of a text that is not TOML: faults of syntax alone, since what a
/// mended tree would say may be wrong.
fn broken(
    file: &str,
    text: &str,
    root: &toml::Spanned<DeValue<'_>>,
    syntax: &[toml::de::Error],
) -> Report {
    let mut r = Reader::new(text, Outside::NOTHING);
    // Read for the masks: a secret can stand on the line of another's fault.
    raw::read_root(&Node::new(String::new(), root), &mut r);
    r.draft.keep_masks_only();
    for error in syntax {
        let span = error.span().unwrap_or(text.len()..text.len());
        r.draft.syntax(span, error.message());
    }
    r.draft.finish(file)
}

impl Config {
    /// Reads a config without files, for tests and the demo.
    pub fn from_toml_str(
        text: &str,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Config, Report> {
        let outside = Outside { env, ..Outside::NOTHING };
        load("config.toml", text, &outside).map(|loaded| loaded.config)
    }

    /// The effective config as TOML: defaults filled in, secrets as `***`.
    pub fn to_toml(&self) -> String {
        print::print(self)
    }
}

/// The JSON schema of the file.
pub fn json_schema() -> String {
    schema::schema()
}

/// The word of the file for a balance.
pub fn balance_name(balance: Balance) -> &'static str {
    names::Named::name(balance)
}

/// A text as a TOML string.
pub(crate) fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Fuzz entry: any text loads or is refused with a place; what loads prints and loads again.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match load("fuzz", &text, &Outside::NOTHING) {
        Ok(loaded) => {
            let printed = loaded.config.to_toml();
            let _ = loaded.report.to_string();
            match load("printed", &printed, &Outside::NOTHING) {
                Ok(again) => assert_eq!(again.config.to_toml(), printed),
                // A masked secret can clash with another, or be no URL any more.
                Err(report) => assert!(printed.contains("***"), "{report}\n{printed}"),
            }
        }
        Err(report) => {
            assert!(!report.errors.is_empty());
            let lines = 1 + text.bytes().filter(|b| *b == b'\n').count();
            for fault in &report.errors {
                assert!(fault.line >= 1 && fault.line as usize <= lines, "{fault:?}");
                assert!(!fault.message.is_empty());
            }
            let _ = report.to_string();
        }
    }
}
