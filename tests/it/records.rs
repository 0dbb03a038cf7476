//! rules §13: every exchange leaves one record, and what stands in it is what happened.
//!
//! The records are taken where the access log takes them: by `Shared::on_finished`.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use loadtest::mock::Mock;
use tokenring::testing::error::Kind;
use tokenring::testing::telemetry::finished::Finished;
use tokenring::testing::telemetry::outcome::{EndedBy, Outcome, RouteKind};

use super::h2_client::H2Client;
use super::house::{LIMIT, Proxy, Setup, house, mock, wait_until};
use super::scripted::{Conn, OK, Scripted};
use super::wire::{Client, chat, get, noise, post, post_chunked};

/// A record that outlives its exchange.
#[derive(Clone, Debug)]
struct Row {
    id: String,
    client: String,
    key: String,
    listener: String,
    asked: String,
    group: String,
    model: String,
    model_sent: String,
    upstream: String,
    failures: Vec<(String, Kind, u16)>,
    outcome: Outcome,
}

impl Row {
    fn of(finished: &Finished<'_>) -> Row {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let failures = finished.failures.iter();
        Row {
            id: finished.request_id.to_owned(),
            client: finished.client.map(|ip| ip.to_string()).unwrap_or_default(),
            key: finished.key.to_owned(),
            listener: finished.listener.to_owned(),
            asked: format!("{} {}", text(finished.method), text(finished.path)),
            group: finished.group.to_owned(),
            model: text(finished.model),
            model_sent: text(finished.model_sent),
            upstream: finished.upstream.to_owned(),
            failures: failures.map(|f| (f.upstream.to_string(), f.kind, f.status)).collect(),
            outcome: *finished.outcome,
        }
    }

    /// Status sent, who ended it and why, attempts.
    fn end(&self) -> (u16, EndedBy, Option<Kind>, u32) {
        let outcome = &self.outcome;
        let why = outcome.fault.map(|fault| fault.kind);
        (outcome.status, outcome.ended_by(), why, outcome.attempts)
    }

    /// Body bytes from and to the client.
    fn bytes(&self) -> (u64, u64) {
        (self.outcome.request_bytes, self.outcome.sent_bytes())
    }
}

/// The records of one proxy, as they come.
struct Records(Arc<Mutex<Vec<Row>>>);

