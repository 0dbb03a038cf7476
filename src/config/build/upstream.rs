//! Builds `[[upstream]]`, with `ports` expanded.

use crate::config::build::check::{
    filled, fraction, id, is_field_value, is_token, missing, number, required, secs, time, value,
    word,
};
use crate::config::build::process::section;
use crate::config::build::url::{Url, is_nearby, parse_url, percent_decode, split_host_port};
use crate::config::build::{AllNames, each};
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::names::AuthType;
use crate::config::raw::{RawAuth, RawConfig, RawHeaderOp, RawHealth, RawUpstream};
use crate::config::reader::{At, Reader, SecretText, UrlText};

/// Fields that are ours to write: framing, and what holds for one hop only.
const FIELDS_OURS: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "expect",
];

/// All upstreams, each with its place.
pub(crate) fn upstreams(
    raw: &RawConfig,
    r: &mut Reader<'_>,
    names: &mut AllNames,
) -> Vec<(Upstream, Spot)> {
    let mut out: Vec<(Upstream, Spot)> = Vec::new();
    for at in each(&raw.upstream) {
        let name = required(r, &at.value.name, &at.spot, "name");
        let one = upstream(r, at);
        let expanded = expand(r, &at.value, one);
        let first = out.len();
        let ids: Vec<u16> =
            (first..first + expanded.len()).map(|index| id(r, index, &at.spot)).collect();
        if let Some(name) = name {
            names.upstreams.declare(r, &name.value, &name.spot, ids.clone());
            if filled(&at.value.name).is_some() && at.value.ports.is_some() {
                for (one, id) in expanded.iter().zip(&ids) {
                    names.upstreams.declare(r, &one.name, &name.spot, vec![*id]);
                }
            }
        }
        out.extend(expanded.into_iter().map(|one| (one, at.spot.clone())));
    }
    out
}

/// One upstream for each port, or the one itself.
fn expand(r: &mut Reader<'_>, raw: &RawUpstream, one: Upstream) -> Vec<Upstream> {
    let Some(ports) = &raw.ports else { return vec![one] };
    if ports.value.is_empty() {
        r.draft.fault(&ports.spot, "must not be empty");
        return vec![one];
    }
    if one.url.unix {
        r.draft.fault(&ports.spot, "a Unix socket has no ports");
        return vec![one];
    }
    let mut seen: Vec<u16> = Vec::new();
    let mut out = Vec::new();
    for at in &ports.value {
        let port: u16 = number(r, &Some(at.clone()), 1, 1..=65_535);
        if seen.contains(&port) {
            r.draft.fault(&at.spot, format!("port {port} is listed twice"));
            continue;
        }
        seen.push(port);
        let mut copy = one.clone();
        copy.name = format!("{}-{port}", one.name);
        copy.url.port = port;
        copy.url.original = written(&copy.url);
        out.push(copy);
    }
    out
}

/// The URL as text, port included.
fn written(url: &UpstreamUrl) -> String {
    let scheme = if url.tls { "https" } else { "http" };
    let bracketed = url.host.contains(':');
    let (open, close) = if bracketed { ("[", "]") } else { ("", "") };
    format!("{scheme}://{open}{}{close}:{}{}", url.host, url.port, url.base_path)
}

fn upstream(r: &mut Reader<'_>, at: &At<RawUpstream>) -> Upstream {
    let raw = &at.value;
    let path_mode = word(&raw.path_mode, PathMode::Append);
    let protocol = word(&raw.protocol, Protocol::OpenAi);
    if raw.url.is_none() {
        missing(r, &at.spot, "url");
    }
    let url = raw.url.as_ref().and_then(|url| upstream_url(r, url, path_mode));
    let url = url.unwrap_or_else(nowhere);
    let api_keys = api_keys(r, raw);
    let auth = auth(r, raw, protocol, &api_keys);
    warn_of_plaintext(r, raw, &at.spot, &url, &auth);
    Upstream {
        name: raw.name.as_ref().map_or_else(String::new, |at| at.value.clone()),
        url,
        path_mode,
        protocol,
        auth,
        api_keys,
        headers: header_ops(r, each(&raw.headers), &FIELDS_OURS),
        host: host_rule(r, raw),
        user_agent: filled(&raw.user_agent).and_then(|at| field_value(r, at)),
        proxy: raw.proxy.as_ref().and_then(|at| proxy(r, at)),
        tls: upstream_tls(r, raw),
        http2: value(&raw.http2, false),
        models: models_from(r, raw),
        concurrency: number(r, &raw.concurrency, 0, 0..=1_000_000),
        reuse: word(&raw.reuse, Reuse::Auto),
        enabled: value(&raw.enabled, true),
        health: raw.health.as_ref().map(|at| health(r, at)),
        breaker: breaker(r, raw),
        discover: filled(&raw.discover).and_then(|at| discover(r, at)),
        group: GroupId(0),
        implicit: false,
    }
}

