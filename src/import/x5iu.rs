//! x5iu/llm-proxy's YAML: hosts behind TLS, and the providers that share each of them by weight.

use super::draft::{Draft, Names, Table, quoted, quoted_list, seconds};
use super::source::Node;

/// One host and what stands behind it.
struct Host<'a> {
    host: &'a str,
    group: String,
    members: Vec<(String, f64)>,
    keys: Vec<String>,
}

/// Writes what the file says.
pub fn import(root: &Node, draft: &mut Draft) {
    let mut keys = Keys::default();
    let all = texts(root.get("auth_keys"));
    let common: Vec<_> = all.iter().map(|secret| keys.name_of(secret)).collect();
    let interval = root.number_of("health_check_interval").unwrap_or(60.0).clamp(1.0, 3600.0);
    let mut names = Names::default();
    let mut hosts: Vec<Host<'_>> = Vec::new();
    for provider in root.get("providers").map(Node::items).unwrap_or_default() {
        let Some(host) = provider.text_of("host") else { continue };
        let name = names.give(host);
        let weight = provider.number_of("weight").unwrap_or(1.0);
        draft.upstreams.push(upstream(provider, &name, interval));
        let own = texts(provider.get("auth_keys"));
        let own: Vec<_> = own.iter().map(|secret| keys.name_of(secret)).collect();
        let known = hosts.iter_mut().find(|known| known.host == host);
        match known {
            Some(known) => {
                known.members.push((name, weight));
                known.keys.extend(own);
            }
            None => {
                let keys = common.iter().cloned().chain(own).collect();
                hosts.push(Host { host, group: name.clone(), members: vec![(name, weight)], keys });
            }
        }
    }
    let mut listener = Table::new("[[listener]]");
    listener.text("name", "main").text("bind", "0.0.0.0:443");
    if let (Some(cert), Some(key)) = (root.text_of("cert_file"), root.text_of("private_key_file")) {
        listener.raw("tls", &format!("{{ cert = {}, key = {} }}", quoted(cert), quoted(key)));
    }
    listener.text("auth", if keys.0.is_empty() { "none" } else { "keys" });
    listener.raw(
        "accept",
        &quoted_list(&["bearer", "raw", "x-api-key", "x-goog-api-key", "query:key"]),
    );
    for host in hosts {
        let mut route = Table::new("[[listener.route]]");
        route.text("host", host.host).text("group", &host.group);
        let mut allowed = host.keys;
        allowed.sort();
        allowed.dedup();
        if !allowed.is_empty() {
            route.raw("keys", &quoted_list(&allowed));
        }
        listener.below(route);
        draft.groups.push(group(&host.group, &host.members));
    }
    draft.listeners.push(listener);
    draft.keys = keys.0.into_iter().map(|(_, table)| table).collect();
}

/// The texts of a list, or a text alone.
fn texts(node: Option<&Node>) -> Vec<&str> {
    let Some(node) = node else { return Vec::new() };
    node.items().iter().filter_map(Node::text).chain(node.text()).collect()
}

/// Keys by their secret, each of them once.
#[derive(Default)]
struct Keys(Vec<(String, Table)>, Names);

impl Keys {
    fn name_of(&mut self, secret: &str) -> String {
        let at = self.0.iter().position(|(known, _)| known == secret);
        // Names are given in order, so that a position is enough to find one again.
        if let Some(at) = at {
            return format!("client-{}", at + 1);
        }
        let name = self.1.give(&format!("client-{}", self.0.len() + 1));
        let mut table = Table::new("[[key]]");
        table.text("name", &name).text("key", secret);
        self.0.push((secret.to_owned(), table));
        name
    }
}

fn upstream(provider: &Node, name: &str, interval: f64) -> Table {
    let mut table = Table::new("[[upstream]]");
    let tls = provider.truth_of("tls").unwrap_or(true);
    let scheme = if tls { "https" } else { "http" };
    let endpoint = provider.text_of("endpoint").unwrap_or_default();
    let port = provider.text_of("port").map(|port| format!(":{port}")).unwrap_or_default();
    table.text("name", name).text("url", &format!("{scheme}://{endpoint}{port}"));
    let kind = provider.text_of("type").unwrap_or("openai");
    if kind != "openai" {
        table.text("protocol", kind);
    }
    table.note("Its host alone leads to it, whatever the model.").raw("models", "[]");
    let mut secrets: Vec<_> =
        texts(provider.get("api_key")).into_iter().map(|s| (s, 1.0)).collect();
    for entry in provider.get("api_keys").map(Node::items).unwrap_or_default() {
        if let Some(secret) = entry.text_of("key").or_else(|| entry.text()) {
            secrets.push((secret, entry.number_of("weight").unwrap_or(1.0)));
        }
    }
    if !secrets.is_empty() {
        let one = |(secret, weight): &(&str, f64)| {
            format!("{{ key = {}, weight = {weight:?} }}", quoted(secret))
        };
        let all: Vec<_> = secrets.iter().map(one).collect();
        table.raw("api_keys", &format!("[{}]", all.join(", ")));
    }
    if let Some(check) = provider.get("health_check") {
        table.raw("health", &health(check, interval));
    }
    table
}

fn health(check: &Node, interval: f64) -> String {
    let mut parts = Vec::new();
    for key in ["method", "path", "body"] {
        if let Some(text) = check.text_of(key) {
            parts.push(format!("{key} = {}", quoted(text)));
        }
    }
    let lines = texts(check.get("headers"));
    let fields: Vec<_> = lines
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| {
            format!("{{ key = {}, value = {} }}", quoted(key.trim()), quoted(value.trim()))
        })
        .collect();
    if !fields.is_empty() {
        parts.push(format!("headers = [{}]", fields.join(", ")));
    }
    parts.push(format!("interval = {}", seconds(interval)));
    parts.push(format!("timeout = {}", seconds(interval.min(5.0))));
    format!("{{ {} }}", parts.join(", "))
}

fn group(name: &str, members: &[(String, f64)]) -> Table {
    // Whole numbers here: as many decimals as the weights have, three at most.
    let fits =
        |scale: f64| members.iter().all(|(_, w)| ((w * scale).round() - w * scale).abs() < 1e-6);
    let scale = [1.0, 10.0, 100.0].into_iter().find(|scale| fits(*scale)).unwrap_or(1000.0);
    let one = |(name, weight): &(String, f64)| {
        let weight = (weight * scale).round().clamp(1.0, 65_535.0);
        format!("{{ upstream = {}, weight = {weight} }}", quoted(name))
    };
    let all: Vec<_> = members.iter().map(one).collect();
    let mut table = Table::new("[[group]]");
    table.text("name", name).text("balance", "weighted_random");
    table.raw("members", &format!("[{}]", all.join(", ")));
    table
}
