//! What an exchange costs its key, from what was said and from what passed.
//!
//! The one idea: a count that was said is believed, and whatever no count covers is charged by
//! its bytes and pieces. So no way of ending an exchange is free: not the client's leaving before
//! the count, not a server that never counts, not a coding that nobody here reads. Only what no
//! server has taken costs nothing.

use crate::llm::messages::Uncounted;
use crate::llm::meter::Reading;

/// Bytes of speech, pictures and vectors that are charged as one token: they are no text, and
/// their servers count otherwise.
const MEDIA_BYTES_PER_TOKEN: u64 = 512;
/// How many times larger text is than its coding: gzip makes a third to a fifth of it.
const CODED_TIMES: u64 = 4;
/// Bytes of a tunnel for one token, where nothing better is known: speech takes some 3,000, and
/// text with an event around each token 180 to 300.
const TUNNEL_BYTES_PER_TOKEN: u64 = 256;

/// What passed of one exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Passed {
    /// Whether a server took it: it was sent to one, and that did not turn it away.
    pub is_taken: bool,
    /// Whether it asked for something that is there already (GET and the like): then only what
    /// was said or streamed is charged, and no file by its size.
    pub is_retrieval: bool,
    /// A hash of the model's name.
    pub model: u64,
    /// How the request carries its prompt.
    pub prompt: Prompt,
    /// Data bytes of the request.
    pub request_bytes: u64,
    /// The answer.
    pub answer: Answer,
}

/// How a request carries its prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prompt {
    /// As text.
    #[default]
    Text,
    /// As text under a coding.
    Coded,
    /// As speech or pictures in a form.
    Media,
}

/// What passed of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Nothing: it never began.
    #[default]
    None,
    /// What a meter read.
    Read {
        /// See there.
        reading: Reading,
        /// Data bytes of the body.
        bytes: u64,
    },
    /// A body that is text, but under a coding: its data bytes.
    Coded(u64),
    /// A body that is no text: its data bytes.
    Media(u64),
    /// A tunnel: what no count covers, for the others are paid as they come.
    Tunnel(Uncounted),
}

impl Passed {
    /// The tokens that the key pays.
    ///
    /// Units: `token_size` is bytes per token of the model.
    #[must_use]
    pub fn tokens(&self, token_size: f32) -> u64 {
        if !self.is_taken {
            return 0;
        }
        let of_text = |bytes: u64| (bytes as f64 / f64::from(token_size)).ceil() as u64;
        let unread = |tokens: u64| if self.is_retrieval { 0 } else { tokens };
        let mut said = None;
        let answered = match self.answer {
            Answer::None => 0,
            Answer::Coded(bytes) => unread(of_text(bytes)),
            Answer::Media(bytes) => unread(bytes.div_ceil(MEDIA_BYTES_PER_TOKEN)),
            Answer::Tunnel(Uncounted { pieces, other_bytes, .. }) => {
                pieces.saturating_add(other_bytes.div_ceil(TUNNEL_BYTES_PER_TOKEN))
            }
            Answer::Read { reading, bytes } => {
                let usage = reading.usage;
                said = usage.prompt_tokens;
                let counted = usage.prompt_tokens.or(usage.completion_tokens).is_some();
                let unsaid = reading.pieces.saturating_add(of_text(reading.text_bytes));
                match unsaid {
                    // A document without text or counts: vectors, pictures.
                    0 if !counted && reading.is_readable => {
                        unread(bytes.div_ceil(MEDIA_BYTES_PER_TOKEN))
                    }
                    0 if !counted => unread(of_text(bytes)),
                    unsaid => usage.completion_tokens.unwrap_or(0).saturating_add(unsaid),
                }
            }
        };
        let asked = said.unwrap_or_else(|| match self.answer {
            Answer::Tunnel(left) => left.asked_bytes.div_ceil(TUNNEL_BYTES_PER_TOKEN),
            _ => match self.prompt {
                Prompt::Text => of_text(self.request_bytes),
                Prompt::Coded => of_text(self.request_bytes.saturating_mul(CODED_TIMES)),
                Prompt::Media => self.request_bytes.div_ceil(MEDIA_BYTES_PER_TOKEN),
            },
        });
        asked.saturating_add(answered).max(1)
    }

