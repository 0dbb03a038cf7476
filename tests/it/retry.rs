//! rules §7, §8: which member is tried, in which order, and when another one is.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use loadtest::mock::Mock;

use super::house::{LIMIT, Proxy, Setup, mock};
use super::wire::{chat, get, post, post_chunked};

const CHAT: &str = "/v1/chat/completions";
const QUICK: &str = "retry = { attempts = 3, initial = \"100ms\", max = \"100ms\", \
    on = [\"connect\", \"reset\", \"timeout\", \"502\", \"503\"] }";

fn three(group: &str) -> ([Mock; 3], Proxy) {
    let mocks = [mock(), mock(), mock()];
    let proxy = Setup { group, ..Setup::default() }.start(&[&mocks[0], &mocks[1], &mocks[2]]);
    (mocks, proxy)
}

/// An address where nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn requests(mocks: &[Mock]) -> Vec<u64> {
    mocks.iter().map(|mock| mock.stats().requests_total).collect()
}

#[test]
fn round_robin_takes_turns() {
    let (mocks, proxy) = three("balance = \"round_robin\"");
    let mut client = proxy.client();
    for _ in 0..30 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
    }
    assert_eq!(requests(&mocks), [10, 10, 10]);
}

#[test]
fn failover_takes_the_first_that_answers() {
    let (mocks, proxy) = three("balance = \"failover\"");
    let mut client = proxy.client();
    for _ in 0..10 {
        assert_eq!(client.send(chat("", false)).answer().status, 200);
    }
    assert_eq!(requests(&mocks), [10, 0, 0]);
}

#[test]
fn tries_another_member_when_one_refuses_connections() {
    let good = mock();
    let group = format!("balance = \"failover\"\n{QUICK}");
    let proxy = Setup { group: &group, ..Setup::default() };
    let proxy = proxy.start_on(&[nobody(), nobody(), good.url()]);
    let mut client = proxy.client();
    for _ in 0..3 {
        assert_eq!(client.send(chat("", true)).answer().status, 200);
    }
    assert_eq!(good.stats().requests_total, 3);
}

#[test]
fn answers_502_when_every_member_refuses() {
    let proxy = Setup { group: QUICK, ..Setup::default() }.start_on(&[nobody(), nobody()]);
    let mut client = proxy.client();
    let answer = client.send(chat("", false)).answer();
    assert_eq!((answer.status, answer.json()["error"]["type"].as_str()), (502, Some("api_error")));
    // Its own connection goes on.
    assert_eq!(client.send(get("/health", "")).answer().status, 200);
}

/// The fault stands in the request, so every member shows it: all are tried, each once.
#[test]
fn tries_every_member_once_on_reset_and_503() {
    for (how, status) in [("reset", 502), ("drop", 502), ("garbage", 502), ("status=503", 503)] {
        let (mocks, proxy) = three(QUICK);
        let mut client = proxy.client();
        let answer = client.send(chat(&format!("x-mock: {how}\r\n"), false)).answer();
        assert_eq!(answer.status, status, "{how}");
        assert_eq!(requests(&mocks), [1, 1, 1], "{how}");
    }
}

#[test]
fn the_last_members_own_answer_is_what_the_client_gets() {
    let (_mocks, proxy) = three(QUICK);
    let answer = proxy.client().send(chat("x-mock: status=503,retry_after=9\r\n", false)).answer();
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("9")));
    assert_eq!(answer.message(), "as x-mock asked");
}

#[test]
fn does_not_retry_a_status_that_is_not_listed() {
    let (mocks, proxy) = three(QUICK);
    let answer = proxy.client().send(chat("x-mock: status=500\r\n", false)).answer();
    assert_eq!(answer.status, 500);
    assert_eq!(requests(&mocks).iter().sum::<u64>(), 1);
}

#[test]
fn does_not_retry_when_attempts_are_zero() {
    let (mocks, proxy) = three("retry = { attempts = 0 }");
    let answer = proxy.client().send(chat("x-mock: reset\r\n", false)).answer();
    assert_eq!(answer.status, 502);
    assert_eq!(requests(&mocks).iter().sum::<u64>(), 1);
}

#[test]
fn never_retries_after_the_first_byte_has_gone_to_the_client() {
    for how in ["cut_after=2", "reset_after=2", "bad_chunk"] {
        let (mocks, proxy) = three(QUICK);
        let mut client = proxy.client();
        client.send(chat(&format!("x-mock: {how}\r\n"), true));
        let broken = client.try_answer().expect_err("cut");
        assert!(broken.head.starts_with("HTTP/1.1 200"), "{how}");
        assert_eq!(requests(&mocks).iter().sum::<u64>(), 1, "{how}");
    }
}

#[test]
fn never_retries_after_an_interim_answer_has_gone_out() {
    let (mocks, proxy) = three(QUICK);
    let mut client = proxy.client();
    client.send(chat("x-mock: interim=103,status=503\r\n", false));
    assert_eq!(client.answer().status, 103);
    // The status alone may still be tried elsewhere; what must not happen is a mixed answer.
    let answer = loop {
        let answer = client.answer();
        if answer.status != 103 {
            break answer;
        }
    };
    assert_eq!(answer.status, 503);
    assert!(requests(&mocks).iter().sum::<u64>() >= 1);
}

#[test]
fn sends_the_same_body_to_the_next_member() {
    let (mocks, proxy) = three(QUICK);
    let body = format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "x".repeat(200_000));
    let request = post("/v1/chat/completions", "x-mock: status=503\r\n", &body);
    assert_eq!(proxy.client().send(request).answer().status, 503);
    for mock in &mocks {
        assert_eq!(mock.seen()[0].body_sha256, super::wire::sha256(body.as_bytes()));
    }
}

