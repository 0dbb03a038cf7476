//! What happens to an answer's data between upstream and client, chosen once per attempt: by whose
//! answer it is and who is asking.
//!
//! ```text
//! Pass      nobody needs the bytes: they go on untouched, and the kernel may move them
//! Observe   they go on untouched, and a tap reads them: the kernel may move what it need not see
//! ```
//!
//! Both leave the bytes alone, so the answer keeps its framing and its length. A filter that writes
//! other bytes than it reads is one more form; each `match` here, and the choice of the delivery
//! (`respond`), then asks what becomes of it.
//!
//! Within `Observe` the content type tells how to read; bytes under a content coding, and types that
//! carry no usage, are not read. For a key that pays by the token all of the body is read, whatever
//! its type; where it cannot be read its bytes are counted.

use super::tap::{Tap, Taps};
use crate::http::head::ResponseHead;
use crate::http::name::Name;
use crate::llm::usage::{BodyKind, Usage};
use crate::policy::limit::passed::Answer;

/// The filter of one answer, and how much has gone through it.
pub struct BodyFilter {
    form: Form,
    sse: bool,
    /// Data bytes of the body so far.
    bytes: u64,
}

/// What is done to the bytes.
pub enum Form {
    /// They pass unseen.
    Pass(Unseen),
    /// They pass, and are read.
    Observe(Tap),
}

/// Why nobody reads a body.
#[derive(Clone, Copy)]
pub enum Unseen {
    /// It tells nothing that is wanted.
    Free,
    /// The key pays by the token, but the body is under a coding: its bytes are counted.
    Coded,
    /// The key pays by the token, but the body is audio, image or video: its bytes are counted.
    Media,
}

impl BodyFilter {
    /// Chooses by the head of the answer and by whether the caller's key pays by the token.
    ///
    /// Shape: `whole` when the body is here already, in one piece; `bytes` begins with the head.
    #[must_use]
    pub fn choose(
        taps: &Taps,
        head: &ResponseHead,
        bytes: &[u8],
        whole: bool,
        is_metered: bool,
    ) -> Self {
        let kind = head.value(Name::ContentType, bytes).unwrap_or_default();
        let sse = starts(kind, b"text/event-stream");
        let coded = head.fields.has(Name::ContentEncoding) && is_coded(head, bytes);
        let form = if is_metered {
            Form::metered(taps, kind, coded)
        } else if coded {
            Form::Pass(Unseen::Free)
        } else if sse {
            Form::Observe(Tap::in_passing(taps, BodyKind::Sse))
        } else if starts(kind, b"application/json") || starts(kind, b"text/json") {
            Form::Observe(match whole {
                true => Tap::AtTheEnd,
                false => Tap::in_passing(taps, BodyKind::Json),
            })
        } else if starts(kind, b"application/x-ndjson") || starts(kind, b"application/jsonl") {
            Form::Observe(Tap::in_passing(taps, BodyKind::NdJson))
        } else {
            Form::Pass(Unseen::Free)
        };
        Self { form, sse, bytes: 0 }
    }

    /// What is done to the bytes.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Whether the answer is a stream of server-sent events.
    #[must_use]
    pub fn is_sse(&self) -> bool {
        self.sse
    }

    /// Takes data bytes that are on their way.
    pub fn push(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        match &mut self.form {
            Form::Pass(_) => {}
            Form::Observe(tap) => tap.push(data),
        }
    }

    /// Counts bytes that the kernel has moved.
    pub fn skip(&mut self, bytes: u64) {
        self.bytes += bytes;
        match &mut self.form {
            Form::Pass(_) => {}
            Form::Observe(tap) => tap.skip(),
        }
    }

    /// Data bytes of the body so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How many bytes at the end of a body of known length must come through here, so that the
    /// kernel may move those before them; `None` = all of them.
    #[must_use]
    pub fn tail_bytes(&self) -> Option<usize> {
        match &self.form {
            Form::Pass(_) => Some(0),
            Form::Observe(tap) => tap.tail_bytes(),
        }
    }

    /// Whether a token has been seen.
    #[must_use]
    pub fn first_token_seen(&self) -> bool {
        match &self.form {
            Form::Pass(_) => false,
            Form::Observe(tap) => tap.first_token_seen(),
        }
    }

    /// What was read, at the end, and what passed for a key that pays by the token; the memory
    /// goes back. `body` is the one that was here whole.
    #[must_use]
    pub fn finish(self, taps: &Taps, body: &[u8]) -> (Usage, Answer) {
        match self.form {
            Form::Pass(Unseen::Free) => (Usage::default(), Answer::None),
            Form::Pass(Unseen::Coded) => (Usage::default(), Answer::Coded(self.bytes)),
            Form::Pass(Unseen::Media) => (Usage::default(), Answer::Media(self.bytes)),
            Form::Observe(tap) => tap.finish(taps, body, self.bytes),
        }
    }
}

impl Form {
    fn metered(taps: &Taps, kind: &[u8], coded: bool) -> Self {
        let media = [&b"audio/"[..], b"image/", b"video/"];
        match (coded, media.iter().any(|name| starts(kind, name))) {
            (_, true) => Form::Pass(Unseen::Media),
            (true, false) => Form::Pass(Unseen::Coded),
            (false, false) => Form::Observe(Tap::metered(taps, kind)),
        }
    }
}

/// Whether a content type begins with this one.
#[inline]
fn starts(kind: &[u8], name: &[u8]) -> bool {
    kind.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http1::parse::{HeadLimits, Parse, parse_response};

    fn chosen(fields: &str, whole: bool, is_metered: bool) -> &'static str {
        let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n");
        let limits = HeadLimits { head_bytes_max: 1000, fields_max: 9, target_bytes_max: 0 };
        let mut head = ResponseHead::new();
        assert_eq!(parse_response(bytes.as_bytes(), &mut 0, &limits, &mut head), Ok(Parse::Done));
        let taps = Taps::default();
        match BodyFilter::choose(&taps, &head, bytes.as_bytes(), whole, is_metered).form() {
            Form::Pass(Unseen::Free) => "pass",
            Form::Pass(Unseen::Coded) => "pass coded",
            Form::Pass(Unseen::Media) => "pass media",
            Form::Observe(Tap::InPassing(_)) => "observe",
            Form::Observe(Tap::AtTheEnd) => "observe the end",
            Form::Observe(Tap::Metered(_)) => "observe all",
        }
    }

    #[test]
    fn the_answer_and_the_callers_key_choose_the_filter() {
        for (fields, free, metered) in [
            ("Content-Type: text/event-stream", "observe", "observe all"),
            ("Content-Type: application/json; charset=utf-8", "observe", "observe all"),
            ("Content-Type: Application/JSONL", "observe", "observe all"),
            ("Content-Type: text/html", "pass", "observe all"),
            ("Content-Type: audio/mpeg", "pass", "pass media"),
            ("Content-Type: application/json\r\nContent-Encoding: br", "pass", "pass coded"),
            ("Content-Type: text/json\r\nContent-Encoding: identity", "observe", "observe all"),
            ("Server: x", "pass", "observe all"),
        ] {
            assert_eq!(chosen(fields, false, false), free, "{fields}");
            assert_eq!(chosen(fields, false, true), metered, "{fields}");
        }
        assert_eq!(chosen("Content-Type: application/json", true, false), "observe the end");
    }
}
