//! From the name in a request to a target.
//!
//! The order is fixed and the first rule that fits wins:
//!
//! 1. A configured name or alias, or one that a server has said it serves, letter for letter:
//!    `llama3:8b` is a name, whatever an upstream is called.
//! 2. `model@upstream`, where the part after the last `@` is an upstream: that upstream,
//!    whatever the group's balance says.
//! 3. `prefix:name`, where the part before the first `:` is an upstream or a group: the
//!    prefix is stripped before forwarding.
//! 4. The default group, where the caller has one.
//!
//! A name has one place that serves it, and may have others for callers who do not reach that
//! one: servers that list the name, too, and such as are away. Who is served out of their reach is
//! nothing to them; the name is known to them as if there were nobody else.
//!
//! How far 2 and 3 go is the listener's `force`: not at all, to names that the place lists or
//! that the config leads there, or to any name. None of the rules leads to a place that the
//! caller does not reach. A name with `@` or `:` that fits no place is simply a name
//! (`claude@20240620`), unless it is a known model with a place behind it that nobody knows.
//! Names are compared byte for byte. The table knows numbers only; what a group or an upstream
//! is, the floors above say.

use std::borrow::Cow;

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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'n> {
    /// Where it goes.
    pub target: ModelTarget,
    /// The name by which rights are checked and metrics are kept: the model's, as it is
    /// listed, or the client's where it is not.
    pub name: Cow<'n, str>,
    /// The place in the table of the model named `name`, if it is a configured or discovered one,
    /// hence safe as a label.
    pub known: Option<u32>,
    /// The value to send instead of the client's; `None` = leave the body alone.
    pub name_to_send: Option<&'n str>,
}

/// Why a name leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing<'n> {
    /// Nobody knows it.
    Unknown,
    /// It names a place that does not list it; the part that would be the model's name.
    NotListed(&'n str),
}

/// Which names may say where to go: `model@upstream`, `upstream-or-group:model`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Force {
    /// Those of models that the place lists, or that the config leads there.
    #[default]
    Listed,
    /// Any.
    Any,
    /// None: `@` and `:` are letters like others.
    Off,
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
    /// Groups for who does not reach `group`, the first that they reach: of others that list it,
    /// of those who have it and are away.
    pub elsewhere: Vec<u16>,
    /// What its servers call it; empty = the same.
    pub upstream_model: String,
    /// A line for people, shown in the list of models.
    pub description: String,
    /// Its place among the table's entries; set by `ModelTable::new`.
    pub number: u32,
}

impl ModelEntry {
    /// Where it leads, in the order in which it is looked at.
    fn groups(&self) -> impl Iterator<Item = u16> {
        std::iter::once(self.group).chain(self.elsewhere.iter().copied())
    }
}

/// A name that may stand after `@` or before `:`, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qualifier {
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
    /// Upstreams of each group, by the group's number.
    members: Vec<Box<[u16]>>,
    /// Upstreams that list a name which the config leads elsewhere.
    shadowed: HashMap<Box<str>, Box<[u16]>>,
    /// Discovered names are `upstream:model`.
    prefixed: bool,
    /// All names but aliases, sorted, each once.
    available: Vec<Box<str>>,
}

/// What a table is made of.
#[derive(Clone, Debug, Default)]
pub struct ModelNames {
    /// Models of the config, in declared order, and those that its upstreams declare.
    pub configured: Vec<ModelEntry>,
    /// Models that servers have listed. One that is configured too, or discovered twice,
    /// yields to the earlier.
    pub discovered: Vec<ModelEntry>,
    /// Upstreams by name. Of two with one name the first counts, and an upstream before a
    /// group.
    pub upstreams: Vec<Qualifier>,
    /// Groups by name.
    pub groups: Vec<Qualifier>,
    /// Upstreams of each group, by the group's number.
    pub members: Vec<Box<[u16]>>,
    /// Names that upstreams list and that the config leads elsewhere.
    pub shadowed: Vec<(String, Vec<u16>)>,
    /// Whether discovered names are `upstream:model`.
    pub prefixed: bool,
}

