#!/usr/bin/env python3
"""Coding agents as they are, at a model server itself and through the proxy: none may stall where it does not directly.

usage: scripts/agents.py

Codex CLI, Claude Code, Gemini CLI, opencode, Qwen Code and aider each ask one question, once of `fake_engine.py` and
once of the proxy in front of it, in a network that has the loopback alone. Cases: an answer; a wrong key, an unknown
and a forbidden model and a limit reached, refused by the proxy here and by the server there; 429 and 529 of the
server; a server killed in the middle. Both ways lead through a tap that notes when each request and answer passed,
so that a program's own start, which varies by more than what is sought, does not count. What counts is the time from
the first request to the answer, or where none comes to the last refusal and to the program's end.

Needs: unshare, node, and the programs: RB [~/.cache/realbackends] holds them in agents/ (npm i @openai/codex
@anthropic-ai/claude-code @google/gemini-cli opencode-ai @qwen-code/qwen-code) and venv-aider/ (pip install
aider-chat). One that is missing is a skip, or a failure with TOKENRING_CI=1. About half an hour.
ONLY=REGEX runs the lines of that name ("codex: wrong key"); KEEP=1 leaves what they printed behind.
"""
import fcntl
import os
import shutil
import socket
import struct
import sys


def loopback_alone():
    """Goes on in a network of its own, where nothing but this machine can be reached."""
    if os.environ.get("AGENTS_NETWORK") != "own":
        os.environ["AGENTS_NETWORK"] = "own"
        as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
        if not shutil.which("unshare"):
            sys.exit("missing: unshare")
        os.execvp("unshare", ["unshare", "--net", *as_root, sys.executable, *sys.argv])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        wanted = struct.pack("16sh14x", b"lo", 0x1)  # IFF_UP
        fcntl.ioctl(any_socket, 0x8914, wanted)  # SIOCSIFFLAGS


loopback_alone()

import asyncio
import contextlib
import json
import pathlib
import re
import signal
import subprocess
import threading
import time

import bed
from bed import TOKENRING, WORK, Process, free_port
from fake_engine import ENDS, HELD, WORD, Engine, dialect_of

RB = pathlib.Path(os.environ.get("RB", pathlib.Path.home() / ".cache/realbackends"))
START = 120  # Seconds for a program's start, until its first request.
PATIENCE = 45  # Seconds from there to its end; who is still busy then waits, and that is compared too.
LATER = 0.1  # Seconds by which an answer may come later through the proxy.
CHANCE = 0.35  # Programs draw their pauses between two tries: this share of them may differ.
END_LATER = 1.5  # Seconds by which a program's own end may come later: it does much else.
PAIRS = 3  # A pair of runs that differs is run again so often; the best of each way counts.
QUESTION = "Which word? Answer at once, without any tool."

# ------------------------------------------------------------- the programs


class Agent:
    """A program: `command` gives its arguments and variables, and writes what it wants to find in its home."""

    def __init__(self, name, dialect, model, file, command):
        self.name, self.dialect, self.model, self.file, self.command = name, dialect, model, RB / file, command


def write(at, text):
    at.parent.mkdir(parents=True, exist_ok=True)
    at.write_text(text if isinstance(text, str) else json.dumps(text))


def codex(sockets):
    def command(home, base, key, model):
        write(home / ".codex/config.toml", f"""model = "{model}"
model_provider = "tap"
check_for_update_on_startup = false
[analytics]
enabled = false
[model_providers.tap]
name = "tap"
base_url = "{base}/v1"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
supports_websockets = {json.dumps(sockets)}
""")
        return ["exec", "--skip-git-repo-check", "--sandbox", "read-only", QUESTION], {"OPENAI_API_KEY": key}

    return command


def claude(home, base, key, model):
    return ["-p", QUESTION, "--model", model], {
        "ANTHROPIC_BASE_URL": base, "ANTHROPIC_API_KEY": key, "ANTHROPIC_SMALL_FAST_MODEL": model,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "DISABLE_AUTOUPDATER": "1"}


def gemini(home, base, key, model):
    write(home / ".gemini/settings.json", {"security": {"auth": {"selectedType": "gemini-api-key"}}, "telemetry": {"enabled": False},
                                           "privacy": {"usageStatisticsEnabled": False}, "general": {"enableAutoUpdate": False}})
    return ["-p", QUESTION, "-m", model, "--skip-trust"], {"GEMINI_API_KEY": key, "GOOGLE_GEMINI_BASE_URL": base}


