//! Frames that cost the receiver more than the sender, counted where they stand.
//!
//! The one idea: the bytes of a connection are looked at on their way to the `h2` crate, nine of
//! each frame (RFC 9113 §4.1), none of them copied or kept. That is enough to tell the floods that
//! a peer can send without breaking a rule of the protocol:
//!
//! - **Rapid reset** (CVE-2023-44487): streams opened and reset at once, so that the limit on
//!   streams at a time never bites while each costs a whole exchange. Allowed per window:
//!   `resets`, and one more for every two streams opened in it. So a busy client that gives up now
//!   and then is never refused, and whoever resets all that it opens is stopped at twice `resets`.
//!   With one stream left alone for each that is reset, the limit on streams bites again. As a
//!   client drops all its streams at once when it stops, `resets` is best not below the
//!   streams that are allowed at a time. A server resets only what we opened: there each stream
//!   opened in the window allows a whole one.
//! - **Continuation** (CVE-2024-27316): a field block that never ends. Allowed: `continuations`
//!   frames after one HEADERS; no window, since no honest block has so many.
//! - **Ping** and **settings** (CVE-2019-9512, CVE-2019-9515): each asks for an answer. Answers
//!   themselves (ACK) are not counted. Some readers measure the path with a PING while DATA comes
//!   in (gRPC does), so each DATA frame that we sent allows one more.
//! - **Empty frames** (CVE-2019-9518): DATA and fragments of a field block that hold nothing (but
//!   padding) and end nothing.
//! - **Priority** (CVE-2019-9513): deprecated, and without effect here. Browsers send one for a
//!   stream; so each stream opened allows one more.
//! - **Window updates**: an honest reader sends them for DATA that it has read. Allowed:
//!   `window_updates`, one for each stream opened, and [`UPDATES_PER_DATA`] for each DATA frame
//!   that we sent.
//!
//! What we sent is known when [`FrameCounter::sent`] is told; without it the bare limits hold.
//!
//! A window slides by quarters: a count is that of the quarter at hand and the three before it.
//! So a peer that stays within a limit in every window is never refused, and one that passes it
//! within three quarters of a window always is.
//!
//! Not here: what is wrong with a frame (too long, on no stream, a bad preface), the size of a
//! field block, and streams that we are brought to reset ourselves (CVE-2025-8671): all of these
//! are the `h2` crate's. Nor floods that cost only their own bytes: unknown frames, ACKs.

use std::{
    fmt,
    time::{Duration, Instant},
};

use crate::base::clock::Moment;

/// WINDOW_UPDATE frames that one DATA frame of ours excuses: a reader that takes 16 KiB in quarters
/// and opens the window of stream and connection after each.
pub const UPDATES_PER_DATA: u64 = 8;

/// What is allowed within a window; one more is a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodLimits {
    /// RST_STREAM frames, besides those that opened streams excuse.
    pub resets: u32,
    /// PING frames without ACK, besides those that our DATA excuses.
    pub pings: u32,
    /// SETTINGS frames without ACK; every connection begins with one.
    pub settings: u32,
    /// Empty DATA, HEADERS and CONTINUATION frames that end nothing.
    pub empty_frames: u32,
    /// PRIORITY frames, besides one for each opened stream.
    pub priority: u32,
    /// WINDOW_UPDATE frames, besides those that streams and our DATA excuse.
    pub window_updates: u32,
    /// CONTINUATION frames of one field block; no window.
    pub continuations: u32,
    /// Length of the window.
    pub window: Duration,
}

impl Default for FloodLimits {
    /// Far above what honest peers were seen to send, far below what hurts.
    fn default() -> FloodLimits {
        FloodLimits {
            resets: 200,
            pings: 100,
            settings: 50,
            empty_frames: 100,
            priority: 200,
            window_updates: 1_000,
            continuations: 16,
            window: Duration::from_secs(10),
        }
    }
}

/// Which flood it is. It means GOAWAY with ENHANCE_YOUR_CALM and the end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Flood {
    /// Rapid reset.
    Resets,
    /// PING.
    Pings,
    /// SETTINGS.
    Settings,
    /// Frames that hold nothing.
    EmptyFrames,
    /// PRIORITY.
    Priority,
    /// WINDOW_UPDATE.
    WindowUpdates,
    /// CONTINUATION.
    Continuations,
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Flood::Resets => "flood of stream resets",
            Flood::Pings => "flood of pings",
            Flood::Settings => "flood of settings",
            Flood::EmptyFrames => "flood of empty frames",
            Flood::Priority => "flood of priority frames",
            Flood::WindowUpdates => "flood of window updates",
            Flood::Continuations => "flood of continuation frames",
        })
    }
}

