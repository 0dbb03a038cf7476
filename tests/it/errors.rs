//! SPEC §5: our own answers in the caller's dialect, with a length and a request id.

use super::house::{Setup, house, mock};
use super::wire::{chat, get, post};

#[test]
fn speaks_the_dialect_of_the_path() {
    let mock = mock();
    let proxy = Setup { listener: "auth = \"keys\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let answer = client.send(post("/v1/chat/completions", "", "{}")).answer();
    let error = answer.json();
    assert_eq!(error["error"]["code"], "401");
    assert_eq!(error["error"]["type"], "authentication_error");
    assert!(error["error"]["param"].is_null() && error["error"].get("param").is_some());
    assert!(error["error"]["hint"].is_string());
    assert_eq!(error["error"]["request_id"].as_str(), answer.field("x-request-id"));
    assert_eq!(answer.field("content-type"), Some("application/json"));
    assert!(answer.text().starts_with("{\"error\":{\"message\":\""), "{}", answer.text());

    let answer = client.send(post("/v1/messages", "", "{}")).answer();
    let error = answer.json();
    assert_eq!((answer.status, &error["type"]), (401, &"error".into()));
    assert_eq!(error["error"]["type"], "authentication_error");
    assert!(error["error"]["message"].as_str().unwrap().starts_with("Authentication Error"));

    let answer = client.send(post("/v1beta/models/x:generateContent", "", "{}")).answer();
    let error = answer.json();
    assert_eq!((answer.status, &error["error"]["code"]), (401, &401.into()));
    assert_eq!(error["error"]["status"], "UNAUTHENTICATED");
}

#[test]
fn accepts_a_request_id_or_makes_one() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(chat("X-Request-Id: abc-123\r\n", false)).answer();
    assert_eq!(answer.fields("x-request-id"), ["abc-123"]);
    let answer = client.send(get("/nothing", "X-Request-Id: abc-124\r\n")).answer();
    assert_eq!(answer.fields("x-request-id"), ["abc-124"]);
    let mut made: Vec<String> = Vec::new();
    for _ in 0..10 {
        let answer = client.send(chat("", false)).answer();
        made.push(answer.field("x-request-id").unwrap().to_owned());
        assert_eq!(answer.fields("x-request-id").len(), 1);
    }
    let seen: Vec<String> =
        mock.seen().iter().skip(1).filter_map(|request| request.field("x-request-id")).collect();
    assert_eq!(seen, made, "the upstream is told the same");
    made.sort();
    made.dedup();
    assert_eq!(made.len(), 10);
    // One that could break a log line is not taken over.
    let answer = client.send(chat("X-Request-Id: a b\"c\r\n", false)).answer();
    assert_ne!(answer.field("x-request-id"), Some("a b\"c"));
}

#[test]
fn passes_an_upstreams_own_errors_unchanged() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for status in [400, 404, 422, 429, 500, 503, 529] {
        let how = format!("x-mock: status={status},retry_after=7\r\n");
        let answer = client.send(chat(&how, false)).answer();
        assert_eq!((answer.status, answer.field("retry-after")), (status, Some("7")));
        assert_eq!(answer.message(), "as x-mock asked");
    }
}

#[test]
fn answers_404_where_nothing_routes() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(get("/favicon.ico", "")).answer();
    assert_eq!((answer.status, answer.message().as_str()), (404, "No route for GET /favicon.ico."));
}

#[test]
fn answers_503_with_retry_after_when_nobody_is_left() {
    let mock = mock();
    let proxy = Setup { upstream: "enabled = false", ..Setup::default() }.start(&[&mock]);
    let answer = proxy.client().send(chat("", false)).answer();
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
}

#[test]
fn an_error_message_is_valid_json_whatever_the_name() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for name in ["\\u0000", "\\ud83d\\ude00", "\\\"\\\\/", "\u{e9}\u{1f600}", "\\ud800"] {
        let body = format!("{{\"model\":\"{name}\"}}");
        let answer = client.send(post("/v1/chat/completions", "", body)).answer();
        assert!(answer.status == 404 || answer.status == 400, "{name}");
        answer.json();
    }
}
