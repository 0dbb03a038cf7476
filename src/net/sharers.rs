//! Who else listens on an address of ours: the kernel gives such a process a part of the connections.
//!
//! Only a process of the same user can, by SO_REUSEPORT, so it is another program of the operator's
//! and not an attack. /proc/net/tcp lists the sockets of this network namespace by inode.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// How many listening sockets on this address are none of ours.
///
/// Shape: 0 where /proc cannot be read. One that listens on all addresses is no stranger: the
/// kernel gives it nothing of ours.
#[must_use]
pub fn strangers(addr: SocketAddr, ours: &[OwnedFd]) -> usize {
    let inode = |socket| rustix::fs::fstat(socket).ok().map(|stat| stat.st_ino);
    let ours: Vec<u64> = ours.iter().filter_map(inode).collect();
    let table = if addr.is_ipv4() { "/proc/self/net/tcp" } else { "/proc/self/net/tcp6" };
    let text = std::fs::read_to_string(table).unwrap_or_default();
    listening(&text, addr).filter(|inode| !ours.contains(inode)).count()
}

/// The inodes of the sockets that listen on an address.
fn listening(text: &str, addr: SocketAddr) -> impl Iterator<Item = u64> {
    const LISTEN: &str = "0A";
    text.lines().skip(1).filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        let (ip, port) = words.nth(1)?.rsplit_once(':')?;
        let port = u16::from_str_radix(port, 16).ok()?;
        let is_ours = port == addr.port() && ip == kernel_form(addr.ip());
        // Its inode stands six words on: queues, timer, retransmits, user, timeout, inode.
        (is_ours && words.nth(1)? == LISTEN).then(|| words.nth(5)?.parse().ok()).flatten()
    })
}

/// An address as /proc/net/tcp has it: words of four bytes, each in the order of this machine.
fn kernel_form(ip: IpAddr) -> String {
    let bytes = match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let word = |word: &[u8]| {
        let word = word.try_into().map_or(0, u32::from_ne_bytes);
        format!("{word:08X}")
    };
    bytes.chunks(4).map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::dial::Address;
    use crate::net::listener::{bind, bind_further};

    #[test]
    fn a_line_of_the_kernel_is_read() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n   \
            1: 0100007F:1F90 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n   \
            2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0\n";
        let addr = "127.0.0.1:8080".parse().unwrap();
        // The form is that of a little-endian machine.
        if cfg!(target_endian = "little") {
            assert_eq!(listening(text, addr).collect::<Vec<_>>(), [4711]);
        }
        let v6 = "2001:db8::1".parse().unwrap();
        assert_eq!(kernel_form(v6).len(), 32);
    }

    #[test]
    fn our_own_sockets_are_no_strangers() {
        let any = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (address, sockets) = bind(&any, 2).unwrap();
        let Address::Tcp(addr) = address else { unreachable!() };
        let ours: Vec<OwnedFd> = sockets.into_iter().map(OwnedFd::from).collect();
        assert_eq!(strangers(addr, &ours), 0);
        let _foreign = bind_further(addr, &ours).unwrap();
        assert_eq!(strangers(addr, &ours), 1);
    }
}
