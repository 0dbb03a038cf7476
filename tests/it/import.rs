//! `tokenring import`: the examples of `tests/import` become what stands beside them, pass the
//! check, and serve as the proxy did whose config they were.
//!
//! Expected texts are made by `tokenring import KIND tests/import/FILE`; read what changed.

use std::fs;

use tokenring::cli::{self, Command};
use tokenring::testing::config::{self, Outside};

use super::house::{Proxy, mock_with, wait_until};
use super::wire::{Answer, get, post};
use loadtest::mock::Mock;

const EXAMPLES: &[(&str, &str)] = &[
    ("nginx-llm-proxy", "json"),
    ("freellm-env", "env"),
    ("simple-endpoints", "yml"),
    ("llmproxy", "yaml"),
    ("x5iu", "yml"),
    ("litellm", "yaml"),
    ("llama-swap", "yaml"),
];

/// Runs the command: whether it went well, what it printed, what it complained of.
fn run(args: &[&str]) -> (bool, String, String) {
    let parsed = cli::parse([&["tokenring", "import"], args].concat());
    let Ok(Command::Import(args)) = parsed else { panic!("{args:?}: {:?}", parsed.err()) };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let code = cli::import(&args, &mut out, &mut err);
    let well = code == std::process::ExitCode::SUCCESS;
    (well, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

/// The config that an example becomes.
fn imported(kind: &str) -> String {
    let (_, ending) = EXAMPLES.iter().find(|(known, _)| *known == kind).unwrap();
    let (well, out, err) = run(&[kind, &format!("tests/import/{kind}.{ending}")]);
    assert!(well, "{err}");
    out
}

/// The same with its addresses in this test: each of `swaps` must be there.
fn placed(kind: &str, swaps: &[(&str, &str)]) -> Proxy {
    let mut text = imported(kind);
    for (from, to) in swaps {
        assert!(text.contains(from), "no {from} in\n{text}");
        text = text.replace(from, to);
    }
    Proxy::start(&text)
}

fn named(name: &str) -> (Mock, String) {
    let mock = mock_with(|config| config.name = name.to_owned());
    let addr = mock.addr().to_string();
    (mock, addr)
}

fn ask(proxy: &Proxy, fields: &str, model: &str) -> Answer {
    let body = format!("{{\"messages\":[],\"model\":\"{model}\"}}");
    proxy.client().send(post("/v1/chat/completions", fields, body)).answer()
}

fn server(answer: &Answer) -> &str {
    answer.field("x-mock-server").unwrap_or_default()
}

#[test]
fn examples_become_what_is_expected() {
    for (kind, _) in EXAMPLES {
        let expected = fs::read_to_string(format!("tests/import/{kind}.toml")).unwrap();
        assert_eq!(imported(kind), expected, "{kind}");
    }
}

#[test]
fn every_result_passes_the_check() {
    let made = rcgen::generate_simple_self_signed(vec!["open.test".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let read = |path: &std::path::Path| match path.to_str() {
        Some("cert.pem") => Ok(cert.clone()),
        Some("key.pem") => Ok(key.clone()),
        _ => Err("no such file".to_owned()),
    };
    let env = |name: &str| Some(format!("{name}-0123456789abcdef"));
    let outside = Outside { env: &env, read: &read, ..Outside::NOTHING };
    for (kind, _) in EXAMPLES {
        let loaded = config::load(kind, &imported(kind), &outside);
        loaded.unwrap_or_else(|report| panic!("{kind}: {report}"));
    }
}

#[test]
fn what_is_not_carried_over_is_told_by_line_and_without_values() {
    for (kind, ending) in EXAMPLES {
        let file = format!("tests/import/{kind}.{ending}");
        let (_, out, err) = run(&[kind, &file]);
        assert!(!err.is_empty(), "{kind}");
        for line in err.lines() {
            let (at, what) =
                line.strip_prefix(&format!("{file}:")).unwrap().split_once(": ").unwrap();
            assert!(at.parse::<usize>().is_ok(), "{line}");
            assert!(out.contains(&format!("#   line {at}: {what}\n")), "{line}");
        }
        for secret in ["sk-", "0123456", "hidden-word", "user:word", "operators-only"] {
            assert!(!err.contains(secret), "{kind}: {err}");
        }
    }
}

#[test]
fn a_file_that_is_there_is_kept() {
    let place = std::env::temp_dir().join(format!("tokenring-import-{}.toml", std::process::id()));
    let _ = fs::remove_file(&place);
    let file = place.to_str().unwrap();
    let args = ["litellm", "tests/import/litellm.yaml", "-o", file];
    assert!(run(&args).0);
    let written = fs::read_to_string(&place).unwrap();
    assert_eq!(written, imported("litellm"));
    fs::write(&place, "mine").unwrap();
    let (well, _, err) = run(&args);
    assert!(!well && err.contains("--force"), "{err}");
    assert_eq!(fs::read_to_string(&place).unwrap(), "mine");
    assert!(run(&[&args[..], &["--force"]].concat()).0);
    assert_eq!(fs::read_to_string(&place).unwrap(), written);
    fs::remove_file(&place).unwrap();
}

#[test]
fn nginx_llm_proxy_serves_as_before() {
    let ((writer, at_writer), (_finder, at_finder)) = (named("writer"), named("finder"));
    let swaps = [
        ("0.0.0.0:4000", "127.0.0.1:0"),
        ("127.0.0.1:9000", "127.0.0.1:0"),
        ("127.0.0.1:18081", at_writer.as_str()),
        ("127.0.0.1:18082", at_finder.as_str()),
    ];
    let proxy = placed("nginx-llm-proxy", &swaps);
    let key = "Authorization: Bearer sk-editor-0123456789ab\r\n";
    assert_eq!(server(&ask(&proxy, key, "writer-30b")), "writer");
    assert_eq!(server(&ask(&proxy, key, "finder-embed")), "finder");
    let body = "{\"model\": \"writer-30b\",  \"encoding_format\": null }";
    proxy.client().send(post("/v1/completions", key, body)).answer();
    assert_eq!(&*writer.seen().last().unwrap().body, body.as_bytes());
    assert_eq!(ask(&proxy, "", "writer-30b").status, 401);
    assert_eq!(ask(&proxy, "Authorization: Bearer nope\r\n", "writer-30b").status, 401);
    assert_eq!(ask(&proxy, key, "zzz").status, 404);
    let list = proxy.client().send(get("/v1/models", key)).answer().text();
    assert!(list.contains("writer-30b") && list.contains("\"Writes\""), "{list}");
}

#[test]
fn freellm_serves_as_before() {
    super::ratelimits::fresh_minute();
    let ((ollama, at_ollama), (vllm, at_vllm)) = (named("ollama"), named("vllm"));
    let swaps = [
        ("0.0.0.0:18180", "127.0.0.1:0"),
        ("127.0.0.1:18111", at_ollama.as_str()),
        ("127.0.0.1:18112", at_vllm.as_str()),
    ];
    let proxy = placed("freellm-env", &swaps);
    let ops = "Authorization: Bearer tok-ops-0123456789\r\n";
    wait_until("the servers to say what they have", || ask(&proxy, ops, "any").status == 200);
    assert_eq!(server(&ask(&proxy, ops, "any")), "vllm");
    assert_eq!(server(&ask(&proxy, ops, "ollama:other")), "ollama");
    let sent = String::from_utf8_lossy(&ollama.seen().last().unwrap().body).into_owned();
    assert!(sent.contains("\"model\":\"other\""), "{sent}");
    assert!(vllm.seen().iter().all(|seen| seen.field("authorization").is_none()));
    assert_eq!(ask(&proxy, "Authorization: Bearer nope\r\n", "any").status, 401);
    // Five a minute, whatever the client claims was checked.
    let lab = "Authorization: Bearer tok-lab-0123456789\r\nX-Rate-Limit-Checked: 1\r\n";
    for left in (0..5).rev() {
        let answer = ask(&proxy, lab, "any");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.field("x-ratelimit-remaining-minute"), Some(&*left.to_string()));
    }
    assert_eq!(ask(&proxy, lab, "any").status, 429);
    let big = vec![b' '; 1_048_577];
    assert_eq!(proxy.client().send(post("/v1/completions", ops, big)).answer().status, 413);
}

#[test]
fn llmproxy_serves_as_before() {
    let ((first, at_first), (second, at_second)) = (named("first"), named("second"));
    let (embedder, at_embedder) = named("embedder");
    let swaps = [
        ("127.0.0.1:18301", "127.0.0.1:0"),
        ("0.0.0.0:18302", "127.0.0.1:0"),
        ("127.0.0.1:18390", "127.0.0.1:0"),
        ("127.0.0.1:18311", at_first.as_str()),
        ("127.0.0.1:18312", at_second.as_str()),
        ("127.0.0.1:18313", at_embedder.as_str()),
    ];
    let limit = ("ratelimit = { per_second = 2, burst = 3 }\n", "");
    let proxy = placed("llmproxy", &[&swaps[..], &[limit]].concat());
    for _ in 0..8 {
        assert_eq!(ask(&proxy, "X-Debug: 1\r\n", "whatever").status, 200);
    }
    assert_eq!((first.seen().len(), second.seen().len()), (6, 2));
    let seen = first.seen().remove(0);
    assert_eq!(seen.field("authorization").as_deref(), Some("Bearer sk-first-secret"));
    assert_eq!(seen.field("x-team").as_deref(), Some("blue"));
    assert_eq!((seen.field("x-debug"), seen.field("user-agent")), (None, Some("Lab/2".to_owned())));
    assert!(second.seen()[0].field("authorization").unwrap().starts_with("Basic "));
    let own = "Authorization: Bearer mine\r\n";
    let answer = proxy.client().send(post("/v1/embeddings", own, "{\"input\":\"x\"}")).answer();
    assert_eq!(server(&answer), "embedder");
    assert_eq!(embedder.seen()[0].field("authorization").as_deref(), Some("Bearer mine"));
    // With its limit: three at once and two a second.
    let limited = placed("llmproxy", &swaps);
    let statuses: Vec<_> = (0..40).map(|_| ask(&limited, "", "whatever").status).collect();
    assert_eq!(statuses[..3], [200, 200, 200]);
    assert!(statuses.contains(&429), "{statuses:?}");
}

#[test]
fn x5iu_serves_as_before() {
    let ((one, at_one), (two, at_two)) = (named("one"), named("two"));
    let (claude, at_claude) = named("claude");
    let swaps = [
        ("tls = { cert = \"cert.pem\", key = \"key.pem\" }\n", ""),
        ("0.0.0.0:443", "127.0.0.1:0"),
        ("127.0.0.1:18401", at_one.as_str()),
        ("127.0.0.1:18402", at_two.as_str()),
        ("127.0.0.1:18403", at_claude.as_str()),
    ];
    let proxy = placed("x5iu", &swaps);
    let to = |host: &str, path: &str, key: &str| {
        let body = "{\"model\":\"any\",\"messages\":[]}";
        let head = format!("POST {path} HTTP/1.1\r\nHost: {host}\r\n{key}");
        let rest = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        proxy.client().send(head + &rest).answer()
    };
    let client = "Authorization: Bearer client-one-0123456\r\n";
    for _ in 0..20 {
        assert_eq!(to("open.test:443", "/v1/chat/completions", client).status, 200);
    }
    let chats = |mock: &Mock, keys: &[&str]| {
        let seen = mock.seen();
        let chats = seen.iter().filter(|seen| seen.request_line().contains("chat"));
        chats.filter(|seen| keys.contains(&&*seen.field("authorization").unwrap())).count()
    };
    let ones = chats(&one, &["Bearer sk-upstream-one"]);
    let twos = chats(&two, &["Bearer sk-upstream-two", "Bearer sk-upstream-three"]);
    assert_eq!(ones + twos, 20, "host and key belong together");
    let only = "x-api-key: only-claude-0123456\r\n";
    assert_eq!(to("many.test", "/claude/v1/messages", only).status, 200);
    let seen = claude.seen().pop().unwrap();
    assert!(seen.request_line().starts_with("POST /v1/messages "), "{}", seen.request_line());
    assert_eq!(seen.field("x-api-key").as_deref(), Some("sk-ant-secret"));
    assert_eq!(to("open.test", "/v1/chat/completions", only).status, 403);
    assert_eq!(to("open.test", "/v1/chat/completions", "").status, 401);
    assert_eq!(to("other.test", "/v1/chat/completions", client).status, 404);
}
