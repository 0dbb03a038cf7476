//! From the name in a request body to a target.
//!
//! The order is fixed and the first rule that fits wins:
//!
//! 1. `model@upstream`, where the part after the last `@` is an upstream: that upstream,
//!    whatever the group's balance says. The part before it goes through 2 and 4 for its
//!    group and the name to send; an unknown one is sent as it is.
//! 2. A configured name or alias, letter for letter.
//! 3. `prefix:name`, where the part before the first `:` is an upstream or a group: the
//!    prefix is stripped before forwarding.
//! 4. A discovered name: one that a server has said it serves.
//! 5. The default group, where the caller has one.
//!
//! A name with `@` or `:` that fits no upstream or group is simply a name (`llama3:8b`,
//! `claude@20240620`). Names are compared byte for byte. The table knows numbers
//! only; what a group or an upstream is, the floors above say.

use foldhash::HashMap;

/// Where an exchange goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelTarget {
    /// The group whose rules hold.
    pub group: u16,
    /// The one upstream that must take it; `None` = the group picks.
    pub upstream_forced: Option<u16>,
}

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<'n> {
    /// Where it goes.
    pub target: ModelTarget,
    /// The name by which rights are checked and metrics are kept: the configured name,
    /// or the client's without `@upstream` or prefix.
    pub name: &'n str,
    /// Whether `name` is a configured or discovered one, hence safe as a label.
    pub known: bool,
    /// The value to send instead of the client's; `None` = leave the body alone.
    pub name_to_send: Option<&'n str>,
}

/// One model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelEntry {
    /// Its name, as clients say it.
    pub name: String,
    /// Other names for it.
    pub aliases: Vec<String>,
    /// The group that serves it.
    pub group: u16,
    /// What its servers call it; empty = the same.
    pub upstream_model: String,
    /// A line for people, shown in the list of models.
    pub description: String,
}

/// A name that may stand after `@` or before `:`, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The upstream's or group's name.
    pub name: String,
    /// Where it leads. An upstream names the group in which it stands for itself.
    pub target: ModelTarget,
}

/// Two models claim one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTwice {
    /// The name, or alias, that is claimed twice.
    pub name: String,
    /// Index of the later of the two entries.
    pub index: usize,
}

/// The names of all models, configured and discovered.
#[derive(Clone, Debug, Default)]
pub struct ModelTable {
    entries: Vec<ModelEntry>,
    configured: HashMap<Box<str>, u32>,
    discovered: HashMap<Box<str>, u32>,
    upstreams: HashMap<Box<str>, ModelTarget>,
    groups: HashMap<Box<str>, ModelTarget>,
    /// All names but aliases, sorted, each once.
    available: Vec<Box<str>>,
}

impl ModelTable {
    /// Builds the table.
    ///
    /// Shape: `configured` and `discovered` in declared order. A discovered name that is
    /// configured too, or discovered twice, yields to the earlier. Of two places with one
    /// name the first counts, and an upstream before a group.
    /// Errors: `NameTwice` when two configured models share a name or an alias.
    pub fn new(
        configured: impl IntoIterator<Item = ModelEntry>,
        discovered: impl IntoIterator<Item = ModelEntry>,
        upstreams: impl IntoIterator<Item = Place>,
        groups: impl IntoIterator<Item = Place>,
    ) -> Result<ModelTable, NameTwice> {
        let mut table = ModelTable {
            upstreams: by_name(upstreams),
            groups: by_name(groups),
            ..ModelTable::default()
        };
        for (index, entry) in configured.into_iter().enumerate() {
            let at = table.entries.len() as u32;
            for name in std::iter::once(&entry.name).chain(&entry.aliases) {
                if table.configured.insert(name.as_str().into(), at).is_some() {
                    return Err(NameTwice { name: name.clone(), index });
                }
            }
            table.entries.push(entry);
        }
        for entry in discovered {
            let known = table.configured.contains_key(entry.name.as_str())
                || table.discovered.contains_key(entry.name.as_str());
            if !known {
                table.discovered.insert(entry.name.as_str().into(), table.entries.len() as u32);
                table.entries.push(entry);
            }
        }
        table.available = table.entries.iter().map(|entry| entry.name.as_str().into()).collect();
        table.available.sort_unstable();
        Ok(table)
    }

    /// Finds where a model goes; `None` means 404, unless there is a default.
    ///
    /// Shape: `asked` is the client's name, unescaped; nothing is allocated.
    /// Source: project specification §3, "Model lookup".
    pub fn find<'n>(&'n self, asked: &'n str) -> Option<Found<'n>> {
        self.forced(asked)
            .or_else(|| self.listed(&self.configured, asked, asked))
            .or_else(|| self.prefixed(asked))
            .or_else(|| self.listed(&self.discovered, asked, asked))
    }

