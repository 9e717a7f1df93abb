"""Two machines of one site make up its Ray cluster by themselves: the first is the head, the second joins it, gangs run on
both, and when the head's Ray is killed the site has none until the next machine begins it anew."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from caudal.composition import SystemClock, world
from caudal.composition.first_node import FirstNodeDriver, ray_token_file
from caudal.control.nodes import jobs_url
from caudal.domain.errors import CaudalError
from caudal.domain.fleet import DriverSpec, FleetSpec, Lease, ProviderSpec, Resources, SiteSpec
from caudal.domain.gang import GangSpec, GangState, ProcessSpec
from caudal.domain.node import subject
from caudal.ports import Change, World
from tests.support import ray_site
from tests.support.ray_site import alive_nodes
from tests.support.served import Served
from tests.unit.test_api_views import LEASE

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(ray_site.unusable()), reason=ray_site.unusable()),
]

FLEET = FleetSpec(
    "laptop",
    (SiteSpec("north", "amazon", "ray"),),
    providers=(ProviderSpec("amazon", "aws", endpoint="http://127.0.0.1:9"),),
    drivers=(DriverSpec("ray", "ray"),),
)
SIZE = Resources(2.0, 1 << 30)


def until(what: str, look: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if found := look():
                return found
        except CaudalError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {what}")


class Machine:
    """A process that runs a lease's user data, as a fake's machine does."""

    def __init__(self, text: str, folder: Path) -> None:
        folder.mkdir()
        self.console = folder / "console.log"
        env = {k: v for k, v in os.environ.items() if k not in ("CAUDAL_NODE_DIR", "RAY_ADDRESS")}
        with self.console.open("wb") as log:
            self.process = subprocess.Popen(
                ["/bin/sh", "-s"], stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, env=env
            )
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.close()

    def raylet(self) -> psutil.Process:
        """Ray's daemon of this machine."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        return next(p for p in below if p.name() == "raylet")

    def close(self) -> None:
        """It goes."""
        tree = [self.process, *psutil.Process(self.process.pid).children(recursive=True)]
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        for one in tree[1:]:
            if psutil.pid_exists(one.pid):
                one.kill()
        self.process.kill()
        self.process.wait()


def test_a_sites_machines_make_up_its_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    served = Served(tmp_path / "home", capsys)
    leases = [
        replace(LEASE, id=f"laptop.north.1.{n}", node=f"north-{n}", requested_at=50.0) for n in (1, 2, 3)
    ]
    served.store.commit(Change(fleet=FLEET, leases=leases[:2]))
    served.start()
    makers = world._Makers(
        World(SystemClock(), served.store, served.models, {}, {}, ()),
        FLEET,
        served.home,
        lambda: (served.home.root / "control.url").read_text(),
    )
    driver = makers.driver(FLEET.sites[0])
    assert isinstance(driver, FirstNodeDriver) and driver.gangs() == []
    assert ray_token_file(served.home, "north").stat().st_mode & 0o077 == 0
    machines: list[Machine] = []

    def boot(lease: Lease) -> Machine:
        text = makers.script(FLEET.providers[0], lease, SIZE)
        machines.append(Machine(text, tmp_path / lease.node))
        return machines[-1]

    def says(lease: Lease) -> dict[str, Any]:
        reports = served.store.read().reports
        return next((dict(r.status) for r in reports if r.gang_id == subject(lease.id)), {})

    try:
        began = time.monotonic()
        first = boot(leases[0])
        until("a head", lambda: says(leases[0]).get("role") == "head")
        boot(leases[1])
        until("both ready", lambda: all(says(x).get("state") == "ready" for x in leases[:2]))
        print(f"two machines ready after {time.monotonic() - began:.1f} s")
        assert says(leases[1])["role"] == "node"
        until("two nodes in Ray", lambda: len(alive_nodes(driver._ray)) == 2)
        for lease in leases[:2]:
            process = ProcessSpec(("{python}", "-c", "import time; time.sleep(600)"))
            asked = Resources(0.5, 64 << 20)
            driver.start(
                GangSpec(f"on-{lease.node}", "north", lease.node, 1, (process,), asked, lease.id), "t"
            )
        running = until(
            "gangs on both",
            lambda: (rows := driver.gangs()) and all(r.state is GangState.RUNNING for r in rows) and rows,
        )
        assert len(running) == 2
        pids = [pid for row in running for pid in row.pids]

        lines = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
        secret = ray_token_file(served.home, "north").read_text()
        assert not any(secret in line for line in lines)

        first.raylet().kill()
        until("the head to say that it is none", lambda: says(leases[0]).get("state") == "failed")
        assert "ended with code" in says(leases[0])["why"]
        assert jobs_url(served.store.read(), "north") == ""
        until("its gangs to be over", lambda: not any(map(psutil.pid_exists, pids)), 30)
        served.store.commit(Change(leases=[leases[2]]))
        boot(leases[2])
        until("the next head", lambda: says(leases[2]).get("state") == "ready")
        assert says(leases[2])["role"] == "head" and driver.gangs() == []
    finally:
        for machine in machines:
            machine.close()
        driver.close()
        served.stop()
