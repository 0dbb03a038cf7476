//! rules §9 over HTTP/2: clients that leave, streams that end too early, connections that end.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use loadtest::mock::MockStats;

use super::h2::{House, both};
use super::h2_client::{H2Client, Stream};
use super::house::{LIMIT, Setup, wait_until};

/// As in `abort`.
const PROMISE: Duration = Duration::from_secs(1);

/// Brings streams into a state, gives them up one by one and all at once, and measures.
fn check(open: impl Fn(&H2Client) -> Stream, begun: impl Fn(&MockStats) -> bool) {
    for house in both() {
        let client = house.client();
        let mut stream = open(&client);
        house.mock.wait_until(LIMIT, &begun).expect("the state is reached");
        let left = Instant::now();
        stream.reset();
        gone(&house, left, 1);
        assert_eq!(client.chat("", false).answer().status, 200, "the connection goes on");
        // The connection itself, with several such streams.
        let streams: Vec<_> = (0..8).map(|_| open(&client)).collect();
        house.mock.wait_until(LIMIT, |stats| stats.in_flight == 8).expect("all have begun");
        let left = Instant::now();
        drop(client);
        gone(&house, left, 9);
        drop(streams);
        house.proxy.wait_until_empty();
    }
}

fn gone(house: &House, left: Instant, aborted: u64) {
    let stats = house.mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("it is told");
    let took = left.elapsed();
    assert!(took < PROMISE, "after {took:?}");
    assert_eq!(stats.aborted_total, aborted);
}

#[test]
fn stops_the_upstream_while_it_thinks() {
    check(|client| client.chat("delay=60s", true), |stats| stats.in_flight == 1);
}

#[test]
fn stops_the_upstream_between_events() {
    check(|client| client.chat("interval=60s,tokens=100", true), |stats| stats.events_total >= 1);
}

#[test]
fn stops_the_upstream_in_a_quick_stream() {
    let open = |client: &H2Client| {
        let mut stream = client.chat("interval=1ms,tokens=1000000", true);
        stream.head().unwrap();
        stream
    };
    check(open, |stats| stats.events_total >= 20);
}

#[test]
fn stops_the_upstream_while_the_body_is_sent() {
    for fields in [&[("content-length", "1000000")][..], &[]] {
        let open = |client: &H2Client| {
            let mut stream = client.open("POST", "/echo", fields, false);
            stream.send("begin".into(), false).unwrap();
            stream
        };
        check(open, |stats| stats.in_flight == 1);
    }
}

#[test]
fn stops_the_upstream_of_a_stream_that_is_not_read() {
    for house in both() {
        let client = house.client();
        let mut stream = client.get("/echo?mock=big=1_000_000_000", &[]);
        stream.head().unwrap();
        super::h2::settled(|| house.mock.stats().written_bytes_total);
        let left = Instant::now();
        stream.reset();
        gone(&house, left, 1);
        let mut stream = client.get("/echo?mock=big=1_000_000_000", &[]);
        stream.head().unwrap();
        super::h2::settled(|| house.mock.stats().written_bytes_total);
        let left = Instant::now();
        drop(client);
        gone(&house, left, 2);
        house.proxy.wait_until_empty();
    }
}

#[test]
fn what_a_lost_connection_held_is_given_back() {
    let setup = Setup { upstream: "concurrency = 40\n", ..Setup::default() };
    let house = House::plain(setup);
    for round in 1..=3u64 {
        let client = house.client();
        let streams: Vec<_> = (0..40).map(|_| client.chat("delay=60s", true)).collect();
        // All places are taken: the next one is refused.
        house.mock.wait_until(LIMIT, |stats| stats.in_flight == 40).expect("all have begun");
        assert_eq!(client.chat("", false).answer().status, 503);
        drop(client);
        house.mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("all are let go");
        house.proxy.wait_until_empty();
        drop(streams);
        wait_until("all are accounted for", || house.proxy.counters().exchanges == 41 * round);
        assert_eq!(house.mock.stats().aborted_total, 40 * round);
    }
    assert_eq!(house.proxy.shared().held.taken(), 0);
}

