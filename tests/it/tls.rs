//! TLS towards clients, seen from outside: what the handshake decides, and how things end.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use loadtest::mock::{Mock, MockStats};
use rustls::ClientConfig;

use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::secure::{Secure, session};
use super::wire::{Client, chat, get, noise, post, post_chunked, sha256};

/// As in `abort`.
const PROMISE: Duration = Duration::from_secs(1);

/// A proxy over TLS in front of a mock, and what its clients know.
struct House {
    mock: Mock,
    proxy: Proxy,
    tls: Arc<ClientConfig>,
}

impl House {
    fn with(tls: &str, setup: Setup<'_>) -> House {
        let (mock, secure) = (mock(), Secure::new());
        let proxy = secure.proxy(tls, setup, &[mock.url()]);
        House { mock, proxy, tls: secure.client(&[]) }
    }

    fn new() -> House {
        House::with("", Setup::default())
    }

    fn client(&self) -> Client {
        Client::connect_tls(self.proxy.addr(), &self.tls)
    }
}

#[test]
fn alpn_decides_what_is_spoken() {
    let (mock, secure) = (mock(), Secure::new());
    let both = secure.proxy("", Setup::default(), &[mock.url()]);
    let old = secure.proxy(", alpn = [\"http/1.1\"]", Setup::default(), &[mock.url()]);
    for (proxy, offers, chosen) in [
        (&both, &["h2", "http/1.1"][..], Some("h2")),
        (&both, &["http/1.1", "h2"], Some("h2")),
        (&both, &["http/1.1"], Some("http/1.1")),
        (&both, &[], None),
        (&old, &["h2", "http/1.1"], Some("http/1.1")),
        (&old, &[], None),
    ] {
        let mut client = Client::connect_tls(proxy.addr(), &secure.client(offers));
        assert_eq!(client.alpn(), chosen, "{offers:?}");
        if chosen != Some("h2") {
            assert_eq!(client.send(chat("", true)).answer().status, 200);
        }
    }
    // Nothing in common: no_application_protocol.
    for (proxy, offers) in [(&both, &["spdy/1"][..]), (&old, &["h2"])] {
        let mut stream = TcpStream::connect(proxy.addr()).unwrap();
        let mut session = session(&secure.client(offers));
        let why = loop {
            if let Err(why) = session.complete_io(&mut stream) {
                break why.to_string();
            }
            assert!(session.is_handshaking(), "{offers:?}");
        };
        assert!(why.contains("NoApplicationProtocol"), "{why}");
    }
    wait_until("they are counted", || both.shared().handshakes_failed.load(Relaxed) == 1);
}

#[test]
fn a_certificate_is_a_key() {
    let (mock, secure) = (mock(), Secure::new());
    let rest = "[[key]]\nname = \"app\"\n";
    let setup = Setup { listener: "auth = \"keys\"\n", rest, ..Setup::default() };
    let proxy = secure.proxy(", client_ca = \"ca.pem\"", setup, &[mock.url()]);
    for (name, status) in [("app", 200), ("nobody", 401)] {
        let tls = secure.client_named(&[], Some(name));
        let mut client = Client::connect_tls(proxy.addr(), &tls);
        assert_eq!(client.send(chat("", false)).answer().status, status, "{name}");
    }
}

#[test]
fn keeps_the_connection_and_answers_what_is_pipelined() {
    let house = House::new();
    let mut client = house.client();
    for _ in 0..20 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    let row: Vec<u8> = (0..20).flat_map(|n| post("/echo", "", format!("body {n}"))).collect();
    client.send(&row);
    for n in 0..20 {
        assert_eq!(client.answer().text(), format!("body {n}"));
    }
    // Every byte in a record of its own.
    client.send_bytewise(&[post("/echo", "", "one"), post("/echo", "", "two")].concat());
    assert_eq!((client.answer().text(), client.answer().text()), ("one".into(), "two".into()));
    assert_eq!(house.proxy.connections(), 1);
    let proto = house.mock.seen()[0].field("x-forwarded-proto");
    assert_eq!(proto.as_deref(), Some("https"));
}

#[test]
fn big_bodies_pass_both_ways() {
    let house = House::new();
    let body = noise(5, 8 << 20);
    for request in [
        post("/echo", "", &body),
        post_chunked("/echo", "", &body.chunks(70_001).collect::<Vec<_>>()),
    ] {
        let answer = house.client().send(request).answer();
        assert_eq!((answer.status, sha256(&answer.body)), (200, sha256(&body)));
    }
}

