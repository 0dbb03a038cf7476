//! `loadtest run`: one run, told in up to four forms and held against an earlier one.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use loadtest::ab::Quantity;
use loadtest::report::{self, Page, Sample, Series};
use loadtest::run::{Comparison, Report, Row, Verdict, compare, parse_percent, rows_to_csv};

use super::load::LoadArgs;
use super::{TOO_SLOW, is_stdout, named, put, watched};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// http://host:port/path; without a path, /v1/chat/completions.
    url: String,
    #[command(flatten)]
    load: LoadArgs,
    /// Exit with 1 unless every request got a right answer below 400.
    #[arg(long)]
    strict: bool,
    /// Write one JSON object to the file; without one, to stdout instead of the text.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Write a line of CSV for each request to the file (times in us from the start);
    /// without one, two lines of totals to stdout instead of the text.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    csv: Option<PathBuf>,
    /// Write a page with curves to the file, which needs no other file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// The JSON of an earlier run to compare with.
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Exit with 1 when a metric is worse than in the baseline by more than this.
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent, default_value = "5%", requires = "baseline")]
    fail_on: f64,
    /// Tell nothing on stderr while it runs.
    #[arg(long, short)]
    quiet: bool,
}

/// Runs, tells, judges.
pub(crate) fn run(args: &RunArgs) -> io::Result<ExitCode> {
    let mut options = args.load.options(&args.url)?;
    let to_stdout = |path: &Option<PathBuf>| path.as_deref().is_some_and(is_stdout);
    if to_stdout(&args.json) && to_stdout(&args.csv) {
        return Err(io::Error::other("--json and --csv both to stdout"));
    }
    options.keep_rows =
        args.html.is_some() || args.csv.as_deref().is_some_and(|path| !is_stdout(path));
    // Read before the run: an hour of load should not end with a wrong file name.
    let baseline = args.baseline.as_deref().map(read_json).transpose()?;
    let report = watched(&options, args.quiet)?;
    let valid = report.verdict() != Verdict::ClientTooSlow;
    let told = baseline
        .as_ref()
        .filter(|_| valid)
        .map(|before| compare(before, &report.to_value(), args.fail_on).map_err(io::Error::other));
    let compared = told.transpose()?;
    tell(args, &report, compared.as_ref())?;
    let worse = compared.is_some_and(|compared| compared.worse().next().is_some());
    let met = report.judged().iter().all(|judged| judged.met);
    Ok(match report.verdict() {
        Verdict::ClientTooSlow => ExitCode::from(TOO_SLOW),
        Verdict::Broken | Verdict::NoAnswer => ExitCode::FAILURE,
        Verdict::Good if args.strict && !report.flawless() => ExitCode::FAILURE,
        Verdict::Good if worse || !met => ExitCode::FAILURE,
        Verdict::Good => ExitCode::SUCCESS,
    })
}

fn tell(args: &RunArgs, report: &Report, compared: Option<&Comparison>) -> io::Result<()> {
    let mut text = report.to_text();
    if let Some(compared) = compared {
        text += &compared.to_text();
    }
    if let Some(path) = &args.json {
        let mut told = report.to_value();
        if let Some(compared) = compared {
            told["baseline"] = compared.to_value();
        }
        put(path, &format!("{told}\n"))?;
        if is_stdout(path) {
            text.clear();
        }
    }
    match &args.csv {
        Some(path) if is_stdout(path) => text = report.to_csv(),
        Some(path) => put(path, &rows_to_csv(&report.rows))?,
        None => {}
    }
    if let Some(path) = &args.html {
        put(path, &report::html(&page(&args.url, report)))?;
    }
    put(Path::new("-"), &text)
}

/// What the page of a run shows; a client that was too slow leaves it without curves.
fn page(url: &str, report: &Report) -> Page {
    let valid = report.verdict() != Verdict::ClientTooSlow;
    let samples = |quantity: Quantity| {
        let sample = |row: &Row| Some(Sample { at_us: row.intended_us, us: quantity.of(row)? });
        report.rows.iter().filter_map(sample).collect()
    };
    let series = Series {
        name: url.to_owned(),
        latency: samples(Quantity::Latency),
        first_token: samples(Quantity::FirstToken),
    };
    // The text says all there is to say, a name and its values in each line.
    let facts = report.to_text();
    let facts = facts.lines().map(|line| line.trim().split_once(' ').unwrap_or((line, "")));
    Page {
        title: format!("loadtest run {url}"),
        facts: facts.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect(),
        verdict: report.message(),
        good: report.verdict() == Verdict::Good && report.judged().iter().all(|one| one.met),
        series: if valid { vec![series] } else { Vec::new() },
        ..Page::default()
    }
}

fn read_json(path: &Path) -> io::Result<serde_json::Value> {
    let text = std::fs::read(path).map_err(|error| named(path, &error))?;
    serde_json::from_slice(&text).map_err(|error| named(path, &error))
}