def opencode(home, base, key, model):
    write(home / ".config/opencode/opencode.json", {
        "autoupdate": False, "share": "disabled", "model": f"tap/{model}", "small_model": f"tap/{model}",
        "provider": {"tap": {"npm": "@ai-sdk/openai-compatible", "name": "tap", "options": {"baseURL": f"{base}/v1", "apiKey": key},
                             "models": {model: {"name": model}}}}})
    return ["run", "--title", "A word", "-m", f"tap/{model}", QUESTION], {"OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}


def qwen(home, base, key, model):
    write(home / ".qwen/settings.json", {"security": {"auth": {"selectedType": "openai"}}, "privacy": {"usageStatisticsEnabled": False},
                                         "general": {"disableAutoUpdate": True}})
    return ["-p", QUESTION, "--auth-type", "openai"], {"OPENAI_API_KEY": key, "OPENAI_BASE_URL": f"{base}/v1", "OPENAI_MODEL": model}


def aider(home, base, key, model):
    return ["--message", QUESTION, "--model", f"openai/{model}", "--no-git", "--yes-always", "--no-check-update", "--analytics-disable",
            "--no-show-model-warnings", "--no-show-release-notes", "--no-pretty", "--map-tokens", "0"], {
        "OPENAI_API_KEY": key, "OPENAI_API_BASE": f"{base}/v1"}


BIN = "agents/node_modules/.bin"
AGENTS = [
    Agent("codex", "responses", "gpt-5-codex", f"{BIN}/codex", codex(sockets=False)),
    Agent("codex, WebSocket first", "responses", "gpt-5-codex", f"{BIN}/codex", codex(sockets=True)),
    Agent("claude", "anthropic", "claude-sonnet-4-5", f"{BIN}/claude", claude),
    Agent("gemini", "gemini", "gemini-2.5-pro", f"{BIN}/gemini", gemini),
    Agent("opencode", "chat", "gpt-4o-mini", f"{BIN}/opencode", opencode),
    Agent("qwen", "chat", "gpt-4o-mini", f"{BIN}/qwen", qwen),
    Agent("aider", "chat", "gpt-4o-mini", "venv-aider/bin/aider", aider),
]

# ---------------------------------------------------------------- the cases


class Case:
    """`direct` is what the engine does where the program talks to it, `behind` what it does behind the proxy."""

    def __init__(self, name, direct=None, behind=None, right_key=True, model=None, key_models="*", busy=False):
        self.name, self.direct, self.behind = name, direct or {}, behind or {}
        self.right_key, self.model, self.key_models, self.busy = right_key, model, key_models, busy


ALWAYS = 10**6
CASES = [
    Case("answer"),
    Case("wrong key", right_key=False),
    Case("unknown model", model="no-such-model"),
    Case("forbidden model", direct={"refuse": (403, ALWAYS)}, key_models=HELD),
    Case("limit reached twice", direct={"refuse": (429, 2)}, busy=True),
    Case("429 of the server, twice", direct={"refuse": (429, 2)}, behind={"refuse": (429, 2)}),
    Case("529 of the server, twice", direct={"refuse": (529, 2)}, behind={"refuse": (529, 2)}),
    Case("killed in the middle, once", direct={"kill": 1}, behind={"kill": 1}),
    Case("killed in the middle, always", direct={"kill": ALWAYS}, behind={"kill": ALWAYS}),
]

# ------------------------------------------------------------------ the tap


class Exchange:
    """A request and what came back; times are of this machine's monotonic clock."""

    def __init__(self, data):
        self.asked = time.monotonic()
        self.method, self.target = data.decode("latin-1").split(" ", 2)[:2]
        self.status, self.first, self.last = None, None, None
        self.chunked, self.ended = False, False

    def answered(self, data):
        """Notes a piece of the answer."""
        self.last = time.monotonic()
        if self.first is None:
            self.first, self.status = self.last, int(data.split(b" ", 2)[1][:3])
            self.chunked = b"transfer-encoding: chunked" in data.partition(b"\r\n\r\n")[0].lower()
        # Some leave at the last event, without waiting for the last chunk.
        self.ended = self.ended or any(end in data for end in ENDS)

    def is_answer(self):
        """Whether it is what was asked for, and not cut."""
        whole = self.ended or not self.chunked
        return self.status == 200 and self.method == "POST" and bool(dialect_of(self.target.partition("?")[0])) and whole

    def of_api(self):
        return self.target not in ("/", "")


class Tap:
    """Hands bytes on, in both directions, and notes when. Clients send their next request after the answer to the last."""

    def __init__(self, target):
        self.target, self.exchanges = target, []

    async def start(self):
        self.server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        self.server.close()

    async def _connection(self, reader, writer):
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            return writer.transport.abort()
        current = None

        def request(data):
            nonlocal current
            if re.match(rb"[A-Z]+ \S+ HTTP/1\.1\r\n", data) and (current is None or current.first):
                current = Exchange(data)
                self.exchanges.append(current)

        await asyncio.gather(_hand_on(reader, far_writer, request), _hand_on(far_reader, writer, lambda data: current.answered(data)))

    def limit(self, begun):
        """Until when a program that was started at `begun` may take."""
        asked = next((e.asked for e in self.exchanges if e.of_api()), None)
        return begun + START if asked is None else asked + PATIENCE

    def refused(self):
        return sum(e.status == 429 for e in self.exchanges)


async def _hand_on(reader, writer, note):
    try:
        while data := await reader.read(65536):
            note(data)
            writer.write(data)
            await writer.drain()
        writer.close()
    except OSError:
        writer.transport.abort()


loop = asyncio.new_event_loop()
threading.Thread(target=loop.run_forever, daemon=True).start()


def inside(coroutine):
    """The result of what runs beside the servers."""
    return asyncio.run_coroutine_threadsafe(coroutine, loop).result(10)


# -------------------------------------------------------------------- a run

ENGINE_KEY, CLIENT_KEY, WRONG_KEY = "sk-of-the-engine-1234", "sk-of-the-client-1234", "sk-of-nobody-12345678"
CARRIERS = {"anthropic": 'type = "header", name = "x-api-key", value', "gemini": 'type = "header", name = "x-goog-api-key", value'}


def proxy_before(engine, agent, case):
    port = free_port()
    carrier = CARRIERS.get(agent.dialect, 'type = "bearer", token')
    config = WORK / f"tokenring-{port}.toml"
    config.write_text(f"""[process]
cores = 1
drain = "1s"
[[listener]]
name = "main"
bind = "127.0.0.1:{port}"
[[key]]
name = "client"
key = "{CLIENT_KEY}"
models = ["{case.key_models}"]
{"concurrency = 1" if case.busy else ""}
[[upstream]]
name = "engine"
url = "http://127.0.0.1:{engine.port}"
protocol = "{agent.dialect if agent.dialect in CARRIERS else "openai"}"
auth = {{ {carrier} = "{ENGINE_KEY}" }}
models = {json.dumps(engine.models)}
""")
    process = Process("tokenring", [TOKENRING, "serve", "-c", config])
    bed.wait_for_port(port, process)
    process.port = port
    return process


@contextlib.contextmanager
def slot_taken(proxy, agent):
    """The key's only slot is taken by a request of its own; the result gives it back."""
    path = {"chat": "/v1/chat/completions", "responses": "/v1/responses", "anthropic": "/v1/messages",
            "gemini": f"/v1beta/models/{HELD}:streamGenerateContent"}[agent.dialect]
    body = json.dumps({"contents": []} if agent.dialect == "gemini" else {"model": HELD, "stream": True})
    with socket.create_connection(("127.0.0.1", proxy.port), 5) as held:
        held.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {CLIENT_KEY}\r\nContent-Type: application/json\r\n"
                     f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
        held.settimeout(5)
        got = held.recv(65536)
        bed.expect(b" 200 " in got[:16], got[:200])
        yield lambda: held.close()


class Seen:
    """What a run came to; times count from the first request of the API."""

    def __init__(self, exchanges, ended, in_time, printed):
        asked = [e for e in exchanges if e.of_api()]
        self.printed, self.answered = printed, WORD in printed
        self.statuses = [e.status for e in asked]
        start = asked[0].asked if asked else None
        since = lambda moment: None if start is None or moment is None else moment - start
        self.first = since(min((e.first for e in asked if e.is_answer()), default=None))
        self.last = since(max((e.last for e in asked if e.last), default=None))
        self.end = since(ended)
        self.in_time = in_time

    def asked(self):
        """The statuses in short: "429 x2, 200"."""
        runs = []
        for status in self.statuses:
            if runs and runs[-1][0] == status:
                runs[-1][1] += 1
            else:
                runs.append([status, 1])
        return ", ".join(f"{status or 'none'}{f' x{times}' if times > 1 else ''}" for status, times in runs) or "nothing asked"


def run(agent, case, through):
    engine = inside(Engine(ENGINE_KEY, [agent.model, HELD], **(case.behind if through else case.direct)).start())
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: inside(engine.stop()))
        proxy = proxy_before(engine, agent, case) if through else None
        give_back = lambda: None
        if proxy:
            stack.callback(lambda: proxy.stop(3))
            if case.busy:
                give_back = stack.enter_context(slot_taken(proxy, agent))
        tap = inside(Tap(proxy.port if proxy else engine.port).start())
        stack.callback(lambda: inside(tap.stop()))
        home = WORK / f"{agent.name}-{case.name}-{'through' if through else 'direct'}-{tap.port}".replace(" ", "-").replace(",", "")
        folder = home / "project"
        folder.mkdir(parents=True)
        key = (CLIENT_KEY if through else ENGINE_KEY) if case.right_key else WRONG_KEY
        argv, variables = agent.command(home, f"http://127.0.0.1:{tap.port}", key, case.model or agent.model)
        seen = watch(home, folder, [agent.file, *argv], variables, tap, give_back)
        bed.expect(not proxy or (proxy.alive() and "panicked at" not in proxy.log()), "the proxy panicked")
        return seen


