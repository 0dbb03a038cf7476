//! Builds the process-wide sections.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use crate::config::build::bind::parse_bind;
use crate::config::build::check::{
    filled, fraction, number, secs, section, size, time, value, word,
};
use crate::config::build::tls::{NOT_VERIFIED, client_tls};
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::{CoresEntry, RawConfig, RawH2};
use crate::config::reader::{At, Reader};
use crate::config::values::{SecretText, Size, Time, without_line_end};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;
/// Shortest time that a timeout may be; 0 would cut everything.
const TIMEOUT_MIN: Duration = Duration::from_millis(1);
/// Variables that hold the operator's token; the second is what llmproxy calls it.
const ADMIN_TOKENS: [&str; 2] = ["TOKENRING_ADMIN_TOKEN", "LLMPROXY_ADMIN_AUTH_TOKEN"];
/// Longest time that a timeout may be.
const TIMEOUT_MAX: Duration = secs(7 * 24 * 3600);

pub(crate) fn process(raw: &RawConfig, r: &mut Reader<'_>) -> Process {
    let raw = section(&raw.process);
    Process {
        cores: raw.cores.as_ref().map_or(Cores::Auto, |at| cores(r, at)),
        drain: time(r, &raw.drain, secs(30), secs(1)..=secs(3600)),
        io: word(&raw.io, Io::Auto),
        control_socket: filled(&raw.control_socket).map(|at| PathBuf::from(&at.value)),
        state_dir: filled(&raw.state_dir).map(|at| PathBuf::from(&at.value)),
    }
}

fn cores(r: &mut Reader<'_>, at: &At<CoresEntry>) -> Cores {
    let list = match &at.value {
        CoresEntry::Auto => return Cores::Auto,
        CoresEntry::Count(n) => {
            let count = Some(At { value: *n, spot: at.spot.clone() });
            return Cores::Count(number(r, &count, 1, 1..=1024));
        }
        CoresEntry::List(list) => list,
    };
    if list.is_empty() {
        r.draft.fault(&at.spot, "an empty list of cores; write \"auto\" for all");
    }
    let mut cores: Vec<u16> = Vec::new();
    for core in list {
        let n = number(r, &Some(core.clone()), 0, 0..=1023);
        if cores.contains(&n) {
            r.draft.fault(&core.spot, format!("core {n} is listed twice"));
        }
        cores.push(n);
    }
    Cores::List(cores)
}

pub(crate) fn log(raw: &RawConfig, r: &mut Reader<'_>) -> Log {
    let raw = section(&raw.log);
    let access = match raw.access.as_ref().map(|at| at.value.as_str()) {
        None | Some("" | "off") => AccessLog::Off,
        Some("stdout") => AccessLog::Stdout,
        Some(path) => AccessLog::File(PathBuf::from(path)),
    };
    Log {
        level: word(&raw.level, Level::Info),
        format: word(&raw.format, LogFormat::Text),
        access,
        access_sample: fraction(r, &raw.access_sample, 1.0, 0.0..=1.0),
    }
}

pub(crate) fn limits(raw: &RawConfig, r: &mut Reader<'_>) -> Limits {
    let raw = section(&raw.limits);
    let head = size(r, &raw.head, 64 * KIB, KIB..=16 * MIB);
    let body = size(r, &raw.body, 64 * MIB, 1..=TIB);
    let limits = Limits {
        head,
        fields: number(r, &raw.fields, 128, 8..=10_000),
        target: size(r, &raw.target, 16 * KIB, 64..=16 * MIB),
        body,
        // The defaults follow what they are bounded by.
        body_held: size(r, &raw.body_held, body.min(2 * MIB), 0..=TIB),
        held_total: size(r, &raw.held_total, body.max(GIB), MIB..=1024 * TIB),
        connections: number(r, &raw.connections, 0, 0..=10_000_000),
        connections_per_ip: number(r, &raw.connections_per_ip, 0, 0..=10_000_000),
        body_rate_min: size(r, &raw.body_rate_min, KIB, 0..=GIB),
        handshakes: number(r, &raw.handshakes, 0, 0..=10_000_000),
        h2: h2(r, &section(&raw.h2)),
    };
    let limits = Limits {
        target: if raw.target.is_some() { limits.target } else { limits.target.min(head) },
        ..limits
    };
    let bounds = [
        (limits.target > head, raw.target.as_ref(), "more than limits.head"),
        (limits.body_held > body, raw.body_held.as_ref(), "more than limits.body"),
        (limits.held_total < body, raw.held_total.as_ref(), "less than limits.body"),
    ];
    for (broken, at, message) in bounds {
        if let (true, Some(at)) = (broken, at) {
            r.draft.fault(&at.spot, message);
        }
    }
    limits
}

