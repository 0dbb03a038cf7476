#!/usr/bin/env python3
"""Leaves in the middle of an answer and watches a real llama-server stop.

What counts is the engine's own gauge of running requests, `llamacpp:requests_processing`: after
the client has gone it must return to 0 within a second. Each way of leaving is tried on the
engine itself first, so that the table tells what the engine needs from what the proxy adds. An
engine that is still silent learns of a closed connection only when it next looks (llama-server:
once a second), so there the bound is its own time plus half a second.

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

STREAM_LIMIT_S = 1.0
SILENT_SLACK_S = 0.5
GIVE_UP_S = 20


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


def wait_for(engine, key, wanted):
    """Seconds until `wanted(gauge)`; None when it never comes."""
    began = time.monotonic()
    while time.monotonic() - began < GIVE_UP_S:
        if wanted(running(engine, key)):
            return time.monotonic() - began
        time.sleep(0.01)
    return None


def send(port, key, model, stream):
    """Asks for an answer that lasts for minutes; returns the connection."""
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": "Say something."}],
            "model": model,
            "max_tokens": 2000,
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


# Name, streamed, events read before leaving, reset.
WAYS = [
    ("mid-stream, close", True, 4, False),
    ("mid-stream, reset", True, 4, True),
    ("before the first byte, close", False, 0, False),
    ("before the first byte, reset", False, 0, True),
]


def measure(port, key, args, way):
    """Seconds from leaving until the gauge is 0; None when it never is."""
    _, stream, events, reset = way
    connection = send(port, key, args.model, stream)
    if events:
        read_events(connection, events)
    if wait_for(args.engine, args.engine_key, lambda gauge: gauge >= 1) is None:
        sys.exit("abort: the request never ran")
    leave(connection, reset)
    return wait_for(args.engine, args.engine_key, lambda gauge: gauge == 0)


def main():
    parser = argparse.ArgumentParser(description="Leaves in the middle of an answer.")
    parser.add_argument("--proxy", type=int, required=True, help="port of the proxy")
    parser.add_argument("--engine", type=int, required=True, help="port of llama-server")
    parser.add_argument("--key", required=True, help="key for the proxy")
    parser.add_argument("--engine-key", default="sk-test")
    parser.add_argument("--model", default="slow")
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    shown = lambda s: "never" if s is None else f"{s * 1000:.0f} ms"
    print(f"{'leaving':<30} {'direct, worst':>14} {'proxied, worst':>15} {'bound':>8}")
    failed = 0
    for way in WAYS:
        worst = []
        for port, key in ((args.engine, args.engine_key), (args.proxy, args.key)):
            times = [measure(port, key, args, way) for _ in range(args.times)]
            worst.append(None if None in times else max(times))
        direct, proxied = worst
        bound = STREAM_LIMIT_S if way[1] else max(STREAM_LIMIT_S, (direct or 0) + SILENT_SLACK_S)
        good = proxied is not None and proxied <= bound
        failed += not good
        print(
            f"{way[0]:<30} {shown(direct):>14} {shown(proxied):>15} {shown(bound):>8}"
            f"  {'ok' if good else 'TOO LATE'}"
        )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
