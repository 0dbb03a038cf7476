//! Where each value in effect comes from: a line of the file, an edit, or nowhere but the defaults.
//!
//! The printed config has every key with its value; the tree of the documents has those that somebody
//! said, with their places. Both name a value by the same path.

use std::collections::HashMap;

use toml::de::DeValue;
use toml::{Spanned, Table, Value};

use super::fault::Draft;
use super::model::Config;
use super::print::print;
use super::reader::{element_path, entries, join};
use super::sources::{Sources, with_tree};

/// A value in effect.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Its path: `upstream.gpu0.breaker.cooldown`.
    pub key: String,
    /// The value, secrets as `***`.
    pub value: Value,
    /// `config.toml:12`, `overlay:3`, `default`, or `environment`.
    pub from: String,
}

/// Every value of a config, in the order of the file, and where it comes from.
///
/// Shape: `sources` are those that the config was made of.
#[must_use]
pub fn origins(sources: &Sources, config: &Config) -> Vec<Origin> {
    let said = with_tree(sources, |root, draft| {
        let mut said = HashMap::new();
        collect("", root, draft, &sources.file, &mut said);
        said
    });
    let Ok(printed) = print(config).parse::<Table>() else { return Vec::new() };
    let mut all = Vec::new();
    flatten("", &Value::Table(printed), &mut |key, value| {
        let from = said_at(&said, &key).unwrap_or_else(|| match key.as_str() {
            "admin.token" => "environment".to_owned(),
            _ => "default".to_owned(),
        });
        all.push(Origin { key, value: value.clone(), from });
    });
    all
}

/// The place of a value, or of the one that it is inherited from.
fn said_at(said: &HashMap<String, String>, key: &str) -> Option<String> {
    let mut candidates = vec![key.to_owned()];
    let parts: Vec<&str> = key.split('.').collect();
    match parts.as_slice() {
        ["listener", _, "timeouts", time] => candidates.push(format!("timeouts.{time}")),
        ["group", _, "timeouts", time] => {
            candidates.push(format!("group_defaults.timeouts.{time}"));
            candidates.push(format!("timeouts.{time}"));
        }
        ["group_defaults", "timeouts", time] => candidates.push(format!("timeouts.{time}")),
        ["group", _, rest @ ..] => candidates.push(format!("group_defaults.{}", rest.join("."))),
        // One of several that `ports` makes of an entry.
        ["upstream", name, rest @ ..] => {
            let entry = name.rsplit_once('-').map_or(*name, |(entry, _)| entry);
            candidates.push(format!("upstream.{entry}.{}", rest.join(".")));
        }
        _ => {}
    }
    candidates.iter().find_map(|key| said.get(key)).cloned()
}

/// The places of all values of a tree, by path.
fn collect(
    path: &str,
    value: &Spanned<DeValue<'_>>,
    draft: &Draft<'_>,
    file: &str,
    said: &mut HashMap<String, String>,
) {
    let at = value.span().start;
    let place = || {
        let document = draft.document(at).unwrap_or(file);
        format!("{document}:{}", draft.position(at).0)
    };
    match value.get_ref() {
        DeValue::Table(table) => {
            for entry in entries(table) {
                collect(&join(path, entry.key), entry.value, draft, file, said);
            }
        }
        DeValue::Array(list) if list.iter().any(|one| one.get_ref().is_table()) => {
            said.insert(path.to_owned(), place());
            for (index, one) in list.iter().enumerate() {
                collect(&element_path(path, index, one.get_ref()), one, draft, file, said);
            }
        }
        _ => {
            said.insert(path.to_owned(), place());
        }
    }
}

/// Calls with each value that is no table, by path; a list without names is one value.
fn flatten(path: &str, value: &Value, each: &mut impl FnMut(String, &Value)) {
    match value {
        Value::Table(table) => {
            table.iter().for_each(|(key, value)| flatten(&join(path, key), value, each));
        }
        Value::Array(list) if list.iter().any(|one| name_of(one).is_some()) => {
            for one in list {
                let name = name_of(one).unwrap_or_default();
                flatten(&format!("{path}.{name}"), one, each);
            }
        }
        value => each(path.to_owned(), value),
    }
}

fn name_of(value: &Value) -> Option<&str> {
    value.as_table()?.get("name")?.as_str()
}
