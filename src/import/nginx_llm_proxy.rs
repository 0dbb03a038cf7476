//! nginx-llm-proxy's `config.json`: keys by name, and a backend for each model.

use super::draft::{Draft, Names, Table};
use super::source::Node;

const NGINX: &str = "listens where its nginx.conf said by default; put your own address here";

/// Writes what the file says.
pub fn import(root: &Node, draft: &mut Draft) {
    let mut names = Names::default();
    let mut key = |name: &str, secret: &str| {
        let mut table = Table::new("[[key]]");
        table.text("name", &names.give(name)).text("key", secret);
        draft.keys.push(table);
    };
    if let Some(secret) = root.text_of("api_key").filter(|text| !text.is_empty()) {
        key("default", secret);
    }
    if let Some(keys) = root.get("api_keys") {
        for (name, node) in keys.entries() {
            if let Some(secret) = node.text() {
                key(name, secret);
            }
        }
        for (at, node) in keys.items().iter().enumerate() {
            if let Some(secret) = node.text() {
                key(&format!("key-{}", at + 1), secret);
            }
        }
    }
    let mut listener = Table::new("[[listener]]");
    listener.text("name", "main").note(NGINX).text("bind", "0.0.0.0:4000");
    // Without keys it lets everyone in.
    listener.text("auth", if draft.keys.is_empty() { "none" } else { "keys" });
    draft.listeners.push(listener);

    for (name, model) in root.get("models").map(Node::entries).unwrap_or_default() {
        let Some(backend) = model.text_of("backend") else { continue };
        let mut table = Table::new(format!("[models.{}]", super::draft::quoted(name)));
        table.text("backend", backend);
        if let Some(description) = model.text_of("description") {
            table.text("description", description);
        }
        draft.models.push(table);
    }
    if let Some(password) = root.text_of("admin_password").filter(|text| !text.is_empty()) {
        let mut admin = Table::new("[admin]");
        admin.note("On an address of its own: it was /admin on the main port.");
        admin.text("bind", "127.0.0.1:9000").text("token", password);
        draft.rest.push(admin);
    }
}
