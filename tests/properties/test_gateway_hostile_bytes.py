"""Valid requests, mutated and cut anywhere: never an exception, never a request that was not sent, bounded memory."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from caudal.gateway.http_request import Refusal, Request, RequestReader
from caudal.gateway.limits import Limits
from tests.properties.test_gateway_parsing import SMALL, pieces, request_bytes

MARK = b"/smuggled"
INNER = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"

mutation = st.tuples(
    st.sampled_from(["cut", "double", "swap", "insert", "flip"]),
    st.integers(0, 10_000),
    st.integers(1, 30),
    st.sampled_from(
        [
            *(b"\r", b"\n", b"\r\n", b" ", b"\t", b"\x00", b":", b";", b",", b"0", b"\xff"),
            b"content-length: 1\r\n",
            b"transfer-encoding: chunked\r\n",
            b"transfer-encoding: identity\r\n",
            b"connection: close\r\n",
        ]
    ),
)
cuts = st.lists(st.integers(0, 10_000), max_size=12)


def mutated(data: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, at, length, what in changes:
        at %= len(data) + 1
        piece = data[at : at + length]
        if kind == "cut":
            data = data[:at] + data[at + length :]
        elif kind == "double":
            data = data[:at] + piece + piece + data[at + length :]
        elif kind == "swap":
            data = data[:at] + piece[::-1] + data[at + length :]
        elif kind == "insert":
            data = data[:at] + what + data[at:]
        elif piece:
            data = data[:at] + bytes([piece[0] ^ (1 << length % 8)]) + data[at + 1 :]
    return data


def read(parts: list[bytes], limits: Limits = SMALL) -> tuple[RequestReader, int]:
    """The reader at the end, and the most bytes that it held of requests that are not whole."""
    reader, most = RequestReader(limits), 0
    for part in parts:
        reader.feed(part)
        partial = reader.begun
        if partial is not None:
            most = max(most, len(partial.url) + sum(map(len, partial.headers.values())) + len(partial.body))
    return reader, most


@given(st.lists(request_bytes, min_size=1, max_size=3), st.lists(mutation, max_size=6), cuts)
def test_mutations_are_read_alike_however_they_are_cut(
    requests: list[bytes], changes: list[tuple[str, int, int, bytes]], where: list[int]
) -> None:
    data = mutated(b"".join(requests), changes)
    roomy = replace(SMALL, head_bytes=10_000, body_bytes=10_000)  # else a refusal may come earlier or later
    whole, _ = read([data], roomy)
    for parts in (pieces(data, where), [bytes([b]) for b in data]):
        reader, _ = read(parts, roomy)
        assert [r for r in reader.ready if isinstance(r, Request)] == [
            r for r in whole.ready if isinstance(r, Request)
        ]
        assert reader.refused == whole.refused
    tight, most = read(pieces(data, where))
    assert most <= SMALL.head_bytes * 2 + SMALL.body_bytes
    assert sum(isinstance(r, Refusal) for r in tight.ready) <= 1
    assert not tight.refused or isinstance(tight.ready[-1], Refusal)


headers = st.lists(
    st.sampled_from(
        [
            b"content-length: %d\r\n" % len(INNER),
            b"content-length: 0\r\n",
            b"Content-Length : 0\r\n",
            b"content-length: %d, 0\r\n" % len(INNER),
            b"content-length:\t0%d\r\n" % len(INNER),
            b"content-length: 0x1\r\n",
            b"transfer-encoding: chunked\r\n",
            b"transfer-encoding: xchunked\r\n",
            b"transfer-encoding : chunked\r\n",
            b"transfer-encoding: chunked, identity\r\n",
            b"Transfer-Encoding:\x0bchunked\r\n",
            b" folded\r\n",
            b"x: y\n",
            b"x: y\r",
            b"x\r\n",
        ]
    ),
    max_size=3,
)


@given(headers, cuts)
def test_a_body_is_never_read_as_a_request(lines: list[bytes], where: list[int]) -> None:
    """One request whose body is another one. It comes out as a request only where the head says, to every server
    alike, that there is no body: by no length at all, or by one single length of nothing."""
    data = b"POST /a HTTP/1.1\r\nhost: x\r\n" + b"".join(lines) + b"\r\n" + INNER
    reader, _ = read(pieces(data, where), replace(SMALL, body_bytes=10_000))
    got = [r for r in reader.ready if isinstance(r, Request)]
    smuggled = any(r.path.encode() == MARK for r in got)
    assert not smuggled or lines in ([], [b"content-length: 0\r\n"])
