#!/usr/bin/env python3
"""User instructions of the proxy for one request of 1 KB and for one chunk of a stream, by callgrind.

usage: scripts/instructions.py [--against OTHER-BINARY] [--key]

CPU times on a shared machine swing by a fifth; instructions do not. Two runs under valgrind, on io_uring and one core,
that take as long and do more and less: what the one took more, divided by what it did more. So what the clock alone
costs (a tick each 50 ms) cancels out. Wants a quiet machine all the same: how many chunks and requests one turn of the
loop finds changes what each costs. `--against` measures another binary (TOKENRING is the first) and fails above 1.02 of it; `--key` puts a client
key with a limit in the way.
"""
import argparse
import contextlib
import json
import re
import signal
import socket
import sys
import time

import bed

bed.need("valgrind", bed.TOKENRING, bed.LOADTEST)
parser = argparse.ArgumentParser()
parser.add_argument("--against")
parser.add_argument("--key", action="store_true")
args = parser.parse_args()

CONNECTIONS = 16
SHORT, LONG = 600, 3000
CHUNKS_SHORT, CHUNKS_LONG = 20, 220
# Far enough apart that each chunk is read alone, however slow valgrind is.
mock = bed.Mock("--tokens", "400", "--interval", "20ms")


def body(stream, tokens=8):
    said = {"messages": [{"role": "user", "content": ""}], "stream": stream, "max_tokens": tokens, "seed": 7, "model": "mock-model"}
    said["messages"][0]["content"] = "x" * (1024 - len(json.dumps(said)))
    return json.dumps(said).encode()


def request(stream, tokens=8):
    content = body(stream, tokens)
    return (f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-a\r\nUser-Agent: instructions/1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n").encode() + content


def read_answer(client, left):
    """Reads one answer; returns what came behind it."""
    read = bed.read_http(client, left)
    bed.expect(read, "the proxy closed")
    head, _, left = read
    bed.expect(bed.status_of(head) == 200, head.decode())
    return left


def instructions(binary, requests, stream_tokens=None, lasts=0):
    """All user instructions of a proxy that serves this many requests, and how many seconds it took; `lasts` at least."""
    port = bed.free_port()
    key = '[[key]]\nname = "a"\nkey = "sk-a"\nrpm = 1000000\n' if args.key else ""
    config = bed.WORK / "instructions.toml"
    config.write_text(f'[process]\ncores = 1\n[[listener]]\nname = "main"\nbind = "127.0.0.1:{port}"\n'
                      f'auth = "{"keys" if args.key else "none"}"\n{key}'
                      f'[[upstream]]\nname = "mock"\nurl = "http://127.0.0.1:{mock.port}"\nmodels = ["mock-model"]\n')
    out = bed.WORK / "callgrind.out"
    proxy = bed.Process("callgrind", ["valgrind", "--tool=callgrind", "--fair-sched=yes", f"--callgrind-out-file={out}", binary, "serve", "-c", config])
    # A core that waits in its ring keeps valgrind's lock from the threads that still start: minutes.
    bed.wait_for_port(port, proxy, 600)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 60)) for _ in range(CONNECTIONS)]
        left = [b""] * CONNECTIONS
        begun = time.monotonic()
        sent = request(False) if stream_tokens is None else request(True, stream_tokens)
        for _ in range(requests // CONNECTIONS):
            for client in clients:
                client.sendall(sent)
            for at, client in enumerate(clients):
                left[at] = read_answer(client, left[at])
        took = time.monotonic() - begun
        time.sleep(max(0, lasts - took))
    proxy.signal(signal.SIGTERM)
    proxy.wait(120)
    found = re.search(r"Collected : (\d+)", proxy.log())
    bed.expect(found, proxy.log()[-1000:])
    bed.expect("io_uring" in proxy.log(), "not on io_uring")
    return int(found[1]), took


def measured(binary):
    def more(few, many, *, chunks=False):
        """What the longer of two runs costs more; the shorter one waits until it has lasted as long."""
        def run(n, lasts=0):
            return instructions(binary, CONNECTIONS, n, lasts) if chunks else instructions(binary, n, None, lasts)
        long, took = run(many)
        return long - run(few, took)[0]

    request_cost = more(SHORT, LONG) / (LONG // CONNECTIONS - SHORT // CONNECTIONS) / CONNECTIONS
    chunk = more(CHUNKS_SHORT, CHUNKS_LONG, chunks=True) / CONNECTIONS / (CHUNKS_LONG - CHUNKS_SHORT)
    print(f"{binary}: {request_cost:,.0f} a request of 1 KB, {chunk:,.0f} a chunk", flush=True)
    return request_cost, chunk


ours = measured(bed.TOKENRING)
if args.against:
    other = measured(args.against)
    ratios = [a / b for a, b in zip(ours, other)]
    print(f"ratio: {ratios[0]:.3f} a request, {ratios[1]:.3f} a chunk")
    sys.exit(1 if max(ratios) > 1.02 else 0)
