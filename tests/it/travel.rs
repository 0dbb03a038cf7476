//! rules §14, handover: what a process before has let in, found out and counted is known to the
//! one that takes over, and limits hold over both together.
//!
//! Two proxies in one process, with the same config on ports of their own: the message goes from
//! hand to hand. Sockets and processes are the business of `handover`.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use loadtest::mock::Mock;
use serde_json::{Value, json};
use tokenring::testing::policy::breaker::StateName;

use super::fake::Fake;
use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::ratelimits::fresh_minute;
use super::secure::{Secure, session};
use super::wire::{Client, chat, get, post};

const KEYS: &str = "auth = \"keys\"";
const MINE: &str = "x-api-key: sk-a\r\n";

/// Two proxies with one limited key, `sk-a`, and one without limits, `sk-b`.
fn limited(mock: &Mock, limits: &str) -> (Proxy, Proxy) {
    let rest = format!(
        "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n{limits}\n[[key]]\nname = \"b\"\nkey = \"sk-b\"\n"
    );
    let setup = Setup { listener: KEYS, rest: &rest, ..Setup::default() };
    (setup.start(&[mock]), setup.start(&[mock]))
}

fn status(client: &mut Client) -> u16 {
    client.send(chat(MINE, false)).answer().status
}

/// Of so many requests, how many pass; the others are 429.
fn passed(client: &mut Client, tries: usize) -> usize {
    let statuses: Vec<u16> = (0..tries).map(|_| status(client)).collect();
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    statuses.iter().filter(|status| **status == 200).count()
}

/// Sends a request and lets it wait for its answer.
fn waiting(proxy: &Proxy) -> Client {
    let mut client = proxy.client();
    client.send(chat(MINE, false));
    client
}

fn has_answer(client: &Client) -> bool {
    let stream = client.stream();
    stream.set_nonblocking(true).unwrap();
    let found = stream.peek(&mut [0]).is_ok();
    stream.set_nonblocking(false).unwrap();
    found
}

/// Has a little time pass in which nothing must happen.
fn still_waits(client: &Client) {
    let until = Instant::now() + Duration::from_millis(300);
    while Instant::now() < until {
        assert!(!has_answer(client), "it must wait");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_minute_over_a_handover_has_as_many_requests_as_any_other() {
    let mock = mock();
    let (old, new) = limited(&mock, "rpm = 60\nrpd = 100");
    fresh_minute();
    let mut before = old.client();
    assert_eq!(passed(&mut before, 30), 30);
    let taker = new.taker();
    // Nothing that counts is let in before it is known what was; what does not count, is.
    let mut early = waiting(&new);
    still_waits(&early);
    assert_eq!(new.client().send(chat("x-api-key: sk-b\r\n", false)).answer().status, 200);
    let (mut gift, state) = old.give()();
    let line = taker.take(&state).unwrap();
    assert!(line.starts_with("1 upstream, 1 limited key, 0 client rates,"), "{line}");
    assert_eq!(early.answer().status, 200);
    // The old one has one connection, so it may let in one more.
    assert_eq!(passed(&mut before, 5), 1);
    assert_eq!(passed(&mut new.client(), 28), 28);
    // One may still come back for all that the new one knows: a call waits for it, in vain.
    let mut last = waiting(&new);
    still_waits(&last);
    taker.take(&gift.later(false)).unwrap();
    assert_eq!(last.answer().status, 429);
    assert_eq!((passed(&mut before, 3), passed(&mut new.client(), 3)), (0, 0));
    assert_eq!(mock.stats().requests_total, 61);
}

#[test]
fn under_load_a_minute_has_exactly_its_requests() {
    let mock = mock();
    let (old, new) = limited(&mock, "rpm = 300");
    fresh_minute();
    let begun = Instant::now();
    let (handed, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let (at_old, at_new) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                // Stays where it is for a while after the giving, as one that keeps its connection.
                let mut client = old.client();
                while !handed.load(Relaxed) {
                    at_old.fetch_add(passed(&mut client, 1), Relaxed);
                }
                at_old.fetch_add(passed(&mut client, 2), Relaxed);
            });
            scope.spawn(|| {
                let mut client = new.client();
                while !over.load(Relaxed) {
                    at_new.fetch_add(passed(&mut client, 1), Relaxed);
                }
            });
        }
        let taker = new.taker();
        wait_until("some have passed", || at_old.load(Relaxed) >= 60);
        let (mut gift, state) = old.give()();
        taker.take(&state).unwrap();
        wait_until("some have passed there", || at_new.load(Relaxed) >= 20);
        handed.store(true, Relaxed);
        let mut tell = |last: bool| {
            let state = gift.later(last);
            assert!(state.is_empty() || taker.take(&state).is_ok());
        };
        wait_until("all have left", || old.connections() == 0);
        tell(false);
        tell(true);
        wait_until("the minute is full", || {
            at_old.load(Relaxed) + at_new.load(Relaxed) >= 300 || begun.elapsed() > LIMIT
        });
        // One that passes too many would do so now.
        let requests = at_new.load(Relaxed);
        assert_eq!(passed(&mut new.client(), 50), 0, "{requests}");
        over.store(true, Relaxed);
    });
    assert!(begun.elapsed() < Duration::from_secs(12), "in the same minute");
    assert_eq!(at_old.load(Relaxed) + at_new.load(Relaxed), 300);
    assert_eq!(mock.stats().requests_total, 300);
}

