"""What the scripts of this folder stand on: certificates, servers, the proxy, and the count of checks.

The one idea: a script describes what it wants as a `Setup`, and the same description starts tokenring or
nginx. A check that nginx passes is a check worth failing; where nginx is known to differ, the check says so.

Needs python3, openssl, curl, and the two binaries: TOKENRING [target/release/tokenring] and LOADTEST
[target/release/loadtest]. Python packages live in an environment of their own under
TOKENRING_VENV [~/.cache/tokenring-tests/venv], made at the first use.
"""
import asyncio
import atexit
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TOKENRING = pathlib.Path(os.environ.get("TOKENRING", ROOT / "target/release/tokenring"))
LOADTEST = pathlib.Path(os.environ.get("LOADTEST", ROOT / "target/release/loadtest"))
PACKAGES = ["h2", "hyperframe", "hpack", "httpx[http2]", "openai", "cryptography", "starlette", "python-multipart"]


def in_environment():
    """Goes on in the environment that has PACKAGES; builds it where it is missing."""
    home = pathlib.Path(os.environ.get("TOKENRING_VENV", pathlib.Path.home() / ".cache/tokenring-tests/venv"))
    if pathlib.Path(sys.prefix).resolve() == home.resolve():
        return
    python = home / "bin/python3"
    ready = home / "ready"
    if not ready.exists() or ready.read_text() != "\n".join(PACKAGES):
        print(f"making {home}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PACKAGES], check=True)
        ready.write_text("\n".join(PACKAGES))
    WORK.rmdir()  # The one that goes on makes its own.
    os.execv(python, [str(python), *sys.argv])


def need(*tools):
    """Ends the script with code 2 when a tool or a binary is missing."""
    missing = [tool for tool in tools if not shutil.which(str(tool))]
    if missing:
        print(f"missing: {' '.join(map(str, missing))}", file=sys.stderr)
        sys.exit(2)


# ------------------------------------------------------------------- checks


class Checks:
    """One line for each check, and the sum in the end."""

    def __init__(self):
        self.passed, self.failed = 0, 0
        self.only = os.environ.get("ONLY", "")

    def wants(self, name):
        return not self.only or re.search(self.only, name)

    @contextlib.contextmanager
    def __call__(self, name, limit=60):
        """Runs the block as one check; an exception, or `limit` seconds, is a failure and nothing more."""

        def late(*_):
            raise TimeoutError(f"not done after {limit} s")

        old = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, limit)
        try:
            yield
        except Exception as why:  # noqa: BLE001 — whatever it is, the other checks still count
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.bad(name, why)
        else:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.passed += 1
            print(f"ok    {name}", flush=True)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)

    def bad(self, name, why):
        self.failed += 1
        where = ""
        if isinstance(why, BaseException):
            frames = [f for f in traceback.extract_tb(why.__traceback__) if "bed.py" not in f.filename]
            where = f" [line {frames[-1].lineno}]" if frames else ""
            why = str(why).strip() or type(why).__name__
        print(f"FAIL  {name}: {str(why)[:300]}{where}", flush=True)

    def skip(self, name, why):
        print(f"skip  {name}: {why}", flush=True)

    def end(self):
        print(f"{self.passed} passed, {self.failed} failed")
        sys.exit(1 if self.failed else 0)


def expect(truth, message):
    """An assertion that also holds under `python -O`."""
    if not truth:
        raise AssertionError(message)


def until(what, limit, ask, every=0.02):
    """Asks again and again, until the answer is true; returns it."""
    end = time.monotonic() + limit
    while True:
        answer = ask()
        if answer:
            return answer
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {limit} s")
        time.sleep(every)


# --------------------------------------------------------------------- HTTP


