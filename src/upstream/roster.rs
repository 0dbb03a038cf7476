//! Which upstreams stay the same across plans, and so keep their counts and connections.
//!
//! A plan is made anew at every change, but what belongs to the server behind an upstream must not
//! begin anew with it. The roster maps the identity of an upstream to its one shared state, and
//! each address of it to the one number under which cores pool connections. Both are held weakly:
//! what no plan and no exchange uses any more is forgotten, and an upstream that comes back while
//! an old exchange still runs finds the count of that exchange.
//!
//! The roster belongs to the control thread; cores never see it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};

use super::state::UpstreamState;
use crate::config::{Config, OutboundProxy, Upstream, UpstreamTls};
use crate::net::dial::Address;
use crate::policy::keys::KeyDigest;

/// The number under which the connections to one address of one upstream are pooled.
///
/// Never given twice, so that a connection cannot pass for one to another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u64);

/// One address of an upstream.
#[derive(Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where to connect.
    pub address: Address,
    /// The pool of its idle connections.
    pub pool: PoolId,
}

/// What an upstream of a plan has in common with that of the plan before.
#[derive(Clone, Debug)]
pub struct Site {
    /// What all cores share about it.
    pub state: Arc<UpstreamState>,
    /// Its addresses, in order of preference; empty = it could not be resolved.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// What makes an upstream the same one in two plans: its name, its configured address, and all
/// settings by which two connections to that address differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    name: String,
    tls: bool,
    unix: bool,
    host: String,
    port: u16,
    /// Of an `https` URL: the CAs trusted, the certificate shown, the server name asked for.
    tls_settings: Option<UpstreamTls>,
    http2: bool,
    via: Option<Via>,
}

/// The outbound proxy that connections go through, as far as two connections differ by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Via {
    host: String,
    port: u16,
    /// Digest of the credentials: a proxy may treat two users differently.
    credentials: Option<KeyDigest>,
}

impl Via {
    fn of(proxy: &OutboundProxy) -> Self {
        let credentials = proxy.credentials.as_ref().map(|pair| KeyDigest::of(pair.expose()));
        Self { host: proxy.host.clone(), port: proxy.port, credentials }
    }
}

impl Identity {
    /// The identity of a configured upstream.
    #[must_use]
    pub fn of(upstream: &Upstream) -> Self {
        let url = &upstream.url;
        Self {
            name: upstream.name.clone(),
            tls: url.tls,
            unix: url.unix,
            host: url.host.clone(),
            port: url.port,
            tls_settings: url.tls.then(|| upstream.tls.clone()),
            http2: upstream.http2,
            via: upstream.proxy.as_ref().map(Via::of),
        }
    }
}

/// All upstreams and addresses in use.
#[derive(Debug, Default)]
pub struct Roster {
    states: Kept<Identity, UpstreamState>,
    endpoints: Kept<(Identity, Address), Endpoint>,
    pools_given: u64,
}

impl Roster {
    /// The sites of a config's upstreams, in its order.
    ///
    /// Shape: `addresses` has one list per upstream; a missing list is an empty one.
    pub fn sites(&mut self, config: &Config, addresses: &[Vec<Address>]) -> Vec<Site> {
        self.states.forget_unused();
        self.endpoints.forget_unused();
        let lists = addresses.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
        config.upstreams.iter().zip(lists).map(|(one, list)| self.site(one, list)).collect()
    }

    fn site(&mut self, upstream: &Upstream, addresses: &[Address]) -> Site {
        let identity = Identity::of(upstream);
        let endpoints = addresses
            .iter()
            .map(|address| {
                let key = (identity.clone(), address.clone());
                self.endpoints.find_or(key, || {
                    self.pools_given += 1;
                    Endpoint { address: address.clone(), pool: PoolId(self.pools_given) }
                })
            })
            .collect();
        Site {
            state: self
                .states
                .find_or(identity, || UpstreamState::new(upstream.breaker, upstream.concurrency)),
            endpoints,
        }
    }
}

