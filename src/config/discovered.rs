//! Configs that no file says: `serve --backend URL…`, and what servers report.

use std::collections::HashMap;

use crate::config::build::models::{Sets, listed_model, taken_names};
use crate::config::fault::Report;
use crate::config::model::*;
use crate::config::reader::Outside;
use crate::config::subst::escape;
use crate::config::{load, toml_string};

impl Config {
    /// The config with the names that upstreams reported, in place of those reported before.
    ///
    /// Shape: each id of `found` once, in declaration order; a name leads to all upstreams
    /// that report it. Configured and declared names win. Names of upstreams that do not
    /// discover are left out. With `discovery.prefix` a name is `upstream:model`.
    pub fn with_discovered(&self, found: &[(UpstreamId, Vec<String>)]) -> Config {
        let mut config = self.clone();
        config.models.retain(|m| m.origin != ModelOrigin::Discovered);
        // In the order in which they were first reported.
        let mut reported: Vec<(String, Option<String>, Vec<UpstreamId>)> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        for (id, names) in found {
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
                    reported.push((name.clone(), sent, Vec::new()));
                    reported.len() - 1
                });
                // One upstream's names come together: it is the last, if it is here at all.
                let members = &mut reported[at].2;
                if members.last() != Some(id) {
                    members.push(*id);
                }
            }
        }
        let mut groups = std::mem::take(&mut config.groups);
        let timeouts = self.timeouts.upstream;
        let mut sets = Sets::new(&self.upstreams, &mut groups, &timeouts);
        let taken = taken_names(&config.models);
        let mut models = Vec::new();
        for (name, upstream_model, members) in reported {
            if !taken.contains(name.as_str()) {
                let group = sets.group_of(&members);
                let place = Place::default();
                let model = listed_model(name, group, ModelOrigin::Discovered, place);
                models.push(Model { upstream_model, ..model });
            }
        }
        drop(taken);
        config.models.extend(models);
        config.groups = groups;
        config
    }

    /// The config of `serve --backend URL…`: one open listener on 127.0.0.1:4000, one
    /// upstream for each URL, models by name. A single backend also gets what has no name.
    ///
    /// Shape: `models[i]` are the names that `urls[i]` reported; a missing entry means none.
    /// Errors: a URL that is none, or one given twice.
    pub fn for_backends(urls: &[&str], models: &[Vec<String>]) -> Result<Config, Report> {
        let text = backends_toml(urls);
        let config = load("command line", &text, &Outside::NOTHING)?.config;
        let ids = (0..=u16::MAX).map(UpstreamId);
        let found: Vec<_> = ids.zip(models.iter().cloned()).collect();
        Ok(config.with_discovered(&found))
    }
}

/// The file that would say the same.
fn backends_toml(urls: &[&str]) -> String {
    let mut text = String::new();
    let only = if urls.len() == 1 { "default_group = \"backends\"\n" } else { "" };
    text.push_str("[[listener]]\nname = \"main\"\nbind = \"127.0.0.1:4000\"\nauth = \"none\"\n");
    text.push_str(only);
    let mut members = Vec::new();
    for (index, url) in urls.iter().enumerate() {
        let name = format!("backend{}", index + 1);
        let url = match url.contains("://") || url.starts_with("unix:") {
            true => escape(url),
            false => escape(&format!("http://{url}")),
        };
        text.push_str(&format!("[[upstream]]\nname = \"{name}\"\nurl = {}\n", toml_string(&url)));
        members.push(format!("\"{name}\""));
    }
    if !only.is_empty() {
        text.push_str(&format!(
            "[[group]]\nname = \"backends\"\nmembers = [{}]\n",
            members.join(", ")
        ));
    }
    text
}
