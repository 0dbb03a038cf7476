//! `x-gateway-destination-endpoint` of a trusted proxy names the member that takes the request.

use loadtest::mock::Mock;

use super::h2_client::H2Client;
use super::house::{Proxy, Setup, mock};
use super::wire::post;

const FIELD: &str = "x-gateway-destination-endpoint";
const TRUSTING: &str = "trusted_proxies = [\"127.0.0.0/8\"]";
const STRANGERS: &str = "trusted_proxies = [\"10.0.0.0/8\"]";

fn three() -> [Mock; 3] {
    [mock(), mock(), mock()]
}

fn proxy(listener: &str, mocks: &[Mock; 3]) -> Proxy {
    // By itself every request would go to the first.
    let group = "balance = \"failover\"";
    Setup { listener, group, ..Setup::default() }.start(&[&mocks[0], &mocks[1], &mocks[2]])
}

/// Sends one request that names these endpoints; returns which server took it.
fn goes_to(proxy: &Proxy, mocks: &[Mock; 3], named: &str) -> usize {
    let before: Vec<u64> = mocks.iter().map(|mock| mock.stats().requests_total).collect();
    let answer = proxy.client().send(post("/echo", &format!("{FIELD}: {named}\r\n"), "a")).answer();
    assert_eq!(answer.status, 200, "{named}");
    let took = |at: &usize| mocks[*at].stats().requests_total > before[*at];
    (0..3).find(took).expect("one of them took it")
}

#[test]
fn the_first_member_that_is_named_and_usable_takes_the_request() {
    let mocks = three();
    let proxy = proxy(TRUSTING, &mocks);
    let at = |number: usize| mocks[number].addr().to_string();
    assert_eq!(goes_to(&proxy, &mocks, &at(2)), 2);
    assert_eq!(goes_to(&proxy, &mocks, &at(1)), 1);
    assert_eq!(goes_to(&proxy, &mocks, &format!("192.0.2.1:1, {},{}", at(2), at(1))), 2);
    for nobody in ["192.0.2.1:1", "gpu1", "127.0.0.1", ":", "127.0.0.1:99999"] {
        assert_eq!(goes_to(&proxy, &mocks, nobody), 0, "{nobody}");
    }
    // It goes on to the server as it came.
    assert_eq!(mocks[1].seen()[0].field(FIELD), Some(at(1)));
}

#[test]
fn one_that_fails_is_followed_by_the_next_that_is_named() {
    let mocks = three();
    let group =
        "balance = \"failover\"\nretry = { attempts = 2, initial = \"100ms\", on = [\"503\"] }";
    let setup = Setup { listener: TRUSTING, group, ..Setup::default() };
    let proxy = setup.start(&[&mocks[0], &mocks[1], &mocks[2]]);
    mocks[2].behave("status=503");
    let named = format!("{},{}", mocks[2].addr(), mocks[1].addr());
    let answer = proxy.client().send(post("/echo", &format!("{FIELD}: {named}\r\n"), "a")).answer();
    assert_eq!(answer.status, 200);
    let counts: Vec<u64> = mocks.iter().map(|mock| mock.stats().requests_total).collect();
    assert_eq!(counts, [0, 1, 1]);
}

#[test]
fn a_member_that_is_full_is_passed_over() {
    let mocks = three();
    let group = "balance = \"failover\"";
    let setup =
        Setup { listener: TRUSTING, group, upstream: "concurrency = 1", ..Setup::default() };
    let proxy = setup.start(&[&mocks[0], &mocks[1], &mocks[2]]);
    mocks[1].behave("delay=60s");
    let named = mocks[1].addr().to_string();
    let mut first = proxy.client();
    first.send(post("/echo", &format!("{FIELD}: {named}\r\n"), "a"));
    let reached = mocks[1].wait_until(super::house::LIMIT, |stats| stats.requests_total == 1);
    assert!(reached.is_ok());
    assert_eq!(goes_to(&proxy, &mocks, &named), 0);
}

#[test]
fn of_a_stranger_it_is_neither_believed_nor_passed_on() {
    let mocks = three();
    let proxy = proxy(STRANGERS, &mocks);
    assert_eq!(goes_to(&proxy, &mocks, &mocks[2].addr().to_string()), 0);
    assert_eq!(mocks[0].seen()[0].field(FIELD), None);
}

#[test]
fn where_nobody_is_trusted_it_is_a_field_like_any_other() {
    let mocks = three();
    let proxy = proxy("", &mocks);
    let named = mocks[2].addr().to_string();
    assert_eq!(goes_to(&proxy, &mocks, &named), 0);
    assert_eq!(mocks[0].seen()[0].field(FIELD), Some(named));
}

#[test]
fn over_http_2_it_holds_for_each_stream() {
    let mocks = three();
    let trusting = proxy(TRUSTING, &mocks);
    let client = H2Client::connect(trusting.addr(), None);
    for number in [2, 1, 2] {
        let named = mocks[number].addr().to_string();
        let before = mocks[number].stats().requests_total;
        let answer = client.post("/echo", &[(FIELD, &named)], "a").answer();
        assert_eq!(answer.status, 200);
        assert_eq!(mocks[number].stats().requests_total, before + 1);
    }
    let wary = proxy(STRANGERS, &mocks);
    let named = mocks[2].addr().to_string();
    let client = H2Client::connect(wary.addr(), None);
    assert_eq!(client.post("/echo", &[(FIELD, &named)], "a").answer().status, 200);
    assert_eq!(mocks[0].seen().len(), 1);
    assert_eq!(mocks[0].seen()[0].field(FIELD), None);
}
