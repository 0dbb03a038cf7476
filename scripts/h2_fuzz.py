#!/usr/bin/env python3
"""Frames that no good client sends: seeded HTTP/2 fuzz at the level of frames, and floods.

usage: scripts/h2_fuzz.py [--cases 20000] [--seed 1] [--from 0] [--jobs 4] [--rss-kb 32768] [--no-floods]
                          [--against nginx]

Proves: whatever comes after the preface, by prior knowledge, the connection ends and nothing hangs; a request
with fields that could not stand in HTTP/1.1 gets no 2xx; nothing is smuggled to the server behind, which reads
strictly and writes down what it would not have been sent; afterwards a normal request is answered, and
connections, descriptors and memory are back where they were; no panic. A flood costs the attacker its
connection within bounds, while another connection's requests all succeed.

Every case follows from its seed and number; a failure prints both: `--seed S --from N --cases 1` is that case.
Needs: python3 with venv (and pip at the first use), the binaries of bed.py. 20,000 cases take about two minutes.
With --against nginx what nginx takes differently is told as a note, not a failure.
"""
import bed

bed.in_environment()

import argparse
import asyncio
import contextlib
import multiprocessing
import os
import random
import re
import select
import signal
import socket
import struct
import threading
import time
from collections import Counter

import hpack
from hyperframe.frame import (ContinuationFrame, DataFrame, Frame, GoAwayFrame, HeadersFrame, PingFrame, PriorityFrame,
                              PushPromiseFrame, RstStreamFrame, SettingsFrame, WindowUpdateFrame)

from bed import Checks, Listener, Setup, Tokenring, Upstream, expect, until

parser = argparse.ArgumentParser()
parser.add_argument("--cases", type=int, default=20_000)
parser.add_argument("--seed", type=int, default=1)
parser.add_argument("--from", type=int, default=0, dest="first")
parser.add_argument("--jobs", type=int, default=4)
parser.add_argument("--rss-kb", type=int, default=32 * 1024)
parser.add_argument("--no-floods", action="store_true")
parser.add_argument("--against", default="")
args = parser.parse_args()
SUBJECT = bed.subject()
OURS = SUBJECT is Tokenring
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = SettingsFrame(0).serialize()
BODY = b'{"model":"m","messages":[]}'


# ------------------------------------------------------ the server behind it

LINE = re.compile(rb"[A-Z]+ /[\x21-\x7e]* HTTP/1\.1\Z")
FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: ?[\t\x20-\x7e\x80-\xff]*\Z")


