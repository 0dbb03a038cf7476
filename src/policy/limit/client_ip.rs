//! Whose address a request comes from, seen through proxies that the operator trusts.
//!
//! Each proxy appends the address it saw to `X-Forwarded-For`, so the list is true from its right
//! end and only as far as those who wrote it are trusted. The walk begins at the peer and goes
//! on to the left while the address it stands on is a trusted proxy. What is no address ends it:
//! nobody trusted has written that. From a peer that is not trusted nothing is read at all.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::http::fields::trim;

/// Most entries that are walked; no chain of proxies is so long.
pub const HOPS_MAX: usize = 32;

/// Finds the client's address.
///
/// Shape: `forwarded_for` yields the values of the `X-Forwarded-For` fields in the order they
/// came; the result is never an IPv4 address in IPv6's clothes.
#[must_use]
pub fn client_ip<'a>(
    peer: IpAddr,
    forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &[IpNet],
) -> IpAddr {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let mut client = peer.to_canonical();
    if !is_trusted(&client) {
        return client;
    }
    let entries = forwarded_for.rev().flat_map(|value| value.rsplit(|&byte| byte == b','));
    for entry in entries.take(HOPS_MAX) {
        let Some(before) = parse_hop(entry) else { break };
        client = before;
        if !is_trusted(&client) {
            break;
        }
    }
    client
}

/// Reads one entry: an address, with a port or without, IPv6 in brackets or not.
fn parse_hop(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(trim(entry)).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let ip = match bare {
        Some(inner) => IpAddr::V6(inner.parse().ok()?),
        None => match text.parse::<IpAddr>() {
            Ok(ip) => ip,
            Err(_) => text.parse::<SocketAddr>().ok()?.ip(),
        },
    };
    Some(ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRUSTED: [&str; 3] = ["10.0.0.0/8", "192.168.1.1/32", "fd00::/8"];

    fn found(peer: &str, fields: &[&[u8]]) -> String {
        let trusted = TRUSTED.map(|net| net.parse().unwrap());
        client_ip(peer.parse().unwrap(), fields.iter().copied(), &trusted).to_string()
    }

    fn check(peer: &str, fields: &[&str], expected: &str) {
        let fields: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
        assert_eq!(found(peer, &fields), expected, "{peer} {fields:?}");
    }

    #[test]
    fn believes_nothing_from_a_peer_that_is_not_trusted() {
        check("203.0.113.9", &["1.2.3.4"], "203.0.113.9");
        check("203.0.113.9", &["10.0.0.1", "1.2.3.4, 10.0.0.1"], "203.0.113.9");
        check("2001:db8::1", &["1.2.3.4"], "2001:db8::1");
    }

    #[test]
    fn walks_from_the_right_while_the_hop_is_trusted() {
        check("10.0.0.1", &["1.2.3.4"], "1.2.3.4");
        // What stands before the first stranger was written by the stranger.
        check("10.0.0.1", &["6.6.6.6, 1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &["6.6.6.6, 1.2.3.4, 10.9.9.9 ,192.168.1.1"], "1.2.3.4");
        check("10.0.0.1", &["6.6.6.6", "1.2.3.4", "10.2.2.2"], "1.2.3.4");
        check("fd00::1", &["2001:db8::7"], "2001:db8::7");
    }

    #[test]
    fn a_chain_of_trusted_hops_ends_at_the_leftmost() {
        check("10.0.0.1", &["10.0.0.3, 10.0.0.2"], "10.0.0.3");
        check("10.0.0.1", &[], "10.0.0.1");
    }

    #[test]
    fn garbage_ends_the_walk() {
        for garbage in ["", " ", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "1.2.3.4 5", "\"x\""] {
            check("10.0.0.1", &[&format!("1.2.3.4, {garbage}, 10.0.0.2")], "10.0.0.2");
            check("10.0.0.1", &[garbage], "10.0.0.1");
        }
        assert_eq!(found("10.0.0.1", &[b"1.2.3.4, \xff\xfe"]), "10.0.0.1");
    }

    #[test]
    fn reads_ports_brackets_and_mapped_addresses() {
        check("10.0.0.1", &["1.2.3.4:5678"], "1.2.3.4");
        check("10.0.0.1", &["[2001:db8::7]:443"], "2001:db8::7");
        check("10.0.0.1", &["[2001:db8::7]"], "2001:db8::7");
        check("10.0.0.1", &["::ffff:1.2.3.4"], "1.2.3.4");
        check("10.0.0.1", &["[1.2.3.4]"], "10.0.0.1");
        // A listener of IPv6 sees IPv4 peers so.
        check("::ffff:10.0.0.1", &["1.2.3.4"], "1.2.3.4");
        check("::ffff:9.9.9.9", &["1.2.3.4"], "9.9.9.9");
    }

    #[test]
    fn walks_no_more_than_hops_max_entries() {
        let field = |hops: usize| format!("1.2.3.4{}", ", 10.0.0.2".repeat(hops));
        check("10.0.0.1", &[&field(HOPS_MAX - 1)], "1.2.3.4");
        check("10.0.0.1", &[&field(HOPS_MAX)], "10.0.0.2");
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_strangers_are_themselves(
            fields in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..5),
        ) {
            let fields: Vec<&[u8]> = fields.iter().map(Vec::as_slice).collect();
            prop_assert_eq!(found("203.0.113.9", &fields), "203.0.113.9");
            found("10.0.0.1", &fields);
        }

        /// The oracle: all entries in one list, written out and cut.
        #[test]
        fn agrees_with_a_list_walked_backwards(
            entries in prop::collection::vec(0usize..5, 0..12), split in 1usize..4,
        ) {
            let words = ["1.2.3.4", "10.0.0.7", "x", "192.168.1.1", "2001:db8::9"];
            let list: Vec<&str> = entries.iter().map(|&at| words[at]).collect();
            let fields: Vec<String> = list.chunks(split).map(|part| part.join(",")).collect();
            let fields: Vec<&[u8]> = fields.iter().map(|field| field.as_bytes()).collect();
            let mut expected = "10.0.0.1";
            for word in list.iter().rev() {
                if *word == "x" {
                    break;
                }
                expected = word;
                if !word.starts_with("1") || *word == "1.2.3.4" {
                    break;
                }
            }
            prop_assert_eq!(found("10.0.0.1", &fields), expected);
        }
    }
}
