//! rules §9, §11: servers that are the pods of a Service of Kubernetes.

use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use serde_json::json;
use tokenring::testing::control::reconciler::FIRST_WAIT;
use tokenring::testing::net::dial::Address;
use tokenring::testing::net::tls::provider;

use super::api_server::{ApiServer, TOKEN};
use super::certs::{House, listening};
use super::fake::Fake;
use super::house::{Proxy, mock, wait_until};
use super::reload::Live;
use super::wire::{Client, chat, get, post};

fn ask(client: &mut Client) -> (u16, String) {
    let answer = client.send(post("/v1/chat/completions", "", r#"{"model":"m"}"#)).answer();
    (answer.status, answer.field("x-server").unwrap_or_default().to_owned())
}

fn served_by(proxy: &Proxy) -> String {
    let (status, name) = ask(&mut proxy.client());
    if status == 200 { name } else { status.to_string() }
}

fn text(api: &ApiServer, models: &str) -> String {
    format!(
        "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         [admin]\nbind = \"127.0.0.1:0\"\n[discovery]\nkubeconfig = \"{}\"\n\
         [[upstream]]\nname = \"many\"\nurl = \"http://vllm:80\"\n{models}\n\
         discover = \"k8s:ml/vllm:http\"\n\
         [models.m]\nupstream = \"many\"\n",
        api.kubeconfig()
    )
}

const DECLARED: &str = "models = []";

type Lines = Arc<Mutex<Vec<String>>>;

fn start(api: &ApiServer, models: &str) -> (Proxy, Lines) {
    let (options, lines) = listening();
    (Proxy::start_with(&text(api, models), options), lines)
}

/// As `start`, with the warnings of the start.
fn start_warned(text: &str) -> (Proxy, Vec<String>, Lines) {
    let (options, lines) = listening();
    let loaded = tokenring::testing::load::load_text("config.toml", text).unwrap();
    let started = tokenring::testing::server::start_with(&loaded.config, options).unwrap();
    (Proxy::of(started.server), started.warnings, lines)
}

/// Whether discovery works and how many servers it knows, as Prometheus would read it.
fn shown(proxy: &Proxy) -> String {
    let Some(Address::Tcp(addr)) = proxy.admin() else { panic!("no admin listener") };
    let text = Client::connect(*addr).send(get("/metrics", "")).answer().text();
    let of = |family: &str| {
        let begin = format!("tokenring_discovery_{family}{{upstream=\"many\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&begin));
        line.unwrap_or("none").to_owned()
    };
    format!("{} {}", of("up"), of("targets"))
}

fn count(lines: &Lines, part: &str) -> usize {
    lines.lock().unwrap().iter().filter(|line| line.contains(part)).count()
}

/// Sends requests all the while; each must be answered 200.
fn under_load(proxy: &Proxy, test: impl FnOnce(&AtomicU64)) {
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let load = || {
            let mut client = proxy.client();
            while !over.load(Ordering::Relaxed) {
                let (status, _) = ask(&mut client);
                if status != 200 {
                    over.store(true, Ordering::Relaxed);
                    panic!("answered {status}");
                }
                served.fetch_add(1, Ordering::Relaxed);
            }
        };
        for _ in 0..4 {
            scope.spawn(load);
        }
        let _end = EndLoad(&over);
        test(&served);
    });
}

/// Ends the load also where the test fails.
struct EndLoad<'a>(&'a AtomicBool);

impl Drop for EndLoad<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Nobody is sent there any more, while the load goes on.
fn has_left(fake: &Fake, served: &AtomicU64) {
    wait_until("it gets nothing any more", || {
        let (before, then) = (fake.served(), served.load(Ordering::Relaxed));
        wait_until("the load goes on", || served.load(Ordering::Relaxed) > then + 50);
        fake.served() == before
    });
}

