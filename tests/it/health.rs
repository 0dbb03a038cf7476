//! rules §8, §12: active probes, and what the operator's interface says of them.

use std::net::SocketAddr;
use std::time::Duration;

use super::fake::Fake;
use super::house::{Proxy, wait_until};
use super::wire::{Answer, Client, get, post};
use tokenring::testing::net::dial::Address;

const HEAD: &str =
    "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n";
const ADMIN: &str = "[admin]\nbind = \"127.0.0.1:0\"\n";

/// Upstreams `a`, `b`, … with these probes, and the model `m` on all of them.
fn config(fakes: &[&Fake], health: &str, more: &str) -> String {
    let mut text = HEAD.to_owned();
    let mut members = Vec::new();
    for (fake, name) in fakes.iter().zip(["a", "b", "c"]) {
        text += &format!(
            "[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\nmodels = []\nhealth = {{ {health} }}\n",
            fake.url()
        );
        members.push(format!("\"{name}\""));
    }
    text += &format!("[[group]]\nname = \"g\"\nmembers = [{}]\n", members.join(", "));
    text + "[models.m]\ngroup = \"g\"\n" + more
}

fn admin_addr(proxy: &Proxy) -> SocketAddr {
    match proxy.admin() {
        Some(Address::Tcp(addr)) => *addr,
        other => panic!("no admin listener: {other:?}"),
    }
}

fn admin(proxy: &Proxy, request: impl AsRef<[u8]>) -> Answer {
    Client::connect(admin_addr(proxy)).send(request).answer()
}

/// Whether the operator is told that an upstream is healthy.
fn healthy(proxy: &Proxy, name: &str) -> bool {
    let told = admin(proxy, get("/health", "")).json();
    told["endpoints"][name]["healthy"].as_bool().expect("an endpoint of that name")
}

fn served_by(client: &mut Client) -> String {
    let answer = client.send(post("/v1/chat/completions", "", "{\"model\":\"m\"}")).answer();
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.field("x-server").unwrap_or_default().to_owned()
}

#[test]
fn takes_a_server_out_after_fall_and_back_after_rise() {
    let (a, b) = (Fake::start("a", &[]), Fake::start("b", &[]));
    let probes = "path = \"/health\", interval = \"1s\", timeout = \"500ms\", fall = 2, rise = 2";
    let proxy = Proxy::start(&config(&[&a, &b], probes, ADMIN));
    let mut client = proxy.client();
    let mut seen: Vec<String> = (0..4).map(|_| served_by(&mut client)).collect();
    seen.sort();
    assert_eq!(seen, ["a", "a", "b", "b"], "unknown counts as healthy");
    wait_until("a was probed", || !a.probes().is_empty());
    a.say(|says| says.health = 500);
    let probed = a.probes().len();
    wait_until("a is down", || !healthy(&proxy, "a"));
    assert!(a.probes().len() - probed >= 2, "after two failures, not one");
    let before = a.served();
    for _ in 0..6 {
        assert_eq!(served_by(&mut client), "b");
    }
    assert_eq!(a.served(), before);
    a.say(|says| says.health = 204);
    let probed = a.probes().len();
    wait_until("a is up", || healthy(&proxy, "a"));
    assert!(a.probes().len() - probed >= 2, "after two successes, not one");
    wait_until("a serves again", || served_by(&mut proxy.client()) == "a");
}

#[test]
fn a_probe_that_takes_too_long_has_failed() {
    let (a, b) = (Fake::start("a", &[]), Fake::start("b", &[]));
    let probes = "path = \"/health\", interval = \"1s\", timeout = \"100ms\", fall = 1";
    let proxy = Proxy::start(&config(&[&a, &b], probes, ADMIN));
    a.say(|says| says.delay = Duration::from_millis(400));
    wait_until("a is down", || !healthy(&proxy, "a"));
    let told = admin(&proxy, get("/health", "")).json();
    assert_eq!(told["endpoints"]["a"]["lastError"], "no answer within 100ms");
    assert_eq!(told["status"], "healthy");
    assert_eq!((&told["healthy_endpoints"], &told["total_endpoints"]), (&1.into(), &2.into()));
}

#[test]
fn nobody_is_picked_when_probes_say_that_all_are_down() {
    let a = Fake::start("a", &[]);
    let probes = "path = \"/health\", interval = \"1s\", fall = 1";
    let proxy = Proxy::start(&config(&[&a], probes, ADMIN));
    assert_eq!(admin(&proxy, get("/ready", "")).status, 200);
    a.say(|says| says.health = 503);
    wait_until("a is down", || !healthy(&proxy, "a"));
    let request = post("/v1/chat/completions", "", "{\"model\":\"m\"}");
    assert_eq!(proxy.client().send(request).answer().status, 503);
    let answer = admin(&proxy, get("/ready", ""));
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["reason"], "no healthy upstream");
    assert_eq!(admin(&proxy, get("/health", "")).json()["status"], "unhealthy");
}

