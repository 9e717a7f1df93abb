"""The hot path in C and Python's own: whatever a replica sends, in whatever pieces, the client gets the same bytes,
and what is known of the answer afterwards is the same."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.key import Usage
from caudal.gateway import wire
from caudal.gateway.admitter import Permit
from caudal.gateway.direct import Direct
from caudal.gateway.exchange import Exchange
from caudal.gateway.http_request import Head, Request
from caudal.gateway.http_server import HttpConnection, HttpServer
from caudal.gateway.limits import Limits
from caudal.gateway.metrics import Metrics
from caudal.gateway.openai_api import Call
from caudal.gateway.pumped import PumpedConnection
from caudal.gateway.relay import Relay
from caudal.gateway.router import Router, Ticket
from caudal.gateway.upstream import UpstreamConnection, UpstreamLimits
from caudal.gateway.upstream_pool import UpstreamPool
from caudal.gateway.usage import usage_of
from tests.properties.test_gateway_hostile_bytes import mutated, mutation

pytestmark = pytest.mark.skipif(not wire.BUILT, reason="the part in C was not built")

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
LIMITS = UpstreamLimits()


class Wire:
    """A transport: a real socket with a small buffer, and what waits before it."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        for one in (self.near, self.far):
            one.setblocking(False)
        self.waiting, self.got, self.closed, self.paused = b"", b"", False, False

    def write(self, data: bytes) -> None:
        """As a transport's: in order, and all of it at last."""
        self.waiting += data
        self.flush()

    def flush(self) -> None:
        """Send what can be sent."""
        try:
            while self.waiting:
                self.waiting = self.waiting[self.near.send(self.waiting) :]
        except BlockingIOError:
            pass

    def read(self, most: int) -> None:
        """The other side takes so many bytes; what waits is sent at the next turn of the loop."""
        self.flush()
        try:
            self.got += self.far.recv(most)
        except BlockingIOError:
            pass

    def all(self) -> bytes:
        """Whatever was sent."""
        while True:
            before = len(self.got)
            self.read(1 << 20)
            if len(self.got) == before and not self.waiting:
                self.near.close()
                self.far.close()
                return self.got

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str) -> socket.socket | None:
        return {"socket": self.near, "sslcontext": None}[name]

    def abort(self) -> None:
        self.closed = True

    close = abort

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


class Place:
    """A ticket that is only asked how it went."""

    def __init__(self) -> None:
        self.done_with: int | None = None
        self.address = None

    def first_token(self) -> None: ...
    def release(self) -> None: ...
    def done(self, tokens: int) -> None:
        self.done_with = tokens


class NoPermit:
    reply_tokens: int | None = None

    def first_token(self) -> None: ...
    def headers(self) -> bytes:
        return b""


class OnePool:
    """Knows the connection only."""

    def start(self, connection: UpstreamConnection, data: bytes, sink: Any) -> None:
        connection.start(data, sink)

    def release(self, address: object, connection: UpstreamConnection) -> None: ...


@dataclass
class Outcome:
    """All that can be told from outside after a stream."""

    client: bytes = b""
    said: bytes = b""
    too_long: bool = False
    events: int = 0
    chunks: int = 0
    measured: Any = None
    over: bool = False
    failure: str = ""
    status: int = 0
    tokens: int | None = None
    reply: int | None = None
    closed: bool = False
    passed: int = field(default=0, compare=False)  # by C


