//! llmproxy's YAML: forwards (a port each), groups behind them, servers in the groups.
//!
//! A forward's path routes become routes, and its default group one of `/*`: it reads no body.

use super::draft::{Draft, Table, address, quoted, seconds};
use super::source::Node;

/// Writes what the file says.
pub fn import(root: &Node, draft: &mut Draft) {
    let server = root.get("http_server");
    for forward in server.and_then(|node| node.get("forwards")).map(Node::items).unwrap_or_default()
    {
        draft.listeners.push(listener(forward));
    }
    if let Some(admin) = server.and_then(|node| node.get("admin")) {
        draft.rest.push(admin_table(admin));
    }
    let groups = root.get("upstream_groups").map(Node::items).unwrap_or_default();
    for upstream in root.get("upstreams").map(Node::items).unwrap_or_default() {
        let name = upstream.text_of("name").unwrap_or_default();
        let holds =
            |group: &&Node| members(group).any(|member| member.text_of("name") == Some(name));
        let client = groups.iter().find(holds).and_then(|group| group.get("http_client"));
        draft.upstreams.push(upstream_table(upstream, name, client));
    }
    for group in groups {
        draft.groups.push(group_table(group));
    }
}

fn members(group: &Node) -> impl Iterator<Item = &Node> {
    group.get("upstreams").map(Node::items).unwrap_or_default().iter()
}

fn listener(forward: &Node) -> Table {
    let mut table = Table::new("[[listener]]");
    table.text("name", forward.text_of("name").unwrap_or("main"));
    let port = forward.text_of("port").unwrap_or("3000");
    table.text("bind", &address(forward.text_of("address").unwrap_or("0.0.0.0"), port));
    table.note("It asks nobody for a key.").text("auth", "none");
    if let Some(limit) = forward.get("ratelimit") {
        let per_second = limit.number_of("per_second").unwrap_or(100.0);
        let burst = limit.number_of("burst").unwrap_or(200.0);
        // Older files have no `enabled`: the section itself says so.
        if limit.truth_of("enabled").unwrap_or(true) {
            let burst = burst.max(per_second);
            table.raw("ratelimit", &format!("{{ per_second = {per_second}, burst = {burst} }}"));
        }
    }
    if let Some(wait) = forward.get("timeout").and_then(|node| node.number_of("connect")) {
        table.raw("timeouts", &format!("{{ client_head = {} }}", seconds(wait)));
    }
    let default = forward.text_of("default_group").or_else(|| forward.text_of("upstream_group"));
    for route in forward.get("routing").map(Node::items).unwrap_or_default() {
        let (Some(path), Some(group)) = (route.text_of("path"), route.text_of("target_group"))
        else {
            continue;
        };
        let mut below = Table::new("[[listener.route]]");
        below.text("path", path).text("group", group);
        table.below(below);
    }
    if let Some(group) = default {
        let mut below = Table::new("[[listener.route]]");
        below.text("path", "/*").text("group", group);
        table.below(below);
    }
    table
}

fn admin_table(admin: &Node) -> Table {
    let mut table = Table::new("[admin]");
    table.text("bind", &address("127.0.0.1", admin.text_of("port").unwrap_or("9000")));
    if admin.text_of("address").is_some_and(|a| a != "127.0.0.1" && a != "localhost") {
        admin.lost_at("address", "127.0.0.1 now: open it with a token that is always set");
    }
    admin.lost_at("timeout", "the operator's address has its own bounds");
    table.text("token", "${LLMPROXY_ADMIN_AUTH_TOKEN:-}").text("metrics_prefix", "llmproxy_");
    table
}