    /// As `find`, but an unknown name goes to the `default` group as it is.
    pub fn find_or<'n>(&'n self, asked: &'n str, default: Option<u16>) -> Option<Found<'n>> {
        self.find(asked).or_else(|| {
            let target = ModelTarget { group: default?, upstream_forced: None };
            Some(Found { target, name: asked, known: false, name_to_send: None })
        })
    }

    /// Lists the names of all models, sorted, for the message of a 404.
    pub fn available(&self) -> &[Box<str>] {
        &self.available
    }

    /// Walks all models: the configured ones, then the discovered ones.
    pub fn entries(&self) -> impl Iterator<Item = &ModelEntry> {
        self.entries.iter()
    }

    /// Rule 1: `model@upstream`.
    fn forced<'n>(&'n self, asked: &'n str) -> Option<Found<'n>> {
        // A name is short, and seldom has one: a search that prepares itself costs more.
        let at = asked.bytes().rposition(|byte| byte == b'@').filter(|&at| at > 0)?;
        let (model, upstream) = (asked.get(..at)?, asked.get(at + 1..)?);
        let home = self.upstreams.get(upstream)?;
        let found = self
            .listed(&self.configured, model, asked)
            .or_else(|| self.listed(&self.discovered, model, asked));
        let Some(found) = found else {
            return Some(Found {
                target: *home,
                name: model,
                known: false,
                name_to_send: Some(model),
            });
        };
        // An upstream that stands for several has no number: its group picks one of them.
        let forced = |_| ModelTarget { upstream_forced: home.upstream_forced, ..found.target };
        let target = home.upstream_forced.map_or(*home, forced);
        Some(Found { target, ..found })
    }

    /// Rules 2 and 4: a name that stands in one of the two lists.
    fn listed<'n>(
        &'n self,
        names: &HashMap<Box<str>, u32>,
        name: &str,
        asked: &str,
    ) -> Option<Found<'n>> {
        let entry = self.entries.get(*names.get(name)? as usize)?;
        let at_server = match entry.upstream_model.as_str() {
            "" => entry.name.as_str(),
            other => other,
        };
        Some(Found {
            target: ModelTarget { group: entry.group, upstream_forced: None },
            name: &entry.name,
            known: true,
            name_to_send: (at_server != asked).then_some(at_server),
        })
    }

    /// Rule 3: `prefix:name`.
    fn prefixed<'n>(&self, asked: &'n str) -> Option<Found<'n>> {
        let (prefix, name) = asked.split_once(':').filter(|(_, name)| !name.is_empty())?;
        let target = *self.upstreams.get(prefix).or_else(|| self.groups.get(prefix))?;
        Some(Found { target, name, known: false, name_to_send: Some(name) })
    }
}

