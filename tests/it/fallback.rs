//! rules §5, §8: who is asked when a member cannot answer, and how often.

use std::sync::Arc;
use std::time::{Duration, Instant};

use loadtest::mock::Mock;
use tokenring::testing::policy::breaker::StateName;

use super::house::{LIMIT, Proxy, mock, wait_until};
use super::wire::{Answer, Client, chat, post, sha256};

const RETRY: &str = "retry = { attempts = 2, initial = \"100ms\", max = \"100ms\", \
    on = [\"connect\", \"reset\", \"500\", \"503\", \"429\"] }\n";
const NEVER_OPENS: &str = "breaker = { consecutive = 1000000, calls_min = 1000000 }";
const OPENS_AT_ONCE: &str = "breaker = { consecutive = 1, cooldown = \"30s\" }";

/// Upstreams `a`, `b`, `c` with these lines of TOML, and these groups; the model `m` is `first`'s.
fn house(servers: &[(&Mock, &str)], groups: &str) -> Proxy {
    let mut text = "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\n\
                    auth = \"none\"\n"
        .to_owned();
    for ((mock, more), name) in servers.iter().zip(["a", "b", "c"]) {
        let url = mock.url();
        text += &format!("[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\nmodels = []\n{more}\n");
    }
    Proxy::start(&(text + groups + "[models.m]\ngroup = \"first\"\n"))
}

fn group(name: &str, members: &str, more: &str) -> String {
    format!("[[group]]\nname = \"{name}\"\nmembers = [{members}]\nbalance = \"failover\"\n{more}\n")
}

/// Each in a group of its own: `first`, then `spare`, then `last`.
fn in_a_row(mocks: &[Mock; 3], breaker: &str, retry: &str) -> Proxy {
    let groups = group("first", "\"a\"", &format!("fallback = [\"spare\", \"last\"]\n{retry}"))
        + &group("spare", "\"b\"", retry)
        + &group("last", "\"c\"", retry);
    house(&mocks.each_ref().map(|mock| (mock, breaker)), &groups)
}

fn three() -> [Mock; 3] {
    [mock(), mock(), mock()]
}

fn ask(client: &mut Client) -> Answer {
    client.send(chat("", false)).answer()
}

fn requests<const N: usize>(mocks: &[Mock; N]) -> [u64; N] {
    mocks.each_ref().map(|mock| mock.stats().requests_total)
}

fn breaker(proxy: &Proxy, at: usize) -> StateName {
    proxy.plan().upstreams[at].state.breaker.state().name()
}

#[test]
fn falls_back_to_one_group_after_the_other() {
    let mocks = three();
    let proxy = in_a_row(&mocks, NEVER_OPENS, RETRY);
    let mut client = proxy.client();
    assert_eq!(ask(&mut client).status, 200);
    assert_eq!(requests(&mocks), [1, 0, 0], "nobody else while the first can");
    mocks[0].behave("status=503");
    assert_eq!(ask(&mut client).status, 200);
    assert_eq!(requests(&mocks), [2, 1, 0]);
    mocks[1].behave("reset");
    assert_eq!(ask(&mut client).status, 200);
    // On a connection out of the pool a reset is first answered with a fresh one.
    assert_eq!((requests(&mocks)[0], requests(&mocks)[2]), (3, 1));
    mocks[2].behave("status=500");
    let answer = ask(&mut client);
    assert_eq!((answer.status, answer.message().as_str()), (500, "as x-mock asked"));
}

#[test]
fn falls_back_only_when_no_member_is_left() {
    let mocks = three();
    let groups = group("first", "\"a\", \"b\"", &format!("fallback = [\"spare\"]\n{RETRY}"))
        + &group("spare", "\"c\"", RETRY);
    let proxy = house(&mocks.each_ref().map(|mock| (mock, NEVER_OPENS)), &groups);
    let mut client = proxy.client();
    mocks[0].behave("status=503");
    assert_eq!(ask(&mut client).status, 200);
    assert_eq!(requests(&mocks), [1, 1, 0]);
    mocks[1].behave("status=503");
    assert_eq!(ask(&mut client).status, 200);
    assert_eq!(requests(&mocks), [2, 2, 1]);
}