impl std::error::Error for Flood {}

/// Counts the frames of one connection. Small, without a buffer.
#[derive(Clone, Debug)]
pub struct FrameCounter {
    /// When the counting began.
    origin: Instant,
    counter: Counter,
}

impl FrameCounter {
    /// Counts what a client sends, from its first byte; the preface is skipped, not judged.
    pub fn downstream(limits: FloodLimits, now: Instant) -> FrameCounter {
        FrameCounter { origin: now, counter: Counter::new(limits, Opener::Peer) }
    }

    /// Counts what a server sends, from its first byte.
    pub fn upstream(limits: FloodLimits, now: Instant) -> FrameCounter {
        FrameCounter { origin: now, counter: Counter::new(limits, Opener::We) }
    }

    /// Takes the next bytes that came in, without the TLS around them.
    ///
    /// Shape: any split of the bytes gives the same result at the same times. Where `now` runs
    /// backwards, it counts as the latest that was seen.
    /// Errors: the first flood that was found, then and ever after.
    pub fn push(&mut self, bytes: &[u8], now: Instant) -> Result<(), Flood> {
        self.counter.push(bytes, Moment::after(self.origin, now))
    }

    /// Takes the next bytes that went out: the peer may answer them, so they excuse frames of its.
    ///
    /// Shape: as [`push`](FrameCounter::push). Without it a peer has its bare limits.
    pub fn sent(&mut self, bytes: &[u8], now: Instant) {
        self.counter.sent(bytes, Moment::after(self.origin, now));
    }
}

/// The counter, on a clock of its own: its origin is when it was made.
#[derive(Clone, Debug)]
struct Counter {
    limits: FloodLimits,
    opener: Opener,
    received: Walker,
    sent: Walker,
    window: Window,
    /// The highest stream that was opened; a HEADERS frame beyond it opens the next.
    last_opened: u32,
    /// CONTINUATION frames of the field block at hand.
    continuations: u32,
    /// What was found, once it was.
    flood: Option<Flood>,
}

/// Who opens streams on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opener {
    Peer,
    We,
}

impl Counter {
    fn new(limits: FloodLimits, opener: Opener) -> Counter {
        let (received, sent) = match opener {
            Opener::Peer => (Walker::after(PREFACE_BYTES), Walker::after(0)),
            Opener::We => (Walker::after(0), Walker::after(PREFACE_BYTES)),
        };
        Counter {
            limits,
            opener,
            received,
            sent,
            window: Window::new(limits.window),
            last_opened: 0,
            continuations: 0,
            flood: None,
        }
    }

    fn push(&mut self, bytes: &[u8], now: Moment) -> Result<(), Flood> {
        self.window.advance(now);
        let mut rest = bytes;
        while self.flood.is_none()
            && let Some(frame) = self.received.next_frame(&mut rest)
        {
            self.flood = self.count(frame).err();
        }
        self.flood.map_or(Ok(()), Err)
    }

    fn sent(&mut self, bytes: &[u8], now: Moment) {
        self.window.advance(now);
        let mut rest = bytes;
        while let Some(frame) = self.sent.next_frame(&mut rest) {
            match frame.kind {
                kind::DATA => self.window.add(Kind::DataSent),
                kind::HEADERS if self.opener == Opener::We => self.open(frame.stream),
                _ => {}
            }
        }
    }

    /// Counts one frame that came in.
    fn count(&mut self, frame: Frame) -> Result<(), Flood> {
        let has = |flag: u8| frame.flags & flag != 0;
        match frame.kind {
            kind::DATA if frame.content == 0 && !has(flag::END_STREAM) => self.empty(),
            kind::HEADERS => {
                self.continuations = 0;
                if self.opener == Opener::Peer {
                    self.open(frame.stream);
                }
                if frame.content == 0 && !has(flag::END_STREAM) { self.empty() } else { Ok(()) }
            }
            kind::PRIORITY => {
                let excused = self.window.total(Kind::Opened);
                self.limit(Kind::Priority, self.limits.priority, excused, Flood::Priority)
            }
            kind::RST_STREAM => {
                let opened = self.window.total(Kind::Opened);
                let excused = match self.opener {
                    Opener::Peer => opened / 2,
                    Opener::We => opened,
                };
                self.limit(Kind::Resets, self.limits.resets, excused, Flood::Resets)
            }
            kind::SETTINGS if !has(flag::ACK) => {
                self.limit(Kind::Settings, self.limits.settings, 0, Flood::Settings)
            }
            kind::PUSH_PROMISE => {
                self.continuations = 0;
                Ok(())
            }
            kind::PING if !has(flag::ACK) => {
                let excused = self.window.total(Kind::DataSent);
                self.limit(Kind::Pings, self.limits.pings, excused, Flood::Pings)
            }
            kind::WINDOW_UPDATE => {
                let answers = UPDATES_PER_DATA * self.window.total(Kind::DataSent);
                let excused = self.window.total(Kind::Opened) + answers;
                let most = self.limits.window_updates;
                self.limit(Kind::WindowUpdates, most, excused, Flood::WindowUpdates)
            }
            kind::CONTINUATION => {
                self.continuations = self.continuations.saturating_add(1);
                if self.continuations > self.limits.continuations {
                    return Err(Flood::Continuations);
                }
                if frame.content == 0 && !has(flag::END_HEADERS) { self.empty() } else { Ok(()) }
            }
            // GOAWAY, answers, frames of extensions, DATA with something in it.
            _ => Ok(()),
        }
    }