def run(
    kind: Callable[[UpstreamLimits], UpstreamConnection],
    pieces: list[bytes],
    *,
    reads: list[int],
    usage: bool,
    leaves_at: int = -1,
    told: bool = True,
) -> Outcome:
    """One stream in these pieces through this kind of connection, to a client that takes `reads` bytes in turn, and
    leaves before one of them; the gateway is `told` at once, or its transport knows and says it later."""
    outcome = Outcome()

    async def go() -> None:
        loop = asyncio.get_running_loop()
        client, upstream = Wire(), Wire()
        served = HttpConnection(HttpServer(lambda exchange: None, lambda refusal: b"", Limits()))
        served.connection_made(cast(asyncio.Transport, client))
        exchange = Exchange(served, Request(Head("POST", "/", "", {}, True, True), b""), True)
        served._exchange = exchange
        call = Call("/v1/chat/completions", "m", True, 9, b"{}", "messages", include_usage=usage or None)
        place, permit, router = Place(), NoPermit(), Router("north", loop.time)
        pool = cast(UpstreamPool, OnePool())
        relay = Relay(exchange, call, cast(Permit, permit), pool, Metrics(), router)
        connection = kind(LIMITS)
        connection.connection_made(cast(asyncio.Transport, upstream))

        class Job(Direct):
            def hand_over(self, begun: UpstreamConnection | None, failure: Exception | None) -> None:
                outcome.failure = f"{type(failure).__name__}: {failure}"

            def finish(self, status: int) -> None:
                outcome.status = status

        job = Job(exchange, pool)
        job.answer = relay
        job.start(cast(Ticket, place), connection, b"GET")
        feed = connection.data_received  # a transport asks for it once
        for number, piece in enumerate(pieces):
            if number == leaves_at and exchange.flow is not None:
                client.closed = True
                if told:
                    served.connection_lost(None)
            if upstream.closed:
                break
            feed(piece)
            client.read(reads[number % len(reads)])
        if not upstream.closed:
            connection.connection_lost(None)
        log = relay._said_log()
        outcome.client = client.all()
        outcome.too_long, outcome.events = log.too_long, log.count()
        outcome.said = b"" if log.too_long else log.bytes()
        outcome.chunks, outcome.over, outcome.measured = relay.chunks, relay.over, relay.measured
        outcome.tokens, outcome.reply, outcome.closed = place.done_with, permit.reply_tokens, upstream.closed
        if isinstance(connection, PumpedConnection):
            outcome.passed = connection._valve.passed
        upstream.all()

    asyncio.run(go())
    return outcome


def token(text: str, **more: Any) -> bytes:
    """An event with a token."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    told = {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(told, ensure_ascii=False).encode() + b"\n\n"


USED = {"prompt_tokens": 3, "completion_tokens": 5}
events = st.one_of(
    st.text(max_size=30).map(token),
    st.text(alphabet='"usage:{} [DONE]data\\', max_size=60).map(token),
    st.sampled_from(
        [
            token("a", usage=None),
            token("a", usage=USED),
            b'data: {"choices": [], "usage" :  {"prompt_tokens": 3, "completion_tokens": 4}}\n\n',
            b'data: {"choices":[],"usage":{"prompt_tokens":-3}}\n\n',
            token("x" * 5000),
            token("hi").replace(b"\n\n", b"\r\n\r\n"),
            token("data: [DONE]"),
            token("w", model="other"),
            b": ping\n\n",
            b"\n\n",
            b"data: null\n\n",
            b'data: {"error": {"message": "it died"}}\n\n',
            b'data: {"half": ',
            b"data: [DONE]\n\n",
            b"\xff\x00 what\n\n",
        ]
    ),
)
SIZES = st.sampled_from([b"%x", b"%X", b"0%x", b"%x;a=b", b"000000000%x", b"%x "])


@st.composite
def bodies(draw: st.DrawFn) -> list[bytes]:
    """A stream's chunks: mostly an event each, in the plainest form."""
    said = draw(st.lists(events, min_size=1, max_size=12)) + [b"data: [DONE]\n\n"] * draw(st.integers(0, 1))
    if draw(st.booleans()):
        whole = b"".join(said)
        places = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=6)))
        said = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
    sizes = draw(st.lists(SIZES, min_size=1, max_size=3)) if draw(st.booleans()) else [b"%x"]
    chunks = [sizes[n % len(sizes)] % len(e) + b"\r\n%b\r\n" % e for n, e in enumerate(said) if e]
    return [*chunks, *[b"0\r\n\r\n"] * draw(st.integers(0, 1))]


