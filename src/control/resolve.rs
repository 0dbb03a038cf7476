//! Host names to addresses, and services to targets, with the time for which the answer holds.
//!
//! hickory asks the servers of `/etc/resolv.conf` and reads `/etc/hosts`. Its cache is off: our
//! callers ask again only when an answer no longer holds. An answer holds for the time to live of
//! its records, but at least `HOLDS_MIN` and at most `HOLDS_MAX`. IPv4 comes first, since most
//! model servers listen there. Other sources of a system's resolver (mDNS, LDAP) are not asked.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
    ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use tokio::time::Instant;

use crate::config::Target;

/// Shortest time that an answer holds, and so between two questions for one name.
pub const HOLDS_MIN: Duration = Duration::from_secs(1);
/// Longest time that an answer holds.
pub const HOLDS_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the answer of one name server.
const SERVER_TIMEOUT: Duration = Duration::from_secs(2);

/// An answer and how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer<T> {
    /// The addresses or targets found; at least one.
    pub found: Vec<T>,
    /// How long the answer may be used; in `HOLDS_MIN..=HOLDS_MAX`.
    pub holds: Duration,
}

/// Asks DNS and the hosts file; clones share it.
#[derive(Clone)]
pub struct Resolver(TokioResolver);

impl Resolver {
    /// A resolver that asks only `server`, or with `None` the name servers of this machine.
    ///
    /// Errors: hickory refuses the setup; a `resolv.conf` that cannot be read counts as empty.
    pub fn new(server: Option<SocketAddr>) -> Result<Self, String> {
        let (config, options) = match server {
            Some(server) => (ResolverConfig::from_name_servers(vec![only(server)]), None),
            // A machine without `resolv.conf` can still use its hosts file.
            None => match read_system_conf() {
                Ok((config, options)) => (config, Some(options)),
                Err(_) => (ResolverConfig::from_name_servers(Vec::new()), None),
            },
        };
        Self::of(config, options.unwrap_or_default())
    }

    fn of(config: ResolverConfig, options: ResolverOpts) -> Result<Self, String> {
        let provider = TokioRuntimeProvider::default();
        let mut builder = TokioResolver::builder_with_config(config, provider);
        let set = builder.options_mut();
        *set = options;
        set.cache_size = 0;
        set.use_hosts_file = ResolveHosts::Always;
        set.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        set.timeout = SERVER_TIMEOUT;
        builder.build().map(Self).map_err(|error| error.to_string())
    }

    /// The addresses of a host name, IPv4 first, none twice.
    ///
    /// Errors: a text for the operator; a name without an address is one.
    pub async fn addresses(&self, name: &str) -> Result<Answer<IpAddr>, String> {
        let lookup = self.0.lookup_ip(name).await.map_err(|error| error.to_string())?;
        let mut found: Vec<IpAddr> = Vec::new();
        for ip in lookup.iter() {
            if !found.contains(&ip) {
                found.push(ip);
            }
        }
        found.sort_by_key(IpAddr::is_ipv6);
        answer(found, lookup.valid_until())
    }

    /// The targets of a service by its SRV records (RFC 2782): those of the best priority, with
    /// their weights.
    ///
    /// Errors: a text for the operator; a name without a record is one.
    pub async fn services(&self, name: &str) -> Result<Answer<Target>, String> {
        let lookup = self.0.lookup(name, RecordType::SRV).await.map_err(|e| e.to_string())?;
        let records = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::SRV(srv) => {
                Some((srv.priority, srv.weight, srv.port, srv.target.to_utf8().to_lowercase()))
            }
            _ => None,
        });
        answer(best(records.collect()), lookup.valid_until())
    }
}

fn only(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp(server.ip());
    let mut udp = ConnectionConfig::udp();
    udp.port = server.port();
    config.connections = vec![udp];
    config
}

fn answer<T>(found: Vec<T>, valid_until: std::time::Instant) -> Result<Answer<T>, String> {
    if found.is_empty() {
        return Err("no record of that kind".to_owned());
    }
    let holds = Instant::from_std(valid_until).saturating_duration_since(Instant::now());
    Ok(Answer { found, holds: holds.clamp(HOLDS_MIN, HOLDS_MAX) })
}

/// Of records (priority, weight, port, host) those with the lowest number in priority, which is the
/// best. A host of "." means that the service is not offered.
fn best(records: Vec<(u16, u16, u16, String)>) -> Vec<Target> {
    let serving = || records.iter().filter(|(.., host)| host != ".");
    let lowest = serving().map(|(priority, ..)| *priority).min();
    serving()
        .filter(|(priority, ..)| Some(*priority) == lowest)
        .map(|(_, weight, port, host)| Target {
            host: host.trim_end_matches('.').to_owned(),
            port: *port,
            // Weight 0 means a very small share beside larger weights.
            weight: (*weight).max(1),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_best_priority_serves() {
        let record = |priority, weight, host: &str| (priority, weight, 80, host.to_owned());
        let found = best(vec![
            record(20, 9, "c.x."),
            record(10, 0, "a.x."),
            record(10, 5, "b.x."),
            record(1, 1, "."),
        ]);
        let shown: Vec<_> = found.iter().map(|t| (t.host.as_str(), t.port, t.weight)).collect();
        assert_eq!(shown, [("a.x", 80, 1), ("b.x", 80, 5)]);
        assert_eq!(best(vec![record(1, 1, ".")]), []);
    }

    #[test]
    fn an_answer_holds_between_its_bounds() {
        let now = std::time::Instant::now();
        for (seconds, expected) in [(0, 1), (3600, 60)] {
            let holds = answer(vec![1], now + Duration::from_secs(seconds)).unwrap().holds;
            assert_eq!(holds.as_secs(), expected);
        }
        assert!(answer(Vec::<u8>::new(), now).is_err());
    }

    #[test]
    fn localhost_needs_no_server() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let found = runtime.block_on(async {
            let config = ResolverConfig::from_name_servers(Vec::new());
            Resolver::of(config, ResolverOpts::default()).unwrap().addresses("localhost").await
        });
        assert!(found.unwrap().found.contains(&IpAddr::from([127, 0, 0, 1])));
    }
}
