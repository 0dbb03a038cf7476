//! SPEC §8: a breaker steers and never walls, and looks for the server's return.

use std::time::{Duration, Instant};

use loadtest::mock::Mock;
use tokenring::policy::breaker::StateName;

use super::fake::Fake;
use super::house::{Proxy, mock, wait_until};
use super::wire::{Client, chat, post};

const HEAD: &str =
    "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n";
const GROUP: &str =
    "[models.m]\ngroup = \"g\"\n[models.n]\ngroup = \"g\"\n[[group]]\nname = \"g\"\n";

/// Servers at these URLs in one group, which serves the models `m` and `n`.
fn house(urls: &[String], breaker: &str, group: &str) -> Proxy {
    let (mut text, mut members) = (HEAD.to_owned(), Vec::new());
    for (url, name) in urls.iter().zip(["a", "b", "c"]) {
        text += &format!(
            "[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\nmodels = []\n\
             breaker = {{ consecutive = 5, cooldown = \"1h\", {breaker} }}\n"
        );
        members.push(format!("\"{name}\""));
    }
    Proxy::start(&format!("{text}{GROUP}members = [{}]\n{group}\n", members.join(", ")))
}

fn state(proxy: &Proxy, at: usize) -> StateName {
    proxy.shared().slot.plan().0.upstreams[at].state.breaker.state().name()
}

fn status(client: &mut Client, how: &str) -> u16 {
    client.send(chat(how, false)).answer().status
}

/// Five requests that the server answers with 500, whoever sends them.
fn poison(client: &mut Client) {
    for _ in 0..5 {
        assert_eq!(status(client, "x-mock: status=500\r\n"), 500);
    }
}

fn served(mock: &Mock) -> u64 {
    mock.stats().requests_total
}

#[test]
fn five_bad_requests_take_the_model_from_nobody() {
    let server = mock();
    // No recheck can help in this time.
    let proxy = house(&[server.url()], "recheck = \"60s\"", "");
    let mut client = proxy.client();
    poison(&mut client);
    assert_eq!(state(&proxy, 0), StateName::Open);
    // One more for each cooldown kept it away; now the server's own word is passed on.
    assert_eq!(status(&mut client, "x-mock: status=500\r\n"), 500);
    assert_eq!(status(&mut client, ""), 200);
    assert_eq!(state(&proxy, 0), StateName::Closed, "its success counts as that of a trial");
}

#[test]
fn without_last_resort_it_fails_fast() {
    let server = mock();
    let proxy = house(&[server.url()], "recheck = \"60s\", last_resort = false", "");
    let mut client = proxy.client();
    poison(&mut client);
    let answer = client.send(chat("", false)).answer();
    assert_eq!(answer.status, 503);
    assert!(answer.field("retry-after").is_some());
    assert_eq!(served(&server), 5);
}

#[test]
fn of_several_the_one_that_failed_longest_ago_is_asked() {
    let servers = [mock(), mock()];
    let urls = servers.each_ref().map(|server| server.url());
    let group = "balance = \"failover\"\nretry = { attempts = 0 }";
    let proxy = house(&urls, "recheck = \"60s\"", group);
    let mut client = proxy.client();
    poison(&mut client);
    poison(&mut client);
    assert_eq!([state(&proxy, 0), state(&proxy, 1)], [StateName::Open; 2]);
    assert_eq!(servers.each_ref().map(served), [5, 5]);
    assert_eq!(status(&mut client, "x-mock: status=500\r\n"), 500);
    assert_eq!(servers.each_ref().map(served), [6, 5], "the first has been open longest");
    assert_eq!(status(&mut client, ""), 200);
    assert_eq!(servers.each_ref().map(served), [6, 6], "it has just failed again");
}

#[test]
fn calls_that_hang_go_one_at_a_time() {
    let server = mock();
    let group = "timeouts = { first_byte = \"1s\" }\nretry = { attempts = 0 }";
    let proxy = house(&[server.url()], "recheck = \"60s\"", group);
    server.behave("delay=3600s");
    let hangs = || {
        std::thread::scope(|scope| {
            let clients: Vec<_> =
                (0..6).map(|_| scope.spawn(|| status(&mut proxy.client(), ""))).collect();
            let mut seen: Vec<u16> = clients.into_iter().map(|one| one.join().unwrap()).collect();
            seen.sort_unstable();
            seen
        })
    };
    assert_eq!(hangs(), [504; 6]);
    assert_eq!(state(&proxy, 0), StateName::Open);
    assert_eq!(hangs(), [503, 503, 503, 503, 503, 504]);
}

#[test]
fn a_server_that_is_back_serves_within_two_seconds_whatever_the_cooldown() {
    let (a, b) = (Fake::start("a", &[]), Fake::start("b", &[]));
    let addr = a.addr();
    let urls = [a.url(), b.url()];
    let proxy = house(&urls, "last_resort = false", "balance = \"failover\"");
    let serves = || {
        let answer =
            proxy.client().send(post("/v1/chat/completions", "", "{\"model\":\"m\"}")).answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.field("x-server").unwrap_or_default().to_owned()
    };
    assert_eq!(serves(), "a");
    drop(a);
    wait_until("the breaker opens", || {
        assert_eq!(serves(), "b");
        state(&proxy, 0) == StateName::Open
    });
    let _a = Fake::start_at(addr, "a", &[]);
    let back = Instant::now();
    wait_until("it serves again", || serves() == "a");
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
    wait_until("its breaker is closed", || state(&proxy, 0) == StateName::Closed);
}

#[test]
fn a_model_that_keeps_failing_does_not_take_the_others_away() {
    let server = mock();
    let proxy = house(&[server.url()], "recheck = \"60s\", last_resort = false", "");
    let mut client = proxy.client();
    let ask = |client: &mut Client, model: &str, how: &str| {
        let body = format!("{{\"model\":{model:?}}}");
        client.send(post("/v1/chat/completions", how, &body)).answer().status
    };
    let broken = "x-mock: status=500\r\n";
    assert_eq!(ask(&mut client, "m", broken), 500);
    assert_eq!(ask(&mut client, "n", ""), 200);
    for _ in 0..20 {
        assert_eq!(ask(&mut client, "m", broken), 500);
    }
    assert_eq!(state(&proxy, 0), StateName::Closed);
    assert_eq!(ask(&mut client, "n", ""), 200);
    // The whole server is another matter.
    for _ in 0..5 {
        assert_eq!(ask(&mut client, "n", broken), 500);
    }
    assert_eq!(state(&proxy, 0), StateName::Open);
}
