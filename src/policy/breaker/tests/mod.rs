//! The breaker: every transition by hand, all of them against a slow oracle, and threads.

use super::state::{EPOCH_MAX, UNTIL_MAX};
use super::*;
use proptest::prelude::*;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

const SECOND: u64 = 1000;

fn ms(millis: u64) -> Moment {
    Moment::from_millis(millis)
}

fn policy() -> BreakerPolicy {
    BreakerPolicy::default()
}

/// One call from beginning to end at one moment; `None` when it was refused.
fn call(breaker: &Breaker, result: CallResult, now: u64) -> Option<Option<Change>> {
    let entry = breaker.enter(ms(now))?;
    Some(breaker.record(entry, result, ms(now)))
}

fn fail(breaker: &Breaker, times: u32, now: u64) {
    for _ in 0..times {
        call(breaker, CallResult::Failure, now);
    }
}

fn succeed(breaker: &Breaker, times: u32, now: u64) {
    for _ in 0..times {
        call(breaker, CallResult::Success, now);
    }
}

fn name(breaker: &Breaker) -> StateName {
    breaker.state().name()
}

/// Opens a fresh breaker at `now`.
fn open(policy: BreakerPolicy, now: u64) -> Breaker {
    let breaker = Breaker::new(policy);
    fail(&breaker, policy.consecutive, now);
    assert_eq!(name(&breaker), StateName::Open);
    breaker
}

#[test]
fn opens_after_consecutive_failures() {
    let breaker = Breaker::new(policy());
    fail(&breaker, 4, 0);
    assert!(breaker.admits(ms(0)));
    let change = call(&breaker, CallResult::Failure, 0).unwrap();
    assert_eq!(change, Some(Change { from: StateName::Closed, to: StateName::Open }));
    assert!(!breaker.admits(ms(0)));
    assert_eq!(breaker.enter(ms(0)), None);
}

#[test]
fn a_success_between_begins_the_row_anew() {
    let breaker = Breaker::new(BreakerPolicy { calls_min: 1000, ..policy() });
    for _ in 0..10 {
        fail(&breaker, 4, 0);
        succeed(&breaker, 1, 0);
    }
    assert_eq!(breaker.state(), State::Closed { consecutive: 0 });
}

#[test]
fn opens_when_half_of_ten_calls_failed() {
    let breaker = Breaker::new(policy());
    for _ in 0..4 {
        succeed(&breaker, 1, 0);
        fail(&breaker, 1, 0);
    }
    succeed(&breaker, 1, 0);
    assert_eq!(name(&breaker), StateName::Closed);
    fail(&breaker, 1, 0);
    assert_eq!(name(&breaker), StateName::Open);
}

#[test]
fn the_share_is_judged_by_successes_too_once_there_are_enough_calls() {
    let breaker = Breaker::new(BreakerPolicy { consecutive: 1000, ..policy() });
    fail(&breaker, 9, 0);
    assert_eq!(name(&breaker), StateName::Closed);
    succeed(&breaker, 1, 0);
    assert_eq!(name(&breaker), StateName::Open);
}

#[test]
fn failures_older_than_the_window_do_not_count() {
    let breaker = Breaker::new(BreakerPolicy { consecutive: 1000, ..policy() });
    fail(&breaker, 9, 0);
    fail(&breaker, 9, 10 * SECOND);
    assert_eq!(name(&breaker), StateName::Closed);
    fail(&breaker, 1, 10 * SECOND);
    assert_eq!(name(&breaker), StateName::Open);
}

