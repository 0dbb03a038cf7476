//! The config, compiled for the data plane: tables ready for lookups, constant bytes ready to be
//! copied. Built once per load on the control thread, shared by all cores, never changed. What
//! outlives a plan is in it by reference: `upstream::registry` has handed it over.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::refusal::Refusal;
use crate::base::clock::Moment;
use crate::base::listener_id::ListenerId;
use crate::config::{H2Limits, Tracing};
use crate::error::Kind;
use crate::http1::parse::HeadLimits;
use crate::net::dial::Address;
use crate::net::notify::WakeToken;
use crate::net::tls::{ReloadableServer, TlsClient};
use crate::policy::auth::Carrier;
use crate::policy::balance::Strategy;
use crate::policy::base_path::BasePath;
use crate::policy::breaker::BreakerPolicy;
use crate::policy::cors::Cors;
use crate::policy::keys::KeyTable;
use crate::policy::limit::ip::{IpPace, IpTable};
use crate::policy::limit::key::{KeyRules, KeyState, Over};
use crate::policy::limit::shared::{Ask, Budget, Waiter};
use crate::policy::model::{Force, ModelTable};
use crate::policy::reach::{Asker, Reach};
use crate::policy::retry::RetryPolicy;
use crate::policy::routes::RouteTable;
use crate::telemetry::labels::PlanLabels;
use crate::telemetry::prometheus::CertificateRow;
use crate::upstream::endpoint::{Endpoint, PoolId};
use crate::upstream::registry::GroupState;
use crate::upstream::state::UpstreamState;
use crate::upstream::wait_queue::GroupQueue;

/// The plan that all cores share, behind a reference count of one core's own: the shared count
/// would move between the cores' caches at each request.
#[allow(clippy::redundant_allocation)]
pub type LocalPlan = Rc<Arc<Plan>>;

/// The config as the data plane asks it; numbers are indexes into these lists.
pub struct Plan {
    /// Listeners, as numbered in the config.
    pub listeners: Vec<ListenerPlan>,
    /// Client keys.
    pub keys: KeyTable,
    /// What each key may use and has used; by key number.
    pub limits: Vec<KeyLimit>,
    /// The budget that nodes share for such limits; none = every node counts by itself.
    pub budget: Option<Arc<Budget>>,
    /// Models and what they map to.
    pub models: ModelTable,
    /// By what metrics tell all these apart.
    pub labels: Arc<PlanLabels>,
    /// Our own certificates.
    pub certificates: Vec<OwnCertificate>,
    /// The models shown by `/v1/models`, sorted by id.
    pub listed: Vec<ListedModel>,
    /// Groups, as numbered in the config.
    pub groups: Vec<GroupPlan>,
    /// Upstreams, as numbered in the config.
    pub upstreams: Vec<UpstreamPlan>,
    /// Limits of one client's HTTP/2 connection.
    pub h2: H2Limits,
    /// Limits of request and response heads.
    pub head: HeadLimits,
    /// Largest request body, bytes.
    pub body_bytes_max: u64,
    /// Bytes of a body kept for a retry once its model is known.
    pub body_held_bytes_max: u64,
    /// Least rate of a request body, bytes a second; 0 = none.
    pub body_rate_min: u64,
    /// How long a TCP connection is silent before the kernel probes it (keep-alive).
    pub tcp_keepalive: Duration,
    /// Pools of all endpoints, sorted, and how long an idle connection stays in each.
    pub pools: Vec<(PoolId, Duration)>,
    /// The share of exchanges that ended well and are logged, 0.0..=1.0; those that did not always
    /// are. `None` = there is no access log.
    pub access_sample: Option<f64>,
    /// Whether an operator may look at exchanges in flight.
    pub lists_exchanges: bool,
    /// Where traces go, and which; `None` = nothing is traced.
    pub tracing: Option<Arc<Tracing>>,
    /// How long a drain may last.
    pub drain: Duration,
    /// When the config was loaded, seconds since 1970; `created` of the models listed.
    pub loaded_unix_s: u64,
}

impl Plan {
    /// The names of a group's members, in its order.
    pub fn member_names<'p>(&'p self, group: &'p GroupPlan) -> impl Iterator<Item = &'p str> {
        let members = group.members.iter().map(|(upstream, _)| usize::from(*upstream));
        members.filter_map(|at| self.upstreams.get(at)).map(|upstream| upstream.name.as_str())
    }

    /// Members of a group that this asker may be sent to.
    pub fn members_within_reach(
        &self,
        group: &GroupPlan,
        asker: Asker,
    ) -> impl Iterator<Item = &UpstreamPlan> {
        let members = group.members.iter().map(|(upstream, _)| usize::from(*upstream));
        let members = members.filter_map(|at| self.upstreams.get(at));
        members.filter(move |upstream| upstream.reach.allows(asker))
    }

