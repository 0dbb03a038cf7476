//! Who asks, why a request is not served, and what becomes of the connection then. Pure; `reply`
//! writes it.

use std::sync::Arc;

use crate::base::ids::RequestId;
use crate::error::Kind;
use crate::http::head::Version;
use crate::llm::reply::Dialect;
use crate::policy::cors;
use crate::policy::limit::key::Over;
use crate::policy::limit::standing::Standing;

/// Who is asking: what every answer needs to know of the request.
pub struct Caller {
    /// The request's id, the client's own or a new one.
    pub id: RequestId,
    /// The shape of error bodies.
    pub dialect: Dialect,
    /// The client's HTTP version.
    pub version: Version,
    /// Whether the client wants its connection kept.
    pub persists: bool,
    /// HEAD: no body in the answer.
    pub head_only: bool,
    /// What the key has left, once it has been charged.
    pub standing: Standing,
    /// What a page of another origin is told.
    pub cors: CorsLines,
}

/// What every answer says to a page of another origin.
#[derive(Clone, Debug, Default)]
pub enum CorsLines {
    /// No lines of ours: the upstream's pass.
    #[default]
    Untouched,
    /// Neither our lines nor the upstream's: the origin is not on the listener's list.
    Denied,
    /// These lines, and none of the upstream's.
    Allowed(Arc<[u8]>),
}

impl CorsLines {
    /// Whether an upstream's field of this name is dropped, since CORS is answered by us.
    #[must_use]
    pub fn owns(&self, name: &[u8]) -> bool {
        !matches!(self, CorsLines::Untouched) && cors::owns(name)
    }

    /// Appends the lines, if there are any.
    pub fn write(&self, out: &mut Vec<u8>) {
        if let CorsLines::Allowed(lines) = self {
            out.extend_from_slice(lines);
        }
    }
}

/// Why a request is not served, in the caller's words.
#[derive(Debug)]
pub struct Refusal {
    /// The fault; its row in the table of `error` has status, code and default message.
    pub kind: Kind,
    /// A more exact message than the table's.
    pub message: Option<String>,
    /// What the caller might do about it.
    pub hint: Option<String>,
    /// Seconds for `Retry-After`, if the table wants one.
    pub retry_after: u32,
}

// `#[cold]`: error paths stay out of the hot code.
impl From<Kind> for Refusal {
    #[cold]
    fn from(kind: Kind) -> Self {
        Self { kind, message: None, hint: None, retry_after: 1 }
    }
}

impl From<Over> for Refusal {
    #[cold]
    fn from(over: Over) -> Self {
        Self { retry_after: over.retry_after_s, ..over.kind.into() }
    }
}

impl Refusal {
    /// A refusal with an exact message.
    #[must_use]
    #[cold]
    pub fn because(kind: Kind, message: impl Into<String>) -> Self {
        Self { message: Some(message.into()), ..kind.into() }
    }

    /// Adds what the caller might do about it.
    #[must_use]
    #[cold]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

/// What becomes of a client connection after an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The next request may follow.
    KeepAlive,
    /// Close.
    Close,
    /// Close, but read on for a while: the client is still sending, and a reset would destroy
    /// the answer on its way (RFC 9112 §9.6).
    Linger,
}

/// The refusal of a body over the limit.
#[must_use]
#[cold]
pub fn too_large(bytes: u64, limit: u64) -> Refusal {
    let message = format!("Request body too large: {bytes} bytes, limit {limit}.");
    Refusal::because(Kind::BodyTooLarge, message)
}
