#!/usr/bin/env python3
"""CPU that a proxy takes per request and per chunk of a stream, side by side with HAProxy and nginx.

usage: scripts/bench.py [--rounds 5] [--secs 4] [--peers NAME,…] [--cases NAME,…] [--syscalls]
                        [--out FILE] [--check]

Peers, each with one worker on core 0 (default: all but base):
  haproxy-tcp    HAProxy as a TCP relay: it moves bytes and reads none of them, the least that a proxy can take
  nginx          a reverse proxy with keep-alive on both sides and no buffering of answers
  haproxy        the same in HAProxy's HTTP mode
  haproxy-model  HAProxy that routes by the `model` in the body, as tokenring does
  tokenring      the binary TOKENRING [target/release/tokenring]
  base           another tokenring, TOKENRING_BASE: shows what a change did

Cases (default: all), the simulated server (`loadtest mock`) and the load on core 1:
  1k         HTTP/1.1, 1 KB up, about 1 KB down, 64 connections (loadtest run)
  100k       the same with 100 KB up
  stream     100 streams at a time of 50 tokens, one each 10 ms; the figure is per event (loadtest run)
  tls        as 1k over TLS 1.3 (wrk)
  h2         HTTP/2 over TLS 1.3, 8 connections with 8 streams each, the bodies of 1k (h2load)
  handshake  full TLS 1.3 handshakes and nothing else, four at a time (openssl s_time -new)
  short      a full handshake and one request on each connection (wrk, Connection: close)

The one idea: the figure is the CPU time of the proxy's whole process tree (user and system, from /proc/PID/stat)
divided by what was served, so that it is fair also where the load generator is the limit. In each round all peers
take their turn; what is told is the median over the rounds. Quote ratios of medians of one call, and take
differences under 10 % for noise until more rounds say otherwise. A client pays two to three times what the server
pays for a handshake, so one core of clients cannot saturate one core of a proxy: there the rate of one core follows
from the figure.

Everything runs in a network namespace of its own, where only the loopback exists, when this may be made (root);
otherwise on the machine's loopback, which is said in the output.

Needs 2 cores, the Debian packages haproxy, nginx, wrk, nghttp2-client, openssl and curl (what the chosen peers and
cases do not use may be missing), with --syscalls linux-perf and root, and `cargo build --release --workspace`. A
round takes about 40 s for each peer with all cases. Markdown goes to stdout, progress to stderr.
Exit: 1 when a request failed, or with --check when tokenring takes more of nginx's CPU than 0.85 (tls), 0.80 (h2),
0.85 (handshake); 2 when it could not run.
"""
import argparse
import contextlib
import fcntl
import json
import os
import re
import resource
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time

import bed
from bed import WORK, free_port

PEERS = ["haproxy-tcp", "nginx", "haproxy", "haproxy-model", "tokenring", "base"]
TLS_PEERS = {"nginx", "haproxy", "tokenring", "base"}
TLS_CASES = ["tls", "h2", "handshake", "short"]
CASES = ["1k", "100k", "stream", *TLS_CASES]
TARGETS = {"tls": 0.85, "h2": 0.80, "handshake": 0.85}
CERT, KEY, BOTH = WORK / "cert.pem", WORK / "key.pem", WORK / "both.pem"
PATH = "/v1/chat/completions"

# ------------------------------------------------------------------ the peers

HAPROXY = """
global
    nbthread 1
    maxconn 8192
{tuning}
defaults
    mode http
    option http-keep-alive
    option http-no-delay
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend f
    bind 127.0.0.1:{plain} backlog 4096
    bind 127.0.0.1:{tls} backlog 4096 ssl crt {both} alpn h2,http/1.1
{rules}
    default_backend b
backend b
    server s 127.0.0.1:{mock} pool-max-conn 2048
"""

MODEL_RULES = r"""
    http-request wait-for-body time 10s at-least 128k
    http-request set-var(txn.model) 'req.body,json_query("$.model")'
    http-request return status 404 content-type application/json string "{{}}" unless {{ var(txn.model) -m str mock-model }}
"""

HAPROXY_TCP = """
global
    nbthread 1
    maxconn 8192
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend f
    bind 127.0.0.1:{plain} backlog 4096
    default_backend b
backend b
    server s 127.0.0.1:{mock}
"""