def http_message(left=b""):
    """One HTTP/1.1 message out of bytes, whoever receives them: a generator that is sent each piece, b"" at the end.

    Returns (head, body, what came behind it): the head without its empty line, the body without its framing. None where
    the bytes end before a message begins; EOFError where they end in one. Without a length or chunks there is no body.
    """
    left = bytearray(left)

    def until_there(wanted):
        while not wanted():
            got = yield
            if not got:
                raise EOFError(f"the end in the middle of a message: {bytes(left[:80])!r}")
            left.extend(got)

    def take(count):
        taken = bytes(left[:count])
        del left[:count]
        return taken

    if not left:
        left.extend((yield))
        if not left:
            return None
    yield from until_there(lambda: b"\r\n\r\n" in left)
    head = take(left.index(b"\r\n\r\n") + 4)[:-4]
    if not re.search(rb"(?im)^transfer-encoding:.*chunked", head):
        length = re.search(rb"(?im)^content-length:[ \t]*(\d+)", head)
        length = int(length[1]) if length else 0
        yield from until_there(lambda: len(left) >= length)
        return head, take(length), bytes(left)
    body = bytearray()
    while True:
        yield from until_there(lambda: b"\r\n" in left)
        size = int(take(left.index(b"\r\n") + 2).split(b";")[0], 16)
        yield from until_there(lambda: len(left) >= size + 2)
        body += take(size + 2)[:-2]
        if size == 0:
            return head, bytes(body), bytes(left)


def read_http(sock, left=b""):
    """Reads one message from a socket, of which `left` has come; returns what `http_message` does."""
    reading = http_message(left)
    try:
        next(reading)
        while True:
            reading.send(sock.recv(65536))
    except StopIteration as read:
        return read.value


async def read_http_async(reader, limit):
    """As `read_http`, from an asyncio stream; each piece within `limit` seconds."""
    reading = http_message()
    try:
        next(reading)
        while True:
            reading.send(await asyncio.wait_for(reader.read(65536), limit))
    except StopIteration as read:
        return read.value


def status_of(head):
    """The status that the head of an answer tells."""
    return int(head.split(None, 2)[1])


# ---------------------------------------------------------------- processes

WORK = pathlib.Path(tempfile.mkdtemp(prefix="tokenring-test-"))
_running = []


def _finish():
    for process in list(_running):
        process.stop(2)
    if os.environ.get("KEEP"):
        print(f"kept: {WORK}")
    else:
        shutil.rmtree(WORK, ignore_errors=True)


_owner = os.getpid()
atexit.register(lambda: os.getpid() == _owner and _finish())
for _signal in (signal.SIGTERM, signal.SIGINT):
    signal.signal(_signal, lambda *_: sys.exit(130))