/// An upstream with a URL and nothing but defaults, for `models.*.backend`.
pub(crate) fn plain(r: &mut Reader<'_>, name: String, url: UpstreamUrl) -> Upstream {
    let at = At { value: RawUpstream::default(), spot: Spot::default() };
    // Of an empty entry nothing but the missing URL is complained about.
    let given = At { value: UrlText(url.original.clone()), spot: Spot::default() };
    let at = At { value: RawUpstream { url: Some(given), ..at.value }, ..at };
    let built = upstream(r, &at);
    Upstream { name, url, implicit: true, models: ModelsFrom::List(Vec::new()), ..built }
}

/// Stands in for a URL that is none.
fn nowhere() -> UpstreamUrl {
    let none = String::new;
    UpstreamUrl {
        tls: false,
        host: none(),
        port: 0,
        base_path: none(),
        unix: false,
        original: none(),
    }
}

/// A base URL, or the path of a Unix socket.
pub(crate) fn upstream_url(
    r: &mut Reader<'_>,
    at: &At<UrlText>,
    path_mode: PathMode,
) -> Option<UpstreamUrl> {
    let text = at.value.0.as_str();
    if let Some(path) = text.strip_prefix("unix:") {
        if path.is_empty() || path.len() > 107 {
            r.draft.fault(&at.spot, "a Unix socket is written unix:/path, at most 107 bytes");
            return None;
        }
        let (host, original) = (path.to_owned(), text.to_owned());
        return Some(UpstreamUrl {
            tls: false,
            host,
            port: 0,
            base_path: String::new(),
            unix: true,
            original,
        });
    }
    match parse_url(text).and_then(|url| base_url(url, path_mode, text)) {
        Ok(url) => Some(url),
        Err(why) => {
            // With a userinfo part the text is a secret.
            let shown = match text.contains('@') {
                true => "***".to_owned(),
                false => r.draft.quote(&at.spot, text),
            };
            r.draft.fault(&at.spot, format!("{shown} is no base URL: {why}"));
            None
        }
    }
}

fn base_url(url: Url, path_mode: PathMode, text: &str) -> Result<UpstreamUrl, String> {
    let tls = match url.scheme.as_str() {
        "http" => false,
        "https" => true,
        _ => return Err("its scheme is neither http nor https".to_owned()),
    };
    if url.userinfo.is_some() {
        return Err("credentials belong in auth".to_owned());
    }
    let fixed = path_mode == PathMode::Fixed;
    if url.rest.contains('?') && !fixed {
        return Err("a query needs path_mode = \"fixed\"".to_owned());
    }
    let base_path = match (fixed, url.rest.as_str()) {
        (true, "") => "/".to_owned(),
        (true, rest) if rest.starts_with('?') => format!("/{rest}"),
        (true, rest) => rest.to_owned(),
        (false, rest) => rest.trim_end_matches('/').to_owned(),
    };
    let port = url.port.unwrap_or(if tls { 443 } else { 80 });
    Ok(UpstreamUrl { tls, host: url.host, port, base_path, unix: false, original: text.to_owned() })
}

fn api_keys(r: &mut Reader<'_>, raw: &RawUpstream) -> Vec<ApiKey> {
    let mut keys = Vec::new();
    for at in each(&raw.api_keys) {
        let weight = fraction(r, &at.value.weight, 1.0, 0.001..=1_000_000.0);
        if let Some(key) = secret(r, &at.value.key, &at.spot, "key") {
            keys.push(ApiKey { key, weight });
        }
    }
    keys
}

/// A credential that must be there and can stand in a header.
fn secret(
    r: &mut Reader<'_>,
    at: &Option<At<SecretText>>,
    parent: &Spot,
    key: &str,
) -> Option<Secret> {
    let Some(at) = at else {
        missing(r, parent, key);
        return None;
    };
    let bytes = at.value.0.expose();
    if bytes.is_empty() {
        r.draft.fault(&at.spot, "must not be empty");
        return None;
    }
    if !is_field_value(bytes) {
        r.draft.fault(
            &at.spot,
            "holds a control byte, or a blank at an end: a header cannot carry it",
        );
        return None;
    }
    Some(at.value.0.clone())
}

