#!/usr/bin/env python3
"""What passes for keys that are limited to some models, read by the parsers that servers really use.

usage: scripts/readers.py [--iterations N] [--seed S] [FILE]

`tests/it/differential.rs` makes requests, decides them as the proxy does and has readers of its own look at
what passed. Here the same requests are read by Python's `json`, by Starlette's forms and queries, and by its
routes behind a path that is decoded as uvicorn does it: none may find a model that the key may not use. That
the readers in Rust find at least as much is looked at, too: a name that only these find is one too few there.

FILE is what that test wrote (TOKENRING_READERS_OUT); without it the test is run, with N requests [200000].
Needs python3 with venv (and pip at the first use), cargo.
"""
import bed

bed.in_environment()

import argparse
import asyncio
import base64
import json
import logging
import os
import subprocess
import sys
import tempfile
import urllib.parse

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.routing import Match, Route

# What the parser of forms says of broken ones.
logging.disable()
ROUTES = [
    Route(path, lambda request: None, methods=["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
    for path in [
        "/v1beta/models/{model:path}:{verb}",
        "/v1/models/{model:path}:{verb}",
        "/models/{model:path}:{verb}",
        "/v1/publishers/google/models/{model}:{verb}",
        "/v1/models/{model:path}",
        "/v1beta/tunedModels/{model}:{verb}",
        "/openai/deployments/{model}/chat/completions",
        "/openai/deployments/{model}/embeddings",
        "/model/{model}/converse",
        "/v1/engines/{model}/completions",
    ]
]


def read_json(body):
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return []
    return [value.get("model")] if isinstance(value, dict) else []


async def read_form(fields, body):
    sent = False

    async def receive():
        nonlocal sent
        if sent:
            return {"type": "http.disconnect"}
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(name.lower().encode("latin-1"), value) for name, value in fields]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}
    try:
        form = await Request(scope, receive).form()
    except Exception:
        # A server that fails runs no model.
        return []
    return [value for value in form.getlist("model") if isinstance(value, str)]


def read_target(target):
    path, _, query = target.partition(b"?")
    found = QueryParams(query.decode("latin-1")).getlist("model")
    scope = {"type": "http", "method": "POST", "root_path": "", "path": urllib.parse.unquote(path.decode("latin-1"))}
    for route in ROUTES:
        match, child = route.matches(scope)
        if match != Match.NONE:
            found.append(child["path_params"]["model"])
            break
    return found


async def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--iterations", default="200000")
    arguments.add_argument("--seed", default="1")
    arguments.add_argument("file", nargs="?")
    given = arguments.parse_args()
    path = given.file
    if path is None:
        path = tempfile.mkstemp(prefix="tokenring-readers-")[1]
        environment = os.environ | {
            "TOKENRING_FUZZ_ITERATIONS": given.iterations,
            "TOKENRING_FUZZ_SEED": given.seed,
            "TOKENRING_READERS_OUT": path,
        }
        command = ["cargo", "test", "--test", "it", "differential", "--", "--nocapture"]
        subprocess.run(command, cwd=bed.ROOT, env=environment, check=True)
    lines, read, bad = 0, {"json": 0, "form": 0, "target": 0}, 0
    with open(path) as file:
        for line in file:
            lines += 1
            got = json.loads(line)
            fields = [(name, base64.b64decode(value)) for name, value in got["fields"]]
            body, target = base64.b64decode(got["body"]), base64.b64decode(got["target"])
            named = {"json": read_json(body), "form": await read_form(fields, body), "target": read_target(target)}
            for reader, names in named.items():
                names = [name for name in names if isinstance(name, str) and name]
                read[reader] += bool(names)
                for name in names:
                    plain = name.removeprefix("models/")
                    if plain in got["may"] or got["begins"] and plain.startswith(got["begins"]):
                        continue
                    bad += 1
                    print(f"{reader} reads {name!r}, may {got['may']}: {target!r} {fields!r} {body!r}", file=sys.stderr)
    print(f"{lines} requests passed; a model was read by {read}; {bad} of them may not be used")
    if given.file is None:
        os.unlink(path)
    sys.exit(1 if bad or not all(read.values()) else 0)


asyncio.run(main())
