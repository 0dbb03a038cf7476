//! The wait queue of one group: who gets the next free slot.
//!
//! Priority decides first, strictly: nobody of a lower one is served while somebody of a
//! higher one could be. Inside a priority the keys that have someone waiting take turns,
//! each as many times in a row as its weight; inside a key, first come, first served. A key
//! with a thousand requests in the queue therefore delays another key's only one by a single
//! turn. After Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin"
//! (1995), with requests of size one.
//!
//! A waiter may be unable to use the slot that came free (it has tried that server before):
//! `find` takes the first in order that can, and the others keep their places.
//!
//! When the queue is full its places belong to all: a newcomer of a higher priority, or of a key
//! that would not have more of them than the largest has then, gets the place of the last of that
//! largest share (`displaced_by`). Nobody is displaced for one who would be no better.
//!
//! Entering, being granted and leaving take constant time but for two walks that are short in
//! this house: over the priorities that are waiting now, and, for a deadline earlier than that
//! of others already here, over those others. Nothing is allocated once the queue has been as
//! full as it gets. It knows no slots, no threads and no clock: `upstream::wait_queue` joins those.

mod drain;
mod list;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::time::Duration;

use drain::Drain;
use list::{Linked, Links, List, NIL};

use crate::base::clock::{Moment, seconds_up};
use crate::base::slab::Slab;

/// Seconds that `retry_after_s` says at most.
pub const RETRY_AFTER_S_MAX: u32 = 3600;

/// Names one stay in the queue; never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct WaitId {
    index: u32,
    generation: u32,
}

impl WaitId {
    /// Its place in tables kept beside the queue: below `length`, and nobody else's meanwhile.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// Most keys of a priority among which the largest share is looked for.
const FLOWS_COMPARED_MAX: usize = 256;

/// Nobody else may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// On whose behalf somebody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Whose turn it takes.
    pub key: u32,
    /// Higher goes first.
    pub priority: i32,
    /// Turns in a row, at least 1.
    pub weight: u32,
}

impl Share {
    /// The share of a key among equals.
    #[must_use]
    pub fn of(key: u32, priority: i32) -> Share {
        Share { key, priority, weight: 1 }
    }
}

/// The wait queue.
///
/// `len <= length` unless the length was lowered; a level is listed exactly while it lists a flow, and a flow exactly while
/// it lists a waiter.
#[derive(Debug)]
pub struct Queue {
    length: u32,
    len: u32,
    waiters: Slab<Waiter>,
    flows: Slab<Flow>,
    levels: Slab<Level>,
    /// Levels with somebody waiting, the highest first.
    order: List<0>,
    /// All waiters, the earliest deadline first.
    deadlines: List<1>,
    /// Flows by priority and key.
    known: HashMap<(i32, u32), u32>,
    drain: Drain,
}

/// One stay.
#[derive(Debug)]
struct Waiter {
    in_flow: Links,
    in_deadlines: Links,
    /// Changes when the place is left; odd while it is taken.
    generation: u32,
    flow: u32,
    deadline: Moment,
}

/// Those of one key and priority, in order of arrival.
#[derive(Debug)]
struct Flow {
    in_level: Links,
    waiters: List<0>,
    /// How many they are.
    len: u32,
    key: u32,
    level: u32,
    weight: u32,
    /// Turns left before the next key; 0 = its round has not begun.
    turns: u32,
}

/// Those of one priority, whose turn it is first.
#[derive(Debug)]
struct Level {
    in_order: Links,
    flows: List<0>,
    priority: i32,
}

impl Queue {
    /// A queue for `length` waiters; 0 = nobody may wait.
    #[must_use]
    pub fn new(length: u32) -> Queue {
        Queue {
            length,
            len: 0,
            waiters: Slab::new(),
            flows: Slab::new(),
            levels: Slab::new(),
            order: List::EMPTY,
            deadlines: List::EMPTY,
            known: HashMap::new(),
            drain: Drain::default(),
        }
    }

    /// Changes for how many there is place. More who wait already stay, and until they are fewer
    /// nobody comes in.
    pub fn set_length(&mut self, length: u32) {
        self.length = length;
    }