#[test]
fn what_the_old_one_does_not_use_comes_back() {
    let mock = mock();
    let (old, new) = limited(&mock, "rpm = 10");
    fresh_minute();
    let idle: Vec<Client> = (0..20).map(|_| old.client()).collect();
    wait_until("all are there", || old.connections() == 20);
    assert_eq!(passed(&mut old.client(), 2), 2);
    let taker = new.taker();
    let (mut gift, state) = old.give()();
    taker.take(&state).unwrap();
    // Half of what is left is kept for the many connections that the old one has.
    assert_eq!(passed(&mut new.client(), 4), 4);
    let mut more: Vec<Client> = (0..6).map(|_| waiting(&new)).collect();
    more.iter().for_each(still_waits);
    // Two connections are left, and may have one request each.
    drop(idle);
    let _two = [old.client(), old.client()];
    wait_until("two are left", || old.connections() == 2);
    taker.take(&gift.later(false)).unwrap();
    let answered = || more.iter().filter(|client| has_answer(client)).count();
    wait_until("two came back", || answered() == 2);
    taker.take(&gift.later(true)).unwrap();
    let statuses: Vec<u16> = more.iter_mut().map(|client| client.answer().status).collect();
    let passed = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!((passed, statuses.len() - passed), (4, 2), "{statuses:?}");
}

#[test]
fn what_the_old_one_kept_counts_as_used_when_it_dies() {
    let mock = mock();
    let (old, new) = limited(&mock, "rpm = 10");
    fresh_minute();
    let _idle: Vec<Client> = (0..20).map(|_| old.client()).collect();
    wait_until("all are there", || old.connections() == 20);
    let taker = new.taker();
    let (_gift, state) = old.give()();
    taker.take(&state).unwrap();
    assert_eq!(passed(&mut new.client(), 5), 5);
    let mut one_more = waiting(&new);
    still_waits(&one_more);
    taker.end();
    assert_eq!(one_more.answer().status, 429);
    assert!(taker.take(&state).unwrap_err().contains("after its process had ended"));
}

#[test]
fn an_old_one_that_goes_on_has_lost_nothing() {
    let mock = mock();
    let (old, new) = limited(&mock, "rpm = 10\nper_second = 1\nburst = 8");
    fresh_minute();
    let mut client = old.client();
    assert_eq!(passed(&mut client, 2), 2);
    let taker = new.taker();
    let (gift, _) = old.give()();
    gift.keep();
    assert!(passed(&mut client, 6) == 6, "of the burst six are left");
    // The new one serves by itself when nothing comes.
    let mut waits = waiting(&new);
    still_waits(&waits);
    taker.give_up();
    assert_eq!(waits.answer().status, 200);
    let again = new.taker();
    let mut waits = waiting(&new);
    still_waits(&waits);
    drop(again);
    assert_eq!(waits.answer().status, 200);
}