fn h2(r: &mut Reader<'_>, raw: &RawH2) -> H2Limits {
    let usual = H2Limits::default();
    let mut bytes = |at: &Option<At<Size>>, default: u32, range| {
        u32::try_from(size(r, at, u64::from(default), range)).unwrap_or(default)
    };
    let window = bytes(&raw.window, usual.window, 16 * KIB..=16 * MIB);
    // The default follows what it is bounded by.
    let both = usual.connection_window.max(window);
    let connection_window = bytes(&raw.connection_window, both, 64 * KIB..=GIB);
    let header_list = bytes(&raw.header_list, usual.header_list, KIB..=16 * MIB);
    let mut frames = |at, default| number(r, at, default, 1..=1_000_000);
    let limits = H2Limits {
        window,
        connection_window,
        header_list,
        resets: frames(&raw.resets, usual.resets),
        pings: frames(&raw.pings, usual.pings),
        settings: frames(&raw.settings, usual.settings),
        empty_frames: frames(&raw.empty_frames, usual.empty_frames),
        priority: frames(&raw.priority, usual.priority),
        streams: number(r, &raw.streams, usual.streams, 1..=10_000),
        frames_window: time(r, &raw.frames_window, usual.frames_window, secs(1)..=secs(3600)),
    };
    if let Some(at) = raw.connection_window.as_ref()
        && connection_window < window
    {
        r.draft.fault(&at.spot, "less than limits.h2.window");
    }
    limits
}

pub(crate) fn timeouts(raw: &RawConfig, r: &mut Reader<'_>) -> Timeouts {
    let raw = section(&raw.timeouts);
    let tcp_keepalive = tcp_keepalive(r, &raw.tcp_keepalive, secs(30));
    let client = ClientTimeouts {
        client_head: timeout(r, &raw.client_head, secs(15)),
        client_body_idle: timeout(r, &raw.client_body_idle, secs(60)),
        client_keepalive: timeout(r, &raw.client_keepalive, secs(75)),
        client_write_idle: timeout(r, &raw.client_write_idle, secs(60)),
        tls_handshake: timeout(r, &raw.tls_handshake, secs(10)),
        tcp_keepalive,
    };
    let upstream = UpstreamTimeouts {
        connect: connect(r, &raw.connect, secs(10)),
        proxy_connect: connect(r, &raw.proxy_connect, secs(10)),
        first_byte: timeout(r, &raw.first_byte, secs(600)),
        stream_idle: timeout(r, &raw.stream_idle, secs(300)),
        total: total(r, &raw.total, None),
        pool_idle: pool_idle(r, &raw.pool_idle, secs(60)),
        tcp_keepalive,
    };
    Timeouts { client, upstream }
}

/// A timeout without a range of its own.
pub(crate) fn timeout(r: &mut Reader<'_>, at: &Option<At<Time>>, default: Duration) -> Duration {
    time(r, at, default, TIMEOUT_MIN..=TIMEOUT_MAX)
}

pub(crate) fn connect(r: &mut Reader<'_>, at: &Option<At<Time>>, default: Duration) -> Duration {
    time(r, at, default, secs(1)..=secs(120))
}

