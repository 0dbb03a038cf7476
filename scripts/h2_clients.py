#!/usr/bin/env python3
"""HTTP/2 on both sides of the proxy, with clients and servers that others wrote.

usage: scripts/h2_clients.py [--against nginx]

Proves, towards clients: curl, h2load, httpx and the OpenAI SDK get what they ask for, over TLS and by prior
knowledge; uploads of 200 KB and 200 MB to a server that reads slowly, and readers that do not read, hold a
bounded amount of memory; who leaves is noticed by the server, and a server that dies by the client; a
stopping proxy says so and finishes what it began; trailers and 1xx pass. Towards servers (Python's h2 and
nginx): ALPN and prior knowledge, streams, uploads, resets both ways, GOAWAY, refused streams.

Needs: curl with HTTP/2, h2load (nghttp2-client), nginx, python3 with venv (and pip at the first use), the
binaries of bed.py. About two minutes. ONLY=REGEX runs the parts of that name; KEEP=1 leaves the logs behind.
With --against nginx the parts towards clients run on nginx: it must pass all that are not skipped.
"""
import bed

bed.in_environment()

import asyncio
import contextlib
import hashlib
import json
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import threading
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import httpx
import openai
from hyperframe.frame import GoAwayFrame, SettingsFrame

from bed import Authority, Checks, Listener, Mock, Process, Setup, Tokenring, Upstream, WORK, chat, curl, expect, until

SUBJECT = bed.subject()
OURS = SUBJECT is Tokenring
bed.need("curl", "h2load", "nginx")
check = Checks()
authority = Authority("good")
LOCAL = authority.issue("local", "localhost", ["localhost", "127.0.0.1"])
MB = 1_000_000
GROWTH_KB = 64 * 1024


# ------------------------------------------------------------------ clients


class Seen:
    """What came back on a stream."""

    def __init__(self):
        self.status, self.fields, self.trailers, self.interim = None, [], None, []
        self.data, self.ended, self.reset = bytearray(), False, None

    def __repr__(self):
        return f"status {self.status}, {len(self.data)} bytes, ended {self.ended}, reset {self.reset}"


class Wire:
    """An HTTP/2 connection without a will of its own: it reads and gives window back only when told to."""

    def __init__(self, port, tls=False):
        self.sock = socket.create_connection(("127.0.0.1", port), 5)
        if tls:
            made = ssl.create_default_context(cafile=str(authority.ca))
            made.set_alpn_protocols(["h2"])
            self.sock = made.wrap_socket(self.sock, server_hostname="localhost")
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.streams, self.goaway, self.closed, self.stalled = {}, None, False, set()
        # The package takes GOAWAY for the end of everything; here the streams go on.
        self.h2._frame_dispatch_table[GoAwayFrame] = self.going_away
        self.h2.initiate_connection()
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def request(self, path, method="GET", body=b"", fields=(), end=True, stalled=False):
        stream = self.h2.get_next_available_stream_id()
        self.streams[stream] = Seen()
        if stalled:
            self.stalled.add(stream)
        head = [(":method", method), (":scheme", "https"), (":authority", "localhost"), (":path", path), *fields]
        self.h2.send_headers(stream, head, end_stream=end and not body)
        if body:
            self.h2.send_data(stream, body, end_stream=end)
        self.flush()
        return stream

    def chat(self, **options):
        return self.request("/v1/chat/completions", "POST", chat(**options).encode(), [("content-type", "application/json")])

    def read(self, timeout):
        """Takes what is there; False at the end of the connection."""
        pending = getattr(self.sock, "pending", lambda: 0)()
        if not pending and not select.select([self.sock], [], [], timeout)[0]:
            return True
        try:
            got = self.sock.recv(1 << 18)
        except ConnectionError:
            got = b""
        if not got:
            self.closed = True
            return False
        for event in self.h2.receive_data(got):
            self.take(event)
        with contextlib.suppress(OSError):
            self.flush()
        return True

    def take(self, event):
        seen = self.streams.get(getattr(event, "stream_id", None))
        match event:
            case h2.events.ResponseReceived():
                seen.fields = [(str(k), str(v)) for k, v in event.headers]
                seen.status = int(dict(seen.fields)[":status"])
            case h2.events.InformationalResponseReceived():
                seen.interim.append(int(dict(event.headers)[":status"]))
            case h2.events.DataReceived():
                seen.data += event.data
                if event.stream_id not in self.stalled:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                else:  # The connection's window is given back, the stream's is not.
                    self.h2.increment_flow_control_window(event.flow_controlled_length)
            case h2.events.TrailersReceived():
                seen.trailers = dict(event.headers)
            case h2.events.StreamEnded():
                seen.ended = True
            case h2.events.StreamReset():
                seen.reset = event.error_code

    def going_away(self, frame):
        self.goaway = frame
        return [], []

    def until(self, what, limit, ask):
        end = time.monotonic() + limit
        while not ask():
            expect(time.monotonic() < end, f"{what}: not within {limit} s; {self.streams} goaway {self.goaway}")
            if not self.read(0.02):
                expect(ask(), f"{what}: the connection closed; {self.streams} goaway {self.goaway}")
                return

    def finish(self, stream, limit=10):
        seen = self.streams[stream]
        self.until("the end of the stream", limit, lambda: seen.ended or seen.reset is not None)
        return seen


# ------------------------------------------------------------------ servers


