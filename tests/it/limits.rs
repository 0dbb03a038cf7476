//! rules §2 `[limits]` and `[timeouts]` of the client side: what is too large or too slow.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::h2_client::H2Client;
use super::house::{Setup, mock};
use super::scripted::Scripted;
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

/// The beginning of a request whose body has no model yet: `held` of `length` bytes.
fn begun(key: &str, length: usize, held: usize) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\
         Content-Length: {length}\r\n\r\n{{\"p\":\"{}",
        "x".repeat(held)
    )
}

/// A whole request with a body of about that many bytes.
fn whole(key: &str, bytes: usize) -> Vec<u8> {
    let body = format!("{{\"p\":\"{}\",\"model\":\"m\"}}", "x".repeat(bytes));
    post("/v1/chat/completions", &format!("Authorization: Bearer {key}\r\n"), body)
}

const KEYS: &str = "[[key]]\nname = \"a\"\nkey = \"sk-aaaaaaaaaaaaaaaa\"\n\
                    [[key]]\nname = \"b\"\nkey = \"sk-bbbbbbbbbbbbbbbb\"\n";
const HELD: &str = "[limits]\nbody = \"1MiB\"\nbody_held = \"1MiB\"\nheld_total = \"4MiB\"\n";
const A: &str = "sk-aaaaaaaaaaaaaaaa";
const B: &str = "sk-bbbbbbbbbbbbbbbb";

#[test]
fn slow_uploads_of_one_key_lock_nobody_out() {
    let mock = mock();
    for process in ["cores = 1", "cores = 2"] {
        let rest = format!("{HELD}{KEYS}");
        let setup = Setup { process, listener: "auth = \"keys\"", rest: &rest, ..Setup::default() };
        let proxy = setup.start(&[&mock]);
        let mut slow: Vec<_> = (0..4)
            .map(|_| {
                let mut client = proxy.client();
                client.send(begun(A, 1_048_000, 1_040_000));
                client
            })
            .collect();
        let full = || proxy.shared().held.taken() >= 4 * 1_040_000;
        super::house::wait_until("the budget is full", full);
        // Another key, and a smaller one of the same.
        for (key, bytes) in [(B, 900_000), (A, 100_000), (B, 100_000)] {
            let answer = proxy.client().send(whole(key, bytes)).answer();
            assert_eq!(answer.status, 200, "{key} {bytes}: {}", answer.text());
        }
        let mut gone = 0;
        for client in &mut slow {
            client.patience(Duration::from_millis(300));
            if let Ok(answer) = client.try_answer() {
                assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")));
                gone += 1;
            }
        }
        assert_eq!(gone, 1, "no more than it takes");
        drop(slow);
        proxy.wait_until_empty();
        assert_eq!(proxy.shared().held.taken(), 0);
    }
}

#[test]
fn books_what_has_come_and_not_the_room_for_it() {
    let mock = mock();
    let proxy = Setup { rest: HELD, ..Setup::default() }.start(&[&mock]);
    let mut clients: Vec<_> = (0..5).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(begun("-", 1_000_000, 600_000));
    }
    super::house::wait_until("they have come", || proxy.shared().held.taken() >= 5 * 600_000);
    assert!(proxy.shared().held.taken() < 5 * 601_000);
    for client in &mut clients {
        client.send("x".repeat(150_000));
    }
    super::house::wait_until("they have come", || proxy.shared().held.taken() >= 5 * 750_000);
}

#[test]
fn what_streams_of_one_connection_hold_is_counted() {
    let mock = mock();
    let proxy = Setup { rest: HELD, ..Setup::default() }.start(&[&mock]);
    let client = H2Client::connect(proxy.addr(), None);
    let mut streams: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = client.open("POST", "/v1/chat/completions", &[], false);
            stream.send(Bytes::from(" ".repeat(40_000)), false).unwrap();
            stream
        })
        .collect();
    let held = || proxy.shared().held.taken();
    super::house::wait_until("all of it is counted", || held() >= 20 * 40_000);
    streams.iter_mut().for_each(|stream| stream.reset());
    super::house::wait_until("it comes back", || held() == 0);
}

#[test]
fn a_body_slower_than_body_rate_min_is_408() {
    let mock = mock();
    let rest = "[limits]\nbody_rate_min = \"64KiB\"";
    let proxy = Setup { rest, ..Setup::default() }.start(&[&mock]);
    // One that is held for its model, one that streams through, and one that the kernel moves.
    let head =
        |path: &str, length: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\n{length}\r\n\r\n");
    let begun = Instant::now();
    let mut clients = [
        head("/v1/chat/completions", "Content-Length: 3000000"),
        head("/echo", "Transfer-Encoding: chunked"),
        head("/echo", "Content-Length: 60000000"),
    ]
    .map(|head| {
        let mut client = proxy.client();
        client.send(head);
        client
    });
    let mut fine = proxy.client();
    fine.send(head("/echo", "Content-Length: 1300000"));
    let mut sent = 0;
    while begun.elapsed() < Duration::from_millis(9_500) {
        for (client, bytes) in clients.iter_mut().zip([" ", "1\r\n \r\n", " "]) {
            let _ = client.try_send(bytes.as_bytes());
        }
        fine.send(" ".repeat(30_000));
        sent += 30_000;
        std::thread::sleep(Duration::from_millis(250));
    }
    for client in &mut clients {
        let answer = client.answer();
        assert_eq!(answer.status, 408, "{}", answer.text());
        assert!(client.is_over());
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_secs(9) && took < Duration::from_secs(16), "{took:?}");
    fine.send(" ".repeat(1_300_000 - sent));
    assert_eq!(fine.answer().status, 200);
}

/// The manual says it of both: a request beyond is 431, a response beyond 502.
#[test]
fn answers_have_the_bounds_of_requests() {
    let mock = mock();
    for (rest, bytes) in [("", 64 << 10), ("[limits]\nhead = \"300KiB\"\n", 300 << 10)] {
        let proxy = Setup { rest, ..Setup::default() }.start(&[&mock]);
        let mut client = proxy.client();
        let mut status = |bytes: usize| {
            client.send(get("/echo", &format!("x-mock: head_bytes={bytes}\r\n"))).answer().status
        };
        assert_eq!(status(bytes - 100), 200);
        assert_eq!(status(bytes + 100), 502);
    }
    let server = Scripted::start(|conn| {
        while let Some(head) = conn.head() {
            let fields = head.split("n=").nth(1).unwrap().split(' ').next().unwrap();
            let fields = "a: b\r\n".repeat(fields.parse::<usize>().unwrap() - 1);
            conn.say(format!("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n{fields}\r\n"));
        }
    });
    for (rest, fields) in [("", 128), ("[limits]\nfields = 400\n", 400)] {
        let proxy = Setup { rest, ..Setup::default() }.start_on(&[server.url()]);
        let mut client = proxy.client();
        assert_eq!(client.send(get(&format!("/echo?n={fields}"), "")).answer().status, 200);
        assert_eq!(client.send(get(&format!("/echo?n={}", fields + 1), "")).answer().status, 502);
    }
}

#[test]
fn an_empty_line_behind_a_body_begins_no_request() {
    let mock = mock();
    let proxy = Setup { listener: QUICK, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    let mut request = super::wire::post("/echo", "", "ab");
    request.extend_from_slice(b"\r\n");
    for _ in 0..2 {
        assert_eq!(client.send(&request).answer().text(), "ab");
        // Longer than a head may take.
        std::thread::sleep(Duration::from_millis(600));
    }
    // A connection that never says more is closed without a word.
    let mut client = proxy.client();
    client.send("\r\n");
    client.expect_end();
}
