"""The load of the gateway's benchmark: raw asyncio on uvloop, so that as little as possible of a core goes to it.

    python bench/gateway_load.py '{"do": "closed", "port": 8001, "connections": 64, "seconds": 5}'

`closed`: every connection asks again when it was answered. `each`: some streams, each once, with all that was said.
`replay`: requests at given times, whether or not those before were answered. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import httptools
import uvloop

SYSTEM = "You are a helpful assistant. " * 8
WARM_S = 1.0
LEAVE_S = 40.0


@dataclass(frozen=True)
class Ask:
    """What the requests are like. `model` as the gateway knows it, `delay_ms` between two chunks of the mock's."""

    key: str = "none"
    model: str = "m"
    stream: bool = False
    tokens: int = 16
    delay_ms: int = 0
    greedy: bool = False  # for a real engine, to which `seed` would mean something else
    slo: str = ""  # the class that they say they are of; only ours reads it
    more: dict[str, Any] = field(default_factory=dict)  # of the body

    def request(
        self, prompt: str = "Tell me about the sea, please.", headers: str = "", tokens: int = 0
    ) -> bytes:
        """One request for a chat, as bytes."""
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": tokens or self.tokens,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
        }
        body |= {"temperature": 0, "ignore_eos": True} if self.greedy else {"seed": self.delay_ms}
        body |= self.more | ({"stream": True} if self.stream else {})
        data = json.dumps(body).encode()
        if self.slo:
            headers += f"x-caudal-class: {self.slo}\r\n"
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {self.key}\r\n"
            f"content-type: application/json\r\n{headers}content-length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data


@dataclass(slots=True)
class Answer:
    """How one request went. Times are perf_counter's. `said` is kept where it was asked for."""

    started: float
    status: int = 0
    first_at: float = 0.0
    last_at: float = 0.0
    pause_s: float = 0.0
    pieces: int = 0
    tail: bytes = b""
    said: list[bytes] = field(default_factory=list)
    over: bool = False  # the protocol's end was there

    def complete(self, stream: bool) -> bool:
        """Whether it is a whole, good answer."""
        return self.over and self.status == 200 and (not stream or b"[DONE]" in self.tail)


class Connection(asyncio.Protocol):
    """A connection with at most one request in flight."""

    transport: asyncio.Transport

    def __init__(self, keep: bool, answered: Callable[[Connection, Answer], None]) -> None:
        self._keep, self._answered = keep, answered
        self.answer: Answer | None = None
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast(asyncio.Transport, transport), True  # uvloop's are no subclass

    def send(self, request: bytes) -> None:
        """Ask."""
        self.parser = httptools.HttpResponseParser(self)
        self.answer = Answer(time.perf_counter())
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        answer = self.answer
        assert answer is not None
        now = time.perf_counter()
        if answer.pieces:
            answer.pause_s = max(answer.pause_s, now - answer.last_at)
        else:
            answer.first_at = now
        answer.last_at = now
        answer.pieces += 1
        answer.tail = body if len(body) > 16 else answer.tail[-16:] + body
        if self._keep:
            answer.said.append(body)

    def on_message_complete(self) -> None:
        answer, self.answer = self.answer, None
        assert answer is not None
        answer.over, answer.status = True, self.parser.get_status_code()
        if not self.parser.should_keep_alive():
            self.open = False
        self._answered(self, answer)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        answer, self.answer = self.answer, None
        if answer is not None:
            self._answered(self, answer)


def into(over: asyncio.Future[Answer]) -> Callable[[Connection, Answer], None]:
    """What puts the first answer of a connection into a future."""

    def answered(_: Connection, answer: Answer) -> None:
        if not over.done():
            over.set_result(answer)

    return answered


