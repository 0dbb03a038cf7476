//! Reading usage and the first token from a response in passing: what a body filter observes with.

use crate::base::free_list::FreeList;
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

/// What reads the data of an answer.
pub enum Tap {
    /// What passes, for the usage.
    InPassing(Box<UsageTap>),
    /// At the end, a document that is here whole: nothing of it is kept meanwhile.
    AtTheEnd,
    /// Every byte, for a key that pays by the token.
    Metered(Box<Meter>),
}

impl Tap {
    /// Reads the usage in passing.
    #[must_use]
    pub fn in_passing(taps: &Taps, kind: BodyKind) -> Self {
        Tap::InPassing(taps.take(kind))
    }

    /// Reads every byte.
    #[must_use]
    pub fn metered(taps: &Taps, content_type: &[u8]) -> Self {
        Tap::Metered(taps.take_meter(content_type))
    }

    /// Reads body bytes.
    pub fn push(&mut self, data: &[u8]) {
        match self {
            Tap::InPassing(usage) => usage.push(data),
            Tap::Metered(meter) => meter.push(data),
            Tap::AtTheEnd => {}
        }
    }

    /// Notes that the kernel has moved bytes past the tap.
    pub fn skip(&mut self) {
        if let Tap::InPassing(usage) = self {
            usage.skip();
        }
    }

    /// How many bytes at the end of a body of known length must be seen; `None` = all of them.
    #[must_use]
    pub fn tail_bytes(&self) -> Option<usize> {
        match self {
            Tap::InPassing(usage) => usage.needs_tail_only(),
            Tap::Metered(meter) => meter.is_blind().then_some(0),
            Tap::AtTheEnd => Some(0),
        }
    }

    /// Whether a token has been seen.
    #[must_use]
    pub fn first_token_seen(&self) -> bool {
        match self {
            Tap::InPassing(usage) => usage.first_token_seen(),
            Tap::Metered(meter) => meter.first_token_seen(),
            Tap::AtTheEnd => false,
        }
    }

    /// What was read, at the end, and what passed for a key that pays by the token; the memory
    /// goes back. `body` is the one that was here whole, `bytes` counts its data.
    #[must_use]
    pub fn finish(self, taps: &Taps, body: &[u8], bytes: u64) -> (Usage, Answer) {
        match self {
            Tap::AtTheEnd => (usage_of(body), Answer::None),
            Tap::InPassing(mut tap) => {
                let usage = tap.finish();
                taps.taps.give_back(tap);
                (usage, Answer::None)
            }
            Tap::Metered(mut meter) => {
                let reading = meter.finish();
                taps.meters.give_back(meter);
                (reading.usage, Answer::Read { reading, bytes })
            }
        }
    }
}
