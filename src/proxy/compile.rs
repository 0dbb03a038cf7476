//! Config → Plan: what the data plane asks thousands of times a second is worked out once here.
//!
//! Names of upstream hosts have been resolved and models discovered before (`control`), so this
//! stays a function of its arguments.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;

use super::plan::{
    ClientTimeouts, Credential, GroupPlan, ListedModel, ListenerPlan, OwnCertificate, PathPlan,
    Plan, ProxyMode, Reuse, RouteTarget, UpstreamPlan, UpstreamTimeouts, ViaPlan,
};
use super::plan::{IpLimit, KeyLimit};
use super::reaches::reaches;
use crate::base::listener_id::ListenerId;
use crate::config::{
    self, AccessLog, Balance, Config, Forwarded, HeaderAction, HostRule, ListenerAuth,
    ListenersAllowed, ModelOrigin, ModelPattern, ModelSet, PathMode, UpstreamAuth,
};
use crate::http1::connect;
use crate::http1::parse::HeadLimits;
use crate::net::dial::Address;
use crate::net::tls::Store;
use crate::pki::facts;
use crate::policy::auth::Carrier;
use crate::policy::balance::Strategy;
use crate::policy::cors::Cors;
use crate::policy::keys::{Key, KeyDigest, KeyTable, ModelRights};
use crate::policy::limit::gcra::Pace;
use crate::policy::limit::ip::{IpPace, IpTable};
use crate::policy::limit::key::{KeyRules, KeyState};
use crate::policy::limit::window::Quota;
use crate::policy::model::{ModelEntry, ModelNames, ModelTable, ModelTarget, Qualifier};
use crate::policy::reach::Reach;
use crate::policy::retry::RetryPolicy;
use crate::policy::routes::{RouteTable, Rule};
use crate::telemetry::labels::{LabelId, PlanLabels};
use crate::upstream::endpoint::PoolId;
use crate::upstream::registry::{Carried, CarriedGroup, Site};

/// Compiles a checked config.
///
/// Shape: `carried` is what the registry has found for this very config; `loaded_unix_s` stamps the
/// models list. Listeners keep the numbers of the config. TLS settings that `tls` has made before
/// are used again.
/// Errors: a message that names the key, listener, route, upstream or model at fault; the config's
/// own checks have found most faults before.
pub fn compile(
    config: &Config,
    carried: Carried,
    tls: &Store,
    loaded_unix_s: u64,
) -> Result<Plan, String> {
    let keys = KeyTable::new(config.keys.iter().map(key).collect())
        .map_err(|twice| format!("keys {} and {} are the same", twice.first, twice.second))?;
    let reaches = reaches(config);
    let Carried { sites, keys: states, address_tables, groups, budget, labels } = carried;
    let groups = config.groups.iter().zip(reaches.groups).zip(groups);
    let groups = groups.map(|((one, reach), carried)| group(one, reach, carried)).collect();
    let models = model_table(config)?;
    let labels = Arc::new(with_model_labels(config, labels, &models));
    Ok(Plan {
        listeners: config
            .listeners
            .iter()
            .zip(address_tables)
            .enumerate()
            .map(|(number, (listener, table))| listener_plan(number, listener, table, tls))
            .collect::<Result<_, _>>()?,
        keys,
        limits: config.keys.iter().zip(states).map(|(key, state)| key_limit(key, state)).collect(),
        budget,
        models,
        labels,
        certificates: certificates(config),
        listed: listed(config),
        groups,
        upstreams: config
            .upstreams
            .iter()
            .zip(reaches.upstreams)
            .zip(&sites)
            .map(|((upstream, reach), site)| {
                let place = config.discovery.endpoints.then(|| upstream.url.place());
                Ok(UpstreamPlan { place, ..upstream_plan(upstream, reach, site.clone(), tls)? })
            })
            .collect::<Result<_, String>>()?,
        head: HeadLimits {
            head_bytes_max: to_usize(config.limits.head),
            fields_max: config.limits.fields as usize,
            target_bytes_max: to_usize(config.limits.target),
        },
        h2: config.limits.h2,
        body_bytes_max: config.limits.body,
        body_held_bytes_max: config.limits.body_held,
        body_rate_min: config.limits.body_rate_min,
        tcp_keepalive: config.timeouts.upstream.tcp_keepalive,
        pools: pools(config, &sites),
        tracing: config.tracing.collector.as_ref().map(|_| Arc::new(config.tracing.clone())),
        lists_exchanges: config.admin.is_some(),
        access_sample: (config.log.access != AccessLog::Off).then_some(config.log.access_sample),
        drain: config.process.drain,
        loaded_unix_s,
    })
}

