//! rules §12, §14: the whole config changes while the process runs, or nothing of it does.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use loadtest::mock::Mock;
use tokenring::testing::base::listener_id::ListenerId;
use tokenring::testing::config::Sources;
use tokenring::testing::control::Options;
use tokenring::testing::control::reload::{FileText, ReloadHooks, Reloaded};
use tokenring::testing::load;
use tokenring::testing::net::dial::Address;

use super::fake::Fake;
use super::house::{Proxy, mock_with, wait_until};
use super::wire::{Client, chat, get, post};

/// A proxy whose config can be written anew.
pub(crate) struct Live {
    pub(crate) proxy: Proxy,
    text: Arc<Mutex<String>>,
    told: Arc<Mutex<Vec<Result<Reloaded, String>>>>,
}

impl Live {
    pub(crate) fn start(text: &str) -> Live {
        let written = Arc::new(Mutex::new(text.to_owned()));
        let told = Arc::new(Mutex::new(Vec::new()));
        let (reads, tells) = (written.clone(), told.clone());
        let hooks = ReloadHooks {
            read: Arc::new(move || {
                let text = reads.lock().unwrap().clone();
                Ok(FileText { name: "config.toml".to_owned(), text })
            }),
            check: Arc::new(load::load_sources),
            prepare: Arc::new(|_| Ok(Box::new(|| {}))),
            told: Arc::new(move |how| tells.lock().unwrap().push(how.clone())),
        };
        let sources = Some(Sources::new("config.toml".to_owned(), text.to_owned()));
        let options = Options { reload: Some(hooks), sources, ..Options::default() };
        Live { proxy: Proxy::start_with(text, options), text: written, told }
    }

    /// Writes another config and reloads it.
    pub(crate) fn reload(&self, text: &str) -> Result<Reloaded, String> {
        text.clone_into(&mut self.text.lock().unwrap());
        let before = self.told.lock().unwrap().len();
        self.proxy.reload();
        wait_until("the reload is over", || self.told.lock().unwrap().len() > before);
        let how = self.told.lock().unwrap()[before].clone();
        // Every core has it, or stays as it is.
        self.proxy.plan();
        how
    }

