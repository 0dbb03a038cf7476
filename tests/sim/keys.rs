//! The clients' keys: the limits that the proxy asks, and books that say what they should
//! have answered, neither more nor less.

use std::time::Duration;

use tokenring::testing::base::clock::{Timestamp, WallTime};
use tokenring::testing::error::Kind;
use tokenring::testing::policy::limit::gcra::Pace;
use tokenring::testing::policy::limit::key::{KeyRules, KeyState, Over};
use tokenring::testing::policy::limit::window::Quota;

use crate::clock::SECOND;
use crate::setup::KeySetup;

/// Where the virtual clock begins, seconds since 1970: in the middle of a minute.
const BEGAN_S: u64 = 1_700_000_030;

/// One key.
pub(crate) struct Key {
    setup: KeySetup,
    rules: KeyRules,
    state: KeyState,
    /// Admitted exchanges that have not ended.
    inside: u32,
    /// Which minute, and how many were admitted in it.
    minute: (u64, u32),
    /// Calls that may come at once, and when that was so.
    tokens: (f64, u64),
}

impl Key {
    pub(crate) fn new(setup: &KeySetup) -> Key {
        let pace = || Pace::new(setup.per_second, setup.burst);
        Key {
            rules: KeyRules {
                quota: Quota { per_minute: setup.rpm, per_day: 0 },
                tokens_per_minute: 0,
                pace: (setup.per_second > 0).then(pace),
                concurrency: setup.concurrency,
            },
            setup: setup.clone(),
            state: KeyState::default(),
            inside: 0,
            minute: (0, 0),
            tokens: (f64::from(setup.burst), 0),
        }
    }

    /// Asks the limits, and checks their answer.
    pub(crate) fn admit(&mut self, now_us: u64) -> bool {
        let minute = (BEGAN_S + now_us / SECOND) / 60;
        if self.minute.0 != minute {
            self.minute = (minute, 0);
        }
        let rate = f64::from(self.setup.per_second);
        let earned = (now_us - self.tokens.1) as f64 / SECOND as f64 * rate;
        let tokens = (self.tokens.0 + earned).min(f64::from(self.setup.burst));
        self.tokens = (tokens, now_us);
        let now = WallTime::from_secs(BEGAN_S) + Duration::from_micros(now_us);
        match self.state.admit(&self.rules, Timestamp::agreeing(now)) {
            Ok(_) => self.admitted(tokens),
            Err(over) => self.refused(&over, tokens),
        }
    }

    fn admitted(&mut self, tokens: f64) -> bool {
        let KeySetup { rpm, per_second, concurrency, .. } = self.setup;
        self.inside += 1;
        self.minute.1 += 1;
        assert!(rpm == 0 || self.minute.1 <= rpm, "{} in a minute of {rpm}", self.minute.1);
        assert!(
            concurrency == 0 || self.inside <= concurrency,
            "{} at once of {concurrency}",
            self.inside
        );
        assert!(per_second == 0 || tokens > 1.0 - CLOSE, "admitted with {tokens} of a call");
        if per_second > 0 {
            self.tokens.0 -= 1.0;
        }
        true
    }

    fn refused(&self, over: &Over, tokens: f64) -> bool {
        assert!(over.retry_after_s >= 1);
        match over.kind {
            Kind::RateMinute => assert_eq!(self.minute.1, self.setup.rpm, "refused too early"),
            Kind::ConcurrencyReached => assert_eq!(self.inside, self.setup.concurrency),
            Kind::RateSecond => assert!(tokens < 1.0 + CLOSE, "refused with {tokens} calls"),
            other => panic!("refused for {other:?}, which has no limit here"),
        }
        false
    }

    /// The exchange is over.
    pub(crate) fn leave(&mut self) {
        self.inside -= 1;
        self.state.leave(&self.rules);
    }

    /// What holds at every step.
    pub(crate) fn check(&self) {
        if self.setup.concurrency > 0 {
            assert_eq!(self.state.in_flight(), self.inside, "in flight of a key");
        }
    }

    /// What holds in the end.
    pub(crate) fn check_the_end(&self) {
        assert_eq!(self.inside, 0, "in flight of a key in the end");
        self.check();
    }
}

/// The pace is kept in whole nanoseconds, the books in parts of a call.
const CLOSE: f64 = 1e-3;