class Plain:
    """An HTTP/1.1 server, a thread by connection, that reads and writes as slowly as the path says.

    /echo, /tell (JSON: head, trailers, length and hash of the body), /slow (the same, 1 MB at a time with rests),
    /held (reads 1 MB, then waits for `go`), /big?N (N bytes; `sent` counts them), /die?N (N bytes, then a reset).
    """

    def __init__(self):
        self.sent, self.taken, self.go = 0, 0, threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock):
        read = sock.makefile("rb", buffering=1 << 16)
        with contextlib.suppress(OSError, ValueError):
            while line := read.readline():
                head = []
                while field := read.readline().strip().decode():
                    head.append(field.split(": ", 1) if ": " in field else [field, ""])
                target = line.split()[1].decode()
                path, _, query = target.partition("?")
                self._answer(sock, read, path.rsplit("/", 1)[-1], query, line.decode().strip(), head)
        sock.close()

    def _answer(self, sock, read, path, query, line, head):
        fields = {k.lower(): v for k, v in head}
        length = 0
        digest = hashlib.sha256()
        for piece in self._body(read, fields, trailers := {}):
            length += len(piece)
            self.taken = length
            digest.update(piece)
            if path == "slow":
                time.sleep(0.008)
            if path == "held" and length >= MB:
                self.go.wait(20)
        if path in ("big", "die"):
            count = int(query)
            promised = count * (2 if path == "die" else 1)
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % promised)
            self.sent, block = 0, b"z" * 65536
            while self.sent < count:
                self.sent += sock.send(block[: count - self.sent])
            if path == "die":
                time.sleep(0.2)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                raise OSError("dead")
            return
        told = json.dumps({"line": line, "head": head, "trailers": trailers, "length": length, "hash": digest.hexdigest()})
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(told) + told.encode())

    def _body(self, read, fields, trailers):
        if "chunked" in fields.get("transfer-encoding", ""):
            while size := int(read.readline(), 16):
                while size:
                    piece = read.read(min(size, MB))
                    expect(piece, "ended in mid-chunk")
                    size -= len(piece)
                    yield piece
                read.readline()
            while field := read.readline().strip().decode():
                key, _, value = field.partition(":")
                trailers[key.lower()] = value.strip()
        left = int(fields.get("content-length", 0))
        while left:
            piece = read.read(min(left, MB))
            expect(piece, "ended in mid-body")
            left -= len(piece)
            yield piece


class Framed:
    """A server that speaks HTTP/2 only, by Python's h2, a thread by connection.

    /tell (JSON of the request; hash of its body), /echo (the body as it comes, its trailers as trailers), /drip
    (20 pieces, 30 ms apart), /big?N, /hang (a piece, then nothing), /die (a piece, then RST_STREAM), /drop (a piece,
    then the connection closes), /goaway (GOAWAY at once, then 10 pieces), /refuse (REFUSED_STREAM the first time),
    /held (window given back only after `go`), /early (413 before the body, then RST_STREAM NO_ERROR).
    """

    def __init__(self, tls=False, streams_max=100):
        self.tls, self.streams_max = tls, streams_max
        self.connections = self.requests = self.sent = self.taken = self.beyond = 0
        self.resets, self.refused, self.go, self.faults = [], set(), threading.Event(), []
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.url = f"http{'s' if tls else ''}://localhost:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            sock, _ = self.listener.accept()
            threading.Thread(target=self._connection, args=(sock,), daemon=True).start()

    def _connection(self, sock):
        if self.tls:
            made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            made.load_cert_chain(*map(str, LOCAL))
            made.set_alpn_protocols(["h2"])
            try:
                sock = made.wrap_socket(sock, server_side=True)
            except OSError:
                return
            if sock.selected_alpn_protocol() != "h2":
                return sock.close()
        self.connections += 1
        number = self.connections
        conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        conn.initiate_connection()
        # Said here and kept in `_take`: the package would end the connection of a client that has not read it yet.
        sock.sendall(conn.data_to_send() + SettingsFrame(0, settings={3: self.streams_max}).serialize())
        streams, jobs, held = {}, {}, []
        with contextlib.suppress(OSError), self.noting():
            while True:
                pending = getattr(sock, "pending", lambda: 0)()
                if pending or select.select([sock], [], [], 0.005 if jobs or held else 0.2)[0]:
                    got = sock.recv(1 << 18)
                    if not got:
                        break
                    for event in conn.receive_data(got):
                        self._take(conn, event, streams, jobs, held, number)
                if held and self.go.is_set():
                    for length, stream in held:
                        conn.acknowledge_received_data(length, stream)
                    held.clear()
                for stream in list(jobs):
                    try:
                        next(jobs[stream])
                    except StopIteration:
                        del jobs[stream]
                    except h2.exceptions.StreamClosedError:
                        del jobs[stream]
                sock.sendall(conn.data_to_send())
        sock.close()

    @contextlib.contextmanager
    def noting(self):
        """What the other side did against the protocol ends the connection, and is kept for a message."""
        try:
            yield
        except h2.exceptions.ProtocolError as why:
            self.faults.append(repr(why))

    def _take(self, conn, event, streams, jobs, held, number):
        stream = getattr(event, "stream_id", None)
        match event:
            case h2.events.RequestReceived():
                self.requests += 1
                if len(jobs) >= self.streams_max:
                    self.beyond += 1
                    return conn.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
                head = [(str(k), str(v)) for k, v in event.headers]
                path, _, query = dict(head)[":path"].partition("?")
                streams[stream] = made = {"head": head, "path": path.rsplit("/", 1)[-1], "query": query, "connection": number,
                                          "length": 0, "hash": hashlib.sha256(), "echo": bytearray(), "trailers": [], "ended": False}
                jobs[stream] = self._job(conn, stream, made)
            case h2.events.DataReceived():
                made = streams.get(stream)
                if not made:
                    return
                made["length"] += len(event.data)
                made["hash"].update(event.data)
                self.taken = made["length"]
                if made["path"] == "echo":
                    made["echo"] += event.data
                if made["path"] == "held" and not self.go.is_set():
                    held.append((event.flow_controlled_length, stream))
                else:
                    with contextlib.suppress(h2.exceptions.StreamClosedError):
                        conn.acknowledge_received_data(event.flow_controlled_length, stream)
            case h2.events.TrailersReceived():
                streams[stream]["trailers"] = [(str(k), str(v)) for k, v in event.headers]
            case h2.events.StreamEnded():
                if stream in streams:
                    streams[stream]["ended"] = True
            case h2.events.StreamReset():
                self.resets.append(event.error_code)
                jobs.pop(stream, None)

    def _job(self, conn, stream, made):
        """Each `yield` is a turn of the connection's loop."""
        path = made["path"]
        ok = [(":status", "200"), ("content-type", "text/event-stream" if path == "drip" else "application/json")]

        def rest(seconds):
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                yield

        def send(data):
            while data:
                room = min(conn.local_flow_control_window(stream), conn.max_outbound_frame_size, len(data))
                if room > 0:
                    conn.send_data(stream, data[:room])
                    self.sent += room
                    data = data[room:]
                else:
                    yield

        if path == "refuse" and made["query"] not in self.refused:
            self.refused.add(made["query"])
            conn.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        if path == "early":
            conn.send_headers(stream, [(":status", "413"), ("content-length", "0")], end_stream=True)
            conn.reset_stream(stream, h2.errors.ErrorCodes.NO_ERROR)
            return
        if path == "echo":
            conn.send_headers(stream, ok)
            while not made["ended"] or made["echo"]:
                piece, made["echo"] = bytes(made["echo"]), bytearray()
                yield from send(piece)
                yield
            if made["trailers"]:
                conn.send_headers(stream, made["trailers"], end_stream=True)
            else:
                conn.end_stream(stream)
            return
        while not made["ended"]:
            yield
        if path in ("drip", "goaway"):
            conn.send_headers(stream, ok)
            if path == "goaway":
                # The package knows GOAWAY only as the end of everything; this one lets the stream go on.
                conn._data_to_send += GoAwayFrame(0, last_stream_id=stream, error_code=0).serialize()
            for number in range(20 if path == "drip" else 10):
                yield from send(b"data: %d\n\n" % number)
                yield from rest(0.03)
            conn.end_stream(stream)
            yield
            if path == "goaway":
                raise OSError("done")
            return
        if path == "big":
            conn.send_headers(stream, ok)
            self.sent, left = 0, int(made["query"])
            while left:
                piece = min(left, 65536)
                yield from send(b"z" * piece)
                left -= piece
            conn.end_stream(stream)
            return
        if path in ("hang", "die", "drop"):
            conn.send_headers(stream, ok)
            yield from send(b"a piece")
            yield from rest(0.2)
            if path == "die":
                conn.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
            elif path == "drop":
                raise OSError("drop")
            return
        told = {key: made[key] for key in ("head", "connection", "length", "trailers")} | {"hash": made["hash"].hexdigest()}
        conn.send_headers(stream, ok)
        yield from send(json.dumps(told).encode())
        conn.end_stream(stream)


