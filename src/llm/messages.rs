//! What the messages of a WebSocket cost, on their way to the client. RFC 6455 §5.2.
//!
//! The one idea: an event of a model server (Realtime, Responses) is a message of text, as it is
//! an event of a stream elsewhere, so `counts` reads it. Each answer in a tunnel has a count of
//! its own, hence they are summed, and what the client has sent until then is covered by it.
//!
//! Only the server's direction is looked at: its frames are not masked. What cannot be read (a
//! message in binary, under an extension, masked against the rule, or that is no JSON) is
//! measured. It keeps no message and changes nothing; frames that lie about their length harm
//! only the count.

use super::counts::Counts;
use super::meter::Tally;
use super::usage::Usage;

/// The longest head of a frame: two bytes, eight of length, four of a mask.
const HEAD_BYTES_MAX: usize = 14;

/// What a tunnel has carried that no count covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// Bytes from the client since the last count.
    pub asked_bytes: u64,
    /// Messages with content, of a token or so each.
    pub pieces: u64,
    /// Bytes of text beside those, and of what cannot be read.
    pub other_bytes: u64,
}

/// Reads one direction of one tunnel.
#[derive(Clone, Debug, Default)]
pub struct Messages {
    head: [u8; HEAD_BYTES_MAX],
    /// Bytes of it that are here; 0 while a payload passes.
    head_len: usize,
    /// Bytes of the payload that have yet to come.
    left: u64,
    is_last: bool,
    /// Of the frame: whether it belongs to the message that is open, or comes in between.
    is_control: bool,
    is_text: bool,
    counts: Counts,
    tally: Tally,
    /// Text of the open message, and the documents before it: what holds none is not read.
    message_bytes: u64,
    documents_before: u64,
    /// Since the last count.
    unread_bytes: u64,
    /// Of the client's bytes.
    covered_bytes: u64,
    said: Usage,
    unpaid: u64,
}

impl Messages {
    /// Takes bytes in passing; the client has sent `asked_bytes` in all.
    pub fn push(&mut self, bytes: &[u8], asked_bytes: u64) {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if self.left == 0 {
                rest = after;
                if let Some(place) = self.head.get_mut(self.head_len) {
                    *place = byte;
                }
                self.head_len += 1;
                if let Some(length) = length_of(self.head.get(..self.head_len).unwrap_or_default())
                {
                    self.begin(length);
                    if self.left == 0 {
                        self.end_frame(asked_bytes);
                    }
                }
                continue;
            }
            let take = usize::try_from(self.left).map_or(rest.len(), |left| left.min(rest.len()));
            let (payload, more) = rest.split_at(take);
            rest = more;
            self.left -= take as u64;
            self.payload(payload);
            if self.left == 0 {
                self.end_frame(asked_bytes);
            }
        }
    }

    /// All that was said, summed.
    #[must_use]
    pub fn said(&self) -> Usage {
        self.said
    }

    /// Tokens that were said since this was asked the last time.
    #[must_use]
    pub fn take_unpaid(&mut self) -> u64 {
        std::mem::take(&mut self.unpaid)
    }

    /// What no count covers, should the tunnel be over now; `asked_bytes` as in `push`. Of a
    /// message that is not here whole the bytes count.
    #[must_use]
    pub fn uncounted(&self, asked_bytes: u64) -> Uncounted {
        let open = self.message_bytes.saturating_add(self.head_len as u64);
        let Tally { pieces, text_bytes, .. } = self.tally;
        Uncounted {
            asked_bytes: asked_bytes.saturating_sub(self.covered_bytes),
            pieces,
            other_bytes: text_bytes.saturating_add(self.unread_bytes).saturating_add(open),
        }
    }

    /// A head is here whole.
    fn begin(&mut self, length: u64) {
        let [first, second, ..] = self.head;
        let opcode = first & 0x0f;
        self.is_control = opcode >= 8;
        self.is_last = first & 0x80 != 0;
        if !self.is_control {
            // What continues a message is of its kind.
            self.is_text = match opcode {
                0 => self.is_text && first & 0x70 == 0,
                kind => kind == 1 && first & 0x70 == 0,
            } && second & 0x80 == 0;
        }
        if !self.is_text {
            self.unread_bytes = self.unread_bytes.saturating_add(self.head_len as u64);
        }
        self.head_len = 0;
        self.left = length;
    }

    fn payload(&mut self, bytes: &[u8]) {
        if self.is_control {
            return;
        }
        if !self.is_text {
            self.unread_bytes = self.unread_bytes.saturating_add(bytes.len() as u64);
            return;
        }
        self.message_bytes = self.message_bytes.saturating_add(bytes.len() as u64);
        let tally = &mut self.tally;
        self.counts.push(bytes, |document| tally.add(document));
    }

    fn end_frame(&mut self, asked_bytes: u64) {
        if self.is_last && !self.is_control {
            self.end_message(asked_bytes);
        }
    }

    fn end_message(&mut self, asked_bytes: u64) {
        self.tally.add_open(self.counts.end());
        if self.tally.documents == self.documents_before {
            self.unread_bytes = self.unread_bytes.saturating_add(self.message_bytes);
        }
        self.message_bytes = 0;
        self.documents_before = self.tally.documents;
        let Usage { prompt_tokens, completion_tokens, cached_tokens } =
            std::mem::take(&mut self.tally.usage);
        let sum = prompt_tokens.unwrap_or(0).saturating_add(completion_tokens.unwrap_or(0));
        if sum == 0 {
            return;
        }
        let add = |all: &mut Option<u64>, more: Option<u64>| {
            if let Some(more) = more {
                *all = Some(all.unwrap_or(0).saturating_add(more));
            }
        };
        add(&mut self.said.prompt_tokens, prompt_tokens);
        add(&mut self.said.completion_tokens, completion_tokens);
        add(&mut self.said.cached_tokens, cached_tokens);
        self.unpaid = self.unpaid.saturating_add(sum);
        self.covered_bytes = asked_bytes;
        self.unread_bytes = 0;
    }
}

