//! What an operator is told of an exchange that failed by our doing or a server's: one line.
//!
//! An exchange that ends well pays nothing for it.

use super::core::Core;
use crate::error::{Level, Side};
use crate::telemetry::failed::FailedExchange;
use crate::telemetry::finished::Finished;

/// Tells of an exchange that ended with a fault, if that is an operator's business.
#[cold]
pub fn report_failure(core: &Core, finished: &Finished<'_>) {
    let outcome = finished.outcome;
    let Some(fault) = outcome.fault else { return };
    let row = fault.row();
    // A fault of the client's own is in its answer, and none of the operator's business.
    if row.side == Side::Client || row.level < Level::Warn {
        return;
    }
    core.shared.failures.keep(finished, row.log);
    let Some(tell) = core.shared.tell.get() else { return };
    tell(&FailedExchange {
        level: row.level,
        request_id: finished.request_id,
        status: outcome.status,
        key: finished.key,
        model: &String::from_utf8_lossy(finished.model),
        upstream: finished.upstream,
        reason: row.log,
    });
}
