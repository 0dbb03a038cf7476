//! Every byte machine's `fuzz`, driven from a seed: what libFuzzer does for hours, for a moment.
//!
//! The seeds are good messages of each grammar, harmed a little; random bytes alone rarely get
//! past the first rule. Replay with `TOKENRING_FUZZ_SEED` and `TOKENRING_FUZZ_ITERATIONS`.

use tokenring::testing::base::rng::Rng;
use tokenring::testing::{base, config, http, http1, http2, llm, policy};

const ITERATIONS: u64 = 2_000;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Calls `fuzz` on harmed copies and pairs of the seeds.
fn drive(name: &str, fuzz: fn(&[u8]), seeds: &[&str]) {
    let seed = number("TOKENRING_FUZZ_SEED", 1);
    let mut rng = Rng::new(seed);
    for turn in 0..number("TOKENRING_FUZZ_ITERATIONS", ITERATIONS) {
        let mut data = pick(&mut rng, seeds);
        if rng.below(4) == 0 {
            data.extend(pick(&mut rng, seeds));
        }
        for _ in 0..rng.below(8) {
            harm(&mut rng, &mut data, seeds);
        }
        // Many entries read choices (a limit, a split) from the first bytes.
        for _ in 0..rng.below(4) {
            data.insert(0, rng.next_u64() as u8);
        }
        let result = std::panic::catch_unwind(|| fuzz(&data));
        assert!(
            result.is_ok(),
            "{name}, seed {seed}, turn {turn}: {:?}",
            data.escape_ascii().to_string()
        );
    }
}

fn pick(rng: &mut Rng, seeds: &[&str]) -> Vec<u8> {
    seeds[rng.below(seeds.len() as u64) as usize].as_bytes().to_vec()
}

fn harm(rng: &mut Rng, data: &mut Vec<u8>, seeds: &[&str]) {
    let at = rng.below(data.len() as u64 + 1) as usize;
    let until = (at + rng.below(16) as usize).min(data.len());
    match rng.below(6) {
        0 if at < data.len() => data[at] = rng.next_u64() as u8,
        1 if at < data.len() => data[at] ^= 1 << rng.below(8),
        2 => drop(data.drain(at..until)),
        3 => data.truncate(at),
        4 => {
            let again = data[at..until].to_vec();
            drop(data.splice(at..at, again));
        }
        _ => {
            let other = pick(rng, seeds);
            let from = rng.below(other.len() as u64 + 1) as usize;
            let to = (from + rng.below(16) as usize).min(other.len());
            drop(data.splice(at..until, other[from..to].iter().copied()));
        }
    }
}

const HEADS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /v1/chat/completions?x=1 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5, 5\r\nConnection: close, x\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: t\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nKeep-Alive: timeout=5, max=100\r\n\r\n",
    "GET http://h/p HTTP/1.0\r\nExpect: 100-continue\r\nUpgrade: websocket\r\n\r\n",
];
const JSON: &[&str] = &[
    r#"{"model":"m","messages":[{"role":"user","content":"\"model\":\"x\" \u00e9\ud83d\ude00"}]}"#,
    r#"{"messages":[{"model":"x"}],"mod\u0065l":"a\/b","n":-1.5e+10,"t":[true,false,null,{}]}"#,
    r#"  {"model" : null , "model":"last"} "#,
    r#"{"usage":{"prompt_tokens":12,"completion_tokens":34},"timings":{"predicted_n":5}}"#,
    r#"{"response":{"usage":{"total_tokens":5}},"tool_calls":[{"arguments":{"usage":{"prompt_tokens":1}}}]}"#,
];
const EVENTS: &[&str] = &[
    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
    "event: message_delta\r\ndata: {\"type\":\"message_delta\",\"usage\":{\"output_tokens\":5}}\r\n\r\n",
    "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n",
    ": comment\nid: 1\nretry: 5\ndata: a\ndata: b\n\n",
    "{\"done\":true,\"eval_count\":5,\"prompt_eval_count\":7}\n",
];

#[test]
fn fields_hold() {
    drive(
        "http::fields",
        http::fields::fuzz,
        &["a, b ,\"c,d\", keep-alive", "timeout=5, max=100", ";q=0,, ,x"],
    );
}

#[test]
fn heads_hold() {
    drive("http1::parse", http1::parse::fuzz, HEADS);
}

#[test]
fn heads_of_our_own_hold() {
    drive("http1::reparse", http1::reparse::fuzz, HEADS);
}

#[test]
fn answers_to_connect_hold() {
    let seeds = &[
        "HTTP/1.1 200 Connection established\r\n\r\n",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 204\r\nVia: x\r\n\r\nmore",
        "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 2\r\n\r\nno",
    ];
    drive("http1::connect", http1::connect::fuzz, seeds);
}

#[test]
fn framing_holds() {
    drive("http1::framing", http1::framing::fuzz, HEADS);
}

#[test]
fn bodies_hold() {
    drive(
        "http1::body",
        http1::body::fuzz,
        &["5\r\nhello\r\n0\r\n\r\n", "a;x=\"y\"\r\n0123456789\r\n0\r\nt: v\r\n\r\n", "hello"],
    );
}

#[test]
fn http_2_requests_hold() {
    drive(
        "http2::request",
        http2::request::fuzz,
        &[
            "\0GET\nh:80\n/a?b\naccept:*/*\ncookie:a=b\ncookie:c=d\nte:trailers",
            "\u{1}POST\n\n/v1/x\nhost:h\ncontent-length:5\ncontent-type:application/json",
            "\u{1}OPTIONS\nh\n*\nhost:H\nx:a\tb\nexpect:100-continue\ntransfer-encoding:chunked",
        ],
    );
}

