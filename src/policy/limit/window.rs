//! Requests a minute and requests a UTC day: fixed windows, exact over all cores.
//!
//! One `AtomicU64` each: the window's number in the high half, the calls in it in the low half.
//! Both change in one compare-and-swap, so there is no moment between "a new minute" and "count
//! from zero" in which a call could slip through. A core whose clock is a little behind is counted
//! in the later window; one that is further ahead than the next has been counted by a clock that
//! was set back since, and is void.
//!
//! A call that does not pass both windows consumes nothing. Both are looked at before one is
//! charged, so that a minute is charged and given back only where two calls race for the last
//! place of a day; a third call that meets just that moment hears "minute" for "day".
//!
//! When another process takes over, a window is given to it (`give`): the word then holds, in place
//! of a count, the few calls that may yet be let in here. The process that takes it over counts
//! those as had (`inherit`), in each window that begins while they are out, and gets back what was
//! not used (`hear`): so both together never let in more than the limit.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::standing::{Share, Standing};
use crate::base::clock::{WallTime, seconds_up};

/// Seconds of a minute.
pub const MINUTE_S: u64 = 60;
/// Seconds of a day; a UTC day has no other length in Unix time.
pub const DAY_S: u64 = 86_400;

/// How many requests a minute and a day may have; 0 = any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Requests a minute.
    pub per_minute: u32,
    /// Requests a UTC day.
    pub per_day: u32,
}

/// Which window is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The minute.
    Minute,
    /// The day.
    Day,
}

/// The number of a window that has been given: its word holds how many calls may yet be let in. No
/// window of time has this number.
const GIVEN: u32 = u32::MAX;

/// A window as it is given to another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenWindow {
    /// Its number.
    pub number: u32,
    /// Calls let in.
    pub used: u32,
    /// Calls that the giver may yet let in, in this window or later ones.
    pub kept: u32,
}

/// A counter that begins anew with each window.
#[derive(Debug, Default)]
pub struct Window {
    word: AtomicU64,
    /// Calls that the process before may yet let in; each window begins with them.
    elsewhere: AtomicU32,
}

