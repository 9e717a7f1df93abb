"""Batches of usage as lines of a journal: each whole in itself, with a checksum. Pure.

A line is `CRC32 JSON`; the JSON is what control is sent, byte for byte, so that a batch that is sent again is the
same batch. A line that was cut off, at whichever byte, is none.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator

import msgspec

from caudal.domain.key import UsageBatch, UsageHour

MAX_ROWS = 1_000
"""Rows in a line: some 200 kB."""


def line_of(batch: UsageBatch) -> bytes:
    """The batch as a line, with its line end."""
    rows = [
        {
            "key_id": row.key_id,
            "model": row.model,
            "hour": row.hour,
            "requests": row.requests,
            "failed": row.failed,
            "prompt_tokens": row.usage.prompt_tokens,
            "completion_tokens": row.usage.completion_tokens,
            "cached_tokens": row.usage.cached_tokens,
            "picodollars": row.usage.picodollars,
        }
        for row in batch.rows
    ]
    payload = msgspec.json.encode({"source": batch.source, "seq": batch.seq, "rows": rows})
    return b"%08x %b\n" % (zlib.crc32(payload), payload)


def payload_of(line: bytes) -> bytes | None:
    """The JSON of a line (with its line end); None where the line is damaged."""
    crc, _, payload = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(payload):
        return None
    return payload


def body_of(lines: Iterable[bytes]) -> tuple[bytes, int, int]:
    """What control is sent for these lines; how many batches are in it, and how many lines were damaged."""
    found = [payload_of(line) for line in lines]
    good = [payload for payload in found if payload is not None]
    return b'{"batches":[%b]}' % b",".join(good), len(good), len(found) - len(good)


def parts(rows: list[UsageHour]) -> Iterator[tuple[UsageHour, ...]]:
    """The rows in pieces that fit into a line each."""
    for first in range(0, len(rows), MAX_ROWS):
        yield tuple(rows[first : first + MAX_ROWS])
