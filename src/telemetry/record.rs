//! The record of one exchange in the making.
//!
//! Each fact has one method, called by the station that knows it; nothing else writes a record. So
//! both directions of an attempt may write, the methods take `&self`. What has been written is read
//! once, at the end, by `finish`: counters, log and API are computed from that.
//!
//! Pure: the time is an argument, and names are numbers until whoever owns the plan turns them into
//! text (`Finished`).

use std::cell::RefCell;
use std::net::IpAddr;
use std::ops::Range;
use std::time::Duration;

use super::outcome::{Outcome, RouteKind};
use super::trace::{TRACEPARENT_BYTES, Trace};
use crate::base::clock::{Moment, micros};
use crate::base::ids::RequestId;
use crate::error::Kind;
use crate::http::method::Method;
use crate::llm::usage::Usage;

/// Longest text of a client's choice that a record keeps (path, model), in bytes.
pub const CLIENT_TEXT_BYTES_MAX: usize = 256;
/// Longest method that a record keeps, in bytes.
const METHOD_BYTES_MAX: usize = 32;
/// Failed attempts that a record keeps; the count goes on.
const FAILURES_MAX: usize = 8;

/// The record of one exchange.
pub struct Record {
    facts: RefCell<Facts>,
}

/// What a record holds.
pub struct Facts {
    /// What happened, in numbers.
    pub outcome: Outcome,
    /// When the head had been read.
    pub begun: Moment,
    /// The exchange's id; `None` where the head was refused before it had one.
    pub id: Option<RequestId>,
    /// The listener's number.
    pub listener: u16,
    /// The client's address, as far as the proxies before us are trusted.
    pub client: Option<IpAddr>,
    /// The number of the key, once it has been let in.
    pub key: Option<u32>,
    /// The number of the group at work last.
    pub group: Option<u16>,
    /// The number of the last attempt's upstream.
    pub upstream: Option<u16>,
    /// The method, told apart; `Other` where no head could be read.
    pub method_kind: Method,
    /// The place of the model in the plan's table; `None` = it names none of them.
    pub model_known: Option<u32>,
    /// How many attempts failed before the client had an answer.
    pub failed_attempts: u32,
    /// The attempts that failed, `FAILURES_MAX` of them.
    pub failures: Vec<FailedAttempt>,
    /// Its spans, if it is sampled.
    pub trace: Option<Box<Trace>>,
    texts: Texts,
}

/// An attempt that failed before the client had an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedAttempt {
    /// The name of the upstream.
    pub upstream: Box<str>,
    /// Why it failed.
    pub kind: Kind,
    /// The status that was tried elsewhere; 0 = there was none.
    pub status: u16,
}

/// The texts of a record, one behind the other in a buffer that is used again.
#[derive(Default)]
struct Texts {
    bytes: Vec<u8>,
    method: Range<usize>,
    path: Range<usize>,
    model: Range<usize>,
    model_sent: Range<usize>,
}

impl Texts {
    fn keep(&mut self, text: &[u8], bytes_max: usize) -> Range<usize> {
        let begin = self.bytes.len();
        self.bytes.extend_from_slice(truncated(text, bytes_max));
        begin..self.bytes.len()
    }

    fn text(&self, range: &Range<usize>) -> &[u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }
}

impl Default for Record {
    /// The record of nothing, until `begin` makes it one of something.
    fn default() -> Self {
        Self::begin(Moment::ORIGIN, 0, None, Vec::new())
    }
}

impl Record {
    /// Begins a record; `buffer` is for its texts.
    #[must_use]
    pub fn begin(now: Moment, listener: u16, client: Option<IpAddr>, buffer: Vec<u8>) -> Self {
        let texts = Texts { bytes: buffer, ..Texts::default() };
        let facts = Facts {
            outcome: Outcome::default(),
            begun: now,
            id: None,
            listener,
            client,
            key: None,
            group: None,
            upstream: None,
            method_kind: Method::Other,
            model_known: None,
            failed_attempts: 0,
            failures: Vec::new(),
            trace: None,
            texts,
        };
        Self { facts: RefCell::new(facts) }
    }

    /// When the head had been read.
    #[must_use]
    pub fn begun(&self) -> Moment {
        self.facts.borrow().begun
    }

