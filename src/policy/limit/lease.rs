//! One key's part of a budget that several nodes share.
//!
//! The one idea: what the shared counter has given to this node is already counted there, so it
//! may be spent here without asking. `Stock` holds such calls for one window; whatever is left
//! when the window ends is void and nothing is ever given back, so all nodes together can never
//! spend more than the budget.
//!
//! Drawing has three steps, the middle one at the store: `draw` takes what is in stock in hand
//! for those that wait, the store decides about all of it at once, `deal` puts the rest on
//! stock. Small budgets are drawn call by call (`batch` is 0), larger ones a little ahead of
//! need, and less the nearer the end of the budget is.
//!
//! Windows are numbered by the store's clock: `now` is this node's clock brought to it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::standing::{Share, Standing};
use super::window::{Full, Quota, counts, numbers};
use crate::base::clock::WallTime;

/// A sixty-fourth of a budget is drawn at once ...
const BATCHES: u32 = 64;
/// ... but no more than this.
const BATCH_MAX: u32 = 1024;
/// After so long the store is asked again, even if nothing is needed: what other nodes have
/// used is not known otherwise.
const REFRESH: Duration = Duration::from_secs(1);

/// Calls of one window that may be spent here.
#[derive(Debug, Default)]
struct Stock(AtomicU64);

/// `number ‖ spent ‖ count`: the window, whether the store has nothing more, and the calls.
#[derive(Clone, Copy)]
struct Held {
    number: u32,
    spent: bool,
    count: u32,
}

impl Held {
    fn of(word: u64) -> Self {
        let low = word as u32;
        Self { number: (word >> 32) as u32, spent: low >> 31 == 1, count: low & (u32::MAX >> 1) }
    }

    fn word(self) -> u64 {
        let count = self.count.min(u32::MAX >> 1);
        u64::from(self.number) << 32 | u64::from(self.spent) << 31 | u64::from(count)
    }

    /// What it is worth in a window: nothing, if it is of another one.
    fn at(self, number: u32) -> Self {
        if counts(self.number, number) { self } else { Self { number, spent: false, count: 0 } }
    }
}

impl Stock {
    fn at(&self, number: u32) -> Held {
        Held::of(self.0.load(Relaxed)).at(number)
    }

    fn change(&self, change: impl Fn(Held) -> Option<Held>) -> Option<Held> {
        let changed =
            self.0.fetch_update(Relaxed, Relaxed, |word| change(Held::of(word)).map(Held::word));
        changed.ok().map(Held::of)
    }

    /// Takes one call.
    fn take(&self, number: u32) -> bool {
        let take = |held: Held| {
            let held = held.at(number);
            Some(Held { count: held.count.checked_sub(1)?, ..held })
        };
        self.change(take).is_some()
    }

    /// Takes all, whatever the window.
    fn take_all(&self) -> Held {
        let emptied = self.change(|held| Some(Held { count: 0, ..held }));
        emptied.unwrap_or(Held { number: 0, spent: false, count: 0 })
    }

    /// Adds calls of a window; those of an earlier one are void.
    fn put(&self, number: u32, count: u32, spent: Option<bool>) {
        self.change(|held| {
            let held = held.at(number);
            (held.number == number).then(|| Held {
                count: held.count.saturating_add(count),
                spent: spent.unwrap_or(held.spent),
                ..held
            })
        });
    }
}

/// What a key holds of the shared budget; starts with nothing.
#[derive(Debug, Default)]
pub struct QuotaLease {
    minute: Stock,
    day: Stock,
    /// What the store had left at the last draw, each with its window: `number ‖ count`.
    left_minute: AtomicU64,
    left_day: AtomicU64,
    /// Tokens that the store has not been told of.
    tokens: AtomicU64,
    /// When the last draw was; a `WallTime` in nanoseconds.
    drawn: AtomicU64,
    nudged: AtomicBool,
}

