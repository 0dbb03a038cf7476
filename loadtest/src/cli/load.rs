//! The flags that say what is sent and when; all generators share them.
//!
//! A flag that the chosen arrivals do not use is refused: a run that ignores half of
//! what it was told measures something else than its reader thinks.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use loadtest::run::{Arrivals, Load, Options, Slo, Trace, Until, parse_duration};

use super::named;

/// How long a run is when nothing says so.
const DURATION: Duration = Duration::from_secs(10);
/// Connections of the closed loop, where each of them is load.
const CONNECTIONS_CLOSED: usize = 16;
/// Connections of the open loop, where they are only room.
const CONNECTIONS_OPEN: usize = 128;

#[derive(Clone, Debug, Args)]
pub(crate) struct LoadArgs {
    /// Model to ask for.
    #[arg(long, default_value = "mock-model")]
    pub(crate) model: String,
    /// Connections in all [default: 16; 128 in the open loop, where a request that finds
    /// none free waits, which counts as latency].
    #[arg(long, short)]
    pub(crate) connections: Option<usize>,
    /// Threads, each with its share of the connections.
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
    /// How requests arrive in the open loop [default: poisson with --rate, trace with
    /// --trace; without either, the closed loop: each connection sends its next request
    /// when it has its answer].
    #[arg(long, value_enum, alias = "pacing")]
    pub(crate) arrivals: Option<Shape>,
    /// Requests a second in all, on average; of a ramp, the rate at its beginning.
    #[arg(long)]
    pub(crate) rate: Option<f64>,
    /// Gamma: coefficient of variation of the gaps; 1 is Poisson, above it is burstier
    /// [default: 2].
    #[arg(long)]
    pub(crate) cv: Option<f64>,
    /// Gamma: shape of the gaps instead of --cv, which is 1/sqrt(shape).
    #[arg(long, conflicts_with = "cv")]
    pub(crate) shape: Option<f64>,
    /// Burst: requests at once.
    #[arg(long, value_name = "COUNT")]
    pub(crate) burst: Option<u32>,
    /// Burst: time from one burst to the next (us, ms, s, m, h) [default: 1s].
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) every: Option<Duration>,
    /// Ramp: requests a second at its end.
    #[arg(long, value_name = "RATE")]
    pub(crate) rate_to: Option<f64>,
    /// Ramp: time over which the rate moves; it then stays [default: the duration].
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) ramp_over: Option<Duration>,
    /// Trace: file of JSON lines with timestamp (ms), input_length, output_length (tokens)
    /// and hash_ids (512 tokens each), as Mooncake publishes them.
    #[arg(long, value_name = "FILE")]
    pub(crate) trace: Option<PathBuf>,
    /// Trace: how much faster than it was recorded; 2 takes half the time [default: 1].
    #[arg(long, value_name = "FACTOR")]
    pub(crate) speed: Option<f64>,
    /// Begin no request after this time (us, ms, s, m, h) [default: 10s; of a trace, its
    /// end].
    #[arg(long, value_parser = parse_duration, value_name = "TIME", conflicts_with = "requests")]
    pub(crate) duration: Option<Duration>,
    /// End after this many requests.
    #[arg(long, short = 'n', value_name = "COUNT")]
    pub(crate) requests: Option<u64>,
    /// Ask for streams.
    #[arg(long)]
    pub(crate) stream: bool,
    /// File to send as the body of every request.
    #[arg(long, value_name = "FILE", conflicts_with = "trace")]
    pub(crate) body: Option<PathBuf>,
    /// Bytes of prompt, when the body is made here and no trace says its length.
    #[arg(long, default_value_t = 64)]
    pub(crate) prompt_bytes: usize,
    /// Sent as max_tokens, when no trace says it.
    #[arg(long)]
    pub(crate) tokens: Option<u32>,
    /// Sent as Authorization: Bearer.
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// A further field, `name: value`; may be given more than once.
    #[arg(long = "header", value_parser = field)]
    pub(crate) fields: Vec<(String, String)>,
    /// Leave each stream after this many events.
    #[arg(long)]
    pub(crate) abort_after: Option<u64>,
    /// Limit for a whole exchange (us, ms, s, m, h).
    #[arg(long, value_parser = parse_duration, value_name = "TIME", default_value = "60s")]
    pub(crate) timeout: Duration,
    /// How late the client itself may be, at the 99th percentile, for its numbers to
    /// stand [default: the larger of 5ms and a tenth of the median time to the first
    /// byte; 20ms in the closed loop].
    #[arg(long, value_parser = parse_duration, value_name = "TIME")]
    pub(crate) lag_max: Option<Duration>,
    /// Seed of prompts and arrivals: the same seed sends the same bytes at the same times.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// An objective such as ttft=300ms:p99, itl=50ms:p95 or e2e=10s:p99.9; may be given
    /// more than once. ttft is the time to the first text of a stream, itl the time
    /// between two pieces of it, e2e the time to the end of the answer; ttft and e2e
    /// count from when a request was due, and a request without a right answer counts
    /// as the slowest.
    #[arg(long = "slo", value_name = "NAME=TIME[:QUANTILE]")]
    pub(crate) slos: Vec<Slo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shape {
    /// Equal gaps.
    Constant,
    /// Independent arrivals: exponential gaps.
    Poisson,
    /// Gamma gaps, burstier or steadier than Poisson by --cv.
    Gamma,
    /// Many at once, then nothing: --burst, --every.
    Burst,
    /// From one rate to another: --rate, --rate-to.
    Ramp,
    /// As recorded: --trace.
    Trace,
}

