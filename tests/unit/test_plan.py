"""Plans that can be reckoned by hand, and what is said where there is none."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from caudal.domain.demand import (
    CapacityOffer,
    ChipSpeed,
    DemandSpec,
    HeldContract,
    LoadBlock,
    QuoteSpec,
    RunDemand,
    Scenario,
    ServiceDemand,
)
from caudal.plan import months
from caudal.plan.compare import compare
from caudal.plan.horizon import Horizon, unit_cost
from caudal.plan.planner import plan
from caudal.plan.result import Plan
from caudal.spec.demand import load_demand

pytest.importorskip("highspy")

EXAMPLES = Path(__file__).parents[2] / "examples" / "plan"
H100 = (ChipSpeed("H100"),)
HOUR = CapacityOffer("hour", "aws", "on_demand", "H100", Decimal("5"))
YEAR = CapacityOffer("year", "aws", "reserved", "H100", Decimal("3"), unit_chips=8.0, starts=("2027-01",))
HOURS_2027 = 365 * 24.0


def demand(*offers: CapacityOffer, mean: float = 80.0, survives: float = 0.0, **more: object) -> DemandSpec:
    """One service, flat, over 2027."""
    service = ServiceDemand("assistant", mean, H100, survives=survives)
    told: dict[str, object] = {"services": (service,), "discount_rate_per_year": 0.0, **more}
    return DemandSpec("test", "2027-01", 12, (Scenario("only", 1.0),), offers, **told)  # type: ignore[arg-type]


def signed(made: Plan) -> dict[str, float]:
    """Chips by offer."""
    chips: dict[str, float] = {}
    for one in made.signatures:
        chips[one.offer] = chips.get(one.offer, 0.0) + one.chips
    return chips


def test_what_is_used_all_the_time_is_signed_for() -> None:
    made = plan(demand(HOUR, YEAR))
    assert signed(made) == {"year": 80.0} and made.status == "optimal"
    assert made.usd == pytest.approx(80 * 3 * HOURS_2027, rel=1e-6)
    assert [b.utilisation for b in made.break_even] == [pytest.approx(0.6)]
    assert made.pools[0].used == pytest.approx(1.0)


def test_a_peak_below_break_even_is_bought_by_the_hour() -> None:
    load = (LoadBlock("low", 0.5, 0.5), LoadBlock("high", 0.5, 1.5))
    made = plan(demand(HOUR, YEAR, load=load))
    assert signed(made) == {"year": 40.0}  # the upper 80 chips are used half the time, which is under 60 %
    cost = 40 * 3 * HOURS_2027 + 80 * 5 * HOURS_2027 / 2
    assert made.usd == pytest.approx(cost, rel=1e-6)


def test_one_more_chip_is_worth_what_the_hour_costs() -> None:
    made = plan(demand(HOUR, mean=10.0))
    (price,) = made.shadow_prices
    assert price.mean_usd_per_month == pytest.approx(5 * HOURS_2027 / 12, rel=1e-4)


def test_a_run_takes_what_the_service_leaves_at_night() -> None:
    load = (LoadBlock("night", 0.5, 0.0), LoadBlock("day", 0.5, 2.0))
    run = RunDemand("model", 80 * HOURS_2027 / 2, "2027-01", "2027-12", H100)
    held = HeldContract("owned", "own", "H100", 80.0, "2027-01", "2027-12", Decimal(1))
    made = plan(demand(HOUR, mean=40.0, load=load, runs=(run,), held=(held,)))
    assert made.usd == pytest.approx(80 * HOURS_2027, rel=1e-6) and not made.shortfalls
    assert made.pools[1].used == pytest.approx(1.0)


def test_the_loss_of_either_provider_is_survived() -> None:
    other = replace(YEAR, name="other", provider="azure", price_usd_per_chip_hour=Decimal(4))
    made = plan(demand(HOUR, YEAR, other, survives=1.0))
    assert signed(made) == {"year": 80.0, "other": 80.0}
    assert all(loss.served == pytest.approx(1.0) for loss in made.losses)
    half = plan(demand(HOUR, YEAR, other, survives=0.5))
    assert signed(half) == {"year": 40.0, "other": 40.0}


def test_no_provider_has_over_its_share() -> None:
    other = replace(YEAR, name="other", provider="azure", price_usd_per_chip_hour=Decimal(4))
    made = plan(demand(HOUR, YEAR, other, max_provider_share=0.6))
    assert signed(made) == {"year": 48.0, "other": 32.0}
    assert max(loss.share_of_held for loss in made.losses) <= 0.6 + 1e-9


def test_savings_pay_up_to_their_commitment() -> None:
    savings = CapacityOffer(
        "savings", "aws", "savings", discount=0.4, unit_usd=Decimal(24), starts=("2027-01",), max_units=100
    )
    made = plan(demand(HOUR, savings, mean=80.0))
    (one,) = made.signatures
    assert one.units == 10  # 80 chips at $5 are $400 an hour at list, $240 with 40 % off
    assert made.usd == pytest.approx(240 * HOURS_2027, rel=1e-6)


def test_a_sum_that_is_promised_is_owed() -> None:
    spend = CapacityOffer(
        "spend", "aws", "spend", discount=0.1, unit_usd=Decimal(500_000), starts=("2027-01",), max_units=100
    )
    made = plan(demand(HOUR, spend, mean=80.0))
    list_usd = 80 * 5 * HOURS_2027
    (one,) = made.signatures
    assert one.units == int(list_usd * 0.9 / 500_000)
    assert made.usd == pytest.approx(list_usd - 0.1 * one.units * 500_000 / 0.9, rel=1e-6)


def test_prepayment_is_paid_at_once_and_borne_evenly() -> None:
    horizon = Horizon(demand(HOUR, YEAR))
    offer = replace(YEAR, prepaid=0.5)
    borne, paid = unit_cost(horizon, offer, 0), unit_cost(horizon, offer, 0, cash=True)
    assert sum(borne.values()) == pytest.approx(sum(paid.values())) == pytest.approx(8 * 3 * HOURS_2027)
    assert paid[0] == pytest.approx(8 * 3 * (HOURS_2027 / 2 + 31 * 24 / 2)) and paid[1] == borne[1] / 2


def test_what_cannot_be_met_is_named_with_the_smallest_change() -> None:
    small = replace(HOUR, max_chips=32.0)
    made = plan(demand(small, replace(YEAR, max_chips=40.0)))
    (short,) = made.shortfalls
    assert short.rule == "service assistant is served" and short.amount == pytest.approx(8.0)
    assert "service assistant is served" in made.conflict
    (remedy,) = made.remedies
    assert remedy.startswith("8 more chips of offer ")


def test_a_deadline_that_is_too_early_is_moved() -> None:
    run = RunDemand("model", 10 * 24 * 90, "2027-02", "2027-03", H100, max_chips=10)
    made = plan(demand(HOUR, runs=(run,), services=()))
    assert made.shortfalls[0].rule == "run model is done by 2027-03"
    assert set(made.conflict) == {"run model is done by 2027-03", "run model is on at most 10 chips"}
    assert "or move the deadline of run model from 2027-03 to 2027-05" in made.remedies


def test_a_quote_is_judged() -> None:
    spec = demand(HOUR, YEAR)
    quote = replace(YEAR, name="quote", price_usd_per_chip_hour=Decimal("2.5"))
    told = compare(spec, QuoteSpec("a quote", quote), gap=1e-6, time_limit_s=20)
    assert told.verdict == "sign" and told.instead_of == (("year", 80.0),)
    assert told.saves_usd_now == pytest.approx(80 * 0.5 * HOURS_2027, rel=1e-4)
    assert told.break_even_utilisation == pytest.approx(0.5)
    assert told.worth_usd_per_chip_hour == pytest.approx(3.0, abs=0.2)
    dear = replace(quote, price_usd_per_chip_hour=Decimal("4.5"))
    assert compare(spec, QuoteSpec("dear", dear), gap=1e-6, time_limit_s=20).verdict == "leave"


def test_the_lab_holds_what_was_announced() -> None:
    """$38 billion over 7 years is about 155,000 chips at $4 an hour; and so for each contract."""
    spec = load_demand(EXAMPLES / "lab.yaml")
    announced = {"aws-gb200": 38, "aws-trainium": 100, "azure-gb300": 250, "oracle-gb300": 300,
                 "coreweave-1": 11.9, "coreweave-2": 4, "coreweave-3": 6.5}  # fmt: skip
    assert {held.name for held in spec.held} == set(announced)
    for held in spec.held:
        span = range(months.number(held.first), months.number(held.last) + 1)
        hours = sum(months.hours(month) for month in span)
        usd = hours * held.chips * float(held.price_usd_per_chip_hour)
        assert usd == pytest.approx(announced[held.name] * 1e9, rel=2e-3), held.name
        assert held.assumed and held.source
    assert next(h for h in spec.held if h.name == "aws-gb200").chips == pytest.approx(155_000, rel=5e-3)


@pytest.mark.parametrize("name", ["small.yaml", "lab.yaml"])
def test_the_examples_can_be_met(name: str) -> None:
    made = plan(load_demand(EXAMPLES / name), gap=0.02)
    assert not made.shortfalls and made.signatures and made.gap is not None and made.gap <= 0.02
    parts = sum(told.probability * usd for told, (_, usd) in zip(
        load_demand(EXAMPLES / name).scenarios, made.scenario_usd, strict=True))  # fmt: skip
    assert parts == pytest.approx(made.usd, rel=1e-6)
