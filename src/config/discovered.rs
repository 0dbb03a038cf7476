//! Configs that no file says: `serve --backend URL…`, and what servers report.

use std::collections::HashMap;

use crate::config::build::models::{Sets, listed_model, taken_names};
use crate::config::model::*;
use crate::config::sources::Sources;
use crate::config::subst::escape;
use crate::config::toml_string;

impl Config {
    /// The config with the names that upstreams reported, in place of those reported before.
    ///
    /// Shape: each id of `found` once, in declaration order; a name leads to all upstreams
    /// that report it. Configured and declared names win; a declared one where its servers are
    /// within reach. Names of upstreams that do not discover are left out. With
    /// `discovery.prefix` a name is `upstream:model`.
    /// Upstreams in `away` reported theirs before they went and serve nobody until they are
    /// back: a name that nobody else reported leads to them, another one for whoever does not
    /// reach the others (`Model::elsewhere`).
    pub fn with_discovered(
        &self,
        found: &[(UpstreamId, Vec<String>)],
        away: &[(UpstreamId, Vec<String>)],
    ) -> Config {
        let mut config = self.clone();
        config.models.retain(|m| m.origin != ModelOrigin::Discovered);
        // In the order in which they were first reported.
        let mut reported: Vec<Reported> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        // Names before this one are those of living upstreams.
        let mut living = usize::MAX;
        let all = found.iter().map(|one| (one, false)).chain(away.iter().map(|one| (one, true)));
        for ((id, names), is_away) in all {
            if is_away {
                living = living.min(reported.len());
            }
            let Some(upstream) = self.upstreams.get(usize::from(id.0)) else { continue };
            if upstream.models != ModelsFrom::Discover {
                continue;
            }
            for name in names.iter().filter(|name| !name.is_empty()) {
                let (name, sent) = match self.discovery.prefix {
                    true => (format!("{}:{name}", upstream.name), Some(name.clone())),
                    false => (name.clone(), None),
                };
                let at = *known.entry(name).or_insert_with_key(|name| {
                    reported.push(Reported { name: name.clone(), sent, ..Reported::default() });
                    reported.len() - 1
                });
                let one = &mut reported[at];
                let members = if is_away && at < living { &mut one.away } else { &mut one.members };
                // One upstream's names come together: it is the last, if it is here at all.
                if members.last() != Some(id) {
                    members.push(*id);
                }
            }
        }
        let mut groups = std::mem::take(&mut config.groups);
        let mut sets = Sets::new(&self.upstreams, &mut groups, &self.group_defaults);
        let taken = taken_names(&config.models);
        let (mut models, mut shadowed) = (Vec::new(), Vec::new());
        for Reported { name, sent: upstream_model, members, away } in reported {
            let is_taken = taken.contains(name.as_str());
            let group = sets.group_of(&members);
            let elsewhere = match away.is_empty() {
                true => Vec::new(),
                false => vec![sets.group_of(&away)],
            };
            let model = listed_model(name, group, ModelOrigin::Discovered, FilePosition::default());
            let list = if is_taken { &mut shadowed } else { &mut models };
            list.push(Model { upstream_model, elsewhere, ..model });
        }
        drop(taken);
        config.models.extend(models);
        if !self.discovery.prefix {
            lead_elsewhere(&mut config.models, &shadowed);
        }
        config.shadowed = shadowed;
        config.groups = groups;
        config
    }
}

/// Leads whoever does not reach those that declare a name to those that report it.
fn lead_elsewhere(models: &mut [Model], reported: &[Model]) {
    let by_name: HashMap<&str, &Model> = reported.iter().map(|m| (m.name.as_str(), m)).collect();
    for model in models.iter_mut().filter(|m| m.origin == ModelOrigin::Declared) {
        let others = by_name.get(model.name.as_str());
        model.elsewhere = others.map(|other| other.groups().collect()).unwrap_or_default();
    }
}

/// A name that upstreams reported.
#[derive(Default)]
struct Reported {
    /// As clients say it.
    name: String,
    /// As the upstreams do, where that differs.
    sent: Option<String>,
    /// Who reported it: those who are not away, if there are any.
    members: Vec<UpstreamId>,
    /// Of those who are away the ones that reported it beside them.
    away: Vec<UpstreamId>,
}

/// What `serve --backend URL…` says in place of a file.
#[derive(Clone, Copy, Debug, Default)]
pub struct WithoutFile<'a> {
    /// `URL[,key=KEY]`: servers, and the credential each is sent.
    pub backends: &'a [String],
    /// Addresses to listen on; none = 127.0.0.1:4000.
    pub listen: &'a [String],
    /// Keys of clients; none = everyone may come in.
    pub keys: &'a [String],
    /// Address of the operator's interface, if there is to be one.
    pub admin: Option<&'a str>,
}

/// Where it listens when the command line does not say.
const LISTEN: &str = "127.0.0.1:4000";

impl WithoutFile<'_> {
    /// The config of a command line that says it all.
    #[must_use]
    pub fn sources(&self) -> Sources {
        Sources::new("command line".to_owned(), self.as_toml())
    }

    /// The file that would say the same.
    ///
    /// Shape: keys may be `file:/path` and hold `${ENV}`, as in a file; URLs are taken as they
    /// are.
    fn as_toml(&self) -> String {
        let listen: Vec<String> = match self.listen {
            [] => vec![toml_string(LISTEN)],
            all => all.iter().map(|one| toml_string(one)).collect(),
        };
        let auth = if self.keys.is_empty() { "none" } else { "keys" };
        let mut text = format!(
            "[[listener]]\nname = \"main\"\nbind = [{}]\nauth = \"{auth}\"\n",
            listen.join(", ")
        );
        if self.backends.len() == 1 {
            text.push_str("default_group = \"backends\"\n");
        }
        text.push_str(&backends_toml(self.backends));
        for (index, key) in self.keys.iter().enumerate() {
            let (name, key) = (index + 1, toml_string(key));
            text.push_str(&format!("[[key]]\nname = \"key{name}\"\nkey = {key}\n"));
        }
        if let Some(admin) = self.admin {
            text.push_str(&format!("[admin]\nbind = {}\n", toml_string(admin)));
        }
        text
    }
}

fn backends_toml(backends: &[String]) -> String {
    let mut text = String::new();
    let mut members = Vec::new();
    for (index, backend) in backends.iter().enumerate() {
        let name = format!("backend{}", index + 1);
        let (url, key) = match backend.split_once(",key=") {
            Some((url, key)) => (url, Some(key)),
            None => (backend.as_str(), None),
        };
        let url = match url.contains("://") || url.starts_with("unix:") {
            true => escape(url),
            false => escape(&format!("http://{url}")),
        };
        text.push_str(&format!("[[upstream]]\nname = \"{name}\"\nurl = {}\n", toml_string(&url)));
        if let Some(key) = key {
            let key = toml_string(key);
            text.push_str(&format!("auth = {{ type = \"bearer\", token = {key} }}\n"));
        }
        members.push(format!("\"{name}\""));
    }
    if backends.len() == 1 {
        text.push_str(&format!(
            "[[group]]\nname = \"backends\"\nmembers = [{}]\n",
            members.join(", ")
        ));
    }
    text
}
