//! How many bytes of a request one token of its prompt takes, learned by model.
//!
//! The one idea: every answer that says its prompt's tokens teaches what its request's bytes were
//! worth, so that one which says nothing can be charged fairly. A model has one word of a table
//! that all cores write to without a lock: a mean, weighted by tokens, of the last few thousand
//! of them. Two models that meet in one place take it from each other, and what is not known is
//! `DEFAULT`; neither is worse than a rough charge.
//!
//! Keys and names are not kept; what a server says is bounded before it is believed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Bytes of a token of a model that nobody has learned of: English text.
pub const DEFAULT: f32 = 4.0;
/// The least that is believed: some tokenizers make several tokens of one character.
const LEAST: f32 = 0.25;
/// The most: prompts with images have far more bytes to a token than text has.
const MOST: f32 = 64.0;
/// Models that are remembered, at most.
const PLACES: usize = 1024;
/// So many tokens of text the default stands for, before anything is learned.
const PRIOR_TOKENS: u64 = 64;
/// What was learned before is worth no more than so many tokens.
const MEMORY_TOKENS: u64 = 8192;

/// The table.
#[derive(Debug)]
pub struct TokenSizes {
    places: Box<[AtomicU64]>,
}

/// `tag ‖ tokens ‖ bytes per token`: whose it is, how much it rests on, and the mean.
#[derive(Clone, Copy)]
struct Learned {
    tag: u16,
    tokens: u16,
    size: f32,
}

impl Learned {
    fn of(word: u64) -> Self {
        Self {
            tag: (word >> 48) as u16,
            tokens: (word >> 32) as u16,
            size: f32::from_bits(word as u32),
        }
    }

    fn word(self) -> u64 {
        u64::from(self.tag) << 48 | u64::from(self.tokens) << 32 | u64::from(self.size.to_bits())
    }
}

impl Default for TokenSizes {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| AtomicU64::new(0)).collect() }
    }
}

impl TokenSizes {
    /// Bytes per token of a model.
    ///
    /// Shape: `model` is a hash of its name.
    #[must_use]
    pub fn of(&self, model: u64) -> f32 {
        self.learned(model).map_or(DEFAULT, |learned| learned.size)
    }

    /// Takes note of a prompt whose tokens are known.
    pub fn learn(&self, model: u64, bytes: u64, tokens: u64) {
        if bytes == 0 || tokens == 0 {
            return;
        }
        let before = self.learned(model);
        let (known, size) =
            before.map_or((PRIOR_TOKENS, DEFAULT), |before| (before.tokens.into(), before.size));
        let seen = (bytes as f32 / tokens as f32).clamp(LEAST, MOST);
        let weight = tokens as f32 / known.saturating_add(tokens) as f32;
        let tokens = known.saturating_add(tokens).min(MEMORY_TOKENS) as u16;
        let size = size + (seen - size) * weight;
        if let Some(place) = self.place(model) {
            // Of two cores that learn at once one is not heard: there is a next time.
            place.store(Learned { tag: tag(model), tokens, size }.word(), Relaxed);
        }
    }

    fn place(&self, model: u64) -> Option<&AtomicU64> {
        self.places.get(model as usize % PLACES)
    }

    fn learned(&self, model: u64) -> Option<Learned> {
        let learned = Learned::of(self.place(model)?.load(Relaxed));
        (learned.tokens > 0 && learned.tag == tag(model)).then_some(learned)
    }
}

/// The bits of a hash that its place does not tell.
fn tag(model: u64) -> u16 {
    (model >> 48) as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OTHER: u64 = 7 << 48;

    #[test]
    fn a_model_nobody_knows_has_the_size_of_text() {
        let sizes = TokenSizes::default();
        assert_eq!(sizes.of(0), DEFAULT);
        sizes.learn(0, 0, 10);
        sizes.learn(0, 10, 0);
        assert_eq!(sizes.of(0), DEFAULT);
    }

    #[test]
    fn one_long_prompt_teaches_nearly_all_and_a_short_one_little() {
        let sizes = TokenSizes::default();
        sizes.learn(1, 20_000, 10_000);
        assert!((1.95..2.05).contains(&sizes.of(1)), "{}", sizes.of(1));
        sizes.learn(2, 120, 4);
        assert!((4.0..6.0).contains(&sizes.of(2)), "{}", sizes.of(2));
        for _ in 0..1000 {
            sizes.learn(2, 120, 4);
        }
        assert!((29.0..=30.0).contains(&sizes.of(2)), "{}", sizes.of(2));
        assert_eq!(sizes.of(3), DEFAULT);
    }

    #[test]
    fn two_models_in_one_place_do_not_mix() {
        let sizes = TokenSizes::default();
        sizes.learn(1, 10_000, 10_000);
        assert_eq!(sizes.of(OTHER | 1), DEFAULT);
        sizes.learn(OTHER | 1, 80_000, 10_000);
        assert!(sizes.of(OTHER | 1) > 7.0);
        assert_eq!(sizes.of(1), DEFAULT);
    }

    proptest! {
        #[test]
        fn stays_within_what_is_believed(seen in prop::collection::vec(any::<(u64, u64)>(), 1..40)) {
            let sizes = TokenSizes::default();
            for (bytes, tokens) in seen {
                sizes.learn(5, bytes, tokens);
                prop_assert!((LEAST..=MOST).contains(&sizes.of(5)));
            }
        }

        #[test]
        fn comes_to_the_mean(size in 1u64..20, tokens in 10u64..2_000) {
            let sizes = TokenSizes::default();
            for _ in 0..4_000 {
                sizes.learn(5, size * tokens, tokens);
            }
            prop_assert!((sizes.of(5) - size as f32).abs() < 0.3, "{}", sizes.of(5));
        }
    }
}
