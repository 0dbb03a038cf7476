#!/usr/bin/env python3
"""What TLS and HTTP/2 cost: CPU of the proxy per request and per handshake, beside nginx.

usage: scripts/bench_tls.py [--rounds 5] [--secs 4] [--peers nginx,tokenring[,base]] [--tests h1,h2,handshake,short]
                            [--out FILE] [--check]

The one idea: CPU is that of the proxy's whole process tree, from a cgroup of its own (cpuacct of v1, cpu.stat
of v2, or else /proc), so that it is a fair figure also where the load generator is the limit. The proxy has
core 0 and one worker; the simulated server (`loadtest mock`) and the load share core 1. All run in a network
namespace of their own, where only the loopback exists. Rounds are interleaved; quote the ratios of medians
of one call, and take differences under 10 % for noise until more rounds say otherwise.

  h1         HTTP/1.1 over TLS 1.3, 1 KB up, about 1 KB down, 64 connections (wrk)
  h2         HTTP/2 over TLS 1.3, the same bodies, 8 connections with 8 streams each (h2load)
  handshake  full TLS 1.3 handshakes and nothing else, four at a time (openssl s_time -new)
  short      a full handshake and one request of h1 on each connection (wrk, Connection: close)

A client pays two to three times what the server pays for a handshake (it verifies what the server signs), so
one core of clients cannot saturate one core of the proxy: the figure is CPU per handshake, and the rate of one
core follows from it. The column "load" shows how busy core 1 was.

Needs root, 2 cores, nginx with ssl and http2, wrk, h2load (nghttp2-client), openssl, and the binaries
TOKENRING, LOADTEST and, for the peer base, TOKENRING_BASE. A round of two peers takes 16 times --secs.
Exit: 1 when a request failed, or with --check when a ratio is above its target (h1 0.85, h2 0.80,
handshake 0.85); 2 when it could not run.
"""
import argparse
import contextlib
import fcntl
import json
import os
import pathlib
import re
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import time

import bed
from bed import WORK, free_port

TARGETS = {"h1": 0.85, "h2": 0.80, "handshake": 0.85}
BODY, SCRIPT = WORK / "1k.json", WORK / "post.lua"
CERT, KEY = WORK / "cert.pem", WORK / "key.pem"

POST = """
local f = assert(io.open("%s", "rb"))
wrk.method, wrk.body = "POST", f:read("*a")
f:close()
wrk.headers["Content-Type"] = "application/json"
%s
function done(s, lat)
  local e = s.errors
  io.write(string.format('JSON{"count":%%d,"p50_us":%%d,"p99_us":%%d,"errors":%%d}\\n', s.requests, lat:percentile(50),
    lat:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
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
        listen 127.0.0.1:{port} ssl http2 backlog=4096;
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
name = "bench"
bind = "127.0.0.1:{port}"
auth = "none"
tls = {{ cert = "{cert}", key = "{key}" }}
[[upstream]]
name = "mock"
url = "http://127.0.0.1:{mock}"
models = ["mock-model"]
"""


# ------------------------------------------------------------------ accounting


class Account:
    """CPU of a process tree on one core, in seconds."""

    def __init__(self, name):
        self.name, self.dir, self.kind = f"tokenring-bench-{os.getpid()}-{name}", None, "proc"
        for kind, base in [("v1", "/sys/fs/cgroup/cpuacct"), ("v2", "/sys/fs/cgroup")]:
            base = pathlib.Path(base)
            if not (base / ("cpuacct.usage" if kind == "v1" else "cgroup.controllers")).exists():
                continue
            with contextlib.suppress(OSError):
                (base / self.name).mkdir()
                self.dir, self.kind = base / self.name, kind
                break

    def take(self, process):
        """Counts a process that has just begun, and all that comes from it."""
        self.process = process
        if self.dir:
            for pid in process.tree():
                (self.dir / "cgroup.procs").write_text(str(pid))

    def seconds(self):
        if self.kind == "v1":
            return int((self.dir / "cpuacct.usage").read_text()) / 1e9
        if self.kind == "v2":
            return int(re.search(r"usage_usec (\d+)", (self.dir / "cpu.stat").read_text())[1]) / 1e6
        return self.process.cpu_seconds()

    def close(self):
        if self.dir:
            for _ in range(100):
                with contextlib.suppress(OSError):
                    self.dir.rmdir()
                    return
                time.sleep(0.02)


def core_seconds(core):
    """How long a core has not been idle."""
    for line in open("/proc/stat"):
        fields = line.split()
        if fields[0] == f"cpu{core}":
            user, nice, system, _idle, _wait, irq, soft = map(int, fields[1:8])
            return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")
    return 0.0


