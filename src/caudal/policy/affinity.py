"""Where a prompt's beginning belongs, so that a replica that has read it need not read it again: rendezvous
hashing over the prompt's first blocks. Pure and the same in every process, so that gateways agree without a word.

Knows bytes only: no tokens, no loads.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

BLOCKS_BYTES = (4096, 1024, 256)
"""The key of a prompt is that of the longest of these beginnings that it fills: a conversation that grows has
the same key at each of its turns but two."""

_LEAST = BLOCKS_BYTES[-1]
_MASK = (1 << 64) - 1
_BEGINNINGS = (b'"messages"', b'"prompt"', b'"input"')


def prefix_key(body: bytes) -> int | None:
    """The key of a request's prompt: of the bytes of its JSON body from where the prompt begins; None where that
    is shorter than the shortest block."""
    for name in _BEGINNINGS:
        at = body.find(name)
        if at >= 0:
            break
    else:
        return None
    left = len(body) - at
    if left < _LEAST:
        return None
    for size in BLOCKS_BYTES:
        if left >= size:
            break
    return crc32(body[at : at + size])


def seed_of(gang: str) -> int:
    """A replica's part of the hash."""
    data = gang.encode()
    return crc32(data) << 32 | crc32(data[::-1])


def mix(value: int) -> int:
    """64 bits, well stirred: the finaliser of splitmix64 (Steele et al. 2014)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK
    return value ^ (value >> 31)


def prefer(key: int, seeds: Sequence[int]) -> int:
    """The index of the seed that a key belongs to: the highest score. Where a seed leaves, only its own keys
    move; where one comes, it takes some from each. `seeds` is not empty."""
    spread = key * 0x9E3779B97F4A7C15 & _MASK
    best, best_score = 0, -1
    for index, seed in enumerate(seeds):
        score = mix(spread ^ seed)
        if score > best_score:
            best, best_score = index, score
    return best
