//! Entries of the config as JSON: secrets are shown as `***`, and `***` stands for what it is shown
//! for when it comes back.
//!
//! So what was read can be changed and sent back without knowing a single secret. Where it cannot be
//! told which secret is meant, the edit is refused rather than guessed. What only names a secret (a
//! variable, a file) is shown: it is none.

use serde_json::{Map, Value, json};
use toml::Table;

use super::super::refusal::Refusal;
use crate::config::{Section, UrlAsWritten, header_is_secret};

/// What is shown in place of a secret.
const MASKED: &str = "***";

/// An entry as it is shown.
pub fn shown(section: Section, entry: &Table) -> Map<String, Value> {
    let show = |(key, value): (&String, &toml::Value)| {
        let path = [key.as_str()];
        (key.clone(), show_value(section, &path, value, false))
    };
    entry.iter().map(show).collect()
}

fn show_value(section: Section, path: &[&str], value: &toml::Value, hide: bool) -> Value {
    match value {
        toml::Value::Table(table) => {
            let header = table.get("key").and_then(toml::Value::as_str);
            let hides = path.last() == Some(&"headers") && header.is_some_and(header_is_secret);
            let show = |(key, value): (&String, &toml::Value)| {
                let path = [path, &[key.as_str()]].concat();
                let hide = hides && key == "value";
                (key.clone(), show_value(section, &path, value, hide))
            };
            Value::Object(table.iter().map(show).collect())
        }
        toml::Value::Array(list) => {
            list.iter().map(|one| show_value(section, path, one, hide)).collect()
        }
        toml::Value::String(text) => match () {
            () if (hide || is_secret(section, path)) && !is_reference(text) => json!(MASKED),
            () if is_url(section, path) => json!(UrlAsWritten::new(text.as_str()).to_string()),
            () => json!(text),
        },
        toml::Value::Integer(number) => json!(number),
        toml::Value::Float(number) => json!(number),
        toml::Value::Boolean(is) => json!(is),
        toml::Value::Datetime(date) => json!(date.to_string()),
    }
}

/// A value as it is: of those that are masked already.
pub fn plain(value: &toml::Value) -> Value {
    // No path of a group or a listener is secret.
    show_value(Section::Group, &[], value, false)
}

fn is_secret(section: Section, path: &[&str]) -> bool {
    match section {
        Section::Key => matches!(path, ["key" | "key_sha256" | "previous_sha256"]),
        Section::Upstream => matches!(
            path,
            ["auth", "token" | "password" | "value"] | ["api_keys", "key"] | ["health", "body"]
        ),
        Section::Listener | Section::Group | Section::Model => false,
    }
}

fn is_url(section: Section, path: &[&str]) -> bool {
    matches!(
        (section, path),
        (Section::Upstream, ["url" | "proxy"]) | (Section::Model, ["backend"])
    )
}

/// Whether a text says where a secret is and not what it is.
fn is_reference(text: &str) -> bool {
    let variable = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
    let is_name = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    text.is_empty() || text.starts_with("file:") || variable.is_some_and(is_name)
}

/// What an entry becomes when it is sent as this object.
///
/// Shape: `before` is the entry as it is, if there is one; `may_refer` whether new texts may name
/// variables and files of this machine.
/// Errors: a `***` of which nobody knows what it stands for.
pub fn entry_of(
    section: Section,
    object: &Map<String, Value>,
    before: Option<&Table>,
    may_refer: bool,
) -> Result<Table, Refusal> {
    let reading = Reading { section, may_refer };
    let before = before.filter(|before| !reading.moves(object, before));
    let mut entry = Table::new();
    for (key, value) in object {
        let before = before.and_then(|before| before.get(key));
        if let Some(value) = reading.value(&[key.as_str()], value, before)? {
            entry.insert(key.clone(), value);
        }
    }
    Ok(entry)
}

struct Reading {
    section: Section,
    may_refer: bool,
}

/// The keys of an upstream that say where it is and who can listen on the way.
const LEADS: [&str; 6] = ["url", "ports", "discover", "host", "proxy", "tls"];

