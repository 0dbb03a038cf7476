//! The process-wide budget of held body bytes (`limits.held_total`), and how bodies share it.
//!
//! A body is held while its model is unknown and while it may be needed for a retry. Small bodies
//! live in the receive buffer that every connection needs anyway and are not counted; for larger
//! ones each exchange takes bytes from one atomic and gives them back when dropped.
//!
//! A share is what one key holds, or one address where there are no keys. A share that is alone may
//! take the whole budget; beside others no share, and no address, grows beyond half. When the
//! budget is full, a body that is still being received gives way to a newcomer. If the newcomer's
//! share would still be smaller than others, it is the body in the largest share that has held the
//! most for the longest; within the newcomer's own share it is, by the same measure, one of those
//! that are larger than the newcomer will be. So slow uploads keep no others out, and among equals
//! the one that came first stays.
//!
//! The body that gives way is found by a walk over all that are being received, and marked by one
//! compare-and-swap: from then on its bytes count as free, and its memory is freed when its core
//! has been notified. No lock, and nothing of all this for a body that is not counted.

use std::hash::RandomState;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::base::clock::{AtomicMoment, Moment, millis};
use crate::net::notify::WakeToken;
use crate::policy::limit::tally::{Holder, Tally};

/// Most bodies of the process that can be asked to give way at a time; the others stay.
const RECEIVING_MAX: usize = 4096;
/// Most entries that are looked at for a free one.
const ENTRIES_TRIED: usize = 64;
/// Most tries to mark a body, when other cores are faster.
const EVICTIONS_TRIED: usize = 8;
/// Most bodies that give way to one other.
const EVICTED_MAX: usize = 64;

/// The word of an entry: whether it is taken, whether its body has to give way, and how many bytes
/// the body holds.
const FREE: u64 = 0;
const TAKEN: u64 = 1 << 63;
const EVICTED: u64 = 1 << 62;
const BYTES: u64 = EVICTED - 1;

/// The budget of all cores.
#[derive(Debug)]
pub struct HeldBudget {
    taken: AtomicU64,
    total: AtomicU64,
    /// Bytes held by each key, or by each address where there is no key.
    shares: Tally,
    addresses: Tally,
    receiving: Box<[Receiving]>,
    /// Where the search for a free entry begins.
    next: AtomicUsize,
}

/// A body that is being received.
#[derive(Debug, Default)]
struct Receiving {
    word: AtomicU64,
    since: AtomicMoment,
    share: AtomicU64,
    token: [AtomicU64; 2],
}

/// Why a body may not hold more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// Nothing is left, and no other body has to give way.
    Full,
    /// The body has given way itself.
    Evicted,
}

impl HeldBudget {
    /// A budget of `total` bytes.
    #[must_use]
    pub fn new(total: u64) -> Self {
        Self {
            taken: AtomicU64::new(0),
            total: AtomicU64::new(total),
            shares: Tally::new(RandomState::new()),
            addresses: Tally::new(RandomState::new()),
            receiving: (0..RECEIVING_MAX).map(|_| Receiving::default()).collect(),
            next: AtomicUsize::new(0),
        }
    }

    /// Bytes held now.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The budget itself.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Sets the budget; what is held stays held.
    pub fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    /// Takes from the budget and from both shares, or nothing.
    fn take(&self, owner: &Owner, more: u64) -> Result<(), Lacking> {
        let before = self.taken.fetch_add(more, Ordering::Relaxed);
        let share = self.shares.add(owner.share, more);
        let address = owner.address.map_or(0, |address| self.addresses.add(address, more));
        let taken = before.saturating_add(more);
        // A share that is alone may take the whole budget.
        let too_much = |held: u64| held > self.total() / 2 && held < taken;
        let lacking = match taken > self.total() {
            true => Lacking::Space,
            false if too_much(share) || too_much(address) => Lacking::Share,
            false => return Ok(()),
        };
        self.taken.fetch_sub(more, Ordering::Relaxed);
        self.give_back(owner, more);
        Err(lacking)
    }

    fn give_back(&self, owner: &Owner, less: u64) {
        self.shares.give_back(owner.share, less);
        if let Some(address) = owner.address {
            self.addresses.give_back(address, less);
        }
    }

    /// Makes another body give way to one that will be `size` bytes long, of an owner whose share
    /// will be `share` bytes then. Returns the token of the body that gave way, to be woken.
    fn evict(
        &self,
        owner: &Owner,
        size: u64,
        share: u64,
        lacking: Lacking,
        now: Moment,
    ) -> Option<WakeToken> {
        // Another core may have marked that body first: then look for another one.
        for _ in 0..EVICTIONS_TRIED {
            let told = self.evict_worst(owner, size, share, lacking, now)?;
            if told.is_some() {
                return told;
            }
        }
        None
    }