def watch(home, folder, argv, variables, tap, give_back):
    """Starts the program and waits for its end; once the tap has seen two refusals for a limit, `give_back` ends it."""
    node = pathlib.Path(shutil.which("node") or "/usr/bin/node").parent
    variables |= {"HOME": home, "PATH": f"{node}:/usr/local/bin:/usr/bin:/bin", "TERM": "dumb", "LANG": "C.UTF-8", "NO_COLOR": "1", "DO_NOT_TRACK": "1"}
    printed = home / "printed"
    with open(printed, "wb") as out:
        child = subprocess.Popen([str(a) for a in argv], cwd=folder, env={k: str(v) for k, v in variables.items()}, start_new_session=True,
                                 stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, preexec_fn=bed._with_parent)
        begun = time.monotonic()
        while child.poll() is None and time.monotonic() < tap.limit(begun):
            if tap.refused() >= 2:
                give_back()
            time.sleep(0.01)
        in_time, ended = child.poll() is not None, time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return Seen(tap.exchanges, ended, in_time, printed.read_text(errors="replace"))


# ----------------------------------------------------------------- judgment


NAMES = {"first": "the answer's first byte", "last": "the last refusal", "end": "the program's end"}


def worse(direct, through):
    """What is worse through the proxy than without; each a list of runs, of which the best counts."""
    if any(not seen.statuses for seen in direct):
        return "it asked nothing, the check is wrong: " + direct[0].printed[-300:]
    if any(seen.answered for seen in direct) and not any(seen.answered for seen in through):
        return "no answer: " + through[-1].printed[-300:]
    if not all(seen.in_time for seen in direct):
        return None  # Directly it waits as long as we do.
    if not any(seen.in_time for seen in through):
        return "it waits on and on"
    drawn = CHANCE if len(direct[0].statuses) > 1 else 0
    # After an answer some ask more, for a title or what to say next, and take their time.
    came = "last" if direct[0].first is None else "first"
    for what, share, slack in [(came, drawn, LATER), ("end", CHANCE, END_LATER)]:
        here, there = (min((getattr(seen, what) for seen in runs if getattr(seen, what) is not None), default=None) for runs in (direct, through))
        if here is not None and (there is None or there > here * (1 + share) + slack):
            return f"{NAMES[what]}: {'none' if there is None else f'after {there:.2f} s'}, directly after {here:.2f} s"
    return None