class Watch:
    """The most memory that a process held in the meantime, against what it held before."""

    def __init__(self, process):
        self.process = process

    def __enter__(self):
        self.before = self.most = self.process.rss_kb()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while not self.done.wait(0.02):
            self.most = max(self.most, self.process.rss_kb())

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def within(self, limit_kb=GROWTH_KB):
        grown = self.most - self.before
        expect(grown < limit_kb, f"grew by {grown} KB, limit {limit_kb}")
        return grown


# ---------------------------------------------------------- towards clients

mock = Mock("--tokens", "8", "--interval", "0ms")
# An answer of two seconds.
SLOW_PATH = "/v1/chat/completions?mock=interval=20ms,tokens=100"
plain = Plain()


class Stage:
    """The proxy with both kinds of listener and the servers behind it."""

    def __init__(self, drain="30s"):
        self.tls, self.clear = Listener([(*LOCAL, ["localhost"])]), Listener()
        ups = [Upstream("mock", f"http://127.0.0.1:{mock.port}", models=["mock-model"]),
               Upstream("plain", plain.url)]
        self.proxy = SUBJECT(Setup([self.tls, self.clear], ups, drain=drain, limits={"body": "300MB"} if OURS else {}))
        self.urls = [("over TLS", f"https://localhost:{self.tls.port}", ["--cacert", authority.ca]),
                     ("by prior knowledge", f"http://localhost:{self.clear.port}", [])]

    def stop(self):
        with check("no panic, and nothing left open"):
            expect(self.proxy.alive() and self.proxy.panics() == 0, self.proxy.log()[-500:])
            until("no request in flight", 5, lambda: mock.stats()["in_flight"] == 0)
        self.proxy.stop()