def free_port():
    """A port of the loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def _with_parent():
    """The kernel ends the child when this process is gone, however it went."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """A program that is stopped in the end; its output is in `log`."""

    def __init__(self, name, argv, **options):
        self.name, self.log_at = name, WORK / f"{name}-{len(list(WORK.iterdir()))}.log"
        self.out = open(self.log_at, "wb")
        self.child = subprocess.Popen([str(a) for a in argv], stdin=subprocess.DEVNULL, stdout=self.out,
                                      stderr=subprocess.STDOUT, preexec_fn=_with_parent, **options)
        self.pid = self.child.pid
        _running.append(self)

    def log(self):
        return self.log_at.read_text(errors="replace")

    def alive(self):
        return self.child.poll() is None

    def tree(self):
        """The process and all that came from it."""
        found, todo = [], [self.pid]
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(OSError):
                for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
                    todo += map(int, (task / "children").read_text().split())
        return found

    def rss_kb(self):
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                total += int(re.search(r"VmRSS:\s+(\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1])
        return total

    def fds(self):
        total = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                total += len(os.listdir(f"/proc/{pid}/fd"))
        return total

    def sockets(self):
        """Its TCP sockets as (local port, remote port, state in hex), for messages."""
        owned = set()
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for fd in os.scandir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        owned.update(re.findall(r"socket:\[(\d+)\]", os.readlink(fd.path)))
        rows = [line.split() for line in open("/proc/net/tcp").read().splitlines()[1:]]
        return [(int(r[1][-4:], 16), int(r[2][-4:], 16), r[3]) for r in rows if r[9] in owned]

    def cpu_seconds(self):
        ticks = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def signal(self, number):
        os.kill(self.pid, number)

    def wait(self, limit):
        return self.child.wait(limit)

    def stop(self, limit=10):
        """Asks, then insists; returns the exit code."""
        if self in _running:
            _running.remove(self)
        if self.alive():
            self.child.send_signal(signal.SIGTERM)
            try:
                self.child.wait(limit)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        self.out.close()
        return self.child.returncode


def wait_for_port(port, process, limit=15):
    def open_now():
        expect(process.alive(), f"{process.name} ended: {process.log()[-800:]}")
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True

    until(f"{process.name} listens on {port}", limit, open_now)


class Mock(Process):
    """The simulated model server of `loadtest mock`."""

    def __init__(self, *options, name="mock"):
        self.port = free_port()
        super().__init__(name, [LOADTEST, "mock", "--port", self.port, "--name", name, *options])
        wait_for_port(self.port, self)

    def stats(self):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.port}/mock/stats", timeout=5) as answer:
            return json.load(answer)


# ------------------------------------------------------------- certificates


class Authority:
    """A private certificate authority; `ca` is its certificate as a PEM file."""

    def __init__(self, name):
        from cryptography.hazmat.primitives.asymmetric import ec

        self.name = name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca = WORK / f"{name}-ca.pem"
        self._issue(self.ca, None, name, [], -1, 30, self._key)

    def issue(self, file, common_name, names=(), days_from=-1, days_to=30):
        """A certificate; returns (certificate, key) as paths. A second call for the same file replaces both."""
        from cryptography.hazmat.primitives.asymmetric import ec

        cert, key = WORK / f"{file}.pem", WORK / f"{file}-key.pem"
        self._issue(cert, key, common_name, names, days_from, days_to, ec.generate_private_key(ec.SECP256R1()))
        return cert, key

    def _issue(self, cert_at, key_at, common_name, names, days_from, days_to, private):
        import datetime
        import ipaddress

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.x509.oid import NameOID

        def alternative(name):
            try:
                return x509.IPAddress(ipaddress.ip_address(name))
            except ValueError:
                return x509.DNSName(name)

        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        subject = lambda text: x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
        own = key_at is None
        builder = (x509.CertificateBuilder().subject_name(subject(common_name)).issuer_name(subject(self.name))
                   .public_key(private.public_key()).serial_number(x509.random_serial_number())
                   .not_valid_before(now + day * days_from).not_valid_after(now + day * days_to)
                   .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True))
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(list(map(alternative, names))), critical=False)
        # Renamed into place: whoever reads them at this moment sees the old or the new, never half of one.
        texts = [(cert_at, builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))]
        if key_at:
            texts.append((key_at, private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                                        serialization.NoEncryption())))
        for at, text in texts:
            (WORK / "new.pem").write_bytes(text)
            (WORK / "new.pem").rename(at)


# ---------------------------------------------------------------- the proxy


class Listener:
    """`certs` is a list of (certificate, key, names); none of them is plain TCP, where nginx speaks one of both."""

    def __init__(self, certs=(), client_ca=None, min_version=None, alpn=("h2", "http/1.1"), auth="none", timeouts=None):
        self.port = free_port()
        self.certs, self.client_ca, self.min_version, self.alpn = list(certs), client_ca, min_version, list(alpn)
        self.auth, self.timeouts = auth, timeouts or {}


class Upstream:
    """A server behind the proxy, reached at /NAME/… (the prefix stays); with `models` also by them and at /echo."""

    def __init__(self, name, url, tls=None, http2=False, models=()):
        self.name, self.url, self.tls, self.http2, self.models = name, url, tls or {}, http2, list(models)


class Setup:
    """What is to run, in the words that tokenring and nginx share."""

    def __init__(self, listeners, upstreams, cores=1, state_dir=None, drain="30s", limits=None, keys=(), pool_idle=None):
        self.listeners, self.upstreams, self.cores = listeners, upstreams, cores
        self.state_dir, self.drain, self.limits, self.keys = state_dir, drain, limits or {}, list(keys)
        self.pool_idle = pool_idle


def _toml(value):
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, pathlib.Path):
        return json.dumps(str(value))
    return json.dumps(value)


class Tokenring(Process):
    """The proxy under test; `admin` is the port of /metrics."""

    kind = "tokenring"
    number = 0

    def __init__(self, setup, log_level="info"):
        Tokenring.number += 1
        self.setup, self.admin = setup, free_port()
        self.config = WORK / f"tokenring-{Tokenring.number}.toml"
        self.config.write_text(self.text(log_level))
        super().__init__("tokenring", [TOKENRING, "serve", "-c", self.config])
        for listener in setup.listeners:
            wait_for_port(listener.port, self)

    def text(self, log_level="info"):
        s = self.setup
        out = ["[process]", f"cores = {s.cores}", f'drain = "{s.drain}"']
        if s.state_dir:
            out.append(f"state_dir = {_toml(s.state_dir)}")
        out += ["[log]", f'level = "{log_level}"', "[limits]", *(f"{k} = {_toml(v)}" for k, v in s.limits.items())]
        if s.pool_idle:
            out += ["[timeouts]", f'pool_idle = "{s.pool_idle}"']
        for number, listener in enumerate(s.listeners):
            out += ["[[listener]]", f'name = "l{number}"', f'bind = "127.0.0.1:{listener.port}"', f'auth = "{listener.auth}"']
            if listener.certs:
                tables = [{"cert": cert, "key": key} for cert, key, _ in listener.certs]
                shared = {"alpn": listener.alpn}
                if listener.client_ca:
                    shared["client_ca"] = listener.client_ca
                if listener.min_version:
                    shared["min_version"] = listener.min_version
                tables[0].update(shared)
                out.append("tls = " + _toml(tables[0] if len(tables) == 1 else tables))
            if listener.timeouts:
                out.append(f"timeouts = {_toml(listener.timeouts)}")
            for upstream in s.upstreams:
                out += ["[[listener.route]]", f'path = "/{upstream.name}/*"', f'group = "{upstream.name}"']
                if upstream.models:
                    out += ["[[listener.route]]", 'path = "/echo"', f'group = "{upstream.name}"']
        for name, key in s.keys:
            out += ["[[key]]", f'name = "{name}"', f'key = "{key}"']
        for upstream in s.upstreams:
            out += ["[[upstream]]", f'name = "{upstream.name}"', f'url = "{upstream.url}"', f"models = {_toml(upstream.models)}"]
            if upstream.tls:
                out.append(f"tls = {_toml(upstream.tls)}")
            if upstream.http2:
                out.append("http2 = true")
            out += ["[[group]]", f'name = "{upstream.name}"', f'members = ["{upstream.name}"]']
        out += ["[admin]", f'bind = "127.0.0.1:{self.admin}"', ""]
        return "\n".join(out)

    def metrics(self):
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.admin}/metrics", timeout=5) as answer:
            return answer.read().decode()

    def panics(self):
        """Panics as /metrics counts them where it does, and as the log shows them."""
        counted = sum(int(float(n)) for n in re.findall(r"^tokenring_panics\S* (\S+)", self.metrics(), re.M))
        return counted + self.log().count("panicked at")


class Nginx(Process):
    """The same setup on nginx, to see that the checks are right. It has no h2 upstream and no keys."""

    kind = "nginx"
    number = 0

    def __init__(self, setup, log_level="info"):
        Nginx.number += 1
        self.setup = setup
        self.home = WORK / f"nginx-{Nginx.number}"
        self.home.mkdir()
        self.config = self.home / "nginx.conf"
        self.config.write_text(self.text(log_level))
        # A fixed ticket key plays the part of `state_dir`.
        super().__init__("nginx", ["nginx", "-p", self.home, "-c", self.config, "-e", "stderr"])
        for listener in setup.listeners:
            wait_for_port(listener.port, self)

    def text(self, log_level="info"):
        s = self.setup
        out = [f"worker_processes {s.cores};", "daemon off;", f"pid {self.home}/pid;", f"error_log stderr {log_level};",
               f"worker_shutdown_timeout {s.drain};", "events { worker_connections 4096; }", "http {", "access_log off;",
               *(f"{k}_temp_path {self.home}/{k};" for k in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))]
        for u in s.upstreams:
            out.append(f"upstream {u.name} {{ server {re.sub(r'^https?://', '', u.url)}; keepalive 64; }}")
        for listener in s.listeners:
            for number, (cert, key, names) in enumerate(listener.certs or [(None, None, ["_"])]):
                first = " default_server reuseport" if number == 0 else ""
                out += ["server {", f"listen 127.0.0.1:{listener.port}{' ssl' if cert else ''}{' http2' if 'h2' in listener.alpn else ''}{first};",
                        f"server_name {' '.join(names) or '_'};", "client_max_body_size 0;", "keepalive_requests 100000000;"]
                if cert:
                    versions = "TLSv1.3" if listener.min_version == "1.3" else "TLSv1.2 TLSv1.3"
                    out += [f"ssl_certificate {cert};", f"ssl_certificate_key {key};", f"ssl_protocols {versions};"]
                if cert and s.state_dir:
                    ticket = pathlib.Path(s.state_dir) / "ticket.key"
                    if not ticket.exists():
                        ticket.write_bytes(random.randbytes(80))
                    out.append(f"ssl_session_ticket_key {ticket};")
                if listener.client_ca:
                    out += [f"ssl_client_certificate {listener.client_ca};", "ssl_verify_client on;"]
                if "client_head" in listener.timeouts:
                    out.append(f"client_header_timeout {listener.timeouts['client_head']};")
                out += ["proxy_http_version 1.1;", 'proxy_set_header Connection "";', "proxy_buffering off;",
                        "proxy_request_buffering off;", "proxy_ssl_server_name on;"]
                for u in s.upstreams:
                    out += self.location(f"/{u.name}/", u)
                    if u.models:
                        out += self.location("/", u)
                out.append("}")
        return "\n".join([*out, "}", ""])

    def location(self, path, u):
        scheme, host = re.match(r"(https?)://([^:/]+)", u.url).groups()
        out = [f"location {path} {{", f"proxy_pass {scheme}://{u.name};", "proxy_set_header Host $host;"]
        if scheme == "https":
            out.append(f"proxy_ssl_name {u.tls.get('server_name') or host};")
            out.append(f"proxy_ssl_verify {'on' if u.tls.get('verify', True) else 'off'};")
            out.append(f"proxy_ssl_trusted_certificate {u.tls.get('ca') or '/etc/ssl/certs/ca-certificates.crt'};")
            out.append("proxy_ssl_protocols TLSv1.2 TLSv1.3;")
            if u.tls.get("cert"):
                out += [f"proxy_ssl_certificate {u.tls['cert']};", f"proxy_ssl_certificate_key {u.tls['key']};"]
        return [*out, "}"]

    def panics(self):
        return self.log().count("exited on signal")


def subject():
    """What is tested: tokenring, or nginx with `--against nginx`."""
    if "--against" in sys.argv:
        expect(sys.argv[sys.argv.index("--against") + 1] == "nginx", "only --against nginx")
        need("nginx", LOADTEST)
        return Nginx
    need(TOKENRING, LOADTEST)
    return Tokenring


# --------------------------------------------------------------------- curl


class Answer:
    """What curl said: `code` is its exit code, `status` 0 when there was no answer."""

    def __init__(self, code, status, version, body, errors):
        self.code, self.status, self.version, self.body, self.errors = code, status, version, body, errors

    def __repr__(self):
        return f"curl {self.code}, status {self.status}, HTTP/{self.version}, {self.body[:160]!r} {self.errors[-200:]}"


def curl(url, *options, limit=20):
    """One request; the body comes back as bytes."""
    mark = "\n@@%{http_code} %{http_version}"
    run = subprocess.run(["curl", "-sS", "--noproxy", "*", "-m", str(limit), "-w", mark, *map(str, options), url],
                         capture_output=True, timeout=limit + 5)
    body, _, tail = run.stdout.rpartition(b"\n@@")
    status, version = (tail.decode().split() + ["0", "0"])[:2]
    return Answer(run.returncode, int(status), version, body, run.stderr.decode(errors="replace").strip())


def chat(stream=False, tokens=None):
    """Body of a request for the mock."""
    body = {"messages": [{"role": "user", "content": "hello"}], "model": "mock-model"}
    if stream:
        body["stream"] = True
    if tokens:
        body["max_tokens"] = tokens
    return json.dumps(body)