    /// What was changed, a line each.
    fn changes(&self, text: &str) -> Vec<String> {
        let done = self.reload(text).unwrap_or_else(|why| panic!("{why}\n{text}"));
        done.changes.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn addr(&self, listener: &str) -> SocketAddr {
        let id = ListenerId::of(listener);
        let addresses = self.proxy.addresses();
        match addresses.iter().find(|(one, _)| *one == id) {
            Some((_, Address::Tcp(addr))) => *addr,
            other => panic!("{listener}: {other:?}"),
        }
    }

    fn admin(&self) -> Client {
        match self.proxy.admin() {
            Some(Address::Tcp(addr)) => Client::connect(*addr),
            other => panic!("no admin listener: {other:?}"),
        }
    }

    fn metric(&self, name: &str) -> String {
        let text = self.admin().send(get("/metrics", "")).answer().text();
        let line = text.lines().find(|line| line.starts_with(&format!("tokenring_{name} ")));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().to_owned()
    }
}

fn listener(name: &str, more: &str) -> String {
    format!("[[listener]]\nname = \"{name}\"\nbind = \"127.0.0.1:0\"\n{more}\n")
}

fn model(name: &str, url: &str, more: &str) -> String {
    format!(
        "[[upstream]]\nname = \"{name}\"\nurl = \"{url}\"\nmodels = []\n{more}\n\
         [models.\"{name}\"]\nupstream = \"{name}\"\n"
    )
}

fn named(name: &str) -> Mock {
    mock_with(|config| config.name = name.to_owned())
}

fn ask(addr: SocketAddr, model: &str, fields: &str) -> (u16, String) {
    let body = format!("{{\"model\":\"{model}\",\"messages\":[]}}");
    let answer = Client::connect(addr).send(post("/v1/chat/completions", fields, body)).answer();
    (answer.status, answer.field("x-mock-server").unwrap_or_default().to_owned())
}

fn ids(addr: SocketAddr, fields: &str) -> Vec<String> {
    let list = Client::connect(addr).send(get("/v1/models", fields)).answer().json();
    let list = list["data"].as_array().unwrap().iter();
    list.map(|model| model["id"].as_str().unwrap().to_owned()).collect()
}

const ONE_CORE: &str = "[process]\ncores = 1\n";
const OPEN: &str = "auth = \"none\"";
const ADMIN: &str = "[admin]\nbind = \"127.0.0.1:0\"\n";

/// Asks again and again until it is over, on one connection or on fresh ones; each answer is good.
pub(crate) fn ask_until(addr: SocketAddr, fresh: bool, over: &AtomicBool, served: &AtomicU64) {
    let mut client = Client::connect(addr);
    while !over.load(Relaxed) {
        if fresh {
            client = Client::connect(addr);
        }
        let body = "{\"model\":\"m\",\"messages\":[]}";
        let answer = client.send(post("/v1/chat/completions", "", body)).answer();
        assert_eq!(answer.status, 200, "{}", answer.text());
        served.fetch_add(1, Relaxed);
    }
}

#[test]
fn all_that_a_file_says_is_in_force_afterwards() {
    let (a, b) = (named("a"), named("b"));
    let first = format!("{ONE_CORE}{}{}", listener("l", OPEN), model("a", &a.url(), ""));
    let live = Live::start(&first);
    let old = live.addr("l");
    assert_eq!(ask(old, "a", ""), (200, "a".to_owned()));
    assert_eq!(live.changes(&first), Vec::<String>::new(), "the same file changes nothing");
    assert_eq!(live.addr("l"), old);

    let keyed = "auth = \"keys\"\n";
    let key = |name: &str, more: &str| {
        format!("[[key]]\nname = \"{name}\"\nkey = \"sk-{name}\"\n{more}\n")
    };
    let second = format!(
        "{ONE_CORE}drain = \"7s\"\n[limits]\nbody = \"1KiB\"\n{}{}{}{}{}",
        listener("new", keyed),
        listener("l", OPEN),
        key("k", "rpm = 2"),
        model("a", &a.url(), "headers = [{ op = \"replace\", key = \"x-said\", value = \"new\" }]"),
        model("b", &b.url(), ""),
    );
    let changes = live.changes(&second);
    for wanted in ["+ listener new", "+ key k", "+ upstream b", "+ model b"] {
        assert!(changes.iter().any(|change| change == wanted), "{wanted}: {changes:#?}");
    }
    assert_eq!(live.addr("l"), old, "an address that stays keeps its sockets");
    assert_eq!(ask(old, "b", ""), (200, "b".to_owned()));
    let new = live.addr("new");
    assert_eq!(ask(new, "a", "").0, 401);
    let with_key = "authorization: Bearer sk-k\r\n";
    assert_eq!(ask(new, "a", with_key).0, 200);
    let large = vec![b' '; 2000];
    let mut client = Client::connect(old);
    assert_eq!(client.send(post("/v1/chat/completions", "", &large)).answer().status, 413);
    assert_eq!(live.proxy.plan().drain.as_secs(), 7);

    // The key goes on with what it has used; the listener that goes is refused.
    let third = format!(
        "{ONE_CORE}{}{}{}",
        listener("new", keyed),
        key("k", "rpm = 2\nmodels = [\"b\"]"),
        model("b", &b.url(), ""),
    );
    let changes = live.changes(&third);
    for wanted in ["- listener l", "- upstream a", "- model a"] {
        assert!(changes.iter().any(|change| change == wanted), "{wanted}: {changes:#?}");
    }
    assert_eq!(live.addr("new"), new);
    assert!(std::net::TcpStream::connect(old).is_err());
    assert_eq!(ask(new, "b", with_key).0, 200);
    assert_eq!(ask(new, "b", with_key).0, 429, "two a minute, before and after together");
    assert_eq!(ids(new, with_key), ["b"]);
}

#[test]
fn a_config_that_cannot_be_used_changes_nothing_and_says_why() {
    let a = named("a");
    let first = format!("{ONE_CORE}{ADMIN}{}{}", listener("l", OPEN), model("a", &a.url(), ""));
    let live = Live::start(&first);
    let addr = live.addr("l");
    let mut kept = Client::connect(addr);
    assert_eq!(kept.send(chat("", false).as_slice()).answer().status, 404);
    assert_eq!(live.metric("config_reload_success"), "1");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let second = model("b", &a.url(), "");
    let broken = [
        ("no TOML", "[[listener".to_owned(), "config.toml:1"),
        ("a fault", first.replace("auth = \"none\"", "auth = \"nothing\""), "auth"),
        (
            "cores",
            first.replace("cores = 1", "cores = 2") + &second,
            "process.cores cannot change while running",
        ),
        (
            "a taken address",
            format!("{first}{second}[[listener]]\nname = \"x\"\nbind = \"{taken}\"\n{OPEN}\n"),
            "cannot listen on",
        ),
        (
            "a taken address for the operator",
            first.replace(
                "[admin]\nbind = \"127.0.0.1:0\"",
                &format!("[admin]\nbind = \"{taken}\""),
            ) + &second,
            "admin",
        ),
    ];
    for (at, (what, text, why)) in broken.iter().enumerate() {
        let told = live.reload(text).expect_err(what);
        assert!(told.contains(why), "{what}: {told}");
        assert_eq!(ask(addr, "a", "").0, 200, "{what}");
        assert_eq!(ask(addr, "b", "").0, 404, "{what}: nothing of it is in force");
        assert_eq!(live.metric("config_reload_success"), "0", "{what}");
        let refused = live.metric("config_reloads_total{result=\"refused\"}");
        assert_eq!(refused, (at + 1).to_string());
        let ready = live.admin().send(get("/ready", "")).answer().status;
        assert_eq!(ready, 200, "{what}: it serves as before");
    }
    assert_eq!(kept.send(get("/v1/models", "")).answer().status, 200, "the same connection");
    live.reload(&(first + &second)).unwrap();
    assert_eq!(ask(addr, "b", "").0, 200);
    assert_eq!(live.metric("config_reload_success"), "1");
}

#[test]
fn who_may_ask_the_operators_interface_changes_too() {
    let a = named("a");
    let with = |admin: &str| {
        format!("{ONE_CORE}{}{}{admin}", listener("l", OPEN), model("a", &a.url(), ""))
    };
    let live = Live::start(&with(ADMIN));
    let ask = |request: &[u8]| live.admin().send(request).answer();
    let answer = ask(&post("/config/reload", "", ""));
    assert_eq!(answer.status, 200);
    let told = answer.json();
    assert_eq!(
        (&told["success"], &told["endpoints"], &told["models"]),
        (&true.into(), &1.into(), &1.into())
    );
    for method in ["GET", "POST"] {
        let request = format!("{method} /admin/reload HTTP/1.1\r\nhost: localhost\r\n\r\n");
        assert_eq!(ask(request.as_bytes()).json()["status"], "reloaded", "{method}");
    }
    let foreign = "GET /admin/reload HTTP/1.1\r\nhost: localhost\r\norigin: http://x.test\r\n\r\n";
    assert_eq!(ask(foreign.as_bytes()).status, 403);
    for from in ["sec-fetch-site: cross-site", "referer: http://x.test/page"] {
        let image = format!("GET /admin/reload HTTP/1.1\r\nhost: localhost\r\n{from}\r\n\r\n");
        assert_eq!(ask(image.as_bytes()).status, 403, "an image of a page: {from}");
    }
    *live.text.lock().unwrap() = "nonsense".to_owned();
    let answer = ask(&post("/config/reload", "", ""));
    assert_eq!((answer.status, &answer.json()["success"]), (400, &false.into()));
    assert_eq!(ask(&get("/admin/reload", "")).status, 400);

    live.reload(&with(&format!("{ADMIN}token = \"t\"\n"))).unwrap();
    assert_eq!(ask(&get("/health", "")).status, 401);
    assert_eq!(ask(&get("/health", "authorization: Bearer t\r\n")).status, 200);
    live.reload(&with(&format!("{ADMIN}allow = [\"10.0.0.0/8\"]\n"))).unwrap();
    // Closed, by a reset if its request had arrived by then.
    assert_eq!(live.admin().send(get("/health", "")).rest().unwrap_or_default(), b"");
    live.reload(&with(ADMIN)).unwrap();
    let mut open = live.admin();
    assert_eq!(open.send(get("/health", "")).answer().status, 200);
    live.reload(&with("")).unwrap();
    assert_eq!(open.send(get("/health", "")).answer().status, 404, "nor by what was open");
    let Some(Address::Tcp(addr)) = live.proxy.admin() else { panic!("it was there") };
    wait_until("it is gone", || std::net::TcpStream::connect(addr).is_err());
}

#[test]
fn a_server_under_another_name_does_not_lose_its_models_for_a_moment() {
    let fake = Fake::start("a", &["x"]);
    let with = |name: &str| {
        let upstream = format!("[[upstream]]\nname = \"{name}\"\nurl = \"{}\"\n", fake.url());
        format!("{ONE_CORE}{}{upstream}", listener("l", OPEN))
    };
    let live = Live::start(&with("one"));
    let addr = live.addr("l");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut client = Client::connect(addr);
            let mut asked = 0;
            while !over.load(Relaxed) {
                let body = "{\"model\":\"x\"}";
                let answer = client.send(post("/v1/chat/completions", "", body)).answer();
                assert_eq!(answer.status, 200, "{}", answer.text());
                asked += 1;
            }
            asked
        });
        for name in ["two", "three", "four"] {
            live.reload(&with(name)).unwrap();
        }
        over.store(true, Relaxed);
        assert!(load.join().unwrap() > 0);
    });
}

