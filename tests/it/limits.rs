//! SPEC §2 `[limits]` and `[timeouts]` of the client side: what is too large or too slow.

use std::time::{Duration, Instant};

use super::house::{Setup, mock};
use super::wire::{chat, get, post, post_chunked};

const SMALL: &str = "[limits]\nhead = \"2KiB\"\nfields = 16\ntarget = \"200B\"\nbody = \"4KiB\"\nbody_held = \"1KiB\"\n";
const QUICK: &str = "timeouts = { client_head = \"300ms\", client_body_idle = \"300ms\" }";

#[test]
fn refuses_a_target_over_the_limit_with_414() {
    let mock = mock();
    let proxy = Setup { rest: SMALL, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.send(get(&format!("/echo?{}", "a".repeat(194)), ""));
    assert_eq!(client.answer().status, 200, "200 bytes are allowed");
    client.send(get(&format!("/echo?{}", "a".repeat(195)), ""));
    assert_eq!(client.answer().status, 414);
    assert!(client.is_over());
}

#[test]
fn refuses_a_head_over_the_limit_with_431() {
    let mock = mock();
    let proxy = Setup { rest: SMALL, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.send(get("/echo", &format!("x: {}\r\n", "a".repeat(1900))));
    assert_eq!(client.answer().status, 200);
    client.send(get("/echo", &format!("x: {}\r\n", "a".repeat(2100))));
    assert_eq!(client.answer().status, 431);
    assert!(client.is_over());
    // Also one that never ends.
    let mut client = proxy.client();
    client.send(format!("GET /echo HTTP/1.1\r\nx: {}", "a".repeat(5000)));
    assert_eq!(client.answer().status, 431);
}

#[test]
fn refuses_too_many_fields_with_431() {
    let mock = mock();
    let proxy = Setup { rest: SMALL, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.send(get("/echo", &"x: y\r\n".repeat(15)));
    assert_eq!(client.answer().status, 200, "Host and 15 more are allowed");
    client.send(get("/echo", &"x: y\r\n".repeat(16)));
    assert_eq!(client.answer().status, 431);
    assert!(client.is_over());
}

#[test]
fn refuses_more_options_in_connection_than_anybody_needs() {
    let mock = mock();
    let proxy = Setup::default().start(&[&mock]);
    let fields = "x: y\r\n".repeat(110);
    let named = |n: usize| format!("{fields}x-hop: 1\r\nConnection: {}x-hop\r\n", "a,".repeat(n));
    let mut client = proxy.client();
    assert_eq!(client.send(get("/echo", &named(63))).answer().status, 200);
    assert_eq!(mock.seen()[0].field("x-hop"), None);
    let lines = format!("{fields}{}", "Connection: a, b, c, d, e\r\n".repeat(13));
    for many in [named(64), named(28_000), lines] {
        let answer = proxy.client().send(get("/echo", &many)).answer();
        assert_eq!(answer.status, 431);
        assert_eq!(answer.message(), "Too many options in Connection: over 64.");
    }
    assert_eq!(mock.seen().len(), 1);
}

#[test]
fn refuses_a_length_over_the_limit_with_413() {
    let mock = mock();
    let proxy = Setup { rest: SMALL, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    assert_eq!(client.send(post("/echo", "", [b'x'; 4096])).answer().body.len(), 4096);
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4097\r\n\r\n");
    let answer = client.answer();
    assert_eq!(answer.status, 413);
    assert_eq!(answer.message(), "Request body too large: 4097 bytes, limit 4096.");
    assert!(client.is_over());
}

#[test]
fn refuses_chunks_over_the_limit_with_413() {
    let mock = mock();
    let proxy = Setup { rest: SMALL, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let body = format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "x".repeat(4070));
    let (one, two) = body.as_bytes().split_at(2000);
    assert_eq!(body.len(), 4092);
    client.send(post_chunked("/v1/chat/completions", "", &[one, two]));
    assert_eq!(client.answer().status, 200);
    // Held for its model.
    client.send(post_chunked("/v1/chat/completions", "", &[&[b' '; 3000], &[b' '; 1097]]));
    assert_eq!(client.answer().status, 413);
    assert!(client.is_over());
    // Streamed through.
    let mut client = proxy.client();
    client.send(post_chunked("/echo", "", &[&[b' '; 3000], &[b' '; 1097]]));
    assert_eq!(client.answer().status, 413);
    assert!(client.is_over());
    assert!(mock.seen().iter().skip(1).all(|request| !request.body_complete));
}

#[test]
fn answers_408_to_a_head_that_stays_incomplete() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let begun = Instant::now();
    client.send("GET /echo HTTP/1.1\r\nHost: pro");
    assert_eq!(client.answer().status, 408);
    assert!(begun.elapsed() >= Duration::from_millis(300), "not before its time");
    assert!(client.is_over());
}

#[test]
fn answers_408_to_an_incomplete_head_behind_a_request() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    for whole in [get("/health", ""), chat("", false), get("/echo", "")] {
        let mut client = proxy.client();
        client.send([&whole[..], b"GET /ec"].concat());
        assert_eq!(client.answer().status, 200);
        assert_eq!(client.answer().status, 408);
        assert!(client.is_over());
    }
}

#[test]
fn a_head_that_drips_is_not_given_more_time() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let begun = Instant::now();
    for byte in get("/echo", &format!("x: {}\r\n", "y".repeat(1000))) {
        if client.try_send(&[byte]).is_err() || begun.elapsed() > Duration::from_secs(5) {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "the whole head has one deadline");
    proxy.wait_until_empty();
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn closes_a_connection_that_never_begins() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.expect_end();
}

#[test]
fn answers_408_to_a_held_body_that_pauses() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n{\"mo");
    assert_eq!(client.answer().status, 408);
    assert!(client.is_over());
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn answers_408_to_a_streamed_body_that_pauses() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\nhalf");
    assert_eq!(client.answer().status, 408);
    assert!(client.is_over());
    super::house::wait_until("the upstream is let go", || mock.stats().in_flight == 0);
    assert!(mock.seen().iter().all(|request| !request.body_complete));
}

#[test]
fn a_body_that_keeps_coming_slowly_is_let_through() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n");
    for byte in b"abcdefgh" {
        std::thread::sleep(Duration::from_millis(100));
        client.send([*byte]);
    }
    assert_eq!(client.answer().text(), "abcdefgh");
}