/// The payload's length, once the head of a frame is here whole.
fn length_of(head: &[u8]) -> Option<u64> {
    let [_, second, rest @ ..] = head else { return None };
    let (length, used) = match second & 0x7f {
        126 => (u64::from(u16::from_be_bytes(*rest.first_chunk()?)), 2),
        127 => (u64::from_be_bytes(*rest.first_chunk()?), 8),
        length => (u64::from(length), 0),
    };
    let mask = if second & 0x80 != 0 { 4 } else { 0 };
    (rest.len() >= used + mask).then_some(length)
}

/// Reads `data` whole and in bytes; both must say the same.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let run = |size: usize| {
        let mut messages = Messages::default();
        for piece in data.chunks(size.max(1)) {
            messages.push(piece, 7);
            assert!(messages.head_len < HEAD_BYTES_MAX);
        }
        let unpaid = messages.take_unpaid();
        (messages.uncounted(9), messages.said(), unpaid)
    };
    let whole = run(data.len());
    assert_eq!(whole, run(1));
    assert_eq!(whole, run(5));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![first];
        match payload.len() {
            length @ 0..126 => out.push(length as u8),
            length @ 126..65_536 => {
                out.push(126);
                out.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                out.push(127);
                out.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        out.extend_from_slice(payload);
        out
    }

    const TEXT: u8 = 0x81;

    fn run(bytes: &[u8], size: usize, asked_bytes: u64) -> (Usage, u64, Uncounted) {
        let mut messages = Messages::default();
        bytes.chunks(size).for_each(|piece| messages.push(piece, asked_bytes));
        let unpaid = messages.take_unpaid();
        (messages.said(), unpaid, messages.uncounted(asked_bytes + 50))
    }

    fn read(frames: &[Vec<u8>]) -> (Usage, u64, Uncounted) {
        let bytes = frames.concat();
        let whole = run(&bytes, usize::MAX, 1000);
        assert_eq!(whole, run(&bytes, 1, 1000));
        whole
    }

    fn done(input: u64, output: u64) -> Vec<u8> {
        let far = "y".repeat(70_000);
        frame(
            TEXT,
            format!(
                r#"{{"type":"response.done","response":{{"usage":{{"input_tokens":{input},"output_tokens":{output}}},"z":"{far}"}}}}"#
            )
            .as_bytes(),
        )
    }

    fn delta() -> Vec<u8> {
        frame(TEXT, br#"{"type":"response.output_text.delta","delta":"word "}"#)
    }

    #[test]
    fn the_counts_of_all_answers_are_summed() {
        let (said, unpaid, left) =
            read(&[delta(), delta(), done(10, 2), delta(), frame(0x89, b"ping"), done(30, 4)]);
        assert_eq!((said.prompt_tokens, said.completion_tokens), (Some(40), Some(6)));
        assert_eq!(unpaid, 46);
        assert_eq!(left, Uncounted { asked_bytes: 50, ..Uncounted::default() });
    }

    #[test]
    fn what_no_count_covers_is_kept() {
        let (said, unpaid, left) = read(&[done(10, 2), delta(), delta(), delta()]);
        assert_eq!((said.prompt_tokens, unpaid, left.pieces), (Some(10), 12, 3));
        let (_, unpaid, left) = read(&[delta(), frame(TEXT, br#"{"type":"x","usage":null}"#)]);
        assert_eq!((unpaid, left.asked_bytes, left.pieces), (0, 1050, 1));
        // Cut in a message.
        let mut cut = delta();
        cut.truncate(cut.len() - 3);
        assert_eq!(read(&[cut]).2.other_bytes, 50);
    }

    #[test]
    fn a_message_in_several_frames_is_one() {
        let text = br#"{"response":{"usage":{"input_tokens":12,"output_tokens":3}}}"#;
        let (begin, end) = text.split_at(30);
        let frames = [frame(0x01, begin), frame(0x89, b"between"), frame(0x80, end)];
        assert_eq!(read(&frames).1, 15);
    }

    #[test]
    fn what_cannot_be_read_is_measured() {
        for first in [0x82, 0xc1, 0x83] {
            assert_eq!(read(&[frame(first, &[7; 300])]).2.other_bytes, 304, "{first:x}");
        }
        assert_eq!(read(&[frame(TEXT, &[b'x'; 300])]).2.other_bytes, 300);
        let masked = [vec![TEXT, 0x84, 1, 2, 3, 4], b"{\"a\"".to_vec()];
        assert_eq!(read(&masked).2.other_bytes, 10);
        assert_eq!(read(&[vec![7; 900]]).2.other_bytes, 900);
    }

    proptest! {
        #[test]
        fn no_input_panics(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }

        #[test]
        fn frames_at_any_split(
            texts in prop::collection::vec(("[a-z\"{}:]{0,20}", 0u64..50, any::<bool>()), 0..6), size in 1..40usize,
        ) {
            let mut bytes = Vec::new();
            let mut want = 0;
            for (text, tokens, is_said) in texts {
                let text = serde_json::Value::from(text);
                let usage = if is_said { format!(r#"{{"output_tokens":{tokens}}}"#) } else { "null".to_owned() };
                bytes.extend(frame(TEXT, format!(r#"{{"x":{text},"usage":{usage}}}"#).as_bytes()));
                want += if is_said { tokens } else { 0 };
            }
            prop_assert_eq!(run(&bytes, size, 0).1, want);
            fuzz(&bytes);
        }
    }
}
