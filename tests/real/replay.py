#!/usr/bin/env python3
"""Replays captured SDK requests through the proxy and compares what the upstream receives.

The one idea: both ends are raw sockets, read by `scripts/bed.py`, so no HTTP library can mend or
reorder anything. Each captured request goes to the proxy byte for byte; a recording upstream keeps the
bytes that arrive. Body: the same SHA-256. Head: the same request line and the same fields, in
order, names and values as they were, but for hop-by-hop fields, Host and credentials.

Three rounds: a fresh connection for each request, one connection for all, and everything in
pieces of 7 bytes. Two listeners: one whose upstream has a bearer token (the client's credential
must be gone and the upstream's be there exactly once), one that lets credentials pass.

Each request must also have its line in the access log, in order, with the numbers that both ends have
counted: bytes of both bodies, tokens, status, attempts, who ended it.

usage: replay.py --proxy BINARY CAPTURES.jsonl      (one JSON object a line: head, body)
Exit: 0 all the same, 1 a difference, 2 it could not run.
"""

import argparse
import hashlib
import json
import os
import pathlib
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
import bed  # noqa: E402

# RFC 9110 §7.6.1, and what the Connection field names.
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"}
CREDENTIALS = {"authorization", "x-api-key", "x-goog-api-key"}
TOKEN = "sk-of-the-upstream"
LIMIT_S = 10

CONFIG = """
[process]
cores = 1
drain = "2s"

[log]
access = "{log}"

[[listener]]
name = "bearer"
bind = "127.0.0.1:{bearer}"
auth = "none"
forwarded = "off"
default_group = "bearer"

[[listener]]
name = "pass"
bind = "127.0.0.1:{passing}"
auth = "none"
forwarded = "off"
default_group = "pass"

[[upstream]]
name = "with-token"
url = "http://127.0.0.1:{upstream}"
auth = {{ type = "bearer", token = "{token}" }}
models = []

[[upstream]]
name = "passing"
url = "http://127.0.0.1:{upstream}"
auth = {{ type = "pass" }}
models = []

[[group]]
name = "bearer"
members = [{{ upstream = "with-token" }}]

[[group]]
name = "pass"
members = [{{ upstream = "passing" }}]
"""


def fields_of(head):
    """The fields of a head as (name, value), as they came; lines end in CRLF."""
    lines = head.decode("latin1").split("\r\n")[1:]
    return [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]


class Upstream(threading.Thread):
    """Keeps the bytes of every request and answers 200; connections stay open."""

    def __init__(self):
        super().__init__(daemon=True)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.seen = queue.Queue()
        self.lock = threading.Lock()
        self.count = 0
        self.answered = []

    def run(self):
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        rest = b""
        try:
            while True:
                read = bed.read_http(connection, rest)
                if read is None:
                    return
                head, body, rest = read
                self.seen.put((head, body))
                answer = self.answer()
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
                    b"content-length: %d\r\n\r\n%s" % (len(answer), answer)
                )
        except (OSError, EOFError, ValueError) as fault:
            self.seen.put(fault)
        finally:
            connection.close()

    def answer(self):
        """An answer with other numbers of tokens each time, in every dialect's words."""
        with self.lock:
            self.count += 1
            prompt, completion = 1000 + self.count, 1 + self.count % 97
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage |= {"input_tokens": prompt, "output_tokens": completion}
        answer = json.dumps({"seen": True, "usage": usage}).encode()
        self.answered.append((len(answer), prompt, completion))
        return answer

    def next(self):
        """The next request; raises when none comes."""
        found = self.seen.get(timeout=LIMIT_S)
        if isinstance(found, Exception):
            raise found
        return found


class Client:
    """Sends bytes to the proxy and reads one answer for each request."""

    def __init__(self, port, piece=None):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.piece = piece
        self.rest = b""

    def ask(self, request):
        """Returns the status and the body of the answer."""
        step = self.piece or len(request)
        for at in range(0, len(request), step):
            self.socket.sendall(request[at : at + step])
            if self.piece:
                # Long enough that most pieces are a read of their own.
                time.sleep(0.0002)
        read = bed.read_http(self.socket, self.rest)
        if read is None:
            raise ValueError("the proxy closed without an answer")
        head, body, self.rest = read
        return bed.status_of(head), body

    def close(self):
        self.socket.close()


