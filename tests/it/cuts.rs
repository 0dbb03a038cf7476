//! rules §5, §9: an upstream that dies never looks like a clean end; a slow reader holds little.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::time::{Duration, Instant};

use super::house::{LIMIT, Setup, house, mock};
use super::scripted::Scripted;
use super::wire::{chat, get, noise};

#[test]
fn a_cut_stream_has_no_last_chunk_and_an_error_event() {
    for how in ["cut_after=5", "reset_after=5"] {
        let (_mock, proxy) = house();
        let mut client = proxy.client();
        client.send(chat(&format!("x-mock: {how}\r\n"), true));
        let broken = client.try_answer().expect_err("cut");
        assert_ne!(broken.why, ErrorKind::InvalidData, "{how}: well framed up to its end");
        let text = String::from_utf8_lossy(&broken.body).into_owned();
        assert!(!text.contains("[DONE]"), "{how}");
        if how == "reset_after=5" {
            let last = text.trim_end().rsplit("\n\n").next().unwrap();
            let event = last.strip_prefix("data: ").expect(last);
            let error: serde_json::Value = serde_json::from_str(event).expect(event);
            assert!(error["error"]["message"].is_string(), "{event}");
        }
        assert!(client.is_over());
    }
}

#[test]
fn an_error_event_never_lands_inside_a_chunk() {
    // The mock cuts in the middle of a chunk: nothing may be put behind that.
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(chat("x-mock: cut_after=3\r\n", true));
    let broken = client.try_answer().expect_err("cut");
    assert!(!String::from_utf8_lossy(&broken.body).contains("\"error\""));
}

#[test]
fn a_cut_answer_with_a_length_is_short() {
    let (_mock, proxy) = house();
    for (bytes, after) in [(1000, 500), (100_000, 60_000), (10_000_000, 6_000_000)] {
        for kind in ["cut_after", "reset_after"] {
            let mut client = proxy.client();
            client.send(get(&format!("/echo?mock=big={bytes},{kind}={after},seed=2"), ""));
            let broken = client.try_answer().expect_err("cut");
            assert!(broken.body.len() < bytes, "{kind} {bytes}");
            assert_eq!(broken.body, noise(2, broken.body.len()), "{kind} {bytes}");
        }
    }
}

#[test]
fn a_cut_answer_to_http_1_0_ends_with_a_reset() {
    let (_mock, proxy) = house();
    for kind in ["cut_after", "reset_after"] {
        let mut client = proxy.client();
        let target = format!("/echo?mock=big=50000,chunked,{kind}=20000");
        client.send(format!("GET {target} HTTP/1.0\r\nHost: a\r\n\r\n"));
        // An end without a reset would be a complete answer to this client.
        let broken = client.try_answer().expect_err("must not look complete");
        assert_eq!(broken.why, ErrorKind::ConnectionReset, "{kind}");
    }
}

#[test]
fn a_reset_close_delimited_answer_is_cut_too() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(get("/echo?mock=big=50000,no_length,reset_after=20000", ""));
    client.try_answer().expect_err("must not look complete");
}

#[test]
fn a_stream_that_stalls_is_cut_after_stream_idle() {
    let mock = mock();
    let proxy = Setup { group: "timeouts = { stream_idle = \"300ms\" }", ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let mut client = proxy.client();
    let begun = Instant::now();
    client.send(chat("x-mock: stall_after=3\r\n", true));
    let broken = client.try_answer().expect_err("cut");
    assert!(String::from_utf8_lossy(&broken.body).contains("\"error\""));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("let go");
    // A stream that is slower than that in all, but never pauses so long, is not cut.
    let mut client = proxy.client();
    let answer = client.send(chat("x-mock: interval=50ms,tokens=12\r\n", true)).answer();
    assert!(answer.text().ends_with("data: [DONE]\n\n"));
}

#[test]
fn an_event_leaves_before_the_next_one_comes() {
    let (mock, proxy) = house();
    let mut client = proxy.client();
    client.send(chat("x-mock: stall_after=4\r\n", true));
    // The fourth event is there while the stream is still open and nothing else comes.
    for _ in 0..4 {
        client.through(b"\n\n").expect("in time");
    }
    assert_eq!(mock.stats().in_flight, 1);
}

/// What may lie between the upstream's writes and a client that does not read: the kernel's
/// buffers of both connections, and one buffer or pipe of ours.
fn in_between_bytes_max() -> u64 {
    let largest = |name: &str| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).unwrap();
        text.split_whitespace().last().unwrap().parse().unwrap()
    };
    2 * (largest("tcp_rmem") + largest("tcp_wmem")) + (2 << 20)
}

