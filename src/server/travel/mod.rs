//! What travels to the process that takes over (SPEC §14, "Handover"): state that a restart would
//! lose, and that clients or operators would miss.
//!
//! ```text
//! Giver::give          once, when the cores accept no more: everything      ─▶ Taker::take
//! Giver::later         while it drains: what has changed since             ─▶ Taker::take
//! Giver::later(last)   when its cores have ended: what it has not used     ─▶ Taker::take
//! Giver::keep          the other has not taken it: all is as before
//!                      its end, or that of the connection to it            ─▶ Taker::end
//! ```
//!
//! `keys` (limits), `addresses` (rates of clients), `upstreams` (breakers, estimates, slots), `counts`
//! (for Prometheus), and here the keys of TLS tickets. How messages go from one to the other is not
//! this folder's.
//!
//! Limits hold over both processes together. Before the new one has been told, its calls that count
//! wait (`await_state`). The old one keeps half of what a window has left, at most one call
//! for each connection that it still has, and the new one counts those as had until they are given
//! back; a call that finds a window full meanwhile waits for them. What is in flight at the old one
//! takes up places of concurrency at the new one. An old one that dies has used all it kept.
//!
//! A message is JSON: times are lengths from its writing, names stand for numbers, and a version
//! that knows more or less is understood (`read`). Messages must come in the order in which they
//! were written.

mod addresses;
mod counts;
mod keys;
mod read;
mod upstreams;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use self::addresses::GivenAddresses;
use self::counts::{GivenRows, TakenCounts};
use self::keys::{GivenKeys, TakenKeys};
use self::read::{Amiss, Fields};
use self::upstreams::{GivenUpstreams, TakenUpstreams};
use super::access_log::AccessLog;
use super::handover::predecessor::Gift;
use crate::base::clock::{Moment, Timestamp, WallTime};
use crate::base::units::counted;
use crate::net::tls::Store;
use crate::proxy::core::{Padded, Shared};
use crate::proxy::plan::Plan;

/// The version of the messages. One that only adds fields does not need a new number.
const VERSION: u64 = 1;
/// Longest message that is read, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// For so long the old process keeps a call for every connection; later only for those that idle,
/// since all others have been told by then that they end.
const GRACE: Duration = Duration::from_secs(3);
/// A message that is older than this was written by another clock.
const AGE_MAX: Duration = Duration::from_secs(60);

/// The end of the process that hands over.
pub struct Giver {
    shared: Arc<Shared>,
    access_log: Option<AccessLog>,
    /// The plan in force at the giving.
    plan: Arc<Plan>,
    begun: Moment,
    keys: GivenKeys,
    addresses: GivenAddresses,
    upstreams: GivenUpstreams,
    rows: GivenRows,
    /// The sums of the process as they were last told.
    told: Value,
}

impl Giver {
    /// Gives everything away; from now on this process lets in what it has kept, and no more.
    ///
    /// Shape: also the first message.
    #[must_use]
    pub fn give(
        shared: Arc<Shared>,
        tls: Option<&Store>,
        access_log: Option<AccessLog>,
    ) -> (Self, Vec<u8>) {
        let (plan, _) = shared.slot.plan();
        let now = now(&shared);
        let most = open(&shared);
        let (keys, keys_list) = GivenKeys::give(&plan, most, now);
        let (addresses, address_list) = GivenAddresses::give(&plan, now.steady);
        let (upstreams, upstream_list) = GivenUpstreams::give(&plan, now.steady);
        let (begun, rows) = (now.steady, GivenRows::default());
        let told = Value::Null;
        let mut giver =
            Self { shared, access_log, plan, begun, keys, addresses, upstreams, rows, told };
        let mut message = giver.message(now);
        giver.told = message["counters"].clone();
        message["keys"] = keys_list;
        message["addresses"] = address_list;
        message["upstreams"] = upstream_list;
        message["groups"] = upstreams::give_groups(&giver.plan);
        message["tickets"] = json!(tls.map(|tls| STANDARD.encode(tls.tickets().give())));
        (giver, bytes(&message))
    }