def seconds(value):
    return "     -" if value is None else f"{value:6.2f}"


def row(verdict, name, direct, through):
    cells = [f"{seen.asked():24} {seconds(seen.first)} {seconds(seen.last)} {seconds(seen.end)}{' ' if seen.in_time else '+'}" for seen in (direct, through)]
    print(f"{verdict:5} {name:44} {cells[0]}| {cells[1]}", flush=True)


def compare(agent, case):
    name, direct, through = f"{agent.name}: {case.name}", [], []
    for _ in range(PAIRS):
        direct.append(run(agent, case, through=False))
        through.append(run(agent, case, through=True))
        fault = worse(direct, through)
        if not fault:
            break
        print(f"      once more: {name}: {fault}", flush=True)
    row("FAIL" if fault else "ok", name, direct[-1], through[-1])
    if fault:
        print(f"      {fault}", flush=True)
    return not fault


def main():
    bed.need(TOKENRING)
    only = os.environ.get("ONLY", "")
    passed, failed = 0, 0
    print("answers, and seconds from the first request: first byte of an answer that was whole, last byte, end of the program (+ = ended by us)")
    print(f"{'':50} {'directly':24} {'first':>6} {'last':>6} {'end':>6} | {'through the proxy':24} {'first':>6} {'last':>6} {'end':>6}")
    for agent in AGENTS:
        wanted = [case for case in CASES if re.search(only, f"{agent.name}: {case.name}")]
        if wanted and not agent.file.exists():
            missing_fails = os.environ.get("TOKENRING_CI") == "1"
            failed += missing_fails
            print(f"{'FAIL' if missing_fails else 'skip'}  {agent.name}: no {agent.file}")
            continue
        for case in wanted:
            if compare(agent, case):
                passed += 1
            else:
                failed += 1
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
