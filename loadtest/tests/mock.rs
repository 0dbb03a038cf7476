//! The simulated server as a client sees it: bytes in, bytes out.
//!
//! Plain blocking sockets and a reader of a few lines, on purpose: what is under
//! test here must not be read with the code that the generator reads with.
#![cfg(feature = "mock")]
// In a test a panic is the report; clippy sees that for #[test] functions only.
#![allow(clippy::unwrap_used)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use loadtest::mock::{KeepAlive, Mock, MockConfig};

const LIMIT: Duration = Duration::from_secs(5);

fn mock() -> Mock {
    start(MockConfig::default())
}

fn start(config: MockConfig) -> Mock {
    Mock::start(config).expect("port 0 is free")
}

fn connect(mock: &Mock) -> TcpStream {
    let stream = TcpStream::connect(mock.addr()).expect("the mock listens");
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn post(path: &str, fields: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: m\r\n{fields}content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn chat(fields: &str, stream: bool) -> String {
    let body = format!("{{\"messages\":[],\"model\":\"m\",\"stream\":{stream},\"seed\":7}}");
    post("/v1/chat/completions", fields, &body)
}

/// Sends, then reads to the end of the connection.
fn all(mock: &Mock, request: &str) -> Result<String, ErrorKind> {
    let mut stream = connect(mock);
    stream.write_all(request.as_bytes()).unwrap();
    rest(&mut stream)
}

fn rest(stream: &mut TcpStream) -> Result<String, ErrorKind> {
    let mut got = Vec::new();
    stream.read_to_end(&mut got).map_err(|error| error.kind())?;
    Ok(String::from_utf8_lossy(&got).into_owned())
}

/// Reads until what came contains `mark`.
fn until(stream: &mut TcpStream, mark: &str) -> String {
    let (mut got, mut byte) = (Vec::new(), [0u8]);
    while !String::from_utf8_lossy(&got).contains(mark) {
        assert_eq!(stream.read(&mut byte).expect("in time"), 1, "{mark:?} not in {got:?}");
        got.extend_from_slice(&byte);
    }
    String::from_utf8_lossy(&got).into_owned()
}

/// Reads one answer whose length the head tells.
fn one(stream: &mut TcpStream) -> (String, String) {
    let head = until(stream, "\r\n\r\n");
    let length = head.split("content-length: ").nth(1).expect(&head);
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8_lossy(&body).into_owned())
}

#[test]
fn streams_events_in_chunks_and_ends_them() {
    let mock = mock();
    let got = all(&mock, &chat("connection: close\r\n", true)).unwrap();
    assert!(got.starts_with("HTTP/1.1 200 OK\r\n"), "{got}");
    assert!(got.contains("transfer-encoding: chunked\r\n"));
    assert!(got.ends_with("e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"), "{got}");
    // The role, 16 tokens, the finish and the mark of the end.
    assert_eq!(got.matches("\r\ndata: ").count(), 19);
    assert_eq!(mock.stats().events_total, 19);
}

#[test]
fn plain_answers_carry_the_seeded_text_and_usage() {
    let mock = mock();
    let mut stream = connect(&mock);
    for _ in 0..2 {
        stream.write_all(chat("", false).as_bytes()).unwrap();
        let (head, body) = one(&mut stream);
        assert!(head.contains("x-mock-seed: 7\r\n"), "{head}");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(body["choices"][0]["message"]["content"], loadtest::text::text(7, 16));
        assert_eq!(body["usage"]["completion_tokens"], 16);
    }
    assert_eq!(mock.stats().connections_total, 1);
}

#[test]
fn answers_pipelined_requests_in_order() {
    let mock = mock();
    let requests = post("/echo", "", "one") + &post("/echo", "", "two") + &chat("", false);
    let mut stream = connect(&mock);
    stream.write_all(requests.as_bytes()).unwrap();
    assert_eq!(one(&mut stream).1, "one");
    assert_eq!(one(&mut stream).1, "two");
    assert!(one(&mut stream).1.contains("chat.completion"));
}

#[test]
fn takes_chunked_bodies_and_remembers_what_it_saw() {
    let mock = mock();
    let mut stream = connect(&mock);
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nHost: m\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nt: u\r\n\r\n")
        .unwrap();
    assert_eq!(one(&mut stream).1, "abc");
    let seen = mock.seen();
    let [request] = &seen[..] else { panic!("{} requests", seen.len()) };
    assert_eq!(request.request_line(), "POST /echo HTTP/1.1");
    assert_eq!(request.field("x-a").as_deref(), Some("b"));
    assert_eq!((&request.body[..], request.body_bytes), (&b"abc"[..], 3));
    assert_eq!(request.body_sha256[..4], [0xba, 0x78, 0x16, 0xbf]);
    assert_eq!(&request.trailers[..], b"t: u\r\n");
    assert!(request.body_complete && request.chunked);
}

#[test]
fn lists_models_and_counts() {
    let mock = mock();
    let mut stream = connect(&mock);
    for (path, want) in [
        ("/v1/models", "\"id\":\"mock-model\""),
        ("/api/tags", "\"name\":\"mock-model\""),
        ("/health", "ok"),
        ("/mock/stats", "\"requests_total\":4,\"in_flight\":0"),
    ] {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: m\r\n\r\n").as_bytes()).unwrap();
        let (_, body) = one(&mut stream);
        assert!(body.contains(want), "{body}");
    }
    stream
        .write_all(b"HEAD /health HTTP/1.1\r\nhost: m\r\n\r\nGET /none HTTP/1.1\r\n\r\n")
        .unwrap();
    let head = until(&mut stream, "\r\n\r\n");
    assert!(head.contains("200 OK") && head.contains("content-length: 15"), "{head}");
    assert!(one(&mut stream).0.contains("404 Not Found"));
}

#[test]
fn speaks_every_dialect() {
    let mock = mock();
    for (path, body, marks) in [
        ("/v1/completions", "{\"model\":\"m\"}", &["text_completion"][..]),
        ("/v1/embeddings", "{\"model\":\"m\",\"input\":[\"a\",\"b\"]}", &["\"index\":1"]),
        ("/v1/messages", "{\"model\":\"m\"}", &["end_turn"]),
        ("/v1/messages", "{\"model\":\"m\",\"stream\":true}", &["message_start", "message_stop"]),
        ("/v1/responses", "{\"model\":\"m\"}", &["output_text"]),
        ("/v1/responses", "{\"model\":\"m\",\"stream\":true}", &["event: response.completed"]),
        ("/api/chat", "{\"model\":\"m\"}", &["x-ndjson", "\"done\":false", "\"done\":true"]),
        ("/api/chat", "{\"model\":\"m\",\"stream\":false}", &["application/json", "\"done\":true"]),
        ("/v1beta/models/g:generateContent", "{}", &["\"modelVersion\":\"g\""]),
        ("/v1beta/models/g:streamGenerateContent?alt=sse", "{}", &["text/event-stream", "STOP"]),
    ] {
        let got = all(&mock, &post(path, "connection: close\r\n", body)).unwrap();
        assert!(got.starts_with("HTTP/1.1 200 OK"), "{got}");
        for mark in marks {
            assert!(got.contains(mark), "{path}: no {mark} in {got}");
        }
    }
}

#[test]
fn wants_the_key_by_any_carrier() {
    let mock = start(MockConfig { api_key: Some("k".to_owned()), ..MockConfig::default() });
    for (fields, status) in [
        ("", "401"),
        ("authorization: Bearer x\r\n", "401"),
        ("authorization: Bearer k\r\n", "200"),
        ("x-api-key: k\r\n", "200"),
        ("x-goog-api-key: k\r\n", "200"),
    ] {
        let mut stream = connect(&mock);
        stream.write_all(chat(fields, false).as_bytes()).unwrap();
        assert!(one(&mut stream).0.contains(status), "{fields}");
    }
}

#[test]
fn client_that_leaves_is_counted_at_once() {
    let mock = mock();
    for fault in ["stall", "stall_after=2", "delay=60s", "interval=60s", "first_token=60s"] {
        let before = mock.stats().aborted_total;
        let mut stream = connect(&mock);
        stream.write_all(chat(&format!("x-mock: {fault}\r\n"), true).as_bytes()).unwrap();
        mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect(fault);
        let left_at = Instant::now();
        drop(stream);
        let stats = mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect(fault);
        assert_eq!(stats.aborted_total, before + 1, "{fault}");
        let took = stats.last_abort_at.expect("just now").saturating_duration_since(left_at);
        assert!(took < Duration::from_secs(1), "{fault}: {took:?}");
    }
}

#[test]
fn client_that_leaves_in_its_body_is_counted() {
    let mock = mock();
    let mut stream = connect(&mock);
    stream.write_all(b"POST /echo HTTP/1.1\r\ncontent-length: 9\r\n\r\nabc").unwrap();
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).unwrap();
    drop(stream);
    mock.wait_until(LIMIT, |stats| stats.aborted_total == 1 && stats.in_flight == 0).unwrap();
    assert!(!mock.seen()[0].body_complete);
}