impl Window {
    /// Charges one call.
    ///
    /// Shape: `window` is the number of the window of now; returns what is left of the limit, or
    /// `None` when it was full and nothing has been charged.
    pub fn take(&self, window: u32, limit: u32) -> Option<u32> {
        let mut seen = self.word.load(Relaxed);
        loop {
            let (next, left) = match self.at(seen, window) {
                (GIVEN, kept) => {
                    let left = kept.checked_sub(1)?;
                    (pack(GIVEN, left), left)
                }
                (number, count) if count < limit => (pack(number, count + 1), limit - count - 1),
                _ => return None,
            };
            match self.word.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return Some(left),
                Err(now) => seen = now,
            }
        }
    }

    /// What is left of the limit in the window.
    pub fn left(&self, window: u32, limit: u32) -> u32 {
        match self.at(self.word.load(Relaxed), window) {
            (GIVEN, kept) => kept,
            (_, count) => limit.saturating_sub(count),
        }
    }

    /// Gives a call back that was charged in this window, unless it is over.
    pub fn undo(&self, window: u32) {
        let _ = self.word.fetch_update(Relaxed, Relaxed, |seen| match unpack(seen) {
            (GIVEN, kept) => Some(pack(GIVEN, kept.saturating_add(1))),
            (number, count) => (number >= window && count > 0).then(|| pack(number, count - 1)),
        });
    }

    /// Gives the window away and keeps half of what is left of the limit, `most` at most.
    ///
    /// Shape: `None` when it has been given before.
    pub fn give(&self, window: u32, limit: u32, most: u32) -> Option<GivenWindow> {
        let mut given = GivenWindow::default();
        let give = |seen: u64| {
            let (number, used) = self.at(seen, window);
            let kept = limit.saturating_sub(used).div_ceil(2).min(most);
            given = GivenWindow { number, used, kept };
            (number != GIVEN).then(|| pack(GIVEN, kept))
        };
        self.word.fetch_update(Relaxed, Relaxed, give).ok().map(|_| given)
    }

    /// Keeps no more than that of a window that was given; how many calls were kept until now.
    pub fn keep(&self, most: u32) -> u32 {
        let keep = |seen: u64| match unpack(seen) {
            (GIVEN, kept) => Some(pack(GIVEN, kept.min(most))),
            _ => None,
        };
        let before = self.word.fetch_update(Relaxed, Relaxed, keep);
        before.map_or(0, |seen| unpack(seen).1)
    }

    /// Takes a window back that was given, of which no fewer calls have been kept since.
    pub fn take_back(&self, given: GivenWindow, window: u32) {
        let (number, used) = match counts(given.number, window) {
            true => (given.number, given.used),
            false => (window, 0),
        };
        let back = |seen: u64| match unpack(seen) {
            (GIVEN, left) => {
                Some(pack(number, used.saturating_add(given.kept.saturating_sub(left))))
            }
            _ => None,
        };
        let _ = self.word.fetch_update(Relaxed, Relaxed, back);
    }

    /// Takes over what another process had in a window; `window` is the number of now.
    pub fn inherit(&self, given: GivenWindow, window: u32) {
        self.elsewhere.store(given.kept, Relaxed);
        let had = given.used.saturating_add(given.kept);
        let _ = self.word.fetch_update(Relaxed, Relaxed, |seen| match unpack(seen) {
            (GIVEN, _) => None,
            (number, count) if counts(number, window) => {
                let same = counts(given.number, window);
                let more = if same { had } else { given.kept };
                Some(pack(number.max(given.number * u32::from(same)), count.saturating_add(more)))
            }
            // A window that has not begun begins with what is elsewhere.
            _ => counts(given.number, window).then(|| pack(given.number, had)),
        });
    }

    /// Hears from the process before: so many calls used since it last told, so many kept still.
    pub fn hear(&self, used: u32, kept: u32, window: u32) {
        let before = self.elsewhere.load(Relaxed);
        let kept = kept.min(before);
        self.elsewhere.store(kept, Relaxed);
        let back = before.saturating_sub(kept).saturating_sub(used);
        let _ = self.word.fetch_update(Relaxed, Relaxed, |seen| match unpack(seen) {
            (GIVEN, _) => None,
            (number, count) if counts(number, window) => {
                Some(pack(number, count.saturating_sub(back)))
            }
            // One that has not begun here may be the one in which they were used.
            _ => (used > 0).then(|| pack(window, before.saturating_sub(back))),
        });
    }

    /// Whether the process before may yet give calls back.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.elsewhere.load(Relaxed) > 0
    }

    /// The number of the window in force.
    fn number(&self, window: u32) -> u32 {
        match self.at(self.word.load(Relaxed), window).0 {
            GIVEN => window,
            number => number,
        }
    }

    /// The window in force and its count: those of the word, if they count now. Of a window that
    /// was given, `GIVEN` and what is kept.
    fn at(&self, word: u64, window: u32) -> (u32, u32) {
        match unpack(word) {
            (number, count) if number == GIVEN || counts(number, window) => (number, count),
            _ => (window, self.elsewhere.load(Relaxed)),
        }
    }

    #[cfg(test)]
    fn count(&self, window: u32) -> u32 {
        self.at(self.word.load(Relaxed), window).1
    }
}

/// The windows of one key.
#[derive(Debug, Default)]
pub struct Windows {
    /// The minute.
    pub minute: Window,
    /// The UTC day.
    pub day: Window,
}

impl Windows {
    /// Charges one call to both windows, or to none.
    ///
    /// Errors: which one is full; the day, if both are, since it is the longer to wait for.
    pub fn take(&self, quota: Quota, now: WallTime) -> Result<Standing, Full> {
        let (minute, day) = numbers(now);
        self.check(quota, now)?;
        let mut standing = Standing::default();
        if quota.per_minute > 0 {
            let left = self.minute.take(minute, quota.per_minute).ok_or(Full::Minute)?;
            standing.minute = Some(Share { limit: quota.per_minute, left });
        }
        if quota.per_day > 0 {
            match self.day.take(day, quota.per_day) {
                Some(left) => standing.day = Some(Share { limit: quota.per_day, left }),
                None => {
                    if quota.per_minute > 0 {
                        self.minute.undo(minute);
                    }
                    return Err(Full::Day);
                }
            }
        }
        Ok(standing)
    }

