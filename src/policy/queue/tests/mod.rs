//! The queue against a slow oracle, and the promises of its header one by one.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;

use super::*;

impl Queue {
    /// Lets the next one in time go with a slot.
    fn next(&mut self, now: Moment) -> Option<WaitId> {
        let id = self.find(now, |_| true)?;
        self.grant(id, now);
        Some(id)
    }

    /// Takes one waiter out whose time is over, the longest over first; call until `None`.
    fn expire(&mut self, now: Moment) -> Option<WaitId> {
        let index = self.deadlines.head();
        if index == NIL || self.waiters.at(index).deadline > now {
            return None;
        }
        let id = WaitId { index, generation: self.waiters.at(index).generation };
        self.cancel(id, now);
        Some(id)
    }
}

fn ms(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

/// The same queue, written down the way one would explain it.
#[derive(Default)]
struct Oracle {
    /// By priority: the keys whose turn it is in order, each with turns left and waiters.
    levels: BTreeMap<i32, Vec<Turns>>,
}

struct Turns {
    key: u32,
    weight: u32,
    left: u32,
    waiters: Vec<(WaitId, u64)>,
}

impl Oracle {
    fn enqueue(&mut self, id: WaitId, share: Share, deadline: u64) {
        let keys = self.levels.entry(share.priority).or_default();
        let at = keys.iter().position(|turns| turns.key == share.key).unwrap_or_else(|| {
            keys.push(Turns { key: share.key, weight: 1, left: 0, waiters: Vec::new() });
            keys.len() - 1
        });
        keys[at].weight = share.weight.max(1);
        keys[at].waiters.push((id, deadline));
    }

    fn all(&self) -> impl Iterator<Item = (WaitId, u64)> {
        self.levels.values().flatten().flat_map(|turns| turns.waiters.iter().copied())
    }

    fn find(&self, now: u64, accepts: impl Fn(WaitId) -> bool) -> Option<WaitId> {
        let in_order = self.levels.values().rev().flatten();
        let mut ids = in_order.flat_map(|turns| &turns.waiters);
        ids.find(|(id, deadline)| *deadline > now && accepts(*id)).map(|(id, _)| *id)
    }

    /// The last of the largest share of the lowest priority, if the newcomer is better.
    fn displaced(&self, share: Share) -> Option<WaitId> {
        let (priority, keys) = self.levels.iter().find(|(_, keys)| !keys.is_empty())?;
        let most = keys.iter().map(|turns| turns.waiters.len()).max()?;
        let largest = keys.iter().rev().find(|turns| turns.waiters.len() == most)?;
        let own = keys.iter().find(|turns| turns.key == share.key);
        let own = own.map_or(0, |turns| turns.waiters.len());
        let better = *priority < share.priority || (*priority == share.priority && own + 1 < most);
        better.then(|| largest.waiters.last().unwrap().0)
    }

    fn grant(&mut self, id: WaitId) {
        for keys in self.levels.values_mut() {
            let holds = |turns: &Turns| turns.waiters.iter().any(|(other, _)| *other == id);
            if let Some(at) = keys.iter().position(holds) {
                let mut turns = keys.remove(at);
                if turns.left == 0 {
                    turns.left = turns.weight;
                }
                turns.left -= 1;
                let at = if turns.left == 0 { keys.len() } else { at };
                keys.insert(at, turns);
            }
        }
        self.remove(id);
    }

    fn remove(&mut self, id: WaitId) {
        for keys in self.levels.values_mut() {
            keys.iter_mut().for_each(|turns| turns.waiters.retain(|(other, _)| *other != id));
            keys.retain(|turns| !turns.waiters.is_empty());
        }
    }

    fn len(&self) -> usize {
        self.all().count()
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Enqueue(Share, u64),
    Next,
    /// Only those whose index has this remainder by 3 accept.
    NextWhere(usize),
    Cancel(usize),
    Pass(u64),
    Expire,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let share = (0u32..5, -1i32..3, 0u32..4).prop_map(|(key, priority, weight)| Share {
        key,
        priority,
        weight,
    });
    let op = prop_oneof![
        4 => (share, 0u64..60).prop_map(|(share, wait)| Op::Enqueue(share, wait)),
        2 => Just(Op::Next),
        1 => (0usize..3).prop_map(Op::NextWhere),
        1 => any::<usize>().prop_map(Op::Cancel),
        1 => (0u64..20).prop_map(Op::Pass),
        1 => Just(Op::Expire),
    ];
    proptest::collection::vec(op, 0..300)
}

proptest! {
    #[test]
    fn agrees_with_the_oracle_and_lets_each_go_once(ops in ops(), length in 0u32..20) {
        let (mut queue, mut oracle, mut now) = (Queue::new(length), Oracle::default(), 1000u64);
        let mut given: Vec<WaitId> = Vec::new();
        let mut gone: HashSet<WaitId> = HashSet::new();
        for op in ops {
            match op {
                Op::Enqueue(share, wait) => {
                    let full = oracle.len() >= length as usize;
                    match queue.enqueue(share, ms(now), ms(now + wait)) {
                        Ok(id) => {
                            prop_assert!(!full && !given.contains(&id) && id.index() < 20);
                            oracle.enqueue(id, share, now + wait);
                            given.push(id);
                        }
                        Err(Full) => {
                            prop_assert!(full);
                            let expected = oracle.displaced(share);
                            prop_assert_eq!(queue.displaced_by(share), expected);
                            if let Some(victim) = expected {
                                prop_assert!(queue.cancel(victim, ms(now)) && gone.insert(victim));
                                oracle.remove(victim);
                                let id = queue.enqueue(share, ms(now), ms(now + wait)).unwrap();
                                prop_assert!(!given.contains(&id));
                                oracle.enqueue(id, share, now + wait);
                                given.push(id);
                            }
                        }
                    }
                }
                Op::Next | Op::NextWhere(_) => {
                    let accepts = |id: WaitId| match op {
                        Op::NextWhere(rest) => id.index() % 3 == rest,
                        _ => true,
                    };
                    let expected = oracle.find(now, accepts);
                    prop_assert_eq!(queue.find(ms(now), accepts), expected);
                    if let Some(id) = expected {
                        if matches!(op, Op::Next) {
                            prop_assert_eq!(queue.next(ms(now)), Some(id));
                        } else {
                            prop_assert!(queue.grant(id, ms(now)));
                        }
                        oracle.grant(id);
                        prop_assert!(gone.insert(id), "granted once");
                        prop_assert!(!queue.grant(id, ms(now)));
                    }
                }
                Op::Cancel(which) => {
                    if let Some(&id) = given.get(which % given.len().max(1)) {
                        prop_assert_eq!(queue.cancel(id, ms(now)), !gone.contains(&id));
                        oracle.remove(id);
                        gone.insert(id);
                    }
                }
                Op::Pass(ms) => now += ms,
                Op::Expire => {
                    let over: HashSet<_> =
                        oracle.all().filter(|(_, end)| *end <= now).map(|(id, _)| id).collect();
                    let mut told = HashSet::new();
                    while let Some(id) = queue.expire(ms(now)) {
                        prop_assert!(told.insert(id) && gone.insert(id), "told once");
                        oracle.remove(id);
                    }
                    prop_assert_eq!(told, over);
                }
            }
            prop_assert_eq!(queue.len() as usize, oracle.len());
            prop_assert_eq!(queue.next_deadline(), oracle.all().map(|(_, end)| ms(end)).min());
            prop_assert!((1..=RETRY_AFTER_S_MAX).contains(&queue.retry_after_s(ms(now))));
            for id in &given {
                prop_assert_eq!(queue.is_waiting(*id), !gone.contains(id));
            }
        }
        prop_assert_eq!(queue.is_empty(), queue.known.is_empty());
        prop_assert_eq!(queue.is_empty(), queue.order.is_empty());
    }

    // Whoever came first, whatever the numbers: while all wait, no key is more than one behind.
    #[test]
    fn shares_are_equal_within_one_while_all_wait(
        keys in 1u32..6, arrivals in proptest::collection::vec(0u32..6, 0..60),
    ) {
        let mut queue = Queue::new(u32::MAX);
        for key in arrivals.iter().map(|key| key % keys).chain((0..keys).flat_map(|k| [k; 50])) {
            queue.enqueue(Share::of(key, 0), ms(0), ms(1)).unwrap();
        }
        let mut granted = vec![0u32; keys as usize];
        for _ in 0..keys * 50 {
            let id = queue.find(ms(0), |_| true).unwrap();
            let key = queue.flows.at(queue.waiters.at(id.index).flow).key;
            queue.grant(id, ms(0));
            granted[key as usize] += 1;
            let (least, most) = (granted.iter().min().unwrap(), granted.iter().max().unwrap());
            prop_assert!(most - least <= 1, "{granted:?}");
        }
    }
}

/// Lets everybody go and names them as they went, by what `ids` calls them.
fn order(queue: &mut Queue, ids: &[(WaitId, &'static str)]) -> Vec<&'static str> {
    std::iter::from_fn(|| queue.next(ms(0)))
        .map(|id| ids.iter().find(|(other, _)| *other == id).unwrap().1)
        .collect()
}

fn enter(queue: &mut Queue, waiters: &[(&'static str, Share)]) -> Vec<(WaitId, &'static str)> {
    waiters
        .iter()
        .map(|(name, share)| (queue.enqueue(*share, ms(0), ms(9)).unwrap(), *name))
        .collect()
}

#[test]
fn one_request_of_another_key_waits_one_turn_not_a_thousand() {
    let mut queue = Queue::new(2000);
    for _ in 0..1000 {
        queue.enqueue(Share::of(1, 0), ms(0), ms(9)).unwrap();
    }
    let late = queue.enqueue(Share::of(2, 0), ms(0), ms(9)).unwrap();
    queue.next(ms(0));
    assert_eq!(queue.next(ms(0)), Some(late));
}

#[test]
fn higher_priorities_go_first_and_keys_in_order_of_arrival() {
    let mut queue = Queue::new(10);
    let (low, high) = (Share::of(1, -5), Share::of(2, 7));
    let waiters = [("l1", low), ("h1", high), ("m", Share::of(1, 0)), ("h2", high), ("l2", low)];
    let ids = enter(&mut queue, &waiters);
    assert_eq!(order(&mut queue, &ids), ["h1", "h2", "m", "l1", "l2"]);
}

#[test]
fn a_weight_is_turns_in_a_row() {
    let mut queue = Queue::new(10);
    let (heavy, light) = (Share { weight: 3, ..Share::of(1, 0) }, Share::of(2, 0));
    let waiters = [
        ("l1", light),
        ("a", heavy),
        ("b", heavy),
        ("l2", light),
        ("c", heavy),
        ("d", heavy),
        ("l3", light),
    ];
    let ids = enter(&mut queue, &waiters);
    assert_eq!(order(&mut queue, &ids), ["l1", "a", "b", "c", "l2", "d", "l3"]);
}

#[test]
fn who_cannot_use_the_slot_keeps_the_place() {
    let mut queue = Queue::new(10);
    let share = Share::of(1, 0);
    let ids = enter(&mut queue, &[("a", share), ("b", share), ("c", share)]);
    let b = queue.find(ms(0), |id| id != ids[0].0).unwrap();
    assert!(b == ids[1].0 && queue.grant(b, ms(0)));
    assert_eq!(order(&mut queue, &ids), ["a", "c"]);
}

#[test]
fn a_full_room_makes_place_for_a_better_newcomer() {
    let mut queue = Queue::new(4);
    let (many, few) = (Share::of(1, 0), Share::of(2, 0));
    let ids = enter(&mut queue, &[("a", many), ("b", many), ("c", many), ("d", few)]);
    // Two and two is as even as it gets.
    assert_eq!(queue.displaced_by(few), Some(ids[2].0));
    assert!(queue.cancel(ids[2].0, ms(0)));
    assert_eq!(queue.displaced_by(few), None, "there is a place");
    queue.enqueue(few, ms(0), ms(9)).unwrap();
    assert_eq!((queue.displaced_by(few), queue.displaced_by(many)), (None, None));
    // A third key gets one all the same, and a fourth nothing: everybody would have one.
    let third = queue.displaced_by(Share::of(3, 0)).unwrap();
    assert!(queue.cancel(third, ms(0)));
    queue.enqueue(Share::of(3, 0), ms(0), ms(9)).unwrap();
    let fourth = queue.displaced_by(Share::of(4, 0)).unwrap();
    assert!(queue.cancel(fourth, ms(0)));
    queue.enqueue(Share::of(4, 0), ms(0), ms(9)).unwrap();
    assert_eq!(queue.displaced_by(Share::of(5, 0)), None);
    // A higher priority is better whatever it has, a lower one never.
    assert!(queue.displaced_by(Share::of(5, 1)).is_some());
    assert_eq!(queue.displaced_by(Share::of(5, -1)), None);
}

#[test]
fn the_length_is_kept_and_a_left_place_is_free_at_once() {
    let mut queue = Queue::new(1);
    let first = queue.enqueue(Share::of(1, 0), ms(0), ms(9)).unwrap();
    assert_eq!(queue.enqueue(Share::of(2, 9), ms(0), ms(9)), Err(Full));
    assert!(queue.cancel(first, ms(0)) && !queue.cancel(first, ms(0)));
    let second = queue.enqueue(Share::of(2, 0), ms(0), ms(9)).unwrap();
    assert!(first.index() == second.index() && !queue.cancel(first, ms(0)), "another stay");
    assert_eq!(Queue::new(0).enqueue(Share::of(1, 0), ms(0), ms(9)), Err(Full));
}

#[test]
fn retry_after_follows_the_measured_rate() {
    let mut queue = Queue::new(1000);
    assert_eq!(queue.retry_after_s(ms(0)), 1, "nothing is known");
    for _ in 0..100 {
        queue.enqueue(Share::of(1, 0), ms(0), ms(600_000)).unwrap();
    }
    assert_eq!(queue.retry_after_s(ms(30_000)), 570, "until somebody gives up");
    // Two grants a second; then 50 wait, and a newcomer is the 51st.
    (1..=50).for_each(|i| assert!(queue.next(ms(500 * i)).is_some()));
    assert_eq!(queue.retry_after_s(ms(25_000)), 26);
    assert!(queue.retry_after_s(ms(325_000)) > 500, "a stall is told");
    assert_eq!(queue.retry_after_s(ms(u64::MAX)), RETRY_AFTER_S_MAX);
}

#[test]
fn nothing_grows_beyond_the_fullest_it_was() {
    let mut queue = Queue::new(8);
    for round in 0..1000u32 {
        for i in 0..8 {
            queue.enqueue(Share::of(round * 8 + i, (i % 3) as i32), ms(0), ms(9)).unwrap();
        }
        while queue.next(ms(0)).is_some() {}
    }
    assert!(queue.waiters.find(8).is_none() && queue.flows.find(8).is_none());
    assert!(queue.levels.find(3).is_none() && queue.known.capacity() < 64);
}

// The acceptance of the project: 1 upstream with 4 slots, 200 clients, 3 keys. Each client sends
// its next request when the last is answered; one key has 180 clients, the others 10 each.
#[test]
fn four_slots_and_two_hundred_clients_waste_nothing_and_share_evenly() {
    let mut rng = crate::base::rng::Rng::new(42);
    let mut queue = Queue::new(200);
    let key_of = |client: usize| match client {
        0..180 => 0u32,
        180..190 => 1,
        _ => 2,
    };
    let mut waiting: Vec<(WaitId, usize)> = Vec::new();
    for client in 0..200 {
        let id = queue.enqueue(Share::of(key_of(client), 0), ms(0), ms(u64::MAX)).unwrap();
        waiting.push((id, client));
    }
    // In service: when it ends, and whose it is.
    let (mut busy, mut served, mut idle_ms, mut now) = (Vec::new(), [0u32; 3], 0u64, 0u64);
    while now < 600_000 {
        while busy.len() < 4
            && let Some(id) = queue.next(ms(now))
        {
            let at = waiting.iter().position(|(other, _)| *other == id).unwrap();
            let (_, client) = waiting.swap_remove(at);
            served[key_of(client) as usize] += 1;
            busy.push((now + 50 + rng.below(200), client));
        }
        let at = (0..busy.len()).min_by_key(|at| busy[*at].0).unwrap();
        let (ends, client) = busy.swap_remove(at);
        idle_ms += (3 - busy.len() as u64) * (ends - now);
        now = ends;
        let id = queue.enqueue(Share::of(key_of(client), 0), ms(now), ms(u64::MAX)).unwrap();
        waiting.push((id, client));
    }
    let total: u32 = served.iter().sum();
    for count in served {
        let share = f64::from(count) / f64::from(total);
        assert!((share * 3.0 - 1.0).abs() < 0.05, "{served:?}");
    }
    assert!(idle_ms * 100 < now * 4, "{idle_ms} slot-ms idle of {}", now * 4);
}