#[test]
fn breaks_off_where_asked() {
    let mock = mock();
    let cut = all(&mock, &chat("x-mock: cut_after=2\r\n", true)).unwrap();
    assert_eq!(cut.matches("data: ").count(), 3, "two events and half of one: {cut}");
    assert!(!cut.ends_with("\r\n"), "{cut}");
    let cut = all(&mock, &chat("x-mock: cut_after=10\r\n", false)).unwrap();
    let (head, body) = cut.split_once("\r\n\r\n").unwrap();
    let length: usize = head
        .split("content-length: ")
        .nth(1)
        .unwrap()
        .split("\r\n")
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(body.len() >= 10 && body.len() < length, "{} of {length}", body.len());
    for fault in ["reset", "reset_after=3"] {
        let end = all(&mock, &chat(&format!("x-mock: {fault}\r\n"), true));
        assert_eq!(end.unwrap_err(), ErrorKind::ConnectionReset, "{fault}");
    }
    assert_eq!(all(&mock, &chat("x-mock: drop\r\n", true)).unwrap(), "");
    assert_eq!(mock.stats().aborted_total, 0, "the server left, not the client");
}

#[test]
fn misbehaves_on_the_wire_where_asked() {
    let mock = mock();
    for (fault, stream, marks) in [
        ("garbage", false, &["this is not HTTP"][..]),
        ("bad_chunk", true, &["\r\nxyz\r\n"]),
        ("both_lengths,close", false, &["content-length: ", "transfer-encoding: chunked"]),
        ("no_length", false, &["connection: close"]),
        ("no_length", true, &["[DONE]\n\n"]),
        ("http10", true, &["HTTP/1.0 200", "[DONE]\n\n"]),
        ("one_byte,close", true, &["[DONE]"]),
        ("trailers,close", true, &["trailer: x-mock", "0\r\nx-mock-trailer: yes\r\n"]),
        ("interim=103,close", false, &["HTTP/1.1 103 Early Hints\r\n", "HTTP/1.1 200 OK"]),
        ("status=429,retry_after=3,close", false, &["429 Too Many", "retry-after: 3\r\n"]),
        ("status=204,close", false, &["204 No Content"]),
        ("silent_close", false, &["connection: keep-alive\r\n"]),
        ("extra_bytes,close", false, &["stolen"]),
        ("size=300,close", false, &["content-length: 300\r\n"]),
        ("big=100000,close", false, &["content-length: 100000\r\n"]),
        ("chunked,close", false, &["transfer-encoding: chunked", "0\r\n\r\n"]),
        ("tokens=3,close", true, &["\"finish_reason\":\"stop\""]),
    ] {
        let got = all(&mock, &chat(&format!("x-mock: {fault}\r\n"), stream)).unwrap();
        for mark in marks {
            assert!(got.contains(mark), "{fault}: no {mark:?} in {got}");
        }
    }
    let got = all(&mock, &chat("x-mock: head_bytes=30000,close\r\n", false)).unwrap();
    let head = got.find("\r\n\r\n").unwrap() + 4;
    assert!((30_000..30_100).contains(&head), "{head}");
    let got = all(&mock, &chat("x-mock: stahl,close\r\n", false)).unwrap();
    assert!(got.contains("400") && got.contains("unknown key in"), "{got}");
}