#[test]
fn a_handshake_takes_no_longer_than_it_may() {
    let listener = "timeouts = { tls_handshake = \"300ms\" }\n";
    let house = House::with("", Setup { listener, ..Setup::default() });
    let begun = Instant::now();
    let mut silent = Client::connect(house.proxy.addr());
    let mut halfway = Client::connect(house.proxy.addr());
    halfway.send([22, 3, 1, 2, 0, 1]);
    for client in [&mut silent, &mut halfway] {
        assert!(client.is_over());
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(250) && took < LIMIT / 2, "{took:?}");
    }
    wait_until("they are counted", || {
        house.proxy.shared().handshakes_failed.load(Relaxed) == 2
            && house.proxy.shared().handshakes.load(Relaxed) == 0
    });
    // The limit ends with the handshake.
    let mut client = house.client();
    assert_eq!(client.send(chat("x-mock: delay=600ms\r\n", false)).answer().status, 200);
    drop(client);
    house.proxy.wait_until_empty();
}

#[test]
fn no_more_handshakes_than_the_limit() {
    let rest = "[limits]\nhandshakes = 2\n";
    let house = House::with("", Setup { rest, ..Setup::default() });
    let shaking = || house.proxy.shared().handshakes.load(Relaxed);
    let mut done = house.client();
    let silent: Vec<_> = (0..2).map(|_| Client::connect(house.proxy.addr())).collect();
    wait_until("two are at it", || shaking() == 2);
    let mut refused = Client::connect(house.proxy.addr());
    assert!(refused.is_over());
    assert_eq!(house.proxy.shared().refused.load(Relaxed), 1);
    // Who is in is not concerned.
    assert_eq!(done.send(chat("", false)).answer().status, 200);
    drop(silent);
    wait_until("there is room", || shaking() == 0);
    assert_eq!(house.client().send(chat("", false)).answer().status, 200);
}

#[test]
fn handshakes_of_one_address_keep_no_other_out() {
    let rest = "[limits]\nhandshakes = 4\n";
    let house = House::with("", Setup { rest, ..Setup::default() });
    let shaking = || house.proxy.shared().handshakes.load(Relaxed);
    // Silent, or in the middle of a hello.
    let mut silent: Vec<_> = (0..4).map(|_| Client::connect(house.proxy.addr())).collect();
    silent[1].send([22, 3, 1, 2, 0, 1]);
    wait_until("four are at it", || shaking() == 4);
    let mut others: Vec<_> =
        (0..2).map(|_| Client::connect_from("127.0.0.7", house.proxy.addr())).collect();
    for longest in &mut silent[..2] {
        assert!(longest.is_over(), "the longest of those who have more");
    }
    wait_until("two and two", || shaking() == 4);
    // Nobody has more of them than this one would.
    assert!(Client::connect_from("127.0.0.7", house.proxy.addr()).is_over());
    drop(others.drain(..));
    wait_until("they have left", || shaking() == 2);
    assert_eq!(house.client().send(chat("", false)).answer().status, 200);
}

#[test]
fn plain_http_to_a_tls_port_is_told_so() {
    let house = House::new();
    let long = post("/echo", "", noise(3, 300_000));
    for request in [get("/health", ""), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), long] {
        let mut client = Client::connect(house.proxy.addr());
        client.send(request);
        let answer = client.answer();
        assert_eq!((answer.status, answer.field("connection")), (400, Some("close")));
        assert!(answer.message().contains("HTTPS"), "{}", answer.message());
        assert!(client.is_over());
    }
    // Who waits for more is not waited for.
    wait_until("they are counted", || house.proxy.shared().handshakes_failed.load(Relaxed) == 3);
    house.proxy.wait_until_empty();
    assert_eq!(house.client().send(chat("", false)).answer().status, 200);
}

#[test]
fn what_is_neither_tls_nor_http_gets_an_alert_at_most() {
    let house = House::new();
    for bytes in
        [&b"\x16\x03\x01"[..], b"SSH-2.0-OpenSSH_9\r\n", b"get / HTTP/1.1\r\n\r\n", &[0; 50]]
    {
        let mut client = Client::connect(house.proxy.addr());
        client.send(bytes).end();
        let answer = client.rest().unwrap_or_default();
        assert!(answer.first().is_none_or(|first| *first == 21), "{answer:?}");
    }
    // A request inside a handshake that has begun is no request.
    let mut client = Client::connect(house.proxy.addr());
    let mut hello = Vec::new();
    session(&house.tls).write_tls(&mut hello).unwrap();
    client.send([&hello[..], &get("/health", "")].concat());
    let answer = client.rest().unwrap_or_default();
    assert!(!answer.windows(8).any(|part| part == b"HTTP/1.1"), "{answer:?}");
    wait_until("they are counted", || house.proxy.shared().handshakes_failed.load(Relaxed) == 5);
    assert_eq!(house.client().send(chat("", false)).answer().status, 200);
}

