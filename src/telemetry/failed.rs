//! What an operator is told of an exchange that failed.

use crate::error::Level;

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
