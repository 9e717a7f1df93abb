"""The numbers of the protocol: how long a round waits, how many steps a site takes, what delta is too large.

Pure. Knows nothing of connections or states.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

GATHER_S = 3.0
"""How long a new epoch waits for all sites after the first is ready, before it begins with those it has."""

FIRST_STATE_S = 120.0
"""And so much longer at a run's very beginning for sites that the state is on its way to: over a slow link it takes
as long as many rounds of those that have it, whose updates would follow it faster than it goes."""

LIVENESS_S = 10.0
"""A connection that was silent for so long is closed; sites say something every PING_S."""

PING_S = 1.0

FIRST_GRACE_S = 60.0
"""How long a round waits while nothing was measured yet."""

GRACE_FLOOR_S = 2.0
"""Never less than this beyond the median: a busy machine is late for a moment, and a late delta is lost work."""

HURRY_S = 2.0
"""How long a late site that is alive has to send what it has, when it is asked to cut its round short."""

HURRY_HEARD_S = 2.5 * PING_S
"""Who was heard within so long is alive."""

GRACE_MADS = 6.0
"""How many median absolute deviations a step may take longer than the median."""

STUCK_S = 600.0
"""A site that answers pings but sends no delta for so long (or ten times the grace) is thrown out."""

EXPLODING = 30.0
"""A delta whose numbers are so many times the median of those before in the stage is not merged. A linear
learning-rate warm-up alone makes them grow tenfold within a history."""

SYNC_SHA_EVERY = 16
"""In the synchronous phase, where a round is one step, the state is hashed every so many rounds: it costs
half of a round's overhead. Every update's hash is in the chain, and the state follows from the updates."""

STRIKES = 3
"""Bad deltas after which a slot is kept out for QUARANTINE_S."""

QUARANTINE_S = 60.0

_HISTORY = 64
_NOTHING = 1e-20


@dataclass(frozen=True, slots=True)
class Tempo:
    """How a round goes: inner steps per site, the outer optimiser's two numbers, and whether sites wait for
    its update before they go on. `rung` is the ladder's that it was made on (0: another coordinator's). `gradients`:
    sites send gradients, of whose mean the coordinator takes a step."""

    inner_steps: int
    learning_rate: float
    momentum: float
    waits: bool
    bits: int = 8
    rung: int = 0
    gradients: bool = False

    @property
    def alike(self) -> int:
        """What deltas of rounds like this one are compared by: their steps, 0 where they are gradients."""
        return 0 if self.gradients else self.inner_steps


@dataclass(slots=True)
class Pace:
    """What deltas took and weighed so far: the adaptive grace, and what is too large."""

    late: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    sizes: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    sizes_of: tuple[int, int] = (-1, -1)

    def took(self, seconds: float, expected_s: float) -> None:
        """A delta arrived so long after its lease could be begun; `expected_s`: its steps at the site's speed."""
        if expected_s > 0:
            self.late.append(seconds / expected_s)

    def grace_s(self, expected_s: float) -> float:
        """How long a round may take whose slowest site needs so long by its speed: median + k·MAD of what sites
        took against their speeds, and a floor. 0: a speed that is not known."""
        if expected_s <= 0 or len(self.late) < 2:
            return FIRST_GRACE_S
        middle = median(self.late)
        spread = median(abs(s - middle) for s in self.late)
        return expected_s * (1.5 * middle + GRACE_MADS * spread) + GRACE_FLOOR_S

    def too_large(self, size: float, stage: int, alike: int) -> bool:
        """Whether a delta's numbers explode, against those before in the same stage and tempo (`Tempo.alike`)."""
        if not math.isfinite(size):
            return True
        if self.sizes_of != (stage, alike.bit_length()) or len(self.sizes) < 4:
            return False
        return size > EXPLODING * median(self.sizes)

    def merged(self, size: float, stage: int, alike: int) -> None:
        """A delta of this size was good. One that is all zeros says nothing of what is large."""
        like = stage, alike.bit_length()  # rounds grow: within a factor of two they are alike
        if self.sizes_of != like:
            self.sizes.clear()
            self.sizes_of = like
        if size > _NOTHING:
            self.sizes.append(size)


def ids_by_speed(inner_steps: int, batch: int, seconds_per_id: Mapping[str, float]) -> dict[str, int]:
    """How many ids each site trains so that all end together: the fastest takes `inner_steps` whole batches,
    who is slower fewer steps, or part of a batch where a round is one step. Sites within a fifth of the
    fastest, and those not yet measured (0), count as fast."""
    known = [s for s in seconds_per_id.values() if s > 0]
    fastest = min(known, default=0.0)
    ids = {}
    for name, seconds in seconds_per_id.items():
        most = inner_steps * batch
        if seconds > 1.25 * fastest > 0:
            steps = round(inner_steps * fastest / seconds)
            most = steps * batch if steps > 1 else max(1, round(most * fastest / seconds))
        ids[name] = most
    return ids


def rate_of(shares: Sequence[int]) -> float:
    """What sites multiply their learning rates by when deltas of these weights are averaged: the square root of
    how many equal sites they are as good as, 1 / Σ w²."""
    total = sum(shares)
    return total / math.sqrt(sum(share * share for share in shares)) if total else 1.0


def share_out(wanted: Mapping[str, int], free: int, batch: int = 1) -> dict[str, int]:
    """How many ids each site gets: what it wants, or its part of what is left of the stage, in whole batches
    while there are any."""
    total = sum(wanted.values())
    if total <= free:
        return dict(wanted)
    shares = {}
    for name, want in wanted.items():
        part = math.ceil(free * want / total / batch) * batch if total else 0
        shares[name] = min(free, part)
        free, total = free - shares[name], total - want
    return shares
