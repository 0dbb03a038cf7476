//! The effective config as TOML, for `config print`.
//!
//! Every key with the value it has, defaults filled in, `ports` expanded, times
//! resolved, secrets as `***`. What was printed loads again (a masked secret
//! aside) and prints the same; implicit groups are left out, since what implies
//! them is printed.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::path::Path;

use crate::base::units::{format_duration, format_size};
use crate::config::build::date::format_date;
use crate::config::model::*;
use crate::config::names::Named;
use crate::config::subst::escape;
use crate::config::toml_string;

const MASKED: &str = "\"***\"";

/// Prints a config.
pub(crate) fn print(config: &Config) -> String {
    let mut out = Out(String::new());
    process(&mut out, config);
    for listener in &config.listeners {
        print_listener(&mut out, config, listener);
    }
    for key in &config.keys {
        print_key(&mut out, config, key);
    }
    store(&mut out, &config.ratelimit_store);
    for upstream in config.upstreams.iter().filter(|u| !u.implicit) {
        print_upstream(&mut out, upstream);
    }
    let named = named_by_models(config);
    for (index, group) in config.groups.iter().enumerate() {
        // Implicit ones of several have no other place to be named.
        if !group.implicit || (group.members.len() > 1 && named.contains(&index)) {
            print_group(&mut out, config, group);
        }
    }
    print_group_defaults(&mut out, &config.group_defaults);
    for model in config.models.iter().filter(|m| m.origin == ModelOrigin::Configured) {
        print_model(&mut out, config, model);
    }
    out.head("[discovery]");
    out.time("ttl", config.discovery.ttl);
    out.raw("ttl_multiplier", format!("{:?}", config.discovery.ttl_multiplier));
    out.raw("prefix", config.discovery.prefix);
    out.time("grace", config.discovery.grace);
    out.raw("endpoints", config.discovery.endpoints);
    let kubeconfig = config.discovery.kubeconfig.as_ref();
    let kubeconfig = kubeconfig.map_or_else(String::new, |path| path.display().to_string());
    out.text("kubeconfig", &kubeconfig);
    if let Some(admin) = &config.admin {
        print_admin(&mut out, admin);
    }
    print_tracing(&mut out, &config.tracing);
    out.0
}

/// The groups that configured models lead to.
fn named_by_models(config: &Config) -> HashSet<usize> {
    let configured = config.models.iter().filter(|m| m.origin == ModelOrigin::Configured);
    configured.map(|model| usize::from(model.group.0)).collect()
}

/// The text, with one method for each kind of value.
struct Out(String);

impl Out {
    fn head(&mut self, head: &str) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
        self.0.push_str(head);
        self.0.push('\n');
    }

    fn raw(&mut self, key: &str, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{key} = {value}");
    }

    fn text(&mut self, key: &str, value: &str) {
        self.raw(key, quoted(value));
    }

    fn path(&mut self, key: &str, value: Option<&Path>) {
        self.text(key, &value.map_or_else(String::new, |p| p.display().to_string()));
    }

    fn word(&mut self, key: &str, value: impl Named) {
        self.text(key, value.name());
    }

    fn time(&mut self, key: &str, value: std::time::Duration) {
        self.text(key, &format_duration(value));
    }

    fn size(&mut self, key: &str, value: u64) {
        self.text(key, &format_size(value));
    }

    fn list<T: AsRef<str>>(&mut self, key: &str, values: impl IntoIterator<Item = T>) {
        self.raw(key, list(values));
    }
}

/// A TOML string that substitution leaves as it is.
fn quoted(text: &str) -> String {
    toml_string(&escape(text))
}

fn list<T: AsRef<str>>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(|v| quoted(v.as_ref())).collect();
    format!("[{}]", values.join(", "))
}

