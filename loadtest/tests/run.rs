//! The generator against the mock: it passes what is right and finds what is not.
#![cfg(all(feature = "mock", feature = "run"))]
// In a test a panic is the report; clippy sees that for #[test] functions only.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use loadtest::mock::{KeepAlive, Mock, MockConfig};
use loadtest::run::{Arrivals, Load, Options, Report, Until, Verdict, run};

const LIMIT: Duration = Duration::from_secs(5);

fn mock() -> Mock {
    Mock::start(MockConfig::default()).unwrap()
}

/// Options for a machine that may be busy with other things.
fn options(mock: &Mock, path: &str) -> Options {
    Options {
        url: mock.url() + path,
        connections: 4,
        until: Until::Requests(40),
        lag_max: Some(Duration::from_secs(5)),
        ..Options::default()
    }
}

fn with(mock: &Mock, keys: &str) -> Options {
    Options {
        fields: vec![("x-mock".to_owned(), keys.to_owned())],
        stream: true,
        connections: 1,
        until: Until::Requests(1),
        ..options(mock, "/v1/chat/completions")
    }
}

fn good(options: &Options) -> Report {
    let report = run(options).unwrap();
    assert!(report.flawless(), "{}: {}", options.url, report.to_text());
    report
}

#[test]
fn passes_every_dialect_plain_and_streamed() {
    let mock = mock();
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/api/chat",
        "/api/generate",
        "/v1beta/models/m:generateContent",
        "/v1beta/models/m:streamGenerateContent?alt=sse",
        "/v1/embeddings",
        "/echo",
    ] {
        for stream in [false, true] {
            if stream && path.ends_with(":generateContent") {
                continue;
            }
            let report = good(&Options { stream, ..options(&mock, path) });
            assert_eq!((report.ok, report.connect.len()), (40, 4), "{path}");
        }
    }
    assert_eq!(mock.stats().malformed_total, 0);
}

#[test]
fn passes_unusual_answers_that_are_right() {
    let mock = mock();
    for keys in [
        "no_length",
        "http10",
        "one_byte,tokens=4",
        "trailers",
        "interim=103",
        "head_bytes=60000",
        "big=3000000",
        "close",
        "silent_close",
        "tokens=0",
    ] {
        good(&Options { until: Until::Requests(3), ..with(&mock, keys) });
    }
    for keys in ["size=100000", "chunked", "no_length", "one_byte"] {
        good(&Options { stream: false, ..with(&mock, keys) });
    }
}

#[test]
fn names_every_fault() {
    let mock = mock();
    for (keys, kind, wrong) in [
        ("cut_after=3", "truncated", false),
        ("cut_after=20", "truncated", false),
        ("reset_after=3", "truncated", false),
        ("reset", "no_answer", false),
        ("drop", "no_answer", false),
        ("stall", "timeout", false),
        ("stall_after=3", "timeout", false),
        ("garbage", "framing_head", true),
        ("bad_chunk", "framing_chunk", true),
        ("both_lengths", "framing_lengths", true),
        ("extra_bytes=0", "framing_extra_bytes", true),
        ("no_length,cut_after=3", "end_missing", true),
    ] {
        let timeout = if kind == "timeout" { Duration::from_millis(200) } else { LIMIT };
        let report = run(&Options { timeout, ..with(&mock, keys) });
        let report = report.unwrap();
        let counts = if wrong { &report.wrong } else { &report.errors };
        // Where the reset overtakes the bytes, even the head may be lost.
        let lost = keys == "reset_after=3" && report.errors.contains_key("no_answer");
        assert!(counts.get(kind) == Some(&1) || lost, "{keys}: {}", report.to_text());
        let verdict = if wrong { Verdict::Broken } else { Verdict::NoAnswer };
        assert_eq!(report.verdict(), verdict, "{keys}");
    }
    let report = run(&with(&mock, "status=503")).unwrap();
    assert_eq!(report.statuses.get(&503), Some(&1));
    assert_eq!(report.ok, 0);
}

#[test]
fn finds_an_answer_to_another_request() {
    let mock = mock();
    let report = run(&Options { seed: 3, ..with(&mock, "") }).unwrap();
    assert_eq!(report.verdict(), Verdict::Good);
    // A server that answers every request with the text of one seed, unknown to the
    // client, which sent its own in the body.
    let body = Mock::start(MockConfig::default()).unwrap();
    let url = format!("{}/v1/chat/completions?mock=seed=5", body.url());
    let report = run(&Options { url, ..with(&body, "") }).unwrap();
    assert_eq!(report.wrong.get("foreign"), Some(&1), "{}", report.to_text());
}

#[test]
fn large_upload_meets_an_early_answer() {
    let mock = mock();
    let options = Options { prompt_bytes: 8 << 20, stream: false, ..with(&mock, "early=413") };
    let report = run(&options).unwrap();
    assert_eq!(report.statuses.get(&413), Some(&1), "{}", report.to_text());
    assert!(report.sent_bytes < 8 << 20);
}

