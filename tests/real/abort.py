#!/usr/bin/env python3
"""Leaves in the middle of an answer and watches a real llama-server stop.

What counts in a stream is the engine's own gauge of running requests,
`llamacpp:requests_processing`: after the client has gone it must return to 0 within a second.
The same is done to the engine itself first, so that the table tells what the engine needs from
what the proxy adds.

Before its first byte llama-server does not look at its connection at all, so there the gauge
says nothing of the proxy. What counts there is the proxy's connection to the engine, as the
kernel lists it: it must be gone within 100 ms.

usage: abort.py --proxy PORT --engine PORT --key CLIENT_KEY [--engine-key sk-test] [--model slow]
Exit: 0 all within their bounds, 1 not.
"""

import argparse
import json
import socket
import struct
import sys
import time
import urllib.request

GAUGE_LIMIT_S = 1.0
CONNECTION_LIMIT_S = 0.1
GIVE_UP_S = 60
# Tokens of an answer that nobody stops: long enough to leave it, short enough to wait for.
STREAM_TOKENS = 2000
SILENT_TOKENS = 150
ESTABLISHED = "01"


def running(engine, key):
    """The engine's gauge of running requests."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{engine}/metrics", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("llamacpp:requests_processing "):
                return float(line.split()[1])
    sys.exit("abort: the engine has no gauge llamacpp:requests_processing; start it with --metrics")


def connections(engine):
    """Established connections towards the engine, its own ends not counted."""
    towards = f"0100007F:{engine:04X}"
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(1 for row in rows if row[2] == towards and row[3] == ESTABLISHED)


def wait_for(met, pause=0.01):
    """Seconds until `met()`; None when it never comes."""
    began = time.monotonic()
    while time.monotonic() - began < GIVE_UP_S:
        if met():
            return time.monotonic() - began
        time.sleep(pause)
    return None


def send(port, key, model, stream):
    """Asks for an answer that lasts for a while; returns the connection."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": "Say something."}],
            "model": model,
            "max_tokens": STREAM_TOKENS if stream else SILENT_TOKENS,
            "ignore_eos": True,
            "stream": stream,
        }
    ).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (key.encode(), len(body), body)
    )
    return connection


def read_events(connection, count):
    """Reads until `count` events have come."""
    seen = b""
    while seen.count(b"data: ") < count:
        more = connection.recv(65536)
        if not more or (seen and not seen.startswith(b"HTTP/1.1 200")):
            sys.exit(f"abort: no stream: {(seen + more)[:300]!r}")
        seen += more


def leave(connection, reset):
    """Closes, with a FIN or with a reset."""
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def leave_stream(port, key, args, reset):
    """Seconds from leaving a stream until the gauge is 0; None when it never is."""
    connection = send(port, key, args.model, True)
    read_events(connection, 4)
    if running(args.engine, args.engine_key) < 1:
        sys.exit("abort: the stream is over too soon; the engine is too fast for this check")
    leave(connection, reset)
    return wait_for(lambda: running(args.engine, args.engine_key) == 0)


def leave_silence(port, key, args, reset):
    """Seconds from leaving before the first byte until nobody is connected to the engine."""
    if wait_for(lambda: connections(args.engine) == 0) is None:
        sys.exit("abort: somebody else is connected to the engine")
    connection = send(port, key, args.model, False)
    if wait_for(lambda: running(args.engine, args.engine_key) >= 1) is None:
        sys.exit("abort: the request never ran")
    leave(connection, reset)
    took = wait_for(lambda: connections(args.engine) == 0, pause=0.001)
    # The engine goes on to its last token; the next try begins with an idle one.
    wait_for(lambda: running(args.engine, args.engine_key) == 0, pause=0.1)
    return took


# Name, how, reset, bound in seconds, whether the engine itself is measured too.
WAYS = [
    ("mid-stream, close: gauge", leave_stream, False, GAUGE_LIMIT_S, True),
    ("mid-stream, reset: gauge", leave_stream, True, GAUGE_LIMIT_S, True),
    ("before first byte, close: conn.", leave_silence, False, CONNECTION_LIMIT_S, False),
    ("before first byte, reset: conn.", leave_silence, True, CONNECTION_LIMIT_S, False),
]


def shown(seconds):
    """Milliseconds, as the table prints them."""
    return "never" if seconds is None else f"{seconds * 1000:.0f} ms"


def worst(times):
    """The longest; None when one never came."""
    return None if None in times else max(times)


def main():
    parser = argparse.ArgumentParser(description="Leaves in the middle of an answer.")
    parser.add_argument("--proxy", type=int, required=True, help="port of the proxy")
    parser.add_argument("--engine", type=int, required=True, help="port of llama-server")
    parser.add_argument("--key", required=True, help="key for the proxy")
    parser.add_argument("--engine-key", default="sk-test")
    parser.add_argument("--model", default="slow")
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    print(f"{'leaving':<32} {'direct, worst':>14} {'proxied, worst':>15} {'bound':>8}")
    failed = 0
    for name, how, reset, bound, both in WAYS:
        direct = "-"
        if both:
            direct = [how(args.engine, args.engine_key, args, reset) for _ in range(args.times)]
            direct = shown(worst(direct))
        proxied = worst([how(args.proxy, args.key, args, reset) for _ in range(args.times)])
        good = proxied is not None and proxied <= bound
        failed += not good
        verdict = "ok" if good else "TOO LATE"
        print(f"{name:<32} {direct:>14} {shown(proxied):>15} {shown(bound):>8}  {verdict}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