impl Records {
    fn of(proxy: &Proxy) -> Records {
        let rows = Arc::new(Mutex::new(Vec::new()));
        let kept = rows.clone();
        let listen = move |finished: &Finished<'_>| kept.lock().unwrap().push(Row::of(finished));
        assert!(proxy.shared().on_finished.set(Box::new(listen)).is_ok());
        Records(rows)
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// The one record that there is, or comes; it is taken.
    fn one(&self) -> Row {
        wait_until("a record comes", || self.len() > 0);
        let mut rows = self.0.lock().unwrap();
        assert_eq!(rows.len(), 1, "{rows:#?}");
        rows.remove(0)
    }
}

const ENDED_WELL: (EndedBy, Option<Kind>) = (EndedBy::Nobody, None);

fn well(status: u16, attempts: u32) -> (u16, EndedBy, Option<Kind>, u32) {
    (status, ENDED_WELL.0, ENDED_WELL.1, attempts)
}

fn refused(status: u16, kind: Kind, attempts: u32) -> (u16, EndedBy, Option<Kind>, u32) {
    (status, EndedBy::Proxy, Some(kind), attempts)
}

/// An address that refuses connections.
fn nobody() -> String {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_plain_exchange_is_told_with_all_its_facts() {
    let mock = mock();
    let key = "[[key]]\nname = \"k\"\nkey = \"sk-1\"\n\
        [models.\"short\"]\ngroup = \"chat\"\nupstream_model = \"m-long\"\n";
    let proxy =
        Setup { listener: "auth = \"keys\"", rest: key, ..Setup::default() }.start(&[&mock]);
    let records = Records::of(&proxy);
    let mut client = proxy.client();
    let fields = "Authorization: Bearer sk-1\r\nX-Request-Id: r-1\r\n";
    let body = "{\"model\":\"short\",\"messages\":[]}";
    let mut answer = client.send(post("/v1/chat/completions?x=secret", fields, body)).answer();
    let row = records.one();
    assert_eq!(row.end(), well(200, 1), "{row:?}");
    assert_eq!(row.bytes(), (body.len() as u64, answer.body.len() as u64));
    assert_eq!((&*row.id, &*row.client, &*row.key), ("r-1", "127.0.0.1", "k"));
    assert_eq!((&*row.listener, &*row.group, &*row.upstream), ("main", "chat", "gpu0"));
    assert_eq!(row.asked, "POST /v1/chat/completions");
    assert_eq!((&*row.model, &*row.model_sent), ("short", "m-long"));
    let outcome = row.outcome;
    assert_eq!((outcome.route, outcome.upstream_status), (RouteKind::Model, 200));
    assert_eq!((outcome.reused, outcome.head_us, outcome.held_us), (false, 0, None));
    assert!(outcome.prompt_tokens.is_some() && outcome.completion_tokens.is_some());
    let phases = [
        outcome.picked_us,
        outcome.connected_us,
        outcome.sent_us,
        outcome.first_byte_us,
        Some(outcome.duration_us),
    ];
    assert!(phases.is_sorted() && phases[0].is_some(), "{phases:?}");
    // The next one on the same connections: nothing of the first is left.
    answer = client.send(get("/echo", "Authorization: Bearer sk-1\r\n")).answer();
    let row = records.one();
    assert_eq!((row.end(), row.bytes()), (well(200, 1), (0, answer.body.len() as u64)));
    assert_eq!((&*row.asked, &*row.model, &*row.model_sent), ("GET /echo", "", ""));
    assert_eq!((row.outcome.route, row.outcome.reused), (RouteKind::Path, true));
    assert_eq!((row.outcome.connected_us, row.outcome.completion_tokens), (None, None));
}

#[test]
fn a_stream_counts_what_the_client_reads_and_its_first_token() {
    let (_mock, proxy) = house();
    let records = Records::of(&proxy);
    let answer = proxy.client().send(chat("x-mock: tokens=9,interval=1ms\r\n", true)).answer();
    let row = records.one();
    assert_eq!((row.end(), row.outcome.streamed), (well(200, 1), true));
    assert_eq!(row.outcome.sent_bytes(), answer.body.len() as u64);
    let first = row.outcome.first_token_us.expect("a token has passed");
    assert!(row.outcome.first_byte_us <= Some(first) && first <= row.outcome.duration_us);
    // Over HTTP/2 no frame head and no chunk counts either.
    let answer = H2Client::connect(proxy.addr(), None).chat("tokens=9,interval=1ms", true).answer();
    let row = records.one();
    assert_eq!((row.end(), row.outcome.sent_bytes()), (well(200, 1), answer.body.len() as u64));
}

#[test]
fn an_upload_beyond_what_is_held_counts_whole_and_without_its_chunks() {
    let mock = mock();
    let process = "cores = 1\n[limits]\nbody_held = \"16KiB\"\n";
    let proxy = Setup { process, ..Setup::default() }.start(&[&mock]);
    let records = Records::of(&proxy);
    let pieces: Vec<Vec<u8>> = (0..40).map(|n| noise(n, 5_000 + n as usize)).collect();
    let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
    let bytes: usize = pieces.iter().map(|piece| piece.len()).sum();
    // Piece by piece, so that most of it comes after the hold.
    let request = post_chunked("/echo", "", &pieces);
    let mut client = proxy.client();
    for slice in request.chunks(20_000) {
        client.send(slice);
    }
    let answer = client.answer();
    let row = records.one();
    assert_eq!((row.end(), row.bytes()), (well(200, 1), (bytes as u64, answer.body.len() as u64)));
    // With a length the kernel moves the bytes.
    let body = noise(1, 3_000_000);
    let answer = client.send(post("/echo", "", &body)).answer();
    let row = records.one();
    let expected = (body.len() as u64, answer.body.len() as u64);
    assert_eq!((row.end(), row.bytes()), (well(200, 1), expected));
    assert!(row.outcome.sent_us.is_some());
    // Over HTTP/2.
    let client = H2Client::connect(proxy.addr(), None);
    let mut stream = client.open("POST", "/echo", &[], false);
    stream.send(Bytes::from(body.clone()), true).unwrap();
    let answer = stream.answer();
    assert_eq!(records.one().bytes(), (body.len() as u64, answer.body.len() as u64));
}

#[test]
fn a_body_that_is_waited_for_is_told_by_when_it_was_here() {
    let (_mock, proxy) = house();
    let records = Records::of(&proxy);
    let mut client = proxy.client();
    let request = chat("", false);
    let (head, body) = request.split_at(request.len() - 10);
    client.send(head);
    std::thread::sleep(Duration::from_millis(30));
    client.send(body).answer();
    let outcome = records.one().outcome;
    let held = outcome.held_us.expect("it was waited for");
    assert!(held >= 20_000 && outcome.picked_us >= Some(held), "{outcome:?}");
    // A head in pieces.
    client.send(&request[..20]);
    std::thread::sleep(Duration::from_millis(30));
    client.send(&request[20..]).answer();
    let outcome = records.one().outcome;
    assert!(outcome.head_us >= 20_000, "{outcome:?}");
}

#[test]
fn a_refused_head_is_told_with_the_status_that_the_client_saw() {
    let mock = mock();
    let process = "cores = 1\n[limits]\nhead = \"4KiB\"\nbody = \"100KiB\"\nfields = 20\n";
    let listener = "[listener.timeouts]\nclient_head = \"300ms\"\n";
    let proxy = Setup { process, listener, ..Setup::default() }.start(&[&mock]);
    let records = Records::of(&proxy);
    let large = format!("x: {}\r\n", "y".repeat(5_000));
    let many = "x: y\r\n".repeat(30);
    let cases: &[(Vec<u8>, Kind, &str)] = &[
        (b"GET / HTTP/1.1\r\nbad field\r\n\r\n".to_vec(), Kind::HeadMalformed, " "),
        (get("/echo", &large), Kind::HeadTooLarge, " "),
        (get("/echo", &many), Kind::FieldsTooMany, " "),
        (b"GET / HTTP/3.0\r\n\r\n".to_vec(), Kind::VersionUnsupported, " "),
        (b"GET /echo HTTP/1.1\r\nHost: a\r\nx".to_vec(), Kind::HeadTimeout, " "),
        (get("/nothing", ""), Kind::RouteNotFound, "GET /nothing"),
        (post("/echo", "", noise(1, 200_000)), Kind::BodyTooLarge, "POST /echo"),
        (post("/v1/chat/completions", "", "{"), Kind::JsonInvalid, "POST /v1/chat/completions"),
        (
            post("/v1/chat/completions", "", "{\"model\":\"z\"}"),
            Kind::ModelNotFound,
            "POST /v1/chat/completions",
        ),
        (b"TRACE /echo HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), Kind::MethodRefused, "TRACE /echo"),
    ];
    for (request, kind, asked) in cases {
        let mut client = proxy.client();
        let _ = client.try_send(request);
        let answer = client.answer();
        let row = records.one();
        let status = kind.row().status.unwrap();
        assert_eq!(answer.status, status, "{kind:?}");
        let (seen, _, why, attempts) = row.end();
        assert_eq!((seen, why, attempts), (status, Some(*kind), 0), "{row:?}");
        let timed = *kind == Kind::HeadTimeout;
        let by = if timed { EndedBy::Timeout } else { EndedBy::Proxy };
        assert_eq!(row.outcome.ended_by(), by, "{kind:?}");
        assert_eq!(timed, row.outcome.head_us >= 200_000, "{row:?}");
        assert_eq!(row.outcome.sent_bytes(), answer.body.len() as u64, "{kind:?}");
        assert_eq!((&*row.asked, &*row.listener), (*asked, "main"));
        assert_eq!(answer.field("x-request-id"), Some(&*row.id));
    }
    let row = {
        let body = "{\"model\":\"z\"}";
        proxy.client().send(post("/v1/chat/completions", "", body)).answer();
        records.one()
    };
    assert_eq!((&*row.model, row.outcome.request_bytes), ("z", 13));
    // Each was counted with that status.
    let counters = proxy.shared();
    wait_until("all are counted", || counters.counters_sum().exchanges == cases.len() as u64 + 1);
    assert_eq!(counters.counters_sum().by_class, [0, 0, 0, 0, cases.len() as u64, 1]);
}

#[test]
fn our_own_answers_are_told_too() {
    let (_mock, proxy) = house();
    let records = Records::of(&proxy);
    let mut client = proxy.client();
    for path in ["/health", "/v1/models"] {
        let answer = client.send(get(path, "")).answer();
        let row = records.one();
        assert_eq!((row.end(), row.bytes()), (well(200, 0), (0, answer.body.len() as u64)));
    }
    let head = "HEAD /health HTTP/1.1\r\nHost: a\r\n\r\n";
    client.send(head).answer_to("HEAD");
    assert_eq!(records.one().bytes(), (0, 0));
}

#[test]
fn refusals_over_http2_are_told() {
    let mock = mock();
    let process = "cores = 1\n[limits]\nfields = 20\n";
    let proxy = Setup { process, ..Setup::default() }.start(&[&mock]);
    let records = Records::of(&proxy);
    let client = H2Client::connect(proxy.addr(), None);
    // By the exchange.
    let answer = client.get("/nothing", &[]).answer();
    assert_eq!(answer.status, 404);
    let row = records.one();
    assert_eq!(row.end(), refused(404, Kind::RouteNotFound, 0));
    assert_eq!(row.outcome.sent_bytes(), answer.body.len() as u64);
    // Before there is a head of HTTP/1.1, with a status.
    let names: Vec<String> = (0..30).map(|n| format!("x-{n}")).collect();
    let fields: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "v")).collect();
    assert_eq!(client.get("/echo", &fields).answer().status, 431);
    let row = records.one();
    assert_eq!(row.end(), refused(431, Kind::FieldsTooMany, 0));
    assert_eq!((&*row.asked, &*row.listener, &*row.client), ("GET /echo", "main", "127.0.0.1"));
    assert_eq!(row.id.len(), 23);
    // And by a reset.
    let mut stream = client.get("/echo", &[("host", "a"), ("host", "b")]);
    assert_eq!(stream.reset_by_peer(), Reason::PROTOCOL_ERROR);
    assert_eq!(records.one().end(), refused(0, Kind::HeadMalformed, 0));
}

#[test]
fn a_client_that_leaves_is_told_with_what_it_was_sent() {
    let (mock, proxy) = house();
    let records = Records::of(&proxy);
    let begun = |requests| {
        mock.wait_until(LIMIT, |stats| stats.requests_total == requests).expect("in flight");
    };
    // While its body is waited for.
    let mut client = proxy.client();
    client.send("POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{\"mo");
    std::thread::sleep(Duration::from_millis(20));
    drop(client);
    let row = records.one();
    assert_eq!(row.end(), (0, EndedBy::Client, Some(Kind::ClientGone), 0));
    assert_eq!((row.outcome.status_told(), row.bytes()), (499, (4, 0)));
    // Before the first byte of an answer.
    for reset in [false, true] {
        let mut client = proxy.client();
        client.send(chat("x-mock: delay=60s\r\n", false));
        begun(1 + u64::from(reset));
        leave(client, reset);
        let row = records.one();
        assert_eq!(row.end(), (0, EndedBy::Client, Some(Kind::ClientGone), 1));
        assert_eq!((row.outcome.status_told(), row.outcome.upstream_status), (499, 0));
        assert_eq!((row.outcome.sent_bytes(), row.outcome.first_byte_us), (0, None));
    }
    // After it.
    let mut client = proxy.client();
    client.send(chat("x-mock: tokens=100,interval=0,stall_after=3\r\n", true));
    let head = client.through(b"\r\n\r\n").unwrap();
    assert!(head.starts_with(b"HTTP/1.1 200"));
    client.some();
    leave(client, false);
    let row = records.one();
    assert_eq!(row.end(), (200, EndedBy::Client, Some(Kind::ClientGone), 1));
    assert!(row.outcome.sent_bytes() > 0 && row.outcome.status_told() == 200, "{row:?}");
    // Over HTTP/2.
    let client = H2Client::connect(proxy.addr(), None);
    let mut stream = client.chat("delay=60s", false);
    begun(4);
    stream.reset();
    let row = records.one();
    assert_eq!(row.end(), (0, EndedBy::Client, Some(Kind::ClientGone), 1));
}

fn leave(client: Client, reset: bool) {
    if reset {
        client.reset();
    } else {
        drop(client);
    }
}

#[test]
fn a_server_that_dies_in_its_answer_is_told_with_the_status_that_went_out() {
    let (_mock, proxy) = house();
    let records = Records::of(&proxy);
    let mut client = proxy.client();
    client.send(chat("x-mock: tokens=100,interval=0,cut_after=5\r\n", true));
    let broken = client.try_answer().expect_err("it is no whole answer");
    let row = records.one();
    assert_eq!(row.end(), (200, EndedBy::Upstream, Some(Kind::UpstreamTruncated), 1));
    // The event that tells of it is an answer of ours, and counts.
    assert_eq!(row.outcome.sent_bytes(), broken.body.len() as u64);
    let mut client = proxy.client();
    client.send(get("/echo?mock=big=1000000,cut_after=500000", ""));
    let broken = client.try_answer().expect_err("it is no whole answer");
    let row = records.one();
    assert_eq!(row.end(), (200, EndedBy::Upstream, Some(Kind::UpstreamTruncated), 1));
    assert_eq!(row.outcome.sent_bytes(), broken.body.len() as u64);
}

#[test]
fn a_server_that_gives_no_answer_is_told_with_our_status() {
    let (_mock, proxy) = house();
    let records = Records::of(&proxy);
    for (mock, kind) in [("drop", Kind::UpstreamReset), ("garbage", Kind::UpstreamBadHttp)] {
        let answer = proxy.client().send(chat(&format!("x-mock: {mock}\r\n"), false)).answer();
        assert_eq!(answer.status, 502);
        let row = records.one();
        assert_eq!(row.end(), (502, EndedBy::Upstream, Some(kind), 1));
        assert_eq!(row.failures, [("gpu0".to_owned(), kind, 0)]);
        assert_eq!((&*row.upstream, row.outcome.upstream_status), ("gpu0", 0));
        assert_eq!(row.outcome.sent_bytes(), answer.body.len() as u64);
    }
}

#[test]
fn a_retry_is_told_with_each_attempt_and_the_server_that_answered() {
    let (bad, good) = (mock(), mock());
    bad.behave("status=503");
    let group = "balance = \"failover\"\nretry = { on = [\"connect\", \"503\"] }\n";
    let urls = [nobody(), bad.url(), good.url()];
    let proxy = Setup { group, ..Setup::default() }.start_on(&urls);
    let records = Records::of(&proxy);
    let answer = proxy.client().send(chat("", false)).answer();
    assert_eq!(answer.status, 200);
    let row = records.one();
    assert_eq!(row.end(), well(200, 3));
    assert_eq!((&*row.upstream, row.outcome.upstream_status), ("gpu2", 200));
    let expected = [
        ("gpu0".to_owned(), Kind::UpstreamConnect, 0),
        ("gpu1".to_owned(), Kind::NobodyAvailable, 503),
    ];
    assert_eq!(row.failures, expected);
    assert_eq!(row.outcome.sent_bytes(), answer.body.len() as u64);
}

#[test]
fn a_wait_that_runs_out_is_told_with_its_time() {
    let mock: Mock = mock();
    let (upstream, group) = ("concurrency = 1\n", "queue = { length = 9, wait = \"200ms\" }\n");
    let proxy = Setup { upstream, group, ..Setup::default() }.start(&[&mock]);
    let records = Records::of(&proxy);
    let mut held = proxy.client();
    held.send(chat("x-mock: delay=60s\r\n", false));
    mock.wait_until(LIMIT, |stats| stats.requests_total == 1).expect("in flight");
    assert_eq!(proxy.client().send(chat("", false)).answer().status, 503);
    let row = records.one();
    assert_eq!(row.end(), refused(503, Kind::QueueTimeout, 0));
    assert!(row.outcome.queue_us >= 200_000, "{row:?}");
    assert_eq!((&*row.group, &*row.upstream, row.outcome.picked_us), ("chat", "", None));
}

#[test]
fn a_deadline_is_told_as_one() {
    let mock = mock();
    let group = "[group.timeouts]\nfirst_byte = \"200ms\"\n";
    let proxy = Setup { group, ..Setup::default() }.start(&[&mock]);
    let records = Records::of(&proxy);
    assert_eq!(proxy.client().send(chat("x-mock: delay=60s\r\n", false)).answer().status, 504);
    let row = records.one();
    assert_eq!(row.end(), (504, EndedBy::Timeout, Some(Kind::UpstreamFirstByteTimeout), 1));
}

#[test]
fn a_tunnel_counts_bytes_both_ways() {
    let (_mock, proxy) = house();
    let records = Records::of(&proxy);
    let mut client = proxy.client();
    client.send(
        "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: abc\r\nSec-WebSocket-Version: 13\r\n\r\n",
    );
    assert_eq!(client.answer().status, 101);
    client.send(noise(1, 5_000)).end();
    assert_eq!(client.rest().unwrap().len(), 5_000);
    let row = records.one();
    assert_eq!((row.end(), row.bytes()), (well(101, 1), (5_000, 5_000)));
}

#[test]
fn an_answer_before_the_request_is_whole_is_told_with_its_status() {
    let server = Scripted::start(|conn: &mut Conn| {
        if conn.head().is_some() {
            conn.say(OK);
            conn.drain();
        }
    });
    let proxy = Setup::default().start_on(&[server.url()]);
    let records = Records::of(&proxy);
    let mut client = proxy.client();
    client.send("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 900000\r\n\r\nbegin");
    assert_eq!(client.answer().status, 200);
    drop(client);
    let row = records.one();
    assert_eq!((row.end(), row.bytes()), (well(200, 1), (5, 2)));
    assert_eq!(row.outcome.sent_us, None);
}

#[test]
fn an_exchange_that_a_drain_ends_is_told_so() {
    let (mock, proxy) = house();
    let records = Records::of(&proxy);
    let mut client = proxy.client();
    client.send(chat("x-mock: tokens=100,interval=60s\r\n", true));
    mock.wait_until(LIMIT, |stats| stats.events_total >= 1).expect("it streams");
    client.through(b"\r\n\r\n").unwrap();
    proxy.drain();
    proxy.abort();
    let row = records.one();
    assert_eq!(row.end(), (200, EndedBy::Drain, Some(Kind::Draining), 1));
}