    fn empty(&mut self) -> Result<(), Flood> {
        self.limit(Kind::EmptyFrames, self.limits.empty_frames, 0, Flood::EmptyFrames)
    }

    fn limit(&mut self, kind: Kind, most: u32, excused: u64, flood: Flood) -> Result<(), Flood> {
        self.window.add(kind);
        if self.window.total(kind) > u64::from(most) + excused { Err(flood) } else { Ok(()) }
    }

    /// Sees HEADERS of a stream; those of one that is open already are its trailers.
    fn open(&mut self, stream: u32) {
        if stream > self.last_opened {
            self.last_opened = stream;
            self.window.add(Kind::Opened);
        }
    }
}

/// Bytes before the first frame of a client (RFC 9113 §3.4).
const PREFACE_BYTES: u32 = 24;
/// Bytes before the payload of a frame.
const HEADER_BYTES: usize = 9;

/// Types of frames (RFC 9113 §6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const PRIORITY: u8 = 2;
    pub(super) const RST_STREAM: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PUSH_PROMISE: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const WINDOW_UPDATE: u8 = 8;
    pub(super) const CONTINUATION: u8 = 9;
}

/// Flags of frames (RFC 9113 §6).
mod flag {
    pub(super) const END_STREAM: u8 = 0x1;
    pub(super) const ACK: u8 = 0x1;
    pub(super) const END_HEADERS: u8 = 0x4;
    pub(super) const PADDED: u8 = 0x8;
    pub(super) const PRIORITY: u8 = 0x20;
}

/// What the counter has to know of a frame.
#[derive(Clone, Copy, Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Bytes of its payload that are neither padding nor priority.
    content: u32,
}

/// Finds the frames of one direction.
///
/// ```text
///   Skip ──0 left──► Head ──9 bytes, 10 when padded──► a frame, and Skip its payload
/// ```
#[derive(Clone, Copy, Debug)]
struct Walker {
    /// Bytes to pass over before the next frame.
    skip: u32,
    /// The header of the next frame as far as it has come, and the length of its padding.
    head: [u8; HEADER_BYTES + 1],
    /// `have <= head.len()`.
    have: usize,
}

impl Walker {
    fn after(skip: u32) -> Walker {
        Walker { skip, head: [0; HEADER_BYTES + 1], have: 0 }
    }

    /// Takes bytes up to where the next frame is known; `None` when there are too few.
    fn next_frame(&mut self, rest: &mut &[u8]) -> Option<Frame> {
        let skipped = usize::try_from(self.skip).map_or(rest.len(), |skip| skip.min(rest.len()));
        *rest = &rest[skipped..];
        self.skip -= skipped as u32;
        if self.skip > 0 {
            return None;
        }
        self.fill(HEADER_BYTES, rest)?;
        let is_padded = is_padded(&self.head);
        if is_padded {
            self.fill(HEADER_BYTES + 1, rest)?;
        }
        let [a, b, c, kind, flags, s0, s1, s2, s3, padding] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]);
        let mut content = length;
        if is_padded {
            content = content.saturating_sub(1 + u32::from(padding));
        }
        if kind == kind::HEADERS && flags & flag::PRIORITY != 0 {
            content = content.saturating_sub(5);
        }
        // The byte of the padding's length is part of the payload, and has been taken.
        self.skip = length - u32::from(is_padded);
        self.have = 0;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]) & 0x7fff_ffff;
        Some(Frame { kind, flags, stream, content })
    }

    /// Takes bytes until there are `need` of the header.
    fn fill(&mut self, need: usize, rest: &mut &[u8]) -> Option<()> {
        let missing = need.saturating_sub(self.have);
        let taken = missing.min(rest.len());
        let (bytes, after) = rest.split_at(taken);
        self.head.get_mut(self.have..self.have + taken)?.copy_from_slice(bytes);
        self.have += taken;
        *rest = after;
        (taken == missing).then_some(())
    }
}

