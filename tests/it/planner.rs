//! Plans made by a test, as the control thread makes them: one registry for all of them.

use std::net::ToSocketAddrs;
use std::os::fd::OwnedFd;

use tokenring::testing::config::Config;
use tokenring::testing::net::dial::Address;
use tokenring::testing::net::tls::Store;
use tokenring::testing::proxy::compile::compile;
use tokenring::testing::proxy::core::Mailboxes;
use tokenring::testing::proxy::plan::Plan;
use tokenring::testing::server::{Options, Server};
use tokenring::testing::upstream::registry::Registry;

use super::house::Proxy;

/// What all plans of one proxy come from.
pub(crate) struct Planner {
    registry: Registry,
    /// Until the proxy is started.
    mailboxes: Option<Mailboxes>,
}

impl Planner {
    /// For a proxy with this many cores.
    pub(crate) fn new(cores: usize) -> Planner {
        let mailboxes = Mailboxes::open(cores).expect("descriptors");
        let registry = Registry::new(mailboxes.notifier.clone());
        Planner { registry, mailboxes: Some(mailboxes) }
    }

    /// The plan of a config's text; hosts are addresses or names that this machine knows.
    pub(crate) fn plan(&mut self, text: &str) -> Plan {
        let config = read(text);
        let addresses: Vec<Vec<Address>> = config
            .upstreams
            .iter()
            .map(|u| (u.url.host.as_str(), u.url.port).to_socket_addrs().unwrap())
            .map(|found| found.map(Address::Tcp).collect())
            .collect();
        let carried = self.registry.carry(&config, &addresses);
        compile(&config, carried, &Store::default(), 0).unwrap()
    }

    /// Starts the proxy.
    pub(crate) fn start(&mut self, text: &str) -> Proxy {
        self.start_adopting(text, Vec::new())
    }

    /// Starts the proxy with the sockets of one before.
    pub(crate) fn start_adopting(&mut self, text: &str, adopted: Vec<(usize, OwnedFd)>) -> Proxy {
        let options = Options { adopted, ..Options::of(&read(text)).unwrap() };
        let plan = self.plan(text);
        let mailboxes = self.mailboxes.take().expect("one proxy for each planner");
        Proxy::of(Server::start(plan, options, mailboxes).unwrap())
    }
}

fn read(text: &str) -> Config {
    Config::from_toml_str(text, &|_| None).unwrap_or_else(|why| panic!("{why}"))
}
