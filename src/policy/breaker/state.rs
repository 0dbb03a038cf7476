//! The states of a breaker, what leads from one to the other, and the word that holds them.

use crate::base::clock::Moment;

/// How a call ended, for what judges servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// The server did its work, whatever the client thinks of the answer.
    Success,
    /// Connect, reset, malformed, 5xx except 501, 505 and those that mean overloaded.
    Failure,
    /// No answer in time: a failure that costs whoever waits for it much more.
    TimedOut,
}

impl CallResult {
    /// Tells whether it counts against the server.
    #[must_use]
    pub fn is_failure(self) -> bool {
        self != CallResult::Success
    }
}

/// Where a breaker stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Calls pass.
    Closed {
        /// Failures in a row so far.
        consecutive: u32,
    },
    /// Calls are refused.
    Open {
        /// From then on the next picker half-opens it.
        until: Moment,
    },
    /// A few calls are let through to see.
    HalfOpen {
        /// Trials in flight.
        trials_out: u32,
        /// Trials that succeeded.
        successes: u32,
    },
}

/// A state without what it holds, for labels and counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum StateName {
    /// Calls pass.
    #[default]
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls are let through.
    HalfOpen,
}

/// A change of state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: StateName,
    /// After.
    pub to: StateName,
}

/// The right to make one call; ends in `record` or `cancel`.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a trial that is neither recorded nor cancelled is lost"]
pub enum Entry {
    /// The breaker is closed.
    Passed {
        /// The epoch in which the call began.
        epoch: u32,
    },
    /// The breaker is half open, and this is one of its trials.
    Trial {
        /// The epoch in which the call began.
        epoch: u32,
        /// Whether this entry half-opened it.
        half_opened: bool,
    },
    /// The breaker refuses, and there is nobody else.
    LastResort {
        /// The epoch in which the call began.
        epoch: u32,
    },
}

impl Entry {
    /// The change of state that letting this call in has made.
    pub fn change(&self) -> Option<Change> {
        match self {
            Entry::Trial { half_opened: true, .. } => {
                Some(Change { from: StateName::Open, to: StateName::HalfOpen })
            }
            Entry::Trial { .. } | Entry::Passed { .. } | Entry::LastResort { .. } => None,
        }
    }
}

impl State {
    /// Returns the state without what it holds.
    pub fn name(self) -> StateName {
        match self {
            State::Closed { .. } => StateName::Closed,
            State::Open { .. } => StateName::Open,
            State::HalfOpen { .. } => StateName::HalfOpen,
        }
    }
}

/// What the word holds: kind 2 bits, doublings 2, epoch 18, and 42 of the state's own; `until` is
/// kept in milliseconds.
///
/// An epoch comes again after 262,144 changes; a call would have to outlive them all, at
/// two changes a second and more, and end in the very same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gate {
    pub(super) state: State,
    pub(super) doublings: u32,
    pub(super) epoch: u32,
}

/// The longest cooldown is eight times the first.
pub(super) const DOUBLINGS_MAX: u32 = 3;

pub(super) const EPOCH_MAX: u32 = (1 << 18) - 1;

/// In milliseconds: 139 years.
pub(super) const UNTIL_MAX: u64 = (1 << 42) - 1;

pub(super) const TRIALS_MAX: u32 = (1 << 16) - 1;

impl Gate {
    pub(super) const CLOSED: Gate =
        Gate { state: State::Closed { consecutive: 0 }, doublings: 0, epoch: 0 };

    /// The next state, in the next epoch.
    pub(super) fn into(self, state: State) -> Gate {
        Gate { state, epoch: (self.epoch + 1) & EPOCH_MAX, ..self }
    }

    pub(super) fn pack(self) -> u64 {
        let (kind, own) = match self.state {
            State::Closed { consecutive } => (0, u64::from(consecutive)),
            State::Open { until } => (1, until.as_millis().min(UNTIL_MAX)),
            State::HalfOpen { trials_out, successes } => (
                2,
                u64::from(trials_out.min(TRIALS_MAX)) << 16 | u64::from(successes.min(TRIALS_MAX)),
            ),
        };
        kind << 62 | u64::from(self.doublings) << 60 | u64::from(self.epoch) << 42 | own
    }

    pub(super) fn unpack(word: u64) -> Gate {
        let own = word & UNTIL_MAX;
        let state = match word >> 62 {
            0 => State::Closed { consecutive: own as u32 },
            1 => State::Open { until: Moment::from_millis(own) },
            _ => {
                State::HalfOpen { trials_out: (own >> 16) as u32, successes: u32::from(own as u16) }
            }
        };
        Gate {
            state,
            doublings: (word >> 60) as u32 & DOUBLINGS_MAX,
            epoch: (word >> 42) as u32 & EPOCH_MAX,
        }
    }
}
