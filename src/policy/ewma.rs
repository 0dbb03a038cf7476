//! What has been measured of one upstream, shared by all cores: how soon it answers, how often
//! it succeeds, how slow it has lately been at its worst.
//!
//! Three exponentially weighted averages, each in one atomic word, changed by a compare-and-swap
//! that is tried a bounded number of times: among hundreds of samples a second one lost
//! to a crowd changes nothing, a core that spins would.
//!
//! An average says nothing of a server to which nobody is sent any more. What nobody has
//! confirmed for a while is therefore read as fading (`Measures::read`): a server that was
//! slow or failed once and has since lost every comparison is tried again some
//! time, instead of never. What is stored does not fade by itself: a failure brings the
//! old value back, a success goes on from the faded one.
//!
//! Sources: α, start and floor from the project's specification §7; peak EWMA as in Finagle's
//! and Linkerd's balancers. Averages of time are kept as microseconds in an `f32`, the time of
//! the last change as milliseconds in 32 bits (`Stamp`). No percentiles, no histograms: those are
//! telemetry's.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::breaker::CallResult;
use crate::base::clock::{Moment, micros, millis};

/// Share of a new sample in the average.
pub const ALPHA: f32 = 0.15;
/// Where the response time begins.
pub const RESPONSE_TIME_START_US: u32 = 2_000_000;
/// The share of successes never falls below this: a server must be able to come back.
pub const SUCCESS_MIN: f32 = 0.01;
/// Time in which a peak loses 63 % of its height, at least.
const PEAK_DECAY: Duration = Duration::from_secs(10);

/// Compare-and-swaps before a sample is let go.
const TRIES: u32 = 64;

/// Smoothed time to the response head, of successes.
#[derive(Debug)]
struct ResponseTime {
    /// Bits of an `f32` in microseconds.
    bits: AtomicU32,
}

impl ResponseTime {
    /// Begins at `RESPONSE_TIME_START_US`.
    fn new() -> ResponseTime {
        ResponseTime { bits: AtomicU32::new((RESPONSE_TIME_START_US as f32).to_bits()) }
    }

    /// Counts the time of one success, when what was known has halved so often since.
    fn record(&self, took: Duration, halvings: u32) {
        let (sample, kept) = (sample(took), 1.0 / (1u32 << halvings) as f32);
        let mut seen = self.bits.load(Relaxed);
        for _ in 0..TRIES {
            let next = blend(f32::from_bits(seen) * kept, sample, ALPHA).to_bits();
            match self.bits.compare_exchange_weak(seen, next, Relaxed, Relaxed) {
                Ok(_) => return,
                Err(other) => seen = other,
            }
        }
    }

    /// Reads the average, microseconds.
    fn read(&self) -> u32 {
        f32::from_bits(self.bits.load(Relaxed)) as u32
    }
}

impl Default for ResponseTime {
    fn default() -> ResponseTime {
        ResponseTime::new()
    }
}

/// Smoothed share of successes, and when the last call ended.
#[derive(Debug)]
struct SuccessRate {
    /// `pack`ed value and stamp.
    word: AtomicU64,
}

impl SuccessRate {
    /// Begins at 1.0.
    fn new() -> SuccessRate {
        SuccessRate { word: AtomicU64::new(pack(1.0, Stamp(0))) }
    }

    /// Counts one call.
    fn record(&self, result: CallResult, now: Moment) {
        let sample = match result {
            CallResult::Success => 1.0,
            CallResult::Failure | CallResult::TimedOut => 0.0,
        };
        update(&self.word, |value, _| blend(value, sample, ALPHA).clamp(SUCCESS_MIN, 1.0), now);
    }

    /// Reads the average, `SUCCESS_MIN..=1.0`.
    fn share(&self) -> f32 {
        unpack(self.word.load(Relaxed)).0
    }

    /// Reads how long ago the last call ended.
    fn idle(&self, now: Moment) -> Duration {
        unpack(self.word.load(Relaxed)).1.age(now)
    }

