//! Two targets compared, of which one is slower by a known time.
#![cfg(all(feature = "mock", feature = "run"))]
// In a test a panic is the report; clippy sees that for #[test] functions only.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use loadtest::ab::{Ab, AbOptions, Estimate, Quantity, compare};
use loadtest::mock::{Mock, MockConfig};
use loadtest::run::{Arrivals, Live, Load, Options, Until, Verdict};
use serde_json::Value;

/// Timers are a millisecond coarse, and the machine may be busy with other things.
const GRAIN_US: f64 = 1_000.0;

fn mock(first_token_ms: u64) -> Mock {
    Mock::start(MockConfig {
        first_token: Duration::from_millis(first_token_ms),
        interval: Duration::from_millis(1),
        tokens: 4,
        ..MockConfig::default()
    })
    .unwrap()
}

/// Small and slow, for a machine that may be busy with other things.
fn options(a: &Mock, b: &Mock) -> AbOptions {
    AbOptions {
        load: Options {
            stream: true,
            connections: 16,
            load: Load::Open(Arrivals::Poisson { rate: 60.0 }),
            until: Until::Requests(120),
            lag_max: Some(Duration::from_secs(5)),
            ..Options::default()
        },
        a: a.url(),
        b: b.url(),
        warmup: Duration::from_millis(100),
        block: Duration::from_millis(80),
        resamples: 500,
        ..AbOptions::default()
    }
}

fn run(options: &AbOptions) -> Ab {
    let told = compare(options, &Arc::new(Live::default())).unwrap();
    assert_eq!(told.verdict(), Verdict::Good, "{}", told.to_text());
    told
}

/// Whether the interval holds the value, as far as a timer can tell.
fn covers(estimate: Estimate, us: f64) -> bool {
    let (low, high) = estimate.interval.unwrap();
    low - GRAIN_US <= us && us <= high + GRAIN_US
}

/// What a target was sent, in the order of the bytes.
fn bodies(mock: &Mock) -> Vec<Vec<u8>> {
    let mut bodies: Vec<_> = mock.seen().iter().map(|seen| seen.body_sha256.to_vec()).collect();
    bodies.sort_unstable();
    bodies
}

