//! All that outlives a plan, by identity.
//!
//! A plan is made anew at every change, but what belongs to the server behind an upstream, to a
//! key, to a group or to a client's address must not begin anew with it. The registry finds it again
//! by what makes it the same (`identity`) and hands it to the next plan in one step: `carry`. It is
//! held weakly: what no plan and no exchange uses any more is forgotten, and what comes back while an
//! old exchange still runs is found as that exchange left it.
//!
//! A group that the file does not name goes by its members, and those change when a server comes or
//! goes. So that its queue is not lost then, such a group follows the one of which it has most
//! members, if models led to that one and do so no more.
//!
//! Nothing here changes what is in force: `carry` finds and makes, and the settings of a plan are
//! applied when it is put in force. The registry belongs to the control thread; cores never see it.

use std::collections::{HashMap, HashSet};
use std::hash::{Hash, RandomState};
use std::sync::{Arc, Weak};

use super::endpoint::{Endpoint, PoolId};
use super::identity::{GroupIdentity, Identity};
use super::state::UpstreamState;
use super::wait_queue::{GroupQueue, WaitQueue, Wake};
use crate::config::{Config, Group, GroupId, Listener, Model, Upstream};
use crate::net::dial::Address;
use crate::net::notify::WakeToken;
use crate::policy::limit::ip::IpTable;
use crate::policy::limit::key::KeyState;
use crate::policy::limit::shared::Budget;
use crate::telemetry::labels::{LabelKind, LabelNames, PlanLabels};

/// What a plan has in common with others; each list in the order of its config.
pub struct Carried {
    /// One for each upstream.
    pub sites: Vec<Site>,
    /// What each key has used.
    pub keys: Vec<Arc<KeyState>>,
    /// What each address has used at a listener; `None` = the listener limits none.
    pub address_tables: Vec<Option<Arc<IpTable>>>,
    /// One for each group.
    pub groups: Vec<CarriedGroup>,
    /// The budget that nodes share; `None` = every node counts by itself.
    pub budget: Option<Arc<Budget>>,
    /// By what metrics tell all these apart.
    pub labels: PlanLabels,
}

/// An upstream: what is known of it, and where it is.
#[derive(Clone, Debug)]
pub struct Site {
    /// What all cores share about it.
    pub state: Arc<UpstreamState>,
    /// Its addresses, in order of preference; empty = it could not be resolved.
    pub endpoints: Vec<Arc<Endpoint>>,
}

/// A group: what all plans that have it share.
pub struct CarriedGroup {
    /// By which cores find again what each of them keeps of the group.
    pub state: Arc<GroupState>,
    /// Where requests for its members wait; `None` = nobody may wait.
    pub queue: Option<GroupQueue<WakeToken>>,
}

/// What all plans share of a group.
pub struct GroupState {
    /// Never given twice.
    pub number: u64,
    queue: Arc<WaitQueue<WakeToken>>,
}

/// All that is in use.
pub struct Registry {
    wake: Arc<dyn Wake<WakeToken>>,
    upstreams: Kept<Identity, UpstreamState>,
    endpoints: Kept<(Identity, Address), Endpoint>,
    keys: Kept<String, KeyState>,
    address_tables: Kept<String, IpTable>,
    groups: HashMap<GroupIdentity, KnownGroup>,
    budget: Option<Arc<Budget>>,
    labels: LabelNames,
    pools_given: u64,
    keys_given: u32,
    groups_given: u64,
}

/// A group, and who its members were in the last config that had it.
struct KnownGroup {
    state: Weak<GroupState>,
    members: HashSet<Identity>,
    /// Whether a model led to it.
    is_led: bool,
}

impl Registry {
    /// An empty registry; `wake` wakes those who wait in the queues that it makes.
    #[must_use]
    pub fn new(wake: Arc<dyn Wake<WakeToken>>) -> Self {
        Self {
            wake,
            upstreams: Kept::default(),
            endpoints: Kept::default(),
            keys: Kept::default(),
            address_tables: Kept::default(),
            groups: HashMap::new(),
            budget: None,
            labels: LabelNames::default(),
            pools_given: 0,
            keys_given: 0,
            groups_given: 0,
        }
    }

    /// Has all plans from now on use a budget that nodes share.
    pub fn share(&mut self, budget: Arc<Budget>) {
        self.budget = Some(budget);
    }