pub(crate) fn pool_idle(r: &mut Reader<'_>, at: &Option<At<Time>>, default: Duration) -> Duration {
    time(r, at, default, secs(5)..=secs(1800))
}

pub(crate) fn tcp_keepalive(
    r: &mut Reader<'_>,
    at: &Option<At<Time>>,
    default: Duration,
) -> Duration {
    time(r, at, default, secs(5)..=secs(600))
}

/// A total, of which 0 means none.
pub(crate) fn total(
    r: &mut Reader<'_>,
    at: &Option<At<Time>>,
    default: Option<Duration>,
) -> Option<Duration> {
    let default = default.unwrap_or(Duration::ZERO);
    Some(time(r, at, default, Duration::ZERO..=TIMEOUT_MAX)).filter(|t| !t.is_zero())
}

pub(crate) fn ratelimit_store(raw: &RawConfig, r: &mut Reader<'_>) -> RatelimitStore {
    let raw = section(&raw.ratelimit_store);
    let mut tls = client_tls(r, &raw.tls);
    let url = match raw.url {
        Some(at) => {
            store_url(r, &at, &mut tls);
            at.value.0
        }
        None => Secret::new("redis://127.0.0.1:6379"),
    };
    if let Some(at) = &raw.tls {
        let unused = !url.expose().starts_with(b"rediss://") && tls != UpstreamTls::default();
        match &at.value.verify {
            _ if unused => r.draft.warn(&at.spot, "has no effect: the url is not rediss://"),
            Some(verify) if !verify.value => r.draft.warn(&verify.spot, NOT_VERIFIED),
            _ => {}
        }
    }
    RatelimitStore {
        kind: word(&raw.kind, StoreKind::Memory),
        url,
        tls,
        mode: word(&raw.mode, StoreMode::Lease),
        on_error: word(&raw.on_error, StoreOnError::Local),
    }
}

/// Checks the scheme of a Redis URL, and what it says of TLS. The URL is never quoted.
fn store_url(r: &mut Reader<'_>, at: &At<SecretText>, tls: &mut UpstreamTls) {
    let text = String::from_utf8_lossy(at.value.0.expose());
    let known = ["redis://", "rediss://", "redis+unix://", "unix://"];
    if !known.iter().any(|scheme| text.starts_with(scheme)) {
        let message = "no Redis URL; it begins with redis://, rediss:// or unix://";
        r.draft.fault(&at.spot, message);
    }
    if !text.starts_with("rediss://") {
        return;
    }
    match text.split_once('#') {
        None => {}
        Some((_, "insecure")) => {
            tls.verify = false;
            r.draft.warn(&at.spot, NOT_VERIFIED);
        }
        Some(_) => {
            let message = "only #insecure may follow #; in a password write %23";
            r.draft.fault(&at.spot, message);
        }
    }
}

pub(crate) fn discovery(raw: &RawConfig, r: &mut Reader<'_>) -> Discovery {
    let raw = section(&raw.discovery);
    let ttl_multiplier = fraction(r, &raw.ttl_multiplier, 0.0, 0.0..=1000.0);
    // Given alone, the multiple counts alone.
    let ttl = if ttl_multiplier > 0.0 { secs(24 * 3600) } else { secs(30) };
    Discovery {
        ttl: time(r, &raw.ttl, ttl, secs(1)..=secs(24 * 3600)),
        ttl_multiplier,
        prefix: value(&raw.prefix, false),
        grace: time(r, &raw.grace, secs(600), secs(0)..=secs(24 * 3600)),
        endpoints: value(&raw.endpoints, false),
        kubeconfig: filled(&raw.kubeconfig).map(|at| PathBuf::from(&at.value)),
    }
}

