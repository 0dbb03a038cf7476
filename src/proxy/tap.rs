//! Reading usage and the first token from a response in passing.
//!
//! The content type tells how to read the bytes; bytes under a content coding, and types that carry
//! no usage, are not read. For a key that pays by the token all of the body is read, whatever its
//! type; where it cannot be read its bytes are counted.

use crate::base::free_list::FreeList;
use crate::http::head::ResponseHead;
use crate::http::name::Name;
use crate::llm::meter::Meter;
use crate::llm::usage::{BodyKind, Usage, UsageTap, usage_of};
use crate::policy::limit::passed::Answer;

/// Free taps, and free meters, kept per core.
const KEPT_MAX: usize = 64;

/// The free taps and meters of one core, which keep their memory; boxed, since one is moved three
/// times in an exchange.
#[derive(Default)]
pub struct Taps {
    taps: FreeList<Box<UsageTap>, KEPT_MAX>,
    meters: FreeList<Box<Meter>, KEPT_MAX>,
}

impl Taps {
    fn take(&self, kind: BodyKind) -> Box<UsageTap> {
        match self.taps.take() {
            Some(mut tap) => {
                tap.reset(kind);
                tap
            }
            None => Box::new(UsageTap::new(kind)),
        }
    }

    fn take_meter(&self, content_type: &[u8]) -> Box<Meter> {
        let mut meter = self.meters.take().unwrap_or_default();
        meter.reset(content_type);
        meter
    }
}

/// What reads a response on its way.
pub struct Tap {
    looks: Looks,
    sse: bool,
    /// Data bytes of the body so far.
    bytes: u64,
}

enum Looks {
    /// At nothing.
    Never,
    /// At what passes.
    InPassing(Box<UsageTap>),
    /// At the end, at a document that is here whole: nothing of it is kept meanwhile.
    AtTheEnd,
    /// At every byte, for a key that pays by the token.
    AtAll(Box<Meter>),
    /// For such a key: at nothing, since the body is under a coding; its bytes are counted.
    Coded,
    /// For such a key: at nothing, since the body is audio, image or video; its bytes are counted.
    Media,
}

impl Tap {
    /// Chooses by the response head.
    ///
    /// Shape: `whole` when the body is here already, in one piece; `is_metered` when the key pays
    /// by the token.
    #[must_use]
    pub fn of(
        taps: &Taps,
        head: &ResponseHead,
        bytes: &[u8],
        whole: bool,
        is_metered: bool,
    ) -> Self {
        let kind = head.value(Name::ContentType, bytes).unwrap_or_default();
        let starts = |name: &[u8]| {
            kind.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
        };
        let sse = starts(b"text/event-stream");
        let coded = head.fields.has(Name::ContentEncoding) && is_coded(head, bytes);
        let looks = if is_metered {
            Self::metered(taps, kind, coded)
        } else if coded {
            Looks::Never
        } else if sse {
            Looks::InPassing(taps.take(BodyKind::Sse))
        } else if starts(b"application/json") || starts(b"text/json") {
            match whole {
                true => Looks::AtTheEnd,
                false => Looks::InPassing(taps.take(BodyKind::Json)),
            }
        } else if starts(b"application/x-ndjson") || starts(b"application/jsonl") {
            Looks::InPassing(taps.take(BodyKind::NdJson))
        } else {
            Looks::Never
        };
        Self { looks, sse, bytes: 0 }
    }

    fn metered(taps: &Taps, kind: &[u8], coded: bool) -> Looks {
        let is_media = [&b"audio/"[..], b"image/", b"video/"]
            .iter()
            .any(|name| kind.get(..name.len()).is_some_and(|s| s.eq_ignore_ascii_case(name)));
        match (coded, is_media) {
            (_, true) => Looks::Media,
            (true, false) => Looks::Coded,
            (false, false) => Looks::AtAll(taps.take_meter(kind)),
        }
    }

    /// Whether the response is a stream of server-sent events.
    #[must_use]
    pub fn is_sse(&self) -> bool {
        self.sse
    }

    /// Looks at body bytes.
    pub fn push(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        match &mut self.looks {
            Looks::InPassing(usage) => usage.push(data),
            Looks::AtAll(meter) => meter.push(data),
            Looks::Never | Looks::AtTheEnd | Looks::Coded | Looks::Media => {}
        }
    }

    /// Counts bytes that the kernel moved past the tap.
    pub fn skip(&mut self, bytes: u64) {
        self.bytes += bytes;
        if let Looks::InPassing(usage) = &mut self.looks {
            usage.skip();
        }
    }

    /// Data bytes of the body so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes at the end of a body of known length must be seen; `None` = all of them.
    #[must_use]
    pub fn tail_bytes(&self) -> Option<usize> {
        match &self.looks {
            Looks::InPassing(usage) => usage.needs_tail_only(),
            Looks::AtAll(meter) => meter.is_blind().then_some(0),
            Looks::Never | Looks::AtTheEnd | Looks::Coded | Looks::Media => Some(0),
        }
    }

    /// Whether a token has been seen.
    #[must_use]
    pub fn first_token_seen(&self) -> bool {
        match &self.looks {
            Looks::InPassing(usage) => usage.first_token_seen(),
            Looks::AtAll(meter) => meter.first_token_seen(),
            Looks::Never | Looks::AtTheEnd | Looks::Coded | Looks::Media => false,
        }
    }

    /// What was read, at the end, and what passed for a key that pays by the token; the memory
    /// goes back. `body` is the one that was here whole.
    #[must_use]
    pub fn finish(self, taps: &Taps, body: &[u8]) -> (Usage, Answer) {
        let bytes = self.bytes;
        match self.looks {
            Looks::Never => (Usage::default(), Answer::None),
            Looks::AtTheEnd => (usage_of(body), Answer::None),
            Looks::InPassing(mut tap) => {
                let usage = tap.finish();
                taps.taps.give_back(tap);
                (usage, Answer::None)
            }
            Looks::AtAll(mut meter) => {
                let reading = meter.finish();
                taps.meters.give_back(meter);
                (reading.usage, Answer::Read { reading, bytes })
            }
            Looks::Coded => (Usage::default(), Answer::Coded(bytes)),
            Looks::Media => (Usage::default(), Answer::Media(bytes)),
        }
    }
}

/// Whether a body is under a coding; `identity`, and an empty list, is none.
#[cold]
fn is_coded(head: &ResponseHead, bytes: &[u8]) -> bool {
    let mut codings =
        head.values(Name::ContentEncoding, bytes).flat_map(|list| list.split(|&byte| byte == b','));
    codings.any(|coding| {
        let coding = coding.trim_ascii();
        !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity")
    })
}
