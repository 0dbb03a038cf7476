//! Configs that no file says: `serve --backend URL…`, and what servers report.

use crate::config::build::models::{Sets, is_taken, listed_model};
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
        let mut by_name: Vec<(String, Option<String>, Vec<UpstreamId>)> = Vec::new();
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
                match by_name.iter_mut().find(|(known, ..)| *known == name) {
                    Some((_, _, members)) if !members.contains(id) => members.push(*id),
                    Some(_) => {}
                    None => by_name.push((name, sent, vec![*id])),
                }
            }
        }
        let mut groups = std::mem::take(&mut config.groups);
        let timeouts = self.timeouts.upstream;
        let mut sets =
            Sets { upstreams: &self.upstreams, groups: &mut groups, timeouts: &timeouts };
        for (name, upstream_model, members) in by_name {
            if !is_taken(&config.models, &name) {
                let group = sets.group_of(&members);
                let place = Place::default();
                let model = listed_model(name, group, ModelOrigin::Discovered, place);
                config.models.push(Model { upstream_model, ..model });
            }
        }
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
