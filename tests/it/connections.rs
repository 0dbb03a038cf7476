//! RFC 9112 §9 and RFC 9110 §15.2, §10.1.1: keep-alive, pipelining, HTTP/1.0, interim answers,
//! expectations, answers without a body.

use std::time::Duration;

use super::house::{LIMIT, Setup, house};
use super::wire::{chat, get, post, post_chunked};

#[test]
fn keeps_the_connection_for_many_requests() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for _ in 0..20 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    assert_eq!(mock.stats().connections_total, 1);
    assert_eq!(proxy.connections(), 1);
}

#[test]
fn answers_two_pipelined_requests_in_order() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    // The first one takes longer: order must not depend on speed.
    let both = [post("/echo", "x-mock: delay=50ms\r\n", "one"), post("/echo", "", "two")].concat();
    client.send(both);
    assert_eq!(client.answer().text(), "one");
    assert_eq!(client.answer().text(), "two");
    client.send(post("/echo", "", "three"));
    assert_eq!(client.answer().text(), "three");
    assert_eq!(mock.stats().requests_total, 3);
}

#[test]
fn answers_a_row_of_pipelined_requests_sent_bytewise() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let row: Vec<u8> = (0..5).flat_map(|n| post("/echo", "", format!("body {n}"))).collect();
    client.send_bytewise(&row);
    for n in 0..5 {
        assert_eq!(client.answer().text(), format!("body {n}"));
    }
}

#[test]
fn answers_what_was_pipelined_behind_a_refusal() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let body = r#"{"model":"nobody"}"#;
    client.send([post("/v1/chat/completions", "", body), chat("", false)].concat());
    assert_eq!(client.answer().status, 404);
    assert_eq!(client.answer().status, 200);
}

#[test]
fn keeps_the_connection_of_a_refused_request_whose_body_is_here() {
    let mock = super::house::mock();
    let proxy = Setup { listener: "auth = \"keys\"", rest: KEYS, ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.send(chat("", false)).answer().status, 401);
        assert_eq!(client.send(get("/health", "")).answer().status, 200);
        let body = "{\"model\":\"m\"} not JSON";
        let path = "/v1/chat/completions?key=sk-a";
        assert_eq!(client.send(post(path, "", body)).answer().status, 400);
        assert_eq!(client.send(post_chunked(path, "", &[b"[", b"rest"])).answer().status, 400);
        assert_eq!(client.send(chat("x-api-key: sk-a\r\n", false)).answer().status, 200);
    }
}

#[test]
fn answers_what_was_pipelined_behind_a_built_in_answer() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send([get("/health", ""), get("/v1/models", ""), chat("", false)].concat());
    assert_eq!(client.answer().text(), "{\"status\":\"ok\"}");
    assert!(client.answer().text().contains("\"id\":\"m\""));
    assert_eq!(client.answer().status, 200);
}

#[test]
fn serves_a_client_that_ends_its_side_after_the_request() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send([get("/health", "")].concat()).end();
    assert_eq!(client.answer().status, 200);
    client.expect_end();
}

#[test]
fn closes_when_the_client_asks() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(chat("Connection: close\r\n", false)).answer();
    assert_eq!((answer.status, answer.field("connection")), (200, Some("close")));
    client.expect_end();
}

#[test]
fn closes_an_idle_connection_after_client_keepalive() {
    let mock = super::house::mock();
    let proxy =
        Setup { listener: "timeouts = { client_keepalive = \"200ms\" }", ..Setup::default() }
            .start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(chat("", false)).answer().status, 200);
    client.expect_end();
    proxy.wait_until_empty();
}

#[test]
fn relays_early_hints_before_the_answer() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let hints = client.send(chat("x-mock: interim=103\r\n", false)).answer();
    assert_eq!((hints.status, hints.field("link")), (103, Some("</a>; rel=preload")));
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}

#[test]
fn keeps_an_upstream_100_to_itself() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    assert_eq!(client.send(chat("x-mock: interim=100\r\n", false)).answer().status, 200);
}

#[test]
fn sends_no_interim_answer_to_http_1_0() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send("GET /echo HTTP/1.0\r\nHost: proxy\r\nx-mock: interim=103\r\n\r\n");
    assert_eq!(client.answer().status, 200);
}

const WAITING: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: proxy\r\n\
    Expect: 100-continue\r\nContent-Length: 13\r\n";

#[test]
fn sends_100_before_the_model_is_known() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(format!("{WAITING}\r\n"));
    assert_eq!(client.answer().status, 100);
    assert_eq!(client.send(r#"{"model":"m"}"#).answer().status, 200);
    // The expectation was ours to meet; it does not travel.
    assert_eq!(mock.seen()[0].field("expect"), None);
}

#[test]
fn sends_no_100_when_the_body_is_there_already() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(format!("{WAITING}\r\n{{\"model\":\"m\"}}"));
    assert_eq!(client.answer().status, 200);
}

const KEYS: &str = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n\
    [[key]]\nname = \"b\"\nkey = \"sk-b\"\nmodels = [\"other\"]\n";