// An older proxy counted its half-open calls in a way that let it stay open for ever.
#[test]
fn a_breaker_recovers_by_itself() {
    let breaker = open(policy(), 0);
    assert!(!breaker.admits(ms(30 * SECOND - 1)));
    assert_eq!(breaker.next_admission(ms(5)), Some(ms(30 * SECOND)));
    assert!(breaker.admits(ms(30 * SECOND)));
    // Nothing but picking has happened in between: no timer, no call.
    let entry = breaker.enter(ms(30 * SECOND)).unwrap();
    assert_eq!(entry.change(), Some(Change { from: StateName::Open, to: StateName::HalfOpen }));
    let change = breaker.record(entry, CallResult::Success, ms(30 * SECOND + 5));
    assert_eq!(change, Some(Change { from: StateName::HalfOpen, to: StateName::Closed }));
    assert!(breaker.admits(ms(30 * SECOND + 5)));
}

// An older proxy let thirty answers of 500 pass without opening.
#[test]
fn thirty_500s_trip_the_breaker() {
    let breaker = Breaker::new(policy());
    let passed = (0..30).filter(|at| call(&breaker, CallResult::Failure, *at).is_some()).count();
    assert_eq!(passed, 5);
    assert_eq!(name(&breaker), StateName::Open);
}

// In an older proxy one failure took a counter below zero and starved the server for ever.
#[test]
fn one_failure_does_not_underflow_anything() {
    let breaker = Breaker::new(policy());
    fail(&breaker, 1, 0);
    assert_eq!(breaker.state(), State::Closed { consecutive: 1 });
    assert!(breaker.admits(ms(0)));
    succeed(&breaker, 1, 1);
    assert_eq!(breaker.state(), State::Closed { consecutive: 0 });
    // A trial of an epoch that is over has nothing to give back.
    let breaker = open(policy(), 0);
    let first = breaker.enter(ms(30 * SECOND)).unwrap();
    breaker.record(first, CallResult::Failure, ms(30 * SECOND));
    let second = breaker.enter(ms(90 * SECOND)).unwrap();
    let Entry::Trial { epoch, .. } = second else { panic!("{second:?}") };
    breaker.cancel(Entry::Trial { epoch: epoch - 2, half_opened: false });
    breaker.cancel(Entry::Trial { epoch: epoch - 1, half_opened: false });
    assert_eq!(breaker.state(), State::HalfOpen { trials_out: 1, successes: 0 });
    breaker.cancel(second);
    breaker.cancel(Entry::Trial { epoch, half_opened: false });
    assert_eq!(breaker.state(), State::HalfOpen { trials_out: 0, successes: 0 });
}

#[test]
fn half_open_lets_only_its_trials_through() {
    let breaker = open(BreakerPolicy { trials: 2, successes: 3, ..policy() }, 0);
    let now = 30 * SECOND;
    let (one, two) = (breaker.enter(ms(now)).unwrap(), breaker.enter(ms(now)).unwrap());
    assert!(!breaker.admits(ms(now)) && breaker.enter(ms(now)).is_none());
    assert_eq!(breaker.next_admission(ms(now)), None);
    assert_eq!(breaker.record(one, CallResult::Success, ms(now)), None);
    assert!(breaker.admits(ms(now)));
    let three = breaker.enter(ms(now)).unwrap();
    assert_eq!(breaker.record(two, CallResult::Success, ms(now)), None);
    assert!(breaker.record(three, CallResult::Success, ms(now)).is_some());
    assert_eq!(name(&breaker), StateName::Closed);
}

#[test]
fn a_failed_trial_doubles_the_cooldown_up_to_eight_times() {
    let breaker = open(policy(), 0);
    let mut now = 0;
    for cooldown_s in [30, 60, 120, 240, 240, 240] {
        assert_eq!(breaker.state(), State::Open { until: ms(now + cooldown_s * SECOND) });
        now += cooldown_s * SECOND;
        fail(&breaker, 1, now);
    }
    // Closing forgets the doublings.
    now += 240 * SECOND;
    succeed(&breaker, 1, now);
    fail(&breaker, 5, now);
    assert_eq!(breaker.state(), State::Open { until: ms(now + 30 * SECOND) });
}

