//! The counters as Prometheus text, version 0.0.4.
//!
//! One function from a snapshot to text: every family once, with HELP and TYPE, its samples
//! below. Only configured names become labels, so the number of series is bounded. Times are given
//! in seconds, as is the custom.
//!
//! Source: prometheus.io, "Exposition formats", text-based format.

use std::sync::Arc;

use super::counters::Counters;
use super::exposition::{Text, Unit};
use super::families;
use super::histogram::TIMES_US;
use super::labels::PlanLabels;
use super::series::RowSums;
use crate::error::Finish;

/// The states of a breaker, as labels.
const BREAKER: [&str; 3] = ["closed", "open", "half_open"];
/// What a breaker is told of calls, as labels.
const CALLS: [&str; 3] = ["success", "failure", "timeout"];

/// All that is shown.
#[derive(Debug)]
pub struct Snapshot<'a> {
    /// Put before the name of every family of ours.
    pub prefix: &'a str,
    /// Version of the program.
    pub version: &'a str,
    /// The sums of all cores.
    pub counters: &'a Counters,
    /// The upstreams in force; no name twice.
    pub upstreams: Vec<UpstreamRow>,
    /// What the process has at the moment.
    pub live: Live,
    /// Certificates that were replaced while running, and attempts that failed.
    pub certificates: (u64, u64),
    /// Reloads of the config.
    pub reloads: ReloadCounts,
    /// The entries with `discover` that have answered, if only with a failure.
    pub sources: Vec<SourceRow>,
}

/// One entry with `discover`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRow {
    /// The entry's name.
    pub name: String,
    /// Whether the last answer was a good one.
    pub works: bool,
    /// How many servers the last good answer named.
    pub targets: usize,
}

/// How reloads of the config went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReloadCounts {
    /// Whether the last one succeeded; true before the first.
    pub succeeded: bool,
    /// When the config in force was loaded, seconds since 1970.
    pub at_unix_s: u64,
    /// Reloads that came into force.
    pub done: u64,
    /// Reloads that were refused.
    pub failed: u64,
}

/// What is asked of the cores at a scrape.
#[derive(Debug, Default)]
pub struct Live {
    /// How many wait in the queue of each group that has one; no name twice.
    pub queues: Vec<(String, u32)>,
    /// Lines of the access log that were not written.
    pub access_lines_lost: u64,
    /// Sampled exchanges whose spans the collector took.
    pub traces_exported: u64,
    /// Sampled exchanges whose spans were dropped.
    pub traces_dropped: u64,
    /// Handovers that were carried through.
    pub handovers: u64,
    /// Handovers that were begun and given up.
    pub handovers_failed: u64,
    /// Client connections.
    pub connections: u32,
    /// Bytes of request bodies that are held, as `limits.held_total` counts them.
    pub held_bytes: u64,
    /// Bytes of answers that wait to be sent over HTTP/2, beyond 64 KiB of each connection.
    pub unsent_bytes: u64,
    /// Client connections refused for lack of room, handshakes included.
    pub connections_refused: u64,
    /// TLS handshakes with clients that failed.
    pub handshakes_failed: u64,
    /// Panics caught; each cost one connection or stream.
    pub panics: u64,
    /// Idle connections to upstreams.
    pub pool_idle: u32,
    /// The certificates in use.
    pub certificates: Vec<CertificateRow>,
    /// What has been counted by label.
    pub rows: RowSums,
    /// The names of the labels.
    pub labels: Arc<PlanLabels>,
}

/// One certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRow {
    /// `listener` or `upstream`.
    pub side: &'static str,
    /// The name of that listener or upstream.
    pub name: String,
    /// The file that holds it.
    pub certificate: String,
    /// Seconds until its end; negative once that has passed.
    pub seconds_left: i64,
}

/// One upstream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamRow {
    /// Its name.
    pub name: String,
    /// Whether it is up for all that is known.
    pub healthy: bool,
    /// Nobody has asked it yet, or nobody knows where it is.
    pub unknown: bool,
    /// Attempts on it now.
    pub in_flight: u32,
    /// Attempts on it since it is known.
    pub attempts: u64,
    /// Its breaker: closed, open, half open.
    pub breaker: usize,
    /// How often the breaker has gone from each of these to each of these.
    pub breaker_changes: [[u64; BREAKER.len()]; BREAKER.len()],
    /// How often the breaker was told of a success, a failure, a timeout.
    pub breaker_calls: [u64; CALLS.len()],
}

