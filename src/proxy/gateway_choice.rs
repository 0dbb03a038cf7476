//! The choice that an endpoint picker before us has made: `x-gateway-destination-endpoint`.
//!
//! A Gateway API inference extension (llm-d, the EPP of Kubernetes) names in this field the server
//! that shall take a request, `IP:port`, and behind commas those to try next. It is believed of a
//! peer in the listener's `trusted_proxies` alone, as `X-Forwarded-For` is, and is a wish: the named
//! member is picked where it is in the route's group and may be picked at all (rights, health, breaker,
//! concurrency). Else the group's own balancer chooses.
//!
//! To the server the field goes as it came from a trusted peer. From others it is withheld at a
//! listener that has trusted peers; at one that has none it is a field like any other, and nothing is
//! looked for.

use std::net::{IpAddr, SocketAddr};

use super::plan::{GroupPlan, ListenerPlan, Plan, UpstreamPlan};
use crate::http::head::{Field, RequestHead};
use crate::http::name::Name;
use crate::net::dial::Address;

/// The field's name.
const FIELD: &[u8] = b"x-gateway-destination-endpoint";
/// Most endpoints that are looked up; a picker names one, and one or two to try next.
const ENDPOINTS_MAX: usize = 8;

/// Whether this field of an untrusted peer is to be withheld from the server.
#[must_use]
pub fn is_choice(name: &[u8]) -> bool {
    name.len() == FIELD.len()
        && FIELD.iter().zip(name).all(|(wanted, byte)| match wanted {
            b'-' => matches!(byte, b'-' | b'_'),
            letter => byte.eq_ignore_ascii_case(letter),
        })
}

/// Whether the listener believes the other end of the connection; one without trusted peers believes
/// nobody.
#[must_use]
pub fn is_trusted(listener: &ListenerPlan, peer: Option<IpAddr>) -> bool {
    let peer = peer.map(|ip| ip.to_canonical());
    peer.is_some_and(|ip| listener.trusted.iter().any(|net| net.contains(&ip)))
}

/// The members of a group that a trusted peer named, by upstream number, the first choice first.
///
/// Shape: `bytes` begins with the client's head. Empty where the field is missing, names no member, or
/// stands more than once.
#[must_use]
#[cold]
pub fn chosen(plan: &Plan, group: u16, head: &RequestHead, bytes: &[u8]) -> Vec<u16> {
    let group = &plan.groups[usize::from(group)];
    endpoints(head, bytes).flat_map(|endpoint| members_at(plan, group, endpoint)).collect()
}

/// The endpoints that the field lists; what is no `IP:port` is passed over.
fn endpoints<'a>(
    head: &'a RequestHead,
    bytes: &'a [u8],
) -> impl Iterator<Item = SocketAddr> + use<'a> {
    let named = |field: &&Field| {
        field.name_kind == Name::Other && field.name.of(bytes).eq_ignore_ascii_case(FIELD)
    };
    let mut found = head.fields.iter().filter(named);
    let only = match (found.next(), found.next()) {
        (Some(field), None) => field.value.of(bytes),
        _ => b"",
    };
    let endpoint = |text: &[u8]| std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok();
    only.split(|&byte| byte == b',').take(ENDPOINTS_MAX).filter_map(endpoint)
}

/// The members that are at an address; several where they differ in their path or key.
fn members_at<'p>(
    plan: &'p Plan,
    group: &'p GroupPlan,
    endpoint: SocketAddr,
) -> impl Iterator<Item = u16> + use<'p> {
    let wanted = (endpoint.ip().to_canonical(), endpoint.port());
    // Behind an outbound proxy the address that is dialled is the proxy's.
    let is_there = move |upstream: &UpstreamPlan| {
        upstream.via.is_none()
            && upstream.endpoints.iter().any(|one| match &one.address {
                Address::Tcp(at) => (at.ip().to_canonical(), at.port()) == wanted,
                Address::Unix(_) => false,
            })
    };
    let members = group.members.iter().map(|(number, _)| *number);
    members.filter(move |number| plan.upstreams.get(usize::from(*number)).is_some_and(is_there))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::parse::{HeadLimits, Parse, parse_request};

    fn listed(fields: &str) -> Vec<String> {
        let bytes = format!("GET / HTTP/1.1\r\nHost: h\r\n{fields}\r\n").into_bytes();
        let mut head = RequestHead::default();
        let parsed = parse_request(&bytes, &mut 0, &HeadLimits::default(), &mut head);
        assert_eq!(parsed, Ok(Parse::Done));
        endpoints(&head, &bytes).map(|endpoint| endpoint.to_string()).collect()
    }

    #[test]
    fn lists_addresses_in_order_and_passes_over_the_rest() {
        let field = "X-Gateway-Destination-Endpoint: ";
        let check = |value: &str, expected: &[&str]| {
            assert_eq!(listed(&format!("{field}{value}\r\n")), expected, "{value}");
        };
        check("10.0.0.1:8000", &["10.0.0.1:8000"]);
        check(" 10.0.0.2:1 ,[::1]:2,, gpu:3,10.0.0.4", &["10.0.0.2:1", "[::1]:2"]);
        check("", &[]);
        let many = ["10.0.0.1:1"; ENDPOINTS_MAX + 1].join(",");
        assert_eq!(listed(&format!("{field}{many}\r\n")).len(), ENDPOINTS_MAX);
        assert!(listed(&format!("{field}10.0.0.1:1\r\n{field}10.0.0.1:1\r\n")).is_empty());
        assert!(listed("x-gateway-destination: 10.0.0.1:1\r\n").is_empty());
    }

    #[test]
    fn the_field_is_known_under_its_other_spellings() {
        assert!(is_choice(b"X_Gateway-Destination_Endpoint"));
        assert!(!is_choice(b"x-gateway-destination-endpoints"));
    }
}