#[test]
fn pods_come_and_go_under_load_without_an_error() {
    for models in [DECLARED, "models = \"discover\""] {
        let api = ApiServer::start();
        let [a, b, c] = ["a", "b", "c"].map(|name| Fake::start(name, &["m"]));
        api.ready("a", a.addr());
        let (proxy, _) = start(&api, models);
        under_load(&proxy, |served| {
            wait_until("a serves", || a.served() > 10);
            // One that is not ready gets nothing until it is.
            api.put("b", b.addr(), json!({ "ready": false, "serving": false }));
            api.bookmark();
            api.ready("c", c.addr());
            wait_until("c serves", || c.served() > 10);
            assert_eq!(b.served(), 0);
            api.ready("b", b.addr());
            wait_until("b serves", || b.served() > 10);
            api.terminates("a", a.addr());
            has_left(&a, served);
            api.delete("a");
            api.end_watches();
            api.delete("c");
            has_left(&c, served);
            wait_until("b alone is left", || proxy.plan().upstreams.len() == 1);
            // A pod is replaced at a stroke.
            api.ready("b", a.addr());
            has_left(&b, served);
        });
        assert_eq!(api.lists(), 1, "all the rest was watched");
        api.delete("b");
        wait_until("nobody is left", || served_by(&proxy) == "503");
    }
}

#[test]
fn a_pod_that_terminates_ends_what_it_has_begun() {
    let api = ApiServer::start();
    let (one, two) = (mock(), mock());
    api.ready("one", one.addr());
    let (proxy, _) = start(&api, DECLARED);
    let mut client = proxy.client();
    client.send(chat("x-mock: interval=30ms,tokens=30\r\n", true));
    client.through(b"\n\n").expect("it has begun");
    api.ready("two", two.addr());
    api.terminates("one", one.addr());
    let status = || proxy.client().send(chat("", false)).answer().status;
    wait_until("the other one serves", || {
        assert_eq!(status(), 200);
        two.stats().requests_total > 0 && proxy.plan().upstreams.len() == 1
    });
    let before = one.stats().requests_total;
    (0..20).for_each(|_| assert_eq!(status(), 200));
    assert_eq!(one.stats().requests_total, before);
    client.through(b"data: [DONE]\n\n\r\n0\r\n\r\n").expect("it ends well");
    assert_eq!(one.stats().aborted_total, 0);
}

#[test]
fn a_version_that_is_too_old_is_listed_anew() {
    for by_status in [true, false] {
        let api = ApiServer::start();
        let [a, b] = ["a", "b"].map(|name| Fake::start(name, &[]));
        api.ready("a", a.addr());
        let (proxy, lines) = start(&api, DECLARED);
        assert_eq!(served_by(&proxy), "a");
        wait_until("it watches", || api.open() == 1);
        // What happens meanwhile is in no watch any more.
        api.end_watches();
        api.ready("b", b.addr());
        api.delete("a");
        api.forget(by_status);
        api.end_watches();
        wait_until("b serves", || served_by(&proxy) == "b");
        wait_until("it watches again", || api.open() == 1);
        assert!(api.lists() <= 2, "{}", api.lists());
        api.ready("c", a.addr());
        api.delete("b");
        wait_until("a serves again", || served_by(&proxy) == "a");
        assert_eq!(count(&lines, "discover:"), 0, "none of it is worth a line: {lines:?}");
    }
}

#[test]
fn a_connection_that_breaks_within_an_event_costs_nothing() {
    let api = ApiServer::start();
    let [a, b] = ["a", "b"].map(|name| Fake::start(name, &[]));
    api.ready("a", a.addr());
    let (proxy, lines) = start(&api, DECLARED);
    under_load(&proxy, |served| {
        wait_until("it watches", || api.open() == 1);
        api.bookmark();
        let whole = api.sent();
        api.break_watches();
        api.ready("b", b.addr());
        wait_until("it is found all the same", || b.served() > 10);
        assert_eq!(api.watches().last(), Some(&whole), "from the last whole event on");
        api.break_watches();
        api.delete("a");
        has_left(&a, served);
    });
    assert_eq!(api.lists(), 1);
    assert_eq!(count(&lines, "discover:"), 0, "{lines:?}");
}

