//! A rate for each client address, in one table for all cores.
//!
//! The table has a fixed size and no lock. It is set-associative, like a processor's cache: the
//! hash of an address chooses one line of eight words, and each word is a whole bucket, the tag
//! of an address and its `due` (see `gcra`), changed by compare-and-swap. A map behind a lock
//! would be simpler and would stall every core behind the one that was just preempted; per-core
//! tables would give each client as many rates as there are cores.
//!
//! Many addresses cannot make it grow. When a line is full, the newcomer takes the place of the
//! bucket that is nearest to being full again, which forgets least; so nobody is locked out by
//! others, a newcomer least of all. An attacker with more addresses than words gets what that
//! many addresses may have, and the buckets that it has emptied are the last to be forgotten.
//! The hash is keyed by chance, so nobody can choose whose line and tag he shares; two addresses
//! share a bucket by accident with a chance of 2^-24 times eight for each newcomer.
//!
//! An IPv6 client is its /64: whoever has one address of it has all.
//!
//! A process that takes over from another is told the chance and the fullest buckets (`ahead`), and
//! takes both (`inherit`) before it asks the table for the first time: until then `is_awaited`.

use std::collections::hash_map::DefaultHasher;
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, Ordering::Relaxed};
use std::time::Duration;

use super::gcra::Pace;
use crate::base::clock::Moment;

/// Lines of a table.
const LINES: usize = 8192;
/// Words of a line: one line of the processor's cache.
const WAYS: usize = 8;
/// Bits of a word that hold `due`, in microseconds; it wraps after 12 days.
const DUE_BITS: u32 = 40;
const DUE_MASK: u64 = (1 << DUE_BITS) - 1;
const TICKS_PER_SECOND: u64 = 1_000_000;

/// The rate of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpPace(Pace);

impl IpPace {
    /// Makes a rate; the ranges are those of `Pace`.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self(Pace::in_ticks(per_second, burst, TICKS_PER_SECOND))
    }
}

/// The buckets of all addresses.
#[derive(Debug)]
pub struct IpTable {
    lines: Box<[Line]>,
    /// What the hash of an address begins with; nobody outside knows it.
    chance: [AtomicU64; 2],
    /// The process before has not yet told what addresses have had there.
    awaited: AtomicBool,
}

/// One bucket as another process is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpBucket {
    /// How far it is ahead of now.
    pub ahead: Duration,
    /// The word in which it is: line and tag.
    pub at: (u32, u32),
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([AtomicU64; WAYS]);

impl IpTable {
    /// Makes an empty table; `hasher` is its chance.
    #[must_use]
    pub fn new(hasher: RandomState) -> Self {
        let chance = [0u8, 1].map(|part| AtomicU64::new(hasher.hash_one(part)));
        let lines = (0..LINES).map(|_| Line::default()).collect();
        Self { lines, chance, awaited: AtomicBool::new(false) }
    }

    /// Whether nothing may be taken yet: what addresses have had is still to be told.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }

    /// Says whether what addresses have had is still to be told.
    pub fn set_awaited(&self, awaited: bool) {
        self.awaited.store(awaited, Ordering::Release);
    }

    /// By what the table hashes; for the process that comes next, and nobody else.
    #[must_use]
    pub fn chance(&self) -> [u64; 2] {
        self.chance.each_ref().map(|part| part.load(Relaxed))
    }

    /// The buckets that are not full, the emptiest first, `most` at most.
    #[must_use]
    pub fn buckets(&self, pace: &IpPace, most: usize, now: Moment) -> Vec<IpBucket> {
        let now = now.as_micros();
        let mut all = Vec::new();
        for (number, line) in self.lines.iter().enumerate() {
            for word in &line.0 {
                let word = word.load(Relaxed);
                let ahead = ahead(word, now, pace);
                if ahead > 0 {
                    let at = (number as u32, tag_of(word) as u32);
                    all.push(IpBucket { ahead: Duration::from_micros(ahead), at });
                }
            }
        }
        all.sort_unstable_by_key(|bucket| std::cmp::Reverse(*bucket));
        all.truncate(most);
        all
    }

    /// Takes over the chance of another table; what is in this one is nobody's any more.
    pub fn inherit(&self, chance: [u64; 2]) {
        self.chance.iter().zip(chance).for_each(|(part, value)| part.store(value, Relaxed));
    }

    /// Adds what another process has taken out of a bucket, as the time that it is worth.
    ///
    /// Shape: nothing happens when there is no such line.
    pub fn charge(&self, at: (u32, u32), cost: Duration, pace: &IpPace, now: Moment) {
        let now = now.as_micros();
        let cost = u64::try_from(cost.as_micros()).unwrap_or(u64::MAX);
        let tag = u64::from(at.1) & (u64::MAX >> DUE_BITS);
        let Some(line) = self.lines.get(at.0 as usize).filter(|_| tag > 0) else { return };
        loop {
            let (word, seen) = line.find(tag, now, pace);
            let before = if tag_of(seen) == tag { ahead(seen, now, pace) } else { 0 };
            let next = before.saturating_add(cost).min(pace.0.ahead_max());
            if word.compare_exchange(seen, pack(tag, now + next), Relaxed, Relaxed).is_ok() {
                return;
            }
        }
    }