def with_curl(stage):
    for way, url, options in stage.urls:
        knows = ["--http2"] if options else ["--http2-prior-knowledge"]
        target = f"{url}/v1/chat/completions"
        with check(f"curl {knows[0]} {way}"):
            got = curl(target, *options, *knows, "-d", chat())
            expect(got.status == 200 and got.version == "2" and b"chat.completion" in got.body, repr(got))
        with check(f"curl {knows[0]} {way}, a stream"):
            got = curl(target, *options, *knows, "-N", "-d", chat(stream=True))
            expect(got.version == "2" and got.body.rstrip().endswith(b"data: [DONE]"), repr(got))
        with check(f"curl {knows[0]} {way}, HEAD, 204, 404"):
            got = curl(f"{url}/mock/mock/stats", *options, *knows, "-I")
            expect(got.code == 0 and got.status in (200, 404), repr(got))
            for status in (204, 404):
                got = curl(f"{target}?mock=status={status}", *options, *knows, "-d", chat())
                expect(got.code == 0 and got.status == status, repr(got))
    # By prior knowledge curl 7.88 fails at this by itself.
    with check("curl --parallel, 50 requests at once over TLS"):
        run = subprocess.run(["curl", "-sS", "--noproxy", "*", "-Z", "--parallel-max", "50", "--cacert", authority.ca, "-d", chat(), "-o", "/dev/null",
                              "-w", "%{http_version} %{http_code}\n", f"{stage.urls[0][1]}/v1/chat/completions?[1-50]"],
                             capture_output=True, text=True, timeout=30)
        expect(run.stdout.splitlines() == ["2 200"] * 50, run.stdout[-100:] + run.stderr[-300:])
    with check("curl --http1.1 over TLS"):
        got = curl(f"{stage.urls[0][1]}/v1/chat/completions", "--cacert", authority.ca, "--http1.1", "-d", chat())
        expect(got.status == 200 and got.version == "1.1", repr(got))
    if OURS:
        with check("HTTP/1.1 on the same plain port"):
            got = curl(f"{stage.urls[1][1]}/v1/chat/completions", "-d", chat())
            expect(got.status == 200 and got.version == "1.1", repr(got))
        with check("Upgrade: h2c is not taken up, the request is answered"):
            got = curl(f"{stage.urls[1][1]}/v1/chat/completions", "--http2", "-d", chat())
            expect(got.status == 200 and got.version == "1.1", repr(got))
        with check("fields arrive as HTTP/1.1 has them: Host, one Cookie, no pseudo fields"):
            with Wire(stage.clear.port) as wire:
                seen = wire.finish(wire.request("/plain/tell", fields=[("cookie", "a=1"), ("cookie", "b=2"), ("te", "trailers"), ("x-own", "v")]))
            told = json.loads(seen.data)
            fields = [(k.lower(), v) for k, v in told["head"]]
            expect(told["line"] == "GET /plain/tell HTTP/1.1", told["line"])
            expect(("host", f"127.0.0.1:{plain.port}") in fields or ("host", "localhost") in fields, fields)
            expect([v for k, v in fields if k == "cookie"] == ["a=1; b=2"] and ("x-own", "v") in fields, fields)
            expect(not any(k.startswith(":") for k, _ in fields), fields)
        with check("fields come back as HTTP/2 has them: lower case, none of the connection's"):
            with Wire(stage.clear.port) as wire:
                seen = wire.finish(wire.request("/plain/tell"))
            expect(all(k == k.lower() for k, _ in seen.fields), seen.fields)
            expect(not {"connection", "transfer-encoding", "keep-alive"} & {k for k, _ in seen.fields}, seen.fields)


def with_h2load(stage):
    body = WORK / "body.json"
    for kind, text in [("plain answers", chat()), ("streams", chat(stream=True))]:
        body.write_text(text)
        for way, url, _ in stage.urls:
            for connections in (1, 8):
                for streams in (1, 32):
                    count = connections * 500
                    with check(f"h2load, {kind} {way}: {connections} × {streams}, {count} requests, none failed"):
                        run = subprocess.run(["h2load", "-n", str(count), "-c", str(connections), "-m", str(streams), "-d", body, "-H",
                                              "content-type: application/json", f"{url}/v1/chat/completions"],
                                             capture_output=True, text=True, timeout=55)
                        expect(re.search(rf"{count} succeeded, 0 failed, 0 errored, 0 timeout", run.stdout)
                               and f"status codes: {count} 2xx" in run.stdout, run.stdout[-900:])