#[test]
fn places_in_flight_at_the_old_one_are_taken_at_the_new_one() {
    let mock = mock();
    let rest = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\nconcurrency = 2\n";
    let setup = Setup { listener: KEYS, rest, upstream: "concurrency = 2\n", ..Setup::default() };
    let group = "queue = { length = 9, wait = \"60s\" }\n";
    let setup = Setup { group, ..setup };
    let (old, new) = (setup.start(&[&mock]), setup.start(&[&mock]));
    let hold = |proxy: &Proxy| {
        let before = mock.stats().in_flight;
        let mut client = proxy.client();
        client.send(chat(&format!("{MINE}x-mock: delay=60s\r\n"), false));
        mock.wait_until(LIMIT, |stats| stats.in_flight == before + 1).expect("in flight");
        client
    };
    let held = hold(&old);
    let taker = new.taker();
    let (mut gift, state) = old.give()();
    taker.take(&state).unwrap();
    let upstream = |proxy: &Proxy| proxy.plan().upstreams[0].state.clone();
    assert_eq!(upstream(&new).slots.in_flight_anywhere(), 1);
    let own = hold(&new);
    // The key's two places are taken, one here and one there.
    assert_eq!(status(&mut new.client()), 429);
    assert!(!upstream(&new).slots.has_free());
    drop(held);
    wait_until("it has ended", || upstream(&old).in_flight() == 0);
    wait_until("and its key's place with it", || old.plan().limits[0].state.in_flight() == 0);
    taker.take(&gift.later(false)).unwrap();
    assert_eq!(status(&mut new.client()), 200);
    drop(own);
    taker.take(&gift.later(true)).unwrap();
    assert_eq!(upstream(&new).slots.in_flight_anywhere(), upstream(&new).in_flight());
}

#[test]
fn a_request_queued_at_the_new_one_gets_the_slot_of_the_old_one() {
    let mock = mock();
    let group = "queue = { length = 9, wait = \"60s\" }\n";
    let setup = Setup { upstream: "concurrency = 1\n", group, ..Setup::default() };
    let (old, new) = (setup.start(&[&mock]), setup.start(&[&mock]));
    let mut held = old.client();
    held.send(chat("x-mock: delay=60s\r\n", false));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("in flight");
    let taker = new.taker();
    let (mut gift, state) = old.give()();
    taker.take(&state).unwrap();
    let mut queued = waiting(&new);
    still_waits(&queued);
    drop(held);
    wait_until("it has ended", || old.plan().upstreams[0].state.in_flight() == 0);
    taker.take(&gift.later(false)).unwrap();
    assert_eq!(queued.answer().status, 200);
}

#[test]
fn tokens_are_owed_to_the_new_one_too() {
    let mock = mock();
    let (old, new) = limited(&mock, "tpm = 10");
    let spend = |proxy: &Proxy, tokens: u32| {
        let mut client = proxy.client();
        let usage = format!("{MINE}x-mock: delay=100ms,tokens={tokens}\r\n");
        client.send(chat(&usage, false));
        client
    };
    // In flight at the giving, and paid for afterwards.
    let mut late = spend(&old, 200);
    mock.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("in flight");
    let taker = new.taker();
    let (mut gift, state) = old.give()();
    taker.take(&state).unwrap();
    assert_eq!(late.answer().status, 200);
    wait_until("it is paid", || status(&mut old.client()) == 429);
    taker.take(&gift.later(false)).unwrap();
    assert_eq!(status(&mut new.client()), 429);
    // And what was owed at the giving is at once.
    let third = limited(&mock, "tpm = 10").0;
    let taker = third.taker();
    taker.take(&new.give()().1).unwrap();
    assert_eq!(status(&mut third.client()), 429);
}

#[test]
fn the_rate_of_an_address_goes_on() {
    let mock = mock();
    let listener = "auth = \"none\"\nratelimit = { per_second = 1, burst = 20 }\n";
    let setup = Setup { listener, ..Setup::default() };
    let (old, new) = (setup.start(&[&mock]), setup.start(&[&mock]));
    let mut before = old.client();
    let begun = Instant::now();
    assert_eq!(passed(&mut before, 10), 10);
    let taker = new.taker();
    let mut early = waiting(&new);
    still_waits(&early);
    let (mut gift, state) = old.give()();
    taker.take(&state).unwrap();
    assert_eq!(early.answer().status, 200);
    // What still comes at the old one is charged at the new one with the next message.
    assert_eq!(passed(&mut before, 4), 4);
    taker.take(&gift.later(false)).unwrap();
    let more = passed(&mut new.client(), 20);
    let earned = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    assert!((5..=5 + earned).contains(&more), "{more} of 5, and {earned} earned");
}