    /// The exchange has an id.
    pub fn named(&self, id: &RequestId) {
        self.facts.borrow_mut().id = Some(*id);
    }

    /// The head came in pieces, the first of them at `first`.
    #[cold]
    pub fn head_came_slowly(&self, first: Moment) {
        let facts = &mut *self.facts.borrow_mut();
        facts.outcome.head_us = micros(facts.begun.since(first));
    }

    /// A head has been read; `path` is without its query.
    pub fn head_read(&self, kind: Method, method: &[u8], path: &[u8]) {
        let facts = &mut *self.facts.borrow_mut();
        facts.method_kind = kind;
        let texts = &mut facts.texts;
        texts.method = texts.keep(method, METHOD_BYTES_MAX);
        texts.path = texts.keep(path, CLIENT_TEXT_BYTES_MAX);
    }

    /// The client has been let in, with this key and address.
    pub fn admitted(&self, key: Option<u32>, client: Option<IpAddr>) {
        let facts = &mut *self.facts.borrow_mut();
        (facts.key, facts.client) = (key, client);
    }

    /// The body was waited for, and enough of it is here.
    pub fn body_held(&self, now: Moment) {
        let facts = &mut *self.facts.borrow_mut();
        facts.outcome.held_us = Some(micros(now.since(facts.begun)));
    }

    /// The client has named this model.
    pub fn model_named(&self, model: &str) {
        let texts = &mut self.facts.borrow_mut().texts;
        texts.model = texts.keep(model.as_bytes(), CLIENT_TEXT_BYTES_MAX);
        texts.model_sent = texts.model.clone();
    }

    /// A route has been found, by the `model` at this place in the plan's table; `renamed` is what
    /// the server will read instead of the model's name.
    pub fn routed(&self, route: RouteKind, group: u16, model: Option<u32>, renamed: Option<&str>) {
        let facts = &mut *self.facts.borrow_mut();
        (facts.outcome.route, facts.group, facts.model_known) = (route, Some(group), model);
        if let Some(name) = renamed {
            facts.texts.model_sent = facts.texts.keep(name.as_bytes(), CLIENT_TEXT_BYTES_MAX);
        }
    }

    /// The exchange has waited so long for a slot.
    pub fn queued(&self, time: Duration) {
        // One that was too short to measure was a wait, too.
        self.facts.borrow_mut().outcome.queue_us += micros(time).max(1);
    }

    /// A member of a group has been picked.
    pub fn picked(&self, group: u16, upstream: u16, now: Moment) {
        let facts = &mut *self.facts.borrow_mut();
        (facts.group, facts.upstream) = (Some(group), Some(upstream));
        facts.outcome.picked_us = Some(micros(now.since(facts.begun)));
    }

    /// An attempt begins: what is known of an earlier one's connection and answer says nothing of
    /// it.
    pub fn attempt_began(&self) {
        let outcome = &mut self.facts.borrow_mut().outcome;
        outcome.attempts += 1;
        outcome.reused = false;
        outcome.upstream_status = 0;
        (outcome.connected_us, outcome.sent_us, outcome.first_byte_us) = (None, None, None);
    }

    /// The exchange is sampled.
    #[cold]
    pub fn traced(&self, trace: Box<Trace>) {
        self.facts.borrow_mut().trace = Some(trace);
    }

    /// Tells the spans of a sampled exchange something; does nothing for any other.
    #[inline]
    pub fn trace_told(&self, tell: impl FnOnce(&mut Trace)) {
        if let Some(trace) = &mut self.facts.borrow_mut().trace {
            tell(trace);
        }
    }

    /// The `traceparent` that the attempt's server is sent; `None` = the client's own.
    #[inline]
    #[must_use]
    pub fn traceparent(&self) -> Option<[u8; TRACEPARENT_BYTES]> {
        self.facts.borrow().trace.as_ref().map(|trace| trace.traceparent())
    }

    /// The attempt has a connection that has served before.
    pub fn connection_reused(&self) {
        self.facts.borrow_mut().outcome.reused = true;
    }

    /// The attempt has a new connection.
    pub fn connected(&self, now: Moment) {
        let facts = &mut *self.facts.borrow_mut();
        facts.outcome.connected_us = Some(micros(now.since(facts.begun)));
    }