    /// Looks whether one more call would pass; charges nothing.
    pub fn check(&self, quota: Quota, now: WallTime) -> Result<(), Full> {
        let (minute, day) = numbers(now);
        if quota.per_day > 0 && self.day.left(day, quota.per_day) == 0 {
            return Err(Full::Day);
        }
        if quota.per_minute > 0 && self.minute.left(minute, quota.per_minute) == 0 {
            return Err(Full::Minute);
        }
        Ok(())
    }

    /// Counts a call that somebody else has let in, whatever the limits say.
    pub fn note(&self, now: WallTime) {
        let (minute, day) = numbers(now);
        let _ = self.minute.take(minute, u32::MAX);
        let _ = self.day.take(day, u32::MAX);
    }

    /// What is left, for a call that was refused.
    pub fn standing(&self, quota: Quota, now: WallTime) -> Standing {
        let (minute, day) = numbers(now);
        let share = |limit: u32, left: u32| (limit > 0).then_some(Share { limit, left });
        Standing {
            minute: share(quota.per_minute, self.minute.left(minute, quota.per_minute)),
            day: share(quota.per_day, self.day.left(day, quota.per_day)),
        }
    }

    /// Whether the process before may yet give calls back that are counted here as had.
    #[must_use]
    pub fn are_out(&self) -> bool {
        self.minute.is_out() || self.day.is_out()
    }

    /// Seconds until a full window ends, at least 1.
    pub fn retry_after_s(&self, full: Full, now: WallTime) -> u32 {
        let (minute, day) = numbers(now);
        match full {
            Full::Minute => seconds_until_end(self.minute.number(minute), MINUTE_S, now),
            Full::Day => seconds_until_end(self.day.number(day), DAY_S, now),
        }
    }
}

/// The numbers of the minute and of the day of now, counted from 1970.
#[must_use]
pub fn numbers(now: WallTime) -> (u32, u32) {
    let seconds = now.as_secs();
    // 2^32 minutes end in the year 10136.
    let number = |seconds: u64| u32::try_from(seconds).unwrap_or(u32::MAX);
    (number(seconds / MINUTE_S), number(seconds / DAY_S))
}

/// Seconds until the window of that number ends, rounded up, at least 1.
#[must_use]
pub fn seconds_until_end(number: u32, window_s: u64, now: WallTime) -> u32 {
    let end = WallTime::from_secs((u64::from(number) + 1).saturating_mul(window_s));
    u32::try_from(seconds_up(end.since(now))).unwrap_or(u32::MAX).max(1)
}

/// Whether what was counted in the window of that number counts now: in the same window, or in the
/// next one, as seen by a clock that is a little behind.
#[must_use]
pub fn counts(number: u32, now: u32) -> bool {
    number.checked_sub(now).is_some_and(|ahead| ahead <= 1)
}

fn unpack(state: u64) -> (u32, u32) {
    ((state >> 32) as u32, state as u32)
}