NGINX = """
worker_processes 1;
daemon off;
pid {home}/pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {home};
    proxy_temp_path {home};
    upstream mock {{ server 127.0.0.1:{mock}; keepalive 1024; keepalive_requests 100000000; }}
    server {{
        listen 127.0.0.1:{plain} backlog=4096;
        listen 127.0.0.1:{tls} ssl http2 backlog=4096;
        ssl_certificate {cert};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        keepalive_requests 100000000;
        client_body_buffer_size 256k;
        client_max_body_size 64m;
        location / {{
            proxy_pass http://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
        }}
    }}
}}
"""

TOKENRING = """
[process]
cores = 1
[[listener]]
name = "plain"
bind = "127.0.0.1:{plain}"
auth = "none"
[[listener]]
name = "tls"
bind = "127.0.0.1:{tls}"
auth = "none"
tls = {{ cert = "{cert}", key = "{key}" }}
[[upstream]]
name = "mock"
url = "http://127.0.0.1:{mock}"
models = ["mock-model"]
"""


def binary(peer):
    if peer == "base":
        return os.environ.get("TOKENRING_BASE", "TOKENRING_BASE")
    return {"nginx": "nginx", "tokenring": bed.TOKENRING}.get(peer, "haproxy")


class Peer(bed.Process):
    """A proxy on core 0, ready to serve."""

    def __init__(self, peer, mock, with_tls):
        self.plain, self.tls = free_port(), free_port()
        home = WORK / f"{peer}-home"
        home.mkdir(exist_ok=True)
        values = {"plain": self.plain, "tls": self.tls, "mock": mock, "cert": CERT, "key": KEY, "both": BOTH, "home": home}
        config = home / "config"
        if peer == "nginx":
            text, argv = NGINX.format(**values), ["nginx", "-p", home, "-c", config, "-e", "stderr"]
        elif peer in ("tokenring", "base"):
            text, argv = TOKENRING.format(**values), [binary(peer), "serve", "-c", config]
        else:
            # A body has to fit into a buffer, or its model is not found.
            model = {"rules": MODEL_RULES.format(), "tuning": "    tune.bufsize 262144"}
            text = (HAPROXY_TCP if peer == "haproxy-tcp" else HAPROXY).format(
                **(model if peer == "haproxy-model" else {"rules": "", "tuning": ""}), **values)
            argv = ["haproxy", "-db", "-f", config]
        config.write_text(text)
        super().__init__(peer, ["taskset", "-c", "0", *argv])
        bed.wait_for_port(self.plain, self)
        self.probe(f"http://127.0.0.1:{self.plain}{PATH}")
        if with_tls:
            for protocol in ("h2", "http/1.1"):
                self.handshake(protocol)
            self.probe(f"https://127.0.0.1:{self.tls}{PATH}")

    def handshake(self, protocol):
        """A peer that does not speak TLS 1.3 and both protocols is not compared."""
        made = ssl.create_default_context()
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        made.set_alpn_protocols([protocol])
        with socket.create_connection(("127.0.0.1", self.tls), 5) as raw, made.wrap_socket(raw) as sock:
            got = sock.version(), sock.selected_alpn_protocol()
            bed.expect(got == ("TLSv1.3", protocol), f"{self.name}: {got}, wanted TLSv1.3 and {protocol}")

    def probe(self, url):
        got = bed.curl(url, "-k", "--data-binary", f"@{body('1k')}", "-H", "Content-Type: application/json")
        bed.expect(got.status == 200 and b"chat.completion" in got.body, f"{self.name}: {got!r}")


# ------------------------------------------------------------------- the load


def body(case):
    return WORK / f"{case}.json"


