//! The queue under one thread, step by step, and under several, from a seed.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::*;
use crate::base::clock::AtomicMoment;
use crate::base::rng::Rng;
use crate::policy::balance::Tried;
use crate::policy::breaker::{BreakerPolicy, CallResult};

mod threads;

/// Remembers who was woken; its clock is set by hand.
#[derive(Default)]
struct Wakes {
    woken: Mutex<Vec<u32>>,
    now: AtomicMoment,
}

impl Wake<u32> for Wakes {
    fn wake(&self, token: u32) {
        self.woken.lock().unwrap().push(token);
    }
    fn now(&self) -> Moment {
        self.now.load()
    }
}

impl Wakes {
    fn take(&self) -> Vec<u32> {
        std::mem::take(&mut self.woken.lock().unwrap())
    }
}

fn upstream(concurrency: u32) -> Arc<UpstreamState> {
    resorting(concurrency, false)
}

fn resorting(concurrency: u32, last_resort: bool) -> Arc<UpstreamState> {
    let policy = BreakerPolicy {
        threshold: 1.0,
        calls_min: 1000,
        consecutive: 1,
        last_resort,
        ..BreakerPolicy::default()
    };
    Arc::new(UpstreamState::new(policy, concurrency))
}

fn queue(members: &[&Arc<UpstreamState>], length: u32) -> (Arc<GroupQueue<u32>>, Arc<Wakes>) {
    let wakes = Arc::new(Wakes::default());
    (Arc::new(bound(&WaitQueue::new(length, wakes.clone()), members)), wakes)
}

fn bound(queue: &Arc<WaitQueue<u32>>, members: &[&Arc<UpstreamState>]) -> GroupQueue<u32> {
    queue.bind(members.iter().map(|state| (*state).clone()).collect())
}

const LATE: Moment = Moment::from_secs(1_000);
const THEN: Moment = Moment::from_secs(30);

fn enter(queue: &GroupQueue<u32>, token: u32) -> WaitSlot<'_, u32> {
    queue.enter(Share::of(token, 0), Accepts::ALL, token, LATE).unwrap()
}

fn wanted(state: &UpstreamState) -> bool {
    format!("{:?}", state.slots).contains("wanted: 1")
}

#[test]
fn a_slot_goes_from_hand_to_hand_and_is_never_free() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 10);
    let lease = up.try_lease().unwrap();
    let (mut a, mut b) = (enter(&queue, 1), enter(&queue, 2));
    assert!(a.take_grant().is_none() && queue.len() == 2 && wanted(&up));
    drop(lease);
    assert_eq!((up.in_flight(), wakes.take(), queue.len()), (1, vec![1], 1));
    assert!(up.try_lease().is_none(), "no newcomer slips in");
    assert!(b.take_grant().is_none());
    let (member, lease) = a.take_grant().unwrap();
    assert!(member == 0 && a.take_grant().is_none());
    drop(a);
    drop(lease);
    let (_, lease) = b.take_grant().unwrap();
    drop(lease);
    assert_eq!((up.in_flight(), queue.len(), wanted(&up)), (0, 0, false));
}

#[test]
fn a_newcomer_displaces_the_last_of_the_largest_share() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 2);
    let lease = up.try_lease().unwrap();
    let of = |key, token| queue.enter(Share::of(key, 0), Accepts::ALL, token, LATE);
    let (mut a, mut b) = (of(1, 1).unwrap(), of(1, 2).unwrap());
    assert!(of(1, 3).is_err());
    let mut c = of(2, 4).unwrap();
    assert_eq!((wakes.take(), queue.len()), (vec![2], 2));
    assert!(b.is_displaced() && b.take_grant().is_none() && !a.is_displaced());
    assert!(of(3, 5).is_err(), "everybody has one");
    drop(lease);
    let (_, lease) = a.take_grant().unwrap();
    drop(b);
    drop(lease);
    let (_, lease) = c.take_grant().unwrap();
    drop(lease);
    assert_eq!((up.in_flight(), queue.len(), wanted(&up)), (0, 0, false));
}

#[test]
fn whoever_leaves_with_a_grant_passes_it_on() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 10);
    let lease = up.try_lease().unwrap();
    let (a, b, mut c) = (enter(&queue, 1), enter(&queue, 2), enter(&queue, 3));
    drop(lease);
    drop(b);
    drop(a);
    assert_eq!(wakes.take(), [1, 3]);
    drop(c.take_grant().unwrap());
    assert_eq!((up.in_flight(), queue.len()), (0, 0));
}

