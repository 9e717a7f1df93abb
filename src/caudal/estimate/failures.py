"""How often a run is interrupted, how often to write a checkpoint, and what part of the time is useful work.

Interruptions are taken as a Poisson process with one rate per chip-hour. The rate is the median over sources of what
they published; sources differ by a factor of three, and the interval says so. Nobody published one for Trainium, TPU
or AMD fleets in a form that is known here: theirs is the same rate, with a wider interval. Burn-in, correlated
failures and slow nodes are not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from caudal.domain.errors import UsageError


@dataclass(frozen=True, slots=True)
class Observed:
    """A published rate: unexpected interruptions per chip and hour."""

    family: str
    per_chip_hour: float
    source_id: str
    source: str


OBSERVED = (
    Observed("H100", 419 / (16384 * 54 * 24), "llama3", "Llama 3 paper (2407.21783): 419 in 54 days on 16,384"),
    Observed("A100", 6.50 / (1000 * 24 * 8), "rsc", "Kokolis et al. 2024 (2410.21680), RSC-1: 6.50 per 1000 node-days"),
    Observed("A100", 2.34 / (1000 * 24 * 8), "rsc", "Kokolis et al. 2024 (2410.21680), RSC-2: 2.34 per 1000 node-days"),
    Observed("A100", 1.5 / (384 * 168), "bloom", "BLOOM: 1 to 2 GPUs a week of 384 (from memory)"),
    Observed("A100", 4 / (440 * 9.5 * 24), "mpt", "MPT-7B: 4 hardware failures in 9.5 days on 440 (from memory)"),
)  # fmt: skip
SPREAD = 0.60
"""Half width in logarithms of an 80 % interval: what the sources' rates scatter."""
UNSEEN_SPREAD = 1.0
"""The same for a family of chips that nobody published a rate of."""
DETECT_S, RESTART_S = 120.0, 480.0
"""Until a failure is noticed (stalled collectives time out), and until the run steps again. Assumptions."""
CHECKPOINT_S = 15.0
"""What a checkpoint holds the run up, where it is written in the background after a copy to host memory. Assumption."""


@dataclass(frozen=True)
class Rate:
    """Interruptions per chip-hour, with a factor around it that holds four of five."""

    per_chip_hour: float
    factor: float
    note: str


FAMILIES = {"A800": "A100", "H800": "H100", "H200": "H100", "GH200": "H100"}
"""Chips that are of another one's generation."""


def family_of(chip_name: str) -> str:
    """The generation that a chip's failures are counted with."""
    start = chip_name.split("-")[0]
    return FAMILIES.get(start, start)


def rate_of(chip_name: str, leave_out: str = "") -> Rate:
    """The rate for a kind of chip. `leave_out` is a source that is not looked at: for scoring."""
    by_source: dict[str, list[float]] = {}
    for each in OBSERVED:
        if each.source_id != leave_out:
            by_source.setdefault(each.source_id, []).append(each.per_chip_hour)
    means = [math.exp(sum(map(math.log, rates)) / len(rates)) for rates in by_source.values()]
    seen = family_of(chip_name) in {each.family for each in OBSERVED}
    note = "" if seen else f"nobody published how often {chip_name} fails: the rate of A100 and H100 fleets"
    return Rate(median(means), math.exp(SPREAD if seen else UNSEEN_SPREAD), note)


def interruptions(chip_hours: float, rate: Rate) -> tuple[float, float, float]:
    """Expected number with its 80 % interval: the rate's, and chance."""
    expected = chip_hours * rate.per_chip_hour
    chance = 1.28 * math.sqrt(max(expected, 0.0))
    low = max(0.0, expected / rate.factor - chance)
    return expected, low, expected * rate.factor + chance


def _checked(checkpoint_s: float, between_s: float) -> None:
    for name, value in (
        ("a checkpoint's seconds", checkpoint_s),
        ("seconds between interruptions", between_s),
    ):
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"{name} must be above 0, not {value:g}")


def young_s(checkpoint_s: float, between_s: float) -> float:
    """Seconds of work between checkpoints, first order: sqrt(2 d M) (Young 1974)."""
    _checked(checkpoint_s, between_s)
    return math.sqrt(2 * checkpoint_s * between_s)


def daly_s(checkpoint_s: float, between_s: float) -> float:
    """The same in higher order (Daly 2006, equation 37); M where a checkpoint takes 2 M or longer."""
    _checked(checkpoint_s, between_s)
    if checkpoint_s >= 2 * between_s:
        return between_s
    part = math.sqrt(checkpoint_s / (2 * between_s))
    return math.sqrt(2 * checkpoint_s * between_s) * (1 + part / 3 + part**2 / 9) - checkpoint_s


def best_interval_s(checkpoint_s: float, between_s: float) -> float:
    """The exact optimum for interruptions that come by chance (exponential): root of the derivative, by bisection.

    Daly's model: x = (w + d) / M minimises (e^x - 1) / w, so e^x (1 - w / M) = 1.
    """
    _checked(checkpoint_s, between_s)
    low, high = 0.0, 1.0
    d = checkpoint_s / between_s
    for _ in range(80):
        middle = (low + high) / 2
        # log of e^(w + d) (1 - w): positive below the optimum.
        if middle + d + math.log1p(-middle) > 0:
            low = middle
        else:
            high = middle
    return low * between_s


def time_per_work(interval_s: float, checkpoint_s: float, between_s: float, restart_s: float) -> float:
    """Expected wall seconds for a second of work (1 and more): checkpoints, work done again, restarts."""
    exponent = (interval_s + checkpoint_s) / between_s
    if exponent > 700:
        return math.inf
    return between_s * math.exp(min(700.0, restart_s / between_s)) * math.expm1(exponent) / interval_s


@dataclass(frozen=True)
class Resilience:
    """What interruptions cost a run. `goodput` is the part of the time that is useful steps."""

    between_s: float
    interval_s: float
    goodput: float
    checkpoint_part: float
    lost_part: float


def resilience(
    chips: float, rate: Rate, checkpoint_s: float = CHECKPOINT_S, restart_s: float = DETECT_S + RESTART_S
) -> Resilience:
    """Of a run on so many chips with checkpoints at the best interval."""
    if chips <= 0:
        raise UsageError(f"{chips:g} chips", remedy="at least one")
    between = 3600 / (chips * rate.per_chip_hour)
    interval = best_interval_s(checkpoint_s, between)
    goodput = 1 / time_per_work(interval, checkpoint_s, between, restart_s)
    written = goodput * checkpoint_s / interval
    return Resilience(between, interval, goodput, written, max(0.0, 1 - goodput - written))
