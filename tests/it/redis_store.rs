//! rules §6: one budget for several nodes, in a real Redis that is killed, stopped and restarted.
//!
//! Two proxies in this process are the nodes. Each test has a server of its own; without
//! `redis-server` it says how to get it and is skipped, unless `TOKENRING_CI` is 1.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loadtest::mock::Mock;
use tokenring::testing::control::redis::CALL_TIMEOUT;
use tokenring::testing::policy::limit::shared::Budget;

use super::house::{LIMIT, Proxy, Setup, mock, wait_until};
use super::ratelimits::{fresh_minute, thousand, thousand_with_store};
use super::wire::{Answer, Client, chat, post};

pub(crate) const MINE: &str = "x-api-key: sk-a\r\n";

/// A server of our own; it ends with the test.
pub(crate) struct Redis {
    port: u16,
    /// Further options of its command line.
    options: Vec<String>,
    child: Option<Child>,
}

impl Redis {
    /// Starts one; `None` when there is none to start.
    pub(crate) fn start() -> Option<Redis> {
        Redis::start_with(&[])
    }

    /// As `start`, with these options on its command line.
    pub(crate) fn start_with(options: &[&str]) -> Option<Redis> {
        let version = Command::new("redis-server").arg("--version").stdout(Stdio::null()).status();
        if version.is_err() {
            let hint = "no redis-server: apt-get install redis-server";
            assert_ne!(std::env::var("TOKENRING_CI").as_deref(), Ok("1"), "{hint}");
            eprintln!("skipped: {hint}");
            return None;
        }
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut redis = Redis { port: free_port(), options, child: None };
        redis.restart();
        Some(redis)
    }

    /// Where it listens, on 127.0.0.1.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it, empty, on the same port.
    pub(crate) fn restart(&mut self) {
        let port = self.port.to_string();
        let child = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(&self.options)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server starts");
        self.child = Some(child);
        wait_until("redis answers", || self.tell(&["PING"]).is_some_and(|said| said == "PONG"));
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, name: &str) {
        let id = self.child.as_ref().expect("it runs").id();
        let told = Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status();
        assert!(told.unwrap().success());
    }

    /// Says one command and reads a short answer, its type and length left out.
    pub(crate) fn tell(&self, words: &[&str]) -> Option<String> {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        let mut stream = TcpStream::connect(addr).ok()?;
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut out = format!("*{}\r\n", words.len());
        for word in words {
            out += &format!("${}\r\n{word}\r\n", word.len());
        }
        stream.write_all(out.as_bytes()).ok()?;
        let mut input = [0; 512];
        let count = stream.read(&mut input).ok()?;
        let text = String::from_utf8_lossy(&input[..count]).into_owned();
        let mut lines = text.split("\r\n");
        let first = lines.next()?;
        let bulk = first.starts_with('$');
        if bulk { lines.next().map(str::to_owned) } else { first.get(1..).map(str::to_owned) }
    }

    /// Calls that it has counted in the minute of a key.
    fn counted(&self, key: &str) -> u64 {
        let said = self.tell(&["HGET", &format!("tokenring:limit:{key}"), "mc"]);
        said.and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// A node whose key `sk-a` goes by that name in Redis; `sk-b` has no limits.
    fn node(&self, mock: &Mock, key: &str, limits: &str, store: &str) -> Proxy {
        let rest = format!(
            "[[key]]\nname = \"{key}\"\nkey = \"sk-a\"\n{limits}\n\
             [[key]]\nname = \"b\"\nkey = \"sk-b\"\n\
             [ratelimit_store]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:{}\"\n{store}\n",
            self.port
        );
        let listener = "auth = \"keys\"";
        Setup { process: "cores = 2\n", listener, rest: &rest, ..Setup::default() }.start(&[mock])
    }

    /// Two nodes that know of each other.
    fn nodes(&self, mock: &Mock, key: &str, limits: &str, store: &str) -> [Proxy; 2] {
        let nodes = [0; 2].map(|_| self.node(mock, key, limits, store));
        wait_until("both know both", || nodes.iter().all(|node| budget(node).nodes() == 2));
        nodes
    }
}

/// A port that is free now, and ports are handed out in turn: hardly anybody else takes it.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn budget(proxy: &Proxy) -> Arc<Budget> {
    proxy.plan().budget.clone().expect("a budget that nodes share")
}

fn wait_for(nodes: &[Proxy], up: bool) {
    let what = format!("the store is up: {up}");
    wait_until(&what, || nodes.iter().all(|node| budget(node).is_up() == up));
}

fn ask(client: &mut Client) -> Answer {
    client.send(chat(MINE, false)).answer()
}

