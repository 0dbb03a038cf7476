//! All that is known of the servers, and the config in force that follows from it.
//!
//! The one idea: facts come in as events, each from a task of its own (`source`, `probe`,
//! `model_list`), and the config in force is a function of the file and the facts: entries
//! expanded, names resolved, models of living servers added. Whenever a fact changes, that config
//! is made anew from the file's and published. It is never patched, so nothing of an old fact can
//! stay in it.
//!
//! A lookup that failed changes nothing: the last good answer stays, and the operator is told once.
//! New targets are not used before they can serve: `entry` says when they replace the old ones.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::documents::Snapshot;
use super::entry::{Entry, Listing, is_found_alike, is_name};
use super::event::{EVENTS_MAX, EntryNumber, Event, Renewed};
use super::model_list::keep_listing;
use super::monitored::Monitored;
use super::observed::Observed;
use super::overlay_file::Staged;
use super::probe::keep_probing;
use super::recheck::BreakerClock;
use super::refusal::Refusal;
use super::reload::{Asked, Pending, Prepared, Reload, Reloaded, Request, Wanted};
use super::resolve::Resolver;
use super::server::Server;
use super::source::{self, SourceRows};
use crate::base::rng::Rng;
use crate::config::{Config, Target, Upstream, UpstreamId};
use crate::net::dial::Address;
use crate::net::tls::Store;
use crate::upstream::identity::Identity;
use crate::upstream::registry::{Carried, Registry};

/// Longest time that the start waits for the first answers.
pub const FIRST_WAIT: Duration = Duration::from_secs(5);
/// Time from one look at what the cores report (suspicions, breakers, complaints) to the next.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The upstreams in force, in the config's order; read by the operator's interface.
pub type UpstreamTable = Arc<Mutex<Vec<Arc<Monitored>>>>;

/// Puts a config in force on all cores, with what its plan has in common with those before. Errors:
/// a text for the operator; the plan in force stays.
pub type Publish = Box<dyn FnMut(&Config, Carried) -> Result<(), String> + Send>;

/// Holds the file's config and all facts, and makes the config in force of them.
pub struct Reconciler {
    /// The config of the file, with certificates as last renewed.
    base: Config,
    resolver: Resolver,
    tls: Arc<Store>,
    rng: Rng,
    events: mpsc::Sender<Event>,
    inbox: mpsc::Receiver<Event>,
    entries: HashMap<UpstreamId, Entry>,
    entries_given: u64,
    names: HashMap<String, Observed<Vec<IpAddr>>>,
    servers: HashMap<Identity, Server>,
    registry: Registry,
    table: UpstreamTable,
    /// How the entries with `discover` do.
    pub sources: SourceRows,
    /// The table of `config`, which a reload shows only once it is in force.
    next_table: Vec<Arc<Monitored>>,
    /// Lines that the operator has not been told yet.
    pub complaints: Vec<String>,
    /// The config in force.
    pub config: Config,
    /// The addresses of each upstream of `config`, in its order.
    addresses: Vec<Vec<Address>>,
    changed: bool,
    /// The start is over: from now on added and removed upstreams are told to the operator.
    running: bool,
}

