"""How one machine becomes several sites."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caudal.catalog.local import machine_type, offer, share
from caudal.domain.fleet import Market, Resources

GIB = 1 << 30


@pytest.mark.parametrize(
    ("cpus", "sites", "cores"),
    [
        (2, ["north", "south"], [1.0, 1.0]),
        (3, ["north", "south"], [2.0, 1.0]),
        (8, ["a", "b", "c"], [3.0, 3.0, 2.0]),
        (1, ["north", "south"], [1.0, 1.0]),
        (4, ["only"], [4.0]),
    ],
)
def test_cores_are_shared_out(cpus: int, sites: list[str], cores: list[float]) -> None:
    parts = share(cpus, 8 * GIB, sites)
    assert list(parts) == sites
    assert [p.resources.cpus for p in parts.values()] == cores


def test_names_say_the_cores() -> None:
    assert machine_type(0.5, GIB).name == "local-0.5cpu"
    assert machine_type(2.0, GIB).name == "local-2cpu"
    assert machine_type(128, GIB).name == "local-128cpu"


def test_no_sites_take_nothing() -> None:
    assert share(4, GIB, []) == {}


@given(st.integers(1, 256), st.integers(0, 1 << 45), st.integers(1, 40))
def test_the_parts_are_the_whole(cpus: int, memory_bytes: int, count: int) -> None:
    resources = [p.resources for p in share(cpus, memory_bytes, [f"s{i}" for i in range(count)]).values()]
    assert sum(r.memory_bytes for r in resources) == memory_bytes
    assert sum(r.cpus for r in resources) == max(cpus, count)
    assert all(r.cpus >= 1 and r.memory_bytes >= 0 for r in resources)
    cores = [r.cpus for r in resources]
    assert cores == sorted(cores, reverse=True)
    assert max(cores) - min(cores) <= 1
    assert all(c == int(c) for c in cores)


def test_an_offer_costs_nothing_and_has_its_source_and_date() -> None:
    kind = machine_type(1, GIB)
    one = offer("north", kind, "2026-11-22")
    assert (one.market, one.price_usd_per_hour) == (Market.OWN, Decimal(0))
    assert (one.source, one.as_of, one.site) == ("this machine", "2026-11-22", "north")
    assert Resources(cpus=1, memory_bytes=GIB).fits(one.machine_type.resources)