/// Exactly five of a thousand, twenty times. A run in which the store answered late, which shows
/// as 503, is made again: it says nothing about counting, but that no more than five pass.
fn five_of_a_thousand(mode: &str) {
    let Some(redis) = Redis::start() else { return };
    let mock = mock();
    let store = format!("mode = \"{mode}\"\non_error = \"deny\"");
    let (mut exact, mut passed_late) = (0, 0);
    for run in 0..30 {
        let key = format!("a{run}");
        let [one, two] = [0; 2].map(|_| redis.node(&mock, &key, "rpm = 5", &store));
        fresh_minute();
        let (passed, refused, denied) = thousand_with_store(&[&one, &two], &chat(MINE, false));
        if denied > 0 {
            assert!(passed <= 5, "{mode}, run {run}: {passed} passed, {denied} denied");
            passed_late += passed;
            continue;
        }
        assert_eq!((passed, refused), (5, 995), "{mode}, run {run}");
        assert_eq!(redis.counted(&key), 5);
        exact += 1;
        if exact == 20 {
            break;
        }
    }
    assert_eq!(exact, 20, "the store was late in the other runs");
    assert_eq!(mock.stats().requests_total, 100 + passed_late as u64);
}

#[test]
fn two_nodes_share_rpm_5_in_strict_mode() {
    five_of_a_thousand("strict");
}

#[test]
fn two_nodes_share_rpm_5_in_lease_mode() {
    five_of_a_thousand("lease");
}

#[test]
fn tells_what_is_left_for_all_nodes() {
    let Some(redis) = Redis::start() else { return };
    let mock = mock();
    for mode in ["mode = \"strict\"", "mode = \"lease\""] {
        let key = if mode.contains("lease") { "l" } else { "s" };
        let nodes = [0; 2].map(|_| redis.node(&mock, key, "rpm = 3\nrpd = 9", mode));
        fresh_minute();
        let mut clients = nodes.each_ref().map(|node| node.client());
        let told = [0, 1, 0, 1].map(|node: usize| {
            let answer = ask(&mut clients[node]);
            let left = |name: &str| answer.field(name).unwrap_or("none").to_owned();
            let (minute, day) =
                (left("x-ratelimit-remaining-minute"), left("x-ratelimit-remaining-day"));
            format!("{} {minute} {day}", answer.status)
        });
        assert_eq!(told, ["200 2 8", "200 1 7", "200 0 6", "429 0 6"], "{mode}");
    }
}

#[test]
fn a_large_budget_is_drawn_in_batches_and_never_exceeded() {
    let Some(redis) = Redis::start() else { return };
    let mock = mock();
    let store = "mode = \"lease\"\non_error = \"deny\"";
    // Again where the store answered late: what it granted then may be missed.
    for key in ["a", "b", "c", "d", "e"] {
        let [one, two] = redis.nodes(&mock, key, "rpm = 640", store);
        fresh_minute();
        let (passed, refused, denied) = thousand_with_store(&[&one, &two], &chat(MINE, false));
        assert!(redis.counted(key) <= 640);
        if denied > 0 {
            assert!(passed <= 640, "{passed}");
            continue;
        }
        assert_eq!(passed + refused, 1000);
        // What lies idle at one node at the end may be missed at the other.
        assert!((600..=640).contains(&passed), "{passed}");
        return;
    }
    panic!("the store was late each time");
}

#[test]
fn tokens_spent_at_one_node_are_owed_at_the_other() {
    let Some(redis) = Redis::start() else { return };
    let mock = mock();
    let modes = ["mode = \"strict\"", "mode = \"lease\""];
    // Also those that no server has counted.
    for (mode, counted) in modes.iter().flat_map(|mode| [(mode, true), (mode, false)]) {
        let key = format!("{}{counted}", if mode.contains("lease") { "l" } else { "s" });
        let [one, two] = [0; 2].map(|_| redis.node(&mock, &key, "tpm = 600", mode));
        let fields = format!("{MINE}x-mock: tokens=900\r\n");
        let body = format!(
            "{{\"model\":\"m\",\"stream\":true,\"stream_options\":{{\"include_usage\":{counted}}}}}"
        );
        let request = post("/v1/chat/completions", &fields, body);
        assert_eq!(one.client().send(request).answer().status, 200);
        wait_until("the other refuses", || {
            let answer = ask(&mut two.client());
            answer.status == 429 && answer.message().ends_with("token limit reached.")
        });
        assert_eq!(two.client().send(chat("x-api-key: sk-b\r\n", false)).answer().status, 200);
    }
}