# ----------------------------------------------------------------------- peers


def start(peer, mock_port):
    """Starts a peer on core 0; returns its process, its account and its port."""
    port = free_port()
    values = {"port": port, "mock": mock_port, "cert": CERT, "key": KEY, "home": WORK / f"{peer}-home"}
    values["home"].mkdir(exist_ok=True)
    config = values["home"] / "config"
    if peer == "nginx":
        config.write_text(NGINX.format(**values))
        argv = ["nginx", "-p", values["home"], "-c", config, "-e", "stderr"]
    else:
        config.write_text(TOKENRING.format(**values))
        argv = [os.environ["TOKENRING_BASE"] if peer == "base" else bed.TOKENRING, "serve", "-c", config]
    account = Account(peer)
    # Joins its cgroup before it starts anything.
    join = f"echo $$ >{account.dir}/cgroup.procs; " if account.dir else ""
    process = bed.Process(peer, ["taskset", "-c", "0", "sh", "-c", join + 'exec "$@"', "sh", *argv])
    account.process = process
    bed.wait_for_port(port, process)
    probe(peer, port)
    return process, account, port


def probe(peer, port):
    """A peer that does not speak TLS 1.3 and both protocols is not compared."""
    made = ssl.create_default_context()
    made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
    for protocol in ("h2", "http/1.1"):
        made.set_alpn_protocols([protocol])
        with socket.create_connection(("127.0.0.1", port), 5) as raw, made.wrap_socket(raw) as sock:
            if (sock.version(), sock.selected_alpn_protocol()) != ("TLSv1.3", protocol):
                raise RuntimeError(f"{peer}: {sock.version()} {sock.selected_alpn_protocol()}, wanted TLSv1.3 {protocol}")
    got = bed.curl(f"https://127.0.0.1:{port}/v1/chat/completions", "-k", "--data-binary", f"@{BODY}", "-H", "Content-Type: application/json")
    if got.status != 200 or b"chat.completion" not in got.body:
        raise RuntimeError(f"{peer}: {got!r}")


# ------------------------------------------------------------------------ load


def loaded(argv):
    run = subprocess.run(["taskset", "-c", "1", *map(str, argv)], capture_output=True, text=True)
    return run.stdout + run.stderr


def wrk(port, secs, close=False):
    SCRIPT.write_text(POST % (BODY, 'wrk.headers["Connection"] = "close"' if close else ""))
    said = loaded(["wrk", "-t1", f"-c{16 if close else 64}", f"-d{secs}s", "--timeout", "30s", "-s", SCRIPT, f"https://127.0.0.1:{port}/v1/chat/completions"])
    found = re.search(r"^JSON(\{.*\})$", said, re.M)
    return json.loads(found[1]) if found else {"count": 0, "errors": said[-300:]}


def h2load(port, secs):
    url = f"https://127.0.0.1:{port}/v1/chat/completions"

    def go(count):
        said = loaded(["h2load", "-n", count, "-c", 8, "-m", 8, "-t", 1, "-d", BODY, "-H", "content-type: application/json", url])
        found = re.search(r"finished in ([\d.]+)(m?s),.*?(\d+) succeeded, (\d+) failed, (\d+) errored", said, re.S)
        codes = re.search(r"status codes: (\d+) 2xx", said)
        if not found or not codes:
            return 1.0, {"count": 0, "errors": said[-300:]}
        took = float(found[1]) / (1000 if found[2] == "ms" else 1)
        return took, {"count": int(codes[1]), "errors": count - int(codes[1])}

    took, first = h2load.rates.get(port) or go(1000)
    h2load.rates[port] = took, first
    if first["errors"]:
        return first
    return go(max(1000, int(1000 / took * secs)))[1]


h2load.rates = {}


def s_time(port, secs):
    argv = ["taskset", "-c", "1", "openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-tls1_3", "-time", str(secs)]
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


TESTS = {"h1": wrk, "h2": h2load, "handshake": s_time, "short": lambda port, secs: wrk(port, secs, True)}


def measure(account, test, port, secs):
    """One test of one peer."""
    TESTS[test](port, 1)  # Warm.
    for _ in range(40):  # Until what is left of it is done.
        before = account.seconds()
        time.sleep(0.1)
        if account.seconds() - before < 0.003:
            break
    cpu, load, began = account.seconds(), core_seconds(1), time.monotonic()
    got = TESTS[test](port, secs)
    time.sleep(0.05)
    took = time.monotonic() - began
    got["cpu_us"] = (account.seconds() - cpu) * 1e6 / max(got["count"], 1)
    got["proxy_busy"] = (account.seconds() - cpu) / took
    got["load_busy"] = (core_seconds(1) - load) / took
    got["rate"] = got["count"] / took
    return got


