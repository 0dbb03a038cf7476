//! `loadtest search`: the highest rate that meets the objectives.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use loadtest::run::{self, Bounds, End, parse_duration, parse_percent};

use super::load::{LoadArgs, Shape};
use super::{TOO_SLOW, is_stdout, put, watched};

#[derive(Debug, Args)]
pub(crate) struct SearchArgs {
    /// http://host:port/path; without a path, /v1/chat/completions.
    url: String,
    #[command(flatten)]
    load: LoadArgs,
    /// First rate to try, in requests a second; --rate is not used.
    #[arg(long, value_name = "RATE", default_value_t = 1.0)]
    from: f64,
    /// Highest rate to try, in requests a second.
    #[arg(long, value_name = "RATE", default_value_t = 10_000.0)]
    to: f64,
    /// How near the found rate must be to one that fails.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, default_value = "5%")]
    within: f64,
    /// Most steps; each is a run of --duration or --requests with a seed of its own.
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    steps: u32,
    /// Begin no step that would end after this time (us, ms, s, m, h).
    #[arg(long, value_name = "TIME", value_parser = parse_duration, default_value = "15m")]
    budget: Duration,
    /// Write one JSON object to the file; without one, to stdout instead of the text.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Tell nothing on stderr while it runs.
    #[arg(long, short)]
    quiet: bool,
}

/// Searches, telling each step.
pub(crate) fn search(args: &SearchArgs) -> io::Result<ExitCode> {
    let mut load = args.load.clone();
    if load.rate.is_some() {
        return Err(io::Error::other("a search finds the rate: use --from and --to, not --rate"));
    }
    // The shape needs some rate until each step sets its own.
    match load.arrivals {
        None if load.trace.is_some() => {}
        Some(Shape::Burst | Shape::Trace) => {}
        _ => load.rate = Some(args.from),
    }
    let bounds = Bounds {
        from: args.from,
        to: args.to,
        within: args.within,
        steps_max: args.steps,
        budget: args.budget,
    };
    let json_to_stdout = args.json.as_deref().is_some_and(is_stdout);
    let send = |options: &run::Options| watched(options, args.quiet);
    let found = run::search(&load.options(&args.url)?, &bounds, send, |step| {
        if !json_to_stdout {
            // Nobody is left to tell when stdout is closed; the end says it again.
            let _ = writeln!(io::stdout(), "{}", step.to_line());
        }
    })?;
    if let Some(path) = &args.json {
        put(path, &found.to_json())?;
    }
    if !json_to_stdout {
        put(Path::new("-"), &found.to_text())?;
    }
    Ok(match found.end {
        End::ClientTooSlow => ExitCode::from(TOO_SLOW),
        End::Broken | End::NoAnswer => ExitCode::FAILURE,
        _ if found.best.is_none() => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}