    /// The measured rate: grants, and the time for which somebody waited, both as weighted.
    #[must_use]
    pub fn measured(&self) -> (f64, Duration) {
        self.drain.measured()
    }

    /// Goes on from the rate that another process measured.
    pub fn resume(&mut self, grants: f64, waited: Duration) {
        self.drain.resume(grants, waited);
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Tells whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes a place behind those of the same key and priority.
    ///
    /// Units: `deadline` is exclusive: at that time the wait is over. A later `weight` of a
    /// key counts for all of its waiters.
    pub fn enqueue(&mut self, share: Share, now: Moment, deadline: Moment) -> Result<WaitId, Full> {
        if self.len >= self.length {
            return Err(Full);
        }
        if self.len == 0 {
            self.drain.begin(now);
        }
        self.len += 1;
        let flow = self.flow_of(share);
        let index = self.waiters.insert(|freed| Waiter {
            in_flow: Links::FREE,
            in_deadlines: Links::FREE,
            generation: freed.map_or(1, |old| old.generation.wrapping_add(1)),
            flow,
            deadline,
        });
        let into = self.flows.at_mut(flow);
        into.len += 1;
        into.waiters.insert(&mut self.waiters, index, NIL);
        // From the end, since a queue's waits are nearly always equally long.
        let (mut behind, mut before) = (NIL, self.deadlines.tail());
        while before != NIL && self.waiters.at(before).deadline > deadline {
            (behind, before) = (before, List::<1>::before(&self.waiters, before));
        }
        self.deadlines.insert(&mut self.waiters, index, behind);
        Ok(WaitId { index, generation: self.waiters.at(index).generation })
    }

    /// Who has to leave a full queue for a newcomer: the last of the largest share of the lowest
    /// priority, unless that is above the newcomer's, or its own key would have more waiting than
    /// that share has then. Changes nothing.
    ///
    /// Of more than `FLOWS_COMPARED_MAX` keys those are compared whose turn it is first.
    #[must_use]
    pub fn displaced_by(&self, share: Share) -> Option<WaitId> {
        let lowest = self.order.tail();
        // Of more than may wait one that left would make no place.
        if self.len != self.length || lowest == NIL {
            return None;
        }
        let level = self.levels.at(lowest);
        let flows = level.flows.iter(&self.flows).take(FLOWS_COMPARED_MAX);
        // Of equals the one whose turn it is last.
        let (_, largest) = flows.max_by_key(|(_, flow)| flow.len)?;
        let own =
            self.known.get(&(share.priority, share.key)).map_or(0, |at| self.flows.at(*at).len);
        let gives_way = level.priority < share.priority
            || (level.priority == share.priority && own + 1 < largest.len);
        let index = largest.waiters.tail();
        gives_way.then(|| WaitId { index, generation: self.waiters.at(index).generation })
    }

    /// Finds who is next among those in time that `accepts` the slot; changes nothing.
    ///
    /// Every waiter in front of the one found is asked once.
    #[must_use]
    pub fn find(&self, now: Moment, mut accepts: impl FnMut(WaitId) -> bool) -> Option<WaitId> {
        for (_, level) in self.order.iter(&self.levels) {
            for (_, flow) in level.flows.iter(&self.flows) {
                for (index, waiter) in flow.waiters.iter(&self.waiters) {
                    let id = WaitId { index, generation: waiter.generation };
                    if waiter.deadline > now && accepts(id) {
                        return Some(id);
                    }
                }
            }
        }
        None
    }

    /// Lets a waiter go with a slot, and counts the turn against its key; `false` when it is not
    /// in the queue.
    pub fn grant(&mut self, id: WaitId, now: Moment) -> bool {
        if !self.is_waiting(id) {
            return false;
        }
        self.drain.record(now);
        let at = self.waiters.at(id.index).flow;
        let flow = self.flows.at_mut(at);
        if flow.turns == 0 {
            flow.turns = flow.weight;
        }
        flow.turns -= 1;
        if flow.turns == 0 {
            let level = self.levels.at_mut(flow.level);
            level.flows.remove(&mut self.flows, at);
            level.flows.insert(&mut self.flows, at, NIL);
        }
        self.remove(id.index);
        true
    }

    /// Takes a waiter out that has left; `false` when it is not in the queue.
    pub fn cancel(&mut self, id: WaitId, now: Moment) -> bool {
        if !self.is_waiting(id) {
            return false;
        }
        self.remove(id.index);
        if self.len == 0 {
            self.drain.end(now);
        }
        true
    }

    /// The earliest deadline of those waiting.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let index = self.deadlines.head();
        (index != NIL).then(|| self.waiters.at(index).deadline)
    }

