"""A budget through the whole loop: the bill of the month is read from the store, and nothing more is taken."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from caudal.control.apply import apply
from caudal.control.explain import explain
from caudal.domain.fleet import BudgetSpec, Market
from caudal.domain.term import DAY_S, moment
from tests.unit.control_world import RUN, Bench, offer_at


def bench(budget: str, stop: bool = False) -> Bench:
    """A run of team red on one rented site at $60 an hour, on the last day but one of a month."""
    made = Bench(sites=["north", "south"])
    made.clock.time = moment("2027-03-30") + 1000.0
    for site, provider in zip(made.drivers, made.providers.values(), strict=True):
        provider._offers = (replace(offer_at(site), market=Market.ON_DEMAND, price_usd_per_hour=Decimal(60)),)
    limit = BudgetSpec("red", Decimal(budget), stop_running=stop)
    fleet = replace(made.fleet, budgets=(limit,))
    apply(made.store, [fleet, replace(RUN, team="red", sites=1)], made.clock.now())
    return made


def test_what_runs_goes_on_and_nothing_more_is_taken_until_the_month_ends() -> None:
    made = bench("10")
    made.run(8)
    assert len(made.live()) == 2
    made.run(12, each_s=60.0)  # $1 a minute
    assert len(made.live()) == 2
    apply(made.store, [replace(RUN, name="second", team="red", sites=2)], made.clock.now())
    made.run(4)
    (one,) = made.store.read().leases
    waits = [line for line in explain(made.store.read(), made.store, "second") if line.state == "waits"]
    assert {line.code for line in waits} == {"budget.spent"}
    assert "of $10.00 this month" in waits[0].text
    made.clock.time = moment("2027-04-01") + 1.0
    made.run(6)
    assert one.id in {x.id for x in made.store.read().leases}
    assert len(made.store.read().leases) == 2


def test_days_that_are_over_stay_in_the_sum() -> None:
    made = bench("1450")
    made.run(8)
    made.clock.time += DAY_S  # $1,440 later
    made.run(3)
    snapshot = made.loop._observer.observe(made.store.read())
    assert Decimal(1430) < snapshot.spent_usd["red"] < Decimal(1450)
    made.run(12, each_s=60.0)
    assert made.loop._observer.observe(made.store.read()).spent_usd["red"] > Decimal(1450)
    again = made.process("second")._observer.observe(made.store.read())  # another process adds up the same
    assert abs(again.spent_usd["red"] - made.loop._observer.observe(made.store.read()).spent_usd["red"]) < 1


def test_with_stop_running_what_runs_is_ended() -> None:
    made = bench("10", stop=True)
    made.run(8)
    assert len(made.live()) == 2
    made.run(16, each_s=60.0)
    assert made.live() == []
    assert made.processes() == {}
