"""A run over several sites: how long our own trainer takes, where sites agree every so many steps.

A round is `every` inner steps at each site; then each sends its delta and gets the update, in blockwise int8 or int4,
while the next round's steps are taken (docs/explanation/training.md). The coordinator lives at one of the sites: its
link carries every other site's delta in and every other site's update out. Knows nothing of loss: how well a round
of so many steps learns is `bench/outer_lab.py`'s question.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SCALE_BYTES = 4
BLOCK = 256
"""One float32 scale per 256 numbers, as train/codec.py has them."""
LINK_SHARE = 0.9
"""Of a WAN link's rate, after TCP's and TLS's own bytes."""
MERGE_BYTES_PER_S = 2e9
"""The coordinator's merge and each site's encoding, per core: they stream through memory."""


@dataclass(frozen=True)
class Rounds:
    """What agreeing costs. Seconds are of one round; `efficiency` is computing's part of the time."""

    sites: int
    every: int
    bits: int
    bytes_each_way: int
    computing_s: float
    travelling_s: float
    round_s: float
    step_time_s: float
    efficiency: float
    rate_bytes_per_s: float
    smallest_every: int
    """Steps of a round from which on the link is hidden."""


def encoded_bytes(parameters: int, bits: int) -> int:
    """A delta, or an update, of so many parameters on the wire."""
    return SCALE_BYTES * -(-parameters // BLOCK) + -(-parameters * bits // 8)


def across_sites(
    parameters: int,
    step_time_s: float,
    *,
    sites: int,
    every: int,
    bits: int,
    rate_bytes_per_s: float,
    delay_s: float = 0.06,
    overlap: bool = True,
) -> Rounds:
    """The time of a step over several sites. `rate_bytes_per_s` is each site's link, one way."""
    assert sites >= 2 and every >= 1 and bits in (4, 8, 32) and rate_bytes_per_s > 0 and delay_s >= 0
    size = encoded_bytes(parameters, bits) if bits < 32 else 4 * parameters
    # Deltas come in while updates go out, on the coordinator's full-duplex link.
    link = (sites - 1) * size / (LINK_SHARE * rate_bytes_per_s)
    travelling = 2 * link + 2 * delay_s + 2 * size / MERGE_BYTES_PER_S
    # Two rounds are out at once: per round only the slower direction has to keep up, but an update must be
    # back within the next round, or the site waits for it.
    computing = every * step_time_s
    round_s = max(computing, travelling) if overlap else computing + travelling
    need = math.ceil(travelling / step_time_s) if overlap else every
    return Rounds(
        sites, every, bits, size, computing, travelling, round_s, round_s / every, computing / round_s,
        rate_bytes_per_s, max(1, need),
    )  # fmt: skip
