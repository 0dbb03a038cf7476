//! rules §2 `concurrency`, `queue`, `priority`; §5: who waits for a slot, and who is told to come
//! back later.

use std::time::{Duration, Instant};

use loadtest::mock::Mock;

use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::planner::Planner;
use super::wire::{Answer, Client, chat};

/// An answer that does not come by itself within a test.
const HELD: &str = "x-mock: delay=60s\r\n";

fn queued(mock: &Mock, upstream: &str, queue: &str, rest: &str) -> Proxy {
    let group = format!("queue = {{ {queue} }}\n");
    Setup { upstream, group: &group, rest, ..Setup::default() }.start(&[mock])
}

/// Takes the only slot.
fn hold(mock: &Mock, proxy: &Proxy, fields: &str) -> Client {
    let before = mock.stats().requests_total;
    let mut client = proxy.client();
    client.send(chat(&format!("{HELD}{fields}"), false));
    mock.wait_until(LIMIT, |stats| stats.requests_total == before + 1).expect("in flight");
    client
}

fn wait_for_waiters(proxy: &Proxy, count: u32) {
    wait_until("so many wait", || {
        let plan = proxy.plan();
        let queues = plan.groups.iter().filter_map(|group| group.queue.as_ref());
        queues.map(|queue| queue.len()).sum::<u32>() == count
    });
}

fn assert_busy(answer: &Answer, message: &str) {
    assert_eq!((answer.status, answer.message().as_str()), (503, message));
    let seconds: u32 = answer.field("retry-after").expect("when").parse().expect("a number");
    assert!((1..=3600).contains(&seconds), "{seconds}");
}

const FULL: &str = "All upstreams are busy and the queue is full. Try again later.";
const TIMED_OUT: &str = "All upstreams stayed busy. Try again later.";

#[test]
fn four_cores_never_send_more_than_the_concurrency_and_all_are_served() {
    const SLOTS: usize = 4;
    const DELAY: Duration = Duration::from_millis(20);
    let mock = mock();
    let proxy = Setup {
        process: "cores = 4\n",
        upstream: "concurrency = 4\n",
        group: "queue = { length = 100, wait = \"60s\" }\n",
        ..Setup::default()
    }
    .start(&[&mock]);
    std::thread::scope(|scope| {
        for _ in 0..24 {
            scope.spawn(|| {
                let mut client = proxy.client();
                for _ in 0..5 {
                    let answer = client.send(chat("x-mock: delay=20ms\r\n", false)).answer();
                    assert_eq!(answer.status, 200);
                }
            });
        }
    });
    let mut begun: Vec<Instant> = mock.seen().iter().map(|request| request.at).collect();
    begun.sort_unstable();
    assert_eq!(begun.len(), 120);
    // The fifth begins after the first of four has ended, and that takes its time.
    for (first, fifth) in begun.iter().zip(&begun[SLOTS..]) {
        let apart = fifth.duration_since(*first);
        assert!(apart >= DELAY, "five at once, {apart:?} apart");
    }
}

#[test]
fn a_full_room_refuses_at_once_and_so_does_none() {
    for (queue, waiters) in [("length = 0", 0), ("length = 2, wait = \"60s\"", 2)] {
        let mock = mock();
        let proxy = queued(&mock, "concurrency = 1\n", queue, "");
        let _held = hold(&mock, &proxy, "");
        let _waiting: Vec<Client> = (0..waiters)
            .map(|_| {
                let mut client = proxy.client();
                client.send(chat(HELD, false));
                client
            })
            .collect();
        wait_for_waiters(&proxy, waiters);
        let mut client = proxy.client();
        assert_busy(&client.send(chat("", false)).answer(), FULL);
        assert_eq!(mock.stats().requests_total, 1);
    }
}

#[test]
fn a_wait_that_runs_out_says_when_to_come_back() {
    let mock = mock();
    let proxy = queued(&mock, "concurrency = 1\n", "length = 9, wait = \"200ms\"", "");
    let held = hold(&mock, &proxy, "");
    let mut client = proxy.client();
    let sent = Instant::now();
    assert_busy(&client.send(chat("", false)).answer(), TIMED_OUT);
    let took = sent.elapsed();
    assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(mock.stats().requests_total, 1, "it was never sent");
    drop(held);
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("let go");
    assert_eq!(client.send(chat("", false)).answer().status, 200, "the connection goes on");
}

#[test]
fn a_waiter_that_leaves_frees_its_place_at_once_and_is_never_sent() {
    for reset in [false, true] {
        let mock = mock();
        let proxy = queued(&mock, "concurrency = 1\n", "length = 1, wait = \"60s\"", "");
        let held = hold(&mock, &proxy, "");
        let mut leaver = proxy.client();
        leaver.send(chat("x-who: leaver\r\n", false));
        wait_for_waiters(&proxy, 1);
        let left = Instant::now();
        if reset {
            leaver.reset()
        } else {
            drop(leaver)
        }
        wait_for_waiters(&proxy, 0);
        assert!(left.elapsed() < Duration::from_millis(500), "{:?}", left.elapsed());
        let mut next = proxy.client();
        next.send(chat("x-who: next\r\n", false));
        wait_for_waiters(&proxy, 1);
        drop(held);
        assert_eq!(next.answer().status, 200);
        let sent: Vec<_> = mock.seen().iter().filter_map(|seen| seen.field("x-who")).collect();
        assert_eq!(sent, ["next"]);
    }
}