    /// Takes one call out of an address's bucket.
    ///
    /// Errors: the time until a call would pass; nothing has been taken.
    pub fn take(&self, ip: IpAddr, pace: &IpPace, now: Moment) -> Result<(), Duration> {
        let now = now.as_micros();
        let (line, tag) = self.place(ip);
        loop {
            let (word, seen) = line.find(tag, now, pace);
            let due = if tag_of(seen) == tag { now + ahead(seen, now, pace) } else { now };
            let next = pace.0.decide(due, now).map_err(Duration::from_micros)?;
            if word.compare_exchange(seen, pack(tag, next), Relaxed, Relaxed).is_ok() {
                return Ok(());
            }
            // Another core was faster in this line: look again.
        }
    }

    /// The line of an address and its tag, which is never 0.
    fn place(&self, ip: IpAddr) -> (&Line, u64) {
        let mut hasher = DefaultHasher::new();
        self.chance().hash(&mut hasher);
        network(ip).hash(&mut hasher);
        let hash = hasher.finish();
        // Tag and line come from different ends of the hash.
        (&self.lines[hash as usize % LINES], (hash >> DUE_BITS).max(1))
    }
}

/// What the addresses of one client have in common.
pub fn network(ip: IpAddr) -> (u8, u64) {
    match ip.to_canonical() {
        IpAddr::V4(ip) => (4, u64::from(ip.to_bits())),
        IpAddr::V6(ip) => (6, (ip.to_bits() >> 64) as u64),
    }
}

impl Line {
    /// The word of a tag, or the word that forgets least when it is overwritten.
    fn find(&self, tag: u64, now: u64, pace: &IpPace) -> (&AtomicU64, u64) {
        let mut best = (&self.0[0], 0, u64::MAX);
        for word in &self.0 {
            let seen = word.load(Relaxed);
            if tag_of(seen) == tag {
                return (word, seen);
            }
            let left = ahead(seen, now, pace);
            if left < best.2 {
                best = (word, seen, left);
            }
        }
        (best.0, best.1)
    }
}

/// How far a word's `due` is ahead of now, microseconds; 0 for what is over or was never used.
fn ahead(word: u64, now: u64, pace: &IpPace) -> u64 {
    let ahead = (word & DUE_MASK).wrapping_sub(now) & DUE_MASK;
    // More than a bucket can hold is the past, seen through the wrap.
    if ahead <= pace.0.ahead_max() { ahead } else { 0 }
}

fn tag_of(word: u64) -> u64 {
    word >> DUE_BITS
}

fn pack(tag: u64, due: u64) -> u64 {
    tag << DUE_BITS | due & DUE_MASK
}

#[cfg(test)]
mod tests {
    use super::super::gcra::Bucket;
    use super::*;
    use proptest::prelude::*;

    /// Addresses that a table can tell apart at a time.
    const ADDRESSES_MAX: usize = LINES * WAYS;
    use std::collections::HashMap;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const NOW: Moment = Moment::from_secs(1_700_000_000);

