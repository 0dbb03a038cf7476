#!/usr/bin/env python3
"""Ten minutes in which everything around the proxy goes wrong.

usage: scripts/soak.py [--minutes 10] [--seed N]

All simulated servers but one are killed, stopped and started again; a file of targets is rewritten every second and
certificates every ten; clients send plain and streamed requests over HTTP/1.1, TLS and WebSocket, upload
slowly, ask for what they may not have, and reset their connections in the middle of all of it.

In the end: no panic was counted, no request was answered with what is another's, every gauge is back at 0, and
descriptors and memory are what they were once the proxy was warm. Exit: 0 so it is, 1 it is not, 2 it could not run.
"""
import argparse
import asyncio
import collections
import json
import os
import random
import re
import signal
import ssl
import struct
import socket
import sys
import time

import bed

bed.need("openssl", bed.TOKENRING, bed.LOADTEST)
bed.in_environment()

parser = argparse.ArgumentParser()
parser.add_argument("--minutes", type=float, default=10)
parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
args = parser.parse_args()
print(f"seed {args.seed}, {args.minutes} minutes", flush=True)
chance = random.Random(args.seed)

MODELS = ["small", "big"]
ADMIN, PLAIN, TLS = bed.free_port(), bed.free_port(), bed.free_port()
targets = bed.WORK / "targets.json"
authority = bed.Authority("soak")
certificate = authority.issue("soak", "localhost", ["localhost", "127.0.0.1"])


