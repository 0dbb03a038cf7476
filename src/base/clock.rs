//! Time as values: two clocks, and types that keep them apart.
//!
//! The wall's clock may be set while the process runs: by an hour, or by fifty years on a machine
//! that began without one. What people know by the wall (a minute, a UTC day, the end of a key, the
//! time in an id) goes by it: `WallTime`. Whatever is a length of time (a rate, a debt, a wait)
//! goes by steady time, which no setting touches: `Moment`. A `Clock` makes the one of the other.
//!
//! Both types are one `u64` of nanoseconds; lengths of time are `Duration`. Words that pack
//! a time into fewer bits ask for `as_micros` or `as_millis` where they pack, and nothing else
//! does: no bare number of a unit goes from function to function (`tests/walls/clock.rs`).
//! Reading a clock is `net::sys`'s: here `now` is an argument.

use std::ops::Add;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
const NANOS_PER_MILLI: u64 = 1_000_000;
const NANOS_PER_MICRO: u64 = 1_000;

/// A point of steady time, as nanoseconds since the process's origin.
///
/// Adding saturates at `MAX`, 584 years after the origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

/// A point of time by the wall's clock, as nanoseconds since 1970.
///
/// Adding saturates at the largest, in the year 2554.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WallTime(u64);

/// One point of time by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamp {
    /// What the wall's clock shows.
    pub wall: WallTime,
    /// The same by the steady one.
    pub steady: Moment,
}

/// What both kinds of time have: the way from and to whole units.
macro_rules! units {
    ($time:ident) => {
        impl $time {
            /// So many nanoseconds from the beginning.
            #[must_use]
            pub const fn from_nanos(nanos: u64) -> $time {
                $time(nanos)
            }

            /// So many microseconds from the beginning; saturates.
            #[must_use]
            pub const fn from_micros(micros: u64) -> $time {
                $time(micros.saturating_mul(NANOS_PER_MICRO))
            }

            /// So many milliseconds from the beginning; saturates.
            #[must_use]
            pub const fn from_millis(millis: u64) -> $time {
                $time(millis.saturating_mul(NANOS_PER_MILLI))
            }

            /// So many seconds from the beginning; saturates.
            #[must_use]
            pub const fn from_secs(seconds: u64) -> $time {
                $time(seconds.saturating_mul(NANOS_PER_SECOND))
            }

            /// Nanoseconds from the beginning.
            #[must_use]
            pub const fn as_nanos(self) -> u64 {
                self.0
            }

            /// Whole microseconds from the beginning.
            #[must_use]
            pub const fn as_micros(self) -> u64 {
                self.0 / NANOS_PER_MICRO
            }

            /// Whole milliseconds from the beginning.
            #[must_use]
            pub const fn as_millis(self) -> u64 {
                self.0 / NANOS_PER_MILLI
            }

            /// Whole seconds from the beginning.
            #[must_use]
            pub const fn as_secs(self) -> u64 {
                self.0 / NANOS_PER_SECOND
            }

            /// How long it is after `earlier`; zero when it is before.
            #[must_use]
            pub const fn since(self, earlier: $time) -> Duration {
                Duration::from_nanos(self.0.saturating_sub(earlier.0))
            }
        }

        impl Add<Duration> for $time {
            type Output = $time;

            fn add(self, length: Duration) -> $time {
                $time(self.0.saturating_add(nanos(length)))
            }
        }
    };
}

units!(Moment);
units!(WallTime);

impl Moment {
    /// The moment so long before; the origin, if that is before it.
    #[must_use]
    pub const fn before(self, length: Duration) -> Moment {
        Moment(self.0.saturating_sub(nanos(length)))
    }

    /// Where steady time begins.
    pub const ORIGIN: Moment = Moment(0);
    /// Later than every other.
    pub const MAX: Moment = Moment(u64::MAX);

    /// The moment of an instant, with this origin; the origin, if it is before.
    #[must_use]
    pub fn after(origin: Instant, at: Instant) -> Moment {
        Moment(nanos(at.saturating_duration_since(origin)))
    }
}

impl WallTime {
    /// How far apart two are, whichever is the later.
    #[must_use]
    pub fn abs_diff(self, other: WallTime) -> Duration {
        Duration::from_nanos(self.0.abs_diff(other.0))
    }
}

impl Timestamp {
    /// A point of time at which both clocks show the same; for those who have only one.
    #[must_use]
    pub fn agreeing(wall: WallTime) -> Timestamp {
        Timestamp { wall, steady: Moment(wall.0) }
    }
}

