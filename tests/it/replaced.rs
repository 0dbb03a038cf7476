//! The failures of the proxies that this one replaces, each by its name.
//!
//! Every test says what those did. Their cached model map, which kept routing to a dead server,
//! is `discovery::cached_model_map_does_not_keep_routing_to_a_dead_server`.

use std::time::{Duration, Instant};

use loadtest::mock::Mock;
use tokenring::testing::policy::breaker::StateName;

use super::house::{LIMIT, Proxy, Setup, mock, mock_with, wait_until};
use super::wire::{Client, chat, post};

const RETRY: &str = "retry = { attempts = 2, initial = \"100ms\", max = \"100ms\", \
    on = [\"connect\", \"reset\", \"500\", \"502\", \"503\"] }\n";
/// How long an answer takes where requests are to be in flight side by side.
const BUSY: Duration = Duration::from_millis(20);

fn busy(_: usize) -> Mock {
    mock_with(|config| config.first_token = BUSY)
}

fn ask(client: &mut Client) -> u16 {
    client.send(chat("", false)).answer().status
}

/// Sends `each` requests over each of eight connections at once; all must be answered well.
fn all_succeed(proxy: &Proxy, each: usize) {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = proxy.client();
                for _ in 0..each {
                    assert_eq!(ask(&mut client), 200);
                }
            });
        }
    });
}

fn attempts(proxy: &Proxy, at: usize) -> u64 {
    proxy.plan().upstreams[at].state.attempts()
}

fn breaker(proxy: &Proxy, at: usize) -> StateName {
    proxy.plan().upstreams[at].state.breaker.state().name()
}

fn none_in_flight(proxy: &Proxy) {
    let plan = proxy.plan();
    wait_until("nothing is in flight", || {
        plan.upstreams.iter().all(|upstream| upstream.state.in_flight() == 0)
    });
}

/// Theirs left Open only in a call, and calls were refused while it was open: once open, for
/// ever open, until somebody restarted it. No probe helps here, and nobody hurries: one request
/// at a time, for every way to choose.
#[test]
fn a_breaker_recovers_without_help() {
    for balance in ["round_robin", "least_conn", "response_aware", "p2c_ewma", "failover"] {
        let mocks: [Mock; 2] = std::array::from_fn(busy);
        let setup = Setup {
            upstream: "breaker = { consecutive = 1, cooldown = \"1s\" }",
            group: &format!("balance = \"{balance}\"\n{RETRY}"),
            ..Setup::default()
        };
        let proxy = setup.start(&[&mocks[0], &mocks[1]]);
        mocks[0].behave("status=500");
        // Side by side, so that every way to choose comes to it.
        all_succeed(&proxy, 1);
        assert_eq!(breaker(&proxy, 0), StateName::Open, "{balance}");
        let recovered = Instant::now();
        mocks[0].behave("");
        wait_until("it closes", || {
            assert_eq!(ask(&mut proxy.client()), 200, "{balance}");
            breaker(&proxy, 0) == StateName::Closed
        });
        let took = recovered.elapsed();
        assert!(took <= Duration::from_secs(2), "{balance}: back after {took:?}");
    }
}

/// Nor was there a way back for a server that stands alone.
#[test]
fn a_breaker_recovers_without_help_when_there_is_nobody_else() {
    let mock = mock();
    // With the last resort it would be asked all the same, and that is what `blame` tests.
    let upstream = "breaker = { consecutive = 2, cooldown = \"1s\", last_resort = false }";
    let proxy = Setup { upstream, ..Setup::default() }.start(&[&mock]);
    let mut client = proxy.client();
    mock.behave("status=500");
    assert_eq!([ask(&mut client), ask(&mut client), ask(&mut client)], [500, 500, 503]);
    mock.behave("");
    let took = wait_until("it answers again", || ask(&mut proxy.client()) == 200);
    assert!(took <= Duration::from_secs(2), "{took:?}");
}

/// Theirs counted a failed request out twice: the count of those in flight went below zero,
/// wrapped, and the server looked like the busiest of all from its first failure on.
#[test]
fn one_failure_does_not_starve_a_server() {
    // At the same time: most of it is waiting.
    std::thread::scope(|scope| {
        for balance in ["response_aware", "least_conn", "p2c_ewma"] {
            scope.spawn(move || {
                for how in ["status=500", "reset", "garbage"] {
                    has_its_share_after_one_failure(balance, how);
                }
            });
        }
    });
}

