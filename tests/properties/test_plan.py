"""Plans of random small demands: the rules hold, sums agree, and no way is cheaper than the least."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caudal.domain.demand import (
    CapacityOffer,
    ChipSpeed,
    DemandSpec,
    LoadBlock,
    RunDemand,
    Scenario,
    ServiceDemand,
)
from caudal.plan.horizon import Horizon, speed
from caudal.plan.model import build
from caudal.plan.planner import plan
from caudal.plan.reading import Solution
from caudal.plan.solver import solve

pytest.importorskip("highspy")

CHIPS = ("H100", "H200")
PROVIDERS = ("aws", "azure")
DAY = (LoadBlock("low", 0.75, 0.8), LoadBlock("high", 0.25, 1.6))


@st.composite
def demands(draw: st.DrawFn) -> DemandSpec:
    """Six to twelve months, one or two scenarios, offers without a largest, so that all can be met."""
    months = draw(st.integers(6, 12))
    cents = st.integers(100, 900).map(lambda n: Decimal(n) / 100)
    offers = [CapacityOffer("hour", "aws", "on_demand", "H100", draw(cents))]
    for number in range(draw(st.integers(1, 3))):
        chip, provider = draw(st.sampled_from(CHIPS)), draw(st.sampled_from(PROVIDERS))
        term, prepaid = draw(st.sampled_from((3, 12))), draw(st.sampled_from((0.0, 0.5)))
        name = f"offer-{number}"
        offers.append(CapacityOffer(name, provider, "reserved", chip, draw(cents), term, prepaid=prepaid))
    speeds = (ChipSpeed("H100"), ChipSpeed("H200", 1.5))
    service = ServiceDemand("s", draw(st.integers(1, 200)), speeds, survives=0.0)
    run = RunDemand("r", draw(st.integers(1_000, 200_000)), "2027-02", "2027-05", speeds)
    growth = draw(st.sampled_from((1.0, 2.0)))
    ways = (Scenario("a", 0.5), Scenario("b", 0.5, growth, 1.5))
    return DemandSpec("made", "2027-01", months, ways, tuple(offers), (service,), (run,), load=DAY)


@settings(max_examples=25, deadline=None)
@given(demands())
def test_the_rules_hold_in_every_scenario_month_and_block(spec: DemandSpec) -> None:
    horizon = Horizon(spec)
    model = build(horizon)
    solved = solve(model.program, gap=1e-4)
    read = Solution(model, solved.values)
    for place in model.places():
        scenario, month, block = place
        for index, pool in enumerate(horizon.pools):
            used = sum(solved.values[v] for (p, _, at), v in model.used.items() if (p, at) == (index, place))
            hourly = sum(
                solved.values[v]
                for (n, at), v in model.hourly.items()
                if at == place and (spec.offers[n].provider, spec.offers[n].chip) == pool
            )
            assert used <= read.held(pool, month) + hourly + 1e-4
        served = sum(
            solved.values[v] * speed(spec.services[0], horizon.pools[p][1])
            for (p, which, at), v in model.used.items()
            if which == 0 and at == place
        )
        load = horizon.load(spec.services[0], spec.scenarios[scenario], month, block)
        assert served + solved.values[model.short[0, place]] >= load - 1e-4


@settings(max_examples=25, deadline=None)
@given(demands())
def test_sums_agree_and_greedy_is_no_cheaper(spec: DemandSpec) -> None:
    made = plan(spec, gap=1e-5)
    assert not made.shortfalls and made.gap is not None and made.gap <= 1e-5
    parts = zip(spec.scenarios, made.scenario_usd, strict=True)
    assert sum(t.probability * usd for t, (_, usd) in parts) == pytest.approx(made.usd, rel=1e-6)
    hourly = sum(m.by_hour_usd + m.spot_usd - m.saved_usd for m in made.months)
    assert sum(s.usd for s in made.signatures) + hourly == pytest.approx(made.usd, rel=1e-6)
    other = plan(spec, method="greedy")
    assert not other.shortfalls
    assert other.usd_now >= made.usd_now * (1 - 1e-3)


@settings(max_examples=10, deadline=None)
@given(demands(), st.integers(2, 4))
def test_a_cheaper_offer_never_makes_a_plan_dearer(spec: DemandSpec, factor: int) -> None:
    before = plan(spec, gap=1e-5)
    cheaper = tuple(
        CapacityOffer(**{**{f: getattr(o, f) for f in o.__slots__},
                         "price_usd_per_chip_hour": o.price_usd_per_chip_hour / factor})
        if o.kind == "reserved" else o
        for o in spec.offers
    )  # fmt: skip
    after = plan(DemandSpec(**{**{f: getattr(spec, f) for f in spec.__slots__}, "offers": cheaper}), gap=1e-5)
    assert after.usd_now <= before.usd_now * (1 + 1e-3)
