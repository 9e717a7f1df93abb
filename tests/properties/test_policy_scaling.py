"""What holds of the number of replicas, whatever is asked: bounds, no fewer for more, rest under a constant load."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.workload import ScaleSpec
from caudal.policy.scaling import Demand, Present, for_wait, joint, needed, peak_since, unknown

LOADS = st.floats(0, 500)
DEMANDS = st.builds(
    Demand,
    requests=st.integers(0, 500),
    load=LOADS,
    peak=LOADS,
    idle_s=st.none() | st.floats(0, 1000),
    tokens_each=st.sampled_from([0.0, 20.0, 500.0]),
    tokens_per_s=st.sampled_from([0.0, 5.0, 100.0, 2000.0]),
    known=st.booleans(),
)
PRESENT = st.integers(0, 30).flatmap(lambda n: st.builds(Present, st.just(n), st.integers(0, n)))
SLOTS = st.integers(1, 16)


@st.composite
def scales(draw: st.DrawFn) -> ScaleSpec:
    most = draw(st.integers(1, 20))
    return ScaleSpec(
        min=draw(st.integers(0, most)),
        max=most,
        target=draw(st.floats(0.05, 1)),
        ttft_s=draw(st.floats(0.1, 60)),
        idle_s=draw(st.floats(1, 900)),
        prewarmed=draw(st.integers(0, most)) if draw(st.booleans()) else 0,
    )


@given(scales(), SLOTS, DEMANDS, PRESENT)
def test_it_stays_within_its_bounds_and_says_why(
    scale: ScaleSpec, slots: int, demand: Demand, present: Present
) -> None:
    need = needed(scale, slots, demand, present)
    assert scale.min <= need.replicas <= scale.max
    assert need.reason.code.startswith("scale.") and need.reason.text
    if demand.requests:
        assert need.replicas >= 1


@given(scales(), SLOTS, DEMANDS, PRESENT, st.integers(0, 100), LOADS, LOADS)
def test_more_demand_never_means_fewer(
    scale: ScaleSpec, slots: int, demand: Demand, present: Present, requests: int, load: float, peak: float
) -> None:
    more = replace(
        demand,
        requests=demand.requests + requests,
        load=demand.load + load,
        peak=demand.peak + peak,
        idle_s=0.0,
    )
    assert needed(scale, slots, more, present).replicas >= needed(scale, slots, demand, present).replicas
    sure = needed(scale, slots, demand, present).replicas
    assert needed(scale, slots, unknown(demand), present).replicas >= sure


@given(scales(), SLOTS, DEMANDS, PRESENT)
def test_a_constant_demand_comes_to_rest_at_once_and_stays(
    scale: ScaleSpec, slots: int, demand: Demand, present: Present
) -> None:
    """As replicas start and grow old under it, their number is the same from then on."""
    demand = replace(demand, known=True)
    count = needed(scale, slots, demand, Present(present.replicas, 0)).replicas
    assert needed(scale, slots, demand, Present(count, count)).replicas == count
    assert needed(scale, slots, demand, Present(count, 0)).replicas == count


@given(st.integers(1, 500), SLOTS, st.floats(1, 1000), st.floats(1, 2000), st.floats(0.1, 60))
def test_as_few_as_keep_the_wait_within_its_bound(
    requests: int, slots: int, each: float, speed: float, ttft_s: float
) -> None:
    demand = Demand(requests, tokens_each=each, tokens_per_s=speed)

    def wait_s(replicas: int) -> float:
        return max(0, requests - slots * replicas) * each / (speed * replicas)

    count = for_wait(ttft_s, slots, demand)
    assert wait_s(count) <= ttft_s * 1.001
    assert count == 1 or wait_s(count - 1) >= ttft_s * 0.999


@settings(deadline=None)
@given(st.integers(1, 8), st.floats(0.2, 40), st.floats(0.5, 3.0), st.floats(0.5, 0.95))
def test_open_traffic_is_carried_and_nothing_flaps(
    slots: int, arrivals_per_s: float, service_s: float, target: float
) -> None:
    """A queue in front of replicas that each take 3 s to start, for five minutes: their number rises, falls when the
    queue of the start is an `idle_s` old, and stands still from then on, at enough for what comes."""
    scale = ScaleSpec(0, 500, target, idle_s=60.0)
    queue, load, counts = 0.0, 0.0, [0]
    history: list[tuple[float, float]] = []
    starts: list[float] = []
    for now in range(300):
        ready = sum(now - at >= 3.0 for at in starts)
        for _ in range(10):
            queue += 0.1 * (arrivals_per_s - min(queue, ready * slots) / service_s)
        load += (queue - load) * 0.2
        history.append((now, load))
        demand = Demand(int(queue), load, peak_since([(now - at, n) for at, n in history], 60.0), 0.0)
        young = max((i + 1 for i, at in enumerate(starts) if now - at < 60.0), default=0)
        count = needed(scale, slots, demand, Present(len(starts), young)).replicas
        starts = starts[:count] + [float(now)] * (count - len(starts))
        counts.append(count)
    assert counts[-1] * slots * target >= arrivals_per_s * service_s * 0.99
    assert counts[-1] <= math.ceil(arrivals_per_s * service_s / slots / target * 1.01)
    first_fall = next((i for i, (a, b) in enumerate(pairwise(counts)) if b < a), len(counts))
    assert counts[:first_fall] == sorted(counts[:first_fall])
    assert counts[first_fall:] == sorted(counts[first_fall:], reverse=True), "it rose again"


def test_gateways_are_taken_together() -> None:
    two = joint([Demand(3, 2.5, 4.0, 0.0, 100.0, 50.0), Demand(1, 0.5, 1.0, 9.0, 300.0, 0.0, known=False)])
    assert (two.requests, two.load, two.peak, two.idle_s) == (4, 3.0, 5.0, 0.0)
    assert (two.tokens_each, two.tokens_per_s, two.known) == (150.0, 50.0, False)
    assert not joint([]).known and joint([]).idle_s is None


def test_it_sleeps_after_its_time_and_wakes_at_once() -> None:
    scale = ScaleSpec(0, 4, idle_s=60.0)
    for idle_s, count, code in ((59.0, 1, "scale.asked"), (61.0, 0, "scale.asleep")):
        need = needed(scale, 4, Demand(idle_s=idle_s), Present(1, 0))
        assert (need.replicas, need.reason.code) == (count, code)
    assert needed(scale, 4, Demand(1), Present()).reason.code == "scale.asked"
    assert needed(scale, 4, Demand(), Present(1, 1)).reason.code == "scale.young"
    assert needed(scale, 4, unknown(Demand()), Present(2, 0)).reason.code == "scale.unknown"
    warm = needed(ScaleSpec(0, 4, prewarmed=1), 4, Demand(), Present())
    assert (warm.replicas, "and 1 prewarmed" in warm.reason.text) == (1, True)
    most = needed(scale, 4, Demand(100, 100.0, 100.0, 0.0), Present())
    assert (most.replicas, most.reason.code, most.reason.data["needed"]) == (4, "scale.max", 32)
