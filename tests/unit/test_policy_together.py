"""Nodes for several slots at once: cheaper than one by one, within what can be had, and kept to when they come."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from caudal.domain.decision import AcquireNode, Decision
from caudal.domain.fleet import Contract, FleetSpec, Market, Offer, ProviderSpec, Resources, SiteSpec
from caudal.domain.term import moment
from caudal.domain.workload import ServedModel
from caudal.policy.filling import Kind, Option
from caudal.policy.packing import cheapest, into
from tests.unit.policy_world import GIB, Play, machine_type, model, offer, service, train, waits

SOUTH = frozenset({"south"})


def rented(name: str, site: str, price: str, cpus: float, left: int | None = None, **given: object) -> Offer:
    return offer(
        site,
        price,
        Market.ON_DEMAND,
        machine_type=machine_type(cpus, 4 * cpus),
        id=name,
        available=left,
        **given,
    )


def replicas(count: int, cpus: float) -> ServedModel:
    return ServedModel("small", source="x", replicas=count, resources=Resources(cpus, GIB))


def play(*specs: object, offers: list[Offer]) -> Play:
    made = Play(*specs, sites=("north", "south"))  # type: ignore[arg-type]
    sites = (SiteSpec("north", "cloud"), SiteSpec("south", "cloud"))
    made.fleet = FleetSpec("test", sites, providers=(ProviderSpec("cloud", "aws"),))
    made.leases.clear()
    made.machines.clear()
    made.models = {"small": model()}
    made.offers = offers
    return made


def taken(decision: Decision) -> list[str]:
    return sorted(c.action.offer.id for c in decision.choices if isinstance(c.action, AcquireNode))


def paid(world: Play) -> Decimal:
    return sum((x.price_usd_per_hour for x in world.leases.values() if x.live), Decimal(0))


def test_one_large_node_for_all_where_that_is_cheaper_than_the_cheapest_for_each() -> None:
    offers = [rented("little", "south", "1.00", 1), rented("large", "south", "5.00", 9)]
    world = play(service("assistant", replicas(8, 1.0)), offers=offers)
    decision = world.step()
    assert taken(decision) == ["large"]
    choice = next(c for c in decision.choices if isinstance(c.action, AcquireNode))
    assert choice.reason.code == "node.needed" and choice.reason.data["holds"] == 9  # the gateway, too
    assert "one node for all 9" in choice.reason.text and "$5.00/h" in choice.reason.text
    assert {r.what: r.reason.code for r in choice.rejected} == {"offer little": "offer.second"}
    assert set(waits(decision).values()) == {"node.booting"}
    world.settle(6)
    assert paid(world) == Decimal("5.00") and len(world.live()) == 9


def test_small_ones_where_those_are_cheaper() -> None:
    offers = [rented("little", "south", "1.00", 2.2), rented("large", "south", "50.00", 64)]
    world = play(service("assistant", replicas(4, 2.0)), offers=offers)
    assert taken(world.step()) == ["little"] * 4
    world.settle(6)
    assert paid(world) == 4


def test_no_more_than_is_left_and_the_rest_waits_with_a_reason() -> None:
    world = play(service("assistant", replicas(5, 2.0)), offers=[rented("few", "south", "1.00", 2.2, left=2)])
    decision = world.step()
    assert taken(decision) == ["few", "few"]
    codes = waits(decision)
    assert sorted(c for s, c in codes.items() if ".replica." in s).count("node.booting") == 2
    assert len(codes) == 6


def test_what_a_contract_gives_comes_before_what_is_paid_by_the_hour() -> None:
    mine = rented("mine", "south", "9.00", 4.2, left=1, contract="signed")
    world = play(service("assistant", replicas(4, 2.0)), offers=[mine, rented("hour", "south", "2.00", 4.2)])
    contract = Contract("signed", "reserved", "cloud", "2026-01-01", "2028-01-01", ("south",), "m4.2", 1)
    world.fleet = replace(world.fleet, contracts=(contract,))
    world.now = moment("2027-01-01")
    assert taken(world.step()) == ["hour", "mine"]


def test_a_node_that_has_to_be_taken_anyway_is_filled_first() -> None:
    """A run wants both sites, and north has only a large machine: the replicas go there, and nothing else is taken."""
    offers = [
        rented("north-large", "north", "10.00", 16),
        rented("south-little", "south", "1.00", 2),
        rented("south-large", "south", "8.00", 16),
    ]
    run = train("run", sites=2, resources=Resources(1.5, GIB))
    world = play(run, service("assistant", replicas(6, 2.0)), offers=offers)
    world.settle(8)
    assert paid(world) == Decimal("11.00")
    assert {site for slot, site in world.at().items() if ".worker." in slot} == {"north", "south"}


def test_nodes_are_for_the_slots_that_they_were_taken_for() -> None:
    """Spread by habit, the replicas would take the worker's room in the north, and one more node would be needed."""
    offers = [rented("n", "north", "3.00", 3.3, left=1), rented("s", "south", "2.90", 3.3, left=1)]
    run = train("run", sites=1, at=("north",), resources=Resources(2.0, GIB))
    world = play(run, service("assistant", replicas(4, 1.0)), offers=offers)
    decision = world.step()
    assert taken(decision) == ["n", "s"]
    world.settle(8)
    assert len(world.live()) == 7  # with the gateway and the coordinator
    assert world.at()["run.worker.0"] == "north"
    reasons = {c.subject: c.reason.code for c in world_choices(offers, run)}
    assert reasons["run.worker.0"] == "place.planned"