#[test]
fn refuses_before_100_when_the_key_is_missing() {
    let mock = super::house::mock();
    let proxy = Setup { listener: "auth = \"keys\"", rest: KEYS, ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(format!("{WAITING}\r\n")).answer().status, 401);
    assert!(client.is_over());
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn refuses_before_100_when_the_length_is_over_the_limit() {
    let mock = super::house::mock();
    let proxy = Setup { rest: "[limits]\nbody = \"10B\"\nbody_held = \"10B\"", ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(format!("{WAITING}\r\n")).answer().status, 413);
    assert!(client.is_over());
}

#[test]
fn refuses_before_100_when_the_route_is_not_for_the_key() {
    let mock = super::house::mock();
    let proxy = Setup {
        listener: "auth = \"keys\"\n[[listener.route]]\npath = \"/v1/*\"\ngroup = \"chat\"\n\
                   keys = [\"a\"]",
        rest: KEYS,
        ..Setup::default()
    }
    .start(&[&mock]);
    let mut client = proxy.client();
    client.send(format!("{WAITING}Authorization: Bearer sk-b\r\n\r\n"));
    assert_eq!(client.answer().status, 403);
    assert!(client.is_over());
    let mut client = proxy.client();
    client.send(format!("{WAITING}Authorization: Bearer sk-a\r\n\r\n"));
    assert_eq!(client.answer().status, 100);
}

#[test]
fn refuses_another_expectation() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(post("/echo", "Expect: 200-ok\r\n", "x"));
    assert_eq!(client.answer().status, 417);
    assert!(client.is_over());
}

#[test]
fn passes_a_head_request_and_waits_for_no_body() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send("HEAD /echo?mock=big=5000 HTTP/1.1\r\nHost: proxy\r\n\r\n");
        let answer = client.answer_to("HEAD");
        assert_eq!((answer.status, answer.field("content-length")), (200, Some("5000")));
    }
    // Our own answers to HEAD have none either.
    client.send("HEAD /health HTTP/1.1\r\nHost: proxy\r\n\r\n");
    assert_eq!(client.answer_to("HEAD").field("content-length"), Some("15"));
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}

#[test]
fn passes_204_and_304_without_a_body() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for status in [204, 304, 204] {
        let answer = client.send(get("/echo", &format!("x-mock: status={status}\r\n"))).answer();
        assert_eq!(answer.status, status);
        assert_eq!(answer.field("transfer-encoding"), None);
    }
    assert_eq!(client.send(chat("", false)).answer().status, 200);
    assert_eq!(mock.stats().connections_total, 1);
}

#[test]
fn gives_an_http_1_0_client_data_without_chunks() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send("GET /echo?mock=big=100000,chunked,seed=3 HTTP/1.0\r\nHost: proxy\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.field("transfer-encoding"), None);
    assert_eq!(answer.field("content-length"), None);
    assert_eq!(answer.body, super::wire::noise(3, 100_000));
    assert!(client.is_over());
}

#[test]
fn keeps_an_http_1_0_connection_only_when_asked() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for _ in 0..3 {
        client.send("GET /echo HTTP/1.0\r\nHost: proxy\r\nConnection: keep-alive\r\n\r\n");
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (200, Some("keep-alive")));
    }
    client.send("GET /echo HTTP/1.0\r\nHost: proxy\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.expect_end();
}

#[test]
fn speaks_http_1_1_to_the_upstream_of_an_http_1_0_client() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send("GET /echo HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert_eq!(mock.seen()[0].request_line(), "GET /echo HTTP/1.1");
}

#[test]
fn puts_the_body_of_an_http_1_0_upstream_into_chunks() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for how in ["http10,chunked", "no_length"] {
        let path = format!("/echo?mock={how},big=70000,seed=5");
        let answer = client.send(get(&path, "")).answer();
        assert_eq!(answer.body, super::wire::noise(5, 70_000), "{how}");
    }
    assert_eq!(client.send(get("/echo?mock=no_length,big=9", "")).answer().body.len(), 9);
    assert_eq!(proxy.connections(), 1, "our client's connection goes on");
    // A body that ends with its connection leaves none behind.
    let stats = mock.wait_until(LIMIT, |stats| stats.connections_open == 0);
    assert_eq!(stats.expect("closed").connections_total, 3);
}

#[test]
fn relays_a_close_delimited_stream_as_it_comes() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(chat("x-mock: no_length,interval=30ms\r\n", true));
    let answer = client.answer();
    assert_eq!(answer.field("transfer-encoding"), Some("chunked"));
    assert!(answer.text().ends_with("data: [DONE]\n\n"), "{}", answer.text());
}

#[test]
fn refuses_connect_and_trace() {
    let (mock, proxy) = house();
    for method in ["TRACE /echo", "CONNECT proxy:80"] {
        let mut client = proxy.client();
        client.send(format!("{method} HTTP/1.1\r\nHost: proxy:80\r\n\r\n"));
        assert_eq!(client.answer().status, 405, "{method}");
        assert!(client.is_over());
    }
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn waits_for_nothing_when_a_client_connects_and_leaves() {
    let (_mock, proxy) = house();
    for _ in 0..20 {
        drop(proxy.client());
        proxy.client().reset();
        let mut half = proxy.client();
        half.send("GET /ec");
    }
    proxy.wait_until_empty();
    let mut client = proxy.client();
    client.patience(Duration::from_secs(5));
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}
