//! What a run has counted, for the scenarios to judge.

use std::collections::BTreeMap;

use crate::clock::SECOND;
use crate::setup::Setup;

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ended {
    /// With a whole good response.
    Whole,
    /// With an error status of the server.
    Status(u16),
    /// No connection, or one that died before the head.
    Unreachable,
    /// No head in time.
    TimedOut,
    /// In the middle of the body.
    Broken,
    /// Nobody was available.
    Unavailable,
    /// Waited too long in the queue, or found it full.
    Overdue,
    /// Refused by a limit of its key.
    Limited,
    /// The client left.
    Left,
}

/// Counts of one run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    /// Exchanges begun, per key.
    pub(crate) arrived: Vec<u64>,
    /// How they ended, per key.
    pub(crate) ended: Vec<BTreeMap<Ended, u64>>,
    /// Exchanges that were sent to a server at least once.
    pub(crate) sent: u64,
    /// Retries on other members.
    pub(crate) retries: u64,
    /// Attempts per server and second.
    pub(crate) dispatched: Vec<Vec<u64>>,
    /// Most in flight per server and second.
    pub(crate) in_flight_most: Vec<Vec<u32>>,
    /// Slot-microseconds used per server.
    pub(crate) busy_us: Vec<u64>,
    /// Longest time from arrival to end.
    pub(crate) longest_us: u64,
    /// Times that an exchange entered the queue.
    pub(crate) waited: u64,
    /// Times that one got a slot there while clients still sent, per key.
    pub(crate) granted: Vec<u64>,
    /// Waits that ended with a slot, and what had been forecast for them, per key.
    pub(crate) waits: Vec<Vec<(u64, u32)>>,
    /// Calls that went where a breaker refuses.
    pub(crate) last_resorts: u64,
    /// Times that a prober changed its mind.
    pub(crate) health_changes: u64,
}

impl Report {
    /// An empty one.
    pub(crate) fn new(setup: &Setup) -> Report {
        let (servers, keys) = (setup.servers.len(), setup.keys.len());
        Report {
            arrived: vec![0; keys],
            granted: vec![0; keys],
            waits: vec![Vec::new(); keys],
            ended: vec![BTreeMap::new(); keys],
            dispatched: vec![Vec::new(); servers],
            in_flight_most: vec![Vec::new(); servers],
            ..Report::default()
        }
    }

    pub(crate) fn arrived(&mut self, key: usize) {
        self.arrived[key] += 1;
    }

    pub(crate) fn ended(&mut self, key: usize, ended: Ended, took_us: u64) {
        *self.ended[key].entry(ended).or_default() += 1;
        self.longest_us = self.longest_us.max(took_us);
    }

    pub(crate) fn granted(&mut self, key: usize, open: bool, waited_us: u64, forecast_s: u32) {
        self.granted[key] += u64::from(open);
        self.waits[key].push((waited_us, forecast_s));
    }

    pub(crate) fn dispatched(&mut self, server: usize, now_us: u64, in_flight: u32) {
        let second = (now_us / SECOND) as usize;
        let (counts, most) = (&mut self.dispatched[server], &mut self.in_flight_most[server]);
        if counts.len() <= second {
            counts.resize(second + 1, 0);
            most.resize(second + 1, 0);
        }
        counts[second] += 1;
        most[second] = most[second].max(in_flight);
    }

    /// Exchanges that ended so, over all keys.
    pub(crate) fn count(&self, ended: Ended) -> u64 {
        self.ended.iter().filter_map(|counts| counts.get(&ended)).sum()
    }

    /// Exchanges that have not ended.
    pub(crate) fn unsettled(&self) -> u64 {
        let ended: u64 = self.ended.iter().flat_map(BTreeMap::values).sum();
        self.arrived.iter().sum::<u64>() - ended
    }

    /// Exchanges begun, over all keys.
    pub(crate) fn all(&self) -> u64 {
        self.arrived.iter().sum()
    }

    /// Attempts at a server within these seconds, the last not included.
    pub(crate) fn attempts(&self, server: usize, seconds: std::ops::Range<usize>) -> u64 {
        self.dispatched[server].iter().take(seconds.end).skip(seconds.start).sum()
    }

    /// Most in flight at a server within these seconds.
    pub(crate) fn most(&self, server: usize, seconds: std::ops::Range<usize>) -> u32 {
        let within = self.in_flight_most[server].iter().take(seconds.end).skip(seconds.start);
        within.copied().max().unwrap_or(0)
    }
}