#[test]
fn probes_are_what_the_operator_says() {
    let a = Fake::start("a", &[]);
    let probes = "path = \"/health?deep=1\", method = \"POST\", body = \"{}\", interval = \"1s\", \
                  headers = [{ key = \"x-probe\", value = \"yes\" }]";
    let more = "[[upstream]]\nname = \"z\"\nurl = \"http://127.0.0.1:9\"\nenabled = false\n";
    let proxy = Proxy::start(&config(&[&a], probes, &format!("{more}{ADMIN}")));
    wait_until("a was probed", || !a.probes().is_empty());
    let probe = a.probes()[0].clone();
    assert!(probe.starts_with("POST /health?deep=1 HTTP/1.1\r\n"), "{probe}");
    assert!(probe.contains("x-probe: yes\r\n") && probe.ends_with("\r\n\r\n{}"), "{probe}");
    let told = admin(&proxy, get("/health", "")).json();
    assert_eq!(told["total_endpoints"], 1, "one that is switched off is no endpoint");
}

#[test]
fn force_check_probes_now() {
    let (a, b) = (Fake::start("a", &[]), Fake::start("b", &[]));
    // The first probe comes within seconds, the next in an hour.
    let probes = "path = \"/health\", interval = \"1h\", fall = 1";
    let proxy = Proxy::start(&config(&[&a, &b], probes, ADMIN));
    wait_until("both were probed", || !a.probes().is_empty() && !b.probes().is_empty());
    a.say(|says| says.health = 500);
    assert!(healthy(&proxy, "a"));
    let told = admin(&proxy, post("/health/force-check", "", "")).json();
    assert_eq!(told["endpoints"]["a"]["healthy"], false);
    assert_eq!(told["endpoints"]["a"]["errorCount"], 1);
    assert_eq!(told["endpoints"]["a"]["lastError"], "status 500");
    let checked = told["endpoints"]["a"]["lastCheck"].as_str().unwrap();
    assert!(checked.ends_with('Z') && checked.len() == 24, "{checked}");
    assert_eq!(told["endpoints"]["b"]["healthy"], true);
    assert_eq!(told["endpoints"]["b"]["lastError"], serde_json::Value::Null);
    a.say(|says| says.health = 200);
    let told = admin(&proxy, post("/health/force-check", "", "")).json();
    assert_eq!(told["healthy_endpoints"], 2);
    assert_eq!(admin(&proxy, get("/health/force-check", "")).status, 405);
    // A browser's page of somewhere else, or of a name that was made to lead here.
    for (host, origin) in [("127.0.0.1", "Origin: http://evil.example\r\n"), ("evil.example", "")] {
        let request = format!(
            "POST /health/force-check HTTP/1.1\r\nHost: {host}\r\n{origin}Content-Length: 0\r\n\r\n"
        );
        assert_eq!(admin(&proxy, request.into_bytes()).status, 403, "{host} {origin}");
    }
}

#[test]
fn models_of_a_server_that_is_down_are_away() {
    let a = Fake::start("a", &["x"]);
    let text = format!(
        "{HEAD}[[upstream]]\nname = \"a\"\nurl = \"{}\"\n\
         health = {{ path = \"/health\", interval = \"1h\", fall = 1 }}\n{ADMIN}",
        a.url()
    );
    let proxy = Proxy::start(&text);
    let status = |proxy: &Proxy| {
        let request = post("/v1/chat/completions", "", "{\"model\":\"x\"}");
        proxy.client().send(request).answer().status
    };
    assert_eq!(status(&proxy), 200);
    a.say(|says| says.health = 500);
    admin(&proxy, post("/health/force-check", "", ""));
    wait_until("x is away", || status(&proxy) == 503);
    a.say(|says| says.health = 200);
    admin(&proxy, post("/health/force-check", "", ""));
    wait_until("x is back", || status(&proxy) == 200);
}

#[test]
fn the_operator_needs_the_token_and_an_allowed_address() {
    let a = Fake::start("a", &[]);
    let guarded = format!("{ADMIN}token = \"s3cret-token\"\n");
    let proxy = Proxy::start(&config(&[&a], "", &guarded));
    for fields in ["", "Authorization: Bearer wrong\r\n", "Authorization: s3cret-token\r\n"] {
        for path in ["/health", "/metrics", "/nothing"] {
            let answer = admin(&proxy, get(path, fields));
            assert_eq!(answer.status, 401, "{path} {fields}");
            assert_eq!(answer.field("www-authenticate"), Some("Bearer"));
            assert_eq!(answer.json()["status"], "error");
        }
    }
    let good = "Authorization: bearer s3cret-token\r\n";
    assert_eq!(admin(&proxy, get("/health", good)).status, 200);
    assert_eq!(admin(&proxy, get("/nothing", good)).status, 404);
    let elsewhere = format!("{ADMIN}allow = [\"10.0.0.0/8\"]\n");
    let proxy = Proxy::start(&config(&[&a], "", &elsewhere));
    let mut client = Client::connect(admin_addr(&proxy));
    let _ = client.try_send(&get("/health", ""));
    assert!(client.is_over(), "hung up on");
}

