//! The start of a server: the control thread and its first answers, the plan, the cores, then the
//! sockets, which a process before may have.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::access_log::AccessLog;
use super::occupy::{Occupied, Others, occupy};
use super::running::{Options, Server};
use crate::config::Config;
use crate::control::exchanges::ExchangeHooks;
use crate::control::traces::TraceHooks;
use crate::control::{self, Begun, Control, ServerHooks};
use crate::net::mailbox::Message;
use crate::net::sys;
use crate::net::tls::Store;
use crate::proxy::compile::compile;
use crate::proxy::core::{Mailboxes, Padded, Shared};
use crate::telemetry::access_record::write_record;
use crate::telemetry::prometheus::Live;
use crate::upstream::registry::Registry;
use crate::upstream::wait_queue::Wake as _;

/// Starts what a config describes.
///
/// Shape: also returns the config with the models that were discovered, and warnings: upstreams
/// that could not be resolved or asked.
/// Errors: a message for the operator that names the thing and what to do.
pub fn start(config: &Config) -> Result<Started, String> {
    start_with(config, control::Options::default())
}

/// As `start`, with a control thread that differs from the usual.
pub fn start_with(config: &Config, differs: control::Options) -> Result<Started, String> {
    start_beside(config, differs, None)
}

/// As `start_with`, beside other processes, from which it may take the sockets over.
pub fn start_beside(
    config: &Config,
    differs: control::Options,
    others: Option<Others>,
) -> Result<Started, String> {
    let has_tls = config.listeners.iter().any(|listener| listener.tls.is_some());
    let state_dir = config.process.state_dir.as_deref().filter(|_| has_tls);
    let (tls, amiss) = Store::open(state_dir);
    let tls = Arc::new(tls);
    let options = Options::of(config)?;
    let mailboxes =
        Mailboxes::open(options.cores.len().max(1)).map_err(|error| error.to_string())?;
    let registry = Registry::new(mailboxes.notifier.clone());
    let say = differs.say.clone();
    let (mut control, begun) = Control::begin(config, registry, tls.clone(), differs)?;
    let Begun { config, carried, warnings } = begun;
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let mut warnings = warnings;
    warnings.extend(amiss);
    let store = tls.clone();
    let plan_of = move |config: &Config, carried| compile(config, carried, &tls, unix.as_secs());
    let plan = plan_of(&config, carried)?;
    let mut server = Server::build(plan, options, mailboxes).map_err(|error| error.to_string())?;
    server.tls = Some(store);
    let told = say.clone();
    let rings = server.rings.get_mut().unwrap_or_else(PoisonError::into_inner);
    let rings = std::mem::take(rings);
    let access_log = AccessLog::start(&config.log.access, rings, write_record, say)?;
    server.access_log = Some(access_log.clone());
    let lost = access_log.clone();
    let shared = || server.shared.clone();
    let (counted, queued, draining) = (shared(), shared(), shared());
    let listeners = server.listeners.clone();
    let (clocked, bounded, tried) = (shared(), shared(), listeners.clone());
    let (published, failing, used) = (shared(), shared(), shared());
    let hooks = ServerHooks {
        publish: Box::new(move |config, carried| {
            let applied = listeners.apply(plan_of(config, carried)?)?;
            if let Err(amiss) = applied.complete() {
                told(&format!("a change of the config: {amiss}"));
            }
            Ok(())
        }),
        prepare: Box::new(move |config, carried| {
            let options = Options::of(config)?;
            // With a store of its own: what a trial makes of TLS is nobody's.
            let trial = compile(config, carried, &Store::default(), unix.as_secs())?;
            tried.check(&trial)?;
            let redirect = access_log.prepare(&config.log.access)?;
            let shared = bounded.clone();
            Ok(Box::new(move || {
                redirect();
                shared.bounds.set(options.bounds);
                shared.held.set_total(options.held_total_bytes);
                shared.unsent.set_max(options.held_total_bytes);
            }))
        }),
        counters: Box::new(move || counted.counters_sum()),
        live: Box::new(move || live(&queued, &lost)),
        clock: Arc::new(move || clocked.notifier.now()),
        in_force: Box::new(move || published.plan_of_all_cores().is_some()),
        traces: traces(&server),
        failures: Box::new(move || failing.failures.latest()),
        rows: Box::new(move || used.own_rows_sum()),
        exchanges: exchanges(&server),
        draining: Box::new(move || draining.draining.load(Ordering::Relaxed)),
    };
    let Occupied { admin, took_over, warnings: told } = occupy(&mut server, &config, others)?;
    warnings.extend(told);
    control.hook(hooks, admin);
    server.control = Some(control);
    Ok(Started { server, config, warnings, took_over })
}