def cut(data: bytes, where: list[int]) -> list[bytes]:
    places = sorted({w % (len(data) + 1) for w in where} | {0, len(data)})
    return [data[a:b] for a, b in pairwise(places)]


reads = st.lists(st.sampled_from([0, 1, 100, 3000, 1 << 20]), min_size=1, max_size=4)


def same(pieces: list[bytes], **how: Any) -> Outcome:
    """Both ways; returns what came of C's."""
    ours, plain = run(PumpedConnection, pieces, **how), run(UpstreamConnection, pieces, **how)
    assert ours == plain
    return ours


@settings(max_examples=400, deadline=None)
@given(bodies(), reads, st.booleans(), st.integers(-1, 8), st.booleans())
def test_chunk_by_chunk(
    chunks: list[bytes], reads: list[int], usage: bool, leaves_at: int, told: bool
) -> None:
    same([HEAD, *chunks], reads=reads, usage=usage, leaves_at=leaves_at, told=told)


@settings(max_examples=400, deadline=None)
@given(bodies(), st.lists(st.integers(0, 100_000), max_size=12), reads, st.booleans())
def test_however_it_is_cut(chunks: list[bytes], where: list[int], reads: list[int], usage: bool) -> None:
    same(cut(HEAD + b"".join(chunks), where), reads=reads, usage=usage)


@settings(max_examples=400, deadline=None)
@given(bodies(), st.lists(mutation, min_size=1, max_size=4), st.lists(st.integers(0, 100_000), max_size=6))
def test_whatever_is_done_to_it(
    chunks: list[bytes], changes: list[tuple[str, int, int, bytes]], where: list[int]
) -> None:
    """Piece by piece, each changed on its own, and as a whole."""
    changed = [mutated(c, changes) if n % 2 else c for n, c in enumerate(chunks)]
    same([HEAD, *changed], reads=[1 << 20], usage=False)
    same(cut(HEAD + mutated(b"".join(chunks), changes), where), reads=[1 << 20], usage=False)