/// A moment that many threads read and set; begins at the origin.
///
/// Every access is relaxed: it publishes nothing but itself.
#[derive(Debug, Default)]
pub struct AtomicMoment(AtomicU64);

impl AtomicMoment {
    /// Reads it.
    #[must_use]
    pub fn load(&self) -> Moment {
        Moment(self.0.load(Relaxed))
    }

    /// Sets it.
    pub fn store(&self, moment: Moment) {
        self.0.store(moment.0, Relaxed);
    }

    /// Sets it if that is later.
    pub fn advance(&self, moment: Moment) {
        self.0.fetch_max(moment.0, Relaxed);
    }

    /// Sets it to what `next` makes of it, until no other thread has been faster.
    pub fn update(&self, next: impl Fn(Moment) -> Moment) {
        let _ = self.0.fetch_update(Relaxed, Relaxed, |seen| Some(next(Moment(seen)).0));
    }
}

/// A length of time that many threads read and set; begins at zero. The longest has 584 years.
#[derive(Debug, Default)]
pub struct AtomicDuration(AtomicU64);

impl AtomicDuration {
    /// One that begins at a length.
    #[must_use]
    pub fn new(length: Duration) -> AtomicDuration {
        AtomicDuration(AtomicU64::new(nanos(length)))
    }

    /// Reads it.
    #[must_use]
    pub fn load(&self) -> Duration {
        Duration::from_nanos(self.0.load(Relaxed))
    }

    /// Sets it.
    pub fn store(&self, length: Duration) {
        self.0.store(nanos(length), Relaxed);
    }

    /// Sets it; tells whether it was another one before.
    pub fn replace(&self, length: Duration) -> bool {
        self.0.swap(nanos(length), Relaxed) != nanos(length)
    }

    /// How many whole ones have passed from the origin to `now`; of zero none ever has.
    #[must_use]
    pub fn periods(&self, now: Moment) -> u64 {
        now.0.checked_div(self.0.load(Relaxed)).unwrap_or(0)
    }
}

/// What another clock shows at a moment of steady time; at first the same.
///
/// Kept as what it shows at `FAR`, so that no difference is ever negative.
#[derive(Debug)]
pub struct ClockOffset(AtomicU64);

/// 146 years after the origin: no process lives that long.
const FAR: u64 = 1 << 62;

impl Default for ClockOffset {
    fn default() -> ClockOffset {
        ClockOffset(AtomicU64::new(FAR))
    }
}

impl ClockOffset {
    /// What the other clock shows at a moment.
    #[must_use]
    pub fn shown_at(&self, moment: Moment) -> WallTime {
        WallTime(self.0.load(Relaxed).saturating_sub(FAR.saturating_sub(moment.0)))
    }

    /// The moment at which the other clock shows that; the origin, if it is before.
    #[must_use]
    pub fn moment_of(&self, shown: WallTime) -> Moment {
        Moment(shown.0.saturating_add(FAR).saturating_sub(self.0.load(Relaxed)))
    }

    /// Says what the other clock shows at a moment; a change of less than `step` is passed over.
    pub fn set(&self, shown: WallTime, moment: Moment, step: Duration) {
        let far = shown.0.saturating_add(FAR.saturating_sub(moment.0));
        if far.abs_diff(self.0.load(Relaxed)) >= nanos(step) {
            self.0.store(far, Relaxed);
        }
    }
}

/// The two clocks of the process: where steady time begins, and how far the wall's is ahead of it.
///
/// The threads that serve share one, and read it without a lock.
#[derive(Debug)]
pub struct Clock {
    origin: Instant,
    wall: ClockOffset,
}

/// Least change of the wall's clock that counts: a smaller one is only the time between reading the
/// two clocks.
const WALL_STEP: Duration = Duration::from_millis(1);

impl Clock {
    /// Clocks whose steady time begins at `origin`; the wall's begins in 1970 until it is set.
    #[must_use]
    pub fn new(origin: Instant) -> Clock {
        Clock { origin, wall: ClockOffset::default() }
    }

    /// The moment of an instant; the origin, if it is before.
    #[must_use]
    pub fn at(&self, at: Instant) -> Moment {
        Moment::after(self.origin, at)
    }

    /// A moment by both clocks.
    #[must_use]
    pub fn both(&self, steady: Moment) -> Timestamp {
        Timestamp { wall: self.wall.shown_at(steady), steady }
    }

    /// Says what the wall's clock shows at an instant; called by the ticker.
    pub fn set_wall(&self, at: Instant, wall: WallTime) {
        self.wall.set(wall, self.at(at), WALL_STEP);
    }
}

