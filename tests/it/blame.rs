//! rules §8, §11: what works is not taken away for what does not. A breaker steers and never walls,
//! and looks for the server's return; what is our own lack is nobody else's fault; a server that was
//! not heard of may well be there.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use loadtest::mock::Mock;
use tokenring::testing::policy::breaker::StateName;

use super::fake::Fake;
use super::house::{Proxy, mock, wait_until};
use super::wire::{Client, chat, get, post};

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
    proxy.plan().upstreams[at].state.breaker.state().name()
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
fn the_operator_is_told_of_each_change_of_a_breaker_and_why() {
    let server = mock();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let lines = told.clone();
    let differs = tokenring::testing::control::Options {
        say: std::sync::Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned())),
        ..Default::default()
    };
    let text = format!(
        "{HEAD}[[upstream]]\nname = \"a\"\nurl = \"{}\"\nmodels = []\n\
         breaker = {{ cooldown = \"1h\", recheck = \"60s\" }}\n[models.m]\nupstream = \"a\"\n",
        server.url()
    );
    let proxy = Proxy::start_with(&text, differs);
    let mut client = proxy.client();
    poison(&mut client);
    let heard = |line: &str| told.lock().unwrap().iter().any(|known| known == line);
    wait_until("it is told", || heard("upstream a: breaker open: status 500"));
    assert_eq!(status(&mut client, ""), 200);
    wait_until("it is told", || heard("upstream a: breaker closed: it works"));
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
    // Failures are told apart by the millisecond.
    let next_millisecond = || std::thread::sleep(Duration::from_millis(2));
    poison(&mut client);
    next_millisecond();
    poison(&mut client);
    next_millisecond();
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

/// The one upstream `u`, asked for its models.
fn asked(url: &str, more: &str) -> Proxy {
    Proxy::start(&format!("{HEAD}[[upstream]]\nname = \"u\"\nurl = \"{url}\"\n{more}\n"))
}

fn ask_for(proxy: &Proxy, model: &str) -> (u16, Option<String>) {
    let body = format!("{{\"model\":{model:?}}}");
    let answer = proxy.client().send(post("/v1/chat/completions", "", &body)).answer();
    (answer.status, answer.field("retry-after").map(str::to_owned))
}

fn is_listed(proxy: &Proxy, model: &str) -> bool {
    proxy.client().send(get("/v1/models", "")).answer().text().contains(&format!("{model:?}"))
}

#[test]
fn a_model_whose_only_server_restarts_is_503_and_never_404() {
    let server = Fake::start("a", &["x"]);
    let addr = server.addr();
    let proxy = asked(&server.url(), "[discovery]\nttl = \"1s\"");
    assert_eq!(ask_for(&proxy, "x").0, 200);
    drop(server);
    let seen = |status: u16| {
        assert!([200, 502, 503].contains(&status), "{status}");
        status
    };
    wait_until("it is known to be away", || seen(ask_for(&proxy, "x").0) == 503);
    assert!(ask_for(&proxy, "x").1.is_some(), "Retry-After");
    assert!(is_listed(&proxy, "x"));
    assert_eq!(ask_for(&proxy, "y").0, 404, "that one was never there");
    let _server = Fake::start_at(addr, "a", &["x"]);
    let back = Instant::now();
    wait_until("it serves again", || seen(ask_for(&proxy, "x").0) == 200);
    assert!(back.elapsed() < Duration::from_secs(2), "{:?}", back.elapsed());
}

#[test]
fn without_grace_what_is_away_is_unknown() {
    let server = Fake::start("a", &["x"]);
    let proxy = asked(&server.url(), "[discovery]\nttl = \"1s\"\ngrace = \"0s\"");
    assert_eq!(ask_for(&proxy, "x").0, 200);
    drop(server);
    wait_until("it is unknown", || ask_for(&proxy, "x").0 == 404);
    assert!(!is_listed(&proxy, "x"));
}

#[test]
fn a_list_that_takes_longer_than_the_start_waits_is_no_404() {
    let server = Fake::start("a", &["x"]);
    server.say(|says| says.delay = Duration::from_secs(8));
    let proxy = asked(&server.url(), "");
    server.say(|says| says.delay = Duration::ZERO);
    assert!(!is_listed(&proxy, "x"));
    let (status, retry_after) = ask_for(&proxy, "x");
    assert_eq!((status, retry_after.is_some()), (503, true));
    wait_until("the list has come", || ask_for(&proxy, "x").0 == 200);
    assert_eq!(ask_for(&proxy, "y").0, 404, "now that is known");
    // From now on it takes long, and what is known holds.
    assert!(is_listed(&proxy, "x"));
}

