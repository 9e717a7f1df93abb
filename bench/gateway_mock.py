"""A backend that speaks OpenAI's API and llama.cpp's, and computes nothing. Its texts are known beforehand.

    python bench/gateway_mock.py '{"port": 8001}'
    python bench/gateway_mock.py '{"port": 8001, "replica": {"slots": 16, "prefill": 4000, "decode": 20}}'

The n-th token of every answer is `w<n> `. A request's `max_tokens` is how many there are, its `seed` how many
milliseconds lie between two: every chunk is a segment of its own then. With `seed` 0 all go in one. An answer goes on
by /apply-template, /tokenize and /v1/completions with token ids, as llama.cpp's does.

With `replica` it takes its time as an engine with continuous batching does: see `Batch`. SIGTERM: it takes no new
connection, and leaves when nothing is in flight.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import httptools
import uvloop
from msgspec.json import decode, encode

FIRST_ID = 1_000_000
"""The id of `w0 `; those of prompts are below."""

WORD = re.compile(r"w(\d+) ")
TOKEN_CHARACTERS = 4
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"
MODELS = (
    b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"mock"}],"model_path":"m","status":"ok"}'
)


def framed(data: bytes) -> bytes:
    """One chunk of HTTP/1.1's chunked coding."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def whole(body: bytes) -> bytes:
    """An answer with a length."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def words(first: int, count: int) -> str:
    """The text of tokens from the `first` on."""
    return "".join(f"w{n} " for n in range(first, first + count))


def event(chat: bool, inner: str, finish: str = "null") -> bytes:
    """One event: `inner` is the delta's content for a chat, the text for a completion, as JSON."""
    kind = "chat.completion.chunk" if chat else "text_completion"
    said = f'"delta":{inner}' if chat else f'"text":{inner}'
    return (
        f'data: {{"id":"c1","object":"{kind}","created":1,"model":"m","choices":[{{"index":0,{said},'
        f'"finish_reason":{finish}}}]}}\n\n'
    ).encode()


@lru_cache(maxsize=20_000)
def token_event(chat: bool, n: int) -> bytes:
    """The framed event of the n-th token."""
    return framed(event(chat, f'{{"content":"w{n} "}}' if chat else f'"w{n} "'))


@lru_cache(maxsize=64)
def burst(chat: bool, first: int, count: int) -> bytes:
    """All tokens at once."""
    return b"".join(token_event(chat, n) for n in range(first, first + count))


ROLE = framed(event(True, '{"role":"assistant","content":""}'))


def usage_of(prompt: int, said: int) -> dict[str, int]:
    """OpenAI's usage object."""
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def ending(job: Job) -> bytes:
    """The finish, the usage where it was asked for, and the end."""
    out = framed(event(job.chat, "{}" if job.chat else '""', '"length"'))
    if job.usage:
        told = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}
        out += framed(b"data: %b\n\n" % encode({**told, "usage": usage_of(job.prompt, job.count)}))
    return out + framed(DONE) + b"0\r\n\r\n"


@lru_cache(maxsize=64)
def whole_answer(chat: bool, first: int, count: int, prompt: int) -> bytes:
    """The answer of a request that does not stream."""
    text = words(first, count)
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return whole(
        encode({
            "id": "c1", "object": "chat.completion" if chat else "text_completion", "created": 1,
            "model": "m", "choices": [{"index": 0, **said, "finish_reason": "length"}],
            "usage": usage_of(prompt, count),
        })
    )  # fmt: skip


@dataclass(eq=False)
class Job:
    """A request for tokens: those from `first` on, `count` of them. `prompt` in tokens."""

    connection: Connection
    chat: bool
    stream: bool
    first: int
    count: int
    delay_s: float
    usage: bool
    prompt: int
    unread: int = 0  # of the prompt, in a Batch
    said: int = 0

    @property
    def gone(self) -> bool:
        """Whether its client left."""
        return self.connection.transport.is_closing()

    def start(self) -> None:
        """The head, and a chat's role."""
        if self.stream:
            self.connection.transport.write(HEAD + (ROLE if self.chat else b""))

    def token(self) -> bool:
        """The next token; whether it was the last."""
        if self.stream:
            self.connection.transport.write(token_event(self.chat, self.first + self.said))
        self.said += 1
        return self.said >= self.count

    def end(self) -> None:
        """The last bytes."""
        out = ending(self) if self.stream else whole_answer(self.chat, self.first, self.count, self.prompt)
        self.connection.transport.write(out)
        self.connection.ended()