fn pack(number: u32, count: u32) -> u64 {
    u64::from(number) << 32 | u64::from(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::time::Duration;

    fn at(seconds: u64) -> WallTime {
        WallTime::from_secs(seconds)
    }

    const RPM_5: Quota = Quota { per_minute: 5, per_day: 0 };

    fn passed(windows: &Windows, quota: Quota, now: WallTime, tries: u32) -> u32 {
        (0..tries).map(|_| u32::from(windows.take(quota, now).is_ok())).sum()
    }

    #[test]
    fn admits_exactly_the_limit_in_a_minute_and_again_in_the_next() {
        let windows = Windows::default();
        let noon = at(1_700_000_040);
        assert_eq!(passed(&windows, RPM_5, noon, 9), 5);
        let last = noon + Duration::new(59, 999_999_999);
        assert_eq!(windows.take(RPM_5, last), Err(Full::Minute));
        assert_eq!(passed(&windows, RPM_5, noon + Duration::from_secs(60), 9), 5);
    }

    #[test]
    fn tells_what_is_left_and_when_it_comes_back() {
        let windows = Windows::default();
        let quota = Quota { per_minute: 2, per_day: 3 };
        let now = at(10 * DAY_S + 61) + Duration::from_nanos(1);
        let share = |limit, left| Some(Share { limit, left });
        let taken = windows.take(quota, now).unwrap();
        assert_eq!(taken, Standing { minute: share(2, 1), day: share(3, 2) });
        windows.take(quota, now).unwrap();
        assert_eq!(windows.take(quota, now), Err(Full::Minute));
        let refused = windows.standing(quota, now);
        assert_eq!(refused, Standing { minute: share(2, 0), day: share(3, 1) });
        // 58.999999999 s are left: a client that waits 58 s would be too early.
        assert_eq!(windows.retry_after_s(Full::Minute, now), 59);
        assert_eq!(windows.retry_after_s(Full::Day, now), 86_400 - 61);
    }

    #[test]
    fn the_day_is_named_when_both_are_full() {
        let windows = Windows::default();
        let quota = Quota { per_minute: 1, per_day: 1 };
        windows.take(quota, at(0)).unwrap();
        assert_eq!(windows.take(quota, at(0)), Err(Full::Day));
    }

    #[test]
    fn a_rejected_call_consumes_nothing() {
        let windows = Windows::default();
        let quota = Quota { per_minute: 2, per_day: 3 };
        assert_eq!(passed(&windows, quota, at(0), 100), 2);
        // The 98 refused ones took nothing of the day.
        assert_eq!(passed(&windows, quota, at(60), 100), 1);
        // Nor did those that the day refused take anything of the minute.
        assert_eq!(windows.minute.count(1), 1);
    }

    #[test]
    fn a_clock_that_is_behind_is_counted_in_the_later_window() {
        let windows = Windows::default();
        let before = at(59) + Duration::from_nanos(999_999_999);
        assert_eq!(passed(&windows, RPM_5, at(60), 3), 3);
        assert_eq!(passed(&windows, RPM_5, before, 9), 2);
        assert_eq!(windows.retry_after_s(Full::Minute, before), 61);
    }

    #[test]
    fn a_clock_that_was_set_back_does_not_leave_a_key_locked_out() {
        let quota = Quota { per_minute: 5, per_day: 9 };
        let noon = at(1_700_000_040);
        let windows = Windows::default();
        assert_eq!(passed(&windows, quota, noon, 9), 5);
        // By an hour: the minute is another one, the day is the same.
        let back = at(1_700_000_040 - 3600);
        assert_eq!(windows.standing(quota, back).minute, Some(Share { limit: 5, left: 5 }));
        assert_eq!(passed(&windows, quota, back, 9), 4);
        assert_eq!(windows.take(quota, back), Err(Full::Day));
        // Over midnight it is counted in the later day, until that begins.
        let before = at(noon.as_secs() / DAY_S * DAY_S - 1) + Duration::from_nanos(999_999_999);
        assert_eq!(windows.take(quota, before), Err(Full::Day));
        assert!(windows.retry_after_s(Full::Day, before) as u64 <= DAY_S + 1);
        // A clock that showed another year: nothing of that counts.
        let windows = Windows::default();
        assert_eq!(passed(&windows, quota, at(60 * 365 * DAY_S), 9), 5);
        assert_eq!(passed(&windows, quota, noon, 9), 5);
    }

    #[test]
    fn undoing_does_not_reach_into_the_next_window() {
        let window = Window::default();
        window.take(1, 5).unwrap();
        window.take(2, 5).unwrap();
        window.undo(3);
        assert_eq!(window.count(2), 1);
        window.undo(2);
        window.undo(2);
        assert_eq!(window.count(2), 0);
    }

    #[test]
    fn no_limit_is_no_limit() {
        let windows = Windows::default();
        assert_eq!(passed(&windows, Quota::default(), at(0), 1000), 1000);
        assert_eq!(windows.take(Quota::default(), at(0)), Ok(Standing::default()));
    }

    #[test]
    fn four_threads_get_exactly_five_of_a_thousand() {
        for day in [0, 5, 7] {
            let windows = Windows::default();
            let quota = Quota { per_minute: 5, per_day: day };
            let count: u32 = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| passed(&windows, quota, at(42), 250))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(count, 5, "rpd {day}");
        }
    }

    #[test]
    fn four_threads_that_race_for_the_last_places_of_a_day_take_them_all() {
        for _ in 0..50 {
            let windows = Windows::default();
            let quota = Quota { per_minute: 1000, per_day: 7 };
            let count: u32 = std::thread::scope(|scope| {
                let threads: Vec<_> =
                    (0..4).map(|_| scope.spawn(|| passed(&windows, quota, at(0), 25))).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!((count, windows.minute.count(0), windows.day.count(0)), (7, 7, 7));
        }
    }

    #[test]
    fn what_is_given_is_let_in_once() {
        let (old, new) = (Window::default(), Window::default());
        (0..30).for_each(|_| assert!(old.take(7, 60).is_some()));
        let given = old.give(7, 60, 4).unwrap();
        assert_eq!(given, GivenWindow { number: 7, used: 30, kept: 4 });
        assert_eq!(old.give(7, 60, 4), None, "once");
        new.inherit(given, 7);
        let passed = |window: &Window| (0..99).filter(|_| window.take(7, 60).is_some()).count();
        assert_eq!((passed(&old), passed(&new)), (4, 26));
        assert_eq!((new.left(7, 60), old.left(7, 60), new.is_out()), (0, 0, true));
    }

    #[test]
    fn of_a_window_that_is_nearly_full_half_is_kept() {
        let of = |used: u32, most: u32| {
            let window = Window::default();
            (0..used).for_each(|_| assert!(window.take(7, 60).is_some()));
            window.give(7, 60, most).unwrap().kept
        };
        assert_eq!((of(0, 100), of(59, 100), of(58, 100), of(60, 100)), (30, 1, 1, 0));
    }

    #[test]
    fn what_was_kept_counts_in_every_window_until_it_comes_back() {
        let (old, new) = (Window::default(), Window::default());
        new.inherit(old.give(7, 10, 3).unwrap(), 7);
        // The next minute begins with the three that the old one may yet let in, and does.
        assert_eq!(new.left(8, 10), 7);
        assert!(new.take(8, 10).is_some() && old.take(8, 10).is_some());
        assert_eq!(old.keep(1), 2);
        new.hear(1, 1, 8);
        assert_eq!(new.left(8, 10), 7, "one here, one there, one that may still be");
        assert_eq!(old.keep(0), 1);
        new.hear(0, 0, 8);
        assert_eq!((new.left(8, 10), new.left(9, 10), new.is_out()), (8, 10, false));
        // What is heard twice, or is nonsense, gives nothing back.
        new.hear(u32::MAX, u32::MAX, 8);
        new.hear(0, 5, 8);
        assert_eq!(new.left(8, 10), 8);
    }

    #[test]
    fn what_is_inherited_late_counts_as_far_as_it_still_matters() {
        let given = GivenWindow { number: 7, used: 4, kept: 2 };
        let window = Window::default();
        window.inherit(given, 8);
        assert_eq!(window.left(8, 10), 8, "of the minute before only what is kept");
        let window = Window::default();
        assert!(window.take(8, 10).is_some());
        window.inherit(given, 8);
        assert_eq!(window.left(8, 10), 7);
        let window = Window::default();
        assert!(window.take(7, 10).is_some());
        window.inherit(given, 7);
        assert_eq!(window.left(7, 10), 3);
        window.inherit(GivenWindow { number: u32::MAX, used: u32::MAX, kept: u32::MAX }, 7);
        assert_eq!(window.left(7, 10), 0, "nonsense locks nobody out of another window");
        window.hear(u32::MAX, 0, 7);
        assert_eq!(window.left(8, 10), 10);
    }

    #[test]
    fn what_is_taken_back_counts_on() {
        let window = Window::default();
        (0..4).for_each(|_| assert!(window.take(7, 20).is_some()));
        let given = window.give(7, 20, 3).unwrap();
        assert!(window.take(7, 20).is_some());
        window.take_back(given, 7);
        assert_eq!((window.left(7, 20), window.left(8, 20)), (15, 20));
        window.take_back(given, 7);
        assert_eq!(window.left(7, 20), 15, "once");
        // Over the end of the minute: what was used since may be of the next.
        let given = window.give(7, 20, 3).unwrap();
        assert!(window.take(8, 20).is_some());
        window.take_back(given, 9);
        assert_eq!(window.left(9, 20), 19);
    }

    #[test]
    fn a_call_that_is_undone_after_the_giving_comes_back() {
        let (old, new) = (Window::default(), Window::default());
        assert!(old.take(7, 2).is_some());
        new.inherit(old.give(7, 2, 1).unwrap(), 7);
        old.undo(7);
        assert_eq!((old.left(7, 2), new.left(7, 2)), (2, 0));
    }

    proptest! {
        /// Whatever comes to which of the two, and however often the old one tells: no window lets
        /// in more than the limit, and one that begins after the end lets in all of it.
        #[test]
        fn both_together_never_let_in_more_than_the_limit(
            limit in 1u32..20, before in 0u32..25, most in 0u32..8,
            steps in prop::collection::vec((0u8..8, 0u32..6), 1..120),
        ) {
            let (old, new) = (Window::default(), Window::default());
            let mut passed: HashMap<u32, u32> = HashMap::new();
            let mut now = 100;
            let mut pass = |window: &Window, now: u32| {
                let taken = window.take(now, limit).is_some();
                *passed.entry(now).or_default() += u32::from(taken);
                assert!(passed[&now] <= limit, "{} of {limit} in {now}", passed[&now]);
                taken
            };
            (0..before).for_each(|_| assert!(pass(&old, now) || before > limit));
            let given = old.give(now, limit, most).unwrap();
            let mut left = given.kept;
            // The message takes its time.
            now += u32::from(steps[0].0 == 0);
            new.inherit(given, now);
            let mut tell = |most: u32, now: u32| {
                let kept = old.keep(most);
                new.hear(left - kept, kept.min(most), now);
                left = kept.min(most);
            };
            for (what, number) in steps {
                match what {
                    0..=2 => _ = pass(&new, now),
                    3..=4 => _ = pass(&old, now),
                    5..=6 => tell(number, now),
                    _ => now += number / 4,
                }
            }
            tell(0, now);
            prop_assert!(!new.is_out() && !pass(&old, now + 5));
            prop_assert_eq!((0..40).filter(|_| pass(&new, now + 5)).count() as u32, limit);
        }

        /// The oracle: a table of counts by window number.
        #[test]
        fn agrees_with_a_table(
            per_minute in 0u32..4, per_day in 0u32..9,
            gaps in prop::collection::vec(0u64..50_000, 1..300),
        ) {
            let windows = Windows::default();
            let quota = Quota { per_minute, per_day };
            let (mut minutes, mut days) = (HashMap::new(), HashMap::new());
            let mut now_s = 0;
            for gap in gaps {
                now_s += gap >> (gap % 16);
                let minute: &mut u32 = minutes.entry(now_s / 60).or_default();
                let day: &mut u32 = days.entry(now_s / 86_400).or_default();
                let fits = |count: u32, limit: u32| limit == 0 || count < limit;
                let expected = match (fits(*minute, per_minute), fits(*day, per_day)) {
                    (_, false) => Err(Full::Day),
                    (false, true) => Err(Full::Minute),
                    (true, true) => {
                        *minute += 1;
                        *day += 1;
                        Ok(())
                    }
                };
                prop_assert_eq!(windows.take(quota, at(now_s)).map(|_| ()), expected);
            }
        }
    }
}