fn has_its_share_after_one_failure(balance: &str, how: &str) {
    let mocks: [Mock; 2] = std::array::from_fn(busy);
    let group = format!("balance = \"{balance}\"\n{RETRY}");
    let setup = Setup { group: &group, ..Setup::default() };
    let proxy = setup.start(&[&mocks[0], &mocks[1]]);
    // Response times begin at two seconds: both must be known as they are.
    let mut client = proxy.client();
    for forced in ["{\"model\":\"m@gpu0\"}", "{\"model\":\"m@gpu1\"}"] {
        for _ in 0..40 {
            client.send(post("/v1/chat/completions", "", forced)).answer();
        }
    }
    mocks[0].behave(how);
    let before = attempts(&proxy, 0);
    wait_until("it fails once", || {
        all_succeed(&proxy, 1);
        attempts(&proxy, 0) > before
    });
    mocks[0].behave("");
    none_in_flight(&proxy);
    let before = mocks[0].stats().requests_total;
    // A peak may be feared for some seconds; a count that has wrapped stays for ever.
    wait_until("it has its share again", || {
        all_succeed(&proxy, 5);
        mocks[0].stats().requests_total >= before + 40
    });
    none_in_flight(&proxy);
}

/// Theirs counted failures only where a request could not be sent at all: thirty times 500 in
/// a row were thirty answers like any other.
#[test]
fn thirty_500s_trip_the_breaker() {
    // In a row, and by their share when a row is never long enough.
    for (policy, reach) in [
        ("consecutive = 5, calls_min = 1000000", 5),
        ("consecutive = 1000000, calls_min = 10, threshold = 0.5", 10),
    ] {
        let mock = mock();
        let upstream = format!("breaker = {{ {policy}, last_resort = false }}");
        let proxy = Setup { upstream: &upstream, ..Setup::default() }.start(&[&mock]);
        mock.behave("status=500");
        let mut client = proxy.client();
        let answers: Vec<u16> = (0..30).map(|_| ask(&mut client)).collect();
        assert_eq!(breaker(&proxy, 0), StateName::Open, "{policy}");
        assert_eq!(mock.stats().requests_total, reach, "{policy}");
        let (reached, kept) = answers.split_at(reach as usize);
        assert!(reached.iter().all(|status| *status == 500), "{answers:?}");
        assert!(kept.iter().all(|status| *status == 503), "{answers:?}");
    }
}

/// To theirs a dead server was the least busy one, as it never had anything in flight: all
/// requests went there first.
#[test]
fn least_connections_does_not_prefer_the_dead_server() {
    for dead in [true, false] {
        let mut mocks: Vec<Mock> = (0..3).map(busy).collect();
        let setup = Setup {
            upstream: "breaker = { consecutive = 5, cooldown = \"60s\" }",
            group: &format!("balance = \"least_conn\"\n{RETRY}"),
            ..Setup::default()
        };
        let proxy = setup.start(&[&mocks[0], &mocks[1], &mocks[2]]);
        all_succeed(&proxy, 2);
        let before = attempts(&proxy, 0);
        match dead {
            true => drop(mocks.remove(0)),
            // Alive enough to fail at once, which looks just as idle.
            false => mocks[0].behave("status=500"),
        }
        all_succeed(&proxy, 30);
        let made = attempts(&proxy, 0) - before;
        // Five failures, and what the other clients had sent there by then.
        assert!(made <= 5 + 8, "{made} of 240 went to the dead server first");
        assert_eq!(breaker(&proxy, 0), StateName::Open);
    }
}

/// Theirs waited for the rest of a stream that could not come, and the client with them.
#[test]
fn a_stream_whose_upstream_dies_does_not_hang_the_client() {
    for how in ["cut_after=3", "reset_after=3", "stall_after=3"] {
        let mock = mock();
        let setup = Setup { group: "timeouts = { stream_idle = \"1s\" }\n", ..Setup::default() };
        let proxy = setup.start(&[&mock]);
        mock.behave(how);
        let mut client = proxy.client();
        client.patience(LIMIT);
        let begun = Instant::now();
        let broken = client.send(chat("", true)).try_answer().expect_err("never a clean end");
        let took = begun.elapsed();
        assert!(broken.head.starts_with("HTTP/1.1 200"), "{how}");
        let told = String::from_utf8_lossy(&broken.body).into_owned();
        // Where an event is cut in two, nothing more can be said.
        assert!(how == "cut_after=3" || told.contains("data: {\"error\""), "{how}: {told}");
        assert!(!told.contains("[DONE]"), "{how}");
        assert!(took < Duration::from_secs(5), "{how}: {took:?}");
        none_in_flight(&proxy);
    }
}

/// The same when the whole server goes with its streams.
#[test]
fn a_server_that_dies_takes_no_client_with_it() {
    let mock = mock_with(|config| config.interval = Duration::from_millis(50));
    let proxy = Setup::default().start(&[&mock]);
    let mut clients: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
    for client in &mut clients {
        client.send(chat("x-mock: tokens=100000\r\n", true));
    }
    for client in &mut clients {
        client.through(b"\n\n").expect("all stream");
    }
    drop(mock);
    for client in &mut clients {
        let told = client.rest().expect("our own end");
        let told = String::from_utf8_lossy(&told);
        assert!(told.contains("data: {\"error\""), "{told}");
        assert!(!told.ends_with("\r\n0\r\n\r\n"), "never a clean end");
    }
    none_in_flight(&proxy);
}