impl LoadArgs {
    /// The options of a run towards `url`.
    ///
    /// Errors: flags that do not fit together, files that cannot be read.
    pub(crate) fn options(&self, url: &str) -> io::Result<Options> {
        let load = self.arrivals()?.map_or(Load::Closed, Load::Open);
        let traced = matches!(load, Load::Open(Arrivals::Trace { .. }));
        let until = match (self.requests, self.duration) {
            (Some(count), _) => Until::Requests(count),
            (None, Some(limit)) => Until::Elapsed(limit),
            (None, None) if traced => Until::End,
            (None, None) => Until::Elapsed(DURATION),
        };
        let closed = load == Load::Closed;
        let body =
            self.body.as_ref().map(|path| std::fs::read(path).map_err(|error| named(path, &error)));
        Ok(Options {
            url: url.to_owned(),
            model: self.model.clone(),
            stream: self.stream,
            connections: self.connections.unwrap_or(if closed {
                CONNECTIONS_CLOSED
            } else {
                CONNECTIONS_OPEN
            }),
            threads: self.threads,
            load,
            until,
            body: body.transpose()?,
            prompt_bytes: self.prompt_bytes,
            tokens: self.tokens,
            key: self.key.clone(),
            fields: self.fields.clone(),
            abort_after: self.abort_after,
            timeout: self.timeout,
            lag_max: self.lag_max,
            seed: self.seed,
            slos: self.slos.clone(),
            keep_rows: false,
        })
    }

    /// How requests arrive; `None` is the closed loop.
    fn arrivals(&self) -> io::Result<Option<Arrivals>> {
        let shape = match self.arrivals {
            Some(shape) => shape,
            None if self.trace.is_some() => Shape::Trace,
            None if self.rate.is_some() => Shape::Poisson,
            None => return self.refuse_others(None).map(|()| None),
        };
        self.refuse_others(Some(shape))?;
        let need = |rate: Option<f64>, flag: &str| {
            rate.ok_or_else(|| wrong(format!("these arrivals need {flag}")))
        };
        let rate = || need(self.rate, "--rate");
        let arrivals = match shape {
            Shape::Constant => Arrivals::Constant { rate: rate()? },
            Shape::Poisson => Arrivals::Poisson { rate: rate()? },
            Shape::Gamma => {
                let of_shape = self.shape.map(|shape| 1.0 / shape.sqrt());
                Arrivals::Gamma { rate: rate()?, cv: self.cv.or(of_shape).unwrap_or(2.0) }
            }
            Shape::Burst => Arrivals::Burst {
                count: self.burst.ok_or_else(|| wrong("these arrivals need --burst".to_owned()))?,
                every: self.every.unwrap_or(Duration::from_secs(1)),
            },
            Shape::Ramp => {
                let whole = || self.requests.is_none().then_some(DURATION);
                let over = self.ramp_over.or(self.duration).or_else(whole);
                let over = over.ok_or_else(|| {
                    wrong("a ramp that ends by --requests needs --ramp-over".to_owned())
                })?;
                Arrivals::Ramp { from: rate()?, to: need(self.rate_to, "--rate-to")?, over }
            }
            Shape::Trace => {
                let path = self.trace.as_ref();
                let path = path.ok_or_else(|| wrong("these arrivals need --trace".to_owned()))?;
                let text = std::fs::read_to_string(path).map_err(|error| named(path, &error))?;
                let trace = Trace::parse(&text).map_err(|fault| named(path, &fault))?;
                Arrivals::Trace { trace: Arc::new(trace), speed: self.speed.unwrap_or(1.0) }
            }
        };
        arrivals.check().map_err(wrong)?;
        Ok(Some(arrivals))
    }