fn loadtest(arguments: &[&str]) -> Output {
    let mut process = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    process.arg("ab").args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn known_delay_is_found_with_an_interval_that_excludes_zero() {
    let (fast, slow, server) = (mock(5), mock(25), mock(5));
    let direct = Some(server.url());
    let told = run(&AbOptions { direct, ..options(&fast, &slow) });
    for (of, against) in [("b", "a"), ("b", "direct")] {
        for quantity in [Quantity::Latency, Quantity::FirstToken] {
            let change = told.change(of, against, quantity).unwrap();
            let median = change.differences.p50;
            assert_eq!(change.differences.pairs, 120);
            assert!(covers(median, 20_000.0), "{of} - {against}: {median:?}");
            assert!(median.interval.unwrap().0 > 5_000.0, "{of} - {against}: {median:?}");
        }
    }
    let added = told.change("a", "direct", Quantity::Latency).unwrap().differences.p50;
    assert!(covers(added, 0.0), "{added:?}");
    for quantity in [Quantity::InterToken, Quantity::Jitter] {
        assert!(covers(told.change("b", "a", quantity).unwrap().differences.p50, 0.0));
    }
    // Every target got the same requests, the warm-up too.
    assert_eq!(bodies(&fast), bodies(&slow));
    assert_eq!(bodies(&fast), bodies(&server));
    assert!(bodies(&fast).len() >= 120);
}

#[test]
fn equal_targets_do_not_differ() {
    let (one, other) = (mock(3), mock(3));
    let told = run(&options(&one, &other));
    for quantity in Quantity::ALL {
        let median = told.change("b", "a", quantity).unwrap().differences.p50;
        assert!(covers(median, 0.0), "{}: {median:?}", quantity.name());
    }
}

#[test]
fn targets_take_turns_and_every_request_is_in_its_own() {
    let (one, other) = (mock(0), mock(0));
    let told = run(&AbOptions { warmup: Duration::ZERO, ..options(&one, &other) });
    let csv = told.to_csv();
    let mut lines = csv.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let place = |name: &str| names.iter().position(|column| *column == name).unwrap();
    let mut turns: Vec<(u64, &str)> = lines
        .map(|line| line.split(',').collect::<Vec<_>>())
        .map(|cells| (cells[place("intended_us")].parse().unwrap(), cells[place("target")]))
        .collect();
    assert_eq!(turns.len(), 240);
    turns.sort_unstable();
    // 50 ms of lead, then slots of 80 ms; no slot has requests of two targets.
    let slot = |(us, name): &(u64, &'_ str)| ((us - 50_000) / 80_000, name.to_owned().to_owned());
    let mut slots: Vec<(u64, String)> = turns.iter().map(slot).collect();
    slots.dedup();
    assert!(slots.windows(2).all(|pair| pair[0].0 < pair[1].0), "{slots:?}");
    let order: String = slots.iter().map(|(_, name)| name.as_str()).collect();
    assert!(order.starts_with("abbaabba"), "{order}");
}

#[test]
fn binary_tells_all_forms_and_what_processes_cost() {
    let (one, other) = (mock(0), mock(4));
    let file = |name: &str| {
        let name = format!("loadtest-ab-{}-{name}", std::process::id());
        std::env::temp_dir().join(name).to_str().unwrap().to_owned()
    };
    let (json, csv, html) = (file("json"), file("csv"), file("html"));
    let (a, b) = (one.url() + "?mock=size=90", other.url() + "?mock=size=90");
    let (a, b) = (a.replace("?", "/v1/chat/completions?"), b.replace("?", "/v1/chat/completions?"));
    let own = std::process::id().to_string();
    let words = "--rate 80 -n 80 --warmup 0s --block 100ms --lag-max 5s --quiet --strict";
    let mut line = vec![
        "--a", &a, "--b", &b, "--pid-a", &own, "--json", &json, "--csv", &csv, "--html", &html,
    ];
    line.extend(words.split(' '));
    let told = loadtest(&line);
    assert_eq!(told.status.code(), Some(0), "{}{}", text(&told.stdout), text(&told.stderr));
    let shown = text(&told.stdout);
    for part in ["b - a", "us/request", "verdict: Good", "95 % interval"] {
        assert!(shown.contains(part), "{part} in {shown}");
    }
    let value: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let rows = std::fs::read_to_string(&csv).unwrap();
    let page = std::fs::read_to_string(&html).unwrap();
    assert!(page.contains("<svg") && page.contains("b - a") && !page.contains("size=90"));
    for path in [&json, &csv, &html] {
        std::fs::remove_file(path).unwrap();
    }
    assert_eq!(rows.lines().count(), 161);
    assert_eq!((&value["kind"], &value["valid"]), (&"ab".into(), &true.into()));
    assert_eq!(value["targets"]["a"]["requests"], 80);
    assert!(value["targets"]["a"]["usage"]["rss_max_bytes"].as_u64().unwrap() > 0);
    assert!(value["targets"]["b"]["usage"].is_null());
    assert!(!value.to_string().contains("size=90"), "no query: {value}");
    let latency = &value["differences"][0];
    assert_eq!((&latency["what"], &latency["pairs"]), (&"latency".into(), &80.into()));
    assert!(
        latency["p50"]["low_us"].as_f64().unwrap() <= latency["p50"]["high_us"].as_f64().unwrap()
    );
}

#[test]
fn what_cannot_be_compared_is_refused_in_words() {
    let good = mock(0);
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}", listener.local_addr().unwrap())
    };
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    let gone = child.id().to_string();
    let url = good.url();
    for (more, words) in [
        (vec!["--rate", "50", "-n", "5", "--b", &closed], "target b"),
        (vec!["--b", &url], "--rate"),
        (vec!["--rate", "50", "-n", "0", "--b", &url], "no request"),
        (vec!["--rate", "50", "--b", &url, "--slo", "ttft=1s"], "--slo"),
        (vec!["--rate", "50", "--b", &url, "--pid-b", &gone], "--pid-b: process"),
        (vec!["--rate", "50"], "--b"),
    ] {
        let mut line = vec!["--a", &url];
        line.extend(more);
        let told = loadtest(&line);
        assert_eq!(told.status.code(), Some(2), "{line:?}: {}", text(&told.stdout));
        assert!(text(&told.stderr).contains(words), "{line:?}: {}", text(&told.stderr));
    }
}

#[test]
fn failures_and_wrong_answers_are_told_by_target() {
    let (good, bad) = (mock(0), mock(0));
    bad.behave("status=500");
    let options = AbOptions {
        load: Options { until: Until::Requests(20), ..options(&good, &bad).load },
        warmup: Duration::ZERO,
        ..options(&good, &bad)
    };
    let told = compare(&options, &Arc::new(Live::default())).unwrap();
    assert_eq!(told.verdict(), Verdict::NoAnswer);
    assert_eq!((told.targets[0].failed(), told.targets[1].failed()), (0, 20));
    assert!(told.changes.is_empty() && told.message().starts_with("b: "), "{}", told.message());
    assert!(told.to_text().contains("status 500 20"), "{}", told.to_text());
    bad.behave("garbage");
    let told = compare(&options, &Arc::new(Live::default())).unwrap();
    assert_eq!(told.verdict(), Verdict::Broken, "{}", told.to_text());
    let slow = Options { lag_max: Some(Duration::ZERO), ..options.load.clone() };
    let told =
        compare(&AbOptions { load: slow, b: good.url(), ..options }, &Arc::default()).unwrap();
    assert_eq!(told.verdict(), Verdict::ClientTooSlow, "{}", told.to_text());
    assert!(told.changes.is_empty() && !told.to_text().contains("p50"), "{}", told.to_text());
    assert!(told.to_value()["differences"].is_null());
}
