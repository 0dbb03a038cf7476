//! rules §2, §9: servers that speak HTTP/2, by prior knowledge.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use h2::Reason;

use super::h2_server::{Act, Frames, H2Server, Ways};
use super::house::{LIMIT, Proxy, Setup, wait_until};
use super::wire::{get, noise, post, post_chunked, sha256};

const MIB: usize = 1 << 20;

fn house(ways: Ways) -> (H2Server, Proxy) {
    let server = H2Server::start(ways);
    let proxy = Setup { upstream: "http2 = true\n", ..Setup::default() }.start_on(&[server.url()]);
    (server, proxy)
}

fn framewise(
    group: &str,
    act: impl Fn(usize, usize) -> Act + Clone + Send + 'static,
) -> (Frames, Proxy) {
    let server = Frames::start(act);
    let setup = Setup { upstream: "http2 = true\n", group, ..Setup::default() };
    let proxy = setup.start_on(&[server.url()]);
    (server, proxy)
}

/// Waits until a count has not changed for a while, and returns it.
fn settled(count: impl Fn() -> u64) -> u64 {
    let (begun, mut last, mut since) = (Instant::now(), count(), Instant::now());
    while since.elapsed() < Duration::from_millis(300) {
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
fn requests_share_a_connection_and_end_without_a_reset() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    for _ in 0..20 {
        let answer = client.send(get("/echo?a=1", "")).answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "ok"));
        assert_eq!(
            (answer.field("x-version"), answer.field("content-length")),
            (Some("2"), Some("2"))
        );
    }
    assert_eq!(client.send("HEAD /echo HTTP/1.1\r\nHost: p\r\n\r\n").answer_to("HEAD").status, 200);
    assert_eq!((server.connections(), server.requests()), (1, 21));
    let heads = server.seen.heads.lock().unwrap();
    assert_eq!(heads[0].uri.path_and_query().unwrap(), "/echo?a=1");
    assert_eq!(heads[0].uri.scheme_str(), Some("http"));
    assert_eq!(
        heads[0].uri.authority().unwrap().as_str(),
        server.url().strip_prefix("http://").unwrap()
    );
    drop(heads);
    // A reset of a stream whose answer was whole would look like an abort to the server.
    let resets = server.seen.resets.lock().unwrap();
    assert!(
        resets.iter().all(|(reason, _)| *reason == Reason::CANCEL) && resets.len() <= 1,
        "{resets:?}"
    );
}

#[test]
fn a_stream_is_relayed_event_by_event() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    client.send(get("/echo", "x-do: sse=3\r\n"));
    client.through(b"\r\n\r\n").unwrap();
    for at in 0..3 {
        server.seen.go.add_permits(1);
        let event = client.through(format!("data: {at}\n\n\r\n").as_bytes()).unwrap();
        assert!(event.len() < 20, "{event:?}");
    }
    let end = client.through(b"\r\n\r\n").unwrap();
    assert_eq!(String::from_utf8_lossy(&end), "0\r\nx-events: 3\r\n\r\n");
}

#[test]
fn bodies_pass_small_windows_both_ways() {
    let ways = Ways { window: 10_000, connection_window: 70_000, ..Ways::default() };
    let (server, proxy) = house(ways);
    let body = noise(3, 8 * MIB);
    for request in [
        post("/echo", "x-do: echo\r\n", &body),
        post_chunked("/echo", "x-do: echo\r\n", &body.chunks(70_001).collect::<Vec<_>>()),
    ] {
        let mut client = proxy.client();
        let mut writer = client.stream();
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| writer.write_all(&request).unwrap());
            client.answer()
        });
        assert_eq!(answer.status, 200);
        assert_eq!(sha256(&answer.body), sha256(&body));
    }
    assert_eq!(server.requests(), 2);
}

#[test]
fn trailers_pass_both_ways() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    client.send(
        "POST /echo HTTP/1.1\r\nHost: p\r\nx-do: echo\r\nTE: trailers\r\nTransfer-Encoding: chunked\r\n\r\n\
         5\r\nhello\r\n0\r\nX-Sum: 7\r\nX-End: yes\r\n\r\n",
    );
    let answer = client.answer();
    assert_eq!(answer.text(), "hello");
    assert_eq!(answer.trailers, "x-sum: 7\r\nx-end: yes\r\n");
    assert_eq!(server.seen.received.load(SeqCst), 5);
}

