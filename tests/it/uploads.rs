//! rules §8: what was not sent, or is still held, can go elsewhere, whatever the body's size.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::house::{LIMIT, Setup, mock, wait_until};
use super::scripted::{OK, Scripted};
use super::wire::{get, noise, post, post_chunked, sha256};

const RETRY: &str = "balance = \"failover\"\nretry = { attempts = 3, initial = \"100ms\", \
    max = \"100ms\", on = [\"connect\", \"reset\", \"503\"] }\n";
const HELD_64K: &str = "[limits]\nbody_held = \"64KiB\"\n";

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A body of a model request, of about so many bytes.
fn body(bytes: usize) -> String {
    format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "x".repeat(bytes))
}

#[test]
fn a_refused_connection_has_taken_nothing_of_a_large_body() {
    let good = mock();
    let setup = Setup { group: RETRY, rest: HELD_64K, ..Setup::default() };
    let proxy = setup.start_on(&[nobody(), good.url()]);
    let large = body(2_000_000);
    let pieces: Vec<&[u8]> = large.as_bytes().chunks(10_000).collect();
    for request in [
        post("/v1/chat/completions", "", &large),
        post("/echo", "", &large),
        post_chunked("/v1/chat/completions", "", &pieces),
        post_chunked("/echo", "", &pieces),
    ] {
        let answer = proxy.client().send(request).answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(good.seen().last().unwrap().body_sha256, sha256(large.as_bytes()));
    }
}

/// A server that answers one request on each connection and resets it at the next one's first
/// byte: what is at work when a server closes an idle connection and the close crosses.
fn closes_when_used_again(got: Arc<AtomicU64>, died: Arc<AtomicU64>) -> Scripted {
    Scripted::start(move |conn| {
        let Some((_, body)) = conn.request() else { return };
        got.fetch_add(body.len() as u64, Ordering::SeqCst);
        conn.say(OK);
        if conn.more() {
            died.fetch_add(1, Ordering::SeqCst);
        }
        conn.reset();
    })
}

#[test]
fn large_uploads_meet_no_connection_that_died_in_the_pool() {
    let got = Arc::new(AtomicU64::new(0));
    let server = closes_when_used_again(got.clone(), Arc::default());
    let setup = Setup { rest: HELD_64K, ..Setup::default() };
    let proxy = setup.start_on(&[server.url()]);
    let large = body(3_000_000);
    for turn in 0..10 {
        for path in ["/v1/chat/completions", "/echo"] {
            let answer = proxy.client().send(post(path, "", &large)).answer();
            assert_eq!(answer.status, 200, "{path}, turn {turn}: {}", answer.text());
        }
    }
    assert_eq!(got.load(Ordering::SeqCst), 20 * large.len() as u64);
}

#[test]
fn the_pool_does_not_grow_by_large_uploads() {
    let mock = mock();
    let setup = Setup { rest: HELD_64K, ..Setup::default() };
    let proxy = setup.start(&[&mock]);
    for _ in 0..10 {
        let answer = proxy.client().send(post("/echo", "", noise(1, 300_000))).answer();
        assert_eq!(answer.status, 200);
    }
    wait_until("the others are closed", || mock.stats().connections_open <= 1);
}

#[test]
fn a_body_on_its_way_is_kept_while_a_pooled_connection_may_be_dead() {
    let (got, died) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let server = closes_when_used_again(got.clone(), died.clone());
    let proxy = Setup::default().start_on(&[server.url()]);
    // The first leaves a connection in the pool, the others find a dead one there: a route needs
    // no model, so what they send leaves at once.
    for turn in 0..10 {
        let mut client = proxy.client();
        let request = post("/echo", "", noise(turn, 200_000));
        let (first, rest) = request.split_at(1000);
        client.send(first);
        wait_until("the dead one has it", || died.load(Ordering::SeqCst) == turn);
        client.send(rest);
        let answer = client.answer();
        assert_eq!(answer.status, 200, "turn {turn}: {}", answer.text());
    }
    assert_eq!(got.load(Ordering::SeqCst), 2_000_000);
    assert_eq!(server.accepted(), 10);
}

