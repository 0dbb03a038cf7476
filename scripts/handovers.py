#!/usr/bin/env python3
"""Handovers under load, by processes, with the kernel's handshakes slowed down.

Two network namespaces are joined by TUN devices, and a forwarder holds every packet for `--delay`, so
each handshake spends that long in SYN_RECV. Clients in one (new connections, kept connections,
streams) use a proxy in the other while it is replaced again and again, by processes with other
numbers of cores and other configs. Not one request may fail.

With `--kill` one side is killed or stopped at a random moment of each handover; then requests that
were in a killed process may fail, but somebody must serve again within a second.

Needs root, iproute2 and /dev/net/tun. Builds nothing: TOKENRING and LOADTEST name the programs
[target/release/…].
"""
import argparse
import asyncio
import ctypes
import fcntl
import heapq
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKENRING = os.environ.get("TOKENRING", str(ROOT / "target/release/tokenring"))
LOADTEST = os.environ.get("LOADTEST", str(ROOT / "target/release/loadtest"))
SERVER, CLIENT = "10.77.0.1", "10.77.0.2"
PORT, MOCK = 4000, 4001
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 1, 0x1000
LIBC = ctypes.CDLL(None, use_errno=True)


def run(*command):
    subprocess.run(command, check=True)


class Namespaces:
    """Two namespaces and the forwarder between them."""

    def __init__(self, delay):
        self.delay = delay
        self.names = [f"tr-handover-{side}-{os.getpid()}" for side in ("server", "client")]
        self.fds = []
        for name, ip in zip(self.names, (SERVER, CLIENT)):
            run("ip", "netns", "add", name)
            self.fds.append(self.inside(name, lambda: tun("tr0")))
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "addr", "add", f"{ip}/24", "dev", "tr0")
            run("ip", "-n", name, "link", "set", "tr0", "up")
        threading.Thread(target=self.forward, daemon=True).start()

    def inside(self, name, do):
        """Calls `do` on a thread that is in a namespace; that thread ends then."""
        out = []

        def enter():
            with open(f"/var/run/netns/{name}") as namespace:
                if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            out.append(do())

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        return out[0]

    def forward(self):
        waiting, number = [], 0
        while True:
            now = time.monotonic()
            while waiting and waiting[0][0] <= now:
                _, _, to, packet = heapq.heappop(waiting)
                try:
                    os.write(to, packet)
                except OSError:
                    pass
            limit = max(0.0, waiting[0][0] - now) if waiting else None
            for fd in select.select(self.fds, [], [], limit)[0]:
                packet = os.read(fd, 65536)
                other = self.fds[1 - self.fds.index(fd)]
                number += 1
                heapq.heappush(waiting, (time.monotonic() + self.delay, number, other, packet))

    def command(self, side, *command):
        return ["ip", "netns", "exec", self.names[side], *command]

    def end(self):
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name])


def tun(name):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


class Process:
    """A proxy, and what it says."""

    def __init__(self, namespaces, folder, cores, more):
        config = folder / f"c{time.monotonic_ns()}.toml"
        config.write_text(
            f'[process]\ncores = {cores}\ndrain = "20s"\n'
            f'[[listener]]\nname = "main"\nbind = "{SERVER}:{PORT}"\nauth = "none"\n'
            f'[[upstream]]\nname = "a"\nurl = "http://127.0.0.1:{MOCK}"\nmodels = ["m"]\n{more}'
        )
        command = namespaces.command(0, TOKENRING, "serve", "-c", str(config))
        self.child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines, self.changed = [], threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stderr:
            with self.changed:
                self.lines.append(line)
                self.changed.notify_all()
        with self.changed:
            self.lines.append("")
            self.changed.notify_all()

    def says(self, what, within=20.0):
        """Waits for a line; None when the process ends or the time is over."""
        by = time.monotonic() + within
        with self.changed:
            while True:
                for line in self.lines:
                    if what in line:
                        return line
                left = by - time.monotonic()
                if (self.lines and self.lines[-1] == "") or left <= 0:
                    return None
                self.changed.wait(left)

    def signal(self, number):
        try:
            os.kill(self.child.pid, number)
        except ProcessLookupError:
            pass


BODY = json.dumps({"model": "m", "messages": [], "seed": 7})


def request(fields="", stream=False):
    body = BODY[:-1] + ', "stream": true}' if stream else BODY
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: proxy\r\ncontent-type: application/json\r\n"
        f"{fields}content-length: {len(body)}\r\n\r\n{body}"
    ).encode()