def quantile(values: list[float], share: float) -> float:
    """In milliseconds, of seconds; -1 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1e3 if ordered else -1.0


class Closed:
    """Connections that ask again as soon as they are answered, or, with a `rate`, so often in all."""

    def __init__(self, told: dict[str, Any]) -> None:
        self.port, self.connections, self.seconds = told["port"], told["connections"], told["seconds"]
        self.every_s = self.connections / told["rate"] if told.get("rate") else 0.0
        self.warm_s = told.get("warm_s", WARM_S)
        self.ask = Ask(**told.get("ask", {}))
        self.request = self.ask.request()
        self.answers: list[tuple[float, float]] = []
        self.live: set[Connection] = set()
        self.opening: set[asyncio.Task[None]] = set()
        self.errors: dict[str, int] = {}
        self.pieces = 0
        self.stop_at = 0.0

    def answered(self, connection: Connection, answer: Answer) -> None:
        """Count it and go on."""
        now = time.perf_counter()
        if answer.complete(self.ask.stream):
            self.answers.append((now - answer.started, answer.first_at - answer.started))
        else:
            why = str(answer.status) if answer.over and answer.status != 200 else "cut"
            self.errors[why] = self.errors.get(why, 0) + 1
        self.pieces += answer.pieces
        loop = asyncio.get_running_loop()
        if now > self.stop_at or not connection.open:
            connection.transport.close()
            self.live.discard(connection)
            if now <= self.stop_at:
                self.open_later()
        elif self.every_s:
            loop.call_later(max(0.0, self.every_s - (now - answer.started)), self.again, connection)
        else:
            loop.call_soon(self.again, connection)

    def again(self, connection: Connection) -> None:
        """Ask once more."""
        if connection.open and time.perf_counter() <= self.stop_at:
            connection.send(self.request)
        else:
            self.live.discard(connection)
            connection.transport.close()

    def open_later(self) -> None:
        """A connection in the place of one that is lost, after a moment."""
        task = asyncio.get_running_loop().create_task(self.open(0.05))
        self.opening.add(task)
        task.add_done_callback(self.opening.discard)

    async def open(self, wait_s: float) -> None:
        """A connection that asks from now on."""
        await asyncio.sleep(wait_s)
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(
                lambda: Connection(False, self.answered), "127.0.0.1", self.port
            )
        except OSError:
            self.errors["connect"] = self.errors.get("connect", 0) + 1
            if time.perf_counter() < self.stop_at:
                self.open_later()
            return
        self.live.add(connection)
        connection.send(self.request)

    async def run(self) -> dict[str, Any]:
        """Warm up, say so, measure, say so, and let what is in flight end."""
        self.stop_at = time.perf_counter() + self.warm_s + self.seconds
        spread = self.every_s or (self.ask.tokens * self.ask.delay_ms / 1e3 / self.connections)
        share = min(spread, WARM_S / self.connections)
        await asyncio.gather(*(self.open(share * n) for n in range(self.connections)))
        await asyncio.sleep(max(0.0, self.stop_at - self.seconds - time.perf_counter()))
        self.answers.clear()
        warm_errors, self.errors = self.errors, {}
        pieces, begun = self.seen(), time.perf_counter()
        print("measuring", flush=True)
        await asyncio.sleep(self.seconds)
        answers, pieces, wall_s = list(self.answers), self.seen() - pieces, time.perf_counter() - begun
        print("measured", flush=True)
        leave_at = time.perf_counter() + LEAVE_S
        while self.live and time.perf_counter() < leave_at:
            await asyncio.sleep(0.02)
        took, first = [a for a, _ in answers], [b for _, b in answers]
        return {
            "requests": len(answers),
            "requests_per_s": len(answers) / wall_s,
            "latency_ms": {"p50": quantile(took, 0.5), "p99": quantile(took, 0.99)},
            "ttft_ms": {"p50": quantile(first, 0.5), "p99": quantile(first, 0.99)},
            "chunks": pieces,
            "chunks_per_s": pieces / wall_s,
            "errors": self.errors,
            "warm_errors": warm_errors,
            "left": len(self.live),
        }

    def seen(self) -> int:
        """Pieces of answers so far, also of those that are not over."""
        return self.pieces + sum(c.answer.pieces for c in self.live if c.answer is not None)


def text_of(said: list[bytes]) -> tuple[str, str, int]:
    """The text of a stream, its finish, and the completion's tokens by its usage (-1: it says nothing)."""
    text, finish, used = "", "", -1
    for line in b"".join(said).split(b"\n"):
        if not line.startswith(b"data: {"):
            continue
        told = json.loads(line[6:])
        used = (told.get("usage") or {}).get("completion_tokens", used)
        for choice in told.get("choices", []):
            text += (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            finish = choice.get("finish_reason") or finish
    return text, finish, used


@dataclass
class Said:
    """One stream of `each`. `asked` times: more than 1 where its gateway went away and it asked another. `first_s` from
    when it asked first to its first token (-1: none came), `token_s` for each further piece in the mean."""

    number: int
    status: int
    complete: bool
    text: str
    finish: str
    used: int
    pause_s: float
    asked: int
    seconds: float
    end: str  # the last of what came, where it is not whole
    first_s: float
    token_s: float


async def one(ports: list[int], number: int, request: bytes, patience_s: float) -> Said:
    """One stream. A client that loses its gateway asks the next one, from the start: the time from the last token that
    it had to the next one is a pause, too."""
    begun = last = time.perf_counter()
    pause_s, answer, asked = 0.0, Answer(begun), 0
    for port in ports:
        asked += 1
        over: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        connection = await connected(port, True, over)
        if connection is None:
            continue
        connection.send(request)
        try:
            answer = await asyncio.wait_for(asyncio.shield(over), patience_s)
        except TimeoutError:
            answer = connection.answer or answer
        connection.transport.close()
        waited_s = (answer.first_at or time.perf_counter()) - last if asked > 1 else 0.0
        pause_s = max(pause_s, answer.pause_s, waited_s)
        last = answer.last_at or last
        if answer.over:
            break
    text, finish, used = text_of(answer.said) if answer.status == 200 else ("", "", -1)
    good, seconds = answer.complete(True), time.perf_counter() - begun
    end = "" if good else b"".join(answer.said)[-300:].decode(errors="replace")
    first_s = answer.first_at - begun if answer.first_at else -1.0
    token_s = (answer.last_at - answer.first_at) / max(1, answer.pieces - 1)
    return Said(
        number, answer.status, good, text, finish, used, pause_s, asked, seconds, end, first_s, token_s
    )


async def connected(port: int, keep: bool, over: asyncio.Future[Answer]) -> Connection | None:
    """A connection for one request; None where nobody listens."""
    answered = into(over)
    loop = asyncio.get_running_loop()
    try:
        _, connection = await loop.create_connection(lambda: Connection(keep, answered), "127.0.0.1", port)
    except OSError:
        return None
    return connection


async def each(told: dict[str, Any]) -> dict[str, Any]:
    """Streams over all `ports` in turn, each with a prompt of its own."""
    ports, ask = told["ports"], Ask(**told["ask"])
    print("measuring", flush=True)
    streams = []
    for n in range(told["streams"]):
        order = ports[n % len(ports) :] + ports[: n % len(ports)]
        request = ask.request(f"Tell me story number {n} about {'the sea ' * (1 + n % 5)}.")
        streams.append(asyncio.create_task(one(order, n, request, told.get("patience_s", 60.0))))
    found = await asyncio.gather(*streams)
    print("measured", flush=True)
    return {"streams": [asdict(said) for said in found]}


async def replay(told: dict[str, Any]) -> dict[str, Any]:
    """Requests at their times: `arrivals` is a file of [seconds, prompt tokens, tokens, class]."""
    ask, patience_s = Ask(**told["ask"]), told["patience_s"]
    arrivals = json.loads(Path(told["arrivals"]).read_text())
    loop = asyncio.get_running_loop()
    rows: list[dict[str, Any]] = []
    begun = time.perf_counter()
    print("measuring", flush=True)

    async def ask_once(at: float, prompt: int, tokens: int, slo: str) -> None:
        headers = f"x-caudal-class: {slo}\r\n"
        words = f"{at:.6f} " + "sea " * max(0, prompt - len(SYSTEM) // 4)
        over: asyncio.Future[Answer] = loop.create_future()
        row = {"status": 0, "complete": False, "first_s": -1.0, "token_s": 0.0, "gave_up": False}
        rows.append(row | {"slo": slo, "prompt": prompt, "tokens": tokens, "at": at})
        place = len(rows) - 1
        started = time.perf_counter()
        connection = await connected(told["port"], False, over)
        if connection is None:
            return
        connection.send(ask.request(words, headers, tokens))
        try:
            answer = await asyncio.wait_for(over, patience_s)
        except TimeoutError:
            answer = connection.answer or Answer(started)
            rows[place]["gave_up"] = True
        connection.transport.abort()
        rows[place] |= {
            "status": answer.status,
            "complete": answer.complete(True),
            "first_s": answer.first_at - started if answer.first_at else -1.0,
            "token_s": (answer.last_at - answer.first_at) / max(1, tokens - 1),
        }

    tasks = []
    for at, prompt, tokens, slo in arrivals:
        wait_s = begun + at - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(ask_once(at, prompt, tokens, slo)))
    await asyncio.gather(*tasks)
    print("measured", flush=True)
    return {"requests": rows}


async def main(told: dict[str, Any]) -> None:
    """Do what was told, print what came of it."""
    kinds: dict[str, Callable[[], Any]] = {
        "closed": lambda: Closed(told).run(),
        "each": lambda: each(told),
        "replay": lambda: replay(told),
    }
    print(json.dumps(await kinds[told["do"]]()), flush=True)


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
