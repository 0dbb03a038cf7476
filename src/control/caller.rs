//! Who sends a request to the operator's interface: which web page, if any, and with which token.

use std::net::{Ipv4Addr, Ipv6Addr};

use axum::http::{HeaderMap, HeaderValue, header};
use sha2::{Digest, Sha256};

/// Whether a request was not sent by a web page of another origin, as far as a browser tells.
///
/// Such a page is named in `Origin`. A page whose own name was made to resolve to this address (DNS
/// rebinding) has that name in `Host`; so without a token, which no such page has, only addresses
/// and names without a dot (`localhost`) are accepted in `Host`. `any_name` turns that off.
pub(super) fn is_of_this_address(headers: &HeaderMap, any_name: bool) -> bool {
    let text = |name| headers.get(name).map(|value: &HeaderValue| value.to_str().unwrap_or("?"));
    let (host, origin) = (text(header::HOST), text(header::ORIGIN));
    if headers.get_all(header::HOST).iter().count() > 1
        || headers.get_all(header::ORIGIN).iter().count() > 1
    {
        return false;
    }
    let same = origin.is_none_or(|origin| {
        let at = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        at.is_some() && at.map(str::to_ascii_lowercase) == host.map(str::to_ascii_lowercase)
    });
    same && (any_name || host.is_none_or(is_near))
}

/// Whether no web page of another origin has sent a request, a GET included: an image or a link of
/// a page sends no `Origin`, but browsers say by `Sec-Fetch-Site` or `Referer` where it is from.
pub(super) fn is_sent_by_no_page(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let own = |from: &str| matches!(from, "none" | "same-origin");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let refers = |page: &str| {
        let at = page.strip_prefix("http://").or_else(|| page.strip_prefix("https://"));
        at.is_some_and(|at| at.split('/').next().is_some_and(|at| at.eq_ignore_ascii_case(host)))
    };
    text("sec-fetch-site").is_none_or(own) && text("referer").is_none_or(refers)
}

/// Whether `host` is an IP address, or a name without a dot, which cannot be registered in public
/// DNS; a port may follow.
fn is_near(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    }
    let name = host.split(':').next().unwrap_or_default();
    !name.contains('.') || name.parse::<Ipv4Addr>().is_ok()
}

/// SHA-256 of the bearer token in a request; `None` without one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<[u8; 32]> {
    let value = headers.get(header::AUTHORIZATION)?.as_bytes();
    let (scheme, rest) = value.split_at_checked(7)?;
    let token = scheme.eq_ignore_ascii_case(b"bearer ").then_some(rest)?;
    Some(Sha256::digest(token.trim_ascii()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_origin_is_told_by_its_fields() {
        let check = |fields: &[(&'static str, &str)], without_token: bool, with_token: bool| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, HeaderValue::from_str(value).unwrap());
            }
            let told = [false, true].map(|any_name| is_of_this_address(&headers, any_name));
            assert_eq!(told, [without_token, with_token], "{fields:?}");
        };
        for host in ["127.0.0.1:9000", "localhost:9000", "LOCALHOST", "[::1]:9000", "proxy:1", ""] {
            check(&[("host", host)], true, true);
        }
        check(&[], true, true);
        check(&[("host", "evil.example:9000")], false, true);
        check(&[("host", "127.0.0.1.evil.example")], false, true);
        let ours = ("host", "127.0.0.1:9000");
        check(&[ours, ("origin", "http://127.0.0.1:9000")], true, true);
        check(&[("host", "a.b:1"), ("origin", "https://A.b:1")], false, true);
        for origin in ["http://evil.example", "http://127.0.0.1:80", "null", "127.0.0.1:9000", ""] {
            check(&[ours, ("origin", origin)], false, false);
        }
        check(&[ours, ours], false, false);
        check(&[ours, ("origin", "http://127.0.0.1:9000"), ("origin", "null")], false, false);
        check(&[("origin", "http://localhost")], false, false);
    }
}
