//! Builds `[models]`, the names that upstreams declare, and the implicit groups.

use std::collections::{HashMap, HashSet};

use crate::base::units::format_count;
use crate::config::build::base_url::upstream_url;
use crate::config::build::check::{AllNames, AtText as _, each, filled, id};
use crate::config::build::group::implicit_group;
use crate::config::build::upstream::plain;
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::{RawConfig, RawModel};
use crate::config::reader::{At, Reader};
use crate::config::values::{UrlText, may_hold_secret};

/// Most warnings about the names of one list; the others are counted.
const WARNINGS_A_LIST_MAX: usize = 20;

/// The groups while implicit ones are added.
pub(crate) struct Sets<'c> {
    upstreams: &'c [Upstream],
    groups: &'c mut Vec<Group>,
    defaults: &'c GroupDefaults,
    /// The implicit groups by their members: a config may need thousands of sets.
    by_members: HashMap<Vec<UpstreamId>, GroupId>,
}

impl<'c> Sets<'c> {
    /// The sets that there are so far.
    pub(crate) fn new(
        upstreams: &'c [Upstream],
        groups: &'c mut Vec<Group>,
        defaults: &'c GroupDefaults,
    ) -> Self {
        let mut by_members = HashMap::new();
        for (index, group) in groups.iter().enumerate().filter(|(_, group)| group.implicit) {
            let members = group.members.iter().map(|member| member.upstream).collect();
            by_members.entry(members).or_insert_with(|| group_id(index));
        }
        Self { upstreams, groups, defaults, by_members }
    }

    /// The implicit group of exactly these upstreams, in this order.
    pub(crate) fn group_of(&mut self, members: &[UpstreamId]) -> GroupId {
        if let &[only] = members
            && let Some(upstream) = self.upstreams.get(usize::from(only.0))
        {
            return upstream.group;
        }
        if let Some(known) = self.by_members.get(members) {
            return *known;
        }
        self.groups.push(implicit_group(self.upstreams, members, self.defaults));
        let made = group_id(self.groups.len() - 1);
        self.by_members.insert(members.to_vec(), made);
        made
    }
}

fn group_id(index: usize) -> GroupId {
    GroupId(u16::try_from(index).unwrap_or(u16::MAX))
}

/// Models and implicit groups; gives every upstream its own group.
pub(crate) fn models(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    upstreams: &mut Vec<Upstream>,
    groups: &mut Vec<Group>,
    defaults: &GroupDefaults,
) -> Vec<Model> {
    let empty = Vec::new();
    let rows = raw.models.as_ref().map_or(&empty, |at| &at.value.0);
    // First where each leads, since a `backend` adds an upstream; then the groups of all
    // upstreams, one after the other; then the models themselves.
    let mut backends = Backends::new();
    let targets: Vec<_> = rows
        .iter()
        .map(|(name, row)| target(r, name, row, names, upstreams, &mut backends))
        .collect();
    for (index, upstream) in upstreams.iter_mut().enumerate() {
        upstream.group = GroupId(id(r, groups.len() + index, &Spot::default()));
    }
    for index in 0..upstreams.len() {
        let only = UpstreamId(u16::try_from(index).unwrap_or(u16::MAX));
        groups.push(implicit_group(upstreams, &[only], defaults));
    }
    let mut sets = Sets::new(upstreams, groups, defaults);
    let mut out: Vec<Model> = Vec::new();
    for ((name, row), target) in rows.iter().zip(targets) {
        let group = match target {
            Some(Target::Group(group)) => group,
            Some(Target::Upstreams(members)) => sets.group_of(&members),
            None => GroupId(0),
        };
        out.push(model(r, name, row, group));
    }
    check_names(r, rows, names);
    declared(raw, r, names, &mut sets, out)
}

/// The implicit upstreams by name and whether they speak TLS.
type Backends = HashMap<(String, bool), usize>;

/// Where a configured model leads, before the groups are complete.
enum Target {
    Group(GroupId),
    Upstreams(Vec<UpstreamId>),
}

