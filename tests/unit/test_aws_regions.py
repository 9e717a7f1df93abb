"""Several regions at once, one of which is down, slow or silent."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from caudal.control.observe import Observer
from caudal.domain.errors import Unreachable
from caudal.domain.fleet import FleetSpec, Market
from caudal.domain.snapshot import State
from caudal.ports import Regional, World
from caudal.providers.aws.clients import Patience
from caudal.providers.aws.provider import AwsProvider
from tests.support.aws import Aws, fresh_aws, site

EAST = site("east")
WEST = site("west", region="us-west-2", zone="us-west-2a")


@pytest.fixture
def aws() -> Aws:
    aws = fresh_aws()
    yield aws  # type: ignore[misc]
    for region in ("us-east-1", "us-west-2"):
        aws.admin("region", region=region, mode="")


def both(aws: Aws, **options: object) -> AwsProvider:
    provider = aws.provider([EAST, WEST], **options)  # type: ignore[arg-type]
    for name in ("east", "west"):
        offer = next(o for o in provider.offers() if o.site == name and o.market is Market.ON_DEMAND)
        provider.acquire(f"lease-{name}", offer, f"token-{name}")
    return provider


def test_machines_of_all_regions_are_one_list(aws: Aws) -> None:
    assert {m.site for m in both(aws).machines()} == {"east", "west"}


def test_a_region_that_is_down_makes_its_own_sites_silent_and_no_others(aws: Aws) -> None:
    provider = both(aws)
    aws.admin("region", region="us-west-2", mode="down")
    with pytest.raises(Unreachable):
        provider.machines()
    seen = provider.listing()
    assert [m.site for m in seen.machines] == ["east"]
    assert seen.silent == {"west"}
    assert {o.site for o in provider.offers()} == {"east"}
    aws.admin("region", region="us-west-2", mode="")
    assert provider.listing().silent == frozenset()
    assert len(provider.listing().machines) == 2


def test_all_regions_down_is_no_answer(aws: Aws) -> None:
    provider = both(aws)
    for region in ("us-east-1", "us-west-2"):
        aws.admin("region", region=region, mode="down")
    with pytest.raises(Unreachable):
        provider.listing()
    with pytest.raises(Unreachable):
        provider.offers()


def test_what_may_be_in_a_silent_region_is_not_said_to_be_released(aws: Aws) -> None:
    provider = both(aws)
    west = next(m for m in provider.machines() if m.site == "west")
    aws.admin("region", region="us-west-2", mode="down")
    with pytest.raises(Unreachable):
        provider.release(west.id)
    with pytest.raises(Unreachable):
        aws.provider([EAST, WEST]).release(west.id)  # one that does not know where it is
    aws.admin("region", region="us-west-2", mode="")
    aws.provider([EAST, WEST]).release(west.id)


def test_a_silent_region_costs_its_time_once_and_then_rests(aws: Aws) -> None:
    provider = aws.provider([EAST, WEST], patience=Patience(1.0, 1.1, attempts=1))
    provider.machines()
    aws.admin("region", region="us-west-2", mode="silent", seconds=5)
    began = time.monotonic()
    assert provider.listing().silent == {"west"}
    first_s = time.monotonic() - began
    began = time.monotonic()
    assert provider.listing().silent == {"west"}
    again_s = time.monotonic() - began
    assert 1.0 <= first_s < 5.0
    assert again_s < 1.0, "it rests"
    aws.admin("region", region="us-west-2", mode="")
    aws.clock.ahead_s += 30
    assert provider.listing().silent == frozenset()


def test_a_slow_region_is_only_slow(aws: Aws) -> None:
    provider = aws.provider([EAST])
    aws.admin("region", region="us-east-1", mode="slow", seconds=0.3)
    began = time.monotonic()
    assert provider.machines() == []
    assert time.monotonic() - began >= 0.3


def test_machines_of_a_site_that_was_taken_out_are_found_and_can_be_ended(aws: Aws) -> None:
    both(aws)
    later = aws.provider([EAST])
    assert {m.site for m in later.machines()} == {"east"}
    found, silent = later.elsewhere()
    assert [(m.site, m.lease_id) for m in found] == [("west", "lease-west")]
    assert silent == []
    later.release(found[0].id)
    aws.admin("clock", advance_s=1)
    assert later.elsewhere()[0] == []
    aws.admin("region", region="us-west-2", mode="down")
    assert later.elsewhere() == ([], ["us-west-2"])


class _Models:
    def list(self) -> list[object]:
        return []


def test_the_loop_sees_a_silent_region_as_silent_sites(aws: Aws) -> None:
    provider = both(aws)
    assert isinstance(provider, Regional)
    world = World(aws.clock, None, _Models(), {"cloud": provider}, {}, (EAST, WEST))  # type: ignore[arg-type]
    state = State(version=1, fleet=FleetSpec("demo", (EAST, WEST)))
    aws.admin("region", region="us-west-2", mode="down")
    snapshot = Observer(world).observe(state)
    assert snapshot.silent_providers == {"west"}
    assert [m.site for m in snapshot.machines] == ["east"]
    assert {o.site for o in snapshot.offers} == {"east"}
    assert all(o.price_usd_per_hour > Decimal(0) for o in snapshot.offers)
