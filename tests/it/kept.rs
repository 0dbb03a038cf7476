//! rules §14: what outlives a plan goes on with the next one: places in a queue, breakers, windows.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use loadtest::mock::{Mock, MockConfig};
use tokenring::testing::control::Options;
use tokenring::testing::error::RETRY_AFTER_S_MAX;
use tokenring::testing::policy::breaker::{State, StateName};

use super::fake::{NameServer, Records};
use super::house::{LIMIT, Proxy, mock_with, wait_until};
use super::planner::Planner;
use super::ratelimits::fresh_minute;
use super::wire::{Answer, Client, post};

fn named(name: &str) -> Mock {
    mock_with(|config| config.name = name.to_owned())
}

/// A server in a config, with its settings.
struct Entry<'a>(&'a str, &'a Mock, &'a str);

/// A config with these servers, groups of them and keys.
///
/// Shape: a model of the same name leads to each group; without keys the listener is open.
fn config(entries: &[Entry<'_>], groups: &[(&str, &[&str])], queue: &str, keys: &str) -> String {
    let auth = if keys.is_empty() { "none" } else { "keys" };
    let mut text = format!(
        "[process]\ncores = 2\n\
         [[listener]]\nname = \"main\"\nbind = \"127.0.0.1:0\"\nauth = \"{auth}\"\n"
    );
    for Entry(name, mock, settings) in entries {
        let url = mock.url();
        text +=
            &format!("[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\nmodels = []\n{settings}\n");
    }
    for (name, members) in groups {
        let members: Vec<String> =
            members.iter().map(|one| format!("{{ upstream = \"{one}\" }}")).collect();
        let members = members.join(", ");
        text += &format!("[[group]]\nname = \"{name}\"\nmembers = [{members}]\n{queue}\n");
    }
    for (name, _) in groups {
        text += &format!("[models.\"{name}\"]\ngroup = \"{name}\"\n");
    }
    text + keys
}

fn ask(model: &str, fields: &str) -> Vec<u8> {
    let body = format!("{{\"messages\":[],\"model\":\"{model}\"}}");
    post("/v1/chat/completions", fields, body)
}

fn begin(proxy: &Proxy, model: &str, fields: &str) -> Client {
    let mut client = proxy.client();
    client.send(ask(model, fields));
    client
}

/// Takes a slot of a server, until the client is dropped.
fn hold(proxy: &Proxy, mock: &Mock, model: &str) -> Client {
    let before = mock.stats().requests_total;
    let client = begin(proxy, model, "x-mock: delay=60s\r\n");
    mock.wait_until(LIMIT, |stats| stats.requests_total == before + 1).expect("in flight");
    client
}

fn waiting(proxy: &Proxy, group: &str, count: u32) {
    wait_until("so many wait", || {
        let (plan, _) = proxy.shared().slot.plan();
        let group = plan.groups.iter().find(|one| one.name == group).expect("it is there");
        group.queue.as_ref().expect("it has a queue").len() == count
    });
}

/// Who was sent to a server, in order.
fn sent_to(mock: &Mock) -> Vec<String> {
    mock.seen().iter().filter_map(|seen| seen.field("x-who")).collect()
}

fn who(number: u32) -> String {
    format!("x-who: {number}\r\n")
}

fn retry_after(answer: &Answer) -> u32 {
    assert_eq!(answer.status, 503, "{}", answer.text());
    answer.field("retry-after").expect("when").parse().expect("a number")
}

const ONE: &str = "concurrency = 1";

#[test]
fn a_new_address_keeps_those_who_wait_and_the_measured_rate() {
    let (a, b) = (named("a"), named("b"));
    let queue = "queue = { length = 3, wait = \"3000s\" }";
    let before = config(&[Entry("a", &a, ONE)], &[("chat", &["a"])], queue, "");
    // In front of the old one, so that all numbers are others.
    let entries = [Entry("b", &b, ONE), Entry("a", &a, ONE)];
    let after = config(&entries, &[("other", &["b"]), ("chat", &["b", "a"])], queue, "");
    let mut planner = Planner::new(2);
    let proxy = planner.start(&before);
    // What a queue says that has measured nothing is the time until somebody gives up.
    let held = hold(&proxy, &a, "chat");
    let mut first = Vec::new();
    for number in 0..3 {
        waiting(&proxy, "chat", number);
        first.push(begin(&proxy, "chat", ""));
    }
    waiting(&proxy, "chat", 3);
    let said = retry_after(&begin(&proxy, "chat", "").answer());
    assert_eq!(said, RETRY_AFTER_S_MAX);
    drop(held);
    first.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    // Now it has seen three go.
    let held = hold(&proxy, &a, "chat");
    let mut places = Vec::new();
    for number in 0..2 {
        waiting(&proxy, "chat", number);
        places.push(begin(&proxy, "chat", &who(number)));
    }
    waiting(&proxy, "chat", 2);
    proxy.swap(planner.plan(&after));
    assert_eq!(proxy.plan().upstreams[0].name, "b", "all cores have it");
    waiting(&proxy, "chat", 2);
    let busy = hold(&proxy, &b, "chat");
    places.push(begin(&proxy, "chat", &who(2)));
    waiting(&proxy, "chat", 3);
    let said = retry_after(&begin(&proxy, "chat", "").answer());
    assert!(said < RETRY_AFTER_S_MAX, "the rate measured before the change, not {said} s");
    drop(held);
    places.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    assert_eq!(sent_to(&a), ["0", "1", "2"]);
    drop(busy);
    waiting(&proxy, "chat", 0);
}

/// Two servers of one model on one port, at two addresses.
fn pair() -> (Mock, Mock, u16) {
    let at = |name: &str, ip: Ipv4Addr, port| {
        let bind = SocketAddr::from((ip, port));
        let models = vec!["x".to_owned()];
        Mock::start(MockConfig { name: name.to_owned(), bind, models, ..MockConfig::default() })
    };
    for _ in 0..100 {
        let a = at("a", ONE_IP, 0).expect("port 0 is free");
        let port = a.addr().port();
        if let Ok(b) = at("b", TWO_IP, port) {
            return (a, b, port);
        }
    }
    panic!("no port that is free on both");
}

const ONE_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 1);
const TWO_IP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