    /// Tells whether this stay goes on.
    #[must_use]
    pub fn is_waiting(&self, id: WaitId) -> bool {
        id.generation % 2 == 1
            && self.waiters.find(id.index).is_some_and(|waiter| waiter.generation == id.generation)
    }

    /// Seconds after which a newcomer at the end would have its slot, `1..=RETRY_AFTER_S_MAX`.
    ///
    /// Shape: from the measured rate and those waiting now. Before the first grant nothing is
    /// measured; then it is the time until the next one here gives up, since that makes place.
    #[must_use]
    pub fn retry_after_s(&self, now: Moment) -> u32 {
        let newcomer = self.len.saturating_add(1);
        let wait = self.drain.forecast(newcomer, self.len > 0, now).unwrap_or_else(|| {
            self.next_deadline().map_or(Duration::ZERO, |deadline| deadline.since(now))
        });
        seconds_up(wait).clamp(1, RETRY_AFTER_S_MAX.into()) as u32
    }

    fn flow_of(&mut self, share: Share) -> u32 {
        let weight = share.weight.max(1);
        if let Some(&flow) = self.known.get(&(share.priority, share.key)) {
            self.flows.at_mut(flow).weight = weight;
            return flow;
        }
        let level = self.level_of(share.priority);
        let flow = self.flows.insert(|_| Flow {
            in_level: Links::FREE,
            waiters: List::EMPTY,
            len: 0,
            key: share.key,
            level,
            weight,
            turns: 0,
        });
        self.levels.at_mut(level).flows.insert(&mut self.flows, flow, NIL);
        self.known.insert((share.priority, share.key), flow);
        flow
    }

    fn level_of(&mut self, priority: i32) -> u32 {
        let lower = self.order.iter(&self.levels).find(|(_, level)| level.priority <= priority);
        let behind = match lower {
            Some((index, level)) if level.priority == priority => return index,
            Some((index, _)) => index,
            None => NIL,
        };
        let level =
            self.levels.insert(|_| Level { in_order: Links::FREE, flows: List::EMPTY, priority });
        self.order.insert(&mut self.levels, level, behind);
        level
    }

    /// Takes a waiter out of all lists, and what is empty then.
    fn remove(&mut self, index: u32) {
        let waiter = self.waiters.at_mut(index);
        waiter.generation = waiter.generation.wrapping_add(1);
        let at = waiter.flow;
        self.deadlines.remove(&mut self.waiters, index);
        let flow = self.flows.at_mut(at);
        flow.waiters.remove(&mut self.waiters, index);
        flow.len -= 1;
        self.waiters.free(index);
        self.len -= 1;
        if !flow.waiters.is_empty() {
            return;
        }
        let (key, level_at) = (flow.key, flow.level);
        let level = self.levels.at_mut(level_at);
        level.flows.remove(&mut self.flows, at);
        self.flows.free(at);
        self.known.remove(&(level.priority, key));
        if level.flows.is_empty() {
            self.order.remove(&mut self.levels, level_at);
            self.levels.free(level_at);
        }
    }
}

impl Linked<0> for Waiter {
    fn links(&self) -> &Links {
        &self.in_flow
    }
    fn links_mut(&mut self) -> &mut Links {
        &mut self.in_flow
    }
}

impl Linked<1> for Waiter {
    fn links(&self) -> &Links {
        &self.in_deadlines
    }
    fn links_mut(&mut self) -> &mut Links {
        &mut self.in_deadlines
    }
}

impl Linked<0> for Flow {
    fn links(&self) -> &Links {
        &self.in_level
    }
    fn links_mut(&mut self) -> &mut Links {
        &mut self.in_level
    }
}

impl Linked<0> for Level {
    fn links(&self) -> &Links {
        &self.in_order
    }
    fn links_mut(&mut self) -> &mut Links {
        &mut self.in_order
    }
}