impl ModelTable {
    /// Builds the table.
    ///
    /// Errors: `NameTwice` when two configured models share a name or an alias.
    pub fn new(names: ModelNames) -> Result<ModelTable, NameTwice> {
        let mut table = ModelTable {
            upstreams: by_name(names.upstreams),
            groups: by_name(names.groups),
            members: names.members,
            shadowed: names.shadowed.into_iter().map(|(n, by)| (n.into(), by.into())).collect(),
            prefixed: names.prefixed,
            ..ModelTable::default()
        };
        for (index, entry) in names.configured.into_iter().enumerate() {
            let at = table.entries.len() as u32;
            for name in std::iter::once(&entry.name).chain(&entry.aliases) {
                if table.configured.insert(name.as_str().into(), at).is_some() {
                    return Err(NameTwice { name: name.clone(), index });
                }
            }
            table.entries.push(entry);
        }
        for entry in names.discovered {
            let known = table.configured.contains_key(entry.name.as_str())
                || table.discovered.contains_key(entry.name.as_str());
            if !known {
                table.discovered.insert(entry.name.as_str().into(), table.entries.len() as u32);
                table.entries.push(entry);
            }
        }
        for (number, entry) in (0..).zip(&mut table.entries) {
            entry.number = number;
        }
        table.available = table.entries.iter().map(|entry| entry.name.as_str().into()).collect();
        table.available.sort_unstable();
        Ok(table)
    }