#[test]
fn an_open_breaker_stays_open_and_estimates_stay() {
    let mock = mock();
    let upstream = "breaker = { consecutive = 3, cooldown = \"1h\", recheck = \"60s\", last_resort = false }\n";
    let setup = Setup { upstream, group: "retry = { attempts = 1 }\n", ..Setup::default() };
    let (old, new) = (setup.start(&[&mock]), setup.start(&[&mock]));
    let state = |proxy: &Proxy| proxy.plan().upstreams[0].state.clone();
    assert_eq!(old.client().send(chat("x-mock: delay=20ms\r\n", false)).answer().status, 200);
    for _ in 0..3 {
        let failing = chat("x-mock: status=500\r\n", false);
        assert_eq!(old.client().send(failing).answer().status, 500);
    }
    wait_until("it is open", || state(&old).breaker.state().name() == StateName::Open);
    assert_eq!(state(&new).breaker.state().name(), StateName::Closed);
    let taker = new.taker();
    taker.take(&old.give()().1).unwrap();
    assert_eq!(state(&new).breaker.state().name(), StateName::Open);
    assert_eq!(status(&mut new.client()), 503);
    let now = new.shared().notifier.clock.at(Instant::now());
    let (before, after) = (state(&old).measures.image(now), state(&new).measures.image(now));
    assert_eq!((before.response_time, before.success), (after.response_time, after.success));
    assert_eq!(state(&old).breaker_changes(), state(&new).breaker_changes());
}

#[test]
fn what_the_old_one_found_down_is_down_until_a_probe_finds_it_well() {
    let fake = Fake::start("gpu", &[]);
    fake.say(|says| says.health = 500);
    let rest = "[admin]\nbind = \"127.0.0.1:0\"\n";
    let start = |fall: u32| {
        let upstream = format!(
            "health = {{ path = \"/health\", fall = {fall}, rise = 2, interval = \"1h\" }}\n"
        );
        let setup = Setup { upstream: &upstream, rest, ..Setup::default() };
        setup.start_on(&[fake.url()])
    };
    let (old, new) = (start(1), start(3));
    let healthy = |proxy: &Proxy| proxy.plan().upstreams[0].state.healthy();
    wait_until("it is down", || !healthy(&old));
    assert!(healthy(&new), "one bad probe of three");
    let taker = new.taker();
    taker.take(&old.give()().1).unwrap();
    assert!(!healthy(&new));
    assert_eq!(status(&mut new.client()), 503);
    let check = || {
        let admin = new.admin().expect("an admin listener").to_string();
        let asked = post("/health/force-check", "", "");
        Client::connect(admin.parse().unwrap()).send(asked).answer();
    };
    check();
    assert!(!healthy(&new), "it is down still");
    fake.say(|says| says.health = 200);
    check();
    assert!(healthy(&new));
    assert_eq!(status(&mut new.client()), 200);
}

