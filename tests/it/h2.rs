//! RFC 9113 towards clients: what HTTP/1.1 promises holds for every stream.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use loadtest::mock::Mock;
use rustls::ClientConfig;

use super::h2_client::H2Client;
use super::h2_server::{H2Server, Ways};
use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::secure::Secure;
use super::wire::{Client, get, noise, sha256};

/// A proxy in front of one mock, and how to reach it.
pub(crate) struct House {
    pub(crate) mock: Mock,
    pub(crate) proxy: Proxy,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl House {
    /// Without TLS.
    pub(crate) fn plain(setup: Setup<'_>) -> House {
        let mock = mock();
        House { proxy: setup.start(&[&mock]), mock, tls: None }
    }

    /// With TLS.
    pub(crate) fn secure(setup: Setup<'_>) -> House {
        let (mock, secure) = (mock(), Secure::new());
        let proxy = secure.proxy("", setup, &[mock.url()]);
        House { mock, proxy, tls: Some(secure.client(&["h2"])) }
    }

    pub(crate) fn client(&self) -> H2Client {
        H2Client::connect(self.proxy.addr(), self.tls.as_ref())
    }

    /// A client in which one stream that is not read leaves room for the others.
    pub(crate) fn client_with_room(&self) -> H2Client {
        let mut builder = h2::client::Builder::new();
        builder.initial_connection_window_size(1 << 20);
        H2Client::with(self.proxy.addr(), self.tls.as_ref(), &builder)
    }
}

/// Both kinds, as they usually are.
pub(crate) fn both() -> [House; 2] {
    [House::plain(Setup::default()), House::secure(Setup::default())]
}

/// Waits until a count has not changed for a while, and returns it.
pub(crate) fn settled(count: impl Fn() -> u64) -> u64 {
    let (begun, mut last, mut since) = (Instant::now(), count(), Instant::now());
    while last == 0 || since.elapsed() < Duration::from_millis(300) {
        assert!(begun.elapsed() < LIMIT, "it never settles: {last}");
        std::thread::sleep(Duration::from_millis(5));
        let now = count();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

#[test]
fn requests_are_relayed_and_the_connection_goes_on() {
    for house in both() {
        let client = house.client();
        for turn in 0..20 {
            let body = format!("body {turn}");
            let answer = client.post("/echo?a=1", &[("x-a", "b")], &body).answer();
            assert_eq!((answer.status, answer.text()), (200, body));
            assert_eq!(client.chat("", false).answer().status, 200);
        }
        let seen = house.mock.seen();
        assert_eq!(seen[0].request_line(), "POST /echo?a=1 HTTP/1.1");
        assert_eq!(seen[0].field("x-a").as_deref(), Some("b"));
        let scheme = if house.tls.is_some() { "https" } else { "http" };
        assert_eq!(seen[0].field("x-forwarded-proto").as_deref(), Some(scheme));
        assert_eq!(seen[0].field("x-forwarded-for").as_deref(), Some("127.0.0.1"));
        assert!(seen[0].field("x-request-id").is_some());
        assert_eq!((seen.len(), house.mock.stats().connections_total), (40, 1));
        assert_eq!(house.proxy.connections(), 1);
        drop(client);
        house.proxy.wait_until_empty();
    }
}

#[test]
fn what_has_no_body_ends_with_its_head() {
    for house in both() {
        let client = house.client();
        for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
            let mock = format!("status={status}");
            let answer = client.open(method, "/echo", &[("x-mock", &mock)], true).answer();
            assert_eq!((answer.status, answer.body.len()), (status, 0), "{method}");
        }
        // Ours, in the dialect of the caller.
        let body = r#"{"model":"nobody"}"#;
        let answer = client.post("/v1/chat/completions", &[], body).answer();
        assert_eq!(answer.status, 404);
        assert!(answer.text().contains("Model 'nobody' not found"), "{}", answer.text());
        assert_eq!(answer.field("connection"), None);
        assert_eq!(client.get("/health", &[]).answer().text(), "{\"status\":\"ok\"}");
        let head = client.open("HEAD", "/nowhere", &[], true).answer();
        assert_eq!((head.status, head.body.len()), (404, 0));
        assert_eq!(client.chat("", false).answer().status, 200);
    }
}

#[test]
fn pieces_pass_one_by_one_both_ways() {
    for house in both() {
        let client = house.client();
        let mut stream = client.open("POST", "/echo?mock=duplex", &[], false);
        for turn in 0..20 {
            let piece = format!("piece {turn};");
            stream.send(piece.clone().into(), false).unwrap();
            if turn == 0 {
                assert_eq!(stream.head().unwrap().status(), 200);
            }
            // Each piece comes back before the next one is sent.
            assert_eq!(stream.through(";"), piece);
        }
        stream.send(Bytes::new(), true).unwrap();
        assert_eq!(stream.rest().unwrap(), b"");
    }
}

#[test]
fn events_leave_in_the_moment_they_come_in() {
    // The server sends an event when it is told to.
    let server = H2Server::start(Ways::default());
    let secure = Secure::new();
    let setup = Setup { upstream: "http2 = true\n", ..Setup::default() };
    let plain = (setup.start_on(&[server.url()]), None);
    let over_tls = (secure.proxy("", setup, &[server.url()]), Some(secure.client(&["h2"])));
    for (proxy, tls) in [plain, over_tls] {
        let client = H2Client::connect(proxy.addr(), tls.as_ref());
        let mut stream = client.get("/echo", &[("x-do", "sse=5")]);
        server.seen.go.add_permits(1);
        assert_eq!(stream.head().unwrap().headers()["content-type"], "text/event-stream");
        for at in 0..5 {
            assert_eq!(stream.through("\n\n"), format!("data: {at}\n\n"));
            server.seen.go.add_permits(usize::from(at < 4));
        }
        assert_eq!(stream.rest().unwrap(), b"");
        assert_eq!(stream.trailers().unwrap()["x-events"], "5");
    }
    for house in both() {
        let client = house.client();
        let mut stream = client.chat("interval=60s,tokens=100", true);
        assert_eq!(stream.head().unwrap().status(), 200);
        // The next one is a minute away.
        assert!(stream.through("\n\n").starts_with("data: {"));
    }
}

#[test]
fn an_expectation_is_met_and_interim_answers_pass() {
    for house in both() {
        let client = house.client();
        let path = "/v1/chat/completions";
        let fields = [("expect", "100-continue"), ("content-length", "13")];
        let mut stream = client.open("POST", path, &fields, false);
        assert_eq!(stream.interim().status(), 100);
        stream.send(r#"{"model":"m"}"#.into(), true).unwrap();
        assert_eq!(stream.head().unwrap().status(), 200);
        assert_eq!(house.mock.seen()[0].field("expect"), None);
        let mut stream = client.chat("interim=103", false);
        let hints = stream.interim();
        assert_eq!(hints.status(), 103);
        assert_eq!(hints.headers()["link"], "</a>; rel=preload");
        assert_eq!(stream.head().unwrap().status(), 200);
    }
}

#[test]
fn trailers_pass_both_ways() {
    for house in both() {
        let client = house.client();
        let fields = [("te", "trailers"), ("x-mock", "trailers,chunked")];
        let mut stream = client.open("POST", "/echo", &fields, false);
        stream.send("hello".into(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", "7".parse().unwrap());
        // What could change the head is left out.
        trailers.insert("content-length", "9".parse().unwrap());
        stream.send_trailers(trailers);
        let answer = stream.answer();
        assert_eq!(answer.text(), "hello");
        assert!(!answer.trailers.is_empty(), "{answer:?}");
        let seen = &house.mock.seen()[0];
        assert_eq!(String::from_utf8_lossy(&seen.trailers), "x-sum: 7\r\n");
        assert!(seen.body_complete);
    }
}

#[test]
fn a_hundred_streams_share_a_connection() {
    for house in both() {
        let client = house.client();
        let streams: Vec<_> = (0..100)
            .map(|n| client.post("/echo", &[("x-mock", "delay=2s")], &format!("body {n}")))
            .collect();
        house.mock.wait_until(LIMIT, |stats| stats.in_flight == 100).expect("all at once");
        for (n, stream) in streams.into_iter().enumerate() {
            let answer = stream.answer();
            assert_eq!((answer.status, answer.text()), (200, format!("body {n}")));
        }
        assert_eq!(house.proxy.connections(), 1);
    }
}

#[test]
fn no_more_streams_than_the_limit() {
    let rest = "[limits]\nh2 = { streams = 3 }\n";
    let house = House::plain(Setup { rest, ..Setup::default() });
    let client = house.client();
    assert_eq!(client.get("/health", &[]).answer().status, 200, "the settings have come");
    let mut open: Vec<_> = (0..3).map(|_| client.chat("delay=60s", false)).collect();
    house.mock.wait_until(LIMIT, |stats| stats.in_flight == 3).expect("three are open");
    // A fourth is opened by the client when one of them has ended.
    let fourth = std::thread::scope(|scope| {
        let fourth = scope.spawn(|| client.chat("", false).answer().status);
        open[0].reset();
        fourth.join().unwrap()
    });
    assert_eq!(fourth, 200);
    let stats = house.mock.stats();
    assert_eq!((stats.in_flight, stats.requests_total), (2, 4));
}

#[test]
fn big_bodies_pass_both_ways() {
    for house in both() {
        let client = house.client();
        let body = noise(3, 8 << 20);
        for fields in [&[("content-length", "8388608")][..], &[]] {
            let mut stream = client.open("POST", "/echo", fields, false);
            stream.send(body.clone().into(), true).unwrap();
            let answer = stream.answer();
            assert_eq!((answer.status, answer.body.len()), (200, body.len()));
            assert_eq!(sha256(&answer.body), sha256(&body));
        }
        let mut stream = client.open("POST", "/echo?mock=duplex", &[], false);
        // Half of it would never fit into all the buffers on the way.
        assert_eq!(sha256(&stream.both_ways(body.clone().into())), sha256(&body));
    }
}

/// A server that takes a connection and reads its head and nothing else until it is told.
fn lazy(listener: TcpListener) -> TcpStream {
    let (mut stream, _) = listener.accept().unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    stream
}

#[test]
fn an_upload_goes_no_further_than_the_server_reads() {
    const TOTAL: usize = 24 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // What the kernel holds for the server is the smallest part of it.
    socket2::SockRef::from(&listener).set_recv_buffer_size(64 << 10).unwrap();
    let proxy = Setup::default().start_on(&[format!("http://{}", listener.local_addr().unwrap())]);
    let client = H2Client::connect(proxy.addr(), None);
    let length = TOTAL.to_string();
    let mut stream = client.open("POST", "/echo", &[("content-length", &length)], false);
    let sent = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| stream.send_counted(noise(1, TOTAL).into(), true, &sent));
        let mut server = lazy(listener);
        let stalled = settled(|| sent.load(SeqCst));
        // A window, the pipe, one buffer, and the kernel's of one connection (tcp_wmem).
        let most = (256 << 10) + (16 << 10) + (64 << 10) + (5 << 20);
        assert!(stalled < most, "{stalled} of {TOTAL}");
        // Others are not held up by it.
        assert_eq!(client.get("/health", &[]).answer().status, 200);
        let mut body = vec![0; TOTAL];
        server.read_exact(&mut body).unwrap();
        assert_eq!(sha256(&body), sha256(&noise(1, TOTAL)));
        server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
        sending.join().unwrap().unwrap();
    });
    assert_eq!(stream.answer().text(), "ok");
}

#[test]
fn a_stream_that_is_not_read_holds_a_window_and_stops_nobody() {
    for house in both() {
        let client = house.client_with_room();
        let mut idle = client.get("/echo?mock=big=100_000_000,seed=5", &[]);
        assert_eq!(idle.head().unwrap().status(), 200);
        let written = settled(|| house.mock.stats().written_bytes_total);
        // The client's window, what h2 may queue, the pipe, and the kernel's buffers.
        assert!(written < 12 << 20, "{written}");
        for _ in 0..20 {
            assert_eq!(client.chat("", true).answer().status, 200);
        }
        assert_eq!(idle.rest().unwrap().len(), 100_000_000);
    }
}

#[test]
fn keys_let_in_and_keep_out() {
    let keys = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n[[key]]\nname = \"b\"\nkey = \"sk-b\"\nmodels = [\"other\"]\n";
    let setup = Setup { listener: "auth = \"keys\"\n", rest: keys, ..Setup::default() };
    for house in [House::plain(setup), House::secure(setup)] {
        let client = house.client();
        let body = r#"{"model":"m"}"#;
        for (key, status) in [("Bearer sk-a", 200), ("Bearer sk-b", 403), ("Bearer no", 401)] {
            let answer = client.post("/v1/chat/completions", &[("authorization", key)], body);
            assert_eq!(answer.answer().status, status, "{key}");
        }
        assert_eq!(client.post("/v1/chat/completions", &[], body).answer().status, 401);
        // The key is the client's and goes no further.
        let seen = house.mock.seen();
        assert_eq!((seen.len(), seen[0].field("authorization")), (1, None));
    }
}

#[test]
fn a_certificate_is_a_key() {
    let (mock, secure) = (mock(), Secure::new());
    let keys = "[[key]]\nname = \"app\"\n";
    let setup = Setup { listener: "auth = \"keys\"\n", rest: keys, ..Setup::default() };
    let proxy = secure.proxy(", client_ca = \"ca.pem\"", setup, &[mock.url()]);
    for (name, status) in [("app", 200), ("nobody", 401)] {
        let tls = secure.client_named(&["h2"], Some(name));
        let client = H2Client::connect(proxy.addr(), Some(&tls));
        for _ in 0..3 {
            assert_eq!(client.chat("", false).answer().status, status, "{name}");
        }
    }
}

#[test]
fn an_early_answer_ends_the_upload() {
    for (house, status) in both().into_iter().flat_map(|house| {
        let house = std::rc::Rc::new(house);
        [(house.clone(), 413), (house, 401)]
    }) {
        let client = house.client();
        let fields = [("x-mock", format!("early={status}"))];
        let fields = [(fields[0].0, fields[0].1.as_str())];
        let mut stream = client.open("POST", "/echo", &fields, false);
        // It is cut off once the answer is there.
        let _ = stream.send(noise(1, 600_000).into(), false);
        let answer = stream.try_answer().expect("whole");
        assert_eq!(answer.status, status);
        assert!(String::from_utf8_lossy(&answer.body).contains("before the end of the request"));
        assert_eq!(client.chat("", false).answer().status, 200, "the connection goes on");
        house.mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("over");
    }
}

#[test]
fn a_body_beyond_the_limit_is_refused_while_it_comes() {
    let rest = "[limits]\nbody = \"1MiB\"\nbody_held = \"1MiB\"\n";
    let setup = Setup { rest, ..Setup::default() };
    for house in [House::plain(setup), House::secure(setup)] {
        let client = house.client();
        let path = "/v1/chat/completions";
        let mut stream = client.open("POST", path, &[("content-length", "9000000")], false);
        assert_eq!(stream.try_answer().expect("whole").status, 413);
        let mut stream = client.open("POST", path, &[], false);
        let _ = stream.send(vec![b' '; 3 << 20].into(), false);
        assert_eq!(stream.try_answer().expect("whole").status, 413);
        assert_eq!(client.chat("", false).answer().status, 200);
    }
}

#[test]
fn both_versions_share_a_listener() {
    let house = House::plain(Setup::default());
    let (client, mut other) = (house.client(), Client::connect(house.proxy.addr()));
    for _ in 0..5 {
        assert_eq!(client.chat("", true).answer().status, 200);
        assert_eq!(other.send(get("/health", "")).answer().status, 200);
    }
    // A preface that comes byte by byte is one, and what only begins like one is not.
    let mut slow = Client::connect(house.proxy.addr());
    slow.send_bytewise(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    slow.send([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    assert_eq!(slow.some().get(3), Some(&4), "settings");
    let mut odd = Client::connect(house.proxy.addr());
    odd.send("PRI * HTTP/2.0\r\n\r\nSX");
    assert_eq!(odd.answer().status, 505);
    wait_until("both are open", || house.proxy.connections() >= 3);
}