    /// The upstream has been sent the whole request.
    pub fn request_sent(&self, now: Moment) {
        let facts = &mut *self.facts.borrow_mut();
        facts.outcome.sent_us = Some(micros(now.since(facts.begun)));
    }

    /// The upstream's final head is complete.
    pub fn upstream_answered(&self, status: u16, now: Moment) {
        let facts = &mut *self.facts.borrow_mut();
        facts.outcome.upstream_status = status;
        facts.outcome.first_byte_us = Some(micros(now.since(facts.begun)));
    }

    /// The status with which the last attempt's upstream answered; 0 = it did not.
    #[must_use]
    pub fn upstream_status(&self) -> u16 {
        self.facts.borrow().outcome.upstream_status
    }

    /// The client has been sent the head of an upstream's answer; `streamed` if that is a stream of events.
    pub fn answer_began(&self, status: u16, streamed: bool) {
        let outcome = &mut self.facts.borrow_mut().outcome;
        (outcome.status, outcome.streamed) = (status, streamed);
    }

    /// Whether no token has passed yet.
    #[must_use]
    pub fn awaits_token(&self) -> bool {
        self.facts.borrow().outcome.first_token_us.is_none()
    }

    /// The first token passes.
    pub fn first_token(&self, now: Moment) {
        let facts = &mut *self.facts.borrow_mut();
        facts.outcome.first_token_us = Some(micros(now.since(facts.begun)));
    }

    /// So many bytes of the request's body came from the client, framing excluded.
    pub fn received(&self, bytes: u64) {
        self.facts.borrow_mut().outcome.request_bytes += bytes;
    }

    /// The client has been sent an answer of ours, with so many bytes of body.
    pub fn answered_here(&self, status: u16, body_bytes: u64) {
        let outcome = &mut self.facts.borrow_mut().outcome;
        (outcome.status, outcome.streamed) = (status, false);
        outcome.own_bytes += body_bytes;
    }

    /// An event of ours, of so many bytes, went to the client behind an upstream's.
    #[cold]
    pub fn event_added(&self, bytes: u64) {
        self.facts.borrow_mut().outcome.own_bytes += bytes;
    }

    /// So many bytes of an upstream's body went to the client, framing excluded.
    pub fn sent(&self, bytes: u64) {
        self.facts.borrow_mut().outcome.response_bytes += bytes;
    }

    /// The upstream has counted these tokens.
    pub fn used(&self, usage: Usage) {
        let outcome = &mut self.facts.borrow_mut().outcome;
        outcome.prompt_tokens = usage.prompt_tokens;
        outcome.completion_tokens = usage.completion_tokens;
        outcome.cached_tokens = usage.cached_tokens;
    }

    /// The attempt failed, and the client has been sent nothing; `status` was to be tried
    /// elsewhere, 0 = there was none.
    #[cold]
    pub fn attempt_failed(&self, upstream: &str, kind: Kind, status: u16) {
        let facts = &mut *self.facts.borrow_mut();
        facts.failed_attempts += 1;
        if facts.failures.len() < FAILURES_MAX {
            facts.failures.push(FailedAttempt { upstream: upstream.into(), kind, status });
        }
    }

    /// The exchange ended by this fault; the first one noted counts.
    #[cold]
    pub fn failed(&self, kind: Kind) {
        self.facts.borrow_mut().outcome.fault.get_or_insert(kind.into());
    }

    /// Reads what has been written so far.
    pub fn with<T>(&self, read: impl FnOnce(&Facts) -> T) -> T {
        read(&self.facts.borrow())
    }

    /// Ends the record.
    pub fn finish(&mut self, now: Moment) -> &Facts {
        let facts = self.facts.get_mut();
        facts.outcome.duration_us = micros(now.since(facts.begun));
        facts
    }

    /// Takes the buffer back, emptied, once nobody reads the record any more.
    #[must_use]
    pub fn take_buffer(&mut self) -> Vec<u8> {
        let mut buffer = std::mem::take(&mut self.facts.get_mut().texts.bytes);
        buffer.clear();
        buffer
    }
}

impl Facts {
    /// The method; empty where no head could be read.
    #[must_use]
    pub fn method(&self) -> &[u8] {
        self.texts.text(&self.texts.method)
    }