#[test]
fn interim_answers_pass() {
    let (_server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    client.send(get("/echo", "x-do: hints\r\n"));
    let hints = String::from_utf8(client.through(b"\r\n\r\n").unwrap()).unwrap();
    assert!(hints.starts_with("HTTP/1.1 103 ") && hints.contains("link: </a>\r\n"), "{hints}");
    assert_eq!(client.answer().status, 200);
}

#[test]
fn an_early_answer_reaches_a_client_that_still_sends() {
    let (_server, proxy) = house(Ways::default());
    let request = post("/echo", "x-do: early\r\n", noise(1, 20 * MIB));
    let mut client = proxy.client();
    let mut writer = client.stream();
    let answer = std::thread::scope(|scope| {
        scope.spawn(|| drop(writer.write_all(&request)));
        client.answer()
    });
    assert_eq!((answer.status, answer.text().as_str()), (413, "too much"));
    proxy.wait_until_empty();
}

#[test]
fn a_client_that_does_not_read_holds_a_window() {
    let (server, proxy) = house(Ways { connection_window: 1 << 20, ..Ways::default() });
    let mut client = proxy.client();
    client.send(get("/echo", &format!("x-do: big={}\r\n", 128 * MIB)));
    // Windows, pipes, and what the kernel holds of both connections.
    let sent = settled(|| server.seen.sent.load(SeqCst));
    assert!(sent > 0 && sent < 32 * MIB as u64, "{sent}");
    // Others go on meanwhile.
    assert_eq!(proxy.client().send(get("/echo", "")).answer().text(), "ok");
    assert_eq!(client.answer().body.len(), 128 * MIB);
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_server_that_does_not_read_stops_the_client() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    let length = 60 * MIB;
    client.send(format!(
        "POST /echo HTTP/1.1\r\nHost: p\r\nx-do: hang\r\nContent-Length: {length}\r\n\r\n"
    ));
    let (mut writer, written) = (client.stream(), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let piece = noise(1, 65_536);
            while writer.write_all(&piece).is_ok() {
                written.fetch_add(piece.len() as u64, SeqCst);
            }
        });
        let written = settled(|| written.load(SeqCst));
        assert!(written < 32 * MIB as u64, "{written}");
        // A server that dies ends it.
        drop(server);
        assert_eq!(client.answer().status, 502);
        drop(client.stream().shutdown(std::net::Shutdown::Both));
    });
    proxy.wait_until_empty();
}

#[test]
fn an_answer_that_is_reset_midway_is_a_cut() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    client.send(get("/echo", "x-do: cut\r\n"));
    client.through(b"part\r\n").unwrap();
    server.seen.go.add_permits(1);
    let rest = client.rest().unwrap_or_default();
    assert_eq!(String::from_utf8_lossy(&rest), "", "no end of chunks");
    // The link goes on.
    assert_eq!(proxy.client().send(get("/echo", "")).answer().text(), "ok");
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_stream_reset_before_its_answer_is_a_502_and_not_sent_again() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    assert_eq!(client.send(get("/echo", "")).answer().status, 200);
    assert_eq!(client.send(get("/echo", "x-do: reset\r\n")).answer().status, 502);
    assert_eq!((server.connections(), server.requests()), (1, 2));
}

#[test]
fn answers_have_the_bounds_of_requests() {
    let server = H2Server::start(Ways::default());
    let larger = "[limits]\nhead = \"300KiB\"\nfields = 400\n";
    for (rest, bytes, fields) in [("", 64 << 10, 128), (larger, 300 << 10, 400)] {
        let setup = Setup { upstream: "http2 = true\n", rest, ..Setup::default() };
        let proxy = setup.start_on(&[server.url()]);
        let status = |what: &str, number: usize| {
            let request = get("/echo", &format!("x-do: {what}={number}\r\n"));
            proxy.client().send(request).answer().status
        };
        // Beside them there are a status line and two fields.
        assert_eq!(status("head", bytes - 200), 200, "{bytes}");
        assert_eq!(status("head", bytes + 1), 502, "{bytes}");
        assert_eq!(status("head", 3 * bytes), 502, "more than the crate takes: {bytes}");
        assert_eq!(status("fields", fields - 2), 200, "{fields}");
        assert_eq!(status("fields", fields + 1), 502, "{fields}");
        assert_eq!(status("fields", 0), 200, "the server serves");
    }
}

#[test]
fn a_client_that_leaves_cancels_its_stream_at_once() {
    let (server, proxy) = house(Ways::default());
    let mut other = proxy.client();
    assert_eq!(other.send(get("/echo", "")).answer().status, 200);
    for turn in 0..5 {
        let mut client = proxy.client();
        client.send(post("/echo", "x-do: hang\r\n", "{}"));
        wait_until("the request has come", || server.requests() == turn + 2);
        let left = Instant::now();
        drop(client);
        let resets = || server.seen.resets.lock().unwrap().clone();
        wait_until("the stream is reset", || resets().len() > turn);
        let (reason, at) = resets()[turn];
        assert_eq!(reason, Reason::CANCEL);
        assert!(at.duration_since(left) < Duration::from_millis(250), "{:?}", at - left);
    }
    assert_eq!(other.send(get("/echo", "")).answer().status, 200);
    assert_eq!(server.connections(), 1);
}

