#!/usr/bin/env python3
"""TLS on both sides of the proxy, in the manner of testssl: openssl, curl and Python's ssl against it.

usage: scripts/tls.py [--against nginx]

Proves, towards clients: versions, ciphers, ALPN, certificates by name, resumption over two workers and over a
restart, mutual TLS, a certificate replaced under a running stream, the handshake timeout, and that bytes
which are not TLS harm nobody. Towards servers: what is refused (expired, another's name, unknown authority)
and how it is told, client certificates, names, a body cut short, one handshake for many requests, resumption.

Needs: openssl, curl, python3 with venv (and pip at the first use), the binaries of bed.py. About a minute.
ONLY=REGEX runs the checks of that name; KEEP=1 leaves logs and certificates behind.
With --against nginx the same checks run on nginx: it must pass all that are not skipped.
"""
import bed

bed.in_environment()

import http.client
import json
import os
import pathlib
import random
import re
import select
import signal
import socket
import ssl
import subprocess
import threading
import time

from bed import Authority, Checks, Listener, Mock, Setup, Tokenring, Upstream, WORK, chat, curl, expect, until

SUBJECT = bed.subject()
OURS = SUBJECT is Tokenring
bed.need("openssl", "curl")
check = Checks()
good_ca, other_ca = Authority("good"), Authority("other")


# ------------------------------------------------------------------ clients


def s_client(port, *options, stdin=b"", limit=10):
    """What openssl says about a connection."""
    argv = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", *map(str, options)]
    run = subprocess.run(argv, input=stdin, capture_output=True, timeout=limit)
    return (run.stdout + run.stderr).decode(errors="replace")


def shaken(text):
    """Whether a handshake was completed: a cipher was agreed upon, and no alert came after."""
    return bool(re.search(r"^New, TLSv|^Reused, TLSv", text, re.M)) and "alert" not in text


def context(ca=None, version=None, cert=None, alpn=("http/1.1",)):
    made = ssl.create_default_context(cafile=str(ca or good_ca.ca))
    if version:
        made.minimum_version = made.maximum_version = version
    if cert:
        made.load_cert_chain(*map(str, cert))
    if alpn:
        made.set_alpn_protocols(list(alpn))
    return made


def connect(port, made, name="localhost", session=None):
    raw = socket.create_connection(("127.0.0.1", port), 5)
    return made.wrap_socket(raw, server_hostname=name, session=session, suppress_ragged_eofs=False)


def ask(sock, path="/echo", body=b"hello", close=False):
    """One request over an open socket; returns status and body."""
    end = "Connection: close\r\n" if close else ""
    sock.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{end}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = http.client.HTTPResponse(sock, method="POST")
    answer.begin()
    return answer.status, answer.read()


def fails(what, call):
    """The reason why `call` fails; a success is the failure."""
    try:
        answer = call()
    except (OSError, http.client.HTTPException) as why:
        return str(why)
    raise AssertionError(f"{what}: {answer}")


def serial(port, name="localhost"):
    """Which certificate is served under a name."""
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    with connect(port, made, name) as sock:
        return ssl.DER_cert_to_PEM_cert(sock.getpeercert(True))


def pem(path):
    return pathlib.Path(path).read_text().strip()


# ------------------------------------------------------------------- server


