"""The gateway's generations over fake engines, without sockets: every answer is cut into pieces as the test
says, and ends at the byte that it names."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from caudal.gateway.address import Address
from caudal.gateway.admitter import Admitter
from caudal.gateway.exchange import Exchange
from caudal.gateway.external import Externals
from caudal.gateway.generation import Generations
from caudal.gateway.http_request import Head, Request
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call, parse_chat, parse_completion
from caudal.gateway.router import Router
from caudal.gateway.routes import ModelRoutes, ReplicaRoute, RouteTable
from caudal.gateway.spending import Spending
from caudal.gateway.upstream import UpstreamFailed
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.usage import Measured
from tests.support.fake_engine import FakeEngine

NO_EXTERNALS = Externals(Spending(Path("/nowhere"), lambda: 0.0))


@dataclass
class FakeExchange:
    """What a client got."""

    started: bool = False
    finished: bool = False
    data: bytes = b""
    status: int = 0
    request: Request = field(default_factory=lambda: Request(Head("POST", "/", "", {}, True, True), b""))

    def begin(self, status: int, content_type: bytes, extra: bytes = b"") -> None:
        """As Exchange's."""
        assert not self.started
        self.started, self.status = True, status

    def begin_with(self, data: bytes, content_type: bytes, extra: bytes) -> None:
        """As Exchange's."""
        self.begin(200, content_type, extra)
        self.send(data)

    def respond(self, status: int, body: bytes, *, extra: bytes = b"") -> None:
        """As Exchange's."""
        self.begin(status, b"")
        self.data, self.finished = body, True

    def send(self, data: bytes) -> None:
        """As Exchange's."""
        assert self.started and not self.finished
        self.data += data

    def end(self) -> None:
        """As Exchange's."""
        assert self.started and not self.finished
        self.finished = True

    async def drained(self) -> None:
        """At once."""


class FakeConnection:
    """An answer in pieces."""

    waiting = False

    def __init__(self, status: int, pieces: Iterator[bytes], fails: bool) -> None:
        self.status = status
        self._pieces = pieces
        self._fails = fails

    async def read(self) -> bytes:
        """The next piece; empty, or a failure, at the end."""
        piece = next(self._pieces, b"")
        if not piece and self._fails:
            raise UpstreamFailed("the connection was lost before the answer was whole", lost=True)
        return piece

    async def read_all(self) -> bytes:
        """All pieces."""
        out = b""
        while piece := await self.read():
            out += piece
        return out


@dataclass
class Failures:
    """At which byte each generation's answer ends, in order (None: not at all), and into which sizes it is
    cut; `on_asks` are the questions (by number) that are not answered."""

    at: list[int | None] = field(default_factory=list)
    sizes: list[int] = field(default_factory=lambda: [1 << 20])
    on_asks: tuple[int, ...] = ()


class FakePool:
    """Asks the engines without a network; the port is the engine's number."""

    def __init__(self, engines: list[FakeEngine], failures: Failures) -> None:
        self._engines = engines
        self._failures = failures
        self._at = iter(failures.at)
        self.asked: list[tuple[int, str, dict[str, Any]]] = []
        self._asks = 0
        self.on_request: Callable[[], None] = lambda: None

    async def request(self, address: Address, data: bytes) -> FakeConnection:
        """An answer's head."""
        self.on_request()
        head, _, body = data.partition(b"\r\n\r\n")
        path = head.split(b" ")[1].decode()
        self.asked.append((address.port, path, json.loads(body)))
        status, answer = self._engines[address.port].answer(path, self.asked[-1][2])
        if path.startswith("/v1/"):
            end = next(self._at, None)
            return FakeConnection(status, self._cut(answer[:end]), end is not None)
        self._asks += 1
        if self._asks - 1 in self._failures.on_asks:
            raise UpstreamFailed("no connection: refused")
        return FakeConnection(status, iter([answer]), False)

    def release(self, address: Address, connection: FakeConnection) -> None:
        """Nothing is kept."""

    def _cut(self, answer: bytes) -> Iterator[bytes]:
        number = 0
        while answer:
            size = max(1, self._failures.sizes[number % len(self._failures.sizes)])
            yield answer[:size]
            answer, number = answer[size:], number + 1


def parsed_events(data: bytes) -> list[dict[str, Any]]:
    """A stream's events but [DONE]."""
    return [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]


@dataclass(frozen=True)
class Outcome:
    """A request's end."""

    data: bytes
    used: list[Measured]
    metrics: Metrics
    asked: list[tuple[int, str, dict[str, Any]]]
    reading: list[int]  # prompts that admission took to be read by replicas, at each question and at the end

    def by(self, number: int) -> list[tuple[str, dict[str, Any]]]:
        """What the first, second... replica that took part was asked."""
        ports = list(dict.fromkeys(port for port, _, _ in self.asked))
        return [(path, body) for port, path, body in self.asked if port in ports[number : number + 1]]

    @property
    def events(self) -> list[dict[str, Any]]:
        """All but [DONE]."""
        return parsed_events(self.data)

    @property
    def done(self) -> int:
        """How often it said [DONE]."""
        return self.data.count(b"data: [DONE]\n\n")

    @property
    def error(self) -> str:
        """The code of the event that ended it; empty where none did."""
        last = self.events[-1] if self.events else {}
        return str(last.get("error", {}).get("code", "")) if not self.done else ""


def whole(path: str, body: dict[str, Any], failures: Failures) -> Outcome:
    """One request for an answer in one piece."""
    return ask(path, {**body, "stream": False}, failures)


def ask(
    path: str,
    body: dict[str, Any],
    failures: Failures,
    *,
    dialect: str = "llama.cpp",
    replicas: int = 5,
    used: list[Measured] | None = None,
) -> Outcome:
    """One streamed request to a fleet of fake engines."""
    engines = [FakeEngine(dialect or "llama.cpp") for _ in range(replicas)]
    routes = tuple(
        ReplicaRoute(f"g{i}", f"http://127.0.0.1:{i or 80}", "north", "engine", engine=dialect)
        for i in range(1, replicas)
    )
    used = [] if used is None else used
    metrics, exchange = Metrics(), FakeExchange()
    pool = FakePool(engines, failures)
    reading: list[int] = []

    async def run() -> None:
        router = Router("north", asyncio.get_running_loop().time)
        router.update(RouteTable(1, (ModelRoutes("m", 1, 0, routes),)))
        admitter = Admitter(router.capacity, router.now)
        pool.on_request = lambda: reading.append(admitter.admission.reading("m"))
        generations = Generations(
            router,
            cast(UpstreamPool, pool),
            metrics,
            NO_EXTERNALS,
            0.0,
            used=lambda call, one: used.append(one),
            admitter=admitter,
        )
        parse = parse_chat if "chat" in path else parse_completion
        call: Call = parse(json.dumps({"model": "m", "stream": True, **body}).encode())
        await generations.run(cast(Exchange, exchange), call)
        pool.on_request()

    asyncio.run(run())
    assert exchange.finished
    return Outcome(exchange.data, used, metrics, pool.asked, reading)
