//! Reading usage and the first token from a response in passing.
//!
//! Which dialect the bytes speak is told by the content type; bytes under a content coding, and
//! types that carry no usage, are not looked at.

use std::cell::RefCell;

use crate::http::head::ResponseHead;
use crate::http::name::Name;
use crate::llm::usage::{BodyKind, Usage, UsageTap, usage_of};

/// Free taps kept per core.
const KEPT_MAX: usize = 64;

/// The free taps of one core: they keep their memory, so that in steady state none is allocated.
#[derive(Default)]
pub struct Taps {
    #[expect(clippy::vec_box, reason = "a tap is moved three times in an exchange")]
    free: RefCell<Vec<Box<UsageTap>>>,
}

impl Taps {
    fn take(&self, kind: BodyKind) -> Box<UsageTap> {
        match self.free.borrow_mut().pop() {
            Some(mut tap) => {
                tap.reset(kind);
                tap
            }
            None => Box::new(UsageTap::new(kind)),
        }
    }

    fn give_back(&self, tap: Box<UsageTap>) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT_MAX {
            free.push(tap);
        }
    }
}

/// What looks at a response on its way.
pub struct Tap {
    looks: Looks,
    sse: bool,
}

enum Looks {
    /// At nothing.
    Never,
    /// At what passes.
    InPassing(Box<UsageTap>),
    /// At the end, at a document that is here whole: nothing of it is kept meanwhile.
    AtTheEnd,
}

impl Tap {
    /// Chooses by the response head; `whole` when the body is here already, in one piece.
    #[must_use]
    pub fn of(taps: &Taps, head: &ResponseHead, bytes: &[u8], whole: bool) -> Self {
        let kind = head.value(Name::ContentType, bytes).unwrap_or_default();
        let starts = |name: &[u8]| {
            kind.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let sse = starts(b"text/event-stream");
        let coded = head.fields.has(Name::ContentEncoding);
        let usage = if coded {
            None
        } else if sse {
            Some(BodyKind::Sse)
        } else if starts(b"application/json") {
            Some(BodyKind::Json)
        } else if starts(b"application/x-ndjson") {
            Some(BodyKind::NdJson)
        } else {
            None
        };
        let looks = match usage {
            None => Looks::Never,
            Some(BodyKind::Json) if whole => Looks::AtTheEnd,
            Some(kind) => Looks::InPassing(taps.take(kind)),
        };
        Self { looks, sse }
    }

    /// Whether the response is a stream of server-sent events.
    #[must_use]
    pub fn is_sse(&self) -> bool {
        self.sse
    }

    /// Looks at body bytes.
    pub fn push(&mut self, data: &[u8]) {
        if let Looks::InPassing(usage) = &mut self.looks {
            usage.push(data);
        }
    }

    /// Says that bytes went by unseen.
    pub fn skip(&mut self) {
        if let Looks::InPassing(usage) = &mut self.looks {
            usage.skip();
        }
    }

    /// How many bytes at the end of a body of known length must be seen; `None` = all of them.
    #[must_use]
    pub fn tail_bytes(&self) -> Option<usize> {
        match &self.looks {
            Looks::InPassing(usage) => usage.needs_tail_only(),
            Looks::Never | Looks::AtTheEnd => Some(0),
        }
    }

    /// Whether a token has been seen.
    #[must_use]
    pub fn first_token_seen(&self) -> bool {
        matches!(&self.looks, Looks::InPassing(usage) if usage.first_token_seen())
    }

    /// What was read, at the end; the memory goes back. `body` is the one that was here whole.
    #[must_use]
    pub fn finish(self, taps: &Taps, body: &[u8]) -> Usage {
        match self.looks {
            Looks::Never => Usage::default(),
            Looks::AtTheEnd => usage_of(body),
            Looks::InPassing(mut tap) => {
                let usage = tap.finish();
                taps.give_back(tap);
                usage
            }
        }
    }
}
