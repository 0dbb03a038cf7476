use super::*;
use proptest::prelude::*;

const S: u64 = 1_000_000_000;

/// The store, as its script does it, in the plainest way.
#[derive(Default)]
struct Store {
    minute: (u32, u32),
    day: (u32, u32),
}

impl Store {
    fn answer(&mut self, quota: Quota, draw: &Draw, nodes: u32, now_ns: u64) -> Dealt {
        let (minute, day) = numbers(now_ns);
        if self.minute.0 != minute {
            self.minute = (minute, 0);
        }
        if self.day.0 != day {
            self.day = (day, 0);
        }
        let left = |limit: u32, used: u32| if limit > 0 { limit - used } else { u32::MAX };
        let hand = |(number, count): (u32, u32), now: u32| if number == now { count } else { 0 };
        let (hand_minute, hand_day) = (hand(draw.hand_minute, minute), hand(draw.hand_day, day));
        let left_minute = left(quota.per_minute, self.minute.1);
        let left_day = left(quota.per_day, self.day.1);
        let passed = draw
            .waiting
            .min(hand_minute.saturating_add(left_minute))
            .min(hand_day.saturating_add(left_day));
        let give = |limit: u32, hand: u32, left: u32, ahead: u32| {
            if limit == 0 {
                return 0;
            }
            let given = passed.saturating_sub(hand);
            given + ahead.min((left - given) / (4 * nodes))
        };
        let given_minute = give(quota.per_minute, hand_minute, left_minute, draw.ahead_minute);
        let given_day = give(quota.per_day, hand_day, left_day, draw.ahead_day);
        self.minute.1 += given_minute;
        self.day.1 += given_day;
        Dealt {
            minute,
            day,
            passed,
            given_minute,
            given_day,
            left_minute: left(quota.per_minute, self.minute.1),
            left_day: left(quota.per_day, self.day.1),
        }
    }
}

/// One call at one node, as an exchange makes it.
fn call(lease: &Lease, store: &mut Store, quota: Quota, nodes: u32, now_ns: u64) -> bool {
    match lease.take(quota, now_ns) {
        Ok(()) => true,
        Err(Short::Full(_)) => false,
        Err(Short::Empty) => {
            let draw = lease.draw(quota, 1, true, now_ns);
            let dealt = store.answer(quota, &draw, nodes, now_ns);
            lease.deal(quota, &draw, &dealt);
            dealt.passed == 1
        }
    }
}

#[test]
fn two_nodes_spend_a_small_budget_to_the_last_call() {
    let (nodes, mut store) = ([Lease::default(), Lease::default()], Store::default());
    let quota = Quota { per_minute: 5, per_day: 0 };
    let passed = (0..40).filter(|n| call(&nodes[n % 2], &mut store, quota, 2, 7)).count();
    assert_eq!(passed, 5);
    // A node that comes late finds nothing.
    assert!(!call(&Lease::default(), &mut store, quota, 2, 7));
    // In the next minute one node alone gets all.
    assert_eq!((0..9).filter(|_| call(&nodes[0], &mut store, quota, 2, 60 * S)).count(), 5);
}

#[test]
fn a_large_budget_costs_few_draws() {
    let (lease, mut store) = (Lease::default(), Store::default());
    let quota = Quota { per_minute: 6400, per_day: 0 };
    let mut draws = 0;
    for _ in 0..6400 {
        if lease.take(quota, 0).is_err() {
            draws += 1;
            let draw = lease.draw(quota, 1, true, 0);
            let dealt = store.answer(quota, &draw, 1, 0);
            assert_eq!(dealt.passed, 1);
            lease.deal(quota, &draw, &dealt);
        }
    }
    assert!(draws < 200, "{draws}");
    assert_eq!(lease.take(quota, 0), Err(Short::Full(Full::Minute)));
}

#[test]
fn a_full_budget_is_known_until_its_window_ends() {
    let (lease, mut store) = (Lease::default(), Store::default());
    let quota = Quota { per_minute: 1, per_day: 0 };
    assert_eq!(lease.take(quota, 0), Err(Short::Empty));
    assert!(call(&lease, &mut store, quota, 1, 0));
    assert_eq!(lease.take(quota, 59 * S), Err(Short::Full(Full::Minute)));
    assert_eq!(lease.take(quota, 60 * S), Err(Short::Empty));
}

#[test]
fn what_is_left_of_a_minute_is_void_in_the_next() {
    let (lease, mut store) = (Lease::default(), Store::default());
    let quota = Quota { per_minute: 6400, per_day: 0 };
    assert!(call(&lease, &mut store, quota, 1, 0));
    assert_eq!(lease.take(quota, 0), Ok(()));
    assert_eq!(lease.take(quota, 60 * S), Err(Short::Empty));
}

