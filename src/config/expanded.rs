//! One entry, many upstreams: what `discover` of an upstream was found to stand for.
//!
//! A function from a config and what was found to a config, so that nothing else has to know
//! that an upstream was not written down. Groups, routes and models keep their numbers; the
//! entry's own place in a group is taken by all that it stands for, and its name still means
//! them (`NAME:model`, `model@NAME`). Who finds them is `control`'s matter.

use std::collections::{HashMap, HashSet};

use crate::config::build::group::implicit_group;
use crate::config::build::upstream::written;
use crate::config::model::*;

/// Upstreams that one entry may stand for; further ones are left out.
pub const TARGETS_MAX: usize = 256;

/// A server that an entry stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Its share next to the others of the entry, multiplied with the member's own; 1..=65535.
    pub weight: u16,
}

impl Target {
    /// Whether that is where it is.
    #[must_use]
    pub fn is_at(&self, host: &str, port: u16) -> bool {
        self.host == host && self.port == port
    }
}

impl Discover {
    /// Whether it finds addresses of what the URL names, so that `Host` and the certificate are the
    /// URL's; what others find has names of its own.
    fn finds_addresses(&self) -> bool {
        matches!(self, Discover::Dns { .. } | Discover::K8s(_))
    }
}

impl Config {
    /// The config in which each entry with `discover` is replaced by what it stands for.
    ///
    /// Shape: `found` has the targets of each entry by its number here; an entry without any
    /// stands for nobody. The upstreams are named `ENTRY-HOST-PORT`, a second one of that name
    /// `ENTRY-HOST-PORT-2`. Settings are the entry's; of its URL the scheme and the path count.
    /// `Host` says the URL's name for addresses of `dns:` and `k8s:`, else the target's own.
    #[must_use]
    pub fn expanded(&self, found: &[(UpstreamId, Vec<Target>)]) -> Config {
        let mut config = Config { upstreams: Vec::new(), sets: Vec::new(), ..self.clone() };
        let mut taken: HashSet<String> = self.upstreams.iter().map(|u| u.name.clone()).collect();
        let found: HashMap<usize, &[Target]> =
            found.iter().map(|(id, targets)| (usize::from(id.0), &targets[..])).collect();
        // By the old number: the new ones and their weights within the entry.
        let mut places: Vec<Vec<(UpstreamId, u16)>> = Vec::new();
        let mut own_groups = Vec::new();
        for (index, upstream) in self.upstreams.iter().enumerate() {
            let mut next = config.upstreams.len();
            let mut number = || {
                next += 1;
                UpstreamId(u16::try_from(next - 1).unwrap_or(u16::MAX))
            };
            let Some(source) = &upstream.discover else {
                places.push(vec![(number(), 1)]);
                config.upstreams.push(upstream.clone());
                continue;
            };
            config.sets.push(NamedSet { name: upstream.name.clone(), group: upstream.group });
            let targets = found.get(&index).copied().unwrap_or_default();
            let mut place = Vec::new();
            for target in distinct_targets(targets) {
                let id = number();
                place.push((id, target.weight.max(1)));
                own_groups.push(id);
                config.upstreams.push(one(upstream, source, target, &mut taken));
            }
            places.push(place);
        }
        for group in &mut config.groups {
            group.members = members(&group.members, &places);
        }
        for id in own_groups {
            let group = implicit_group(&config.upstreams, &[id], &self.group_defaults);
            config.upstreams[usize::from(id.0)].group =
                GroupId(u16::try_from(config.groups.len()).unwrap_or(u16::MAX));
            config.groups.push(group);
        }
        config
    }
}

/// Targets that differ in where they are, at most `TARGETS_MAX`; the first of two counts.
#[must_use]
pub fn distinct_targets(targets: &[Target]) -> Vec<&Target> {
    let mut known = HashSet::new();
    let mut out = Vec::new();
    for target in targets {
        if out.len() < TARGETS_MAX && known.insert((target.host.as_str(), target.port)) {
            out.push(target);
        }
    }
    out
}

fn one(
    entry: &Upstream,
    source: &Discover,
    target: &Target,
    taken: &mut HashSet<String>,
) -> Upstream {
    let mut url = UpstreamUrl {
        host: target.host.clone(),
        port: target.port,
        unix: false,
        ..entry.url.clone()
    };
    url.original = UrlAsWritten::new(written(&url));
    let host = match (&entry.host, source) {
        (HostRule::Upstream, source) if source.finds_addresses() => {
            HostRule::Literal(entry.url.authority())
        }
        (rule, _) => rule.clone(),
    };
    let mut tls = entry.tls.clone();
    if source.finds_addresses() && url.tls {
        // The certificate is the name's, not the address's.
        tls.server_name.get_or_insert_with(|| entry.url.host.clone());
    }
    // A colon has a meaning in the names of models.
    let plain = format!("{}-{}-{}", entry.name, target.host.replace(':', "_"), target.port);
    let numbered = (2..).map(|n| format!("{plain}-{n}"));
    let name = std::iter::once(plain.clone()).chain(numbered).find(|name| !taken.contains(name));
    let name = name.unwrap_or(plain);
    taken.insert(name.clone());
    Upstream { name, url, host, tls, discover: None, ..entry.clone() }
}

