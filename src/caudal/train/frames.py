"""Frames on a stream of bytes: lengths that are checked before anything is read, and a checksum over all.

    "CDL1" | header length u32 | payload length u64 | crc32 of header and payload u32 | header | payload

Knows nothing of what headers say.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Callable

from caudal.train.messages import BadMessage, Message, decode, encode

MAGIC = b"CDL1"
PREFIX = struct.Struct("<4sIQI")
MAX_HEADER_BYTES = 1 << 16
REMEDY = "both sides have to run the same version of Caudal over an undisturbed connection"


def pack(message: Message, payload: bytes | bytearray | memoryview = b"") -> bytes:
    """Prefix and header of a frame; the payload has to follow it, as it is."""
    header = encode(message)
    assert len(header) <= MAX_HEADER_BYTES
    crc = zlib.crc32(payload, zlib.crc32(header))
    return PREFIX.pack(MAGIC, len(header), len(payload), crc) + header


def unpack_prefix(prefix: bytes, max_payload_bytes: int) -> tuple[int, int, int]:
    """(header length, payload length, checksum). Raises BadMessage where the frame is none or too long."""
    magic, header_bytes, payload_bytes, crc = PREFIX.unpack(prefix)
    if magic != MAGIC:
        raise BadMessage("not a frame", why=f"it starts with {magic!r}", remedy=REMEDY)
    if header_bytes > MAX_HEADER_BYTES or payload_bytes > max_payload_bytes:
        raise BadMessage(
            "a frame that is too long",
            why=f"{header_bytes} + {payload_bytes} bytes; at most {MAX_HEADER_BYTES} + {max_payload_bytes}",
            remedy=REMEDY,
        )
    return header_bytes, payload_bytes, crc


def unpack(header: bytes, payload: bytes, crc: int) -> Message:
    """The header of a whole frame. Raises BadMessage where a bit changed on the way."""
    if zlib.crc32(payload, zlib.crc32(header)) != crc:
        raise BadMessage("a frame that was damaged on the way", why="its checksum is wrong", remedy=REMEDY)
    return decode(header)


AT_ONCE = 1 << 18
"""A long payload is read in pieces of so many bytes, so that its sender is heard of meanwhile."""


async def read_frame(
    reader: asyncio.StreamReader, max_payload_bytes: int, heard: Callable[[], None] | None = None
) -> tuple[Message, bytes]:
    """The next frame; `heard` is called whenever some of it came. Raises BadMessage, and
    asyncio.IncompleteReadError or OSError at the end."""
    prefix = await reader.readexactly(PREFIX.size)
    header_bytes, payload_bytes, crc = unpack_prefix(prefix, max_payload_bytes)
    header = await reader.readexactly(header_bytes)
    parts: list[bytes] = []
    left = payload_bytes
    while left:
        parts.append(await reader.readexactly(min(left, AT_ONCE)))
        left -= len(parts[-1])
        if heard is not None:
            heard()
    payload = parts[0] if len(parts) == 1 else b"".join(parts)
    return unpack(header, payload, crc), payload