pub(crate) fn admin(raw: &RawConfig, r: &mut Reader<'_>) -> Option<Admin> {
    let at = raw.admin.as_ref()?;
    let raw = &at.value;
    if raw.bind.as_ref().is_some_and(|bind| bind.value.is_empty()) {
        return None;
    }
    let bind = match &raw.bind {
        Some(bind) => parse_bind(r, bind)?,
        None => Bind::Tcp(SocketAddr::from(([127, 0, 0, 1], 9000))),
    };
    let said = raw.token.as_ref().map(|t| t.value.0.clone()).filter(|t| !t.expose().is_empty());
    let from_env = ADMIN_TOKENS
        .into_iter()
        .find_map(|name| Some((name, (r.outside.env)(name).filter(|text| !text.is_empty())?)));
    let trimmed = |token: Secret| match token.expose().strip_suffix(b"\n") {
        Some(rest) => Secret::new(rest.strip_suffix(b"\r").unwrap_or(rest)),
        None => token,
    };
    let token = match said {
        Some(token) => Some((trimmed(token), None)),
        None => from_env.map(|(name, text)| (Secret::new(without_line_end(&text)), Some(name))),
    };
    let token = token.map(|(token, from_env)| {
        if !token.expose().is_empty() && token.expose().iter().all(u8::is_ascii_graphic) {
            return token;
        }
        let spot = raw.token.as_ref().map_or(&at.spot, |token| &token.spot);
        let whose = from_env.map_or(String::new(), |name| format!("{name} "));
        let why = "holds a blank, a line end or another byte that a header cannot carry";
        r.draft.fault(spot, format!("{whose}{why}"));
        // Complained about; the address is not open for it.
        token
    });
    if token.is_none() && !bind.is_local() {
        let spot = raw.bind.as_ref().map_or(&at.spot, |b| &b.spot);
        let message = "not loopback and without a token; set admin.token or TOKENRING_ADMIN_TOKEN";
        r.draft.fault(spot, message);
    }
    let allow = match &raw.allow {
        Some(list) => cidrs(r, &list.value),
        None => ["127.0.0.1/32", "::1/128"].iter().filter_map(|net| net.parse().ok()).collect(),
    };
    let persist = value(&raw.persist, false);
    let metrics_prefix = metrics_prefix(r, raw.metrics_prefix.as_ref());
    let dashboard = value(&raw.dashboard, true);
    Some(Admin { bind, token, allow, dashboard, persist, metrics_prefix })
}

/// What is put before the names of metrics.
fn metrics_prefix(r: &mut Reader<'_>, said: Option<&At<String>>) -> String {
    let Some(said) = said else { return Admin::METRICS_PREFIX.to_owned() };
    let mut bytes = said.value.bytes();
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    let first = bytes.next().is_none_or(letter);
    if !first || !bytes.all(|byte| letter(byte) || byte.is_ascii_digit()) {
        let message = "takes letters, digits and `_`, and no digit at its beginning";
        r.draft.fault(&said.spot, message);
    }
    said.value.clone()
}

/// `persist` keeps its edits somewhere.
pub(crate) fn check_persist(raw: &RawConfig, r: &mut Reader<'_>) {
    let persist = raw.admin.as_ref().and_then(|at| at.value.persist.as_ref());
    let has_dir = section(&raw.process).state_dir.is_some_and(|at| !at.value.is_empty());
    if let Some(At { value: true, spot }) = persist
        && !has_dir
    {
        r.draft.fault(spot, "needs process.state_dir");
    }
}

/// CIDR lists; a bare address is a network of one.
pub(crate) fn cidrs(r: &mut Reader<'_>, list: &[At<String>]) -> Vec<IpNet> {
    let mut nets = Vec::new();
    for at in list {
        let text = at.value.trim();
        let net = text.parse().ok().or_else(|| text.parse().ok().map(|ip: IpAddr| IpNet::from(ip)));
        match net {
            Some(net) => nets.push(net),
            None => not_a(r, &at.spot, text, "address or CIDR such as 10.0.0.0/8"),
        }
    }
    nets
}

fn not_a(r: &mut Reader<'_>, spot: &Spot, text: &str, what: &str) {
    let shown = r.draft.quote(spot, text);
    r.draft.fault(spot, format!("{shown} is no {what}"));
}