class Backend:
    """A server over TLS, a thread by connection, that counts handshakes and tells what it saw.

    By the end of the path: /tell = JSON of the connection; /close = the same and closes; /cut = half of the
    promised length, then the end without close_notify; /open = no length, the end without close_notify;
    /chunks = chunks without the last; /whole = no length, a proper end.
    """

    def __init__(self, cert, client_ca=None, version=None, alpn=("http/1.1",)):
        self.made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.made.load_cert_chain(*map(str, cert))
        self.made.set_alpn_protocols(list(alpn))
        if version:
            self.made.minimum_version = self.made.maximum_version = version
        if client_ca:
            self.made.verify_mode = ssl.CERT_REQUIRED
            self.made.load_verify_locations(str(client_ca))
        self.made.sni_callback = self._named
        self.handshakes = self.requests = self.failures = 0
        self.names = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _named(self, sock, name, _):
        self.names[id(sock)] = name

    def _accept(self):
        while True:
            raw, _ = self.listener.accept()
            threading.Thread(target=self._connection, args=(raw,), daemon=True).start()

    def _connection(self, raw):
        try:
            raw.settimeout(30)
            sock = self.made.wrap_socket(raw, server_side=True)
        except OSError:
            self.failures += 1
            raw.close()
            return
        self.handshakes += 1
        number = self.handshakes
        peer = sock.getpeercert() or {}
        common = dict(pair for part in peer.get("subject", ()) for pair in part).get("commonName")
        seen = {"connection": number, "resumed": sock.session_reused, "version": sock.version(), "peer": common,
                "sni": self.names.get(id(sock)), "alpn": sock.selected_alpn_protocol()}
        try:
            read = sock.makefile("rb")
            while line := read.readline():
                length = 0
                while (field := read.readline().strip()):
                    key, _, value = field.partition(b":")
                    if key.lower() == b"content-length":
                        length = int(value)
                read.read(length)
                self.requests += 1
                if not self._answer(sock, line.split()[1].decode().rsplit("/", 1)[-1], seen):
                    break
        except OSError:
            pass
        finally:
            sock.close()

    def _answer(self, sock, path, seen):
        """Whether the connection stays."""
        head, text = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n", json.dumps(seen).encode()
        if path in ("tell", "close"):
            end = b"Connection: close\r\n" if path == "close" else b""
            sock.sendall(head + end + b"Content-Length: %d\r\n\r\n" % len(text) + text)
            if path == "close":
                sock.unwrap()
            return path == "tell"
        if path == "cut":
            sock.sendall(head + b"Content-Length: 1000\r\n\r\n" + b"x" * 500)
        elif path == "chunks":
            sock.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        else:
            sock.sendall(head + b"Connection: close\r\n\r\n" + b"y" * 500)
        if path == "whole":
            sock.unwrap()
        # Without unwrap there is no close_notify.
        return False


# ---------------------------------------------------------- towards clients

mock = Mock("--tokens", "64", "--interval", "30ms")


def http_mock(**options):
    return Upstream("mock", f"http://127.0.0.1:{mock.port}", models=["mock-model"], **options)


def with_mock(listeners, **options):
    return SUBJECT(Setup(listeners, [http_mock()], **options))


def answers(port, what="a proper request afterwards"):
    got = curl(f"https://localhost:{port}/v1/chat/completions?mock=tokens=2", "--cacert", good_ca.ca, "-d", chat())
    expect(got.status == 200, f"{what}: {got!r}")


LOCAL = good_ca.issue("local", "localhost", ["localhost", "127.0.0.1"])


