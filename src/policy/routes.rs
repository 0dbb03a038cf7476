//! The routes of one listener: by host, by path, or by both.
//!
//! The one idea: a rule takes a request only when everything that it names fits. Rules that name
//! a host come first, those with the longest prefix before the others, and within one prefix
//! those with a path before the one without; then the rules that name a path alone. The pattern
//! of a rule with a prefix is about what is left behind it, which is what the server is sent.

use std::collections::HashMap;
use std::fmt;

use super::host::{HostFault, HostTable, HostWhy};
use super::route::{PathTable, PatternFault, PatternWhy};

/// Routes, each with a value.
#[derive(Clone, Debug)]
pub struct RouteTable<T> {
    hosts: HostTable<OfHost<T>>,
    /// Rules for any host.
    paths: PathTable<T>,
}

/// The rules of one host and prefix.
#[derive(Clone, Debug)]
struct OfHost<T> {
    paths: PathTable<T>,
    /// The rule without a path.
    bare: Option<T>,
}

/// One rule.
#[derive(Clone, Debug)]
pub struct Rule<T> {
    /// `host` or `host/prefix`.
    pub host: Option<String>,
    /// A pattern.
    pub path: Option<String>,
    /// What it leads to.
    pub value: T,
}

/// Why a table cannot be made of some rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RoutesFault {
    /// A host is none, or stands twice.
    Host(HostWhy),
    /// A path is none, or stands twice.
    Path(PatternWhy),
}

impl fmt::Display for RoutesFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RoutesFault::Host(why) => why.fmt(f),
            RoutesFault::Path(why) => why.fmt(f),
        }
    }
}

impl From<HostFault> for RoutesFault {
    fn from(fault: HostFault) -> Self {
        RoutesFault::Host(fault.why)
    }
}

impl From<PatternFault> for RoutesFault {
    fn from(fault: PatternFault) -> Self {
        RoutesFault::Path(fault.why)
    }
}

impl<T> RouteTable<T> {
    /// Builds the table from rules in declared order; a rule that names neither takes nothing.
    ///
    /// Errors: a rule that is none, or the same as another.
    pub fn new(rules: impl IntoIterator<Item = Rule<T>>) -> Result<Self, RoutesFault> {
        type Held<T> = (Vec<(String, T)>, Option<T>);
        let mut order: Vec<String> = Vec::new();
        let mut by_host: HashMap<String, Held<T>> = HashMap::new();
        let mut paths = Vec::new();
        for Rule { host, path, value } in rules {
            match (host, path) {
                (None, Some(path)) => paths.push((path, value)),
                (Some(host), path) => {
                    if !by_host.contains_key(&host) {
                        order.push(host.clone());
                    }
                    let (of_host, bare) = by_host.entry(host).or_default();
                    match path {
                        Some(path) => of_host.push((path, value)),
                        None if bare.is_some() => return Err(RoutesFault::Host(HostWhy::Twice)),
                        None => *bare = Some(value),
                    }
                }
                (None, None) => {}
            }
        }
        let mut hosts = Vec::new();
        for host in order {
            let (paths, bare) = by_host.remove(&host).unwrap_or_default();
            hosts.push((host, OfHost { paths: PathTable::new(paths)?, bare }));
        }
        Ok(RouteTable { hosts: HostTable::new(hosts)?, paths: PathTable::new(paths)? })
    }

    /// Finds the rule for a request, and how many bytes of its path to strip.
    ///
    /// Shape: `host` is the value of `Host`, port and all; `path` is without its query.
    pub fn find(&self, host: &[u8], path: &[u8]) -> Option<(&T, usize)> {
        let by_host = self.hosts.find_map(host, path, |rules, strip| {
            let rest = path.get(strip..).filter(|rest| !rest.is_empty()).unwrap_or(b"/");
            let found = rules.paths.find(rest).or(rules.bare.as_ref())?;
            Some((found, strip))
        });
        by_host.or_else(|| Some((self.paths.find(path)?, 0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(rules: &[(&str, &str)]) -> RouteTable<String> {
        let rule = |(host, path): &(&str, &str)| {
            let said = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
            Rule { host: said(host), path: said(path), value: format!("{host} {path}") }
        };
        RouteTable::new(rules.iter().map(rule)).unwrap()
    }

    #[test]
    fn a_rule_with_both_wants_both() {
        let table = table(&[
            ("a.test", "/v1/*"),
            ("a.test", "/v2"),
            ("b.test", ""),
            ("b.test", "/v1/chat"),
            ("c.test/pre", "/v1/*"),
            ("c.test", "/pre/x"),
            ("", "/v1/models"),
        ]);
        for (host, path, expected) in [
            ("a.test", "/v1/chat", Some(("a.test /v1/*", 0))),
            ("a.test", "/v2", Some(("a.test /v2", 0))),
            ("a.test", "/v3", None),
            ("other.test", "/v1/chat", None),
            ("other.test", "/v1/models", Some((" /v1/models", 0))),
            ("b.test:80", "/v1/chat", Some(("b.test /v1/chat", 0))),
            ("b.test", "/v1/models", Some(("b.test ", 0))),
            ("c.test", "/pre/v1/chat", Some(("c.test/pre /v1/*", 4))),
            ("c.test", "/pre/x", Some(("c.test /pre/x", 0))),
            ("c.test", "/pre", None),
            ("c.test", "/v1/chat", None),
        ] {
            let found = table.find(host.as_bytes(), path.as_bytes());
            let found = found.map(|(value, strip)| (value.as_str(), strip));
            assert_eq!(found, expected, "{host} {path}");
        }
    }

    #[test]
    fn the_same_rule_twice_is_a_fault() {
        let rule = |host: &str, path: Option<&str>| Rule {
            host: Some(host.to_owned()),
            path: path.map(str::to_owned),
            value: (),
        };
        let twice = RouteTable::new([rule("a", None), rule("a", None)]).unwrap_err();
        assert_eq!(twice, RoutesFault::Host(HostWhy::Twice));
        let twice = RouteTable::new([rule("a", Some("/x")), rule("a", Some("/x"))]).unwrap_err();
        assert!(matches!(twice, RoutesFault::Path(PatternWhy::SameAs(0))));
        assert!(RouteTable::new([rule("a", Some("/x")), rule("a", None)]).is_ok());
    }
}
