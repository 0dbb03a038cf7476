//! A budget that several nodes share, seen from a core.
//!
//! The store itself is elsewhere and slow. A core never waits for it: it hands over an `Ask`
//! with a `Waiter` in it and is woken when the answer is there. An ask that is dropped
//! unanswered, by a full queue, a thread that ended or a panic, is answered `Lost`, so nobody
//! waits for ever. While the store is away nobody asks; what then holds is `OnLoss`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::time::Duration;

use super::key::{KeyRules, KeyState};
use super::window::{Full, Quota};
use crate::base::clock::{ClockOffset, Moment, WallTime};

/// When the store is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For a batch of calls ahead of need.
    Lease,
    /// For each call, which waits for the answer.
    Strict,
}

/// What holds while the store is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnLoss {
    /// Each node counts by itself and keeps to its share.
    Local,
    /// Calls of limited keys are refused.
    Deny,
}

/// An answer of the store about one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreVerdict {
    /// It passes, and has been charged.
    Pass,
    /// A window is full; nothing has been charged.
    Full(Full),
    /// The key is in debt of tokens; nothing has been charged.
    Debt,
    /// The store did not answer.
    Lost,
}

impl StoreVerdict {
    const ALL: [StoreVerdict; 5] = [
        StoreVerdict::Pass,
        StoreVerdict::Full(Full::Minute),
        StoreVerdict::Full(Full::Day),
        StoreVerdict::Debt,
        StoreVerdict::Lost,
    ];

    /// As a number, never 0.
    fn code(self) -> u8 {
        Self::ALL.iter().position(|known| *known == self).map_or(0, |at| at as u8 + 1)
    }
}

/// Where the answer to one waiter is put, and looked for.
#[derive(Clone, Debug, Default)]
pub struct Answer(Arc<AtomicU8>);

impl Answer {
    /// The answer, if it is there.
    #[must_use]
    pub fn verdict(&self) -> Option<StoreVerdict> {
        let code = self.0.load(Ordering::Acquire);
        StoreVerdict::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }
}

/// Who waits for an answer.
pub struct Waiter {
    answer: Answer,
    wake: Option<Box<dyn FnOnce() + Send>>,
}

impl Waiter {
    /// Makes one; `wake` is called once, after the answer has been put.
    pub fn new(answer: Answer, wake: impl FnOnce() + Send + 'static) -> Self {
        Self { answer, wake: Some(Box::new(wake)) }
    }

    /// Answers.
    pub fn tell(mut self, verdict: StoreVerdict) {
        self.put(verdict);
    }

    fn put(&mut self, verdict: StoreVerdict) {
        if let Some(wake) = self.wake.take() {
            self.answer.0.store(verdict.code(), Ordering::Release);
            wake();
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.put(StoreVerdict::Lost);
    }
}

/// A question to the store about one key.
pub struct Ask {
    /// The key's name: by it all nodes mean the same.
    pub name: Arc<str>,
    /// What it may have.
    pub rules: KeyRules,
    /// What it has had here.
    pub state: Arc<KeyState>,
    /// Who waits for one call; none = the stock is to be refreshed, the tokens told.
    pub waiter: Option<Waiter>,
}

type HandOver = dyn Fn(Ask) -> Result<(), Ask> + Send + Sync;

/// What the cores know of the store.
pub struct Budget {
    /// When it is asked.
    pub mode: Mode,
    /// What holds while it is away.
    pub on_loss: OnLoss,
    up: AtomicBool,
    nodes: AtomicU32,
    /// By how much the store's clock is ahead of ours.
    clock: ClockOffset,
    send: Box<HandOver>,
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("mode", &self.mode).field("up", &self.up).finish()
    }
}

impl Budget {
    /// Makes one whose store is not there yet; `send` hands a question over without waiting.
    pub fn new(
        mode: Mode,
        on_loss: OnLoss,
        send: impl Fn(Ask) -> Result<(), Ask> + Send + Sync + 'static,
    ) -> Self {
        Self {
            mode,
            on_loss,
            up: AtomicBool::new(false),
            nodes: AtomicU32::new(1),
            clock: ClockOffset::default(),
            send: Box::new(send),
        }
    }

    /// Asks; what cannot be handed over is answered `Lost`.
    pub fn ask(&self, ask: Ask) {
        if let Err(ask) = (self.send)(ask) {
            ask.state.lease.nudge_failed();
        }
    }