    fn restore(&self, share: f32, now: Moment) {
        self.word.store(pack(success_within(share), Stamp::of(now)), Relaxed);
    }
}

impl Default for SuccessRate {
    fn default() -> SuccessRate {
        SuccessRate::new()
    }
}

/// Time to the response head that jumps to a higher sample at once and comes down with time.
///
/// Unlike the other two it also falls while nothing is recorded: a peak is a fear,
/// and fades.
#[derive(Debug)]
struct PeakEwma {
    /// `pack`ed value and stamp; a value of 0 = nothing known.
    word: AtomicU64,
}

impl PeakEwma {
    /// Begins with nothing known.
    const fn new() -> PeakEwma {
        PeakEwma { word: AtomicU64::new(0) }
    }

    /// Counts the time of one success.
    fn record(&self, took: Duration, now: Moment) {
        let sample = sample(took);
        update(
            &self.word,
            |value, age| {
                if sample >= value {
                    return sample;
                }
                // The longer nothing was heard, the more the sample counts.
                blend(value, sample, 1.0 - kept(value, age))
            },
            now,
        );
    }

    /// Counts the time of one failure: it may raise the peak, never lowers it and ends its
    /// fading, since to fail fast is not to be fast.
    fn record_failure(&self, took: Duration, now: Moment) {
        let sample = sample(took);
        let known = |value: f32| if value == 0.0 { RESPONSE_TIME_START_US as f32 } else { value };
        update(&self.word, |value, _| sample.max(known(value)), now);
    }

    fn restore(&self, time: Duration, now: Moment) {
        self.word.store(pack(sample(time), Stamp::of(now)), Relaxed);
    }

    /// Reads the peak as it has faded by now, microseconds; 0 = nothing known, or so long
    /// ago that it says nothing.
    fn read(&self, now: Moment) -> u32 {
        let (value, stamp) = unpack(self.word.load(Relaxed));
        let kept = kept(value, stamp.age(now));
        if kept < FORGOTTEN { 0 } else { (value * kept) as u32 }
    }
}

impl Default for PeakEwma {
    fn default() -> PeakEwma {
        PeakEwma::new()
    }
}

/// A peak that has faded to this share is no longer known.
const FORGOTTEN: f32 = 1.0 / 64.0;

/// What is left of a peak of that age. A server that takes a minute to answer does not fade within
/// ten seconds, or it would look idle while it works.
fn kept(value: f32, age: Duration) -> f32 {
    (-(micros(age) as f32) / (micros(PEAK_DECAY) as f32).max(value)).exp()
}

/// Everything measured of one upstream; recorded together, read together.
#[derive(Debug, Default)]
pub struct Measures {
    response_time: ResponseTime,
    success: SuccessRate,
    peak: PeakEwma,
}

/// What is known of an upstream, by how long ago it was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MeasuresImage {
    /// Smoothed time to the response head.
    pub response_time: Duration,
    /// Smoothed share of successes.
    pub success: f32,
    /// Since the last call ended.
    pub called_ago: Duration,
    /// The peak at its last change; zero = nothing known.
    pub peak: Duration,
    /// Since that change.
    pub peak_ago: Duration,
}

/// What a balancer is told of an upstream's measures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// Smoothed time to the response head, microseconds.
    pub rt_us: u32,
    /// Smoothed share of successes, `SUCCESS_MIN..=1.0`.
    pub success: f32,
    /// Peak-sensitive time to the response head, microseconds; 0 = nothing known.
    pub peak_us: u32,
}

impl Measures {
    /// Begins with the start values.
    pub fn new() -> Measures {
        Measures::default()
    }

    /// Counts one call that succeeded; `took` is the time to its response head.
    pub fn record_success(&self, took: Duration, now: Moment) {
        self.response_time.record(took, self.halvings(now));
        self.peak.record(took, now);
        self.success.record(CallResult::Success, now);
    }