impl Reconciler {
    /// Begins with the file's config and no facts, and starts the tasks that find them out.
    pub fn new(
        base: Config,
        registry: Registry,
        resolver: Resolver,
        tls: Arc<Store>,
        table: UpstreamTable,
        seed: u64,
    ) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS_MAX);
        let mut reconciler = Self {
            config: base.clone(),
            resolver,
            tls,
            rng: Rng::new(seed),
            events,
            inbox,
            entries: HashMap::new(),
            entries_given: 0,
            names: HashMap::new(),
            servers: HashMap::new(),
            registry,
            table,
            sources: SourceRows::default(),
            next_table: Vec::new(),
            complaints: Vec::new(),
            addresses: Vec::new(),
            changed: false,
            running: false,
            base,
        };
        reconciler.keep_entries(&reconciler.base.clone());
        reconciler.rebuild();
        reconciler
    }

    /// Keeps one entry with its task for each upstream of the file's config with `discover`: those of
    /// the config before that look in the same place, and new ones.
    fn keep_entries(&mut self, before: &Config) {
        let mut known = std::mem::take(&mut self.entries);
        for (index, upstream) in self.base.upstreams.iter().enumerate() {
            let id = UpstreamId(u16::try_from(index).unwrap_or(u16::MAX));
            let kubeconfig = self.base.discovery.kubeconfig.as_deref();
            let same = |had: &Upstream| is_found_alike(had, upstream, before, &self.base);
            let had = known.keys().copied().find(|had| same(before.upstream(*had)));
            let entry = had.and_then(|had| known.remove(&had)).or_else(|| {
                let number = EntryNumber(self.entries_given);
                let (resolver, events) = (self.resolver.clone(), self.events.clone());
                let task = source::targets(number, upstream, resolver, kubeconfig, events)?;
                self.entries_given += 1;
                Some(Entry::by(number, task))
            });
            if let Some(entry) = entry {
                self.entries.insert(id, entry);
            }
        }
    }

    /// Takes another config of the file in place of the one before, which is returned. What both
    /// have keeps its tasks and facts; nothing is published.
    fn rebase(&mut self, base: Config) -> Config {
        let before = std::mem::replace(&mut self.base, base);
        self.keep_entries(&before);
        self.rebuild();
        before
    }

    /// The channel into which tasks send facts.
    pub(super) fn events(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }

    /// Waits until each task has reported once, or `FIRST_WAIT` is over; takes what they report.
    pub async fn first_answers(&mut self) {
        let by = Instant::now() + FIRST_WAIT;
        while self.is_incomplete() {
            let left = by.saturating_duration_since(Instant::now());
            // Not for an event alone: a probe that changes nothing sends none.
            match timeout(left.min(POLL_INTERVAL), self.inbox.recv()).await {
                Ok(Some(event)) => self.take(event),
                Ok(None) => break,
                Err(_) if left.is_zero() => break,
                Err(_) => {}
            }
            // All waiting events are taken before a rebuild, whose time grows with the models.
            while let Ok(event) = self.inbox.try_recv() {
                self.take(event);
            }
            if self.changed {
                self.rebuild();
            }
        }
        self.complain_of_silence();
    }

    fn is_incomplete(&self) -> bool {
        let asked = |server: &Server| {
            let monitored = &server.monitored;
            let probed = monitored.upstream.enabled && monitored.upstream.health.is_some();
            let unknown = probed && !monitored.addresses().is_empty();
            (server.asker.is_some() && !server.reported)
                || (unknown && monitored.checked().last.is_none())
        };
        self.entries.values().any(|entry| !entry.targets.reported)
            || self.names.values().any(|known| !known.reported)
            || self.servers.values().any(asked)
    }

    /// Complains of each lookup that has not reported in time; failures were complained of before.
    fn complain_of_silence(&mut self) {
        let mut late = Vec::new();
        let silent = |reported: bool, what: String| (!reported).then_some(what);
        late.extend(self.names.iter().filter_map(|(n, k)| silent(k.reported, format!("host {n}"))));
        for (id, entry) in &self.entries {
            let name = &self.base.upstream(*id).name;
            late.extend(silent(entry.targets.reported, format!("upstream {name}: discover")));
        }
        for server in self.servers.values().filter(|server| server.asker.is_some()) {
            let name = &server.monitored.upstream.name;
            late.extend(silent(server.reported, format!("upstream {name}: models")));
        }
        late.sort();
        let seconds = FIRST_WAIT.as_secs();
        self.complaints.extend(late.iter().map(|what| format!("{what}: no answer in {seconds} s")));
    }

    /// Takes facts for ever, and publishes a new config when one of them has changed.
    pub(super) async fn run(
        &mut self,
        mut publish: Publish,
        clock: BreakerClock,
        say: &(dyn Fn(&str) + Send + Sync),
        mut reload: Reload,
    ) {
        self.running = true;
        reload.watch(&self.base, self.events());
        loop {
            let mut asked = None;
            tokio::select! {
                // The channel never closes: this side holds a sender.
                event = timeout(POLL_INTERVAL, self.inbox.recv()) => {
                    if let Ok(Some(event)) = event {
                        self.take(event);
                    }
                }
                Some(request) = reload.next() => asked = Some(request),
            }
            if let Some(request) = asked {
                self.begin_reload(&mut reload, request).await;
            }
            while let Ok(event) = self.inbox.try_recv() {
                self.take(event);
            }
            let now = Instant::now();
            for server in self.servers.values_mut() {
                if server.monitored.state.take_suspicion() {
                    server.monitored.poke.notify_one();
                }
                self.complaints.extend(server.breaker_word());
                server.recheck(&clock, now);
                self.complaints.extend(server.complaint(now));
            }
            for server in self.servers.values_mut() {
                self.changed |= server.forget(self.base.discovery.grace, now);
            }
            self.changed |= self.entries.values().any(|entry| entry.is_due(now));
            if std::mem::take(&mut self.changed) {
                self.rebuild();
                let carried = self.carry();
                // While a reload asks about its config, the cores serve by the one before.
                if reload.pending.is_none() {
                    if let Err(why) = publish(&self.config, carried) {
                        say(&format!("what was discovered cannot be used: {why}"));
                    }
                    self.show();
                }
            }
            self.end_reload(&mut reload, &mut publish);
            self.complaints.drain(..).for_each(|complaint| say(&complaint));
        }
    }

    /// Makes the config that is asked for and begins to ask about what it names anew.
    async fn begin_reload(&mut self, reload: &mut Reload, request: Request) {
        let Request { asked, reply } = request;
        let is_edit = matches!(asked, Asked::Edit { .. });
        let wanted = match reload.read(asked, &self.base, FIRST_WAIT).await {
            Ok(Some(wanted)) => wanted,
            // Nothing changes; who asked may have left.
            Ok(None) => {
                let snapshot = reload.documents.now();
                return drop(reply.send(Ok(Reloaded { snapshot, ..Reloaded::default() })));
            }
            Err(why) => return reload.tell(reply, is_edit, Err(why)),
        };
        // What was found out about the config before is about its numbers.
        while let Ok(event) = self.inbox.try_recv() {
            self.take(event);
        }
        let carried = self.registry.scratch().carry(&wanted.config, &[]);
        let prepared = match reload.prepare(&wanted, carried).await {
            Ok(prepared) => prepared,
            Err(why) => return reload.tell(reply, is_edit, Err(why)),
        };
        let Wanted { config, sources, reloaded, wait } = wanted;
        let before = self.rebase(config);
        reload.watch(&self.base, self.events());
        let by = Instant::now() + wait;
        reload.pending = Some(Pending { before, by, prepared, reloaded, sources, reply });
    }

    /// Puts the config of a reload in force, once all that is new in it has answered or has been
    /// waited for long enough.
    fn end_reload(&mut self, reload: &mut Reload, publish: &mut Publish) {
        let waits = self.is_incomplete();
        let is_due = |pending: &mut Pending| !waits || pending.by <= Instant::now();
        let Some(pending) = reload.pending.take_if(|pending| is_due(pending)) else { return };
        let Pending { before, prepared, mut reloaded, sources, reply, .. } = pending;
        let Prepared { commit, budget, staged } = prepared;
        let is_edit = reloaded.edited;
        if waits && !is_edit {
            self.complain_of_silence();
        }
        let budget_before = budget.map(|budget| self.registry.replace_budget(budget));
        let carried = self.carry();
        if let Err(why) = publish(&self.config, carried) {
            if let Some(budget) = budget_before {
                self.registry.replace_budget(budget);
            }
            self.rebase(before);
            reload.watch(&self.base, self.events());
            // The next turn publishes what has been found out meanwhile.
            self.changed = true;
            return reload.tell(reply, is_edit, Err(Refusal::bad_request(why)));
        }
        commit();
        self.show();
        let snapshot = |sources| reload.documents.set(Snapshot::new(sources, self.base.clone()));
        reloaded.snapshot = sources.map(snapshot);
        reloaded.endpoints = self.config.upstreams.len();
        reloaded.models = self.config.models.len();
        // Kept before it is acknowledged, so that what was acknowledged is never lost.
        let kept = staged.map_or(Ok(()), Staged::commit);
        let how = match kept {
            Ok(()) => Ok(reloaded),
            Err(why) => Err(Refusal::internal(format!("in force, but lost at the end: {why}"))),
        };
        reload.tell(reply, is_edit, how);
    }

    /// What the plan of the config in force has in common with those before it.
    pub(super) fn carry(&mut self) -> Carried {
        self.registry.carry(&self.config, &self.addresses)
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Targets(number, found) => {
                let mut entries = self.entries.iter_mut();
                let found_by = entries.find(|(_, entry)| entry.number == number);
                let Some((id, Entry { targets, .. })) = found_by else { return };
                let entry = &self.base.upstream(*id).name;
                let complaint = |why| format!("upstream {entry}: discover: {why}");
                targets.learn(
                    found,
                    |a, b| a == b,
                    complaint,
                    &mut self.complaints,
                    &mut self.changed,
                );
                self.show_sources();
            }
            Event::Addresses(host, found) => {
                let Some(known) = self.names.get_mut(&host) else { return };
                let complaint = |why| format!("host {host}: cannot resolve: {why}");
                let same = |a: &Vec<IpAddr>, b: &Vec<IpAddr>| same_set(a, b);
                known.learn(found, same, complaint, &mut self.complaints, &mut self.changed);
            }
            Event::Models(identity, listed) => {
                let Some(server) = self.servers.get_mut(&identity) else { return };
                let why = server.record(listed, &mut self.changed);
                let name = &server.monitored.upstream.name;
                self.complaints.extend(
                    why.map(|why| format!("upstream {name}: models could not be asked: {why}")),
                );
            }
            Event::Health(identity) => {
                let Some(server) = self.servers.get_mut(&identity) else { return };
                server.note_away(Instant::now());
                let name = &server.monitored.upstream.name;
                self.complaints.push(match server.monitored.state.healthy() {
                    true => format!("upstream {name} is up"),
                    false => {
                        let why = server.monitored.checked().last_error.unwrap_or_default();
                        format!("upstream {name} is down: {why}")
                    }
                });
                self.changed = true;
            }
            Event::Renewed(all) => {
                for renewed in all {
                    match renewed {
                        Renewed::Listener(id, tls) => {
                            let listener = self.base.listeners.get_mut(usize::from(id.0));
                            if let Some(listener) = listener {
                                listener.tls = Some(tls);
                            }
                        }
                        Renewed::Upstream(id, tls) => {
                            let upstream = self.base.upstreams.get_mut(usize::from(id.0));
                            if let Some(upstream) = upstream {
                                upstream.tls = tls;
                            }
                        }
                    }
                }
                self.changed = true;
            }
        }
    }

    /// Makes the config in force anew from the file's and all facts.
    fn rebuild(&mut self) {
        self.changed = false;
        self.show_sources();
        self.put_targets_in_force();
        let known = |entry: &Entry| [&entry.in_force(), entry.departed()].concat();
        let targets: Vec<_> = self.entries.iter().map(|(id, entry)| (*id, known(entry))).collect();
        let expanded = self.base.expanded(&targets);
        let departed = self.departed(&expanded);
        self.look_up_names(&expanded, &departed);
        let addresses = |(upstream, departed): (&Upstream, &bool)| match departed {
            // No requests may go there, so it gets no address.
            true => Vec::new(),
            false => self.addresses(upstream),
        };
        let addresses: Vec<Vec<Address>> =
            expanded.upstreams.iter().zip(&departed).map(addresses).collect();
        let mut table = self.look_after(&expanded, &addresses, &departed);
        let (mut found, mut away) = (Vec::new(), Vec::new());
        for (index, monitored) in table.iter().enumerate() {
            let server = self.servers.get(&monitored.identity);
            let Some((server, models)) = server.and_then(|one| Some((one, one.models()?))) else {
                continue;
            };
            let list = if server.is_away() { &mut away } else { &mut found };
            list.push((UpstreamId(u16::try_from(index).unwrap_or(u16::MAX)), models));
        }
        self.config = expanded.with_discovered(&found, &away);
        self.addresses = addresses;
        for (monitored, reached) in table.iter().zip(self.config.reached()) {
            monitored.reached.store(reached, Ordering::Relaxed);
        }
        let mut departed = departed.into_iter();
        table.retain(|_| departed.next() != Some(true));
        self.next_table = table;
        if !self.running {
            self.show();
        }
    }

    /// Shows the operator which entries with `discover` get answers.
    fn show_sources(&self) {
        let rows = self.entries.iter().filter_map(|(id, entry)| entry.row(self.base.upstream(*id)));
        self.sources.show(rows.collect());
    }

    /// Shows the operator the upstreams of the config that is in force now.
    fn show(&self) {
        self.next_table.clone_into(&mut self.table.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Puts the new targets of each entry in force that can serve by now (`entry`).
    fn put_targets_in_force(&mut self) {
        let now = Instant::now();
        // The config made last: a target that is not in it yet has listed nothing.
        let (config, servers) = (&self.config, &self.servers);
        for (id, entry) in &mut self.entries {
            let base = self.base.upstream(*id);
            let listing = |target: &Target| {
                let members = config.group(base.group).members.iter();
                let mut upstreams = members.map(|member| config.upstream(member.upstream));
                let one = upstreams.find(|one| target.is_at(&one.url.host, one.url.port));
                let server = one.and_then(|one| servers.get(&Identity::of(one)));
                server.map_or(Listing::Unknown, Server::listing)
            };
            entry.advance(base, &self.names, listing, now);
        }
    }

    /// For each upstream of an expanded config, whether it is there only for its known models,
    /// since discovery no longer names it.
    fn departed(&self, config: &Config) -> Vec<bool> {
        let mut departed = vec![false; config.upstreams.len()];
        for (id, entry) in self.entries.iter().filter(|(_, entry)| !entry.departed().is_empty()) {
            for member in &config.group(self.base.upstream(*id).group).members {
                let url = &config.upstream(member.upstream).url;
                departed[usize::from(member.upstream.0)] =
                    entry.departed().iter().any(|target| target.is_at(&url.host, url.port));
            }
        }
        departed
    }

    /// Keeps one lookup task for each host name of the config and each that new targets wait for,
    /// and ends all others.
    fn look_up_names(&mut self, config: &Config, departed: &[bool]) {
        let mut needed: HashMap<&str, ()> = HashMap::new();
        for (upstream, departed) in config.upstreams.iter().zip(departed) {
            if has_name(upstream) && !departed {
                needed.insert(upstream.first_hop().0, ());
            }
        }
        for (id, entry) in &self.entries {
            needed.extend(entry.awaited(self.base.upstream(*id)).map(|name| (name.as_str(), ())));
        }
        self.names.retain(|host, _| needed.contains_key(host.as_str()));
        for host in needed.into_keys() {
            if !self.names.contains_key(host) {
                let (resolver, events) = (self.resolver.clone(), self.events.clone());
                let task = source::name(host.to_owned(), resolver, events);
                self.names.insert(host.to_owned(), Observed::by(task));
            }
        }
    }

    fn addresses(&self, upstream: &Upstream) -> Vec<Address> {
        let (host, port) = upstream.first_hop();
        if upstream.url.unix {
            return vec![Address::Unix(host.into())];
        }
        let at = |ip: &IpAddr| Address::Tcp(SocketAddr::new(*ip, port));
        match host.parse() {
            Ok(ip) => vec![at(&ip)],
            Err(_) => self.names.get(host).map_or(Vec::new(), |n| n.value.iter().map(at).collect()),
        }
    }

    /// Keeps one `Server` with its tasks for each upstream of the config, and ends all others.
    /// Returns the upstreams in the order of the config.
    fn look_after(
        &mut self,
        config: &Config,
        addresses: &[Vec<Address>],
        departed: &[bool],
    ) -> Vec<Arc<Monitored>> {
        let (mut table, mut added, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        let mut before = std::mem::take(&mut self.servers);
        let upstreams = config.upstreams.iter().zip(addresses).zip(departed);
        for ((upstream, addresses), departed) in upstreams {
            let identity = Identity::of(upstream);
            let mut server = before.remove(&identity).unwrap_or_else(|| {
                added.push(upstream.name.clone());
                let state = self.registry.upstream(upstream);
                let (entry, places) = (upstream.clone(), addresses.clone());
                let tls = self.tls.client(upstream);
                let events = self.events.clone();
                let monitored = Monitored::new(entry, tls, state, places, events);
                Server::new(monitored)
            });
            if !server.monitored.upstream.is_set_as(upstream) {
                let tls = self.tls.client(upstream);
                server.renew(server.monitored.renewed(upstream.clone(), tls));
            }
            if server.monitored.moved_to(addresses) {
                server.monitored.poke.notify_one();
            }
            match (server.departed, departed) {
                (false, true) => {
                    server.depart();
                    removed.push(upstream.name.clone());
                }
                (true, false) => {
                    server.come_back();
                    added.push(upstream.name.clone());
                }
                (true, true) | (false, false) => {}
            }
            if server.prober.is_none() && upstream.enabled && !departed {
                server.prober = keep_probing(&server.monitored, &mut self.rng);
            }
            // Without an address it cannot be asked.
            let interval = config.discovery.interval(upstream.health.as_ref());
            let asks = server.asker.as_ref().is_some_and(|(known, _)| *known == interval);
            if !asks && !addresses.is_empty() {
                let asker = keep_listing(&server.monitored, interval);
                server.asker = asker.map(|task| (interval, task));
            }
            table.push(server.monitored.clone());
            self.servers.insert(identity, server);
        }
        if self.running {
            let named = |server: &Server| server.monitored.upstream.name.clone();
            // For a server that had departed before, this was told then.
            let gone = before.values().filter(|server| !server.departed).map(named);
            let come = added.into_iter().map(|name| format!("upstream {name} added"));
            let gone =
                removed.into_iter().chain(gone).map(|name| format!("upstream {name} removed"));
            self.complaints.extend(come.chain(gone));
        }
        table
    }
}

/// Whether the host to connect to is a name to be looked up. Behind an outbound proxy that host is
/// the proxy's, which looks up the server's name itself.
fn has_name(upstream: &Upstream) -> bool {
    upstream.enabled && !upstream.url.unix && is_name(upstream.first_hop().0)
}

/// Whether two answers have the same addresses in any order: some name servers change the order
/// with every answer.
fn same_set(a: &[IpAddr], b: &[IpAddr]) -> bool {
    a.len() == b.len() && a.iter().all(|ip| b.contains(ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Moment;
    use crate::net::notify::WakeToken;
    use crate::upstream::wait_queue::Wake;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// How long a test waits before it calls it a hang.
    const LIMIT: Duration = Duration::from_secs(20);

    /// Wakes nobody.
    struct Nobody;

    impl Wake<WakeToken> for Nobody {
        fn wake(&self, _: WakeToken) {}
        fn now(&self) -> Moment {
            Moment::ORIGIN
        }
    }

    /// A server that answers well for `/good` only, and the paths that it was asked for.
    async fn server() -> (SocketAddr, mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, asked) = mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && client.read_buf(&mut head).await.unwrap() > 0
                {
                }
                let head = String::from_utf8(head).unwrap();
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let status = if path == "/good" { "200 OK" } else { "503 Busy" };
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                client.write_all(answer.as_bytes()).await.unwrap();
                let _ = seen.send(path).await;
            }
        });
        (address, asked)
    }

    fn config(address: SocketAddr, more: &str) -> Config {
        let text = format!(
            "[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:0\"\nauth = \"none\"\n\
             [[upstream]]\nname = \"u\"\nurl = \"http://{address}\"\nmodels = []\n{more}"
        );
        Config::from_toml_str(&text, &|_| None).unwrap_or_else(|why| panic!("{why}"))
    }

    #[test]
    fn another_entry_is_in_force_at_once_and_what_was_found_out_stays() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let test = async {
            let (address, mut asked) = server().await;
            let bad = "health = { path = \"/bad\", fall = 1, rise = 1 }\n";
            let mut reconciler = Reconciler::new(
                config(address, bad),
                Registry::new(Arc::new(Nobody)),
                Resolver::new(None).unwrap(),
                Arc::default(),
                UpstreamTable::default(),
                1,
            );
            let state = reconciler.carry().sites[0].state.clone();
            let event = reconciler.inbox.recv().await.unwrap();
            reconciler.take(event);
            assert!(!state.healthy() && asked.recv().await.unwrap() == "/bad");
            // Another place to ask: asked at once, and down until it has answered.
            reconciler.base =
                config(address, &bad.replace("/bad", "/good").replace('\n', "\nconcurrency = 3\n"));
            reconciler.rebuild();
            assert!(!state.healthy());
            let event = reconciler.inbox.recv().await.unwrap();
            reconciler.take(event);
            assert!(state.healthy() && asked.recv().await.unwrap() == "/good");
            let told: Vec<String> = reconciler.complaints.drain(..).collect();
            assert_eq!(told, ["upstream u is down: status 503", "upstream u is up"]);
            let site = &reconciler.carry().sites[0];
            assert!(Arc::ptr_eq(&site.state, &state), "one upstream all the while");
            // The same entry once more: nobody is asked again.
            reconciler.rebuild();
            let servers = || reconciler.servers.values();
            assert!(servers().all(|server| server.prober.is_some()));
            reconciler.base = config(address, "");
            reconciler.rebuild();
            assert!(reconciler.servers.values().all(|server| server.prober.is_none()));
            assert!(asked.try_recv().is_err());
        };
        runtime.block_on(async { timeout(LIMIT, test).await.expect("in time") });
    }

    #[test]
    fn another_order_of_addresses_is_no_change() {
        let ips = |list: &[u8]| -> Vec<IpAddr> {
            list.iter().map(|last| IpAddr::from([10, 0, 0, *last])).collect()
        };
        assert!(same_set(&ips(&[1, 2]), &ips(&[2, 1])));
        assert!(!same_set(&ips(&[1, 2]), &ips(&[1])));
        assert!(!same_set(&ips(&[1]), &ips(&[2])));
    }
}
