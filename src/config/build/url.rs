//! URLs of upstreams and proxies, addresses, and what counts as nearby.
//!
//! Strict on purpose (RFC 3986 §3, the part that servers have): scheme, host,
//! port, path. A URL is written once and used for ever; a guess would be too.

use std::net::{IpAddr, Ipv6Addr};

/// The parts of a URL.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) scheme: String,
    pub(crate) userinfo: Option<String>,
    /// Lower case; IPv6 without brackets.
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
    /// All behind the authority, as written; empty or begins with `/` or `?`.
    pub(crate) rest: String,
}

/// Takes a URL apart; the error says what is wrong and quotes nothing.
pub(crate) fn parse_url(text: &str) -> Result<Url, String> {
    if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!("it holds {bad:?}, which must be percent-encoded"));
    }
    let (scheme, after) =
        text.split_once("://").ok_or("it has no scheme; write http:// or https://")?;
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (authority, rest) = after.split_at(end);
    if rest.contains('#') {
        return Err("it has a fragment".to_owned());
    }
    let (userinfo, host_port) = match authority.rsplit_once('@') {
        Some((user, host)) => (Some(user.to_owned()), host),
        None => (None, authority),
    };
    let (host, port) = split_host_port(host_port)?;
    Ok(Url { scheme: scheme.to_ascii_lowercase(), userinfo, host, port, rest: rest.to_owned() })
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`.
pub(crate) fn split_host_port(text: &str) -> Result<(String, Option<u16>), String> {
    let (host, port) = if let Some(inner) = text.strip_prefix('[') {
        let (host, after) = inner.split_once(']').ok_or("its \"[\" is not closed")?;
        host.parse::<Ipv6Addr>().map_err(|_| "between \"[\" and \"]\" stands no IPv6 address")?;
        match after.strip_prefix(':') {
            Some(port) => (host, Some(port)),
            None if after.is_empty() => (host, None),
            None => return Err("something follows the \"]\"".to_owned()),
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    if host.is_empty() {
        return Err("it has no host".to_owned());
    }
    if !host.chars().all(plain) || host.len() > 255 {
        return Err("its host is no name and no address".to_owned());
    }
    let port = match port {
        None => None,
        Some(port) => Some(
            port.parse()
                .ok()
                .filter(|p: &u16| *p != 0 && port.bytes().all(|b| b.is_ascii_digit()))
                .ok_or("its port is not in 1..65535")?,
        ),
    };
    Ok((host.to_ascii_lowercase(), port))
}

/// Decodes `%41`; the error is for a `%` without two digits.
pub(crate) fn percent_decode(text: &str) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digits = (bytes.next().and_then(hex), bytes.next().and_then(hex));
        let (Some(high), Some(low)) = digits else {
            return Err("a \"%\" is not followed by two hexadecimal digits".to_owned());
        };
        out.push(high << 4 | low);
    }
    Ok(out)
}

pub(crate) fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|d| u8::try_from(d).ok())
}

/// Whether what goes to that host in clear stays on one machine or one site.
pub(crate) fn is_nearby(host: &str) -> bool {
    match host.parse::<IpAddr>().map(|ip| ip.to_canonical()) {
        Ok(IpAddr::V4(ip)) => {
            let shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_loopback() || ip.is_private() || ip.is_link_local() || shared
        }
        Ok(IpAddr::V6(ip)) => {
            ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
        // A name without dots, or of a private zone, is resolved by the site's own DNS.
        Err(_) => {
            let zones = [".local", ".internal", ".localhost", ".svc", ".lan", ".home.arpa"];
            !host.contains('.') || zones.iter().any(|zone| host.ends_with(zone))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn takes_urls_apart() {
        let url = parse_url("HTTPS://u:p@API.example.com:8443/v1/?x=1").unwrap();
        assert_eq!((url.scheme.as_str(), url.host.as_str()), ("https", "api.example.com"));
        assert_eq!((url.port, url.rest.as_str()), (Some(8443), "/v1/?x=1"));
        assert_eq!(url.userinfo.as_deref(), Some("u:p"));
        let url = parse_url("http://[::1]:80").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.rest.as_str()), ("::1", Some(80), ""));
    }

    #[test]
    fn refuses_what_is_no_url() {
        for bad in [
            "",
            "127.0.0.1:80",
            "http://",
            "http://:80",
            "http://a:0",
            "http://a:65536",
            "http://a:+5",
            "http://a b",
            "http://[::1",
            "http://[zz]",
            "http://a/#x",
            "http://a:b:c",
            "http://ä",
        ] {
            assert!(parse_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn knows_what_is_nearby() {
        for near in ["127.0.0.1", "10.1.2.3", "::1", "gpu0", "vllm.default.svc", "100.64.0.1"] {
            assert!(is_nearby(near), "{near}");
        }
        for far in ["8.8.8.8", "api.openai.com", "2001:db8::1", "100.128.0.1"] {
            assert!(!is_nearby(far), "{far}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = parse_url(&text);
            let _ = percent_decode(&text);
            let _ = is_nearby(&text);
        }
    }
}