/// Why a call cannot be served from stock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    /// Nothing on stock; the store may have more.
    Empty,
    /// Nothing on stock, and nothing at the store.
    Full(Full),
}

/// What the store is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Draw {
    /// Calls that wait for an answer.
    pub waiting: u32,
    /// Calls of a minute in hand, and that minute's number.
    pub hand_minute: (u32, u32),
    /// Calls of a day in hand, and that day's number.
    pub hand_day: (u32, u32),
    /// How many to give beyond those, if there is plenty.
    pub ahead_minute: u32,
    /// The same of the day.
    pub ahead_day: u32,
    /// Tokens used since the last draw.
    pub tokens: u64,
}

/// What the store answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dealt {
    /// The minute's number by its clock.
    pub minute: u32,
    /// The day's.
    pub day: u32,
    /// Of those that wait, how many pass; each takes one call of each limited window.
    pub passed: u32,
    /// Calls given of the minute, those that pass included.
    pub given_minute: u32,
    /// The same of the day.
    pub given_day: u32,
    /// What is left of the minute for all nodes.
    pub left_minute: u32,
    /// The same of the day.
    pub left_day: u32,
}

impl QuotaLease {
    /// Takes one call of each limited window from stock, or of none.
    pub fn take(&self, quota: Quota, now: WallTime) -> Result<(), Short> {
        let (minute, day) = numbers(now);
        self.short(quota, now)?;
        if quota.per_minute > 0 && !self.minute.take(minute) {
            return Err(Short::Empty);
        }
        if quota.per_day > 0 && !self.day.take(day) {
            if quota.per_minute > 0 {
                self.minute.put(minute, 1, None);
            }
            return Err(Short::Empty);
        }
        Ok(())
    }

    fn short(&self, quota: Quota, now: WallTime) -> Result<(), Short> {
        let (minute, day) = numbers(now);
        let (day, minute) = (self.day.at(day), self.minute.at(minute));
        let (by_day, by_minute) = (quota.per_day > 0, quota.per_minute > 0);
        if by_day && day.count == 0 && day.spent {
            return Err(Short::Full(Full::Day));
        }
        if by_minute && minute.count == 0 && minute.spent {
            return Err(Short::Full(Full::Minute));
        }
        if (by_day && day.count == 0) || (by_minute && minute.count == 0) {
            return Err(Short::Empty);
        }
        Ok(())
    }

    /// What is left, as far as this node knows.
    #[must_use]
    pub fn standing(&self, quota: Quota, now: WallTime) -> Standing {
        let (minute, day) = numbers(now);
        let share = |limit: u32, number: u32, stock: &Stock, known: &AtomicU64| {
            let known = known.load(Relaxed);
            let known_of = (known >> 32) as u32;
            let left = if counts(known_of, number) { known as u32 } else { limit };
            let left = left.saturating_add(stock.at(number).count).min(limit);
            (limit > 0).then_some(Share { limit, left })
        };
        Standing {
            minute: share(quota.per_minute, minute, &self.minute, &self.left_minute),
            day: share(quota.per_day, day, &self.day, &self.left_day),
        }
    }

    /// Whether the store should be asked in passing; `true` once until the next draw.
    #[must_use]
    pub fn nudge(&self, quota: Quota, now: WallTime) -> bool {
        let (minute, day) = numbers(now);
        let low = |limit: u32, held: Held| {
            let batch = batch(limit);
            batch > 0 && !held.spent && held.count <= batch / 2
        };
        let stale = now.abs_diff(WallTime::from_nanos(self.drawn.load(Relaxed))) >= REFRESH;
        let wanted = stale
            || low(quota.per_minute, self.minute.at(minute))
            || low(quota.per_day, self.day.at(day));
        wanted && !self.nudged.swap(true, Relaxed)
    }

    /// Notes tokens for the store; `true` when it is to be nudged.
    #[must_use]
    pub fn spend(&self, tokens: u64) -> bool {
        self.add_tokens(tokens);
        tokens > 0 && !self.nudged.swap(true, Relaxed)
    }

