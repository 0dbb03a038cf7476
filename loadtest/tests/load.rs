//! Schedules, objectives, the search and the baseline, against the mock.
#![cfg(all(feature = "mock", feature = "run"))]
// In a test a panic is the report; clippy sees that for #[test] functions only.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use loadtest::mock::{Mock, MockConfig};
use loadtest::run::{
    Arrivals, Bounds, End, Live, Load, Options, Plan, Planned, Until, Verdict, run, run_at, search,
};
use serde_json::Value;

fn mock() -> Mock {
    Mock::start(MockConfig { interval: Duration::ZERO, ..MockConfig::default() }).unwrap()
}

/// A file that goes with its test.
struct File(PathBuf);

impl File {
    fn new(text: &str) -> File {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, SeqCst);
        let name = format!("loadtest-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        File(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.0).unwrap()
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.text()).unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// The binary, on a machine that may be busy with other things.
fn loadtest(command: &str, mock: &Mock, arguments: &[&str]) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    process.args([command, &mock.url()]).args(arguments);
    if !arguments.contains(&"--lag-max") {
        process.args(["--lag-max", "5s"]);
    }
    process.output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A column of the rows.
fn column(csv: &str, name: &str) -> Vec<String> {
    let at = csv.lines().next().unwrap().split(',').position(|column| column == name).unwrap();
    csv.lines().skip(1).map(|line| line.split(',').nth(at).unwrap().to_owned()).collect()
}

/// What the mock saw, in the order of the seeds, which is none of time.
fn bodies(mock: &Mock) -> Vec<[u8; 32]> {
    let mut bodies: Vec<_> = mock.seen().iter().map(|seen| seen.body_sha256).collect();
    bodies.sort_unstable();
    mock.forget_seen();
    bodies
}

#[test]
fn same_seed_sends_the_same_bytes_at_the_same_times_on_any_number_of_threads() {
    let mock = mock();
    let (mut times, mut sent) = (Vec::new(), Vec::new());
    for (seed, threads) in [("7", "1"), ("7", "3"), ("8", "1")] {
        let rows = File::new("");
        let told = loadtest(
            "run",
            &mock,
            &[
                "--arrivals",
                "gamma",
                "--rate",
                "400",
                "--cv",
                "1.5",
                "-n",
                "60",
                "--seed",
                seed,
                "--threads",
                threads,
                "--csv",
                rows.path(),
            ],
        );
        assert_eq!(told.status.code(), Some(0), "{}{}", out(&told), err(&told));
        let csv = rows.text();
        assert_eq!(column(&csv, "id"), (0..60).map(|id: u64| id.to_string()).collect::<Vec<_>>());
        times.push(column(&csv, "intended_us"));
        sent.push(bodies(&mock));
    }
    assert_eq!((&times[0], &sent[0]), (&times[1], &sent[1]));
    assert_ne!(times[0], times[2]);
    assert_ne!(sent[0], sent[2]);
}

#[test]
fn rows_and_json_tell_the_same_run() {
    let mock = mock();
    let (json, rows) = (File::new(""), File::new(""));
    let told = loadtest(
        "run",
        &mock,
        &[
            "--stream",
            "--rate",
            "300",
            "-n",
            "40",
            "--header",
            "x-mock: tokens=6,first_token=5ms",
            "--slo",
            "ttft=20s:p99",
            "--slo",
            "itl=20s",
            "--slo",
            "e2e=30s:p99.9",
            "--key",
            "sk-no",
            "--json",
            json.path(),
            "--csv",
            rows.path(),
            "--quiet",
        ],
    );
    assert_eq!(told.status.code(), Some(0), "{}{}", out(&told), err(&told));
    assert!(out(&told).contains("goodput") && err(&told).is_empty(), "{}", err(&told));
    let (json, text, csv) = (json.json(), json.text(), rows.text());
    assert_eq!((&json["schema"], &json["kind"]), (&1.into(), &"run".into()));
    assert_eq!((&json["verdict"], &json["valid"]), (&"good".into(), &true.into()));
    assert_eq!(
        (&json["ok"], &json["within"], &json["tokens"]),
        (&40.into(), &40.into(), &240.into())
    );
    assert_eq!((&json["slos_met"], json["slos"].as_array().unwrap().len()), (&true.into(), 3));
    assert_eq!(json["options"]["arrivals"]["shape"], "poisson");
    assert!(!text.contains("sk-no"), "{text}");
    for (timing, count) in [("latency_us", 40), ("first_token_us", 40), ("inter_token_us", 200)] {
        assert_eq!(json["timings"][timing]["count"], count, "{timing}");
    }
    assert!(json["lag"]["p99_us"].is_u64() && json["lag"]["send_us"]["count"].is_u64());
    assert_eq!(csv.lines().count(), 41);
    let number = |name: &str| -> Vec<u64> {
        column(&csv, name).iter().map(|cell| cell.parse().unwrap()).collect()
    };
    let (intended, sent, first) =
        (number("intended_us"), number("sent_us"), number("first_byte_us"));
    let (token, done) = (number("first_token_us"), number("done_us"));
    for at in 0..40 {
        let order = [intended[at], sent[at], first[at], token[at], done[at]];
        assert!(order.is_sorted(), "{order:?}");
        assert!(token[at] - sent[at] >= 5_000, "{order:?}");
    }
    assert!(column(&csv, "tokens").iter().all(|tokens| tokens == "6"));
    let max = done.iter().zip(&intended).map(|(done, due)| done - due).max().unwrap() as f64;
    let told = json["timings"]["latency_us"]["max"].as_f64().unwrap();
    assert!((told / max - 1.0).abs() < 0.002, "{told} for {max}");
}

#[test]
fn bursts_and_failures_are_in_the_rows() {
    let mock = mock();
    let rows = File::new("");
    let told = loadtest(
        "run",
        &mock,
        &[
            "--arrivals",
            "burst",
            "--burst",
            "4",
            "--every",
            "50ms",
            "-n",
            "12",
            "--csv",
            rows.path(),
            "--header",
            "x-mock: drop",
        ],
    );
    assert_eq!(told.status.code(), Some(1), "nobody answers");
    let csv = rows.text();
    let due = column(&csv, "intended_us");
    assert_eq!(due[..5], ["0", "0", "0", "0", "50000"]);
    assert!(column(&csv, "error").iter().all(|error| error == "no_answer"), "{csv}");
    assert!(column(&csv, "ok").iter().all(|ok| ok == "false"));
}

#[test]
fn trace_is_replayed_with_its_lengths_prefixes_and_times() {
    let mock = mock();
    let trace = File::new(
        "{\"timestamp\": 1000, \"input_length\": 1000, \"output_length\": 9, \"hash_ids\": [1, 2]}\n\
         {\"timestamp\": 1400, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [1, 3]}\n",
    );
    let (rows, started) = (File::new(""), Instant::now());
    let arguments = ["--trace", trace.path(), "--speed", "4", "--csv", rows.path()];
    let told = loadtest("run", &mock, &arguments);
    assert_eq!(told.status.code(), Some(0), "{}", err(&told));
    assert!(started.elapsed() >= Duration::from_millis(100), "400 ms at four times the speed");
    assert_eq!(column(&rows.text(), "intended_us"), ["0", "100000"]);
    assert_eq!(column(&rows.text(), "tokens"), ["9", "3"]);
    let seen = mock.seen();
    let prompt = |at: usize| -> Vec<String> {
        let body: Value = serde_json::from_slice(&seen[at].body).unwrap();
        let words = body["messages"][0]["content"].as_str().unwrap().split(' ');
        words.map(str::to_owned).collect()
    };
    assert_eq!(prompt(0)[..500], prompt(1)[..500], "one block of 512 tokens is shared");
    assert_ne!(prompt(0)[512..590], prompt(1)[512..590]);

    let bad = File::new("{\"timestamp\":0,\"input_length\":1,\"output_length\":1}\nnonsense\n");
    let told = loadtest("run", &mock, &["--trace", bad.path()]);
    assert_eq!(told.status.code(), Some(2));
    assert!(err(&told).contains("line 2"), "{}", err(&told));
}

#[test]
fn missed_objective_is_named_and_fails_the_run() {
    let mock = mock();
    let json = File::new("");
    let told = loadtest(
        "run",
        &mock,
        &[
            "--stream",
            "-n",
            "20",
            "--slo",
            "ttft=10ms:p50",
            "--slo",
            "e2e=1m",
            "--json",
            json.path(),
            "--header",
            "x-mock: first_token=30ms,tokens=2",
        ],
    );
    assert_eq!(told.status.code(), Some(1));
    let text = out(&told);
    assert!(
        text.contains("slo ttft=10ms:p50 MISSED") && text.contains("e2e=60000ms:p99 met"),
        "{text}"
    );
    let json = json.json();
    assert_eq!((&json["slos_met"], &json["within"]), (&false.into(), &0.into()));
    assert_eq!(json["goodput_per_s"], 0.0);
}

#[test]
fn client_that_is_too_slow_says_so_in_json_and_by_its_exit_code() {
    let mock = mock();
    let json = File::new("");
    let arguments = ["--rate", "500", "-n", "50", "--lag-max", "0s", "--json", json.path()];
    let told = loadtest("run", &mock, &arguments);
    assert_eq!(told.status.code(), Some(3));
    assert!(out(&told).starts_with("client too slow: invalid"), "{}", out(&told));
    let json = json.json();
    assert_eq!((&json["valid"], &json["verdict"]), (&false.into(), &"client_too_slow".into()));
    assert!(json["timings"].is_null() && json["ok_per_s"].is_null(), "{json}");
    assert!(json["lag"]["p99_us"].as_u64() > json["lag"]["limit_us"].as_u64(), "{json}");
}

#[test]
fn baseline_names_what_got_worse() {
    let mock = mock();
    let (before, after) = (File::new(""), File::new(""));
    let common = ["--rate", "100", "-n", "30"];
    let run = |more: &[&str]| loadtest("run", &mock, &[&common[..], more].concat());
    assert_eq!(run(&["--json", before.path()]).status.code(), Some(0));
    let same = ["--baseline", before.path(), "--fail-on", "100000%"];
    let told = run(&same);
    assert_eq!(told.status.code(), Some(0), "{}{}", out(&told), err(&told));
    let slow =
        ["--header", "x-mock: delay=200ms", "--baseline", before.path(), "--json", after.path()];
    let told = run(&slow);
    assert_eq!(told.status.code(), Some(1), "{}{}", out(&told), err(&told));
    let text = out(&told);
    assert!(
        text.contains("WORSE latency_us.p50") && text.contains("WORSE first_byte_us.p90"),
        "{text}"
    );
    let changes = after.json()["baseline"]["changes"].clone();
    let named = |change: &&Value| change["metric"] == "latency_us.p50";
    assert_eq!(changes.as_array().unwrap().iter().find(named).unwrap()["worse"], true);
    let none = File::new("{}");
    assert_eq!(run(&["--baseline", none.path()]).status.code(), Some(2));
}

#[test]
fn search_finds_the_rate_that_a_server_can_take() {
    let mock = mock();
    // One connection and 20 ms an answer: 50 a second, and above it a queue that grows.
    let options = Options {
        url: mock.url(),
        connections: 1,
        load: Load::Open(Arrivals::Constant { rate: 1.0 }),
        until: Until::Elapsed(Duration::from_millis(500)),
        fields: vec![("x-mock".to_owned(), "delay=20ms".to_owned())],
        lag_max: Some(Duration::from_secs(5)),
        slos: vec!["e2e=60ms:p90".parse().unwrap()],
        ..Options::default()
    };
    let bounds = Bounds { from: 8.0, within: 0.3, ..Bounds::default() };
    let mut lines = Vec::new();
    let found = search(&options, &bounds, run, |step| lines.push(step.to_line())).unwrap();
    assert_eq!(lines.len(), found.steps.len());
    // A busy machine may make it find less, never more.
    assert!(found.best.is_none_or(|best| best < 60.0), "{lines:#?}");
    assert!(matches!(found.end, End::Found | End::Floor), "{lines:#?}");

    let json = File::new("");
    let arguments = [
        "--slo",
        "e2e=5s",
        "--from",
        "50",
        "--to",
        "100",
        "--duration",
        "200ms",
        "--json",
        json.path(),
        "--quiet",
    ];
    let told = loadtest("search", &mock, &arguments);
    assert_eq!(told.status.code(), Some(0), "{}{}", out(&told), err(&told));
    assert!(out(&told).contains("highest rate 100.00/s (ended by: ceiling)"), "{}", out(&told));
    let json = json.json();
    assert_eq!((&json["kind"], &json["best_rate"]), (&"search".into(), &100.0.into()));
    assert_eq!(json["steps"][1]["run"]["options"]["arrivals"]["rate"], 100.0);
    for bad in
        [&["--rate", "5", "--slo", "e2e=5s"][..], &[], &["--slo", "e2e=5s", "--arrivals", "ramp"]]
    {
        assert_eq!(loadtest("search", &mock, bad).status.code(), Some(2), "{bad:?}");
    }
}

#[test]
fn one_schedule_can_be_dealt_out_to_two_targets() {
    let (one, two) = (mock(), mock());
    let base =
        Options { connections: 8, lag_max: Some(Duration::from_secs(5)), ..Options::default() };
    let plan = Plan {
        arrivals: Arrivals::Poisson { rate: 500.0 },
        until: Until::Requests(40),
        seed: 5,
        shape: base.shape(),
    };
    let (left, right): (Vec<Planned>, Vec<Planned>) =
        plan.schedule().unwrap().partition(|planned| matches!(planned.number % 4, 0 | 3));
    let started = Instant::now();
    let send = |mock: &Mock, part: Vec<Planned>| {
        let options = Options {
            url: mock.url(),
            load: Load::Listed(part.into()),
            until: Until::End,
            keep_rows: true,
            ..base.clone()
        };
        run_at(&options, started, &Arc::new(Live::default())).unwrap()
    };
    let (left, right) = std::thread::scope(|scope| {
        let left = scope.spawn(|| send(&one, left));
        let right = send(&two, right);
        (left.join().unwrap(), right)
    });
    assert_eq!((left.verdict(), right.verdict()), (Verdict::Good, Verdict::Good));
    let mut rows = [left.rows, right.rows].concat();
    rows.sort_by_key(|row| row.id);
    let due: Vec<u64> = plan.schedule().unwrap().map(|planned| planned.due_us).collect();
    assert_eq!(rows.iter().map(|row| row.intended_us).collect::<Vec<_>>(), due);
}