# ------------------------------------------------------------------------ main


def alone():
    """Goes on in a network namespace of its own, with its loopback up."""
    if os.geteuid() != 0:
        print("needs root: a network namespace and cgroups", file=sys.stderr)
        sys.exit(2)
    if os.environ.get("BENCH_TLS_ALONE") != "1":
        WORK.rmdir()  # The one that goes on makes its own.
        os.execvpe("unshare", ["unshare", "-n", sys.executable, *sys.argv], os.environ | {"BENCH_TLS_ALONE": "1"})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sh14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING by SIOCSIFFLAGS
        fcntl.ioctl(sock, 0x8914, request)


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("usage: ")[1].split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--secs", type=int, default=4)
    parser.add_argument("--peers", default="nginx,tokenring")
    parser.add_argument("--tests", default=",".join(TESTS))
    parser.add_argument("--out", default="")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    alone()
    peers, tests = args.peers.split(","), args.tests.split(",")
    bed.need("nginx", "wrk", "h2load", "openssl", "taskset", "curl", bed.LOADTEST, *([bed.TOKENRING] if "tokenring" in peers else []),
             *([os.environ.get("TOKENRING_BASE", "TOKENRING_BASE")] if "base" in peers else []))
    if len(os.sched_getaffinity(0)) < 2:
        print("needs 2 cores", file=sys.stderr)
        sys.exit(2)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj",
                    "/CN=localhost", "-keyout", KEY, "-out", CERT], check=True, capture_output=True)
    # The messages before the model, as the SDKs send them; 1024 bytes.
    text = '{"messages":[{"role":"user","content":"%s"}],"model":"mock-model"}'
    BODY.write_text(text % ("Explain how a reverse proxy decides. " * 40)[: 1024 - len(text) + 2])
    rows, failures = {}, []
    for number in range(1, args.rounds + 1):
        for peer in peers:
            port = free_port()
            mock = bed.Process("mock", ["taskset", "-c", "1", bed.LOADTEST, "mock", "--port", port, "--interval", "0ms", "--tokens", "100"])
            bed.wait_for_port(port, mock)
            process = account = None
            try:
                process, account, at = start(peer, port)
                for test in tests:
                    got = measure(account, test, at, args.secs)
                    rows.setdefault((test, peer), []).append(got)
                    if got["errors"] or not got["count"]:
                        failures.append(f"{peer} {test} round {number}: {got['errors']} of {got['count']}")
                    if args.out:
                        with open(args.out, "a") as out:
                            out.write(json.dumps({"round": number, "peer": peer, "test": test, "account": account.kind} | got) + "\n")
                    print(f"round {number}  {peer:10} {test:10} {got['cpu_us']:8.1f} us  {got['rate']:8.0f}/s  proxy {got['proxy_busy']:.2f}  "
                          f"load {got['load_busy']:.2f}", flush=True)
            except (RuntimeError, OSError, AssertionError, TimeoutError) as why:
                failures.append(f"{peer} round {number}: {why}")
                print(f"round {number}  {peer:10} FAILED: {why}", flush=True)
            finally:
                if process:
                    process.stop(3)
                    account.close()
                mock.stop(3)
    above = table(rows, peers, tests)
    for line in failures:
        print(f"FAIL  {line}")
    sys.exit(1 if failures or (args.check and above) else 0)


def table(rows, peers, tests):
    """Medians as markdown; returns the ratios that are above their target."""
    middle = lambda test, peer, key="cpu_us": statistics.median(got[key] for got in rows[test, peer])
    above = []
    print("\n| test | peer | CPU us (min..max) | to nginx | target | per second, one core | proxy busy | load busy |\n|---|---|---|---|---|---|---|---|")
    for test in tests:
        for peer in peers:
            if (test, peer) not in rows:
                continue
            costs = [got["cpu_us"] for got in rows[test, peer]]
            ratio = middle(test, peer) / middle(test, "nginx") if (test, "nginx") in rows else None
            target = TARGETS.get(test) if peer == "tokenring" else None
            if ratio and target and ratio > target:
                above.append((test, ratio))
            print(f"| {test} | {peer} | **{middle(test, peer):.1f}** ({min(costs):.1f}..{max(costs):.1f}) | {f'{ratio:.2f}' if ratio else '-'} | "
                  f"{f'≤ {target:.2f}' if target else '-'} | {1e6 / max(middle(test, peer), 1e-9):.0f} | {middle(test, peer, 'proxy_busy'):.2f} | "
                  f"{middle(test, peer, 'load_busy'):.2f} |")
    return above


main()