    /// The nudge could not be sent.
    pub fn nudge_failed(&self) {
        self.nudged.store(false, Relaxed);
    }

    /// Begins a draw for so many that wait.
    ///
    /// Shape: one of `deal` and `undo` must follow. `ahead` tells whether calls are drawn before
    /// they are needed.
    pub fn draw(&self, quota: Quota, waiting: u32, ahead: bool, now: WallTime) -> Draw {
        self.nudged.store(false, Relaxed);
        self.drawn.store(now.as_nanos(), Relaxed);
        let (minute, day) = (self.minute.take_all(), self.day.take_all());
        let (minute_now, day_now) = numbers(now);
        let missing = |limit: u32, held: Held| match ahead {
            true => batch(limit).saturating_sub(held.count),
            false => 0,
        };
        Draw {
            waiting,
            hand_minute: (minute.number, minute.count),
            hand_day: (day.number, day.count),
            ahead_minute: missing(quota.per_minute, minute.at(minute_now)),
            ahead_day: missing(quota.per_day, day.at(day_now)),
            tokens: self.tokens.swap(0, Relaxed),
        }
    }

    /// Ends a draw: what is in hand and was given, less what passes, goes on stock.
    pub fn deal(&self, quota: Quota, draw: &Draw, dealt: &Dealt) {
        let rest = |number: u32, hand: (u32, u32), given: u32| {
            let in_hand = if hand.0 == number { hand.1 } else { 0 };
            in_hand.saturating_add(given).saturating_sub(dealt.passed)
        };
        let known = |number: u32, left: u32| u64::from(number) << 32 | u64::from(left);
        if quota.per_minute > 0 {
            let rest = rest(dealt.minute, draw.hand_minute, dealt.given_minute);
            self.minute.put(dealt.minute, rest, Some(dealt.left_minute == 0));
            self.left_minute.store(known(dealt.minute, dealt.left_minute), Relaxed);
        }
        if quota.per_day > 0 {
            let rest = rest(dealt.day, draw.hand_day, dealt.given_day);
            self.day.put(dealt.day, rest, Some(dealt.left_day == 0));
            self.left_day.store(known(dealt.day, dealt.left_day), Relaxed);
        }
    }

    /// Ends a draw that the store did not answer.
    pub fn undo(&self, draw: &Draw) {
        self.minute.put(draw.hand_minute.0, draw.hand_minute.1, None);
        self.day.put(draw.hand_day.0, draw.hand_day.1, None);
        self.add_tokens(draw.tokens);
    }

    /// Gives away all calls on stock: of the minute and of the day, each with its window's number.
    pub fn give(&self) -> [(u32, u32); 2] {
        [&self.minute, &self.day].map(|stock| {
            let held = stock.take_all();
            (held.number, held.count)
        })
    }

    /// Takes over calls that another process had on stock.
    pub fn inherit(&self, [minute, day]: [(u32, u32); 2]) {
        self.minute.put(minute.0, minute.1, None);
        self.day.put(day.0, day.1, None);
    }

    /// Gives away the tokens that the store has not been told of.
    pub fn give_tokens(&self) -> u64 {
        self.tokens.swap(0, Relaxed)
    }

    fn add_tokens(&self, tokens: u64) {
        let add = |before: u64| Some(before.saturating_add(tokens));
        let _ = self.tokens.fetch_update(Relaxed, Relaxed, add);
    }
}