class Server:
    """A simulated server that comes back on its own port."""

    def __init__(self, name):
        self.name, self.port = name, bed.free_port()
        self.process = None
        self.start()

    def start(self):
        models = [part for model in MODELS for part in ("--model", model)]
        argv = [bed.LOADTEST, "mock", "--port", self.port, "--name", self.name, "--interval", "5ms", "--tokens", "20", *models]
        self.process = bed.Process(self.name, argv)

    async def trouble(self):
        """One piece of it."""
        kind = chance.choice(["kill", "stop", "term"])
        if kind == "stop":
            self.process.signal(signal.SIGSTOP)
            await asyncio.sleep(chance.uniform(0.5, 4))
            self.process.signal(signal.SIGCONT)
            return kind
        self.process.signal(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
        await asyncio.to_thread(self.process.wait, 10)
        self.process.stop(1)
        await asyncio.sleep(chance.uniform(0, 2))
        self.start()
        return kind


fixed = [Server(f"fixed{n}") for n in range(2)]
fleet = [Server(f"fleet{n}") for n in range(3)]


def write_targets():
    some = chance.sample(fleet, chance.randint(1, len(fleet)))
    text = json.dumps([{"targets": [f"127.0.0.1:{server.port}" for server in some]}])
    (bed.WORK / "targets.new").write_text(text)
    (bed.WORK / "targets.new").rename(targets)


write_targets()
config = bed.WORK / "soak.toml"
config.write_text(f"""
[process]
cores = 2
drain = "5s"
[limits]
body_held = "256KiB"
[timeouts]
client_body_idle = "10s"
connect = "2s"
first_byte = "10s"
stream_idle = "5s"
[admin]
bind = "127.0.0.1:{ADMIN}"
[[listener]]
name = "plain"
bind = "127.0.0.1:{PLAIN}"
[[listener]]
name = "tls"
bind = "127.0.0.1:{TLS}"
tls = {{ cert = "{certificate[0]}", key = "{certificate[1]}" }}
[[key]]
name = "limited"
key = "sk-limited"
models = ["small"]
tpm = 100000000
[[key]]
name = "all"
key = "sk-all"
rpm = 1000000
concurrency = 500
""" + "".join(f"""
[[upstream]]
name = "{server.name}"
url = "http://127.0.0.1:{server.port}"
health = {{ interval = "1s", timeout = "1s" }}
""" for server in fixed) + f"""
[[upstream]]
name = "fleet"
url = "http://fleet"
discover = "file:{targets}"
health = {{ interval = "1s", timeout = "1s" }}
[[group]]
name = "chat"
members = ["fixed0", "fixed1", "fleet"]
queue = {{ length = 100, wait = "3s" }}
[models.small]
group = "chat"
[models.big]
group = "chat"
""")
proxy = bed.Process("tokenring", [bed.TOKENRING, "serve", "-c", config])
bed.wait_for_port(PLAIN, proxy)

told = collections.Counter()
trust = ssl.create_default_context(cafile=str(authority.ca))
over = asyncio.Event()


def body(model, stream=False, size=200):
    return json.dumps({"messages": [{"role": "user", "content": "x" * size}], "stream": stream, "model": model}).encode()


def request(model, key="sk-all", stream=False, size=200, path="/v1/chat/completions"):
    content = body(model, stream, size)
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n").encode() + content


async def connect(tls=False):
    port = TLS if tls else PLAIN
    more = {"ssl": trust, "server_hostname": "localhost"} if tls else {}
    return await asyncio.wait_for(asyncio.open_connection("127.0.0.1", port, **more), 10)


async def answer(reader):
    """Reads one answer, all of it; returns its status."""
    read = await bed.read_http_async(reader, 30)
    if read is None:
        raise EOFError("no answer")
    head, _, behind = read
    if behind:
        told["WRONG: bytes behind an answer"] += 1
    return bed.status_of(head)


def reset(writer):
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def keeps_alive():
    tls = chance.random() < 0.5
    reader, writer = await connect(tls)
    try:
        for _ in range(chance.randint(1, 30)):
            writer.write(request(chance.choice(MODELS), stream=chance.random() < 0.4))
            told[f"keep-alive {await answer(reader)}"] += 1
            if over.is_set():
                break
    finally:
        writer.close()


async def resets():
    reader, writer = await connect(chance.random() < 0.3)
    sent = request("small", stream=True)
    writer.write(sent[:chance.randint(1, len(sent))] if chance.random() < 0.3 else sent)
    if chance.random() < 0.7:
        try:
            await asyncio.wait_for(reader.read(chance.randint(1, 2000)), chance.uniform(0, 0.3))
        except TimeoutError:
            pass
    reset(writer)
    told["reset by the client"] += 1


async def uploads():
    reader, writer = await connect()
    sent = request("small", "sk-limited", size=chance.choice([100_000, 1_000_000, 3_000_000]))
    try:
        for at in range(0, len(sent), 65536):
            writer.write(sent[at:at + 65536])
            await asyncio.wait_for(writer.drain(), 30)
            if chance.random() < 0.1:
                await asyncio.sleep(0.05)
        told[f"upload {await answer(reader)}"] += 1
    finally:
        writer.close()


async def may_not():
    reader, writer = await connect()
    sent, wanted = chance.choice([
        (request("big", "sk-limited"), 403),
        (request("nobody"), 404),
        (request("small", "sk-wrong"), 401),
        (request("small", "sk-limited", path="/openai/deployments/big/chat/completions"), 400),
    ])
    writer.write(sent)
    status = await answer(reader)
    told[f"refused {status}"] += 1
    # A key whose tokens are spent is told so first; an unknown name may be that of a server that has just come.
    if status != wanted and status not in (429, 503):
        told[f"WRONG: {status} and not {wanted}"] += 1
    writer.close()


async def tunnels():
    reader, writer = await connect()
    writer.write(b"GET /v1/realtime?model=small HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer sk-all\r\n"
                 b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    told[f"tunnel {head.split()[1].decode()}"] += 1
    if head.split()[1] == b"101":
        writer.write(b"hello")
        await asyncio.wait_for(reader.readexactly(5), 30)
    reset(writer) if chance.random() < 0.5 else writer.close()


async def client(kind):
    while not over.is_set():
        try:
            await kind()
        except (OSError, EOFError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError, ValueError) as why:
            told[f"{kind.__name__}: {type(why).__name__}"] += 1
            await asyncio.sleep(0.02)


async def every(seconds, what):
    while not over.is_set():
        await asyncio.sleep(seconds)
        result = what()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            told[f"server: {result}"] += 1


def renew():
    authority.issue("soak", "localhost", ["localhost", "127.0.0.1"])
    if chance.random() < 0.5:
        proxy.signal(signal.SIGHUP)


async def ask_admin(path):
    reader, writer = await asyncio.open_connection("127.0.0.1", ADMIN)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n".encode())
    text = (await asyncio.wait_for(reader.read(), 10)).decode()
    writer.close()
    return text.split("\r\n\r\n", 1)[1]


async def gauges():
    """What should be 0 when nothing goes on, by its name; and the panics."""
    found = {}
    for line in (await ask_admin("/metrics")).splitlines():
        name = re.match(r"tokenring_(in_flight|queue_length|panics_total|held_bytes|client_connections)\b", line)
        if name:
            found[line.rsplit(" ", 1)[0]] = float(line.rsplit(" ", 1)[1])
    return found


async def main():
    begun = time.monotonic()
    seconds = args.minutes * 60
    kinds = [keeps_alive] * 8 + [resets] * 6 + [uploads] * 3 + [may_not] * 2 + [tunnels] * 2
    tasks = [asyncio.create_task(client(kind)) for kind in kinds]
    tasks += [asyncio.create_task(every(5, server.trouble)) for server in [fixed[1], *fleet]]
    tasks += [asyncio.create_task(every(1, write_targets)), asyncio.create_task(every(10, renew))]
    warm = None
    while time.monotonic() - begun < seconds:
        await asyncio.sleep(min(15, seconds / 8))
        spent = time.monotonic() - begun
        print(f"{spent:5.0f} s  {proxy.rss_kb() / 1024:6.1f} MiB  {proxy.fds():4} descriptors  {sum(told.values())} events", flush=True)
        if not proxy.alive():
            break
        if warm is None and spent > seconds / 4:
            warm = (proxy.rss_kb(), proxy.fds())
    over.set()
    await asyncio.wait(tasks, timeout=45)
    for server in fixed + fleet:
        if not server.process.alive():
            server.start()
    check = bed.Checks()
    for what, count in sorted(told.items()):
        print(f"  {count:8}  {what}")
    with check("the proxy is alive"):
        bed.expect(proxy.alive(), proxy.log()[-2000:])
    with check("nothing was answered as it should not be"):
        wrong = [what for what in told if what.startswith("WRONG")]
        bed.expect(not wrong, str(wrong))
    with check("most requests were served"):
        ok = sum(count for what, count in told.items() if what.startswith("keep-alive 2"))
        all_of_them = sum(count for what, count in told.items() if what.startswith("keep-alive"))
        bed.expect(ok > all_of_them * 0.9, f"{ok} of {all_of_them}")
    with check("no panic", 30):
        found = await gauges()
        bed.expect(found["tokenring_panics_total"] == 0, str(found))
    with check("gauges are back at 0", 90):
        end = time.monotonic() + 80
        while True:
            found = {name: value for name, value in (await gauges()).items() if value}
            if not found or time.monotonic() > end:
                break
            await asyncio.sleep(0.5)
        bed.expect(not found, str(found))
    with check("memory is flat"):
        bed.expect(proxy.rss_kb() < warm[0] * 1.25 + 8192, f"{warm[0]} KiB once warm, {proxy.rss_kb()} KiB now")
    with check("descriptors are flat", 90):
        end = time.monotonic() + 80
        while proxy.fds() > warm[1] and time.monotonic() < end:
            await asyncio.sleep(0.5)
        bed.expect(proxy.fds() <= warm[1], f"{warm[1]} under load, {proxy.fds()} now without")
    check.end()


asyncio.run(main())
