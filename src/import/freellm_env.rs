//! The `.env` of the FastAPI proxy: one server for each `…_BASE_URL`, tokens with their limits.

use super::draft::{Draft, Names, Table, address, quoted, quoted_list};
use super::source::Node;

/// Writes what the file says.
///
/// Errors: TOKENS_JSON is no JSON.
pub fn import(root: &Node, draft: &mut Draft) -> Result<(), String> {
    limits(root, draft);
    let any_key = keys(root, draft)?;
    let host = root.text_of("HOST").unwrap_or("127.0.0.1");
    let port = root.text_of("PORT").unwrap_or("8080");
    let mut listener = Table::new("[[listener]]");
    listener.text("name", "main").text("bind", &address(host, port));
    listener.text("auth", if any_key { "keys" } else { "none" });
    let mut backends = Vec::new();
    for (name, node) in root.entries() {
        let Some(stem) = name.strip_suffix("_BASE_URL") else { continue };
        let Some(url) = node.text().filter(|url| !url.is_empty()) else { continue };
        let upstream = stem.to_ascii_lowercase();
        let mut table = Table::new("[[upstream]]");
        table.text("name", &upstream).text("url", url.trim_end_matches('/'));
        if upstream == "ollama" {
            table.text("protocol", "ollama");
        }
        if let Some(secret) = root.text_of(&format!("{stem}_API_KEY")).filter(|s| !s.is_empty()) {
            table.raw("auth", &format!("{{ type = \"bearer\", token = {} }}", quoted(secret)));
        }
        draft.upstreams.push(table);
        backends.push(upstream);
    }
    let wanted = root.text_of("DEFAULT_BACKEND").unwrap_or("ollama").to_ascii_lowercase();
    if backends.contains(&wanted) {
        listener.note("A name without a prefix goes to DEFAULT_BACKEND.");
        listener.text("default_group", "default");
        let mut group = Table::new("[[group]]");
        group.text("name", "default").raw("members", &quoted_list(&[wanted]));
        draft.groups.push(group);
    } else {
        root.lost_at("DEFAULT_BACKEND", "names no server of this file");
    }
    listener.note("\"ollama:NAME\" and \"vllm:NAME\" go where they say, whatever NAME is.");
    listener.text("force", "any");
    draft.listeners.push(listener);
    let mut discovery = Table::new("[discovery]");
    discovery.raw("prefix", "true");
    draft.rest.push(discovery);
    Ok(())
}

fn limits(root: &Node, draft: &mut Draft) {
    let Some(bytes) = root.number_of("MAX_BODY_BYTES").filter(|bytes| *bytes >= 1.0) else {
        return;
    };
    let mut table = Table::new("[limits]");
    table.raw("body", &format!("{bytes}"));
    // What is held of a body is never more than a body.
    let held = bytes.min(2.0 * 1024.0 * 1024.0);
    table.raw("body_held", &format!("{held}"));
    draft.process.push(table);
}

fn keys(root: &Node, draft: &mut Draft) -> Result<bool, String> {
    let store = root.text_of("RATE_LIMIT_STORE").unwrap_or("memory").to_ascii_lowercase();
    if store == "redis" {
        let mut table = Table::new("[ratelimit_store]");
        table.text("type", "redis");
        if let Some(url) = root.text_of("REDIS_URL") {
            table.text("url", url);
        }
        draft.store.push(table);
    } else {
        root.lost_at("REDIS_URL", "not used while RATE_LIMIT_STORE is memory");
    }
    let Some(node) = root.get("TOKENS_JSON") else { return Ok(false) };
    let text = node.text().unwrap_or_default();
    let tokens =
        Node::parse(text).map_err(|why| format!("TOKENS_JSON of line {}: {why}", node.line))?;
    let mut names = Names::default();
    for (at, token) in tokens.items().iter().enumerate() {
        let Some(secret) = token.text_of("token") else { continue };
        let label = token.text_of("label").map_or_else(|| format!("key-{}", at + 1), str::to_owned);
        let mut table = Table::new("[[key]]");
        table.text("name", &names.give(&label)).text("key", secret);
        for limit in ["rpm", "rpd"] {
            if let Some(number) = token.number_of(limit).filter(|n| *n >= 1.0) {
                table.raw(limit, &format!("{}", number.trunc()));
            }
        }
        draft.keys.push(table);
    }
    for lost in tokens.left() {
        draft.lost.push(super::source::Lost {
            line: node.line,
            path: format!("TOKENS_JSON{}", lost.path),
            why: lost.why,
        });
    }
    Ok(true)
}