fn target(
    r: &mut Reader<'_>,
    name: &At<String>,
    row: &RawModel,
    names: &mut AllNames,
    upstreams: &mut Vec<Upstream>,
    backends: &mut Backends,
) -> Option<Target> {
    let said = [&row.group, &row.upstream, &row.backend].map(filled);
    match said {
        [Some(at), None, None] => names.groups.find_one(r, at).map(|id| Target::Group(GroupId(id))),
        [None, Some(at), None] => {
            let ids = names.upstreams.find(r, at)?;
            Some(Target::Upstreams(ids.into_iter().map(UpstreamId).collect()))
        }
        [None, None, Some(at)] => {
            backend(r, at, upstreams, backends).map(|id| Target::Upstreams(vec![id]))
        }
        [None, None, None] => {
            let unread = |key| r.is_unread(&name.spot.path, key);
            if !["group", "upstream", "backend"].into_iter().any(unread) {
                r.draft.fault(&name.spot, "leads nowhere: give group, upstream or backend");
            }
            None
        }
        _ => {
            r.draft.fault(&name.spot, "group, upstream and backend exclude each other");
            None
        }
    }
}

/// The implicit upstream of `HOST:PORT` or a URL; the same one for the same text.
fn backend(
    r: &mut Reader<'_>,
    at: &At<String>,
    upstreams: &mut Vec<Upstream>,
    backends: &mut Backends,
) -> Option<UpstreamId> {
    let whole = at.value.contains("://") || at.value.starts_with("unix:");
    let text = if whole { at.value.clone() } else { format!("http://{}", at.value) };
    if may_hold_secret(&text) {
        r.draft.mask_url(at.spot.span.clone());
    }
    let url_at = At { value: UrlText(text), spot: at.spot.clone() };
    let url = upstream_url(r, &url_at, PathMode::Append)?;
    let name = match url.unix {
        true => url.place(),
        false => format!("{}:{}{}", url.host, url.port, url.base_path),
    };
    let key = (name, url.tls);
    let index = match backends.get(&key) {
        Some(index) => *index,
        None => {
            let (name, tls) = key.clone();
            let name = if tls { format!("https://{name}") } else { name };
            upstreams.push(plain(r, name, url));
            backends.insert(key, upstreams.len() - 1);
            upstreams.len() - 1
        }
    };
    Some(UpstreamId(id(r, index, &at.spot)))
}

fn model(r: &mut Reader<'_>, name: &At<String>, row: &RawModel, group: GroupId) -> Model {
    let (line, column) = r.draft.position(name.spot.span.start);
    Model {
        name: name.value.clone(),
        group,
        elsewhere: Vec::new(),
        description: row.description.text(),
        aliases: each(&row.aliases).iter().map(|at| at.value.clone()).collect(),
        upstream_model: filled(&row.upstream_model).map(|at| at.value.clone()),
        origin: ModelOrigin::Configured,
        place: FilePosition { path: name.spot.path.as_str().into(), line, column },
    }
}

/// Names and aliases stand for one model each, and can be reached.
fn check_names(r: &mut Reader<'_>, rows: &[(At<String>, RawModel)], names: &AllNames) {
    let mut seen: HashMap<&str, &Spot> = HashMap::new();
    // The names themselves come first, so that an alias is what clashes.
    let own = rows.iter().map(|(name, _)| name);
    let aliases = rows.iter().flat_map(|(_, row)| each(&row.aliases));
    for at in own.chain(aliases) {
        if at.value.is_empty() {
            r.draft.fault(&at.spot, "must not be empty");
            continue;
        }
        if let Some(first) = seen.get(at.value.as_str()) {
            let line = r.draft.line_of(first);
            let shown = r.draft.quote(&at.spot, &at.value);
            let message = format!("{shown} is already {} in line {line}", first.path);
            r.draft.fault(&at.spot, message);
            continue;
        }
        seen.insert(&at.value, &at.spot);
        if let Some((_, upstream)) = at.value.rsplit_once('@')
            && names.upstreams.has(upstream)
        {
            let message = format!("shadowed: \"@{upstream}\" at the end forces that upstream");
            r.draft.warn(&at.spot, message);
        }
    }
}