    /// Whether the store answers.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// Says whether the store answers.
    pub fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Relaxed);
    }

    /// Nodes that share the budget, as last heard; at least 1.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.nodes.load(Ordering::Relaxed).max(1)
    }

    /// Says how many nodes there are.
    pub fn set_nodes(&self, nodes: u32) {
        self.nodes.store(nodes, Ordering::Relaxed);
    }

    /// What the store's clock shows at a moment of ours.
    #[must_use]
    pub fn store_time(&self, now: Moment) -> WallTime {
        self.clock.shown_at(now)
    }

    /// The moment of ours at which the store's clock shows that.
    #[must_use]
    pub fn moment_of(&self, store: WallTime) -> Moment {
        self.clock.moment_of(store)
    }

    /// Says what the store's clock shows at a moment of ours.
    pub fn set_clock(&self, store: WallTime, now: Moment) {
        self.clock.set(store, now, Duration::ZERO);
    }

    /// This node's share of a quota: what it keeps to when it must count alone.
    #[must_use]
    pub fn share(&self, quota: Quota) -> Quota {
        let nodes = self.nodes();
        let part = |limit: u32| if limit == 0 { 0 } else { (limit / nodes).max(1) };
        Quota { per_minute: part(quota.per_minute), per_day: part(quota.per_day) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn ask(waiter: Option<Waiter>) -> Ask {
        Ask { name: "k".into(), rules: KeyRules::default(), state: Arc::default(), waiter }
    }

    #[test]
    fn every_verdict_arrives_and_wakes_once() {
        for verdict in StoreVerdict::ALL {
            let (answer, woken) = (Answer::default(), Arc::new(AtomicU32::new(0)));
            let counter = woken.clone();
            let waiter = Waiter::new(answer.clone(), move || {
                counter.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(answer.verdict(), None);
            waiter.tell(verdict);
            assert_eq!((answer.verdict(), woken.load(Ordering::Relaxed)), (Some(verdict), 1));
        }
    }

    #[test]
    fn a_question_that_is_dropped_is_answered() {
        let answer = Answer::default();
        drop(ask(Some(Waiter::new(answer.clone(), || {}))));
        assert_eq!(answer.verdict(), Some(StoreVerdict::Lost));
    }

    #[test]
    fn a_question_that_nobody_takes_is_answered() {
        let budget = Budget::new(Mode::Strict, OnLoss::Deny, Err);
        let answer = Answer::default();
        budget.ask(ask(Some(Waiter::new(answer.clone(), || {}))));
        assert_eq!(answer.verdict(), Some(StoreVerdict::Lost));
    }

    #[test]
    fn a_question_that_is_taken_waits() {
        let taken = Arc::new(Mutex::new(Vec::new()));
        let list = taken.clone();
        let budget = Budget::new(Mode::Lease, OnLoss::Local, move |ask| {
            list.lock().unwrap().push(ask);
            Ok(())
        });
        let answer = Answer::default();
        budget.ask(ask(Some(Waiter::new(answer.clone(), || {}))));
        assert_eq!(answer.verdict(), None);
        assert!(!budget.is_up());
    }

    #[test]
    fn a_share_is_never_nothing_and_never_a_limit_where_there_is_none() {
        let budget = Budget::new(Mode::Lease, OnLoss::Local, Err);
        let quota = Quota { per_minute: 5, per_day: 0 };
        assert_eq!(budget.share(quota), quota);
        budget.set_nodes(2);
        assert_eq!(budget.share(quota), Quota { per_minute: 2, per_day: 0 });
        budget.set_nodes(9);
        assert_eq!(budget.share(quota), Quota { per_minute: 1, per_day: 0 });
        budget.set_nodes(0);
        assert_eq!(budget.share(quota), quota);
    }

    #[test]
    fn clocks_are_brought_together_both_ways() {
        let budget = Budget::new(Mode::Lease, OnLoss::Local, Err);
        for (store, ours) in [(700, 500), (500, 700)] {
            let (store, ours) = (WallTime::from_nanos(store), Moment::from_nanos(ours));
            budget.set_clock(store, ours);
            assert_eq!((budget.store_time(ours), budget.moment_of(store)), (store, ours));
        }
    }
}
