//! `loadtest`: simulated model servers and a load generator, on the command line.
//!
//! Exit codes of `run`: 0 good; 1 wrong answers, no answer at all, or (with
//! `--strict`) any request without a right answer; 2 bad usage; 3 the client was
//! too slow for its numbers to mean anything.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use loadtest::mock::{KeepAlive, Mock, MockConfig};
use loadtest::run::{self, Arrivals, Load, Options, Until, Verdict};

/// Simulated model servers, and a load generator that checks what it receives.
#[derive(Debug, Parser)]
#[command(name = "loadtest")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve as a simulated model server until killed.
    Mock(MockArgs),
    /// Send requests, check the answers, tell how fast.
    Run(RunArgs),
}

#[derive(Debug, Args)]
struct MockArgs {
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Address to listen on.
    #[arg(long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    host: IpAddr,
    /// Sent as x-mock-server.
    #[arg(long, default_value = "mock")]
    name: String,
    /// A model to list; may be given more than once.
    #[arg(long = "model", default_value = "mock-model")]
    models: Vec<String>,
    /// Time between two tokens.
    #[arg(long, value_parser = duration, default_value = "20ms")]
    interval: Duration,
    /// Time before the first token.
    #[arg(long, value_parser = duration, default_value = "0ms")]
    first_token: Duration,
    /// Length of a completion.
    #[arg(long, default_value_t = 64)]
    tokens: u32,
    /// Seed of the texts.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Key that requests must bring.
    #[arg(long)]
    key: Option<String>,
    /// What happens to a connection after an answer.
    #[arg(long, value_enum, default_value_t = Keep::Normal)]
    keep_alive: Keep,
    /// Idle time after which `--keep-alive idle` closes.
    #[arg(long, value_parser = duration, default_value = "5s")]
    idle: Duration,
    /// Unix socket to listen on besides.
    #[arg(long)]
    unix: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Keep {
    /// Kept without limit.
    Normal,
    /// As llama-server: promises, and closes after every stream.
    Llama,
    /// Closed after every answer.
    Close,
    /// Closed when idle, unannounced.
    Idle,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// http://host:port/path; without a path, /v1/chat/completions.
    url: String,
    /// Model to ask for.
    #[arg(long, default_value = "mock-model")]
    model: String,
    /// Connections in all.
    #[arg(long, short, default_value_t = 16)]
    connections: usize,
    /// Threads, each with its share of the connections.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Requests a second (open loop); without it, the closed loop.
    #[arg(long)]
    rate: Option<f64>,
    /// Spacing of the open loop.
    #[arg(long, value_enum, default_value_t = Spacing::Poisson)]
    pacing: Spacing,
    /// End after this time.
    #[arg(long, value_parser = duration, default_value = "10s", conflicts_with = "requests")]
    duration: Duration,
    /// End after this many requests.
    #[arg(long, short = 'n')]
    requests: Option<u64>,
    /// Ask for streams.
    #[arg(long)]
    stream: bool,
    /// File to send as the body of every request.
    #[arg(long)]
    body: Option<PathBuf>,
    /// Bytes of prompt, when the body is made here.
    #[arg(long, default_value_t = 64)]
    prompt_bytes: usize,
    /// Sent as max_tokens.
    #[arg(long)]
    tokens: Option<u32>,
    /// Sent as Authorization: Bearer.
    #[arg(long)]
    key: Option<String>,
    /// A further field, `name: value`; may be given more than once.
    #[arg(long = "header", value_parser = field)]
    fields: Vec<(String, String)>,
    /// Leave each stream after this many events.
    #[arg(long)]
    abort_after: Option<u64>,
    /// Limit for a whole exchange.
    #[arg(long, value_parser = duration, default_value = "60s")]
    timeout: Duration,
    /// How late the client itself may be (99th percentile).
    #[arg(long, value_parser = duration, default_value = "20ms")]
    lag_max: Duration,
    /// Seed of prompts and arrivals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Exit with 1 unless every request got a right answer below 400.
    #[arg(long)]
    strict: bool,
    /// Tell it as one JSON object.
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Tell it as two lines of CSV.
    #[arg(long)]
    csv: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Spacing {
    /// Independent arrivals.
    Poisson,
    /// Equal gaps.
    Constant,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Mock(args) => serve(args),
        Command::Run(args) => load(args),
    };
    done.unwrap_or_else(|error| {
        // Nobody is left to tell when even this cannot be written.
        let _ = writeln!(io::stderr(), "loadtest: {error}");
        ExitCode::from(2)
    })
}

fn serve(args: MockArgs) -> io::Result<ExitCode> {
    let mock = Mock::start(MockConfig {
        name: args.name,
        bind: SocketAddr::new(args.host, args.port),
        models: args.models,
        interval: args.interval,
        first_token: args.first_token,
        tokens: args.tokens,
        seed: args.seed,
        api_key: args.key,
        keep_alive: match args.keep_alive {
            Keep::Normal => KeepAlive::Normal,
            Keep::Llama => KeepAlive::LlamaServer,
            Keep::Close => KeepAlive::CloseAlways,
            Keep::Idle => KeepAlive::IdleClose(args.idle),
        },
        unix: args.unix,
    })?;
    writeln!(io::stdout(), "listening on {}", mock.url())?;
    loop {
        // The server has its own thread; signals end the process.
        std::thread::park();
    }
}

fn load(args: RunArgs) -> io::Result<ExitCode> {
    let report = run::run(&Options {
        url: args.url,
        model: args.model,
        stream: args.stream,
        connections: args.connections,
        threads: args.threads,
        load: args.rate.map_or(Load::Closed, |rate| {
            Load::Open(match args.pacing {
                Spacing::Poisson => Arrivals::Poisson { rate },
                Spacing::Constant => Arrivals::Constant { rate },
            })
        }),
        until: args.requests.map_or(Until::Elapsed(args.duration), Until::Requests),
        body: args.body.map(std::fs::read).transpose()?,
        prompt_bytes: args.prompt_bytes,
        tokens: args.tokens,
        key: args.key,
        fields: args.fields,
        abort_after: args.abort_after,
        timeout: args.timeout,
        lag_max: Some(args.lag_max),
        seed: args.seed,
        ..Options::default()
    })?;
    let told = match (args.json, args.csv) {
        (true, _) => report.to_json(),
        (_, true) => report.to_csv(),
        _ => report.to_text(),
    };
    io::stdout().write_all(told.as_bytes())?;
    Ok(match report.verdict() {
        Verdict::Good if args.strict && !report.flawless() => ExitCode::FAILURE,
        Verdict::Good => ExitCode::SUCCESS,
        Verdict::Broken | Verdict::NoAnswer => ExitCode::FAILURE,
        Verdict::ClientTooSlow => ExitCode::from(3),
    })
}

/// Reads `20ms`, `1.5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let units = [("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0)];
    let split = units.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, unit)));
    let (count, unit) = split.ok_or("a number with us, ms, s or m")?;
    let count: f64 = count.trim().parse().map_err(|_| "not a number")?;
    Duration::try_from_secs_f64(count * unit).map_err(|error| error.to_string())
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("no colon in the field")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}