    /// Counts one call that failed after that time.
    pub fn record_failure(&self, took: Duration, now: Moment) {
        self.peak.record_failure(took, now);
        self.success.record(CallResult::Failure, now);
    }

    /// Forgets what was bad: the breaker has found the server well, by a call that took so long.
    ///
    /// Without it a server that hung would stay feared for as long as its peak takes to come
    /// down, and one that failed for as long as its share of successes takes to rise, although
    /// the breaker lets everything through.
    pub fn recover(&self, took: Duration, now: Moment) {
        self.peak.restore(took, now);
        self.success.restore(1.0, now);
    }

    /// What is known, for the process that comes next.
    #[must_use]
    pub fn image(&self, now: Moment) -> MeasuresImage {
        let (peak, stamp) = unpack(self.peak.word.load(Relaxed));
        MeasuresImage {
            response_time: Duration::from_micros(self.response_time.read().into()),
            success: self.success.share(),
            called_ago: self.success.idle(now),
            peak: Duration::from_micros(peak as u64),
            peak_ago: stamp.age(now),
        }
    }

    /// Goes on from what the process before knew, if nobody has called here yet.
    pub fn resume(&self, image: &MeasuresImage, now: Moment) {
        if self.success.word.load(Relaxed) != pack(1.0, Stamp(0)) {
            return;
        }
        self.response_time.bits.store(sample(image.response_time).to_bits(), Relaxed);
        if image.peak > Duration::ZERO {
            let stamp = Stamp::ago(image.peak_ago, now);
            self.peak.word.store(pack(sample(image.peak), stamp), Relaxed);
        }
        let stamp = Stamp::ago(image.called_ago, now);
        self.success.word.store(pack(success_within(image.success), stamp), Relaxed);
    }

    /// Reads all, faded if nobody has called for long.
    ///
    /// The response time halves, and the distance of success from 1 halves, with each `FADE`
    /// (at least four response times) since the last call.
    pub fn read(&self, now: Moment) -> Reading {
        let (success, halvings) = (self.success.share(), self.halvings(now));
        Reading {
            rt_us: self.response_time.read() >> halvings,
            success: success + (1.0 - success) * (1.0 - 1.0 / (1u32 << halvings) as f32),
            peak_us: self.peak.read(now),
        }
    }

    fn halvings(&self, now: Moment) -> u32 {
        let patience = micros(FADE).max(4 * u64::from(self.response_time.read()));
        (micros(self.success.idle(now)) / patience).min(31) as u32
    }
}

/// How long a measure stands without any call, at least.
const FADE: Duration = Duration::from_secs(10);

/// Bounds a share of successes; what is no number is the least.
pub(super) fn success_within(share: f32) -> f32 {
    if share.is_nan() { SUCCESS_MIN } else { share.clamp(SUCCESS_MIN, 1.0) }
}

fn blend(old: f32, sample: f32, share: f32) -> f32 {
    old + (sample - old) * share
}

/// Bounds a sample to an hour: what is longer is no response time.
fn sample(time: Duration) -> f32 {
    micros(time).min(3_600_000_000) as f32
}

/// A moment in 32 bits: its milliseconds, which wrap after 49 days.
#[derive(Clone, Copy)]
struct Stamp(u32);

impl Stamp {
    /// So long before now, also where that was before the origin; 24 days at most.
    fn ago(length: Duration, now: Moment) -> Stamp {
        let back = millis(length).min(i32::MAX as u64) as u32;
        Stamp(Stamp::of(now).0.wrapping_sub(back))
    }

    fn of(now: Moment) -> Stamp {
        Stamp(now.as_millis() as u32)
    }

    /// How long ago it was; one that lies ahead, since another core's clock was read a moment
    /// later, is new.
    fn age(self, now: Moment) -> Duration {
        let age = Stamp::of(now).0.wrapping_sub(self.0) as i32;
        Duration::from_millis(u64::from(age.max(0) as u32))
    }
}