/// Whether the first byte of the payload says how long its padding is.
fn is_padded(head: &[u8; HEADER_BYTES + 1]) -> bool {
    let [a, b, c, kind, flags, ..] = *head;
    matches!(kind, kind::DATA | kind::HEADERS) && flags & flag::PADDED != 0 && (a | b | c) != 0
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Opened,
    DataSent,
    Resets,
    Pings,
    Settings,
    EmptyFrames,
    Priority,
    WindowUpdates,
}

const KINDS: usize = Kind::WindowUpdates as usize + 1;
/// Parts of a window; it slides by one at a time.
const SLOTS: usize = 4;

/// Counts per kind over the last [`SLOTS`] parts of time.
#[derive(Clone, Debug)]
struct Window {
    /// Length of a part; above 0.
    slot_nanos: u64,
    /// The part at hand, counted from the beginning.
    slot: u64,
    counts: [[u32; KINDS]; SLOTS],
}

impl Window {
    fn new(window: Duration) -> Window {
        let nanos = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        let slot_nanos = (nanos / SLOTS as u64).max(1);
        Window { slot_nanos, slot: 0, counts: [[0; KINDS]; SLOTS] }
    }

    /// Moves to the part in which this time lies, and forgets those that are too old.
    fn advance(&mut self, now: Moment) {
        let slot = now.as_nanos() / self.slot_nanos;
        let steps = slot.saturating_sub(self.slot).min(SLOTS as u64);
        for _ in 0..steps {
            self.slot += 1;
            *self.current() = [0; KINDS];
        }
        // After a long silence every part has been forgotten.
        self.slot = self.slot.max(slot);
    }

    fn current(&mut self) -> &mut [u32; KINDS] {
        &mut self.counts[(self.slot % SLOTS as u64) as usize]
    }

    fn add(&mut self, kind: Kind) {
        let count = &mut self.current()[kind as usize];
        *count = count.saturating_add(1);
    }

    fn total(&self, kind: Kind) -> u64 {
        self.counts.iter().map(|slot| u64::from(slot[kind as usize])).sum()
    }
}