def world_choices(offers: list[Offer], run: object) -> list[object]:
    world = play(run, service("assistant", replicas(4, 1.0)), offers=offers)
    found: list[object] = []
    for _ in range(4):
        found += [c for c in world.step(1.0).choices if c.action.kind == "start_gang"]
    return found


def test_a_node_that_never_comes_leaves_its_slots_to_others() -> None:
    offers = [rented("n", "north", "3.00", 3.3, left=1), rented("s", "south", "2.90", 3.3)]
    world = play(service("assistant", replicas(5, 1.0)), offers=offers)
    world.step()
    for lease in [x for x in world.leases.values() if x.site == "north"]:
        world.machines = {k: m for k, m in world.machines.items() if m.lease_id != lease.id}
    world.offers = [offers[1]]
    world.settle(12, each_s=20.0)
    assert len([g for g in world.live() if g.role == "replica"]) == 5


def test_apart_means_one_at_a_site_in_the_plan_too() -> None:
    kinds = [Kind(Resources(1.0, GIB), frozenset({"a", "b", "c"}), 2, True, frozenset({"a"}))]
    options = [
        Option(f"o{s}", s, Resources(8.0, 8 * GIB), price)
        for s, price in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    ]
    plan = cheapest(kinds, options, options)
    assert [options[f.option].site for f in plan] == ["c", "b"] or [options[f.option].site for f in plan] == [
        "b",
        "c",
    ]
    assert all(f.counts == (1,) for f in plan)


def test_many_alike_are_filled_in_bulk() -> None:
    kinds = [Kind(Resources(1.0, GIB), SOUTH, 5_000)]
    options = [
        Option("eight", "south", Resources(8.0, 64 * GIB), 8.0),
        Option("one", "south", Resources(1.0, GIB), 1.1),
    ]
    plan = cheapest(kinds, options, options)
    assert len(plan) == 625 and sum(f.counts[0] for f in plan) == 5_000
    machines = [(options[f.option].site, options[f.option].resources) for f in plan]
    assert sum(map(sum, into(kinds, machines, options))) == 5_000


def test_nothing_to_place_and_nothing_to_place_it_on() -> None:
    kind = Kind(Resources(1.0, GIB), SOUTH, 3)
    assert cheapest([], [], []) == []
    assert cheapest([kind], [], []) == []
    assert cheapest([kind], [Option("small", "south", Resources(0.5, GIB), 1.0)], []) == []
    assert into([kind], [], []) == []