#[test]
fn what_is_still_kept_goes_to_another_member() {
    // It dies in the middle of the body, or answers 503 there.
    for say in ["", "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"] {
        let bad = Scripted::start(move |conn| {
            conn.head();
            while conn.input().len() < 100 && conn.more() {}
            conn.say(say);
            if say.is_empty() {
                conn.reset();
            } else {
                conn.drain();
            }
        });
        let good = mock();
        let proxy = Setup { group: RETRY, ..Setup::default() }.start_on(&[bad.url(), good.url()]);
        let whole = noise(3, 150_000);
        for chunked in [false, true] {
            let mut client = proxy.client();
            let pieces: Vec<&[u8]> = whole.chunks(7_000).collect();
            let request = match chunked {
                false => post("/echo", "", &whole),
                true => post_chunked("/echo", "", &pieces),
            };
            let (first, rest) = request.split_at(80_000);
            client.send(first);
            // The client pauses until somebody else has been asked.
            good.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("asked");
            client.send(rest);
            let answer = client.answer();
            assert_eq!(answer.status, 200, "{say:?} {chunked}: {}", answer.text());
            assert_eq!(good.seen().last().unwrap().body_sha256, sha256(&whole));
            // Behind it the connection goes on.
            assert_eq!(client.send(get("/health", "")).answer().status, 200);
        }
    }
}

#[test]
fn what_is_gone_is_not_sent_again() {
    let bad = Scripted::start(|conn| {
        conn.head();
        while conn.input().len() < 150_000 && conn.more() {}
        conn.reset();
    });
    let good = mock();
    let setup = Setup { group: RETRY, rest: HELD_64K, ..Setup::default() };
    let proxy = setup.start_on(&[bad.url(), good.url()]);
    let request = post("/echo", "", noise(3, 300_000));
    let mut client = proxy.client();
    client.send(&request[..200_000]);
    assert_eq!(client.answer().status, 502);
    assert_eq!(good.stats().requests_total, 0);
}

/// Room for one body of a megabyte and little more.
const HELD_ONE: &str = "[limits]\nbody = \"1MiB\"\nbody_held = \"1MiB\"\nheld_total = \"1MiB\"\n";

#[test]
fn a_body_that_may_be_sent_again_gives_way_to_nobody() {
    let (asked, go) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (got, told) = (asked.clone(), go.clone());
    let bad = Scripted::start(move |conn| {
        let Some((_, body)) = conn.request() else { return };
        got.store(body.len() as u64, Ordering::SeqCst);
        wait_until("it may fail", || told.load(Ordering::SeqCst) > 0);
        conn.reset();
    });
    let good = mock();
    let setup = Setup { group: RETRY, rest: HELD_ONE, ..Setup::default() };
    let proxy = setup.start_on(&[bad.url(), good.url()]);
    let first = body(700_000);
    let mut client = proxy.client();
    client.send(post("/v1/chat/completions", "", &first));
    wait_until("it is on its way", || asked.load(Ordering::SeqCst) == first.len() as u64);
    // Smaller ones, before which a body that is still being received would have to go.
    for _ in 0..3 {
        let refused = proxy.client().send(post("/v1/chat/completions", "", body(600_000))).answer();
        assert_eq!(refused.status, 503, "{}", refused.text());
    }
    go.store(1, Ordering::SeqCst);
    let answer = client.answer();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(good.stats().requests_total, 1);
    assert_eq!(good.seen().last().unwrap().body_sha256, sha256(first.as_bytes()));
    wait_until("the budget is whole again", || proxy.shared().held.taken() == 0);
}

#[test]
fn a_body_that_finds_no_room_to_be_kept_is_sent_once() {
    let begun = Arc::new(AtomicU64::new(0));
    let seen = begun.clone();
    let bad = Scripted::start(move |conn| {
        conn.head();
        seen.store(1, Ordering::SeqCst);
        while conn.input().len() < 150_000 && conn.more() {}
        conn.reset();
    });
    let good = mock();
    let setup = Setup { group: RETRY, rest: HELD_ONE, ..Setup::default() };
    let proxy = setup.start_on(&[bad.url(), good.url()]);
    let mut slow = proxy.client();
    slow.send(format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1048000\r\n\r\n{{\"p\":\"{}",
        "x".repeat(1_040_000)
    ));
    wait_until("the budget is taken", || proxy.shared().held.taken() >= 1_040_000);
    let request = post("/echo", "", noise(3, 300_000));
    let mut client = proxy.client();
    client.send(&request[..1000]);
    wait_until("it is on its way", || begun.load(Ordering::SeqCst) == 1);
    client.send(&request[1000..200_000]);
    assert_eq!(client.answer().status, 502);
    assert_eq!(good.stats().requests_total, 0);
    // Nobody had to give way for it.
    slow.send(format!("{}\",\"model\":\"m\"}}", "x".repeat(1_048_000 - 1_040_006 - 14)));
    let answer = slow.answer();
    assert_eq!(answer.status, 200, "{}", answer.text());
}
