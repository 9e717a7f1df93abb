"""kill -9 of real control processes at random times, against this machine and a cloud that is a process of its own:
what exists is what the leases say, at every kill and at the end.

`CRASH_KILLS` says how many (20; 200 takes two minutes on two cores).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from caudal.control import apply as users
from caudal.control.down import take_down
from caudal.domain.errors import Stale
from caudal.domain.fleet import FleetSpec, LeaseState, Resources
from caudal.domain.workload import ServedModel, ServiceSpec
from caudal.ports import World
from tests.support.inventory import LAG_S, InventoryProvider
from tests.support.nursery import RULES, SITES, control, world

KILLS = int(os.environ.get("CRASH_KILLS", "20"))
ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


def service(replicas: int) -> ServiceSpec:
    """Large replicas need a machine each; the small one stays."""
    small = ServedModel("small", source="pypi:small==1", resources=Resources(0.2, GIB // 4))
    size = Resources(1.5, GIB)
    large = ServedModel("large", source="pypi:large==1", replicas=max(1, replicas), resources=size)
    return ServiceSpec("assistant", (small, large) if replicas else (small,))


@pytest.fixture
def cloud() -> Iterator[InventoryProvider]:
    command = [sys.executable, "-m", "tests.support.inventory", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        provider = InventoryProvider(int(process.stdout.readline()))
        yield provider
        process.kill()


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def unleased(made: World, cloud: InventoryProvider) -> set[str]:
    """The tags of machines that exist and that no live lease holds."""
    leases = {x.id for x in made.store.read().leases}
    machines = [*cloud.truth(), *made.providers["local"].machines()]
    return {m.lease_id for m in machines} - leases


def inventory(made: World, cloud: InventoryProvider) -> set[str]:
    """The tags of all machines that exist."""
    return {m.lease_id for m in (*cloud.truth(), *made.providers["local"].machines())}


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(120 + 3 * KILLS)
def test_killed_at_any_moment_what_exists_is_what_is_leased(tmp_path: Path, cloud: InventoryProvider) -> None:
    chance = random.Random(5)
    port = int(cloud._url.rpartition(":")[2])
    made = world(tmp_path, port)
    users.apply(made.store, [FleetSpec("crashes", SITES), service(2)], time.time())
    errors = (tmp_path / "errors").open("w")
    command = [sys.executable, "-m", "tests.support.nursery", str(tmp_path), str(port)]
    nursery = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
    )
    try:
        assert nursery.stdin is not None and nursery.stdout is not None
        for number in range(KILLS):
            nursery.stdin.write("go\n")
            nursery.stdin.flush()
            pid = int(nursery.stdout.readline())
            time.sleep(chance.uniform(0.05, 0.9))
            os.kill(pid, signal.SIGKILL)
            while not gone(pid):
                time.sleep(0.002)
            assert unleased(made, cloud) == set(), f"after kill {number + 1}"
            try:
                users.apply(made.store, [service(chance.randint(0, 3))], time.time())
            except Stale:
                pass
        assert len(cloud.ask("/truth", {})) <= 6
    finally:
        nursery.kill()
        nursery.wait()
        errors.close()
        cloud.calm()
        time.sleep(RULES.intent_retry_max_s + LAG_S)
        loop = control(made)
        loop.run_once()
        time.sleep(0.3)
        loop.run_once()
        machines = inventory(made, cloud)
        # What the second pass has just given back may be gone already, and its lease ends with the next look.
        leases = {x.id for x in made.store.read().leases if x.state is not LeaseState.RELEASING}
        leaving = {x.id for x in made.store.read().leases if x.state is LeaseState.RELEASING}
        left = take_down(loop, "all", patience_s=60.0)
    assert machines - leaving == leases
    assert left == []
    assert inventory(made, cloud) == set()
    assert [s for d in made.drivers.values() for s in d.gangs() if s.alive] == []
    given = len(made.store.lease_history())
    assert given >= KILLS / 10, "nothing much was going on"
    assert not any(x.live for x in made.store.lease_history())
    print(f"{KILLS} kills, {given} leases")