/// Bits of the value above, the stamp below.
fn pack(value: f32, stamp: Stamp) -> u64 {
    u64::from(value.to_bits()) << 32 | u64::from(stamp.0)
}

fn unpack(word: u64) -> (f32, Stamp) {
    (f32::from_bits((word >> 32) as u32), Stamp(word as u32))
}

/// Replaces the value in `word` by `next(value, age)` and stamps it.
fn update(word: &AtomicU64, next: impl Fn(f32, Duration) -> f32, now: Moment) {
    let mut seen = word.load(Relaxed);
    for _ in 0..TRIES {
        let (value, stamp) = unpack(seen);
        let new = pack(next(value, stamp.age(now)), Stamp::of(now));
        match word.compare_exchange_weak(seen, new, Relaxed, Relaxed) {
            Ok(_) => return,
            Err(other) => seen = other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000;

    fn length(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn moment(micros: u64) -> Moment {
        Moment::from_micros(micros)
    }

    #[test]
    fn response_time_begins_at_two_seconds_and_moves_by_fifteen_percent() {
        let rt = ResponseTime::new();
        assert_eq!(rt.read(), 2_000_000);
        rt.record(length(1_000_000), 0);
        assert_eq!(rt.read(), 1_850_000);
    }

    #[test]
    fn success_begins_at_one_and_never_reaches_zero() {
        let success = SuccessRate::new();
        assert_eq!(success.share(), 1.0);
        success.record(CallResult::Failure, moment(0));
        assert!((success.share() - 0.85).abs() < 1e-6);
        (0..1000).for_each(|_| success.record(CallResult::Failure, moment(0)));
        assert_eq!(success.share(), SUCCESS_MIN);
        (0..100).for_each(|_| success.record(CallResult::Success, moment(0)));
        assert!(success.share() > 0.999);
    }

    #[test]
    fn a_server_that_recovers_is_feared_no_longer() {
        let measures = Measures::new();
        (0..200).for_each(|_| measures.record_success(length(50_000), moment(SECOND)));
        let well = measures.read(moment(SECOND));
        (0..20).for_each(|_| measures.record_failure(length(30 * SECOND), moment(2 * SECOND)));
        let ill = measures.read(moment(2 * SECOND));
        assert!(ill.success < 0.1 && ill.peak_us >= 30_000_000);
        measures.recover(length(60_000), moment(3 * SECOND));
        let again = measures.read(moment(3 * SECOND));
        assert_eq!((again.success, again.peak_us, again.rt_us), (1.0, 60_000, well.rt_us));
    }

    #[test]
    fn failures_leave_the_response_time_alone() {
        let measures = Measures::new();
        measures.record_success(length(50_000), moment(0));
        let before = measures.read(moment(0)).rt_us;
        (0..100).for_each(|_| measures.record_failure(length(10), moment(0)));
        assert_eq!(measures.read(moment(0)).rt_us, before);
    }

    #[test]
    fn a_peak_jumps_up_at_once_and_comes_down_with_time() {
        let peak = PeakEwma::new();
        assert_eq!(peak.read(moment(0)), 0);
        peak.record(length(50_000), moment(SECOND));
        assert_eq!(peak.read(moment(SECOND)), 50_000);
        peak.record(length(900_000), moment(SECOND));
        assert_eq!(peak.read(moment(SECOND)), 900_000);
        // At once after the peak a good sample changes nothing; after ten seconds 63 %.
        peak.record(length(50_000), moment(SECOND));
        assert_eq!(peak.read(moment(SECOND)), 900_000);
        peak.record(length(50_000), moment(11 * SECOND));
        let expected = 50_000.0 + 850_000.0 * (-1.0f64).exp();
        assert!((f64::from(peak.read(moment(11 * SECOND))) - expected).abs() < 100.0);
    }

    #[test]
    fn a_peak_fades_and_is_forgotten() {
        let peak = PeakEwma::new();
        peak.record(length(100_000), moment(0));
        assert!((36_000..37_500).contains(&peak.read(moment(10 * SECOND))));
        assert_eq!(peak.read(moment(60 * SECOND)), 0);
    }

    #[test]
    fn a_peak_of_a_minute_does_not_fade_within_seconds() {
        let peak = PeakEwma::new();
        peak.record(length(60 * SECOND), moment(0));
        assert!(u64::from(peak.read(moment(30 * SECOND))) > 35 * SECOND);
    }

    #[test]
    fn failing_fast_does_not_lower_the_peak_and_failing_late_raises_it() {
        let peak = PeakEwma::new();
        peak.record(length(100_000), moment(0));
        (0..100).for_each(|at| peak.record_failure(length(10), moment(at * SECOND)));
        assert_eq!(peak.read(moment(99 * SECOND)), 100_000);
        peak.record_failure(length(5_000_000), moment(99 * SECOND));
        assert_eq!(peak.read(moment(99 * SECOND)), 5_000_000);
        // Of one that has never answered nothing good is known.
        let peak = PeakEwma::new();
        peak.record_failure(length(10), moment(0));
        assert_eq!(peak.read(moment(0)), RESPONSE_TIME_START_US);
    }

    /// What calls that ended at the very beginning have measured.
    fn set(measures: &Measures, micros: u64, success: f32) {
        measures.response_time.bits.store(sample(length(micros)).to_bits(), Relaxed);
        measures.success.restore(success, moment(0));
    }

    // Without fading a server that failed once would stay behind its equals for ever.
    #[test]
    fn what_nobody_confirms_fades_until_the_next_call() {
        let measures = Measures::new();
        set(&measures, 800_000, 0.2);
        let after = |seconds: u64| measures.read(moment(seconds * SECOND));
        assert_eq!((after(9).rt_us, after(9).success), (800_000, 0.2));
        assert_eq!((after(10).rt_us, after(20).rt_us), (400_000, 200_000));
        assert!((after(10).success - 0.6).abs() < 1e-6 && (after(20).success - 0.8).abs() < 1e-6);
        assert!(after(100_000).success > 0.999);
        measures.record_failure(length(10), moment(20 * SECOND));
        assert_eq!(after(20).rt_us, 800_000);
        assert!((after(20).success - 0.17).abs() < 1e-6);
    }

    // Or a server whose first guess was too high would be tried once a minute for ever.
    #[test]
    fn a_success_goes_on_from_the_faded_time() {
        let measures = Measures::new();
        measures.record_success(length(100_000), moment(40 * SECOND));
        assert_eq!(measures.read(moment(40 * SECOND)).rt_us, 121_250);
    }

    #[test]
    fn a_server_that_takes_minutes_does_not_fade_while_it_works() {
        let measures = Measures::new();
        set(&measures, 60_000_000, 1.0);
        assert_eq!(measures.read(moment(200 * SECOND)).rt_us, 60_000_000);
    }

    #[test]
    fn a_stamp_ahead_of_the_reader_is_new() {
        let measures = Measures::new();
        measures.record_success(length(100_000), moment(5 * SECOND));
        assert_eq!(measures.read(moment(4 * SECOND)).peak_us, 100_000);
    }

    #[test]
    fn the_stamp_survives_its_wrap() {
        let wrap = (u64::from(u32::MAX) + 1) * 1000;
        let peak = PeakEwma::new();
        peak.record(length(100_000), moment(wrap - SECOND));
        assert!((80_000..100_000).contains(&peak.read(moment(wrap + SECOND))));
    }

    #[test]
    fn samples_of_many_threads_arrive() {
        let measures = Measures::new();
        measures.record_success(length(70_000), moment(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for at in 0..5_000u64 {
                        measures.record_failure(length(70_000), moment(at));
                        measures.record_success(length(70_000), moment(at));
                        let read = measures.read(moment(at));
                        assert!((SUCCESS_MIN..=1.0).contains(&read.success));
                        assert!((70_000..=RESPONSE_TIME_START_US).contains(&read.rt_us));
                        assert!((60_000..=70_000).contains(&read.peak_us));
                    }
                });
            }
        });
        // 40,000 of each; what a crowd lost is far from what would show.
        let read = measures.read(moment(5_000));
        assert!(read.rt_us.abs_diff(70_000) <= 1, "{read:?}");
        assert!((0.2..0.8).contains(&read.success), "{read:?}");
    }

    proptest! {
        #[test]
        fn measures_that_resume_go_on_as_those_before(
            calls in prop::collection::vec((any::<bool>(), 0u64..90_000, 0u64..60_000), 1..30),
            later in 0u64..200_000,
        ) {
            let (old, new) = (Measures::new(), Measures::new());
            let mut then = Moment::from_secs(1000);
            for (ok, took, pause) in calls {
                then = then + Duration::from_millis(pause);
                match ok {
                    true => old.record_success(Duration::from_millis(took), then),
                    false => old.record_failure(Duration::from_millis(took), then),
                }
            }
            // A process that has just begun: what was measured was so before its origin.
            let (told, now) = (then + Duration::from_millis(later), Moment::from_millis(3));
            new.resume(&old.image(told), now);
            let (was, is) = (old.read(told), new.read(now));
            prop_assert_eq!(was.success, is.success);
            prop_assert!(was.rt_us.abs_diff(is.rt_us) <= 1 && was.peak_us.abs_diff(is.peak_us) <= 1);
            // Who has measured for himself knows better.
            let image = old.image(told);
            new.record_success(Duration::from_millis(7), now);
            let own = new.read(now);
            new.resume(&MeasuresImage { success: 0.5, ..image }, now);
            prop_assert_eq!(new.read(now), own);
        }

        // The slow way: the same formulas in f64, one sample after the other.
        #[test]
        fn agrees_with_the_formulas(
            calls in proptest::collection::vec((any::<bool>(), 0u64..20_000_000, 0u64..5_000_000), 1..200),
        ) {
            let measures = Measures::new();
            let (mut rt, mut success, mut peak) = (2e6f64, 1.0f64, 0.0f64);
            let (mut now, mut stamp) = (0u64, 0u64);
            for (ok, us, pause) in calls {
                now += pause / 1000 * 1000;
                let kept = (-((now - stamp) as f64) / 1e7f64.max(peak)).exp();
                stamp = now;
                let sample = us as f64;
                if ok {
                    measures.record_success(length(us), moment(now));
                    rt += (sample - rt) * 0.15;
                    peak = if sample >= peak { sample } else { peak * kept + sample * (1.0 - kept) };
                } else {
                    measures.record_failure(length(us), moment(now));
                    peak = sample.max(if peak == 0.0 { 2e6 } else { peak });
                }
                success = (success + (f64::from(u8::from(ok)) - success) * 0.15).max(0.01);
                let read = measures.read(moment(now));
                prop_assert!((f64::from(read.rt_us) - rt).abs() <= 2.0 + rt * 1e-4);
                prop_assert!((f64::from(read.success) - success).abs() < 1e-4);
                prop_assert!((f64::from(read.peak_us) - peak).abs() <= 2.0 + peak * 1e-4);
            }
        }

        #[test]
        fn no_input_makes_nonsense(
            calls in proptest::collection::vec((any::<bool>(), any::<u64>(), any::<u64>()), 1..50),
            asked in any::<u64>(),
        ) {
            let measures = Measures::new();
            for (ok, us, now) in calls {
                if ok { measures.record_success(length(us), moment(now)) } else { measures.record_failure(length(us), moment(now)) }
                for at in [now, asked, 0, u64::MAX] {
                    let read = measures.read(moment(at));
                    prop_assert!((SUCCESS_MIN..=1.0).contains(&read.success), "{:?}", read);
                    prop_assert!(read.rt_us <= 3_600_000_000 && read.peak_us <= 3_600_000_000);
                }
            }
        }
    }
}
