//! HTTP/2 frame by frame: heads that are malformed, and floods.
//!
//! What no well-behaved library lets one write is written by hand: HPACK without its tables,
//! frames without their order. A malformed request costs its stream, a flood its connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::h2::House;
use super::house::{LIMIT, Setup, house, wait_until};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

const PROTOCOL_ERROR: u8 = 1;
const REFUSED_STREAM: u8 = 7;
const ENHANCE_YOUR_CALM: u8 = 11;

/// A frame that came.
#[derive(Debug)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

/// A connection of bare frames.
struct Raw(TcpStream);

impl Raw {
    /// Connects and says what a client has to say first.
    fn connect(addr: SocketAddr) -> Raw {
        let stream = TcpStream::connect(addr).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        let mut raw = Raw(stream);
        raw.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").send(&frame(SETTINGS, 0, 0, &[]));
        raw
    }

    fn send(&mut self, bytes: &[u8]) -> &mut Raw {
        self.0.write_all(bytes).expect("the proxy reads");
        self
    }

    /// Sends until the proxy takes no more, or all has been taken.
    fn flood(&mut self, bytes: &[u8]) {
        let _ = self.0.write_all(bytes);
    }

    /// The next frame; `None` at the end of the connection, however it ends.
    fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        let read = self.0.read_exact(&mut head);
        if let Err(why) = read {
            let timeout = matches!(why.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
            assert!(!timeout, "neither a frame nor an end");
            return None;
        }
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads on to the next frame of this kind.
    fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().unwrap_or_else(|| panic!("an end before a frame {kind}"));
            if frame.kind == kind && (kind != SETTINGS || frame.flags & ACK == 0) {
                return frame;
            }
        }
    }

    /// What becomes of a stream: its head was answered, or it was reset with this code.
    fn fate(&mut self, stream: u32) -> Fate {
        loop {
            let frame = self.next().expect("the connection goes on");
            match frame.kind {
                HEADERS if frame.stream == stream => return Fate::Answered(frame.payload[0]),
                RST_STREAM if frame.stream == stream => return Fate::Reset(frame.payload[3]),
                GOAWAY => return Fate::GoAway(frame.payload[7]),
                _ => {}
            }
        }
    }

    /// The code of the GOAWAY that ends the connection, which does end.
    fn goaway(&mut self) -> u8 {
        let code = self.until(GOAWAY).payload[7];
        while self.next().is_some() {}
        code
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Fate {
    /// The first byte of the field block: 0x88 is `:status: 200`.
    Answered(u8),
    Reset(u8),
    /// The whole connection ends.
    GoAway(u8),
}

const OK: Fate = Fate::Answered(0x88);

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// A field block: every field literal, without a table, without Huffman.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, value) in fields {
        out.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            out.push(text.len() as u8);
            out.extend_from_slice(text.as_bytes());
        }
    }
    out
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a"), (":path", "/health")];
const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":authority", "a"), (":path", "/echo")];

fn head(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(fields))
}

