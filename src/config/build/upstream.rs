//! Builds `[[upstream]]`, with `ports` expanded.

use std::collections::HashSet;

use crate::config::build::auth::{api_keys, auth};
use crate::config::build::base_url::{nowhere, upstream_url};
use crate::config::build::check::{
    AllNames, each, filled, id, missing, number, required, value, word,
};
use crate::config::build::headers::{field_value, header_ops};
use crate::config::build::health::{breaker, health};
use crate::config::build::tls::upstream_tls;
use crate::config::build::url::{Url, is_nearby, parse_url, percent_decode, split_host_port};
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::{RawConfig, RawUpstream};
use crate::config::reader::{At, Reader};
use crate::config::values::UrlText;

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
                // Ports that were refused leave the entry itself, which has its name already.
                let made = expanded.iter().zip(&ids).filter(|(one, _)| one.name != name.value);
                for (one, id) in made {
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
    if one.discover.is_some() {
        r.draft.fault(&ports.spot, "ports and discover exclude each other");
        return vec![one];
    }
    if one.url.unix {
        r.draft.fault(&ports.spot, "a Unix socket has no ports");
        return vec![one];
    }
    let mut seen: HashSet<u16> = HashSet::new();
    let mut out = Vec::new();
    for at in &ports.value {
        let port: u16 = number(r, &Some(at.clone()), 1, 1..=65_535);
        if !seen.insert(port) {
            r.draft.fault(&at.spot, format!("port {port} is listed twice"));
            continue;
        }
        let mut copy = one.clone();
        copy.name = format!("{}-{port}", one.name);
        copy.url.port = port;
        copy.url.original = UrlAsWritten::new(written(&copy.url));
        out.push(copy);
    }
    out
}

/// The URL as text, port included.
pub(crate) fn written(url: &UpstreamUrl) -> String {
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
    let tls = upstream_tls(r, raw, &url);
    warn_of_plaintext(r, raw, &at.spot, &url, &auth);
    let proxy = raw.proxy.as_ref().and_then(|at| proxy(r, at));
    let discover = filled(&raw.discover).and_then(|at| discover(r, at));
    if proxy.is_some() {
        check_proxied(r, raw, &url, discover.as_ref());
    }
    Upstream {
        name: raw.name.as_ref().map_or_else(String::new, |at| at.value.clone()),
        url,
        path_mode,
        protocol,
        auth,
        api_keys,
        headers: header_ops(r, each(&raw.headers)),
        host: host_rule(r, raw),
        user_agent: filled(&raw.user_agent).and_then(|at| field_value(r, at)),
        proxy,
        tls,
        http2: value(&raw.http2, false),
        models: models_from(r, raw),
        concurrency: number(r, &raw.concurrency, 0, 0..=1_000_000),
        reuse: word(&raw.reuse, Reuse::Auto),
        enabled: value(&raw.enabled, true),
        health: raw.health.as_ref().map(|at| health(r, at)),
        breaker: breaker(r, raw),
        discover,
        group: GroupId(0),
        implicit: false,
    }
}

/// An upstream with a URL and nothing but defaults, for `models.*.backend`.
pub(crate) fn plain(r: &mut Reader<'_>, name: String, url: UpstreamUrl) -> Upstream {
    let at = At { value: RawUpstream::default(), spot: Spot::default() };
    // Of an empty entry nothing but the missing URL is complained about.
    let given = At { value: UrlText(url.original.expose().to_owned()), spot: Spot::default() };
    let at = At { value: RawUpstream { url: Some(given), ..at.value }, ..at };
    let built = upstream(r, &at);
    Upstream { name, url, implicit: true, models: ModelsFrom::List(Vec::new()), ..built }
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
    match url.scheme.as_str() {
        "http" => {}
        "https" => {
            return Err("a proxy that is itself reached over TLS is not supported; write http://"
                .to_owned());
        }
        _ => return Err("only http:// proxies are supported, no SOCKS".to_owned()),
    }
    if !matches!(url.rest.as_str(), "" | "/") {
        return Err("it has a path".to_owned());
    }
    let credentials = match &url.userinfo {
        Some(userinfo) => {
            let mut pair = percent_decode(userinfo)?;
            // RFC 7617 §2: the colon is there even when the password is empty.
            if !pair.contains(&b':') {
                pair.push(b':');
            }
            Some(Secret::new(pair))
        }
        None => None,
    };
    Ok(OutboundProxy { host: url.host, port: url.port.unwrap_or(80), credentials })
}

/// What makes no sense, or another one, behind a proxy.
fn check_proxied(
    r: &mut Reader<'_>,
    raw: &RawUpstream,
    url: &UpstreamUrl,
    discover: Option<&Discover>,
) {
    if let (true, Some(at)) = (url.unix, &raw.proxy) {
        r.draft.fault(&at.spot, "a Unix socket is not reached through a proxy");
    }
    if let (Some(Discover::Dns { .. }), Some(at)) = (discover, &raw.discover) {
        let message = "dns: and proxy exclude each other: the proxy looks names up, and would be \
                       asked for bare addresses; use srv: or file:";
        r.draft.fault(&at.spot, message);
    }
    let tunnels = url.tls || value(&raw.http2, false);
    if let (false, Some(at)) = (tunnels, filled(&raw.host).filter(|at| at.value != "upstream")) {
        let message = "a proxy replaces Host by the URL's when the URL is http (RFC 9112 §3.2.2)";
        r.draft.warn(&at.spot, message);
    }
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

/// `NAMESPACE/SERVICE`, and behind it `:PORT` as a number or a name.
fn kubernetes_service(text: &str) -> Option<KubernetesService> {
    // RFC 1123 labels, which are all that Kubernetes allows for each of the three.
    let is_label = |text: &str| {
        let is_inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let ends = !text.starts_with('-') && !text.ends_with('-');
        (1..=63).contains(&text.len()) && text.bytes().all(is_inner) && ends
    };
    let (namespace, rest) = text.split_once('/')?;
    let (name, port) = match rest.split_once(':') {
        None => (rest, None),
        Some((name, port)) => {
            let is_number = port.bytes().all(|b| b.is_ascii_digit());
            let port = match is_number {
                true => ServicePort::Number(port.parse().ok().filter(|number| *number > 0)?),
                false if is_label(port) => ServicePort::Name(port.to_owned()),
                false => return None,
            };
            (name, Some(port))
        }
    };
    let known = is_label(namespace) && is_label(name);
    known.then(|| KubernetesService {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        port,
    })
}

fn discover(r: &mut Reader<'_>, at: &At<String>) -> Option<Discover> {
    let found = match at.value.split_once(':') {
        Some(("dns", rest)) => match split_host_port(rest) {
            Ok((name, Some(port))) => Some(Discover::Dns { name, port }),
            _ => None,
        },
        Some(("srv", name)) if !name.is_empty() => Some(Discover::Srv(name.to_owned())),
        Some(("file", path)) if !path.is_empty() => Some(Discover::File(path.into())),
        Some(("k8s", rest)) => {
            if !cfg!(feature = "kubernetes") {
                let message = "k8s: is not in this program: built without the feature kubernetes";
                r.draft.fault(&at.spot, message);
                return None;
            }
            kubernetes_service(rest).map(Discover::K8s)
        }
        _ => None,
    };
    if found.is_none() {
        let shown = r.draft.quote(&at.spot, &at.value);
        let forms = "dns:NAME:PORT, srv:NAME, file:PATH, k8s:NAMESPACE/SERVICE[:PORT]";
        r.draft.fault(&at.spot, format!("{shown} is none of {forms}"));
    }
    found
}