fn by_name(places: impl IntoIterator<Item = Place>) -> HashMap<Box<str>, ModelTarget> {
    let mut map = HashMap::default();
    for place in places {
        map.entry(place.name.into_boxed_str()).or_insert(place.target);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(name: &str, group: u16) -> ModelEntry {
        ModelEntry { name: name.into(), group, ..ModelEntry::default() }
    }

    fn upstream(name: &str, id: u16, home: u16) -> Place {
        let target = ModelTarget { group: home, upstream_forced: Some(id) };
        Place { name: name.into(), target }
    }

    fn group(name: &str, id: u16) -> Place {
        Place { name: name.into(), target: ModelTarget { group: id, upstream_forced: None } }
    }

    /// Models llama3 (alias gpt-4), big (sent as big-70b), llama3:8b; discovered phi,
    /// and pool:x, which a prefix hides; upstreams gpu0, ollama; groups pool, gpu0.
    fn table() -> ModelTable {
        ModelTable::new(
            [
                ModelEntry { aliases: vec!["gpt-4".into()], ..entry("llama3", 1) },
                ModelEntry { upstream_model: "big-70b".into(), ..entry("big", 2) },
                entry("llama3:8b", 3),
                entry("ollama:pinned", 4),
            ],
            [entry("phi", 5), entry("pool:x", 6), entry("big", 7), entry("phi", 8)],
            [upstream("gpu0", 0, 100), upstream("ollama", 1, 101)],
            [group("pool", 9), group("gpu0", 10)],
        )
        .unwrap()
    }

    /// Group, forced upstream, name for rights, name to send.
    type Told = Option<(u16, Option<u16>, &'static str, Option<&'static str>)>;

    fn check(asked: &str, expected: Told) {
        let table = table();
        let found = table
            .find(asked)
            .map(|f| (f.target.group, f.target.upstream_forced, f.name.to_owned(), f.name_to_send));
        let expected = expected.map(|(g, u, name, send)| (g, u, name.to_owned(), send));
        assert_eq!(found, expected, "{asked}");
    }

    #[test]
    fn finds_names_and_aliases() {
        check("llama3", Some((1, None, "llama3", None)));
        check("gpt-4", Some((1, None, "llama3", Some("llama3"))));
        check("big", Some((2, None, "big", Some("big-70b"))));
        check("llama3:8b", Some((3, None, "llama3:8b", None)));
    }

    #[test]
    fn refuses_unknown_names() {
        for asked in ["", "llama", "LLAMA3", "llama3 ", "@", ":", "x@nowhere", "x:y", "@gpu0"] {
            check(asked, None);
        }
        check("ollama:", None);
    }

    #[test]
    fn forces_an_upstream() {
        check("llama3@gpu0", Some((1, Some(0), "llama3", Some("llama3"))));
        check("gpt-4@ollama", Some((1, Some(1), "llama3", Some("llama3"))));
        check("big@gpu0", Some((2, Some(0), "big", Some("big-70b"))));
        check("phi@gpu0", Some((5, Some(0), "phi", Some("phi"))));
        check("new@gpu0", Some((100, Some(0), "new", Some("new"))));
        check("a@b@gpu0", Some((100, Some(0), "a@b", Some("a@b"))));
        check("llama3@pool", None);
    }

    #[test]
    fn an_upstream_that_stands_for_several_keeps_its_group() {
        let several =
            Place { name: "many".into(), target: ModelTarget { group: 30, upstream_forced: None } };
        let table = ModelTable::new([entry("m", 1)], [], [several], []).unwrap();
        let found = |asked| table.find(asked).map(|f| (f.target, f.name_to_send.unwrap()));
        let target = ModelTarget { group: 30, upstream_forced: None };
        assert_eq!(found("m@many"), Some((target, "m")));
        assert_eq!(found("many:x"), Some((target, "x")));
    }

    #[test]
    fn strips_a_prefix() {
        check("ollama:llama3", Some((101, Some(1), "llama3", Some("llama3"))));
        check("ollama:llama3:8b", Some((101, Some(1), "llama3:8b", Some("llama3:8b"))));
        check("pool:x", Some((9, None, "x", Some("x"))));
    }

    #[test]
    fn an_upstream_goes_before_a_group_of_its_name() {
        check("gpu0:x", Some((100, Some(0), "x", Some("x"))));
    }

    #[test]
    fn an_exact_name_goes_before_a_prefix_and_a_prefix_before_a_discovered_name() {
        check("ollama:pinned", Some((4, None, "ollama:pinned", None)));
        check("pool:x", Some((9, None, "x", Some("x"))));
        check("phi", Some((5, None, "phi", None)));
        check("big", Some((2, None, "big", Some("big-70b"))));
    }

    #[test]
    fn unknown_names_go_to_a_default_as_they_are() {
        let table = table();
        let found = table.find_or("what?", Some(42)).unwrap();
        assert_eq!((found.target.group, found.name_to_send, found.known), (42, None, false));
        assert_eq!(table.find_or("llama3", Some(42)).unwrap().target.group, 1);
        assert_eq!(table.find_or("what?", None), None);
    }

    #[test]
    fn lists_what_is_available_sorted_and_once() {
        let names: Vec<_> = table().available().iter().map(|n| n.to_string()).collect();
        assert_eq!(names, ["big", "llama3", "llama3:8b", "ollama:pinned", "phi", "pool:x"]);
    }

    #[test]
    fn refuses_one_name_for_two_models() {
        let aliased = ModelEntry { aliases: vec!["a".into()], ..entry("b", 0) };
        let twice = ModelTable::new([entry("a", 0), aliased], [], [], []);
        assert_eq!(twice.err(), Some(NameTwice { name: "a".into(), index: 1 }));
    }

    proptest! {
        // No name makes a lookup panic, and what is sent is a part of what was asked
        // or a configured name.
        #[test]
        fn sends_only_names_that_were_asked_or_configured(
            asked in "(llama3|gpt-4|big|phi|gpu0|ollama|pool|[@:x]){0,5}",
        ) {
            let table = table();
            if let Some(found) = table.find(&asked) {
                let send = found.name_to_send.unwrap_or(&asked);
                let configured = table.entries().any(|e| e.name == send || e.upstream_model == send);
                prop_assert!(configured || asked.contains(send));
                prop_assert_ne!(found.name_to_send, Some(asked.as_str()));
                prop_assert!(!found.known || table.entries().any(|e| e.name == found.name));
            }
        }
    }
}