    /// The name of a group as this asker is told it: a group that the file does not name goes by
    /// its members, and only those within the asker's reach are named.
    #[must_use]
    pub fn group_name<'p>(&'p self, group: &'p GroupPlan, asker: Asker) -> Cow<'p, str> {
        let reached = || self.members_within_reach(group, asker);
        if !group.implicit || reached().count() == group.members.len() {
            return Cow::Borrowed(&group.name);
        }
        let names: Vec<&str> = reached().map(|upstream| upstream.name.as_str()).collect();
        Cow::Owned(names.join("+"))
    }

    /// Applies this plan's settings to what outlives plans; called when it is put in force.
    ///
    /// What was found out and counted stays, and so does whoever waits: those who wait for a slot
    /// that there is now are served at once, and calls beyond fewer slots go on to their end. Rules
    /// of keys and addresses, times and pool limits need no telling: they are read from the plan.
    pub fn enforce(&self) {
        for upstream in &self.upstreams {
            let state = &upstream.state;
            state.set_breaker(upstream.breaker);
            if state.slots.limit() != upstream.concurrency {
                state.set_concurrency(upstream.concurrency);
            }
        }
        for group in &self.groups {
            if let Some(queue) = &group.queue {
                queue.set_length(group.queue_length);
            }
        }
    }
}

/// The rate of each address at one listener.
pub struct IpLimit {
    /// The rate that each address may have.
    pub pace: IpPace,
    /// What each address has used; carried over to the next plan.
    pub table: Arc<IpTable>,
}

impl IpLimit {
    /// Takes one call of an address.
    ///
    /// Errors: 429 with the time until the next call would pass.
    pub fn take(&self, ip: IpAddr, now: Moment) -> Result<(), Refusal> {
        let taken = self.table.take(ip, &self.pace, now);
        taken.map_err(|wait| Over::after(Kind::RateSecond, wait).into())
    }
}

/// A certificate that we show to clients or to an upstream.
pub struct OwnCertificate {
    /// `listener` or `upstream`.
    pub side: &'static str,
    /// The name of that listener or upstream.
    pub name: String,
    /// The file that holds it.
    pub file: String,
    /// Unix second of its end.
    pub not_after: u64,
}

impl OwnCertificate {
    /// What metrics tell of it.
    #[must_use]
    pub fn row(&self, now_s: u64) -> CertificateRow {
        CertificateRow {
            side: self.side,
            name: self.name.clone(),
            certificate: self.file.clone(),
            seconds_left: self.not_after.cast_signed() - now_s.cast_signed(),
        }
    }
}

/// The limits of one key.
pub struct KeyLimit {
    /// The key's name.
    pub name: Arc<str>,
    /// What it may use.
    pub rules: KeyRules,
    /// What it has used; shared by all cores and carried over to the next plan.
    pub state: Arc<KeyState>,
    /// Its priority in a wait queue: the higher goes first.
    pub priority: i32,
}

impl KeyLimit {
    /// The question to the store about this key.
    #[must_use]
    pub fn ask(&self, waiter: Option<Waiter>) -> Ask {
        Ask { name: self.name.clone(), rules: self.rules, state: self.state.clone(), waiter }
    }
}

/// One listener.
pub struct ListenerPlan {
    /// Which listener it is, in this plan and all others.
    pub id: ListenerId,
    /// Its position in this plan, by which this plan's keys and reaches name it.
    pub number: u16,
    /// Its name.
    pub name: String,
    /// Where it listens; port 0 = any free one.
    pub binds: Vec<Address>,
    /// What TLS it speaks; none = plain.
    pub tls: Option<Arc<ReloadableServer>>,
    /// Where a key may stand; empty = the listener is open.
    pub carriers: Vec<Carrier>,
    /// Whether a key is required.
    pub keys_required: bool,
    /// The group of a request whose model is unknown or not named; none = such a request is
    /// refused.
    pub default_group: Option<u16>,
    /// The origins whose pages may call (CORS).
    pub cors: Cors,
    /// Which model names may also say where to go (`model@upstream`).
    pub force: Force,
    /// Peers whose `X-Forwarded-For` is believed.
    pub trusted: Vec<IpNet>,
    /// The rate of each client address.
    pub ip_limit: Option<IpLimit>,
    /// Whether forwarding fields are added.
    pub forwarded: bool,
    /// Routes by host, path, or both.
    pub routes: RouteTable<RouteTarget>,
    /// Client-side timeouts.
    pub timeouts: ClientTimeouts,
}

/// Where a host or path route leads.
#[derive(Clone, Debug)]
pub struct RouteTarget {
    /// The group.
    pub group: u16,
    /// Keys that may use it, by number; empty = all.
    pub keys: Vec<u32>,
}

/// Timeouts towards clients.
#[derive(Clone, Copy, Debug)]
pub struct ClientTimeouts {
    /// To receive a whole request head.
    pub head: Duration,
    /// Between two reads of a request body.
    pub body_idle: Duration,
    /// Between two requests on one connection.
    pub keepalive: Duration,
    /// How long a client may read nothing of an answer.
    pub write_idle: Duration,
    /// From accept to the end of the TLS handshake.
    pub handshake: Duration,
}

