//! rules §2, §8, §11: servers that speak HTTP/2 are probed and asked for their models in HTTP/2.

use std::sync::atomic::Ordering::SeqCst;

use tokenring::testing::net::dial::Address;

use super::h2_server::{H2Server, MODEL, Ways};
use super::house::{Proxy, Setup, mock, wait_until};
use super::tls_upstream::{Authority, BOTH, CA_H2};
use super::wire::{Client, get, post};

const REST: &str = "[admin]\nbind = \"127.0.0.1:0\"\n";
const PROBED: &str = "models = \"discover\"\nhealth = { path = \"/up?a=1\", method = \"POST\", \
                      body = \"{}\", headers = [{ key = \"x-do\", value = \"echo\" }], \
                      interval = \"1s\", fall = 1 }\n";

/// What the operator is told of the one upstream.
fn told(proxy: &Proxy) -> serde_json::Value {
    let Some(Address::Tcp(admin)) = proxy.admin() else { panic!("no admin listener") };
    Client::connect(*admin).send(get("/health", "")).answer().json()["endpoints"]["gpu0"].clone()
}

/// The models that clients are shown.
fn models(proxy: &Proxy) -> String {
    proxy.client().send(get("/v1/models", "")).answer().text()
}

/// Probes reach it, its models are learned, and requests for them are answered.
fn check(server: &H2Server, proxy: &Proxy, scheme: &str) {
    wait_until("its models are learned", || models(proxy).contains(MODEL));
    let probes = || {
        let heads = server.seen.heads.lock().unwrap();
        heads.iter().filter(|head| head.method == "POST").cloned().collect::<Vec<_>>()
    };
    wait_until("it is probed", || probes().len() > 1);
    let probe = &probes()[0];
    let authority = server.url().split_once("//").unwrap().1.to_owned();
    assert_eq!(probe.uri.to_string(), format!("{scheme}://{authority}/up?a=1"));
    assert_eq!(
        (&probe.headers["content-length"], probe.headers.get("host")),
        (&"2".parse().unwrap(), None)
    );
    wait_until("the body has arrived", || server.seen.received.load(SeqCst) >= 2);
    let told = told(proxy);
    assert_eq!((&told["healthy"], &told["lastError"]), (&true.into(), &serde_json::Value::Null));
    let body = format!("{{\"model\":\"{MODEL}\"}}");
    let answer = proxy.client().send(post("/v1/chat/completions", "", body)).answer();
    assert_eq!((answer.status, answer.field("x-version")), (200, Some("2")));
}

#[test]
fn by_prior_knowledge() {
    let server = H2Server::start(Ways::default());
    let upstream = format!("http2 = true\n{PROBED}");
    let setup = Setup { upstream: &upstream, rest: REST, ..Setup::default() };
    check(&server, &setup.start_on(&[server.url()]), "http");
}

#[test]
fn where_alpn_leaves_no_choice_and_where_it_does() {
    let authority = Authority::new("ours");
    for alpn in [&["h2"][..], BOTH] {
        let server = authority.start("localhost", 2099, alpn);
        let upstream = format!("{CA_H2}{PROBED}");
        let setup = Setup { upstream: &upstream, rest: REST, ..Setup::default() };
        check(&server, &authority.proxy(setup, &[server.url()]), "https");
    }
}

#[test]
fn a_server_that_chooses_http1_is_asked_in_http1() {
    let authority = Authority::new("ours");
    let server = authority.start("localhost", 2099, &["http/1.1"]);
    let upstream = format!("{CA_H2}{PROBED}");
    let setup = Setup { upstream: &upstream, rest: REST, ..Setup::default() };
    let proxy = authority.proxy(setup, &[server.url()]);
    wait_until("it is asked", || server.requests() > 2);
    assert_eq!(told(&proxy)["healthy"], true);
}

#[test]
fn a_server_without_http2_is_down_and_the_reason_told() {
    let mock = mock();
    let upstream = format!("http2 = true\n{PROBED}");
    let setup = Setup { upstream: &upstream, rest: REST, ..Setup::default() };
    let proxy = setup.start_on(&[mock.url()]);
    wait_until("it is down", || told(&proxy)["healthy"] == false);
    let why = told(&proxy)["lastError"].as_str().unwrap_or_default().to_owned();
    assert!(why.starts_with("http2: "), "{why}");
}
