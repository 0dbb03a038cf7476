//! RFC 9112 §6.3 and §11.2: what two servers could read in two ways is refused, on both sides.

use super::house::{Setup, house, mock};
use super::scripted::Scripted;
use super::wire::{chat, get};

/// Heads and bodies of which the next message cannot be found for certain.
const SMUGGLING: &[(&str, u16)] = &[
    // Lengths and chunks together, or lengths that differ.
    (
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4, 5\r\n\r\nabcde", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: +4\r\n\r\nabcd", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 0x4\r\n\r\nabcd", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: -4\r\n\r\nabcd", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nabcd", 400),
    // Codings that hide the chunks.
    ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
    (
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        400,
    ),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    ("POST /echo HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    // Field lines.
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length : 4\r\n\r\nabcd", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length\t: 4\r\n\r\nabcd", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nX: a\r\n Content-Length: 4\r\n\r\nabcd", 400),
    ("POST /echo HTTP/1.1\r\n Host: a\r\n\r\n", 400),
    ("GET /echo HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
    ("GET /echo HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    ("GET /echo HTTP/1.1\nHost: a\n\n", 400),
    ("GET /echo HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
    ("GET /echo HTTP/1.1\r\nHost: a\r\nX y: b\r\n\r\n", 400),
    ("GET /echo HTTP/1.1\r\nHost: a\r\nno colon\r\n\r\n", 400),
    ("GET /echo HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
    // Hosts.
    ("GET /echo HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    ("GET /echo HTTP/1.1\r\n\r\n", 400),
    // Request lines.
    ("GET  /echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /echo\r\nHost: a\r\n\r\n", 400),
    ("GET /echo HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
    ("G(T /echo HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /ec\x7fho HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    ("GET /echo HTTP/2.0\r\nHost: a\r\n\r\n", 505),
    ("\x16\x03\x01\x02\0\x01\0\x01\r\n\r\n", 400),
    // Chunks.
    (
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\na\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x1\r\na\r\n0\r\n\r\n",
        400,
    ),
    (
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
        400,
    ),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\na\n0\n\n", 400),
    ("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n", 400),
    (
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
        400,
    ),
];

#[test]
fn refuses_every_smuggling_vector_and_closes() {
    let (mock, proxy) = house();
    for (wire, status) in SMUGGLING {
        let mut client = proxy.client();
        // What is smuggled behind must never be answered.
        client.send([wire.as_bytes(), &get("/health", "")].concat());
        let answer = client.answer();
        assert_eq!(answer.status, *status, "{wire:?}");
        let said = answer.field("connection");
        assert!(said == Some("close") || wire.contains("HTTP/1.0"), "{wire:?}: {said:?}");
        assert!(client.is_over(), "{wire:?}");
    }
    proxy.wait_until_empty();
    let whole = mock.seen().iter().filter(|request| request.body_complete).count();
    assert_eq!(whole, 0, "a refused request never looks complete upstream");
}

#[test]
fn accepts_what_is_strange_and_clear() {
    let (_mock, proxy) = house();
    for wire in [
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n2;x=y\r\nab\r\n0\r\nt: v\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0002\r\nab\r\n000\r\n\r\n",
        "\r\nPOST /echo HTTP/1.1\r\nhOST:a\r\ncontent-length:2\r\n\r\nab",
        "\r\n\r\n\r\nPOST /echo HTTP/1.1\r\nhOST:a\r\ncontent-length:2\r\n\r\nab",
        "POST http://a/echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    ] {
        let mut client = proxy.client();
        assert_eq!(client.send(wire).answer().text(), "ab", "{wire:?}");
    }
}

#[test]
fn answers_502_to_an_upstream_that_speaks_bad_http() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for how in ["garbage", "both_lengths", "interim=101"] {
        let answer = client.send(chat(&format!("x-mock: {how}\r\n"), false)).answer();
        assert_eq!(answer.status, 502, "{how}: {}", answer.text());
        assert_eq!(answer.json()["error"]["type"], "api_error");
    }
    // The client did nothing wrong: its connection goes on.
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}

#[test]
fn cuts_an_answer_whose_chunks_break() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(get("/echo?mock=bad_chunk,big=1000", ""));
    let broken = client.try_answer().expect_err("must not look complete");
    assert!(broken.body.len() <= 1000);
    assert!(client.is_over());
}

#[test]
fn does_not_use_a_connection_again_that_spoke_badly() {
    let mock = mock();
    let proxy = Setup::default().start(&[&mock]);
    let mut client = proxy.client();
    for _ in 0..5 {
        client.send(chat("x-mock: both_lengths\r\n", false));
        assert_eq!(client.answer().status, 502);
    }
    assert_eq!(mock.stats().connections_total, 5);
}

#[test]
fn takes_a_response_head_that_is_larger_than_a_buffer() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for bytes in [3_000, 20_000, 60_000] {
        let answer = client.send(chat(&format!("x-mock: head_bytes={bytes}\r\n"), false)).answer();
        assert_eq!(answer.status, 200);
        assert!(answer.head.len() >= bytes, "{} of {bytes}", answer.head.len());
    }
    let answer = client.send(chat("x-mock: head_bytes=400000\r\n", false)).answer();
    assert_eq!(answer.status, 502);
}

#[test]
fn sends_a_repeated_length_once() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 2, 2\r\n\r\nab");
    assert_eq!(client.answer().text(), "ab");
    assert_eq!(mock.seen()[0].fields("content-length").len(), 1);
}

const INNER: &str = "GET /healthz HTTP/1.1\r\nHost: inner\r\n\r\n";

/// A request inside the body of a refused one must never be answered.
#[test]
fn never_reads_the_body_of_a_refused_request_as_the_next_one() {
    let mock = mock();
    let proxy = Setup {
        listener: "auth = \"keys\"",
        rest: "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n",
        ..Setup::default()
    }
    .start(&[&mock]);
    for (head, status) in [
        ("POST /v1/chat/completions", 401),
        ("POST /v1/chat/completions?key=sk-a", 400),
        ("POST /nowhere?key=sk-a", 404),
        ("GET /health", 200),
        ("GET /v1/models?key=sk-a", 200),
    ] {
        let head = format!("{head} HTTP/1.1\r\nHost: outer\r\n");
        let whole = format!("{head}Content-Length: {}\r\n\r\n{INNER}", INNER.len());
        let chunks = format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{INNER}\r\n0\r\n\r\n",
            INNER.len()
        );
        for wire in [whole, chunks] {
            // The body in the same packet; and after the answer, where the head alone decides.
            for split in [false, true] {
                if split && matches!(status, 400 | 404) {
                    continue;
                }
                let mut client = proxy.client();
                let (first, second) = wire.split_once("\r\n\r\n").unwrap();
                client.send(if split { format!("{first}\r\n\r\n") } else { wire.clone() });
                assert_eq!(client.answer().status, status, "{wire}");
                if split {
                    let _ = client.try_send(second.as_bytes());
                }
                let _ = client.try_send(&get("/nowhere", "x-last: 1\r\nConnection: close\r\n"));
                let rest = client.rest().unwrap_or_default();
                let rest = String::from_utf8_lossy(&rest);
                assert!(!rest.contains("{\"ok\":true}"), "{wire} split: {split}\n{rest}");
            }
        }
    }
    assert_eq!(mock.stats().requests_total, 0);
}

/// RFC 9110 §6.5.1: what a client could merge into the head is left out, and the answer is whole.
#[test]
fn a_trailer_that_is_not_allowed_is_dropped_and_no_cut() {
    const LINES: &str = "Content-Length: 5\r\nX-A: 1\r\nTransfer-Encoding: gzip\r\nx-b: 2\r\n\
        Authorization: k\r\nTrailer: x\r\n";
    for (bytewise, sse) in [(false, false), (true, false), (false, true), (true, true)] {
        let server = Scripted::start(move |conn| {
            while conn.head().is_some() {
                let kind = if sse { "Content-Type: text/event-stream\r\n" } else { "" };
                let head = format!("HTTP/1.1 200 OK\r\n{kind}Transfer-Encoding: chunked\r\n\r\n");
                let body = format!("2\r\nok\r\n0\r\n{LINES}\r\n");
                if !bytewise {
                    conn.say(head + &body);
                    continue;
                }
                conn.say(head);
                for byte in body.bytes() {
                    conn.say([byte]);
                    std::thread::sleep(std::time::Duration::from_micros(200));
                }
            }
        });
        let proxy = Setup::default().start_on(&[server.url()]);
        let mut client = proxy.client();
        for _ in 0..3 {
            let answer = client.send(get("/echo", "")).answer();
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
            assert_eq!(answer.trailers, "X-A: 1\r\nx-b: 2\r\n", "{bytewise} {sse}");
        }
        assert_eq!(server.accepted(), 1, "it can be used again");
    }
}

/// RFC 9110 §8.6.
#[test]
fn what_has_no_body_has_no_length_either() {
    let server = Scripted::start(|conn| {
        while conn.head().is_some() {
            conn.say("HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\nLink: </a>\r\n\r\n");
            conn.say("HTTP/1.1 204 No Content\r\nContent-Length: 0\r\nX: y\r\n\r\n");
        }
    });
    let proxy = Setup::default().start_on(&[server.url()]);
    let mut client = proxy.client();
    for _ in 0..2 {
        client.send(get("/echo", ""));
        for (status, kept) in [(103, "link"), (204, "x")] {
            let head = String::from_utf8(client.through(b"\r\n\r\n").unwrap()).unwrap();
            let head = head.to_lowercase();
            assert!(head.starts_with(&format!("http/1.1 {status}")), "{head}");
            assert!(!head.contains("content-length") && head.contains(&format!("\r\n{kept}:")));
        }
    }
}