/// Every pool with the longest time that a group of its upstream keeps a connection.
fn pools(config: &Config, sites: &[Site]) -> Vec<(PoolId, Duration)> {
    let mut idle_max = vec![Duration::ZERO; sites.len()];
    for group in &config.groups {
        for member in &group.members {
            let longest = &mut idle_max[usize::from(member.upstream.0)];
            *longest = group.timeouts.pool_idle.max(*longest);
        }
    }
    let mut pools = Vec::new();
    for (site, idle_max) in sites.iter().zip(idle_max) {
        pools.extend(site.endpoints.iter().map(|endpoint| (endpoint.pool, idle_max)));
    }
    pools.sort_unstable();
    pools
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn key(key: &config::Key) -> Key {
    let models = match &key.models {
        ModelSet::All => ModelRights::new(["*"]),
        ModelSet::Of(patterns) => ModelRights::new(patterns.iter().map(|pattern| match pattern {
            ModelPattern::Exact(name) => name.clone(),
            ModelPattern::Prefix(prefix) => format!("{prefix}*"),
        })),
    };
    Key {
        name: key.name.as_str().into(),
        digest: key.sha256.as_ref().map(KeyDigest::from_bytes),
        previous: key.previous.map(|one| (KeyDigest::from_bytes(&one.sha256), one.until)),
        models,
        listeners: match &key.listeners {
            ListenersAllowed::All => None,
            ListenersAllowed::Of(ids) => Some(ids.iter().map(|id| id.0).collect()),
        },
        expires_at: key.expires,
    }
}

fn key_limit(key: &config::Key, state: Arc<KeyState>) -> KeyLimit {
    // More than four billion requests a minute are as good as no limit.
    let to_u32 = |requests: u64| u32::try_from(requests).unwrap_or(u32::MAX);
    KeyLimit {
        name: key.name.as_str().into(),
        rules: KeyRules {
            quota: Quota { per_minute: to_u32(key.rpm), per_day: to_u32(key.rpd) },
            tokens_per_minute: key.tpm,
            pace: (key.per_second > 0).then(|| Pace::new(key.per_second, key.burst)),
            concurrency: key.concurrency,
        },
        state,
        priority: key.priority,
    }
}

fn group(group: &config::Group, reach: Reach, carried: CarriedGroup) -> GroupPlan {
    let CarriedGroup { state, queue } = carried;
    GroupPlan {
        name: group.name.clone(),
        implicit: group.implicit,
        reach,
        strategy: strategy(group.balance),
        members: group.members.iter().map(|m| (m.upstream.0, u32::from(m.weight))).collect(),
        retry: RetryPolicy {
            attempts: group.retry.attempts,
            initial: group.retry.initial,
            max: group.retry.max,
            on: group.retry.on,
        },
        retry_same: group.retry.same && group.members.len() == 1,
        fallback: group.fallback.iter().map(|group| group.0).collect(),
        queue_length: group.queue.length,
        queue_wait: group.queue.wait,
        queue,
        state,
        timeouts: UpstreamTimeouts {
            pool_idle: group.timeouts.pool_idle,
            connect: group.timeouts.connect,
            proxy_connect: group.timeouts.proxy_connect,
            first_byte: group.timeouts.first_byte,
            stream_idle: group.timeouts.stream_idle,
            total: group.timeouts.total.unwrap_or_default(),
        },
    }
}

fn strategy(balance: Balance) -> Strategy {
    match balance {
        // `prefix` says so itself when the file is read.
        Balance::RoundRobin | Balance::Prefix => Strategy::RoundRobin,
        Balance::WeightedRoundRobin => Strategy::WeightedRoundRobin,
        Balance::Random => Strategy::Random,
        Balance::WeightedRandom => Strategy::WeightedRandom,
        Balance::LeastConn => Strategy::LeastConn,
        Balance::Failover => Strategy::Failover,
        Balance::ResponseAware => Strategy::ResponseAware,
        Balance::P2cEwma => Strategy::P2cEwma,
    }
}

fn listener_plan(
    number: usize,
    listener: &config::Listener,
    table: Option<Arc<IpTable>>,
    tls: &Store,
) -> Result<ListenerPlan, String> {
    let target = |rule: &config::RouteRule| RouteTarget {
        group: rule.group.0,
        keys: rule.keys.iter().flatten().map(|key| u32::from(key.0)).collect(),
    };
    let routes = listener.routes.iter().map(|rule| Rule {
        host: rule
            .host
            .as_ref()
            .map(|host| format!("{}{}", host.host, host.prefix.as_deref().unwrap_or(""))),
        path: rule.path.clone(),
        value: target(rule),
    });
    let named = |what: String| format!("listener.{}: {what}", listener.name);
    Ok(ListenerPlan {
        id: ListenerId::of(&listener.name),
        number: u16::try_from(number).unwrap_or(u16::MAX),
        name: listener.name.clone(),
        binds: listener.binds.iter().map(Address::from).collect(),
        tls: match &listener.tls {
            Some(said) => {
                let made = tls.server(&listener.name, said);
                Some(made.map_err(|why| named(format!("tls: {why}")))?)
            }
            None => None,
        },
        carriers: listener.accept.iter().flat_map(carriers).collect(),
        keys_required: listener.auth == ListenerAuth::Keys,
        default_group: listener.default_group.map(|group| group.0),
        cors: Cors::new(&listener.cors).map_err(|_| named("cors: no origin".to_owned()))?,
        force: listener.force,
        trusted: listener.trusted_proxies.clone(),
        ip_limit: listener
            .ratelimit
            .zip(table)
            .map(|(rate, table)| IpLimit { pace: IpPace::new(rate.per_second, rate.burst), table }),
        forwarded: listener.forwarded == Forwarded::Append,
        routes: RouteTable::new(routes).map_err(|why| named(format!("route: {why}")))?,
        timeouts: ClientTimeouts {
            head: listener.timeouts.client_head,
            body_idle: listener.timeouts.client_body_idle,
            keepalive: listener.timeouts.client_keepalive,
            write_idle: listener.timeouts.client_write_idle,
            handshake: listener.timeouts.tls_handshake,
        },
    })
}

/// `bearer` also takes a key without its scheme: older clients send it so.
fn carriers(carrier: &Carrier) -> Vec<Carrier> {
    match carrier {
        Carrier::Bearer => vec![Carrier::Bearer, Carrier::Raw],
        other => vec![other.clone()],
    }
}

fn upstream_plan(
    upstream: &config::Upstream,
    reach: Reach,
    site: Site,
    tls: &Store,
) -> Result<UpstreamPlan, String> {
    let mut added = Vec::new();
    let mut dropped = Vec::new();
    let mut inserted = Vec::new();
    for op in &upstream.headers {
        let line = format!("{}: {}\r\n", op.name, op.value).into_bytes();
        match op.op {
            HeaderAction::Insert => inserted.push((op.name.clone().into_bytes(), line)),
            HeaderAction::Replace => {
                dropped.push(op.name.clone().into_bytes());
                added.extend_from_slice(&line);
            }
            HeaderAction::Remove => dropped.push(op.name.clone().into_bytes()),
        }
    }
    // Else the client's field of that name would be sent beside ours.
    if let UpstreamAuth::Header { name, .. } = &upstream.auth {
        dropped.push(name.clone().into_bytes());
    }
    if let Some(agent) = &upstream.user_agent {
        added.extend_from_slice(format!("User-Agent: {agent}\r\n").as_bytes());
    }
    let tls =
        tls.client(upstream).map_err(|why| format!("upstream.{}.tls: {why}", upstream.name))?;
    Ok(UpstreamPlan {
        name: upstream.name.clone(),
        place: None,
        reach,
        tls,
        http2: upstream.http2,
        // Without an address there is nothing to call: the upstream is not picked, which counts as
        // no failure at its breaker.
        enabled: upstream.enabled && !site.endpoints.is_empty(),
        endpoints: site.endpoints,
        concurrency: upstream.concurrency,
        breaker: upstream.breaker,
        state: site.state,
        path: match upstream.path_mode {
            PathMode::Fixed => PathPlan::Fixed(upstream.url.base_path.as_bytes().to_vec()),
            PathMode::Append | PathMode::StripV1 => PathPlan::Under(upstream.base_path()),
        },
        host_line: match &upstream.host {
            HostRule::Upstream => Some(host_line(&upstream.url.authority())),
            HostRule::Literal(host) => Some(host_line(host)),
            HostRule::Client => None,
        },
        credential: credential(upstream),
        dropped,
        added,
        inserted,
        user_agent: upstream.user_agent.is_some(),
        reuse: match upstream.reuse {
            config::Reuse::Auto => Reuse::Auto,
            config::Reuse::NoAfterStream => Reuse::NoAfterStream,
            config::Reuse::Never => Reuse::Never,
        },
        via: upstream.proxy.as_ref().map(|proxy| via(upstream, proxy)),
    })
}

fn via(upstream: &config::Upstream, proxy: &config::OutboundProxy) -> ViaPlan {
    let url = &upstream.url;
    let credentials = proxy.credentials.as_ref().map(config::Secret::expose);
    let mode = if upstream.tunnels() {
        let mut request = Vec::new();
        connect::request(&mut request, &connect::host_port(&url.host, url.port), credentials);
        ProxyMode::Tunnel { request }
    } else {
        let mut authorization = Vec::new();
        if let Some(credentials) = credentials {
            connect::authorization(&mut authorization, credentials);
        }
        // As Host says it by default (RFC 9112 §3.2).
        ProxyMode::Forward {
            origin: format!("http://{}", url.authority()).into_bytes(),
            authorization,
        }
    };
    ViaPlan { proxy: proxy.authority(), mode }
}

fn host_line(host: &str) -> Vec<u8> {
    format!("Host: {host}\r\n").into_bytes()
}

fn credential(upstream: &config::Upstream) -> Credential {
    let line = |name: &str, prefix: &str, secret: &[u8]| {
        let mut line = format!("{name}: {prefix}").into_bytes();
        line.extend_from_slice(secret);
        line.extend_from_slice(b"\r\n");
        line
    };
    let choices = |own: &config::Secret, write: &dyn Fn(&[u8]) -> Vec<u8>| {
        if upstream.api_keys.is_empty() {
            return vec![(1.0, write(own.expose()))];
        }
        upstream.api_keys.iter().map(|key| (key.weight, write(key.key.expose()))).collect()
    };
    match &upstream.auth {
        UpstreamAuth::None => Credential::None,
        UpstreamAuth::Pass => Credential::Pass,
        UpstreamAuth::Bearer(token) => {
            Credential::Lines(choices(token, &|secret| line("Authorization", "Bearer ", secret)))
        }
        UpstreamAuth::Basic(pair) => Credential::Lines(choices(pair, &|secret| {
            let coded = base64::engine::general_purpose::STANDARD.encode(secret);
            line("Authorization", "Basic ", coded.as_bytes())
        })),
        UpstreamAuth::Header { name, value } => {
            Credential::Lines(choices(value, &|secret| line(name, "", secret)))
        }
        UpstreamAuth::Query { name, value } => {
            Credential::Query(name.clone(), choices(value, &<[u8]>::to_vec))
        }
    }
}

fn model_table(config: &Config) -> Result<ModelTable, String> {
    let entries = |discovered: bool| {
        let models = config.models.iter();
        let wanted =
            models.filter(move |model| (model.origin == ModelOrigin::Discovered) == discovered);
        wanted.map(|model| ModelEntry {
            name: model.name.clone(),
            aliases: model.aliases.clone(),
            group: model.group.0,
            elsewhere: model.elsewhere.iter().map(|group| group.0).collect(),
            upstream_model: model.upstream_model.clone().unwrap_or_default(),
            description: model.description.clone(),
            number: 0,
        })
    };
    let number = |index: usize| u16::try_from(index).unwrap_or(u16::MAX);
    let upstreams = config.upstreams.iter().enumerate().map(|(index, upstream)| Qualifier {
        name: upstream.name.clone(),
        target: ModelTarget { group: upstream.group.0, upstream_forced: Some(number(index)) },
    });
    // A name that stands for several upstreams forces none of them: its group picks.
    let sets = config.sets.iter().map(|set| Qualifier {
        name: set.name.clone(),
        target: ModelTarget { group: set.group.0, upstream_forced: None },
    });
    let groups = config.groups.iter().enumerate().filter(|(_, group)| !group.implicit).map(
        |(index, group)| Qualifier {
            name: group.name.clone(),
            target: ModelTarget { group: number(index), upstream_forced: None },
        },
    );
    let members = |group: &config::Group| group.members.iter().map(|m| m.upstream.0).collect();
    ModelTable::new(ModelNames {
        configured: entries(false).collect(),
        discovered: entries(true).collect(),
        upstreams: upstreams.chain(sets).collect(),
        groups: groups.collect(),
        members: config.groups.iter().map(members).collect(),
        shadowed: shadowed(config),
        prefixed: config.discovery.prefix,
    })
    .map_err(|twice| format!("models.{}: named twice", twice.name))
}

/// The certificates of listeners and, for upstreams that want one, of ours as a client.
fn certificates(config: &Config) -> Vec<OwnCertificate> {
    let own = |side, name: &str, pair: &config::CertPair| {
        let not_after = pair.loaded.own().and_then(facts)?.not_after;
        let file = pair.cert.display().to_string();
        Some(OwnCertificate { side, name: name.to_owned(), file, not_after })
    };
    let of_listener = |listener: &config::Listener| {
        let pairs = listener.tls.iter().flat_map(|tls| &tls.pairs);
        pairs.filter_map(|pair| own("listener", &listener.name, pair)).collect::<Vec<_>>()
    };
    let of_upstream = |upstream: &config::Upstream| {
        upstream.tls.client.as_ref().and_then(|pair| own("upstream", &upstream.name, pair))
    };
    let listeners = config.listeners.iter().flat_map(of_listener);
    listeners.chain(config.upstreams.iter().filter_map(of_upstream)).collect()
}

/// Puts the labels of models into the order of the table.
fn with_model_labels(config: &Config, mut labels: PlanLabels, table: &ModelTable) -> PlanLabels {
    let names = config.models.iter().map(|model| &*model.name);
    let by_name: HashMap<&str, LabelId> = names.zip(labels.models).collect();
    let label = |name: &str| by_name.get(name).copied().unwrap_or(LabelId::OTHER);
    labels.models = table.entries().map(|entry| label(&entry.name)).collect();
    labels
}

/// Names that upstreams list and that the config leads elsewhere, with those upstreams.
fn shadowed(config: &Config) -> Vec<(String, Vec<u16>)> {
    let mut by_name: HashMap<&str, Vec<u16>> = HashMap::new();
    for model in &config.shadowed {
        let members = model.groups().flat_map(|group| &config.group(group).members);
        let members = members.map(|member| member.upstream.0);
        by_name.entry(&model.name).or_default().extend(members);
    }
    // A name in an upstream's own list (`models = [...]`) counts as listed by it, wherever
    // `[models]` routes the name.
    for (index, upstream) in config.upstreams.iter().enumerate() {
        let config::ModelsFrom::List(names) = &upstream.models else { continue };
        for name in names {
            by_name.entry(name).or_default().push(u16::try_from(index).unwrap_or(u16::MAX));
        }
    }
    by_name.into_iter().map(|(name, upstreams)| (name.to_owned(), upstreams)).collect()
}

fn listed(config: &Config) -> Vec<ListedModel> {
    let row = |model: &config::Model| ListedModel {
        id: model.name.clone(),
        description: model.description.clone(),
    };
    let mut rows: Vec<ListedModel> = config.models.iter().map(row).collect();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    rows.dedup_by(|a, b| a.id == b.id);
    rows
}