#[test]
fn gives_up_on_a_client_that_does_not_read() {
    let mock = mock();
    let proxy =
        Setup { listener: "timeouts = { client_write_idle = \"300ms\" }", ..Setup::default() }
            .start(&[&mock]);
    let mut client = proxy.client();
    client.send(get("/echo?mock=big=100_000_000", ""));
    proxy.wait_until_empty();
    super::house::wait_until("the upstream is let go", || mock.stats().in_flight == 0);
}

#[test]
fn counts_held_bodies_against_held_total() {
    let mock = mock();
    let proxy = Setup {
        rest: "[limits]\nbody = \"4MiB\"\nbody_held = \"4MiB\"\nheld_total = \"4MiB\"",
        ..Setup::default()
    }
    .start(&[&mock]);
    // Two bodies without a model yet: together they are more than is held.
    let begin = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n{{\"p\":\"{}",
        "x".repeat(3_500_000)
    );
    let mut clients = [proxy.client(), proxy.client()];
    let mut refused = 0;
    for client in &mut clients {
        // The one that is refused may be closed while it is still sending.
        let _ = client.try_send(begin.as_bytes());
        client.patience(Duration::from_millis(700));
        if let Ok(answer) = client.try_answer() {
            assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
            refused += 1;
        }
    }
    assert_eq!(refused, 1);
    drop(clients);
    proxy.wait_until_empty();
    let mut client = proxy.client();
    assert_eq!(client.send(chat("", false)).answer().status, 200, "the budget comes back");
    let mut client = proxy.client();
    let body = format!("{{\"p\":\"{}\",\"model\":\"m\"}}", "x".repeat(3_000_000));
    assert_eq!(client.send(post("/v1/chat/completions", "", body)).answer().status, 200);
}
