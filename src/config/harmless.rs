//! What of a faulty line may be shown: the one idea is that nearly every key has a value that is
//! no secret, and those are listed by name. Whatever is not in the list is hidden.
//!
//! It is for lines whose meaning nobody knows: text that is no TOML, and keys that are unknown.
//! Values that were read know themselves whether they are secrets (`Spot::secret`).

use std::ops::Range;

/// Keys whose values hold no secret, whatever table they stand in. Sorted. What is missing here
/// on purpose: `body` (also of a probe), `cert`, `key`, `description` and all that carries
/// credentials or URLs.
const KEYS: &[&str] = &[
    "abort",
    "accept",
    "access",
    "access_sample",
    "affinity",
    "aliases",
    "alpn",
    "attempts",
    "balance",
    "bind",
    "body_held",
    "body_rate_min",
    "breaker",
    "burst",
    "by",
    "calls_min",
    "client_auth",
    "client_body_idle",
    "client_head",
    "client_keepalive",
    "client_write_idle",
    "concurrency",
    "connect",
    "connections",
    "connections_per_ip",
    "consecutive",
    "control_socket",
    "cooldown",
    "cores",
    "cors",
    "dashboard",
    "default_group",
    "discover",
    "drain",
    "enabled",
    "endpoints",
    "errors",
    "expires",
    "fall",
    "fallback",
    "fields",
    "first_byte",
    "force",
    "format",
    "forwarded",
    "grace",
    "group",
    "handshakes",
    "head",
    "health",
    "held_total",
    "host",
    "http2",
    "initial",
    "interval",
    "io",
    "last_resort",
    "length",
    "level",
    "listeners",
    "max",
    "members",
    "method",
    "min_version",
    "mode",
    "models",
    "name",
    "on",
    "on_error",
    "op",
    "open",
    "path",
    "path_mode",
    "per_second",
    "persist",
    "pool_idle",
    "ports",
    "prefix",
    "priority",
    "protocol",
    "queue",
    "ratelimit",
    "recheck",
    "retry",
    "reuse",
    "rise",
    "rpd",
    "rpm",
    "same",
    "sample",
    "serve",
    "server_name",
    "service_name",
    "sse_keepalive",
    "state_dir",
    "stream_idle",
    "successes",
    "target",
    "tcp_keepalive",
    "threshold",
    "timeout",
    "timeouts",
    "tls",
    "tls_handshake",
    "total",
    "tpm",
    "tracing",
    "trials",
    "trusted_proxies",
    "ttl",
    "ttl_multiplier",
    "type",
    "upstream",
    "upstream_model",
    "usage",
    "verify",
    "wait",
    "weight",
    "window",
];

/// Whether a key of that name has a value that may be shown.
pub(crate) fn is_harmless(key: &str) -> bool {
    KEYS.binary_search(&key).is_ok()
}

/// What is hidden of a line that is no TOML.
///
/// Shape: ranges of bytes of `line`, sorted. Where quotes may be off nothing tells where a value
/// ends: behind a key that is not harmless all of the line is hidden. A line without any
/// assignment belongs to a value that began above, and is hidden whole.
pub(crate) fn hidden(line: &str) -> Vec<Range<usize>> {
    if !line.contains('=') {
        let header = line.trim_start().starts_with('[') && !line.contains(['"', '\'']);
        return if header { Vec::new() } else { only(0..line.len()) };
    }
    let mut from = 0;
    while let Some(equals) = line[from..].find('=').map(|at| from + at) {
        let key = last_word(&line[from..equals]);
        let value = &line[equals + 1..];
        let next = value.find('=').map_or(value.len(), |at| {
            at - last_word(&value[..at]).len() - trailing_blanks(&value[..at])
        });
        // A table in braces: what is in it has keys of its own.
        let opens = !value[..next].is_empty()
            && value[..next].contains('{')
            && value[..next].chars().all(|c| c.is_whitespace() || "[{".contains(c));
        if !opens && !is_harmless(key) {
            return only(equals + 1..line.len());
        }
        if let Some(comment) = value[..next].find('#') {
            return only(equals + 1 + comment..line.len());
        }
        from = equals + 1;
    }
    Vec::new()
}

fn only(range: Range<usize>) -> Vec<Range<usize>> {
    std::iter::once(range).collect()
}

/// The bare key at the end of a text.
fn last_word(text: &str) -> &str {
    let text = text.trim_end();
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    &text[text.trim_end_matches(bare).len()..]
}

fn trailing_blanks(text: &str) -> usize {
    text.len() - text.trim_end().len()
}

/// What of the text of a URL, quotes and all, is hidden: who it is for, and its query.
///
/// Shape: as `hidden`. Everything, where an escape could hide what these are.
pub(crate) fn hidden_of_url(source: &str) -> Vec<Range<usize>> {
    if source.contains('\\') {
        return only(0..source.len());
    }
    let quotes = source.len() - source.trim_end_matches(['"', '\'']).len();
    let end = source.len() - quotes;
    let mut hidden = Vec::new();
    let mut behind = 0;
    if let Some(at) = source[..end].rfind('@') {
        let scheme = source[..at].find("://").map(|from| from + 3);
        let opening = source.len() - source.trim_start_matches(['"', '\'']).len();
        hidden.push(scheme.unwrap_or(opening)..at);
        behind = at;
    }
    if let Some(query) = source[behind..end].find('?') {
        hidden.push(behind + query + 1..end);
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str, hidden: &[Range<usize>]) -> String {
        let mut out = line.to_owned();
        for range in hidden.iter().rev() {
            out.replace_range(range.clone(), "***");
        }
        out
    }

    #[test]
    fn the_list_is_sorted() {
        assert!(KEYS.is_sorted());
    }

    #[test]
    fn a_line_keeps_what_is_no_secret() {
        for (line, expected) in [
            ("name = \"main", "name = \"main"),
            ("bind = 127.0.0.1:0 # was sk-1", "bind = 127.0.0.1:0 ***"),
            ("[[listener]", "[[listener]"),
            ("[models.\"x]", "***"),
            ("\"sk-1\",", "***"),
            ("key = \"sk-1", "key =***"),
            (
                "auth = { type = \"bearer\" token = \"sk-1\" }",
                "auth = { type = \"bearer\" token =***",
            ),
            ("name = \"x, key = \"sk-1\"", "name = \"x, key =***"),
            ("key = \"sk-1\", name = \"x\"", "key =***"),
            ("url = \"http://u:p@h", "url =***"),
            ("x-y.name = \"main", "x-y.name = \"main"),
            ("key=", "key=***"),
        ] {
            assert_eq!(shown(line, &hidden(line)), expected);
        }
    }

    #[test]
    fn a_url_keeps_where_it_leads() {
        for (source, expected) in [
            ("\"http://h:80/x?key=sk\"", "\"http://h:80/x?***\""),
            ("\"http://u:p@h:80/x\"", "\"http://***@h:80/x\""),
            ("\"u:p?@h:80/x?a@b\"", "\"***@b\""),
            ("'https://u:p@h?q'", "'https://***@h?***'"),
            ("\"http://h\\u003Fsk\"", "***"),
            ("\"${URL}\"", "\"${URL}\""),
        ] {
            assert_eq!(shown(source, &hidden_of_url(source)), expected);
        }
    }
}