def kept(head, credentials):
    """The fields that must arrive as they were; `credentials` tells whether those are among them."""
    found = fields_of(head)
    named = {
        token.strip().lower()
        for name, value in found
        if name.lower() == "connection"
        for token in value.split(",")
    }
    dropped = HOP_BY_HOP | named | {"host"} | (set() if credentials else CREDENTIALS)
    return [(name, value) for name, value in found if name.lower() not in dropped]


def differences(sent, received, passing, upstream_port):
    """Says what is not as it must be, one string a fault."""
    (sent_head, sent_body), (head, body) = sent, received
    faults = []
    if hashlib.sha256(sent_body).digest() != hashlib.sha256(body).digest():
        faults.append(f"body: {len(sent_body)} bytes sent, {len(body)} other bytes received")
    lines = [one.split(b"\r\n", 1)[0] for one in (sent_head, head)]
    if lines[0] != lines[1]:
        faults.append(f"request line: {lines[0]!r} became {lines[1]!r}")
    before, after = kept(sent_head, passing), kept(head, passing)
    if before != after:
        lost = [field for field in before if field not in after]
        new = [field for field in after if field not in before]
        faults.append(f"fields: lost {lost}, new {new}" if lost or new else "fields: other order")
    lower = [(name.lower(), value) for name, value in fields_of(head)]
    hosts = [value for name, value in lower if name == "host"]
    if hosts != [f"127.0.0.1:{upstream_port}"]:
        faults.append(f"host: {hosts}")
    if not passing:
        credentials = [field for field in lower if field[0] in CREDENTIALS]
        if credentials != [("authorization", f"Bearer {TOKEN}")]:
            # Names only: what was sent is somebody's key.
            faults.append(f"credentials: {[name for name, _ in credentials]}")
    if any(name in HOP_BY_HOP - {"transfer-encoding", "connection"} for name, _ in lower):
        faults.append("hop-by-hop field passed on")
    return faults


