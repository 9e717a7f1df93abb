"""How the flat vector is cut into the fragments that travel: the embedding, groups of layers, the head.

Every fragment is encoded, sent and applied on its own, so that one is on its way while the next is being
encoded, and no frame is larger than a few megabytes. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

LARGEST_NUMBERS = 1 << 22
"""No fragment holds more numbers: 4 MiB in int8. What else is to be said waits so long at most."""

Cuts = tuple[tuple[int, int], ...]
"""(start, stop) in numbers: contiguous, in order, from 0 to the end."""


def cut(size: int, bounds: Sequence[int], wanted: int) -> Cuts:
    """`size` numbers in about `wanted` fragments that end where tensors end. `bounds`: where tensors begin."""
    assert size > 0 and wanted > 0
    target = size / wanted
    edges = [0]
    for bound in sorted({*bounds, size}):
        # a fragment ends at the last tensor that begins before it has reached its size
        if bound - edges[-1] >= target or bound == size:
            edges.append(bound)
    small: list[tuple[int, int]] = []
    for start, stop in itertools.pairwise(edges):
        parts = -(-(stop - start) // LARGEST_NUMBERS)
        each = -(-(stop - start) // parts)
        small += [(at, min(stop, at + each)) for at in range(start, stop, each)]
    return tuple(small)


def split(payload: bytes | memoryview, lengths: Sequence[int]) -> list[memoryview]:
    """A round's bytes as its fragments' bytes. Raises ValueError where the lengths do not add up."""
    if sum(lengths) != len(payload):
        raise ValueError(f"{len(payload)} bytes are not fragments of {list(lengths)}")
    view, parts, at = memoryview(payload), [], 0
    for length in lengths:
        parts.append(view[at : at + length])
        at += length
    return parts