    /// Has all plans from now on use another budget, or none; returns the one before.
    pub fn replace_budget(&mut self, budget: Option<Arc<Budget>>) -> Option<Arc<Budget>> {
        std::mem::replace(&mut self.budget, budget)
    }

    /// An empty registry, for a config that is only tried: what it makes is nobody's.
    #[must_use]
    pub fn scratch(&self) -> Self {
        Self::new(self.wake.clone())
    }

    /// What all cores share about an upstream.
    pub fn upstream(&mut self, upstream: &Upstream) -> Arc<UpstreamState> {
        self.upstreams.find_or(Identity::of(upstream), || {
            UpstreamState::new(upstream.breaker, upstream.concurrency)
        })
    }

    /// Finds all that the plan of a config has in common with those before it, and makes the rest.
    ///
    /// Shape: `addresses` has one list per upstream; a missing list is an empty one.
    pub fn carry(&mut self, config: &Config, addresses: &[Vec<Address>]) -> Carried {
        self.forget_unused();
        let lists = addresses.iter().map(Vec::as_slice).chain(std::iter::repeat(&[][..]));
        let sites: Vec<Site> =
            config.upstreams.iter().zip(lists).map(|(one, list)| self.site(one, list)).collect();
        let tables = &mut self.address_tables;
        let table = |listener: &Listener| {
            let name = listener.ratelimit.map(|_| listener.name.clone())?;
            Some(tables.find_or(name, || IpTable::new(RandomState::new())))
        };
        let address_tables = config.listeners.iter().map(table).collect();
        let keys = config.keys.iter().map(|key| {
            self.keys.find_or(key.name.clone(), || {
                self.keys_given += 1;
                KeyState::numbered(self.keys_given)
            })
        });
        let keys = keys.collect();
        let groups = self.groups(config, &sites);
        let (budget, labels) = (self.budget.clone(), self.labels(config));
        Carried { sites, keys, address_tables, groups, budget, labels }
    }

    fn labels(&mut self, config: &Config) -> PlanLabels {
        let (names, mut labels) = (&mut self.labels, PlanLabels::default());
        let listeners = config.listeners.iter().map(|listener| &*listener.name);
        labels.listeners = names.label(LabelKind::Listener, listeners, &mut labels);
        let groups = config.groups.iter().map(|group| &*group.name);
        labels.groups = names.label(LabelKind::Group, groups, &mut labels);
        let upstreams = config.upstreams.iter().map(|upstream| &*upstream.name);
        labels.upstreams = names.label(LabelKind::Upstream, upstreams, &mut labels);
        let keys = config.keys.iter().map(|key| &*key.name);
        labels.keys = names.label(LabelKind::Key, keys, &mut labels);
        let models = config.models.iter().map(|model| &*model.name);
        labels.models = names.label(LabelKind::Model, models, &mut labels);
        let (declared, implicit): (Vec<_>, Vec<_>) =
            config.groups.iter().partition(|group| !group.implicit);
        for group in declared.into_iter().chain(implicit) {
            for member in &group.members {
                let upstream = &config.upstreams[usize::from(member.upstream.0)].name;
                let known = labels.group_of.entry(upstream.clone());
                known.or_insert_with(|| group.name.clone());
            }
        }
        labels
    }

    fn forget_unused(&mut self) {
        self.upstreams.forget_unused();
        self.endpoints.forget_unused();
        self.keys.forget_unused();
        self.address_tables.forget_unused();
        self.groups.retain(|_, known| known.state.strong_count() > 0);
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
        Site { state: self.upstream(upstream), endpoints }
    }

    fn groups(&mut self, config: &Config, sites: &[Site]) -> Vec<CarriedGroup> {
        let led: HashSet<GroupId> = config.models.iter().flat_map(Model::groups).collect();
        let is_led = |at: usize| u16::try_from(at).is_ok_and(|at| led.contains(&GroupId(at)));
        let now: HashMap<GroupIdentity, bool> = config
            .groups
            .iter()
            .enumerate()
            .map(|(at, group)| (GroupIdentity::of(group), is_led(at)))
            .collect();
        // First those that may follow another, of which each follows one at most: those that serve
        // before those that stand in. What they take the others do not find any more.
        let main: HashSet<GroupId> = config.models.iter().map(|model| model.group).collect();
        let is_main = |at: usize| u16::try_from(at).is_ok_and(|at| main.contains(&GroupId(at)));
        let mut order: Vec<usize> = (0..config.groups.len()).collect();
        order.sort_by_key(|at| (!is_main(*at), !is_led(*at)));
        let mut states: Vec<Option<Arc<GroupState>>> = vec![None; order.len()];
        for at in order {
            states[at] = Some(self.group(config, &config.groups[at], &now));
        }
        let carry = |(group, state): (&Group, Arc<GroupState>)| {
            let queue = (group.queue.length > 0).then(|| {
                let members = group.members.iter().map(|member| usize::from(member.upstream.0));
                let states = members.map(|at| sites[at].state.clone());
                state.queue.bind(states.collect())
            });
            CarriedGroup { state, queue }
        };
        config.groups.iter().zip(states.into_iter().flatten()).map(carry).collect()
    }