/// How many calls of a budget are drawn ahead of need; 0 = none.
///
/// A node that falls idle keeps what it has drawn: of a budget under 128 nothing may be lost.
#[must_use]
pub fn batch(limit: u32) -> u32 {
    match limit / BATCHES {
        0 | 1 => 0,
        part => part.min(BATCH_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(seconds: u64) -> WallTime {
        WallTime::from_secs(seconds)
    }

    /// The store, as its script does it, in the plainest way.
    #[derive(Default)]
    struct Store {
        minute: (u32, u32),
        day: (u32, u32),
    }

    impl Store {
        fn answer(&mut self, quota: Quota, draw: &Draw, nodes: u32, now: WallTime) -> Dealt {
            let (minute, day) = numbers(now);
            if self.minute.0 != minute {
                self.minute = (minute, 0);
            }
            if self.day.0 != day {
                self.day = (day, 0);
            }
            let left = |limit: u32, used: u32| if limit > 0 { limit - used } else { u32::MAX };
            let hand =
                |(number, count): (u32, u32), now: u32| if number == now { count } else { 0 };
            let (hand_minute, hand_day) =
                (hand(draw.hand_minute, minute), hand(draw.hand_day, day));
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
    fn call(
        lease: &QuotaLease,
        store: &mut Store,
        quota: Quota,
        nodes: u32,
        now: WallTime,
    ) -> bool {
        match lease.take(quota, now) {
            Ok(()) => true,
            Err(Short::Full(_)) => false,
            Err(Short::Empty) => {
                let draw = lease.draw(quota, 1, true, now);
                let dealt = store.answer(quota, &draw, nodes, now);
                lease.deal(quota, &draw, &dealt);
                dealt.passed == 1
            }
        }
    }

    #[test]
    fn two_nodes_spend_a_small_budget_to_the_last_call() {
        let (nodes, mut store) = ([QuotaLease::default(), QuotaLease::default()], Store::default());
        let quota = Quota { per_minute: 5, per_day: 0 };
        let passed = (0..40).filter(|n| call(&nodes[n % 2], &mut store, quota, 2, at(7))).count();
        assert_eq!(passed, 5);
        // A node that comes late finds nothing.
        assert!(!call(&QuotaLease::default(), &mut store, quota, 2, at(7)));
        // In the next minute one node alone gets all.
        assert_eq!((0..9).filter(|_| call(&nodes[0], &mut store, quota, 2, at(60))).count(), 5);
    }

    #[test]
    fn a_large_budget_costs_few_draws() {
        let (lease, mut store) = (QuotaLease::default(), Store::default());
        let quota = Quota { per_minute: 6400, per_day: 0 };
        let mut draws = 0;
        for _ in 0..6400 {
            if lease.take(quota, at(0)).is_err() {
                draws += 1;
                let draw = lease.draw(quota, 1, true, at(0));
                let dealt = store.answer(quota, &draw, 1, at(0));
                assert_eq!(dealt.passed, 1);
                lease.deal(quota, &draw, &dealt);
            }
        }
        assert!(draws < 200, "{draws}");
        assert_eq!(lease.take(quota, at(0)), Err(Short::Full(Full::Minute)));
    }

    #[test]
    fn a_full_budget_is_known_until_its_window_ends() {
        let (lease, mut store) = (QuotaLease::default(), Store::default());
        let quota = Quota { per_minute: 1, per_day: 0 };
        assert_eq!(lease.take(quota, at(0)), Err(Short::Empty));
        assert!(call(&lease, &mut store, quota, 1, at(0)));
        assert_eq!(lease.take(quota, at(59)), Err(Short::Full(Full::Minute)));
        assert_eq!(lease.take(quota, at(60)), Err(Short::Empty));
    }

    #[test]
    fn a_store_whose_clock_was_set_back_is_believed() {
        let (lease, mut store) = (QuotaLease::default(), Store::default());
        let quota = Quota { per_minute: 1, per_day: 0 };
        let noon = at(1_700_000_040);
        assert!(call(&lease, &mut store, quota, 1, noon));
        assert_eq!(lease.take(quota, noon), Err(Short::Full(Full::Minute)));
        let back = at(1_700_000_040 - 3600);
        assert_eq!(lease.take(quota, back), Err(Short::Empty), "it may have more");
        assert_eq!(lease.standing(quota, back).minute, Some(Share { limit: 1, left: 1 }));
        assert!(lease.nudge(quota, back));
        assert!(call(&lease, &mut store, quota, 1, back));
        assert!(!call(&lease, &mut store, quota, 1, back));
    }

    #[test]
    fn what_is_left_of_a_minute_is_void_in_the_next() {
        let (lease, mut store) = (QuotaLease::default(), Store::default());
        let quota = Quota { per_minute: 6400, per_day: 0 };
        assert!(call(&lease, &mut store, quota, 1, at(0)));
        assert_eq!(lease.take(quota, at(0)), Ok(()));
        assert_eq!(lease.take(quota, at(60)), Err(Short::Empty));
    }

    #[test]
    fn a_draw_without_an_answer_loses_nothing() {
        let (lease, mut store) = (QuotaLease::default(), Store::default());
        let quota = Quota { per_minute: 6400, per_day: 64_000 };
        assert!(call(&lease, &mut store, quota, 1, at(0)));
        assert!(lease.spend(70));
        let (before, standing) = (store.minute.1, lease.standing(quota, at(0)));
        let draw = lease.draw(quota, 3, true, at(0));
        assert_eq!(lease.take(quota, at(0)), Err(Short::Empty), "all of it is in hand");
        assert_eq!(draw.tokens, 70);
        lease.undo(&draw);
        assert_eq!((store.minute.1, lease.standing(quota, at(0))), (before, standing));
        assert_eq!(lease.draw(quota, 0, false, at(0)).tokens, 70);
    }

    #[test]
    fn is_nudged_when_low_or_old_and_only_once() {
        let (lease, mut store) = (QuotaLease::default(), Store::default());
        let quota = Quota { per_minute: 6400, per_day: 0 };
        assert!(call(&lease, &mut store, quota, 1, at(1)));
        assert!(!lease.nudge(quota, at(1)), "a full batch");
        for _ in 0..50 {
            lease.take(quota, at(1)).unwrap();
        }
        assert!(lease.nudge(quota, at(1)) && !lease.nudge(quota, at(1)));
        lease.nudge_failed();
        assert!(lease.nudge(quota, at(1)));
        let draw = lease.draw(quota, 0, true, at(1));
        let dealt = store.answer(quota, &draw, 1, at(1));
        lease.deal(quota, &draw, &dealt);
        assert!(!lease.nudge(quota, at(1)));
        assert!(lease.nudge(quota, at(2)), "others may have used some");
    }

    #[test]
    fn tells_what_is_left_at_the_store_and_here() {
        let (lease, mut store) = (QuotaLease::default(), Store::default());
        let quota = Quota { per_minute: 6400, per_day: 3 };
        for left in [2, 1, 0] {
            assert!(call(&lease, &mut store, quota, 1, at(0)));
            let told = lease.standing(quota, at(0));
            assert_eq!(told.minute, Some(Share { limit: 6400, left: 6397 + left }));
            assert_eq!(told.day, Some(Share { limit: 3, left }));
        }
        assert!(!call(&lease, &mut store, quota, 1, at(0)));
        assert_eq!(lease.standing(quota, at(60)).minute, Some(Share { limit: 6400, left: 6400 }));
    }

    #[test]
    fn four_threads_never_spend_more_than_was_dealt() {
        let lease = QuotaLease::default();
        let quota = Quota { per_minute: 6400, per_day: 9000 };
        let draw = lease.draw(quota, 0, true, at(0));
        let dealt = Dealt {
            given_minute: 500,
            given_day: 400,
            left_minute: 1,
            left_day: 1,
            ..Dealt::default()
        };
        lease.deal(quota, &draw, &dealt);
        let taken: usize = std::thread::scope(|scope| {
            let tries = || (0..300).filter(|_| lease.take(quota, at(0)).is_ok()).count();
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
            let nodes: [QuotaLease; 3] = Default::default();
            let mut store = Store::default();
            let mut now = at(0);
            let (mut used_minute, mut used_day) = ((0, 0u32), (0, 0u32));
            for (node, gap_s, tries) in calls {
                now = now + Duration::from_secs(gap_s);
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
}