def serve(port_out, faults):
    """Answers 200; writes down every request that is not what HTTP/1.1 says, or that nobody sent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    async def connection(reader, writer):
        said = b""
        try:
            while True:
                said = await reader.readuntil(b"\r\n\r\n")
                line, *fields = said[:-4].split(b"\r\n")
                names = [field.split(b":")[0].lower() for field in fields]
                wrong = [field for field in fields if not FIELD.match(field)]
                lengths = [field.split(b":")[1].strip() for field in fields if field.lower().startswith(b"content-length:")]
                chunked = b"transfer-encoding" in names
                if not LINE.match(line) or wrong or names.count(b"host") != 1 or len(lengths) + chunked > 1 or b"smuggled" in line:
                    faults.put(said[:400])
                if chunked:
                    while size := int(await reader.readuntil(b"\r\n"), 16):
                        await reader.readexactly(size + 2)
                    while (await reader.readuntil(b"\r\n")).strip():
                        pass
                elif lengths:
                    await reader.readexactly(int(lengths[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass  # Cut off: that is how an abort looks.
        except (ValueError, asyncio.LimitOverrunError) as why:
            faults.put(repr(why).encode() + b" after " + said[:300])
        except OSError:
            pass
        finally:
            writer.close()

    async def main():
        server = await asyncio.start_server(connection, "127.0.0.1", 0, limit=1 << 20, backlog=1024)
        port_out.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


# ---------------------------------------------------------------- good openings


def head(rng=None, path="/back/x", method="POST", extra=(), authority="localhost"):
    return [(":method", method), (":scheme", "http"), (":authority", authority), (":path", path), ("user-agent", "fuzz"), *extra]


def block(fields):
    """HPACK without state: literals without indexing, so that nothing is tidied up on the way."""
    out = b""
    for name, value in fields:
        out += b"\x00" + integer(name) + integer(value)
    return out


def integer(text):
    """A string literal without Huffman code."""
    raw = text if isinstance(text, bytes) else text.encode("latin-1")
    if len(raw) < 127:
        return bytes([len(raw)]) + raw
    rest, out = len(raw) - 127, b"\x7f"
    while rest >= 128:
        out += bytes([rest % 128 | 128])
        rest //= 128
    return out + bytes([rest]) + raw


def headers(stream, fields, *flags):
    return HeadersFrame(stream, block(fields), flags=["END_HEADERS", *flags]).serialize()


def data(stream, blob, *flags):
    return DataFrame(stream, blob, flags=list(flags)).serialize()


def opening(rng):
    """A few good requests as a list of serialized frames."""
    frames, stream = [], 1
    for _ in range(rng.randrange(1, 4)):
        kind = rng.randrange(4)
        if kind == 0:
            frames.append(headers(stream, head(method="GET"), "END_STREAM"))
        elif kind == 1:
            frames += [headers(stream, head()), data(stream, BODY), data(stream, b"", "END_STREAM")]
        elif kind == 2:
            frames += [headers(stream, head(extra=[("content-length", str(len(BODY)))])), data(stream, BODY, "END_STREAM")]
        else:
            whole = block(head())
            cut = rng.randrange(1, len(whole))
            frames.append(HeadersFrame(stream, whole[:cut]).serialize())
            frames.append(ContinuationFrame(stream, whole[cut:], flags=["END_HEADERS"]).serialize())
            frames += [data(stream, BODY), headers(stream, [("x-trailer", "v")], "END_STREAM")]
        stream += 2
    return frames


# ------------------------------------------------------------------- mutations


def raw_frame(kind, flags, stream, payload, length=None):
    length = len(payload) if length is None else length
    return struct.pack(">I", length & 0xFFFFFF)[1:] + bytes([kind & 255, flags & 255]) + struct.pack(">I", stream & 0xFFFFFFFF) + payload


def mutate(rng, frames):
    """Some harm to a list of frames."""
    frames = list(frames)
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(frames))
        frame = bytearray(frames[at]).ljust(9, b"\0")  # What was cut short before has a head again.
        match rng.randrange(14):
            case 0:  # Another length.
                frame[0:3] = rng.choice([b"\0\0\0", b"\xff\xff\xff", b"\0\x40\x01", rng.randbytes(3), bytes([0, 0, rng.randrange(256)])])
            case 1:  # Another stream.
                frame[5:9] = struct.pack(">I", rng.choice([0, 1, 2, 3, 5, 7, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)]))
            case 2:  # Another kind.
                frame[3] = rng.choice([*range(11), 255, rng.randrange(256)])
            case 3:  # Other flags.
                frame[4] = rng.randrange(256)
            case 4:  # Other bytes.
                for _ in range(rng.randrange(1, 8)):
                    frame[rng.randrange(len(frame))] = rng.randrange(256)
            case 5:  # Cut short, with or without the length to it.
                frame = frame[: rng.randrange(1, len(frame) + 1)]
                if len(frame) >= 9 and rng.random() < 0.5:
                    frame[0:3] = struct.pack(">I", len(frame) - 9)[1:]
            case 6:  # HPACK garbage.
                frame = bytearray(raw_frame(1, rng.choice([4, 5]), rng.choice([1, 3, 5, 7]), rng.randbytes(rng.randrange(0, 200))))
            case 7:
                frames.insert(at, frames[rng.randrange(len(frames))])
                continue
            case 8:
                other = rng.randrange(len(frames))
                frames[at], frames[other] = frames[other], frames[at]
                continue
            case 9:
                frames.insert(at, odd_frame(rng))
                continue
            case 10:
                del frames[at]
                if not frames:
                    frames.append(odd_frame(rng))
                continue
            case 11:  # Padding that is longer than the frame.
                frame[4] |= 8
            case 12:
                frames.insert(at, rng.randbytes(rng.randrange(1, 60)))
                continue
            case 13:
                frame = frame + rng.randbytes(rng.randrange(1, 20))
        frames[at] = bytes(frame)
    return frames


def odd_frame(rng):
    """A frame that may or may not stand there."""
    stream = rng.choice([0, 1, 1, 3, 3, 5, 9, 2, 2**31 - 1])
    setting = rng.randrange(0, 9)
    value = rng.choice([0, 1, 2, 100, 16383, 16384, 65535, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1])
    return rng.choice([
        lambda: raw_frame(4, 0, rng.choice([0, 0, 0, 1]), struct.pack(">HI", setting, value)),
        lambda: raw_frame(4, rng.choice([0, 1]), 0, rng.randbytes(rng.randrange(0, 13))),
        lambda: raw_frame(6, rng.choice([0, 1]), stream, rng.randbytes(rng.choice([8, 8, 7, 9, 0]))),
        lambda: raw_frame(3, 0, stream, struct.pack(">I", rng.randrange(20))),
        lambda: raw_frame(8, 0, stream, struct.pack(">I", rng.choice([0, 1, 65535, 2**31 - 1, 2**31, 2**32 - 1]))),
        lambda: raw_frame(2, 0, stream, struct.pack(">IB", rng.choice([0, stream, 1, 2**31 | stream]), rng.randrange(256))),
        lambda: raw_frame(7, 0, rng.choice([0, 0, 1]), struct.pack(">II", stream, rng.randrange(20)) + rng.randbytes(rng.randrange(9))),
        lambda: raw_frame(5, 4, stream, struct.pack(">I", rng.choice([2, 4])) + block(head())),
        lambda: raw_frame(9, rng.choice([0, 4]), stream, block(head())),
        lambda: raw_frame(0, rng.choice([0, 1, 8, 9]), stream, rng.randbytes(rng.randrange(0, 40))),
        lambda: raw_frame(0, 0, stream, b"x" * rng.choice([16384, 16385])),
        lambda: raw_frame(rng.randrange(10, 256), rng.randrange(256), stream, rng.randbytes(rng.randrange(0, 40))),
        lambda: raw_frame(1, 0x24 | rng.choice([0, 1, 8]), stream, struct.pack(">IB", stream, 16) + block(head())),
        lambda: raw_frame(1, 5, stream, b"\x3f\xe1\xff\xff\xff\xff\x0f" + block(head())),
        lambda: raw_frame(1, 5, stream, bytes([0x80 | rng.randrange(0, 128)]) * rng.randrange(1, 20)),
    ])()


SMUGGLE = "\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"


def bad_request(rng):
    """One request that may not be answered with 2xx; returns its name and its frames."""
    def swap(name, value):
        return [(k, value if k == name else v) for k, v in head()]

    good = head()
    length = ("content-length", str(len(BODY)))
    control = rng.choice(["\r", "\n", "\0", "\r\n", SMUGGLE])
    bad_heads = {
        "no :method": good[1:],
        "no :path": good[:3] + good[4:],
        "no :scheme": good[:1] + good[2:],
        "an empty :path": swap(":path", ""),
        "a :path without a slash": swap(":path", "back/x"),
        "control in :path": swap(":path", "/back/" + control),
        "a blank in :path": swap(":path", "/back/x HTTP/1.1"),
        "control in :method": swap(":method", "GET" + control),
        "a blank in :method": swap(":method", "GET /smuggled"),
        "control in :authority": swap(":authority", "localhost" + control),
        "credentials in :authority": swap(":authority", "user@localhost"),
        "control in :scheme": swap(":scheme", "http" + control),
        "two :path": [*good[:4], (":path", "/back/smuggled"), *good[4:]],
        "two :method": [(":method", "GET"), *good],
        "two :authority": [(":authority", "other"), *good],
        "a pseudo field after a regular one": [*good[:3], good[4], good[3]],
        "an unknown pseudo field": [(":smuggled", "1"), *good],
        "a pseudo field of answers": [(":status", "200"), *good],
        "an upper-case name": [*good, ("X-Upper", "1")],
        "an empty name": [*good, ("", "1")],
        "a name with a blank": [*good, ("x name", "1")],
        "a name with a colon": [*good, ("x:name", "1")],
        "control in a name": [*good, ("x" + control, "1")],
        "control in a value": [*good, ("x-value", "a" + control + "b")],
        "connection": [*good, ("connection", rng.choice(["close", "keep-alive", "x-a"]))],
        "transfer-encoding": [*good, ("transfer-encoding", "chunked")],
        "keep-alive": [*good, ("keep-alive", "timeout=1")],
        "proxy-connection": [*good, ("proxy-connection", "close")],
        "upgrade": [*good, ("upgrade", "websocket")],
        "te other than trailers": [*good, ("te", "gzip")],
        "host against :authority": [*good, ("host", "other.example")],
        "two hosts": [*good, ("host", "localhost"), ("host", "other")],
        "two content-lengths": [*good, length, ("content-length", "3")],
        "a content-length that is no number": [*good, ("content-length", rng.choice(["-1", "+5", "5,5", "0x10", "", "5 5", "99999999999999999999999"]))],
    }
    bad_bodies = {
        "a content-length too long": (rng.choice([len(BODY) + 1, 10**6]), [data(1, BODY, "END_STREAM")]),
        "a content-length too short": (len(BODY) - 3, [data(1, BODY, "END_STREAM")]),
        "a content-length and no body": (5, None),
        "a content-length of nothing and a body": (0, [data(1, BODY, "END_STREAM")]),
        "a pseudo field in trailers": (None, [data(1, BODY), headers(1, [(":path", "/smuggled")], "END_STREAM")]),
        "control in trailers": (None, [data(1, BODY), headers(1, [("x-t", "a" + control)], "END_STREAM")]),
        "trailers that do not end": (None, [data(1, BODY), headers(1, [("x-t", "a")])]),
        "framing in trailers": (None, [data(1, BODY), headers(1, [("transfer-encoding", "chunked")], "END_STREAM")]),
    }
    name = rng.choice([*bad_heads, *bad_bodies])
    if name in bad_heads:
        if rng.random() < 0.5:
            return name, [headers(1, bad_heads[name], "END_STREAM")]
        return name, [headers(1, bad_heads[name]), data(1, BODY, "END_STREAM")]
    promised, rest = bad_bodies[name]
    fields = head(extra=[] if promised is None else [("content-length", str(promised))])
    return name, [headers(1, fields, "END_STREAM")] if rest is None else [headers(1, fields), *rest]


# These are refused or set right, whichever; the strict server behind judges what comes through.
EITHER_WAY = {"keep-alive", "te other than trailers", "a pseudo field in trailers", "trailers that do not end", "framing in trailers", "control in :scheme"}
NGINX_TAKES = {"a pseudo field after a regular one", "credentials in :authority", "connection", "transfer-encoding", "proxy-connection", "upgrade", "host against :authority", "no :scheme",
               "a pseudo field in trailers", "control in trailers", "an unknown pseudo field", "two :authority", "a content-length and no body",
               "a content-length that is no number", "a name with a blank", "an empty name", "a name with a colon"}


# ------------------------------------------------------------------- one case


def converse(port, blob, limit=8.0):
    """Sends, ends its own side, and reads to the end; raises TimeoutError where the other side never ends."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.settimeout(limit)
        with contextlib.suppress(ConnectionError):
            sock.sendall(blob)
            try:
                sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has been reset by now, which is an answer, too
        with contextlib.suppress(ConnectionError):
            while piece := sock.recv(65536):
                got += piece
    return got


