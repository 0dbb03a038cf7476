//! rules §9 Pool: connections are used again, but never one that is stale, poisoned or spent.

use std::time::Duration;

use loadtest::mock::{KeepAlive, Mock};

use super::house::{LIMIT, Proxy, Setup, house, mock_with};
use super::wire::{chat, get};

fn llama() -> (Mock, Proxy) {
    let mock = mock_with(|config| config.keep_alive = KeepAlive::LlamaServer);
    let proxy = Setup::default().start(&[&mock]);
    (mock, proxy)
}

#[test]
fn uses_one_connection_for_requests_one_after_another() {
    let (mock, proxy) = house();
    for _ in 0..20 {
        // A client of its own each time: the pool is the core's, not the client's.
        assert_eq!(proxy.client().send(chat("", true)).answer().status, 200);
    }
    assert_eq!(mock.stats().connections_total, 1);
}

#[test]
fn loses_no_streamed_request_to_a_server_that_closes_silently() {
    let (_mock, proxy) = llama();
    let mut client = proxy.client();
    for turn in 0..200 {
        let answer = client.send(chat("", true)).answer();
        assert_eq!(answer.status, 200, "turn {turn}: {}", answer.text());
        assert!(answer.text().ends_with("data: [DONE]\n\n"));
    }
}

#[test]
fn loses_no_streamed_request_of_sixteen_at_a_time() {
    let (_mock, proxy) = llama();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            let mut client = proxy.client();
            scope.spawn(move || {
                for turn in 0..25 {
                    let answer = client.send(chat("", turn % 3 != 0)).answer();
                    assert_eq!(answer.status, 200, "turn {turn}: {}", answer.text());
                }
            });
        }
    });
}

#[test]
fn leaves_a_connection_one_request_before_its_announced_end() {
    // The mock closes without a word behind its 100th answer.
    let (mock, proxy) = llama();
    let mut client = proxy.client();
    for turn in 0..300 {
        assert_eq!(client.send(chat("", false)).answer().status, 200, "turn {turn}");
    }
    let mut served = std::collections::BTreeMap::<u64, u32>::new();
    for request in mock.seen() {
        *served.entry(request.connection).or_default() += 1;
    }
    assert!(served.values().all(|&count| count <= 99), "{served:?}");
    assert!(served.len() <= 4, "{served:?}");
}

#[test]
fn leaves_a_connection_a_second_before_its_announced_timeout() {
    let (mock, proxy) = llama();
    let mut client = proxy.client();
    assert_eq!(client.send(chat("", false)).answer().status, 200);
    // Five seconds were announced. Whoever closes, it is us, and before that.
    let stats = mock.wait_until(LIMIT, |stats| stats.connections_open == 0).expect("closed");
    let idle = mock.seen()[0].at.elapsed();
    assert!(idle < Duration::from_millis(4800), "closed after {idle:?}");
    assert_eq!(stats.connections_total, 1);
}

#[test]
fn replaces_a_connection_that_was_closed_while_idle() {
    let mock = mock_with(|c| c.keep_alive = KeepAlive::IdleClose(Duration::from_millis(20)));
    let proxy = Setup::default().start(&[&mock]);
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
        mock.wait_until(LIMIT, |stats| stats.connections_open == 0).expect("idle close");
    }
    assert_eq!(mock.stats().connections_total, 5);
}

#[test]
fn retries_once_on_a_fresh_connection_when_a_reused_one_dies() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for turn in 0..50 {
        // The end of the connection races with the next request.
        let answer = client.send(chat("x-mock: silent_close\r\n", false)).answer();
        assert_eq!(answer.status, 200, "turn {turn}");
    }
    assert!(mock.stats().connections_total <= 50);
}

#[test]
fn does_not_retry_a_fresh_connection_that_dies() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    let answer = client.send(chat("x-mock: drop\r\n", false)).answer();
    assert_eq!(answer.status, 502);
    assert_eq!(mock.stats().requests_total, 1);
}

#[test]
fn discards_a_connection_with_unexpected_bytes() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    for turn in 0..10 {
        // A whole answer to nothing comes behind the real one, at once and a little later.
        let after = if turn % 2 == 0 { "0ms" } else { "3ms" };
        let answer = client.send(chat(&format!("x-mock: extra_bytes={after}\r\n"), false)).answer();
        assert!(answer.text().contains("chat.completion"), "turn {turn}: {}", answer.text());
        mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("written");
        // Give the bytes the time that an idle connection has; the pool must see them.
        std::thread::sleep(Duration::from_millis(2));
    }
    let answer = client.send(chat("", false)).answer();
    assert!(!answer.text().contains("stolen"));
}

#[test]
fn does_not_keep_connections_when_told_never() {
    let mock = super::house::mock();
    let proxy = Setup { upstream: "reuse = \"never\"", ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
    }
    assert_eq!(mock.stats().connections_total, 5);
}

#[test]
fn does_not_keep_connections_after_a_stream_when_told_so() {
    let mock = super::house::mock();
    let proxy = Setup { upstream: "reuse = \"no-after-stream\"", ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let mut client = proxy.client();
    for stream in [false, false, true, false, true, false] {
        assert_eq!(client.send(chat("", stream)).answer().status, 200);
    }
    assert_eq!(mock.stats().connections_total, 3);
}

#[test]
fn closes_what_an_upstream_said_it_will_close() {
    let mock = mock_with(|config| config.keep_alive = KeepAlive::CloseAlways);
    let proxy = Setup::default().start(&[&mock]);
    let mut client = proxy.client();
    for _ in 0..5 {
        assert_eq!(client.send(get("/echo", "")).answer().status, 200);
    }
    assert_eq!(mock.stats().connections_total, 5);
    mock.wait_until(LIMIT, |stats| stats.connections_open == 0).expect("closed");
}