#[test]
fn closing_forgets_the_window() {
    let breaker = Breaker::new(BreakerPolicy { cooldown: Duration::from_secs(1), ..policy() });
    fail(&breaker, 5, 0);
    succeed(&breaker, 1, SECOND);
    // Nine calls, four of them failures, beside the five failures from before.
    for _ in 0..4 {
        fail(&breaker, 1, SECOND);
        succeed(&breaker, 1, SECOND);
    }
    assert_eq!(name(&breaker), StateName::Closed);
}

#[test]
fn a_cancelled_trial_is_free_again() {
    let breaker = open(policy(), 0);
    let now = 30 * SECOND;
    for _ in 0..100 {
        let entry = breaker.enter(ms(now)).unwrap();
        assert!(breaker.enter(ms(now)).is_none());
        breaker.cancel(entry);
    }
    assert_eq!(breaker.state(), State::HalfOpen { trials_out: 0, successes: 0 });
}

#[test]
fn results_of_calls_begun_before_a_change_count_for_nothing() {
    let breaker = Breaker::new(policy());
    let mut old: Vec<Entry> = (0..20).filter_map(|_| breaker.enter(ms(0))).collect();
    fail(&breaker, 5, 0);
    let opened = breaker.state();
    for entry in old.drain(..5) {
        assert_eq!(breaker.record(entry, CallResult::Failure, ms(SECOND)), None);
    }
    assert_eq!(breaker.state(), opened);
    let trial = breaker.enter(ms(30 * SECOND)).unwrap();
    for entry in old.drain(..5) {
        assert_eq!(breaker.record(entry, CallResult::Success, ms(30 * SECOND)), None);
    }
    assert_eq!(breaker.state(), State::HalfOpen { trials_out: 1, successes: 0 });
    breaker.record(trial, CallResult::Success, ms(30 * SECOND));
    for entry in old {
        assert_eq!(breaker.record(entry, CallResult::Failure, ms(31 * SECOND)), None);
    }
    assert_eq!(breaker.state(), State::Closed { consecutive: 0 });
}

#[test]
fn a_late_trial_does_not_touch_the_next_half_open() {
    let breaker = open(BreakerPolicy { trials: 2, ..policy() }, 0);
    let (one, late) =
        (breaker.enter(ms(30 * SECOND)).unwrap(), breaker.enter(ms(30 * SECOND)).unwrap());
    breaker.record(one, CallResult::Failure, ms(30 * SECOND));
    let _trial = breaker.enter(ms(90 * SECOND)).unwrap();
    assert_eq!(breaker.record(late, CallResult::Success, ms(90 * SECOND)), None);
    assert_eq!(breaker.state(), State::HalfOpen { trials_out: 1, successes: 0 });
}

#[test]
fn streams_that_are_cut_off_open_it() {
    let breaker = Breaker::new(policy());
    for at in 0..10 {
        assert_eq!(name(&breaker), StateName::Closed);
        succeed(&breaker, 1, at);
        breaker.record_truncated(CallResult::Failure, ms(at));
        if name(&breaker) == StateName::Open {
            assert_eq!(at, 4, "five of ten failed");
            break;
        }
    }
    let open = breaker.state();
    assert_eq!(breaker.record_truncated(CallResult::Failure, ms(100)), None);
    assert_eq!(breaker.state(), open);
    // In a row they open it at once.
    let breaker = Breaker::new(policy());
    succeed(&breaker, 3, 0);
    assert_eq!(
        (0..5).filter_map(|_| breaker.record_truncated(CallResult::Failure, ms(0))).count(),
        1
    );
}

