//! The budget that several nodes share, in Redis.
//!
//! One task on the control thread holds one connection. Exchanges ask by a bounded queue; all
//! questions that wait go out together, one call of the script a key, in one pipeline, and while
//! its answer is on the way the next ones gather. So a core never waits for the network, a thousand
//! exchanges share a round trip, and every decision is made by the script alone (`budget.lua`),
//! which Redis runs as one step.
//!
//! Any failure ends the connection. Exchanges that wait are told `Lost` and go on as
//! `Budget::on_loss` says, later ones do not even ask, and connecting is tried again until it
//! succeeds. A call whose answer was lost may have been charged; none is ever charged too little.
//!
//! `connect` makes the connection, with TLS where the URL asks for it.
//!
//! Each node writes itself into a sorted set, so that all know how many nodes there are, and each
//! knows its share when it must count alone. Windows follow the clock of Redis, which must be of
//! version 5 or later.

mod connect;

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::Duration;

use redis::RedisError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::base::clock::WallTime;
use crate::config::{RatelimitStore, StoreKind, StoreMode, StoreOnError};
use crate::control::say::Say;
use crate::net::sys;
use crate::policy::limit::key::{KeyRules, KeyState};
use crate::policy::limit::lease::{Dealt, Draw};
use crate::policy::limit::shared::{Ask, Budget, Mode, OnLoss, StoreVerdict, Waiter};
use crate::policy::limit::window::Full;
use connect::{Connected, Failed, StoreServer};

pub use connect::CONNECT_TIMEOUT;

/// The script that decides and charges; see its head for arguments and results.
const SCRIPT: &str = include_str!("budget.lua");
/// Prefix of the names in Redis, before the name of an API key.
const KEY_PREFIX: &str = "tokenring:limit:";
/// The sorted set of nodes; the score is the second of the node's last beat.
const NODES_KEY: &str = "tokenring:nodes";

/// Longest time that an exchange waits for an answer.
///
/// Long compared with a round trip in one data centre, short compared with an answer of a model. It
/// is waited once: after it the store counts as lost, and no exchange waits for it.
pub const CALL_TIMEOUT: Duration = Duration::from_millis(200);
/// Pause between two attempts to connect.
const RETRY: Duration = Duration::from_millis(250);
/// Time between two beats: each reports this node and reads how many nodes there are.
const BEAT: Duration = Duration::from_secs(1);
/// After so many seconds without a beat a node no longer counts.
const SILENT_S: u64 = 15;
/// Most questions that wait; a further one is answered `Lost`.
const ASKS_MAX: usize = 65_536;
/// Most questions that go out in one pipeline.
const TOGETHER_MAX: usize = 4096;
/// Most tokens sent to the script: Lua's numbers are exact up to 2^53.
const TOKENS_MAX: u64 = 1 << 50;

/// A store whose task is not running yet.
pub struct Opened<F> {
    /// What the cores ask and share.
    pub budget: Arc<Budget>,
    /// The task, to be run on the control thread; ends when the last clone of `budget` is dropped.
    pub run: F,
    /// Receives the outcome of the first attempt to connect.
    pub first: std_mpsc::Receiver<Result<(), String>>,
}

/// The number of a node that nobody has chosen.
#[must_use]
pub fn node() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8)
}

/// Makes the store that the config names; `None` when the counters are kept in this process. `node`
/// identifies this process among the nodes; `say` tells the operator when the store is lost and when
/// it is back.
///
/// Errors: the URL is no valid URL of Redis; its text is not quoted, since it may hold a password.
/// Or its TLS settings cannot be used.
pub fn open(
    store: &RatelimitStore,
    node: u64,
    say: Say,
) -> Result<Option<Opened<impl Future<Output = ()> + Send + 'static>>, String> {
    if store.kind == StoreKind::Memory {
        return Ok(None);
    }
    let server = StoreServer::of(store)?;
    let (asks, inbox) = mpsc::channel::<Ask>(ASKS_MAX);
    let mode = match store.mode {
        StoreMode::Lease => Mode::Lease,
        StoreMode::Strict => Mode::Strict,
    };
    let on_loss = match store.on_error {
        StoreOnError::Local => OnLoss::Local,
        StoreOnError::Deny => OnLoss::Deny,
    };
    let send = move |ask| asks.try_send(ask).map_err(|refused| refused.into_inner());
    let budget = Arc::new(Budget::new(mode, on_loss, send));
    let (tell, first) = std_mpsc::channel();
    let store = Store {
        server,
        // The cores own the budget: when they are gone the queue closes, and the task ends.
        budget: Arc::downgrade(&budget),
        ahead: mode == Mode::Lease,
        inbox,
        node: format!("{node:016x}"),
        say,
    };
    Ok(Some(Opened { budget, run: store.run(tell), first }))
}

