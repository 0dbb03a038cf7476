//! rules §13: after a known set of requests the numbers in a scrape are exactly those.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokenring::testing::net::dial::Address;

use super::house::{Proxy, Setup, mock, mock_with, wait_until};
use super::ratelimits::fresh_minute;
use super::reload::Live;
use super::scripted::Scripted;
use super::wire::{Client, chat, get, post};

const ADMIN: &str = "[admin]\nbind = \"127.0.0.1:0\"\n";

fn scrape_text(proxy: &Proxy) -> String {
    match proxy.admin() {
        Some(Address::Tcp(addr)) => {
            Client::connect(*addr).send(get("/metrics", "")).answer().text()
        }
        other => panic!("no admin listener: {other:?}"),
    }
}

/// A scrape: each series with its value.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(proxy: &Proxy) -> Scrape {
        let text = scrape_text(proxy);
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Scrape(series.collect())
    }

    /// As soon as so many exchanges have been counted, in rows and in sums.
    fn after(proxy: &Proxy, exchanges: u64) -> Scrape {
        wait_until("all exchanges are counted", || {
            let scrape = Scrape::of(proxy);
            let sums = ["tokenring_http_requests_total{", "tokenring_exchanges_total{"];
            sums.iter().all(|family| scrape.sum(family) == exchanges as f64)
        });
        Scrape::of(proxy)
    }

    fn value(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or(&0.0)
    }

    fn sum(&self, start: &str) -> f64 {
        self.starting(start).map(|(_, value)| value).sum()
    }

    fn starting(&self, start: &str) -> impl Iterator<Item = (&str, f64)> {
        let all = self.0.iter().filter(move |(name, _)| name.starts_with(start));
        all.map(|(name, value)| (name.as_str(), *value))
    }

    /// All series of a family that are not 0, without its name.
    fn family(&self, name: &str) -> Vec<(&str, f64)> {
        let start = format!("tokenring_{name}");
        let of = self.0.iter().filter_map(|(series, value)| {
            let rest = series.strip_prefix(&start)?;
            (rest.is_empty() || rest.starts_with('{')).then_some((rest, *value))
        });
        of.filter(|(_, value)| *value != 0.0).collect()
    }

    fn check(&self, family: &str, expected: &[(&str, f64)]) {
        assert_eq!(self.family(family), expected, "{family}");
    }
}

