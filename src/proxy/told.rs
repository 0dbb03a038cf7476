//! What an operator is told of an exchange that failed by our doing or a server's: one line.
//!
//! Only here, behind the end of such an exchange, is a line put together; an exchange that ends
//! well knows nothing of it.

use super::core::{Core, Scratch};
use super::plan::Plan;
use super::reply::Caller;
use super::settle::Settle;
use crate::error::{Level, Side};

/// An exchange that failed.
#[derive(Clone, Copy, Debug)]
pub struct FailedExchange<'f> {
    /// How grave it is.
    pub level: Level,
    /// The exchange's id.
    pub request_id: &'f str,
    /// The status that the client saw; 0 when no response head left.
    pub status: u16,
    /// The name of the key; empty when there was none.
    pub key: &'f str,
    /// The model that was asked for; empty when it was not found out.
    pub model: &'f str,
    /// The upstream of the last attempt; empty when there was none.
    pub upstream: &'f str,
    /// What went wrong.
    pub reason: &'f str,
}

/// Tells an operator.
pub type Tell = Box<dyn Fn(&FailedExchange<'_>) + Send + Sync>;

/// Tells of an exchange that ended with a fault, if that is an operator's business.
#[cold]
pub fn tell_failure(core: &Core, plan: &Plan, caller: &Caller, scratch: &Scratch, settle: &Settle) {
    let (Some(tell), Some(fault)) = (core.shared.tell.get(), settle.outcome.fault) else { return };
    let row = fault.row();
    // What a client has done itself is in its answer.
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