/// Heads that are no request: pseudo-fields, what HTTP/1.1 would read otherwise.
#[test]
fn a_malformed_head_costs_its_stream() {
    let (mock, proxy) = house();
    let with = |more: &[(&'static str, &'static str)]| [&GET[..], more].concat();
    let without = |name: &str| GET.iter().copied().filter(|f| f.0 != name).collect::<Vec<_>>();
    let instead = |name: &'static str, value: &'static str| {
        GET.iter().map(|f| if f.0 == name { (name, value) } else { *f }).collect::<Vec<_>>()
    };
    for fields in [
        without(":method"),
        without(":path"),
        without(":scheme"),
        without(":authority"),
        instead(":path", ""),
        instead(":path", "health"),
        instead(":path", "/health#x"),
        instead(":path", "/health?a#"),
        instead(":path", "#"),
        instead(":path", "/a b"),
        instead(":path", "/a\r\nx: y"),
        instead(":path", "http://b/health"),
        instead(":authority", "a b"),
        instead(":authority", "user@a"),
        instead(":authority", "a\r\nx: y"),
        instead(":scheme", "ftp"),
        with(&[(":path", "/other")]),
        with(&[(":status", "200")]),
        with(&[(":protocol", "websocket")]),
        [&[("x-a", "b")][..], &GET].concat(),
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("keep-alive", "5")]),
        with(&[("proxy-connection", "close")]),
        with(&[("upgrade", "h2c")]),
        with(&[("te", "gzip")]),
        with(&[("x-a", " b")]),
        with(&[("host", "other")]),
        with(&[("host", "a"), ("host", "a")]),
        with(&[("content-length", "5")]),
        with(&[("content-length", "x")]),
        with(&[("content-length", "0"), ("content-length", "1")]),
    ] {
        let mut raw = Raw::connect(proxy.addr());
        raw.send(&head(1, END_STREAM, &fields));
        assert_eq!(raw.fate(1), Fate::Reset(PROTOCOL_ERROR), "{fields:?}");
        raw.send(&head(3, END_STREAM, &GET));
        assert_eq!(raw.fate(3), OK, "after {fields:?}");
    }
    // What has not even the bytes of a field costs the connection (RFC 9113 allows either).
    for fields in [
        instead(":method", "GE T"),
        instead(":method", "GET / HTTP/1.1\r\nx: y"),
        with(&[("X-Upper", "a")]),
        with(&[("x a", "b")]),
        with(&[("", "b")]),
        with(&[("x-a", "b\r\ny: z")]),
        with(&[("x-a", "b\0")]),
    ] {
        let mut raw = Raw::connect(proxy.addr());
        raw.send(&head(1, END_STREAM, &fields));
        assert_eq!(raw.fate(1), Fate::GoAway(PROTOCOL_ERROR), "{fields:?}");
    }
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn a_length_that_lies_costs_its_stream() {
    let (mock, proxy) = house();
    let mut raw = Raw::connect(proxy.addr());
    let five = [&POST[..], &[("content-length", "5")]].concat();
    for (n, (data, flags)) in
        [(&b"four"[..], END_STREAM), (b"sixsix", END_STREAM), (b"sixsix", 0), (b"", END_STREAM)]
            .into_iter()
            .enumerate()
    {
        let id = 1 + 4 * n as u32;
        raw.send(&head(id, 0, &five)).send(&frame(DATA, flags, id, data));
        assert_eq!(raw.fate(id), Fate::Reset(PROTOCOL_ERROR), "{data:?}");
        raw.send(&head(id + 2, 0, &five)).send(&frame(DATA, END_STREAM, id + 2, b"fives"));
        assert_eq!(raw.fate(id + 2), OK, "after {data:?}");
    }
    // Not one of them was whole to the server.
    wait_until("all are over", || mock.stats().in_flight == 0);
    assert!(mock.seen().iter().all(|seen| !seen.body_complete || &*seen.body == b"fives"));
}

#[test]
fn connect_and_trace_are_refused() {
    let (mock, proxy) = house();
    let mut raw = Raw::connect(proxy.addr());
    raw.send(&head(1, END_STREAM, &[(":method", "CONNECT"), (":authority", "a:1")]));
    let trace = [&[(":method", "TRACE")][..], &GET[1..]].concat();
    raw.send(&head(3, END_STREAM, &trace));
    for id in [1, 3] {
        // A literal status: 405 is not in the static table.
        let fate = raw.fate(id);
        assert!(matches!(fate, Fate::Answered(first) if first != 0x88), "{id}: {fate:?}");
    }
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn a_stream_beyond_the_limit_is_refused() {
    let rest = "[limits]\nh2 = { streams = 2 }\n";
    let house = House::plain(Setup { rest, ..Setup::default() });
    let mut raw = Raw::connect(house.proxy.addr());
    raw.until(SETTINGS);
    for id in [1, 3, 5] {
        raw.send(&head(id, 0, &POST));
    }
    assert_eq!(raw.fate(5), Fate::Reset(REFUSED_STREAM));
    raw.send(&frame(DATA, END_STREAM, 1, b"x"));
    assert_eq!(raw.fate(1), OK);
}

/// Sends a flood and looks at what it cost whom.
fn flood(bytes: &[u8]) {
    let house = House::plain(Setup::default());
    let others = house.client();
    let mut streaming = others.chat("interval=20ms,tokens=50", true);
    streaming.head().unwrap();
    let mut raw = Raw::connect(house.proxy.addr());
    raw.until(SETTINGS);
    raw.flood(bytes);
    assert_eq!(raw.goaway(), ENHANCE_YOUR_CALM);
    drop(raw);
    wait_until("the flooded connection is gone", || house.proxy.connections() == 1);
    assert_eq!(others.chat("", false).answer().status, 200);
    assert!(streaming.rest().expect("it ends well").ends_with(b"[DONE]\n\n"));
    house.mock.wait_until(LIMIT, |stats| stats.in_flight == 0).expect("nothing is left behind");
}

#[test]
fn rapid_resets_cost_the_connection() {
    let thinking = [&POST[..], &[("x-mock", "delay=60s"), ("content-length", "0")]].concat();
    let mut bytes = Vec::new();
    for n in 0..2_000 {
        let id = 1 + 2 * n;
        bytes.extend(head(id, END_STREAM, &thinking));
        bytes.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, 8]));
    }
    flood(&bytes);
}

