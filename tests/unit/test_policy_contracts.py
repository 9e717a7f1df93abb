"""Contracts, budgets and nodes that leave: what is taken first, what is not taken, and what moves when."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

import pytest

from caudal.domain.fleet import BudgetSpec, Contract, LeaseState, Market, Offer, RampStep
from caudal.domain.snapshot import Snapshot
from caudal.domain.term import count_at, machine_price, moment
from caudal.policy import decide
from caudal.policy.rules import Rules
from tests.unit.policy_world import Play, kinds, lease, machine_type, offer, service, train, waits

NEW_YEAR = moment("2027-01-01")
BIG = machine_type(8, 32)

RESERVED = Contract(
    "eights", "reserved", "cloud", "2027-01-01", "2027-02-01", count=1, price_usd_per_hour=Decimal("20")
)


def rent(price: str, name: str, **given: object) -> Offer:
    return offer("north", price, Market.ON_DEMAND, id=name, machine_type=BIG, **given)


class World(Play):
    """No node yet; one site of a cloud, with offers by the hour and under a contract."""

    def __init__(self, *contracts: Contract, budgets: tuple[BudgetSpec, ...] = (), team: str = "") -> None:
        super().__init__(replace(train(sites=1), team=team), sites=("north",))
        self.leases.clear()
        self.machines.clear()
        self.now = NEW_YEAR
        sites = tuple(replace(s, provider="cloud") for s in self.fleet.sites)
        self.fleet = replace(self.fleet, sites=sites, contracts=contracts, budgets=budgets)
        self.offers = [
            rent("3", "spot"),
            rent("20", "signed", contract="eights"),
            rent("10", "hourly"),
        ]
        self.spent: dict[str, Decimal] = {}
        self.leaves: dict[str, float] = {}

    def snapshot(self) -> Snapshot:
        made = super().snapshot()
        machines = tuple(replace(m, leaves_at=self.leaves.get(m.id)) for m in made.machines)
        return replace(made, spent_usd=self.spent, machines=machines)

    def taken(self) -> list[tuple[str, str]]:
        return [(x.offer_id, x.contract) for x in self.leases.values()]


def test_what_is_paid_already_comes_before_what_is_cheaper_by_the_hour() -> None:
    world = World(RESERVED)
    world.step()
    assert world.taken() == [("signed", "eights")]
    (held,) = world.leases.values()
    assert (held.price_usd_per_hour, held.provider) == (Decimal("20"), "cloud")


def test_own_machines_come_before_contracts() -> None:
    world = World(RESERVED)
    world.offers.append(offer("north", "0", Market.OWN, id="own", machine_type=BIG))
    world.step()
    assert world.taken() == [("own", "")]


def test_own_machines_cost_what_their_contract_says_and_are_not_left_when_it_ends() -> None:
    bought = Contract(
        "rack", "own", "cloud", "2027-01-01", "2027-02-01", count=1, prepayment_usd=Decimal("1488")
    )
    world = World(bought)
    world.offers = [offer("north", "0", Market.OWN, id="own", machine_type=BIG)]
    world.settle(6)
    assert world.taken() == [("own", "rack")]
    (held,) = world.leases.values()
    assert held.price_usd_per_hour == Decimal("2.00")
    world.now = moment("2027-02-01") + 10
    world.settle(4)
    assert len(world.live()) == 2
    assert world.taken() == [("own", "rack")]


@pytest.mark.parametrize(
    ("contract", "now", "code"),
    [
        (RESERVED, NEW_YEAR - 1, "contract.not_in_force"),
        (RESERVED, moment("2027-02-01"), "contract.not_in_force"),
        (replace(RESERVED, name="other"), NEW_YEAR, "contract.unknown"),
        (replace(RESERVED, count=0, ramp=(RampStep("2027-01-08", 2),)), NEW_YEAR, "contract.used_up"),
    ],
)
def test_a_contract_that_does_not_hold_now_is_not_used(contract: Contract, now: float, code: str) -> None:
    world = World(contract)
    world.now = now
    decision = world.step()
    assert world.taken() == [("spot", "")]
    choice = next(c for c in decision.choices if c.action.kind == "acquire_node")
    assert {r.what: r.reason.code for r in choice.rejected}["offer signed"] == code


def test_a_contract_gives_no_more_than_it_has() -> None:
    world = World(RESERVED)
    held = lease("north", 7, contract="eights", machine_type=machine_type(0.1, 0.1))
    world.add_node(held)
    world.step()
    assert ("spot", "") in world.taken()
    assert ("signed", "eights") not in world.taken()


def test_savings_make_use_on_demand_cheaper_as_long_as_they_last() -> None:
    plan = Contract(
        "plan",
        "savings",
        "cloud",
        "2027-01-01",
        "2028-01-01",
        price_usd_per_hour=Decimal("9"),
        discount=0.25,
    )
    world = World(plan)
    world.offers = [rent("10", "hourly"), rent("4", "small", available=0)]
    world.step()
    (held,) = world.leases.values()
    assert (held.contract, held.price_usd_per_hour) == ("plan", Decimal("7.5"))
    again = World(replace(plan, price_usd_per_hour=Decimal("5")))
    again.offers = [rent("10", "hourly")]
    again.step()
    assert again.taken() == [("hourly", "")]


def test_a_prepayment_is_in_the_price_and_ramps_in_the_count() -> None:
    steps = (RampStep("2027-01-01", 1), RampStep("2027-01-11", 3))
    ramped = replace(RESERVED, count=0, ramp=steps, prepayment_usd=Decimal("1752"))
    assert [
        count_at(ramped, moment(d)) for d in ("2026-12-31", "2027-01-10", "2027-01-11", "2027-02-01")
    ] == [
        0,
        1,
        3,
        0,
    ]
    # 10 days of one machine and 21 of three are 1,752 hours
    assert machine_price(ramped) == Decimal("21.00")


BROKE = {"red": Decimal("100.00")}


def test_over_its_budget_a_team_gets_nothing_new_that_costs() -> None:
    world = World(budgets=(BudgetSpec("red", Decimal(100)),), team="red")
    world.spent = BROKE
    decision = world.step()
    assert world.taken() == []
    assert waits(decision)["starter.worker.0"] == "budget.spent"
    text = next(w.reason.text for w in decision.waiting if w.reason.code == "budget.spent")
    assert "team red has spent $100.00 of $100.00 this month" in text
    world.spent = {"red": Decimal("99.99")}
    world.step()
    assert world.taken() == [("spot", "")]


def test_over_its_budget_what_runs_goes_on_unless_told_to_stop() -> None:
    world = World(budgets=(BudgetSpec("red", Decimal(100)),), team="red")
    world.settle(6)
    running = {g.slot for g in world.live()}
    assert running == {"starter.coordinator", "starter.worker.0"}
    assert {g.team for g in world.live()} == {"red"}
    world.spent = BROKE
    world.settle(6)
    assert {g.slot for g in world.live() if not g.stopping} == running
    world.fleet = replace(world.fleet, budgets=(BudgetSpec("red", Decimal(100), stop_running=True),))
    world.settle(6)
    assert world.live() == []
    assert waits(world.decide())["starter.worker.0"] == "budget.spent"


def test_another_teams_budget_is_its_own() -> None:
    world = World(budgets=(BudgetSpec("red", Decimal(100)),), team="blue")
    world.spent = BROKE
    world.step()
    assert world.taken() == [("spot", "")]


def test_what_is_on_a_spot_machine_that_goes_moves_to_another_first() -> None:
    world = World()
    world.settle(6)
    (old,) = world.leases.values()
    world.leaves[f"m-{old.node}"] = world.now + 120
    world.step(1)
    new = next(x for x in world.leases.values() if x.id != old.id)
    assert not any(g.stopping for g in world.live())  # the new node is not there yet
    world.settle(6)
    assert {g.lease_id for g in world.live()} == {new.id}
    world.settle(3)
    assert world.leases[old.id].state in (LeaseState.RELEASING, LeaseState.ENDED)


def test_where_there_is_no_other_it_is_stopped_in_order_before_the_machine_goes() -> None:
    world = World()
    world.settle(6)
    world.offers = []
    (old,) = world.leases.values()
    leaves_at = world.leaves[f"m-{old.node}"] = world.now + 120
    decision = world.step(1)
    assert waits(decision)["starter.worker.0"] == "node.leaving"
    while world.live() and world.now < leaves_at:
        world.step(1)
    assert leaves_at - world.now >= Rules().stop_grace_s
    assert waits(world.decide())["starter.worker.0"] in ("node.leaving", "site.no_node")


def test_nothing_new_is_placed_on_a_node_that_goes() -> None:
    world = World()
    world.settle(6)
    (old,) = world.leases.values()
    world.leaves[f"m-{old.node}"] = world.now + 100
    world.workloads["assistant"] = replace(
        Play(service(), sites=()).workloads["assistant"], applied_at=world.now
    )
    world.models = {}
    decision = decide(world.snapshot(), world.now)
    starts = [c for c in decision.choices if c.action.kind == "start_gang"]
    assert starts == []
    assert any(k.startswith("acquire_node") for k in kinds(decision))


def test_a_lease_whose_contract_ends_is_left_for_a_new_one_at_a_new_price() -> None:
    world = World(RESERVED)
    world.now = moment("2027-02-01") - 1000
    world.settle(6)
    (old,) = world.leases.values()
    assert old.contract == "eights"
    world.now = moment("2027-02-01") - 100
    world.settle(10)
    assert world.leases[old.id].state in (LeaseState.RELEASING, LeaseState.ENDED)
    assert world.leases[old.id].price_usd_per_hour == Decimal("20")
    (held,) = {g.lease_id for g in world.live()}
    assert (world.leases[held].offer_id, world.leases[held].price_usd_per_hour) == ("spot", Decimal("3"))
