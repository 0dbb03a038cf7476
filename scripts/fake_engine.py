"""A model server for `agents.py`: the APIs of OpenAI, Anthropic and Google, and their refusals as they send them.

The one idea: what it says is fixed (TEXT, in a few pieces), how it fails is chosen by whoever starts it: the first
so many requests for an answer are refused with a status, or their connection is closed in the middle of the stream.
A wrong key and a model that it has not are refused always, in the shape of the API that was asked.

It runs on asyncio with nothing installed, and deliberately understands no more of HTTP than these clients send.
"""
import asyncio
import json
import re
import time

TEXT = ["The word ", "is pome", "granate", "."]
WORD = "pomegranate"
PAUSE = 0.02  # Between two pieces.
ENDS = [b"[DONE]", b"message_stop", b"response.completed", b'"finishReason": "STOP"']  # Of a whole stream, by API.
HELD = "held-open"  # A model whose answer never ends: its connection is closed by the client.


def dialect_of(path):
    """Which API a path belongs to; None for what asks for no answer of a model."""
    if re.search(r":(streamG|g)enerateContent$", path):
        return "gemini"
    for end, name in [("/responses", "responses"), ("/chat/completions", "chat"), ("/messages", "anthropic")]:
        if path.endswith(end):
            return name
    return None


# ----------------------------------------------------------------- refusals


def refusal(dialect, status, model, wait_s=1):
    """Fields and body of a refusal, as the provider of that API sends it."""
    maker = {"anthropic": _anthropic_refusal, "gemini": _gemini_refusal}.get(dialect, _openai_refusal)
    return maker(status, model, wait_s)


def _openai_refusal(status, model, wait_s):
    kind, code, message = {
        401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided: sk-wrong."),
        403: ("invalid_request_error", "model_not_found", f"Project `proj_1` does not have access to model `{model}`."),
        404: ("invalid_request_error", "model_not_found", f"The model `{model}` does not exist or you do not have access to it."),
        429: ("requests", "rate_limit_exceeded", f"Rate limit reached for {model}. Please try again in {wait_s}s."),
    }.get(status, ("server_error", None, "The engine is currently overloaded, please try again later."))
    fields = [("retry-after", wait_s), ("retry-after-ms", wait_s * 1000)] if status == 429 else []
    return fields, {"error": {"message": message, "type": kind, "param": None, "code": code}}