    /// What all plans share of a group; `now` tells of each group of the config whether a model
    /// leads to it.
    fn group(
        &mut self,
        config: &Config,
        group: &Group,
        now: &HashMap<GroupIdentity, bool>,
    ) -> Arc<GroupState> {
        let identity = GroupIdentity::of(group);
        let is_led = now.get(&identity) == Some(&true);
        let members =
            group.members.iter().map(|member| &config.upstreams[usize::from(member.upstream.0)]);
        let members: HashSet<Identity> = members.map(Identity::of).collect();
        let follows = identity.implicit
            && is_led
            && !self.groups.get(&identity).is_some_and(|known| known.is_led);
        let before = follows.then(|| self.predecessor(&members, now)).flatten();
        let known =
            before.or_else(|| self.groups.get(&identity).and_then(|known| known.state.upgrade()));
        let state = known.unwrap_or_else(|| {
            self.groups_given += 1;
            let queue = WaitQueue::new(group.queue.length, self.wake.clone());
            Arc::new(GroupState { number: self.groups_given, queue })
        });
        let known = KnownGroup { state: Arc::downgrade(&state), members, is_led };
        self.groups.insert(identity, known);
        state
    }

    /// Takes out the group whose place one with these members takes: models led to it, and none
    /// does now.
    fn predecessor(
        &mut self,
        members: &HashSet<Identity>,
        now: &HashMap<GroupIdentity, bool>,
    ) -> Option<Arc<GroupState>> {
        let is_left = |(identity, known): &(&GroupIdentity, &KnownGroup)| {
            identity.implicit && known.is_led && now.get(*identity) != Some(&true)
        };
        let left = self.groups.iter().filter(is_left);
        let common =
            left.map(|(known, group)| (group.members.intersection(members).count(), known));
        // Of equals always the same one, whatever the order of the map.
        let (_, known) = common.filter(|(count, _)| *count > 0).max()?;
        let known = known.clone();
        self.groups.remove(&known)?.state.upgrade()
    }
}

