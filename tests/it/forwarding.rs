//! rules §2 `[[upstream]]`, §9: the head as it reaches the upstream, and as it comes back.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};

use super::h2::House;
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
    let fields = format!(
        "{fields}X-Forwarded-Host: h\r\nX-Forwarded-Port: 1\r\nX-FORWARDED-User: u\r\n\
         Forwarded: for=10.0.0.1\r\nX-Stays: 1\r\n"
    );
    for fields in ["", &fields] {
        let silent = seen(off, get("/echo", fields));
        let head = String::from_utf8_lossy(&silent.head).to_lowercase();
        assert!(!head.contains("forwarded") && !head.contains("x-real-ip"), "{head}");
        assert_eq!(silent.fields("x-stays").len(), usize::from(!fields.is_empty()));
    }
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

#[test]
fn what_looks_like_a_field_of_ours_is_refused() {
    let (mock, proxy) = house();
    for name in [
        "Content_Length",
        "Transfer_Encoding",
        "transfer.encoding",
        "Keep_Alive",
        "Proxy_Connection",
        "Content_Type",
        "Content_Encoding",
        "X_Api_Key",
        "X-Goog_Api-Key",
        "Proxy_Authorization",
        "X_Forwarded_For",
        "x-forwarded_proto",
        "X_Real-IP",
    ] {
        let answer = proxy.client().send(post("/echo", &format!("{name}: 1\r\n"), "a")).answer();
        assert_eq!(answer.status, 400, "{name}");
    }
    assert_eq!(mock.stats().requests_total, 0);
    let answer = proxy.client().send(post("/echo", "X_Own: 1\r\nUser_Agent: a\r\n", "a")).answer();
    assert_eq!(answer.status, 200);
    assert_eq!(mock.seen()[0].field("x_own").as_deref(), Some("1"));
}

#[test]
fn a_field_that_the_operator_writes_is_not_the_clients() {
    let upstream = "auth = { type = \"header\", name = \"api-key\", value = \"ours\" }\nheaders = [\
        { op = \"replace\", key = \"x-tenant-id\", value = \"ours\" },\
        { op = \"remove\", key = \"authorization\" }]";
    let fields = "API-Key: theirs\r\napi_key: theirs\r\nX_Tenant-Id: theirs\r\n\
        Authorization: theirs\r\n";
    let seen = seen(Setup { upstream, ..Setup::default() }, get("/echo", fields));
    let head = String::from_utf8_lossy(&seen.head).into_owned();
    assert!(!head.contains("theirs"), "{head}");
    assert_eq!(seen.fields("api-key"), ["ours"]);
    assert_eq!(seen.fields("x-tenant-id"), ["ours"]);
}

#[test]
fn lengths_and_chunks_go_on_as_a_strict_parser_takes_them() {
    let (mock, proxy) = house();
    for length in ["03", "+3", "3, 03", "00003", "0x3"] {
        let request =
            format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nabc");
        assert_eq!(proxy.client().send(request).answer().status, 400, "{length}");
    }
    for extension in [";", ";a=", ";=b", ";a=\"b", " ;a", "; a", ";a=\"b\"c", ";a;", ";a b"] {
        let chunk = format!("3{extension}\r\nabc\r\n0\r\n\r\n");
        let head = "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
        let answer = proxy.client().send(format!("{head}{chunk}")).answer();
        assert_eq!(answer.status, 400, "{extension}");
    }
    assert!(mock.seen().iter().all(|seen| !seen.body_complete));
    mock.forget_seen();
    for length in ["3, 3", "3,3\r\nContent-Length: 3"] {
        let request =
            format!("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\nabc");
        assert_eq!(proxy.client().send(request).answer().text(), "abc", "{length}");
    }
    assert!(mock.seen().iter().all(|seen| seen.fields("content-length") == ["3"]));
}

/// A server that answers every request with these bytes and closes.
fn raw_server(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            while !seen.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                seen.push(byte[0]);
            }
            let _ = stream.write_all(answer);
        }
    });
    url
}

#[test]
fn an_answer_goes_on_as_a_strict_parser_takes_it() {
    let ask = |answer: &'static [u8]| {
        let proxy = Setup::default().start_on(&[raw_server(answer)]);
        proxy.client().send(get("/echo", "")).answer()
    };
    let answer = ask(b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nTransfer_Encoding: chunked\r\n\
        Content_Length: 9\r\nX_Own: 1\r\nX-Stays: 1\r\n\r\nab");
    assert_eq!((answer.status, answer.text().as_str()), (200, "ab"));
    assert_eq!(answer.fields("content-length"), ["2"]);
    for (name, count) in
        [("transfer_encoding", 0), ("content_length", 0), ("x_own", 1), ("x-stays", 1)]
    {
        assert_eq!(answer.fields(name).len(), count, "{name}");
    }
    assert_eq!(ask(b"HTTP/1.1 200 OK\r\nContent-Length: 02\r\n\r\nab").status, 502);
    let proxy = Setup::default().start_on(&[raw_server(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=\"\r\nab\r\n0\r\n\r\n",
    )]);
    let mut client = proxy.client();
    client.send(get("/echo", ""));
    assert!(client.try_answer().map_or(true, |answer| answer.status == 502));
}

#[test]
fn a_stream_of_http2_has_the_same_rules() {
    let house = House::plain(Setup::default());
    let client = house.client();
    for name in ["content_length", "x_forwarded_for", "x_api-key"] {
        // Malformed, as the name itself would be. No body: the stream may be gone before it.
        assert!(client.get("/echo", &[(name, "1")]).try_answer().is_err(), "{name}");
    }
    assert_eq!(client.get("/echo/../../b", &[]).answer().status, 400);
    assert_eq!(client.post("/x/../%65cho", &[], "a").answer().status, 200);
    assert_eq!(house.mock.seen()[0].request_line(), "POST /echo HTTP/1.1");
}