#[test]
fn idle_connections_do_not_keep_the_operator_out() {
    let a = Fake::start("a", &[]);
    let proxy = Proxy::start(&config(&[&a], "", ADMIN));
    let addr = admin_addr(&proxy);
    // As many as there are places, silent or in the middle of a head.
    let silent: Vec<Client> = (0..256)
        .map(|n| {
            let mut client = Client::connect(addr);
            if n % 2 == 1 {
                client.send("GET /health HTT");
            }
            client
        })
        .collect();
    for _ in 0..3 {
        assert_eq!(admin(&proxy, get("/health", "")).status, 200);
    }
    drop(silent);
    assert_eq!(admin(&proxy, get("/ready", "")).status, 200);
}

#[test]
fn metrics_are_in_the_form_of_prometheus() {
    let a = Fake::start("a", &[]);
    let text = config(&[&a], "", ADMIN);
    let proxy =
        Proxy::start(&text.replace("name = \"g\"\n", "name = \"g\"\nqueue = { length = 5 }\n"));
    assert_eq!(served_by(&mut proxy.client()), "a");
    let line = |line: &str| {
        let answer = admin(&proxy, get("/metrics", ""));
        assert_eq!(answer.field("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        answer.text().lines().any(|known| known == line)
    };
    assert!(line("tokenring_upstream_healthy{upstream=\"a\"} 1"));
    assert!(line("tokenring_upstream_attempts_total{upstream=\"a\"} 1"));
    assert!(line("tokenring_breaker_state{upstream=\"a\",state=\"closed\"} 1"));
    assert!(line("tokenring_queue_length{group=\"g\"} 0"));
    wait_until("it is published", || line("tokenring_exchanges_total{class=\"2xx\"} 1"));
}

#[test]
fn an_admin_address_that_is_taken_ends_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let text = format!("{HEAD}[admin]\nbind = \"{}\"\n", taken.local_addr().unwrap());
    let config = tokenring::testing::config::Config::from_toml_str(&text, &|_| None).unwrap();
    let why = tokenring::testing::server::start(&config).err().expect("refused");
    assert!(why.starts_with("admin: cannot listen on 127.0.0.1:"), "{why}");
}

#[test]
fn what_nobody_has_asked_is_unknown_and_what_nobody_can_find_makes_nobody_ready() {
    let text = |host: &str| {
        format!(
            "{HEAD}default_group = \"g\"\n[[upstream]]\nname = \"a\"\nurl = \"http://{host}:9\"\n\
             models = []\n[[group]]\nname = \"g\"\nmembers = [\"a\"]\n{ADMIN}"
        )
    };
    for (host, ready) in [("127.0.0.1", 200), ("nowhere.invalid", 503)] {
        let proxy = Proxy::start(&text(host));
        let told = admin(&proxy, get("/health", "")).json();
        assert_eq!(told["endpoints"]["a"]["state"], "unknown", "{host}");
        assert_eq!(told["endpoints"]["a"]["healthy"], false);
        assert_eq!((&told["status"], &told["healthy_endpoints"]), (&"unhealthy".into(), &0.into()));
        assert_eq!(admin(&proxy, get("/ready", "")).status, ready, "{host}");
        let metrics = admin(&proxy, get("/metrics", "")).text();
        assert!(metrics.contains("tokenring_upstream_healthy{upstream=\"a\"} 0"), "{host}");
        assert!(metrics.contains("tokenring_upstream_unknown{upstream=\"a\"} 1"), "{host}");
    }
}

#[test]
fn a_server_that_no_listener_reaches_makes_nobody_ready() {
    let a = Fake::start("a", &[]);
    let text = format!(
        "{HEAD}default_group = \"g\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = []\n\
         [[upstream]]\nname = \"off\"\nurl = \"http://127.0.0.1:9\"\nmodels = []\nenabled = false\n\
         [[group]]\nname = \"g\"\nmembers = [\"off\"]\n\
         [[group]]\nname = \"unused\"\nmembers = [\"a\"]\n{ADMIN}",
        a.url()
    );
    assert_eq!(admin(&Proxy::start(&text), get("/ready", "")).status, 503);
}