#[test]
fn while_the_api_server_is_away_the_last_pods_stay_and_it_is_told_once() {
    let mut api = ApiServer::start();
    let [a, b] = ["a", "b"].map(|name| Fake::start(name, &[]));
    api.ready("a", a.addr());
    let (proxy, lines) = start(&api, DECLARED);
    under_load(&proxy, |_| {
        wait_until("it watches", || api.open() == 1);
        api.stop();
        wait_until("it is told", || count(&lines, "upstream many: discover: API server: ") == 1);
        let told = Instant::now();
        wait_until("it has tried again", || told.elapsed() > Duration::from_secs(3));
        assert!(lines.lock().unwrap()[0].contains("localhost:"), "{lines:?}");
        assert_eq!(shown(&proxy), "0 1");
        api.ready("b", b.addr());
        api.go_on();
        wait_until("what came meanwhile is found", || b.served() > 10);
        assert_eq!(shown(&proxy), "1 2");
        // A server that answers with faults is no better than one that is away.
        api.refuse(Some(500), Some(500));
        api.end_watches();
        wait_until("it is told", || count(&lines, "answers watch with 500: said with 500") == 1);
        api.refuse(None, None);
        wait_until("it watches", || api.open() == 1);
        api.delete("b");
        wait_until("changes are seen again", || proxy.plan().upstreams.len() == 1);
    });
    assert_eq!(count(&lines, "discover:"), 2, "{lines:?}");
}

#[test]
fn a_right_that_is_missing_is_named_and_does_not_hold_up_the_start() {
    let api = ApiServer::start();
    let a = Fake::start("a", &[]);
    api.ready("a", a.addr());
    api.refuse(Some(403), None);
    let begun = Instant::now();
    let (proxy, warnings, lines) = start_warned(&text(&api, DECLARED));
    let first = "upstream many: discover: no right to list endpointslices in namespace ml;";
    assert!(warnings[0].starts_with(first), "{warnings:?}");
    assert!(begun.elapsed() < FIRST_WAIT, "an answer is one, if a bad one");
    assert_eq!(served_by(&proxy), "503");
    api.refuse(None, Some(403));
    wait_until("lists are enough to begin with", || served_by(&proxy) == "a");
    let named = "no right to watch endpointslices in namespace ml; a Role must allow get, list and \
                 watch on endpointslices of discovery.k8s.io: said with 403";
    wait_until("it is told", || count(&lines, named) == 1);
    api.refuse(None, None);
    let b = Fake::start("b", &[]);
    api.ready("a", b.addr());
    wait_until("changes are seen", || served_by(&proxy) == "b");
}

#[test]
fn the_start_does_not_wait_long_for_an_api_server_that_is_silent() {
    let api = ApiServer::start();
    api.hang();
    let begun = Instant::now();
    let (proxy, _) = start(&api, DECLARED);
    let limit = FIRST_WAIT + Duration::from_secs(2);
    assert!(begun.elapsed() < limit, "{:?}", begun.elapsed());
    assert_eq!(served_by(&proxy), "503");
}

/// The TLS of an API server, which wants a certificate of clients when `asks`.
fn tls(house: &House, asks: bool) -> Arc<ServerConfig> {
    let (cert, key) = house.sign("api", &["localhost"]);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(house.ca.as_bytes()).unwrap()).unwrap();
    let builder = ServerConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let builder = match asks {
        false => builder.with_no_client_auth(),
        true => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
                .build()
                .unwrap(),
        ),
    };
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

#[test]
fn over_tls_with_a_token_or_a_certificate() {
    let a = Fake::start("a", &[]);
    for asks in [false, true] {
        let house = House::new("api");
        let tls = tls(&house, asks);
        let (cert, key) = house.sign("proxy", &[]);
        house.write("own.pem", &cert);
        house.write("own.key", &key);
        house.write("token", TOKEN);
        let api = ApiServer::start_with(house, Some(tls), !asks);
        let ca = format!("certificate-authority: {}", api.folder().path("ca.pem"));
        let [cert, key] = ["own.pem", "own.key"].map(|name| api.folder().path(name));
        let user = match asks {
            false => format!("tokenFile: {}", api.folder().path("token")),
            true => format!("client-certificate: {cert}\n    client-key: {key}"),
        };
        api.write_kubeconfig("cluster.yaml", &ca, &user);
        api.ready("a", a.addr());
        let (proxy, lines) = start(&api, DECLARED);
        assert_eq!(served_by(&proxy), "a", "{lines:?}");
        api.delete("a");
        wait_until("it is gone", || served_by(&proxy) == "503");
    }
}

