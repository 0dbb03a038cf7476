//! What one core owns: its plan, buffers, pool, ticker, counters. No lock on the path of a request;
//! other cores see only what is in `Shared`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::before::{Handovers, ProcessBefore};
use super::bounds::Bounds;
use super::exchanges::{Exchanges, Lists};
use super::idle::Idle;
use super::leaving::Leaving;
use super::listeners::{CoreListener, CoreListeners};
pub use super::plan::LocalPlan;
use super::plan::{ListenerPlan, Plan};
pub use super::plan_slot::PlanSlot;
use super::tap::Taps;
use super::traces::{CoreTraces, Traces};
use crate::base::buf::Buffers;
use crate::base::clock::{Clock, Moment};
use crate::base::free_list::FreeList;
use crate::base::rng::Rng;
use crate::http::head::{RequestHead, ResponseHead};
use crate::llm::scan::ModelScan;
use crate::net::acknowledge::Acknowledged;
use crate::net::buffers;
use crate::net::mailbox::{self, Inbox, Message, Sender};
use crate::net::notify::{LOOK_AGAIN, WakeTable, WakeToken};
use crate::net::splice::Pipes;
use crate::net::sys;
use crate::net::ticker::Ticker;
use crate::net::unsent::UnsentTotal;
use crate::policy::balance::{Member, PickState};
use crate::policy::budget::{MILLIS_PER_SECOND, RetryBudget};
use crate::policy::limit::tally::Tally;
use crate::policy::limit::token_size::TokenSizes;
use crate::telemetry::access_record::encode;
use crate::telemetry::counters::Counters;
use crate::telemetry::failed::Tell;
use crate::telemetry::failures::RecentFailures;
use crate::telemetry::finished::{Finished, OnFinished};
use crate::telemetry::labels::PlanLabels;
use crate::telemetry::meters::Meters;
use crate::telemetry::record::Record;
use crate::telemetry::ring::RecordWriter;
use crate::telemetry::series::{CoreRows, RowSums};
use crate::upstream::h2_pool::H2Pool;
use crate::upstream::held::HeldBudget;
use crate::upstream::pool::Pool;
use crate::upstream::wait_queue::Wake;

/// Scratch space kept per core; one is lent to each exchange in flight.
const SCRATCHES_KEPT: usize = 256;

/// What all cores share.
pub struct Shared {
    /// The plan in force.
    pub slot: PlanSlot,
    /// The version of the plan by which each core serves.
    pub served: Vec<Padded<AtomicU64>>,
    /// Active client connections per core, for the hand-over at accept.
    pub active: Vec<Padded<AtomicU32>>,
    /// Mailboxes of the cores, same order.
    pub mailboxes: Vec<Sender>,
    /// Client connections of the process.
    pub connections: AtomicU32,
    /// How many connections and handshakes the process takes.
    pub bounds: Bounds,
    /// Held body bytes of the process.
    pub held: HeldBudget,
    /// Bytes of answers that wait to be sent to HTTP/2 clients, process-wide.
    pub unsent: Arc<UnsentTotal>,
    /// Streams of HTTP/2 beyond the first of each connection.
    pub streams: AtomicU32,
    /// How many connections idle on each core and since when, as of its last tick.
    pub idle: Vec<Padded<Idle>>,
    /// Connections of each client address.
    pub per_ip: Tally,
    /// TLS handshakes of each client address.
    pub shaking: Tally,
    /// Bytes per token of each model as measured, for keys that pay by the token.
    pub token_sizes: TokenSizes,
    /// Panics caught, one per connection lost.
    pub panics: AtomicU64,
    /// Connections refused because of `bounds`.
    pub refused: AtomicU64,
    /// TLS handshakes under way.
    pub handshakes: AtomicU32,
    /// TLS handshakes that failed.
    pub handshakes_failed: AtomicU64,
    /// Set when the process drains.
    pub draining: AtomicBool,
    /// What is known of the process before.
    pub before: ProcessBefore,
    /// Wakes waiters on any core, and keeps the clock that all cores share.
    pub notifier: Arc<Notifier>,
    /// Called with each failed exchange that is an operator's business; unset = none is reported.
    pub tell: std::sync::OnceLock<Tell>,
    /// How far each core has come with what it was told to listen on.
    pub acknowledged: Acknowledged,
    /// Called once with each finished exchange, on the thread of its core; unset = nobody listens.
    pub on_finished: std::sync::OnceLock<OnFinished>,
    /// The exchanges in flight, as far as they were asked for.
    pub lists: Lists,
    /// The exchanges that failed last.
    pub failures: RecentFailures,
    /// Lines of the access log that found no room on their way to its thread.
    pub access_lost: AtomicU64,
    /// Handovers from process to process, those before this one included.
    pub handovers: Handovers,
    /// The rings to that thread, until each core has taken its own.
    pub access_rings: Mutex<Vec<Option<RecordWriter>>>,
    /// Sampled exchanges on their way to the control thread.
    pub traces: Traces,
    /// Counters of each core, published once a second and at its end.
    pub counters: Vec<std::sync::Mutex<Counters>>,
    /// What each core counts by label; read at any time.
    pub rows: Vec<Arc<CoreRows>>,
    /// Idle connections to upstreams on each core, as of its last tick.
    pub pool_idle: Vec<Padded<AtomicU32>>,
}

