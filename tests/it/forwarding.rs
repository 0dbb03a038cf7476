//! SPEC §2 `[[upstream]]`, §9: the head as it reaches the upstream, and as it comes back.

use super::house::{Setup, house, mock};
use super::wire::{chat, get, post};
use loadtest::mock::SeenRequest;

fn seen(setup: Setup<'_>, request: Vec<u8>) -> SeenRequest {
    let mock = mock();
    let proxy = setup.start(&[&mock]);
    // What counts is what was sent; the mock need not know the path.
    proxy.client().send(request).answer();
    mock.seen().remove(0)
}

#[test]
fn passes_fields_in_order_with_duplicates_and_case() {
    let fields = "X-One: 1\r\nuser-agent: own/1\r\nX-TWO:  two words \r\nx-one: again\r\n\
        accept: a\r\nCookie: c=1; d=\u{e9}\r\ntraceparent: 00-ab-cd-01\r\nEmpty:\r\n";
    let head = seen(Setup::default(), get("/echo", fields)).head;
    let head = String::from_utf8_lossy(&head).into_owned();
    let lines: Vec<&str> = head.split("\r\n").collect();
    let ours = ["Host", "X-Forwarded", "X-Real-IP", "X-Request-Id"];
    let passed: Vec<&str> = lines[1..]
        .iter()
        .copied()
        .filter(|line| !line.is_empty() && !ours.iter().any(|name| line.starts_with(name)))
        .collect();
    let sent: Vec<&str> = fields.split("\r\n").filter(|line| !line.is_empty()).collect();
    assert_eq!(passed, sent);
}

#[test]
fn removes_hop_by_hop_fields_and_those_that_connection_names() {
    let fields = "Connection: keep-alive, X-Secret ,x-other\r\nKeep-Alive: timeout=9\r\n\
        X-Secret: 1\r\nX-OTHER: 2\r\nProxy-Connection: keep-alive\r\nTE: trailers\r\n\
        Proxy-Authorization: Basic x\r\nUpgrade: h2c\r\nX-Stays: 3\r\n";
    let seen = seen(Setup::default(), get("/echo", fields));
    let gone =
        ["keep-alive", "x-secret", "x-other", "proxy-connection", "upgrade", "proxy-authorization"];
    for name in gone {
        assert_eq!(seen.field(name), None, "{name}");
    }
    assert_eq!(seen.field("x-stays").as_deref(), Some("3"));
    assert!(seen.field("connection").is_none_or(|value| !value.contains("X-Secret")));
}

#[test]
fn connection_cannot_name_away_what_delimits_or_authorises() {
    let mock = mock();
    let proxy =
        Setup { upstream: "auth = { type = \"bearer\", token = \"up\" }", ..Setup::default() }
            .start(&[&mock]);
    let mut client = proxy.client();
    client.send(post("/echo", "Connection: content-length, host, authorization\r\n", "abc"));
    assert_eq!(client.answer().text(), "abc");
    let seen = mock.seen();
    assert_eq!(seen[0].field("authorization").as_deref(), Some("Bearer up"));
    assert_eq!(seen[0].fields("host").len(), 1);
}

#[test]
fn removes_hop_by_hop_fields_from_answers() {
    let (_mock, proxy) = house();
    let answer = proxy.client().send(chat("", false)).answer();
    assert_eq!(answer.fields("connection"), [""; 0]);
    assert_eq!(answer.fields("keep-alive"), [""; 0]);
    assert_eq!(answer.field("x-mock-server"), Some("mock"));
}