#[test]
fn a_server_that_discovery_adds_leaves_the_queue_of_its_models_as_it_is() {
    let (a, b, port) = pair();
    let records =
        |ips: Vec<Ipv4Addr>| Records { addresses: vec![("all.test", ips)], ..Records::default() };
    let names = NameServer::start(records(vec![ONE_IP]));
    let text = format!(
        "[process]\ncores = 2\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
         [group_defaults]\nqueue = {{ length = 9, wait = \"60s\" }}\n\
         [[upstream]]\nname = \"many\"\nurl = \"http://all.test\"\n\
         discover = \"dns:all.test:{port}\"\nconcurrency = 1\n"
    );
    let options = Options { name_server: Some(names.addr()), ..Options::default() };
    let proxy = Proxy::start_with(&text, options);
    let one = format!("many-127.0.0.1-{port}");
    let held = hold(&proxy, &a, "x");
    let mut places = Vec::new();
    for number in 0..3 {
        waiting(&proxy, &one, number);
        places.push(begin(&proxy, "x", &who(number)));
    }
    waiting(&proxy, &one, 3);
    names.set(|now| *now = records(vec![ONE_IP, TWO_IP]));
    wait_until("the other is there", || proxy.plan().upstreams.len() == 2);
    // A model that both list belongs to the entry's own group from now on.
    wait_until("its models are known", || {
        let plan = proxy.plan();
        let many = plan.groups.iter().find(|group| group.name == "many");
        many.and_then(|group| group.queue.as_ref()).is_some_and(|queue| queue.len() == 3)
    });
    waiting(&proxy, &one, 0);
    let busy = hold(&proxy, &b, "x");
    places.push(begin(&proxy, "x", &who(3)));
    waiting(&proxy, "many", 4);
    drop(held);
    places.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    assert_eq!(sent_to(&a), ["0", "1", "2", "3"]);
    drop(busy);
}

#[test]
fn those_who_wait_in_a_group_that_goes_are_served_in_order() {
    let (a, b) = (named("a"), named("b"));
    let queue = "queue = { length = 9, wait = \"60s\" }";
    let before = config(&[Entry("a", &a, ONE)], &[("chat", &["a"])], queue, "");
    let after = config(&[Entry("b", &b, ONE)], &[("other", &["b"])], queue, "");
    let mut planner = Planner::new(2);
    let proxy = planner.start(&before);
    let held = hold(&proxy, &a, "chat");
    let mut places = Vec::new();
    for number in 0..4 {
        waiting(&proxy, "chat", number);
        places.push(begin(&proxy, "chat", &who(number)));
    }
    waiting(&proxy, "chat", 4);
    proxy.swap(planner.plan(&after));
    assert_eq!(proxy.plan().upstreams[0].name, "b", "all cores have it");
    assert_eq!(begin(&proxy, "other", "").answer().status, 200);
    assert_eq!(begin(&proxy, "chat", "").answer().status, 404, "nobody knows it any more");
    // It comes back while they still wait: who comes now is behind them.
    proxy.swap(planner.plan(&before));
    assert_eq!(proxy.plan().upstreams[0].name, "a", "all cores have it");
    waiting(&proxy, "chat", 4);
    places.push(begin(&proxy, "chat", &who(4)));
    waiting(&proxy, "chat", 5);
    drop(held);
    places.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    assert_eq!(sent_to(&a), ["0", "1", "2", "3", "4"]);
}

#[test]
fn another_length_is_in_force_for_those_who_come() {
    let a = named("a");
    let text = |length: u32| {
        let queue = format!("queue = {{ length = {length}, wait = \"60s\" }}");
        config(&[Entry("a", &a, ONE)], &[("chat", &["a"])], &queue, "")
    };
    let mut planner = Planner::new(2);
    let proxy = planner.start(&text(2));
    let held = hold(&proxy, &a, "chat");
    let mut places = Vec::new();
    for (length, number) in [(2, 0), (2, 1), (3, 2)] {
        proxy.swap(planner.plan(&text(length)));
        waiting(&proxy, "chat", number);
        places.push(begin(&proxy, "chat", &who(number)));
        waiting(&proxy, "chat", number + 1);
    }
    proxy.swap(planner.plan(&text(1)));
    assert_eq!(begin(&proxy, "chat", "").answer().status, 503);
    waiting(&proxy, "chat", 3);
    drop(held);
    places.iter_mut().for_each(|client| assert_eq!(client.answer().status, 200));
    assert_eq!(sent_to(&a), ["0", "1", "2"]);
}

#[test]
fn a_breaker_goes_on_by_its_new_settings() {
    let a = named("a");
    let text = |breaker: &str| {
        let breaker = format!("breaker = {{ calls_min = 1000, last_resort = false, {breaker} }}");
        config(&[Entry("a", &a, &breaker)], &[("chat", &["a"])], "", "")
    };
    let mut planner = Planner::new(2);
    let proxy = planner.start(&text("consecutive = 1000"));
    let state = proxy.plan().upstreams[0].state.clone();
    let fail = || begin(&proxy, "chat", "x-mock: status=500\r\n").answer().status;
    assert_eq!([fail(), fail(), fail()], [500; 3]);
    assert_eq!(state.breaker.state(), State::Closed { consecutive: 3 });
    proxy.swap(planner.plan(&text("consecutive = 4, cooldown = \"600s\"")));
    assert_eq!(state.breaker.state(), State::Closed { consecutive: 3 }, "it has counted on");
    assert_eq!(fail(), 500, "the fourth opens it");
    assert_eq!(state.breaker.state().name(), StateName::Open);
    // Neither other settings nor another plan close it.
    proxy.swap(planner.plan(&text("consecutive = 1000, cooldown = \"1s\"")));
    assert_eq!(state.breaker.state().name(), StateName::Open);
    assert_eq!((fail(), a.stats().requests_total), (503, 4));
    let last_resort = text("consecutive = 1000").replace("resort = false", "resort = true");
    proxy.swap(planner.plan(&last_resort));
    assert_eq!((fail(), a.stats().requests_total), (500, 5), "it is called where nobody else is");
}

#[test]
fn a_window_is_exact_across_plans() {
    let a = named("a");
    let text = |turn: u32| {
        let limited = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\nrpm = 40\n";
        let others =
            (0..turn % 3).map(|n| format!("[[key]]\nname = \"k{n}\"\nkey = \"sk-k{n}\"\n"));
        let keys = others.collect::<String>() + limited;
        config(&[Entry("a", &a, "")], &[("chat", &["a"])], "", &keys)
    };
    let mut planner = Planner::new(2);
    let proxy = planner.start(&text(0));
    fresh_minute();
    let (asked, passed) = (AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = proxy.client();
                while asked.fetch_add(1, Ordering::Relaxed) < 160 {
                    match client.send(ask("chat", "x-api-key: sk-a\r\n")).answer().status {
                        200 => passed.fetch_add(1, Ordering::Relaxed),
                        status => {
                            assert_eq!(status, 429);
                            0
                        }
                    };
                }
            });
        }
        let mut turn = 0;
        while asked.load(Ordering::Relaxed) < 160 {
            turn += 1;
            proxy.swap(planner.plan(&text(turn)));
            let before = asked.load(Ordering::Relaxed);
            let on = || asked.load(Ordering::Relaxed) >= 160.min(before + 2);
            wait_until("the load goes on", on);
        }
    });
    assert_eq!(passed.load(Ordering::Relaxed), 40);
}