#[test]
fn silently_closed_connections_are_replaced_and_counted() {
    let config = MockConfig { keep_alive: KeepAlive::LlamaServer, ..MockConfig::default() };
    let mock = Mock::start(config).unwrap();
    let report = good(&Options { stream: true, ..options(&mock, "/v1/chat/completions") });
    assert_eq!(report.connect.len(), 40, "a connection a stream");
    assert_eq!(report.stale, 36, "the first four were new");
}

#[test]
fn leaves_streams_on_request_and_the_server_notices() {
    let mock = Mock::start(MockConfig {
        interval: Duration::from_millis(1),
        tokens: 10_000,
        ..MockConfig::default()
    })
    .unwrap();
    let report = good(&Options {
        stream: true,
        abort_after: Some(3),
        ..options(&mock, "/v1/chat/completions")
    });
    assert_eq!((report.aborted, report.ok), (40, 0));
    let gone =
        |stats: &loadtest::mock::MockStats| stats.aborted_total == 40 && stats.in_flight == 0;
    mock.wait_until(LIMIT, gone).unwrap();
}

#[test]
fn open_loop_counts_latency_from_when_a_request_was_due() {
    let mock = mock();
    let options = Options {
        load: Load::Open(Arrivals::Constant { rate: 200.0 }),
        until: Until::Requests(10),
        stream: false,
        ..with(&mock, "delay=40ms")
    };
    let report = good(&options);
    // One connection serves 25 a second; the tenth request, due at 50 ms, ends at
    // 400 ms and later. Measured from its sending it would be 40 ms.
    assert!(report.latency.max() >= 330_000, "{}", report.to_text());
    assert!(report.latency.min() >= 40_000, "{}", report.to_text());
}

#[test]
fn open_loop_keeps_its_rate() {
    let mock = mock();
    let rate = 400.0;
    for arrivals in [Arrivals::Constant { rate }, Arrivals::Poisson { rate }] {
        let report = good(&Options {
            load: Load::Open(arrivals),
            threads: 2,
            until: Until::Requests(100),
            ..options(&mock, "/v1/chat/completions")
        });
        assert_eq!(report.ok, 100);
        assert!(report.elapsed > Duration::from_millis(120), "{:?}", report.elapsed);
    }
}

#[test]
fn stream_times_follow_the_server() {
    let mock = mock();
    let keys = "first_token=50ms,interval=10ms,tokens=5";
    let report = good(&with(&mock, keys));
    assert!(report.first_token.min() >= 49_000, "{}", report.to_text());
    assert_eq!(report.inter_token.len(), 4);
    assert!(report.latency.min() >= 89_000, "{}", report.to_text());
}

#[test]
fn client_that_is_too_slow_says_nothing_else() {
    let mock = mock();
    let load = Load::Open(Arrivals::Poisson { rate: 500.0 });
    let options = Options { load, ..options(&mock, "/v1/chat/completions") };
    let report = run(&Options { lag_max: Some(Duration::ZERO), ..options }).unwrap();
    assert_eq!(report.verdict(), Verdict::ClientTooSlow);
    assert!(report.to_text().starts_with("client too slow: invalid"));
}

#[test]
fn ends_when_its_time_has_passed() {
    let mock = mock();
    let until = Until::Elapsed(Duration::from_millis(100));
    for load in [Load::Closed, Load::Open(Arrivals::Poisson { rate: 100.0 })] {
        let options = Options { until, load, ..options(&mock, "/v1/chat/completions") };
        let report = run(&options).unwrap();
        // A ticket that comes at the last moment may stay unsent; none may go wrong.
        assert_eq!(report.verdict(), Verdict::Good, "{}", report.to_text());
        assert_eq!(report.ok, report.requests, "{}", report.to_text());
        assert!(report.elapsed >= Duration::from_millis(80), "{:?}", report.elapsed);
        assert!(report.elapsed < Duration::from_secs(4), "{:?}", report.elapsed);
    }
}

#[test]
fn exit_code_tells_the_verdict() {
    let mock = mock();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        command.args(["run", &mock.url(), "-n", "5", "--lag-max", "5s"]).args(arguments);
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, told) = run(&["--stream"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("ok 5") && told.contains("inter_token"), "{told}");
    let (code, told) = run(&["--json"]);
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((code, &told["ok"]), (Some(0), &5.into()));
    assert_eq!(run(&["--csv"]).1.lines().count(), 2);
    assert_eq!(run(&["--header", "x-mock: bad_chunk", "--stream"]).0, Some(1));
    assert_eq!(run(&["--header", "x-mock: status=500"]).0, Some(1));
    assert_eq!(run(&["--strict"]).0, Some(0));
    assert_eq!(run(&["--lag-max", "0s"]).0, Some(2), "given twice");
    assert_eq!(run(&["--nonsense"]).0, Some(2));
}

#[test]
fn extra_bytes_on_an_idle_connection_are_found_with_the_next_request() {
    let mock = mock();
    let requests = Until::Requests(5);
    let report = run(&Options {
        until: requests,
        stream: false,
        ..with(&mock, "extra_bytes=1ms,delay=3ms")
    })
    .unwrap();
    // The last answer's bytes come when nobody reads any more.
    assert!(report.wrong.values().sum::<u64>() >= 2, "{}", report.to_text());
}