def versions():
    listener, only_13 = Listener([(*LOCAL, ["localhost"])]), Listener([(*LOCAL, ["localhost"])], min_version="1.3")
    proxy = with_mock([listener, only_13])
    port = listener.port
    for flag, name, wanted in [("-tls1_3", "TLSv1.3", True), ("-tls1_2", "TLSv1.2", True),
                               ("-tls1_1", "TLSv1.1", False), ("-tls1", "TLSv1", False)]:
        with check(f"{name} is {'offered' if wanted else 'refused'}"):
            text = s_client(port, flag, "-cipher", "ALL:@SECLEVEL=0")
            expect(shaken(text) == wanted, text[-400:])
            expect(not wanted or re.search(rf"(New|Reused), {name},", text), text[-400:])
    for flag, wanted in [("-tls1_3", True), ("-tls1_2", False)]:
        with check(f"min_version 1.3 {'takes' if wanted else 'refuses'} {flag}"):
            expect(shaken(s_client(only_13.port, flag)) == wanted, s_client(only_13.port, flag)[-400:])
    for cipher in ["AES128-GCM-SHA256", "AES256-SHA", "ECDHE-ECDSA-AES128-SHA", "DES-CBC3-SHA", "NULL", "aNULL", "RC4"]:
        name = f"cipher {cipher} is refused (no forward secrecy, or no authenticated encryption)"
        if not OURS and cipher.startswith("ECDHE"):
            check.skip(name, "nginx takes it")
            continue
        with check(name):
            expect(not shaken(s_client(port, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")), "agreed upon")
    for cipher in ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"]:
        with check(f"cipher {cipher} is offered"):
            expect(shaken(s_client(port, "-tls1_2", "-cipher", cipher)), "refused")
    with check("no compression, and secure renegotiation"):
        text = s_client(port, "-tls1_2")
        expect("Compression: NONE" in text and "Secure Renegotiation IS supported" in text, text[-600:])
    for offered, wanted in [("h2,http/1.1", "h2"), ("http/1.1,h2", "h2"), ("h2", "h2"), ("http/1.1", "http/1.1"), (None, None)]:
        with check(f"ALPN: of {offered or 'nothing'} it takes {wanted or 'nothing'}"):
            text = s_client(port, *(["-alpn", offered] if offered else []))
            expect(shaken(text), text[-300:])
            expect((f"ALPN protocol: {wanted}" if wanted else "No ALPN negotiated") in text, text[-500:])
    with check("ALPN: of an unknown protocol nothing; alert no_application_protocol"):
        text = s_client(port, "-alpn", "spdy/1")
        expect("alert number 120" in text or "no application protocol" in text, text[-400:])
    with check("a request without ALPN is HTTP/1.1"):
        with connect(port, context(alpn=())) as sock:
            expect(ask(sock) == (200, b"hello"), "not echoed")
    with check("close_notify comes before the connection closes"):
        with connect(port, context()) as sock:
            expect(ask(sock, close=True)[0] == 200, "no answer")
            expect(sock.recv(10) == b"", "more bytes")  # A ragged end would raise.
    with check("a handshake in pieces of one byte"):
        got = in_pieces(port)
        expect(b" 200 " in got.split(b"\r\n")[0], got[:200])
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with check(f"10 MB there and back, {version.name}"):
            blob = random.Random(5).randbytes(10_000_000)
            with connect(port, context(version=version)) as sock:
                sock.settimeout(30)
                expect(both_ways(sock, blob) == blob, "other bytes")
    with check("a change of keys in mid-connection (TLS 1.3 KeyUpdate)"):
        run = subprocess.Popen(["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            for line in [b"K\n", b"k\n", b"GET /mock/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"]:
                time.sleep(0.4)  # s_client reads a command only where it stands alone in one read.
                run.stdin.write(line)
                run.stdin.flush()
            text = run.stdout.read().decode(errors="replace")
        finally:
            run.kill()
            run.wait()
        expect("KEYUPDATE" in text and "requests_total" in text, text[-300:])
    with check("a hundred connections at once"):
        made = context()
        socks = [connect(port, made) for _ in range(100)]
        for sock in socks:
            expect(ask(sock) == (200, b"hello"), "not echoed")
            sock.close()
    hostile(proxy, port)
    proxy.stop()


def in_pieces(port):
    """A whole exchange whose client sends each byte by itself."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port), 5) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def done(call):
            while True:
                try:
                    got = call()
                    drain()
                    return got
                except ssl.SSLWantReadError:
                    drain()
                    incoming.write(sock.recv(65536))

        def drain():
            for byte in outgoing.read():
                sock.send(bytes([byte]))

        done(tls.do_handshake)
        done(lambda: tls.write(b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi"))
        return done(lambda: tls.read(65536))


def both_ways(sock, blob):
    """Sends while it receives: an echo does not wait for the end. One thread, since OpenSSL does not allow two."""
    head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(blob)}\r\n\r\n".encode()
    left, got, deadline = memoryview(head + blob), bytearray(), time.monotonic() + 30
    sock.setblocking(False)
    while time.monotonic() < deadline:
        wanted = select.POLLIN
        if left:
            try:
                left = left[sock.send(left[:65536]):]
                wanted = 0
            except ssl.SSLWantWriteError:
                wanted |= select.POLLOUT
            except ssl.SSLWantReadError:
                pass
        try:
            while piece := sock.recv(65536):
                got += piece
        except ssl.SSLWantReadError:
            pass
        end = got.find(b"\r\n\r\n") + 4
        if end > 3 and len(got) - end >= len(blob) and not left:
            return bytes(got[end:])
        if wanted:
            poll = select.poll()
            poll.register(sock, wanted)
            poll.poll(1000)
    raise AssertionError(f"not within 30 s: {len(left)} bytes to send, {len(got)} received")


def hostile(proxy, port):
    """Bytes that are not TLS."""
    def closed_within(sock, limit):
        sock.settimeout(limit)
        got = b""
        try:
            while piece := sock.recv(65536):
                got += piece
        except ConnectionError:
            pass
        return got

    with check("plain HTTP on the TLS port is a 400 that says so, and closed"):
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = closed_within(sock, 5)
        expect(got.startswith(b"HTTP/1.1 400 ") and b"HTTPS" in got, got[:200])
        answers(port)
    with check("200 pieces of garbage on the TLS port are closed"):
        rng = random.Random(4)
        hello = client_hello()
        for number in range(200):
            blob = bytearray(rng.randbytes(rng.randrange(1, 600))) if number % 2 else bytearray(hello)
            for _ in range(rng.randrange(1, 8)):
                blob[rng.randrange(len(blob))] = rng.randrange(256)
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                try:
                    sock.sendall(bytes(blob))
                    sock.shutdown(socket.SHUT_WR)
                    closed_within(sock, 5)
                except ConnectionError:
                    pass
        answers(port)
    with check("a client that leaves at each step of the handshake harms nobody"):
        for cut in range(0, len(hello := client_hello()), max(1, len(hello) // 20)):
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                sock.sendall(hello[:cut])
        with socket.create_connection(("127.0.0.1", port), 5) as sock:
            sock.sendall(hello)
            sock.recv(100)
        answers(port)
    with check("no panic so far"):
        expect(proxy.alive() and proxy.panics() == 0, proxy.log()[-600:])


def client_hello():
    outgoing = ssl.MemoryBIO()
    tls = context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    return outgoing.read()


def names():
    a = good_ca.issue("a", "a.test", ["a.test"])
    wild = good_ca.issue("wild", "*.wild.test", ["*.wild.test"])
    listener = Listener([(*LOCAL, ["localhost"]), (*a, ["a.test"]), (*wild, ["*.wild.test"])])
    proxy = with_mock([listener])
    for name, cert in [("a.test", a), ("A.TEST", a), ("x.wild.test", wild), ("wild.test", LOCAL), ("localhost", LOCAL),
                       ("unknown.test", LOCAL), (None, LOCAL)]:
        with check(f"SNI {name or 'absent'}: the certificate {cert[0].stem}"):
            expect(serial(listener.port, name).strip() == pem(cert[0]), "another one")
    if OURS:
        with check("SNI x.y.wild.test: a wildcard stands for one label only"):
            expect(serial(listener.port, "x.y.wild.test").strip() == pem(LOCAL[0]), "another one")
    else:
        check.skip("SNI x.y.wild.test: a wildcard stands for one label only", "for nginx it stands for several")
    proxy.stop()


def resumed_share(port, version, times, session=None):
    """How many of so many connections were resumed, each with what the one before it left; and the last session."""
    made, count = resumed_share.made.setdefault(version, context(version=version)), 0
    for _ in range(times):
        with connect(port, made, session=session) as sock:
            expect(ask(sock)[0] == 200, "no answer")
            count += sock.session_reused
            session = sock.session
    return count, session


resumed_share.made = {}


def resumption():
    listener = Listener([(*LOCAL, ["localhost"])])
    state = WORK / "state"
    state.mkdir()
    proxy = with_mock([listener], cores=2, state_dir=state)
    port, kept = listener.port, {}
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with check(f"{version.name}: 40 reconnects over two workers, all resumed"):
            _, session = resumed_share(port, version, 1)
            count, kept[version] = resumed_share(port, version, 40, session)
            expect(count == 40, f"{count} of 40")
        with check(f"{version.name}: resumed with early data neither promised nor taken"):
            text = s_client(port, "-tls1_2" if "2" in version.name else "-tls1_3", stdin=b"Q\n")
            expect("Max Early Data: 0" in text or "Early data" not in text or "Early data was not sent" in text, text[-500:])
    with check("openssl -reconnect (TLS 1.2): five of five reused"):
        text = s_client(port, "-tls1_2", "-reconnect", stdin=b"", limit=20)
        expect(text.count("Reused, TLSv1.2") == 5, f"{text.count('Reused, ')} of 5")
    with check("openssl -sess_out, -sess_in (TLS 1.3): reused"):
        file = WORK / "session"
        request = "GET /mock/stats HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        script = f"(printf '{request}'; sleep 0.5) | openssl s_client -connect 127.0.0.1:{port} -tls1_3 -ign_eof"
        subprocess.run(["bash", "-c", f"{script} -sess_out {file}"], capture_output=True, timeout=10)
        for _ in range(6):
            expect("Reused, TLSv1.3" in s_client(port, "-tls1_3", "-sess_in", file), "a new session")
    proxy.stop()
    proxy = type(proxy)(proxy.setup)
    for version, session in kept.items():
        with check(f"{version.name}: resumed across a restart"):
            count, _ = resumed_share(port, version, 10, session)
            expect(count == 10, f"{count} of 10")
    if OURS:
        with check("the kept ticket keys are readable by their owner only"):
            for file in state.rglob("*"):
                expect(not file.is_file() or file.stat().st_mode & 0o077 == 0, f"{file.name}: {oct(file.stat().st_mode)}")
    proxy.stop()


def self_signed(file, name):
    """As `openssl req -x509` makes one by itself: it calls itself an authority."""
    made = (WORK / f"{file}.pem", WORK / f"{file}-key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "5",
                    "-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}", "-out", made[0], "-keyout", made[1]],
                   check=True, capture_output=True)
    return made


def mutual():
    own, twin = self_signed("own-client", "my-app"), self_signed("twin-client", "my-app")
    vouching = WORK / "vouching.pem"
    vouching.write_text(good_ca.ca.read_text() + own[0].read_text())
    listener = Listener([(*LOCAL, ["localhost"])], client_ca=vouching, auth="keys" if OURS else "none")
    proxy = SUBJECT(Setup([listener], [http_mock()], keys=[("my-app", "a-key-of-my-app-0001")]))
    url = f"https://localhost:{listener.port}/v1/chat/completions?mock=tokens=2"
    mine, stranger, wrong = (good_ca.issue("mine", "my-app"), good_ca.issue("stranger", "nobody-knows-me"),
                             other_ca.issue("wrong", "my-app"))
    expired = good_ca.issue("old-client", "my-app", days_from=-20, days_to=-2)

    def call(cert, *options):
        given = ["--cert", cert[0], "--key", cert[1]] if cert else []
        return curl(url, "--cacert", good_ca.ca, "-d", chat(), *given, *options)

    refused = (lambda got: got.status == 0 and got.code != 0) if OURS else (lambda got: got.status in (0, 400))
    for version in ("--tls-max 1.2", "--tlsv1.3"):
        options = version.split()
        with check(f"mutual TLS ({version}): without a certificate refused"):
            got = call(None, *options)
            expect(refused(got), repr(got))
        with check(f"mutual TLS ({version}): of another authority refused"):
            got = call(wrong, *options)
            expect(refused(got), repr(got))
        with check(f"mutual TLS ({version}): expired refused"):
            got = call(expired, *options)
            expect(refused(got), repr(got))
        with check(f"mutual TLS ({version}): of the right authority let in; its name is the key"):
            got = call(mine, *options)
            expect(got.status == 200, repr(got))
        with check(f"mutual TLS ({version}): a self-signed one that stands in client_ca let in; another under its name refused"):
            got = call(own, *options)
            expect(got.status == 200, repr(got))
            got = call(twin, *options)
            expect(refused(got), repr(got))
    if OURS:
        with check("mutual TLS: a name that is no key needs a key"):
            got = call(stranger)
            expect(got.status == 401, repr(got))
            got = call(stranger, "-H", "Authorization: Bearer a-key-of-my-app-0001")
            expect(got.status == 200, repr(got))
    with check("mutual TLS: resumed connections keep their name"):
        made = context(cert=mine, version=ssl.TLSVersion.TLSv1_2)
        session, body = None, chat().encode()
        for turn in range(6):
            with connect(listener.port, made, session=session) as sock:
                expect(ask(sock, "/v1/chat/completions?mock=tokens=2", body)[0] == 200, f"refused at turn {turn}")
                session = sock.session
    proxy.stop()


def replaced():
    cert = good_ca.issue("rotating", "localhost", ["localhost"])
    listener = Listener([(*cert, ["localhost"])])
    proxy = with_mock([listener])
    before = pem(cert[0])
    with check("a certificate replaced on disk is served after SIGHUP while an old stream goes on"):
        expect(serial(listener.port).strip() == before, "not the first one")
        running = subprocess.Popen(["curl", "-sSN", "--cacert", good_ca.ca, "-d", chat(stream=True),
                                    f"https://localhost:{listener.port}/v1/chat/completions"], stdout=subprocess.PIPE)
        first = running.stdout.readline()
        good_ca.issue("rotating", "localhost", ["localhost"])
        expect(pem(cert[0]) != before, "not replaced")
        proxy.signal(signal.SIGHUP)
        until("the new certificate", 8, lambda: serial(listener.port).strip() == pem(cert[0]))
        expect(running.poll() is None, "the stream ended too early to tell")
        rest = first + running.communicate(timeout=20)[0]
        expect(running.returncode == 0 and rest.rstrip().endswith(b"data: [DONE]"), f"{running.returncode} {rest[-200:]}")
    with check("a certificate that does not load leaves the old one in place"):
        now, saved = pem(cert[0]), cert[0].read_bytes()
        cert[0].write_text("-----BEGIN CERTIFICATE-----\nbm90aGluZw==\n-----END CERTIFICATE-----\n")
        logged = len(proxy.log())
        proxy.signal(signal.SIGHUP)
        until("a line in the log", 8, lambda: "rotating" in proxy.log()[logged:])
        expect(serial(listener.port).strip() == now, "another one")
        answers(listener.port)
        cert[0].write_bytes(saved)
    proxy.stop()
    if not OURS:
        return
    other_key = good_ca.issue("elsewhere", "localhost", ["localhost"])[1]
    for name, pair in [("a missing certificate", (WORK / "missing.pem", cert[1])), ("a missing key", (cert[0], WORK / "missing.pem")),
                       ("a key of another certificate", (cert[0], other_key)), ("a key in the place of the certificate", (cert[1], cert[1]))]:
        with check(f"check -c names the file and the reason: {name}"):
            proxy.setup.listeners[0].certs = [(*pair, ["localhost"])]
            file = WORK / "bad.toml"
            file.write_text(proxy.text())
            run = subprocess.run([bed.TOKENRING, "check", "-c", file], capture_output=True, text=True, timeout=10)
            said = run.stdout + run.stderr
            named = [path for path in pair if "missing" in str(path)] or list(pair)
            expect(run.returncode != 0 and any(str(path) in said for path in named), said[-500:])
            expect("not implemented" not in said, said[-500:])


def silence():
    timeouts = {"tls_handshake": "1s"} if OURS else {"client_head": "1s"}
    listener = Listener([(*LOCAL, ["localhost"])], timeouts=timeouts)
    proxy = with_mock([listener])
    hello = client_hello()
    for name, blob in [("silent", b""), ("stuck in its first message", hello[:40]), ("stuck after its first message", hello)]:
        with check(f"handshake timeout: a connection that is {name} is closed after 1 s"):
            with socket.create_connection(("127.0.0.1", listener.port), 5) as sock:
                started = time.monotonic()
                sock.sendall(blob)
                sock.settimeout(8)
                try:
                    while sock.recv(65536):
                        pass
                except ConnectionError:
                    pass
                took = time.monotonic() - started
            expect(0.7 <= took <= 3.5, f"{took:.1f} s")
    with check("handshake timeout: 300 silent connections, and others are answered"):
        socks = [socket.create_connection(("127.0.0.1", listener.port), 5) for _ in range(300)]
        answers(listener.port, "beside them")
        for sock in socks:
            sock.close()
    proxy.stop()


# ---------------------------------------------------------- towards servers


def upstream_side():
    local = good_ca.issue("backend", "localhost", ["localhost", "127.0.0.1"])
    old = good_ca.issue("old", "localhost", ["localhost"], days_from=-20, days_to=-2)
    early = good_ca.issue("early", "localhost", ["localhost"], days_from=2, days_to=20)
    elsewhere = good_ca.issue("other-name", "elsewhere.test", ["elsewhere.test"])
    foreign = other_ca.issue("foreign", "localhost", ["localhost"])
    client = good_ca.issue("proxy-client", "the-proxy")
    alone = self_signed("alone", "localhost")
    ca = {"ca": good_ca.ca}
    mine = ca | {"cert": client[0], "key": client[1]}
    backends, ups = {}, []

    def add(name, cert, tls, host="localhost", **options):
        backends[name] = Backend(cert, **options)
        ups.append(Upstream(name, f"https://{host}:{backends[name].port}", tls))

    add("good", local, ca)
    add("old", old, ca)
    add("early", early, ca)
    add("wronghost", elsewhere, ca)
    add("named", elsewhere, ca | {"server_name": "elsewhere.test"})
    add("foreign", foreign, ca)
    add("system", local, {})
    add("noverify", foreign, ca | {"verify": False})
    add("byip", local, ca, host="127.0.0.1")
    add("alone", alone, {"ca": alone[0]})
    add("mutual", local, mine, client_ca=good_ca.ca)
    add("mutual12", local, mine, client_ca=good_ca.ca, version=ssl.TLSVersion.TLSv1_2)
    add("nocert", local, ca, client_ca=good_ca.ca)
    add("tls12", local, ca, version=ssl.TLSVersion.TLSv1_2)
    add("tls13", local, ca, version=ssl.TLSVersion.TLSv1_3)
    ups.append(Upstream("plain", f"https://localhost:{mock.port}", ca))
    listener = Listener(alpn=["http/1.1"])
    proxy = SUBJECT(Setup([listener], ups))

    def call(name, path="tell", *options):
        return curl(f"http://localhost:{listener.port}/{name}/{path}", *options)

    def tells(name, **wanted):
        got = call(name)
        expect(got.status == 200, repr(got))
        seen = json.loads(got.body)
        for key, value in wanted.items():
            expect(seen[key] == value, f"{key}: {seen}")

    with check("server: a good certificate by ca; its name is sent"):
        tells("good", sni="localhost")
    with check("server: a self-signed certificate that stands in ca itself"):
        tells("alone")
    with check("server: TLS 1.2 alone"):
        tells("tls12", version="TLSv1.2")
    with check("server: TLS 1.3 alone"):
        tells("tls13", version="TLSv1.3")
    if OURS:
        with check("server: by address, verified and without a name sent"):
            tells("byip", sni=None)
    else:
        check.skip("server: by address, verified and without a name sent", "nginx verifies no addresses")
    refusals = [("old", "expired", r"expired"), ("early", "not valid yet", r"not (yet )?valid|not valid yet"),
                ("wronghost", "of another host", r"name|host"), ("foreign", "of an unknown authority", r"issuer|authority|unknown|unable to verify|nobody we trust"),
                ("system", "that the system's roots do not know", r"issuer|authority|unknown|unable to verify|nobody we trust"),
                ("plain", "none at all (plain HTTP)", r"TLS|handshake")]
    for name, what, pattern in refusals:
        with check(f"server: a certificate {what} is 502, and message and log say why"):
            logged = len(proxy.log())
            got = call(name)
            expect(got.status == 502, repr(got))
            if OURS:
                message = json.loads(got.body)["error"]["message"]
                expect(re.search(r"certificate|TLS", message), f"message: {message}")
            until(f"a line with {pattern} in the log", 3, lambda: re.search(pattern, proxy.log()[logged:], re.I))
            if name != "plain":
                expect(backends[name].requests == 0, "the request was sent")
    with check("server: verify = false takes any certificate"):
        tells("noverify")
    with check("server: server_name is sent and verified in place of the host"):
        tells("named", sni="elsewhere.test")
    with check("server: the client certificate is sent where it is asked for (TLS 1.3)"):
        tells("mutual", peer="the-proxy")
    with check("server: the client certificate is sent where it is asked for (TLS 1.2)"):
        tells("mutual12", peer="the-proxy")
    with check("server: asked for a certificate and having none is 502"):
        got = call("nocert")
        expect(got.status == 502, repr(got))
    for path in ("cut", "chunks", "open"):
        name = f"server: a body that ends without close_notify is not shown as whole ({path})"
        if not OURS and path == "open":
            check.skip(name, "nginx takes it for the end")
            continue
        for version in ("tls12", "tls13"):
            with check(f"{name}, {version}"):
                got = call(version, path)
                expect(got.code in (18, 56, 92) or got.status == 502, repr(got))
    with check("server: a body without a length that ends with close_notify is whole"):
        got = call("good", "whole")
        expect(got.code == 0 and got.body == b"y" * 500, repr(got))
    with check("server: 200 requests, one handshake"):
        call("good")
        before, asked = backends["good"].handshakes, backends["good"].requests
        run = subprocess.run(["curl", "-sS", "--noproxy", "*", "-o", "/dev/null", f"http://localhost:{listener.port}/good/[1-200]/tell"],
                             capture_output=True, timeout=30)
        expect(run.returncode == 0 and backends["good"].requests == asked + 200, run.stderr[-200:])
        expect(backends["good"].handshakes == before, f"{backends['good'].handshakes - before} more handshakes")
    for name in ("tls12", "tls13"):
        with check(f"server: a new connection resumes the session, {name}"):
            seen = [json.loads(call(name, "close").body) for _ in range(6)]
            told = [(one["connection"], one["resumed"]) for one in seen]
            expect(all(resumed for _, resumed in told[1:]), f"(connection, resumed): {told}")
    with check("server: a request of 10 MB arrives"):
        blob = WORK / "blob"
        blob.write_bytes(random.Random(6).randbytes(10_000_000))
        got = call("good", "tell", "-X", "POST", "-H", "Expect:", "--data-binary", f"@{blob}")
        expect(got.status == 200, repr(got))
    with check("no panic in the end"):
        expect(proxy.alive() and proxy.panics() == 0, proxy.log()[-600:])
    proxy.stop()


for part in (versions, names, resumption, mutual, replaced, silence, upstream_side):
    if not check.wants(part.__name__):
        continue
    try:
        part()
    except Exception as why:  # noqa: BLE001 — the proxy did not even start
        check.bad(f"{part.__name__} as a whole", why)
check.end()
