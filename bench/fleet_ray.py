"""Rows about Ray sites in network namespaces: a site that is cut off, and a node whose raylet is killed.

Site `a` has a head in one namespace and a second node in another, site `b` is a head alone, and the driver speaks from
a fourth, 5 ms away. Every repeat is a control process's life of its own over the same two clusters.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support import ray_site, wan  # noqa: E402
from tests.support.ray_site import RaySite, Tunnel, alive_nodes  # noqa: E402

from caudal.domain.errors import CaudalError  # noqa: E402
from caudal.domain.fleet import Resources  # noqa: E402
from caudal.drivers.ray.driver import RayDriver  # noqa: E402
from fleet_rig import Loss, Options, Racks, Rig, spread, until  # noqa: E402

SIZE = Resources(cpus=4.0, memory_bytes=2 << 30)


class RayFleet:
    """The network, the two clusters, and the doors through which control reaches them."""

    def __init__(self, stack: ExitStack) -> None:
        self.wan = stack.enter_context(wan.Wan(["control", "a", "a2", "b"], delay_ms=5.0))
        self.sites = {
            name: stack.enter_context(RaySite(name, self.wan.address(name), self.wan.enter(name)))
            for name in ("a", "b")
        }
        for name, site in self.sites.items():
            site.start_head(f"{name}-0", SIZE)
        self.doors = {name: Tunnel(lambda s=site: self._reach(s)) for name, site in self.sites.items()}
        for door in self.doors.values():
            stack.callback(door.close)
        for name, site in self.sites.items():
            site.wait_up(self.driver(name))
        self.join()

    def _reach(self, site: RaySite) -> socket.socket:
        there = self.wan.socket("control")
        there.settimeout(5.0)
        there.connect((site.address, site.jobs_port))
        there.settimeout(None)
        return there

    def driver(self, site: str, alias: str = "") -> RayDriver:
        """A new one, as the next control process would make it."""
        return self.sites[site].driver(self.doors[site].url, alias)

    def join(self) -> None:
        """The second node of `a` joins, again after it was killed."""
        site = self.sites["a"]
        if before := site.nodes.pop("a-1", None):
            before.close()
        site.join("a-1", self.wan.address("a2"), self.wan.enter("a2"), SIZE)
        site.wait_up(self.driver("a"), nodes=2)

    def rig(self, options: Options, number: int, *leases: str) -> Rig:
        """A fleet on the nodes of these leases. Its sites have names of their own: a cluster remembers the gangs of
        the fleet before, and starts none of the same site and id again."""
        racks = Racks({lease: f"{lease[0]}{number}" for lease in leases}, SIZE)
        drivers = {f"{name}{number}": self.driver(name, f"{name}{number}") for name in self.sites}
        return Rig(options.room("ray"), drivers, racks)


def loss_ray(options: Options) -> dict[str, Any]:
    """A Ray site is cut off from everybody: noticed when the books say so and its epochs are raised. And a raylet is
    killed: noticed when the books say that its gangs are over; `ray_says_dead` is Ray's own list of nodes."""
    if reason := ray_site.unusable() or wan.unusable():
        return {"skipped": reason}
    chance = random.Random(options.seed)
    count = options.times(50, 1)
    cuts: list[tuple[Loss, float]] = []
    kills: list[tuple[Loss, float]] = []
    with ExitStack() as stack:
        fleet = RayFleet(stack)
        for number in range(count):
            cuts.append(_cut(fleet, options, 2 * number, chance))
            options.say(f"site cut off: {cuts[-1]}")
            kills.append(_kill(fleet, options, 2 * number + 1, chance))
            options.say(f"raylet killed: {kills[-1]}")
    return {
        "site_cut.noticed": spread([x.noticed_s for x, _ in cuts]),
        "site_cut.decided": spread([x.decided_s for x, _ in cuts]),
        "site_cut.elsewhere": spread([x.elsewhere_s for x, _ in cuts]),
        "site_cut.fenced_ended_after_healing": spread([s for _, s in cuts]),
        "raylet_killed.ray_says_dead": spread([s for _, s in kills]),
        "raylet_killed.noticed": spread([x.noticed_s for x, _ in kills]),
        "raylet_killed.decided": spread([x.decided_s for x, _ in kills]),
        "raylet_killed.elsewhere": spread([x.elsewhere_s for x, _ in kills]),
    }


def _cut(fleet: RayFleet, options: Options, number: int, chance: random.Random) -> tuple[Loss, float]:
    """The loss, and how long after healing what was given up had ended."""
    rig = fleet.rig(options, number, "a-0", "b-0")
    try:
        rig.start()
        time.sleep(chance.uniform(0.5, 1.5))
        there = [g for g in rig.gangs() if g.site == f"b{number}"]
        assert there
        at = time.time()
        fleet.wan.cut("b")
        found = rig.loss(there, at, lambda: rig.suspected(f"b{number}"))
        assert found.sites == {f"a{number}"}
        fleet.wan.heal("b")
        healed = time.time()
        driver, given_up = fleet.driver("b", f"b{number}"), {g.id for g in there}

        def ended() -> bool:
            try:
                rows = {row.gang_id for row in driver.gangs() if row.alive}
            except CaudalError:
                return False
            return not given_up & rows

        until(ended, 60.0, "what was given up to end", 0.05)
        return found, time.time() - healed
    finally:
        fleet.wan.heal("b")
        rig.close()


def _kill(fleet: RayFleet, options: Options, number: int, chance: random.Random) -> tuple[Loss, float]:
    """The loss, and when the head's own list said that the node is dead."""
    rig = fleet.rig(options, number, "a-1", "b-0")
    try:
        rig.start()
        time.sleep(chance.uniform(2.0, 3.0))  # past the delay before the head's first health check
        there = [g for g in rig.gangs() if g.lease_id == "a-1"]
        assert there
        ids, driver = {g.id for g in there}, fleet.driver("a")
        dead_at: list[float] = []
        before = len(alive_nodes(driver))
        at = time.time()
        fleet.sites["a"].nodes["a-1"].raylet().kill()
        with ThreadPoolExecutor(1) as beside:  # the gang's keeper is often sooner than Ray
            ray_says_dead = beside.submit(
                until,
                lambda: len(alive_nodes(driver)) < before,
                60.0,
                "Ray to say that the node is dead",
                0.02,
            )
            ray_says_dead.add_done_callback(lambda _: dead_at.append(time.time()))
            found = rig.loss(there, at, lambda: not ids & {g.id for g in rig.gangs()})
            ray_says_dead.result()
        return found, dead_at[0] - at
    finally:
        rig.close()
        fleet.join()