#[test]
fn an_upload_that_ends_without_a_word_is_no_upload() {
    // Whatever the framing; over TCP alone this client could not be told from an honest one.
    for request in [
        &b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin"[..],
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n",
    ] {
        let house = House::new();
        let mut client = house.client();
        client.send(request);
        house.mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("begun");
        client.end();
        house.mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("told");
        assert_eq!(house.mock.stats().aborted_total, 1);
        assert!(!house.mock.seen()[0].body_complete);
        drop(client);
        house.proxy.wait_until_empty();
    }
}

const OLD: &str = " HTTP/1.0\r\nHost: a\r\n\r\n";

#[test]
fn an_answer_that_ends_with_the_connection_ends_with_a_word() {
    let house = House::new();
    for bytes in [1_000usize, 3_000_000, 20_000_000] {
        let mut client = house.client();
        client.send(format!("GET /echo?mock=big={bytes},no_length{OLD}"));
        let answer = client.answer_any_version();
        assert_eq!(answer.map(|answer| answer.body.len()), Ok(bytes), "whole, with close_notify");
    }
}

#[test]
fn an_answer_that_is_cut_ends_without_a_word() {
    let house = House::new();
    for how in ["reset_after", "cut_after"] {
        let mut client = house.client();
        client.send(format!("GET /echo?mock=big=3_000_000,chunked,{how}=1_000_000{OLD}"));
        let why = client.answer_any_version().map(|answer| answer.body.len());
        let why = why.expect_err("it is cut");
        let cut = matches!(why, ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset);
        assert!(cut, "{how}: {why:?}");
    }
}

/// A client that reads little by little: the last words must not get lost behind full buffers.
#[test]
fn a_slow_reader_gets_the_last_word_too() {
    let house = House::new();
    for bytes in [4_000_000usize, 5_000_001, 6_123_457] {
        let mut client = house.client();
        client.send(format!("GET /echo?mock=big={bytes},no_length{OLD}"));
        wait_until("the answer has stalled or is all there", || {
            let before = house.mock.stats().written_bytes_total;
            std::thread::sleep(Duration::from_millis(100));
            house.mock.stats().written_bytes_total == before
        });
        let answer = client.answer_any_version();
        assert_eq!(answer.map(|answer| answer.body.len()), Ok(bytes));
    }
}

/// How a client leaves.
#[derive(Clone, Copy, Debug)]
enum Leave {
    /// close_notify and nothing else.
    Notify,
    /// An end of the TCP connection without a word.
    End,
    Reset,
}

/// Brings an exchange into a state, leaves in every way, and measures.
fn check(request: &[u8], begun: impl Fn(&MockStats) -> bool) {
    for how in [Leave::Notify, Leave::End, Leave::Reset] {
        let house = House::new();
        let mut client = house.client();
        let _ = client.try_send(request);
        house.mock.wait_until(LIMIT, &begun).expect("the state is reached");
        let left = Instant::now();
        let kept = match how {
            Leave::Notify => {
                client.notify_close();
                Some(client)
            }
            Leave::End => {
                client.end();
                Some(client)
            }
            Leave::Reset => {
                client.reset();
                None
            }
        };
        let told = house.mock.wait_until(LIMIT, |stats| stats.in_flight == 0);
        let stats = told.unwrap_or_else(|_| panic!("{how:?}: the upstream is not told"));
        let took = left.elapsed();
        assert!(took < PROMISE, "{how:?}, after {took:?}");
        assert_eq!(stats.aborted_total, 1);
        drop(kept);
        house.proxy.wait_until_empty();
    }
}

#[test]
fn stops_the_upstream_while_it_thinks() {
    check(&chat("x-mock: delay=60s\r\n", true), |stats| stats.in_flight == 1);
}

#[test]
fn stops_the_upstream_between_events_of_a_stream() {
    check(&chat("x-mock: interval=60s,tokens=100\r\n", true), |stats| stats.events_total >= 1);
}

#[test]
fn stops_the_upstream_in_a_quick_stream() {
    check(&chat("x-mock: interval=1ms,tokens=1000000\r\n", true), |stats| stats.events_total >= 50);
}

#[test]
fn stops_the_upstream_while_the_body_is_sent() {
    check(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin", |stats| {
        stats.in_flight == 1
    });
    check(
        b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n",
        |stats| stats.in_flight == 1,
    );
}

#[test]
fn stops_the_upstream_behind_pipelined_bytes() {
    let request = [chat("x-mock: delay=60s\r\n", true), get("/health", "")].concat();
    check(&request, |stats| stats.in_flight == 1);
}

#[test]
fn rubbish_inside_the_session_ends_it() {
    let house = House::new();
    let mut client = house.client();
    assert_eq!(client.send(chat("", false)).answer().status, 200);
    let mut stream = client.stream();
    // A record that was not sealed with our keys.
    stream.write_all(&[&[23, 3, 3, 0, 40][..], &[0; 40]].concat()).unwrap();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    house.proxy.wait_until_empty();
    assert_eq!(house.client().send(chat("", false)).answer().status, 200);
}