#[test]
fn a_group_whose_breakers_are_open_is_passed_over() {
    let mocks = three();
    let proxy = in_a_row(&mocks, OPENS_AT_ONCE, "retry = { attempts = 0 }\n");
    let mut client = proxy.client();
    mocks[0].behave("status=500");
    assert_eq!(ask(&mut client).status, 500, "retries are off");
    for _ in 0..3 {
        assert_eq!(ask(&mut client).status, 200, "this is none");
    }
    assert_eq!(requests(&mocks), [1, 3, 0]);
}

#[test]
fn a_forced_upstream_has_no_fallback() {
    let mocks = three();
    let proxy = in_a_row(&mocks, "breaker = { consecutive = 2, last_resort = false }", RETRY);
    let mut client = proxy.client();
    mocks[0].behave("status=503");
    let forced = post("/v1/chat/completions", "", "{\"model\":\"m@a\"}");
    for _ in 0..2 {
        let answer = client.send(&forced).answer();
        assert_eq!((answer.status, answer.message().as_str()), (503, "as x-mock asked"));
    }
    assert_eq!(breaker(&proxy, 0), StateName::Open);
    let answer = client.send(&forced).answer();
    assert_eq!(answer.status, 503);
    assert!(answer.message().contains("No upstream"), "{}", answer.message());
    assert_eq!(requests(&mocks), [2, 0, 0]);
    assert_eq!(ask(&mut client).status, 200, "who does not insist is served");
}

#[test]
fn the_body_is_sent_again_whole() {
    let mocks = three();
    let proxy = in_a_row(&mocks, NEVER_OPENS, RETRY);
    let body = format!("{{\"model\":\"m\",\"pad\":\"{}\"}}", "x".repeat(300_000));
    mocks[0].behave("reset");
    mocks[1].behave("status=503");
    let answer = proxy.client().send(post("/v1/chat/completions", "", &body)).answer();
    assert_eq!(answer.status, 200);
    for mock in &mocks {
        let seen = mock.seen();
        let first = seen.first().expect("each was asked");
        assert!(first.body_complete);
        assert_eq!(first.body_sha256, sha256(body.as_bytes()));
    }
}

#[test]
fn nobody_else_is_asked_after_the_first_byte() {
    for how in ["cut_after=2", "reset_after=2"] {
        let mocks = three();
        let proxy = in_a_row(&mocks, NEVER_OPENS, RETRY);
        mocks[0].behave(how);
        let mut client = proxy.client();
        let broken = client.send(chat("", true)).try_answer().expect_err("cut");
        assert!(broken.head.starts_with("HTTP/1.1 200"), "{how}");
        assert_eq!(requests(&mocks), [1, 0, 0], "{how}");
    }
}

#[test]
fn retry_after_is_when_the_nearest_breaker_lets_somebody_in() {
    let mocks = [mock(), mock()];
    let cooldown = |time: &str| {
        format!("breaker = {{ consecutive = 1, cooldown = \"{time}\", last_resort = false }}")
    };
    let (near, far) = (cooldown("20s"), cooldown("600s"));
    let groups = group("first", "\"a\", \"b\"", RETRY);
    let proxy = house(&[(&mocks[0], &far), (&mocks[1], &near)], &groups);
    for mock in &mocks {
        mock.behave("status=500");
    }
    let mut client = proxy.client();
    let begun = Instant::now();
    assert_eq!(ask(&mut client).status, 500, "both were tried");
    let answer = ask(&mut client);
    let seconds: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    // What is left of twenty seconds, rounded up.
    let least = 20u64.saturating_sub(begun.elapsed().as_secs() + 1);
    assert_eq!(answer.status, 503);
    assert!((least..=20).contains(&seconds), "{seconds}");
    assert_eq!(requests(&mocks), [1, 1]);
}

