//! llama-swap's YAML: a server for each model, which it starts itself and we do not.

use super::draft::{Draft, Names, Table, quoted, quoted_list, seconds};
use super::source::Node;

const STARTS: &str = "tokenring starts no servers: run it as a service";
const BODIES: &str = "bodies pass as they are";

/// Writes what the file says.
pub fn import(root: &Node, draft: &mut Draft) {
    for key in ["healthCheckTimeout", "globalTTL", "groups", "matrix", "hooks", "profiles"] {
        root.lost_at(key, STARTS);
    }
    for (at, node) in root.get("apiKeys").map(Node::items).unwrap_or_default().iter().enumerate() {
        if let Some(secret) = node.text() {
            let mut table = Table::new("[[key]]");
            table.text("name", &format!("key-{}", at + 1)).text("key", &env(secret));
            draft.keys.push(table);
        }
    }
    let mut listener = Table::new("[[listener]]");
    listener.text("name", "main").note("Put the address of its -listen here.");
    listener.text("bind", "0.0.0.0:8080");
    listener.text("auth", if draft.keys.is_empty() { "none" } else { "keys" });
    draft.listeners.push(listener);
    models(root, draft);
    peers(root, draft);
    root.lost_at("macros", "filled in where an address or a path has them");
}

/// `${env.X}` is `${X}` here.
fn env(text: &str) -> String {
    text.replace("${env.", "${")
}

/// Fills in the macros of the model and of the file, several times, since they hold each other.
fn filled(root: &Node, model: &Node, text: &str, id: &str, port: u64) -> String {
    let mut text = text.to_owned();
    for _ in 0..8 {
        for macros in [model.get("macros"), root.get("macros")].into_iter().flatten() {
            for (name, value) in macros.entries() {
                text = text.replace(&format!("${{{name}}}"), value.text().unwrap_or_default());
            }
        }
        if text.len() > 65_536 {
            break;
        }
    }
    env(&text.replace("${MODEL_ID}", id).replace("${PORT}", &port.to_string()))
}

fn models(root: &Node, draft: &mut Draft) {
    let mut port =
        root.number_of("startPort").map_or(5800, |port| port.clamp(1.0, 65_535.0) as u64);
    let mut all: Vec<_> =
        root.get("models").map(Node::entries).unwrap_or_default().iter().collect();
    // Ports are given out in this order.
    all.sort_by(|a, b| a.0.cmp(&b.0));
    let mut names = Names::default();
    for (id, model) in all {
        let proxy = model.text_of("proxy").unwrap_or("http://localhost:${PORT}");
        let cmd = model.get("cmd").and_then(Node::text).unwrap_or_default();
        for key in ["cmd", "cmdStop", "env", "ttl", "macros"] {
            model.lost_at(key, STARTS);
        }
        model.lost_at("filters", BODIES);
        model.lost_at("unlisted", "every model here is listed");
        let name = names.give(id);
        let mut table = Table::new("[[upstream]]");
        let url = filled(root, model, proxy, id, port);
        table.text("name", &name).text("url", url.trim_end_matches('/')).raw("models", "[]");
        let check = model.text_of("checkEndpoint").unwrap_or("/health");
        if check != "none" {
            let path = filled(root, model, check, id, port);
            table.raw("health", &format!("{{ path = {} }}", quoted(&path)));
        }
        if let Some(limit) = model.number_of("concurrencyLimit").filter(|limit| *limit >= 1.0) {
            table.raw("concurrency", &format!("{limit}"));
        }
        // llama-swap counts only for the models that use the number.
        if proxy.contains("${PORT}") || filled_uses_port(root, model, cmd) {
            port += 1;
        }
        draft.upstreams.push(table);
        draft.groups.extend(waits(model, &name));
        draft.models.push(model_table(id, model, &name));
    }
}

fn filled_uses_port(root: &Node, model: &Node, cmd: &str) -> bool {
    let mut text = cmd.to_owned();
    for macros in [model.get("macros"), root.get("macros")].into_iter().flatten() {
        for (name, value) in macros.entries() {
            text = text.replace(&format!("${{{name}}}"), value.text().unwrap_or_default());
        }
    }
    text.contains("${PORT}")
}

fn model_table(id: &str, model: &Node, upstream: &str) -> Table {
    let mut table = Table::new(format!("[models.{}]", quoted(id)));
    // Where it has waits of its own there is a group of the name.
    let key = if model.get("timeouts").is_some() { "group" } else { "upstream" };
    match key {
        "group" => table.text(key, &format!("{upstream}-group")),
        _ => table.text(key, upstream),
    };
    let said = model.text_of("description").or_else(|| model.text_of("name"));
    if let Some(said) = said {
        table.text("description", said);
        model.lost_at("name", "the description is what the list of models shows");
    }
    let alias = |node: &Node| node.text_of("id").or_else(|| node.text()).map(str::to_owned);
    let aliases: Vec<_> = model
        .get("aliases")
        .map(Node::items)
        .unwrap_or_default()
        .iter()
        .filter_map(alias)
        .collect();
    if !aliases.is_empty() {
        table.raw("aliases", &quoted_list(&aliases));
    }
    if let Some(sent) = model.text_of("useModelName").filter(|name| !name.is_empty()) {
        table.text("upstream_model", sent);
    }
    table
}

/// A group of the upstream's name, for the waits that it says.
fn waits(node: &Node, name: &str) -> Option<Table> {
    let said = node.get("timeouts")?;
    let mut parts = Vec::new();
    let ours = [
        ("connect", "connect", 1.0, 120.0),
        ("keepalive", "tcp_keepalive", 5.0, 600.0),
        ("responseHeader", "first_byte", 0.001, 604_800.0),
        ("idleConn", "pool_idle", 5.0, 1800.0),
    ];
    for (theirs, ours, least, most) in ours {
        match said.number_of(theirs) {
            Some(wait) if wait > 0.0 => {
                parts.push(format!("{ours} = {}", seconds(wait.clamp(least, most))))
            }
            Some(_) => said.lost_at(theirs, "every wait has an end here: the default holds"),
            None => {}
        }
    }
    let mut table = Table::new("[[group]]");
    table.text("name", &format!("{name}-group")).raw("members", &quoted_list(&[name]));
    table.raw("timeouts", &format!("{{ {} }}", parts.join(", ")));
    Some(table)
}

fn peers(root: &Node, draft: &mut Draft) {
    let mut names = Names::default();
    for (id, peer) in root.get("peers").map(Node::entries).unwrap_or_default() {
        let Some(proxy) = peer.text_of("proxy") else { continue };
        let mut table = Table::new("[[upstream]]");
        table
            .text("name", &names.give(&format!("peer-{id}")))
            .text("url", &filled(root, peer, proxy, id, 0));
        if let Some(secret) = peer.text_of("apiKey").filter(|secret| !secret.is_empty()) {
            let secret = quoted(&filled(root, peer, secret, id, 0));
            table.raw("auth", &format!("{{ type = \"bearer\", token = {secret} }}"));
        }
        let models: Vec<_> = peer
            .get("models")
            .map(Node::items)
            .unwrap_or_default()
            .iter()
            .filter_map(Node::text)
            .collect();
        table.raw("models", &quoted_list(&models));
        peer.lost_at("filters", BODIES);
        draft.upstreams.push(table);
    }
}
