//! The start-up block: what was obtained, and what is unsafe.

use std::fmt::Write as _;

use super::running::Server;
use super::start::Started;
use crate::config::{Config, ListenerAuth};
use crate::net::rt::Driver;
use crate::net::sys;

/// Fewer open files than this are too few for a server that streams.
const OPEN_FILES_WANTED: u64 = 16_384;

/// Writes the block, one fact a line.
#[must_use]
pub fn banner(started: &Started) -> String {
    let Started { server, config, .. } = started;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "tokenring {}", env!("CARGO_PKG_VERSION"));
    if let Some(before) = &started.took_over {
        let _ = writeln!(out, "  took over  from {before}");
    }
    let _ = writeln!(out, "  cores      {} × {}", server.drivers.len(), drivers(&server.drivers));
    for (id, address) in &server.addresses() {
        let name = id.name();
        let Some(listener) = config.listeners.iter().find(|listener| *listener.name == *name)
        else {
            continue;
        };
        let auth = if listener.auth == ListenerAuth::Keys { "keys" } else { "open" };
        let tls = if listener.tls.is_some() { ", tls" } else { "" };
        let _ = writeln!(out, "  listener   {} on {} ({auth}{tls})", listener.name, address);
    }
    if let Some(address) = server.admin() {
        let token = config.admin.as_ref().is_some_and(|admin| admin.token.is_some());
        let _ = writeln!(
            out,
            "  admin      on {} ({})",
            address,
            if token { "token" } else { "no token" }
        );
    }
    for upstream in &config.upstreams {
        let state = if upstream.enabled { "" } else { " (disabled)" };
        let _ = writeln!(out, "  upstream   {} at {}{state}", upstream.name, upstream.url);
    }
    let names: Vec<&str> = config.models.iter().map(|model| model.name.as_str()).collect();
    let _ = writeln!(
        out,
        "  models     {}",
        if names.is_empty() { "none".into() } else { names.join(", ") }
    );
    let _ = writeln!(
        out,
        "  limits     {} client connections, {} open files, {} MiB of held bodies",
        server.shared().bounds.connections_max(),
        sys::raise_open_files(),
        server.shared().held.total() >> 20
    );
    out
}

/// What an operator should know before relying on it.
#[must_use]
pub fn hazards(server: &Server, config: &Config) -> Vec<String> {
    let mut hazards = Vec::new();
    let files = sys::raise_open_files();
    if files < OPEN_FILES_WANTED {
        hazards.push(format!(
            "only {files} open files are allowed (RLIMIT_NOFILE), wanted {OPEN_FILES_WANTED}: raise it with `ulimit -n` or LimitNOFILE="
        ));
    }
    if server.drivers.contains(&Driver::Epoll) && config.process.io == crate::config::Io::Auto {
        hazards.push("running on epoll: io_uring is not available or was switched off".to_owned());
    }
    hazards
}

fn drivers(drivers: &[Driver]) -> String {
    let mut kinds: Vec<String> = drivers.iter().map(ToString::to_string).collect();
    kinds.dedup();
    kinds.join(" and ")
}