#[test]
fn reads_nothing_ahead_of_a_client_that_does_not_read() {
    for how in ["", "chunked,", "no_length,"] {
        let (mock, proxy) = house();
        let mut client = proxy.client();
        client.send(get(&format!("/echo?mock={how}big=1_000_000_000"), ""));
        let mut last = (0, Instant::now());
        while last.0 == 0 || last.1.elapsed() < Duration::from_millis(150) {
            std::thread::sleep(Duration::from_millis(5));
            let written = mock.stats().written_bytes_total;
            assert!(written < in_between_bytes_max(), "{how}: {written} bytes taken");
            if written != last.0 {
                last = (written, Instant::now());
            }
        }
    }
}

#[test]
fn relays_a_large_answer_to_a_client_that_pauses() {
    let (_mock, proxy) = house();
    let mut client = proxy.client();
    client.send(get("/echo?mock=big=10_000_000,seed=8", ""));
    client.through(b"\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut got = Vec::new();
    while got.len() < 10_000_000 {
        let piece = client.some();
        assert!(!piece.is_empty(), "short after {}", got.len());
        got.extend_from_slice(&piece);
    }
    assert!(got == noise(8, 10_000_000));
}

#[test]
fn a_server_that_falls_silent_after_an_interim_answer_is_late() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let proxy = Setup { group: "timeouts = { first_byte = \"300ms\" }", ..Setup::default() };
    let proxy = proxy.start_on(&[url]);
    let mut client = proxy.client();
    client.send(chat("", false));
    let (mut stream, _) = listener.accept().unwrap();
    let _ = stream.read(&mut [0; 4096]).unwrap();
    stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").unwrap();
    assert_eq!(client.answer().status, 103);
    assert_eq!(client.answer().status, 504);
}

#[test]
fn a_slow_reader_is_no_silent_server() {
    let mock = mock();
    let proxy = Setup { group: "timeouts = { stream_idle = \"300ms\" }", ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    // Moved by the kernel, and through a buffer.
    for how in ["big=50_000_000", "big=50_000_000,chunked"] {
        let mut client = proxy.client();
        client.send(get(&format!("/echo?mock={how}"), ""));
        // Longer than the server may be silent, and the buffers in between are full.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(client.answer().body.len(), 50_000_000, "{how}");
    }
}

/// An event of ours would be no part of what the client has to decode.
#[test]
fn an_error_event_is_never_put_into_a_coded_body() {
    for (coding, told) in [("", true), ("identity", true), ("gzip", false), ("br", false)] {
        let server = Scripted::start(move |conn| {
            conn.head();
            let coding = match coding {
                "" => String::new(),
                coding => format!("Content-Encoding: {coding}\r\n"),
            };
            conn.say(format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n{coding}\
                 Transfer-Encoding: chunked\r\n\r\n5\r\nbytes\r\n"
            ));
        });
        let proxy = Setup::default().start_on(&[server.url()]);
        let broken = proxy.client().send(chat("", true)).try_answer().expect_err("cut");
        let body = String::from_utf8_lossy(&broken.body).into_owned();
        assert_eq!(body.contains("\"error\""), told, "{coding}: {body}");
        assert!(told || body == "bytes", "{coding}: {body}");
    }
}