#[test]
fn whatever_comes_goes_and_moves_nobody_is_lost_or_led_astray() {
    let (a, b, c) = (named("a"), named("b"), named("c"));
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    let queue = "queue = { length = 100, wait = \"60s\" }";
    let text = |turn: usize| {
        let settings = [ONE, "concurrency = 2", ""][turn % 3];
        let mut entries = vec![Entry("c", &c, ONE)];
        let mut of_chat = Vec::new();
        for (at, (name, mock)) in [("a", &a), ("b", &b)].into_iter().enumerate() {
            // Never none of the two.
            if (turn / 3) % 3 != at {
                entries.insert(turn % (entries.len() + 1), Entry(name, mock, settings));
                of_chat.push(name);
            }
        }
        if turn.is_multiple_of(2) {
            of_chat.reverse();
        }
        let mut groups: Vec<(&str, &[&str])> = vec![("chat", &of_chat), ("only", &["c"])];
        if turn % 4 == 1 {
            groups.insert(0, ("another", &["c"]));
        }
        if turn % 4 == 3 {
            groups.reverse();
        }
        let mut keys = vec!["x", "y"];
        if turn % 5 > 2 {
            keys.insert(turn % 3, "z");
        }
        keys.rotate_left(turn % 2);
        let keys = keys.iter().map(|k| format!("[[key]]\nname = \"{k}\"\nkey = \"sk-{k}\"\n"));
        config(&entries, &groups, queue, &keys.collect::<String>())
    };
    let mut planner = Planner::new(2);
    let proxy = planner.start(&text(0));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (proxy, over, served) = (&proxy, &over, &served);
            scope.spawn(move || {
                let model = ["chat", "only"][number % 2];
                let key = ["x", "y"][number / 2 % 2];
                let mut client = proxy.client();
                while !over.load(Ordering::Relaxed) {
                    let fields = format!("x-api-key: sk-{key}\r\nx-mock: delay=1ms\r\n");
                    let answer = client.send(ask(model, &fields)).answer();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    let server = answer.field("x-mock-server").expect("of the mock");
                    assert_eq!(server == "c", model == "only", "{model} went to {server}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for turn in 0..120 {
            proxy.swap(planner.plan(&text(turn)));
            let before = served.load(Ordering::Relaxed);
            wait_until("the load goes on", || served.load(Ordering::Relaxed) >= before + 8);
        }
        over.store(true, Ordering::Relaxed);
    });
    let plan = proxy.plan();
    let idle = || plan.upstreams.iter().all(|upstream| upstream.state.in_flight() == 0);
    wait_until("all are counted out", idle);
    assert!(plan.groups.iter().all(|group| group.queue.as_ref().is_none_or(|q| q.is_empty())));
}
