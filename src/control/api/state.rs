//! What the handlers of `/api/v1` share, and how each of them shows and edits the config.
//!
//! An edit is a function from the documents in force to others, run when no other edit or reload is
//! under way: what it was decided upon is what it changes, so no update is lost. It is answered when
//! all cores serve by it, and has been kept if edits are kept.

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, header};
use tokio::time::{Instant, sleep};
use toml::Table;

use super::super::documents::Snapshot;
use super::super::refusal::Refusal;
use super::super::shows::Shows;
use crate::config::{EntryId, Section, Sources};

/// How long new servers are waited for when an edit takes nothing away from anybody.
pub const ADD_WAIT: Duration = Duration::from_millis(80);
/// How long new servers are waited for when they take the place of others; a reload waits no longer.
pub const REPLACE_WAIT: Duration = Duration::from_secs(5);
/// How long the cores may take to serve by an edit before it is answered all the same.
const IN_FORCE_MAX: Duration = Duration::from_secs(5);
/// From one look at the cores to the next.
const IN_FORCE_POLL: Duration = Duration::from_millis(1);

/// What the handlers share.
pub struct Api {
    /// The OpenAPI document of all routes.
    pub document: serde_json::Value,
    /// What is shown, and what carries edits out.
    pub shows: Arc<Shows>,
    /// Whether who asks has shown a token: without one, no edit may read files and variables.
    pub has_token: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Api {
    /// The documents in force.
    ///
    /// Errors: this process has none.
    pub fn now(&self) -> Result<Arc<Snapshot>, Refusal> {
        let none = || Refusal::unavailable("the config of this process cannot be shown or edited");
        self.shows.documents.now().ok_or_else(none)
    }

    /// Changes the documents in force, if they are those that `If-Match` names.
    ///
    /// Shape: returns the documents in force afterwards.
    /// Errors: why nothing has changed.
    pub async fn edit(
        &self,
        headers: &HeaderMap,
        wait: Duration,
        change: impl FnOnce(&Snapshot) -> Result<Sources, Refusal> + Send + 'static,
    ) -> Result<Arc<Snapshot>, Refusal> {
        let wanted = versions(headers, header::IF_MATCH);
        let change = move |now: &Snapshot| {
            let matches = wanted.as_ref().is_none_or(|wanted| names(wanted, &now.version));
            match matches {
                true => change(now),
                false => Err(Refusal::precondition_failed(format!(
                    "the config is at version \"{}\" by now: read it again and decide anew",
                    now.version
                ))),
            }
        };
        let edited = self.shows.reloader.edit(Box::new(change), wait).await?;
        let by = Instant::now() + IN_FORCE_MAX;
        while !(self.shows.in_force)() && Instant::now() < by {
            sleep(IN_FORCE_POLL).await;
        }
        edited.snapshot.map_or_else(|| self.now(), Ok)
    }

    /// Adds an entry.
    ///
    /// Shape: `make` says what it holds; returns the documents in force afterwards.
    /// Errors: there is one of that name, or why nothing has changed.
    pub async fn add(
        &self,
        headers: &HeaderMap,
        id: EntryId,
        make: impl FnOnce(&Snapshot) -> Result<Table, Refusal> + Send + 'static,
    ) -> Result<Arc<Snapshot>, Refusal> {
        let change = move |now: &Snapshot| {
            if now.sources.entry(&id).is_some() {
                let what = word(id.section);
                return Err(Refusal::conflict(format!("{what} {:?} already exists", id.name)));
            }
            let entry = make(now)?;
            Ok(edited(now, id, Some(entry)))
        };
        self.edit(headers, ADD_WAIT, change).await
    }

    /// Changes an entry.
    ///
    /// Shape: `make` says what it holds from now on, by what it held; as `edit` beside that.
    /// Errors: there is none of that name, or why nothing has changed.
    pub async fn change(
        &self,
        headers: &HeaderMap,
        wait: Duration,
        id: EntryId,
        make: impl FnOnce(&Snapshot, &Table) -> Result<Table, Refusal> + Send + 'static,
    ) -> Result<Arc<Snapshot>, Refusal> {
        let change = move |now: &Snapshot| {
            let entry = make(now, find(&now.sources, &id)?)?;
            Ok(edited(now, id, Some(entry)))
        };
        self.edit(headers, wait, change).await
    }

    /// Removes an entry that nothing names.
    ///
    /// Shape: `users` finds what names it; returns the documents in force afterwards.
    /// Errors: there is none of that name, what names it, or why nothing has changed.
    pub async fn remove(
        &self,
        headers: &HeaderMap,
        id: EntryId,
        users: impl FnOnce(&Sources, &str) -> Vec<String> + Send + 'static,
    ) -> Result<Arc<Snapshot>, Refusal> {
        let change = move |now: &Snapshot| {
            find(&now.sources, &id)?;
            check_unused(&id, &users(&now.sources, &id.name))?;
            Ok(edited(now, id, None))
        };
        self.edit(headers, REPLACE_WAIT, change).await
    }
}

/// The documents with another entry, or without it.
fn edited(now: &Snapshot, id: EntryId, entry: Option<Table>) -> Sources {
    let mut sources = now.sources.clone();
    sources.edit(id, entry);
    sources
}

/// The versions that a field names; `None` without it.
pub fn versions(headers: &HeaderMap, name: header::HeaderName) -> Option<Vec<String>> {
    let mut fields = headers.get_all(name).iter().peekable();
    fields.peek()?;
    let of = |value: &axum::http::HeaderValue| {
        let text = value.to_str().unwrap_or_default().to_owned();
        text.split(',').map(|one| one.trim().to_owned()).collect::<Vec<_>>()
    };
    Some(fields.flat_map(of).collect())
}

/// Whether one of them is this one.
pub fn names(versions: &[String], version: &str) -> bool {
    let quoted = format!("\"{version}\"");
    versions.iter().any(|one| one == "*" || *one == quoted)
}

/// The entries that name an upstream, by kind and name: what stands in the way of its removal.
pub fn users_of_upstream(sources: &Sources, upstream: &str) -> Vec<String> {
    let mut users = Vec::new();
    for (name, group) in sources.entries(Section::Group) {
        let members = group.get("members").and_then(toml::Value::as_array);
        let is_it = |member: &toml::Value| {
            let inside = member.as_table().and_then(|table| table.get("upstream"));
            inside.unwrap_or(member).as_str() == Some(upstream)
        };
        if members.is_some_and(|members| members.iter().any(is_it)) {
            users.push(format!("group {name}"));
        }
    }
    for (name, model) in sources.entries(Section::Model) {
        if model.get("upstream").and_then(toml::Value::as_str) == Some(upstream) {
            users.push(format!("model {name}"));
        }
    }
    users
}

/// The entries that name a group.
pub fn users_of_group(sources: &Sources, group: &str) -> Vec<String> {
    let is_it = |value: Option<&toml::Value>| value.and_then(toml::Value::as_str) == Some(group);
    let mut users = Vec::new();
    for (name, listener) in sources.entries(Section::Listener) {
        let routes = listener.get("route").and_then(toml::Value::as_array).into_iter().flatten();
        let by_route = |route: &toml::Value| is_it(route.get("group"));
        if is_it(listener.get("default_group")) || routes.into_iter().any(by_route) {
            users.push(format!("forward {name}"));
        }
    }
    for (name, other) in sources.entries(Section::Group) {
        let fallback = other.get("fallback").and_then(toml::Value::as_array).into_iter().flatten();
        if fallback.into_iter().any(|one| is_it(Some(one))) {
            users.push(format!("group {name}"));
        }
    }
    for (name, model) in sources.entries(Section::Model) {
        if is_it(model.get("group")) {
            users.push(format!("model {name}"));
        }
    }
    users
}

/// The forwards with a route that names a key.
pub fn users_of_key(sources: &Sources, key: &str) -> Vec<String> {
    let mut users = Vec::new();
    for (name, listener) in sources.entries(Section::Listener) {
        let routes = listener.get("route").and_then(toml::Value::as_array).into_iter().flatten();
        let names_it = |route: &toml::Value| {
            let keys = route.get("keys").and_then(toml::Value::as_array);
            keys.is_some_and(|keys| keys.iter().any(|one| one.as_str() == Some(key)))
        };
        if routes.into_iter().any(names_it) {
            users.push(format!("forward {name}"));
        }
    }
    users
}

/// The refusal to remove what others name.
fn check_unused(id: &EntryId, users: &[String]) -> Result<(), Refusal> {
    match users {
        [] => Ok(()),
        _ => Err(Refusal::conflict(format!(
            "{} {} is in use by {}",
            id.section.word(),
            id.name,
            users.join(", ")
        ))),
    }
}

/// The entry of that name.
///
/// Errors: there is none.
pub fn find<'s>(sources: &'s Sources, id: &EntryId) -> Result<&'s Table, Refusal> {
    let none = || Refusal::not_found(format!("{} {:?} not found", word(id.section), id.name));
    sources.entry(id).ok_or_else(none)
}

/// What an entry is called here.
fn word(section: Section) -> &'static str {
    match section {
        Section::Listener => "forward",
        Section::Group => "upstream group",
        other => other.word(),
    }
}
