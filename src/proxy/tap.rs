//! Reading usage and the first token from a response in passing.
//!
//! Which dialect the bytes speak is told by the content type; bytes under a content coding, and
//! types that carry no usage, are not looked at.

use crate::http::head::ResponseHead;
use crate::http::name::Name;
use crate::llm::usage::UsageTap;

/// What looks at a response on its way.
pub struct Tap {
    usage: Option<UsageTap>,
    sse: bool,
}

impl Tap {
    /// Chooses by the response head.
    #[must_use]
    pub fn of(head: &ResponseHead, bytes: &[u8]) -> Self {
        let kind = head.value(Name::ContentType, bytes).unwrap_or_default();
        let starts = |name: &[u8]| {
            kind.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let sse = starts(b"text/event-stream");
        let coded = head.value(Name::ContentEncoding, bytes).is_some();
        let usage = if coded {
            None
        } else if sse {
            Some(UsageTap::sse())
        } else if starts(b"application/json") {
            Some(UsageTap::json())
        } else if starts(b"application/x-ndjson") {
            Some(UsageTap::ndjson())
        } else {
            None
        };
        Self { usage, sse }
    }

    /// Whether the response is a stream of server-sent events.
    #[must_use]
    pub fn is_sse(&self) -> bool {
        self.sse
    }

    /// Looks at body bytes.
    pub fn push(&mut self, data: &[u8]) {
        if let Some(usage) = &mut self.usage {
            usage.push(data);
        }
    }

    /// How many bytes at the end of a body of known length must be seen; `None` = all of them.
    #[must_use]
    pub fn tail_bytes(&self) -> Option<usize> {
        match &self.usage {
            None => Some(0),
            Some(usage) => usage.needs_tail_only(),
        }
    }

    /// Whether a token has been seen.
    #[must_use]
    pub fn first_token_seen(&self) -> bool {
        self.usage.as_ref().is_some_and(UsageTap::first_token_seen)
    }

    /// What was read, at the end.
    #[must_use]
    pub fn finish(&mut self) -> crate::llm::usage::Usage {
        self.usage.as_mut().map(UsageTap::finish).unwrap_or_default()
    }
}