#[test]
fn pings_cost_the_connection() {
    flood(&frame(PING, 0, 0, &[7; 8]).repeat(5_000));
}

#[test]
fn settings_cost_the_connection() {
    flood(&frame(SETTINGS, 0, 0, &[]).repeat(5_000));
}

#[test]
fn priorities_cost_the_connection() {
    flood(&frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]).repeat(5_000));
}

#[test]
fn window_updates_cost_the_connection() {
    flood(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(5_000));
}

#[test]
fn empty_data_costs_the_connection() {
    let mut bytes = head(1, 0, &POST);
    bytes.extend(frame(DATA, 0, 1, &[]).repeat(5_000));
    flood(&bytes);
}

#[test]
fn an_endless_field_block_costs_the_connection() {
    let mut bytes = frame(HEADERS, END_STREAM, 1, &block(&GET));
    for _ in 0..5_000 {
        bytes.extend(frame(CONTINUATION, 0, 1, &block(&[("x-a", "0123456789")])));
    }
    flood(&bytes);
}

#[test]
fn a_field_block_beyond_the_limit_is_refused() {
    // 90 KiB of fields in a few frames: no flood, too much nevertheless.
    let (mock, proxy) = house();
    let mut raw = Raw::connect(proxy.addr());
    let value = "v".repeat(120);
    let many = vec![("x-a", value.as_str()); 110];
    raw.send(&frame(HEADERS, END_STREAM, 1, &block(&GET)));
    for n in 0..6 {
        let last = if n == 5 { END_HEADERS } else { 0 };
        raw.send(&frame(CONTINUATION, last, 1, &block(&many)));
    }
    let fate = raw.fate(1);
    assert_ne!(fate, OK);
    raw.send(&head(3, END_STREAM, &GET));
    assert_eq!(raw.fate(3), OK);
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn a_field_block_that_grows_when_it_is_unpacked_is_refused() {
    // One field of 4000 bytes is put into the table, then named 12000 times, a byte each.
    let (mock, proxy) = house();
    let mut raw = Raw::connect(proxy.addr());
    let mut bytes = block(&GET);
    // A value of 127 + 33 + 30 * 128 bytes.
    bytes.extend_from_slice(&[0x40, 1, b'x', 0x7f, 0x80 | 33, 30]);
    bytes.extend_from_slice(&[b'v'; 4_000]);
    bytes.extend_from_slice(&[0x80 | 62; 12_000]);
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &bytes));
    assert_ne!(raw.fate(1), OK);
    let mut other = Raw::connect(proxy.addr());
    other.send(&head(1, END_STREAM, &GET));
    assert_eq!(other.fate(1), OK);
    assert_eq!(mock.stats().requests_total, 0);
}

#[test]
fn what_breaks_the_protocol_ends_the_connection() {
    let (_mock, proxy) = house();
    for (bytes, code) in [
        // DATA on a stream that was never opened.
        (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        // A frame beyond the size we allow.
        (vec![0xff, 0xff, 0xff, DATA, 0, 0, 0, 0, 1], 6),
        (frame(PING, 0, 0, b"short"), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | END_STREAM, 2, &block(&GET)), PROTOCOL_ERROR),
        // A reference into a table that is empty.
        (frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0x03]), PROTOCOL_ERROR),
    ] {
        let mut raw = Raw::connect(proxy.addr());
        raw.flood(&bytes);
        assert_eq!(raw.goaway(), code, "{bytes:?}");
    }
    proxy.wait_until_empty();
}