fn auth(
    r: &mut Reader<'_>,
    raw: &RawUpstream,
    protocol: Protocol,
    api_keys: &[ApiKey],
) -> UpstreamAuth {
    let first = api_keys.first().map(|one| one.key.clone());
    let Some(at) = &raw.auth else {
        return first.map_or(UpstreamAuth::None, |key| carried(protocol, key));
    };
    let said = &at.value;
    let Some(kind) = &said.kind else {
        missing(r, &at.spot, "type");
        return UpstreamAuth::None;
    };
    refuse_foreign(r, said, kind.value.0);
    // Several keys stand in for the one of the table.
    let credential = |r: &mut Reader<'_>, at_secret: &Option<At<SecretText>>, key: &str| match (
        &first, at_secret,
    ) {
        (Some(first), None) => Some(first.clone()),
        (Some(_), Some(at)) => {
            r.draft.fault(&at.spot, "this and api_keys exclude each other");
            None
        }
        (None, _) => secret(r, at_secret, &at.spot, key),
    };
    let built = match kind.value.0 {
        AuthType::None | AuthType::Pass if first.is_some() => {
            r.draft.fault(&kind.spot, "api_keys need bearer, header or query");
            None
        }
        AuthType::None => Some(UpstreamAuth::None),
        AuthType::Pass => Some(UpstreamAuth::Pass),
        AuthType::Bearer => credential(r, &said.token, "token").map(UpstreamAuth::Bearer),
        AuthType::Basic if first.is_some() => {
            r.draft.fault(&kind.spot, "api_keys need bearer, header or query");
            None
        }
        AuthType::Basic => basic(r, said, &at.spot),
        AuthType::Header => {
            let name = required(r, &said.name, &at.spot, "name").and_then(|at| field_name(r, at));
            let value = credential(r, &said.value, "value");
            name.zip(value).map(|(name, value)| UpstreamAuth::Header { name, value })
        }
        AuthType::Query => {
            let name = required(r, &said.name, &at.spot, "name").map(|at| at.value.clone());
            let value = credential(r, &said.value, "value");
            name.zip(value).map(|(name, value)| UpstreamAuth::Query { name, value })
        }
    };
    built.unwrap_or(UpstreamAuth::None)
}

/// Where a dialect carries its key.
fn carried(protocol: Protocol, key: Secret) -> UpstreamAuth {
    let header = |name: &str, value| UpstreamAuth::Header { name: name.to_owned(), value };
    match protocol {
        Protocol::OpenAi | Protocol::Ollama => UpstreamAuth::Bearer(key),
        Protocol::Anthropic => header("x-api-key", key),
        Protocol::Gemini => header("x-goog-api-key", key),
    }
}

/// Keys of the table that another type would need.
fn refuse_foreign(r: &mut Reader<'_>, said: &RawAuth, kind: AuthType) {
    use AuthType::{Basic, Bearer, Header, Query};
    let named = matches!(kind, Header | Query);
    let given = [
        (said.token.as_ref().map(|at| &at.spot), kind == Bearer),
        (said.username.as_ref().map(|at| &at.spot), kind == Basic),
        (said.password.as_ref().map(|at| &at.spot), kind == Basic),
        (said.name.as_ref().map(|at| &at.spot), named),
        (said.value.as_ref().map(|at| &at.spot), named),
    ];
    for (spot, fits) in given {
        if let (Some(spot), false) = (spot, fits) {
            r.draft.fault(spot, "has no meaning with this type of auth");
        }
    }
}

fn basic(r: &mut Reader<'_>, said: &RawAuth, parent: &Spot) -> Option<UpstreamAuth> {
    let username = required(r, &said.username, parent, "username");
    let password = secret(r, &said.password, parent, "password");
    let (username, password) = (username?, password?);
    if username.value.contains(':') {
        r.draft.fault(&username.spot, "a user name of basic holds no \":\" (RFC 7617 §2)");
        return None;
    }
    let mut both = format!("{}:", username.value).into_bytes();
    both.extend_from_slice(password.expose());
    Some(UpstreamAuth::Basic(Secret::new(both)))
}

