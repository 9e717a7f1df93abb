"""How many replicas a model needs, from what is asked of it now and was lately: pure arithmetic.

Several needs are worked out, each with its reason, and the largest one counts. None of them looks at how many replicas
there are, but for those that were started a moment ago: so the same demand always ends at the same number. Knows
nothing of gangs, of nodes, and of where demand is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from caudal.domain.decision import Reason
from caudal.domain.workload import ScaleSpec
from caudal.policy.routing import DEFAULT_TOKENS_PER_S

_SLACK = 1e-6
"""What arithmetic on floats may be off by before it starts a replica."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What gateways together say of a model. `requests` are those in flight and those that wait; `load` is that number
    smoothed over seconds, `peak` the most that it was in the last `idle_s` of the model's scale; `idle_s` how long
    ago the last request ended (0: there is one; None: nobody knows of any). `tokens_each` are a request's expected
    tokens, `tokens_per_s` what a replica was measured to do; 0: not known. `known` False: a gateway has not said, or
    not for as long as it takes to call a model idle."""

    requests: int = 0
    load: float = 0.0
    peak: float = 0.0
    idle_s: float | None = None
    tokens_each: float = 0.0
    tokens_per_s: float = 0.0
    known: bool = True


@dataclass(frozen=True, slots=True)
class Present:
    """The replicas that are there and stay so far: how many, and how many of them up to the last one that was started
    less than `idle_s` ago."""

    replicas: int = 0
    young: int = 0


@dataclass(frozen=True, slots=True)
class Need:
    """So many replicas, and why."""

    replicas: int
    reason: Reason


def needed(scale: ScaleSpec, slots: int, demand: Demand, present: Present) -> Need:
    """How many replicas a model is to have: within `min` and `max`, and never fewer for more demand."""
    asleep = _need(0, "scale.asleep", f"nothing was asked of it for {scale.idle_s:.0f} s")
    asked = [need for need in _asked(scale, slots, demand) if need.replicas]
    found = max(asked, key=lambda need: need.replicas, default=asleep)  # the first of equals
    if scale.prewarmed:
        text = f"{found.reason.text}; and {scale.prewarmed} prewarmed"
        found = _need(found.replicas + scale.prewarmed, found.reason.code, text)
    found = max(found, *_kept(scale, demand, present), key=lambda need: need.replicas)
    count = found.replicas
    if count <= scale.max:
        return found
    text = f"{found.reason.text}: {count}, and `max` is {scale.max}"
    return Need(scale.max, Reason("scale.max", text, {"needed": count, "why": found.reason.code}))


def _asked(scale: ScaleSpec, slots: int, demand: Demand) -> Iterable[Need]:
    """What is asked of the model now, or was lately: the most telling need first."""
    took = slots * scale.target
    waits = f"{demand.requests} requests would wait for longer than {scale.ttft_s:g} s with fewer"
    yield _need(for_wait(scale.ttft_s, slots, demand), "scale.wait", waits)
    busy = f"{demand.load:.1f} requests at once take more than {scale.target:.0%} of the slots of fewer"
    yield _need(_for_load(demand.load, took), "scale.busy", busy)
    if demand.requests:
        yield _need(1, "scale.asked", "there are requests")
    lately = f"there were up to {demand.peak:.1f} requests at once in the last {scale.idle_s:.0f} s"
    yield _need(_for_load(demand.peak, took), "scale.peak", lately)
    if demand.idle_s is not None and demand.idle_s < scale.idle_s:
        yield _need(1, "scale.asked", f"something was asked less than {scale.idle_s:.0f} s ago")
    yield _need(scale.min, "scale.least", f"`min` is {scale.min}")


def _kept(scale: ScaleSpec, demand: Demand, present: Present) -> Iterable[Need]:
    """What stays, whether it is needed or not."""
    yield _need(present.young, "scale.young", f"started less than {scale.idle_s:.0f} s ago")
    text = "a gateway has not said what was asked of it for long enough: what is there stays"
    yield _need(0 if demand.known else present.replicas, "scale.unknown", text)


def for_wait(ttft_s: float, slots: int, demand: Demand) -> int:
    """The fewest replicas with which the last of the requests would wait for at most `ttft_s`: those that find no
    slot wait until the replicas have worked off the tokens of those before them. 0 where a request's tokens are not
    known."""
    if demand.tokens_each <= 0:
        return 0
    speed = demand.tokens_per_s or DEFAULT_TOKENS_PER_S
    # (requests - slots n) tokens_each / (speed n) <= ttft_s, solved for n
    return _ceil(demand.requests * demand.tokens_each / (ttft_s * speed + slots * demand.tokens_each))


def joint(demands: Iterable[Demand]) -> Demand:
    """What several gateways say, taken together. Their peaks are added, as if they had been at the same time."""
    rows = list(demands)
    requests, speeds = sum(d.requests for d in rows), [d.tokens_per_s for d in rows if d.tokens_per_s > 0]
    tokens = [(d.requests, d.tokens_each) for d in rows if d.tokens_each > 0]
    weight = sum(max(1, n) for n, _ in tokens)
    return Demand(
        requests,
        sum(d.load for d in rows),
        sum(d.peak for d in rows),
        min((d.idle_s for d in rows if d.idle_s is not None), default=None),
        sum(max(1, n) * each for n, each in tokens) / weight if weight else 0.0,
        sum(speeds) / len(speeds) if speeds else 0.0,
        bool(rows) and all(d.known for d in rows),
    )


def peak_since(rows: Iterable[tuple[float, float]], within_s: float) -> float:
    """The largest load among (age in s, load) that is at most so old."""
    return max((load for age_s, load in rows if age_s <= within_s), default=0.0)


def _for_load(load: float, took: float) -> int:
    """Replicas of which each takes so much. Whether there is a first one is not up to a smoothed load, which takes
    its time to be nothing, but to requests and to how long ago they were."""
    return _ceil(load / took) if load > took else 0


def _need(replicas: int, code: str, text: str) -> Need:
    return Need(replicas, Reason(code, text, {"replicas": replicas}))


def _ceil(value: float) -> int:
    return math.ceil(value - _SLACK) if value > _SLACK else 0


def unknown(demand: Demand) -> Demand:
    """The same, of which nobody is sure."""
    return replace(demand, known=False)