/// Shared values by key, kept for as long as something else holds them.
#[derive(Debug)]
struct Kept<K, V>(HashMap<K, Weak<V>>);

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V> Kept<K, V> {
    /// The value of a key, made anew when it is held nowhere.
    fn find_or(&mut self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let known = self.0.get(&key).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let made = Arc::new(make());
            self.0.insert(key, Arc::downgrade(&made));
            made
        })
    }

    /// Drops the keys whose value is held nowhere.
    fn forget_unused(&mut self) {
        self.0.retain(|_, value| value.strong_count() > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Moment;

    fn config(text: &str) -> Config {
        let head = "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n";
        Config::from_toml_str(&format!("{head}{text}"), &|_| None).unwrap()
    }

    /// Wakes nobody, at a time that stands still.
    struct Nobody;

    impl Wake<WakeToken> for Nobody {
        fn wake(&self, _: WakeToken) {}
        fn now(&self) -> Moment {
            Moment::ORIGIN
        }
    }

    fn registry() -> Registry {
        Registry::new(Arc::new(Nobody))
    }

    impl Registry {
        fn sites(&mut self, config: &Config, addresses: &[Vec<Address>]) -> Vec<Site> {
            self.carry(config, addresses).sites
        }
    }

    fn at(port: u16) -> Address {
        Address::Tcp(([127, 0, 0, 1], port).into())
    }

    const A: &str = "[[upstream]]\nname = \"a\"\nurl = \"http://h:1\"\n";

    #[test]
    fn an_upstream_that_stays_keeps_its_state_and_pools() {
        let mut registry = registry();
        let first = registry.sites(&config(A), &[vec![at(1), at(2)]]);
        let lease = first[0].state.try_lease().unwrap();
        let b = "[[upstream]]\nname = \"b\"\nurl = \"http://h:2\"\n";
        let second =
            registry.sites(&config(&format!("{b}{A}")), &[vec![at(2)], vec![at(2), at(3)]]);
        assert!(Arc::ptr_eq(&first[0].state, &second[1].state));
        assert_eq!((second[0].state.in_flight(), second[1].state.in_flight()), (0, 1));
        assert_eq!(first[0].endpoints[1], second[1].endpoints[0]);
        assert_ne!(first[0].endpoints[1].pool, second[0].endpoints[0].pool, "another upstream");
        assert_ne!(second[1].endpoints[0].pool, second[1].endpoints[1].pool);
        drop(lease);
    }

    #[test]
    fn another_name_host_or_scheme_is_another_upstream() {
        let mut registry = registry();
        let first = registry.sites(&config(A), &[]);
        let named = |name: &str| format!("{A}tls.server_name = \"{name}\"\n");
        for other in [
            A.replace("\"a\"", "\"c\""),
            A.replace("h:1", "i:1"),
            A.replace("h:1", "h:3"),
            A.replace("http:", "https:"),
            format!("{A}http2 = true\n"),
        ] {
            let second = registry.sites(&config(&other), &[]);
            assert!(!Arc::ptr_eq(&first[0].state, &second[0].state), "{other}");
        }
        let https = |text: String| text.replace("http:", "https:");
        let first_tls = registry.sites(&config(&https(named("x"))), &[]);
        for (name, same) in [("x", true), ("y", false)] {
            let second = registry.sites(&config(&https(named(name))), &[]);
            assert_eq!(Arc::ptr_eq(&first_tls[0].state, &second[0].state), same, "{name}");
        }
        let second = registry.sites(&config(&named("x")), &[]);
        assert!(Arc::ptr_eq(&first[0].state, &second[0].state), "of http it means nothing");
        let pooled = A.replace("[[upstream]]", "[[upstream]]\nreuse = \"never\"");
        let second = registry.sites(&config(&pooled), &[]);
        assert!(Arc::ptr_eq(&first[0].state, &second[0].state), "settings do not count");
    }

    #[test]
    fn another_proxy_or_other_credentials_are_another_upstream() {
        let mut registry = registry();
        let with = |proxy: &str| config(&format!("{A}proxy = \"{proxy}\"\n"));
        let proxies = ["", "http://p:1", "http://p:2", "http://q:1", "http://u:CANARY@p:1"];
        let sites: Vec<Site> =
            proxies.iter().map(|p| registry.sites(&with(p), &[vec![at(1)]]).remove(0)).collect();
        let mut pools: Vec<PoolId> = sites.iter().map(|site| site.endpoints[0].pool).collect();
        pools.dedup();
        assert_eq!(pools.len(), proxies.len());
        let again = registry.sites(&with("http://u:CANARY@p:1"), &[vec![at(1)]]);
        assert!(Arc::ptr_eq(&again[0].state, &sites[4].state));
        let shown = format!("{:?}", Identity::of(&with("http://u:CANARY@p:1").upstreams[0]));
        assert!(!shown.contains("CANARY"), "{shown}");
    }

    #[test]
    fn what_nobody_uses_is_forgotten_and_its_numbers_are_not_given_again() {
        let mut registry = registry();
        let first = registry.sites(&config(A), &[vec![at(1)]]);
        let pool = first[0].endpoints[0].pool;
        drop(first);
        let second = registry.sites(&config(A), &[vec![at(1)]]);
        assert!(second[0].endpoints[0].pool > pool);
        let none = "[[upstream]]\nname = \"z\"\nurl = \"http://h:9\"\n";
        drop(second);
        let _third = registry.sites(&config(none), &[]);
        assert_eq!((registry.upstreams.0.len(), registry.endpoints.0.len()), (1, 0));
    }

    fn upstream(name: &str) -> String {
        A.replace("\"a\"", &format!("\"{name}\""))
    }

    /// A group with a queue, of these members.
    fn group(name: &str, members: &[&str]) -> String {
        let members = members.iter().map(|one| format!("{{ upstream = \"{one}\" }}"));
        let members = members.collect::<Vec<_>>().join(", ");
        let queue = "queue = { length = 5, wait = \"60s\" }";
        format!("[[group]]\nname = \"{name}\"\nmembers = [{members}]\n{queue}\n")
    }

    fn numbers(carried: &Carried, config: &Config) -> HashMap<String, u64> {
        let all = config.groups.iter().zip(&carried.groups);
        all.map(|(group, carried)| (group.name.clone(), carried.state.number)).collect()
    }

    #[test]
    fn a_key_is_its_name_and_an_address_table_its_listeners() {
        let mut registry = registry();
        let text = |keys: &[(&str, &str)], rate: &str| {
            let keys = keys.iter().map(|(name, secret)| {
                format!("[[key]]\nname = \"{name}\"\nkey = \"sk-{secret}-0123456789\"\n")
            });
            let listener = |name: &str| {
                format!("[[listener]]\nname = \"{name}\"\nbind = \"127.0.0.1:0\"\n{rate}")
            };
            let (l, m) = (listener("l"), listener("m"));
            let text = format!("{m}{l}{A}{}", keys.collect::<String>());
            Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"))
        };
        let rate = |n| format!("ratelimit = {{ per_second = {n}, burst = 2 }}\n");
        let first = registry.carry(&text(&[("a", "1"), ("b", "2")], &rate(1)), &[]);
        let second = registry.carry(&text(&[("b", "3"), ("c", "1")], &rate(5)), &[]);
        assert!(Arc::ptr_eq(&first.keys[1], &second.keys[0]), "another secret, another place");
        let numbers = [&first.keys[0], &first.keys[1], &second.keys[1]].map(|key| key.number);
        assert_eq!(numbers, [1, 2, 3], "of another name although the secret was another's");
        let tables = |carried: &Carried| -> Vec<_> {
            carried.address_tables.iter().flatten().map(Arc::as_ptr).collect()
        };
        assert_eq!((tables(&first), tables(&first).len()), (tables(&second), 2));
        let third = registry.carry(&text(&[], ""), &[]);
        assert!(third.address_tables.iter().all(Option::is_none));
    }

    #[test]
    fn a_group_is_its_name_whoever_its_members_are() {
        let mut registry = registry();
        let (a, b) = (upstream("a"), upstream("b"));
        let before = config(&format!("{a}{b}{}{}", group("x", &["a"]), group("y", &["b"])));
        let after = config(&format!("{b}{a}{}{}", group("y", &["b"]), group("x", &["b", "a"])));
        let first = registry.carry(&before, &[]);
        let second = registry.carry(&after, &[]);
        let (was, is) = (numbers(&first, &before), numbers(&second, &after));
        assert_eq!((was["x"], was["y"]), (is["x"], is["y"]));
        assert_ne!(was["x"], was["y"]);
        drop((first, second));
        let third = registry.carry(&before, &[]);
        assert_ne!(numbers(&third, &before)["x"], was["x"], "nobody used it any more");
    }

    #[test]
    fn a_group_of_no_name_follows_the_one_it_has_members_in_common_with() {
        let mut registry = registry();
        let three = format!("{}{}{}", upstream("a"), upstream("b"), upstream("c"));
        // Models lead to groups that are named by who lists them.
        let listing = |lists: [&[&str]; 3]| {
            let lists = lists.map(|list| list.iter().map(|name| (*name).to_owned()).collect());
            let ids = (0..).map(crate::config::UpstreamId);
            config(&three).with_discovered(&ids.zip(lists).collect::<Vec<_>>(), &[])
        };
        let before = listing([&["m"], &["m"], &[]]);
        let first = registry.carry(&before, &[]);
        let after = listing([&["m"], &["m"], &["m"]]);
        let second = registry.carry(&after, &[]);
        let was = numbers(&first, &before);
        let is = numbers(&second, &after);
        assert_eq!(is["a+b+c"], was["a+b"], "one more lists the model");
        assert_eq!((is["a"], is["b"]), (was["a"], was["b"]));
        // To one server: by its own name it was there before, but no model led there.
        let one = listing([&["m"], &[], &[]]);
        let alone = registry.carry(&one, &[]);
        let is = numbers(&alone, &one);
        assert_eq!(is["a"], was["a+b"]);
        let second = registry.carry(&after, &[]);
        let is = numbers(&second, &after);
        assert_eq!(is["a+b+c"], was["a+b"], "and back");
        assert_ne!(is["a"], was["a+b"], "a queue of one group");
        // Where the old one stays the new one is another.
        let both = listing([&["m", "n"], &["m", "n"], &["m"]]);
        let third = registry.carry(&both, &[]);
        let is = numbers(&third, &both);
        assert_eq!(is["a+b+c"], was["a+b"]);
        assert!(is["a+b"] > was["a+b"]);
    }
}