/// The target of a fuzzer: any pieces give the result of one, with the same bytes sent before.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some(([choice, cut], wire)) = data.split_first_chunk::<2>() else { return };
    let limits = FloodLimits {
        resets: 3,
        pings: 2,
        settings: 2,
        empty_frames: 2,
        priority: 1,
        window_updates: 2,
        continuations: 2,
        window: Duration::from_secs(1),
    };
    let opener = if choice & 1 == 0 { Opener::Peer } else { Opener::We };
    let sent = if choice & 2 == 0 { wire } else { &[] };
    // Leaves the preface out of the short inputs that a fuzzer likes.
    let preface = if choice & 4 == 0 { &[0; PREFACE_BYTES as usize][..] } else { &[] };
    let feed = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut counter = Counter::new(limits, opener);
        counter.sent(sent, Moment::ORIGIN);
        let mut found = counter.push(preface, Moment::ORIGIN);
        for piece in pieces {
            found = counter.push(piece, Moment::ORIGIN);
            assert!(counter.received.have <= HEADER_BYTES + 1);
        }
        found
    };
    let whole = feed(&mut [wire].into_iter());
    let (first, second) = wire.split_at(usize::from(*cut).min(wire.len()));
    assert_eq!(whole, feed(&mut [first, second].into_iter()), "two pieces");
    assert_eq!(whole, feed(&mut wire.chunks(usize::from(*cut % 16) + 1)), "many pieces");
    assert!(whole.is_ok() || wire.len() + preface.len() > HEADER_BYTES);
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use super::*;

    const LIMITS: FloodLimits = FloodLimits {
        resets: 10,
        pings: 5,
        settings: 4,
        empty_frames: 3,
        priority: 6,
        window_updates: 7,
        continuations: 2,
        window: Duration::from_secs(4),
    };
    const END_STREAM: u8 = flag::END_STREAM;
    const END_HEADERS: u8 = flag::END_HEADERS;

    fn ns(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }

    /// A counter that is past the preface.
    fn counter(opener: Opener) -> Counter {
        let mut counter = Counter::new(LIMITS, opener);
        match opener {
            Opener::Peer => assert_eq!(counter.push(PREFACE, ns(0)), Ok(())),
            Opener::We => counter.sent(PREFACE, ns(0)),
        }
        counter
    }

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    /// How many times the frames are taken at one moment before they are a flood.
    fn taken(opener: Opener, flood: Flood, frames: impl Fn(u32) -> Vec<u8>) -> u32 {
        let mut counter = counter(opener);
        for turn in 0..10_000 {
            match counter.push(&frames(turn), ns(0)) {
                Ok(()) => {}
                Err(found) => {
                    assert_eq!(found, flood);
                    // It stays found, whatever comes.
                    assert_eq!(counter.push(&[], ns(0)), Err(flood));
                    return turn;
                }
            }
        }
        u32::MAX
    }

    fn check(flood: Flood, most: u32, frames: impl Fn(u32) -> Vec<u8>) {
        assert_eq!(taken(Opener::Peer, flood, &frames), most, "{flood}");
    }

    fn opening(turn: u32) -> Vec<u8> {
        frame(kind::HEADERS, END_HEADERS | END_STREAM, 2 * turn + 1, b"\x82")
    }

    #[test]
    fn preface_bytes_are_those_of_the_preface() {
        assert_eq!(PREFACE.len(), PREFACE_BYTES as usize);
    }

    #[test]
    fn cve_2023_44487_rapid_reset_ends_at_twice_the_limit() {
        let reset = |turn: u32| frame(kind::RST_STREAM, 0, 2 * turn + 1, &[0; 4]);
        check(Flood::Resets, LIMITS.resets, reset);
        check(Flood::Resets, 2 * LIMITS.resets, |turn| [opening(turn), reset(turn)].concat());
        // Every second stream left alone: the limit on streams is what bites then.
        let half = |turn| [opening(2 * turn), opening(2 * turn + 1), reset(2 * turn)].concat();
        check(Flood::Resets, u32::MAX, half);
    }

    #[test]
    fn a_server_may_reset_every_stream_that_we_open() {
        let mut counter = counter(Opener::We);
        for turn in 0..1_000 {
            counter.sent(&opening(turn), ns(0));
            assert_eq!(
                counter.push(&frame(kind::RST_STREAM, 0, 2 * turn + 1, &[0; 4]), ns(0)),
                Ok(())
            );
        }
        let again = |_| frame(kind::RST_STREAM, 0, 1, &[0; 4]);
        assert_eq!(taken(Opener::We, Flood::Resets, again), LIMITS.resets);
    }

    #[test]
    fn cve_2024_27316_a_field_block_ends() {
        let more = |_| frame(kind::CONTINUATION, 0, 1, b"x");
        check(Flood::Continuations, LIMITS.continuations, more);
        let whole = |turn: u32| {
            let more = frame(kind::CONTINUATION, 0, 2 * turn + 1, b"x");
            let last = frame(kind::CONTINUATION, END_HEADERS, 2 * turn + 1, b"");
            [frame(kind::HEADERS, END_STREAM, 2 * turn + 1, b"\x82"), more, last].concat()
        };
        check(Flood::Continuations, u32::MAX, whole);
    }

    #[test]
    fn cve_2019_9512_and_9515_questions_are_counted_and_answers_are_not() {
        check(Flood::Pings, LIMITS.pings, |_| frame(kind::PING, 0, 0, &[0; 8]));
        check(Flood::Settings, LIMITS.settings, |_| frame(kind::SETTINGS, 0, 0, &[]));
        check(Flood::Pings, u32::MAX, |_| frame(kind::PING, flag::ACK, 0, &[0; 8]));
        check(Flood::Settings, u32::MAX, |_| frame(kind::SETTINGS, flag::ACK, 0, &[]));
    }

    #[test]
    fn cve_2019_9518_frames_that_hold_nothing_are_counted() {
        let most = LIMITS.empty_frames;
        let flood = Flood::EmptyFrames;
        check(flood, most, |_| frame(kind::DATA, 0, 1, &[]));
        check(flood, most, |_| frame(kind::HEADERS, 0, 1, &[]));
        check(flood, most, |_| frame(kind::HEADERS, END_HEADERS, 1, &[]));
        // Alternating with HEADERS, so that it is not one long field block.
        let fragments =
            |_| [frame(kind::HEADERS, 0, 1, b"x"), frame(kind::CONTINUATION, 0, 1, b"")].concat();
        check(flood, most, fragments);
        // Padding is nothing.
        check(flood, most, |_| frame(kind::DATA, flag::PADDED, 1, &[2, 0, 0]));
        check(flood, most, |_| frame(kind::DATA, flag::PADDED, 1, &[0]));
        let priority = flag::PADDED | flag::PRIORITY;
        check(flood, most, |_| frame(kind::HEADERS, priority, 1, &[1, 0, 0, 0, 0, 0, 0]));
        // A padding longer than its frame is a fault that is not found here.
        check(flood, most, |_| frame(kind::DATA, flag::PADDED, 1, &[9, 0]));

        check(flood, u32::MAX, |_| frame(kind::DATA, END_STREAM, 1, &[]));
        check(flood, u32::MAX, |_| frame(kind::DATA, flag::PADDED, 1, &[1, b'x', 0]));
        check(flood, u32::MAX, |_| frame(kind::HEADERS, END_STREAM | END_HEADERS, 1, &[]));
    }

    #[test]
    fn priorities_and_window_updates_are_excused_by_streams() {
        let priority = |_| frame(kind::PRIORITY, 0, 1, &[0; 5]);
        check(Flood::Priority, LIMITS.priority, priority);
        check(Flood::Priority, u32::MAX, |turn| [opening(turn), priority(0)].concat());
        let update = |_| frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        check(Flood::WindowUpdates, LIMITS.window_updates, update);
        check(Flood::WindowUpdates, u32::MAX, |turn| [opening(turn), update(0)].concat());
    }

    #[test]
    fn trailers_open_no_stream() {
        // The same stream again and again excuses once.
        let again = |_| [opening(3), frame(kind::PRIORITY, 0, 7, &[0; 5])].concat();
        check(Flood::Priority, LIMITS.priority + 1, again);
    }

    #[test]
    fn pings_may_measure_our_data() {
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        let mut counter = counter(Opener::Peer);
        for _ in 0..100 {
            counter.sent(&frame(kind::DATA, 0, 1, b"data: x"), ns(0));
            assert_eq!(counter.push(&ping, ns(0)), Ok(()));
        }
        assert_eq!(counter.push(&ping.repeat(LIMITS.pings as usize), ns(0)), Ok(()));
        assert_eq!(counter.push(&ping, ns(0)), Err(Flood::Pings));
    }

    #[test]
    fn window_updates_answer_our_data() {
        let update = frame(kind::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        let mut counter = counter(Opener::Peer);
        for _ in 0..100 {
            counter.sent(&frame(kind::DATA, 0, 1, b"data: x"), ns(0));
            assert_eq!(counter.push(&update.repeat(UPDATES_PER_DATA as usize), ns(0)), Ok(()));
        }
        let most = LIMITS.window_updates as usize;
        assert_eq!(counter.push(&update.repeat(most), ns(0)), Ok(()));
        assert_eq!(counter.push(&update, ns(0)), Err(Flood::WindowUpdates));
    }

    #[test]
    fn other_frames_and_payloads_cost_nothing() {
        check(Flood::Pings, u32::MAX, |_| frame(kind::DATA, 0, 1, &frame(kind::PING, 0, 0, b"")));
        check(Flood::Pings, u32::MAX, |_| frame(7, 0, 0, &[0; 8]));
        check(Flood::Pings, u32::MAX, |_| frame(0xaa, 0xff, 0, &[]));
    }

    #[test]
    fn a_window_forgets() {
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        let mut counter = counter(Opener::Peer);
        let second = Duration::from_secs(1).as_nanos() as u64;
        let most = ping.repeat(LIMITS.pings as usize);
        for window in 0..5 {
            let now = window * 4 * second;
            assert_eq!(counter.push(&most, ns(now)), Ok(()), "{window}");
        }
        let last = 16 * second;
        // Three quarters later it is still remembered, and a clock that runs backwards helps not.
        let later = last + 4 * second - 1;
        assert_eq!(counter.clone().push(&ping, ns(later)), Err(Flood::Pings));
        assert_eq!(counter.clone().push(&ping, ns(0)), Err(Flood::Pings));
        assert_eq!(counter.clone().push(&ping, ns(last + 4 * second)), Ok(()));
        assert_eq!(counter.push(&most, ns(u64::MAX)), Ok(()));
    }

    #[test]
    fn time_is_that_of_the_caller() {
        let start = Instant::now();
        let ping = frame(kind::PING, 0, 0, &[0; 8]);
        let most = ping.repeat(LIMITS.pings as usize);
        let mut counter = FrameCounter::upstream(LIMITS, start);
        assert_eq!(counter.push(&most, start), Ok(()));
        assert_eq!(counter.push(&most, start + LIMITS.window), Ok(()));
        counter.sent(PREFACE, start + LIMITS.window);
        assert_eq!(counter.push(&ping, start), Err(Flood::Pings));
        let mut counter = FrameCounter::downstream(LIMITS, start);
        assert_eq!(counter.push(&[PREFACE, &most].concat(), start), Ok(()));
        assert_eq!(counter.push(&ping, start), Err(Flood::Pings));
    }

    #[test]
    fn a_window_of_no_length_and_limits_of_zero_do_not_panic() {
        let limits = FloodLimits { pings: 0, window: Duration::ZERO, ..LIMITS };
        let mut counter = Counter::new(limits, Opener::We);
        assert_eq!(counter.push(&frame(kind::PING, 0, 0, &[0; 8]), ns(3)), Err(Flood::Pings));
    }

    #[test]
    fn a_counter_is_small() {
        assert!(size_of::<FrameCounter>() <= 320, "{}", size_of::<FrameCounter>());
    }

    /// One frame of the oracle: what it is, and when its header was complete.
    #[derive(Clone, Debug)]
    struct Sample {
        kind: u8,
        flags: u8,
        stream: u32,
        payload: Vec<u8>,
        nanos: u64,
        by_us: bool,
    }

    /// Frames in order of time: a few kinds at a time, or no limit would ever be reached.
    fn samples() -> impl Strategy<Value = Vec<Sample>> {
        let focus = select(vec![
            vec![kind::RST_STREAM, kind::HEADERS],
            vec![kind::WINDOW_UPDATE, kind::WINDOW_UPDATE, kind::HEADERS, kind::DATA],
            vec![kind::PRIORITY, kind::HEADERS, kind::DATA],
            vec![kind::CONTINUATION, kind::HEADERS, kind::PUSH_PROMISE],
            vec![kind::PING, kind::PING, kind::SETTINGS, kind::DATA],
            (0..12).collect(),
        ]);
        focus.prop_flat_map(|kinds| {
            let kind = prop_oneof![15 => select(kinds), 1 => any::<u8>()];
            let flags = prop_oneof![4 => select(vec![0u8, 1, 4, 5, 8, 9, 0x28]), 1 => any::<u8>()];
            let payload = prop::collection::vec(0u8..4, 0..8);
            let step = prop_oneof![
                30 => Just(0u64),
                5 => 0..500_000_000u64,
                1 => 0..2_000_000_000u64,
                1 => 0..9_000_000_000u64,
            ];
            // Streams are opened in order, now and then one again.
            let stream = prop_oneof![3 => 0u32..400, 1 => 0u32..40];
            let one = (kind, flags, stream, payload, step, prop::bool::weighted(0.2));
            prop::collection::vec(one, 0..100).prop_map(in_order)
        })
    }

    fn in_order(samples: Vec<(u8, u8, u32, Vec<u8>, u64, bool)>) -> Vec<Sample> {
        let (mut nanos, mut opened) = (0, 0);
        let sample = |(kind, flags, stream, payload, step, by_us)| {
            nanos += step;
            opened += 2;
            let stream = match stream {
                0..20 => stream,
                20..60 => opened - 2,
                _ => opened,
            };
            Sample { kind, flags, stream, payload, nanos, by_us }
        };
        samples.into_iter().map(sample).collect()
    }

    /// A slow reader: keeps every frame and counts all of them again for each.
    fn oracle(samples: &[Sample], opener: Opener) -> Option<(usize, Flood)> {
        let quarter = |sample: &Sample| sample.nanos / 1_000_000_000;
        let bare = |sample: &Sample| {
            let mut len = sample.payload.len() as i64;
            let padded = sample.flags & 8 != 0 && matches!(sample.kind, 0 | 1);
            if padded && let Some(&padding) = sample.payload.first() {
                len -= 1 + i64::from(padding);
            }
            if sample.kind == 1 && sample.flags & 0x20 != 0 {
                len -= 5;
            }
            len <= 0
        };
        let ends_stream = |sample: &Sample| sample.flags & 1 != 0;
        let empty = |sample: &Sample| match sample.kind {
            0 | 1 => bare(sample) && !ends_stream(sample),
            9 => bare(sample) && sample.flags & 4 == 0,
            _ => false,
        };
        let opens = |index: usize| {
            let sample = &samples[index];
            let by_opener = |sample: &Sample| sample.by_us == (opener == Opener::We);
            let earlier = samples[..index].iter().filter(|s| s.kind == 1 && by_opener(s));
            sample.kind == 1
                && by_opener(sample)
                && sample.stream > earlier.map(|s| s.stream).max().unwrap_or(0)
        };
        (0..samples.len()).find_map(|last| {
            let now = &samples[last];
            if now.by_us {
                return None;
            }
            let recent: Vec<usize> =
                (0..=last).filter(|&i| quarter(&samples[i]) + 4 > quarter(now)).collect();
            let received = |what: &dyn Fn(&Sample) -> bool| {
                recent.iter().filter(|&&i| !samples[i].by_us && what(&samples[i])).count()
            };
            let opened = recent.iter().filter(|&&i| opens(i)).count();
            let data = recent.iter().filter(|&&i| samples[i].by_us && samples[i].kind == 0).count();
            let question = |kind: u8| received(&|s: &Sample| s.kind == kind && s.flags & 1 == 0);
            let excused = if opener == Opener::Peer { opened / 2 } else { opened };
            let block = samples[..=last].iter().rev().filter(|s| !s.by_us);
            let block = block.take_while(|s| !matches!(s.kind, 1 | 5)).filter(|s| s.kind == 9);
            let checks = [
                (now.kind == 9, block.count(), 2, Flood::Continuations),
                (empty(now), received(&empty), 3, Flood::EmptyFrames),
                (now.kind == 2, received(&|s: &Sample| s.kind == 2), 6 + opened, Flood::Priority),
                (now.kind == 3, received(&|s: &Sample| s.kind == 3), 10 + excused, Flood::Resets),
                (now.kind == 4 && now.flags & 1 == 0, question(4), 4, Flood::Settings),
                (now.kind == 6 && now.flags & 1 == 0, question(6), 5 + data, Flood::Pings),
                (
                    now.kind == 8,
                    received(&|s: &Sample| s.kind == 8),
                    7 + opened + 8 * data,
                    Flood::WindowUpdates,
                ),
            ];
            let found = checks.into_iter().find(|(is, count, most, _)| *is && count > most);
            found.map(|(.., flood)| (last, flood))
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_reader_that_counts_again(
            samples in samples(),
            upstream: bool,
            cuts in prop::collection::vec(0usize..20, 1..5),
        ) {
            let opener = if upstream { Opener::We } else { Opener::Peer };
            let mut counter = counter(opener);
            let mut found = None;
            for (index, sample) in samples.iter().enumerate() {
                let bytes = frame(sample.kind, sample.flags, sample.stream, &sample.payload);
                let cut = cuts[index % cuts.len()].min(bytes.len());
                for piece in [&bytes[..cut], &bytes[cut..]] {
                    if sample.by_us {
                        counter.sent(piece, ns(sample.nanos));
                    } else if let Err(flood) = counter.push(piece, ns(sample.nanos)) {
                        found = found.or(Some((index, flood)));
                    }
                }
            }
            prop_assert_eq!(found, oracle(&samples, opener));
        }

        /// No window of the whole length holds more than the limit: never a flood.
        #[test]
        fn who_stays_within_the_limits_is_never_refused(steps in prop::collection::vec(0u64..2_000, 1..200)) {
            let (window, most) = (4_000, LIMITS.pings as usize);
            let (mut counter, mut sent, mut now) = (counter(Opener::Peer), Vec::<u64>::new(), 0);
            for step in steps {
                now += step;
                // A peer that waits until it may.
                if let Some(&oldest) = sent.iter().rev().nth(most - 1) {
                    now = now.max(oldest + window);
                }
                sent.push(now);
                let ping = frame(kind::PING, 0, 0, &[0; 8]);
                prop_assert_eq!(counter.push(&ping, ns(now * 1_000_000)), Ok(()));
            }
        }

        /// One more than the limit within three quarters of a window: always a flood.
        #[test]
        fn who_passes_a_limit_within_three_quarters_is_refused(
            start in 0u64..1_000_000,
            steps in prop::collection::vec(0u64..600, LIMITS.pings as usize),
        ) {
            let mut counter = counter(Opener::Peer);
            let mut now = start;
            let ping = frame(kind::PING, 0, 0, &[0; 8]);
            prop_assert_eq!(counter.push(&ping, ns(now * 1_000_000)), Ok(()));
            let mut last = Ok(());
            for step in steps {
                now += step;
                last = counter.push(&ping, ns(now * 1_000_000));
            }
            prop_assert!(now - start <= 3_000);
            prop_assert_eq!(last, Err(Flood::Pings));
        }

        #[test]
        fn any_split_gives_the_same_result(samples in samples(), choice: u8, cut: u8) {
            let mut data = vec![choice, cut];
            for sample in &samples {
                data.extend(frame(sample.kind, sample.flags, sample.stream, &sample.payload));
            }
            fuzz(&data);
        }

        #[test]
        fn no_bytes_panic(data in prop::collection::vec(any::<u8>(), 0..300)) {
            fuzz(&data);
        }
    }
}