fn upstream_table(upstream: &Node, name: &str, client: Option<&Node>) -> Table {
    let mut table = Table::new("[[upstream]]");
    table.text("name", name).text("url", upstream.text_of("url").unwrap_or_default());
    table.note("Its group alone leads to it, whatever the model.").raw("models", "[]");
    let auth = upstream.get("auth");
    let said = |key: &str| auth.and_then(|auth| auth.text_of(key)).unwrap_or_default();
    match said("type").to_ascii_lowercase().as_str() {
        "bearer" => table
            .raw("auth", &format!("{{ type = \"bearer\", token = {} }}", quoted(said("token")))),
        "basic" => table.raw(
            "auth",
            &format!(
                "{{ type = \"basic\", username = {}, password = {} }}",
                quoted(said("username")),
                quoted(said("password"))
            ),
        ),
        // It leaves the client's own in place.
        _ => table.raw("auth", "{ type = \"pass\" }"),
    };
    let mut edits = Vec::new();
    for header in upstream.get("headers").map(Node::items).unwrap_or_default() {
        let op = header.text_of("op").unwrap_or("insert").to_ascii_lowercase();
        let key = quoted(header.text_of("key").unwrap_or_default());
        if op == "remove" {
            header.lost_at("value", "nothing is written where a field is removed");
            edits.push(format!("{{ op = \"remove\", key = {key} }}"));
        } else {
            let value = quoted(header.text_of("value").unwrap_or_default());
            edits.push(format!("{{ op = {}, key = {key}, value = {value} }}", quoted(&op)));
        }
    }
    if !edits.is_empty() {
        table.raw("headers", &format!("[{}]", edits.join(", ")));
    }
    if let Some(breaker) = upstream.get("breaker") {
        let threshold = breaker.number_of("threshold").unwrap_or(0.5);
        let cooldown = seconds(breaker.number_of("cooldown").unwrap_or(30.0));
        table.raw("breaker", &format!("{{ threshold = {threshold:?}, cooldown = {cooldown} }}"));
    }
    if let Some(agent) = client.and_then(|client| client.text_of("agent")) {
        table.text("user_agent", agent);
    }
    if let Some(proxy) = client.and_then(|client| client.get("proxy")) {
        let on = proxy.truth_of("enabled").unwrap_or(false);
        match proxy.get("url") {
            Some(url) if !on => url.carried(),
            Some(url) if url.text().is_some_and(|text| text.starts_with("http://")) => {
                table.text("proxy", url.text().unwrap_or_default());
            }
            Some(url) => url.lost("an outbound proxy is http:// here"),
            None => {}
        }
    }
    table
}

fn group_table(group: &Node) -> Table {
    let mut table = Table::new("[[group]]");
    table.text("name", group.text_of("name").unwrap_or_default());
    let balance = group.get("balance").and_then(|node| node.get("strategy"));
    let said = balance.and_then(Node::text).unwrap_or("roundrobin").to_ascii_lowercase();
    table.text(
        "balance",
        match said.as_str() {
            "weighted_roundrobin" => "weighted_round_robin",
            "random" => "random",
            "least_connections" => "least_conn",
            "response_aware" => "response_aware",
            "failover" => "failover",
            other => {
                if let (false, Some(node)) = (other == "roundrobin", balance) {
                    node.lost("an unknown strategy: round_robin now");
                }
                "round_robin"
            }
        },
    );
    let member = |node: &Node| {
        let weight =
            node.number_of("weight").map(|w| format!(", weight = {w}")).unwrap_or_default();
        format!("{{ upstream = {}{weight} }}", quoted(node.text_of("name").unwrap_or_default()))
    };
    table.raw(
        "members",
        &format!("[{}]", members(group).map(member).collect::<Vec<_>>().join(", ")),
    );
    if let Some(client) = group.get("http_client") {
        client_of(client, &mut table);
    } else {
        table.raw("retry", "{ attempts = 0 }");
    }
    table
}

fn client_of(client: &Node, table: &mut Table) {
    // What `total` is follows from it.
    let stream =
        ["stream", "stream_mode"].iter().find_map(|key| client.truth_of(key)).unwrap_or(true);
    let mut timeouts = Vec::new();
    match client.number_of("keepalive") {
        Some(wait) if wait >= 5.0 => {
            timeouts.push(format!("tcp_keepalive = {}", seconds(wait.min(600.0))))
        }
        Some(_) => client.lost_at("keepalive", "probes are always sent: 5s is the least"),
        None => {}
    }
    if let Some(waits) = client.get("timeout") {
        if let Some(wait) = waits.number_of("connect") {
            timeouts.push(format!("connect = {}", seconds(wait.clamp(1.0, 120.0))));
        }
        match waits.number_of("request") {
            Some(wait) if !stream => timeouts.push(format!("total = {}", seconds(wait))),
            Some(_) => {
                waits.lost_at("request", "does not hold for streams: first_byte and stream_idle do")
            }
            None => {}
        }
        if let Some(wait) = waits.number_of("idle") {
            timeouts.push(format!("pool_idle = {}", seconds(wait.clamp(5.0, 1800.0))));
        }
    }
    if !timeouts.is_empty() {
        table.raw("timeouts", &format!("{{ {} }}", timeouts.join(", ")));
    }
    let retry = client.get("retry");
    let attempts = retry.and_then(|node| node.number_of("attempts")).unwrap_or(3.0);
    let initial = retry.and_then(|node| node.number_of("initial")).unwrap_or(500.0);
    if retry.and_then(|node| node.truth_of("enabled")).unwrap_or(false) {
        let initial = initial.clamp(100.0, 10_000.0);
        table.raw("retry", &format!(
            "{{ attempts = {attempts}, initial = \"{initial}ms\", max = \"{}ms\", same = true }}", initial.max(2000.0)
        ));
    } else {
        table.raw("retry", "{ attempts = 0 }");
    }
}