impl Shared {
    /// The plan by which all cores serve; none while one of them has not yet taken the latest.
    #[must_use]
    pub fn plan_of_all_cores(&self) -> Option<Arc<Plan>> {
        let (plan, version) = self.slot.plan();
        let current =
            |Padded(served): &Padded<AtomicU64>| served.load(Ordering::Acquire) == version;
        self.served.iter().all(current).then_some(plan)
    }

    /// The sum of all cores' counters, as of their last publication.
    #[must_use]
    pub fn counters_sum(&self) -> Counters {
        let mut sum = Counters::default();
        for slot in &self.counters {
            if let Ok(counters) = slot.lock() {
                sum.merge(&counters);
            }
        }
        sum.merge(&self.before.counted().counters);
        sum
    }

    /// The ring of a core to the thread that writes the access log; once.
    fn take_ring(&self, core: usize) -> Option<RecordWriter> {
        let mut rings = self.access_rings.lock().unwrap_or_else(PoisonError::into_inner);
        rings.get_mut(core).and_then(Option::take)
    }

    /// What the cores of this process count by label, as of now, without what a process before it
    /// has counted, and the names of the labels.
    #[must_use]
    pub fn own_rows_sum(&self) -> (RowSums, Arc<PlanLabels>) {
        let mut sums = RowSums::default();
        self.rows.iter().for_each(|rows| sums.add(rows));
        (sums, self.slot.plan().0.labels.clone())
    }

    /// All that is counted by label, as of now, and the names of the labels.
    #[must_use]
    pub fn rows_sum(&self) -> (RowSums, Arc<PlanLabels>) {
        let mut sums = RowSums::default();
        self.rows.iter().for_each(|rows| sums.add(rows));
        sums.merge(&self.before.counted().rows);
        (sums, self.slot.plan().0.labels.clone())
    }

    /// Says that a core serves by the plan of this version.
    fn took_plan(&self, core: usize, version: u64) {
        if let Some(Padded(served)) = self.served.get(core) {
            served.store(version, Ordering::Release);
        }
    }

