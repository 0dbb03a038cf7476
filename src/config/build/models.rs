//! Builds `[models]`, the names that upstreams declare, and the implicit groups.

use std::collections::HashMap;

use crate::config::build::base_url::upstream_url;
use crate::config::build::check::{AtText as _, filled, id};
use crate::config::build::upstream::plain;
use crate::config::build::{AllNames, each, implicit_group};
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::{RawConfig, RawModel};
use crate::config::reader::{At, Reader};
use crate::config::values::{UrlText, may_hold_secret};

/// The groups while implicit ones are added.
pub(crate) struct Sets<'c> {
    pub(crate) upstreams: &'c [Upstream],
    pub(crate) groups: &'c mut Vec<Group>,
    pub(crate) timeouts: &'c UpstreamTimeouts,
}

impl Sets<'_> {
    /// The implicit group of exactly these upstreams, in this order.
    pub(crate) fn group_of(&mut self, members: &[UpstreamId]) -> GroupId {
        if let &[only] = members
            && let Some(upstream) = self.upstreams.get(usize::from(only.0))
        {
            return upstream.group;
        }
        let same = |g: &Group| g.implicit && g.members.iter().map(|m| &m.upstream).eq(members);
        let at = self.groups.iter().position(same).unwrap_or_else(|| {
            self.groups.push(implicit_group(self.upstreams, members, self.timeouts));
            self.groups.len() - 1
        });
        GroupId(u16::try_from(at).unwrap_or(u16::MAX))
    }
}

/// Models and implicit groups; gives every upstream its own group.
pub(crate) fn models(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &mut AllNames,
    upstreams: &mut Vec<Upstream>,
    groups: &mut Vec<Group>,
    timeouts: &UpstreamTimeouts,
) -> Vec<Model> {
    let empty = Vec::new();
    let rows = raw.models.as_ref().map_or(&empty, |at| &at.value.0);
    // First where each leads, since a `backend` adds an upstream; then the groups of all
    // upstreams, one after the other; then the models themselves.
    let targets: Vec<_> =
        rows.iter().map(|(name, row)| target(r, name, row, names, upstreams)).collect();
    for (index, upstream) in upstreams.iter_mut().enumerate() {
        upstream.group = GroupId(id(r, groups.len() + index, &Spot::default()));
    }
    for index in 0..upstreams.len() {
        let only = UpstreamId(u16::try_from(index).unwrap_or(u16::MAX));
        groups.push(implicit_group(upstreams, &[only], timeouts));
    }
    let mut sets = Sets { upstreams, groups, timeouts };
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
) -> Option<Target> {
    let said = [&row.group, &row.upstream, &row.backend].map(filled);
    match said {
        [Some(at), None, None] => names.groups.find_one(r, at).map(|id| Target::Group(GroupId(id))),
        [None, Some(at), None] => {
            let ids = names.upstreams.find(r, at)?;
            Some(Target::Upstreams(ids.into_iter().map(UpstreamId).collect()))
        }
        [None, None, Some(at)] => backend(r, at, upstreams).map(|id| Target::Upstreams(vec![id])),
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
) -> Option<UpstreamId> {
    let whole = at.value.contains("://") || at.value.starts_with("unix:");
    let text = if whole { at.value.clone() } else { format!("http://{}", at.value) };
    if may_hold_secret(&text) {
        r.draft.mask(at.spot.span.clone());
    }
    let url_at = At { value: UrlText(text), spot: at.spot.clone() };
    let url = upstream_url(r, &url_at, PathMode::Append)?;
    let name = match url.unix {
        true => url.original.clone(),
        false => format!("{}:{}{}", url.host, url.port, url.base_path),
    };
    let same = |u: &Upstream| u.implicit && u.name == name && u.url.tls == url.tls;
    let index = match upstreams.iter().position(same) {
        Some(index) => index,
        None => {
            let name = if url.tls { format!("https://{name}") } else { name };
            upstreams.push(plain(r, name, url));
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
        description: row.description.text(),
        aliases: each(&row.aliases).iter().map(|at| at.value.clone()).collect(),
        upstream_model: filled(&row.upstream_model).map(|at| at.value.clone()),
        origin: ModelOrigin::Configured,
        place: Place { path: name.spot.path.as_str().into(), line, column },
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
    let mut found: Vec<(String, Vec<UpstreamId>, Place)> = Vec::new();
    for at in each(&raw.upstream) {
        let Some(list) = &at.value.models else { continue };
        let Some(name) = filled(&at.value.name) else { continue };
        let ids = members_named(sets.upstreams, &name.value, at.value.ports.is_some());
        let (line, column) = r.draft.position(list.spot.span.start);
        let place = Place { path: list.spot.path.as_str().into(), line, column };
        for id in &ids {
            let Some(upstream) = sets.upstreams.get(usize::from(id.0)) else { continue };
            let ModelsFrom::List(listed) = &upstream.models else { continue };
            for model in listed {
                names.upstreams.mark_used(id.0);
                match found.iter_mut().find(|(known, ..)| known == model) {
                    Some((_, members, _)) => members.push(*id),
                    None => found.push((model.clone(), vec![*id], place.clone())),
                }
                warn_of_shadow(r, &list.spot, model, *id, &models, sets.groups);
            }
        }
    }
    for (name, members, place) in found {
        if !is_taken(&models, &name) {
            let group = sets.group_of(&members);
            models.push(listed_model(name, group, ModelOrigin::Declared, place));
        }
    }
    models
}

/// The upstreams of one entry, of which `ports` may have made several.
fn members_named(upstreams: &[Upstream], name: &str, expanded: bool) -> Vec<UpstreamId> {
    let fits = |u: &Upstream| match expanded {
        false => u.name == name,
        true => u.name == format!("{name}-{}", u.url.port),
    };
    let ids = upstreams.iter().enumerate().filter(|(_, u)| !u.implicit && fits(u));
    ids.filter_map(|(index, _)| u16::try_from(index).ok()).map(UpstreamId).collect()
}

fn warn_of_shadow(
    r: &mut Reader<'_>,
    spot: &Spot,
    name: &str,
    upstream: UpstreamId,
    models: &[Model],
    groups: &[Group],
) {
    let Some(other) = models.iter().find(|m| m.name == name || m.aliases.iter().any(|a| a == name))
    else {
        return;
    };
    let group = groups.get(usize::from(other.group.0));
    if group.is_some_and(|g| g.members.iter().all(|m| m.upstream != upstream)) {
        let place = &other.place;
        let message =
            format!("model {name:?} is shadowed by {} in line {}", place.path, place.line);
        r.draft.warn(spot, message);
    }
}

/// Whether a name or alias is in use.
pub(crate) fn is_taken(models: &[Model], name: &str) -> bool {
    models.iter().any(|m| m.name == name || m.aliases.iter().any(|alias| alias == name))
}

/// A model of which nothing but the name is known.
pub(crate) fn listed_model(
    name: String,
    group: GroupId,
    origin: ModelOrigin,
    place: Place,
) -> Model {
    let (description, aliases) = (String::new(), Vec::new());
    Model { name, group, description, aliases, upstream_model: None, origin, place }
}
