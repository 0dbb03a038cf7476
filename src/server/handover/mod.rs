//! Handover: a second process takes the listening sockets of the one that runs, and no client
//! notices.
//!
//! ```text
//! new                                     old
//! config, rings, TLS, pools; hello  →
//!                                   ←     sockets (its own go on accepting)
//! one request to itself
//! accepts on all of them; ready     →
//!                                   ←     accepts ended, each awaited; stopped, with its state
//! takes the state; taken            →
//!                                   ←     draining
//!                                   ←     later (what its last exchanges still counted) …
//! ```
//! Until `ready` the old one does nothing different, and until `taken` it goes back to work when the
//! new one ends or is silent for `STEP`. From `ready` on the new one serves, so when the old one ends
//! or hangs there is always one that does. An address has the same sockets before and after, so a
//! connection that waits to be accepted is not lost; members of a SO_REUSEPORT group are added when
//! the old one has agreed, and never closed.
//!
//! `successor` is the new side, `predecessor` the old one, `message` what they say.

pub mod message;
pub mod predecessor;
pub mod successor;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use sha2::{Digest, Sha256};

use self::message::Message;
use crate::base::units::hex;
use crate::config::Config;
use crate::net::dial::Address;
use crate::net::handover_socket::{Channel, Name, Received};
use crate::net::sys;

/// How long each side waits for one step of the other.
pub const STEP: Duration = Duration::from_secs(5);

/// Most bytes of an address in an abstract name (unix(7) allows 107 in all).
const NAME_MAX: usize = 80;

/// Where processes find each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meeting {
    /// At abstract names made of the user and each address, in this network namespace.
    ByAddress,
    /// At this path.
    At(PathBuf),
    /// Nowhere: no handover.
    Off,
}

impl Meeting {
    /// What `process.control_socket` says.
    #[must_use]
    pub fn of(config: &Config) -> Self {
        match &config.process.control_socket {
            None => Self::ByAddress,
            Some(path) if path.as_os_str() == "off" => Self::Off,
            Some(path) => Self::At(path.clone()),
        }
    }

    /// The names to be found by, for a process that listens on these addresses.
    #[must_use]
    pub fn names(&self, addresses: &[Address]) -> Vec<Name> {
        match self {
            Self::Off => Vec::new(),
            Self::At(path) => vec![Name::Path(path.clone())],
            Self::ByAddress => {
                let fixed = addresses.iter().filter(|address| !is_any_port(address));
                fixed.map(|address| Name::Abstract(name_of(address))).collect()
            }
        }
    }
}

/// The addresses that a config names, the operator's interface included.
#[must_use]
pub fn addresses_of(config: &Config) -> Vec<Address> {
    let listeners = config.listeners.iter().flat_map(|listener| &listener.binds);
    listeners.chain(config.admin.iter().map(|admin| &admin.bind)).map(Address::from).collect()
}

fn is_any_port(address: &Address) -> bool {
    matches!(address, Address::Tcp(addr) if addr.port() == 0)
}

/// The abstract name of an address; that of another user is another one.
fn name_of(address: &Address) -> String {
    let mut shown = address.to_string();
    if shown.len() > NAME_MAX {
        shown = hex(&Sha256::digest(shown.as_bytes()));
    }
    format!("tokenring/{}/{shown}", sys::user())
}

/// What came from the other process.
enum Heard {
    /// A message, with its descriptors.
    Message(Message, Vec<OwnedFd>),
    /// It has ended or closed its end.
    Ended,
    /// Nothing within the time.
    Silent,
    /// Something that cannot be understood.
    Wrong(String),
}

fn hear(channel: &Channel, within: Duration) -> Heard {
    match channel.receive(within) {
        Ok(Received::Message(bytes, descriptors)) => match Message::decode(&bytes) {
            Ok(message) => Heard::Message(message, descriptors),
            Err(why) => Heard::Wrong(format!("its message cannot be read: {why}")),
        },
        Ok(Received::Ended) => Heard::Ended,
        Ok(Received::Silent) => Heard::Silent,
        Err(error) => Heard::Wrong(error.to_string()),
    }
}

impl Heard {
    /// What it was instead of what should have come.
    fn instead_of(self, wanted: &str) -> String {
        match self {
            Heard::Message(Message::Refused { why }, _) => why,
            Heard::Message(other, _) => format!("it said {:?} instead of {wanted:?}", other.kind()),
            Heard::Ended => format!("it ended before {wanted:?}"),
            Heard::Silent => format!("no {wanted:?} for {} s", STEP.as_secs()),
            Heard::Wrong(why) => why,
        }
    }
}

fn tell(channel: &Channel, message: &Message) -> std::io::Result<()> {
    channel.send(&message.encode(), &[], STEP)
}

fn tell_with(channel: &Channel, message: &Message, beside: &[OwnedFd]) -> std::io::Result<()> {
    let beside: Vec<BorrowedFd<'_>> = beside.iter().map(AsFd::as_fd).collect();
    channel.send(&message.encode(), &beside, STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_name_of_its_own_that_fits() {
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        let addresses = [
            tcp("127.0.0.1:4000"),
            tcp("127.0.0.1:4001"),
            tcp("[::1]:4000"),
            Address::Unix("/run/tokenring.sock".into()),
            Address::Unix(format!("/{}", "a".repeat(100)).into()),
        ];
        let names = Meeting::ByAddress.names(&addresses);
        for (at, name) in names.iter().enumerate() {
            let Name::Abstract(name) = name else { panic!() };
            assert!(name.len() < 107 && name.contains(&format!("/{}/", sys::user())), "{name}");
            assert!(!names[..at].iter().any(|before| before.to_string() == format!("@{name}")));
        }
        // A port that nobody knows yet leads to nobody.
        assert!(Meeting::ByAddress.names(&[tcp("127.0.0.1:0")]).is_empty());
        assert_eq!(Meeting::Off.names(&addresses), []);
        assert_eq!(Meeting::At("/run/c".into()).names(&[]), [Name::Path("/run/c".into())]);
    }
}
