//! SPEC §9, RFC 9110 §7.8: an upgraded connection is a pipe for bytes, each way.

use super::house::{LIMIT, house};
use super::wire::{Client, chat, get, noise};

const UPGRADE: &str = "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13\r\n";

fn upgrade(client: &mut Client, behind: &str) {
    let answer = client.send(format!("{UPGRADE}\r\n{behind}")).answer();
    assert_eq!(answer.status, 101);
    assert_eq!(answer.field("upgrade"), Some("websocket"));
    assert_eq!(answer.field("connection").map(str::to_lowercase).as_deref(), Some("upgrade"));
}

fn expect(client: &mut Client, bytes: &[u8]) {
    let mut got = Vec::new();
    while got.len() < bytes.len() {
        let some = client.some();
        assert!(!some.is_empty(), "ended after {} of {}", got.len(), bytes.len());
        got.extend(some);
    }
    assert!(got == bytes);
}

#[test]
fn passes_bytes_both_ways_and_what_came_with_the_head() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    upgrade(&mut client, "early");
    expect(&mut client, b"early");
    for n in 0..50 {
        let frame = noise(n, 1 + 997 * n as usize);
        client.send(&frame);
        expect(&mut client, &frame);
    }
    let seen = mock.seen();
    assert_eq!(seen[0].field("upgrade").as_deref(), Some("websocket"));
    assert_eq!(seen[0].field("sec-websocket-key").as_deref(), Some("abc"));
    assert!(seen[0].field("connection").unwrap().eq_ignore_ascii_case("upgrade"));
}

#[test]
fn passes_a_megabyte_through_a_tunnel() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    upgrade(&mut client, "");
    let bytes = noise(3, 1_000_000);
    let mut writer = client.stream();
    std::thread::scope(|scope| {
        scope.spawn(|| std::io::Write::write_all(&mut writer, &bytes).expect("taken"));
        expect(&mut client, &bytes);
    });
}

#[test]
fn ends_one_direction_and_leaves_the_other() {
    // The upstream closes only when it has read the client's end.
    let (mock, proxy) = house();
    let mut client = proxy.client();
    upgrade(&mut client, "");
    client.send("last words").end();
    expect(&mut client, b"last words");
    client.expect_end();
    proxy.wait_until_empty();
    mock.wait_until(LIMIT, |stats| stats.connections_open == 0).expect("closed");
}

#[test]
fn a_client_that_leaves_ends_the_tunnel() {
    let (mock, proxy) = house();
    for reset in [false, true] {
        let mut client = proxy.client();
        upgrade(&mut client, "");
        client.send("x");
        expect(&mut client, b"x");
        if reset {
            client.reset();
        } else {
            drop(client);
        }
        mock.wait_until(LIMIT, |stats| stats.connections_open == 0).expect("closed");
    }
    proxy.wait_until_empty();
}

#[test]
fn an_upgrade_to_something_else_is_not_passed_on() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(get("/echo", "Connection: Upgrade\r\nUpgrade: h2c\r\n")).answer();
    assert_eq!(answer.status, 200);
    assert_eq!(mock.seen()[0].field("upgrade"), None);
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}

#[test]
fn an_upgrade_with_a_body_is_no_tunnel() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(format!("{UPGRADE}Content-Length: 2\r\n\r\nab"));
    assert_ne!(client.answer().status, 101);
    assert_eq!(mock.seen()[0].field("upgrade"), None);
}
