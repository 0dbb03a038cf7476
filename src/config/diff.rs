//! What differs between two configs, for `tokenring diff` and for what a reload tells.
//!
//! Both are compared as they would be printed (`print`), element by element: listeners, keys,
//! upstreams, groups and models by their names, so that another order is no change. What is printed
//! as `***`, and what stands in files beside the config, is compared by itself and never shown.

use std::collections::BTreeMap;
use std::fmt;

use toml::{Table, Value};

use crate::config::model::*;
use crate::config::print::print;
use crate::pki::{Pair, Roots};

/// Keys that a running process cannot change.
const FIXED: [&str; 4] =
    ["process.cores", "process.io", "process.state_dir", "process.control_socket"];

/// One thing that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What it is about: `upstream gpu0`, or a section such as `limits`.
    pub element: String,
    /// How it differs.
    pub what: What,
}

/// How something differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Only the new config has it.
    Added,
    /// Only the old config has it.
    Removed,
    /// A key has another value.
    Key {
        /// The key within the element, such as `breaker.cooldown`.
        key: String,
        /// Its value before; none = it was not there.
        from: Option<String>,
        /// Its value now; none = it is not there.
        to: Option<String>,
    },
    /// A secret, or what a file holds, is another one.
    Hidden {
        /// The key within the element.
        key: &'static str,
    },
}

impl Change {
    /// The key in full, when a running process cannot change it.
    #[must_use]
    pub fn fixed(&self) -> Option<String> {
        let What::Key { key, .. } = &self.what else { return None };
        let path = format!("{}.{key}", self.element);
        FIXED.contains(&path.as_str()).then_some(path)
    }
}

impl fmt::Display for Change {
    /// One line: `+` added, `-` removed, `~` changed, `!` changed but only by a new process.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let element = &self.element;
        match &self.what {
            What::Added => write!(f, "+ {element}"),
            What::Removed => write!(f, "- {element}"),
            What::Hidden { key } => write!(f, "~ {element}: {key} (not shown)"),
            What::Key { key, from, to } => {
                let mark = if self.fixed().is_some() { '!' } else { '~' };
                let shown = |value: &Option<String>| value.clone().unwrap_or("(none)".to_owned());
                write!(f, "{mark} {element}: {key}: {} -> {}", shown(from), shown(to))
            }
        }
    }
}

/// What differs, by element in order of their names.
#[must_use]
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let (before, after) = (elements(old), elements(new));
    let mut changes = Vec::new();
    for (element, table) in &before {
        match after.get(element) {
            None => changes.push(Change { element: element.clone(), what: What::Removed }),
            Some(now) => compare(element, "", table, now, &mut changes),
        }
    }
    let added = after.keys().filter(|element| !before.contains_key(*element));
    changes.extend(added.map(|element| Change { element: element.clone(), what: What::Added }));
    let (hidden_before, hidden_after) = (hidden(old), hidden(new));
    for ((element, key), value) in &hidden_after {
        let known = before.contains_key(element) && after.contains_key(element);
        // What is shown in part, such as a URL, is told once.
        let told = changes.iter().any(|change| {
            change.element == *element
                && matches!(&change.what, What::Key { key: k, .. } if k == key)
        });
        if known && !told && hidden_before.get(&(element.clone(), *key)) != Some(value) {
            changes.push(Change { element: element.clone(), what: What::Hidden { key } });
        }
    }
    changes.sort_by(|a, b| a.element.cmp(&b.element));
    changes
}

/// The sections and the named elements of a config as it is printed.
fn elements(config: &Config) -> BTreeMap<String, Table> {
    let Ok(printed) = print(config).parse::<Table>() else { return BTreeMap::new() };
    let mut elements = BTreeMap::new();
    for (section, value) in printed {
        match value {
            Value::Array(list) => {
                for one in list {
                    let Value::Table(table) = one else { continue };
                    let name = table.get("name").and_then(Value::as_str).unwrap_or_default();
                    elements.insert(format!("{section} {name}"), table);
                }
            }
            Value::Table(models) if section == "models" => {
                for (name, model) in models {
                    let Value::Table(table) = model else { continue };
                    elements.insert(format!("model {name}"), table);
                }
            }
            Value::Table(table) => {
                elements.insert(section, table);
            }
            _ => {}
        }
    }
    elements
}

