//! The load generator: sends requests, checks every answer, then tells how fast.
//!
//! The one idea: a number counts only when what it measures was right and when the
//! measuring side was not the slow one. So each answer is checked to its last byte
//! (framing, order, text), latency in the open loop runs from the moment a request
//! was due, and a client that could not keep up reports nothing but that.
//!
//! Reading order: [`Options`] and [`run`] here, `load` (the connections' loop),
//! `pace` (when requests are due), `client` (one connection), `wire` (the codec),
//! `check` (what an answer must be), `report` (what is told).
//!
//! Each thread is one current-thread runtime with its share of the connections.
//! HTTP/1.1 without TLS; no pipelining, no redirects, no cookies.

mod arrivals;
mod check;
mod client;
mod load;
mod pace;
mod report;
mod schedule;
mod wire;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::text;
pub use arrivals::{Arrivals, Trace, TraceFault, TraceLine};
pub use pace::Pacing;
pub use report::{Report, Verdict};
pub use schedule::{Plan, Planned, Prompt, Schedule, Shape};

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this time no request is begun.
    Elapsed(Duration),
    /// After this many requests.
    Requests(u64),
    /// With the schedule: after the last line of a trace, or of a ramp to rate 0.
    End,
}

/// What a run is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// `http://host[:port]/path`.
    pub url: String,
    /// Sent in the body that the generator makes.
    pub model: String,
    /// Ask for a streamed answer.
    pub stream: bool,
    /// Connections in all, over all threads.
    pub connections: usize,
    /// Threads, each with a runtime of its own.
    pub threads: usize,
    /// Requests a second in all; `None` is the closed loop.
    pub rate: Option<f64>,
    /// How requests of the open loop are spaced.
    pub pacing: Pacing,
    /// When to end.
    pub until: Until,
    /// Sent as it is instead of a made body; texts are then checked by what the
    /// mock says its seed was, and answers cannot be told apart by theirs.
    pub body: Option<Vec<u8>>,
    /// Bytes of prompt in the made body.
    pub prompt_bytes: usize,
    /// Length of the completion to ask for, in tokens.
    pub tokens: Option<u32>,
    /// Sent as `Authorization: Bearer`.
    pub key: Option<String>,
    /// Further fields, name and value.
    pub fields: Vec<(String, String)>,
    /// Leave after this many events of each stream.
    pub abort_after: Option<u64>,
    /// Limit for a whole exchange.
    pub timeout: Duration,
    /// How late the client itself may be, at the 99th percentile.
    pub lag_max: Duration,
    /// Seed of the prompts, the seeds sent along, and the Poisson process.
    pub seed: u64,
}

impl Default for Options {
    /// A closed loop of one connection and one request.
    fn default() -> Options {
        Options {
            url: String::new(),
            model: "mock-model".to_owned(),
            stream: false,
            connections: 1,
            threads: 1,
            rate: None,
            pacing: Pacing::Poisson,
            until: Until::Requests(1),
            body: None,
            prompt_bytes: 64,
            tokens: None,
            key: None,
            fields: Vec::new(),
            abort_after: None,
            timeout: Duration::from_secs(60),
            lag_max: Duration::from_millis(20),
            seed: 1,
        }
    }
}

/// Where a run goes: the parts of its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    addr: SocketAddr,
    host: String,
    path: String,
}

/// Runs a load and returns what came of it.
///
/// Errors: a URL that is not one, a host without address, no thread. What goes
/// wrong with single requests is counted in the report.
pub fn run(options: &Options) -> io::Result<Report> {
    let target = target(&options.url)?;
    let started = Instant::now();
    let threads = options.threads.clamp(1, options.connections.max(1));
    let reports: Vec<io::Result<Report>> = std::thread::scope(|scope| {
        let spawn = |index| {
            let part = load::Part { index, of: threads };
            let (target, options) = (&target, options);
            scope.spawn(move || load::work(options, target, part, started))
        };
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        let failed = || io::Error::other("a worker thread panicked");
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(failed()))).collect()
    });
    let mut total = Report::new(options);
    for report in reports {
        total.add(&report?);
    }
    total.elapsed = started.elapsed();
    Ok(total)
}