/// Shared values by key, kept for as long as something else holds them.
#[derive(Debug)]
pub struct Kept<K, V>(HashMap<K, Weak<V>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Kept<K, V> {
    /// The value of a key, made anew when it is held nowhere.
    pub fn find_or(&mut self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let known = self.0.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let made = Arc::new(make());
            self.0.insert(key, Arc::downgrade(&made));
            made
        })
    }

    /// Drops the keys whose value is held nowhere.
    pub fn forget_unused(&mut self) {
        self.0.retain(|_, value| value.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        let head = "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n";
        Config::from_toml_str(&format!("{head}{text}"), &|_| None).unwrap()
    }

    fn at(port: u16) -> Address {
        Address::Tcp(([127, 0, 0, 1], port).into())
    }

    const A: &str = "[[upstream]]\nname = \"a\"\nurl = \"http://h:1\"\n";

    #[test]
    fn an_upstream_that_stays_keeps_its_state_and_pools() {
        let mut roster = Roster::default();
        let first = roster.sites(&config(A), &[vec![at(1), at(2)]]);
        let lease = first[0].state.try_lease().unwrap();
        let b = "[[upstream]]\nname = \"b\"\nurl = \"http://h:2\"\n";
        let second = roster.sites(&config(&format!("{b}{A}")), &[vec![at(2)], vec![at(2), at(3)]]);
        assert!(Arc::ptr_eq(&first[0].state, &second[1].state));
        assert_eq!((second[0].state.in_flight(), second[1].state.in_flight()), (0, 1));
        assert_eq!(first[0].endpoints[1], second[1].endpoints[0]);
        assert_ne!(first[0].endpoints[1].pool, second[0].endpoints[0].pool, "another upstream");
        assert_ne!(second[1].endpoints[0].pool, second[1].endpoints[1].pool);
        drop(lease);
    }

    #[test]
    fn another_name_host_or_scheme_is_another_upstream() {
        let mut roster = Roster::default();
        let first = roster.sites(&config(A), &[]);
        let named = |name: &str| format!("{A}tls.server_name = \"{name}\"\n");
        for other in [
            A.replace("\"a\"", "\"c\""),
            A.replace("h:1", "i:1"),
            A.replace("h:1", "h:3"),
            A.replace("http:", "https:"),
            format!("{A}http2 = true\n"),
        ] {
            let second = roster.sites(&config(&other), &[]);
            assert!(!Arc::ptr_eq(&first[0].state, &second[0].state), "{other}");
        }
        let https = |text: String| text.replace("http:", "https:");
        let first_tls = roster.sites(&config(&https(named("x"))), &[]);
        for (name, same) in [("x", true), ("y", false)] {
            let second = roster.sites(&config(&https(named(name))), &[]);
            assert_eq!(Arc::ptr_eq(&first_tls[0].state, &second[0].state), same, "{name}");
        }
        let second = roster.sites(&config(&named("x")), &[]);
        assert!(Arc::ptr_eq(&first[0].state, &second[0].state), "of http it means nothing");
        let pooled = A.replace("[[upstream]]", "[[upstream]]\nreuse = \"never\"");
        let second = roster.sites(&config(&pooled), &[]);
        assert!(Arc::ptr_eq(&first[0].state, &second[0].state), "settings do not count");
    }

    #[test]
    fn another_proxy_or_other_credentials_are_another_upstream() {
        let mut roster = Roster::default();
        let with = |proxy: &str| config(&format!("{A}proxy = \"{proxy}\"\n"));
        let proxies = ["", "http://p:1", "http://p:2", "http://q:1", "http://u:CANARY@p:1"];
        let sites: Vec<Site> =
            proxies.iter().map(|p| roster.sites(&with(p), &[vec![at(1)]]).remove(0)).collect();
        let mut pools: Vec<PoolId> = sites.iter().map(|site| site.endpoints[0].pool).collect();
        pools.dedup();
        assert_eq!(pools.len(), proxies.len());
        let again = roster.sites(&with("http://u:CANARY@p:1"), &[vec![at(1)]]);
        assert!(Arc::ptr_eq(&again[0].state, &sites[4].state));
        let shown = format!("{:?}", Identity::of(&with("http://u:CANARY@p:1").upstreams[0]));
        assert!(!shown.contains("CANARY"), "{shown}");
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_its_numbers_are_not_given_again() {
        let mut roster = Roster::default();
        let first = roster.sites(&config(A), &[vec![at(1)]]);
        let pool = first[0].endpoints[0].pool;
        drop(first);
        let second = roster.sites(&config(A), &[vec![at(1)]]);
        assert!(second[0].endpoints[0].pool > pool);
        let none = "[[upstream]]\nname = \"z\"\nurl = \"http://h:9\"\n";
        drop(second);
        let _third = roster.sites(&config(none), &[]);
        assert_eq!((roster.states.0.len(), roster.endpoints.0.len()), (1, 0));
    }
}
