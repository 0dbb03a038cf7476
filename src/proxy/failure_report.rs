//! What an operator is told of an exchange that failed by our doing or a server's: one line.
//!
//! The line is put together only here, after such an exchange has ended; an exchange that ends well
//! pays nothing for it.

use super::core::{Core, Scratch};
use super::plan::Plan;
use super::refusal::Caller;
use super::settle::Settle;
use crate::error::{Level, Side};
use crate::telemetry::failed::FailedExchange;

/// Tells of an exchange that ended with a fault, if that is an operator's business.
#[cold]
pub fn report_failure(
    core: &Core,
    plan: &Plan,
    caller: &Caller,
    scratch: &Scratch,
    settle: &Settle,
) {
    let (Some(tell), Some(fault)) = (core.shared.tell.get(), settle.outcome.fault) else { return };
    let row = fault.row();
    // A fault of the client's own is in its answer, and none of the operator's business.
    if row.side == Side::Client || row.level < Level::Warn {
        return;
    }
    let key = settle.key.and_then(|key| plan.limits.get(key.0 as usize));
    tell(&FailedExchange {
        level: row.level,
        request_id: caller.id.as_str(),
        status: settle.outcome.status,
        key: key.map_or("", |key| &key.name),
        model: &scratch.model,
        upstream: settle.blamed.as_deref().unwrap_or_default(),
        reason: row.log,
    });
}
