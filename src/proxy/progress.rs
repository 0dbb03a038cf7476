//! How far the two directions of an attempt are: what upload and download tell each other.

use std::cell::Cell;
use std::time::Duration;

/// What the two directions tell each other.
#[derive(Default)]
pub struct Progress {
    /// Every byte of the request has been received: the client may be watched.
    pub body_received: Cell<bool>,
    /// The upload waits for the upstream and does not read from the client, which may be watched
    /// meanwhile.
    pub upload_waits: Cell<bool>,
    /// The client is awaited for more of its body: meanwhile the upstream cannot be late.
    pub client_owes: Cell<bool>,
    /// Something of the body has been sent on and is not kept: it cannot be sent again.
    pub gone: Cell<bool>,
    /// There is no answer, and the request may be sent again: the upload ends and takes nothing
    /// more from the client.
    pub stop: Cell<bool>,
    /// A final response head has come.
    pub answer_begun: Cell<bool>,
    /// How long the upstream, which is awaited, may take for more of its answer; `None` = it is not
    /// awaited; zero = no limit.
    pub answer_within: Cell<Option<Duration>>,
    /// The client has its whole answer.
    pub answer_done: Cell<bool>,
}