    /// Counts a client connection of a core in or out.
    pub fn count_connection(&self, core: usize, delta: i32) {
        let Some(Padded(active)) = self.active.get(core) else { return };
        if delta > 0 {
            active.fetch_add(1, Ordering::Relaxed);
            self.connections.fetch_add(1, Ordering::Relaxed);
        } else {
            active.fetch_sub(1, Ordering::Relaxed);
            self.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Puts another plan in force: every core takes it in its next turn, and an exchange keeps
    /// the one it began with.
    ///
    /// Connections of a listener that it leaves out are ended in order. Sockets are the caller's:
    /// the server makes them agree with the plan.
    pub fn swap(&self, plan: Plan) {
        plan.enforce();
        self.slot.put(plan);
        for mailbox in &self.mailboxes {
            // A core that does not keep up looks by itself at its next tick.
            let _ = mailbox.send(Message::RefreshPlan);
        }
    }
}

/// Wakes waiters of all cores from any thread, and keeps the clock that all threads share; each core
/// compares it with the wall's at every tick.
pub struct Notifier {
    mailboxes: Vec<Sender>,
    /// For each core: whether a wake-up was lost because its mailbox was full.
    lost: Vec<AtomicBool>,
    /// Steady time, and by how much the wall's clock is ahead of it.
    pub clock: Clock,
}

/// The mailboxes of the cores to be: made before the first plan, since who waits in its queues is
/// woken through them.
pub struct Mailboxes {
    /// Wakes waiters of these cores.
    pub notifier: Arc<Notifier>,
    /// The receiving end of each core.
    pub inboxes: Vec<Inbox>,
}

impl Mailboxes {
    /// Mailboxes of this many cores.
    ///
    /// Errors: the process has no descriptor left.
    pub fn open(cores: usize) -> io::Result<Self> {
        let made = (0..cores).map(|_| mailbox::mailbox()).collect::<io::Result<Vec<_>>>()?;
        let (senders, inboxes) = made.into_iter().unzip();
        Ok(Self { notifier: Notifier::new(senders), inboxes })
    }
}

impl Notifier {
    /// A notifier for the cores with these mailboxes.
    #[must_use]
    pub fn new(mailboxes: Vec<Sender>) -> Arc<Self> {
        let lost = mailboxes.iter().map(|_| AtomicBool::new(false)).collect();
        Arc::new(Self { mailboxes, lost, clock: sys::clock() })
    }

    /// The mailboxes of the cores, in their order.
    #[must_use]
    pub fn mailboxes(&self) -> &[Sender] {
        &self.mailboxes
    }

    /// Has every waiter of every core look again at its core's next tick.
    pub fn wake_all(&self) {
        self.lost.iter().for_each(|lost| lost.store(true, Ordering::Release));
    }

    /// Wakes a waiter with a value.
    ///
    /// Never blocks: when the mailbox is full the waiter is woken with `notify::LOOK_AGAIN` at its
    /// core's next tick.
    pub fn wake(&self, token: WakeToken, value: u64) {
        let core = usize::from(token.core);
        let (Some(mailbox), Some(lost)) = (self.mailboxes.get(core), self.lost.get(core)) else {
            return;
        };
        if mailbox.send(Message::Wake { token, value }).is_err() {
            lost.store(true, Ordering::Release);
        }
    }
}

impl Wake<WakeToken> for Notifier {
    fn wake(&self, token: WakeToken) {
        self.wake(token, LOOK_AGAIN);
    }

    fn now(&self) -> Moment {
        self.clock.at(Instant::now())
    }
}

/// A value on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(pub T);

/// Reusable working memory of one exchange.
pub struct Scratch {
    /// The parsed request head.
    pub request: RequestHead,
    /// The parsed response head.
    pub response: ResponseHead,
    /// The model scan.
    pub scan: ModelScan,
    /// The view of a group's members for the balancer.
    pub members: Vec<Member>,
    /// The request target as it is sent upstream.
    pub target: Vec<u8>,
    /// The model's name as the client sent it.
    pub model: String,
}

impl Scratch {
    fn new() -> Box<Self> {
        Box::new(Self {
            request: RequestHead::new(),
            response: ResponseHead::new(),
            scan: ModelScan::new(),
            members: Vec::new(),
            target: Vec::new(),
            model: String::new(),
        })
    }
}

/// One core.
pub struct Core {
    /// Its number among the workers.
    pub index: usize,
    plan: RefCell<LocalPlan>,
    plan_version: Cell<u64>,
    /// The listeners of this core's plan, and those that have gone.
    pub listeners: CoreListeners,
    /// Free buffers.
    pub buffers: Rc<Buffers>,
    /// Coarse deadlines.
    pub ticker: Rc<Ticker>,
    /// Idle upstream connections.
    pub pool: Pool,
    /// HTTP/2 connections to upstreams.
    pub h2_pool: Rc<H2Pool>,
    /// Empty pipes.
    pub pipes: Pipes,
    /// Free records.
    pub records: FreeList<Rc<Record>, SCRATCHES_KEPT>,
    /// The exchanges in flight, where somebody may look at them.
    pub exchanges: Exchanges,
    /// Free readers of usage.
    pub taps: Taps,
    /// The wake-ups that exchanges of this core wait for.
    pub wake_table: Rc<WakeTable>,
    /// What has been counted on this core.
    pub counters: RefCell<Counters>,
    /// The same by label.
    pub meters: RefCell<Meters>,
    rng: RefCell<Rng>,
    picks: RefCell<Vec<PickState>>,
    budgets: RefCell<Vec<RetryBudget>>,
    // Boxed because it is lent out: moving kilobytes in and out would cost more than they save.
    #[allow(clippy::vec_box)]
    scratches: FreeList<Box<Scratch>, SCRATCHES_KEPT>,
    /// Set while draining: an idle connection takes no new request.
    pub draining: Cell<bool>,
    /// HTTP/2 connections to wake when the core drains or a listener goes.
    pub leaving: Rc<Leaving>,
    access: RefCell<AccessRing>,
    /// Where sampled exchanges go.
    pub traces: CoreTraces,
    /// What all cores share.
    pub shared: Arc<Shared>,
}

/// Where a core puts the records of finished exchanges.
struct AccessRing {
    ring: Option<RecordWriter>,
    /// Holds a record while it is made.
    record: Vec<u8>,
}

impl Core {
    /// Makes a core; `seed` feeds its random source.
    #[must_use]
    pub fn new(index: usize, shared: Arc<Shared>, seed: u64) -> Rc<Self> {
        let (plan, version) = shared.slot.plan();
        shared.took_plan(index, version);
        let plan = Rc::new(plan);
        let (now, listeners) = (Instant::now(), CoreListeners::default());
        let rows = shared.rows.get(index).cloned().unwrap_or_default();
        let labels = plan.labels.clone();
        listeners.follow(&plan, &plan, now);
        Rc::new(Self {
            index,
            listeners,
            picks: RefCell::new(
                plan.groups.iter().map(|_| PickState::starting_at(index)).collect(),
            ),
            budgets: RefCell::default(),
            plan: RefCell::new(plan),
            plan_version: Cell::new(version),
            buffers: buffers::of_this_core(),
            ticker: Ticker::new(now),
            pool: Pool::default(),
            h2_pool: Rc::default(),
            pipes: Pipes::default(),
            records: FreeList::new(),
            exchanges: Exchanges::default(),
            taps: Taps::default(),
            wake_table: WakeTable::new(index),
            counters: RefCell::default(),
            meters: RefCell::new(Meters::new(rows, labels)),
            rng: RefCell::new(Rng::new(seed)),
            scratches: FreeList::new(),
            draining: Cell::new(false),
            leaving: Rc::default(),
            traces: shared.traces.take_writer(index),
            access: RefCell::new(AccessRing { ring: shared.take_ring(index), record: Vec::new() }),
            shared,
        })
    }

    /// Puts a finished exchange on its way to the access log; one that finds no room is counted.
    pub fn log_access(&self, finished: &Finished<'_>) {
        let AccessRing { ring, record } = &mut *self.access.borrow_mut();
        record.clear();
        encode(finished, record);
        if !ring.as_mut().is_some_and(|ring| ring.push(record)) {
            self.shared.access_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether the access log has a line for an exchange that ended so.
    pub fn logs_access(&self, sample: Option<f64>, well: bool) -> bool {
        match sample {
            None => false,
            Some(share) if share >= 1.0 || !well => true,
            // 53 bits, as many as a float holds.
            Some(share) => ((self.random_u64() >> 11) as f64) < share * (1u64 << 53) as f64,
        }
    }

    /// This core's plan; an exchange keeps the one it began with.
    #[must_use]
    pub fn plan(&self) -> LocalPlan {
        self.plan.borrow().clone()
    }

    /// Takes the plan in force, if it is another one than this core's.
    pub fn refresh_plan(&self) {
        if self.shared.slot.version() == self.plan_version.get() {
            return;
        }
        let (plan, version) = self.shared.slot.plan();
        self.keep_by_group(&plan);
        self.plan_version.set(version);
        let next = Rc::new(plan);
        let before = self.plan.replace(next.clone());
        if self.listeners.follow(&before, &next, self.ticker.now()) {
            self.leaving.wake();
        }
        self.meters.borrow_mut().follow(&next.labels);
        self.shared.took_plan(self.index, version);
    }

    /// Carries over what this core keeps of groups: the retry budget, and where the members are
    /// still the same, the balancer's state, which knows them by their places.
    fn keep_by_group(&self, next: &Plan) {
        let now = self.plan.borrow();
        let (mut picks, mut budgets) = (self.picks.borrow_mut(), self.budgets.borrow_mut());
        let mut picks_left = picks.drain(..).map(Some).collect::<Vec<_>>();
        let mut budgets_left = budgets.drain(..).map(Some).collect::<Vec<_>>();
        let groups = now.groups.iter().enumerate();
        let known: HashMap<u64, usize> =
            groups.map(|(index, group)| (group.state.number, index)).collect();
        for group in &next.groups {
            let before = known.get(&group.state.number);
            let same = before
                .filter(|at| now.member_names(&now.groups[**at]).eq(next.member_names(group)));
            let pick = same.and_then(|at| picks_left.get_mut(*at)?.take());
            picks.push(pick.unwrap_or_else(|| PickState::starting_at(self.index)));
            let budget = before.and_then(|at| budgets_left.get_mut(*at)?.take());
            budgets.push(budget.unwrap_or_else(|| self.new_budget()));
        }
    }

    /// This core's share of a group's retry budget.
    fn new_budget(&self) -> RetryBudget {
        let share = MILLIS_PER_SECOND / self.shared.active.len().max(1) as u64;
        RetryBudget::new(share, self.ticker.now())
    }

    /// The plan for an exchange that begins, and the position of its listener in that plan.
    #[must_use]
    pub fn plan_for(&self, listener: &CoreListener) -> (LocalPlan, usize) {
        listener.plan(&self.plan.borrow())
    }

    /// Calls `ask` with what this core's plan says of a listener.
    pub fn with_listener<T>(
        &self,
        listener: &CoreListener,
        ask: impl FnOnce(&ListenerPlan) -> T,
    ) -> T {
        listener.with(&self.plan.borrow(), ask)
    }

    /// Whether connections of this listener are to end: an idle one takes no new request.
    #[must_use]
    pub fn is_leaving(&self, listener: &CoreListener) -> bool {
        self.draining.get() || listener.is_gone()
    }

    /// One random draw.
    #[must_use]
    pub fn random_u64(&self) -> u64 {
        self.rng.borrow_mut().next_u64()
    }

    /// Uses the balancer's state of one group.
    pub fn with_pick_state<T>(&self, group: usize, use_it: impl FnOnce(&mut PickState) -> T) -> T {
        let mut picks = self.picks.borrow_mut();
        if picks.len() <= group {
            picks.resize_with(group + 1, || PickState::starting_at(self.index));
        }
        use_it(&mut picks[group])
    }

    /// Uses the retry budget of one group: this core's share of it.
    pub fn with_budget<T>(&self, group: usize, use_it: impl FnOnce(&mut RetryBudget) -> T) -> T {
        let mut budgets = self.budgets.borrow_mut();
        if budgets.len() <= group {
            budgets.resize_with(group + 1, || self.new_budget());
        }
        use_it(&mut budgets[group])
    }

    /// Lends working memory to an exchange; `give_back_scratch` ends the loan.
    #[must_use]
    pub fn take_scratch(&self) -> Box<Scratch> {
        self.scratches.take().unwrap_or_else(Scratch::new)
    }

    /// Takes working memory back.
    pub fn give_back_scratch(&self, scratch: Box<Scratch>) {
        self.scratches.give_back(scratch);
    }

    /// Wakes a waiter, on this core or another.
    pub fn wake(&self, token: WakeToken, value: u64) {
        if usize::from(token.core) == self.index {
            self.wake_table.wake(token, value);
        } else {
            self.shared.notifier.wake(token, value);
        }
    }

    /// Wakes every waiter of this core if a full mailbox lost a wake-up; called at every tick.
    pub fn wake_lost(&self) {
        if self.shared.notifier.lost[self.index].swap(false, Ordering::Acquire) {
            self.wake_table.wake_all();
        }
    }

    /// Tells the other threads how many connections to upstreams idle here; called at every tick.
    pub fn publish_idle(&self) {
        if let Some(Padded(idle)) = self.shared.pool_idle.get(self.index) {
            idle.store(self.pool.idle_all(), Ordering::Relaxed);
        }
    }

    /// Copies this core's counters to where other threads read them; skipped while one reads.
    pub fn publish(&self) {
        if let Some(slot) = self.shared.counters.get(self.index)
            && let Ok(mut slot) = slot.try_lock()
        {
            slot.clone_from(&self.counters.borrow());
        }
    }

    /// Counts a panic, if there was one.
    pub fn count_panic(&self, panicked: bool) {
        if panicked {
            self.shared.panics.fetch_add(1, Ordering::Relaxed);
        }
    }
}
