//! Why a change of the config, or a request to the operator's interface, is refused.

use crate::config::Report;

/// A refusal: what HTTP says it with, and a text for the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// One word for programs, such as `not_found`.
    pub kind: &'static str,
    /// What is wrong and what to do.
    pub message: String,
}

/// Most faults of a config that one refusal tells.
const FAULTS_MAX: usize = 5;

impl Refusal {
    fn new(status: u16, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into() }
    }

    /// What was asked makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "bad_request", message)
    }

    /// There is no such thing.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(404, "not_found", message)
    }

    /// It is there already, or in use.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "conflict", message)
    }

    /// Somebody else was faster.
    pub fn precondition_failed(message: impl Into<String>) -> Self {
        Self::new(412, "precondition_failed", message)
    }

    /// A body of a kind that is not read here.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "unsupported_media_type", message)
    }

    /// Not by who is asking.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "forbidden", message)
    }

    /// A body that is longer than any that is needed here.
    pub fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, "payload_too_large", message)
    }

    /// A body that did not come in time.
    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(408, "timeout", message)
    }

    /// Something on this machine failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "internal_error", message)
    }

    /// Not by this process, or not now.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(503, "unavailable", message)
    }

    /// A config that was refused: its faults, without the lines that a file would show.
    pub fn of_report(report: &Report) -> Self {
        let shown = report.errors.iter().take(FAULTS_MAX).map(|fault| {
            let sep = if fault.path.is_empty() { "" } else { ": " };
            format!("{}{sep}{}", fault.path, fault.message)
        });
        let mut text = shown.collect::<Vec<_>>().join("; ");
        if let Some(more) = report.errors.len().checked_sub(FAULTS_MAX).filter(|more| *more > 0) {
            text.push_str(&format!("; and {more} more"));
        }
        Self::bad_request(text)
    }
}