/// Writes the text.
#[must_use]
pub fn render(snapshot: &Snapshot<'_>) -> String {
    let mut out = Text::new(snapshot.prefix);
    out.family("build_info", "gauge", "The program that runs.");
    out.sample("build_info", &[("version", snapshot.version)], "1");
    exchanges(&mut out, snapshot.counters);
    times(&mut out, snapshot.counters);
    families::write(&mut out, &snapshot.live.rows, &snapshot.live.labels);
    upstreams(&mut out, &snapshot.upstreams);
    breakers(&mut out, &snapshot.upstreams, &snapshot.live.labels);
    live(&mut out, &snapshot.live);
    certificates(&mut out, snapshot.certificates);
    reloads(&mut out, snapshot.reloads);
    sources(&mut out, &snapshot.sources);
    out.into_string()
}

fn live(out: &mut Text<'_>, live: &Live) {
    out.family("queue_length", "gauge", "Requests that wait for a place in a group.");
    for (group, waiting) in &live.queues {
        out.sample("queue_length", &[("group", group)], waiting);
    }
    let (name, help) = ("access_log_lines_lost_total", "Lines of the access log not written.");
    out.family(name, "counter", help);
    out.sample(name, &[], live.access_lines_lost);
    let name = "trace_exchanges_total";
    out.family(name, "counter", "Sampled exchanges whose spans the collector took or not.");
    out.sample(name, &[("result", "exported")], live.traces_exported);
    out.sample(name, &[("result", "dropped")], live.traces_dropped);
    out.family("handovers_total", "counter", "Handovers between processes, by how they ended.");
    out.sample("handovers_total", &[("result", "done")], live.handovers);
    out.sample("handovers_total", &[("result", "failed")], live.handovers_failed);
    out.family("client_connections", "gauge", "Client connections.");
    out.sample("client_connections", &[], live.connections);
    let help = "Bytes of request bodies held, out of limits.held_total.";
    out.family("held_body_bytes", "gauge", help);
    out.sample("held_body_bytes", &[], live.held_bytes);
    let help = "Bytes booked for answers that HTTP/2 clients have not read, beyond 64 KiB of each.";
    out.family("http2_unsent_bytes", "gauge", help);
    out.sample("http2_unsent_bytes", &[], live.unsent_bytes);
    let help = "Client connections refused for lack of room.";
    out.family("client_connections_refused_total", "counter", help);
    out.sample("client_connections_refused_total", &[], live.connections_refused);
    let help = "TLS handshakes with clients that failed.";
    out.family("tls_handshakes_failed_total", "counter", help);
    out.sample("tls_handshakes_failed_total", &[], live.handshakes_failed);
    out.family("panics_total", "counter", "Panics caught, each at the cost of a connection.");
    out.sample("panics_total", &[], live.panics);
    out.family("pool_idle", "gauge", "Idle connections to upstreams.");
    out.sample("pool_idle", &[], live.pool_idle);
    let name = "certificate_remaining_seconds";
    out.family(name, "gauge", "Seconds to the end of a certificate; negative once it has passed.");
    for row in &live.certificates {
        let labels = [("side", row.side), ("name", &*row.name), ("certificate", &*row.certificate)];
        out.sample(name, &labels, row.seconds_left);
    }
}

fn reloads(out: &mut Text<'_>, reloads: ReloadCounts) {
    let help = "Whether the last reload of the config came into force; 1 before the first.";
    out.family("config_reload_success", "gauge", help);
    out.sample("config_reload_success", &[], u8::from(reloads.succeeded));
    let name = "config_loaded_timestamp_seconds";
    out.family(name, "gauge", "When the config in force was loaded, seconds since 1970.");
    out.sample(name, &[], reloads.at_unix_s);
    out.family("config_reloads_total", "counter", "Reloads of the config, by what became of them.");
    out.sample("config_reloads_total", &[("result", "done")], reloads.done);
    out.sample("config_reloads_total", &[("result", "refused")], reloads.failed);
}

fn sources(out: &mut Text<'_>, rows: &[SourceRow]) {
    let help = "Whether discovery answers for an entry; 0 = its last servers stay.";
    out.family("discovery_up", "gauge", help);
    for row in rows {
        out.sample("discovery_up", &[("upstream", &row.name)], u8::from(row.works));
    }
    out.family("discovery_targets", "gauge", "Servers that discovery has found for an entry.");
    for row in rows {
        out.sample("discovery_targets", &[("upstream", &row.name)], row.targets);
    }
}

fn certificates(out: &mut Text<'_>, (done, failed): (u64, u64)) {
    out.family("tls_reloads_total", "counter", "New certificates put in force while running.");
    out.sample("tls_reloads_total", &[], done);
    let name = "tls_reload_failures_total";
    out.family(name, "counter", "New certificates that could not be used.");
    out.sample(name, &[], failed);
}