#[test]
fn http_2_responses_hold() {
    drive("http2::response", http2::response::fuzz, HEADS);
}

#[test]
fn http_2_upstreams_hold() {
    let fields = "\u{1}\u{32}content-type:text/event-stream\ncontent-length:5\nset-cookie:a\nx:";
    drive("http2::outgoing", http2::outgoing::fuzz, &[HEADS, &[fields]].concat());
}

#[test]
fn http_2_trailers_hold() {
    drive(
        "http2::trailers",
        http2::trailers::fuzz,
        &["\u{5}Grpc-Status: 0\r\nx:y\r\n", "\u{9}X: \r\nx: 1\r\nHost: h\r\n", "\0"],
    );
}

#[test]
fn http_2_floods_hold() {
    drive(
        "http2::flood",
        http2::flood::fuzz,
        &[
            "\u{0}\u{5}\0\0\u{1}\u{1}\u{5}\0\0\0\u{1}x\0\0\u{4}\u{3}\0\0\0\0\u{1}\0\0\0\u{8}",
            "\u{1}\u{9}\0\0\u{8}\u{6}\0\0\0\0\0abcdefgh\0\0\0\u{4}\0\0\0\0\0",
            "\u{5}\u{3}\0\0\u{3}\0\u{8}\0\0\0\u{1}\u{2}\0\0\0\0\0\u{9}\0\0\0\0\u{1}",
            "\u{4}\u{b}\0\0\u{4}\u{8}\0\0\0\0\u{1}\0\0\0\u{1}\0\0\u{5}\u{2}\0\0\0\0\u{3}\0\0\0\0\0",
        ],
    );
}

#[test]
fn http_2_fragments_hold() {
    let preface = "x".repeat(24);
    drive(
        "http2::fragment",
        http2::fragment::fuzz,
        &[
            &format!("{preface}\0\0\u{9}\u{1}\u{4}\0\0\0\u{1}D\u{7}/health"),
            &format!("{preface}\0\0\u{6}\u{1}\u{4}\0\0\0\u{1}D\u{4}/a#b"),
            &format!(
                "{preface}\0\0\u{4}\u{1}\0\0\0\0\u{1}D\u{4}/a\0\0\u{2}\u{9}\u{4}\0\0\0\u{1}#b"
            ),
        ],
    );
}

#[test]
fn the_model_scan_holds() {
    drive("llm::scan", llm::scan::fuzz, JSON);
}

#[test]
fn forms_hold() {
    let form = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nm\r\n--b\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\0\r\n--b--\r\n";
    drive("llm::multipart", llm::multipart::fuzz, &[form, "--b\r\n\r\n\r\n--b--", "--boundary--"]);
}

#[test]
fn event_streams_hold() {
    drive("llm::sse", llm::sse::fuzz, EVENTS);
}

#[test]
fn messages_hold() {
    let frames = &[
        "\u{1}\u{5}hello",
        "\u{1}\u{19}{\"usage\":{\"a\":1},\"b\":2}",
        "\u{2}~\u{0}\u{3}abc",
        "\t\u{0}",
    ];
    drive("llm::messages", llm::messages::fuzz, &[frames, JSON].concat());
}

#[test]
fn meter_holds() {
    drive("llm::meter", llm::meter::fuzz, &[EVENTS, JSON].concat());
}

#[test]
fn usage_holds() {
    drive("llm::usage", llm::usage::fuzz, &[EVENTS, JSON].concat());
}

#[test]
fn paths_hold() {
    drive(
        "llm::path",
        llm::path::fuzz,
        &[
            "/v1beta/models/g%2E2:streamGenerateContent?alt=sse",
            "/v1/models/a%2Fb",
            "/x?model=m&model=n",
        ],
    );
}

#[test]
fn normal_paths_hold() {
    drive(
        "http::path",
        http::path::fuzz,
        &["pub/%2e%2e/admin/./x//y%2fz/", "v1/models/a%2Fb%3Ac", "a/..%2F../%7e%41/"],
    );
}

#[test]
fn content_types_hold() {
    drive(
        "llm::content",
        llm::content::fuzz,
        &[
            "multipart/form-data; boundary=\"a b\"; charset=utf-8",
            "application/json; charset=utf-8",
            "application/vnd.api+json",
        ],
    );
}

#[test]
fn queries_hold() {
    drive("policy::query", policy::query::fuzz, &["key=a&b=%20c", "a&key&=x&key=", "%6bey=1+2"]);
}

#[test]
fn routes_hold() {
    drive(
        "policy::route",
        policy::route::fuzz,
        &["/api/users/:id", "/files/*", "/a/{id:[0-9]+}/*/b\n/a/1/x/b", "/v1/chat/completions"],
    );
}

#[test]
fn units_hold() {
    drive("base::units", base::units::fuzz, &["64KiB", "250ms", "1.5s", "10GB", "0"]);
}

#[test]
fn config_files_hold() {
    drive(
        "config",
        config::fuzz,
        &[
            "[process]\ncores = 2\ndrain = \"5s\"\n[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:0\"\n",
            "[[upstream]]\nname = \"u\"\nurl = \"http://h:1/x\"\nauth = { type = \"bearer\", token = \"${K:-x}\" }\n",
            "[[group]]\nname = \"g\"\nmembers = [\"u\", { upstream = \"u\", weight = 2 }]\nbalance = \"roundrobin\"\n",
            "[[key]]\nname = \"k\"\nkey = \"s\"\nmodels = [\"a*\"]\n[models.\"m\"]\ngroup = \"g\"\n",
        ],
    );
}
