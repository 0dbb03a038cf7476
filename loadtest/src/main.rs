//! `loadtest`: simulated model servers and a load generator, on the command line.
//!
//! Exit codes: 0 good; 1 wrong answers, no answer at all, an objective missed, a metric
//! worse than its baseline, or (with `--strict`) any request without a right answer;
//! 2 bad usage; 3 the client was too slow for its numbers to mean anything.

mod cli;

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use loadtest::mock::{KeepAlive, Mock, MockConfig};
use loadtest::run::parse_duration;

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
    Run(cli::run::RunArgs),
    /// Compare two targets: the same requests to both in turn, and what differs.
    ///
    /// Sends the same schedule to each target in turn (A B B A) and tells how b differs from
    /// a, in ms (in JSON in us): the median of the paired differences, and by how much the
    /// 99th percentile moved, each with a 95 % interval. It needs an open loop (--rate,
    /// --arrivals or --trace). --duration and --requests are those of one target: the run
    /// takes their time once for each target, and that of the warm-up. --slo is refused.
    Ab(cli::ab::AbArgs),
    /// Find the highest rate that meets the objectives.
    Search(cli::search::SearchArgs),
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
    #[arg(long, value_parser = parse_duration, default_value = "20ms")]
    interval: Duration,
    /// Time before the first token.
    #[arg(long, value_parser = parse_duration, default_value = "0ms")]
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
    #[arg(long, value_parser = parse_duration, default_value = "5s")]
    idle: Duration,
    /// Unix socket to listen on besides.
    #[arg(long)]
    unix: Option<PathBuf>,
    /// What every request gets on top, in the words of x-mock, e.g. `status=500` or `delay=3600s`.
    #[arg(long, value_name = "LIST", default_value = "")]
    behave: String,
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

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Mock(args) => serve(args),
        Command::Run(args) => cli::run::run(&args),
        Command::Ab(args) => cli::ab::ab(&args),
        Command::Search(args) => cli::search::search(&args),
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
        says: None,
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
    mock.try_behave(&args.behave)
        .map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    writeln!(io::stdout(), "listening on {}", mock.url())?;
    loop {
        // The server has its own thread; signals end the process.
        std::thread::park();
    }
}
