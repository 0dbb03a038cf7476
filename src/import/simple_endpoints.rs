//! The Node proxy's `endpoints.yml`: servers that are asked for their models, one after the other.

use super::draft::{Draft, Names, Table, address, quoted, seconds};
use super::source::Node;

/// Writes what the file says.
pub fn import(root: &Node, draft: &mut Draft) {
    let port = root.get("server").and_then(|node| node.text_of("port")).unwrap_or("8080");
    let mut listener = Table::new("[[listener]]");
    listener.text("name", "main").text("bind", &address("0.0.0.0", port));
    listener.note("It asks nobody for a key.").text("auth", "none");
    draft.listeners.push(listener);

    let checks = root.get("healthCheck");
    let millis = |node: Option<&Node>, key: &str| node.and_then(|node| node.number_of(key));
    let interval = (millis(checks, "interval").unwrap_or(30_000.0) / 1000.0).clamp(1.0, 3600.0);
    let timeout = (millis(checks, "timeout").unwrap_or(5000.0) / 1000.0).clamp(0.1, interval);
    let path = checks.and_then(|node| node.text_of("path")).unwrap_or("/v1/models").trim();
    let fall = millis(checks, "failureThreshold").unwrap_or(3.0).clamp(1.0, 1000.0);

    let mut names = Names::default();
    for (at, endpoint) in
        root.get("endpoints").map(Node::items).unwrap_or_default().iter().enumerate()
    {
        let said =
            endpoint.text_of("name").map_or_else(|| format!("server{}", at + 1), str::to_owned);
        let mut table = Table::new("[[upstream]]");
        table.text("name", &names.give(&said));
        server(endpoint, &mut table);
        let own = endpoint.text_of("healthCheckPath").map(str::trim).unwrap_or(path);
        table.raw(
            "health",
            &format!(
                "{{ path = {}, interval = {}, timeout = {}, fall = {} }}",
                quoted(own),
                seconds(interval),
                seconds(timeout),
                fall.trunc()
            ),
        );
        // It takes only those that say that they are.
        if !endpoint.truth_of("enabled").unwrap_or(false) {
            table.raw("enabled", "false");
        }
        draft.upstreams.push(table);
    }
    discovery(root.get("cache"), interval, draft);
}

/// Where it is; several ports are as many servers.
fn server(endpoint: &Node, table: &mut Table) {
    let address = endpoint.text_of("address").unwrap_or("127.0.0.1");
    let scheme = if address.contains("://") { "" } else { "http://" };
    let base = format!("{scheme}{}", address.trim_end_matches('/'));
    let list = ["ports", "port"]
        .iter()
        .find_map(|key| endpoint.get(key).filter(|node| !node.items().is_empty()));
    match list {
        Some(node) => {
            let ports: Vec<_> = node.items().iter().filter_map(Node::text).collect();
            table.text("url", &base).raw("ports", &format!("[{}]", ports.join(", ")));
        }
        None => match endpoint.text_of("port") {
            Some(port) => {
                table.text("url", &format!("{base}:{port}"));
            }
            None => {
                table.text("url", &base);
            }
        },
    }
}

fn discovery(cache: Option<&Node>, interval: f64, draft: &mut Draft) {
    let ttl = cache.and_then(|node| node.number_of("ttlMs")).map(|ms| ms / 1000.0);
    let factor = cache.and_then(|node| node.number_of("ttlMultiplier"));
    // Of both the smaller one; of neither the interval of the checks.
    let smaller = match (ttl, factor.map(|factor| factor * interval)) {
        (Some(a), Some(b)) => a.min(b),
        (Some(a), None) => a,
        (None, Some(b)) => b,
        (None, None) => interval,
    };
    let mut table = Table::new("[discovery]");
    table.raw("ttl", &seconds(smaller.clamp(1.0, 86_400.0)));
    table.note("GET /v1/models tells where each model is, as it did.").raw("endpoints", "true");
    draft.rest.push(table);
}