def write_bodies():
    """The messages before the model, as the SDKs of OpenAI and Anthropic send them."""
    for case, size, more in [("1k", 1024, ""), ("100k", 102400, ""), ("stream", 1024, ',"stream":true,"max_tokens":50')]:
        text = '{"messages":[{"role":"user","content":"%s"}],"model":"mock-model"' + more + "}"
        words = "Explain how a reverse proxy decides. " * (size // 30)
        body(case).write_text(text % words[: size - len(text) + 2])


def on_core_1(argv):
    run = subprocess.run(["taskset", "-c", "1", *map(str, argv)], capture_output=True, text=True)
    return run.stdout + run.stderr


def generator(case):
    """`loadtest run`, which checks every answer."""

    def go(peer, secs):
        url = f"http://127.0.0.1:{peer.plain}{PATH}"
        said = on_core_1([bed.LOADTEST, "run", url, "--body", body(case), "-c", 100 if case == "stream" else 64, "--duration",
                          f"{secs}s", "--lag-max", "10s", "--strict", "-q", "--json"])
        try:
            told = json.loads(said[said.index("{"):].splitlines()[0])
        except ValueError:
            return {"count": 0, "errors": said[-300:]}
        bad = sum(told["errors"].values()) + sum(told["wrong"].values()) + told["requests"] - told["statuses"].get("200", 0)
        return {"count": told["events" if case == "stream" else "ok"], "errors": bad}

    return go


WRK_POST = """
local f = assert(io.open("%s", "rb"))
wrk.method, wrk.body = "POST", f:read("*a")
f:close()
wrk.headers["Content-Type"] = "application/json"
%s
function done(s, lat)
  local e = s.errors
  io.write(string.format('JSON{"count":%%d,"errors":%%d}\\n', s.requests, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


def wrk(close):
    def go(peer, secs):
        script = WORK / "post.lua"
        script.write_text(WRK_POST % (body("1k"), 'wrk.headers["Connection"] = "close"' if close else ""))
        url = f"https://127.0.0.1:{peer.tls}{PATH}"
        said = on_core_1(["wrk", "-t1", f"-c{16 if close else 64}", f"-d{secs}s", "--timeout", "30s", "-s", script, url])
        found = re.search(r"^JSON(\{.*\})$", said, re.M)
        return json.loads(found[1]) if found else {"count": 0, "errors": said[-300:]}

    return go


def h2load(peer, secs):
    """It wants a number of requests, which the run before tells."""
    url = f"https://127.0.0.1:{peer.tls}{PATH}"
    count = max(1000, int(h2load.rates.get(peer.pid, 0) * secs))
    said = on_core_1(["h2load", "-n", count, "-c", 8, "-m", 8, "-t", 1, "-d", body("1k"), "-H", "content-type: application/json", url])
    found = re.search(r"finished in ([\d.]+)(m?s),", said)
    codes = re.search(r"status codes: (\d+) 2xx", said)
    if not found or not codes:
        return {"count": 0, "errors": said[-300:]}
    h2load.rates[peer.pid] = count / (float(found[1]) / (1000 if found[2] == "ms" else 1))
    return {"count": int(codes[1]), "errors": count - int(codes[1])}


h2load.rates = {}


def s_time(peer, secs):
    argv = ["taskset", "-c", "1", "openssl", "s_time", "-connect", f"127.0.0.1:{peer.tls}", "-new", "-tls1_3", "-time", str(secs)]
    runs = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(4)]
    count, errors = 0, 0
    for run in runs:
        said = run.communicate()[0]
        found = re.search(r"^(\d+) connections in \d+ real seconds", said, re.M)
        count += int(found[1]) if found else 0
        errors += 0 if found and run.returncode == 0 else 1
        # A letter for each connection: r is a resumed one, of which there must be none.
        errors += sum(line.count("r") for line in re.findall(r"^[r*]+$", said, re.M))
    return {"count": count, "errors": errors}


LOADS = {"1k": generator("1k"), "100k": generator("100k"), "stream": generator("stream"), "tls": wrk(False), "h2": h2load,
         "handshake": s_time, "short": wrk(True)}
TOOLS = {"tls": "wrk", "h2": "h2load", "handshake": "openssl", "short": "wrk"}


# ---------------------------------------------------------------- the figures


def core_seconds(core):
    """How long a core has not been idle."""
    for line in open("/proc/stat"):
        fields = line.split()
        if fields[0] == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, soft = map(int, fields[1:8])
            return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
    return 0.0


def settle(peer):
    """Waits until the proxy has nothing left to do."""
    for _ in range(50):
        before = peer.cpu_seconds()
        time.sleep(0.1)
        if peer.cpu_seconds() == before:
            return


def measure(peer, case, secs):
    LOADS[case](peer, 1)  # Warm.
    settle(peer)
    cpu, load, began = peer.cpu_seconds(), core_seconds(1), time.monotonic()
    got = LOADS[case](peer, secs)
    took = time.monotonic() - began
    settle(peer)
    spent = peer.cpu_seconds() - cpu
    got["cpu_us"] = spent * 1e6 / max(got["count"], 1)
    got["proxy_busy"], got["load_busy"], got["rate"] = spent / took, (core_seconds(1) - load) / took, got["count"] / took
    return got


def syscalls(peer, case):
    """System calls per request or event, as perf counts them."""
    perf = subprocess.Popen(["perf", "stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", ",".join(map(str, peer.tree()))],
                            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    time.sleep(0.3)
    got = LOADS[case](peer, 2)
    perf.send_signal(signal.SIGINT)
    found = re.search(r"^(\d+),", perf.communicate()[1], re.M)
    return int(found[1]) / max(got["count"], 1) if found else None


class Results:
    """What was measured, by case and peer, and the tables of it."""

    def __init__(self, peers, cases):
        self.peers, self.cases, self.rows = peers, cases, {}

    def add(self, case, peer, got):
        self.rows.setdefault((case, peer), []).append(got)

    def all(self, case, peer, key="cpu_us"):
        return [got[key] for got in self.rows.get((case, peer), []) if got.get(key) is not None]

    def middle(self, case, peer, key="cpu_us"):
        found = self.all(case, peer, key)
        return statistics.median(found) if found else None

    def overview(self):
        """One row a peer: the table for docs/performance.md."""
        units = {"stream": "stream, per event", "handshake": "TLS handshake", "short": "handshake and request"}
        calls = any(self.all(case, peer, "syscalls") for case in self.cases for peer in self.peers)
        extra = [f"system calls, {case}" for case in self.cases if case not in TLS_CASES] if calls else []
        lines = ["| µs of CPU | " + " | ".join([units.get(case, case) for case in self.cases] + extra) + " |",
                 "|---" * (1 + len(self.cases) + len(extra)) + "|"]
        for peer in self.peers:
            cells = [shown(self.middle(case, peer)) for case in self.cases]
            if calls:
                cells += [shown(self.middle(case, peer, "syscalls")) for case in self.cases if case not in TLS_CASES]
            lines.append(f"| {peer} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def details(self):
        lines = ["| case | peer | median (min..max) | to haproxy-tcp | to nginx | per second, one core | proxy busy | load busy |",
                 "|---|---|---|---|---|---|---|---|"]
        for case in self.cases:
            for peer in self.peers:
                costs = self.all(case, peer)
                if costs:
                    busy = [f"{self.middle(case, peer, key):.2f}" for key in ("proxy_busy", "load_busy")]
                    ratios = [f"{r:.2f}" if (r := self.ratio(case, peer, to)) else "-" for to in ("haproxy-tcp", "nginx")]
                    rate = 1e6 / max(self.middle(case, peer), 1e-9)
                    lines.append(f"| {case} | {peer} | **{shown(self.middle(case, peer))}** ({shown(min(costs))}..{shown(max(costs))}) | "
                                 f"{ratios[0]} | {ratios[1]} | {rate:.0f} | {busy[0]} | {busy[1]} |")
        return "\n".join(lines)

    def ratio(self, case, peer, to):
        base = self.middle(case, to)
        return self.middle(case, peer) / base if base else None

    def above_target(self):
        ratios = {case: self.ratio(case, "tokenring", "nginx") for case in TARGETS if self.all(case, "tokenring")}
        return [f"{case}: {r:.2f} of nginx, target {TARGETS[case]:.2f}" for case, r in ratios.items() if r and r > TARGETS[case]]


def shown(figure):
    if figure is None:
        return "-"
    return f"{figure:.0f}" if figure >= 100 else f"{figure:.1f}"


def said_by(*argv):
    with contextlib.suppress(OSError):
        run = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
        return (run.stdout + run.stderr).splitlines()[0].strip() if run.stdout + run.stderr else ""
    return ""


def machine(peers, alone):
    """What a reader has to know to judge the figures."""
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "unknown processor")
    told = [f"{os.cpu_count()} cores of {model}", f"Linux {os.uname().release}"]
    if any(peer.startswith("haproxy") for peer in peers):
        told.append(" ".join(said_by("haproxy", "-v").split()[:3]))
    if "nginx" in peers:
        told.append(said_by("nginx", "-v").removeprefix("nginx version: "))
    commit = said_by("git", "-C", bed.ROOT, "describe", "--always", "--dirty")
    told += [f"checkout {commit}"] if commit and "fatal" not in commit else []
    told += [] if alone else ["not in a network namespace of its own"]
    return ", ".join(told)


# ----------------------------------------------------------------------- main


def in_namespace():
    """Goes on in a network namespace of its own, with its loopback up; tells whether it could."""
    if os.environ.get("BENCH_ALONE") != "1":
        if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0:
            return False
        WORK.rmdir()  # The one that goes on makes its own.
        os.execvpe("unshare", ["unshare", "-n", sys.executable, *sys.argv], os.environ | {"BENCH_ALONE": "1"})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: IFF_UP, IFF_RUNNING
    return True


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\n")[0], epilog="The head of this file tells the rest.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=int, default=4)
    parser.add_argument("--peers", default=",".join(PEERS[:-1]))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--syscalls", action="store_true")
    parser.add_argument("--out", default="")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    args.peers, args.cases = args.peers.split(","), args.cases.split(",")
    for name in [*args.peers, *args.cases]:
        if name not in PEERS + CASES:
            parser.error(f"no peer or case is called {name}")
    return args


def one_turn(peer_name, args, number, results):
    """All cases of one peer in one round; returns what failed."""
    failures = []
    cases = [case for case in args.cases if case not in TLS_CASES or peer_name in TLS_PEERS]
    port = free_port()
    mock = bed.Process("mock", ["taskset", "-c", "1", bed.LOADTEST, "mock", "--port", port, "--interval", "10ms", "--tokens", "100"])
    peer = None
    try:
        bed.wait_for_port(port, mock)
        peer = Peer(peer_name, port, any(case in TLS_CASES for case in cases))
        for case in cases:
            got = measure(peer, case, args.secs)
            if args.syscalls and case not in TLS_CASES:
                got["syscalls"] = syscalls(peer, case)
            results.add(case, peer_name, got)
            if got["errors"] or not got["count"]:
                failures.append(f"{peer_name} {case} round {number}: {got['errors']} of {got['count']}")
            if args.out:
                with open(args.out, "a") as out:
                    out.write(json.dumps({"round": number, "peer": peer_name, "case": case} | got) + "\n")
            print(f"round {number}  {peer_name:13} {case:10} {got['cpu_us']:8.1f} us  {got['rate']:8.0f}/s  "
                  f"proxy {got['proxy_busy']:.2f}  load {got['load_busy']:.2f}", file=sys.stderr, flush=True)
    except (RuntimeError, OSError, AssertionError, TimeoutError) as why:
        failures.append(f"{peer_name} round {number}: {why}")
    finally:
        if peer:
            peer.stop(3)
        mock.stop(3)
    return failures


def main():
    args = arguments()
    if len(os.sched_getaffinity(0)) < 2:
        print("needs 2 cores", file=sys.stderr)
        sys.exit(2)
    alone = in_namespace()
    bed.need("taskset", "curl", "openssl", bed.LOADTEST, *{binary(peer) for peer in args.peers},
             *{TOOLS[case] for case in args.cases if case in TOOLS}, *(["perf"] if args.syscalls else []))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj",
                    "/CN=localhost", "-keyout", KEY, "-out", CERT], check=True, capture_output=True)
    BOTH.write_text(CERT.read_text() + KEY.read_text())
    write_bodies()
    results, failures = Results(args.peers, args.cases), []
    for number in range(1, args.rounds + 1):
        for peer in args.peers:
            failures += one_turn(peer, args, number, results)
    print(f"Medians of {args.rounds} rounds of {args.secs} s, {machine(args.peers, alone)}:\n")
    print(results.overview() + "\n\n" + results.details())
    above = results.above_target()
    for line in [f"FAIL  {failure}" for failure in failures] + [f"above the target  {line}" for line in above]:
        print(line, file=sys.stderr)
    sys.exit(1 if failures or (args.check and above) else 0)


if __name__ == "__main__":
    main()