fn exchanges(out: &mut Text<'_>, counters: &Counters) {
    out.family("exchanges_total", "counter", "Exchanges that ended, by status class.");
    let classes = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
    for (class, count) in classes.iter().zip(counters.by_class) {
        out.sample("exchanges_total", &[("class", class)], count);
    }
    out.family("exchanges_finished_total", "counter", "Exchanges that ended, by how.");
    for finish in Finish::ALL {
        let count = counters.finished(finish);
        out.sample("exchanges_finished_total", &[("finish", finish.name())], count);
    }
    for (name, help, count) in [
        ("attempts_total", "Attempts upstream.", counters.attempts),
        ("retries_total", "Attempts beyond an exchange's first.", counters.retries),
        ("pool_reuse_total", "Exchanges on a pooled connection.", counters.reused),
        ("streams_total", "Exchanges answered with a stream of events.", counters.streamed),
        ("request_bytes_total", "Bytes of request bodies.", counters.request_bytes),
        ("response_bytes_total", "Bytes of response bodies.", counters.response_bytes),
        (
            "client_aborts_total",
            "Exchanges whose client went away.",
            counters.finished(Finish::ClientAbort),
        ),
    ] {
        out.family(name, "counter", help);
        out.sample(name, &[], count);
    }
}

fn times(out: &mut Text<'_>, counters: &Counters) {
    for (name, help, histogram) in [
        ("queue_wait_seconds", "Waits for a place at a busy group.", &counters.queue_us),
        ("time_to_first_byte_seconds", "Times to the response head.", &counters.first_byte_us),
        (
            "proxy_overhead_seconds",
            "Our own time from a request's last byte needed to the pick, without waits.",
            &counters.overhead_us,
        ),
    ] {
        out.family(name, "histogram", help);
        out.histogram(name, &[], (&TIMES_US, Unit::Micros), histogram.values());
    }
}

fn upstreams(out: &mut Text<'_>, rows: &[UpstreamRow]) {
    type Value = fn(&UpstreamRow) -> u64;
    let families: [(&str, &str, &str, Value); 4] = [
        ("upstream_healthy", "gauge", "1 = it has answered and is not known to be down.", |r| {
            u64::from(r.healthy)
        }),
        ("upstream_unknown", "gauge", "1 = not asked yet, or nobody knows where it is.", |r| {
            u64::from(r.unknown)
        }),
        ("in_flight", "gauge", "Attempts in flight.", |r| u64::from(r.in_flight)),
        ("upstream_attempts_total", "counter", "Attempts on an upstream.", |r| r.attempts),
    ];
    for (name, kind, help, value) in families {
        out.family(name, kind, help);
        for row in rows {
            out.sample(name, &[("upstream", &row.name)], value(row));
        }
    }
    out.family("breaker_state", "gauge", "1 = the breaker is in this state.");
    for row in rows {
        for (at, state) in BREAKER.iter().enumerate() {
            let labels = [("upstream", row.name.as_str()), ("state", state)];
            out.sample("breaker_state", &labels, u8::from(row.breaker == at));
        }
    }
}

