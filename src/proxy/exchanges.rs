//! A core's exchanges in flight, for an operator who looks at them or cancels one.
//!
//! An exchange puts its record here when it begins and takes it away when it ends, where there is an
//! operator's interface; without one it comes by for a comparison. Who looks asks the core by a
//! message and finds the list in `Lists`, so nobody else ever touches a record.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::plan::LocalPlan;
use crate::base::clock::Moment;
use crate::base::slab::Slab;
use crate::net::stream::Handle;
use crate::net::sys::Shut;
use crate::telemetry::in_flight::{InFlight, phase};
use crate::telemetry::record::{Facts, Record};

/// The exchanges of one core.
#[derive(Default)]
pub struct Exchanges(RefCell<Slab<Entry>>);

/// A place in the table; without a record it is free.
struct Entry {
    exchange: Option<Listed>,
    uses: u32,
}

struct Listed {
    record: Rc<Record>,
    plan: LocalPlan,
    client: Handle,
}

impl Exchanges {
    /// Lists an exchange; `client` ends its connection or stream. Returns its slot.
    pub fn enter(&self, record: Rc<Record>, plan: LocalPlan, client: Handle) -> u32 {
        let exchange = Some(Listed { record, plan, client });
        self.0.borrow_mut().insert(|before| {
            let uses = before.map_or(0, |before| before.uses.wrapping_add(1));
            Entry { exchange, uses }
        })
    }

    /// Takes an exchange off the list.
    pub fn leave(&self, slot: u32) {
        let mut entries = self.0.borrow_mut();
        if let Some(entry) = entries.find_mut(slot) {
            entry.exchange = None;
            entries.free(slot);
        }
    }

    /// Ends the client's connection or stream of an exchange, which then ends as if the client had
    /// left; one that has ended already is not there any more.
    #[cold]
    pub fn cancel(&self, slot: u32, uses: u32) {
        let entries = self.0.borrow();
        let entry = entries.find(slot).filter(|entry| entry.uses == uses);
        if let Some(exchange) = entry.and_then(|entry| entry.exchange.as_ref()) {
            exchange.client.shutdown(Shut::Both);
        }
    }

    /// All exchanges of this core, with their names.
    #[cold]
    ///
    /// Shape: `core` is the number of the core.
    pub fn list(&self, core: usize, now: Moment) -> Vec<InFlight> {
        let entries = self.0.borrow();
        let all = (0u32..).zip(entries.entries());
        let listed = all.filter_map(|(slot, entry)| {
            let Listed { record, plan, .. } = entry.exchange.as_ref()?;
            let index = u32::try_from(core).unwrap_or(u32::MAX);
            let id = [index, slot, entry.uses];
            Some(record.with(|facts| in_flight(plan, facts, id, now)))
        });
        listed.collect()
    }
}

fn in_flight(plan: &LocalPlan, facts: &Facts, id: [u32; 3], now: Moment) -> InFlight {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let group = facts.group.and_then(|number| plan.groups.get(usize::from(number)));
    let upstream = facts.upstream.and_then(|number| plan.upstreams.get(usize::from(number)));
    let key = facts.key.and_then(|number| plan.limits.get(number as usize));
    let listener = plan.listeners.get(usize::from(facts.listener));
    InFlight {
        id,
        request_id: facts.id.as_ref().map_or(String::new(), |id| id.as_str().to_owned()),
        age: now.since(facts.begun),
        client: facts.client,
        listener: listener.map_or(String::new(), |one| one.name.to_string()),
        key: key.map_or(String::new(), |one| one.name.to_string()),
        method: text(facts.method()),
        path: text(facts.path()),
        model: text(facts.model()),
        group: group.map_or(String::new(), |one| one.name.to_string()),
        upstream: upstream.map_or(String::new(), |one| one.name.to_string()),
        phase: phase(facts),
        attempts: facts.outcome.attempts,
        response_bytes: facts.outcome.response_bytes,
        first_token: facts.outcome.first_token_us.map(Duration::from_micros),
    }
}

/// Where each core puts its list when it is asked.
#[derive(Default)]
pub struct Lists(Vec<Mutex<Answer>>);

/// The list of one core, and by which question it was made.
#[derive(Default)]
struct Answer {
    number: u64,
    list: Vec<InFlight>,
}

impl Lists {
    /// Places for this many cores.
    #[must_use]
    pub fn new(cores: usize) -> Self {
        Self((0..cores).map(|_| Mutex::default()).collect())
    }

    /// Puts a core's list in its place, as the answer to that question.
    #[cold]
    pub fn answer(&self, core: usize, number: u64, list: Vec<InFlight>) {
        if let Some(place) = self.0.get(core) {
            // Stored whole: a thread that panicked meanwhile left nothing half done.
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Answer { number, list };
        }
    }

    /// The lists of all cores that have answered that question or a later one, and whether all have.
    #[must_use]
    pub fn gather(&self, number: u64) -> (Vec<InFlight>, bool) {
        let (mut all, mut complete) = (Vec::new(), true);
        for place in &self.0 {
            let answer = place.lock().unwrap_or_else(PoisonError::into_inner);
            match answer.number >= number {
                true => all.extend(answer.list.iter().cloned()),
                false => complete = false,
            }
        }
        (all, complete)
    }
}