def chunk(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


def test_what_is_ordinary_takes_no_step_of_python() -> None:
    last = chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    pieces = [HEAD, chunk(token("role")), *(chunk(token(f"w{n}")) for n in range(50)), last]
    outcome = same(pieces, reads=[1 << 20], usage=False)
    assert outcome.passed == 50 and outcome.over and outcome.status == 200


def test_several_chunks_at_once_become_one() -> None:
    """As in Python: what came together goes together."""
    two = chunk(token("a")) + chunk(token("b"))
    outcome = same([HEAD + chunk(token("role")), two, two], reads=[1 << 20], usage=False)
    assert outcome.passed == 2 and outcome.client.endswith(chunk(token("a") + token("b")))


def test_a_long_stream_is_kept_to_the_limit_and_not_beyond() -> None:
    pieces = [HEAD, chunk(token("role")), *[chunk(token("x" * 60_000))] * 90]
    outcome = same(pieces, reads=[1 << 20], usage=False)
    assert outcome.passed == 90 and outcome.too_long


def test_a_client_that_takes_nothing_loses_nothing() -> None:
    outcome = same([HEAD, *[chunk(token("x" * 900))] * 40], reads=[0], usage=False)
    assert outcome.passed and outcome.client.count(b"x" * 900) == 40


class Odd:
    """What answers with an error or nonsense."""

    def __call__(self, *_: object) -> int:
        raise OSError("it broke")


@pytest.mark.parametrize("event", [token("b"), b"data: [DONE]\n\n", b'data: {"half"'])
def test_the_end_is_seen_behind_any_event(event: bytes) -> None:
    outcome = same([HEAD, chunk(token("a")), chunk(event) + b"0\r\n\r\n"], reads=[1 << 20], usage=False)
    assert outcome.passed == 0 and outcome.over == (b"DONE" in event)
    assert outcome.status == 200 if outcome.over else "NotEvents" in outcome.failure


def test_nothing_overtakes_what_waits() -> None:
    pieces = [HEAD, *(chunk(token(f"{n}" + "x" * 900)) for n in range(40))]
    outcome = same(pieces, reads=[2000], usage=False)
    assert outcome.passed > 30 and outcome.client.index(b'"38x') < outcome.client.index(b'"39x')


def test_a_client_that_leaves_is_sent_nothing_more() -> None:
    pieces = [HEAD, *(chunk(token(f"w{n}.")) for n in range(9))]
    for told in (True, False):
        outcome = same(pieces, reads=[1 << 20], usage=False, leaves_at=5, told=told)
        assert b"w3." in outcome.client and b"w4." not in outcome.client


def test_failures_of_what_it_calls_come_out() -> None:
    data = chunk(token("a"))
    nothing: Callable[..., Any] = lambda *_: 0  # noqa: E731
    for broken in range(4):
        calls = [Odd() if n == broken else nothing for n in range(4)]
        heard: list[bytes] = []
        valve = wire.Valve(heard.append)
        valve.open(wire.Pump(wire.Outlet(calls[0], calls[1], calls[2], -1), calls[3], 0))
        if broken == 2:  # without a socket nobody asks what waits before it
            valve.feed(data)
        else:
            with pytest.raises(OSError, match="it broke"):
                valve.feed(data)
        assert heard == []
    with pytest.raises(TypeError):
        valve.open(valve)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="64 MiB"):
        wire.Pump(wire.Outlet(nothing, nothing, nothing, -1), nothing, -1)
    with pytest.raises(TypeError):
        wire.Pump(nothing, nothing, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        wire.Outlet(nothing, nothing, nothing, -1).send("text")  # type: ignore[arg-type]


counts = st.one_of(
    st.integers(-2, 10**17),
    st.sampled_from(
        [None, 0, 7, 1.5, "7", True, {}, {"cached_tokens": 3}, {"cached_tokens": None}, {"a": {"b": 1}}]
    ),
)
NAMES = [
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "prompt_tokens_details",
    "cached_tokens",
    "Odd key",
]


@st.composite
def usages(draw: st.DrawFn) -> bytes:
    """Whole answers that say what they used, in all kinds of ways; a name may stand twice."""
    space = draw(st.sampled_from([b"", b" ", b"\n\t", b"\x0b"]))
    pairs = draw(st.lists(st.tuples(st.sampled_from(NAMES), counts), max_size=5))
    said = [b'"%b"%b:%b%b' % (k.encode(), space, space, json.dumps(v).encode()) for k, v in pairs]
    used = b"{" + (b"," + space).join(said) + space + b"}"
    before = draw(st.sampled_from([b'{"a":1,', b'{"usage":{"prompt_tokens":1},', b"{", b""]))
    after = draw(st.sampled_from([b"}", b',"b":"usage"}', b"", b',"usage":null}']))
    return before + b'"usage"' + space + b":" + space + used + after


@settings(max_examples=1000, deadline=None)
@given(usages(), st.lists(mutation, max_size=2))
def test_usage_is_read_as_python_reads_it(body: bytes, changes: list[tuple[str, int, int, bytes]]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(wire, "BUILT", False)
        for said in (body, mutated(body, changes)):
            found, told = wire.usage_counts(said), usage_of(said)
            assert found is None or told == Usage(*found)


def test_plain_usage_takes_no_step_of_python() -> None:
    cached = b'"prompt_tokens_details":{"cached_tokens":2}'
    llama = b'{"usage":{"completion_tokens":8,"prompt_tokens":7,"total_tokens":15,%b}}' % cached
    assert wire.usage_counts(llama) == (7, 8, 2)
    vllm = b'{"usage": {"prompt_tokens": 5, "completion_tokens": 4, "prompt_tokens_details": null}}'
    assert wire.usage_counts(vllm) == (5, 4, 0)
    for nothing in (b"", b'"usage"', b'{"usage":null}', b'x"usage":{"prompt_tokens":1234567890123456}'):
        assert wire.usage_counts(nothing) is None
    with pytest.raises(TypeError):
        wire.usage_counts("text")  # type: ignore[arg-type]
