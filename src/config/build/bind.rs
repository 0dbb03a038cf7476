//! Addresses to listen on, and whether two of them clash.

use std::collections::HashMap;
use std::path::PathBuf;

use crate::config::build::check::each;
use crate::config::fault::Spot;
use crate::config::model::*;
use crate::config::raw::RawConfig;
use crate::config::reader::{At, Reader};

/// `IP:PORT` or `unix:/path`.
pub(crate) fn parse_bind(r: &mut Reader<'_>, at: &At<String>) -> Option<Bind> {
    let bind = match at.value.strip_prefix("unix:") {
        // 107 bytes is what `sockaddr_un` holds.
        Some(path) if !path.is_empty() && path.len() <= 107 => {
            Some(Bind::Unix(PathBuf::from(path)))
        }
        Some(_) => None,
        None => at.value.parse().ok().map(Bind::Tcp),
    };
    if bind.is_none() {
        let shown = r.draft.quote(&at.spot, &at.value);
        let forms = "127.0.0.1:4000, [::]:4000 or unix:/run/x.sock";
        r.draft.fault(&at.spot, format!("{shown} is no address; write {forms}"));
    }
    bind
}

/// The same address twice, over all listeners and the admin's.
pub(crate) fn check_binds(raw: &RawConfig, r: &mut Reader<'_>, admin: Option<&Admin>) {
    let admin_bind = raw.admin.as_ref().and_then(|at| at.value.bind.as_ref());
    let listed = each(&raw.listener).iter().filter_map(|at| at.value.bind.as_ref());
    let all = listed.flat_map(|at| at.value.0.iter()).chain(admin_bind.filter(|_| admin.is_some()));
    let mut seen: HashMap<Bind, &Spot> = HashMap::new();
    let mut of_port: HashMap<u16, Vec<Bind>> = HashMap::new();
    for at in all {
        let bind = match at.value.strip_prefix("unix:") {
            Some(path) => Bind::Unix(PathBuf::from(path)),
            None => match at.value.parse() {
                Ok(addr) => Bind::Tcp(addr),
                Err(_) => continue,
            },
        };
        // Port 0 is another one each time.
        if matches!(bind, Bind::Tcp(addr) if addr.port() == 0) {
            continue;
        }
        let others = of_port.entry(port(&bind)).or_default();
        let wider = others.iter().find(|known| covers(known, &bind) || covers(&bind, known));
        if let Some((other, first)) = wider.and_then(|other| seen.get_key_value(other)) {
            let line = r.draft.line_of(first);
            let message = format!(
                "{bind} and {other} are the same port of one machine, {other} is {} in line {line}",
                first.path
            );
            r.draft.fault(&at.spot, message);
        } else if let Some(first) = seen.get(&bind) {
            let line = r.draft.line_of(first);
            let message = format!("{bind} is bound twice, first by {} in line {line}", first.path);
            r.draft.fault(&at.spot, message);
        } else {
            others.push(bind.clone());
            seen.insert(bind, &at.spot);
        }
    }
}

/// The port of an address, 0 for one without.
fn port(bind: &Bind) -> u16 {
    match bind {
        Bind::Tcp(addr) => addr.port(),
        Bind::Unix(_) => 0,
    }
}

/// Whether one address takes the other's connections: the wildcard of IPv6 takes IPv4, too.
fn covers(wide: &Bind, other: &Bind) -> bool {
    let (Bind::Tcp(wide), Bind::Tcp(other)) = (wide, other) else { return false };
    let same_kind = wide.is_ipv6() || other.is_ipv4();
    wide != other && wide.port() == other.port() && wide.ip().is_unspecified() && same_kind
}