    fn table() -> IpTable {
        IpTable::new(RandomState::new())
    }

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(number))
    }

    fn passed(table: &IpTable, ip: IpAddr, pace: &IpPace, now: Moment, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(table.take(ip, pace, now).is_ok())).sum()
    }

    #[test]
    fn another_table_goes_on_where_one_was() {
        let (old, pace) = (table(), IpPace::new(1, 5));
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let take = |table: &IpTable, last: u8, now: Moment| {
            (0..9).filter(|_| table.take(ip(last), &pace, now).is_ok()).count()
        };
        let then = Moment::from_secs(1000);
        assert_eq!(take(&old, 1, then), 5);
        assert!(old.take(ip(2), &pace, then).is_ok());
        let buckets = old.buckets(&pace, 9, then);
        assert_eq!(buckets.iter().map(|one| one.ahead.as_secs()).collect::<Vec<_>>(), [5, 1]);
        assert_eq!(old.buckets(&pace, 1, then), buckets[..1], "the emptiest");
        // Another process, with another origin.
        let (new, now) = (table(), Moment::from_secs(3));
        new.inherit(old.chance());
        buckets.iter().for_each(|one| new.charge(one.at, one.ahead, &pace, now));
        assert_eq!((take(&new, 1, now), take(&new, 2, now), take(&new, 3, now)), (0, 4, 5));
        // What is no line or no tag is nobody's.
        new.charge((u32::MAX, 1), Duration::MAX, &pace, now);
        new.charge((0, 0), Duration::MAX, &pace, now);
        new.charge(buckets[0].at, Duration::MAX, &pace, now);
        assert_eq!(
            take(&new, 1, now + Duration::from_secs(5)),
            5,
            "locked out for a burst at most"
        );
    }

    #[test]
    fn each_address_has_its_own_bucket() {
        let (table, pace) = (table(), IpPace::new(10, 3));
        assert_eq!(passed(&table, v4(1), &pace, NOW, 9), 3);
        assert_eq!(passed(&table, v4(2), &pace, NOW, 9), 3);
        assert_eq!(table.take(v4(1), &pace, NOW), Err(Duration::from_millis(100)));
        assert_eq!(passed(&table, v4(1), &pace, NOW + Duration::from_millis(100), 9), 1);
    }

    #[test]
    fn an_ipv6_client_is_its_64() {
        let (table, pace) = (table(), IpPace::new(1, 2));
        let of = |network: u128, host: u128| IpAddr::V6(Ipv6Addr::from_bits(network << 64 | host));
        assert_eq!(passed(&table, of(7, 1), &pace, NOW, 1), 1);
        assert_eq!(passed(&table, of(7, u128::from(u64::MAX)), &pace, NOW, 9), 1);
        assert_eq!(passed(&table, of(8, 1), &pace, NOW, 9), 2);
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        let (table, pace) = (table(), IpPace::new(1, 2));
        assert_eq!(passed(&table, v4(0x0102_0304), &pace, NOW, 1), 1);
        let mapped = IpAddr::V6(Ipv4Addr::new(1, 2, 3, 4).to_ipv6_mapped());
        assert_eq!(passed(&table, mapped, &pace, NOW, 9), 1);
    }

    #[test]
    fn four_threads_get_the_burst_and_no_more() {
        for ip in 0..20 {
            let (table, pace) = (table(), IpPace::new(1, 100));
            let admitted: u32 = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| passed(&table, v4(ip), &pace, NOW, 250)))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(admitted, 100);
        }
    }

    #[test]
    fn a_flood_of_addresses_locks_nobody_out() {
        let (table, pace) = (table(), IpPace::new(1, 5));
        // Ten times as many addresses as there are words, every one of them drained.
        for ip in 0..10 * ADDRESSES_MAX as u32 {
            passed(&table, v4(0x4000_0000 + ip), &pace, NOW, 6);
        }
        for ip in 0..1000 {
            assert!(table.take(v4(ip), &pace, NOW).is_ok(), "{ip}");
        }
    }

    #[test]
    fn a_flood_of_addresses_does_not_refill_a_drained_bucket() {
        let (table, pace) = (table(), IpPace::new(1, 50));
        assert_eq!(passed(&table, v4(1), &pace, NOW, 60), 50);
        for ip in 0..2 * ADDRESSES_MAX as u32 {
            table.take(v4(0x4000_0000 + ip), &pace, NOW).unwrap();
        }
        assert_eq!(passed(&table, v4(1), &pace, NOW, 60), 0);
    }

    #[test]
    fn what_was_drained_before_the_clock_wrapped_is_full_again() {
        let (table, pace) = (table(), IpPace::new(1, 5));
        assert_eq!(passed(&table, v4(1), &pace, NOW, 9), 5);
        let days = |n: u64| NOW + Duration::from_secs(n * 86_400);
        assert_eq!(passed(&table, v4(1), &pace, days(8), 9), 5);
        assert_eq!(passed(&table, v4(1), &pace, days(21), 9), 5);
    }

    #[test]
    fn the_slowest_and_the_fastest_rate_hold() {
        for (per_second, burst) in [(1, 20_000), (10_000, 1), (10_000, 20_000)] {
            let (table, pace) = (table(), IpPace::new(per_second, burst));
            assert_eq!(passed(&table, v4(1), &pace, NOW, 20_001), burst);
            let later = NOW + Duration::from_secs(1);
            assert_eq!(passed(&table, v4(1), &pace, later, 20_000), per_second.min(burst));
        }
    }

    proptest! {
        /// The oracle: a map of buckets that never forgets.
        #[test]
        fn agrees_with_a_map_of_buckets(
            per_second in prop::sample::select(vec![1u32, 10, 100, 1000]), burst in 1u32..6,
            calls in prop::collection::vec((0u32..30, 0u64..2_000_000), 1..300),
        ) {
            let (table, pace) = (table(), IpPace::new(per_second, burst));
            let slow = Pace::new(per_second, burst);
            let mut buckets: HashMap<u32, Bucket> = HashMap::new();
            let mut now = NOW;
            for (ip, gap_us) in calls {
                now = now + Duration::from_micros(gap_us);
                let expected = buckets.entry(ip).or_default().take(&slow, now);
                prop_assert_eq!(table.take(v4(ip), &pace, now), expected);
            }
        }
    }
}