#[test]
fn threads_never_hold_more_than_the_trials() {
    for trials in [1u32, 3] {
        let policy = BreakerPolicy { trials, successes: 1000, ..policy() };
        let breaker = open(policy, 0);
        let (out, most, entered) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for thread in 0..8u32 {
                let (breaker, out, most, entered) = (&breaker, &out, &most, &entered);
                scope.spawn(move || {
                    for at in 0..2_000u32 {
                        let Some(entry) = breaker.enter(ms(30 * SECOND)) else {
                            std::hint::spin_loop();
                            continue;
                        };
                        entered.fetch_add(1, Relaxed);
                        most.fetch_max(out.fetch_add(1, Relaxed) + 1, Relaxed);
                        out.fetch_sub(1, Relaxed);
                        if (at + thread) % 64 == 0 {
                            breaker.record(entry, CallResult::Success, ms(30 * SECOND));
                        } else {
                            breaker.cancel(entry);
                        }
                    }
                });
            }
        });
        assert!(most.into_inner() <= trials);
        assert!(entered.into_inner() > 0);
        match breaker.state() {
            State::HalfOpen { trials_out, .. } => assert_eq!(trials_out, 0),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn threads_open_it_once_and_half_open_it_once() {
    for round in 0..50 {
        let breaker = Breaker::new(policy());
        let (opened, half_opened) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10 {
                        if let Some(Some(_)) = call(&breaker, CallResult::Failure, round) {
                            opened.fetch_add(1, Relaxed);
                        }
                    }
                });
            }
        });
        assert_eq!(opened.into_inner(), 1);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    if let Some(entry) = breaker.enter(ms(40 * SECOND)) {
                        half_opened.fetch_add(u32::from(entry.change().is_some()), Relaxed);
                        breaker.cancel(entry);
                    }
                });
            }
        });
        assert_eq!(half_opened.into_inner(), 1);
    }
}

/// The same rules over plain lists, one call at a time.
struct Oracle {
    policy: BreakerPolicy,
    /// Of this epoch: tenth of the window, failed.
    calls: Vec<(u64, bool)>,
    row: u32,
    open_until: Option<u64>,
    half_open: Option<(Vec<u32>, u32)>,
    doublings: u32,
    epoch: u32,
}

impl Oracle {
    fn enter(&mut self, id: u32, now: u64) -> Option<u32> {
        if self.open_until.is_some_and(|until| now >= until) {
            self.open_until = None;
            self.half_open = Some((Vec::new(), 0));
            self.epoch += 1;
        }
        if self.open_until.is_some() {
            return None;
        }
        if let Some((out, _)) = &mut self.half_open {
            if out.len() as u32 >= self.policy.trials {
                return None;
            }
            out.push(id);
        }
        Some(self.epoch)
    }

    fn end(&mut self, id: u32, epoch: u32, result: Option<CallResult>, now: u64) {
        if epoch != self.epoch || self.open_until.is_some() {
            return;
        }
        if let Some((out, successes)) = &mut self.half_open {
            out.retain(|other| *other != id);
            match result {
                None => {}
                Some(CallResult::Failure | CallResult::TimedOut) => {
                    self.open((self.doublings + 1).min(3), now)
                }
                Some(CallResult::Success) => {
                    *successes += 1;
                    if *successes >= self.policy.successes {
                        self.half_open = None;
                        (self.doublings, self.row, self.epoch) = (0, 0, self.epoch + 1);
                        self.calls.clear();
                    }
                }
            }
            return;
        }
        let Some(result) = result else { return };
        let failed = result.is_failure();
        let tenth = |ms: u64| ms / (self.policy.window.as_millis() as u64 / 10);
        self.calls.push((tenth(now), failed));
        self.row = if failed { self.row + 1 } else { 0 };
        let recent = || self.calls.iter().filter(|(at, _)| at + 10 > tenth(now));
        let (calls, failures) = (recent().count(), recent().filter(|(_, failed)| *failed).count());
        let over = calls >= self.policy.calls_min as usize
            && failures as f64 / calls as f64 >= self.policy.threshold;
        if over || self.row >= self.policy.consecutive {
            self.open(0, now);
        }
    }

    fn open(&mut self, doublings: u32, now: u64) {
        let cooldown = self.policy.cooldown.as_millis() as u64;
        self.open_until = Some(now + cooldown * 2u64.pow(doublings));
        self.half_open = None;
        (self.doublings, self.row, self.epoch) = (doublings, 0, self.epoch + 1);
        self.calls.clear();
    }