/// A length of time in whole microseconds, for what packs or prints one; saturates.
#[must_use]
pub const fn micros(length: Duration) -> u64 {
    length.as_secs().saturating_mul(1_000_000).saturating_add(length.subsec_micros() as u64)
}

/// A length of time in whole milliseconds, for what packs or prints one; saturates.
#[must_use]
pub const fn millis(length: Duration) -> u64 {
    length.as_secs().saturating_mul(1_000).saturating_add(length.subsec_millis() as u64)
}

/// A length of time in seconds, rounded up: after so many it is over.
#[must_use]
pub const fn seconds_up(length: Duration) -> u64 {
    length.as_secs().saturating_add((length.subsec_nanos() > 0) as u64)
}

const fn nanos(length: Duration) -> u64 {
    length.as_secs().saturating_mul(NANOS_PER_SECOND).saturating_add(length.subsec_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn units_are_whole_and_saturate() {
        let moment = Moment::from_millis(1_234) + Duration::from_nanos(567_891);
        let told = (moment.as_secs(), moment.as_millis(), moment.as_micros(), moment.as_nanos());
        assert_eq!(told, (1, 1_234, 1_234_567, 1_234_567_891));
        assert_eq!(Moment::from_secs(u64::MAX), Moment::MAX);
        assert_eq!(Moment::MAX + Duration::MAX, Moment::MAX);
        assert_eq!(moment.since(Moment::MAX), Duration::ZERO);
        assert_eq!(Moment::MAX.since(moment).as_nanos(), u128::from(u64::MAX) - 1_234_567_891);
    }

    #[test]
    fn lengths_are_rounded_as_they_say() {
        let length = Duration::new(2, 1_999_999);
        assert_eq!((micros(length), millis(length), seconds_up(length)), (2_001_999, 2_001, 3));
        assert_eq!((seconds_up(Duration::ZERO), seconds_up(HOUR)), (0, 3600));
        assert_eq!((micros(Duration::MAX), seconds_up(Duration::MAX)), (u64::MAX, u64::MAX));
    }

    #[test]
    fn periods_are_counted_from_the_origin() {
        let length = AtomicDuration::new(Duration::from_millis(100));
        let at = |millis| length.periods(Moment::from_millis(millis));
        assert_eq!((at(0), at(99), at(100), at(1_050)), (0, 0, 1, 10));
        assert!(length.replace(HOUR) && !length.replace(HOUR) && length.load() == HOUR);
        assert_eq!(AtomicDuration::default().periods(Moment::MAX), 0);
    }

    #[test]
    fn the_wall_may_step_and_steady_time_does_not() {
        let (origin, began) = (Instant::now(), WallTime::from_secs(1_700_000_000));
        let clock = Clock::new(origin);
        clock.set_wall(origin, began);
        let now = origin + HOUR;
        let steady = clock.at(now);
        assert_eq!(clock.both(steady), Timestamp { wall: began + HOUR, steady });
        let zero = WallTime::default();
        for wall in [began + 24 * HOUR, began, began + 24 * 365 * 250 * HOUR, zero] {
            clock.set_wall(now, wall);
            assert_eq!(clock.both(clock.at(now)), Timestamp { wall, steady });
        }
        // What is less than a step is the time between two reads.
        clock.set_wall(now, zero + Duration::from_nanos(500));
        assert_eq!(clock.both(steady).wall, zero);
    }

    #[test]
    fn an_instant_before_the_origin_is_the_origin() {
        let origin = Instant::now() + HOUR;
        assert_eq!(Clock::new(origin).at(Instant::now()), Moment::ORIGIN);
    }

    #[test]
    fn another_clock_is_read_both_ways() {
        let offset = ClockOffset::default();
        for (shown, ours) in [(700, 500), (500, 700), (u64::MAX / 4, 3)] {
            let (shown, ours) = (WallTime::from_nanos(shown), Moment::from_nanos(ours));
            offset.set(shown, ours, Duration::ZERO);
            assert_eq!((offset.shown_at(ours), offset.moment_of(shown)), (shown, ours));
        }
    }

    #[test]
    fn an_atomic_moment_goes_where_it_is_told() {
        let at = AtomicMoment::default();
        at.store(Moment::from_secs(5));
        at.advance(Moment::from_secs(3));
        assert_eq!(at.load(), Moment::from_secs(5));
        at.update(|seen| seen + Duration::from_secs(4));
        assert_eq!(at.load(), Moment::from_secs(9));
        at.store(Moment::ORIGIN);
        assert_eq!(at.load(), AtomicMoment::default().load());
    }
}