def job_of(path: str, body: dict[str, Any], connection: Connection) -> Job:
    """What a body asks for. An answer goes on after the last token of ours in its prompt."""
    chat = path.startswith("/v1/chat")
    prompt = (
        body.get("prompt") if not chat else "".join(str(m.get("content")) for m in body.get("messages", []))
    )
    first, tokens = 0, 0
    if isinstance(prompt, list):
        tokens = sum(1 for number in prompt if number < FIRST_ID)
        first = max((number - FIRST_ID + 1 for number in prompt), default=0) if len(prompt) > tokens else 0
    elif isinstance(prompt, str):
        tokens = len(prompt) // TOKEN_CHARACTERS + 1
    count = body.get("max_tokens") or body.get("max_completion_tokens") or 16
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    delay_s = float(body.get("seed") or 0) / 1e3
    return Job(
        connection, chat, bool(body.get("stream")), first, count, delay_s, usage, tokens, unread=tokens
    )


def tokenized(content: Any) -> list[int]:
    """Ids of a text or of a list of texts: our own words exactly, of all else one for four characters."""
    ids: list[int] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, int):
            ids.append(part)
            continue
        found = [int(n) for n in WORD.findall(part)]
        if found and WORD.sub("", part) == "":
            ids += [FIRST_ID + n for n in found]
        elif part:
            ids += range(1, len(part) // TOKEN_CHARACTERS + 2)
    return ids


class Timed:
    """Every request at its own pace: as its `seed` says."""

    def take(self, job: Job) -> None:
        """Begin."""
        job.connection.server.in_flight += 1
        if job.delay_s and job.stream:
            job.start()
            asyncio.get_running_loop().call_later(job.delay_s, self._tick, job)
            return
        if job.stream:
            job.connection.transport.write(
                HEAD + (ROLE if job.chat else b"") + burst(job.chat, job.first, job.count)
            )
        job.end()

    def _tick(self, job: Job) -> None:
        if job.gone:
            job.connection.ended()
        elif job.token():
            job.end()
        else:
            asyncio.get_running_loop().call_later(job.delay_s, self._tick, job)


@dataclass
class Batch:
    """A replica with continuous batching. A step takes 1 / `decode` seconds: each of `slots` requests gets a token
    in it, and `prefill` / `decode` tokens of prompts are read, first come, first served. Who finds no slot waits
    in line. A client that leaves frees its place at the next step."""

    slots: int
    prefill: float
    decode: float
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    stepping: bool = False
    at: float = 0.0

    def take(self, job: Job) -> None:
        """Into the line."""
        job.connection.server.in_flight += 1
        self.waiting.append(job)
        if not self.stepping:
            self.stepping = True
            self.at = asyncio.get_running_loop().time()
            self._later()

    def step(self) -> None:
        """One step of the engine."""
        for job in [j for j in (*self.running, *self.waiting) if j.gone]:
            (self.running if job in self.running else self.waiting).remove(job)
            job.connection.ended()
        while self.waiting and len(self.running) < self.slots:
            self.running.append(self.waiting.popleft())
        budget = int(self.prefill / self.decode)
        for job in list(self.running):
            if job.unread:
                read = min(job.unread, budget)
                job.unread -= read
                budget -= read
                if not job.unread:
                    job.start()
            elif job.token():
                self.running.remove(job)
                job.end()

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        self.at = max(self.at + 1 / self.decode, loop.time() - 1.0)
        loop.call_at(self.at, self._tick)

    def _tick(self) -> None:
        self.step()
        self.stepping = bool(self.running or self.waiting)
        if self.stepping:
            self._later()


@dataclass
class Server:
    """What all connections share."""

    engine: Timed | Batch
    in_flight: int = 0


class Connection(asyncio.Protocol):
    """One client's connection, one request at a time."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.parser = httptools.HttpRequestParser(self)
        self.path, self.body = "", b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.path = url.decode().partition("?")[0]

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        body, self.body = self.body, b""
        if self.parser.get_method() == b"GET":
            self.transport.write(whole(MODELS))
            return
        asked = decode(body) if body else {}
        if self.path == "/apply-template":
            text = "".join(str(m.get("content")) for m in asked["messages"])
            self.transport.write(whole(encode({"prompt": text})))
        elif self.path == "/tokenize":
            self.transport.write(whole(encode({"tokens": tokenized(asked["content"])})))
        else:
            self.server.engine.take(job_of(self.path, asked, self))

    def ended(self) -> None:
        """A request is over."""
        self.server.in_flight -= 1


async def serve(told: dict[str, Any]) -> None:
    """Until SIGTERM, and until nothing is in flight."""
    replica = told.get("replica")
    server = Server(Batch(**replica) if replica else Timed())
    loop = asyncio.get_running_loop()
    told_to_end = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told_to_end.set)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", told["port"], backlog=4096)
    await told_to_end.wait()
    listening.close()
    while server.in_flight:
        await asyncio.sleep(0.02)


if __name__ == "__main__":
    uvloop.run(serve(decode(sys.argv[1])))