#[test]
fn joins_base_path_and_client_path() {
    let base = |base, upstream| Setup { base, upstream, ..Setup::default() };
    let line = |setup, path: &str| seen(setup, get(path, "")).request_line();
    let echo = "/echo?a=1&b";
    assert_eq!(line(base("", ""), echo), "GET /echo?a=1&b HTTP/1.1");
    assert_eq!(line(base("/api/x/", ""), echo), "GET /api/x/echo?a=1&b HTTP/1.1");
    let fixed = "path_mode = \"fixed\"";
    assert_eq!(line(base("/only?this=1", fixed), echo), "GET /only?this=1 HTTP/1.1");
    let strip = "path_mode = \"strip_v1\"";
    assert_eq!(line(base("/openai", strip), echo), "GET /openai/echo?a=1&b HTTP/1.1");
    let body = post("/v1/chat/completions?x", "", r#"{"model":"m"}"#);
    let line = seen(base("/openai", strip), body).request_line();
    assert_eq!(line, "POST /openai/chat/completions?x HTTP/1.1");
    // A version at the end of the base is the one that clients send.
    for (base_path, path, expected) in [
        ("/v1", "/v1/chat/completions", "/v1/chat/completions"),
        ("/v1/", "/chat/completions", "/v1/chat/completions"),
        ("/openai/v1", "/v1/chat/completions?a=1", "/openai/v1/chat/completions?a=1"),
        ("/v1beta", "/v1beta/models/m:generateContent", "/v1beta/models/m:generateContent"),
        ("/v1", "/api/chat", "/api/chat"),
    ] {
        let line = seen(base(base_path, ""), post(path, "", r#"{"model":"m"}"#)).request_line();
        assert_eq!(line, format!("POST {expected} HTTP/1.1"), "{base_path} {path}");
    }
}

#[test]
fn sets_host_by_rule() {
    let host = |upstream| {
        let seen = seen(Setup { upstream, ..Setup::default() }, get("/echo", ""));
        assert_eq!(seen.fields("host").len(), 1);
        seen.field("host").unwrap()
    };
    assert!(host("").starts_with("127.0.0.1:"));
    assert_eq!(host("host = \"client\""), "proxy");
    assert_eq!(host("host = \"api.example\""), "api.example");
}

#[test]
fn edits_fields_as_told() {
    let upstream = "user_agent = \"tokenring-test\"\nheaders = [\
        { op = \"insert\", key = \"x-insert\", value = \"ours\" },\
        { op = \"insert\", key = \"x-there\", value = \"ours\" },\
        { op = \"replace\", key = \"x-replace\", value = \"ours\" },\
        { op = \"replace\", key = \"x-new\", value = \"ours\" },\
        { op = \"remove\", key = \"x-remove\" }]";
    let fields = "X-There: theirs\r\nX-Replace: a\r\nx-replace: b\r\nX-Remove: a\r\nx-remove: b\r\n\
        User-Agent: theirs\r\n";
    let seen = seen(Setup { upstream, ..Setup::default() }, get("/echo", fields));
    assert_eq!(seen.fields("x-insert"), ["ours"]);
    assert_eq!(seen.fields("x-there"), ["theirs"]);
    assert_eq!(seen.fields("x-replace"), ["ours"]);
    assert_eq!(seen.fields("x-new"), ["ours"]);
    assert_eq!(seen.fields("x-remove"), [""; 0]);
    assert_eq!(seen.fields("user-agent"), ["tokenring-test"]);
}

#[test]
fn tells_the_upstream_who_is_asking() {
    let fields = "X-Forwarded-For: 10.0.0.1\r\nX-Real-IP: 10.0.0.1\r\nX-Forwarded-Proto: https\r\n";
    let plain = seen(Setup::default(), get("/echo", ""));
    assert_eq!(plain.fields("x-forwarded-for"), ["127.0.0.1"]);
    assert_eq!(plain.fields("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(plain.fields("x-forwarded-proto"), ["http"]);
    assert_eq!(plain.fields("x-request-id").len(), 1);
    // A client that is not trusted cannot say who it is.
    let forged = seen(Setup::default(), get("/echo", fields));
    assert_eq!(forged.fields("x-real-ip"), ["127.0.0.1"]);
    assert_eq!(forged.fields("x-forwarded-proto"), ["http"]);
    assert!(forged.fields("x-forwarded-for")[0].ends_with("127.0.0.1"));
    assert_eq!(forged.fields("x-forwarded-for").len(), 1);
    let trusting = Setup { listener: "trusted_proxies = [\"127.0.0.0/8\"]", ..Setup::default() };
    let trusted = seen(trusting, get("/echo", fields));
    assert_eq!(trusted.fields("x-real-ip"), ["10.0.0.1"]);
    assert_eq!(trusted.fields("x-forwarded-proto"), ["https"]);
    assert_eq!(trusted.fields("x-forwarded-for"), ["10.0.0.1, 127.0.0.1"]);
    let off = Setup { listener: "forwarded = \"off\"", ..Setup::default() };
    let silent = seen(off, get("/echo", ""));
    assert_eq!(silent.fields("x-forwarded-for"), [""; 0]);
}

#[test]
fn turns_an_absolute_target_into_a_path() {
    let seen = seen(
        Setup { upstream: "host = \"client\"", ..Setup::default() },
        b"GET http://real.example/echo?q HTTP/1.1\r\nHost: real.example\r\n\r\n".to_vec(),
    );
    assert_eq!(seen.request_line(), "GET /echo?q HTTP/1.1");
    assert_eq!(seen.field("host").as_deref(), Some("real.example"));
}