#[test]
fn who_is_not_known_or_not_believed_is_told_and_what_is_repaired_is_used() {
    let (house, other) = (House::new("api"), House::new("other"));
    let tls = tls(&house, false);
    house.write("other.pem", &other.ca);
    house.write("token", "CANARY-wrong");
    let api = ApiServer::start_with(house, Some(tls), true);
    let ca = |name: &str| format!("certificate-authority: {}", api.folder().path(name));
    let user = format!("tokenFile: {}", api.folder().path("token"));
    api.write_kubeconfig("cluster.yaml", &ca("other.pem"), &user);
    let a = Fake::start("a", &[]);
    api.ready("a", a.addr());
    let (proxy, warnings, lines) = start_warned(&text(&api, DECLARED));
    let told = |lines: &[String], part: &str| lines.iter().any(|line| line.contains(part));
    let why = "tls: the certificate is signed by nobody we trust";
    assert!(told(&warnings, why), "{warnings:?}");
    api.write_kubeconfig("cluster.yaml", &ca("ca.pem"), &user);
    wait_until("it was asked", || api.unknown() > 0);
    api.folder().write("token", TOKEN);
    wait_until("the new token is used", || served_by(&proxy) == "a");
    let all = [warnings, lines.lock().unwrap().clone()].concat();
    assert!(!told(&all, "CANARY"), "{all:?}");
}

#[test]
fn a_reload_adds_and_removes_sources_and_keeps_what_is_known_of_those_that_stay() {
    let api = ApiServer::start();
    let [a, b] = ["a", "b"].map(|name| Fake::start(name, &[]));
    api.ready("a", a.addr());
    let with = text(&api, DECLARED);
    let without =
        with.replace("discover = \"k8s:ml/vllm:http\"\n", "").replace("http://vllm:80", &b.url());
    let live = Live::start(&without);
    assert_eq!(served_by(&live.proxy), "b");
    live.reload(&with).unwrap();
    assert_eq!(served_by(&live.proxy), "a", "a reload waits for what is new");
    wait_until("it watches", || api.open() == 1);
    let state = live.proxy.plan().upstreams[0].state.clone();
    let more = with.replace("models = []", "models = []\nconcurrency = 7");
    live.reload(&more).unwrap();
    assert!(Arc::ptr_eq(&live.proxy.plan().upstreams[0].state, &state), "the same server still");
    assert_eq!((api.lists(), api.watches().len()), (1, 1), "and the same watch");
    // Another kubeconfig is another cluster.
    let other = ApiServer::start();
    other.ready("b", b.addr());
    live.reload(&more.replace(&api.kubeconfig(), &other.kubeconfig())).unwrap();
    wait_until("b serves", || served_by(&live.proxy) == "b");
    wait_until("nobody watches there any more", || api.open() == 0);
    live.reload(&without).unwrap();
    wait_until("nobody watches here either", || other.open() == 0);
    assert_eq!(served_by(&live.proxy), "b");
}

#[test]
fn pods_with_ipv6_are_reached() {
    let api = ApiServer::start();
    let a = Fake::start_at(SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), "a", &[]);
    api.ready("a", a.addr());
    let (proxy, _) = start(&api, DECLARED);
    assert_eq!(served_by(&proxy), "a");
}

#[test]
fn a_port_that_nobody_has_is_told_with_those_there_are() {
    let api = ApiServer::start();
    let a = Fake::start("a", &[]);
    api.ready("a", a.addr());
    let wrong = text(&api, DECLARED).replace("vllm:http", "vllm:grpc");
    let (proxy, warnings, lines) = start_warned(&wrong);
    let told = format!(
        "upstream many: discover: Service vllm of namespace ml: no port is named \"grpc\"; {} \
         (http), 1 (metrics) there are",
        a.addr().port()
    );
    assert_eq!(warnings, [told]);
    assert_eq!(served_by(&proxy), "503");
    let b = Fake::start("b", &[]);
    api.ready("a", b.addr());
    // Told at the start, and only then.
    wait_until("it has been seen", || api.open() == 1);
    assert_eq!(count(&lines, "no port is named"), 0);
}
