//! `loadtest ab`: two targets compared, told in up to four forms.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use loadtest::ab::{AbOptions, compare};
use loadtest::report;
use loadtest::run::{Verdict, parse_duration};

use super::load::LoadArgs;
use super::{TOO_SLOW, is_stdout, put, watching};

#[derive(Debug, Args)]
pub(crate) struct AbArgs {
    /// Target a: http://host:port/path; without a path, /v1/chat/completions.
    #[arg(long, value_name = "URL")]
    a: String,
    /// Target b.
    #[arg(long, value_name = "URL")]
    b: String,
    /// The server behind both: tells also what a and b add to it.
    #[arg(long, value_name = "URL")]
    direct: Option<String>,
    #[command(flatten)]
    load: LoadArgs,
    /// Send each target the load of this time first and do not count it (us, ms, s, m, h).
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "2s")]
    warmup: Duration,
    /// Time for which one target is sent requests before it is another's turn (us, ms, s,
    /// m, h); better longer than an answer takes, and so short that there are eight rounds
    /// (of two turns of each target) or more.
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "500ms")]
    block: Duration,
    /// How often rounds are drawn again for the intervals.
    #[arg(long, value_name = "COUNT", default_value_t = 2000)]
    resamples: u32,
    /// A process of target a: tells its CPU time per request (us, user and system, during
    /// the turns of a) and its memory; may be given more than once, or several at once.
    #[arg(long, value_name = "PID", num_args = 1..)]
    pid_a: Vec<u32>,
    /// A process of target b, likewise.
    #[arg(long, value_name = "PID", num_args = 1..)]
    pid_b: Vec<u32>,
    /// Exit with 1 unless every request got a right answer below 400.
    #[arg(long)]
    strict: bool,
    /// Write one JSON object to the file (times in us); without one, to stdout instead of
    /// the text.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Write a line of CSV for each request to the file (times in us from the start).
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Write a page with curves to the file, which needs no other file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Tell nothing on stderr while it runs.
    #[arg(long, short)]
    quiet: bool,
}

/// Compares, tells, judges.
pub(crate) fn ab(args: &AbArgs) -> io::Result<ExitCode> {
    let wrong = |why: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    if !args.load.slos.is_empty() {
        return wrong("a comparison judges no objectives: use --slo with run or search");
    }
    if args.block < Duration::from_millis(1) {
        return wrong("--block below 1ms");
    }
    let options = AbOptions {
        load: args.load.options(&args.a)?,
        a: args.a.clone(),
        b: args.b.clone(),
        direct: args.direct.clone(),
        warmup: args.warmup,
        block: args.block,
        resamples: args.resamples,
        pids_a: args.pid_a.clone(),
        pids_b: args.pid_b.clone(),
    };
    let told = watching(args.quiet, |live| compare(&options, live))?;
    let mut text = told.to_text();
    if let Some(path) = &args.json {
        put(path, &format!("{}\n", told.to_value()))?;
        if is_stdout(path) {
            text.clear();
        }
    }
    if let Some(path) = &args.csv {
        put(path, &told.to_csv())?;
    }
    if let Some(path) = &args.html {
        put(path, &report::html(&told.to_page()))?;
    }
    put(Path::new("-"), &text)?;
    Ok(match told.verdict() {
        Verdict::ClientTooSlow => ExitCode::from(TOO_SLOW),
        Verdict::Broken | Verdict::NoAnswer => ExitCode::FAILURE,
        Verdict::Good if told.gone().next().is_some() => ExitCode::FAILURE,
        Verdict::Good if args.strict && !told.flawless() => ExitCode::FAILURE,
        Verdict::Good => ExitCode::SUCCESS,
    })
}