#[test]
fn the_list_of_gemini_is_read_page_by_page() {
    let server = Fake::start("a", &["gemini-a", "gemini-b", "gemini-c"]);
    let proxy = asked(&server.url(), "protocol = \"gemini\"");
    for model in ["gemini-a", "gemini-b", "gemini-c"] {
        assert!(is_listed(&proxy, model), "{model}");
    }
    assert_eq!(server.probes().len(), 3);
}

/// A proxy in a process of its own, which has few descriptors.
struct Poor(Child);

impl Drop for Poor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Status and text of an answer, if there is one.
fn raw(addr: SocketAddr, request: &[u8]) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(15))).ok()?;
    stream.write_all(request).ok()?;
    let (mut all, mut some) = (Vec::new(), [0; 4096]);
    while let Ok(n @ 1..) = stream.read(&mut some) {
        all.extend_from_slice(&some[..n]);
    }
    let text = String::from_utf8_lossy(&all).into_owned();
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text))
}

#[test]
fn what_runs_out_here_is_no_fault_of_the_servers() {
    let server = mock();
    let (addr, admin) = (free(), free());
    let dir = std::env::temp_dir().join(format!("tokenring-{}-poor", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let file = dir.join("c.toml");
    let text = format!(
        "[process]\ncores = 1\n[limits]\nconnections = 1000\n[discovery]\nttl = \"1s\"\n\
         [[listener]]\nname = \"l\"\nbind = \"{addr}\"\nauth = \"none\"\n\
         [[upstream]]\nname = \"a\"\nurl = \"{}\"\n\
         breaker = {{ consecutive = 1, cooldown = \"1h\", recheck = \"60s\" }}\n\
         health = {{ interval = \"1s\", fall = 1 }}\n\
         [models.m]\nupstream = \"a\"\n[admin]\nbind = \"{admin}\"\n",
        server.url()
    );
    std::fs::write(&file, text).unwrap();
    let poor = Command::new("sh")
        .args(["-c", "ulimit -n 100; exec \"$0\" serve -c \"$1\"", env!("CARGO_BIN_EXE_tokenring")])
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _poor = Poor(poor);
    let close = "Connection: close\r\n";
    let chat = chat(close, false);
    wait_until("it serves", || raw(addr, &chat).is_some_and(|(status, _)| status == 200));
    // Only what clients ask is slow: a probe that is answered late would be the server's own fault.
    let slow = self::chat("Connection: close\r\nx-mock: delay=1500ms\r\n", false);
    let answers: Vec<(u16, String)> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..70).map(|_| scope.spawn(|| raw(addr, &slow))).collect();
        // The operator is answered all the while.
        for _ in 0..5 {
            let (status, _) = raw(admin, &get("/metrics", close)).expect("an answer");
            assert_eq!(status, 200);
            std::thread::sleep(Duration::from_millis(100));
        }
        clients.into_iter().filter_map(|client| client.join().unwrap()).collect()
    });
    let count = |wanted: u16| answers.iter().filter(|(status, _)| *status == wanted).count();
    assert!(count(200) > 10 && count(503) > 0, "{} and {}", count(200), count(503));
    assert_eq!(count(200) + count(503), answers.len(), "no 502: {answers:?}");
    let refused = answers.iter().find(|(status, _)| *status == 503);
    assert!(refused.is_some_and(|(_, text)| text.to_lowercase().contains("retry-after: ")));
    // Nobody thinks the worse of the server.
    let (status, text) = raw(addr, &chat).expect("an answer");
    assert_eq!(status, 200, "{text}");
    let (_, metrics) = raw(admin, &get("/metrics", close)).unwrap();
    assert!(metrics.contains("tokenring_breaker_state{upstream=\"a\",state=\"closed\"} 1"));
    assert!(!metrics.contains("tokenring_upstream_healthy{upstream=\"a\"} 0"), "{metrics}");
    let _ = std::fs::remove_dir_all(dir);
}

#[test]
fn a_wrong_name_does_not_wait_for_a_server_that_nobody_answers_at() {
    let there = Fake::start("there", &["x"]);
    let gone = Fake::start("gone", &[]);
    let gone_at = gone.addr();
    drop(gone);
    let listener = "[process]\ncores = 1\n[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\n\
                    auth = \"none\"\n";
    let upstream =
        |name: &str, addr| format!("[[upstream]]\nname = \"{name}\"\nurl = \"http://{addr}\"\n");
    let ask = |proxy: &Proxy| {
        let request = post("/v1/chat/completions", "", "{\"model\":\"wrong\"}");
        proxy.client().send(request).answer().status
    };
    let both = [upstream("gone", gone_at), upstream("there", there.addr())].concat();
    let proxy = Proxy::start(&format!("{listener}{both}"));
    wait_until("it is known who is there", || ask(&proxy) == 404);
    // Of one alone nobody can say what it has.
    let proxy = Proxy::start(&format!("{listener}{}", upstream("gone", gone_at)));
    assert_eq!(ask(&proxy), 503);
}