    /// A message with what every one has.
    fn message(&mut self, now: Timestamp) -> Value {
        let lost = self.access_log.as_ref().map_or(0, AccessLog::lost);
        json!({
            "version": VERSION,
            "wall": now.wall.as_nanos(),
            "counters": counts::give(&self.shared, lost),
            "rows": self.rows.changed(&self.shared),
        })
    }
}

impl Gift for Giver {
    fn later(&mut self, last: bool) -> Vec<u8> {
        let now = now(&self.shared);
        let most = match now.steady.since(self.begun) < GRACE {
            _ if last => 0,
            true => open(&self.shared),
            false => idle(&self.shared),
        };
        let mut message = self.message(now);
        message["last"] = json!(last);
        message["keys"] = self.keys.later(most, last, now.steady);
        message["addresses"] = self.addresses.later(&self.plan, now.steady);
        message["upstreams"] = self.upstreams.later(&self.plan, last);
        let lists = ["keys", "addresses", "upstreams", "rows"];
        let is_empty = |list: &str| message[list].as_array().is_some_and(Vec::is_empty);
        let same =
            std::mem::replace(&mut self.told, message["counters"].clone()) == message["counters"];
        if same && !last && lists.into_iter().all(is_empty) {
            return Vec::new();
        }
        bytes(&message)
    }

    fn keep(self: Box<Self>) {
        let Self { keys, plan, shared, .. } = *self;
        keys.keep(&plan, now(&shared));
    }
}

fn bytes(message: &Value) -> Vec<u8> {
    message.to_string().into_bytes()
}

fn now(shared: &Shared) -> Timestamp {
    let clock = &shared.notifier.clock;
    clock.both(clock.at(Instant::now()))
}

/// Connections that clients have here, each stream of HTTP/2 as one.
fn open(shared: &Shared) -> u32 {
    shared.connections.load(Relaxed).saturating_add(shared.streams.load(Relaxed))
}

/// Those of them on which nothing is in flight, as of the last tick of each core.
fn idle(shared: &Shared) -> u32 {
    shared.idle.iter().map(|Padded(idle)| idle.count()).fold(0, u32::saturating_add)
}

/// Says whether what the process before has let in is still to come. Calls that count towards a
/// limit wait as long; whoever says `true` must say `false` in any event.
pub(super) fn await_state(shared: &Shared, awaited: bool) {
    for listener in &shared.slot.plan().0.listeners {
        if let Some(limit) = &listener.ip_limit {
            limit.table.set_awaited(awaited);
        }
    }
    shared.before.set_awaited(awaited);
    if !awaited {
        shared.notifier.wake_all();
    }
}

/// The end of the process that takes over; dropping it ends what it waits for.
pub struct Taker {
    shared: Arc<Shared>,
    tls: Option<Arc<Store>>,
    heard: Mutex<Heard>,
}

/// What has been heard so far.
#[derive(Default)]
struct Heard {
    begun: bool,
    ended: bool,
    has_addresses: bool,
    keys: TakenKeys,
    upstreams: TakenUpstreams,
    counts: TakenCounts,
}