    /// Refuses what the chosen arrivals do not use.
    fn refuse_others(&self, chosen: Option<Shape>) -> io::Result<()> {
        use Shape::{Burst, Constant, Gamma, Poisson, Ramp, Trace};
        let flags: [(&str, bool, &[Shape]); 9] = [
            ("--rate", self.rate.is_some(), &[Constant, Poisson, Gamma, Ramp]),
            ("--cv", self.cv.is_some(), &[Gamma]),
            ("--shape", self.shape.is_some(), &[Gamma]),
            ("--burst", self.burst.is_some(), &[Burst]),
            ("--every", self.every.is_some(), &[Burst]),
            ("--rate-to", self.rate_to.is_some(), &[Ramp]),
            ("--ramp-over", self.ramp_over.is_some(), &[Ramp]),
            ("--trace", self.trace.is_some(), &[Trace]),
            ("--speed", self.speed.is_some(), &[Trace]),
        ];
        let unused = flags.into_iter().find(|(_, given, shapes)| {
            *given && !chosen.is_some_and(|shape| shapes.contains(&shape))
        });
        match unused {
            None => Ok(()),
            Some((flag, _, _)) => Err(wrong(format!("these arrivals do not use {flag}"))),
        }
    }
}

fn wrong(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("no colon in the field")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
    }

    fn options(line: &str) -> Result<Options, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.load.options("http://127.0.0.1").map_err(|error| error.to_string())
    }

    #[test]
    fn flags_choose_the_loop_and_its_end() {
        let until = |line: &str| options(line).unwrap().until;
        let load = |line: &str| options(line).unwrap().load;
        assert_eq!(load(""), Load::Closed);
        assert_eq!(options("").unwrap().connections, 16);
        assert_eq!(options("--rate 5").unwrap().connections, 128);
        assert_eq!(load("--rate 5"), Load::Open(Arrivals::Poisson { rate: 5.0 }));
        assert_eq!(
            load("--rate 5 --pacing constant"),
            Load::Open(Arrivals::Constant { rate: 5.0 })
        );
        let gamma = Load::Open(Arrivals::Gamma { rate: 5.0, cv: 0.5 });
        assert_eq!(load("--rate 5 --arrivals gamma --shape 4"), gamma);
        assert_eq!(load("--rate 5 --arrivals gamma --cv 0.5"), gamma);
        let every = Duration::from_secs(1);
        assert_eq!(
            load("--arrivals burst --burst 20"),
            Load::Open(Arrivals::Burst { count: 20, every })
        );
        let over = Duration::from_secs(30);
        assert_eq!(
            load("--arrivals ramp --rate 0 --rate-to 9 --duration 30s"),
            Load::Open(Arrivals::Ramp { from: 0.0, to: 9.0, over })
        );
        assert_eq!(until(""), Until::Elapsed(DURATION));
        assert_eq!(until("-n 7"), Until::Requests(7));
    }

    #[test]
    fn flags_that_do_not_fit_are_refused_by_name() {
        for (line, flag) in [
            ("--cv 2", "--cv"),
            ("--rate 5 --cv 2", "--cv"),
            ("--arrivals gamma", "--rate"),
            ("--arrivals burst --burst 2 --rate 5", "--rate"),
            ("--arrivals burst", "--burst"),
            ("--arrivals ramp --rate 5", "--rate-to"),
            ("--arrivals ramp --rate 5 --rate-to 9 -n 5", "--ramp-over"),
            ("--arrivals trace", "--trace"),
            ("--trace /nonexistent --body /nonexistent", "--body"),
            ("--trace /nonexistent", "/nonexistent"),
            ("--duration 1s -n 5", "--requests"),
            ("--rate 0", "rate 0"),
            ("--slo ttft=1s:99", "--slo"),
        ] {
            let told = options(line).unwrap_err();
            assert!(told.contains(flag), "{line}: {told}");
        }
    }
}
