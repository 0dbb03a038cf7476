//! From what was said to what is meant: `RawConfig` → `Config`.
//!
//! The one idea: every section is built with defaults in place of what is wrong,
//! so that the next one can be checked too; the result is thrown away if anything
//! at all was a fault. Names are declared first and resolved to indexes after, in
//! the order upstreams, groups, models, listeners and keys.
//!
//! Implicit groups stand behind the declared ones: first one for each upstream,
//! in order, then one for each further set of upstreams that a model needs.

mod auth;
mod base_url;
mod bind;
pub(crate) mod check;
pub(crate) mod date;
pub(crate) mod group;
mod headers;
mod health;
mod key;
mod listener;
pub(crate) mod models;
mod process;
mod rights;
mod tls;
mod tracing;
pub(crate) mod upstream;
pub(crate) mod url;

use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::RawConfig;
use crate::config::reader::{At, Reader};

use check::{AllNames, Names, each};

/// Builds the config; it is good only if the reader's draft has no errors after it.
pub(crate) fn build(raw: &RawConfig, r: &mut Reader<'_>) -> Config {
    let mut names = declare(raw, r);
    let process = process::process(raw, r);
    let limits = process::limits(raw, r);
    let timeouts = process::timeouts(raw, r);
    let upstream_spots = upstream::upstreams(raw, r, &mut names);
    let (mut upstreams, spots): (Vec<_>, Vec<_>) = upstream_spots.into_iter().unzip();
    let group_defaults = group::group_defaults(raw, r, &timeouts.upstream);
    let mut groups = group::groups(raw, r, &mut names, &group_defaults);
    let models = models::models(raw, r, &mut names, &mut upstreams, &mut groups, &group_defaults);
    let listeners = listener::listeners(raw, r, &mut names, &timeouts.client);
    let keys = key::keys(raw, r, &mut names);
    rights::warn_of_rights(raw, r, &listeners, &keys);
    let admin = process::admin(raw, r);
    process::check_persist(raw, r);
    bind::check_binds(raw, r, admin.as_ref());
    warn_unused(raw, r, &names, &upstreams, &spots);
    Config {
        process,
        log: process::log(raw, r),
        limits,
        timeouts,
        listeners,
        keys,
        ratelimit_store: process::ratelimit_store(raw, r),
        upstreams,
        group_defaults,
        groups,
        models,
        shadowed: Vec::new(),
        sets: Vec::new(),
        discovery: process::discovery(raw, r),
        admin,
        tracing: tracing::tracing(raw, r),
    }
}

/// The file that keeps edits, where there is one.
pub(crate) fn kept_edits(raw: &RawConfig, r: &mut Reader<'_>) -> Option<std::path::PathBuf> {
    let (process, admin) = (process::process(raw, r), process::admin(raw, r));
    overlay_place(&process, admin.as_ref())
}

/// Declares what can be referred to before it is built.
fn declare(raw: &RawConfig, r: &mut Reader<'_>) -> AllNames {
    let mut names = AllNames {
        listeners: Names::new("listener", false),
        keys: Names::new("key", false),
        upstreams: Names::new("upstream", true),
        groups: Names::new("group", true),
    };
    let rows = each(&raw.listener).iter().map(|at| (&at.value.name, &at.spot));
    declare_each(r, &mut names.listeners, rows);
    let rows = each(&raw.key).iter().map(|at| (&at.value.name, &at.spot));
    declare_each(r, &mut names.keys, rows);
    let rows = each(&raw.group).iter().map(|at| (&at.value.name, &at.spot));
    declare_each(r, &mut names.groups, rows);
    names
}

fn declare_each<'r>(
    r: &mut Reader<'_>,
    names: &mut Names,
    rows: impl Iterator<Item = (&'r Option<At<String>>, &'r Spot)>,
) {
    for (index, (name, parent)) in rows.enumerate() {
        if let Some(name) = check::required(r, name, parent, "name") {
            let id = check::id(r, index, parent);
            names.declare(r, &name.value, &name.spot, vec![id]);
        }
    }
}

/// Warns of groups and upstreams that no request can reach.
fn warn_unused(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &AllNames,
    upstreams: &[Upstream],
    spots: &[Spot],
) {
    for (index, group) in each(&raw.group).iter().enumerate() {
        let id = u16::try_from(index).unwrap_or(u16::MAX);
        if !names.groups.is_used(id) {
            r.draft
                .warn(&group.spot, "unused: no model, route, default_group or fallback names it");
        }
    }
    for (index, (upstream, spot)) in upstreams.iter().zip(spots).enumerate() {
        let id = u16::try_from(index).unwrap_or(u16::MAX);
        let lists_none = upstream.models == ModelsFrom::List(Vec::new());
        if lists_none && !names.upstreams.is_used(id) {
            r.draft.warn(spot, "unused: it lists no models, and no group or model names it");
        }
    }
}
