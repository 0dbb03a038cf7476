//! Which connections are let in and which have to go: the limits of the process and of addresses.
//!
//! At the limit of connections the one that has idled longest is closed and the newcomer taken, as
//! nginx does, so that a client that opens connections and sends nothing keeps no other out. Cores
//! tell each other at every tick how many of theirs idle and since when; a core that needs a place
//! ends one of its own, or sends `EndIdle` to the core with the one that has idled longest. These
//! counts are up to a tick old: a core may find that none idles any more, and for a turn of its
//! loop a connection that is ending is still counted. So there may be a few more than the limit
//! (`LEAVING_MAX`), never many.
//!
//! A stream of HTTP/2 may need a connection to an upstream, as a connection of HTTP/1.1 may: each
//! one beyond the first of its connection counts like one.
//!
//! A TLS handshake over the limit takes the place of the longest one of an address that has more of
//! them under way than the newcomer's address; if there is none, the newcomer is refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::core::{Core, Padded, Shared};
use super::listeners::CoreListener;
use crate::base::clock::Moment;
use crate::net::mailbox::Message;
use crate::policy::limit::tally::{Holder, Tally};

/// Most connections over the limit: those that are ending count until they are closed.
const LEAVING_MAX: u32 = 16;

/// An address has as many connections as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany;

/// One more in the tally of an address, until this is dropped.
pub struct Counted {
    shared: Arc<Shared>,
    of: fn(&Shared) -> &Tally,
    holder: Holder,
}

impl Counted {
    fn add(shared: &Arc<Shared>, of: fn(&Shared) -> &Tally, holder: Holder) -> (Self, u64) {
        let count = of(shared).add(holder, 1);
        (Self { shared: shared.clone(), of, holder }, count)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.of)(&self.shared).give_back(self.holder, 1);
    }
}

/// Makes room for one more connection or stream, at the limit by ending an idle connection; false
/// when none can be ended.
pub fn make_place(core: &Core) -> bool {
    let shared = &core.shared;
    let taken = shared.connections.load(Relaxed) + shared.streams.load(Relaxed);
    taken < shared.bounds.connections_max() || take_idle_place(core, taken)
}

#[cold]
fn take_idle_place(core: &Core, taken: u32) -> bool {
    let shared = &core.shared;
    if taken >= shared.bounds.connections_max().saturating_add(LEAVING_MAX) {
        return false;
    }
    let own = core.ticker.idle().1.map(|since| shared.notifier.clock.at(since));
    let others = shared.idle.iter().enumerate().filter(|(at, _)| *at != core.index);
    let longest = others
        .filter(|(_, Padded(idle))| idle.count.load(Relaxed) > 0)
        .map(|(at, Padded(idle))| (idle.since.load(), at))
        .min();
    if let Some((since, at)) = longest
        && own.is_none_or(|own| since < own)
    {
        // The count goes down before the message is sent, or a burst would ask for more idle
        // connections than there are.
        let less = |count: u32| count.checked_sub(1);
        if shared.idle[at].0.count.fetch_update(Relaxed, Relaxed, less).is_ok()
            && shared.mailboxes[at].send(Message::EndIdle).is_ok()
        {
            return true;
        }
    }
    core.ticker.end_longest_idle()
}

/// Tells the other cores how many connections idle here and since when; called at every tick.
pub fn publish(core: &Core) {
    let Some(Padded(idle)) = core.shared.idle.get(core.index) else { return };
    let (count, since) = core.ticker.idle();
    idle.count.store(count, Relaxed);
    idle.since.store(since.map_or(Moment::MAX, |at| core.shared.notifier.clock.at(at)));
}

/// Whether an address has as many connections as it may; asked before an idle connection is ended
/// to make room.
#[must_use]
pub fn is_full(core: &Core, peer: Option<SocketAddr>, listener: &CoreListener) -> bool {
    let shared = &core.shared;
    shared.bounds.per_ip_max() > 0
        && counted_ip(core, peer, listener).is_some_and(|ip| {
            let held = shared.per_ip.count(shared.per_ip.holder_at(ip));
            held >= u64::from(shared.bounds.per_ip_max())
        })
}

/// Counts a connection of an address for as long as it lives.
///
/// Errors: the address has as many as it may.
pub fn count_connection(
    core: &Core,
    peer: Option<SocketAddr>,
    listener: &CoreListener,
) -> Result<Option<Counted>, TooMany> {
    match core.shared.bounds.per_ip_max() {
        0 => Ok(None),
        _ => counted_ip(core, peer, listener).map(|ip| count(core, ip)).transpose(),
    }
}

/// Counts a request that came through a trusted proxy as a connection of the client that the proxy
/// vouches for.
///
/// Errors: the address has as many as it may.
pub fn count_vouched(
    core: &Core,
    peer: Option<IpAddr>,
    client: Option<IpAddr>,
) -> Result<Option<Counted>, TooMany> {
    match (peer, client) {
        (Some(peer), Some(client)) if peer.to_canonical() != client => {
            count(core, client).map(Some)
        }
        _ => Ok(None),
    }
}

fn count(core: &Core, ip: IpAddr) -> Result<Counted, TooMany> {
    let holder = core.shared.per_ip.holder_at(ip);
    let (counted, held) = Counted::add(&core.shared, |shared| &shared.per_ip, holder);
    if held > u64::from(core.shared.bounds.per_ip_max()) { Err(TooMany) } else { Ok(counted) }
}

/// The address that a connection counts for; `None` for a trusted proxy, behind which are many
/// clients.
fn counted_ip(core: &Core, peer: Option<SocketAddr>, listener: &CoreListener) -> Option<IpAddr> {
    let ip = peer?.ip().to_canonical();
    let trusts =
        core.with_listener(listener, |plan| plan.trusted.iter().any(|net| net.contains(&ip)));
    (!trusts).then_some(ip)
}

/// A TLS handshake under way, counted until this is dropped.
pub struct Shaking {
    shared: Arc<Shared>,
    counted: Counted,
}

impl Shaking {
    /// Counts a handshake; `None` when `handshakes_max` are under way and no address has more of
    /// them than this one.
    pub fn begin(core: &Core, ip: Option<IpAddr>) -> Option<Shaking> {
        let shared = core.shared.clone();
        let holder = match ip {
            Some(ip) => shared.shaking.holder_at(ip),
            None => shared.shaking.holder("no address"),
        };
        let others = shared.handshakes.fetch_add(1, Relaxed);
        let (counted, own) = Counted::add(&shared, |shared| &shared.shaking, holder);
        let shaking = Shaking { shared, counted };
        let shared = &shaking.shared;
        let worse = |tag: u64| {
            let held = shared.shaking.count(Holder::numbered(u32::try_from(tag).unwrap_or(0)));
            (held > own).then_some(held)
        };
        let fits = others < shared.bounds.handshakes_max() || core.ticker.end_handshake(worse);
        fits.then_some(shaking)
    }

    /// The number of its address in the tally, by which the ticker knows whose handshake to end.
    #[must_use]
    pub fn tag(&self) -> u64 {
        u64::from(self.counted.holder.number())
    }
}

impl Drop for Shaking {
    fn drop(&mut self) {
        self.shared.handshakes.fetch_sub(1, Relaxed);
    }
}