#[test]
fn a_panic_while_waiting_leaves_the_room() {
    let up = upstream(1);
    let (queue, _) = queue(&[&up], 10);
    let lease = up.try_lease().unwrap();
    let inside = queue.clone();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _place = enter(&inside, 1);
        std::panic::resume_unwind(Box::new(()));
    }));
    assert!(result.is_err() && queue.is_empty() && !wanted(&up));
    drop(lease);
    assert_eq!(up.in_flight(), 0);
}

#[test]
fn a_slot_that_came_free_meanwhile_is_found_on_entering() {
    let up = upstream(1);
    let (queue, _) = queue(&[&up], 10);
    let mut place = enter(&queue, 1);
    let (_, lease) = place.take_grant().unwrap();
    assert_eq!(up.in_flight(), 1);
    drop(lease);
}

#[test]
fn nobody_is_granted_a_member_that_was_tried_or_is_not_the_one() {
    let (a, b) = (upstream(1), upstream(1));
    let (queue, wakes) = queue(&[&a, &b], 10);
    let (on_a, on_b) = (a.try_lease().unwrap(), b.try_lease().unwrap());
    let mut tried = Tried::NONE;
    tried.insert(0);
    let accepts = [Accepts { tried, only: None }, Accepts { tried: Tried::NONE, only: Some(0) }];
    let mut not_a = queue.enter(Share::of(1, 5), accepts[0], 1, LATE).unwrap();
    let mut only_a = queue.enter(Share::of(1, 0), accepts[1], 2, LATE).unwrap();
    drop(on_a);
    assert_eq!(wakes.take(), [2], "the other keeps its place");
    assert!(wanted(&b) && !wanted(&a));
    drop(on_b);
    assert_eq!(only_a.take_grant().unwrap().0, 0);
    assert_eq!(not_a.take_grant().unwrap().0, 1);
    assert!(!wanted(&a) && !wanted(&b));
}

#[test]
fn rooms_of_one_upstream_are_served_in_turn() {
    let up = upstream(1);
    let (first, _) = queue(&[&up], 10);
    let (_none, _) = queue(&[&up], 10);
    let (second, _) = queue(&[&up], 10);
    let mut lease = up.try_lease();
    let mut places: Vec<_> =
        (0..8).map(|i| (i % 2, enter([&*first, &*second][i % 2], i as u32))).collect();
    let mut order = Vec::new();
    while !places.is_empty() {
        drop(lease.take());
        let at = places.iter().position(|(_, place)| place.is_granted()).unwrap();
        let (of, mut place) = places.remove(at);
        order.push(of);
        lease = Some(place.take_grant().unwrap().1);
    }
    assert_eq!(order, [0, 1, 0, 1, 0, 1, 0, 1]);
}

#[test]
fn a_raised_or_lifted_limit_lets_waiters_go() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 10);
    let _lease = up.try_lease();
    let _places: Vec<_> = (1..=5).map(|token| enter(&queue, token)).collect();
    up.set_concurrency(3);
    assert_eq!((wakes.take(), up.in_flight()), (vec![1, 2], 3));
    up.set_concurrency(0);
    assert_eq!((wakes.take(), up.in_flight()), (vec![3, 4, 5], 6));
}

#[test]
fn a_member_that_is_down_is_granted_to_nobody_until_it_is_back() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 10);
    let lease = up.try_lease();
    let _place = enter(&queue, 1);
    up.set_healthy(false);
    drop(lease);
    assert_eq!((up.in_flight(), wakes.take().len()), (0, 0));
    up.set_healthy(true);
    assert_eq!((up.in_flight(), wakes.take()), (1, vec![1]));
}

#[test]
fn an_open_breaker_grants_nothing_and_a_closing_one_lets_all_go() {
    let up = upstream(2);
    let (queue, wakes) = queue(&[&up], 10);
    let (first, second) = (up.try_lease(), up.try_lease());
    let _places = [enter(&queue, 1), enter(&queue, 2)];
    let entry = up.breaker.enter(Moment::ORIGIN).unwrap();
    up.count_change(up.breaker.record(entry, CallResult::Failure, Moment::ORIGIN));
    drop((first, second));
    assert_eq!((up.in_flight(), wakes.take().len()), (0, 0));
    wakes.now.store(THEN);
    let entry = up.breaker.enter(THEN).unwrap();
    up.count_change(up.breaker.record(entry, CallResult::Success, THEN));
    assert_eq!((up.in_flight(), wakes.take()), (2, vec![1, 2]));
}

