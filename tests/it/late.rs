//! rules §2 `[timeouts]`, §5: who is awaited is who is late.

use std::io::Write;
use std::time::{Duration, Instant};

use tokenring::testing::policy::breaker::StateName;

use super::house::Setup;
use super::scripted::{OK, Scripted};
use super::wire::{chat, get, noise, post};

const HEAD_SSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\
    Transfer-Encoding: chunked\r\n\r\n";
const EVENT: &str = "b\r\ndata: one\n\n\r\n";
const END: &str = "0\r\n\r\n";

/// A server that sends its head at once and its body when it has thought for so long.
fn thinks(head: &'static str, thought: Duration, body: &'static str) -> Scripted {
    Scripted::start(move |conn| {
        while conn.request().is_some() {
            conn.say(head);
            std::thread::sleep(thought);
            conn.say(body);
        }
    })
}

#[test]
fn a_head_that_comes_at_once_does_not_end_the_time_of_the_first_byte() {
    let group = "timeouts = { first_byte = \"10s\", stream_idle = \"200ms\" }";
    for (head, body) in [
        (HEAD_SSE, "b\r\ndata: one\n\n\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "hello"),
        ("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n", "{}"),
    ] {
        let server = thinks(head, Duration::from_millis(700), body);
        let proxy = Setup { group, ..Setup::default() }.start_on(&[server.url()]);
        let mut client = proxy.client();
        for _ in 0..2 {
            let answer = client.send(chat("", true)).answer();
            assert_eq!(answer.status, 200);
            assert!(!answer.body.is_empty() && !answer.text().contains("error"), "{head}");
        }
    }
}

#[test]
fn a_large_answer_of_known_length_may_think_as_well() {
    // Long enough for the kernel to move it.
    let server = Scripted::start(|conn| {
        while conn.request().is_some() {
            conn.say("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n");
            std::thread::sleep(Duration::from_millis(700));
            conn.say(noise(1, 1_000_000));
        }
    });
    let group = "timeouts = { first_byte = \"10s\", stream_idle = \"200ms\" }";
    let proxy = Setup { group, ..Setup::default() }.start_on(&[server.url()]);
    let answer = proxy.client().send(get("/echo", "")).answer();
    assert_eq!(answer.body.len(), 1_000_000);
}

#[test]
fn a_body_that_never_begins_is_cut_after_first_byte() {
    let server = Scripted::start(|conn| {
        conn.head();
        std::thread::sleep(Duration::from_millis(300));
        conn.say(HEAD_SSE);
        conn.drain();
    });
    let group = "timeouts = { first_byte = \"600ms\", stream_idle = \"60s\" }";
    let proxy = Setup { group, ..Setup::default() }.start_on(&[server.url()]);
    let mut client = proxy.client();
    let begun = Instant::now();
    let broken = client.send(chat("", true)).try_answer().expect_err("cut");
    assert!(broken.head.starts_with("HTTP/1.1 200"));
    let told = String::from_utf8_lossy(&broken.body).into_owned();
    assert!(told.contains("did not answer in time"), "{told}");
    let took = begun.elapsed();
    // From the request on, and not from the head on.
    assert!(took >= Duration::from_millis(600) && took < Duration::from_millis(880), "{took:?}");
}

#[test]
fn a_pause_after_the_first_event_is_cut_after_stream_idle() {
    let server = Scripted::start(|conn| {
        conn.head();
        conn.say(HEAD_SSE);
        conn.say(EVENT);
        conn.drain();
    });
    let group = "timeouts = { first_byte = \"60s\", stream_idle = \"300ms\" }";
    let proxy = Setup { group, ..Setup::default() }.start_on(&[server.url()]);
    let mut client = proxy.client();
    let begun = Instant::now();
    let broken = client.send(chat("", true)).try_answer().expect_err("cut");
    assert!(String::from_utf8_lossy(&broken.body).contains("paused too long"));
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

/// Uploads that stall in every way of relaying: kept, through a buffer, moved by the kernel.
#[test]
fn a_client_that_stalls_its_upload_is_late_and_not_the_server() {
    let server = Scripted::start(|conn| {
        conn.head();
        conn.drain();
    });
    let setup = Setup {
        listener: "timeouts = { client_body_idle = \"700ms\" }",
        upstream: "breaker = { consecutive = 1 }",
        group: "timeouts = { first_byte = \"200ms\", stream_idle = \"200ms\" }",
        rest: "[limits]\nbody_held = \"64KiB\"\n",
        ..Setup::default()
    };
    let proxy = setup.start_on(&[server.url()]);
    let model = format!("{{\"model\":\"m\",\"pad\":\"{}", "x".repeat(100_000));
    for (path, length, sent) in [
        ("/echo", 1_000, vec![b'x'; 10]),
        ("/echo", 1_000, Vec::new()),
        ("/echo", 1_000_000, vec![b'x'; 10]),
        ("/echo", 1_000_000, vec![b'x'; 300_000]),
        ("/v1/chat/completions", 1_000_000, model.into_bytes()),
    ] {
        let mut client = proxy.client();
        let fields = format!("Host: a\r\nContent-Length: {length}\r\n");
        client.send(format!("POST {path} HTTP/1.1\r\n{fields}\r\n")).send(&sent);
        let answer = client.answer();
        assert_eq!(answer.status, 408, "{path} {length}: {}", answer.text());
    }
    let plan = proxy.plan();
    assert_eq!(plan.upstreams[0].state.breaker.state().name(), StateName::Closed);
}

#[test]
fn the_total_that_ends_in_a_stalled_upload_is_the_clients() {
    let server = Scripted::start(|conn| {
        conn.head();
        conn.drain();
    });
    let setup = Setup { group: "timeouts = { total = \"400ms\" }", ..Setup::default() };
    let proxy = setup.start_on(&[server.url()]);
    let mut client = proxy.client();
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf");
    assert_eq!(client.answer().status, 408);
}

#[test]
fn a_server_that_waits_for_the_client_is_not_idle() {
    // It answers a part, and the rest when it has the whole request.
    let server = Scripted::start(|conn| {
        conn.head();
        conn.say(HEAD_SSE);
        conn.say(EVENT);
        while conn.input().len() < 100 && conn.more() {}
        conn.say(EVENT);
        conn.say(END);
        conn.drain();
    });
    let group = "timeouts = { first_byte = \"200ms\", stream_idle = \"200ms\" }";
    let proxy = Setup { group, ..Setup::default() }.start_on(&[server.url()]);
    let request = post("/echo", "", noise(1, 100));
    let (first, rest) = request.split_at(request.len() - 50);
    let mut client = proxy.client();
    client.send(first);
    client.through(b"data: one\n\n").expect("the first event");
    std::thread::sleep(Duration::from_millis(700));
    client.send(rest);
    client.through(b"0\r\n\r\n").expect("the end");
}

#[test]
fn a_server_that_is_silent_once_it_has_all_is_late() {
    let server = Scripted::start(|conn| {
        conn.request();
        conn.drain();
    });
    let group = "timeouts = { first_byte = \"300ms\" }";
    let proxy = Setup { group, ..Setup::default() }.start_on(&[server.url()]);
    let request = post("/echo", "", noise(1, 100));
    let (first, rest) = request.split_at(request.len() - 50);
    let mut client = proxy.client();
    client.send(first);
    std::thread::sleep(Duration::from_millis(600));
    let begun = Instant::now();
    client.send(rest);
    assert_eq!(client.answer().status, 504);
    assert!(begun.elapsed() >= Duration::from_millis(300));
}

#[test]
fn a_server_that_takes_nothing_is_late() {
    // It reads the head and no more: the buffers in between fill up.
    let server = Scripted::start(|conn| {
        conn.head();
        std::thread::sleep(Duration::from_secs(3));
        conn.say(OK);
    });
    // Moved by the kernel, and held whole.
    let model = format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "x".repeat(50_000_000));
    for (request, held) in [
        (post("/echo", "", noise(1, 50_000_000)), "64KiB"),
        (post("/v1/chat/completions", "", model), "64MiB"),
    ] {
        let group = "timeouts = { first_byte = \"500ms\" }";
        let rest = format!("[limits]\nbody_held = \"{held}\"\n");
        let setup = Setup { group, rest: &rest, ..Setup::default() };
        let proxy = setup.start_on(&[server.url()]);
        let mut client = proxy.client();
        let mut writer = client.stream();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _ = writer.write_all(&request);
            });
            assert_eq!(client.answer().status, 504, "{held}");
            drop(client);
        });
        drop(writer);
        proxy.wait_until_empty();
    }
}