struct Store {
    server: StoreServer,
    budget: std::sync::Weak<Budget>,
    /// Whether calls are drawn in advance (mode `lease`).
    ahead: bool,
    inbox: mpsc::Receiver<Ask>,
    /// The member of `NODES_KEY` that stands for this node.
    node: String,
    say: Say,
}

/// Why a connection is served no longer: it must be made anew (`Lost`), or the cores are gone
/// (`Over`).
enum End {
    Lost,
    Over,
}

impl From<RedisError> for End {
    fn from(_: RedisError) -> Self {
        End::Lost
    }
}

impl From<tokio::time::error::Elapsed> for End {
    fn from(_: tokio::time::error::Elapsed) -> Self {
        End::Lost
    }
}

/// A connection on which the script is loaded, and the digest by which it is called.
struct Link {
    connected: Connected,
    script: String,
}

impl Store {
    async fn run(mut self, first: std_mpsc::Sender<Result<(), String>>) {
        let mut first = Some(first);
        // Whether the store is away, and whether it was told why it refuses.
        let (mut lost, mut explained) = (false, false);
        loop {
            let late =
                || Failed::Silent(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()));
            let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
            match connected.unwrap_or_else(|_| Err(late())) {
                Ok(link) => {
                    self.set_up(true);
                    explained = false;
                    if std::mem::take(&mut lost) {
                        (self.say)("ratelimit_store: back");
                    }
                    tell_first(&mut first, Ok(()));
                    let end = self.serve(link).await;
                    self.set_up(false);
                    if matches!(end, End::Over) {
                        return;
                    }
                    lost = true;
                    (self.say)("ratelimit_store: lost; on_error holds until it is back");
                }
                Err(failed) => {
                    lost = true;
                    let is_refusal = matches!(failed, Failed::Refused(_));
                    let (Failed::Refused(why) | Failed::Silent(why)) = failed;
                    // The first failure is the start's to tell, unless nobody waits for it.
                    let told = tell_first(&mut first, Err(why.clone()));
                    if !told && is_refusal && !std::mem::replace(&mut explained, true) {
                        (self.say)(&format!("ratelimit_store: refused: {why}"));
                    }
                }
            }
            if matches!(self.pause().await, End::Over) {
                return;
            }
        }
    }

    fn set_up(&self, up: bool) {
        if let Some(budget) = self.budget.upgrade() {
            budget.set_up(up);
        }
    }

    async fn connect(&mut self) -> Result<Link, Failed> {
        let mut connected = self.server.connect().await?;
        let mut load = redis::cmd("SCRIPT");
        let script = load.arg("LOAD").arg(SCRIPT).query_async(&mut connected.connection).await;
        let mut link = Link { connected, script: script? };
        self.beat(&mut link).await?;
        Ok(link)
    }

    /// Answers questions until the connection fails or the cores are gone.
    async fn serve(&mut self, mut link: Link) -> End {
        let mut next_beat = Instant::now() + BEAT;
        let mut asks = Vec::new();
        loop {
            if Instant::now() >= next_beat {
                next_beat = Instant::now() + BEAT;
                match timeout(CALL_TIMEOUT, self.beat(&mut link)).await {
                    Ok(Ok(())) => {}
                    _ => return End::Lost,
                }
            }
            match timeout_at(next_beat, self.inbox.recv()).await {
                // No question until the next beat is due.
                Err(_) => {}
                Ok(None) => return End::Over,
                Ok(Some(ask)) => {
                    asks.push(ask);
                    while asks.len() < TOGETHER_MAX
                        && let Ok(ask) = self.inbox.try_recv()
                    {
                        asks.push(ask);
                    }
                    if let Err(end) = self.answer(&mut link, gather(asks.drain(..))).await {
                        return end;
                    }
                }
            }
        }
    }

    /// Reports that this node lives, and reads the number of nodes and the time of Redis.
    async fn beat(&self, link: &mut Link) -> Result<(), RedisError> {
        let connection = &mut link.connected.connection;
        let (second, micros): (u64, u64) = redis::cmd("TIME").query_async(connection).await?;
        let Some(budget) = self.budget.upgrade() else { return Ok(()) };
        budget.set_clock(WallTime::from_secs(second) + Duration::from_micros(micros), sys::now());
        let mut words = redis::pipe();
        words.cmd("ZADD").arg(NODES_KEY).arg(second).arg(&self.node).ignore();
        let oldest = second.saturating_sub(SILENT_S);
        words.cmd("ZREMRANGEBYSCORE").arg(NODES_KEY).arg("-inf").arg(oldest).ignore();
        words.cmd("EXPIRE").arg(NODES_KEY).arg(4 * SILENT_S).ignore();
        words.cmd("ZCARD").arg(NODES_KEY);
        let (nodes,): (u32,) = words.query_async(connection).await?;
        budget.set_nodes(nodes);
        Ok(())
    }

    /// Sends one call for each key, all in one round trip, and hands out the answers.
    async fn answer(&self, link: &mut Link, questions: Vec<Question>) -> Result<(), End> {
        let Some(budget) = self.budget.upgrade() else { return Err(End::Over) };
        let mut calls = redis::pipe();
        let nodes = budget.nodes();
        let now = budget.store_time(sys::now());
        let mut pending = Vec::with_capacity(questions.len());
        for question in questions {
            let waiting = u32::try_from(question.waiters.len()).unwrap_or(u32::MAX);
            let draw = question.state.lease.draw(question.rules.quota, waiting, self.ahead, now);
            question.write(&mut calls, &link.script, &draw, nodes);
            pending.push(Pending { question, draw, dealt: false });
        }
        type Row = (u64, u32, u32, u32, u32, u32, u32, u32, u64);
        let rows: Vec<Row> =
            timeout(CALL_TIMEOUT, calls.query_async(&mut link.connected.connection)).await??;
        if rows.len() != pending.len() {
            return Err(End::Lost);
        }
        for (mut pending, row) in pending.into_iter().zip(rows) {
            let (now_us, minute, day, passed, given_minute, given_day, left_minute, left_day, due) =
                row;
            budget.set_clock(WallTime::from_micros(now_us), sys::now());
            let dealt =
                Dealt { minute, day, passed, given_minute, given_day, left_minute, left_day };
            pending.deal(&budget, &dealt, WallTime::from_millis(due));
        }
        Ok(())
    }

    /// Waits until the next attempt to connect; questions that come meanwhile are answered `Lost`.
    async fn pause(&mut self) -> End {
        let until = sleep(RETRY);
        let mut until = std::pin::pin!(until);
        std::future::poll_fn(|cx| {
            while let std::task::Poll::Ready(ask) = self.inbox.poll_recv(cx) {
                match ask {
                    // Dropping its waiter answers `Lost`.
                    Some(ask) => ask.state.lease.nudge_failed(),
                    None => return std::task::Poll::Ready(End::Over),
                }
            }
            until.as_mut().poll(cx).map(|()| End::Lost)
        })
        .await
    }
}