fn process(out: &mut Out, config: &Config) {
    out.head("[process]");
    let Process { cores, drain, io, control_socket, state_dir } = &config.process;
    match cores {
        Cores::Auto => out.text("cores", "auto"),
        Cores::Count(count) => out.raw("cores", count),
        Cores::List(list) => out.raw("cores", format!("{list:?}")),
    }
    out.time("drain", *drain);
    out.word("io", *io);
    out.path("control_socket", control_socket.as_deref());
    out.path("state_dir", state_dir.as_deref());
    out.head("[log]");
    out.word("level", config.log.level);
    out.word("format", config.log.format);
    match &config.log.access {
        AccessLog::Off => out.text("access", "off"),
        AccessLog::Stdout => out.text("access", "stdout"),
        AccessLog::File(path) => out.path("access", Some(path)),
    }
    out.raw("access_sample", format!("{:?}", config.log.access_sample));
    out.head("[limits]");
    out.size("head", config.limits.head);
    out.raw("fields", config.limits.fields);
    out.size("target", config.limits.target);
    out.size("body", config.limits.body);
    out.size("body_held", config.limits.body_held);
    out.size("held_total", config.limits.held_total);
    out.raw("connections", config.limits.connections);
    out.raw("connections_per_ip", config.limits.connections_per_ip);
    out.size("body_rate_min", config.limits.body_rate_min);
    out.raw("handshakes", config.limits.handshakes);
    out.raw("h2", print_h2(&config.limits.h2));
    out.head("[timeouts]");
    for (key, time) in client_times(&config.timeouts.client) {
        out.time(key, time);
    }
    // `tcp_keepalive` is one key for both sides and was written just now.
    for (key, time) in upstream_times(&config.timeouts.upstream) {
        if key != "tcp_keepalive" {
            out.time(key, time);
        }
    }
}

fn print_h2(h2: &H2Limits) -> String {
    let H2Limits { streams, window, connection_window, header_list, resets, pings, .. } = *h2;
    let H2Limits { settings, empty_frames, priority, frames_window, .. } = *h2;
    let [window, connection_window, header_list] =
        [window, connection_window, header_list].map(|bytes| format_size(u64::from(bytes)));
    format!(
        "{{ streams = {streams}, window = \"{window}\", connection_window = \
         \"{connection_window}\", header_list = \"{header_list}\", resets = {resets}, \
         pings = {pings}, settings = {settings}, empty_frames = {empty_frames}, \
         priority = {priority}, frames_window = \"{}\" }}",
        format_duration(frames_window)
    )
}