    fn state(&self) -> State {
        match (self.open_until, &self.half_open) {
            (Some(until), _) => State::Open { until: ms(until) },
            (None, Some((out, successes))) => {
                State::HalfOpen { trials_out: out.len() as u32, successes: *successes }
            }
            (None, None) => State::Closed { consecutive: self.row },
        }
    }
}

/// One call that has nowhere else to go, from beginning to end; `None` when it was refused.
fn last(breaker: &Breaker, result: CallResult, now: u64) -> Option<Option<Change>> {
    let entry = breaker.enter_last_resort(ms(now))?;
    Some(breaker.record(entry, result, ms(now)))
}

/// Opens a breaker by calls that run out of time.
fn hung(now: u64) -> Breaker {
    let breaker = Breaker::new(policy());
    for _ in 0..5 {
        call(&breaker, CallResult::TimedOut, now);
    }
    assert_eq!(name(&breaker), StateName::Open);
    breaker
}

#[test]
fn a_last_resort_goes_freely_while_calls_fail_fast_and_changes_nothing() {
    let breaker = open(policy(), 0);
    assert_eq!(breaker.enter(ms(1)), None);
    let out: Vec<Entry> = (0..50).map(|_| breaker.enter_last_resort(ms(1)).unwrap()).collect();
    for entry in out {
        assert_eq!(breaker.record(entry, CallResult::Failure, ms(2)), None);
    }
    assert_eq!(breaker.state(), State::Open { until: ms(30 * SECOND) }, "no longer than before");
    assert_eq!(breaker.failed_at(), ms(2), "but the others are tried before it");
}

#[test]
fn one_last_resort_that_works_closes_it() {
    let breaker = open(policy(), 0);
    let change = last(&breaker, CallResult::Success, 1).unwrap();
    assert_eq!(change, Some(Change { from: StateName::Open, to: StateName::Closed }));
    let two = BreakerPolicy { successes: 2, ..policy() };
    let breaker = open(two, 0);
    last(&breaker, CallResult::Success, 1).unwrap();
    assert_eq!(breaker.state(), State::HalfOpen { trials_out: 0, successes: 1 });
    last(&breaker, CallResult::Success, 2).unwrap();
    assert_eq!(name(&breaker), StateName::Closed);
}

#[test]
fn one_last_resort_at_a_time_while_calls_hang() {
    let breaker = hung(0);
    let first = breaker.enter_last_resort(ms(1)).unwrap();
    assert!(matches!(first, Entry::Trial { half_opened: true, .. }), "{first:?}");
    assert!(!breaker.admits_last_resort(ms(2)) && breaker.enter_last_resort(ms(2)).is_none());
    breaker.record(first, CallResult::TimedOut, ms(10 * SECOND));
    let second = breaker.enter_last_resort(ms(10 * SECOND)).unwrap();
    assert_eq!(breaker.enter_last_resort(ms(10 * SECOND)), None);
    breaker.cancel(second);
    let third = breaker.enter_last_resort(ms(10 * SECOND)).unwrap();
    // It fails, but at once: calls do not hang any more.
    breaker.record(third, CallResult::Failure, ms(10 * SECOND));
    assert!((0..9).all(|_| breaker.enter_last_resort(ms(10 * SECOND)).is_some()));
}

#[test]
fn calls_that_are_out_in_silence_hang() {
    let breaker = open(policy(), 0);
    let _out = breaker.enter_last_resort(ms(SECOND)).unwrap();
    assert!(breaker.enter_last_resort(ms(6 * SECOND)).is_some(), "it may be a long prompt");
    assert!(breaker.enter_last_resort(ms(8 * SECOND)).is_some(), "one trial");
    assert_eq!(breaker.enter_last_resort(ms(8 * SECOND)), None);
    // A server that answers questions is slow, no more.
    let breaker = open(policy(), 0);
    let _out = breaker.enter_last_resort(ms(SECOND)).unwrap();
    breaker.rechecked(Sign::Bad, ms(7 * SECOND));
    assert!((0..9).all(|_| breaker.enter_last_resort(ms(8 * SECOND)).is_some()));
}

