//! rules §9, RFC 9110 §7.8: an upgraded connection is a pipe for bytes, each way.

use std::io::Write;
use std::time::{Duration, Instant};

use super::house::{LIMIT, Proxy, Setup, house};
use super::scripted::{Conn, Scripted};
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

#[test]
fn an_upgrade_that_says_its_body_is_empty_is_a_tunnel() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    let head = UPGRADE.replace("Upgrade: websocket", "Upgrade: websocket\r\nContent-Length: 0");
    assert_eq!(client.send(format!("{head}\r\nearly")).answer().status, 101);
    expect(&mut client, b"early");
}

const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\n\r\n";

/// A server of tunnels that does what `script` says in each, and a proxy with these timeouts.
fn tunnels(
    idle: &str,
    write_idle: &str,
    script: impl Fn(&mut Conn) + Send + Sync + 'static,
) -> (Scripted, Proxy) {
    let server = Scripted::start(move |conn| {
        conn.head();
        conn.say(SWITCH);
        script(conn);
    });
    let setup = Setup {
        listener: &format!("timeouts = {{ client_write_idle = \"{write_idle}\" }}"),
        group: &format!("timeouts = {{ stream_idle = \"{idle}\" }}"),
        ..Setup::default()
    };
    let proxy = setup.start_on(&[server.url()]);
    (server, proxy)
}

/// How long it takes until the proxy has ended the tunnel, on both sides.
fn until_ended(proxy: &Proxy, server: &Scripted) -> Duration {
    let begun = Instant::now();
    proxy.wait_until_empty();
    super::house::wait_until("the server is let go", || server.open() == 0);
    begun.elapsed()
}

#[test]
fn a_tunnel_that_is_silent_both_ways_is_ended() {
    let (server, proxy) = tunnels("400ms", "60s", Conn::drain);
    let mut client = proxy.client();
    upgrade(&mut client, "");
    client.send("x");
    let took = until_ended(&proxy, &server);
    assert!(took >= Duration::from_millis(350) && took < Duration::from_secs(5), "{took:?}");
    assert!(client.is_over());
}

#[test]
fn a_tunnel_in_which_one_side_speaks_is_not_silent() {
    let pause = Duration::from_millis(100);
    let (_server, proxy) = tunnels("400ms", "60s", move |conn| {
        conn.more();
        for _ in 0..12 {
            std::thread::sleep(pause);
            conn.say("x");
        }
        while conn.input().len() < 14 && conn.more() {}
        conn.say("y");
        conn.drain();
    });
    let mut client = proxy.client();
    upgrade(&mut client, "");
    client.send("a");
    expect(&mut client, b"xxxxxxxxxxxx");
    for _ in 0..13 {
        std::thread::sleep(pause);
        client.send("b");
    }
    expect(&mut client, b"y");
}

#[test]
fn who_does_not_follow_when_the_other_has_ended_is_cut() {
    let (pause, pause_max) = (Duration::from_millis(50), Duration::from_secs(1));
    for chatty in [false, true] {
        // The client ends, and the server stays.
        let (server, proxy) = tunnels("60s", "500ms", move |conn| {
            while chatty && conn.try_say("x") {
                std::thread::sleep(pause);
            }
            conn.drain();
            std::thread::sleep(4 * pause_max);
        });
        let mut client = proxy.client();
        upgrade(&mut client, "");
        let begun = Instant::now();
        client.end();
        proxy.wait_until_empty();
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(450) && took < 3 * pause_max, "{took:?}");
        drop(server);

        // The server ends, and the client stays.
        let (server, proxy) = tunnels("60s", "500ms", |conn| {
            conn.end();
            conn.drain();
        });
        let mut client = proxy.client();
        upgrade(&mut client, "");
        client.expect_end();
        let begun = Instant::now();
        while chatty && client.try_send(b"x").is_ok() {
            assert!(begun.elapsed() < Duration::from_secs(5));
            std::thread::sleep(pause);
        }
        let took = until_ended(&proxy, &server) + begun.elapsed();
        assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(10), "{took:?}");
    }
}

#[test]
fn a_client_that_takes_nothing_is_cut_out_of_its_tunnel() {
    let (server, proxy) = tunnels("60s", "500ms", |conn| while conn.try_say(noise(1, 100_000)) {});
    let mut client = proxy.client();
    upgrade(&mut client, "");
    until_ended(&proxy, &server);
    drop(client);
}

#[test]
fn a_server_that_takes_nothing_is_cut_even_if_it_speaks() {
    let (server, proxy) = tunnels("500ms", "60s", |conn| {
        while conn.try_say("x") {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let mut client = proxy.client();
    upgrade(&mut client, "");
    let mut writer = client.stream();
    std::thread::scope(|scope| {
        scope.spawn(|| while writer.write_all(&noise(1, 100_000)).is_ok() {});
        while !client.some().is_empty() {}
        drop(client);
    });
    drop(writer);
    until_ended(&proxy, &server);
}