type Times<const N: usize> = [(&'static str, std::time::Duration); N];

fn client_times(t: &ClientTimeouts) -> Times<6> {
    [
        ("client_head", t.client_head),
        ("client_body_idle", t.client_body_idle),
        ("client_keepalive", t.client_keepalive),
        ("client_write_idle", t.client_write_idle),
        ("tls_handshake", t.tls_handshake),
        ("tcp_keepalive", t.tcp_keepalive),
    ]
}

fn upstream_times(t: &UpstreamTimeouts) -> Times<7> {
    [
        ("connect", t.connect),
        ("proxy_connect", t.proxy_connect),
        ("first_byte", t.first_byte),
        ("stream_idle", t.stream_idle),
        ("total", t.total.unwrap_or_default()),
        ("pool_idle", t.pool_idle),
        ("tcp_keepalive", t.tcp_keepalive),
    ]
}

fn inline_times(times: &[(&str, std::time::Duration)]) -> String {
    let each: Vec<_> =
        times.iter().map(|(key, t)| format!("{key} = \"{}\"", format_duration(*t))).collect();
    format!("{{ {} }}", each.join(", "))
}

fn print_listener(out: &mut Out, config: &Config, listener: &Listener) {
    out.head("[[listener]]");
    out.text("name", &listener.name);
    out.list("bind", listener.binds.iter().map(Bind::to_string));
    if let Some(tls) = &listener.tls {
        out.raw("tls", print_tls(tls));
    }
    out.word("auth", listener.auth);
    out.list("accept", listener.accept.iter().map(print_carrier));
    let group = listener.default_group.map(|id| config.group(id).name.as_str());
    out.text("default_group", group.unwrap_or_default());
    out.word("force", listener.force);
    out.list("cors", listener.cors.iter().map(String::to_string));
    out.list("trusted_proxies", listener.trusted_proxies.iter().map(ToString::to_string));
    out.word("forwarded", listener.forwarded);
    if let Some(IpRate { per_second, burst }) = listener.ratelimit {
        out.raw("ratelimit", format!("{{ per_second = {per_second}, burst = {burst} }}"));
    }
    out.raw("timeouts", inline_times(&client_times(&listener.timeouts)));
    for route in &listener.routes {
        out.head("[[listener.route]]");
        if let Some(path) = &route.path {
            out.text("path", path);
        }
        if let Some(HostRoute { host, prefix }) = &route.host {
            out.text("host", &format!("{host}{}", prefix.as_deref().unwrap_or_default()));
        }
        out.text("group", &config.group(route.group).name);
        if let Some(keys) = &route.keys {
            out.list("keys", keys.iter().map(|id| config.key(*id).name.as_str()));
        }
    }
}

fn print_tls(tls: &ListenerTls) -> String {
    let alpn = list(tls.alpn.iter().map(|p| p.name()));
    let ca = tls.client_ca.as_ref().map_or_else(String::new, |ca| ca.path.display().to_string());
    let rest = format!(
        "client_ca = {}, client_auth = \"{}\", min_version = \"{}\"",
        quoted(&ca),
        tls.client_auth.name(),
        tls.min_version.name()
    );
    let pair = |pair: &CertPair| {
        let cert = quoted(&pair.cert.display().to_string());
        let key = quoted(&pair.key.display().to_string());
        format!("{{ cert = {cert}, key = {key}, alpn = {alpn}, {rest} }}")
    };
    let pairs: Vec<_> = tls.pairs.iter().map(pair).collect();
    format!("[{}]", pairs.join(", "))
}

fn print_carrier(carrier: &Carrier) -> String {
    match carrier {
        Carrier::Bearer => "bearer".to_owned(),
        Carrier::Raw => "raw".to_owned(),
        Carrier::XApiKey => "x-api-key".to_owned(),
        Carrier::XGoogApiKey => "x-goog-api-key".to_owned(),
        Carrier::Query(name) => format!("query:{name}"),
    }
}

fn print_key(out: &mut Out, config: &Config, key: &Key) {
    out.head("[[key]]");
    out.text("name", &key.name);
    // The digest too: a weak key could be found from it.
    if key.sha256.is_some() {
        out.raw("key", MASKED);
    }
    if let Some(previous) = &key.previous {
        out.raw("previous_sha256", MASKED);
        out.text("previous_until", &format_date(previous.until));
    }
    out.raw("rpm", key.rpm);
    out.raw("rpd", key.rpd);
    out.raw("tpm", key.tpm);
    out.raw("per_second", key.per_second);
    out.raw("burst", key.burst);
    out.raw("concurrency", key.concurrency);
    match &key.models {
        ModelSet::All => out.list("models", ["*"]),
        ModelSet::Of(patterns) => out.list(
            "models",
            patterns.iter().map(|p| match p {
                ModelPattern::Exact(name) => name.clone(),
                ModelPattern::Prefix(prefix) => format!("{prefix}*"),
            }),
        ),
    }
    match &key.listeners {
        ListenersAllowed::All => out.list("listeners", ["*"]),
        ListenersAllowed::Of(ids) => {
            out.list("listeners", ids.iter().map(|id| config.listener(*id).name.as_str()));
        }
    }
    out.raw("priority", key.priority);
    out.text("expires", &key.expires.map_or_else(String::new, format_date));
}

fn store(out: &mut Out, store: &RatelimitStore) {
    out.head("[ratelimit_store]");
    out.word("type", store.kind);
    let url = String::from_utf8_lossy(store.url.expose()).into_owned();
    out.text("url", &without_userinfo(&url));
    out.raw("tls", print_client_tls(&store.tls));
    out.word("mode", store.mode);
    out.word("on_error", store.on_error);
}

fn print_tracing(out: &mut Out, tracing: &Tracing) {
    out.head("[tracing]");
    out.text("endpoint", tracing.collector.as_ref().map_or("", |one| &one.endpoint));
    out.raw("sample", format!("{:?}", tracing.sample));
    out.text("service_name", &tracing.service_name);
    let header = |(name, _): &(String, Secret)| format!("{} = {MASKED}", quoted(name));
    let headers: Vec<_> = tracing.headers.iter().map(header).collect();
    match headers.is_empty() {
        true => out.raw("headers", "{}"),
        false => out.raw("headers", format!("{{ {} }}", headers.join(", "))),
    }
    out.time("timeout", tracing.timeout);
    out.raw("tls", print_client_tls(&tracing.tls));
}

/// `scheme://***@rest`; a text with `@` and without `://` is a secret as a whole.
fn without_userinfo(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (_, None) => url.to_owned(),
        (Some((scheme, _)), Some((_, rest))) => format!("{scheme}://***@{rest}"),
        (None, Some(_)) => "***".to_owned(),
    }
}

fn print_upstream(out: &mut Out, upstream: &Upstream) {
    out.head("[[upstream]]");
    out.text("name", &upstream.name);
    out.text("url", &upstream.url.shown());
    out.word("path_mode", upstream.path_mode);
    out.word("protocol", upstream.protocol);
    out.raw("auth", print_auth(&upstream.auth, !upstream.api_keys.is_empty()));
    let key = |k: &ApiKey| format!("{{ key = {MASKED}, weight = {:?} }}", k.weight);
    let keys: Vec<_> = upstream.api_keys.iter().map(key).collect();
    out.raw("api_keys", format!("[{}]", keys.join(", ")));
    out.raw("headers", print_headers(&upstream.headers));
    out.text(
        "host",
        match &upstream.host {
            HostRule::Upstream => "upstream",
            HostRule::Client => "client",
            HostRule::Literal(host) => host,
        },
    );
    out.text("user_agent", upstream.user_agent.as_deref().unwrap_or_default());
    out.text("proxy", &upstream.proxy.as_ref().map_or_else(String::new, print_proxy));
    out.raw("tls", print_client_tls(&upstream.tls));
    out.raw("http2", upstream.http2);
    match &upstream.models {
        ModelsFrom::Discover => out.text("models", "discover"),
        ModelsFrom::List(names) => out.list("models", names),
    }
    out.raw("concurrency", upstream.concurrency);
    out.word("reuse", upstream.reuse);
    out.raw("enabled", upstream.enabled);
    if let Some(health) = &upstream.health {
        out.raw("health", print_health(health));
    }
    out.raw("breaker", print_breaker(&upstream.breaker));
    out.text("discover", &upstream.discover.as_ref().map_or_else(String::new, print_discover));
}

fn print_auth(auth: &UpstreamAuth, has_keys: bool) -> String {
    // With `api_keys` the credential stands there.
    let put = |key: &str| match has_keys {
        true => String::new(),
        false => format!(", {key} = {MASKED}"),
    };
    match auth {
        UpstreamAuth::None => "{ type = \"none\" }".to_owned(),
        UpstreamAuth::Pass => "{ type = \"pass\" }".to_owned(),
        UpstreamAuth::Bearer(_) => format!("{{ type = \"bearer\"{} }}", put("token")),
        UpstreamAuth::Basic(both) => {
            let user = both.expose().split(|b| *b == b':').next().unwrap_or_default();
            let user = quoted(&String::from_utf8_lossy(user));
            format!("{{ type = \"basic\", username = {user}, password = {MASKED} }}")
        }
        UpstreamAuth::Header { name, .. } => {
            format!("{{ type = \"header\", name = {}{} }}", quoted(name), put("value"))
        }
        UpstreamAuth::Query { name, .. } => {
            format!("{{ type = \"query\", name = {}{} }}", quoted(name), put("value"))
        }
    }
}

fn print_headers(ops: &[HeaderOp]) -> String {
    let one = |op: &HeaderOp| {
        let (action, key) = (quoted(op.op.name()), quoted(&op.name));
        let value = match header_is_secret(&op.name) {
            true => MASKED.to_owned(),
            false => quoted(&op.value),
        };
        match op.op {
            HeaderAction::Remove => format!("{{ op = {action}, key = {key} }}"),
            HeaderAction::Insert | HeaderAction::Replace => {
                format!("{{ op = {action}, key = {key}, value = {value} }}")
            }
        }
    };
    let each: Vec<_> = ops.iter().map(one).collect();
    format!("[{}]", each.join(", "))
}

fn print_proxy(proxy: &OutboundProxy) -> String {
    let user = if proxy.credentials.is_some() { "***@" } else { "" };
    format!("http://{user}{}", proxy.authority())
}

fn print_health(health: &Health) -> String {
    let Health { path, method, body, headers, interval, timeout, fall, rise } = health;
    let body = if body.expose().is_empty() { "\"\"" } else { MASKED };
    format!(
        "{{ path = {}, method = {}, body = {body}, headers = {}, interval = \"{}\", timeout = \"{}\", \
         fall = {fall}, rise = {rise} }}",
        quoted(path),
        quoted(method),
        print_headers(headers),
        format_duration(*interval),
        format_duration(*timeout),
    )
}

fn print_client_tls(tls: &UpstreamTls) -> String {
    let UpstreamTls { ca, client, server_name, verify } = tls;
    let path = |p: Option<&std::path::PathBuf>| {
        quoted(&p.map_or_else(String::new, |p| p.display().to_string()))
    };
    let name = quoted(server_name.as_deref().unwrap_or_default());
    let ca = match ca {
        Authorities::Mozilla => quoted(""),
        Authorities::System => quoted("system"),
        Authorities::File(file) => path(Some(&file.path)),
    };
    let cert = path(client.as_ref().map(|pair| &pair.cert));
    let key = path(client.as_ref().map(|pair| &pair.key));
    format!("{{ ca = {ca}, cert = {cert}, key = {key}, server_name = {name}, verify = {verify} }}")
}

fn print_breaker(breaker: &BreakerPolicy) -> String {
    let BreakerPolicy {
        threshold,
        window,
        calls_min,
        consecutive,
        cooldown,
        trials,
        successes,
        recheck,
        last_resort,
    } = breaker;
    let (window, cooldown) = (format_duration(*window), format_duration(*cooldown));
    let recheck = format_duration(*recheck);
    format!(
        "{{ threshold = {threshold:?}, window = \"{window}\", calls_min = {calls_min}, \
         consecutive = {consecutive}, cooldown = \"{cooldown}\", trials = {trials}, \
         successes = {successes}, recheck = \"{recheck}\", last_resort = {last_resort} }}"
    )
}

fn print_discover(discover: &Discover) -> String {
    match discover {
        Discover::Dns { name, port } if name.contains(':') => format!("dns:[{name}]:{port}"),
        Discover::Dns { name, port } => format!("dns:{name}:{port}"),
        Discover::Srv(name) => format!("srv:{name}"),
        Discover::File(path) => format!("file:{}", path.display()),
        Discover::K8s(KubernetesService { namespace, name, port }) => match port {
            None => format!("k8s:{namespace}/{name}"),
            Some(ServicePort::Number(port)) => format!("k8s:{namespace}/{name}:{port}"),
            Some(ServicePort::Name(port)) => format!("k8s:{namespace}/{name}:{port}"),
        },
    }
}

fn print_group(out: &mut Out, config: &Config, group: &Group) {
    out.head("[[group]]");
    out.text("name", &group.name);
    out.word("balance", group.balance);
    let member = |m: &Member| {
        let name = quoted(&config.upstream(m.upstream).name);
        format!("{{ upstream = {name}, weight = {} }}", m.weight)
    };
    let members: Vec<_> = group.members.iter().map(member).collect();
    out.raw("members", format!("[{}]", members.join(", ")));
    print_retry(out, &group.retry);
    print_queue(out, group.queue);
    print_affinity(out, group.affinity.as_ref());
    out.list("fallback", group.fallback.iter().map(|id| config.group(*id).name.as_str()));
    out.list("serve", group.serve.iter().map(|dialect| dialect.name()));
    out.word("errors", group.errors);
    out.raw("timeouts", inline_times(&upstream_times(&group.timeouts)));
}

fn print_group_defaults(out: &mut Out, group: &GroupDefaults) {
    out.head("[group_defaults]");
    out.word("balance", group.balance);
    print_retry(out, &group.retry);
    print_queue(out, group.queue);
    print_affinity(out, group.affinity.as_ref());
    out.list("serve", group.serve.iter().map(|dialect| dialect.name()));
    out.word("errors", group.errors);
    out.raw("timeouts", inline_times(&upstream_times(&group.timeouts)));
}

fn print_retry(out: &mut Out, retry: &Retry) {
    let Retry { attempts, initial, max, on, same } = retry;
    let (initial, max) = (format_duration(*initial), format_duration(*max));
    let on = list(retry_words(on));
    out.raw(
        "retry",
        format!(
            "{{ attempts = {attempts}, initial = \"{initial}\", max = \"{max}\", on = {on}, \
             same = {same} }}"
        ),
    );
}

fn print_queue(out: &mut Out, Queue { length, wait }: Queue) {
    out.raw("queue", format!("{{ length = {length}, wait = \"{}\" }}", format_duration(wait)));
}

fn print_affinity(out: &mut Out, affinity: Option<&Affinity>) {
    let Some(affinity) = affinity else { return };
    let by = match affinity {
        Affinity::Prefix => "prefix".to_owned(),
        Affinity::Header(name) => format!("header:{name}"),
        Affinity::Key => "key".to_owned(),
        Affinity::Ip => "ip".to_owned(),
    };
    out.raw("affinity", format!("{{ by = {} }}", quoted(&by)));
}

fn retry_words(on: &RetryOn) -> Vec<String> {
    let causes = [(on.connect, "connect"), (on.reset, "reset"), (on.timeout, "timeout")];
    let mut words: Vec<String> =
        causes.iter().filter(|(set, _)| *set).map(|(_, word)| (*word).to_owned()).collect();
    let all_5xx = (500..600).all(|status| on.has_status(status));
    let last = if all_5xx { 499 } else { 599 };
    words.extend((400..=last).filter(|status| on.has_status(*status)).map(|s| s.to_string()));
    if all_5xx {
        words.push("5xx".to_owned());
    }
    words
}

fn print_model(out: &mut Out, config: &Config, model: &Model) {
    out.head(&format!("[models.{}]", toml_string(&model.name)));
    let group = config.group(model.group);
    match group.members.as_slice() {
        [only] if group.implicit => {
            let upstream = config.upstream(only.upstream);
            match upstream.implicit {
                true => out.text("backend", &upstream.url.shown()),
                false => out.text("upstream", &upstream.name),
            }
        }
        _ => out.text("group", &group.name),
    }
    out.text("description", &model.description);
    out.list("aliases", &model.aliases);
    out.text("upstream_model", model.upstream_model.as_deref().unwrap_or_default());
}

fn print_admin(out: &mut Out, admin: &Admin) {
    out.head("[admin]");
    out.text("bind", &admin.bind.to_string());
    match &admin.token {
        Some(_) => out.raw("token", MASKED),
        None => out.text("token", ""),
    }
    out.list("allow", admin.allow.iter().map(ToString::to_string));
    out.raw("dashboard", admin.dashboard);
    out.raw("persist", admin.persist);
    out.text("metrics_prefix", &admin.metrics_prefix);
}