/// Many streams that nobody reads cost what one connection may have, and lose nothing.
#[test]
fn streams_that_are_not_read_share_what_a_connection_may_have() {
    const STREAMS: u64 = 60;
    const BYTES: usize = 400_000;
    // The first have room for whole buffers; then for none.
    let rest = "[limits]\nh2 = { window = \"64KiB\", connection_window = \"256KiB\" }\n";
    let house = House::plain(Setup { rest, ..Setup::default() });
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(20_000).initial_connection_window_size(16 << 20);
    let client = H2Client::with(house.proxy.addr(), None, &builder);
    for framing in ["", ",chunked", ",no_length"] {
        let ask = || client.get(&format!("/echo?mock=big={BYTES},seed=7{framing}"), &[]);
        let mut streams: Vec<_> = (0..STREAMS).map(|_| ask()).collect();
        streams.iter_mut().for_each(|stream| assert_eq!(stream.head().unwrap().status(), 200));
        super::h2::settled(|| house.mock.stats().written_bytes_total);
        let unsent = house.proxy.shared().unsent.bytes();
        assert!((100_000..=256 << 10).contains(&unsent), "{framing}: {unsent}");
        // Another client is not worse off for it.
        let other = house.client();
        assert_eq!(other.get("/echo?mock=big=100000", &[]).answer().body.len(), 100_000);
        let bodies: Vec<_> = streams.iter_mut().map(|stream| stream.rest().unwrap()).collect();
        assert_eq!(bodies[0].len(), BYTES);
        for body in &bodies {
            let differs = body.iter().zip(&bodies[0]).position(|(a, b)| a != b);
            assert_eq!((body.len(), differs), (BYTES, None), "{framing}");
        }
        wait_until("nothing waits", || house.proxy.shared().unsent.bytes() == 0);
    }
    // Neither do streams that end unread leave anything.
    let streams: Vec<_> = (0..STREAMS).map(|_| client.get("/echo?mock=big=400000", &[])).collect();
    super::h2::settled(|| house.mock.stats().written_bytes_total);
    drop((client, streams));
    wait_until("nothing waits", || house.proxy.shared().unsent.bytes() == 0);
}

