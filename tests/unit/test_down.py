"""Taking a fleet down: nothing is left, or it is named with its price."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from caudal.control.down import remaining, take_down
from caudal.domain.fleet import Market
from tests.unit.control_world import RUN, SERVICE, Bench, offer_at


def rented_bench() -> Bench:
    """Both sites rent their machine by the hour."""
    bench = Bench(RUN, SERVICE)
    for site, provider in zip(("north", "south"), bench.providers.values(), strict=True):
        priced = replace(offer_at(site), market=Market.ON_DEMAND, price_usd_per_hour=Decimal("1.50"))
        provider._offers = (priced,)
    return bench


def test_down_ends_with_an_empty_list() -> None:
    bench = rented_bench()
    bench.run(12)
    assert len(bench.processes()) >= 3
    for name, provider in bench.providers.items():
        here = offer_at(name.removeprefix("fake-"))
        provider.plant(here, f"test.{here.site}.0.1")  # a machine that no lease knows of
        provider.plant(here)  # and somebody else's, one of them another fleet's
        provider.plant(here, f"test-2.{here.site}.0.1")
    assert take_down(bench.loop, "all") == []
    assert bench.processes() == {}
    assert [m.lease_id for p in bench.providers.values() for m in p.existing()] == [
        "",
        "test-2.north.0.1",
        "",
        "test-2.south.0.1",
    ]
    assert bench.store.read().leases == ()
    assert all(w.wanted for w in bench.store.read().workloads)


def test_down_names_what_is_left_and_what_it_costs() -> None:
    bench = rented_bench()
    bench.run(12)
    bench.providers["fake-north"].silent = True
    stuck = bench.providers["fake-south"]
    stuck.release = lambda machine_id: None  # type: ignore[method-assign]  # it says yes, and does nothing
    left = take_down(bench.loop, "all", patience_s=60.0)
    assert {(x.what, x.site or x.name) for x in left} == {
        ("provider", "fake-north"),
        ("machine", "south"),
        ("lease", "north"),
    }
    assert {x.price_usd_per_hour for x in left if x.what != "provider"} == {Decimal("1.50")}


def test_a_node_that_nobody_reaches_is_given_back_all_the_same() -> None:
    bench = rented_bench()
    bench.run(12)
    bench.drivers["south"].silent = True
    assert take_down(bench.loop, "all") == []
    assert [m for p in bench.providers.values() for m in p.existing()] == []


def test_own_machines_stay_where_only_rented_ones_go() -> None:
    bench = rented_bench()
    bench.providers["fake-north"]._offers = (offer_at("north"),)
    bench.run(12)
    assert take_down(bench.loop, "rented") == []
    assert [x.site for x in bench.store.read().leases] == ["north"]
    assert [x.site for x in remaining(bench.world, "all")] == ["north"]
    assert bench.processes() == {}