    /// As `evict`; `None` when no body has to give way, `Some(None)` when another core was faster.
    fn evict_worst(
        &self,
        owner: &Owner,
        size: u64,
        share: u64,
        lacking: Lacking,
        now: Moment,
    ) -> Option<Option<WakeToken>> {
        let mut worst: Option<(u64, u64, &Receiving, u64)> = None;
        for entry in &self.receiving {
            let word = entry.word.load(Ordering::Acquire);
            let bytes = word & BYTES;
            if word & TAKEN == 0 || word & EVICTED != 0 || bytes == 0 {
                continue;
            }
            let holder = Holder::numbered(entry.share.load(Ordering::Relaxed) as u32);
            let held = self.shares.count(holder);
            let gives_way = match holder == owner.share {
                true => bytes > size,
                false => lacking == Lacking::Space && held > share,
            };
            let age_ms = millis(now.since(entry.since.load()));
            // Of two that hold as much the slower one has held it for longer.
            let cost = bytes.saturating_mul(age_ms.max(1));
            if gives_way && worst.is_none_or(|(most, dear, ..)| (held, cost) > (most, dear)) {
                worst = Some((held, cost, entry, word));
            }
        }
        let (_, _, entry, word) = worst?;
        let told =
            entry.word.compare_exchange(word, word | EVICTED, Ordering::AcqRel, Ordering::Relaxed);
        Some(told.ok().map(|word| {
            self.taken.fetch_sub(word & BYTES, Ordering::Relaxed);
            // If the entry has changed hands meanwhile, this is the token of its next body, which
            // is woken and finds that it need not give way.
            unpack(&entry.token)
        }))
    }

    fn sit(&self) -> Option<usize> {
        let from = self.next.fetch_add(1, Ordering::Relaxed);
        let tried = (from..from + ENTRIES_TRIED).map(|at| at % RECEIVING_MAX);
        let take = |word: &AtomicU64| {
            word.compare_exchange(FREE, TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        tried.into_iter().find(|at| take(&self.receiving[*at].word))
    }
}

/// Why bytes cannot be taken from the budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lacking {
    /// The budget is full.
    Space,
    /// The share, or the address, has half of it.
    Share,
}

/// The share and the address that a body counts for.
#[derive(Clone, Copy, Debug)]
struct Owner {
    share: Holder,
    address: Option<Holder>,
}

/// What one exchange has taken from the budget.
#[derive(Debug)]
pub struct Held<'a> {
    budget: &'a HeldBudget,
    key: Option<u32>,
    ip: Option<IpAddr>,
    /// Worked out when the first byte is counted.
    owner: Option<Owner>,
    bytes: u64,
    /// While it is being received, and can be told to give way.
    entry: Option<usize>,
    evicted: bool,
}

impl<'a> Held<'a> {
    /// Holds nothing yet, on behalf of a key or an address.
    #[must_use]
    pub fn new(budget: &'a HeldBudget, key: Option<u32>, ip: Option<IpAddr>) -> Self {
        Self { budget, key, ip, owner: None, bytes: 0, entry: None, evicted: false }
    }