/// Timeouts towards upstreams.
#[derive(Clone, Copy, Debug)]
pub struct UpstreamTimeouts {
    /// How long a connection may idle in the pool.
    pub pool_idle: Duration,
    /// To make a connection, TLS included.
    pub connect: Duration,
    /// For an outbound proxy to open a tunnel.
    pub proxy_connect: Duration,
    /// From the request sent to the first byte of the response body.
    pub first_byte: Duration,
    /// Between two reads of a response body, from its first byte on.
    pub stream_idle: Duration,
    /// For the whole exchange; zero = none.
    pub total: Duration,
}

/// One group.
pub struct GroupPlan {
    /// Its name; clients are told `Plan::group_name`.
    pub name: String,
    /// The file names no such group: its name is those of its members.
    pub implicit: bool,
    /// Which listeners and keys lead there.
    pub reach: Reach,
    /// How a member is chosen.
    pub strategy: Strategy,
    /// Upstream numbers and weights.
    pub members: Vec<(u16, u32)>,
    /// What is retried, how often and after which pauses.
    pub retry: RetryPolicy,
    /// Whether a group of one tries its only member again.
    pub retry_same: bool,
    /// Groups that are tried, in order, when no member of this one is left.
    pub fallback: Vec<u16>,
    /// Requests that may wait when every member is at its concurrency; 0 = none.
    pub queue_length: u32,
    /// How long each may wait.
    pub queue_wait: Duration,
    /// Where they wait; `None` = nobody may.
    pub queue: Option<GroupQueue<WakeToken>>,
    /// What all plans share of it.
    pub state: Arc<GroupState>,
    /// Upstream-side timeouts.
    pub timeouts: UpstreamTimeouts,
}

/// How the path of a request becomes the path sent upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathPlan {
    /// The base path, then the client's path and query.
    Under(BasePath),
    /// Always this target.
    Fixed(Vec<u8>),
}

/// Whether pooled connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// As the upstream allows.
    Auto,
    /// Not after a streamed response.
    NoAfterStream,
    /// One connection a request.
    Never,
}

/// One upstream.
pub struct UpstreamPlan {
    /// Its name.
    pub name: String,
    /// Where it is, `host:port`, if clients may know.
    pub place: Option<String>,
    /// Which listeners and keys lead there, whatever the group.
    pub reach: Reach,
    /// What TLS is spoken with it; none = plain.
    pub tls: Option<Arc<TlsClient>>,
    /// HTTP/2: by ALPN with TLS, else by prior knowledge.
    pub http2: bool,
    /// Its addresses, tried in order.
    pub endpoints: Vec<Arc<Endpoint>>,
    /// Whether it may be picked: it is switched on and has an address.
    pub enabled: bool,
    /// Exchanges in flight at most; 0 = no limit.
    pub concurrency: u32,
    /// When it is left alone after failures.
    pub breaker: BreakerPolicy,
    /// What all cores share about it.
    pub state: Arc<UpstreamState>,
    /// How the path of a request becomes the path sent.
    pub path: PathPlan,
    /// `Host: …\r\n`, or `None` for the client's own.
    pub host_line: Option<Vec<u8>>,
    /// What replaces the client's credential.
    pub credential: Credential,
    /// Field names that are replaced, removed or carry the credential, lower case.
    pub dropped: Vec<Vec<u8>>,
    /// Field lines that are always added, each with its CRLF.
    pub added: Vec<u8>,
    /// Names and field lines; a line is added when the client sent no field of that name.
    pub inserted: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the client's `User-Agent` is dropped (`added` holds the new one).
    pub user_agent: bool,
    /// Whether its connections are pooled.
    pub reuse: Reuse,
    /// The outbound proxy that its connections go through.
    pub via: Option<ViaPlan>,
}

/// An outbound proxy, as one upstream uses it.
pub struct ViaPlan {
    /// Its `host:port`, for messages.
    pub proxy: String,
    /// What the proxy is asked for.
    pub mode: ProxyMode,
}

/// What an outbound proxy is asked for.
pub enum ProxyMode {
    /// To pass each request on: its target is a whole URL (RFC 9112 §3.2.2).
    Forward {
        /// `http://host:port`, in front of the path.
        origin: Vec<u8>,
        /// `Proxy-Authorization: …\r\n`, or nothing.
        authorization: Vec<u8>,
    },
    /// For a tunnel on each new connection (RFC 9110 §9.3.6).
    Tunnel {
        /// The whole CONNECT.
        request: Vec<u8>,
    },
}

/// What stands in for the client's credential.
pub enum Credential {
    /// The client's own goes through.
    Pass,
    /// None of ours; the client's own goes through unless the listener requires a key.
    None,
    /// One of these field lines, by weight; a single one has weight 1.
    Lines(Vec<(f64, Vec<u8>)>),
    /// A query parameter: its name, and one of these values by weight.
    Query(String, Vec<(f64, Vec<u8>)>),
}

/// One row of `/v1/models`.
pub struct ListedModel {
    /// The name clients send.
    pub id: String,
    /// What the operator wrote about it.
    pub description: String,
}