    /// The path without its query; empty where no head could be read.
    #[must_use]
    pub fn path(&self) -> &[u8] {
        self.texts.text(&self.texts.path)
    }

    /// The model as the client named it; empty where it named none.
    #[must_use]
    pub fn model(&self) -> &[u8] {
        self.texts.text(&self.texts.model)
    }

    /// The model as the server read it; empty where none is named.
    #[must_use]
    pub fn model_sent(&self) -> &[u8] {
        self.texts.text(&self.texts.model_sent)
    }
}

/// Truncates what a client chose, at a character where it is text.
#[must_use]
pub fn truncated(value: &[u8], bytes_max: usize) -> &[u8] {
    if value.len() <= bytes_max {
        return value;
    }
    // A continuation byte right after the end means that a character was split.
    let splits = |at: &usize| value[*at] & 0xc0 != 0x80;
    let low = bytes_max.saturating_sub(3);
    &value[..(low..=bytes_max).rev().find(splits).unwrap_or(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Finish;

    fn at(us: u64) -> Moment {
        Moment::from_micros(us)
    }

    fn record() -> Record {
        Record::begin(at(1_000), 3, None, Vec::new())
    }

    #[test]
    fn times_count_from_the_end_of_the_head() {
        let mut record = record();
        record.head_came_slowly(at(400));
        record.body_held(at(1_010));
        record.queued(Duration::from_micros(20));
        record.picked(0, 0, at(1_040));
        record.attempt_began();
        record.connected(at(1_050));
        record.request_sent(at(1_060));
        record.upstream_answered(200, at(1_070));
        record.first_token(at(1_080));
        let outcome = record.finish(at(1_090)).outcome;
        assert_eq!((outcome.head_us, outcome.held_us, outcome.queue_us), (600, Some(10), 20));
        assert_eq!((outcome.picked_us, outcome.connected_us), (Some(40), Some(50)));
        assert_eq!((outcome.sent_us, outcome.first_byte_us), (Some(60), Some(70)));
        assert_eq!((outcome.first_token_us, outcome.duration_us), (Some(80), 90));
    }

    #[test]
    fn another_attempt_forgets_the_answer_of_the_one_before() {
        let mut record = record();
        record.attempt_began();
        record.connection_reused();
        record.upstream_answered(503, at(1_010));
        record.attempt_failed("a", Kind::NobodyAvailable, 503);
        record.attempt_began();
        let facts = record.finish(at(1_020));
        assert_eq!(facts.failures.len(), 1);
        let outcome = facts.outcome;
        assert_eq!((outcome.attempts, outcome.reused, outcome.upstream_status), (2, false, 0));
        assert_eq!((outcome.status, outcome.first_byte_us), (0, None));
    }

    #[test]
    fn the_first_fault_counts() {
        let mut record = record();
        record.failed(Kind::BodyTimeout);
        record.failed(Kind::ClientGone);
        assert_eq!(record.finish(at(0)).outcome.finish(), Finish::ClientTimeout);
    }

    #[test]
    fn texts_of_a_client_are_bounded_and_end_at_a_character() {
        let mut record = record();
        let long = "\u{20ac}".repeat(200);
        record.head_read(Method::Post, b"POST", long.as_bytes());
        record.model_named(&long);
        record.routed(RouteKind::Model, 0, None, Some("b"));
        let facts = record.finish(at(0));
        assert_eq!(facts.path(), "\u{20ac}".repeat(85).as_bytes());
        assert_eq!((facts.method(), facts.model()), (&b"POST"[..], facts.path()));
        assert_eq!(facts.model_sent(), b"b");
        // What it held is used again, and says nothing of the next.
        let mut next = Record::begin(at(0), 0, None, record.take_buffer());
        let facts = next.finish(at(0));
        assert_eq!(
            (facts.method(), facts.model(), facts.model_sent()),
            (&b""[..], &b""[..], &b""[..])
        );
    }

    #[test]
    fn no_more_failures_are_kept_than_a_line_can_show() {
        let mut record = record();
        for _ in 0..3 * FAILURES_MAX {
            record.attempt_failed("a", Kind::UpstreamReset, 0);
        }
        assert_eq!(record.finish(at(0)).failures.len(), FAILURES_MAX);
    }
}