/// What breakers did. An upstream has one, whatever the group that calls it: the label is the first
/// group that has it.
fn breakers(out: &mut Text<'_>, rows: &[UpstreamRow], labels: &PlanLabels) {
    let group = |row: &UpstreamRow| labels.group_of.get(&row.name).map_or("", String::as_str);
    let name = "circuitbreaker_state_changes_total";
    out.family(name, "counter", "How often a breaker has gone from a state to another.");
    for row in rows {
        for (from, counts) in BREAKER.iter().zip(row.breaker_changes) {
            for (to, count) in BREAKER.iter().zip(counts).filter(|(to, _)| *to != from) {
                let labels = [("group", group(row)), ("upstream", &*row.name)];
                out.sample(name, &[labels[0], labels[1], ("from", from), ("to", to)], count);
            }
        }
    }
    let name = "circuitbreaker_calls_total";
    out.family(name, "counter", "Calls of which a breaker was told, by how they ended.");
    for row in rows {
        for (result, count) in CALLS.iter().zip(row.breaker_calls) {
            let labels = [("group", group(row)), ("upstream", &*row.name), ("result", result)];
            out.sample(name, &labels, count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::labels::{LabelId, LabelKind, LabelNames};
    use crate::telemetry::meters::{ExchangeLabels, Meters};
    use crate::telemetry::outcome::Outcome;
    use crate::telemetry::series::CoreRows;
    use std::collections::HashSet;

    fn text() -> String {
        let mut counters = Counters::default();
        counters.record(&Outcome { status: 200, duration_us: 1_500_000, ..Outcome::default() });
        counters.record(&Outcome { status: 503, duration_us: 3, ..Outcome::default() });
        let row = |name: &str, healthy| UpstreamRow {
            name: name.to_owned(),
            healthy,
            unknown: false,
            in_flight: 2,
            attempts: 7,
            breaker: 1,
            breaker_changes: [[0, 3, 0], [0, 0, 4], [5, 6, 0]],
            breaker_calls: [7, 8, 9],
        };
        let upstreams = vec![row("gpu0", true), row("a\"b\\c\nd", false)];
        let mut labels = PlanLabels::default();
        let mut names = LabelNames::default();
        let listener = names.label(LabelKind::Listener, ["main"].into_iter(), &mut labels)[0];
        let rows = Arc::new(CoreRows::default());
        let labels = Arc::new(labels);
        let mut meters = Meters::new(rows.clone(), labels.clone());
        let of = |listener| ExchangeLabels { listener, ..ExchangeLabels::default() };
        let outcome = Outcome { status: 200, duration_us: 1_500_000, ..Outcome::default() };
        meters.exchange(&of(listener), 2, &outcome, false);
        meters.exchange(&of(LabelId(77)), 2, &outcome, false);
        let mut sums = RowSums::default();
        sums.add(&rows);
        let certificate = CertificateRow {
            side: "listener",
            name: "main".to_owned(),
            certificate: "a.pem".to_owned(),
            seconds_left: -129_600,
        };
        let live = Live {
            handovers: 1,
            handovers_failed: 0,
            queues: vec![("chat".to_owned(), 9)],
            panics: 2,
            certificates: vec![certificate],
            rows: sums,
            labels,
            ..Live::default()
        };
        let (version, certificates) = ("1.2.3", (6, 8));
        let reloads = ReloadCounts { done: 3, at_unix_s: 9, ..ReloadCounts::default() };
        let counters = &counters;
        let prefix = "tokenring_";
        let sources = vec![SourceRow { name: "many".to_owned(), works: false, targets: 2 }];
        render(&Snapshot {
            prefix,
            version,
            counters,
            upstreams,
            live,
            certificates,
            reloads,
            sources,
        })
    }

    #[test]
    fn says_what_was_counted() {
        let text = text();
        for line in [
            "tokenring_build_info{version=\"1.2.3\"} 1",
            "tokenring_exchanges_total{class=\"2xx\"} 1",
            "tokenring_exchanges_total{class=\"5xx\"} 1",
            "tokenring_upstream_healthy{upstream=\"gpu0\"} 1",
            "tokenring_upstream_healthy{upstream=\"a\\\"b\\\\c\\nd\"} 0",
            "tokenring_in_flight{upstream=\"gpu0\"} 2",
            "tokenring_queue_length{group=\"chat\"} 9",
            "tokenring_tls_reloads_total 6",
            "tokenring_config_reload_success 0",
            "tokenring_config_loaded_timestamp_seconds 9",
            "tokenring_config_reloads_total{result=\"done\"} 3",
            "tokenring_discovery_up{upstream=\"many\"} 0",
            "tokenring_discovery_targets{upstream=\"many\"} 2",
            "tokenring_tls_reload_failures_total 8",
            "tokenring_upstream_attempts_total{upstream=\"gpu0\"} 7",
            "tokenring_breaker_state{upstream=\"gpu0\",state=\"closed\"} 0",
            "tokenring_breaker_state{upstream=\"gpu0\",state=\"open\"} 1",
            "tokenring_circuitbreaker_state_changes_total{group=\"\",upstream=\"gpu0\",from=\"half_open\",to=\"closed\"} 5",
            "tokenring_circuitbreaker_calls_total{group=\"\",upstream=\"gpu0\",result=\"timeout\"} 9",
            "tokenring_certificate_remaining_seconds{side=\"listener\",name=\"main\",certificate=\"a.pem\"} -129600",
            "tokenring_http_requests_total{forward=\"main\",method=\"POST\"} 1",
            "tokenring_http_request_duration_seconds_sum{forward=\"main\"} 1.5",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        assert_eq!(text.matches("tokenring_http_requests_total{").count(), 1, "no name, no row");
    }

    #[test]
    fn keeps_the_form() {
        let text = text();
        assert!(text.ends_with('\n'));
        let (mut known, mut series) = (HashSet::new(), HashSet::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap();
                assert!(known.insert(name.to_owned()), "{name} twice");
            } else if !line.starts_with('#') {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(series.insert(name.to_owned()), "{name} twice");
                assert!(value.parse::<f64>().is_ok(), "{line}");
                let bare = name.split('{').next().unwrap();
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|end| bare.strip_suffix(end).filter(|name| known.contains(*name)));
                assert!(known.contains(family.unwrap_or(bare)), "{line}");
            }
        }
    }
}