    /// Finds where a model goes; an unknown name goes to the `default` group, where there is one,
    /// as it is.
    ///
    /// Shape: `asked` is the client's name, unescaped; `reaches` tells whether the caller may
    /// go to a target. Nothing is allocated for a name without `@` and `:`.
    /// Errors: `Missing`, and 404.
    /// Source: rules §3, "Model lookup".
    pub fn find<'n>(
        &'n self,
        asked: &'n str,
        default: Option<u16>,
        force: Force,
        reaches: impl Fn(ModelTarget) -> bool,
    ) -> Result<Found<'n>, Missing<'n>> {
        if let Some((entry, target)) = self.known_to(asked, &reaches) {
            return Ok(self.found(entry, target, asked));
        }
        let mut not_listed = Missing::Unknown;
        if force != Force::Off && asked.bytes().any(|byte| matches!(byte, b'@' | b':')) {
            match self.forced(asked, force, &reaches) {
                Forced::To(found) => return Ok(found),
                Forced::Nowhere(why) => return Err(why),
                Forced::Not(why) => not_listed = why,
            }
        }
        let group = default.ok_or(not_listed)?;
        let target = ModelTarget { group, upstream_forced: None };
        Ok(Found { target, name: Cow::Borrowed(asked), known: None, name_to_send: None })
    }

    /// Lists the names of all models, sorted, for the message of a 404.
    pub fn available(&self) -> &[Box<str>] {
        &self.available
    }

    /// Walks all models: the configured ones, then the discovered ones.
    pub fn entries(&self) -> impl Iterator<Item = &ModelEntry> {
        self.entries.iter()
    }

    /// The model of this name or alias; the group of a name in `available` is here too.
    pub fn known(&self, name: &str) -> Option<&ModelEntry> {
        let at = self.configured.get(name).or_else(|| self.discovered.get(name))?;
        self.entries.get(*at as usize)
    }

    /// The model of this name or alias, and where it leads for this caller: to the group that
    /// serves it, or elsewhere if they do not reach that one.
    ///
    /// Shape: `None` for a name that is unknown, and for one that is unknown to this caller.
    #[inline]
    pub fn known_to(
        &self,
        name: &str,
        reaches: impl Fn(ModelTarget) -> bool,
    ) -> Option<(&ModelEntry, ModelTarget)> {
        let entry = self.known(name)?;
        let serving = ModelTarget { group: entry.group, upstream_forced: None };
        if reaches(serving) {
            return Some((entry, serving));
        }
        let mut others = entry.elsewhere.iter().map(|&group| ModelTarget { group, ..serving });
        others.find(|target| reaches(*target)).map(|target| (entry, target))
    }

    /// Rules 2 and 3.
    #[cold]
    fn forced<'n>(
        &'n self,
        asked: &'n str,
        force: Force,
        reaches: &dyn Fn(ModelTarget) -> bool,
    ) -> Forced<'n> {
        let place = |at: Option<&ModelTarget>| at.copied().filter(|target| reaches(*target));
        if let Some((model, name)) = asked.rsplit_once('@').filter(|(model, _)| !model.is_empty()) {
            if let Some(target) = place(self.upstreams.get(name)) {
                return match self.at_place(model, name, target, asked, force) {
                    Some(found) => Forced::To(found),
                    None => Forced::Nowhere(Missing::NotListed(model)),
                };
            }
            // A model that there is, at a place that there is not.
            if self.known_to(model, reaches).is_some() {
                return Forced::Nowhere(Missing::Unknown);
            }
        }
        let Some((name, model)) = asked.split_once(':').filter(|(_, model)| !model.is_empty())
        else {
            return Forced::Not(Missing::Unknown);
        };
        let target = place(self.upstreams.get(name)).or_else(|| place(self.groups.get(name)));
        let Some(target) = target else { return Forced::Not(Missing::Unknown) };
        match self.at_place(model, name, target, asked, force) {
            Some(found) => Forced::To(found),
            None => Forced::Not(Missing::NotListed(model)),
        }
    }

    /// A model at a place that the caller named and reaches.
    fn at_place<'n>(
        &'n self,
        model: &'n str,
        place: &str,
        target: ModelTarget,
        asked: &str,
        force: Force,
    ) -> Option<Found<'n>> {
        let there = self.upstreams_of(target);
        let shares = |upstreams: &[u16]| upstreams.iter().any(|one| there.contains(one));
        let shared =
            |entry: &ModelEntry| entry.groups().find(|group| shares(self.upstreams_in(*group)));
        // An upstream that is forced goes by the rules of the model's group where it stands in
        // it, else by those of its own.
        let at = |entry: &ModelEntry| match shared(entry) {
            Some(group) if target.upstream_forced.is_some() => ModelTarget { group, ..target },
            _ => target,
        };
        // Under another name it is known to its own servers alone: what that name is to the others
        // of a group, nobody has said.
        let serves = |entry: &ModelEntry| match entry.upstream_model.is_empty() {
            true => shared(entry).is_some(),
            false => {
                let those = self.upstreams_in(entry.group);
                !there.is_empty() && there.iter().all(|one| those.contains(one))
            }
        };
        let known = self.known(model);
        if let Some(entry) = known.filter(|entry| serves(entry)) {
            return Some(self.found(entry, at(entry), asked));
        }
        if self.shadowed.get(model).is_some_and(|by| shares(by)) {
            return Some(Found {
                target,
                name: Cow::Borrowed(model),
                known: None,
                name_to_send: Some(model),
            });
        }
        if self.prefixed
            && let Some(entry) = self.known(&format!("{place}:{model}"))
            && shared(entry).is_some()
        {
            return Some(self.found(entry, at(entry), asked));
        }
        if force != Force::Any {
            return None;
        }
        // Rights are about what is read there, as it would be listed.
        let sent = known.map_or(model, at_server);
        let name = match self.prefixed {
            true => Cow::Owned(format!("{place}:{sent}")),
            false => Cow::Borrowed(sent),
        };
        let known = self.known(&name).filter(|entry| entry.name == *name);
        let known = known.map(|entry| entry.number);
        Some(Found { target, name, known, name_to_send: (sent != asked).then_some(sent) })
    }

    fn found<'n>(&'n self, entry: &'n ModelEntry, target: ModelTarget, asked: &str) -> Found<'n> {
        let at_server = at_server(entry);
        let name = Cow::Borrowed(entry.name.as_str());
        let known = Some(entry.number);
        Found { target, name, known, name_to_send: (at_server != asked).then_some(at_server) }
    }

    fn upstreams_in(&self, group: u16) -> &[u16] {
        self.members.get(usize::from(group)).map_or(&[], |members| members)
    }

    fn upstreams_of(&self, target: ModelTarget) -> Cow<'_, [u16]> {
        match target.upstream_forced {
            Some(one) => Cow::Owned(vec![one]),
            None => Cow::Borrowed(self.upstreams_in(target.group)),
        }
    }
}

/// What its servers call a model.
fn at_server(entry: &ModelEntry) -> &str {
    match entry.upstream_model.as_str() {
        "" => &entry.name,
        other => other,
    }
}