/// Tells the outcome of the first attempt; false when it was told before or nobody waits for it.
fn tell_first(
    first: &mut Option<std_mpsc::Sender<Result<(), String>>>,
    told: Result<(), String>,
) -> bool {
    first.take().is_some_and(|first| first.send(told).is_ok())
}

/// All questions about one key that go out as one call.
struct Question {
    name: Arc<str>,
    rules: KeyRules,
    state: Arc<KeyState>,
    waiters: Vec<Waiter>,
}

/// Puts the questions about one key together, in the order they came.
fn gather(asks: impl Iterator<Item = Ask>) -> Vec<Question> {
    let mut places: HashMap<*const KeyState, usize> = HashMap::new();
    let mut questions: Vec<Question> = Vec::new();
    for Ask { name, rules, state, waiter } in asks {
        let place = *places.entry(Arc::as_ptr(&state)).or_insert_with(|| {
            questions.push(Question { name, rules, state, waiters: Vec::new() });
            questions.len() - 1
        });
        if let Some(question) = questions.get_mut(place) {
            // The last question has the rules of the latest config.
            question.rules = rules;
            question.waiters.extend(waiter);
        }
    }
    questions
}

impl Question {
    fn write(&self, calls: &mut redis::Pipeline, script: &str, draw: &Draw, nodes: u32) {
        let KeyRules { quota, tokens_per_minute, .. } = self.rules;
        let call = calls.cmd("EVALSHA").arg(script).arg(1);
        call.arg(format!("{KEY_PREFIX}{}", self.name))
            .arg(quota.per_minute)
            .arg(quota.per_day)
            .arg(tokens_per_minute.min(TOKENS_MAX))
            .arg(draw.waiting)
            .arg(draw.hand_minute.1)
            .arg(draw.hand_minute.0)
            .arg(draw.hand_day.1)
            .arg(draw.hand_day.0)
            .arg(draw.ahead_minute)
            .arg(draw.ahead_day)
            .arg(draw.tokens.min(TOKENS_MAX))
            .arg(nodes);
    }
}