/// Sends without a pause to all nodes until told to stop; every answer must be a 200.
fn under_load(nodes: &[Proxy], meanwhile: impl FnOnce(&dyn Fn(u64))) {
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..6 {
            let (over, served) = (&over, &served);
            scope.spawn(move || {
                let mut client = nodes[number % nodes.len()].client();
                while !over.load(Ordering::Relaxed) {
                    let answer = ask(&mut client);
                    if answer.status != 200 {
                        over.store(true, Ordering::Relaxed);
                    }
                    assert_eq!(answer.status, 200, "{}", answer.text());
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        // Ends the load also when `meanwhile` panics.
        struct End<'a>(&'a AtomicBool);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let _end = End(&over);
        meanwhile(&|count| {
            let from = served.load(Ordering::Relaxed);
            wait_until("more are served", || {
                over.load(Ordering::Relaxed) || served.load(Ordering::Relaxed) >= from + count
            });
        });
    });
}

#[test]
fn a_killed_store_fails_no_request_and_is_used_again_when_it_is_back() {
    let Some(mut redis) = Redis::start() else { return };
    let mock = mock();
    for mode in ["mode = \"strict\"", "mode = \"lease\""] {
        let nodes = redis.nodes(&mock, "a", "rpm = 100000000\nrpd = 1000000000", mode);
        under_load(&nodes, |serve| {
            serve(100);
            redis.kill();
            wait_for(&nodes, false);
            serve(300);
            redis.restart();
            wait_for(&nodes, true);
            serve(300);
            wait_until("calls are counted again", || redis.counted("a") > 0);
        });
    }
}

#[test]
fn a_stopped_store_holds_nobody_longer_than_its_deadline() {
    let Some(redis) = Redis::start() else { return };
    let mock = mock();
    for mode in ["mode = \"strict\"", "mode = \"lease\""] {
        let nodes = redis.nodes(&mock, "a", "rpm = 100000000", mode);
        under_load(&nodes, |serve| {
            serve(100);
            redis.signal("STOP");
            let mut slowest = Duration::ZERO;
            let begun = Instant::now();
            let mut client = nodes[0].client();
            while begun.elapsed() < 3 * CALL_TIMEOUT {
                let sent = Instant::now();
                assert_eq!(ask(&mut client).status, 200);
                slowest = slowest.max(sent.elapsed());
            }
            // The rest is room for a busy machine.
            assert!(slowest < CALL_TIMEOUT + Duration::from_millis(400), "{mode}: {slowest:?}");
            wait_for(&nodes, false);
            serve(100);
            redis.signal("CONT");
            wait_for(&nodes, true);
            let before = redis.counted("a");
            wait_until("calls are counted again", || redis.counted("a") != before);
        });
    }
}

#[test]
fn without_the_store_each_node_keeps_its_share() {
    let Some(mut redis) = Redis::start() else { return };
    let mock = mock();
    let nodes = redis.nodes(&mock, "a", "rpm = 10", "mode = \"lease\"\non_error = \"local\"");
    redis.kill();
    wait_for(&nodes, false);
    fresh_minute();
    for node in &nodes {
        let (passed, _) = thousand(&[node], &chat(MINE, false));
        assert_eq!(passed, 5);
    }
    let told = ask(&mut nodes[0].client());
    assert_eq!(told.message(), "Rate limit exceeded: minute limit reached.");
    assert_eq!(told.field("x-ratelimit-limit-minute"), Some("5"));
}

#[test]
fn deny_refuses_limited_keys_until_the_store_is_back() {
    let Some(mut redis) = Redis::start() else { return };
    let mock = mock();
    for mode in ["strict", "lease"] {
        let store = format!("mode = \"{mode}\"\non_error = \"deny\"");
        let nodes = [redis.node(&mock, mode, "rpm = 50", &store)];
        fresh_minute();
        assert_eq!(ask(&mut nodes[0].client()).status, 200);
        redis.kill();
        wait_until("the loss is noticed", || ask(&mut nodes[0].client()).status == 503);
        let refused = ask(&mut nodes[0].client());
        assert_eq!(refused.message(), "Rate limits cannot be checked. Try again later.");
        assert_eq!(refused.field("retry-after"), Some("1"));
        let other = nodes[0].client().send(chat("x-api-key: sk-b\r\n", false)).answer();
        assert_eq!(other.status, 200, "a key without limits needs no store");
        redis.restart();
        wait_until("it is back", || ask(&mut nodes[0].client()).status == 200);
    }
}

#[test]
fn starts_without_the_store_and_finds_it_later() {
    let Some(mut redis) = Redis::start() else { return };
    redis.kill();
    let mock = mock();
    let nodes = [redis.node(&mock, "a", "rpm = 50", "")];
    fresh_minute();
    assert_eq!(ask(&mut nodes[0].client()).status, 200);
    redis.restart();
    wait_for(&nodes, true);
    assert_eq!(ask(&mut nodes[0].client()).status, 200);
    assert_eq!(redis.counted("a"), 1);
}