#[test]
fn a_slot_whose_client_left_goes_to_the_one_that_waits() {
    let mock = mock();
    let proxy = queued(&mock, "concurrency = 1\n", "length = 9, wait = \"60s\"", "");
    for _ in 0..10 {
        let held = hold(&mock, &proxy, "");
        let mut waiting = proxy.client();
        waiting.send(chat("", false));
        wait_for_waiters(&proxy, 1);
        drop(held);
        assert_eq!(waiting.answer().status, 200);
    }
    mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("nothing stays behind");
}

const KEYS: &str = "[[key]]\nname = \"a\"\nkey = \"sk-a\"\n\
    [[key]]\nname = \"b\"\nkey = \"sk-b\"\n\
    [[key]]\nname = \"vip\"\nkey = \"sk-vip\"\npriority = 5\n";

#[test]
fn keys_take_turns_and_a_higher_priority_goes_first() {
    let mock = mock();
    let proxy = Setup {
        listener: "auth = \"keys\"\n",
        upstream: "concurrency = 1\n",
        group: "queue = { length = 11, wait = \"60s\" }\n",
        rest: KEYS,
        ..Setup::default()
    }
    .start(&[&mock]);
    let of = |who: &str| format!("Authorization: Bearer sk-{who}\r\nx-who: {who}\r\n");
    let held = hold(&mock, &proxy, &of("a"));
    let mut waiting = Vec::new();
    // One key fills the queue before the others come.
    let others = std::iter::repeat_n("b", 4).chain(["vip"]);
    for (before, who) in std::iter::repeat_n("a", 6).chain(others).enumerate() {
        wait_for_waiters(&proxy, before as u32);
        let mut client = proxy.client();
        client.send(chat(&of(who), false));
        waiting.push(client);
    }
    wait_for_waiters(&proxy, 11);
    drop(held);
    for client in &mut waiting {
        assert_eq!(client.answer().status, 200);
    }
    let sent: Vec<_> = mock.seen().iter().filter_map(|seen| seen.field("x-who")).collect();
    assert_eq!(sent[1], "vip", "{sent:?}");
    let mut ahead = 0i32;
    for who in &sent[2..10] {
        ahead += if who == "a" { 1 } else { -1 };
        assert!((-1..=1).contains(&ahead), "{sent:?}");
    }
    assert_eq!(sent.len(), 12);
}

#[test]
fn a_full_queue_makes_place_for_a_key_with_fewer_and_for_a_higher_priority() {
    let mock = mock();
    let proxy = Setup {
        listener: "auth = \"keys\"\n",
        upstream: "concurrency = 1\n",
        group: "queue = { length = 3, wait = \"60s\" }\n",
        rest: KEYS,
        ..Setup::default()
    }
    .start(&[&mock]);
    let of = |who: &str| format!("Authorization: Bearer sk-{who}\r\nx-who: {who}\r\n");
    let held = hold(&mock, &proxy, &of("a"));
    let mut crowd = Vec::new();
    for before in 0..3 {
        wait_for_waiters(&proxy, before);
        let mut client = proxy.client();
        client.send(chat(&of("a"), false));
        crowd.push(client);
    }
    wait_for_waiters(&proxy, 3);
    let mut more = proxy.client();
    assert_eq!(more.send(chat(&of("a"), false)).answer().status, 503, "its own key has them all");
    let mut others = Vec::new();
    for who in ["b", "vip"] {
        let mut client = proxy.client();
        client.send(chat(&of(who), false));
        others.push(client);
        // The last of the largest share goes.
        let answer = crowd.pop().unwrap().answer();
        assert_eq!(answer.status, 503);
        assert!(answer.field("retry-after").is_some());
        wait_for_waiters(&proxy, 3);
    }
    drop(held);
    for client in crowd.iter_mut().chain(&mut others) {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn another_concurrency_takes_effect_with_its_plan_and_lets_waiters_go() {
    let mock = mock();
    let text = |concurrency: u32| {
        let upstream = format!("concurrency = {concurrency}\n");
        let group = "queue = { length = 9, wait = \"60s\" }\n";
        Setup { upstream: &upstream, group, ..Setup::default() }.text(&[mock.url()])
    };
    let mut planner = Planner::new(1);
    let proxy = planner.start(&text(1));
    let _held = hold(&mock, &proxy, "");
    let mut waiting = [proxy.client(), proxy.client(), proxy.client()];
    for client in &mut waiting {
        client.send(chat(HELD, false));
    }
    wait_for_waiters(&proxy, 3);
    proxy.swap(planner.plan(&text(3)));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 3).expect("two more go");
    proxy.swap(planner.plan(&text(0)));
    mock.wait_until(LIMIT, |stats| stats.in_flight == 4).expect("the last one goes");
}
