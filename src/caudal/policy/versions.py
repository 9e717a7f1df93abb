"""Which version of a model answers a request, while two of them do: by weights, and sticky. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from zlib import crc32

from caudal.policy.affinity import mix

Weights = Sequence[tuple[int, float]]
"""(version, weight) pairs; weights are at least 0 and need not add up to one."""

_GOLDEN = 0.6180339887498949


def choose_version(weights: Weights, share: float) -> int:
    """The version for a request that falls at `share` in [0, 1); 0 where no version has any weight.

    The newest version takes the lowest shares: while its weight grows, who has it keeps it.
    """
    total = sum(weight for _, weight in weights)
    below = 0.0
    chosen = 0
    for version, weight in sorted(weights, reverse=True):
        if weight <= 0:
            continue
        chosen = version
        below += weight / total
        if share < below:
            break
    return chosen


@lru_cache(maxsize=4096)
def sticky_share(who: str) -> float:
    """Where somebody falls, always: so that one who asks again is answered by the same version."""
    return mix(crc32(who.encode()) * 0x9E3779B97F4A7C15 & ((1 << 64) - 1)) / 2.0**64


def next_share(number: int) -> float:
    """Where the n-th request of nobody in particular falls. Multiples of the golden ratio fill [0, 1) evenly, so
    shares meet their weights within a few requests, where random numbers would take thousands."""
    return number * _GOLDEN % 1.0