fn target(url: &str) -> io::Result<Target> {
    let wrong = |why: &str| io::Error::new(io::ErrorKind::InvalidInput, format!("{why}: {url}"));
    let rest = url.strip_prefix("http://").ok_or_else(|| wrong("not an http:// URL"))?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (host, path) = rest.split_at(at);
    let port_given = host.rsplit(']').next().is_some_and(|end| end.contains(':'));
    let place = if port_given { host.to_owned() } else { format!("{host}:80") };
    let addr = place.to_socket_addrs()?.next().ok_or_else(|| wrong("no address"))?;
    let path = if path.is_empty() { "/v1/chat/completions" } else { path };
    Ok(Target { addr, host: host.to_owned(), path: path.to_owned() })
}

/// The bytes of request `number`: the head and, unless one is given, a made body.
fn request(options: &Options, target: &Target, number: u64, out: &mut Vec<u8>) {
    out.clear();
    let made;
    let body = match &options.body {
        Some(body) => body.as_slice(),
        None => {
            made = made_body(options, &target.path, number);
            made.as_bytes()
        }
    };
    let mut head = format!("POST {} HTTP/1.1\r\nhost: {}\r\n", target.path, target.host);
    let given =
        |name: &str| options.fields.iter().any(|(field, _)| field.eq_ignore_ascii_case(name));
    if !given("content-type") {
        head.push_str("content-type: application/json\r\n");
    }
    if let Some(key) = &options.key {
        head.extend(["authorization: Bearer ", key, "\r\n"]);
    }
    for (name, value) in &options.fields {
        head.extend([name.as_str(), ": ", value, "\r\n"]);
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    out.extend_from_slice(head.as_bytes());
    out.extend_from_slice(body);
}

/// The seed sent with request `number`; below 2^53, so that no JSON reader rounds it.
fn seed_of(options: &Options, number: u64) -> u64 {
    text::mix(options.seed ^ text::mix(number)) >> 12
}

/// A body of which every API takes what it knows, `model` last as some SDKs do it.
fn made_body(options: &Options, path: &str, number: u64) -> String {
    let seed = seed_of(options, number);
    let mut prompt = String::with_capacity(options.prompt_bytes + 16);
    let mut index = 0;
    while prompt.len() < options.prompt_bytes {
        text::push_token(seed, index, &mut prompt);
        index += 1;
    }
    let prompt = serde_json::Value::from(prompt);
    let model = serde_json::Value::from(options.model.as_str());
    let input = match path.rsplit('/').next() {
        Some("completions") if !path.contains("/chat/") => format!("\"prompt\":{prompt}"),
        Some("generate") => format!("\"prompt\":{prompt}"),
        Some("embeddings" | "responses") => format!("\"input\":{prompt}"),
        _ => format!("\"messages\":[{{\"role\":\"user\",\"content\":{prompt}}}]"),
    };
    let tokens = options.tokens.map(|tokens| format!(",\"max_tokens\":{tokens}"));
    let usage = if options.stream && path.ends_with("completions") {
        ",\"stream_options\":{\"include_usage\":true}"
    } else {
        ""
    };
    format!(
        "{{{input},\"seed\":{seed},\"stream\":{}{usage}{},\"model\":{model}}}",
        options.stream,
        tokens.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_urls() {
        let parts = |url| target(url).map(|target| (target.addr.to_string(), target.path)).ok();
        let want = |addr: &str, path: &str| Some((addr.to_owned(), path.to_owned()));
        assert_eq!(parts("http://127.0.0.1:81/a?b"), want("127.0.0.1:81", "/a?b"));
        assert_eq!(parts("http://127.0.0.1"), want("127.0.0.1:80", "/v1/chat/completions"));
        assert_eq!(parts("http://[::1]/x"), want("[::1]:80", "/x"));
        assert_eq!(parts("https://127.0.0.1/x"), None);
    }

    #[test]
    fn made_bodies_are_json_for_every_path() {
        let options = Options { stream: true, tokens: Some(5), ..Options::default() };
        for path in ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/api/chat"] {
            let body: serde_json::Value =
                serde_json::from_str(&made_body(&options, path, 3)).unwrap();
            assert_eq!(body["model"], "mock-model", "{path}");
            assert_eq!(body["seed"], seed_of(&options, 3), "{path}");
        }
    }
}
