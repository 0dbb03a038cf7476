//! Routing by host, with an optional path prefix that is stripped.
//!
//! A rule is `host` or `host/prefix`. The request's `Host` is compared without its
//! port and without regard to case (RFC 9110 §4.2.3); of the rules for that host the longest
//! prefix that ends at a boundary wins. A boundary is the end, a `/`, a `?` or a `#`: the
//! prefix `/pre` takes `/pre`, `/pre/x` and `/pre?q`, but not `/prefix`. Nothing is
//! decoded here (`http::path` has done it), and there are no wildcards.

use std::collections::HashMap;
use std::fmt;

/// Longest host that is looked up, in bytes: the longest DNS name.
const HOST_BYTES_MAX: usize = 255;

/// Host rules, each with a value.
#[derive(Clone, Debug)]
pub struct HostTable<T> {
    /// By lower-case host; the longest prefix first.
    hosts: HashMap<Box<[u8]>, Vec<Rule<T>>>,
}

#[derive(Clone, Debug)]
struct Rule<T> {
    /// Without a slash at its end; empty = every path.
    prefix: Box<[u8]>,
    value: T,
}

/// A rule that is none, or none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFault {
    /// Its place among the rules.
    pub index: usize,
    /// What is wrong with it.
    pub why: HostWhy,
}

/// Why a host rule is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostWhy {
    /// Nothing stands before the first slash, or it is too long for a host.
    NoHost,
    /// It has a port; rules hold on every port.
    HasPort,
    /// The same host and prefix stand in an earlier rule.
    Twice,
}

impl fmt::Display for HostWhy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HostWhy::NoHost => "a host route is written host or host/prefix",
            HostWhy::HasPort => "a host route has no port",
            HostWhy::Twice => "the same host and prefix stand in an earlier route",
        })
    }
}

impl<T> HostTable<T> {
    /// Builds the table from rules in declared order.
    ///
    /// Errors: `HostFault` with the first bad rule.
    pub fn new<R: AsRef<str>>(
        rules: impl IntoIterator<Item = (R, T)>,
    ) -> Result<HostTable<T>, HostFault> {
        let mut hosts: HashMap<_, Vec<Rule<T>>> = HashMap::new();
        for (index, (rule, value)) in rules.into_iter().enumerate() {
            let (host, prefix) = parse(rule.as_ref()).map_err(|why| HostFault { index, why })?;
            let rules = hosts.entry(host.to_ascii_lowercase().into()).or_default();
            if rules.iter().any(|rule| *rule.prefix == *prefix) {
                return Err(HostFault { index, why: HostWhy::Twice });
            }
            let at = rules.partition_point(|rule| rule.prefix.len() >= prefix.len());
            rules.insert(at, Rule { prefix: prefix.into(), value });
        }
        Ok(HostTable { hosts })
    }

    /// Asks `choose` for each rule that fits a request, the longest prefix first, whether it is
    /// it; it is given the rule and how many bytes of the path it strips.
    ///
    /// Shape: `host` is the value of `Host`, port and all; `path` is the path, with or without
    /// what follows it. Nothing is allocated. The rest may lack the slash at its beginning.
    pub fn find_map<'t, R>(
        &'t self,
        host: &[u8],
        path: &[u8],
        mut choose: impl FnMut(&'t T, usize) -> Option<R>,
    ) -> Option<R> {
        if self.is_empty() {
            return None;
        }
        let mut lower = [0; HOST_BYTES_MAX];
        let host = bare_host(host);
        let lower = lower.get_mut(..host.len())?;
        lower.copy_from_slice(host);
        lower.make_ascii_lowercase();
        let rules = self.hosts.get(&*lower)?;
        let mut fitting = rules.iter().filter(|rule| covers(&rule.prefix, path));
        fitting.find_map(|rule| choose(&rule.value, rule.prefix.len()))
    }

    /// Tells whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.hosts.is_empty()
    }
}

/// Tells whether `prefix` is all of `path` up to a boundary.
fn covers(prefix: &[u8], path: &[u8]) -> bool {
    let Some(rest) = path.strip_prefix(prefix) else { return false };
    prefix.is_empty() || matches!(rest.first(), None | Some(b'/' | b'?' | b'#'))
}

/// Takes off the port, and the dot at the end of an absolute name. The brackets of an
/// IPv6 address stay.
fn bare_host(host: &[u8]) -> &[u8] {
    let name_end = match host.first() {
        Some(b'[') => memchr::memchr(b']', host).map_or(host.len(), |at| at + 1),
        _ => memchr::memchr(b':', host).unwrap_or(host.len()),
    };
    let name = &host[..name_end];
    name.strip_suffix(b".").unwrap_or(name)
}