#[test]
fn answers_early_and_does_not_read_on() {
    let mock = mock();
    let mut stream = connect(&mock);
    stream
        .write_all(
            b"POST /echo HTTP/1.1\r\nx-mock: early=413\r\ncontent-length: 99999999\r\n\r\nfirst",
        )
        .unwrap();
    let (head, _) = one(&mut stream);
    assert!(head.contains("413") && head.contains("connection: close"), "{head}");
    let seen = mock.seen();
    assert!(!seen[0].body_complete && seen[0].body_bytes < 6);
}

#[test]
fn continues_where_expected() {
    let mock = mock();
    let mut stream = connect(&mock);
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        .unwrap();
    assert_eq!(until(&mut stream, "\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"hi").unwrap();
    assert_eq!(one(&mut stream).1, "hi");
}

#[test]
fn gives_a_body_back_while_it_comes() {
    let mock = mock();
    let mut stream = connect(&mock);
    stream
        .write_all(b"POST /echo HTTP/1.1\r\nx-mock: duplex\r\ncontent-length: 4\r\n\r\nab")
        .unwrap();
    until(&mut stream, "\r\n\r\n2\r\nab\r\n");
    stream.write_all(b"cd").unwrap();
    until(&mut stream, "2\r\ncd\r\n0\r\n\r\n");
}

#[test]
fn tunnels_raw_bytes_after_an_upgrade() {
    let mock = mock();
    let mut stream = connect(&mock);
    stream
        .write_all(
            b"GET /ws HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n\x01early",
        )
        .unwrap();
    assert!(until(&mut stream, "\r\n\r\n").starts_with("HTTP/1.1 101 "));
    until(&mut stream, "early");
    stream.write_all(b"later\xff").unwrap();
    until(&mut stream, "later");
    stream.shutdown(Shutdown::Write).unwrap();
    rest(&mut stream).unwrap();
}

#[test]
fn llama_server_closes_streams_without_saying_so() {
    let mock = start(MockConfig { keep_alive: KeepAlive::LlamaServer, ..MockConfig::default() });
    let got = all(&mock, &chat("", true)).unwrap();
    assert!(
        got.contains("keep-alive: timeout=5, max=100\r\n") && !got.contains("connection: close")
    );
    let mut stream = connect(&mock);
    for _ in 0..100 {
        stream.write_all(chat("", false).as_bytes()).unwrap();
        assert!(one(&mut stream).0.contains("keep-alive: timeout=5"));
    }
    assert_eq!(rest(&mut stream).unwrap(), "", "closed after the hundredth");
}

#[test]
fn closes_idle_connections_when_told_to() {
    let keep_alive = KeepAlive::IdleClose(Duration::from_millis(20));
    let mock = start(MockConfig { keep_alive, ..MockConfig::default() });
    let mut stream = connect(&mock);
    stream.write_all(chat("", false).as_bytes()).unwrap();
    assert!(one(&mut stream).0.contains("connection: keep-alive"));
    assert_eq!(rest(&mut stream).unwrap(), "");
}

#[test]
fn http10_clients_get_no_chunks() {
    let mock = mock();
    let body = "{\"model\":\"m\",\"stream\":true}";
    let request = format!(
        "POST /v1/chat/completions HTTP/1.0\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let got = all(&mock, &request).unwrap();
    assert!(!got.contains("transfer-encoding") && got.ends_with("data: [DONE]\n\n"), "{got}");
}

#[test]
fn refuses_what_must_never_pass_a_proxy() {
    let mock = mock();
    for request in [
        "POST /echo HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "no request\r\n\r\n",
    ] {
        assert!(all(&mock, request).unwrap().starts_with("HTTP/1.1 400 "), "{request}");
    }
    assert_eq!(mock.stats().malformed_total, 3);
}

#[test]
fn listens_on_a_unix_socket_and_stops_when_dropped() {
    let path = std::env::temp_dir().join(format!("loadtest-mock-{}.sock", std::process::id()));
    let mock = start(MockConfig { unix: Some(path.clone()), ..MockConfig::default() });
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(b"GET /health HTTP/1.1\r\nconnection: close\r\n\r\n").unwrap();
    let mut got = String::new();
    stream.read_to_string(&mut got).unwrap();
    assert!(got.contains("{\"status\":\"ok\"}"));
    let mut open = connect(&mock);
    let addr = mock.addr();
    drop(mock);
    assert_eq!(rest(&mut open).unwrap_or_default(), "");
    assert!(!path.exists());
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn a_mood_is_every_requests_until_it_is_lifted() {
    let mock = mock();
    let mut kept = connect(&mock);
    let mut status = |fields: &str| {
        kept.write_all(chat(fields, false).as_bytes()).unwrap();
        one(&mut kept).0.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(status(""), "200");
    mock.behave("status=503,retry_after=4");
    assert_eq!(status(""), "503");
    // A request's own keys come on top, and do not outlive it.
    assert_eq!(status("x-mock: status=418\r\n"), "418");
    assert_eq!(status(""), "503");
    let other = all(&mock, "GET /v1/models HTTP/1.0\r\n\r\n").unwrap();
    assert!(other.starts_with("HTTP/1.1 503") && other.contains("retry-after: 4\r\n"), "{other}");
    let stats = all(&mock, "GET /mock/stats HTTP/1.0\r\n\r\n").unwrap();
    assert!(stats.starts_with("HTTP/1.1 200"), "{stats}");
    mock.behave("");
    assert_eq!(status(""), "200");
}

#[test]
fn a_mood_that_is_not_understood_changes_nothing() {
    let mock = mock();
    mock.behave("status=500");
    assert!(mock.try_behave("status=200,stahl").unwrap_err().contains("stahl"));
    let got = all(&mock, &chat("connection: close\r\n", false)).unwrap();
    assert!(got.starts_with("HTTP/1.1 500"), "{got}");
}

#[test]
fn a_server_that_hangs_recovers_for_the_next_request() {
    let mock = mock();
    mock.behave("delay=3600s");
    let mut hung = connect(&mock);
    hung.write_all(chat("", false).as_bytes()).unwrap();
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).unwrap();
    mock.behave("");
    let got = all(&mock, &chat("connection: close\r\n", false)).unwrap();
    assert!(got.starts_with("HTTP/1.1 200"), "{got}");
    // What hangs goes on hanging.
    mock.wait_until(LIMIT, |stats| (stats.in_flight, stats.requests_total) == (1, 2)).unwrap();
}