#[test]
fn as_a_last_resort_an_open_breaker_grants_where_there_is_nobody_else() {
    let open = |up: &UpstreamState| {
        let entry = up.breaker.enter(Moment::ORIGIN).unwrap();
        up.count_change(up.breaker.record(entry, CallResult::Failure, Moment::ORIGIN));
    };
    let (up, other) = (resorting(1, true), resorting(1, true));
    let (queue, wakes) = queue(&[&up, &other], 10);
    let (held, busy) = (up.try_lease(), other.try_lease());
    open(&up);
    let _places = [enter(&queue, 1), enter(&queue, 2)];
    drop(held);
    assert_eq!(wakes.take().len(), 0, "the other one is only busy");
    open(&other);
    drop(busy);
    assert_eq!(wakes.take(), [1]);
    up.poke();
    assert_eq!(wakes.take(), [2]);
}

#[test]
fn a_cooldown_that_is_over_lets_one_try() {
    let up = upstream(4);
    let (queue, wakes) = queue(&[&up], 10);
    let entry = up.breaker.enter(Moment::ORIGIN).unwrap();
    up.count_change(up.breaker.record(entry, CallResult::Failure, Moment::ORIGIN));
    let _places = [enter(&queue, 1), enter(&queue, 2)];
    up.poke();
    assert_eq!(wakes.take().len(), 0, "still open");
    wakes.now.store(THEN);
    up.poke();
    assert_eq!(wakes.take(), [1]);
}

#[test]
fn nothing_is_granted_at_the_deadline_and_the_place_counts_until_left() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 1);
    let lease = up.try_lease();
    let place = queue.enter(Share::of(1, 0), Accepts::ALL, 1, Moment::from_millis(50)).unwrap();
    wakes.now.store(Moment::from_millis(50));
    drop(lease);
    assert_eq!((up.in_flight(), place.is_granted(), queue.len()), (0, false, 1));
    drop(place);
    assert!(queue.is_empty() && !wanted(&up));
}

#[test]
fn a_full_room_refuses_and_one_without_length_always() {
    let up = upstream(1);
    let (one, _) = queue(&[&up], 1);
    let (none, _) = queue(&[&up], 0);
    let _lease = up.try_lease();
    let place = enter(&one, 1);
    assert_eq!(one.enter(Share::of(2, 0), Accepts::ALL, 2, LATE).err(), Some(Full));
    assert_eq!(none.enter(Share::of(2, 0), Accepts::ALL, 2, LATE).err(), Some(Full));
    assert_eq!(one.retry_after_s(), 1000, "until the first gives up");
    drop(place);
    assert!(one.enter(Share::of(2, 0), Accepts::ALL, 2, LATE).is_ok());
}

#[test]
fn a_room_that_is_gone_is_forgotten() {
    let up = upstream(1);
    for _ in 0..100 {
        drop(queue(&[&up], 1));
    }
    let (last, wakes) = queue(&[&up], 1);
    assert_eq!(format!("{:?}", up.slots).matches("QueueRef").count(), 1);
    let lease = up.try_lease();
    let _place = enter(&last, 7);
    drop(lease);
    assert_eq!(wakes.take(), [7]);
}

/// A queue that wants every slot, takes none, and does something when it is asked.
struct Meddler<F>(F);

impl<F: Fn() + Send + Sync> Waiting for Meddler<F> {
    fn offer(&self, _: usize) -> bool {
        (self.0)();
        false
    }
    fn fill(&self, _: usize) -> bool {
        false
    }
}

// Between the last look at who waits and the slot being free, somebody sits down: too late to be
// handed the slot, too early to see it free. The one who gives it back looks once more.
#[test]
fn whoever_enters_while_a_slot_is_given_back_gets_it() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 10);
    let inside = queue.clone();
    let meddler: Arc<dyn Waiting> = Arc::new(Meddler(move || {
        let place = enter(&inside, 1);
        assert!(!place.is_granted(), "the slot is not free yet");
        std::mem::forget(place);
    }));
    // Behind the real queue, which has said by then that nobody waits.
    up.slots.register(Arc::downgrade(&meddler), 0);
    up.slots.want();
    drop(up.try_lease());
    assert_eq!((wakes.take(), up.in_flight(), queue.len()), (vec![1], 1, 0));
}

