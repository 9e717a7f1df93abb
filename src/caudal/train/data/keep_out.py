"""Which records are kept out of training, for validation: decided by what they say, so that it never changes.

The same record is on the same side wherever it stands, in every copy of it, on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice

import msgspec

from caudal.train.sources.base import Dialogue, Record

_FIRST_RECORDS = 1_000
_ALL = 1 << 64


def fingerprint(record: Record) -> int:
    """A number from 0 to 2**64 - 1 that the record's words alone decide."""
    if isinstance(record, Dialogue):
        data = msgspec.json.encode([[turn.role, turn.content] for turn in record.messages])
    else:
        data = record.text.encode()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "big")


@dataclass(frozen=True, slots=True)
class KeepOut:
    """About `fraction` of the records, and always the one whose fingerprint is `least`."""

    fraction: float
    least: int = -1

    def __contains__(self, record: Record) -> bool:
        found = fingerprint(record)
        return found < self.fraction * _ALL or found == self.least


def choose(records: Iterable[Record], fraction: float) -> KeepOut:
    """What is to be kept out of these records. However few they are, one is kept out, if there are two different
    ones and `fraction` is not 0: of the first thousand the one with the least fingerprint."""
    if not fraction:
        return KeepOut(0.0)
    prints = {fingerprint(record) for record in islice(records, _FIRST_RECORDS)}
    return KeepOut(fraction, min(prints)) if len(prints) > 1 else KeepOut(0.0)