def with_python(stage):
    made = ssl.create_default_context(cafile=str(authority.ca))
    url = f"https://localhost:{stage.tls.port}/v1"
    body = {"messages": [{"role": "user", "content": "hello"}], "model": "mock-model"}
    with check("httpx with HTTP/2"):
        with httpx.Client(http2=True, verify=made, trust_env=False) as client:
            got = client.post(f"{url}/chat/completions", json=body)
            expect(got.status_code == 200 and got.http_version == "HTTP/2" and got.json()["choices"], got.text[:200])
    with check("httpx with HTTP/2, a stream"):
        with httpx.Client(http2=True, verify=made, trust_env=False) as client:
            with client.stream("POST", f"{url}/chat/completions", json=body | {"stream": True}) as got:
                lines = [line for line in got.iter_lines() if line]
            expect(got.http_version == "HTTP/2" and lines[-1] == "data: [DONE]", lines[-2:])
    with check("httpx, 200 requests at once on one connection"):

        async def many():
            limits = httpx.Limits(max_connections=1)
            async with httpx.AsyncClient(http2=True, verify=made, trust_env=False, limits=limits, timeout=30) as client:
                return await asyncio.gather(*(client.post(f"{url}/chat/completions", json=body) for _ in range(200)))

        statuses = [got.status_code for got in asyncio.run(many())]
        expect(statuses == [200] * 200, str(set(statuses)))
    with check("OpenAI SDK over HTTP/2, plain and streamed"):
        with httpx.Client(http2=True, verify=made, trust_env=False) as carrier:
            client = openai.OpenAI(base_url=url, api_key="none", http_client=carrier, max_retries=0)
            expect(client.chat.completions.create(**body).choices[0].message.content, "empty")
            pieces = list(client.chat.completions.create(**body, stream=True))
            expect(pieces and pieces[-1].choices[0].finish_reason, str(pieces[-1:]))
            expect("mock-model" in [model.id for model in client.models.list()] or not OURS, "no model")
    with check("OpenAI SDK as it comes, with SSL_CERT_FILE"):
        text = ("import openai; c = openai.OpenAI(max_retries=0); m = [{'role': 'user', 'content': 'hi'}]\n"
                "print(c.chat.completions.create(messages=m, model='mock-model').choices[0].message.content)\n"
                "print(len(list(c.chat.completions.create(messages=m, model='mock-model', stream=True))))")
        env = {"PATH": "/usr/bin:/bin", "SSL_CERT_FILE": str(authority.ca), "OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "NO_PROXY": "*"}
        run = subprocess.run([bed.sys.executable, "-c", text], capture_output=True, text=True, env=env, timeout=40)
        expect(run.returncode == 0 and int(run.stdout.split()[-1]) > 2, run.stderr[-400:])


def uploads(stage):
    rng = random.Random(9)
    sizes = [("200 KB", rng.randbytes(200_000)), ("200 MB", rng.randbytes(MB) * 200)]
    for size, blob in sizes:
        file = WORK / "upload"
        file.write_bytes(blob)
        digest = hashlib.sha256(blob).hexdigest()
        for way, url, options in stage.urls:
            knows = ["--http2"] if options else ["--http2-prior-knowledge"]
            with check(f"{size} up to a server that reads slowly, {way}: whole, and bounded memory", limit=90):
                curl(f"{url}/plain/tell", *options, *knows, "-d", "x" * 100_000)  # Warm.
                with Watch(stage.proxy) as watch:
                    got = curl(f"{url}/plain/slow", *options, *knows, "-X", "POST", "-T", file, limit=80)
                expect(got.status == 200 and json.loads(got.body)["hash"] == digest, repr(got))
                watch.within()
        if size == "200 KB":
            with check("200 KB up on 20 streams of one connection"):
                run = subprocess.run(["curl", "-sS", "--noproxy", "*", "-Z", "--parallel-max", "20", "--cacert", authority.ca, "--data-binary", f"@{file}",
                                      f"{stage.urls[0][1]}/plain/tell?[1-20]"], capture_output=True, text=True, timeout=40)
                expect(run.stdout.count(digest) == 20, f"{run.stdout.count(digest)} of 20 {run.stderr[-200:]}")
    with check("an upload that the server stops reading is held back, and goes on later", limit=60):
        plain.go.clear()
        url = stage.urls[0][1]
        with Watch(stage.proxy) as watch:
            running = subprocess.Popen(["curl", "-sS", "--noproxy", "*", "--cacert", authority.ca, "--http2", "-X", "POST", "-T", WORK / "upload", "-m", "50",
                                        f"{url}/plain/held"], stdout=subprocess.PIPE)
            until("the first megabyte", 10, lambda: plain.taken >= MB)
            time.sleep(2)  # Not a wait for something: the time in which it must not grow.
            watch.within()
            plain.go.set()
            told = json.loads(running.communicate(timeout=50)[0])
        expect(told["length"] == 200 * MB, told["length"])
        watch.within()
    (WORK / "upload").unlink()


def slow_readers(stage):
    for way, port, tls in [("over TLS", stage.tls.port, True), ("by prior knowledge", stage.clear.port, False)]:
        with check(f"a reader that does not read, {way}: the server is held back, others on the connection are served"):
            with Wire(port, tls) as wire, Watch(stage.proxy) as watch:
                stream = wire.request(f"/plain/big?{200 * MB}", stalled=True)
                wire.until("the window is full", 5, lambda: len(wire.streams[stream].data) >= 65535)
                for _ in range(20):
                    expect(wire.finish(wire.chat()).status == 200, "another stream")
                last, calm = -1, 0
                while calm < 10 and plain.sent < 200 * MB:  # Until the server has stood still for a second.
                    calm, last = (calm + 1, last) if plain.sent == last else (0, plain.sent)
                    time.sleep(0.1)
                expect(plain.sent < 24 * MB, f"the server wrote {plain.sent}")
                watch.within()
        with check(f"40 such streams, {way}: bounded memory"):
            with Wire(port, tls) as wire, Watch(stage.proxy) as watch:
                streams = [wire.request(f"/plain/big?{20 * MB}", stalled=True) for _ in range(40)]
                wire.until("the windows are full", 10, lambda: all(len(wire.streams[s].data) >= 65535 for s in streams))
                expect(wire.finish(wire.chat()).status == 200, "another stream")
                watch.within()
        with check(f"a reader that reads again gets all of it, {way}"):
            with Wire(port, tls) as wire:
                stream = wire.request(f"/plain/big?{20 * MB}", stalled=True)
                wire.until("the window is full", 5, lambda: len(wire.streams[stream].data) >= 65535)
                wire.stalled.clear()
                wire.h2.increment_flow_control_window(65535, stream)
                wire.flush()
                seen = wire.finish(stream, 20)
                expect(seen.ended and len(seen.data) == 20 * MB, repr(seen))
    with check("a client that does not even take its TCP bytes: bounded memory"):
        with Wire(stage.clear.port) as wire, Watch(stage.proxy) as watch:
            wire.h2.increment_flow_control_window(2**30)
            stream = wire.request(f"/plain/big?{200 * MB}", stalled=True)
            wire.h2.increment_flow_control_window(2**30, stream)
            wire.flush()
            time.sleep(2)  # The time in which it must not grow.
            expect(plain.sent < 64 * MB, f"the server wrote {plain.sent}")
            watch.within()


def leaving(stage):
    for way, port, tls in [("over TLS", stage.tls.port, True), ("by prior knowledge", stage.clear.port, False)]:
        for how in ("RST_STREAM", "the end of the connection"):
            with check(f"a client that leaves in mid-stream by {how}, {way}: the server knows within 1 s"):
                with Wire(port, tls) as wire:
                    before = mock.stats()["aborted_total"]
                    stream = wire.request(SLOW_PATH, "POST", chat(stream=True).encode())
                    wire.until("the first token", 5, lambda: b"data:" in wire.streams[stream].data)
                    if how == "RST_STREAM":
                        wire.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
                        wire.flush()
                    else:
                        wire.sock.close()
                    until("the server's abort", 1, lambda: mock.stats()["aborted_total"] > before)
                    if how == "RST_STREAM":
                        expect(wire.finish(wire.chat()).status == 200, "the connection does not go on")
    for fault in ("cut_after=300", "reset_after=300", "cut_after=0", "bad_chunk"):
        with check(f"a server that dies in mid-stream ({fault}): RST_STREAM, not END_STREAM"):
            with Wire(stage.clear.port) as wire:
                stream = wire.request(f"/v1/chat/completions?mock={fault},tokens=50,chunked", "POST", chat().encode())
                seen = wire.finish(stream)
                expect(not seen.ended and seen.reset is not None or seen.status == 502, repr(seen))
                expect(wire.finish(wire.chat()).status == 200, "the connection does not go on")
    with check("a server that dies in the middle of 10 MB: RST_STREAM, not END_STREAM"):
        with Wire(stage.tls.port, True) as wire:
            seen = wire.finish(wire.request(f"/plain/die?{10 * MB}"))
            expect(not seen.ended and seen.reset is not None, repr(seen))


def trailers(stage):
    if not OURS:
        return check.skip("trailers and 1xx", "nginx passes neither")
    with check("trailers of an answer"):
        with Wire(stage.clear.port) as wire:
            seen = wire.finish(wire.request("/v1/chat/completions?mock=trailers", "POST", chat().encode()))
            expect(seen.status == 200 and seen.trailers and len(seen.trailers) == 2, f"{seen!r} {seen.trailers}")
    with check("trailers of a request"):
        with Wire(stage.clear.port) as wire:
            stream = wire.request("/plain/tell", "POST", b"body", end=False)
            wire.h2.send_headers(stream, [("x-check", "sum")], end_stream=True)
            wire.flush()
            told = json.loads(wire.finish(stream).data)
            expect(told["trailers"] == {"x-check": "sum"} and told["length"] == 4, str(told)[:300])
    with check("1xx answers pass"):
        with Wire(stage.clear.port) as wire:
            seen = wire.finish(wire.request("/v1/chat/completions?mock=interim=103", "POST", chat().encode()))
            expect(seen.interim == [103] and seen.status == 200, f"{seen!r} {seen.interim}")
    with check("Expect: 100-continue is answered with 100"):
        with Wire(stage.clear.port) as wire:
            body = chat().encode()
            stream = wire.request("/plain/tell", "POST", fields=[("expect", "100-continue"), ("content-length", str(len(body)))], end=False)
            wire.until("100 or the time a client waits", 5, lambda: wire.streams[stream].interim)
            wire.h2.send_data(stream, body, end_stream=True)
            wire.flush()
            expect(wire.finish(stream).status == 200, repr(wire.streams[stream]))
    with check("an early answer comes while the body is still being sent"):
        with Wire(stage.clear.port) as wire:
            stream = wire.request("/echo?mock=early=413", "POST", b"x" * 16_000, end=False)
            wire.until("413", 5, lambda: wire.streams[stream].status)
            expect(wire.streams[stream].status == 413, repr(wire.streams[stream]))
    with check("CONNECT is refused"):
        with Wire(stage.clear.port) as wire:
            stream = wire.h2.get_next_available_stream_id()
            wire.streams[stream] = Seen()
            wire.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", "localhost:1")], end_stream=True)
            wire.flush()
            seen = wire.finish(stream)
            expect(seen.reset is not None or seen.status >= 400, repr(seen))


def stopping():
    for way, tls in [("over TLS", True), ("by prior knowledge", False)]:
        stage = Stage(drain="20s")
        with check(f"SIGTERM, {way}: GOAWAY at once, the stream goes on to its end, then the process ends"):
            with Wire(stage.tls.port if tls else stage.clear.port, tls) as wire:
                stream = wire.request(SLOW_PATH, "POST", chat(stream=True).encode())
                wire.until("the first token", 5, lambda: b"data:" in wire.streams[stream].data)
                stage.proxy.signal(signal.SIGTERM if OURS else signal.SIGQUIT)
                started = time.monotonic()
                if OURS:
                    wire.until("GOAWAY", 1.5, lambda: wire.goaway)
                    expect(not wire.streams[stream].ended, "the stream was over before")
                    expect(wire.goaway.error_code == 0, wire.goaway)
                seen = wire.finish(stream)
                expect(seen.ended and seen.data.rstrip().endswith(b"data: [DONE]"), repr(seen))
                wire.until("the end of the connection", 5, lambda: wire.closed)
            code = stage.proxy.wait(5)
            expect(code == 0 and time.monotonic() - started < 10, f"code {code}")
        stage.proxy.stop()
    if not OURS:
        return
    stage = Stage(drain="1s")
    with check("SIGTERM and a stream longer than the drain: it is cut with RST_STREAM or the connection, not ended"):
        with Wire(stage.clear.port) as wire:
            stream = wire.request(SLOW_PATH, "POST", chat(stream=True).encode())
            wire.until("the first token", 5, lambda: b"data:" in wire.streams[stream].data)
            stage.proxy.signal(signal.SIGTERM)
            wire.until("the cut", 4, lambda: wire.closed or wire.streams[stream].reset is not None)
            expect(not wire.streams[stream].ended, repr(wire.streams[stream]))
        stage.proxy.wait(5)
    stage.proxy.stop()


# ---------------------------------------------------------- towards servers


def h2_servers():
    for way, tls in [("by ALPN", True), ("by prior knowledge", False)]:
        server = Framed(tls)
        trust = {"ca": authority.ca} if tls else {}
        listener = Listener()
        proxy = SUBJECT(Setup([listener], [Upstream("framed", server.url, trust, http2=True)], limits={"body": "300MB"}))
        base = f"http://localhost:{listener.port}/framed"
        one_server(way, server, base, proxy, listener.port)
        with check(f"no panic in the end, {way}"):
            expect(proxy.alive() and proxy.panics() == 0, proxy.log()[-500:])
        proxy.stop()


def one_server(way, server, base, proxy, port):
    with check(f"server {way}: a request arrives as HTTP/2 has it"):
        got = curl(f"{base}/tell?x=1", "-H", "X-Own: v", "-H", "Connection: x-drop", "-H", "X-Drop: 1", "-d", "hello")
        expect(got.status == 200, repr(got))
        told = json.loads(got.body)
        head = dict(map(tuple, told["head"]))
        expect(head[":method"] == "POST" and head[":path"] == "/framed/tell?x=1" and head[":scheme"] == ("https" if server.tls else "http"), head)
        expect(head["x-own"] == "v" and told["length"] == 5 and "host" not in head and "connection" not in head and "x-drop" not in head, head)
    with check(f"server {way}: a stream comes piece by piece"):
        started, times = time.monotonic(), []
        run = subprocess.Popen(["curl", "-sSN", "--noproxy", "*", f"{base}/drip"], stdout=subprocess.PIPE)
        lines = []
        for line in run.stdout:
            lines.append(line)
            times.append(time.monotonic() - started)
        expect(run.wait(5) == 0 and lines[-2] == b"data: 19\n" and times[0] < 0.4 < times[-1], f"{lines[-2:]} {times[:1]} {times[-1:]}")
    with check(f"server {way}: 100 requests at once share few connections"):
        before = server.connections
        run = subprocess.run(["curl", "-sS", "--noproxy", "*", "-Z", "--parallel-max", "100", "-o", "/dev/null", "-w", "%{http_code}\n", f"{base}/drip?[1-100]"],
                             capture_output=True, text=True, timeout=40)
        expect(run.stdout.split() == ["200"] * 100, run.stdout[-60:] + run.stderr[-200:])
        expect(server.connections - before <= 8, f"{server.connections - before} connections")
    with check(f"server {way}: 10 MB up and down through an echo"):
        blob = WORK / "blob"
        blob.write_bytes(random.Random(8).randbytes(10 * MB))
        got = curl(f"{base}/echo", "-H", "Expect:", "--data-binary", f"@{blob}", limit=40)
        expect(got.body == blob.read_bytes(), f"{len(got.body)} bytes, {got.errors}")
    with check(f"server {way}: trailers there and back"):
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(b"POST /framed/echo HTTP/1.1\r\nHost: x\r\nTE: trailers\r\nConnection: close, TE\r\nTransfer-Encoding: chunked\r\n\r\n"
                         b"4\r\nbody\r\n0\r\nX-Check: sum\r\n\r\n")
            sock.settimeout(5)
            got = b""
            while piece := sock.recv(65536):
                got += piece
        expect(b"body" in got and re.search(rb"0\r\nx-check: sum\r\n\r\n$", got, re.I), got[-200:])
    with check(f"server {way}: 200 MB up while it gives no window back: bounded memory, and it goes on later", limit=90):
        server.go.clear()
        file = WORK / "upload"
        file.write_bytes(random.Random(9).randbytes(MB) * 200)
        server.taken = 0
        with Watch(proxy) as watch:
            running = subprocess.Popen(["curl", "-sS", "--noproxy", "*", "-X", "POST", "-T", file, "-H", "Expect:", "-m", "80", f"{base}/held"], stdout=subprocess.PIPE)
            until("the first bytes", 10, lambda: server.taken > 20_000)
            time.sleep(1.5)  # The time in which it must not grow.
            watch.within()
            server.go.set()
            told = json.loads(running.communicate(timeout=80)[0])
        expect(told["length"] == 200 * MB, told["length"])
        watch.within()
        file.unlink()
    with check(f"server {way}: a client that does not read holds the server back"):
        with socket.create_connection(("127.0.0.1", port), 5) as sock, Watch(proxy) as watch:
            sock.sendall(f"GET /framed/big?{200 * MB} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            until("the first bytes", 5, lambda: server.sent > 0)
            time.sleep(1.5)  # The time in which it must not grow.
            expect(server.sent < 32 * MB, f"it wrote {server.sent}")
            watch.within()
            expect(curl(f"{base}/tell").status == 200, "others are held back too")
    with check(f"server {way}: a client that leaves is an RST_STREAM within 1 s, and the connection stays"):
        before, connections = len(server.resets), server.connections
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(b"GET /framed/hang HTTP/1.1\r\nHost: x\r\n\r\n")
            sock.settimeout(5)
            while b"a piece" not in sock.recv(65536):
                pass
        until("RST_STREAM", 1, lambda: len(server.resets) > before)
        expect(curl(f"{base}/tell").status == 200 and server.connections == connections, "a new connection")
    for path in ("die", "drop"):
        with check(f"server {way}: one that dies in mid-stream ({path}) is not shown as a clean end"):
            got = curl(f"{base}/{path}")
            expect(got.code in (18, 56, 92) and b"a piece" in got.body, repr(got))
            expect(curl(f"{base}/tell").status == 200, "the next request")
    with check(f"server {way}: GOAWAY with a stream in flight: it ends well, the next takes a new connection"):
        before = server.connections
        running = subprocess.Popen(["curl", "-sS", "--noproxy", "*", f"{base}/goaway"], stdout=subprocess.PIPE)
        time.sleep(0.1)
        expect(curl(f"{base}/tell").status == 200, "a request after GOAWAY")
        text = running.communicate(timeout=10)[0]
        expect(running.returncode == 0 and text.rstrip().endswith(b"data: 9"), text[-100:])
        expect(server.connections > before, "no new connection")
    with check(f"server {way}: REFUSED_STREAM is tried again"):
        for number in range(3):
            got = curl(f"{base}/refuse?{number}")
            expect(got.status == 200, repr(got))
    with check(f"server {way}: an early 413 reaches the client"):
        blob = WORK / "blob"
        blob.write_bytes(b"x" * 300_000)
        got = curl(f"{base}/early", "-H", "Expect:", "--data-binary", f"@{blob}")
        expect(got.status == 413, repr(got))


def few_streams():
    with check("a server that takes 2 streams at a time: 20 requests at once are all answered"):
        server = Framed(False, streams_max=2)
        listener = Listener()
        proxy = SUBJECT(Setup([listener], [Upstream("framed", server.url, http2=True)]))
        run = subprocess.run(["curl", "-sS", "--noproxy", "*", "-Z", "--parallel-max", "20", "-o", "/dev/null", "-w", "%{http_code}\n",
                              f"http://localhost:{listener.port}/framed/drip?[1-20]"], capture_output=True, text=True, timeout=40)
        codes = run.stdout.split()
        expect(codes == ["200"] * 20, f"{ {code: codes.count(code) for code in codes} }, {server.beyond} refused, {server.faults}")
        # A client that has not read SETTINGS yet may try more at first, and has to try again.
        expect(server.beyond <= 20, f"{server.beyond} refused")
        proxy.stop()


def nginx_servers():
    home, tls_port, clear_port, old_port = WORK / "nginx-server", bed.free_port(), bed.free_port(), bed.free_port()
    home.mkdir()
    (home / "nginx.conf").write_text(f"""daemon off; pid {home}/pid; error_log stderr;
events {{}} http {{ access_log off; client_body_temp_path {home}; client_max_body_size 0;
server {{ listen 127.0.0.1:{tls_port} ssl http2; listen 127.0.0.1:{clear_port} http2; listen 127.0.0.1:{old_port} ssl;
ssl_certificate {LOCAL[0]}; ssl_certificate_key {LOCAL[1]};
location / {{ return 200 "$server_protocol $request_method $uri\\n"; }} }} }}""")
    server = Process("nginx-server", ["nginx", "-p", home, "-c", home / "nginx.conf", "-e", "stderr"])
    for port in (tls_port, clear_port, old_port):
        bed.wait_for_port(port, server)
    trust = {"ca": authority.ca}
    listener = Listener()
    proxy = SUBJECT(Setup([listener], [Upstream("tls", f"https://localhost:{tls_port}", trust, http2=True),
                                       Upstream("clear", f"http://127.0.0.1:{clear_port}", http2=True),
                                       Upstream("old", f"https://localhost:{old_port}", trust, http2=True),
                                       Upstream("without", f"https://localhost:{tls_port}", trust)]))
    for name, version in [("tls", "HTTP/2.0"), ("clear", "HTTP/2.0"), ("old", "HTTP/1.1"), ("without", "HTTP/1.1")]:
        with check(f"nginx as a server ({name}): {version}"):
            got = curl(f"http://localhost:{listener.port}/{name}/x", "-d", "hello")
            expect(got.body.decode().split() == [version, "POST", f"/{name}/x"], repr(got))
    with check("nginx as a server: 3000 requests of h2load through HTTP/2 on both sides"):
        run = subprocess.run(["h2load", "-n", "3000", "-c", "4", "-m", "32", f"http://127.0.0.1:{listener.port}/tls/x"],
                             capture_output=True, text=True, timeout=40)
        expect("3000 succeeded, 0 failed, 0 errored" in run.stdout and "status codes: 3000 2xx" in run.stdout, run.stdout[-800:])
    proxy.stop()
    server.stop()


def towards_clients():
    stage = Stage()
    for part in (with_curl, with_h2load, with_python, uploads, slow_readers, leaving, trailers):
        run_part(part, stage)
    stage.stop()
    if check.wants("stopping"):
        run_part(stopping)


def run_part(part, *given):
    if given and not check.wants(part.__name__):
        return
    try:
        part(*given)
    except Exception as why:  # noqa: BLE001 — the proxy did not even start
        check.bad(f"{part.__name__} as a whole", why)


CLIENT_PARTS = "with_curl with_h2load with_python uploads slow_readers leaving trailers stopping"
if any(check.wants(name) for name in CLIENT_PARTS.split()):
    towards_clients()
for part in (h2_servers, few_streams, nginx_servers):
    if OURS and check.wants(part.__name__):
        run_part(part)
check.end()