#[test]
fn a_known_set_of_requests_gives_exactly_these_numbers() {
    let mock = mock();
    let rest = format!(
        "[[key]]\nname = \"few\"\nkey = \"sk-few\"\nrpm = 3\n\
         [[key]]\nname = \"any\"\nkey = \"sk-any\"\n{ADMIN}"
    );
    let proxy = Setup { listener: "auth = \"keys\"", rest: &rest, ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let (few, any) = ("x-api-key: sk-few\r\n", "x-api-key: sk-any\r\n");
    fresh_minute();
    let mut client = proxy.client();
    let plain = client.send(chat(few, false)).answer().json();
    let streamed = "{\"messages\":[],\"model\":\"m\",\"stream\":true,\"seed\":7,\
                    \"stream_options\":{\"include_usage\":true}}";
    let streamed = post("/v1/chat/completions", few, streamed);
    let streamed = client.send(streamed).answer().text();
    let mut with_usage = streamed.lines().filter_map(|line| line.strip_prefix("data: "));
    let with_usage = with_usage.rfind(|data| data.contains("prompt_tokens")).unwrap();
    let both = [plain, serde_json::from_str(with_usage).unwrap()];
    let sum = |name: &str| both.iter().map(|json| json["usage"][name].as_f64().unwrap()).sum();
    let (prompt, completion): (f64, f64) = (sum("prompt_tokens"), sum("completion_tokens"));
    let unknown = post("/v1/chat/completions", few, "{\"model\":\"secret\",\"messages\":[]}");
    assert_eq!(client.send(unknown).answer().status, 404);
    for _ in 0..2 {
        assert_eq!(client.send(chat(few, false)).answer().status, 429);
    }
    assert_eq!(client.send(get("/echo", any)).answer().status, 200);
    assert_eq!(client.send(chat("", false)).answer().status, 401);
    let scrape = Scrape::after(&proxy, 7);
    scrape.check(
        "http_requests_total",
        &[("{forward=\"main\",method=\"GET\"}", 1.0), ("{forward=\"main\",method=\"POST\"}", 6.0)],
    );
    scrape.check("http_request_duration_seconds_count", &[("{forward=\"main\"}", 7.0)]);
    scrape.check(
        "http_request_errors_total",
        &[
            ("{forward=\"main\",error=\"minute_limit\",status=\"429\"}", 2.0),
            ("{forward=\"main\",error=\"no_key\",status=\"401\"}", 1.0),
            ("{forward=\"main\",error=\"no_such_model\",status=\"404\"}", 1.0),
        ],
    );
    scrape.check("ratelimit_total", &[("{forward=\"main\"}", 2.0)]);
    scrape.check("route_matches_total", &[("{forward=\"main\",group=\"chat\"}", 3.0)]);
    let at_gpu0 = "{group=\"chat\",upstream=\"gpu0\"}";
    scrape.check("upstream_requests_total", &[(at_gpu0, 3.0)]);
    scrape.check("upstream_duration_seconds_count", &[(at_gpu0, 3.0)]);
    scrape.check("upstream_errors_total", &[]);
    let called = "{group=\"chat\",upstream=\"gpu0\",result=\"success\"}";
    scrape.check("circuitbreaker_calls_total", &[(called, 3.0)]);
    let of_key = "{model=\"m\",upstream=\"gpu0\",key=\"few\"}";
    scrape.check("prompt_tokens_total", &[(of_key, prompt)]);
    scrape.check("completion_tokens_total", &[(of_key, completion)]);
    scrape.check("cached_tokens_total", &[]);
    for family in ["time_to_first_token_seconds_count", "inter_token_latency_seconds_count"] {
        scrape.check(family, &[("{model=\"m\"}", 1.0)]);
    }
    scrape.check("retries_total", &[]);
    scrape.check("client_aborts_total", &[]);
    scrape.check("pool_reuse_total", &[("", 2.0)]);
    scrape.check("proxy_overhead_seconds_count", &[("", 3.0)]);
    scrape.check("pool_idle", &[("", 1.0)]);
    let theirs = "{gen_ai_request_model=\"m\"}";
    for family in ["time_to_first_token", "time_per_output_token"] {
        let name = format!("gen_ai_server_{family}_seconds_count{theirs}");
        assert_eq!(scrape.value(&name), 1.0, "{name}");
    }
    for (kind, tokens) in [("input", prompt), ("output", completion)] {
        let labels = format!("{{gen_ai_request_model=\"m\",gen_ai_token_type=\"{kind}\"}}");
        let of = |what: &str| scrape.value(&format!("gen_ai_client_token_usage_{what}{labels}"));
        assert_eq!((of("count"), of("sum")), (2.0, tokens));
    }
    assert!(scrape.0.keys().all(|series| !series.contains("secret")), "a client's name");
}

#[test]
fn a_retry_counts_both_attempts_and_an_abort_its_client() {
    let nobody = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let dead = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let mock = mock();
    let group = "balance = \"failover\"\nretry = { attempts = 1, on = [\"connect\"] }\n";
    let proxy = Setup { group, rest: ADMIN, ..Setup::default() }.start_on(&[dead, mock.url()]);
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
    let scrape = Scrape::after(&proxy, 1);
    let at = |upstream: &str| format!("{{group=\"chat\",upstream=\"{upstream}\"}}");
    let (gpu0, gpu1) = (at("gpu0"), at("gpu1"));
    scrape.check("upstream_requests_total", &[(&gpu0, 1.0), (&gpu1, 1.0)]);
    let error = "{error=\"connect_failed\",group=\"chat\",upstream=\"gpu0\"}";
    scrape.check("upstream_errors_total", &[(error, 1.0)]);
    scrape.check("route_matches_total", &[("{forward=\"main\",group=\"chat\"}", 1.0)]);
    scrape.check("retries_total", &[("", 1.0)]);
    scrape.check("http_request_errors_total", &[]);

    let server = Scripted::start(|conn| {
        conn.head();
        conn.say("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n");
        conn.say("Transfer-Encoding: chunked\r\n\r\n");
        conn.say("9\r\ndata: x\n\n\r\n");
        conn.drain();
    });
    let proxy = Setup { rest: ADMIN, ..Setup::default() }.start_on(&[server.url()]);
    let mut client = proxy.client();
    client.send(chat("", true)).through(b"data: x").unwrap();
    client.reset();
    let scrape = Scrape::after(&proxy, 1);
    scrape.check("client_aborts_total", &[("", 1.0)]);
    let error = "{forward=\"main\",error=\"client_gone\",status=\"200\"}";
    scrape.check("http_request_errors_total", &[(error, 1.0)]);
    scrape.check("upstream_requests_total", &[(&gpu0, 1.0)]);
    scrape.check("upstream_errors_total", &[]);
}

#[test]
fn what_an_abort_saves_is_what_the_upstreams_median_had_left() {
    let hanging = Arc::new(AtomicBool::new(false));
    let hangs = hanging.clone();
    let server = Scripted::start(move |conn| {
        let head = conn.head().unwrap_or_default();
        if head.contains("x-hang") {
            hangs.store(true, Relaxed);
            return conn.drain();
        }
        std::thread::sleep(Duration::from_millis(1200));
        conn.say("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}");
    });
    let proxy = Setup { rest: ADMIN, ..Setup::default() }.start_on(&[server.url()]);
    for _ in 0..3 {
        assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
    }
    Scrape::after(&proxy, 3).check("gpu_seconds_saved_total", &[]);
    let mut client = proxy.client();
    client.send(chat("x-hang: 1\r\n", false));
    wait_until("the server has it", || hanging.load(Relaxed));
    client.reset();
    let scrape = Scrape::after(&proxy, 4);
    let saved = scrape.family("gpu_seconds_saved_total");
    let [(labels, seconds)] = saved[..] else { panic!("{saved:?}") };
    assert_eq!(labels, "{model=\"m\",upstream=\"gpu0\"}");
    // Whole answers take between 1 and 2.5 s, and this one was left at once.
    assert!((0.2..2.5).contains(&seconds), "{seconds}");
}

#[test]
fn cores_are_added_up() {
    let mock = mock();
    let setup = Setup { process: "cores = 2\n", rest: ADMIN, ..Setup::default() };
    let proxy = setup.start(&[&mock]);
    for _ in 0..20 {
        assert_eq!(proxy.client().send(chat("", false)).answer().status, 200);
    }
    let scrape = Scrape::after(&proxy, 20);
    scrape.check("http_requests_total", &[("{forward=\"main\",method=\"POST\"}", 20.0)]);
    let gpu0 = "{group=\"chat\",upstream=\"gpu0\"}";
    scrape.check("upstream_requests_total", &[(gpu0, 20.0)]);
}

#[test]
fn series_of_what_is_removed_go_away_and_those_of_the_rest_go_on() {
    let mock = mock_with(|_| {});
    let text = |models: &[&str], prefix: &str| {
        let lead = |model: &&str| format!("[models.\"{model}\"]\nupstream = \"gpu0\"\n");
        format!(
            "[process]\ncores = 1\n[[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\n\
             auth = \"none\"\n[[upstream]]\nname = \"gpu0\"\nurl = \"{}\"\nmodels = []\n\
             {}{ADMIN}metrics_prefix = \"{prefix}\"\n",
            mock.url(),
            models.iter().map(lead).collect::<String>()
        )
    };
    let live = Live::start(&text(&["a", "b"], "tokenring_"));
    let ask = |model: &str| {
        let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
        let request = post("/v1/chat/completions", "", body);
        assert_eq!(live.proxy.client().send(request).answer().status, 200);
    };
    ["a", "b", "b"].into_iter().for_each(ask);
    let models = |scrape: &Scrape, prefix: &str| {
        let family = format!("{prefix}prompt_tokens_total{{model=\"");
        let of = |(series, _): (&str, f64)| series[family.len()..].chars().next().unwrap();
        scrape.starting(&family).map(of).collect::<String>()
    };
    let before = Scrape::after(&live.proxy, 3);
    assert_eq!(models(&before, "tokenring_"), "ab");
    let name = "prompt_tokens_total{model=\"b\",upstream=\"gpu0\",key=\"\"}";
    let prompts = before.value(&format!("tokenring_{name}"));
    live.reload(&text(&["b", "c"], "llmproxy_")).unwrap();
    ["b", "c"].into_iter().for_each(ask);
    wait_until("the rest is counted", || {
        let scrape = Scrape::of(&live.proxy);
        models(&scrape, "llmproxy_") == "bc"
            && scrape.value(&format!("llmproxy_{name}")) == prompts * 1.5
    });
    let ours = |name: &&String| !name.starts_with("llmproxy_") && !name.starts_with("gen_ai_");
    assert_eq!(Scrape::of(&live.proxy).0.keys().find(ours), None, "all have the prefix");
}

/// Runs `promtool check` on `input`; what it has to complain of, `None` = there is no promtool.
fn promtool(what: &[&str], input: &str) -> Option<String> {
    if Command::new("promtool").arg("--version").stdout(Stdio::null()).status().is_err() {
        let hint = "no promtool: apt-get install prometheus";
        assert_ne!(std::env::var("TOKENRING_CI").as_deref(), Ok("1"), "{hint}");
        eprintln!("skipped: {hint}");
        return None;
    }
    let mut promtool = Command::new("promtool")
        .arg("check")
        .args(what)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    let words = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    let clean = said.status.success() && (words.is_empty() || words.contains("SUCCESS"));
    Some(if clean { String::new() } else { words })
}

/// A proxy that has served a stream.
fn used() -> (loadtest::mock::Mock, Proxy) {
    let mock = mock();
    let proxy = Setup { rest: ADMIN, ..Setup::default() }.start(&[&mock]);
    assert_eq!(proxy.client().send(chat("", true)).answer().status, 200);
    Scrape::after(&proxy, 1);
    (mock, proxy)
}

#[test]
fn promtool_finds_nothing_to_complain_of() {
    let (_mock, proxy) = used();
    if let Some(complaints) = promtool(&["metrics"], &scrape_text(&proxy)) {
        assert_eq!(complaints, "");
    }
}

const RULES: &str = include_str!("../../deploy/prometheus/rules.yml");
const DASHBOARD: &str = include_str!("../../deploy/grafana/tokenring.json");

/// Every expression of the dashboard, its variables replaced.
fn dashboard_expressions() -> Vec<String> {
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let expressions = targets.map(|target| target["expr"].as_str().unwrap());
    let plain = |text: &str| text.replace("$__rate_interval", "5m").replace("$instance", ".*");
    expressions.map(plain).collect()
}

#[test]
fn dashboard_and_alerts_name_what_there_is() {
    let (_mock, proxy) = used();
    let mut known = BTreeSet::new();
    for line in scrape_text(&proxy).lines() {
        let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        else {
            continue;
        };
        match kind {
            "histogram" => {
                known.extend(["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")))
            }
            _ => drop(known.insert(name.to_owned())),
        }
    }
    let expressions = dashboard_expressions();
    assert!(expressions.len() > 20);
    let all = format!("{}\n{RULES}", expressions.join("\n"));
    let words = all.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names: BTreeSet<&str> = words.filter(|word| word.starts_with("tokenring_")).collect();
    assert!(names.len() > 20);
    let unknown: Vec<_> = names.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn promtool_takes_every_expression_of_the_dashboard_and_the_alerts() {
    // JSON is YAML, and an expression is checked where a rule has it.
    let rule = |(at, expr)| serde_json::json!({ "record": format!("panel:{at}"), "expr": expr });
    let rules: Vec<_> = dashboard_expressions().into_iter().enumerate().map(rule).collect();
    let groups = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    for rules in [RULES, &groups.to_string()] {
        if let Some(complaints) = promtool(&["rules", "/dev/stdin"], rules) {
            assert_eq!(complaints, "");
        }
    }
}
