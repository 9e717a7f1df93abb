"""The team's own machines, reached over SSH, make up a site's Ray cluster: the first one taken is its head, the second joins
it, gangs run on both; a machine that is given back is left with nothing that runs, and the other one goes on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from caudal.composition import SystemClock, world
from caudal.composition.first_node import FirstNodeDriver
from caudal.domain.fleet import (
    DriverSpec,
    FleetSpec,
    MachineState,
    NodesSpec,
    ProviderSpec,
    Resources,
    SiteSpec,
)
from caudal.domain.gang import GangSpec, GangState, ProcessSpec
from caudal.domain.node import subject
from caudal.ports import Change, World
from caudal.providers.hosts import HostsProvider
from tests.e2e.test_ray_nodes import until
from tests.support import ray_site
from tests.support.own_hosts import OwnHosts, own_hosts
from tests.support.ray_site import alive_nodes
from tests.support.served import Served
from tests.unit.test_api_views import LEASE

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(ray_site.unusable()), reason=ray_site.unusable()),
]


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[OwnHosts]:
    with own_hosts(tmp_path / "h", one="north", two="north") as built:
        yield built


def below(hosts: OwnHosts) -> set[int]:
    """What was started in the hosts' homes and lives."""
    found = set()
    for process in psutil.process_iter(["environ"]):
        home = (process.info["environ"] or {}).get("HOME", "")
        if home.startswith(str(hosts.folder)) and process.status() != psutil.STATUS_ZOMBIE:
            found.add(process.pid)
    return found


def test_own_machines_over_ssh_make_up_a_sites_ray_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts: OwnHosts
) -> None:
    own = ProviderSpec("own", "hosts", hosts=tuple(h.spec() for h in hosts.hosts.values()))
    fleet = FleetSpec(
        "laptop",
        (SiteSpec("north", "own", "ray"),),
        providers=(own,),
        drivers=(DriverSpec("ray", "ray"),),
        nodes=NodesSpec(python=sys.executable),
    )
    served = Served(tmp_path / "home", capsys)
    leases = [
        replace(LEASE, id=f"laptop.north.1.{n}", node=f"north-{n}", requested_at=50.0 + n) for n in (1, 2)
    ]
    served.store.commit(Change(fleet=fleet, leases=leases))
    served.start()
    url = served.home.root / "control.url"
    bare = World(SystemClock(), served.store, served.models, {}, {}, ())
    makers = world._Makers(bare, fleet, served.home, url.read_text)
    driver = makers.driver(fleet.sites[0])
    assert isinstance(driver, FirstNodeDriver)
    provider = HostsProvider(
        own, "laptop", tmp_path / "memory", "2026-11-29", makers._host_script, hosts.folder / "config"
    )

    def says(number: int) -> dict[str, Any]:
        wanted = subject(leases[number].id)
        return next((dict(r.status) for r in served.store.read().reports if r.gang_id == wanted), {})

    def take(number: int, host: str) -> None:
        offer = next(o for o in provider.offers() if o.id == f"own:{host}")
        provider.acquire(leases[number].id, offer, f"token {number}")

    try:
        take(0, "one")
        until("a head", lambda: says(0).get("role") == "head")
        take(1, "two")
        until("both ready", lambda: all(says(n).get("state") == "ready" for n in (0, 1)))
        assert says(1)["role"] == "node"
        until("two nodes in Ray", lambda: len(alive_nodes(driver._ray)) == 2)
        assert {m.lease_id: m.state for m in provider.machines()} == {
            lease.id: MachineState.RUNNING for lease in leases
        }
        for lease in leases:
            process = ProcessSpec(("{python}", "-c", "import time; time.sleep(600)"))
            asked = Resources(0.5, 64 << 20)
            driver.start(
                GangSpec(f"on-{lease.node}", "north", lease.node, 1, (process,), asked, lease.id), "t"
            )
        rows = until(
            "gangs on both",
            lambda: (rows := driver.gangs()) and all(r.state is GangState.RUNNING for r in rows) and rows,
        )
        pids = {row.gang_id: row.pids for row in rows}
        assert set(pids) == {"on-north-1", "on-north-2"} and all(pids.values())

        second = next(m for m in provider.machines() if m.lease_id == leases[1].id)
        provider.release(second.id)
        assert [m.lease_id for m in provider.machines()] == [leases[0].id]
        until("its gang to be over", lambda: not any(map(psutil.pid_exists, pids["on-north-2"])), 30)
        until("the other to be told", lambda: states(driver)["on-north-2"] is GangState.LOST, 60)
        assert states(driver)["on-north-1"] is GangState.RUNNING
        assert all(map(psutil.pid_exists, pids["on-north-1"]))

        assert below(hosts), "the head, its node agent, the gang"
        provider.release(provider.machines()[0].id)
        assert provider.machines() == [] and not hosts.hosts["one"].claim.exists()
        until("nothing of it to run", lambda: not below(hosts), 30)
    finally:
        for machine in provider.machines():
            provider.release(machine.id)
        provider.close()
        driver.close()
        served.stop()


def states(driver: FirstNodeDriver) -> dict[str, GangState]:
    """By gang, as the driver lists them."""
    return {row.gang_id: row.state for row in driver.gangs()}