async def answer(reader):
    """Reads an answer; its status, whether it is the last, and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status = int(head.split(" ", 2)[1])
    fields = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in head.split("\r\n")[1:-2]}
    if "content-length" in fields:
        body = await reader.readexactly(int(fields["content-length"]))
    else:
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    return status, fields.get("connection", "") == "close", body


class Load:
    def __init__(self):
        self.over, self.done, self.failed = False, {}, []
        self.last = time.monotonic()

    async def anew(self):
        reader, writer = await asyncio.open_connection(SERVER, PORT)
        writer.write(request())
        status, _, _ = await answer(reader)
        writer.close()
        assert status == 200, status

    async def stream(self):
        reader, writer = await asyncio.open_connection(SERVER, PORT)
        writer.write(request("x-mock: interval=20ms,tokens=40\r\n", stream=True))
        status, _, body = await answer(reader)
        writer.close()
        assert status == 200 and body.endswith(b"data: [DONE]\n\n"), (status, body[-40:])

    async def kept(self):
        if self.connection is None:
            self.connection = await asyncio.open_connection(SERVER, PORT)
        reader, writer = self.connection
        self.connection, kept = None, self.connection
        writer.write(request())
        status, last, _ = await answer(reader)
        assert status == 200, status
        if last:
            writer.close()
        else:
            self.connection = kept

    async def repeat(self, kind):
        mine = Load() if kind == "kept" else self
        mine.connection = None
        while not self.over:
            try:
                await asyncio.wait_for(getattr(mine, kind)(), 60)
                self.done[kind] = self.done.get(kind, 0) + 1
                self.last = time.monotonic()
            except Exception as error:
                self.failed.append((time.monotonic(), kind, repr(error)))
                mine.connection = None
                await asyncio.sleep(0.02)

    def run(self, counts):
        async def all_of_them():
            kinds = [kind for kind, count in counts.items() for _ in range(count)]
            await asyncio.gather(*(self.repeat(kind) for kind in kinds))

        asyncio.run(all_of_them())


def load_in(namespaces):
    """Runs the clients in their namespace, on a thread of this process."""
    load = Load()

    def enter():
        with open(f"/var/run/netns/{namespaces.names[1]}") as namespace:
            if LIBC.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        load.run({"anew": 32, "kept": 16, "stream": 16})

    thread = threading.Thread(target=enter)
    thread.start()
    return load, thread


def hand_over(namespaces, folder, serving, at, _):
    """One handover that goes well."""
    cores = [4, 2, 8, 2][at % 4]
    more = '[limits]\nbody = "1MiB"\n' if at % 20 == 7 else ""
    next_one = Process(namespaces, folder, cores, more)
    if not next_one.says("took over") or not serving.says("handed over"):
        sys.exit(f"handover {at}: {next_one.lines} {serving.lines}")
    if serving.child.wait(40) != 0:
        sys.exit(f"handover {at}: {serving.lines}")
    return next_one


def hand_over_badly(namespaces, folder, serving, at, kind):
    """One in which a side is killed or stopped at a random moment; who serves then."""
    next_one = Process(namespaces, folder, 2, "")
    time.sleep(random.uniform(0, 0.12))
    if kind == "new":
        next_one.signal(signal.SIGKILL)
        next_one.child.wait()
        taken = serving.says("handed over", 1.0) is not None
        # Killed when it had taken over: nobody is left, as with any process that is killed.
        return Process(namespaces, folder, 2, "") if taken else serving
    if kind == "old":
        serving.signal(signal.SIGKILL)
        serving.child.wait()
    else:
        serving.signal(signal.SIGSTOP)
        time.sleep(6)
        serving.signal(signal.SIGCONT)
    if not next_one.says("models     m"):
        # It found one that hangs and left it alone.
        assert kind == "stop", (kind, next_one.lines)
        return serving
    return next_one


def serves(load, within):
    begun = time.monotonic()
    while load.last < begun:
        if time.monotonic() - begun > within:
            return False
        time.sleep(0.01)
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--delay", type=float, default=0.02, help="seconds each packet is held [0.02]")
    parser.add_argument("--kill", choices=["new", "old", "stop"], help="what goes wrong [nothing]")
    args = parser.parse_args()
    namespaces = Namespaces(args.delay)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        mock = subprocess.Popen(
            namespaces.command(0, LOADTEST, "mock", "--port", str(MOCK), "--model", "m"),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        serving = Process(namespaces, folder, 2, "")
        assert serving.says("models     m"), serving.lines
        load, thread = load_in(namespaces)
        time.sleep(1)
        step = hand_over_badly if args.kill else hand_over
        wedged = 0
        begun = time.monotonic()
        for at in range(args.count):
            serving = step(namespaces, folder, serving, at, args.kill)
            if not serves(load, 5.0):
                wedged += 1
                print(f"{at}: nobody serves: {serving.lines[-3:]}", file=sys.stderr)
        took = time.monotonic() - begun
        load.over = True
        thread.join()
        for process in (serving.child, mock):
            process.terminate()
            process.wait(40)
        namespaces.end()
    print(f"{args.count} handovers in {took:.0f} s, delay {args.delay * 1000:.0f} ms, kill: {args.kill}")
    print(f"done: {load.done}; failed: {len(load.failed)}; times nobody served: {wedged}")
    for _, kind, error in load.failed[:10]:
        print(f"  {kind}: {error}")
    bad = wedged or (load.failed and not args.kill)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