#[test]
fn another_plan_keeps_places_order_and_rate() {
    let (a, b) = (upstream(1), upstream(1));
    let wakes = Arc::new(Wakes::default());
    let queue = WaitQueue::new(9, wakes.clone() as _);
    let before = bound(&queue, &[&a]);
    let (mut on_a, on_b) = (a.try_lease(), b.try_lease());
    let mut places: Vec<_> = (1..=3).map(|token| enter(&before, token)).collect();
    // It measures one grant a second.
    wakes.now.store(Moment::from_secs(1));
    drop(on_a.take());
    drop(places.remove(0).take_grant());
    drop(places.remove(0).take_grant());
    on_a = places.remove(0).take_grant().map(|(_, lease)| lease);
    let mut second = enter(&before, 4);
    assert_eq!(wakes.take(), [1, 2, 3]);
    let rate = before.retry_after_s();
    // The next plan has a member more, in front.
    let after = bound(&queue, &[&b, &a]);
    assert_eq!((after.len(), after.retry_after_s()), (1, rate));
    let mut third = enter(&after, 5);
    drop(on_b);
    assert_eq!((wakes.take(), third.take_grant().map(|(member, _)| member)), (vec![5], Some(0)));
    let mut third = enter(&after, 6);
    let on_b = b.try_lease();
    drop(third.take_grant());
    assert!(on_b.is_none(), "it was granted at once");
    let on_b = b.try_lease();
    let mut third = enter(&after, 7);
    wakes.take();
    drop(on_a);
    assert_eq!(wakes.take(), [4], "the one that came first, by its plan's number");
    let (member, lease) = second.take_grant().unwrap();
    assert_eq!(member, 0);
    drop(lease);
    assert_eq!((wakes.take(), third.take_grant().unwrap().0), (vec![7], 1));
    drop(on_b);
    drop((second, third));
    assert!(!wanted(&a) && !wanted(&b) && after.is_empty());
}

#[test]
fn a_member_of_no_plan_asks_the_queue_no_more() {
    let (a, b) = (upstream(1), upstream(1));
    let wakes = Arc::new(Wakes::default());
    let queue = WaitQueue::new(9, wakes.clone() as _);
    let known = |up: &UpstreamState| format!("{:?}", up.slots).matches("QueueRef").count();
    let before = bound(&queue, &[&a, &b]);
    let after = bound(&queue, &[&b]);
    assert_eq!((known(&a), known(&b)), (1, 1), "one queue, in however many plans");
    drop(before);
    assert_eq!((known(&a), known(&b)), (0, 1));
    for _ in 0..9 {
        drop(bound(&queue, &[&a]));
    }
    // One that was removed and is back is served as ever.
    let again = bound(&queue, &[&a, &b]);
    let lease = a.try_lease();
    let mut place = enter(&again, 1);
    assert_eq!(place.take_grant().map(|(member, _)| member), Some(1));
    let held = b.try_lease();
    let mut next = enter(&again, 2);
    drop(lease);
    assert_eq!(next.take_grant().map(|(member, _)| member), Some(0));
    drop((held, after));
}

#[test]
fn a_lowered_length_lets_those_who_wait_stay() {
    let up = upstream(1);
    let (queue, wakes) = queue(&[&up], 3);
    let mut lease = up.try_lease();
    let mut places: Vec<_> = (1..=3).map(|token| enter(&queue, token)).collect();
    queue.set_length(1);
    let newcomer = |priority| queue.enter(Share::of(9, priority), Accepts::ALL, 9, LATE).is_err();
    assert!(newcomer(0) && newcomer(5), "nor is anybody displaced");
    for token in 1..=3 {
        drop(lease.take());
        assert_eq!(wakes.take(), [token]);
        lease = places.remove(0).take_grant().map(|(_, lease)| lease);
    }
    let _one = enter(&queue, 4);
    assert!(newcomer(0));
    queue.set_length(2);
    assert!(!newcomer(0));
}