/// Adds the keys whose values differ; a table is looked into, a list is one value.
fn compare(element: &str, under: &str, old: &Table, new: &Table, changes: &mut Vec<Change>) {
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    for key in keys {
        let path = if under.is_empty() { key.clone() } else { format!("{under}.{key}") };
        match (old.get(key), new.get(key)) {
            (Some(Value::Table(before)), Some(Value::Table(now))) => {
                compare(element, &path, before, now, changes);
            }
            (before, now) if before != now => {
                let shown = |value: Option<&Value>| value.map(ToString::to_string);
                let what = What::Key { key: path, from: shown(before), to: shown(now) };
                changes.push(Change { element: element.to_owned(), what });
            }
            _ => {}
        }
    }
}

/// What is compared and not shown.
#[derive(PartialEq)]
enum Hidden {
    Bytes(Vec<u8>),
    Pairs(Vec<Pair>),
    Roots(Roots),
}

/// All that is not printed, by element and key; an element that has none of a key has no entry.
fn hidden(config: &Config) -> BTreeMap<(String, &'static str), Hidden> {
    let mut all = BTreeMap::new();
    let mut put = |element: String, key: &'static str, value: Hidden| {
        all.insert((element, key), value);
    };
    for listener in &config.listeners {
        let Some(tls) = &listener.tls else { continue };
        let element = || format!("listener {}", listener.name);
        let pairs = tls.pairs.iter().map(|pair| pair.loaded.clone()).collect();
        put(element(), "what the certificate files hold", Hidden::Pairs(pairs));
        if let Some(ca) = &tls.client_ca {
            put(element(), "what the client_ca file holds", Hidden::Roots(ca.roots.clone()));
        }
    }
    for key in &config.keys {
        let digest = key.sha256.map_or_else(Vec::new, |digest| digest.to_vec());
        put(format!("key {}", key.name), "key", Hidden::Bytes(digest));
        if let Some(previous) = &key.previous {
            let digest = Hidden::Bytes(previous.sha256.to_vec());
            put(format!("key {}", key.name), "previous_sha256", digest);
        }
    }
    for upstream in &config.upstreams {
        let element = || format!("upstream {}", upstream.name);
        put(element(), "credentials", Hidden::Bytes(credentials(upstream)));
        let header = |op: &HeaderOp| [op.name.as_bytes(), b"\0", op.value.as_bytes()].concat();
        let headers = upstream.headers.iter().map(header).collect::<Vec<_>>().join(&b'\n');
        put(element(), "headers", Hidden::Bytes(headers));
        put(element(), "url", Hidden::Bytes(upstream.url.original.expose().into()));
        if let Some(health) = &upstream.health {
            put(element(), "health.body", Hidden::Bytes(health.body.expose().to_vec()));
        }
        put_tls(&upstream.tls, &mut |what, hidden| put(element(), what, hidden));
    }
    let url = config.ratelimit_store.url.expose().to_vec();
    put("ratelimit_store".to_owned(), "url", Hidden::Bytes(url));
    let store = &config.ratelimit_store.tls;
    put_tls(store, &mut |what, hidden| put("ratelimit_store".to_owned(), what, hidden));
    let header =
        |(name, value): &(String, Secret)| [name.as_bytes(), b"\0", value.expose()].concat();
    let headers = config.tracing.headers.iter().map(header).collect::<Vec<_>>().join(&b'\n');
    put("tracing".to_owned(), "headers", Hidden::Bytes(headers));
    put_tls(&config.tracing.tls, &mut |what, hidden| put("tracing".to_owned(), what, hidden));
    if let Some(token) = config.admin.as_ref().and_then(|admin| admin.token.as_ref()) {
        put("admin".to_owned(), "token", Hidden::Bytes(token.expose().to_vec()));
    }
    all
}

