"""The numbers of the protocol: how long a round waits, how many steps a site takes, what delta is too large.

Pure. Knows nothing of connections or states.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from caudal.domain.workload import OuterSpec

GATHER_S = 5.0
"""How long a new epoch waits for all sites after the first is ready, before it begins with those it has."""

LIVENESS_S = 10.0
"""A connection that was silent for so long is closed; sites say something every PING_S."""

PING_S = 1.0

FIRST_GRACE_S = 60.0
"""How long a round waits while nothing was measured yet."""

GRACE_FLOOR_S = 2.0
"""Never less than this beyond the median: a busy machine is late for a moment, and a late delta is lost work."""

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
    """How a round goes: inner steps per site, and the outer optimiser's two numbers."""

    inner_steps: int
    learning_rate: float
    momentum: float


def tempo(outer: OuterSpec, tokens_done: int, tokens_total: int) -> Tempo:
    """The synchronous warm-up averages after every step, plainly, as data-parallel training does; then come
    rounds of `inner_steps` under the outer optimiser."""
    if tokens_done < outer.sync_fraction * tokens_total:
        return Tempo(1, 1.0, 0.0)
    return Tempo(outer.inner_steps, outer.learning_rate, outer.momentum)


@dataclass(slots=True)
class Pace:
    """What deltas took and weighed so far: the adaptive grace, each site's speed, and what is too large."""

    step_s: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    sizes: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    sizes_of: tuple[int, int] = (-1, -1)

    def took(self, seconds: float, steps: int) -> None:
        """A delta arrived so long after its lease was sent."""
        self.step_s.append(seconds / max(1, steps))

    def grace_s(self, steps: int) -> float:
        """How long a round of so many steps may take: median + k·MAD, and a floor."""
        if len(self.step_s) < 2:
            return FIRST_GRACE_S
        middle = median(self.step_s)
        spread = median(abs(s - middle) for s in self.step_s)
        return steps * (1.5 * middle + GRACE_MADS * spread) + GRACE_FLOOR_S

    def too_large(self, size: float, stage: int, inner_steps: int) -> bool:
        """Whether a delta's numbers explode, against those before in the same stage and tempo."""
        if not math.isfinite(size):
            return True
        if self.sizes_of != (stage, inner_steps) or len(self.sizes) < 4:
            return False
        return size > EXPLODING * median(self.sizes)

    def merged(self, size: float, stage: int, inner_steps: int) -> None:
        """A delta of this size was good. One that is all zeros says nothing of what is large."""
        if self.sizes_of != (stage, inner_steps):
            self.sizes.clear()
            self.sizes_of = (stage, inner_steps)
        if size > _NOTHING:
            self.sizes.append(size)


def steps_by_speed(inner_steps: int, seconds_per_step: Mapping[str, float]) -> dict[str, int]:
    """How many steps each site takes so that all end together: the fastest takes `inner_steps`. Sites within
    a fifth of the fastest, and those not yet measured (0), count as fast."""
    known = [s for s in seconds_per_step.values() if s > 0]
    fastest = min(known, default=0.0)
    steps = {}
    for name, seconds in seconds_per_step.items():
        slow = seconds > 1.25 * fastest > 0
        steps[name] = max(1, round(inner_steps * fastest / seconds)) if slow else inner_steps
    return steps


def share_out(wanted: Mapping[str, int], free: int) -> dict[str, int]:
    """How many ids each site gets: what it wants, or its part of what is left of the stage."""
    total = sum(wanted.values())
    if total <= free:
        return dict(wanted)
    shares = {}
    for name, want in wanted.items():
        shares[name] = min(free, math.ceil(free * want / total)) if total else 0
        free, total = free - shares[name], total - want
    return shares
