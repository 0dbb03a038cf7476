//! The load generator: sends requests, checks every answer, then tells how fast.
//!
//! The one idea: a number counts only when what it measures was right and when the
//! measuring side was not the slow one. So each answer is checked to its last byte
//! (framing, order, text), latency in the open loop runs from the moment a request
//! was due, and a client that could not keep up reports nothing but that.
//!
//! Reading order: [`Options`] and [`run`] here; what is sent and when: `schedule`,
//! `arrivals`; how: `load` (the connections' loop), `pace` (the clock of the open
//! loop), `client` (one connection), `wire` (the codec), `check` (what an answer must
//! be); what is told: `row`, `report`, `tell`, `slo`, `progress`; what is made of
//! several runs: `search`, `baseline`.
//!
//! Each thread is one current-thread runtime with its share of the connections.
//! HTTP/1.1 without TLS; no pipelining, no redirects, no cookies.

mod arrivals;
mod baseline;
mod check;
mod client;
mod load;
mod pace;
mod progress;
mod report;
mod row;
mod schedule;
mod search;
mod slo;
mod tell;
mod wire;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use arrivals::{Arrivals, Trace, TraceFault, TraceLine};
pub use baseline::{Change, Comparison, compare, parse_percent};
pub use progress::{Live, watch};
pub use report::{Report, Verdict};
pub use row::{Row, rows_to_csv};
pub use schedule::{Plan, Planned, Prompt, Schedule, Shape};
pub use search::{Bounds, End, Found, Step, search};
pub use slo::{Judged, Metric, Slo};
pub use tell::SCHEMA;
pub(crate) use tell::options_value;

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

/// Which loop sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Load {
    /// Each connection sends its next request when it has its answer.
    Closed,
    /// Requests come due on their own.
    Open(Arrivals),
    /// Open loop over these requests, in the order of their due times; `until` is then
    /// best [`Until::End`].
    Listed(Arc<[Planned]>),
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
    /// Which loop sends, and how requests arrive.
    pub load: Load,
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
    /// How late the client itself may be, at the 99th percentile. `None` takes 20 ms in
    /// the closed loop, and in the open loop the larger of 5 ms and a tenth of the median
    /// time to the first byte: what is told may then be a tenth off, or 5 ms.
    pub lag_max: Option<Duration>,
    /// Seed of the prompts, the seeds sent along, and the arrivals.
    pub seed: u64,
    /// Objectives to judge the run by.
    pub slos: Vec<Slo>,
    /// Keep a row of every request (some 150 bytes each).
    pub keep_rows: bool,
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
            load: Load::Closed,
            until: Until::Requests(1),
            body: None,
            prompt_bytes: 64,
            tokens: None,
            key: None,
            fields: Vec::new(),
            abort_after: None,
            timeout: Duration::from_secs(60),
            lag_max: None,
            seed: 1,
            slos: Vec::new(),
            keep_rows: false,
        }
    }
}

impl Options {
    /// What every request asks for.
    pub fn shape(&self) -> Shape {
        Shape {
            model: self.model.as_str().into(),
            stream: self.stream,
            prompt_bytes: self.prompt_bytes,
            tokens: self.tokens,
        }
    }

    /// The plan of the open loop; `None` in the closed loop and for listed requests.
    pub fn plan(&self) -> Option<Plan> {
        let Load::Open(arrivals) = &self.load else { return None };
        Some(Plan {
            arrivals: arrivals.clone(),
            until: self.until,
            seed: self.seed,
            shape: self.shape(),
        })
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
/// Errors: a URL that is not one, a host without address, a schedule that cannot be,
/// no thread. What goes wrong with single requests is counted in the report.
pub fn run(options: &Options) -> io::Result<Report> {
    run_at(options, Instant::now(), &Arc::new(Live::default()))
}

/// As [`run`], with due times counted from `started` and progress told to `live`.
pub fn run_at(options: &Options, started: Instant, live: &Arc<Live>) -> io::Result<Report> {
    let target = target(&options.url)?;
    if let Some(plan) = options.plan() {
        plan.schedule().map_err(wrong)?;
    } else if options.load == Load::Closed && options.until == Until::End {
        return Err(wrong("a closed loop has no end of its own".to_owned()));
    }
    let threads = options.threads.clamp(1, options.connections.max(1));
    let reports: Vec<io::Result<Report>> = std::thread::scope(|scope| {
        let run = load::Run { options, target: &target, started, live };
        let spawn = |index| scope.spawn(move || load::work(run, load::Part { index, of: threads }));
        let workers: Vec<_> = (0..threads).map(spawn).collect();
        let failed = || io::Error::other("a worker thread panicked");
        workers.into_iter().map(|worker| worker.join().unwrap_or_else(|_| Err(failed()))).collect()
    });
    let mut total = Report::new(options);
    for report in reports {
        total.add(report?);
    }
    total.elapsed = started.elapsed();
    total.rows.sort_by_key(|row| (row.intended_us, row.id));
    Ok(total)
}

/// Bad options.
fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Reads `20ms`, `1.5s`, `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let split = units.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)));
    let (count, unit) = split.ok_or("a number with us, ms, s, m or h")?;
    let count: f64 = count.trim().parse().map_err(|_| "not a number")?;
    Duration::try_from_secs_f64(count * unit).map_err(|error| error.to_string())
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

/// Where the server of a URL is.
///
/// Errors: a URL that is not one, a host without address.
pub(crate) fn address(url: &str) -> io::Result<SocketAddr> {
    target(url).map(|target| target.addr)
}

/// The bytes of a request: the head and, unless one is given, a made body.
fn request(options: &Options, target: &Target, planned: &Planned) -> Vec<u8> {
    let made;
    let body = match &options.body {
        Some(body) => body.as_slice(),
        None => {
            made = planned.body(&target.path);
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
    let mut bytes = head.into_bytes();
    bytes.extend_from_slice(body);
    bytes
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
}