impl Reading {
    /// The value as TOML; `None` for null.
    fn value(
        &self,
        path: &[&str],
        given: &Value,
        before: Option<&toml::Value>,
    ) -> Result<Option<toml::Value>, Refusal> {
        let same = |before: &&toml::Value| show_value(self.section, path, before, false) == *given;
        if let Some(before) = before.filter(same) {
            return Ok(Some(before.clone()));
        }
        let value = match given {
            Value::Null => return Ok(None),
            Value::Bool(is) => toml::Value::Boolean(*is),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => toml::Value::Integer(whole),
                None => toml::Value::Float(number.as_f64().unwrap_or(f64::MAX)),
            },
            Value::String(text) => self.text(path, text)?,
            Value::Array(list) => self.list(path, list, before)?,
            Value::Object(object) => {
                let before = before.and_then(toml::Value::as_table);
                let mut table = Table::new();
                for (key, value) in object {
                    let path = [path, &[key.as_str()]].concat();
                    let before = before.and_then(|before| before.get(key));
                    if let Some(value) = self.value(&path, value, before)? {
                        table.insert(key.clone(), value);
                    }
                }
                toml::Value::Table(table)
            }
        };
        Ok(Some(value))
    }

    /// Whether an entry is to lead elsewhere, at the word of somebody who may not know its secrets:
    /// they would be sent there.
    fn moves(&self, given: &Map<String, Value>, before: &Table) -> bool {
        let differs = |key: &&str| {
            let had = before.get(*key).map(|had| show_value(self.section, &[*key], had, false));
            had.as_ref() != given.get(*key).filter(|value| !value.is_null())
        };
        self.section == Section::Upstream && !self.may_refer && LEADS.iter().any(differs)
    }

    fn text(&self, path: &[&str], text: &str) -> Result<toml::Value, Refusal> {
        if text == MASKED || (is_url(self.section, path) && text.contains(MASKED)) {
            return Err(unknown_secret(path));
        }
        let refers =
            text.contains("${") || (is_secret(self.section, path) && text.starts_with("file:"));
        if refers && !self.may_refer {
            return Err(Refusal::forbidden(format!(
                "{}: ${{…}} and file: read what only this process may read, so they need an \
                 admin.token",
                path.join(".")
            )));
        }
        Ok(toml::Value::String(text.to_owned()))
    }

    /// Each element as the one before that is shown in the same way, where there is one such.
    fn list(
        &self,
        path: &[&str],
        given: &[Value],
        before: Option<&toml::Value>,
    ) -> Result<toml::Value, Refusal> {
        let had = before.and_then(toml::Value::as_array).map_or(&[][..], Vec::as_slice);
        let is_shown =
            |had: &toml::Value, as_: &Value| show_value(self.section, path, had, false) == *as_;
        let mut list = Vec::new();
        for (at, one) in given.iter().enumerate() {
            let mut alike: Vec<_> = had.iter().filter(|had| is_shown(had, one)).collect();
            alike.dedup();
            let value = match alike.as_slice() {
                [] => self.value(path, one, None)?,
                [only] => Some((*only).clone()),
                // Several that look the same: they stand where they stood, or it is not known.
                _ => match had.get(at).filter(|had| is_shown(had, one)) {
                    Some(same) if had.len() == given.len() => Some(same.clone()),
                    _ => return Err(unknown_secret(path)),
                },
            };
            list.extend(value);
        }
        Ok(toml::Value::Array(list))
    }
}

fn unknown_secret(path: &[&str]) -> Refusal {
    let path = path.join(".");
    Refusal::bad_request(format!(
        "{path}: *** is shown in place of a secret, and here it is not known of which: write it out"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: &str = "name = \"a\"\nurl = \"http://u:p@h:1/x?k=s\"\n\
        auth = { type = \"bearer\", token = \"S1\" }\nproxy = \"http://h:2\"\n\
        api_keys = [{ key = \"S2\" }, { key = \"S3\" }, { key = \"${K}\" }, { key = \"${K:-S4}\" }]\n\
        headers = [{ op = \"insert\", key = \"x-api-key\", value = \"S5\" }, { key = \"x-a\", value = \"v\" }]\n\
        health = { body = \"S6\", path = \"/x\" }\n";

    fn entry(text: &str) -> Table {
        text.parse().unwrap()
    }

    #[test]
    fn secrets_are_masked_and_come_back() {
        let before = entry(UPSTREAM);
        let shown = shown(Section::Upstream, &before);
        let text = Value::Object(shown.clone()).to_string();
        for secret in ["S1", "S2", "S3", "S4", "S5", "S6", "k=s", "u:p"] {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
        for seen in ["${K}", "\"v\"", "http://***@h:1/x?***", "\"/x\""] {
            assert!(text.contains(seen), "{seen}: {text}");
        }
        let again = entry_of(Section::Upstream, &shown, Some(&before), false).unwrap();
        assert_eq!(again, before);
    }

    #[test]
    fn a_masked_secret_of_which_nobody_knows_is_refused() {
        let before = entry(UPSTREAM);
        let edit = |edit: &dyn Fn(&mut Map<String, Value>)| {
            let mut object = shown(Section::Upstream, &before);
            edit(&mut object);
            entry_of(Section::Upstream, &object, Some(&before), false)
        };
        let changed = edit(&|object| object["health"]["path"] = json!("/y")).unwrap();
        assert_eq!(changed["health"]["body"].as_str(), Some("S6"), "beside what changes");
        // Which of the two alike is left?
        assert!(edit(&|o| drop(o["api_keys"].as_array_mut().unwrap().remove(0))).is_err());
        assert!(edit(&|o| o["url"] = json!("http://***@evil:1/x")).is_err());
        assert!(edit(&|o| o["auth"]["name"] = json!("x")).is_ok());
        let new = json!({ "auth": { "type": "bearer", "token": "***" } });
        assert!(entry_of(Section::Upstream, new.as_object().unwrap(), None, true).is_err());
    }

    #[test]
    fn only_who_has_a_token_may_name_files_and_variables() {
        let object =
            |token: &str| json!({ "auth": { "token": token }, "n": 1, "f": 1.5, "z": null });
        for token in ["${HOME}", "file:/etc/passwd"] {
            let object = object(token);
            let of = |may| entry_of(Section::Upstream, object.as_object().unwrap(), None, may);
            assert_eq!(of(false).unwrap_err().status, 403);
            assert_eq!(
                of(true).unwrap(),
                entry(&format!("auth.token = {token:?}\nn = 1\nf = 1.5"))
            );
        }
    }
}