#[test]
fn a_slow_trial_does_not_hold_up_the_others() {
    let breaker = open(policy(), 0);
    let slow = breaker.enter(ms(30 * SECOND)).unwrap();
    assert!(!breaker.admits(ms(31 * SECOND)) && breaker.admits_last_resort(ms(31 * SECOND)));
    last(&breaker, CallResult::Success, 31 * SECOND).unwrap();
    assert_eq!(name(&breaker), StateName::Closed);
    assert_eq!(breaker.record(slow, CallResult::Success, ms(90 * SECOND)), None);
}

#[test]
fn without_last_resort_it_fails_fast() {
    let breaker = open(BreakerPolicy { last_resort: false, ..policy() }, 0);
    assert!(!breaker.admits_last_resort(ms(1)) && breaker.enter_last_resort(ms(1)).is_none());
    assert!(breaker.admits_last_resort(ms(30 * SECOND)), "a trial is no last resort");
}

#[test]
fn a_good_recheck_half_opens_it_at_once() {
    let breaker = open(policy(), 0);
    assert_eq!(breaker.rechecked(Sign::Bad, ms(SECOND)), None);
    assert_eq!(breaker.rechecked(Sign::Silent, ms(2 * SECOND)), None);
    assert!(!breaker.admits(ms(2 * SECOND)));
    let change = breaker.rechecked(Sign::Good, ms(3 * SECOND));
    assert_eq!(change, Some(Change { from: StateName::Open, to: StateName::HalfOpen }));
    assert!(call(&breaker, CallResult::Success, 3 * SECOND).is_some());
    assert_eq!(name(&breaker), StateName::Closed);
    assert_eq!(breaker.rechecked(Sign::Good, ms(4 * SECOND)), None);
}

#[test]
fn a_trial_lost_before_the_return_does_not_hold_up_those_after_it() {
    let breaker = hung(0);
    let lost = breaker.enter(ms(30 * SECOND)).unwrap();
    breaker.rechecked(Sign::Silent, ms(31 * SECOND));
    assert!(!breaker.admits(ms(31 * SECOND)) && !breaker.admits_last_resort(ms(31 * SECOND)));
    breaker.rechecked(Sign::Good, ms(32 * SECOND));
    assert!(call(&breaker, CallResult::Success, 32 * SECOND).is_some());
    assert_eq!(name(&breaker), StateName::Closed);
    assert_eq!(breaker.record(lost, CallResult::TimedOut, ms(600 * SECOND)), None);
}

#[test]
fn a_server_that_answers_rechecks_and_fails_trials_is_believed_once_a_cooldown() {
    let breaker = open(policy(), 0);
    assert!(breaker.rechecked(Sign::Good, ms(SECOND)).is_some());
    call(&breaker, CallResult::Failure, SECOND).unwrap();
    for at in 2..61 {
        assert_eq!(breaker.rechecked(Sign::Good, ms(at * SECOND)), None, "{at}");
    }
    assert!(breaker.rechecked(Sign::Good, ms(61 * SECOND)).is_some());
    call(&breaker, CallResult::Failure, 61 * SECOND).unwrap();
    // One bad word in between, and the next good one is news again.
    breaker.rechecked(Sign::Bad, ms(62 * SECOND));
    assert!(breaker.rechecked(Sign::Good, ms(63 * SECOND)).is_some());
}