/// Reloads one after the other, every tenth broken, while requests run.
#[test]
fn reloads_under_load_cost_no_exchange() {
    let servers = [named("a"), named("b"), named("c")];
    let text = |turn: usize| {
        let mut text = format!("[process]\ncores = 2\n{}", listener("stays", OPEN));
        if turn % 3 == 1 {
            text += &listener("comes", OPEN);
        }
        for (at, server) in servers.iter().enumerate() {
            let more = format!(
                "concurrency = {}\nbreaker = {{ consecutive = {} }}",
                100 + turn % 2,
                50 + turn % 7
            );
            text += &format!(
                "[[upstream]]\nname = \"s{at}\"\nurl = \"{}\"\nmodels = []\n{more}\n",
                server.url()
            );
        }
        let first = turn % 3;
        let members: Vec<String> = (0..2 + turn % 2)
            .map(|at| format!("{{ upstream = \"s{}\" }}", (first + at) % 3))
            .collect();
        text += &format!(
            "[[group]]\nname = \"g\"\nmembers = [{}]\nqueue = {{ length = {} }}\n[models.m]\ngroup = \"g\"\n\
             [[key]]\nname = \"k{}\"\nkey = \"sk-{turn}\"\n",
            members.join(", "),
            10 + turn % 3,
            turn % 4
        );
        text
    };
    let live = Live::start(&text(0));
    let addr = live.addr("stays");
    let (over, served) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (over, served) = (&over, &served);
        let load = |fresh| move || ask_until(addr, fresh, over, served);
        let loads: Vec<_> = [false, false, true].map(|fresh| scope.spawn(load(fresh))).into();
        for turn in 1..=200 {
            let broken = turn % 10 == 0;
            let text = text(turn) + if broken { "[[listener]]\nname = \"stays\"\n" } else { "" };
            let before = served.load(Relaxed);
            assert_eq!(live.reload(&text).is_err(), broken, "turn {turn}");
            wait_until("the load goes on", || served.load(Relaxed) > before + 3);
        }
        over.store(true, Relaxed);
        loads.into_iter().for_each(|load| load.join().unwrap());
    });
}