#[test]
fn what_a_goaway_leaves_out_is_sent_again() {
    // Every link takes two requests and refuses the third by GOAWAY.
    let (server, proxy) = framewise("", |_, request| match request {
        0 | 1 => Act::Answer,
        _ => Act::GoAway(3),
    });
    let mut client = proxy.client();
    for _ in 0..9 {
        assert_eq!(client.send(post("/echo", "", "{}")).answer().status, 200);
    }
    assert_eq!(server.requests.load(SeqCst), 9 + 4);
}

#[test]
fn a_refused_stream_is_sent_again_once() {
    const REFUSED_STREAM: u8 = 7;
    // The very first request on a fresh link is refused too.
    let (server, proxy) = framewise("", |link, _| match link {
        0 => Act::Reset(REFUSED_STREAM),
        _ => Act::Answer,
    });
    assert_eq!(proxy.client().send(post("/echo", "", "{}")).answer().status, 200);
    assert_eq!(server.requests.load(SeqCst), 2);
    let (server, proxy) = framewise("", |_, _| Act::Reset(REFUSED_STREAM));
    assert_eq!(proxy.client().send(post("/echo", "", "{}")).answer().status, 502);
    assert_eq!(server.requests.load(SeqCst), 2);
}

#[test]
fn a_link_that_died_is_replaced() {
    let (server, proxy) = framewise("", |link, request| match (link, request) {
        (0, 1) => Act::Close,
        _ => Act::Answer,
    });
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.send(post("/echo", "", "{}")).answer().status, 200);
    }
    assert_eq!(server.requests.load(SeqCst), 4);
    // On a link that nobody had used it is the server's failure.
    let (server, proxy) = framewise("", |_, _| Act::Close);
    assert_eq!(proxy.client().send(post("/echo", "", "{}")).answer().status, 502);
    assert_eq!(server.requests.load(SeqCst), 1);
}

/// Sends so many requests at once and lets them end together.
fn crowd(server: &H2Server, proxy: &Proxy, count: usize) {
    let mut clients: Vec<_> = (0..count).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(get("/echo", "x-do: wait\r\n"));
    }
    wait_until("all have come", || server.requests() == count);
    server.seen.go.add_permits(count);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn a_crowd_shares_few_connections() {
    let (server, proxy) = house(Ways::default());
    crowd(&server, &proxy, 50);
    assert_eq!(server.connections(), 1);
}

#[test]
fn a_server_that_takes_few_streams_gets_more_connections() {
    let (server, proxy) = house(Ways { streams: 10, ..Ways::default() });
    // Its settings are known once it has answered.
    assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 200);
    let requests = server.requests();
    let mut clients: Vec<_> = (0..50).map(|_| proxy.client()).collect();
    for (at, client) in clients.iter_mut().enumerate() {
        client.send(get("/echo", "x-do: wait\r\n"));
        wait_until("it has come", || server.requests() == requests + at + 1);
    }
    let connections = server.connections();
    assert!((5..=10).contains(&connections), "{connections}");
    server.seen.go.add_permits(50);
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn a_link_that_idles_is_closed() {
    let server = H2Server::start(Ways::default());
    let rest = "[timeouts]\npool_idle = \"5s\"\n";
    let setup = Setup { upstream: "http2 = true\n", rest, ..Setup::default() };
    let proxy = setup.start_on(&[server.url()]);
    assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 200);
    assert_eq!(server.seen.open.load(SeqCst), 1);
    wait_until("the link is closed", || server.seen.open.load(SeqCst) == 0);
    assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 200);
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_drain_closes_links_and_lets_streams_end() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    client.send(get("/echo", "x-do: sse=2\r\n"));
    client.through(b"\r\n\r\n").unwrap();
    proxy.drain();
    server.seen.go.add_permits(2);
    let rest = client.rest().unwrap();
    let rest = String::from_utf8_lossy(&rest);
    assert!(rest.contains("data: 1\n\n") && rest.ends_with("0\r\nx-events: 2\r\n\r\n"), "{rest}");
    proxy.join();
    wait_until("the link is closed", || server.seen.open.load(SeqCst) == 0);
}

#[test]
fn a_server_without_http2_is_a_502() {
    let mock = super::house::mock();
    let setup = Setup { upstream: "http2 = true\n", ..Setup::default() };
    let proxy = setup.start_on(&[mock.url()]);
    assert_eq!(proxy.client().send(get("/echo", "")).answer().status, 502);
}

#[test]
fn a_target_that_http2_cannot_say_is_the_clients_fault() {
    let (server, proxy) = house(Ways::default());
    let mut client = proxy.client();
    let answer = client.send(get("/echo?a=<b>", "")).answer();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.message(), "The request cannot be sent over HTTP/2.");
    assert_eq!(server.requests(), 0);
    assert_eq!(client.send(get("/echo?a={b}", "")).answer().status, 200);
    assert_eq!(server.connections(), 1);
}