def start_proxy(binary, config, port):
    """Starts the proxy and waits until it accepts."""
    process = subprocess.Popen([binary, "serve", "-c", config], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT_S
    while True:
        if process.poll() is not None:
            sys.exit("replay: the proxy ended at once")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return process
        except OSError:
            if time.monotonic() > deadline:
                process.kill()
                sys.exit("replay: the proxy does not listen")
            time.sleep(0.05)


def answered_here(line):
    """Whether the proxy answers this request itself."""
    return line.split("?")[0].split(" ")[:2] == ["GET", "/v1/models"]


def replay_one(client, upstream, head, body, passing, expected):
    """Sends one request; returns its faults, or None when the proxy answered it itself.

    `expected` is given what the access log must say of it.
    """
    status, answer = client.ask(head + b"\r\n\r\n" + body)
    method, target = head.decode("latin1").split("\r\n", 1)[0].split(" ")[:2]
    here = answered_here(f"{method} {target}")
    line = {
        "method": method,
        "path": target.split("?")[0],
        "status": status,
        "request_bytes": len(body),
        "response_bytes": len(answer),
        "attempts": 0 if here else 1,
        "finish": "ok",
    }
    if not here and upstream.answered:
        size, prompt, completion = upstream.answered[-1]
        line |= {"upstream": "passing" if passing else "with-token", "upstream_status": 200}
        line |= {"response_bytes": size, "failed": []}
        if target.split("?")[0].endswith(("/completions", "/messages", "/responses")):
            line |= {"prompt_tokens": prompt, "completion_tokens": completion}
        try:
            line["model"] = json.loads(body)["model"]
        except (ValueError, KeyError, TypeError):
            pass
    expected.append(line)
    if answered_here(head.decode("latin1").split("\r\n", 1)[0]):
        is_list = status == 200 and json.loads(answer).get("object") == "list"
        return None if is_list else [f"models list: status {status}"]
    if status != 200:
        return [f"status {status}: {answer[:120].decode('utf8', 'replace')}"]
    return differences((head, body), upstream.next(), passing, upstream.port)


def log_faults(path, expected):
    """Compares the access log with what both ends have counted."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        with open(path, encoding="utf8") as file:
            lines = [json.loads(line) for line in file]
        if len(lines) >= len(expected) or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    faults = []
    if len(lines) != len(expected):
        faults.append(f"{len(lines)} lines for {len(expected)} requests")
    for number, (line, wanted) in enumerate(zip(lines, expected)):
        for name, value in wanted.items():
            if line.get(name) != value:
                faults.append(f"line {number} ({wanted['path']}): {name} {line.get(name)!r}, not {value!r}")
    return faults


def replay(captures, upstream, ports, expected):
    """Replays everything; prints the table and returns the number of faults."""
    rounds = [("fresh", None, False), ("kept", None, True), ("7 bytes", 7, False)]
    columns = [(name, port, how) for name, port in ports.items() for how in rounds]
    results = {}
    for name, port, (how, piece, keep) in columns:
        client = None
        for number, (head, body) in enumerate(captures):
            client = client or Client(port, piece)
            try:
                found = replay_one(client, upstream, head, body, name == "pass", expected)
            except (OSError, EOFError, ValueError, queue.Empty) as fault:
                found = [f"{type(fault).__name__} {fault}".strip()]
            results[number, name, how] = found
            if not keep or found:
                client.close()
                client = None
        if client:
            client.close()
    width = max(len(f"{name}/{how}") for name, _, (how, _, _) in columns)
    heads = "  ".join(f"{name}/{how}".ljust(width) for name, _, (how, _, _) in columns)
    print(f"{'request':<58}  {'bytes':>6}  {'sha256':<8}  {heads}")
    failed = 0
    for number, (head, body) in enumerate(captures):
        line = head.decode("latin1").split(" HTTP/", 1)[0]
        digest = hashlib.sha256(body).hexdigest()[:8]
        cells = []
        faults = []
        for name, _, (how, _, _) in columns:
            found = results[number, name, how]
            cells.append("here" if found is None else "DIFFERS" if found else "same")
            faults += [f"    {name}/{how}: {fault}" for fault in found or []]
        print(f"{line:<58.58}  {len(body):>6}  {digest}  " + "  ".join(c.ljust(width) for c in cells))
        print("".join(fault + "\n" for fault in faults), end="")
        failed += len(faults)
    return failed


def main():
    parser = argparse.ArgumentParser(description="Replays captured requests through the proxy.")
    parser.add_argument("--proxy", default="target/release/tokenring", help="the binary")
    parser.add_argument("captures", help="one JSON object a line: head, body")
    args = parser.parse_args()
    captures = []
    with open(args.captures, encoding="utf8") as lines:
        for line in lines:
            one = json.loads(line)
            captures.append((one["head"].encode("latin1"), one["body"].encode("utf8")))
    if not captures:
        sys.exit("replay: no captures")
    upstream = Upstream()
    upstream.start()
    ports = {"bearer": bed.free_port(), "pass": bed.free_port()}
    with tempfile.TemporaryDirectory() as folder:
        config, log = os.path.join(folder, "replay.toml"), os.path.join(folder, "access.log")
        with open(config, "w", encoding="utf8") as file:
            file.write(
                CONFIG.format(
                    bearer=ports["bearer"],
                    passing=ports["pass"],
                    upstream=upstream.port,
                    log=log,
                    token=TOKEN,
                )
            )
        process = start_proxy(args.proxy, config, ports["bearer"])
        try:
            expected = []
            failed = replay(captures, upstream, ports, expected)
            told = log_faults(log, expected)
            print(f"access log: {len(expected)} requests, {len(told)} differences")
            print("".join(f"    {fault}\n" for fault in told[:20]), end="")
            failed += len(told)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(timeout=LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = "none: it did not end"
    extra = upstream.seen.qsize()
    print(f"replay: {len(captures)} requests, {failed} differences, {extra} unexpected, exit code {code}")
    sys.exit(0 if failed == 0 and extra == 0 and code == 0 else 1)


if __name__ == "__main__":
    main()
