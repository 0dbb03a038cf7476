//! What a breaker knows, told to the breaker of the process that comes next.
//!
//! Times are lengths from the moment of telling: the other process has another origin. Trials that
//! are out stay behind, since their results do: a half-open breaker begins its trials anew.

use std::time::Duration;

use super::state::{DOUBLINGS_MAX, Gate, State, StateName};
use crate::base::clock::Moment;

/// A breaker as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BreakerImage {
    /// Where it stands.
    pub state: StateName,
    /// Of one that is open, until it lets the next call in.
    pub cooldown_left: Duration,
    /// How often the cooldown was doubled.
    pub doublings: u32,
    /// Of a closed one, failures in a row.
    pub consecutive: u32,
    /// Of a half-open one, trials that succeeded.
    pub successes: u32,
    /// Of a closed one, how long ago so many calls ended, and how many of them failed.
    pub calls: Vec<(Duration, u32, u32)>,
    /// How long ago the server last failed; `None` = never.
    pub failed_ago: Option<Duration>,
    /// Whether calls to it hang.
    pub hangs: bool,
}

impl BreakerImage {
    pub(super) fn of(gate: Gate, now: Moment) -> Self {
        let image = Self { doublings: gate.doublings, ..Self::default() };
        match gate.state {
            State::Closed { consecutive } => Self { consecutive, ..image },
            State::Open { until } => {
                Self { state: StateName::Open, cooldown_left: until.since(now), ..image }
            }
            State::HalfOpen { successes, .. } => {
                Self { state: StateName::HalfOpen, successes, ..image }
            }
        }
    }

    /// The gate in which a breaker stands that goes on from here.
    pub(super) fn gate(&self, from: Gate, now: Moment) -> Gate {
        let state = match self.state {
            StateName::Closed => State::Closed { consecutive: self.consecutive },
            StateName::Open => State::Open { until: now + self.cooldown_left },
            StateName::HalfOpen => State::HalfOpen { trials_out: 0, successes: self.successes },
        };
        Gate { doublings: self.doublings.min(DOUBLINGS_MAX), ..from.into(state) }
    }
}