    /// Grows to `bytes` in all; false when the budget or the share does not allow it.
    ///
    /// Never shrinks; drop gives all back.
    #[must_use]
    pub fn grow_to(&mut self, bytes: u64) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        more == 0 || self.try_take(more).is_ok()
    }

    /// As `grow_to`; when that is not allowed, other bodies give way as the module says, and `wake`
    /// is called with the token of each.
    ///
    /// Units: `size` bytes in the end, as far as it is known.
    /// Errors: `Full` when no other body has to give way; `Evicted` when this one has.
    pub fn claim(
        &mut self,
        bytes: u64,
        size: u64,
        now: Moment,
        mut wake: impl FnMut(WakeToken),
    ) -> Result<(), Denied> {
        if self.is_evicted() {
            return Err(Denied::Evicted);
        }
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return Ok(());
        }
        for _ in 0..EVICTED_MAX {
            let Err(lacking) = self.try_take(more) else { break };
            if self.is_evicted() {
                break;
            }
            let (owner, size) = (self.owner(), size.max(bytes));
            let share = self.budget.shares.count(owner.share).saturating_sub(self.bytes);
            let share = share.saturating_add(size);
            match self.budget.evict(&owner, size, share, lacking, now) {
                Some(token) => wake(token),
                None => break,
            }
        }
        match (self.is_evicted(), self.bytes >= bytes) {
            (true, _) => Err(Denied::Evicted),
            (false, true) => Ok(()),
            (false, false) => Err(Denied::Full),
        }
    }

    /// The body is being received: from now on it may have to give way, and `token` is woken then.
    pub fn begin_receiving(&mut self, token: WakeToken, now: Moment) {
        if self.entry.is_some() || self.evicted {
            return;
        }
        let share = self.owner().share;
        let Some(at) = self.budget.sit() else { return };
        let entry = &self.budget.receiving[at];
        entry.since.store(now);
        entry.share.store(u64::from(share.number()), Ordering::Relaxed);
        pack(token, &entry.token);
        entry.word.store(TAKEN | self.bytes & BYTES, Ordering::Release);
        self.entry = Some(at);
    }

    /// The body is no longer being received, and gives way to no other.
    ///
    /// Errors: the body has given way before.
    pub fn end_receiving(&mut self) -> Result<(), Denied> {
        if let Some(at) = self.entry.take() {
            let word = self.budget.receiving[at].word.swap(FREE, Ordering::AcqRel);
            self.evicted |= word & EVICTED != 0;
        }
        if self.evicted { Err(Denied::Evicted) } else { Ok(()) }
    }

    /// Whether the body has given way: in the budget its bytes count as free already.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        let word =
            self.entry.map_or(FREE, |at| self.budget.receiving[at].word.load(Ordering::Acquire));
        self.evicted || word & EVICTED != 0
    }

    fn try_take(&mut self, more: u64) -> Result<(), Lacking> {
        let owner = self.owner();
        self.budget.take(&owner, more)?;
        if let Some(at) = self.entry {
            let (now, next) = (TAKEN | self.bytes & BYTES, TAKEN | (self.bytes + more) & BYTES);
            let word = &self.budget.receiving[at].word;
            if word.compare_exchange(now, next, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                // The body has been told to give way in this very moment.
                self.budget.taken.fetch_sub(more, Ordering::Relaxed);
                self.budget.give_back(&owner, more);
                return Err(Lacking::Space);
            }
        }
        self.bytes += more;
        Ok(())
    }

    fn owner(&mut self) -> Owner {
        let (budget, key, ip) = (self.budget, self.key, self.ip);
        *self.owner.get_or_insert_with(|| {
            let address = ip.map(|ip| budget.addresses.holder_at(ip));
            let share = match (key, address) {
                (Some(key), _) => budget.shares.holder(("key", key)),
                (None, address) => budget.shares.holder(("address", address.map(Holder::number))),
            };
            Owner { share, address }
        })
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let evicted = self.end_receiving().is_err();
        if let Some(owner) = self.owner {
            self.budget.give_back(&owner, self.bytes);
        }
        if !evicted {
            self.budget.taken.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}

fn pack(token: WakeToken, to: &[AtomicU64; 2]) {
    let place = u64::from(token.core) << 32 | u64::from(token.slot);
    to[0].store(place, Ordering::Relaxed);
    to[1].store(u64::from(token.generation), Ordering::Relaxed);
}

fn unpack(from: &[AtomicU64; 2]) -> WakeToken {
    let [place, generation] = [0, 1].map(|at| from[at].load(Ordering::Relaxed));
    WakeToken { core: (place >> 32) as u16, slot: place as u32, generation: generation as u32 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ip(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    fn ms(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    fn token(slot: u32) -> WakeToken {
        WakeToken { core: 3, slot, generation: 9 }
    }

    fn of<'b>(budget: &'b HeldBudget, key: u32) -> Held<'b> {
        Held::new(budget, Some(key), ip(key as u8))
    }

    /// A body of `key` that is being received since that millisecond.
    fn receiving<'b>(budget: &'b HeldBudget, key: u32, bytes: u64, since: u64) -> Held<'b> {
        let mut held = of(budget, key);
        held.begin_receiving(token(since as u32), ms(since));
        assert!(held.grow_to(bytes));
        held
    }

    /// Claims for `held`; who had to give way.
    fn claim(held: &mut Held<'_>, bytes: u64, size: u64) -> (Result<(), Denied>, Vec<u32>) {
        let mut woken = Vec::new();
        let claimed = held.claim(bytes, size, ms(1000), |token| woken.push(token.slot));
        (claimed, woken)
    }

    #[test]
    fn held_total_is_never_exceeded_and_comes_back() {
        let budget = HeldBudget::new(100);
        let mut first = Held::new(&budget, None, ip(1));
        let mut second = Held::new(&budget, None, ip(1));
        assert!(first.grow_to(60));
        assert!(!second.grow_to(41));
        assert!(second.grow_to(40));
        assert!(second.grow_to(10), "growing to less is no growth");
        assert_eq!(budget.taken(), 100);
        drop(first);
        assert_eq!(budget.taken(), 40);
        drop(second);
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn beside_others_no_share_and_no_address_grows_beyond_half() {
        let budget = HeldBudget::new(100);
        let mut alone = of(&budget, 1);
        assert!(alone.grow_to(100), "alone he may have all of it");
        drop(alone);
        let (mut a, mut b) = (of(&budget, 1), of(&budget, 2));
        assert!(b.grow_to(10));
        assert!(a.grow_to(50) && !a.grow_to(51));
        drop(b);
        assert!(a.grow_to(51));
        drop(a);
        // Two keys at one address are one address.
        let at_one = |key| Held::new(&budget, Some(key), ip(7));
        let (mut c, mut d, mut e) = (at_one(1), at_one(2), of(&budget, 3));
        assert!(e.grow_to(1) && c.grow_to(30) && d.grow_to(20) && !d.grow_to(21));
    }

    #[test]
    fn slow_uploads_of_one_key_give_way_to_another_key() {
        let budget = HeldBudget::new(1600);
        let mut slow: Vec<_> = (0..16).map(|n| receiving(&budget, 1, 100, n)).collect();
        let mut other = of(&budget, 2);
        assert_eq!(claim(&mut other, 10, 10), (Ok(()), vec![0]));
        assert_eq!(budget.taken(), 1510);
        assert_eq!(slow.iter().filter(|held| held.is_evicted()).count(), 1);
        assert!(slow[0].is_evicted(), "of the same size the one that has been at it longest");
        assert_eq!(claim(&mut slow[0], 101, 101).0, Err(Denied::Evicted));
        // As many as it takes, up to its own share.
        assert_eq!(claim(&mut other, 300, 300).0, Ok(()));
        drop((slow, other));
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn the_largest_and_slowest_gives_way_to_a_smaller_one_of_its_share() {
        let budget = HeldBudget::new(300);
        let held = [(200, 500), (50, 0), (50, 10)].map(|(n, at)| receiving(&budget, 1, n, at));
        let mut small = of(&budget, 1);
        assert_eq!(claim(&mut small, 20, 20), (Ok(()), vec![500]));
        assert!(held[0].is_evicted());
        // One that says it will be as large is not smaller, and who came first stays.
        let mut large = of(&budget, 1);
        assert_eq!(claim(&mut large, 180, 180), (Ok(()), vec![]));
        assert_eq!(claim(&mut large, 190, 190), (Err(Denied::Full), vec![]));
        let mut more = of(&budget, 1);
        assert_eq!(claim(&mut more, 10, 60), (Err(Denied::Full), vec![]));
    }

    #[test]
    fn who_is_no_longer_received_gives_way_to_nobody() {
        let budget = HeldBudget::new(100);
        let mut held = receiving(&budget, 1, 100, 0);
        assert_eq!(held.end_receiving(), Ok(()));
        let mut other = of(&budget, 2);
        assert_eq!(claim(&mut other, 10, 10), (Err(Denied::Full), vec![]));
        held.begin_receiving(token(5), ms(5));
        assert_eq!(claim(&mut other, 10, 10), (Ok(()), vec![5]));
        assert_eq!(held.end_receiving(), Err(Denied::Evicted));
        drop((held, other));
        assert_eq!(budget.taken(), 0);
    }

    #[test]
    fn four_threads_never_hold_more_than_there_is() {
        let budget = HeldBudget::new(1000);
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let budget = &budget;
                scope.spawn(move || {
                    for round in 0..400u64 {
                        let mut held = of(budget, thread % 3);
                        held.begin_receiving(token(thread), ms(round));
                        for step in 1..=8 {
                            let size = 30 + 100 * (round % 7);
                            if held.claim(step * size / 8, size, ms(round + step), |_| {}).is_err()
                            {
                                break;
                            }
                        }
                        if round % 3 == 0 {
                            let _ = held.end_receiving();
                        }
                    }
                });
            }
        });
        assert_eq!(budget.taken(), 0);
        assert!((0..3).all(|key| budget.shares.count(budget.shares.holder(("key", key))) == 0));
        assert!(budget.receiving.iter().all(|entry| entry.word.load(Ordering::Relaxed) == FREE));
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_is_held_and_not_given_up(
            steps in prop::collection::vec((0usize..6, 0u64..60, 0u8..4), 1..120),
        ) {
            let budget = HeldBudget::new(100);
            let mut bodies: Vec<Held<'_>> = (0..6).map(|n| of(&budget, n % 3)).collect();
            for (time, (at, bytes, what)) in steps.into_iter().enumerate() {
                match what {
                    0 => bodies[at] = of(&budget, at as u32 % 3),
                    1 => bodies[at].begin_receiving(token(at as u32), ms(time as u64)),
                    2 => { let _ = bodies[at].end_receiving(); }
                    _ => { let _ = bodies[at].claim(bytes, bytes, ms(time as u64), |_| {}); }
                }
                let kept = bodies.iter().filter(|held| !held.is_evicted());
                prop_assert_eq!(budget.taken(), kept.map(|held| held.bytes).sum::<u64>());
                prop_assert!(budget.taken() <= 100);
            }
            drop(bodies);
            prop_assert_eq!(budget.taken(), 0);
        }
    }
}