#[test]
fn a_draw_without_an_answer_loses_nothing() {
    let (lease, mut store) = (Lease::default(), Store::default());
    let quota = Quota { per_minute: 6400, per_day: 64_000 };
    assert!(call(&lease, &mut store, quota, 1, 0));
    assert!(lease.spend(70));
    let (before, standing) = (store.minute.1, lease.standing(quota, 0));
    let draw = lease.draw(quota, 3, true, 0);
    assert_eq!(lease.take(quota, 0), Err(Short::Empty), "all of it is in hand");
    assert_eq!(draw.tokens, 70);
    lease.undo(&draw);
    assert_eq!((store.minute.1, lease.standing(quota, 0)), (before, standing));
    assert_eq!(lease.draw(quota, 0, false, 0).tokens, 70);
}

#[test]
fn is_nudged_when_low_or_old_and_only_once() {
    let (lease, mut store) = (Lease::default(), Store::default());
    let quota = Quota { per_minute: 6400, per_day: 0 };
    assert!(call(&lease, &mut store, quota, 1, S));
    assert!(!lease.nudge(quota, S), "a full batch");
    for _ in 0..50 {
        lease.take(quota, S).unwrap();
    }
    assert!(lease.nudge(quota, S) && !lease.nudge(quota, S));
    lease.nudge_failed();
    assert!(lease.nudge(quota, S));
    let draw = lease.draw(quota, 0, true, S);
    let dealt = store.answer(quota, &draw, 1, S);
    lease.deal(quota, &draw, &dealt);
    assert!(!lease.nudge(quota, S));
    assert!(lease.nudge(quota, 2 * S), "others may have used some");
}

#[test]
fn tells_what_is_left_at_the_store_and_here() {
    let (lease, mut store) = (Lease::default(), Store::default());
    let quota = Quota { per_minute: 6400, per_day: 3 };
    for left in [2, 1, 0] {
        assert!(call(&lease, &mut store, quota, 1, 0));
        let told = lease.standing(quota, 0);
        assert_eq!(told.minute, Some(Share { limit: 6400, left: 6397 + left }));
        assert_eq!(told.day, Some(Share { limit: 3, left }));
    }
    assert!(!call(&lease, &mut store, quota, 1, 0));
    assert_eq!(lease.standing(quota, 60 * S).minute, Some(Share { limit: 6400, left: 6400 }));
}

#[test]
fn four_threads_never_spend_more_than_was_dealt() {
    let lease = Lease::default();
    let quota = Quota { per_minute: 6400, per_day: 9000 };
    let draw = lease.draw(quota, 0, true, 0);
    let dealt = Dealt {
        given_minute: 500,
        given_day: 400,
        left_minute: 1,
        left_day: 1,
        ..Dealt::default()
    };
    lease.deal(quota, &draw, &dealt);
    let taken: usize = std::thread::scope(|scope| {
        let tries = || (0..300).filter(|_| lease.take(quota, 0).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(tries)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(taken, 400);
    assert_eq!(lease.minute.at(0).count, 100, "what the day refused costs no minute");
}

proptest! {
    /// Whatever the nodes do, no window is ever overspent; and as long as somebody asks, one of
    /// a small budget is spent whole.
    #[test]
    fn nodes_together_never_exceed_the_budget(
        per_minute in prop::sample::select(vec![0u32, 1, 5, 100, 300, 7000]),
        per_day in prop::sample::select(vec![0u32, 1, 7, 200, 10_000]),
        calls in prop::collection::vec((0usize..3, 0u64..20, 1u32..40), 1..200),
    ) {
        let quota = Quota { per_minute, per_day };
        let nodes: [Lease; 3] = Default::default();
        let mut store = Store::default();
        let mut now = 0;
        let (mut used_minute, mut used_day) = ((0, 0u32), (0, 0u32));
        for (node, gap_s, tries) in calls {
            now += gap_s * S;
            let (minute, day) = numbers(now);
            if used_minute.0 != minute {
                used_minute = (minute, 0);
            }
            if used_day.0 != day {
                used_day = (day, 0);
            }
            for _ in 0..tries {
                if call(&nodes[node], &mut store, quota, 3, now) {
                    used_minute.1 += 1;
                    used_day.1 += 1;
                } else if batch(per_minute) == 0 && batch(per_day) == 0 {
                    let full = |limit: u32, used: u32| limit > 0 && used == limit;
                    prop_assert!(full(per_minute, used_minute.1) || full(per_day, used_day.1));
                }
                prop_assert!(per_minute == 0 || used_minute.1 <= per_minute);
                prop_assert!(per_day == 0 || used_day.1 <= per_day);
            }
        }
    }
}