impl Taker {
    /// Takes over for a server; calls that count wait from now on until the first `take`, or until
    /// `give_up`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, tls: Option<Arc<Store>>) -> Self {
        await_state(&shared, true);
        Self { shared, tls, heard: Mutex::default() }
    }

    /// Takes a message: the first with everything, later ones with what has changed. Returns a line
    /// for the operator.
    ///
    /// Errors: it is no such message, or comes after the end; nothing has changed.
    pub fn take(&self, message: &[u8]) -> Result<String, String> {
        if message.len() > MESSAGE_BYTES_MAX {
            let len = message.len();
            return Err(format!("state of {len} bytes: over {MESSAGE_BYTES_MAX} are not taken"));
        }
        let amiss = Amiss::default();
        let value: Value = serde_json::from_slice(message)
            .map_err(|error| format!("the state cannot be read: {error}"))?;
        let Some(fields) = Fields::of(&value, "the state", &amiss) else {
            return Err(amiss.told());
        };
        let version = fields.number("version");
        if version == 0 {
            return Err("the state has no version".to_owned());
        }
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.ended {
            return Err("the state came after its process had ended".to_owned());
        }
        let taken = match std::mem::replace(&mut heard.begun, true) {
            false => self.take_all(&mut heard, fields),
            true => self.hear(&mut heard, fields),
        };
        drop(heard);
        match self.shared.before.is_awaited() {
            true => await_state(&self.shared, false),
            false => self.shared.notifier.wake_all(),
        }
        let mut line = taken;
        if version > VERSION {
            line = format!("{line} (of version {version}, this is {VERSION})");
        }
        let told = amiss.told();
        Ok(if told.is_empty() { line } else { format!("{line}; {told}") })
    }

    fn take_all(&self, heard: &mut Heard, fields: Fields<'_>) -> String {
        let (plan, _) = self.shared.slot.plan();
        let now = now(&self.shared);
        let written = WallTime::from_nanos(fields.number("wall"));
        let age = Some(now.wall.since(written)).filter(|age| *age <= AGE_MAX).unwrap_or_default();
        let keys = heard.keys.take(&plan, fields, age, now);
        // A table that has been asked already goes by a chance of its own.
        let addresses = match self.shared.before.is_awaited() {
            true => addresses::take(&plan, fields, age, now.steady),
            false => 0,
        };
        heard.has_addresses = self.shared.before.is_awaited();
        let upstreams = heard.upstreams.take(&plan, fields, age, now.steady);
        let rows = heard.counts.hear(&self.shared, fields);
        let tickets = self.take_tickets(fields);
        let parts = [
            counted(upstreams, "upstream"),
            counted(keys, "limited key"),
            counted(addresses, "client rate"),
            counted(tickets, "ticket key"),
            counted(rows, "metrics row"),
        ];
        parts.join(", ")
    }

    fn take_tickets(&self, fields: Fields<'_>) -> usize {
        let text = fields.text("tickets");
        let Some(tls) = self.tls.as_ref().filter(|_| !text.is_empty()) else { return 0 };
        let bytes = STANDARD.decode(text).ok();
        let taken = bytes.and_then(|bytes| tls.tickets().inherit(&bytes));
        if taken.is_none() {
            fields.leave_out(|| "the keys of TLS tickets: they are none".to_owned());
        }
        taken.unwrap_or(0)
    }

    fn hear(&self, heard: &mut Heard, fields: Fields<'_>) -> String {
        let (plan, _) = self.shared.slot.plan();
        let now = now(&self.shared);
        heard.keys.later(&plan, fields, now);
        if heard.has_addresses {
            addresses::take(&plan, fields, Duration::ZERO, now.steady);
        }
        heard.upstreams.later(&plan, fields);
        heard.counts.hear(&self.shared, fields);
        match fields.is("last") {
            true => "the process before has told the last of its state".to_owned(),
            false => "the process before has told what changed".to_owned(),
        }
    }

    /// The state cannot be taken: what comes later is about what is not known here.
    pub fn go_without(&self) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).begun = true;
        self.give_up();
    }

    /// Waits no more for the state: calls that count are let in, by the counts of this process.
    pub fn give_up(&self) {
        if self.shared.before.is_awaited() {
            await_state(&self.shared, false);
        }
    }

    /// The process before has ended, or the connection to it has: nothing is in flight there, and
    /// what it kept counts as used.
    pub fn end(&self) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if !std::mem::replace(&mut heard.ended, true) {
            let (plan, _) = self.shared.slot.plan();
            keys::end(&plan, now(&self.shared));
            upstreams::end(&plan);
            self.give_up();
            self.shared.notifier.wake_all();
        }
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.end();
    }
}