proptest! {
    #[test]
    fn agrees_with_the_oracle(
        threshold in prop::sample::select(vec![0.07, 0.3, 0.5, 1.0]),
        calls_min in 1u32..12, consecutive in 1u32..8, trials in 1u32..4, successes in 1u32..4,
        cooldown_s in 1u64..5, reliability in 0u8..=10,
        // What is done: 0..=2 begins a call, 3..=8 ends one, 9 lets one go; which one; the pause.
        steps in prop::collection::vec((0u8..10, any::<u8>(), 0u64..1500, 0u8..10), 1..300),
    ) {
        let policy = BreakerPolicy {
            threshold, calls_min, consecutive, trials, successes,
            window: Duration::from_secs(2),
            cooldown: Duration::from_secs(cooldown_s),
            ..policy()
        };
        let breaker = Breaker::new(policy);
        let mut oracle = Oracle {
            policy, calls: Vec::new(), row: 0, open_until: None, half_open: None, doublings: 0,
            epoch: 0,
        };
        let (mut now, mut running) = (0, Vec::new());
        for (id, (what, which, pause, luck)) in steps.into_iter().enumerate() {
            now += pause;
            let id = id as u32;
            if what <= 2 || running.is_empty() {
                let admitted = breaker.admits(ms(now));
                let (entry, expected) = (breaker.enter(ms(now)), oracle.enter(id, now));
                prop_assert_eq!(entry.is_some(), admitted);
                prop_assert_eq!(entry.is_some(), expected.is_some());
                running.extend(entry.zip(expected).map(|(entry, epoch)| (id, epoch, entry)));
            } else {
                let (id, epoch, entry) = running.swap_remove(usize::from(which) % running.len());
                let result = match what {
                    9 => None,
                    _ if luck < reliability => Some(CallResult::Success),
                    _ => Some(CallResult::Failure),
                };
                match result {
                    Some(result) => drop(breaker.record(entry, result, ms(now))),
                    None => breaker.cancel(entry),
                }
                oracle.end(id, epoch, result, now);
            }
            prop_assert_eq!(breaker.state(), oracle.state());
        }
    }

    #[test]
    fn the_word_keeps_every_value(
        kind in 0u8..3, doublings in 0u32..=DOUBLINGS_MAX, epoch in 0u32..=EPOCH_MAX,
        until in 0u64..=UNTIL_MAX, consecutive in any::<u32>(),
        trials_out in 0u32..=TRIALS_MAX, successes in 0u32..=1000,
    ) {
        let state = match kind {
            0 => State::Closed { consecutive },
            1 => State::Open { until: ms(until) },
            _ => State::HalfOpen { trials_out, successes },
        };
        let gate = Gate { state, doublings, epoch };
        prop_assert_eq!(Gate::unpack(gate.pack()), gate);
    }

    // The clock may say anything; the breaker says something and comes back.
    #[test]
    fn no_time_is_too_late(now in any::<u64>()) {
        let breaker = open(policy(), now);
        prop_assert!(breaker.next_admission(ms(now)) >= Some(ms(now)));
        prop_assert!(breaker.admits(Moment::MAX));
    }
}

#[test]
fn awaits_a_trial_from_its_opening_until_it_is_closed() {
    let breaker = Breaker::new(policy());
    assert!(!breaker.awaits_trial());
    let breaker = open(policy(), 0);
    assert!(breaker.awaits_trial());
    let trial = breaker.enter(ms(30 * SECOND)).unwrap();
    assert!(breaker.awaits_trial());
    breaker.record(trial, CallResult::Success, ms(30 * SECOND));
    assert!(!breaker.awaits_trial());
}

#[test]
fn a_call_from_before_a_change_is_not_present() {
    let breaker = Breaker::new(policy());
    let old = breaker.enter(ms(0)).unwrap();
    assert!(breaker.is_present(&old));
    fail(&breaker, 5, 0);
    assert!(!breaker.is_present(&old));
    let trial = breaker.enter(ms(30 * SECOND)).unwrap();
    assert!(breaker.is_present(&trial) && !breaker.is_present(&old));
    breaker.record(trial, CallResult::Success, ms(30 * SECOND));
    assert!(!breaker.is_present(&old), "closed again, and another time");
}