/// Cuts a rule into host and prefix.
fn parse(rule: &str) -> Result<(&[u8], &[u8]), HostWhy> {
    let (host, prefix) = match rule.find('/') {
        Some(at) => rule.split_at(at),
        None => (rule, ""),
    };
    let bare = bare_host(host.as_bytes());
    if bare.is_empty() || bare.len() > HOST_BYTES_MAX {
        return Err(HostWhy::NoHost);
    }
    if host.len() > bare.len() + 1 || host.ends_with(':') {
        return Err(HostWhy::HasPort);
    }
    Ok((bare, prefix.trim_end_matches('/').as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Host, path, and which rule takes it and what is left of the path.
    type Case = (&'static str, &'static str, Option<(&'static str, &'static str)>);

    /// The first rule that fits, and how many bytes of the path it strips.
    fn find<'t, T>(table: &'t HostTable<T>, host: &[u8], path: &[u8]) -> Option<(&'t T, usize)> {
        table.find_map(host, path, |value, strip| Some((value, strip)))
    }

    fn check(rules: &[&'static str], cases: &[Case]) {
        let table = HostTable::new(rules.iter().map(|rule| (*rule, *rule))).unwrap();
        for (host, path, expected) in cases {
            let found = find(&table, host.as_bytes(), path.as_bytes()).map(|(rule, len)| {
                let rest = &path[len..];
                (*rule, if rest.starts_with('/') { rest.to_owned() } else { format!("/{rest}") })
            });
            let expected = expected.map(|(rule, rest)| (rule, rest.to_owned()));
            assert_eq!(found, expected, "{host} {path}");
        }
    }

    #[test]
    fn compares_hosts_without_port_and_case() {
        check(
            &["a.test", "[::1]", "10.0.0.1"],
            &[
                ("a.test", "/v1", Some(("a.test", "/v1"))),
                ("A.Test:8443", "/v1", Some(("a.test", "/v1"))),
                ("a.test.", "/v1", Some(("a.test", "/v1"))),
                ("a.test.:80", "/v1", Some(("a.test", "/v1"))),
                ("[::1]:80", "/v1", Some(("[::1]", "/v1"))),
                ("[::1]", "/v1", Some(("[::1]", "/v1"))),
                ("10.0.0.1:1", "/v1", Some(("10.0.0.1", "/v1"))),
                ("b.test", "/v1", None),
                ("xa.test", "/v1", None),
                ("", "/v1", None),
                (":80", "/v1", None),
                ("[::1", "/v1", None),
            ],
        );
    }

    #[test]
    fn takes_the_longest_prefix_at_a_boundary() {
        check(
            &["h", "h/pre", "h/pre/x"],
            &[
                ("h", "/", Some(("h", "/"))),
                ("h", "/prefix", Some(("h", "/prefix"))),
                ("h", "/pre", Some(("h/pre", "/"))),
                ("h", "/pre/", Some(("h/pre", "/"))),
                ("h", "/pre/v1/x", Some(("h/pre", "/v1/x"))),
                ("h", "/pre/x", Some(("h/pre/x", "/"))),
                ("h", "/pre/x/v1", Some(("h/pre/x", "/v1"))),
                ("h", "/pre/xy", Some(("h/pre", "/xy"))),
                ("h", "/PRE/v1", Some(("h", "/PRE/v1"))),
            ],
        );
    }

    #[test]
    fn keeps_query_and_fragment() {
        check(
            &["h/pre"],
            &[
                ("h", "/pre?a=/b", Some(("h/pre", "/?a=/b"))),
                ("h", "/pre/v1?a=1#f", Some(("h/pre", "/v1?a=1#f"))),
                ("h", "/pre#f", Some(("h/pre", "/#f"))),
                ("h", "/?/pre", None),
            ],
        );
    }

    #[test]
    fn a_prefix_alone_does_not_take_the_host() {
        check(&["h/pre"], &[("h", "/", None), ("h", "/prefix", None), ("h", "", None)]);
    }

    #[test]
    fn a_slash_at_the_end_of_a_rule_does_not_count() {
        check(&["h/", "g/pre//"], &[("h", "/x", Some(("h/", "/x")))]);
        check(&["g/pre/"], &[("g", "/pre/v1", Some(("g/pre/", "/v1")))]);
    }

    #[test]
    fn names_the_bad_rule() {
        let why = |rules: &[&str]| HostTable::new(rules.iter().map(|r| (r, ()))).unwrap_err();
        assert_eq!(why(&["a", "/pre"]), HostFault { index: 1, why: HostWhy::NoHost });
        assert_eq!(why(&[""]).why, HostWhy::NoHost);
        assert_eq!(why(&["a:80/pre"]).why, HostWhy::HasPort);
        assert_eq!(why(&["a:"]).why, HostWhy::HasPort);
        assert_eq!(why(&["[::1]:80"]).why, HostWhy::HasPort);
        assert_eq!(why(&["a/x", "A/x/"]), HostFault { index: 1, why: HostWhy::Twice });
    }

    #[test]
    fn bounds_the_length_of_a_host() {
        let table = HostTable::new([("a", ())]).unwrap();
        assert_eq!(find(&table, &[b'a'; HOST_BYTES_MAX + 1], b"/"), None);
    }

    proptest! {
        #[test]
        fn agrees_with_trying_every_rule(
            rules in prop::collection::hash_set("[ab](/[xy]{1,2}){0,3}", 0..12),
            host in "[abAB](:80)?", path in "(/[xy]{1,2}){0,4}[?]?",
        ) {
            let rules: Vec<_> = rules.into_iter().collect();
            let table = HostTable::new(rules.iter().enumerate().map(|(i, r)| (r, i))).unwrap();
            let asked = format!("{}{path}", host.split(':').next().unwrap().to_lowercase());
            let fits = |rule: &&String| {
                asked.strip_prefix(rule.as_str()).is_some_and(|rest| {
                    rest.is_empty() || rest.starts_with(['/', '?'])
                })
            };
            let expected = rules.iter().filter(fits).max_by_key(|rule| rule.len());
            let found = find(&table, host.as_bytes(), path.as_bytes()).map(|(i, _)| &rules[*i]);
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn no_bytes_make_it_panic(
            host in prop::collection::vec(any::<u8>(), 0..300),
            path in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let table = HostTable::new([("a", ()), ("a/b", ())]).unwrap();
            if let Some((_, len)) = find(&table, &host, &path) {
                prop_assert!(len <= path.len());
            }
        }
    }
}
