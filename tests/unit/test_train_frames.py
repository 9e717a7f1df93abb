"""Frames: what was sent arrives, and everything else is a clear error before it costs memory."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.train.frames import MAX_HEADER_BYTES, PREFIX, pack, read_frame
from caudal.train.messages import BadMessage, Delta, Message, Ping, Round, decode

DELTA = Delta(1, 2, "1.2.3", 512, 3.5, 4, 0.25, 0, 10)


def read(data: bytes, most: int = 1000) -> tuple[Message, bytes]:
    async def go() -> tuple[Message, bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return await read_frame(reader, most)

    return asyncio.run(go())


def test_a_frame_comes_back_as_it_was() -> None:
    assert read(pack(DELTA, b"payload") + b"payload") == (DELTA, b"payload")
    order = Round(1, 2, "x", 0, ((0, 5), (9, 12)), (0.0, 0.5), 4, True)
    assert read(pack(order)) == (order, b"")


@settings(max_examples=80)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_any_changed_byte_is_noticed(at: int, change: int) -> None:
    data = bytearray(pack(DELTA, b"some payload") + b"some payload")
    data[at % len(data)] ^= change
    with pytest.raises((BadMessage, asyncio.IncompleteReadError)):
        read(bytes(data))


def test_lengths_are_checked_before_anything_is_read() -> None:
    with pytest.raises(BadMessage, match="too long"):
        read(PREFIX.pack(b"CDL1", 10, 1 << 60, 0))
    with pytest.raises(BadMessage, match="too long"):
        read(PREFIX.pack(b"CDL1", MAX_HEADER_BYTES + 1, 0, 0))
    with pytest.raises(BadMessage, match="not a frame"):
        read(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
    with pytest.raises(asyncio.IncompleteReadError):
        read(pack(Ping())[:-1])


@pytest.mark.parametrize("header", [b"", b"{}", b'{"type":"delta"}', b'{"type":"pickle"}', b"[1]", b"\xff"])
def test_headers_are_typed(header: bytes) -> None:
    with pytest.raises(BadMessage, match="cannot be read"):
        decode(header)