fn members(before: &[Member], places: &[Vec<(UpstreamId, u16)>]) -> Vec<Member> {
    let place = |member: &Member| places.get(usize::from(member.upstream.0)).cloned();
    let several = before.iter().flat_map(|member| {
        place(member).unwrap_or_default().into_iter().map(|(upstream, share)| Member {
            upstream,
            weight: member.weight.saturating_mul(share),
        })
    });
    several.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        [[listener]]
        name = "l"
        bind = "127.0.0.1:0"
        auth = "none"
        [[upstream]]
        name = "many"
        url = "http://vllm.svc:8000/base"
        discover = "dns:vllm.svc:8000"
        models = ["declared"]
        [[upstream]]
        name = "one"
        url = "http://127.0.0.1:9000"
        models = ["declared"]
        [[group]]
        name = "chat"
        members = [{ upstream = "one", weight = 2 }, { upstream = "many", weight = 3 }]
        [models.m]
        group = "chat"
        [models.n]
        upstream = "many"
    "#;

    fn config(text: &str) -> Config {
        Config::from_toml_str(text, &|_| None).unwrap_or_else(|why| panic!("{why}"))
    }

    fn target(host: &str, port: u16, weight: u16) -> Target {
        Target { host: host.to_owned(), port, weight }
    }

    /// Names and weights of a group's members.
    fn shown(config: &Config, group: GroupId) -> String {
        let one = |m: &Member| format!("{}*{}", config.upstream(m.upstream).name, m.weight);
        config.group(group).members.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    fn model<'c>(config: &'c Config, name: &str) -> &'c Model {
        config.models.iter().find(|model| model.name == name).unwrap()
    }

    #[test]
    fn every_group_of_the_entry_has_all_that_it_stands_for() {
        let before = config(TEXT);
        let found = vec![target("10.0.0.1", 8000, 1), target("fd00::2", 8001, 5)];
        let after = before.expanded(&[(UpstreamId(0), found)]);
        let chat = after.group_named("chat").unwrap();
        assert_eq!(shown(&after, chat), "one*2 many-10.0.0.1-8000*3 many-fd00__2-8001*15");
        let both = "many-10.0.0.1-8000*1 many-fd00__2-8001*5";
        assert_eq!(shown(&after, model(&after, "n").group), both);
        assert_eq!(shown(&after, model(&after, "declared").group), format!("{both} one*1"));
        assert_eq!(
            after.sets,
            [NamedSet { name: "many".into(), group: before.upstreams[0].group }]
        );
        assert_eq!(shown(&after, after.sets[0].group), both);
        for (index, upstream) in after.upstreams.iter().enumerate() {
            let members = &after.group(upstream.group).members;
            assert!(members.len() == 1 && usize::from(members[0].upstream.0) == index);
            assert_eq!(upstream.discover, None);
        }
        assert_eq!(before.group_named("chat"), after.group_named("chat"));
    }

    #[test]
    fn settings_are_the_entrys_and_the_place_is_the_targets() {
        let found = vec![(UpstreamId(0), vec![target("fd00::2", 8001, 1)])];
        let after = config(TEXT).expanded(&found);
        let upstream = &after.upstreams[0];
        assert_eq!(upstream.url.original.expose(), "http://[fd00::2]:8001/base");
        assert_eq!((upstream.url.base_path.as_str(), upstream.url.port), ("/base", 8001));
        assert_eq!(upstream.host, HostRule::Literal("vllm.svc:8000".into()));
        let srv = TEXT.replace("dns:vllm.svc:8000", "srv:_http._tcp.x");
        assert_eq!(config(&srv).expanded(&found).upstreams[0].host, HostRule::Upstream);
    }

    #[test]
    fn an_entry_of_which_nothing_was_found_stands_for_nobody() {
        let before = config(TEXT);
        for found in [vec![], vec![(UpstreamId(0), vec![])]] {
            let after = before.expanded(&found);
            assert_eq!(after.upstreams.len(), 1);
            assert_eq!(shown(&after, after.group_named("chat").unwrap()), "one*2");
            assert_eq!(shown(&after, after.sets[0].group), "");
        }
    }

    #[test]
    fn names_are_unique_and_targets_too() {
        let text = TEXT.replace("\"one\"", "\"many-a-1\"");
        let found = vec![target("a", 1, 1), target("b", 1, 1), target("a", 1, 9)];
        let after = config(&text).expanded(&[(UpstreamId(0), found)]);
        let names: Vec<&str> = after.upstreams.iter().map(|u| u.name.as_str()).collect();
        assert_eq!(names, ["many-a-1-2", "many-b-1", "many-a-1"]);
    }

    #[test]
    fn targets_max_bounds_what_an_entry_stands_for() {
        let found = (0..2000).map(|port| target("a", port, 1)).collect();
        let after = config(TEXT).expanded(&[(UpstreamId(0), found)]);
        assert_eq!(after.upstreams.len(), TARGETS_MAX + 1);
    }

    #[test]
    fn without_such_entries_nothing_changes() {
        let before = config(&TEXT.replace("discover", "# discover"));
        assert_eq!(format!("{:?}", before.expanded(&[])), format!("{before:?}"));
    }

    #[test]
    fn reported_names_lead_to_all_that_report_them() {
        let found = vec![target("a", 1, 1), target("b", 1, 1)];
        let expanded = config(&TEXT.replace("models = [\"declared\"]", ""))
            .expanded(&[(UpstreamId(0), found)]);
        let names = |id, names: &[&str]| {
            (UpstreamId(id), names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>())
        };
        let after = expanded.with_discovered(&[names(0, &["x"]), names(1, &["x", "y"])], &[]);
        assert_eq!(shown(&after, model(&after, "x").group), "many-a-1*1 many-b-1*1");
        assert_eq!(shown(&after, model(&after, "y").group), "many-b-1*1");
    }
}