/// What `@` and `:` in a name come to.
enum Forced<'n> {
    /// This target.
    To(Found<'n>),
    /// No target, and no default either.
    Nowhere(Missing<'n>),
    /// A name like others.
    Not(Missing<'n>),
}

fn by_name(places: Vec<Qualifier>) -> HashMap<Box<str>, ModelTarget> {
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

    fn upstream(name: &str, id: u16, home: u16) -> Qualifier {
        let target = ModelTarget { group: home, upstream_forced: Some(id) };
        Qualifier { name: name.into(), target }
    }

    fn group(name: &str, id: u16) -> Qualifier {
        Qualifier { name: name.into(), target: ModelTarget { group: id, upstream_forced: None } }
    }

    /// Models llama3 (alias gpt-4), big (sent as big-70b), llama3:8b; discovered phi and
    /// pool:x; upstreams gpu0, ollama and llama3; groups pool, gpu0. gpu0 stands in the groups
    /// of llama3 and big and lists phi; ollama lists nothing but big, which is configured.
    fn names() -> ModelNames {
        let mut members = vec![Box::default(); 103];
        for (group, upstreams) in [
            (1, &[0u16][..]),
            (2, &[0]),
            (3, &[1]),
            (4, &[1]),
            (5, &[0]),
            (6, &[1]),
            (9, &[0, 1]),
            (10, &[0]),
            (100, &[0]),
            (101, &[1]),
            (102, &[2]),
        ] {
            members[group] = upstreams.into();
        }
        ModelNames {
            configured: vec![
                ModelEntry { aliases: vec!["gpt-4".into()], ..entry("llama3", 1) },
                ModelEntry { upstream_model: "big-70b".into(), ..entry("big", 2) },
                entry("llama3:8b", 3),
                entry("ollama:pinned", 4),
            ],
            discovered: vec![entry("phi", 5), entry("pool:x", 6), entry("big", 7), entry("phi", 8)],
            upstreams: vec![
                upstream("gpu0", 0, 100),
                upstream("ollama", 1, 101),
                upstream("llama3", 2, 102),
            ],
            groups: vec![group("pool", 9), group("gpu0", 10)],
            members,
            shadowed: vec![("big".into(), vec![1])],
            prefixed: false,
        }
    }

    fn table() -> ModelTable {
        ModelTable::new(names()).unwrap()
    }

    fn everywhere(_: ModelTarget) -> bool {
        true
    }

    /// Group, forced upstream, name for rights, name to send.
    type Expected<'t> = Option<(u16, Option<u16>, &'t str, Option<&'t str>)>;

    fn check_as(force: Force, asked: &str, expected: Expected<'_>) {
        let table = table();
        let found = table.find(asked, None, force, everywhere).ok();
        let told = found.as_ref().map(|found| {
            let ModelTarget { group, upstream_forced } = found.target;
            (group, upstream_forced, &*found.name, found.name_to_send)
        });
        assert_eq!(told, expected, "{asked}");
    }

    fn check(asked: &str, expected: Expected<'_>) {
        check_as(Force::Listed, asked, expected);
    }

    #[test]
    fn finds_names_and_aliases() {
        check("llama3", Some((1, None, "llama3", None)));
        check("gpt-4", Some((1, None, "llama3", Some("llama3"))));
        check("big", Some((2, None, "big", Some("big-70b"))));
        check("phi", Some((5, None, "phi", None)));
    }

    #[test]
    fn refuses_unknown_names() {
        for asked in ["", "llama", "LLAMA3", "llama3 ", "@", ":", "x@nowhere", "x:y", "@gpu0"] {
            for force in [Force::Listed, Force::Any, Force::Off] {
                check_as(force, asked, None);
            }
        }
        check_as(Force::Any, "ollama:", None);
    }

    #[test]
    fn a_listed_id_is_a_name_whatever_a_place_is_called() {
        check("llama3:8b", Some((3, None, "llama3:8b", None)));
        check("ollama:pinned", Some((4, None, "ollama:pinned", None)));
        check("pool:x", Some((6, None, "pool:x", None)));
    }

    #[test]
    fn forces_what_is_listed_there_or_led_there() {
        for force in [Force::Listed, Force::Any] {
            let check = |asked, expected| check_as(force, asked, expected);
            check("llama3@gpu0", Some((1, Some(0), "llama3", Some("llama3"))));
            check("gpt-4@gpu0", Some((1, Some(0), "llama3", Some("llama3"))));
            check("big@gpu0", Some((2, Some(0), "big", Some("big-70b"))));
            check("phi@gpu0", Some((5, Some(0), "phi", Some("phi"))));
            check("gpu0:phi", Some((5, Some(0), "phi", Some("phi"))));
            check("pool:phi", Some((9, None, "phi", Some("phi"))));
            // It lists the name, though the config leads it elsewhere.
            check("big@ollama", Some((101, Some(1), "big", Some("big"))));
            // One of the group lists it, and it is not all of it that says big-70b.
            check("pool:big", Some((9, None, "big", Some("big"))));
        }
    }

    #[test]
    fn forces_other_names_only_where_any_may() {
        for (asked, told) in [
            ("new@gpu0", (100, Some(0), "new", Some("new"))),
            ("a@b@gpu0", (100, Some(0), "a@b", Some("a@b"))),
            ("ollama:llama3", (101, Some(1), "llama3", None)),
            ("gpt-4@ollama", (101, Some(1), "llama3", Some("llama3"))),
            ("ollama:x:8b", (101, Some(1), "x:8b", Some("x:8b"))),
            // Rights are about what that server reads.
            ("big@llama3", (102, Some(2), "big-70b", Some("big-70b"))),
            // An upstream goes before a group of its name.
            ("gpu0:x", (100, Some(0), "x", Some("x"))),
        ] {
            let (group, upstream, name, send) = told;
            let send = send.or(Some("llama3"));
            check_as(Force::Any, asked, Some((group, upstream, name, send)));
            check_as(Force::Listed, asked, None);
            check_as(Force::Off, asked, None);
        }
        let table = table();
        let missing = |asked| table.find(asked, None, Force::Listed, everywhere).unwrap_err();
        assert_eq!(missing("new@gpu0"), Missing::NotListed("new"));
        assert_eq!(missing("gpu0:new"), Missing::NotListed("new"));
        assert_eq!(missing("new"), Missing::Unknown);
    }

    #[test]
    fn forces_nothing_where_it_is_off() {
        for asked in ["llama3@gpu0", "gpu0:phi", "pool:phi"] {
            check_as(Force::Off, asked, None);
            let table = table();
            let found = table.find(asked, Some(42), Force::Off, everywhere).unwrap();
            assert_eq!((found.target.group, &*found.name, found.name_to_send), (42, asked, None));
        }
    }

    #[test]
    fn leads_nowhere_that_the_caller_does_not_reach() {
        let table = table();
        let not_gpu0 = |target: ModelTarget| match target.upstream_forced {
            Some(upstream) => upstream != 0,
            None => !matches!(target.group, 1 | 2 | 5 | 10),
        };
        let find = |asked, default| table.find(asked, default, Force::Any, not_gpu0);
        for asked in ["llama3", "phi", "llama3@gpu0", "gpu0:phi", "new@gpu0"] {
            assert!(find(asked, None).is_err(), "{asked}");
        }
        // It is not known to the caller; its default group gets it as it is.
        assert_eq!(find("phi", Some(42)).unwrap().target.group, 42);
        assert_eq!(find("gpu0:phi", Some(42)).unwrap().name, "gpu0:phi");
    }

    #[test]
    fn a_place_that_there_is_not_is_no_default() {
        let table = table();
        let find = |asked| table.find(asked, Some(42), Force::Listed, everywhere);
        assert_eq!(find("llama3@nobody"), Err(Missing::Unknown));
        assert_eq!(find("new@gpu0"), Err(Missing::NotListed("new")));
        // These are names.
        for asked in ["claude@20240620", "llama9:8b", "gpu0:new"] {
            let found = find(asked).unwrap();
            assert_eq!((found.target.group, &*found.name), (42, asked));
        }
    }

    #[test]
    fn rights_are_about_the_name_as_listed() {
        let place = |name: &str, id| upstream(name, id, 10 + id);
        let entry = |upstream: &str, group| ModelEntry {
            upstream_model: "m".into(),
            ..entry(&format!("{upstream}:m"), group)
        };
        let mut members = vec![Box::default(); 12];
        for (group, upstream) in [(1, 0u16), (2, 1), (10, 0), (11, 1)] {
            members[group] = [upstream].into();
        }
        members[9] = [0, 1].into();
        let table = ModelTable::new(ModelNames {
            discovered: vec![entry("cheap", 1), entry("dear", 2)],
            upstreams: vec![place("cheap", 0), place("dear", 1)],
            groups: vec![group("both", 9)],
            members,
            prefixed: true,
            ..ModelNames::default()
        })
        .unwrap();
        let told = |asked, force| {
            let found = table.find(asked, None, force, everywhere).ok()?;
            Some((found.name.into_owned(), found.target.upstream_forced, found.name_to_send?))
        };
        for (asked, name, forced) in [
            ("cheap:m", "cheap:m", None),
            ("dear:m", "dear:m", None),
            ("m@dear", "dear:m", Some(1)),
            ("cheap:m@cheap", "cheap:m", Some(0)),
        ] {
            assert_eq!(told(asked, Force::Listed), Some((name.to_owned(), forced, "m")), "{asked}");
        }
        assert_eq!(told("m", Force::Any), None);
        assert_eq!(told("x@dear", Force::Listed), None);
        assert_eq!(told("x@dear", Force::Any), Some(("dear:x".to_owned(), Some(1), "x")));
        // No name of one server's is a way to another's.
        for asked in ["cheap:m@dear", "both:cheap:m", "dear:cheap:m"] {
            assert_eq!(told(asked, Force::Listed), None, "{asked}");
        }
        assert_eq!(told("cheap:m@dear", Force::Any), Some(("dear:m".to_owned(), Some(1), "m")));
        assert_eq!(told("both:cheap:m", Force::Any), Some(("both:m".to_owned(), None, "m")));
    }

    #[test]
    fn an_upstream_that_stands_for_several_keeps_its_group() {
        let target = ModelTarget { group: 3, upstream_forced: None };
        let table = ModelTable::new(ModelNames {
            configured: vec![entry("m", 1)],
            upstreams: vec![Qualifier { name: "many".into(), target }],
            members: vec![[].into(), [7].into(), [].into(), [7, 8].into()],
            ..ModelNames::default()
        })
        .unwrap();
        let found = |asked| {
            table
                .find(asked, None, Force::Any, everywhere)
                .map(|f| (f.target, f.name_to_send))
                .unwrap()
        };
        assert_eq!(found("m@many"), (target, Some("m")));
        assert_eq!(found("many:x"), (target, Some("x")));
    }

    #[test]
    fn unknown_names_go_to_a_default_as_they_are() {
        let table = table();
        let find = |asked, default| table.find(asked, default, Force::Listed, everywhere);
        let found = find("what?", Some(42)).unwrap();
        assert_eq!((found.target.group, found.name_to_send, found.known), (42, None, None));
        assert_eq!(find("llama3", Some(42)).unwrap().target.group, 1);
        assert_eq!(find("what?", None), Err(Missing::Unknown));
    }

    /// `m` is served by upstream 0; 1 has it, too, and is away. Group 10 is upstream 0 alone, 11
    /// is 1.
    #[test]
    fn who_does_not_reach_those_that_serve_a_name_is_led_to_those_that_are_away() {
        let mut members = vec![Box::default(); 12];
        (members[10], members[11]) = ([0u16].into(), [1u16].into());
        let table = ModelTable::new(ModelNames {
            discovered: vec![ModelEntry { elsewhere: vec![11], ..entry("m", 10) }],
            upstreams: vec![upstream("a", 0, 10), upstream("b", 1, 11)],
            members,
            ..ModelNames::default()
        })
        .unwrap();
        let away = ModelTarget { group: 11, upstream_forced: None };
        let forced = ModelTarget { upstream_forced: Some(1), ..away };
        let only_b = |target: ModelTarget| target.group == 11;
        let find = |asked| table.find(asked, None, Force::Listed, only_b).map(|found| found.target);
        assert_eq!(find("m"), Ok(away));
        assert_eq!((find("m@b"), find("b:m")), (Ok(forced), Ok(forced)));
        assert_eq!((find("m@a"), find("a:m")), (Err(Missing::Unknown), Err(Missing::Unknown)));
        let found = table.find("m", None, Force::Listed, everywhere).unwrap();
        assert_eq!(found.target.group, 10, "whoever reaches those that serve it goes there");
        assert_eq!(table.find("m", None, Force::Listed, |_| false), Err(Missing::Unknown));
    }

    #[test]
    fn lists_what_is_available_sorted_and_once() {
        let names: Vec<_> = table().available().iter().map(|n| n.to_string()).collect();
        assert_eq!(names, ["big", "llama3", "llama3:8b", "ollama:pinned", "phi", "pool:x"]);
    }

    #[test]
    fn refuses_one_name_for_two_models() {
        let aliased = ModelEntry { aliases: vec!["a".into()], ..entry("b", 0) };
        let configured = vec![entry("a", 0), aliased];
        let twice = ModelTable::new(ModelNames { configured, ..ModelNames::default() });
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
            if let Ok(found) = table.find(&asked, None, Force::Any, everywhere) {
                let send = found.name_to_send.unwrap_or(&asked);
                let configured = table.entries().any(|e| e.name == send || e.upstream_model == send);
                prop_assert!(configured || asked.contains(send));
                prop_assert_ne!(found.name_to_send, Some(asked.as_str()));
                let known = found.known.map(|number| table.entries().nth(number as usize).unwrap());
                prop_assert!(known.is_none_or(|entry| entry.name == found.name));
            }
        }
    }
}