def exchange(port, frames, limit=8.0):
    """Sends, and reads until stream 1 is answered or refused, without ending its own side before."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.settimeout(limit)
        with contextlib.suppress(ConnectionError):
            sock.sendall(PREFACE + SETTINGS + b"".join(frames))
            while piece := sock.recv(65536):
                got += piece
                kinds = [(kind, flags, stream) for kind, flags, stream, _ in parse(got)]
                if any(stream == 1 and (kind == 3 or flags & 1 and kind < 2) or kind == 7 for kind, flags, stream in kinds):
                    break
    return got


def parse(blob):
    """Frames of what came back, as (kind, flags, stream, payload); an unfinished one is left out."""
    at = 0
    while at + 9 <= len(blob):
        length, kind, flags = int.from_bytes(blob[at:at + 3], "big"), blob[at + 3], blob[at + 4]
        if at + 9 + length > len(blob):
            return
        yield kind, flags, int.from_bytes(blob[at + 5:at + 9], "big") & 0x7FFFFFFF, blob[at + 9:at + 9 + length]
        at += 9 + length


def statuses(blob):
    """Statuses by stream."""
    decoder, found = hpack.Decoder(), {}
    for kind, flags, stream, payload in parse(blob):
        if kind == 1:
            with contextlib.suppress(hpack.HPACKError):
                for name, value in decoder.decode(payload):
                    if name == ":status":
                        found.setdefault(stream, []).append(int(value))
    return found


def case(port, seed, number):
    """One case; returns what is wrong, or nothing."""
    rng = random.Random(f"{seed}/{number}")
    if rng.random() < 0.35:
        name, frames = bad_request(rng)
        what = f"bad request: {name}"
    else:
        frames = mutate(rng, opening(rng))
        name, what = "", "mutated frames"
    start = PREFACE + SETTINGS
    if not name and rng.random() < 0.03:
        harmed = bytearray(start)
        harmed[rng.randrange(len(harmed))] = rng.randrange(256)
        start = bytes(harmed)
    try:
        if name and name not in EITHER_WAY and name not in ("a content-length and no body",):
            answer = statuses(exchange(port, frames)).get(1, [])
            if any(200 <= status < 300 for status in answer):
                return f"{what}: answered with {answer}"
        else:
            converse(port, start + b"".join(frames))
    except TimeoutError:
        return f"{what}: no end within 8 s"
    except OSError as why:
        return f"{what}: {why!r}"
    return None


def worker(port, seed, numbers, results):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in numbers:
        results.put((number, case(port, seed, number)))


def good(port):
    """Whether a normal request is answered with 200, on both kinds of connection."""
    frames = [headers(1, head()), data(1, BODY, "END_STREAM")]
    answer = statuses(exchange(port, frames, 5)).get(1)
    return answer == [200]


# --------------------------------------------------------------------- floods


class Victim:
    """A connection that goes on asking; every request must be answered."""

    def __init__(self, port):
        self.port, self.asked, self.failed, self.slowest = port, 0, [], 0.0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as sock:
                sock.settimeout(5)
                sock.sendall(PREFACE + SETTINGS)
                stream, got = 1, b""
                while not self.done.is_set():
                    started = time.monotonic()
                    sock.sendall(headers(stream, head(), ) + data(stream, BODY, "END_STREAM"))
                    self.asked += 1
                    while not any(s == stream and f & 1 for k, f, s, _ in parse(got)):
                        piece = sock.recv(65536)
                        expect(piece, "closed")
                        got += piece
                    expect(statuses_any(got, stream), "no 200")
                    self.slowest = max(self.slowest, time.monotonic() - started)
                    got, stream = b"", stream + 2
                    if stream % 20 == 1:  # Window for what was read.
                        sock.sendall(WindowUpdateFrame(0, window_increment=65535).serialize())
                    self.done.wait(0.02)
        except Exception as why:  # noqa: BLE001
            self.failed.append(repr(why))

    def verdict(self):
        self.done.set()
        self.thread.join(10)
        expect(not self.failed and self.asked > 0, f"the other connection: {self.failed} after {self.asked} requests")
        expect(self.slowest < 2 or not OURS, f"the other connection waited {self.slowest:.1f} s")


def statuses_any(got, stream):
    """The answer's head is there and no reset; its HPACK state is not followed over requests."""
    return any(k == 1 and s == stream for k, _, s, _ in parse(got)) and not any(k == 3 and s == stream for k, _, s, _ in parse(got))


