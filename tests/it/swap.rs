//! rules §14, §12: another plan in force on every core, and nobody notices.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use loadtest::mock::Mock;

use super::house::{LIMIT, Setup, mock_with, wait_until};
use super::planner::Planner;
use super::wire::{Client, chat};

/// A config in which the group `chat` has these members, called `gpu` and their name.
fn config(mocks: &[(&str, SocketAddr)]) -> String {
    let urls: Vec<String> = mocks.iter().map(|(_, addr)| format!("http://{addr}")).collect();
    let mut text = Setup { process: "cores = 2\n", ..Setup::default() }.text(&urls);
    for (at, (name, _)) in mocks.iter().enumerate() {
        text = text.replace(&format!("\"gpu{at}\""), &format!("\"gpu-{name}\""));
    }
    text
}

fn named(name: &str) -> Mock {
    mock_with(|config| config.name = name.to_owned())
}

fn server_of(client: &mut Client) -> String {
    let answer = client.send(chat("", false)).answer();
    assert_eq!(answer.status, 200);
    answer.field("x-mock-server").expect("of the mock").to_owned()
}

#[test]
fn a_swap_reaches_every_core_at_once() {
    let (a, b) = (named("a"), named("b"));
    let mut planner = Planner::new(2);
    let proxy = planner.start(&config(&[("a", a.addr())]));
    // More connections than one core keeps for itself.
    let mut clients: Vec<Client> = (0..24).map(|_| proxy.client()).collect();
    for client in &mut clients {
        assert_eq!(server_of(client), "a");
    }
    proxy.swap(planner.plan(&config(&[("b", b.addr())])));
    assert_eq!(proxy.plan().upstreams[0].name, "gpu-b", "all cores have it");
    for client in &mut clients {
        assert_eq!(server_of(client), "b");
    }
}

#[test]
fn an_exchange_in_flight_keeps_the_plan_it_began_with() {
    let (a, b) = (named("a"), named("b"));
    let mut planner = Planner::new(2);
    let proxy = planner.start(&config(&[("a", a.addr())]));
    let mut client = proxy.client();
    client.send(chat("x-mock: interval=20ms,tokens=30\r\n", true));
    client.through(b"\n\n").expect("it has begun");
    proxy.swap(planner.plan(&config(&[("b", b.addr())])));
    wait_until("the new plan is in force", || server_of(&mut proxy.client()) == "b");
    assert_eq!(a.stats().in_flight, 1);
    client.through(b"data: [DONE]\n\n\r\n0\r\n\r\n").expect("it ends well");
    assert_eq!(a.stats().aborted_total, 0);
    // What it leaves behind in the pool belongs to nobody.
    a.wait_until(LIMIT, |stats| stats.connections_open == 0).expect("closed at the next sweep");
    assert_eq!(server_of(&mut client), "b");
}

#[test]
fn an_upstream_that_stays_keeps_its_count_and_its_connections() {
    let (a, b) = (named("a"), named("b"));
    let mut planner = Planner::new(2);
    let proxy = planner.start(&config(&[("a", a.addr())]));
    let mut slow = proxy.client();
    slow.send(chat("x-mock: delay=300ms\r\n", false));
    a.wait_until(LIMIT, |stats| stats.in_flight == 1).expect("begun");
    assert_eq!(server_of(&mut proxy.client()), "a");
    let connections = a.stats().connections_total;
    proxy.swap(planner.plan(&config(&[("b", b.addr()), ("a", a.addr())])));
    let plan = proxy.plan();
    assert_eq!(plan.upstreams[1].name, "gpu-a");
    let in_flight = || plan.upstreams[1].state.in_flight();
    wait_until("what began under the plan before is counted", || in_flight() == 1);
    assert_eq!(slow.answer().status, 200);
    wait_until("it is counted out again", || in_flight() == 0);
    // The same client, hence the same core and its pool.
    let mut seen: Vec<String> = (0..6).map(|_| server_of(&mut slow)).collect();
    seen.sort();
    assert_eq!(seen, ["a", "a", "a", "b", "b", "b"]);
    assert!(a.stats().connections_total <= connections, "pooled ones were used");
}

#[test]
fn swaps_under_load_lose_nothing() {
    let (a, b) = (named("a"), named("b"));
    let mut planner = Planner::new(2);
    let proxy = planner.start(&config(&[("a", a.addr()), ("b", b.addr())]));
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..8 {
            let (proxy, over, served) = (&proxy, &over, &served);
            scope.spawn(move || {
                let mut client = proxy.client();
                while !over.load(Ordering::Relaxed) {
                    let answer = client.send(chat("", number % 2 == 0)).answer();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let sets = [
            vec![("a", a.addr())],
            vec![("b", b.addr())],
            vec![("b", b.addr()), ("a", a.addr())],
            vec![("other", b.addr()), ("a", a.addr())],
        ];
        for turn in 0..200 {
            proxy.swap(planner.plan(&config(&sets[turn % sets.len()])));
            let before = served.load(Ordering::Relaxed);
            wait_until("the load goes on", || served.load(Ordering::Relaxed) >= before + 8);
        }
        over.store(true, Ordering::Relaxed);
    });
    let plan = proxy.plan();
    let idle = || plan.upstreams.iter().all(|upstream| upstream.state.in_flight() == 0);
    wait_until("all are counted out", idle);
    assert_eq!(a.stats().aborted_total + b.stats().aborted_total, 0);
}