/// Each attempt writes the server's name into the client's bytes anew, whatever the one before it
/// has sent: one name alone is replaced, once, in the first server's body as in the last one's.
#[test]
fn renames_in_the_clients_bytes_for_every_member() {
    // One that leaves with its head, one of a slice, one of many; the name before and behind.
    for pad in [10, 100_000, 1_200_000] {
        let pad = "x".repeat(pad);
        for (before, after) in [
            ("{\"model\":".to_owned(), format!(",\"n\":1e400,\"pad\":\"{pad}\"}}")),
            (format!("{{\"pad\":\"{pad}\",\"model\" :\t"), "}\n".to_owned()),
        ] {
            let body = format!("{before}\"a\"{after}");
            let pieces: Vec<&[u8]> = body.as_bytes().chunks(9_999).collect();
            let sent = format!("{before}\"org/real\"{after}");
            every_member_reads(post(CHAT, "x-mock: status=503\r\n", &body), &sent);
            every_member_reads(post_chunked(CHAT, "x-mock: status=503\r\n", &pieces), &sent);
        }
    }
}

/// The members of a group, and the one that it falls back to, are sent `body` once each.
fn every_member_reads(request: Vec<u8>, body: &str) {
    let mocks = [mock(), mock(), mock(), mock()];
    let group = format!("{QUICK}\nfallback = [\"other\"]");
    let rest = format!(
        "[models.real]\ngroup = \"chat\"\naliases = [\"a\"]\nupstream_model = \"org/real\"\n\
         [[upstream]]\nname = \"b\"\nurl = \"{}\"\nmodels = []\n\
         [[group]]\nname = \"other\"\nmembers = [\"b\"]\n",
        mocks[3].url()
    );
    let proxy = Setup { group: &group, rest: &rest, ..Setup::default() };
    let proxy = proxy.start(&[&mocks[0], &mocks[1], &mocks[2]]);
    assert_eq!(proxy.client().send(request).answer().status, 503);
    for mock in &mocks {
        let seen = mock.seen();
        let posts: Vec<_> = seen.iter().filter(|request| request.body_bytes > 0).collect();
        assert_eq!(posts.len(), 1);
        assert_eq!(posts[0].body_sha256, super::wire::sha256(body.as_bytes()));
    }
}

#[test]
fn answers_504_when_the_first_byte_does_not_come() {
    let mock = mock();
    let proxy = Setup { group: "timeouts = { first_byte = \"300ms\" }", ..Setup::default() };
    let proxy = proxy.start(&[&mock]);
    let mut client = proxy.client();
    let begun = Instant::now();
    let answer = client.send(chat("x-mock: delay=30s\r\n", false)).answer();
    assert_eq!(
        (answer.status, answer.json()["error"]["code"].as_str()),
        (504, Some("upstream_timeout"))
    );
    assert!(begun.elapsed() >= Duration::from_millis(300));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("let go");
    assert_eq!(client.send(chat("", false)).answer().status, 200);
}

#[test]
fn answers_504_when_a_connection_is_not_made() {
    // A listener whose queue is full drops what comes: connections hang.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap().as_socket().unwrap();
    let mut fill = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(100)) {
        fill.push(stream);
    }
    let proxy = Setup { group: "timeouts = { connect = \"1s\" }", ..Setup::default() };
    let proxy = proxy.start_on(&[format!("http://{addr}")]);
    let begun = Instant::now();
    let answer = proxy.client().send(chat("", false)).answer();
    assert_eq!(answer.status, 504);
    assert!(begun.elapsed() >= Duration::from_secs(1));
}

#[test]
fn a_retry_after_a_timeout_happens_only_when_listed() {
    let timeouts = "timeouts = { first_byte = \"200ms\" }";
    let (mocks, proxy) = three(&format!("{QUICK}\n{timeouts}"));
    let answer = proxy.client().send(chat("x-mock: delay=30s\r\n", false)).answer();
    assert_eq!((answer.status, requests(&mocks)), (504, vec![1, 1, 1]));
    let (mocks, proxy) = three(timeouts);
    let answer = proxy.client().send(chat("x-mock: delay=30s\r\n", false)).answer();
    assert_eq!((answer.status, requests(&mocks).iter().sum::<u64>()), (504, 1));
}

#[test]
fn a_group_of_one_tries_its_only_member_again_when_told_so() {
    for (same, attempts) in [("", 1), (", same = true", 4)] {
        let only = mock();
        let retry = format!("{}{same} }}", QUICK.trim_end_matches(" }"));
        let proxy = Setup { group: &retry, ..Setup::default() }.start(&[&only]);
        let answer = proxy.client().send(chat("x-mock: status=503\r\n", false)).answer();
        assert_eq!((answer.status, only.stats().requests_total), (503, attempts));
    }
}

#[test]
fn a_group_of_one_leaves_its_last_attempt_to_the_others() {
    let (only, other) = (mock(), mock());
    let group = "retry = { attempts = 2, initial = \"100ms\", max = \"100ms\", on = [\"503\"], \
                 same = true }\nfallback = [\"other\"]";
    let rest = format!(
        "[[upstream]]\nname = \"b\"\nurl = \"{}\"\nmodels = []\n\
         [[group]]\nname = \"other\"\nmembers = [\"b\"]\n",
        other.url()
    );
    let proxy = Setup { group, rest: &rest, ..Setup::default() }.start(&[&only]);
    proxy.client().send(chat("x-mock: status=503\r\n", false)).answer();
    assert_eq!((only.stats().requests_total, other.stats().requests_total), (2, 1));
}
