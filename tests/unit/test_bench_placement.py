"""The benchmark of placement measures what it says: its optimum is one, and the worlds that it plays come to rest."""

from __future__ import annotations

import itertools
import sys
from decimal import Decimal
from pathlib import Path

import pytest

from caudal.domain.fleet import FleetSpec, MachineType, Market, Offer, ProviderSpec, Resources, SiteSpec
from caudal.domain.workload import ServedModel, ServiceSpec

pytest.importorskip("highspy")

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))

from placement import played  # noqa: E402
from placement_optimum import optimum  # noqa: E402
from placement_world import Instance, instance  # noqa: E402

GIB = 1 << 30


def small(prices: tuple[str, ...]) -> Instance:
    """Three sizes of machines and five replicas of 2 cores; the gateway takes 0.1."""
    sizes = (2.1, 4.1, 8.1)
    offers = tuple(
        Offer(f"o{n}", "s", MachineType(f"t{n}", Resources(cpus, 64 * GIB)), Market.ON_DEMAND, Decimal(price), "t",
              "2027-01-01")
        for n, (cpus, price) in enumerate(zip(sizes, prices, strict=True))
    )  # fmt: skip
    fleet = FleetSpec("bench", (SiteSpec("s", "one"),), providers=(ProviderSpec("one", "aws"),))
    model = ServedModel("m", source="x", replicas=5, resources=Resources(2.0, GIB))
    return Instance(0, fleet, offers, (ServiceSpec("service", (model,)),))


@pytest.mark.parametrize(
    "prices", [("1", "1.5", "2.5"), ("1", "2.5", "6"), ("2", "2.1", "9"), ("1", "1", "1")]
)
def test_the_optimum_is_that_of_trying_everything(prices: tuple[str, ...]) -> None:
    holds = (1, 2, 4)  # replicas; the gateway fits beside them anywhere
    tried = min(
        sum(count * float(price) for count, price in zip(counts, prices, strict=True))
        for counts in itertools.product(range(6), repeat=3)
        if sum(count * held for count, held in zip(counts, holds, strict=True)) >= 5
    )
    found = optimum(small(prices))
    assert found is not None and found.usd_per_hour == pytest.approx(tried)
    world, _, left = played(small(prices))
    assert left == 0 and world.cost_usd_per_hour() == pytest.approx(tried)


def test_what_has_no_room_has_no_optimum() -> None:
    given = small(("1", "1", "1"))
    model = ServedModel("m", source="x", replicas=1, resources=Resources(64.0, GIB))
    assert optimum(Instance(0, given.fleet, given.offers, (ServiceSpec("service", (model,)),))) is None


@pytest.mark.parametrize("seed", range(1, 9))
def test_nobody_pays_less_than_the_optimum_and_little_more(seed: int) -> None:
    given = instance(seed)
    best = optimum(given)
    if best is None:
        pytest.skip("this fleet cannot hold everything")
    world, _, left = played(given)
    assert left == 0
    assert 0.999 < world.cost_usd_per_hour() / best.usd_per_hour < 1.1