fn warn_of_plaintext(
    r: &mut Reader<'_>,
    raw: &RawUpstream,
    parent: &Spot,
    url: &UpstreamUrl,
    auth: &UpstreamAuth,
) {
    let in_clear = !url.tls && !url.unix && !url.host.is_empty() && !is_nearby(&url.host);
    if in_clear && !matches!(auth, UpstreamAuth::None) {
        let spot = raw.url.as_ref().map_or(parent, |at| &at.spot);
        r.draft.warn(spot, format!("credentials go to {} in clear; use https", url.host));
    }
}

/// Header edits, checked; `ours` are names that nobody may edit.
pub(crate) fn header_ops(
    r: &mut Reader<'_>,
    list: &[At<RawHeaderOp>],
    ours: &[&str],
) -> Vec<HeaderOp> {
    list.iter().filter_map(|at| header_op(r, at, ours)).collect()
}

fn header_op(r: &mut Reader<'_>, at: &At<RawHeaderOp>, ours: &[&str]) -> Option<HeaderOp> {
    let raw = &at.value;
    let op = word(&raw.op, HeaderAction::Insert);
    let key = required(r, &raw.key, &at.spot, "key")?;
    let name = field_name(r, key)?;
    if ours.contains(&name.as_str()) {
        r.draft.fault(&key.spot, format!("{name} is written by the proxy itself"));
    }
    match (&raw.value, op) {
        (None, HeaderAction::Insert | HeaderAction::Replace) => {
            missing(r, &at.spot, "value");
        }
        (Some(value), HeaderAction::Remove) => {
            r.draft.fault(&value.spot, "remove takes no value");
        }
        (Some(value), _) if !is_field_value(value.value.0.as_bytes()) => {
            r.draft.fault(&value.spot, "holds a control byte, or a blank at an end");
        }
        _ => {}
    }
    let value = raw.value.as_ref().map_or_else(String::new, |at| at.value.0.clone());
    Some(HeaderOp { op, name, value })
}

fn field_name(r: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    if is_token(&at.value) {
        return Some(at.value.to_ascii_lowercase());
    }
    let shown = r.draft.quote(&at.spot, &at.value);
    r.draft.fault(&at.spot, format!("{shown} is no field name"));
    None
}

fn field_value(r: &mut Reader<'_>, at: &At<String>) -> Option<String> {
    if is_field_value(at.value.as_bytes()) {
        return Some(at.value.clone());
    }
    r.draft.fault(&at.spot, "holds a control byte, or a blank at an end");
    None
}

fn host_rule(r: &mut Reader<'_>, raw: &RawUpstream) -> HostRule {
    match filled(&raw.host).map(|at| (at, at.value.as_str())) {
        None | Some((_, "upstream")) => HostRule::Upstream,
        Some((_, "client")) => HostRule::Client,
        Some((at, literal)) => {
            if let Err(why) = split_host_port(literal) {
                let shown = r.draft.quote(&at.spot, literal);
                r.draft.fault(&at.spot, format!("{shown} is no host: {why}"));
            }
            HostRule::Literal(literal.to_owned())
        }
    }
}

fn proxy(r: &mut Reader<'_>, at: &At<UrlText>) -> Option<OutboundProxy> {
    if at.value.0.is_empty() {
        return None;
    }
    match parse_url(&at.value.0).and_then(outbound_proxy) {
        Ok(proxy) => Some(proxy),
        Err(why) => {
            r.draft.fault(&at.spot, format!("no proxy URL: {why}"));
            None
        }
    }
}

fn outbound_proxy(url: Url) -> Result<OutboundProxy, String> {
    if url.scheme != "http" {
        return Err("its scheme is not http".to_owned());
    }
    if !matches!(url.rest.as_str(), "" | "/") {
        return Err("it has a path".to_owned());
    }
    let credentials = match &url.userinfo {
        Some(userinfo) => Some(Secret::new(percent_decode(userinfo)?)),
        None => None,
    };
    Ok(OutboundProxy { host: url.host, port: url.port.unwrap_or(80), credentials })
}

fn upstream_tls(r: &mut Reader<'_>, raw: &RawUpstream) -> UpstreamTls {
    let said = section(&raw.tls);
    let path = |at: &Option<At<String>>| filled(at).map(|at| at.value.clone().into());
    let tls = UpstreamTls {
        ca: path(&said.ca),
        cert: path(&said.cert),
        key: path(&said.key),
        server_name: filled(&said.server_name).map(|at| at.value.clone()),
        verify: value(&said.verify, true),
    };
    if tls.cert.is_some() != tls.key.is_some()
        && let Some(at) = &raw.tls
    {
        r.draft.fault(&at.spot, "cert and key need each other");
    }
    tls
}