/// Adds the names that upstreams list, each leading to all that list it.
fn declared(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    sets: &mut Sets<'_>,
    mut models: Vec<Model>,
) -> Vec<Model> {
    let mut found: Vec<(&str, Vec<UpstreamId>, FilePosition)> = Vec::new();
    let mut known: HashMap<&str, usize> = HashMap::new();
    let upstreams = sets.upstreams;
    let shadows = Shadows::of(&models, sets.groups);
    for at in each(&raw.upstream) {
        let Some(list) = &at.value.models else { continue };
        let Some(name) = filled(&at.value.name) else { continue };
        let (line, column) = r.draft.position(list.spot.span.start);
        let place = FilePosition { path: list.spot.path.as_str().into(), line, column };
        let mut shadowed = 0;
        for id in names.upstreams.ids(&name.value).map(UpstreamId) {
            let Some(upstream) = upstreams.get(usize::from(id.0)) else { continue };
            let ModelsFrom::List(listed) = &upstream.models else { continue };
            if !listed.is_empty() {
                names.upstreams.mark_used(id.0);
            }
            for model in listed {
                let at = *known.entry(model).or_insert_with(|| {
                    found.push((model, Vec::new(), place.clone()));
                    found.len() - 1
                });
                found[at].1.push(id);
                if let Some(message) = shadows.warning(model, id) {
                    shadowed += 1;
                    if shadowed <= WARNINGS_A_LIST_MAX {
                        r.draft.warn(&list.spot, message);
                    }
                }
            }
        }
        if let Some(more @ 1..) = usize::checked_sub(shadowed, WARNINGS_A_LIST_MAX) {
            let message = format!("{} more of its models are shadowed", format_count(more));
            r.draft.warn(&list.spot, message);
        }
    }
    let taken = taken_names(&models);
    let mut declared = Vec::new();
    for (name, members, place) in found.into_iter().filter(|(name, ..)| !taken.contains(*name)) {
        let group = sets.group_of(&members);
        declared.push(listed_model(name.to_owned(), group, ModelOrigin::Declared, place));
    }
    drop(taken);
    models.extend(declared);
    models
}

/// What may hide a listed name: the configured models by name and alias, and who is in which group.
struct Shadows<'m> {
    by_name: HashMap<&'m str, &'m Model>,
    members: HashSet<(GroupId, UpstreamId)>,
    groups: usize,
}

impl<'m> Shadows<'m> {
    fn of(models: &'m [Model], groups: &[Group]) -> Self {
        let mut by_name = HashMap::new();
        for model in models {
            for name in std::iter::once(&model.name).chain(&model.aliases) {
                by_name.entry(name.as_str()).or_insert(model);
            }
        }
        let needed: HashSet<GroupId> = models.iter().map(|model| model.group).collect();
        let mut members = HashSet::new();
        for id in &needed {
            let group = groups.get(usize::from(id.0)).map_or(&[][..], |group| &group.members);
            members.extend(group.iter().map(|member| (*id, member.upstream)));
        }
        Self { by_name, members, groups: groups.len() }
    }

    /// What to say when a name that an upstream lists never leads there.
    fn warning(&self, name: &str, upstream: UpstreamId) -> Option<String> {
        let other = self.by_name.get(name)?;
        let is_group = usize::from(other.group.0) < self.groups;
        let hides = is_group && !self.members.contains(&(other.group, upstream));
        let place = &other.place;
        hides
            .then(|| format!("model {name:?} is shadowed by {} in line {}", place.path, place.line))
    }
}

/// The names and aliases in use.
pub(crate) fn taken_names(models: &[Model]) -> HashSet<&str> {
    models.iter().flat_map(|m| std::iter::once(&m.name).chain(&m.aliases)).map(|n| &**n).collect()
}

/// A model of which nothing but the name is known.
pub(crate) fn listed_model(
    name: String,
    group: GroupId,
    origin: ModelOrigin,
    place: FilePosition,
) -> Model {
    Model {
        name,
        group,
        elsewhere: Vec::new(),
        description: String::new(),
        aliases: Vec::new(),
        upstream_model: None,
        origin,
        place,
    }
}