fn scrape(proxy: &Proxy) -> Vec<(String, f64)> {
    let admin = proxy.admin().expect("an admin listener").to_string();
    let text = Client::connect(admin.parse().unwrap()).send(get("/metrics", "")).answer().text();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let series = lines.map(|line| line.rsplit_once(' ').unwrap());
    series.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[test]
fn no_counter_falls() {
    let mock = mock();
    let rest = "[admin]\nbind = \"127.0.0.1:0\"\n";
    let setup = Setup { rest, ..Setup::default() };
    let (old, new) = (setup.start(&[&mock]), setup.start(&[&mock]));
    let mut client = old.client();
    for stream in [false, true, true] {
        assert_eq!(client.send(chat("", stream)).answer().status, 200);
    }
    assert_eq!(client.send(chat("x-mock: status=500\r\n", false)).answer().status, 500);
    let unknown = post("/v1/chat/completions", "", "{\"model\":\"nobody\"}");
    assert_eq!(client.send(unknown).answer().status, 404);
    wait_until("all are published", || old.counters().exchanges == 5);
    let taker = new.taker();
    let (mut gift, state) = old.give()();
    taker.take(&state).unwrap();
    assert_eq!(new.client().send(chat("", false)).answer().status, 200);
    assert_eq!(client.send(chat("", false)).answer().status, 200);
    wait_until("both are published", || {
        old.counters().exchanges == 6 && new.counters().exchanges == 6
    });
    taker.take(&gift.later(true)).unwrap();
    assert_eq!(new.counters().exchanges, 7);
    // Told again, nothing is counted twice.
    taker.take(&gift.later(true)).unwrap();
    let (before, after) = (scrape(&old), scrape(&new));
    let counter = |name: &str| {
        let family = name.split('{').next().unwrap();
        // Reloads are those of a process.
        (["_total", "_count", "_sum", "_bucket"].iter().any(|end| family.ends_with(end)))
            && !family.contains("reload")
    };
    let mut seen = 0;
    for (name, value) in before.iter().filter(|(name, value)| counter(name) && *value > 0.0) {
        let now = after.iter().find(|(one, _)| one == name);
        let now = now.unwrap_or_else(|| panic!("{name} is gone")).1;
        assert!(now >= *value, "{name} has fallen from {value} to {now}");
        seen += 1;
    }
    assert!(seen > 50, "{seen} series");
    let sum = |all: &[(String, f64)], family: &str| -> f64 {
        all.iter().filter(|(name, _)| name.starts_with(family)).map(|(_, value)| value).sum()
    };
    assert_eq!(sum(&after, "tokenring_http_requests_total{"), 7.0);
    assert_eq!(sum(&after, "tokenring_upstream_attempts_total{"), 6.0);
}

#[test]
fn what_has_no_name_any_more_is_counted_as_other() {
    let mock = mock();
    let old = Setup::default().start(&[&mock]);
    let text = Setup::default().text(&[mock.url()]).replace("\"gpu0\"", "\"gpu-new\"");
    let new = Proxy::start(&format!("{text}[admin]\nbind = \"127.0.0.1:0\"\n"));
    assert_eq!(old.client().send(chat("", false)).answer().status, 200);
    wait_until("it is published", || old.counters().exchanges == 1);
    let taker = new.taker();
    taker.take(&old.give()().1).unwrap();
    let series = scrape(&new);
    let of = |part: &str| series.iter().any(|(name, value)| name.contains(part) && *value > 0.0);
    assert!(of("upstream=\"other\"") && !of("upstream=\"gpu0\""));
    assert_eq!(new.counters().exchanges, 1);
    assert_eq!(new.plan().upstreams[0].state.attempts(), 0, "it is another one");
}

#[test]
fn clients_resume_their_tls_sessions() {
    let (secure, mock) = (Secure::new(), mock());
    let urls = [mock.url()];
    let start = || secure.proxy("", Setup::default(), &urls);
    let (old, new) = (start(), start());
    let config = secure.client(&[]);
    let resumed = |proxy: &Proxy| {
        let (stream, mut tls) =
            (std::net::TcpStream::connect(proxy.addr()).unwrap(), session(&config));
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut socket = &stream;
        let mut stream = rustls::Stream::new(&mut tls, &mut socket);
        std::io::Write::write_all(&mut stream, &get("/health", "connection: close\r\n")).unwrap();
        // Tickets come behind the handshake.
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
        tls.handshake_kind() == Some(rustls::HandshakeKind::Resumed)
    };
    assert!(!resumed(&old));
    assert!(resumed(&old));
    let taker = new.taker();
    let line = taker.take(&old.give()().1).unwrap();
    assert!(line.contains("1 ticket key,"), "{line}");
    assert!(resumed(&new));
}

/// Changes a message.
fn changed(state: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut message: Value = serde_json::from_slice(state).unwrap();
    change(&mut message);
    message.to_string().into_bytes()
}

#[test]
fn another_version_is_understood_as_far_as_it_goes() {
    let mock = mock();
    let (old, new) = limited(&mock, "rpm = 10");
    fresh_minute();
    assert_eq!(passed(&mut old.client(), 9), 9);
    wait_until("it has gone", || old.connections() == 0);
    let taker = new.taker();
    let (_gift, state) = old.give()();
    let later = changed(&state, |message| {
        message["version"] = json!(7);
        message["what"] = json!({"nobody": ["knows"]});
        message["keys"][0]["more"] = json!([1, 2]);
        message["rows"][0]["kind"] = json!("a new kind");
        message["upstreams"][0]["breaker"]["state"] = json!("ajar");
        message["counters"].as_object_mut().unwrap().remove("reused");
    });
    let line = taker.take(&later).unwrap();
    assert!(line.contains("(of version 7, this is 1)"), "{line}");
    assert!(line.contains("a breaker in the state \"ajar\""), "{line}");
    assert!(line.contains("rows of the kind \"a new kind\""), "{line}");
    assert_eq!(passed(&mut new.client(), 3), 1);
}

#[test]
fn what_is_no_state_changes_nothing_and_says_why() {
    let mock = mock();
    let (old, new) = limited(&mock, "rpm = 10");
    let taker = new.taker();
    for (bytes, why) in [
        (&b""[..], "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[]", "is no object"),
        (b"{}", "has no version"),
        (b"{\"version\":\"x\"}", "has no version"),
    ] {
        let error = taker.take(bytes).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let mut waits = waiting(&new);
    still_waits(&waits);
    let (_gift, state) = old.give()();
    let spoilt = changed(&state, |message| {
        for name in ["keys", "addresses", "upstreams", "groups", "tickets", "counters", "rows"] {
            message[name] = json!([1, "x", null, {"name": 7, "listener": [], "values": {}}]);
        }
        message["tickets"] = json!("AAAA");
        message["wall"] = json!(-1);
    });
    let line = taker.take(&spoilt).unwrap();
    assert!(line.contains("left out: "), "{line}");
    assert_eq!(waits.answer().status, 200);
}

/// Values that no field should have.
fn nonsense() -> [Value; 8] {
    [
        json!(null),
        json!(-1),
        json!(u64::MAX),
        json!(1e300),
        json!(""),
        json!([]),
        json!([u64::MAX, u64::MAX, u64::MAX, u64::MAX]),
        json!({}),
    ]
}

/// Puts a value into each place of a message in turn.
fn every_place(value: &Value, put: &Value, found: &mut dyn FnMut(Value)) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                every_place(inner, put, &mut |inner| {
                    let mut map = map.clone();
                    map.insert(name.clone(), inner);
                    found(Value::Object(map));
                });
            }
        }
        Value::Array(list) => {
            for (at, inner) in list.iter().enumerate().take(2) {
                every_place(inner, put, &mut |inner| {
                    let mut list = list.clone();
                    list[at] = inner;
                    found(Value::Array(list));
                });
            }
        }
        _ => {}
    }
    found(put.clone());
}

#[test]
fn nonsense_in_any_place_harms_nothing() {
    let mock = mock();
    let listener = "auth = \"keys\"\nratelimit = { per_second = 1, burst = 9 }\n";
    let rest = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\nrpm = 9\nrpd = 9\ntpm = 9\nconcurrency = 9\n\
                per_second = 1\nburst = 9\n";
    let setup = Setup { listener, rest, ..Setup::default() };
    let (old, new) = (setup.start(&[&mock]), setup.start(&[&mock]));
    assert_eq!(status(&mut old.client()), 200);
    let (mut gift, state) = old.give()();
    for bytes in [state, gift.later(true)] {
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        for put in nonsense() {
            every_place(&message, &put, &mut |spoilt| {
                let taker = new.taker();
                // Whether it is taken or not, it comes to an end.
                let _ = taker.take(spoilt.to_string().as_bytes());
                let _ = taker.take(&bytes);
            });
        }
    }
    assert!(!new.shared().before.is_awaited());
    // The sums of all cores, and the next message of them.
    drop((new.counters(), new.give()()));
    // Those that the old one has never told of.
    new.shared().panics.store(0, Relaxed);
    assert_eq!(new.client().send(get("/health", "")).answer().status, 200);
}
