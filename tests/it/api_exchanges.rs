//! rules §12: the exchanges in flight are shown, and one is cancelled at once on whatever core.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::api::House;
use super::h2_client::H2Client;
use super::house::wait_until;
use super::wire::{Client, chat, post};

fn list(house: &House) -> Vec<Value> {
    house.operator().get("/exchanges").data().as_array().unwrap().clone()
}

/// A stream that goes on until it is cancelled.
fn stream(house: &House, id: &str) -> Client {
    let mut client = house.live.proxy.client();
    let fields = format!("x-request-id: {id}\r\nx-mock: interval=20ms,tokens=100000\r\n");
    client.send(chat(&fields, true));
    client.through(b"\n\n").expect("it has begun");
    client
}

#[test]
fn what_is_in_flight_is_listed_and_gone_when_it_ends() {
    let house = House::new();
    assert_eq!(list(&house), Vec::<Value>::new());
    let client = stream(&house, "long");
    let all = list(&house);
    assert_eq!(all.len(), 1, "{all:#?}");
    let one = &all[0];
    assert_eq!((&one["request_id"], &one["model"]), (&json!("long"), &json!("m")));
    assert_eq!((&one["group"], &one["upstream"]), (&json!("chat"), &json!("gpu0")));
    assert_eq!((&one["listener"], &one["phase"]), (&json!("main"), &json!("answering")));
    assert_eq!(
        (&one["path"], &one["client"]),
        (&json!("/v1/chat/completions"), &json!("127.0.0.1"))
    );
    assert!(one["age_ms"].is_u64() && one["first_token_ms"].is_f64(), "{one:#}");
    wait_until("it grows older", || list(&house)[0]["age_ms"].as_u64() > one["age_ms"].as_u64());
    drop(client);
    wait_until("it is gone", || list(&house).is_empty());
    // One that waits for its answer, and one that is refused: no traces.
    house.a.behave("delay=300ms");
    let mut waits = house.live.proxy.client();
    waits.send(chat("", false));
    wait_until("it waits", || list(&house).iter().any(|one| one["phase"] == "waiting"));
    assert_eq!(waits.answer().status, 200);
    let mut bad = house.live.proxy.client();
    assert_eq!(bad.send(post("/v1/chat/completions", "", "{")).answer().status, 400);
    wait_until("all are gone", || list(&house).is_empty());
}

#[test]
fn a_cancelled_exchange_ends_at_once_on_both_sides_and_no_other_does() {
    let house = House::new();
    // On both cores, wherever the kernel puts them.
    let mut clients: Vec<Client> = (0..12).map(|at| stream(&house, &format!("s{at}"))).collect();
    let all = list(&house);
    assert_eq!(all.len(), 12);
    let cores = all.iter().map(|one| one["id"].as_str().unwrap().split('-').next().unwrap());
    let cores: std::collections::HashSet<&str> = cores.collect();
    let find = |name: &str| {
        let one = all.iter().find(|one| one["request_id"] == name).unwrap();
        one["id"].as_str().unwrap().to_owned()
    };
    for (turn, at) in [3, 7, 0].into_iter().enumerate() {
        let (aborted, begun) = (house.a.stats().aborted_total, Instant::now());
        let name = format!("s{at}");
        // By its id in the list, or by its request id.
        let called = if turn == 1 { name.clone() } else { find(&name) };
        let told = house.operator().delete(&format!("/exchanges/{called}"));
        assert_eq!(told.status, 204, "{told:?}");
        wait_until("the server is told", || house.a.stats().aborted_total > aborted);
        let took = begun.elapsed();
        // It is 100 ms; a machine that runs all other tests beside may be late.
        assert!(took < Duration::from_secs(2), "{took:?} with {} cores", cores.len());
        assert_eq!(house.a.stats().aborted_total, aborted + 1);
        while !clients[at].some().is_empty() {}
        let again = house.operator().delete(&format!("/exchanges/{called}"));
        assert_eq!(again.status, 404, "{again:?}");
    }
    wait_until("nine are left", || list(&house).len() == 9);
    for at in [1, 2, 4, 5, 6, 8, 9, 10, 11] {
        assert!(!clients[at].some().is_empty(), "stream {at} goes on");
    }
    assert_eq!(house.operator().delete("/exchanges/9-9-9").status, 404);
}

#[test]
fn one_request_of_a_kept_connection_is_cancelled_and_the_id_of_the_one_before_is_nobodys() {
    let house = House::new();
    let mut client = house.live.proxy.client();
    let fields = "x-request-id: first\r\nx-mock: delay=200ms\r\n";
    client.send(chat(fields, false));
    wait_until("it is there", || list(&house).len() == 1);
    let first = list(&house)[0]["id"].as_str().unwrap().to_owned();
    assert_eq!(client.answer().status, 200);
    wait_until("it is over", || list(&house).is_empty());
    let second = stream(&house, "second");
    assert_eq!(house.operator().delete(&format!("/exchanges/{first}")).status, 404);
    assert_eq!(list(&house).len(), 1, "the second goes on");
    drop(second);
}

#[test]
fn a_cancelled_stream_of_http2_leaves_its_connection_and_the_others() {
    let house = House::new();
    let client = H2Client::connect(house.live.proxy.addr(), None);
    let mut streams = [0; 2].map(|_| {
        let mut stream = client.chat("interval=20ms,tokens=100000", true);
        assert_eq!(stream.head().unwrap().status(), 200);
        stream.through("\n\n");
        stream
    });
    let all = list(&house);
    assert_eq!(all.len(), 2, "{all:#?}");
    let aborted = house.a.stats().aborted_total;
    let called = all[0]["id"].as_str().unwrap();
    assert_eq!(house.operator().delete(&format!("/exchanges/{called}")).status, 204);
    wait_until("the server is told", || house.a.stats().aborted_total == aborted + 1);
    wait_until("one is left", || list(&house).len() == 1);
    assert!(streams[0].rest().is_err(), "it does not look like a whole answer");
    assert!(!streams[1].through("\n\n").is_empty(), "the other goes on");
    assert_eq!(client.chat("", false).answer().status, 200, "and the connection");
}