fn models_from(r: &mut Reader<'_>, raw: &RawUpstream) -> ModelsFrom {
    let Some(at) = &raw.models else { return ModelsFrom::Discover };
    let list = &at.value.0;
    // The one string that is no list; as an element of a list it is a name.
    let is_word = list.len() == 1 && list[0].spot.span == at.spot.span;
    if is_word {
        if list[0].value != "discover" {
            let shown = r.draft.quote(&at.spot, &list[0].value);
            r.draft.fault(&at.spot, format!("{shown} is neither \"discover\" nor a list of names"));
        }
        return ModelsFrom::Discover;
    }
    let mut names: Vec<String> = Vec::new();
    for name in list {
        if name.value.is_empty() {
            r.draft.fault(&name.spot, "must not be empty");
        } else if names.contains(&name.value) {
            let shown = r.draft.quote(&name.spot, &name.value);
            r.draft.fault(&name.spot, format!("{shown} is listed twice"));
        } else {
            names.push(name.value.clone());
        }
    }
    ModelsFrom::List(names)
}

fn health(r: &mut Reader<'_>, at: &At<RawHealth>) -> Health {
    let raw = &at.value;
    let path = filled(&raw.path).map_or("/v1/models".to_owned(), |at| at.value.clone());
    if let Some(at) = filled(&raw.path)
        && !(path.starts_with('/') && path.chars().all(|c| c.is_ascii_graphic()))
    {
        let shown = r.draft.quote(&at.spot, &path);
        r.draft.fault(&at.spot, format!("{shown} is no path: it begins with / and has no blanks"));
    }
    let method = filled(&raw.method).map_or("GET".to_owned(), |at| at.value.to_ascii_uppercase());
    if let Some(at) = filled(&raw.method)
        && !is_token(&method)
    {
        r.draft.fault(&at.spot, "no method");
    }
    let interval = time(r, &raw.interval, secs(30), secs(1)..=secs(3600));
    let limit = time(r, &raw.timeout, secs(5).min(interval), secs(1) / 10..=secs(600));
    if let Some(at) = &raw.timeout
        && limit > interval
    {
        r.draft.fault(&at.spot, "longer than interval");
    }
    Health {
        path,
        method,
        body: raw.body.as_ref().map_or_else(String::new, |at| at.value.0.clone()),
        headers: header_ops(r, each(&raw.headers), &FIELDS_OURS),
        interval,
        timeout: limit,
        fall: number(r, &raw.fall, 3, 1..=1000),
        rise: number(r, &raw.rise, 1, 1..=1000),
    }
}

fn breaker(r: &mut Reader<'_>, raw: &RawUpstream) -> Breaker {
    let said = section(&raw.breaker);
    Breaker {
        threshold: fraction(r, &said.threshold, 0.5, 0.01..=1.0),
        window: time(r, &said.window, secs(10), secs(1)..=secs(3600)),
        calls_min: number(r, &said.calls_min, 10, 1..=1_000_000),
        consecutive: number(r, &said.consecutive, 5, 1..=1_000_000),
        cooldown: time(r, &said.cooldown, secs(30), secs(1)..=secs(3600)),
        trials: number(r, &said.trials, 1, 1..=1000),
        successes: number(r, &said.successes, 1, 1..=1000),
    }
}

fn discover(r: &mut Reader<'_>, at: &At<String>) -> Option<Discover> {
    let found = match at.value.split_once(':') {
        Some(("dns", rest)) => match split_host_port(rest) {
            Ok((name, Some(port))) => Some(Discover::Dns { name, port }),
            _ => None,
        },
        Some(("srv", name)) if !name.is_empty() => Some(Discover::Srv(name.to_owned())),
        Some(("file", path)) if !path.is_empty() => Some(Discover::File(path.into())),
        Some(("k8s", rest)) => match rest.split_once('/') {
            Some((namespace, service)) if !namespace.is_empty() && !service.is_empty() => {
                let (namespace, service) = (namespace.to_owned(), service.to_owned());
                Some(Discover::K8s { namespace, service })
            }
            _ => None,
        },
        _ => None,
    };
    if found.is_none() {
        let shown = r.draft.quote(&at.spot, &at.value);
        let forms = "dns:NAME:PORT, srv:NAME, file:PATH, k8s:NAMESPACE/SERVICE";
        r.draft.fault(&at.spot, format!("{shown} is none of {forms}"));
    }
    found
}
