"""The control loop over the Azure provider: what Azure refuses in one region is taken in another, and nothing is left."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from caudal.control.apply import apply
from caudal.control.loop import ControlLoop, Settings
from caudal.domain.fleet import FleetSpec, LeaseState, ProviderSpec
from caudal.drivers.fake import FakeDriver
from caudal.ports import Holder, World
from caudal.providers.azure_fake import FakeAzure
from caudal.store.state import open_store
from tests.support.azure import NAME, SITE, SIZE, azure_provider, fake_azure
from tests.unit.control_world import LAUNCH, RUN, Hands, Shelf

NORTH = replace(SITE, driver="fake")
SOUTH = replace(SITE, name="south", region="westus3", driver="fake")


def loop_over(fake: FakeAzure) -> tuple[ControlLoop, World, Hands]:
    clock, store = Hands(), open_store("sqlite://")
    sites = (NORTH, SOUTH)
    fleet = FleetSpec("test", sites, providers=(ProviderSpec(NAME, "azure"),))
    drivers = {site.name: FakeDriver(site.name, clock) for site in sites}
    provider = azure_provider(fake, clock, sites=sites)
    world = World(clock, store, Shelf(), {NAME: provider}, drivers, sites)
    apply(store, [fleet, RUN], clock.now())
    return ControlLoop(world, Holder("first", "here", 1, 0.0), Settings(), LAUNCH), world, clock


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_what_one_region_has_not_another_gives(later: bool) -> None:
    fake = fake_azure()
    fake.admin("capacity", {"size": SIZE, "location": NORTH.region, "count": 0, "later": later})
    loop, world, clock = loop_over(fake)
    for _ in range(80):
        loop.run_once()
        clock.sleep(1.0)
        time.sleep(0.02)  # the fake's machines boot in real time
        state = world.store.read()
        active = {x.site for x in state.leases if x.state is LeaseState.ACTIVE}
        waiting = [x for x in state.leases if x.state is LeaseState.REQUESTED]
        if active == {"south"} and not waiting:
            break
    assert active == {"south"} and not waiting
    machines = fake.admin("state")["machines"]
    assert {m["location"] for m in machines} == {SOUTH.region}
    # Each lease that is live has one machine, and each machine such a lease.
    held = sorted(x.id for x in state.leases if x.live)
    assert sorted(m["tags"]["caudal-lease"] for m in machines) == held
    puts = [c for c in fake.admin("state")["calls"] if c.startswith("PUT") and "virtualMachines" in c]
    assert len(held) < len(puts) <= len(held) + 3  # north was asked, and not in a loop