def flood(port, make, limit, seconds=15):
    """Sends what `make` gives until the connection closes. Returns (closed, frames sent)."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.setblocking(False)
        queue = PREFACE + SETTINGS
        end = time.monotonic() + seconds
        frames = make()
        while time.monotonic() < end:
            if len(queue) < 1 << 15 and sent < limit:
                batch = []
                for _ in range(100):
                    piece = next(frames, None)
                    if piece is None:
                        sent = limit
                        break
                    batch.append(piece)
                    sent += 1
                queue += b"".join(batch)
            readable, writable, _ = select.select([sock], [sock] if queue else [], [], 0.5)
            try:
                if readable and not sock.recv(1 << 16):
                    return True, sent
                if writable:
                    queue = queue[sock.send(queue):]
            except BlockingIOError:
                pass
            except ConnectionError:
                return True, sent
            if not queue and sent >= limit and not readable:
                # Everything is said; what does not close within the rest of the time stays.
                end = min(end, time.monotonic() + 3)
    return False, sent


def streams():
    return iter(range(1, 2**31, 2))


def rapid_reset():
    for stream in streams():
        yield headers(stream, head())
        yield RstStreamFrame(stream, error_code=8).serialize()


def made_to_reset():
    """Streams that the other side must reset by itself (CVE-2025-8671)."""
    for stream in streams():
        yield headers(stream, head())
        yield raw_frame(8, 0, stream, struct.pack(">I", 0))


def bad_heads():
    for stream in streams():
        yield headers(stream, [*head(), ("connection", "close")], "END_STREAM")


def continuations():
    yield HeadersFrame(1, block(head())).serialize()
    while True:
        yield ContinuationFrame(1, b"\x00" + integer("x-a") + integer("b" * 200)).serialize()


def empty_continuations():
    yield HeadersFrame(1, block(head())).serialize()
    while True:
        yield ContinuationFrame(1, b"").serialize()


def settings():
    while True:
        yield SettingsFrame(0, settings={4: 65535}).serialize()


def pings():
    while True:
        yield PingFrame(0, opaque_data=b"flooding").serialize()


def empty_data():
    yield headers(1, head())
    while True:
        yield data(1, b"")


def padded_data():
    yield headers(1, head())
    while True:
        yield raw_frame(0, 8, 1, b"\x10" + bytes(16))


def empty_headers():
    for stream in streams():
        yield raw_frame(1, 5, stream, b"")


def priorities():
    for number in range(1, 2**30):
        yield PriorityFrame(2 * (number % 1000) + 1, depends_on=0, stream_weight=number % 256).serialize()


def windows():
    yield headers(1, head())
    while True:
        yield WindowUpdateFrame(0, window_increment=1).serialize()


def window_of_zero():
    yield raw_frame(8, 0, 0, struct.pack(">I", 0))


def window_overflow():
    for _ in range(3):
        yield WindowUpdateFrame(0, window_increment=2**31 - 1).serialize()


def unknown_frames():
    while True:
        yield raw_frame(0xEE, 0, 0, b"")


# name, frames, how many at most, whether the connection has to go
FLOODS = [
    ("rapid reset (CVE-2023-44487)", rapid_reset, 20_000, True),
    ("resets that we are made to send (CVE-2025-8671)", made_to_reset, 20_000, True),
    ("malformed requests", bad_heads, 20_000, True),
    ("continuations without end (CVE-2024-27316)", continuations, 20_000, True),
    ("empty continuations", empty_continuations, 20_000, True),
    ("heads without fields", empty_headers, 20_000, True),
    ("settings (CVE-2019-9515)", settings, 50_000, True),
    ("pings (CVE-2019-9512)", pings, 50_000, True),
    ("empty data (CVE-2019-9518)", empty_data, 50_000, True),
    ("data of padding alone", padded_data, 50_000, True),
    ("priorities (CVE-2019-9513)", priorities, 100_000, True),
    ("window updates of 1", windows, 200_000, False),
    ("unknown frames", unknown_frames, 200_000, False),
    ("a window update of 0", window_of_zero, 1, True),
    ("windows beyond 2^31-1", window_overflow, 3, True),
]
# nginx 1.22 is older than some of these and lets others pass by design.
NGINX_STAYS = {"empty continuations", "rapid reset (CVE-2023-44487)", "malformed requests", "heads without fields", "empty data (CVE-2019-9518)", "data of padding alone",
               "resets that we are made to send (CVE-2025-8671)", "settings (CVE-2019-9515)", "pings (CVE-2019-9512)", "priorities (CVE-2019-9513)"}


def special(check, port, proxy):
    """What is not a stream of frames."""
    with check("a head of 1 MB of fields: refused, not answered with 200"):
        fields = head(extra=[(f"x-{n}", "v" * 4000) for n in range(250)])
        whole = block(fields)
        frames = [HeadersFrame(1, whole[:16000]).serialize()]
        frames += [ContinuationFrame(1, whole[at:at + 16000]).serialize() for at in range(16000, len(whole), 16000)]
        frames.append(ContinuationFrame(1, b"", flags=["END_HEADERS"]).serialize())
        answer = statuses(exchange(port, [*frames, data(1, BODY, "END_STREAM")])).get(1, [])
        expect(all(status >= 400 for status in answer), answer)
    with check("an HPACK bomb (4 KB in the table, named 3000 times): refused, and no memory for it"):
        before = proxy.rss_kb()
        bomb = block(head()) + b"\x40" + integer("x-bomb") + integer("b" * 3900) + b"\xbe" * 3000
        answer = statuses(exchange(port, [HeadersFrame(1, bomb, flags=["END_HEADERS", "END_STREAM"]).serialize()])).get(1, [])
        expect(all(status >= 400 for status in answer), answer)
        expect(proxy.rss_kb() - before < args.rss_kb, f"grew by {proxy.rss_kb() - before} KB")
    with check("5000 streams at a time: the most that are allowed are served, the others refused"):
        before = proxy.rss_kb()
        blob = b"".join(headers(2 * n + 1, head()) for n in range(5000))
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.settimeout(1)
            with contextlib.suppress(OSError):
                sock.sendall(PREFACE + SETTINGS + blob)
            got = b""
            with contextlib.suppress(OSError):
                while piece := sock.recv(1 << 16):
                    got += piece
            kinds = {kind for kind, _, _, _ in parse(got)}
            expect(3 in kinds or 7 in kinds or sock.fileno() < 0 or not got, f"neither reset nor goaway: {kinds}")
            expect(proxy.rss_kb() - before < args.rss_kb, f"grew by {proxy.rss_kb() - before} KB")
    with check("a window of nothing and 100 answers: bounded, and gone with the connection"):
        before = proxy.rss_kb()
        start = SettingsFrame(0, settings={4: 0}).serialize()
        blob = b"".join(headers(2 * n + 1, head()) + data(2 * n + 1, BODY, "END_STREAM") for n in range(100))
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(PREFACE + start + blob)
            time.sleep(1)  # The time in which it must not grow.
            expect(proxy.rss_kb() - before < args.rss_kb, f"grew by {proxy.rss_kb() - before} KB")
            expect(good(port), "a normal request")
    with check("a preface in pieces of one byte is answered"):
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(5)
            for byte in PREFACE + SETTINGS + headers(1, head()) + data(1, BODY, "END_STREAM"):
                sock.send(bytes([byte]))
            got = b""
            while 1 not in statuses(got):
                piece = sock.recv(65536)
                expect(piece, "closed")
                got += piece
            expect(statuses(got)[1] == [200], statuses(got))


def floods(check, port, proxy):
    special(check, port, proxy)
    for name, make, limit, must_go in FLOODS:
        with check(f"flood: {name}", limit=40):
            before = proxy.rss_kb()
            victim = Victim(port)
            until("the other connection's first answer", 5, lambda: victim.asked > 1 or victim.failed)
            cpu, started = proxy.cpu_seconds(), time.monotonic()
            closed, sent = flood(port, make, limit)
            spent = proxy.cpu_seconds() - cpu
            took = time.monotonic() - started
            victim.verdict()
            expect(proxy.rss_kb() - before < args.rss_kb, f"grew by {proxy.rss_kb() - before} KB")
            told = f"{sent} frames, {took:.1f} s, {spent:.2f} s of CPU"
            if not OURS and name in NGINX_STAYS:
                check.skip("       its connection", f"{'closed' if closed else 'stays'}, as nginx has it; {told}")
            else:
                expect(closed or not must_go, f"the attacker stays: {told}")
            print(f"      {'closed' if closed else 'open'} after {told}")


# ----------------------------------------------------------------------- main


def fuzz(check, port, proxy, faults):
    """The cases, `jobs` at a time; after every 500 a normal request."""
    results = multiprocessing.Queue()
    numbers = range(args.first, args.first + args.cases)
    pool = [multiprocessing.Process(target=worker, args=(port, args.seed, numbers[n::args.jobs], results), daemon=True) for n in range(args.jobs)]
    for process in pool:
        process.start()
    wrong, notes, done = [], {}, 0
    with check(f"{args.cases} cases of seed {args.seed}", limit=3600):
        try:
            while done < args.cases:
                number, fault = results.get(timeout=60)
                done += 1
                name = fault.split(": ")[1] if fault else ""
                if fault and not OURS and name in NGINX_TAKES:
                    notes[name] = notes.get(name, 0) + 1
                elif fault:
                    wrong.append(number)
                    if len(wrong) <= 20:
                        print(f"      case {number} (--seed {args.seed} --from {number} --cases 1): {fault}", flush=True)
                if done % 500 == 0:
                    expect(proxy.alive(), f"the proxy ended after about case {number}: {proxy.log()[-500:]}")
                    expect(good(port), f"a normal request is not answered after about case {number}")
                if done % 5000 == 0:
                    print(f"      {done} cases, {proxy.rss_kb()} KB", flush=True)
        finally:
            for process in pool:
                process.terminate()
        for name, count in sorted(notes.items()):
            print(f"note  nginx takes {name}: {count} times")
        expect(not wrong, f"{len(wrong)} cases failed, the first {wrong[:5]}")
    with check("the server behind was sent nothing but HTTP/1.1"):
        seen = []
        while not faults.empty():
            seen.append(faults.get())
        if OURS:
            expect(not seen, f"{len(seen)} faults, such as {seen[:2]}")
        else:
            print(f"note  nginx sent {len(seen)}")


def main():
    check = Checks()
    ports, faults = multiprocessing.Queue(), multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(ports, faults), daemon=True)
    server.start()
    listener = Listener(timeouts={"client_head": "5s", "client_body_idle": "5s"} if OURS else {})
    proxy = SUBJECT(Setup([listener], [Upstream("back", f"http://127.0.0.1:{ports.get(timeout=10)}")], pool_idle="5s"), log_level="error")
    port = listener.port
    with check("a normal request before all"):
        until("200", 5, lambda: good(port))
    for number in range(-300, 0):  # Warm: what is allocated once is not counted.
        case(port, args.seed, number)
    until("the warm-up's connections are gone", 10, lambda: count_connections(port) == 0)
    descriptors, memory = proxy.fds(), proxy.rss_kb()
    fuzz(check, port, proxy, faults)
    if not args.no_floods:
        floods(check, port, proxy)
    with check("a normal request after all"):
        expect(good(port), "not answered")
    with check("connections are back at none"):
        until("no connection", 15, lambda: count_connections(port) == 0)
    with check("descriptors are back where they were"):
        # Idle connections to the server behind go after 5 s; nginx keeps 64.
        room = 2 if OURS else 64
        try:
            until(f"{descriptors} and at most {room} more", 15, lambda: proxy.fds() <= descriptors + room)
        except TimeoutError as why:
            flight = re.findall(r"^tokenring_in_flight.*", proxy.metrics(), re.M) if OURS else ""
            raise AssertionError(f"{why}, but {proxy.fds()}; {flight}; by state {Counter(s[2] for s in proxy.sockets())}, client port {port}: "
                                 f"{proxy.sockets()[:12]}") from why
    with check(f"memory grew by less than {args.rss_kb} KB"):
        grown = proxy.rss_kb() - memory
        print(f"      {memory} KB before, {grown:+} KB since")
        expect(grown < args.rss_kb, f"{grown} KB")
    with check("no panic"):
        expect(proxy.alive() and proxy.panics() == 0, f"{proxy.panics()}: {proxy.log()[-600:]}")
    proxy.stop()
    server.kill()
    check.end()


def count_connections(port):
    """Connections of the proxy's port that are not closed yet, in any state but TIME_WAIT."""
    local = f"0100007F:{port:04X}"
    rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
    return sum(row[1] == local and row[3] in ("01", "08", "09", "04", "05") and row[9] != "0" for row in rows)


main()