/// A call that is on its way; dropped without an answer, it gives back the calls that it drew.
struct Pending {
    question: Question,
    draw: Draw,
    dealt: bool,
}

impl Pending {
    fn deal(&mut self, budget: &Budget, dealt: &Dealt, due: WallTime) {
        self.dealt = true;
        let Question { rules, state, waiters, .. } = &mut self.question;
        state.lease.deal(rules.quota, &self.draw, dealt);
        if rules.tokens_per_minute > 0 {
            state.balance.lower_to(budget.moment_of(due));
        }
        let refused = refusal(rules, dealt);
        for (at, waiter) in waiters.drain(..).enumerate() {
            let passes = at < dealt.passed as usize;
            waiter.tell(if passes { StoreVerdict::Pass } else { refused });
        }
    }
}

/// The verdict for the exchanges that do not pass.
fn refusal(rules: &KeyRules, dealt: &Dealt) -> StoreVerdict {
    if rules.quota.per_day > 0 && dealt.left_day == 0 {
        StoreVerdict::Full(Full::Day)
    } else if rules.quota.per_minute > 0 && dealt.left_minute == 0 {
        StoreVerdict::Full(Full::Minute)
    } else {
        StoreVerdict::Debt
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.dealt {
            self.question.state.lease.undo(&self.draw);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use crate::policy::limit::shared::Answer;
    use crate::policy::limit::window::Quota;

    fn store(url: &str) -> RatelimitStore {
        RatelimitStore {
            kind: StoreKind::Redis,
            url: Secret::new(url),
            tls: crate::config::UpstreamTls::default(),
            mode: StoreMode::Lease,
            on_error: StoreOnError::Local,
        }
    }

    fn ask(name: &str, state: &Arc<KeyState>, per_minute: u32, answer: Option<&Answer>) -> Ask {
        Ask {
            name: name.into(),
            rules: KeyRules { quota: Quota { per_minute, per_day: 0 }, ..KeyRules::default() },
            state: state.clone(),
            waiter: answer.map(|answer| Waiter::new(answer.clone(), || {})),
        }
    }

    #[test]
    fn no_store_is_opened_for_counters_in_memory() {
        let memory = RatelimitStore { kind: StoreKind::Memory, ..store("redis://127.0.0.1") };
        assert!(matches!(open(&memory, 1, Arc::new(|_| {})), Ok(None)));
    }

    #[test]
    fn a_bad_url_is_refused_without_its_password() {
        let why =
            open(&store("redis://:CANARY@h:99999/x"), 1, Arc::new(|_| {})).err().expect("refused");
        assert!(why.starts_with("ratelimit_store.url") && !why.contains("CANARY"), "{why}");
    }

    #[test]
    fn questions_about_one_key_become_one() {
        let (a, b, answers) = (Arc::default(), Arc::default(), [0; 3].map(|_| Answer::default()));
        let asks = [
            ask("a", &a, 5, Some(&answers[0])),
            ask("b", &b, 7, Some(&answers[1])),
            ask("a", &a, 6, Some(&answers[2])),
            ask("a", &a, 6, None),
        ];
        let questions = gather(asks.into_iter());
        let seen: Vec<_> = questions
            .iter()
            .map(|q| (&*q.name, q.rules.quota.per_minute, q.waiters.len()))
            .collect();
        assert_eq!(seen, [("a", 6, 2), ("b", 7, 1)]);
        drop(questions);
        assert!(answers.iter().all(|answer| answer.verdict() == Some(StoreVerdict::Lost)));
    }

    #[test]
    fn an_answer_goes_to_those_who_came_first() {
        let (state, answers) = (Arc::default(), [0; 3].map(|_| Answer::default()));
        let asks = answers.iter().map(|answer| ask("a", &state, 2, Some(answer)));
        let question = gather(asks).remove(0);
        let draw = question.state.lease.draw(question.rules.quota, 3, false, WallTime::default());
        let mut pending = Pending { question, draw, dealt: false };
        let dealt = Dealt { passed: 2, given_minute: 2, left_minute: 0, ..Dealt::default() };
        pending.deal(&Budget::new(Mode::Strict, OnLoss::Deny, Err), &dealt, WallTime::default());
        let verdicts = answers.map(|answer| answer.verdict().unwrap());
        assert_eq!(
            verdicts,
            [StoreVerdict::Pass, StoreVerdict::Pass, StoreVerdict::Full(Full::Minute)]
        );
    }
}