    /// Bytes and tokens of the prompt, if the server has said how many.
    #[must_use]
    pub fn lesson(&self) -> Option<(u64, u64)> {
        match (self.answer, self.prompt) {
            (Answer::Read { reading, .. }, Prompt::Text) => {
                Some((self.request_bytes, reading.usage.prompt_tokens?))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::usage::Usage;
    use proptest::prelude::*;

    fn tokens(request_bytes: u64, answer: Answer) -> u64 {
        Passed { is_taken: true, request_bytes, answer, ..Passed::default() }.tokens(4.0)
    }

    fn read(prompt: Option<u64>, completion: Option<u64>, pieces: u64, text_bytes: u64) -> Answer {
        let usage =
            Usage { prompt_tokens: prompt, completion_tokens: completion, cached_tokens: None };
        let reading = Reading { usage, pieces, text_bytes, is_readable: true };
        Answer::Read { reading, bytes: 5120 }
    }

    #[test]
    fn what_was_said_is_what_is_paid() {
        assert_eq!(tokens(4000, read(Some(9), Some(12), 0, 0)), 21);
        assert_eq!(tokens(4000, read(Some(9), None, 0, 0)), 9);
        assert_eq!(tokens(4000, read(Some(u64::MAX), Some(7), 0, 0)), u64::MAX);
    }

    #[test]
    fn what_no_count_covers_is_paid_by_what_passed() {
        // Left before the count, or no count at all: the prompt's bytes and the pieces.
        assert_eq!(tokens(4000, read(None, None, 30, 0)), 1030);
        assert_eq!(tokens(4000, read(None, None, 0, 80)), 1020);
        // After a running count, and after one of the prompt alone.
        assert_eq!(tokens(4000, read(Some(9), Some(12), 5, 40)), 36);
        assert_eq!(tokens(4000, read(Some(9), None, 5, 0)), 14);
        // Ollama says nothing of a prompt that it had in its cache.
        assert_eq!(tokens(4000, read(None, Some(12), 0, 0)), 1012);
        // Nobody can read it, or it is no text.
        assert_eq!(tokens(4000, Answer::Coded(400)), 1100);
        assert_eq!(tokens(4000, Answer::Media(51_200)), 1100);
        assert_eq!(tokens(4000, read(None, None, 0, 0)), 1010);
        let unreadable = Answer::Read { reading: Reading::default(), bytes: 400 };
        assert_eq!(tokens(4000, unreadable), 1100);
        assert_eq!(tokens(4000, Answer::None), 1000);
        let left = Uncounted { asked_bytes: 512, pieces: 7, other_bytes: 25_600 };
        assert_eq!(tokens(4000, Answer::Tunnel(left)), 109);
        let prompt =
            |prompt| Passed { is_taken: true, prompt, request_bytes: 51_200, ..Passed::default() };
        assert_eq!(prompt(Prompt::Coded).tokens(4.0), 51_200);
        assert_eq!(prompt(Prompt::Media).tokens(4.0), 100);
    }

    #[test]
    fn a_file_that_is_fetched_is_not_charged_by_its_size() {
        let fetched = |answer| {
            Passed { is_taken: true, is_retrieval: true, answer, ..Passed::default() }.tokens(4.0)
        };
        assert_eq!(fetched(Answer::Coded(4000)), 1);
        assert_eq!(fetched(Answer::Media(51_200)), 1);
        assert_eq!(fetched(read(None, None, 0, 0)), 1);
        // A stream that is taken up again, and an answer that was made meanwhile.
        assert_eq!(fetched(read(None, None, 30, 0)), 30);
        assert_eq!(fetched(read(Some(9), Some(12), 0, 0)), 21);
    }

    #[test]
    fn only_what_no_server_took_is_free() {
        assert_eq!(Passed { request_bytes: 4000, ..Passed::default() }.tokens(4.0), 0);
        assert_eq!(tokens(0, Answer::None), 1);
        assert_eq!(tokens(0, read(Some(0), Some(0), 0, 0)), 1);
    }

    proptest! {
        #[test]
        fn never_free_and_never_less_than_said(
            request in any::<u64>(), said in any::<(Option<u64>, Option<u64>)>(),
            pieces in any::<u64>(), text in any::<u64>(), size in 0.25f32..64.0,
        ) {
            let answer = read(said.0, said.1, pieces, text);
            let passed =
                Passed { is_taken: true, request_bytes: request, answer, ..Passed::default() };
            let paid = passed.tokens(size);
            prop_assert!(paid >= 1);
            prop_assert!(paid >= said.0.unwrap_or(0).saturating_add(said.1.unwrap_or(0)));
        }
    }
}