/// How the control thread comes to the spans of the cores.
fn traces(server: &Server) -> TraceHooks {
    let shared = || server.shared.clone();
    let (planned, taken, counted) = (shared(), shared(), shared());
    TraceHooks {
        settings: Box::new(move || planned.slot.plan().0.tracing.clone()),
        take: Box::new(move |max, into| taken.traces.take(max, into)),
        count: Box::new(move |exported, dropped| {
            counted.traces.exported.fetch_add(exported, Ordering::Relaxed);
            counted.traces.dropped.fetch_add(dropped, Ordering::Relaxed);
        }),
    }
}

/// Looks at exchanges in flight and cancels them, by messages to their cores.
fn exchanges(server: &Server) -> ExchangeHooks {
    let (asked, answered, ended) =
        (server.shared.clone(), server.shared.clone(), server.shared.clone());
    let questions = AtomicU64::new(0);
    ExchangeHooks {
        ask: Box::new(move || {
            let number = questions.fetch_add(1, Ordering::Relaxed) + 1;
            for mailbox in &asked.mailboxes {
                // A core whose mailbox is full does not answer in time.
                let _ = mailbox.send(Message::ListExchanges { number });
            }
            number
        }),
        gather: Box::new(move |number| answered.lists.gather(number)),
        end: Box::new(move |[core, slot, uses]| {
            let mailbox = ended.mailboxes.get(core as usize);
            mailbox.is_some_and(|mailbox| mailbox.send(Message::EndExchange { slot, uses }).is_ok())
        }),
    }
}

/// What the cores and the log have in use at the moment.
fn live(shared: &Shared, log: &AccessLog) -> Live {
    let (plan, _) = shared.slot.plan();
    let (rows, labels) = shared.rows_sum();
    let idle = |Padded(idle): &Padded<AtomicU32>| idle.load(Ordering::Relaxed);
    let now_s = sys::unix_s();
    // A group that the file does not name may have the name of one that it does.
    let mut queues = BTreeMap::new();
    for group in &plan.groups {
        if let Some(queue) = &group.queue {
            *queues.entry(group.name.clone()).or_default() += queue.len();
        }
    }
    Live {
        queues: queues.into_iter().collect(),
        connections: shared.connections.load(Ordering::Relaxed),
        held_bytes: shared.held.taken(),
        unsent_bytes: shared.unsent.bytes(),
        connections_refused: shared.refused.load(Ordering::Relaxed),
        handshakes_failed: shared.handshakes_failed.load(Ordering::Relaxed),
        panics: shared.panics.load(Ordering::Relaxed),
        traces_exported: shared.traces.exported.load(Ordering::Relaxed),
        traces_dropped: shared.traces.dropped.load(Ordering::Relaxed),
        handovers: shared.handovers.done.load(Ordering::Relaxed),
        handovers_failed: shared.handovers.failed.load(Ordering::Relaxed),
        access_lines_lost: shared.access_lost.load(Ordering::Relaxed) + log.lost(),
        pool_idle: shared.pool_idle.iter().map(idle).sum(),
        certificates: plan.certificates.iter().map(|one| one.row(now_s)).collect(),
        rows,
        labels,
    }
}

/// What `start` gives.
pub struct Started {
    /// The running server.
    pub server: Server,
    /// The config in force.
    pub config: Config,
    /// What was amiss but did not stop the start.
    pub warnings: Vec<String>,
    /// The process from which it took over, for people.
    pub took_over: Option<String>,
}
