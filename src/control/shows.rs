//! What the operator's interface shows and can cause: the closures of the server, and what the control
//! thread keeps.

use std::sync::Arc;

use super::certs::Reloads;
use super::documents::Documents;
use super::exchanges::ExchangeHooks;
use super::reconciler::UpstreamTable;
use super::reload::{ReloadStatus, Reloader};
use super::source::SourceRows;
use super::usage::{Rows, Usage};
use crate::telemetry::counters::Counters;
use crate::telemetry::failures::Failure;
use crate::telemetry::prometheus::Live;

/// What the interface shows, and the reloads that it can cause.
pub struct Shows {
    /// The upstreams in force.
    pub table: UpstreamTable,
    /// The counters of all cores, added up.
    pub counters: Count,
    /// What the cores have in use at the moment.
    pub live: AskLive,
    /// Whether all cores serve by the config that was published last.
    pub in_force: InForce,
    /// Whether the process drains.
    pub draining: Draining,
    /// The config as it was said.
    pub documents: Documents,
    /// The exchanges that failed last, the latest first.
    pub failures: Failures,
    /// The exchanges in flight.
    pub exchanges: ExchangeHooks,
    /// Who used how many tokens.
    pub usage: Usage,
    /// What the cores count by label.
    pub rows: Arc<Rows>,
    /// How certificates were renewed.
    pub certificates: Arc<Reloads>,
    /// How the last reload went.
    pub reloads: Arc<ReloadStatus>,
    /// How the entries with `discover` do.
    pub sources: SourceRows,
    /// Carries reloads and edits out.
    pub reloader: Reloader,
}

type Count = Box<dyn Fn() -> Counters + Send + Sync>;
type AskLive = Box<dyn Fn() -> Live + Send + Sync>;
type InForce = Box<dyn Fn() -> bool + Send + Sync>;
type Failures = Box<dyn Fn() -> Vec<Failure> + Send + Sync>;
type Draining = Box<dyn Fn() -> bool + Send + Sync>;
