//! rules §9: the answer is read while the request is still being sent.

use std::io::Write;

use super::house::{LIMIT, house};
use super::wire::{chat, noise, post};

#[test]
fn an_early_413_reaches_the_client_whole() {
    let (mock, proxy) = house();
    // The upstream answers behind the head and never reads the rest, of 10 MB.
    let request = post("/echo", "x-mock: early=413\r\n", noise(1, 10_000_000));
    for turn in 0..5 {
        let mut client = proxy.client();
        let mut writer = client.stream();
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| {
                // It may be cut off once the answer is there.
                let _ = writer.write_all(&request);
            });
            client.answer()
        });
        assert_eq!(answer.status, 413, "turn {turn}");
        assert_eq!(answer.message(), "answered before the end of the request");
    }
    proxy.wait_until_empty();
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("over");
}

#[test]
fn an_early_401_to_a_chunked_body_reaches_the_client_whole() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(
        "POST /echo?mock=early=401 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n",
    );
    // Not another byte is sent: the answer must not wait for it.
    let answer = client.answer();
    assert_eq!((answer.status, answer.field("connection")), (401, Some("close")));
    assert!(client.is_over());
}

#[test]
fn an_early_answer_to_a_held_body_keeps_the_connection() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    for _ in 0..3 {
        let answer = client.send(chat("x-mock: early=413\r\n", false)).answer();
        assert_eq!(answer.status, 413);
    }
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}

#[test]
fn request_and_answer_flow_at_the_same_time() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send("POST /echo?mock=duplex HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    client.send("3\r\none\r\n");
    // Each piece comes back before the next one is sent.
    client.through(b"\r\n\r\n3\r\none\r\n").expect("the first piece");
    for n in 0..20 {
        let piece = format!("piece {n:02}");
        client.send(format!("8\r\n{piece}\r\n"));
        client.through(format!("8\r\n{piece}\r\n").as_bytes()).expect(&piece);
    }
    assert_eq!(mock.stats().in_flight, 1);
    client.send("0\r\n\r\n");
    client.through(b"0\r\n\r\n").expect("the end");
    // The answer began before the request had ended, so it had to say close.
    client.expect_end();
}

#[test]
fn a_large_body_and_a_large_answer_do_not_wait_for_each_other() {
    let (_mock, proxy) = house();
    let body = noise(6, 8_000_000);
    let request = post("/echo?mock=duplex", "", &body);
    let mut client = proxy.client();
    let mut writer = client.stream();
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&request).expect("taken"));
        client.answer()
    });
    assert!(answer.body == body);
}

#[test]
fn an_upstream_that_dies_while_the_body_is_sent_is_a_502() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send("POST /echo?mock=reset HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n12345");
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("begun");
    client.send("67890");
    assert_eq!(client.answer().status, 502);
}