/// What counts is how long a client reads nothing, not how long it takes for what is here.
#[test]
fn a_stream_that_is_read_slowly_is_not_cut() {
    let listener = "timeouts = { client_write_idle = \"600ms\" }\n";
    let house = House::plain(Setup { listener, ..Setup::default() });
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(2000);
    let client = H2Client::with(house.proxy.addr(), None, &builder);
    let mut stream = client.get("/echo?mock=big=40000", &[]);
    assert_eq!(stream.head().unwrap().status(), 200);
    let (begun, mut bytes) = (Instant::now(), 0);
    while let Some(data) = stream.data() {
        bytes += data.expect("it is not cut").len();
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(bytes, 40_000);
    assert!(begun.elapsed() > Duration::from_millis(1200), "it was no slow reader");
}

#[test]
fn a_server_that_dies_midway_resets_the_stream() {
    for house in both() {
        let client = house.client();
        // 1000 bytes of more.
        for how in ["cut_after=1000,big=100000", "cut_after=1000,big=100000,chunked"] {
            let mut stream = client.get("/echo", &[("x-mock", how)]);
            assert_eq!(stream.head().unwrap().status(), 200);
            let (body, why) = stream.rest().expect_err("it is cut");
            assert!(body.len() < 100_000 && why.is_reset(), "{how}: {} {why}", body.len());
        }
        for how in ["reset_after=3,interval=5ms", "reset_after=3"] {
            let mut stream = client.chat(how, true);
            assert_eq!(stream.head().unwrap().status(), 200);
            let (body, why) = stream.rest().expect_err("it is cut");
            let text = String::from_utf8(body).unwrap();
            assert!(why.is_reset() && text.starts_with("data: {"), "{how}: {text}");
            let last = text.trim_end().rsplit("\n\n").next().unwrap();
            assert!(last.starts_with("data: {\"error\":{"), "{how}: {text}");
        }
        assert_eq!(client.chat("drop", false).answer().status, 502, "before it began");
        assert_eq!(client.chat("", false).answer().status, 200, "the connection goes on");
    }
}

#[test]
fn a_drain_lets_streams_end_and_opens_no_more() {
    for house in both() {
        let (client, idle) = (house.client(), house.client());
        assert_eq!(idle.chat("", false).answer().status, 200);
        let mut stream = client.chat("interval=30ms,tokens=20", true);
        stream.head().unwrap();
        stream.through("\n\n");
        let addr = house.proxy.addr();
        house.proxy.drain();
        idle.end().expect("GOAWAY without an error");
        wait_until("nobody listens any more", || TcpStream::connect(addr).is_err());
        // The client has been told by now: it may not even try.
        let refused = client.try_open("GET", "/health", &[], true);
        assert!(refused.and_then(|mut late| late.head()).is_err(), "no new stream");
        let rest = stream.rest().expect("it ends well");
        assert!(rest.ends_with(b"data: [DONE]\n\n"));
        client.end().expect("GOAWAY without an error");
        assert_eq!(house.mock.stats().aborted_total, 0);
        let House { proxy, .. } = house;
        proxy.join();
    }
}

#[test]
fn an_idle_connection_ends_after_client_keepalive() {
    let listener = "timeouts = { client_keepalive = \"300ms\" }\n";
    let setup = Setup { listener, ..Setup::default() };
    for house in [House::plain(setup), House::secure(setup)] {
        let (never, client) = (house.client(), house.client());
        let begun = Instant::now();
        never.end().expect("GOAWAY without an error");
        assert!(begun.elapsed() >= Duration::from_millis(250), "{:?}", begun.elapsed());
        client.end().expect("GOAWAY without an error");
        assert!(client.try_open("GET", "/health", &[], true).is_err(), "it was told");
        // A stream keeps it, however quiet, and then the time begins anew.
        let client = house.client();
        assert_eq!(client.chat("delay=1s", false).answer().status, 200);
        assert_eq!(client.chat("", false).answer().status, 200);
        client.end().expect("GOAWAY without an error");
        house.proxy.wait_until_empty();
    }
}

#[test]
fn a_stream_that_is_not_read_is_reset_after_client_write_idle() {
    let listener = "timeouts = { client_write_idle = \"400ms\" }\n";
    let setup = Setup { listener, ..Setup::default() };
    for house in [House::plain(setup), House::secure(setup)] {
        let client = house.client_with_room();
        // More than the window, and an answer whose rest fits into the pipe.
        for bytes in [1_000_000_000, 70_000] {
            let mut stream = client.get(&format!("/echo?mock=big={bytes}"), &[]);
            stream.head().unwrap();
            house.mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("let go");
            stream.reset_by_peer();
            // Meanwhile others may have gone on.
            assert_eq!(client.chat("", false).answer().status, 200);
        }
        drop(client);
        house.proxy.wait_until_empty();
    }
}

#[test]
fn a_body_that_stops_coming_is_a_408() {
    let listener = "timeouts = { client_body_idle = \"300ms\" }\n";
    let setup = Setup { listener, ..Setup::default() };
    for house in [House::plain(setup), House::secure(setup)] {
        let client = house.client();
        for fields in [&[("content-length", "100")][..], &[]] {
            let mut stream = client.open("POST", "/v1/chat/completions", fields, false);
            stream.send("{\"mod".into(), false).unwrap();
            assert_eq!(stream.try_answer().expect("whole").status, 408);
        }
        assert_eq!(client.chat("", false).answer().status, 200, "the connection goes on");
    }
}

#[test]
fn resets_that_come_now_and_then_are_no_flood() {
    let house = House::plain(Setup::default());
    let client = house.client();
    for _ in 0..60 {
        client.chat("delay=60s", true).reset();
        assert_eq!(client.chat("", false).answer().status, 200);
    }
    wait_until("all are let go", || house.mock.stats().in_flight == 0);
}
