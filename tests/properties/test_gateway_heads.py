"""Heads that were parsed before: whoever knows them reads the same of any bytes as who parses all of them, in C and in
Python, of requests and of answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from caudal.gateway import upstream, wire
from caudal.gateway.http_request import RequestReader
from caudal.gateway.known_heads import MAX_HEADS, KnownHeads, PlainHeads, known_heads
from caudal.gateway.pumped import PumpedConnection
from caudal.gateway.upstream import UpstreamConnection, UpstreamLimits
from tests.properties.test_gateway_hostile_bytes import mutated, mutation
from tests.properties.test_gateway_parsing import SMALL, pieces, request_bytes
from tests.properties.test_gateway_wire import Wire

ROOMY = replace(SMALL, pipelined=3)
KINDS: list[Callable[[int], KnownHeads]] = [PlainHeads, *([wire.Heads] if wire.BUILT else [])]


class NoHeads:
    """Nothing is ever known."""

    def find(self, data: bytes, /) -> None:
        return None

    def keep(self, data: bytes, value: object, /) -> None: ...


LINES = [
    b"host: x\r\n",
    b"Host: x\r\n",
    b"content-length: %d\r\n",
    b"Content-Length: %d\r\n",
    b"CONTENT-LENGTH: %d\r\n",
    b"content-length:%d\r\n",
    b"content-length:  %d\r\n",
    b"content-length: 0%d\r\n",
    b"content-length: %d \r\n",
    b"content-length: %d\r\ncontent-length: %d\r\n",
    b"x: content-length: 3\r\n",
    b"xcontent-length: 3\r\n",
    b"connection: close\r\n",
    b"connection: keep-alive\r\n",
    b"transfer-encoding: chunked\r\n",
    b"expect: 100-continue\r\n",
    b"upgrade: h2c\r\nconnection: upgrade\r\n",
    b"\r\n",
    b"a:\r\n content-length: 3\r\n",
    b"long: " + b"y" * 150 + b"\r\n",
]
STARTS = [
    b"POST /a HTTP/1.1\r\n",
    b"GET /?b HTTP/1.1\r\n",
    b"POST / HTTP/1.0\r\n",
    b"\r\nHEAD / HTTP/1.1\r\n",
]
bodies = st.one_of(
    st.sampled_from(
        [b"", b"{}", b"x" * 9, b"y" * 10, b"\r\n\r\n", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"z" * 65]
    ),
    st.binary(max_size=70),
)


def filled(line: bytes, length: int) -> bytes:
    return line.replace(b"%d", b"%d" % length)


@st.composite
def messages(draw: st.DrawFn, starts: list[bytes]) -> list[bytes]:
    """The same few heads again and again, with bodies of any length (which is not always the one that they say)."""
    heads = draw(
        st.lists(
            st.tuples(st.sampled_from(starts), st.lists(st.sampled_from(LINES), max_size=4)),
            min_size=1,
            max_size=3,
        )
    )
    out = []
    for number in draw(st.lists(st.integers(0, len(heads) - 1), min_size=1, max_size=8)):
        start, lines = heads[number]
        body = draw(bodies)
        said = len(body) + draw(st.sampled_from([0, 0, 0, 0, 1, -1]))
        out.append(start + b"".join(filled(line, max(0, said)) for line in lines) + b"\r\n" + body)
    return out


def known_and_parsed(kind: Callable[[int], KnownHeads], parts: list[bytes], takes: list[bool]) -> int:
    """Both readers are fed the same, by connections that share what they know; returns how many were known."""
    heads, known = kind(ROOMY.body_bytes), 0
    one, other = RequestReader(ROOMY, heads), RequestReader(ROOMY, NoHeads())
    for number, part in enumerate(parts):
        if one.refused or takes[number % len(takes)] is None:
            one, other = RequestReader(ROOMY, heads), RequestReader(ROOMY, NoHeads())
        known += one.known(part) is not None
        one.feed(part)
        other.feed(part)
        assert list(one.ready) == list(other.ready)
        assert (one.refused, one.phase(), one.expects_continue) == (
            other.refused,
            other.phase(),
            other.expects_continue,
        )
        if takes[number % len(takes)]:
            one.ready.clear()
            other.ready.clear()
    return known


TAKES = st.lists(st.sampled_from([True, True, True, False, None]), min_size=1, max_size=5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=400, deadline=None)
@given(parts=messages(STARTS), takes=TAKES)
def test_requests_one_by_one(
    kind: Callable[[int], KnownHeads], parts: list[bytes], takes: list[bool]
) -> None:
    known_and_parsed(kind, [*parts, *parts], takes)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.one_of(request_bytes, messages(STARTS).map(b"".join)), min_size=1, max_size=4),
    changes=st.lists(mutation, max_size=3),
    where=st.lists(st.integers(0, 10_000), max_size=8),
    takes=TAKES,
)
def test_requests_cut_joined_and_mutated(
    kind: Callable[[int], KnownHeads],
    parts: list[bytes],
    changes: list[tuple[str, int, int, bytes]],
    where: list[int],
    takes: list[bool],
) -> None:
    changed = [mutated(part, changes) for part in parts]
    known_and_parsed(kind, [*parts, *changed, *parts], takes)
    known_and_parsed(kind, [*parts, *pieces(b"".join(changed), where), *parts], takes)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_plain_is_known_whatever_its_length(kind: Callable[[int], KnownHeads]) -> None:
    start = b"POST /v1/x?a=b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nx-a: b\r\n\r\n%b"
    parts = [start % (n, b"x" * n) for n in (3, 4, 10, 0, 64)]
    assert known_and_parsed(kind, parts, [True]) == 4
    assert (
        known_and_parsed(kind, [start % (n, b"x" * n) for n in (3, 65)], [True]) == 0
    )  # larger than is accepted
    assert known_and_parsed(kind, [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"] * 3, [True]) == 2


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(messages(STARTS).map(b"".join), st.binary(max_size=60)), min_size=1, max_size=6))
@example([b"\r\n\r\n", b"\n\r\n\r\n", b"a\ncontent-length: 1\r\n\r\nb", b"a\ncontent-length: \r\n\r\n"])
@example([b"a" * 2044 + b"\r\n\r\n", b"a" * 2045 + b"\r\n\r\n", b"a\ncontent-length: 1234567890\r\n\r\n"])
def test_c_finds_what_python_finds(parts: list[bytes]) -> None:
    if not wire.BUILT:
        pytest.skip(
            "the part in C was not built"
        )  # where there is no compiler, or it was not wanted: then Python's is all
    plain, built = PlainHeads(50), wire.Heads(50)
    for number, part in enumerate([*parts, *parts]):
        assert plain.find(part) == built.find(part)
        plain.keep(part, number)
        built.keep(part, number)
        assert plain.find(part) == built.find(part)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_forgotten_where_they_are_too_many(kind: Callable[[int], KnownHeads]) -> None:
    heads = kind(10)
    for number in range(MAX_HEADS):
        heads.keep(b"GET /%d\r\n\r\n" % number, number)
    assert heads.find(b"GET /0\r\n\r\n") == (0, b"")
    heads.keep(b"GET /one more\r\n\r\n", 1)
    assert heads.find(b"GET /0\r\n\r\n") is None and heads.find(b"GET /one more\r\n\r\n") == (1, b"")


# Answers.

ANSWERS = [
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 503 No\r\n",
    b"HTTP/1.1 204 OK\r\n",
    b"HTTP/1.1 100 Go\r\n",
    b"HTTP/1.0 200 OK\r\n",
]


NO_BODY = [b"HTTP/1.1 204 OK\r\ncontent-length: %d\r\n\r\n" % n + b"x" * n for n in (0, 2)]


class Told:
    """A sink that notes what it is told."""

    def __init__(self, takes_whole: bool) -> None:
        self.takes_whole = takes_whole
        self.body = b""
        self.end = ""

    def begun(self) -> None: ...

    def piece(self, data: bytes) -> None:
        self.body += data

    def in_one(self, body: bytes) -> None:
        self.piece(body)
        self.whole()

    def whole(self) -> None:
        assert not self.end
        self.end = "whole"

    def pump(self) -> None:
        return None

    def failed(self, failure: Exception) -> None:
        assert not self.end
        self.end = str(failure)


def heard(
    made: type[UpstreamConnection],
    heads: KnownHeads,
    parts: list[bytes],
    where: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> list[Any]:
    """Each part is the answer to a request of its own; after what ends the connection there is a new one."""
    out: list[Any] = []

    async def go() -> None:
        monkeypatch.setattr(upstream, "_HEADS", heads)
        connection, transport = None, Wire()
        for number, part in enumerate(parts):
            if connection is None or not connection.usable():
                connection, transport = made(UpstreamLimits()), Wire()
                connection.connection_made(transport)  # type: ignore[arg-type]  # as much of one as is used
            sink = Told(number % 2 == 0)
            connection.start(b"GET", sink)
            for piece in pieces(part, where if number % 3 == 2 else []):
                if not transport.closed:
                    connection.data_received(piece)
            out.append((connection.status, connection.complete, transport.closed, sink.body, sink.end))
            connection.sink = None

    asyncio.run(go())
    return out


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@example(parts=NO_BODY, changes=[], where=[])
@given(
    parts=messages(ANSWERS),
    changes=st.lists(mutation, max_size=2),
    where=st.lists(st.integers(0, 10_000), max_size=4),
)
def test_answers(
    kind: Callable[[int], KnownHeads],
    parts: list[bytes],
    changes: list[tuple[str, int, int, bytes]],
    where: list[int],
) -> None:
    all_parts = [*parts, *parts, *(mutated(part, changes) for part in parts), *parts]
    with pytest.MonkeyPatch.context() as patch:
        parsed = heard(UpstreamConnection, NoHeads(), all_parts, where, patch)
        for made in (UpstreamConnection, *([PumpedConnection] if wire.BUILT else [])):
            assert heard(made, kind(1 << 20), all_parts, where, patch) == parsed


def test_what_is_built_is_used() -> None:
    assert isinstance(known_heads(1), wire.Heads if wire.BUILT else PlainHeads)


@pytest.mark.parametrize("kind", KINDS)
def test_what_follows_the_last_request_is_not_known(kind: Callable[[int], KnownHeads]) -> None:
    plain = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\na"
    last = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert known_and_parsed(kind, [plain, plain, last, plain], [True]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_is_as_large_as_it_is_with_its_length(kind: Callable[[int], KnownHeads]) -> None:
    """With a digit more it is too large."""
    for room in range(30):
        start = b"POST / HTTP/1.1\r\nhost: x\r\na: %b\r\ncontent-length: " % (b"y" * (150 + room))
        known_and_parsed(kind, [start + b"1\r\n\r\na", start + b"10\r\n\r\n" + b"a" * 10], [True])