/// What is in the files of the TLS settings of a client.
fn put_tls(tls: &UpstreamTls, put: &mut dyn FnMut(&'static str, Hidden)) {
    if let Some(pair) = &tls.client {
        put("what the certificate files hold", Hidden::Pairs(vec![pair.loaded.clone()]));
    }
    if let Authorities::File(ca) = &tls.ca {
        put("what the ca file holds", Hidden::Roots(ca.roots.clone()));
    }
}

fn credentials(upstream: &Upstream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match &upstream.auth {
        UpstreamAuth::None | UpstreamAuth::Pass => {}
        UpstreamAuth::Bearer(secret) | UpstreamAuth::Basic(secret) => {
            bytes.extend_from_slice(secret.expose());
        }
        UpstreamAuth::Header { value, .. } | UpstreamAuth::Query { value, .. } => {
            bytes.extend_from_slice(value.expose());
        }
    }
    let proxy = upstream.proxy.as_ref().and_then(|proxy| proxy.credentials.as_ref());
    for secret in upstream.api_keys.iter().map(|one| &one.key).chain(proxy) {
        bytes.push(0);
        bytes.extend_from_slice(secret.expose());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
        [[upstream]]\nname = \"a\"\nurl = \"http://h:1\"\nauth = { type = \"bearer\", token = \"CANARY1\" }\n\
        [[group]]\nname = \"g\"\nmembers = [{ upstream = \"a\" }]\n[models.m]\ngroup = \"g\"\n";

    fn lines(old: &str, new: &str) -> Vec<String> {
        let config = |text: &str| Config::from_toml_str(text, &|_| None).unwrap();
        diff(&config(old), &config(new)).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_same_and_another_order_are_no_change() {
        assert_eq!(lines(BASE, BASE), Vec::<String>::new());
        let b = "[[upstream]]\nname = \"b\"\nurl = \"http://h:2\"\n";
        assert_eq!(lines(&format!("{BASE}{b}"), &format!("{b}{BASE}")), Vec::<String>::new());
    }

    #[test]
    fn each_kind_of_change_is_one_line() {
        let b = "[[upstream]]\nname = \"b\"\nurl = \"http://h:2\"\n";
        let more = format!("{BASE}{b}");
        assert_eq!(lines(BASE, &more), ["+ upstream b"]);
        assert_eq!(lines(&more, BASE), ["- upstream b"]);
        let slower = BASE.replace("[[group]]", "breaker = { cooldown = \"9s\" }\n[[group]]");
        let told = lines(BASE, &slower);
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("~ upstream a: breaker.cooldown: \""), "{told:?}");
        assert!(told[0].ends_with("-> \"9s\""), "{told:?}");
        let model = BASE.replace("[models.m]", "[models.n]");
        assert_eq!(lines(BASE, &model), ["- model m", "+ model n"]);
        let admin = format!("{BASE}[admin]\nbind = \"127.0.0.1:0\"\n");
        assert_eq!(lines(BASE, &admin), ["+ admin"]);
    }

    #[test]
    fn what_needs_a_new_process_is_marked() {
        let cores = format!("[process]\ncores = 2\n{BASE}");
        let one = format!("[process]\ncores = 1\ndrain = \"9s\"\n{BASE}");
        let told = lines(&cores, &one);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told.contains(&"! process: cores: 2 -> 1".to_owned()), "{told:?}");
        assert!(told.iter().any(|line| line.starts_with("~ process: drain")), "{told:?}");
    }

    #[test]
    fn another_secret_is_told_and_not_shown() {
        let other = BASE.replace("CANARY1", "CANARY2");
        assert_eq!(lines(BASE, &other), ["~ upstream a: credentials (not shown)"]);
        let keyed = |key: &str| format!("{BASE}[[key]]\nname = \"k\"\nkey = \"{key}\"\n");
        assert_eq!(lines(&keyed("CANARY1"), &keyed("CANARY2")), ["~ key k: key (not shown)"]);
        let header = |value: &str| {
            let line = format!(
                "headers = [{{ op = \"insert\", key = \"x-token\", value = \"{value}\" }}]\n[[group]]"
            );
            BASE.replace("[[group]]", &line)
        };
        let told = lines(&header("CANARY1"), &header("CANARY2"));
        assert_eq!(told, ["~ upstream a: headers (not shown)"]);
    }
}