#[test]
fn a_server_that_asks_for_rest_is_left_alone_while_there_are_others() {
    for status in [429, 503] {
        let mocks = [mock(), mock()];
        let groups = group("first", "\"a\", \"b\"", RETRY);
        let proxy = house(&[(&mocks[0], NEVER_OPENS), (&mocks[1], NEVER_OPENS)], &groups);
        let mut client = proxy.client();
        mocks[0].behave(&format!("status={status},retry_after=2"));
        let begun = Instant::now();
        assert_eq!(ask(&mut client).status, 200);
        mocks[0].behave("");
        while begun.elapsed() < Duration::from_millis(1500) {
            assert_eq!(ask(&mut client).status, 200);
            assert_eq!(mocks[0].stats().requests_total, 1, "{status}: still at rest");
        }
        wait_until("it is asked again", || {
            ask(&mut proxy.client());
            mocks[0].stats().requests_total > 1
        });
        // The proxy's clock is a tick of 250 ms behind at most.
        assert!(begun.elapsed() >= Duration::from_millis(1700), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_server_that_asks_for_rest_is_better_than_none() {
    let mocks = [mock(), mock()];
    let groups = group("first", "\"a\", \"b\"", RETRY);
    let proxy = house(&[(&mocks[0], NEVER_OPENS), (&mocks[1], OPENS_AT_ONCE)], &groups);
    let mut client = proxy.client();
    mocks[0].behave("status=429,retry_after=300");
    mocks[1].behave("status=500");
    assert_eq!(ask(&mut client).status, 500);
    mocks[0].behave("");
    for _ in 0..3 {
        assert_eq!(ask(&mut client).status, 200);
    }
    assert_eq!(requests(&mocks), [4, 1]);
}

#[test]
fn one_that_is_overloaded_has_not_failed() {
    for (status, more) in [(429, ",retry_after=60"), (529, ""), (503, ",retry_after=60")] {
        let mocks = [mock()];
        let groups = group("first", "\"a\"", "retry = { attempts = 0 }\n");
        let proxy = house(&[(&mocks[0], OPENS_AT_ONCE)], &groups);
        let mut client = proxy.client();
        mocks[0].behave(&format!("status={status}{more}"));
        for _ in 0..30 {
            assert_eq!(ask(&mut client).status, status);
        }
        assert_eq!((requests(&mocks), breaker(&proxy, 0)), ([30], StateName::Closed), "{status}");
    }
}

/// Two attempts more for each request would make three floods of one.
#[test]
fn the_retry_budget_bounds_what_an_outage_costs() {
    let mocks = three();
    let groups = group("first", "\"a\", \"b\", \"c\"", RETRY);
    let proxy = house(&mocks.each_ref().map(|mock| (mock, NEVER_OPENS)), &groups);
    for mock in &mocks {
        mock.behave("status=500");
    }
    let mut client = proxy.client();
    let begun = Instant::now();
    for _ in 0..300 {
        assert_eq!(ask(&mut client).status, 500);
    }
    let seconds = begun.elapsed().as_secs() + 1;
    let retries = requests(&mocks).iter().sum::<u64>() - 300;
    // A fifth, what the clock gives, and the ten seconds of the clock that it begins with.
    assert!((50..=60 + 30 + 3 * seconds).contains(&retries), "{retries} in {seconds} s");
}

/// What a server swallowed is retried in one moment: more than any fixed number of retries.
#[test]
fn the_retry_budget_lasts_for_all_that_one_death_leaves_behind() {
    const WAITING: u64 = 60;
    let mut mocks = Vec::from(three());
    let (a, b) = (mocks.remove(0), mocks.remove(0));
    let groups = group("first", "\"a\", \"b\"", RETRY);
    let proxy = Arc::new(house(&[(&a, NEVER_OPENS), (&b, NEVER_OPENS)], &groups));
    let mut client = proxy.client();
    for _ in 0..100 {
        assert_eq!(ask(&mut client).status, 200);
    }
    a.behave("delay=3600s");
    let before = a.stats().requests_total;
    let waiting: Vec<_> = (0..WAITING)
        .map(|_| {
            let proxy = proxy.clone();
            std::thread::spawn(move || ask(&mut proxy.client()).status)
        })
        .collect();
    a.wait_until(LIMIT, |stats| stats.requests_total == before + WAITING).expect("all wait");
    drop(a);
    let answers: Vec<u16> = waiting.into_iter().map(|one| one.join().unwrap()).collect();
    assert_eq!(answers, [200; WAITING as usize]);
}