def _anthropic_refusal(status, model, wait_s):
    kind, message = {
        401: ("authentication_error", "invalid x-api-key"),
        403: ("permission_error", "Your API key does not have permission to use the specified resource."),
        404: ("not_found_error", f"model: {model}"),
        429: ("rate_limit_error", "This request would exceed your organization's rate limit."),
    }.get(status, ("overloaded_error", "Overloaded"))
    fields = [("x-should-retry", "true" if status in (429, 529) else "false")]
    if status == 429:
        fields.append(("retry-after", wait_s))
    return fields, {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_011"}


def _gemini_refusal(status, model, wait_s):
    google = "type.googleapis.com/google.rpc."
    info = {"@type": google + "ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com",
            "metadata": {"service": "generativelanguage.googleapis.com"}}
    again = {"@type": google + "RetryInfo", "retryDelay": f"{wait_s}s"}
    # A wrong key is 400 there, and too much work 503.
    code, name, message, details = {
        401: (400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key.", [info]),
        403: (403, "PERMISSION_DENIED", "The caller does not have permission", []),
        404: (404, "NOT_FOUND", f"models/{model} is not found for API version v1beta, or is not supported for generateContent.", []),
        429: (429, "RESOURCE_EXHAUSTED", "You exceeded your current quota.", [again]),
    }.get(status, (status, "UNAVAILABLE", "The model is overloaded. Please try again later.", []))
    error = {"code": code, "message": message, "status": name}
    return [], {"error": error | ({"details": details} if details else {})}


# ------------------------------------------------------------------ answers


def whole(dialect, model):
    """The answer to one who wants no stream."""
    text = "".join(TEXT)
    if dialect == "gemini":
        # Gemini CLI also asks small questions that want JSON; this answers all that it is known to ask.
        text = json.dumps({"reasoning": text, "next_speaker": "user", "model_choice": "flash"})
        return _gemini_piece(model, text, "STOP")
    if dialect == "anthropic":
        return {"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [{"type": "text", "text": text}],
                "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 4}}
    if dialect == "responses":
        return _response(model, "completed", text)
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": int(time.time()), "model": model, "usage": _USED,
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}


def events(dialect, model):
    """The same as a stream: server-sent events, one for each piece of text somewhere in the middle."""
    return [event.encode() for event in
            {"gemini": _gemini_events, "anthropic": _anthropic_events, "responses": _responses_events}.get(dialect, _chat_events)(model)]


_USED = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


def _data(value, event=None):
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(value)}\n\n"


def _chat_events(model):
    def chunk(delta, finish=None, **more):
        choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
        return _data({"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": int(time.time()), "model": model, "choices": choices, **more})

    yield chunk({"role": "assistant", "content": ""})
    for piece in TEXT:
        yield chunk({"content": piece})
    yield chunk({}, "stop")
    yield chunk(None, usage=_USED)
    yield "data: [DONE]\n\n"


def _anthropic_events(model):
    start = whole("anthropic", model) | {"content": [], "stop_reason": None, "usage": {"input_tokens": 9, "output_tokens": 1}}
    yield _data({"type": "message_start", "message": start}, "message_start")
    yield _data({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}, "content_block_start")
    for piece in TEXT:
        yield _data({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}}, "content_block_delta")
    yield _data({"type": "content_block_stop", "index": 0}, "content_block_stop")
    yield _data({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": {"output_tokens": 4}}, "message_delta")
    yield _data({"type": "message_stop"}, "message_stop")


def _gemini_piece(model, text, finish=None):
    candidate = {"content": {"parts": [{"text": text}], "role": "model"}, "index": 0} | ({"finishReason": finish} if finish else {})
    return {"candidates": [candidate], "modelVersion": model, "responseId": "r1",
            "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13}}


def _gemini_events(model):
    for number, piece in enumerate(TEXT, 1):
        yield _data(_gemini_piece(model, piece, "STOP" if number == len(TEXT) else None))


def _message(text, status):
    content = [{"type": "output_text", "text": text, "annotations": []}] if text else []
    return {"type": "message", "id": "msg_1", "status": status, "role": "assistant", "content": content}


def _response(model, status, text=None):
    used = {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 4,
            "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 13}
    return {"id": "resp_1", "object": "response", "created_at": int(time.time()), "status": status, "model": model, "error": None,
            "incomplete_details": None, "output": [_message(text, status)] if text else [], "usage": used if text else None}


def _responses_events(model):
    text, number = "".join(TEXT), 0

    def event(kind, **fields):
        nonlocal number
        number += 1
        return _data({"type": kind, "sequence_number": number, **fields}, kind)

    at = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": []}
    yield event("response.created", response=_response(model, "in_progress"))
    yield event("response.output_item.added", output_index=0, item=_message("", "in_progress"))
    yield event("response.content_part.added", part=part, **at)
    for piece in TEXT:
        yield event("response.output_text.delta", delta=piece, **at)
    yield event("response.output_text.done", text=text, **at)
    yield event("response.content_part.done", part=part | {"text": text}, **at)
    yield event("response.output_item.done", output_index=0, item=_message(text, "completed"))
    yield event("response.completed", response=_response(model, "completed", text))


# ------------------------------------------------------------------- server


class Asked:
    """One request as the engine reads it."""

    def __init__(self, method, target, fields, body):
        self.method, self.fields, self.body = method, fields, body
        self.path, _, self.query = target.partition("?")
        try:
            self.json = json.loads(body) if body else {}
        except ValueError:
            self.json = {}
        named = re.search(r"/models/([^/:]+)", self.path)
        self.model = self.json.get("model") or (named[1] if named else "")
        self.streams = bool(self.json.get("stream")) or ":stream" in self.path

    def key(self):
        bearer = self.fields.get("authorization", "").removeprefix("Bearer ")
        query = re.search(r"(?:^|&)key=([^&]*)", self.query)
        return bearer or self.fields.get("x-api-key") or self.fields.get("x-goog-api-key") or (query and query[1])


class Engine:
    """Serves `models` to who has `key`. `refuse` = (status, how many) and `kill` = how many, of the first requests."""

    def __init__(self, key, models, refuse=(0, 0), kill=0):
        self.key, self.models, self.refuse, self.kill = key, models, refuse, kill
        self.requests = 0  # For an answer of a model, those refused among them.
        self.serving = set()

    async def start(self):
        self.server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        self.server.close()
        for task in list(self.serving):
            task.cancel()

    async def _connection(self, reader, writer):
        self.serving.add(asyncio.current_task())
        try:
            while (asked := await self._read(reader)) and await self._answer(asked, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.serving.discard(asyncio.current_task())
            writer.close()

    async def _read(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        method, target, _ = first.split(" ")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "chunked" in fields.get("transfer-encoding", ""):
            body = b""
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(fields.get("content-length", 0)))
        return Asked(method, target, fields, body)

    async def _answer(self, asked, writer):
        """Answers one request; whether the connection may carry another."""
        dialect = dialect_of(asked.path) or ("anthropic" if "anthropic-version" in asked.fields else "chat")
        if "websocket" in asked.fields.get("upgrade", "").lower():
            # What ends a client's wish for one at once.
            return await _send(writer, 426, {"error": {"message": "No WebSocket here.", "type": "invalid_request_error"}}, [("upgrade", "HTTP/1.1")])
        if asked.path == "/":
            return await _send(writer, 200, {"status": "ok"}, head_only=asked.method == "HEAD")
        if asked.key() != self.key:
            return await self._refuse(writer, dialect, 401, asked)
        if asked.method == "GET" and asked.path.endswith("/models"):
            return await _send(writer, 200, {"object": "list", "data": [{"id": m, "object": "model", "type": "model"} for m in self.models]})
        if asked.path.endswith("/count_tokens"):
            return await _send(writer, 200, {"input_tokens": 9})
        if asked.method != "POST" or not dialect_of(asked.path):
            return await self._refuse(writer, dialect, 404, asked)
        if asked.model == HELD:
            await self._stream(writer, events(dialect, asked.model)[:1])
            await asyncio.sleep(600)
        self.requests += 1
        status, times = self.refuse
        if asked.model not in self.models:
            return await self._refuse(writer, dialect, 404, asked)
        if self.requests <= times:
            return await self._refuse(writer, dialect, status, asked)
        killed = self.requests <= self.kill
        if not asked.streams and not killed:
            return await _send(writer, 200, whole(dialect, asked.model))
        told = events(dialect, asked.model)
        if killed:
            await self._stream(writer, told[:-3])
            return False
        await self._stream(writer, told)
        writer.write(b"0\r\n\r\n")
        return True

    async def _refuse(self, writer, dialect, status, asked):
        fields, body = refusal(dialect, status, asked.model)
        return await _send(writer, body["error"].get("code") if dialect == "gemini" else status, body, fields)

    async def _stream(self, writer, told):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n")
        for event in told:
            writer.write(b"%x\r\n%s\r\n" % (len(event), event))
            await writer.drain()
            await asyncio.sleep(PAUSE)


async def _send(writer, status, body, fields=(), head_only=False):
    text = json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} Status", "content-type: application/json", f"content-length: {len(text)}", *(f"{k}: {v}" for k, v in fields)]
    writer.write("\r\n".join([*lines, "", ""]).encode() + (b"" if head_only else text))
    await writer.drain()
    return True
