//! A house to test: a proxy, and simulated model servers behind it.
//!
//! `Setup` writes the config that nearly every test needs (one listener without keys, one
//! upstream for each server, a group `chat` of all of them, the model `m` that leads there, and
//! a route `/echo` that needs no model); a test says what differs.

use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use loadtest::mock::{Mock, MockConfig};
use tokenring::testing::config::{self, Loaded, Outside, Report};
use tokenring::testing::control;
use tokenring::testing::load;
use tokenring::testing::net::dial::Address;
use tokenring::testing::proxy::plan::Plan;
use tokenring::testing::server::listeners::Applied;
use tokenring::testing::server::{self, Server};

use super::wire::Client;

/// How long anything may take before a test calls it a hang.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// A breaker that no test opens by accident.
const NEVER_OPENS: &str = "breaker = { consecutive = 1000000, calls_min = 1000000 }\n";

/// A simulated model server with the mock's defaults.
pub(crate) fn mock() -> Mock {
    mock_with(|_| {})
}

/// A simulated model server that differs from the defaults.
pub(crate) fn mock_with(change: impl FnOnce(&mut MockConfig)) -> Mock {
    let mut config = MockConfig::default();
    change(&mut config);
    Mock::start(config).expect("port 0 is free")
}

/// What differs from the usual config. Every text is TOML of the table it is named after.
#[derive(Clone, Copy, Default)]
pub(crate) struct Setup<'a> {
    /// Of `[process]`; one core unless it says otherwise.
    pub process: &'a str,
    /// Of the listener; routes may stand at its end.
    pub listener: &'a str,
    /// Of every upstream.
    pub upstream: &'a str,
    /// Put behind the address in every upstream's URL.
    pub base: &'a str,
    /// Of the group `chat`.
    pub group: &'a str,
    /// Whole tables.
    pub rest: &'a str,
}

impl Setup<'_> {
    /// Starts a proxy in front of these servers.
    pub(crate) fn start(&self, mocks: &[&Mock]) -> Proxy {
        let urls: Vec<String> = mocks.iter().map(|mock| mock.url()).collect();
        self.start_on(&urls)
    }

    /// Starts a proxy in front of these base URLs.
    pub(crate) fn start_on(&self, urls: &[String]) -> Proxy {
        Proxy::start(&self.text(urls))
    }

    /// The config itself.
    pub(crate) fn text(&self, urls: &[String]) -> String {
        let or = |text: &str, key: &str, line: &'static str| match text.contains(key) {
            true => "",
            false => line,
        };
        let Setup { process, listener, upstream, base, group, rest } = self;
        let mut text = format!(
            "[process]\n{}{process}\n\
             [[listener]]\nname = \"main\"\n{}{}{listener}\n\
             [[listener.route]]\npath = \"/echo\"\ngroup = \"chat\"\n",
            or(process, "cores", "cores = 1\n"),
            or(listener, "bind", "bind = \"127.0.0.1:0\"\n"),
            or(listener, "auth", "auth = \"none\"\n"),
        );
        let mut members = Vec::new();
        for (at, url) in urls.iter().enumerate() {
            let models = or(upstream, "models", "models = []\n");
            // Tests of one bad answer after another want every one of them.
            let breaker = or(upstream, "breaker", NEVER_OPENS);
            text += &format!(
                "[[upstream]]\nname = \"gpu{at}\"\nurl = \"{url}{base}\"\n{models}{breaker}{upstream}\n"
            );
            members.push(format!("{{ upstream = \"gpu{at}\" }}"));
        }
        text += &format!(
            "[[group]]\nname = \"chat\"\nmembers = [{}]\n{group}\n\
             [models.\"m\"]\ngroup = \"chat\"\n{rest}\n",
            members.join(", ")
        );
        text
    }
}

/// The usual proxy in front of one usual server.
pub(crate) fn house() -> (Mock, Proxy) {
    let mock = mock();
    let proxy = Setup::default().start(&[&mock]);
    (mock, proxy)
}

/// A running proxy. When it is dropped by a test that passes, no panic has been counted.
pub(crate) struct Proxy {
    server: Option<Server>,
}

impl Proxy {
    /// Starts what `text` describes.
    pub(crate) fn start(text: &str) -> Proxy {
        Proxy::start_with(text, control::Options::default())
    }

    /// Starts what `text` describes, with a control thread that differs from the usual.
    pub(crate) fn start_with(text: &str, differs: control::Options) -> Proxy {
        Proxy::start_loaded(load::load_text("config.toml", text), text, differs)
    }

    /// Starts what `text` describes, in a world that holds these files and no other.
    pub(crate) fn start_beside(text: &str, files: &[(&str, &str)]) -> Proxy {
        let read = |path: &Path| match files.iter().find(|(name, _)| path == Path::new(name)) {
            Some((_, content)) => Ok((*content).to_owned()),
            None => Err("no such file".to_owned()),
        };
        let outside = Outside { read: &read, ..Outside::NOTHING };
        let loaded = config::load("test.toml", text, &outside);
        Proxy::start_loaded(loaded, text, control::Options::default())
    }

    fn start_loaded(
        loaded: Result<Loaded, Report>,
        text: &str,
        differs: control::Options,
    ) -> Proxy {
        let config = loaded.unwrap_or_else(|report| panic!("{report}\n{text}")).config;
        let started = server::start_with(&config, differs);
        Proxy::of(started.unwrap_or_else(|why| panic!("{why}\n{text}")).server)
    }

    /// Takes a running server over.
    pub(crate) fn of(server: Server) -> Proxy {
        Proxy { server: Some(server) }
    }

    /// The TCP address of the first listener.
    pub(crate) fn addr(&self) -> SocketAddr {
        match self.address() {
            Some(Address::Tcp(addr)) => addr,
            other => panic!("no TCP listener: {other:?}"),
        }
    }

    /// Puts a plan in force; every core follows.
    pub(crate) fn swap(&self, plan: Plan) {
        let applied = self.apply(plan).unwrap_or_else(|why| panic!("{why}"));
        assert_eq!(applied, Applied::default());
    }

    /// A connection to the first listener.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.addr())
    }

    /// The plan in force, as soon as every core serves by it: a request sent now meets it, or one
    /// that came after it.
    pub(crate) fn plan(&self) -> Arc<Plan> {
        let started = Instant::now();
        loop {
            if let Some(plan) = self.shared().plan_of_all_cores() {
                return plan;
            }
            assert!(started.elapsed() < LIMIT, "not within {LIMIT:?}: all cores have the plan");
            std::thread::yield_now();
        }
    }

    /// Client connections open now.
    pub(crate) fn connections(&self) -> u32 {
        self.shared().connections.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Panics that were caught.
    pub(crate) fn panics(&self) -> u64 {
        self.shared().panics.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Waits until no client connection is left.
    pub(crate) fn wait_until_empty(&self) {
        wait_until("no client connection is left", || self.connections() == 0);
    }

    /// Waits for the end of every worker.
    pub(crate) fn join(mut self) {
        let server = self.server.take().expect("joined once");
        server.join();
    }
}

impl Deref for Proxy {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server.as_ref().expect("not joined")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let (Some(server), false) = (&self.server, std::thread::panicking()) {
            let panics = server.shared().panics.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(panics, 0, "panics caught in the proxy");
        }
    }
}

/// Asks every millisecond until `met` holds; how long it took.
pub(crate) fn wait_until(what: &str, met: impl Fn() -> bool) -> Duration {
    let started = Instant::now();
    while !met() {
        assert!(started.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    started.elapsed()
}
